//! What the checks look at: plain facts about a node, gathered by the probe and written by hand in tests.

use std::path::PathBuf;

use super::super::features::{Features, Kernel};
use super::super::launcher::LauncherKind;
use super::super::{Kind, PathFact};
use crate::sys::caller::Limits;

/// What the checks look at.
#[derive(Debug, Clone, Default)]
pub struct DoctorFacts {
    /// The caller.
    pub user: UserFacts,
    /// The kernel.
    pub kernel: Kernel,
    /// What it lets the caller do, as far as switches tell.
    pub features: Features,
    /// Newer system calls, and whether the kernel answers them.
    pub calls: Vec<(&'static str, bool)>,
    /// The kernel's switches.
    pub switches: Switches,
    /// What guards the caller.
    pub guards: Guards,
    /// Permission bits of `/dev/fuse`.
    pub dev_fuse_mode: Option<u32>,
    /// Whether the kernel lists FUSE among its file systems; none where that cannot be read.
    pub fuse_registered: Option<bool>,
    /// Processors online.
    pub cpus: usize,
    /// The caller's limits.
    pub limits: Option<Limits>,
    /// The caller's control group.
    pub cgroup: CgroupFacts,
    /// `/dev/shm`.
    pub shm: Option<Place>,
    /// `/tmp`, or what `TMPDIR` names.
    pub scratch: Option<Place>,
    /// Where registry files of shared namespaces go.
    pub share_directory: Option<PathBuf>,
    /// Whether a file there can be locked, else the kernel's refusal; none where it was not tried.
    pub share_lock: Option<Result<(), String>>,
    /// The job that the caller is in.
    pub job: JobFacts,
    /// Devices of an interconnect, by name, and whether the caller may use them.
    pub fabric_devices: Vec<(String, bool)>,
    /// Graphics processors and their drivers.
    pub gpu: GpuFacts,
    /// Network interfaces that are up, without the loopback, with their MTU in bytes.
    pub interfaces: Vec<(String, u64)>,
    /// The certificates that registries are checked with.
    pub certificates: Option<PathBuf>,
    /// Seconds since 1970 by the node's clock.
    pub clock: u64,
}

/// The caller.
#[derive(Debug, Clone, Default)]
pub struct UserFacts {
    /// The user id.
    pub uid: u32,
    /// Whether the user database knows it.
    pub known: bool,
    /// How many supplementary groups there are.
    pub groups: usize,
    /// The home directory.
    pub home: Option<PathBuf>,
    /// What is there.
    pub home_fact: Option<PathFact>,
    /// The file system it lies on.
    pub home_place: Option<Place>,
}

/// Switches of the kernel under `/proc/sys`; none where this kernel lacks one.
#[derive(Debug, Clone, Default)]
pub struct Switches {
    /// `user.max_user_namespaces`.
    pub max_user_namespaces: Option<u64>,
    /// `user.max_mnt_namespaces`.
    pub max_mount_namespaces: Option<u64>,
    /// `kernel.unprivileged_userns_clone` of Debian's kernels.
    pub unprivileged_userns_clone: Option<u64>,
    /// `kernel.apparmor_restrict_unprivileged_userns` of Ubuntu's kernels.
    pub apparmor_restricts_userns: Option<u64>,
    /// Yama's `kernel.yama.ptrace_scope`.
    pub yama_scope: Option<u64>,
    /// `kernel.core_pattern`.
    pub core_pattern: Option<String>,
}

/// What guards the caller beyond user and group ids.
#[derive(Debug, Clone, Default)]
pub struct Guards {
    /// The running hpcrun.
    pub executable: Option<PathBuf>,
    /// The caller's AppArmor profile.
    pub apparmor_profile: Option<String>,
    /// Whether SELinux enforces; none without SELinux.
    pub selinux_enforcing: Option<bool>,
    /// Whether its kernel part knows user namespaces (RHEL 9), so that a policy may forbid them.
    pub selinux_judges_userns: bool,
    /// The caller's SELinux context.
    pub selinux_context: Option<String>,
    /// The caller's seccomp mode: 0 none, 1 strict, 2 filter.
    pub seccomp: Option<u32>,
    /// The container runtime that this node runs in.
    pub container: Option<String>,
    /// Whether parts of `/proc` are covered, as container runtimes do.
    pub proc_masked: bool,
    /// The value of `hidepid=` that `/proc` is mounted with; none without.
    pub hidepid: Option<String>,
    /// `/proc/self/uid_map`, its lines' numbers; the initial user namespace maps all ids to themselves.
    pub uid_map: Vec<[u64; 3]>,
}

/// The caller's control group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CgroupFacts {
    /// `v1`, `v2`, or `v1 and v2`; empty where there are none.
    pub version: &'static str,
    /// The narrowest memory limit on the way to the root, bytes.
    pub memory_max: Option<u64>,
    /// The narrowest limit of processes and threads.
    pub pids_max: Option<u64>,
}

