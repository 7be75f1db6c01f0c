//! The directories that images are kept in: the user's, the site's, the node's cache.

use std::path::{Path, PathBuf};

use crate::cli::stores;
use crate::host::doctor::{Keep, Wanted};
use crate::host::probe;
use crate::policy::Policy;
use crate::policy::rules::store::NODE_CACHE_SIZE_BYTES;

/// Room for an image of usual size.
const IMAGE_ROOM_BYTES: u64 = 1 << 30;

/// A directory with its name in the report.
type Named = (&'static str, PathBuf);

/// All that this site and this user have, in the order of a launch's search.
pub(crate) fn directories(policy: &Policy) -> Vec<Named> {
    let store = &policy.rules().store;
    let own = if stores::allows_user(policy) { stores::user_directory(policy).ok() } else { None };
    let of_user = own.map(|path| ("user's images", path));
    let site = store.site_dir.as_ref().map(|dir| ("site's images", dir.value.clone()));
    let cache = store.node_cache.as_ref().map(|dir| ("node's cache", dir.value.clone()));
    of_user.into_iter().chain(site).chain(cache).collect()
}

/// What is at each of them.
pub(super) fn gather(policy: &Policy) -> Vec<Keep> {
    let store = &policy.rules().store;
    let cache_bytes = store.node_cache_size_bytes.as_ref().map_or(NODE_CACHE_SIZE_BYTES, |size| size.value);
    let keep = |(name, path): Named| match name {
        "site's images" => probe::keep(name, &path, Wanted::Site, 0),
        "node's cache" => probe::keep(name, &path, Wanted::Node, cache_room(&path, cache_bytes)),
        _ => probe::keep(name, &path, Wanted::Own, IMAGE_ROOM_BYTES),
    };
    directories(policy).into_iter().map(keep).collect()
}

/// What should be free for a cache of `size` bytes: a full one needs nothing more.
fn cache_room(path: &Path, size: u64) -> u64 {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let used: u64 = entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum();
    size.saturating_sub(used)
}
