//! File data that is compressed already: where an image has it, and how the next image takes it over.
//!
//! A block is copied as it is and checked on the way. Small files are a special case, because they share
//! blocks: if the same files come together again the block is copied, else they are taken out of their old blocks and
//! compressed with their new neighbours. Either way the image gets the bytes that compressing everything afresh gives.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::squashfs::decompress::decompress;
use crate::squashfs::format::{Codec, DATA_UNCOMPRESSED};
use crate::squashfs::writer::WriteError;
use crate::squashfs::writer::pipeline::Block;

/// A compressed block somewhere in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredBlock {
    /// Offset in the file, bytes.
    pub position: u64,
    /// Size with the flag for an uncompressed block, as in block lists.
    pub size_word: u32,
    /// Of the bytes as stored.
    pub fingerprint: Fingerprint,
}

/// What is remembered of a block's bytes: whether two blocks are equal, and whether one came back whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fingerprint {
    /// SHA-256: layers are untrusted, and what has the same digest is stored once.
    pub digest: [u8; 32],
    /// Against damage only, which is all that can befall a file of the user's own: ten times as fast as the digest. Of
    /// no meaning where nothing is recorded.
    pub checksum: u64,
}

impl Fingerprint {
    /// The fingerprint of `bytes`; with its checksum if somebody may read them again.
    pub(super) fn of(bytes: &[u8], with_checksum: bool) -> Fingerprint {
        let checksum = if with_checksum { checksum(bytes) } else { 0 };
        Fingerprint { digest: Sha256::digest(bytes).into(), checksum }
    }
}

/// CRC-32 and Adler-32 side by side: two different sums in hardware instructions, at 64 bits.
fn checksum(bytes: &[u8]) -> u64 {
    let mut adler = libdeflater::Adler32::new();
    adler.update(bytes);
    u64::from(libdeflater::crc32(bytes)) << 32 | u64::from(adler.sum())
}

impl StoredBlock {
    /// Bytes as stored.
    pub fn size(&self) -> u32 {
        self.size_word & !DATA_UNCOMPRESSED
    }
}

/// A compressed block of small files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredFragment {
    /// Where it is.
    pub block: StoredBlock,
    /// Bytes when decompressed.
    pub length: u32,
}

/// The data of one regular file, already compressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFile {
    /// Length of the file, bytes, holes included.
    pub size: u64,
    /// Where its data is.
    pub data: StoredData,
}

/// Where the data of a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredData {
    /// Nowhere: it has none, or only zeros.
    Zeros,
    /// A slice of a fragment block.
    Small {
        /// SHA-256 of the file's content.
        digest: [u8; 32],
        /// The block.
        fragment: StoredFragment,
        /// First byte in the decompressed block.
        offset: u32,
    },
    /// Blocks of its own, in order.
    Blocks(Vec<StoredWord>),
}

/// A piece of a block list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredWord {
    /// A data block.
    Data(StoredBlock),
    /// So many holes of one block each.
    Holes(u32),
}

/// A file that holds compressed blocks, of the codec, level and block size of the image being written.
#[derive(Debug)]
pub struct BlockSource {
    /// The file.
    pub file: File,
    /// Tells it from others in [`WriteError::Stored`].
    pub number: usize,
}

impl BlockSource {
    pub(super) fn damaged(&self, position: u64, problem: &'static str) -> WriteError {
        WriteError::Stored { number: self.number, position, problem, source: None }
    }

    /// Reads a block into `to`, which must be empty, and checks it.
    pub(super) fn read(&self, stored: &StoredBlock, to: &mut Block) -> Result<(), WriteError> {
        let size = usize::try_from(stored.size()).unwrap_or(usize::MAX);
        let spare = to.spare(u64::from(stored.size()));
        if spare.len() != size || size == 0 {
            return Err(self.damaged(stored.position, "it is no block"));
        }
        self.file.read_exact_at(spare, stored.position).map_err(|source| WriteError::Stored {
            number: self.number,
            position: stored.position,
            problem: "it cannot be read",
            source: Some(source),
        })?;
        to.advance(size);
        if checksum(to.filled()) == stored.fingerprint.checksum {
            Ok(())
        } else {
            Err(self.damaged(stored.position, "its checksum is wrong"))
        }
    }
}

/// A small file's place in an earlier fragment block.
#[derive(Debug, Clone)]
pub(super) struct Slice {
    pub(super) from: Arc<BlockSource>,
    pub(super) fragment: StoredFragment,
    pub(super) offset: u32,
    pub(super) length: u32,
}

impl Slice {
    fn end(&self) -> Option<u32> {
        self.offset.checked_add(self.length)
    }

    /// Whether the slice lies inside its fragment block.
    pub(super) fn is_inside(&self) -> bool {
        self.end().is_some_and(|end| end <= self.fragment.length)
    }
}

/// The earlier fragment block that consists of exactly these slices in this order, if there is one.
pub(super) fn whole_fragment(slices: &[Slice]) -> Option<&Slice> {
    let first = slices.first()?;
    let mut end = 0;
    for slice in slices {
        let same = Arc::ptr_eq(&slice.from, &first.from) && slice.fragment == first.fragment;
        if !same || slice.offset != end {
            return None;
        }
        end = slice.end()?;
    }
    (end == first.fragment.length).then_some(first)
}

/// Takes small files out of earlier fragment blocks; keeps the last few decompressed, since neighbours come together.
#[derive(Debug)]
pub(super) struct Gatherer {
    codec: Codec,
    block_size: usize,
    packed: Block,
    /// The most recent last.
    open: Vec<Opened>,
}

