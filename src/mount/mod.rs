//! The new root: an ordered mount plan, the image server (FUSE), and their enactment.

mod bind;
pub mod enact;
pub mod graft;
mod memory;
pub mod node_cache;
mod overlay;
pub mod plan;
mod root;
pub mod server;
mod verify;
pub mod voucher;

/// What an image server serves.
pub use crate::squashfs::reader::{FileLayout, Filesystem, InodeKind};
