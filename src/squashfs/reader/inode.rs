//! Decoding inodes: every count is bounded by the inode table before anything is allocated.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::data::FragmentPart;
use super::directory::DirectoryIndex;
use super::metadata::{Cursor, MetadataPosition};
use super::tables::Region;
use super::{Directory, FileLayout, Filesystem, Inode, InodeKind, ReadError};
use crate::squashfs::format::{InodeRef, NO_FRAGMENT, NO_XATTR, inode_type};

/// Longest symbolic link target, bytes. The kernel's own limit is a page.
const SYMLINK_MAX: u32 = 65_535;
/// A directory's stated size counts this much for `.` and `..`, which are not stored.
const DOTS_SIZE: u32 = 3;
/// Most inodes of other kinds in a row among files that follow each other.
const INODES_PASSED: u32 = 256;
/// Longest block list, or directory index, that is passed over on the way to the next inode: entries.
const LIST_PASSED: u64 = 4096;
/// The smallest run of a listing: a header and one entry with a name of one byte.
const RUN_MIN: u32 = 12 + 8 + 1;

impl Directory {
    /// `st_size`: the bytes of the listing and, as the format counts, three for `.` and `..`.
    pub fn size(&self) -> u64 {
        u64::from(self.size) + u64::from(DOTS_SIZE)
    }
}

impl Filesystem {
    /// Decodes an inode.
    pub fn inode(&self, reference: InodeRef) -> Result<Inode, ReadError> {
        let mut cursor = self.inode_cursor(reference)?;
        self.decode_inode(reference, &mut cursor)
    }

    /// The files that follow `reference` in the inode table, until `each` breaks or the table ends, or until going on would
    /// take long: this is for reading ahead. Writers put the entries of a directory there in the order of their names.
    pub fn files_after(
        &self,
        reference: InodeRef,
        each: &mut dyn FnMut(InodeRef, FileLayout) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let mut cursor = self.inode_cursor(reference)?;
        let mut inode = self.decode_inode(reference, &mut cursor)?;
        let mut passed = 0;
        while passed < INODES_PASSED && !is_long(&inode.kind) {
            skip_list(&inode.kind, &mut cursor)?;
            let Some(here) = cursor.next_byte()? else { return Ok(()) };
            let reference = InodeRef::new(here.block - self.tables.inodes.start, here.byte);
            inode = self.decode_inode(reference, &mut cursor)?;
            passed += 1;
            if let InodeKind::File(layout) = &inode.kind {
                passed = 0;
                if each(reference, layout.clone()).is_break() {
                    break;
                }
            }
        }
        Ok(())
    }

