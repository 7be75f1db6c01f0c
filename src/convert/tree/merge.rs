//! Lays one layer under the result of those above it.
//!
//! The result is a tree whose nodes also remember what may *not* come from below: a node without an entry ("ghost") may
//! carry a seal for layers to come, a "white" one is a name that a whiteout closed for good.

use std::collections::BTreeMap;

use super::TreeError;
use super::layer::{LayerTree, Link, Mask, Own};
use super::leaf::{LeafId, LeafKind, Leaves};
use super::memory::{self, Written};
use super::meta::{MetaId, Metas};
use super::names::{NameId, Names};
use super::nodes::{NodeId, Nodes, ROOT};
use crate::convert::budget::{Budget, Limit};
use crate::convert::layer::path;
use crate::squashfs::writer::FileId;

/// Choices of a merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MergeOptions {
    /// Limits for names and memory.
    pub budget: Budget,
    /// Whether entries for `/` set its mode and owner; else it is 0755, root's.
    pub root_meta: bool,
    /// Whether the one layer is a root file system as it stands: `.wh.x` is a file of that name, an entry for `/` counts.
    pub whole_tree: bool,
    /// Whether `trusted.*` attributes stay (those of overlayfs never do).
    pub keep_trusted_xattrs: bool,
    /// Modification time of directories without an entry, seconds since the epoch.
    pub implied_mtime: u32,
}

/// Files of the layer just ended whose data was passed over and is needed after all, by entry number: their own name is
/// hidden but another hard link is not.
pub type Rescan = BTreeMap<u32, LeafId>;

/// The result so far, and everything all layers refer to.
#[derive(Debug)]
pub struct Merge {
    pub(super) options: MergeOptions,
    pub(super) names: Names,
    pub(super) metas: Metas,
    pub(super) leaves: Leaves,
    pub(super) merged: Nodes<Merged>,
    /// Hard links of layers above that look for their target.
    pub(super) pending: Vec<Link>,
    pending_bytes: u64,
    /// What the result so far will take when it is written, attributes apart.
    written: Written,
    /// Files whose data is stored.
    stored: usize,
    /// Memory of others that the budget must cover while layers are merged, bytes.
    held: u64,
}

/// A node of the result.
#[derive(Debug, Clone, Copy)]
pub(super) struct Merged {
    pub(super) kind: MergedKind,
    /// A directory's, from the topmost entry for it.
    pub(super) meta: Option<MetaId>,
    /// Nothing below this node comes from layers still to come.
    pub(super) seal_children: bool,
    /// Nor does its metadata.
    pub(super) seal_meta: bool,
}

/// What a node of the result is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MergedKind {
    /// Nothing yet.
    Ghost,
    Directory,
    Leaf(LeafId),
    /// Nothing, ever.
    White,
}

impl Merged {
    const GHOST: Merged =
        Merged { kind: MergedKind::Ghost, meta: None, seal_children: false, seal_meta: false };
}

impl Merge {
    /// Nothing merged yet.
    pub fn new(options: MergeOptions) -> Merge {
        let root = Merged { kind: MergedKind::Directory, ..Merged::GHOST };
        Merge {
            options,
            names: Names::default(),
            metas: Metas::default(),
            leaves: Leaves::default(),
            merged: Nodes::new(root),
            pending: Vec::new(),
            pending_bytes: 0,
            written: Written::default(),
            stored: 0,
            held: 0,
        }
    }

    /// Begins the next layer down.
    pub fn begin_layer(&self) -> LayerTree {
        LayerTree::new(self.metas.notes)
    }

    /// Gives up a layer that is going to be read again: nothing of it is part of the result.
    pub fn abandon_layer(&mut self, layer: LayerTree) {
        self.metas.notes = layer.notes_before;
    }

    /// The data of a file is stored.
    pub fn store(&mut self, leaf: LeafId, file: FileId) {
        self.leaves.set_kind(leaf, LeafKind::Stored(file));
        self.stored += 1;
    }

    /// Tells how much memory decoders hold while the next entry is taken, bytes.
    pub fn hold(&mut self, held: u64) {
        self.held = held;
    }

