//! Files of at least one block: cut into blocks, zero blocks become holes.

use std::sync::Arc;

use crate::squashfs::writer::WriteError;
use crate::squashfs::writer::pipeline::{Block, Content, Pipeline, Role};
use crate::squashfs::writer::stored::{BlockSource, StoredBlock, StoredWord};

/// Where a file's data was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileData {
    /// Nothing but zeros, or nothing at all.
    Zeros,
    /// A slice of a fragment block.
    Fragment {
        /// Index of the fragment block.
        fragment: u32,
        /// First byte in it.
        offset: u32,
    },
    /// A run of blocks, by its number in the layout.
    Run(u32),
}

/// A file whose data has been handed over.
#[derive(Debug, Clone, Copy)]
pub(super) struct FileRecord {
    /// Length, bytes.
    pub(super) size: u64,
    pub(super) data: FileData,
}

/// The file being cut into blocks.
#[derive(Debug, Default)]
pub(super) struct BlockCutter {
    /// The block being filled.
    current: Option<Block>,
    /// The last data block with the holes before it, kept back until it is known whether another follows.
    kept_back: Option<(Block, u32)>,
    /// Holes since `kept_back`.
    holes: u32,
    /// Files of at least one data block handed over so far.
    runs: u32,
    /// The file's blocks are stored as they are.
    is_plain: bool,
}

impl BlockCutter {
    /// Whether the blocks of the file that begins are stored without compression.
    pub(super) fn set_plain(&mut self, is_plain: bool) {
        self.is_plain = is_plain;
    }

    /// The block being filled; a fresh one if need be.
    pub(super) fn block(&mut self, pipeline: &mut Pipeline) -> Result<&mut Block, WriteError> {
        if self.current.is_none() {
            self.current = Some(pipeline.block()?);
        }
        self.current.as_mut().ok_or(WriteError::OutOfTurn("no block is being filled"))
    }

    /// Whether the file is at a block boundary.
    pub(super) fn at_boundary(&self) -> bool {
        self.current.as_ref().is_none_or(|block| block.len() == 0)
    }

    /// Counts `blocks` holes; only at a block boundary.
    pub(super) fn add_holes(&mut self, blocks: u32) {
        self.holes = self.holes.saturating_add(blocks);
    }

    /// Ends the current block, be it full or the last of the file.
    pub(super) fn end_block(&mut self, pipeline: &mut Pipeline) -> Result<(), WriteError> {
        let Some(mut block) = self.current.take() else { return Ok(()) };
        if is_zero(block.filled()) {
            block.truncate(0);
            self.current = Some(block);
            self.add_holes(1);
            return Ok(());
        }
        let holes_before = std::mem::take(&mut self.holes);
        match self.kept_back.replace((block, holes_before)) {
            Some((earlier, holes_before)) => {
                self.submit(earlier, Role::Data { holes_before, last: None }, pipeline)
            }
            None => Ok(()),
        }
    }

    /// Ends the file, of which all blocks have been ended.
    pub(super) fn end(&mut self, pipeline: &mut Pipeline) -> Result<FileData, WriteError> {
        let holes_after = std::mem::take(&mut self.holes);
        let Some((block, holes_before)) = self.kept_back.take() else { return Ok(FileData::Zeros) };
        self.submit(block, Role::Data { holes_before, last: Some(holes_after) }, pipeline)?;
        Ok(self.next_run())
    }

    fn submit(&self, block: Block, role: Role, pipeline: &mut Pipeline) -> Result<(), WriteError> {
        if self.is_plain { pipeline.submit_plain(block, role) } else { pipeline.submit(block, role) }
    }

    fn next_run(&mut self) -> FileData {
        let run = self.runs;
        self.runs = run.saturating_add(1);
        FileData::Run(run)
    }

    /// A whole file from blocks that are compressed already. Each goes out as if it had just been compressed.
    pub(super) fn take_over(
        &mut self,
        from: &Arc<BlockSource>,
        words: &[StoredWord],
        pipeline: &mut Pipeline,
    ) -> Result<FileData, WriteError> {
        let mut submit = |block: StoredBlock, holes_before, last| {
            let content = Content::Stored(Arc::clone(from), block);
            pipeline.take_over(content, Role::Data { holes_before, last })
        };
        let mut kept_back: Option<(StoredBlock, u32)> = None;
        let mut holes = 0u32;
        for word in words {
            match word {
                StoredWord::Holes(count) => holes = holes.saturating_add(*count),
                StoredWord::Data(block) => {
                    if let Some((earlier, before)) = kept_back.replace((*block, std::mem::take(&mut holes))) {
                        submit(earlier, before, None)?;
                    }
                }
            }
        }
        let Some((block, before)) = kept_back else { return Ok(FileData::Zeros) };
        submit(block, before, Some(holes))?;
        Ok(self.next_run())
    }
}

/// Whether all bytes are zero; quick to say no.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<32>();
    chunks.iter().all(|chunk| *chunk == [0; 32]) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_anywhere_is_not_zero() {
        for length in [0, 1, 31, 32, 33, 64, 100] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes), "{length}");
            for at in 0..length {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "{length}, {at}");
                bytes[at] = 0;
            }
        }
    }
}
