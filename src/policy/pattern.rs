//! Patterns with wildcards, for names of images and hosts.

use std::fmt;

/// A pattern in which `*` stands for any run of characters and `?` for one; commas separate alternatives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

/// The longest pattern, bytes: matching takes at most its length times that of the name.
const LIMIT_BYTES: usize = 1024;

impl Pattern {
    /// Parses `text`.
    ///
    /// # Errors
    ///
    /// Why it is no pattern.
    pub fn parse(text: &str) -> Result<Pattern, &'static str> {
        if text.len() > LIMIT_BYTES {
            return Err("is longer than 1024 bytes");
        }
        if text.split(',').any(|one| one.trim().is_empty()) {
            return Err("has an empty alternative");
        }
        if text.bytes().any(|byte| byte.is_ascii_control()) {
            return Err("has a control character");
        }
        Ok(Pattern(text.to_owned()))
    }

    /// The alternatives, without the blanks around them.
    pub fn alternatives(&self) -> impl Iterator<Item = &str> {
        self.0.split(',').map(str::trim)
    }

    /// Whether an alternative fits the whole of `name`.
    pub fn matches(&self, name: &[u8]) -> bool {
        self.alternatives().any(|one| fits(one.as_bytes(), name))
    }

    /// Whether a host's name fits: the whole of it, or what stands before its first dot.
    pub fn matches_host(&self, name: &[u8]) -> bool {
        let short = name.split(|byte| *byte == b'.').next().unwrap_or(name);
        self.matches(name) || self.matches(short)
    }

    /// Whether an image fits. An alternative that begins with `/` is about the path of the image file, one that begins
    /// with `sha256:` about its digest, and any other about the reference that it was made from.
    pub fn matches_image(&self, image: &ImageName<'_>) -> bool {
        self.alternatives().any(|one| {
            let name = match one.as_bytes() {
                [b'/', ..] => Some(image.path),
                _ if one.starts_with("sha256:") => image.digest.map(str::as_bytes),
                _ => image.reference.map(str::as_bytes),
            };
            name.is_some_and(|name| fits(one.as_bytes(), name))
        })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an image can be known by.
#[derive(Debug, Clone, Copy, Default)]
pub struct ImageName<'a> {
    /// The image file, absolute and without links.
    pub path: &'a [u8],
    /// `docker.io/library/debian:12`, if it was made from a reference. The file's own word.
    pub reference: Option<&'a str>,
    /// `sha256:` and the hex digits of the manifest's digest. The file's own word, too.
    pub digest: Option<&'a str>,
}

/// Wildcards by backtracking to the last `*` only, which suffices.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0_usize, 0_usize);
    let mut retry: Option<(usize, usize)> = None;
    loop {
        match (pattern.get(p), name.get(n)) {
            (None, None) => return true,
            (Some(b'*'), _) => {
                retry = Some((p.saturating_add(1), n));
                p = p.saturating_add(1);
            }
            (Some(wanted), Some(found)) if wanted == found || *wanted == b'?' => {
                p = p.saturating_add(1);
                n = n.saturating_add(1);
            }
            _ => match retry {
                Some((after, taken)) if taken < name.len() => {
                    retry = Some((after, taken.saturating_add(1)));
                    p = after;
                    n = taken.saturating_add(1);
                }
                _ => return false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards() {
        for (pattern, name, expected) in [
            ("a", "a", true),
            ("a", "b", false),
            ("a", "ab", false),
            ("ab", "a", false),
            ("*", "", true),
            ("*", "anything/at all", true),
            ("a*", "a", true),
            ("a*", "abc", true),
            ("a*", "ba", false),
            ("*a", "cba", true),
            ("*a", "ab", false),
            ("a*c", "abbbc", true),
            ("a*c", "ac", true),
            ("a*c", "acb", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxcyyb", false),
            ("a**b", "ab", true),
            ("*abc", "ababc", true),
            ("*ab*ab", "abab", true),
            ("*ab*ab", "ab", false),
            ("nid00?", "nid001", true),
            ("nid00?", "nid00", false),
            ("nid00?", "nid0012", false),
            ("?", "", false),
            ("a,b", "b", true),
            ("a, b*", "bc", true),
            ("a,b", "a,b", false),
            ("A", "a", false),
            ("[ab]", "a", false),
            ("[ab]", "[ab]", true),
        ] {
            let pattern = Pattern::parse(pattern).unwrap();
            assert_eq!(pattern.matches(name.as_bytes()), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn matching_takes_no_time_that_grows_with_the_stars() {
        let pattern = Pattern::parse(&"a*".repeat(500)).unwrap();
        assert!(!pattern.matches(&[b'a'; 400]));
        assert!(pattern.matches(&[b'a'; 4000]));
    }

    #[test]
    fn broken_patterns() {
        for text in ["", ",", "a,", ",a", "a,,b", " ", "a\nb", "a\0"] {
            assert!(Pattern::parse(text).is_err(), "{text:?}");
        }
        assert!(Pattern::parse(&"a".repeat(1025)).is_err());
    }

    #[test]
    fn hosts() {
        for (pattern, host, expected) in [
            ("nid*", "nid001", true),
            ("nid001", "nid001.site.example", true),
            ("nid001.site.example", "nid001.site.example", true),
            ("nid001.site.example", "nid001", false),
            ("login?,gpu*", "gpu17", true),
            ("login?,gpu*", "cpu17", false),
            ("*.site.example", "nid001.site.example", true),
            ("site", "nid001.site.example", false),
        ] {
            assert_eq!(
                Pattern::parse(pattern).unwrap().matches_host(host.as_bytes()),
                expected,
                "{pattern} {host}"
            );
        }
    }

    #[test]
    fn images() {
        let image = ImageName {
            path: b"/images/gpu/a.sqsh",
            reference: Some("docker.io/library/debian:12"),
            digest: Some("sha256:ab"),
        };
        for (pattern, expected) in [
            ("/images/*", true),
            ("/images/gpu/a.sqsh", true),
            ("/images/cpu/*", false),
            ("images/*", false),
            ("docker.io/library/*", true),
            ("*/debian:*", true),
            ("debian", false),
            ("docker.io/library/debian", false),
            ("sha256:ab", true),
            ("sha256:a?", true),
            ("sha256:ac", false),
            ("/x,*:12", true),
        ] {
            assert_eq!(Pattern::parse(pattern).unwrap().matches_image(&image), expected, "{pattern}");
        }
        let nameless = ImageName { path: b"/a", ..ImageName::default() };
        for (pattern, expected) in [("/a", true), ("*", false), ("sha256:*", false)] {
            assert_eq!(Pattern::parse(pattern).unwrap().matches_image(&nameless), expected, "{pattern}");
        }
    }
}
