//! Metadata blocks: streams cut into 8 KiB, each piece compressed alone, and tables of them with an index.

use crate::squashfs::compress::Compressor;
use crate::squashfs::format::{METADATA_BLOCK_SIZE, METADATA_UNCOMPRESSED};
use crate::squashfs::writer::file::is_zero;
use crate::squashfs::writer::{WriteError, WriterOptions};

/// A place in a metadata stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    /// Offset of the metadata block from the start of the stream, compressed bytes.
    pub(super) block: u64,
    /// Offset inside the uncompressed block, below 8192.
    pub(super) offset: u16,
}

/// A stream of metadata blocks, kept in memory compressed.
#[derive(Debug)]
pub(super) struct MetadataStream {
    compressor: Compressor,
    /// Finished blocks.
    blocks: Vec<u8>,
    /// Bytes of the block being filled.
    pending: Vec<u8>,
    scratch: Vec<u8>,
    /// A full block of zeros as stored: the block list of a sparse file may be millions of them.
    zeros: Option<Vec<u8>>,
}

impl MetadataStream {
    pub(super) fn new(options: &WriterOptions) -> Result<MetadataStream, WriteError> {
        let compressor =
            Compressor::new(options.compression, options.block_size).map_err(WriteError::Compress)?;
        Ok(MetadataStream {
            compressor,
            blocks: Vec::new(),
            pending: Vec::with_capacity(METADATA_BLOCK_SIZE),
            scratch: vec![0; METADATA_BLOCK_SIZE - 1],
            zeros: None,
        })
    }

    /// Where the next byte will be.
    pub(super) fn position(&self) -> Position {
        // A full block is ended at once, so the offset is below 8192.
        let offset = u16::try_from(self.pending.len()).unwrap_or(u16::MAX);
        Position { block: self.blocks.len() as u64, offset }
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<(), WriteError> {
        while !bytes.is_empty() {
            let room = METADATA_BLOCK_SIZE - self.pending.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.pending.extend_from_slice(now);
            bytes = later;
            if self.pending.len() == METADATA_BLOCK_SIZE {
                self.end_block()?;
            }
        }
        Ok(())
    }

    /// All blocks.
    pub(super) fn finish(mut self) -> Result<Vec<u8>, WriteError> {
        self.end_block()?;
        Ok(self.blocks)
    }

    fn end_block(&mut self) -> Result<(), WriteError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let zeros = self.pending.len() == METADATA_BLOCK_SIZE && is_zero(&self.pending);
        if let (true, Some(stored)) = (zeros, &self.zeros) {
            self.blocks.extend_from_slice(stored);
            self.pending.clear();
            return Ok(());
        }
        let start = self.blocks.len();
        self.store_block()?;
        if zeros {
            self.zeros = self.blocks.get(start..).map(<[u8]>::to_vec);
        }
        self.pending.clear();
        Ok(())
    }

    fn store_block(&mut self) -> Result<(), WriteError> {
        let room = self.scratch.get_mut(..self.pending.len() - 1).unwrap_or_default();
        let compressed = self.compressor.compress(&self.pending, room).map_err(WriteError::Compress)?;
        let (bytes, flag) = match compressed.and_then(|length| self.scratch.get(..length)) {
            Some(bytes) => (bytes, 0),
            None => (self.pending.as_slice(), METADATA_UNCOMPRESSED),
        };
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        self.blocks.extend((length | flag).to_le_bytes());
        self.blocks.extend_from_slice(bytes);
        Ok(())
    }
}

/// A table of fixed-size entries as metadata blocks, followed by the index of their positions.
#[derive(Debug)]
pub(super) struct LookupTable {
    /// Blocks, then index.
    pub(super) bytes: Vec<u8>,
    /// Where the index starts in `bytes`.
    pub(super) index: usize,
}

/// Lays `entries` out at `position` of the image; `header` comes between blocks and index.
pub(super) fn lookup_table(
    entries: &[u8],
    position: u64,
    header: &[u8],
    options: &WriterOptions,
) -> Result<LookupTable, WriteError> {
    let mut stream = MetadataStream::new(options)?;
    let mut index = Vec::new();
    for block in entries.chunks(METADATA_BLOCK_SIZE) {
        index.extend((position + stream.position().block).to_le_bytes());
        stream.write(block)?;
    }
    let mut bytes = stream.finish()?;
    let start = bytes.len();
    bytes.extend_from_slice(header);
    bytes.extend(index);
    Ok(LookupTable { bytes, index: start })
}
