//! Enacting hand-made launch plans as an ordinary user, on roots that are plain directory trees.
//!
//! `enact` turns its process into the job, and wants that process to have one thread. So the tests start this test
//! program again with nothing but [`driver`] to run, which forks for each plan.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "helpers of tests, which clippy does not take for tests"
)]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use hpcrun::hint::Hint;
use hpcrun::launch::enact::{EnactError, enact};
use hpcrun::launch::plan::{LaunchPlan, ShareKey};
use hpcrun::mount::graft::Grafts;
use hpcrun::mount::plan::{Access, MountPlan, Need, Op, PlannedOp, Reason, RootSource};
use hpcrun::mount::server::Startup;
use hpcrun::squashfs::reader::{Filesystem, ReaderOptions};
use hpcrun::sys::process::{Ended, in_child};
use serde::{Deserialize, Serialize};

use crate::support;

/// Where the driver finds its plans.
const SPECS: &str = "HPCRUN_TEST_SPECS";
/// What the test harness prints before the job runs.
const HARNESS_LINE: &[u8] = b"\nrunning 1 test\n";
/// Programs of busybox that the jobs use.
const APPLETS: [&str; 22] = [
    "cat", "chmod", "env", "false", "grep", "head", "id", "ls", "mkdir", "mv", "nproc", "pwd", "readlink",
    "rm", "rmdir", "sh", "sleep", "sort", "stat", "touch", "true", "wc",
];

/// One bind of a plan.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct BindSpec {
    source: PathBuf,
    destination: PathBuf,
    read_only: bool,
    optional: bool,
}

/// A launch plan, to be handed to the driver.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Spec {
    root: PathBuf,
    binds: Vec<BindSpec>,
    pivot: bool,
    environment: Vec<(Vec<u8>, Vec<u8>)>,
    cwd: Vec<PathBuf>,
    program: String,
    arguments: Vec<Vec<u8>>,
    search: Vec<PathBuf>,
    share: Option<(PathBuf, String)>,
}

impl Spec {
    fn bind(mut self, source: impl Into<PathBuf>, destination: &str) -> Spec {
        let (source, destination) = (source.into(), destination.into());
        self.binds.push(BindSpec { source, destination, read_only: false, optional: false });
        self
    }

    fn bind_read_only(self, source: impl Into<PathBuf>, destination: &str) -> Spec {
        let mut spec = self.bind(source, destination);
        spec.binds.last_mut().unwrap().read_only = true;
        spec
    }

    fn bind_optional(self, source: impl Into<PathBuf>, destination: &str) -> Spec {
        let mut spec = self.bind(source, destination);
        spec.binds.last_mut().unwrap().optional = true;
        spec
    }

    /// The host's trees that every job has.
    fn host_trees(self) -> Spec {
        self.bind("/dev", "/dev").bind("/sys", "/sys").bind("/proc", "/proc")
    }

    fn program(mut self, program: &str, arguments: &[&str]) -> Spec {
        self.program = program.to_owned();
        self.arguments = std::iter::once(program)
            .chain(arguments.iter().copied())
            .map(|text| text.as_bytes().to_vec())
            .collect();
        self
    }

    fn script(self, script: &str) -> Spec {
        self.program("/bin/sh", &["-c", script])
    }

    fn cwd(mut self, directories: &[&str]) -> Spec {
        self.cwd = directories.iter().map(PathBuf::from).collect();
        self
    }

    fn share(mut self, directory: &Path, name: &str) -> Spec {
        self.share = Some((directory.to_owned(), name.to_owned()));
        self
    }

    fn is_image(&self) -> bool {
        self.root.extension().is_some_and(|extension| extension == "sqsh")
    }

    /// The image of the root, if it is one.
    fn images(&self) -> Vec<Filesystem> {
        let open = || Filesystem::open(File::open(&self.root).unwrap(), 0, ReaderOptions::default());
        self.is_image().then(|| open().unwrap()).into_iter().collect()
    }

    fn plan(&self) -> LaunchPlan {
        let planned = |op| PlannedOp { op, reason: Reason::Flag("--bind".to_owned()) };
        let source = match self.is_image() {
            true => RootSource::Image(self.root.clone()),
            false => RootSource::Premounted { tree: self.root.clone(), device: device_of(&self.root) },
        };
        let mut ops = vec![planned(Op::Root(source))];
        for bind in self.binds.iter().cloned() {
            let access = if bind.read_only { Access::ReadOnly } else { Access::ReadWrite };
            let need = if bind.optional { Need::Optional } else { Need::Required };
            ops.push(planned(Op::Bind { source: bind.source, destination: bind.destination, access, need }));
        }
        if self.pivot {
            ops.push(planned(Op::PivotRoot));
        }
        let text = |bytes: &Vec<u8>| OsString::from_vec(bytes.clone());
        LaunchPlan {
            before: Vec::new(),
            mount: MountPlan { ops },
            grafts: Vec::new(),
            uid: nix::unistd::getuid().as_raw(),
            gid: nix::unistd::getgid().as_raw(),
            env: self.environment.iter().map(|(name, value)| (text(name), text(value))).collect(),
            cwd: self.cwd.clone(),
            program: self.program.clone().into(),
            argv: self.arguments.iter().map(text).collect(),
            search: self.search.clone(),
            share: self.share.clone().map(|(directory, name)| ShareKey { directory, name }),
            server_threads: 1,
            startup: Startup::Nothing,
            node_cache: None,
            guise: Default::default(),
            about: Default::default(),
        }
    }
}

fn device_of(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(directory).map_or(0, |metadata| metadata.dev())
}

#[test]
#[ignore = "the process that the other tests start"]
fn driver() {
    let specs = std::fs::read(std::env::var_os(SPECS).expect("started by another test")).unwrap();
    let specs: Vec<Spec> = serde_json::from_slice(&specs).unwrap();
    let mut last = 0;
    for spec in specs {
        let status = in_child(|| {
            eprintln!("pid {}", std::process::id());
            let Err(error) =
                enact(spec.plan(), spec.images(), Grafts::default(), &mut |event| eprintln!("event {event}"));
            eprintln!("{}", report(&error));
            error.exit_status()
        });
        last = match status.unwrap() {
            Ended::Exited(status) => status,
            Ended::Killed(signal) => 128 + signal,
        };
        eprintln!("status {last}");
    }
    // The harness would say "ok".
    #[expect(clippy::exit, reason = "the driver's exit status is the job's")]
    std::process::exit(last)
}

/// The error, its causes and its hints, as the command line prints them.
fn report(error: &EnactError) -> String {
    let mut text = format!("error {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        write!(text, ": {error}").unwrap();
        cause = error.source();
    }
    for hint in error.hints() {
        write!(text, "\nhint: {hint}").unwrap();
    }
    text
}

