//! A tree of names in one array: no pointer, no recursion, 24 bytes a node beside its value.

use std::collections::HashMap;

use super::TreeError;
use super::memory;
use super::names::NameId;

/// Position of a node.
pub(super) type NodeId = u32;

/// The root of every tree.
pub(super) const ROOT: NodeId = 0;

/// No node.
const NONE: NodeId = u32::MAX;

/// Nodes with a value each; children are found by name and listed in a chain, newest first.
#[derive(Debug)]
pub(super) struct Nodes<T> {
    nodes: Vec<Node<T>>,
    index: HashMap<(NodeId, NameId), NodeId>,
}

#[derive(Debug)]
struct Node<T> {
    parent: NodeId,
    /// None only for the root.
    name: Option<NameId>,
    first_child: NodeId,
    next_sibling: NodeId,
    value: T,
}

impl<T> Nodes<T> {
    /// Bytes of a node, without its share of the index.
    pub(super) const NODE_SIZE: usize = size_of::<Node<T>>();

    /// A tree that is only a root.
    pub(super) fn new(root: T) -> Nodes<T> {
        let root = Node { parent: NONE, name: None, first_child: NONE, next_sibling: NONE, value: root };
        Nodes { nodes: vec![root], index: HashMap::new() }
    }

    pub(super) fn get(&self, id: NodeId) -> &T {
        &self.node(id).value
    }

    pub(super) fn get_mut(&mut self, id: NodeId) -> &mut T {
        &mut self.node_mut(id).value
    }

    pub(super) fn child(&self, parent: NodeId, name: NameId) -> Option<NodeId> {
        self.index.get(&(parent, name)).copied()
    }

    /// The child of that name; a new one with `value` where there is none.
    pub(super) fn child_or_insert(
        &mut self,
        parent: NodeId,
        name: NameId,
        value: T,
    ) -> Result<NodeId, TreeError> {
        if let Some(child) = self.child(parent, name) {
            return Ok(child);
        }
        let id = NodeId::try_from(self.nodes.len()).ok().filter(|id| *id != NONE).ok_or(TreeError::Full)?;
        let next_sibling = std::mem::replace(&mut self.node_mut(parent).first_child, id);
        self.nodes.push(Node { parent, name: Some(name), first_child: NONE, next_sibling, value });
        self.index.insert((parent, name), id);
        Ok(id)
    }

    /// Takes all children off a node. They keep their place in memory but cannot be reached any more.
    pub(super) fn drop_children(&mut self, parent: NodeId) {
        let mut child = std::mem::replace(&mut self.node_mut(parent).first_child, NONE);
        while child != NONE {
            let node = self.node(child);
            let (name, next) = (node.name, node.next_sibling);
            if let Some(name) = name {
                self.index.remove(&(parent, name));
            }
            child = next;
        }
    }

    /// Names and positions of a node's children, newest first.
    pub(super) fn children(&self, parent: NodeId) -> impl Iterator<Item = (NameId, NodeId)> + '_ {
        let mut next = self.node(parent).first_child;
        std::iter::from_fn(move || {
            let id = next;
            let node = (id != NONE).then(|| self.node(id))?;
            next = node.next_sibling;
            Some((node.name?, id))
        })
    }

    /// The names from the root to a node.
    pub(super) fn path(&self, mut id: NodeId) -> Vec<NameId> {
        let mut path = Vec::new();
        while let Some(name) = self.node(id).name {
            path.push(name);
            id = self.node(id).parent;
        }
        path.reverse();
        path
    }

    /// The node at a path, without following anything.
    pub(super) fn find(&self, path: &[NameId]) -> Option<NodeId> {
        path.iter().try_fold(ROOT, |node, name| self.child(node, *name))
    }

    /// How many nodes there are, the unreachable ones included.
    pub(super) fn count(&self) -> usize {
        self.nodes.len()
    }

    /// Memory in use once there are `more` nodes, bytes.
    pub(super) fn memory(&self, more: usize) -> u64 {
        let nodes = (self.nodes.len() + more) * Self::NODE_SIZE;
        let index = memory::table(
            self.index.capacity(),
            self.index.len() + more + 1,
            size_of::<((NodeId, NameId), NodeId)>(),
        );
        nodes as u64 + index
    }

    /// Frees the index; children can only be listed from here on.
    pub(super) fn forget_names(&mut self) {
        self.index = HashMap::new();
    }

    #[expect(clippy::indexing_slicing, reason = "ids are handed out by this array, which never shrinks")]
    fn node(&self, id: NodeId) -> &Node<T> {
        &self.nodes[id as usize]
    }

    #[expect(clippy::indexing_slicing, reason = "ids are handed out by this array, which never shrinks")]
    fn node_mut(&mut self, id: NodeId) -> &mut Node<T> {
        &mut self.nodes[id as usize]
    }
}
