//! The merged tree as the squashfs writer wants it.

use super::TreeError;
use super::leaf::{LeafId, LeafKind, Leaves};
use super::merge::{Merge, MergedKind};
use super::meta::{Meta, Notes};
use super::nodes::{NodeId, ROOT};
use crate::squashfs::writer::{Inode, InodeIndex, InodeKind, Tree};

impl Merge {
    /// The finished tree, after the lowest layer. Equal layers give equal trees, inode for inode.
    pub fn finish(mut self) -> Result<(Tree, Notes), TreeError> {
        for link in std::mem::take(&mut self.pending) {
            self.bind_fallback(&link)?;
        }
        self.merged.forget_names();
        let root = self.build_directory(ROOT);
        let mut tree = Tree { inodes: vec![root], root: 0 };
        let mut inode_of: Vec<Option<InodeIndex>> = vec![None; self.leaves.count()];
        let mut todo = vec![(ROOT, 0)];
        while let Some((node, index)) = todo.pop() {
            let mut entries = Vec::new();
            for (name, child) in self.sorted_children(node) {
                let index = match self.merged.get(child).kind {
                    MergedKind::Ghost | MergedKind::White => continue,
                    MergedKind::Directory => {
                        let inode = self.build_directory(child);
                        let index = push(&mut tree, inode)?;
                        todo.push((child, index));
                        index
                    }
                    MergedKind::Leaf(leaf) => self.leaf_inode(leaf, &mut tree, &mut inode_of)?,
                };
                entries.push((name, index));
            }
            if let Some(inode) = tree.inodes.get_mut(index as usize) {
                inode.kind = InodeKind::Directory(entries);
            }
        }
        Ok((tree, self.metas.notes))
    }

    fn sorted_children(&self, node: NodeId) -> Vec<(Vec<u8>, NodeId)> {
        let named = |(name, child)| (self.names.get(name).to_vec(), child);
        let mut children: Vec<_> = self.merged.children(node).map(named).collect();
        children.sort_unstable();
        children
    }

    fn build_directory(&mut self, node: NodeId) -> Inode {
        let implied = Meta::implied(self.options.implied_mtime);
        let meta = self.metas.directory(self.merged.get(node).meta).unwrap_or(implied);
        self.build(InodeKind::Directory(Vec::new()), &meta)
    }

    fn leaf_inode(
        &mut self,
        leaf: LeafId,
        tree: &mut Tree,
        inode_of: &mut [Option<InodeIndex>],
    ) -> Result<InodeIndex, TreeError> {
        // A link can only be unresolved here when its fallback leads back to it.
        let leaf = self.leaves.resolve(leaf).ok_or(TreeError::LinkCycle)?;
        let known = inode_of.get_mut(Leaves::position(leaf)).ok_or(TreeError::Full)?;
        if let Some(index) = known {
            return Ok(*index);
        }
        let found = *self.leaves.get(leaf);
        let kind = match found.kind {
            LeafKind::Stored(file) => InodeKind::File(file),
            LeafKind::Symlink(target) => InodeKind::Symlink(self.names.get(target).to_vec()),
            LeafKind::BlockDevice(major, minor) => InodeKind::BlockDevice(major, minor),
            LeafKind::CharacterDevice(major, minor) => InodeKind::CharacterDevice(major, minor),
            LeafKind::Fifo => InodeKind::Fifo,
            LeafKind::Unread(_) | LeafKind::Unresolved | LeafKind::Same(_) => {
                return Err(TreeError::NotStored);
            }
        };
        let inode = self.build(kind, &found.meta);
        let index = push(tree, inode)?;
        *known = Some(index);
        Ok(index)
    }

    fn build(&mut self, kind: InodeKind, meta: &Meta) -> Inode {
        let xattrs = self.metas.move_xattrs(meta);
        Inode { kind, mode: meta.mode, uid: meta.uid, gid: meta.gid, mtime: meta.mtime, xattrs }
    }
}

fn push(tree: &mut Tree, inode: Inode) -> Result<InodeIndex, TreeError> {
    let index = InodeIndex::try_from(tree.inodes.len()).map_err(|_| TreeError::Full)?;
    tree.inodes.push(inode);
    Ok(index)
}
