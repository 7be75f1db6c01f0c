//! The only system calls and the only `unsafe`: wrappers add flags and context, no decisions.

pub mod affinity;
pub mod beneath;
pub mod bulk;
pub mod caller;
pub mod cpu;
pub mod detached;
pub mod directory;
pub mod error;
pub mod exec;
pub mod file;
pub mod fuse;
pub mod handover;
pub mod known;
pub mod lock;
pub mod mount;
pub mod names;
pub mod namespace;
pub mod notice;
pub mod path;
pub mod privilege;
pub mod process;
mod rename;
pub mod shared;
pub mod signal;
pub mod temporary;
pub mod terminal;
pub mod title;
pub mod tree;

pub use error::Error;

/// Whether `errno` is how a kernel (`ENOSYS`), or a container runtime's older system call filter (`EPERM`), says that
/// it does not know a call at all. The second is ambiguous: use it only where the older way to do the same follows.
pub fn is_missing(errno: nix::errno::Errno) -> bool {
    matches!(errno, nix::errno::Errno::ENOSYS | nix::errno::Errno::EPERM)
}
