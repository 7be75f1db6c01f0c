//! Notes which blocks of an image are read while a program starts, in memory that the one who asked for it shares.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::image::profile::Block;
use crate::squashfs::reader::{Touched, Watch};
use crate::sys::{self, shared};

/// Most blocks noted, repetitions included: 2 MiB, of which only the used part takes memory.
const CAPACITY: usize = 1 << 17;

/// A list of blocks, shared with every process forked after it was made: a server that takes the place of a dead one
/// goes on with it.
#[derive(Debug, Clone, Copy)]
pub struct Recorder {
    /// Number of blocks noted, or a little more than there is room for.
    count: &'static AtomicU64,
    /// Not 0 when no more are to be noted.
    is_over: &'static AtomicU64,
    /// Two words a block; the second is 0 until both are there.
    blocks: &'static [AtomicU64],
}

impl Recorder {
    /// An empty list.
    pub fn new() -> Result<Recorder, sys::Error> {
        let words = shared::words(2 + 2 * CAPACITY)?;
        match words {
            [count, is_over, blocks @ ..] => Ok(Recorder { count, is_over, blocks }),
            _ => Err(sys::Error::new("mmap(SHARED|ANONYMOUS)", nix::errno::Errno::ENOMEM)),
        }
    }

    /// Notes no more.
    pub fn stop(&self) {
        self.is_over.store(1, Ordering::Relaxed);
    }

    /// The blocks noted so far, in the order in which their loading began, repetitions included.
    pub fn blocks(&self) -> impl Iterator<Item = Block> + '_ {
        self.blocks.chunks_exact(2).filter_map(|words| match words {
            [position, word] => match word.load(Ordering::Acquire) {
                0 => None,
                word => Block::from_words(position.load(Ordering::Relaxed), word),
            },
            _ => None,
        })
    }
}

impl Watch for Recorder {
    fn loading(&self, block: Touched) {
        if self.is_over.load(Ordering::Relaxed) != 0 {
            return;
        }
        let index = usize::try_from(self.count.fetch_add(1, Ordering::Relaxed)).unwrap_or(usize::MAX);
        let place = index.checked_mul(2).and_then(|at| self.blocks.get(at..)?.first_chunk::<2>());
        let Some([position, word]) = place else { return self.stop() };
        let (block_position, block_word) = profiled(block).to_words();
        position.store(block_position, Ordering::Relaxed);
        word.store(block_word, Ordering::Release);
    }
}

/// A block of the reader's as profiles have it.
pub(super) fn profiled(block: Touched) -> Block {
    match block {
        Touched::Metadata { position } => Block::Metadata { position },
        Touched::Fragment { position, size_word } => Block::Fragment { position, size_word },
        Touched::Data { position, size_word, length } => Block::Data { position, size_word, length },
    }
}

/// The other way round.
pub(super) fn touched(block: Block) -> Touched {
    match block {
        Block::Metadata { position } => Touched::Metadata { position },
        Block::Fragment { position, size_word } => Touched::Fragment { position, size_word },
        Block::Data { position, size_word, length } => Touched::Data { position, size_word, length },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_order_until_it_is_stopped_or_full() {
        let recorder = Recorder::new().unwrap();
        let block = |position| Touched::Data { position, size_word: 5, length: 6 };
        recorder.loading(block(9));
        recorder.loading(Touched::Metadata { position: 3 });
        recorder.loading(block(9));
        recorder.stop();
        recorder.loading(block(1));
        let noted: Vec<_> = recorder.blocks().map(touched).collect();
        assert_eq!(noted, [block(9), Touched::Metadata { position: 3 }, block(9)]);

        let full = Recorder::new().unwrap();
        (0..CAPACITY as u64 + 10).for_each(|position| full.loading(block(position)));
        assert_eq!(full.blocks().count(), CAPACITY);
    }
}
