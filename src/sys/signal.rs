//! Signal dispositions.
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
