//! What a word in the place of an image means: a path, or an image of a store.
//!
//! A path if it begins with `/`, `./` or `../`, ends as image files do, or something that is no directory is there; else a
//! name or a digest, looked for in the user's store and then in the site's. Nothing is ever fetched.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::cli::output;
use crate::cli::registries_conf;
use crate::cli::report::{Failure, chain};
use crate::cli::stores::{self, Stores};
use crate::convert::source::registry::short_names;
use crate::host::Environment;
use crate::host::step::ParallelStep;
use crate::image::reference::{Reference, is_short};
use crate::image::store::step::Owner;
use crate::image::store::word::{candidates, short_name};
use crate::image::store::{Key, Name, StepRecord, Word, classify};
use crate::policy::Policy;
use crate::store::{Step, Store, StoreError};

/// An image of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// Which.
    pub(crate) key: Key,
    /// By which name; none if by its digest.
    pub(crate) name: Option<Name>,
    /// In whose store the file is.
    pub(crate) owner: Owner,
    /// The file.
    pub(crate) path: PathBuf,
}

/// The image file that `word` means.
pub(crate) fn locate(word: &Path, policy: &Policy) -> Result<PathBuf, Failure> {
    resolve(word, policy, None)
}

/// The same for a launch: all ranks of a parallel step get the same image, whatever happens to a tag meanwhile.
pub(crate) fn locate_for_launch(
    word: &Path,
    policy: &Policy,
    environment: &Environment,
) -> Result<PathBuf, Failure> {
    resolve(word, policy, ParallelStep::from_environment(environment))
}

fn resolve(word: &Path, policy: &Policy, step: Option<ParallelStep>) -> Result<PathBuf, Failure> {
    let typed = word.as_os_str();
    let kind = classify(typed);
    let is_there = std::fs::symlink_metadata(word).is_ok_and(|_| !word.is_dir());
    match kind {
        Word::Path => return Ok(word.to_owned()),
        Word::Either(_) | Word::Digest(_) if is_there => {
            warn_of_namesake(typed, policy);
            return Ok(word.to_owned());
        }
        _ => {}
    }
    let stores = Stores::open(policy);
    let found = match step.and_then(|step| Some(Step { key: step.key?, valid: step.valid })) {
        Some(step) => find_for_step(typed, policy, &stores, &step)?,
        None => find(typed, policy, &stores)?,
    };
    match found {
        Some(found) => {
            log::info!("{} is {} in {}", typed.display(), found.key.digest(), found.path.display());
            Ok(found.path)
        }
        // A directory, as it was typed: what is wrong with it is said where it is opened.
        None if word.is_dir() => Ok(word.to_owned()),
        None => Err(not_found(typed, policy, &stores)),
    }
}

/// The image that `typed` means in the stores, whatever files there are.
pub(crate) fn find(typed: &OsStr, policy: &Policy, stores: &Stores) -> Result<Option<Found>, Failure> {
    match classify(typed) {
        Word::Path => Ok(None),
        Word::Digest(prefix) => find_digest(&prefix, stores),
        Word::Name(text) => {
            let name = Name::parse(&text).map_err(|error| Failure::plain(chain(&error)))?;
            find_names(&[name], stores)
        }
        Word::Either(text) => find_names(&names(&text, policy), stores),
    }
}

/// The names that a word may stand for, strongest first.
pub(crate) fn names(text: &str, policy: &Policy) -> Vec<Name> {
    let site = site_name(text, policy);
    let pulled = if site.is_none() { pulled(text) } else { None };
    candidates(text, site.as_ref(), pulled.as_ref())
}

/// What the site means by a short name.
pub(crate) fn site_name(text: &str, policy: &Policy) -> Option<Reference> {
    let names = &policy.rules().store.short_names;
    short_name(text, |name| {
        names.iter().find(|short| short.name == name).map(|short| short.reference.clone())
    })
}

