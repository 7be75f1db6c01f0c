//! Gathers the facts: the only reader of `/proc` and `/sys`, and of the policy file.
//!
//! [`probe_for_launch`] stands on the way of every rank of every job: a few dozen system calls, no program run.
//! [`probe_for_doctor`] takes its time.

mod doctor;
mod gpu;
mod processes;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::iter;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::features::{DevFuse, Observed};
use super::launcher::LauncherKind;
use super::{
    Backing, Environment, Features, Host, Kernel, Kind, Launcher, PathFact, TreeFact, TreeShape, User,
    processor, variable,
};
use crate::hint::Hint;
use crate::sys::{self, caller, process};

pub use doctor::{keep, place, probe_for_doctor};
pub use gpu::gpu;
pub use processes::{containers, environment_of, mount_namespace_of, owner_of, working_directory_of};

/// Policy files are pages, not volumes.
const POLICY_LIMIT_BYTES: u64 = 1 << 20;

/// The largest time zone file that is taken into the new root; real ones have a few KiB.
const LOCALTIME_LIMIT_BYTES: u64 = 64 << 10;

/// Of Linux's list of devices: miscellaneous character device 229.
const FUSE_DEVICE: u64 = libc::makedev(10, 229);

/// Namespaces whose inodes tell one private view of the node from another.
const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

/// A fact without which nothing can be planned is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Who calls.
    #[error("cannot tell who is calling")]
    Caller(#[source] sys::Error),
}

impl Hint for ProbeError {}

/// Gathers what a launch needs. `environment` is the process's own; paths are asked about later, by [`add_paths`].
pub fn probe_for_launch(environment: Environment) -> Result<Host, ProbeError> {
    let ids = caller::ids().map_err(ProbeError::Caller)?;
    let kernel = Kernel::parse(&read_line("/proc/sys/kernel/osrelease"));
    let observed = observe(ids.effective_uid == 0);
    let launcher = launcher(&environment);
    Ok(Host {
        user: user(&ids, &environment),
        hostname: hostname(),
        cwd: caller::working_directory().ok(),
        features: Features::derive(&kernel, &observed),
        kernel,
        cpus: count_cpus(&read_line("/sys/devices/system/cpu/online")).max(1),
        isa_level: processor::isa_level(),
        // They tell apart whom a launch may share with, which without a launcher is nobody.
        namespaces: if launcher.kind == LauncherKind::None { Vec::new() } else { namespaces() },
        launcher,
        share_directory: share_directory(ids.uid, &environment),
        environment,
        paths: BTreeMap::new(),
        trees: BTreeMap::new(),
        globs: BTreeMap::new(),
        localtime: read_limited(Path::new("/etc/localtime"), LOCALTIME_LIMIT_BYTES)
            .filter(|bytes| bytes.starts_with(b"TZif")),
        gpu: super::gpu::GpuFacts::default(),
    })
}

/// The values behind the site policy's trusted variables, for verbs that launch nothing.
pub fn trusted_variables(environment: &Environment) -> Result<Vec<(&'static str, OsString)>, ProbeError> {
    let ids = caller::ids().map_err(ProbeError::Caller)?;
    Ok(user(&ids, environment).trusted_variables(hostname()))
}

fn hostname() -> OsString {
    nix::unistd::gethostname().unwrap_or_default()
}

/// Finds out what the host has at each of `paths`, all absolute.
pub fn add_paths(host: &mut Host, paths: impl IntoIterator<Item = PathBuf>) {
    for path in paths {
        host.paths.entry(path).or_insert_with_key(|path| path_fact(path));
    }
}

/// Finds out what is mounted at each of `directories`.
pub fn add_trees(host: &mut Host, directories: impl IntoIterator<Item = PathBuf>) {
    for directory in directories {
        if let Some(fact) = tree_fact(&directory) {
            host.trees.insert(directory, fact);
        }
    }
}

