//! What a word in the place of an image may mean: a path, a digest, a name.

use std::ffi::OsStr;

use super::Name;
use crate::image::reference::{Reference, is_short};

/// Fewer digits of a digest are no name for an image.
const DIGITS_MIN: usize = 8;
/// Ends of file names that people give to image files: such a word never means a name.
const FILE_SUFFIXES: [&[u8]; 7] = [b".sqsh", b".sqfs", b".squashfs", b".sfs", b".sif", b".simg", b".img"];

/// What a word can mean by its letters alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// A path and nothing else: it begins with `/`, `./` or `../`, ends as image files do, or is no reference.
    Path,
    /// `sha256:` and at least eight digits.
    Digest(String),
    /// `docker://REFERENCE`: a name and nothing else.
    Name(String),
    /// A path if something is there, else a name.
    Either(String),
}

/// What `word` can mean.
pub fn classify(word: &OsStr) -> Word {
    let bytes = word.as_encoded_bytes();
    let is_path = bytes.starts_with(b"/")
        || bytes.starts_with(b"./")
        || bytes.starts_with(b"../")
        || FILE_SUFFIXES.iter().any(|suffix| bytes.ends_with(suffix));
    let Some(text) = word.to_str().filter(|_| !is_path) else { return Word::Path };
    if let Some(name) = text.strip_prefix("docker://") {
        return Word::Name(name.to_owned());
    }
    if is_digest_prefix(text) {
        return Word::Digest(text.to_owned());
    }
    if Reference::parse(text).is_ok() { Word::Either(text.to_owned()) } else { Word::Path }
}

fn is_digest_prefix(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").or_else(|| text.strip_prefix("sha512:"));
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    hex.is_some_and(|hex| (DIGITS_MIN..=128).contains(&hex.len()) && hex.bytes().all(is_hex))
}

/// The reference that a site's short name stands for; `named` gives what the site has for a name. A tag or digest that
/// was typed counts more than the site's tag; a site's digest decides.
pub fn short_name(typed: &str, named: impl Fn(&str) -> Option<Reference>) -> Option<Reference> {
    if !is_short(typed) {
        return None;
    }
    let end = typed.find('@').unwrap_or(typed.len());
    let end = typed.get(..end).and_then(|name| name.find(':')).unwrap_or(end);
    let (name, rest) = typed.split_at_checked(end)?;
    let reference = named(name)?;
    if rest.is_empty() || reference.digest().is_some() {
        return Some(reference);
    }
    Reference::parse(&format!("{}/{}{rest}", reference.registry(), reference.repository())).ok()
}

/// The names that `typed` may stand for in a store, strongest first: the site's short name, the user's own name, what a
/// pull of it would fetch.
pub fn candidates(typed: &str, site: Option<&Reference>, pulled: Option<&Reference>) -> Vec<Name> {
    let own = Name::parse_local(typed).ok();
    let mut names: Vec<Name> = Vec::new();
    for name in [site.map(Name::of), own, pulled.map(Name::of)].into_iter().flatten() {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn words() {
        let either = |text: &str| Word::Either(text.to_owned());
        for (typed, expected) in [
            ("app", either("app")),
            ("app:1", either("app:1")),
            ("group/app", either("group/app")),
            ("r.site:5000/group/app:1", either("r.site:5000/group/app:1")),
            ("docker://app", Word::Name("app".to_owned())),
            ("docker://app.sif", Word::Path),
            ("sha256:01234567", Word::Digest("sha256:01234567".to_owned())),
            ("sha256:0123456", either("sha256:0123456")),
            ("sha256:0123456G", either("sha256:0123456G")),
            ("./app", Word::Path),
            ("../app", Word::Path),
            ("/app", Word::Path),
            ("app.sqsh", Word::Path),
            ("group/app.sif", Word::Path),
            ("", Word::Path),
            (".", Word::Path),
            ("App", Word::Path),
            ("a b", Word::Path),
            ("a\n", Word::Path),
            ("images/", Word::Path),
        ] {
            assert_eq!(classify(OsStr::new(typed)), expected, "{typed:?}");
        }
        assert_eq!(classify(OsStr::from_bytes(b"app\xff")), Word::Path);
    }

    #[test]
    fn short_names_of_a_site() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let named = |name: &str| {
            let fixed = format!("r.site/fixed@{digest}");
            let reference = match name {
                "app" => "r.site/group/app:1",
                "fixed" => &fixed,
                "port" => "r.site:5000/x",
                _ => return None,
            };
            Some(Reference::parse(reference).unwrap())
        };
        let pinned = format!("app@{digest}");
        for (typed, expected) in [
            ("app", Some("r.site/group/app:1".to_owned())),
            ("app:2", Some("r.site/group/app:2".to_owned())),
            (&pinned, Some(format!("r.site/group/app@{digest}"))),
            ("fixed", Some(format!("r.site/fixed@{digest}"))),
            ("fixed:2", Some(format!("r.site/fixed@{digest}"))),
            ("port:3", Some("r.site:5000/x:3".to_owned())),
            ("app:", None),
            ("other", None),
            ("group/app", None),
            ("localhost/app", None),
            ("", None),
        ] {
            let found = short_name(typed, named).map(|reference| reference.to_string());
            assert_eq!(found, expected, "{typed}");
        }
    }

    #[test]
    fn candidates_by_strength() {
        let [site, pulled] = ["r.site/debian:12", "debian:12"].map(|text| Reference::parse(text).unwrap());
        let names = candidates("debian:12", Some(&site), Some(&pulled));
        let names: Vec<&str> = names.iter().map(Name::as_str).collect();
        assert_eq!(names, ["r.site/debian:12", "localhost/debian:12", "docker.io/library/debian:12"]);
        let full = Reference::parse("r.site/a").unwrap();
        assert_eq!(candidates("r.site/a", None, Some(&full)).len(), 1);
    }
}
