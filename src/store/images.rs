//! Image files: found, listed, taken away and brought back.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Store, StoreError};
use crate::image::digest::Digest;
use crate::image::store::{IMAGES, Key, TRASH};
use crate::sys::file;

/// An image file of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredImage {
    /// What it is.
    pub key: Key,
    /// Its length, bytes.
    pub bytes: u64,
    /// When it was written.
    pub written: SystemTime,
}

impl Store {
    /// The path that an image has, or would have.
    pub fn image_path(&self, key: &Key) -> PathBuf {
        self.path.join(IMAGES).join(key.file_name())
    }

    /// The path of an image that is there, also of one that was taken away and not yet removed.
    pub fn find(&self, key: &Key) -> Result<Option<PathBuf>, StoreError> {
        if self.has(key)? {
            return Ok(Some(self.image_path(key)));
        }
        if let Some(path) = self.in_trash(key)? {
            return Ok(Some(path));
        }
        // Brought back between the two looks.
        Ok(self.has(key)?.then(|| self.image_path(key)))
    }

    fn in_trash(&self, key: &Key) -> Result<Option<PathBuf>, StoreError> {
        let Some(trash) = self.directory(TRASH)? else { return Ok(None) };
        let Some(name) = newest_in_trash(trash.as_fd(), key) else { return Ok(None) };
        let path = self.path.join(TRASH).join(&name);
        Ok(self.file(trash.as_fd(), &name, &path)?.map(|_| path))
    }

    /// Whether an image is there. What lies in its place must be a file that only the store's owner can have written.
    pub fn has(&self, key: &Key) -> Result<bool, StoreError> {
        let Some(directory) = self.directory(IMAGES)? else { return Ok(false) };
        Ok(self.file(directory.as_fd(), &key.file_name(), &self.image_path(key))?.is_some())
    }

    /// The images whose digest begins so, newest first.
    pub fn with_digest(&self, prefix: &str) -> Result<Vec<StoredImage>, StoreError> {
        let mut found = self.images_where(|key| key.begins_with(prefix))?;
        found.sort_by_key(|image| std::cmp::Reverse(image.written));
        Ok(found)
    }

    /// The newest image of this manifest.
    pub fn of_digest(&self, digest: &Digest) -> Result<Option<Key>, StoreError> {
        Ok(self.with_digest(digest.as_str())?.into_iter().next().map(|image| image.key))
    }

    /// All images, by digest.
    pub fn images(&self) -> Result<Vec<StoredImage>, StoreError> {
        self.images_where(|_| true)
    }

    /// Those whose names tell that they are wanted: only these files are looked at.
    fn images_where(&self, is_wanted: impl Fn(&Key) -> bool) -> Result<Vec<StoredImage>, StoreError> {
        let Some(directory) = self.directory(IMAGES)? else { return Ok(Vec::new()) };
        let mut images: Vec<StoredImage> = file::names(directory.as_fd())
            .iter()
            .filter_map(|name| Some((name, Key::of_file_name(name).filter(&is_wanted)?)))
            .filter_map(|(name, key)| stored(directory.as_fd(), name, key))
            .collect();
        images.sort_by(|one, other| one.key.cmp(&other.key));
        Ok(images)
    }

    /// Takes an image away unless something names it; whether it did, and had it to take. It can be brought back until it
    /// is collected.
    pub fn remove(&self, key: &Key) -> Result<bool, StoreError> {
        let Some(images) = self.directory(IMAGES)? else { return Ok(false) };
        let failed = |source| StoreError::Write { path: self.image_path(key), source };
        // Reading all tags is dear, and a history names many images that went long ago.
        let is_there = file::stat(images.as_fd(), &key.file_name()).map_err(failed)?.is_some();
        if !is_there || self.is_named(key)? {
            return Ok(false);
        }
        let trash = self.made_directory(TRASH)?;
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        match file::move_new(images.as_fd(), &key.file_name(), trash.as_fd(), &key.trash_name(time)) {
            Ok(moved) => {
                // A tag that came meanwhile found the image in its place, and needs it there.
                if moved && self.is_named(key)? {
                    self.bring_back(key)?;
                    return Ok(false);
                }
                Ok(moved)
            }
            Err(error) if error.errno == nix::errno::Errno::ENOENT => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    /// Whether a tag holds the image, or might: one that cannot be read may hold any.
    fn is_named(&self, key: &Key) -> Result<bool, StoreError> {
        let (tags, unusable) = self.tags()?;
        match unusable.into_iter().next() {
            Some(error) => Err(error),
            None => Ok(tags.iter().any(|tag| tag.kept().contains(&key))),
        }
    }

    /// Puts an image that was taken away back into its place; false if it is not to be had.
    pub fn bring_back(&self, key: &Key) -> Result<bool, StoreError> {
        if self.has(key)? {
            return Ok(true);
        }
        let Some(trash) = self.directory(TRASH)? else { return Ok(false) };
        let images = self.made_directory(IMAGES)?;
        while let Some(name) = newest_in_trash(trash.as_fd(), key) {
            match file::move_new(trash.as_fd(), &name, images.as_fd(), &key.file_name()) {
                Ok(_) => return Ok(true),
                // Somebody else was faster, or it was removed this moment.
                Err(error) if error.errno == nix::errno::Errno::ENOENT => {}
                Err(source) => return Err(StoreError::Write { path: self.image_path(key), source }),
            }
        }
        self.has(key)
    }

    /// The directory of image files, to be written to.
    pub(super) fn images_directory(&self) -> Result<OwnedFd, StoreError> {
        self.made_directory(IMAGES)
    }
}

fn stored(directory: BorrowedFd<'_>, name: &OsStr, key: Key) -> Option<StoredImage> {
    let metadata = file::open_regular(directory, name)?.metadata().ok()?;
    Some(StoredImage { key, bytes: metadata.len(), written: metadata.modified().ok()? })
}

fn newest_in_trash(trash: BorrowedFd<'_>, key: &Key) -> Option<OsString> {
    file::names(trash)
        .into_iter()
        .filter_map(|name| Some((Key::of_trash_name(&name)?, name)))
        .filter(|((found, _), _)| found == key)
        .max_by_key(|((_, time), _)| *time)
        .map(|(_, name)| name)
}
