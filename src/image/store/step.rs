//! What a word means to a job step, so that a tag which moves while ranks start means one image to all of them.

use std::ffi::{OsStr, OsString};

use super::Key;
use crate::image::digest::Digest;

const HEADING: &str = "hpcrun step 1";
/// The largest record, bytes.
pub const MAX_BYTES: u64 = 4 << 10;

/// Which store an image is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// The user's own.
    User,
    /// The site's.
    Site,
}

impl Owner {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Owner::User => "user",
            Owner::Site => "site",
        }
    }
}

/// What the first rank of a step found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepRecord {
    /// The image.
    pub key: Key,
    /// Where it is.
    pub owner: Owner,
}

impl StepRecord {
    /// The name of the record of what `word` means to the step `step`, the `turn`th that is called so, from 0.
    pub fn file_name(step: &str, word: &OsStr, turn: u32) -> OsString {
        let text = [&turn.to_le_bytes(), step.as_bytes(), b"\0", word.as_encoded_bytes()].concat();
        OsString::from(Digest::of(&text).hex())
    }

    /// Whether a file name is one of a record.
    pub fn is_file_name(name: &OsStr) -> bool {
        name.len() == 64 && name.as_encoded_bytes().iter().all(u8::is_ascii_hexdigit)
    }

    /// The record's text.
    pub fn encode(&self) -> String {
        format!("{HEADING}\nstore {}\nimage {}\n", self.owner.word(), self.key)
    }

    /// Reads a record's text.
    pub fn parse(text: &[u8]) -> Option<StepRecord> {
        let (mut owner, mut key) = (None, None);
        for field in super::fields(std::str::from_utf8(text).ok()?, HEADING)? {
            match field? {
                ("store", word) => {
                    owner = Some([Owner::User, Owner::Site].into_iter().find(|owner| owner.word() == word)?)
                }
                ("image", name) => key = Some(Key::of_file_name(OsStr::new(name))?),
                _ => {}
            }
        }
        Some(StepRecord { key: key?, owner: owner? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records() {
        for owner in [Owner::User, Owner::Site] {
            let record = StepRecord { key: Key::new(Digest::of(b"x"), ""), owner };
            let text = record.encode();
            assert_eq!(StepRecord::parse(text.as_bytes()), Some(record));
            for bad in [&text.replace("store", "stare"), &text.replace("step 1", "step 2"), text.trim_end()] {
                assert_eq!(StepRecord::parse(bad.as_bytes()), None, "{bad}");
            }
            (0..text.len()).for_each(|cut| assert_eq!(StepRecord::parse(&text.as_bytes()[..cut]), None));
        }
    }

    #[test]
    fn names_tell_steps_and_words_apart() {
        let name = |step: &str, word: &str| StepRecord::file_name(step, OsStr::new(word), 0);
        let later = StepRecord::file_name("1.0", OsStr::new("app"), 1);
        let names = [name("1.0", "app"), name("1.1", "app"), name("1.0", "app2"), name("1.0app", ""), later];
        assert!((1..5).all(|n| !names[..n].contains(&names[n])));
        assert!(names.iter().all(|name| StepRecord::is_file_name(name)));
        assert!(!StepRecord::is_file_name(OsStr::new(".hpcrun-x-1-1.partial")));
    }
}
