//! The mount plan: ordered ops, each with the reason it exists. Pure data; printing it is its documentation.

use std::fmt;
use std::path::PathBuf;

/// What the new root is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootSource {
    /// The image file, served by the image server.
    Image(PathBuf),
    /// A tree that the admin has mounted already (policy `premounted`), bound read-only.
    Premounted {
        /// Where, without links.
        tree: PathBuf,
        /// Its device, by which it is told from what its mount point covers.
        device: u64,
    },
}

/// Whether a bind may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read-only.
    ReadOnly,
    /// Read-write, as far as the host's permissions go.
    ReadWrite,
}

/// What to do when a bind's source is missing at enactment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Refuse to launch.
    Required,
    /// Leave it out.
    Optional,
    /// Make the directory, and those above it, as far as they are missing.
    Made,
}

/// What a file system in memory begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// An empty directory.
    Directory,
    /// An empty file.
    File,
    /// A symbolic link to this.
    Link(PathBuf),
}

/// Where an overlay keeps what is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upper {
    /// Nowhere: the root stays read-only.
    None,
    /// In memory, until the last process of the job ends.
    Memory {
        /// Most bytes; none means the kernel's limit, half of the memory.
        size_bytes: Option<u64>,
    },
    /// In a host directory.
    Directory(PathBuf),
}

/// Why an op is in the plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Reason {
    /// hpcrun's own default.
    #[default]
    Default,
    /// A rule of the site policy.
    Policy {
        /// The file.
        file: PathBuf,
        /// 1-based line.
        line: usize,
    },
    /// An option as typed: `--bind /scratch`.
    Flag(String),
    /// The image's config, by field name.
    Image(&'static str),
    /// A fact of this node.
    Host(String),
}

/// One step towards the new root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Mount the root.
    Root(RootSource),
    /// Bind a host path, with everything mounted below it, as a slave of the host's mounts.
    Bind {
        /// Absolute host path, resolved.
        source: PathBuf,
        /// Absolute path in the new root, free of symbolic links (as [`crate::mount::graft::Grafts::add`] gave it).
        destination: PathBuf,
        /// Whether the job may write.
        access: Access,
        /// What if the source has gone.
        need: Need,
    },
    /// Mount an empty file system in memory.
    Tmpfs {
        /// As of a bind.
        destination: PathBuf,
        /// Permission bits of its root.
        mode: u32,
        /// Most bytes; none means the kernel's limit, half of the memory.
        size_bytes: Option<u64>,
        /// What is in it at first: paths relative to it, parents before what lies in them.
        entries: Vec<(PathBuf, Entry)>,
    },
    /// Serve another image file, read-only.
    DataImage {
        /// Absolute host path of the image file, resolved.
        source: PathBuf,
        /// As of a bind.
        destination: PathBuf,
    },
    /// Mount a `/proc` that shows the processes of the job's own namespace.
    Processes {
        /// As of a bind.
        destination: PathBuf,
    },
    /// Lay directories over the root, so that it can be written to.
    Overlay {
        /// Host directories, resolved, whose `upper` is laid over the root; the last is on top.
        layers: Vec<PathBuf>,
        /// Where writes go.
        upper: Upper,
    },
    /// Make the new root `/` and drop the old one.
    PivotRoot,
}

impl Op {
    /// Where in the new root something is mounted.
    pub fn destination(&self) -> Option<&PathBuf> {
        match self {
            Op::Bind { destination, .. }
            | Op::Tmpfs { destination, .. }
            | Op::DataImage { destination, .. }
            | Op::Processes { destination } => Some(destination),
            Op::Root(_) | Op::Overlay { .. } | Op::PivotRoot => None,
        }
    }

    /// The same, to be changed.
    pub fn destination_mut(&mut self) -> Option<&mut PathBuf> {
        match self {
            Op::Bind { destination, .. }
            | Op::Tmpfs { destination, .. }
            | Op::DataImage { destination, .. }
            | Op::Processes { destination } => Some(destination),
            Op::Root(_) | Op::Overlay { .. } | Op::PivotRoot => None,
        }
    }

    /// Whether the launch goes on without it where it cannot be done.
    pub fn is_optional(&self) -> bool {
        matches!(self, Op::Bind { need: Need::Optional, .. })
    }
}

/// An op with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedOp {
    /// What.
    pub op: Op,
    /// Why.
    pub reason: Reason,
}

/// The new root from first op to last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountPlan {
    /// In order.
    pub ops: Vec<PlannedOp>,
}

impl MountPlan {
    /// Whether the root is an image file, for which an image server is needed.
    pub fn is_served(&self) -> bool {
        self.ops.iter().any(|planned| matches!(planned.op, Op::Root(RootSource::Image(_))))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Default => f.write_str("default"),
            Reason::Policy { file, line } => write!(f, "{}:{line}", file.display()),
            Reason::Flag(flag) => f.write_str(flag),
            Reason::Image(field) => write!(f, "image {field}"),
            Reason::Host(fact) => f.write_str(fact),
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Root(RootSource::Image(path)) => write!(f, "squashfs {} -> /", path.display()),
            Op::Root(RootSource::Premounted { tree, .. }) => write!(f, "bind {} -> / ro", tree.display()),
            Op::Bind { source, destination, access, need } => {
                let access = match access {
                    Access::ReadOnly => "ro",
                    Access::ReadWrite => "rw",
                };
                write!(f, "bind {} -> {} {access}", source.display(), destination.display())?;
                match need {
                    Need::Required => Ok(()),
                    Need::Optional => f.write_str(" optional"),
                    Need::Made => f.write_str(" made if missing"),
                }
            }
            Op::Tmpfs { destination, mode, size_bytes, .. } => {
                write!(f, "tmpfs -> {} mode {mode:04o}", destination.display())?;
                size_bytes.map_or(Ok(()), |size| write!(f, " size {size}"))
            }
            Op::DataImage { source, destination } => {
                write!(f, "squashfs {} -> {}", source.display(), destination.display())
            }
            Op::Processes { destination } => write!(f, "proc -> {}", destination.display()),
            Op::Overlay { layers, upper } => {
                f.write_str("overlay ")?;
                for layer in layers {
                    write!(f, "{} ro, ", layer.display())?;
                }
                match upper {
                    Upper::None => f.write_str("no writes -> /"),
                    Upper::Memory { size_bytes: None } => f.write_str("memory rw -> /"),
                    Upper::Memory { size_bytes: Some(size) } => write!(f, "memory rw size {size} -> /"),
                    Upper::Directory(path) => write!(f, "{} rw -> /", path.display()),
                }
            }
            Op::PivotRoot => f.write_str("pivot_root"),
        }
    }
}

impl fmt::Display for PlannedOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<50}  # {}", self.op.to_string(), self.reason)
    }
}
