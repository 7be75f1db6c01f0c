//! Putting files into the kernel's page cache, while a launch is under way, that the job's start is going to read.
//!
//! The kernel asks for a mapped file in stretches of 64 KiB or less, and the process waits for each: for a small program
//! that takes longer than all of its launch. But the launcher has its files looked up early
//! ([`crate::mount::enact::Event::Served`]), and until the program is executed a CPU that has nothing to do yet stores
//! them with `FUSE_NOTIFY_STORE`.
//!
//! Who stores a page has to wait for a reader of that page, and nothing ends the wait but the reader's answer. Were the
//! server killed meanwhile, the waiting one would hold `/dev/fuse` for ever, a SIGKILL notwithstanding, and with it the mount
//! and whoever waits for that. So nothing is stored while anybody reads: the launcher, which reads nothing itself, ends it
//! before the job begins, and before another rank may join ([`Launch::begin_turn`]). A process of its own stores, the keeper's
//! child: a thread of the server in such a wait would keep the next server from being started.

use std::io::{IoSlice, PipeReader, PipeWriter, Read as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;

use super::launch::Launch;
use super::protocol;
use super::tree::{Node, Tree};
use crate::squashfs::reader::{FileLayout, InodeKind};
use crate::sys;
use crate::sys::fuse::Device;
use crate::sys::process::{self, Fork};

/// The process's name.
const NAME: &str = "hpcrun-ahead";
/// A file of up to so many bytes is stored as a whole: the C library is shorter.
const WHOLE_MAX_BYTES: u64 = 2 << 20;
/// At the start of a longer file are its headers, symbols and relocations. What code is needed depends on the program.
const START_BYTES: u64 = 256 << 10;
/// At its end is its data.
const END_BYTES: u64 = 128 << 10;
/// Bytes stored with one call: whole pages on every machine.
const STRETCH_BYTES: u64 = 128 << 10;
/// Bytes of all files together.
const ALL_MAX_BYTES: u64 = 16 << 20;
/// The kernel knows a file a moment after it was told: tries until it does.
const TRIES_MAX: usize = 100;

/// The server's end: tells of files that are looked up during the launch.
#[derive(Debug)]
pub(super) struct Announcer {
    is_open: AtomicBool,
    pipe: Mutex<Option<PipeWriter>>,
}

impl Announcer {
    /// Tells nobody.
    pub(super) fn closed() -> Announcer {
        Announcer { is_open: AtomicBool::new(false), pipe: Mutex::new(None) }
    }

    /// Tells whoever reads the other end of `pipe`.
    pub(super) fn to(pipe: PipeWriter) -> Announcer {
        Announcer { is_open: AtomicBool::new(true), pipe: Mutex::new(Some(pipe)) }
    }

    /// The kernel is about to be told of the file with this node id.
    pub(super) fn looked_up(&self, file: u64) {
        if self.is_open.load(Ordering::Relaxed) {
            let mut pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
            if pipe.as_mut().is_some_and(|pipe| pipe.write_all(&file.to_ne_bytes()).is_err()) {
                *pipe = None;
            }
        }
    }

    /// The launch is over.
    pub(super) fn close(&self) {
        self.is_open.store(false, Ordering::Relaxed);
        *self.pipe.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// The way from [`Announcer`] to [`start`]. Who announces never waits.
pub(super) fn way() -> Result<(PipeReader, PipeWriter), sys::Error> {
    let (announced, announcer) = process::pipe()?;
    process::never_block(&announcer)?;
    Ok((announced, announcer))
}

/// Starts the process, which stores each file that `announced` tells of until the other end is closed. Without it
/// everything works, only slower.
pub(super) fn start(announced: PipeReader, tree: &Tree, device: &Device, launch: &Launch) {
    if let Ok(Fork::Child) = process::fork() {
        process::set_name(NAME);
        std::panic::set_hook(Box::new(|_| {}));
        let mut store = Store { tree, device, launch, left: ALL_MAX_BYTES, content: Vec::new() };
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| store.all(announced)));
        process::exit_now(0)
    }
}

/// Where the stretches begin that are stored of a file of `length` bytes, in the order in which a start is likely to want
/// them: the ends first.
fn wanted(length: u64) -> impl Iterator<Item = u64> {
    let end = length.saturating_sub(END_BYTES) / STRETCH_BYTES * STRETCH_BYTES;
    let (start, end) = (START_BYTES.min(length), end.max(START_BYTES));
    let middle = if length <= WHOLE_MAX_BYTES { end.min(length) } else { start };
    let step = |from: u64, to: u64| {
        std::iter::successors(Some(from), |at| at.checked_add(STRETCH_BYTES)).take_while(move |at| *at < to)
    };
    step(0, start).chain(step(end, length)).chain(step(start, middle))
}

/// The kernel's page cache.
struct Store<'a> {
    tree: &'a Tree,
    device: &'a Device,
    launch: &'a Launch,
    /// Bytes that may yet be stored.
    left: u64,
    content: Vec<u8>,
}

