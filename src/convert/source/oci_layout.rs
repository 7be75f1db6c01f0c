//! OCI layouts: a directory of blobs named by their digest, or a tar archive of one.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use serde_json::Value;

use super::archive::{Archive, ArchiveError};
use super::resolve::{self, Fetched, Outline, SelectError, select};
use super::{Source, SourceError, SourceImage, SourceOptions};
use crate::image::config::MAX_CONFIG_BYTES;
use crate::image::digest::Digest;
use crate::image::manifest::{Descriptor, Document, Index, MAX_MANIFEST_BYTES, ManifestError};
use crate::image::reference::{ImageChoice, Reference};
use crate::sys;

/// Annotations that name an entry of `index.json`, in the order they are looked at.
const NAMES: [&str; 2] = ["org.opencontainers.image.ref.name", "io.containerd.image.name"];
const MAX_LAYOUT_BYTES: u64 = 64 << 10;

/// An image of an OCI layout.
#[derive(Debug)]
pub(super) struct OciLayout {
    store: Store,
    image: SourceImage,
}

impl OciLayout {
    /// Opens the layout in a directory.
    pub(super) fn open_directory(
        path: &Path,
        image: Option<&ImageChoice>,
        origin: String,
        options: &SourceOptions,
    ) -> Result<OciLayout, SourceError> {
        let directory = sys::beneath::open_directory(path).map_err(|source| SourceError::Open {
            origin: origin.clone(),
            what: "the directory".to_owned(),
            source,
        })?;
        OciLayout::open(Store::Directory(directory), image, origin, options)
    }

    /// Opens the layout in a tar archive.
    pub(super) fn open_archive(
        archive: Archive,
        image: Option<&ImageChoice>,
        origin: String,
        options: &SourceOptions,
    ) -> Result<OciLayout, SourceError> {
        OciLayout::open(Store::Archive(archive), image, origin, options)
    }

    fn open(
        store: Store,
        image: Option<&ImageChoice>,
        origin: String,
        options: &SourceOptions,
    ) -> Result<OciLayout, SourceError> {
        check_layout_file(&store, &origin)?;
        let index = read_index(&store, &origin)?;
        let first = choose_entry(&store, index, image, &origin)?;
        let mut fetch = |entry: &Descriptor| store.read_blob(&entry.digest, MAX_MANIFEST_BYTES, &origin);
        let resolved = resolve::resolve(first, &options.platform, &origin, &mut fetch)?;
        resolve::refuse_foreign(&resolved.manifest, Descriptor::is_foreign, options, &origin)?;
        let config = resolved.manifest.config.clone();
        resolve::check_config_size(config.size, &origin)?;
        let bytes = store.read_blob(&config.digest, MAX_CONFIG_BYTES, &origin)?;
        resolve::verify(&config, &bytes, "the image config", &origin)?;
        let image = Outline::of(resolved, origin).finish(&bytes, &options.platform)?;
        Ok(OciLayout { store, image })
    }
}

impl Source for OciLayout {
    fn image(&self) -> &SourceImage {
        &self.image
    }

    fn open_layer(&self, index: usize) -> Result<Box<dyn Read + Send>, SourceError> {
        let origin = || self.image.origin.clone();
        let layer = self.image.layers.get(index);
        let digest = layer.and_then(|layer| layer.digest.as_ref());
        let digest = digest.ok_or_else(|| SourceError::NoLayer { origin: origin(), index })?;
        let (blob, actual) = self.store.open_blob(digest, &self.image.origin)?;
        match layer.and_then(|layer| layer.size) {
            Some(expected) if expected != actual => Err(SourceError::WrongSize {
                origin: origin(),
                what: format!("layer {}", index.saturating_add(1)),
                expected,
                actual,
            }),
            _ => Ok(blob),
        }
    }
}

/// An open file and its size, bytes.
type Opened = (Box<dyn Read + Send>, u64);

/// Where the files of a layout lie.
#[derive(Debug)]
enum Store {
    Directory(OwnedFd),
    Archive(Archive),
}

