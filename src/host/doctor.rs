//! What `hpcrun doctor` says: each prerequisite and each known trap as a check with its remedy. Pure.
//!
//! The switches explain; they do not prove. The last word is a real launch, which the command line does and appends
//! as one more [`Check`].

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::features::{Feature, Features, Kernel};
use super::launcher::LauncherKind;
use super::{Kind, PathFact};
use crate::sys::caller::{Limit, Limits};

/// What the checks look at.
#[derive(Debug, Clone, Default)]
pub struct DoctorFacts {
    /// The caller's user id.
    pub uid: u32,
    /// Whether the user database knows the caller.
    pub known_user: bool,
    /// The caller's home directory.
    pub home: Option<PathBuf>,
    /// What is there.
    pub home_fact: Option<PathFact>,
    /// The kernel.
    pub kernel: Kernel,
    /// What it lets the caller do, as far as switches tell.
    pub features: Features,
    /// Processors online.
    pub cpus: usize,
    /// What launched this process.
    pub launcher: LauncherKind,
    /// The sysctl `user.max_user_namespaces`.
    pub max_user_namespaces: Option<u64>,
    /// The sysctl `user.max_mnt_namespaces`.
    pub max_mount_namespaces: Option<u64>,
    /// The sysctl `kernel.unprivileged_userns_clone` of Debian's kernels.
    pub unprivileged_userns_clone: Option<u64>,
    /// The sysctl `kernel.apparmor_restrict_unprivileged_userns` of Ubuntu's kernels.
    pub apparmor_restricts_userns: Option<u64>,
    /// The caller's AppArmor profile.
    pub apparmor_profile: Option<String>,
    /// Whether SELinux enforces; none without SELinux.
    pub selinux_enforcing: Option<bool>,
    /// The caller's seccomp mode: 0 none, 1 strict, 2 filter.
    pub seccomp: Option<u32>,
    /// The caller's umask.
    pub umask: Option<u32>,
    /// Permission bits of `/dev/fuse`.
    pub dev_fuse_mode: Option<u32>,
    /// The caller's limits.
    pub limits: Option<Limits>,
    /// Yama's `ptrace_scope`.
    pub yama_scope: Option<u64>,
    /// `/dev/shm`.
    pub shm: Option<ShmFacts>,
    /// Where registry files of shared namespaces go.
    pub share_directory: Option<PathBuf>,
    /// Devices of an interconnect, by name.
    pub fabric_devices: Vec<String>,
    /// The container runtime that this node runs in.
    pub container: Option<String>,
    /// Whether parts of `/proc` are covered, as container runtimes do.
    pub proc_masked: bool,
}

/// The shared memory file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShmFacts {
    /// All bytes.
    pub size_bytes: u64,
    /// Free bytes.
    pub free_bytes: u64,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// As it should be.
    Ok,
    /// Something to mend.
    No,
    /// Says nothing on this node.
    NotApplicable,
}

impl Status {
    /// The word of three letters.
    pub fn word(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::No => "no",
            Status::NotApplicable => "n/a",
        }
    }
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was looked at, in a few words.
    pub name: &'static str,
    /// How it ended.
    pub status: Status,
    /// What was found.
    pub detail: String,
    /// What to do, one step a line; empty when all is well.
    pub remedy: Vec<String>,
}

impl Check {
    /// All is well.
    pub fn ok(name: &'static str, detail: impl Into<String>) -> Check {
        Check { name, status: Status::Ok, detail: detail.into(), remedy: Vec::new() }
    }

    /// Something to mend, and how.
    pub fn no(name: &'static str, detail: impl Into<String>, remedy: &[&str]) -> Check {
        let remedy = remedy.iter().map(|line| (*line).to_owned()).collect();
        Check { name, status: Status::No, detail: detail.into(), remedy }
    }

    /// Nothing to check here.
    pub fn not_applicable(name: &'static str, detail: impl Into<String>) -> Check {
        Check { name, status: Status::NotApplicable, detail: detail.into(), remedy: Vec::new() }
    }
}

