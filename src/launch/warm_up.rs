//! Warming up: what the start of a program will look at is looked at before.
//!
//! The kernel asks the image server for each name on the way and for each few pages as a program starts, and waits for
//! each answer. So the server decompresses the program, its loader and its libraries from the moment it is born, while the
//! launcher still mounts ([`ahead`]); and the launcher has the kernel look the names up while server and launcher share a
//! CPU ([`look_up`]). Nothing depends on either: what fails is left out.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::elf::{Object, library_cache};
use crate::launch::program::script_interpreter;
use crate::mount::server::Ahead;
use crate::mount::{FileLayout, Filesystem, InodeKind};

/// Which glibc's loader looks for first of all.
const PRELOADED: &str = "/etc/ld.so.preload";
/// Bytes of a program that are looked at: its program header, or the first line of a script.
const HEAD_BYTES: usize = 4096;
/// A cache of libraries longer than this is not read.
const CACHE_MAX_BYTES: u64 = 1 << 20;
/// Most files of one program.
const FILES_MAX: usize = 24;
/// A file of up to so many bytes is decompressed as a whole: the C library is shorter. A launch of `/bin/true` took 9.2 ms
/// so and 9.9 ms with the ends of files alone.
const WHOLE_MAX_BYTES: u64 = 2 << 20;
/// At the start of a longer file are its headers, symbols and relocations. What code is needed depends on the program.
const START_BYTES: u64 = 256 << 10;
/// At its end is its data.
const END_BYTES: u64 = 128 << 10;
/// Interpreters of interpreters.
const DEPTH_MAX: usize = 3;

/// Where the files of a start are found.
trait Tree {
    /// An open regular file.
    type File;

    /// A regular file that can be read.
    fn open(&self, path: &Path) -> Option<Self::File>;

    /// Its length, bytes.
    fn length(&self, file: &Self::File) -> u64;

    /// At most `length` of its bytes; fewer where it ends.
    fn read(&self, file: &Self::File, offset: u64, length: usize) -> Option<Vec<u8>>;
}

/// The files that a program's start reads: the interpreter or loader, the libraries that it names, the program.
#[derive(Debug)]
struct Start<'a, T: Tree> {
    tree: &'a T,
    files: Vec<T::File>,
}

impl<'a, T: Tree> Start<'a, T> {
    /// None if `path` is no regular file that can be read.
    fn of_program(tree: &'a T, path: &Path) -> Option<Start<'a, T>> {
        let mut start = Start { tree, files: Vec::new() };
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
            self.files.extend(tree.open(Path::new(OsStr::from_bytes(loader))));
            self.add_libraries(&object.needed);
        }
        self.files.push(file);
        Some(())
    }

    fn add_libraries(&mut self, names: &[Vec<u8>]) {
        let cache = self.tree.open(Path::new(library_cache::PATH)).and_then(|file| self.whole(&file));
        let Some(cache) = cache else { return };
        for name in names {
            if self.files.len() < FILES_MAX
                && let Some(path) = library_cache::path_of(&cache, name)
            {
                self.files.extend(self.tree.open(Path::new(OsStr::from_bytes(path))));
            }
        }
    }

    fn whole(&self, file: &T::File) -> Option<Vec<u8>> {
        let length = self.tree.length(file);
        if length > CACHE_MAX_BYTES {
            return None;
        }
        self.tree.read(file, 0, usize::try_from(length).ok()?)
    }
}

/// The ranges that are wanted of a file of `length` bytes, as offset and length.
fn wanted(length: u64) -> impl Iterator<Item = (u64, u64)> {
    let (start, end) =
        if length <= WHOLE_MAX_BYTES { (length, None) } else { (START_BYTES, Some(length - END_BYTES)) };
    std::iter::once((0, start)).chain(end.map(|offset| (offset, END_BYTES)))
}

/// The root that the process has: the image as it is mounted, with all binds.
#[derive(Debug)]
struct Root;

impl Tree for Root {
    type File = File;

    /// Opening must neither block nor have an effect, whatever it is by now.
    fn open(&self, path: &Path) -> Option<File> {
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
        if !std::fs::metadata(path).ok()?.is_file() {
            return None;
        }
        let file = File::options().read(true).custom_flags(flags).open(path).ok()?;
        file.metadata().ok()?.is_file().then_some(file)
    }

