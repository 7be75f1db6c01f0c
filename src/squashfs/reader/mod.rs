//! Lazy reader of a squashfs: opening costs the superblock, the ids and the root, never a walk.
//!
//! Shared by threads through `&self`; starts no thread and holds no lock between calls, so that a process may `fork`
//! with an opened image while it has no other thread. Every byte of an image is taken for hostile: counts are bounded
//! by the table they come from before anything is allocated, nothing recurses, and every chain moves forward.

mod backing;
mod block_index;
mod cache;
mod data;
mod directory;
mod image;
mod inode;
mod metadata;
mod path;
mod tables;
mod touch;
mod xattr;

use std::fs::File;
use std::sync::Arc;

use self::block_index::BlockIndex;
use self::cache::Cache;
use self::data::{DataKey, FragmentPart};
use self::directory::DirectoryIndex;
use self::image::Image;
pub use self::image::Vouch;
use self::metadata::{MetadataBlock, MetadataKey, MetadataPosition};
use self::tables::Tables;
pub use self::touch::{Touched, Watch};
pub use self::xattr::Xattr;
use crate::hint::Hint;
use crate::squashfs::format::{
    Codec, InodeRef, METADATA_BLOCK_SIZE, SUPERBLOCK_SIZE, Superblock, SuperblockError,
};

/// Memory limits of a reader. What a call has in hand comes on top: the blocks it returns, and for each thread one
/// block and the state of the codec.
#[derive(Debug, Clone)]
pub struct ReaderOptions {
    /// Decompressed data blocks and fragments kept, bytes.
    pub data_cache_bytes: usize,
    /// Decompressed metadata blocks kept, with the block indexes of large files, bytes.
    pub metadata_cache_bytes: usize,
}

impl Default for ReaderOptions {
    fn default() -> ReaderOptions {
        ReaderOptions { data_cache_bytes: 32 << 20, metadata_cache_bytes: 16 << 20 }
    }
}

/// The share of the metadata cache that the block indexes of large files get: one part in this many.
const INDEX_SHARE: usize = 8;

/// An opened squashfs.
pub struct Filesystem {
    image: Image,
    superblock: Superblock,
    codec: Codec,
    tables: Tables,
    ids: Box<[u32]>,
    metadata: Cache<MetadataKey, Arc<MetadataBlock>>,
    data: Cache<DataKey, Arc<[u8]>>,
    indexes: Cache<MetadataPosition, Arc<BlockIndex>>,
    watcher: Option<Arc<dyn Watch>>,
}

impl std::fmt::Debug for Filesystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filesystem")
            .field("image", &self.image)
            .field("superblock", &self.superblock)
            .finish()
    }
}

/// Why an image could not be read. Every message says where in the image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The file refused a read.
    #[error("cannot read {length} bytes at {offset}")]
    Io {
        /// Byte offset in the file.
        offset: u64,
        /// Bytes wanted.
        length: usize,
        /// The cause.
        source: std::io::Error,
    },
    /// What lies there is no squashfs that can be read.
    #[error("no squashfs at byte {offset}")]
    Superblock {
        /// Byte offset in the file.
        offset: u64,
        /// The cause.
        source: SuperblockError,
    },
    /// The superblock speaks of more bytes than there are.
    #[error("image is truncated: it is {actual} bytes long, its superblock says {expected}")]
    Truncated {
        /// Bytes that the file must have at least.
        expected: u64,
        /// Bytes that it has.
        actual: u64,
    },
    /// Compressed with a codec that squashfs 4.0 does not have.
    #[error("image is compressed with codec {id}, which squashfs 4.0 does not have")]
    Codec {
        /// As the superblock states it.
        id: u16,
    },
    /// A path led through too many symbolic links.
    #[error("too many symbolic links in {path}")]
    SymlinkLoop {
        /// As asked for.
        path: String,
    },
    /// The bytes contradict the format.
    #[error("corrupt image: {what} at byte {offset}")]
    Corrupt {
        /// Byte offset in the file, or of the table.
        offset: u64,
        /// What is wrong.
        what: String,
    },
}

