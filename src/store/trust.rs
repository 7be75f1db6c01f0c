//! Who may have written what a store holds: looked at on open descriptors, never on paths.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sys::stat::FileStat;

use super::StoreError;
use crate::sys::{directory, file};

/// Permission of others to write.
const OTHERS_WRITE: u32 = 0o022;
/// Only owners remove what is in such a directory.
const STICKY: u32 = 0o1000;

/// Whose files are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    owners: Vec<u32>,
    ancestors: bool,
}

impl Trust {
    /// A user's own store: the user's files, and root's.
    pub fn own(uid: u32) -> Trust {
        Trust { owners: vec![0, uid], ancestors: false }
    }

    /// A site's store: root's files and those of `owners`; nobody else can exchange a directory that leads to it.
    pub fn site(owners: &[u32]) -> Trust {
        Trust { owners: [&[0], owners].concat(), ancestors: true }
    }

    /// Checks an open file or directory; `path` is for messages.
    pub fn check(&self, opened: BorrowedFd<'_>, path: &Path) -> Result<(), StoreError> {
        let stat =
            file::stat_of(opened).map_err(|source| StoreError::Open { path: path.to_owned(), source })?;
        match self.distrust(&stat, false) {
            None => Ok(()),
            Some(why) => Err(StoreError::Untrusted { path: path.to_owned(), why }),
        }
    }

    /// Checks the directory of a store and, for a site's, those that lead to it.
    pub(super) fn check_root(&self, root: BorrowedFd<'_>, path: &Path) -> Result<(), StoreError> {
        self.check(root, path)?;
        if !self.ancestors {
            return Ok(());
        }
        let failed = |source| StoreError::Open { path: path.to_owned(), source };
        let mut stat = file::stat_of(root).map_err(failed)?;
        let mut held: Option<OwnedFd> = None;
        loop {
            let here = held.as_ref().map_or(root, |fd| fd.as_fd());
            let Some(parent) = directory::open_in(here, OsStr::new("..")).map_err(failed)? else {
                return Ok(());
            };
            let above = file::stat_of(parent.as_fd()).map_err(failed)?;
            if (above.st_dev, above.st_ino) == (stat.st_dev, stat.st_ino) {
                return Ok(());
            }
            if let Some(why) = self.distrust(&above, true) {
                let why = format!("of a directory above it {why}");
                return Err(StoreError::Untrusted { path: path.to_owned(), why });
            }
            (stat, held) = (above, Some(parent));
        }
    }

    /// Why others could have written there. In a sticky directory above they could not have exchanged what is ours.
    fn distrust(&self, stat: &FileStat, is_above: bool) -> Option<String> {
        if !self.owners.contains(&stat.st_uid) {
            return Some(format!("the owner is user {}", stat.st_uid));
        }
        let is_open = stat.st_mode & OTHERS_WRITE != 0 && !(is_above && stat.st_mode & STICKY != 0);
        is_open.then(|| format!("the mode is {:o}: others can write to it", stat.st_mode & 0o7777))
    }
}
