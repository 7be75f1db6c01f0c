//! Tags: small files that are replaced whole. Of two who move a tag at once one wins, and the other's change may be
//! missing from its history.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use super::{Store, StoreError, now_seconds};
use crate::image::digest::Digest;
use crate::image::store::tag::MAX_BYTES;
use crate::image::store::{Key, Name, TAGS, TagRecord};
use crate::sys::file;
use crate::sys::temporary::Temporary;

/// Permissions of a tag, before the umask.
const MODE: u32 = 0o644;

/// What changing a tag did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tagged {
    /// What it meant before.
    pub before: Option<Key>,
    /// Whether the image is in this store. If not, it was collected a moment ago, or is another store's.
    pub has_image: bool,
}

impl Store {
    /// What a name means here.
    pub fn tag(&self, name: &Name) -> Result<Option<TagRecord>, StoreError> {
        let Some(directory) = self.directory(TAGS)? else { return Ok(None) };
        let record = self.tag_in(directory.as_fd(), &name.file_name())?;
        // Two long names could have one file only if their hashes were equal.
        Ok(record.filter(|record| record.name == *name))
    }

    fn tag_in(
        &self,
        directory: std::os::fd::BorrowedFd<'_>,
        file_name: &OsStr,
    ) -> Result<Option<TagRecord>, StoreError> {
        let path = self.path.join(TAGS).join(file_name);
        let Some(text) = self.read_record(directory, file_name, &path, MAX_BYTES)? else { return Ok(None) };
        let record = TagRecord::parse(&text).filter(|record| record.name.file_name() == file_name);
        record.map(Some).ok_or(StoreError::Malformed { path })
    }

    /// All tags, by name; those that cannot be used apart.
    pub fn tags(&self) -> Result<(Vec<TagRecord>, Vec<StoreError>), StoreError> {
        let (mut tags, mut unusable) = (Vec::new(), Vec::new());
        let Some(directory) = self.directory(TAGS)? else { return Ok((tags, unusable)) };
        // A listing cut short would make images look as if nothing named them.
        let names = file::all_names(directory.as_fd())
            .map_err(|source| StoreError::Open { path: self.path.join(TAGS), source })?;
        for name in names.iter().filter(|name| Name::is_file_name(name)) {
            match self.tag_in(directory.as_fd(), name) {
                Ok(record) => tags.extend(record),
                Err(error) => unusable.push(error),
            }
        }
        tags.sort_by(|one, other| one.name.cmp(&other.name));
        Ok((tags, unusable))
    }

    /// Has `name` mean `key` from now on, and hold its last `keep` images if that is said. An image that was on its way
    /// out is brought back.
    pub fn point(&self, name: &Name, key: &Key, keep: Option<usize>) -> Result<Tagged, StoreError> {
        let found = match self.tag(name) {
            // One that is damaged is replaced.
            Err(StoreError::Malformed { .. }) => None,
            found => found?,
        };
        let before = found.as_ref().and_then(TagRecord::current).cloned();
        let mut record =
            found.clone().unwrap_or_else(|| TagRecord::new(name.clone(), key.clone(), now_seconds()));
        record.point_to(key, now_seconds());
        record.keep = keep.unwrap_or(record.keep);
        if found.as_ref() != Some(&record) {
            self.write_tag(&record)?;
        }
        // After the tag is there: whoever collects looks at the tags once more after it took an image away.
        let has_image = self.bring_back(key)?;
        Ok(Tagged { before, has_image })
    }

    /// Has a tag forget that it once meant the images of this digest, so that it does not hold them any more; false if it
    /// did not, or means one of them now.
    pub fn forget(&self, name: &Name, digest: &Digest) -> Result<bool, StoreError> {
        let Some(mut record) = self.tag(name)? else { return Ok(false) };
        let forgot = record.forget(digest);
        if forgot {
            self.write_tag(&record)?;
        }
        Ok(forgot)
    }

    fn write_tag(&self, record: &TagRecord) -> Result<(), StoreError> {
        let directory = self.made_directory(TAGS)?;
        let name = record.name.file_name();
        let failed = |source| StoreError::Write { path: self.path.join(TAGS).join(&name), source };
        let (temporary, file) = Temporary::create_file(directory.as_fd(), MODE).map_err(failed)?;
        file.write_all_at(record.encode().as_bytes(), 0)
            .map_err(|error| failed(crate::sys::Error::from_io("write", &error)))?;
        // Another node must not see the name before the content.
        file::sync(&file).map_err(failed)?;
        temporary.replace(&name).map_err(failed)?;
        file::sync_directory(directory.as_fd()).map_err(failed)
    }

    /// Removes a tag; false if there was none. The images that nothing else names go to the trash.
    pub fn untag(&self, name: &Name) -> Result<bool, StoreError> {
        let Some(directory) = self.directory(TAGS)? else { return Ok(false) };
        let file_name = name.file_name();
        // One that is damaged is removed like any other.
        let keys: Vec<Key> = match self.tag(name) {
            Ok(None) => return Ok(false),
            Ok(Some(record)) => record.entries().iter().map(|entry| entry.key.clone()).collect(),
            Err(_) => Vec::new(),
        };
        let failed = |source| StoreError::Write { path: self.path.join(TAGS).join(&file_name), source };
        file::unlink(directory.as_fd(), &file_name).map_err(failed)?;
        file::sync_directory(directory.as_fd()).map_err(failed)?;
        for key in &keys {
            self.remove(key)?;
        }
        Ok(true)
    }
}
