//! Advisory locks: on whole files, and between the two ends of a pipe.

use std::fs::File;
use std::io::{PipeReader, PipeWriter};
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};

use super::Error;

/// A file locked for its holder alone; unlocked when dropped.
///
/// The lock belongs to the open file, which a forked child shares: dropping unlocks it for both, which closing the
/// descriptor would not. It also ends with its last holder, however that dies.
#[derive(Debug)]
pub struct Locked(Flock<File>);

impl Locked {
    /// Wrapper for `flock(2)`: waits until `file` is ours. `name` is for messages.
    pub fn exclusive(file: File, name: &std::path::Path) -> Result<Locked, Error> {
        let mut file = file;
        loop {
            match Flock::lock(file, FlockArg::LockExclusive) {
                Ok(locked) => return Ok(Locked(locked)),
                Err((again, Errno::EINTR)) => file = again,
                Err((_, errno)) => return Err(Error::new(format!("flock({name:?}, EX)"), errno)),
            }
        }
    }

    /// The same without waiting: none if somebody else has it locked.
    pub fn try_exclusive(file: File) -> Result<Option<Locked>, Error> {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => Ok(Some(Locked(locked))),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(Error::new("flock(EX|NB)", errno)),
        }
    }

    /// Keeps the lock for as long as this process, or one forked from it that keeps the descriptor, has it open. Gives
    /// the descriptor, which closes on exec.
    pub fn keep(self) -> std::os::fd::RawFd {
        use std::os::fd::AsRawFd as _;
        let kept = std::mem::ManuallyDrop::new(self);
        kept.0.as_raw_fd()
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.0
    }
}

/// Takes a lock on `file` that others may have too, which keeps them from an exclusive one: until the last descriptor of
/// this opening is closed, in whichever process. False if somebody has an exclusive one.
pub fn share(file: &File) -> Result<bool, Error> {
    use std::os::fd::AsRawFd as _;
    loop {
        // nix's guard would unlock when it is dropped, for all who have the descriptor.
        #[expect(deprecated, reason = "nix has no lock that outlives its guard")]
        match nix::fcntl::flock(file.as_raw_fd(), FlockArg::LockSharedNonblock) {
            Ok(()) => return Ok(true),
            Err(Errno::EWOULDBLOCK) => return Ok(false),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::new("flock(SH|NB)", errno)),
        }
    }
}

/// Keeps the pipe's readers from [`take_turn`] until [`yield_turns`]; waits for those that have a turn.
///
/// These are `fcntl(2)` locks, which the kernel keeps for pipes as for any file. They belong to the process: a child has none
/// of its parent's, one that dies loses its own, and so does one that closes any descriptor of the pipe.
pub fn refuse_turns(pipe: &PipeWriter) -> Result<(), Error> {
    set_lock(pipe, libc::F_WRLCK)
}

/// Lets the pipe's readers have turns.
pub fn yield_turns(pipe: &PipeWriter) -> Result<(), Error> {
    set_lock(pipe, libc::F_UNLCK)
}

/// Takes a turn, which [`end_turn`] ends; waits until the writer yields turns, or has gone.
pub fn take_turn(pipe: &PipeReader) -> Result<(), Error> {
    set_lock(pipe, libc::F_RDLCK)
}

/// Ends a turn.
pub fn end_turn(pipe: &PipeReader) -> Result<(), Error> {
    set_lock(pipe, libc::F_UNLCK)
}

fn set_lock(pipe: &impl AsFd, kind: libc::c_int) -> Result<(), Error> {
    let lock = libc::flock {
        l_type: libc::c_short::try_from(kind).unwrap_or_default(),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).unwrap_or_default(),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    loop {
        match fcntl(pipe, FcntlArg::F_SETLKW(&lock)) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(Error::new(format!("fcntl(pipe, SETLKW, {kind})"), errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excludes_others_until_dropped() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let other = || Flock::lock(File::open(&path).unwrap(), FlockArg::LockExclusiveNonblock).map(drop);
        let locked = Locked::exclusive(File::open(&path).unwrap(), &path).unwrap();
        let copy = locked.file().try_clone().unwrap();
        assert_eq!(other().unwrap_err().1, Errno::EWOULDBLOCK);
        drop(locked);
        other().unwrap();
        drop(copy);
    }

    #[test]
    fn a_shared_lock_lasts_as_long_as_its_descriptors() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let open = || File::open(&path).unwrap();
        let (one, two) = (open(), open());
        assert!(share(&one).unwrap() && share(&two).unwrap());
        let left = one.try_clone().unwrap();
        drop((one, two));
        assert!(Locked::try_exclusive(open()).unwrap().is_none());
        drop(left);
        let locked = Locked::try_exclusive(open()).unwrap().unwrap();
        assert!(!share(&open()).unwrap());
        drop(locked);
    }

    /// The ends belong to two processes, as they do where it matters.
    #[test]
    fn readers_have_turns_when_the_writer_lets_them() {
        use crate::sys::process::{Ended, Fork, exit_now, fork, pipe, wait};
        use std::time::{Duration, Instant};
        const LONG: Duration = Duration::from_millis(50);
        let (reader, writer) = pipe().unwrap();
        refuse_turns(&writer).unwrap();
        let begun = Instant::now();
        match fork().unwrap() {
            Fork::Child => {
                drop(writer);
                let waited = take_turn(&reader).is_ok() && begun.elapsed() >= LONG;
                std::thread::sleep(2 * LONG);
                let ended = end_turn(&reader).is_ok();
                // Here the writer refuses again, and goes.
                std::thread::sleep(LONG);
                let gone = take_turn(&reader).is_ok() && begun.elapsed() >= 5 * LONG;
                exit_now(if waited && ended && gone { 0 } else { 1 })
            }
            Fork::Parent(pid) => {
                std::thread::sleep(LONG);
                yield_turns(&writer).unwrap();
                std::thread::sleep(LONG);
                refuse_turns(&writer).unwrap();
                assert!(begun.elapsed() >= 3 * LONG, "waits for the reader's turn to end");
                std::thread::sleep(2 * LONG);
                drop(writer);
                assert_eq!(wait(pid), Ok(Ended::Exited(0)));
                drop(reader);
            }
        }
    }
}
