//! Directory listings: runs of up to 256 entries behind a header that they share.

use std::ops::ControlFlow;

use super::metadata::{Cursor, MetadataPosition};
use super::{Directory, Entry, Filesystem, Inode, InodeKind, ReadError};
use crate::squashfs::format::{DIRECTORY_RUN_MAX, InodeRef, METADATA_BLOCK_SIZE, NAME_MAX, inode_type};

/// Bytes of a run's header.
const RUN_HEADER_SIZE: u64 = 12;
/// Bytes of an entry in front of its name.
const ENTRY_HEADER_SIZE: u64 = 8;
/// Low bits of a cookie: how many entries of the run lie before; the bits above: where in the listing the run's header
/// lies. So a walk goes on at any entry without state and without reading the runs before.
const COOKIE_ENTRY_BITS: u32 = 9;

/// Where an extended directory's index lies: names and listing bytes of some of its runs, sorted.
#[derive(Debug, Clone, Copy)]
pub(super) struct DirectoryIndex {
    pub(super) first: MetadataPosition,
    pub(super) count: u16,
}

/// A stretch of a listing, from the header of a run on.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    /// The metadata block and byte of its start.
    position: MetadataPosition,
    /// Its first byte, counted from the start of the listing.
    start: u64,
    /// First byte behind it.
    end: u64,
}

impl Filesystem {
    /// Finds `name` in a directory, by its index where there is one. The entry's type and number are checked against
    /// the inode.
    pub fn lookup(&self, directory: &Directory, name: &[u8]) -> Result<Option<InodeRef>, ReadError> {
        Ok(self.lookup_inode(directory, name)?.map(|inode| inode.reference))
    }

