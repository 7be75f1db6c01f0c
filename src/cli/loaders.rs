//! Reads what the loaders of an image go by, and the libraries that a driver of the host has to get on with.

use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use crate::cli::image_file::{ImageFile, ImageFileError};
use crate::convert::facts;
use crate::elf::section::section;
use crate::elf::{Object, library_cache, version};
use crate::launch::gpu::ImageLibraries;
use crate::launch::gpu::compat::{self, Compat};
use crate::launch::inject::{Loaders, MuslLoader};
use crate::squashfs::reader::{FileLayout, InodeKind};

/// The largest list of directories that is read, bytes.
const PATH_FILE_MAX: u64 = 64 << 10;

/// Most files of a directory of compatibility libraries that are looked at.
const COMPAT_MAX: usize = 64;

/// What the loaders of `image` go by.
pub(crate) fn of_image(image: &ImageFile) -> Result<Loaders, ImageFileError> {
    Ok(Loaders {
        cache: image.small_file(library_cache::PATH.as_bytes(), library_cache::MAX_BYTES)?,
        musl: musl(image)?,
    })
}

fn musl(image: &ImageFile) -> Result<Option<MuslLoader>, ImageFileError> {
    let architecture = std::env::consts::ARCH;
    let loader = format!("/lib/ld-musl-{architecture}.so.1");
    if regular_file(image, loader.as_bytes())?.is_none() {
        return Ok(None);
    }
    let path_file = format!("/etc/ld-musl-{architecture}.path");
    let content = image.small_file(path_file.as_bytes(), PATH_FILE_MAX)?;
    Ok(Some(MuslLoader { path_file: PathBuf::from(path_file), content }))
}

/// The image's C library and its CUDA libraries for older drivers.
pub(crate) fn libraries(image: &ImageFile) -> Result<ImageLibraries, ImageFileError> {
    let c_library = facts::c_library(&image.filesystem).object;
    let glibc = c_library.and_then(|object| version::glibc(object.defines.iter().map(Vec::as_slice)));
    Ok(ImageLibraries { glibc, compat: cuda_compat(image)? })
}

fn regular_file(image: &ImageFile, path: &[u8]) -> Result<Option<FileLayout>, ImageFileError> {
    Ok(image.resolve(path)?.and_then(|inode| match inode.kind {
        InodeKind::File(file) => Some(file),
        _ => None,
    }))
}

/// Reads a file of the image; what cannot be read is as good as not there.
fn reader<'a>(
    image: &'a ImageFile,
    file: &'a FileLayout,
) -> impl Fn(u64, usize) -> Option<Vec<u8>> + use<'a> {
    move |offset, length| image.filesystem.read_bytes(file, offset, length).ok()
}

/// CUDA's libraries for older drivers, if there is one `libcuda.so.X.Y` among them and no more.
fn cuda_compat(image: &ImageFile) -> Result<Option<Compat>, ImageFileError> {
    let Some(inode) = image.resolve(compat::DIRECTORY.as_bytes())? else { return Ok(None) };
    let InodeKind::Directory(directory) = &inode.kind else { return Ok(None) };
    let mut names: Vec<OsString> = Vec::new();
    let listed = image.filesystem.read_directory(directory, 0, &mut |entry| {
        names.push(OsStr::from_bytes(entry.name).to_owned());
        if names.len() < COMPAT_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    if listed.is_err() {
        return Ok(None);
    }
    let mut compat = Compat::default();
    let mut count = 0_usize;
    for name in names {
        let place = compat::place(&name);
        let Some(file) = regular_file(image, place.as_os_str().as_bytes())? else { continue };
        let read = reader(image, &file);
        if let Some(version) = name.to_str().and_then(compat::version_of) {
            count = count.saturating_add(1);
            compat.version = version.to_owned();
            compat.note = section(&read, compat::NOTE_SECTION);
        }
        let soname = Object::read_names(&read).and_then(|object| object.soname);
        if let Some(soname) = soname.map(|soname| OsStr::from_bytes(&soname).to_owned())
            && compat.libraries.iter().all(|(known, _)| *known != soname)
        {
            compat.libraries.push((soname, place));
        }
    }
    Ok((count == 1).then_some(compat))
}
