//! `hpcrun sync`: a store holds the images of a list.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::convert::Opened;
use crate::cli::convert_args::ConvertOptions;
use crate::cli::pull::{self, Pulled, Wanted};
use crate::cli::report::{Failure, chain};
use crate::cli::stores::{self, StoreChoice};
use crate::cli::sync_list::{self, Item, Update};
use crate::cli::{output, registries_conf, site};
use crate::convert::source::registry::RegistriesConf;
use crate::image::store::Key;
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
    let items = read(&args.list)?;
    let policy = site::policy()?;
    let place = stores::chosen(args.store, &policy)?;
    let store = if args.dry_run { place.open()? } else { Some(place.make()?) };
    let work = Work { args, store, registries: registries_conf::read()?, policy: &policy };
    let mut failures = 0_usize;
    for item in &items {
        let name = item.names.first().map(ToString::to_string).unwrap_or_default();
        let line = work.one(item).unwrap_or_else(|failure| {
            failures = failures.saturating_add(1);
            failure.print();
            format!("failed: {}", failure.message())
        });
        output::data(format!("{}\n", output::one_line(&format!("{name}: {line}"))).as_bytes())?;
    }
    match failures {
        0 => Ok(0),
        _ => {
            let (all, list) = (items.len(), args.list.display());
            Err(Failure::plain(format!("{failures} of {all} images of {list} failed")))
        }
    }
}

fn read(list: &Path) -> Result<Vec<Item>, Failure> {
    use std::io::Read as _;
    let path = list.display();
    let failed = |error: std::io::Error| Failure::plain(format!("cannot read {path}: {}", chain(&error)));
    let mut text = Vec::new();
    let file = std::fs::File::open(list).map_err(failed)?;
    file.take(LIST_MAX_BYTES.saturating_add(1)).read_to_end(&mut text).map_err(failed)?;
    if u64::try_from(text.len()).is_ok_and(|length| length > LIST_MAX_BYTES) {
        return Err(Failure::plain(format!("{path} has more than {LIST_MAX_BYTES} bytes"))
            .hint("is this the list? A longer one can be given in parts"));
    }
    let text = String::from_utf8(text).map_err(|_| Failure::plain(format!("{path} is not UTF-8")))?;
    sync_list::parse(&text).map_err(|problems| {
        let first = problems.first().map(ToString::to_string).unwrap_or_default();
        let rest = problems.iter().skip(1).map(|problem| format!("{path}:{problem}"));
        let hint = problems.first().and_then(|problem| problem.hint.clone());
        let failure = Failure::plain(format!("{path}:{first}"));
        hint.into_iter().chain(rest).fold(failure, Failure::hint)
    })
}

/// What all images of a list are done with.
struct Work<'a> {
    args: &'a Sync,
    /// The store; none where a dry run finds none.
    store: Option<Store>,
    registries: RegistriesConf,
    policy: &'a Policy,
}

impl Work<'_> {
    /// Has the store hold one image; gives what came of it.
    fn one(&self, item: &Item) -> Result<String, Failure> {
        let there = self.already(item)?;
        let is_enough = matches!(item.update, Update::IfMissing | Update::Never);
        if let Some(key) = there.as_ref().filter(|_| is_enough)
            && let Some(line) = self.kept(item, key)?
        {
            return Ok(line);
        }
        if item.update == Update::Never {
            return Err(Failure::plain("it is not in the store, and is never to be fetched"));
        }
        match (self.fetch(item), there) {
            (Ok(pulled), _) => Ok(described(&pulled, self.args.dry_run)),
            // Whatever else is wrong, a full disk or a damaged image, somebody has to mend.
            (Err(failure), Some(key)) if item.update == Update::Newer && failure.is_silence() => {
                match self.kept(item, &key)? {
                    Some(line) => {
                        log::warn!("{}: {}", item.source, failure.message());
                        Ok(format!("{line} (its source does not answer)"))
                    }
                    None => Err(failure),
                }
            }
            (Err(failure), _) => Err(failure),
        }
    }

    /// The image that the first name means, if it is there.
    fn already(&self, item: &Item) -> Result<Option<Key>, Failure> {
        let (Some(store), Some(name)) = (&self.store, item.names.first()) else { return Ok(None) };
        let tag = match store.tag(name) {
            // It will be written anew.
            Err(StoreError::Malformed { .. }) => None,
            tag => tag.map_err(|error| Failure::new(&error))?,
        };
        let Some(key) = tag.and_then(|tag| tag.current().cloned()) else { return Ok(None) };
        Ok(store.find(&key).map_err(|error| Failure::new(&error))?.map(|_| key))
    }

    /// Has all names mean an image that is there: the list may have more names than last time, or hold more images. None
    /// if the image was collected meanwhile.
    fn kept(&self, item: &Item, key: &Key) -> Result<Option<String>, Failure> {
        let digest = key.digest();
        let Some(store) = self.store.as_ref().filter(|_| !self.args.dry_run) else {
            return Ok(Some(format!("unchanged {digest}")));
        };
        let named = pull::name(store, &item.names, key, Some(item.keep))?;
        let word = if named.is_renamed { "tagged" } else { "unchanged" };
        Ok(named.has_image.then(|| format!("{word} {digest}")))
    }

    fn fetch(&self, item: &Item) -> Result<Pulled, Failure> {
        let platform = item.platform.clone().or_else(|| self.args.options.platform.clone());
        let options = ConvertOptions { platform, ..self.args.options.clone() };
        let store = match &self.store {
            Some(store) if !self.args.dry_run => store,
            store => return self.would_fetch(item, options, store.as_ref()),
        };
        let wanted = Wanted {
            source: &item.source,
            registries: self.registries.clone(),
            names: &item.names,
            keep: Some(item.keep),
            options: &options,
        };
        pull::into_store(store, wanted, self.policy, true)
    }

    /// What would be fetched: asks the source, and writes nothing.
    fn would_fetch(
        &self,
        item: &Item,
        options: ConvertOptions,
        store: Option<&Store>,
    ) -> Result<Pulled, Failure> {
        let failed = |error: StoreError| Failure::new(&error);
        let options = ConvertOptions { no_layer_cache: true, ..options };
        let registries = self.registries.clone();
        let opened = Opened::open(&item.source, registries, Path::new("."), &options, self.policy)?;
        let key = Key::new(opened.image().manifest_digest.clone(), &opened.parameters()?);
        let is_there = store.map(|store| store.find(&key)).transpose().map_err(failed)?.flatten().is_some();
        let means = |name| Some(store?.tag(name).ok()??.current()?.clone());
        Ok(Pulled {
            before: item.names.first().and_then(means),
            is_renamed: item.names.iter().any(|name| means(name).as_ref() != Some(&key)),
            fetched: (!is_there).then(String::new),
            key,
        })
    }
}

fn described(pulled: &Pulled, dry_run: bool) -> String {
    let digest = pulled.key.digest();
    let before = match &pulled.before {
        Some(before) if *before != pulled.key => format!(" (before: {})", before.digest()),
        _ => String::new(),
    };
    let would = if dry_run { "would be " } else { "" };
    match (&pulled.fetched, pulled.is_renamed) {
        (Some(_), _) => format!("{would}pulled {digest}{before}"),
        (None, true) => format!("{would}tagged {digest}{before}"),
        (None, false) => format!("unchanged {digest}"),
    }
}
