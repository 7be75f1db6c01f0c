//! Mounts by descriptor: clone, attach, make read-only, pivot. Old and new calls side by side; callers choose.
#![expect(unsafe_code, reason = "open_tree, move_mount and mount_setattr have no safe wrapper")]

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use nix::sys::statvfs::FsFlags;

use super::path::PathFd;
use super::{Error, is_missing};

/// What a mount forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restriction {
    /// Writing.
    ReadOnly,
    /// Writing, devices and setuid bits: for trees that others made.
    ReadOnlyNoDevicesNoSetuid,
}

impl Restriction {
    /// For `mount_setattr(2)`.
    fn attributes(self) -> u64 {
        match self {
            Restriction::ReadOnly => libc::MOUNT_ATTR_RDONLY,
            Restriction::ReadOnlyNoDevicesNoSetuid => {
                libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID
            }
        }
    }

    /// For `mount(2)`.
    fn flags(self) -> MsFlags {
        match self {
            Restriction::ReadOnly => MsFlags::MS_RDONLY,
            Restriction::ReadOnlyNoDevicesNoSetuid => {
                MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID
            }
        }
    }
}

/// Makes every mount of this namespace receive the host's mounts and send none.
pub fn make_slave() -> Result<(), Error> {
    let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    nix::mount::mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .map_err(|errno| Error::new("mount(\"/\", REC|SLAVE)", errno))
}

/// Mounts FUSE on the host directory `mount_point`: read-only, without devices or setuid bits. `source` is what
/// `/proc/self/mounts` shows, `data` the mount options, which name the descriptor of `/dev/fuse`.
pub fn fuse(source: &Path, mount_point: &Path, data: &str) -> Result<(), Error> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_RDONLY;
    nix::mount::mount(Some(source), mount_point, Some("fuse.hpcrun"), flags, Some(data)).map_err(|errno| {
        let call =
            format!("mount({source:?}, {mount_point:?}, \"fuse.hpcrun\", NOSUID|NODEV|RDONLY, {data:?})");
        Error::new(call, errno)
    })
}

/// Mounts an empty file system in memory on `destination`, of at most `size_bytes` or half of the memory.
pub fn tmpfs(destination: &PathFd, mode: u32, size_bytes: Option<u64>) -> Result<(), Error> {
    let size = size_bytes.map(|size| format!(",size={size}")).unwrap_or_default();
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    new("tmpfs", destination, "tmpfs", flags, &format!("mode={mode:o}{size}"))
}

/// Mounts the processes of the caller's process namespace on `destination`.
pub fn processes(destination: &PathFd) -> Result<(), Error> {
    new("proc", destination, "proc", MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC, "")
}

/// Mounts an overlay on `destination`. `source` is what `/proc/self/mounts` shows, `data` the mount options.
pub fn overlay(source: &Path, destination: &PathFd, is_writable: bool, data: &str) -> Result<(), Error> {
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    flags.set(MsFlags::MS_RDONLY, !is_writable);
    nix::mount::mount(Some(source), destination.proc_path().as_str(), Some("overlay"), flags, Some(data))
        .map_err(|errno| {
            Error::new(format!("mount({source:?}, {:?}, \"overlay\", {data:?})", destination.path()), errno)
        })
}

fn new(source: &str, destination: &PathFd, kind: &str, flags: MsFlags, data: &str) -> Result<(), Error> {
    nix::mount::mount(Some(source), destination.proc_path().as_str(), Some(kind), flags, Some(data))
        .map_err(|errno| Error::new(format!("mount({:?}, {kind:?}, {data:?})", destination.path()), errno))
}

