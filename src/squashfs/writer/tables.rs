//! Everything after the data: the tree as inodes and listings, the tables beside them, and the superblock at
//! last.

use std::collections::HashMap;
use std::fs::File;

use crate::squashfs::format::{InodeRef, NO_TABLE, PADDING, Superblock, flags, inode_type};
use crate::squashfs::writer::chunks::{Chunk, Chunks};
use crate::squashfs::writer::directory::{ListedEntry, Listing, write_listing};
use crate::squashfs::writer::file::FileRecord;
use crate::squashfs::writer::ids::IdTable;
use crate::squashfs::writer::inode::Header;
use crate::squashfs::writer::metadata::{MetadataStream, lookup_table};
use crate::squashfs::writer::numbering::{Numbering, inode, sorted_entries};
use crate::squashfs::writer::output::Layout;
use crate::squashfs::writer::sink::Sink;
use crate::squashfs::writer::xattr::XattrTable;
use crate::squashfs::writer::{Inode, InodeIndex, InodeKind, Tree, WriteError, WriterOptions};

/// The end of an image whose data is stored.
#[derive(Debug)]
pub(super) struct End {
    pub(super) sink: Sink,
    pub(super) chunks: Chunks,
    /// What the image begins with, where the superblock is still missing.
    pub(super) head: Vec<u8>,
}

impl End {
    fn position(&self) -> u64 {
        self.sink.position()
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.chunks.push_table(bytes);
        self.sink.append(bytes)
    }

    fn finish(mut self, superblock: &Superblock) -> Result<(File, Vec<Chunk>), WriteError> {
        let padding = self.position().next_multiple_of(PADDING) - self.position();
        self.sink.append(&vec![0; usize::try_from(padding).unwrap_or_default()])?;
        let superblock = superblock.to_bytes();
        if let Some(room) = self.head.first_chunk_mut() {
            *room = superblock;
        }
        Ok((self.sink.finish(&superblock)?, self.chunks.finish(&self.head)))
    }
}

/// Writes tables, padding and superblock; gives back the file, the superblock and all chunks.
///
/// The kernel takes the tables only in this order and without gaps (`fs/squashfs/super.c`).
pub(super) fn write(
    mut end: End,
    layout: &Layout,
    files: &[FileRecord],
    tree: &Tree,
    options: &WriterOptions,
) -> Result<(File, Superblock, Vec<Chunk>), WriteError> {
    let packed = TreePacker::new(layout, files, tree, options)?.pack()?;
    let inode_table = end.position();
    end.append(&packed.inodes)?;
    let directory_table = end.position();
    end.append(&packed.listings)?;
    let fragment_table = append_table(&mut end, &fragment_entries(layout), options)?;
    let export_table = append_table(&mut end, &packed.export, options)?;
    let id_table = append_table(&mut end, &packed.ids.to_bytes(), options)?;
    let mut xattr_table = NO_TABLE;
    if let Some((bytes, header)) = packed.xattrs.finish(end.position(), options)? {
        end.append(&bytes)?;
        xattr_table = header;
    }
    let bytes_used = end.position();
    let superblock = Superblock {
        inode_count: packed.inode_count,
        mkfs_time: options.mkfs_time,
        block_size: options.block_size,
        // The fragment packer counts in 32 bits.
        fragment_count: u32::try_from(layout.fragments.len()).unwrap_or(u32::MAX),
        codec_id: options.compression.codec() as u16,
        flags: flags::DUPLICATES
            | flags::EXPORTABLE
            | if xattr_table == NO_TABLE { flags::NO_XATTRS } else { 0 }
            | if options.compression.options().is_some() { flags::COMPRESSOR_OPTIONS } else { 0 },
        id_count: packed.ids.count(),
        root: packed.root,
        bytes_used,
        id_table,
        xattr_table,
        inode_table,
        directory_table,
        fragment_table,
        export_table,
    };
    let (file, chunks) = end.finish(&superblock)?;
    Ok((file, superblock, chunks))
}

fn fragment_entries(layout: &Layout) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(layout.fragments.len() * 16);
    for (start, size_word) in &layout.fragments {
        bytes.extend(start.to_le_bytes());
        bytes.extend(size_word.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
    }
    bytes
}

/// Appends a table; gives the position of its index, or [`NO_TABLE`] if it is empty.
fn append_table(end: &mut End, entries: &[u8], options: &WriterOptions) -> Result<u64, WriteError> {
    if entries.is_empty() {
        return Ok(NO_TABLE);
    }
    let position = end.position();
    let table = lookup_table(entries, position, &[], options)?;
    end.append(&table.bytes)?;
    Ok(position + table.index as u64)
}

/// A whole tree in its on-disk form.
struct PackedTree {
    inodes: Vec<u8>,
    listings: Vec<u8>,
    /// Inode references in the order of inode numbers.
    export: Vec<u8>,
    ids: IdTable,
    xattrs: XattrTable,
    root: InodeRef,
    inode_count: u32,
}

/// Turns the tree into inodes and listings.
struct TreePacker<'a> {
    tree: &'a Tree,
    files: &'a [FileRecord],
    layout: &'a Layout,
    block_size: u32,
    numbering: Numbering,
    inodes: MetadataStream,
    listings: MetadataStream,
    ids: IdTable,
    xattrs: XattrTable,
    /// By inode number less one; `None` until written.
    references: Vec<Option<InodeRef>>,
    /// Of directories whose own inode is still to be written.
    written_listings: HashMap<InodeIndex, Listing>,
}

