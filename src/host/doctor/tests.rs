//! Each trap: made-up facts, the verdict, and the remedy.

use std::path::Path;

use super::site::{PolicyOutcome, keep, policy};
use super::*;
use crate::host::features::{DevFuse, Features, Kernel, Observed};
use crate::host::launcher::LauncherKind;
use crate::host::{Kind, PathFact};
use crate::sys::caller::{Limit, Limits};

fn place(path: &str, kind: &str, options: &str) -> Place {
    Place {
        path: path.into(),
        kind: kind.to_owned(),
        options: options.to_owned(),
        size_bytes: 8 << 30,
        free_bytes: 8 << 30,
        noexec: false,
        writable: true,
    }
}

fn limits() -> Limits {
    let limit = Limit { soft: 1 << 20, hard: u64::MAX };
    let unlimited = Limit { soft: u64::MAX, hard: u64::MAX };
    Limits {
        open_files: limit,
        processes: limit,
        locked_bytes: Limit { soft: 8 << 20, hard: 8 << 20 },
        address_bytes: unlimited,
        file_bytes: unlimited,
    }
}

/// A node on which everything is as it should be.
fn good() -> DoctorFacts {
    DoctorFacts {
        user: UserFacts {
            uid: 1000,
            known: true,
            groups: 3,
            home: Some("/home/ada".into()),
            home_fact: Some(PathFact { kind: Kind::Directory, resolved: "/home/ada".into() }),
            home_place: Some(place("/home/ada", "nfs4", "rw,local_lock=none")),
        },
        kernel: Kernel::parse("6.12.0"),
        calls: vec![("openat2", true), ("open_tree", true)],
        switches: Switches {
            max_user_namespaces: Some(1000),
            max_mount_namespaces: Some(1000),
            core_pattern: Some("core".to_owned()),
            ..Switches::default()
        },
        guards: Guards { seccomp: Some(0), uid_map: vec![[0, 0, 4_294_967_295]], ..Guards::default() },
        fuse_registered: Some(true),
        cpus: 8,
        limits: Some(limits()),
        cgroup: CgroupFacts { version: "v2", memory_max: None, pids_max: None },
        shm: Some(place("/dev/shm", "tmpfs", "rw")),
        scratch: Some(place("/tmp", "ext4", "rw")),
        share_directory: Some("/dev/shm/hpcrun-1000".into()),
        share_lock: Some(Ok(())),
        interfaces: vec![("eth0".to_owned(), 1500), ("ib0".to_owned(), 2044)],
        certificates: Some("/etc/ssl/certs/ca-certificates.crt".into()),
        clock: 1_800_000_000,
        ..DoctorFacts::default()
    }
}

fn with(change: impl FnOnce(&mut DoctorFacts)) -> DoctorFacts {
    let mut facts = good();
    change(&mut facts);
    facts
}

fn observed(observed: Observed) -> DoctorFacts {
    with(|facts| {
        facts.features = Features::derive(&Kernel::parse("6.12.0"), &observed);
        facts.switches.max_user_namespaces = observed.max_user_namespaces;
    })
}

#[track_caller]
fn check(facts: &DoctorFacts, name: &str, status: Status, words: &str) {
    let checks = checks(facts);
    let check = checks.iter().find(|check| check.name == name).expect("a check of that name");
    judge(check, status, words);
}

#[track_caller]
fn judge(check: &Check, status: Status, words: &str) {
    assert_eq!(check.status, status, "{check:?}");
    let text = format!("{} {}", check.detail, check.remedy.join(" "));
    assert!(text.contains(words), "{words:?} in {text:?}");
    assert_eq!(check.remedy.is_empty(), !matches!(check.status, Status::No | Status::Warn), "{check:?}");
}

#[test]
fn a_good_node_has_nothing_to_mend() {
    for check in checks(&good()) {
        assert!(!matches!(check.status, Status::No | Status::Warn), "{check:?}");
    }
}

#[test]
fn nothing_known_is_nothing_wrong_with_the_kernel() {
    for check in checks(&DoctorFacts { kernel: Kernel::parse("6.12.0"), ..DoctorFacts::default() }) {
        assert_ne!(check.status, Status::No, "{check:?}");
    }
}

#[test]
fn names_are_told_apart() {
    let mut names: Vec<_> = checks(&good()).iter().map(|check| check.name).collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
}

