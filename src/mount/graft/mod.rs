//! Grafts: what the image server adds to the image's tree, so that no writable layer is needed to bind onto paths that
//! the image lacks.
//!
//! Grafts form a small tree of their own from the root down to each addition. A node of it either stands for a
//! directory of the image, whose entries stay visible beside the added ones, or for something the image does not have
//! at that path. The server asks the graft tree first; a directory outside it costs nothing.

mod resolve;

use std::collections::BTreeMap;
use std::sync::Arc;

use self::resolve::{Found, Image, Place, Resolved};
use crate::squashfs::format::InodeRef;
use crate::squashfs::reader::{Filesystem, ReadError};

/// Longest target of a symbolic link (`PATH_MAX` less the NUL).
const TARGET_MAX: usize = 4095;

/// What is added at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Graft {
    /// An empty directory to bind a directory onto. An existing directory is kept as it is.
    Directory,
    /// An empty file to bind a file onto. An existing regular file is kept as it is.
    File,
    /// A file of this content, which replaces what the image has at the path.
    Content {
        /// Permission bits.
        mode: u16,
        /// The bytes.
        content: Arc<[u8]>,
    },
    /// A symbolic link, which replaces what the image has at the path.
    Symlink(Vec<u8>),
}

/// All additions to one image, resolved against its tree.
#[derive(Debug, Default)]
pub struct Grafts {
    /// The graft tree; index 0 is the root. Empty when nothing is added.
    nodes: Vec<Node>,
    /// Whom everything belongs to, the image's own files too; none for the image's own owners.
    owner: Option<(u32, u32)>,
}

/// Index of a node of the graft tree.
pub(super) type NodeIndex = usize;

/// A node of the graft tree.
#[derive(Debug)]
pub(super) struct Node {
    /// Whether the image has a directory of this name, shown or hidden: its parent's link count includes it already.
    pub(super) over_directory: bool,
    /// What it is.
    pub(super) kind: NodeKind,
}

/// What a node of the graft tree is.
#[derive(Debug)]
pub(super) enum NodeKind {
    /// A directory.
    Directory {
        /// The image's directory at this path, whose entries show unless `children` has the name.
        base: Option<InodeRef>,
        /// Added and replacing entries.
        children: BTreeMap<Vec<u8>, NodeIndex>,
    },
    /// A regular file.
    File {
        /// Permission bits.
        mode: u16,
        /// The bytes.
        content: Arc<[u8]>,
    },
    /// A symbolic link's target.
    Symlink(Arc<[u8]>),
}

/// Why a path cannot be added.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GraftError {
    /// The image cannot be read.
    #[error("cannot resolve {path} in the image")]
    Read {
        /// As asked.
        path: String,
        /// The cause.
        source: ReadError,
    },
    /// The path does not begin with `/`.
    #[error("path {path:?} in the image is not absolute")]
    Relative {
        /// As asked.
        path: String,
    },
    /// The path, or a link met on it, has a name that no directory can hold.
    #[error("{component:?} is not a file name of at most 255 bytes")]
    Name {
        /// As asked.
        path: String,
        /// The name.
        component: String,
    },
    /// More links than the kernel would follow.
    #[error("more than 40 symbolic links on the way")]
    Loop {
        /// As asked.
        path: String,
    },
    /// Something else than a directory lies on the way.
    #[error("{component} is {found}, not a directory")]
    NotDirectory {
        /// As asked.
        path: String,
        /// The resolved path of what is there.
        component: String,
        /// What is there.
        found: &'static str,
    },
    /// A mount point needs what is there to be of another type.
    #[error("cannot mount {wanted} on {path} in the image: it is {found}")]
    Occupied {
        /// Resolved.
        path: String,
        /// What is there.
        found: &'static str,
        /// What it has to be.
        wanted: &'static str,
    },
    /// The root can only be a directory.
    #[error("cannot replace the root of the image")]
    Root,
    /// The path was added before as a mount point of another type.
    #[error("cannot replace {path} in the image: it is a mount point already")]
    MountPoint {
        /// Resolved.
        path: String,
    },
    /// A link's target is empty, has a NUL or is longer than 4095 bytes.
    #[error("its link target is not a path of 1 to 4095 bytes")]
    Target {
        /// As asked.
        path: String,
    },
}