#[derive(Debug)]
struct Opened {
    from: Arc<BlockSource>,
    fragment: StoredFragment,
    content: Vec<u8>,
}

/// Decompressed blocks that a thread keeps: repacking merges neighbours, so two are needed at a time.
const OPEN_FRAGMENTS: usize = 3;

impl Gatherer {
    pub(super) fn new(codec: Codec, block_size: usize) -> Gatherer {
        Gatherer { codec, block_size, packed: Block::new(block_size), open: Vec::new() }
    }

    /// Appends the bytes of all slices to `to`.
    pub(super) fn gather(&mut self, slices: &[Slice], to: &mut Block) -> Result<(), WriteError> {
        for slice in slices {
            let content = self.content(slice)?;
            let range =
                usize::try_from(slice.offset).ok().zip(slice.end().and_then(|end| usize::try_from(end).ok()));
            let bytes = range.and_then(|(start, end)| content.get(start..end));
            let spare = to.spare(u64::from(slice.length));
            match bytes {
                Some(bytes) if bytes.len() == spare.len() => spare.copy_from_slice(bytes),
                _ => return Err(slice.from.damaged(slice.fragment.block.position, "a file lies outside it")),
            }
            let length = spare.len();
            to.advance(length);
        }
        Ok(())
    }

    fn content(&mut self, slice: &Slice) -> Result<&[u8], WriteError> {
        let is_it = |open: &Opened| Arc::ptr_eq(&open.from, &slice.from) && open.fragment == slice.fragment;
        let opened = match self.open.iter().position(is_it) {
            Some(at) => self.open.remove(at),
            None => self.open(slice)?,
        };
        self.open.push(opened);
        Ok(self.open.last().map(|open| open.content.as_slice()).unwrap_or_default())
    }

    fn open(&mut self, slice: &Slice) -> Result<Opened, WriteError> {
        let mut content =
            if self.open.len() >= OPEN_FRAGMENTS { self.open.remove(0).content } else { Vec::new() };
        let StoredFragment { block, length } = slice.fragment;
        let damaged = |problem| slice.from.damaged(block.position, problem);
        let length = usize::try_from(length).ok().filter(|length| *length <= self.block_size);
        let length = length.ok_or_else(|| damaged("it is longer than a block"))?;
        self.packed.truncate(0);
        slice.from.read(&block, &mut self.packed)?;
        content.clear();
        if block.size_word & DATA_UNCOMPRESSED != 0 {
            content.extend_from_slice(self.packed.filled());
        } else {
            content.resize(length, 0);
            let got = decompress(self.codec, self.packed.filled(), &mut content);
            content.truncate(got.map_err(|_| damaged("it cannot be decompressed"))?);
        }
        if content.len() != length {
            return Err(damaged("its length is wrong"));
        }
        Ok(Opened { from: Arc::clone(&slice.from), fragment: slice.fragment, content })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> Arc<BlockSource> {
        Arc::new(BlockSource { file: tempfile::tempfile().unwrap(), number: 3 })
    }

    fn fragment(position: u64, length: u32) -> StoredFragment {
        let fingerprint = Fingerprint::default();
        StoredFragment { block: StoredBlock { position, size_word: 10, fingerprint }, length }
    }

    #[test]
    fn only_all_files_of_a_block_in_order_are_the_block() {
        let (a, b) = (source(), source());
        let slice = |from: &Arc<BlockSource>, position, offset, length| Slice {
            from: Arc::clone(from),
            fragment: fragment(position, 30),
            offset,
            length,
        };
        let cases: &[(&[Slice], bool)] = &[
            (&[], false),
            (&[slice(&a, 0, 0, 30)], true),
            (&[slice(&a, 0, 0, 10), slice(&a, 0, 10, 20)], true),
            (&[slice(&a, 0, 0, 10), slice(&a, 0, 10, 10)], false),
            (&[slice(&a, 0, 10, 20)], false),
            (&[slice(&a, 0, 10, 20), slice(&a, 0, 0, 10)], false),
            (&[slice(&a, 0, 0, 10), slice(&a, 0, 20, 10)], false),
            (&[slice(&a, 0, 0, 10), slice(&a, 1, 10, 20)], false),
            (&[slice(&a, 0, 0, 10), slice(&b, 0, 10, 20)], false),
        ];
        for (slices, whole) in cases {
            assert_eq!(whole_fragment(slices).is_some(), *whole, "{slices:?}");
        }
    }

    #[test]
    fn blocks_are_held_against_their_checksum() {
        let from = source();
        from.file.write_all_at(b"..content..", 0).unwrap();
        let good = StoredBlock { position: 2, size_word: 7, fingerprint: Fingerprint::of(b"content", true) };
        let read = |block: &StoredBlock| {
            let mut to = Block::new(16);
            from.read(block, &mut to).map(|()| to.filled().to_vec())
        };
        assert_eq!(read(&good).unwrap(), b"content");
        for bad in [
            StoredBlock { position: 1, ..good },
            StoredBlock { position: 100, ..good },
            StoredBlock { size_word: 6, ..good },
            StoredBlock { size_word: 0, ..good },
            StoredBlock { size_word: 17, ..good },
            StoredBlock { fingerprint: Fingerprint { checksum: 1, ..good.fingerprint }, ..good },
        ] {
            assert!(matches!(read(&bad), Err(WriteError::Stored { number: 3, .. })), "{bad:?}");
        }
    }
}
