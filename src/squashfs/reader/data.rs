//! File data: blocks one after the other, and a tail in a fragment that files share.

use std::borrow::Cow;
use std::sync::Arc;

use super::block_index::{BlockIndex, Checkpoint, STRIDE};
use super::metadata::Cursor;
use super::{FileLayout, Filesystem, Piece, ReadError, Touched};
use crate::squashfs::decompress::{claimed_length, decompress};
use crate::squashfs::format::DATA_UNCOMPRESSED;

/// Key of the data cache: all that decides what the bytes are, so that a block which two files claim with different
/// lengths is never taken for the other.
pub(super) type DataKey = (u64, u32, Content);

/// What a block on disk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Content {
    /// Exactly this many bytes of a file.
    Block(usize),
    /// The tails of files, up to a block.
    Fragment,
}

/// The tail of a file: a slice of a fragment from `byte` on.
#[derive(Debug, Clone, Copy)]
pub(super) struct FragmentPart {
    pub(super) index: u32,
    pub(super) byte: u32,
}

/// How long a block stays in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// As long as there is room.
    Yes,
    /// Until its last byte was read.
    ToItsEnd,
}

/// One data block as a file's block list has it.
#[derive(Debug, Clone, Copy)]
struct Block {
    /// Position in the image.
    position: u64,
    /// Bytes on disk, with [`DATA_UNCOMPRESSED`]; 0 is a hole.
    word: u32,
}

impl Filesystem {
    /// The pieces of `length` bytes at `offset`, cut at the end of the file. They keep at most `length` bytes and two
    /// blocks in memory, however small the cache.
    pub fn read(&self, file: &FileLayout, offset: u64, length: usize) -> Result<Vec<Piece>, ReadError> {
        self.read_keeping(file, offset, length, Keep::Yes)
    }

    /// As [`Filesystem::read`], for one who reads in order and will not ask again: blocks read to their end leave the
    /// cache. Their memory serves the next ones while the processor still has it at hand.
    pub fn read_once(&self, file: &FileLayout, offset: u64, length: usize) -> Result<Vec<Piece>, ReadError> {
        self.read_keeping(file, offset, length, Keep::ToItsEnd)
    }

    fn read_keeping(
        &self,
        file: &FileLayout,
        offset: u64,
        length: usize,
        keep: Keep,
    ) -> Result<Vec<Piece>, ReadError> {
        let mut pieces = Vec::new();
        self.each_piece(file, offset, length, keep, |piece| push(&mut pieces, piece))?;
        Ok(pieces)
    }

    /// The bytes of [`Filesystem::read`] in one vector.
    pub fn read_bytes(&self, file: &FileLayout, offset: u64, length: usize) -> Result<Vec<u8>, ReadError> {
        let mut bytes = Vec::new();
        self.read_to(file, offset, length, &mut bytes)?;
        Ok(bytes)
    }

    /// The same, appended to `out`.
    pub fn read_to(
        &self,
        file: &FileLayout,
        offset: u64,
        length: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        self.read(file, offset, length)?.iter().try_for_each(|piece| self.append(piece, out))
    }

