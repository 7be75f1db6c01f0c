//! What launched this process: Slurm, Flux, PALS, PMIx, Open MPI, Hydra, PBS, LSF, or nobody. Read from the environment
//! alone; pure.

use std::ffi::OsString;

use super::variable;

/// Facts about the launcher.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Launcher {
    /// Which.
    pub kind: LauncherKind,
    /// What tells one step (or one `mpirun`) from another; none where the launcher has no name for it.
    pub step: Option<String>,
    /// What tells one job from another.
    pub job: Option<String>,
    /// What tells one `mpirun` from another on this node where neither `step` nor `job` does: which process started the
    /// ranks. Ranks that it spawns later may have another.
    pub starter: Option<String>,
    /// This process's number among those of its step on this node, from 0.
    pub local_rank: Option<u32>,
    /// How many processes the step has on this node.
    pub local_size: Option<u32>,
}

/// Launchers, by the environment that they give to a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LauncherKind {
    /// Nobody: a person's shell.
    #[default]
    None,
    /// `srun`, or a Slurm batch script.
    Slurm,
    /// `flux run`.
    Flux,
    /// HPE's PALS, `mpiexec` or `aprun`.
    Pals,
    /// A PMIx server: `mpirun` of Open MPI, `prun`, `jsrun`.
    Pmix,
    /// MPICH's Hydra and its kin.
    Hydra,
    /// A PBS job without a launcher of its own.
    Pbs,
    /// An LSF job without a launcher of its own.
    Lsf,
}

impl LauncherKind {
    /// The name for people.
    pub fn name(self) -> &'static str {
        match self {
            LauncherKind::None => "none",
            LauncherKind::Slurm => "Slurm",
            LauncherKind::Flux => "Flux",
            LauncherKind::Pals => "PALS",
            LauncherKind::Pmix => "PMIx",
            LauncherKind::Hydra => "Hydra",
            LauncherKind::Pbs => "PBS",
            LauncherKind::Lsf => "LSF",
        }
    }
}

impl Launcher {
    /// Reads the facts out of an environment.
    pub fn from_environment(environment: &[(OsString, OsString)]) -> Launcher {
        let text = |name: &str| {
            variable(environment, name).filter(|value| !value.is_empty()).map(|value| {
                // An id becomes part of a hashed key: a lossy form of a strange id is as good as the id.
                value.to_string_lossy().into_owned()
            })
        };
        let number = |names: &[&str]| names.iter().find_map(|name| text(name)?.trim().parse::<u32>().ok());
        let (kind, step, job) = identify(&text);
        let local_rank = number(&[
            "OMPI_COMM_WORLD_LOCAL_RANK",
            "MV2_COMM_WORLD_LOCAL_RANK",
            "MPI_LOCALRANKID",
            "JSM_NAMESPACE_LOCAL_RANK",
            "PMI_LOCAL_RANK",
            "PALS_LOCAL_RANKID",
            "FLUX_TASK_LOCAL_ID",
            "SLURM_LOCALID",
        ]);
        let local_size = number(&[
            "OMPI_COMM_WORLD_LOCAL_SIZE",
            "MV2_COMM_WORLD_LOCAL_SIZE",
            "MPI_LOCALNRANKS",
            "JSM_NAMESPACE_LOCAL_SIZE",
            "PMI_LOCAL_SIZE",
            "PALS_LOCAL_SIZE",
        ])
        .or_else(|| slurm_local_size(&text))
        // Flux tells the size of a node's share only where there is one node.
        .or_else(|| number(&["FLUX_JOB_SIZE"]).filter(|_| number(&["FLUX_JOB_NNODES"]) == Some(1)));
        // Hydra listens on a port of its own for its ranks, where it does not hand each of them a socket.
        let starter =
            text("PMI_PORT").filter(|_| kind == LauncherKind::Hydra).map(|port| format!("pmi {port}"));
        Launcher { kind, step, job, starter, local_rank, local_size }
    }

    /// Whether there may be other processes of the same step on this node.
    pub fn may_have_siblings(&self) -> bool {
        self.kind != LauncherKind::None && self.local_size != Some(1)
    }
}

