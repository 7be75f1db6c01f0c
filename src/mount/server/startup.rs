//! Start-up prefetch: reads what a start is known to read before the program asks for it.
//!
//! A start is thousands of small reads, each waiting for the one before. Its profile (`hpcrun trace`) names the blocks, so
//! that a few threads can fetch them in large reads, several at a time. What they read stays in the kernel's page cache,
//! not in the server; the blocks that are needed first are decompressed too, as far as a part of the cache holds.
//!
//! Nothing depends on any of this. A profile that is wrong costs the reads.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::recorder::touched;
use super::tree::Tree;
use crate::image::profile::{Block, Key, MAX_BYTES, Profile};
use crate::image::trailer::Place;
use crate::squashfs::reader::Filesystem;
use crate::sys::process;

/// Threads that fetch.
pub(super) const THREADS: usize = 4;
/// Blocks that come together are fetched in the order of the image; what comes later waits. Bytes as stored.
const WINDOW_BYTES: u64 = 8 << 20;
/// Longest read, bytes: what network file systems and FUSE carry in one request.
const READ_BYTES: u64 = 1 << 20;
/// What lies between two blocks is read too if it is not longer, bytes: about what a store delivers during its latency.
const GAP_BYTES: u64 = 64 << 10;
/// Decompressed data and fragment blocks put into the cache, bytes: half of what it holds.
const DATA_BYTES: u64 = 16 << 20;
/// Decompressed metadata put into the cache, bytes: half of what it holds.
const METADATA_BYTES: u64 = 8 << 20;
/// Longest decompressed metadata block, bytes.
const METADATA_BLOCK: u64 = 8 << 10;

/// The profile that a server works through when it starts.
#[derive(Debug, Clone, Default)]
pub enum Startup {
    /// None.
    #[default]
    Nothing,
    /// It is read from the image file, when there is time for it.
    Section(Place),
    /// These blocks.
    Blocks(Arc<[Block]>),
}

/// The work of all fetching threads.
#[derive(Debug)]
pub(super) struct Prefetch {
    startup: Startup,
    fetches: OnceLock<Vec<Fetch>>,
    next: AtomicUsize,
}

/// One read, and the blocks in it that are then decompressed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fetch {
    /// Positions in the squashfs.
    bytes: Range<u64>,
    blocks: Vec<Block>,
}

impl Prefetch {
    pub(super) fn new(startup: Startup) -> Prefetch {
        Prefetch { startup, fetches: OnceLock::new(), next: AtomicUsize::new(0) }
    }

    /// How many threads are of use.
    pub(super) fn threads(&self) -> usize {
        if matches!(self.startup, Startup::Nothing) { 0 } else { THREADS }
    }

    /// One thread's part: until all is fetched.
    pub(super) fn work(&self, tree: &Tree) {
        // Not idle priority: the job may come to wait for a block that is being decompressed here.
        process::be_modest();
        let image = tree.image();
        let fetches = self.fetches.get_or_init(|| {
            let block_size = u64::from(image.superblock().block_size);
            plan(&self.blocks(image), block_size, image.superblock().bytes_used)
        });
        let mut buffer = Vec::new();
        while let Some(fetch) = fetches.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            run(fetch, image, &mut buffer);
        }
    }

    fn blocks(&self, image: &Filesystem) -> Arc<[Block]> {
        match &self.startup {
            Startup::Nothing => Arc::default(),
            Startup::Blocks(blocks) => Arc::clone(blocks),
            Startup::Section(place) => {
                let file = image.file();
                let bytes =
                    place.read(MAX_BYTES, &|offset, bytes: &mut [u8]| file.read_exact_at(bytes, offset));
                let superblock = image.superblock();
                let key = Key::of(&superblock.to_bytes());
                let profile =
                    bytes.ok().and_then(|bytes| Profile::parse(&bytes, key, superblock.bytes_used).ok());
                profile.map(|profile| profile.blocks.into()).unwrap_or_default()
            }
        }
    }
}

/// What cannot be fetched is reported to the one who reads it.
fn run(fetch: &Fetch, image: &Filesystem, buffer: &mut Vec<u8>) {
    let length = fetch.bytes.end.saturating_sub(fetch.bytes.start);
    buffer.resize(usize::try_from(length).unwrap_or(0), 0);
    if image.read_stored(fetch.bytes.start, buffer).is_err() {
        return;
    }
    for block in &fetch.blocks {
        let _ = image.load(touched(*block));
    }
}

