//! Round trips, damage and lies.

#![allow(clippy::cast_possible_truncation, reason = "small numbers of tests")]

use std::cell::Cell;

use super::*;

/// A file of `count` chunks of 1, 2, 3, ... bytes with their section behind it, and where that lies.
fn file(count: u32) -> (Vec<u8>, Place, u64) {
    let mut file: Vec<u8> = Vec::new();
    let mut chunks = Vec::new();
    for number in 0..count {
        let bytes = vec![number as u8; number as usize % 700 + 1];
        chunks.push((bytes.len() as u32, Sha256::digest(&bytes).into()));
        file.extend(bytes);
    }
    let covered = file.len() as u64;
    file.resize(file.len() + 13, 0);
    let section = encode(chunks.into_iter());
    let place = place(file.len() as u64, &section);
    file.extend(section);
    (file, place, covered)
}

fn place(offset: u64, section: &[u8]) -> Place {
    Place { offset, length: section.len() as u64, digest: Sha256::digest(section).into() }
}

fn reader(file: &[u8]) -> impl Fn(u64, &mut [u8]) -> io::Result<()> + '_ {
    move |offset, buffer| {
        let bytes = usize::try_from(offset).ok().and_then(|start| file.get(start..)?.get(..buffer.len()));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

#[test]
fn every_byte_is_found_in_its_chunk() {
    for count in [1, 2, 127, 128, 129, 1000, 20_000] {
        let (file, place, covered) = file(count);
        let read_at = reader(&file);
        let index = Index::load(&place, covered, &read_at).unwrap();
        assert_eq!(index.header().count, u64::from(count));
        assert_eq!(index.pages(), count.div_ceil(128) as usize);
        let mut end = 0;
        for chunk in (0..index.pages()).flat_map(|page| index.page(page, &read_at).unwrap()) {
            assert_eq!(chunk.offset, end);
            assert!(chunk.is(&file[end as usize..][..chunk.length as usize]));
            end = chunk.end();
        }
        assert_eq!(end, covered);
        for (start, end) in [(0, 1), (0, covered), (covered - 1, covered), (covered / 2, covered / 2 + 900)] {
            let end = end.min(covered).max(start + 1);
            let found = index.covering(start, end, &read_at).unwrap();
            assert!(found[0].offset <= start && found[0].end() > start);
            assert!(found.last().is_some_and(|chunk| chunk.offset < end && chunk.end() >= end));
            assert!(found.windows(2).all(|pair| pair[0].end() == pair[1].offset));
        }
        assert_eq!(index.covering(covered, covered + 5, &read_at).unwrap(), []);
        assert_eq!(index.page(index.pages(), &read_at).unwrap(), []);
    }
}

#[test]
fn an_empty_list_covers_nothing() {
    let section = encode(std::iter::empty());
    let index = Index::load(&place(0, &section), 0, &reader(&section)).unwrap();
    assert_eq!(index.covering(0, 100, &reader(&section)).unwrap(), []);
}

#[test]
fn bytes_are_as_documented() {
    let section = encode([(96, [1; 32]), (70_000, [2; 32])].into_iter());
    assert_eq!(section.len(), 64 + 2 * 36);
    assert_eq!(section[..8], [1, 0, 0, 0, 36, 0, 0, 0]);
    assert_eq!(section[8..16], 2u64.to_le_bytes());
    assert_eq!(section[16..24], 70_096u64.to_le_bytes());
    assert_eq!(section[24..32], [128, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(section[32..64], Sha256::digest([&[0], &section[64..]].concat())[..]);
    assert_eq!(section[64..68], 96u32.to_le_bytes());
    assert_eq!(section[68..100], [1; 32]);
}

#[test]
fn the_root_is_that_of_a_tree_of_pages() {
    let chunks: Vec<_> = (0..129 * 128u32).map(|n| (1, Sha256::digest(n.to_le_bytes()).into())).collect();
    let section = encode(chunks.into_iter());
    let leaf = |page: &[u8]| Sha256::digest([&[0], page].concat()).to_vec();
    let leaves: Vec<_> = section[64..].chunks(128 * 36).map(leaf).collect();
    assert_eq!(leaves.len(), 129);
    let node = |digests: &[Vec<u8>]| Sha256::digest([vec![1], digests.concat()].concat()).to_vec();
    let root = node(&[node(&leaves[..128]), node(&leaves[128..])]);
    assert_eq!(section[32..64], root);
}

#[test]
fn lies_in_the_header() {
    let (good, at, covered) = file(300);
    let start = at.offset as usize;
    for (offset, value, part) in [
        (0, 2u32.to_le_bytes().to_vec(), "another version"),
        (4, 35u32.to_le_bytes().to_vec(), "another size"),
        (24, 0u32.to_le_bytes().to_vec(), "another size"),
        (8, 299u64.to_le_bytes().to_vec(), "another length"),
        (8, u64::MAX.to_le_bytes().to_vec(), "another length"),
        (8, (u64::MAX / 36).to_le_bytes().to_vec(), "another length"),
        (16, (covered + 1).to_le_bytes().to_vec(), "do not cover"),
        (32, vec![0; 32], "the root is not"),
        (64, u32::MAX.to_le_bytes().to_vec(), "do not cover"),
    ] {
        let mut bad = good.clone();
        bad[start + offset..][..value.len()].copy_from_slice(&value);
        let resealed = place(at.offset, &bad[start..]);
        let error = Index::load(&resealed, covered, &reader(&bad)).unwrap_err();
        assert!(error.to_string().contains(part), "{offset}: {error}");
        assert!(Index::load(&at, covered, &reader(&bad)).is_err());
    }
    let error = Index::load(&at, covered + 1, &reader(&good)).unwrap_err();
    assert!(matches!(error, ChunkError::Malformed(_)), "{error}");
    for length in [0, 63, (1 << 30) + 1, u64::MAX] {
        let lie = Place { length, ..at };
        assert!(matches!(Index::load(&lie, covered, &reader(&good)), Err(ChunkError::Malformed(_))));
    }
}

#[test]
fn chunks_of_no_or_of_too_many_bytes_are_refused() {
    for lengths in [[0, 10], [MAX_CHUNK_BYTES + 1, 10]] {
        let section = encode(lengths.into_iter().map(|length| (length, [0; 32])));
        let covered = lengths.iter().map(|length| u64::from(*length)).sum();
        let index = Index::load(&place(0, &section), covered, &reader(&section)).unwrap();
        assert!(matches!(index.page(0, &reader(&section)), Err(ChunkError::Malformed(_))));
        assert!(index.covering(0, 1, &reader(&section)).is_err());
    }
}

#[test]
fn a_list_that_changes_after_it_was_checked_is_refused() {
    let (good, place, covered) = file(1000);
    let index = Index::load(&place, covered, &reader(&good)).unwrap();
    for at in (place.offset as usize + 64..good.len()).step_by(997) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        let refused = (0..index.pages()).filter(|page| index.page(*page, &reader(&bad)).is_err()).count();
        assert_eq!(refused, 1, "byte {at}");
    }
}

#[test]
fn any_flipped_bit_is_noticed() {
    let (good, place, covered) = file(200);
    for at in place.offset as usize..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(Index::load(&place, covered, &reader(&bad)).is_err(), "byte {at}");
    }
}

#[test]
fn nothing_is_allocated_for_a_lie() {
    // A section of a terabyte, all zeros but for its header: read piece by piece until its digest is known to be wrong.
    let count = 100_000u64;
    let mut header = encode(std::iter::empty());
    header[8..16].copy_from_slice(&count.to_le_bytes());
    let largest = Cell::new(0);
    let read_at = |offset: u64, buffer: &mut [u8]| {
        largest.set(largest.get().max(buffer.len()));
        buffer.fill(0);
        if offset == 0 {
            buffer.copy_from_slice(&header[..buffer.len()]);
        }
        Ok(())
    };
    let place = Place { offset: 0, length: 64 + count * 36, digest: [0; 32] };
    assert!(matches!(Index::load(&place, 0, &read_at), Err(ChunkError::Damaged)));
    assert!(largest.get() <= 64 * PAGE_BYTES, "{}", largest.get());
}
