//! A refused system call, printed so that it could be typed again.

use nix::errno::Errno;

/// The kernel refused: the call with its arguments, and the errno.
///
/// Prints as `mount("/dev", "/newroot/dev", BIND|REC): Operation not permitted (EPERM)`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {} ({})", .errno.desc(), errno_name(*.errno))]
pub struct Error {
    /// The call as a person would write it, e.g. `open("/dev/fuse", RDWR)`.
    pub call: String,
    /// What the kernel answered.
    pub errno: Errno,
}

impl Error {
    /// An error for `call` with the given `errno`.
    pub fn new(call: impl Into<String>, errno: Errno) -> Error {
        Error { call: call.into(), errno }
    }

    /// An error for `call` with the calling thread's `errno`.
    pub fn last(call: impl Into<String>) -> Error {
        Error::new(call, Errno::last())
    }

    /// An error for `call` out of an [`std::io::Error`]; errors without an errno count as `EIO`.
    pub fn from_io(call: impl Into<String>, error: &std::io::Error) -> Error {
        Error::new(call, error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }
}

/// The symbolic name, `EPERM`.
fn errno_name(errno: Errno) -> String {
    format!("{errno:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_call_description_and_name() {
        let error = Error::new("open(\"/dev/fuse\", RDWR)", Errno::EACCES);
        assert_eq!(error.to_string(), "open(\"/dev/fuse\", RDWR): Permission denied (EACCES)");
    }
}
