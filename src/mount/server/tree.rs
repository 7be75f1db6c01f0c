//! The tree that is served: the image with its grafts, addressed by node ids that need no table.
//!
//! A node id says by itself what it names, so that a restarted server knows every id its predecessor gave out: the
//! position of an inode in the image, or (bit 63) the index of a graft.

use std::ops::ControlFlow;
use std::sync::Arc;

use nix::errno::Errno;

use super::protocol::{Attributes, ListedEntry, ROOT_ID, UNKNOWN_INODE};
use super::trouble;
use crate::mount::graft::{self, Grafts, NodeIndex, NodeKind};
use crate::squashfs::format::{InodeRef, inode_type};
use crate::squashfs::reader::{Entry, Filesystem, Inode, InodeKind, ReadError, Xattr};

/// Set in the node id of a graft.
const GRAFT_BIT: u64 = 1 << 63;
/// First node id of an inode of the image: 0 means "no such name", 1 is the root.
const FIRST_IMAGE_ID: u64 = 2;
/// Longest name a squashfs directory can hold; longer ones are refused as the kernel's squashfs does.
const NAME_MAX: usize = 256;

/// Directory positions: 0 is the start, 1 after `.`, 2 after `..`, then the image's entries, then grafts.
const AFTER_DOT: u64 = 1;
const AFTER_DOT_DOT: u64 = 2;
/// Set in the position after a graft's entry; the image's positions are far below.
const GRAFT_POSITION: u64 = 1 << 62;

/// The image with its grafts.
#[derive(Debug)]
pub(super) struct Tree {
    image: Filesystem,
    grafts: Grafts,
}

/// What a node id names.
#[derive(Debug, Clone, Copy)]
pub(super) enum Node<'a> {
    /// An inode of the image.
    Image(InodeRef),
    /// A node of the graft tree.
    Graft(NodeIndex, &'a graft::Node),
}

/// A name found: its node id and attributes.
pub(super) type Found = (u64, Attributes);

/// An entry offered to the listing, with a way to its attributes.
pub(super) struct Offer<'a> {
    pub(super) entry: ListedEntry<'a>,
    target: Target,
}

/// What an offered entry leads to.
#[derive(Clone, Copy)]
enum Target {
    /// `.` and `..`: attributes are never sent.
    Itself,
    Image(InodeRef),
    Graft(NodeIndex),
}

/// A corrupt or unreadable image is `EIO` for the one who asked; the kernel caches no error.
pub(super) fn unreadable(error: ReadError) -> Errno {
    trouble::note(error);
    Errno::EIO
}

impl Tree {
    pub(super) fn new(image: Filesystem, grafts: Grafts) -> Tree {
        Tree { image, grafts }
    }

    pub(super) fn image(&self) -> &Filesystem {
        &self.image
    }

