//! Opening a path beneath a directory so that nobody who can write to the tree leads the lookup out of it.
//!
//! The result is always an `O_PATH` descriptor. Whatever is done next is done to the descriptor and never to the path
//! again, so there is no second lookup to race with.
#![expect(unsafe_code, reason = "the C library's getcwd hides what the kernel's says")]

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{Mode, SFlag, fstatat};

use super::{Error, is_missing};

/// An `O_PATH` descriptor, with the path that it was opened by for messages.
#[derive(Debug)]
pub struct PathFd {
    fd: OwnedFd,
    path: PathBuf,
}

impl PathFd {
    /// A descriptor that was opened by `path`.
    pub fn new(fd: OwnedFd, path: &Path) -> PathFd {
        PathFd { fd, path: path.to_owned() }
    }

    /// Opens a directory of the host by a path that nobody but the administrator controls; links are followed.
    pub fn open_directory(path: &Path) -> Result<PathFd, Error> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        match nix::fcntl::open(path, flags, Mode::empty()) {
            Ok(fd) => Ok(PathFd::new(fd, path)),
            Err(errno) => Err(Error::new(format!("open({path:?}, PATH|DIRECTORY)"), errno)),
        }
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path that leads the kernel to exactly this file, for the calls that take no descriptor: needs `/proc`.
    pub fn proc_path(&self) -> String {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd())
    }
}

impl AsFd for PathFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The path of an open file, as the kernel knows it: for people only, since it may lead elsewhere by now.
pub fn name_of(file: &File) -> Result<PathBuf, Error> {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::read_link(&link).map_err(|error| Error::from_io(format!("readlink({link:?})"), &error))
}

/// Opens `path` as if `root` were `/`, refusing every symbolic link with `ELOOP`: for paths that are resolved already.
///
/// `..` is refused too: a resolved path has none. Mounts are crossed, and a directory that is to be mounted on access
/// (autofs) is mounted.
pub fn open_in_root(root: &PathFd, path: &Path) -> Result<PathFd, Error> {
    // A directory is asked for first because only such a lookup makes autofs mount the last component.
    let opened = match open2(root, path, OFlag::O_DIRECTORY) {
        Err(Errno::ENOTDIR) => open2(root, path, OFlag::empty()),
        other => other,
    };
    let opened = match opened {
        Err(errno) if is_missing(errno) => walk(root, path),
        other => other,
    };
    match opened {
        Ok(fd) => Ok(PathFd::new(fd, path)),
        Err(errno) => Err(Error::new(format!("openat2({path:?}, PATH, IN_ROOT|NO_SYMLINKS)"), errno)),
    }
}

/// Has the kernel look `path` up as if `root` were `/`, links followed: what it learned then is known sooner later. Does
/// nothing on kernels before Linux 5.6.
pub fn look_up_in_root(root: &PathFd, path: &Path) {
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(resolve);
    drop(openat2(root, path, how));
}

/// One `openat2(2)`, Linux 5.6.
fn open2(root: &PathFd, path: &Path, directory: OFlag) -> Result<OwnedFd, Errno> {
    let resolve =
        ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    if path.components().any(|component| component == Component::ParentDir) {
        return Err(Errno::EINVAL);
    }
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC | directory).resolve(resolve);
    openat2(root, path, how)
}

/// The same for older kernels: one component after the other, none followed if it is a link.
fn walk(root: &PathFd, path: &Path) -> Result<OwnedFd, Errno> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => names.push(name),
            Component::ParentDir | Component::Prefix(_) => return Err(Errno::EINVAL),
        }
    }
    let mut here = root.as_fd().try_clone_to_owned().map_err(|_| Errno::EMFILE)?;
    let mut left = names.len();
    for name in names {
        left = left.saturating_sub(1);
        here = step(&here, name, left == 0)?;
    }
    Ok(here)
}

