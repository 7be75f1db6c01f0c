//! Directory listings: entries in runs under headers, and the index that spares a search most of them.

use crate::squashfs::format::{DIRECTORY_RUN_MAX, InodeRef, METADATA_BLOCK_SIZE};
use crate::squashfs::writer::WriteError;
use crate::squashfs::writer::metadata::{MetadataStream, Position};

const HEADER_SIZE: usize = 12;
const ENTRY_SIZE: usize = 8;

/// One entry as it goes into the listing.
#[derive(Debug, Clone, Copy)]
pub(super) struct ListedEntry<'a> {
    pub(super) name: &'a [u8],
    pub(super) inode: InodeRef,
    pub(super) number: u32,
    /// Basic inode type.
    pub(super) entry_type: u16,
}

/// Where a listing lies, for its directory's inode.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) position: Position,
    /// Bytes of headers and entries.
    pub(super) size: u32,
    /// Index entries as in the extended inode.
    pub(super) index: Vec<u8>,
    pub(super) index_count: u16,
}

/// Writes the listing of one directory; `entries` are sorted by name.
pub(super) fn write_listing(
    stream: &mut MetadataStream,
    mut entries: &[ListedEntry<'_>],
) -> Result<Listing, WriteError> {
    let position = stream.position();
    let mut listing = Listing { position, size: 0, index: Vec::new(), index_count: 0 };
    let mut indexed_block = position.block;
    let mut bytes = Vec::new();
    while let Some(first) = entries.first() {
        let at = stream.position();
        if at.block != indexed_block && listing.index_count < u16::MAX {
            listing.push_index(at, first.name)?;
            indexed_block = at.block;
        }
        let (run, rest) = entries.split_at(run_length(entries, first, at.offset));
        entries = rest;
        bytes.clear();
        encode_run(run, first, &mut bytes)?;
        stream.write(&bytes)?;
        listing.size = u32::try_from(bytes.len())
            .ok()
            .and_then(|length| listing.size.checked_add(length))
            .ok_or(LISTING_TOO_LARGE)?;
    }
    Ok(listing)
}

const LISTING_TOO_LARGE: WriteError =
    WriteError::TooMany { what: "bytes in one directory", limit: u32::MAX as u64 };
const TABLE_TOO_LARGE: WriteError =
    WriteError::TooMany { what: "bytes of compressed directories or inodes", limit: u32::MAX as u64 };

impl Listing {
    /// Notes that a header with `name` first lies at `position`. Only listings of several metadata blocks
    /// come here.
    fn push_index(&mut self, position: Position, name: &[u8]) -> Result<(), WriteError> {
        let block = u32::try_from(position.block).map_err(|_| TABLE_TOO_LARGE)?;
        self.index.extend(self.size.to_le_bytes());
        self.index.extend(block.to_le_bytes());
        self.index.extend(u32::from(length_minus_one(name)).to_le_bytes());
        self.index.extend_from_slice(name);
        self.index_count += 1;
        Ok(())
    }
}

/// How many entries may share a header: up to 256 with inodes in one metadata block and numbers 16 bits
/// apart. A header ends with the metadata block it began in, so that each block of the listing has one for
/// the index to point to.
fn run_length(entries: &[ListedEntry<'_>], first: &ListedEntry<'_>, offset: u16) -> usize {
    let mut at = usize::from(offset) + HEADER_SIZE;
    let fits = |entry: &&ListedEntry<'_>| {
        let begins_at = at;
        at += ENTRY_SIZE + entry.name.len();
        entry.inode.block() == first.inode.block()
            && number_delta(entry, first).is_some()
            && begins_at < METADATA_BLOCK_SIZE
    };
    // The first goes with its header in any case.
    entries.iter().take(DIRECTORY_RUN_MAX).take_while(fits).count().max(1)
}

fn number_delta(entry: &ListedEntry<'_>, first: &ListedEntry<'_>) -> Option<i16> {
    i16::try_from(i64::from(entry.number) - i64::from(first.number)).ok()
}

fn encode_run(
    run: &[ListedEntry<'_>],
    first: &ListedEntry<'_>,
    bytes: &mut Vec<u8>,
) -> Result<(), WriteError> {
    let count_minus_one = u32::try_from(run.len().saturating_sub(1)).unwrap_or(u32::MAX);
    let block = u32::try_from(first.inode.block()).map_err(|_| TABLE_TOO_LARGE)?;
    bytes.extend(count_minus_one.to_le_bytes());
    bytes.extend(block.to_le_bytes());
    bytes.extend(first.number.to_le_bytes());
    for entry in run {
        bytes.extend(entry.inode.offset().to_le_bytes());
        bytes.extend(number_delta(entry, first).unwrap_or_default().to_le_bytes());
        bytes.extend(entry.entry_type.to_le_bytes());
        bytes.extend(length_minus_one(entry.name).to_le_bytes());
        bytes.extend_from_slice(entry.name);
    }
    Ok(())
}

/// As the format stores the length of a name, which is 1 to 256.
fn length_minus_one(name: &[u8]) -> u16 {
    u16::try_from(name.len().saturating_sub(1)).unwrap_or(u16::MAX)
}