#[test]
fn the_kernel_and_its_namespaces() {
    use Status::{No, NotApplicable, Ok as Fine, Warn};
    check(&with(|f| f.kernel = Kernel::parse("3.10.0")), "kernel", No, "4.18");
    check(&with(|f| f.switches.max_user_namespaces = Some(8)), "user namespaces", Warn, "ENOSPC");
    check(&with(|f| f.switches.max_mount_namespaces = Some(0)), "mount namespaces", No, "max_mnt");
    check(&with(|f| f.switches.max_mount_namespaces = None), "mount namespaces", NotApplicable, "no sysctl");
    let exists = Observed { has_user_namespaces: true, ..Observed::default() };
    let none = observed(Observed { max_user_namespaces: Some(0), ..exists.clone() });
    check(&none, "user namespaces", No, "user.max_user_namespaces=15000");
    let clone = observed(Observed { unprivileged_userns_clone: Some(0), ..exists });
    check(&clone, "user namespaces", No, "unprivileged_userns_clone=1");
    check(&observed(Observed::default()), "user namespaces", No, "CONFIG_USER_NS");
    for (map, status, words) in [
        (vec![], NotApplicable, "uid_map"),
        (vec![[0, 0, 4_294_967_295]], NotApplicable, "not inside"),
        (vec![[1000, 1000, 1]], Fine, "of 1 uids"),
        (vec![[0, 1000, 1], [1, 100_000, 65_536]], Fine, "32 levels"),
        (vec![[0, 1000, 1]], No, "keep-id"),
    ] {
        check(&with(|f| f.guards.uid_map = map), "nested namespaces", status, words);
    }
    check(&with(|f| f.calls = vec![("openat2", false)]), "system calls", Fine, "without openat2");
    check(&with(|f| f.calls.clear()), "system calls", NotApplicable, "not tried");
}

#[test]
fn security_modules_and_containers() {
    use Status::{No, NotApplicable, Ok as Fine, Warn};
    let restricted = with(|f| {
        f.switches.apparmor_restricts_userns = Some(1);
        f.guards.executable = Some("/opt/hpcrun/bin/hpcrun".into());
    });
    check(
        &restricted,
        "AppArmor",
        No,
        "profile hpcrun /opt/hpcrun/bin/hpcrun flags=(unconfined) { userns, }",
    );
    let profiled = |profile: &str| {
        with(|f| {
            f.switches.apparmor_restricts_userns = Some(1);
            f.guards.apparmor_profile = Some(profile.to_owned());
        })
    };
    check(&profiled("unconfined"), "AppArmor", No, "apparmor_parser -r");
    check(&profiled("hpcrun (unconfined)"), "AppArmor", Fine, "hpcrun (unconfined)");
    check(&with(|f| f.switches.apparmor_restricts_userns = Some(0)), "AppArmor", Fine, "does not");
    check(&good(), "AppArmor", NotApplicable, "does not restrict");
    check(&good(), "SELinux", NotApplicable, "not on this node");
    let enforcing = with(|f| f.guards.selinux_enforcing = Some(true));
    check(&enforcing, "SELinux", Fine, "ausearch");
    let judging = with(|f| {
        f.guards.selinux_enforcing = Some(true);
        f.guards.selinux_judges_userns = true;
        f.guards.selinux_context = Some("user_u:user_r:user_t:s0".to_owned());
    });
    check(&judging, "SELinux", Fine, "as user_u:user_r:user_t:s0; its policy may forbid");
    check(&with(|f| f.guards.selinux_enforcing = Some(false)), "SELinux", Fine, "permissive");
    let filtered = with(|f| f.guards.seccomp = Some(2));
    check(&filtered, "seccomp", Fine, "a filter");
    let docker = DoctorFacts {
        guards: Guards { container: Some("Docker".to_owned()), ..filtered.guards.clone() },
        ..filtered
    };
    check(&docker, "seccomp", Warn, "seccomp=unconfined");
    check(&docker, "container", Fine, "inside Docker");
    check(&with(|f| f.guards.seccomp = None), "seccomp", NotApplicable, "unknown");
    check(&with(|f| f.guards.proc_masked = true), "container", Fine, "harmless");
    check(&good(), "container", NotApplicable, "not inside one");
    check(&with(|f| f.guards.hidepid = Some("2".to_owned())), "hidepid", Fine, "hidepid=2");
    check(&with(|f| f.guards.hidepid = Some("invisible".to_owned())), "hidepid", Fine, "share namespaces");
    check(&with(|f| f.guards.hidepid = Some("off".to_owned())), "hidepid", NotApplicable, "everybody");
    check(&good(), "subordinate ids", NotApplicable, "not needed");
    check(&with(|f| f.switches.yama_scope = Some(1)), "cross-memory attach", Fine, "themselves");
    check(&with(|f| f.switches.yama_scope = Some(3)), "cross-memory attach", Warn, "ptrace_scope");
}

