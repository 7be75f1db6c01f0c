//! Which blocks are loaded, for somebody who wants to know, and loading them before anybody asks for them.

use super::data::Content;
use super::tables::Region;
use super::{Filesystem, ReadError};

/// A block of the image, with all that is needed to load it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Touched {
    /// A metadata block.
    Metadata {
        /// Where it lies.
        position: u64,
    },
    /// A fragment block.
    Fragment {
        /// Where it lies.
        position: u64,
        /// Size as in the fragment table.
        size_word: u32,
    },
    /// A data block.
    Data {
        /// Where it lies.
        position: u64,
        /// Size as in the block list.
        size_word: u32,
        /// Bytes of the file that it holds.
        length: u32,
    },
}

/// Hears of every block that is about to be loaded because the cache lacks it.
pub trait Watch: std::fmt::Debug + Send + Sync {
    /// Called by the thread that loads, with no lock held.
    fn loading(&self, block: Touched);
}

impl Filesystem {
    /// Has `watcher` hear of all blocks loaded from now on.
    pub fn watch(&mut self, watcher: std::sync::Arc<dyn Watch>) {
        self.watcher = Some(watcher);
    }

    /// Whether somebody hears of the blocks that are loaded.
    pub fn is_watched(&self) -> bool {
        self.watcher.is_some()
    }

    pub(super) fn loading(&self, block: Touched) {
        if let Some(watcher) = &self.watcher {
            watcher.loading(block);
        }
    }

    /// Loads a block into the cache unless it is there. It may be none at all: what is wrong with it is an error here,
    /// and again for whoever comes to read it.
    pub fn load(&self, block: Touched) -> Result<(), ReadError> {
        match block {
            Touched::Metadata { position } => {
                let anywhere = Region { name: "image", start: 0, end: self.superblock.bytes_used };
                self.metadata_block(&anywhere, position).map(drop)
            }
            Touched::Fragment { position, size_word } => {
                self.load_ahead(position, size_word, Content::Fragment)
            }
            Touched::Data { position, size_word, length } => {
                let length = usize::try_from(length.min(self.superblock.block_size)).unwrap_or(usize::MAX);
                self.load_ahead(position, size_word, Content::Block(length))
            }
        }
    }

    /// Reads bytes as they are stored, as far as the file reaches; gives how many.
    pub fn read_stored(&self, position: u64, out: &mut [u8]) -> Result<usize, ReadError> {
        self.image.read_available(position, out)
    }
}
