//! A bind: what is to be seen at a place of the new root, and who says so. Pure.

use std::path::{Path, PathBuf};

use crate::mount::graft::Graft;
use crate::mount::plan::{Access, Entry, Need, Op, PlannedOp, Reason};
use crate::policy::path::is_within;

/// Who names a bind; the later is the stronger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    /// hpcrun.
    Default,
    /// The site, for those who want it.
    Offered,
    /// The user, by a variable.
    Ambient,
    /// The user.
    User,
    /// The site, for everybody.
    Forced,
}

/// What is to be seen at a place of the new root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// A host path, resolved.
    Host {
        /// Which.
        path: PathBuf,
        /// What if it goes away before enactment.
        need: Need,
        /// Whether it is a directory.
        is_directory: bool,
    },
    /// An empty directory in memory.
    Memory {
        /// Permission bits.
        mode: u32,
        /// Most bytes; none means the kernel's limit.
        size_bytes: Option<u64>,
        /// What is in it at first, mount points left aside.
        entries: Vec<(PathBuf, Entry)>,
    },
    /// The tree of another image file, a resolved host path.
    Image(PathBuf),
    /// The processes of the job's own namespace.
    Processes,
}

/// A mount that is to be; most are binds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// What.
    pub shown: Shown,
    /// In normal form.
    pub destination: PathBuf,
    /// Whether the job may write.
    pub access: Access,
    /// Who says so.
    pub party: Party,
    /// Why, for people.
    pub reason: Reason,
}

impl Bind {
    /// The host path that is bound; none when it is no bind.
    pub fn source(&self) -> Option<&Path> {
        match &self.shown {
            Shown::Host { path, .. } => Some(path),
            Shown::Memory { .. } | Shown::Image(_) | Shown::Processes => None,
        }
    }

    /// What if its mount point is missing.
    pub fn need(&self) -> Need {
        match &self.shown {
            Shown::Host { need, .. } => *need,
            Shown::Memory { .. } | Shown::Image(_) | Shown::Processes => Need::Required,
        }
    }

    /// The mount point that the image must have.
    pub fn graft(&self) -> Graft {
        match &self.shown {
            Shown::Host { is_directory: false, .. } => Graft::File,
            _ => Graft::Directory,
        }
    }

    /// The op that makes it. `all` are the mounts of the launch: a file system in memory has the mount points of those
    /// that go into it.
    pub fn op(&self, all: &[Bind]) -> PlannedOp {
        let destination = self.destination.clone();
        let op = match &self.shown {
            Shown::Host { path, need, .. } => {
                Op::Bind { source: path.clone(), destination, access: self.access, need: *need }
            }
            Shown::Memory { mode, size_bytes, entries } => {
                let mut entries = entries.clone();
                entries.extend(self.mount_points(all));
                Op::Tmpfs { destination, mode: *mode, size_bytes: *size_bytes, entries }
            }
            Shown::Image(path) => Op::DataImage { source: path.clone(), destination },
            Shown::Processes => Op::Processes { destination },
        };
        PlannedOp { op, reason: self.reason.clone() }
    }

    /// The mount points directly in this mount.
    fn mount_points(&self, all: &[Bind]) -> Vec<(PathBuf, Entry)> {
        let inside = all.iter().filter(|bind| parent(all, bind) == Some(self));
        let entry = |bind: &Bind| {
            let rest = bind.destination.strip_prefix(&self.destination).ok()?;
            let entry = if bind.graft() == Graft::File { Entry::File } else { Entry::Directory };
            Some((rest.to_owned(), entry))
        };
        inside.filter_map(entry).collect()
    }
}

/// The binds of a launch.
#[derive(Debug, Clone, Default)]
pub struct Binds {
    /// Sorted by destination: parents first.
    pub binds: Vec<Bind>,
    /// What was left out, and why, for `--explain`.
    pub notes: Vec<String>,
}

impl Binds {
    /// The host path that the new root shows at `path`, which is in normal form; none when the image's own is shown.
    pub fn shown_at(&self, path: &Path) -> Option<PathBuf> {
        let bind = nearest(&self.binds, path)?;
        let (source, rest) = (bind.source()?, path.strip_prefix(&bind.destination).ok()?);
        // Joining an empty rest would add a slash.
        Some(if rest.as_os_str().is_empty() { source.to_owned() } else { source.join(rest) })
    }

    /// Whether the new root shows something else than the image's own at `path`.
    pub fn covers(&self, path: &Path) -> bool {
        nearest(&self.binds, path).is_some()
    }

    /// Whether the new root shows the host's own `path` at the same place. A name of it that goes through host links
    /// does not count.
    pub fn shows(&self, path: &Path) -> bool {
        self.shown_at(path).is_some_and(|shown| shown == path)
    }
}

/// The innermost bind at or above `path`.
pub(in crate::launch) fn nearest<'b>(binds: &'b [Bind], path: &Path) -> Option<&'b Bind> {
    let above = binds.iter().filter(|bind| is_within(path, &bind.destination));
    above.max_by_key(|bind| bind.destination.components().count())
}

/// The innermost of the mounts that `bind` goes into.
pub(in crate::launch) fn parent<'b>(binds: &'b [Bind], bind: &Bind) -> Option<&'b Bind> {
    let above = binds.iter().filter(|other| {
        other.destination != bind.destination && is_within(&bind.destination, &other.destination)
    });
    above.max_by_key(|other| other.destination.components().count())
}
