//! Names in a layer: cleaned lexically, kept inside the image, told apart from whiteouts.

use crate::convert::budget::{Budget, Exceeded, Limit};

/// Why a name is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// No name at all.
    #[error("the name is empty")]
    Empty,
    /// A NUL byte, which no file name can hold.
    #[error("the name contains NUL")]
    Nul,
    /// More `..` than directories.
    #[error("the path leaves the image")]
    Escape,
    /// Too long or too deep.
    #[error(transparent)]
    Budget(#[from] Exceeded),
    /// `.wh.`, `.wh..` or `.wh...`: a whiteout of nothing, `.` or `..`.
    #[error("the whiteout names no file")]
    EmptyWhiteout,
}

/// The components of a cleaned path, root first; none for the root itself.
pub type Components<'a> = Vec<&'a [u8]>;

/// Splits a name as in the tar (`./a`, `/a`, `a//b`, `a/../b`) into components. `..` takes one back and may not leave
/// the image. Names are bytes; a backslash is an ordinary one.
pub fn clean<'a>(name: &'a [u8], budget: &Budget) -> Result<Components<'a>, PathError> {
    if name.is_empty() {
        return Err(PathError::Empty);
    }
    if name.contains(&0) {
        return Err(PathError::Nul);
    }
    budget.check_len(Limit::PathBytes, name.len())?;
    let mut components = Vec::new();
    for component in name.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => drop(components.pop().ok_or(PathError::Escape)?),
            name => {
                budget.check_len(Limit::NameBytes, name.len())?;
                components.push(name);
            }
        }
        budget.check_len(Limit::Depth, components.len())?;
    }
    Ok(components)
}

