//! Sparse files: where in the file the stored data belongs. Four ways to write it, one result.

use super::entry::Segment;
use super::error::Problem;
use super::header::{Block, field};
use super::number::{parse_decimal, parse_field};
use super::pax::Pax;
use crate::convert::budget::{Budget, Limit};

/// How the PAX records say where the map is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PaxSparse {
    /// No sparse file.
    No,
    /// Formats 0.0 and 0.1: the map is in the records.
    InRecords(Vec<Segment>),
    /// Format 1.0: the map is at the start of the data.
    InData,
}

/// Looks at the records as Go does: the version first, then whether there is a map.
pub(super) fn pax_sparse(pax: &Pax, budget: &Budget) -> Result<PaxSparse, Problem> {
    let records = &pax.sparse;
    let in_records = match (&records.major[..], &records.minor[..]) {
        (b"0", b"0" | b"1") => true,
        (b"1", b"0") => return Ok(PaxSparse::InData),
        (b"", b"") => !records.map.is_empty() || !records.numbers.is_empty(),
        _ => return Err(Problem::Sparse("unknown version")),
    };
    if !in_records {
        return Ok(PaxSparse::No);
    }
    let segments = if records.numbers.is_empty() {
        parse_map(&records.map)?
    } else {
        pax.numbered_map().ok_or(Problem::Sparse("an offset without a length"))?
    };
    let count = parse_decimal("GNU.sparse.numblocks", &records.block_count)?;
    if usize::try_from(count) != Ok(segments.len()) {
        return Err(Problem::Sparse("the number of segments is not the one stated"));
    }
    check_count(segments.len(), budget)?;
    Ok(PaxSparse::InRecords(segments))
}

/// The length of the file, which formats 0.x and 1.0 call differently; none where the header's size is it.
pub(super) fn real_size(pax: &Pax) -> Result<Option<i64>, Problem> {
    match (&pax.sparse.size[..], &pax.sparse.real_size[..]) {
        (b"", b"") => Ok(None),
        (b"", size) | (size, _) => parse_decimal("GNU.sparse.size", size).map(Some),
    }
}

/// Format 0.1: `offset,length,offset,length`.
fn parse_map(map: &[u8]) -> Result<Vec<Segment>, Problem> {
    if map.is_empty() {
        return Ok(Vec::new());
    }
    let mut numbers = map.split(|byte| *byte == b',');
    let mut segments = Vec::new();
    while let Some(offset) = numbers.next() {
        let length = numbers.next().ok_or(Problem::Sparse("an offset without a length"))?;
        segments.push(Segment { offset: parse_number(offset)?, length: parse_number(length)? });
    }
    Ok(segments)
}

/// A decimal number that is no smaller than 0.
pub(super) fn parse_number(bytes: &[u8]) -> Result<u64, Problem> {
    let number = parse_decimal("sparse map", bytes)?;
    u64::try_from(number).map_err(|_| Problem::Range { field: "sparse map", value: number })
}

/// The length of an old GNU sparse file.
pub(super) fn old_gnu_size(block: &Block) -> Result<i64, Problem> {
    parse_field("real size", field(block, 483, 12))
}

/// Old GNU headers hold 4 segments, each continuation block 21.
pub(super) enum OldGnu<'a> {
    /// The header itself.
    Header(&'a Block),
    /// A block that follows it.
    Continuation(&'a Block),
}

impl OldGnu<'_> {
    /// Adds this block's segments; says whether another block follows.
    pub(super) fn read(&self, segments: &mut Vec<Segment>, budget: &Budget) -> Result<bool, Problem> {
        let (map, more) = match self {
            OldGnu::Header(block) => (field(block, 386, 96), field(block, 482, 1)),
            OldGnu::Continuation(block) => (field(block, 0, 504), field(block, 504, 1)),
        };
        for pair in map.chunks_exact(24) {
            let (offset, length) = pair.split_at_checked(12).unwrap_or_default();
            if offset.first() == Some(&0) {
                break;
            }
            let [offset, length] =
                [("sparse offset", offset), ("sparse length", length)].map(|(name, bytes)| {
                    let value = parse_field(name, bytes)?;
                    u64::try_from(value).map_err(|_| Problem::Range { field: name, value })
                });
            segments.push(Segment { offset: offset?, length: length? });
        }
        check_count(segments.len(), budget)?;
        Ok(more != [0])
    }
}

/// Reads a format 1.0 map, which lies in whole blocks before the data: a count and that many pairs, a number a line.
#[derive(Debug, Default)]
pub(super) struct MapInData {
    number: Option<u64>,
    count: Option<usize>,
    offset: Option<u64>,
    segments: Vec<Segment>,
}

impl MapInData {
    /// Takes the next block; gives the map when it is complete. What is left of the block is padding.
    pub(super) fn take(&mut self, block: &Block, budget: &Budget) -> Result<Option<Vec<Segment>>, Problem> {
        for byte in block {
            match byte {
                b'0'..=b'9' => {
                    let digit = u64::from(byte - b'0');
                    let number = self.number.unwrap_or(0).checked_mul(10).and_then(|n| n.checked_add(digit));
                    self.number = Some(number.ok_or(Problem::Sparse("a number is too large"))?);
                }
                b'\n' => {
                    let number = self.number.take().ok_or(Problem::Sparse("an empty line"))?;
                    self.take_number(number, budget)?;
                    if self.count == Some(self.segments.len()) && self.offset.is_none() {
                        return Ok(Some(std::mem::take(&mut self.segments)));
                    }
                }
                _ => return Err(Problem::Sparse("something that is no number")),
            }
        }
        Ok(None)
    }

    fn take_number(&mut self, number: u64, budget: &Budget) -> Result<(), Problem> {
        match (self.count, self.offset.take()) {
            (None, _) => {
                let count = usize::try_from(number).unwrap_or(usize::MAX);
                check_count(count, budget)?;
                self.count = Some(count);
            }
            (Some(_), None) => self.offset = Some(number),
            (Some(_), Some(offset)) => self.segments.push(Segment { offset, length: number }),
        }
        Ok(())
    }
}

/// The map must ascend without overlap, stay inside the file and account for every stored byte. Empty segments, which
/// tar writes to mark the end, are dropped.
pub(super) fn check_map(mut segments: Vec<Segment>, size: u64, stored: u64) -> Result<Vec<Segment>, Problem> {
    let mut end = 0;
    let mut total: u64 = 0;
    for segment in &segments {
        if segment.offset < end {
            return Err(Problem::Sparse("segments overlap or are out of order"));
        }
        end = segment
            .end()
            .filter(|end| *end <= size)
            .ok_or(Problem::Sparse("a segment ends beyond the file"))?;
        total = total.checked_add(segment.length).ok_or(Problem::Sparse("segments are too long"))?;
    }
    if total != stored {
        return Err(Problem::Sparse("segments and stored data differ in length"));
    }
    segments.retain(|segment| segment.length > 0);
    Ok(segments)
}

fn check_count(count: usize, budget: &Budget) -> Result<(), Problem> {
    Ok(budget.check_len(Limit::Segments, count)?)
}
