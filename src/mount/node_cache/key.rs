//! Names of copies: equal keys mean equal bytes.

use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::mount::voucher::Hashes;

/// Hexadecimal digits of a key.
const DIGITS: usize = 64;

/// The name of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// Of an image file of `length` bytes with these chunk hashes: wherever it lies and whatever it is called.
    pub fn of_content(hashes: &Hashes, length: u64) -> Key {
        let mut hash = Sha256::new().chain_update(b"content\0").chain_update(hashes.place.digest);
        for number in [hashes.place.offset, hashes.place.length, hashes.squashfs_length, length] {
            hash.update(number.to_le_bytes());
        }
        Key(hexadecimal(hash))
    }

    /// Of a file without chunk hashes: of this path, and only as long as nobody changes or replaces it.
    pub fn of_file(path: &Path, metadata: &Metadata) -> Key {
        let mut hash = Sha256::new().chain_update(b"file\0").chain_update(path.as_os_str().as_bytes());
        hash.update([0]);
        for number in [metadata.dev(), metadata.ino(), metadata.size()] {
            hash.update(number.to_le_bytes());
        }
        let times = [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()];
        times.iter().for_each(|number| hash.update(number.to_le_bytes()));
        Key(hexadecimal(hash))
    }

    /// The whole copy.
    pub(super) fn name(&self) -> OsString {
        OsString::from(&self.0)
    }

    /// The file whose time says when it was last of use.
    pub(super) fn used(&self) -> OsString {
        OsString::from(format!("{}.used", self.0))
    }

    /// The copy while it is made.
    pub(super) fn partial(&self) -> OsString {
        OsString::from(format!("{}.partial", self.0))
    }

    /// The key in the name of a copy, whole or partial.
    pub(super) fn of_name(name: &str) -> Option<(Key, bool)> {
        let (key, is_whole) = match name.strip_suffix(".partial") {
            Some(key) => (key, false),
            None => (name, true),
        };
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        (key.len() == DIGITS && key.bytes().all(is_digit)).then(|| (Key(key.to_owned()), is_whole))
    }
}

fn hexadecimal(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::trailer::Place;

    #[test]
    fn every_part_of_the_content_counts() {
        let place = Place { offset: 4096, length: 200, digest: [7; 32] };
        let hashes = Hashes { place, squashfs_length: 4000 };
        let key = Key::of_content(&hashes, 8192);
        assert_eq!(key, Key::of_content(&hashes, 8192));
        let other = |place: Place, squashfs_length, length| {
            Key::of_content(&Hashes { place, squashfs_length }, length)
        };
        for different in [
            other(Place { offset: 4104, ..place }, 4000, 8192),
            other(Place { length: 236, ..place }, 4000, 8192),
            other(Place { digest: [8; 32], ..place }, 4000, 8192),
            other(place, 4001, 8192),
            other(place, 4000, 12_288),
        ] {
            assert_ne!(key, different);
        }
    }

    #[test]
    fn a_replaced_file_has_another_key() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let key = || Key::of_file(&path, &std::fs::metadata(&path).unwrap());
        std::fs::write(&path, "one").unwrap();
        let first = key();
        assert_eq!(first, key());
        std::fs::write(directory.path().join("new"), "two").unwrap();
        std::fs::rename(directory.path().join("new"), &path).unwrap();
        assert_ne!(first, key());
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_ne!(key(), Key::of_file(&link, &std::fs::metadata(&path).unwrap()));
    }

    #[test]
    fn names_that_are_no_keys_are_left_alone() {
        let key = "0123456789abcdef".repeat(4);
        assert_eq!(Key::of_name(&key), Some((Key(key.clone()), true)));
        assert_eq!(Key::of_name(&format!("{key}.partial")), Some((Key(key.clone()), false)));
        for name in ["", ".partial", "x", &format!("{key}.used"), &key[1..], &key.to_uppercase()] {
            assert_eq!(Key::of_name(name), None, "{name}");
        }
    }
}