#[test]
fn what_the_image_server_needs() {
    use Status::{No, NotApplicable, Warn};
    let exists = Observed { has_user_namespaces: true, ..Observed::default() };
    let missing = observed(Observed { dev_fuse: DevFuse::Missing, ..exists.clone() });
    check(&missing, "/dev/fuse", No, "modprobe fuse");
    let inside = DoctorFacts {
        guards: Guards { container: Some("Docker".to_owned()), ..missing.guards.clone() },
        ..missing
    };
    check(&inside, "/dev/fuse", No, "--device /dev/fuse");
    let refused = DevFuse::Refused("access(\"/dev/fuse\", R|W): Permission denied (EACCES)".to_owned());
    let refused = observed(Observed { dev_fuse: refused, ..exists });
    let refused = DoctorFacts { dev_fuse_mode: Some(0o600), ..refused };
    check(&refused, "/dev/fuse", No, "(mode 0600)");
    check(&refused, "/dev/fuse", No, "chmod 0666");
    check(&with(|f| f.fuse_registered = Some(false)), "fuse module", Warn, "modules-load.d");
    check(&with(|f| f.fuse_registered = None), "fuse module", NotApplicable, "cannot read");
    let old = with(|f| f.features = Features::derive(&Kernel::parse("5.14.0"), &Observed::default()));
    check(&old, "server restart", NotApplicable, "needs Linux 6.9");
}

#[test]
fn users_and_homes() {
    use Status::{Ok as Fine, Warn};
    check(&with(|f| f.user.known = false), "user", Warn, "getent");
    check(&good(), "user", Fine, "3 supplementary groups");
    check(&with(|f| f.user.home = None), "home directory", Warn, "--no-home");
    let unreachable = Kind::Unreachable("Permission denied".to_owned());
    let lies = |kind: &Kind, on: &str, options: &str, uid: u32| {
        with(|f| {
            f.user.uid = uid;
            f.user.home_fact = Some(PathFact { kind: kind.clone(), resolved: "/home/ada".into() });
            f.user.home_place = Some(place("/home/ada", on, options));
        })
    };
    for (kind, on, options, uid, words) in [
        (&Kind::File, "ext4", "rw", 1000, "not a directory"),
        (&Kind::Missing, "ext4", "rw", 1000, "does not exist"),
        (&unreachable, "ext4", "rw", 1000, "Permission denied check its permissions"),
        (&unreachable, "nfs4", "rw,sec=krb5p", 1000, "kinit"),
        (&unreachable, "afs", "rw", 1000, "aklog"),
        (&unreachable, "nfs4", "rw,sec=sys", 0, "root_squash"),
        (&unreachable, "lustre", "rw", 0, "root_squash"),
        (&unreachable, "nfs4", "rw,sec=sys", 1000, "its permissions"),
    ] {
        check(&lies(kind, on, options, uid), "home directory", Warn, words);
    }
    for (on, options, uid, words) in [
        ("nfs4", "rw,sec=krb5i", 1000, "klist"),
        ("afs", "rw", 1000, "token counts"),
        ("nfs4", "rw,sec=sys", 0, "root_squash"),
        ("nfs", "rw,nolock", 1000, "relies on none"),
        ("nfs4", "rw,local_lock=all", 1000, "relies on none"),
        ("nfs4", "rw,local_lock=none", 1000, "nfs4, 8192 MiB free"),
        ("lustre", "rw,localflock", 1000, "relies on none"),
        ("lustre", "rw,flock", 1000, "lustre, 8192 MiB free"),
    ] {
        check(&lies(&Kind::Directory, on, options, uid), "home file system", Fine, words);
    }
    let noexec = with(|f| f.user.home_place.as_mut().unwrap().noexec = true);
    check(&noexec, "home file system", Fine, "images in it can");
    let read_only = with(|f| f.user.home_place.as_mut().unwrap().writable = false);
    check(&read_only, "home file system", Fine, "not writable for you");
    let full = with(|f| f.user.home_place.as_mut().unwrap().free_bytes = 1 << 20);
    check(&full, "home file system", Warn, "1 MiB free remove files there");
}

