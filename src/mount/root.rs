//! The new root while it is built inside the host's tree, and how it becomes `/`.

use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;

use crate::mount::bind::{Source, Tree};
use crate::mount::enact::Served;
use crate::mount::overlay::Layers;
use crate::mount::server;
use crate::sys::Error;
use crate::sys::mount::{self, Binding, Restriction};
use crate::sys::path::PathFd;

/// Host directories to build the new root on: the first that is there is taken. What they hold is covered in our
/// mount namespace only, and only until the new root is `/`. `/proc` must stay visible until then.
const MOUNT_POINTS: [&str; 4] = ["/tmp", "/mnt", "/var", "/usr"];

/// The mounted new root.
#[derive(Debug)]
pub(super) struct NewRoot(Tree);

impl NewRoot {
    /// Mounts what the image server serves; `image` is the name that the mount table shows.
    /// The launch of the server is over when the second value is dropped.
    pub(super) fn serve(
        host: &Tree,
        image: &Path,
        served: Served,
    ) -> Result<(NewRoot, server::Launching), Error> {
        let Served { fuse, server: waiting, uid, gid } = served;
        let place = mount_point(host)?;
        let data = server::mount_data(fuse.as_fd(), uid, gid);
        mount::fuse(image, place.path(), &data)?;
        let launching = waiting.mounted()?;
        let root = Tree::at(place.path())?;
        launching.entrust(root.top());
        Ok((NewRoot(root), launching))
    }

    /// Mounts a copy of a tree that is mounted already.
    pub(super) fn bind(host: &Tree, source: Source) -> Result<NewRoot, Error> {
        let place = mount_point(host)?;
        source.attach(host, &place, Some(Restriction::ReadOnlyNoDevicesNoSetuid))?;
        Tree::at(place.path()).map(NewRoot)
    }

    /// Serves another image file at `path`, opened as `place`. The launch of its server is over at once: the root's goes on.
    pub(super) fn serve_data(
        &self,
        image: &Path,
        (path, place): (&Path, &PathFd),
        served: Served,
    ) -> Result<(), Error> {
        let Served { fuse, server: waiting, uid, gid } = served;
        let data = server::mount_data(fuse.as_fd(), uid, gid);
        mount::fuse(image, Path::new(&place.proc_path()), &data)?;
        // Dropped before the root's, which was made earlier and knows the CPUs that were the caller's.
        let launching = waiting.mounted()?;
        launching.entrust(&self.open(path)?);
        Ok(())
    }

    /// Lays an overlay over it; `name` is what the mount table shows.
    pub(super) fn overlaid(self, name: &Path, layers: Layers) -> Result<NewRoot, Error> {
        layers.lay(name, &self.0).map(NewRoot)
    }

    /// Its root directory.
    pub(super) fn top(&self) -> &PathFd {
        self.0.top()
    }

    /// Opens an absolute path in the new root; a link in it is refused.
    pub(super) fn open(&self, path: &Path) -> Result<PathFd, Error> {
        self.0.open(path)
    }

    /// Mounts `source` on `destination`, opened in this root.
    pub(super) fn attach(
        &self,
        source: Source,
        destination: &PathFd,
        restriction: Option<Restriction>,
    ) -> Result<(), Error> {
        if matches!(source, Source::Detached(_)) {
            return source.attach(&self.0, destination, restriction);
        }
        // The new root lies in the midst of the host's tree: what is bound of that now, `/` or `/tmp` for instance,
        // must not hold a copy of the new root in its turn.
        mount::set_binding(self.0.top(), Binding::LeftOut)?;
        source.attach(&self.0, destination, restriction)?;
        mount::set_binding(self.0.top(), Binding::Copied)
    }

    /// Makes it `/` and lets go of the host's tree.
    pub(super) fn become_root(self) -> Result<(), Error> {
        mount::enter(self.0.top())?;
        match mount::pivot_root() {
            Err(error) if error.errno == Errno::EINVAL => mount::move_root(),
            done => done,
        }
    }
}

/// The first of [`MOUNT_POINTS`] that is a directory and no link.
fn mount_point(host: &Tree) -> Result<PathFd, Error> {
    let mut refused = None;
    for path in MOUNT_POINTS {
        match host.open(Path::new(path)) {
            Ok(place) => return Ok(place),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused.unwrap_or_else(|| Error::new("open(\"/tmp\", PATH)", Errno::ENOENT)))
}
