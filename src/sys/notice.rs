//! One line to people from a process without standard streams: on a job's standard error, and to the system log.
#![expect(
    unsafe_code,
    reason = "pidfd_getfd has no safe wrapper, and standard error is a number that nobody owns"
)]

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Error, handover};

/// Where the system's log listens.
const SYSTEM_LOG: &str = "/dev/log";
/// Facility "user".
const USER: u8 = 1;
/// Severity "error".
const ERROR: u8 = 3;
/// Longest line, bytes: a pipe that can be written to at all takes as much at once.
const LINE_MAX: usize = 4000;

/// A standard error, known again in other processes by its device and inode, and held open by none of ours: a pipe kept
/// open would keep its reader waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandardError {
    device: u64,
    inode: u64,
}

impl StandardError {
    /// The caller's.
    pub fn own() -> Option<StandardError> {
        // SAFETY: Rust's runtime sees to it that descriptor 2 is open, and nobody closes it during this call.
        StandardError::of(unsafe { BorrowedFd::borrow_raw(libc::STDERR_FILENO) })
    }

    fn of(stream: BorrowedFd<'_>) -> Option<StandardError> {
        let stat = nix::sys::stat::fstat(stream).ok()?;
        Some(StandardError { device: stat.st_dev, inode: stat.st_ino })
    }

    /// Writes `line` on it through a process that the thread `id` belongs to, if that has it as its standard error still, at
    /// the position where the process itself writes. Needs the right to trace that process, and Linux 5.6. A full pipe is
    /// not waited for; a file system that does not answer is.
    pub fn write_through(self, id: u32, line: &str) -> bool {
        let Some(stream) = standard_error_of(id) else { return false };
        let mut polled = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
        let is_ready = poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready == 1)
            && polled.iter().all(|one| one.revents().is_some_and(|seen| seen == PollFlags::POLLOUT));
        let mut bytes = line.as_bytes().get(..LINE_MAX).unwrap_or(line.as_bytes()).to_vec();
        bytes.push(b'\n');
        is_ready
            && StandardError::of(stream.as_fd()) == Some(self)
            && File::from(stream).write_all(&bytes).is_ok()
    }
}

/// Another descriptor of the standard error that the process of thread `id` has, wrapper for `pidfd_getfd(2)`.
fn standard_error_of(id: u32) -> Option<OwnedFd> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let process: i32 = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()?;
    let process = handover::process(process).ok()?;
    // SAFETY: takes numbers only; what is no descriptor is not taken for one.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), libc::STDERR_FILENO, 0) })
}

/// The descriptor that a system call has made, if it has.
fn owned(made: libc::c_long) -> Option<OwnedFd> {
    let fd = i32::try_from(made).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the kernel has just made this descriptor for the caller, who knows of no other owner.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Writes `line` on the caller's own standard error, as far as that goes.
pub fn write_own(line: &str) {
    // SAFETY: the descriptor is used during this call only, in which nobody closes it.
    let stream = unsafe { BorrowedFd::borrow_raw(libc::STDERR_FILENO) };
    let _ = nix::unistd::write(stream, format!("{line}\n").as_bytes());
}

/// Sends `line` to the system's log as `program`, if one listens; a busy one is not waited for.
pub fn log_to_system(program: &str, line: &str) -> bool {
    SystemLog::connect().and_then(|log| log.send(USER, ERROR, program, line)).is_ok()
}

/// The system's log, which stays the same in another root.
#[derive(Debug)]
pub struct SystemLog(UnixDatagram);

impl SystemLog {
    /// Connects to it, if it listens.
    pub fn connect() -> Result<SystemLog, Error> {
        SystemLog::at(Path::new(SYSTEM_LOG))
    }

    fn at(path: &Path) -> Result<SystemLog, Error> {
        let failed = |error: std::io::Error| Error::from_io(format!("connect({path:?})"), &error);
        let socket = UnixDatagram::unbound().map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        socket.connect(path).map_err(failed)?;
        Ok(SystemLog(socket))
    }

    /// Sends `line` as `program`, with a facility and a severity of `syslog(3)`; a busy log is not waited for. The time is
    /// left to the receiver, as journald and rsyslog want it of what comes from their own node.
    pub fn send(&self, facility: u8, severity: u8, program: &str, line: &str) -> Result<(), Error> {
        let priority = u32::from(facility) << 3 | u32::from(severity);
        let message = format!("<{priority}>{program}[{}]: {line}", std::process::id());
        let sent = self.0.send(message.as_bytes());
        sent.map(drop).map_err(|error| Error::from_io("send(system log)", &error))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::process::{Command, Stdio};

    use nix::errno::Errno;

    use super::*;

    #[test]
    fn the_system_log_gets_whole_lines_and_is_never_waited_for() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("log");
        assert_eq!(SystemLog::at(&path).expect_err("nobody listens").errno, Errno::ENOENT);
        let receiver = UnixDatagram::bind(&path).expect("socket");
        let log = SystemLog::at(&path).expect("connect");
        log.send(16, 6, "hpcrun", "a line").expect("send");
        let mut got = [0; 100];
        let length = receiver.recv(&mut got).expect("datagram");
        let expected = format!("<134>hpcrun[{}]: a line", std::process::id());
        assert_eq!(got.get(..length), Some(expected.as_bytes()));
        // Nobody reads: the queue is full after some lines.
        let refused = (0..100_000).find_map(|_| log.send(1, 6, "hpcrun", "a line").err());
        assert_eq!(refused.expect("a full queue").errno, Errno::EAGAIN);
        drop(receiver);
        assert!(log.send(1, 6, "hpcrun", "a line").is_err());
    }

    #[test]
    fn a_line_reaches_the_standard_error_of_a_process_that_has_it() {
        let mut child =
            Command::new("cat").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("cat");
        let mut errors = child.stderr.take().expect("piped");
        let known = StandardError::of(errors.as_fd()).expect("fstat");
        assert!(known.write_through(child.id(), "a line"));
        let other = StandardError { inode: known.inode + 1, ..known };
        assert!(!other.write_through(child.id(), "another"));
        drop(child.stdin.take());
        child.wait().expect("wait");
        assert!(!known.write_through(child.id(), "too late"));
        let mut written = String::new();
        errors.read_to_string(&mut written).expect("pipe");
        assert_eq!(written, "a line\n");
    }
}
