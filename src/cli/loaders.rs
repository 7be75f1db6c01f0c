//! Reads what the loaders of an image go by.

use std::path::PathBuf;

use crate::cli::image_file::{ImageFile, ImageFileError};
use crate::launch::inject::{LIBRARY_CACHE, Loaders, MuslLoader};
use crate::squashfs::reader::InodeKind;

/// The largest cache that is read, bytes; one of 2000 libraries has 200 KiB.
const CACHE_MAX: u64 = 8 << 20;

/// The largest list of directories that is read, bytes.
const PATH_FILE_MAX: u64 = 64 << 10;

/// What the loaders of `image` go by.
pub(crate) fn of_image(image: &ImageFile) -> Result<Loaders, ImageFileError> {
    Ok(Loaders { cache: image.small_file(LIBRARY_CACHE.as_bytes(), CACHE_MAX)?, musl: musl(image)? })
}

fn musl(image: &ImageFile) -> Result<Option<MuslLoader>, ImageFileError> {
    let architecture = std::env::consts::ARCH;
    let loader = format!("/lib/ld-musl-{architecture}.so.1");
    let found = image.resolve(loader.as_bytes())?;
    if !found.is_some_and(|inode| matches!(inode.kind, InodeKind::File(_))) {
        return Ok(None);
    }
    let path_file = format!("/etc/ld-musl-{architecture}.path");
    let content = image.small_file(path_file.as_bytes(), PATH_FILE_MAX)?;
    Ok(Some(MuslLoader { path_file: PathBuf::from(path_file), content }))
}
