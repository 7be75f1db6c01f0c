//! The file of a tag: which image a name means, and which it meant before.
//!
//! ```text
//! hpcrun tag 1
//! name docker.io/library/debian:12
//! keep 2
//! image sha256-....sqsh 1730000000
//! image sha256-....sqsh 1720000000
//! ```
//!
//! Newest first, each with the seconds after 1970 at which the name came to mean it.

use std::ffi::OsStr;
use std::fmt::Write as _;

use super::{Key, Name};

const HEADING: &str = "hpcrun tag 1";
/// Changes that are remembered.
const ENTRIES_MAX: usize = 100;
/// Images that a tag can hold at most.
pub const KEEP_MAX: usize = ENTRIES_MAX;
/// The largest file of a tag, bytes.
pub const MAX_BYTES: u64 = 64 << 10;

/// One change of a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The image that it came to mean.
    pub key: Key,
    /// When, seconds after 1970 by the clock of whoever changed it.
    pub at_seconds: u64,
}

/// A tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagRecord {
    /// What it is called.
    pub name: Name,
    /// How many of its last images `gc` leaves, at least 1.
    pub keep: usize,
    /// Its changes, newest first; never empty.
    entries: Vec<Entry>,
}

impl TagRecord {
    /// A name that means `key` for the first time.
    pub fn new(name: Name, key: Key, at_seconds: u64) -> TagRecord {
        TagRecord { name, keep: 1, entries: vec![Entry { key, at_seconds }] }
    }

    /// The image that it means.
    pub fn current(&self) -> Option<&Key> {
        self.entries.first().map(|entry| &entry.key)
    }

    /// Its changes, newest first.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The image that it means or once meant which has this digest; the newest if it was converted in several ways.
    pub fn with_digest(&self, digest: &crate::image::digest::Digest) -> Option<&Key> {
        self.entries.iter().map(|entry| &entry.key).find(|key| key.digest() == digest)
    }

    /// Notes that it means `key` from now on; nothing changes if it does already.
    pub fn point_to(&mut self, key: &Key, at_seconds: u64) {
        if self.current() != Some(key) {
            self.entries.insert(0, Entry { key: key.clone(), at_seconds });
            self.entries.truncate(ENTRIES_MAX);
        }
    }

    /// Takes the images of this digest out of what it once meant; whether there were any. What it means now stays.
    pub fn forget(&mut self, digest: &crate::image::digest::Digest) -> bool {
        let before = self.entries.len();
        if self.current().is_some_and(|key| key.digest() != digest) {
            self.entries.retain(|entry| entry.key.digest() != digest);
        }
        self.entries.len() < before
    }

    /// The images that must stay for its sake: the last [`TagRecord::keep`] different ones.
    pub fn kept(&self) -> Vec<&Key> {
        let mut kept: Vec<&Key> = Vec::new();
        for entry in &self.entries {
            if !kept.contains(&&entry.key) && kept.len() < self.keep.max(1) {
                kept.push(&entry.key);
            }
        }
        kept
    }

    /// The file's text.
    pub fn encode(&self) -> String {
        let mut text = format!("{HEADING}\nname {}\nkeep {}\n", self.name, self.keep);
        for entry in &self.entries {
            let _ = writeln!(text, "image {} {}", entry.key, entry.at_seconds);
        }
        text
    }

