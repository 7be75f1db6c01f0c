//! An image file as an archive that is an OCI layout and, through `manifest.json`, also what `docker load` takes.
//!
//! The layer goes first and straight into the archive: its name is its digest, so the header is written last.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::pack::{self, Packing};
use super::walk::Purpose;
use super::{ExportError, ExportOptions, Losses, tar_stream};
use crate::convert::layer::tar::{END, Entry, EntryKind, Segment, encode_header, padding_of};
use crate::image::config::ImageConfig;
use crate::image::digest::{Algorithm, Digest, Hasher};
use crate::image::platform::Platform;
use crate::squashfs::reader::Filesystem;

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
/// What is kept free for the first members: two directories and the layer's header, or, for a layer of 8 GiB and more,
/// its header with a PAX header.
const HEAD_SIZE: usize = 3 * 512;

/// Writes the archive to `output`, an empty file.
pub fn export_oci(
    filesystem: &Arc<Filesystem>,
    config: &ImageConfig,
    name: &str,
    options: &ExportOptions,
    output: &File,
) -> Result<Losses, ExportError> {
    let write_failed = |source| ExportError::Write { source };
    let mut out = output;
    out.seek(SeekFrom::Start(HEAD_SIZE as u64)).map_err(write_failed)?;
    let layer = Layer::write(filesystem, options, output)?;
    let documents = Documents::new(config, name, options.packing, &layer);

    let mut rest = vec![0; padding_of(layer.length)];
    for (name, bytes) in documents.members() {
        rest.extend_from_slice(&encode_header(&member(&name, bytes.len() as u64)));
        rest.extend_from_slice(&bytes);
        rest.resize(rest.len() + padding_of(bytes.len() as u64), 0);
    }
    rest.extend_from_slice(&END);
    out.write_all(&rest).map_err(write_failed)?;
    let head = head(&blob_name(&layer.digest), layer.length);
    output.write_all_at(&head, 0).map_err(write_failed)?;
    Ok(layer.losses)
}

/// A layer that was written.
pub(super) struct Layer {
    pub(super) digest: Digest,
    /// Bytes.
    length: u64,
    diff_id: Digest,
    pub(super) losses: Losses,
}

impl Layer {
    /// Writes the tree as a layer to where `output` stands.
    pub(super) fn write(
        filesystem: &Arc<Filesystem>,
        options: &ExportOptions,
        output: &File,
    ) -> Result<Layer, ExportError> {
        let (stream, losses) = tar_stream(filesystem, Purpose::Layer)?;
        let mut diff_id = Hasher::new(Algorithm::Sha256);
        let mut blob = Hashing { output, hasher: Hasher::new(Algorithm::Sha256), length: 0 };
        pack::copy(stream, options.packing, options.threads, |bytes| diff_id.update(bytes), &mut blob)?;
        let Hashing { hasher, length, .. } = blob;
        let losses = losses.get().copied().unwrap_or_default();
        Ok(Layer { digest: hasher.finish(), length, diff_id: diff_id.finish(), losses })
    }
}

/// What lies before the layer's data.
fn head(name: &str, length: u64) -> Vec<u8> {
    let header = encode_header(&member(name, length));
    let mut head = Vec::new();
    if header.len() < HEAD_SIZE {
        for name in ["blobs/", "blobs/sha256/"] {
            let directory = Entry { kind: EntryKind::Directory, mode: 0o755, ..member(name, 0) };
            head.extend_from_slice(&encode_header(&directory));
        }
    }
    head.extend_from_slice(&header);
    head
}

fn member(name: &str, size: u64) -> Entry {
    let segments = if size == 0 { Vec::new() } else { vec![Segment { offset: 0, length: size }] };
    Entry {
        path: name.as_bytes().to_vec(),
        kind: EntryKind::File { size, segments },
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: 0,
        xattrs: Vec::new(),
        ignored_records: 0,
        offset: 0,
    }
}

pub(super) fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

