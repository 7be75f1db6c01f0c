//! Room for one more copy: the least recently used ones go first, and never one that is read.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, SystemTime};

use super::key::Key;
use crate::sys::directory;
use crate::sys::file;
use crate::sys::lock::Locked;

/// One part in this many of the file system stays free.
const RESERVE: u64 = 20;
/// An unfinished copy that nobody has gone on with for so long is not worth its room.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// A copy, whole or not.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    name: OsString,
    key: Key,
    is_whole: bool,
    bytes: u64,
    used: SystemTime,
}

/// Whether a copy of `length` bytes can be had by removing others: in the limit of `size_bytes`, and on the disk.
pub(super) fn may_have(directory: &File, size_bytes: u64, length: u64) -> bool {
    let Ok(room) = directory::room(directory) else { return false };
    let wanted = length.saturating_add(room.size / RESERVE);
    if length <= size_bytes && wanted <= room.free {
        return true;
    }
    let held: u64 = held_in(directory.as_fd()).iter().map(|held| held.bytes).sum();
    length <= size_bytes && wanted <= room.free.saturating_add(held)
}

/// Makes room for `length` bytes, of which the unfinished copy of `key` has some. False if there is none to be made.
pub(super) fn make(directory: &File, key: &Key, size_bytes: u64, length: u64) -> bool {
    let all = held_in(directory.as_fd());
    let (own, mut others): (Vec<Held>, Vec<Held>) = all.into_iter().partition(|held| held.key == *key);
    let begun: u64 = own.iter().map(|held| held.bytes).sum();
    others.sort_by_key(|held| held.used);
    let mut held: u64 = others.iter().map(|held| held.bytes).sum();
    let is_stale = |held: &Held| {
        !held.is_whole && SystemTime::now().duration_since(held.used).is_ok_and(|age| age > STALE)
    };
    let fits = |held: u64| {
        let more = length.saturating_sub(begun);
        let on_disk = directory::room(directory)
            .is_ok_and(|room| more.saturating_add(room.size / RESERVE) <= room.free);
        on_disk && held.saturating_add(length) <= size_bytes
    };
    for other in &others {
        if !is_stale(other) && fits(held) {
            continue;
        }
        if remove(directory.as_fd(), other) {
            held = held.saturating_sub(other.bytes);
        }
    }
    fits(held)
}

/// Removes a copy, unless somebody reads it or makes it.
fn remove(directory: BorrowedFd<'_>, held: &Held) -> bool {
    let Some(file) = file::open_regular(directory, &held.name) else { return false };
    let Ok(Some(_locked)) = Locked::try_exclusive(file) else { return false };
    let is_removed = file::unlink(directory, &held.name).is_ok();
    if is_removed && held.is_whole {
        let _ = file::unlink(directory, &held.key.used());
    }
    is_removed
}

/// The copies in a directory.
fn held_in(directory: BorrowedFd<'_>) -> Vec<Held> {
    let names = file::names(directory);
    names.into_iter().filter_map(|name| held(directory, name)).collect()
}

fn held(directory: BorrowedFd<'_>, name: OsString) -> Option<Held> {
    let (key, is_whole) = Key::of_name(name.to_str()?)?;
    let stat = file::stat(directory, &name).ok().flatten()?;
    let used = file::stat(directory, &key.used()).ok().flatten().filter(|_| is_whole);
    let seconds = used.map_or(stat.st_mtime, |used| used.st_mtime);
    let nanoseconds = used.map_or(stat.st_mtime_nsec, |used| used.st_mtime_nsec);
    let since = Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
        .saturating_add(Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0)));
    let used = SystemTime::UNIX_EPOCH.checked_add(since)?;
    let bytes = u64::try_from(stat.st_size).unwrap_or(0);
    Some(Held { name, key, is_whole, bytes, used })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::lock;

    struct Cache {
        directory: tempfile::TempDir,
        opened: File,
    }

    impl Cache {
        fn new() -> Cache {
            // A tmpfs, which is never as full as a disk may be.
            let directory = tempfile::tempdir_in("/dev/shm").unwrap();
            let opened = File::open(directory.path()).unwrap();
            Cache { directory, opened }
        }

        fn path(&self, name: &str) -> std::path::PathBuf {
            self.directory.path().join(name)
        }

        /// A copy of 1000 bytes, last of use `age` seconds ago.
        fn copy(&self, digit: char, age: u64) -> String {
            let name = digit.to_string().repeat(64);
            std::fs::write(self.path(&name), [0; 1000]).unwrap();
            let used = File::create(self.path(&format!("{name}.used"))).unwrap();
            used.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
            name
        }

        fn make(&self, size: u64) -> bool {
            let (key, _) = Key::of_name(&"f".repeat(64)).unwrap();
            make(&self.opened, &key, size, 1000)
        }

        fn names(&self) -> String {
            let mut names: Vec<_> = std::fs::read_dir(self.directory.path())
                .unwrap()
                .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
                .filter(|name| !name.ends_with(".used"))
                .map(|name| name[..1].to_owned())
                .collect();
            names.sort();
            names.concat()
        }
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let cache = Cache::new();
        for (digit, age) in [('a', 10), ('b', 30), ('c', 20)] {
            cache.copy(digit, age);
        }
        assert!(cache.make(4000));
        assert_eq!(cache.names(), "abc");
        assert!(cache.make(3000));
        assert_eq!(cache.names(), "ac");
        assert!(!cache.path(&format!("{}.used", "b".repeat(64))).exists());
        assert!(cache.make(1500));
        assert_eq!(cache.names(), "");
        assert!(!cache.make(999));
    }

    #[test]
    fn a_copy_that_is_read_stays() {
        let cache = Cache::new();
        let (read, _) = (cache.copy('a', 30), cache.copy('b', 10));
        let reader = File::open(cache.path(&read)).unwrap();
        assert!(lock::share(&reader).unwrap());
        assert!(cache.make(2000));
        assert_eq!(cache.names(), "a");
        assert!(!cache.make(1500));
        drop(reader);
        assert!(cache.make(1500));
    }

    #[test]
    fn other_files_and_fresh_beginnings_stay_and_stale_ones_go() {
        let cache = Cache::new();
        std::fs::write(cache.path("note"), [0; 5000]).unwrap();
        for (digit, age) in [("a", 0), ("b", 100_000)] {
            let partial = File::create(cache.path(&format!("{}.partial", digit.repeat(64)))).unwrap();
            partial.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        }
        assert!(cache.make(2000));
        assert_eq!(cache.names(), "an");
    }
}