/// The reads that fetch `blocks`, in their order.
fn plan(blocks: &[Block], block_size: u64, squashfs_length: u64) -> Vec<Fetch> {
    let (mut data, mut metadata) = (DATA_BYTES, METADATA_BYTES);
    let mut is_decompressed = |block: &Block| {
        let (budget, bytes) = match block {
            Block::Metadata { .. } => (&mut metadata, METADATA_BLOCK),
            Block::Fragment { .. } => (&mut data, block_size),
            Block::Data { length, .. } => (&mut data, u64::from(*length)),
        };
        let rest = budget.checked_sub(bytes);
        *budget = rest.unwrap_or(*budget);
        rest.is_some()
    };
    let mut fetches = Vec::new();
    let mut rest = blocks;
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = |block: &&Block| {
            bytes += block.stored();
            bytes <= WINDOW_BYTES
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (window, later) = rest.split_at_checked(count).unwrap_or((rest, &[]));
        let mut window: Vec<(Block, bool)> =
            window.iter().map(|block| (*block, is_decompressed(block))).collect();
        window.sort_by_key(|(block, _)| block.position());
        merge(&window, squashfs_length, &mut fetches);
        rest = later;
    }
    fetches
}

/// Adds the reads for blocks in the order of their positions.
fn merge(window: &[(Block, bool)], squashfs_length: u64, fetches: &mut Vec<Fetch>) {
    let first = fetches.len();
    for (block, is_decompressed) in window {
        let start = block.position();
        let end = start.saturating_add(block.stored()).min(squashfs_length);
        let blocks = if *is_decompressed { vec![*block] } else { Vec::new() };
        match fetches.get_mut(first..).and_then(|own| own.last_mut()) {
            Some(last) if start <= last.bytes.end + GAP_BYTES && end <= last.bytes.start + READ_BYTES => {
                last.bytes.end = last.bytes.end.max(end);
                last.blocks.extend(blocks);
            }
            _ => fetches.push(Fetch { bytes: start..end, blocks }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK_SIZE: u64 = 128 << 10;
    const LENGTH: u64 = 1 << 40;

    fn data(position: u64, stored: u32) -> Block {
        Block::Data { position, size_word: stored, length: 128 << 10 }
    }

    fn ranges(blocks: &[Block]) -> Vec<Range<u64>> {
        plan(blocks, BLOCK_SIZE, LENGTH).into_iter().map(|fetch| fetch.bytes).collect()
    }

    #[test]
    fn neighbours_are_read_together() {
        let near = data(50_000, 20_000);
        let blocks = [data(100_000, 1000), data(0, 50_000), near, data(1 << 30, 5)];
        assert_eq!(ranges(&blocks), [0..101_000, 1 << 30..(1 << 30) + 5]);
        assert_eq!(ranges(&[data(0, 10), data(10 + GAP_BYTES, 10)]).len(), 1);
        assert_eq!(ranges(&[data(0, 10), data(11 + GAP_BYTES, 10)]).len(), 2);
    }

    #[test]
    fn reads_are_bounded_and_what_is_wanted_first_comes_first() {
        let blocks: Vec<Block> = (0..300).rev().map(|at| data(at * 100_000, 100_000)).collect();
        let fetches = ranges(&blocks);
        assert!(fetches.iter().all(|bytes| bytes.end - bytes.start <= READ_BYTES), "{fetches:?}");
        assert_eq!(fetches.iter().map(|bytes| bytes.end - bytes.start).sum::<u64>(), 30_000_000);
        assert!(fetches[0].start > 20_000_000, "{fetches:?}");
        assert_eq!(fetches.last().map(|bytes| bytes.end > 5_000_000), Some(true));
    }

    #[test]
    fn decompresses_no_more_than_a_part_of_the_cache() {
        let many = |block: fn(u64) -> Block| (0..5000).map(|at| block(at * 200_000)).collect::<Vec<_>>();
        for (blocks, expected) in [
            (many(|at| data(at, 10)), 128),
            (many(|position| Block::Fragment { position, size_word: 10 }), 128),
            (many(|position| Block::Metadata { position }), 1024),
        ] {
            let fetches = plan(&blocks, BLOCK_SIZE, LENGTH);
            let decompressed: Vec<Block> = fetches.into_iter().flat_map(|fetch| fetch.blocks).collect();
            assert_eq!(decompressed, blocks[..expected]);
        }
    }

    #[test]
    fn nothing_behind_the_end_and_no_end_of_work() {
        let blocks = [Block::Metadata { position: 1000 }, data(u64::MAX - 5, 1 << 20), data(0, 1 << 20)];
        let fetches = plan(&blocks, BLOCK_SIZE, 1010);
        assert!(fetches.iter().all(|fetch| fetch.bytes.end <= 1010));
        assert_eq!(plan(&[], BLOCK_SIZE, LENGTH), []);
    }
}
