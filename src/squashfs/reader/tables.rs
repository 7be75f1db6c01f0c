//! Where the tables lie, and the four that are reached through an index: ids, fragments, exports, xattr ids.
//!
//! Such a table is a row of fixed-size entries in metadata blocks; its index lists their positions, 8 bytes each, and
//! the superblock names the index. Only the ids are read at open (they fill one block in practice, 32 at most).

use std::sync::Arc;

use super::image::Image;
use super::metadata::MetadataBlock;
use super::{Filesystem, ReadError};
use crate::squashfs::format::{InodeRef, METADATA_BLOCK_SIZE, NO_TABLE, SUPERBLOCK_SIZE, Superblock};

/// A part of the image that holds metadata blocks. Positions count from the superblock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Region {
    /// For messages: `inode table`.
    pub(super) name: &'static str,
    pub(super) start: u64,
    /// First position behind it.
    pub(super) end: u64,
}

impl Region {
    /// The most bytes that the metadata blocks from `position` on can hold: the smallest block takes 3 bytes.
    pub(super) fn capacity_from(&self, position: u64) -> u64 {
        let blocks = self.end.saturating_sub(position) / 3;
        blocks.saturating_mul(METADATA_BLOCK_SIZE as u64)
    }
}

/// A table behind an index.
#[derive(Debug, Clone, Copy)]
pub(super) struct IndexedTable {
    /// Where its metadata blocks may lie.
    blocks: Region,
    /// Where its index lies.
    index: u64,
    /// Number of entries.
    pub(super) count: u64,
    /// Bytes an entry.
    entry_size: u64,
}

impl IndexedTable {
    fn metadata_blocks(&self) -> u64 {
        self.count.saturating_mul(self.entry_size).div_ceil(METADATA_BLOCK_SIZE as u64)
    }

    fn index_size(&self) -> u64 {
        self.metadata_blocks().saturating_mul(8)
    }
}

/// The checked positions of everything but file data.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) inodes: Region,
    pub(super) directories: Region,
    pub(super) fragments: Option<IndexedTable>,
    pub(super) exports: Option<IndexedTable>,
    pub(super) ids: IndexedTable,
    pub(super) xattrs: Option<XattrTable>,
}

/// The xattr table: pairs of names and values, and an index of the lists of pairs.
#[derive(Debug, Clone, Copy)]
pub(super) struct XattrTable {
    pub(super) pairs: Region,
    pub(super) lists: IndexedTable,
}

/// Bytes of the xattr table's header, in front of its index.
const XATTR_HEADER_SIZE: usize = 16;

impl Tables {
    /// Checks that every table lies inside the image, in the order that the kernel demands, and that every count
    /// fits its index.
    pub(super) fn locate(image: &Image, superblock: &Superblock) -> Result<Tables, ReadError> {
        let end = superblock.bytes_used;
        let present = |start: u64, wanted: bool| (wanted && start != NO_TABLE).then_some(start);
        let fragments = present(superblock.fragment_table, superblock.fragment_count > 0);
        let exports = present(superblock.export_table, true);
        let xattrs = present(superblock.xattr_table, true);
        if superblock.fragment_count > 0 && fragments.is_none() {
            return Err(image.corrupt(16, format!("{} fragments without a table", superblock.fragment_count)));
        }
        let mut order =
            vec![("inode table", superblock.inode_table), ("directory table", superblock.directory_table)];
        order.extend(fragments.map(|start| ("fragment table", start)));
        order.extend(exports.map(|start| ("export table", start)));
        order.push(("id table", superblock.id_table));
        order.extend(xattrs.map(|start| ("xattr table", start)));
        check_order(image, &order, end)?;

        let after = |start: u64| order.iter().map(|(_, at)| *at).find(|at| *at > start).unwrap_or(end);
        let inodes =
            Region { name: "inode table", start: superblock.inode_table, end: superblock.directory_table };
        let directories = Region {
            name: "directory table",
            start: superblock.directory_table,
            end: after(superblock.directory_table),
        };
        let indexed = |name, index, count, entry_size| {
            let blocks = Region { name, start: superblock.directory_table, end: index };
            let table = IndexedTable { blocks, index, count, entry_size };
            check_index(image, &table, after(index)).map(|()| table)
        };
        if superblock.id_count == 0 {
            return Err(image.corrupt(26, "no user or group ids"));
        }
        Ok(Tables {
            inodes,
            directories,
            fragments: fragments
                .map(|at| indexed("fragment table", at, superblock.fragment_count.into(), 16))
                .transpose()?,
            exports: exports
                .map(|at| indexed("export table", at, superblock.inode_count.into(), 8))
                .transpose()?,
            ids: indexed("id table", superblock.id_table, superblock.id_count.into(), 4)?,
            xattrs: xattrs.map(|at| locate_xattrs(image, at, superblock)).transpose()?.flatten(),
        })
    }
}

