//! The image's bytes, by `pread` only: a mapped image that shrinks would kill its reader with SIGBUS.

use std::cell::RefCell;
use std::fs::File;
use std::io::{Error, ErrorKind};
use std::sync::Arc;

use super::ReadError;
use super::backing::Backing;

/// Says whether bytes that were read from an image file are the image's.
pub trait Vouch: std::fmt::Debug + Send + Sync {
    /// Looks at `bytes` just read from `offset` of `file`, may put the right ones in their place, and gives how many of
    /// them are good; the rest was never part of the image. An error if they are wrong.
    fn vouch(&self, file: &File, offset: u64, bytes: &mut [u8]) -> std::io::Result<usize>;
}

/// Most bytes of its buffer that a thread keeps from one read to the next.
const BUFFER_KEPT: usize = 256 << 10;

/// A squashfs inside a file. Positions count from the superblock; errors name offsets in the file.
#[derive(Debug)]
pub(super) struct Image {
    backing: Backing,
    /// Where in the file the superblock lies.
    base: u64,
    /// Looks at all that is read.
    voucher: Option<Arc<dyn Vouch>>,
}

impl Image {
    pub(super) fn new(file: File, base: u64, voucher: Option<Arc<dyn Vouch>>) -> Image {
        Image { backing: Backing::new(file), base, voucher }
    }

    pub(super) fn file(&self) -> &File {
        self.backing.file()
    }

    /// See [`super::Filesystem::be_patient`].
    pub(super) fn be_patient(&mut self) {
        self.backing.be_patient();
    }

    /// Length of the file, bytes; unknown for what is not a regular file, such as a block device.
    pub(super) fn file_length(&self) -> Result<Option<u64>, ReadError> {
        let metadata = self.backing.metadata().map_err(|source| self.refused(0, 0, source))?;
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
        let length = out.len();
        let mut done = 0;
        while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.backing.read_at(rest, self.offset(position).saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) => return Err(self.refused(position, length, error)),
            }
        }
        match (&self.voucher, out.get_mut(..done)) {
            (Some(voucher), Some(read)) => voucher
                .vouch(self.backing.file(), self.offset(position), read)
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
