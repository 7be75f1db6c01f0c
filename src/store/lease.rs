//! Whose turn it is to fetch an image. Saves work, and nothing depends on it: two who fetch the same make the same file,
//! and one of them is kept.
//!
//! A lease is a file that is made with `O_EXCL`, whose holder touches it every few seconds. Who finds one waits, and
//! watches: one that does not change for long enough by the watcher's own clock is dead, and the next number is taken, by
//! one of all who wait. Clocks of different nodes are never compared.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use super::{Store, StoreError};
use crate::image::store::Key;
use crate::sys::temporary::{self, Temporary};
use crate::sys::{file, process};

/// Between two signs of life.
const BEAT: Duration = Duration::from_secs(10);
/// Without a sign for so long, a holder is dead. Longer than a node may take its knowledge of a file's times for good.
const DEAD: Duration = Duration::from_secs(75);
/// Between two looks of those who wait, at first and at last.
const LOOKS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// The holder's name in a lease, bytes.
const HOLDER_MAX: usize = 128;

/// The turn; given back when dropped, and by the signals that end a process.
#[derive(Debug)]
pub struct Lease {
    stop: Option<Sender<()>>,
    heart: Option<JoinHandle<()>>,
    _file: Temporary,
}

/// A lease that somebody has.
#[derive(Debug)]
struct Found {
    number: u32,
    /// `NODE PID`.
    holder: String,
    /// What changes with every sign of life.
    beat: (i64, i64, u64),
}

impl Store {
    /// Waits for the turn to fetch `key`; none once the image is there, brought by whoever had the turn. `waiting` is
    /// called once with who that is, `NODE PID`.
    pub fn turn(&self, key: &Key, waiting: &mut dyn FnMut(&str)) -> Result<Option<Lease>, StoreError> {
        let directory = self.images_directory()?;
        let mut seen: Option<(Found, Instant)> = None;
        let mut pause = LOOKS.0;
        loop {
            let found = highest(directory.as_fd(), key);
            let number = match (&found, &seen) {
                (None, _) => Some(0),
                (Some(found), _) if is_dead_here(&found.holder) => Some(found.number.saturating_add(1)),
                (Some(found), Some((before, since)))
                    if (found.number, found.beat) == (before.number, before.beat) =>
                {
                    (since.elapsed() > DEAD).then(|| found.number.saturating_add(1))
                }
                _ => {
                    if seen.is_none() {
                        found.iter().for_each(|found| waiting(&found.holder));
                    }
                    None
                }
            };
            if let Some(number) = number
                && let Some(lease) = self.take(directory.as_fd(), key, number)?
            {
                // Making a file here has this node forget what it knew of the directory, also that the image is missing.
                return Ok(if self.has(key)? { None } else { Some(lease) });
            }
            if let Some(found) = found
                && seen
                    .as_ref()
                    .is_none_or(|(before, _)| (before.number, before.beat) != (found.number, found.beat))
            {
                seen = Some((found, Instant::now()));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LOOKS.1);
            if self.has(key)? {
                return Ok(None);
            }
        }
    }

    fn take(&self, directory: BorrowedFd<'_>, key: &Key, number: u32) -> Result<Option<Lease>, StoreError> {
        let name = OsString::from(format!("{}{number}", key.lease_prefix()));
        let failed = |source| StoreError::Write { path: self.image_path(key), source };
        let Some((made, file)) = Temporary::create_named(directory, &name, 0o644).map_err(failed)? else {
            return Ok(None);
        };
        let holder = format!("{} {}\n", temporary::node(), std::process::id());
        // One that says nothing is waited for like any other.
        let _ = file.write_all_at(holder.as_bytes(), 0);
        // Those before it are dead.
        for dead in 0..number {
            let _ = file::unlink(directory, &OsString::from(format!("{}{dead}", key.lease_prefix())));
        }
        let (stop, stopped) = mpsc::channel();
        // Without a thread there are no signs of life, and somebody may fetch the image, too.
        let heart = std::thread::Builder::new().name("lease".to_owned()).spawn(move || {
            while stopped.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
                let _ = file.set_modified(SystemTime::now());
            }
        });
        Ok(Some(Lease { stop: Some(stop), heart: heart.ok(), _file: made }))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(heart) = self.heart.take() {
            let _ = heart.join();
        }
    }
}

/// The lease on `key` with the highest number, opened anew, which has a network file system ask its server.
fn highest(directory: BorrowedFd<'_>, key: &Key) -> Option<Found> {
    let prefix = key.lease_prefix();
    let numbers = file::names(directory).into_iter();
    let numbers = numbers.filter_map(|name| name.to_str()?.strip_prefix(&prefix)?.parse::<u32>().ok());
    let number = numbers.max()?;
    let opened = file::open_regular(directory, &OsString::from(format!("{prefix}{number}")))?;
    Some(Found { number, holder: holder(&opened), beat: beat(&opened)? })
}

/// Whether a lease is of a process of this node that is gone.
pub(super) fn is_dead(directory: BorrowedFd<'_>, name: &OsStr) -> bool {
    file::open_regular(directory, name).is_some_and(|lease| is_dead_here(&holder(&lease)))
}

fn beat(lease: &File) -> Option<(i64, i64, u64)> {
    let metadata = lease.metadata().ok()?;
    Some((metadata.mtime(), metadata.mtime_nsec(), metadata.ino()))
}

/// Who has it, without what could steer a terminal.
fn holder(lease: &File) -> String {
    let mut bytes = [0; HOLDER_MAX];
    let length = lease.read_at(&mut bytes, 0).unwrap_or(0);
    let text = String::from_utf8_lossy(bytes.get(..length).unwrap_or_default()).into_owned();
    text.lines().next().unwrap_or_default().chars().filter(|c| !c.is_control()).collect()
}

/// Whether the holder was a process of this node that is gone.
fn is_dead_here(holder: &str) -> bool {
    let parts = holder.split_once(' ').and_then(|(node, pid)| Some((node, pid.parse::<i32>().ok()?)));
    parts.is_some_and(|(node, pid)| node == temporary::node() && !process::exists(pid))
}
