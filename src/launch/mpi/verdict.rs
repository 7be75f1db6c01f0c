//! Whether the ranks of a job will find each other: launcher by library. Each row was measured, or is what their
//! documentation says. The worst outcome is a silent one, ranks that each compute alone and end with status 0. Pure.

use std::fmt;

use super::offer::{Offer, Starter};
use crate::image::facts::{Family, Library};

/// What is wrong with a launcher and a library together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub what: String,
    /// What to do instead.
    pub instead: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.instead)
    }
}

/// What the library makes of what it is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// The ranks find each other, or nothing is known against it.
    Fine,
    /// Each takes itself for the only one.
    Alone(Remedy),
    /// They end with an error, or each takes itself for the only one.
    Fails(Remedy),
}

/// How the job should be started instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remedy {
    SrunPmix,
    SrunPmi2,
    OwnMpirun,
    OwnMpirun4,
    OwnMpiexec,
    FluxPmix,
    PalsPmix,
    HostMpi,
}

impl Remedy {
    fn text(self) -> &'static str {
        match self {
            Remedy::SrunPmix => "start it with 'srun --mpi=pmix'",
            Remedy::SrunPmi2 => "start it with 'srun --mpi=pmi2'",
            Remedy::OwnMpirun => "start it with mpirun of Open MPI, or with 'srun --mpi=pmix'",
            Remedy::OwnMpirun4 => "start it with mpirun of Open MPI 4, or with 'srun --mpi=pmix'",
            Remedy::OwnMpiexec => "start it with mpiexec of MPICH, or with 'srun --mpi=pmi2'",
            Remedy::FluxPmix => "start it with 'flux run -o pmi=pmix'",
            Remedy::PalsPmix => "start it with 'mpiexec --pmi=pmix'",
            Remedy::HostMpi => "give it this machine's MPI with --mpi=host",
        }
    }
}

/// What is to be said of a launcher and the MPI library that the program uses; nothing where they fit, or where there
/// is but one rank.
pub fn verdict(offer: &Offer, library: &Library) -> Option<Finding> {
    let size = offer.size.filter(|size| *size > 1)?;
    let family = library.family.unwrap_or(Family::Unknown);
    let outcome = match family {
        Family::OpenMpi => open_mpi(offer, library),
        Family::Mpich | Family::Intel | Family::Mvapich | Family::Cray => mpich(offer, library, family),
        Family::Unknown => Outcome::Fine,
    };
    let (fate, remedy) = match outcome {
        Outcome::Fine => return None,
        Outcome::Alone(remedy) => (format!("each of the {size} ranks will run alone"), remedy),
        Outcome::Fails(remedy) => (format!("the {size} ranks will not find each other"), remedy),
    };
    let lack = match (offer.pmix, offer.pmi) {
        (false, false) => "no PMI",
        (true, false) => "PMIx only",
        (false, true) => "PMI-1 and PMI-2 only",
        (true, true) => "PMIx and PMI",
    };
    let what =
        format!("{fate}: {} offers {lack}, and the image has {}", offer.starter.name(), library.describe());
    Some(Finding { what, instead: remedy.text().to_owned() })
}

/// Open MPI speaks PMIx. Up to 4 it can be built with PMI-1 and PMI-2, which distributions do not do.
fn open_mpi(offer: &Offer, library: &Library) -> Outcome {
    let major = library.open_mpi_release().and_then(|release| release.split('.').next()?.parse::<u32>().ok());
    match &offer.starter {
        Starter::Srun(_) | Starter::Pals if offer.pmix => Outcome::Fine,
        // Open MPI 4 says so itself, and ends.
        Starter::Srun(_) if major.is_some_and(|major| major < 5) => Outcome::Fails(Remedy::SrunPmix),
        Starter::Srun(_) => Outcome::Alone(Remedy::SrunPmix),
        Starter::Prrte if major.is_some_and(|major| major < 5) => Outcome::Alone(Remedy::OwnMpirun4),
        Starter::Prrte | Starter::OpenMpi4 | Starter::Jsrun => Outcome::Fine,
        Starter::Hydra => Outcome::Alone(Remedy::OwnMpirun),
        // Up to 4 it has a plugin for Flux.
        Starter::Flux if offer.pmix || major.is_some_and(|major| major < 5) => Outcome::Fine,
        Starter::Flux => Outcome::Alone(Remedy::FluxPmix),
        Starter::Pals => Outcome::Alone(Remedy::PalsPmix),
    }
}

/// MPICH and its kin speak PMI-1 and PMI-2, and PMIx where they were linked to it.
fn mpich(offer: &Offer, library: &Library, family: Family) -> Outcome {
    let speaks_pmix = library.needs_library("libpmix.so");
    if offer.pmi || (offer.pmix && speaks_pmix) {
        return Outcome::Fine;
    }
    match &offer.starter {
        // Cray MPICH speaks with PALS, and with the plugin of Slurm that takes its place.
        Starter::Pals => {
            if family == Family::Cray {
                Outcome::Fine
            } else {
                Outcome::Alone(Remedy::HostMpi)
            }
        }
        Starter::Srun(Some(plugin)) if plugin == "cray_shasta" && family == Family::Cray => Outcome::Fine,
        // MPICH 5 ends with an error.
        Starter::Srun(_) if offer.pmix => Outcome::Fails(Remedy::SrunPmi2),
        Starter::Srun(_) => Outcome::Alone(Remedy::SrunPmi2),
        Starter::OpenMpi4 | Starter::Prrte | Starter::Jsrun => Outcome::Fails(Remedy::OwnMpiexec),
        Starter::Hydra | Starter::Flux => Outcome::Fine,
    }
}
