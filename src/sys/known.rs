//! Which of the newer system calls this kernel answers.
#![expect(unsafe_code, reason = "calls by number have no safe wrapper")]

use nix::errno::Errno;

/// Newer calls that have an older way to the same end, with their numbers.
const CALLS: [(&str, libc::c_long); 5] = [
    ("openat2", libc::SYS_openat2),
    ("open_tree", libc::SYS_open_tree),
    ("mount_setattr", libc::SYS_mount_setattr),
    ("close_range", libc::SYS_close_range),
    ("pidfd_open", libc::SYS_pidfd_open),
];

/// Each of the newer calls, and whether the kernel, and what filters calls before it, knows it.
pub fn calls() -> Vec<(&'static str, bool)> {
    CALLS.iter().map(|(name, number)| (*name, is_known(*number))).collect()
}

/// Whether the kernel judges the call's arguments, which are wrong.
fn is_known(number: libc::c_long) -> bool {
    let null = std::ptr::null::<u8>();
    // SAFETY: for each of CALLS, -1 is no descriptor, process or range, and the kernel refuses it, or the null pointers
    // and lengths behind it, before it does anything.
    let outcome = unsafe { libc::syscall(number, -1, null, 0, null, 0) };
    outcome >= 0 || !super::is_missing(Errno::last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_does_not_exist_is_not_known() {
        assert!(is_known(libc::SYS_close_range) || !is_known(libc::SYS_openat2));
        assert!(!is_known(100_000));
        assert_eq!(calls().len(), CALLS.len());
    }
}
