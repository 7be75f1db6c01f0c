//! Holds what is read of an image file against its chunk hashes, so that a file changed under a running job gives it an
//! error and never other bytes.
//!
//! A hash of everything that is read would cost as much as decompressing it. What tells of a change for nearly nothing
//! is the file's change time: the kernel sets it before the first changed byte can be read, and nobody can set it back.
//! So each read is followed by a look at it, and only from the first difference on the hashes decide.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::image::chunks::{Chunk, ChunkError, Index};
use crate::image::trailer::Place;
use crate::squashfs::reader::Vouch;
use crate::sys::file::{self, Stamp};

/// The chunk hashes of an image file whose squashfs begins at offset 0.
#[derive(Debug, Clone, Copy)]
pub struct Hashes {
    /// Where they lie, with the digest that they had when the image was opened.
    pub place: Place,
    /// Bytes of the squashfs.
    pub squashfs_length: u64,
}

/// When the hashes are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// As soon as the file is another than when it had this stamp.
    ChangedSince(Stamp),
    /// For every read.
    Always,
}

/// Vouches for one image file.
#[derive(Debug)]
pub struct Voucher {
    hashes: Hashes,
    when: When,
    in_doubt: AtomicBool,
    /// Loaded when the first chunk is checked. Hashes that are wrong then are wrong for good.
    index: OnceLock<Result<Index, String>>,
}

impl Voucher {
    /// Of the file with these hashes.
    pub fn new(hashes: Hashes, when: When) -> Voucher {
        Voucher { hashes, when, in_doubt: AtomicBool::new(when == When::Always), index: OnceLock::new() }
    }

    /// Whether the hashes decide. Looks at the file after it was read: what was read before a change is right.
    fn is_in_doubt(&self, file: &File) -> bool {
        if self.in_doubt.load(Ordering::Relaxed) {
            return true;
        }
        let When::ChangedSince(stamp) = self.when else { return true };
        match file::stamp(file) {
            Ok(now) if now == stamp => return false,
            Ok(_) => self.in_doubt.store(true, Ordering::Relaxed),
            // For this read; the next one looks again.
            Err(_) => {}
        }
        true
    }

    fn index(&self, file: &File) -> io::Result<&Index> {
        let Hashes { place, squashfs_length } = &self.hashes;
        let read_at = |offset: u64, bytes: &mut [u8]| read_whole(file, offset, bytes);
        let changed = |why: &str| io::Error::other(format!("the image file has changed, and {why}"));
        let index = match self.index.get() {
            Some(known) => known,
            None => match Index::load(place, *squashfs_length, &read_at) {
                // Another time the store may answer.
                Err(error @ ChunkError::Read(_)) => return Err(changed(&with_cause(&error))),
                loaded => self.index.get_or_init(|| loaded.map_err(|error| with_cause(&error))),
            },
        };
        index.as_ref().map_err(|why| changed(why))
    }

    fn check(&self, file: &File, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let index = self.index(file)?;
        let end = offset.saturating_add(bytes.len() as u64).min(self.hashes.squashfs_length);
        let Some(length) = end.checked_sub(offset).filter(|length| *length > 0) else { return Ok(0) };
        let read_at = |offset: u64, bytes: &mut [u8]| read_whole(file, offset, bytes);
        let chunks = index.covering(offset, end, &read_at).map_err(io::Error::other)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let wanted = bytes.get_mut(..length).unwrap_or_default();
        for chunk in &chunks {
            check_chunk(chunk, file, offset, wanted)?;
        }
        Ok(length)
    }
}

/// Checks the part of `chunk` in `wanted`, which was read from `offset`. What is not there as a whole is read as a
/// whole, and its part in `wanted` comes from that: the file may have changed between the two reads.
fn check_chunk(chunk: &Chunk, file: &File, offset: u64, wanted: &mut [u8]) -> io::Result<()> {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    let wrong = || {
        let (from, to) = (chunk.offset, chunk.end());
        io::Error::other(format!(
            "the image file has changed: bytes {from} to {to} are not those of the image"
        ))
    };
    let place = |at: u64| at.checked_sub(offset).and_then(|at| usize::try_from(at).ok());
    let whole = place(chunk.offset).zip(place(chunk.end())).and_then(|(from, to)| wanted.get(from..to));
    if let Some(whole) = whole {
        return if chunk.is(whole) { Ok(()) } else { Err(wrong()) };
    }
    BUFFER.with_borrow_mut(|buffer| {
        buffer.resize(usize::try_from(chunk.length).unwrap_or(0), 0);
        read_whole(file, chunk.offset, buffer)?;
        if !chunk.is(buffer) {
            return Err(wrong());
        }
        let from = offset.max(chunk.offset);
        let to = chunk.end().min(offset.saturating_add(wanted.len() as u64));
        let source = |at: u64| usize::try_from(at.saturating_sub(chunk.offset)).unwrap_or(usize::MAX);
        let part = buffer.get(source(from)..source(to)).ok_or_else(wrong)?;
        let room = place(from).zip(place(to)).and_then(|(from, to)| wanted.get_mut(from..to));
        room.ok_or_else(wrong)?.copy_from_slice(part);
        Ok(())
    })
}