/// Opens `name` in `directory`; anything but a directory may only be the `last`.
fn step(directory: &OwnedFd, name: &OsStr, last: bool) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat(directory, name, flags | OFlag::O_DIRECTORY, Mode::empty()) {
        Err(Errno::ENOTDIR) => {}
        other => return other,
    }
    let fd = openat(directory, name, flags, Mode::empty())?;
    let kind = fstatat(&fd, "", AtFlags::AT_EMPTY_PATH)?.st_mode & SFlag::S_IFMT.bits();
    match SFlag::from_bits_truncate(kind) {
        SFlag::S_IFLNK => Err(Errno::ELOOP),
        _ if last => Ok(fd),
        _ => Err(Errno::ENOTDIR),
    }
}

/// Makes `path` the working directory, if it lies inside the present root.
///
/// A lookup can leave the root through `/proc/self/fd/N` and a directory that was opened before the root changed
/// (CVE-2024-21626). The kernel then calls the working directory unreachable, and so this answers `ENOENT`; the
/// working directory is then `/`. So it is for a directory that was removed.
pub fn change_directory(path: &Path) -> Result<(), Error> {
    let refused = |errno| Error::new(format!("chdir({path:?})"), errno);
    nix::unistd::chdir(path).map_err(refused)?;
    if is_working_directory_reachable() {
        return Ok(());
    }
    nix::unistd::chdir("/").map_err(|errno| Error::new("chdir(\"/\")", errno))?;
    Err(refused(Errno::ENOENT))
}

/// The kernel puts `(unreachable)` before a working directory outside the root. `getcwd(3)` hides that: it searches
/// the parents by device and inode, and finds its way where the root is a bind of a host directory.
fn is_working_directory_reachable() -> bool {
    let mut path = vec![0u8; libc::PATH_MAX as usize];
    // SAFETY: the kernel writes at most so many bytes.
    let length = unsafe { libc::syscall(libc::SYS_getcwd, path.as_mut_ptr(), path.len()) };
    length > 0 && path.starts_with(b"/")
}

/// What makes two names lead to one file: device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity(u64, u64);

/// Which file `path` leads to; none if that cannot be told.
pub fn identity(path: &Path) -> Option<Identity> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata(path).ok()?;
    Some(Identity(metadata.dev(), metadata.ino()))
}

/// Whether `path` leads to a file that the caller may execute.
pub fn is_executable(path: &Path) -> bool {
    path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK) == Ok(())
}

/// Makes a directory with `mode`, whatever the umask, at a path below `directory`. One that exists is left as it is.
pub fn make_directory_in(directory: &PathFd, path: &Path, mode: u32) -> Result<(), Error> {
    let refused =
        |call, errno| Error::new(format!("{call}({:?}, {path:?}, {mode:#o})", directory.path()), errno);
    let mode = Mode::from_bits_truncate(mode);
    match nix::sys::stat::mkdirat(directory, path, mode) {
        Ok(()) => {}
        Err(Errno::EEXIST) => return Ok(()),
        Err(errno) => return Err(refused("mkdirat", errno)),
    }
    // By now somebody who can write to `directory` may have put a link there.
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let made = openat(directory, path, flags, Mode::empty()).map_err(|errno| refused("openat", errno))?;
    nix::sys::stat::fchmod(&made, mode).map_err(|errno| refused("fchmod", errno))
}

/// Makes an empty file at a path below `directory`.
pub fn make_file_in(directory: &PathFd, path: &Path) -> Result<(), Error> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(directory, path, flags, Mode::from_bits_truncate(0o644))
        .map(drop)
        .map_err(|errno| Error::new(format!("openat({:?}, {path:?}, CREAT|EXCL)", directory.path()), errno))
}

/// Makes a symbolic link to `target` at a path below `directory`.
pub fn make_link_in(directory: &PathFd, path: &Path, target: &Path) -> Result<(), Error> {
    nix::unistd::symlinkat(target, directory, path).map_err(|errno| {
        Error::new(format!("symlinkat({target:?}, {:?}, {path:?})", directory.path()), errno)
    })
}

/// Makes a directory with `mode`, less the umask. One that exists is left as it is.
pub fn make_directory(path: &Path, mode: u32) -> Result<(), Error> {
    match nix::unistd::mkdir(path, Mode::from_bits_truncate(mode)) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(Error::new(format!("mkdir({path:?}, {mode:#o})"), errno)),
    }
}

