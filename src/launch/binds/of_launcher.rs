//! Directories that a launcher shares with its ranks, found by the variables that name them. Pure.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::host::Host;
use crate::policy::path::normalise;

/// Variables by which launchers name directories that they share with their ranks. `*` stands for what differs from
/// release to release.
const LAUNCHER_DIRECTORIES: [&str; 9] = [
    "FLUX_JOB_TMPDIR",
    "OMPI_FILE_LOCATION",
    "OMPI_MCA_orte_*session_dir",
    "PALS_SPOOL_DIR",
    "PMIX_DSTORE_*_BASE_PATH",
    "PMIX_NSDIR",
    "PMIX_*TMPDIR",
    "PRTE_MCA_*session_dir",
    "SLURM_PMIX_TMPDIR",
];

/// Variables that name a file or a socket in such a directory, perhaps with `local://` before it.
const LAUNCHER_FILES: [&str; 2] = ["FLUX_URI", "PALS_APINFO"];

/// The launcher's directories, each with the variable that names it; each once.
pub(super) fn directories(host: &Host) -> impl Iterator<Item = (String, PathBuf)> {
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    for (name, value) in &host.environment {
        let Some(name) = name.to_str() else { continue };
        let path = if LAUNCHER_DIRECTORIES.iter().any(|pattern| is_named(name, pattern)) {
            PathBuf::from(value)
        } else if LAUNCHER_FILES.contains(&name) {
            let value = value.as_bytes();
            let file = value.strip_prefix(b"local://").unwrap_or(value);
            Path::new(OsStr::from_bytes(file)).parent().map(Path::to_owned).unwrap_or_default()
        } else {
            continue;
        };
        if !path.is_absolute() {
            continue;
        }
        let path = normalise(Path::new("/"), &path);
        if !found.iter().any(|(_, known)| *known == path) {
            found.push((name.to_owned(), path));
        }
    }
    found.into_iter()
}

/// Whether a name fits a pattern with at most one `*`.
fn is_named(name: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        Some((start, end)) => {
            name.len() >= start.len().saturating_add(end.len())
                && name.starts_with(start)
                && name.ends_with(end)
        }
        None => name == pattern,
    }
}
