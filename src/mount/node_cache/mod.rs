//! Copies of image files on this node's own disk or in its memory: found when a launch starts, made while a job runs.
//!
//! ```text
//! DIRECTORY/            the site's, sticky if users may make directories in it
//!   hpcrun-UID/         0711: only its owner writes in it, nobody else lists it
//!     KEY               a whole copy, 0444 or 0400, locked (shared) by every server that reads it
//!     KEY.used          empty; its time says when the copy was last of use
//!     KEY.partial       a copy being made, locked (exclusive) by its maker
//! ```
//!
//! `docs/node-cache.md` tells why that is safe. In short: a key is a hash over the chunk hashes of the image, each chunk is
//! checked before it goes into a copy, and a copy that somebody else made is checked again whenever it is read.

mod key;
mod maker;
mod room;

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;

pub use self::key::Key;
pub use self::maker::{MakeError, Maker};
use crate::mount::voucher::{Hashes, Voucher, When};
use crate::squashfs::reader::{Filesystem, Vouch};
use crate::sys::directory;
use crate::sys::file::{self, Stamp};
use crate::sys::lock::Locked;
use crate::sys::{self, lock};

/// Mode of a user's directory: others may open what they can name, which takes the image's own hashes.
const OWN_MODE: u32 = 0o711;
/// Directories of other users that are looked into, at most.
const NEIGHBOURS_MAX: usize = 64;

/// Where copies are kept and how many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The site's directory.
    pub directory: PathBuf,
    /// Most bytes that the copies of one user take.
    pub size_bytes: u64,
    /// Smaller image files are not copied, bytes.
    pub min_bytes: u64,
}

/// When what is read of a copy that can be trusted is held against the chunk hashes, as of the image file itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checks {
    /// Never.
    Never,
    /// Once the copy is another than when it was opened.
    Changed,
    /// Always.
    Always,
}

/// An image file that may have a copy.
#[derive(Debug, Clone)]
pub struct Original {
    /// The name of its copy.
    pub key: Key,
    /// Bytes of the file.
    pub length: u64,
    /// Its chunk hashes, if it has any.
    pub hashes: Option<Hashes>,
    /// The file when it was opened.
    pub stamp: Stamp,
    /// Whether everybody may read the file, and so its copy.
    pub is_public: bool,
    /// How its copy is read.
    pub checks: Checks,
}

/// What a launch wants of the cache.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The cache.
    pub settings: Settings,
    /// The image file.
    pub original: Original,
}

/// What a launch gets.
#[derive(Debug)]
pub enum Cached {
    /// A copy to read.
    Copy(LocalCopy),
    /// None yet; the server makes one.
    Missing(Maker),
}

/// A copy, opened, and kept from being removed for as long as it is open.
#[derive(Debug)]
pub struct LocalCopy {
    /// For people.
    pub path: PathBuf,
    file: File,
    /// Whether only this user, or root, can have written it.
    is_trusted: bool,
}

/// Why the image file itself is read. Nothing is wrong with the launch.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// A directory cannot be opened or made.
    #[error("cannot use {}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// The kernel's refusal.
        source: sys::Error,
    },
    /// Somebody else could have put there what is in it.
    #[error("cannot trust {}: it {why}", path.display())]
    Untrusted {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// No copy, and no room for one.
    #[error("{} has no room for {wanted} bytes", path.display())]
    NoRoom {
        /// The directory.
        path: PathBuf,
        /// Bytes of the image file.
        wanted: u64,
    },
}

