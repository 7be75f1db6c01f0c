//! Why an image was not converted.

use std::fmt;
use std::path::PathBuf;

use super::budget::Exceeded;
use super::layer::path::PathError;
use super::layer::stream::LayerError;
use super::layer::tar::{Problem, TarError, place};
use super::source::LayerInfo;
use super::source::registry::RegistryError;
use super::tree::TreeError;
use crate::hint::Hint;
use crate::squashfs::writer::WriteError;
use crate::sys;

/// Why an image was not converted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The destination is there and was not to be replaced.
    #[error("{} already exists", .path.display())]
    Exists {
        /// The destination.
        path: PathBuf,
    },
    /// The destination is a directory or names none.
    #[error("{} is no place for a file", .path.display())]
    NoFile {
        /// The destination.
        path: PathBuf,
    },
    /// No file can be made beside the destination.
    #[error("cannot create {}", .path.display())]
    Create {
        /// The destination.
        path: PathBuf,
        /// The kernel's answer.
        source: sys::Error,
    },
    /// The image file does not take what is written.
    #[error("cannot write {}", .path.display())]
    Write {
        /// The destination.
        path: PathBuf,
        /// The cause.
        source: WriteError,
    },
    /// What follows the squashfs could not be written.
    #[error("cannot write the trailer of {}", .path.display())]
    Trailer {
        /// The destination.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The finished file could not be synced or did not get its name.
    #[error("cannot put {} in place", .path.display())]
    Publish {
        /// The destination.
        path: PathBuf,
        /// The kernel's answer.
        source: sys::Error,
    },
    /// More layers than the budget allows.
    #[error("cannot use the image")]
    Layers(#[source] Exceeded),
    /// A layer cannot be fetched, or is not what the manifest and the config say.
    #[error("cannot use {layer}")]
    Layer {
        /// Which.
        layer: LayerName,
        /// The cause.
        source: LayerError,
    },
    /// A layer is no proper tar.
    #[error("cannot read {layer}")]
    Tar {
        /// Which.
        layer: LayerName,
        /// Where and why.
        source: TarError,
    },
    /// An entry does not fit into the tree.
    #[error("cannot merge {layer}: {}", place(Some(.entry), *.offset))]
    Entry {
        /// In which layer.
        layer: LayerName,
        /// Its name.
        entry: Box<[u8]>,
        /// Where it is in the uncompressed tar, bytes.
        offset: u64,
        /// The cause.
        source: TreeError,
    },
    /// A layer as a whole does not fit under those above.
    #[error("cannot merge {layer}")]
    Merge {
        /// Which.
        layer: LayerName,
        /// The cause.
        source: TreeError,
    },
}

impl ConvertError {
    /// Whether the layer's bytes themselves may be at fault, so that their digest tells more.
    pub(super) fn doubts_bytes(&self) -> bool {
        match self {
            ConvertError::Tar { .. } => self.exceeded().is_none(),
            ConvertError::Entry { source, .. } => {
                !matches!(source, TreeError::Full) && self.exceeded().is_none()
            }
            _ => false,
        }
    }

    /// The layer that was refused before its digest was known, so that it may have been another one.
    pub(super) fn unproven_layer(&self) -> Option<usize> {
        match self {
            ConvertError::Layer { layer, source: LayerError::Unsupported(_) | LayerError::Budget(_) } => {
                Some(layer.index)
            }
            ConvertError::Tar { layer, .. } | ConvertError::Entry { layer, .. } => {
                self.exceeded().map(|_| layer.index)
            }
            _ => None,
        }
    }

    /// Whether the source stopped answering, rather than that anything is wrong with what it gave, or here.
    pub fn is_silence(&self) -> bool {
        match self {
            ConvertError::Layer { source: LayerError::Open(source), .. } => source.is_silence(),
            ConvertError::Layer { source: LayerError::Fetch(source), .. } => {
                let cause = source.get_ref().and_then(|cause| cause.downcast_ref::<RegistryError>());
                cause.is_some_and(RegistryError::is_silence)
            }
            _ => false,
        }
    }

    /// The limit that the image exceeds, if that is what is wrong with it.
    pub fn exceeded(&self) -> Option<Exceeded> {
        match self {
            ConvertError::Layers(exceeded)
            | ConvertError::Layer { source: LayerError::Budget(exceeded), .. }
            | ConvertError::Tar { source: TarError { problem: Problem::Budget(exceeded), .. }, .. }
            | ConvertError::Entry {
                source: TreeError::Budget(exceeded) | TreeError::Path(PathError::Budget(exceeded)),
                ..
            }
            | ConvertError::Merge { source: TreeError::Budget(exceeded), .. } => Some(*exceeded),
            _ => None,
        }
    }
}

impl Hint for ConvertError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            ConvertError::Layer { source: LayerError::Open(source), .. } => return source.hints(),
            ConvertError::Exists { .. } => "use --force to replace it",
            ConvertError::NoFile { .. } => "name the image file to write, for example app.sqsh",
            ConvertError::Layer { source: LayerError::Digest { .. } | LayerError::Size { .. }, .. } => {
                "the image was damaged or changed on its way: fetch or save it again"
            }
            ConvertError::Layer { source: LayerError::Unsupported(_), .. } => {
                "push or save the image again with gzip or zstd layers"
            }
            ConvertError::Entry { source: TreeError::Path(_), .. } if self.exceeded().is_none() => {
                "no well-behaved tool writes such a name: find out where this image comes from"
            }
            _ => return Vec::new(),
        };
        vec![hint.to_owned()]
    }
}

/// A layer in messages: its place, counted from 1 at the bottom, and the start of its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerName {
    /// Position, 0 at the bottom.
    pub index: usize,
    /// How many there are.
    pub count: usize,
    /// Digest of the blob; the diff ID where there is none; empty where there is neither.
    pub digest: Box<str>,
}

impl LayerName {
    pub(super) fn new(layers: &[LayerInfo], index: usize) -> LayerName {
        let digest = layers.get(index).and_then(|layer| layer.digest.as_ref().or(layer.diff_id.as_ref()));
        let digest = digest.map_or("", |digest| digest.as_str()).into();
        LayerName { index, count: layers.len(), digest }
    }
}

impl fmt::Display for LayerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// As many characters as docker shows, and the algorithm.
        const SHOWN: usize = "sha256:".len() + 12;
        let digest = self.digest.get(..SHOWN).unwrap_or(&self.digest);
        match digest {
            // What was no image before: there is nothing to tell apart.
            "" => f.write_str("the root file system"),
            digest => write!(f, "layer {} of {} ({digest})", self.index + 1, self.count),
        }
    }
}