    /// The bytes of a piece, wherever they are.
    pub fn bytes_of<'a>(&self, piece: &'a Piece) -> Result<Cow<'a, [u8]>, ReadError> {
        if let Piece::Data { block, start, length } = piece {
            return Ok(Cow::Borrowed(part(block, *start, *length)));
        }
        let mut bytes = Vec::new();
        self.append(piece, &mut bytes)?;
        Ok(Cow::Owned(bytes))
    }

    fn append(&self, piece: &Piece, out: &mut Vec<u8>) -> Result<(), ReadError> {
        let at = out.len();
        match piece {
            Piece::Data { block, start, length } => out.extend_from_slice(part(block, *start, *length)),
            Piece::Plain { position, length } => {
                out.resize(at + length, 0);
                self.read_plain(*position, out.get_mut(at..).unwrap_or_default())?;
            }
            Piece::Zero(length) => out.resize(at + length, 0),
        }
        Ok(())
    }

    /// Fills `out` with the bytes of a [`Piece::Plain`].
    pub fn read_plain(&self, position: u64, out: &mut [u8]) -> Result<(), ReadError> {
        self.image.read(position, out)
    }

    /// Decompresses the blocks that cover `length` bytes at `offset` into the cache (for read-ahead); of those that need
    /// no decompressing the kernel is told.
    pub fn prefetch(&self, file: &FileLayout, offset: u64, length: usize) -> Result<(), ReadError> {
        for piece in self.read(file, offset, length)? {
            if let Piece::Plain { position, length } = piece {
                self.image.will_need(position, length);
            }
        }
        Ok(())
    }

    /// The stretches of a file that are no holes, ascending, as offset and length in bytes. Reads the block list and no
    /// data. With more than `most` stretches, the last reaches to the end of the file.
    pub fn data_ranges(&self, file: &FileLayout, most: usize) -> Result<Vec<(u64, u64)>, ReadError> {
        let block_size = u64::from(self.superblock.block_size);
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let mut add = |start: u64, end: u64| match ranges.last_mut() {
            Some((at, length)) if *at + *length == start => *length = end - *at,
            _ => ranges.push((start, end - start)),
        };
        let mut list = BlockList::seek(self, file, 0)?;
        let mut at = 0;
        for _ in 0..file.blocks {
            let end = (at + block_size).min(file.size);
            if list.next()?.word != 0 {
                add(at, end);
            }
            at = end;
        }
        if at < file.size {
            add(at, file.size);
        }
        if ranges.len() > most {
            ranges.truncate(most);
            if let Some((at, length)) = ranges.last_mut() {
                *length = file.size - *at;
            }
        }
        Ok(ranges)
    }

    fn each_piece(
        &self,
        file: &FileLayout,
        offset: u64,
        length: usize,
        keep: Keep,
        mut each: impl FnMut(Piece),
    ) -> Result<(), ReadError> {
        let end = offset.saturating_add(length as u64).min(file.size);
        if offset >= end {
            return Ok(());
        }
        let block_size = u64::from(self.superblock.block_size);
        let mut at = offset;
        if at / block_size < file.blocks {
            let mut list = BlockList::seek(self, file, at / block_size)?;
            while at < end && at / block_size < file.blocks {
                let block_start = at - at % block_size;
                let block_end = (block_start + block_size).min(file.size);
                let stop = block_end.min(end);
                let (block, expected) = (list.next()?, block_end - block_start);
                each(self.block_piece(block, expected, at - block_start, stop - at)?);
                if keep == Keep::ToItsEnd && stop == block_end && block.word != 0 {
                    self.data.forget(&block.key(to_usize(expected)));
                }
                at = stop;
            }
        }
        match file.fragment {
            Some(part) if at < end => {
                let tail_start = file.blocks.saturating_mul(block_size);
                let start = to_usize(u64::from(part.byte) + (at - tail_start));
                each(self.tail_piece(file, part.index, start, to_usize(end - at))?);
            }
            _ => {}
        }
        Ok(())
    }

    /// `length` bytes from byte `start` of a fragment.
    fn tail_piece(
        &self,
        file: &FileLayout,
        index: u32,
        start: usize,
        length: usize,
    ) -> Result<Piece, ReadError> {
        let block = self.fragment(index)?;
        let check = |bytes: usize| {
            let end = start + length;
            let what =
                || format!("fragment {index} is {bytes} bytes long, a file has its tail at {start} to {end}");
            if end > bytes { Err(self.image.corrupt(file.list.block, what())) } else { Ok(()) }
        };
        if block.is_compressed() {
            let block = self.fragment_block(block)?;
            check(block.len())?;
            return Ok(Piece::Data { block, start, length });
        }
        check(block.stored())?;
        self.loading(Touched::Fragment { position: block.position, size_word: block.word });
        Ok(Piece::Plain { position: block.position + start as u64, length })
    }

    /// `length` bytes from byte `start` of a block that holds `expected` bytes.
    fn block_piece(&self, block: Block, expected: u64, start: u64, length: u64) -> Result<Piece, ReadError> {
        let [expected, start, length] = [expected, start, length].map(to_usize);
        if block.word == 0 {
            return Ok(Piece::Zero(length));
        }
        if !block.is_compressed() {
            if block.stored() != expected {
                let what =
                    format!("data block of {} bytes stored uncompressed, not {expected}", block.stored());
                return Err(self.image.corrupt(block.position, what));
            }
            let touched = u32::try_from(expected).unwrap_or(u32::MAX);
            self.loading(Touched::Data { position: block.position, size_word: block.word, length: touched });
            return Ok(Piece::Plain { position: block.position + start as u64, length });
        }
        let block = self.data.get(block.key(expected), || {
            let bytes = self.load_block(block, expected)?;
            Ok((bytes, expected))
        })?;
        Ok(Piece::Data { block, start, length })
    }

    /// Reads and decompresses a block into memory of its own that was zeroed before.
    fn load_block(&self, block: Block, expected: usize) -> Result<Arc<[u8]>, ReadError> {
        let length = u32::try_from(expected).unwrap_or(u32::MAX);
        self.loading(Touched::Data { position: block.position, size_word: block.word, length });
        let mut bytes: Arc<[u8]> = std::iter::repeat_n(0, expected).collect();
        let out = Arc::get_mut(&mut bytes).unwrap_or_default();
        let length = self.image.with_bytes(block.position, block.stored(), |data| {
            decompress(self.codec, data, out)
                .map_err(|error| self.image.corrupt(block.position, format!("data block: {error}")))
        })?;
        if length != expected {
            let what = format!("data block decompresses to {length} bytes, not {expected}");
            return Err(self.image.corrupt(block.position, what));
        }
        Ok(bytes)
    }

    /// Loads a block that nobody has asked for.
    pub(super) fn load_ahead(&self, position: u64, word: u32, content: Content) -> Result<(), ReadError> {
        let block = Block { position, word };
        self.check(&block).map_err(|what| self.image.corrupt(position, format!("a block {what}")))?;
        match content {
            Content::Block(expected) => self.block_piece(block, expected as u64, 0, 0).map(drop),
            Content::Fragment if !block.is_compressed() => Ok(()),
            Content::Fragment => self.fragment_block(block).map(drop),
        }
    }

    /// Where the fragment table has a fragment.
    fn fragment(&self, index: u32) -> Result<Block, ReadError> {
        let Some(table) = &self.tables.fragments else {
            return Err(self.image.corrupt(0, format!("fragment {index} is wanted, the image has none")));
        };
        let entry: [u8; 16] = self.table_entry(table, index.into())?;
        let [low, high, word, _] = words(&entry);
        let position = u64::from(low) | u64::from(high) << 32;
        let block = Block { position, word };
        self.check(&block)
            .and_then(|()| if block.word == 0 { Err("is empty".to_owned()) } else { Ok(()) })
            .map_err(|what| self.image.corrupt(position, format!("fragment {index} {what}")))?;
        Ok(block)
    }

    /// A compressed fragment as a whole: as many bytes as its block decompresses to.
    fn fragment_block(&self, block: Block) -> Result<Arc<[u8]>, ReadError> {
        self.data.get((block.position, block.word, Content::Fragment), || {
            let bytes = self.load_fragment(block)?;
            let length = bytes.len();
            Ok((bytes, length))
        })
    }

    fn load_fragment(&self, block: Block) -> Result<Arc<[u8]>, ReadError> {
        self.loading(Touched::Fragment { position: block.position, size_word: block.word });
        let most = self.superblock.block_size as usize;
        self.image.with_bytes(block.position, block.stored(), |data| {
            let expected = claimed_length(self.codec, data).map_or(most, |claimed| claimed.min(most));
            let mut bytes: Arc<[u8]> = std::iter::repeat_n(0, expected).collect();
            let length = decompress(self.codec, data, Arc::get_mut(&mut bytes).unwrap_or_default())
                .map_err(|error| self.image.corrupt(block.position, format!("fragment: {error}")))?;
            if length == expected { Ok(bytes) } else { Ok(bytes.get(..length).unwrap_or_default().into()) }
        })
    }

    /// What is wrong with a block's position and size.
    fn check(&self, block: &Block) -> Result<(), String> {
        let stored = block.stored() as u64;
        if block.word & !(DATA_UNCOMPRESSED | (DATA_UNCOMPRESSED - 1)) != 0 {
            return Err(format!("has the size {:#x}, with unknown bits", block.word));
        }
        if stored > self.superblock.block_size.into() || (stored == 0 && block.word != 0) {
            return Err(format!("takes {stored} bytes, not 1 to {}", self.superblock.block_size));
        }
        if block.position.checked_add(stored).is_none_or(|end| end > self.superblock.bytes_used) {
            return Err(format!("of {stored} bytes at {} ends past the end of the image", block.position));
        }
        Ok(())
    }

    /// The block index of a file, shared by all who read it, for as long as the cache keeps it.
    fn block_index(&self, file: &FileLayout) -> Result<Arc<BlockIndex>, ReadError> {
        self.indexes.get(file.list, || {
            let first = Checkpoint { list: file.list, data: file.start };
            Ok((Arc::new(BlockIndex::new(first)), BlockIndex::bytes_max(file.blocks)))
        })
    }
}

