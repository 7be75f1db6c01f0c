//! Removes what is of no use: first an image that nothing names is renamed, a grace period later it is removed. Other
//! nodes that run from it keep reading it meanwhile, and a tag that comes brings it back.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Store, StoreError};
use crate::image::store::{IMAGES, Key, STEPS, StepRecord, TAGS, TRASH};
use crate::sys::file;
use crate::sys::temporary::Temporary;

/// An image so young may be about to get its tag.
const YOUNG: Duration = Duration::from_secs(15 * 60);
/// A lease untouched for so long is nobody's.
const LEASE_AGE: Duration = Duration::from_secs(24 * 60 * 60);
/// No job step starts ranks for so long.
const STEP_AGE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How to collect.
#[derive(Debug, Clone, Copy)]
pub struct CollectOptions {
    /// How long an image that nothing names can be brought back.
    pub grace: Duration,
    /// Whether to say only what would be done.
    pub dry_run: bool,
}

/// What was done, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Collected {
    /// Nothing names this image; from now on its grace period runs.
    TakenAway(Key, u64),
    /// Its grace period is over: bytes.
    Removed(Key, u64),
    /// Something interrupted left it.
    Leftover(PathBuf, u64),
}

impl Store {
    /// Takes away what nothing names and removes what was taken away long enough ago, and leftovers. `done` hears of each.
    ///
    /// # Errors
    ///
    /// A tag that cannot be read, since it might name any image. Leftovers are removed all the same.
    pub fn collect(
        &self,
        options: CollectOptions,
        done: &mut dyn FnMut(Collected),
    ) -> Result<(), StoreError> {
        self.remove_leftovers(options, done)?;
        let kept = self.kept()?;
        self.empty_trash(options, &kept, done)?;
        self.take_away(options, &kept, done)?;
        if options.grace.is_zero() {
            self.empty_trash(options, &self.kept()?, done)?;
        }
        Ok(())
    }

    /// The images that tags hold.
    fn kept(&self) -> Result<HashSet<Key>, StoreError> {
        let (tags, unusable) = self.tags()?;
        match unusable.into_iter().next() {
            Some(error) => Err(error),
            None => Ok(tags.iter().flat_map(|tag| tag.kept()).cloned().collect()),
        }
    }

    fn take_away(
        &self,
        options: CollectOptions,
        kept: &HashSet<Key>,
        done: &mut dyn FnMut(Collected),
    ) -> Result<(), StoreError> {
        for image in self.images()? {
            let age = image.written.elapsed().unwrap_or_default();
            if kept.contains(&image.key) || age < YOUNG {
                continue;
            }
            // Looks at the tags again, before and after.
            if options.dry_run || self.remove(&image.key)? {
                done(Collected::TakenAway(image.key, image.bytes));
            }
        }
        Ok(())
    }

    fn empty_trash(
        &self,
        options: CollectOptions,
        kept: &HashSet<Key>,
        done: &mut dyn FnMut(Collected),
    ) -> Result<(), StoreError> {
        let Some(trash) = self.directory(TRASH)? else { return Ok(()) };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let mut names = file::names(trash.as_fd());
        names.sort();
        for name in names {
            let Some((key, since)) = Key::of_trash_name(&name) else { continue };
            if now.saturating_sub(since) < options.grace.as_nanos() {
                continue;
            }
            // Whoever tagged it was killed before he brought it back.
            if kept.contains(&key) && !self.has(&key)? {
                if !options.dry_run {
                    self.bring_back(&key)?;
                }
                continue;
            }
            let bytes = size(trash.as_fd(), &name);
            if !options.dry_run {
                file::unlink(trash.as_fd(), &name).map_err(|source| StoreError::Write {
                    path: self.path.join(TRASH).join(&name),
                    source,
                })?;
            }
            done(Collected::Removed(key, bytes));
        }
        Ok(())
    }

    /// What interrupted processes left: temporaries, leases, records of steps that have long ended.
    fn remove_leftovers(
        &self,
        options: CollectOptions,
        done: &mut dyn FnMut(Collected),
    ) -> Result<(), StoreError> {
        for place in [IMAGES, TAGS, STEPS] {
            let Some(directory) = self.directory(place)? else { continue };
            let mut leftovers = Temporary::abandoned(directory.as_fd());
            for name in file::names(directory.as_fd()) {
                let is_old = |most| age(directory.as_fd(), &name).is_some_and(|age| age > most);
                let is_dead = || super::lease::is_dead(directory.as_fd(), &name);
                let is_lease = Key::is_lease_name(&name) && (is_dead() || is_old(LEASE_AGE));
                let is_step = place == STEPS && StepRecord::is_file_name(&name) && is_old(STEP_AGE);
                if is_lease || is_step {
                    leftovers.push(name);
                }
            }
            for name in leftovers {
                self.remove_leftover(directory.as_fd(), place, name, options, done)?;
            }
        }
        Ok(())
    }

    fn remove_leftover(
        &self,
        directory: BorrowedFd<'_>,
        place: &str,
        name: OsString,
        options: CollectOptions,
        done: &mut dyn FnMut(Collected),
    ) -> Result<(), StoreError> {
        let (path, bytes) = (self.path.join(place).join(&name), size(directory, &name));
        if !options.dry_run {
            file::unlink(directory, &name)
                .map_err(|source| StoreError::Write { path: path.clone(), source })?;
        }
        done(Collected::Leftover(path, bytes));
        Ok(())
    }
}

fn size(directory: BorrowedFd<'_>, name: &OsStr) -> u64 {
    let metadata = file::open_regular(directory, name).and_then(|file| file.metadata().ok());
    metadata.map_or(0, |metadata| metadata.size())
}

fn age(directory: BorrowedFd<'_>, name: &OsStr) -> Option<Duration> {
    let modified = file::open_regular(directory, name)?.metadata().ok()?.modified().ok()?;
    Some(modified.elapsed().unwrap_or_default())
}
