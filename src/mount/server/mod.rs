//! The image server: serves one squashfs and its grafts through /dev/fuse, restarted by a keeper when it dies.
//!
//! ```text
//! launcher --clone-> intermediate --fork--> keeper --fork--> server (threads)
//!     |                  exits                 |    |            |
//!     mount(2), mounted()              waits for the|        LOOKUP, READ, ... until the last process that
//!     exec of the job                  server's end |        sees the mount is gone
//!                                                   +--fork--> ahead: stores files until the job starts
//! ```
//!
//! `docs/image-server.md` tells the whole story.

mod ahead;
mod crew;
mod hold;
mod keeper;
mod launch;
mod lone_client;
mod prefetch;
mod protocol;
mod recorder;
mod sequence;
mod session;
mod startup;
mod tree;
mod trouble;
mod watch;

pub use self::recorder::Recorder;
pub use self::startup::Startup;

use std::io::{PipeWriter, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::mount::MsFlags;

use crate::mount::graft::Grafts;
use crate::mount::node_cache::Maker;
use crate::squashfs::reader::Filesystem;
use crate::sys;
use crate::sys::affinity::{self, Affinity};
use crate::sys::{detached, lock, process};

/// Flags to mount the image with. Device nodes and set-id bits of an image are never honoured.
pub const MOUNT_FLAGS: MsFlags = MsFlags::MS_RDONLY.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOSUID);

/// Most serving threads.
const THREADS_MAX: usize = 16;

/// How the server runs.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Serving threads, 1 to 16.
    pub threads: usize,
    /// What is read before anybody asks for it.
    pub startup: Startup,
    /// Who makes a copy of the image file on this node, if somebody is to.
    pub maker: Option<Maker>,
    /// Whether files that are looked up until the launch is over go into the page cache as a whole, or in great part.
    pub ahead: bool,
}

/// What is done last of all, when the file system is gone and with it every process of the job.
#[derive(Default)]
pub struct AtEnd {
    last: Option<Box<dyn FnOnce() + Send>>,
    /// A descriptor that keeper and servers keep open until then.
    held: Option<RawFd>,
}

impl AtEnd {
    /// Runs `last` in the server and again in the keeper, each of which somebody may have killed. Either has the host's mounts, no
    /// descriptor of the caller's and nobody to tell of errors.
    pub fn new(last: impl FnOnce() + Send + 'static) -> AtEnd {
        AtEnd { last: Some(Box::new(last)), held: None }
    }

    /// Has the keeper keep `fd` open: a lock, say, for as long as the job lives.
    pub fn holding(self, fd: Option<RawFd>) -> AtEnd {
        AtEnd { held: fd, ..self }
    }

    fn run(self) {
        if let Some(last) = self.last {
            last();
        }
    }
}

impl std::fmt::Debug for AtEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AtEnd").finish_non_exhaustive()
    }
}

/// A server waiting for the mount.
#[derive(Debug)]
pub struct Waiting {
    ready: PipeWriter,
    entrusting: hold::Entrusting,
    /// Where the server expects the caller.
    cpu: Option<usize>,
}

impl Waiting {
    /// Tells the server that `mount(2)` with its /dev/fuse fd has succeeded: it begins to serve.
    /// Dropping a `Waiting` instead makes keeper and server exit at once.
    ///
    /// The caller is on one CPU with the server until it drops what this gives; exec drops it too, but for the CPU.
    pub fn mounted(mut self) -> Result<Launching, sys::Error> {
        let told = self.ready.write_all(&[1]);
        told.map_err(|error| sys::Error::from_io("write(keeper's pipe)", &error))?;
        let Waiting { ready, entrusting, cpu } = self;
        Ok(Launching { ready, entrusting, _stay: cpu.and_then(Stay::on) })
    }
}

/// A launch under way: one thread serves, on the caller's CPU. When it is dropped, all serve everybody.
#[derive(Debug)]
pub struct Launching {
    ready: PipeWriter,
    entrusting: hold::Entrusting,
    _stay: Option<Stay>,
}

impl Launching {
    /// Has the server wait in the caller's place, when the caller ends, for the kernel to take down the mount, whose root
    /// directory is `root`.
    pub fn entrust(&self, root: &impl AsFd) {
        self.entrusting.entrust(root);
    }

