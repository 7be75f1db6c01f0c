//! PAX extension headers: `LENGTH KEY=VALUE\n`, taken apart by the length, because a value may hold newlines (a file
//! capability often does) and a reader that splits lines can be made to see records that are not there.

use super::entry::Segment;
use super::error::Problem;
use super::number::{parse_decimal, parse_time};
use super::sparse;
use crate::convert::budget::{Budget, Limit};

/// What the records before one entry say. An empty value means "as in the header", as in Go.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) size: Option<i64>,
    pub(super) mtime: Option<i64>,
    /// Sorted by name, each once.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Names and values of all xattr records, also of those that were taken back.
    xattr_bytes: usize,
    /// `SCHILY.acl.*` and `LIBARCHIVE.xattr.*`.
    pub(super) ignored: u32,
    pub(super) sparse: SparseRecords,
}

/// The `GNU.sparse.*` records.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SparseRecords {
    pub(super) major: Vec<u8>,
    pub(super) minor: Vec<u8>,
    pub(super) name: Vec<u8>,
    pub(super) size: Vec<u8>,
    pub(super) real_size: Vec<u8>,
    pub(super) block_count: Vec<u8>,
    /// Format 0.1: `offset,length,offset,length`.
    pub(super) map: Vec<u8>,
    /// Format 0.0: a record for each number, one key repeated.
    pub(super) numbers: Vec<u64>,
}

impl Pax {
    /// Reads the body of an `x` header.
    pub(super) fn parse(body: &[u8], budget: &Budget) -> Result<Pax, Problem> {
        let mut pax = Pax::default();
        let mut rest = body;
        let mut number = 0;
        while !rest.is_empty() {
            number += 1;
            let malformed = |why| Problem::Pax { record: number, why };
            let (key, value, after) = split_record(rest).map_err(malformed)?;
            pax.take(key, value, budget, malformed)?;
            rest = after;
        }
        pax.sort_xattrs();
        Ok(pax)
    }

    fn take(
        &mut self,
        key: &[u8],
        value: &[u8],
        budget: &Budget,
        malformed: impl Fn(&'static str) -> Problem,
    ) -> Result<(), Problem> {
        let text = |value: &[u8]| match value {
            [] => Ok(None),
            value if value.contains(&0) => Err(malformed("a name contains NUL")),
            value => Ok(Some(value.to_vec())),
        };
        let number = |field| match value {
            [] => Ok(None),
            value => parse_decimal(field, value).map(Some),
        };
        match key {
            b"path" => self.path = text(value)?,
            b"linkpath" => self.link = text(value)?,
            b"uid" => self.uid = number("uid")?,
            b"gid" => self.gid = number("gid")?,
            b"size" => self.size = number("size")?,
            b"mtime" if value.is_empty() => self.mtime = None,
            b"mtime" => self.mtime = Some(parse_time("mtime", value)?),
            b"GNU.sparse.major" => self.sparse.major = value.to_vec(),
            b"GNU.sparse.minor" => self.sparse.minor = value.to_vec(),
            b"GNU.sparse.name" => self.sparse.name = text(value)?.unwrap_or_default(),
            b"GNU.sparse.size" => self.sparse.size = value.to_vec(),
            b"GNU.sparse.realsize" => self.sparse.real_size = value.to_vec(),
            b"GNU.sparse.numblocks" => self.sparse.block_count = value.to_vec(),
            b"GNU.sparse.map" => self.sparse.map = value.to_vec(),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                let is_offset = key == b"GNU.sparse.offset";
                if self.sparse.numbers.len().is_multiple_of(2) != is_offset {
                    return Err(malformed("sparse offsets and lengths do not alternate"));
                }
                self.sparse.numbers.push(sparse::parse_number(value)?);
            }
            _ => self.take_other(key, value, budget, malformed)?,
        }
        Ok(())
    }

    fn take_other(
        &mut self,
        key: &[u8],
        value: &[u8],
        budget: &Budget,
        malformed: impl Fn(&'static str) -> Problem,
    ) -> Result<(), Problem> {
        if key.contains(&0) {
            return Err(malformed("a key contains NUL"));
        }
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            budget.check_len(Limit::XattrValueBytes, value.len())?;
            self.xattr_bytes = self.xattr_bytes.saturating_add(name.len() + value.len());
            budget.check_len(Limit::XattrBytes, self.xattr_bytes)?;
            self.xattrs.push((name.to_vec(), value.to_vec()));
        } else if key.starts_with(b"SCHILY.acl.") || key.starts_with(b"LIBARCHIVE.xattr.") {
            self.ignored = self.ignored.saturating_add(1);
        }
        Ok(())
    }

    /// The last of several records with one name wins; an empty one takes the name back, as for every PAX record.
    fn sort_xattrs(&mut self) {
        self.xattrs.reverse();
        self.xattrs.sort_by(|a, b| a.0.cmp(&b.0));
        self.xattrs.dedup_by(|later, kept| later.0 == kept.0);
        self.xattrs.retain(|(_, value)| !value.is_empty());
    }

    /// The map of a format 0.0 file, whose records carry it one number at a time.
    pub(super) fn numbered_map(&self) -> Option<Vec<Segment>> {
        let pairs = self.sparse.numbers.chunks(2);
        pairs
            .map(|pair| match pair {
                [offset, length] => Some(Segment { offset: *offset, length: *length }),
                _ => None,
            })
            .collect()
    }
}

