//! What the modules of the site bring into a launch. Pure.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::binds::{Bind, Party, Shown};
use super::plan::{ImageFacts, PlanError};
use super::request::{MpiWish, Request};
use crate::elf::closure::DEFAULT_DIRECTORIES;
use crate::host::{Host, Kind};
use crate::mount::plan::{Access, Need, Reason};
use crate::policy::decide::{ChosenModule, ModuleWish};
use crate::policy::{Policy, Refusal, Rule};

/// The modules of a launch.
pub fn chosen<'p>(
    request: &Request,
    image: &ImageFacts,
    policy: &'p Policy,
    host: &Host,
) -> Result<Vec<ChosenModule<'p>>, PlanError> {
    let requested = requested(request, policy)?;
    Ok(policy.modules(&wish(&requested, image, host))?)
}

/// What decides whether a module fits.
pub fn wish<'a>(requested: &'a [OsString], image: &'a ImageFacts, host: &'a Host) -> ModuleWish<'a> {
    ModuleWish {
        requested,
        image: image.traits.name(&image.path),
        sonames: &image.traits.sonames,
        hostname: &host.hostname,
    }
}

/// The modules that are asked for: `--module`, and the one that `--mpi=host` stands for.
fn requested(request: &Request, policy: &Policy) -> Result<Vec<OsString>, PlanError> {
    let mut requested = request.modules.clone();
    if request.mpi == Some(MpiWish::Host) {
        let rules = &policy.rules().mpi;
        if let Some(allowed) = rules.allow_host.as_ref().filter(|allowed| !allowed.value) {
            let (what, rule) = ("--mpi=host".to_owned(), policy.rule(allowed.at, "[mpi] allow_host"));
            return Err(Refusal { what, rule, allowed: "the image's own MPI".to_owned() }.into());
        }
        let module = rules.host_module.as_ref().ok_or(PlanError::NoHostMpi)?;
        requested.push(OsString::from(&module.value));
    }
    Ok(requested)
}

/// A line for each module, for `--explain`.
pub fn decisions(request: &Request, modules: &[ChosenModule<'_>], policy: &Policy) -> Vec<(String, Reason)> {
    let line = |chosen: &ChosenModule<'_>| {
        let by_mpi_host = request.mpi == Some(MpiWish::Host)
            && policy.rules().mpi.host_module.as_ref().is_some_and(|name| name.value == chosen.module.name);
        let is_named = request.modules.iter().any(|name| name.as_os_str() == chosen.module.name.as_str());
        let why = match chosen.is_requested {
            true if by_mpi_host && !is_named => "--mpi=host",
            true => "--module",
            false => "matches",
        };
        (format!("module {} ({why})", chosen.module.name), reason(&chosen.rule))
    };
    modules.iter().map(line).collect()
}

/// The devices of modules, where the job does not have all of the host's.
pub fn devices(request: &Request, modules: &[ChosenModule<'_>], policy: &Policy, host: &Host) -> Vec<Bind> {
    if request.contain.is_none() {
        return Vec::new();
    }
    let mut binds: Vec<Bind> = Vec::new();
    for glob in modules.iter().flat_map(|chosen| &chosen.module.devices) {
        let rule = policy.rule(glob.at, "[modules] devices");
        for path in host.globs.get(&glob.value).into_iter().flatten() {
            binds.extend(device(path, &rule, host).filter(|bind| !binds.contains(bind)));
        }
    }
    binds
}

fn device(path: &Path, rule: &Rule, host: &Host) -> Option<Bind> {
    let fact = host.paths.get(path)?;
    let is_directory = fact.kind == Kind::Directory;
    // A link below /dev leads where somebody else chose.
    let is_there = is_directory || fact.kind == Kind::File;
    (is_there && fact.resolved.starts_with("/dev")).then(|| Bind {
        shown: Shown::Host { path: fact.resolved.clone(), need: Need::Optional, is_directory },
        destination: path.to_owned(),
        access: Access::ReadWrite,
        party: Party::Default,
        reason: reason(rule),
    })
}

/// Every pattern of host paths that a plan with these modules wants to find in [`Host::globs`].
pub fn globs_to_probe(request: &Request, modules: &[ChosenModule<'_>]) -> Vec<String> {
    if request.contain.is_none() {
        return Vec::new();
    }
    let globs = modules.iter().flat_map(|chosen| &chosen.module.devices);
    globs.map(|glob| glob.value.clone()).collect()
}

fn reason(rule: &Rule) -> Reason {
    Reason::Policy { file: rule.file.clone(), line: rule.line }
}

/// Names of an option with commas.
pub fn names(typed: &[OsString]) -> Vec<OsString> {
    typed
        .iter()
        .flat_map(|list| super::mount_option::split_list(list))
        .filter(|name| !name.is_empty())
        .collect()
}

/// Where a library of an image is looked for by name, when its cache does not know it.
pub fn library_candidates(soname: &str) -> impl Iterator<Item = PathBuf> + '_ {
    DEFAULT_DIRECTORIES.iter().map(move |directory| Path::new(directory).join(soname))
}
