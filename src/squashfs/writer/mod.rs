//! Writes a squashfs: file data streams in first, the tree of inodes comes last.
//!
//! ```text
//! caller -- blocks --> N threads: compress, hash --> one thread: restore the order, drop duplicates, write
//! finish -- tree ----> inode, directory, fragment, export, id, xattr tables --> superblock, last of all
//! ```
//!
//! The bytes depend on the data, the tree and the options, never on the number of threads or their timing.
//! Until [`Writer::finish`] returns, the output starts with zeros and nobody takes it for an image.

mod check;
mod chunks;
mod directory;
mod error;
mod file;
mod fragment;
mod ids;
mod inode;
mod metadata;
mod numbering;
mod output;
mod pipeline;
mod sink;
mod stored;
mod tables;
mod xattr;

use std::fs::File;
use std::sync::Arc;

use crate::squashfs::compress::Compression;
use crate::squashfs::format::{BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, METADATA_UNCOMPRESSED, SUPERBLOCK_SIZE};
use crate::squashfs::writer::file::{BlockCutter, FileData, FileRecord};
use crate::squashfs::writer::fragment::FragmentPacker;
use crate::squashfs::writer::output::Layout;
use crate::squashfs::writer::pipeline::Pipeline;
use crate::squashfs::writer::stored::Slice;

pub use crate::squashfs::writer::chunks::Chunk;
pub use crate::squashfs::writer::error::{
    EntryError, FILE_BLOCKS_MAX, SYMLINK_MAX, WriteError, XATTR_NAME_MAX, XATTR_VALUE_MAX,
};
pub use crate::squashfs::writer::stored::{
    BlockSource, Fingerprint, StoredBlock, StoredData, StoredFile, StoredFragment, StoredWord,
};
pub use crate::squashfs::writer::xattr::can_hold_xattr;

/// What the writer may choose; all of it shows in the bytes except `threads`.
#[derive(Debug, Clone)]
pub struct WriterOptions {
    /// Codec and level.
    pub compression: Compression,
    /// Data block size, bytes: a power of two, 4 KiB to 1 MiB.
    pub block_size: u32,
    /// Compression threads, at least 1. The output does not depend on it.
    pub threads: usize,
    /// Seconds since the epoch, for the superblock.
    pub mkfs_time: u32,
}

/// The data of one regular file already handed to the writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u32);

/// Position of an inode in [`Tree::inodes`].
pub type InodeIndex = u32;

/// The finished tree, as an arena. Several directory entries that name one index are hard links.
#[derive(Debug, Default)]
pub struct Tree {
    /// All inodes; any order, each reachable from `root`.
    pub inodes: Vec<Inode>,
    /// Index of the root directory.
    pub root: InodeIndex,
}

/// One inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// What it is.
    pub kind: InodeKind,
    /// Permission bits with setuid, setgid, sticky: `0..=0o7777`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since the epoch.
    pub mtime: u32,
    /// Full names (`user.x`, `security.capability`, `trusted.x`) with values.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InodeKind {
    /// Names with the inodes they stand for; the writer sorts them.
    Directory(Vec<(Vec<u8>, InodeIndex)>),
    /// Data written before.
    File(FileId),
    /// Target bytes, kept as they are.
    Symlink(Vec<u8>),
    /// Major and minor number.
    BlockDevice(u32, u32),
    /// Major and minor number.
    CharacterDevice(u32, u32),
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Length of the squashfs, bytes, without padding.
    pub bytes_used: u64,
    /// Inodes.
    pub inodes: u32,
    /// Bytes of file data that came in, holes included.
    pub data_bytes_in: u64,
    /// Bytes of data blocks and fragments that went out.
    pub data_bytes_out: u64,
}

/// A squashfs being written. Dropped before [`Writer::finish`], it stops its threads and leaves a useless
/// file.
///
/// Regular files come one after the other: [`begin_file`](Writer::begin_file), then [`spare`](Writer::spare)
/// with [`advance`](Writer::advance) or [`skip`](Writer::skip) until the file has its size, then
/// [`end_file`](Writer::end_file). An error of a thread is told by the next call; after any error the writer
/// is of no more use.
#[derive(Debug)]
pub struct Writer {
    options: WriterOptions,
    pipeline: Pipeline,
    fragments: FragmentPacker,
    cutter: BlockCutter,
    open: Option<OpenFile>,
    files: Vec<FileRecord>,
    data_bytes_in: u64,
    recording: bool,
}

