//! Whether this process is a rank of a parallel step, of how many, and what all ranks of it on all nodes have in common.
//! Read from the environment alone; pure.
//!
//! [`super::launcher`] tells what the ranks of one node share; here a name must be the same on every node, and must not be
//! that of a batch script, whose commands come one after the other.

use std::ffi::OsString;
use std::time::Duration;

use super::variable;

/// A parallel step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParallelStep {
    /// What all its ranks have in common and no other step has; none where the launcher has no name for it.
    pub key: Option<String>,
    /// How long the name is its own; none means for ever.
    pub valid: Option<Duration>,
    /// How many ranks there are, if the launcher says so.
    pub ranks: Option<u32>,
}

/// Slurm's numbers for what is no step of `srun`: batch scripts, prologs, interactive shells.
const SLURM_SPECIAL: u64 = 0xffff_fff0;

/// A process id of some node is part of such a name, and comes again one day.
const SHORT_LIVED: Duration = Duration::from_secs(60 * 60);

/// How many ranks there are, as different launchers say it.
const SIZES: [&str; 6] = [
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "PALS_SIZE",
    "FLUX_JOB_SIZE",
    "SLURM_STEP_NUM_TASKS",
    "MPI_WORLD_SIZE",
];

/// What a rank has and a batch script has not.
const RANKS: [&str; 6] =
    ["PMIX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMI_FD", "PALS_RANKID", "FLUX_TASK_RANK"];

impl ParallelStep {
    /// The step of several ranks that a process with this environment belongs to. None for a single task: a person's
    /// shell, a batch script, `srun -n 1`.
    pub fn from_environment(environment: &[(OsString, OsString)]) -> Option<ParallelStep> {
        let text = |name: &str| {
            let value = variable(environment, name).filter(|value| !value.is_empty())?;
            // A strange id becomes part of a hashed key, where a lossy form is as good.
            Some(value.to_string_lossy().into_owned())
        };
        let slurm_step =
            text("SLURM_STEP_ID").filter(|step| step.parse::<u64>().is_ok_and(|step| step < SLURM_SPECIAL));
        let slurm_job = text("SLURM_JOB_ID");
        let is_rank =
            RANKS.iter().any(|name| text(name).is_some()) || (slurm_job.is_some() && slurm_step.is_some());
        let ranks = SIZES.iter().find_map(|name| text(name)?.trim().parse::<u32>().ok());
        if !is_rank || ranks == Some(1) {
            return None;
        }
        let job = job(&text);
        let (key, valid) = match (text("PMIX_NAMESPACE"), slurm_job.zip(slurm_step), job) {
            // Of an mpirun inside of a job, whose ranks on the first node have the batch script's step.
            (Some(namespace), _, Some(job)) => (Some(format!("{job} pmix {namespace}")), None),
            (Some(namespace), _, None) => (Some(format!("pmix {namespace}")), Some(SHORT_LIVED)),
            (None, Some((_, step)), Some(job)) => (Some(format!("{job} step {step}")), None),
            // Hydra: its ids are those of one node's proxy, so that the whole job is one step.
            (None, _, Some(job)) => (Some(job), None),
            (None, _, None) => (text("PMI_JOBID").map(|id| format!("pmi {id}")), Some(SHORT_LIVED)),
        };
        Some(ParallelStep { key, valid, ranks })
    }
}

/// The job, by a name that it shares with no other.
fn job(text: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    // Ids of jobs start anew when a cluster is set up again; the start tells those jobs apart.
    let slurm = |id| format!("slurm {id} {}", text("SLURM_JOB_START_TIME").unwrap_or_default());
    let lsf = |id| format!("lsf {id} {}", text("LSB_JOBINDEX").unwrap_or_default());
    text("SLURM_JOB_ID")
        .map(slurm)
        .or_else(|| text("FLUX_JOB_ID").map(|id| format!("flux {id}")))
        .or_else(|| text("PALS_APID").map(|id| format!("pals {id}")))
        .or_else(|| text("PBS_JOBID").map(|id| format!("pbs {id}")))
        .or_else(|| text("LSB_JOBID").map(lsf))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(environment: &[(&str, &str)]) -> Option<ParallelStep> {
        let environment: Vec<(OsString, OsString)> =
            environment.iter().map(|(name, value)| (name.into(), value.into())).collect();
        ParallelStep::from_environment(&environment)
    }

    #[test]
    fn single_tasks_are_no_parallel_step() {
        for environment in [
            &[][..],
            &[("SLURM_JOB_ID", "7"), ("SLURM_PROCID", "0"), ("SLURM_LOCALID", "0")],
            &[("SLURM_JOB_ID", "7"), ("SLURM_STEP_ID", "4294967291"), ("SLURM_NTASKS", "64")],
            &[("SLURM_JOB_ID", "7"), ("SLURM_STEP_ID", "0"), ("SLURM_STEP_NUM_TASKS", "1")],
            &[("SLURM_STEP_ID", "0")],
            &[("PMI_RANK", "0"), ("PMI_SIZE", "1")],
            &[("PBS_JOBID", "9")],
            &[("PMIX_NAMESPACE", "left over by a shell inside of a job")],
        ] {
            assert_eq!(step(environment), None, "{environment:?}");
        }
    }

    #[test]
    fn ranks_of_one_step_have_one_key() {
        let slurm = [("SLURM_JOB_ID", "7"), ("SLURM_STEP_ID", "2"), ("SLURM_STEP_NUM_TASKS", "64")];
        let pmix = ("PMIX_NAMESPACE", "prterun-h-1@1");
        for (environment, key, valid, ranks) in [
            (&slurm[..], Some("slurm 7  step 2"), None, Some(64)),
            (&[slurm[0], slurm[1], ("SLURM_JOB_START_TIME", "99")], Some("slurm 7 99 step 2"), None, None),
            // The same mpirun: on the node of the batch script, and where srun started its daemon.
            (&[slurm[0], pmix, ("PMIX_RANK", "0")], Some("slurm 7  pmix prterun-h-1@1"), None, None),
            (
                &[slurm[0], ("SLURM_STEP_ID", "0"), pmix, ("PMIX_RANK", "1")],
                Some("slurm 7  pmix prterun-h-1@1"),
                None,
                None,
            ),
            (
                &[pmix, ("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "4")],
                Some("pmix prterun-h-1@1"),
                Some(SHORT_LIVED),
                Some(4),
            ),
            (&[("PMI_RANK", "0"), ("PMI_SIZE", "2")], None, Some(SHORT_LIVED), Some(2)),
            (&[("PMI_FD", "5"), ("PMI_JOBID", "j")], Some("pmi j"), Some(SHORT_LIVED), None),
            (&[("PMI_FD", "5"), ("PBS_JOBID", "9")], Some("pbs 9"), None, None),
            (
                &[("FLUX_JOB_ID", "f"), ("FLUX_TASK_RANK", "3"), ("FLUX_JOB_SIZE", "8")],
                Some("flux f"),
                None,
                Some(8),
            ),
            (&[("PALS_APID", "a"), ("PALS_RANKID", "3")], Some("pals a"), None, None),
            (&[("LSB_JOBID", "4"), ("LSB_JOBINDEX", "2"), ("PMIX_RANK", "1")], Some("lsf 4 2"), None, None),
        ] {
            let found = step(environment).expect("a parallel step");
            assert_eq!(
                (found.key.as_deref(), found.valid, found.ranks),
                (key, valid, ranks),
                "{environment:?}"
            );
        }
    }
}