/// A scratch directory with a root tree that holds busybox, and the driver.
struct Stage {
    scratch: tempfile::TempDir,
    driver: PathBuf,
}

impl Stage {
    fn new() -> Stage {
        let scratch = support::scratch();
        let root = scratch.path().join("root");
        for directory in ["bin", "dev", "sys", "proc", "tmp", "etc", "data", "host", "home"] {
            std::fs::create_dir_all(root.join(directory)).unwrap();
        }
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
        std::fs::copy(busybox.expect("busybox-static; 'make test' installs it"), root.join("bin/busybox"))
            .unwrap();
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        let driver = scratch.path().join("driver");
        let this = std::env::current_exe().unwrap();
        if std::fs::hard_link(&this, &driver).is_err() {
            std::fs::copy(&this, &driver).unwrap();
        }
        Stage { scratch, driver }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Makes a directory that the job's user may write to.
    fn directory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
        path
    }

    fn spec(&self) -> Spec {
        Spec {
            root: self.path("root"),
            binds: Vec::new(),
            pivot: true,
            environment: vec![(b"PATH".to_vec(), b"/bin".to_vec())],
            cwd: vec!["/".into()],
            program: "/bin/true".to_owned(),
            arguments: vec![b"true".to_vec()],
            search: vec!["/bin".into()],
            share: None,
        }
    }

    /// The driver with these plans, as the ordinary user, started by the words of `wrapper`.
    fn command(&self, wrapper: &[&str], specs: &[Spec]) -> Command {
        let file = tempfile::Builder::new().prefix("specs").tempfile_in(self.scratch.path()).unwrap();
        serde_json::to_writer(&file, specs).unwrap();
        std::fs::set_permissions(file.path(), PermissionsExt::from_mode(0o644)).unwrap();
        let (_, path) = file.keep().unwrap();
        let mut command = match wrapper.split_first() {
            None => support::as_user(&self.driver),
            Some((first, rest)) => {
                let mut command = support::as_user(first);
                command.args(rest).arg(&self.driver);
                command
            }
        };
        // Two threads: with one the harness would print the test's name before running it.
        command
            .args(["--exact", "enact::driver", "--ignored", "--nocapture", "--test-threads=2"])
            .env(SPECS, path);
        command
    }

    fn launch_all(&self, wrapper: &[&str], specs: &[Spec]) -> Launched {
        Launched::new(support::run(&mut self.command(wrapper, specs)))
    }

    fn launch(&self, spec: &Spec) -> Launched {
        self.launch_all(&[], std::slice::from_ref(spec))
    }

    fn launch_in(&self, wrapper: &[&str], spec: &Spec) -> Launched {
        self.launch_all(wrapper, std::slice::from_ref(spec))
    }
}

/// What became of the driver's jobs.
#[derive(Debug)]
struct Launched {
    status: i32,
    stdout: Vec<u8>,
    stderr: String,
}

impl Launched {
    fn new(output: Output) -> Launched {
        let stdout = output.stdout.strip_prefix(HARNESS_LINE).unwrap_or(&output.stdout).to_vec();
        let status = output.status.code().unwrap_or(-1);
        Launched { status, stdout, stderr: support::text(&output.stderr) }
    }

    /// Standard output of jobs that all ended well.
    #[track_caller]
    fn stdout(&self) -> String {
        assert_eq!(self.status, 0, "{}\n{}", support::text(&self.stdout), self.stderr);
        support::text(&self.stdout)
    }

    #[track_caller]
    fn check_refused(&self, status: i32, expected: &str) {
        let said = self.stderr.contains(expected);
        assert!(
            self.status == status && said,
            "want {status} and {expected:?}: {} {}",
            self.status,
            self.stderr
        );
        assert_eq!(support::text(&self.stdout), "", "the job must not have run");
    }

    /// The exit status of each job.
    fn statuses(&self) -> Vec<i32> {
        self.stderr_values("status ").map(|value| value.parse().unwrap()).collect()
    }

    /// The process id of each job before it was one.
    fn pids(&self) -> Vec<i32> {
        self.stderr_values("pid ").map(|value| value.parse().unwrap()).collect()
    }

    fn stderr_values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.stderr.lines().filter_map(move |line| line.strip_prefix(name))
    }
}

/// Every file below `directory`: path, type, size and time of last change.
fn snapshot(directory: &Path) -> Vec<String> {
    let mut listing = Command::new("find");
    listing.arg(directory).args(["-printf", "%p %y %m %s %T@ %C@ %l\\n"]);
    let mut lines: Vec<String> = support::stdout(&mut listing).lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// Lines of the host's mount table that a launch from this stage could have left.
fn host_mounts(stage: &Stage) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let scratch = stage.scratch.path().to_str().unwrap();
    let is_ours = |line: &&str| {
        line.contains(scratch)
            || line.split(' ').nth(4).is_some_and(|point| ["/tmp", "/mnt", "/"].contains(&point))
    };
    table.lines().filter(is_ours).map(str::to_owned).collect()
}

#[test]
fn becomes_the_job_in_the_same_process() {
    let stage = Stage::new();
    let before = host_mounts(&stage);
    let script = "echo $$; id -u; id -g; cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; pwd";
    let launched = stage.launch(&stage.spec().host_trees().script(script));
    let stdout = launched.stdout();
    let words: Vec<&str> = stdout.split_whitespace().collect();
    let id = |flag| support::stdout(support::as_user("id").arg(flag)).trim().to_owned();
    let (uid, gid) = (id("-u"), id("-g"));
    let pid = launched.pids()[0].to_string();
    assert_eq!(words, [&pid, &uid, &gid, &uid, &uid, "1", &gid, &gid, "1", "deny", "/"]);
    assert_eq!(host_mounts(&stage), before);
}

#[test]
fn tells_each_op_before_it_is_done() {
    let stage = Stage::new();
    let launched = stage.launch(&stage.spec().bind("/dev", "/dev").bind_read_only("/sys", "/sys"));
    launched.stdout();
    let events: Vec<&str> =
        launched.stderr_values("event ").map(|line| line.split("  ").next().unwrap()).collect();
    let root = format!("bind {} -> / ro", stage.path("root").display());
    assert_eq!(events[0], "make a container");
    // A long op leaves one space before its reason.
    assert!(events[1].starts_with(&root), "{events:?}");
    let rest = ["bind /dev -> /dev rw", "bind /sys -> /sys ro", "pivot_root", "the container is complete"];
    assert_eq!(events[2..], rest);
}

/// What the kernel says about privilege, read by the job itself.
const PRIVILEGES: &str = "grep -E '^(Cap|NoNewPrivs)' /proc/self/status";
const NO_PRIVILEGES: &str = "CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n\
                             CapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\n";

