//! Inode numbers, parents and link counts of a tree, found in one walk without recursion.
//!
//! The walk is top-down and numbers the entries of a directory one after the other, so the root is 1, every
//! parent has its number before its children, and a directory header (whose entries may differ by 16 bits)
//! covers many of them.

use crate::squashfs::writer::check::{check_inode, check_name};
use crate::squashfs::writer::{EntryError, Inode, InodeIndex, InodeKind, Tree, WriteError};

/// A directory entry of the tree.
pub(super) type Entry = (Vec<u8>, InodeIndex);

/// Directories deeper than this are cut from paths in messages.
const PATH_DEPTH_MAX: usize = 64;

/// What the walk found, by position in [`Tree::inodes`].
#[derive(Debug)]
pub(super) struct Numbering {
    /// Inode numbers from 1; 0 for inodes that the root does not reach.
    numbers: Vec<u32>,
    /// A directory that has the inode as entry: the first that the walk met. The root's is itself.
    parents: Vec<InodeIndex>,
    /// Names that the inode has; for directories subdirectories and 2 more.
    links: Vec<u32>,
    /// Directories, each before its subdirectories.
    pub(super) directories: Vec<InodeIndex>,
    /// Numbered inodes.
    pub(super) count: u32,
}

impl Numbering {
    /// Walks the tree and refuses whatever the format cannot hold. `files` is the number of files written.
    pub(super) fn walk(tree: &Tree, files: usize) -> Result<Numbering, WriteError> {
        let inodes = tree.inodes.len();
        // One number stays free for the parent of the root.
        if u32::try_from(inodes).ok().is_none_or(|inodes| inodes == u32::MAX) {
            return Err(WriteError::TooMany { what: "inodes", limit: u64::from(u32::MAX - 1) });
        }
        let mut numbering = Numbering {
            numbers: vec![0; inodes],
            parents: vec![tree.root; inodes],
            links: vec![0; inodes],
            directories: Vec::new(),
            count: 0,
        };
        let root = inode(tree, tree.root).map_err(at_root)?;
        if !matches!(root.kind, InodeKind::Directory(_)) {
            return Err(at_root(EntryError::RootNotDirectory));
        }
        numbering.meet(tree, tree.root, tree.root, files).map_err(at_root)?;
        let mut unvisited = vec![tree.root];
        while let Some(directory) = unvisited.pop() {
            numbering.directories.push(directory);
            let visited = numbering.visit(tree, directory, files, &mut unvisited);
            visited.map_err(|(name, source)| WriteError::Entry {
                path: numbering.path(tree, directory, name),
                source,
            })?;
        }
        Ok(numbering)
    }

