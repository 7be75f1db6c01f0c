//! The chunk hashes of an image file: SHA-256 of every piece of its squashfs, so that each can be checked alone.
//!
//! `docs/image-format.md` specifies the section byte by byte. The list of an image of a terabyte is hundreds of
//! megabytes, so nobody holds it: an [`Index`] has the digest of each page of the list, made while the list as a whole
//! was checked, and reads a page again when it needs one.

use std::io;

use sha2::{Digest as _, Sha256};

use super::trailer::{Place, ReadAt, SectionKind};

const VERSION: u32 = 1;
const HEADER_BYTES: usize = 64;
const ENTRY_BYTES: usize = 36;
const ENTRY_LENGTH: u32 = 36;
/// Entries of a page: what is read and hashed to find one of them, and what a digest in the tree stands for.
const PAGE_ENTRIES: usize = 128;
const PAGE_COUNT: u32 = 128;
const PAGE_BYTES: usize = PAGE_ENTRIES * ENTRY_BYTES;
/// Pages read at a time while the list is checked as a whole.
const PAGES_AT_ONCE: usize = 64;
/// Digests under one node of the tree.
const FAN_OUT: usize = 128;
/// First byte of what is hashed for a page, and for a node over pages or nodes: one is never taken for the other.
const LEAF: [u8; 1] = [0];
const NODE: [u8; 1] = [1];
/// Longest chunk, bytes: the largest block.
pub const MAX_CHUNK_BYTES: u32 = 1 << 20;

/// SHA-256.
pub type Digest = [u8; 32];

/// One chunk of an image file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Offset in the file, bytes.
    pub offset: u64,
    /// Bytes, 1 to [`MAX_CHUNK_BYTES`].
    pub length: u32,
    /// SHA-256 of these bytes.
    pub digest: Digest,
}

impl Chunk {
    /// First offset behind it.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(u64::from(self.length))
    }

    /// Whether these are its bytes.
    pub fn is(&self, bytes: &[u8]) -> bool {
        bytes.len() as u64 == u64::from(self.length) && Sha256::digest(bytes).as_slice() == self.digest
    }
}

/// Why chunk hashes cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChunkError {
    /// The file refused to be read.
    #[error("cannot read the chunk hashes")]
    Read(#[source] io::Error),
    /// They are not what they were when the image was opened, or what the trailer says.
    #[error("the chunk hashes are damaged")]
    Damaged,
    /// A number is impossible.
    #[error("the chunk hashes are malformed: {0}")]
    Malformed(&'static str),
}

/// The section for chunks that follow each other from offset 0, each with its length and digest.
pub fn encode(chunks: impl ExactSizeIterator<Item = (u32, Digest)>) -> Vec<u8> {
    let count = chunks.len();
    let mut list = Vec::with_capacity(count * ENTRY_BYTES);
    let mut covered = 0;
    for (length, digest) in chunks {
        covered += u64::from(length);
        list.extend_from_slice(&length.to_le_bytes());
        list.extend_from_slice(&digest);
    }
    let root = root(list.chunks(PAGE_BYTES).map(page_digest).collect());
    let mut section = Vec::with_capacity(HEADER_BYTES + list.len());
    section.extend_from_slice(&VERSION.to_le_bytes());
    section.extend_from_slice(&ENTRY_LENGTH.to_le_bytes());
    section.extend_from_slice(&(count as u64).to_le_bytes());
    section.extend_from_slice(&covered.to_le_bytes());
    section.extend_from_slice(&PAGE_COUNT.to_le_bytes());
    section.extend_from_slice(&0u32.to_le_bytes());
    section.extend_from_slice(&root);
    section.extend_from_slice(&list);
    section
}

fn page_digest(page: &[u8]) -> Digest {
    Sha256::new().chain_update(LEAF).chain_update(page).finalize().into()
}

/// The root of the tree over these digests; of a tree without leaves, the digest of nothing.
fn root(mut level: Vec<Digest>) -> Digest {
    let node = |digests: &[Digest]| -> Digest {
        let mut hash = Sha256::new().chain_update(NODE);
        digests.iter().for_each(|digest| hash.update(digest));
        hash.finalize().into()
    };
    loop {
        match level.as_slice() {
            [] => return node(&[]),
            [root] => return *root,
            _ => level = level.chunks(FAN_OUT).map(node).collect(),
        }
    }
}

/// The fixed part of the section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Number of chunks.
    pub count: u64,
    /// Bytes of the file that they cover, from its start.
    pub covered: u64,
    /// Root of the Merkle tree over the pages of the list.
    pub root: Digest,
}

impl Header {
    /// Reads the header of the section at `place` and holds it against the section's length.
    pub fn read(place: &Place, read_at: &ReadAt<'_>) -> Result<Header, ChunkError> {
        Header::read_raw(place, read_at).map(|(header, _)| header)
    }

    /// The same, with the bytes that it was read from.
    fn read_raw(place: &Place, read_at: &ReadAt<'_>) -> Result<(Header, [u8; HEADER_BYTES]), ChunkError> {
        let mut bytes = [0; HEADER_BYTES];
        let lengths = HEADER_BYTES as u64..=SectionKind::ChunkHashes.max_bytes();
        if !lengths.contains(&place.length) {
            return Err(ChunkError::Malformed("the section is too short or too long"));
        }
        read_at(place.offset, &mut bytes).map_err(ChunkError::Read)?;
        Ok((Header::parse(&bytes, place)?, bytes))
    }