#[test]
fn leaves_no_privilege() {
    let stage = Stage::new();
    let spec = stage.spec().host_trees().script(PRIVILEGES);
    assert_eq!(stage.launch(&spec).stdout(), NO_PRIVILEGES);
    // User 0, to whom exec gives all that the bounding set holds.
    assert_eq!(stage.launch_in(&["unshare", "--map-root-user"], &spec).stdout(), NO_PRIVILEGES);
}

#[test]
fn a_refused_step_never_gives_a_weaker_job() {
    let stage = Stage::new();
    let spec = stage.spec().host_trees().bind_read_only("/usr", "/host").script("echo ran");
    for (call, errno, expected) in [
        ("unshare", "EPERM", "cannot create a user namespace: unshare(NEWUSER): Operation not permitted"),
        ("unshare", "ENOSPC", "user.max_user_namespaces"),
        ("mount", "EACCES", "kernel.apparmor_restrict_unprivileged_userns"),
        ("move_mount", "EPERM", "cannot do `bind "),
        ("mount_setattr", "EINVAL", "ReadOnly"),
        ("pivot_root", "EPERM", "cannot do `pivot_root`"),
        ("umount2", "EPERM", "cannot do `pivot_root`"),
        ("capset", "EPERM", "cannot drop privileges: capset(0, 0, 0)"),
        ("prctl", "EPERM", "cannot drop privileges: prctl("),
        ("capget", "EPERM", "cannot drop privileges: capget()"),
    ] {
        let (trace, inject) = (format!("trace={call}"), format!("inject={call}:error={errno}"));
        let wrapper = ["strace", "-f", "-o", "/dev/null", "-e", &trace, "-e", &inject];
        stage.launch_in(&wrapper, &spec).check_refused(125, expected);
    }
}

#[test]
fn keeps_the_callers_descriptors_and_leaks_none() {
    let stage = Stage::new();
    stage.directory("open");
    let listing = "for fd in /proc/$$/fd/*; do echo \"${fd##*/} $(readlink $fd)\"; done";
    let spec = stage.spec().host_trees().script(listing);
    let open = format!("exec 7<{0} 8>/dev/null 9<{0}; exec \"$@\"", stage.path("open").display());
    let wrapper = ["sh", "-c", &open, "sh"];
    let inside = stage.launch_in(&wrapper, &spec).stdout();
    let mut outside = support::as_user(wrapper[0]);
    outside.args(&wrapper[1..]).arg(stage.path("root/bin/busybox")).args(["sh", "-c", listing]);
    let outside = support::stdout(&mut outside);
    // Pipes have other numbers each time.
    let names = |listing: &str| -> Vec<String> {
        listing.lines().map(|line| line.split(":[").next().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&inside), names(&outside));
    assert!(inside.contains("8 /dev/null\n"), "{inside}");
}

#[test]
fn passes_the_environment_as_bytes() {
    let stage = Stage::new();
    let mut spec = stage.spec().host_trees().program("/bin/cat", &["/proc/self/environ"]);
    let environment: [(&[u8], &[u8]); 7] = [
        (b"EMPTY", b""),
        (b"LINES", b"a\nb"),
        (b"EQUALS", b"a=b=c"),
        (b"BYTES", b"\xff\xfe\x80"),
        (b"BASH_FUNC_x%%", b"() { echo y; }"),
        (b"QUOTES", b"'\"`$(id) \\"),
        (b"TWICE", b"2"),
    ];
    spec.environment = environment.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
    let mut expected = Vec::new();
    for (name, value) in environment {
        expected.extend([name, b"=", value, b"\0"].concat());
    }
    let launched = stage.launch(&spec);
    launched.stdout();
    assert_eq!(launched.stdout, expected);
    spec.environment.push((b"ZERO".to_vec(), b"a\0b".to_vec()));
    stage.launch(&spec).check_refused(125, "environment variable ZERO holds a zero byte");
}

#[test]
fn passes_arguments_as_bytes() {
    let stage = Stage::new();
    let mut spec = stage.spec().host_trees().program("/bin/cat", &["/proc/self/cmdline"]);
    // cat prints the first file and does not find the others.
    spec.arguments.extend([b"\xff\n$(id)".to_vec(), b"".to_vec()]);
    assert_eq!(stage.launch(&spec).stdout, b"/bin/cat\0/proc/self/cmdline\0\xff\n$(id)\0\0");
}

#[test]
fn keeps_limits_mask_dispositions_and_affinity() {
    let stage = Stage::new();
    let script = "umask; ulimit -a; grep -E '^(Sig[BIC]|Cpus_allowed:|Mems_allowed:)' /proc/self/status; \
                  cat /proc/self/oom_score_adj; cut -d' ' -f18,19 /proc/self/stat";
    let set_up = "umask 027; ulimit -n 200; ulimit -c 0; ulimit -s 4096; exec \"$@\"";
    for pipe in ["--default-signal=PIPE", "--ignore-signal=PIPE"] {
        let wrapper = [
            "taskset",
            "-c",
            "0",
            "nice",
            "-n",
            "3",
            "env",
            "--block-signal=USR1",
            "--ignore-signal=USR2,HUP",
            pipe,
            "sh",
            "-c",
            set_up,
            "sh",
        ];
        let mut spec = stage.spec().host_trees().script(script);
        symlink("busybox", stage.path("root/bin/cut")).ok();
        spec.environment.push((b"LC_ALL".to_vec(), b"C".to_vec()));
        let inside = stage.launch_in(&wrapper, &spec).stdout();
        let mut outside = support::as_user(wrapper[0]);
        outside.args(&wrapper[1..]).arg(stage.path("root/bin/busybox")).args(["sh", "-c", script]);
        assert_eq!(
            without_thread_signals(&inside),
            without_thread_signals(&support::stdout(&mut outside)),
            "{pipe}"
        );
        assert!(inside.contains("(-n) 200\n") && inside.contains("SigBlk:\t0000000000000200"), "{inside}");
    }
}

/// The text with signals 32 and 33, which the C library of the driver's threads uses, taken out of the ignored ones.
fn without_thread_signals(status: &str) -> String {
    let line = |line: &str| match line.strip_prefix("SigIgn:\t") {
        Some(set) => format!("SigIgn:\t{:x}\n", u64::from_str_radix(set, 16).unwrap() & !(3 << 31)),
        None => format!("{line}\n"),
    };
    status.lines().map(line).collect()
}

