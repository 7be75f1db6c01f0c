//! The facts of an image's content, gathered from the finished squashfs: what is looked at is chosen by its name, so an
//! image of a million files costs a walk over names and a few reads of its few libraries.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use crate::elf::closure::DEFAULT_DIRECTORIES;
use crate::elf::library_cache::{self, LibraryCache};
use crate::elf::{Object, Symbols, version};
use crate::image::facts::{Facts, Family, Libc, Library, MAX_LIBRARIES, Role};
use crate::squashfs::reader::{FileLayout, Filesystem, InodeKind, ReadError};
use crate::squashfs::writer::{InodeIndex, InodeKind as Kind, Tree};

/// Where musl is, whose loader and C library are one file.
const MUSL: [&str; 2] = ["/lib/ld-musl-x86_64.so.1", "/lib/ld-musl-aarch64.so.1"];

/// Beginnings of versions that tell one build of a library from another.
const TELLING: [&str; 5] = ["FABRIC_", "GLIBCXX_", "CXXABI_", "GCC_", "IBVERBS_PRIVATE_"];

/// Gathers the facts of a tree that was just written to `filesystem`.
pub(super) fn of_tree(tree: &Tree, filesystem: &Filesystem) -> Facts {
    facts(filesystem, paths_in(tree))
}

