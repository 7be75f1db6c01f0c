//! `hpcrun sync`: a store holds the images of a list.

use std::path::PathBuf;

use clap::Args;

use crate::cli::convert::Opened;
use crate::cli::convert_args::ConvertOptions;
use crate::cli::pull::{self, Pulled, Wanted};
use crate::cli::report::{Failure, STATUS_FAILED, STATUS_REFUSED, chain};
use crate::cli::stores::{self, StoreChoice};
use crate::cli::sync_list::{self, Item, Update};
use crate::cli::{output, registries_conf, site};
use crate::convert::source::registry::RegistriesConf;
use crate::image::store::{IMAGES, Key};
use crate::policy::Policy;
use crate::store::{Store, StoreError};

/// The longest list that is read, bytes.
const LIST_MAX_BYTES: u64 = 4 << 20;

/// Arguments of `sync`.
#[derive(Debug, Args)]
pub(crate) struct Sync {
    /// List of images, TOML
    pub(crate) list: PathBuf,
    #[command(flatten)]
    pub(crate) store: StoreChoice,
    /// Say what would be fetched, and do nothing
    #[arg(short = 'n', long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) options: ConvertOptions,
}

/// Does the list, one image after the other.
pub(crate) fn run(args: &Sync) -> Result<u8, Failure> {
    let items = read(args)?;
    let policy = site::policy()?;
    let registries = registries_conf::read()?;
    let store = stores::to_change(args.store, &policy)?;
    let mut failures = 0_usize;
    for item in &items {
        let name = item.names.first().map(ToString::to_string).unwrap_or_default();
        let line = match one(item, args, &store, &registries, &policy) {
            Ok(line) => line,
            Err(failure) => {
                failures = failures.saturating_add(1);
                failure.print();
                format!("failed: {}", failure.message())
            }
        };
        output::data(format!("{}\n", output::one_line(&format!("{name}: {line}"))).as_bytes())?;
    }
    match failures {
        0 => Ok(0),
        _ => {
            let (all, list) = (items.len(), args.list.display());
            Err(Failure::plain(format!("{failures} of {all} images of {list} failed"))
                .with_status(STATUS_FAILED))
        }
    }
}

fn read(args: &Sync) -> Result<Vec<Item>, Failure> {
    use std::io::Read as _;
    let path = args.list.display();
    let failed = |error: std::io::Error| Failure::plain(format!("cannot read {path}: {}", chain(&error)));
    let mut text = String::new();
    let file = std::fs::File::open(&args.list).map_err(failed)?;
    file.take(LIST_MAX_BYTES).read_to_string(&mut text).map_err(failed)?;
    sync_list::parse(&text).map_err(|problems| {
        let first = problems.first().map(ToString::to_string).unwrap_or_default();
        let rest = problems.iter().skip(1).map(|problem| format!("{path}:{problem}"));
        let hint = problems.first().and_then(|problem| problem.hint.clone());
        let failure = Failure::plain(format!("{path}:{first}"));
        hint.into_iter().chain(rest).fold(failure, Failure::hint)
    })
}

/// Has the store hold one image; gives what came of it.
fn one(
    item: &Item,
    args: &Sync,
    store: &Store,
    registries: &RegistriesConf,
    policy: &Policy,
) -> Result<String, Failure> {
    let there = already(item, store)?;
    match (&there, item.update) {
        (Some(key), Update::IfMissing | Update::Never) => {
            name_all(item, key, args.dry_run, store)?;
            return Ok(format!("unchanged {}", key.digest()));
        }
        (None, Update::Never) => {
            return Err(Failure::plain("it is not in the store, and is never to be fetched"));
        }
        _ => {}
    }
    let platform = item.platform.clone().or_else(|| args.options.platform.clone());
    let options = ConvertOptions { platform, ..args.options.clone() };
    let fetched = if args.dry_run {
        dry_run(item, &options, store, registries, policy)
    } else {
        let wanted = Wanted {
            source: &item.source,
            registries: registries.clone(),
            names: &item.names,
            keep: Some(item.keep),
            options: &options,
        };
        pull::into_store(store, wanted, policy, true)
    };
    match (fetched, there) {
        (Ok(pulled), _) => Ok(described(&pulled, args.dry_run)),
        (Err(failure), Some(key)) if item.update == Update::Newer && failure.status != STATUS_REFUSED => {
            log::warn!("{}: {}", item.source, failure.message());
            name_all(item, &key, args.dry_run, store)?;
            Ok(format!("unchanged {} (its source does not answer)", key.digest()))
        }
        (Err(failure), _) => Err(failure),
    }
}

/// The image that the first name means, if it is there.
fn already(item: &Item, store: &Store) -> Result<Option<Key>, Failure> {
    let failed = |error: StoreError| Failure::new(&error);
    let Some(name) = item.names.first() else { return Ok(None) };
    // One that is damaged will be written anew.
    let Some(key) = store.tag(name).unwrap_or_default().and_then(|tag| tag.current().cloned()) else {
        return Ok(None);
    };
    Ok(store.find(&key).map_err(failed)?.map(|_| key))
}

/// The list may have more names than last time, or hold more images.
fn name_all(item: &Item, key: &Key, dry_run: bool, store: &Store) -> Result<(), Failure> {
    for name in item.names.iter().filter(|_| !dry_run) {
        store.point(name, key, Some(item.keep)).map_err(|error| Failure::new(&error))?;
    }
    Ok(())
}

/// What would be fetched: asks the source, and writes nothing.
fn dry_run(
    item: &Item,
    options: &ConvertOptions,
    store: &Store,
    registries: &RegistriesConf,
    policy: &Policy,
) -> Result<Pulled, Failure> {
    let scratch = store.path().join(IMAGES);
    let opened = Opened::open(&item.source, registries.clone(), &scratch, options, policy)?;
    let key = Key::new(opened.image().manifest_digest.clone(), &opened.parameters()?);
    let is_there = store.find(&key).map_err(|error| Failure::new(&error))?.is_some();
    let before = item.names.first().and_then(|name| store.tag(name).ok()?);
    let before = before.and_then(|tag| tag.current().cloned());
    Ok(Pulled { key, before, fetched: (!is_there).then(String::new) })
}

fn described(pulled: &Pulled, dry_run: bool) -> String {
    let digest = pulled.key.digest();
    let before = match &pulled.before {
        Some(before) if *before != pulled.key => format!(" (before: {})", before.digest()),
        _ => String::new(),
    };
    match (&pulled.fetched, before.is_empty() && pulled.before.is_some()) {
        (Some(_), _) if dry_run => format!("would be pulled {digest}{before}"),
        (Some(_), _) => format!("pulled {digest}{before}"),
        (None, true) => format!("unchanged {digest}"),
        (None, false) => format!("tagged {digest}{before}"),
    }
}
