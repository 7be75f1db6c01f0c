//! A tar archive that holds an image: its members indexed once, then read in any order.
//!
//! Nothing is unpacked. The members of a plain archive are read in place; a compressed one is decompressed again up to the
//! member asked for, so that no scratch space is needed.

mod index;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::convert::layer::decompress::{Compression, decoder};
use index::{Forward, Index, Member};

/// Small members are kept while a compressed archive is indexed, so that its JSON costs no second pass.
const KEPT_MEMBER_BYTES: u64 = 1 << 20;
const KEPT_TOTAL_BYTES: u64 = 32 << 20;
/// Memory that an xz archive can ask for, bytes.
const DECODER_BYTES: u64 = 256 << 20;
const MAX_LINKS: usize = 16;

/// Why an archive cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// A pipe or device: it cannot be read twice.
    #[error("it is not a regular file")]
    NotRegular,
    /// The file refused to be read, or its compression is damaged.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// The first block is no tar header.
    #[error("it is not a tar archive, plain or compressed with gzip, zstd or xz")]
    NotTar,
    /// A header in the middle is damaged.
    #[error("the tar header at byte {offset} is malformed: {what}")]
    Header {
        /// Offset in the (decompressed) archive.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The archive ends inside a member.
    #[error("it is cut short in member {0:?}")]
    CutShort(String),
    /// More members than any image has.
    #[error("it has more than {0} members")]
    TooManyMembers(usize),
    /// Two members of the same, decisive name.
    #[error("it has member {0:?} twice")]
    Duplicate(String),
    /// A member that should be there is not.
    #[error("it has no member {0:?}")]
    Missing(String),
    /// A member is not a file.
    #[error("its member {0:?} is not a regular file")]
    NotAFile(String),
    /// A name or link leads out of the archive.
    #[error("its member {name:?} leads outside the archive ({target:?})")]
    Escapes {
        /// The member.
        name: String,
        /// Where it leads.
        target: String,
    },
    /// Links that lead in a circle.
    #[error("its member {0:?} is a link that leads in a circle")]
    LinkLoop(String),
    /// A member too large to be what it should be.
    #[error("its member {name:?} has {size} bytes, more than the limit of {limit}")]
    TooLarge {
        /// The member.
        name: String,
        /// Its size, bytes.
        size: u64,
        /// The limit, bytes.
        limit: u64,
    },
}

/// Compression of the archive as a whole, recognised by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Plain,
    Gzip,
    Zstd,
    Xz,
}

impl Packing {
    pub(super) fn of(start: &[u8]) -> Packing {
        match start {
            [0x1f, 0x8b, ..] => Packing::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Packing::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Packing::Xz,
            _ => Packing::Plain,
        }
    }
}

/// An indexed archive.
#[derive(Debug)]
pub(super) struct Archive {
    file: Arc<File>,
    length: u64,
    packing: Packing,
    members: HashMap<Vec<u8>, Member>,
    kept: HashMap<u64, Vec<u8>>,
}

/// A member that can be opened.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    offset: u64,
    /// Bytes.
    pub(super) size: u64,
}

impl Archive {
    /// Indexes the archive in `file`.
    pub(super) fn of(file: File) -> Result<Archive, ArchiveError> {
        let metadata = file.metadata().map_err(ArchiveError::Read)?;
        if !metadata.is_file() {
            return Err(ArchiveError::NotRegular);
        }
        let file = Arc::new(file);
        let mut start = Vec::new();
        // By offset: a file that was written here is at its end.
        Slice::new(&file, 0, metadata.len().min(6)).read_to_end(&mut start).map_err(ArchiveError::Read)?;
        let packing = Packing::of(&start);
        let mut archive =
            Archive { file, length: metadata.len(), packing, members: HashMap::new(), kept: HashMap::new() };
        let Index { members, kept } = match packing {
            Packing::Plain => Index::read(archive.slice(0, archive.length), 0)?,
            _ => Index::read(archive.unpacked()?, KEPT_TOTAL_BYTES)?,
        };
        archive.members = members;
        archive.kept = kept;
        Ok(archive)
    }

    /// Whether a member of this name exists.
    pub(super) fn has(&self, name: &str) -> bool {
        self.members.contains_key(name.as_bytes())
    }