/// Which launcher, its step and its job. A resource manager's ids come before those of an `mpirun` started inside of
/// its job: they are what the node's ranks have in common.
fn identify(text: &dyn Fn(&str) -> Option<String>) -> (LauncherKind, Option<String>, Option<String>) {
    if let Some(job) = text("SLURM_JOB_ID") {
        // The batch script is a step of its own, without an id.
        let step = text("SLURM_STEP_ID").unwrap_or_else(|| "batch".to_owned());
        return (LauncherKind::Slurm, Some(format!("slurm {job}.{step}")), Some(format!("slurm {job}")));
    }
    let simple = [
        (LauncherKind::Flux, "FLUX_JOB_ID", "flux"),
        (LauncherKind::Pals, "PALS_APID", "pals"),
        (LauncherKind::Pmix, "PMIX_NAMESPACE", "pmix"),
    ];
    for (kind, name, word) in simple {
        if let Some(id) = text(name) {
            let scope = format!("{word} {}", family(text, &id));
            let job = batch_job(text).map(|(_, job)| job).unwrap_or_else(|| scope.clone());
            return (kind, Some(scope), Some(job));
        }
    }
    let hydra = text("PMI_RANK").is_some() || text("PMI_FD").is_some() || text("PMI_PORT").is_some();
    if let Some((kind, job)) = batch_job(text) {
        let kind = if hydra { LauncherKind::Hydra } else { kind };
        return (kind, Some(job.clone()), Some(job));
    }
    if hydra {
        // Hydra passes no id of its own over an inherited socket.
        let scope = text("PMI_JOBID").map(|id| format!("pmi {id}"));
        return (LauncherKind::Hydra, scope.clone(), scope);
    }
    (LauncherKind::None, None, None)
}

/// What a rank has in common with those that it spawns. Open MPI names each job of an `mpirun` after that, and a number:
/// `NAME@2` by PRRTE, and in Open MPI 4 the lower half of a 32-bit id.
fn family(text: &dyn Fn(&str) -> Option<String>, id: &str) -> String {
    if let Some((name, number)) = id.rsplit_once('@')
        && number.parse::<u32>().is_ok()
    {
        return name.to_owned();
    }
    let is_orte = text("OMPI_MCA_ess_base_jobid").as_deref() == Some(id);
    match id.parse::<u32>() {
        Ok(id) if is_orte => (id >> 16).to_string(),
        _ => id.to_owned(),
    }
}

fn batch_job(text: &dyn Fn(&str) -> Option<String>) -> Option<(LauncherKind, String)> {
    if let Some(id) = text("PBS_JOBID") {
        return Some((LauncherKind::Pbs, format!("pbs {id}")));
    }
    let id = text("LSB_JOBID")?;
    let index = text("LSB_JOBINDEX").unwrap_or_default();
    Some((LauncherKind::Lsf, format!("lsf {id}.{index}")))
}

