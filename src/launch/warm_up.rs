//! Warming up: what the start of a program will look at is looked at before.
//!
//! The kernel asks the image server for each name on the way and for each few pages as a program starts, and waits for
//! each answer. So the launcher has the kernel look the program, its loader and its libraries up as soon as the image is
//! mounted, and while it goes on the server's side puts what was looked up into the kernel's page cache, which is only safe
//! while nobody reads. The C library takes longest to be put there; so it is looked for before the program is, where it is in
//! nearly all images. Nothing depends on any of it: what fails is left out.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::elf::{Object, library_cache};
use crate::launch::program::script_interpreter;
use crate::mount::server::Launching;
use crate::sys::path::{PathFd, open_file_in_root};

/// Where nearly all images have glibc's loader, the first that is there counts.
const LOADERS: &[&str] = if cfg!(target_arch = "aarch64") {
    &["/lib/ld-linux-aarch64.so.1"]
} else {
    &["/lib64/ld-linux-x86-64.so.2"]
};
/// Where they have the C library: Debian's kin, and the others.
const C_LIBRARIES: &[&str] = if cfg!(target_arch = "aarch64") {
    &["/lib/aarch64-linux-gnu/libc.so.6", "/lib64/libc.so.6"]
} else {
    &["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/libc.so.6"]
};
/// Which glibc's loader looks for first of all.
const PRELOADED: &str = "/etc/ld.so.preload";
/// Bytes of a program that are looked at: its program header, or the first line of a script.
const HEAD_BYTES: usize = 4096;
/// A cache of libraries longer than this is not read.
const CACHE_MAX_BYTES: usize = 1 << 20;
/// Most libraries of one program.
const LIBRARIES_MAX: usize = 24;
/// Interpreters of interpreters.
const DEPTH_MAX: usize = 3;

/// Has the kernel look up what a start of the first of `candidates` looks up in the image, whose root directory is `root`:
/// as it is mounted, with nothing mounted on it. Files may be stored from now on, but for moments in which one is read.
pub(super) fn look_up(root: &PathFd, candidates: &[PathBuf], launching: &Launching) {
    let image = Image { root, launching };
    open_first(root, LOADERS);
    open_first(root, C_LIBRARIES);
    // Whatever fails here, less is stored.
    let _ = launching.let_store();
    let start = candidates.iter().find_map(|path| Start::of_program(&image, path));
    for path in start.iter().flat_map(|start| &start.others) {
        drop(open_file_in_root(root, path));
    }
    drop(open_file_in_root(root, Path::new(PRELOADED)));
}

fn open_first(root: &PathFd, paths: &[&str]) {
    drop(paths.iter().find_map(|path| open_file_in_root(root, Path::new(path))));
}

/// Where files are read while others may be stored.
trait Tree {
    fn open(&self, path: &Path) -> Option<File>;

    /// At most `length` bytes of a file; fewer where it ends.
    fn read(&self, file: &File, offset: u64, length: usize) -> Option<Vec<u8>>;
}

struct Image<'a> {
    root: &'a PathFd,
    launching: &'a Launching,
}

impl Tree for Image<'_> {
    fn open(&self, path: &Path) -> Option<File> {
        open_file_in_root(self.root, path)
    }

    fn read(&self, file: &File, offset: u64, length: usize) -> Option<Vec<u8>> {
        self.launching.end_storing().ok()?;
        let bytes = read(file, offset, length);
        self.launching.let_store().ok()?;
        bytes
    }
}

/// The files that a program's start reads.
struct Start<'a, T> {
    tree: &'a T,
    /// The interpreter or loader, and the libraries that the program names: what need not be read to find the others.
    others: Vec<PathBuf>,
}

impl<'a, T: Tree> Start<'a, T> {
    /// None if `path` is no regular file that can be read.
    fn of_program(tree: &'a T, path: &Path) -> Option<Start<'a, T>> {
        let mut start = Start { tree, others: Vec::new() };
        start.add_program(path, DEPTH_MAX)?;
        Some(start)
    }

    fn add_program(&mut self, path: &Path, depth: usize) -> Option<()> {
        let tree = self.tree;
        let file = tree.open(path)?;
        let head = tree.read(&file, 0, HEAD_BYTES)?;
        let depth = depth.checked_sub(1)?;
        if let Some(interpreter) = script_interpreter(&head) {
            self.add_program(Path::new(OsStr::from_bytes(interpreter)), depth);
        } else if let Some(object) = Object::read_names(&|offset, length| match offset {
            0 => Some(head.get(..length).unwrap_or(&head).to_vec()),
            _ => tree.read(&file, offset, length),
        }) && let Some(loader) = &object.interpreter
        {
            self.add(loader);
            self.add_libraries(&object.needed);
        }
        Some(())
    }

    fn add(&mut self, path: &[u8]) {
        self.others.push(PathBuf::from(OsStr::from_bytes(path)));
    }

    fn add_libraries(&mut self, names: &[Vec<u8>]) {
        let cache = self.tree.open(Path::new(library_cache::PATH));
        let Some(cache) = cache.and_then(|file| self.tree.read(&file, 0, CACHE_MAX_BYTES)) else { return };
        for path in names.iter().filter_map(|name| library_cache::path_of(&cache, name)).take(LIBRARIES_MAX) {
            self.add(path);
        }
    }
}

/// At most `length` bytes of a file; fewer where it ends.
fn read(file: &File, offset: u64, length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length];
    let got = file.read_at(&mut bytes, offset).ok()?;
    bytes.truncate(got);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Host;

    impl Tree for Host {
        fn open(&self, path: &Path) -> Option<File> {
            open_file_in_root(&PathFd::open_directory(Path::new("/")).unwrap(), path)
        }

        fn read(&self, file: &File, offset: u64, length: usize) -> Option<Vec<u8>> {
            read(file, offset, length)
        }
    }

    /// What else a start of `program` looks up; none if it is no program.
    fn others(program: &Path) -> Option<Vec<String>> {
        let start = Start::of_program(&Host, program)?;
        Some(start.others.iter().map(|path| path.display().to_string()).collect())
    }

    #[test]
    fn finds_loader_and_libraries() {
        let found = others(&std::fs::canonicalize("/bin/sh").unwrap()).unwrap();
        for name in ["/ld-", "/libc.so"] {
            assert_eq!(found.iter().filter(|path| path.contains(name)).count(), 1, "{found:?}");
        }
    }

    #[test]
    fn follows_interpreters_and_not_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("script");
        std::fs::write(&script, "#!/bin/sh -e\n").unwrap();
        assert_eq!(others(&script), others(&std::fs::canonicalize("/bin/sh").unwrap()));
        let own = directory.path().join("own");
        std::fs::write(&own, format!("#!{}\n", own.display())).unwrap();
        assert_eq!(others(&own), Some(Vec::new()));
    }

    #[test]
    fn leaves_out_what_is_no_regular_file() {
        for path in ["/", "/dev/null", "/none", ""] {
            assert_eq!(others(Path::new(path)), None, "{path}");
        }
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(others(&fifo), None);
        let empty = directory.path().join("empty");
        File::create(&empty).unwrap();
        assert_eq!(others(&empty), Some(Vec::new()));
    }
}
