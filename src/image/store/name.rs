//! Names of images in a store: references in canonical form, as file names.

use std::ffi::{OsStr, OsString};
use std::fmt;

use crate::image::digest::Digest;
use crate::image::reference::{Reference, ReferenceError};

/// Longer names are kept under their hash: file systems allow 255 bytes, and temporaries need some.
const NAME_MAX_BYTES: usize = 200;
/// How such names begin. No registry's name has a capital letter before a `+` and then 64 digits only.
const HASHED: &str = "LONG+";
/// The registry of names that users gave, as podman has it.
const LOCAL: &str = "localhost";

/// What an image is called: `HOST/REPOSITORY:TAG`, or `HOST/REPOSITORY@DIGEST`, where a tag says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// The name of what a reference stands for.
    pub fn of(reference: &Reference) -> Name {
        let (registry, repository) = (reference.registry(), reference.repository());
        let separator = if reference.digest().is_some() { '@' } else { ':' };
        Name(format!("{registry}/{repository}{separator}{}", reference.identifier()))
    }

    /// Parses a reference; where no registry is said it is Docker Hub.
    pub fn parse(text: &str) -> Result<Name, ReferenceError> {
        Reference::parse(text).map(|reference| Name::of(&reference))
    }

    /// The name that a user means who gives a name without a registry: `localhost/app:latest` for `app`.
    pub fn parse_local(text: &str) -> Result<Name, ReferenceError> {
        match crate::image::reference::is_short(text) {
            true => Name::parse(&format!("{LOCAL}/{text}")),
            false => Name::parse(text),
        }
    }

    /// As records have it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The digest that it names.
    pub fn digest(&self) -> Option<Digest> {
        Digest::parse(self.0.split_once('@')?.1).ok()
    }

    /// The name of its file in `tags/`. A `+` stands for a slash; no reference has one.
    pub fn file_name(&self) -> OsString {
        let plain = self.0.replace('/', "+");
        if plain.len() <= NAME_MAX_BYTES {
            return OsString::from(plain);
        }
        OsString::from(format!("{HASHED}{}", Digest::of(self.0.as_bytes()).hex()))
    }

    /// Whether a file of `tags/` may be a tag's; those of temporaries are not.
    pub fn is_file_name(name: &OsStr) -> bool {
        !name.as_encoded_bytes().starts_with(b".")
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_their_files() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (typed, name, file) in [
            ("debian", "docker.io/library/debian:latest", "docker.io+library+debian:latest"),
            ("group/app:1.0", "docker.io/group/app:1.0", "docker.io+group+app:1.0"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest", "localhost:5000+a+b:latest"),
            ("[::1]:5000/a:x", "[::1]:5000/a:x", "[::1]:5000+a:x"),
            (&format!("r.site/a@{digest}"), &format!("r.site/a@{digest}"), &format!("r.site+a@{digest}")),
            (&format!("r.site/a:1@{digest}"), &format!("r.site/a@{digest}"), &format!("r.site+a@{digest}")),
        ] {
            let parsed = Name::parse(typed).unwrap();
            assert_eq!(parsed.as_str(), name);
            assert_eq!(parsed.file_name(), file);
            assert!(Name::is_file_name(&parsed.file_name()));
            assert_eq!(Name::parse(name).unwrap(), parsed, "canonical");
        }
    }

    #[test]
    fn names_that_users_give() {
        for (typed, name) in [
            ("app", "localhost/app:latest"),
            ("app:2", "localhost/app:2"),
            ("group/app", "localhost/group/app:latest"),
            ("r.site/app", "r.site/app:latest"),
            ("localhost/app", "localhost/app:latest"),
        ] {
            assert_eq!(Name::parse_local(typed).unwrap().as_str(), name);
        }
    }

    #[test]
    fn strange_bytes_make_no_name() {
        for typed in
            ["", ".", "..", "../x", "/x", "a b", "a\nb", "a+b", "A", "a//b", "a/", "a:\u{e9}", "x:..", "-a"]
        {
            assert!(Name::parse(typed).is_err() && Name::parse_local(typed).is_err(), "{typed:?}");
        }
    }

    #[test]
    fn long_names_fit_into_a_file_name() {
        let long = format!("r.site/{}:{}", "a".repeat(250), "b".repeat(128));
        let [one, other] =
            [Name::parse(&long).unwrap(), Name::parse(&format!("{long}@sha256:{}", "0".repeat(64))).unwrap()];
        assert!(one.file_name().len() <= NAME_MAX_BYTES && one.file_name() != other.file_name());
    }
}
