//! Images made in memory, and OCI layouts and tar archives of them, odd ones included.

use std::io::Write;
use std::path::{Path, PathBuf};

use hpcrun::image::digest::Digest;
use serde_json::{Value, json};

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// How a layer's blob is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    pub(crate) fn pack(self, tar: &[u8]) -> Vec<u8> {
        match self {
            Packing::Plain => tar.to_vec(),
            Packing::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(tar).unwrap();
                encoder.finish().unwrap()
            }
            Packing::Zstd => zstd::encode_all(tar, 1).unwrap(),
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Packing::Plain => "",
            Packing::Gzip => "+gzip",
            Packing::Zstd => "+zstd",
        }
    }
}

/// A tar of one file.
pub(crate) fn layer_tar(name: &str, content: &[u8]) -> Vec<u8> {
    tar_of(&[(name, content)])
}

/// A tar of files, in order.
pub(crate) fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = TarBuilder::default();
    for (name, content) in files {
        builder = builder.file(name, content);
    }
    builder.finish()
}

/// A tar of files and links whose names the `tar` crate would refuse.
#[derive(Default)]
pub(crate) struct TarBuilder(Vec<u8>);

impl TarBuilder {
    pub(crate) fn file(self, name: &str, content: &[u8]) -> TarBuilder {
        self.entry(name, tar::EntryType::Regular, "", content)
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> TarBuilder {
        self.entry(name, tar::EntryType::Symlink, target, b"")
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> TarBuilder {
        self.entry(name, tar::EntryType::Link, target, b"")
    }

    pub(crate) fn directory(self, name: &str) -> TarBuilder {
        self.entry(name, tar::EntryType::Directory, "", b"")
    }

    fn entry(mut self, name: &str, kind: tar::EntryType, link: &str, content: &[u8]) -> TarBuilder {
        let mut header = tar::Header::new_ustar();
        let bytes = header.as_mut_bytes();
        assert!(name.len() <= 100 && link.len() <= 100, "{name} {link}");
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        bytes[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// One layer: its tar and its blob.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) tar: Vec<u8>,
    pub(crate) blob: Vec<u8>,
    pub(crate) media_type: String,
}

/// An image and its documents.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) layers: Vec<Layer>,
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Vec<u8>,
}

impl Image {
    /// An image for linux on `architecture` of these layer tars.
    pub(crate) fn new(architecture: &str, tars: &[Vec<u8>], packing: Packing) -> Image {
        let layers: Vec<Layer> = tars
            .iter()
            .map(|tar| Layer {
                tar: tar.clone(),
                blob: packing.pack(tar),
                media_type: format!("application/vnd.oci.image.layer.v1.tar{}", packing.suffix()),
            })
            .collect();
        let diff_ids: Vec<String> = tars.iter().map(|tar| Digest::of(tar).to_string()).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "created": "2024-01-01T00:00:00Z",
            "config": {"Env": ["PATH=/usr/bin", "MADE_FOR=test"], "Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": [],
        });
        Image::with_config(layers, config.to_string().into_bytes())
    }

    /// The image with another config.
    pub(crate) fn with_config(layers: Vec<Layer>, config: Vec<u8>) -> Image {
        let descriptors: Vec<Value> =
            layers.iter().map(|layer| descriptor(&layer.blob, &layer.media_type)).collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": descriptor(&config, OCI_CONFIG), "layers": descriptors,
        });
        Image { layers, config, manifest: manifest.to_string().into_bytes() }
    }

    /// Two layers for amd64, gzip.
    pub(crate) fn sample() -> Image {
        let tars = [layer_tar("one", b"first layer"), layer_tar("two", &[7; 40_000])];
        Image::new("amd64", &tars, Packing::Gzip)
    }

    /// All blobs: config, layers, manifest.
    pub(crate) fn blobs(&self) -> Vec<&[u8]> {
        let mut blobs = vec![self.config.as_slice(), &self.manifest];
        blobs.extend(self.layers.iter().map(|layer| layer.blob.as_slice()));
        blobs
    }
}

/// A descriptor of `bytes`.
pub(crate) fn descriptor(bytes: &[u8], media_type: &str) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(bytes).as_str(), "size": bytes.len()})
}

/// A descriptor with a name.
pub(crate) fn named(bytes: &[u8], media_type: &str, name: &str) -> Value {
    let mut entry = descriptor(bytes, media_type);
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    entry
}

/// A descriptor for a platform.
pub(crate) fn for_platform(bytes: &[u8], media_type: &str, architecture: &str) -> Value {
    let mut entry = descriptor(bytes, media_type);
    entry["platform"] = json!({"os": "linux", "architecture": architecture});
    entry
}

/// An index of entries.
pub(crate) fn index(entries: &[Value]) -> Vec<u8> {
    json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).to_string().into_bytes()
}

/// An OCI layout on disk.
pub(crate) struct Layout(pub(crate) PathBuf);

impl Layout {
    /// An empty layout at `path`, with `index.json` of `entries`.
    pub(crate) fn new(path: &Path, entries: &[Value]) -> Layout {
        std::fs::create_dir_all(path.join("blobs/sha256")).unwrap();
        std::fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        std::fs::write(path.join("index.json"), index(entries)).unwrap();
        Layout(path.to_owned())
    }

    /// A layout of one image named `v1`.
    pub(crate) fn of(path: &Path, image: &Image) -> Layout {
        Layout::new(path, &[named(&image.manifest, OCI_MANIFEST, "v1")]).with(image)
    }

    /// Adds the blobs of an image.
    pub(crate) fn with(self, image: &Image) -> Layout {
        image.blobs().into_iter().fold(self, |layout, blob| layout.with_blob(blob))
    }

    /// Adds a blob.
    pub(crate) fn with_blob(self, bytes: &[u8]) -> Layout {
        std::fs::write(self.path_of(bytes), bytes).unwrap();
        self
    }

    /// Where the blob of these bytes lies.
    pub(crate) fn path_of(&self, bytes: &[u8]) -> PathBuf {
        self.0.join("blobs/sha256").join(Digest::of(bytes).hex())
    }
}
