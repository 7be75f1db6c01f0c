//! What the site's policy judges of an opened image file.

use std::os::unix::ffi::OsStrExt as _;

use crate::cli::image_file::ImageFile;
use crate::cli::report::Failure;
use crate::cli::signatures;
use crate::elf::library_cache;
use crate::image::digest::Digest;
use crate::image::trailer::{Provenance, SectionKind};
use crate::launch::modules::library_candidates;
use crate::policy::Policy;
use crate::policy::decide::{ImageTraits, Signed};
use crate::policy::rules::images::Format;
use crate::sys::caller;

/// The largest `ld.so.cache` that is read, bytes.
const LIBRARY_CACHE_LIMIT: u64 = 4 << 20;

/// Looks no further than `policy` asks.
pub(crate) fn of(image: &ImageFile, policy: &Policy) -> Result<ImageTraits, Failure> {
    let uid = image.identity.owner;
    let owner = match policy.asks_for_owner_names() {
        true => caller::user_entry(uid).ok().flatten().map(|entry| entry.name),
        false => None,
    };
    let format = match (image.contents(), image.sif) {
        (_, Some(_)) => Format::Sif,
        (Some(_), None) => Format::Hpcrun,
        (None, None) => Format::Squashfs,
    };
    let provenance = image.provenance()?;
    let reference = provenance.and_then(|provenance| provenance.origin.strip_prefix("docker://"));
    let digests = provenance.map(|provenance| digests(image, provenance, policy)).unwrap_or_default();
    Ok(ImageTraits {
        uid,
        owner,
        format: Some(format),
        reference: reference.map(str::to_owned),
        digests,
        signature: match policy.requires_signature() {
            Some(_) => signatures::judge(image, policy)?,
            None => Signed::Unknown,
        },
        sonames: sonames(image, policy)?,
    })
}

/// The digest of the image's manifest, by which it is named, and where some are denied those of its config and layers.
fn digests(image: &ImageFile, provenance: &Provenance, policy: &Policy) -> Vec<String> {
    let mut digests = vec![provenance.manifest_digest.clone()];
    if policy.rules().images.deny_digests.is_empty() {
        return digests;
    }
    let read_at = |offset: u64, bytes: &mut [u8]| image.read_at(offset, bytes);
    let config = image.contents().and_then(|contents| contents.required(SectionKind::Config, &read_at).ok());
    digests.extend(config.map(|config| Digest::of(&config).as_str().to_owned()));
    for layer in &provenance.layers {
        digests.extend(layer.digest.clone());
        digests.push(layer.diff_id.clone());
    }
    digests
}

/// Those of the policy's sonames that the image has: by its cache of libraries, else in the usual directories.
fn sonames(image: &ImageFile, policy: &Policy) -> Result<Vec<String>, Failure> {
    let mut wanted = policy.module_sonames().peekable();
    if wanted.peek().is_none() {
        return Ok(Vec::new());
    }
    let cache =
        image.filesystem.small_file(library_cache::PATH.as_bytes(), LIBRARY_CACHE_LIMIT).ok().flatten();
    let cache = cache.unwrap_or_default();
    let mut found = Vec::new();
    for soname in wanted {
        let mut has = library_cache::path_of(&cache, soname.as_bytes()).is_some();
        for candidate in library_candidates(soname) {
            has = has || image.resolve(candidate.as_os_str().as_bytes())?.is_some();
        }
        if has {
            found.push(soname.to_owned());
        }
    }
    Ok(found)
}
