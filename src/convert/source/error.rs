//! Why a source gave no image.

use super::archive::ArchiveError;
use super::daemon::DaemonError;
use super::registry::RegistryError;
use super::resolve::SelectError;
use crate::hint::Hint;
use crate::image::config::ConfigError;
use crate::image::digest::DigestError;
use crate::image::manifest::ManifestError;
use crate::image::sif::SifError;
use crate::image::trailer::TrailerError;
use crate::squashfs::reader::ReadError;

/// Why a source gave no image. Each names the source as it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// A file refused to be read.
    #[error("cannot read {path}")]
    Read {
        /// As given.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// A file or directory of a layout refused to be opened.
    #[error("cannot open {what} of {origin}")]
    Open {
        /// The source.
        origin: String,
        /// The part of it.
        what: String,
        /// The cause.
        source: crate::sys::Error,
    },
    /// The archive cannot be used.
    #[error("cannot use the archive of {origin}")]
    Archive {
        /// The source.
        origin: String,
        /// The cause.
        source: ArchiveError,
    },
    /// The layout or archive lacks what makes it one.
    #[error("{origin} is not {expected}: {why}")]
    NotThis {
        /// The source.
        origin: String,
        /// What it should be: `an OCI layout`.
        expected: &'static str,
        /// What is wrong.
        why: String,
    },
    /// No single image can be chosen.
    #[error("cannot choose an image from {origin}")]
    Select {
        /// The source.
        origin: String,
        /// The cause.
        source: Box<SelectError>,
    },
    /// A manifest is no good.
    #[error("cannot use a manifest of {origin}")]
    Manifest {
        /// The source.
        origin: String,
        /// The cause.
        source: ManifestError,
    },
    /// The config is no good.
    #[error("cannot use the image config of {origin}")]
    Config {
        /// The source.
        origin: String,
        /// The cause.
        source: ConfigError,
    },
    /// The config has a malformed diff ID.
    #[error("the image config of {origin} has a malformed diff ID")]
    DiffId {
        /// The source.
        origin: String,
        /// The cause.
        source: DigestError,
    },
    /// Manifest and config disagree on the layers.
    #[error("{origin} has {layers} layers but {diff_ids} diff IDs in its config")]
    LayerCount {
        /// The source.
        origin: String,
        /// Layers of the manifest.
        layers: usize,
        /// Diff IDs of the config.
        diff_ids: usize,
    },
    /// A blob is not what its digest says.
    #[error("{what} of {origin} has the digest {actual}, not {expected}")]
    WrongDigest {
        /// The source.
        origin: String,
        /// `the manifest`, `the image config`.
        what: &'static str,
        /// Digest asked for.
        expected: String,
        /// Digest of what came.
        actual: String,
    },
    /// A blob has another size than its descriptor says.
    #[error("{what} of {origin} has {actual} bytes, not {expected}")]
    WrongSize {
        /// The source.
        origin: String,
        /// `the manifest`, `layer 3`.
        what: String,
        /// Size stated, bytes.
        expected: u64,
        /// Size found, bytes.
        actual: u64,
    },
    /// A document is too large to be what it should be.
    #[error("{what} of {origin} has {size} bytes, more than the limit of {limit}")]
    TooLarge {
        /// The source.
        origin: String,
        /// The document.
        what: String,
        /// Bytes.
        size: u64,
        /// Bytes.
        limit: u64,
    },
    /// The registry did not give what was asked for.
    #[error("cannot pull {origin}")]
    Registry {
        /// The source.
        origin: String,
        /// The cause.
        source: Box<RegistryError>,
    },
    /// Layers that are not to be passed on.
    #[error("{origin} has foreign layers: {what}")]
    Foreign {
        /// The source.
        origin: String,
        /// Which.
        what: String,
    },
    /// Nothing comes through standard input.
    #[error("cannot read {origin}: standard input is a terminal")]
    NoInput {
        /// The source.
        origin: String,
    },
    /// No room for what can be read only once.
    #[error("cannot keep {origin} in a file without a name in {directory}")]
    Keep {
        /// The source.
        origin: String,
        /// Where.
        directory: String,
        /// The cause.
        source: std::io::Error,
    },
    /// A pipe was asked for its start again.
    #[error("{origin} cannot be read twice")]
    Once {
        /// The source.
        origin: String,
    },
    /// The daemon did not give what was asked for.
    #[error("cannot fetch {origin}")]
    Daemon {
        /// The source.
        origin: String,
        /// The cause.
        source: DaemonError,
    },
    /// The SIF is of no use.
    #[error("cannot use {origin}")]
    Sif {
        /// The source.
        origin: String,
        /// The cause.
        source: SifError,
    },
    /// The squashfs cannot be read.
    #[error("cannot use {origin}")]
    Squashfs {
        /// The source.
        origin: String,
        /// The cause.
        source: ReadError,
    },
    /// What hpcrun wrote behind the squashfs cannot be read.
    #[error("cannot use {origin}")]
    Trailer {
        /// The source.
        origin: String,
        /// The cause.
        source: TrailerError,
    },
    /// A layer that the image does not have was asked for.
    #[error("{origin} has no layer {index}")]
    NoLayer {
        /// The source.
        origin: String,
        /// 0 = bottom.
        index: usize,
    },
}

impl SourceError {
    /// Whether a registry cannot be reached or does not answer, rather than that anything is wrong with what it has.
    pub fn is_silence(&self) -> bool {
        matches!(self, SourceError::Registry { source, .. } if source.is_silence())
    }
}

impl Hint for SourceError {
    fn hints(&self) -> Vec<String> {
        match self {
            SourceError::Archive { source: ArchiveError::NotRegular, .. } => {
                vec![
                    "a pipe cannot be read twice: save the archive to a file first, or send it to standard input and \
                     write - for the file"
                        .to_owned(),
                ]
            }
            SourceError::Archive { source: ArchiveError::NotTar, origin } => vec![format!(
                "is this the file that was meant? {origin} should be what docker save or skopeo wrote"
            )],
            SourceError::Select { source, .. } => source.hints(),
            SourceError::Manifest { source, .. } => source.hints(),
            SourceError::Registry { source, .. } => source.hints(),
            SourceError::Foreign { .. } => {
                vec!["if you may use them, say so with --allow-foreign".to_owned()]
            }
            SourceError::NoInput { .. } => {
                vec!["pipe the image in, for example: docker save NAME | hpcrun convert ...".to_owned()]
            }
            SourceError::Keep { .. } => {
                vec!["it needs as much room there as the archive has: save it to a file elsewhere".to_owned()]
            }
            SourceError::Daemon { source, .. } => source.hints(),
            SourceError::Sif { source, .. } => source.hints(),
            SourceError::Squashfs { source, .. } => source.hints(),
            SourceError::Trailer { source, .. } => source.hints(),
            _ => Vec::new(),
        }
    }
}
