//! Platforms, `os/architecture[/variant]`: parsed, compared, chosen from an index.

use std::fmt;

use super::manifest::{Descriptor, Index};

/// An operating system and a processor, in Go's names, normalised as containerd does: `aarch64` is `arm64`,
/// `arm64/v8` is `arm64`, `arm` is `arm/v7`, `amd64/v1` is `amd64`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: String,
}

/// Why a text is no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("platform {0:?} is not of the form os/architecture[/variant], for example linux/amd64")]
pub struct PlatformError(String);

impl Platform {
    /// A platform from its parts; an empty variant is none.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Platform {
        let lower = |text: &str| text.to_ascii_lowercase();
        let (os, variant) = (lower(os), lower(variant));
        let (architecture, variant) = match (lower(architecture).as_str(), variant.as_str()) {
            ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64".into(), String::new()),
            ("x86_64" | "x86-64", _) => ("amd64".into(), variant),
            ("i386" | "i486" | "i586" | "i686", _) => ("386".into(), String::new()),
            ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64".into(), String::new()),
            ("aarch64", _) => ("arm64".into(), variant),
            ("armhf", _) => ("arm".into(), "v7".into()),
            ("armel", _) => ("arm".into(), "v6".into()),
            ("arm", "" | "7") => ("arm".into(), "v7".into()),
            ("arm", "5" | "6" | "8") => ("arm".into(), format!("v{variant}")),
            (other, _) => (other.to_owned(), variant),
        };
        Platform { os, architecture, variant }
    }

    /// Parses `os/architecture[/variant]`; an architecture alone means Linux.
    pub fn parse(text: &str) -> Result<Platform, PlatformError> {
        let refused = || PlatformError(text.chars().take(100).collect());
        let is_part = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(|part| is_part(part)) {
            return Err(refused());
        }
        match parts.as_slice() {
            // A lone "linux" is an unfinished platform, not an architecture.
            ["linux" | "windows" | "darwin" | "freebsd"] => Err(refused()),
            [architecture] => Ok(Platform::new("linux", architecture, "")),
            [os, architecture] => Ok(Platform::new(os, architecture, "")),
            [os, architecture, variant] => Ok(Platform::new(os, architecture, variant)),
            _ => Err(refused()),
        }
    }

    /// The platform this program was built for. Without a variant: the baseline runs on every node of a cluster, the
    /// login node's extensions may not.
    pub fn host() -> Platform {
        let (architecture, variant) = if cfg!(target_arch = "x86_64") {
            ("amd64", "")
        } else if cfg!(target_arch = "aarch64") {
            ("arm64", "")
        } else if cfg!(target_arch = "arm") {
            ("arm", "v7")
        } else if cfg!(all(target_arch = "powerpc64", target_endian = "little")) {
            ("ppc64le", "")
        } else if cfg!(target_arch = "s390x") {
            ("s390x", "")
        } else if cfg!(target_arch = "riscv64") {
            ("riscv64", "")
        } else if cfg!(target_arch = "loongarch64") {
            ("loong64", "")
        } else {
            ("386", "")
        };
        Platform::new("linux", architecture, variant)
    }

    /// Operating system, `linux`.
    pub fn os(&self) -> &str {
        &self.os
    }

    /// Architecture, `amd64`.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Variant, `v7`; empty for the baseline.
    pub fn variant(&self) -> &str {
        &self.variant
    }

    /// Whether this platform runs programs of `other`.
    pub fn accepts(&self, other: &Platform) -> bool {
        self.runs().contains(other)
    }

    /// Platforms whose programs run on this one, best first: `arm/v7` also runs v6 and v5, `amd64/v3` runs v2 and
    /// plain, and so on.
    fn runs(&self) -> Vec<Platform> {
        let with = |variant: &str| Platform { variant: variant.to_owned(), ..self.clone() };
        let level = self.variant.strip_prefix('v').and_then(|digits| digits.parse::<u8>().ok());
        let lower_levels =
            |level: u8, lowest: u8| (lowest..level).rev().map(|n| with(&format!("v{n}"))).collect::<Vec<_>>();
        let mut list = vec![self.clone()];
        match (self.architecture.as_str(), level) {
            ("arm", Some(level)) => {
                list.extend(lower_levels(level.min(8), 5));
            }
            ("amd64", Some(level)) => {
                list.extend(lower_levels(level.min(9), 2));
                list.push(with(""));
            }
            ("arm64", _) if !self.variant.is_empty() => {
                if level.is_some_and(|level| level > 9) {
                    list.push(with("v9"));
                }
                list.push(with(""));
            }
            _ => {}
        }
        list
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

/// What one index has for a platform.
#[derive(Debug)]
pub struct Choice<'a> {
    /// The entry to take: best variant first, among equals the first listed.
    pub chosen: Option<&'a Descriptor>,
    /// Entries that may hold the platform without saying so: nested indexes and images that state no platform.
    pub unlabelled: Vec<&'a Descriptor>,
    /// What the index offers, for a message.
    pub offered: Vec<Platform>,
}