/// The job that the caller is in.
#[derive(Debug, Clone, Default)]
pub struct JobFacts {
    /// What launched this process.
    pub launcher: LauncherKind,
    /// The step, as the launcher calls it.
    pub step: Option<String>,
    /// How many tasks the step has, where the launcher says.
    pub tasks: Option<u32>,
    /// Whether the environment names a PMI or PMIx server.
    pub has_pmi: bool,
}

/// Graphics processors and their drivers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GpuFacts {
    /// The version of the loaded NVIDIA kernel module.
    pub nvidia_module: Option<String>,
    /// The version in the name of the installed `libcuda.so`.
    pub nvidia_library: Option<String>,
    /// `/dev/nvidia*` as (name, whether the caller may use it).
    pub nvidia_devices: Vec<(String, bool)>,
    /// Whether the caller may use AMD's `/dev/kfd`; none where it is missing.
    pub kfd: Option<bool>,
    /// `/dev/dri/renderD*` as (name, whether the caller may use it).
    pub render_nodes: Vec<(String, bool)>,
}

/// A directory, and the file system that it lies on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// The directory.
    pub path: PathBuf,
    /// The file system's type, `nfs4`; empty if unknown.
    pub kind: String,
    /// The options of its mount and of its superblock, joined by commas.
    pub options: String,
    /// All bytes.
    pub size_bytes: u64,
    /// Bytes that the caller may use.
    pub free_bytes: u64,
    /// Whether programs on it may not be run.
    pub noexec: bool,
    /// Whether the caller may make files in it.
    pub writable: bool,
}

impl Place {
    /// Whether other nodes see the same files.
    pub fn is_shared(&self) -> bool {
        const SHARED: [&str; 13] = [
            "nfs",
            "nfs4",
            "lustre",
            "gpfs",
            "beegfs",
            "ceph",
            "fuse.ceph",
            "afs",
            "cifs",
            "smb3",
            "orangefs",
            "panfs",
            "wekafs",
        ];
        SHARED.contains(&self.kind.as_str())
    }

    /// Whether its mount or its superblock has the option, as `name` or `name=...`.
    pub fn has_option(&self, name: &str) -> bool {
        self.option(name).is_some()
    }

    /// The value of an option; empty where it has none.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.split(',').find_map(|option| {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            (key == name).then_some(value)
        })
    }
}

/// A directory that hpcrun keeps files in, as far as a check asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keep {
    /// What it is for: `user's images`.
    pub name: &'static str,
    /// Where it is.
    pub path: PathBuf,
    /// What is there.
    pub kind: Kind,
    /// Its owner.
    pub owner: Option<u32>,
    /// Its permission bits.
    pub mode: Option<u32>,
    /// The file system it lies on, or would lie on.
    pub place: Option<Place>,
    /// What it must be good for.
    pub wanted: Wanted,
    /// Bytes that should be free there.
    pub room_bytes: u64,
}

/// What a directory must be good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The caller's own: made when needed, written by the caller.
    Own,
    /// The site's: there, and written by nobody but its owner.
    Site,
    /// The node's: there, on a local file system, and writable for every user.
    Node,
}
