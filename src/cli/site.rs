//! The site's policy file: found, read, parsed.

use std::path::Path;

use crate::cli::report::Failure;
use crate::host::probe;
use crate::policy::{POLICY_PATH, Policy};

/// The site's policy; without a file, the one named by `HPCRUN_POLICY` (for trying one out on a node that has none),
/// else the built-in defaults.
pub(crate) fn policy() -> Result<Policy, Failure> {
    if let Some(policy) = read(Path::new(POLICY_PATH))? {
        return Ok(policy);
    }
    match std::env::var_os("HPCRUN_POLICY") {
        None => Ok(Policy::builtin()),
        Some(tried) => read(Path::new(&tried))?.ok_or_else(|| {
            Failure::plain(format!("HPCRUN_POLICY names {}, which does not exist", tried.display()))
        }),
    }
}

fn read(path: &Path) -> Result<Option<Policy>, Failure> {
    let text = probe::read_policy(path).map_err(|error| Failure::new(&error))?;
    text.map(|text| Policy::parse(path, &text).map_err(|error| Failure::new(&error))).transpose()
}