/// Chooses from `index` what runs on `wanted`. Attestations and artifacts are never chosen nor offered.
pub fn choose<'a>(index: &'a Index, wanted: &Platform) -> Choice<'a> {
    let images: Vec<&Descriptor> = index.manifests.iter().filter(|entry| entry.may_be_image()).collect();
    let chosen = wanted.runs().iter().find_map(|acceptable| {
        images.iter().find(|entry| entry.platform.as_ref() == Some(acceptable)).copied()
    });
    let unlabelled = images.iter().filter(|entry| entry.platform.is_none()).copied().collect();
    let mut offered: Vec<Platform> = images.iter().filter_map(|entry| entry.platform.clone()).collect();
    offered.sort();
    offered.dedup();
    Choice { chosen, unlabelled, offered }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::manifest::{Document, MediaKind};

    #[test]
    fn parses_and_normalises() {
        for (text, expected) in [
            ("linux/amd64", "linux/amd64"),
            ("amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("Linux/AMD64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm64/8", "linux/arm64"),
            ("linux/arm64/v9", "linux/arm64/v9"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/arm/6", "linux/arm/v6"),
            ("linux/arm/v5", "linux/arm/v5"),
            ("linux/i686", "linux/386"),
            ("linux/ppc64le", "linux/ppc64le"),
            ("linux/s390x", "linux/s390x"),
            ("linux/riscv64", "linux/riscv64"),
            ("windows/amd64", "windows/amd64"),
        ] {
            assert_eq!(Platform::parse(text).unwrap().to_string(), expected, "{text}");
        }
        for text in
            ["", "/", "linux", "linux/", "/amd64", "a/b/c/d", "linux/amd 64", "linux/amd64/", "l\u{fc}x/a"]
        {
            assert!(Platform::parse(text).is_err(), "{text:?}");
        }
        assert_eq!(Platform::host().os(), "linux");
    }

    /// An index with one entry for each word; `-` is an entry without platform, `?` a nested index.
    fn index(entries: &str) -> Index {
        let entries: Vec<String> = entries
            .split_whitespace()
            .enumerate()
            .map(|(number, word)| {
                let platform = match word.split('/').collect::<Vec<_>>().as_slice() {
                    [os, architecture] => format!(r#","platform":{{"os":"{os}","architecture":"{architecture}"}}"#),
                    [os, architecture, variant] => format!(
                        r#","platform":{{"os":"{os}","architecture":"{architecture}","variant":"{variant}"}}"#
                    ),
                    _ => String::new(),
                };
                let kind = if word == "?" { "index" } else { "manifest" };
                format!(
                    r#"{{"mediaType":"application/vnd.oci.image.{kind}.v1+json","size":{number},"digest":"sha256:{}"{platform}}}"#,
                    "a".repeat(64)
                )
            })
            .collect();
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
        match Document::parse(text.as_bytes(), None).unwrap() {
            Document::Index(index) => index,
            Document::Image(_) => panic!("an index"),
        }
    }

    #[track_caller]
    fn check_choice(entries: &str, wanted: &str, expected: Option<u64>) {
        let index = index(entries);
        let choice = choose(&index, &Platform::parse(wanted).unwrap());
        assert_eq!(choice.chosen.map(|entry| entry.size), expected, "{wanted} from {entries}");
    }

    #[test]
    fn chooses_the_best_that_runs() {
        check_choice("linux/amd64 linux/arm64", "linux/amd64", Some(0));
        check_choice("linux/amd64 linux/arm64", "linux/arm64", Some(1));
        check_choice("linux/amd64 linux/arm64/v8", "linux/arm64", Some(1));
        check_choice("linux/arm64", "linux/arm64/v8", Some(0));
        check_choice("linux/amd64 linux/amd64", "linux/amd64", Some(0));
        check_choice("windows/amd64 linux/amd64", "linux/amd64", Some(1));
        check_choice("linux/amd64", "linux/riscv64", None);
        check_choice("linux/arm/v5 linux/arm/v6 linux/arm/v7", "linux/arm", Some(2));
        check_choice("linux/arm/v5 linux/arm/v6 linux/arm/v7", "linux/arm/v6", Some(1));
        check_choice("linux/arm/v5 linux/arm/v7", "linux/arm/v6", Some(0));
        check_choice("linux/arm", "linux/arm/v7", Some(0));
        check_choice("linux/arm/v7", "linux/arm/v6", None);
        check_choice("linux/arm/v7", "linux/arm64", None);
        check_choice("linux/amd64/v3 linux/amd64", "linux/amd64", Some(1));
        check_choice("linux/amd64 linux/amd64/v2 linux/amd64/v3", "linux/amd64/v4", Some(2));
        check_choice("linux/amd64 linux/amd64/v4", "linux/amd64/v3", Some(0));
        check_choice("linux/amd64/v2", "linux/amd64", None);
        check_choice("unknown/unknown linux/amd64", "linux/amd64", Some(1));
        check_choice("linux/AMD64", "linux/amd64", Some(0));
        check_choice("- ?", "linux/amd64", None);
        check_choice("", "linux/amd64", None);
    }

    #[test]
    fn unlabelled_entries_are_listed_and_attestations_are_not() {
        let index = index("- ? unknown/unknown linux/arm64");
        let choice = choose(&index, &Platform::parse("amd64").unwrap());
        assert!(choice.chosen.is_none());
        assert_eq!(choice.unlabelled.len(), 2);
        assert_eq!(choice.unlabelled[1].kind(), MediaKind::Index);
        assert_eq!(choice.offered, [Platform::parse("arm64").unwrap()]);
    }
}
