//! Where an image comes from: a registry, an OCI layout, a docker archive or daemon, a root file system in a tar, a
//! directory, a SIF or a squashfs. Blobs are handed out unverified; the layer pipeline checks every digest while it reads.

mod archive;
mod daemon;
mod directory;
mod docker_archive;
mod error;
mod input;
mod oci_layout;
mod options;
pub mod registry;
mod resolve;
mod squashfs;
mod tar_file;
mod whole;

use std::io::Read;

pub use archive::ArchiveError;
pub use daemon::DaemonError;
pub use directory::Ownership;
pub use error::SourceError;
pub use options::SourceOptions;
pub use resolve::SelectError;

use crate::image::config::ImageConfig;
use crate::image::digest::Digest;
use crate::image::reference::SourceReference;

/// A resolved image: one manifest of one platform, its config, its layers.
#[derive(Debug, Clone)]
pub struct SourceImage {
    /// What was asked for, in canonical form: `docker://localhost:5000/app:1`.
    pub origin: String,
    /// The manifest's bytes as received; for a docker archive without one, its `manifest.json` entry; empty for what was
    /// no image before.
    pub manifest: Vec<u8>,
    /// Digest of `manifest`.
    pub manifest_digest: Digest,
    /// Its media type.
    pub manifest_media_type: String,
    /// The parsed config, which keeps its raw bytes.
    pub config: ImageConfig,
    /// Layers, bottom first.
    pub layers: Vec<LayerInfo>,
    /// Whether the one layer is a root file system as it stands, in which no name is a whiteout.
    pub whole_tree: bool,
}

/// What the manifest says of a layer.
#[derive(Debug, Clone)]
pub struct LayerInfo {
    /// Digest of the blob as stored; none in a docker archive.
    pub digest: Option<Digest>,
    /// Digest of the uncompressed tar; none where nobody has stated it, so that there is nothing to check.
    pub diff_id: Option<Digest>,
    /// Size of the blob, bytes, where known.
    pub size: Option<u64>,
    /// A hint only: compression is recognised by the bytes.
    pub media_type: String,
}

/// An image whose manifest is resolved and whose layers can be opened.
pub trait Source: Send + Sync + std::fmt::Debug {
    /// The resolved image.
    fn image(&self) -> &SourceImage;

    /// Opens the blob of layer `index` (0 = bottom) from its start; may be called more than once.
    fn open_layer(&self, index: usize) -> Result<Box<dyn Read + Send>, SourceError>;

    /// Notes that what was read of layer `index` was not that layer: `why`, in one line. Whether opening it again may give
    /// the bytes of another place; an error if several places have it and none rightly.
    fn distrust_layer(&self, index: usize, why: &str) -> Result<bool, SourceError> {
        let _ = (index, why);
        Ok(false)
    }
}

/// Resolves `reference` to one image. Manifest and config are read and verified; no layer is touched yet.
pub fn open(reference: &SourceReference, options: &SourceOptions) -> Result<Box<dyn Source>, SourceError> {
    let origin = reference.to_string();
    Ok(match reference {
        SourceReference::Registry(name) => Box::new(registry::RegistrySource::open(name, origin, options)?),
        SourceReference::DockerArchive { path, image } => {
            let archive = input::open_archive(path, &origin, options)?;
            Box::new(docker_archive::DockerArchive::open(archive, image.as_ref(), origin, options)?)
        }
        SourceReference::OciArchive { path, image } => {
            let archive = input::open_archive(path, &origin, options)?;
            Box::new(oci_layout::OciLayout::open_archive(archive, image.as_ref(), origin, options)?)
        }
        SourceReference::OciLayout { path, image } => {
            Box::new(oci_layout::OciLayout::open_directory(path, image.as_ref(), origin, options)?)
        }
        SourceReference::DockerDaemon(name) => Box::new(daemon::open(name, origin, options)?),
        SourceReference::Tar(path) => Box::new(tar_file::TarFile::open(path, origin, options)?),
        SourceReference::Directory(path) => Box::new(directory::DirectoryTree::open(path, origin, options)?),
        SourceReference::Sif(path) => Box::new(squashfs::SquashfsFile::open_sif(path, origin)?),
        SourceReference::Squashfs(path) => Box::new(squashfs::SquashfsFile::open(path, origin, options)?),
    })
}
