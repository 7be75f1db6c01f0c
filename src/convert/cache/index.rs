//! What a cached layer says of itself: entries, files and blocks, behind the blocks themselves.
//!
//! `docs/layer-cache.md` has the layout byte by byte.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use sha2::{Digest as _, Sha256};

use super::entries::EntryReader;
use super::wire::{Input, Output};
use crate::squashfs::format::DATA_UNCOMPRESSED;
use crate::squashfs::writer::{Fingerprint, StoredBlock, StoredData, StoredFile, StoredFragment, StoredWord};

/// Begins the last bytes of a cached layer.
const MAGIC: [u8; 16] = *b"hpcrun layer 1\r\n";
/// Bytes of the footer: magic, index start, index length, SHA-256 of the index.
const FOOTER: usize = 64;
/// Bytes of a block's record.
const BLOCK: usize = 56;
/// Longest index, bytes: 20 million entries.
const INDEX_MAX: u64 = 2 << 30;

/// Why a cached layer is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum EntryError {
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    #[error("it ends too soon")]
    Short,
    #[error("it has no footer, or that of another version")]
    Footer,
    #[error("the digest of its index is wrong")]
    Digest,
    #[error("its index is malformed")]
    Malformed,
    #[error("it is of another layer or of other parameters")]
    Key,
}

/// The numbers at the head of an index.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Tar entries.
    pub(super) entries: u32,
    /// Sizes of all regular files, bytes, holes included.
    pub(super) file_bytes: u64,
    /// Bytes of the uncompressed tar.
    pub(super) tar_bytes: u64,
    /// Data block size, bytes.
    pub(super) block_size: u32,
}

/// An index, checked as a whole.
#[derive(Debug)]
pub(super) struct Index {
    bytes: Vec<u8>,
    pub(super) totals: Totals,
    /// Where in `bytes` the three tables end; each begins where the one before ends.
    tables: [usize; 4],
}

impl Index {
    /// Reads the index of a cached layer, all of it, and checks it.
    pub(super) fn read(file: &File, key: &str) -> Result<Index, EntryError> {
        let length = file.metadata().map_err(EntryError::Read)?.len();
        let footer_at = length.checked_sub(FOOTER as u64).ok_or(EntryError::Short)?;
        let mut footer = [0; FOOTER];
        file.read_exact_at(&mut footer, footer_at).map_err(EntryError::Read)?;
        let mut input = Input(&footer);
        if input.array() != Some(MAGIC) {
            return Err(EntryError::Footer);
        }
        let mut number = || input.array().map(u64::from_le_bytes);
        let (start, size) = number().zip(number()).ok_or(EntryError::Footer)?;
        if start.checked_add(size) != Some(footer_at) || size > INDEX_MAX {
            return Err(EntryError::Footer);
        }
        let mut bytes = vec![0; usize::try_from(size).map_err(|_| EntryError::Footer)?];
        file.read_exact_at(&mut bytes, start).map_err(EntryError::Read)?;
        if input.array::<32>() != Some(Sha256::digest(&bytes).into()) {
            return Err(EntryError::Digest);
        }
        Index::parse(bytes, key)
    }

    fn parse(bytes: Vec<u8>, key: &str) -> Result<Index, EntryError> {
        let mut input = Input(&bytes);
        if input.bytes() != Some(key.as_bytes()) {
            return Err(EntryError::Key);
        }
        let (totals, lengths) = parse_head(&mut input).ok_or(EntryError::Malformed)?;
        let start = bytes.len() - input.0.len();
        let mut tables = [start; 4];
        let mut end = start;
        for (table, length) in tables.iter_mut().skip(1).zip(lengths) {
            end = end.checked_add(length).ok_or(EntryError::Malformed)?;
            *table = end;
        }
        if end != bytes.len() || totals.block_size == 0 {
            return Err(EntryError::Malformed);
        }
        Ok(Index { bytes, totals, tables })
    }

    fn table(&self, number: usize) -> &[u8] {
        let start = self.tables.get(number).copied().unwrap_or_default();
        let end = self.tables.get(number + 1).copied().unwrap_or_default();
        self.bytes.get(start..end).unwrap_or_default()
    }

