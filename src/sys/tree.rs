//! Reading a directory tree that others may change: everything is opened by its name in a directory held open, no
//! symbolic link is followed.
#![expect(unsafe_code, reason = "nix has no xattr calls")]

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstat};
use nix::unistd::{Whence, lseek};

use super::Error;

/// A name and a value.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// Opens the directory `name` in `directory`.
pub fn open_directory_in(directory: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Error> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(directory, name, flags, Mode::empty())
        .map_err(|errno| Error::new(format!("openat({name:?}, RDONLY|DIRECTORY|NOFOLLOW)"), errno))
}

/// Opens the file `name` in `directory`; what has become a pipe meanwhile does not block.
pub fn open_file_in(directory: BorrowedFd<'_>, name: &OsStr) -> Result<File, Error> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    openat(directory, name, flags, Mode::empty())
        .map(File::from)
        .map_err(|errno| Error::new(format!("openat({name:?}, RDONLY|NOFOLLOW)"), errno))
}

/// What an open file is now.
pub fn status(file: BorrowedFd<'_>) -> Result<FileStat, Error> {
    fstat(file).map_err(|errno| Error::new("fstat()", errno))
}

/// All names in a directory but `.` and `..`, sorted by their bytes.
pub fn names(directory: BorrowedFd<'_>) -> Result<Vec<OsString>, Error> {
    let refused = |errno| Error::new("getdents64()", errno);
    // A descriptor of its own: closing the stream closes it, and reading moves its position.
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut stream = Dir::openat(directory, ".", flags, Mode::empty()).map_err(refused)?;
    let mut names = Vec::new();
    for entry in stream.iter() {
        let name = entry.map_err(refused)?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name));
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Where the symbolic link `name` points.
pub fn link_target(directory: BorrowedFd<'_>, name: &OsStr) -> Result<OsString, Error> {
    readlinkat(directory, name).map_err(|errno| Error::new(format!("readlinkat({name:?})"), errno))
}

/// All extended attributes of an open file, sorted by name. File systems without any have none.
pub fn xattrs(file: BorrowedFd<'_>) -> Result<Vec<Xattr>, Error> {
    let fd = file.as_raw_fd();
    let listed = grow(|buffer| {
        // SAFETY: the kernel writes at most `len` bytes.
        unsafe { libc::flistxattr(fd, buffer.as_mut_ptr().cast(), buffer.len()) }
    });
    let list = match listed {
        Ok(list) => list,
        Err(Errno::EOPNOTSUPP) => return Ok(Vec::new()),
        Err(errno) => return Err(Error::new("flistxattr()", errno)),
    };
    let mut found = Vec::new();
    for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let Ok(c_name) = CString::new(name) else { continue };
        let value = grow(|buffer| {
            // SAFETY: the name ends with NUL; the kernel writes at most `len` bytes.
            unsafe { libc::fgetxattr(fd, c_name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) }
        });
        match value {
            Ok(value) => found.push((name.to_vec(), value)),
            // Listed but not for us, or gone since.
            Err(Errno::ENODATA | Errno::EPERM | Errno::EACCES | Errno::EOPNOTSUPP) => {}
            Err(errno) => {
                return Err(Error::new(format!("fgetxattr({:?})", OsStr::from_bytes(name)), errno));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Calls `read` with a buffer that is large enough.
fn grow(mut read: impl FnMut(&mut [u8]) -> isize) -> Result<Vec<u8>, Errno> {
    /// The kernel's `XATTR_SIZE_MAX` and `XATTR_LIST_MAX`.
    const MOST: usize = 64 << 10;
    let mut size = 256;
    loop {
        let mut buffer = vec![0; size];
        match usize::try_from(read(&mut buffer)) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(_) => match Errno::last() {
                Errno::ERANGE if size < MOST => size = MOST,
                errno => return Err(errno),
            },
        }
    }
}

/// The stretches of a file of `size` bytes that are no holes, ascending, as offset and length. File systems that do not
/// know have no holes.
pub fn data_ranges(file: &File, size: u64) -> Result<Vec<(u64, u64)>, Error> {
    let whole = || if size == 0 { Vec::new() } else { vec![(0, size)] };
    let seek = |at: u64, whence| {
        let at = i64::try_from(at).map_err(|_| Errno::EOVERFLOW)?;
        lseek(file.as_fd(), at, whence).map(|at| u64::try_from(at).unwrap_or(size).min(size))
    };
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(at, Whence::SeekData) {
            Ok(start) => start,
            Err(Errno::ENXIO) => break,
            Err(Errno::EINVAL) => return Ok(whole()),
            Err(errno) => return Err(Error::new("lseek(SEEK_DATA)", errno)),
        };
        let end = match seek(start, Whence::SeekHole) {
            Ok(end) => end,
            Err(Errno::ENXIO) => size,
            Err(Errno::EINVAL) => return Ok(whole()),
            Err(errno) => return Err(Error::new("lseek(SEEK_HOLE)", errno)),
        };
        if end > start {
            ranges.push((start, end - start));
        }
        at = end.max(at + 1);
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn holes_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create_new(dir.path().join("sparse")).unwrap();
        let size = 64 << 20;
        file.set_len(size).unwrap();
        assert_eq!(data_ranges(&file, size).unwrap(), []);
        file.write_all_at(b"x", 32 << 20).unwrap();
        let ranges = data_ranges(&file, size).unwrap();
        let holds = |at: u64| ranges.iter().any(|(start, length)| (*start..start + length).contains(&at));
        assert!(holds(32 << 20) && !holds(0) && !holds(size - 1), "{ranges:?}");
        assert_eq!(data_ranges(&file, 0).unwrap(), []);
    }

    #[test]
    fn names_are_sorted_and_can_be_read_again() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b", "a", "c\u{e9}"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let fd = super::super::file::open_directory(dir.path()).unwrap();
        for _ in 0..2 {
            assert_eq!(names(fd.as_fd()).unwrap(), ["a", "b", "c\u{e9}"]);
        }
    }
}