/// A job that sees whether its root is what the plan of [`thorough`] says.
const THOROUGH: &str = "
    echo x >/dev/null || echo no /dev/null
    ls /sys/class/net >/dev/null || echo no /sys
    test -d /proc/$$ || echo no /proc
    test -w /dev/shm/. || echo /dev/shm is read-only
    touch /ro/shm/hpcrun-test-$$ 2>/dev/null && echo a mount below a read-only bind is writable
    touch /ro/hpcrun-test-$$ 2>/dev/null && echo a read-only bind is writable
    touch /data/new || echo a bind is not writable
    touch /new 2>/dev/null && echo the root is writable
    cat /etc/motd
    cat /host/etc/passwd >/dev/null || echo no host
    test -e /host/$CANARY || echo /host/tmp is not the host\\'s
    test -e $CANARY || echo /tmp is not the host\\'s
    test -e /host/tmp/bin/busybox && echo the root is in itself
    grep -c ' / / ' /proc/self/mountinfo >/dev/null
    grep -E ' - .*fuse.hpcrun|shared:' /proc/self/mountinfo
    cat /locked/name
";

/// A plan with every kind of bind.
fn thorough(stage: &Stage) -> Spec {
    std::fs::create_dir_all(stage.path("root/ro")).unwrap();
    std::fs::create_dir_all(stage.path("root/locked")).unwrap();
    std::fs::write(stage.path("root/etc/motd"), "of the image\n").unwrap();
    std::fs::write(stage.path("motd"), "of the host\n").unwrap();
    stage.directory("locked");
    std::fs::write(stage.path("locked/name"), "locked\n").unwrap();
    let data = stage.directory("data");
    let mut spec = stage
        .spec()
        .host_trees()
        .bind_read_only("/dev", "/ro")
        .bind(data, "/data")
        .bind_read_only(stage.path("motd"), "/etc/motd")
        .bind_read_only("/", "/host")
        .bind("/tmp", "/tmp")
        .bind_read_only(stage.path("locked"), "/locked")
        .script(THOROUGH);
    let canary = stage.path("motd").into_os_string().into_vec();
    spec.environment.push((b"CANARY".to_vec(), canary));
    spec
}

#[test]
fn binds_directories_files_and_the_whole_host() {
    let stage = Stage::new();
    let before = host_mounts(&stage);
    assert_eq!(stage.launch(&thorough(&stage)).stdout(), "of the host\nlocked\n");
    assert!(stage.path("data/new").exists());
    assert_eq!(host_mounts(&stage), before);
}

/// Kernels that lack a call, and system call filters that forbid it: each way to build the root gives the same root.
#[test]
fn old_kernels_get_the_same_root() {
    let stage = Stage::new();
    let spec = thorough(&stage);
    let before = host_mounts(&stage);
    let (enosys, eperm, einval) = ("ENOSYS", "EPERM", "EINVAL");
    for (calls, errno) in [
        ("openat2", enosys),
        ("openat2", eperm),
        ("open_tree", enosys),
        ("mount_setattr", enosys),
        ("mount_setattr", eperm),
        ("openat2,open_tree,move_mount,mount_setattr", enosys),
        ("openat2,open_tree,move_mount,mount_setattr", eperm),
        // What the kernel says where the root is its initial file system.
        ("pivot_root", einval),
    ] {
        let trace = format!("trace={calls}");
        let inject = format!("inject={calls}:error={errno}");
        let wrapper = ["strace", "-f", "-o", "/dev/null", "-e", &trace, "-e", &inject];
        assert_eq!(stage.launch_in(&wrapper, &spec).stdout(), "of the host\nlocked\n", "{calls} {errno}");
    }
    assert_eq!(host_mounts(&stage), before);
}

/// The host forbids setuid, devices and programs on a mount: a read-only bind by the old call must not ask to lift that.
#[test]
fn keeps_locked_flags_by_the_old_call() {
    let stage = Stage::new();
    let spec = stage
        .spec()
        .host_trees()
        .bind_read_only("/dev/shm", "/data")
        .script("grep ' /data ' /proc/self/mountinfo | head -n 1");
    let calls = "open_tree,mount_setattr";
    let (trace, inject) = (format!("trace={calls}"), format!("inject={calls}:error=ENOSYS"));
    let flags = |stdout: String| -> BTreeSet<String> {
        stdout.split(' ').nth(5).unwrap().split(',').map(str::to_owned).collect()
    };
    // What the outer of two user namespaces forbids is locked in the inner.
    let remount = "mount -o remount,bind,nosuid,nodev,noexec /dev/shm && exec \"$@\"";
    let outer = ["unshare", "--map-root-user", "--mount", "sh", "-c", remount, "sh"];
    let inner = ["strace", "-f", "-o", "/dev/null", "-e", &trace, "-e", &inject];
    let new = flags(stage.launch_in(&outer, &spec).stdout());
    assert!(["ro", "nosuid", "nodev", "noexec"].iter().all(|flag| new.contains(*flag)), "{new:?}");
    let old = flags(stage.launch_in(&[&outer[..], &inner[..]].concat(), &spec).stdout());
    assert_eq!(old, new);
}

#[test]
fn leaves_out_optional_sources_and_insists_on_required_ones() {
    let stage = Stage::new();
    let gone = stage.path("gone");
    let launched = stage.launch(&stage.spec().bind_optional(&gone, "/data").script("ls /data; echo ran"));
    assert_eq!(launched.stdout(), "ran\n");
    assert!(launched.stderr.contains("event left out: bind "), "{}", launched.stderr);

    let launched = stage.launch(&stage.spec().bind(&gone, "/data").script("echo ran"));
    launched.check_refused(125, "cannot open the source of `bind ");
    launched.check_refused(125, "(--bind): openat2(");
    launched.check_refused(125, "No such file or directory (ENOENT)");
    launched.check_refused(125, "hint: ");
    launched.check_refused(125, "does not exist on this node; is its file system mounted here?");

    symlink("/etc", stage.path("exchanged")).unwrap();
    let launched = stage.launch(&stage.spec().bind(stage.path("exchanged"), "/data").script("echo ran"));
    launched.check_refused(125, "was replaced by a symbolic link");

    std::fs::create_dir(stage.path("closed")).unwrap();
    std::fs::create_dir(stage.path("closed/inner")).unwrap();
    std::fs::set_permissions(stage.path("closed"), PermissionsExt::from_mode(0o000)).unwrap();
    let launched = stage.launch(&stage.spec().bind(stage.path("closed/inner"), "/data").script("echo ran"));
    std::fs::set_permissions(stage.path("closed"), PermissionsExt::from_mode(0o700)).unwrap();
    launched.check_refused(125, "lies in a directory that is closed to you");
}