/// Everything that the facts tell, in the order of a launch.
pub fn checks(facts: &DoctorFacts) -> Vec<Check> {
    vec![
        kernel(facts),
        user_namespaces(facts),
        mount_namespaces(facts),
        apparmor(facts),
        selinux(facts),
        container(facts),
        dev_fuse(facts),
        server_restart(facts),
        user(facts),
        home(facts),
        open_files(facts),
        processes(facts),
        locked_memory(facts),
        shared_memory(facts),
        share_directory(facts),
        ptrace(facts),
        launcher(facts),
    ]
}

/// What became of the site's policy file; its reader and its parser are elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyOutcome {
    /// There is none.
    Absent,
    /// It was read and decides.
    Valid,
    /// It stops every launch, and why.
    Broken(String),
}

/// The check of the site's policy, which the command line adds once it has tried to read it.
pub fn site_policy(file: &Path, outcome: &PolicyOutcome) -> Check {
    let name = "site policy";
    let file = file.display();
    match outcome {
        PolicyOutcome::Absent => Check::not_applicable(name, format!("no {file}: hpcrun's defaults apply")),
        PolicyOutcome::Valid => Check::ok(name, file.to_string()),
        PolicyOutcome::Broken(why) => {
            Check::no(name, why, &["as root: mend the file; every launch is refused until then"])
        }
    }
}

/// One line a check, remedies indented below it.
pub fn render_text(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let _ = writeln!(text, "{:<3}  {:<width$}  {}", check.status.word(), check.name, check.detail);
        for line in &check.remedy {
            let _ = writeln!(text, "     {:<width$}  -> {line}", "");
        }
    }
    text
}

/// The same as a JSON array of `{name, status, detail, remedy}`.
pub fn render_json(checks: &[Check]) -> serde_json::Value {
    let check = |check: &Check| {
        serde_json::json!({
            "name": check.name,
            "status": check.status.word(),
            "detail": check.detail,
            "remedy": check.remedy,
        })
    };
    checks.iter().map(check).collect()
}

fn kernel(facts: &DoctorFacts) -> Check {
    let detail = facts.kernel.to_string();
    if facts.kernel.version >= (4, 18) {
        return Check::ok("kernel", detail);
    }
    Check::no(
        "kernel",
        format!("{detail}: user namespaces cannot mount FUSE before 4.18"),
        &["upgrade to RHEL 8, SLES 15 SP1, Debian 10, Ubuntu 20.04 or newer"],
    )
}

fn user_namespaces(facts: &DoctorFacts) -> Check {
    let name = "user namespaces";
    match &facts.features.userns {
        Feature::Usable => {
            let limit = facts.max_user_namespaces.map_or_else(String::new, |max| format!(" (at most {max})"));
            Check::ok(name, format!("allowed{limit}"))
        }
        Feature::Absent(why) => Check::no(name, why, &["use a kernel built with CONFIG_USER_NS=y"]),
        Feature::Denied(why) if facts.max_user_namespaces == Some(0) => Check::no(
            name,
            why,
            &[
                "as root: echo user.max_user_namespaces=15000 > /etc/sysctl.d/90-hpcrun.conf",
                "as root: sysctl --system",
            ],
        ),
        Feature::Denied(why) => Check::no(
            name,
            why,
            &[
                "as root: echo kernel.unprivileged_userns_clone=1 > /etc/sysctl.d/90-hpcrun.conf",
                "as root: sysctl --system",
            ],
        ),
    }
}

fn mount_namespaces(facts: &DoctorFacts) -> Check {
    let name = "mount namespaces";
    match facts.max_mount_namespaces {
        Some(0) => Check::no(
            name,
            "the sysctl user.max_mnt_namespaces is 0",
            &["as root: sysctl user.max_mnt_namespaces=15000"],
        ),
        Some(max) => Check::ok(name, format!("allowed (at most {max})")),
        None => Check::not_applicable(name, "no sysctl user.max_mnt_namespaces"),
    }
}

