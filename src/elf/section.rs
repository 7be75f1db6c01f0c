//! One section of a file by its name, for the few things that a loader does not look at.
//!
//! Source: elf(5).

use super::object::HEAD_BYTES;
use super::{Header, ReadAt};

/// Most sections of a file that are looked at: the largest libraries have about fifty.
const SECTIONS_MAX: usize = 4096;
/// Longest table of sections' names that is looked at, bytes.
const NAMES_MAX: u64 = 1 << 20;
/// Longest content of a section that is looked at, bytes.
const SECTION_MAX: u64 = 64 << 10;

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
    let names = content(entry(names_at)?, NAMES_MAX)?;
    let is_named = |at: u64| {
        let rest = usize::try_from(at).ok().and_then(|at| names.get(at..)?.strip_prefix(name));
        rest.is_some_and(|rest| rest.first() == Some(&0))
    };
    let is_it = |entry: &&[u8]| elf.number(entry, 0, 4).is_some_and(is_named);
    let found = (0..count).map_while(entry).find(is_it)?;
    content(found, SECTION_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_found_by_name() {
        let file = std::fs::read("/proc/self/exe").unwrap();
        let read = |offset: u64, length: usize| {
            let rest = file.get(usize::try_from(offset).ok()?..)?;
            Some(rest.get(..length).unwrap_or(rest).to_vec())
        };
        assert!(section(&read, b".shstrtab").unwrap().windows(5).any(|name| name == b".text"));
        assert_eq!(section(&read, b".nosuch"), None);
        assert_eq!(section(&|_, _| None, b"x"), None);
        assert_eq!(section(&|_, length| Some(vec![0xff; length.min(1 << 16)]), b"x"), None);
    }
}
