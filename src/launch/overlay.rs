//! What is laid over the image so that it can be written to: `--overlay`, `--writable-tmpfs`. Pure.

use std::path::{Path, PathBuf};

use super::binds::host_path;
use super::plan::PlanError;
use super::request::{OverlayOption, Request};
use crate::host::{Host, Kind};
use crate::mount::plan::{Op, PlannedOp, Reason, Upper};
use crate::policy::Policy;
use crate::policy::decide::{HostPath, Variables};

/// The overlay of a launch, if it wants one.
pub(super) fn plan(request: &Request, policy: &Policy, host: &Host) -> Result<Option<PlannedOp>, PlanError> {
    let writable = &request.writable;
    if !writable.overlays.is_empty() {
        policy.overlay()?;
    }
    let mut layers = Vec::new();
    let mut upper = Upper::None;
    for option in &writable.overlays {
        let directory = directory(option, policy, host)?;
        let is_taken = upper != Upper::None || writable.tmpfs.is_some();
        match (option.read_only, is_taken) {
            (true, _) if layers.contains(&directory) => {}
            (true, _) => layers.push(directory),
            (false, false) => upper = Upper::Directory(directory),
            (false, true) => {
                let why = "something else is written to already".to_owned();
                return Err(PlanError::Overlay { path: option.directory.clone(), why });
            }
        }
    }
    if let Some(asked) = writable.tmpfs {
        policy.writable_tmpfs()?;
        upper = Upper::Memory { size_bytes: policy.tmpfs_size(asked)? };
    }
    if layers.is_empty() && upper == Upper::None {
        return Ok(None);
    }
    if let Upper::Directory(path) = &upper
        && layers.contains(path)
    {
        let why = "it is laid over the image twice".to_owned();
        return Err(PlanError::Overlay { path: path.clone(), why });
    }
    let flag = if writable.tmpfs.is_some() { "--writable-tmpfs" } else { "--overlay" };
    let reason = Reason::Flag(flag.to_owned());
    Ok(Some(PlannedOp { op: Op::Overlay { layers, upper }, reason }))
}

/// The resolved directory, which must be one that the user may bind: what is in it is seen in the new root.
fn directory(option: &OverlayOption, policy: &Policy, host: &Host) -> Result<PathBuf, PlanError> {
    let path = host_path(&option.directory, host);
    let why = match host.paths.get(&path).map(|fact| &fact.kind) {
        Some(Kind::Directory) => None,
        Some(Kind::File) => Some("it is not a directory".to_owned()),
        Some(Kind::Unreachable(why)) => Some(why.clone()),
        Some(Kind::Missing) | None => Some(format!("it does not exist on {}", host.hostname.display())),
    };
    if let Some(why) = why {
        return Err(PlanError::Overlay { path, why });
    }
    let trusted = host.trusted_variables();
    let variables = Variables { trusted: &trusted, environment: &host.environment };
    let resolved = host.resolved(&path);
    let named = HostPath { typed: option.directory.as_os_str(), resolved: &resolved };
    policy.user_bind(named, &variables, &|path: &Path| host.resolved(path))?;
    Ok(resolved)
}