#[test]
fn limits_of_processes_and_groups() {
    use Status::{NotApplicable, Ok as Fine, Warn};
    let tight = Limit { soft: 64, hard: 64 };
    let facts = with(|f| f.limits = Some(Limits { open_files: tight, processes: tight, ..limits() }));
    check(&facts, "open files", Warn, "64 (at most 64)");
    check(&facts, "processes", Warn, "64 (at most 64)");
    check(&with(|f| f.cgroup.pids_max = Some(100)), "processes", Warn, "TasksMax=");
    let megabyte = Limit { soft: 1 << 20, hard: 1 << 20 };
    let facts =
        with(|f| f.limits = Some(Limits { address_bytes: megabyte, file_bytes: megabyte, ..limits() }));
    check(&facts, "address space", Warn, "ulimit -v unlimited");
    check(&facts, "file size", Warn, "EFBIG");
    check(&with(|f| f.cgroup.memory_max = Some(100 << 20)), "control group", Warn, "--mem=1G");
    check(&with(|f| f.cgroup.memory_max = Some(64 << 30)), "control group", Fine, "at most 64 GiB");
    check(&with(|f| f.cgroup.version = ""), "control group", NotApplicable, "none");
    check(&good(), "locked memory", NotApplicable, "8 MiB");
    let fabric = with(|f| f.fabric_devices = vec![("cxi0".to_owned(), true)]);
    check(&fabric, "locked memory", Warn, "cxi0 needs more");
    check(&fabric, "locked memory", Warn, "LimitMEMLOCK=infinity");
    for (pattern, status, words) in [
        ("|/usr/lib/systemd/systemd-coredump %P %u", Fine, "systemd-coredump takes them, on the host"),
        ("core.%p", Fine, "working directory"),
        ("/var/cores/core.%p", Warn, "optional = [\"/var/cores\"]"),
    ] {
        check(&with(|f| f.switches.core_pattern = Some(pattern.to_owned())), "core dumps", status, words);
    }
}

#[test]
fn memory_and_disk_that_are_shared() {
    use Status::{Ok as Fine, Warn};
    check(&with(|f| f.shm = None), "/dev/shm", Warn, "mount -t tmpfs");
    check(&with(|f| f.shm.as_mut().unwrap().free_bytes = 64 << 20), "/dev/shm", Warn, "--shm-size");
    check(&with(|f| f.shm.as_mut().unwrap().writable = false), "/dev/shm", Warn, "chmod 1777");
    check(&with(|f| f.shm.as_mut().unwrap().noexec = true), "/dev/shm", Fine, "harmless");
    check(&with(|f| f.scratch = None), "temporary files", Warn, "mkdir -m 1777 /tmp");
    check(&with(|f| f.scratch.as_mut().unwrap().noexec = true), "temporary files", Fine, "harmless");
    check(&with(|f| f.scratch.as_mut().unwrap().writable = false), "temporary files", Warn, "TMPDIR");
    check(&with(|f| f.scratch.as_mut().unwrap().free_bytes = 0), "temporary files", Warn, "0 MiB");
    check(&with(|f| f.share_directory = None), "rank sharing", Warn, "/dev/shm");
    let unlocked = with(|f| f.share_lock = Some(Err("flock(EX|NB): ENOLCK".to_owned())));
    check(&unlocked, "rank sharing", Warn, "ENOLCK");
}

#[test]
fn jobs_fabrics_and_networks() {
    use Status::{NotApplicable, Ok as Fine, Warn};
    check(&good(), "launcher", NotApplicable, "not inside a job");
    let slurm = |tasks, has_pmi| {
        let step = Some("slurm 12.0".to_owned());
        with(|f| f.job = JobFacts { launcher: LauncherKind::Slurm, step, tasks, has_pmi })
    };
    check(&slurm(Some(1), false), "launcher", Fine, "slurm 12.0");
    check(&slurm(Some(4), false), "launcher", Fine, "--mpi=pmix");
    check(&slurm(Some(4), true), "launcher", Fine, "slurm 12.0");
    check(&good(), "interconnect", NotApplicable, "no device");
    check(&with(|f| f.fabric_devices = vec![("uverbs0".into(), true)]), "interconnect", Fine, "uverbs0");
    check(&with(|f| f.fabric_devices = vec![("uverbs0".into(), false)]), "interconnect", Warn, "TCP");
    check(&with(|f| f.interfaces.push(("tun0".into(), 576))), "MTU", Warn, "ip link set dev tun0");
    check(&good(), "MTU", Fine, "eth0 1500, ib0 2044");
    check(&with(|f| f.certificates = None), "certificates", Warn, "ca-certificates");
    check(&with(|f| f.clock = 0), "clock", Warn, "chronyc");
}