    /// What `id` names. Ids come from the kernel, which has them from here; another one is stale.
    pub(super) fn node(&self, id: u64) -> Result<Node<'_>, Errno> {
        if id & GRAFT_BIT != 0 {
            let index = NodeIndex::try_from(id & !GRAFT_BIT).map_err(|_| Errno::ESTALE)?;
            return self.graft(index);
        }
        match id {
            ROOT_ID if self.grafts.is_empty() => Ok(Node::Image(self.image.root())),
            ROOT_ID => self.graft(0),
            _ => id.checked_sub(FIRST_IMAGE_ID).map(|at| Node::Image(InodeRef(at))).ok_or(Errno::ESTALE),
        }
    }

    fn graft(&self, index: NodeIndex) -> Result<Node<'_>, Errno> {
        self.grafts.node(index).map(|node| Node::Graft(index, node)).ok_or(Errno::ESTALE)
    }

    pub(super) fn image_id(&self, inode: InodeRef) -> u64 {
        if inode == self.image.root() { ROOT_ID } else { inode.0.saturating_add(FIRST_IMAGE_ID) }
    }

    pub(super) fn inode(&self, reference: InodeRef) -> Result<Inode, Errno> {
        self.image.inode(reference).map_err(unreadable)
    }

    /// Attributes of a node.
    pub(super) fn attributes(&self, node: Node<'_>) -> Result<Attributes, Errno> {
        let own = match node {
            Node::Image(reference) => inode_attributes(&self.inode(reference)?),
            Node::Graft(index, node) => self.graft_attributes(index, node)?,
        };
        Ok(match self.grafts.owner() {
            None => own,
            Some((uid, gid)) => {
                Attributes { uid, gid, mode: own.mode & !(libc::S_ISUID | libc::S_ISGID), ..own }
            }
        })
    }

    /// Attributes of a graft: those of the directory it stands for, else the root's owner and the image's time.
    fn graft_attributes(&self, index: NodeIndex, node: &graft::Node) -> Result<Attributes, Errno> {
        let root = inode_attributes(&self.inode(self.image.root())?);
        let superblock = self.image.superblock();
        let added = Attributes {
            number: u64::from(superblock.inode_count) + 1 + index as u64,
            size: 0,
            mtime: u64::from(superblock.mkfs_time),
            mode: 0,
            nlink: 1,
            device: (0, 0),
            ..root
        };
        Ok(match &node.kind {
            NodeKind::File { mode, content } => {
                Attributes { size: content.len() as u64, mode: libc::S_IFREG | u32::from(*mode), ..added }
            }
            NodeKind::Symlink(target) => {
                Attributes { size: target.len() as u64, mode: libc::S_IFLNK | 0o777, ..added }
            }
            NodeKind::Directory { base, children } => {
                let own = match base {
                    Some(base) => inode_attributes(&self.inode(*base)?),
                    None => Attributes { mode: libc::S_IFDIR | 0o755, nlink: 2, ..added },
                };
                let children = children.values().filter_map(|child| self.grafts.node(*child));
                let nlink = children.fold(own.nlink, |nlink, child| {
                    match (matches!(child.kind, NodeKind::Directory { .. }), child.over_directory) {
                        (true, false) => nlink.saturating_add(1),
                        (false, true) => nlink.saturating_sub(1),
                        _ => nlink,
                    }
                });
                Attributes { nlink, ..own }
            }
        })
    }

    /// Finds `name` in a directory.
    pub(super) fn lookup(&self, directory: Node<'_>, name: &[u8]) -> Result<Option<Found>, Errno> {
        if name.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let base = match directory {
            Node::Image(reference) => Some(reference),
            Node::Graft(_, node) => {
                let NodeKind::Directory { base, children } = &node.kind else { return Err(Errno::ENOTDIR) };
                if let Some(child) = children.get(name) {
                    return self.target(Target::Graft(*child)).map(Some);
                }
                *base
            }
        };
        let Some(base) = base else { return Ok(None) };
        let InodeKind::Directory(listing) = self.inode(base)?.kind else { return Err(Errno::ENOTDIR) };
        match self.image.lookup(&listing, name).map_err(unreadable)? {
            Some(reference) => self.target(Target::Image(reference)).map(Some),
            None => Ok(None),
        }
    }

    fn target(&self, target: Target) -> Result<Found, Errno> {
        match target {
            Target::Itself => Err(Errno::ENOENT),
            Target::Image(reference) => {
                Ok((self.image_id(reference), self.attributes(Node::Image(reference))?))
            }
            Target::Graft(index) => Ok((GRAFT_BIT | index as u64, self.attributes(self.graft(index)?)?)),
        }
    }

    /// Node id and attributes of an offered entry; none for `.` and `..`, nor for an inode that cannot be read: the
    /// error then belongs to the one who asks for that name.
    pub(super) fn offered(&self, offer: &Offer<'_>) -> Option<Found> {
        self.target(offer.target).ok()
    }

    /// Offers the entries of a directory from `position` on, until one is not taken.
    pub(super) fn list(
        &self,
        directory: Node<'_>,
        position: u64,
        take: &mut dyn FnMut(Offer<'_>) -> ControlFlow<()>,
    ) -> Result<(), Errno> {
        let (base, children) = match directory {
            Node::Image(reference) => (Some(reference), None),
            Node::Graft(_, node) => {
                let NodeKind::Directory { base, children } = &node.kind else { return Err(Errno::ENOTDIR) };
                (*base, Some(children))
            }
        };
        let own = self.attributes(directory)?.number;
        let parent = if base == Some(self.image.root()) { own } else { self.parent_number(base)? };
        for (name, at, number) in [(&b"."[..], AFTER_DOT, own), (&b".."[..], AFTER_DOT_DOT, parent)] {
            let entry = ListedEntry { name, number, next: at, entry_type: u32::from(libc::DT_DIR) };
            if position < at && take(Offer { entry, target: Target::Itself }).is_break() {
                return Ok(());
            }
        }
        if let (Some(base), 0) = (base, position & GRAFT_POSITION) {
            let is_replaced = |name: &[u8]| children.is_some_and(|children| children.contains_key(name));
            if self.list_image(base, position, &is_replaced, take)?.is_break() {
                return Ok(());
            }
        }
        let first = if position & GRAFT_POSITION == 0 { 0 } else { position & !GRAFT_POSITION };
        for (ordinal, (name, index)) in (1u64..).zip(children.into_iter().flatten()) {
            let Some(node) = self.grafts.node(*index).filter(|_| ordinal > first) else { continue };
            let attributes = self.graft_attributes(*index, node)?;
            let entry = ListedEntry {
                name,
                number: attributes.number,
                next: GRAFT_POSITION | ordinal,
                entry_type: attributes.mode >> 12,
            };
            if take(Offer { entry, target: Target::Graft(*index) }).is_break() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// `d_ino` of `..`, which is of little use to anybody; an added directory does not know it.
    fn parent_number(&self, directory: Option<InodeRef>) -> Result<u64, Errno> {
        match directory.map(|reference| self.inode(reference)).transpose()?.map(|inode| inode.kind) {
            Some(InodeKind::Directory(listing)) => Ok(u64::from(listing.parent)),
            Some(_) => Err(Errno::ENOTDIR),
            None => Ok(UNKNOWN_INODE),
        }
    }

    /// Offers the image's own entries of a directory that no graft replaces.
    fn list_image(
        &self,
        base: InodeRef,
        position: u64,
        is_replaced: &dyn Fn(&[u8]) -> bool,
        take: &mut dyn FnMut(Offer<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Errno> {
        let InodeKind::Directory(listing) = self.inode(base)?.kind else { return Err(Errno::ENOTDIR) };
        let mut flow = ControlFlow::Continue(());
        let mut each = |entry: Entry<'_>| {
            if !is_replaced(entry.name) {
                let listed = ListedEntry {
                    name: entry.name,
                    number: u64::from(entry.number),
                    next: entry.next.saturating_add(AFTER_DOT_DOT),
                    entry_type: entry_type(entry.entry_type),
                };
                flow = take(Offer { entry: listed, target: Target::Image(entry.inode) });
            }
            flow
        };
        let cookie = position.saturating_sub(AFTER_DOT_DOT);
        self.image.read_directory(&listing, cookie, &mut each).map_err(unreadable)?;
        Ok(flow)
    }

    /// The target of a symbolic link.
    pub(super) fn link_target(&self, node: Node<'_>) -> Result<Arc<[u8]>, Errno> {
        match node {
            Node::Image(reference) => match self.inode(reference)?.kind {
                InodeKind::Symlink(target) => Ok(target),
                _ => Err(Errno::EINVAL),
            },
            Node::Graft(_, graft::Node { kind: NodeKind::Symlink(target), .. }) => Ok(Arc::clone(target)),
            Node::Graft(..) => Err(Errno::EINVAL),
        }
    }

    /// The xattrs that a job can read. `trusted.*` are not among them: the kernel shows those only to
    /// `CAP_SYS_ADMIN` in the first user namespace, and a list with names that cannot be read breaks `cp -a`.
    pub(super) fn xattrs(&self, node: Node<'_>) -> Result<Vec<Xattr>, Errno> {
        let reference = match node {
            Node::Image(reference) => reference,
            Node::Graft(_, graft::Node { kind: NodeKind::Directory { base: Some(base), .. }, .. }) => *base,
            Node::Graft(..) => return Ok(Vec::new()),
        };
        let Some(index) = self.inode(reference)?.xattr else { return Ok(Vec::new()) };
        let mut all = self.image.xattrs(index).map_err(unreadable)?;
        all.retain(|(name, _)| !name.starts_with(b"trusted."));
        Ok(all)
    }
}

fn inode_attributes(inode: &Inode) -> Attributes {
    let (file_type, size, device) = match &inode.kind {
        InodeKind::Directory(listing) => (libc::S_IFDIR, listing.size(), (0, 0)),
        InodeKind::File(layout) => (libc::S_IFREG, layout.size, (0, 0)),
        InodeKind::Symlink(target) => (libc::S_IFLNK, target.len() as u64, (0, 0)),
        InodeKind::BlockDevice(major, minor) => (libc::S_IFBLK, 0, (*major, *minor)),
        InodeKind::CharacterDevice(major, minor) => (libc::S_IFCHR, 0, (*major, *minor)),
        InodeKind::Fifo => (libc::S_IFIFO, 0, (0, 0)),
        InodeKind::Socket => (libc::S_IFSOCK, 0, (0, 0)),
    };
    Attributes {
        number: u64::from(inode.number),
        size,
        mtime: u64::from(inode.mtime),
        mode: file_type | u32::from(inode.mode),
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        device,
    }
}

/// `d_type` of a directory entry.
fn entry_type(squashfs: u16) -> u32 {
    u32::from(match squashfs {
        inode_type::DIRECTORY => libc::DT_DIR,
        inode_type::FILE => libc::DT_REG,
        inode_type::SYMLINK => libc::DT_LNK,
        inode_type::BLOCK_DEVICE => libc::DT_BLK,
        inode_type::CHARACTER_DEVICE => libc::DT_CHR,
        inode_type::FIFO => libc::DT_FIFO,
        inode_type::SOCKET => libc::DT_SOCK,
        _ => libc::DT_UNKNOWN,
    })
}
