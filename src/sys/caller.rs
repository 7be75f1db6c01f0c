//! Who is calling: ids, groups, the user database, limits. Safe calls only.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{AccessFlags, Gid, Group, Uid, User};

use super::Error;

/// Numeric ids of the calling process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    /// Real user id.
    pub uid: u32,
    /// Effective user id.
    pub effective_uid: u32,
    /// Real group id.
    pub gid: u32,
    /// Effective group id.
    pub effective_gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// Wrapper for `getuid(2)` and its kin.
pub fn ids() -> Result<Ids, Error> {
    let groups = nix::unistd::getgroups().map_err(|errno| Error::new("getgroups()", errno))?;
    Ok(Ids {
        uid: nix::unistd::getuid().as_raw(),
        effective_uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getgid().as_raw(),
        effective_gid: nix::unistd::getegid().as_raw(),
        groups: groups.into_iter().map(Gid::as_raw).collect(),
    })
}

/// Wrapper for `geteuid(2)`.
pub fn effective_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// A time that the kernel counts in its ticks, as in `/proc/PID/stat`.
pub fn ticks(count: u64) -> std::time::Duration {
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten();
    let per_second = per_second.and_then(|ticks| u64::try_from(ticks).ok()).filter(|ticks| *ticks > 0);
    let millis = u128::from(count) * 1000 / u128::from(per_second.unwrap_or(100));
    std::time::Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
}

/// An entry of the user database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserEntry {
    /// Login name.
    pub name: OsString,
    /// Full name and more.
    pub gecos: OsString,
    /// Home directory.
    pub home: PathBuf,
}

/// Wrapper for `getpwuid_r(3)`: asks whatever the host's nsswitch.conf names. None when nobody has the id.
pub fn user_entry(uid: u32) -> Result<Option<UserEntry>, Error> {
    let entry = User::from_uid(Uid::from_raw(uid))
        .map_err(|errno| Error::new(format!("getpwuid_r({uid})"), errno))?;
    let entry = entry.map(|user| UserEntry {
        name: OsString::from(user.name),
        gecos: OsString::from_vec(user.gecos.into_bytes()),
        home: user.dir,
    });
    Ok(entry.or_else(|| if IS_STATIC { parse_user(&getent("passwd", uid)?) } else { None }))
}

/// A static program has no modules of nsswitch.conf ([`super::names`]): its C library does not know users of LDAP and SSSD.
const IS_STATIC: bool = cfg!(target_feature = "crt-static");

/// The host's own word on an id: the line that `getent DATABASE ID` prints, none if it knows none.
fn getent(database: &str, id: u32) -> Option<Vec<u8>> {
    let mut command = std::process::Command::new("/usr/bin/getent");
    command.args([database, &id.to_string()]).env_clear().stdin(std::process::Stdio::null());
    let output = command.output().ok().filter(|output| output.status.success())?;
    output.stdout.split(|byte| *byte == b'\n').next().map(<[u8]>::to_vec)
}

/// A line of passwd(5).
fn parse_user(line: &[u8]) -> Option<UserEntry> {
    let field = |index: usize| line.split(|byte| *byte == b':').nth(index).map(<[u8]>::to_vec);
    let home = PathBuf::from(OsString::from_vec(field(5)?));
    Some(UserEntry { name: OsString::from_vec(field(0)?), gecos: OsString::from_vec(field(4)?), home })
}

/// Wrapper for `getgrgid_r(3)`: the group's name, none when nobody knows it.
pub fn group_name(gid: u32) -> Result<Option<OsString>, Error> {
    let entry = Group::from_gid(Gid::from_raw(gid))
        .map_err(|errno| Error::new(format!("getgrgid_r({gid})"), errno))?;
    let asked = || {
        let line = getent("group", gid)?;
        line.split(|byte| *byte == b':').next().map(|name| OsString::from_vec(name.to_vec()))
    };
    Ok(entry.map(|group| OsString::from(group.name)).or_else(|| if IS_STATIC { asked() } else { None }))
}

/// Wrapper for `getcwd(2)`: the working directory without links; refused when it has been deleted.
pub fn working_directory() -> Result<PathBuf, Error> {
    nix::unistd::getcwd().map_err(|errno| Error::new("getcwd()", errno))
}

/// Wrapper for `access(2)` with read and write: whether the real ids may do both.
pub fn may_read_and_write(path: &Path) -> Result<(), Error> {
    nix::unistd::access(path, AccessFlags::R_OK | AccessFlags::W_OK)
        .map_err(|errno| Error::new(format!("access({path:?}, R|W)"), errno))
}

/// Whether the caller may make entries in the directory.
pub fn may_create_in(directory: &Path) -> bool {
    let flags = AccessFlags::W_OK | AccessFlags::X_OK;
    nix::unistd::access(directory, flags) == Ok(()) && directory.is_dir()
}

/// Soft and hard value of a limit; [`u64::MAX`] means unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// What holds now.
    pub soft: u64,
    /// How far the caller may raise it.
    pub hard: u64,
}

/// The limits that launches run into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Open files.
    pub open_files: Limit,
    /// Processes of the user.
    pub processes: Limit,
    /// Bytes of locked memory.
    pub locked_bytes: Limit,
    /// Bytes of address space.
    pub address_bytes: Limit,
    /// Bytes of a file.
    pub file_bytes: Limit,
}

