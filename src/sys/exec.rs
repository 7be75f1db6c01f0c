//! Becoming another program with nothing of ours left behind.
#![expect(unsafe_code, reason = "an initialiser that runs before Rust's, sigaction")]

use std::convert::Infallible;
use std::ffi::CString;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Error;

/// Whether `SIGPIPE` was ignored when the process began.
static SIGPIPE_WAS_IGNORED: AtomicBool = AtomicBool::new(false);

/// Rust's runtime ignores `SIGPIPE` before `main`, and an ignored signal stays ignored over `execve(2)`: a job would
/// no longer end on a closed pipe. What was inherited can only be seen earlier, when the loader runs initialisers.
// SAFETY: the loader calls each entry of the section once, before any thread; the entry is such a function.
#[used]
#[unsafe(link_section = ".init_array")]
static RECORD_SIGPIPE: extern "C" fn() = record_sigpipe;

extern "C" fn record_sigpipe() {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a query; the kernel fills the structure, in which all zeroes is valid.
    let action = unsafe {
        libc::sigaction(libc::SIGPIPE, std::ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    SIGPIPE_WAS_IGNORED.store(action.sa_sigaction == libc::SIG_IGN, Ordering::Relaxed);
}

/// Gives `SIGPIPE` the disposition that the process was started with.
pub fn restore_sigpipe() -> Result<(), Error> {
    let inherited = if SIGPIPE_WAS_IGNORED.load(Ordering::Relaxed) { libc::SIG_IGN } else { libc::SIG_DFL };
    // SAFETY: neither disposition is a handler of ours.
    if unsafe { libc::signal(libc::SIGPIPE, inherited) } == libc::SIG_ERR {
        return Err(Error::last("signal(SIGPIPE)"));
    }
    Ok(())
}

/// Wrapper for `execve(2)`: returns only if the kernel refuses.
pub fn execve(
    program: &CString,
    arguments: &[CString],
    environment: &[CString],
) -> Result<Infallible, Error> {
    nix::unistd::execve(program, arguments, environment)
        .map_err(|errno| Error::new(format!("execve({program:?})"), errno))
}