    fn inode_cursor(&self, reference: InodeRef) -> Result<Cursor<'_>, ReadError> {
        let region = self.tables.inodes;
        let at = MetadataPosition {
            block: region.start.saturating_add(reference.block()),
            byte: reference.offset(),
        };
        Cursor::new(self, region, at)
    }

    /// The inode at the cursor, which then stands in front of its block list or directory index, if it has one.
    fn decode_inode(&self, reference: InodeRef, cursor: &mut Cursor<'_>) -> Result<Inode, ReadError> {
        let type_id = cursor.u16()?;
        let mode = cursor.u16()? & 0o7777;
        let (uid, gid) = (cursor.u16()?, cursor.u16()?);
        let mtime = cursor.u32()?;
        let number = cursor.u32()?;
        if number == 0 || number > self.superblock.inode_count {
            let what = format!("inode number {number}, the image has 1 to {}", self.superblock.inode_count);
            return Err(cursor.corrupt(what));
        }
        let body = self.inode_body(type_id, cursor)?;
        Ok(Inode {
            reference,
            number,
            mode,
            uid: self.id(uid, number, cursor)?,
            gid: self.id(gid, number, cursor)?,
            mtime,
            // A link count of 0 says "deleted" to whoever caches inodes, which nothing that can be found is.
            nlink: body.nlink.max(1),
            xattr: self.xattr_index(body.xattr, number, cursor)?,
            kind: body.kind,
        })
    }

    fn id(&self, index: u16, number: u32, cursor: &Cursor<'_>) -> Result<u32, ReadError> {
        self.ids.get(usize::from(index)).copied().ok_or_else(|| {
            cursor.corrupt(format!("inode {number} has id index {index} of {} ids", self.ids.len()))
        })
    }

    /// An image without an xattr table has no xattrs, whatever its inodes say: so does the kernel read it.
    fn xattr_index(&self, index: u32, number: u32, cursor: &Cursor<'_>) -> Result<Option<u32>, ReadError> {
        match &self.tables.xattrs {
            Some(table) if index != NO_XATTR && u64::from(index) >= table.lists.count => {
                Err(cursor
                    .corrupt(format!("inode {number} has xattr index {index} of {}", table.lists.count)))
            }
            Some(_) if index != NO_XATTR => Ok(Some(index)),
            _ => Ok(None),
        }
    }

    fn inode_body(&self, type_id: u16, cursor: &mut Cursor<'_>) -> Result<Body, ReadError> {
        use inode_type::{BLOCK_DEVICE, CHARACTER_DEVICE, DIRECTORY, EXTENDED, FIFO, FILE, SOCKET, SYMLINK};
        const EXTENDED_DIRECTORY: u16 = DIRECTORY + EXTENDED;
        const EXTENDED_FILE: u16 = FILE + EXTENDED;
        match type_id {
            DIRECTORY => self.basic_directory(cursor),
            EXTENDED_DIRECTORY => self.extended_directory(cursor),
            FILE => self.basic_file(cursor),
            EXTENDED_FILE => self.extended_file(cursor),
            _ => {
                let (basic, extended) =
                    if type_id > EXTENDED { (type_id - EXTENDED, true) } else { (type_id, false) };
                let nlink = cursor.u32()?;
                let kind = match basic {
                    SYMLINK => InodeKind::Symlink(symlink_target(cursor)?),
                    BLOCK_DEVICE => device(cursor.u32()?, InodeKind::BlockDevice),
                    CHARACTER_DEVICE => device(cursor.u32()?, InodeKind::CharacterDevice),
                    FIFO => InodeKind::Fifo,
                    SOCKET => InodeKind::Socket,
                    _ => return Err(cursor.corrupt(format!("inode type {type_id}"))),
                };
                let xattr = if extended { cursor.u32()? } else { NO_XATTR };
                Ok(Body { nlink, xattr, kind })
            }
        }
    }

    fn basic_directory(&self, cursor: &mut Cursor<'_>) -> Result<Body, ReadError> {
        let block = cursor.u32()?;
        let nlink = cursor.u32()?;
        let size = u32::from(cursor.u16()?);
        let byte = cursor.u16()?;
        let parent = cursor.u32()?;
        let kind = self.directory_kind(cursor, Listing { block, byte, size }, parent, 0)?;
        Ok(Body { nlink, xattr: NO_XATTR, kind })
    }

    fn extended_directory(&self, cursor: &mut Cursor<'_>) -> Result<Body, ReadError> {
        let nlink = cursor.u32()?;
        let size = cursor.u32()?;
        let block = cursor.u32()?;
        let parent = cursor.u32()?;
        let index_count = cursor.u16()?;
        let byte = cursor.u16()?;
        let xattr = cursor.u32()?;
        let kind = self.directory_kind(cursor, Listing { block, byte, size }, parent, index_count)?;
        Ok(Body { nlink, xattr, kind })
    }

    /// A directory whose index, if any, begins where the cursor stands.
    fn directory_kind(
        &self,
        cursor: &Cursor<'_>,
        listing: Listing,
        parent: u32,
        index_count: u16,
    ) -> Result<InodeKind, ReadError> {
        let Some(size) = listing.size.checked_sub(DOTS_SIZE) else {
            return Err(cursor.corrupt(format!("directory of size {}, less than 3", listing.size)));
        };
        let region = self.tables.directories;
        let block = region.start.saturating_add(listing.block.into());
        if size > 0 && !fits(&region, block, size.into()) {
            let what =
                format!("directory listing of {size} bytes at {block} does not fit the directory table");
            return Err(cursor.corrupt(what));
        }
        // Each index entry stands for at least one run of the listing.
        if u32::from(index_count) > size / RUN_MIN {
            return Err(cursor.corrupt(format!("directory index of {index_count} entries for {size} bytes")));
        }
        Ok(InodeKind::Directory(Directory {
            first: MetadataPosition { block, byte: listing.byte },
            size,
            parent,
            index: (index_count > 0).then(|| DirectoryIndex { first: cursor.here(), count: index_count }),
        }))
    }

    fn basic_file(&self, cursor: &mut Cursor<'_>) -> Result<Body, ReadError> {
        let start = u64::from(cursor.u32()?);
        let fragment = FragmentPart { index: cursor.u32()?, byte: cursor.u32()? };
        let size = u64::from(cursor.u32()?);
        let kind = self.file_kind(cursor, start, size, fragment)?;
        Ok(Body { nlink: 1, xattr: NO_XATTR, kind })
    }

    fn extended_file(&self, cursor: &mut Cursor<'_>) -> Result<Body, ReadError> {
        let start = cursor.u64()?;
        let size = cursor.u64()?;
        let _hole_bytes = cursor.u64()?;
        let nlink = cursor.u32()?;
        let fragment = FragmentPart { index: cursor.u32()?, byte: cursor.u32()? };
        let xattr = cursor.u32()?;
        let kind = self.file_kind(cursor, start, size, fragment)?;
        Ok(Body { nlink, xattr, kind })
    }

    /// A file whose block list begins where the cursor stands. The list is not read: its stated length is only
    /// checked against what the table can hold, so that no lie about the size costs memory.
    fn file_kind(
        &self,
        cursor: &Cursor<'_>,
        start: u64,
        size: u64,
        fragment: FragmentPart,
    ) -> Result<InodeKind, ReadError> {
        let block_size = u64::from(self.superblock.block_size);
        let fragment = (fragment.index != NO_FRAGMENT).then_some(fragment);
        let blocks = if fragment.is_some() { size / block_size } else { size.div_ceil(block_size) };
        let list = cursor.here();
        if i64::try_from(size).is_err() || !fits(&self.tables.inodes, list.block, blocks.saturating_mul(4)) {
            let what =
                format!("file of {size} bytes needs a list of {blocks} blocks, more than the table holds");
            return Err(cursor.corrupt(what));
        }
        if blocks > 0 && start >= self.superblock.bytes_used {
            return Err(cursor.corrupt(format!("file data at {start}, past the end of the image")));
        }
        if let Some(part) = fragment {
            self.check_fragment(&part, size % block_size).map_err(|what| cursor.corrupt(what))?;
        }
        Ok(InodeKind::File(FileLayout { size, start, blocks, list, fragment }))
    }

    fn check_fragment(&self, part: &FragmentPart, length: u64) -> Result<(), String> {
        let count = self.tables.fragments.map_or(0, |table| table.count);
        if u64::from(part.index) >= count {
            return Err(format!("file with fragment {} of {count}", part.index));
        }
        if u64::from(part.byte) + length > self.superblock.block_size.into() {
            return Err(format!(
                "file tail of {length} bytes at byte {} of a fragment, past its end",
                part.byte
            ));
        }
        Ok(())
    }
}

