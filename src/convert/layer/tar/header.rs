//! The 512-byte header block: checksum, dialect, fields.

use super::error::Problem;
use super::number::{parse_field, parse_octal, until_nul};

/// Bytes of a tar block.
pub(super) const BLOCK_SIZE: usize = 512;
/// The same as a stream length.
pub(super) const BLOCK_BYTES: u64 = 512;

/// A tar block.
pub(super) type Block = [u8; BLOCK_SIZE];

/// What the magic says of the fields beyond byte 257.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// No magic.
    V7,
    /// POSIX, with or without PAX headers.
    Ustar,
    /// `star`, whose prefix is shorter.
    Star,
    /// Old GNU, which has no prefix.
    Gnu,
}

/// A header with its numbers read; extension headers may still overrule it.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) dialect: Dialect,
    pub(super) type_flag: u8,
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) size: i64,
    pub(super) mode: i64,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) mtime: i64,
    pub(super) major: i64,
    pub(super) minor: i64,
}

/// Bytes `at..at + length` of a block, for constant positions inside it.
pub(super) fn field(block: &Block, at: usize, length: usize) -> &[u8] {
    block.get(at..at + length).unwrap_or_default()
}

impl Header {
    /// Reads a header block that is not all zeros.
    pub(super) fn parse(block: &Block) -> Result<Header, Problem> {
        if !checksum_matches(block) {
            return Err(Problem::Checksum);
        }
        let dialect = dialect(block);
        let mut header = Header {
            dialect,
            type_flag: field(block, 156, 1).first().copied().unwrap_or_default(),
            path: until_nul(field(block, 0, 100)).to_vec(),
            link: until_nul(field(block, 157, 100)).to_vec(),
            mode: parse_field("mode", field(block, 100, 8))?,
            uid: parse_field("uid", field(block, 108, 8))?,
            gid: parse_field("gid", field(block, 116, 8))?,
            size: parse_field("size", field(block, 124, 12))?,
            mtime: parse_field("mtime", field(block, 136, 12))?,
            major: 0,
            minor: 0,
        };
        if dialect != Dialect::V7 {
            header.major = parse_field("device major", field(block, 329, 8))?;
            header.minor = parse_field("device minor", field(block, 337, 8))?;
        }
        let prefix = prefix(block, dialect);
        if !prefix.is_empty() {
            header.path = [prefix, b"/", &header.path].concat();
        }
        Ok(header)
    }
}

/// Sums all bytes with the checksum field taken as blanks; old tars summed signed bytes.
fn checksum_matches(block: &Block) -> bool {
    let Some(expected) = parse_octal(field(block, 148, 8)) else { return false };
    let mut unsigned: i64 = 8 * i64::from(b' ');
    let mut signed = unsigned;
    for byte in field(block, 0, 148).iter().chain(field(block, 156, 356)) {
        unsigned += i64::from(*byte);
        signed += i64::from(byte.cast_signed());
    }
    expected == unsigned || expected == signed
}

fn dialect(block: &Block) -> Dialect {
    match (field(block, 257, 6), field(block, 263, 2), field(block, 508, 4)) {
        (b"ustar\0", _, b"tar\0") => Dialect::Star,
        (b"ustar\0", _, _) => Dialect::Ustar,
        (b"ustar ", b" \0", _) => Dialect::Gnu,
        _ => Dialect::V7,
    }
}

/// The directory part that `ustar` keeps apart from the name.
fn prefix(block: &Block, dialect: Dialect) -> &[u8] {
    match dialect {
        Dialect::V7 => &[],
        Dialect::Ustar => until_nul(field(block, 345, 155)),
        Dialect::Star => until_nul(field(block, 345, 131)),
        // Go before 1.8 wrote a prefix into GNU headers, where access and change time belong. As Go does: if those
        // are no times and the bytes are ASCII, it is a prefix.
        Dialect::Gnu => {
            let is_time = |at| match field(block, at, 12) {
                [0, ..] => true,
                time => parse_field("time", time).is_ok(),
            };
            let prefix = until_nul(field(block, 345, 155));
            if is_time(345) && is_time(357) || !prefix.is_ascii() { &[] } else { prefix }
        }
    }
}
