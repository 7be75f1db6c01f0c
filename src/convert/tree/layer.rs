//! One layer's own tree: its entries applied in order to nothing, its whiteouts put aside.

use super::TreeError;
use super::leaf::{LeafId, LeafKind};
use super::memory::Written;
use super::merge::Merge;
use super::meta::{Meta, MetaId, Notes};
use super::names::NameId;
use super::nodes::{NodeId, Nodes, ROOT};
use crate::convert::budget::Limit;
use crate::convert::layer::path::{self, Components, Meaning};
use crate::convert::layer::tar::{Entry, EntryKind};

/// Symbolic links followed on the way to one name, as many as the kernel follows.
const SYMLINKS_MAX: usize = 40;

/// Components walked on the way to one name, those of links included. No path that the kernel takes has more, and
/// links of links of long targets could ask for 80 000 at every entry.
const STEPS_MAX: usize = 2048;

/// What becomes of an entry's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It is part of the image: store it and tell [`Merge::store`].
    Store(LeafId),
    /// There is none, or it is hidden.
    Skip,
}

/// A layer while its entries come in.
#[derive(Debug)]
pub struct LayerTree {
    pub(super) own: Nodes<Own>,
    pub(super) masks: Nodes<Mask>,
    /// Hard links whose target was not in this layer when they came.
    pub(super) links: Vec<Link>,
    link_bytes: u64,
    /// What its names and targets will take when they are written.
    pub(super) written: Written,
    entries: u32,
    /// What was left out of the layers above.
    pub(super) notes_before: Notes,
}

/// A node of the layer's own tree.
#[derive(Debug, Clone, Copy)]
pub(super) enum Own {
    /// With metadata once an entry gave it.
    Directory(Option<MetaId>),
    Leaf(LeafId),
}

/// What a layer hides of those below it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Mask {
    /// This path, with all below it.
    pub(super) whiteout: bool,
    /// All children of this path.
    pub(super) opaque: bool,
}

/// A hard link that waits for its target.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) leaf: LeafId,
    pub(super) path: Vec<NameId>,
    pub(super) target: Vec<NameId>,
    /// What the target's name stood for at the end of the link's own layer: taken if no layer below has the target.
    pub(super) fallback: Option<LeafId>,
}

impl LayerTree {
    pub(super) fn new(notes_before: Notes) -> LayerTree {
        LayerTree {
            own: Nodes::new(Own::Directory(None)),
            masks: Nodes::new(Mask::default()),
            links: Vec::new(),
            link_bytes: 0,
            written: Written::default(),
            entries: 0,
            notes_before,
        }
    }

    /// Memory in use, bytes.
    pub(super) fn memory(&self) -> u64 {
        self.own.memory(0) + self.masks.memory(0) + self.link_bytes
    }
}

impl Merge {
    /// Takes the next entry of a layer, in the order of the tar.
    pub fn apply(&mut self, layer: &mut LayerTree, entry: &Entry) -> Result<Decision, TreeError> {
        self.check_memory(layer)?;
        let number = layer.entries;
        layer.entries = number.checked_add(1).ok_or(TreeError::Full)?;
        let components = path::clean(&entry.path, &self.options.budget)?;
        let meaning = match self.options.whole_tree {
            true => path::literal(components),
            false => path::meaning(components)?,
        };
        match meaning {
            Meaning::Root => self.apply_root(layer, entry),
            Meaning::Whiteout(hidden) => self.mask(layer, &hidden, |mask| mask.whiteout = true),
            Meaning::Opaque(directory) => self.mask(layer, &directory, |mask| mask.opaque = true),
            Meaning::Bookkeeping => Ok(Decision::Skip),
            // How overlayfs writes a whiteout; emitted, it would be one again wherever the image is a lower layer.
            Meaning::Node(hidden)
                if entry.kind == EntryKind::CharacterDevice(0, 0) && !self.options.whole_tree =>
            {
                self.mask(layer, &hidden, |mask| mask.whiteout = true)
            }
            Meaning::Node(path) => self.place(layer, path, entry, number),
            Meaning::LinkPool(path) => match entry.kind {
                EntryKind::File { .. } | EntryKind::HardLink(_) => {
                    self.place(layer, path, entry, number).map(|_| Decision::Skip)
                }
                _ => Ok(Decision::Skip),
            },
        }
    }