/// Of the directory that was opened; its name may lead elsewhere a moment later.
fn tree_fact(directory: &Path) -> Option<TreeFact> {
    let opened =
        File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(directory).ok()?;
    let resolved = std::fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd())).ok()?;
    let metadata = opened.metadata().ok()?;
    let mounted = caller::mounted(&opened).ok()?;
    let above = |directory: &Path| directory.metadata().ok();
    let trusts = std::iter::once((resolved.as_path(), Some(metadata.clone())))
        .chain(resolved.ancestors().skip(1).map(|directory| (directory, above(directory))));
    let untrusted = trusts.into_iter().find_map(|(path, metadata)| match metadata {
        Some(metadata) => match check_trust(path, &metadata) {
            Err(PolicyFileError::Untrusted { path, why, .. }) => Some(format!("{} {why}", path.display())),
            _ => None,
        },
        None => Some(format!("{} cannot be looked at", path.display())),
    });
    Some(TreeFact {
        device: metadata.dev(),
        device_above: resolved.parent().and_then(above)?.dev(),
        untrusted,
        is_squashfs: mounted.is_squashfs,
        is_read_only: mounted.is_read_only,
        is_nosuid: mounted.is_nosuid,
        is_nodev: mounted.is_nodev,
        shape: TreeShape {
            block_size: mounted.block_size,
            blocks: mounted.blocks,
            inodes: mounted.inodes,
            root: metadata.ino(),
        },
        backing: backing(metadata.dev()),
        resolved,
    })
}

/// What the loop device of this number holds; none of another device.
fn backing(device: u64) -> Option<Backing> {
    let number = format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let directory = PathBuf::from(format!("/sys/dev/block/{number}/loop"));
    let mut name = std::fs::read(directory.join("backing_file")).ok()?;
    if name.last() == Some(&b'\n') {
        name.pop();
    }
    let offset = std::fs::read_to_string(directory.join("offset")).ok()?;
    let file = PathBuf::from(OsString::from_vec(name));
    Some(Backing { file, offset: offset.trim().parse().ok()?, hash: None })
}

/// Finds what the host has for each pattern: an absolute path whose last component `fits` decides about, given that
/// component and a name.
pub fn add_globs(
    host: &mut Host,
    globs: impl IntoIterator<Item = String>,
    fits: &dyn Fn(&str, &[u8]) -> bool,
) {
    for glob in globs {
        let (directory, last) = glob.rsplit_once('/').unwrap_or(("", &glob));
        let directory = Path::new(if directory.is_empty() { "/" } else { directory });
        let entries = directory.read_dir().into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name()).filter(|name| fits(last, name.as_bytes()));
        let mut paths: Vec<PathBuf> = names.map(|name| directory.join(name)).collect();
        paths.sort();
        host.globs.insert(glob, paths);
    }
}

/// The kernel resolves, not we: links of `/proc` lead where they really lead, and a path costs four system calls however
/// deep it is. Opening with `O_PATH` asks for no permission on the thing itself and has no effect on it.
fn path_fact(path: &Path) -> PathFact {
    let fact = |kind: Kind, resolved: &Path| PathFact { kind, resolved: resolved.to_owned() };
    let file = match File::options().read(true).custom_flags(libc::O_PATH).open(path) {
        Ok(file) => file,
        Err(error) => return fact(kind_of_error(&error), path),
    };
    let resolved = match std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())) {
        Ok(resolved) if resolved.is_absolute() => resolved,
        // A pipe, a socket, a place outside this root.
        Ok(_) => return fact(Kind::Unreachable("it has no path".to_owned()), path),
        Err(error) => return fact(kind_of_error(&error), path),
    };
    match file.metadata() {
        // Deleted while something still holds it: the kernel's name for it is no path.
        Ok(metadata) if metadata.nlink() == 0 => fact(Kind::Missing, path),
        Ok(metadata) if metadata.is_dir() => fact(Kind::Directory, &resolved),
        Ok(_) => fact(Kind::File, &resolved),
        Err(error) => fact(kind_of_error(&error), path),
    }
}

