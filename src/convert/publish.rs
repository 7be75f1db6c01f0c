//! The image file appears under its name complete and on the disk, or not at all.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::ConvertError;
use crate::sys::temporary::Temporary;
use crate::sys::{self, file};

/// Permissions of an image file, before the umask.
const MODE: u32 = 0o644;

/// Where the image file goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// Its path; relative to the working directory when the conversion starts.
    pub path: PathBuf,
    /// Whether a file that is there is replaced, at the very end.
    pub force: bool,
}

impl Destination {
    /// A new file at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Destination {
        Destination { path: path.into(), force: false }
    }

    /// Whether a file could go there: for the answer before any work. [`super::convert`] looks again.
    pub fn check(&self) -> Result<(), ConvertError> {
        self.place().map(|_| ())
    }

    /// The directory it goes to.
    fn parent(&self) -> &Path {
        match self.path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        }
    }

    /// The directory and the name in it, if nothing is in the way.
    fn place(&self) -> Result<(OwnedFd, OsString), ConvertError> {
        let path = &self.path;
        let failed = |source| ConvertError::Create { path: path.clone(), source };
        let name = path.file_name().filter(|_| !ends_in_slash(path));
        let name = name.ok_or_else(|| ConvertError::NoFile { path: path.clone() })?.to_owned();
        let directory = file::open_directory(self.parent()).map_err(failed)?;
        match file::stat(directory.as_fd(), &name).map_err(failed)? {
            Some(found) if file::is_directory(&found) => Err(ConvertError::NoFile { path: path.clone() }),
            Some(_) if !self.force => Err(ConvertError::Exists { path: path.clone() }),
            _ => Ok((directory, name)),
        }
    }
}

/// The file while it is written. Dropped before [`Unpublished::publish`], it leaves nothing; so does the end of the
/// process, even by a signal.
#[derive(Debug)]
pub(super) struct Unpublished {
    path: PathBuf,
    directory: OwnedFd,
    name: OsString,
    force: bool,
    /// Only where the file system has no files without a name.
    temporary: Option<Temporary>,
}

impl Unpublished {
    /// Refuses a destination that exists, then opens a file beside it.
    pub(super) fn create(destination: &Destination) -> Result<(Unpublished, File), ConvertError> {
        let path = &destination.path;
        let failed = |source| ConvertError::Create { path: path.clone(), source };
        let (directory, name) = destination.place()?;
        Temporary::sweep(directory.as_fd());
        let (temporary, output) = Temporary::or_unnamed(directory.as_fd(), MODE).map_err(failed)?;
        let force = destination.force;
        Ok((Unpublished { path: path.clone(), directory, name, force, temporary }, output))
    }

    /// The same with the last component of `path` for its name, which was not known when it was begun.
    pub(super) fn named(mut self, path: &Path) -> Unpublished {
        self.name = path.file_name().unwrap_or_default().to_owned();
        self.path = path.to_owned();
        self
    }

    /// Syncs the file and gives it its name.
    pub(super) fn publish(self, output: &File) -> Result<(), ConvertError> {
        let path = self.path.clone();
        let published = self.link(output);
        match published {
            Ok(true) => Ok(()),
            Ok(false) => Err(ConvertError::Exists { path }),
            Err(source) => Err(ConvertError::Publish { path, source }),
        }
    }

    fn link(self, output: &File) -> Result<bool, sys::Error> {
        file::sync(output)?;
        let directory = self.directory.as_fd();
        let linked = match (self.temporary, self.force) {
            (Some(temporary), true) => temporary.replace(&self.name).map(|()| true)?,
            (Some(temporary), false) => temporary.publish(&self.name)?,
            (None, false) => file::link_unnamed(output, directory, &self.name)?,
            (None, true) => Temporary::link(directory, output)?.replace(&self.name).map(|()| true)?,
        };
        if linked {
            file::sync_directory(directory)?;
        }
        Ok(linked)
    }
}

/// `dir/` asks for a directory, though [`Path`] takes the slash off.
fn ends_in_slash(path: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str().as_bytes().ends_with(b"/")
}

/// Puts `trailer`, which begins with its own padding, behind the squashfs; gives the length of the file.
pub(super) fn append(output: &File, bytes_used: u64, trailer: &[u8]) -> io::Result<u64> {
    use std::os::unix::fs::FileExt;
    output.write_all_at(trailer, bytes_used)?;
    let padded = bytes_used.next_multiple_of(crate::squashfs::format::PADDING);
    let size = padded.max(bytes_used + trailer.len() as u64);
    output.set_len(size)?;
    Ok(size)
}
