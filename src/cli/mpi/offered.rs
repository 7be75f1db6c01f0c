//! What a module of the site has to offer on this node.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::variable;
use crate::host::{Host, libraries};
use crate::image::facts::{Family, Role};
use crate::launch::inject::{HostMount, Injection, LIBRARY_DIRECTORY};
use crate::launch::mpi::replace::{HostLibrary, Offered};
use crate::launch::plan::ImageFacts;
use crate::launch::request::Joining;
use crate::mount::plan::{Access, Reason};
use crate::policy::decide::Variables;
use crate::policy::pattern::Pattern;
use crate::policy::rules::Module;
use crate::policy::{Policy, Refusal};

/// Libraries that load others: by their beginning, the directory of those beside them, and the variable that names it
/// to them if they do not look beside themselves.
const PLUGINS: [(&str, &str, Option<&str>); 2] =
    [("libucs.so", "ucx", None), ("libfabric.so", "libfabric", Some("FI_PROVIDER_PATH"))];

/// Who says so: the module's place in the policy.
pub(super) fn reason(module: &Module, policy: &Policy) -> Reason {
    let rule = policy.rule(module.at, "[modules]");
    Reason::Policy { file: rule.file, line: rule.line }
}

/// The libraries of a module with what they need.
pub(crate) fn offered(
    module: &Module,
    policy: &Policy,
    host: &Host,
    image: &ImageFacts,
) -> Result<Offered, String> {
    let reason = reason(module, policy);
    let patterns: Vec<&str> = module.libraries.iter().map(|pattern| pattern.value.as_str()).collect();
    let fits =
        |pattern: &str, name: &[u8]| Pattern::parse(pattern).is_ok_and(|pattern| pattern.matches(name));
    let found = libraries::find(&patterns, &fits);
    if let Some(pattern) = found.unmatched.first() {
        return Err(format!(
            "the module {} names {pattern}, and this node has no such library ({reason})",
            module.name
        ));
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let missing = found.closure.missing.iter().map(|one| (text(&one.name), text(&one.needed_by))).collect();
    let mut offered = Offered {
        module: module.name.clone(),
        abi: module.abi.as_ref().map_or_else(Default::default, |abi| abi.value),
        libraries: Vec::new(),
        missing,
        prefixes: same_place(module, policy, host, image).map_err(|error| error.to_string())?,
    };
    for loaded in &found.closure.loaded {
        let name = text(&loaded.name);
        // A library without a soname is needed by its file's name.
        let name = name.rsplit('/').next().unwrap_or(&name).to_owned();
        let symbols = found.symbols.get(&loaded.path);
        let defined =
            symbols.map(|symbols| symbols.defined().map(<[u8]>::to_vec).collect()).unwrap_or_default();
        let is_mpi = Role::of_path(&loaded.path) == Some(Role::Mpi)
            || Role::of_path(name.as_bytes()) == Some(Role::Mpi);
        let family =
            is_mpi.then(|| Family::of(name.as_bytes(), symbols.iter().flat_map(|symbols| symbols.defined())));
        let path = PathBuf::from(OsStr::from_bytes(&loaded.path));
        let file = path.file_name().and_then(OsStr::to_str).unwrap_or(&name);
        let version = file.split_once(".so.").or_else(|| name.split_once(".so."));
        offered.libraries.push(HostLibrary {
            file_version: version.map(|(_, version)| version.to_owned()).unwrap_or_default(),
            is_named: loaded.needed_by.is_none(),
            family,
            requires: loaded.object.requires.clone(),
            versions: loaded.object.defines.clone(),
            defined,
            name,
            path,
        });
    }
    Ok(offered)
}

/// Directories that the module binds where they are.
fn same_place(
    module: &Module,
    policy: &Policy,
    host: &Host,
    image: &ImageFacts,
) -> Result<Vec<PathBuf>, Refusal> {
    let trusted = host.trusted_variables();
    let variables = Variables { trusted: &trusted, environment: &host.environment };
    let name = image.traits.name(&image.path);
    let (binds, _) = policy.module_binds(module, &variables, Some(&name))?;
    let same = binds.into_iter().filter(|bind| bind.source == bind.destination);
    Ok(same.map(|bind| bind.source).collect())
}

/// The directories of what injected libraries load.
pub(super) fn add_plugins(injection: &mut Injection, reason: &Reason) {
    for (start, directory, by_variable) in PLUGINS {
        let library =
            injection.libraries.iter().find(|library| library.name.as_bytes().starts_with(start.as_bytes()));
        let Some(source) =
            library.and_then(|library| library.source.parent()).map(|parent| parent.join(directory))
        else {
            continue;
        };
        if !source.is_dir() {
            continue;
        }
        let destination = Path::new(LIBRARY_DIRECTORY).join(directory);
        if let Some(name) = by_variable {
            injection.variables.push(variable(name, destination.clone().into(), Joining::Replace, reason));
        }
        let (access, reason) = (Access::ReadOnly, reason.clone());
        injection.mounts.push(HostMount { source, destination, access, is_directory: true, reason });
    }
}
