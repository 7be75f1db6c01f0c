//! ELF facts: bytes in, facts out. Whatever the bytes say, offsets and lengths are checked.

pub mod closure;
pub mod dynamic;
pub mod library_cache;
pub mod note;
pub mod object;
pub mod symbols;
pub mod version;

pub use object::Object;
pub use symbols::Symbols;

/// Most entries of a program header that are looked at: real ones have about a dozen.
const SEGMENTS_MAX: u64 = 128;
/// Longest dynamic section that is looked at, bytes: real ones have less than 2 KiB.
const DYNAMIC_MAX: u64 = 64 << 10;
/// Longest name of a library.
const NAME_MAX: usize = 255;
/// Most libraries that a program is believed to name.
const NEEDED_MAX: usize = 256;

/// Reads a file's bytes at an offset; fewer where it ends.
pub type ReadAt<'a> = &'a dyn Fn(u64, usize) -> Option<Vec<u8>>;

/// One entry of the program header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    kind: u64,
    offset: u64,
    address: u64,
    size: u64,
    alignment: u64,
}

/// The few fields of an ELF header that explain why a program does not run. Source: elf(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    is_64: bool,
    is_little: bool,
    /// `e_machine`.
    pub machine: u16,
}

impl Header {
    /// Reads it from a file's first bytes; none if they are no ELF file's.
    pub fn parse(head: &[u8]) -> Option<Header> {
        let ident = head.strip_prefix(b"\x7fELF")?;
        let is_64 = match ident.first()? {
            1 => false,
            2 => true,
            _ => return None,
        };
        let is_little = match ident.get(1)? {
            1 => true,
            2 => false,
            _ => return None,
        };
        let mut elf = Header { is_64, is_little, machine: 0 };
        elf.machine = u16::try_from(elf.number(head, 18, 2)?).ok()?;
        Some(elf)
    }