fn kind_of_error(error: &io::Error) -> Kind {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Kind::Missing,
        _ => Kind::Unreachable(sys::Error::from_io("stat", error).errno.desc().to_owned()),
    }
}

fn user(ids: &caller::Ids, environment: &Environment) -> User {
    // A database that cannot be asked is a database that does not know: the launch goes on with the bare ids.
    let entry = caller::user_entry(ids.uid).ok().flatten();
    let group_name = caller::group_name(ids.gid).ok().flatten();
    let known = entry.is_some();
    let from_environment = |name: &str| variable(environment, name).filter(|value| !value.is_empty());
    let (name, gecos, home) = match entry {
        Some(entry) => (entry.name, entry.gecos, Some(entry.home)),
        None => {
            let name = from_environment("USER").or_else(|| from_environment("LOGNAME"));
            let home = from_environment("HOME").map(PathBuf::from);
            (
                name.map_or_else(|| OsString::from(format!("uid{}", ids.uid)), OsStr::to_owned),
                OsString::new(),
                home,
            )
        }
    };
    User {
        uid: ids.uid,
        effective_uid: ids.effective_uid,
        gid: ids.gid,
        groups: ids.groups.clone(),
        name,
        group_name: group_name.unwrap_or_else(|| OsString::from(format!("gid{}", ids.gid))),
        gecos,
        home: home.filter(|home| home.is_absolute()),
        known,
    }
}

fn observe(privileged: bool) -> Observed {
    Observed {
        privileged,
        has_user_namespaces: Path::new("/proc/self/ns/user").exists(),
        max_user_namespaces: read_number("/proc/sys/user/max_user_namespaces"),
        unprivileged_userns_clone: read_number("/proc/sys/kernel/unprivileged_userns_clone"),
        dev_fuse: dev_fuse(),
    }
}

fn dev_fuse() -> DevFuse {
    let path = Path::new("/dev/fuse");
    match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => DevFuse::Missing,
        Err(error) => DevFuse::Refused(sys::Error::from_io("stat(\"/dev/fuse\")", &error).to_string()),
        Ok(metadata) if !metadata.file_type().is_char_device() || metadata.rdev() != FUSE_DEVICE => {
            DevFuse::NotTheDevice
        }
        Ok(_) => match caller::may_read_and_write(path) {
            Ok(()) => DevFuse::Usable,
            Err(error) => DevFuse::Refused(error.to_string()),
        },
    }
}

/// What launched this process; with Hydra, whose environment names no job, from the socket that it handed down.
fn launcher(environment: &Environment) -> Launcher {
    let mut launcher = Launcher::from_environment(environment);
    if launcher.kind == LauncherKind::Hydra && launcher.starter.is_none() {
        let socket = variable(environment, "PMI_FD").and_then(|number| number.to_str()?.parse().ok());
        // Not the parent: between Hydra and a rank there is often a script for each rank.
        let starter = socket.and_then(process::maker_of_socket);
        launcher.starter =
            starter.and_then(|pid| Some(format!("process {pid} of {}", processes::start_of(pid)?)));
    }
    launcher
}

fn namespaces() -> Vec<(String, u64)> {
    let inode = |name: &&str| {
        let metadata = Path::new("/proc/self/ns").join(name).metadata().ok()?;
        Some(((*name).to_owned(), metadata.ino()))
    };
    NAMESPACES.iter().filter_map(inode).collect()
}

/// The directory for registry files of shared namespaces: memory of this node before anything that may be shared
/// between nodes or be there for some of a job's ranks only, as `XDG_RUNTIME_DIR` can be.
fn share_directory(uid: u32, environment: &Environment) -> Option<PathBuf> {
    let own = format!("hpcrun-{uid}");
    let runtime = variable(environment, "XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let candidates = [
        Some((PathBuf::from("/dev/shm"), own.as_str())),
        runtime.map(|dir| (dir, "hpcrun")),
        Some((PathBuf::from("/tmp"), own.as_str())),
    ];
    let (parent, name) = candidates.into_iter().flatten().find(|(dir, _)| caller::may_create_in(dir))?;
    Some(parent.join(name))
}

