//! CPU affinity of the calling thread.
#![expect(unsafe_code, reason = "nix's CpuSet ends at 1024 CPUs; the call needs a longer mask")]

use super::Error;

/// Bytes of the longest CPU mask a kernel uses: `CONFIG_NR_CPUS` ends at 8192.
const MASK_BYTES: usize = 1024;

/// Allows the calling thread on every CPU of its cpuset: a helper process forgets the binding of the rank it was
/// forked from.
///
/// Wrapper for `sched_setaffinity(2)` with every bit set; the kernel takes away what the cpuset does not hold.
pub fn reset() -> Result<(), Error> {
    let mask = [0xffu8; MASK_BYTES];
    // SAFETY: the kernel reads MASK_BYTES bytes from a live array of that length.
    let rc = unsafe { libc::sched_setaffinity(0, MASK_BYTES, mask.as_ptr().cast()) };
    if rc == 0 { Ok(()) } else { Err(Error::last("sched_setaffinity(0, all)")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_thread_is_freed() {
        std::thread::spawn(|| {
            let before = std::thread::available_parallelism().expect("affinity").get();
            let mut one = nix::sched::CpuSet::new();
            let all = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).expect("affinity");
            let first = (0..1024).find(|cpu| all.is_set(*cpu) == Ok(true)).expect("a CPU");
            one.set(first).expect("CPU in range");
            nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &one).expect("affinity");
            reset().expect("reset");
            assert!(std::thread::available_parallelism().expect("affinity").get() >= before);
        })
        .join()
        .expect("thread");
    }
}
