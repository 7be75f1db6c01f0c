//! The facts of an image's content, gathered from the finished squashfs: what is looked at is chosen by its name, so an
//! image of a million files costs a walk over names and a few reads of its few libraries.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use crate::elf::{Object, Symbols, version};
use crate::image::facts::{Facts, Family, Libc, Library, MAX_LIBRARIES, Role};
use crate::squashfs::reader::{FileLayout, Filesystem, InodeKind, ReadError};
use crate::squashfs::writer::{InodeIndex, InodeKind as Kind, Tree};

/// Where glibc is, by distribution and machine.
const GLIBC: [&str; 6] = [
    "/lib/x86_64-linux-gnu/libc.so.6",
    "/lib/aarch64-linux-gnu/libc.so.6",
    "/lib64/libc.so.6",
    "/usr/lib64/libc.so.6",
    "/usr/lib/libc.so.6",
    "/lib/libc.so.6",
];

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
    let glibc = GLIBC.iter().find_map(|path| object_at(filesystem, path.as_bytes()));
    let is_musl = MUSL.iter().any(|path| file_at(filesystem, path.as_bytes()).is_some());
    let version = glibc.as_ref().and_then(|glibc| glibc.highest_defined("GLIBC_"));
    let libc = match version {
        Some(version) => Some(Libc::Glibc { version }),
        None if is_musl => Some(Libc::Musl),
        None => None,
    };
    Facts::new(libc, glibc.and_then(|glibc| glibc.isa_level), libraries)
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