/// The number of processors in a list such as `0-63,128-191`.
fn count_cpus(list: &str) -> usize {
    let count = |range: &str| -> Option<usize> {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first)?.checked_add(1)
    };
    list.trim().split(',').filter_map(count).fold(0, usize::saturating_add)
}

/// The text of a small file of `/proc` or `/sys`; empty when it cannot be read.
fn read_line(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn read_number(path: &str) -> Option<u64> {
    read_line(path).trim().parse().ok()
}

fn read_limited(path: &Path, limit_bytes: u64) -> Option<Vec<u8>> {
    // Into an empty vector the standard library reads 32 bytes at first.
    let mut bytes = Vec::with_capacity(4096);
    let file = File::open(path).ok()?;
    file.take(limit_bytes.saturating_add(1)).read_to_end(&mut bytes).ok()?;
    (u64::try_from(bytes.len()).ok()? <= limit_bytes).then_some(bytes)
}

/// The policy file cannot be trusted or cannot be read. Nothing is launched then.
#[derive(Debug, thiserror::Error)]
pub enum PolicyFileError {
    /// The file.
    #[error("cannot read {role} {}", path.display())]
    Read {
        /// What the file is to the site.
        role: &'static str,
        /// As asked.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// The file's text.
    #[error("{}:{line}:{column}: not UTF-8", path.display())]
    NotText {
        /// As asked.
        path: PathBuf,
        /// Of the first wrong byte, 1-based.
        line: usize,
        /// Characters of the line before it, and one.
        column: usize,
    },
    /// Its size.
    #[error("{role} {} is larger than {POLICY_LIMIT_BYTES} bytes", path.display())]
    TooLarge {
        /// What the file is to the site.
        role: &'static str,
        /// As asked.
        path: PathBuf,
    },
    /// Who else could have written it.
    #[error("{role} cannot be trusted: {} {why}", path.display())]
    Untrusted {
        /// What the file is to the site.
        role: &'static str,
        /// The file, or a directory above it.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
        /// The command that mends it.
        remedy: String,
    },
}

impl Hint for PolicyFileError {
    fn hints(&self) -> Vec<String> {
        match self {
            PolicyFileError::Untrusted { remedy, .. } => vec![format!("as root: {remedy}")],
            PolicyFileError::Read { source, role, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                vec![format!("the {role} must be readable by everybody: ask the administrator")]
            }
            _ => Vec::new(),
        }
    }
}

impl PolicyFileError {
    fn of(self, new: &'static str) -> PolicyFileError {
        let mut error = self;
        match &mut error {
            PolicyFileError::Read { role, .. }
            | PolicyFileError::TooLarge { role, .. }
            | PolicyFileError::Untrusted { role, .. } => *role = new,
            PolicyFileError::NotText { .. } => {}
        }
        error
    }
}

/// What most files that are read here are.
const POLICY: &str = "site policy";

/// A file of the policy as it was read: its path and its text.
pub type PolicyText = (PathBuf, String);

/// Reads a policy with its drop-ins: `policy.toml`, then `policy.d/*.toml` beside it in the byte order of their names,
/// each as [`read_policy`] does. No file at all is no policy.
pub fn read_policy_files(path: &Path) -> Result<Vec<PolicyText>, PolicyFileError> {
    let mut files: Vec<PolicyText> = Vec::new();
    for path in iter::once(path.to_owned()).chain(policy_drop_ins(path, true)?) {
        // One that went away since it was listed is as one that was never there.
        files.extend(read_policy(&path)?.map(|text| (path, text)));
    }
    Ok(files)
}

/// Reads a policy that decides nothing here, whoever wrote it: a draft to be checked.
pub fn read_policy_draft(path: &Path) -> Result<Vec<PolicyText>, PolicyFileError> {
    let mut files = Vec::new();
    for path in iter::once(path.to_owned()).chain(policy_drop_ins(path, false)?) {
        let file = open_policy(&path).map_err(|source| PolicyFileError::Read {
            role: POLICY,
            path: path.clone(),
            source,
        })?;
        files.push((path.clone(), policy_text(&path, file)?));
    }
    Ok(files)
}

/// The drop-ins of a policy, sorted: of `NAME.toml` the files `NAME.d/*.toml` that are not hidden.
fn policy_drop_ins(path: &Path, must_be_trusted: bool) -> Result<Vec<PathBuf>, PolicyFileError> {
    let directory = path.with_extension("d");
    let read_error = |source| PolicyFileError::Read { role: POLICY, path: directory.clone(), source };
    let entries = match directory.read_dir() {
        Ok(entries) => entries,
        Err(error) if is_absent(&directory, &error) => return Ok(Vec::new()),
        Err(error) => return Err(read_error(error)),
    };
    if must_be_trusted {
        check_way(&directory)?;
    }
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(read_error)?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"."));
        if path.extension().is_some_and(|extension| extension == "toml") && !is_hidden {
            paths.push(path);
        }
    }
    paths.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    Ok(paths)
}

