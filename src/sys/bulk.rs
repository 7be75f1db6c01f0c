//! Writing a large file from front to back without leaving its pages for the kernel to copy, keep and flush at the end:
//! `O_DIRECT` where that is sound, `sync_file_range(2)` elsewhere.

#![expect(unsafe_code, reason = "no safe wrapper of sync_file_range")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use nix::libc;
use nix::sys::statfs::{EXT4_SUPER_MAGIC, FsType, fstatfs};

/// What address, offset and length of a direct write are multiples of: no disk has larger logical blocks.
pub const DIRECT_ALIGNMENT: usize = 4096;

/// File systems on a local disk whose direct writes are plain: no copy, no lock held over a network. On others the page
/// cache keeps many writes under way at once, which one thread that waits for each cannot.
const DIRECT: [FsType; 2] = [EXT4_SUPER_MAGIC, XFS];
/// `XFS_SUPER_MAGIC` of `linux/magic.h`, which nix has for glibc only.
const XFS: FsType = FsType(0x5846_5342);

/// A file that is written in large pieces.
#[derive(Debug)]
pub struct BulkFile {
    file: File,
    /// The same file opened again with `O_DIRECT`.
    direct: Option<File>,
}

impl BulkFile {
    /// Takes over `file`, which must be open for writing.
    pub fn new(file: File) -> BulkFile {
        let is_local = fstatfs(&file).is_ok_and(|found| DIRECT.contains(&found.filesystem_type()));
        let again = || {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            // Without /proc the page cache will do.
            OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path).ok()
        };
        let direct = if is_local { again() } else { None };
        BulkFile { file, direct }
    }

    /// Writes all of `bytes` at `offset` and has the disk begin with it. Direct if address, offset and length are
    /// multiples of [`DIRECT_ALIGNMENT`].
    pub fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let is_aligned = bytes.as_ptr().addr().is_multiple_of(DIRECT_ALIGNMENT)
            && bytes.len().is_multiple_of(DIRECT_ALIGNMENT)
            && offset.is_multiple_of(DIRECT_ALIGNMENT as u64);
        if is_aligned && let Some(direct) = &self.direct {
            match direct.write_all_at(bytes, offset) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => self.direct = None,
                result => return result,
            }
        }
        self.file.write_all_at(bytes, offset)?;
        self.start_writeback(offset, bytes.len());
        Ok(())
    }

    /// The file, for what remains to be done with it.
    pub fn into_file(self) -> File {
        self.file
    }

    /// A hint: whether it is heard or not, `fsync` tells how the writing went.
    fn start_writeback(&self, offset: u64, length: usize) {
        let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else { return };
        let fd = self.file.as_raw_fd();
        // SAFETY: takes no memory of ours, and the descriptor is open as long as `self` is.
        let _ = unsafe { libc::sync_file_range(fd, offset, length, libc::SYNC_FILE_RANGE_WRITE) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn aligned_or_not_all_bytes_arrive() {
        // Wherever the tests run, and on a file system that knows no direct writes in older kernels.
        for directory in [std::env::temp_dir(), "/dev/shm".into(), env!("CARGO_MANIFEST_DIR").into()] {
            let mut file = tempfile::NamedTempFile::new_in(directory).expect("temporary file");
            let mut bulk = BulkFile::new(file.reopen().expect("reopen"));
            let memory: Vec<u8> = (0..=250).cycle().take(5 * DIRECT_ALIGNMENT).collect();
            let start = memory.as_ptr().align_offset(DIRECT_ALIGNMENT);
            let aligned = &memory[start..][..3 * DIRECT_ALIGNMENT];
            bulk.write_at(aligned, 0).expect("aligned");
            bulk.write_at(&aligned[1..], 3 * DIRECT_ALIGNMENT as u64).expect("address");
            bulk.write_at(&aligned[..DIRECT_ALIGNMENT], 100).expect("offset");
            bulk.write_at(&aligned[..7], 50).expect("length");
            let mut expected = [aligned, &aligned[1..]].concat();
            expected[100..][..DIRECT_ALIGNMENT].copy_from_slice(&aligned[..DIRECT_ALIGNMENT]);
            expected[50..57].copy_from_slice(&aligned[..7]);
            let mut found = Vec::new();
            file.read_to_end(&mut found).expect("readable");
            assert!(found == expected);
        }
    }
}
