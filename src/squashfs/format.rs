//! On-disk layout shared by reader and writer: constants, the superblock, packed references.
//!
//! All integers are little-endian. Source: Linux `fs/squashfs/squashfs_fs.h`.

/// `hsqs`, little-endian.
pub const MAGIC: u32 = 0x7371_7368;
/// Bytes of the superblock at offset 0.
pub const SUPERBLOCK_SIZE: usize = 96;
/// Uncompressed size limit of one metadata block.
pub const METADATA_BLOCK_SIZE: usize = 8192;
/// Bit 15 of a metadata block header: stored uncompressed.
pub const METADATA_UNCOMPRESSED: u16 = 0x8000;
/// Bit 24 of a data block size: stored uncompressed. A size of 0 is a hole.
pub const DATA_UNCOMPRESSED: u32 = 1 << 24;
/// Fragment index of a file without a fragment.
pub const NO_FRAGMENT: u32 = 0xffff_ffff;
/// Xattr index of an inode without xattrs.
pub const NO_XATTR: u32 = 0xffff_ffff;
/// Table start of an absent table.
pub const NO_TABLE: u64 = u64::MAX;
/// Smallest block size, bytes.
pub const BLOCK_SIZE_MIN: u32 = 4096;
/// Largest block size, bytes.
pub const BLOCK_SIZE_MAX: u32 = 1 << 20;
/// Longest name of a directory entry, bytes.
pub const NAME_MAX: usize = 256;
/// Entries one directory header may cover.
pub const DIRECTORY_RUN_MAX: usize = 256;
/// The image is padded to a multiple of this, bytes.
pub const PADDING: u64 = 4096;

/// Bits of the superblock's `flags`.
pub mod flags {
    /// Inode table is stored uncompressed.
    pub const INODES_UNCOMPRESSED: u16 = 0x0001;
    /// Data blocks are stored uncompressed.
    pub const DATA_UNCOMPRESSED: u16 = 0x0002;
    /// Fragments are stored uncompressed.
    pub const FRAGMENTS_UNCOMPRESSED: u16 = 0x0008;
    /// No fragments are used.
    pub const NO_FRAGMENTS: u16 = 0x0010;
    /// Tails of files larger than a block go to fragments.
    pub const ALWAYS_FRAGMENTS: u16 = 0x0020;
    /// Duplicate files are stored once.
    pub const DUPLICATES: u16 = 0x0040;
    /// The export table is present.
    pub const EXPORTABLE: u16 = 0x0080;
    /// Xattrs are stored uncompressed.
    pub const XATTRS_UNCOMPRESSED: u16 = 0x0100;
    /// The image has no xattrs.
    pub const NO_XATTRS: u16 = 0x0200;
    /// A compressor options block follows the superblock.
    pub const COMPRESSOR_OPTIONS: u16 = 0x0400;
}

/// Inode type numbers; the extended form is the basic form plus 7.
pub mod inode_type {
    /// Basic directory.
    pub const DIRECTORY: u16 = 1;
    /// Basic regular file.
    pub const FILE: u16 = 2;
    /// Basic symbolic link.
    pub const SYMLINK: u16 = 3;
    /// Basic block device.
    pub const BLOCK_DEVICE: u16 = 4;
    /// Basic character device.
    pub const CHARACTER_DEVICE: u16 = 5;
    /// Basic named pipe.
    pub const FIFO: u16 = 6;
    /// Basic socket.
    pub const SOCKET: u16 = 7;
    /// Added to a basic type to make the extended one.
    pub const EXTENDED: u16 = 7;
}

/// The codec of a whole image; the numbers are the superblock's `compression` field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Codec {
    /// zlib streams.
    Gzip = 1,
    /// Legacy LZMA; no kernel reads it.
    Lzma = 2,
    /// LZO1X.
    Lzo = 3,
    /// `.xz` streams.
    Xz = 4,
    /// LZ4 blocks.
    Lz4 = 5,
    /// Zstandard frames.
    Zstd = 6,
}

