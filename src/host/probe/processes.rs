//! Reads which processes live in containers. Processes come and go meanwhile: what vanishes is left out.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::host::containers::{self, Container, KEEPER_NAME, Process, Root, SERVER_NAME, Server};
use crate::host::{Environment, Launcher, variable};
use crate::sys::caller;

/// The largest file of `/proc` that is read whole: an environment is at most 6 MiB.
const FILE_LIMIT_BYTES: u64 = 8 << 20;

/// A process by its number, and who it was when it was looked at.
struct Seen {
    pid: i32,
    uid: u32,
    parent: i32,
    started_ticks: u64,
    name: String,
    /// User and mount namespace, where the kernel tells: not of a process that guards itself.
    namespaces: Option<(u64, u64)>,
}

/// Whether `/proc` of this caller has a process, and whose it is.
pub fn owner_of(pid: i32) -> Option<u32> {
    Some(Path::new(&format!("/proc/{pid}")).metadata().ok()?.uid())
}

/// The environment that a process was started with; none if it has gone or is closed to the caller.
pub fn environment_of(pid: i32) -> Option<Environment> {
    read(pid, "environ").map(|environ| containers::parse_environment(&environ))
}

/// Inode of the mount namespace of a process: whether it is still the one that was listed.
pub fn mount_namespace_of(pid: i32) -> Option<u64> {
    Some(Path::new(&format!("/proc/{pid}/ns/mnt")).metadata().ok()?.ino())
}

/// When a process was started, in ticks since the node's boot: with its number, what no other process ever has.
pub(super) fn start_of(pid: i32) -> Option<u64> {
    Some(containers::parse_stat(&read(pid, "stat")?)?.1)
}

/// The working directory of a process, as it sees it.
pub fn working_directory_of(pid: i32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/cwd")).ok()
}

/// The containers on this node: those of the user `uid`, or with none those of everybody, as far as the caller may see
/// them. Oldest first.
pub fn containers(uid: Option<u32>) -> Vec<Container> {
    let seen = look(uid);
    let keepers: Vec<Keeper> = seen.iter().filter_map(Keeper::of).collect();
    let mut groups: BTreeMap<u64, Vec<&Seen>> = BTreeMap::new();
    for process in &seen {
        if let Some((_, mount)) = process.namespaces.filter(|_| !is_helper(&process.name)) {
            groups.entry(mount).or_default().push(process);
        }
    }
    let mut found: Vec<(u64, Container)> =
        groups.into_values().filter_map(|group| container(group, &keepers, &seen)).collect();
    found.sort_by_key(|(started, container)| (*started, container.mount_namespace));
    found.into_iter().map(|(_, container)| container).collect()
}

fn is_helper(name: &str) -> bool {
    [KEEPER_NAME, SERVER_NAME].contains(&name)
}

/// A keeper, whose namespaces nobody can look at.
struct Keeper {
    pid: i32,
    uid: u32,
    user_namespace: u64,
    image: PathBuf,
}

impl Keeper {
    fn of(process: &Seen) -> Option<Keeper> {
        if process.name != KEEPER_NAME {
            return None;
        }
        let (user_namespace, image) = containers::parse_keeper_title(&read(process.pid, "cmdline")?)?;
        Some(Keeper { pid: process.pid, uid: process.uid, user_namespace, image })
    }
}

/// The processes of one mount namespace, as a container if they are one, with the start of the oldest.
fn container(mut group: Vec<&Seen>, keepers: &[Keeper], seen: &[Seen]) -> Option<(u64, Container)> {
    group.sort_by_key(|process| (process.started_ticks, process.pid));
    let oldest = *group.first()?;
    let (user_namespace, mount_namespace) = oldest.namespaces?;
    let keeper =
        keepers.iter().find(|keeper| (keeper.uid, keeper.user_namespace) == (oldest.uid, user_namespace));
    // A process that ends meanwhile has no mount table any more; another one has the same.
    let root =
        group.iter().find_map(|process| read(process.pid, "mountinfo").filter(|table| !table.is_empty()));
    let environment = environment_of(oldest.pid).unwrap_or_default();
    let named = variable(&environment, "HPCRUN_IMAGE").map(PathBuf::from);
    let image = match (containers::root(&root?), keeper, named) {
        (Root::Served(image), ..) => image,
        // The image lies below the layer.
        (Root::Layered, Some(keeper), _) => keeper.image.clone(),
        // A tree that the site has mounted.
        (Root::Restricted, None, Some(image)) => image,
        _ => return None,
    };
    let processes = group.iter().map(|process| Process {
        pid: process.pid,
        command: containers::parse_command_line(&read(process.pid, "cmdline").unwrap_or_default()),
    });
    let container = Container {
        user_namespace,
        mount_namespace,
        uid: oldest.uid,
        image,
        processes: processes.collect(),
        age: age(oldest.started_ticks),
        launcher: Launcher::from_environment(&environment),
        server: keeper.and_then(|keeper| server(keeper, seen)),
    };
    Some((oldest.started_ticks, container))
}

fn server(keeper: &Keeper, seen: &[Seen]) -> Option<Server> {
    let server = seen.iter().find(|process| process.parent == keeper.pid && process.name == SERVER_NAME)?;
    let text = |name: &str| read(server.pid, name).map(|text| String::from_utf8_lossy(&text).into_owned());
    Some(Server {
        pid: server.pid,
        resident_bytes: containers::parse_kib(&text("status")?, "VmRSS")?,
        proportional_bytes: text("smaps_rollup").and_then(|rollup| containers::parse_kib(&rollup, "Pss")),
    })
}

/// Every process of `uid`, or of everybody, that the caller can see.
fn look(uid: Option<u32>) -> Vec<Seen> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let numbers = entries.flatten().filter_map(|entry| pid(&entry.file_name()));
    numbers.filter_map(|pid| look_at(pid, uid)).collect()
}

fn pid(name: &OsString) -> Option<i32> {
    name.to_str()?.parse().ok().filter(|pid| *pid > 0)
}

fn look_at(pid: i32, wanted: Option<u32>) -> Option<Seen> {
    let uid = owner_of(pid)?;
    if wanted.is_some_and(|wanted| wanted != uid) {
        return None;
    }
    let (parent, started_ticks) = containers::parse_stat(&read(pid, "stat")?)?;
    let name = String::from_utf8_lossy(&read(pid, "comm")?).trim_end().to_owned();
    let inode = |name: &str| Some(Path::new(&format!("/proc/{pid}/ns/{name}")).metadata().ok()?.ino());
    let namespaces = inode("user").zip(inode("mnt"));
    Some(Seen { pid, uid, parent, started_ticks, name, namespaces })
}

fn read(pid: i32, name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(format!("/proc/{pid}/{name}")).ok()?;
    file.take(FILE_LIMIT_BYTES).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

/// How long ago a process started.
fn age(started_ticks: u64) -> Duration {
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let uptime = uptime.split_ascii_whitespace().next().and_then(|seconds| seconds.parse::<f64>().ok());
    let started = caller::ticks(started_ticks);
    Duration::try_from_secs_f64(uptime.unwrap_or_default()).unwrap_or_default().saturating_sub(started)
}
