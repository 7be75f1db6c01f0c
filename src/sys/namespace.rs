//! Namespaces: making them, mapping ids, joining those of another process.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sched::CloneFlags;
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use super::Error;
use super::path::PathFd;

/// Threads of this process. `unshare(2)` and `setns(2)` of a user namespace want exactly one.
pub fn thread_count() -> Result<usize, Error> {
    match std::fs::read_dir("/proc/self/task") {
        Ok(entries) => Ok(entries.count()),
        Err(error) => Err(Error::from_io("opendir(\"/proc/self/task\")", &error)),
    }
}

/// A new user namespace, in which the caller has every capability and no id is mapped yet.
pub fn unshare_user() -> Result<(), Error> {
    nix::sched::unshare(CloneFlags::CLONE_NEWUSER).map_err(|errno| Error::new("unshare(NEWUSER)", errno))
}

/// A new mount namespace: a copy of the present one, owned by the present user namespace.
pub fn unshare_mount() -> Result<(), Error> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).map_err(|errno| Error::new("unshare(NEWNS)", errno))
}

/// A new namespace of System V IPC and message queues.
pub fn unshare_ipc() -> Result<(), Error> {
    nix::sched::unshare(CloneFlags::CLONE_NEWIPC).map_err(|errno| Error::new("unshare(NEWIPC)", errno))
}

/// A new process namespace for the children of the caller, of which the first is its process 1.
pub fn unshare_processes() -> Result<(), Error> {
    nix::sched::unshare(CloneFlags::CLONE_NEWPID).map_err(|errno| Error::new("unshare(NEWPID)", errno))
}

/// Maps `uid` and `gid`, the caller's own, to themselves and nothing else, and gives up `setgroups(2)`.
///
/// `process` is `/proc/self`. Its files must be the kernel's own: what is written here decides about ids, and other
/// runtimes were led to fake files (CVE-2019-16884, CVE-2025-52881).
pub fn map_ids(process: &PathFd, uid: u32, gid: u32) -> Result<(), Error> {
    map_ids_as(process, (uid, gid), (uid, gid))
}

/// The same for a user and group that have other numbers `inside`.
pub fn map_ids_as(process: &PathFd, inside: (u32, u32), (uid, gid): (u32, u32)) -> Result<(), Error> {
    // Without this an unprivileged process may not write gid_map: by dropping a group it could gain access where the
    // group is denied it (CVE-2014-8989).
    write_proc(process, "setgroups", "deny")?;
    write_proc(process, "uid_map", &format!("{} {uid} 1\n", inside.0))?;
    write_proc(process, "gid_map", &format!("{} {gid} 1\n", inside.1))
}

/// Writes a file of `/proc/self` in one `write(2)`, as id maps must be.
fn write_proc(process: &PathFd, name: &str, text: &str) -> Result<(), Error> {
    let call = || format!("write(\"/proc/self/{name}\", {text:?})");
    let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = openat(process, name, flags, Mode::empty())
        .map_err(|errno| Error::new(format!("open(\"/proc/self/{name}\", WRONLY)"), errno))?;
    let is_proc =
        fstatfs(&fd).map_err(|errno| Error::new(call(), errno))?.filesystem_type() == PROC_SUPER_MAGIC;
    if !is_proc {
        return Err(Error::new(format!("{}: not on a proc file system", call()), Errno::EXDEV));
    }
    match File::from(fd).write(text.as_bytes()) {
        Ok(length) if length == text.len() => Ok(()),
        Ok(_) => Err(Error::new(call(), Errno::EIO)),
        Err(error) => Err(Error::from_io(call(), &error)),
    }
}

/// Inode of the caller's user namespace.
pub fn own_user_namespace() -> Result<u64, Error> {
    use std::os::unix::fs::MetadataExt as _;
    match std::fs::metadata("/proc/self/ns/user") {
        Ok(metadata) => Ok(metadata.ino()),
        Err(error) => Err(Error::from_io("stat(\"/proc/self/ns/user\")", &error)),
    }
}

/// Which user and mount namespace: their inode numbers, unique among those that exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamespaceIds {
    /// Inode of `/proc/PID/ns/user`.
    pub user: u64,
    /// Inode of `/proc/PID/ns/mnt`.
    pub mount: u64,
}

/// Open namespaces of a process: they exist, and stay what they are, as long as this does.
#[derive(Debug)]
pub struct Namespaces {
    user: OwnedFd,
    mount: OwnedFd,
    ids: NamespaceIds,
}

