//! Inodes that are no directories, shared by all names that are hard links of each other.

use super::TreeError;
use super::meta::Meta;
use super::names::NameId;
use crate::squashfs::writer::FileId;

/// An inode that is no directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeafId(u32);

#[derive(Debug, Clone, Copy)]
pub(super) struct Leaf {
    pub(super) meta: Meta,
    pub(super) kind: LeafKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeafKind {
    /// A regular file whose data is stored.
    Stored(FileId),
    /// A regular file whose data was passed over: the entry's number in its layer.
    Unread(u32),
    Symlink(NameId),
    BlockDevice(u32, u32),
    CharacterDevice(u32, u32),
    Fifo,
    /// A hard link whose target is not known yet.
    Unresolved,
    /// A hard link whose target is that.
    Same(LeafId),
}

/// All leaves of all layers.
#[derive(Debug, Default)]
pub(super) struct Leaves(Vec<Leaf>);

impl Leaves {
    pub(super) fn add(&mut self, meta: Meta, kind: LeafKind) -> Result<LeafId, TreeError> {
        let id = u32::try_from(self.0.len()).map_err(|_| TreeError::Full)?;
        self.0.push(Leaf { meta, kind });
        Ok(LeafId(id))
    }

    #[expect(clippy::indexing_slicing, reason = "ids are handed out by this array, which never shrinks")]
    pub(super) fn get(&self, id: LeafId) -> &Leaf {
        &self.0[id.0 as usize]
    }

    #[expect(clippy::indexing_slicing, reason = "ids are handed out by this array, which never shrinks")]
    pub(super) fn set_kind(&mut self, id: LeafId, kind: LeafKind) {
        self.0[id.0 as usize].kind = kind;
    }

    /// The inode behind a name: follows hard links and shortens the way for the next time. None for a link that is
    /// unresolved or leads to itself.
    pub(super) fn resolve(&mut self, id: LeafId) -> Option<LeafId> {
        let mut end = id;
        let mut steps = 0;
        while let LeafKind::Same(next) = self.get(end).kind {
            end = next;
            steps += 1;
            if steps > self.0.len() {
                return None;
            }
        }
        let mut shortened = id;
        while let LeafKind::Same(next) = self.get(shortened).kind {
            self.set_kind(shortened, LeafKind::Same(end));
            shortened = next;
        }
        (self.get(end).kind != LeafKind::Unresolved).then_some(end)
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// Position of a leaf among all.
    pub(super) fn position(id: LeafId) -> usize {
        id.0 as usize
    }

    /// Memory in use, bytes.
    pub(super) fn memory(&self) -> u64 {
        (self.0.len() * size_of::<Leaf>()) as u64
    }
}
