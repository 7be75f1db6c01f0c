//! ELF facts: bytes in, facts out. Whatever the bytes say, offsets and lengths are checked.

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
        // (e_phoff, e_phentsize, p_offset, p_filesz) of elf(5), and the width of an address.
        let (table, entry_size, offset, size, width) =
            if self.is_64 { (32, 54, 8, 32, 8) } else { (28, 42, 4, 16, 4) };
        let start = self.number(head, table, width)?;
        let entry_bytes = self.number(head, entry_size, 2)?;
        let count = self.number(head, entry_size.checked_add(2)?, 2)?;
        for index in 0..count {
            let entry = usize::try_from(start.checked_add(index.checked_mul(entry_bytes)?)?).ok()?;
            if self.number(head, entry, 4)? == PT_INTERP {
                let from = usize::try_from(self.number(head, entry.checked_add(offset)?, width)?).ok()?;
                let length = usize::try_from(self.number(head, entry.checked_add(size)?, width)?).ok()?;
                let path = head.get(from..from.checked_add(length)?)?;
                return path.split(|byte| *byte == 0).next();
            }
        }
        None
    }

    /// The unsigned number of `width` bytes (8 at most) at `offset`.
    fn number(&self, head: &[u8], offset: usize, width: usize) -> Option<u64> {
        let bytes = head.get(offset..offset.checked_add(width)?)?;
        let fold = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        Some(if self.is_little { bytes.iter().rev().fold(0, fold) } else { bytes.iter().fold(0, fold) })
    }
}
