//! Small files: packed into fragment blocks in order of arrival, each content once.
//!
//! Files shorter than a block go here, tails of longer files do not (nor do they in mksquashfs by default):
//! reading the end of a library would decompress a block of strangers for it, to save one byte in 7000 of
//! programs and headers (mksquashfs with and without -tailends).

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use crate::squashfs::writer::WriteError;
use crate::squashfs::writer::file::{FileData, is_zero};
use crate::squashfs::writer::pipeline::{Block, Pipeline, Role};

/// The fragment block being filled, and what was stored before.
///
/// A file is read straight into its place in the fragment block. Only one that does not fit is read into a
/// block of its own, which becomes the next fragment block unless the file turns out to be stored already.
#[derive(Debug, Default)]
pub(super) struct FragmentPacker {
    current: Option<Block>,
    /// Holds the open file if it does not fit into `current`.
    next: Option<Block>,
    /// Fragment blocks handed over: the index of `current`.
    submitted: u32,
    /// Where the open file begins in its block.
    start: usize,
    /// Fragment index and offset by SHA-256 of the content.
    stored: HashMap<[u8; 32], (u32, u32)>,
}

impl FragmentPacker {
    /// Finds room for a file of `size` bytes, less than a block.
    pub(super) fn begin(&mut self, size: usize, pipeline: &mut Pipeline) -> Result<(), WriteError> {
        match &self.current {
            Some(current) if current.len() + size <= pipeline.block_size() => self.start = current.len(),
            _ => {
                self.start = 0;
                self.next = Some(pipeline.block()?);
            }
        }
        Ok(())
    }

    /// The block that holds the open file.
    pub(super) fn block(&mut self) -> Option<&mut Block> {
        self.next.as_mut().or(self.current.as_mut())
    }

    /// Ends the open file: it stays, or is taken back as zeros or as a duplicate.
    pub(super) fn end(&mut self, pipeline: &mut Pipeline) -> Result<FileData, WriteError> {
        let start = self.start;
        let content = self.block().and_then(|block| block.filled().get(start..)).unwrap_or_default();
        if is_zero(content) {
            self.take_back(pipeline);
            return Ok(FileData::Zeros);
        }
        let digest = Sha256::digest(content).into();
        if let Some((fragment, offset)) = self.stored.get(&digest).copied() {
            self.take_back(pipeline);
            return Ok(FileData::Fragment { fragment, offset });
        }
        if let Some(next) = self.next.take() {
            self.flush(pipeline)?;
            self.current = Some(next);
        }
        let (fragment, offset) = (self.submitted, u32::try_from(start).unwrap_or(u32::MAX));
        self.stored.insert(digest, (fragment, offset));
        Ok(FileData::Fragment { fragment, offset })
    }

    fn take_back(&mut self, pipeline: &mut Pipeline) {
        match (self.next.take(), &mut self.current) {
            (Some(next), _) => pipeline.give_back(next),
            (None, Some(current)) => current.truncate(self.start),
            (None, None) => {}
        }
    }

    /// Hands the current fragment block over, full or not.
    pub(super) fn flush(&mut self, pipeline: &mut Pipeline) -> Result<(), WriteError> {
        let Some(current) = self.current.take() else { return Ok(()) };
        if current.len() == 0 {
            pipeline.give_back(current);
            return Ok(());
        }
        self.submitted = self
            .submitted
            .checked_add(1)
            .filter(|count| *count < u32::MAX)
            .ok_or(WriteError::TooMany { what: "fragment blocks", limit: u64::from(u32::MAX) })?;
        pipeline.submit(current, Role::Fragment)
    }
}
