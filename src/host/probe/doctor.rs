//! Facts for `hpcrun doctor`, beyond what a launch needs. Nothing is changed, and no device is opened.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::{path_fact, read_line, read_number};
use crate::host::doctor::{
    CgroupFacts, DoctorFacts, GpuFacts, Guards, JobFacts, Keep, Place, Switches, UserFacts, Wanted,
};
use crate::host::{Host, Kind};
use crate::sys::lock::Locked;
use crate::sys::mount::unescape;
use crate::sys::{caller, file, known};

/// Where distributions keep the certificates of authorities.
const CERTIFICATES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/var/lib/ca-certificates/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Where drivers put their libraries.
const LIBRARIES: [&str; 5] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib64/nvidia",
    "/usr/lib",
];

/// Gathers what `hpcrun doctor` looks at.
pub fn probe_for_doctor(host: &Host) -> DoctorFacts {
    let directory = |variable: &str, otherwise: &str| {
        let named = host.variable(variable).map(PathBuf::from).filter(|path| path.is_absolute());
        named.unwrap_or_else(|| PathBuf::from(otherwise))
    };
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    DoctorFacts {
        user: user(host),
        kernel: host.kernel.clone(),
        features: host.features.clone(),
        calls: known::calls(),
        switches: switches(),
        guards: guards(),
        dev_fuse_mode: Path::new("/dev/fuse").metadata().ok().map(|metadata| metadata.mode() & 0o7777),
        fuse_registered: fuse_registered(&read_line("/proc/filesystems")),
        cpus: host.cpus,
        limits: caller::limits().ok(),
        cgroup: cgroup(),
        shm: place(Path::new("/dev/shm")),
        scratch: place(&directory("TMPDIR", "/tmp")),
        share_directory: host.share_directory.clone(),
        share_lock: host.share_directory.as_deref().and_then(Path::parent).and_then(try_lock),
        job: job(host),
        fabric_devices: fabric_devices(),
        gpu: gpu(),
        interfaces: interfaces(),
        certificates: certificates(host),
        clock: clock.map_or(0, |since| since.as_secs()),
    }
}

/// What is at `path`, which hpcrun keeps files in, and around it.
pub fn keep(name: &'static str, path: &Path, wanted: Wanted, room_bytes: u64) -> Keep {
    let fact = path_fact(path);
    let metadata = path.metadata().ok();
    Keep {
        name,
        path: path.to_owned(),
        kind: fact.kind,
        owner: metadata.as_ref().map(std::fs::Metadata::uid),
        mode: metadata.map(|metadata| metadata.mode() & 0o7777),
        place: path.ancestors().find_map(place),
        wanted,
        room_bytes,
    }
}

/// The file system under `path`; none where there is nothing, or where it cannot be asked.
pub fn place(path: &Path) -> Option<Place> {
    let fact = path_fact(path);
    let resolved = match fact.kind {
        // The mount table tells of what cannot be reached.
        Kind::Unreachable(_) => path,
        Kind::Missing => return None,
        _ => fact.resolved.as_path(),
    };
    let room = caller::file_system(resolved).ok();
    let mount = mount_of(resolved, read_line("/proc/self/mountinfo").as_bytes());
    let (kind, options) = mount.unwrap_or_default();
    Some(Place {
        path: path.to_owned(),
        kind,
        options,
        size_bytes: room.map_or(0, |room| room.size_bytes),
        free_bytes: room.map_or(0, |room| room.free_bytes),
        noexec: room.is_some_and(|room| room.noexec),
        writable: caller::may_create_in(resolved),
    })
}

/// Type and options of the mount that `path`, without links, lies in. Source: proc_pid_mountinfo(5).
fn mount_of(path: &Path, mountinfo: &[u8]) -> Option<(String, String)> {
    let mut best: Option<(usize, String, String)> = None;
    for line in mountinfo.split(|byte| *byte == b'\n') {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let Some(end) = fields.iter().position(|field| *field == b"-") else { continue };
        let (Some(at), Some(own), Some(kind), Some(superblock)) =
            (fields.get(4), fields.get(5), fields.get(end + 1), fields.get(end + 3))
        else {
            continue;
        };
        let at = PathBuf::from(OsString::from_vec(unescape(at)));
        let depth = at.components().count();
        // Of several mounts at one place, the last is the one that is seen.
        if path.starts_with(&at) && best.as_ref().is_none_or(|(deepest, ..)| depth >= *deepest) {
            let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
            best = Some((depth, text(kind), format!("{},{}", text(own), text(superblock))));
        }
    }
    best.map(|(_, kind, options)| (kind, options))
}