    /// Numbers the entries of one directory; an error comes with the entry's name.
    fn visit<'a>(
        &mut self,
        tree: &'a Tree,
        directory: InodeIndex,
        files: usize,
        unvisited: &mut Vec<InodeIndex>,
    ) -> Result<(), (&'a [u8], EntryError)> {
        let entries = sorted_entries(tree, directory);
        let mut listing_bytes = 0u64;
        let mut before: Option<&[u8]> = None;
        for (name, child) in entries {
            let at = |error| (name.as_slice(), error);
            check_name(name).map_err(at)?;
            if before == Some(name) {
                return Err(at(EntryError::DuplicateName));
            }
            before = Some(name);
            if self.meet(tree, *child, directory, files).map_err(at)? {
                unvisited.push(*child);
                self.add_link(directory);
            }
            // An entry with a header of its own is 20 bytes and the name.
            listing_bytes += 20 + name.len() as u64;
        }
        match listing_bytes < u64::from(u32::MAX) - 3 {
            true => Ok(()),
            false => Err((b"", EntryError::DirectoryTooLarge)),
        }
    }

    /// Counts a name of an inode and numbers the inode at its first; says whether it is a directory.
    fn meet(
        &mut self,
        tree: &Tree,
        index: InodeIndex,
        parent: InodeIndex,
        files: usize,
    ) -> Result<bool, EntryError> {
        let inode = inode(tree, index)?;
        let is_directory = matches!(inode.kind, InodeKind::Directory(_));
        if self.number(index) == 0 {
            check_inode(inode, files)?;
            self.count += 1;
            *slot(&mut self.numbers, index)? = self.count;
            *slot(&mut self.parents, index)? = parent;
            *slot(&mut self.links, index)? = if is_directory { 2 } else { 1 };
        } else if is_directory {
            return Err(EntryError::DirectoryTwice);
        } else {
            self.add_link(index);
        }
        Ok(is_directory)
    }

    fn add_link(&mut self, index: InodeIndex) {
        if let Ok(links) = slot(&mut self.links, index) {
            *links = links.saturating_add(1);
        }
    }

    /// The inode's number; 0 if the root does not reach it.
    pub(super) fn number(&self, index: InodeIndex) -> u32 {
        get(&self.numbers, index)
    }

    /// The inode's link count.
    pub(super) fn links(&self, index: InodeIndex) -> u32 {
        get(&self.links, index)
    }

    /// Number of a directory's parent; as in mksquashfs the root's is one that no inode has.
    pub(super) fn parent_number(&self, tree: &Tree, directory: InodeIndex) -> u32 {
        if directory == tree.root {
            return self.count.saturating_add(1);
        }
        self.number(get(&self.parents, directory))
    }

    /// The path of the entry `name` of `directory`, for messages.
    fn path(&self, tree: &Tree, directory: InodeIndex, name: &[u8]) -> String {
        let mut names = vec![String::from_utf8_lossy(name).into_owned()];
        let mut child = directory;
        while child != tree.root {
            if names.len() > PATH_DEPTH_MAX {
                names.push("...".to_owned());
                break;
            }
            let parent = get(&self.parents, child);
            let found = entries(tree, parent).iter().find(|(_, index)| *index == child);
            names.push(found.map(|(name, _)| String::from_utf8_lossy(name).into_owned()).unwrap_or_default());
            child = parent;
        }
        names.push(String::new());
        names.reverse();
        names.join("/")
    }
}

/// A directory's entries as the tree has them; none for other inodes.
fn entries(tree: &Tree, directory: InodeIndex) -> &[Entry] {
    match inode(tree, directory).map(|inode| &inode.kind) {
        Ok(InodeKind::Directory(entries)) => entries,
        _ => &[],
    }
}

/// A directory's entries by name, in the order of bytes that the kernel's search relies on.
pub(super) fn sorted_entries(tree: &Tree, directory: InodeIndex) -> Vec<&Entry> {
    let mut entries: Vec<_> = entries(tree, directory).iter().collect();
    entries.sort_unstable();
    entries
}

/// The inode at a position.
pub(super) fn inode(tree: &Tree, index: InodeIndex) -> Result<&Inode, EntryError> {
    let inode = usize::try_from(index).ok().and_then(|index| tree.inodes.get(index));
    inode.ok_or(EntryError::NoInode(index))
}

fn get(values: &[u32], index: InodeIndex) -> u32 {
    usize::try_from(index).ok().and_then(|index| values.get(index)).copied().unwrap_or_default()
}

fn slot(values: &mut [u32], index: InodeIndex) -> Result<&mut u32, EntryError> {
    usize::try_from(index).ok().and_then(|at| values.get_mut(at)).ok_or(EntryError::NoInode(index))
}

