//! Where the blocks of a large file lie: a checkpoint every so many blocks, learned while reading.
//!
//! A block list holds sizes, not positions, so that the position of a block is the sum of all sizes before it. A file
//! of 1 TiB has 8 million of them; reading at random must not add them up each time.

use std::sync::{Mutex, PoisonError};

use super::metadata::MetadataPosition;

/// Blocks between checkpoints as long as there are few; files up to this many blocks have none.
pub(super) const STRIDE: u64 = 512;
/// Checkpoints of one file; when there would be more, every second goes and the stride doubles.
const CHECKPOINTS_MAX: usize = 1024;

/// A place in a block list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Checkpoint {
    /// Where the list goes on.
    pub(super) list: MetadataPosition,
    /// Where the block's data lies.
    pub(super) data: u64,
}

/// The checkpoints of one file.
#[derive(Debug)]
pub(super) struct BlockIndex(Mutex<Checkpoints>);

#[derive(Debug)]
struct Checkpoints {
    /// Entry `n` is in front of block `n * stride`.
    known: Vec<Checkpoint>,
    stride: u64,
}

impl BlockIndex {
    /// An index that knows where block 0 lies.
    pub(super) fn new(first: Checkpoint) -> BlockIndex {
        BlockIndex(Mutex::new(Checkpoints { known: vec![first], stride: STRIDE }))
    }

    /// The most bytes that the index of a file with this many blocks takes.
    pub(super) fn bytes_max(blocks: u64) -> usize {
        let checkpoints = usize::try_from(blocks / STRIDE + 1).unwrap_or(usize::MAX).min(CHECKPOINTS_MAX);
        // Twice: a vector grows by doubling.
        size_of::<BlockIndex>() + 2 * checkpoints * size_of::<Checkpoint>()
    }

    /// The last known checkpoint up to block `number`, with its block.
    pub(super) fn nearest(&self, number: u64) -> (u64, Checkpoint) {
        let checkpoints = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        checkpoints.nearest(number)
    }

    /// Takes note of a checkpoint in front of block `number`, a multiple of [`STRIDE`].
    pub(super) fn learn(&self, number: u64, checkpoint: Checkpoint) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).learn(number, checkpoint);
    }
}

impl Checkpoints {
    #[expect(clippy::indexing_slicing, reason = "at most the last of a vector that is never empty")]
    fn nearest(&self, number: u64) -> (u64, Checkpoint) {
        let last = self.known.len() - 1;
        let at = usize::try_from(number / self.stride).map_or(last, |at| at.min(last));
        (at as u64 * self.stride, self.known[at])
    }

    /// Only the checkpoint that follows the last one is taken: the others are known, or come again.
    fn learn(&mut self, number: u64, checkpoint: Checkpoint) {
        if number != self.known.len() as u64 * self.stride {
            return;
        }
        if self.known.len() == CHECKPOINTS_MAX {
            let mut even = false;
            self.known.retain(|_| {
                even = !even;
                even
            });
            self.stride *= 2;
        }
        // After the halving, `number` is again the next multiple of the stride: the maximum is even.
        self.known.push(checkpoint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(number: u64) -> Checkpoint {
        Checkpoint { list: MetadataPosition { block: number, byte: 0 }, data: number * 3 }
    }

    #[test]
    fn finds_the_nearest_checkpoint_before_a_block() {
        let index = BlockIndex::new(checkpoint(0));
        for number in [512, 1024, 1536] {
            index.learn(number, checkpoint(number));
        }
        for (wanted, got) in [(0, 0), (511, 0), (512, 512), (1535, 1024), (1536, 1536), (u64::MAX, 1536)] {
            assert_eq!(index.nearest(wanted), (got, checkpoint(got)));
        }
    }

    #[test]
    fn ignores_what_it_knows_and_what_would_leave_a_gap() {
        let index = BlockIndex::new(checkpoint(0));
        index.learn(1024, checkpoint(7));
        index.learn(512, checkpoint(512));
        index.learn(512, checkpoint(7));
        assert_eq!(index.nearest(5000), (512, checkpoint(512)));
    }

    #[test]
    fn thins_out_instead_of_growing() {
        let index = BlockIndex::new(checkpoint(0));
        for number in (1..20_000).map(|at| at * STRIDE) {
            index.learn(number, checkpoint(number));
            let (block, at) = index.nearest(number);
            assert_eq!(at, checkpoint(block));
        }
        let checkpoints = index.0.lock().unwrap();
        assert!(checkpoints.known.len() <= CHECKPOINTS_MAX);
        assert!(checkpoints.known.len() > CHECKPOINTS_MAX / 2);
        assert!(checkpoints.stride <= 10_000_000 / (CHECKPOINTS_MAX as u64 / 2));
    }
}
