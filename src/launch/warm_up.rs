//! Warming up: what the start of a program will look at is looked at before, all of it in one go.
//!
//! The kernel asks the image server for each name on the way and for each few pages as a program starts, and waits for
//! each answer. Here the names are looked up while server and launcher share a CPU, and then whole files are asked for
//! at once, which the server decompresses on all its threads. Nothing depends on it: what fails is left out.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::elf::{Header, library_cache};
use crate::launch::program::script_interpreter;
use crate::sys::file::will_need;

/// Where glibc's loader looks libraries up.
const LIBRARY_CACHE: &str = "/etc/ld.so.cache";
/// Bytes of a program that are looked at: its program header, or the first line of a script.
const HEAD_BYTES: usize = 4096;
/// A cache of libraries longer than this is not read.
const CACHE_MAX_BYTES: u64 = 1 << 20;
/// Most files of one program.
const FILES_MAX: usize = 24;
/// Bytes asked for at a time: the kernel's read-ahead, which is cut off at more.
const STEP_BYTES: u64 = 128 << 10;
/// Steps at the start of a file, where its headers, symbols and relocations are; one more at the end gets its data. What
/// code between them is needed depends on the program.
const STEPS: u64 = 2;
/// Interpreters of interpreters.
const DEPTH_MAX: usize = 3;

/// The files that a program's start reads, open.
#[derive(Debug, Default)]
pub(super) struct Files(Vec<File>);

impl Files {
    /// Finds the program at `path`, its interpreter or loader, and the libraries it names; none if `path` is no regular
    /// file that can be read.
    pub(super) fn of_program(path: &Path) -> Option<Files> {
        let mut files = Files::default();
        files.add_program(path, DEPTH_MAX)?;
        Some(files)
    }

    /// Has the kernel read them, without waiting for it.
    pub(super) fn read_ahead(&self) {
        for file in &self.0 {
            let length = file.metadata().map_or(0, |metadata| metadata.len());
            for step in 0..STEPS.min(length.div_ceil(STEP_BYTES)) {
                will_need(file, step * STEP_BYTES, STEP_BYTES);
            }
            if length > STEPS * STEP_BYTES {
                let last = (length - STEP_BYTES).max(STEPS * STEP_BYTES);
                will_need(file, last, STEP_BYTES);
            }
        }
    }

    fn add_program(&mut self, path: &Path, depth: usize) -> Option<()> {
        let file = open(path)?;
        let head = read_at(&file, 0, HEAD_BYTES)?;
        let depth = depth.checked_sub(1)?;
        if let Some(interpreter) = script_interpreter(&head) {
            self.add_program(Path::new(OsStr::from_bytes(interpreter)), depth);
        } else if let Some(elf) = Header::parse(&head)
            && let Some(loader) = elf.interpreter(&head)
        {
            self.0.extend(open(Path::new(OsStr::from_bytes(loader))));
            let needed = elf.needed(&head, &|offset, length| read_at(&file, offset, length));
            self.add_libraries(&needed);
        }
        self.0.push(file);
        Some(())
    }

    fn add_libraries(&mut self, names: &[Vec<u8>]) {
        let Some(cache) = open(Path::new(LIBRARY_CACHE)).and_then(|file| whole(&file)) else { return };
        for name in names {
            if self.0.len() < FILES_MAX
                && let Some(path) = library_cache::path_of(&cache, name)
            {
                self.0.extend(open(Path::new(OsStr::from_bytes(path))));
            }
        }
    }
}

/// A regular file. Opening must neither block nor have an effect, whatever it is by now.
fn open(path: &Path) -> Option<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
    if !std::fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let file = File::options().read(true).custom_flags(flags).open(path).ok()?;
    file.metadata().ok()?.is_file().then_some(file)
}

fn read_at(file: &File, offset: u64, length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length];
    let got = file.read_at(&mut bytes, offset).ok()?;
    bytes.truncate(got);
    Some(bytes)
}

fn whole(file: &File) -> Option<Vec<u8>> {
    let length = file.metadata().ok()?.len();
    if length > CACHE_MAX_BYTES { None } else { read_at(file, 0, usize::try_from(length).ok()?) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    /// The paths that were opened.
    fn opened(program: &Path) -> Option<Vec<String>> {
        let files = Files::of_program(program)?;
        files.read_ahead();
        let path = |file: &File| std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        Some(files.0.iter().map(|file| path(file).display().to_string()).collect())
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
