//! Docker archives: what `docker save`, `podman save`, skopeo, crane, kaniko and bazel write.
//!
//! All have `manifest.json`; its entries name a config and the layer tars by member name, with or without links between
//! them. Docker 25 and later add an OCI layout around the same files; its real manifest is then preferred.

use std::io::Read;

use serde_json::{Map, Value};

use super::archive::{Archive, ArchiveError};
use super::resolve::{self, BareLayer, Outline, SelectError, select};
use super::{Source, SourceError, SourceImage, SourceOptions};
use crate::image::config::MAX_CONFIG_BYTES;
use crate::image::digest::Digest;
use crate::image::manifest::{
    self, Descriptor, Document, ImageManifest, MAX_INDEX_DEPTH, MAX_LAYERS, MAX_MANIFEST_BYTES, ManifestError,
};
use crate::image::reference::{ImageChoice, Reference};

/// Documents of an OCI layout looked through for the manifest that belongs to an entry.
const MAX_DOCUMENTS: usize = 64;

/// An image of a docker archive.
#[derive(Debug)]
pub(super) struct DockerArchive {
    archive: Archive,
    image: SourceImage,
    /// Member names of the layers, bottom first.
    layers: Vec<String>,
}

impl DockerArchive {
    /// Chooses an image of the archive.
    pub(super) fn open(
        archive: Archive,
        image: Option<&ImageChoice>,
        origin: String,
        options: &SourceOptions,
    ) -> Result<DockerArchive, SourceError> {
        let fail = |source| SourceError::Archive { origin: origin.clone(), source };
        let entries = read_entries(&archive, &origin)?;
        let entry = choose(&entries, image, &origin)?;
        if entry.layers.len() > MAX_LAYERS {
            let source = ManifestError::TooManyLayers(entry.layers.len());
            return Err(SourceError::Manifest { origin, source });
        }
        let config = archive.read_small(&entry.config, MAX_CONFIG_BYTES).map_err(fail)?;
        if entry.has_foreign_layers && !options.allow_foreign {
            return Err(SourceError::Foreign {
                origin,
                what: "the archive leaves layers to other places".to_owned(),
            });
        }
        if let Some(expected) = stated_digest(&entry.config) {
            resolve::verify_digest(&expected, &config, "the image config", &origin)?;
        }
        let mut layers = Vec::new();
        for name in &entry.layers {
            layers.push(archive.find(name).map_err(fail)?.size);
        }
        let outline = match oci_manifest(&archive, entry, &Digest::of(&config)) {
            Some((bytes, manifest)) => {
                resolve::refuse_foreign(&manifest, Descriptor::is_foreign, options, &origin)?;
                let digest = Digest::of(&bytes);
                Outline::of(resolve::Resolved { bytes, digest, manifest }, origin.clone())
            }
            None => outline_of(entry, &layers, origin.clone()),
        };
        let image = outline.finish(&config, &options.platform)?;
        Ok(DockerArchive { archive, image, layers: entry.layers.clone() })
    }
}

impl Source for DockerArchive {
    fn image(&self) -> &SourceImage {
        &self.image
    }

    fn open_layer(&self, index: usize) -> Result<Box<dyn Read + Send>, SourceError> {
        let origin = || self.image.origin.clone();
        let name = self.layers.get(index).ok_or_else(|| SourceError::NoLayer { origin: origin(), index })?;
        let found = self.archive.find(name);
        found
            .and_then(|found| self.archive.open_found(found))
            .map_err(|source| SourceError::Archive { origin: origin(), source })
    }
}

/// One image of `manifest.json`.
#[derive(Debug)]
struct Entry {
    config: String,
    names: Vec<String>,
    layers: Vec<String>,
    /// Whether docker says of some layers where to fetch them (Windows images).
    has_foreign_layers: bool,
    /// The entry as compact JSON, members sorted.
    raw: Vec<u8>,
}

fn read_entries(archive: &Archive, origin: &str) -> Result<Vec<Entry>, SourceError> {
    let not_this = |why: &str| SourceError::NotThis {
        origin: origin.to_owned(),
        expected: "a docker-archive",
        why: why.to_owned(),
    };
    let bytes = archive.read_small("manifest.json", MAX_MANIFEST_BYTES).map_err(|source| match source {
        ArchiveError::Missing(_) if archive.has("index.json") => {
            not_this("it has no manifest.json but the index.json of an oci-archive")
        }
        ArchiveError::Missing(_) if archive.has("repositories") => {
            not_this("it has no manifest.json; docker before 1.10 wrote it")
        }
        ArchiveError::Missing(_) => not_this("it has no manifest.json"),
        source => SourceError::Archive { origin: origin.to_owned(), source },
    })?;
    let malformed = |what: &str| not_this(&format!("its manifest.json {what}"));
    let document: Value = serde_json::from_slice(&bytes).map_err(|_| malformed("is not valid JSON"))?;
    let items = document.as_array().ok_or_else(|| malformed("is not an array"))?;
    items
        .iter()
        .map(|item| {
            let members = item.as_object().ok_or_else(|| malformed("has an entry that is no object"))?;
            Entry::parse(members, item.to_string()).ok_or_else(|| malformed("has a malformed entry"))
        })
        .collect()
}

