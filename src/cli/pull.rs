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
use crate::image::store::{Key, Name};
use crate::policy::Policy;
use crate::store::{Lease, Store, StoreError};

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
    /// Whether some of them meant another image before, or nothing.
    pub(crate) is_renamed: bool,
    /// What was fetched, for people; none if the store had it already.
    pub(crate) fetched: Option<String>,
}

/// How often an image may be collected between its coming and its naming.
const TRIES: u32 = 3;

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
    let opened =
        Opened::open(wanted.source, wanted.registries.clone(), store.path(), wanted.options, policy)?;
    if opened.image().manifest.is_empty() {
        return Err(Failure::plain(format!(
            "{} is no image: it has no digest to be found by",
            wanted.source
        ))
        .hint("convert it into a file: hpcrun convert SOURCE FILE.sqsh"));
    }
    let key = Key::new(opened.image().manifest_digest.clone(), &opened.parameters()?);
    let mut pulled = Pulled { key, before: None, is_renamed: false, fetched: None };
    for attempt in 0..TRIES {
        let brought = bring(store, &wanted, &opened, &pulled.key, policy, quiet)?;
        let named = name(store, wanted.names, &pulled.key, wanted.keep)?;
        pulled.fetched = brought.fetched.or(pulled.fetched);
        if attempt == 0 {
            (pulled.before, pulled.is_renamed) = (named.before, named.is_renamed);
        }
        if named.has_image {
            return Ok(pulled);
        }
    }
    let what =
        format!("{} disappears from {} as often as it comes", pulled.key.digest(), store.path().display());
    Err(Failure::plain(what).hint("is 'hpcrun gc --grace 0' running there all the time?"))
}

/// What it took to have an image in a store.
#[derive(Default)]
struct Brought {
    /// What was fetched, for people.
    fetched: Option<String>,
    /// Held until the names are there: nobody need look whether they come.
    _lease: Option<Lease>,
}

fn bring(
    store: &Store,
    wanted: &Wanted<'_>,
    opened: &Opened,
    key: &Key,
    policy: &Policy,
    quiet: bool,
) -> Result<Brought, Failure> {
    let begun = Instant::now();
    let failed = |error: StoreError| Failure::new(&error);
    let force = wanted.options.force;
    let mut lease = None;
    if !force {
        if store.bring_back(key).map_err(failed)? {
            return Ok(Brought::default());
        }
        let mut waiting = |holder: &str| {
            if !quiet {
                let source = wanted.source;
                output::message(&format!("waiting for another hpcrun that fetches {source} ({holder})"));
            }
        };
        lease = store.turn(key, &mut waiting).map_err(failed)?;
        if lease.is_none() {
            return Ok(Brought::default());
        }
    }
    let destination = Destination { path: store.image_path(key), force };
    let fetched = match opened.write(&destination, quiet) {
        Ok(summary) => Some(convert::closing_line(&key.short(), opened.image(), &summary, begun)),
        // Somebody else brought the same.
        Err(ConvertError::Exists { .. }) => None,
        Err(error) => return Err(limits::failure(&error, policy).of_silence(error.is_silence())),
    };
    Ok(Brought { fetched, _lease: lease })
}

/// What naming an image did.
pub(crate) struct Named {
    /// What the first name meant before.
    pub(crate) before: Option<Key>,
    /// Whether some name meant another image before, or nothing.
    pub(crate) is_renamed: bool,
    /// Whether the image is there. It was not collected, or brought back in time.
    pub(crate) has_image: bool,
}

/// Has `names` mean an image of the store.
pub(crate) fn name(store: &Store, names: &[Name], key: &Key, keep: Option<usize>) -> Result<Named, Failure> {
    let mut named = Named { before: None, is_renamed: false, has_image: true };
    for (index, name) in names.iter().enumerate() {
        let tagged = store.point(name, key, keep).map_err(|error| Failure::new(&error))?;
        named.is_renamed |= tagged.before.as_ref() != Some(key);
        named.has_image &= tagged.has_image;
        if index == 0 {
            named.before = tagged.before;
        }
    }
    Ok(named)
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
