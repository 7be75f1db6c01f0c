//! Where a path leads in an image with its grafts: symbolic links are followed inside the image, never out of it.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{GraftError, Grafts, NodeIndex, NodeKind, text};
use crate::squashfs::format::InodeRef;
use crate::squashfs::reader::{Filesystem, InodeKind, ReadError};

/// Symbolic links followed for one path, as in the kernel (`MAXSYMLINKS`).
const LINKS_MAX: usize = 40;
/// Longest name the kernel passes to a file system.
const NAME_MAX: usize = 255;

/// What resolving needs of an image.
pub(super) trait Image {
    /// The root directory.
    fn root(&self) -> InodeRef;
    /// The entry `name` of a directory.
    fn child(&self, directory: InodeRef, name: &[u8]) -> Result<Option<Existing>, ReadError>;
}

/// An entry of the image.
#[derive(Debug, Clone)]
pub(super) enum Existing {
    Directory(InodeRef),
    File,
    Symlink(Arc<[u8]>),
    /// With its name for messages.
    Special(&'static str),
}

impl Image for Filesystem {
    fn root(&self) -> InodeRef {
        Filesystem::root(self)
    }

    fn child(&self, directory: InodeRef, name: &[u8]) -> Result<Option<Existing>, ReadError> {
        let InodeKind::Directory(listing) = self.inode(directory)?.kind else { return Ok(None) };
        let Some(reference) = self.lookup(&listing, name)? else { return Ok(None) };
        Ok(Some(match self.inode(reference)?.kind {
            InodeKind::Directory(_) => Existing::Directory(reference),
            InodeKind::File(_) => Existing::File,
            InodeKind::Symlink(target) => Existing::Symlink(target),
            InodeKind::BlockDevice(..) | InodeKind::CharacterDevice(..) => Existing::Special("a device"),
            InodeKind::Fifo => Existing::Special("a named pipe"),
            InodeKind::Socket => Existing::Special("a socket"),
        }))
    }
}

/// A directory on the way from the root to the path being added.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    /// In the graft tree.
    Graft(NodeIndex),
    /// In the image only.
    Image(InodeRef),
    /// Nowhere yet.
    Missing,
}

/// What a name leads to.
#[derive(Debug)]
pub(super) enum Found {
    Nothing,
    Directory(Place),
    File,
    Symlink(Arc<[u8]>),
    Special(&'static str),
}

impl Found {
    pub(super) fn noun(&self) -> &'static str {
        match self {
            Found::Nothing => "nothing",
            Found::Directory(_) => "a directory",
            Found::File => "a regular file",
            Found::Symlink(_) => "a symbolic link",
            Found::Special(noun) => noun,
        }
    }
}

/// Where a path leads: the directories below the root, and the last name with what is there. No name: the root itself
/// or, after `..`, the last of the directories.
pub(super) struct Resolved {
    pub(super) parents: Vec<(Vec<u8>, Place)>,
    pub(super) last: Option<(Vec<u8>, Found)>,
}

impl Resolved {
    pub(super) fn path(&self) -> Vec<u8> {
        let names = self.parents.iter().map(|(name, _)| name).chain(self.last.iter().map(|(name, _)| name));
        joined(names)
    }
}

impl Grafts {
    /// Follows `path` from the root to its last name.
    pub(super) fn resolve(
        &self,
        image: &dyn Image,
        path: &[u8],
        follow_last: bool,
    ) -> Result<Resolved, GraftError> {
        if path.first() != Some(&b'/') {
            return Err(GraftError::Relative { path: text(path) });
        }
        let mut left: VecDeque<Vec<u8>> = components(path);
        let mut parents: Vec<(Vec<u8>, Place)> = Vec::new();
        let mut links = 0;
        while let Some(name) = left.pop_front() {
            if name == b".." {
                parents.pop();
                continue;
            }
            if name.len() > NAME_MAX || name.contains(&0) {
                return Err(GraftError::Name { path: text(path), component: text(&name) });
            }
            let parent = parents.last().map_or_else(|| self.root_place(image), |(_, place)| *place);
            let found = self
                .find(image, parent, &name)
                .map_err(|source| GraftError::Read { path: text(path), source })?;
            let is_last = left.is_empty();
            match found {
                Found::Symlink(target) if !is_last || follow_last => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(GraftError::Loop { path: text(path) });
                    }
                    if target.first() == Some(&b'/') {
                        parents.clear();
                    }
                    for component in components(&target).into_iter().rev() {
                        left.push_front(component);
                    }
                }
                found if is_last => return Ok(Resolved { parents, last: Some((name, found)) }),
                Found::Directory(place) => parents.push((name, place)),
                Found::Nothing => parents.push((name, Place::Missing)),
                found => {
                    let names = parents.iter().map(|(name, _)| name).chain([&name]);
                    return Err(GraftError::NotDirectory {
                        path: text(path),
                        component: text(&joined(names)),
                        found: found.noun(),
                    });
                }
            }
        }
        // The path ended in `..`, `.` or a link to such: its last directory is what it names.
        let last = parents.pop().map(|(name, place)| match place {
            Place::Missing => (name, Found::Nothing),
            place => (name, Found::Directory(place)),
        });
        Ok(Resolved { parents, last })
    }

    pub(super) fn root_place(&self, image: &dyn Image) -> Place {
        if self.nodes.is_empty() { Place::Image(image.root()) } else { Place::Graft(0) }
    }

    /// What `name` is in a directory, grafts before the image.
    pub(super) fn find(&self, image: &dyn Image, parent: Place, name: &[u8]) -> Result<Found, ReadError> {
        let base = match parent {
            Place::Missing => None,
            Place::Image(directory) => Some(directory),
            Place::Graft(index) => match self.nodes.get(index).map(|node| &node.kind) {
                Some(NodeKind::Directory { base, children }) => {
                    if let Some(child) = children.get(name) {
                        return Ok(self.found(*child));
                    }
                    *base
                }
                _ => None,
            },
        };
        let existing = match base {
            Some(directory) => image.child(directory, name)?,
            None => None,
        };
        Ok(match existing {
            None => Found::Nothing,
            Some(Existing::Directory(reference)) => Found::Directory(Place::Image(reference)),
            Some(Existing::File) => Found::File,
            Some(Existing::Symlink(target)) => Found::Symlink(target),
            Some(Existing::Special(noun)) => Found::Special(noun),
        })
    }

    pub(super) fn found(&self, index: NodeIndex) -> Found {
        match self.nodes.get(index).map(|node| &node.kind) {
            Some(NodeKind::Directory { .. }) => Found::Directory(Place::Graft(index)),
            Some(NodeKind::File { .. }) => Found::File,
            Some(NodeKind::Symlink(target)) => Found::Symlink(Arc::clone(target)),
            None => Found::Nothing,
        }
    }
}

/// The names of a path, `..` among them, without empty ones and `.`.
fn components(path: &[u8]) -> VecDeque<Vec<u8>> {
    path.split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .map(<[u8]>::to_vec)
        .collect()
}

fn joined<'a>(names: impl Iterator<Item = &'a Vec<u8>>) -> Vec<u8> {
    let mut path = Vec::new();
    for name in names {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    if path.is_empty() { b"/".to_vec() } else { path }
}
