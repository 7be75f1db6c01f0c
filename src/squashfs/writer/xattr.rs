//! The xattr table: equal sets stored once, long values that recur stored once.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use crate::squashfs::format::NO_XATTR;
use crate::squashfs::writer::error::XATTR_NAME_MAX;
use crate::squashfs::writer::metadata::{MetadataStream, lookup_table};
use crate::squashfs::writer::{WriteError, WriterOptions};

/// Prefixes with their numbers; the format has no others (posix ACLs cannot be stored).
const PREFIXES: [(&[u8], u16); 3] = [(b"user.", 0), (b"trusted.", 1), (b"security.", 2)];
/// Flag of the type: in place of the value there is a reference to one stored earlier.
const OUT_OF_LINE: u16 = 0x0100;
/// Bytes of such a reference; shorter values are not worth one.
const REFERENCE_SIZE: u32 = 8;

/// An inode's xattrs as the tree has them.
pub(super) type Set = [(Vec<u8>, Vec<u8>)];

/// Whether squashfs can hold an xattr of this full name: `user.`, `trusted.` and `security.` only.
pub fn can_hold_xattr(name: &[u8]) -> bool {
    split(name).is_some_and(|(_, rest)| !rest.is_empty() && !rest.contains(&0))
        && name.len() <= XATTR_NAME_MAX
}

/// Number of the prefix, and what follows it.
fn split(name: &[u8]) -> Option<(u16, &[u8])> {
    PREFIXES.iter().find_map(|(prefix, number)| Some((*number, name.strip_prefix(*prefix)?)))
}

/// All xattrs, while the inodes are written.
#[derive(Debug)]
pub(super) struct XattrTable {
    pairs: MetadataStream,
    /// Reference, count and size of each set.
    sets: Vec<u8>,
    count: u32,
    index_by_set: HashMap<[u8; 32], u32>,
    reference_by_value: HashMap<[u8; 32], u64>,
}

impl XattrTable {
    pub(super) fn new(options: &WriterOptions) -> Result<XattrTable, WriteError> {
        Ok(XattrTable {
            pairs: MetadataStream::new(options)?,
            sets: Vec::new(),
            count: 0,
            index_by_set: HashMap::new(),
            reference_by_value: HashMap::new(),
        })
    }

    /// The index that stands for these xattrs in inodes, in whatever order they come.
    pub(super) fn index(&mut self, set: &Set) -> Result<u32, WriteError> {
        if set.is_empty() {
            return Ok(NO_XATTR);
        }
        let mut set: Vec<_> = set.iter().collect();
        set.sort_unstable();
        let digest = digest(&set);
        if let Some(index) = self.index_by_set.get(&digest) {
            return Ok(*index);
        }
        let position = self.pairs.position();
        let mut size = 0;
        for (name, value) in &set {
            size += self.push(name, value)?;
        }
        let pairs = u32::try_from(set.len()).unwrap_or(u32::MAX);
        self.sets.extend((position.block << 16 | u64::from(position.offset)).to_le_bytes());
        self.sets.extend(pairs.to_le_bytes());
        self.sets.extend(u32::try_from(size).unwrap_or(u32::MAX).to_le_bytes());
        let index = self.count;
        self.count = index
            .checked_add(1)
            .filter(|count| *count != NO_XATTR)
            .ok_or(WriteError::TooMany { what: "distinct sets of xattrs", limit: u64::from(NO_XATTR) })?;
        self.index_by_set.insert(digest, index);
        Ok(index)
    }

    /// Writes one pair; gives its bytes.
    fn push(&mut self, name: &[u8], value: &[u8]) -> Result<usize, WriteError> {
        // Names were checked before; an unknown one would read as empty.
        let (prefix, rest) = split(name).unwrap_or_default();
        let earlier = match value.len() > REFERENCE_SIZE as usize {
            true => self.reference_by_value.get(&<[u8; 32]>::from(Sha256::digest(value))).copied(),
            false => None,
        };
        let mut pair = Vec::with_capacity(8 + name.len() + value.len());
        pair.extend((prefix | if earlier.is_some() { OUT_OF_LINE } else { 0 }).to_le_bytes());
        pair.extend(u16::try_from(rest.len()).unwrap_or(u16::MAX).to_le_bytes());
        pair.extend_from_slice(rest);
        self.pairs.write(&pair)?;
        let position = self.pairs.position();
        let head = pair.len();
        pair.clear();
        match earlier {
            Some(reference) => {
                pair.extend(REFERENCE_SIZE.to_le_bytes());
                pair.extend(reference.to_le_bytes());
            }
            None => {
                pair.extend(u32::try_from(value.len()).unwrap_or(u32::MAX).to_le_bytes());
                pair.extend_from_slice(value);
                if value.len() > REFERENCE_SIZE as usize {
                    let reference = position.block << 16 | u64::from(position.offset);
                    self.reference_by_value.insert(Sha256::digest(value).into(), reference);
                }
            }
        }
        self.pairs.write(&pair)?;
        Ok(head + pair.len())
    }

    /// The table at `position` of the image and where its header is; `None` if no inode has xattrs.
    pub(super) fn finish(
        self,
        position: u64,
        options: &WriterOptions,
    ) -> Result<Option<(Vec<u8>, u64)>, WriteError> {
        if self.count == 0 {
            return Ok(None);
        }
        let mut bytes = self.pairs.finish()?;
        let mut header = position.to_le_bytes().to_vec();
        header.extend(self.count.to_le_bytes());
        header.extend(0u32.to_le_bytes());
        let sets = lookup_table(&self.sets, position + bytes.len() as u64, &header, options)?;
        let header = position + (bytes.len() + sets.index) as u64;
        bytes.extend(sets.bytes);
        Ok(Some((bytes, header)))
    }
}

/// Unlike digests for unlike sets: lengths keep the pieces apart.
fn digest(set: &[&(Vec<u8>, Vec<u8>)]) -> [u8; 32] {
    let mut digest = Sha256::new();
    for (name, value) in set {
        digest.update((name.len() as u64).to_le_bytes());
        digest.update(name);
        digest.update((value.len() as u64).to_le_bytes());
        digest.update(value);
    }
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_three_prefixes_only() {
        for (name, held) in [
            (&b"user.a"[..], true),
            (b"trusted.overlay.opaque", true),
            (b"security.capability", true),
            (b"system.posix_acl_access", false),
            (b"user.", false),
            (b"user", false),
            (b"user.a\0b", false),
            (b"", false),
        ] {
            assert_eq!(can_hold_xattr(name), held, "{}", String::from_utf8_lossy(name));
        }
        assert!(can_hold_xattr(&[b"user.".as_slice(), &[b'n'; 250]].concat()));
        assert!(!can_hold_xattr(&[b"user.".as_slice(), &[b'n'; 251]].concat()));
    }
}
