//! hpcrun turns a Docker/OCI image into one squashfs file and launches jobs from it in a user namespace.
//!
//! Two pipelines that meet only in a file:
//!
//! ```text
//! convert:  reference -> source -> manifest -> layer streams -> merged tree -> squashfs writer -> image file
//! launch:   argv + image file + site policy + host facts --plan--> LaunchPlan --enact--> namespaces, mounts, exec
//! ```
//!
//! The module map, who may import whom and the invariants are in `ARCHITECTURE.md`; `tests/it/tidy.rs` asserts them.

pub mod cli;
pub mod convert;
pub mod elf;
pub mod hint;
pub mod host;
pub mod image;
pub mod launch;
pub mod mount;
pub mod policy;
pub mod squashfs;
pub mod store;
pub mod sys;