#[test]
fn refuses_impossible_destinations() {
    let stage = Stage::new();
    std::fs::write(stage.path("root/etc/file"), "").unwrap();
    let case = |destination: &str| stage.spec().bind("/dev", destination).script("echo ran");
    stage.launch(&case("/none")).check_refused(125, "the new root has no /none to bind onto");
    stage.launch(&case("/etc/file")).check_refused(125, "one is a directory and the other is not");
    stage.launch(&case("/etc/file/x")).check_refused(125, "cannot open the destination");
    stage.launch(&case("/etc/../data")).check_refused(125, "cannot open the destination");
    for root in ["/", "//", "/.", ""] {
        stage.launch(&case(root)).check_refused(125, "cannot bind onto the root itself");
    }
    let mut spec = case("/data");
    spec.root = stage.path("root/etc/file");
    stage.launch(&spec).check_refused(125, "cannot do `bind ");
    spec.root = stage.path("none");
    stage.launch(&spec).check_refused(125, "cannot open the source of `bind ");
}

/// CVE-2019-19921 and its kin: each directory that a container gets mounts on, as each kind of hostile link.
#[test]
fn links_in_the_root_lead_nowhere() {
    let stage = Stage::new();
    let canary = stage.directory("canary");
    std::fs::create_dir_all(canary.join("a/b")).unwrap();
    std::fs::write(canary.join("file"), "untouched").unwrap();
    let outside = canary.to_str().unwrap();
    let relative = format!("../../../../../../../..{outside}");
    let names = ["proc", "sys", "dev", "etc", "run", "tmp", "home", "usr", "var", "root", "opt", "mnt"];
    let targets =
        [outside, &relative, "..", "/proc/self/root", "/proc/self/cwd", "/does/not/exist", "LOOP", "bin"];
    let mut specs = Vec::new();
    for name in names {
        for (number, target) in targets.iter().enumerate() {
            let root = stage.path(&format!("roots/{name}/{number}"));
            std::fs::create_dir_all(root.join("bin")).unwrap();
            symlink(if *target == "LOOP" { name } else { target }, root.join(name)).unwrap();
            for below in ["", "/a", "/a/b", "/file"] {
                let destination = format!("/{name}{below}");
                let mut spec = stage.spec().bind("/dev", &destination).program("/bin/none", &[]);
                spec.root.clone_from(&root);
                specs.push(spec);
            }
        }
    }
    let before = (snapshot(&canary), host_mounts(&stage));
    for wrapper in [
        &[][..],
        &["strace", "-f", "-o", "/dev/null", "-e", "trace=openat2", "-e", "inject=openat2:error=ENOSYS"],
    ] {
        let launched = stage.launch_all(wrapper, &specs);
        assert_eq!(launched.statuses(), vec![125; names.len() * targets.len() * 4], "{}", launched.stderr);
        let refused = launched.stderr.matches("(ELOOP)").count();
        assert_eq!(refused, specs.len(), "{}", launched.stderr);
    }
    assert_eq!((snapshot(&canary), host_mounts(&stage)), before);
}

/// CVE-2018-15664: a directory on the way to a destination is exchanged with a link to the outside, all the time.
#[test]
fn exchanging_a_destination_gains_nothing() {
    let stage = Stage::new();
    let canary = stage.directory("canary");
    std::fs::create_dir(canary.join("inner")).unwrap();
    let project = stage.directory("project");
    std::fs::create_dir_all(project.join("real/inner")).unwrap();
    symlink(&canary, project.join("link")).unwrap();
    let spec = stage
        .spec()
        .host_trees()
        .bind(&project, "/data")
        .bind("/dev/shm", "/data/real/inner")
        .bind(&canary, "/home")
        .script("grep -c ' /home/inner ' /proc/self/mountinfo; exit 0");
    let (real, link) = (project.join("real"), project.join("link"));
    let done = std::sync::atomic::AtomicBool::new(false);
    let launched = std::thread::scope(|scope| {
        scope.spawn(|| {
            let exchange = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let here = nix::fcntl::AT_FDCWD;
                nix::fcntl::renameat2(here, &real, here, &link, exchange).unwrap();
            }
        });
        let launched = stage.launch_all(&[], &vec![spec; 300]);
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        launched
    });
    let statuses = launched.statuses();
    assert_eq!(statuses.len(), 300);
    assert!(statuses.iter().all(|status| [0, 125].contains(status)), "{}", launched.stderr);
    let seen = support::text(&launched.stdout);
    assert!(seen.lines().all(|line| line == "0"), "{seen}");
    assert!(statuses.contains(&0) && statuses.contains(&125), "the race was not run: {statuses:?}");
}

/// CVE-2024-21626: a working directory through a descriptor of a host directory, ours or the caller's.
#[test]
fn descriptors_are_no_way_out_for_the_working_directory() {
    let stage = Stage::new();
    let specs: Vec<Spec> = (0..256)
        .flat_map(|fd| {
            [format!("/proc/self/fd/{fd}"), format!("/proc/self/fd/{fd}/.."), format!("/dev/fd/{fd}")]
        })
        .map(|path| stage.spec().host_trees().script("echo ran; pwd").cwd(&[&path]))
        .collect();
    let open = format!("exec 7</etc 8<{0} 9</; exec \"$@\"", stage.path("root").display());
    let launched = stage.launch_all(&["sh", "-c", &open, "sh"], &specs);
    assert_eq!(support::text(&launched.stdout), "");
    assert_eq!(launched.statuses(), vec![125; specs.len()]);
    let refused = launched.stderr.matches("error cannot enter the working directory /").count();
    assert_eq!(refused, specs.len());
}

#[test]
fn takes_the_first_working_directory_that_is_there() {
    let stage = Stage::new();
    symlink("/data", stage.path("root/link")).unwrap();
    std::fs::create_dir(stage.path("root/closed")).unwrap();
    std::fs::set_permissions(stage.path("root/closed"), PermissionsExt::from_mode(0o000)).unwrap();
    for (directories, expected) in [
        (&["/data", "/tmp"][..], "/data\n"),
        (&["/none", "/data/none", "/tmp", "/data"], "/tmp\n"),
        (&["/bin/busybox", "/home"], "/home\n"),
        (&["/link"], "/data\n"),
        // Not even to its owner, whom the capabilities of the new namespace would have let in.
        (&["/closed", "/etc"], "/etc\n"),
        (&["/proc/self/cwd", "/"], "/\n"),
        (&[], "/\n"),
    ] {
        let spec = stage.spec().program("/bin/pwd", &["-P"]).cwd(directories);
        assert_eq!(stage.launch(&spec).stdout(), expected, "{directories:?}");
    }
    let launched = stage.launch(&stage.spec().program("/bin/pwd", &[]).cwd(&["/none", "/gone"]));
    launched.check_refused(125, "cannot enter the working directory /none: chdir(\"/none\"): No such file");
}