/// Passes over what follows an inode: a file's block list, a directory's index.
fn skip_list(kind: &InodeKind, cursor: &mut Cursor<'_>) -> Result<(), ReadError> {
    match kind {
        InodeKind::File(layout) => cursor.skip(layout.blocks.saturating_mul(4)),
        InodeKind::Directory(Directory { index: Some(index), .. }) => {
            for _ in 0..index.count {
                cursor.skip(8)?;
                let stored_length = cursor.u32()?;
                cursor.skip(u64::from(stored_length) + 1)?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Whether passing over what follows an inode would take long.
fn is_long(kind: &InodeKind) -> bool {
    match kind {
        InodeKind::File(layout) => layout.blocks > LIST_PASSED,
        InodeKind::Directory(Directory { index: Some(index), .. }) => u64::from(index.count) > LIST_PASSED,
        _ => false,
    }
}

/// What follows an inode's header.
struct Body {
    nlink: u32,
    xattr: u32,
    kind: InodeKind,
}

/// Where a directory's listing begins, with the size that its inode states.
struct Listing {
    block: u32,
    byte: u16,
    size: u32,
}

/// Whether `length` bytes can follow the start of the metadata block at `block`.
fn fits(region: &Region, block: u64, length: u64) -> bool {
    block < region.end && length <= region.capacity_from(block)
}

fn symlink_target(cursor: &mut Cursor<'_>) -> Result<Arc<[u8]>, ReadError> {
    let size = cursor.u32()?;
    if size == 0 || size > SYMLINK_MAX {
        return Err(cursor.corrupt(format!("symbolic link of {size} bytes, not 1 to {SYMLINK_MAX}")));
    }
    let mut target = vec![0; usize::try_from(size).unwrap_or_default()];
    cursor.read(&mut target)?;
    if target.contains(&0) {
        return Err(cursor.corrupt("symbolic link with a NUL byte"));
    }
    Ok(target.into())
}

/// Splits a device number as the kernel's `new_decode_dev` does: minor bits 0..8 and 20..32, major bits 8..20.
fn device(number: u32, kind: fn(u32, u32) -> InodeKind) -> InodeKind {
    kind((number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & 0xf_ff00))
}
