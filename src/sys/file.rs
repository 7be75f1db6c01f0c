//! Files that appear complete or not at all: wrappers for `open(O_TMPFILE)`, `linkat(2)`, `renameat(2)`, `fsync(2)`.
//!
//! All names are relative to a directory held open, so that nobody can exchange it under a long conversion.
#![expect(
    unsafe_code,
    reason = "statx has no safe wrapper, dup3 none that leaves the descriptor to its owner"
)]

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::dir::{Dir, Entry};
use nix::errno::Errno;
use nix::fcntl::{
    AT_FDCWD, AtFlags, OFlag, PosixFadviseAdvice, copy_file_range, openat, posix_fadvise, renameat,
};
use nix::sys::stat::{FileStat, Mode, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use super::Error;
use super::rename::{RenameFlags, renameat2};

/// Makes a call again for as long as signals interrupt it, which network file systems allow anywhere.
pub(super) fn uninterrupted<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// Opens a directory to make files in.
pub fn open_directory(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    uninterrupted(|| openat(AT_FDCWD, path, flags, Mode::empty()))
        .map_err(|errno| Error::new(format!("open({path:?}, RDONLY|DIRECTORY)"), errno))
}

/// What `name` is; none if there is nothing. A symbolic link is not followed.
pub fn stat(directory: BorrowedFd<'_>, name: &OsStr) -> Result<Option<FileStat>, Error> {
    match uninterrupted(|| fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(Error::new(format!("fstatat({name:?}, SYMLINK_NOFOLLOW)"), errno)),
    }
}

/// Whether a [`FileStat`] is of a directory.
pub fn is_directory(stat: &FileStat) -> bool {
    stat.st_mode & nix::libc::S_IFMT == nix::libc::S_IFDIR
}

/// Opens a file without a name, which vanishes with its last descriptor, however the process ends. None where the
/// file system cannot (NFS, many FUSE file systems), and where [`link_unnamed`] could not name it, for want of `/proc`.
pub fn create_unnamed(directory: BorrowedFd<'_>, mode: u32) -> Result<Option<File>, Error> {
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    match uninterrupted(|| openat(directory, ".", flags, Mode::from_bits_truncate(mode))) {
        Ok(fd) if !has_magic_link(fd.as_raw_fd()) => Ok(None),
        Ok(fd) => Ok(Some(File::from(fd))),
        // Kernels and file systems that do not know the flag see an attempt to write to a directory.
        Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::ENOENT | Errno::EINVAL) => Ok(None),
        Err(errno) => Err(Error::new("open(\".\", TMPFILE|RDWR)", errno)),
    }
}

/// Creates a file that must not exist yet; none if something has the name.
pub fn create_new(directory: BorrowedFd<'_>, name: &OsStr, mode: u32) -> Result<Option<File>, Error> {
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    match uninterrupted(|| openat(directory, name, flags, Mode::from_bits_truncate(mode))) {
        Ok(fd) => Ok(Some(File::from(fd))),
        Err(Errno::EEXIST) => Ok(None),
        Err(errno) => Err(Error::new(format!("open({name:?}, CREAT|EXCL|RDWR)"), errno)),
    }
}

/// The names in a directory, as far as they can be read.
pub fn names(directory: BorrowedFd<'_>) -> Vec<OsString> {
    names_of(directory).map(|names| names.map_while(Result::ok).collect()).unwrap_or_default()
}

/// All names in a directory; an error unless each could be read.
pub fn all_names(directory: BorrowedFd<'_>) -> Result<Vec<OsString>, Error> {
    names_of(directory).and_then(Iterator::collect).map_err(|errno| Error::new("read a directory", errno))
}

fn names_of(directory: BorrowedFd<'_>) -> Result<impl Iterator<Item = Result<OsString, Errno>>, Errno> {
    // Not std's, which panics where closing fails.
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let entries = Dir::openat(directory, ".", flags, Mode::empty())?;
    let name = |entry: Entry| OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
    Ok(entries.into_iter().map(move |entry| entry.map(name)))
}

/// What is in the directory `path`, sorted.
pub fn list(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let opened = open_directory(path).map_err(|error| std::io::Error::from(error.errno))?;
    // Not std's, for the same reason.
    let mut paths = Vec::new();
    for entry in Dir::from_fd(opened)?.iter() {
        match entry?.file_name().to_bytes() {
            b"." | b".." => {}
            name => paths.push(path.join(OsStr::from_bytes(name))),
        }
    }
    paths.sort();
    Ok(paths)
}

