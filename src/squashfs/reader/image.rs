//! The image's bytes, by `pread` only: a mapped image that shrinks would kill its reader with SIGBUS.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Error, ErrorKind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::ReadError;
use super::backing::Backing;
use crate::sys::file;

/// Says whether bytes that were read from an image file are the image's.
pub trait Vouch: std::fmt::Debug + Send + Sync {
    /// Looks at `bytes` just read from `offset` of `file`, may put the right ones in their place, and gives how many of
    /// them are good; the rest was never part of the image. An error if they are wrong.
    fn vouch(&self, file: &File, offset: u64, bytes: &mut [u8]) -> std::io::Result<usize>;
}

/// Most bytes of its buffer that a thread keeps from one read to the next.
const BUFFER_KEPT: usize = 256 << 10;

/// A file that holds the image's bytes.
#[derive(Debug)]
struct Source {
    backing: Backing,
    /// Looks at all that is read.
    voucher: Option<Arc<dyn Vouch>>,
}

/// A squashfs inside a file. Positions count from the superblock; errors name offsets in the file.
#[derive(Debug)]
pub(super) struct Image {
    original: Source,
    /// The same bytes in a file that is nearer.
    copy: OnceLock<Source>,
    /// Whether the copy is read: as long as it has never failed.
    is_near: AtomicBool,
    /// Where in the file the superblock lies.
    base: u64,
}

impl Image {
    pub(super) fn new(file: File, base: u64, voucher: Option<Arc<dyn Vouch>>) -> Image {
        let original = Source { backing: Backing::new(file), voucher };
        Image { original, copy: OnceLock::new(), is_near: AtomicBool::new(false), base }
    }

    /// The file that it was opened from.
    pub(super) fn file(&self) -> &File {
        self.original.backing.file()
    }

    /// The copy, if it has one.
    pub(super) fn copy(&self) -> Option<&File> {
        self.copy.get().map(|copy| copy.backing.file())
    }

    /// See [`super::Filesystem::use_copy`].
    pub(super) fn use_copy(&self, file: File, voucher: Option<Arc<dyn Vouch>>) {
        if self.copy.set(Source { backing: Backing::new(file), voucher }).is_ok() {
            self.is_near.store(true, Ordering::Release);
        }
    }

    /// See [`super::Filesystem::be_patient`].
    pub(super) fn be_patient(&mut self) {
        self.original.backing.be_patient();
    }

    /// Length of the file, bytes; unknown for what is not a regular file, such as a block device.
    pub(super) fn file_length(&self) -> Result<Option<u64>, ReadError> {
        let metadata = self.original.backing.metadata().map_err(|source| self.refused(0, 0, source))?;
        Ok(metadata.is_file().then_some(metadata.len()))
    }

    /// The offset in the file of a position in the squashfs.
    pub(super) fn offset(&self, position: u64) -> u64 {
        self.base.saturating_add(position)
    }

    /// The offset in the file of the end of a squashfs of `length` bytes, if a file can be as long.
    pub(super) fn end(&self, length: u64) -> Option<u64> {
        self.base.checked_add(length).filter(|end| i64::try_from(*end).is_ok())
    }

    /// Has the kernel read ahead; a hint only.
    pub(super) fn will_need(&self, position: u64, length: usize) {
        let near = self.copy().filter(|_| self.is_near.load(Ordering::Acquire));
        file::will_need(near.unwrap_or_else(|| self.file()), self.offset(position), length as u64);
    }

    /// Fills `out`.
    pub(super) fn read(&self, position: u64, out: &mut [u8]) -> Result<(), ReadError> {
        let length = out.len();
        let got = self.read_available(position, out)?;
        if got < length {
            let source = Error::new(ErrorKind::UnexpectedEof, format!("the file ends after {got} of them"));
            return Err(self.refused(position, length, source));
        }
        Ok(())
    }