/// What the mount at `path` forbids, as [`libc::MOUNT_ATTR_RDONLY`] and the like.
///
/// `statmount(2)`, Linux 6.8, knows without asking the file system; `statvfs(3)` asks.
pub fn attributes(path: &Path) -> Result<u64, Error> {
    match statmount(path) {
        Err(error) if is_missing(error.errno) || error.errno == Errno::EINVAL => {}
        done => return done,
    }
    let flags = nix::sys::statvfs::statvfs(path)
        .map_err(|errno| Error::new(format!("statvfs({path:?})"), errno))?
        .flags();
    let pairs = [
        (FsFlags::ST_RDONLY, libc::MOUNT_ATTR_RDONLY),
        (FsFlags::ST_NOSUID, libc::MOUNT_ATTR_NOSUID),
        (FsFlags::ST_NODEV, libc::MOUNT_ATTR_NODEV),
    ];
    Ok(pairs
        .into_iter()
        .filter(|(flag, _)| flags.contains(*flag))
        .fold(0, |all, (_, attribute)| all | attribute))
}

fn statmount(path: &Path) -> Result<u64, Error> {
    // linux/mount.h; the number is the same on every architecture.
    const SYS_STATMOUNT: libc::c_long = 457;
    const BASIC: u64 = 2;
    const WORDS: usize = 128;
    const MASK_WORD: usize = 1;
    const ATTRIBUTES_WORD: usize = 8;
    const REQUEST_BYTES: u64 = 24;
    let refused = |call: &str| Error::last(format!("{call}({path:?})"));
    let name = std::ffi::CString::new(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()))
        .map_err(|_| Error::new(format!("statx({path:?})"), Errno::EINVAL))?;
    let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_STATX_DONT_SYNC;
    // SAFETY: the kernel reads a terminated string and fills the structure, in which all zeroes is valid.
    let found = unsafe {
        if libc::statx(libc::AT_FDCWD, name.as_ptr(), flags, libc::STATX_MNT_ID_UNIQUE, found.as_mut_ptr())
            != 0
        {
            return Err(refused("statx"));
        }
        found.assume_init()
    };
    if found.stx_mask & libc::STATX_MNT_ID_UNIQUE == 0 {
        return Err(Error::new(format!("statx({path:?}, MNT_ID_UNIQUE)"), Errno::ENOSYS));
    }
    let request: [u64; 3] = [REQUEST_BYTES, found.stx_mnt_id, BASIC];
    let mut answer = [0u64; WORDS];
    // SAFETY: the kernel reads a request of the size that it names and writes at most so many bytes.
    let rc = unsafe {
        libc::syscall(SYS_STATMOUNT, request.as_ptr(), answer.as_mut_ptr(), size_of_val(&answer), 0)
    };
    if rc != 0 {
        return Err(refused("statmount"));
    }
    match (answer.get(MASK_WORD), answer.get(ATTRIBUTES_WORD)) {
        (Some(mask), Some(attributes)) if mask & BASIC != 0 => Ok(*attributes),
        _ => Err(Error::new(format!("statmount({path:?}, MNT_BASIC)"), Errno::ENOSYS)),
    }
}

/// Wrapper for `open_tree(2)`, Linux 5.2: a detached copy of what is mounted at and below `source`.
pub fn clone_tree(source: &PathFd) -> Result<PathFd, Error> {
    let flags =
        libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | at(libc::AT_RECURSIVE | libc::AT_EMPTY_PATH);
    // SAFETY: the kernel reads a descriptor that lives, an empty string and a number.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, source.as_fd().as_raw_fd(), c"".as_ptr(), flags) };
    match i32::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(fd) if fd >= 0 => Ok(PathFd::new(unsafe { OwnedFd::from_raw_fd(fd) }, source.path())),
        _ => Err(Error::last(format!("open_tree({:?}, CLONE|RECURSIVE)", source.path()))),
    }
}

/// Wrapper for `move_mount(2)`, Linux 5.2: attaches a detached tree on `destination`.
pub fn attach(tree: &PathFd, destination: &PathFd) -> Result<(), Error> {
    // linux/mount.h: both ends are given by descriptor alone.
    const F_EMPTY_PATH: libc::c_uint = 0x04;
    const T_EMPTY_PATH: libc::c_uint = 0x40;
    let (from, to) = (tree.as_fd().as_raw_fd(), destination.as_fd().as_raw_fd());
    let flags = F_EMPTY_PATH | T_EMPTY_PATH;
    // SAFETY: the kernel reads two descriptors that live and empty strings.
    let moved = unsafe { libc::syscall(libc::SYS_move_mount, from, c"".as_ptr(), to, c"".as_ptr(), flags) };
    if moved == 0 {
        return Ok(());
    }
    Err(Error::last(format!("move_mount({:?}, {:?})", tree.path(), destination.path())))
}

