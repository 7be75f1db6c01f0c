//! `/etc/ld.so.cache`: where glibc's loader finds a library by its name.
//!
//! Source: glibc `sysdeps/generic/dl-cache.h`, the format of glibc 2.2 and later, with the extensions of 2.33. Files of
//! glibc before 2.32 may begin with an older table; what follows it is the same. All integers are in the byte order of
//! the machine that the file is for; only this machine's is read.

mod order;

use std::collections::HashMap;

use self::order::by_name;

/// Where it is.
pub const PATH: &str = "/etc/ld.so.cache";
/// The largest one of an image that is read, bytes; one of 2000 libraries has 200 KiB.
pub const MAX_BYTES: u64 = 8 << 20;

/// Magic and version at the start of the table.
const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
/// Magic at the start of the older table.
const OLD_MAGIC: &[u8] = b"ld.so-1.7.0";
/// Where the older table's number of entries stands.
const OLD_COUNT_AT: usize = 12;
/// Bytes before the older table's entries.
const OLD_HEADER_BYTES: usize = 16;
/// Bytes of an entry of the older table.
const OLD_ENTRY_BYTES: usize = 12;
/// What the table is aligned to where the older one stands before it.
const ALIGNMENT: usize = 8;
/// Where the number of entries stands, in bytes from the start.
const COUNT_AT: usize = 20;
/// Where the byte order stands.
const ORDER_AT: usize = 28;
/// Where the offset of the extensions stands.
const EXTENSION_AT: usize = 32;
/// Bytes before the entries.
const HEADER_BYTES: usize = 48;
/// Bytes of an entry: flags, name, path, version of the system, hardware.
const ENTRY_BYTES: usize = 24;
/// Magic at the start of the extensions.
const EXTENSION_MAGIC: u32 = 0xeaa4_2174;
/// Bytes before the sections of the extensions.
const EXTENSION_HEADER_BYTES: usize = 8;
/// Bytes of a section's description: tag, flags, offset, size.
const SECTION_BYTES: usize = 16;
/// The section with the name of the program that wrote the file.
const GENERATOR: u32 = 0;
/// The section with the names of `glibc-hwcaps` directories.
const HARDWARE_NAMES: u32 = 1;
/// Most of those names: there are a handful.
const HARDWARE_NAMES_MAX: usize = 1024;
/// Longest name or path, bytes: `PATH_MAX`.
const STRING_MAX: usize = 4096;
/// Most bytes of names and paths together, each counted as often as it is named.
const STRINGS_MAX: usize = 64 << 20;
/// Bits of an entry's hardware that say the rest is an index into those names.
#[cfg(test)]
const NAMED_HARDWARE: u64 = 1 << 62;

/// `FLAG_ELF_LIBC6` with the bits of the machine.
pub const FLAGS: u32 = if cfg!(target_arch = "x86_64") {
    0x0303
} else if cfg!(target_arch = "aarch64") {
    0x0a03
} else if cfg!(target_arch = "powerpc64") {
    0x0503
} else if cfg!(target_arch = "s390x") {
    0x0403
} else if cfg!(target_arch = "riscv64") {
    0x1003
} else {
    0x0003
};

/// The path of the library `name`: the last entry's, which is the one for any processor. None if the cache
/// does not know it, or is no such cache.
pub fn path_of<'a>(cache: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let cache = table(cache)?;
    let count = number(cache, COUNT_AT)?;
    let mut entries = cache.get(HEADER_BYTES..)?.chunks_exact(ENTRY_BYTES).take(count);
    // Those for better processors come first.
    let is_wanted = |entry: &&[u8]| {
        number(entry, 4).and_then(|at| string(cache, at)) == Some(name)
            // Those for 32 bits come last.
            && word(entry, 0) == Some(FLAGS)
    };
    let found = entries.rfind(is_wanted)?;
    string(cache, number(found, 8)?)
}

/// A file that is no cache, or a damaged one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CacheError {
    /// Its first bytes.
    #[error("it is no cache of glibc 2.2 or later")]
    Magic,
    /// Something in it leads out of it.
    #[error("its {what} do not fit into it")]
    Damaged {
        /// What.
        what: &'static str,
    },
    /// The result would be.
    #[error("it would be longer than 4 GiB")]
    TooLong,
}