impl ReadError {
    /// The same error again, for another who waited for the same bytes.
    fn duplicate(&self) -> ReadError {
        match self {
            ReadError::Io { offset, length, source } => ReadError::Io {
                offset: *offset,
                length: *length,
                source: match source.raw_os_error() {
                    Some(errno) => std::io::Error::from_raw_os_error(errno),
                    None => std::io::Error::new(source.kind(), source.to_string()),
                },
            },
            ReadError::Superblock { offset, source } => {
                ReadError::Superblock { offset: *offset, source: source.clone() }
            }
            ReadError::Truncated { expected, actual } => {
                ReadError::Truncated { expected: *expected, actual: *actual }
            }
            ReadError::Codec { id } => ReadError::Codec { id: *id },
            ReadError::SymlinkLoop { path } => ReadError::SymlinkLoop { path: path.clone() },
            ReadError::Corrupt { offset, what } => ReadError::Corrupt { offset: *offset, what: what.clone() },
        }
    }
}

impl Hint for ReadError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            ReadError::Truncated { .. } => "the copy was cut short: copy or convert the image again",
            ReadError::Corrupt { .. } => {
                "the file was damaged or made to mislead: copy or convert the image again"
            }
            ReadError::Codec { .. } => {
                "the tool that wrote it may unpack it; then pack it with mksquashfs -comp zstd"
            }
            _ => return Vec::new(),
        };
        vec![hint.to_owned()]
    }
}

/// One inode, decoded.
#[derive(Debug, Clone)]
pub struct Inode {
    /// Where it lies.
    pub reference: InodeRef,
    /// `st_ino`.
    pub number: u32,
    /// Permission bits, `0..=0o7777`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since the epoch.
    pub mtime: u32,
    /// Hard links.
    pub nlink: u32,
    /// Index into the xattr table, if it has xattrs.
    pub xattr: Option<u32>,
    /// What it is.
    pub kind: InodeKind,
}

/// What an inode is, with what is needed to read on.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum InodeKind {
    /// A directory.
    Directory(Directory),
    /// A regular file.
    File(FileLayout),
    /// A symbolic link's target.
    Symlink(Arc<[u8]>),
    /// Major, minor.
    BlockDevice(u32, u32),
    /// Major, minor.
    CharacterDevice(u32, u32),
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
}

/// Where a directory's listing lies.
#[derive(Debug, Clone)]
pub struct Directory {
    /// The inode number of the directory above; of no inode at the root.
    pub parent: u32,
    first: MetadataPosition,
    /// Bytes of the listing.
    size: u32,
    index: Option<DirectoryIndex>,
}

/// Where a file's blocks lie.
#[derive(Debug, Clone)]
pub struct FileLayout {
    /// Length, bytes.
    pub size: u64,
    /// Position of the first block.
    start: u64,
    /// Length of the block list; a tail in a fragment is not in it.
    blocks: u64,
    list: MetadataPosition,
    fragment: Option<FragmentPart>,
}

impl FileLayout {
    /// The fragment that holds the tail, or the whole of a small file.
    pub fn fragment(&self) -> Option<u32> {
        self.fragment.map(|part| part.index)
    }

    /// Whether there is data outside of the fragment.
    pub fn has_blocks(&self) -> bool {
        self.blocks > 0
    }
}

/// The type in a directory entry, basic form: see [`crate::squashfs::format::inode_type`].
pub type EntryType = u16;

/// One directory entry, borrowed during the walk.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Name, 1 to 256 bytes, never `.`, `..`, nor with `/` or NUL.
    pub name: &'a [u8],
    /// The inode it names.
    pub inode: InodeRef,
    /// The inode's number.
    pub number: u32,
    /// Basic inode type.
    pub entry_type: EntryType,
    /// Cookie of the entry after this one, for [`Filesystem::read_directory`]; never 0.
    pub next: u64,
}

/// A piece of file data: bytes kept alive by the cache, bytes that lie in the image as they are, or zeros.
#[derive(Debug, Clone)]
pub enum Piece {
    /// `block[start..start + length]`.
    Data {
        /// The decompressed block.
        block: Arc<[u8]>,
        /// First byte wanted.
        start: usize,
        /// Bytes wanted.
        length: usize,
    },
    /// Stored without compression, for [`Filesystem::read_plain`]. The kernel's page cache has it, so that a copy in the
    /// cache here would cost memory and gain nothing.
    Plain {
        /// Position in the image.
        position: u64,
        /// Bytes wanted.
        length: usize,
    },
    /// This many zero bytes of a hole.
    Zero(usize),
}

