//! Processes: fork, wait, exit, and what a helper process does to let go of the one it came from.
#![expect(unsafe_code, reason = "fork, close_range, dup2, getsockopt and prctl have no safe wrapper")]

use std::io::{PipeReader, PipeWriter};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, setrlimit};

use super::Error;

/// Which side of a fork this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The caller; the child's process id.
    Parent(i32),
    /// The new process.
    Child,
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It exited with this status, 0 to 255.
    Exited(i32),
    /// This signal killed it.
    Killed(i32),
}

impl Ended {
    /// What a status of `waitpid(2)` says; none of a child that has only stopped or gone on.
    fn of(status: i32) -> Option<Ended> {
        if libc::WIFEXITED(status) {
            Some(Ended::Exited(libc::WEXITSTATUS(status)))
        } else if libc::WIFSIGNALED(status) {
            Some(Ended::Killed(libc::WTERMSIG(status)))
        } else {
            None
        }
    }

    /// As the exit status that a shell gives it: its own, or 128 and the number of the signal.
    pub fn status(self) -> u8 {
        match self {
            Ended::Exited(status) => u8::try_from(status).unwrap_or(u8::MAX),
            Ended::Killed(signal) => u8::try_from(signal).unwrap_or(u8::MAX).saturating_add(128),
        }
    }
}

/// Wrapper for `fork(2)`. Call it while single-threaded: in the child of a threaded process another thread's locks
/// stay locked for ever.
pub fn fork() -> Result<Fork, Error> {
    // SAFETY: the callers are single-threaded, so that the child finds every lock free.
    match unsafe { libc::fork() } {
        -1 => Err(Error::last("fork()")),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

/// Waits for the end of the child `pid`.
pub fn wait(pid: i32) -> Result<Ended, Error> {
    loop {
        if let Some((_, ended)) = reap(pid, 0)? {
            return Ok(ended);
        }
    }
}

/// Waits for the end of the child `pid`, and lets go of others that end meanwhile.
pub fn wait_among(pid: i32) -> Result<Ended, Error> {
    loop {
        match reap(ANY_CHILD, 0)? {
            Some((ended, how)) if ended == pid => return Ok(how),
            _ => {}
        }
    }
}

/// How the child `pid` ended, if it has.
pub fn try_wait(pid: i32) -> Result<Option<Ended>, Error> {
    Ok(reap(pid, libc::WNOHANG)?.map(|(_, ended)| ended))
}

/// A child that has ended, if one has: its process id and how.
pub fn ended_child() -> Option<(i32, Ended)> {
    reap(ANY_CHILD, libc::WNOHANG).ok().flatten()
}

/// To `waitpid(2)`, whichever child.
const ANY_CHILD: i32 = -1;

/// Wrapper for `waitpid(2)`: who ended and how; none with `WNOHANG` if nobody has.
fn reap(pid: i32, options: libc::c_int) -> Result<Option<(i32, Ended)>, Error> {
    let mut status = 0;
    loop {
        // SAFETY: the kernel writes one int.
        match unsafe { libc::waitpid(pid, &raw mut status, options) } {
            -1 if Errno::last() == Errno::EINTR => {}
            -1 => return Err(Error::last(format!("waitpid({pid})"))),
            0 => return Ok(None),
            ended => return Ok(Ended::of(status).map(|how| (ended, how))),
        }
    }
}

/// Ends the process at once: no destructor, no buffer of the parent's written a second time.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit never returns and touches no memory of ours.
    unsafe { libc::_exit(status) }
}

/// Runs `body` in a forked child and waits for it: what it does to its namespaces and privileges ends with it. The
/// child has one thread, whatever its parent has; its exit status is what `body` returns, 101 if that panics.
///
/// For what can only be found out by doing it. In a parent with threads the C library must keep `malloc` usable in
/// the child, as glibc does.
pub fn in_child(body: impl FnOnce() -> u8) -> Result<Ended, Error> {
    match fork()? {
        Fork::Child => {
            let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(101);
            exit_now(status.into())
        }
        Fork::Parent(child) => wait(child),
    }
}

/// Whether the thread `id` is being killed or has gone; false where that cannot be found out.
///
/// A thread that the kernel holds in an uninterruptible wait has `SIGKILL` pending from the moment on that its process was
/// killed by whatever signal. Read from `/proc`, which must be of the caller's process namespace.
pub fn is_ending(id: u32) -> bool {
    let own = std::fs::read_link("/proc/self").ok();
    if id == 0 || own != Some(std::process::id().to_string().into()) {
        return false;
    }
    match std::fs::read_to_string(format!("/proc/{id}/status")) {
        Ok(status) => is_ending_status(&status),
        // ESRCH: it went while it was being looked at.
        Err(error) => matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)),
    }
}

