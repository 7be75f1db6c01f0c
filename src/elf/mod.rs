//! ELF facts: bytes in, facts out. Whatever the bytes say, offsets and lengths are checked.

pub mod closure;
pub mod library_cache;
pub mod object;
pub mod section;
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