#[test]
fn tells_missing_programs_from_those_that_cannot_run() {
    let stage = Stage::new();
    let root = stage.path("root");
    let write = |name: &str, mode: u32, content: &[u8]| {
        std::fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
        std::fs::write(root.join(name), content).unwrap();
        std::fs::set_permissions(root.join(name), PermissionsExt::from_mode(mode)).unwrap();
    };
    let own = std::fs::read(root.join("bin/busybox")).unwrap();
    let mut foreign = own[..4096].to_vec();
    foreign[18..20].copy_from_slice(&22u16.to_be_bytes());
    foreign[5] = 2;
    write("first/tool", 0o644, b"");
    write("second/tool", 0o755, b"#!/bin/sh\necho second\n");
    write("opt/script", 0o755, b"#!/no/such/interpreter -x\n");
    write("opt/closed-script", 0o755, b"#!/first/tool\n");
    write("opt/good", 0o755, b"#!/bin/sh\necho good\n");
    write("opt/text", 0o755, b"echo hi\n");
    write("opt/empty", 0o755, b"");
    write("opt/foreign", 0o755, &foreign);
    symlink("circle", root.join("opt/circle")).unwrap();
    symlink("/opt/gone", root.join("opt/dangling")).unwrap();
    let host_program = std::fs::read("/bin/ls").unwrap();
    write("opt/dynamic", 0o755, &host_program);
    let search = ["/none", "/first", "/second", "/opt"].map(PathBuf::from);
    for (program, status, expected) in [
        ("/opt/none", 127, "error /opt/none not found"),
        ("/none/none", 127, "error /none/none not found"),
        ("/opt/good/none", 127, "error /opt/good/none not found"),
        ("none", 127, "error none not found in /none:/first:/second:/opt"),
        ("", 127, "not found"),
        ("/opt/dangling", 127, "error /opt/dangling not found"),
        ("/opt/script", 126, "its '#!' line, /no/such/interpreter, does not exist"),
        ("/opt/closed-script", 126, "its '#!' line, /first/tool, is not executable"),
        ("script", 126, "error cannot execute /opt/script: "),
        ("/opt/text", 126, "neither a program nor a script with a '#!' line"),
        ("/opt/empty", 126, "it is empty"),
        ("/opt/foreign", 126, "it is a program for s390x, and this node is "),
        ("/opt/circle", 126, "its links lead in a circle"),
        ("/opt/dynamic", 126, "its dynamic loader, /"),
        ("/first/tool", 126, "it is not executable (mode 0644)"),
        ("/opt", 126, "it is a directory"),
        ("/opt/good", 0, "good\n"),
        ("good", 0, "good\n"),
        ("tool", 0, "second\n"),
    ] {
        let mut spec = stage.spec().program(program, &[]);
        spec.search = search.to_vec();
        let launched = stage.launch(&spec);
        if status == 0 {
            assert_eq!(launched.stdout(), expected, "{program:?}");
        } else {
            launched.check_refused(status, expected);
        }
    }
    let mut spec = stage.spec().program("tool", &[]);
    spec.search = vec!["/first".into()];
    stage.launch(&spec).check_refused(126, "error cannot execute /first/tool: it is not executable");
    spec.search.clear();
    stage.launch(&spec).check_refused(127, "error tool not found (there is no PATH to look in)");
    let mut spec = stage.spec().program("/bin/true", &[]);
    spec.environment.push((b"LONG".to_vec(), vec![b'x'; 200 << 10]));
    stage.launch(&spec).check_refused(126, "arguments and environment are too long together");
}

#[test]
fn a_job_ends_as_it_ends() {
    let stage = Stage::new();
    for (script, status) in
        [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 137), ("kill $$", 143)]
    {
        assert_eq!(stage.launch(&stage.spec().script(script)).status, status, "{script}");
    }
}

#[test]
fn a_process_with_threads_is_refused() {
    let stage = Stage::new();
    let mut error = None;
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let Err(refused) = enact(stage.spec().plan(), Vec::new(), Grafts::default(), &mut |_| {});
            refused
        });
        error = Some(other.join().unwrap());
    });
    assert!(matches!(error, Some(EnactError::Threads { threads: 2.. })), "{error:?}");
}

#[test]
fn a_plan_without_a_root_is_refused() {
    let stage = Stage::new();
    let mut specs = stage.spec().bind("/dev", "/dev");
    specs.pivot = false;
    // Never pivoted: the host's root stays, and with it this directory.
    stage.launch(&specs.cwd(&["/data"])).check_refused(125, "cannot enter the working directory /data");
}

/// A rank that tells its namespaces in `/sync` and waits for the word to go on.
const RANK: &str = "
    echo $(readlink /proc/self/ns/user) $(readlink /proc/self/ns/mnt) $(grep -c . /proc/self/mountinfo) \
        $(grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status) >/sync/$$.new
    mv /sync/$$.new /sync/$$.rank
    while ! test -e /sync/go; do sleep 0.02; done
    echo went
";

/// Ranks that start together.
struct Ranks {
    stage: Stage,
    spec: Spec,
    running: Vec<Child>,
}

impl Ranks {
    fn new() -> Ranks {
        let stage = Stage::new();
        let sync = stage.directory("sync");
        std::fs::create_dir(stage.path("root/sync")).unwrap();
        let registry = stage.path("registry");
        let spec = stage.spec().host_trees().bind(sync, "/sync").script(RANK).share(&registry, "group");
        Ranks { stage, spec, running: Vec::new() }
    }

    fn start(&mut self) {
        let mut command = self.stage.command(&[], std::slice::from_ref(&self.spec));
        // Of its own process group, to be killed whole.
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null()).process_group(0);
        self.running.push(command.spawn().unwrap());
    }

    fn kill(&self, rank: usize) {
        let group = nix::unistd::Pid::from_raw(self.running[rank].id().try_into().unwrap());
        nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    /// Waits until so many ranks run; gives what each of them told.
    fn wait_for(&self, count: usize) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let told = self.told();
            if told.len() >= count {
                return told;
            }
            assert!(Instant::now() < deadline, "{} of {count} ranks came", told.len());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn told(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.stage.path("sync")).unwrap().map(|entry| entry.unwrap().path());
        let ranks = entries.filter(|path| path.extension().is_some_and(|extension| extension == "rank"));
        ranks.map(|path| std::fs::read_to_string(path).unwrap()).collect()
    }

    fn go(&self) {
        std::fs::write(self.stage.path("sync/go"), "").unwrap();
    }

    fn finish(self) -> Vec<Launched> {
        self.running.into_iter().map(|rank| Launched::new(rank.wait_with_output().unwrap())).collect()
    }
}

/// The distinct words at `index` of what ranks told.
fn distinct(told: &[String], index: usize) -> BTreeSet<String> {
    told.iter().map(|line| line.split_whitespace().nth(index).unwrap().to_owned()).collect()
}

