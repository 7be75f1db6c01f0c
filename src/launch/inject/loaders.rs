//! How the image's loaders are made to find libraries that the image does not have.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::elf::library_cache::{self, Entry, LibraryCache};

/// Where musl's loader looks if nothing tells it otherwise.
const MUSL_DEFAULT: &[u8] = b"/lib:/usr/local/lib:/usr/lib";

/// What the loaders of an image go by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loaders {
    /// The bytes of `/etc/ld.so.cache`; none if the image has no such file.
    pub cache: Option<Vec<u8>>,
    /// musl's loader, if the image has it.
    pub musl: Option<MuslLoader>,
}

/// musl's loader.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MuslLoader {
    /// `/etc/ld-musl-x86_64.path`
    pub path_file: PathBuf,
    /// Its bytes; none if the image has no such file.
    pub content: Option<Vec<u8>>,
}

/// What the loaders are told by.
pub(super) struct Told {
    /// Files to be put in place of the image's.
    pub(super) files: Vec<(PathBuf, Vec<u8>)>,
    /// Whether there is no such file, so that a variable has to do.
    pub(super) by_variable: bool,
    /// What is wrong with the image's.
    pub(super) notes: Vec<String>,
}

impl Loaders {
    /// The image's files with `libraries`, which lie in `directories`, before all else.
    pub(super) fn with(&self, libraries: Vec<Entry>, directories: &[PathBuf]) -> Told {
        let mut told = Told { files: Vec::new(), by_variable: false, notes: Vec::new() };
        if let Some(musl) = &self.musl {
            told.files.push((musl.path_file.clone(), musl.with(directories)));
        }
        let merged = self.cache.as_ref().map(|cache| {
            let mut cache = LibraryCache::parse(cache)?;
            cache.put_first(libraries);
            cache.to_bytes()
        });
        match merged {
            Some(Ok(cache)) => told.files.push((PathBuf::from(library_cache::PATH), cache)),
            Some(Err(why)) => {
                told.by_variable = true;
                told.notes.push(format!("the image's {} is of no use: {why}", library_cache::PATH));
            }
            // musl's loader reads no cache.
            None => told.by_variable = self.musl.is_none(),
        }
        told
    }
}

impl MuslLoader {
    /// The list of directories, which are divided by colons or new lines.
    fn with(&self, directories: &[PathBuf]) -> Vec<u8> {
        let mut list = Vec::new();
        for directory in directories.iter().map(PathBuf::as_path) {
            list.extend_from_slice(Path::as_os_str(directory).as_bytes());
            list.push(b'\n');
        }
        list.extend_from_slice(self.content.as_deref().unwrap_or(MUSL_DEFAULT));
        list
    }
}
