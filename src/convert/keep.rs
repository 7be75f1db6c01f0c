//! Files that take the place of others whole: an image file with another trailer, a start-up profile.
//!
//! An image file is never changed where it is: whoever runs from it would read a mixture, and a crash or a full disk
//! would leave one. A copy takes its place, which shares the data with it where the file system can.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, fchown};
use std::path::{Path, PathBuf};

use super::ConvertError;
use super::publish::{self, Destination, Unpublished};
use crate::hint::Hint;
use crate::sys::{self, file};

/// Permission of a file's owner to write.
const OWNER_WRITES: u32 = 0o200;
const PERMISSIONS: u32 = 0o7777;

/// Why a file was not replaced; the old one is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeepError {
    /// It cannot be looked at.
    #[error("cannot use {}", path.display())]
    Look {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Somebody else's.
    #[error("cannot replace {}: it belongs to user {owner}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Its owner does not want it written.
    #[error("cannot replace {}: it is write-protected", path.display())]
    Protected {
        /// The file.
        path: PathBuf,
    },
    /// Its content does not arrive in the copy.
    #[error("cannot copy {}", path.display())]
    Copy {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: sys::Error,
    },
    /// The copy cannot be made or cannot take its place.
    #[error(transparent)]
    Replace(#[from] ConvertError),
}

impl Hint for KeepError {
    fn hints(&self) -> Vec<String> {
        match self {
            KeepError::Replace(error) => error.hints(),
            _ => Vec::new(),
        }
    }
}

/// Whether an image file may be replaced: by its owner, where it is not write-protected and its directory takes files.
pub fn check(image: &Path) -> Result<(), KeepError> {
    let (path, _) = look(image)?;
    let destination = Destination { path, force: true };
    Unpublished::create(&destination)?;
    Ok(())
}

/// The file itself, behind all links.
fn look(image: &Path) -> Result<(PathBuf, std::fs::Metadata), KeepError> {
    let failed = |source| KeepError::Look { path: image.to_owned(), source };
    let path = std::fs::canonicalize(image).map_err(failed)?;
    let metadata = std::fs::metadata(&path).map_err(failed)?;
    if metadata.uid() != nix::unistd::geteuid().as_raw() {
        return Err(KeepError::Foreign { path, owner: metadata.uid() });
    }
    if metadata.mode() & OWNER_WRITES == 0 {
        return Err(KeepError::Protected { path });
    }
    Ok((path, metadata))
}

/// Puts a copy of `image`, opened from that path, in its place, with `trailer` behind the first `squashfs_length` bytes.
/// Owner, group and permissions stay; there is never a moment without a whole file under the name.
pub fn trailer(image: &Path, opened: &File, squashfs_length: u64, trailer: &[u8]) -> Result<(), KeepError> {
    let (path, metadata) = look(image)?;
    let (unpublished, output) = Unpublished::create(&Destination { path: path.clone(), force: true })?;
    file::copy_range(opened, 0, &output, 0, squashfs_length)
        .map_err(|source| KeepError::Copy { path: path.clone(), source })?;
    let failed = |source| ConvertError::Trailer { path: path.clone(), source };
    publish::append(&output, squashfs_length, trailer).map_err(failed)?;
    fchown(&output, None, Some(metadata.gid())).map_err(failed)?;
    let mode = metadata.mode() & PERMISSIONS;
    output.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode)).map_err(failed)?;
    Ok(unpublished.publish(&output)?)
}

/// Writes `bytes` to `path`, in place of what is there.
pub fn file(path: &Path, bytes: &[u8]) -> Result<(), KeepError> {
    let (unpublished, output) = Unpublished::create(&Destination { path: path.to_owned(), force: true })?;
    let failed = |source| KeepError::Look { path: path.to_owned(), source };
    output.write_all_at(bytes, 0).map_err(failed)?;
    Ok(unpublished.publish(&output)?)
}