    /// Fills `out` as far as the file reaches; gives the number of bytes read.
    pub(super) fn read_available(&self, position: u64, out: &mut [u8]) -> Result<usize, ReadError> {
        let Some(copy) = self.copy.get().filter(|_| self.is_near.load(Ordering::Acquire)) else {
            return self.read_from(&self.original, position, out);
        };
        let near = self.read_from(copy, position, out);
        if near.as_ref().is_ok_and(|got| *got == out.len()) {
            return near;
        }
        // Either the image ends here, or the copy is no good: cut short, altered, or its disk is failing.
        let got = self.read_from(&self.original, position, out)?;
        if near.ok() != Some(got) {
            self.is_near.store(false, Ordering::Release);
        }
        Ok(got)
    }

    fn read_from(&self, source: &Source, position: u64, out: &mut [u8]) -> Result<usize, ReadError> {
        let length = out.len();
        let mut done = 0;
        while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match source.backing.read_at(rest, self.offset(position).saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) => return Err(self.refused(position, length, error)),
            }
        }
        match (&source.voucher, out.get_mut(..done)) {
            (Some(voucher), Some(read)) => voucher
                .vouch(source.backing.file(), self.offset(position), read)
                .map_err(|error| self.refused(position, length, error)),
            _ => Ok(done),
        }
    }

    /// Reads `length` bytes into this thread's buffer and hands them to `each`.
    pub(super) fn with_bytes<T>(
        &self,
        position: u64,
        length: usize,
        each: impl FnOnce(&[u8]) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        self.with_available(position, length, |bytes| {
            if bytes.len() < length {
                let ended = format!("the file ends after {} of them", bytes.len());
                return Err(self.refused(position, length, Error::new(ErrorKind::UnexpectedEof, ended)));
            }
            each(bytes)
        })
    }

    /// Like [`Image::with_bytes`], with fewer bytes where the file ends.
    pub(super) fn with_available<T>(
        &self,
        position: u64,
        length: usize,
        each: impl FnOnce(&[u8]) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        thread_local! {
            static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < length {
                buffer.resize(length, 0);
            }
            let room = buffer.get_mut(..length).unwrap_or_default();
            let got = self.read_available(position, room)?;
            let outcome = each(room.get(..got).unwrap_or_default());
            // Blocks of 1 MiB would add up over many threads.
            if buffer.len() > BUFFER_KEPT {
                *buffer = Vec::new();
            }
            outcome
        })
    }

    /// The bytes at `position` contradict the format.
    pub(super) fn corrupt(&self, position: u64, what: impl Into<String>) -> ReadError {
        ReadError::Corrupt { offset: self.offset(position), what: what.into() }
    }

    fn refused(&self, position: u64, length: usize, source: Error) -> ReadError {
        ReadError::Io { offset: self.offset(position), length, source }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn file(content: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(content, 0).unwrap();
        file
    }

    fn read(image: &Image, position: u64, length: usize) -> Vec<u8> {
        let mut out = vec![0; length];
        let got = image.read_available(position, &mut out).unwrap();
        out.truncate(got);
        out
    }

    #[derive(Debug)]
    struct Doubtful;

    impl Vouch for Doubtful {
        fn vouch(&self, _: &File, offset: u64, bytes: &mut [u8]) -> std::io::Result<usize> {
            if offset == 0 { Ok(bytes.len()) } else { Err(Error::other("wrong bytes")) }
        }
    }

    #[test]
    fn a_copy_is_read_until_it_fails() {
        for (copy, voucher) in [
            // Cut short.
            (&b"copy"[..], None),
            // Altered.
            (b"copyother", Some(Arc::new(Doubtful) as Arc<dyn Vouch>)),
        ] {
            let image = Image::new(file(b"originals"), 0, None);
            assert_eq!(read(&image, 0, 4), b"orig");
            image.use_copy(file(copy), voucher);
            assert_eq!(read(&image, 0, 4), b"copy");
            assert_eq!(read(&image, 4, 5), b"inals");
            assert_eq!(read(&image, 0, 4), b"orig", "it is not trusted again");
        }
    }

    #[test]
    fn the_end_of_the_image_is_no_fault_of_the_copy() {
        let image = Image::new(file(b"original"), 2, None);
        image.use_copy(file(b"thecopy!"), None);
        assert_eq!(read(&image, 4, 9), b"al");
        assert_eq!(read(&image, 0, 5), b"ecopy");
    }
}
