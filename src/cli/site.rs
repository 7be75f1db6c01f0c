//! The site's policy: its files found, read and parsed, its paths expanded.

use std::path::{Path, PathBuf};

use crate::cli::report::{Failure, chain};
use crate::host::probe;
use crate::policy::decide::Variables;
use crate::policy::template::Template;
use crate::policy::{POLICY_PATH, Policy, PolicyError, PolicyFile};

/// The variable that names another policy than the site's.
const VARIABLE: &str = "HPCRUN_POLICY";

/// The policy that holds for this process.
///
/// It is the site's. `HPCRUN_POLICY` names another where there is none (for trying one out: it must be root's, too), or
/// where the site's own says `[policy] allow_user_file`. Without any the defaults apply.
pub(crate) fn policy() -> Result<Policy, Failure> {
    let parse = |files| Policy::of_files(files).map_err(|error| Failure::new(&error));
    let site = trusted(Path::new(POLICY_PATH))?;
    let named = std::env::var_os(VARIABLE).map(PathBuf::from);
    if site.is_empty() {
        return match named {
            None => Ok(Policy::builtin()),
            Some(named) => parse(existing(&named, trusted(&named)?)?),
        };
    }
    let site = parse(site)?;
    match named {
        None => Ok(site),
        Some(named) if site.allows_user_file() => parse(existing(&named, draft(&named)?)?),
        Some(named) => {
            log::warn!("{VARIABLE}={} is passed over: this site's policy does not allow it", named.display());
            Ok(site)
        }
    }
}

/// The files that hold for this process, or those of `draft`, whoever wrote it, parsed.
pub(crate) fn parsed(path: Option<&Path>) -> Result<Result<Policy, PolicyError>, Failure> {
    let files = match path {
        Some(path) => existing(path, draft(path)?)?,
        None => trusted(Path::new(POLICY_PATH))?,
    };
    Ok(Policy::of_files(files))
}

/// A path as the site wrote it, its variables replaced as in a launch.
pub(crate) fn expand(template: &Template) -> Result<PathBuf, String> {
    let environment = std::env::vars_os().collect();
    let trusted = probe::trusted_variables(&environment).map_err(|error| chain(&error))?;
    let variables = Variables { trusted: &trusted, environment: &environment };
    let expanded = template.expand(&variables).map_err(|unset| unset.to_string())?;
    let path = PathBuf::from(expanded.text);
    if path.is_absolute() { Ok(path) } else { Err(format!("{} is not an absolute path", path.display())) }
}

fn trusted(path: &Path) -> Result<Vec<PolicyFile>, Failure> {
    probe::read_policy_files(path).map(files).map_err(|error| Failure::new(&error))
}

fn draft(path: &Path) -> Result<Vec<PolicyFile>, Failure> {
    probe::read_policy_draft(path).map(files).map_err(|error| Failure::new(&error))
}

fn files(texts: Vec<probe::PolicyText>) -> Vec<PolicyFile> {
    texts.into_iter().map(|(path, text)| PolicyFile { path, text }).collect()
}

/// A file that was named must be there.
fn existing(path: &Path, files: Vec<PolicyFile>) -> Result<Vec<PolicyFile>, Failure> {
    if files.is_empty() {
        return Err(Failure::plain(format!("{VARIABLE} names {}, which does not exist", path.display())));
    }
    Ok(files)
}
