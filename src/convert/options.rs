//! What a conversion may choose.

use crate::convert::budget::Budget;
use crate::squashfs::compress::Compression;

/// Choices of a conversion. All but `jobs` show in the bytes of the image file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvertOptions {
    /// Threads that compress, at least 1.
    pub jobs: usize,
    /// Codec and level.
    pub compression: Compression,
    /// Data block size, bytes: a power of two, 4 KiB to 1 MiB.
    pub block_size: u32,
    /// Limits for what the image may ask of this machine.
    pub budget: Budget,
    /// Whether tar entries for `/` set its mode and owner. Off, it is 0755 and root's: many images carry the 0700 of
    /// the temporary directory they were made in, and nobody else could enter.
    pub root_meta: bool,
    /// Whether `trusted.*` attributes are kept.
    pub keep_trusted_xattrs: bool,
}

impl Default for ConvertOptions {
    /// Zstandard level 3, 128 KiB blocks, a thread for each processor that this process may use.
    fn default() -> ConvertOptions {
        ConvertOptions {
            jobs: crate::sys::cpu::usable().get(),
            compression: Compression::Zstd(3),
            block_size: 128 << 10,
            budget: Budget::default(),
            root_meta: false,
            keep_trusted_xattrs: false,
        }
    }
}
