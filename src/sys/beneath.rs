//! Opening files below a directory whose content is not trusted: no symbolic link is followed on the way.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::Error;
use super::file::uninterrupted;

/// Opens the directory that the caller named, through whatever links the caller's path has.
pub fn open_directory(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    uninterrupted(|| nix::fcntl::open(path, flags, Mode::empty()))
        .map_err(|errno| Error::new(format!("open({path:?}, DIRECTORY)"), errno))
}

/// Opens a regular file for reading by the names that lead to it from `directory`, refusing links at every step.
///
/// One `openat` a step rather than `openat2(RESOLVE_BENEATH)`, which kernels before 5.6 lack. `O_NONBLOCK` keeps a FIFO
/// from hanging the open; what is not a regular file gives `EINVAL`.
pub fn open_file(directory: BorrowedFd<'_>, names: &[&str]) -> Result<File, Error> {
    let call = || format!("openat({:?}, NOFOLLOW)", names.join("/"));
    let fail = |errno| Error::new(call(), errno);
    let (last, parents) = names.split_last().ok_or_else(|| fail(Errno::EINVAL))?;
    // A name with a slash would be walked by the kernel, links and all.
    if names.iter().any(|name| name.is_empty() || name.contains('/') || matches!(*name, "." | "..")) {
        return Err(fail(Errno::EINVAL));
    }
    let mut held: Option<OwnedFd> = None;
    for name in parents {
        let at = held.as_ref().map_or(directory, |fd| fd.as_fd());
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        held = Some(uninterrupted(|| openat(at, *name, flags, Mode::empty())).map_err(fail)?);
    }
    let at = held.as_ref().map_or(directory, |fd| fd.as_fd());
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let file = File::from(uninterrupted(|| openat(at, *last, flags, Mode::empty())).map_err(fail)?);
    let metadata = file.metadata().map_err(|error| Error::from_io(call(), &error))?;
    if metadata.is_file() { Ok(file) } else { Err(fail(Errno::EINVAL)) }
}
