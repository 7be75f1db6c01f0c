//! Signals to a job, its group, its session, its server and its keeper: the job sees what it would see without hpcrun, and
//! has its root for as long as it lives.

use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::busybox_image::{assert_nobody_holds, image};
use crate::server_faults::{self, Job, helpers_of, server_of};
use crate::support::{as_user, binary, run, scratch, stdout, text};

/// All signals but those that the C library keeps for itself.
fn signals() -> impl Iterator<Item = i32> {
    (1..=64).filter(|number| ![32, 33].contains(number))
}

/// Whom a signal is for.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Target {
    Process,
    Group,
    Session,
}

/// A shell in a session of its own, with its pipes.
struct Shell {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Shell {
    /// The shell in the image, or the same program on the host.
    fn start(is_inside: bool, script: &str) -> Shell {
        let mut command = as_user("setsid");
        if is_inside {
            command.arg(binary()).arg("exec").arg(image()).args(["sh", "-c", script]);
        } else {
            command.args(["/bin/busybox", "sh", "-c", script]);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("setsid");
        let mut answers = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        answers.read_line(&mut line).expect("pipe");
        assert_eq!(line, "there\n");
        Shell { child, answers }
    }

    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    fn signal(&self, target: Target, number: i32) {
        match target {
            Target::Process => send(self.pid(), number),
            Target::Group => send(-self.pid(), number),
            Target::Session => of_session(self.pid()).into_iter().for_each(|pid| send(pid, number)),
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("pipe");
        line.trim_end().to_owned()
    }
}

/// Sends a signal to a process, or to a group by its negative number; who has gone meanwhile does not count.
fn send(pid: i32, number: i32) {
    // Through kill(1): nix has no names for real-time signals.
    run(Command::new("/bin/kill").args([&format!("-{number}"), "--", &pid.to_string()]));
}

/// The processes of a session.
fn of_session(session: i32) -> Vec<i32> {
    let stats = fs::read_dir("/proc").expect("/proc").flatten();
    stats
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let of = stat.rsplit_once(')')?.1.split_whitespace().nth(3)?.to_owned();
            (of == session.to_string()).then_some(pid)
        })
        .collect()
}

/// What becomes of a shell that gets a signal and whose input then ends.
fn fate(is_inside: bool, target: Target, number: i32) -> String {
    let mut shell = Shell::start(is_inside, "echo there; read x; exit 7");
    shell.signal(target, number);
    let mut fate = String::new();
    let pid = Pid::from_raw(shell.pid());
    if [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].contains(&number) {
        // In a session without a terminal the last three do nothing, neither here nor there.
        std::thread::sleep(Duration::from_millis(20));
        let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED | WaitPidFlag::WNOHANG)).expect("wait");
        fate += if matches!(stopped, WaitStatus::Stopped(..)) { "stopped, " } else { "not stopped, " };
        shell.signal(target, libc::SIGCONT);
    }
    drop(shell.child.stdin.take());
    let status = shell.child.wait().expect("wait");
    fate + &status.to_string().replace(" (core dumped)", "")
}

#[test]
fn every_signal_does_to_a_job_what_it_does_to_a_program() {
    for number in signals() {
        let bare = fate(false, Target::Process, number);
        for target in [Target::Process, Target::Group, Target::Session] {
            assert_eq!(fate(true, target, number), bare, "signal {number} to the {target:?}");
        }
    }
}

#[test]
fn a_job_traps_every_signal_that_a_program_traps() {
    let traps: String =
        signals().map(|number| format!("trap 'echo got {number}' {number} 2>/dev/null;")).collect();
    let script =
        format!("{traps} echo there; while :; do read x && echo $x; [ \"$x\" = end ] && exit 9; done");
    let trapped = |is_inside: bool, target: Target| {
        let mut shell = Shell::start(is_inside, &script);
        let catchable = signals().filter(|number| ![libc::SIGKILL, libc::SIGSTOP].contains(number));
        let mut seen = Vec::new();
        for number in catchable {
            shell.signal(target, number);
            seen.push(shell.line());
        }
        writeln!(shell.child.stdin.as_ref().expect("piped"), "end").expect("pipe");
        seen.push(shell.line());
        seen.push(shell.child.wait().expect("wait").to_string());
        seen
    };
    let bare = trapped(false, Target::Process);
    assert_eq!(bare.len(), 62);
    for target in [Target::Process, Target::Group, Target::Session] {
        assert_eq!(trapped(true, target), bare, "{target:?}");
    }
}

/// A job of its own image, so that its keeper and server can be told from others'.
fn own_job() -> (tempfile::TempDir, std::path::PathBuf, Job) {
    let dir = scratch();
    let path = dir.path().join("own.sqsh");
    fs::copy(&server_faults::image().0, &path).expect("copy");
    let job = Job::start(&path);
    (dir, path, job)
}

fn both_helpers(image: &Path) -> Vec<i32> {
    [helpers_of(image, "hpcrun-keeper"), helpers_of(image, "hpcrun-server")].concat()
}