    /// Lets the files that were looked up, and those that will be, be stored in the kernel's page cache. Nobody may read a file
    /// of the mount from now on until [`Launching::end_storing`].
    pub fn let_store(&self) -> Result<(), sys::Error> {
        lock::yield_turns(&self.ready)
    }

    /// Ends that; waits for what is being stored, a tenth of a millisecond at most.
    pub fn end_storing(&self) -> Result<(), sys::Error> {
        lock::refuse_turns(&self.ready)
    }
}

/// Keeps the calling thread on one CPU until it is dropped.
#[derive(Debug)]
struct Stay {
    before: Affinity,
}

impl Stay {
    /// None where the kernel does not let a thread choose: the launch is slower then, not wrong.
    fn on(cpu: usize) -> Option<Stay> {
        let before = Affinity::of_caller().ok()?;
        affinity::pin(cpu).ok()?;
        Some(Stay { before })
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        // What could be changed can be changed back.
        let _ = self.before.restore();
    }
}

/// The data argument for `mount(2)` of type `fuse`: the kernel checks permissions by the image's modes, and lets every
/// process of the user namespace in. `uid` and `gid` are the caller's, inside its user namespace.
///
/// With `allow_other` a user namespace needs no `user_allow_other` in `/etc/fuse.conf`: processes outside it, other
/// users and root included, are kept out by the kernel all the same.
pub fn mount_data(fuse: BorrowedFd<'_>, uid: u32, gid: u32) -> String {
    let fd = fuse.as_raw_fd();
    format!("fd={fd},rootmode=40000,user_id={uid},group_id={gid},default_permissions,allow_other")
}

/// Forks the keeper (twice, so that the caller has no child), which forks the server.
///
/// Call while single-threaded, in the new user namespace and before the new mount namespace; `fuse` was opened in that
/// user namespace. The caller keeps its own copy of the fd for `mount(2)` and closes it afterwards.
pub fn start(
    image: Filesystem,
    grafts: Grafts,
    fuse: &OwnedFd,
    options: ServerOptions,
) -> Result<Waiting, sys::Error> {
    start_service(image, grafts, fuse, options, 0, AtEnd::default())
}

/// As [`start`]; the keeper does `at_end` before it exits.
pub fn start_until(
    image: Filesystem,
    grafts: Grafts,
    fuse: &OwnedFd,
    options: ServerOptions,
    at_end: AtEnd,
) -> Result<Waiting, sys::Error> {
    start_service(image, grafts, fuse, options, 0, at_end)
}

/// As [`start`], for a kernel as it would be without `masked`, bits of the flags of its INIT.
#[doc(hidden)]
pub fn start_masked(
    image: Filesystem,
    grafts: Grafts,
    fuse: &OwnedFd,
    options: ServerOptions,
    masked: u64,
) -> Result<Waiting, sys::Error> {
    start_service(image, grafts, fuse, options, masked, AtEnd::default())
}

fn start_service(
    image: Filesystem,
    grafts: Grafts,
    fuse: &OwnedFd,
    options: ServerOptions,
    masked: u64,
    at_end: AtEnd,
) -> Result<Waiting, sys::Error> {
    let fuse = fuse.try_clone().map_err(|error| sys::Error::from_io("dup(/dev/fuse)", &error))?;
    let threads = options.threads.clamp(1, THREADS_MAX);
    let cpu = affinity::current_cpu().filter(|_| threads > 1);
    let ServerOptions { startup, maker, ahead, .. } = options;
    let (keeper_end, ready) = process::pipe()?;
    let (entrusting, taker) = hold::way()?;
    let service = keeper::Service {
        image,
        grafts,
        startup,
        maker,
        fuse,
        ready: keeper_end,
        taker,
        threads,
        // On the launcher's CPU, if it has but one, whoever stores would only be in its way.
        is_ahead: ahead && cpu.is_some(),
        masked,
        cpu,
        at_end,
    };
    // Of what it has of ours, the other end of the pipe included, the keeper closes all that it does not need.
    detached::fork(service, keeper::run)?.leave();
    // Now: to close the other end would have ended it.
    lock::refuse_turns(&ready)?;
    Ok(Waiting { ready, entrusting, cpu })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_data_names_fd_and_ids() {
        let file = std::fs::File::open("/").expect("root");
        let expected = format!(
            "fd={},rootmode=40000,user_id=1000,group_id=100,default_permissions,allow_other",
            file.as_raw_fd()
        );
        assert_eq!(mount_data(file.as_fd(), 1000, 100), expected);
    }
}
