//! The short form of a bind, `SRC[:DST[:ro|rw]]`: the option `--bind` and the policy's lists share it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// A bind as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindSpec {
    /// As written, escapes removed; not empty.
    pub source: OsString,
    /// As written, escapes removed; none means the source's own path.
    pub destination: Option<OsString>,
    /// Whether `ro` was asked for.
    pub read_only: bool,
}

/// Why text is no bind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BindSpecError {
    /// `:/data`
    #[error("the source is empty")]
    EmptySource,
    /// `/data:data`
    #[error("the destination must be an absolute path")]
    RelativeDestination,
    /// `/data:ro`
    #[error("the destination is missing before its access")]
    AccessWithoutDestination,
    /// `/data:/data:rx`
    #[error("the access must be ro or rw")]
    UnknownAccess,
    /// `/a:/b:ro:x`
    #[error("too many colons")]
    TooManyParts,
    /// A NUL byte, which no path can hold.
    #[error("it contains a NUL byte")]
    Nul,
}

impl BindSpecError {
    /// How to write it right.
    pub fn hint(self) -> String {
        match self {
            BindSpecError::AccessWithoutDestination => "write SRC::ro to bind a path onto itself".to_owned(),
            BindSpecError::TooManyParts => {
                "write SRC[:DST[:ro|rw]], and '\\:' for a colon in a path".to_owned()
            }
            _ => "write SRC[:DST[:ro|rw]]".to_owned(),
        }
    }
}

impl BindSpec {
    /// Parses `SRC[:DST[:ro|rw]]`. `\:` is a colon and `\\` a backslash within a path; other backslashes stand for
    /// themselves. An empty DST means the source's own path, so `SRC::ro` is short for `SRC:SRC:ro`.
    pub fn parse(text: &OsStr) -> Result<BindSpec, BindSpecError> {
        if text.as_bytes().contains(&0) {
            return Err(BindSpecError::Nul);
        }
        let mut parts = split(text.as_bytes()).into_iter();
        let source = parts.next().filter(|part| !part.is_empty()).ok_or(BindSpecError::EmptySource)?;
        let destination = parts.next();
        let read_only = match parts.next().as_deref() {
            None | Some(b"rw") => false,
            Some(b"ro") => true,
            Some(_) => return Err(BindSpecError::UnknownAccess),
        };
        if parts.next().is_some() {
            return Err(BindSpecError::TooManyParts);
        }
        let destination = destination.filter(|part| !part.is_empty());
        match destination.as_deref() {
            Some(b"ro" | b"rw") => return Err(BindSpecError::AccessWithoutDestination),
            Some(path) if !path.starts_with(b"/") && !path.starts_with(b"$") => {
                return Err(BindSpecError::RelativeDestination);
            }
            _ => {}
        }
        Ok(BindSpec {
            source: OsString::from_vec(source),
            destination: destination.map(OsString::from_vec),
            read_only,
        })
    }
}

/// Splits at colons that are not escaped, and removes the escapes.
fn split(text: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = Vec::new();
    let mut part = Vec::new();
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => part.push(bytes.next_if(|next| matches!(next, b':' | b'\\')).unwrap_or(b'\\')),
            b':' => parts.push(std::mem::take(&mut part)),
            byte => part.push(byte),
        }
    }
    parts.push(part);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        for (text, source, destination, read_only) in [
            ("/a", "/a", None, false),
            ("/a:/b", "/a", Some("/b"), false),
            ("/a:/b:rw", "/a", Some("/b"), false),
            ("/a:/b:ro", "/a", Some("/b"), true),
            ("/a::ro", "/a", None, true),
            ("/a::rw", "/a", None, false),
            ("/a:", "/a", None, false),
            ("a", "a", None, false),
            (".", ".", None, false),
            ("./x:/x", "./x", Some("/x"), false),
            ("..:/up", "..", Some("/up"), false),
            ("/a b:/c d", "/a b", Some("/c d"), false),
            ("/a\\:b", "/a:b", None, false),
            ("/a\\:b:/c\\:d:ro", "/a:b", Some("/c:d"), true),
            ("/a\\\\:/b", "/a\\", Some("/b"), false),
            ("/a\\b", "/a\\b", None, false),
            ("/a\\", "/a\\", None, false),
            ("$HOME:$HOME", "$HOME", Some("$HOME"), false),
            ("ro", "ro", None, false),
            ("/a,/b", "/a,/b", None, false),
            ("/a\n:/b\n", "/a\n", Some("/b\n"), false),
        ] {
            let expected =
                BindSpec { source: source.into(), destination: destination.map(Into::into), read_only };
            assert_eq!(BindSpec::parse(OsStr::new(text)), Ok(expected), "{text:?}");
        }
        let spec = BindSpec::parse(OsStr::from_bytes(b"/\xff:/\xfe")).unwrap();
        assert_eq!(spec.source.as_bytes(), b"/\xff");
        assert_eq!(spec.destination.unwrap().as_bytes(), b"/\xfe");
    }

    #[test]
    fn mistakes() {
        use BindSpecError::*;
        for (text, expected) in [
            ("", EmptySource),
            (":", EmptySource),
            (":/b", EmptySource),
            ("::ro", EmptySource),
            ("/a:b", RelativeDestination),
            ("/a:./b", RelativeDestination),
            ("/a:ro", AccessWithoutDestination),
            ("/a:rw", AccessWithoutDestination),
            ("/a:/b:", UnknownAccess),
            ("/a:/b:rx", UnknownAccess),
            ("/a:/b:RO", UnknownAccess),
            ("/a:/b:ro,noexec", UnknownAccess),
            ("/a:/b:ro:", TooManyParts),
            ("/a:/b:ro:x", TooManyParts),
            ("/a\0:/b", Nul),
        ] {
            assert_eq!(BindSpec::parse(OsStr::new(text)), Err(expected), "{text:?}");
            assert!(!expected.hint().is_empty());
        }
    }
}
