//! The image that a root file system becomes which was never one: no manifest, one layer, a config that says little.

use serde_json::json;

use super::{LayerInfo, SourceError, SourceImage};
use crate::image::config::ImageConfig;
use crate::image::digest::Digest;
use crate::image::platform::Platform;

/// An image of one tree whose tar has `size` bytes, if that is known.
pub(super) fn image_of(origin: String, config: ImageConfig, size: Option<u64>) -> SourceImage {
    SourceImage {
        origin,
        manifest: Vec::new(),
        manifest_digest: Digest::of(b""),
        manifest_media_type: String::new(),
        config,
        layers: vec![LayerInfo { digest: None, diff_id: None, size, media_type: String::new() }],
        whole_tree: true,
    }
}

/// Refuses any layer but the one that there is.
pub(super) fn check_layer(image: &SourceImage, index: usize) -> Result<(), SourceError> {
    match index {
        0 => Ok(()),
        index => Err(SourceError::NoLayer { origin: image.origin.clone(), index }),
    }
}

/// A config that names the platform and nothing else.
pub(super) fn bare_config(platform: &Platform) -> ImageConfig {
    let mut document = json!({
        "architecture": platform.architecture(), "os": platform.os(), "config": {},
        "rootfs": {"type": "layers", "diff_ids": []},
    });
    if let (false, Some(document)) = (platform.variant().is_empty(), document.as_object_mut()) {
        document.insert("variant".to_owned(), platform.variant().into());
    }
    ImageConfig::parse(document.to_string().as_bytes()).unwrap_or_default()
}