/// What a name in a layer stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning<'a> {
    /// The root directory itself.
    Root,
    /// A thing of this name.
    Node(Components<'a>),
    /// This path of the layers below is hidden.
    Whiteout(Components<'a>),
    /// All children of this directory of the layers below are hidden.
    Opaque(Components<'a>),
    /// A file that old docker on aufs kept as the target of hard links: no part of the image by this name.
    LinkPool(Components<'a>),
    /// Other bookkeeping of aufs: no part of the image.
    Bookkeeping,
}

/// Marks a whiteout.
const WHITEOUT: &[u8] = b".wh.";
/// Marks bookkeeping of aufs.
const AUFS: &[u8] = b".wh..wh.";
/// Where aufs kept files with several names.
const LINK_POOL: &[u8] = b".wh..wh.plnk";
/// Marks an opaque directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Tells whiteouts and bookkeeping from names. Only the last component makes a whiteout: a *directory* called `.wh.etc`
/// with files in it is a directory.
pub fn meaning(mut components: Components<'_>) -> Result<Meaning<'_>, PathError> {
    let Some(last) = components.pop() else { return Ok(Meaning::Root) };
    if components.iter().any(|component| component.starts_with(AUFS)) {
        if components == [LINK_POOL] {
            components.push(last);
            return Ok(Meaning::LinkPool(components));
        }
        return Ok(Meaning::Bookkeeping);
    }
    if last == OPAQUE {
        return Ok(Meaning::Opaque(components));
    }
    if last.starts_with(AUFS) {
        return Ok(Meaning::Bookkeeping);
    }
    match last.strip_prefix(WHITEOUT) {
        Some(b"" | b"." | b"..") => Err(PathError::EmptyWhiteout),
        Some(hidden) => {
            components.push(hidden);
            Ok(Meaning::Whiteout(components))
        }
        None => {
            components.push(last);
            Ok(Meaning::Node(components))
        }
    }
}

/// What a name stands for where nothing is a whiteout: in a root file system that was never a layer.
pub fn literal(components: Components<'_>) -> Meaning<'_> {
    if components.is_empty() { Meaning::Root } else { Meaning::Node(components) }
}

/// Whether a child of the root is the aufs link pool.
pub(crate) fn is_link_pool(name: &[u8]) -> bool {
    name == LINK_POOL
}

/// Components joined for messages.
pub(crate) fn join<'a>(components: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut path = Vec::new();
    for component in components {
        path.push(b'/');
        path.extend_from_slice(component);
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &[u8], expected: Result<&[u8], PathError>) {
        let got = clean(name, &Budget::default()).map(join);
        assert_eq!(got, expected.map(<[u8]>::to_vec), "{}", name.escape_ascii());
    }

    #[test]
    fn cleans() {
        let cases: &[(&[u8], &[u8])] = &[
            (b"a", b"/a"),
            (b"./a", b"/a"),
            (b"/a", b"/a"),
            (b"//a//b/", b"/a/b"),
            (b"a/./b", b"/a/b"),
            (b"a/../u", b"/u"),
            (b"a/b/../../c", b"/c"),
            (b"./", b""),
            (b".", b""),
            (b"/", b""),
            (b"a/..", b""),
            (b"...", b"/..."),
            (b"a\\..\\b", b"/a\\..\\b"),
            (b"\xff\xfe", b"/\xff\xfe"),
            (b"a\nb", b"/a\nb"),
            (b" ", b"/ "),
        ];
        for (name, expected) in cases {
            check(name, Ok(expected));
        }
    }

    #[test]
    fn refuses() {
        check(b"", Err(PathError::Empty));
        check(b"a\0b", Err(PathError::Nul));
        for escape in [&b"../x"[..], b"..", b"/..", b"a/../../x", b"./../x", b"/../x", b"a/b/../../../c"] {
            check(escape, Err(PathError::Escape));
        }
        let long = vec![b'a'; 256];
        let exceeded = |limit| Err(PathError::Budget(Budget::default().exceeded(limit)));
        check(&long, exceeded(Limit::NameBytes));
        check(&b"a/".repeat(2049), exceeded(Limit::PathBytes));
        check(&b"a/".repeat(257), exceeded(Limit::Depth));
        check(&vec![b'a'; 255], Ok(&[b"/", &long[1..]].concat()));
    }

    #[test]
    fn only_the_last_component_makes_a_whiteout() {
        let of = |name: &'static [u8]| meaning(clean(name, &Budget::default()).expect("clean"));
        assert_eq!(of(b"./"), Ok(Meaning::Root));
        assert_eq!(of(b"a/b"), Ok(Meaning::Node(vec![b"a", b"b"])));
        assert_eq!(of(b"a/.wh.b"), Ok(Meaning::Whiteout(vec![b"a", b"b"])));
        assert_eq!(of(b".wh.b/"), Ok(Meaning::Whiteout(vec![b"b"])));
        assert_eq!(of(b".wh.etc/file"), Ok(Meaning::Node(vec![b".wh.etc", b"file"])));
        assert_eq!(of(b".wh..hidden"), Ok(Meaning::Whiteout(vec![b".hidden"])));
        assert_eq!(of(b".wh....x"), Ok(Meaning::Whiteout(vec![b"...x"])));
        assert_eq!(of(b".wh.a.wh.b"), Ok(Meaning::Whiteout(vec![b"a.wh.b"])));
        assert_eq!(of(b".whiteout"), Ok(Meaning::Node(vec![b".whiteout"])));
        assert_eq!(of(b"a/.wh..wh..opq"), Ok(Meaning::Opaque(vec![b"a"])));
        assert_eq!(of(b".wh..wh..opq"), Ok(Meaning::Opaque(vec![])));
        assert_eq!(of(b".wh..wh.aufs"), Ok(Meaning::Bookkeeping));
        assert_eq!(of(b".wh..wh.plnk"), Ok(Meaning::Bookkeeping));
        assert_eq!(of(b".wh..wh.orph/x"), Ok(Meaning::Bookkeeping));
        assert_eq!(of(b"a/.wh..wh..opq/x"), Ok(Meaning::Bookkeeping));
        assert_eq!(of(b".wh..wh.plnk/1.2"), Ok(Meaning::LinkPool(vec![b".wh..wh.plnk", b"1.2"])));
        for name in [&b".wh."[..], b".wh..", b".wh...", b"d/.wh...", b"d/.wh."] {
            let got = meaning(clean(name, &Budget::default()).expect("clean"));
            assert_eq!(got, Err(PathError::EmptyWhiteout), "{}", name.escape_ascii());
        }
    }
}