/// The file being written.
#[derive(Debug, Clone, Copy)]
struct OpenFile {
    size: u64,
    got: u64,
    /// Shorter than a block, so it goes to a fragment.
    small: bool,
}

impl OpenFile {
    fn lacks(&self) -> u64 {
        self.size.saturating_sub(self.got)
    }
}

const NO_FILE: WriteError = WriteError::OutOfTurn("no file was begun");

impl Writer {
    /// Starts an image at offset 0 of `output`, which must be empty and seekable.
    pub fn create(output: File, options: WriterOptions) -> Result<Writer, WriteError> {
        Writer::start(output, options, false)
    }

    /// The same, and remembers what [`Writer::finish_recorded`] tells.
    pub fn create_recording(output: File, options: WriterOptions) -> Result<Writer, WriteError> {
        Writer::start(output, options, true)
    }

    fn start(output: File, options: WriterOptions, record: bool) -> Result<Writer, WriteError> {
        if !options.block_size.is_power_of_two()
            || !(BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&options.block_size)
        {
            return Err(WriteError::BlockSize(options.block_size));
        }
        options.compression.check().map_err(WriteError::Compress)?;
        let pipeline = Pipeline::start(output, &head(options.compression), &options, record)?;
        Ok(Writer {
            options,
            pipeline,
            fragments: FragmentPacker::default(),
            cutter: BlockCutter::default(),
            open: None,
            files: Vec::new(),
            data_bytes_in: 0,
            recording: record,
        })
    }

    /// Begins a regular file; `size` is its exact length in bytes, holes included.
    pub fn begin_file(&mut self, size: u64) -> Result<(), WriteError> {
        self.begin(size, false)
    }

    /// Begins a regular file whose data is stored as it is, also a short one's: in a block of its own.
    pub fn begin_plain_file(&mut self, size: u64) -> Result<(), WriteError> {
        self.begin(size, true)
    }

    fn begin(&mut self, size: u64, is_plain: bool) -> Result<(), WriteError> {
        if self.open.is_some() {
            return Err(WriteError::OutOfTurn("the file before was not ended"));
        }
        let block_size = u64::from(self.options.block_size);
        let limit = block_size * FILE_BLOCKS_MAX;
        if size > limit {
            return Err(WriteError::FileTooLarge { size, limit, block_size: self.options.block_size });
        }
        let small = size < block_size && (size == 0 || !is_plain);
        if small && size > 0 {
            self.fragments.begin(usize::try_from(size).unwrap_or(usize::MAX), &mut self.pipeline)?;
        }
        self.cutter.set_plain(is_plain);
        self.open = Some(OpenFile { size, got: 0, small });
        Ok(())
    }

    /// The free part of the block being filled: fill a prefix, then [`Writer::advance`] by its length, so
    /// that data goes from the decompressor into the block without a copy. Never empty while the file lacks
    /// bytes, never longer than what the file lacks. What it holds before is of no meaning.
    pub fn spare(&mut self) -> Result<&mut [u8], WriteError> {
        let file = self.open.ok_or(NO_FILE)?;
        if file.lacks() == 0 {
            return Ok(&mut []);
        }
        let block = match file.small {
            true => self.fragments.block().ok_or(NO_FILE)?,
            false => self.cutter.block(&mut self.pipeline)?,
        };
        Ok(block.spare(file.lacks()))
    }

    /// Takes over `length` bytes written into [`Writer::spare`].
    pub fn advance(&mut self, length: usize) -> Result<(), WriteError> {
        if length > self.spare()?.len() {
            let file = self.open.ok_or(NO_FILE)?;
            let got = file.got.saturating_add(length as u64);
            return Err(WriteError::FileLength { expected: file.size, got });
        }
        self.fill(length as u64, |block| block.advance(length))
    }

    /// Appends `length` zero bytes without touching memory for whole blocks (sparse runs).
    pub fn skip(&mut self, length: u64) -> Result<(), WriteError> {
        let mut left = length;
        while left > 0 {
            let file = self.open.ok_or(NO_FILE)?;
            if left > file.lacks() {
                let got = file.got.saturating_add(left);
                return Err(WriteError::FileLength { expected: file.size, got });
            }
            left -= match self.skip_blocks(file, left) {
                0 => self.skip_inside_block(left)?,
                skipped => skipped,
            };
        }
        Ok(())
    }