/// Processes of this step on this node, out of `SLURM_STEP_TASKS_PER_NODE` (`2(x3),1`) and the node's number.
fn slurm_local_size(text: &dyn Fn(&str) -> Option<String>) -> Option<u32> {
    let tasks = text("SLURM_STEP_TASKS_PER_NODE")?;
    let mut node: u32 = text("SLURM_NODEID")?.parse().ok()?;
    for group in tasks.split(',') {
        let (count, nodes) = match group.split_once("(x") {
            Some((count, nodes)) => (count, nodes.strip_suffix(')')?.parse::<u32>().ok()?),
            None => (group, 1),
        };
        if node < nodes {
            return count.trim().parse().ok();
        }
        node = node.checked_sub(nodes)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    type Variables = &'static [(&'static str, &'static str)];

    fn launcher(environment: &[(&str, &str)]) -> Launcher {
        let environment: Vec<(OsString, OsString)> =
            environment.iter().map(|(name, value)| (name.into(), value.into())).collect();
        Launcher::from_environment(&environment)
    }

    #[test]
    fn kinds_and_scopes() {
        use LauncherKind::*;
        let cases: &[(Variables, LauncherKind, Option<&str>, Option<&str>)] = &[
            (&[], None, Option::None, Option::None),
            (&[("PATH", "/bin")], None, Option::None, Option::None),
            (&[("SLURM_JOB_ID", "7"), ("SLURM_STEP_ID", "0")], Slurm, Some("slurm 7.0"), Some("slurm 7")),
            (&[("SLURM_JOB_ID", "7")], Slurm, Some("slurm 7.batch"), Some("slurm 7")),
            (&[("SLURM_JOB_ID", "")], None, Option::None, Option::None),
            (
                &[("SLURM_JOB_ID", "7"), ("PMIX_NAMESPACE", "x")],
                Slurm,
                Some("slurm 7.batch"),
                Some("slurm 7"),
            ),
            (&[("FLUX_JOB_ID", "f1")], Flux, Some("flux f1"), Some("flux f1")),
            (&[("PALS_APID", "a-b")], Pals, Some("pals a-b"), Some("pals a-b")),
            (
                &[("PMIX_NAMESPACE", "prterun-h-1@1")],
                Pmix,
                Some("pmix prterun-h-1"),
                Some("pmix prterun-h-1"),
            ),
            (
                &[("PMIX_NAMESPACE", "1818755074"), ("OMPI_MCA_ess_base_jobid", "1818755074")],
                Pmix,
                Some("pmix 27752"),
                Some("pmix 27752"),
            ),
            (&[("PMIX_NAMESPACE", "65537")], Pmix, Some("pmix 65537"), Some("pmix 65537")),
            (&[("PMIX_NAMESPACE", "a@b")], Pmix, Some("pmix a@b"), Some("pmix a@b")),
            (&[("PMIX_NAMESPACE", "n"), ("PBS_JOBID", "9.srv")], Pmix, Some("pmix n"), Some("pbs 9.srv")),
            (&[("PBS_JOBID", "9.srv")], Pbs, Some("pbs 9.srv"), Some("pbs 9.srv")),
            (&[("LSB_JOBID", "4"), ("LSB_JOBINDEX", "2")], Lsf, Some("lsf 4.2"), Some("lsf 4.2")),
            (&[("PBS_JOBID", "9"), ("PMI_FD", "5")], Hydra, Some("pbs 9"), Some("pbs 9")),
            (&[("PMI_FD", "5"), ("PMI_RANK", "0")], Hydra, Option::None, Option::None),
            (&[("PMI_RANK", "0"), ("PMI_JOBID", "j")], Hydra, Some("pmi j"), Some("pmi j")),
        ];
        for (environment, kind, step, job) in cases {
            let found = launcher(environment);
            assert_eq!(
                (found.kind, found.step.as_deref(), found.job.as_deref()),
                (*kind, *step, *job),
                "{environment:?}"
            );
        }
    }

    #[test]
    fn local_ranks_and_sizes() {
        let cases: &[(Variables, Option<u32>, Option<u32>)] = &[
            (&[], None, None),
            (&[("SLURM_LOCALID", "3")], Some(3), None),
            (&[("OMPI_COMM_WORLD_LOCAL_RANK", "1"), ("OMPI_COMM_WORLD_LOCAL_SIZE", "2")], Some(1), Some(2)),
            (&[("MPI_LOCALRANKID", "0"), ("MPI_LOCALNRANKS", "4")], Some(0), Some(4)),
            (&[("PMI_LOCAL_RANK", "0"), ("PMI_LOCAL_SIZE", "128")], Some(0), Some(128)),
            (&[("PALS_LOCAL_RANKID", "2"), ("PALS_LOCAL_SIZE", "8")], Some(2), Some(8)),
            (&[("JSM_NAMESPACE_LOCAL_RANK", "1"), ("JSM_NAMESPACE_LOCAL_SIZE", "6")], Some(1), Some(6)),
            (&[("MV2_COMM_WORLD_LOCAL_RANK", "1"), ("MV2_COMM_WORLD_LOCAL_SIZE", "2")], Some(1), Some(2)),
            (&[("FLUX_JOB_SIZE", "4"), ("FLUX_JOB_NNODES", "1")], None, Some(4)),
            (&[("FLUX_JOB_SIZE", "4"), ("FLUX_JOB_NNODES", "2")], None, None),
            (&[("SLURM_STEP_TASKS_PER_NODE", "2(x3),1"), ("SLURM_NODEID", "0")], None, Some(2)),
            (&[("SLURM_STEP_TASKS_PER_NODE", "2(x3),1"), ("SLURM_NODEID", "2")], None, Some(2)),
            (&[("SLURM_STEP_TASKS_PER_NODE", "2(x3),1"), ("SLURM_NODEID", "3")], None, Some(1)),
            (&[("SLURM_STEP_TASKS_PER_NODE", "2(x3),1"), ("SLURM_NODEID", "4")], None, None),
            (&[("SLURM_STEP_TASKS_PER_NODE", "16"), ("SLURM_NODEID", "0")], None, Some(16)),
            (&[("SLURM_STEP_TASKS_PER_NODE", "x(x"), ("SLURM_NODEID", "0")], None, None),
            (&[("SLURM_STEP_TASKS_PER_NODE", "2"), ("SLURM_NODEID", "-1")], None, None),
            (&[("SLURM_LOCALID", "4294967296")], None, None),
        ];
        for (environment, rank, size) in cases {
            let found = launcher(environment);
            assert_eq!((found.local_rank, found.local_size), (*rank, *size), "{environment:?}");
        }
    }

    #[test]
    fn starters() {
        let starter = |environment: &[(&str, &str)]| launcher(environment).starter;
        let port = ("PMI_PORT", "node1:33149");
        assert_eq!(starter(&[port, ("PMI_ID", "0")]).as_deref(), Some("pmi node1:33149"));
        assert_eq!(starter(&[port, ("SLURM_JOB_ID", "7")]), None);
        assert_eq!(starter(&[("PMI_FD", "5")]), None);
        assert_eq!(starter(&[]), None);
    }

    #[test]
    fn siblings() {
        assert!(!launcher(&[]).may_have_siblings());
        assert!(launcher(&[("SLURM_JOB_ID", "1")]).may_have_siblings());
        assert!(!launcher(&[("PMI_FD", "5"), ("PMI_LOCAL_SIZE", "1")]).may_have_siblings());
        assert!(launcher(&[("PMI_FD", "5"), ("PMI_LOCAL_SIZE", "2")]).may_have_siblings());
    }
}
