//! Files that a source is read from: one that the user named, or standard input, kept in a file without a name where it
//! cannot be read twice.

use std::fs::File;
use std::io::{self, Read, Seek as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::archive::{Archive, ArchiveError};
use super::{SourceError, SourceOptions};
use crate::image::reference::STANDARD_INPUT;
use crate::sys::{file, temporary::Temporary};

/// Permissions of what is kept.
const MODE: u32 = 0o600;
const BUFFER_SIZE: usize = 256 << 10;

/// Opens and indexes the archive at `path`. What comes through standard input is kept in a file without a name first:
/// an archive is not read in the order in which it was written.
pub(super) fn open_archive(
    path: &Path,
    origin: &str,
    options: &SourceOptions,
) -> Result<Archive, SourceError> {
    let unusable = |source| SourceError::Archive { origin: origin.to_owned(), source };
    if path == Path::new(STANDARD_INPUT) {
        let input = standard_input(origin, options)?;
        let kept = if is_readable_twice(&input) { input } else { keep(input, origin, options)? };
        return Archive::of(kept).map_err(unusable);
    }
    // O_NONBLOCK: opening a FIFO must not wait for a writer.
    let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    Archive::of(opened.map_err(|error| unusable(ArchiveError::Read(error)))?).map_err(unusable)
}

/// Standard input, if the caller let us have it.
pub(super) fn standard_input(origin: &str, options: &SourceOptions) -> Result<File, SourceError> {
    let failed = |source| SourceError::Read { path: "standard input".to_owned(), source };
    match &options.input {
        Some(input) => input.try_clone().map_err(failed),
        None => Err(SourceError::NoInput { origin: origin.to_owned() }),
    }
}

/// Whether `input` is a regular file that nobody has begun to read.
pub(super) fn is_readable_twice(mut input: &File) -> bool {
    input.metadata().is_ok_and(|metadata| metadata.is_file())
        && input.stream_position().is_ok_and(|position| position == 0)
}

/// Copies a stream into a file without a name in the directory that the caller chose. It takes the room of the stream
/// and vanishes with the process, however that ends.
pub(super) fn keep(mut input: impl Read, origin: &str, options: &SourceOptions) -> Result<File, SourceError> {
    let failed = |source| SourceError::Keep {
        origin: origin.to_owned(),
        directory: options.scratch.display().to_string(),
        source,
    };
    let refused = |error: crate::sys::Error| failed(io::Error::from(error.errno));
    let directory = file::open_directory(&options.scratch).map_err(refused)?;
    let (temporary, mut kept) = Temporary::or_unnamed(directory.as_fd(), MODE).map_err(refused)?;
    // At once, and with it the name.
    drop(temporary);
    let mut buffer = vec![0; BUFFER_SIZE];
    loop {
        let count = match input.read(&mut buffer) {
            Ok(0) => return Ok(kept),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(SourceError::Read { path: origin.to_owned(), source }),
        };
        kept.write_all(buffer.get(..count).unwrap_or_default()).map_err(failed)?;
    }
}
