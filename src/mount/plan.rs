//! The mount plan: ordered ops, each with the reason it exists. Pure data; printing it is its documentation.

use std::fmt;
use std::path::PathBuf;

/// What the new root is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootSource {
    /// The image file, served by the image server.
    Image(PathBuf),
    /// A tree that the admin has mounted already (policy `premounted`), bound read-only.
    Premounted(PathBuf),
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
    /// Make the new root `/` and drop the old one.
    PivotRoot,
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
            Op::Root(RootSource::Premounted(path)) => write!(f, "bind {} -> / ro", path.display()),
            Op::Bind { source, destination, access, need } => {
                let access = match access {
                    Access::ReadOnly => "ro",
                    Access::ReadWrite => "rw",
                };
                write!(f, "bind {} -> {} {access}", source.display(), destination.display())?;
                if *need == Need::Optional { f.write_str(" optional") } else { Ok(()) }
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