/// Reads the xattr table's header; nothing if it lists no xattrs.
fn locate_xattrs(image: &Image, at: u64, superblock: &Superblock) -> Result<Option<XattrTable>, ReadError> {
    if superblock.bytes_used - at < XATTR_HEADER_SIZE as u64 {
        return Err(image.corrupt(at, "xattr table runs past the end of the image"));
    }
    let mut header = [0; XATTR_HEADER_SIZE];
    image.read(at, &mut header)?;
    let [pairs, rest] = [0, 8].map(|from| le_u64(&header, from));
    let count = rest & u64::from(u32::MAX);
    if count == 0 {
        return Ok(None);
    }
    if pairs < superblock.directory_table || pairs >= at {
        return Err(
            image.corrupt(at, format!("xattr table starts at {pairs}, outside the metadata before it"))
        );
    }
    let pairs = Region { name: "xattr table", start: pairs, end: at };
    let lists = IndexedTable { blocks: pairs, index: at + XATTR_HEADER_SIZE as u64, count, entry_size: 16 };
    check_index(image, &lists, superblock.bytes_used)?;
    Ok(Some(XattrTable { pairs, lists }))
}

/// The kernel refuses tables in another order (`fs/squashfs/super.c`), and no known writer makes one.
fn check_order(image: &Image, order: &[(&str, u64)], end: u64) -> Result<(), ReadError> {
    let mut previous = ("superblock", SUPERBLOCK_SIZE as u64 - 1);
    for &(name, start) in order {
        if start >= end {
            return Err(image.corrupt(
                0,
                format!("superblock puts the {name} at {start}, past the end of the image at {end}"),
            ));
        }
        if start <= previous.1 {
            let (before, at) = previous;
            return Err(image.corrupt(
                0,
                format!("superblock puts the {name} at {start}, not after the {before} at {at}"),
            ));
        }
        previous = (name, start);
    }
    Ok(())
}

fn check_index(image: &Image, table: &IndexedTable, end: u64) -> Result<(), ReadError> {
    if table.index.checked_add(table.index_size()).is_none_or(|behind| behind > end) {
        let what = format!("index of {} entries of the {} does not fit", table.count, table.blocks.name);
        return Err(image.corrupt(table.index, what));
    }
    Ok(())
}

impl Filesystem {
    /// All user and group ids.
    pub(super) fn load_ids(&self) -> Result<Box<[u32]>, ReadError> {
        let table = self.tables.ids;
        (0..table.count).map(|at| self.table_entry(&table, at).map(u32::from_le_bytes)).collect()
    }

    /// Entry `at` of a table; `N` is its entry size.
    pub(super) fn table_entry<const N: usize>(
        &self,
        table: &IndexedTable,
        at: u64,
    ) -> Result<[u8; N], ReadError> {
        let name = table.blocks.name;
        if at >= table.count {
            let what = format!("entry {at} of the {name} is wanted, it has {}", table.count);
            return Err(self.image.corrupt(table.index, what));
        }
        let byte = at * table.entry_size;
        let position = self.index_entry(table, byte / METADATA_BLOCK_SIZE as u64)?;
        let block = self.metadata_block(&table.blocks, position)?;
        let within = usize::try_from(byte % METADATA_BLOCK_SIZE as u64).unwrap_or(usize::MAX);
        block
            .bytes
            .get(within..)
            .and_then(|rest| rest.first_chunk())
            .copied()
            .ok_or_else(|| self.image.corrupt(position, format!("{name} ends before its entry {at}")))
    }

    /// The position of metadata block `at` of a table, out of the table's index.
    fn index_entry(&self, table: &IndexedTable, at: u64) -> Result<u64, ReadError> {
        let byte = at * 8;
        let page = byte - byte % METADATA_BLOCK_SIZE as u64;
        let length = (table.index_size() - page).min(METADATA_BLOCK_SIZE as u64);
        let position = table.index + page;
        let bytes = self.index_page(position, usize::try_from(length).unwrap_or(METADATA_BLOCK_SIZE))?;
        Ok(le_u64(&bytes.bytes, usize::try_from(byte - page).unwrap_or(usize::MAX)))
    }

    /// A piece of an index, through the metadata cache: an index is as long as its image likes it to be.
    fn index_page(&self, position: u64, length: usize) -> Result<Arc<MetadataBlock>, ReadError> {
        self.metadata.get((position, Some(length)), || {
            let mut bytes = vec![0; length];
            self.image.read(position, &mut bytes)?;
            Ok((Arc::new(MetadataBlock { bytes: bytes.into(), next: position }), length))
        })
    }

    /// The inode of a number, out of the export table; nothing where the image has no such table or the table no such
    /// number.
    pub fn inode_by_number(&self, number: u32) -> Result<Option<InodeRef>, ReadError> {
        match (&self.tables.exports, u64::from(number).checked_sub(1)) {
            (Some(table), Some(at)) if at < table.count => {
                Ok(Some(InodeRef(u64::from_le_bytes(self.table_entry(table, at)?))))
            }
            _ => Ok(None),
        }
    }
}

/// Eight bytes at `at`; the caller has checked that they are there.
fn le_u64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(NO_TABLE, |chunk| u64::from_le_bytes(*chunk))
}