impl Block {
    /// As part of a file, of `expected` bytes.
    fn key(&self, expected: usize) -> DataKey {
        (self.position, self.word, Content::Block(expected))
    }

    /// Bytes on disk.
    fn stored(&self) -> usize {
        (self.word & (DATA_UNCOMPRESSED - 1)) as usize
    }

    fn is_compressed(&self) -> bool {
        self.word & DATA_UNCOMPRESSED == 0
    }
}

impl Piece {
    /// Bytes in this piece.
    pub fn length(&self) -> usize {
        match self {
            Piece::Data { length, .. } | Piece::Plain { length, .. } | Piece::Zero(length) => *length,
        }
    }
}

/// A part of a block; of what is beyond its end, nothing.
fn part(block: &[u8], start: usize, length: usize) -> &[u8] {
    block.get(start..).and_then(|rest| rest.get(..length)).unwrap_or_default()
}

/// Appends a piece; neighbouring holes become one, as do bytes that lie one behind the other.
fn push(pieces: &mut Vec<Piece>, piece: Piece) {
    match (pieces.last_mut(), &piece) {
        (Some(Piece::Zero(before)), Piece::Zero(more)) => *before += more,
        (Some(Piece::Plain { position, length }), Piece::Plain { position: next, length: more })
            if *position + *length as u64 == *next =>
        {
            *length += more;
        }
        _ => pieces.push(piece),
    }
}

