//! Merges layers, top first, into one tree.
//!
//! What a layer says is gathered in a tree of its own ([`LayerTree`]), entry by entry, as tar means it; whiteouts are
//! put aside. Only at the layer's end is it laid *under* what the layers above made ([`Merge`]), and only then do its
//! whiteouts act, on the layers that are still to come. So file data can be stored the moment it streams past: a path
//! that is visible then stays visible.
//!
//! The rules and their reasons are the table in `docs/layers.md`.

mod error;
mod finish;
mod layer;
mod leaf;
mod memory;
mod merge;
mod meta;
mod names;
mod nodes;

pub use error::TreeError;
pub use layer::{Decision, LayerTree};
pub use leaf::LeafId;
pub use merge::{Merge, MergeOptions, Rescan};
pub use meta::Notes;
