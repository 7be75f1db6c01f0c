//! What a shared object tells the loader: its name and the versions of symbols that it has and needs.
//!
//! Source: elf(5), and the gABI's and Drepper's descriptions of symbol versioning.

/// Most sections of a file that are looked at: the largest libraries have about fifty.
const SECTIONS_MAX: usize = 4096;
use super::{Header, ReadAt};

const PT_LOAD: u64 = 1;
const PT_DYNAMIC: u64 = 2;
const DT_NULL: u64 = 0;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_STRSZ: u64 = 10;
const DT_SONAME: u64 = 14;
const DT_VERDEF: u64 = 0x6fff_fffc;
const DT_VERNEED: u64 = 0x6fff_fffe;
/// Bytes of a file that hold the program header.
const HEAD_BYTES: usize = 4096;
/// Longest dynamic section that is looked at, bytes.
const DYNAMIC_MAX: u64 = 64 << 10;
/// Longest table of names that is looked at, bytes: the C library's has 30 KiB.
const STRINGS_MAX: u64 = 4 << 20;
/// Longest table of versions that is looked at, bytes.
const VERSIONS_MAX: usize = 64 << 10;
/// Most entries of such a table, so that one that leads back into itself ends.
const ENTRIES_MAX: usize = 4096;
/// Longest content of a section that is looked at, bytes.
const SECTION_MAX: u64 = 64 << 10;

/// A version of the C library, as in `GLIBC_2.34`.
pub type GlibcVersion = (u32, u32);

/// A shared object's own account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dynamic {
    /// The name that programs need it by.
    pub soname: Option<Vec<u8>>,
    /// The names of the libraries that it needs.
    pub needed: Vec<Vec<u8>>,
    /// Versions that it needs of others: `GLIBC_2.34`.
    pub needed_versions: Vec<Vec<u8>>,
    /// Versions that it has.
    pub defined_versions: Vec<Vec<u8>>,
}

impl Dynamic {
    /// Reads it; none if the bytes are no ELF file with a dynamic section.
    pub fn read(read: ReadAt<'_>) -> Option<Dynamic> {
        let head = read(0, HEAD_BYTES)?;
        let elf = Header::parse(&head)?;
        let table = elf.segments(&head).find(|segment| segment.kind == PT_DYNAMIC)?;
        let dynamic = read(table.offset, usize::try_from(table.size.min(DYNAMIC_MAX)).ok()?)?;
        let width = if elf.is_64 { 8 } else { 4 };
        let entries = dynamic.chunks_exact(2 * width).map_while(|entry| {
            let tag = elf.number(entry, 0, width)?;
            (tag != DT_NULL).then_some((tag, elf.number(entry, width, width)?))
        });
        let entries: Vec<(u64, u64)> = entries.collect();
        let value = |tag: u64| entries.iter().find(|(other, _)| *other == tag).map(|(_, value)| *value);
        let offset = |address: u64| {
            let loads = elf.segments(&head).filter(|segment| segment.kind == PT_LOAD);
            let mut holding =
                loads.filter(|load| address.checked_sub(load.address).is_some_and(|at| at < load.size));
            let load = holding.next()?;
            load.offset.checked_add(address.checked_sub(load.address)?)
        };
        let length = usize::try_from(value(DT_STRSZ)?.min(STRINGS_MAX)).ok()?;
        let strings = Strings(read(offset(value(DT_STRTAB)?)?, length)?);
        let versions = |tag: u64| value(tag).and_then(offset).and_then(|at| read(at, VERSIONS_MAX));
        Some(Dynamic {
            soname: value(DT_SONAME).and_then(|at| strings.at(at)),
            needed: entries
                .iter()
                .filter(|(tag, _)| *tag == DT_NEEDED)
                .filter_map(|(_, at)| strings.at(*at))
                .collect(),
            needed_versions: versions(DT_VERNEED)
                .map(|table| needed(&elf, &table, &strings))
                .unwrap_or_default(),
            defined_versions: versions(DT_VERDEF)
                .map(|table| defined(&elf, &table, &strings))
                .unwrap_or_default(),
        })
    }

    /// The oldest C library that it can do with; none if it needs none.
    pub fn needed_glibc(&self) -> Option<GlibcVersion> {
        highest(&self.needed_versions)
    }

    /// The C library that it is; none if it is none.
    pub fn defined_glibc(&self) -> Option<GlibcVersion> {
        highest(&self.defined_versions)
    }
}

/// The highest of the versions that are the C library's.
fn highest(versions: &[Vec<u8>]) -> Option<GlibcVersion> {
    let parse = |version: &Vec<u8>| {
        let text = std::str::from_utf8(version.strip_prefix(b"GLIBC_")?).ok()?;
        let mut numbers = text.split('.');
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    };
    versions.iter().filter_map(parse).max()
}

/// The names of `Verneed` entries' `Vernaux` entries.
fn needed(elf: &Header, table: &[u8], strings: &Strings) -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    for entry in chain(elf, table, 0, 12) {
        let Some(first) = elf.number(table, entry.saturating_add(8), 4).and_then(|at| forward(entry, at))
        else {
            break;
        };
        for version in chain(elf, table, first, 12) {
            if names.len() >= ENTRIES_MAX {
                return names;
            }
            names.extend(elf.number(table, version.saturating_add(8), 4).and_then(|at| strings.at(at)));
        }
    }
    names
}