    /// The entries, in order.
    pub(super) fn entries(&self) -> Option<EntryReader<'_>> {
        EntryReader::new(self.compressed_entries())
    }

    pub(super) fn compressed_entries(&self) -> &[u8] {
        self.table(2)
    }

    /// The files whose data is here, by entry number.
    pub(super) fn files(&self) -> Files<'_> {
        Files { index: self, input: Input(self.table(1)), next: 0 }
    }

    fn block(&self, number: usize) -> Option<StoredFragment> {
        let start = number.checked_mul(BLOCK)?;
        let mut input = Input(self.table(0).get(start..)?);
        let position = u64::from_le_bytes(input.array()?);
        let size_word = u32::from_le_bytes(input.array()?);
        let length = u32::from_le_bytes(input.array()?);
        let checksum = u64::from_le_bytes(input.array()?);
        let fingerprint = Fingerprint { checksum, digest: input.array()? };
        Some(StoredFragment { block: StoredBlock { position, size_word, fingerprint }, length })
    }
}

fn parse_head(input: &mut Input<'_>) -> Option<(Totals, [usize; 3])> {
    let totals = Totals {
        entries: input.small()?,
        file_bytes: input.number()?,
        tar_bytes: input.number()?,
        block_size: input.small()?,
    };
    Some((totals, [input.small()?, input.small()?, input.small()?]))
}

/// Files of an index, in order.
#[derive(Debug)]
pub(super) struct Files<'a> {
    index: &'a Index,
    input: Input<'a>,
    next: u32,
}

impl Files<'_> {
    /// The next file with its entry's number. `Some(None)` is damage.
    pub(super) fn next_file(&mut self) -> Option<Option<(u32, StoredFile)>> {
        if self.input.is_empty() { None } else { Some(self.parse()) }
    }

    fn parse(&mut self) -> Option<(u32, StoredFile)> {
        let number = self.next.checked_add(self.input.small()?)?;
        self.next = number.checked_add(1)?;
        let size = self.input.number()?;
        let data = match self.input.byte()? {
            b'z' => StoredData::Zeros,
            b's' => {
                let fragment = self.index.block(self.input.small()?)?;
                StoredData::Small { fragment, offset: self.input.small()?, digest: self.input.array()? }
            }
            b'b' => StoredData::Blocks(self.parse_words(size)?),
            _ => return None,
        };
        Some((number, StoredFile { size, data }))
    }

    /// Turns of data blocks and holes, until the file is complete.
    fn parse_words(&mut self, size: u64) -> Option<Vec<StoredWord>> {
        let mut left = size.div_ceil(u64::from(self.index.totals.block_size));
        let mut next: usize = self.input.small()?;
        let mut words = Vec::new();
        while left > 0 {
            let (data, holes) = (self.input.number()?, self.input.small::<u32>()?);
            left = left.checked_sub(data)?.checked_sub(u64::from(holes))?;
            for _ in 0..data {
                words.push(StoredWord::Data(self.index.block(next)?.block));
                next = next.checked_add(1)?;
            }
            match holes {
                0 if data == 0 => return None,
                0 => {}
                holes => words.push(StoredWord::Holes(holes)),
            }
        }
        Some(words)
    }
}

/// Puts an index together.
#[derive(Debug, Default)]
pub(super) struct IndexWriter {
    blocks: Vec<u8>,
    block_count: u64,
    files: Output,
    next: u32,
}

impl IndexWriter {
    /// Adds a block, positioned in the cached layer; gives its number.
    pub(super) fn add_block(&mut self, block: &StoredBlock, length: u32) -> u64 {
        self.blocks.extend(block.position.to_le_bytes());
        self.blocks.extend(block.size_word.to_le_bytes());
        self.blocks.extend(length.to_le_bytes());
        self.blocks.extend(block.fingerprint.checksum.to_le_bytes());
        self.blocks.extend(block.fingerprint.digest);
        self.block_count += 1;
        self.block_count - 1
    }

    /// Adds the file of entry `number`, which ascends. `block` is the number of its fragment block or first data block.
    pub(super) fn add_file(&mut self, number: u32, file: &StoredFile, block: u64) {
        let output = &mut self.files;
        output.number(u64::from(number.saturating_sub(self.next)));
        self.next = number.saturating_add(1);
        output.number(file.size);
        match &file.data {
            StoredData::Zeros => output.byte(b'z'),
            StoredData::Small { digest, offset, .. } => {
                output.byte(b's');
                output.number(block);
                output.number(u64::from(*offset));
                output.0.extend(digest);
            }
            StoredData::Blocks(words) => {
                output.byte(b'b');
                output.number(block);
                let mut data = 0;
                for word in words {
                    match word {
                        StoredWord::Data(_) => data += 1,
                        StoredWord::Holes(holes) => {
                            output.number(std::mem::take(&mut data));
                            output.number(u64::from(*holes));
                        }
                    }
                }
                if data > 0 {
                    output.number(data);
                    output.number(0);
                }
            }
        }
    }