    /// Like [`Filesystem::lookup`], with the inode that it has to decode anyway.
    pub fn lookup_inode(&self, directory: &Directory, name: &[u8]) -> Result<Option<Inode>, ReadError> {
        if directory.size == 0 || name.is_empty() || name.len() > NAME_MAX {
            return Ok(None);
        }
        let stretch = self.stretch(directory, |_, first_name| first_name <= name)?;
        let sorted = directory.index.is_some();
        let mut walk = ListingWalk::new(self, stretch)?;
        while let Some(entry) = walk.next()? {
            if entry.name == name {
                return self.entry_inode(&entry).map(Some);
            }
            // Without an index the kernel relies on the order of first bytes only, and so do sloppy writers.
            let past = if sorted { entry.name > name } else { entry.name.first() > name.first() };
            if past {
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// Walks a directory from `cookie` (0 = start) until `each` breaks. `.` and `..` are not among the entries.
    ///
    /// To go on later, pass the [`Entry::next`] of the last entry taken. Any other value gives an error or entries that
    /// may be wrong, never anything that is not in the image.
    pub fn read_directory(
        &self,
        directory: &Directory,
        cookie: u64,
        each: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let header = cookie >> COOKIE_ENTRY_BITS;
        if header >= directory.size.into() {
            return Ok(());
        }
        let mut stretch = self.stretch(directory, |start, _| start <= header)?;
        stretch.end = directory.size.into();
        let mut walk = ListingWalk::new(self, stretch)?;
        walk.seek(header, cookie & ((1 << COOKIE_ENTRY_BITS) - 1))?;
        while let Some(entry) = walk.next()? {
            if each(entry).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// The inode that an entry names, refused if its type or number is another than the entry says.
    pub fn entry_inode(&self, entry: &Entry<'_>) -> Result<Inode, ReadError> {
        let inode = self.inode(entry.inode)?;
        let entry_type = inode.kind.entry_type();
        if (entry_type, inode.number) != (entry.entry_type, entry.number) {
            let what = format!(
                "entry \"{}\" names inode {} of type {}, which is inode {} of type {entry_type}",
                entry.name.escape_ascii(),
                entry.number,
                entry.entry_type,
                inode.number,
            );
            let position = self.tables.inodes.start.saturating_add(entry.inode.block());
            return Err(self.image.corrupt(position, what));
        }
        Ok(inode)
    }

    /// The stretch of the listing between two neighbours in the index: it starts with the last indexed run whose start
    /// and first name `before` accepts, else with the listing.
    fn stretch(
        &self,
        directory: &Directory,
        before: impl Fn(u64, &[u8]) -> bool,
    ) -> Result<Stretch, ReadError> {
        let mut stretch = Stretch { position: directory.first, start: 0, end: directory.size.into() };
        let Some(index) = directory.index else { return Ok(stretch) };
        let mut cursor = Cursor::new(self, self.tables.inodes, index.first)?;
        let mut name = [0; NAME_MAX];
        for _ in 0..index.count {
            let start = u64::from(cursor.u32()?);
            let block = u64::from(cursor.u32()?);
            let stored_length = cursor.u32()?;
            let name = read_name(&mut cursor, stored_length, &mut name)?;
            if start >= directory.size.into() {
                return Err(
                    cursor.corrupt(format!("directory index names byte {start} of {}", directory.size))
                );
            }
            if !before(start, name) {
                stretch.end = start;
                break;
            }
            // All blocks of the directory table but its last hold 8192 bytes.
            let byte = (u64::from(directory.first.byte) + start) % METADATA_BLOCK_SIZE as u64;
            stretch.position = MetadataPosition {
                block: self.tables.directories.start.saturating_add(block),
                byte: u16::try_from(byte).unwrap_or_default(),
            };
            stretch.start = start;
        }
        Ok(stretch)
    }
}

impl InodeKind {
    /// The type that a directory entry states for this kind.
    pub fn entry_type(&self) -> u16 {
        match self {
            InodeKind::Directory(_) => inode_type::DIRECTORY,
            InodeKind::File(_) => inode_type::FILE,
            InodeKind::Symlink(_) => inode_type::SYMLINK,
            InodeKind::BlockDevice(..) => inode_type::BLOCK_DEVICE,
            InodeKind::CharacterDevice(..) => inode_type::CHARACTER_DEVICE,
            InodeKind::Fifo => inode_type::FIFO,
            InodeKind::Socket => inode_type::SOCKET,
        }
    }
}

/// Reads a stretch entry by entry.
struct ListingWalk<'a> {
    filesystem: &'a Filesystem,
    cursor: Cursor<'a>,
    /// Bytes of the listing before the cursor.
    at: u64,
    /// Where the stretch ends, in bytes of the listing.
    end: u64,
    run: Run,
    name: [u8; NAME_MAX],
}

/// The run being read: what its entries share.
#[derive(Default)]
struct Run {
    /// Where its header lies, in bytes of the listing.
    start: u64,
    entries: u32,
    taken: u32,
    inode_block: u32,
    inode_number: u32,
}

/// An entry as it stands in the listing, in front of its name.
struct EntryHeader {
    inode_byte: u16,
    number: u32,
    entry_type: u16,
    stored_length: u16,
}

impl<'a> ListingWalk<'a> {
    fn new(filesystem: &'a Filesystem, stretch: Stretch) -> Result<ListingWalk<'a>, ReadError> {
        let cursor = Cursor::new(filesystem, filesystem.tables.directories, stretch.position)?;
        let (at, end) = (stretch.start, stretch.end);
        Ok(ListingWalk { filesystem, cursor, at, end, run: Run::default(), name: [0; NAME_MAX] })
    }

    /// Goes on to the run whose header lies at byte `header`, and past `entries` of its entries.
    fn seek(&mut self, header: u64, entries: u64) -> Result<(), ReadError> {
        let distance = header.saturating_sub(self.at);
        self.cursor.skip(distance)?;
        self.at += distance;
        for _ in 0..entries {
            if self.run.taken == self.run.entries && self.run.taken > 0 {
                break;
            }
            if self.next()?.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn next(&mut self) -> Result<Option<Entry<'_>>, ReadError> {
        if self.run.taken == self.run.entries {
            if self.at >= self.end {
                return Ok(None);
            }
            self.run = self.run_header()?;
        }
        let header = self.entry_header()?;
        let length = read_name(&mut self.cursor, header.stored_length.into(), &mut self.name)?.len();
        self.pass(length as u64)?;
        self.run.taken += 1;
        let name = self.name.get(..length).unwrap_or_default();
        if matches!(name, b"." | b"..") || name.iter().any(|byte| matches!(byte, b'/' | 0)) {
            return Err(self.cursor.corrupt(format!("directory entry named \"{}\"", name.escape_ascii())));
        }
        Ok(Some(Entry {
            name,
            inode: InodeRef::new(self.run.inode_block.into(), header.inode_byte),
            number: header.number,
            entry_type: header.entry_type,
            next: self.run.start << COOKIE_ENTRY_BITS | u64::from(self.run.taken),
        }))
    }

    fn run_header(&mut self) -> Result<Run, ReadError> {
        let start = self.at;
        let count = self.cursor.u32()?;
        let inode_block = self.cursor.u32()?;
        let inode_number = self.cursor.u32()?;
        self.pass(RUN_HEADER_SIZE)?;
        if u64::from(count) >= DIRECTORY_RUN_MAX as u64 {
            return Err(self
                .cursor
                .corrupt(format!("directory run of {} entries, over 256", u64::from(count) + 1)));
        }
        Ok(Run { start, entries: count + 1, taken: 0, inode_block, inode_number })
    }

    fn entry_header(&mut self) -> Result<EntryHeader, ReadError> {
        let inode_byte = self.cursor.u16()?;
        let delta = self.cursor.u16()?.cast_signed();
        let entry_type = self.cursor.u16()?;
        let stored_length = self.cursor.u16()?;
        self.pass(ENTRY_HEADER_SIZE)?;
        let inodes = self.filesystem.superblock.inode_count;
        let number = self.run.inode_number.checked_add_signed(delta.into());
        let Some(number) = number.filter(|number| (1..=inodes).contains(number)) else {
            let base = self.run.inode_number;
            let what = format!("directory entry for inode {base} {delta:+}, the image has 1 to {inodes}");
            return Err(self.cursor.corrupt(what));
        };
        if !(inode_type::DIRECTORY..=inode_type::SOCKET).contains(&entry_type) {
            return Err(self.cursor.corrupt(format!("directory entry of type {entry_type}")));
        }
        Ok(EntryHeader { inode_byte, number, entry_type, stored_length })
    }

    /// Counts bytes just read; an error if they lie behind the end of the stretch.
    fn pass(&mut self, count: u64) -> Result<(), ReadError> {
        self.at += count;
        if self.at > self.end {
            return Err(self.cursor.corrupt("directory entry reaches past the end of its listing"));
        }
        Ok(())
    }
}

/// Reads a name whose stored length is one less than it is.
fn read_name<'n>(
    cursor: &mut Cursor<'_>,
    stored_length: u32,
    name: &'n mut [u8; NAME_MAX],
) -> Result<&'n [u8], ReadError> {
    let length = usize::try_from(stored_length).ok().and_then(|length| length.checked_add(1));
    let Some(name) = length.and_then(|length| name.get_mut(..length)) else {
        return Err(
            cursor.corrupt(format!("directory entry with a name of {stored_length} + 1 bytes, over 256"))
        );
    };
    cursor.read(name)?;
    Ok(name)
}