    fn length(&self, file: &File) -> u64 {
        file.metadata().map_or(0, |metadata| metadata.len())
    }

    fn read(&self, file: &File, offset: u64, length: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; length];
        let got = file.read_at(&mut bytes, offset).ok()?;
        bytes.truncate(got);
        Some(bytes)
    }
}

/// The image itself, without what the host adds: to the server, before anybody asks it.
impl Tree for Filesystem {
    type File = FileLayout;

    fn open(&self, path: &Path) -> Option<FileLayout> {
        match self.resolve(path.as_os_str().as_bytes()).ok()??.kind {
            InodeKind::File(layout) => Some(layout),
            _ => None,
        }
    }

    fn length(&self, file: &FileLayout) -> u64 {
        file.size
    }

    fn read(&self, file: &FileLayout, offset: u64, length: usize) -> Option<Vec<u8>> {
        self.read_bytes(file, offset, length).ok()
    }
}

/// What the image server does ahead of a launch of the first of `candidates` that the image has.
pub(super) fn ahead(candidates: Vec<PathBuf>) -> Ahead {
    Ahead::new(move |image| {
        let start = candidates.iter().find_map(|path| Start::of_program(image, path));
        for file in start.iter().flat_map(|start| &start.files) {
            for (offset, length) in wanted(file.size) {
                // What cannot be read is told to the one who needs it.
                let _ = image.prefetch(file, offset, usize::try_from(length).unwrap_or(usize::MAX));
            }
        }
    })
}

/// Has the kernel look up what a start of the first of `candidates` looks up.
pub(super) fn look_up<'a>(mut candidates: impl Iterator<Item = &'a Path>) {
    drop(candidates.find_map(|path| Start::of_program(&Root, path)));
    let _ = std::fs::metadata(PRELOADED);
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    /// The paths that were opened.
    fn opened(program: &Path) -> Option<Vec<String>> {
        let start = Start::of_program(&Root, program)?;
        let path = |file: &File| std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        Some(start.files.iter().map(|file| path(file).display().to_string()).collect())
    }

    #[test]
    fn short_files_are_wanted_whole_and_of_long_ones_the_ends() {
        const MIB: u64 = 1 << 20;
        let cases: [(u64, &[(u64, u64)]); 4] = [
            (0, &[(0, 0)]),
            (5, &[(0, 5)]),
            (2 * MIB, &[(0, 2 * MIB)]),
            (2 * MIB + 1, &[(0, MIB / 4), (2 * MIB + 1 - MIB / 8, MIB / 8)]),
        ];
        for (length, ranges) in cases {
            assert_eq!(wanted(length).collect::<Vec<_>>(), ranges, "{length}");
        }
    }

    #[test]
    fn finds_loader_and_libraries() {
        let opened = opened(Path::new("/proc/self/exe")).unwrap();
        assert_eq!(opened.last(), Some(&std::env::current_exe().unwrap().display().to_string()));
        if cfg!(target_env = "gnu") {
            assert!(opened.iter().any(|path| path.contains("ld-linux")), "{opened:?}");
            assert!(opened.iter().any(|path| path.contains("libc.so")), "{opened:?}");
        }
    }

    #[test]
    fn follows_interpreters_and_not_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("script");
        let shell = std::fs::canonicalize("/bin/sh").unwrap().display().to_string();
        std::fs::write(&script, "#!/bin/sh -e\n").unwrap();
        let found = opened(&script).unwrap();
        assert!(found.contains(&shell) && found.contains(&script.display().to_string()), "{found:?}");
        let own = directory.path().join("own");
        std::fs::write(&own, format!("#!{}\n", own.display())).unwrap();
        assert_eq!(opened(&own).unwrap().len(), DEPTH_MAX);
    }

    #[test]
    fn leaves_out_what_is_no_regular_file() {
        for path in ["/", "/dev/null", "/none", ""] {
            assert_eq!(opened(Path::new(path)), None, "{path}");
        }
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(opened(&fifo), None);
        let empty = directory.path().join("empty");
        File::create(&empty).unwrap();
        assert_eq!(opened(&empty).unwrap().len(), 1);
    }
}
