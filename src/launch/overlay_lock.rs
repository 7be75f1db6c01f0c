//! One launch at a time writes to an overlay directory: two would destroy each other's files.

use std::os::fd::RawFd;

use crate::launch::enact::EnactError;
use crate::mount::plan::{MountPlan, Op, Upper};
use crate::sys::lock::Locked;
use crate::sys::path;

/// Locks the directory that the plan writes to, if it does. The descriptor closes on exec: whoever shall keep the lock
/// for the job must keep that.
pub(super) fn take(plan: &MountPlan) -> Result<Option<RawFd>, EnactError> {
    let directory = plan.ops.iter().find_map(|planned| match &planned.op {
        Op::Overlay { upper: Upper::Directory(path), .. } => Some(path),
        _ => None,
    });
    let Some(path) = directory else { return Ok(None) };
    let opened = path::open_directory_itself(path);
    let opened = opened.map_err(|source| EnactError::OverlayLock { path: path.clone(), source })?;
    match Locked::try_exclusive(opened) {
        Some(locked) => Ok(Some(locked.keep())),
        None => Err(EnactError::OverlayInUse { path: path.clone() }),
    }
}