impl Namespaces {
    /// Those of process `pid`, which must be one that the caller may inspect: of the same user, and in this user
    /// namespace or one below it.
    pub fn of_process(pid: i32) -> Result<Namespaces, Error> {
        Namespaces::of(&PathFd::open_directory(Path::new(&format!("/proc/{pid}")))?)
    }

    /// Those of the process whose directory in `/proc` is `process`.
    pub fn of(process: &PathFd) -> Result<Namespaces, Error> {
        let (user, user_inode) = open_namespace(process, "ns/user")?;
        let (mount, mount_inode) = open_namespace(process, "ns/mnt")?;
        Ok(Namespaces { user, mount, ids: NamespaceIds { user: user_inode, mount: mount_inode } })
    }

    /// Which they are.
    pub fn ids(&self) -> NamespaceIds {
        self.ids
    }

    /// Joins both, one after the other. Root and working directory become the root of the mount namespace. An error
    /// may leave the caller in the user namespace only.
    pub fn join(&self) -> Result<(), Error> {
        let user = nix::sched::setns(&self.user, CloneFlags::CLONE_NEWUSER);
        user.map_err(|errno| Error::new("setns(NEWUSER)", errno))?;
        let mount = nix::sched::setns(&self.mount, CloneFlags::CLONE_NEWNS);
        mount.map_err(|errno| Error::new("setns(NEWNS)", errno))
    }
}

/// An open namespace of processes or of IPC that is not the caller's.
#[derive(Debug)]
pub struct OtherNamespace {
    fd: OwnedFd,
    kind: CloneFlags,
}

impl OtherNamespace {
    /// The one in which the process whose directory in `/proc` is `process` has its children, if it is not the caller's.
    pub fn of_children(process: &PathFd) -> Result<Option<OtherNamespace>, Error> {
        OtherNamespace::open(process, "ns/pid_for_children", CloneFlags::CLONE_NEWPID)
    }

    /// That process's namespace of System V IPC and message queues, if it is not the caller's.
    pub fn of_ipc(process: &PathFd) -> Result<Option<OtherNamespace>, Error> {
        OtherNamespace::open(process, "ns/ipc", CloneFlags::CLONE_NEWIPC)
    }

    fn open(process: &PathFd, name: &str, kind: CloneFlags) -> Result<Option<OtherNamespace>, Error> {
        let (fd, inode) = open_namespace(process, name)?;
        let (_, own) = open_namespace(&PathFd::open_directory(Path::new("/proc/self"))?, name)?;
        Ok((inode != own).then_some(OtherNamespace { fd, kind }))
    }

    /// Joins it; one of processes has only the caller's children be born there. The caller has all capabilities in the
    /// user namespace that it is of.
    pub fn join(&self) -> Result<(), Error> {
        let name = if self.kind == CloneFlags::CLONE_NEWPID { "setns(NEWPID)" } else { "setns(NEWIPC)" };
        nix::sched::setns(&self.fd, self.kind).map_err(|errno| Error::new(name, errno))
    }
}

fn open_namespace(process: &PathFd, name: &str) -> Result<(OwnedFd, u64), Error> {
    let refused = |errno| Error::new(format!("open({:?}, RDONLY)", process.path().join(name)), errno);
    let fd = openat(process, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map_err(refused)?;
    let inode = fstat(&fd).map_err(refused)?.st_ino;
    Ok((fd, inode))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::{Ended, in_child};

    fn own() -> NamespaceIds {
        Namespaces::of(&PathFd::open_directory(Path::new("/proc/self")).unwrap()).unwrap().ids()
    }

    #[test]
    fn counts_threads() {
        let before = thread_count().unwrap();
        assert!(before >= 1);
        assert_eq!(in_child(|| u8::from(thread_count().unwrap() == 1)).unwrap(), Ended::Exited(1));
    }

    #[test]
    fn a_child_has_its_own_namespaces() {
        let outside = own();
        let uid = nix::unistd::getuid().as_raw();
        let gid = nix::unistd::getgid().as_raw();
        let status = in_child(|| {
            unshare_user().unwrap();
            map_ids(&PathFd::open_directory(Path::new("/proc/self")).unwrap(), uid, gid).unwrap();
            unshare_mount().unwrap();
            let inside = own();
            assert_eq!(std::fs::read_to_string("/proc/self/setgroups").unwrap(), "deny\n");
            u8::from(inside.user != outside.user && inside.mount != outside.mount)
        });
        assert_eq!(status.unwrap(), Ended::Exited(1));
        assert_eq!(own(), outside);
    }

    #[test]
    fn a_process_that_is_gone_cannot_be_opened() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert_eq!(Namespaces::of_process(pid).unwrap_err().errno, Errno::ENOENT);
    }
}
