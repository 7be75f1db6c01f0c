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

/// Ignores what the keyboard sends to every process at the terminal: for one that waits for another of them.
pub fn ignore_interrupts() -> Result<(), Error> {
    set_handler(libc::SIGINT, libc::SIG_IGN)?;
    set_handler(libc::SIGQUIT, libc::SIG_IGN)
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

/// The signals that ask a program to end, and the one that tells of a child, kept back from their usual effect until this
/// is [released](Held::release) or dropped.
#[derive(Debug)]
pub struct Held {
    before: libc::sigset_t,
    held: libc::sigset_t,
}

/// A signal that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caught {
    /// Its number.
    pub number: i32,
    /// Whether a process sent it to this one, and not the kernel or a terminal to all in the foreground.
    pub is_sent: bool,
}

impl Held {
    /// Holds SIGINT, SIGTERM, SIGHUP and SIGCHLD of the calling thread, of which there is only one. SIGCHLD gets its default
    /// action, without which children would vanish unseen.
    pub fn hold() -> Result<Held, Error> {
        set_handler(libc::SIGCHLD, libc::SIG_DFL)?;
        let mut held = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set, sigaddset changes it.
        let held = unsafe {
            libc::sigemptyset(held.as_mut_ptr());
            for number in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGCHLD] {
                libc::sigaddset(held.as_mut_ptr(), number);
            }
            held.assume_init()
        };
        let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: reads one set and, on success, fills the other.
        match unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const held, before.as_mut_ptr()) } {
            // SAFETY: filled by the call.
            0 => Ok(Held { before: unsafe { before.assume_init() }, held }),
            _ => Err(Error::last("sigprocmask(BLOCK)")),
        }
    }

    /// Waits for a held signal, at most `longest`; none if there was none.
    pub fn wait(&self, longest: std::time::Duration) -> Option<Caught> {
        let time = libc::timespec {
            tv_sec: libc::time_t::try_from(longest.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: longest.subsec_nanos().into(),
        };
        let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
        // SAFETY: reads the set and the time, fills the info, which is valid when zeroed.
        let number = unsafe { libc::sigtimedwait(&raw const self.held, info.as_mut_ptr(), &raw const time) };
        // SAFETY: as above.
        let info = unsafe { info.assume_init() };
        (number > 0).then_some(Caught { number, is_sent: info.si_code <= 0 })
    }

    /// Gives the signals their effect back, also those that came meanwhile.
    pub fn release(self) {}
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: reads one set, which a call filled.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut()) };
    }
}

/// Sends a signal to a child.
pub fn send(child: i32, number: i32) {
    // SAFETY: takes numbers only. A child that has ended meanwhile is a zombie of ours, never somebody else.
    unsafe { libc::kill(child, number) };
}
