//! One tar member as the merge sees it: every extension header is already folded in.

/// One member of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name as written, uncleaned.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits with setuid, setgid, sticky: `0..=0o7777`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since the epoch: fractions rounded down, clamped to what squashfs can hold.
    pub mtime: u32,
    /// Full names with values, sorted by name, each name once.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Records that carry metadata which is not read: `SCHILY.acl.*`, `LIBARCHIVE.xattr.*`.
    pub ignored_records: u32,
    /// Where the entry's first header lies in the tar, bytes.
    pub offset: u64,
}

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file; its data follows in the tar, segment by segment.
    File {
        /// Length in bytes, holes included.
        size: u64,
        /// Where the data that follows belongs, ascending, without overlap; the rest is holes.
        segments: Vec<Segment>,
    },
    /// Another name for the entry called so.
    HardLink(Vec<u8>),
    /// A symbolic link and its target, which is data and never cleaned.
    Symlink(Vec<u8>),
    /// Major and minor number.
    CharacterDevice(u32, u32),
    /// Major and minor number.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

/// A run of data inside a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it starts in the file, bytes.
    pub offset: u64,
    /// How long it is, bytes.
    pub length: u64,
}

impl Segment {
    /// The first byte after it; none when that does not fit.
    pub fn end(self) -> Option<u64> {
        self.offset.checked_add(self.length)
    }
}
