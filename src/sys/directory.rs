//! Directories held open, and what the page cache and the file system of an open file have room for.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, PosixFadviseAdvice, openat, posix_fadvise};
use nix::sys::stat::{Mode, UtimensatFlags, fchmod, mkdirat, utimensat};
use nix::sys::statvfs::fstatvfs;
use nix::sys::time::TimeSpec;

use super::Error;
use super::file::uninterrupted;

/// Opens the directory `name` of `directory`, none if there is nothing; a link is refused with `ELOOP` or `ENOTDIR`.
/// `..` leads up.
pub fn open_in(directory: BorrowedFd<'_>, name: &OsStr) -> Result<Option<OwnedFd>, Error> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match uninterrupted(|| openat(directory, name, flags, Mode::empty())) {
        Ok(opened) => Ok(Some(opened)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(Error::new(format!("openat({name:?}, DIRECTORY|NOFOLLOW)"), errno)),
    }
}

/// The same with `O_PATH`: to open by name what is in it, which takes no right to list it.
pub fn open_path_in(directory: BorrowedFd<'_>, name: &OsStr) -> Result<File, Error> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    uninterrupted(|| openat(directory, name, flags, Mode::empty()))
        .map(File::from)
        .map_err(|errno| Error::new(format!("openat({name:?}, PATH|DIRECTORY|NOFOLLOW)"), errno))
}

/// Makes the directory `name` in `directory` with `mode`, whatever the umask, and opens it. One that exists is opened as
/// it is.
pub fn make_in(directory: BorrowedFd<'_>, name: &OsStr, mode: u32) -> Result<File, Error> {
    let mode = Mode::from_bits_truncate(mode);
    let gone = || Error::new(format!("openat({name:?})"), Errno::ENOENT);
    let open = || open_in(directory, name)?.map(File::from).ok_or_else(gone);
    match uninterrupted(|| mkdirat(directory, name, mode)) {
        Ok(()) => {
            let made = open()?;
            set_mode(&made, mode.bits())?;
            Ok(made)
        }
        Err(Errno::EEXIST) => open(),
        Err(errno) => Err(Error::new(format!("mkdirat({name:?}, {:o})", mode.bits()), errno)),
    }
}

/// Wrapper for `fchmod(2)`.
pub fn set_mode(file: &File, mode: u32) -> Result<(), Error> {
    fchmod(file, Mode::from_bits_truncate(mode))
        .map_err(|errno| Error::new(format!("fchmod({mode:o})"), errno))
}

/// Sets the times of `name` in `directory` to now; a link is not followed.
pub fn touch(directory: BorrowedFd<'_>, name: &OsStr) -> Result<(), Error> {
    let now = TimeSpec::UTIME_NOW;
    utimensat(directory, name, &now, &now, UtimensatFlags::NoFollowSymlink)
        .map_err(|errno| Error::new(format!("utimensat({name:?}, NOW)"), errno))
}

/// Room of a file system, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// All of it.
    pub size: u64,
    /// What the caller may still use.
    pub free: u64,
}

/// The room of the file system that `file` lies on: wrapper for `fstatvfs(3)`.
pub fn room(file: &File) -> Result<Room, Error> {
    let stat = fstatvfs(file).map_err(|errno| Error::new("fstatvfs()", errno))?;
    let fragment = stat.fragment_size();
    Ok(Room {
        size: stat.blocks().saturating_mul(fragment),
        free: stat.blocks_available().saturating_mul(fragment),
    })
}

/// Opens `file` once more: with a read-ahead of its own, and for reading only.
pub fn opened_again(file: &File) -> Result<File, Error> {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    File::open(&path).map_err(|error| Error::from_io(format!("open({path})"), &error))
}

/// Has the kernel forget what it has cached of `file`: wrapper for `posix_fadvise(2)` with `DONTNEED`. Only advice.
pub fn forget_cached(file: &File) {
    let _ = posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn directories_are_made_with_their_mode_and_links_are_refused() {
        let parent = tempfile::tempdir().unwrap();
        let opened = File::open(parent.path()).unwrap();
        for _ in 0..2 {
            let made = make_in(opened.as_fd(), OsStr::new("new"), 0o733).unwrap();
            assert_eq!(made.metadata().unwrap().mode() & 0o7777, 0o733);
        }
        symlink("new", parent.path().join("link")).unwrap();
        for make in [false, true] {
            let name = OsStr::new("link");
            let error = match make {
                true => make_in(opened.as_fd(), name, 0o700).map(drop),
                false => open_in(opened.as_fd(), name).map(drop),
            };
            let errno = error.unwrap_err().errno;
            assert!([Errno::ELOOP, Errno::ENOTDIR].contains(&errno), "{errno}");
        }
        assert!(open_in(opened.as_fd(), OsStr::new("none")).unwrap().is_none());
        assert!(touch(opened.as_fd(), OsStr::new("none")).is_err());
        touch(opened.as_fd(), OsStr::new("link")).unwrap();
        let room = room(&opened).unwrap();
        assert!(room.size >= room.free && room.size > 0);
    }
}
