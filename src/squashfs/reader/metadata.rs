//! Metadata blocks and a cursor that reads across them.

use std::sync::Arc;

use super::tables::Region;
use super::{Filesystem, ReadError, Touched};
use crate::squashfs::decompress::decompress;
use crate::squashfs::format::{METADATA_BLOCK_SIZE, METADATA_UNCOMPRESSED};

/// Key of the metadata cache: a position, and a length for what is not a metadata block but a piece of an index.
pub(super) type MetadataKey = (u64, Option<usize>);

/// One metadata block, decompressed.
#[derive(Debug)]
pub(super) struct MetadataBlock {
    /// 1 to 8192 bytes.
    pub(super) bytes: Box<[u8]>,
    /// Position of the block behind it.
    pub(super) next: u64,
}

/// A byte inside a metadata block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct MetadataPosition {
    /// Position of the block in the image.
    pub(super) block: u64,
    /// Byte inside the decompressed block.
    pub(super) byte: u16,
}

impl Filesystem {
    /// The metadata block at `position`, which must lie in `region` as a whole.
    pub(super) fn metadata_block(
        &self,
        region: &Region,
        position: u64,
    ) -> Result<Arc<MetadataBlock>, ReadError> {
        if !(region.start..region.end).contains(&position) {
            let what = format!(
                "metadata block wanted outside the {} at {} to {}",
                region.name, region.start, region.end
            );
            return Err(self.image.corrupt(position, what));
        }
        let block = self.metadata.get((position, None), || {
            let block = self.load_metadata_block(position)?;
            let bytes = block.bytes.len();
            Ok((Arc::new(block), bytes))
        })?;
        if block.next > region.end {
            let what = format!("metadata block runs past the end of the {} at {}", region.name, region.end);
            return Err(self.image.corrupt(position, what));
        }
        Ok(block)
    }

    /// One `pread` for header and data: the longest block is as long as two system calls are slow.
    fn load_metadata_block(&self, position: u64) -> Result<MetadataBlock, ReadError> {
        self.loading(Touched::Metadata { position });
        self.image.with_available(position, METADATA_BLOCK_SIZE + 2, |bytes| {
            let corrupt = |what: String| self.image.corrupt(position, what);
            let Some((header, data)) = bytes.split_first_chunk() else {
                return Err(corrupt("the file ends inside a metadata block".to_owned()));
            };
            let header = u16::from_le_bytes(*header);
            let size = header & !METADATA_UNCOMPRESSED;
            if size == 0 || usize::from(size) > METADATA_BLOCK_SIZE {
                return Err(corrupt(format!("metadata block of {size} stored bytes, not 1 to 8192")));
            }
            let data = data
                .get(..size.into())
                .ok_or_else(|| corrupt("the file ends inside a metadata block".to_owned()))?;
            let bytes = if header & METADATA_UNCOMPRESSED != 0 {
                data.into()
            } else {
                let mut out = vec![0; METADATA_BLOCK_SIZE];
                let length = decompress(self.codec, data, &mut out)
                    .map_err(|error| corrupt(format!("metadata block: {error}")))?;
                out.truncate(length);
                out.into_boxed_slice()
            };
            if bytes.is_empty() {
                return Err(corrupt("metadata block decompresses to nothing".to_owned()));
            }
            Ok(MetadataBlock { bytes, next: position + 2 + u64::from(size) })
        })
    }
}

/// Reads little-endian fields from a place in a region on, from block to block. Always ends: blocks follow each other.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    filesystem: &'a Filesystem,
    region: Region,
    /// Position of `block`.
    position: u64,
    block: Arc<MetadataBlock>,
    byte: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(
        filesystem: &'a Filesystem,
        region: Region,
        at: MetadataPosition,
    ) -> Result<Cursor<'a>, ReadError> {
        let block = filesystem.metadata_block(&region, at.block)?;
        let byte = usize::from(at.byte);
        if byte > block.bytes.len() {
            let what = format!("byte {byte} of a metadata block of {} is wanted", block.bytes.len());
            return Err(filesystem.image.corrupt(at.block, what));
        }
        Ok(Cursor { filesystem, region, position: at.block, block, byte })
    }

    /// Where the next byte lies.
    pub(super) fn here(&self) -> MetadataPosition {
        MetadataPosition { block: self.position, byte: u16::try_from(self.byte).unwrap_or(u16::MAX) }
    }

    /// Where the next byte lies, which is in the next block where this one is used up; nothing at the end of the region.
    pub(super) fn next_byte(&mut self) -> Result<Option<MetadataPosition>, ReadError> {
        if self.byte >= self.block.bytes.len() && self.block.next >= self.region.end {
            return Ok(None);
        }
        self.enter_block()?;
        Ok(Some(self.here()))
    }

    /// The place just read contradicts the format.
    pub(super) fn corrupt(&self, what: impl AsRef<str>) -> ReadError {
        let what =
            format!("{} (in the {}, before byte {} of the block", what.as_ref(), self.region.name, self.byte);
        self.filesystem.image.corrupt(self.position, what + ")")
    }

    pub(super) fn u16(&mut self) -> Result<u16, ReadError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, ReadError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, ReadError> {
        self.array().map(u64::from_le_bytes)
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], ReadError> {
        if let Some(bytes) = self.rest().first_chunk() {
            let bytes = *bytes;
            self.byte += N;
            return Ok(bytes);
        }
        let mut bytes = [0; N];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    /// Fills `out`.
    pub(super) fn read(&mut self, mut out: &mut [u8]) -> Result<(), ReadError> {
        while !out.is_empty() {
            self.enter_block()?;
            let count = self.rest().len().min(out.len());
            let (now, later) = out.split_at_mut(count);
            now.copy_from_slice(self.rest().get(..count).unwrap_or_default());
            self.byte += count;
            out = later;
        }
        Ok(())
    }

    /// Passes over `count` bytes.
    pub(super) fn skip(&mut self, mut count: u64) -> Result<(), ReadError> {
        while count > 0 {
            self.enter_block()?;
            let here = self.rest().len();
            let step = usize::try_from(count).map_or(here, |count| count.min(here));
            self.byte += step;
            count -= step as u64;
        }
        Ok(())
    }

    /// What is left of the block.
    fn rest(&self) -> &[u8] {
        self.block.bytes.get(self.byte..).unwrap_or_default()
    }

    /// Goes on to the next block where this one is used up.
    fn enter_block(&mut self) -> Result<(), ReadError> {
        if self.byte < self.block.bytes.len() {
            return Ok(());
        }
        let next = self.block.next;
        if next >= self.region.end {
            return Err(self.corrupt("the table ends too early"));
        }
        self.block = self.filesystem.metadata_block(&self.region, next)?;
        (self.position, self.byte) = (next, 0);
        Ok(())
    }
}
