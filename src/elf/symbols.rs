//! The dynamic symbols of a program or a library: what it defines for others and what it wants of them.

use super::object::{INDEX, tag};
use super::{Object, ReadAt};

/// Longest name of a symbol, bytes: a hostile table has one name without an end for a million symbols.
const NAME_MAX: usize = 4 << 10;
/// Bytes of names that are read: a library of 100,000 long C++ names has some 20 MiB.
const STRINGS_MAX: u64 = 64 << 20;
/// Most symbols that are read.
const SYMBOLS_MAX: usize = 1 << 20;

/// The dynamic symbols of an object.
#[derive(Debug, Clone, Default)]
pub struct Symbols {
    strings: Vec<u8>,
    symbols: Vec<Place>,
}

/// Where a symbol's name lies, and what the symbol is.
#[derive(Debug, Clone)]
struct Place {
    name: usize,
    is_defined: bool,
    is_weak: bool,
    version: Option<Vec<u8>>,
}

/// One symbol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// Its version, if it has one: `GLIBC_2.34`.
    pub version: Option<&'a [u8]>,
    /// Whether the object defines it; else another library has to.
    pub is_defined: bool,
    /// Whether it may be missing.
    pub is_weak: bool,
}

impl Symbols {
    /// Reads those of `object`. None if it has no table of them, or one beyond any sense.
    pub fn read(object: &Object, read: ReadAt<'_>) -> Option<Symbols> {
        let length = object.dynamic.get(&tag::STRSZ).copied().filter(|length| *length <= STRINGS_MAX)?;
        let strings = object.table(tag::STRTAB, usize::try_from(length).ok()?, read)?;
        let count = count(object, read)?.min(SYMBOLS_MAX);
        // (st_info, st_shndx, length) of elf(5).
        let (info, section, entry) = if object.header.is_64 { (4, 6, 24) } else { (12, 14, 16) };
        let table = object.table(tag::SYMTAB, count.checked_mul(entry)?, read)?;
        let versions = object.table(tag::VERSYM, count.checked_mul(2)?, read).unwrap_or_default();
        let mut symbols = Vec::new();
        // The first stands for no symbol.
        for (index, bytes) in table.chunks_exact(entry).enumerate().skip(1) {
            const WEAK: u64 = 2;
            const LOCAL: u64 = 0;
            let binding = object.number(bytes, info, 1)? >> 4;
            let name = usize::try_from(object.number(bytes, 0, 4)?).ok()?;
            if binding == LOCAL || name >= strings.len() {
                continue;
            }
            let version = object.number(&versions, index.checked_mul(2)?, 2);
            let version = version.and_then(|index| u16::try_from(index).ok()).map(|index| index & INDEX);
            symbols.push(Place {
                name,
                is_defined: object.number(bytes, section, 2)? != 0,
                is_weak: binding == WEAK,
                version: version.and_then(|index| object.version_names.get(&index)).cloned(),
            });
        }
        Some(Symbols { strings, symbols })
    }

    /// All of them, in the order of the table.
    pub fn iter(&self) -> impl Iterator<Item = Symbol<'_>> {
        self.symbols.iter().filter_map(|place| {
            let rest = self.strings.get(place.name..)?;
            let rest = rest.get(..rest.len().min(NAME_MAX))?;
            let name = rest.get(..rest.iter().position(|byte| *byte == 0)?)?;
            let version = place.version.as_deref();
            Some(Symbol { name, version, is_defined: place.is_defined, is_weak: place.is_weak })
        })
    }

    /// The names that it defines.
    pub fn defined(&self) -> impl Iterator<Item = &[u8]> {
        self.iter().filter(|symbol| symbol.is_defined).map(|symbol| symbol.name)
    }

    /// The names that others have to define for it.
    pub fn wanted(&self) -> impl Iterator<Item = &[u8]> {
        self.iter().filter(|symbol| !symbol.is_defined && !symbol.is_weak).map(|symbol| symbol.name)
    }
}

/// The number of symbols, which stands nowhere but in the tables by which they are found.
fn count(object: &Object, read: ReadAt<'_>) -> Option<usize> {
    if let Some(header) = object.table(tag::HASH, 8, read) {
        return usize::try_from(object.number(&header, 4, 4)?).ok();
    }
    count_by_gnu_hash(object, read)
}

/// `DT_GNU_HASH`: buckets with the first symbol of each chain, then for each symbol a hash whose lowest bit is set in a
/// chain's last one. The chain that begins last ends with the last symbol.
fn count_by_gnu_hash(object: &Object, read: ReadAt<'_>) -> Option<usize> {
    let header = object.table(tag::GNU_HASH, 16, read)?;
    let word = |at| object.number(&header, at, 4).and_then(|word| usize::try_from(word).ok());
    let (bucket_count, first, filter_words) = (word(0)?, word(4)?, word(8)?);
    if bucket_count > SYMBOLS_MAX || filter_words > SYMBOLS_MAX || first > SYMBOLS_MAX {
        return None;
    }
    let buckets_at = filter_words.checked_mul(object.width())?.checked_add(16)?;
    let chains_at = bucket_count.checked_mul(4)?.checked_add(buckets_at)?;
    let start = object.offset_of(*object.dynamic.get(&tag::GNU_HASH)?)?;
    let part = |at: usize, length: usize| read(start.checked_add(u64::try_from(at).ok()?)?, length);
    let buckets = part(buckets_at, bucket_count.checked_mul(4)?)?;
    let bucket = |bytes: &[u8]| object.number(bytes, 0, 4);
    let last = buckets.chunks_exact(4).filter_map(bucket).max().unwrap_or(0);
    let last = usize::try_from(last).ok()?;
    if last < first {
        return Some(first);
    }
    let chain = part(chains_at.checked_add(last.checked_sub(first)?.checked_mul(4)?)?, SYMBOLS_MAX)?;
    let end =
        chain.chunks_exact(4).position(|hash| object.number(hash, 0, 4).is_some_and(|hash| hash & 1 == 1))?;
    last.checked_add(end)?.checked_add(1)
}
