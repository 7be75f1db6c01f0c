//! Inodes as on disk: the basic form where it suffices, else the extended one.

use crate::squashfs::format::{InodeRef, NO_FRAGMENT, NO_XATTR, inode_type};
use crate::squashfs::writer::WriteError;
use crate::squashfs::writer::directory::Listing;
use crate::squashfs::writer::file::{FileData, FileRecord};
use crate::squashfs::writer::metadata::{MetadataStream, Position};
use crate::squashfs::writer::output::{BlockWords, Layout};

/// What all inodes have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) mode: u16,
    pub(super) uid_index: u16,
    pub(super) gid_index: u16,
    pub(super) mtime: u32,
    pub(super) number: u32,
    pub(super) links: u32,
    /// Index into the xattr table or [`NO_XATTR`].
    pub(super) xattr: u32,
}

impl Header {
    fn encode(&self, inode_type: u16) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64);
        for field in [inode_type, self.mode, self.uid_index, self.gid_index] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend(self.mtime.to_le_bytes());
        bytes.extend(self.number.to_le_bytes());
        bytes
    }

    /// Writes an inode that is basic without xattrs and else the same with the xattr index at its end.
    fn write_simple(
        &self,
        stream: &mut MetadataStream,
        basic_type: u16,
        fields: &[u32],
        target: &[u8],
    ) -> Result<InodeRef, WriteError> {
        let extended = self.xattr != NO_XATTR;
        let mut bytes = self.encode(if extended { basic_type + inode_type::EXTENDED } else { basic_type });
        bytes.extend(self.links.to_le_bytes());
        bytes.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
        bytes.extend_from_slice(target);
        if extended {
            bytes.extend(self.xattr.to_le_bytes());
        }
        write(stream, &bytes)
    }

    /// A fifo or socket.
    pub(super) fn write_ipc(
        &self,
        stream: &mut MetadataStream,
        basic_type: u16,
    ) -> Result<InodeRef, WriteError> {
        self.write_simple(stream, basic_type, &[], &[])
    }

    /// A block or character device; major below 4096, minor below 2^20.
    pub(super) fn write_device(
        &self,
        stream: &mut MetadataStream,
        basic_type: u16,
        (major, minor): (u32, u32),
    ) -> Result<InodeRef, WriteError> {
        // new_encode_dev() in include/linux/kdev_t.h
        let number = (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12);
        self.write_simple(stream, basic_type, &[number], &[])
    }

    /// A symbolic link.
    pub(super) fn write_symlink(
        &self,
        stream: &mut MetadataStream,
        target: &[u8],
    ) -> Result<InodeRef, WriteError> {
        let length = u32::try_from(target.len()).unwrap_or(u32::MAX);
        self.write_simple(stream, inode_type::SYMLINK, &[length], target)
    }

    /// A directory whose listing is written already.
    pub(super) fn write_directory(
        &self,
        stream: &mut MetadataStream,
        listing: &Listing,
        parent_number: u32,
    ) -> Result<InodeRef, WriteError> {
        // Readers count `.` and `..` as three bytes of the listing.
        let size = listing.size.checked_add(3).ok_or(too_large("bytes in one directory"))?;
        let block = u32::try_from(listing.position.block)
            .map_err(|_| too_large("bytes of compressed directories"))?;
        let basic_size =
            u16::try_from(size).ok().filter(|_| listing.index_count == 0 && self.xattr == NO_XATTR);
        let mut bytes;
        if let Some(size) = basic_size {
            bytes = self.encode(inode_type::DIRECTORY);
            bytes.extend(block.to_le_bytes());
            bytes.extend(self.links.to_le_bytes());
            bytes.extend(size.to_le_bytes());
            bytes.extend(listing.position.offset.to_le_bytes());
            bytes.extend(parent_number.to_le_bytes());
        } else {
            bytes = self.encode(inode_type::DIRECTORY + inode_type::EXTENDED);
            for field in [self.links, size, block, parent_number] {
                bytes.extend(field.to_le_bytes());
            }
            bytes.extend(listing.index_count.to_le_bytes());
            bytes.extend(listing.position.offset.to_le_bytes());
            bytes.extend(self.xattr.to_le_bytes());
            bytes.extend_from_slice(&listing.index);
        }
        write(stream, &bytes)
    }

    /// A regular file.
    pub(super) fn write_file(
        &self,
        stream: &mut MetadataStream,
        file: &FileRecord,
        layout: &Layout,
        block_size: u32,
    ) -> Result<InodeRef, WriteError> {
        let place = Place::of(file, layout, block_size);
        let small = (u32::try_from(place.start), u32::try_from(file.size));
        let mut bytes;
        match small {
            (Ok(start), Ok(size)) if self.links == 1 && self.xattr == NO_XATTR && place.sparse == 0 => {
                bytes = self.encode(inode_type::FILE);
                for field in [start, place.fragment, place.offset, size] {
                    bytes.extend(field.to_le_bytes());
                }
            }
            _ => {
                bytes = self.encode(inode_type::FILE + inode_type::EXTENDED);
                for field in [place.start, file.size, place.sparse] {
                    bytes.extend(field.to_le_bytes());
                }
                for field in [self.links, place.fragment, place.offset, self.xattr] {
                    bytes.extend(field.to_le_bytes());
                }
            }
        }
        let reference = write(stream, &bytes)?;
        place.blocks.into_iter().try_for_each(|words| write_blocks(stream, words))?;
        Ok(reference)
    }
}

