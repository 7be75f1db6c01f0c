//! Which files a loader would load for programs and libraries, found as glibc's loader finds them: without running one,
//! and in any root, for `open` says what is where.
//!
//! Source: ld.so(8), glibc `elf/dl-load.c`.

use std::collections::{BTreeSet, VecDeque};

use super::{Object, library_cache};

/// Most libraries that are followed.
const LIBRARIES_MAX: usize = 1024;

/// Where a loader looks for a library, beyond what the one that needs it says.
#[derive(Debug, Clone, Copy, Default)]
pub struct Search<'a> {
    /// Directories that come before the cache, as in `LD_LIBRARY_PATH`.
    pub first: &'a [Vec<u8>],
    /// `/etc/ld.so.cache`; empty if there is none.
    pub cache: &'a [u8],
    /// Directories that come last, beyond [`DEFAULT_DIRECTORIES`]: musl's, or those of another distribution.
    pub last: &'a [Vec<u8>],
}

/// The directories that every loader of this kind knows; each system has its own few of them.
pub const DEFAULT_DIRECTORIES: [&str; 10] = [
    "/lib64",
    "/usr/lib64",
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib",
    "/usr/lib",
    "/usr/local/lib64",
    "/usr/local/lib",
];

/// A file of a closure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// The name under which it is needed; of a root its soname, or else its path.
    pub name: Vec<u8>,
    /// Where it was found.
    pub path: Vec<u8>,
    /// What it is.
    pub object: Object,
    /// The path of the one that needs it; none for a root.
    pub needed_by: Option<Vec<u8>>,
}

/// A library that is nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The name under which it is needed.
    pub name: Vec<u8>,
    /// The path of the one that needs it.
    pub needed_by: Vec<u8>,
}

/// Programs and libraries with all that they need.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Closure {
    /// In the order in which a loader loads them, roots first.
    pub loaded: Vec<Loaded>,
    /// What was not found.
    pub missing: Vec<Missing>,
}

impl Closure {
    /// The file that is loaded under a name.
    pub fn find(&self, name: &[u8]) -> Option<&Loaded> {
        self.loaded.iter().find(|loaded| loaded.name == name)
    }
}

/// Follows what `roots` need. `open` gives the object at a path of the root in question, links followed; none if there is
/// none. Libraries that `skip` names are neither looked for nor missed.
pub fn closure(
    roots: impl IntoIterator<Item = (Vec<u8>, Object)>,
    search: Search<'_>,
    skip: &dyn Fn(&[u8]) -> bool,
    open: &mut dyn FnMut(&[u8]) -> Option<Object>,
) -> Closure {
    let mut closure = Closure::default();
    // Names that were looked for.
    let mut known: BTreeSet<Vec<u8>> = BTreeSet::new();
    let mut todo = VecDeque::new();
    for (path, object) in roots {
        let name = object.soname.clone().unwrap_or_else(|| path.clone());
        known.insert(name.clone());
        todo.push_back(closure.loaded.len());
        closure.loaded.push(Loaded { name, path, object, needed_by: None });
    }
    while let Some(index) = todo.pop_front() {
        let Some(parent) = closure.loaded.get(index).cloned() else { continue };
        for name in &parent.object.needed {
            if skip(name) || closure.loaded.len() >= LIBRARIES_MAX || !known.insert(name.clone()) {
                continue;
            }
            match find(name, &parent, &closure, search, open) {
                Some((path, object)) => {
                    todo.push_back(closure.loaded.len());
                    let needed_by = Some(parent.path.clone());
                    closure.loaded.push(Loaded { name: name.clone(), path, object, needed_by });
                }
                None => {
                    closure.missing.push(Missing { name: name.clone(), needed_by: parent.path.clone() });
                }
            }
        }
    }
    closure
}

/// The library of this name that `parent` would get.
fn find(
    name: &[u8],
    parent: &Loaded,
    closure: &Closure,
    search: Search<'_>,
    open: &mut dyn FnMut(&[u8]) -> Option<Object>,
) -> Option<(Vec<u8>, Object)> {
    let mut fits = |path: &[u8]| open(path).filter(|object| is_kin(&object.header, &parent.object.header));
    if name.contains(&b'/') {
        return fits(name).map(|object| (name.to_vec(), object));
    }
    let mut directories = Vec::new();
    if parent.object.runpath.is_empty() {
        inherited_rpath(parent, closure, &mut directories);
    }
    directories.extend_from_slice(search.first);
    for directory in &parent.object.runpath {
        expand(directory, &parent.path, &mut directories);
    }
    for directory in &directories {
        let path = joined(directory, name);
        if let Some(object) = fits(&path) {
            return Some((path, object));
        }
    }
    if let Some(path) = library_cache::path_of(search.cache, name)
        && let Some(object) = fits(path)
    {
        return Some((path.to_vec(), object));
    }
    let defaults = DEFAULT_DIRECTORIES.iter().map(|directory| directory.as_bytes());
    for directory in search.last.iter().map(Vec::as_slice).chain(defaults) {
        let path = joined(directory, name);
        if let Some(object) = fits(&path) {
            return Some((path, object));
        }
    }
    None
}