impl Codec {
    /// The codec of a superblock's `compression` field.
    pub fn from_id(id: u16) -> Option<Codec> {
        [Codec::Gzip, Codec::Lzma, Codec::Lzo, Codec::Xz, Codec::Lz4, Codec::Zstd]
            .into_iter()
            .find(|codec| *codec as u16 == id)
    }

    /// The name people know: `zstd`.
    pub fn name(self) -> &'static str {
        match self {
            Codec::Gzip => "gzip",
            Codec::Lzma => "lzma",
            Codec::Lzo => "lzo",
            Codec::Xz => "xz",
            Codec::Lz4 => "lz4",
            Codec::Zstd => "zstd",
        }
    }
}

/// Where an inode lies: metadata block offset in the inode table (bits 16..48) and offset inside the
/// uncompressed block (bits 0..16).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InodeRef(pub u64);

impl InodeRef {
    /// Packs a metadata block offset (relative to the inode table) and an offset inside the block.
    pub fn new(block: u64, offset: u16) -> InodeRef {
        InodeRef(block << 16 | u64::from(offset))
    }

    /// Offset of the metadata block, relative to the inode table.
    pub fn block(self) -> u64 {
        self.0 >> 16
    }

    /// Offset inside the uncompressed metadata block.
    pub fn offset(self) -> u16 {
        (self.0 & 0xffff) as u16
    }
}

/// The superblock, field by field as on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Number of inodes.
    pub inode_count: u32,
    /// Creation time, seconds since the epoch.
    pub mkfs_time: u32,
    /// Data block size, bytes: a power of two, 4 KiB to 1 MiB.
    pub block_size: u32,
    /// Entries of the fragment table.
    pub fragment_count: u32,
    /// `compression` as on disk, see [`Codec::from_id`].
    pub codec_id: u16,
    /// See [`flags`].
    pub flags: u16,
    /// Entries of the id table.
    pub id_count: u16,
    /// The root directory's inode.
    pub root: InodeRef,
    /// Length of the squashfs, bytes, padding and trailer excluded.
    pub bytes_used: u64,
    /// Start of the id table's index.
    pub id_table: u64,
    /// Start of the xattr table's header or [`NO_TABLE`].
    pub xattr_table: u64,
    /// Start of the inode table.
    pub inode_table: u64,
    /// Start of the directory table.
    pub directory_table: u64,
    /// Start of the fragment table's index or [`NO_TABLE`].
    pub fragment_table: u64,
    /// Start of the export table's index or [`NO_TABLE`].
    pub export_table: u64,
}

/// Why 96 bytes are not a superblock.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// Fewer than 96 bytes.
    #[error("{0} bytes are too few for a squashfs superblock of 96 bytes")]
    Short(usize),
    /// Another magic number.
    #[error("not a squashfs file{what}: magic number is {0:#010x}, not 0x73717368", what = but_what(*.0))]
    Magic(u32),
    /// Another version than 4.0.
    #[error("squashfs version {0}.{1} is not supported, only 4.0")]
    Version(u16, u16),
    /// Block size out of range or contradicting its logarithm.
    #[error("squashfs block size {size} with logarithm {log} is not a power of two from 4096 to 1048576")]
    BlockSize {
        /// Stated block size, bytes.
        size: u32,
        /// Stated logarithm.
        log: u16,
    },
}

/// What a file with this magic number seems to be: ` but gzip data`.
fn but_what(magic: u32) -> &'static str {
    match magic.to_le_bytes() {
        [0x7f, b'E', b'L', b'F'] => " but an ELF program",
        [b'#', b'!', ..] => " but a script",
        [0x1f, 0x8b, ..] => " but gzip data",
        [0xfd, b'7', b'z', b'X'] => " but xz data",
        [0x28, 0xb5, 0x2f, 0xfd] => " but zstd data",
        [b'B', b'Z', b'h', _] => " but bzip2 data",
        [b's', b'q', b's', b'h'] => " but a big-endian squashfs",
        _ => "",
    }
}

