//! What an ELF program or library asks of its surroundings, and what it is: read off its program header, never off its
//! section header, which a loader does not look at either.
//!
//! Sources: elf(5); the GNU symbol versions and notes as in glibc's `elf.h`.

use std::collections::BTreeMap;

use super::{DYNAMIC_MAX, Header, NAME_MAX, NEEDED_MAX, ReadAt, Segment};

/// Bytes of a file that hold its header and its program header, in every file that a linker wrote.
pub const HEAD_BYTES: usize = 4096;
/// Bytes of a table of versions, and of a segment of notes, that are looked at.
const TABLE_MAX: usize = 256 << 10;
/// A string table of up to so many bytes is read in one piece.
const STRINGS_WHOLE_MAX: usize = 128 << 10;
/// Most versions of one file.
const VERSIONS_MAX: usize = 4096;
/// Longest list of directories in `DT_RPATH`, bytes.
const PATH_MAX: usize = 64 << 10;

const PT_LOAD: u64 = 1;
const PT_DYNAMIC: u64 = 2;
const PT_INTERP: u64 = 3;
const PT_NOTE: u64 = 4;
const PT_GNU_PROPERTY: u64 = 0x6474_e553;

/// The entries of the dynamic section that are read. Source: elf(5).
pub(super) mod tag {
    pub(in super::super) const NEEDED: u64 = 1;
    pub(in super::super) const HASH: u64 = 4;
    pub(in super::super) const STRTAB: u64 = 5;
    pub(in super::super) const SYMTAB: u64 = 6;
    pub(in super::super) const STRSZ: u64 = 10;
    pub(in super::super) const SONAME: u64 = 14;
    pub(in super::super) const RPATH: u64 = 15;
    pub(in super::super) const RUNPATH: u64 = 29;
    pub(in super::super) const GNU_HASH: u64 = 0x6fff_fef5;
    pub(in super::super) const VERSYM: u64 = 0x6fff_fff0;
    pub(in super::super) const VERDEF: u64 = 0x6fff_fffc;
    pub(in super::super) const VERNEED: u64 = 0x6fff_fffe;
}

/// A program or a library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Machine, width and byte order.
    pub header: Header,
    /// The loader that a program asks for; libraries have none.
    pub interpreter: Option<Vec<u8>>,
    /// The name by which others need it.
    pub soname: Option<Vec<u8>>,
    /// Names of the libraries that it needs, in their order.
    pub needed: Vec<Vec<u8>>,
    /// Directories of `DT_RPATH`, which are looked at before everything else.
    pub rpath: Vec<Vec<u8>>,
    /// Directories of `DT_RUNPATH`.
    pub runpath: Vec<Vec<u8>>,
    /// Versions that it requires of other libraries.
    pub requires: Vec<Requirement>,
    /// Versions that it defines, its own name left out.
    pub defines: Vec<Vec<u8>>,
    /// The x86-64 level that it says to need, 1 to 4; none if it says nothing.
    pub isa_level: Option<u8>,
    /// The oldest Linux that it says to run on.
    pub oldest_kernel: Option<[u32; 3]>,
    /// Names of versions by their index in the table of symbols' versions.
    pub(super) version_names: BTreeMap<u16, Vec<u8>>,
    /// Addresses and sizes out of the dynamic section.
    pub(super) dynamic: BTreeMap<u64, u64>,
    segments: Vec<Segment>,
    /// The string table while the object is read, if it is short.
    strings: Vec<u8>,
}

/// A version that a library must define.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// The library, by the name under which it is needed.
    pub library: Vec<u8>,
    /// The version: `GLIBC_2.34`.
    pub version: Vec<u8>,
    /// Whether it does without.
    pub is_weak: bool,
}

impl Object {
    /// Reads a file. None if it is no ELF file for a machine of known width and byte order; what of the rest makes no
    /// sense is left out.
    pub fn read(read: ReadAt<'_>) -> Option<Object> {
        let mut object = Object::begin(read)?;
        object.read_requirements(read);
        object.read_definitions(read);
        object.read_notes(read);
        object.strings = Vec::new();
        Some(object)
    }

