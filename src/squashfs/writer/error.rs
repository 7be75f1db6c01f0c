//! Why an image cannot be written: the output, the codec, the order of calls, or what the format cannot hold.

use std::io;

use nix::errno::Errno;

use crate::hint::Hint;
use crate::squashfs::compress::CompressError;
use crate::squashfs::format::NAME_MAX;
use crate::squashfs::writer::{FileId, InodeIndex};

/// Longest target of a symbolic link, bytes: what `symlink(2)` takes, and one page of the kernel's reader.
pub const SYMLINK_MAX: usize = 4095;
/// Longest xattr name with its prefix, bytes (`XATTR_NAME_MAX`).
pub const XATTR_NAME_MAX: usize = 255;
/// Longest xattr value, bytes (`XATTR_SIZE_MAX`).
pub const XATTR_VALUE_MAX: usize = 65536;
/// Most blocks of one file, holes included; it bounds what a sparse file of a few bytes can make the writer
/// do.
pub const FILE_BLOCKS_MAX: u64 = 1 << 30;

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The output refused a write.
    #[error("cannot write the image at byte {offset}")]
    Output {
        /// Where in the output.
        offset: u64,
        /// The cause.
        source: io::Error,
    },
    /// Not a block size of the format.
    #[error("block size {0} is not a power of two from 4096 to 1048576")]
    BlockSize(u32),
    /// The codec could not be set up, or refused a block.
    #[error("cannot compress")]
    Compress(#[source] CompressError),
    /// No thread to compress with.
    #[error("cannot start a compression thread")]
    StartThread(#[source] io::Error),
    /// A compression thread or the one that writes panicked.
    #[error("a thread of the squashfs writer ended unexpectedly")]
    ThreadDied,
    /// More blocks than [`FILE_BLOCKS_MAX`].
    #[error("file of {size} bytes is too large: {limit} bytes at most with blocks of {block_size}")]
    FileTooLarge {
        /// Its size, bytes.
        size: u64,
        /// Largest size with this block size, bytes.
        limit: u64,
        /// Block size, bytes.
        block_size: u32,
    },
    /// A file got another number of bytes than announced.
    #[error("file data is {got} bytes long, not {expected}")]
    FileLength {
        /// Announced to [`begin_file`](crate::squashfs::writer::Writer::begin_file).
        expected: u64,
        /// Handed over; at least this many where it was too much.
        got: u64,
    },
    /// A block of an earlier image is not what it was.
    #[error("cannot take over the block at byte {position}: {problem}")]
    Stored {
        /// [`BlockSource::number`](crate::squashfs::writer::BlockSource::number) of the file that has it.
        number: usize,
        /// Where in the file.
        position: u64,
        /// What is wrong with it.
        problem: &'static str,
        /// Why it cannot be read.
        source: Option<io::Error>,
    },
    /// Calls in an order that makes no sense: a bug of the caller.
    #[error("{0}")]
    OutOfTurn(&'static str),
    /// An earlier call told the cause.
    #[error("the image was given up after an earlier error")]
    GivenUp,
    /// A counter of the format is full.
    #[error("image has more than {limit} {what}")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many fit.
        limit: u64,
    },
    /// One entry of the tree cannot be stored.
    #[error("cannot store {path}")]
    Entry {
        /// Path in the image, for people.
        path: String,
        /// The cause.
        source: EntryError,
    },
}

/// Why one entry of the tree cannot be stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// A name longer than 256 bytes.
    #[error("name of {0} bytes is longer than {NAME_MAX}")]
    NameTooLong(usize),
    /// Empty, `.`, `..`, or with `/` or NUL.
    #[error("not a file name")]
    NotAName,
    /// Two entries of this name.
    #[error("directory has two entries of this name")]
    DuplicateName,
    /// The directory names an inode that the tree lacks.
    #[error("inode {0} is not in the tree")]
    NoInode(InodeIndex),
    /// The inode's data was never written.
    #[error("file data {} was never written", .0.0)]
    NoData(FileId),
    /// A directory with two names, or inside itself.
    #[error("directory has more than one name")]
    DirectoryTwice,
    /// The root, but not a directory.
    #[error("root is not a directory")]
    RootNotDirectory,
    /// A listing of 4 GiB.
    #[error("directory listing is larger than 4 GiB")]
    DirectoryTooLarge,
    /// Bits outside `0o7777`.
    #[error("mode {0:#o} has bits beyond 0o7777")]
    Mode(u16),
    /// Empty, longer than [`SYMLINK_MAX`], or with NUL.
    #[error("symbolic link target of {0} bytes is empty, longer than {SYMLINK_MAX} or contains NUL")]
    SymlinkTarget(usize),
    /// Major above 4095 or minor above 1048575.
    #[error("device number {0}:{1} is larger than 4095:1048575")]
    DeviceNumber(u32, u32),
    /// Neither `user.`, `trusted.` nor `security.`, or too long, or with NUL.
    #[error("squashfs cannot hold an xattr named {0:?}")]
    XattrName(String),
    /// Longer than [`XATTR_VALUE_MAX`].
    #[error("value of xattr {name:?} is {length} bytes long, more than {XATTR_VALUE_MAX}")]
    XattrValue {
        /// Full name.
        name: String,
        /// Length of the value, bytes.
        length: usize,
    },
    /// Two xattrs of one name.
    #[error("xattr {0:?} occurs twice")]
    DuplicateXattr(String),
}

impl Hint for WriteError {
    fn hints(&self) -> Vec<String> {
        match self {
            WriteError::Output { source, .. } => match source.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENOSPC) => vec!["free space on the destination's file system".to_owned()],
                Some(Errno::EDQUOT) => vec!["your disk quota there is used up".to_owned()],
                Some(Errno::EFBIG) => vec!["raise the file size limit, see 'ulimit -f'".to_owned()],
                _ => Vec::new(),
            },
            WriteError::FileTooLarge { .. } => vec!["a larger block size allows larger files".to_owned()],
            _ => Vec::new(),
        }
    }
}
