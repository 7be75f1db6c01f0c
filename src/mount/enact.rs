//! Enacts a mount plan: a new mount namespace whose root is the plan's.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;

use crate::hint::Hint;
use crate::mount::bind::{Source, Tree};
use crate::mount::overlay::Layers;
use crate::mount::plan::{Access, MountPlan, Need, Op, PlannedOp, RootSource};
use crate::mount::root::NewRoot;
use crate::mount::server::{Launching, Waiting};
use crate::mount::{memory, verify};
use crate::sys::mount::Restriction;
use crate::sys::path::PathFd;
use crate::sys::{self, mount, namespace};

/// The image server's side of the mount of [`RootSource::Image`].
#[derive(Debug)]
pub struct Served {
    /// `/dev/fuse`, opened in the user namespace that will mount.
    pub fuse: OwnedFd,
    /// The server that answers on it.
    pub server: Waiting,
    /// The user that the mount belongs to.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// What happens while a plan is enacted.
#[derive(Debug)]
pub enum Event<'a> {
    /// This op is done now.
    Op(&'a PlannedOp),
    /// This optional bind is not done, because its source or its mount point cannot be opened.
    LeftOut {
        /// The bind.
        op: &'a PlannedOp,
        /// Why not.
        cause: &'a sys::Error,
    },
    /// The image is mounted, and nothing on it yet.
    Served {
        /// Its root directory.
        root: &'a PathFd,
        /// Its server's launch.
        launching: &'a Launching,
    },
}

impl fmt::Display for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Op(op) => op.fmt(f),
            Event::LeftOut { op, cause } => write!(f, "left out: {}: {cause}", op.op),
            Event::Served { .. } => f.write_str("the image is served"),
        }
    }
}

/// Why the new root could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// No mount namespace of our own.
    #[error("cannot create a mount namespace")]
    Namespace {
        /// The kernel's refusal.
        source: sys::Error,
    },
    /// A required source is not to be had.
    #[error("cannot open the source of `{}` ({})", .planned.op, .planned.reason)]
    Source {
        /// The op.
        planned: Box<PlannedOp>,
        /// The kernel's refusal.
        source: sys::Error,
    },
    /// The new root has no such place.
    #[error("cannot open the destination of `{}` ({})", .planned.op, .planned.reason)]
    Destination {
        /// The op.
        planned: Box<PlannedOp>,
        /// The kernel's refusal.
        source: sys::Error,
    },
    /// The op itself failed.
    #[error("cannot do `{}` ({})", .planned.op, .planned.reason)]
    Op {
        /// The op.
        planned: Box<PlannedOp>,
        /// The kernel's refusal.
        source: sys::Error,
    },
    /// A bind whose destination is `/`: it would hide the root.
    #[error("cannot bind onto the root itself: `{}` ({})", .planned.op, .planned.reason)]
    OntoRoot {
        /// The op.
        planned: Box<PlannedOp>,
    },
    /// The kernel says that a mount lacks a restriction that it was given.
    #[error("{} is mounted without {missing}", .path.display())]
    Unprotected {
        /// Where.
        path: PathBuf,
        /// What it lacks: `ro, nosuid`.
        missing: String,
    },
    /// The kernel does not say what a mount forbids.
    #[error("cannot check the mount of {}", .path.display())]
    Verify {
        /// Where.
        path: PathBuf,
        /// The kernel's refusal.
        source: sys::Error,
    },
    /// A premounted tree is not what it was when it was decided about.
    #[error("the site unmounted {} just now", .tree.display())]
    Unmounted {
        /// Where it was.
        tree: PathBuf,
    },
    /// The plan's order is impossible, or it wants an image server that was not started.
    #[error("the plan has no root for `{}` ({})", .planned.op, .planned.reason)]
    NoRoot {
        /// The op.
        planned: Box<PlannedOp>,
    },
}

