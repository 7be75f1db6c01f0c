//! Round trips, the two formats, and damage.

use super::*;

fn library(name: &str, path: &str) -> Entry {
    Entry::new(name.into(), path.into())
}

/// A cache with what real ones have: names for better processors, other machines' libraries, the writer's name.
fn rich() -> LibraryCache {
    let other_machine = Entry { flags: 3, ..library("libc.so.6", "/lib32/libc.so.6") };
    let better =
        Entry { hardware: NAMED_HARDWARE | 1, ..library("libz.so.1", "/lib/glibc-hwcaps/v3/libz.so.1") };
    LibraryCache {
        entries: vec![
            better,
            library("libz.so.1", "/lib/z/libz.so.1"),
            library("libc.so.6", "/lib/libc.so.6"),
            other_machine,
        ],
        hardware_names: vec![b"x86-64-v2".to_vec(), b"x86-64-v3".to_vec()],
        generator: b"ldconfig (GNU libc)".to_vec(),
    }
}

/// The same behind a table of the older format with `count` entries.
fn with_old_table(cache: &[u8], count: u32) -> Vec<u8> {
    let mut bytes = OLD_MAGIC.to_vec();
    bytes.resize(OLD_COUNT_AT, 0);
    bytes.extend(count.to_ne_bytes());
    bytes.resize((OLD_HEADER_BYTES + OLD_ENTRY_BYTES * count as usize).next_multiple_of(ALIGNMENT), 0);
    bytes.extend_from_slice(cache);
    bytes
}

#[test]
fn finds_paths_by_name() {
    let bytes = rich().to_bytes().unwrap();
    for bytes in [with_old_table(&bytes, 0), with_old_table(&bytes, 1), with_old_table(&bytes, 2), bytes] {
        assert_eq!(path_of(&bytes, b"libc.so.6"), Some(&b"/lib/libc.so.6"[..]));
        assert_eq!(path_of(&bytes, b"libz.so.1"), Some(&b"/lib/z/libz.so.1"[..]));
        for name in [&b"libz.so"[..], b"", b"libz.so.1x"] {
            assert_eq!(path_of(&bytes, name), None);
        }
    }
}

#[test]
fn what_is_written_is_read() {
    for cache in [rich(), LibraryCache::default()] {
        let bytes = cache.to_bytes().unwrap();
        assert_eq!(LibraryCache::parse(&bytes), Ok(cache.clone()));
        assert_eq!(LibraryCache::parse(&with_old_table(&bytes, 3)), Ok(cache));
    }
}

#[test]
fn the_added_stand_before_those_of_the_same_name_only() {
    let mut cache = rich();
    let added = [library("libz.so.1", "/new/libz.so.1"), library("libcuda.so.1", "/new/libcuda.so.1")];
    cache.put_first(added);
    let shown: Vec<String> = cache
        .entries
        .iter()
        .map(|entry| format!("{} {}", entry.name.escape_ascii(), entry.path.escape_ascii()))
        .collect();
    let expected = [
        "libz.so.1 /new/libz.so.1",
        "libz.so.1 /lib/glibc-hwcaps/v3/libz.so.1",
        "libz.so.1 /lib/z/libz.so.1",
        "libcuda.so.1 /new/libcuda.so.1",
        "libc.so.6 /lib/libc.so.6",
        "libc.so.6 /lib32/libc.so.6",
    ];
    assert_eq!(shown, expected);
    assert_eq!(LibraryCache::parse(&cache.to_bytes().unwrap()), Ok(cache));
}

#[test]
fn other_files_are_refused() {
    for bytes in [&b""[..], b"ld.so-1.7.0", b"\x7fELF", b"glibc-ld.so.cache1.0", &[0; 100]] {
        assert_eq!(LibraryCache::parse(bytes), Err(CacheError::Magic));
        assert_eq!(path_of(bytes, b"libc.so.6"), None);
    }
    let header_only = MAGIC.to_vec();
    assert_eq!(LibraryCache::parse(&header_only), Err(CacheError::Damaged { what: "entries" }));
}

#[test]
fn survives_any_truncation_and_any_byte() {
    let whole = with_old_table(&rich().to_bytes().unwrap(), 1);
    for length in 0..whole.len() {
        path_of(&whole[..length], b"libc.so.6");
        let _ = LibraryCache::parse(&whole[..length]);
    }
    for at in 0..whole.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut changed = whole.clone();
            changed[at] = value;
            path_of(&changed, b"libc.so.6");
            if let Ok(mut cache) = LibraryCache::parse(&changed) {
                cache.put_first([library("libz.so.1", "/new/libz.so.1")]);
                let bytes = cache.to_bytes().unwrap();
                assert_eq!(LibraryCache::parse(&bytes), Ok(cache));
            }
        }
    }
}