    /// Ends a layer: binds hard links, lays it under the result, lets its whiteouts act on the layers below.
    pub fn end_layer(&mut self, mut layer: LayerTree) -> Result<Rescan, TreeError> {
        let mut rescan = Rescan::new();
        self.find_fallbacks(&mut layer, &mut rescan);
        self.bind_pending(&layer, &mut rescan)?;
        let mut staged = self.lay_under(&layer, &mut rescan)?;
        self.apply_masks(&layer.masks, &mut staged)?;
        for node in staged {
            let node = self.merged.get_mut(node);
            (node.seal_children, node.seal_meta) = (true, true);
        }
        self.pending.append(&mut layer.links);
        self.pending_bytes = self.pending.iter().map(Link::memory).sum();
        Ok(rescan)
    }

    /// Whether a file at this path would be part of the result.
    pub(super) fn is_visible(&self, path: &[NameId]) -> bool {
        let mut node = ROOT;
        for name in path {
            if self.merged.get(node).seal_children {
                return false;
            }
            let Some(child) = self.merged.child(node, *name) else { return true };
            match self.merged.get(child).kind {
                MergedKind::Ghost | MergedKind::Directory => node = child,
                MergedKind::Leaf(_) | MergedKind::White => return false,
            }
        }
        self.merged.get(node).kind == MergedKind::Ghost
    }

    /// Fails when names and inodes take more memory than they may.
    pub(super) fn check_memory(&self, layer: &LayerTree) -> Result<(), TreeError> {
        let used = self.merging(layer).max(self.writing(layer)) + memory::stored(self.stored);
        Ok(self.options.budget.check(Limit::TreeBytes, used)?)
    }

    /// Memory when `layer` is laid under the result, what decoders hold included, bytes.
    fn merging(&self, layer: &LayerTree) -> u64 {
        let added = layer.own.count() + layer.masks.count();
        let merged = self.merged.memory(added) + (added * size_of::<(u32, LeafId)>()) as u64;
        let links = layer.memory() + self.pending_bytes;
        self.shared() + self.metas.xattrs_written.tree + merged + links + self.held
    }

    /// Memory when the tree is made, or when it is written, if all there is belongs to it, bytes.
    fn writing(&self, layer: &LayerTree) -> u64 {
        let mut written = self.metas.xattrs_written;
        written.add(self.written);
        written.add(layer.written);
        let nodes = self.merged.count() + layer.own.count() + layer.masks.count();
        let merge = self.shared() + self.pending_bytes + (nodes * Nodes::<Merged>::NODE_SIZE) as u64;
        written.tree + written.tables.max(merge)
    }

    fn shared(&self) -> u64 {
        self.names.memory() + self.metas.memory() + self.leaves.memory()
    }

    /// A path for messages.
    pub(super) fn join(&self, path: &[NameId]) -> Vec<u8> {
        path::join(path.iter().map(|name| self.names.get(*name)))
    }

    /// A link may stand before its target in the tar, which strictly means the target of the layers below. Only if they
    /// have none it is the later entry.
    fn find_fallbacks(&mut self, layer: &mut LayerTree, rescan: &mut Rescan) {
        for link in &mut layer.links {
            if let Some(Own::Leaf(leaf)) = layer.own.find(&link.target).map(|node| *layer.own.get(node))
                && leaf != link.leaf
            {
                link.fallback = Some(leaf);
                need(&self.leaves, leaf, rescan);
            }
        }
    }

    /// Looks for the targets of the links from above. What this layer hides, it hides from them too, but its own
    /// entries come first.
    fn bind_pending(&mut self, layer: &LayerTree, rescan: &mut Rescan) -> Result<(), TreeError> {
        for link in std::mem::take(&mut self.pending) {
            match layer.own.find(&link.target).map(|node| *layer.own.get(node)) {
                Some(Own::Leaf(leaf)) => {
                    self.leaves.set_kind(link.leaf, LeafKind::Same(leaf));
                    need(&self.leaves, leaf, rescan);
                }
                Some(Own::Directory(_)) if link.fallback.is_none() => {
                    let (link, target) = (self.join(&link.path), self.join(&link.target));
                    return Err(TreeError::LinkToDirectory { link, target });
                }
                None if !hides(layer, &link.target) && !self.is_below_leaf(layer, &link.target) => {
                    self.pending.push(link);
                }
                _ => self.bind_fallback(&link)?,
            }
        }
        Ok(())
    }

