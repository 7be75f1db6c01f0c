//! What a launch wants of the node's cache, by the site's policy.

use crate::cli::image_file::ImageFile;
use crate::launch::plan::LaunchPlan;
use crate::mount::node_cache::{Settings, Wanted};
use crate::mount::plan::{Op, RootSource};
use crate::policy::Policy;
use crate::policy::file::Located;
use crate::policy::rules::Verify;
use crate::policy::rules::store::{NODE_CACHE_MIN_BYTES, NODE_CACHE_SIZE_BYTES};

/// How a copy of `image` is found; none where the site has no cache, the image is too small or too large for it, or
/// nobody serves it.
pub(crate) fn wanted(
    plan: &LaunchPlan,
    image: &ImageFile,
    verify: Verify,
    policy: &Policy,
) -> Option<Wanted> {
    let is_served = plan.mount.ops.iter().any(|op| matches!(op.op, Op::Root(RootSource::Image(_))));
    let settings = settings(policy)?;
    let original = image.original(verify).ok().filter(|_| is_served)?;
    Some(Wanted { settings, original }).filter(Wanted::fits)
}

/// The cache that the site has on its nodes, if it has one.
pub(crate) fn settings(policy: &Policy) -> Option<Settings> {
    let rules = &policy.rules().store;
    let bytes = |size: &Option<Located<u64>>, default| size.as_ref().map_or(default, |size| size.value);
    Some(Settings {
        directory: rules.node_cache.as_ref()?.value.clone(),
        size_bytes: bytes(&rules.node_cache_size_bytes, NODE_CACHE_SIZE_BYTES),
        min_bytes: bytes(&rules.node_cache_min_bytes, NODE_CACHE_MIN_BYTES),
    })
}