    /// Reads what names other files: the loader, the libraries, the directories. Versions and notes are left out.
    pub fn read_names(read: ReadAt<'_>) -> Option<Object> {
        let mut object = Object::begin(read)?;
        object.strings = Vec::new();
        Some(object)
    }

    fn begin(read: ReadAt<'_>) -> Option<Object> {
        let head = read(0, HEAD_BYTES)?;
        let header = Header::parse(&head)?;
        let segments: Vec<Segment> = header.segments(&head).collect();
        let mut object = Object {
            header,
            interpreter: None,
            soname: None,
            needed: Vec::new(),
            rpath: Vec::new(),
            runpath: Vec::new(),
            requires: Vec::new(),
            defines: Vec::new(),
            isa_level: None,
            oldest_kernel: None,
            version_names: BTreeMap::new(),
            dynamic: BTreeMap::new(),
            segments,
            strings: Vec::new(),
        };
        object.interpreter = object.read_interpreter(&head, read);
        object.read_dynamic(read);
        Some(object)
    }

    /// The highest version with this prefix (`GLIBC_`) that it requires of anybody, as text: `2.34`.
    pub fn highest_required(&self, prefix: &str) -> Option<String> {
        let strong = self.requires.iter().filter(|requirement| !requirement.is_weak);
        super::version::highest(strong.map(|requirement| requirement.version.as_slice()), prefix)
    }

    /// The highest version with this prefix that it defines.
    pub fn highest_defined(&self, prefix: &str) -> Option<String> {
        super::version::highest(self.defines.iter().map(Vec::as_slice), prefix)
    }

    /// The number at `offset` of `bytes`, in the file's byte order.
    pub(super) fn number(&self, bytes: &[u8], offset: usize, width: usize) -> Option<u64> {
        self.header.number(bytes, offset, width)
    }

    /// Where in the file an address of the dynamic section lies.
    pub(super) fn offset_of(&self, address: u64) -> Option<u64> {
        let holds = |segment: &&Segment| {
            segment.kind == PT_LOAD
                && address.checked_sub(segment.address).is_some_and(|at| at < segment.size)
        };
        let segment = self.segments.iter().find(holds)?;
        segment.offset.checked_add(address.checked_sub(segment.address)?)
    }

    /// Bytes of an address or a word of the dynamic section.
    pub(super) fn width(&self) -> usize {
        if self.header.is_64 { 8 } else { 4 }
    }

    /// The bytes of a table, by its entry of the dynamic section; at most `most`.
    pub(super) fn table(&self, tag: u64, most: usize, read: ReadAt<'_>) -> Option<Vec<u8>> {
        read(self.offset_of(*self.dynamic.get(&tag)?)?, most)
    }

    /// The path lies behind the program header in nearly all files.
    fn read_interpreter(&self, head: &[u8], read: ReadAt<'_>) -> Option<Vec<u8>> {
        let segment = self.segments.iter().find(|segment| segment.kind == PT_INTERP)?;
        let length = usize::try_from(segment.size.min(4096)).ok()?;
        let start = usize::try_from(segment.offset).ok()?;
        let path = match start.checked_add(length).and_then(|end| head.get(start..end)) {
            Some(path) => path.to_vec(),
            None => read(segment.offset, length)?,
        };
        path.split(|byte| *byte == 0).next().map(<[u8]>::to_vec)
    }

