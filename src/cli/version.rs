//! `hpcrun --version -v`: what this program was built with, what it asks of the kernel and where it looks for things.

use std::ffi::OsString;
use std::fmt::Write as _;

use crate::cli::doctor::keeps;
use crate::cli::site;
use crate::policy::POLICY_PATH;

/// Version and target: `0.1.0 (x86_64-linux-gnu, static)`.
pub(crate) fn short() -> String {
    format!("{} ({})", env!("CARGO_PKG_VERSION"), target())
}

fn target() -> String {
    let library = if cfg!(target_env = "musl") { "musl" } else { "gnu" };
    let linked = if cfg!(target_feature = "crt-static") { "static" } else { "dynamic" };
    format!("{}-linux-{library}, {linked}", std::env::consts::ARCH)
}

/// Whether `--version` came with `-v`, of which the parser tells nothing: it stops at the first.
pub(crate) fn is_long_wanted(mut words: impl Iterator<Item = OsString>) -> bool {
    words.any(|word| word == "--verbose" || ["-v", "-vv", "-vV", "-Vv"].iter().any(|short| word == *short))
}

/// The facts, one a line.
pub(crate) fn long() -> String {
    let mut text = format!("hpcrun {}\n", env!("CARGO_PKG_VERSION"));
    for (name, value) in [
        ("target", target()),
        ("build", if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned()),
        ("images read", "squashfs 4.0 with gzip, xz, lzma, lzo, lz4, zstd; SIF".to_owned()),
        ("images written", "squashfs 4.0 with gzip, xz, lz4, zstd, or uncompressed".to_owned()),
        ("layers read", "tar, plain or with gzip or zstd".to_owned()),
        (
            "kernel",
            "Linux 4.18; user namespaces, /dev/fuse; with 6.9 jobs survive a killed server".to_owned(),
        ),
        ("site policy", POLICY_PATH.to_owned()),
    ] {
        let _ = writeln!(text, "{name:<16}{value}");
    }
    // A broken policy names no directories; 'hpcrun doctor' says what is wrong with it.
    for (name, path) in site::policy().map(|policy| keeps::directories(&policy)).unwrap_or_default() {
        let _ = writeln!(text, "{name:<16}{}", path.display());
    }
    text
}
