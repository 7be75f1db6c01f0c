//! Everything a reader can be asked, on one image, within bounds. Shared with the fuzz target in `fuzz/`.

use std::collections::{BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::ControlFlow;

use hpcrun::squashfs::format::InodeRef;
use hpcrun::squashfs::reader::{Directory, Entry, FileLayout, Filesystem, Inode, InodeKind, ReadError};

/// Inodes looked at in one image.
const INODES_MAX: usize = 2000;
/// Entries looked at in one directory.
const ENTRIES_MAX: usize = 2000;
/// Bytes of file data read in one image.
const BYTES_MAX: usize = 16 << 20;
/// Bytes read at a time.
const READ_MAX: usize = 200_000;

/// What came of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Of all that was read, the texts of errors included: equal for equal images, whatever the caches.
    pub(crate) digest: u64,
    /// The refusals, each text once.
    pub(crate) errors: BTreeSet<String>,
    /// Inodes decoded.
    pub(crate) inodes: usize,
    /// Bytes of file data read.
    pub(crate) bytes: usize,
}

/// Decodes inodes, lists and searches directories, reads files, targets and xattrs. Panics where two ways to the same
/// thing disagree.
pub(crate) fn exercise(filesystem: &Filesystem) -> Outcome {
    let mut run = Run {
        filesystem,
        digest: DefaultHasher::new(),
        errors: BTreeSet::new(),
        inodes: 0,
        bytes: 0,
        pending: vec![filesystem.root()],
        seen: HashSet::from([filesystem.root()]),
    };
    while let Some(reference) = run.pending.pop() {
        if run.inodes < INODES_MAX {
            run.inode(reference);
        }
    }
    run.walk_and_resolve();
    Outcome { digest: run.digest.finish(), errors: run.errors, inodes: run.inodes, bytes: run.bytes }
}

/// A name, its inode, and the cookie behind it.
type Found = (Vec<u8>, InodeRef, u64);

struct Run<'a> {
    filesystem: &'a Filesystem,
    digest: DefaultHasher,
    errors: BTreeSet<String>,
    inodes: usize,
    bytes: usize,
    pending: Vec<InodeRef>,
    seen: HashSet<InodeRef>,
}

impl Run<'_> {
    /// Takes note of a result; gives its value.
    fn note<T>(&mut self, result: Result<T, ReadError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                let text = error.to_string();
                text.hash(&mut self.digest);
                self.errors.insert(text);
                None
            }
        }
    }

    fn inode(&mut self, reference: InodeRef) {
        self.inodes += 1;
        let Some(inode) = self.note(self.filesystem.inode(reference)) else { return };
        let Inode { number, mode, uid, gid, mtime, nlink, xattr, .. } = &inode;
        (number, mode, uid, gid, mtime, nlink, xattr).hash(&mut self.digest);
        if let Some(index) = inode.xattr {
            self.xattrs(index);
        }
        match &inode.kind {
            InodeKind::Directory(directory) => self.directory(directory),
            InodeKind::File(file) => self.file(file),
            InodeKind::Symlink(target) => target.hash(&mut self.digest),
            InodeKind::BlockDevice(major, minor) | InodeKind::CharacterDevice(major, minor) => {
                (major, minor).hash(&mut self.digest);
            }
            _ => {}
        }
        if let Some(found) = self.note(self.filesystem.inode_by_number(inode.number)) {
            found.hash(&mut self.digest);
        }
    }

    fn xattrs(&mut self, index: u32) {
        let Some(all) = self.note(self.filesystem.xattrs(index)) else { return };
        all.hash(&mut self.digest);
        if let Some((name, _)) = all.last() {
            let found = self.note(self.filesystem.xattr(index, name));
            assert!(found.is_none_or(|value| value.is_some()));
        }
        self.note(self.filesystem.xattr(index, b"user.absent"));
    }

    fn directory(&mut self, directory: &Directory) {
        let (all, error) = self.list(directory, 0);
        if let Some(error) = error {
            self.note::<()>(Err(error));
        }
        for (name, reference, cookie) in &all {
            (name, reference, cookie).hash(&mut self.digest);
            if self.seen.insert(*reference) {
                self.pending.push(*reference);
            }
        }
        // An index that lies may lead a resumed listing elsewhere, so only what it gives is looked at.
        if let Some((_, _, cookie)) = all.get(all.len() / 2) {
            let (rest, error) = self.list(directory, *cookie);
            rest.hash(&mut self.digest);
            error.map(|error| error.to_string()).hash(&mut self.digest);
        }
        for name in all.iter().map(|(name, ..)| name.as_slice()).step_by(all.len() / 16 + 1).chain([
            b"absent".as_slice(),
            b"\xff",
            b"",
        ]) {
            if let Some(found) = self.note(self.filesystem.lookup(directory, name)) {
                found.hash(&mut self.digest);
            }
        }
    }

    fn list(&self, directory: &Directory, cookie: u64) -> (Vec<Found>, Option<ReadError>) {
        let mut all = Vec::new();
        let result = self.filesystem.read_directory(directory, cookie, &mut |entry: Entry<'_>| {
            let name = entry.name;
            assert!(!name.is_empty() && name.len() <= 256 && name != b"." && name != b"..");
            assert!(!name.contains(&b'/') && !name.contains(&0));
            assert_ne!(entry.next, 0);
            all.push((name.to_vec(), entry.inode, entry.next));
            if all.len() < ENTRIES_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        (all, result.err())
    }

    fn file(&mut self, file: &FileLayout) {
        file.size.hash(&mut self.digest);
        let middle = file.size / 2;
        for (offset, length) in [
            (0, READ_MAX),
            (middle, 5000),
            (file.size.saturating_sub(3000), 10_000),
            (file.size, 1),
            (u64::MAX, usize::MAX),
        ] {
            if self.bytes > BYTES_MAX {
                return;
            }
            let Some(bytes) = self.note(self.filesystem.read_bytes(file, offset, length)) else { continue };
            let expected = file.size.saturating_sub(offset).min(length as u64);
            assert_eq!(bytes.len() as u64, expected, "short or long read");
            bytes.hash(&mut self.digest);
            self.bytes += bytes.len();
            // The same again in two halves.
            let half = bytes.len() / 2;
            let first = self.filesystem.read_bytes(file, offset, half);
            let second =
                self.filesystem.read_bytes(file, offset.saturating_add(half as u64), bytes.len() - half);
            if let (Some(first), Some(second)) = (self.note(first), self.note(second)) {
                assert!([first, second].concat() == bytes, "halves differ from the whole");
            }
        }
        self.note(self.filesystem.prefetch(file, middle, READ_MAX));
    }

    fn walk_and_resolve(&mut self) {
        let (mut left, mut deepest) = (INODES_MAX, Vec::new());
        let walk = self.filesystem.walk(&mut |path, inode| {
            if path.len() > deepest.len() {
                deepest = path.to_vec();
            }
            inode.number.hash(&mut self.digest);
            left -= 1;
            if left > 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        self.note(walk);
        self.note(self.filesystem.resolve(&deepest));
        self.note(self.filesystem.resolve(b"/link/../dir/../link"));
    }
}
