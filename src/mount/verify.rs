//! What the mounts of the new root forbid, read back from the kernel: asked for is not enough (CVE-2025-65105).

use std::path::Path;

use crate::mount::enact::MountError;
use crate::mount::plan::{Access, MountPlan, Op, PlannedOp, Upper};
use crate::sys::mount;

const NAMES: [(u64, &str); 3] =
    [(libc::MOUNT_ATTR_RDONLY, "ro"), (libc::MOUNT_ATTR_NOSUID, "nosuid"), (libc::MOUNT_ATTR_NODEV, "nodev")];

/// Checks the mounts of `plan`, whose root is now `/`, but for the optional ones that were left out.
pub(super) fn mounts(plan: &MountPlan, left_out: &[&PlannedOp]) -> Result<(), MountError> {
    let done: Vec<&PlannedOp> = plan.ops.iter().filter(|planned| !left_out.contains(planned)).collect();
    for (index, planned) in done.iter().enumerate() {
        let is_covered = |path: &Path| {
            done.iter().skip(index + 1).any(|later| later.op.destination().is_some_and(|other| other == path))
        };
        let wanted = match &planned.op {
            Op::Root(_) => root_attributes(plan),
            Op::DataImage { .. } => {
                libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV
            }
            Op::Tmpfs { .. } | Op::Processes { .. } => libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
            Op::Bind { access: Access::ReadOnly, .. } => libc::MOUNT_ATTR_RDONLY,
            Op::Bind { .. } | Op::Overlay { .. } | Op::PivotRoot => continue,
        };
        let path = planned.op.destination().map_or(Path::new("/"), |path| path);
        if !is_covered(path) {
            check(path, wanted)?;
        }
    }
    Ok(())
}

/// Read-only, unless it was asked to be otherwise.
fn root_attributes(plan: &MountPlan) -> u64 {
    let is_writable = plan.ops.iter().any(|planned| match &planned.op {
        Op::Overlay { upper, .. } => *upper != Upper::None,
        _ => false,
    });
    let restricted = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    if is_writable { restricted } else { restricted | libc::MOUNT_ATTR_RDONLY }
}

fn check(path: &Path, wanted: u64) -> Result<(), MountError> {
    let has =
        mount::attributes(path).map_err(|source| MountError::Verify { path: path.to_owned(), source })?;
    let missing: Vec<&str> =
        NAMES.iter().filter(|(bit, _)| wanted & bit & !has != 0).map(|(_, name)| *name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(MountError::Unprotected { path: path.to_owned(), missing: missing.join(", ") })
}