/// [`is_ending`] by the text of `/proc/ID/status`.
fn is_ending_status(status: &str) -> bool {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let pending = field("SigPnd:").and_then(|mask| u64::from_str_radix(mask, 16).ok()).unwrap_or(0);
    let state = field("State:").unwrap_or_default();
    pending & 1 << (libc::SIGKILL - 1) != 0 || state.starts_with(['Z', 'X'])
}

/// Whether there is a process `pid`, of whomever.
pub fn exists(pid: i32) -> bool {
    pid > 0 && nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None) != Err(nix::errno::Errno::ESRCH)
}

/// Wrapper for `umask(2)`: bits that files made from now on do not get.
pub fn set_umask(umask: u32) {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(umask));
}

/// Has the kernel kill this process when its parent dies, and ends it if the parent has died already. Only the parent
/// has the reading end of `parent`: its process id is no way to tell, 0 in another process namespace.
pub fn die_with_parent(parent: &PipeWriter) -> Result<(), Error> {
    // SAFETY: the call takes numbers only.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
        return Err(Error::last("prctl(SET_PDEATHSIG, KILL)"));
    }
    match poll_for(parent, PollFlags::empty(), Some(Duration::ZERO))? {
        None => Ok(()),
        Some(_) => exit_now(libc::EXIT_FAILURE),
    }
}

/// Ends as a child did: with its status, or by the signal that killed it, without a second core file.
pub fn end_as(ended: Ended) -> ! {
    match ended {
        Ended::Exited(status) => exit_now(status),
        Ended::Killed(number) => {
            let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
            super::signal::die_of(number);
            exit_now(ended.status().into())
        }
    }
}

/// Wrapper for `setpgid(2)`: away from signals to the caller's process group, and from the foreground of its terminal.
pub fn new_group() -> Result<(), Error> {
    let this = nix::unistd::Pid::from_raw(0);
    nix::unistd::setpgid(this, this).map_err(|errno| Error::new("setpgid(0, 0)", errno))
}

/// A pipe whose ends close on exec.
pub fn pipe() -> Result<(PipeReader, PipeWriter), Error> {
    std::io::pipe().map_err(|error| Error::from_io("pipe2(CLOEXEC)", &error))
}

/// Has writes to a full pipe fail instead of waiting: wrapper for `fcntl(2)` with `O_NONBLOCK`.
pub fn never_block(pipe: &PipeWriter) -> Result<(), Error> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
        .map(drop)
        .map_err(|errno| Error::new("fcntl(pipe, SETFL, NONBLOCK)", errno))
}

/// What [`look_at`] saw of a pipe's other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PipeState {
    /// Bytes are there to be read.
    pub has_bytes: bool,
    /// No writer is left.
    pub is_closed: bool,
}

/// What to wait for at the reading end of a pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PipeEvent {
    /// Bytes, or the end of all writers.
    Bytes,
    /// The end of all writers.
    Closed,
}

/// Wrapper for `poll(2)`: waits for `event`, takes nothing out of the pipe, and says how it is then.
pub fn look_at(pipe: &PipeReader, event: PipeEvent) -> Result<PipeState, Error> {
    let wanted = match event {
        PipeEvent::Bytes => PollFlags::POLLIN,
        PipeEvent::Closed => PollFlags::empty(),
    };
    let seen = poll_for(pipe, wanted, None)?.unwrap_or(PollFlags::empty());
    Ok(PipeState {
        has_bytes: seen.contains(PollFlags::POLLIN),
        is_closed: seen.intersects(PollFlags::POLLHUP | PollFlags::POLLERR),
    })
}

/// Whether no writer is left, or nobody can tell.
pub fn is_closed(pipe: &PipeReader) -> bool {
    is_closed_within(pipe, Duration::ZERO)
}

/// Waits until that is so, or `limit` is over, which is a minute at most.
pub fn is_closed_within(pipe: &PipeReader, limit: Duration) -> bool {
    poll_for(pipe, PollFlags::empty(), Some(limit)) != Ok(None)
}

/// What there is of a descriptor; none if there is nothing of what is `wanted` when the time, a minute at most, is over.
pub(super) fn poll_for(
    fd: &impl AsFd,
    wanted: PollFlags,
    limit: Option<Duration>,
) -> Result<Option<PollFlags>, Error> {
    let timeout = limit.map_or(PollTimeout::NONE, |limit| {
        PollTimeout::from(u16::try_from(limit.as_millis()).unwrap_or(u16::MAX))
    });
    loop {
        let mut polled = [PollFd::new(fd.as_fd(), wanted)];
        match poll(&mut polled, timeout) {
            Ok(0) => return Ok(None),
            Ok(_) => {
                let [polled] = polled;
                return Ok(Some(polled.revents().unwrap_or(PollFlags::empty())));
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::new("poll()", errno)),
        }
    }
}

