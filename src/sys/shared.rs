//! Numbers in memory that processes share.
#![expect(unsafe_code, reason = "memory shared between processes is a raw mapping")]

use std::sync::atomic::AtomicU64;

use super::Error;

/// Maps `count` numbers, 0 at first, shared with every process forked from now on, for as long as any of them lives.
/// Memory is taken for those that are used.
pub fn words(count: usize) -> Result<&'static [AtomicU64], Error> {
    let length = count.max(1).saturating_mul(size_of::<AtomicU64>());
    // SAFETY: a new anonymous mapping touches no existing memory.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(Error::last(format!("mmap({length}, SHARED|ANONYMOUS)")));
    }
    // SAFETY: the mapping is zeroed, page-aligned, holds at least `count` words, is never unmapped and used through
    // atomics only, also by other processes.
    Ok(unsafe { std::slice::from_raw_parts(base.cast::<AtomicU64>(), count) })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::sys::process::{Ended, Fork, exit_now, fork, wait};

    #[test]
    fn a_child_writes_what_the_parent_reads() {
        let words = words(100_000).expect("mapping");
        match fork().expect("fork") {
            Fork::Child => {
                words[99_999].store(7, Ordering::Relaxed);
                exit_now(0);
            }
            Fork::Parent(pid) => assert_eq!(wait(pid), Ok(Ended::Exited(0))),
        }
        assert_eq!((words.len(), words[0].load(Ordering::Relaxed)), (100_000, 0));
        assert_eq!(words[99_999].load(Ordering::Relaxed), 7);
    }
}