impl Store {
    /// Opens a file by the names that lead to it; gives its size too. None: there is no such file.
    fn open_file(&self, names: &[&str], origin: &str) -> Result<Option<Opened>, SourceError> {
        match self {
            Store::Directory(directory) => match sys::beneath::open_file(directory.as_fd(), names) {
                Ok(file) => {
                    let size = file_size(&file, &names.join("/"))?;
                    Ok(Some((Box::new(file), size)))
                }
                Err(error) if error.errno == Errno::ENOENT => Ok(None),
                Err(source) => {
                    Err(SourceError::Open { origin: origin.to_owned(), what: names.join("/"), source })
                }
            },
            Store::Archive(archive) => {
                let fail = |source| SourceError::Archive { origin: origin.to_owned(), source };
                match archive.find(&names.join("/")) {
                    Ok(found) => Ok(Some((archive.open_found(found).map_err(fail)?, found.size))),
                    Err(ArchiveError::Missing(_)) => Ok(None),
                    Err(error) => Err(fail(error)),
                }
            }
        }
    }

    fn open_blob(&self, digest: &Digest, origin: &str) -> Result<Opened, SourceError> {
        // A parsed digest has no slash and no dot: it cannot lead out of blobs/.
        let names = ["blobs", digest.algorithm().name(), digest.hex()];
        self.open_file(&names, origin)?.ok_or_else(|| SourceError::NotThis {
            origin: origin.to_owned(),
            expected: "complete",
            why: format!("it lacks blob {digest}"),
        })
    }

    fn read_blob(&self, digest: &Digest, limit: u64, origin: &str) -> Result<Vec<u8>, SourceError> {
        let (blob, size) = self.open_blob(digest, origin)?;
        read_small(blob, size, limit, digest.as_str(), origin)
    }

    /// Reads `index.json` or `oci-layout`.
    fn read_top(&self, name: &str, limit: u64, origin: &str) -> Result<Vec<u8>, SourceError> {
        let (file, size) = self.open_file(&[name], origin)?.ok_or_else(|| SourceError::NotThis {
            origin: origin.to_owned(),
            expected: "an OCI layout",
            why: format!("it has no {name}{}", self.what_it_may_be()),
        })?;
        read_small(file, size, limit, name, origin)
    }

    fn what_it_may_be(&self) -> &'static str {
        match self {
            Store::Archive(archive) if archive.has("manifest.json") => {
                "; it has the manifest.json of a docker-archive"
            }
            _ => "",
        }
    }
}

fn file_size(file: &File, name: &str) -> Result<u64, SourceError> {
    let metadata = file.metadata();
    metadata.map(|m| m.len()).map_err(|source| SourceError::Read { path: name.to_owned(), source })
}

fn read_small(
    mut file: Box<dyn Read + Send>,
    size: u64,
    limit: u64,
    name: &str,
    origin: &str,
) -> Result<Vec<u8>, SourceError> {
    if size > limit {
        let (origin, what) = (origin.to_owned(), name.to_owned());
        return Err(SourceError::TooLarge { origin, what, size, limit });
    }
    let mut bytes = Vec::new();
    // The file may grow while it is read.
    file.by_ref()
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|source| SourceError::Read { path: format!("{name} of {origin}"), source })?;
    Ok(bytes)
}

fn check_layout_file(store: &Store, origin: &str) -> Result<(), SourceError> {
    let bytes = store.read_top("oci-layout", MAX_LAYOUT_BYTES, origin)?;
    let document: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    let version = document.get("imageLayoutVersion").and_then(Value::as_str);
    let why = match version {
        Some(version) if version.starts_with("1.") => return Ok(()),
        Some(version) => format!("it has layout version {version:?}"),
        None => "its oci-layout file names no version".to_owned(),
    };
    Err(SourceError::NotThis { origin: origin.to_owned(), expected: "an OCI layout of version 1", why })
}

fn read_index(store: &Store, origin: &str) -> Result<Index, SourceError> {
    let bytes = store.read_top("index.json", MAX_MANIFEST_BYTES, origin)?;
    match Document::parse(&bytes, None) {
        Ok(Document::Index(index)) => Ok(index),
        Ok(Document::Image(_)) => Err(SourceError::NotThis {
            origin: origin.to_owned(),
            expected: "an OCI layout",
            why: "its index.json is a manifest".to_owned(),
        }),
        Err(source) => Err(SourceError::Manifest { origin: origin.to_owned(), source }),
    }
}

