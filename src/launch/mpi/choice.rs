//! How strict a launch is about MPI. Pure.

use crate::launch::request::{MpiWish, Request};
use crate::policy::Policy;
use crate::policy::rules::mpi::MpiCheck;

/// What becomes of ranks whose MPI does not fit the launcher: the user's word, else the site's.
pub fn check(request: &Request, policy: &Policy) -> MpiCheck {
    match request.mpi {
        Some(MpiWish::Check) => MpiCheck::Check,
        Some(MpiWish::Strict) => MpiCheck::Strict,
        Some(MpiWish::Off) => MpiCheck::Off,
        Some(MpiWish::Host) | None => {
            policy.rules().mpi.check.as_ref().map_or(MpiCheck::default(), |check| check.value)
        }
    }
}
