//! File data on its way from the tar into the squashfs.

use std::sync::Arc;

use super::Progress;
use super::layer::tar::{Entry, EntryKind, Reader, Segment, TarError};
use super::plain;
use super::progress::Wait;
use crate::squashfs::writer::{BlockSource, FileId, StoredFile, WriteError, Writer};

/// Where file data goes: the squashfs writer, or whatever a test puts in its place.
pub trait FileSink {
    /// Begins a file of exactly `size` bytes, holes included.
    fn begin_file(&mut self, size: u64) -> Result<(), WriteError>;

    /// Begins a file that is better stored without compression.
    fn begin_plain_file(&mut self, size: u64) -> Result<(), WriteError> {
        self.begin_file(size)
    }

    /// Room for the next bytes; never empty while the file lacks some.
    fn spare(&mut self) -> Result<&mut [u8], WriteError>;
    /// Takes over the first `length` bytes of [`FileSink::spare`].
    fn advance(&mut self, length: usize) -> Result<(), WriteError>;
    /// Appends `length` zero bytes.
    fn skip(&mut self, length: u64) -> Result<(), WriteError>;
    /// Ends the file.
    fn end_file(&mut self) -> Result<FileId, WriteError>;
    /// Compressed bytes that have gone out so far.
    fn bytes_out(&self) -> u64;
    /// Whether data waits to be compressed; if not, a sink that makes its caller wait waits for the disk.
    fn is_compressing(&self) -> bool {
        false
    }

    /// Ends a layer: small files before and after share no block.
    fn end_layer(&mut self) -> Result<(), WriteError> {
        Ok(())
    }

    /// Takes over a whole file that is compressed already.
    fn take_over(&mut self, _from: &Arc<BlockSource>, _file: &StoredFile) -> Result<FileId, WriteError> {
        Err(WriteError::OutOfTurn("this sink has no use for compressed blocks"))
    }
}

impl FileSink for Writer {
    fn begin_file(&mut self, size: u64) -> Result<(), WriteError> {
        Writer::begin_file(self, size)
    }

    fn begin_plain_file(&mut self, size: u64) -> Result<(), WriteError> {
        Writer::begin_plain_file(self, size)
    }

    fn spare(&mut self) -> Result<&mut [u8], WriteError> {
        Writer::spare(self)
    }

    fn advance(&mut self, length: usize) -> Result<(), WriteError> {
        Writer::advance(self, length)
    }

    fn skip(&mut self, length: u64) -> Result<(), WriteError> {
        Writer::skip(self, length)
    }

    fn end_file(&mut self) -> Result<FileId, WriteError> {
        Writer::end_file(self)
    }

    fn bytes_out(&self) -> u64 {
        Writer::bytes_out(self)
    }

    fn is_compressing(&self) -> bool {
        Writer::is_compressing(self)
    }

    fn end_layer(&mut self) -> Result<(), WriteError> {
        self.end_fragment()
    }

    fn take_over(&mut self, from: &Arc<BlockSource>, file: &StoredFile) -> Result<FileId, WriteError> {
        Writer::take_over(self, from, file)
    }
}

/// Which end of the copy failed.
#[derive(Debug)]
pub(super) enum CopyError {
    Read(TarError),
    Write(WriteError),
}

impl From<TarError> for CopyError {
    fn from(error: TarError) -> CopyError {
        CopyError::Read(error)
    }
}

impl From<WriteError> for CopyError {
    fn from(error: WriteError) -> CopyError {
        CopyError::Write(error)
    }
}

/// Stores the file that `entry` begins. Its bytes are copied once, from the decompressed chunk into the block that will
/// be compressed; holes are not touched at all.
pub(super) fn store_file<R: std::io::Read>(
    reader: &mut Reader<R>,
    entry: &Entry,
    sink: &mut impl FileSink,
    progress: &Progress,
) -> Result<FileId, CopyError> {
    let (size, segments): (u64, &[Segment]) = match &entry.kind {
        EntryKind::File { size, segments } => (*size, segments),
        _ => (0, &[]),
    };
    wait_for(sink, progress);
    if plain::is_read_by_every_start(&entry.path) {
        sink.begin_plain_file(size)?;
    } else {
        sink.begin_file(size)?;
    }
    progress.wait_for(Wait::Nothing);
    let mut at = 0;
    for segment in segments {
        if let Some(hole @ 1..) = segment.offset.checked_sub(at) {
            sink.skip(hole)?;
        }
        store_segment(reader, entry, segment.length, sink, progress)?;
        at = segment.end().unwrap_or(size);
    }
    if let Some(hole @ 1..) = size.checked_sub(at) {
        sink.skip(hole)?;
    }
    Ok(sink.end_file()?)
}

fn store_segment<R: std::io::Read>(
    reader: &mut Reader<R>,
    entry: &Entry,
    mut left: u64,
    sink: &mut impl FileSink,
    progress: &Progress,
) -> Result<(), CopyError> {
    while left > 0 {
        wait_for(sink, progress);
        let spare = sink.spare()?;
        progress.wait_for(Wait::Nothing);
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(spare.len());
        let got = reader.read_data(spare.get_mut(..wanted).unwrap_or_default()).map_err(|mut error| {
            error.entry = Some(entry.path.clone());
            error
        })?;
        sink.advance(got)?;
        left -= got as u64;
    }
    Ok(())
}

/// Says what the next call of `sink` waits for, if it waits.
fn wait_for(sink: &impl FileSink, progress: &Progress) {
    progress.wait_for(if sink.is_compressing() { Wait::Compression } else { Wait::Disk });
}
