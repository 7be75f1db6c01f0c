//! What names and inodes cost in memory: while layers are merged, and at the end, when the same names are in the tree
//! that the squashfs writer takes and in the tables that it makes of them.
//!
//! Estimates from above, held against measured runs by `tests/it/budgets.rs`: whatever an image holds, the bytes that a
//! budget admits bound what the process takes.

use crate::squashfs::writer::Inode;

/// Memory that an allocator takes for `length` bytes: a header, rounded up to 16 (glibc).
pub(super) fn allocated(length: usize) -> u64 {
    (length as u64).saturating_add(8).next_multiple_of(16).max(32)
}

/// What a part of the result will take once it is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Written {
    /// In the finished tree.
    pub(super) tree: u64,
    /// In the writer's tables, when what the merge knows besides the tree is freed.
    pub(super) tables: u64,
}

/// Of a directory's entry in the tree: name and inode, once more while its directory is sorted.
const ENTRY: u64 = 2 * size_of::<(Vec<u8>, u32)>() as u64;
/// Of an inode while it is numbered and written: numbers, links, parent, reference, file record, its share of the inode
/// and directory tables.
const TABLES: u64 = 96;
/// Of an xattr in the writer: its place by digest, twice.
const XATTR_TABLES: u64 = 128;

/// What the writer remembers of `files` stored files: where each is, and its digest, so that equal ones are stored once.
pub(super) fn stored(files: usize) -> u64 {
    const RECORD: u64 = 24;
    table(files, files, size_of::<([u8; 32], (u32, u32))>()) + RECORD * files as u64
}

impl Written {
    /// A name of `length` bytes with an inode of its own.
    pub(super) fn name(length: usize) -> Written {
        let inode = (size_of::<Inode>() + size_of::<Option<u32>>()) as u64;
        Written { tree: ENTRY + allocated(length) + inode, tables: TABLES + length as u64 }
    }

    /// The target of a symbolic link.
    pub(super) fn target(length: usize) -> Written {
        Written { tree: allocated(length), tables: length as u64 }
    }

    /// The attributes of one inode.
    pub(super) fn xattrs(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Written {
        let mut written = Written { tree: allocated(size_of_val(xattrs)), tables: 0 };
        for (name, value) in xattrs {
            written.tree += allocated(name.len()) + allocated(value.len());
            written.tables += XATTR_TABLES + (name.len() + value.len()) as u64;
        }
        written
    }

    pub(super) fn add(&mut self, other: Written) {
        self.tree = self.tree.saturating_add(other.tree);
        self.tables = self.tables.saturating_add(other.tables);
    }
}

/// A hash table of `items` of `size` bytes each that is about to hold `wanted`. While it grows there are two.
pub(super) fn table(capacity: usize, wanted: usize, size: usize) -> u64 {
    // hashbrown: a byte of its own for each bucket, at most seven of eight in use.
    let bytes = |items: usize| match items {
        0 => 0,
        items => ((items as u64 * 8).div_ceil(7).next_power_of_two().max(4)) * (size as u64 + 1),
    };
    if wanted <= capacity { bytes(capacity) } else { bytes(capacity) + bytes(wanted) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_and_tables() {
        assert_eq!([0, 24, 25, 40, 41, 255].map(allocated), [32, 32, 48, 48, 64, 272]);
        assert_eq!(table(0, 0, 12), 0);
        assert_eq!(table(7, 7, 12), 8 * 13);
        assert_eq!(table(7, 8, 12), 8 * 13 + 16 * 13);
        assert_eq!(table(14, 3, 12), 16 * 13);
    }
}