fn at_root(source: EntryError) -> WriteError {
    WriteError::Entry { path: "/".to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::squashfs::writer::FileId;

    fn node(kind: InodeKind) -> Inode {
        Inode { kind, mode: 0o644, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new() }
    }

    fn directory(entries: &[(&str, u32)]) -> Inode {
        node(InodeKind::Directory(entries.iter().map(|(name, at)| (name.as_bytes().to_vec(), *at)).collect()))
    }

    /// The error of a tree of which inode 0 is the root and inode 2 a fifo, `path: why`.
    #[track_caller]
    fn check_refused(root: &[(&str, u32)], below: Inode, expected: &str) {
        let tree = Tree { inodes: vec![directory(root), below, node(InodeKind::Fifo)], root: 0 };
        let error = Numbering::walk(&tree, 1).unwrap_err();
        let WriteError::Entry { path, source } = error else { panic!("{error}") };
        assert_eq!(format!("{path}: {source}"), expected);
    }

    #[test]
    fn numbers_siblings_in_a_row_and_counts_links() {
        let tree = Tree {
            inodes: vec![
                node(InodeKind::Fifo),
                directory(&[("z", 0), ("a", 2), ("m", 3)]),
                directory(&[("x", 0), ("y", 4)]),
                directory(&[]),
                node(InodeKind::Socket),
                node(InodeKind::Fifo),
            ],
            root: 1,
        };
        let numbering = Numbering::walk(&tree, 0).unwrap();
        let all = |of: &dyn Fn(u32) -> u32| (0..6).map(of).collect::<Vec<_>>();
        assert_eq!(all(&|index| numbering.number(index)), [4, 1, 2, 3, 5, 0]);
        assert_eq!(all(&|index| numbering.links(index)), [2, 4, 2, 2, 1, 0]);
        assert_eq!(numbering.parent_number(&tree, 1), 6);
        assert_eq!(numbering.parent_number(&tree, 2), 1);
        assert_eq!(numbering.count, 5);
    }

    #[test]
    fn refuses_what_the_format_cannot_hold_and_names_it() {
        let fifo = || node(InodeKind::Fifo);
        let long = "n".repeat(257);
        check_refused(
            &[("d", 1)],
            directory(&[(&long, 2)]),
            &format!("/d/{long}: name of 257 bytes is longer than 256"),
        );
        for name in ["", ".", "..", "a/b", "a\0"] {
            check_refused(&[("d", 1)], directory(&[(name, 2)]), &format!("/d/{name}: not a file name"));
        }
        check_refused(&[("a", 2), ("b", 2), ("a", 2)], fifo(), "/a: directory has two entries of this name");
        check_refused(&[("a", 3)], fifo(), "/a: inode 3 is not in the tree");
        check_refused(&[("a", 0)], fifo(), "/a: directory has more than one name");
        check_refused(&[("a", 1), ("b", 1)], directory(&[]), "/b: directory has more than one name");
        check_refused(&[("a", 1)], directory(&[("b", 1)]), "/a/b: directory has more than one name");
        check_refused(
            &[("a", 1)],
            Inode { mode: 0o10000, ..fifo() },
            "/a: mode 0o10000 has bits beyond 0o7777",
        );
        check_refused(&[("a", 1)], node(InodeKind::File(FileId(1))), "/a: file data 1 was never written");
        check_refused(
            &[("a", 1)],
            node(InodeKind::CharacterDevice(4096, 0)),
            "/a: device number 4096:0 is larger than 4095:1048575",
        );
        for target in [&b""[..], b"a\0b", &[b'x'; 4096]] {
            check_refused(
                &[("a", 1)],
                node(InodeKind::Symlink(target.to_vec())),
                &format!(
                    "/a: symbolic link target of {} bytes is empty, longer than 4095 or contains NUL",
                    target.len()
                ),
            );
        }
        let xattrs = |names: &[&str], length: usize| Inode {
            xattrs: names.iter().map(|name| (name.as_bytes().to_vec(), vec![0; length])).collect(),
            ..fifo()
        };
        check_refused(
            &[("a", 1)],
            xattrs(&["system.posix_acl_access"], 1),
            "/a: squashfs cannot hold an xattr named \"system.posix_acl_access\"",
        );
        check_refused(
            &[("a", 1)],
            xattrs(&["user.a", "user.b", "user.a"], 1),
            "/a: xattr \"user.a\" occurs twice",
        );
        check_refused(
            &[("a", 1)],
            xattrs(&["user.a"], 65537),
            "/a: value of xattr \"user.a\" is 65537 bytes long, more than 65536",
        );
    }

    #[test]
    fn refuses_a_root_that_is_none() {
        for (inodes, root) in [(vec![node(InodeKind::Fifo)], 0), (vec![directory(&[])], 1), (Vec::new(), 0)] {
            assert!(matches!(
                Numbering::walk(&Tree { inodes, root }, 0),
                Err(WriteError::Entry { path, .. }) if path == "/"
            ));
        }
    }
}
