//! Warming up: what the start of a program will look at is looked up before.
//!
//! The kernel asks the image server for each name on the way and for each few pages as a program starts, and waits for
//! each answer. So the launcher finds out in the image file itself which loader and libraries the program needs, and has the
//! kernel look all of them up as soon as the image is mounted; while the launcher goes on, the server's side puts what was
//! looked up into the kernel's page cache. Nothing depends on any of it: what fails is left out.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::elf::{Object, library_cache};
use crate::launch::program::script_interpreter;
use crate::mount::{FileLayout, Filesystem, InodeKind};
use crate::sys::path::{PathFd, look_up_in_root};

/// Where nearly all images have glibc's loader and the C library, for a program of the host's.
const OF_ANY_PROGRAM: &[&str] = if cfg!(target_arch = "aarch64") {
    &["/lib/ld-linux-aarch64.so.1", "/lib/aarch64-linux-gnu/libc.so.6", "/lib64/libc.so.6"]
} else {
    &["/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6", "/lib64/libc.so.6"]
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

/// The files of an image that a program's start reads, in the order in which it does.
#[derive(Debug)]
pub(super) struct Start {
    paths: Vec<PathBuf>,
}

impl Start {
    /// That of the first of `candidates` which the image has.
    pub(super) fn of(image: &Filesystem, candidates: &[PathBuf]) -> Start {
        let found = candidates.iter().find_map(|path| Search::for_program(image, path));
        let paths = found.unwrap_or_else(|| OF_ANY_PROGRAM.iter().map(PathBuf::from).collect());
        Start { paths }
    }

    /// Has the kernel look them up in the image, whose root directory is `root`: as it is mounted, with nothing mounted on it.
    pub(super) fn look_up(&self, root: &PathFd) {
        self.paths.iter().for_each(|path| look_up_in_root(root, path));
    }
}

/// Where files are looked for.
trait Tree {
    type File;

    /// None if there is no regular file.
    fn file(&self, path: &Path) -> Option<Self::File>;

    /// At most `length` bytes of a file; fewer where it ends.
    fn read(&self, file: &Self::File, offset: u64, length: usize) -> Option<Vec<u8>>;
}

impl Tree for Filesystem {
    type File = FileLayout;

    fn file(&self, path: &Path) -> Option<FileLayout> {
        match self.resolve(path.as_os_str().as_bytes()).ok()??.kind {
            InodeKind::File(file) => Some(file),
            _ => None,
        }
    }

    fn read(&self, file: &FileLayout, offset: u64, length: usize) -> Option<Vec<u8>> {
        self.read_bytes(file, offset, length).ok()
    }
}

/// What was found so far.
struct Search<'a, T> {
    tree: &'a T,
    paths: Vec<PathBuf>,
}

impl<T: Tree> Search<'_, T> {
    /// None if `path` is no regular file.
    fn for_program(tree: &T, path: &Path) -> Option<Vec<PathBuf>> {
        let mut search = Search { tree, paths: Vec::new() };
        search.add_program(path, DEPTH_MAX)?;
        Some(search.paths)
    }

    fn add_program(&mut self, path: &Path, depth: usize) -> Option<()> {
        let tree = self.tree;
        let file = tree.file(path)?;
        self.paths.push(path.to_owned());
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
            self.paths.push(PathBuf::from(PRELOADED));
            self.add_libraries(&object.needed);
        }
        Some(())
    }

    /// Adds a file that is not read. Finding it nevertheless leaves its inode in the reader's cache, for the image server.
    fn add(&mut self, path: &[u8]) {
        let path = PathBuf::from(OsStr::from_bytes(path));
        if self.tree.file(&path).is_some() {
            self.paths.push(path);
        }
    }

    fn add_libraries(&mut self, names: &[Vec<u8>]) {
        let path = Path::new(library_cache::PATH);
        let cache = self.tree.file(path).and_then(|file| self.tree.read(&file, 0, CACHE_MAX_BYTES));
        let Some(cache) = cache else { return };
        self.paths.push(path.to_owned());
        for path in names.iter().filter_map(|name| library_cache::path_of(&cache, name)).take(LIBRARIES_MAX) {
            self.add(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use super::*;

    struct Host;

    impl Tree for Host {
        type File = File;

        fn file(&self, path: &Path) -> Option<File> {
            path.is_file().then(|| File::open(path).ok())?
        }

        fn read(&self, file: &File, offset: u64, length: usize) -> Option<Vec<u8>> {
            let mut bytes = vec![0; length];
            let got = file.read_at(&mut bytes, offset).ok()?;
            bytes.truncate(got);
            Some(bytes)
        }
    }

    /// What a start of `program` reads; none if it is no program.
    fn paths(program: &Path) -> Option<Vec<String>> {
        let paths = Search::for_program(&Host, program)?;
        Some(paths.iter().map(|path| path.display().to_string()).collect())
    }

    #[test]
    fn finds_loader_and_libraries() {
        let found = paths(Path::new("/bin/sh")).unwrap();
        for name in ["/bin/sh", "/ld-", "/ld.so.preload", "/ld.so.cache", "/libc.so"] {
            assert_eq!(found.iter().filter(|path| path.contains(name)).count(), 1, "{name}: {found:?}");
        }
    }

    #[test]
    fn follows_interpreters_and_not_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("script");
        std::fs::write(&script, "#!/bin/sh -e\n").unwrap();
        let mut expected = vec![script.display().to_string()];
        expected.extend(paths(Path::new("/bin/sh")).unwrap());
        assert_eq!(paths(&script), Some(expected));
        let own = directory.path().join("own");
        std::fs::write(&own, format!("#!{}\n", own.display())).unwrap();
        assert_eq!(paths(&own), Some(vec![own.display().to_string(); DEPTH_MAX + 1]));
    }

    #[test]
    fn leaves_out_what_is_no_regular_file() {
        for path in ["/", "/dev/null", "/none", ""] {
            assert_eq!(paths(Path::new(path)), None, "{path}");
        }
        let directory = tempfile::tempdir().unwrap();
        let empty = directory.path().join("empty");
        File::create(&empty).unwrap();
        assert_eq!(paths(&empty), Some(vec![empty.display().to_string()]));
    }
}
