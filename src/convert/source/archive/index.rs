//! The index of an outer archive: where each member lies. Names only; the layers inside are the layer pipeline's.
//!
//! Reads what `docker save`, skopeo, podman, crane, kaniko and `tar` write: v7, ustar, GNU long names, PAX.

use std::collections::HashMap;
use std::io::{self, Read};

use super::{ArchiveError, KEPT_MEMBER_BYTES};

const BLOCK: usize = 512;
/// Most members; docker writes three a layer.
pub(super) const MAX_MEMBERS: usize = 200_000;
/// Longest PAX header or GNU long name, bytes.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;
/// Names that decide what the archive is; a second one would be seen by some readers only.
const DECISIVE: [&[u8]; 3] = [b"manifest.json", b"index.json", b"oci-layout"];

/// A stream that can skip ahead.
pub(super) trait Forward: Read {
    /// Skips `count` bytes; an error if there are fewer.
    fn skip(&mut self, count: u64) -> io::Result<()>;
}

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Member {
    /// A file whose content lies at `offset`.
    File {
        /// In the decompressed archive.
        offset: u64,
        /// Bytes.
        size: u64,
    },
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// A hard link to this member.
    HardLink(Vec<u8>),
    /// A directory or something stranger.
    Other,
}

/// Members by their clean name, and the content of small ones by their offset.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) members: HashMap<Vec<u8>, Member>,
    pub(super) kept: HashMap<u64, Vec<u8>>,
}

impl Index {
    /// Reads all headers of a tar stream; keeps the content of small members up to `keep_bytes` together.
    pub(super) fn read(input: impl Forward, keep_bytes: u64) -> Result<Index, ArchiveError> {
        let mut reader = Reader { input, position: 0, pending: Pending::default() };
        let mut index = Index::default();
        let mut keep_left = keep_bytes;
        let mut count = 0usize;
        while let Some(header) = reader.next_header()? {
            count = count.saturating_add(1);
            if count > MAX_MEMBERS {
                return Err(ArchiveError::TooManyMembers(MAX_MEMBERS));
            }
            let offset = reader.position;
            let shown = || String::from_utf8_lossy(&header.name).into_owned();
            // Names that leave the archive can never be asked for: not indexed, their data skipped.
            let key = clean(&header.name, &[]).filter(|key| !key.is_empty());
            let keep = matches!(header.member, Member::File { .. })
                && header.size <= KEPT_MEMBER_BYTES
                && header.size <= keep_left;
            if keep && key.is_some() {
                keep_left = keep_left.saturating_sub(header.size);
                let bytes = reader.content(header.size).map_err(|_| ArchiveError::CutShort(shown()))?;
                index.kept.insert(offset, bytes);
            } else {
                reader.skip(header.size).map_err(|error| cut_short(error, shown()))?;
            }
            let Some(key) = key else { continue };
            if DECISIVE.contains(&key.as_slice()) && index.members.contains_key(&key) {
                return Err(ArchiveError::Duplicate(shown()));
            }
            index.members.insert(key, header.member);
        }
        Ok(index)
    }
}

fn cut_short(error: io::Error, member: String) -> ArchiveError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        ArchiveError::CutShort(member)
    } else {
        ArchiveError::Read(error)
    }
}