    /// An entry for `/` itself: `tar -C "$(mktemp -d)" .` writes one with mode 0700, so it counts only when asked for.
    fn apply_root(&mut self, layer: &mut LayerTree, entry: &Entry) -> Result<Decision, TreeError> {
        if entry.kind != EntryKind::Directory {
            return Err(TreeError::RootNotDirectory);
        }
        if self.options.root_meta || self.options.whole_tree {
            let mut meta = self.metas.take(entry, self.options.keep_trusted_xattrs)?;
            if self.options.whole_tree {
                // A tree made in a temporary directory is 0700, and nobody but its owner could enter the image.
                meta.mode |= 0o755;
            }
            *layer.own.get_mut(ROOT) = Own::Directory(Some(self.metas.add_directory(meta)?));
        }
        Ok(Decision::Skip)
    }

    /// Whiteouts mean what they say: no symbolic link is followed, no directory made.
    fn mask(
        &mut self,
        layer: &mut LayerTree,
        path: &[&[u8]],
        set: impl FnOnce(&mut Mask),
    ) -> Result<Decision, TreeError> {
        let mut node = ROOT;
        for component in path {
            let name = self.names.intern(component)?;
            node = layer.masks.child_or_insert(node, name, Mask::default())?;
        }
        set(layer.masks.get_mut(node));
        Ok(Decision::Skip)
    }

    fn place(
        &mut self,
        layer: &mut LayerTree,
        mut components: Components<'_>,
        entry: &Entry,
        number: u32,
    ) -> Result<Decision, TreeError> {
        let name = self.names.intern(components.pop().unwrap_or_default())?;
        let mut path = self.resolve(layer, &components)?;
        let parent = self.make_directories(layer, &path)?;
        path.push(name);
        let leaf = match &entry.kind {
            EntryKind::Directory => {
                let meta = self.metas.take(entry, self.options.keep_trusted_xattrs)?;
                let directory = Own::Directory(Some(self.metas.add_directory(meta)?));
                // A directory that is there already keeps its children.
                let node = self.own_child(layer, parent, name, directory)?;
                *layer.own.get_mut(node) = directory;
                return Ok(Decision::Skip);
            }
            EntryKind::HardLink(target) => self.link_target(layer, &path, target)?,
            _ => {
                let meta = self.metas.take(entry, self.options.keep_trusted_xattrs)?;
                let kind = self.leaf_kind(entry, number)?;
                if let LeafKind::Symlink(target) = kind {
                    layer.written.add(Written::target(self.names.get(target).len()));
                }
                self.leaves.add(meta, kind)?
            }
        };
        let node = self.own_child(layer, parent, name, Own::Leaf(leaf))?;
        layer.own.drop_children(node);
        *layer.own.get_mut(node) = Own::Leaf(leaf);
        let has_data = matches!(entry.kind, EntryKind::File { .. });
        Ok(if has_data && self.is_visible(&path) { Decision::Store(leaf) } else { Decision::Skip })
    }

    fn leaf_kind(&mut self, entry: &Entry, number: u32) -> Result<LeafKind, TreeError> {
        Ok(match &entry.kind {
            EntryKind::Symlink(target) => {
                let limit = self.options.budget.target_bytes;
                if target.is_empty() || target.len() > limit || target.contains(&0) {
                    return Err(TreeError::Target { limit });
                }
                LeafKind::Symlink(self.names.intern(target)?)
            }
            EntryKind::CharacterDevice(major, minor) => LeafKind::CharacterDevice(*major, *minor),
            EntryKind::BlockDevice(major, minor) => LeafKind::BlockDevice(*major, *minor),
            EntryKind::Fifo => LeafKind::Fifo,
            EntryKind::File { .. } => LeafKind::Unread(number),
            // Neither reaches this function.
            EntryKind::Directory | EntryKind::HardLink(_) => LeafKind::Unresolved,
        })
    }

    /// The inode a hard link shares: one of this layer, else a promise that a layer below has to keep.
    fn link_target(
        &mut self,
        layer: &mut LayerTree,
        link: &[NameId],
        target: &[u8],
    ) -> Result<LeafId, TreeError> {
        let to_directory =
            |merge: &Merge| TreeError::LinkToDirectory { link: merge.join(link), target: target.to_vec() };
        let mut components = path::clean(target, &self.options.budget)?;
        let Some(last) = components.pop() else { return Err(to_directory(self)) };
        let last = self.names.intern(last)?;
        let mut path = self.resolve(layer, &components)?;
        path.push(last);
        match layer.own.find(&path).map(|node| *layer.own.get(node)) {
            Some(Own::Leaf(leaf)) => Ok(leaf),
            Some(Own::Directory(_)) => Err(to_directory(self)),
            None if self.is_below_leaf(layer, &path) => {
                Err(TreeError::LinkMissing { link: self.join(link), target: target.to_vec() })
            }
            None => {
                let leaf = self.leaves.add(Meta::shared(), LeafKind::Unresolved)?;
                let link = Link { leaf, path: link.to_vec(), target: path, fallback: None };
                layer.link_bytes += link.memory();
                layer.links.push(link);
                Ok(leaf)
            }
        }
    }

