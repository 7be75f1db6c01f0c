//! Paths as text: normal form and containment by whole components. Nothing here looks at a file system.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The normal form of an absolute path: no empty or `.` components, `..` taken away together with what precedes it
/// (and at the root alone), no trailing slash. A relative path is taken from `base`, which is absolute.
///
/// Taking `..` away by text differs from the kernel's walk behind a symbolic link. Decisions are therefore made on
/// paths that the host has resolved; this is for paths of a root that does not exist yet.
pub fn normalise(base: &Path, path: &Path) -> PathBuf {
    let joined = base.join(path);
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in joined.as_os_str().as_bytes().split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let mut bytes = vec![b'/'];
    bytes.extend(parts.join(&b'/'));
    PathBuf::from(OsString::from_vec(bytes))
}

/// Whether `path` is `prefix` or lies below it, by whole components: `/scratch2` is not within `/scratch`.
/// Both are in normal form.
pub fn is_within(path: &Path, prefix: &Path) -> bool {
    path.starts_with(prefix)
}

/// Whether the path has a component `..`.
pub fn has_parent_component(path: &OsStr) -> bool {
    path.as_bytes().split(|byte| *byte == b'/').any(|part| part == b"..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(bytes: &[u8]) -> &Path {
        Path::new(OsStr::from_bytes(bytes))
    }

    #[test]
    fn normal_forms() {
        for (path, expected) in [
            ("/", "/"),
            ("//", "/"),
            ("///a", "/a"),
            ("/a", "/a"),
            ("/a/", "/a"),
            ("/a//b", "/a/b"),
            ("/a/./b", "/a/b"),
            ("/a/.", "/a"),
            ("/./a", "/a"),
            ("/a/../b", "/b"),
            ("/a/b/..", "/a"),
            ("/..", "/"),
            ("/../../x", "/x"),
            ("/a/../../x", "/x"),
            ("/a/...", "/a/..."),
            ("/a/..b", "/a/..b"),
            ("/a/b../c", "/a/b../c"),
            ("", "/base/dir"),
            (".", "/base/dir"),
            ("x", "/base/dir/x"),
            ("./x", "/base/dir/x"),
            ("../x", "/base/x"),
            ("../../../x", "/x"),
            ("~", "/base/dir/~"),
            (" ", "/base/dir/ "),
            ("/a\nb", "/a\nb"),
        ] {
            assert_eq!(normalise(Path::new("/base/dir"), Path::new(path)), Path::new(expected), "{path:?}");
        }
        assert_eq!(normalise(Path::new("/"), bytes(b"/\xff//\xfe/")), bytes(b"/\xff/\xfe"));
    }

    #[test]
    fn normalising_again_changes_nothing() {
        for path in ["/", "/a/../..//b/./c/", "x/../..", "/a/b/../../.."] {
            let once = normalise(Path::new("/base"), Path::new(path));
            assert_eq!(normalise(Path::new("/elsewhere"), &once), once, "{path}");
        }
    }

    #[test]
    fn containment_is_by_components() {
        for (path, prefix, expected) in [
            ("/scratch", "/scratch", true),
            ("/scratch/x", "/scratch", true),
            ("/scratch/x/y", "/scratch/x", true),
            ("/scratch2", "/scratch", false),
            ("/scratch-old/x", "/scratch", false),
            ("/scratc", "/scratch", false),
            ("/", "/scratch", false),
            ("/scratch", "/", true),
            ("/", "/", true),
            ("/Scratch/x", "/scratch", false),
            ("/x/scratch", "/scratch", false),
            ("/scratch\n", "/scratch", false),
            ("/scratch /x", "/scratch", false),
        ] {
            assert_eq!(is_within(Path::new(path), Path::new(prefix)), expected, "{path:?} in {prefix:?}");
        }
        assert!(is_within(bytes(b"/a\xff/b"), bytes(b"/a\xff")));
        assert!(!is_within(bytes(b"/a\xff\xfe"), bytes(b"/a\xff")));
    }

    #[test]
    fn parent_components() {
        for (path, expected) in [
            ("/a/..", true),
            ("..", true),
            ("../x", true),
            ("/a/../b", true),
            ("/a/...", false),
            ("/..a/b..", false),
            ("/", false),
        ] {
            assert_eq!(has_parent_component(OsStr::new(path)), expected, "{path}");
        }
    }
}
