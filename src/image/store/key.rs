//! What an image file is found by: the digest of its manifest and how it was converted.
//!
//! The same manifest and parameters give the same bytes, so whoever brings an image a second time may as well drop it.

use std::ffi::{OsStr, OsString};
use std::fmt;

use crate::image::digest::Digest;

/// How the names of image files end.
const SUFFIX: &str = ".sqsh";
/// Digits that tell one way to convert from another.
const PARAMETER_DIGITS: usize = 16;
/// Digits that a shortened digest is shown with; enough to tell the images of a site apart.
const SHORT_DIGITS: usize = 12;

/// Names one image file of a store.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    digest: Digest,
    parameters: String,
}

impl Key {
    /// The key of an image with this manifest, converted as `parameters` say, in words.
    pub fn new(manifest_digest: Digest, parameters: &str) -> Key {
        let hash = Digest::of(parameters.as_bytes());
        let parameters = hash.hex().get(..PARAMETER_DIGITS).unwrap_or_default().to_owned();
        Key { digest: manifest_digest, parameters }
    }

    /// The digest of the manifest.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The digest cut short, for people: `sha256:0123456789ab`.
    pub fn short(&self) -> String {
        let hex = self.digest.hex();
        format!("{}:{}", self.digest.algorithm().name(), hex.get(..SHORT_DIGITS).unwrap_or(hex))
    }

    /// Whether the image's digest begins with `prefix`, as [`super::word`] has it: `sha256:0123`.
    pub fn begins_with(&self, prefix: &str) -> bool {
        self.digest.as_str().starts_with(prefix)
    }

    /// The name without its suffix.
    fn stem(&self) -> String {
        format!("{}-{}-{}", self.digest.algorithm().name(), self.digest.hex(), self.parameters)
    }

    /// The name of the file in `images/`.
    pub fn file_name(&self) -> OsString {
        OsString::from(format!("{}{SUFFIX}", self.stem()))
    }

    /// The key that a file name says, if it is one of an image.
    pub fn of_file_name(name: &OsStr) -> Option<Key> {
        Key::parse_stem(name.to_str()?.strip_suffix(SUFFIX)?)
    }

    fn parse_stem(stem: &str) -> Option<Key> {
        let (digest, parameters) = stem.rsplit_once('-')?;
        let digest = Digest::parse(&digest.replacen('-', ":", 1)).ok().filter(|_| !digest.contains(':'))?;
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let fits = parameters.len() == PARAMETER_DIGITS && parameters.bytes().all(is_hex);
        fits.then(|| Key { digest, parameters: parameters.to_owned() })
    }

    /// The name that the file has in `trash/` from `nanoseconds` after 1970 on.
    pub fn trash_name(&self, nanoseconds: u128) -> OsString {
        OsString::from(format!("{}{SUFFIX}.{nanoseconds}", self.stem()))
    }

    /// The key and the time of a name in `trash/`.
    pub fn of_trash_name(name: &OsStr) -> Option<(Key, u128)> {
        let (image, time) = name.to_str()?.rsplit_once('.')?;
        let time = time.parse().ok().filter(|_| time.bytes().all(|byte| byte.is_ascii_digit()))?;
        Some((Key::of_file_name(OsStr::new(image))?, time))
    }

    /// How the names of leases on this image begin; a number follows.
    pub fn lease_prefix(&self) -> String {
        format!("{LEASE_PREFIX}{}.", self.stem())
    }

    /// Whether a file name is one of a lease.
    pub fn is_lease_name(name: &OsStr) -> bool {
        name.as_encoded_bytes().starts_with(LEASE_PREFIX.as_bytes())
    }
}

/// How the names of leases begin.
const LEASE_PREFIX: &str = ".hpcrun-lease-";

/// As in records: the file's name.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{SUFFIX}", self.stem())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key::new(Digest::of(b"manifest"), "zstd 3")
    }

    #[test]
    fn names_lead_back_to_their_keys() {
        let key = key();
        assert_eq!(Key::of_file_name(&key.file_name()), Some(key.clone()));
        assert_eq!(key.to_string().as_str(), key.file_name());
        assert_eq!(Key::of_trash_name(&key.trash_name(17)), Some((key.clone(), 17)));
        let sha512 = Key::new(Digest::of_with(crate::image::digest::Algorithm::Sha512, b"x"), "");
        assert_eq!(Key::of_file_name(&sha512.file_name()), Some(sha512.clone()));
        assert!(sha512.trash_name(u128::MAX).len() <= 255);
        assert!(format!("{}4294967295", sha512.lease_prefix()).len() <= 255);
        assert!(Key::is_lease_name(OsStr::new(&key.lease_prefix())));
        assert_ne!(key, Key::new(Digest::of(b"manifest"), "zstd 4"));
    }

    #[test]
    fn other_names_are_nobodys() {
        let good = key().to_string();
        for bad in [
            "",
            ".",
            "..",
            ".sqsh",
            "a.sqsh",
            &good.to_uppercase(),
            &good.replace(".sqsh", ""),
            &good.replace("sha256-", "sha256:"),
            &good.replace("sha256-", "md5-"),
            &format!("{good}.partial"),
            &format!("{good}/../x"),
            &good.replace(".sqsh", "0.sqsh"),
            &good.replace(".sqsh", "\n.sqsh"),
        ] {
            assert_eq!(Key::of_file_name(OsStr::new(bad)), None, "{bad}");
        }
        for bad in [&good, &format!("{good}."), &format!("{good}.+1"), &format!("{good}.-1")] {
            assert_eq!(Key::of_trash_name(OsStr::new(bad)), None, "{bad}");
        }
    }

    #[test]
    fn a_short_digest_begins_the_long_one() {
        let key = key();
        assert_eq!(key.short().len(), 19);
        assert!(key.begins_with(&key.short()) && key.begins_with("sha256:"));
        assert!(!key.begins_with("sha512:"));
    }
}
