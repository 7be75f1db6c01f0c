//! `hpcrun tag`: one more name for an image.

use std::ffi::{OsStr, OsString};

use clap::Args;

use crate::cli::report::{Failure, chain};
use crate::cli::stores::{self, StoreChoice, Stores};
use crate::cli::{image_word, site};
use crate::image::store::step::Owner;
use crate::image::store::{Name, Word, classify};

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
    let place = stores::chosen(args.store, &policy)?;
    let stores = Stores::open(&policy);
    // The site's names are of the site's images; what the one who gives them has in a store of his own is another matter.
    let stores = if place.owner == Owner::Site { stores.only(Owner::Site) } else { stores };
    let Some(found) = image_word::find(&args.image, &policy, &stores)? else {
        return Err(not_found(&args.image, place.owner, &stores));
    };
    let store = place.make()?;
    let tagged = store.point(&name, &found.key, None).map_err(|error| Failure::new(&error))?;
    if found.owner == store.owner() && !tagged.has_image {
        let what =
            format!("{} was collected meanwhile: {name} means an image that is gone", found.key.digest());
        return Err(Failure::plain(what).hint("pull it again"));
    }
    if let Some(before) = tagged.before.filter(|before| *before != found.key) {
        log::info!("{name} was {} before", before.digest());
    }
    Ok(0)
}

fn not_found(image: &OsStr, owner: Owner, stores: &Stores) -> Failure {
    let shown = image.display();
    let mut failure = match owner {
        Owner::User => Failure::plain(format!("no store has {shown}")),
        Owner::Site => Failure::plain(format!("the site's store has no {shown}")),
    };
    for why in &stores.refused {
        failure = failure.hint(why.clone());
    }
    if owner == Owner::Site && !matches!(classify(image), Word::Digest(_)) {
        failure = failure.hint(format!("'hpcrun pull --site {shown}' puts it there"));
    }
    failure.hint("'hpcrun images' lists what is there")
}
