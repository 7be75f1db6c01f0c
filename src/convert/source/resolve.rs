//! From the document that a name leads to, through indexes, to the one image that is wanted.

use super::{LayerInfo, SourceError, SourceImage, SourceOptions};
use crate::hint::Hint;
use crate::image::config::{self, ImageConfig};
use crate::image::digest::Digest;
use crate::image::manifest::{self, Descriptor, Document, Index, MAX_INDEX_DEPTH, ManifestError, MediaKind};
use crate::image::platform::{self, Platform};

/// Documents fetched for one image; a hostile index could otherwise send us through thousands.
const MAX_FETCHES: usize = 64;

/// Why no single image could be chosen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SelectError {
    /// Nothing for the platform.
    #[error("it has nothing for {wanted}")]
    NoPlatform {
        /// The platform asked for.
        wanted: Platform,
        /// Platforms it has.
        offered: Vec<Platform>,
    },
    /// Indexes in indexes.
    #[error("its indexes are nested more than {MAX_INDEX_DEPTH} deep")]
    TooDeep,
    /// A great many indexes.
    #[error("its indexes lead to more than {MAX_FETCHES} documents")]
    TooMany,
    /// Several images and no name.
    #[error("it holds {} images and none was named", .names.len())]
    Several {
        /// Their names; `@N` for one without.
        names: Vec<String>,
    },
    /// The name is not there.
    #[error("it holds no image {wanted:?}")]
    NoSuchName {
        /// As asked for.
        wanted: String,
        /// Names that are there.
        names: Vec<String>,
    },
    /// The name is there more than once.
    #[error("it holds several images named {0:?}")]
    SameName(String),
    /// Empty.
    #[error("it holds no image")]
    None,
}

impl Hint for SelectError {
    fn hints(&self) -> Vec<String> {
        match self {
            SelectError::NoPlatform { offered, .. } if offered.is_empty() => {
                vec!["it holds no container images, only attestations or artifacts".to_owned()]
            }
            SelectError::NoPlatform { offered, .. } => {
                let list: Vec<String> = offered.iter().map(Platform::to_string).collect();
                vec![format!("it offers {}; choose one with --platform", list.join(", "))]
            }
            SelectError::Several { names } | SelectError::NoSuchName { names, .. } if !names.is_empty() => {
                vec![format!("append :NAME to choose one of: {}", shortened(names))]
            }
            SelectError::SameName(_) => vec!["append :@N to choose the image by its position".to_owned()],
            _ => Vec::new(),
        }
    }
}

fn shortened(names: &[String]) -> String {
    const SHOWN: usize = 20;
    let mut text = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if let Some(more) = names.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        text = format!("{text} and {more} more");
    }
    text
}

/// A document and the digest that it is known by.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) bytes: Vec<u8>,
    pub(super) digest: Digest,
    /// `Content-Type`, or the media type of the descriptor that led here.
    pub(super) declared: Option<String>,
}

/// A manifest that was chosen.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) bytes: Vec<u8>,
    pub(super) digest: Digest,
    pub(super) manifest: manifest::ImageManifest,
}

/// Reads the verified bytes of a manifest or index.
pub(super) type FetchManifest<'a> = dyn FnMut(&Descriptor) -> Result<Vec<u8>, SourceError> + 'a;

/// Walks from `first` to the image for `wanted`.
pub(super) fn resolve(
    first: Fetched,
    wanted: &Platform,
    origin: &str,
    fetch: &mut FetchManifest<'_>,
) -> Result<Resolved, SourceError> {
    let mut walk = Walk { wanted, origin, fetch, fetches: 0, offered: Vec::new() };
    match walk.visit(first, 1)? {
        Some(resolved) => Ok(resolved),
        None => {
            let mut offered = walk.offered;
            offered.sort();
            offered.dedup();
            Err(select(origin, SelectError::NoPlatform { wanted: wanted.clone(), offered }))
        }
    }
}

pub(super) fn select(origin: &str, source: SelectError) -> SourceError {
    SourceError::Select { origin: origin.to_owned(), source: Box::new(source) }
}

struct Walk<'a, 'b> {
    wanted: &'a Platform,
    origin: &'a str,
    fetch: &'a mut FetchManifest<'b>,
    fetches: usize,
    offered: Vec<Platform>,
}

impl Walk<'_, '_> {
    fn visit(&mut self, fetched: Fetched, depth: usize) -> Result<Option<Resolved>, SourceError> {
        if depth > MAX_INDEX_DEPTH {
            return Err(select(self.origin, SelectError::TooDeep));
        }
        let document = Document::parse(&fetched.bytes, fetched.declared.as_deref())
            .map_err(|source| SourceError::Manifest { origin: self.origin.to_owned(), source })?;
        match document {
            Document::Image(manifest) => {
                Ok(Some(Resolved { bytes: fetched.bytes, digest: fetched.digest, manifest }))
            }
            Document::Index(index) => self.search(&index, depth),
        }
    }

    fn search(&mut self, index: &Index, depth: usize) -> Result<Option<Resolved>, SourceError> {
        let choice = platform::choose(index, self.wanted);
        if let Some(entry) = choice.chosen {
            return self.follow(entry, depth);
        }
        self.offered.extend(choice.offered.iter().cloned());
        let (nested, images): (Vec<&Descriptor>, Vec<&Descriptor>) =
            choice.unlabelled.iter().partition(|entry| entry.kind() == MediaKind::Index);
        for entry in nested {
            if let Some(found) = self.follow(entry, depth)? {
                return Ok(Some(found));
            }
        }
        // A lone image that does not say what it is for: hand-made layouts have those.
        match images.as_slice() {
            [entry] if choice.offered.is_empty() => self.follow(entry, depth),
            _ => Ok(None),
        }
    }