/// Opens a regular file for reading; none if there is no such file, a link included.
pub fn open_regular(directory: BorrowedFd<'_>, name: &OsStr) -> Option<File> {
    find_regular(directory, name).ok().flatten()
}

/// The same; none only if there is nothing of that name, all by one call: a second look might see what came meanwhile.
/// A link is refused with `ELOOP`, all else that is no file with `EINVAL`.
pub fn find_regular(directory: BorrowedFd<'_>, name: &OsStr) -> Result<Option<File>, Error> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let refused = |errno| Error::new(format!("openat({name:?}, RDONLY|NOFOLLOW|NONBLOCK)"), errno);
    let file = match uninterrupted(|| openat(directory, name, flags, Mode::empty())) {
        Ok(fd) => File::from(fd),
        Err(Errno::ENOENT) => return Ok(None),
        Err(errno) => return Err(refused(errno)),
    };
    match file.metadata() {
        Ok(metadata) if metadata.is_file() => Ok(Some(file)),
        Ok(_) => Err(refused(Errno::EINVAL)),
        Err(error) => Err(Error::from_io(format!("fstat({name:?})"), &error)),
    }
}

/// Opens a file to write at its end, made with mode 0644 (less the umask) if it is missing. A link is refused with `ELOOP`;
/// a pipe that nobody reads with `ENXIO`.
pub fn open_log(path: &Path) -> Result<File, Error> {
    let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_CLOEXEC;
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    uninterrupted(|| openat(AT_FDCWD, path, flags, Mode::from_bits_truncate(0o644)))
        .map(File::from)
        .map_err(|errno| Error::new(format!("open({path:?}, WRONLY|APPEND|CREAT|NOFOLLOW)"), errno))
}

/// Gives a file made by [`create_unnamed`] a name; false if something has it.
pub fn link_unnamed(file: &File, directory: BorrowedFd<'_>, name: &OsStr) -> Result<bool, Error> {
    // AT_EMPTY_PATH would need CAP_DAC_READ_SEARCH before Linux 6.10; the way through /proc never does (open(2)).
    let magic = magic_link(file.as_raw_fd());
    let link = || linkat(AT_FDCWD, &*magic, directory, name, AtFlags::AT_SYMLINK_FOLLOW);
    let linked = match uninterrupted(link) {
        Err(Errno::ENOENT) => linkat(file.as_fd(), "", directory, name, AtFlags::AT_EMPTY_PATH),
        result => result,
    };
    match linked {
        Ok(()) => Ok(true),
        Err(Errno::EEXIST) => Ok(false),
        Err(errno) => Err(Error::new(format!("linkat({magic:?}, {name:?}, SYMLINK_FOLLOW)"), errno)),
    }
}

fn magic_link(fd: RawFd) -> OsString {
    OsString::from(format!("/proc/self/fd/{fd}"))
}

fn has_magic_link(fd: RawFd) -> bool {
    fstatat(AT_FDCWD, &*magic_link(fd), AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
}

/// Renames over whatever has the new name.
pub fn rename(directory: BorrowedFd<'_>, from: &OsStr, to: &OsStr) -> Result<(), Error> {
    uninterrupted(|| renameat(directory, from, directory, to))
        .map_err(|errno| Error::new(format!("renameat({from:?}, {to:?})"), errno))
}

/// Renames unless something has the new name (then false).
pub fn rename_new(directory: BorrowedFd<'_>, from: &OsStr, to: &OsStr) -> Result<bool, Error> {
    move_new(directory, from, directory, to)
}

/// Moves a file into another directory of the same file system, unless something has the name there (then false).
pub fn move_new(
    directory: BorrowedFd<'_>,
    from: &OsStr,
    other: BorrowedFd<'_>,
    to: &OsStr,
) -> Result<bool, Error> {
    match uninterrupted(|| renameat2(directory, from, other, to, RenameFlags::RENAME_NOREPLACE)) {
        Ok(()) => return Ok(true),
        Err(Errno::EEXIST) => return Ok(false),
        // NFS and others know no flags; link(2) is atomic there.
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {}
        Err(errno) => return Err(Error::new(format!("renameat2({from:?}, {to:?}, NOREPLACE)"), errno)),
    }
    match uninterrupted(|| linkat(directory, from, other, to, AtFlags::empty())) {
        Ok(()) => {
            // It has its name. One too many is no reason to say otherwise.
            let _ = unlink(directory, from);
            Ok(true)
        }
        Err(Errno::EEXIST) => Ok(false),
        Err(errno) => Err(Error::new(format!("linkat({from:?}, {to:?})"), errno)),
    }
}

/// Makes a directory with `mode`, less the umask. One that exists is left as it is.
pub fn make_directory(directory: BorrowedFd<'_>, name: &OsStr, mode: u32) -> Result<(), Error> {
    match uninterrupted(|| mkdirat(directory, name, Mode::from_bits_truncate(mode))) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(Error::new(format!("mkdirat({name:?}, {mode:#o})"), errno)),
    }
}