/// A file's data as its inode describes it.
struct Place {
    start: u64,
    fragment: u32,
    offset: u32,
    /// Bytes in holes.
    sparse: u64,
    blocks: Vec<BlockWords>,
}

impl Place {
    fn of(file: &FileRecord, layout: &Layout, block_size: u32) -> Place {
        let nowhere = Place { start: 0, fragment: NO_FRAGMENT, offset: 0, sparse: 0, blocks: Vec::new() };
        match file.data {
            FileData::Fragment { fragment, offset } => Place { fragment, offset, ..nowhere },
            FileData::Zeros => {
                // At most FILE_BLOCKS_MAX.
                let holes = u32::try_from(file.size.div_ceil(u64::from(block_size))).unwrap_or(u32::MAX);
                Place { sparse: file.size, blocks: vec![BlockWords::Holes(holes)], ..nowhere }
            }
            FileData::Run(number) => {
                let Some(run) = layout.run(number) else { return nowhere };
                let blocks: Vec<_> = layout.block_list(run).collect();
                let sparse = sparse_bytes(&blocks, file.size, u64::from(block_size));
                Place { start: run.start, sparse, blocks, ..nowhere }
            }
        }
    }
}

/// Bytes of a file that lie in holes; the last block may be short.
fn sparse_bytes(blocks: &[BlockWords], size: u64, block_size: u64) -> u64 {
    let holes: u64 = blocks
        .iter()
        .map(|words| match words {
            BlockWords::Holes(holes) => u64::from(*holes),
            BlockWords::Data(_) => 0,
        })
        .sum();
    let missing = match blocks.last() {
        Some(BlockWords::Holes(_)) => size.next_multiple_of(block_size) - size,
        _ => 0,
    };
    holes * block_size - missing
}

fn write_blocks(stream: &mut MetadataStream, words: BlockWords) -> Result<(), WriteError> {
    const ZEROS: [u8; 4096] = [0; 4096];
    match words {
        BlockWords::Data(word) => stream.write(&word.to_le_bytes()),
        BlockWords::Holes(holes) => {
            let mut left = u64::from(holes) * 4;
            while left > 0 {
                let zeros = ZEROS.get(..usize::try_from(left).unwrap_or(usize::MAX)).unwrap_or(&ZEROS);
                stream.write(zeros)?;
                left -= zeros.len() as u64;
            }
            Ok(())
        }
    }
}