fn user(host: &Host) -> UserFacts {
    let home = host.user.home.as_deref();
    UserFacts {
        uid: host.user.uid,
        known: host.user.known,
        groups: host.user.groups.iter().filter(|group| **group != host.user.gid).count(),
        home: home.map(Path::to_owned),
        // The dot asks whether it can be entered.
        home_fact: home.map(|home| path_fact(&home.join("."))),
        home_place: home.and_then(place),
    }
}

fn switches() -> Switches {
    Switches {
        max_user_namespaces: read_number("/proc/sys/user/max_user_namespaces"),
        max_mount_namespaces: read_number("/proc/sys/user/max_mnt_namespaces"),
        unprivileged_userns_clone: read_number("/proc/sys/kernel/unprivileged_userns_clone"),
        apparmor_restricts_userns: read_number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
        yama_scope: read_number("/proc/sys/kernel/yama/ptrace_scope"),
        core_pattern: text("/proc/sys/kernel/core_pattern"),
    }
}

fn text(path: &str) -> Option<String> {
    // The kernel ends contexts of security modules with a zero byte.
    Some(read_line(path).trim_end_matches('\0').trim().to_owned()).filter(|text| !text.is_empty())
}

fn guards() -> Guards {
    let status = read_line("/proc/self/status");
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let selinux_enforcing = read_number("/sys/fs/selinux/enforce").map(|enforce| enforce == 1);
    Guards {
        executable: std::fs::read_link("/proc/self/exe").ok(),
        apparmor_profile: text("/proc/self/attr/apparmor/current")
            .or_else(|| text("/proc/self/attr/current").filter(|_| selinux_enforcing.is_none())),
        selinux_enforcing,
        selinux_judges_userns: Path::new("/sys/fs/selinux/class/user_namespace").exists(),
        selinux_context: text("/proc/self/attr/current").filter(|_| selinux_enforcing.is_some()),
        seccomp: field("Seccomp").and_then(|mode| mode.trim().parse().ok()),
        container: container(),
        proc_masked: proc_masked(),
        hidepid: place(Path::new("/proc")).and_then(|proc| proc.option("hidepid").map(str::to_owned)),
        uid_map: uid_map(&read_line("/proc/self/uid_map")),
    }
}

fn uid_map(text: &str) -> Vec<[u64; 3]> {
    let line = |line: &str| {
        let mut numbers = line.split_whitespace().map(|number| number.parse().ok());
        Some([numbers.next()??, numbers.next()??, numbers.next()??])
    };
    text.lines().filter_map(line).collect()
}

/// Whether a list of file systems, as `/proc/filesystems` is, has FUSE; none if it is empty.
fn fuse_registered(list: &str) -> Option<bool> {
    let mut names = list.lines().filter_map(|line| line.split_whitespace().last()).peekable();
    names.peek()?;
    Some(names.any(|name| name == "fuse"))
}

/// Whether files in `directory` can be locked; none where one cannot be made without a name.
fn try_lock(directory: &Path) -> Option<Result<(), String>> {
    use std::os::fd::AsFd as _;
    let opened = file::open_directory(directory).ok()?;
    let unnamed = file::create_unnamed(opened.as_fd(), 0o600).ok()??;
    Some(Locked::try_exclusive(unnamed).map(drop).map_err(|error| error.to_string()))
}

fn job(host: &Host) -> JobFacts {
    let is_pmi = |name: &[u8]| name.starts_with(b"PMIX_") || name.starts_with(b"PMI_");
    let tasks = ["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"].iter().find_map(|name| host.variable(name));
    JobFacts {
        launcher: host.launcher.kind,
        step: host.launcher.step.clone(),
        tasks: tasks.and_then(|tasks| tasks.to_str()?.parse().ok()),
        has_pmi: host.environment.iter().any(|(name, _)| is_pmi(name.as_bytes())),
    }
}