/// The first names of `Verdef` entries: the others are those of their parents.
fn defined(elf: &Header, table: &[u8], strings: &Strings) -> Vec<Vec<u8>> {
    let name = |entry: usize| {
        let first = forward(entry, elf.number(table, entry.checked_add(12)?, 4)?)?;
        strings.at(elf.number(table, first, 4)?)
    };
    chain(elf, table, 0, 16).filter_map(name).collect()
}

/// Where the entries of a linked list are; each says at `next_at` how far the next one is.
fn chain<'a>(
    elf: &'a Header,
    table: &'a [u8],
    first: usize,
    next_at: usize,
) -> impl Iterator<Item = usize> + use<'a> {
    let next = move |at: &usize| {
        let distance = elf.number(table, at.checked_add(next_at)?, 4)?;
        if distance == 0 { None } else { forward(*at, distance) }
    };
    std::iter::successors((first < table.len()).then_some(first), next).take(ENTRIES_MAX)
}

fn forward(at: usize, distance: u64) -> Option<usize> {
    at.checked_add(usize::try_from(distance).ok()?)
}

/// A table of names.
struct Strings(Vec<u8>);

impl Strings {
    fn at(&self, offset: u64) -> Option<Vec<u8>> {
        let rest = self.0.get(usize::try_from(offset).ok()?..)?;
        rest.get(..rest.iter().take(super::NAME_MAX).position(|byte| *byte == 0)?).map(<[u8]>::to_vec)
    }
}

/// The content of the section `name`, which is the first of that name; none if there is no such section.
pub fn section(read: ReadAt<'_>, name: &[u8]) -> Option<Vec<u8>> {
    let head = read(0, HEAD_BYTES)?;
    let elf = Header::parse(&head)?;
    // e_shoff, e_shentsize and what follows it; sh_offset, sh_size: elf(5).
    let (table, counts, offset, size, width) =
        if elf.is_64 { (40, 58, 24, 32, 8) } else { (32, 46, 16, 20, 4) };
    let start = elf.number(&head, table, width)?;
    let entry_bytes = usize::try_from(elf.number(&head, counts, 2)?).ok()?;
    let count = usize::try_from(elf.number(&head, counts + 2, 2)?).ok()?;
    let names_at = usize::try_from(elf.number(&head, counts + 4, 2)?).ok()?;
    if entry_bytes != if elf.is_64 { 64 } else { 40 } || count > SECTIONS_MAX {
        return None;
    }
    let sections = read(start, entry_bytes.checked_mul(count)?)?;
    let content = |entry: &[u8], most: u64| {
        let length = elf.number(entry, size, width)?.min(most);
        read(elf.number(entry, offset, width)?, usize::try_from(length).ok()?)
    };
    let entry = |index: usize| {
        let from = index.checked_mul(entry_bytes)?;
        sections.get(from..from.checked_add(entry_bytes)?)
    };
    let names = Strings(content(entry(names_at)?, STRINGS_MAX)?);
    let is_it = |entry: &&[u8]| {
        elf.number(entry, 0, 4).and_then(|at| names.at(at)).is_some_and(|found| found == name)
    };
    let found = (0..count).map_while(entry).find(is_it)?;
    content(found, SECTION_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(file: &[u8]) -> impl Fn(u64, usize) -> Option<Vec<u8>> {
        move |offset, length| {
            let rest = file.get(usize::try_from(offset).ok()?..)?;
            Some(rest.get(..length).unwrap_or(rest).to_vec())
        }
    }

    #[test]
    fn reads_this_program() {
        let file = std::fs::read("/proc/self/exe").unwrap();
        let dynamic = Dynamic::read(&reader(&file));
        if cfg!(target_env = "gnu") {
            let dynamic = dynamic.unwrap();
            assert!(dynamic.needed_glibc() >= Some((2, 17)), "{dynamic:?}");
            assert_eq!((dynamic.soname.as_ref(), dynamic.defined_glibc()), (None, None));
        }
        assert!(section(&reader(&file), b".shstrtab").unwrap().windows(5).any(|name| name == b".text"));
        assert_eq!(section(&reader(&file), b".nosuch"), None);
    }

    #[test]
    fn the_highest_version_counts() {
        let versions = |names: &[&str]| names.iter().map(|name| name.as_bytes().to_vec()).collect::<Vec<_>>();
        for (names, expected) in [
            (&["GLIBC_2.2.5", "GLIBC_2.14", "GLIBC_2.9"][..], Some((2, 14))),
            (&["GLIBC_PRIVATE", "GLIBCXX_3.4", "GLIBC_2.x"], None),
            (&[], None),
        ] {
            assert_eq!(highest(&versions(names)), expected, "{names:?}");
        }
    }

    #[test]
    fn a_damaged_file_says_something_or_nothing() {
        let mut file = std::fs::read("/proc/self/exe").unwrap();
        for at in (0..1024).chain([file.len() / 2, file.len() - 1]) {
            let old = file[at];
            for value in [0, 1, 0x7f, 0xff] {
                file[at] = value;
                Dynamic::read(&|offset, length| reader(&file)(offset, length.min(1 << 16)));
            }
            file[at] = old;
        }
        assert_eq!(Dynamic::read(&|_, _| None), None);
        assert_eq!(section(&|_, length| Some(vec![0xff; length.min(1 << 16)]), b"x"), None);
    }
}