    fn read_dynamic(&mut self, read: ReadAt<'_>) -> Option<()> {
        let table = *self.segments.iter().find(|segment| segment.kind == PT_DYNAMIC)?;
        let bytes = read(table.offset, usize::try_from(table.size.min(DYNAMIC_MAX)).ok()?)?;
        let width = self.width();
        let mut needed = Vec::new();
        for entry in bytes.chunks_exact(2 * width) {
            match (self.number(entry, 0, width)?, self.number(entry, width, width)?) {
                (0, _) => break,
                (tag::NEEDED, name) if needed.len() < NEEDED_MAX => needed.push(name),
                (tag, value) => {
                    self.dynamic.entry(tag).or_insert(value);
                }
            }
        }
        self.strings = self.read_strings(read).unwrap_or_default();
        self.needed = needed.into_iter().filter_map(|name| self.string(name, NAME_MAX, read)).collect();
        let named = |tag: u64, most| self.string(*self.dynamic.get(&tag)?, most, read);
        let (soname, rpath, runpath) =
            (named(tag::SONAME, NAME_MAX), named(tag::RPATH, PATH_MAX), named(tag::RUNPATH, PATH_MAX));
        self.soname = soname;
        self.rpath = directories(rpath);
        self.runpath = directories(runpath);
        Some(())
    }

    /// The string table, if reading it costs less than reading the strings.
    fn read_strings(&self, read: ReadAt<'_>) -> Option<Vec<u8>> {
        let length = usize::try_from(*self.dynamic.get(&tag::STRSZ)?).ok()?;
        if length > STRINGS_WHOLE_MAX { None } else { self.table(tag::STRTAB, length, read) }
    }

    /// The string at an offset of the string table.
    fn string(&self, at: u64, most: usize, read: ReadAt<'_>) -> Option<Vec<u8>> {
        if let Some(rest) = usize::try_from(at).ok().and_then(|at| self.strings.get(at..)) {
            let rest = rest.get(..most.saturating_add(1)).unwrap_or(rest);
            if let Some(end) = rest.iter().position(|byte| *byte == 0) {
                return rest.get(..end).map(<[u8]>::to_vec);
            }
        }
        let start = self.offset_of(*self.dynamic.get(&tag::STRTAB)?)?;
        let mut bytes = read(start.checked_add(at)?, most.checked_add(1)?)?;
        let end = bytes.iter().position(|byte| *byte == 0)?;
        bytes.truncate(end);
        Some(bytes)
    }

    /// `Verneed` and `Vernaux` of elf.h: chains of records, each with the distance to the next.
    fn read_requirements(&mut self, read: ReadAt<'_>) -> Option<()> {
        let bytes = self.table(tag::VERNEED, TABLE_MAX, read)?;
        let mut at = 0;
        while self.requires.len() < VERSIONS_MAX {
            let library = self.string(self.number(&bytes, at + 4, 4)?, NAME_MAX, read)?;
            let mut aux = step(at, self.number(&bytes, at + 8, 4)?)?;
            let count = self.number(&bytes, at + 2, 2)?;
            for _ in 0..count {
                let is_weak = self.number(&bytes, aux.checked_add(4)?, 2)? & 2 != 0;
                let index = u16::try_from(self.number(&bytes, aux.checked_add(6)?, 2)?).ok()?;
                let version = self.string(self.number(&bytes, aux.checked_add(8)?, 4)?, NAME_MAX, read)?;
                self.version_names.insert(index & INDEX, version.clone());
                self.requires.push(Requirement { library: library.clone(), version, is_weak });
                match self.number(&bytes, aux.checked_add(12)?, 4)? {
                    0 => break,
                    next if self.requires.len() < VERSIONS_MAX => aux = step(aux, next)?,
                    _ => return None,
                }
            }
            match self.number(&bytes, at.checked_add(12)?, 4)? {
                0 => break,
                next => at = step(at, next)?,
            }
        }
        Some(())
    }

    /// `Verdef` and `Verdaux` of elf.h. The first of them is the file's own name.
    fn read_definitions(&mut self, read: ReadAt<'_>) -> Option<()> {
        const VER_FLG_BASE: u64 = 1;
        let bytes = self.table(tag::VERDEF, TABLE_MAX, read)?;
        let mut at = 0;
        while self.defines.len() < VERSIONS_MAX {
            let flags = self.number(&bytes, at + 2, 2)?;
            let index = u16::try_from(self.number(&bytes, at + 4, 2)?).ok()?;
            let aux = step(at, self.number(&bytes, at + 12, 4)?)?;
            let name = self.string(self.number(&bytes, aux, 4)?, NAME_MAX, read)?;
            if flags & VER_FLG_BASE == 0 {
                self.version_names.insert(index & INDEX, name.clone());
                self.defines.push(name);
            }
            match self.number(&bytes, at.checked_add(16)?, 4)? {
                0 => break,
                next => at = step(at, next)?,
            }
        }
        Some(())
    }