fn write(stream: &mut MetadataStream, bytes: &[u8]) -> Result<InodeRef, WriteError> {
    let Position { block, offset } = stream.position();
    if u32::try_from(block).is_err() {
        return Err(too_large("bytes of compressed inodes"));
    }
    stream.write(bytes)?;
    Ok(InodeRef::new(block, offset))
}

fn too_large(what: &'static str) -> WriteError {
    WriteError::TooMany { what, limit: u64::from(u32::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::squashfs::compress::Compression;
    use crate::squashfs::format::METADATA_UNCOMPRESSED;
    use crate::squashfs::writer::WriterOptions;

    /// The uncompressed inode of a file with one data block, in an image whose data begins at `start`.
    fn encode_file(start: u64, size: u64, links: u32, xattr: u32) -> Vec<u8> {
        let options =
            WriterOptions { compression: Compression::Lz4, block_size: 4096, threads: 1, mkfs_time: 0 };
        let mut stream = MetadataStream::new(&options).unwrap();
        let header = Header { mode: 0o640, uid_index: 1, gid_index: 2, mtime: 3, number: 4, links, xattr };
        let file = FileRecord { size, data: FileData::Run(0) };
        header.write_file(&mut stream, &file, &Layout::with_one_block(start, 77), 4096).unwrap();
        let bytes = stream.finish().unwrap();
        match u16::from_le_bytes([bytes[0], bytes[1]]) & METADATA_UNCOMPRESSED {
            0 => lz4_flex::block::decompress(&bytes[2..], 8192).unwrap(),
            _ => bytes[2..].to_vec(),
        }
    }

    #[test]
    fn files_are_extended_when_32_bits_or_the_basic_form_do_not_suffice() {
        const GIB_4: u64 = 1 << 32;
        let base = |inode_type: u16| {
            [&inode_type.to_le_bytes()[..], &[0xa0, 1, 1, 0, 2, 0, 3, 0, 0, 0, 4, 0, 0, 0]].concat()
        };
        let none = u32::MAX.to_le_bytes();
        for (start, size, links, xattr) in [(96u32, 4096u32, 1, NO_XATTR), (u32::MAX, u32::MAX, 1, NO_XATTR)]
        {
            let expected = [
                &base(2)[..],
                &start.to_le_bytes(),
                &none,
                &[0; 4],
                &size.to_le_bytes(),
                &77u32.to_le_bytes(),
            ];
            let got = encode_file(start.into(), size.into(), links, xattr);
            assert_eq!(got, expected.concat(), "{start} {size}");
        }
        for (start, size, links, xattr) in [
            (GIB_4, 4096u64, 1u32, NO_XATTR),
            (96, GIB_4, 1, NO_XATTR),
            (5 * GIB_4 + 7, 6 * GIB_4 + 8, 1, NO_XATTR),
            (96, 4096, 2, NO_XATTR),
            (96, 4096, 1, 0),
        ] {
            let expected = [
                &base(9)[..],
                &start.to_le_bytes(),
                &size.to_le_bytes(),
                &[0; 8],
                &links.to_le_bytes(),
                &none,
                &[0; 4],
                &xattr.to_le_bytes(),
                &77u32.to_le_bytes(),
            ];
            assert_eq!(encode_file(start, size, links, xattr), expected.concat(), "{start} {size}");
        }
    }

    #[test]
    fn sparse_counts_a_short_last_hole_short() {
        use BlockWords::{Data, Holes};
        for (blocks, size, expected) in [
            (vec![Data(5)], 4096, 0),
            (vec![Data(5), Holes(1)], 8192, 4096),
            (vec![Data(5), Holes(1)], 4097, 1),
            (vec![Holes(3), Data(5)], 4 * 4096 - 1, 3 * 4096),
            (vec![Holes(1), Data(5), Holes(2)], 3 * 4096 + 10, 2 * 4096 - 4086 + 4096),
        ] {
            assert_eq!(sparse_bytes(&blocks, size, 4096), expected, "{blocks:?}, {size}");
        }
    }
}