#[test]
fn graphics_processors() {
    use Status::{NotApplicable, Ok as Fine, Warn};
    let nvidia = |module: Option<&str>, library: Option<&str>, devices: &[(&str, bool)]| {
        with(|f| {
            f.gpu.nvidia_module = module.map(str::to_owned);
            f.gpu.nvidia_library = library.map(str::to_owned);
            f.gpu.nvidia_devices =
                devices.iter().map(|(name, usable)| ((*name).to_owned(), *usable)).collect();
        })
    };
    let all = [("nvidia0", true), ("nvidia1", false), ("nvidiactl", true), ("nvidia-uvm", true)];
    let closed = [("nvidia0", true), ("nvidiactl", false), ("nvidia-uvm", true)];
    let version = Some("570.86.15");
    check(&nvidia(version, version, &all), "NVIDIA driver", Fine, "1 cards");
    check(&nvidia(version, version, &all[..3]), "NVIDIA driver", Warn, "nvidia-modprobe");
    check(&nvidia(version, version, &closed), "NVIDIA driver", Warn, "NVreg_DeviceFileMode");
    check(&nvidia(version, Some("550.54.14"), &all), "NVIDIA driver", Warn, "CUDA refuses such a pair");
    check(&nvidia(version, None, &all), "NVIDIA driver", Warn, "no libcuda.so");
    check(&nvidia(None, version, &all), "NVIDIA driver", Warn, "modprobe nvidia");
    check(&nvidia(None, version, &[]), "NVIDIA driver", NotApplicable, "none");
    check(&with(|f| f.gpu.kfd = Some(true)), "AMD driver", Fine, "can be opened");
    check(&with(|f| f.gpu.kfd = Some(false)), "AMD driver", Warn, "render");
    let nodes = |nodes: &[bool]| {
        let named = |(index, usable): (usize, &bool)| (format!("renderD{}", 128 + index), *usable);
        with(|f| f.gpu.render_nodes = nodes.iter().enumerate().map(named).collect())
    };
    check(&nodes(&[]), "render nodes", NotApplicable, "no /dev/dri");
    check(&nodes(&[true, false]), "render nodes", Fine, "1 of 2");
    check(&nodes(&[false]), "render nodes", Warn, "usermod -aG render");
}

#[test]
fn the_sites_policy() {
    use Status::{No, NotApplicable, Ok as Fine};
    let file = Path::new("/etc/hpcrun/policy.toml");
    judge(&policy(file, &PolicyOutcome::Absent), NotApplicable, "defaults apply");
    judge(&policy(file, &PolicyOutcome::Valid), Fine, "policy.toml");
    let broken = PolicyOutcome::Broken("line 3".to_owned(), vec!["as root: chmod go-w x".to_owned()]);
    judge(&policy(file, &broken), No, "line 3 as root: mend the file");
    judge(&policy(file, &broken), No, "chmod go-w x");
}

