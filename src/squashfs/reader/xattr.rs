//! Extended attributes: lists of names and values, where a value may stand elsewhere in the table, once for many.

use super::metadata::{Cursor, MetadataPosition};
use super::tables::XattrTable;
use super::{Filesystem, ReadError};

/// Longest name, prefix included, bytes: the kernel's `XATTR_NAME_MAX`.
const NAME_MAX: usize = 255;
/// Longest value, bytes: the kernel's `XATTR_SIZE_MAX`.
const VALUE_MAX: u32 = 65_536;
/// Names of one inode, each with a NUL, bytes: the kernel's `XATTR_LIST_MAX`.
const NAMES_MAX: usize = 65_536;
/// Values of one inode, bytes. Values can be shared, so without a limit a few bytes of image fill any memory.
const VALUES_MAX: usize = 4 << 20;

/// Bit of the type field: the value is a reference to where it stands.
const OUT_OF_LINE: u16 = 0x0100;
/// What the low bits of the type field stand for.
const PREFIXES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];

/// A full name, as `user.comment`, and a value.
pub type Xattr = (Vec<u8>, Vec<u8>);

impl Filesystem {
    /// Whether any inode can have xattrs.
    pub fn has_xattrs(&self) -> bool {
        self.tables.xattrs.is_some()
    }

    /// All xattrs of an inode, full names with values.
    pub fn xattrs(&self, index: u32) -> Result<Vec<Xattr>, ReadError> {
        let mut all = Vec::new();
        let (mut names, mut values) = (0, 0);
        let Some(mut list) = XattrList::open(self, index)? else { return Ok(all) };
        while let Some(name) = list.next_name()? {
            let value = list.value()?;
            names += name.len() + 1;
            values += value.len();
            if names > NAMES_MAX || values > VALUES_MAX {
                let what = format!(
                    "xattr list {index} is longer than {NAMES_MAX} bytes of names or {VALUES_MAX} of values"
                );
                return Err(list.cursor.corrupt(what));
            }
            all.push((name, value));
        }
        Ok(all)
    }

    /// The value of one xattr by its full name.
    pub fn xattr(&self, index: u32, name: &[u8]) -> Result<Option<Vec<u8>>, ReadError> {
        let Some(mut list) = XattrList::open(self, index)? else { return Ok(None) };
        let mut names = 0;
        while let Some(found) = list.next_name()? {
            if found == name {
                return list.value().map(Some);
            }
            list.skip_value()?;
            names += found.len() + 1;
            if names > NAMES_MAX {
                return Err(list
                    .cursor
                    .corrupt(format!("xattr list {index} has over {NAMES_MAX} bytes of names")));
            }
        }
        Ok(None)
    }
}

/// Reads one inode's list: a name, then its value read or passed over, then the next name.
struct XattrList<'a> {
    filesystem: &'a Filesystem,
    table: &'a XattrTable,
    cursor: Cursor<'a>,
    left: u32,
    out_of_line: bool,
}

impl<'a> XattrList<'a> {
    /// Nothing where the image has no xattrs at all.
    fn open(filesystem: &'a Filesystem, index: u32) -> Result<Option<XattrList<'a>>, ReadError> {
        let Some(table) = &filesystem.tables.xattrs else { return Ok(None) };
        let entry: [u8; 16] = filesystem.table_entry(&table.lists, index.into())?;
        let [reference_low, reference_high, left, _size] = super::data::words(&entry);
        let reference = u64::from(reference_low) | u64::from(reference_high) << 32;
        let cursor = Cursor::new(filesystem, table.pairs, position(table, reference))?;
        Ok(Some(XattrList { filesystem, table, cursor, left, out_of_line: false }))
    }

    fn next_name(&mut self) -> Result<Option<Vec<u8>>, ReadError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let kind = self.cursor.u16()?;
        let length = usize::from(self.cursor.u16()?);
        self.out_of_line = kind & OUT_OF_LINE != 0;
        let Some(prefix) = PREFIXES.get(usize::from(kind & !OUT_OF_LINE)) else {
            return Err(self.cursor.corrupt(format!("xattr of type {kind:#x}")));
        };
        if length == 0 || prefix.len() + length > NAME_MAX {
            let prefix = prefix.escape_ascii();
            return Err(self.cursor.corrupt(format!("xattr name of {length} bytes after \"{prefix}\"")));
        }
        let mut name = prefix.to_vec();
        name.resize(prefix.len() + length, 0);
        self.cursor.read(name.get_mut(prefix.len()..).unwrap_or_default())?;
        if name.contains(&0) {
            return Err(self.cursor.corrupt("xattr name with a NUL byte"));
        }
        Ok(Some(name))
    }

    fn value(&mut self) -> Result<Vec<u8>, ReadError> {
        if !self.out_of_line {
            return read_value(&mut self.cursor);
        }
        let length = self.cursor.u32()?;
        if length != 8 {
            return Err(self.cursor.corrupt(format!("reference to an xattr value of {length} bytes, not 8")));
        }
        let reference = self.cursor.u64()?;
        // What stands there is read as a value, whatever it is: references do not chain.
        let mut there = Cursor::new(self.filesystem, self.table.pairs, position(self.table, reference))?;
        read_value(&mut there)
    }

    fn skip_value(&mut self) -> Result<(), ReadError> {
        let length = self.cursor.u32()?;
        if length > VALUE_MAX {
            return Err(self.cursor.corrupt(format!("xattr value of {length} bytes, over {VALUE_MAX}")));
        }
        self.cursor.skip(length.into())
    }
}

fn read_value(cursor: &mut Cursor<'_>) -> Result<Vec<u8>, ReadError> {
    let length = cursor.u32()?;
    if length > VALUE_MAX {
        return Err(cursor.corrupt(format!("xattr value of {length} bytes, over {VALUE_MAX}")));
    }
    let mut value = vec![0; usize::try_from(length).unwrap_or_default()];
    cursor.read(&mut value)?;
    Ok(value)
}

/// A reference into the table of pairs: block in the high bits, byte in the low 16, like an inode's.
fn position(table: &XattrTable, reference: u64) -> MetadataPosition {
    MetadataPosition {
        block: table.pairs.start.saturating_add(reference >> 16),
        byte: (reference & 0xffff) as u16,
    }
}