/// Whether there never was a policy. A link to what is not there, on a file system that is not mounted yet, is one that
/// cannot be read.
fn is_absent(path: &Path, error: &io::Error) -> bool {
    let leads_nowhere = |path: &Path| path.is_symlink() && !path.exists();
    error.kind() == io::ErrorKind::NotFound && !path.ancestors().take(2).any(leads_nowhere)
}

/// NONBLOCK: a fifo under the policy's name must not hang every launch.
fn open_policy(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

/// Reads one file of the site's policy, once: who owns it and who may write it is checked on the file that was opened and on every
/// directory above it. None when there is no such file: the site has no policy.
pub fn read_policy(path: &Path) -> Result<Option<String>, PolicyFileError> {
    let read_error = |source| PolicyFileError::Read { role: POLICY, path: path.to_owned(), source };
    let file = match open_policy(path) {
        Ok(file) => file,
        Err(error) if is_absent(path, &error) => return Ok(None),
        Err(error) => return Err(read_error(error)),
    };
    let metadata = file.metadata().map_err(read_error)?;
    check_trust(path, &metadata)?;
    check_way(path)?;
    policy_text(path, file).map(Some)
}

/// Reads the site's list of signers as [`read_policy`] does.
pub fn read_signers(path: &Path) -> Result<Option<String>, PolicyFileError> {
    read_policy(path).map_err(|error| error.of("list of signers"))
}

/// Refuses a path if somebody other than root could change where it leads: walks it as the kernel does, so that each
/// directory with a link on the way is checked too.
fn check_way(path: &Path) -> Result<(), PolicyFileError> {
    let read_error = |source| PolicyFileError::Read { role: POLICY, path: path.to_owned(), source };
    let names = |path: &Path| -> Vec<OsString> {
        path.components().rev().map(|part| part.as_os_str().to_owned()).collect()
    };
    let mut left = names(&std::path::absolute(path).map_err(read_error)?);
    let mut at = PathBuf::new();
    let mut links = 0;
    while let Some(name) = left.pop() {
        if name == ".." {
            at.pop();
            continue;
        }
        at.push(&name);
        let metadata = at.symlink_metadata().map_err(read_error)?;
        if !metadata.is_symlink() {
            check_trust(&at, &metadata)?;
            continue;
        }
        check_owner(&at, &metadata)?;
        links += 1;
        if links > MOST_LINKS {
            return Err(read_error(io::Error::from_raw_os_error(libc::ELOOP)));
        }
        left.extend(names(&at.read_link().map_err(read_error)?));
        at.pop();
    }
    Ok(())
}

/// As many as the kernel follows.
const MOST_LINKS: u32 = 40;

/// The text of an open file.
fn policy_text(path: &Path, file: File) -> Result<String, PolicyFileError> {
    let mut bytes = Vec::new();
    let limit = POLICY_LIMIT_BYTES.saturating_add(1);
    file.take(limit).read_to_end(&mut bytes).map_err(|source| PolicyFileError::Read {
        role: POLICY,
        path: path.to_owned(),
        source,
    })?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > POLICY_LIMIT_BYTES) {
        return Err(PolicyFileError::TooLarge { role: POLICY, path: path.to_owned() });
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        let valid = String::from_utf8_lossy(valid);
        let last = valid.rsplit('\n').next().unwrap_or_default();
        PolicyFileError::NotText {
            path: path.to_owned(),
            line: valid.matches('\n').count().saturating_add(1),
            column: last.chars().count().saturating_add(1),
        }
    })
}