/// As at the end of a batch job: everybody gets SIGTERM, and some time later SIGKILL.
#[test]
fn the_root_lives_from_sigterm_to_sigkill() {
    let (_dir, path, mut job) = own_job();
    assert_eq!(job.ask("trap '' TERM; echo ready"), "ready");
    let helpers = both_helpers(&path);
    assert_eq!(helpers.len(), 2);
    for number in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGXCPU, libc::SIGUSR1] {
        helpers.iter().for_each(|pid| send(*pid, number));
    }
    send(-job.pid(), libc::SIGTERM);
    let begun = Instant::now();
    for number in 0..16 {
        job.check_file(number);
        helpers.iter().for_each(|pid| send(*pid, libc::SIGTERM));
    }
    // As many commands again, until some seconds have passed.
    while begun.elapsed() < Duration::from_secs(3) {
        job.check_file(16 + (begun.elapsed().as_millis() / 400) as usize % 8);
    }
    helpers.iter().for_each(|pid| send(*pid, libc::SIGKILL));
    job.kill();
    assert_nobody_holds(&path);
}

#[test]
fn a_stopped_server_goes_on_when_it_is_continued() {
    let (_dir, path, mut job) = own_job();
    let server = server_of(&path).as_raw();
    for number in 0..4 {
        send(server, libc::SIGSTOP);
        job.tell(&format!("busybox sha256sum /data/{number}"));
        std::thread::sleep(Duration::from_millis(50));
        send(server, libc::SIGCONT);
        assert_eq!(job.answer(), format!("{}  /data/{number}", server_faults::image().1[number]));
    }
    assert_eq!(job.finish(), "");
    assert_nobody_holds(&path);
}

/// What a stopped server has not taken yet, nobody has to wait for.
#[test]
fn a_job_of_a_stopped_server_can_be_killed() {
    let (_dir, path, mut job) = own_job();
    let helpers = both_helpers(&path);
    helpers.iter().for_each(|pid| send(*pid, libc::SIGSTOP));
    job.tell("for n in 1 2 3 4 5 6; do cat /data/$n >/dev/null & done; ls /names");
    std::thread::sleep(Duration::from_millis(300));
    job.kill();
    helpers.iter().for_each(|pid| send(*pid, libc::SIGCONT));
    assert_nobody_holds(&path);
}

#[test]
fn without_its_keeper_a_server_goes_on_and_cleans_up() {
    let dir = scratch();
    let path = dir.path().join("own.sqsh");
    fs::copy(&server_faults::image().0, &path).expect("copy");
    let uid = stdout(as_user("id").arg("-u"));
    let registry = format!("/dev/shm/hpcrun-{}", uid.trim());
    let step = format!("{}-keeper", std::process::id());
    let mut job = Job::start_with(&path, |command| {
        command.env("SLURM_JOB_ID", &step).env("SLURM_STEP_ID", "1");
    });
    let is_registered = |pid: i32| {
        let files = fs::read_dir(&registry).into_iter().flatten().flatten();
        files
            .map(|file| fs::read_to_string(file.path()).unwrap_or_default())
            .any(|members| members.split([' ', '\n']).any(|word| word == pid.to_string()))
    };
    let pid = job.pid();
    assert!(is_registered(pid));
    let keepers = helpers_of(&path, "hpcrun-keeper");
    assert_eq!(keepers.len(), 1);
    send(keepers[0], libc::SIGKILL);
    (0..6).for_each(|number| job.check_file(number));
    assert_eq!(job.finish(), "");
    assert_nobody_holds(&path);
    let begun = Instant::now();
    while is_registered(pid) {
        assert!(begun.elapsed() < Duration::from_secs(20), "the registry of a step that has gone");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Nobody is left to serve: the job gets an error and no wrong byte, can be killed, and leaves nothing.
#[test]
fn without_keeper_and_server_reads_fail() {
    let (_dir, path, mut job) = own_job();
    let helpers = both_helpers(&path);
    let kill: Vec<String> = helpers.iter().map(ToString::to_string).collect();
    run(Command::new("/bin/kill").arg("-9").args(&kill));
    assert_nobody_holds_as_helper(&path);
    assert_eq!(job.ask("read x </data/1 || echo refused"), "refused");
    drop(job);
    assert_nobody_holds(&path);
}

#[track_caller]
fn assert_nobody_holds_as_helper(path: &Path) {
    let begun = Instant::now();
    while !both_helpers(path).is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(20), "they were killed");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Nobody in the job's group but the job, and no child of it that it does not know.
#[test]
fn helpers_are_in_no_group_of_the_job() {
    let (_dir, path, job) = own_job();
    let field = |pid: i32, at: usize| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
        text(stat.rsplit_once(')').expect("stat").1.as_bytes()).split_whitespace().nth(at).map(str::to_owned)
    };
    let group = field(job.pid(), 2);
    let helpers = both_helpers(&path);
    assert_eq!(helpers.len(), 2);
    for helper in helpers {
        assert_ne!(field(helper, 2), group);
        assert_ne!(field(helper, 1), Some(job.pid().to_string()));
    }
    assert_eq!(job.finish(), "");
}