impl Entry {
    fn parse(members: &Map<String, Value>, raw: String) -> Option<Entry> {
        let strings = |key: &str| match members.get(key) {
            None | Some(Value::Null) => Some(Vec::new()),
            Some(Value::Array(items)) => {
                items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<Vec<String>>>()
            }
            Some(_) => None,
        };
        Some(Entry {
            config: members.get("Config")?.as_str()?.to_owned(),
            names: strings("RepoTags")?,
            layers: strings("Layers")?,
            has_foreign_layers: members
                .get("LayerSources")
                .and_then(Value::as_object)
                .is_some_and(|sources| sources.values().any(is_foreign)),
            raw: raw.into_bytes(),
        })
    }
}

fn choose<'a>(
    entries: &'a [Entry],
    image: Option<&ImageChoice>,
    origin: &str,
) -> Result<&'a Entry, SourceError> {
    let all_names = || {
        let unnamed = |position: usize| vec![format!("@{position}")];
        let names = |(position, entry): (usize, &Entry)| {
            if entry.names.is_empty() { unnamed(position) } else { entry.names.clone() }
        };
        entries.iter().enumerate().flat_map(names).collect::<Vec<String>>()
    };
    let no_such =
        |wanted: &ImageChoice| SelectError::NoSuchName { wanted: wanted.to_string(), names: all_names() };
    let chosen = match (image, entries) {
        (_, []) => Err(SelectError::None),
        (None, [entry]) => Ok(entry),
        (None, _) => Err(SelectError::Several { names: all_names() }),
        (Some(wanted @ ImageChoice::Position(position)), _) => {
            entries.get(*position).ok_or_else(|| no_such(wanted))
        }
        (Some(wanted @ ImageChoice::Name(name)), _) => {
            let same = |other: &String| {
                other == name
                    || matches!((Reference::parse(other), Reference::parse(name)), (Ok(a), Ok(b)) if a == b)
            };
            let mut found = entries.iter().filter(|entry| entry.names.iter().any(same));
            match (found.next(), found.next()) {
                (Some(entry), None) => Ok(entry),
                (Some(_), Some(_)) => Err(SelectError::SameName(name.clone())),
                (None, _) => Err(no_such(wanted)),
            }
        }
    };
    chosen.map_err(|source| select(origin, source))
}

/// Whether the descriptor of a layer says to fetch it elsewhere. Docker since 25 describes all layers.
fn is_foreign(descriptor: &Value) -> bool {
    let has_urls = descriptor.get("urls").and_then(Value::as_array).is_some_and(|urls| !urls.is_empty());
    let media_type = descriptor.get("mediaType").and_then(Value::as_str).unwrap_or_default();
    has_urls || manifest::is_foreign_type(media_type)
}

/// The digest that a config's name promises: `blobs/sha256/<hex>`, crane's `sha256:<hex>`. Docker's `<hex>.json` is a
/// promise too, but hand-made archives break it, and nobody else checks.
fn stated_digest(name: &str) -> Option<Digest> {
    match name.strip_prefix("blobs/") {
        Some(blob) => Digest::parse(&blob.replacen('/', ":", 1)).ok(),
        None => Digest::parse(name).ok(),
    }
}

fn outline_of(entry: &Entry, sizes: &[u64], origin: String) -> Outline {
    let layers = sizes
        .iter()
        .map(|size| BareLayer { digest: None, size: Some(*size), media_type: String::new() })
        .collect();
    Outline {
        origin,
        manifest_digest: Digest::of(&entry.raw),
        manifest: entry.raw.clone(),
        manifest_media_type: "application/json".to_owned(),
        layers,
    }
}

/// The OCI manifest in the archive that has exactly this entry's config and layers. What is damaged or absent is passed
/// over: `manifest.json` alone is enough.
fn oci_manifest(archive: &Archive, entry: &Entry, config: &Digest) -> Option<(Vec<u8>, ImageManifest)> {
    let layers: Vec<Digest> = entry.layers.iter().map(|name| stated_digest(name)).collect::<Option<_>>()?;
    let index = archive.read_small("index.json", MAX_MANIFEST_BYTES).ok()?;
    let Ok(Document::Index(index)) = Document::parse(&index, None) else { return None };
    let mut queue: Vec<(Descriptor, usize)> =
        index.manifests.into_iter().rev().map(|entry| (entry, 1)).collect();
    for _ in 0..MAX_DOCUMENTS {
        let (descriptor, depth) = queue.pop()?;
        let name = format!("blobs/{}/{}", descriptor.digest.algorithm().name(), descriptor.digest.hex());
        let Ok(bytes) = archive.read_small(&name, MAX_MANIFEST_BYTES) else { continue };
        if Digest::of_with(descriptor.digest.algorithm(), &bytes) != descriptor.digest {
            continue;
        }
        match Document::parse(&bytes, Some(&descriptor.media_type)) {
            Ok(Document::Image(manifest))
                if manifest.config.digest == *config
                    && manifest.layers.iter().map(|layer| &layer.digest).eq(&layers) =>
            {
                return Some((bytes, manifest));
            }
            Ok(Document::Index(nested)) if depth < MAX_INDEX_DEPTH => {
                queue
                    .extend(nested.manifests.into_iter().rev().map(|entry| (entry, depth.saturating_add(1))));
            }
            _ => {}
        }
    }
    None
}
