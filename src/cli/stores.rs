//! Which stores there are for this user, and which of them a verb changes.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::registry;
use crate::cli::report::{Failure, chain};
use crate::cli::site::expand;
use crate::image::store::step::Owner;
use crate::policy::rules::images::Owner as Allowed;
use crate::policy::{Policy, Refusal};
use crate::store::{Store, Trust};
use crate::sys::{caller, process};

/// The variable by which users put their own store elsewhere.
const VARIABLE: &str = "HPCRUN_STORE";
/// Modes of new directories: what a user has is the user's alone, what a site has is for all.
const MODES: (u32, u32) = (0o700, 0o755);
/// The usual umask, which lets everybody read.
const PUBLIC_UMASK: u32 = 0o022;

/// Which store to change.
#[derive(Debug, Default, Clone, Copy, Args)]
pub(crate) struct StoreChoice {
    /// The site's store [default for root, where the site has one]
    #[arg(long, conflicts_with = "user")]
    pub(crate) site: bool,
    /// Your own store [default for everybody else]
    #[arg(long)]
    pub(crate) user: bool,
}

/// The stores that can be looked into, strongest first.
#[derive(Debug, Default)]
pub(crate) struct Stores {
    /// Those that are there.
    pub(crate) open: Vec<Store>,
    /// Where was looked, for people: `/home/ada/.local/share/hpcrun (yours)`.
    pub(crate) places: Vec<String>,
    /// What is there and not used, and why.
    pub(crate) refused: Vec<String>,
}

impl Stores {
    /// The user's store and the site's.
    pub(crate) fn open(policy: &Policy) -> Stores {
        let mut stores = Stores::default();
        if allows_user(policy) {
            match user_directory(policy) {
                Ok(path) => stores.add(&path, Owner::User, Trust::own(caller::effective_uid())),
                Err(failure) => stores.refused.push(failure.message().to_owned()),
            }
        }
        if let Some(path) = site_directory(policy) {
            stores.add(path, Owner::Site, site_trust(policy, path));
        }
        stores
    }

    fn add(&mut self, path: &Path, owner: Owner, trust: Trust) {
        let whose = if owner == Owner::User { "yours" } else { "the site's" };
        self.places.push(format!("{} ({whose})", path.display()));
        match Store::open(path, owner, trust) {
            Ok(store) => self.open.extend(store),
            Err(error) => self.refused.push(chain(&error)),
        }
    }

    /// The store of this owner alone.
    pub(crate) fn only(mut self, owner: Owner) -> Stores {
        self.open.retain(|store| store.owner() == owner);
        self
    }

    /// The store of this owner.
    pub(crate) fn of(&self, owner: Owner) -> Option<&Store> {
        self.open.iter().find(|store| store.owner() == owner)
    }
}

/// Where a store is, or would be.
#[derive(Debug)]
pub(crate) struct Place {
    /// Its directory.
    pub(crate) path: PathBuf,
    /// Whose it is.
    pub(crate) owner: Owner,
    trust: Trust,
}

impl Place {
    /// The store; none if there is none yet.
    pub(crate) fn open(&self) -> Result<Option<Store>, Failure> {
        Store::open(&self.path, self.owner, self.trust.clone()).map_err(|error| Failure::new(&error))
    }

    /// The store, made if it is missing.
    pub(crate) fn make(self) -> Result<Store, Failure> {
        let mode = match self.owner {
            Owner::User => MODES.0,
            Owner::Site => MODES.1,
        };
        Store::create(&self.path, self.owner, self.trust, mode).map_err(|error| Failure::new(&error))
    }
}

/// The store to change, made if it is missing.
pub(crate) fn to_change(choice: StoreChoice, policy: &Policy) -> Result<Store, Failure> {
    chosen(choice, policy)?.make()
}

/// The store in which the user's ranks can agree on what a word means: the user's own, made if it is missing, also where
/// the site wants no images in it.
pub(crate) fn to_agree_in(policy: &Policy) -> Result<Store, Failure> {
    own(policy)?.make()
}

/// The same if it is there.
pub(crate) fn agreed_in(policy: &Policy) -> Option<Store> {
    own(policy).ok()?.open().ok().flatten()
}

/// The store that a verb is to change.
pub(crate) fn chosen(choice: StoreChoice, policy: &Policy) -> Result<Place, Failure> {
    let is_root = caller::effective_uid() == 0;
    let site = site_directory(policy);
    if choice.site || (is_root && site.is_some() && !choice.user) {
        let Some(path) = site else {
            return Err(Failure::plain("there is no site store")
                .hint("[store] site_dir in the site's policy names one"));
        };
        // What an administrator pulls is for everybody to read, whatever root's umask says.
        process::set_umask(PUBLIC_UMASK);
        return Ok(Place { path: path.to_owned(), owner: Owner::Site, trust: site_trust(policy, path) });
    }
    if let Some(allowed) = policy.rules().store.allow_user.as_ref().filter(|allowed| !allowed.value) {
        let refusal = Refusal {
            what: "a store of your own".to_owned(),
            rule: policy.rule(allowed.at, "[store] allow_user"),
            allowed: "the site's images, or files: hpcrun pull NAME FILE.sqsh".to_owned(),
        };
        return Err(Failure::refused(&refusal));
    }
    own(policy)
}

fn own(policy: &Policy) -> Result<Place, Failure> {
    let path = user_directory(policy)?;
    Ok(Place { path, owner: Owner::User, trust: Trust::own(caller::effective_uid()) })
}

pub(crate) fn allows_user(policy: &Policy) -> bool {
    policy.rules().store.allow_user.as_ref().is_none_or(|allowed| allowed.value)
}

fn site_directory(policy: &Policy) -> Option<&Path> {
    policy.rules().store.site_dir.as_ref().map(|path| path.value.as_path())
}

/// Where the user's images are: where the variable says, else the site, else the XDG specification.
pub(crate) fn user_directory(policy: &Policy) -> Result<PathBuf, Failure> {
    if let Some(path) = registry::path(VARIABLE) {
        if path.is_absolute() {
            return Ok(path);
        }
        return Err(Failure::plain(format!("{VARIABLE} is {}: not an absolute path", path.display())));
    }
    if let Some(template) = &policy.rules().store.user_dir {
        return expand(&template.value)
            .map_err(|why| Failure::plain(format!("no store of your own: [store] user_dir: {why}")));
    }
    let absolute = |name: &str| registry::path(name).filter(|path| path.is_absolute());
    let data = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")));
    let data = data.ok_or_else(|| {
        Failure::plain("no store of your own: neither XDG_DATA_HOME nor HOME names a directory")
            .hint(format!("{VARIABLE}=DIR names one"))
    })?;
    Ok(data.join("hpcrun"))
}

/// Root's files, and those of whoever owns the directory if the site takes images of that user.
fn site_trust(policy: &Policy, path: &Path) -> Trust {
    let Some(owner) = std::fs::metadata(path).ok().map(|metadata| metadata.uid()) else {
        return Trust::site(&[]);
    };
    let name = caller::user_entry(owner).ok().flatten().map(|entry| entry.name);
    let owners = policy.rules().images.owners.iter().flat_map(|listed| &listed.rules);
    // Whoever calls decides nothing about the site's store.
    let mut named = owners.map(|owner| &owner.value).filter(|allowed| !matches!(allowed, Allowed::Myself));
    let is_named = named.any(|allowed| allowed.is(owner, name.as_deref(), u32::MAX));
    Trust::site(if is_named { std::slice::from_ref(&owner) } else { &[] })
}