    fn read_notes(&mut self, read: ReadAt<'_>) {
        let notes = self.segments.iter().filter(|segment| [PT_NOTE, PT_GNU_PROPERTY].contains(&segment.kind));
        for segment in notes.copied().collect::<Vec<_>>() {
            let length = usize::try_from(segment.size).unwrap_or(usize::MAX).min(TABLE_MAX);
            if let Some(bytes) = read(segment.offset, length) {
                self.read_note_segment(&bytes, if segment.alignment == 8 { 8 } else { 4 });
            }
        }
    }

    fn read_note_segment(&mut self, bytes: &[u8], alignment: usize) -> Option<()> {
        const NT_GNU_ABI_TAG: u64 = 1;
        const NT_GNU_PROPERTY_TYPE_0: u64 = 5;
        let mut at: usize = 0;
        loop {
            let name_bytes = usize::try_from(self.number(bytes, at, 4)?).ok()?;
            let length = usize::try_from(self.number(bytes, at.checked_add(4)?, 4)?).ok()?;
            let kind = self.number(bytes, at.checked_add(8)?, 4)?;
            let name_at = at.checked_add(12)?;
            let name = bytes.get(name_at..name_at.checked_add(name_bytes)?)?;
            let content_at = name_at.checked_add(name_bytes)?.checked_next_multiple_of(alignment)?;
            let content = bytes.get(content_at..content_at.checked_add(length)?)?;
            match kind {
                NT_GNU_ABI_TAG if name == b"GNU\0" => self.read_abi_tag(content),
                NT_GNU_PROPERTY_TYPE_0 if name == b"GNU\0" => self.read_properties(content),
                _ => None,
            };
            at = content_at.checked_add(length)?.checked_next_multiple_of(alignment)?;
        }
    }

    fn read_abi_tag(&mut self, content: &[u8]) -> Option<()> {
        const LINUX: u64 = 0;
        let word = |at| self.number(content, at, 4).and_then(|word| u32::try_from(word).ok());
        let kernel = [word(4)?, word(8)?, word(12)?];
        if self.number(content, 0, 4)? == LINUX {
            self.oldest_kernel = Some(kernel);
        }
        Some(())
    }

    fn read_properties(&mut self, content: &[u8]) -> Option<()> {
        const X86_ISA_1_NEEDED: u64 = 0xc000_8002;
        const X86_MACHINES: [u16; 2] = [3, 62];
        let mut at: usize = 0;
        loop {
            let kind = self.number(content, at, 4)?;
            let length = usize::try_from(self.number(content, at.checked_add(4)?, 4)?).ok()?;
            let data = at.checked_add(8)?;
            if kind == X86_ISA_1_NEEDED && X86_MACHINES.contains(&self.header.machine) {
                let bits = self.number(content, data, 4)? & 0xf;
                let level = (0..4_u8).rev().find(|bit| bits >> bit & 1 == 1).map(|bit| bit + 1);
                self.isa_level = self.isa_level.max(level);
            }
            at = data.checked_add(length)?.checked_next_multiple_of(self.width())?;
        }
    }
}

/// The bits of a symbol's version that number it; the upper one says that it is hidden.
pub(super) const INDEX: u16 = 0x7fff;

/// The next record of a chain, which must lie further on.
fn step(at: usize, distance: u64) -> Option<usize> {
    at.checked_add(usize::try_from(distance).ok()?)
}

fn directories(list: Option<Vec<u8>>) -> Vec<Vec<u8>> {
    let list = list.unwrap_or_default();
    list.split(|byte| *byte == b':').filter(|entry| !entry.is_empty()).map(<[u8]>::to_vec).collect()
}

#[cfg(test)]
mod tests;