/// The names in a directory, sorted; none where it cannot be read.
fn names(directory: &str) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Character devices in `directory` whose names `is_wanted` takes, and whether the caller may use them.
fn devices(directory: &str, is_wanted: impl Fn(&str) -> bool) -> Vec<(String, bool)> {
    let device = |name: String| {
        let path = Path::new(directory).join(&name);
        let is_device = path.metadata().is_ok_and(|metadata| metadata.file_type().is_char_device());
        is_device.then(|| (name, caller::may_read_and_write(&path).is_ok()))
    };
    names(directory).into_iter().filter(|name| is_wanted(name)).filter_map(device).collect()
}

/// Devices of an interconnect, whose drivers lock memory.
fn fabric_devices() -> Vec<(String, bool)> {
    let mut found = devices("/dev", |name| name.starts_with("cxi") || name.starts_with("hfi1_"));
    found.extend(devices("/dev/infiniband", |name| name.starts_with("uverbs")));
    found
}

fn gpu() -> GpuFacts {
    let module = read_line("/proc/driver/nvidia/version");
    let kfd = Path::new("/dev/kfd");
    GpuFacts {
        nvidia_module: module_version(&module),
        nvidia_library: LIBRARIES.iter().find_map(|directory| library_version(&names(directory))),
        nvidia_devices: devices("/dev", |name| name.starts_with("nvidia")),
        kfd: kfd.exists().then(|| caller::may_read_and_write(kfd).is_ok()),
        render_nodes: devices("/dev/dri", |name| name.starts_with("renderD")),
    }
}

/// `535.104.05` of `NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 ...`.
fn module_version(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("NVRM version"))?;
    line.split_whitespace().find(|word| is_version(word)).map(str::to_owned)
}

/// `535.104.05` of the name `libcuda.so.535.104.05`.
fn library_version(names: &[String]) -> Option<String> {
    let versions = names.iter().filter_map(|name| name.strip_prefix("libcuda.so."));
    versions.filter(|version| is_version(version)).max().map(str::to_owned)
}

fn is_version(word: &str) -> bool {
    word.contains('.') && word.split('.').all(|part| !part.is_empty() && part.parse::<u32>().is_ok())
}

/// Interfaces that are up, but for the loopback, with their MTU.
fn interfaces() -> Vec<(String, u64)> {
    let interface = |name: String| {
        let of = |what: &str| read_line(&format!("/sys/class/net/{name}/{what}"));
        let is_up = of("operstate").trim() == "up";
        let mtu = of("mtu").trim().parse().ok();
        mtu.filter(|_| is_up && name != "lo").map(|mtu| (name.clone(), mtu))
    };
    names("/sys/class/net").into_iter().filter_map(interface).collect()
}

fn certificates(host: &Host) -> Option<PathBuf> {
    let named =
        ["SSL_CERT_FILE", "SSL_CERT_DIR"].iter().find_map(|name| host.variable(name)).map(PathBuf::from);
    named.into_iter().chain(CERTIFICATES.map(PathBuf::from)).find(|path| path.exists())
}

/// The limits of the caller's control group and of those above it, as far as they are seen here.
fn cgroup() -> CgroupFacts {
    let own = read_line("/proc/self/cgroup");
    let mounts = read_line("/proc/self/mountinfo");
    let unified =
        if mounts.contains(" - cgroup2 ") && !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            "/sys/fs/cgroup/unified"
        } else {
            "/sys/fs/cgroup"
        };
    let mut facts = CgroupFacts { version: cgroup_version(&own), ..CgroupFacts::default() };
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else { continue };
        let holds = |name: &str| controllers.is_empty() || controllers.split(',').any(|own| own == name);
        let group = Path::new(group.trim_start_matches('/'));
        if holds("memory") {
            let (root, file) = match controllers.is_empty() {
                true => (unified, "memory.max"),
                false => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            };
            facts.memory_max = facts.memory_max.into_iter().chain(narrowest(root, group, file)).min();
        }
        if holds("pids") {
            let root = if controllers.is_empty() { unified } else { "/sys/fs/cgroup/pids" };
            facts.pids_max = facts.pids_max.into_iter().chain(narrowest(root, group, "pids.max")).min();
        }
    }
    facts
}

fn cgroup_version(own: &str) -> &'static str {
    let unified = own.lines().any(|line| line.starts_with("0::"));
    let named = own.lines().any(|line| !line.starts_with("0::"));
    match (unified, named) {
        (true, true) => "v1 and v2",
        (true, false) => "v2",
        (false, true) => "v1",
        (false, false) => "",
    }
}

