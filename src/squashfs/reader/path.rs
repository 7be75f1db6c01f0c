//! Paths: resolving one inside the image, and walking all of them.

use std::collections::HashSet;
use std::ops::ControlFlow;

use super::{Directory, Filesystem, Inode, InodeKind, ReadError};
use crate::squashfs::format::InodeRef;

/// Symbolic links followed in one path: the kernel's `MAXSYMLINKS`.
const SYMLINKS_MAX: usize = 40;

impl Filesystem {
    /// The inode at an absolute path, following symbolic links, the last one too, inside the image: `..` and absolute
    /// targets stop at its root. Nothing if a component is missing or is no directory.
    pub fn resolve(&self, path: &[u8]) -> Result<Option<Inode>, ReadError> {
        Ok(self.real_path(path)?.map(|(_, inode)| inode))
    }

    /// The same, with the path that leads there without links.
    pub fn real_path(&self, path: &[u8]) -> Result<Option<(Vec<u8>, Inode)>, ReadError> {
        let mut here = self.inode(self.root())?;
        // The directories above `here`, nearest last.
        let mut above: Vec<Inode> = Vec::new();
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut pending = components(path);
        let mut followed = 0;
        while let Some(name) = pending.pop() {
            let InodeKind::Directory(directory) = &here.kind else { return Ok(None) };
            match name.as_slice() {
                b"." => continue,
                b".." => {
                    here = above.pop().unwrap_or(here);
                    names.pop();
                    continue;
                }
                _ => {}
            }
            let Some(found) = self.lookup_inode(directory, &name)? else { return Ok(None) };
            let InodeKind::Symlink(target) = &found.kind else {
                above.push(std::mem::replace(&mut here, found));
                names.push(name);
                continue;
            };
            followed += 1;
            if followed > SYMLINKS_MAX {
                return Err(ReadError::SymlinkLoop { path: path.escape_ascii().to_string() });
            }
            pending.extend(components(target));
            if target.first() == Some(&b'/') {
                here = above.into_iter().next().unwrap_or(here);
                above = Vec::new();
                names = Vec::new();
            }
        }
        Ok(Some(([&b"/"[..], &names.join(&b'/')].concat(), here)))
    }

    /// The content of a regular file of at most `longest` bytes, found as [`Filesystem::resolve`] does; nothing if there
    /// is none, or links lead in circles.
    pub fn small_file(&self, path: &[u8], longest: u64) -> Result<Option<Vec<u8>>, ReadError> {
        let found = match self.resolve(path) {
            Err(ReadError::SymlinkLoop { .. }) => None,
            found => found?,
        };
        match found.map(|inode| inode.kind) {
            Some(InodeKind::File(file)) if file.size <= longest => {
                self.read_bytes(&file, 0, usize::try_from(file.size).unwrap_or(usize::MAX)).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Walks the whole tree, each directory before what is in it, until `each` breaks. Paths are absolute, the root's
    /// is `/`. Directories that contain themselves or lie under two names are refused, so that the walk ends.
    pub fn walk(&self, each: &mut dyn FnMut(&[u8], &Inode) -> ControlFlow<()>) -> Result<(), ReadError> {
        let root = self.inode(self.root())?;
        if each(b"/", &root).is_break() {
            return Ok(());
        }
        let mut walk = Walk { filesystem: self, seen: HashSet::new(), levels: Vec::new(), path: Vec::new() };
        walk.enter(&root)?;
        while walk.step(each)?.is_continue() {}
        Ok(())
    }
}

/// The components of a path, first one last. A slash at the end asks for a directory, as `.` there does.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> =
        path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect();
    if path.last() == Some(&b'/') {
        names.push(b".".to_vec());
    }
    names.reverse();
    names
}

struct Walk<'a> {
    filesystem: &'a Filesystem,
    seen: HashSet<InodeRef>,
    levels: Vec<Level>,
    path: Vec<u8>,
}

/// A directory being walked.
struct Level {
    directory: Directory,
    /// Where its listing goes on.
    cookie: u64,
    path_length: usize,
}

impl Walk<'_> {
    fn enter(&mut self, inode: &Inode) -> Result<(), ReadError> {
        let InodeKind::Directory(directory) = &inode.kind else { return Ok(()) };
        if !self.seen.insert(inode.reference) {
            let position = self.filesystem.tables.inodes.start.saturating_add(inode.reference.block());
            let what = format!("directory {} lies under two names", inode.number);
            return Err(self.filesystem.image.corrupt(position, what));
        }
        self.levels.push(Level { directory: directory.clone(), cookie: 0, path_length: self.path.len() });
        Ok(())
    }

    /// Goes on in the innermost directory up to the next directory in it, or leaves it.
    fn step(
        &mut self,
        each: &mut dyn FnMut(&[u8], &Inode) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, ReadError> {
        let Some(level) = self.levels.last_mut() else { return Ok(ControlFlow::Break(())) };
        let (filesystem, path) = (self.filesystem, &mut self.path);
        path.truncate(level.path_length);
        let mut stop = Ok(Stop::End);
        filesystem.read_directory(&level.directory, level.cookie, &mut |entry| {
            level.cookie = entry.next;
            let inode = match filesystem.entry_inode(&entry) {
                Ok(inode) => inode,
                Err(error) => {
                    stop = Err(error);
                    return ControlFlow::Break(());
                }
            };
            path.truncate(level.path_length);
            path.push(b'/');
            path.extend_from_slice(entry.name);
            if each(path, &inode).is_break() {
                stop = Ok(Stop::Asked);
                return ControlFlow::Break(());
            }
            if matches!(inode.kind, InodeKind::Directory(_)) {
                stop = Ok(Stop::Descend(inode));
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        })?;
        match stop? {
            Stop::End => {
                self.levels.pop();
            }
            Stop::Asked => return Ok(ControlFlow::Break(())),
            Stop::Descend(inode) => self.enter(&inode)?,
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// Why the walk of one listing stopped.
enum Stop {
    End,
    Asked,
    Descend(Inode),
}

#[cfg(test)]
mod tests {
    use super::components;

    #[test]
    fn components_come_last_first() {
        let check = |path: &str, expected: &[&str]| {
            let got = components(path.as_bytes());
            let expected: Vec<Vec<u8>> = expected.iter().map(|name| name.as_bytes().to_vec()).collect();
            assert_eq!(got, expected, "{path}");
        };
        check("", &[]);
        check("/", &["."]);
        check("/a//b", &["b", "a"]);
        check("a/b/", &[".", "b", "a"]);
        check("../x/./y", &["y", ".", "x", ".."]);
    }
}
