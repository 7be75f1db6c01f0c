//! Request + image config + policy + host facts into a [`plan::LaunchPlan`]; enacting it; becoming the job.

pub mod binds;
pub mod command;
pub mod enact;
pub mod enter;
pub mod env;
pub mod env_file;
pub mod env_names;
pub mod error;
pub mod explain;
pub mod gpu;
pub mod identity;
pub mod inject;
mod isolate;
mod job;
pub mod modules;
pub mod mount_option;
pub mod mpi;
mod overlay;
mod overlay_lock;
pub mod plan;
pub mod precedence;
pub mod premounted;
mod private;
mod program;
pub mod record;
pub mod request;
pub mod resolve;
pub mod share;
pub mod share_key;
mod warm_up;

pub use binds::paths_to_probe;
pub use plan::{ImageFacts, LaunchPlan, PlanError, plan};
pub use premounted::trees_to_probe;
pub use request::Request;
pub use resolve::resolve;
