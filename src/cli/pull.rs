//! `hpcrun pull`: an image of a registry into a store, or into one file.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Instant;

use crate::cli::convert::{self, Opened};
use crate::cli::convert_args::{ConvertOptions, Pull};
use crate::cli::report::Failure;
use crate::cli::{image_word, limits, output, registries_conf, site, stores};
use crate::convert::source::registry::{RegistriesConf, short_names};
use crate::convert::{ConvertError, Destination};
use crate::image::reference::{Reference, SourceReference};
use crate::image::store::{IMAGES, Key, Name};
use crate::policy::Policy;
use crate::store::{Store, StoreError};

/// An image that a store is to hold.
pub(crate) struct Wanted<'a> {
    /// Where it comes from.
    pub(crate) source: &'a SourceReference,
    /// What is configured about registries.
    pub(crate) registries: RegistriesConf,
    /// What it is to be called.
    pub(crate) names: &'a [Name],
    /// How many images each name is to hold; none leaves that as it is.
    pub(crate) keep: Option<usize>,
    /// How to fetch and convert it.
    pub(crate) options: &'a ConvertOptions,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pulled {
    /// The image that the names mean now.
    pub(crate) key: Key,
    /// What the first of them meant before.
    pub(crate) before: Option<Key>,
    /// What was fetched, for people; none if the store had it already.
    pub(crate) fetched: Option<String>,
}

/// Runs `hpcrun pull REFERENCE [DEST]`.
pub(crate) fn pull(args: &Pull, quiet: bool) -> Result<u8, Failure> {
    let registries = registries_conf::read()?;
    let policy = site::policy()?;
    let reference = parse(&args.reference, &registries, &policy)?;
    let name = Name::of(&reference);
    let source = SourceReference::Registry(reference);
    if let Some(dest) = &args.dest {
        if args.store.site || args.store.user {
            return Err(Failure::plain("an image goes into a store or into a file, not both")
                .hint("leave out the file, or --site and --user"));
        }
        return convert::into_file(&source, registries, dest, &args.options, quiet);
    }
    let store = stores::to_change(args.store, &policy)?;
    let names = [name];
    let wanted = Wanted { source: &source, registries, names: &names, keep: None, options: &args.options };
    let pulled = into_store(&store, wanted, &policy, quiet)?;
    if !quiet {
        output::message(&closing_line(&names[0], &pulled));
    }
    Ok(0)
}

/// `docker://NAME` means what it means everywhere; `NAME` alone may be a short name of the site or of `registries.conf`.
fn parse(typed: &OsStr, registries: &RegistriesConf, policy: &Policy) -> Result<Reference, Failure> {
    if typed.as_bytes().starts_with(b"docker://") {
        return match convert::parse_source(typed)? {
            SourceReference::Registry(reference) => Ok(reference),
            _ => Err(Failure::plain("pull takes a registry reference")),
        };
    }
    let name = typed.to_str().ok_or_else(|| Failure::plain(format!("{typed:?} is not UTF-8")))?;
    if let Some(reference) = image_word::site_name(name, policy) {
        log::info!("{name} is {reference} ([store] short_names)");
        return Ok(reference);
    }
    let (reference, at) = short_names::resolve(name, registries).map_err(|error| Failure::new(&error))?;
    if let Some(at) = at {
        log::info!("{name} is {reference} ({at})");
    }
    Ok(reference)
}

/// Has the store hold an image under names. Nothing is fetched if it has the image; if another process is about to fetch
/// it, that one is waited for.
pub(crate) fn into_store(
    store: &Store,
    wanted: Wanted<'_>,
    policy: &Policy,
    quiet: bool,
) -> Result<Pulled, Failure> {
    let begun = Instant::now();
    let Wanted { source, registries, names, keep, options } = wanted;
    let failed = |error: StoreError| Failure::new(&error);
    let scratch = store.path().join(IMAGES);
    let opened = Opened::open(source, registries, &scratch, options, policy)?;
    if opened.image().manifest.is_empty() {
        return Err(Failure::plain(format!("{source} is no image: it has no digest to be found by"))
            .hint("convert it into a file: hpcrun convert SOURCE FILE.sqsh"));
    }
    let key = Key::new(opened.image().manifest_digest.clone(), &opened.parameters()?);
    let mut fetched = None;
    // Held until the names are there: nobody need look whether they come.
    let mut lease = None;
    if options.force || !store.bring_back(&key).map_err(failed)? {
        if !options.force {
            let mut waiting = |holder: &str| {
                if !quiet {
                    output::message(&format!("waiting for another hpcrun that fetches {source} ({holder})"));
                }
            };
            lease = store.turn(&key, &mut waiting).map_err(failed)?;
        }
        if options.force || lease.is_some() {
            let destination = Destination { path: store.image_path(&key), force: options.force };
            match opened.write(&destination, quiet) {
                Ok(summary) => {
                    fetched = Some(convert::closing_line(&key.short(), opened.image(), &summary, begun));
                }
                // Somebody else brought the same.
                Err(ConvertError::Exists { .. }) => {}
                Err(error) => return Err(limits::failure(&error, policy)),
            }
        }
    }
    let mut before = None;
    for (index, name) in names.iter().enumerate() {
        let tagged = store.point(name, &key, keep).map_err(failed)?;
        if index == 0 {
            before = tagged.before;
        }
    }
    drop(lease);
    Ok(Pulled { key, before, fetched })
}

/// `docker.io/library/debian:12: sha256:0123456789ab: 45 MiB from ...`
fn closing_line(name: &Name, pulled: &Pulled) -> String {
    let moved = match &pulled.before {
        Some(before) if *before != pulled.key => format!(" (before: {})", before.short()),
        _ => String::new(),
    };
    match &pulled.fetched {
        Some(fetched) => format!("{name}{moved}: {fetched}"),
        None => format!("{name}{moved}: {}, in the store already", pulled.key.short()),
    }
}