fn apparmor(facts: &DoctorFacts) -> Check {
    let name = "AppArmor";
    let unconfined =
        facts.apparmor_profile.as_deref().is_none_or(|profile| profile.starts_with("unconfined"));
    match facts.apparmor_restricts_userns {
        Some(1) if unconfined && facts.uid != 0 => Check::no(
            name,
            "kernel.apparmor_restrict_unprivileged_userns is 1: mounting in a user namespace needs a profile",
            &[
                "as root, in /etc/apparmor.d/hpcrun, with the path of the installed hpcrun:",
                "    abi <abi/4.0>,",
                "    profile hpcrun /usr/bin/hpcrun flags=(unconfined) { userns, }",
                "as root: apparmor_parser -r /etc/apparmor.d/hpcrun",
                "or, for all programs, as root: sysctl kernel.apparmor_restrict_unprivileged_userns=0",
            ],
        ),
        Some(_) => {
            Check::ok(name, facts.apparmor_profile.as_deref().unwrap_or("does not restrict user namespaces"))
        }
        None => Check::not_applicable(name, "does not restrict user namespaces"),
    }
}

fn selinux(facts: &DoctorFacts) -> Check {
    match facts.selinux_enforcing {
        // Whether its policy lets this user's domain make user namespaces, only the launch shows.
        Some(true) => {
            Check::ok("SELinux", "enforcing; a refusal would stand in 'ausearch -m avc -ts recent'")
        }
        Some(false) => Check::ok("SELinux", "permissive"),
        None => Check::not_applicable("SELinux", "not on this node"),
    }
}

fn container(facts: &DoctorFacts) -> Check {
    let name = "container";
    let filtered = facts.seccomp == Some(2);
    match &facts.container {
        Some(runtime) if filtered && facts.uid != 0 => Check::ok(
            name,
            format!("inside {runtime} with a seccomp filter, which may refuse unshare and mount"),
        ),
        Some(runtime) => Check::ok(name, format!("inside {runtime}")),
        None if facts.proc_masked => Check::ok(name, "parts of /proc are covered: inside some container"),
        None => Check::not_applicable(name, "not inside one"),
    }
}

fn dev_fuse(facts: &DoctorFacts) -> Check {
    let name = "/dev/fuse";
    let inside = facts.container.is_some();
    match &facts.features.fuse {
        Feature::Usable => Check::ok(name, "can be opened"),
        Feature::Absent(why) if why.contains("/dev/fuse") && inside => {
            Check::no(name, why, &["start the container with --device /dev/fuse"])
        }
        Feature::Absent(why) if why.contains("/dev/fuse") => Check::no(
            name,
            why,
            &["as root: modprobe fuse", "as root: echo fuse > /etc/modules-load.d/fuse.conf"],
        ),
        Feature::Absent(why) => Check::no(name, why, &["use a newer kernel"]),
        Feature::Denied(why) => {
            let mode = facts.dev_fuse_mode.map_or_else(String::new, |mode| format!(" (mode {mode:04o})"));
            Check::no(
                name,
                format!("{why}{mode}"),
                &[
                    "as root: chmod 0666 /dev/fuse",
                    "as root: echo 'KERNEL==\"fuse\", MODE=\"0666\"' > /etc/udev/rules.d/90-fuse.rules",
                ],
            )
        }
    }
}

fn server_restart(facts: &DoctorFacts) -> Check {
    let name = "server restart";
    match facts.features.fuse_resend.why_not() {
        None => Check::ok(name, "a job does not notice that its image server was killed"),
        Some(why) => Check::not_applicable(
            name,
            format!("reads in flight fail when the image server is killed: {why}"),
        ),
    }
}

fn user(facts: &DoctorFacts) -> Check {
    if facts.known_user {
        return Check::ok("user", format!("uid {} is in the user database", facts.uid));
    }
    Check::no(
        "user",
        format!("uid {} is not in the user database: name and home come from the environment", facts.uid),
        &["check 'getent passwd' for your id, nsswitch.conf and sssd on this node"],
    )
}

