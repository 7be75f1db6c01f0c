//! Reads a tar stream: the trust boundary between the bytes of a layer and the tree.
//!
//! Modelled on Go's `archive/tar`, because what docker, containerd and umoci see is Go's parse, and a reader that sees
//! something else is a way past whoever looked at the image with one of those. Where Go is lenient about an extension
//! it cannot make sense of, this reader refuses. The whole table is in `docs/layers.md`.

mod entry;
mod error;
mod header;
mod number;
mod pax;
mod sparse;
mod write;

use std::io::{self, Read};

pub use entry::{Entry, EntryKind, Segment};
pub(crate) use error::place;
pub use error::{Problem, TarError};
pub use write::{END, can_hold_xattr, encode_header, padding_of};

use crate::convert::budget::{Budget, Limit};
use header::{BLOCK_BYTES, BLOCK_SIZE, Block, Dialect, Header};
use pax::Pax;
use sparse::{MapInData, OldGnu, PaxSparse};

/// Bytes thrown away at a time when data is skipped.
const SKIP_SIZE: usize = 64 << 10;

/// Entries of a tar, one after the other, and the data of each.
pub struct Reader<R> {
    input: R,
    budget: Budget,
    /// Bytes taken from `input`.
    offset: u64,
    /// Stored bytes of the current entry not read yet.
    data_left: u64,
    /// Bytes between the current entry's data and the next block.
    padding: u64,
    counts: Counts,
    scratch: Box<[u8]>,
}

/// What of the budget is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Entries.
    pub entries: u64,
    /// Sizes of all regular files, bytes, holes included.
    pub file_bytes: u64,
}

impl<R> std::fmt::Debug for Reader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("offset", &self.offset).field("data_left", &self.data_left).finish()
    }
}

/// Extension headers met before an entry.
#[derive(Default)]
struct Extensions {
    count: usize,
    pax: Option<Pax>,
    long_path: Vec<u8>,
    long_link: Vec<u8>,
}

/// A problem and, once it is known, the name of the entry that has it.
type Found<T> = Result<T, (Option<Vec<u8>>, Problem)>;

impl<R: Read> Reader<R> {
    /// A reader at the start of a tar. `budget` bounds what this one tar may hold.
    pub fn new(input: R, budget: Budget) -> Reader<R> {
        Reader::continuing(input, budget, Counts::default())
    }

    /// A reader of one tar of several that share a budget, of which the others used `counts`.
    pub fn continuing(input: R, budget: Budget, counts: Counts) -> Reader<R> {
        let scratch = vec![0; SKIP_SIZE].into_boxed_slice();
        Reader { input, budget, offset: 0, data_left: 0, padding: 0, counts, scratch }
    }

    /// Where the tar comes from.
    pub fn input(&self) -> &R {
        &self.input
    }

