//! What an administrator gets to read when a job gets `EIO`: one line a minute, in the job's standard error and in the
//! system's log.
//!
//! The error comes to light deep in a request; it is noted there for the thread, and told before the asker has its answer:
//! afterwards it may have no standard error any more.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::squashfs::reader::ReadError;
use crate::sys::notice::{self, StandardError};

/// Between two lines.
const QUIET: Duration = Duration::from_secs(60);
/// How long an asker waits for the line to be written.
const PATIENCE: Duration = Duration::from_millis(200);
/// Who the system's log says it is.
const PROGRAM: &str = "hpcrun-server";

thread_local! {
    static NOTED: Cell<Option<ReadError>> = const { Cell::new(None) };
}

/// Notes why the request that this thread works on fails.
pub(super) fn note(error: ReadError) {
    NOTED.set(Some(error));
}

/// What was noted since the last time, if anything.
pub(super) fn noted() -> Option<ReadError> {
    NOTED.take()
}

/// Writes the lines.
#[derive(Debug)]
pub(super) struct Reporter {
    image: PathBuf,
    standard_error: Option<StandardError>,
    last: Mutex<Option<Instant>>,
}

impl Reporter {
    /// A reporter of trouble with the file `image`, on the launcher's standard error.
    pub(super) fn new(image: PathBuf, standard_error: Option<StandardError>) -> Reporter {
        Reporter { image, standard_error, last: Mutex::new(None) }
    }

    /// Reports what a request of the thread `asker` failed with, unless something was reported a moment ago.
    pub(super) fn report(&self, asker: u32, error: &ReadError) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| last.elapsed() < QUIET) {
            return;
        }
        *last = Some(Instant::now());
        drop(last);
        let node = nix::unistd::gethostname().unwrap_or_default();
        let line = line(&self.image.display().to_string(), &node.to_string_lossy(), error);
        let standard_error = self.standard_error;
        let (done, told) = channel();
        let tell = move || {
            notice::log_to_system(PROGRAM, &line);
            if let Some(standard_error) = standard_error {
                standard_error.write_through(asker, &line);
            }
            // Nobody may be waiting any more.
            let _ = done.send(());
        };
        // A thread of its own: the job's standard error may be a file on the very store that does not answer. Without
        // room for a thread the line is lost, as it would be to a closed stream.
        if std::thread::Builder::new().spawn(tell).is_ok() {
            let _ = told.recv_timeout(PATIENCE);
        }
    }
}

/// One line, whatever the path holds.
fn line(image: &str, node: &str, error: &ReadError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    let line = format!("hpcrun: image {image} on {node}: {error}{cause}; the job gets an I/O error");
    line.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_where_what_and_why() {
        let source = std::io::Error::from_raw_os_error(libc::ESTALE);
        let error = ReadError::Io { offset: 4096, length: 512, source };
        assert_eq!(
            line("/images/a\nb.sqsh", "node7", &error),
            "hpcrun: image /images/a?b.sqsh on node7: cannot read 512 bytes at 4096: Stale file handle (os error 116); the \
             job gets an I/O error"
        );
        let error = ReadError::Corrupt { offset: 7, what: "block".to_owned() };
        assert_eq!(
            line("/i", "n", &error),
            "hpcrun: image /i on n: corrupt image: block at byte 7; the job gets an I/O error"
        );
    }

    #[test]
    fn what_is_noted_is_told_once() {
        assert!(noted().is_none());
        note(ReadError::Codec { id: 9 });
        assert!(noted().is_some());
        assert!(noted().is_none());
    }
}