/// Gives way to every other process from now on: for one whose end somebody may be waiting beside, not for.
///
/// Wrapper for `sched_setscheduler(2)` with `SCHED_IDLE`, which needs no privilege.
pub fn yield_to_all() {
    // SAFETY: the kernel reads one structure, all of whose bytes zero is a value.
    unsafe {
        let parameters: libc::sched_param = std::mem::zeroed();
        libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters);
    }
}

/// The process that made the socket pair of which `descriptor` is an end, or that listens at the other end; none if it
/// is no local socket, or that process is not visible from here.
///
/// Wrapper for `getsockopt(2)` with `SO_PEERCRED`.
pub fn maker_of_socket(descriptor: RawFd) -> Option<i32> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = libc::socklen_t::try_from(size_of_val(&peer)).ok()?;
    // SAFETY: the kernel writes at most `length` bytes to `peer`, any of which are a value; a wrong descriptor is refused.
    let rc = unsafe {
        let (peer, length) = ((&raw mut peer).cast(), &raw mut length);
        libc::getsockopt(descriptor, libc::SOL_SOCKET, libc::SO_PEERCRED, peer, length)
    };
    (rc == 0 && peer.pid > 0).then_some(peer.pid)
}

/// Sets the name that `ps` and `top` show: the first 15 bytes of `name`.
pub fn set_name(name: &str) {
    let mut terminated = [0_u8; 16];
    for (to, from) in terminated.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: the kernel reads a terminated string, 16 bytes at most.
    unsafe { libc::prctl(libc::PR_SET_NAME, terminated.as_ptr()) };
}

/// Lets other threads go first where processors are short: wrapper for `setpriority(2)` of the calling thread.
pub fn be_modest() {
    be_nice(5);
}

/// Lets all other threads go first: this one has no hurry at all. Unlike [`yield_to_all`] it still gets on beside threads
/// that never sleep, as ranks that poll do.
pub fn be_last() {
    be_nice(19);
}

fn be_nice(nice: i32) {
    // SAFETY: takes numbers only; on Linux, process 0 is the calling thread. Lowering one's priority is always allowed.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
}

/// Makes the process undumpable: no core file, no tracing and no `/proc/PID/fd` for other processes of the user.
pub fn set_undumpable() -> Result<(), Error> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|errno| Error::new("setrlimit(CORE, 0)", errno))?;
    // SAFETY: the call takes numbers only.
    if unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) } == 0 {
        Ok(())
    } else {
        Err(Error::last("prctl(SET_DUMPABLE, 0)"))
    }
}

/// Lets the heap grow by `step` bytes at a time and never shrink: for a process that lives for milliseconds, in which memory
/// given back costs a system call and the page faults of getting it again.
pub fn keep_heap(step: i32) {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes numbers only and is called before the process has threads.
    unsafe {
        libc::mallopt(libc::M_TOP_PAD, step);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_MMAP_THRESHOLD, step);
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = step;
}

/// Makes the heap that of a server: at most `arenas` heaps for threads, so that blocks that one thread frees are used by
/// the others, which grow by `step` bytes at a time and take blocks of up to `step` bytes.
pub fn shape_heaps(arenas: i32, step: i32) {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes numbers only and is called before the process has threads.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, arenas);
        libc::mallopt(libc::M_TOP_PAD, step);
        libc::mallopt(libc::M_TRIM_THRESHOLD, step);
        libc::mallopt(libc::M_MMAP_THRESHOLD, step);
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = (arenas, step);
}

/// Makes `/dev/null` of standard input, output and error.
pub fn null_standard_streams() -> Result<(), Error> {
    let null = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(|error| Error::from_io("open(\"/dev/null\", RDWR)", &error))?;
    for stream in 0..=2 {
        // SAFETY: both numbers are descriptors; nobody owns 0 to 2 in a process about to serve.
        if unsafe { libc::dup2(null.as_raw_fd(), stream) } < 0 {
            return Err(Error::last(format!("dup2({}, {stream})", null.as_raw_fd())));
        }
    }
    if null.as_raw_fd() <= 2 {
        std::mem::forget(null);
    }
    Ok(())
}

/// Closes every descriptor but 0 to 2 and `keep`.
///
/// Only for a process that was forked to run on its own and never returns into the code that owns the rest.
pub fn close_all_but(keep: &[RawFd]) {
    let mut kept: Vec<u32> = keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    kept.extend([0, 1, 2]);
    kept.sort_unstable();
    let mut first = 0;
    for fd in kept.into_iter().chain([u32::MAX]) {
        if fd > first {
            close_range(first, fd - 1);
        }
        first = fd.saturating_add(1);
    }
}