    fn parse(bytes: &[u8; HEADER_BYTES], place: &Place) -> Result<Header, ChunkError> {
        let mut fields = Fields(bytes);
        if fields.u32() != VERSION {
            return Err(ChunkError::Malformed("of another version"));
        }
        let entry_length = fields.u32();
        let (count, covered) = (fields.u64(), fields.u64());
        let page_entries = fields.u32();
        let _reserved = fields.u32();
        if entry_length != ENTRY_LENGTH || page_entries != PAGE_COUNT {
            return Err(ChunkError::Malformed("entries or pages of another size"));
        }
        let length = count.checked_mul(ENTRY_BYTES as u64).and_then(|list| list.checked_add(64));
        if length != Some(place.length) {
            return Err(ChunkError::Malformed("the section has another length than its list"));
        }
        Ok(Header { count, covered, root: fields.take() })
    }
}

/// Little-endian fields of an array that is long enough for all that are taken.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) =
            self.0.split_first_chunk().map_or(([0; N], &[][..]), |(head, rest)| (*head, rest));
        self.0 = rest;
        field
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

/// A checked list of chunk hashes that stays in the file.
#[derive(Debug)]
pub struct Index {
    header: Header,
    /// Offset of the list in the file.
    list: u64,
    pages: Vec<Page>,
}

/// What is remembered of a page of the list.
#[derive(Debug)]
struct Page {
    /// Where its first chunk begins.
    start: u64,
    digest: Digest,
}

impl Index {
    /// Reads the section at `place` once, checks it against the digest that `place` remembers and against itself. The
    /// chunks must cover `squashfs_length` bytes.
    pub fn load(place: &Place, squashfs_length: u64, read_at: &ReadAt<'_>) -> Result<Index, ChunkError> {
        let (header, bytes) = Header::read_raw(place, read_at)?;
        let mut hash = Sha256::new().chain_update(bytes);
        let list = place.offset.saturating_add(HEADER_BYTES as u64);
        let mut index = Index { header, list, pages: Vec::new() };
        let mut start = 0;
        let mut buffer = vec![0; PAGES_AT_ONCE * PAGE_BYTES];
        let mut done = 0;
        let whole = place.length.saturating_sub(HEADER_BYTES as u64);
        while done < whole {
            let length = usize::try_from(whole - done).unwrap_or(usize::MAX).min(buffer.len());
            let pages = buffer.get_mut(..length).unwrap_or_default();
            read_at(list.saturating_add(done), pages).map_err(ChunkError::Read)?;
            hash.update(&*pages);
            for page in pages.chunks(PAGE_BYTES) {
                index.pages.push(Page { start, digest: page_digest(page) });
                start = entries(page, start).last().map_or(start, |chunk| chunk.end());
            }
            done += length as u64;
        }
        if hash.finalize().as_slice() != place.digest {
            return Err(ChunkError::Damaged);
        }
        if start != header.covered || start != squashfs_length {
            return Err(ChunkError::Malformed("the chunks do not cover the squashfs"));
        }
        if root(index.pages.iter().map(|page| page.digest).collect()) != header.root {
            return Err(ChunkError::Malformed("the root is not that of the list"));
        }
        Ok(index)
    }

    /// What the section says of itself.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Number of pages.
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// The chunks of page `number`, read again and checked; none of a page that is not there.
    pub fn page(&self, number: usize, read_at: &ReadAt<'_>) -> Result<Vec<Chunk>, ChunkError> {
        let Some(page) = self.pages.get(number) else { return Ok(Vec::new()) };
        let first = number as u64 * PAGE_ENTRIES as u64;
        let count = self.header.count.saturating_sub(first).min(PAGE_ENTRIES as u64);
        let mut bytes = vec![0; usize::try_from(count).unwrap_or(0) * ENTRY_BYTES];
        let offset = self.list.saturating_add(first.saturating_mul(ENTRY_BYTES as u64));
        read_at(offset, &mut bytes).map_err(ChunkError::Read)?;
        if page_digest(&bytes) != page.digest {
            return Err(ChunkError::Damaged);
        }
        let chunks: Vec<Chunk> = entries(&bytes, page.start).collect();
        match chunks.iter().all(|chunk| (1..=MAX_CHUNK_BYTES).contains(&chunk.length)) {
            true => Ok(chunks),
            false => Err(ChunkError::Malformed("a chunk of no or of too many bytes")),
        }
    }

    /// The chunks that hold the bytes from `start` up to `end`, which is above it.
    pub fn covering(&self, start: u64, end: u64, read_at: &ReadAt<'_>) -> Result<Vec<Chunk>, ChunkError> {
        let mut number = self.pages.partition_point(|page| page.start <= start).saturating_sub(1);
        let mut covering = Vec::new();
        while self.pages.get(number).is_some_and(|page| page.start < end) {
            let chunks = self.page(number, read_at)?.into_iter();
            covering.extend(chunks.filter(|chunk| chunk.offset < end && chunk.end() > start));
            number += 1;
        }
        Ok(covering)
    }
}

/// The chunks of a page whose first begins at `start`.
fn entries(page: &[u8], start: u64) -> impl Iterator<Item = Chunk> + '_ {
    let mut offset = start;
    page.chunks_exact(ENTRY_BYTES).map(move |entry| {
        let mut fields = Fields(entry);
        let chunk = Chunk { offset, length: fields.u32(), digest: fields.take() };
        offset = chunk.end();
        chunk
    })
}

#[cfg(test)]
mod tests;