    /// The index and its footer, to be put at `start`.
    pub(super) fn finish(self, key: &str, totals: &Totals, entries: &[u8], start: u64) -> Vec<u8> {
        let mut index = Output::default();
        index.bytes(key.as_bytes());
        index.number(u64::from(totals.entries));
        index.number(totals.file_bytes);
        index.number(totals.tar_bytes);
        index.number(u64::from(totals.block_size));
        for table in [&self.blocks, &self.files.0, entries] {
            index.number(table.len() as u64);
        }
        for table in [&self.blocks, &self.files.0, entries] {
            index.0.extend_from_slice(table);
        }
        let mut bytes = index.0;
        let (digest, length) = (Sha256::digest(&bytes), bytes.len() as u64);
        bytes.extend(MAGIC);
        bytes.extend(start.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend(digest);
        bytes
    }
}

/// Bytes of a stored block, without the flag.
pub(super) fn stored_size(block: &StoredBlock) -> u64 {
    u64::from(block.size_word & !DATA_UNCOMPRESSED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(number: u8) -> StoredBlock {
        StoredBlock {
            position: u64::from(number) * 100,
            size_word: 100,
            fingerprint: Fingerprint { digest: [number; 32], checksum: 7 },
        }
    }

    /// An index of four files, and those files.
    fn sample() -> (Vec<u8>, Vec<(u32, StoredFile)>) {
        let fragment = StoredFragment { block: block(9), length: 5000 };
        let files = vec![
            (0, StoredFile { size: 0, data: StoredData::Zeros }),
            (3, StoredFile { size: 77, data: StoredData::Small { digest: [5; 32], fragment, offset: 11 } }),
            (
                4,
                StoredFile {
                    size: 4096 * 6 - 1,
                    data: StoredData::Blocks(vec![
                        StoredWord::Holes(1),
                        StoredWord::Data(block(0)),
                        StoredWord::Data(block(1)),
                        StoredWord::Holes(2),
                        StoredWord::Data(block(2)),
                    ]),
                },
            ),
            (
                900,
                StoredFile {
                    size: 4096 * 3,
                    data: StoredData::Blocks(vec![StoredWord::Data(block(0)), StoredWord::Holes(2)]),
                },
            ),
        ];
        let mut writer = IndexWriter::default();
        for number in 0..3 {
            writer.add_block(&block(number), 0);
        }
        let shared = writer.add_block(&fragment.block, fragment.length);
        for ((number, file), block) in files.iter().zip([0, shared, 0, 0]) {
            writer.add_file(*number, file, block);
        }
        let totals = Totals { entries: 901, file_bytes: 1 << 40, tar_bytes: 7, block_size: 4096 };
        (writer.finish("key", &totals, b"", 1000), files)
    }

    fn read(bytes: &[u8], start: u64, key: &str) -> Result<Index, EntryError> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, start).unwrap();
        Index::read(&file, key)
    }

    #[test]
    fn an_index_comes_back() {
        let (bytes, files) = sample();
        let index = read(&bytes, 1000, "key").unwrap();
        assert_eq!(index.totals.entries, 901);
        let mut reader = index.files();
        for file in files {
            assert_eq!(reader.next_file(), Some(Some(file)));
        }
        assert_eq!(reader.next_file(), None);
        assert!(matches!(read(&bytes, 1000, "another"), Err(EntryError::Key)));
        assert!(matches!(read(&bytes, 999, "key"), Err(EntryError::Footer)));
    }

    #[test]
    fn every_changed_bit_and_every_cut_is_noticed() {
        let (bytes, _) = sample();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                assert!(read(&changed, 1000, "key").is_err(), "byte {at}, bit {bit}");
            }
            assert!(read(&bytes[..at], 1000, "key").is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_malformed_index_with_a_right_digest_is_survived() {
        let (bytes, _) = sample();
        let index = &bytes[..bytes.len() - FOOTER];
        for at in 0..index.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut changed = index.to_vec();
                changed[at] = value;
                let Ok(index) = Index::parse(changed, "key") else { continue };
                let mut files = index.files();
                while let Some(Some(_)) = files.next_file() {}
            }
        }
    }
}