/// What a pull would fetch that the site has no short name for; none where that cannot be told.
fn pulled(text: &str) -> Option<Reference> {
    if !is_short(text) {
        return Reference::parse(text).ok();
    }
    let conf = registries_conf::read()
        .inspect_err(|failure| log::info!("no short names of registries.conf: {}", failure.message()))
        .ok()?;
    short_names::resolve(text, &conf).ok().map(|(reference, _)| reference)
}

fn find_names(names: &[Name], stores: &Stores) -> Result<Option<Found>, Failure> {
    for store in &stores.open {
        for name in names {
            if let Some(found) = find_name(name, store, stores)? {
                return Ok(Some(found));
            }
        }
    }
    Ok(None)
}

fn find_name(name: &Name, store: &Store, stores: &Stores) -> Result<Option<Found>, Failure> {
    let failed = |error: StoreError| Failure::new(&error);
    let record = store.tag(name).map_err(failed)?;
    let key = match (record.as_ref().and_then(|record| record.current()), name.digest()) {
        (Some(key), _) => Some(key.clone()),
        // Pulled under another name.
        (None, Some(digest)) => store.of_digest(&digest).map_err(failed)?,
        (None, None) => None,
    };
    let Some(key) = key else { return Ok(None) };
    // A user's name may be of an image of the site.
    for store in std::iter::once(store).chain(&stores.open) {
        if let Some(path) = store.find(&key).map_err(failed)? {
            return Ok(Some(Found { key, name: Some(name.clone()), owner: store.owner(), path }));
        }
    }
    let what =
        format!("{name} is {} in {}, which has no such image any more", key.short(), store.path().display());
    Err(Failure::plain(what).hint("pull it again, or 'hpcrun rm' the name"))
}

fn find_digest(prefix: &str, stores: &Stores) -> Result<Option<Found>, Failure> {
    let mut found: Vec<(&Store, Key)> = Vec::new();
    for store in &stores.open {
        let images = store.with_digest(prefix).map_err(|error| Failure::new(&error))?;
        found.extend(images.into_iter().map(|image| (store, image.key)));
    }
    let Some((_, first)) = found.first() else { return Ok(None) };
    if let Some((_, other)) = found.iter().find(|(_, key)| key.digest() != first.digest()) {
        let what =
            format!("{prefix} begins several digests, {} and {} among them", first.digest(), other.digest());
        return Err(Failure::plain(what).hint("give more of its digits"));
    }
    for (store, key) in found {
        // Owner and mode are checked as for an image that has a name.
        if let Some(path) = store.find(&key).map_err(|error| Failure::new(&error))? {
            return Ok(Some(Found { path, key, name: None, owner: store.owner() }));
        }
    }
    Ok(None)
}

/// What the word means to a step: what its first rank found. Ranks that cannot agree do not start: they might run two images.
fn find_for_step(
    typed: &OsStr,
    policy: &Policy,
    stores: &Stores,
    step: &Step,
) -> Result<Option<Found>, Failure> {
    if is_fixed(typed) {
        return find(typed, policy, stores);
    }
    let closed = match stores.of(Owner::User) {
        Some(_) => None,
        // The site may want no images in the user's own store: the ranks agree there all the same.
        None => stores::agreed_in(policy),
    };
    let open = stores.of(Owner::User).or(closed.as_ref());
    let agreed = open.map(|own| own.agreed(step, typed)).transpose();
    if let Some(record) = agreed.map_err(|error| Failure::new(&error))?.flatten() {
        return of_record(record, stores).map(Some);
    }
    let Some(found) = find(typed, policy, stores)? else { return Ok(None) };
    let record = StepRecord { key: found.key.clone(), owner: found.owner };
    match agree(typed, policy, open, step, &record) {
        Ok(agreed) if agreed == record => Ok(Some(found)),
        Ok(agreed) => of_record(agreed, stores).map(Some),
        Err(failure) => {
            let context =
                format!("the ranks of this job step cannot agree on one image for {}", typed.display());
            let digest = found.key.digest();
            Err(failure
                .within(&context)
                .hint(format!("name the image by its digest, which means the same to all: {digest}")))
        }
    }
}