impl Store<'_> {
    /// Stores what is announced until that ends, or there is no use in going on.
    fn all(&mut self, mut announced: PipeReader) {
        let mut id = [0; 8];
        while announced.read_exact(&mut id).is_ok() {
            let id = u64::from_ne_bytes(id);
            let Ok(Node::Image(reference)) = self.tree.node(id) else { continue };
            // What cannot be read is told to the one who needs it.
            let Ok(InodeKind::File(file)) = self.tree.inode(reference).map(|inode| inode.kind) else {
                continue;
            };
            if !wanted(file.size).all(|offset| self.stretch(id, &file, offset)) {
                return;
            }
        }
    }

    /// Stores a stretch of the file with this node id. Says whether there is any use in going on.
    fn stretch(&mut self, id: u64, file: &FileLayout, offset: u64) -> bool {
        let length = STRETCH_BYTES.min(file.size.saturating_sub(offset));
        let Some(left) = self.left.checked_sub(length) else { return false };
        self.left = left;
        self.content.clear();
        let length = usize::try_from(length).unwrap_or(0);
        // The launcher waits for what is being stored, but not for the image's store.
        if self.tree.image().read_to(file, offset, length, &mut self.content).is_err() {
            return false;
        }
        let is_stored = self.launch.begin_turn() && self.send(id, offset);
        self.launch.end_turn();
        is_stored
    }

    fn send(&self, id: u64, offset: u64) -> bool {
        let mut header = Vec::new();
        protocol::put_store(&mut header, id, offset, self.content.len());
        for _ in 0..TRIES_MAX {
            match self.device.write(&[IoSlice::new(&header), IoSlice::new(&self.content)]) {
                Err(Errno::ENOENT) => std::thread::yield_now(),
                sent => return sent.is_ok(),
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_files_are_wanted_whole_and_of_long_ones_the_ends() {
        const KIB: u64 = 1 << 10;
        let cases: [(u64, &[u64]); 7] = [
            (0, &[]),
            (5, &[0]),
            (128 * KIB, &[0]),
            (300 * KIB, &[0, 128 * KIB, 256 * KIB]),
            (700 * KIB, &[0, 128 * KIB, 512 * KIB, 640 * KIB, 256 * KIB, 384 * KIB]),
            (2048 * KIB + 1, &[0, 128 * KIB, 1920 * KIB, 2048 * KIB]),
            (1 << 40, &[0, 128 * KIB, (1 << 40) - 128 * KIB]),
        ];
        for (length, offsets) in cases {
            assert_eq!(wanted(length).collect::<Vec<_>>(), offsets, "{length}");
        }
        assert_eq!(wanted(2048 * KIB).count(), 16);
    }

    #[test]
    fn who_does_not_listen_is_told_no_more() {
        let (reader, writer) = process::pipe().expect("pipe");
        let announcer = Announcer::to(writer);
        announcer.looked_up(7);
        drop(reader);
        announcer.looked_up(8);
        assert!(announcer.pipe.lock().expect("lock").is_none());
    }
}