/// Reads a file's block list from a block on.
struct BlockList<'a> {
    filesystem: &'a Filesystem,
    cursor: Cursor<'a>,
    /// Kept for files with many blocks only: a short list is read from its start.
    index: Option<Arc<BlockIndex>>,
    /// The next block.
    number: u64,
    /// Where its data lies.
    position: u64,
}

impl<'a> BlockList<'a> {
    /// Stands in front of block `number`; only the sizes since the last checkpoint are added up.
    fn seek(filesystem: &'a Filesystem, file: &FileLayout, number: u64) -> Result<BlockList<'a>, ReadError> {
        let index = if file.blocks > STRIDE { Some(filesystem.block_index(file)?) } else { None };
        let (before, from) = match &index {
            Some(index) => index.nearest(number),
            None => (0, Checkpoint { list: file.list, data: file.start }),
        };
        let cursor = Cursor::new(filesystem, filesystem.tables.inodes, from.list)?;
        let mut list = BlockList { filesystem, cursor, index, number: before, position: from.data };
        while list.number < number {
            list.next()?;
        }
        Ok(list)
    }

    fn next(&mut self) -> Result<Block, ReadError> {
        let block = Block { position: self.position, word: self.cursor.u32()? };
        self.filesystem
            .check(&block)
            .map_err(|what| self.cursor.corrupt(format!("data block {} {what}", self.number)))?;
        self.number += 1;
        self.position += block.stored() as u64;
        if let Some(index) = self.index.as_ref().filter(|_| self.number.is_multiple_of(STRIDE)) {
            index.learn(self.number, Checkpoint { list: self.cursor.here(), data: self.position });
        }
        Ok(block)
    }
}

/// A count that is below the block size, or below a length that the caller gave as `usize`.
fn to_usize(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// The four little-endian words of a table entry.
pub(super) fn words(entry: &[u8; 16]) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(entry.chunks_exact(4)) {
        *word = bytes.first_chunk().copied().map_or(0, u32::from_le_bytes);
    }
    words
}
