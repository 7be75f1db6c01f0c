//! `hpcrun rm`: takes names from a store.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::Args;

use crate::cli::report::{Failure, STATUS_FAILED, chain};
use crate::cli::stores::{self, StoreChoice};
use crate::cli::{image_word, output, site};
use crate::image::store::{Key, Name, TagRecord, Word, classify};
use crate::policy::Policy;
use crate::store::{Store, StoreError};

/// Arguments of `rm`.
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Names, or sha256: and the first digits of a digest
    #[arg(required = true)]
    pub(crate) images: Vec<OsString>,
    #[command(flatten)]
    pub(crate) store: StoreChoice,
    /// With a digest, take away the names that mean it, too, and have other names forget that they once did
    #[arg(short, long)]
    pub(crate) force: bool,
}

/// Takes all that can be taken.
pub(crate) fn run(args: &Rm, quiet: bool) -> Result<u8, Failure> {
    let policy = site::policy()?;
    let place = stores::chosen(args.store, &policy)?;
    let store = place.open()?;
    let mut status = 0;
    for image in &args.images {
        let removed = match &store {
            Some(store) => remove(image, args.force, store, &policy),
            None => Err(missing(image, &place.path)),
        };
        match removed {
            Ok(removed) if !quiet => removed.iter().for_each(|line| output::message(line)),
            Ok(_) => {}
            Err(failure) => {
                failure.print();
                status = STATUS_FAILED;
            }
        }
    }
    Ok(status)
}

fn remove(image: &OsStr, force: bool, store: &Store, policy: &Policy) -> Result<Vec<String>, Failure> {
    let names = match classify(image) {
        Word::Digest(prefix) => return remove_digest(&prefix, force, store),
        Word::Either(text) => image_word::names(&text, policy),
        Word::Name(text) => vec![Name::parse(&text).map_err(|error| Failure::plain(chain(&error)))?],
        Word::Path => {
            return Err(Failure::plain(format!("{} is no name of an image", image.display()))
                .hint("files are removed by 'rm'"));
        }
    };
    for name in &names {
        if store.untag(name).map_err(|error| Failure::new(&error))? {
            return Ok(vec![format!("removed the name {name}")]);
        }
    }
    Err(missing(image, store.path()))
}

fn missing(image: &OsStr, store: &Path) -> Failure {
    let (image, store) = (image.display(), store.display());
    Failure::plain(format!("{store} has no image {image}"))
        .hint("'hpcrun images' lists what is there; --site and --user choose the store")
}

fn remove_digest(prefix: &str, force: bool, store: &Store) -> Result<Vec<String>, Failure> {
    let failed = |error: StoreError| Failure::new(&error);
    let images = store.with_digest(prefix).map_err(failed)?;
    let Some(digest) = images.first().map(|image| image.key.digest().clone()) else {
        return Err(missing(OsStr::new(prefix), store.path()));
    };
    if images.iter().any(|image| *image.key.digest() != digest) {
        return Err(
            Failure::plain(format!("{prefix} begins several digests")).hint("give more of its digits")
        );
    }
    let (tags, unusable) = store.tags().map_err(failed)?;
    if let Some(error) = unusable.into_iter().next() {
        return Err(failed(error));
    }
    let is_it = |key: &Key| *key.digest() == digest;
    let (current, holding): (Vec<&TagRecord>, Vec<&TagRecord>) = tags
        .iter()
        .filter(|tag| tag.kept().into_iter().any(is_it))
        .partition(|tag| tag.current().is_some_and(is_it));
    if !force && (!current.is_empty() || !holding.is_empty()) {
        return Err(held(prefix, &current, &holding));
    }
    let mut removed = Vec::new();
    for tag in current {
        // It may have come to mean another image meanwhile.
        let now = store.tag(&tag.name).map_err(failed)?;
        let means_it = now.is_some_and(|now| now.current().is_some_and(is_it));
        if means_it && store.untag(&tag.name).map_err(failed)? {
            removed.push(format!("removed the name {}", tag.name));
        }
    }
    for tag in holding {
        if store.forget(&tag.name, &digest).map_err(failed)? {
            removed.push(format!("{} does not hold it any more", tag.name));
        }
    }
    for image in &images {
        if store.remove(&image.key).map_err(failed)? {
            removed.push(format!("took away {}", image.key.digest()));
        }
    }
    Ok(removed)
}

/// Names that mean an image, and names that hold it as an earlier one.
fn held(prefix: &str, current: &[&TagRecord], holding: &[&TagRecord]) -> Failure {
    let names = current.iter().map(|tag| tag.name.to_string());
    let earlier = holding.iter().map(|tag| format!("{} (as an earlier image)", tag.name));
    let names: Vec<String> = names.chain(earlier).collect();
    Failure::plain(format!("{prefix} is held by {}", names.join(", "))).hint(
        "'hpcrun rm' the names that mean it, or --force, which leaves names that mean another image now",
    )
}
