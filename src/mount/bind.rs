//! One bind, by descriptors from end to end, on every kernel since 4.18.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::sys::mount::{self, Restriction};
use crate::sys::path::{PathFd, make_directory_in, open_in_root};
use crate::sys::{Error, is_missing};

/// A mounted directory tree: the host's, or the new root inside it.
#[derive(Debug)]
pub(super) struct Tree {
    top: PathFd,
    mount_point: PathBuf,
}

impl Tree {
    /// What is mounted at `mount_point` now, an absolute host path free of links.
    pub(super) fn at(mount_point: &Path) -> Result<Tree, Error> {
        Ok(Tree { top: PathFd::open_directory(mount_point)?, mount_point: mount_point.to_owned() })
    }

    /// Where it is mounted, a host path.
    pub(super) fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// Opens a directory of the tree, made with those above it as far as they are missing, for the user alone.
    fn open_or_make(&self, path: &Path) -> Result<PathFd, Error> {
        match (self.open(path), path.parent(), path.file_name()) {
            (Err(error), Some(parent), Some(name)) if error.errno == Errno::ENOENT => {
                make_directory_in(&self.open_or_make(parent)?, Path::new(name), 0o700)?;
                self.open(path)
            }
            (opened, ..) => opened,
        }
    }

    /// Its root directory.
    pub(super) fn top(&self) -> &PathFd {
        &self.top
    }

    /// Opens an absolute path in the tree; a link in it is refused.
    pub(super) fn open(&self, path: &Path) -> Result<PathFd, Error> {
        open_in_root(&self.top, path)
    }

    /// Mount points at or below `path`, as paths in the tree, parents first.
    fn mounts_below(&self, path: &Path) -> Result<Vec<PathBuf>, Error> {
        let place = self.mount_point.join(path.strip_prefix("/").unwrap_or(path));
        let mut points = mount::mount_points_below(&place)?;
        for point in &mut points {
            *point = point.strip_prefix(&self.mount_point).unwrap_or(point).to_owned();
        }
        Ok(points)
    }
}

/// The source of a bind, opened before the new root covers anything of the host.
#[derive(Debug)]
pub(super) enum Source {
    /// A detached copy of the mounts at and below the source: Linux 5.2.
    Detached(PathFd),
    /// The source where it is, for `mount(2)`.
    InPlace(PathFd),
}

impl Source {
    /// Opens `path` of the `host`, in the mount namespace of the new root. The path was resolved when it was decided
    /// about: a link in it now was put there after the decision, and is refused.
    pub(super) fn open(host: &Tree, path: &Path) -> Result<Source, Error> {
        Source::of(host.open(path)?)
    }

    /// The same for a directory that is made if it is missing.
    pub(super) fn open_or_make(host: &Tree, path: &Path) -> Result<Source, Error> {
        Source::of(host.open_or_make(path)?)
    }

    fn of(place: PathFd) -> Result<Source, Error> {
        match mount::clone_tree(&place) {
            Ok(tree) => Ok(Source::Detached(tree)),
            Err(error) if is_missing(error.errno) => Ok(Source::InPlace(place)),
            Err(error) => Err(error),
        }
    }

    /// The device of what is bound.
    pub(super) fn device(&self) -> Result<u64, Error> {
        let (Source::Detached(place) | Source::InPlace(place)) = self;
        let stat = nix::sys::stat::fstat(place.as_fd()).map_err(|errno| Error::new("fstat(tree)", errno))?;
        Ok(stat.st_dev)
    }

    /// Mounts it on `destination`, which was opened in `tree`.
    pub(super) fn attach(
        self,
        tree: &Tree,
        destination: &PathFd,
        restriction: Option<Restriction>,
    ) -> Result<(), Error> {
        let mounted = match self {
            Source::Detached(copy) => {
                mount::attach(&copy, destination)?;
                copy
            }
            Source::InPlace(place) => {
                mount::bind(&place, destination)?;
                tree.open(destination.path())?
            }
        };
        match restriction {
            Some(restriction) => restrict(tree, &mounted, destination.path(), restriction),
            None => Ok(()),
        }
    }
}

/// Restricts what was mounted at `path`, and everything mounted below it.
fn restrict(tree: &Tree, mounted: &PathFd, path: &Path, restriction: Restriction) -> Result<(), Error> {
    match mount::restrict_tree(mounted, restriction) {
        Err(error) if is_missing(error.errno) => {}
        done => return done,
    }
    for point in tree.mounts_below(path)? {
        restrict_one(tree, &point, restriction)?;
    }
    Ok(())
}

/// Restricts one mount, unless no path leads to it: covered by another (the path then is no mount's root, `EINVAL`),
/// its place removed, or in a directory that is closed to the user. The job has the same rights and holds no
/// capability, so that no path leads it there either.
fn restrict_one(tree: &Tree, point: &Path, restriction: Restriction) -> Result<(), Error> {
    match tree.open(point).and_then(|mounted| mount::restrict(&mounted, restriction)) {
        Err(error) if matches!(error.errno, Errno::EINVAL | Errno::ENOENT | Errno::EACCES) => Ok(()),
        done => done,
    }
}
