//! The layer cache and the order of data, as asked for.

use std::env::var_os;
use std::path::{Path, PathBuf};

use crate::cli::convert_args::ConvertOptions;
use crate::cli::report::{Failure, chain};
use crate::cli::site::expand;
use crate::convert::{LayerCache, Order};
use crate::policy::Policy;

/// The word that stands for the directory of the XDG specification.
const AUTO: &str = "auto";

/// Bytes that a cache may take if nobody says otherwise.
const SIZE: u64 = 20 << 30;

/// The layer cache, if the user or else the site wants one. One that cannot be used costs a warning: the conversion does
/// not need it.
pub(crate) fn open(options: &ConvertOptions, policy: &Policy) -> Option<LayerCache> {
    if options.no_layer_cache {
        return None;
    }
    let asked = options.layer_cache.as_deref().filter(|path| !path.as_os_str().is_empty());
    if let (false, Some(rule)) = policy.allow_layer_cache() {
        if asked.is_some() {
            log::warn!("no layer cache: refused by site policy ({rule})");
        }
        return None;
    }
    let site = &policy.rules().convert;
    let path = match (asked, &site.layer_cache) {
        (Some(path), _) if path == Path::new(AUTO) => default_directory(),
        (Some(path), _) => Ok(path.to_owned()),
        (None, Some(template)) => expand(&template.value),
        (None, None) => return None,
    };
    let most = site.layer_cache_size.as_ref().map(|size| size.value);
    let size = options.layer_cache_size.or(most).unwrap_or(SIZE).min(most.unwrap_or(u64::MAX));
    match path.and_then(|path| LayerCache::open(&path, size).map_err(|error| chain(&error))) {
        Ok(cache) => Some(cache),
        Err(why) => {
            log::warn!("no layer cache: {why}");
            None
        }
    }
}

/// A relative path in XDG_CACHE_HOME is to be ignored, says the specification.
fn default_directory() -> Result<PathBuf, String> {
    let absolute = |name: &str| var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    let cache = cache.ok_or("neither XDG_CACHE_HOME nor HOME names a directory")?;
    Ok(cache.join("hpcrun/layers"))
}

/// The files whose data goes first.
pub(crate) fn order(options: &ConvertOptions) -> Result<Option<Order>, Failure> {
    let Some(path) = &options.order else { return Ok(None) };
    match std::fs::read(path) {
        Ok(text) => Ok(Some(Order::parse(&text))),
        Err(error) => Err(Failure::plain(format!("cannot read {}: {error}", path.display()))),
    }
}