/// The least number in `file` of a group and of those above it.
fn narrowest(root: &str, group: &Path, file: &str) -> Option<u64> {
    // What cgroup v1 says where there is no limit: the largest number of whole pages.
    const UNLIMITED: u64 = 1 << 62;
    let limit = |group: &Path| {
        let path = Path::new(root).join(group).join(file);
        std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok().filter(|limit| *limit < UNLIMITED)
    };
    group.ancestors().filter_map(limit).min()
}

/// The container that this node is, if it is one.
fn container() -> Option<String> {
    for (path, name) in
        [("/.dockerenv", "Docker"), ("/run/.containerenv", "podman"), ("/.singularity.d", "Apptainer")]
    {
        if Path::new(path).exists() {
            return Some(name.to_owned());
        }
    }
    let cgroup = read_line("/proc/1/cgroup");
    let names = [("kubepods", "Kubernetes"), ("docker", "Docker"), ("libpod", "podman"), ("lxc", "LXC")];
    names.iter().find(|(word, _)| cgroup.contains(word)).map(|(_, name)| (*name).to_owned())
}

/// Mounts over parts of `/proc`, which a container runtime makes; they forbid a fresh proc and are harmless to hpcrun.
fn proc_masked() -> bool {
    let mounts = read_line("/proc/self/mounts");
    mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .any(|at| at.starts_with("/proc/kcore") || at.starts_with("/proc/keys"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_lies_in_the_deepest_mount_above_it() {
        let table = b"21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            30 21 0:40 / /home rw,nosuid shared:2 - nfs4 server:/home rw,vers=4.2,sec=krb5p,local_lock=none\n\
            31 30 0:41 / /home/a\\040b rw,noexec - lustre 10.0.0.1@o2ib:/x rw,flock\n\
            32 21 0:42 / /tmp rw - tmpfs tmpfs rw\n\
            33 21 0:43 / /tmp rw - xfs /dev/sdb rw\n\
            short line\n";
        for (path, kind, option) in [
            ("/home/ada", "nfs4", "sec=krb5p"),
            ("/home/a b/c", "lustre", "flock"),
            ("/home2", "ext4", "relatime"),
            ("/tmp/x", "xfs", "rw"),
        ] {
            let (found, options) = mount_of(Path::new(path), table).unwrap();
            assert_eq!(found, kind, "{path}");
            assert!(options.split(',').any(|one| one == option), "{path}: {options}");
        }
        assert_eq!(mount_of(Path::new("/x"), b""), None);
    }

    #[test]
    fn versions_of_drivers() {
        let text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\nGCC version: 12.2.0\n";
        assert_eq!(module_version(text).as_deref(), Some("570.86.15"));
        assert_eq!(module_version("GCC version: 12.2.0"), None);
        let names =
            ["libcuda.so", "libcuda.so.1", "libcuda.so.570.86.15", "libcudart.so.12.1"].map(str::to_owned);
        assert_eq!(library_version(&names).as_deref(), Some("570.86.15"));
        assert_eq!(library_version(&names[..2]), None);
    }

    #[test]
    fn small_texts_of_the_kernel() {
        for (text, version) in [
            ("0::/user.slice\n", "v2"),
            ("12:memory:/x\n1:name=systemd:/\n", "v1"),
            ("12:memory:/x\n0::/y\n", "v1 and v2"),
            ("", ""),
        ] {
            assert_eq!(cgroup_version(text), version, "{text:?}");
        }
        assert_eq!(uid_map("  0  1000  1\n 1 100000 65536\nx\n"), [[0, 1000, 1], [1, 100_000, 65536]]);
        for (list, has) in [
            ("nodev\tproc\n\tfuseblk\nnodev\tfuse\n", Some(true)),
            ("nodev\tproc\n\tfuseblk\n", Some(false)),
            ("", None),
        ] {
            assert_eq!(fuse_registered(list), has, "{list:?}");
        }
    }

    #[test]
    fn this_node_has_facts() {
        let root = place(Path::new("/")).unwrap();
        assert!(!root.kind.is_empty() && root.size_bytes > 0, "{root:?}");
        assert_eq!(place(Path::new("/nonexistent")), None);
        assert_eq!(try_lock(Path::new("/nonexistent")), None);
        let keep = keep("images", Path::new("/nonexistent/x"), Wanted::Own, 0);
        assert_eq!((keep.kind, keep.mode), (Kind::Missing, None));
    }
}
