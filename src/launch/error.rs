//! Why a launch cannot be planned, and how to go on.

use std::path::PathBuf;

use super::command::CommandError;
use super::env::EnvError;
use super::identity::IdentityError;
use crate::hint::Hint;
use crate::mount::plan::Reason;
use crate::policy::Refusal;

/// A launch that cannot be planned. Nothing has been touched.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The site says no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// hpcrun was made setuid.
    #[error("hpcrun runs setuid (uid {uid}, effective {effective_uid}), which it must not")]
    Setuid {
        /// Real.
        uid: u32,
        /// Effective.
        effective_uid: u32,
    },
    /// No user namespaces.
    #[error("this node forbids user namespaces: {why}")]
    UserNamespaces {
        /// The switch that forbids them.
        why: String,
    },
    /// No FUSE.
    #[error("this node cannot mount the image: {why}")]
    Fuse {
        /// What is missing.
        why: String,
    },
    /// A user's bind source.
    #[error("cannot bind {} ({option}): {why}", path.display())]
    BindSource {
        /// The host path.
        path: PathBuf,
        /// The option.
        option: Reason,
        /// What is wrong with it.
        why: String,
    },
    /// `--mpi=host`
    #[error("this site does not say which MPI --mpi=host means")]
    NoHostMpi,
    /// `--scratch`
    #[error("cannot make the scratch directory {}: it is not an absolute path", path.display())]
    RelativeScratch {
        /// As asked.
        path: PathBuf,
    },
    /// `--workdir` with nothing to keep in it.
    #[error("nothing is kept in --workdir {}", path.display())]
    IdleWorkdir {
        /// As asked.
        path: PathBuf,
    },
    /// `--overlay`
    #[error("cannot lay {} over the image: {why}", path.display())]
    Overlay {
        /// The host directory.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A site's bind source that must be there.
    #[error("cannot bind {}, as {reason} demands: {why}", path.display())]
    SiteSource {
        /// The host path.
        path: PathBuf,
        /// The rule.
        reason: Reason,
        /// What is wrong with it.
        why: String,
    },
    /// A destination that is the host's.
    #[error("cannot bind onto {} ({reason}): it belongs to every launch", path.display())]
    Destination {
        /// The destination.
        path: PathBuf,
        /// Who asked for it.
        reason: Reason,
    },
    /// Two binds, one destination.
    #[error("two binds onto {}: {first}, and {second}", path.display())]
    SameDestination {
        /// The destination.
        path: PathBuf,
        /// One.
        first: Reason,
        /// The other.
        second: Reason,
    },
    /// A mount point that is the host's to have, and that it lacks.
    #[error("cannot bind onto {} ({reason}): the host has no {}", path.display(), on_host.display())]
    MountPoint {
        /// The destination.
        path: PathBuf,
        /// The same place on the host.
        on_host: PathBuf,
        /// Who asked for it.
        reason: Reason,
    },
    /// A GPU cannot be used as it should be, and the site would rather have no launch then.
    #[error("cannot give the job its GPU: {why}")]
    Gpu {
        /// What is wrong.
        why: String,
    },
    /// `--gpu=cdi:NAME`
    #[error("cannot give the job its devices")]
    GpuDevice(#[source] crate::host::cdi::ResolveError),
    /// `--cwd`
    #[error("cannot start in {}: {why}", path.display())]
    Cwd {
        /// As asked.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The environment.
    #[error("cannot make the job's environment")]
    Env(#[source] EnvError),
    /// The caller's entry in passwd and group.
    #[error("cannot tell the job who it runs as")]
    Identity(#[from] IdentityError),
    /// What to execute.
    #[error("cannot tell what to execute")]
    Command(#[from] CommandError),
}

impl From<EnvError> for PlanError {
    fn from(error: EnvError) -> PlanError {
        match error {
            // A refusal is a refusal, wherever it was met: it has its own exit status.
            EnvError::Refused(refusal) => PlanError::Refused(refusal),
            error => PlanError::Env(error),
        }
    }
}

impl Hint for PlanError {
    fn hints(&self) -> Vec<String> {
        let line = |line: &str| vec![line.to_owned()];
        match self {
            PlanError::Refused(refusal) => refusal.hints(),
            PlanError::Setuid { .. } => line("hpcrun needs no privilege: chmod u-s it"),
            PlanError::UserNamespaces { .. } | PlanError::Fuse { .. } => {
                line("'hpcrun doctor' says how this node can be mended")
            }
            PlanError::BindSource { .. } => line("is the file system mounted on this node?"),
            PlanError::NoHostMpi => line(
                "an administrator describes it under [modules] in the policy and names it as mpi.host_module",
            ),
            PlanError::RelativeScratch { .. } => line("give an absolute path in the new root"),
            PlanError::IdleWorkdir { .. } => {
                line("it keeps what --contain and --scratch make; the directory to start in is --cwd")
            }
            PlanError::Overlay { .. } => {
                line("an overlay is a host directory; one of them, the last, may be written to")
            }
            PlanError::SiteSource { .. } => {
                line("tell the administrator: this node lacks it, or the rule should be optional")
            }
            PlanError::Destination { .. } => line("bind to another place, and tell the program about it"),
            PlanError::SameDestination { .. } => line("give each bind its own destination: --bind SRC:DST"),
            PlanError::MountPoint { on_host, .. } => {
                vec![format!("make it (mkdir {}), or bind to another place", on_host.display())]
            }
            PlanError::Gpu { .. } => line("--gpu=none starts the job without"),
            PlanError::GpuDevice(error) => vec![known_devices(error)],
            PlanError::Cwd { .. } => line("give an absolute path in the new root"),
            PlanError::Env(error) => error.hints(),
            PlanError::Identity(error) => error.hints(),
            PlanError::Command(error) => error.hints(),
        }
    }
}

fn known_devices(error: &crate::host::cdi::ResolveError) -> String {
    match error {
        crate::host::cdi::ResolveError::Unknown { known, .. } if known.is_empty() => {
            "this node has no CDI specifications in /etc/cdi or /var/run/cdi, or wherever the site keeps them"
                .to_owned()
        }
        crate::host::cdi::ResolveError::Unknown { known, .. } => {
            format!("this node has {}", known.join(", "))
        }
        crate::host::cdi::ResolveError::Conflict { .. } => {
            "tell the administrator: one of the files has to go".to_owned()
        }
    }
}