    /// Skips the whole blocks among the next `length` bytes, all inside the file; gives their bytes.
    fn skip_blocks(&mut self, file: OpenFile, length: u64) -> u64 {
        if file.small || !self.cutter.at_boundary() {
            return 0;
        }
        let block_size = u64::from(self.options.block_size);
        let blocks = if length == file.lacks() { length.div_ceil(block_size) } else { length / block_size };
        // Files have at most FILE_BLOCKS_MAX blocks.
        self.cutter.add_holes(u32::try_from(blocks).unwrap_or(u32::MAX));
        let bytes = length.min(blocks * block_size);
        self.open = Some(OpenFile { got: file.got + bytes, ..file });
        bytes
    }

    /// Writes zeros up to the end of the block, `length` at most; gives how many.
    fn skip_inside_block(&mut self, length: u64) -> Result<u64, WriteError> {
        let zeros = self.spare()?.len().min(usize::try_from(length).unwrap_or(usize::MAX));
        self.fill(zeros as u64, |block| block.fill_zero(zeros))?;
        Ok(zeros as u64)
    }

    /// Lets `put` add `length` bytes, all inside the file and its block, and ends the block when it is
    /// complete.
    fn fill(&mut self, length: u64, put: impl FnOnce(&mut pipeline::Block)) -> Result<(), WriteError> {
        let file = self.open.as_mut().ok_or(NO_FILE)?;
        file.got += length;
        let file = *file;
        if length == 0 {
            return Ok(());
        }
        if file.small {
            put(self.fragments.block().ok_or(NO_FILE)?);
            return Ok(());
        }
        let block_size = self.pipeline.block_size();
        let block = self.cutter.block(&mut self.pipeline)?;
        put(block);
        if block.len() == block_size || file.lacks() == 0 {
            self.cutter.end_block(&mut self.pipeline)?;
        }
        Ok(())
    }

    /// Ends the file; an error if it did not get exactly its size.
    pub fn end_file(&mut self) -> Result<FileId, WriteError> {
        let file = self.open.ok_or(NO_FILE)?;
        if file.got != file.size {
            return Err(WriteError::FileLength { expected: file.size, got: file.got });
        }
        let data = match (file.size, file.small) {
            (0, _) => FileData::Zeros,
            (_, true) => self.fragments.end(&mut self.pipeline)?,
            (_, false) => self.cutter.end(&mut self.pipeline)?,
        };
        self.open = None;
        self.add_file(FileRecord { size: file.size, data })
    }

    fn add_file(&mut self, record: FileRecord) -> Result<FileId, WriteError> {
        let id = u32::try_from(self.files.len())
            .map_err(|_| WriteError::TooMany { what: "files", limit: u64::from(u32::MAX) })?;
        self.data_bytes_in = self.data_bytes_in.saturating_add(record.size);
        self.files.push(record);
        Ok(FileId(id))
    }

    /// Takes a whole file over from an image that has it already, compressed as this image wants it. The image
    /// becomes the same as if the file had been written anew.
    ///
    /// What `file` says is checked against `from`, by a thread: a block that is not what it should be makes a
    /// later call fail with [`WriteError::Stored`].
    pub fn take_over(&mut self, from: &Arc<BlockSource>, file: &StoredFile) -> Result<FileId, WriteError> {
        if self.open.is_some() {
            return Err(WriteError::OutOfTurn("the file before was not ended"));
        }
        let block_size = u64::from(self.options.block_size);
        let damaged = |problem| from.damaged(0, problem);
        let data = match &file.data {
            StoredData::Zeros => FileData::Zeros,
            StoredData::Small { digest, fragment, offset } => {
                let length = u32::try_from(file.size).ok().filter(|length| *length < self.options.block_size);
                let length = length.ok_or_else(|| damaged("a small file is not small"))?;
                let slice = Slice { from: Arc::clone(from), fragment: *fragment, offset: *offset, length };
                if length == 0 || !slice.is_inside() || u64::from(fragment.length) > block_size {
                    return Err(damaged("a small file lies outside its block"));
                }
                self.fragments.take_over(*digest, slice, &mut self.pipeline)?
            }
            StoredData::Blocks(words) => {
                let blocks = |word: &StoredWord| match word {
                    StoredWord::Data(_) => 1,
                    StoredWord::Holes(count) => u64::from(*count),
                };
                if words.iter().map(blocks).sum::<u64>() != file.size.div_ceil(block_size) {
                    return Err(damaged("a file has another number of blocks than its size needs"));
                }
                self.cutter.take_over(from, words, &mut self.pipeline)?
            }
        };
        self.add_file(FileRecord { size: file.size, data })
    }