#[test]
fn directories_that_images_are_kept_in() {
    use Status::{Ok as Fine, Warn};
    let directory = |wanted: Wanted, mode: u32| Keep {
        name: "images",
        path: "/images".into(),
        kind: Kind::Directory,
        owner: Some(0),
        mode: Some(mode),
        place: Some(place("/images", "xfs", "rw")),
        wanted,
        room_bytes: 1 << 30,
    };
    let lies = |keep: Keep, on: &str| Keep { place: Some(place("/images", on, "rw")), ..keep };
    let full = |keep: Keep| Keep {
        place: Some(Place { free_bytes: 1 << 20, ..place("/images", "xfs", "rw") }),
        ..keep
    };
    let closed =
        |keep: Keep| Keep { place: Some(Place { writable: false, ..place("/images", "xfs", "rw") }), ..keep };
    let is = |keep: Keep, kind: Kind| Keep { kind, ..keep };
    for (case, status, words) in [
        (directory(Wanted::Own, 0o700), Fine, "8192 MiB free"),
        (is(directory(Wanted::Own, 0), Kind::Missing), Fine, "made when first needed"),
        (closed(is(directory(Wanted::Own, 0), Kind::Missing)), Warn, "made, but /images is not writable"),
        (full(is(directory(Wanted::Own, 0), Kind::Missing)), Warn, "made, but /images has 1 MiB free"),
        (full(directory(Wanted::Own, 0o700)), Warn, "hpcrun gc"),
        (is(directory(Wanted::Own, 0), Kind::Unreachable("EACCES".into())), Warn, "HPCRUN_STORE=DIR"),
        (closed(directory(Wanted::Own, 0o700)), Warn, "not writable for you"),
        (directory(Wanted::Site, 0o755), Fine, "/images"),
        (closed(full(directory(Wanted::Site, 0o755))), Fine, "/images"),
        (directory(Wanted::Site, 0o775), Warn, "chmod go-w /images"),
        (is(directory(Wanted::Site, 0), Kind::Missing), Warn, "mkdir -m 0755"),
        (directory(Wanted::Node, 0o1777), Fine, "/images"),
        (directory(Wanted::Node, 0o777), Warn, "chmod +t"),
        (lies(directory(Wanted::Node, 0o1777), "lustre"), Warn, "on lustre"),
        (closed(directory(Wanted::Node, 0o755)), Warn, "chmod 1777"),
        (full(directory(Wanted::Node, 0o1777)), Warn, "should have 1024 MiB"),
        (is(directory(Wanted::Node, 0), Kind::Missing), Warn, "mkdir -m 1777"),
        (is(directory(Wanted::Node, 0), Kind::File), Warn, "not a directory"),
        (is(directory(Wanted::Site, 0), Kind::Unreachable("EACCES".into())), Warn, "chmod a+rx"),
    ] {
        judge(&keep(&case), status, words);
    }
}

#[test]
fn a_launch_that_works_settles_what_switches_forbid() {
    let mut checks = [Check::no("AppArmor", "restricts", &["load a profile"]), Check::ok("kernel", "Linux")];
    settle(&mut checks);
    judge(&checks[0], Status::Warn, "restricts; the launch below worked all the same");
    assert_eq!(checks[1], Check::ok("kernel", "Linux"));
}

#[test]
fn text_and_json_say_the_same() {
    let subject = Subject {
        hpcrun: "0.1.0 (x86_64-linux-gnu, static)".to_owned(),
        node: "node412".to_owned(),
        kernel: "Linux 6.12.0".to_owned(),
        uid: 1000,
        job: Some("slurm 12.0".to_owned()),
        image: None,
    };
    let checks = [
        Check::ok("kernel", "Linux 6.12.0"),
        Check::no("/dev/fuse", "there is no /dev/fuse", &["as root: modprobe fuse"]),
        Check::warn("/dev/shm", "1 MiB free", &["remount it"]),
        Check::not_applicable("SELinux", "not on this node"),
    ];
    let text = "\
hpcrun 0.1.0 (x86_64-linux-gnu, static) on node412, Linux 6.12.0, uid 1000, job slurm 12.0
ok    kernel     Linux 6.12.0
no    /dev/fuse  there is no /dev/fuse
                 -> as root: modprobe fuse
warn  /dev/shm   1 MiB free
                 -> remount it
n/a   SELinux    not on this node
images cannot run here: 1 thing to mend, 1 warning
";
    assert_eq!(render_text(&subject, &checks), text);
    let json = serde_json::json!({
        "schema": 1,
        "hpcrun": "0.1.0 (x86_64-linux-gnu, static)",
        "node": "node412",
        "kernel": "Linux 6.12.0",
        "uid": 1000,
        "job": "slurm 12.0",
        "image": null,
        "usable": false,
        "checks": [
            {"name": "kernel", "status": "ok", "detail": "Linux 6.12.0", "remedy": []},
            {"name": "/dev/fuse", "status": "no", "detail": "there is no /dev/fuse", "remedy": ["as root: modprobe fuse"]},
            {"name": "/dev/shm", "status": "warn", "detail": "1 MiB free", "remedy": ["remount it"]},
            {"name": "SELinux", "status": "n/a", "detail": "not on this node", "remedy": []},
        ],
    });
    assert_eq!(render_json(&subject, &checks), json);
    assert!(render_text(&subject, &checks[..1]).ends_with("images can run here\n"));
}