fn home(facts: &DoctorFacts) -> Check {
    let name = "home directory";
    let Some(home) = &facts.home else {
        return Check::no(name, "unknown", &["set HOME, or use --no-home"]);
    };
    let path = home.display();
    match facts.home_fact.as_ref().map(|fact| &fact.kind) {
        Some(Kind::Directory) => Check::ok(name, path.to_string()),
        Some(Kind::File) => Check::no(name, format!("{path} is not a directory"), &["use --no-home"]),
        Some(Kind::Unreachable(why)) => {
            Check::no(name, format!("{path}: {why}"), &["check its permissions, or use --no-home"])
        }
        Some(Kind::Missing) | None => Check::no(
            name,
            format!("{path} does not exist on this node"),
            &["mount it here, or use --no-home; launches leave it out"],
        ),
    }
}

fn open_files(facts: &DoctorFacts) -> Check {
    let name = "open files";
    let Some(limits) = facts.limits else {
        return Check::not_applicable(name, "unknown");
    };
    let limit = shown(limits.open_files);
    if limits.open_files.soft < 1024 {
        return Check::no(name, limit, &["ulimit -n 4096, or LimitNOFILE= of the job's service"]);
    }
    Check::ok(name, limit)
}

fn processes(facts: &DoctorFacts) -> Check {
    let name = "processes";
    let Some(limits) = facts.limits else {
        return Check::not_applicable(name, "unknown");
    };
    let limit = shown(limits.processes);
    if limits.processes.soft < 256 && facts.uid != 0 {
        return Check::no(
            name,
            limit,
            &["ulimit -u 4096: an image server has a few threads, and a job its own"],
        );
    }
    Check::ok(name, limit)
}

fn locked_memory(facts: &DoctorFacts) -> Check {
    let name = "locked memory";
    let Some(limits) = facts.limits else {
        return Check::not_applicable(name, "unknown");
    };
    let limit = limits.locked_bytes;
    let detail = if limit.soft == u64::MAX { "unlimited".to_owned() } else { mebibytes(limit.soft) };
    if facts.fabric_devices.is_empty() {
        return Check::not_applicable(name, format!("{detail}; no interconnect device here"));
    }
    if limit.soft < 64 << 20 {
        let detail = format!("{detail}, and {} needs more", facts.fabric_devices.join(", "));
        return Check::no(
            name,
            detail,
            &[
                "ulimit -l unlimited; for Slurm: LimitMEMLOCK=infinity in slurmd.service, PropagateResourceLimitsExcept=MEMLOCK",
            ],
        );
    }
    Check::ok(name, detail)
}

fn shared_memory(facts: &DoctorFacts) -> Check {
    let name = "/dev/shm";
    let Some(shm) = facts.shm else {
        return Check::no(
            name,
            "missing: MPI ranks of a node talk through it",
            &["as root: mount -t tmpfs tmpfs /dev/shm"],
        );
    };
    let detail = format!("{} free of {}", mebibytes(shm.free_bytes), mebibytes(shm.size_bytes));
    let wanted = u64::try_from(facts.cpus).unwrap_or(1).saturating_mul(64 << 20);
    // What MPI libraries ask for by default, a rank on every processor.
    if shm.free_bytes < wanted.min(1 << 30) {
        return Check::no(
            name,
            detail,
            &["as root: mount -o remount,size=50% /dev/shm; in a container: --shm-size=1g"],
        );
    }
    Check::ok(name, detail)
}

fn share_directory(facts: &DoctorFacts) -> Check {
    let name = "rank sharing";
    match &facts.share_directory {
        Some(directory) => Check::ok(name, format!("registry in {}", directory.display())),
        None => Check::no(
            name,
            "no directory for the registry: each rank gets namespaces of its own",
            &["make /dev/shm or /tmp writable"],
        ),
    }
}

fn ptrace(facts: &DoctorFacts) -> Check {
    let name = "cross-memory attach";
    match facts.yama_scope {
        None | Some(0) => Check::ok(name, "allowed between a user's processes"),
        Some(1) => Check::ok(name, "Yama ptrace_scope 1: MPI libraries ask for it themselves"),
        Some(scope) => Check::no(
            name,
            format!("Yama ptrace_scope is {scope}: MPI copies large messages twice, as it does outside"),
            &["as root: sysctl kernel.yama.ptrace_scope=0"],
        ),
    }
}