#[test]
fn ranks_that_start_together_share_namespaces() {
    for count in [2, 8, 64] {
        let mut ranks = Ranks::new();
        for _ in 0..count {
            ranks.start();
        }
        let told = ranks.wait_for(count);
        assert_eq!(distinct(&told, 0).len(), 1, "user namespaces: {told:?}");
        assert_eq!(distinct(&told, 1).len(), 1, "mount namespaces: {told:?}");
        assert_eq!(
            told.iter().collect::<BTreeSet<_>>().len(),
            1,
            "all ranks are in the same state: {told:?}"
        );
        assert!(
            told[0].contains("CapEff: 0000000000000000 CapBnd: 0000000000000000 NoNewPrivs: 1"),
            "{told:?}"
        );
        ranks.go();
        let launched = ranks.finish();
        let joined =
            launched.iter().filter(|rank| rank.stderr.contains("event join the namespaces of")).count();
        assert_eq!(joined, count - 1);
        for rank in launched {
            assert_eq!(rank.stdout(), "went\n");
        }
    }
}

#[test]
fn ranks_of_other_groups_and_without_group_stay_apart() {
    let mut ranks = Ranks::new();
    ranks.start();
    ranks.spec.share.as_mut().unwrap().1 = "other".to_owned();
    ranks.start();
    ranks.spec.share = None;
    ranks.start();
    ranks.start();
    let told = ranks.wait_for(4);
    assert_eq!(distinct(&told, 0).len(), 4);
    assert_eq!(distinct(&told, 1).len(), 4);
    ranks.go();
    for rank in ranks.finish() {
        assert_eq!(rank.stdout(), "went\n");
    }
}

#[test]
fn a_group_outlives_the_rank_that_made_it() {
    let mut ranks = Ranks::new();
    ranks.start();
    ranks.wait_for(1);
    ranks.start();
    ranks.wait_for(2);
    ranks.kill(0);
    ranks.running[0].wait().unwrap();
    ranks.start();
    let told = ranks.wait_for(3);
    assert_eq!(distinct(&told, 1).len(), 1, "{told:?}");
    // With all gone the next makes a new group, in the same registry.
    ranks.kill(1);
    ranks.kill(2);
    for rank in &mut ranks.running {
        rank.wait().unwrap();
    }
    ranks.start();
    let told = ranks.wait_for(4);
    ranks.go();
    let last = ranks.finish().pop().unwrap();
    assert_eq!(last.stdout(), "went\n");
    assert!(!last.stderr.contains("event join"), "{told:?}: {}", last.stderr);
}

/// Late, short and killed ranks: who is not killed must run.
#[test]
fn killing_ranks_at_random_harms_no_other() {
    let mut random = support::Random::new(support::seed());
    let mut ranks = Ranks::new();
    let script = format!("touch /sync/$$.came; sleep 0.$((($$ % 3) * 5)); {PRIVILEGES}");
    ranks.spec = ranks.spec.script(&script);
    let mut killed = BTreeSet::new();
    for rank in 0..100 {
        ranks.start();
        std::thread::sleep(Duration::from_millis(random.below(12)));
        if random.below(3) == 0 {
            let victim = usize::try_from(random.below(rank + 1)).unwrap();
            // One that has ended already takes no signal.
            if ranks.running[victim].try_wait().unwrap().is_none() {
                ranks.kill(victim);
                killed.insert(victim);
            }
        }
    }
    let launched = ranks.finish();
    let survivors = launched.iter().enumerate().filter(|(rank, _)| !killed.contains(rank));
    let mut joined = 0;
    for (_, rank) in survivors {
        assert_eq!(rank.stdout(), NO_PRIVILEGES);
        assert!(!rank.stderr.contains("do not share"), "{}", rank.stderr);
        joined += usize::from(rank.stderr.contains("event join"));
    }
    eprintln!("killed {}, joined {joined}", killed.len());
    assert!(!killed.is_empty() && joined > 0);
}

#[test]
fn a_registry_that_cannot_be_trusted_is_not_used() {
    let stage = Stage::new();
    let own = |name: &str| {
        let path = stage.path(name);
        support::stdout(support::as_user("mkdir").arg("-m").arg("0700").arg(&path));
        path
    };
    let run_as_user = |program: &str, arguments: &[&str], path: &Path| {
        support::stdout(support::as_user(program).args(arguments).arg(path));
    };
    let open = own("open");
    run_as_user("chmod", &["0770"], &open);
    let target = own("target");
    symlink(&target, stage.path("link")).unwrap();
    let file_link = own("file-link");
    run_as_user("ln", &["-s", "/etc/passwd"], &file_link.join("group"));
    let file_open = own("file-open");
    run_as_user("touch", &[], &file_open.join("group"));
    run_as_user("chmod", &["0666"], &file_open.join("group"));
    let file_fifo = own("file-fifo");
    run_as_user("mkfifo", &["-m", "0600"], &file_fifo.join("group"));
    std::fs::write(stage.path("file"), "").unwrap();
    for (directory, expected) in [
        (open.as_path(), "open to others (mode 0770)"),
        (&stage.path("link"), "cannot open the rank registry"),
        (Path::new("/usr"), "owned by user 0"),
        (Path::new("/proc/none"), "cannot open the rank registry /proc/none: mkdir("),
        (&stage.path("none/none"), "(ENOENT)"),
        (&stage.path("file"), "cannot open the rank registry"),
        (&file_link, "(ELOOP)"),
        (&file_open, "open to others (mode 0666)"),
        (&file_fifo, "not a regular file"),
    ] {
        let launched = stage.launch(&stage.spec().script("echo ran").share(directory, "group"));
        assert_eq!(launched.stdout(), "ran\n");
        let warning =
            launched.stderr_values("event ranks do not share namespaces: ").next().unwrap_or_default();
        assert!(warning.contains(expected), "{expected:?}: {}", launched.stderr);
    }
    assert_eq!(std::fs::read_dir(target).unwrap().count(), 0);
}

/// Whatever a registry says, only a process in exactly the namespaces that it names is joined.
#[test]
fn a_wrong_registry_joins_nobody() {
    let stage = Stage::new();
    let registry = stage.path("registry");
    let sleeper = support::as_user("sleep").arg("60").spawn().unwrap();
    let inode = |name: &str| {
        let link = std::fs::read_link(format!("/proc/{}/ns/{name}", sleeper.id())).unwrap();
        link.to_str().unwrap().trim_matches(|char: char| !char.is_ascii_digit()).to_owned()
    };
    let spec = stage.spec().script("echo ran").share(&registry, "group");
    stage.launch(&spec).stdout();
    for content in [
        String::new(),
        "garbage\n".to_owned(),
        "\u{fffd}".repeat(1000),
        format!("\n{} 1 1\n", sleeper.id()),
        format!("\n{} {} 1\n", sleeper.id(), inode("user")),
        format!("\n{} 1 {}\n", sleeper.id(), inode("mnt")),
        format!("\n1 {} {}\n", inode("user"), inode("mnt")),
        "\n4000000 1 1\n".repeat(20_000),
    ] {
        std::fs::write(registry.join("group"), &content).unwrap();
        let launched = stage.launch(&spec);
        assert_eq!(launched.stdout(), "ran\n");
        assert!(!launched.stderr.contains("event join"), "{content:.60}: {}", launched.stderr);
    }
    let mut sleeper = sleeper;
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
}