    /// Ends the fragment block being filled, so that files before and after share none.
    pub fn end_fragment(&mut self) -> Result<(), WriteError> {
        match self.open {
            Some(_) => Err(WriteError::OutOfTurn("the file before was not ended")),
            None => self.fragments.flush(&mut self.pipeline),
        }
    }

    /// Bytes of compressed data handed to the output so far (for progress). A duplicate found makes it
    /// smaller.
    pub fn bytes_out(&self) -> u64 {
        self.pipeline.bytes_out()
    }

    /// Whether blocks wait for a thread that compresses them.
    pub fn is_compressing(&self) -> bool {
        self.pipeline.is_compressing()
    }

    /// Writes the tables and the superblock, padded to 4 KiB; gives back the output, positioned at its end,
    /// for what follows the squashfs (the trailer). Inodes that the root does not reach are left out.
    pub fn finish(mut self, tree: &Tree) -> Result<(File, Summary), WriteError> {
        self.recording = false;
        self.finish_recorded(tree).map(|(file, summary, _)| (file, summary))
    }

    /// The same, with the image's chunks and, only after [`Writer::create_recording`], where every file's data is.
    pub fn finish_recorded(self, tree: &Tree) -> Result<(File, Summary, Written), WriteError> {
        let recording = self.recording;
        let Writer { options, mut pipeline, mut fragments, open, files, data_bytes_in, .. } = self;
        if open.is_some() {
            return Err(WriteError::OutOfTurn("the last file was not ended"));
        }
        fragments.flush(&mut pipeline)?;
        // Else what it remembers for duplicates makes room for the tables.
        let digests = if recording {
            fragments.into_digests()
        } else {
            drop(fragments);
            Vec::new()
        };
        let (sink, mut layout) = pipeline.finish()?;
        let head = head(options.compression);
        let data_bytes_out = sink.position() - head.len() as u64;
        let chunks = std::mem::take(&mut layout.chunks);
        let end = tables::End { sink, chunks, head };
        let (file, superblock, chunks) = tables::write(end, &layout, &files, tree, &options)?;
        let summary = Summary {
            bytes_used: superblock.bytes_used,
            inodes: superblock.inode_count,
            data_bytes_in,
            data_bytes_out,
        };
        Ok((file, summary, Written { files, layout, chunks, digests }))
    }
}

/// Where a finished image has the data of its files.
#[derive(Debug, Default)]
pub struct Written {
    files: Vec<FileRecord>,
    layout: Layout,
    chunks: Vec<Chunk>,
    /// Of the contents of small files, by fragment block and offset.
    digests: Vec<((u32, u32), [u8; 32])>,
}

impl Written {
    /// All chunks of the image, of which the last ends with it.
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// The data of a file, with positions in the image file; none if it was not recorded.
    pub fn file(&self, id: FileId) -> Option<StoredFile> {
        let record = self.files.get(usize::try_from(id.0).ok()?)?;
        let data = match record.data {
            FileData::Zeros => StoredData::Zeros,
            FileData::Fragment { fragment, offset } => {
                let at = self.digests.binary_search_by_key(&(fragment, offset), |(place, _)| *place).ok()?;
                let (_, digest) = *self.digests.get(at)?;
                StoredData::Small { digest, fragment: self.layout.stored_fragment(fragment)?, offset }
            }
            FileData::Run(run) => StoredData::Blocks(self.layout.stored_words(self.layout.run(run)?)?),
        };
        Some(StoredFile { size: record.size, data })
    }
}

/// What comes before the data: room for the superblock, and the compressor options in a metadata block of
/// their own.
fn head(compression: Compression) -> Vec<u8> {
    let mut head = vec![0; SUPERBLOCK_SIZE];
    if let Some(options) = compression.options() {
        let length = u16::try_from(options.len()).unwrap_or(u16::MAX);
        head.extend((length | METADATA_UNCOMPRESSED).to_le_bytes());
        head.extend(options);
    }
    head
}