/// `name` below `directory` without `.`, doubled slashes and a leading slash; none when `..` leads out.
pub(super) fn clean(name: &[u8], directory: &[u8]) -> Option<Vec<u8>> {
    // An absolute name would lead out of the archive if it were unpacked.
    if name.starts_with(b"/") || name.contains(&0) {
        return None;
    }
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in directory.split(|b| *b == b'/').chain(name.split(|b| *b == b'/')) {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop()?;
            }
            _ => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

/// The directory part of a clean name.
pub(super) fn parent(name: &[u8]) -> &[u8] {
    let end = name.iter().rposition(|b| *b == b'/').unwrap_or(0);
    name.get(..end).unwrap_or_default()
}

struct Header {
    name: Vec<u8>,
    size: u64,
    member: Member,
}

/// What PAX and GNU headers say of the member that follows.
#[derive(Default)]
struct Pending {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

struct Reader<R> {
    input: R,
    position: u64,
    pending: Pending,
}

impl<R: Forward> Reader<R> {
    /// The next member's header; none at the end. Afterwards `position` is where its content begins.
    fn next_header(&mut self) -> Result<Option<Header>, ArchiveError> {
        loop {
            let offset = self.position;
            let malformed = |what| ArchiveError::Header { offset, what };
            let Some(block) = self.block()? else { return self.end(offset) };
            if block.iter().all(|byte| *byte == 0) {
                return self.end_marker(offset);
            }
            if !checksum_matches(&block) {
                // The first block decides whether this is a tar at all.
                return Err(if offset == 0 { ArchiveError::NotTar } else { malformed("wrong checksum") });
            }
            let kind = field(&block, 156, 1).first().copied().unwrap_or(0);
            let size = number(field(&block, 124, 12)).ok_or_else(|| malformed("bad size"))?;
            match kind {
                b'x' | b'L' | b'K' => {
                    if size > MAX_EXTENSION_BYTES {
                        return Err(malformed("an extended header is too large"));
                    }
                    let content = self.content(size).map_err(|_| malformed("cut short"))?;
                    self.pending.take(kind, content).map_err(malformed)?;
                }
                // What a global header says would hold for all members; Go, and so docker, ignores it.
                b'g' => self.skip(size).map_err(|_| malformed("cut short"))?,
                _ => return self.member(&block, kind, size, offset).map(Some),
            }
        }
    }

    fn member(
        &mut self,
        block: &[u8; BLOCK],
        kind: u8,
        size: u64,
        offset: u64,
    ) -> Result<Header, ArchiveError> {
        let pending = std::mem::take(&mut self.pending);
        let name = pending.name.unwrap_or_else(|| header_name(block));
        let target = pending.link.unwrap_or_else(|| until_nul(field(block, 157, 100)).to_vec());
        let size = pending.size.unwrap_or(size);
        let directory = name.ends_with(b"/");
        let (member, size) = match kind {
            b'0' | 0 | b'7' if !directory => (Member::File { offset: self.position, size }, size),
            b'0' | 0 | b'7' => (Member::Other, size),
            // Types without content, whatever their size field says.
            b'1' => (Member::HardLink(target), 0),
            b'2' => (Member::Symlink(target), 0),
            b'3'..=b'6' => (Member::Other, 0),
            b'S' => return Err(ArchiveError::Header { offset, what: "sparse members are not supported" }),
            _ => (Member::Other, size),
        };
        Ok(Header { name, size, member })
    }

    /// The stream ended without an end marker: harmless between members.
    fn end(&self, offset: u64) -> Result<Option<Header>, ArchiveError> {
        let dangling = self.pending.name.is_some() || self.pending.link.is_some();
        match (offset, dangling) {
            (0, _) => Err(ArchiveError::NotTar),
            (_, true) => Err(ArchiveError::Header { offset, what: "cut short after an extended header" }),
            (_, false) => Ok(None),
        }
    }

    /// One zero block was read; a second one, or nothing, must follow.
    fn end_marker(&mut self, offset: u64) -> Result<Option<Header>, ArchiveError> {
        match self.block()? {
            Some(block) if block.iter().any(|byte| *byte != 0) => {
                Err(ArchiveError::Header { offset, what: "a lone zero block" })
            }
            _ => self.end(offset.max(1)),
        }
    }

    /// The next block; none at the end of the stream, an error if it ends inside one.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, ArchiveError> {
        let mut block = [0; BLOCK];
        let mut filled = 0usize;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.input.read(rest) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) if self.position == 0 => return Err(ArchiveError::NotTar),
                Ok(0) => {
                    return Err(ArchiveError::Header { offset: self.position, what: "cut short" });
                }
                Ok(count) => filled = filled.saturating_add(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ArchiveError::Read(error)),
            }
        }
        self.position = self.position.saturating_add(BLOCK as u64);
        Ok(Some(block))
    }

    /// Reads a member's content and the padding behind it.
    fn content(&mut self, size: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.input.by_ref().take(size).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position = self.position.saturating_add(size);
        self.skip_padding(size)?;
        Ok(bytes)
    }

    fn skip(&mut self, size: u64) -> io::Result<()> {
        self.input.skip(size)?;
        self.position = self.position.saturating_add(size);
        self.skip_padding(size)
    }

    fn skip_padding(&mut self, size: u64) -> io::Result<()> {
        let padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        match self.input.skip(padding) {
            // The last member's padding may be missing.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                io::copy(&mut self.input.by_ref().take(padding), &mut io::sink())?;
            }
            result => result?,
        }
        self.position = self.position.saturating_add(padding);
        Ok(())
    }
}