    /// Whether a proper ancestor of `path` is no directory in this layer.
    pub(super) fn is_below_leaf(&self, layer: &LayerTree, path: &[NameId]) -> bool {
        let mut node = ROOT;
        for name in path {
            match layer.own.get(node) {
                Own::Leaf(_) => return true,
                Own::Directory(_) => match layer.own.child(node, *name) {
                    Some(child) => node = child,
                    None => return false,
                },
            }
        }
        false
    }

    /// Where a path leads inside this layer: symbolic links of this layer are followed and cannot leave the image;
    /// those of other layers are unknown to it, as they are to a runtime that unpacks every layer on its own.
    fn resolve(&mut self, layer: &LayerTree, components: &[&[u8]]) -> Result<Vec<NameId>, TreeError> {
        let mut todo = Vec::with_capacity(components.len());
        for component in components.iter().rev() {
            todo.push(Step::Down(self.names.intern(component)?));
        }
        let budget = self.options.budget;
        // Names so far, each with this layer's node for it, if it has one.
        let mut walked: Vec<(NameId, Option<NodeId>)> = Vec::with_capacity(components.len());
        let (mut links, mut steps) = (0, 0);
        while let Some(step) = todo.pop() {
            steps += 1;
            match step {
                Step::Root => walked.clear(),
                Step::Up => drop(walked.pop()),
                Step::Down(name) => {
                    let parent = walked.last().map_or(Some(ROOT), |(_, node)| *node);
                    let node = parent.and_then(|parent| layer.own.child(parent, name));
                    match node.and_then(|node| self.symlink_at(layer, node)) {
                        None => walked.push((name, node)),
                        Some(target) => {
                            links += 1;
                            self.push_steps(target, &mut todo)?;
                        }
                    }
                }
            }
            if links > SYMLINKS_MAX || steps > STEPS_MAX {
                return Err(TreeError::SymlinkLoop);
            }
            // The name itself comes on top.
            budget.check_len(Limit::Depth, walked.len() + 1)?;
        }
        // With room for the name itself and no more: paths of links stay, and collecting in place would keep the room of
        // what was walked.
        let mut path = Vec::with_capacity(walked.len() + 1);
        path.extend(walked.into_iter().map(|(name, _)| name));
        Ok(path)
    }

    /// The target, if this layer has a symbolic link there.
    fn symlink_at(&self, layer: &LayerTree, node: NodeId) -> Option<NameId> {
        match layer.own.get(node) {
            Own::Directory(_) => None,
            Own::Leaf(leaf) => match self.leaves.get(*leaf).kind {
                LeafKind::Symlink(target) => Some(target),
                _ => None,
            },
        }
    }

    fn push_steps(&mut self, target: NameId, todo: &mut Vec<Step>) -> Result<(), TreeError> {
        let target = self.names.get(target).to_vec();
        for component in target.split(|byte| *byte == b'/').rev() {
            if todo.len() > STEPS_MAX {
                return Err(TreeError::SymlinkLoop);
            }
            match component {
                b"" | b"." => {}
                b".." => todo.push(Step::Up),
                name => todo.push(Step::Down(self.names.intern(name)?)),
            }
        }
        if target.starts_with(b"/") {
            todo.push(Step::Root);
        }
        Ok(())
    }

    /// A node of the layer's own tree, new or known.
    fn own_child(
        &self,
        layer: &mut LayerTree,
        parent: NodeId,
        name: NameId,
        value: Own,
    ) -> Result<NodeId, TreeError> {
        let before = layer.own.count();
        let node = layer.own.child_or_insert(parent, name, value)?;
        if layer.own.count() > before {
            layer.written.add(Written::name(self.names.get(name).len()));
        }
        Ok(node)
    }

    /// Makes the directories of a resolved path that are missing.
    fn make_directories(&self, layer: &mut LayerTree, path: &[NameId]) -> Result<NodeId, TreeError> {
        let mut node = ROOT;
        for name in path {
            node = self.own_child(layer, node, *name, Own::Directory(None))?;
            if let Own::Leaf(_) = layer.own.get(node) {
                let path = layer.own.path(node);
                return Err(TreeError::ParentNotDirectory(self.join(&path)));
            }
        }
        Ok(node)
    }
}

/// What is left to walk.
enum Step {
    Root,
    Up,
    Down(NameId),
}
