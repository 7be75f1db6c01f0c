//! The file behind an image, read with patience: a store that refuses for a moment is asked again before anybody hears of it.

use std::fs::{File, Metadata};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;

use crate::sys;

/// Pauses before each further try of a patient reader: eight tries in six seconds, which a network file system's
/// reconnection or a short failover fits into.
const PAUSES_MS: [u64; 7] = [50, 100, 200, 400, 800, 1600, 3000];

/// The file, and what is known of how it behaves.
#[derive(Debug)]
pub(super) struct Backing {
    file: File,
    /// As it was when it was looked at first.
    identity: OnceLock<Identity>,
    is_patient: bool,
    /// The last read was given up, so that the next need not wait as long for nothing.
    gave_up: AtomicBool,
}

/// What makes a file the same one when it is opened again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

/// What a refusal of the kernel means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// The store may have recovered in a moment.
    Passing,
    /// This open file is of no use any more; opened again, the same file may be.
    Stale,
    /// Asking again changes nothing.
    Final,
}

impl Refusal {
    fn of(error: &Error) -> Refusal {
        match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
            Errno::ESTALE | Errno::ENOTCONN | Errno::ESHUTDOWN => Refusal::Stale,
            Errno::EIO
            | Errno::EREMOTEIO
            | Errno::EAGAIN
            | Errno::ENOMEM
            | Errno::ENOBUFS
            | Errno::ETIMEDOUT
            | Errno::EHOSTDOWN
            | Errno::EHOSTUNREACH
            | Errno::ENETDOWN
            | Errno::ENETUNREACH
            | Errno::ECONNREFUSED
            | Errno::ECONNRESET
            | Errno::ECONNABORTED => Refusal::Passing,
            _ => Refusal::Final,
        }
    }
}

impl Backing {
    pub(super) fn new(file: File) -> Backing {
        Backing { file, identity: OnceLock::new(), is_patient: false, gave_up: AtomicBool::new(false) }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// From now on refused reads are tried again for some seconds.
    pub(super) fn be_patient(&mut self) {
        self.is_patient = true;
    }

    /// What the file is; the first answer is the one it is known by later.
    pub(super) fn metadata(&self) -> Result<Metadata, Error> {
        let metadata = self.file.metadata()?;
        self.identity.get_or_init(|| Identity::of(&metadata));
        Ok(metadata)
    }

    /// As `pread(2)`: some bytes, none at the end of the file.
    pub(super) fn read_at(&self, out: &mut [u8], offset: u64) -> Result<usize, Error> {
        match self.try_read(out, offset) {
            Err(error) if self.is_patient && Refusal::of(&error) != Refusal::Final => {
                self.insist(error, out, offset)
            }
            outcome => outcome,
        }
    }

    fn try_read(&self, out: &mut [u8], offset: u64) -> Result<usize, Error> {
        loop {
            match self.file.read_at(out, offset) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(count) => {
                    if self.gave_up.load(Ordering::Relaxed) {
                        self.gave_up.store(false, Ordering::Relaxed);
                    }
                    return Ok(count);
                }
                outcome => return outcome,
            }
        }
    }

    /// Reads again what was refused with `error`, after ever longer pauses, while it makes sense. As long as a store stays away,
    /// only the first reads wait for it; the others get the error at once.
    #[cold]
    fn insist(&self, mut error: Error, out: &mut [u8], offset: u64) -> Result<usize, Error> {
        for pause in PAUSES_MS {
            let refusal = Refusal::of(&error);
            let is_hopeless = match refusal {
                Refusal::Stale => self.reopen().is_err_and(|reason| reason == Reopening::AnotherFile),
                Refusal::Passing => false,
                Refusal::Final => true,
            };
            if is_hopeless {
                break;
            }
            // A file just opened again needs no pause.
            let outcome = if refusal == Refusal::Stale { self.try_read(out, offset) } else { Err(error) };
            error = match outcome {
                Ok(count) => return Ok(count),
                Err(error) => error,
            };
            if self.gave_up.load(Ordering::Relaxed) {
                break;
            }
            std::thread::sleep(Duration::from_millis(pause));
            error = match self.try_read(out, offset) {
                Ok(count) => return Ok(count),
                Err(error) => error,
            };
        }
        self.gave_up.store(true, Ordering::Relaxed);
        Err(error)
    }

    /// Opens the file by its path and, if it is the same, puts it in the place of the one that went stale, for all threads.
    fn reopen(&self) -> Result<(), Reopening> {
        let path = sys::file::path_of(&self.file).map_err(|_| Reopening::Refused)?;
        let is_same = |metadata: &Metadata| self.identity.get() == Some(&Identity::of(metadata));
        // Looked at before: opening a pipe that stands there now would wait for its writer.
        let found = match std::fs::metadata(&path) {
            Ok(found) => found,
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(Reopening::AnotherFile),
            Err(_) => return Err(Reopening::Refused),
        };
        if !is_same(&found) {
            return Err(Reopening::AnotherFile);
        }
        let file = File::open(&path).map_err(|_| Reopening::Refused)?;
        let opened = file.metadata().map_err(|_| Reopening::Refused)?;
        if !is_same(&opened) {
            return Err(Reopening::AnotherFile);
        }
        sys::file::exchange(&self.file, &file).map_err(|_| Reopening::Refused)
    }
}

/// Why a file was not opened again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reopening {
    /// The path leads to another file, to a changed one or nowhere: no byte of that may be served.
    AnotherFile,
    /// Not now.
    Refused,
}

impl Identity {
    fn of(metadata: &Metadata) -> Identity {
        Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_apart() {
        for (errno, expected) in [
            (Errno::EIO, Refusal::Passing),
            (Errno::ETIMEDOUT, Refusal::Passing),
            (Errno::ESTALE, Refusal::Stale),
            (Errno::ENOTCONN, Refusal::Stale),
            (Errno::EISDIR, Refusal::Final),
            (Errno::EBADF, Refusal::Final),
        ] {
            assert_eq!(Refusal::of(&Error::from_raw_os_error(errno as i32)), expected, "{errno}");
        }
        assert_eq!(Refusal::of(&Error::from(ErrorKind::UnexpectedEof)), Refusal::Final);
    }

    #[test]
    fn only_the_same_file_is_opened_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        std::fs::write(&path, "content").unwrap();
        let backing = Backing::new(File::open(&path).unwrap());
        assert_eq!(backing.reopen(), Err(Reopening::AnotherFile), "not known yet");
        backing.metadata().unwrap();
        assert_eq!(backing.reopen(), Ok(()));
        let mut bytes = [0; 7];
        assert_eq!(backing.read_at(&mut bytes, 0).unwrap(), 7);
        assert_eq!(&bytes, b"content");
        std::fs::write(&path, "longer content").unwrap();
        assert_eq!(backing.reopen(), Err(Reopening::AnotherFile), "another size");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(backing.reopen(), Err(Reopening::AnotherFile), "no file");
    }

    #[test]
    fn an_impatient_reader_hears_at_once() {
        let backing = Backing::new(File::open("/").unwrap());
        assert_eq!(backing.read_at(&mut [0; 4], 0).unwrap_err().raw_os_error(), Some(libc::EISDIR));
    }
}
