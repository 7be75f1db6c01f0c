//! `hpcrun images`: what the stores hold.

use std::time::UNIX_EPOCH;

use clap::Args;
use serde_json::{Value, json};

use crate::cli::report::{Failure, chain};
use crate::cli::stores::Stores;
use crate::cli::{output, site, size, table};
use crate::image::store::{Key, TagRecord};
use crate::store::{Store, StoreError, StoredImage};

/// Arguments of `images`.
#[derive(Debug, Args)]
pub(crate) struct Images {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What one store holds.
struct Listing<'s> {
    store: &'s Store,
    tags: Vec<TagRecord>,
    images: Vec<StoredImage>,
}

impl Listing<'_> {
    fn of(store: &Store) -> Result<Listing<'_>, StoreError> {
        let (tags, unusable) = store.tags()?;
        unusable.iter().for_each(|error| log::warn!("{}", chain(error)));
        Ok(Listing { store, tags, images: store.images()? })
    }

    /// The names that mean an image now.
    fn names(&self, key: &Key) -> impl Iterator<Item = &TagRecord> {
        self.tags.iter().filter(move |tag| tag.current() == Some(key))
    }
}

/// Prints the user's images, then the site's.
pub(crate) fn run(args: &Images) -> Result<u8, Failure> {
    let stores = Stores::open(&site::policy()?);
    stores.refused.iter().for_each(|why| log::warn!("{why}"));
    let listings: Vec<Listing<'_>> = stores
        .open
        .iter()
        .map(Listing::of)
        .collect::<Result<_, _>>()
        .map_err(|error| Failure::new(&error))?;
    let text = if args.json {
        let images: Vec<Value> = listings.iter().flat_map(as_json).collect();
        format!("{:#}\n", json!({ "images": images }))
    } else {
        as_text(&listings)
    };
    output::data(text.as_bytes())
}

fn as_text(listings: &[Listing<'_>]) -> String {
    let mut rows = vec![["NAME", "DIGEST", "SIZE", "PULLED", "STORE"].map(str::to_owned)];
    for listing in listings {
        let whose = listing.store.owner().word().to_owned();
        for tag in &listing.tags {
            let Some(key) = tag.current() else { continue };
            let image = listing.images.iter().find(|image| image.key == *key);
            let bytes = image.map_or_else(|| "-".to_owned(), |image| size::bytes(image.bytes));
            let since = tag.entries().first().map(|entry| table::date(entry.at_seconds)).unwrap_or_default();
            rows.push([tag.name.to_string(), key.short(), bytes, since, whose.clone()]);
        }
        for image in &listing.images {
            if listing.names(&image.key).next().is_none() {
                let bytes = size::bytes(image.bytes);
                let written = table::date(written(image));
                rows.push(["-".to_owned(), image.key.short(), bytes, written, whose.clone()]);
            }
        }
    }
    table::lines(&rows)
}

fn as_json<'l>(listing: &'l Listing<'_>) -> impl Iterator<Item = Value> + 'l {
    listing.images.iter().map(|image| {
        json!({
            "digest": image.key.digest().as_str(),
            "tags": listing.names(&image.key).map(|tag| tag.name.as_str()).collect::<Vec<_>>(),
            "kept_by": listing
                .tags
                .iter()
                .filter(|tag| tag.kept().contains(&&image.key))
                .map(|tag| tag.name.as_str())
                .collect::<Vec<_>>(),
            "bytes": image.bytes,
            "written": written(image),
            "store": listing.store.owner().word(),
            "path": listing.store.image_path(&image.key).to_string_lossy(),
        })
    })
}

/// Seconds after 1970.
fn written(image: &StoredImage) -> u64 {
    image.written.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