    /// The machine as Rust names architectures.
    pub fn architecture(&self) -> Option<&'static str> {
        Some(match (self.machine, self.is_64, self.is_little) {
            (3, ..) => "x86",
            (40, ..) => "arm",
            (62, ..) => "x86_64",
            (183, ..) => "aarch64",
            (21, ..) => "powerpc64",
            (20, ..) => "powerpc",
            (22, true, _) => "s390x",
            (243, true, _) => "riscv64",
            (243, false, _) => "riscv32",
            (258, ..) => "loongarch64",
            _ => return None,
        })
    }

    /// The path in `PT_INTERP`, if the program header and the path are in `head`.
    pub fn interpreter<'a>(&self, head: &'a [u8]) -> Option<&'a [u8]> {
        const PT_INTERP: u64 = 3;
        let segment = self.segments(head).find(|segment| segment.kind == PT_INTERP)?;
        let from = usize::try_from(segment.offset).ok()?;
        let path = head.get(from..from.checked_add(usize::try_from(segment.size).ok()?)?)?;
        path.split(|byte| *byte == 0).next()
    }

    /// The libraries that the file names as needed (`DT_NEEDED`), in their order. None of them if the program header
    /// is not in `head`.
    pub fn needed(&self, head: &[u8], read: ReadAt<'_>) -> Vec<Vec<u8>> {
        self.try_needed(head, read).unwrap_or_default()
    }

    fn try_needed(&self, head: &[u8], read: ReadAt<'_>) -> Option<Vec<Vec<u8>>> {
        const PT_LOAD: u64 = 1;
        const PT_DYNAMIC: u64 = 2;
        const DT_NULL: u64 = 0;
        const DT_NEEDED: u64 = 1;
        const DT_STRTAB: u64 = 5;
        let table = self.segments(head).find(|segment| segment.kind == PT_DYNAMIC)?;
        let dynamic = read(table.offset, usize::try_from(table.size.min(DYNAMIC_MAX)).ok()?)?;
        let width = if self.is_64 { 8 } else { 4 };
        let (mut strings, mut names) = (None, Vec::new());
        for entry in dynamic.chunks_exact(2 * width) {
            match (self.number(entry, 0, width)?, self.number(entry, width, width)?) {
                (DT_NULL, _) => break,
                (DT_NEEDED, name) if names.len() < NEEDED_MAX => names.push(name),
                (DT_STRTAB, address) => strings = Some(address),
                _ => {}
            }
        }
        let strings = strings?;
        let holds = |segment: &Segment| {
            segment.kind == PT_LOAD
                && strings.checked_sub(segment.address).is_some_and(|at| at < segment.size)
        };
        let segment = self.segments(head).find(holds)?;
        let start = segment.offset.checked_add(strings - segment.address)?;
        let name = |at: u64| {
            let bytes = read(start.checked_add(at)?, NAME_MAX + 1)?;
            let end = bytes.iter().position(|byte| *byte == 0)?;
            bytes.get(..end).map(<[u8]>::to_vec)
        };
        Some(names.into_iter().filter_map(name).collect())
    }

    /// The program header, as far as it is in `head`.
    fn segments<'a>(&self, head: &'a [u8]) -> impl Iterator<Item = Segment> + use<'a> {
        let elf = *self;
        // (e_phoff, e_phentsize, p_offset, p_vaddr, p_filesz, p_align) of elf(5), and the width of an address.
        let (table, entry_size, offset, address, size, alignment, width) =
            if elf.is_64 { (32, 54, 8, 16, 32, 48, 8) } else { (28, 42, 4, 8, 16, 28, 4) };
        // A hostile file says that all of many entries are the same one.
        let is_size = elf.number(head, entry_size, 2) == Some(if elf.is_64 { 56 } else { 32 });
        let count = elf.number(head, entry_size + 2, 2).filter(|_| is_size).unwrap_or(0).min(SEGMENTS_MAX);
        (0..count).map_while(move |index| {
            let start = elf.number(head, table, width)?;
            let entry_bytes = elf.number(head, entry_size, 2)?;
            let entry = usize::try_from(start.checked_add(index.checked_mul(entry_bytes)?)?).ok()?;
            let field = |at: usize, width: usize| elf.number(head, entry.checked_add(at)?, width);
            Some(Segment {
                kind: field(0, 4)?,
                offset: field(offset, width)?,
                address: field(address, width)?,
                size: field(size, width)?,
                alignment: field(alignment, width)?,
            })
        })
    }

    /// The unsigned number of `width` bytes (8 at most) at `offset`.
    fn number(&self, head: &[u8], offset: usize, width: usize) -> Option<u64> {
        let bytes = head.get(offset..offset.checked_add(width)?)?;
        let fold = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        Some(if self.is_little { bytes.iter().rev().fold(0, fold) } else { bytes.iter().fold(0, fold) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of this test program, and a way to read them.
    fn own() -> Vec<u8> {
        std::fs::read("/proc/self/exe").unwrap()
    }

    fn read_in(file: &[u8], offset: u64, length: usize) -> Option<Vec<u8>> {
        let rest = file.get(usize::try_from(offset).ok()?..)?;
        Some(rest.get(..length).unwrap_or(rest).to_vec())
    }

    #[test]
    fn names_the_libraries_of_this_program() {
        let file = own();
        let elf = Header::parse(&file).unwrap();
        let needed = elf.needed(&file[..4096], &|offset, length| read_in(&file, offset, length));
        if cfg!(target_env = "gnu") {
            assert!(needed.iter().any(|name| name.starts_with(b"libc.so")), "{needed:?}");
        }
    }

    #[test]
    fn a_damaged_file_needs_something_or_nothing() {
        let file = own();
        let head = &file[..4096];
        let elf = Header::parse(head).unwrap();
        for length in 0..512 {
            elf.needed(&head[..length], &|offset, length| read_in(&file, offset, length));
        }
        for at in 0..1024 {
            for value in [0, 1, 2, 0x7f, 0xff] {
                let mut changed = head.to_vec();
                changed[at] = value;
                if let Some(elf) = Header::parse(&changed) {
                    elf.interpreter(&changed);
                    assert!(
                        elf.needed(&changed, &|offset, length| read_in(&file, offset, length)).len()
                            <= NEEDED_MAX
                    );
                }
            }
        }
        assert_eq!(elf.needed(head, &|_, _| None), Vec::<Vec<u8>>::new());
        assert_eq!(elf.needed(head, &|_, length| Some(vec![0xff; length])), Vec::<Vec<u8>>::new());
    }
}
