//! Endurance: server kills under load, launches by the thousand, kills at random moments, exhausted limits. Nothing may be
//! noticed and nothing left.
//!
//! `make test` runs each in a short form; `make soak` runs those that are ignored here, for SOAK_MINUTES in all.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

mod ranks;

use crate::busybox_image;
use crate::image_server::{WITHOUT_RESEND, check_unnoticed_kills};
use crate::support::{Random, binary, is_root, run, scratch, seed, text};

/// How long all of `make soak` takes, about.
fn minutes() -> f64 {
    std::env::var("SOAK_MINUTES").map_or(10.0, |minutes| minutes.parse().expect("SOAK_MINUTES is a number"))
}

/// `of_ten_minutes`, in the proportion of the time that there is.
fn share(of_ten_minutes: f64) -> f64 {
    of_ten_minutes * minutes() / 10.0
}

// ---------------------------------------------------------------------------------------------------------------------
// A user of its own, who can be asked for everything that is left of him.

/// A user id that nobody else has, with his directories and a copy of the image.
struct Tenant {
    dir: tempfile::TempDir,
    uid: u32,
}

impl Tenant {
    fn new() -> Tenant {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        assert!(is_root(), "these tests make up users: run them as root");
        let uid = 1_000_000_000 + (std::process::id() << 6) + NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = scratch();
        busybox_image::copy_in(dir.path());
        for name in ["home", "tmp", "run"] {
            let path = dir.path().join(name);
            fs::create_dir(&path).expect("directory");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("chmod");
        }
        fs::create_dir(dir.path().join("connections")).expect("directory");
        let connections = dir.path().join("connections");
        mount(Some("fusectl"), &connections, Some("fusectl"), MsFlags::empty(), None::<&str>)
            .expect("mount of fusectl");
        Tenant { dir, uid }
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("own.sqsh")
    }

    /// A command of the user, without any limit.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        let uid = self.uid.to_string();
        command
            .args(["--reuid", &uid, "--regid", &uid, "--clear-groups", "--inh-caps=-all", "--"])
            .args(words)
            .env("HOME", self.dir.path().join("home"))
            .env("TMPDIR", self.dir.path().join("tmp"))
            .env("XDG_RUNTIME_DIR", self.dir.path().join("run"))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// `hpcrun exec IMAGE COMMAND` after `wrapper`.
    fn exec_in(&self, wrapper: &[&str], command: &[&str]) -> Command {
        let image = self.image();
        let hpcrun = [&*binary().to_string_lossy(), "exec", &*image.to_string_lossy()].map(str::to_owned);
        let words: Vec<&str> = wrapper
            .iter()
            .copied()
            .chain(hpcrun.iter().map(String::as_str))
            .chain(command.iter().copied())
            .collect();
        self.command(&words)
    }

    fn exec(&self, command: &[&str]) -> Command {
        self.exec_in(&[], command)
    }

    /// The user's processes, zombies among them, as `PID NAME STATE`.
    fn processes(&self) -> Vec<String> {
        let entries = fs::read_dir("/proc").expect("/proc").flatten();
        entries
            .filter_map(|entry| {
                let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
                let status = fs::read_to_string(entry.path().join("status")).ok()?;
                let field =
                    |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("").trim();
                let uid = field("Uid:").split_whitespace().next()?.parse::<u32>().ok()?;
                (uid == self.uid).then(|| format!("{pid} {} {}", field("Name:"), field("State:")))
            })
            .collect()
    }

