//! The job at a terminal: a pseudo-terminal whose other end is the test.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{Signal, killpg};
use nix::sys::stat::Mode;
use nix::unistd::Pid;

use super::{exec, exec_image, ready, tools};
use crate::busybox_image::{assert_nobody_holds, copy_in};
use crate::support::{hpcrun, stdout, text};

/// The keyboard's interrupt and end of input.
const CONTROL_C: &[u8] = b"\x03";
const CONTROL_D: &[u8] = b"\x04";

/// A job that leads a session at a terminal of its own.
struct Session {
    keyboard: File,
    name: String,
    child: Child,
    shown: String,
}

impl Session {
    fn start(job: &Command) -> Session {
        // Closed on exec: a copy in any other process would keep the terminal from hanging up.
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master = posix_openpt(flags).expect("a pseudo-terminal");
        grantpt(&master).expect("grantpt");
        unlockpt(&master).expect("unlockpt");
        let name = ptsname_r(&master).expect("its name");
        let slave = nix::fcntl::open(name.as_str(), flags, Mode::empty()).expect("its other end");
        let end = || Stdio::from(slave.try_clone().expect("dup"));
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(job.get_program()).args(job.get_args());
        command.envs(job.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("TERM", "dumb");
        command.current_dir(job.get_current_dir().unwrap_or("/tmp".as_ref()));
        command.stdin(end()).stdout(end()).stderr(end());
        let child = command.spawn().expect("spawn");
        Session { keyboard: File::from(OwnedFd::from(master)), name, child, shown: String::new() }
    }

    fn press(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).expect("write to the terminal");
    }

    /// Waits until the job polls for a key: an interrupt between its prompt and that Python notices with the next key only.
    #[track_caller]
    fn expect_poll(&self) {
        let path = format!("/proc/{}/wchan", self.child.id());
        let deadline = Instant::now() + Duration::from_secs(20);
        while !std::fs::read_to_string(&path).expect("wchan").contains("poll") {
            assert!(Instant::now() < deadline, "the job polls for no key");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until the screen shows `expected` in what came since the last time.
    #[track_caller]
    fn expect(&mut self, expected: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(at) = self.shown.find(expected) {
                let rest = self.shown.split_off(at + expected.len());
                return std::mem::replace(&mut self.shown, rest);
            }
            assert!(Instant::now() < deadline, "no {expected:?} in {:?}", self.shown);
            let mut ready = [PollFd::new(self.keyboard.as_fd(), PollFlags::POLLIN)];
            if poll(&mut ready, PollTimeout::from(200u8)).expect("poll") == 1 {
                let mut buffer = [0; 4096];
                // EIO: nobody has the terminal open any more.
                let count = self.keyboard.read(&mut buffer).unwrap_or(0);
                self.shown.push_str(&text(&buffer[..count]));
            }
        }
    }
}

/// Python in an image that shows the host's programs.
fn python(arguments: &[&str]) -> Command {
    let mut command = hpcrun(["exec", "--bind", "/usr:/usr:ro"]);
    command.arg(tools()).arg("/usr/bin/python3").args(arguments);
    command
}

#[test]
fn row_08_an_interrupt_comes_once_and_python_goes_on() {
    let mut session = Session::start(&python(&["-q", "-i"]));
    session.expect(">>> ");
    session.expect_poll();
    session.press(CONTROL_C);
    session.expect("KeyboardInterrupt");
    session.expect(">>> ");
    // A file of the image that nobody has read yet.
    session.press(b"print('read', open('/data/text').read())\n");
    let between = session.expect("read of the image");
    assert!(!between.contains("KeyboardInterrupt"), "{between}");
    session.expect(">>> ");
    session.press(CONTROL_D);
    assert_eq!(session.child.wait().expect("wait").code(), Some(0));
    // The same, counted.
    let count = "import signal, time\n\
        n = []\n\
        signal.signal(signal.SIGINT, lambda *_: n.append(1))\n\
        print('ready', flush=True)\n\
        time.sleep(1)\n\
        print('interrupts:', len(n))";
    let mut session = Session::start(&python(&["-c", count]));
    session.expect("ready");
    session.press(CONTROL_C);
    session.expect("interrupts: 1\r\n");
    assert!(session.child.wait().expect("wait").success());
}

#[test]
fn row_08_an_interrupt_ends_a_job_that_does_not_mind_it() {
    let mut session = Session::start(&exec(&["sh", "-c", "echo ready; exec sleep 100"]));
    session.expect("ready");
    session.press(CONTROL_C);
    assert_eq!(session.child.wait().expect("wait").signal(), Some(Signal::SIGINT as i32));
}

#[test]
fn row_27_and_32_of_the_peers_the_terminal_is_the_jobs() {
    let program = "import os, signal, sys, time\n\
        changed = []\n\
        signal.signal(signal.SIGWINCH, lambda *_: changed.append(os.get_terminal_size()))\n\
        print('ready', os.ttyname(0), os.tcgetpgrp(0) == os.getpgrp(), flush=True)\n\
        while not (changed and changed[-1].columns): time.sleep(0.02)\n\
        print('size', changed[-1].columns, changed[-1].lines)";
    let mut session = Session::start(&python(&["-c", program]));
    let name = session.name.clone();
    session.expect(&format!("ready {name} True"));
    stdout(Command::new("stty").args(["-F", &name, "rows", "41", "cols", "99"]));
    session.expect("size 99 41");
    assert!(session.child.wait().expect("wait").success());
}

#[test]
fn row_33_of_the_peers_a_terminal_that_hangs_up_leaves_nothing() {
    let dir = crate::support::scratch();
    let own = copy_in(dir.path());
    let mut session =
        Session::start(&exec_image(&own, &["sh", "-c", "sleep 100 & echo ready; exec sleep 100"]));
    session.expect("ready");
    drop(session.keyboard);
    assert_eq!(session.child.wait().expect("wait").signal(), Some(Signal::SIGHUP as i32));
    assert_nobody_holds(&own);
}

#[test]
fn row_33_of_the_peers_a_time_limit_leaves_nothing() {
    use std::os::unix::process::CommandExt as _;
    let dir = crate::support::scratch();
    let own = copy_in(dir.path());
    // As a batch system does: TERM to every process of the step, then KILL.
    let script = "trap 'cat /work/note' TERM; sleep 100 & echo ready; while :; do wait; done";
    let mut child = ready(exec_image(&own, &["sh", "-c", script]).process_group(0).stdin(Stdio::null()));
    let group = Pid::from_raw(child.id().cast_signed());
    killpg(group, Signal::SIGTERM).expect("kill");
    std::thread::sleep(Duration::from_millis(100));
    killpg(group, Signal::SIGKILL).expect("kill");
    let output = child.wait().expect("wait");
    assert_eq!(output.signal(), Some(Signal::SIGKILL as i32));
    assert_nobody_holds(&own);
}