fn untrusted(path: &Path, why: String, remedy: &str) -> Result<(), PolicyFileError> {
    let remedy = format!("{remedy} {}", path.display());
    Err(PolicyFileError::Untrusted { role: POLICY, path: path.to_owned(), why, remedy })
}

fn check_owner(path: &Path, metadata: &Metadata) -> Result<(), PolicyFileError> {
    match metadata.uid() {
        0 => Ok(()),
        uid => {
            let chown = if metadata.is_symlink() { "chown -h root" } else { "chown root" };
            untrusted(path, format!("belongs to uid {uid}, not to root"), chown)
        }
    }
}

/// Refuses what somebody other than root could have put there.
fn check_trust(path: &Path, metadata: &Metadata) -> Result<(), PolicyFileError> {
    if !(metadata.is_file() || metadata.is_dir()) {
        return untrusted(path, "is not a regular file".to_owned(), "ls -l");
    }
    check_owner(path, metadata)?;
    // In a sticky directory others may add names and cannot touch those of root.
    let sticky = metadata.is_dir() && metadata.mode() & 0o1000 != 0;
    if metadata.mode() & 0o022 != 0 && !sticky {
        let why = format!("can be written by others (mode {:04o})", metadata.mode() & 0o7777);
        return untrusted(path, why, "chmod go-w");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists() {
        for (list, expected) in [
            ("0-1\n", 2),
            ("0", 1),
            ("0-63,128-191", 128),
            ("0,2,4", 3),
            ("", 0),
            ("x", 0),
            ("3-1", 0),
            ("0-3,x", 4),
        ] {
            assert_eq!(count_cpus(list), expected, "{list:?}");
        }
    }

    #[test]
    fn paths_have_kinds() {
        for (path, kind) in [
            ("/", Kind::Directory),
            ("/proc", Kind::Directory),
            ("/dev/null", Kind::File),
            ("/proc/self/status", Kind::File),
            ("/nonexistent", Kind::Missing),
            ("/dev/null/x", Kind::Missing),
        ] {
            assert_eq!(path_fact(Path::new(path)).kind, kind, "{path}");
        }
        for path in ["/proc/self/root/dev//../dev/null", "/proc/thread-self/root/dev/null", "/dev/./null"] {
            assert_eq!(path_fact(Path::new(path)).resolved, Path::new("/dev/null"), "{path}");
        }
    }

    #[test]
    fn what_has_no_path_is_not_reached() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let fact = path_fact(Path::new(&format!("/proc/self/fd/{}", reader.as_raw_fd())));
        assert_eq!(fact.kind, Kind::Unreachable("it has no path".to_owned()));
        let path = std::env::temp_dir().join(format!("hpcrun-deleted-{}", std::process::id()));
        let file = File::create(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let fact = path_fact(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())));
        assert_eq!(fact.kind, Kind::Missing);
    }
}
