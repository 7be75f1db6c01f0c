//! Letting a job end before its file system does.
//!
//! The kernel takes a mount down in the last process that has to do with it, before that process's parent is told of its
//! end: a quarter of a millisecond for a small program, and for a job that has read 20 GiB of its image, all of which are in
//! the page cache, a second. So the server has the mount open, too, until the process that was the launcher has ended, and
//! then waits for the kernel in the job's place. Processes that the job leaves behind keep the mount as ever.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use crate::sys;
use crate::sys::handover::{self, Giver, Process, Taker};

/// The launcher's end of the way to its server.
#[derive(Debug)]
pub(super) struct Entrusting(Giver);

/// The way from [`Entrusting::entrust`] to [`Hold::take`]. What is under way when a server dies is closed with it.
pub(super) fn way() -> Result<(Entrusting, Taker), sys::Error> {
    let (giver, taker) = handover::pair()?;
    Ok((Entrusting(giver), taker))
}

impl Entrusting {
    /// Gives the server the mounted root directory `root`, to hold until the caller's process ends. Without it that ends
    /// later, as it does before Linux 5.3.
    pub(super) fn entrust(&self, root: &impl AsFd) {
        let process = handover::process(std::process::id().cast_signed());
        let _ = process.and_then(|process| self.0.give([root.as_fd(), process.as_fd()]));
    }
}

/// The mount, held.
#[derive(Debug)]
pub(super) struct Hold {
    _root: OwnedFd,
    launcher: Process,
}

impl Hold {
    /// Waits for the mount; none if the launcher gives none.
    pub(super) fn take(taker: &Taker) -> Option<Hold> {
        let [root, process] = taker.take()?;
        Some(Hold { _root: root, launcher: Process::of(process) })
    }

    /// Holds on for `time`; none if the process that was the launcher has ended by then.
    pub(super) fn for_a_while(self, time: Duration) -> Option<Hold> {
        if self.launcher.ends_within(Some(time)) { None } else { Some(self) }
    }

    /// Holds on until that process ends.
    pub(super) fn until_its_end(self) {
        self.launcher.ends_within(None);
    }
}