impl Pending {
    fn take(&mut self, kind: u8, content: Vec<u8>) -> Result<(), &'static str> {
        match kind {
            b'L' => self.name = Some(until_nul(&content).to_vec()),
            b'K' => self.link = Some(until_nul(&content).to_vec()),
            _ => self.take_pax(&content)?,
        }
        Ok(())
    }

    /// Records `LENGTH KEY=VALUE\n`, split by their length, never by newlines: values may hold some.
    fn take_pax(&mut self, mut rest: &[u8]) -> Result<(), &'static str> {
        const MALFORMED: &str = "bad PAX record";
        while !rest.is_empty() {
            let space = rest.iter().position(|b| *b == b' ').ok_or(MALFORMED)?;
            let digits = rest.get(..space).unwrap_or_default();
            let length = decimal(digits).ok_or(MALFORMED)?;
            let length = usize::try_from(length).map_err(|_| MALFORMED)?;
            let (record, after) = rest.split_at_checked(length).ok_or(MALFORMED)?;
            let record = record.get(space.saturating_add(1)..).ok_or(MALFORMED)?;
            let record = record.strip_suffix(b"\n").ok_or(MALFORMED)?;
            let equals = record.iter().position(|b| *b == b'=').ok_or(MALFORMED)?;
            let (key, value) = record.split_at_checked(equals).ok_or(MALFORMED)?;
            let value = value.get(1..).unwrap_or_default();
            match key {
                b"path" | b"linkpath" if value.contains(&0) => return Err("a NUL byte in a PAX name"),
                b"path" => self.name = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(decimal(value).ok_or(MALFORMED)?),
                _ if key.starts_with(b"GNU.sparse.") => return Err("sparse members are not supported"),
                _ => {}
            }
            rest = after;
        }
        Ok(())
    }
}

fn field(block: &[u8; BLOCK], offset: usize, length: usize) -> &[u8] {
    block.get(offset..).and_then(|rest| rest.get(..length)).unwrap_or_default()
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// The name field, behind the prefix field that only POSIX ustar has.
fn header_name(block: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(field(block, 0, 100));
    let prefix = until_nul(field(block, 345, 155));
    if field(block, 257, 6) == b"ustar\0" && !prefix.is_empty() {
        [prefix, name].join(&b'/')
    } else {
        name.to_vec()
    }
}

/// The sum of all bytes with the checksum field as spaces; old tools summed signed bytes.
fn checksum_matches(block: &[u8; BLOCK]) -> bool {
    let Some(stated) = number(field(block, 148, 8)).and_then(|sum| i64::try_from(sum).ok()) else {
        return false;
    };
    let bytes =
        || block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte });
    let unsigned: i64 = bytes().map(i64::from).sum();
    let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
    stated == unsigned || stated == signed
}

/// An octal field, or GNU's base-256 for large values; negative numbers are none.
fn number(field: &[u8]) -> Option<u64> {
    if let [first @ 0x80..=0xff, rest @ ..] = field {
        if *first >= 0xc0 {
            return None;
        }
        return rest.iter().try_fold(u64::from(first & 0x3f), |value, byte| {
            value.checked_mul(256)?.checked_add(u64::from(*byte))
        });
    }
    let is_padding = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !is_padding(byte)).unwrap_or(field.len());
    let digits = field.get(start..)?.split(is_padding).next()?;
    digits.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 20 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests;