fn launcher(facts: &DoctorFacts) -> Check {
    match facts.launcher {
        LauncherKind::None => Check::not_applicable("launcher", "not inside a job"),
        kind => Check::ok("launcher", kind.name()),
    }
}

fn shown(limit: Limit) -> String {
    let number = |value: u64| if value == u64::MAX { "unlimited".to_owned() } else { value.to_string() };
    format!("{} (at most {})", number(limit.soft), number(limit.hard))
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::features::{DevFuse, Observed};

    /// A node on which everything is as it should be.
    fn good() -> DoctorFacts {
        let limit = Limit { soft: 1 << 20, hard: u64::MAX };
        DoctorFacts {
            uid: 1000,
            known_user: true,
            home: Some("/home/ada".into()),
            home_fact: Some(PathFact { kind: Kind::Directory, resolved: "/home/ada".into() }),
            kernel: Kernel::parse("6.12.0"),
            cpus: 8,
            max_user_namespaces: Some(1000),
            max_mount_namespaces: Some(1000),
            limits: Some(Limits {
                open_files: limit,
                processes: limit,
                locked_bytes: Limit { soft: 8 << 20, hard: 8 << 20 },
            }),
            shm: Some(ShmFacts { size_bytes: 8 << 30, free_bytes: 8 << 30 }),
            share_directory: Some("/dev/shm/hpcrun-1000".into()),
            ..DoctorFacts::default()
        }
    }

    #[track_caller]
    fn check(facts: &DoctorFacts, name: &str, status: Status, words: &str) {
        let checks = checks(facts);
        let check = checks.iter().find(|check| check.name == name).expect("a check of that name");
        assert_eq!(check.status, status, "{check:?}");
        let text = format!("{} {}", check.detail, check.remedy.join(" "));
        assert!(text.contains(words), "{words:?} in {text:?}");
        assert_eq!(check.remedy.is_empty(), check.status != Status::No, "{check:?}");
    }

    #[test]
    fn a_good_node_has_nothing_to_mend() {
        for check in checks(&good()) {
            assert_ne!(check.status, Status::No, "{check:?}");
        }
    }

    #[test]
    fn every_trap_is_named_with_its_remedy() {
        let no = Status::No;
        check(&DoctorFacts { kernel: Kernel::parse("3.10.0"), ..good() }, "kernel", no, "4.18");
        check(&DoctorFacts { max_mount_namespaces: Some(0), ..good() }, "mount namespaces", no, "max_mnt");
        check(&DoctorFacts { apparmor_restricts_userns: Some(1), ..good() }, "AppArmor", no, "userns,");
        check(&DoctorFacts { known_user: false, ..good() }, "user", no, "getent");
        check(&DoctorFacts { home: None, ..good() }, "home directory", no, "--no-home");
        for (kind, words) in [
            (Kind::File, "not a directory"),
            (Kind::Missing, "does not exist"),
            (Kind::Unreachable("Permission denied".to_owned()), "Permission denied"),
        ] {
            let home_fact = Some(PathFact { kind, resolved: "/home/ada".into() });
            check(&DoctorFacts { home_fact, ..good() }, "home directory", no, words);
        }
        check(&DoctorFacts { shm: None, ..good() }, "/dev/shm", no, "tmpfs");
        let small = Some(ShmFacts { size_bytes: 64 << 20, free_bytes: 64 << 20 });
        check(&DoctorFacts { shm: small, ..good() }, "/dev/shm", no, "--shm-size");
        check(&DoctorFacts { share_directory: None, ..good() }, "rank sharing", no, "/dev/shm");
        check(&DoctorFacts { yama_scope: Some(3), ..good() }, "cross-memory attach", no, "ptrace_scope");
        let fabric_devices = vec!["cxi0".to_owned()];
        check(&DoctorFacts { fabric_devices, ..good() }, "locked memory", no, "cxi0");
    }

    #[test]
    fn tight_limits() {
        let mut facts = good();
        let tight = Limit { soft: 64, hard: 64 };
        let limits = facts.limits.unwrap();
        facts.limits = Some(Limits { open_files: tight, processes: tight, ..limits });
        check(&facts, "open files", Status::No, "64 (at most 64)");
        check(&facts, "processes", Status::No, "64 (at most 64)");
    }

    #[test]
    fn features_that_switches_forbid() {
        let observed = Observed { has_user_namespaces: true, ..Observed::default() };
        let with = |observed: Observed| {
            let features = Features::derive(&Kernel::parse("6.12.0"), &observed);
            let max_user_namespaces = observed.max_user_namespaces;
            DoctorFacts { features, max_user_namespaces, ..good() }
        };
        let none = with(Observed { max_user_namespaces: Some(0), ..observed.clone() });
        check(&none, "user namespaces", Status::No, "user.max_user_namespaces=15000");
        let clone = with(Observed { unprivileged_userns_clone: Some(0), ..observed.clone() });
        check(&clone, "user namespaces", Status::No, "unprivileged_userns_clone=1");
        check(&with(Observed::default()), "user namespaces", Status::No, "CONFIG_USER_NS");
        let missing = with(Observed { dev_fuse: DevFuse::Missing, ..observed.clone() });
        check(&missing, "/dev/fuse", Status::No, "modprobe fuse");
        let inside = DoctorFacts { container: Some("Docker".to_owned()), ..missing };
        check(&inside, "/dev/fuse", Status::No, "--device /dev/fuse");
        check(&inside, "container", Status::Ok, "inside Docker");
        let refused = DevFuse::Refused("access(\"/dev/fuse\", R|W): Permission denied (EACCES)".to_owned());
        let refused =
            DoctorFacts { dev_fuse_mode: Some(0o600), ..with(Observed { dev_fuse: refused, ..observed }) };
        check(&refused, "/dev/fuse", Status::No, "(mode 0600)");
        check(&refused, "/dev/fuse", Status::No, "chmod 0666");
    }

    #[test]
    fn what_says_nothing_here() {
        check(&good(), "SELinux", Status::NotApplicable, "not on this node");
        check(&good(), "AppArmor", Status::NotApplicable, "does not restrict");
        check(&good(), "container", Status::NotApplicable, "not inside one");
        check(&good(), "launcher", Status::NotApplicable, "not inside a job");
        check(&good(), "locked memory", Status::NotApplicable, "8 MiB");
        check(&DoctorFacts { selinux_enforcing: Some(true), ..good() }, "SELinux", Status::Ok, "ausearch");
        check(&DoctorFacts { launcher: LauncherKind::Slurm, ..good() }, "launcher", Status::Ok, "Slurm");
    }

    #[test]
    fn the_sites_policy() {
        let file = Path::new("/etc/hpcrun/policy.toml");
        assert_eq!(site_policy(file, &PolicyOutcome::Absent).status, Status::NotApplicable);
        assert_eq!(site_policy(file, &PolicyOutcome::Valid).status, Status::Ok);
        let broken = site_policy(file, &PolicyOutcome::Broken("line 3".to_owned()));
        assert_eq!((broken.status, broken.detail.as_str()), (Status::No, "line 3"));
    }

    #[test]
    fn text_and_json_say_the_same() {
        let checks = [
            Check::ok("kernel", "Linux 6.12.0"),
            Check::no("/dev/fuse", "there is no /dev/fuse", &["as root: modprobe fuse"]),
            Check::not_applicable("SELinux", "not on this node"),
        ];
        let text = "\
ok   kernel     Linux 6.12.0
no   /dev/fuse  there is no /dev/fuse
                -> as root: modprobe fuse
n/a  SELinux    not on this node
";
        assert_eq!(render_text(&checks), text);
        let json = serde_json::json!([
            {"name": "kernel", "status": "ok", "detail": "Linux 6.12.0", "remedy": []},
            {"name": "/dev/fuse", "status": "no", "detail": "there is no /dev/fuse", "remedy": ["as root: modprobe fuse"]},
            {"name": "SELinux", "status": "n/a", "detail": "not on this node", "remedy": []},
        ]);
        assert_eq!(render_json(&checks), json);
    }
}