impl crate::hint::Hint for GraftError {}

impl Grafts {
    /// Adds `graft` at the absolute `path`, following the image's symbolic links inside the image (a link is never
    /// followed out of it, `..` stops at the root); missing parents become directories. Returns the resolved
    /// absolute path, which has no symbolic link left.
    ///
    /// A link at the end of the path is followed for a mount point (a dangling one is completed at its target) and
    /// replaced by [`Graft::Content`] and [`Graft::Symlink`]. Earlier grafts are part of the tree; an earlier mount
    /// point is never replaced by anything that could not be mounted on. An error adds nothing.
    pub fn add(&mut self, image: &Filesystem, path: &[u8], graft: Graft) -> Result<Vec<u8>, GraftError> {
        self.add_to(image, path, graft)
    }

    /// Makes everything in the image, and everything added, belong to user `uid` and group `gid` of the job's user
    /// namespace, and set-id bits vanish: an overlay copies them with the file (CVE-2023-0386).
    pub fn own_all(&mut self, uid: u32, gid: u32) {
        self.owner = Some((uid, gid));
    }

    /// Whom everything belongs to, if not to the image's own owners.
    pub(super) fn owner(&self) -> Option<(u32, u32)> {
        self.owner
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// A node, by index.
    pub(super) fn node(&self, index: NodeIndex) -> Option<&Node> {
        self.nodes.get(index)
    }

    fn add_to(&mut self, image: &dyn Image, path: &[u8], graft: Graft) -> Result<Vec<u8>, GraftError> {
        if matches!(&graft, Graft::Symlink(target) if !is_link_target(target)) {
            return Err(GraftError::Target { path: text(path) });
        }
        let follow = matches!(graft, Graft::Directory | Graft::File);
        let resolved = self.resolve(image, path, follow)?;
        let resolved_path = resolved.path();
        let kind = match (graft, resolved.last.as_ref().map(|(_, found)| found)) {
            (Graft::Directory, None | Some(Found::Directory(_))) | (Graft::File, Some(Found::File)) => {
                return Ok(resolved_path);
            }
            (Graft::Directory, Some(Found::Nothing)) => {
                NodeKind::Directory { base: None, children: BTreeMap::new() }
            }
            (Graft::File, Some(Found::Nothing)) => NodeKind::File { mode: 0o644, content: Arc::default() },
            (Graft::Directory, Some(found)) => return Err(occupied(&resolved_path, found, "a directory")),
            (Graft::File, Some(found)) => return Err(occupied(&resolved_path, found, "a file")),
            (Graft::File | Graft::Content { .. } | Graft::Symlink(_), None) => return Err(GraftError::Root),
            (Graft::Content { mode, content }, Some(_)) => NodeKind::File { mode: mode & 0o7777, content },
            (Graft::Symlink(target), Some(_)) => NodeKind::Symlink(target.into()),
        };
        self.insert(image, resolved, kind)?;
        Ok(resolved_path)
    }

    /// Puts a node at a resolved path, its parents first.
    fn insert(&mut self, image: &dyn Image, resolved: Resolved, kind: NodeKind) -> Result<(), GraftError> {
        let path = resolved.path();
        let Some((name, found)) = resolved.last else { return Err(GraftError::Root) };
        let parent_place =
            resolved.parents.last().map_or_else(|| self.root_place(image), |(_, place)| *place);
        if let Some(earlier) = self.child_index(parent_place, &name) {
            return self.replace(earlier, &path, kind);
        }
        let over_directory = matches!(found, Found::Directory(_));
        let mut parent = self.root_index(image);
        for (name, place) in resolved.parents {
            parent = match place {
                Place::Graft(index) => index,
                Place::Image(reference) => self.push_directory(parent, name, Some(reference)),
                Place::Missing => self.push_directory(parent, name, None),
            };
        }
        self.push(parent, name, Node { over_directory, kind });
        Ok(())
    }

    /// Replaces an earlier graft, unless something was to be mounted on it that `kind` cannot carry.
    fn replace(&mut self, earlier: NodeIndex, path: &[u8], kind: NodeKind) -> Result<(), GraftError> {
        let Some(node) = self.nodes.get_mut(earlier) else { return Err(GraftError::Root) };
        let fits = match node.kind {
            NodeKind::Directory { .. } => false,
            NodeKind::File { .. } => matches!(kind, NodeKind::File { .. }),
            NodeKind::Symlink(_) => true,
        };
        if !fits {
            return Err(GraftError::MountPoint { path: text(path) });
        }
        node.kind = kind;
        Ok(())
    }

    fn child_index(&self, parent: Place, name: &[u8]) -> Option<NodeIndex> {
        let Place::Graft(index) = parent else { return None };
        match &self.nodes.get(index)?.kind {
            NodeKind::Directory { children, .. } => children.get(name).copied(),
            _ => None,
        }
    }

    fn root_index(&mut self, image: &dyn Image) -> NodeIndex {
        if self.nodes.is_empty() {
            let kind = NodeKind::Directory { base: Some(image.root()), children: BTreeMap::new() };
            self.nodes.push(Node { over_directory: true, kind });
        }
        0
    }

    fn push_directory(&mut self, parent: NodeIndex, name: Vec<u8>, base: Option<InodeRef>) -> NodeIndex {
        let kind = NodeKind::Directory { base, children: BTreeMap::new() };
        self.push(parent, name, Node { over_directory: base.is_some(), kind })
    }

    fn push(&mut self, parent: NodeIndex, name: Vec<u8>, node: Node) -> NodeIndex {
        let index = self.nodes.len();
        self.nodes.push(node);
        if let Some(Node { kind: NodeKind::Directory { children, .. }, .. }) = self.nodes.get_mut(parent) {
            children.insert(name, index);
        }
        index
    }
}

fn occupied(path: &[u8], found: &Found, wanted: &'static str) -> GraftError {
    GraftError::Occupied { path: text(path), found: found.noun(), wanted }
}

fn is_link_target(target: &[u8]) -> bool {
    (1..=TARGET_MAX).contains(&target.len()) && !target.contains(&0)
}

/// A path for a message.
fn text(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers of the tests' own")]
mod tests {
    use super::resolve::Existing;
    use super::*;

    /// An image out of lines: `/d/` is a directory, `/l -> target` a link, `/p |` a pipe, else a file.
    struct Fake(Vec<(String, Option<Existing>)>);

    impl Fake {
        fn new(lines: &[&str]) -> Fake {
            let mut entries = vec![(String::new(), None)];
            for (line, at) in lines.iter().zip(1..) {
                entries.push(match line.split_once(" -> ") {
                    Some((path, target)) => {
                        (path.to_owned(), Some(Existing::Symlink(target.as_bytes().into())))
                    }
                    None if line.ends_with('/') => {
                        (line.trim_end_matches('/').to_owned(), Some(Existing::Directory(InodeRef(at))))
                    }
                    None if line.ends_with(" |") => {
                        (line[..line.len() - 2].to_owned(), Some(Existing::Special("a named pipe")))
                    }
                    None => ((*line).to_owned(), Some(Existing::File)),
                });
            }
            Fake(entries)
        }
    }

    impl Image for Fake {
        fn root(&self) -> InodeRef {
            InodeRef(0)
        }

        fn child(&self, directory: InodeRef, name: &[u8]) -> Result<Option<Existing>, ReadError> {
            if name == b"unreadable" {
                return Err(ReadError::Corrupt { offset: 1, what: "test".into() });
            }
            let path = format!("{}/{}", self.0[directory.0 as usize].0, text(name));
            Ok(self.0.iter().find(|(known, _)| *known == path).and_then(|(_, existing)| existing.clone()))
        }
    }

    const IMAGE: &[&str] = &[
        "/etc/",
        "/etc/passwd",
        "/etc/resolv.conf -> ../run/resolv.conf",
        "/etc/mtab -> /proc/self/mounts",
        "/usr/",
        "/usr/bin/",
        "/usr/bin/sh",
        "/bin -> usr/bin",
        "/up -> ../../../../usr",
        "/loop -> loop",
        "/a -> b",
        "/b -> a",
        "/deep/",
        "/deep/abs -> /usr/bin",
        "/deep/chain -> ../bin",
        "/to-root -> /",
        "/to-parent -> /usr/bin/..",
        "/dangling -> /nowhere/at/all",
        "/pipe |",
    ];

    fn content(text: &str) -> Graft {
        Graft::Content { mode: 0o644, content: text.as_bytes().into() }
    }

    fn symlink(target: &str) -> Graft {
        Graft::Symlink(target.into())
    }

    fn added(grafts: &mut Grafts, path: &str, graft: Graft) -> String {
        match grafts.add_to(&Fake::new(IMAGE), path.as_bytes(), graft) {
            Ok(path) => text(&path),
            Err(error) => error.to_string(),
        }
    }

    #[track_caller]
    fn check(path: &str, graft: Graft, expected: &str) {
        assert_eq!(added(&mut Grafts::default(), path, graft), expected, "{path}");
    }

    #[test]
    fn paths_resolve_inside_the_image() {
        for (path, expected) in [
            ("/", "/"),
            ("/usr", "/usr"),
            ("//usr/./bin//", "/usr/bin"),
            ("/scratch", "/scratch"),
            ("/scratch/a/b", "/scratch/a/b"),
            ("/bin", "/usr/bin"),
            ("/bin/new", "/usr/bin/new"),
            ("/deep/abs/x", "/usr/bin/x"),
            ("/deep/chain/x", "/usr/bin/x"),
            ("/up/x", "/usr/x"),
            ("/..", "/"),
            ("/../../etc", "/etc"),
            ("/missing/../x", "/x"),
            ("/missing/..", "/"),
            ("/missing/a/..", "/missing"),
            ("/usr/bin/..", "/usr"),
            ("/to-root", "/"),
            ("/to-root/usr/new", "/usr/new"),
            ("/to-parent", "/usr"),
            ("/dangling", "/nowhere/at/all"),
            ("/dangling/below", "/nowhere/at/all/below"),
        ] {
            check(path, Graft::Directory, expected);
        }
    }

    #[test]
    fn mount_points_keep_what_fits_and_refuse_the_rest() {
        check("/etc/passwd", Graft::File, "/etc/passwd");
        check("/etc/resolv.conf", Graft::File, "/run/resolv.conf");
        check("/etc/mtab", Graft::File, "/proc/self/mounts");
        check("/bin/sh", Graft::File, "/usr/bin/sh");
        check("/new/file", Graft::File, "/new/file");
        let refusals = [
            (
                "/etc/passwd",
                Graft::Directory,
                "cannot mount a directory on /etc/passwd in the image: it is a regular file",
            ),
            ("/etc", Graft::File, "cannot mount a file on /etc in the image: it is a directory"),
            ("/pipe", Graft::File, "cannot mount a file on /pipe in the image: it is a named pipe"),
            ("/pipe", Graft::Directory, "cannot mount a directory on /pipe in the image: it is a named pipe"),
            ("/bin", Graft::File, "cannot mount a file on /usr/bin in the image: it is a directory"),
            ("/", Graft::File, "cannot replace the root of the image"),
            ("/", content(""), "cannot replace the root of the image"),
            ("/..", symlink("x"), "cannot replace the root of the image"),
        ];
        for (path, graft, message) in refusals {
            check(path, graft, message);
        }
    }

    #[test]
    fn content_and_links_replace_what_is_there() {
        for path in ["/etc/passwd", "/etc/resolv.conf", "/bin", "/dangling", "/loop", "/usr", "/pipe", "/x/y"]
        {
            check(path, content("x"), path);
            check(path, symlink("/elsewhere"), path);
        }
        check("/bin/sh", content("x"), "/usr/bin/sh");
        check("/deep/chain/sh", symlink("bash"), "/usr/bin/sh");
    }

    #[test]
    fn hopeless_paths_are_refused_by_name() {
        let long = "n".repeat(256);
        let long_message = format!("{long:?} is not a file name of at most 255 bytes");
        let loops = "more than 40 symbolic links on the way";
        for (path, expected) in [
            ("etc", "path \"etc\" in the image is not absolute"),
            ("", "path \"\" in the image is not absolute"),
            ("/loop/x", loops),
            ("/etc/passwd/x", "/etc/passwd is a regular file, not a directory"),
            ("/bin/sh/x/y", "/usr/bin/sh is a regular file, not a directory"),
            ("/pipe/x", "/pipe is a named pipe, not a directory"),
            ("/a\0b", "\"a\\0b\" is not a file name of at most 255 bytes"),
            ("/unreadable", "cannot resolve /unreadable in the image"),
            (&format!("/{long}"), &long_message),
        ] {
            check(path, Graft::Directory, expected);
        }
        check("/b", Graft::File, "more than 40 symbolic links on the way");
        for target in ["", "a\0b", &"t".repeat(4096)] {
            check("/x", symlink(target), "its link target is not a path of 1 to 4095 bytes");
        }
    }

    #[test]
    fn exactly_forty_links_are_followed() {
        let lines: Vec<String> = (0..41).map(|n| format!("/l{n} -> l{}", n + 1)).collect();
        let image = Fake::new(&lines.iter().map(String::as_str).collect::<Vec<_>>());
        let mut grafts = Grafts::default();
        assert_eq!(grafts.add_to(&image, b"/l1", Graft::Directory).expect("40 links"), b"/l41");
        let again = Grafts::default().add_to(&image, b"/l0", Graft::Directory);
        assert!(matches!(again, Err(GraftError::Loop { .. })));
    }

    #[test]
    fn later_grafts_see_earlier_ones() {
        let mut grafts = Grafts::default();
        for (path, graft, expected) in [
            ("/home/ada", Graft::Directory, "/home/ada"),
            ("/home/ada/.config", Graft::Directory, "/home/ada/.config"),
            ("/link", symlink("/home"), "/link"),
            ("/link/bob", Graft::Directory, "/home/bob"),
            ("/home/file", Graft::File, "/home/file"),
            ("/home/file", Graft::File, "/home/file"),
            ("/home/file/x", Graft::Directory, "/home/file is a regular file, not a directory"),
            ("/home/file", content("x"), "/home/file"),
            (
                "/home/file",
                symlink("x"),
                "cannot replace /home/file in the image: it is a mount point already",
            ),
            ("/home", content("x"), "cannot replace /home in the image: it is a mount point already"),
            ("/usr/lib", Graft::Directory, "/usr/lib"),
            ("/usr", symlink("x"), "cannot replace /usr in the image: it is a mount point already"),
            ("/link", symlink("/etc"), "/link"),
            ("/link/bob", Graft::Directory, "/etc/bob"),
        ] {
            assert_eq!(added(&mut grafts, path, graft), expected, "{path}");
        }
    }

    /// The graft tree as lines: path, what it is, whether over a directory of the image.
    fn tree(grafts: &Grafts) -> Vec<String> {
        let mut lines = Vec::new();
        let mut todo = vec![(String::new(), 0)];
        while let Some((path, index)) = todo.pop() {
            let node = &grafts.nodes[index];
            let over = if node.over_directory { " over" } else { "" };
            lines.push(match &node.kind {
                NodeKind::Directory { base, children } => {
                    todo.extend(
                        children.iter().map(|(name, child)| (format!("{path}/{}", text(name)), *child)),
                    );
                    format!("{path}/ {:?}{over}", base.map(|base| base.0))
                }
                NodeKind::File { mode, content } => format!("{path} {mode:o} {}{over}", text(content)),
                NodeKind::Symlink(target) => format!("{path} -> {}{over}", text(target)),
            });
        }
        lines.sort();
        lines
    }

    #[test]
    fn the_tree_has_only_what_was_added() {
        let mut grafts = Grafts::default();
        added(&mut grafts, "/etc/passwd", Graft::File);
        added(&mut grafts, "/usr/bin", Graft::Directory);
        assert!(grafts.is_empty(), "what exists needs no graft");
        added(&mut grafts, "/etc/passwd/no", Graft::File);
        added(&mut grafts, "/fresh/loop/../../loop/x", Graft::File);
        assert!(grafts.is_empty(), "an error adds nothing");
        added(&mut grafts, "/etc/passwd", content("root"));
        added(&mut grafts, "/bin/x/y", Graft::Directory);
        added(&mut grafts, "/deep", symlink("usr"));
        assert_eq!(
            tree(&grafts),
            [
                "/ Some(0) over",
                "/deep -> usr over",
                "/etc/ Some(1) over",
                "/etc/passwd 644 root",
                "/usr/ Some(5) over",
                "/usr/bin/ Some(6) over",
                "/usr/bin/x/ None",
                "/usr/bin/x/y/ None"
            ]
        );
    }
}