    /// No layer below has the target.
    pub(super) fn bind_fallback(&mut self, link: &Link) -> Result<(), TreeError> {
        let Some(fallback) = link.fallback else {
            return Err(TreeError::LinkMissing {
                link: self.join(&link.path),
                target: self.join(&link.target),
            });
        };
        self.leaves.set_kind(link.leaf, LeafKind::Same(fallback));
        Ok(())
    }

    /// The merge proper. Gives the directories under which this layer has something else: nothing below that belongs
    /// to them.
    fn lay_under(&mut self, layer: &LayerTree, rescan: &mut Rescan) -> Result<Vec<NodeId>, TreeError> {
        let mut staged = Vec::new();
        let mut todo = vec![(ROOT, ROOT)];
        while let Some((to, from)) = todo.pop() {
            let node = self.merged.get_mut(to);
            if let Own::Directory(meta) = layer.own.get(from)
                && node.meta.is_none()
                && !node.seal_meta
            {
                node.meta = *meta;
            }
            if node.seal_children {
                continue;
            }
            for (name, child) in layer.own.children(from) {
                if from == ROOT && !self.options.whole_tree && path::is_link_pool(self.names.get(name)) {
                    continue;
                }
                let to = self.merged.child_or_insert(to, name, Merged::GHOST)?;
                let node = self.merged.get_mut(to);
                match (layer.own.get(child), node.kind) {
                    (Own::Directory(_), MergedKind::Ghost) => {
                        node.kind = MergedKind::Directory;
                        self.written.add(Written::name(self.names.get(name).len()));
                        todo.push((to, child));
                    }
                    (Own::Directory(_), MergedKind::Directory) => todo.push((to, child)),
                    (Own::Leaf(leaf), MergedKind::Ghost) => {
                        node.kind = MergedKind::Leaf(*leaf);
                        self.written.add(Written::name(self.names.get(name).len()));
                        if let LeafKind::Symlink(target) = self.leaves.get(*leaf).kind {
                            self.written.add(Written::target(self.names.get(target).len()));
                        }
                        need(&self.leaves, *leaf, rescan);
                    }
                    (Own::Leaf(_), MergedKind::Directory) => staged.push(to),
                    (_, MergedKind::Leaf(_) | MergedKind::White) => {}
                }
            }
        }
        Ok(staged)
    }

    /// Whiteouts and opaque directories close the result to the layers below, never below something that is closed.
    fn apply_masks(&mut self, masks: &Nodes<Mask>, staged: &mut Vec<NodeId>) -> Result<(), TreeError> {
        let mut todo = vec![(ROOT, ROOT)];
        while let Some((to, from)) = todo.pop() {
            let mask = masks.get(from);
            let node = self.merged.get_mut(to);
            match node.kind {
                MergedKind::Leaf(_) | MergedKind::White => continue,
                MergedKind::Ghost if mask.whiteout => {
                    node.kind = MergedKind::White;
                    continue;
                }
                MergedKind::Directory if mask.whiteout => staged.push(to),
                MergedKind::Ghost | MergedKind::Directory => {}
            }
            node.seal_children |= mask.opaque;
            if node.seal_children {
                continue;
            }
            for (name, child) in masks.children(from) {
                todo.push((self.merged.child_or_insert(to, name, Merged::GHOST)?, child));
            }
        }
        Ok(())
    }
}

impl Link {
    /// Memory in use, bytes.
    pub(super) fn memory(&self) -> u64 {
        let paths =
            memory::allocated(size_of_val(&*self.path)) + memory::allocated(size_of_val(&*self.target));
        // Half as much again: what is freed between two links is often too small for the next (measured: a third).
        paths / 2 * 3 + 2 * size_of::<Link>() as u64
    }
}

/// A leaf has become part of the result: its data must be there.
fn need(leaves: &Leaves, leaf: LeafId, rescan: &mut Rescan) {
    if let LeafKind::Unread(entry) = leaves.get(leaf).kind {
        rescan.insert(entry, leaf);
    }
}

/// Whether a layer's whiteouts hide a path of the layers below it.
fn hides(layer: &LayerTree, path: &[NameId]) -> bool {
    let mut node = ROOT;
    for name in path {
        if layer.masks.get(node).opaque {
            return true;
        }
        match layer.masks.child(node, *name) {
            Some(child) if layer.masks.get(child).whiteout => return true,
            Some(child) => node = child,
            None => return false,
        }
    }
    false
}