/// Wrapper for `mount_setattr(2)`, Linux 5.12: restricts all mounts of a tree at once.
pub fn restrict_tree(tree: &PathFd, restriction: Restriction) -> Result<(), Error> {
    let attributes =
        libc::mount_attr { attr_set: restriction.attributes(), attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the kernel reads a descriptor that lives, an empty string and a structure of the given size.
    let set = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            at(libc::AT_RECURSIVE | libc::AT_EMPTY_PATH),
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if set == 0 {
        return Ok(());
    }
    Err(Error::last(format!("mount_setattr({:?}, RECURSIVE, {restriction:?})", tree.path())))
}

/// `AT_*` flags are declared signed and taken unsigned.
fn at(flags: libc::c_int) -> libc::c_uint {
    flags.cast_unsigned()
}

/// Binds `source` with everything mounted below it on `destination` by `mount(2)`, for kernels without
/// [`clone_tree`]. The paths that the kernel sees are links of `/proc/self/fd`, which lead to exactly these files.
pub fn bind(source: &PathFd, destination: &PathFd) -> Result<(), Error> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    nix::mount::mount(
        Some(source.proc_path().as_str()),
        destination.proc_path().as_str(),
        None::<&str>,
        flags,
        None::<&str>,
    )
    .map_err(|errno| {
        Error::new(format!("mount({:?}, {:?}, BIND|REC)", source.path(), destination.path()), errno)
    })
}

/// Whether recursive binds of what lies above a mount copy it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binding {
    /// They do.
    Copied,
    /// They leave it out, with everything mounted below it.
    LeftOut,
}

/// Sets whether recursive binds copy the mount that `mounted` lies at the root of. It takes part in no propagation
/// afterwards.
pub fn set_binding(mounted: &PathFd, binding: Binding) -> Result<(), Error> {
    let flags = match binding {
        Binding::Copied => MsFlags::MS_PRIVATE,
        Binding::LeftOut => MsFlags::MS_UNBINDABLE,
    };
    nix::mount::mount(None::<&str>, mounted.proc_path().as_str(), None::<&str>, flags, None::<&str>)
        .map_err(|errno| Error::new(format!("mount({:?}, {binding:?})", mounted.path()), errno))
}

/// Restricts the one mount that `mounted` lies at the root of, by `mount(2)`, for kernels without [`restrict_tree`].
pub fn restrict(mounted: &PathFd, restriction: Restriction) -> Result<(), Error> {
    let refused =
        |errno| Error::new(format!("mount({:?}, REMOUNT|BIND, {restriction:?})", mounted.path()), errno);
    let now = nix::sys::statvfs::fstatvfs(mounted).map_err(refused)?.flags();
    // What the host's mount forbids is locked in a user namespace: leaving it out is asking to lift it, EPERM. The
    // access time flags stay as they are when none is given (fs/namespace.c, path_mount).
    let mut flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | restriction.flags();
    for (is, keep) in [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
    ] {
        flags.set(keep, flags.contains(keep) || now.contains(is));
    }
    nix::mount::mount(None::<&str>, mounted.proc_path().as_str(), None::<&str>, flags, None::<&str>)
        .map_err(refused)
}

/// Makes the mount at the working directory the root, and drops the old root with everything mounted below it.
///
/// `pivot_root(".", ".")` stacks the old root on the new one, so that no directory for it is needed (pivot_root(2)).
pub fn pivot_root() -> Result<(), Error> {
    nix::unistd::pivot_root(".", ".").map_err(|errno| Error::new("pivot_root(\".\", \".\")", errno))?;
    nix::mount::umount2(".", MntFlags::MNT_DETACH)
        .map_err(|errno| Error::new("umount2(\".\", DETACH)", errno))?;
    to_root()
}

