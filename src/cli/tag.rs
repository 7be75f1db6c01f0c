//! `hpcrun tag`: one more name for an image.

use std::ffi::OsString;

use clap::Args;

use crate::cli::report::{Failure, chain};
use crate::cli::stores::{self, StoreChoice, Stores};
use crate::cli::{image_word, site};
use crate::image::store::Name;
use crate::image::store::step::Owner;

/// Arguments of `tag`.
#[derive(Debug, Args)]
pub(crate) struct Tag {
    /// Image of a store: a name, or sha256: and the first digits of its digest
    pub(crate) image: OsString,
    /// New name; without a registry it is localhost/NAME
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) store: StoreChoice,
}

/// Gives the image the name, which may have meant another before.
pub(crate) fn run(args: &Tag) -> Result<u8, Failure> {
    let policy = site::policy()?;
    let name = Name::parse_local(&args.name).map_err(|error| Failure::plain(chain(&error)))?;
    if name.digest().is_some() {
        return Err(Failure::plain(format!("{name} is the name of one image for ever"))
            .hint("give a name with a tag: NAME:TAG"));
    }
    let store = stores::to_change(args.store, &policy)?;
    let found = image_word::find(&args.image, &policy, &Stores::open(&policy))?;
    let found = found.ok_or_else(|| {
        Failure::plain(format!("no store has {}", args.image.display()))
            .hint("'hpcrun images' lists what is there")
    })?;
    if store.owner() == Owner::Site && found.owner != Owner::Site {
        return Err(Failure::plain(format!(
            "{} is in your own store, not in the site's",
            args.image.display()
        ))
        .hint("pull it with --site first"));
    }
    let tagged = store.point(&name, &found.key, None).map_err(|error| Failure::new(&error))?;
    if let Some(before) = tagged.before.filter(|before| *before != found.key) {
        log::info!("{name} was {} before", before.digest());
    }
    Ok(0)
}
