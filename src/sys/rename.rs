//! `renameat2(2)`, for which nix has a wrapper with glibc only.
#![cfg_attr(target_env = "musl", expect(unsafe_code, reason = "a call by its number has no safe wrapper"))]

#[cfg(not(target_env = "musl"))]
pub(super) use nix::fcntl::{RenameFlags, renameat2};

/// The flags that are used here, named as nix names them.
#[cfg(target_env = "musl")]
#[derive(Debug, Clone, Copy)]
pub(super) struct RenameFlags(libc::c_uint);

#[cfg(target_env = "musl")]
impl RenameFlags {
    /// Fails with `EEXIST` where something has the new name.
    pub(super) const RENAME_NOREPLACE: RenameFlags = RenameFlags(1);
}

/// Wrapper for `renameat2(2)`, by its number: older versions of musl have no function for it.
#[cfg(target_env = "musl")]
pub(super) fn renameat2(
    directory: std::os::fd::BorrowedFd<'_>,
    from: &std::ffi::OsStr,
    other: std::os::fd::BorrowedFd<'_>,
    to: &std::ffi::OsStr,
    flags: RenameFlags,
) -> nix::Result<()> {
    use nix::NixPath as _;
    use std::os::fd::AsRawFd as _;
    let call = |from: &std::ffi::CStr, to: &std::ffi::CStr| {
        let (directory, other) = (directory.as_raw_fd(), other.as_raw_fd());
        // SAFETY: the kernel reads two terminated strings.
        unsafe { libc::syscall(libc::SYS_renameat2, directory, from.as_ptr(), other, to.as_ptr(), flags.0) }
    };
    nix::errno::Errno::result(from.with_nix_path(|from| to.with_nix_path(|to| call(from, to)))??).map(drop)
}
