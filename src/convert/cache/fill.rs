//! Writes a layer into the cache: its blocks copied out of the finished image file, then the index.
//!
//! Blocks are copied in whole pages and keep their place within a page, with whatever lies around them: so file systems
//! that can share extents (XFS, Btrfs) copy nothing at all.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::index::{Index, IndexWriter, stored_size};
use super::record::LayerRecord;
use crate::squashfs::writer::{StoredBlock, StoredData, StoredFile, StoredWord, Written};
use crate::sys;

/// Alignment that shared extents need, bytes.
const PAGE: u64 = 4096;

/// Files that blocks come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Origin {
    /// The image file just written.
    Image,
    /// The same layer as the cache had it, for files that this image hides.
    Before,
}

/// A layer as it is going to be in the cache.
#[derive(Debug)]
pub(super) struct Plan {
    copies: Vec<Copy>,
    /// Where the index goes.
    end: u64,
    index: Vec<u8>,
}

/// Whole pages of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Copy {
    origin: Origin,
    from: u64,
    to: u64,
    length: u64,
}

impl Plan {
    /// Decides what goes where. `before` is what the cache has of this layer, if anything usable.
    pub(super) fn new(
        record: LayerRecord,
        key: &str,
        written: &Written,
        before: Option<&Index>,
    ) -> io::Result<Plan> {
        let LayerRecord { totals, entries, files, .. } = record;
        let files = collect_files(files, written, before)?;
        let copies = plan_copies(&files);
        let end = copies.last().map_or(0, |copy| copy.to + copy.length);
        let mut index = IndexWriter::default();
        let mut numbers = HashMap::new();
        for (number, (origin, file)) in &files {
            let mut add = |block: &StoredBlock, length| {
                let key = (*origin, block.position);
                *numbers.entry(key).or_insert_with(|| {
                    let position = moved(&copies, *origin, block.position);
                    index.add_block(&StoredBlock { position, ..*block }, length)
                })
            };
            let first = match &file.data {
                StoredData::Zeros => 0,
                StoredData::Small { fragment, .. } => add(&fragment.block, fragment.length),
                StoredData::Blocks(words) => {
                    let blocks = words.iter().filter_map(|word| match word {
                        StoredWord::Data(block) => Some(add(block, 0)),
                        StoredWord::Holes(_) => None,
                    });
                    // Two files share all their blocks or none, so a run's numbers follow each other.
                    blocks.min().unwrap_or_default()
                }
            };
            index.add_file(*number, file, first);
        }
        let index = index.finish(key, &totals, &entries.finish()?, end);
        Ok(Plan { copies, end, index })
    }

    /// Bytes that it takes.
    pub(super) fn size(&self) -> u64 {
        self.end.saturating_add(self.index.len() as u64)
    }

    /// Writes it to an empty file.
    pub(super) fn write(&self, to: &File, image: &File, before: Option<&File>) -> io::Result<()> {
        for copy in &self.copies {
            let from = match copy.origin {
                Origin::Image => image,
                Origin::Before => before.ok_or(io::ErrorKind::NotFound)?,
            };
            sys::file::copy_range(from, copy.from, to, copy.to, copy.length)
                .map_err(|error| io::Error::from(error.errno))?;
        }
        to.write_all_at(&self.index, self.end)
    }
}

/// Files by entry number; what the image has beats what the cache had.
type Files = std::collections::BTreeMap<u32, (Origin, StoredFile)>;

fn collect_files(
    stored: Vec<(u32, crate::squashfs::writer::FileId)>,
    written: &Written,
    before: Option<&Index>,
) -> io::Result<Files> {
    let mut files = Files::new();
    if let Some(index) = before {
        let mut reader = index.files();
        while let Some(file) = reader.next_file() {
            let (number, file) = file.ok_or(io::ErrorKind::InvalidData)?;
            files.insert(number, (Origin::Before, file));
        }
    }
    for (number, id) in stored {
        let file = written.file(id).ok_or(io::ErrorKind::InvalidInput)?;
        files.insert(number, (Origin::Image, file));
    }
    Ok(files)
}

/// The pages that hold any block of the files, one after the other without gaps.
fn plan_copies(files: &Files) -> Vec<Copy> {
    let mut ranges: Vec<(Origin, u64, u64)> = Vec::new();
    for (origin, file) in files.values() {
        let mut add = |block: &StoredBlock| {
            let start = block.position / PAGE * PAGE;
            let end = (block.position + stored_size(block)).next_multiple_of(PAGE);
            match ranges.last_mut() {
                Some((last, from, to)) if last == origin && (*from..=*to).contains(&start) => {
                    *to = end.max(*to)
                }
                _ => ranges.push((*origin, start, end)),
            }
        };
        match &file.data {
            StoredData::Zeros => {}
            StoredData::Small { fragment, .. } => add(&fragment.block),
            StoredData::Blocks(words) => words.iter().for_each(|word| {
                if let StoredWord::Data(block) = word {
                    add(block);
                }
            }),
        }
    }
    ranges.sort_unstable();
    let mut copies: Vec<Copy> = Vec::new();
    for (origin, start, end) in ranges {
        match copies.last_mut() {
            Some(last) if last.origin == origin && start <= last.from + last.length => {
                last.length = last.length.max(end - last.from);
            }
            last => {
                let to = last.map_or(0, |last| last.to + last.length);
                copies.push(Copy { origin, from: start, to, length: end - start });
            }
        }
    }
    copies
}

/// Where a position of a source file is in the cached layer.
fn moved(copies: &[Copy], origin: Origin, position: u64) -> u64 {
    let after = copies.partition_point(|copy| (copy.origin, copy.from) <= (origin, position));
    let copy = after.checked_sub(1).and_then(|at| copies.get(at));
    copy.map_or(u64::MAX, |copy| copy.to + (position - copy.from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::squashfs::writer::Fingerprint;

    fn files(blocks: &[(Origin, u64, u32)]) -> Files {
        let file = |(number, (origin, position, size_word)): (usize, &(Origin, u64, u32))| {
            let block = StoredBlock {
                position: *position,
                size_word: *size_word,
                fingerprint: Fingerprint::default(),
            };
            let data = StoredData::Blocks(vec![StoredWord::Data(block)]);
            (u32::try_from(number).unwrap(), (*origin, StoredFile { size: 1, data }))
        };
        blocks.iter().enumerate().map(file).collect()
    }

    #[test]
    fn blocks_are_copied_once_in_whole_pages() {
        use Origin::{Before, Image};
        let files = files(&[
            (Image, 96, 1000),
            (Image, 1096, 3000),
            (Image, 96, 1000),
            (Before, 8192, 10),
            (Image, 50_000, 4096),
            (Image, 9000, 1),
        ]);
        let copies = plan_copies(&files);
        let copy = |origin, from, to, length| Copy { origin, from, to, length };
        assert_eq!(
            copies,
            [
                copy(Image, 0, 0, 4096),
                copy(Image, 8192, 4096, 4096),
                copy(Image, 49_152, 8192, 8192),
                copy(Before, 8192, 16_384, 4096),
            ]
        );
        for (origin, from, to) in [
            (Image, 96, 96),
            (Image, 1096, 1096),
            (Image, 9000, 4904),
            (Image, 50_000, 9040),
            (Before, 8192, 16_384),
        ] {
            assert_eq!(moved(&copies, origin, from), to, "{origin:?} {from}");
        }
    }
}
