//! Manifests and configs of earlier pulls, kept by digest: an image that did not change costs a registry one `HEAD`.
//!
//! Registries limit how many manifests one may fetch. What is kept is checked against its digest whenever it is read, so
//! a damaged or forged file is no worse than a missing one.

use std::fs::{self, File};
use std::io::{Read, Write as _};
use std::path::PathBuf;

use crate::image::digest::Digest;
use crate::image::manifest::MAX_MANIFEST_BYTES;

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
        file.take(MAX_MANIFEST_BYTES.saturating_add(1)).read_to_end(&mut bytes).ok()?;
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
        let path = self.path(digest);
        let unique = format!("{:?}", std::thread::current().id());
        let number: String = unique.chars().filter(char::is_ascii_digit).collect();
        let temporary = path.with_extension(format!("{}-{number}", std::process::id()));
        let written = File::create_new(&temporary)
            .and_then(|mut file| file.write_all(bytes))
            .and_then(|()| fs::rename(&temporary, &path));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(digest.as_str().replace(':', "-"))
    }
}
