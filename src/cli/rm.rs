//! `hpcrun rm`: takes names from a store.

use std::ffi::{OsStr, OsString};

use clap::Args;

use crate::cli::report::{Failure, STATUS_FAILED, chain};
use crate::cli::stores::{self, StoreChoice};
use crate::cli::{image_word, output, site};
use crate::image::store::{Name, Word, classify};
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
    /// With a digest, take away all its names, too
    #[arg(short, long)]
    pub(crate) force: bool,
}

/// Takes all that can be taken.
pub(crate) fn run(args: &Rm, quiet: bool) -> Result<u8, Failure> {
    let policy = site::policy()?;
    let store = stores::to_change(args.store, &policy)?;
    let mut status = 0;
    for image in &args.images {
        match remove(image, args.force, &store, &policy) {
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
    let place = store.path().display();
    Err(Failure::plain(format!("{place} has no image {}", image.display()))
        .hint("'hpcrun images' lists what is there; --site and --user choose the store"))
}

fn remove_digest(prefix: &str, force: bool, store: &Store) -> Result<Vec<String>, Failure> {
    let failed = |error: StoreError| Failure::new(&error);
    let images = store.with_digest(prefix).map_err(failed)?;
    let Some(digest) = images.first().map(|image| image.key.digest().clone()) else {
        return Err(Failure::plain(format!("{} has no image {prefix}", store.path().display())));
    };
    if images.iter().any(|image| *image.key.digest() != digest) {
        return Err(Failure::plain(format!("{prefix} begins several digests")));
    }
    let (tags, _) = store.tags().map_err(failed)?;
    let holds = |tag: &&crate::image::store::TagRecord| tag.kept().iter().any(|key| *key.digest() == digest);
    let names: Vec<Name> = tags.iter().filter(holds).map(|tag| tag.name.clone()).collect();
    if !names.is_empty() && !force {
        let names: Vec<String> = names.iter().map(Name::to_string).collect();
        return Err(Failure::plain(format!("{prefix} is held by {}", names.join(", ")))
            .hint("'hpcrun rm' these names, or --force"));
    }
    let mut removed = Vec::new();
    for name in &names {
        if store.untag(name).map_err(failed)? {
            removed.push(format!("removed the name {name}"));
        }
    }
    for image in &images {
        if store.remove(&image.key).map_err(failed)? {
            removed.push(format!("took away {}", image.key.digest()));
        }
    }
    Ok(removed)
}
