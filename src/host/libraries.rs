//! Libraries of this node with all that they need, read off their files: no `ldd`, which would run what it looks at.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::elf::closure::{self, Closure, Search, is_glibc};
use crate::elf::{Object, Symbols, library_cache};

/// Most files that one pattern stands for.
const MATCHES_MAX: usize = 256;
/// Longest `/etc/ld.so.cache` that is read, bytes.
const CACHE_MAX: usize = 64 << 20;

/// What was found for some patterns.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// The libraries, and what they need; glibc left out. Paths are without links.
    pub closure: Closure,
    /// Symbols that they define, by path.
    pub symbols: BTreeMap<Vec<u8>, Symbols>,
    /// Patterns that no library fits.
    pub unmatched: Vec<String>,
}

/// Finds the libraries that fit `patterns`: absolute paths, the last component perhaps with `*` and `?`, which `fits`
/// understands.
pub fn find(patterns: &[&str], fits: &dyn Fn(&str, &[u8]) -> bool) -> Found {
    let mut roots: Vec<(Vec<u8>, Object)> = Vec::new();
    let mut unmatched = Vec::new();
    for pattern in patterns {
        let before = roots.len();
        for path in matches(pattern, fits) {
            if let Some((path, object)) = resolved(&path)
                && !roots.iter().any(|(known, _)| *known == path)
            {
                roots.push((path, object));
            }
        }
        if roots.len() == before {
            unmatched.push((*pattern).to_owned());
        }
    }
    let cache = read_cache();
    let search = Search { cache: &cache, ..Search::default() };
    let mut open = |path: &[u8]| object(Path::new(OsStr::from_bytes(path)));
    let mut closure = closure::closure(roots, search, &is_glibc, &mut open);
    let mut symbols = BTreeMap::new();
    for loaded in &mut closure.loaded {
        if let Ok(real) = std::fs::canonicalize(Path::new(OsStr::from_bytes(&loaded.path))) {
            loaded.path = real.as_os_str().as_bytes().to_vec();
        }
        if let Some(found) = symbols_of(Path::new(OsStr::from_bytes(&loaded.path)), &loaded.object) {
            symbols.insert(loaded.path.clone(), found);
        }
    }
    Found { closure, symbols, unmatched }
}

/// The paths that a pattern stands for, sorted.
fn matches(pattern: &str, fits: &dyn Fn(&str, &[u8]) -> bool) -> Vec<PathBuf> {
    let path = Path::new(pattern);
    if !pattern.contains(['*', '?']) {
        return vec![path.to_owned()];
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(OsStr::to_str)) else {
        return Vec::new();
    };
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .filter(|entry| fits(name, entry.file_name().as_bytes()))
        .map(|entry| entry.path())
        .take(MATCHES_MAX)
        .collect();
    found.sort();
    found
}

fn resolved(path: &Path) -> Option<(Vec<u8>, Object)> {
    let real = std::fs::canonicalize(path).ok()?;
    let object = object(&real)?;
    Some((real.into_os_string().as_bytes().to_vec(), object))
}

/// The program or library at a host path; none if it is none, or cannot be read.
pub fn object(path: &Path) -> Option<Object> {
    let file = open(path)?;
    Object::read(&|offset, length| read_at(&file, offset, length))
}

/// Its dynamic symbols.
pub fn symbols_of(path: &Path, object: &Object) -> Option<Symbols> {
    let file = open(path)?;
    Symbols::read(object, &|offset, length| read_at(&file, offset, length))
}

/// The loader's list of libraries; empty where there is none.
fn read_cache() -> Vec<u8> {
    open(Path::new(library_cache::PATH)).and_then(|file| read_at(&file, 0, CACHE_MAX)).unwrap_or_default()
}

/// A regular file. A pipe in its place would make a blocking open wait.
fn open(path: &Path) -> Option<File> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path).ok()?;
    file.metadata().ok()?.is_file().then_some(file)
}

fn read_at(file: &File, offset: u64, length: usize) -> Option<Vec<u8>> {
    let left = file.metadata().ok()?.len().checked_sub(offset)?;
    let mut bytes = vec![0; usize::try_from(left).unwrap_or(usize::MAX).min(length)];
    file.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}
