//! The output file: few, large, aligned writes, and a position that may be taken back.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use crate::squashfs::writer::WriteError;
use crate::sys::bulk::{BulkFile, DIRECT_ALIGNMENT};

/// Writes end at multiples of this where possible: a stripe or object of parallel file systems, bytes.
const CHUNK: usize = 4 << 20;

/// A file written from 0 upwards.
#[derive(Debug)]
pub(super) struct Sink {
    file: BulkFile,
    /// File offset of the first byte of what is pending.
    start: u64,
    pending: Pending,
    /// End of what was ever written; may lie beyond the position after a rewind.
    high_water: u64,
}

impl Sink {
    /// Starts at offset 0 with `head`, to be replaced by [`Sink::finish`].
    pub(super) fn new(file: File, head: &[u8]) -> Sink {
        let mut pending = Pending::new();
        // A few bytes into 4 MiB.
        let _ = pending.extend(head);
        Sink { file: BulkFile::new(file), start: 0, pending, high_water: 0 }
    }

    /// Where the next byte goes.
    pub(super) fn position(&self) -> u64 {
        self.start + self.pending.length as u64
    }

    /// Appends `bytes`.
    pub(super) fn append(&mut self, mut bytes: &[u8]) -> Result<(), WriteError> {
        while !bytes.is_empty() {
            let into_chunk = self.position() % CHUNK as u64;
            let room = CHUNK.saturating_sub(usize::try_from(into_chunk).unwrap_or(0));
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.pending.extend(now)?;
            bytes = later;
            if now.len() == room {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Takes back everything from `position` on, which must not lie ahead.
    pub(super) fn rewind(&mut self, position: u64) {
        match position.checked_sub(self.start).and_then(|keep| usize::try_from(keep).ok()) {
            Some(keep) => self.pending.truncate(keep),
            None => {
                self.pending.truncate(0);
                self.start = position;
            }
        }
    }

    /// Writes what is pending, then `head` over the first bytes, and cuts the file at the position.
    pub(super) fn finish(mut self, head: &[u8]) -> Result<File, WriteError> {
        self.flush()?;
        let end = self.position();
        let output = |source| WriteError::Output { offset: end, source };
        let mut file = self.file.into_file();
        if self.high_water > end {
            file.set_len(end).map_err(output)?;
        }
        file.write_all_at(head, 0).map_err(|source| WriteError::Output { offset: 0, source })?;
        file.seek(SeekFrom::Start(end)).map_err(output)?;
        Ok(file)
    }

    fn flush(&mut self) -> Result<(), WriteError> {
        self.file
            .write_at(self.pending.filled(), self.start)
            .map_err(|source| WriteError::Output { offset: self.start, source })?;
        self.start = self.position();
        self.pending.truncate(0);
        self.high_water = self.high_water.max(self.start);
        Ok(())
    }
}

/// Memory for one chunk, aligned as direct writes want it.
#[derive(Debug)]
struct Pending {
    memory: Box<[u8]>,
    /// First aligned byte of `memory`.
    first: usize,
    length: usize,
}

impl Pending {
    fn new() -> Pending {
        let memory = vec![0; CHUNK + DIRECT_ALIGNMENT].into_boxed_slice();
        let first = memory.as_ptr().align_offset(DIRECT_ALIGNMENT).min(DIRECT_ALIGNMENT);
        Pending { memory, first, length: 0 }
    }

    fn filled(&self) -> &[u8] {
        self.memory.get(self.first..self.first + self.length).unwrap_or_default()
    }

    /// Appends `bytes`, for which there is room: what is pending never crosses a multiple of [`CHUNK`].
    fn extend(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let from = self.first + self.length;
        let room = self.memory.get_mut(from..from + bytes.len());
        room.ok_or(WriteError::OutOfTurn("more is pending than a chunk holds"))?.copy_from_slice(bytes);
        self.length += bytes.len();
        Ok(())
    }

    fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pieces: &[(usize, u8)], rewind: (u64, usize), after: &[(usize, u8)]) {
        let file = tempfile::tempfile().unwrap();
        let mut sink = Sink::new(file.try_clone().unwrap(), b"head");
        let mut expected = b"HEAD".to_vec();
        for (length, byte) in pieces {
            sink.append(&vec![*byte; *length]).unwrap();
            expected.extend(vec![*byte; *length]);
        }
        sink.rewind(rewind.0);
        expected.truncate(rewind.1);
        for (length, byte) in after {
            sink.append(&vec![*byte; *length]).unwrap();
            expected.extend(vec![*byte; *length]);
        }
        assert_eq!(sink.position(), expected.len() as u64);
        sink.finish(b"HEAD").unwrap();
        let mut got = vec![0; expected.len()];
        assert_eq!(file.metadata().unwrap().len(), got.len() as u64);
        file.read_exact_at(&mut got, 0).unwrap();
        assert!(got == expected, "{} bytes, expected {}", got.len(), expected.len());
    }

    #[test]
    fn rewinds_inside_and_before_what_is_pending() {
        check(&[(10, b'a')], (14, 14), &[]);
        check(&[(10, b'a')], (7, 7), &[(20, b'b')]);
        check(&[(CHUNK, b'a'), (5, b'b')], (100, 100), &[]);
        check(&[(3 * CHUNK, b'a'), (5, b'b')], (CHUNK as u64 + 1, CHUNK + 1), &[(CHUNK / 2, b'c')]);
        check(&[(3 * CHUNK, b'a')], (3 * CHUNK as u64, 3 * CHUNK), &[(2 * CHUNK, b'c')]);
    }
}
