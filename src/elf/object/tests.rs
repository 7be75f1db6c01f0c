//! Against this machine's own programs and libraries, with readelf for the oracle, and against damage.

use super::super::Symbols;
use super::*;

fn read_in(file: &[u8], offset: u64, length: usize) -> Option<Vec<u8>> {
    let rest = file.get(usize::try_from(offset).ok()?..)?;
    Some(rest.get(..length).unwrap_or(rest).to_vec())
}

fn object(file: &[u8]) -> Option<Object> {
    Object::read(&|offset, length| read_in(file, offset, length))
}

fn symbols(file: &[u8], object: &Object) -> Option<Symbols> {
    Symbols::read(object, &|offset, length| read_in(file, offset, length))
}

/// A real file: the loader's idea of libc, wherever it lies.
fn libc() -> (std::path::PathBuf, Vec<u8>) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let path = maps
        .lines()
        .find_map(|line| line.split_whitespace().last().filter(|path| path.ends_with("/libc.so.6")));
    let path = std::path::PathBuf::from(path.expect("this test is linked to glibc"));
    let bytes = std::fs::read(&path).unwrap();
    (path, bytes)
}

fn readelf(option: &str, path: &std::path::Path) -> String {
    let output =
        std::process::Command::new("readelf").args(["-W", option]).arg(path).output().expect("readelf");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_library_is_what_readelf_says() {
    let (path, bytes) = libc();
    let libc = object(&bytes).unwrap();
    let dynamic = readelf("-d", &path);
    let bracketed = |tag: &str| -> Vec<String> {
        let lines = dynamic.lines().filter(|line| line.contains(tag));
        lines.map(|line| line.split(['[', ']']).nth(1).unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(libc.soname.as_deref(), Some(&b"libc.so.6"[..]));
    let needed: Vec<_> = libc.needed.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    assert_eq!(needed, bracketed("(NEEDED)"));
    assert!(libc.defines.contains(&b"GLIBC_2.2.5".to_vec()) || cfg!(not(target_arch = "x86_64")));
    assert!(libc.defines.contains(&b"GLIBC_PRIVATE".to_vec()));

    let table = readelf("--dyn-syms", &path);
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    let global = |row: &&Vec<&str>| row.len() >= 8 && ["GLOBAL", "WEAK", "UNIQUE"].contains(&row[4]);
    let mut expected: Vec<(String, bool)> = rows
        .iter()
        .filter(global)
        .map(|row| (row[7].split('@').next().unwrap().to_owned(), row[6] != "UND"))
        .collect();
    let symbols = symbols(&bytes, &libc).unwrap();
    let mut found: Vec<(String, bool)> = symbols
        .iter()
        .map(|symbol| (String::from_utf8_lossy(symbol.name).into_owned(), symbol.is_defined))
        .collect();
    expected.sort();
    found.sort();
    assert!(found.len() > 1000);
    assert_eq!(found, expected);
    let printf = symbols.iter().find(|symbol| symbol.name == b"printf").unwrap();
    assert!(printf.version.is_some_and(|version| version.starts_with(b"GLIBC_2.")));
}

#[test]
fn a_program_is_what_readelf_says() {
    let path = std::fs::canonicalize("/proc/self/exe").unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let own = object(&bytes).unwrap();
    let interpreter = String::from_utf8_lossy(own.interpreter.as_deref().unwrap()).into_owned();
    assert!(readelf("-l", &path).contains(&format!("[Requesting program interpreter: {interpreter}]")));
    let versions = readelf("-V", &path);
    let needed = own.highest_required("GLIBC_").unwrap();
    assert!(versions.contains(&format!("Name: GLIBC_{needed} ")), "{needed}");
    assert!(own.requires.iter().all(|requirement| !requirement.library.is_empty()));
    assert!(own.oldest_kernel.is_some_and(|kernel| {
        readelf("-n", &path).contains(&format!("OS: Linux, ABI: {}.{}.{}", kernel[0], kernel[1], kernel[2]))
    }));
}

/// An ELF file of notes alone.
fn with_notes(machine: u16, alignment: u64, notes: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(64, 0);
    file[18..20].copy_from_slice(&machine.to_le_bytes());
    file[32] = 64;
    file[54] = 56;
    file[56] = 1;
    let length = notes.len() as u64;
    for word in [4, 120, 0, 0, length, length, alignment] {
        file.extend_from_slice(&u64::to_le_bytes(word));
    }
    file.extend_from_slice(notes);
    file
}

fn note(kind: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [4, u32::try_from(content.len()).unwrap(), kind] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(b"GNU\0");
    bytes.extend_from_slice(content);
    bytes
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn notes_say_which_processor_and_kernel() {
    let needs = |bits| note(5, &words(&[0xc000_8002, 4, bits, 0]));
    for (bits, level) in
        [(0, None), (1, Some(1)), (2, Some(2)), (3, Some(2)), (7, Some(3)), (8, Some(4)), (16, None)]
    {
        let found = object(&with_notes(62, 8, &needs(bits))).unwrap();
        assert_eq!(found.isa_level, level, "{bits}");
    }
    // What other property comes first, what another machine means by the number, and a note of another owner.
    let behind = note(5, &words(&[0xc000_0002, 4, 3, 0, 0xc000_8002, 4, 4, 0]));
    assert_eq!(object(&with_notes(62, 8, &behind)).unwrap().isa_level, Some(3));
    assert_eq!(object(&with_notes(183, 8, &behind)).unwrap().isa_level, None);
    let foreign = note(5, &words(&[0xc000_8002, 4, 4, 0]))
        .iter()
        .map(|byte| if *byte == b'G' { b'X' } else { *byte })
        .collect::<Vec<_>>();
    assert_eq!(object(&with_notes(62, 8, &foreign)).unwrap().isa_level, None);
    let two = [note(1, &words(&[0, 3, 2, 0])), note(5, &words(&[0xc000_8002, 4, 2, 0]))].concat();
    let found = object(&with_notes(62, 4, &two)).unwrap();
    assert_eq!((found.oldest_kernel, found.isa_level), (Some([3, 2, 0]), Some(2)));
}

#[test]
fn damage_is_survived() {
    let (_, libc) = libc();
    let own = std::fs::read("/proc/self/exe").unwrap();
    for file in [&libc, &own] {
        let whole = object(file).unwrap();
        for length in [0, 4, 18, 63, 64, 100, 1000, 4096, file.len() / 2] {
            if let Some(cut) = object(&file[..length]) {
                symbols(&file[..length], &cut);
            }
        }
        // Header, program header and the tables that the dynamic section names, byte by byte.
        let tables = whole.dynamic.values().filter_map(|address| whole.offset_of(*address));
        let starts = tables.filter_map(|at| usize::try_from(at).ok()).chain([0, 32, 54]);
        let mut changed = file.clone();
        for start in starts {
            for at in start..(start + 64).min(file.len()) {
                for value in [0, 1, 0x7f, 0xff] {
                    changed[at] = value;
                    object(&changed);
                }
                changed[at] = file[at];
            }
        }
    }
    assert_eq!(object(b"#!/bin/sh\n"), None);
}