/// Moves the mount at the working directory onto `/` and makes it the root, as `switch_root(8)` does: where the old
/// root is the kernel's initial file system (diskless nodes), `pivot_root(2)` answers `EINVAL`. The old root stays
/// mounted underneath, where no path leads.
pub fn move_root() -> Result<(), Error> {
    nix::mount::mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .map_err(|errno| Error::new("mount(\".\", \"/\", MOVE)", errno))?;
    nix::unistd::chroot(".").map_err(|errno| Error::new("chroot(\".\")", errno))?;
    to_root()
}

fn to_root() -> Result<(), Error> {
    nix::unistd::chdir("/").map_err(|errno| Error::new("chdir(\"/\")", errno))
}

/// Makes `directory` the working directory.
pub fn enter(directory: &PathFd) -> Result<(), Error> {
    nix::unistd::fchdir(directory)
        .map_err(|errno| Error::new(format!("fchdir({:?})", directory.path()), errno))
}

/// Mount points of this namespace at or below `directory`, an absolute path free of links, parents first.
pub fn mount_points_below(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let table = std::fs::read("/proc/self/mountinfo")
        .map_err(|error| Error::from_io("open(\"/proc/self/mountinfo\", RDONLY)", &error))?;
    let mut found: Vec<PathBuf> = table
        .split(|byte| *byte == b'\n')
        .filter_map(mount_point)
        .filter(|path| path.starts_with(directory))
        .collect();
    found.sort();
    found.dedup();
    Ok(found)
}

/// The fifth field of a line of `/proc/self/mountinfo`.
fn mount_point(line: &[u8]) -> Option<PathBuf> {
    let field = line.split(|byte| *byte == b' ').nth(4)?;
    Some(PathBuf::from(OsString::from_vec(unescape(field))))
}

/// A name of the mount table, in which space, tab, newline and `\` are octal escapes.
pub fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let escaped = after.get(..3).filter(|_| *first == b'\\');
        let code = escaped.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        plain.push(code.unwrap_or(*first));
        rest = if code.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_mount_point(line: &str, expected: Option<&str>) {
        assert_eq!(mount_point(line.as_bytes()), expected.map(PathBuf::from));
    }

    #[test]
    fn reads_mount_points() {
        check_mount_point("36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw", Some("/mnt2"));
        check_mount_point("36 35 98:0 / / rw - tmpfs none rw", Some("/"));
        check_mount_point(r"1 2 0:1 / /a\040b\011c\012d\134e rw - x y z", Some("/a b\tc\nd\\e"));
        check_mount_point(r"1 2 0:1 / /a\0 rw - x y z", Some("/a\\0"));
        check_mount_point(r"1 2 0:1 / /a\999 rw - x y z", Some("/a\\999"));
        check_mount_point("1 2 0:1 /", None);
        check_mount_point("", None);
    }

    #[test]
    fn both_ways_tell_the_same_of_a_mount() {
        for path in ["/", "/proc", "/sys", "/dev"] {
            let flags = nix::sys::statvfs::statvfs(path).unwrap().flags();
            let attributes = attributes(Path::new(path)).unwrap();
            for (flag, attribute) in
                [(FsFlags::ST_NOSUID, libc::MOUNT_ATTR_NOSUID), (FsFlags::ST_NODEV, libc::MOUNT_ATTR_NODEV)]
            {
                assert_eq!(flags.contains(flag), attributes & attribute != 0, "{path}");
            }
        }
        assert_eq!(attributes(Path::new("/none")).unwrap_err().errno, Errno::ENOENT);
    }

    #[test]
    fn finds_mounts_by_whole_components() {
        let below = mount_points_below(Path::new("/proc")).unwrap();
        assert!(below.contains(&PathBuf::from("/proc")), "{below:?}");
        assert_eq!(mount_points_below(Path::new("/pro")).unwrap(), Vec::<PathBuf>::new());
        assert_eq!(mount_points_below(Path::new("/")).unwrap().first(), Some(&PathBuf::from("/")));
    }
}