/// The document that the chosen entry of `index.json` leads to.
fn choose_entry(
    store: &Store,
    index: Index,
    image: Option<&ImageChoice>,
    origin: &str,
) -> Result<Fetched, SourceError> {
    let candidates: Vec<&Descriptor> = index.manifests.iter().filter(|entry| entry.may_be_image()).collect();
    let chosen: Vec<&Descriptor> = match image {
        None => candidates.clone(),
        Some(ImageChoice::Position(position)) => index.manifests.get(*position).into_iter().collect(),
        Some(ImageChoice::Name(name)) => {
            candidates.iter().filter(|entry| is_named(entry, name)).copied().collect()
        }
    };
    match chosen.as_slice() {
        [entry] => {
            if entry.size > MAX_MANIFEST_BYTES {
                let source = ManifestError::TooLarge(entry.size);
                return Err(SourceError::Manifest { origin: origin.to_owned(), source });
            }
            let bytes = store.read_blob(&entry.digest, MAX_MANIFEST_BYTES, origin)?;
            resolve::verify(entry, &bytes, "the manifest", origin)?;
            let declared = Some(entry.media_type.clone());
            Ok(Fetched { bytes, digest: entry.digest.clone(), declared })
        }
        [] => Err(select(origin, nothing_chosen(image, &candidates, &index))),
        // One name, or none at all, for several platforms: index.json is then itself the image's index.
        several if several.iter().all(|entry| entry.platform.is_some() && same_name(entry, several)) => {
            let entries = several.iter().map(|entry| (*entry).clone()).collect();
            Ok(index_of(entries))
        }
        several => Err(select(
            origin,
            match image {
                Some(ImageChoice::Name(name)) => SelectError::SameName(name.clone()),
                _ => SelectError::Several { names: names_of(several, &index) },
            },
        )),
    }
}

fn nothing_chosen(image: Option<&ImageChoice>, candidates: &[&Descriptor], index: &Index) -> SelectError {
    match image {
        Some(wanted) if !candidates.is_empty() => {
            SelectError::NoSuchName { wanted: wanted.to_string(), names: names_of(candidates, index) }
        }
        _ => SelectError::None,
    }
}

/// An index of a part of `index.json`, to be resolved by platform.
fn index_of(entries: Vec<Descriptor>) -> Fetched {
    let manifests: Vec<Value> = entries
        .iter()
        .map(|entry| {
            let platform = entry.platform.as_ref();
            serde_json::json!({
                "mediaType": entry.media_type,
                "digest": entry.digest.as_str(),
                "size": entry.size,
                "platform": {
                    "os": platform.map_or("", |p| p.os()),
                    "architecture": platform.map_or("", |p| p.architecture()),
                    "variant": platform.map_or("", |p| p.variant()),
                },
            })
        })
        .collect();
    let bytes = serde_json::json!({ "schemaVersion": 2, "manifests": manifests }).to_string().into_bytes();
    Fetched { digest: Digest::of(&bytes), bytes, declared: None }
}

fn name_of(entry: &Descriptor) -> Option<&str> {
    NAMES.iter().find_map(|annotation| entry.annotation(annotation))
}

fn same_name(entry: &Descriptor, others: &[&Descriptor]) -> bool {
    others.iter().all(|other| name_of(other) == name_of(entry))
}

/// Whether one of the entry's names is `wanted`: literally, or both being the same reference.
fn is_named(entry: &Descriptor, wanted: &str) -> bool {
    let reference = Reference::parse(wanted).ok();
    NAMES.iter().filter_map(|annotation| entry.annotation(annotation)).any(|name| {
        // A bare tag such as "1.2" would also parse as a repository; equal references are then equal texts.
        name == wanted
            || (reference.is_some() && name.contains('/') && Reference::parse(name).ok() == reference)
    })
}

fn names_of(entries: &[&Descriptor], index: &Index) -> Vec<String> {
    let position = |entry: &Descriptor| index.manifests.iter().position(|other| other == entry).unwrap_or(0);
    entries
        .iter()
        .map(|entry| name_of(entry).map_or_else(|| format!("@{}", position(entry)), str::to_owned))
        .collect()
}
