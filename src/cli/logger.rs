//! Messages of the library on standard error: warnings always, more with `-v`, none with `-q`.

use std::io::Write as _;

use log::{Level, LevelFilter, Log, Metadata, Record};

struct StandardError;

impl Log for StandardError {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("hpcrun")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let prefix = if record.level() == Level::Warn { "warning: " } else { "" };
            let _ = writeln!(std::io::stderr().lock(), "hpcrun: {prefix}{}", record.args());
        }
    }

    fn flush(&self) {}
}

/// Sets what is shown: `quiet` errors alone, else warnings, and with `verbose` 1 or 2 also information and details.
pub(crate) fn start(verbose: u8, quiet: bool) {
    let level = match (quiet, verbose) {
        (true, _) => LevelFilter::Error,
        (false, 0) => LevelFilter::Warn,
        (false, 1) => LevelFilter::Info,
        (false, _) => LevelFilter::Debug,
    };
    if log::set_logger(&StandardError).is_ok() {
        log::set_max_level(level);
    }
}
