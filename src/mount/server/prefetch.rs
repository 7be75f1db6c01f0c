//! Read-ahead: a file read in order has its next blocks decompressed by other threads before they are asked for.
//!
//! The kernel's own read-ahead ends at 128 KiB, one block, for a mount without privilege; here it goes on for many. It
//! goes on by half of that at a time, so that a decompressing thread is woken up for several blocks and not for each.

use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::sequence::Sequences;
use super::tree::Tree;
use crate::squashfs::format::InodeRef;
use crate::squashfs::reader::FileLayout;

/// Bytes decompressed ahead of a sequential reader.
const BYTES_AHEAD: u64 = 2 << 20;
/// Blocks waiting for a thread; more are not worth waiting for and are dropped.
const QUEUE_BLOCKS: usize = 64;
/// Files whose readers are watched at a time.
const WATCHED_FILES: u64 = 64;
/// Reads in order before read-ahead begins.
const ORDERLY_READS: u32 = 2;

/// One block to decompress.
#[derive(Debug)]
struct Job {
    inode: InodeRef,
    layout: Arc<FileLayout>,
    offset: u64,
    length: usize,
}

/// The open files' layouts and how they are being read.
#[derive(Debug)]
pub(super) struct Prefetcher {
    block_size: u64,
    watched: Vec<Mutex<Option<Watch>>>,
    sequences: Mutex<Sequences>,
    queue: Sender<Job>,
    jobs: Receiver<Job>,
}

/// How a file is being read.
#[derive(Debug)]
struct Watch {
    inode: InodeRef,
    layout: Arc<FileLayout>,
    order: Order,
}

/// The order of the reads of one file, and how far ahead it was decompressed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Order {
    /// End of the furthest read.
    end: u64,
    /// Reads in a row that went on near there.
    orderly: u32,
    /// Everything below has been queued.
    queued: u64,
}

impl Order {
    /// Whether the file is read in order, as far as that can be told.
    fn is_orderly(&self) -> bool {
        self.orderly >= ORDERLY_READS
    }

    /// Notes a read, and gives the range to decompress ahead, on block boundaries except for the end of the file.
    fn note(&mut self, offset: u64, length: u64, block_size: u64, file_size: u64) -> Option<(u64, u64)> {
        let end = offset.saturating_add(length).min(file_size);
        let ahead = BYTES_AHEAD.max(block_size);
        // The kernel sends several read-ahead requests at a time, which arrive in any order.
        if offset > self.end.saturating_add(ahead) || end.saturating_add(ahead) < self.end {
            *self = Order { end, orderly: 1, queued: 0 };
            return None;
        }
        self.end = self.end.max(end);
        self.orderly = self.orderly.saturating_add(1);
        if !self.is_orderly() {
            return None;
        }
        let from = self.end.checked_next_multiple_of(block_size)?;
        let first = from.max(self.queued);
        let last = from.saturating_add(ahead).min(file_size);
        if first >= last || first - from > ahead / 2 {
            return None;
        }
        self.queued = last;
        Some((first, last))
    }
}

impl Prefetcher {
    pub(super) fn new(block_size: u32) -> Prefetcher {
        let (queue, jobs) = bounded(QUEUE_BLOCKS);
        let watched = (0..WATCHED_FILES).map(|_| Mutex::new(None)).collect();
        let sequences = Mutex::new(Sequences::default());
        Prefetcher { block_size: u64::from(block_size.max(1)), watched, sequences, queue, jobs }
    }

    /// The layout of a file, remembered from the last reads or got by `open`, after noting a read of it; and whether the
    /// file is read in order.
    pub(super) fn note_read<E>(
        &self,
        tree: &Tree,
        inode: InodeRef,
        (offset, length): (u64, u64),
        open: impl FnOnce() -> Result<FileLayout, E>,
    ) -> Result<(Arc<FileLayout>, bool), E> {
        let Some(place) = self.place(inode) else {
            return open().map(|layout| (Arc::new(layout), false));
        };
        let lock = || place.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock().take().filter(|watch| watch.inode == inode);
        let is_new = known.is_none();
        let mut watch = match known {
            Some(watch) => watch,
            // Nobody else waits if the store keeps this one waiting.
            None => Watch { inode, layout: Arc::new(open()?), order: Order::default() },
        };
        let layout = Arc::clone(&watch.layout);
        let ahead = watch.order.note(offset, length, self.block_size, layout.size);
        let is_orderly = watch.order.is_orderly();
        *lock() = Some(watch);
        if let Some((first, last)) = ahead {
            self.enqueue(inode, &layout, first, last);
        }
        if is_new && offset == 0 {
            self.note_file(tree, inode);
        }
        Ok((layout, is_orderly))
    }

