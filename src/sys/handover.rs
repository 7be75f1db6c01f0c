//! Descriptors handed to another process, and processes known by a descriptor.
#![expect(unsafe_code, reason = "what a message or pidfd_open gives is a number that nobody owns yet")]

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};

use super::Error;
use super::process::poll_for;

/// The end that gives. Closed on exec.
#[derive(Debug)]
pub struct Giver(UnixStream);

/// The end that takes. Closed on exec; what is under way to it when it is closed everywhere is closed, too.
#[derive(Debug)]
pub struct Taker(UnixStream);

/// Both ends.
pub fn pair() -> Result<(Giver, Taker), Error> {
    let (giver, taker) = UnixStream::pair().map_err(|error| Error::from_io("socketpair(UNIX)", &error))?;
    Ok((Giver(giver), Taker(taker)))
}

impl Giver {
    /// Gives two descriptors, which the caller keeps as well. Wrapper for `sendmsg(2)` with `SCM_RIGHTS`.
    pub fn give(&self, given: [BorrowedFd<'_>; 2]) -> Result<(), Error> {
        let numbers = given.map(|fd| fd.as_raw_fd());
        let rights = [ControlMessage::ScmRights(&numbers)];
        let socket = self.0.as_raw_fd();
        sendmsg::<UnixAddr>(socket, &[IoSlice::new(&[0])], &rights, MsgFlags::MSG_NOSIGNAL, None)
            .map(drop)
            .map_err(|errno| Error::new("sendmsg(SCM_RIGHTS)", errno))
    }
}

impl Taker {
    /// Waits for what is given; none if the giver has gone without.
    pub fn take(&self) -> Option<[OwnedFd; 2]> {
        let (mut byte, mut space) = ([0], cmsg_space!([RawFd; 2]));
        loop {
            let (mut parts, flags) = ([IoSliceMut::new(&mut byte)], MsgFlags::MSG_CMSG_CLOEXEC);
            match recvmsg::<UnixAddr>(self.0.as_raw_fd(), &mut parts, Some(&mut space), flags) {
                Err(Errno::EINTR) => {}
                Err(_) => return None,
                Ok(message) => {
                    let mut taken = message.cmsgs().ok()?.filter_map(|part| match part {
                        ControlMessageOwned::ScmRights(numbers) => Some(numbers),
                        _ => None,
                    });
                    // SAFETY: the kernel has just made these descriptors for the caller, who knows of no other owner.
                    let own = |number| unsafe { OwnedFd::from_raw_fd(number) };
                    return <[RawFd; 2]>::try_from(taken.next()?).ok().map(|numbers| numbers.map(own));
                }
            }
        }
    }

    /// Its number.
    pub fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A process, whatever becomes of its number: a pidfd, Linux 5.3. Closed on exec.
#[derive(Debug)]
pub struct Process(OwnedFd);

impl Process {
    /// The process that `fd`, a pidfd, stands for.
    pub fn of(fd: OwnedFd) -> Process {
        Process(fd)
    }

    /// Waits for its end; with a `limit`, of a minute at most, no longer than that. Says whether it has ended.
    pub fn ends_within(&self, limit: Option<Duration>) -> bool {
        poll_for(&self.0, PollFlags::POLLIN, limit).is_ok_and(|seen| seen.is_some())
    }
}

/// The process with this number, of the caller's process namespace. Wrapper for `pidfd_open(2)`.
pub fn process(pid: i32) -> Result<OwnedFd, Error> {
    // SAFETY: takes numbers only.
    let made = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match RawFd::try_from(made) {
        // SAFETY: the kernel has just made this descriptor for the caller, who knows of no other owner.
        Ok(number) if number >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(number) }),
        _ => Err(Error::last(format!("pidfd_open({pid})"))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_given_is_taken() {
        let (giver, taker) = pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let own = process(std::process::id().cast_signed()).unwrap();
        giver.give([file.as_fd(), own.as_fd()]).unwrap();
        drop(giver);
        let [taken, process] = taker.take().unwrap();
        let inode = |fd: BorrowedFd<'_>| nix::sys::stat::fstat(fd).unwrap().st_ino;
        assert_eq!(inode(taken.as_fd()), inode(file.as_fd()));
        assert!(!Process::of(process).ends_within(Some(Duration::from_millis(1))));
        assert!(taker.take().is_none());
    }

    #[test]
    fn a_process_is_seen_to_end() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let process = Process::of(process(child.id().cast_signed()).unwrap());
        assert!(!process.ends_within(Some(Duration::ZERO)));
        drop(child.stdin.take());
        assert!(process.ends_within(None));
        child.wait().unwrap();
    }
}