/// One library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What kind of library, for which machine: [`FLAGS`] for most.
    pub flags: u32,
    /// Its SONAME, without NUL.
    pub name: Vec<u8>,
    /// Absolute path, without NUL.
    pub path: Vec<u8>,
    /// Oldest kernel, which no loader looks at any more.
    os_version: u32,
    /// Processors that it is for; 0 means any.
    hardware: u64,
}

impl Entry {
    /// A library of this machine for any processor.
    pub fn new(name: Vec<u8>, path: Vec<u8>) -> Entry {
        Entry { flags: FLAGS, name, path, os_version: 0, hardware: 0 }
    }
}

/// A whole cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LibraryCache {
    /// In the file's order, which the loader's search relies on.
    pub entries: Vec<Entry>,
    /// Names of `glibc-hwcaps` directories, which entries refer to by their index.
    hardware_names: Vec<Vec<u8>>,
    /// What wrote the file, for people.
    generator: Vec<u8>,
}

impl LibraryCache {
    /// Reads all of it.
    pub fn parse(bytes: &[u8]) -> Result<LibraryCache, CacheError> {
        let cache = table(bytes).ok_or(CacheError::Magic)?;
        let damaged = |what| CacheError::Damaged { what };
        let count = number(cache, COUNT_AT).ok_or(damaged("entries"))?;
        let entries = cache
            .get(HEADER_BYTES..)
            .and_then(|rest| rest.get(..count.checked_mul(ENTRY_BYTES)?))
            .ok_or(damaged("entries"))?;
        let mut parsed = LibraryCache::default();
        let mut left = STRINGS_MAX;
        for entry in entries.chunks_exact(ENTRY_BYTES) {
            let entry = read_entry(cache, entry).ok_or(damaged("strings"))?;
            let length = entry.name.len().saturating_add(entry.path.len());
            left = left.checked_sub(length).ok_or(damaged("strings"))?;
            parsed.entries.push(entry);
        }
        parsed.read_extensions(cache).ok_or(damaged("extensions"))?;
        Ok(parsed)
    }

    fn read_extensions(&mut self, cache: &[u8]) -> Option<()> {
        let start = number(cache, EXTENSION_AT)?;
        // Files of glibc before 2.33 have none.
        if start == 0 || word(cache, start) != Some(EXTENSION_MAGIC) {
            return Some(());
        }
        let count = number(cache, start.checked_add(4)?)?;
        let sections = cache.get(start.checked_add(EXTENSION_HEADER_BYTES)?..)?;
        let sections = sections.get(..count.checked_mul(SECTION_BYTES)?)?;
        for section in sections.chunks_exact(SECTION_BYTES) {
            let from = number(section, 8)?;
            let content = cache.get(from..from.checked_add(number(section, 12)?)?)?;
            match word(section, 0)? {
                GENERATOR => self.generator = content.to_vec(),
                HARDWARE_NAMES => {
                    let offsets = content.chunks_exact(4).take(HARDWARE_NAMES_MAX);
                    let names = offsets.map(|offset| string(cache, number(offset, 0)?).map(<[u8]>::to_vec));
                    self.hardware_names = names.collect::<Option<_>>()?;
                }
                _ => {}
            }
        }
        Some(())
    }

    /// Puts libraries before those that have the same name; the first of a name wins.
    pub fn put_first(&mut self, libraries: impl IntoIterator<Item = Entry>) {
        let mut entries: Vec<Entry> = libraries.into_iter().collect();
        entries.append(&mut self.entries);
        // Stable: the loader takes the first of a name that fits, unless one for its very processor stands before it.
        entries.sort_by(|a, b| by_name(&b.name, &a.name));
        self.entries = entries;
    }