impl Filesystem {
    /// Opens the squashfs that begins at `offset` of `file`: checks the superblock, the table positions and that the
    /// file is as long as `bytes_used` says, and decodes the root directory's inode.
    pub fn open(file: File, offset: u64, options: ReaderOptions) -> Result<Filesystem, ReadError> {
        Filesystem::open_vouched(file, offset, options, None)
    }

    /// The same with somebody who looks at every byte that is ever read.
    pub fn open_vouched(
        file: File,
        offset: u64,
        options: ReaderOptions,
        voucher: Option<Arc<dyn Vouch>>,
    ) -> Result<Filesystem, ReadError> {
        let image = Image::new(file, offset, voucher);
        let superblock = read_superblock(&image)?;
        let codec =
            Codec::from_id(superblock.codec_id).ok_or(ReadError::Codec { id: superblock.codec_id })?;
        let tables = Tables::locate(&image, &superblock)?;
        let index_bytes = options.metadata_cache_bytes / INDEX_SHARE;
        let block_size = usize::try_from(superblock.block_size).unwrap_or(usize::MAX);
        let mut filesystem = Filesystem {
            image,
            superblock,
            codec,
            tables,
            ids: Box::default(),
            metadata: Cache::new(options.metadata_cache_bytes - index_bytes, METADATA_BLOCK_SIZE),
            data: Cache::new(options.data_cache_bytes, block_size),
            indexes: Cache::new(index_bytes, BlockIndex::bytes_max(u64::MAX)),
            watcher: None,
        };
        filesystem.ids = filesystem.load_ids()?;
        filesystem.check_root()?;
        Ok(filesystem)
    }

    /// The superblock.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The file the image is read from.
    pub fn file(&self) -> &File {
        self.image.file()
    }

    /// From now on reads `file` instead, which has the same bytes at the same offsets and lies nearer; `voucher` looks at
    /// them. With the first read that fails there, or gives too little, it is given up for the file that was opened. Only
    /// the first copy counts.
    pub fn use_copy(&self, file: File, voucher: Option<Arc<dyn Vouch>>) {
        self.image.use_copy(file, voucher);
    }

    /// The copy of [`Filesystem::use_copy`], whether or not it is still read.
    pub fn copy(&self) -> Option<&File> {
        self.image.copy()
    }

    /// Closes the files and leaves the memory as it is: for a process that shares it with one forked just now, and that
    /// executes another program soon. To free a page that is shared is to copy it first.
    pub fn leave(self) {
        let Filesystem {
            image: _,
            watcher: _,
            superblock: _,
            codec: _,
            tables,
            ids,
            metadata,
            data,
            indexes,
        } = self;
        std::mem::forget((tables, ids, metadata, data, indexes));
    }

    /// From now on reads that the file's store refuses (`EIO`, `ESTALE`, time-outs) are tried again for some seconds before
    /// they fail, and a file that went stale is opened again if it is the same. For servers: others would rather know.
    pub fn be_patient(&mut self) {
        self.image.be_patient();
    }

    /// Where in its file the squashfs begins, bytes.
    pub fn offset(&self) -> u64 {
        self.image.offset(0)
    }

    /// The root directory.
    pub fn root(&self) -> InodeRef {
        self.superblock.root
    }

    fn check_root(&self) -> Result<(), ReadError> {
        match self.inode(self.root())?.kind {
            InodeKind::Directory(_) => Ok(()),
            _ => Err(self.image.corrupt(32, "the root is not a directory")),
        }
    }
}

/// Reads the superblock and compares its idea of the length with the file's.
fn read_superblock(image: &Image) -> Result<Superblock, ReadError> {
    let mut bytes = [0; SUPERBLOCK_SIZE];
    let length = image.read_available(0, &mut bytes)?;
    let superblock = Superblock::parse(bytes.get(..length).unwrap_or_default())
        .map_err(|source| ReadError::Superblock { offset: image.offset(0), source })?;
    let Some(expected) = image.end(superblock.bytes_used) else {
        return Err(image.corrupt(40, format!("superblock says {} bytes", superblock.bytes_used)));
    };
    match image.file_length()? {
        Some(actual) if actual < expected => Err(ReadError::Truncated { expected, actual }),
        _ => Ok(superblock),
    }
}
