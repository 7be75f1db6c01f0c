//! The directory of a cache: who may have written what is in it, how layers get in and when they go.
//!
//! No locks: a layer appears complete under a name that says what it is, so of several processes that bring the same one
//! the first or the last wins, and whoever has a layer open keeps it when its name is removed.

use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::{CacheError, FillError};
use crate::sys::temporary::Temporary;
use crate::sys::{beneath, caller, file};

/// What layers' names end in.
const SUFFIX: &str = ".layer";
/// Permissions of a layer, before the umask. The directory is what keeps others out, so that a site can share one.
const MODE: u32 = 0o644;
/// A layer used so recently is not removed: another process may be about to open it.
const YOUNG: Duration = Duration::from_secs(10 * 60);

#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    fd: OwnedFd,
    /// Bytes that all layers together may take.
    limit: u64,
}

/// A layer in the directory.
#[derive(Debug)]
struct Found {
    used: SystemTime,
    name: OsString,
    bytes: u64,
}

impl Directory {
    pub(super) fn open(path: &Path, limit: u64) -> Result<Directory, CacheError> {
        let cannot = |source| CacheError::Open { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(cannot)?;
        let fd = file::open_directory(path).map_err(|error| cannot(io::Error::from(error.errno)))?;
        let opened = fd.try_clone().map(File::from).and_then(|file| file.metadata()).map_err(cannot)?;
        match distrust(&opened) {
            Some(why) => Err(CacheError::Untrusted { path: path.to_owned(), why }),
            None => Ok(Directory { path: path.to_owned(), fd, limit }),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether something has this name.
    pub(super) fn has(&self, name: &str) -> bool {
        matches!(file::stat(self.fd.as_fd(), OsStr::new(name)), Ok(Some(_)))
    }

    /// Opens a layer that only its owner, who is the caller or root, can have written.
    pub(super) fn open_layer(&self, name: &str) -> Option<File> {
        if !self.has(name) {
            return None;
        }
        let passed_over = |why: &dyn std::fmt::Display| {
            log::info!("layer cache: {name} is passed over: {why}");
            None
        };
        let file = match beneath::open_file(self.fd.as_fd(), &[name]) {
            Ok(file) => file,
            Err(error) => return passed_over(&error),
        };
        match file.metadata().map(|metadata| distrust(&metadata)) {
            Ok(None) => Some(file),
            Ok(Some(why)) => passed_over(&why),
            Err(error) => passed_over(&error),
        }
    }

    /// Removes what nobody used for longest until `bytes` more fit, and temporaries that were left behind. False if
    /// they still do not fit.
    pub(super) fn make_room(&self, bytes: u64) -> bool {
        let now = SystemTime::now();
        let age = |found: &Found| now.duration_since(found.used).unwrap_or_default();
        Temporary::sweep(self.fd.as_fd());
        let mut oldest_first = self.layers();
        let mut used: u64 = oldest_first.iter().map(|found| found.bytes).sum();
        let room = self.limit.saturating_sub(bytes);
        oldest_first.sort_unstable_by(|a, b| (a.used, &a.name).cmp(&(b.used, &b.name)));
        for layer in oldest_first {
            if used <= room || bytes > self.limit || age(&layer) < YOUNG {
                break;
            }
            self.remove(&layer.name);
            log::info!("layer cache: removed {:?}, not used for longest", layer.name);
            used = used.saturating_sub(layer.bytes);
        }
        used <= room && bytes <= self.limit
    }

    fn layers(&self) -> Vec<Found> {
        let found = |name: OsString| {
            let metadata = file::open_regular(self.fd.as_fd(), &name)?.metadata().ok()?;
            Some(Found { used: metadata.modified().ok()?, name, bytes: metadata.blocks() * 512 })
        };
        let names = file::names(self.fd.as_fd()).into_iter();
        names.filter(|name| name.as_encoded_bytes().ends_with(SUFFIX.as_bytes())).filter_map(found).collect()
    }

    fn remove(&self, name: &OsStr) {
        if let Err(error) = file::unlink(self.fd.as_fd(), name) {
            log::info!("layer cache: {error}");
        }
    }

    /// Makes a layer that appears complete. Of two that bring the same, the second is dropped, unless it `replaces`.
    pub(super) fn publish(
        &self,
        name: &str,
        replaces: bool,
        write: impl FnOnce(&File) -> io::Result<()>,
    ) -> Result<(), FillError> {
        let (fd, name) = (self.fd.as_fd(), OsStr::new(name));
        let Some(unnamed) = file::create_unnamed(fd, MODE)? else {
            let (temporary, file) = Temporary::create_file(fd, MODE)?;
            write(&file)?;
            // Another node must not see the name before the content.
            file::sync(&file)?;
            match replaces {
                true => temporary.replace(name)?,
                false => drop(temporary.publish(name)?),
            }
            return Ok(());
        };
        // Not synced: a local file system, on which only a crash of the node could lose what was written, and then the
        // digests tell.
        write(&unnamed)?;
        if replaces {
            Temporary::link(fd, &unnamed)?.replace(name)?;
        } else {
            file::link_unnamed(&unnamed, fd, name)?;
        }
        Ok(())
    }
}

/// Notes that a layer was used, for [`Directory::make_room`]. In somebody else's cache that cannot be noted.
pub(super) fn touch(layer: &File) {
    let _ = layer.set_modified(SystemTime::now());
}

/// Why a file or directory may hold something that neither the caller nor root put there.
fn distrust(metadata: &Metadata) -> Option<&'static str> {
    if ![0, caller::effective_uid()].contains(&metadata.uid()) {
        Some("it belongs to another user")
    } else if metadata.mode() & 0o022 != 0 {
        Some("others can write to it")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn directory(limit: u64) -> (tempfile::TempDir, Directory) {
        let scratch = tempfile::tempdir().unwrap();
        let directory = Directory::open(&scratch.path().join("a/b"), limit).unwrap();
        (scratch, directory)
    }

    fn put(directory: &Directory, name: &str, bytes: usize, age: Duration) {
        directory.publish(name, true, |file| io::Write::write_all(&mut &*file, &vec![1; bytes])).unwrap();
        let file = File::open(directory.path.join(name)).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
    }

    fn names(directory: &Directory) -> Vec<String> {
        let names = file::names(directory.fd.as_fd()).into_iter().map(|name| name.into_string().unwrap());
        let mut names: Vec<_> = names.filter(|name| !name.trim_matches('.').is_empty()).collect();
        names.sort();
        names
    }

    const LEFT: &str = ".hpcrun-elsewhere-3.partial";

    #[test]
    fn the_oldest_go_first_and_the_young_stay() {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        let (_scratch, directory) = directory(40_960);
        for (name, age) in [("a.layer", 3), ("b.layer", 5), ("c.layer", 0), ("d.layer", 4)] {
            put(&directory, name, 8192, hours(age));
        }
        put(&directory, "unrelated", 8192, hours(100));
        put(&directory, ".hpcrun-elsewhere-2.partial", 8192, hours(25));
        put(&directory, LEFT, 8192, hours(23));
        assert!(directory.make_room(8192));
        let kept = [LEFT, "a.layer", "b.layer", "c.layer", "d.layer", "unrelated"];
        assert_eq!(names(&directory), kept);
        assert!(directory.make_room(20_000));
        assert_eq!(names(&directory), [LEFT, "a.layer", "c.layer", "unrelated"]);
        assert!(!directory.make_room(40_961), "larger than the cache");
        assert_eq!(names(&directory), [LEFT, "a.layer", "c.layer", "unrelated"]);
        assert!(!directory.make_room(40_960), "one is too young to go");
        assert_eq!(names(&directory), [LEFT, "c.layer", "unrelated"]);
    }

    #[test]
    fn the_second_of_two_is_dropped_unless_it_replaces() {
        let (_scratch, directory) = directory(u64::MAX);
        let read = || std::fs::read(directory.path.join("x.layer")).unwrap();
        for (content, replaces, expected) in [("1", false, "1"), ("2", false, "1"), ("3", true, "3")] {
            let write = |file: &File| io::Write::write_all(&mut &*file, content.as_bytes());
            directory.publish("x.layer", replaces, write).unwrap();
            assert_eq!(read(), expected.as_bytes());
        }
        let error = directory.publish("y.layer", false, |_| Err(io::ErrorKind::StorageFull.into()));
        assert!(error.is_err() && !directory.has("y.layer"));
    }

    #[test]
    fn what_others_can_write_is_not_used() {
        let (_scratch, directory) = directory(u64::MAX);
        put(&directory, "x.layer", 1, Duration::ZERO);
        let path = directory.path.join("x.layer");
        for (mode, used) in [(0o644, true), (0o600, true), (0o664, false), (0o646, false)] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(directory.open_layer("x.layer").is_some(), used, "{mode:o}");
            let file = std::fs::set_permissions(&directory.path, PermissionsExt::from_mode(mode | 0o700));
            file.unwrap();
            assert_eq!(Directory::open(&directory.path, 1).is_ok(), used, "{mode:o}");
        }
        std::os::unix::fs::symlink("x.layer", directory.path.join("l.layer")).unwrap();
        assert!(directory.open_layer("l.layer").is_none());
        assert!(directory.open_layer("none.layer").is_none());
    }
}