/// What an open file or directory is.
pub fn stat_of(fd: BorrowedFd<'_>) -> Result<FileStat, Error> {
    uninterrupted(|| nix::sys::stat::fstat(fd)).map_err(|errno| Error::new("fstat", errno))
}

/// Removes a name; it is fine if it is gone already.
pub fn unlink(directory: BorrowedFd<'_>, name: &OsStr) -> Result<(), Error> {
    match uninterrupted(|| unlinkat(directory, name, UnlinkatFlags::NoRemoveDir)) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(Error::new(format!("unlinkat({name:?})"), errno)),
    }
}

/// Copies `length` bytes between files, which share them afterwards where the file system can (`copy_file_range(2)`).
/// `EIO` if the source is shorter.
pub fn copy_range(
    from: &File,
    from_offset: u64,
    to: &File,
    to_offset: u64,
    length: u64,
) -> Result<(), Error> {
    let refused = |errno| Error::new(format!("copy_file_range({from_offset}, {to_offset}, {length})"), errno);
    let signed = |offset: u64| i64::try_from(offset).map_err(|_| refused(Errno::EOVERFLOW));
    let (mut at, mut to_at) = (signed(from_offset)?, signed(to_offset)?);
    let end = signed(from_offset.saturating_add(length))?;
    while at < end {
        let left = usize::try_from(end - at).unwrap_or(usize::MAX).min(COPY_MAX);
        match copy_file_range(from, Some(&mut at), to, Some(&mut to_at), left) {
            Ok(0) => return Err(refused(Errno::EIO)),
            Ok(_) | Err(Errno::EINTR) => {}
            // Between file systems before Linux 5.3, or a file system that knows no such call.
            Err(Errno::EXDEV | Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EPERM) => {
                return copy_by_hand(from, at, to, to_at, end)
                    .map_err(|error| Error::from_io("copy", &error));
            }
            Err(errno) => return Err(refused(errno)),
        }
    }
    Ok(())
}

/// Bytes copied by one call, so that a signal does not have to wait for all.
const COPY_MAX: usize = 64 << 20;

fn copy_by_hand(from: &File, mut at: i64, to: &File, mut to_at: i64, end: i64) -> std::io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    while at < end {
        let left = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        let piece = buffer.get_mut(..left).unwrap_or_default();
        from.read_exact_at(piece, at.unsigned_abs())?;
        to.write_all_at(piece, to_at.unsigned_abs())?;
        let moved = i64::try_from(left).unwrap_or_default();
        (at, to_at) = (at + moved, to_at + moved);
    }
    Ok(())
}

/// Waits until a file's contents are on the disk.
pub fn sync(file: &File) -> Result<(), Error> {
    file.sync_all().map_err(|error| Error::from_io("fsync(image file)", &error))
}

/// Waits until a directory's entries are on the disk. File systems that cannot say count as done.
pub fn sync_directory(directory: BorrowedFd<'_>) -> Result<(), Error> {
    match uninterrupted(|| nix::unistd::fsync(directory)) {
        Ok(()) | Err(Errno::EINVAL | Errno::EROFS | Errno::EBADF) => Ok(()),
        Err(errno) => Err(Error::new("fsync(directory)", errno)),
    }
}

/// A file at one moment: two equal stamps of one file mean that nobody changed it in between, except within one tick of
/// the kernel's clock (a few milliseconds).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    size: u64,
    modified: (i64, i64),
    /// Of anything, the name included; nobody can set it.
    changed: (i64, i64),
}

