//! What an inode carries besides its kind, and which extended attributes may stay.

use std::num::NonZeroU32;

use super::TreeError;
use super::memory::Written;
use crate::convert::layer::tar::Entry;

/// Extended attributes, full name and value.
pub(super) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Owner, mode and times, with the attributes kept elsewhere because few inodes have any.
#[derive(Debug, Clone, Copy)]
pub(super) struct Meta {
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: u32,
    /// `index + 1` into [`Metas::xattrs`].
    xattrs: Option<NonZeroU32>,
}

/// Metadata of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MetaId(NonZeroU32);

/// What was left out, for one warning at the end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Notes {
    /// Attributes that name the machine that made the image (SELinux, IMA, `trusted.*`) or steer overlayfs.
    pub dropped_xattrs: u64,
    /// Access control lists, which squashfs cannot hold.
    pub dropped_acls: u64,
}

/// All metadata that is referred to by number.
#[derive(Debug, Default)]
pub(super) struct Metas {
    directories: Vec<Meta>,
    xattrs: Vec<Xattrs>,
    /// What all attributes take; those of hidden entries stay until the end.
    pub(super) xattrs_written: Written,
    pub(super) notes: Notes,
}

impl Metas {
    /// The metadata of `entry`, with the attributes that may stay.
    pub(super) fn take(&mut self, entry: &Entry, keep_trusted: bool) -> Result<Meta, TreeError> {
        self.notes.dropped_acls += u64::from(entry.ignored_records);
        let mut kept = Xattrs::new();
        for (name, value) in &entry.xattrs {
            match fate(name, keep_trusted) {
                Fate::Keep => kept.push((name.clone(), value.clone())),
                Fate::Drop => self.notes.dropped_xattrs += 1,
                Fate::DropAcl => self.notes.dropped_acls += 1,
            }
        }
        let mut number = None;
        if !kept.is_empty() {
            self.xattrs_written.add(Written::xattrs(&kept));
            self.xattrs.push(kept);
            number = NonZeroU32::new(u32::try_from(self.xattrs.len()).map_err(|_| TreeError::Full)?);
        }
        Ok(Meta { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime, xattrs: number })
    }

    /// Keeps metadata of a directory.
    pub(super) fn add_directory(&mut self, meta: Meta) -> Result<MetaId, TreeError> {
        self.directories.push(meta);
        let number = u32::try_from(self.directories.len()).map_err(|_| TreeError::Full)?;
        NonZeroU32::new(number).map(MetaId).ok_or(TreeError::Full)
    }

    /// Metadata of a directory; none was ever given for one that is only implied.
    pub(super) fn directory(&self, id: Option<MetaId>) -> Option<Meta> {
        self.directories.get(id?.0.get() as usize - 1).copied()
    }

    /// Moves the attributes out: every inode is built once.
    pub(super) fn move_xattrs(&mut self, meta: &Meta) -> Xattrs {
        let xattrs = meta.xattrs.and_then(|number| self.xattrs.get_mut(number.get() as usize - 1));
        xattrs.map(std::mem::take).unwrap_or_default()
    }

    /// Memory in use, bytes, without the attributes.
    pub(super) fn memory(&self) -> u64 {
        (self.directories.len() * size_of::<Meta>() + self.xattrs.len() * size_of::<Xattrs>()) as u64
    }
}

impl Meta {
    /// Of a directory that no entry describes: root's, readable by everybody.
    pub(super) fn implied(mtime: u32) -> Meta {
        Meta { mode: 0o755, uid: 0, gid: 0, mtime, xattrs: None }
    }

    /// Of a name that shares another's inode.
    pub(super) fn shared() -> Meta {
        Meta::implied(0)
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Keep,
    Drop,
    DropAcl,
}

/// `user.*` and file capabilities stay. Labels of the machine that built the image mean nothing elsewhere, and marks of
/// overlayfs would act if the image file is ever a lower layer.
fn fate(name: &[u8], keep_trusted: bool) -> Fate {
    let is_overlay =
        [&b"user.overlay."[..], b"trusted.overlay."].iter().any(|prefix| name.starts_with(prefix));
    let has_name = |prefix: &[u8]| name.starts_with(prefix) && name.len() > prefix.len();
    if name.starts_with(b"system.posix_acl_") {
        Fate::DropAcl
    } else if is_overlay {
        Fate::Drop
    } else if has_name(b"user.") || name == b"security.capability" || keep_trusted && has_name(b"trusted.") {
        Fate::Keep
    } else {
        Fate::Drop
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_attributes_stay() {
        let cases: &[(&[u8], Fate)] = &[
            (b"user.foo", Fate::Keep),
            (b"user.", Fate::Drop),
            (b"user.overlay.opaque", Fate::Drop),
            (b"user.overlayed", Fate::Keep),
            (b"trusted.overlay.redirect", Fate::Drop),
            (b"trusted.md5", Fate::Drop),
            (b"security.capability", Fate::Keep),
            (b"security.selinux", Fate::Drop),
            (b"security.ima", Fate::Drop),
            (b"security.evm", Fate::Drop),
            (b"security.apparmor", Fate::Drop),
            (b"system.posix_acl_access", Fate::DropAcl),
            (b"system.posix_acl_default", Fate::DropAcl),
            (b"system.nfs4_acl", Fate::Drop),
            (b"", Fate::Drop),
        ];
        for (name, expected) in cases {
            assert_eq!(fate(name, false), *expected, "{}", name.escape_ascii());
        }
        assert_eq!(fate(b"trusted.md5", true), Fate::Keep);
        assert_eq!(fate(b"trusted.overlay.opaque", true), Fate::Drop);
    }
}