    /// Reads a file's text. None if it is anything else, or cut off. Words of later versions are passed over.
    pub fn parse(text: &[u8]) -> Option<TagRecord> {
        let text = std::str::from_utf8(text).ok()?;
        let (mut name, mut keep, mut entries) = (None, 1, Vec::new());
        for field in super::fields(text, HEADING)? {
            match field? {
                ("name", value) => {
                    name = Some(Name::parse(value).ok().filter(|name| name.as_str() == value)?)
                }
                ("keep", value) => keep = value.parse().ok().filter(|keep| (1..=KEEP_MAX).contains(keep))?,
                ("image", value) => {
                    let (key, at) = value.split_once(' ')?;
                    entries.push(Entry {
                        key: Key::of_file_name(OsStr::new(key))?,
                        at_seconds: at.parse().ok()?,
                    });
                }
                _ => {}
            }
        }
        let is_sane = !entries.is_empty() && entries.len() <= ENTRIES_MAX;
        name.filter(|_| is_sane).map(|name| TagRecord { name, keep, entries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::digest::Digest;

    fn key(of: &str) -> Key {
        Key::new(Digest::of(of.as_bytes()), "")
    }

    fn record() -> TagRecord {
        TagRecord::new(Name::parse("app:1").unwrap(), key("a"), 5)
    }

    #[test]
    fn a_tag_remembers_what_it_meant() {
        let mut tag = record();
        tag.point_to(&key("a"), 6);
        assert_eq!(tag.entries().len(), 1, "nothing changed");
        tag.point_to(&key("b"), 7);
        tag.point_to(&key("a"), 8);
        assert_eq!(tag.entries().iter().map(|entry| entry.at_seconds).collect::<Vec<_>>(), [8, 7, 5]);
        assert_eq!(tag.current(), Some(&key("a")));
        assert_eq!(tag.with_digest(key("b").digest()), Some(&key("b")));
        assert_eq!(TagRecord::parse(tag.encode().as_bytes()), Some(tag));
    }

    #[test]
    fn as_many_different_images_are_kept_as_asked_for() {
        let mut tag = record();
        for (at, of) in ["b", "a", "b", "c"].iter().enumerate() {
            tag.point_to(&key(of), at as u64);
        }
        for (keep, expected) in
            [(0, &["c"][..]), (1, &["c"]), (2, &["c", "b"]), (3, &["c", "b", "a"]), (9, &["c", "b", "a"])]
        {
            tag.keep = keep;
            let expected: Vec<Key> = expected.iter().map(|of| key(of)).collect();
            assert_eq!(tag.kept(), expected.iter().collect::<Vec<_>>(), "{keep}");
        }
    }

    #[test]
    fn what_it_once_meant_can_be_forgotten_and_what_it_means_cannot() {
        let mut tag = record();
        tag.point_to(&key("b"), 6);
        tag.point_to(&key("a"), 7);
        assert!(!tag.forget(key("a").digest()) && !tag.forget(key("c").digest()));
        assert!(tag.forget(key("b").digest()));
        assert_eq!(tag.entries().iter().map(|entry| entry.at_seconds).collect::<Vec<_>>(), [7, 5]);
    }

    #[test]
    fn the_longest_history_fits() {
        let long = format!("r.site/{}:{}", "a".repeat(250), "b".repeat(128));
        let sha512 = |n: usize| {
            let digest = Digest::of_with(crate::image::digest::Algorithm::Sha512, &n.to_le_bytes());
            Key::new(digest, "")
        };
        let mut tag = TagRecord::new(Name::parse(&long).unwrap(), key("a"), u64::MAX);
        (0..2 * ENTRIES_MAX).for_each(|n| tag.point_to(&sha512(n), u64::MAX));
        assert_eq!(tag.entries().len(), ENTRIES_MAX);
        assert!(tag.encode().len() as u64 <= MAX_BYTES);
        assert_eq!(TagRecord::parse(tag.encode().as_bytes()), Some(tag));
    }

    #[test]
    fn what_is_no_tag() {
        let good = record().encode();
        assert!(TagRecord::parse(good.as_bytes()).is_some());
        assert!(TagRecord::parse(format!("{good}later word\n").as_bytes()).is_some(), "of a later version");
        let image = format!("image {} 5\n", key("a"));
        for bad in [
            String::new(),
            good.replace("tag 1", "tag 2"),
            good.trim_end().to_owned(),
            good.replace(&image, ""),
            good.replace(" 5\n", " x\n"),
            good.replace(" 5\n", "\n"),
            good.replace("sha256-", "../sha256-"),
            good.replace("docker.io/library/", ""),
            good.replace("keep 1", "keep 0"),
            good.replace("keep 1", "keep 101"),
            good.replace("keep 1", "keep"),
            image.repeat(ENTRIES_MAX + 1),
            format!("{good}{}", image.repeat(ENTRIES_MAX)),
        ] {
            assert_eq!(TagRecord::parse(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(TagRecord::parse(b"hpcrun tag 1\nname \xff\n"), None);
        for cut in 0..good.len() {
            assert_eq!(TagRecord::parse(&good.as_bytes()[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn changed_bytes_are_read_without_harm() {
        let good = record().encode().into_bytes();
        for at in 0..good.len() {
            for byte in [0, b'\n', b' ', b'/', b'9', 0xff] {
                let mut bad = good.clone();
                bad[at] = byte;
                if let Some(tag) = TagRecord::parse(&bad) {
                    assert!(tag.current().is_some());
                }
            }
        }
    }
}