/// Wrapper for `getrlimit(2)`.
pub fn limits() -> Result<Limits, Error> {
    let get = |resource: Resource, name: &str| match getrlimit(resource) {
        Ok((soft, hard)) => Ok(Limit { soft, hard }),
        Err(errno) => Err(Error::new(format!("getrlimit({name})"), errno)),
    };
    Ok(Limits {
        open_files: get(Resource::RLIMIT_NOFILE, "NOFILE")?,
        processes: get(Resource::RLIMIT_NPROC, "NPROC")?,
        locked_bytes: get(Resource::RLIMIT_MEMLOCK, "MEMLOCK")?,
        address_bytes: get(Resource::RLIMIT_AS, "AS")?,
        file_bytes: get(Resource::RLIMIT_FSIZE, "FSIZE")?,
    })
}

/// What is mounted where a file lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mounted {
    /// Whether it is the kernel's squashfs.
    pub is_squashfs: bool,
    /// Whether it is mounted read-only.
    pub is_read_only: bool,
    /// Whether set-id bits do nothing.
    pub is_nosuid: bool,
    /// Whether device nodes do nothing.
    pub is_nodev: bool,
    /// Bytes of a block.
    pub block_size: u64,
    /// Blocks.
    pub blocks: u64,
    /// Inodes.
    pub inodes: u64,
}

/// Wrapper for `fstatfs(2)`.
pub fn mounted(file: &std::fs::File) -> Result<Mounted, Error> {
    use nix::sys::statfs::{FsType, fstatfs};
    use nix::sys::statvfs::FsFlags;
    const SQUASHFS: FsType = FsType(0x7371_7368);
    let stat = fstatfs(file).map_err(|errno| Error::new("fstatfs()", errno))?;
    let has = |flag| stat.flags().contains(flag);
    Ok(Mounted {
        is_squashfs: stat.filesystem_type() == SQUASHFS,
        is_read_only: has(FsFlags::ST_RDONLY),
        is_nosuid: has(FsFlags::ST_NOSUID),
        is_nodev: has(FsFlags::ST_NODEV),
        block_size: u64::try_from(stat.block_size()).unwrap_or(0),
        blocks: stat.blocks(),
        inodes: stat.files(),
    })
}

/// Whether the caller may write files of any size; beyond its limit the kernel kills it with `SIGXFSZ`.
pub fn may_grow_files() -> bool {
    getrlimit(Resource::RLIMIT_FSIZE).is_ok_and(|(soft, _)| soft == nix::sys::resource::RLIM_INFINITY)
}

/// A file system's room and flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystem {
    /// All bytes of it.
    pub size_bytes: u64,
    /// Bytes that the caller may still use.
    pub free_bytes: u64,
    /// Whether programs on it may not be run.
    pub noexec: bool,
}

/// Wrapper for `statvfs(3)`.
pub fn file_system(path: &Path) -> Result<FileSystem, Error> {
    use nix::sys::statvfs::{FsFlags, statvfs};
    let stat = statvfs(path).map_err(|errno: Errno| Error::new(format!("statvfs({path:?})"), errno))?;
    let fragment = stat.fragment_size();
    Ok(FileSystem {
        size_bytes: stat.blocks().saturating_mul(fragment),
        free_bytes: stat.blocks_available().saturating_mul(fragment),
        noexec: stat.flags().contains(FsFlags::ST_NOEXEC),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_known_and_an_absurd_id_is_not() {
        let root = user_entry(0).unwrap().unwrap();
        assert_eq!(root.name, "root");
        assert!(root.home.is_absolute());
        assert_eq!(group_name(0).unwrap().unwrap(), "root");
        assert_eq!(user_entry(4_000_000_001).unwrap(), None);
        assert_eq!(group_name(4_000_000_001).unwrap(), None);
    }

    #[test]
    fn what_getent_says_is_what_the_c_library_says() {
        assert_eq!(parse_user(&getent("passwd", 0).unwrap()), user_entry(0).unwrap());
        assert_eq!(getent("passwd", 4_000_000_001), None);
        assert_eq!(getent("group", 0).unwrap().split(|byte| *byte == b':').next(), Some(&b"root"[..]));
        for line in [&b""[..], b"ada:x:1000", b"ada:x:1000:1000:Ada"] {
            assert_eq!(parse_user(line), None);
        }
    }

    #[test]
    fn ids_are_those_of_the_file_system() {
        use std::os::unix::fs::MetadataExt;
        let own = std::fs::metadata("/proc/self").unwrap();
        let ids = ids().unwrap();
        assert_eq!((ids.effective_uid, ids.effective_gid), (own.uid(), own.gid()));
    }

    #[test]
    fn refusals_name_the_call() {
        let error = may_read_and_write(Path::new("/nonexistent/x")).unwrap_err();
        assert_eq!(error.to_string(), "access(\"/nonexistent/x\", R|W): No such file or directory (ENOENT)");
        assert!(file_system(Path::new("/nonexistent/x")).is_err());
    }

    #[test]
    fn limits_and_room_are_plausible() {
        let limits = limits().unwrap();
        assert!(limits.open_files.soft > 0 && limits.open_files.soft <= limits.open_files.hard);
        let root = file_system(Path::new("/")).unwrap();
        assert!(root.size_bytes > root.free_bytes);
        assert!(may_create_in(Path::new("/tmp")));
        assert!(!may_create_in(Path::new("/etc/hostname")));
    }
}