/// The directories of `DT_RPATH` of a file and of all those through which it came; one with a `DT_RUNPATH` has none.
fn inherited_rpath(from: &Loaded, closure: &Closure, directories: &mut Vec<Vec<u8>>) {
    let mut here = Some(from);
    let mut steps = 0;
    while let Some(loaded) = here.filter(|_| steps < LIBRARIES_MAX) {
        if loaded.object.runpath.is_empty() {
            for directory in &loaded.object.rpath {
                expand(directory, &loaded.path, directories);
            }
        }
        let above = loaded.needed_by.as_ref();
        here = above.and_then(|path| closure.loaded.iter().find(|loaded| loaded.path == *path));
        steps += 1;
    }
}

/// A directory as the linker noted it, with the loader's words for places replaced: `$ORIGIN` is where the file lies.
/// `$LIB` differs from one distribution to the next, so each of its values is given.
fn expand(directory: &[u8], of: &[u8], directories: &mut Vec<Vec<u8>>) {
    let origin = of.iter().rposition(|byte| *byte == b'/').and_then(|at| of.get(..at)).unwrap_or_default();
    let origin = if origin.is_empty() { b"/" } else { origin };
    let directory = replaced(directory, &[b"${ORIGIN}", b"$ORIGIN"], origin);
    if replaced(&directory, &[b"${LIB}", b"$LIB"], b"") == directory {
        directories.push(directory);
        return;
    }
    for lib in [&b"lib64"[..], b"lib", b"lib/x86_64-linux-gnu", b"lib/aarch64-linux-gnu"] {
        directories.push(replaced(&directory, &[b"${LIB}", b"$LIB"], lib));
    }
}

/// `text` with every one of `words` replaced.
fn replaced(text: &[u8], words: &[&[u8]], by: &[u8]) -> Vec<u8> {
    let (mut rest, mut result) = (text, Vec::new());
    while let Some((first, behind)) = rest.split_first() {
        match words.iter().find_map(|word| rest.strip_prefix(*word)) {
            Some(after) => {
                result.extend_from_slice(by);
                rest = after;
            }
            None => {
                result.push(*first);
                rest = behind;
            }
        }
    }
    result
}

fn joined(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let directory = directory.strip_suffix(b"/").unwrap_or(directory);
    [directory, b"/", name].concat()
}

/// Whether one can be loaded into the other's process.
fn is_kin(a: &super::Header, b: &super::Header) -> bool {
    a.is_64 == b.is_64 && a.is_little == b.is_little && a.machine == b.machine
}

/// Libraries that belong to glibc and move with it: all of one version, and of the loader's.
const GLIBC_MEMBERS: [&str; 18] = [
    "libc.so.6",
    "libm.so.6",
    "libmvec.so.1",
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
    "libresolv.so.2",
    "libutil.so.1",
    "libanl.so.1",
    "libnsl.so.1",
    "libBrokenLocale.so.1",
    "libthread_db.so.1",
    "libc_malloc_debug.so.0",
    "libnss_compat.so.2",
    "libnss_db.so.2",
    "libnss_dns.so.2",
    "libnss_files.so.2",
    "libnss_hesiod.so.2",
];

