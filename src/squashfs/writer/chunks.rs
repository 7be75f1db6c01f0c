//! The digests of everything that a squashfs consists of, piece by piece, so that it can be checked later.
//!
//! Data blocks and fragments are a chunk each, because their digests are known already: whoever checks a block that is
//! read reads no byte more. The rest is cut into pieces of [`METADATA_CHUNK`].

use sha2::{Digest, Sha256};

/// Bytes of a chunk where there are no blocks to go by: a few metadata blocks.
const METADATA_CHUNK: usize = 32 << 10;

/// A stretch of the image. The first begins at 0, each other where the one before ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Bytes; not 0, and at most the block size or 32 KiB.
    pub length: u32,
    /// SHA-256 of the bytes as stored.
    pub digest: [u8; 32],
}

impl Chunk {
    fn of(bytes: &[u8]) -> Chunk {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        Chunk { length, digest: Sha256::digest(bytes).into() }
    }
}

/// The chunks of an image being written; the superblock's is left open until [`Chunks::finish`].
#[derive(Debug, Default)]
pub(super) struct Chunks(Vec<Chunk>);

impl Chunks {
    /// Begins with the head, whose digest is known last.
    pub(super) fn new() -> Chunks {
        Chunks(vec![Chunk { length: 0, digest: [0; 32] }])
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// Takes back all but the first `count`.
    pub(super) fn truncate(&mut self, count: usize) {
        self.0.truncate(count);
    }

    /// Adds a block whose digest is known.
    pub(super) fn push(&mut self, bytes: &[u8], digest: [u8; 32]) {
        if !bytes.is_empty() {
            self.0.push(Chunk { length: u32::try_from(bytes.len()).unwrap_or(u32::MAX), digest });
        }
    }

    /// Adds a table.
    pub(super) fn push_table(&mut self, bytes: &[u8]) {
        self.0.extend(bytes.chunks(METADATA_CHUNK).map(Chunk::of));
    }

    /// Puts the digest of the head in its place.
    pub(super) fn finish(mut self, head: &[u8]) -> Vec<Chunk> {
        if let Some(first) = self.0.first_mut() {
            *first = Chunk::of(head);
        }
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_follow_each_other_and_can_be_taken_back() {
        let mut chunks = Chunks::new();
        let block = |byte: u8| vec![byte; 5000];
        chunks.push(&block(1), Chunk::of(&block(1)).digest);
        let kept = chunks.count();
        chunks.push(&block(2), Chunk::of(&block(2)).digest);
        chunks.push(&[], [0; 32]);
        chunks.truncate(kept);
        let table: Vec<u8> = (0..70_000u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
        chunks.push_table(&table);
        chunks.push_table(&[]);
        let all = [vec![7; 96], block(1), table].concat();
        let mut rest = all.as_slice();
        for chunk in chunks.finish(&[7; 96]) {
            let (bytes, after) = rest.split_at(usize::try_from(chunk.length).unwrap());
            assert_eq!(chunk, Chunk::of(bytes));
            rest = after;
        }
        assert!(rest.is_empty());
    }
}
