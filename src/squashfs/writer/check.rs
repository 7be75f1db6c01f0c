//! What the format cannot hold is refused before any table is written.

use crate::squashfs::format::NAME_MAX;
use crate::squashfs::writer::error::{SYMLINK_MAX, XATTR_VALUE_MAX};
use crate::squashfs::writer::xattr::{Set, can_hold_xattr};
use crate::squashfs::writer::{EntryError, Inode, InodeKind};

/// Checks everything in an inode but a directory's entries.
pub(super) fn check_inode(inode: &Inode, files: usize) -> Result<(), EntryError> {
    if inode.mode > 0o7777 {
        return Err(EntryError::Mode(inode.mode));
    }
    check_xattrs(&inode.xattrs)?;
    match &inode.kind {
        InodeKind::File(id) if usize::try_from(id.0).is_ok_and(|id| id >= files) => {
            Err(EntryError::NoData(*id))
        }
        InodeKind::Symlink(target)
            if target.is_empty() || target.len() > SYMLINK_MAX || target.contains(&0) =>
        {
            Err(EntryError::SymlinkTarget(target.len()))
        }
        InodeKind::BlockDevice(major, minor) | InodeKind::CharacterDevice(major, minor)
            if *major > 0xfff || *minor > 0xf_ffff =>
        {
            Err(EntryError::DeviceNumber(*major, *minor))
        }
        _ => Ok(()),
    }
}

/// Checks the name of a directory entry.
pub(super) fn check_name(name: &[u8]) -> Result<(), EntryError> {
    if name.len() > NAME_MAX {
        return Err(EntryError::NameTooLong(name.len()));
    }
    if matches!(name, b"" | b"." | b"..") || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
        return Err(EntryError::NotAName);
    }
    Ok(())
}

fn check_xattrs(xattrs: &Set) -> Result<(), EntryError> {
    for (name, value) in xattrs {
        let printable = || String::from_utf8_lossy(name).into_owned();
        if !can_hold_xattr(name) {
            return Err(EntryError::XattrName(printable()));
        }
        if value.len() > XATTR_VALUE_MAX {
            return Err(EntryError::XattrValue { name: printable(), length: value.len() });
        }
    }
    let mut names: Vec<_> = xattrs.iter().map(|(name, _)| name).collect();
    names.sort_unstable();
    match names.windows(2).find_map(|pair| pair.first().filter(|name| Some(*name) == pair.last())) {
        Some(name) => Err(EntryError::DuplicateXattr(String::from_utf8_lossy(name).into_owned())),
        None => Ok(()),
    }
}