    /// Looks after the files that follow this one.
    fn note_file(&self, tree: &Tree, inode: InodeRef) {
        // Whoever finds it taken does without: the holder may be waiting for the store.
        let Ok(mut sequences) = self.sequences.try_lock() else { return };
        let next = sequences.note(tree.image(), inode);
        drop(sequences);
        for (inode, layout, length) in next {
            self.enqueue(inode, &Arc::new(layout), 0, length);
        }
    }

    fn enqueue(&self, inode: InodeRef, layout: &Arc<FileLayout>, first: u64, last: u64) {
        let mut offset = first;
        while offset < last {
            let end = offset.saturating_add(self.block_size).min(last);
            let length = usize::try_from(end - offset).unwrap_or(0);
            if self.queue.try_send(Job { inode, layout: Arc::clone(layout), offset, length }).is_err() {
                return;
            }
            offset = end;
        }
    }

    /// Decompresses what is queued, for ever. What cannot be read is reported to the one who reads it.
    pub(super) fn work(&self, tree: &Tree) {
        for job in &self.jobs {
            if !self.is_read(&job) {
                let _ = tree.image().prefetch(&job.layout, job.offset, job.length);
            }
        }
    }

    /// Whether the reader has been faster. Then the block may have left the cache already.
    fn is_read(&self, job: &Job) -> bool {
        let place = self.place(job.inode).map(|place| place.lock().unwrap_or_else(PoisonError::into_inner));
        let watch = place.as_ref().and_then(|place| place.as_ref());
        watch.is_some_and(|watch| watch.inode == job.inode && watch.order.end > job.offset)
    }

    fn place(&self, inode: InodeRef) -> Option<&Mutex<Option<Watch>>> {
        self.watched.get(usize::try_from(inode.0 % WATCHED_FILES).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 128 << 10;

    #[track_caller]
    fn check(size: u64, reads: &[(u64, u64)], expected: &[Option<(u64, u64)>]) {
        let mut order = Order::default();
        let ahead: Vec<_> =
            reads.iter().map(|(offset, length)| order.note(*offset, *length, BLOCK, size)).collect();
        assert_eq!(ahead, expected);
    }

    #[test]
    fn reading_in_order_looks_ahead_by_halves_once_each() {
        let reads: Vec<_> = (0..20).map(|n| (n * BLOCK, BLOCK)).collect();
        let mut expected = vec![None; 20];
        expected[1] = Some((2 * BLOCK, 18 * BLOCK));
        expected[9] = Some((18 * BLOCK, 26 * BLOCK));
        expected[17] = Some((26 * BLOCK, 34 * BLOCK));
        check(100 * BLOCK, &reads, &expected);
    }

    #[test]
    fn requests_out_of_order_count_as_orderly() {
        let reads = [(BLOCK, BLOCK), (0, BLOCK), (2 * BLOCK, BLOCK)];
        check(100 * BLOCK, &reads, &[None, Some((2 * BLOCK, 18 * BLOCK)), None]);
    }

    #[test]
    fn random_reads_look_nowhere() {
        let reads = [(50 * BLOCK, 4096), (7 * BLOCK, 4096), (90 * BLOCK, 4096), (30 * BLOCK, 4096)];
        check(100 * BLOCK, &reads, &[None; 4]);
    }

    #[test]
    fn nothing_lies_beyond_the_end_of_the_file() {
        check(2 * BLOCK, &[(0, BLOCK), (BLOCK, BLOCK), (2 * BLOCK, BLOCK)], &[None; 3]);
        let size = 2 * BLOCK + 5;
        check(size, &[(0, BLOCK), (BLOCK, BLOCK)], &[None, Some((2 * BLOCK, size))]);
        check(u64::MAX, &[(u64::MAX - 5, 5)], &[None]);
    }
}
