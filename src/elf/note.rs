//! Notes that say what a program or library demands of kernel and processor.

use super::{Header, ReadAt};

/// Longest note segment that is looked at, bytes: real ones have less than 1 KiB.
const NOTES_MAX: u64 = 16 << 10;

/// What the notes demand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Demands {
    /// The oldest kernel, from `NT_GNU_ABI_TAG`.
    pub kernel: Option<(u32, u32)>,
    /// The level of x86-64 (1 to 4), from `GNU_PROPERTY_X86_ISA_1_NEEDED`.
    pub cpu_level: Option<u32>,
}

/// One note, and what follows it.
struct Note<'a> {
    kind: u64,
    name: &'a [u8],
    content: &'a [u8],
    after: &'a [u8],
}

impl Header {
    /// What the file's notes demand. Source: the x86-64 psABI, chapter 5, and elf(5).
    pub fn demands(&self, head: &[u8], read: ReadAt<'_>) -> Demands {
        const PT_NOTE: u64 = 4;
        let mut demands = Demands::default();
        for segment in self.segments(head).filter(|segment| segment.kind == PT_NOTE) {
            let length = usize::try_from(segment.size.min(NOTES_MAX)).unwrap_or(0);
            if let Some(notes) = read(segment.offset, length) {
                // Notes with properties are aligned to the width of an address, all others to 4.
                for align in [4, if self.is_64 { 8 } else { 4 }] {
                    self.read_notes(&notes, align, &mut demands);
                }
            }
        }
        demands
    }

    fn read_notes(&self, notes: &[u8], align: usize, demands: &mut Demands) {
        const NT_GNU_ABI_TAG: u64 = 1;
        const NT_GNU_PROPERTY_TYPE_0: u64 = 5;
        let mut rest = notes;
        while let Some(Note { kind, name, content, after }) = self.note(rest, align) {
            match (kind, name) {
                (NT_GNU_ABI_TAG, b"GNU\0") => demands.kernel = demands.kernel.or(self.abi_tag(content)),
                (NT_GNU_PROPERTY_TYPE_0, b"GNU\0") => {
                    demands.cpu_level = demands.cpu_level.or(self.isa_needed(content));
                }
                _ => {}
            }
            rest = after;
        }
    }

    /// The first of the notes.
    fn note<'a>(&self, bytes: &'a [u8], align: usize) -> Option<Note<'a>> {
        let length = |at| usize::try_from(self.number(bytes, at, 4)?).ok();
        let (name_length, length) = (length(0)?, length(4)?);
        let kind = self.number(bytes, 8, 4)?;
        let name = bytes.get(12..12usize.checked_add(name_length)?)?;
        let start = name_length.checked_add(12)?.checked_next_multiple_of(align)?;
        let end = start.checked_add(length)?;
        let next = end.checked_next_multiple_of(align)?;
        let content = bytes.get(start..end)?;
        Some(Note { kind, name, content, after: bytes.get(next..).unwrap_or_default() })
    }

    fn abi_tag(&self, content: &[u8]) -> Option<(u32, u32)> {
        const LINUX: u64 = 0;
        let number = |at| u32::try_from(self.number(content, at, 4)?).ok();
        (self.number(content, 0, 4)? == LINUX).then_some((number(4)?, number(8)?))
    }

    fn isa_needed(&self, content: &[u8]) -> Option<u32> {
        const GNU_PROPERTY_X86_ISA_1_NEEDED: u64 = 0xc000_8002;
        let align = if self.is_64 { 8 } else { 4 };
        let mut rest = content;
        loop {
            let length = usize::try_from(self.number(rest, 4, 4)?).ok()?;
            if self.number(rest, 0, 4)? == GNU_PROPERTY_X86_ISA_1_NEEDED && self.machine == 62 {
                // Bit 0 is the baseline, bit 3 x86-64-v4.
                let bits = u32::try_from(self.number(rest, 8, 4)?).ok()? & 0xf;
                return (bits != 0).then(|| u32::BITS - bits.leading_zeros());
            }
            rest = rest.get(8usize.checked_add(length)?.checked_next_multiple_of(align)?..)?;
        }
    }
}

/// The newest version of glibc's symbols that `libc.so.6` names: that of the library itself.
pub fn glibc_version(libc: &[u8]) -> Option<(u32, u32)> {
    let word = b"GLIBC_2.";
    let minor = |rest: &[u8]| {
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        std::str::from_utf8(rest.get(..digits)?).ok()?.parse::<u32>().ok()
    };
    let starts = libc.windows(word.len()).enumerate().filter(|(_, window)| *window == word);
    let newest = starts.filter_map(|(at, _)| minor(libc.get(at.checked_add(word.len())?..)?)).max()?;
    Some((2, newest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(kind: u32, content: &[u8], align: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(4_u32.to_le_bytes());
        bytes.extend(u32::try_from(content.len()).unwrap().to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(b"GNU\0");
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(align), 0);
        bytes
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// An ELF file with one note segment.
    fn elf(notes: &[u8]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0\x01\0\0\0".to_vec();
        file.resize(32, 0);
        file.extend(64_u64.to_le_bytes());
        file.resize(52, 0);
        for field in [64_u16, 56, 1, 0, 0, 0] {
            file.extend(field.to_le_bytes());
        }
        file.extend(4_u32.to_le_bytes());
        file.extend(4_u32.to_le_bytes());
        for field in [120, 0, 0, notes.len() as u64, notes.len() as u64, 8] {
            file.extend(field.to_le_bytes());
        }
        file.extend(notes);
        file
    }

    fn demands(file: &[u8]) -> Demands {
        let read = |offset: u64, length: usize| {
            let start = usize::try_from(offset).ok()?;
            file.get(start..start.checked_add(length)?).map(<[u8]>::to_vec)
        };
        Header::parse(file).unwrap().demands(file, &read)
    }

    #[test]
    fn demands_are_read_from_notes() {
        let kernel = note(1, &words(&[0, 3, 2, 0]), 4);
        let isa = |bits| note(5, &words(&[0xc000_8002, 4, bits, 0]), 8);
        let behind = note(5, &words(&[0xc000_0002, 4, 3, 0, 0xc000_8002, 4, 0b111, 0]), 8);
        for (notes, expected) in [
            (kernel.clone(), (Some((3, 2)), None)),
            (isa(0b1), (None, Some(1))),
            (isa(0b11), (None, Some(2))),
            (isa(0b1111), (None, Some(4))),
            (isa(0), (None, None)),
            (behind, (None, Some(3))),
            ([note(3, &[7; 20], 4), kernel.clone()].concat(), (Some((3, 2)), None)),
            (note(1, &words(&[1, 3, 2, 0]), 4), (None, None)),
            (Vec::new(), (None, None)),
        ] {
            let Demands { kernel, cpu_level } = demands(&elf(&notes));
            assert_eq!((kernel, cpu_level), expected, "{notes:?}");
        }
        // Whatever is cut off or overlong says nothing.
        for end in 0..kernel.len() {
            assert_eq!(demands(&elf(&kernel[..end])), Demands::default());
        }
        assert_eq!(demands(&elf(&[0xff; 64])), Demands::default());
    }

    #[test]
    fn the_newest_symbol_version_is_the_librarys() {
        for (bytes, expected) in [
            (&b"\0GLIBC_2.2.5\0GLIBC_2.36\0GLIBC_2.4\0GLIBC_PRIVATE"[..], Some((2, 36))),
            (b"GLIBC_2.", None),
            (b"musl", None),
            (b"GLIBC_2.99999999999999", None),
        ] {
            assert_eq!(glibc_version(bytes), expected);
        }
    }
}