    /// Whatever there is of the user: processes, files, mounts, FUSE connections.
    fn left(&self) -> Vec<String> {
        let mut left: Vec<String> =
            self.processes().into_iter().map(|process| format!("process {process}")).collect();
        let own = self.dir.path();
        for directory in
            [own.join("home"), own.join("tmp"), own.join("run"), "/tmp".into(), "/dev/shm".into()]
        {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                if fs::symlink_metadata(entry.path()).is_ok_and(|found| found.uid() == self.uid) {
                    left.push(format!("file {}", entry.path().display()));
                }
            }
        }
        for entry in fs::read_dir(own.join("connections")).expect("fusectl").flatten() {
            if entry.metadata().is_ok_and(|found| found.uid() == self.uid) {
                left.push(format!("connection {}", entry.file_name().display()));
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let image = self.image().display().to_string();
        left.extend(mounts.lines().filter(|line| line.contains(&image)).map(|line| format!("mount {line}")));
        left
    }

    /// The last servers end a moment after their jobs.
    #[track_caller]
    fn assert_nothing_left(&self) {
        let begun = Instant::now();
        loop {
            let left = self.left();
            if left.is_empty() {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "left behind: {left:#?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        for process in self.processes() {
            let pid = process.split(' ').next().expect("a number").to_owned();
            run(Command::new("kill").args(["-KILL", &pid]));
        }
        let _ = umount2(&self.dir.path().join("connections"), MntFlags::MNT_DETACH);
    }
}

/// As a rank of a step.
fn as_rank(command: &mut Command, step: usize) -> &mut Command {
    command.env("SLURM_JOB_ID", "1").env("SLURM_STEP_ID", step.to_string())
}

#[track_caller]
fn assert_success(child: Child, expected: &str) {
    let output = child.wait_with_output().expect("wait");
    assert!(
        output.status.success() && text(&output.stdout) == expected && output.stderr.is_empty(),
        "{}: {}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
}

// ---------------------------------------------------------------------------------------------------------------------
// Launch cycles.

/// Launches `cycles` times and kills one in ten at a random moment of its first 40 ms; every other launch is a rank of a
/// step.
#[track_caller]
fn check_cycles(cycles: usize) {
    let tenant = Tenant::new();
    let mut random = Random::new(seed());
    let (mut killed, mut begun_only) = (0, 0);
    for cycle in 1..=cycles {
        let mut command = tenant.exec(&["cat", "/work/note"]);
        if cycle % 2 == 0 {
            as_rank(&mut command, cycle);
        }
        let mut child = command.spawn().expect("hpcrun");
        if cycle % 10 == 3 {
            std::thread::sleep(Duration::from_micros(random.below(40_000)));
            let had_ended = child.try_wait().expect("wait").is_some();
            child.kill().expect("kill");
            child.wait().expect("wait");
            killed += 1;
            begun_only += usize::from(!had_ended);
        } else {
            assert_success(child, "a note\n");
        }
    }
    tenant.assert_nothing_left();
    println!("{cycles} launches, {killed} of them killed ({begun_only} before their end): nothing left");
}

#[test]
fn launches_leave_nothing_even_killed() {
    check_cycles(100);
}

#[test]
#[ignore = "a part of 'make soak'"]
fn soak_launch_cycles() {
    check_cycles(share(2000.0) as usize);
}

/// Launches `count` times at once; gives the most servers seen at a time.
#[track_caller]
fn launch_at_once(tenant: &Tenant, count: usize, step: Option<usize>) -> usize {
    let children: Vec<Child> = (0..count)
        .map(|_| {
            let mut command = tenant.exec(&["sh", "-c", "cat /work/note; sleep 1"]);
            if let Some(step) = step {
                as_rank(&mut command, step);
            }
            command.spawn().expect("hpcrun")
        })
        .collect();
    let servers = tenant.processes().iter().filter(|process| process.contains(" hpcrun-server ")).count();
    children.into_iter().for_each(|child| assert_success(child, "a note\n"));
    tenant.assert_nothing_left();
    servers
}

#[test]
fn launches_at_once_succeed_as_strangers_and_as_ranks() {
    let tenant = Tenant::new();
    launch_at_once(&tenant, 32, None);
    let servers = launch_at_once(&tenant, 32, Some(1));
    assert!(servers <= 1, "{servers} servers for one step");
}

#[test]
#[ignore = "a part of 'make soak'"]
fn soak_256_launches_at_once() {
    let tenant = Tenant::new();
    for step in 0..2 {
        let begun = Instant::now();
        launch_at_once(&tenant, 256, None);
        let strangers = begun.elapsed();
        let servers = launch_at_once(&tenant, 256, Some(step));
        assert!(servers <= 1, "{servers} servers for one step");
        println!(
            "256 strangers at once in {strangers:?}, 256 ranks in {:?}: nothing left",
            begun.elapsed() - strangers
        );
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Limits.

/// The one line of an hpcrun that could not start, which is no mystery.
#[track_caller]
fn assert_clear_error(output: &std::process::Output, parts: &[&str]) {
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{errors}");
    let told: Vec<&str> = errors.lines().filter(|line| !line.starts_with("hint: ")).collect();
    assert_eq!(told.len(), 1, "{errors}");
    assert!(told[0].starts_with("hpcrun: ") && parts.iter().any(|part| told[0].contains(part)), "{errors}");
}

#[test]
fn a_limit_of_processes_is_one_clear_error() {
    let tenant = Tenant::new();
    let mut started = 0;
    for limit in 1..9 {
        let wrapper = ["prlimit", &format!("--nproc={limit}"), "--"];
        let output = tenant.exec_in(&wrapper, &["/bin/true"]).output().expect("hpcrun");
        if output.status.success() {
            started += 1;
        } else {
            assert_clear_error(&output, &["cannot start the image server", "fork(keeper)"]);
            assert!(text(&output.stderr).contains("ulimit -u"), "{}", text(&output.stderr));
        }
        tenant.assert_nothing_left();
    }
    assert!(started >= 4, "{started} of 8");
}

#[test]
fn a_limit_of_namespaces_is_one_clear_error_for_each() {
    const LIMIT: usize = 5;
    let tenant = Tenant::new();
    // The namespace around has a limit of its own, which counts those within.
    let script = format!("echo {LIMIT} >/proc/sys/user/max_user_namespaces; exec \"$@\"");
    let all = format!(
        "for n in 1 2 3 4 5 6 7 8 9 10 11 12; do ({} exec {} sh -c 'cat /work/note; sleep 3' 2>{}/tmp/$n; echo $?) & done; wait",
        binary().display(),
        tenant.image().display(),
        tenant.dir.path().display()
    );
    let unshare = ["unshare", "--user", "--map-current-user", "--keep-caps"];
    let words = [&unshare[..], &["sh", "-c", &script, "sh", "sh", "-c", &all]].concat();
    let output = tenant.command(&words).output().expect("unshare");
    let out = text(&output.stdout);
    let count = |line: &str| out.lines().filter(|found| *found == line).count();
    assert_eq!(
        (count("a note"), count("0"), count("125")),
        (LIMIT, LIMIT, 12 - LIMIT),
        "{out}{}",
        text(&output.stderr)
    );
    for number in 1..13 {
        let path = tenant.dir.path().join(format!("tmp/{number}"));
        let errors = fs::read_to_string(&path).expect("errors");
        let is_clear = errors.starts_with("hpcrun: cannot create a user namespace")
            && errors.contains("max_user_namespaces");
        assert!(errors.is_empty() || is_clear, "{errors}");
        fs::remove_file(path).expect("rm");
    }
    tenant.assert_nothing_left();
}

// ---------------------------------------------------------------------------------------------------------------------
// The end of a whole cgroup, as by scancel.

/// A cgroup of version 2, which can be killed as a whole.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(name: u32) -> Cgroup {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        let line = mounts.lines().find(|line| line.starts_with("cgroup2 ")).expect("cgroups of version 2");
        let parent = Path::new(line.split(' ').nth(1).expect("a mount point"));
        let cgroup = Cgroup(parent.join(format!("hpcrun-test-{name}")));
        fs::create_dir(&cgroup.0).expect("cgroup");
        cgroup
    }

    fn processes(&self) -> Vec<String> {
        let list = fs::read_to_string(self.0.join("cgroup.procs")).expect("cgroup.procs");
        list.lines().map(str::to_owned).collect()
    }

    /// By the kernel's own switch (Linux 5.14), or one by one until nobody is left.
    fn kill(&self, one_by_one: bool) {
        if !one_by_one && fs::write(self.0.join("cgroup.kill"), "1").is_ok() {
            return;
        }
        let begun = Instant::now();
        while !self.processes().is_empty() && begun.elapsed() < Duration::from_secs(20) {
            for pid in self.processes() {
                run(Command::new("kill").args(["-KILL", &pid]));
            }
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let begun = Instant::now();
        while fs::remove_dir(&self.0).is_err() && begun.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Kills the cgroup of a job that reads, at a random moment, `rounds` times.
#[track_caller]
fn check_cgroup_kills(rounds: usize) {
    let tenant = Tenant::new();
    let cgroup = Cgroup::new(tenant.uid);
    let mut random = Random::new(seed());
    let enter = format!("echo 0 >{}/cgroup.procs; exec \"$@\"", cgroup.0.display());
    let load = "for n in 1 2 3 4; do (while :; do find / -xdev >/dev/null; cat /data/large /bin/* >/dev/null; done) & done; wait";
    for round in 0..rounds {
        let job = tenant.exec(&["sh", "-c", load]);
        let mut command = Command::new("sh");
        command.args(["-ec", &enter, "sh"]).arg(job.get_program()).args(job.get_args());
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("sh");
        let begun = Instant::now();
        while cgroup.processes().is_empty() && begun.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(random.below(400)));
        cgroup.kill(round % 2 == 1);
        child.wait().expect("wait");
        tenant.assert_nothing_left();
        assert_eq!(cgroup.processes(), [""; 0]);
    }
    println!("{rounds} cgroups killed: nothing left");
}

#[test]
fn a_killed_cgroup_leaves_nothing() {
    check_cgroup_kills(8);
}

#[test]
#[ignore = "a part of 'make soak'"]
fn soak_cgroup_kills() {
    check_cgroup_kills(share(200.0) as usize);
}

// ---------------------------------------------------------------------------------------------------------------------
// Servers killed under load.

#[test]
#[ignore = "a part of 'make soak'"]
fn soak_server_kills() {
    for masked in [0, WITHOUT_RESEND] {
        let begun = Instant::now();
        let kills = share(300.0) as usize;
        check_unnoticed_kills(masked, kills);
        println!("{kills} servers killed in {:?}: no error, no wrong byte", begun.elapsed());
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Memory over time.

/// Resident memory of the server, kB.
fn server_memory(tenant: &Tenant) -> u64 {
    let server =
        tenant.processes().into_iter().find(|process| process.contains(" hpcrun-server ")).expect("a server");
    let pid = server.split(' ').next().expect("a number").to_owned();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    resident.trim().trim_end_matches(" kB").parse().expect("kilobytes")
}

#[test]
#[ignore = "a part of 'make soak'"]
fn soak_memory_of_the_server() {
    let tenant = Tenant::new();
    let load = "for n in 1 2 3 4; do (n=0; while :; do n=$((n+1)); cat /data/large >/dev/null; ls -lR / >/dev/null 2>&1; [ -e /none$n ] && echo found; \
        busybox dd if=/data/large of=/dev/null bs=64k iflag=direct 2>/dev/null; busybox dd if=/bin/busybox of=/dev/null bs=4k iflag=direct 2>/dev/null; done) & done; wait";
    let mut command = tenant.exec(&["sh", "-c", load]);
    let mut child =
        command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn().expect("hpcrun");
    let span = Duration::from_secs_f64(share(240.0).max(10.0));
    let begun = Instant::now();
    // Until each thread has had the largest of everything in hand.
    std::thread::sleep(span / 2);
    let mut samples = Vec::new();
    while begun.elapsed() < span {
        samples.push((begun.elapsed().as_secs_f64() / 60.0, server_memory(&tenant) as f64));
        std::thread::sleep(Duration::from_millis(200));
    }
    let count = samples.len() as f64;
    let mean = |of: &dyn Fn(&(f64, f64)) -> f64| samples.iter().map(of).sum::<f64>() / count;
    let (time, memory) = (mean(&|sample| sample.0), mean(&|sample| sample.1));
    let slope =
        mean(&|sample| (sample.0 - time) * (sample.1 - memory)) / mean(&|sample| (sample.0 - time).powi(2));
    println!(
        "memory of the server: {memory:.0} kB, {slope:+.1} kB a minute over {:.1} minutes",
        span.as_secs_f64() / 120.0
    );
    nix::sys::signal::killpg(
        nix::unistd::Pid::from_raw(child.id().cast_signed()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .expect("kill");
    child.wait().expect("wait");
    tenant.assert_nothing_left();
    assert!(memory <= 65_536.0, "{memory} kB");
    // A tenth of a per cent a minute, and a page or two of the allocator's.
    assert!(slope <= memory / 1000.0 + 64.0, "{slope} kB a minute");
}