/// Leaves the host's mounts for those of `plan`: afterwards the caller is in a mount namespace of its own, with the
/// plan's root as root and working directory. Gives the image server's launch, if it has one, to be dropped when the
/// job is about to start. What the root is to forbid has then been read back from the kernel.
///
/// Call it with one thread, in a user namespace in which the caller has all capabilities. `served` has a server for
/// each image, in the order of the plan. `observer` hears of each op before it is done.
pub fn enact(
    plan: &MountPlan,
    served: Vec<Served>,
    observer: &mut dyn FnMut(Event<'_>),
) -> Result<Option<Launching>, MountError> {
    let namespace = |source| MountError::Namespace { source };
    namespace::unshare_mount().map_err(namespace)?;
    mount::make_slave().map_err(namespace)?;
    let host = Tree::at(Path::new("/")).map_err(namespace)?;

    // All sources before the first mount, which covers a part of the host's tree.
    let mut sources = Vec::with_capacity(plan.ops.len());
    for planned in &plan.ops {
        sources.push(open_source(&host, planned, observer)?);
    }
    let layers = open_layers(&host, plan)?;
    let mut enactment = Enactment {
        host,
        served: served.into_iter(),
        layers,
        image: PathBuf::new(),
        root: None,
        launching: None,
    };
    let mut left_out = Vec::new();
    for (planned, source) in plan.ops.iter().zip(sources) {
        if source.is_none() && matches!(planned.op, Op::Bind { .. }) {
            left_out.push(planned);
            continue;
        }
        observer(Event::Op(planned));
        match enactment.enact(planned, source) {
            // Links of the image led this mount point below another bind, where the host has no such place.
            Err(MountError::Destination { source: cause, .. }) if planned.op.is_optional() => {
                observer(Event::LeftOut { op: planned, cause: &cause });
                left_out.push(planned);
            }
            outcome => outcome?,
        }
        if let (Op::Root(RootSource::Image(_)), Some(root), Some(launching)) =
            (&planned.op, &enactment.root, &enactment.launching)
        {
            observer(Event::Served { root: root.top(), launching });
        }
    }
    if plan.ops.last().is_some_and(|last| last.op == Op::PivotRoot) {
        verify::mounts(plan, &left_out)?;
    }
    Ok(enactment.launching)
}

/// Opens what an overlay is made of.
fn open_layers(host: &Tree, plan: &MountPlan) -> Result<Option<Layers>, MountError> {
    let overlay = plan.ops.iter().find_map(|planned| match &planned.op {
        Op::Overlay { layers, upper } => Some((planned, layers, upper)),
        _ => None,
    });
    let Some((planned, layers, upper)) = overlay else { return Ok(None) };
    let failed = |source| MountError::Source { planned: Box::new(planned.clone()), source };
    Layers::open(host, layers, upper).map(Some).map_err(failed)
}

/// Opens the source of an op that has one; none for an optional one that cannot be had.
fn open_source(
    host: &Tree,
    planned: &PlannedOp,
    observer: &mut dyn FnMut(Event<'_>),
) -> Result<Option<Source>, MountError> {
    let (path, need) = match &planned.op {
        Op::Bind { source, need, .. } => (source, *need),
        Op::Root(RootSource::Premounted { tree, .. }) => (tree, Need::Required),
        _ => return Ok(None),
    };
    let opened = match need {
        Need::Made => Source::open_or_make(host, path),
        Need::Required | Need::Optional => Source::open(host, path),
    };
    match (opened, need) {
        (Ok(source), _) => Ok(Some(source)),
        (Err(cause), Need::Optional) => {
            observer(Event::LeftOut { op: planned, cause: &cause });
            Ok(None)
        }
        (Err(source), Need::Required | Need::Made) => {
            Err(MountError::Source { planned: Box::new(planned.clone()), source })
        }
    }
}

/// How far the plan has come.
struct Enactment {
    host: Tree,
    served: std::vec::IntoIter<Served>,
    layers: Option<Layers>,
    /// The image file of the root, which the mount table names.
    image: PathBuf,
    root: Option<NewRoot>,
    launching: Option<Launching>,
}

impl Enactment {
    fn enact(&mut self, planned: &PlannedOp, source: Option<Source>) -> Result<(), MountError> {
        let boxed = || Box::new(planned.clone());
        let failed = |source| MountError::Op { planned: boxed(), source };
        match (&planned.op, source, self.root.as_ref()) {
            (Op::Root(RootSource::Image(image)), ..) => {
                let Some(served) = self.served.next() else {
                    return Err(MountError::NoRoot { planned: boxed() });
                };
                let (root, launching) = NewRoot::serve(&self.host, image, served).map_err(failed)?;
                (self.root, self.launching) = (Some(root), Some(launching));
                self.image.clone_from(image);
            }
            (Op::Root(RootSource::Premounted { tree, device }), Some(source), _) => {
                if source.device().map_err(failed)? != *device {
                    return Err(MountError::Unmounted { tree: tree.clone() });
                }
                self.root = Some(NewRoot::bind(&self.host, source).map_err(failed)?);
            }
            (op, ..) if op.destination().is_some_and(|destination| is_root(destination)) => {
                return Err(MountError::OntoRoot { planned: boxed() });
            }
            (Op::Overlay { .. }, ..) => {
                let (Some(root), Some(layers)) = (self.root.take(), self.layers.take()) else {
                    return Err(MountError::NoRoot { planned: boxed() });
                };
                self.root = Some(root.overlaid(&self.image, layers).map_err(failed)?);
            }
            (Op::Tmpfs { .. } | Op::Processes { .. } | Op::DataImage { .. }, _, Some(root)) => {
                let served = match &planned.op {
                    Op::DataImage { .. } => self.served.next(),
                    _ => None,
                };
                mount_new(planned, root, served)?;
            }
            (Op::Bind { destination, access, .. }, Some(source), Some(root)) => {
                let place = root
                    .open(destination)
                    .map_err(|source| MountError::Destination { planned: boxed(), source })?;
                let restriction = match access {
                    Access::ReadOnly => Some(Restriction::ReadOnly),
                    Access::ReadWrite => None,
                };
                root.attach(source, &place, restriction).map_err(failed)?;
            }
            (Op::PivotRoot, _, Some(_)) => {
                if let Some(root) = self.root.take() {
                    root.become_root().map_err(failed)?;
                }
            }
            _ => return Err(MountError::NoRoot { planned: boxed() }),
        }
        Ok(())
    }
}

/// Mounts what is no part of the host's tree.
fn mount_new(planned: &PlannedOp, root: &NewRoot, served: Option<Served>) -> Result<(), MountError> {
    let boxed = || Box::new(planned.clone());
    let place =
        |path: &Path| root.open(path).map_err(|source| MountError::Destination { planned: boxed(), source });
    let done = match (&planned.op, served) {
        (Op::Tmpfs { destination, mode, size_bytes, entries }, _) => {
            mount::tmpfs(&place(destination)?, *mode, *size_bytes)
                .and_then(|()| root.open(destination))
                .and_then(|top| memory::fill(&top, entries))
        }
        (Op::Processes { destination }, _) => mount::processes(&place(destination)?),
        (Op::DataImage { source, destination }, Some(served)) => {
            root.serve_data(source, (destination, &place(destination)?), served)
        }
        _ => return Err(MountError::NoRoot { planned: boxed() }),
    };
    done.map_err(|source| MountError::Op { planned: boxed(), source })
}

/// Whether `path` names no component at all.
fn is_root(path: &Path) -> bool {
    !path.components().any(|component| matches!(component, Component::Normal(_)))
}

impl Hint for MountError {
    fn hints(&self) -> Vec<String> {
        match self {
            MountError::Namespace { source } => namespace_hints(source.errno),
            MountError::Source { planned, source } => source_hints(&planned.op, source.errno),
            MountError::Destination { planned, source } => destination_hints(&planned.op, source.errno),
            MountError::Op { planned, source } => op_hints(&planned.op, source.errno),
            MountError::Unmounted { .. } => vec!["start the job again: the image is served then".to_owned()],
            MountError::OntoRoot { .. }
            | MountError::NoRoot { .. }
            | MountError::Unprotected { .. }
            | MountError::Verify { .. } => Vec::new(),
        }
    }
}

/// Shared with the user namespace's error: the limits and the filters are of the same kinds.
pub(crate) fn namespace_hints(errno: Errno) -> Vec<String> {
    let hint = match errno {
        Errno::ENOSPC => {
            "the limit user.max_mnt_namespaces (or user.max_user_namespaces) of this node is reached; see 'sysctl user'"
        }
        Errno::EPERM | Errno::EACCES => {
            "this node lets the user namespace be created but not used, as AppArmor does with \
             kernel.apparmor_restrict_unprivileged_userns=1: an admin sets it to 0 or loads a profile for hpcrun \
             that allows 'userns'"
        }
        _ => return Vec::new(),
    };
    vec![hint.to_owned()]
}

fn source_hints(op: &Op, errno: Errno) -> Vec<String> {
    if let (Op::Overlay { .. }, Errno::ENOENT) = (op, errno) {
        return vec!["nothing was written to it yet: a launch with --overlay DIR does".to_owned()];
    }
    let (Op::Bind { source, .. } | Op::Root(RootSource::Premounted { tree: source, .. })) = op else {
        return Vec::new();
    };
    let path = source.display();
    let hint = match errno {
        Errno::ENOENT | Errno::ENOTDIR => {
            format!("{path} does not exist on this node; is its file system mounted here?")
        }
        Errno::EACCES => format!("{path} lies in a directory that is closed to you"),
        Errno::ELOOP => format!("a part of {path} was replaced by a symbolic link while hpcrun started"),
        Errno::EMFILE | Errno::ENFILE => "the limit of open files is too low; see 'ulimit -n'".to_owned(),
        Errno::ESTALE | Errno::EIO | Errno::ENOTCONN | Errno::EHOSTDOWN => {
            format!("the file system of {path} does not answer on this node")
        }
        _ => return Vec::new(),
    };
    vec![hint]
}

fn destination_hints(op: &Op, errno: Errno) -> Vec<String> {
    let Some(destination) = op.destination() else { return Vec::new() };
    let path = destination.display();
    let hint = match errno {
        Errno::ENOENT | Errno::ENOTDIR => format!("the new root has no {path} to bind onto"),
        Errno::ELOOP => {
            format!(
                "{path} leads over a symbolic link, which hpcrun does not follow in a tree that others made"
            )
        }
        Errno::EACCES => format!("{path} lies in a directory that is closed to you"),
        _ => return Vec::new(),
    };
    vec![hint]
}

fn op_hints(op: &Op, errno: Errno) -> Vec<String> {
    let hint = match (op, errno) {
        // move_mount(2) says EINVAL where mount(2) says ENOTDIR.
        (Op::Bind { .. }, Errno::ENOTDIR | Errno::EINVAL) => {
            "of source and destination one is a directory and the other is not".to_owned()
        }
        (Op::Root(RootSource::Image(_)), Errno::EINVAL) => {
            "this kernel may forbid FUSE in user namespaces: it needs Linux 4.18 or later".to_owned()
        }
        (Op::Root(RootSource::Image(_)), Errno::ENODEV) => {
            "this kernel has no FUSE; an admin loads it with 'modprobe fuse'".to_owned()
        }
        // The server is forked meanwhile.
        (Op::Root(RootSource::Image(_)), Errno::EAGAIN) => {
            "the limit of processes is too low; see 'ulimit -u'".to_owned()
        }
        (Op::Overlay { .. }, Errno::EINVAL | Errno::EPERM | Errno::ENODEV | Errno::EOPNOTSUPP) => {
            "a root that can be written to needs Linux 5.11 with overlayfs; the directory of --overlay must lie on a \
             file system of this node (ext4, xfs, tmpfs), not on NFS or Lustre: try --writable-tmpfs"
                .to_owned()
        }
        (Op::Processes { .. }, Errno::EPERM) => {
            "a part of this node's /proc is covered, as inside another container: leave --pid out".to_owned()
        }
        (_, Errno::EACCES | Errno::EPERM) => return namespace_hints(errno),
        (_, Errno::ENOSPC) => "the limit fs.mount-max of this node is reached".to_owned(),
        _ => return Vec::new(),
    };
    vec![hint]
}
