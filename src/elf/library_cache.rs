//! `/etc/ld.so.cache`: where glibc's loader finds a library by its name.
//!
//! Source: glibc `sysdeps/generic/dl-cache.h`, the format of glibc 2.2 and later. All integers are in the byte order of
//! the machine that the file is for; only this machine's is read.

/// Magic and version at the start of the file.
const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
/// Where the number of entries stands, in bytes from the start.
const COUNT_AT: usize = 20;
/// Bytes before the entries.
const HEADER_BYTES: usize = 48;
/// Bytes of an entry: flags, name, path, version of the system, hardware.
const ENTRY_BYTES: usize = 24;

/// The path of the library `name`: the last entry's, which is the one for any processor. None if the cache
/// does not know it, or is no such cache.
pub fn path_of<'a>(cache: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    if !cache.starts_with(MAGIC) {
        return None;
    }
    let count = number(cache, COUNT_AT)?;
    let mut entries = cache.get(HEADER_BYTES..)?.chunks_exact(ENTRY_BYTES).take(count);
    // Those for better processors come first.
    let found = entries.rfind(|entry| number(entry, 4).and_then(|at| string(cache, at)) == Some(name))?;
    string(cache, number(found, 8)?)
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    usize::try_from(u32::from_ne_bytes(*bytes)).ok()
}

/// The bytes from `at` to a NUL.
fn string(cache: &[u8], at: usize) -> Option<&[u8]> {
    let rest = cache.get(at..)?;
    rest.get(..rest.iter().position(|byte| *byte == 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cache of these names and paths.
    fn cache(entries: &[(&str, &str)]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(u32::try_from(entries.len()).unwrap().to_ne_bytes());
        bytes.resize(HEADER_BYTES, 0);
        let mut at = HEADER_BYTES + entries.len() * ENTRY_BYTES;
        for (name, path) in entries {
            let words = [0x303, at, at + name.len() + 1, 0, 0, 0];
            bytes.extend(words.iter().flat_map(|word| u32::try_from(*word).unwrap().to_ne_bytes()));
            at += name.len() + path.len() + 2;
        }
        for (name, path) in entries {
            bytes.extend(format!("{name}\0{path}\0").into_bytes());
        }
        bytes
    }

    #[test]
    fn finds_paths_by_name() {
        let cache = cache(&[("libz.so.1", "/lib/z/libz.so.1"), ("libc.so.6", "/lib/libc.so.6")]);
        assert_eq!(path_of(&cache, b"libc.so.6"), Some(&b"/lib/libc.so.6"[..]));
        assert_eq!(path_of(&cache, b"libz.so.1"), Some(&b"/lib/z/libz.so.1"[..]));
        for name in [&b"libz.so"[..], b"", b"libz.so.1x"] {
            assert_eq!(path_of(&cache, name), None);
        }
    }

    #[test]
    fn survives_any_truncation_and_any_byte() {
        let whole = cache(&[("libz.so.1", "/lib/z/libz.so.1"), ("libc.so.6", "/lib/libc.so.6")]);
        for length in 0..whole.len() {
            path_of(&whole[..length], b"libc.so.6");
        }
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut changed = whole.clone();
                changed[at] = value;
                path_of(&changed, b"libc.so.6");
            }
        }
    }
}