    /// Finds a member by its name as JSON spells it, following links inside the archive only.
    pub(super) fn find(&self, name: &str) -> Result<Found, ArchiveError> {
        let escapes = |target: &[u8]| ArchiveError::Escapes {
            name: name.to_owned(),
            target: String::from_utf8_lossy(target).into_owned(),
        };
        let missing = || ArchiveError::Missing(name.to_owned());
        if name.is_empty() {
            return Err(missing());
        }
        let mut key = index::clean(name.as_bytes(), &[]).ok_or_else(|| escapes(name.as_bytes()))?;
        for _ in 0..MAX_LINKS {
            match self.members.get(&key).ok_or_else(missing)? {
                Member::File { offset, size } => return Ok(Found { offset: *offset, size: *size }),
                Member::Other => return Err(ArchiveError::NotAFile(name.to_owned())),
                Member::HardLink(target) => {
                    key = index::clean(target, &[]).ok_or_else(|| escapes(target))?;
                }
                Member::Symlink(target) => {
                    let directory = index::parent(&key);
                    // Some tools write targets relative to the archive's root; others accept them, so do we.
                    key = [index::clean(target, directory), index::clean(target, &[])]
                        .into_iter()
                        .flatten()
                        .find(|candidate| self.members.contains_key(candidate))
                        .ok_or_else(|| match index::clean(target, directory) {
                            Some(_) => missing(),
                            None => escapes(target),
                        })?;
                }
            }
        }
        Err(ArchiveError::LinkLoop(name.to_owned()))
    }

    /// Opens a found member from its start.
    pub(super) fn open_found(&self, found: Found) -> Result<Box<dyn Read + Send>, ArchiveError> {
        if let Some(bytes) = self.kept.get(&found.offset) {
            return Ok(Box::new(io::Cursor::new(bytes.clone())));
        }
        if self.packing == Packing::Plain {
            return Ok(Box::new(self.slice(found.offset, found.size)));
        }
        let mut stream = self.unpacked()?;
        stream.skip(found.offset).map_err(ArchiveError::Read)?;
        Ok(Box::new(Exactly { input: stream, remaining: found.size }))
    }

    /// Reads a whole member of at most `limit` bytes.
    pub(super) fn read_small(&self, name: &str, limit: u64) -> Result<Vec<u8>, ArchiveError> {
        let found = self.find(name)?;
        if found.size > limit {
            return Err(ArchiveError::TooLarge { name: name.to_owned(), size: found.size, limit });
        }
        let mut bytes = Vec::new();
        self.open_found(found)?.read_to_end(&mut bytes).map_err(ArchiveError::Read)?;
        Ok(bytes)
    }

    fn slice(&self, offset: u64, remaining: u64) -> Slice {
        Slice::new(&self.file, offset, remaining)
    }

    fn unpacked(&self) -> Result<Unpacked, ArchiveError> {
        let input = BufReader::with_capacity(256 << 10, self.slice(0, self.length));
        let decoder: Box<dyn Read + Send> = match self.packing {
            Packing::Plain => Box::new(input),
            Packing::Gzip => decoder(input, Compression::Gzip).map_err(ArchiveError::Read)?,
            Packing::Zstd => decoder(input, Compression::Zstd).map_err(ArchiveError::Read)?,
            Packing::Xz => Box::new(xz_decoder(input).map_err(ArchiveError::Read)?),
        };
        Ok(Unpacked(decoder))
    }
}

/// Undoes xz with bounded memory.
pub(super) fn xz_decoder<R: BufRead>(input: R) -> io::Result<liblzma::bufread::XzDecoder<R>> {
    let stream = liblzma::stream::Stream::new_stream_decoder(DECODER_BYTES, liblzma::stream::CONCATENATED)?;
    Ok(liblzma::bufread::XzDecoder::new_stream(input, stream))
}

/// A part of a file, read in place; several can be read at once.
#[derive(Debug)]
pub(super) struct Slice {
    file: Arc<File>,
    offset: u64,
    remaining: u64,
}

impl Slice {
    pub(super) fn new(file: &Arc<File>, offset: u64, length: u64) -> Slice {
        Slice { file: Arc::clone(file), offset, remaining: length }
    }
}

impl Read for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(buffer.len());
        let Some(buffer) = buffer.get_mut(..wanted).filter(|buffer| !buffer.is_empty()) else {
            return Ok(0);
        };
        let count = loop {
            match self.file.read_at(buffer, self.offset) {
                // Not every decoder above makes the call again.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive was cut short meanwhile"));
        }
        self.offset = self.offset.saturating_add(count as u64);
        self.remaining = self.remaining.saturating_sub(count as u64);
        Ok(count)
    }
}

impl Forward for Slice {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        if count > self.remaining {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset = self.offset.saturating_add(count);
        self.remaining = self.remaining.saturating_sub(count);
        Ok(())
    }
}

/// The archive behind a decoder.
struct Unpacked(Box<dyn Read + Send>);

impl Read for Unpacked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Forward for Unpacked {
    fn skip(&mut self, count: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.0.by_ref().take(count), &mut io::sink())?;
        if skipped == count { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// So many bytes of a stream, no fewer.
struct Exactly<R> {
    input: R,
    remaining: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.by_ref().take(self.remaining).read(buffer)?;
        if count == 0 && self.remaining > 0 && !buffer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is cut short"));
        }
        self.remaining = self.remaining.saturating_sub(count as u64);
        Ok(count)
    }
}
