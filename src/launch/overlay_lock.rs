//! One launch at a time writes to an overlay directory: two would destroy each other's files.

use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use crate::launch::enact::EnactError;
use crate::mount::plan::{MountPlan, Op, Upper};
use crate::sys::lock::Locked;
use crate::sys::path;

/// How long to wait for the lock: the image server of a job that has just ended holds it for a moment yet.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(10);

/// Locks the directory that the plan writes to, if it does. The descriptor closes on exec: whoever shall keep the lock
/// for the job must keep that.
pub(super) fn take(plan: &MountPlan) -> Result<Option<RawFd>, EnactError> {
    let directory = plan.ops.iter().find_map(|planned| match &planned.op {
        Op::Overlay { upper: Upper::Directory(path), .. } => Some(path),
        _ => None,
    });
    let Some(path) = directory else { return Ok(None) };
    let deadline = Instant::now() + PATIENCE;
    loop {
        let locked = path::open_directory_itself(path).and_then(Locked::try_exclusive);
        match locked.map_err(|source| EnactError::OverlayLock { path: path.clone(), source })? {
            Some(locked) => return Ok(Some(locked.keep())),
            None if Instant::now() >= deadline => {
                return Err(EnactError::OverlayInUse { path: path.clone() });
            }
            None => std::thread::sleep(PAUSE),
        }
    }
}
