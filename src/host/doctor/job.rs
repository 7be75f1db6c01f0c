//! The job that the caller is in, and the interconnect.

use super::{Check, DoctorFacts, listed, refused};
use crate::host::launcher::LauncherKind;

pub(super) fn launcher(facts: &DoctorFacts) -> Check {
    let job = &facts.job;
    let step = job.step.as_deref().unwrap_or_else(|| job.launcher.name());
    match job.launcher {
        LauncherKind::None => Check::not_applicable("launcher", "not inside a job"),
        // What a fleet's 'srun hpcrun doctor' looks like; for an MPI program it is the silent failure.
        LauncherKind::Slurm if job.tasks.is_some_and(|tasks| tasks > 1) && !job.has_pmi => Check::ok(
            "launcher",
            format!(
                "{step}, without PMI: an MPI program would run as so many single ranks; use srun --mpi=pmix"
            ),
        ),
        _ => Check::ok("launcher", step),
    }
}

pub(super) fn fabric(facts: &DoctorFacts) -> Check {
    let name = "interconnect";
    if facts.fabric_devices.is_empty() {
        return Check::not_applicable(name, "no device");
    }
    let refused = refused(&facts.fabric_devices);
    if refused.is_empty() {
        let devices: Vec<String> = facts.fabric_devices.iter().map(|(device, _)| device.clone()).collect();
        return Check::ok(name, listed(&devices));
    }
    Check::warn(
        name,
        format!("{} is not open to you: MPI falls back to TCP without a word", listed(&refused)),
        &[
            "inside a job: does the step have the device? As root: chmod 0666 the device, and a udev rule for it",
        ],
    )
}
