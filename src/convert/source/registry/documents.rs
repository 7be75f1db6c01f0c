//! Manifests and configs of earlier pulls, kept by digest: an image that did not change costs a registry one `HEAD`.
//!
//! Registries limit how many manifests one may fetch. What is kept is checked against its digest whenever it is read, so
//! a damaged or forged file is no worse than a missing one.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Read, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;

use crate::image::config::MAX_CONFIG_BYTES;
use crate::image::digest::Digest;
use crate::sys::{self, file, temporary::Temporary};

/// Permissions of a document, before the umask.
const MODE: u32 = 0o644;
/// Documents that are kept; an image has two to four, of a few KiB.
const MOST: usize = 1000;

/// A directory of documents.
#[derive(Debug)]
pub(super) struct Documents {
    directory: PathBuf,
}

impl Documents {
    /// Keeps documents in `directory`, which is made when first needed.
    pub(super) fn new(directory: PathBuf) -> Documents {
        Documents { directory }
    }

    /// The document with this digest, if it is here and whole.
    pub(super) fn get(&self, digest: &Digest) -> Option<Vec<u8>> {
        let file = File::open(self.path(digest)).ok()?;
        let mut bytes = Vec::new();
        file.take(MAX_CONFIG_BYTES).read_to_end(&mut bytes).ok()?;
        (Digest::of_with(digest.algorithm(), &bytes) == *digest).then_some(bytes)
    }

    /// Keeps a document, if that works: nothing depends on it.
    pub(super) fn put(&self, digest: &Digest, bytes: &[u8]) {
        if let Err(error) = self.try_put(digest, bytes) {
            log::info!("cannot keep {digest} in {}: {error}", self.directory.display());
        }
    }

    /// Complete or not at all under its name, whoever else writes it.
    fn try_put(&self, digest: &Digest, bytes: &[u8]) -> std::io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        let refused = |error: sys::Error| std::io::Error::from(error.errno);
        let directory = file::open_directory(&self.directory).map_err(refused)?;
        make_room(directory.as_fd());
        let (temporary, mut file) = Temporary::create_file(directory.as_fd(), MODE).map_err(refused)?;
        file.write_all(bytes)?;
        temporary.replace(OsStr::new(&name(digest))).map_err(refused)
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(name(digest))
    }
}

/// Forgets the older half of a directory that is full, and whatever a killed process left there.
fn make_room(directory: BorrowedFd<'_>) {
    Temporary::sweep(directory);
    let names = file::names(directory);
    if names.len() < MOST {
        return;
    }
    let dated = |name: OsString| {
        let metadata = file::open_regular(directory, &name)?.metadata().ok()?;
        Some((metadata.modified().ok()?, name))
    };
    let mut files: Vec<_> = names.into_iter().filter_map(dated).collect();
    files.sort();
    for (_, name) in files.iter().take(MOST / 2) {
        // Another process may be at it too.
        let _ = file::unlink(directory, name);
    }
}

fn name(digest: &Digest) -> String {
    digest.as_str().replace(':', "-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::digest::Algorithm;

    #[test]
    fn keeps_what_is_whole() {
        let scratch = tempfile::tempdir().unwrap();
        let documents = Documents::new(scratch.path().join("a/b"));
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let digest = Digest::of_with(algorithm, b"{}");
            assert_eq!(documents.get(&digest), None);
            documents.put(&digest, b"{}");
            documents.put(&digest, b"{}");
            assert_eq!(documents.get(&digest).as_deref(), Some(b"{}".as_slice()));
            fs::write(documents.path(&digest), "{ }").unwrap();
            assert_eq!(documents.get(&digest), None);
        }
        assert_eq!(fs::read_dir(&documents.directory).unwrap().count(), 2, "no temporary is left");
    }

    #[test]
    fn does_not_grow_for_ever_and_does_without() {
        let scratch = tempfile::tempdir().unwrap();
        let documents = Documents::new(scratch.path().to_owned());
        for number in 0..=MOST {
            fs::write(scratch.path().join(number.to_string()), "").unwrap();
        }
        documents.put(&Digest::of(b"{}"), b"{}");
        assert!(documents.get(&Digest::of(b"{}")).is_some());
        assert!(fs::read_dir(scratch.path()).unwrap().count() <= MOST);
        let nowhere = Documents::new("/proc/none".into());
        nowhere.put(&Digest::of(b"{}"), b"{}");
        assert_eq!(nowhere.get(&Digest::of(b"{}")), None);
    }
}