    /// The file, in the format that every glibc since 2.2 reads.
    pub fn to_bytes(&self) -> Result<Vec<u8>, CacheError> {
        let mut strings =
            Strings::new(HEADER_BYTES.saturating_add(self.entries.len().saturating_mul(ENTRY_BYTES)));
        let mut table = Vec::with_capacity(self.entries.len().saturating_mul(ENTRY_BYTES));
        for entry in &self.entries {
            let (name, path) = (strings.offset(&entry.name)?, strings.offset(&entry.path)?);
            for number in [entry.flags, name, path, entry.os_version] {
                table.extend(number.to_ne_bytes());
            }
            table.extend(entry.hardware.to_ne_bytes());
        }
        let names = self.hardware_names.iter().map(|name| strings.offset(name));
        let names: Vec<u8> =
            names.collect::<Result<Vec<u32>, _>>()?.into_iter().flat_map(u32::to_ne_bytes).collect();
        let mut bytes = MAGIC.to_vec();
        bytes.extend(short(self.entries.len())?.to_ne_bytes());
        bytes.extend(short(strings.bytes.len())?.to_ne_bytes());
        bytes.resize(HEADER_BYTES, 0);
        if let Some(order) = bytes.get_mut(ORDER_AT) {
            *order = if cfg!(target_endian = "little") { 2 } else { 3 };
        }
        bytes.append(&mut table);
        bytes.append(&mut strings.bytes);
        let sections = [(GENERATOR, self.generator.as_slice()), (HARDWARE_NAMES, names.as_slice())];
        let sections: Vec<(u32, &[u8])> =
            sections.into_iter().filter(|(_, content)| !content.is_empty()).collect();
        if !sections.is_empty() {
            write_extensions(&mut bytes, &sections)?;
        }
        short(bytes.len())?;
        Ok(bytes)
    }
}

fn read_entry(cache: &[u8], entry: &[u8]) -> Option<Entry> {
    Some(Entry {
        flags: word(entry, 0)?,
        name: string(cache, number(entry, 4)?)?.to_vec(),
        path: string(cache, number(entry, 8)?)?.to_vec(),
        os_version: word(entry, 12)?,
        hardware: u64::from_ne_bytes(*entry.get(16..)?.first_chunk()?),
    })
}

/// Appends the extensions, and says in the header where they are.
fn write_extensions(bytes: &mut Vec<u8>, sections: &[(u32, &[u8])]) -> Result<(), CacheError> {
    pad(bytes);
    let start = short(bytes.len())?;
    let mut at = bytes.len().saturating_add(EXTENSION_HEADER_BYTES);
    at = at.saturating_add(sections.len().saturating_mul(SECTION_BYTES));
    bytes.extend(EXTENSION_MAGIC.to_ne_bytes());
    bytes.extend(short(sections.len())?.to_ne_bytes());
    // The names are numbers: they stand aligned, whatever stands before them.
    for (tag, content) in sections {
        for number in [*tag, 0, short(at)?, short(content.len())?] {
            bytes.extend(number.to_ne_bytes());
        }
        at = at.saturating_add(content.len()).next_multiple_of(4);
    }
    for (_, content) in sections {
        bytes.extend_from_slice(content);
        pad(bytes);
    }
    if let Some(place) = bytes.get_mut(EXTENSION_AT..EXTENSION_AT + 4) {
        place.copy_from_slice(&start.to_ne_bytes());
    }
    Ok(())
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// The strings of a file that is written, each once.
struct Strings<'a> {
    /// Where the first is, in bytes from the start of the file.
    start: usize,
    bytes: Vec<u8>,
    known: HashMap<&'a [u8], u32>,
}

impl<'a> Strings<'a> {
    fn new(start: usize) -> Strings<'a> {
        Strings { start, bytes: Vec::new(), known: HashMap::new() }
    }

    fn offset(&mut self, string: &'a [u8]) -> Result<u32, CacheError> {
        if let Some(offset) = self.known.get(string) {
            return Ok(*offset);
        }
        let offset = short(self.start.saturating_add(self.bytes.len()))?;
        self.known.insert(string, offset);
        self.bytes.extend_from_slice(string);
        self.bytes.push(0);
        Ok(offset)
    }
}

fn short(number: usize) -> Result<u32, CacheError> {
    u32::try_from(number).map_err(|_| CacheError::TooLong)
}

/// The table, from which all offsets count, behind the older one if that is there.
fn table(file: &[u8]) -> Option<&[u8]> {
    if file.starts_with(MAGIC) {
        return Some(file);
    }
    if !file.starts_with(OLD_MAGIC) {
        return None;
    }
    let entries = number(file, OLD_COUNT_AT)?.checked_mul(OLD_ENTRY_BYTES)?;
    let end = OLD_HEADER_BYTES.checked_add(entries)?.checked_next_multiple_of(ALIGNMENT)?;
    file.get(end..).filter(|table| table.starts_with(MAGIC))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(word(bytes, at)?).ok()
}

/// The bytes from `at` to a NUL.
fn string(cache: &[u8], at: usize) -> Option<&[u8]> {
    let rest = cache.get(at..)?;
    rest.get(..rest.iter().take(STRING_MAX).position(|byte| *byte == 0)?)
}

#[cfg(test)]
mod tests;