impl<'a> TreePacker<'a> {
    fn new(
        layout: &'a Layout,
        files: &'a [FileRecord],
        tree: &'a Tree,
        options: &WriterOptions,
    ) -> Result<TreePacker<'a>, WriteError> {
        let numbering = Numbering::walk(tree, files.len())?;
        Ok(TreePacker {
            tree,
            files,
            layout,
            block_size: options.block_size,
            inodes: MetadataStream::new(options)?,
            listings: MetadataStream::new(options)?,
            ids: IdTable::default(),
            xattrs: XattrTable::new(options)?,
            references: vec![None; usize::try_from(numbering.count).unwrap_or_default()],
            written_listings: HashMap::new(),
            numbering,
        })
    }

    /// From the leaves up: for each directory the inodes of its entries, side by side so that a listing with
    /// attributes reads few metadata blocks and few headers, then its listing. Its own inode comes with those
    /// of its siblings.
    fn pack(mut self) -> Result<PackedTree, WriteError> {
        let directories = std::mem::take(&mut self.numbering.directories);
        for directory in directories.iter().rev() {
            self.pack_directory(*directory)?;
        }
        let (root, _) = self.reference(self.tree.root)?;
        let export = self.references.iter().flat_map(|reference| {
            let InodeRef(bits) = reference.unwrap_or(root);
            bits.to_le_bytes()
        });
        Ok(PackedTree {
            export: export.collect(),
            inodes: self.inodes.finish()?,
            listings: self.listings.finish()?,
            ids: self.ids,
            xattrs: self.xattrs,
            root,
            inode_count: self.numbering.count,
        })
    }

    fn pack_directory(&mut self, directory: InodeIndex) -> Result<(), WriteError> {
        let entries = sorted_entries(self.tree, directory);
        let mut listed = Vec::with_capacity(entries.len());
        for (name, index) in entries {
            let (inode, entry_type) = self.reference(*index)?;
            listed.push(ListedEntry { name, inode, number: self.numbering.number(*index), entry_type });
        }
        let listing = write_listing(&mut self.listings, &listed)?;
        self.written_listings.insert(directory, listing);
        Ok(())
    }

    /// Where an inode lies and its basic type; writes it if that has not been done.
    fn reference(&mut self, index: InodeIndex) -> Result<(InodeRef, u16), WriteError> {
        // The walk has refused dangling entries.
        let inode = inode(self.tree, index).map_err(|_| BROKEN_TREE)?;
        let basic_type = basic_type(&inode.kind);
        let slot = usize::try_from(self.numbering.number(index)).unwrap_or_default().wrapping_sub(1);
        if let Some(reference) = self.references.get(slot).copied().flatten() {
            return Ok((reference, basic_type));
        }
        let reference = self.write_inode(index, inode, basic_type)?;
        *self.references.get_mut(slot).ok_or(BROKEN_TREE)? = Some(reference);
        Ok((reference, basic_type))
    }

    fn write_inode(
        &mut self,
        index: InodeIndex,
        inode: &Inode,
        basic_type: u16,
    ) -> Result<InodeRef, WriteError> {
        let header = Header {
            mode: inode.mode,
            uid_index: self.ids.index(inode.uid)?,
            gid_index: self.ids.index(inode.gid)?,
            mtime: inode.mtime,
            number: self.numbering.number(index),
            links: self.numbering.links(index),
            xattr: self.xattrs.index(&inode.xattrs)?,
        };
        let stream = &mut self.inodes;
        match &inode.kind {
            InodeKind::Directory(_) => {
                let listing = self.written_listings.remove(&index).ok_or(BROKEN_TREE)?;
                let parent = self.numbering.parent_number(self.tree, index);
                header.write_directory(stream, &listing, parent)
            }
            InodeKind::File(id) => {
                let file = usize::try_from(id.0).ok().and_then(|id| self.files.get(id)).ok_or(BROKEN_TREE)?;
                header.write_file(stream, file, self.layout, self.block_size)
            }
            InodeKind::Symlink(target) => header.write_symlink(stream, target),
            InodeKind::BlockDevice(major, minor) | InodeKind::CharacterDevice(major, minor) => {
                header.write_device(stream, basic_type, (*major, *minor))
            }
            InodeKind::Fifo | InodeKind::Socket => header.write_ipc(stream, basic_type),
        }
    }
}

/// The walk over the tree refuses such trees before.
const BROKEN_TREE: WriteError = WriteError::OutOfTurn("the tree contradicts its own walk");

fn basic_type(kind: &InodeKind) -> u16 {
    match kind {
        InodeKind::Directory(_) => inode_type::DIRECTORY,
        InodeKind::File(_) => inode_type::FILE,
        InodeKind::Symlink(_) => inode_type::SYMLINK,
        InodeKind::BlockDevice(..) => inode_type::BLOCK_DEVICE,
        InodeKind::CharacterDevice(..) => inode_type::CHARACTER_DEVICE,
        InodeKind::Fifo => inode_type::FIFO,
        InodeKind::Socket => inode_type::SOCKET,
    }
}