fn agree(
    typed: &OsStr,
    policy: &Policy,
    open: Option<&Store>,
    step: &Step,
    record: &StepRecord,
) -> Result<StepRecord, Failure> {
    let made;
    let own = match open {
        Some(own) => own,
        None => {
            made = stores::to_agree_in(policy)?;
            &made
        }
    };
    own.agree(step, typed, record).map_err(|error| Failure::new(&error))
}

/// Whether a word names one image for ever.
fn is_fixed(typed: &OsStr) -> bool {
    match classify(typed) {
        Word::Digest(_) => true,
        Word::Name(text) | Word::Either(text) => {
            Reference::parse(&text).is_ok_and(|reference| reference.digest().is_some())
        }
        Word::Path => false,
    }
}

fn of_record(record: StepRecord, stores: &Stores) -> Result<Found, Failure> {
    let StepRecord { key, owner } = record;
    let path = match stores.of(owner) {
        Some(store) => store.find(&key).map_err(|error| Failure::new(&error))?,
        None => None,
    };
    let gone = || {
        let what = format!("other ranks of this step run {}, which this node does not find", key.digest());
        Failure::plain(what).hint("is the store on a file system that all nodes share?")
    };
    let path = path.ok_or_else(gone)?;
    Ok(Found { key, name: None, owner, path })
}

/// A file wins over a name, but nobody should wonder about it.
fn warn_of_namesake(typed: &OsStr, policy: &Policy) {
    let stores = Stores::open(policy);
    if let Ok(Some(found)) = find(typed, policy, &stores) {
        let (file, image) = (typed.display(), found.key.short());
        log::warn!(
            "{file} is the file ./{file}; a store has {image} by that name: docker://REFERENCE or {image} means that one"
        );
    }
}

fn not_found(typed: &OsStr, policy: &Policy, stores: &Stores) -> Failure {
    let typed = output::one_line(&typed.to_string_lossy());
    let what = match classify(OsStr::new(&typed)) {
        Word::Either(_) => format!("cannot open image {typed}: there is no such file, and no store has it"),
        _ => format!("cannot open image {typed}: no store has it"),
    };
    let text = typed.strip_prefix("docker://").unwrap_or(&typed);
    let names: Vec<String> = match classify(OsStr::new(&typed)) {
        Word::Digest(prefix) => vec![prefix],
        Word::Name(_) => Name::parse(text).iter().map(Name::to_string).collect(),
        _ => names(text, policy).iter().map(Name::to_string).collect(),
    };
    let places = if stores.places.is_empty() { "no store".to_owned() } else { stores.places.join(" and ") };
    let mut failure = Failure::plain(what).hint(format!("looked for {} in {places}", names.join(", ")));
    for why in &stores.refused {
        failure = failure.hint(why.clone());
    }
    if let Some(name) = pullable(&typed, policy) {
        failure = failure.hint(format!("'hpcrun pull {typed}' fetches {name}"));
    }
    failure.hint("'hpcrun images' lists what is there")
}

/// What a pull of `typed` would fetch; none for digests, which no registry knows by themselves, and for names that only
/// 'hpcrun tag' gives.
fn pullable(typed: &str, policy: &Policy) -> Option<Name> {
    let reference = match classify(OsStr::new(typed)) {
        Word::Digest(_) | Word::Path => None,
        Word::Name(text) => Reference::parse(&text).ok(),
        Word::Either(text) => site_name(&text, policy).or_else(|| pulled(&text)),
    };
    reference.filter(|reference| reference.registry() != "localhost").map(|reference| Name::of(&reference))
}

/// The names that an image file has in the stores, for people; none if it is in no store.
pub(crate) fn names_of(path: &Path, stores: &Stores) -> Vec<String> {
    let Some(key) = path.file_name().and_then(Key::of_file_name) else { return Vec::new() };
    let Some(store) = stores.open.iter().find(|store| store.image_path(&key) == path) else {
        return Vec::new();
    };
    let (tags, _) = store.tags().unwrap_or_default();
    tags.iter().filter(|tag| tag.current() == Some(&key)).map(|tag| tag.name.to_string()).collect()
}