fn read_whole(file: &File, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
    file.read_exact_at(bytes, offset).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::new(error.kind(), "the file ends before them"),
        _ => error,
    })
}

fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

impl Vouch for Voucher {
    fn vouch(&self, file: &File, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
        if self.is_in_doubt(file) { self.check(file, offset, bytes) } else { Ok(bytes.len()) }
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::image::chunks;

    const LENGTHS: [usize; 6] = [96, 5000, 40_000, 1, 32_768, 700];

    struct Sample {
        file: File,
        content: Vec<u8>,
        hashes: Hashes,
    }

    impl Sample {
        fn new() -> Sample {
            let length: usize = LENGTHS.iter().sum();
            let content: Vec<u8> = (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect();
            let mut rest = content.as_slice();
            let section = chunks::encode(LENGTHS.into_iter().map(|length| {
                let (chunk, after) = rest.split_at(length);
                rest = after;
                (u32::try_from(length).unwrap(), Sha256::digest(chunk).into())
            }));
            let file = tempfile::tempfile().unwrap();
            let offset = content.len() as u64 + 100;
            file.write_all_at(&content, 0).unwrap();
            file.write_all_at(&section, offset).unwrap();
            let digest = Sha256::digest(&section).into();
            let place = Place { offset, length: section.len() as u64, digest };
            let hashes = Hashes { place, squashfs_length: content.len() as u64 };
            Sample { file, content, hashes }
        }

        /// Reads as the reader does, and lets `voucher` look at it.
        fn read(&self, voucher: &Voucher, offset: usize, length: usize) -> Result<Vec<u8>, String> {
            let mut bytes = vec![0; length];
            let got = self.file.read_at(&mut bytes, offset as u64).unwrap();
            let good = voucher.vouch(&self.file, offset as u64, &mut bytes[..got]);
            bytes.truncate(good.map_err(|error| error.to_string())?);
            Ok(bytes)
        }
    }

    #[test]
    fn all_that_is_good_passes_and_nothing_behind_the_squashfs() {
        let sample = Sample::new();
        let voucher = Voucher::new(sample.hashes, When::Always);
        let end = sample.content.len();
        for (offset, length) in
            [(0, end), (0, 96), (96, 5000), (95, 2), (5095, 40_003), (50_000, 10_000), (end - 1, 1)]
        {
            assert_eq!(
                sample.read(&voucher, offset, length).unwrap(),
                sample.content[offset..offset + length]
            );
        }
        assert_eq!(sample.read(&voucher, end - 10, 5000).unwrap(), sample.content[end - 10..]);
        assert_eq!(sample.read(&voucher, end, 10).unwrap(), b"");
    }

    #[test]
    fn a_changed_byte_fails_its_chunk_and_no_other() {
        let sample = Sample::new();
        let voucher = Voucher::new(sample.hashes, When::Always);
        sample.file.write_all_at(b"X", 5100).unwrap();
        for (offset, length) in [(5096, 40_000), (5100, 1), (6000, 10), (45_000, 97), (5000, 97)] {
            let error = sample.read(&voucher, offset, length).unwrap_err();
            assert!(error.contains("bytes 5096 to 45096 are not those of the image"), "{error}");
        }
        for (offset, length) in [(0, 5096), (45_096, 33_000)] {
            assert_eq!(
                sample.read(&voucher, offset, length).unwrap(),
                sample.content[offset..offset + length]
            );
        }
    }

    #[test]
    fn hashes_are_read_only_after_a_change() {
        let sample = Sample::new();
        let stamp = file::stamp(&sample.file).unwrap();
        let mut unused = sample.hashes;
        unused.place.offset = 1 << 40;
        let voucher = Voucher::new(unused, When::ChangedSince(stamp));
        assert_eq!(sample.read(&voucher, 0, 100).unwrap(), sample.content[..100]);
        assert!(voucher.index.get().is_none());
        // The kernel's clock for files ticks every few milliseconds.
        std::thread::sleep(std::time::Duration::from_millis(50));
        sample.file.write_all_at(b"X", 3).unwrap();
        let error = sample.read(&voucher, 0, 100).unwrap_err();
        assert!(error.contains("cannot read the chunk hashes"), "{error}");
        let voucher = Voucher::new(sample.hashes, When::ChangedSince(stamp));
        assert!(sample.read(&voucher, 0, 100).is_err());
        assert_eq!(sample.read(&voucher, 96, 100).unwrap(), sample.content[96..196]);
    }

    #[test]
    fn hashes_that_changed_too_vouch_for_nothing() {
        let sample = Sample::new();
        let mut byte = [0];
        let at = sample.hashes.place.offset + 70;
        sample.file.read_exact_at(&mut byte, at).unwrap();
        sample.file.write_all_at(&[!byte[0]], at).unwrap();
        let voucher = Voucher::new(sample.hashes, When::Always);
        let error = sample.read(&voucher, 96, 100).unwrap_err();
        assert!(error.contains("chunk hashes are damaged"), "{error}");
    }
}
