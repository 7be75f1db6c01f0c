//! Data on standard output; a reader that has gone is no failure.

use std::io::{ErrorKind, Write as _};

use crate::cli::report::{Failure, chain};

/// Writes data to standard output; exit status 0 also when the reader closed the pipe early.
pub(crate) fn data(bytes: &[u8]) -> Result<u8, Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::plain(format!("cannot write to standard output: {}", chain(&error))))
        }
        _ => Ok(0),
    }
}

/// `text` without control characters: names and values from an image must not steer the terminal.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A line for people, on standard error.
pub(crate) fn message(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", one_line(line));
}