/// Opens a directory for reading that is not a link itself.
pub fn open_directory_itself(path: &Path) -> Result<File, Error> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match nix::fcntl::open(path, flags, Mode::empty()) {
        Ok(fd) => Ok(File::from(fd)),
        Err(errno) => Err(Error::new(format!("open({path:?}, RDONLY|DIRECTORY|NOFOLLOW)"), errno)),
    }
}

/// Opens the file `name` in `directory` for reading and writing, made with mode 0600 if `create` and it is missing.
/// A link is refused with `ELOOP`; a fifo does not block.
pub fn open_file_in(directory: &File, name: &OsStr, create: bool) -> Result<File, Error> {
    let mut flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    flags.set(OFlag::O_CREAT, create);
    match openat(directory, name, flags, Mode::S_IRUSR | Mode::S_IWUSR) {
        Ok(fd) => Ok(File::from(fd)),
        Err(errno) => Err(Error::new(format!("openat({name:?}, RDWR|NOFOLLOW)"), errno)),
    }
}

/// Removes the file `name` from `directory`.
pub fn remove_file_in(directory: &File, name: &OsStr) -> Result<(), Error> {
    nix::unistd::unlinkat(directory, name, nix::unistd::UnlinkatFlags::NoRemoveDir)
        .map_err(|errno| Error::new(format!("unlinkat({name:?})"), errno))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A tree with links of every kind, and its root.
    fn tree() -> (tempfile::TempDir, PathFd) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("a/file"), "x").unwrap();
        for (name, target) in [
            ("abs", "/etc"),
            ("rel", "a"),
            ("up", "../../etc"),
            ("magic", "/proc/self/root"),
            ("dangling", "/none"),
            ("loop", "loop"),
        ] {
            symlink(target, dir.path().join(name)).unwrap();
        }
        let root = PathFd::open_directory(dir.path()).unwrap();
        (dir, root)
    }

    /// What both ways to open must answer.
    const CASES: &[(&str, Result<(), Errno>)] = &[
        ("/", Ok(())),
        ("/a", Ok(())),
        ("/a/b", Ok(())),
        ("//a/./b/", Ok(())),
        ("a/b", Ok(())),
        ("/a/file", Ok(())),
        ("/a/file/x", Err(Errno::ENOTDIR)),
        ("/none", Err(Errno::ENOENT)),
        ("/a/none", Err(Errno::ENOENT)),
        ("/a/../a", Err(Errno::EINVAL)),
        ("/..", Err(Errno::EINVAL)),
        ("/abs", Err(Errno::ELOOP)),
        ("/abs/passwd", Err(Errno::ELOOP)),
        ("/rel", Err(Errno::ELOOP)),
        ("/rel/b", Err(Errno::ELOOP)),
        ("/up", Err(Errno::ELOOP)),
        ("/magic", Err(Errno::ELOOP)),
        ("/magic/etc", Err(Errno::ELOOP)),
        ("/dangling", Err(Errno::ELOOP)),
        ("/loop", Err(Errno::ELOOP)),
    ];

    #[test]
    fn opens_inside_the_root_only() {
        let (_dir, root) = tree();
        for (path, expected) in CASES {
            let opened = open_in_root(&root, Path::new(path)).map(drop).map_err(|error| error.errno);
            assert_eq!(opened, *expected, "{path}");
        }
    }

    #[test]
    fn walks_like_openat2() {
        let (_dir, root) = tree();
        for (path, expected) in CASES {
            assert_eq!(walk(&root, Path::new(path)).map(drop), *expected, "{path}");
        }
    }

    #[test]
    fn the_descriptor_is_the_file_that_was_named() {
        let (dir, root) = tree();
        let opened = open_in_root(&root, Path::new("/a/file")).unwrap();
        assert_eq!(std::fs::read_link(opened.proc_path()).unwrap(), dir.path().join("a/file"));
        assert_eq!(opened.path(), Path::new("/a/file"));
    }

    #[test]
    fn an_error_names_the_path() {
        let (_dir, root) = tree();
        let error = open_in_root(&root, Path::new("/abs")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "openat2(\"/abs\", PATH, IN_ROOT|NO_SYMLINKS): Too many symbolic links encountered (ELOOP)"
        );
    }
}
