//! What the launcher of a rank offers for the ranks to find each other, read off the environment. Pure.
//!
//! PMI-1 and PMI-2 come over an inherited socket (`PMI_FD`) or a port, PMIx over the address of a server; a library that
//! finds none that it speaks takes itself for a job of one.

use std::ffi::OsString;

use crate::host::variable;

/// Who started the ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Starter {
    /// `srun`, with the name of its MPI plugin, if it says.
    Srun(Option<String>),
    /// `mpirun` of Open MPI up to 4.
    OpenMpi4,
    /// `mpirun` of Open MPI from 5 on, or `prterun`.
    Prrte,
    /// `mpiexec` of MPICH, Intel MPI or MVAPICH.
    Hydra,
    /// `flux run`.
    Flux,
    /// PALS: `mpiexec` or `aprun` of a Cray.
    Pals,
    /// `jsrun`.
    Jsrun,
}

impl Starter {
    /// The name for people.
    pub fn name(&self) -> String {
        match self {
            Starter::Srun(None) => "srun".to_owned(),
            Starter::Srun(Some(plugin)) => format!("srun --mpi={plugin}"),
            Starter::OpenMpi4 => "mpirun of Open MPI 4".to_owned(),
            Starter::Prrte => "mpirun of Open MPI 5".to_owned(),
            Starter::Hydra => "mpiexec of MPICH".to_owned(),
            Starter::Flux => "flux run".to_owned(),
            Starter::Pals => "mpiexec of PALS".to_owned(),
            Starter::Jsrun => "jsrun".to_owned(),
        }
    }
}

/// What a rank finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Who started it.
    pub starter: Starter,
    /// How many ranks there are, if it is said.
    pub size: Option<u32>,
    /// Whether there is a server of PMIx.
    pub pmix: bool,
    /// Whether there is one of PMI-1 or PMI-2, on an inherited socket or a port.
    pub pmi: bool,
}

impl Offer {
    /// Reads it out of the environment; none where nobody has started ranks.
    pub fn from_environment(environment: &[(OsString, OsString)]) -> Option<Offer> {
        let text = |name: &str| {
            let value = variable(environment, name).filter(|value| !value.is_empty());
            value.map(|value| value.to_string_lossy().into_owned())
        };
        let has = |name: &str| text(name).is_some();
        let number = |names: &[&str]| names.iter().find_map(|name| text(name)?.trim().parse::<u32>().ok());
        let pmix = has("PMIX_NAMESPACE") || has("PMIX_SERVER_URI2") || has("PMIX_SERVER_URI");
        let pmi = has("PMI_FD") || has("PMI_PORT");
        // Who started the ranks is what the innermost launcher left: an mpirun inside of a job of srun comes first.
        let starter = if has("HYDI_CONTROL_FD") || has("MPI_LOCALNRANKS") {
            Starter::Hydra
        } else if has("PRTE_LAUNCHED") || text("PMIX_NAMESPACE").is_some_and(|name| name.starts_with("prte"))
        {
            Starter::Prrte
        } else if has("OMPI_COMM_WORLD_SIZE") && (has("OMPI_MCA_ess") || has("OMPI_MCA_ess_base_jobid")) {
            Starter::OpenMpi4
        } else if has("JSM_NAMESPACE_SIZE") {
            Starter::Jsrun
        } else if has("FLUX_TASK_RANK") {
            Starter::Flux
        } else if has("SLURM_STEP_ID") && has("SLURM_PROCID") {
            Starter::Srun(text("SLURM_MPI_TYPE"))
        } else if has("PALS_APID") {
            Starter::Pals
        } else if pmi {
            Starter::Hydra
        } else {
            return None;
        };
        let size = match starter {
            Starter::Srun(_) => number(&["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"]),
            Starter::OpenMpi4 | Starter::Prrte => number(&["OMPI_COMM_WORLD_SIZE"]),
            Starter::Jsrun => number(&["JSM_NAMESPACE_SIZE"]),
            Starter::Flux => number(&["FLUX_JOB_SIZE", "PMI_SIZE"]),
            Starter::Hydra | Starter::Pals => number(&["PMI_SIZE", "PALS_SIZE"]),
        };
        Some(Offer { starter, size, pmix, pmi })
    }

    /// Whether there are, or may be, several ranks.
    pub fn is_parallel(&self) -> bool {
        self.size.is_some_and(|size| size > 1)
    }
}
