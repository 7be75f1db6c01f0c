//! CPU affinity of threads.
#![expect(unsafe_code, reason = "nix's CpuSet ends at 1024 CPUs; the calls need a longer mask")]

use super::Error;

/// Bytes of the longest CPU mask a kernel uses: `CONFIG_NR_CPUS` ends at 8192.
const MASK_BYTES: usize = 1024;

/// The calling thread, as the calls name it.
const CALLER: i32 = 0;

/// Allows the calling thread on every CPU of its cpuset: a helper process forgets the binding of the rank it was
/// forked from.
///
/// Wrapper for `sched_setaffinity(2)` with every bit set; the kernel takes away what the cpuset does not hold.
pub fn reset() -> Result<(), Error> {
    reset_thread(CALLER)
}

/// The same for the thread `id` of this process.
pub fn reset_thread(id: i32) -> Result<(), Error> {
    set(id, &[0xff; MASK_BYTES])
}

/// The number of the calling thread, for [`reset_thread`].
pub fn thread_id() -> i32 {
    nix::unistd::gettid().as_raw()
}

/// The CPU that the calling thread is on, at this moment.
pub fn current_cpu() -> Option<usize> {
    // SAFETY: takes nothing.
    usize::try_from(unsafe { libc::sched_getcpu() }).ok()
}

/// The CPU that the thread `id` of any process is on, or was on last. None if there is no such thread, or `/proc` hides
/// it.
pub fn cpu_of_thread(id: u32) -> Option<usize> {
    cpu_in_stat(&std::fs::read(format!("/proc/{id}/stat")).ok()?)
}

/// Field 39 of `/proc/PID/stat`; the second, a name in parentheses, may hold anything.
fn cpu_in_stat(stat: &[u8]) -> Option<usize> {
    let name_end = stat.iter().rposition(|byte| *byte == b')')?;
    let field = stat.get(name_end..)?.split(|byte| *byte == b' ').nth(37)?;
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// Keeps the calling thread on one CPU.
pub fn pin(cpu: usize) -> Result<(), Error> {
    let mut mask = [0; MASK_BYTES];
    if let Some(byte) = mask.get_mut(cpu / 8) {
        *byte = 1 << (cpu % 8);
    }
    set(CALLER, &mask)
}

/// Keeps the calling thread off one CPU; an error where its cpuset has no other.
pub fn avoid(cpu: usize) -> Result<(), Error> {
    let mut mask = [0xff; MASK_BYTES];
    if let Some(byte) = mask.get_mut(cpu / 8) {
        *byte = !(1 << (cpu % 8));
    }
    set(CALLER, &mask)
}

/// A thread's affinity, to be given back to it.
#[derive(Debug)]
pub struct Affinity([u8; MASK_BYTES]);

impl Affinity {
    /// That of the calling thread.
    pub fn of_caller() -> Result<Affinity, Error> {
        let mut mask = [0; MASK_BYTES];
        // SAFETY: the kernel writes at most MASK_BYTES bytes to a live array of that length. The call itself, because
        // some C libraries refuse masks longer than theirs.
        let length = unsafe {
            libc::syscall(libc::SYS_sched_getaffinity, CALLER, MASK_BYTES, mask.as_mut_ptr().cast::<u8>())
        };
        if length < 0 { Err(Error::last("sched_getaffinity(0)")) } else { Ok(Affinity(mask)) }
    }

    /// Gives it to the calling thread, which then has what it had before: a binding, or none.
    ///
    /// None is not the same as a binding to all CPUs there are: only the former follows a cpuset that grows.
    pub fn restore(&self) -> Result<(), Error> {
        reset()?;
        if Affinity::of_caller()?.0 == self.0 { Ok(()) } else { set(CALLER, &self.0) }
    }
}

fn set(thread: i32, mask: &[u8; MASK_BYTES]) -> Result<(), Error> {
    // SAFETY: the kernel reads MASK_BYTES bytes from a live array of that length.
    let rc = unsafe { libc::sched_setaffinity(thread, MASK_BYTES, mask.as_ptr().cast()) };
    if rc == 0 { Ok(()) } else { Err(Error::last(format!("sched_setaffinity({thread})"))) }
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

    #[test]
    fn the_cpu_of_a_thread_is_field_39() {
        let line = b"7 (a) b (c) R 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 \
            34 35 36 37 38 127 40 41\n";
        assert_eq!(cpu_in_stat(line), Some(127));
        for bad in [&b""[..], b"7 (a", b"7 (a) R 3", b")"] {
            assert_eq!(cpu_in_stat(bad), None);
        }
        assert_eq!(cpu_of_thread(u32::MAX), None);
    }

    #[test]
    fn a_pinned_threads_cpu_is_known_to_others() {
        std::thread::spawn(|| {
            let cpu = current_cpu().expect("a CPU");
            pin(cpu).expect("pin");
            let own = u32::try_from(thread_id()).expect("an id");
            assert_eq!(std::thread::spawn(move || cpu_of_thread(own)).join().expect("thread"), Some(cpu));
        })
        .join()
        .expect("thread");
    }

    #[test]
    fn a_pinned_thread_gets_back_what_it_had() {
        std::thread::spawn(|| {
            let before = Affinity::of_caller().expect("affinity");
            let cpu = current_cpu().expect("a CPU");
            pin(cpu).expect("pin");
            assert_eq!(current_cpu(), Some(cpu));
            assert_eq!(std::thread::available_parallelism().expect("affinity").get(), 1);
            let one = Affinity::of_caller().expect("affinity");
            before.restore().expect("restore");
            assert_eq!(Affinity::of_caller().expect("affinity").0, before.0);
            one.restore().expect("restore");
            assert_eq!(Affinity::of_caller().expect("affinity").0, one.0);
        })
        .join()
        .expect("thread");
    }

    #[test]
    fn a_cpu_beyond_all_is_refused() {
        for cpu in [8 * MASK_BYTES, 8 * MASK_BYTES - 1] {
            assert!(pin(cpu).is_err(), "{cpu}");
        }
    }
}