impl Stamp {
    /// Of a file that was looked at already.
    pub fn of(metadata: &std::fs::Metadata) -> Stamp {
        use std::os::unix::fs::MetadataExt;
        Stamp {
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Wrapper for `statx(2)` on an open file: its stamp as this node knows it, without asking the server of a network file
/// system, which would cost as much as a read.
pub fn stamp(file: &File) -> std::io::Result<Stamp> {
    let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
    let mask = libc::STATX_SIZE | libc::STATX_MTIME | libc::STATX_CTIME;
    let mut found = std::mem::MaybeUninit::<libc::statx>::uninit();
    // SAFETY: the path is an empty terminated string, and the kernel writes one `struct statx`.
    let rc = unsafe { libc::statx(file.as_raw_fd(), c"".as_ptr(), flags, mask, found.as_mut_ptr()) };
    if rc != 0 {
        // Before Linux 4.11, and under filters that do not know the call.
        return file.metadata().map(|metadata| Stamp::of(&metadata));
    }
    // SAFETY: the call succeeded, so the kernel has filled all of it.
    let found = unsafe { found.assume_init() };
    let time = |time: libc::statx_timestamp| (time.tv_sec, i64::from(time.tv_nsec));
    Ok(Stamp { size: found.stx_size, modified: time(found.stx_mtime), changed: time(found.stx_ctime) })
}

/// Wrapper for `memfd_create(2)`: a file without a name, in memory, closed on exec.
pub fn in_memory(name: &std::ffi::CStr) -> Result<File, Error> {
    nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
        .map(File::from)
        .map_err(|errno| Error::new(format!("memfd_create({name:?})"), errno))
}

/// Has the kernel read a part of a file ahead into its cache (`posix_fadvise(2)`, `POSIX_FADV_WILLNEED`). A hint: nothing
/// depends on it.
pub fn will_need(file: &File, offset: u64, length: u64) {
    if let (Ok(offset), Ok(length)) = (offset.try_into(), length.try_into()) {
        let _ = posix_fadvise(file, offset, length, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
    }
}

/// The path that the kernel has for an open file, as the caller sees it; ` (deleted)` ends that of one without a name.
pub fn path_of(file: &File) -> Result<PathBuf, Error> {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::read_link(&link).map_err(|error| Error::from_io(format!("readlink({link})"), &error))
}

/// Wrapper for `dup3(2)`: makes the descriptor of `file` one of `other`, for all threads that use it. Calls under way end
/// on the file they began with.
pub fn exchange(file: &File, other: &File) -> Result<(), Error> {
    // SAFETY: the caller borrows an open descriptor, which stays open and stays the owner's to close.
    let kept = unsafe { libc::dup3(other.as_raw_fd(), file.as_raw_fd(), libc::O_CLOEXEC) };
    if kept < 0 { Err(Error::last("dup3(image)")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exchanged_descriptor_reads_the_other_file() {
        let directory = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| {
            std::fs::write(directory.path().join(name), name).unwrap();
            File::open(directory.path().join(name)).unwrap()
        });
        exchange(&one, &other).unwrap();
        drop(other);
        assert_eq!(std::io::read_to_string(&one).unwrap(), "other");
        assert_eq!(path_of(&one).unwrap(), directory.path().join("other"));
    }

    #[test]
    fn both_ways_to_copy_do_the_same() {
        let content: Vec<u8> = (0..3_000_000u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let from = tempfile::tempfile().unwrap();
        from.write_all_at(&content, 0).unwrap();
        for by_hand in [false, true] {
            let to = tempfile::tempfile().unwrap();
            match by_hand {
                false => copy_range(&from, 4096, &to, 8192, 2_500_000).unwrap(),
                true => copy_by_hand(&from, 4096, &to, 8192, 2_504_096).unwrap(),
            }
            let mut got = vec![0; 2_500_000];
            to.read_exact_at(&mut got, 8192).unwrap();
            assert!(got == content[4096..2_504_096]);
            assert_eq!(to.metadata().unwrap().len(), 2_508_192);
        }
        let error = copy_range(&from, 2_999_999, &tempfile::tempfile().unwrap(), 0, 2).unwrap_err();
        assert_eq!(error.errno, Errno::EIO);
    }
}