/// Why no copy was made of an image that somebody wants copied now.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// Of the place for it.
    #[error(transparent)]
    Place(#[from] Unusable),
    /// Of the copy itself.
    #[error(transparent)]
    Copy(#[from] MakeError),
}

impl Wanted {
    /// Whether the cache takes a file of this size.
    pub fn fits(&self) -> bool {
        let length = self.original.length;
        length >= self.settings.min_bytes && length <= self.settings.size_bytes
    }

    /// Finds a copy, or prepares to make one. `uid` is the caller's, who is in no user namespace of his own yet: there
    /// the owners of files could not be told any more.
    pub fn find(&self, uid: u32) -> Result<Cached, Unusable> {
        let site = Directory::of_site(&self.settings.directory, uid)?;
        let own = match site.below(uid) {
            Err(Unusable::Directory { source, .. }) if source.errno == Errno::ENOENT => None,
            opened => Some(opened?),
        };
        if let Some(own) = &own
            && let Some(copy) = own.copy(&self.original, true)
        {
            // A failure costs the copy its place in the order, and nothing else.
            let _ = directory::touch(own.fd(), &self.original.key.used());
            return Ok(Cached::Copy(copy));
        }
        if let Some(copy) = self.of_others(&site, uid) {
            return Ok(Cached::Copy(copy));
        }
        // Opened anew, to be listed as well.
        let own = site.make_below(uid)?;
        if !room::may_have(&own.file, self.settings.size_bytes, self.original.length) {
            return Err(Unusable::NoRoom { path: own.path, wanted: self.original.length });
        }
        Ok(Cached::Missing(Maker::new(Arc::new(own.file), own.path, self.clone())))
    }

    /// Makes the caller's own copy of `image`, whoever else has one, and waits for it; false if it is there already.
    pub fn fill(&self, uid: u32, image: &File) -> Result<bool, FillError> {
        let own = Directory::of_site(&self.settings.directory, uid)?.make_below(uid)?;
        let maker = Maker::new(Arc::new(own.file), own.path, self.clone());
        let partial = self.original.key.partial();
        while !maker.has_copy() {
            // Neither made nor there: somebody else had begun it, and gave up.
            if maker.make_file(image, |file| Locked::exclusive(file, Path::new(&partial)))? {
                return Ok(true);
            }
        }
        let _ = directory::touch(maker.directory().as_fd(), &self.original.key.used());
        Ok(false)
    }

    /// A copy of root's, or one of another user's that can be checked.
    fn of_others(&self, site: &Directory, uid: u32) -> Option<LocalCopy> {
        let of_root = (uid != 0).then(|| site.below(0).ok()?.copy(&self.original, true)).flatten();
        if of_root.is_some() || self.original.hashes.is_none() {
            return of_root;
        }
        let owner = |name: &std::ffi::OsStr| name.to_str()?.strip_prefix("hpcrun-")?.parse::<u32>().ok();
        let names = file::names(site.fd());
        let owners = names.iter().filter_map(|name| owner(name)).filter(|owner| *owner != uid && *owner != 0);
        owners.take(NEIGHBOURS_MAX).find_map(|owner| site.below(owner).ok()?.copy(&self.original, false))
    }
}

impl LocalCopy {
    /// Has `image` read this copy.
    pub fn give_to(self, image: &Filesystem, original: &Original) {
        let voucher = voucher(&self.file, self.is_trusted, original);
        image.use_copy(self.file, voucher);
    }

    /// Whether what is read of it is checked, since another user made it.
    pub fn is_checked(&self) -> bool {
        !self.is_trusted
    }
}

fn voucher(copy: &File, is_trusted: bool, original: &Original) -> Option<Arc<dyn Vouch>> {
    let hashes = original.hashes?;
    let when = match (original.checks, file::stamp(copy)) {
        (Checks::Never, _) if is_trusted => return None,
        (Checks::Changed, Ok(stamp)) if is_trusted => When::ChangedSince(stamp),
        _ => When::Always,
    };
    Some(Arc::new(Voucher::new(hashes, when)))
}

/// A directory whose owner was checked after it was opened.
#[derive(Debug)]
struct Directory {
    file: File,
    path: PathBuf,
}

impl Directory {
    /// The site's directory: of root or of the caller, and if others may write in it, sticky.
    fn of_site(path: &Path, uid: u32) -> Result<Directory, Unusable> {
        let refused = |source| Unusable::Directory { path: path.to_owned(), source };
        let file = File::from(file::open_directory(path).map_err(refused)?);
        let (owner, mode) = owner_and_mode(&file).map_err(refused)?;
        let untrusted = |why| Err(Unusable::Untrusted { path: path.to_owned(), why });
        if owner != 0 && owner != uid {
            return untrusted(format!("belongs to user {owner}"));
        }
        if mode & 0o022 != 0 && mode & 0o1000 == 0 {
            return untrusted(format!("can be written by others and is not sticky (mode {mode:04o})"));
        }
        Ok(Directory { file, path: path.to_owned() })
    }

    /// The directory of the user `owner` in it, not to be listed.
    fn below(&self, owner: u32) -> Result<Directory, Unusable> {
        let name = name_for(owner);
        let path = self.path.join(&name);
        match directory::open_path_in(self.fd(), name.as_ref()) {
            Ok(file) => Directory { file, path }.checked(owner),
            Err(source) => Err(Unusable::Directory { path, source }),
        }
    }

    fn make_below(&self, owner: u32) -> Result<Directory, Unusable> {
        let name = name_for(owner);
        let path = self.path.join(&name);
        match directory::make_in(self.fd(), name.as_ref(), OWN_MODE) {
            Ok(file) => Directory { file, path }.checked(owner),
            Err(source) => Err(Unusable::Directory { path, source }),
        }
    }

    /// Only its owner may be able to write in it.
    fn checked(self, owner: u32) -> Result<Directory, Unusable> {
        let found = owner_and_mode(&self.file);
        let why = match found {
            Err(source) => return Err(Unusable::Directory { path: self.path, source }),
            Ok((found, _)) if found != owner => format!("belongs to user {found}"),
            Ok((_, mode)) if mode & 0o022 != 0 => format!("can be written by others (mode {mode:04o})"),
            Ok(_) => return Ok(self),
        };
        Err(Unusable::Untrusted { path: self.path, why })
    }

    /// The whole copy of `original` in it, if it has one that nobody is about to remove.
    fn copy(&self, original: &Original, is_trusted: bool) -> Option<LocalCopy> {
        let name = original.key.name();
        let file = file::open_regular(self.fd(), &name)?;
        let is_whole = file.metadata().is_ok_and(|metadata| metadata.len() == original.length);
        let is_kept = is_whole && lock::share(&file).unwrap_or(false);
        is_kept.then(|| LocalCopy { path: self.path.join(&name), file, is_trusted })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn name_for(owner: u32) -> String {
    format!("hpcrun-{owner}")
}

fn owner_and_mode(file: &File) -> Result<(u32, u32), sys::Error> {
    let metadata = file.metadata().map_err(|error| sys::Error::from_io("fstat(directory)", &error))?;
    Ok((metadata.uid(), metadata.mode() & 0o7777))
}

/// The descriptors that a server needs for `image` and for making its copy.
pub(super) fn descriptors(image: &Filesystem, maker: Option<&Maker>) -> impl Iterator<Item = RawFd> {
    let files = [Some(image.file()), image.copy(), maker.map(Maker::directory)];
    files.map(|file| file.map(AsRawFd::as_raw_fd)).into_iter().flatten()
}