/// Closes the descriptors from `first` to `last`, also where the kernel lacks `close_range(2)` (before 5.9).
fn close_range(first: u32, last: u32) {
    // SAFETY: closing touches no memory; the caller vouches that nobody uses these descriptors any more.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } == 0 {
        return;
    }
    for fd in open_descriptors().into_iter().filter(|fd| (first..=last).contains(fd)) {
        if let Ok(fd) = RawFd::try_from(fd) {
            // SAFETY: as above.
            unsafe { libc::close(fd) };
        }
    }
}

/// The open descriptors, or all that may be open where `/proc` is missing.
fn open_descriptors() -> Vec<u32> {
    match std::fs::read_dir("/proc/self/fd") {
        Ok(entries) => {
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
        }
        Err(_) => (0..65536).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_child_is_reaped_with_its_status() {
        for status in [0, 3, 255] {
            match fork().expect("fork") {
                Fork::Child => exit_now(status),
                Fork::Parent(pid) => assert_eq!(wait(pid), Ok(Ended::Exited(status))),
            }
        }
    }

    #[test]
    fn what_is_killed_or_gone_is_ending() {
        let status = |state, pending| {
            format!("Name:\tx\nState:\t{state}\nSigPnd:\t{pending}\nShdPnd:\t0000000000000100\n")
        };
        for (state, pending, expected) in [
            ("D (disk sleep)", "0000000000000100", true),
            ("D (disk sleep)", "0000000000004100", true),
            ("D (disk sleep)", "0000000000004000", false),
            ("S (sleeping)", "0000000000000000", false),
            ("Z (zombie)", "0000000000000000", true),
            ("S (sleeping)", "nonsense", false),
        ] {
            assert_eq!(is_ending_status(&status(state, pending)), expected, "{state} {pending}");
        }
        assert!(!is_ending_status(""));
        assert!(!is_ending(std::process::id()) && !is_ending(0));
        match fork().expect("fork") {
            Fork::Child => exit_now(0),
            Fork::Parent(pid) => {
                assert_eq!(wait(pid), Ok(Ended::Exited(0)));
                assert!(is_ending(pid.unsigned_abs()));
            }
        }
    }

    #[test]
    fn only_the_kept_descriptors_stay() {
        let (kept, closed) = pipe().expect("pipe");
        match fork().expect("fork") {
            Fork::Child => {
                close_all_but(&[kept.as_raw_fd()]);
                let is_open = |fd: &dyn AsFd| nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFD).is_ok();
                let right = is_open(&kept) && !is_open(&closed);
                exit_now(if right { 0 } else { 1 });
            }
            Fork::Parent(pid) => assert_eq!(wait(pid), Ok(Ended::Exited(0))),
        }
    }

    #[test]
    fn looking_at_a_pipe_takes_nothing_out_of_it() {
        use std::io::Write as _;
        let (reader, mut writer) = pipe().expect("pipe");
        writer.write_all(b"x").expect("write");
        for _ in 0..2 {
            let seen = look_at(&reader, PipeEvent::Bytes).expect("poll");
            assert_eq!(seen, PipeState { has_bytes: true, is_closed: false });
        }
        drop(writer);
        let closed = look_at(&reader, PipeEvent::Closed).expect("poll");
        assert!(closed.is_closed);
        let seen = look_at(&reader, PipeEvent::Bytes).expect("poll");
        assert_eq!(seen, PipeState { has_bytes: true, is_closed: true });
    }

    /// What `die_with_parent` does in a child, while the reader of the pipe is there or not.
    #[test]
    fn who_comes_too_late_to_die_with_its_parent_ends() {
        for is_there in [true, false] {
            let (reader, writer) = pipe().expect("pipe");
            let reader = is_there.then_some(reader);
            match fork().expect("fork") {
                Fork::Child => {
                    // Children of other tests may have the reader for a moment.
                    let attempts = if is_there { 1 } else { 10_000 };
                    let goes_on = (0..attempts).all(|_| {
                        std::thread::sleep(std::time::Duration::from_millis(1));
                        die_with_parent(&writer).is_ok()
                    });
                    exit_now(if goes_on { 0 } else { 2 })
                }
                Fork::Parent(pid) => {
                    assert_eq!(wait(pid), Ok(Ended::Exited(if is_there { 0 } else { libc::EXIT_FAILURE })));
                }
            }
            drop(reader);
        }
    }

    #[test]
    fn an_end_is_a_status_as_a_shell_gives_it() {
        for (ended, status) in [
            (Ended::Exited(0), 0),
            (Ended::Exited(255), 255),
            (Ended::Killed(9), 137),
            (Ended::Killed(64), 192),
        ] {
            assert_eq!(ended.status(), status);
        }
    }

    #[test]
    fn waiting_for_a_stranger_is_an_error() {
        assert_eq!(wait(1).map_err(|error| error.errno), Err(Errno::ECHILD));
    }
}