impl Superblock {
    /// Reads the superblock from the first 96 bytes of an image and checks magic, version and block size.
    /// Table positions are not checked here: that needs the length of the file.
    pub fn parse(bytes: &[u8]) -> Result<Superblock, SuperblockError> {
        let bytes: &[u8; SUPERBLOCK_SIZE] = bytes.first_chunk().ok_or(SuperblockError::Short(bytes.len()))?;
        let u16_at = |at: usize| u16::from_le_bytes(array_at(bytes, at));
        let u32_at = |at: usize| u32::from_le_bytes(array_at(bytes, at));
        let u64_at = |at: usize| u64::from_le_bytes(array_at(bytes, at));
        if u32_at(0) != MAGIC {
            return Err(SuperblockError::Magic(u32_at(0)));
        }
        if (u16_at(28), u16_at(30)) != (4, 0) {
            return Err(SuperblockError::Version(u16_at(28), u16_at(30)));
        }
        let (size, log) = (u32_at(12), u16_at(22));
        if !(BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&size) || 1u32.checked_shl(log.into()) != Some(size) {
            return Err(SuperblockError::BlockSize { size, log });
        }
        Ok(Superblock {
            inode_count: u32_at(4),
            mkfs_time: u32_at(8),
            block_size: size,
            fragment_count: u32_at(16),
            codec_id: u16_at(20),
            flags: u16_at(24),
            id_count: u16_at(26),
            root: InodeRef(u64_at(32)),
            bytes_used: u64_at(40),
            id_table: u64_at(48),
            xattr_table: u64_at(56),
            inode_table: u64_at(64),
            directory_table: u64_at(72),
            fragment_table: u64_at(80),
            export_table: u64_at(88),
        })
    }

    /// The 96 bytes as on disk.
    pub fn to_bytes(&self) -> [u8; SUPERBLOCK_SIZE] {
        let mut out = Vec::with_capacity(SUPERBLOCK_SIZE);
        out.extend(MAGIC.to_le_bytes());
        out.extend(self.inode_count.to_le_bytes());
        out.extend(self.mkfs_time.to_le_bytes());
        out.extend(self.block_size.to_le_bytes());
        out.extend(self.fragment_count.to_le_bytes());
        out.extend(self.codec_id.to_le_bytes());
        let log = u16::try_from(self.block_size.trailing_zeros()).unwrap_or(0);
        out.extend(log.to_le_bytes());
        out.extend(self.flags.to_le_bytes());
        out.extend(self.id_count.to_le_bytes());
        out.extend(4u16.to_le_bytes());
        out.extend(0u16.to_le_bytes());
        out.extend(self.root.0.to_le_bytes());
        for at in [
            self.bytes_used,
            self.id_table,
            self.xattr_table,
            self.inode_table,
            self.directory_table,
            self.fragment_table,
            self.export_table,
        ] {
            out.extend(at.to_le_bytes());
        }
        let mut bytes = [0; SUPERBLOCK_SIZE];
        bytes.copy_from_slice(&out);
        bytes
    }
}

/// `N` bytes at a constant offset; callers pass offsets that lie inside the superblock.
fn array_at<const N: usize>(bytes: &[u8; SUPERBLOCK_SIZE], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(bytes.get(at..at + N).unwrap_or(&[0; N]));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn superblock_round_trips() {
        let superblock = Superblock {
            inode_count: 1,
            mkfs_time: 2,
            block_size: 131072,
            fragment_count: 3,
            codec_id: 6,
            flags: flags::EXPORTABLE,
            id_count: 4,
            root: InodeRef::new(7, 8),
            bytes_used: 9,
            id_table: 10,
            xattr_table: 11,
            inode_table: 12,
            directory_table: 13,
            fragment_table: 14,
            export_table: 15,
        };
        assert_eq!(Superblock::parse(&superblock.to_bytes()), Ok(superblock));
    }

    #[test]
    fn refuses_what_is_no_superblock() {
        assert_eq!(Superblock::parse(&[0; 10]), Err(SuperblockError::Short(10)));
        assert_eq!(Superblock::parse(&[0; 96]), Err(SuperblockError::Magic(0)));
    }
}
