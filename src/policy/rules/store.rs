//! `[store]`: where images are kept.

use std::path::PathBuf;

use crate::image::reference::Reference;
use crate::policy::file::{Located, Position};
use crate::policy::template::Template;

/// Bytes that a node's cache may take where the site does not say.
pub const NODE_CACHE_SIZE_BYTES: u64 = 20 << 30;

/// The smallest image file that is worth a copy on the node, bytes, where the site does not say.
pub const NODE_CACHE_MIN_BYTES: u64 = 16 << 20;

/// `[store]`
#[derive(Debug, Clone, Default)]
pub struct Store {
    /// Directory of a user's images; none means below the user's data directory.
    pub user_dir: Option<Located<Template>>,
    /// Directory of the site's images.
    pub site_dir: Option<Located<PathBuf>>,
    /// Directory on the node's own disk for copies of image files.
    pub node_cache: Option<Located<PathBuf>>,
    /// Bytes that the copies may take; none means [`NODE_CACHE_SIZE_BYTES`].
    pub node_cache_size_bytes: Option<Located<u64>>,
    /// The smallest image file to copy, bytes; none means [`NODE_CACHE_MIN_BYTES`].
    pub node_cache_min_bytes: Option<Located<u64>>,
    /// Whether users may have images of their own in a store; none means yes.
    pub allow_user: Option<Located<bool>>,
    /// Whether images may be pulled inside of a job step of many ranks; none means no.
    pub allow_pull_in_jobs: Option<Located<bool>>,
    /// What short names stand for.
    pub short_names: Vec<ShortName>,
}

/// A short name of the site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShortName {
    /// As users write it.
    pub name: String,
    /// What it stands for.
    pub reference: Reference,
    /// Where the rule stands.
    pub at: Position,
}