/// One program that offers its memory and one that reads another's.
const PEER: &str = r#"
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <unistd.h>
static char secret[16] = "of another rank";
int main(int argc, char **argv) {
    if (argc == 1) {
        /* As MPI libraries do where Yama restricts tracing. */
        prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
        FILE *file = fopen("/sync/peer.new", "w");
        fprintf(file, "%d %p", getpid(), (void *)secret);
        fclose(file);
        rename("/sync/peer.new", "/sync/peer");
        while (access("/sync/go", F_OK)) usleep(10000);
        return 0;
    }
    char copy[16] = "";
    struct iovec local = { copy, sizeof copy };
    struct iovec remote = { (void *)strtoul(argv[2], NULL, 16), sizeof copy };
    if (process_vm_readv(atoi(argv[1]), &local, 1, &remote, 1, 0) < 0) { perror("process_vm_readv"); return 1; }
    puts(copy);
    return 0;
}
"#;

#[test]
fn ranks_that_share_reach_into_each_others_memory() {
    let mut ranks = Ranks::new();
    let peer = ranks.stage.path("root/bin/peer");
    let source = ranks.stage.path("peer.c");
    std::fs::write(&source, PEER).unwrap();
    support::stdout(Command::new("cc").args(["-static", "-O1", "-o"]).arg(&peer).arg(&source));
    ranks.spec = ranks.spec.program("/bin/peer", &[]);
    ranks.start();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !ranks.stage.path("sync/peer").exists() {
        assert!(Instant::now() < deadline, "the peer did not come");
        std::thread::sleep(Duration::from_millis(10));
    }
    let address = std::fs::read_to_string(ranks.stage.path("sync/peer")).unwrap();
    let (pid, address) = address.split_once(' ').unwrap();
    let sharing = ranks.spec.clone().program("/bin/peer", &[pid, address]);
    assert_eq!(ranks.stage.launch(&sharing).stdout(), "of another rank\n");
    let mut alone = sharing;
    alone.share = None;
    let launched = ranks.stage.launch(&alone);
    assert_eq!(launched.status, 1);
    assert!(launched.stderr.contains("process_vm_readv: Operation not permitted"), "{}", launched.stderr);
    ranks.go();
    for rank in ranks.finish() {
        rank.stdout();
    }
}

/// The bytes of a name that is not text go from plan to kernel and into messages without harm.
#[test]
fn names_need_not_be_text() {
    let stage = Stage::new();
    let mut spec = stage.spec();
    spec.arguments = vec![b"sh".to_vec(), b"-c".to_vec(), b"echo \xff".to_vec()];
    spec.program = "/bin/sh".to_owned();
    let launched = stage.launch(&spec);
    launched.stdout();
    assert_eq!(launched.stdout, b"\xff\n");
}

/// Makes the stage's tree an image file, and the spec's root that.
fn pack(stage: &Stage, mut spec: Spec) -> Spec {
    let image = stage.path("root.sqsh");
    support::stdout(Command::new("mksquashfs").arg(&spec.root).arg(&image).args([
        "-quiet",
        "-no-progress",
        "-noappend",
    ]));
    spec.root = image;
    spec
}

/// Processes of the image server: those that hold the stage's image open.
fn servers(stage: &Stage) -> usize {
    let image = stage.path("root.sqsh");
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let holds = |directory: PathBuf| {
        let descriptors = std::fs::read_dir(directory.join("fd")).into_iter().flatten().flatten();
        descriptors
            .map(|entry| entry.path())
            .any(|fd| std::fs::read_link(fd).is_ok_and(|target| target == image))
    };
    processes.filter(|process| holds(process.path())).count()
}

#[track_caller]
fn wait_for_servers(stage: &Stage, expected: usize) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while servers(stage) != expected {
        assert!(Instant::now() < deadline, "{} processes hold the image, not {expected}", servers(stage));
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_image_is_a_root_like_any_other() {
    let stage = Stage::new();
    let before = host_mounts(&stage);
    let spec = thorough(&stage);
    let spec = pack(&stage, spec);
    let stdout = stage.launch(&spec).stdout();
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!((lines.len(), lines[0], lines[2]), (3, "of the host", "locked"), "{stdout}");
    assert!(lines[1].contains(" / / ro,nosuid,nodev,relatime - fuse.hpcrun "), "{stdout}");
    wait_for_servers(&stage, 0);
    assert_eq!(host_mounts(&stage), before);
}

#[test]
fn ranks_share_one_image_server_that_ends_with_them() {
    let mut ranks = Ranks::new();
    ranks.spec = pack(&ranks.stage, ranks.spec.clone());
    for _ in 0..16 {
        ranks.start();
    }
    let told = ranks.wait_for(16);
    assert_eq!(told.iter().collect::<BTreeSet<_>>().len(), 1, "{told:?}");
    // Keeper and server.
    assert_eq!(servers(&ranks.stage), 2);
    ranks.kill(0);
    ranks.go();
    for (rank, child) in ranks.running.drain(..).enumerate() {
        let launched = Launched::new(child.wait_with_output().unwrap());
        assert!(rank == 0 || launched.stdout() == "went\n");
    }
    wait_for_servers(&ranks.stage, 0);
    let deadline = Instant::now() + Duration::from_secs(10);
    while ranks.stage.path("registry").exists() {
        assert!(Instant::now() < deadline, "the registry is left behind");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_launch_that_fails_leaves_no_image_server() {
    let stage = Stage::new();
    let spec = pack(&stage, stage.spec());
    for failing in [
        spec.clone().bind("/none", "/data"),
        spec.clone().bind("/dev", "/none"),
        spec.clone().cwd(&["/none"]),
        spec.clone().program("/none", &[]),
    ] {
        assert!([125, 127].contains(&stage.launch(&failing).status));
        wait_for_servers(&stage, 0);
    }
    for call in ["mount", "pivot_root", "capset"] {
        let inject = format!("inject={call}:error=EPERM");
        let wrapper =
            ["strace", "-o", "/dev/null", "-f", "-e", "trace=mount,pivot_root,capset", "-e", &inject];
        stage.launch_in(&wrapper, &spec).check_refused(125, "cannot");
        wait_for_servers(&stage, 0);
    }
}
