//! Directories of image files that are found by name: the user's store and the site's.
//!
//! They may lie on a parallel file system that many nodes share, so nothing here needs a lock to be right: files appear
//! complete under a name that says what they are (`link(2)`), tags are small files that are replaced whole (`rename(2)`),
//! and what goes out of use is renamed first and removed much later. A lease saves work and nothing else. `docs/store.md`
//! has the rules, [`crate::image::store`] the names and texts.

mod collect;
mod error;
mod images;
mod lease;
mod steps;
mod tags;
mod trust;

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

pub use collect::{CollectOptions, Collected};
pub use error::StoreError;
pub use images::StoredImage;
pub use lease::Lease;
use nix::errno::Errno;
pub use steps::Step;
pub use tags::Tagged;
pub use trust::Trust;

use crate::image::store::step::Owner;
use crate::image::store::{IMAGES, STEPS, TAGS, TRASH};
use crate::sys::{self, directory, file};

/// On a network file system a file that another node replaces at this moment may go stale while it is read.
const STALE_TRIES: u32 = 5;

/// An open store.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    owner: Owner,
    trust: Trust,
    root: OwnedFd,
}

impl Store {
    /// Opens the store in `path`; none if there is none yet.
    ///
    /// # Errors
    ///
    /// [`StoreError::Untrusted`] if somebody whom `trust` does not name could have put images there.
    pub fn open(path: &Path, owner: Owner, trust: Trust) -> Result<Option<Store>, StoreError> {
        let root = match file::open_directory(path) {
            Ok(root) => root,
            Err(error) if is_nothing(&error) => return Ok(None),
            Err(source) => return Err(StoreError::Open { path: path.to_owned(), source }),
        };
        trust.check_root(root.as_fd(), path)?;
        Ok(Some(Store { path: path.to_owned(), owner, trust, root }))
    }

    /// The same; a store that is missing is made, with directories of this mode, less the umask.
    pub fn create(path: &Path, owner: Owner, trust: Trust, mode: u32) -> Result<Store, StoreError> {
        use std::os::unix::fs::DirBuilderExt;
        let failed = |source| StoreError::Make { path: path.to_owned(), source };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(path)
            .map_err(|error| failed(sys::Error::from_io(format!("mkdir({path:?})"), &error)))?;
        let Some(store) = Store::open(path, owner, trust)? else {
            return Err(failed(sys::Error::new(format!("open({path:?})"), Errno::ENOENT)));
        };
        for name in [IMAGES, TAGS, TRASH] {
            file::make_directory(store.root.as_fd(), OsStr::new(name), mode).map_err(failed)?;
        }
        if owner == Owner::User {
            file::make_directory(store.root.as_fd(), OsStr::new(STEPS), mode).map_err(failed)?;
        }
        Ok(store)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whose it is.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// One of its directories, its owner and mode checked; none if it is missing.
    fn directory(&self, name: &'static str) -> Result<Option<OwnedFd>, StoreError> {
        let path = || self.path.join(name);
        let opened = directory::open_in(self.root.as_fd(), OsStr::new(name))
            .map_err(|source| StoreError::Open { path: path(), source })?;
        if let Some(directory) = &opened {
            self.trust.check(directory.as_fd(), &path())?;
        }
        Ok(opened)
    }

    /// The same, made if it is missing.
    fn made_directory(&self, name: &'static str) -> Result<OwnedFd, StoreError> {
        if let Some(directory) = self.directory(name)? {
            return Ok(directory);
        }
        let path = self.path.join(name);
        let failed = |source| StoreError::Make { path: path.clone(), source };
        let mode = if self.owner == Owner::User { 0o700 } else { 0o755 };
        file::make_directory(self.root.as_fd(), OsStr::new(name), mode).map_err(failed)?;
        let gone = || failed(sys::Error::new(format!("openat({name:?})"), Errno::ENOENT));
        self.directory(name)?.ok_or_else(gone)
    }

    /// Opens a file that only its owner can have written; none if there is none.
    fn file(&self, directory: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<Option<File>, StoreError> {
        let opened = file::find_regular(directory, name).map_err(|source| match source.errno {
            Errno::ELOOP | Errno::EINVAL | Errno::ENXIO | Errno::EACCES | Errno::EPERM => {
                StoreError::Unreadable { path: path.to_owned() }
            }
            _ => StoreError::Open { path: path.to_owned(), source },
        })?;
        if let Some(file) = &opened {
            self.trust.check(file.as_fd(), path)?;
        }
        Ok(opened)
    }

    /// Reads a small file that only its owner can have written; none if there is none.
    fn read_record(
        &self,
        directory: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
        most: u64,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let read = || {
            let Some(file) = self.file(directory, name, path)? else { return Ok(None) };
            let mut bytes = Vec::new();
            match file.take(most.saturating_add(1)).read_to_end(&mut bytes) {
                Ok(length) if u64::try_from(length).is_ok_and(|length| length <= most) => Ok(Some(bytes)),
                Ok(_) => Err(StoreError::Malformed { path: path.to_owned() }),
                Err(error) => {
                    let source = sys::Error::from_io("read", &error);
                    Err(StoreError::Open { path: path.to_owned(), source })
                }
            }
        };
        for _ in 1..STALE_TRIES {
            match read() {
                Err(StoreError::Open { source, .. }) if source.errno == Errno::ESTALE => {}
                outcome => return outcome,
            }
        }
        read()
    }
}

/// Whether there is no directory, rather than one that cannot be opened.
fn is_nothing(error: &sys::Error) -> bool {
    matches!(error.errno, Errno::ENOENT | Errno::ENOTDIR)
}

/// Seconds after 1970.
fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
