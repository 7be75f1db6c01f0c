//! Makes a copy while the job runs: one thread of the image server, behind everybody else, ended with it at any moment.
//!
//! What a job that ended early has left is gone on with by the next, after it was checked.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;

use super::{Directory, LocalCopy, Original, Wanted, room};
use crate::image::chunks::{Chunk, ChunkError, Index};
use crate::mount::voucher::Hashes;
use crate::squashfs::reader::Filesystem;
use crate::sys::file::{self, Stamp};
use crate::sys::lock::Locked;
use crate::sys::{self, directory, path, process};

/// Bytes read at a time; a chunk may have as many.
const PIECE_BYTES: u64 = 1 << 20;

/// Makes the copy of one image file.
#[derive(Debug, Clone)]
pub struct Maker {
    directory: Arc<File>,
    /// The directory's, for people.
    path: PathBuf,
    wanted: Wanted,
}

/// Why there is no copy. Where a server makes it, nobody is told: the image file goes on being read.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// Another server makes it.
    #[error("somebody else makes the copy")]
    InTheMaking,
    /// Too large for what may be removed.
    #[error("there is no room for the copy")]
    NoRoom,
    /// The image file is not what it was, or not what its hashes say.
    #[error("the image file has changed")]
    Changed,
    /// A system call was refused.
    #[error(transparent)]
    Refused(#[from] sys::Error),
    /// Reading or writing was.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The chunk hashes are no good.
    #[error(transparent)]
    Hashes(#[from] ChunkError),
}

impl Maker {
    pub(super) fn new(directory: Arc<File>, path: PathBuf, wanted: Wanted) -> Maker {
        Maker { directory, path, wanted }
    }

    /// The directory of the copy.
    pub(in crate::mount) fn directory(&self) -> &File {
        &self.directory
    }

    /// Makes the copy and has `image` read it. Takes as long as it takes.
    pub(in crate::mount) fn make(&self, image: &Filesystem) -> Result<(), MakeError> {
        process::be_last();
        if !self.has_copy() {
            let unless_taken = |file: File| Locked::try_exclusive(file)?.ok_or(MakeError::InTheMaking);
            self.make_file(image.file(), unless_taken)?;
        }
        if let Some(copy) = self.opened() {
            copy.give_to(image, &self.wanted.original);
        }
        Ok(())
    }

    fn original(&self) -> &Original {
        &self.wanted.original
    }

    fn opened(&self) -> Option<LocalCopy> {
        let file = self.directory.try_clone().ok()?;
        Directory { file, path: self.path.clone() }.copy(self.original(), true)
    }

    pub(super) fn has_copy(&self) -> bool {
        self.opened().is_some()
    }

    /// Makes the copy; false if somebody else has just finished it, or given up. `lock` says what to do while they are
    /// at it.
    pub(super) fn make_file<E: Into<MakeError>>(
        &self,
        image: &File,
        lock: impl FnOnce(File) -> Result<Locked, E>,
    ) -> Result<bool, MakeError> {
        let key = &self.original().key;
        let partial = path::open_file_in(&self.directory, &key.partial(), true)?;
        let partial = lock(partial).map_err(Into::into)?;
        let named = file::stat(self.directory.as_fd(), &key.partial())?;
        if named.is_none_or(|named| Some(named.st_ino) != inode(partial.file())) || self.has_copy() {
            return Ok(false);
        }
        let (size, length) = (self.wanted.settings.size_bytes, self.original().length);
        let made = match room::make(&self.directory, key, size, length) {
            true => self.fill(image, partial.file()),
            false => Err(MakeError::NoRoom),
        };
        if let Err(error) = made {
            // Only what the end of a job has left is worth keeping: a full disk is better off without.
            file::unlink(self.directory.as_fd(), &key.partial())?;
            return Err(error);
        }
        self.publish(partial.file())?;
        directory::forget_cached(image);
        Ok(true)
    }

    /// Gives the finished copy its name. Synced before: a name must never stand for bytes that a crash has lost.
    fn publish(&self, copy: &File) -> Result<(), MakeError> {
        let key = &self.original().key;
        directory::set_mode(copy, if self.original().is_public { 0o444 } else { 0o400 })?;
        file::sync(copy)?;
        drop(path::open_file_in(&self.directory, &key.used(), true)?);
        directory::touch(self.directory.as_fd(), &key.used())?;
        file::rename(self.directory.as_fd(), &key.partial(), &key.name())?;
        Ok(())
    }

    /// Copies the image file, through an opening of its own: the server's reads here and there would spoil the kernel's
    /// read-ahead, and the other way round.
    fn fill(&self, image: &File, to: &File) -> Result<(), MakeError> {
        let again = directory::opened_again(image).ok();
        let from = again.as_ref().unwrap_or(image);
        let original = self.original();
        match &original.hashes {
            Some(hashes) => copy_checked(from, to, hashes, original.length),
            None => {
                to.set_len(0)?;
                copy_plainly(from, to, 0, original.length)?;
                // Without hashes the file's own times must do.
                let is_same = Stamp::of(&from.metadata()?) == original.stamp;
                if is_same { Ok(()) } else { Err(MakeError::Changed) }
            }
        }
    }
}

/// Copies the squashfs chunk by chunk, each checked, and what is behind it.
fn copy_checked(from: &File, to: &File, hashes: &Hashes, length: u64) -> Result<(), MakeError> {
    let read_at = |offset: u64, bytes: &mut [u8]| from.read_exact_at(bytes, offset);
    let index = Index::load(&hashes.place, hashes.squashfs_length, &read_at)?;
    let mut begun = to.metadata()?.len();
    let mut buffer = Vec::new();
    for number in 0..index.pages() {
        let chunks = index.page(number, &read_at)?;
        let mut rest = chunks.as_slice();
        while let Some(first) = rest.first() {
            let fits = |chunk: &&Chunk| chunk.end().saturating_sub(first.offset) <= PIECE_BYTES;
            let count = rest.iter().take_while(fits).count().max(1);
            let (now, later) = rest.split_at(count);
            let end = now.last().map_or(first.end(), Chunk::end);
            buffer.resize(usize::try_from(end.saturating_sub(first.offset)).unwrap_or(0), 0);
            // From the first wrong byte on, what was begun is of no use.
            let is_there =
                begun >= end && to.read_exact_at(&mut buffer, first.offset).is_ok() && are(now, &buffer);
            if !is_there {
                begun = 0;
                from.read_exact_at(&mut buffer, first.offset)?;
                if !are(now, &buffer) {
                    return Err(MakeError::Changed);
                }
                to.write_all_at(&buffer, first.offset)?;
            }
            rest = later;
        }
    }
    copy_plainly(from, to, hashes.squashfs_length, length)?;
    to.set_len(length)?;
    let read_back = |offset: u64, bytes: &mut [u8]| to.read_exact_at(bytes, offset);
    Index::load(&hashes.place, hashes.squashfs_length, &read_back)?;
    Ok(())
}

fn inode(file: &File) -> Option<u64> {
    file.metadata().ok().map(|metadata| metadata.ino())
}

/// Whether these are the bytes of chunks that follow one another.
fn are(chunks: &[Chunk], mut bytes: &[u8]) -> bool {
    chunks.iter().all(|chunk| {
        let length = usize::try_from(chunk.length).unwrap_or(usize::MAX);
        let (own, after) = bytes.split_at_checked(length).unwrap_or((&[], &[]));
        bytes = after;
        chunk.is(own)
    })
}

fn copy_plainly(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; usize::try_from(PIECE_BYTES).unwrap_or(0)];
    let mut at = start;
    while at < end {
        let length = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        let piece = buffer.get_mut(..length).unwrap_or_default();
        from.read_exact_at(piece, at)?;
        to.write_all_at(piece, at)?;
        at = at.saturating_add(length as u64);
    }
    Ok(())
}