/// Whether a library belongs to glibc; its loader does.
pub fn is_glibc(name: &[u8]) -> bool {
    name.starts_with(b"ld-linux")
        || name.starts_with(b"ld64.so")
        || GLIBC_MEMBERS.iter().any(|member| member.as_bytes() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(soname: Option<&str>, needed: &[&str], rpath: &[&str], runpath: &[&str]) -> Object {
        let mut head = b"\x7fELF\x02\x01\x01".to_vec();
        head.resize(64, 0);
        head[18] = 62;
        let bytes = |names: &[&str]| names.iter().map(|name| name.as_bytes().to_vec()).collect::<Vec<_>>();
        let mut object = Object::read(&|_, _| Some(head.clone())).unwrap();
        object.soname = soname.map(|name| name.as_bytes().to_vec());
        object.needed = bytes(needed);
        object.rpath = bytes(rpath);
        object.runpath = bytes(runpath);
        object
    }

    /// The paths found for a program with these objects around, and the names missed.
    #[track_caller]
    fn check(program: Object, files: &[(&str, Object)], first: &[&str], expected: &[&str], missed: &[&str]) {
        let first: Vec<Vec<u8>> = first.iter().map(|path| path.as_bytes().to_vec()).collect();
        let search = Search { first: &first, ..Search::default() };
        let mut open = |path: &[u8]| {
            files.iter().find(|(name, _)| name.as_bytes() == path).map(|(_, object)| object.clone())
        };
        let found = closure([(b"/opt/app/bin/solver".to_vec(), program)], search, &is_glibc, &mut open);
        let paths: Vec<_> =
            found.loaded.iter().skip(1).map(|one| String::from_utf8_lossy(&one.path).into_owned()).collect();
        let names: Vec<_> =
            found.missing.iter().map(|one| String::from_utf8_lossy(&one.name).into_owned()).collect();
        assert_eq!((paths, names), (to_strings(expected), to_strings(missed)));
    }

    fn to_strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn libraries_are_found_where_a_loader_finds_them() {
        let plain = || object(None, &[], &[], &[]);
        check(
            object(None, &["liba.so.1", "libc.so.6"], &[], &[]),
            &[
                ("/usr/lib/liba.so.1", object(None, &["libb.so.1", "libx.so"], &[], &[])),
                ("/lib/libb.so.1", plain()),
            ],
            &[],
            &["/usr/lib/liba.so.1", "/lib/libb.so.1"],
            &["libx.so"],
        );
        // DT_RPATH reaches what the libraries need and comes before LD_LIBRARY_PATH; DT_RUNPATH does neither.
        let tree = [
            ("/opt/app/lib/liba.so.1", object(None, &["libb.so.1"], &[], &[])),
            ("/opt/app/lib/libb.so.1", plain()),
            ("/first/liba.so.1", object(None, &["libb.so.1"], &[], &[])),
            ("/usr/lib/libb.so.1", plain()),
        ];
        check(
            object(None, &["liba.so.1"], &["$ORIGIN/../lib", "/opt/app/lib"], &[]),
            &tree,
            &["/first"],
            &["/opt/app/lib/liba.so.1", "/opt/app/lib/libb.so.1"],
            &[],
        );
        check(
            object(None, &["liba.so.1"], &[], &["/opt/app/lib/"]),
            &tree,
            &["/first"],
            &["/first/liba.so.1", "/usr/lib/libb.so.1"],
            &[],
        );
        check(
            object(None, &["liba.so.1"], &["/ignored"], &["/opt/app/lib/"]),
            &tree,
            &[],
            &["/opt/app/lib/liba.so.1", "/usr/lib/libb.so.1"],
            &[],
        );
        check(
            object(None, &["/abs/liba.so", "liba.so"], &[], &[]),
            &[("/abs/liba.so", plain())],
            &[],
            &["/abs/liba.so"],
            &["liba.so"],
        );
        check(
            object(None, &["liba.so"], &["${ORIGIN}/$LIB"], &[]),
            &[("/opt/app/bin/lib64/liba.so", plain())],
            &[],
            &["/opt/app/bin/lib64/liba.so"],
            &[],
        );
    }

    #[test]
    fn another_machine_s_library_is_passed_over() {
        let mut other = object(None, &[], &[], &[]);
        other.header.machine = 183;
        check(
            object(None, &["liba.so"], &[], &[]),
            &[("/lib64/liba.so", other), ("/usr/lib/liba.so", object(None, &[], &[], &[]))],
            &[],
            &["/usr/lib/liba.so"],
            &[],
        );
    }

    #[test]
    fn circles_end() {
        check(
            object(None, &["liba.so"], &[], &[]),
            &[
                ("/lib/liba.so", object(None, &["libb.so"], &[], &[])),
                ("/lib/libb.so", object(None, &["liba.so", "libb.so"], &[], &[])),
            ],
            &[],
            &["/lib/liba.so", "/lib/libb.so"],
            &[],
        );
    }

    #[test]
    fn glibc_is_known_by_name() {
        for name in ["libc.so.6", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1", "libnss_dns.so.2"] {
            assert!(is_glibc(name.as_bytes()), "{name}");
        }
        for name in ["libc.so", "libcrypt.so.1", "libnsl.so.2", "libgcc_s.so.1", "ld-musl-x86_64.so.1"] {
            assert!(!is_glibc(name.as_bytes()), "{name}");
        }
    }
}