    fn follow(&mut self, entry: &Descriptor, depth: usize) -> Result<Option<Resolved>, SourceError> {
        self.fetches = self.fetches.saturating_add(1);
        if self.fetches > MAX_FETCHES {
            return Err(select(self.origin, SelectError::TooMany));
        }
        if entry.size > manifest::MAX_MANIFEST_BYTES {
            let source = ManifestError::TooLarge(entry.size);
            return Err(SourceError::Manifest { origin: self.origin.to_owned(), source });
        }
        let bytes = (self.fetch)(entry)?;
        verify(entry, &bytes, "the manifest", self.origin)?;
        let declared = Some(entry.media_type.clone());
        self.visit(Fetched { bytes, digest: entry.digest.clone(), declared }, depth.saturating_add(1))
    }
}

/// Checks size and digest of a blob that is in memory.
pub(super) fn verify(
    descriptor: &Descriptor,
    bytes: &[u8],
    what: &'static str,
    origin: &str,
) -> Result<(), SourceError> {
    if bytes.len() as u64 != descriptor.size {
        return Err(SourceError::WrongSize {
            origin: origin.to_owned(),
            what: what.to_owned(),
            expected: descriptor.size,
            actual: bytes.len() as u64,
        });
    }
    verify_digest(&descriptor.digest, bytes, what, origin)
}

/// Checks the digest of a blob that is in memory.
pub(super) fn verify_digest(
    expected: &Digest,
    bytes: &[u8],
    what: &'static str,
    origin: &str,
) -> Result<(), SourceError> {
    let actual = Digest::of_with(expected.algorithm(), bytes);
    if actual == *expected {
        return Ok(());
    }
    Err(SourceError::WrongDigest {
        origin: origin.to_owned(),
        what,
        expected: expected.to_string(),
        actual: actual.to_string(),
    })
}

/// Refuses layers of which `is_foreign` is true (not to be distributed, or elsewhere), unless they were asked for.
pub(super) fn refuse_foreign(
    manifest: &manifest::ImageManifest,
    is_foreign: fn(&Descriptor) -> bool,
    options: &SourceOptions,
    origin: &str,
) -> Result<(), SourceError> {
    let mut layers = manifest.layers.iter().zip(1usize..);
    match layers.find(|(layer, _)| is_foreign(layer)) {
        Some((layer, number)) if !options.allow_foreign => Err(SourceError::Foreign {
            origin: origin.to_owned(),
            what: format!("layer {number} is not to be distributed ({})", layer.media_type),
        }),
        _ => Ok(()),
    }
}

/// Refuses a config that is too large to be read.
pub(super) fn check_config_size(size: u64, origin: &str) -> Result<(), SourceError> {
    if size <= config::MAX_CONFIG_BYTES {
        return Ok(());
    }
    let source = config::ConfigError::TooLarge(size);
    Err(SourceError::Config { origin: origin.to_owned(), source })
}

/// A layer as the manifest has it, before the config gives it its diff ID.
#[derive(Debug)]
pub(super) struct BareLayer {
    pub(super) digest: Option<Digest>,
    pub(super) size: Option<u64>,
    pub(super) media_type: String,
}

impl From<&Descriptor> for BareLayer {
    fn from(descriptor: &Descriptor) -> BareLayer {
        BareLayer {
            digest: Some(descriptor.digest.clone()),
            size: Some(descriptor.size),
            media_type: descriptor.media_type.clone(),
        }
    }
}

/// What a source knows before it has read the config.
#[derive(Debug)]
pub(super) struct Outline {
    pub(super) origin: String,
    pub(super) manifest: Vec<u8>,
    pub(super) manifest_digest: Digest,
    pub(super) manifest_media_type: String,
    pub(super) layers: Vec<BareLayer>,
}

impl Outline {
    /// The outline of a resolved manifest.
    pub(super) fn of(resolved: Resolved, origin: String) -> Outline {
        Outline {
            origin,
            layers: resolved.manifest.layers.iter().map(BareLayer::from).collect(),
            manifest: resolved.bytes,
            manifest_digest: resolved.digest,
            manifest_media_type: resolved.manifest.media_type,
        }
    }

    /// Joins the verified config: every layer needs its diff ID.
    pub(super) fn finish(self, config: &[u8], wanted: &Platform) -> Result<SourceImage, SourceError> {
        let origin = self.origin;
        let config = ImageConfig::parse(config)
            .map_err(|source| SourceError::Config { origin: origin.clone(), source })?;
        let (layers, diff_ids) = (self.layers.len(), config.diff_ids.len());
        if layers != diff_ids {
            return Err(SourceError::LayerCount { origin, layers, diff_ids });
        }
        if let Some(platform) = config.platform().filter(|platform| !wanted.accepts(platform)) {
            log::warn!("{origin} is for {platform}, not {wanted}");
        }
        let layers = self
            .layers
            .into_iter()
            .zip(&config.diff_ids)
            .map(|(layer, diff_id)| {
                Ok(LayerInfo {
                    digest: layer.digest,
                    diff_id: Digest::parse(diff_id)
                        .map(Some)
                        .map_err(|source| SourceError::DiffId { origin: origin.clone(), source })?,
                    size: layer.size,
                    media_type: layer.media_type,
                })
            })
            .collect::<Result<Vec<LayerInfo>, SourceError>>()?;
        Ok(SourceImage {
            origin,
            manifest: self.manifest,
            manifest_digest: self.manifest_digest,
            manifest_media_type: self.manifest_media_type,
            config,
            layers,
            whole_tree: false,
        })
    }
}