/// Key and value of a record, and what follows it.
type Split<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// Takes the first record off.
fn split_record(body: &[u8]) -> Result<Split<'_>, &'static str> {
    const NO_LENGTH: &str = "it does not start with its length";
    let space = body.iter().take(20).position(|byte| *byte == b' ').ok_or(NO_LENGTH)?;
    let (digits, _) = body.split_at_checked(space).ok_or(NO_LENGTH)?;
    let length: usize =
        std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok()).ok_or(NO_LENGTH)?;
    if length <= space + 1 {
        return Err("its length is too small");
    }
    let (record, after) = body.split_at_checked(length).ok_or("its length goes beyond the header")?;
    let record = record.strip_suffix(b"\n").ok_or("it does not end with a newline")?;
    let record = record.get(space + 1..).ok_or("its length is too small")?;
    let equals = record.iter().position(|byte| *byte == b'=').ok_or("it has no '='")?;
    match (record.get(..equals), record.get(equals + 1..)) {
        (Some(key), Some(value)) if !key.is_empty() => Ok((key, value, after)),
        _ => Err("its key is empty"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &[u8]) -> Result<Pax, Problem> {
        Pax::parse(body, &Budget::default())
    }

    fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
    }

    #[test]
    fn reads_every_key() {
        let body = [
            record(b"path", b"a/b"),
            record(b"linkpath", b"t"),
            record(b"uid", b"4294967295"),
            record(b"gid", b"7"),
            record(b"size", b"12"),
            record(b"mtime", b"5.75"),
            record(b"atime", b"nonsense"),
            record(b"comment", b"ignored"),
        ]
        .concat();
        let pax = parse(&body).expect("valid");
        assert_eq!(pax.path.as_deref(), Some(&b"a/b"[..]));
        assert_eq!(pax.link.as_deref(), Some(&b"t"[..]));
        assert_eq!((pax.uid, pax.gid), (Some(4294967295), Some(7)));
        assert_eq!((pax.size, pax.mtime), (Some(12), Some(5)));
    }

    #[test]
    fn a_newline_in_a_value_starts_no_record() {
        let value = b"\x01\x00\x00\x02\n22 linkpath=/etc/evil\n\x0a";
        let body =
            [record(b"SCHILY.xattr.security.capability", value), record(b"linkpath", b"good")].concat();
        let pax = parse(&body).expect("valid");
        assert_eq!(pax.link.as_deref(), Some(&b"good"[..]));
        assert_eq!(pax.xattrs, [(b"security.capability".to_vec(), value.to_vec())]);
    }

    #[test]
    fn names_hold_any_bytes_but_nul() {
        assert_eq!(
            parse(&record(b"path", b"\xff\xfe=\n")).expect("valid").path,
            Some(b"\xff\xfe=\n".to_vec())
        );
        assert!(parse(&record(b"path", b"a\0b")).is_err());
        assert!(parse(&record(b"linkpath", b"a\0b")).is_err());
        assert!(parse(&record(b"GNU.sparse.name", b"a\0b")).is_err());
        assert!(parse(&record(b"SCHILY.xattr.user.a\0b", b"")).is_err());
    }

    #[test]
    fn the_last_record_wins_and_an_empty_one_resets() {
        let pax = parse(&[record(b"path", b"a"), record(b"path", b"b")].concat()).expect("valid");
        assert_eq!(pax.path.as_deref(), Some(&b"b"[..]));
        let pax = parse(&[record(b"path", b"a"), record(b"path", b"")].concat()).expect("valid");
        assert_eq!(pax.path, None);
        let pax = parse(
            &[
                record(b"SCHILY.xattr.user.b", b"1"),
                record(b"SCHILY.xattr.user.a", b"2"),
                record(b"SCHILY.xattr.user.b", b"3"),
                record(b"SCHILY.xattr.user.e", b"4"),
                record(b"SCHILY.xattr.user.e", b""),
            ]
            .concat(),
        );
        let expected = [(&b"user.a"[..], &b"2"[..]), (b"user.b", b"3")];
        assert_eq!(pax.expect("valid").xattrs, expected.map(|(name, value)| (name.to_vec(), value.to_vec())));
    }

    #[test]
    fn malformed_records_are_refused() {
        let cases: &[&[u8]] = &[
            b"x",
            b" 5=\n",
            b"6 a=b",
            b"7 a=b\n",
            b"5 a=b\n",
            b"3 =\n",
            b"4 =\n",
            b"5 =b\n",
            b"6 abc\n",
            b"-6 a=b\n",
            b"0 a=b\n",
            b"99999999999999999999 a=b\n",
            b"18446744073709551615 a=b\n",
            b"6 a=b\n\0\0",
            b"12 uid=1234x\n",
            b"6 uid=\n",
            b"9 mtime=x",
            b"\n",
            b"                        6 a=b\n",
        ];
        for case in cases {
            assert!(parse(case).is_err(), "{}", case.escape_ascii());
        }
    }

    #[test]
    fn length_boundaries() {
        for size in [1, 2, 88, 89, 90, 91, 988, 989, 990, 991, 992] {
            let value = vec![b'v'; size];
            assert_eq!(parse(&record(b"path", &value)).expect("valid").path, Some(value));
        }
    }
}