    /// What this tar and those before it have used of the budget.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Skips what is left of the current entry and reads the next; none at the end marker or the end of the stream.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut start = self.offset;
        self.read_entry(&mut start).map_err(|(entry, problem)| TarError { entry, offset: start, problem })
    }

    /// Reads stored bytes of the current entry; 0 only when `buffer` is empty or there are none left.
    pub fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let wanted = usize::try_from(self.data_left).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = buffer.get_mut(..wanted).unwrap_or_default();
        let place = |problem, offset| TarError { entry: None, offset, problem };
        let got = self.read_some(buffer).map_err(|problem| place(problem, self.offset))?;
        if got == 0 && wanted > 0 {
            let problem = Problem::Truncated { what: "file", missing: self.data_left };
            return Err(place(problem, self.offset));
        }
        self.data_left -= got as u64;
        Ok(got)
    }

    fn read_entry(&mut self, start: &mut u64) -> Found<Option<Entry>> {
        let unnamed = |problem| (None, problem);
        self.skip_rest().map_err(unnamed)?;
        *start = self.offset;
        let mut extensions = Extensions::default();
        loop {
            let Some(block) = self.read_header_block().map_err(unnamed)? else {
                return match extensions.count {
                    0 => Ok(None),
                    _ => Err(unnamed(Problem::LooseExtension("the end of the tar"))),
                };
            };
            let header = Header::parse(&block).map_err(unnamed)?;
            if !matches!(header.type_flag, b'x' | b'g' | b'L' | b'K') {
                self.count_entry().map_err(unnamed)?;
                return self.assemble(header, &block, extensions, *start).map(Some);
            }
            self.read_extension(&header, &mut extensions).map_err(unnamed)?;
            if header.type_flag == b'g' {
                *start = self.offset;
            }
        }
    }

    /// Folds one `x`, `g`, `L` or `K` header into what is known of the entry to come.
    fn read_extension(&mut self, header: &Header, extensions: &mut Extensions) -> Result<(), Problem> {
        let body = self.read_extension_body(header.size)?;
        let until_nul = |body: &[u8]| number::until_nul(body).to_vec();
        match header.type_flag {
            b'g' if extensions.count > 0 => return Err(Problem::LooseExtension("a global header")),
            // Only checked: no runtime applies global records to entries.
            b'g' => drop(Pax::parse(&body, &self.budget)?),
            b'L' => extensions.long_path = until_nul(&body),
            b'K' => extensions.long_link = until_nul(&body),
            _ => extensions.pax = Some(Pax::parse(&body, &self.budget)?),
        }
        if header.type_flag != b'g' {
            extensions.count += 1;
        }
        Ok(self.budget.check_len(Limit::Extensions, extensions.count)?)
    }

    fn read_extension_body(&mut self, size: i64) -> Result<Vec<u8>, Problem> {
        let size = usize::try_from(size).map_err(|_| Problem::Range { field: "size", value: size })?;
        self.budget.check_len(Limit::ExtensionBytes, size)?;
        let mut body = vec![0; size];
        self.read_exact(&mut body, "extension header")?;
        self.padding = padding(size as u64);
        self.skip_rest()?;
        Ok(body)
    }

    /// Joins a header with its extensions.
    fn assemble(
        &mut self,
        header: Header,
        block: &Block,
        extensions: Extensions,
        start: u64,
    ) -> Found<Entry> {
        let pax = extensions.pax.unwrap_or_default();
        let first_of = |names: [Option<&[u8]>; 2], written: &[u8]| {
            let name = names.into_iter().flatten().find(|name| !name.is_empty());
            name.unwrap_or(written).to_vec()
        };
        // A GNU long name beats a PAX path, as in Go.
        let mut path = first_of([Some(&extensions.long_path), pax.path.as_deref()], &header.path);
        let link = first_of([Some(&extensions.long_link), pax.link.as_deref()], &header.link);
        let type_flag = match header.type_flag {
            0 if path.ends_with(b"/") => b'5',
            0 => b'0',
            flag => flag,
        };
        let sparse = match type_flag {
            b'S' => Ok(PaxSparse::No),
            _ => sparse::pax_sparse(&pax, &self.budget),
        };
        let sparse = sparse.map_err(|problem| (Some(path.clone()), problem))?;
        if sparse != PaxSparse::No && !pax.sparse.name.is_empty() {
            path.clone_from(&pax.sparse.name);
        }
        match self.assemble_named(type_flag, link, &header, block, pax, sparse) {
            Ok(mut entry) => {
                entry.path = path;
                entry.offset = start;
                Ok(entry)
            }
            Err(problem) => Err((Some(path), problem)),
        }
    }

    fn assemble_named(
        &mut self,
        type_flag: u8,
        link: Vec<u8>,
        header: &Header,
        block: &Block,
        pax: Pax,
        sparse: PaxSparse,
    ) -> Result<Entry, Problem> {
        let kind = match type_flag {
            b'S' => self.read_old_gnu_layout(header, block, &pax)?,
            b'0' => self.read_layout(header, &pax, sparse)?,
            _ if sparse != PaxSparse::No => {
                return Err(Problem::Sparse("only regular files can be sparse"));
            }
            b'1' => EntryKind::HardLink(link),
            b'2' => EntryKind::Symlink(link),
            b'3' => {
                EntryKind::CharacterDevice(device("major", header.major)?, device("minor", header.minor)?)
            }
            b'4' => EntryKind::BlockDevice(device("major", header.major)?, device("minor", header.minor)?),
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => return Err(Problem::Type(other)),
        };
        let mtime = pax.mtime.unwrap_or(header.mtime);
        Ok(Entry {
            path: Vec::new(),
            kind,
            // The mask keeps 12 bits.
            mode: u16::try_from(header.mode & 0o7777).unwrap_or_default(),
            uid: id("uid", pax.uid.unwrap_or(header.uid))?,
            gid: id("gid", pax.gid.unwrap_or(header.gid))?,
            mtime: u32::try_from(mtime.max(0)).unwrap_or(u32::MAX),
            xattrs: pax.xattrs,
            ignored_records: pax.ignored,
            offset: 0,
        })
    }

    /// Finds out how long a regular file is and where its data belongs; leaves the stream at the first stored byte.
    fn read_layout(&mut self, header: &Header, pax: &Pax, sparse: PaxSparse) -> Result<EntryKind, Problem> {
        let stored = stored_size(header, pax)?;
        let size = match sparse {
            PaxSparse::No => stored,
            _ => sparse::real_size(pax)?.map_or(Ok(stored), |size| not_negative("GNU.sparse.size", size))?,
        };
        self.begin_data(stored, size)?;
        let segments = match sparse {
            PaxSparse::No if size == 0 => return Ok(EntryKind::File { size, segments: Vec::new() }),
            PaxSparse::No => {
                return Ok(EntryKind::File { size, segments: vec![Segment { offset: 0, length: size }] });
            }
            PaxSparse::InRecords(segments) => segments,
            PaxSparse::InData => self.read_map_in_data()?,
        };
        let segments = sparse::check_map(segments, size, self.data_left)?;
        Ok(EntryKind::File { size, segments })
    }

    /// The same for an old GNU sparse file, whose map lies in the header and in the blocks after it.
    fn read_old_gnu_layout(
        &mut self,
        header: &Header,
        block: &Block,
        pax: &Pax,
    ) -> Result<EntryKind, Problem> {
        let segments = self.read_old_gnu_map(header, block)?;
        let stored = stored_size(header, pax)?;
        let size = not_negative("real size", sparse::old_gnu_size(block)?)?;
        self.begin_data(stored, size)?;
        let segments = sparse::check_map(segments, size, stored)?;
        Ok(EntryKind::File { size, segments })
    }

    fn begin_data(&mut self, stored: u64, size: u64) -> Result<(), Problem> {
        self.counts.file_bytes = self.counts.file_bytes.saturating_add(size);
        self.budget.check(Limit::FileBytes, self.counts.file_bytes)?;
        self.data_left = stored;
        self.padding = padding(stored);
        Ok(())
    }

    fn read_old_gnu_map(&mut self, header: &Header, block: &Block) -> Result<Vec<Segment>, Problem> {
        // The star dialect uses the same type for another layout.
        if header.dialect != Dialect::Gnu {
            return Err(Problem::Sparse("type 'S' outside a GNU header"));
        }
        let mut segments = Vec::new();
        let mut more = OldGnu::Header(block).read(&mut segments, &self.budget)?;
        while more {
            let mut block = [0; BLOCK_SIZE];
            self.read_exact(&mut block, "extension header")?;
            more = OldGnu::Continuation(&block).read(&mut segments, &self.budget)?;
        }
        Ok(segments)
    }

    fn read_map_in_data(&mut self) -> Result<Vec<Segment>, Problem> {
        let mut map = MapInData::default();
        loop {
            self.data_left = self
                .data_left
                .checked_sub(BLOCK_BYTES)
                .ok_or(Problem::Sparse("it is longer than the data"))?;
            let mut block = [0; BLOCK_SIZE];
            self.read_exact(&mut block, "file")?;
            if let Some(segments) = map.take(&block, &self.budget)? {
                return Ok(segments);
            }
        }
    }

    /// The next block that is no end marker.
    fn read_header_block(&mut self) -> Result<Option<Block>, Problem> {
        let mut block = [0; BLOCK_SIZE];
        if !self.read_block(&mut block)? {
            return Ok(None);
        }
        if block != [0; BLOCK_SIZE] {
            return Ok(Some(block));
        }
        // One block of zeros at the very end is accepted as in Go; two end the archive whatever follows.
        if !self.read_block(&mut block)? || block == [0; BLOCK_SIZE] {
            return Ok(None);
        }
        Err(Problem::LoneZeroBlock)
    }

    /// Reads a whole block; false when the stream ends before its first byte.
    fn read_block(&mut self, block: &mut Block) -> Result<bool, Problem> {
        let got = self.read_fully(block)?;
        match (BLOCK_SIZE - got) as u64 {
            0 => Ok(true),
            BLOCK_BYTES => Ok(false),
            missing => Err(Problem::Truncated { what: "header", missing }),
        }
    }

    /// Skips what is left of the current entry. The last entry's padding may be missing, as in Go.
    fn skip_rest(&mut self) -> Result<(), Problem> {
        let missing = self.skip(self.data_left)?;
        if missing > 0 {
            return Err(Problem::Truncated { what: "file", missing });
        }
        self.data_left = 0;
        self.skip(self.padding)?;
        self.padding = 0;
        Ok(())
    }

    /// Skips bytes; gives how many of them the stream did not have.
    fn skip(&mut self, mut count: u64) -> Result<u64, Problem> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let result = loop {
            let wanted = usize::try_from(count).unwrap_or(usize::MAX).min(scratch.len());
            match self.read_some(scratch.get_mut(..wanted).unwrap_or_default()) {
                Ok(0) => break Ok(count),
                Ok(got) => count -= got as u64,
                Err(problem) => break Err(problem),
            }
        };
        self.scratch = scratch;
        result
    }

    fn read_exact(&mut self, buffer: &mut [u8], what: &'static str) -> Result<(), Problem> {
        let got = self.read_fully(buffer)?;
        match (buffer.len() - got) as u64 {
            0 => Ok(()),
            missing => Err(Problem::Truncated { what, missing }),
        }
    }

    fn read_fully(&mut self, buffer: &mut [u8]) -> Result<usize, Problem> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.read_some(rest)? {
                0 => break,
                got => filled += got,
            }
        }
        Ok(filled)
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, Problem> {
        loop {
            match self.input.read(buffer) {
                Ok(got) => {
                    self.offset = self.offset.saturating_add(got as u64);
                    return Ok(got);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Problem::Read(error)),
            }
        }
    }

    fn count_entry(&mut self) -> Result<(), Problem> {
        self.counts.entries += 1;
        Ok(self.budget.check(Limit::Entries, self.counts.entries)?)
    }
}

/// Stored bytes of a regular file: a PAX size overrules the header's.
fn stored_size(header: &Header, pax: &Pax) -> Result<u64, Problem> {
    let in_header = not_negative("size", header.size)?;
    pax.size.map_or(Ok(in_header), |size| not_negative("size", size))
}

/// Bytes that fill `size` up to whole blocks.
fn padding(size: u64) -> u64 {
    (BLOCK_BYTES - size % BLOCK_BYTES) % BLOCK_BYTES
}

fn not_negative(field: &'static str, value: i64) -> Result<u64, Problem> {
    u64::try_from(value).map_err(|_| Problem::Range { field, value })
}

/// Owners beyond 32 bits are refused: every other runtime silently makes them root.
fn id(field: &'static str, value: i64) -> Result<u32, Problem> {
    u32::try_from(value).map_err(|_| Problem::Range { field, value })
}

/// Linux has 12 bits for the major and 20 for the minor number, and so has squashfs.
fn device(field: &'static str, value: i64) -> Result<u32, Problem> {
    let limit: u32 = if field == "major" { 1 << 12 } else { 1 << 20 };
    u32::try_from(value).ok().filter(|number| *number < limit).ok_or(Problem::Range { field, value })
}