/// Gathers those of any squashfs, by a walk over all of it.
pub fn of_filesystem(filesystem: &Filesystem) -> Result<Facts, ReadError> {
    let mut paths = BTreeSet::new();
    filesystem.walk(&mut |path, inode| {
        if matches!(inode.kind, InodeKind::File(_)) && Role::of_path(path).is_some() {
            paths.insert(path.to_vec());
        }
        if paths.len() < MAX_LIBRARIES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(facts(filesystem, paths))
}

/// Gathers those of any squashfs that loaders find without being told where: in the directories that they know and in
/// those of `cache`, the image's list of libraries. Costs a few listings, however large the image is.
pub fn of_loaders(filesystem: &Filesystem, cache: &[u8]) -> Result<Facts, ReadError> {
    let listed = LibraryCache::parse(cache).map(|cache| cache.entries).unwrap_or_default();
    let listed = listed.into_iter().filter(|entry| Role::of_path(&entry.path).is_some());
    let parent = |path: Vec<u8>| Some(path.get(..path.iter().rposition(|byte| *byte == b'/')?)?.to_vec());
    let known = DEFAULT_DIRECTORIES.iter().map(|directory| directory.as_bytes().to_vec());
    let directories: BTreeSet<Vec<u8>> = known.chain(listed.filter_map(|entry| parent(entry.path))).collect();
    let mut paths = BTreeSet::new();
    for directory in directories {
        let Ok(Some((real, inode))) = filesystem.real_path(&directory) else { continue };
        let InodeKind::Directory(directory) = inode.kind else { continue };
        filesystem.read_directory(&directory, 0, &mut |entry| {
            let path = [&real, &b"/"[..], entry.name].concat();
            if Role::of_path(&path).is_some()
                && filesystem.entry_inode(&entry).is_ok_and(|inode| matches!(inode.kind, InodeKind::File(_)))
            {
                paths.insert(path);
            }
            if paths.len() < MAX_LIBRARIES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
    }
    Ok(facts(filesystem, paths))
}

/// The object at a path of an image, links followed; none if it is no ELF file, or cannot be read.
pub fn object_at(filesystem: &Filesystem, path: &[u8]) -> Option<Object> {
    let layout = file_at(filesystem, path)?;
    Object::read(&|offset, length| filesystem.read_bytes(&layout, offset, length).ok())
}

/// The dynamic symbols of the object at a path.
pub fn symbols_at(filesystem: &Filesystem, path: &[u8]) -> Option<Symbols> {
    let layout = file_at(filesystem, path)?;
    let read = |offset: u64, length: usize| filesystem.read_bytes(&layout, offset, length).ok();
    Symbols::read(&Object::read(&read)?, &read)
}

fn file_at(filesystem: &Filesystem, path: &[u8]) -> Option<FileLayout> {
    match filesystem.resolve(path).ok()??.kind {
        InodeKind::File(layout) => Some(layout),
        _ => None,
    }
}

/// The regular files of a tree whose names say that they are of interest, by path.
fn paths_in(tree: &Tree) -> BTreeSet<Vec<u8>> {
    let mut paths = BTreeSet::new();
    let mut todo: Vec<(InodeIndex, Vec<u8>)> = vec![(tree.root, Vec::new())];
    let inode = |index: InodeIndex| tree.inodes.get(usize::try_from(index).ok()?);
    while let Some((index, path)) = todo.pop() {
        let Some(Kind::Directory(entries)) = inode(index).map(|inode| &inode.kind) else { continue };
        for (name, child) in entries {
            let joined = || [path.as_slice(), b"/", name].concat();
            match inode(*child).map(|inode| &inode.kind) {
                Some(Kind::Directory(_)) => todo.push((*child, joined())),
                Some(Kind::File(_)) if name.starts_with(b"lib") => {
                    let path = joined();
                    if Role::of_path(&path).is_some() && paths.len() < MAX_LIBRARIES {
                        paths.insert(path);
                    }
                }
                _ => {}
            }
        }
    }
    paths
}

fn facts(filesystem: &Filesystem, paths: BTreeSet<Vec<u8>>) -> Facts {
    let libraries = paths.iter().filter_map(|path| library(filesystem, path)).collect();
    let CLibrary { libc, object } = c_library(filesystem);
    Facts::new(libc, object.and_then(|object| object.isa_level), libraries)
}

/// The C library of an image.
#[derive(Debug, Default)]
pub struct CLibrary {
    /// What it is; none if there is none that is known.
    pub libc: Option<Libc>,
    /// Its file.
    pub object: Option<Object>,
}

/// The C library of an image: where every loader looks, else where glibc's list has it.
pub fn c_library(filesystem: &Filesystem) -> CLibrary {
    let known = DEFAULT_DIRECTORIES.iter().map(|directory| format!("{directory}/libc.so.6").into_bytes());
    let listed = || {
        let cache =
            filesystem.small_file(library_cache::PATH.as_bytes(), library_cache::MAX_BYTES).ok()??;
        library_cache::path_of(&cache, b"libc.so.6").map(<[u8]>::to_vec)
    };
    let glibc = known.chain(std::iter::once_with(listed).flatten()).find_map(|path| {
        let object = object_at(filesystem, &path)?;
        Some((object.highest_defined("GLIBC_")?, object))
    });
    if let Some((version, object)) = glibc {
        return CLibrary { libc: Some(Libc::Glibc { version }), object: Some(object) };
    }
    let musl = MUSL.iter().find_map(|path| object_at(filesystem, path.as_bytes()));
    CLibrary { libc: musl.is_some().then_some(Libc::Musl), object: musl }
}

/// The facts of one file. A path that is no UTF-8 could not be told of, and no distribution has one.
fn library(filesystem: &Filesystem, path: &[u8]) -> Option<Library> {
    let role = Role::of_path(path)?;
    let object = object_at(filesystem, path)?;
    let path = String::from_utf8(path.to_vec()).ok()?;
    let name = path.rsplit('/').next()?.to_owned();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    let soname = object.soname.as_deref().and_then(text).unwrap_or_else(|| name.clone());
    let family = (role == Role::Mpi).then(|| {
        let symbols = symbols_at(filesystem, path.as_bytes()).unwrap_or_default();
        Family::of(soname.as_bytes(), symbols.defined())
    });
    let telling = TELLING.iter().filter_map(|prefix| {
        let highest = version::highest(object.defines.iter().map(Vec::as_slice), prefix)?;
        Some(format!("{prefix}{highest}"))
    });
    let version_of = |name: &str| name.split_once(".so.").map(|(_, version)| version.to_owned());
    Some(Library {
        file_version: version_of(&name).or_else(|| version_of(&soname)).unwrap_or_default(),
        needs: object.needed.iter().filter_map(|name| text(name)).collect(),
        defines: telling.collect(),
        path,
        soname,
        role,
        family,
    })
}
