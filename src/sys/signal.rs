//! Signal dispositions, and waiting for signals.
#![expect(unsafe_code, reason = "raw rt_sigaction: the C library refuses to change signals 32 and 33")]

use super::Error;

/// Highest signal number on Linux.
const SIGNAL_MAX: i32 = 64;
/// Bytes of the kernel's signal set.
const SIGNAL_SET_BYTES: usize = 8;

/// The kernel's `struct sigaction` with no flags and an empty mask; handler first on every architecture.
#[repr(C)]
struct KernelAction {
    handler: libc::sighandler_t,
    rest: [usize; 3],
}

/// Ignores every signal that can be ignored, real-time ones and those the C library keeps for itself included.
///
/// `SIGCHLD` gets its default instead, which does nothing and keeps ended children for `waitpid(2)`. A fault of the
/// process itself still kills it: the kernel does not let a synchronous signal be ignored.
pub fn ignore_all() -> Result<(), Error> {
    for number in (1..=SIGNAL_MAX).filter(|number| ![libc::SIGKILL, libc::SIGSTOP].contains(number)) {
        let handler = if number == libc::SIGCHLD { libc::SIG_DFL } else { libc::SIG_IGN };
        set_handler(number, handler)?;
    }
    Ok(())
}

/// A signal taken by [`Taken::wait`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Which.
    pub number: i32,
    /// Whether a process sent it; the terminal's go to the whole process group anyway.
    pub is_sent: bool,
    /// What [`pass_on`] sent with it; 0 for others.
    pub value: usize,
}

/// Signals of this process, held back to be waited for, and how they were handled before.
#[derive(Debug, Clone, Copy)]
pub struct Taken {
    taken: libc::sigset_t,
    mask: libc::sigset_t,
    child: libc::sighandler_t,
}

impl Taken {
    /// Holds all signals back, and has ended children kept for `waitpid(2)`.
    pub fn all() -> Result<Taken, Error> {
        let mut every = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: the call fills the set.
        let every = unsafe {
            libc::sigfillset(every.as_mut_ptr());
            every.assume_init()
        };
        Taken::hold(every)
    }

    /// The same for what asks a program to end and what tells of a child: SIGINT, SIGTERM, SIGHUP and SIGCHLD.
    pub fn ends() -> Result<Taken, Error> {
        let mut some = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: the first call fills the set, the others change it.
        let some = unsafe {
            libc::sigemptyset(some.as_mut_ptr());
            for number in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGCHLD] {
                libc::sigaddset(some.as_mut_ptr(), number);
            }
            some.assume_init()
        };
        Taken::hold(some)
    }

    fn hold(taken: libc::sigset_t) -> Result<Taken, Error> {
        let mut mask = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: the first call reads one set and fills the other. The disposition is no handler of ours.
        unsafe {
            if libc::sigprocmask(libc::SIG_BLOCK, &raw const taken, mask.as_mut_ptr()) != 0 {
                return Err(Error::last("sigprocmask(BLOCK)"));
            }
            let child = libc::signal(libc::SIGCHLD, libc::SIG_DFL);
            Ok(Taken { taken, mask: mask.assume_init(), child })
        }
    }

    /// Handles them as before; for the child that goes its own way, and when there is nothing more to wait for.
    pub fn give_back(self) {
        // SAFETY: both are what the process had before.
        unsafe {
            if self.child == libc::SIG_IGN {
                libc::signal(libc::SIGCHLD, libc::SIG_IGN);
            }
            libc::sigprocmask(libc::SIG_SETMASK, &raw const self.mask, std::ptr::null_mut());
        }
    }

    /// Waits for the next signal.
    pub fn wait(&self) -> Received {
        loop {
            if let Some(received) = self.received(std::ptr::null()) {
                return received;
            }
        }
    }

    /// Waits for the next signal, at most `longest`.
    pub fn wait_for(&self, longest: std::time::Duration) -> Option<Received> {
        let time = libc::timespec {
            tv_sec: longest.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: longest.subsec_nanos().into(),
        };
        self.received(&raw const time)
    }

    /// Wrapper for `sigtimedwait(2)`; a null `time` is for ever.
    fn received(&self, time: *const libc::timespec) -> Option<Received> {
        let mut about = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
        // SAFETY: the call reads the set and the time, if any, and fills the structure, of which all zeroes is valid too.
        // The value is read only where the kernel has set it.
        unsafe {
            let number = libc::sigtimedwait(&raw const self.taken, about.as_mut_ptr(), time);
            let about = about.assume_init();
            let is_queued = about.si_code == libc::SI_QUEUE;
            let value = if is_queued { about.si_value().sival_ptr as usize } else { 0 };
            (number > 0).then_some(Received { number, is_sent: about.si_code <= 0, value })
        }
    }
}

/// Sends signal `number` to process `pid`. A process that has gone is no error.
pub fn send(pid: i32, number: i32) {
    // SAFETY: the call takes numbers only.
    unsafe { libc::kill(pid, number) };
}

/// The same with a value, by which the receiver knows that it comes from us.
pub fn pass_on(pid: i32, number: i32, value: usize) {
    let value = libc::sigval { sival_ptr: std::ptr::without_provenance_mut(value) };
    // SAFETY: the value is never used as an address.
    unsafe { libc::sigqueue(pid, number, value) };
}

/// Stops this process as the terminal would.
pub fn stop() {
    // SAFETY: the call takes a number only.
    unsafe { libc::raise(libc::SIGSTOP) };
}

/// Has signal `number` kill this process; returns if it does not kill.
pub fn die_of(number: i32) {
    let mut only = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the set is filled before it is read; the disposition is the kernel's own.
    unsafe {
        libc::signal(number, libc::SIG_DFL);
        libc::sigemptyset(only.as_mut_ptr());
        libc::sigaddset(only.as_mut_ptr(), number);
        libc::sigprocmask(libc::SIG_UNBLOCK, only.as_ptr(), std::ptr::null_mut());
        libc::raise(number);
    }
}

/// Ignores `SIGXFSZ`: a write beyond the limit of file sizes then fails with `EFBIG`, which can be reported.
pub fn ignore_file_size_signal() -> Result<(), Error> {
    set_handler(libc::SIGXFSZ, libc::SIG_IGN)
}

/// `handler` is `SIG_IGN` or `SIG_DFL`.
fn set_handler(number: i32, handler: libc::sighandler_t) -> Result<(), Error> {
    let action = KernelAction { handler, rest: [0; 3] };
    // SAFETY: the kernel reads one `struct sigaction`, which `KernelAction` is at least as long as; the handler is no
    // function; the old action is not asked for.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_rt_sigaction,
            number,
            &raw const action,
            std::ptr::null_mut::<KernelAction>(),
            SIGNAL_SET_BYTES,
        )
    };
    if rc != 0 {
        return Err(Error::last(format!("rt_sigaction({number})")));
    }
    Ok(())
}
