//! Small files: packed into fragment blocks in order of arrival, each content once.
//!
//! Files shorter than a block go here, tails of longer files do not (nor do they in mksquashfs by default):
//! reading the end of a library would decompress a block of strangers for it, to save one byte in 7000 of
//! programs and headers (mksquashfs with and without -tailends).
//!
//! A block ends when the next file does not fit, when the caller says so, or, if it is nearly full, behind a
//! file whose digest says so. The last rule keeps a change small: after a file that is new or gone the blocks
//! soon begin with the same files again as before, so that they can be taken over from an earlier image.

use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::squashfs::writer::WriteError;
use crate::squashfs::writer::file::{FileData, is_zero};
use crate::squashfs::writer::pipeline::{Block, Content, Pipeline, Role};
use crate::squashfs::writer::stored::{BlockSource, Slice, StoredFragment, whole_fragment};

/// Where a content is: index of the fragment block and offset in it.
type Place = (u32, u32);

/// The fragment block being filled, and what was stored before.
///
/// A file is read straight into its place in the fragment block. Only one that does not fit is read into a
/// block of its own, which becomes the next fragment block unless the file turns out to be stored already.
/// Files taken over from an earlier image are only listed; where their bytes are is looked up by the thread
/// that compresses the block, if it has to be compressed at all.
#[derive(Debug, Default)]
pub(super) struct FragmentPacker {
    current: Option<Block>,
    /// Holds the open file if it does not fit into `current`.
    next: Option<Block>,
    /// In place of `current`: files of earlier images, and their bytes together.
    slices: Vec<Slice>,
    slices_length: usize,
    /// Fragment blocks handed over: the index of `current`.
    submitted: u32,
    /// Where the open file begins in its block.
    start: usize,
    /// By SHA-256 of the content.
    stored: HashMap<[u8; 32], Place>,
}

impl FragmentPacker {
    /// Finds room for a file of `size` bytes, less than a block.
    pub(super) fn begin(&mut self, size: usize, pipeline: &mut Pipeline) -> Result<(), WriteError> {
        if !self.slices.is_empty() {
            self.flush(pipeline)?;
        }
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
        let data = self.remember(digest, start);
        let length = self.current.as_ref().map_or(0, Block::len);
        if ends_block(&digest, length, pipeline.block_size()) {
            self.flush(pipeline)?;
        }
        Ok(data)
    }

    /// A whole file out of an earlier fragment block; the same decisions as for one that is read.
    pub(super) fn take_over(
        &mut self,
        digest: [u8; 32],
        slice: Slice,
        pipeline: &mut Pipeline,
    ) -> Result<FileData, WriteError> {
        if self.current.is_some() {
            self.flush(pipeline)?;
        }
        if let Some((fragment, offset)) = self.stored.get(&digest).copied() {
            return Ok(FileData::Fragment { fragment, offset });
        }
        let size = usize::try_from(slice.length).unwrap_or(usize::MAX);
        if self.slices_length.saturating_add(size) > pipeline.block_size() {
            self.flush(pipeline)?;
        }
        let data = self.remember(digest, self.slices_length);
        self.slices_length = self.slices_length.saturating_add(size);
        self.slices.push(slice);
        if ends_block(&digest, self.slices_length, pipeline.block_size()) {
            self.flush(pipeline)?;
        }
        Ok(data)
    }

    fn remember(&mut self, digest: [u8; 32], start: usize) -> FileData {
        let (fragment, offset) = (self.submitted, u32::try_from(start).unwrap_or(u32::MAX));
        self.stored.insert(digest, (fragment, offset));
        FileData::Fragment { fragment, offset }
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
        if !self.slices.is_empty() {
            let slices = std::mem::take(&mut self.slices);
            let length = std::mem::take(&mut self.slices_length);
            let role = self.count(length)?;
            let content = match whole_fragment(&slices) {
                Some(Slice { from, fragment: StoredFragment { block, .. }, .. }) => {
                    Content::Stored(Arc::<BlockSource>::clone(from), *block)
                }
                None => Content::Slices(slices),
            };
            return pipeline.take_over(content, role);
        }
        let Some(current) = self.current.take() else { return Ok(()) };
        if current.len() == 0 {
            pipeline.give_back(current);
            return Ok(());
        }
        let role = self.count(current.len())?;
        pipeline.submit(current, role)
    }

    /// Counts a fragment block of `length` bytes.
    fn count(&mut self, length: usize) -> Result<Role, WriteError> {
        self.submitted = self
            .submitted
            .checked_add(1)
            .filter(|count| *count < u32::MAX)
            .ok_or(WriteError::TooMany { what: "fragment blocks", limit: u64::from(u32::MAX) })?;
        Ok(Role::Fragment { length: u32::try_from(length).unwrap_or(u32::MAX) })
    }

    /// Digests of all contents by their place, sorted.
    pub(super) fn into_digests(self) -> Vec<(Place, [u8; 32])> {
        let mut digests: Vec<_> = self.stored.into_iter().map(|(digest, place)| (place, digest)).collect();
        digests.sort_unstable();
        digests
    }
}

/// Whether a block of `length` bytes ends behind a file of this digest: one in four files does it once three quarters
/// of the block are full. The digest belongs to the content alone, so the same files end blocks wherever they are.
fn ends_block(digest: &[u8; 32], length: usize, block_size: usize) -> bool {
    let [first, ..] = digest;
    length >= block_size / 4 * 3 && first % 4 == 0
}
