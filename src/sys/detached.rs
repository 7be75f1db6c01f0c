//! A process that is nobody's child.
#![expect(unsafe_code, reason = "clone and the mapping of a stack have no safe wrapper")]

use std::convert::Infallible;

use nix::errno::Errno;

use super::Error;
use super::process::{self, Ended, Fork, exit_now, new_group, wait};

/// Bytes of the stack that a detached process lives on.
const STACK_BYTES: usize = 1 << 20;

/// Forks a process that is not the caller's child and not of its process group, and runs `body` in it, with a copy of the
/// caller's memory and of `value`. Gives the caller's own `value` back. Call it while single-threaded.
///
/// A child in between forks and exits. It borrows the caller's memory meanwhile (`CLONE_VM`, the caller sleeps), so that it
/// costs neither a copy of the page tables nor the wait for a CPU.
pub fn fork<T>(value: T, body: fn(T) -> Infallible) -> Result<T, Error> {
    let stack = Stack::new(STACK_BYTES)?;
    let mut work = Work { value: Some(value), body };
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the child runs `between` on a stack of its own while this thread, the only one, sleeps until it has exited;
    // `work` and the stack outlive that. What it does in our memory: `setpgid`, `fork` and their errors.
    let child = unsafe { libc::clone(between::<T>, stack.top(), flags, (&raw mut work).cast()) };
    if child < 0 {
        return Err(Error::last("clone(VM|VFORK)"));
    }
    let failed = |errno| Error::new("fork(detached)", errno);
    match wait(child) {
        Ok(Ended::Exited(0)) => {}
        Ok(Ended::Exited(errno)) => return Err(failed(Errno::from_raw(errno))),
        Ok(Ended::Killed(_)) => return Err(failed(Errno::EINTR)),
        // The caller's parent had children ignored, and exec keeps that: the kernel reaped the child itself.
        Err(error) if error.errno == Errno::ECHILD => {}
        Err(error) => return Err(error),
    }
    work.value.ok_or_else(|| failed(Errno::EINVAL))
}

/// What the new process does.
struct Work<T> {
    /// Always there, but for whoever has taken it.
    value: Option<T>,
    body: fn(T) -> Infallible,
}

/// The child in between; its exit status is 0 or an errno.
extern "C" fn between<T>(work: *mut libc::c_void) -> libc::c_int {
    let grouped = new_group().and_then(|()| process::fork());
    match grouped {
        Ok(Fork::Child) => {
            // SAFETY: points to the caller's `Work<T>`, of which this process has a copy that nobody else uses.
            let work = unsafe { &mut *work.cast::<Work<T>>() };
            let (value, body) = (work.value.take(), work.body);
            // Nothing may unwind out of here: there is no caller below.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| value.map(body)));
            exit_now(libc::EXIT_FAILURE)
        }
        Ok(Fork::Parent(_)) => 0,
        Err(error) => error.errno as libc::c_int,
    }
}

/// Memory for a stack, which grows downwards.
struct Stack {
    base: *mut libc::c_void,
    length: usize,
}

impl Stack {
    fn new(length: usize) -> Result<Stack, Error> {
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK | libc::MAP_NORESERVE,
        );
        // SAFETY: a new anonymous mapping touches no existing memory.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(Error::last(format!("mmap({length}, STACK)")));
        }
        Ok(Stack { base, length })
    }

    /// Where it begins: behind its last byte.
    fn top(&self) -> *mut libc::c_void {
        // SAFETY: one past the end of the mapping.
        unsafe { self.base.byte_add(self.length) }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nobody runs on any more.
        unsafe { libc::munmap(self.base, self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::pipe;

    #[test]
    fn a_detached_process_is_nobodys_child_and_leads_no_group_of_ours() {
        use std::io::{Read as _, Write as _};
        let (mut reader, writer) = pipe().expect("pipe");
        let own_group = nix::unistd::getpgrp();
        let (writer, _) = fork((writer, own_group), |(mut writer, group)| {
            let is_apart = nix::unistd::getpgrp() != group;
            let _ = writer.write_all(if is_apart { b"apart" } else { b"not" });
            exit_now(0)
        })
        .expect("fork");
        drop(writer);
        let mut told = String::new();
        reader.read_to_string(&mut told).expect("read");
        assert_eq!(told, "apart");
    }
}