/// Counts and hashes on the way to a file.
struct Hashing<'a> {
    output: &'a File,
    hasher: Hasher,
    length: u64,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.output.write(bytes)?;
        self.hasher.update(bytes.get(..count).unwrap_or_default());
        self.length = self.length.saturating_add(count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// The JSON around a layer.
pub(super) struct Documents {
    pub(super) config: Vec<u8>,
    pub(super) manifest: Vec<u8>,
    /// The manifest's descriptor for an index.
    pub(super) entry: Value,
    docker: Vec<u8>,
}

/// What an OCI layout has to say of itself.
pub(super) const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// Annotation with the name of an image in a layout.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";

impl Documents {
    pub(super) fn new(config: &ImageConfig, name: &str, packing: Packing, layer: &Layer) -> Documents {
        let Layer { digest, length, diff_id, .. } = layer;
        let config = with_one_layer(config, diff_id);
        let suffix = match packing {
            Packing::Plain => "",
            Packing::Gzip(_) => "+gzip",
            Packing::Zstd(_) => "+zstd",
        };
        let layer_type = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST_TYPE,
            "config": descriptor(&config, CONFIG_TYPE),
            "layers": [{"mediaType": layer_type, "digest": digest.as_str(), "size": length}],
        })
        .to_string()
        .into_bytes();
        let mut entry = descriptor(&manifest, MANIFEST_TYPE);
        let mut annotations = Map::new();
        annotations.insert(REF_NAME.to_owned(), name.into());
        // docker load takes no name without a tag.
        let has_tag = name.rsplit('/').next().is_some_and(|last| last.contains(':'));
        if has_tag {
            annotations.insert("io.containerd.image.name".to_owned(), name.into());
        }
        if let Some(entry) = entry.as_object_mut() {
            entry.insert("annotations".to_owned(), annotations.into());
        }
        let docker = json!([{
            "Config": blob_name(&Digest::of(&config)),
            "RepoTags": if has_tag { json!([name]) } else { Value::Null },
            "Layers": [blob_name(digest)],
        }]);
        Documents { config, manifest, entry, docker: docker.to_string().into_bytes() }
    }

    fn members(&self) -> [(String, Vec<u8>); 5] {
        [
            (blob_name(&Digest::of(&self.config)), self.config.clone()),
            (blob_name(&Digest::of(&self.manifest)), self.manifest.clone()),
            ("index.json".to_owned(), index(vec![self.entry.clone()])),
            ("manifest.json".to_owned(), self.docker.clone()),
            ("oci-layout".to_owned(), LAYOUT.to_vec()),
        ]
    }
}

/// An index of these entries.
pub(super) fn index(entries: Vec<Value>) -> Vec<u8> {
    let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries});
    index.to_string().into_bytes()
}

fn descriptor(bytes: &[u8], media_type: &str) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(bytes).as_str(), "size": bytes.len()})
}

/// The image's config for one layer in place of all it had. What the history says of them stays, as steps without a
/// layer.
fn with_one_layer(config: &ImageConfig, diff_id: &Digest) -> Vec<u8> {
    let mut document: Map<String, Value> = serde_json::from_slice(&config.raw).unwrap_or_default();
    let host = Platform::host();
    let empty = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().is_empty();
    for (key, value) in [("architecture", host.architecture()), ("os", host.os())] {
        if empty(document.get(key)) {
            document.insert(key.to_owned(), value.into());
        }
    }
    let mut history: Vec<Value> =
        document.get("history").and_then(Value::as_array).cloned().unwrap_or_default();
    history.retain(Value::is_object);
    for step in history.iter_mut().filter_map(Value::as_object_mut) {
        step.insert("empty_layer".to_owned(), true.into());
    }
    let mut last = json!({"created_by": "hpcrun export", "comment": "all layers as one"});
    if let (Some(last), Some(created)) = (last.as_object_mut(), document.get("created")) {
        last.insert("created".to_owned(), created.clone());
    }
    history.push(last);
    document.insert("history".to_owned(), history.into());
    document.insert("rootfs".to_owned(), json!({"type": "layers", "diff_ids": [diff_id.as_str()]}));
    Value::from(document).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_fills_its_place_whatever_the_size() {
        for length in [0, 1, 8 << 30, (8 << 30) - 1, 1 << 40] {
            let name = blob_name(&Digest::of(b""));
            assert_eq!(head(&name, length).len(), HEAD_SIZE, "{length}");
        }
    }

    #[test]
    fn the_config_keeps_all_but_its_layers() {
        let raw = br#"{"architecture":"arm64","variant":"v8","os":"linux","created":"2024-01-01T00:00:00Z",
            "config":{"Env":["A=1"],"X":1},"history":[{"created_by":"a"},{"created_by":"b","empty_layer":true}],
            "rootfs":{"type":"layers","diff_ids":[]}}"#;
        let config = ImageConfig::parse(raw).unwrap();
        let id = Digest::of(b"layer");
        let written: Value = serde_json::from_slice(&with_one_layer(&config, &id)).unwrap();
        assert_eq!(written["architecture"], "arm64");
        assert_eq!(written["variant"], "v8");
        assert_eq!(written["config"], json!({"Env": ["A=1"], "X": 1}));
        assert_eq!(written["rootfs"]["diff_ids"], json!([id.as_str()]));
        let history = written["history"].as_array().unwrap();
        assert_eq!(history.len(), 3);
        let layers = history.iter().filter(|step| step["empty_layer"] != json!(true));
        assert_eq!(layers.count(), 1, "as many steps with a layer as layers");
        let bare: Value = serde_json::from_slice(&with_one_layer(&ImageConfig::default(), &id)).unwrap();
        assert_eq!(bare["os"], "linux");
        assert_eq!(bare["architecture"], Platform::host().architecture());
    }
}
