//! An image file back into what other tools read: a tar of its tree, or an OCI archive or layout of one layer.
//!
//! One thread reads and decompresses, others compress, the calling one writes. Equal images give equal bytes.

mod layout;
mod oci;
mod pack;
mod walk;

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

pub use layout::export_oci_layout;
pub use oci::export_oci;
pub use pack::Packing;
pub use walk::{Losses, WalkError};
pub(crate) use walk::{Purpose, write_tar};

use super::ConvertError;
use super::generate::{Generated, generate};
use super::publish::{Destination, Unpublished};
use crate::hint::Hint;
use crate::squashfs::reader::Filesystem;
use pack::CopyError;

/// Choices of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportOptions {
    /// Compression of the tar, or of the layer in an archive.
    pub packing: Packing,
    /// Compression threads, at least 1. The output does not depend on it.
    pub threads: usize,
}

/// Why an image was not exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The image cannot be read, or not be written as what was asked for.
    #[error("cannot export the image")]
    Read {
        /// The cause.
        source: io::Error,
    },
    /// The output does not take what is written.
    #[error("cannot write")]
    Write {
        /// The cause.
        source: io::Error,
    },
    /// The directory is none to put an image in.
    #[error("cannot add an image to {}: {why}", .path.display())]
    Layout {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The index of a layout refused to be read.
    #[error("cannot read {}", .path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// No file can be made, or it did not get its name.
    #[error(transparent)]
    Place(#[from] ConvertError),
}

impl ExportError {
    /// Whether whoever read the output has gone.
    pub fn is_broken_pipe(&self) -> bool {
        matches!(self, ExportError::Write { source } if source.kind() == io::ErrorKind::BrokenPipe)
    }

    fn is_whiteout(&self) -> bool {
        let ExportError::Read { source } = self else { return false };
        let walk = source.get_ref().and_then(|inner| inner.downcast_ref::<WalkError>());
        matches!(walk, Some(WalkError::Whiteout(_)))
    }
}

impl Hint for ExportError {
    fn hints(&self) -> Vec<String> {
        match self {
            ExportError::Place(error) => error.hints(),
            error if error.is_whiteout() => {
                vec!["no layer can hold such a file: use --format tar".to_owned()]
            }
            _ => Vec::new(),
        }
    }
}

impl From<CopyError> for ExportError {
    fn from(error: CopyError) -> ExportError {
        match error {
            CopyError::Read(source) => ExportError::Read { source },
            CopyError::Write(source) => ExportError::Write { source },
        }
    }
}

/// Writes the tree as a tar to `output`.
pub fn export_tar(
    filesystem: &Arc<Filesystem>,
    options: &ExportOptions,
    output: &mut dyn Write,
) -> Result<Losses, ExportError> {
    let (stream, losses) = tar_stream(filesystem, Purpose::Tar)?;
    pack::copy(stream, options.packing, options.threads, |_| (), output)?;
    Ok(losses.get().copied().unwrap_or_default())
}

/// Lets `write` fill a file that appears at `destination` complete or not at all.
pub fn into_file<T>(
    destination: &Destination,
    write: impl FnOnce(&File) -> Result<T, ExportError>,
) -> Result<T, ExportError> {
    let (unpublished, output) = Unpublished::create(destination)?;
    let result = write(&output)?;
    unpublished.publish(&output)?;
    Ok(result)
}

/// What a tar could not hold, once its stream has ended.
type LossesAtEnd = Arc<OnceLock<Losses>>;

fn tar_stream(
    filesystem: &Arc<Filesystem>,
    purpose: Purpose,
) -> Result<(Generated, LossesAtEnd), ExportError> {
    let filesystem = Arc::clone(filesystem);
    let losses = LossesAtEnd::default();
    let told = Arc::clone(&losses);
    let stream = generate("read-image", move |out| {
        let losses = write_tar(&filesystem, out, purpose).map_err(WalkError::into_io)?;
        // Set once: the thread is the only one that does.
        let _ = told.set(losses);
        Ok(())
    });
    Ok((stream.map_err(|source| ExportError::Read { source })?, losses))
}
