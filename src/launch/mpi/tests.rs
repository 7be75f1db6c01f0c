//! Launchers by libraries, with the environments that launchers give.

use std::ffi::OsString;

use super::*;
use crate::elf::Object;
use crate::elf::closure::Loaded;
use crate::image::facts::Family;

fn environment(text: &str) -> Vec<(OsString, OsString)> {
    let pairs = text.split_whitespace().map(|pair| pair.split_once('=').expect("NAME=VALUE"));
    pairs.map(|(name, value)| (name.into(), value.into())).collect()
}

fn library(soname: &str, family: Family, file_version: &str, needs: &[&str]) -> Library {
    Library {
        path: format!("/usr/lib/{}.so.{file_version}", soname.split(".so").next().unwrap()),
        soname: soname.to_owned(),
        role: Role::Mpi,
        family: Some(family),
        file_version: file_version.to_owned(),
        needs: needs.iter().map(|name| (*name).to_owned()).collect(),
        defines: Vec::new(),
    }
}

const SRUN: &str = "SLURM_JOB_ID=7 SLURM_STEP_ID=0 SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=4 SLURM_NTASKS=4";
const OMPI4: &str = "OMPI_COMM_WORLD_SIZE=2 OMPI_MCA_ess=^singleton OMPI_MCA_ess_base_jobid=1 PMIX_NAMESPACE=1 PMIX_RANK=0 \
                     PMIX_SERVER_URI2=1.0;tcp4://127.0.0.1:1";
const OMPI5: &str =
    "OMPI_COMM_WORLD_SIZE=2 PRTE_LAUNCHED=1 PMIX_NAMESPACE=prterun-h-1@1 PMIX_RANK=0 PMIX_SERVER_URI41=x";
const HYDRA: &str = "PMI_FD=9 PMI_RANK=0 PMI_SIZE=2 HYDI_CONTROL_FD=8 MPI_LOCALNRANKS=2 MPI_LOCALRANKID=0";
const HYDRA_PORT: &str = "PMI_PORT=h:1 PMI_ID=0 PMI_SIZE=2";
const FLUX: &str = "FLUX_JOB_ID=f1 FLUX_TASK_RANK=0 FLUX_JOB_SIZE=2 PMI_FD=9 PMI_RANK=0 PMI_SIZE=2";
const FLUX_PMIX: &str =
    "FLUX_JOB_ID=f1 FLUX_TASK_RANK=0 FLUX_JOB_SIZE=2 PMIX_NAMESPACE=f1 PMIX_SERVER_URI2=x";
const PALS: &str = "PALS_APID=a PALS_RANKID=0 PMI_SIZE=2 PMI_RANK=0 PMI_CONTROL_PORT=1";
const JSRUN: &str = "JSM_NAMESPACE_SIZE=2 PMIX_NAMESPACE=1 PMIX_SERVER_URI2=x LSB_JOBID=1";

fn srun(plugin: &str, more: &str) -> String {
    format!("{SRUN} SLURM_MPI_TYPE={plugin} {more}")
}

#[test]
fn launchers_by_libraries() {
    let ompi4 = library("libmpi.so.40", Family::OpenMpi, "40.30.4", &["libopen-rte.so.40"]);
    let ompi5 = library("libmpi.so.40", Family::OpenMpi, "40.40.7", &["libpmix.so.2"]);
    let mpich = library("libmpich.so.12", Family::Mpich, "12.1.12", &["libucp.so.0"]);
    let pmix_mpich = library("libmpi.so.12", Family::Mpich, "12.2.1", &["libpmix.so.2"]);
    let intel = library("libmpi.so.12", Family::Intel, "12.0.0", &[]);
    let cray = library("libmpi_cray.so.12", Family::Cray, "12.0.0", &[]);
    let other = library("libmpi.so.0", Family::Unknown, "0", &[]);
    let pmix = srun("pmix", "PMIX_NAMESPACE=slurm.pmix.7.0 PMIX_RANK=1 PMIX_SERVER_URI2=x");
    let pmix_v4 = srun("pmix_v4", "PMIX_NAMESPACE=slurm.pmix.7.0 PMIX_SERVER_URI=x");
    let pmi2 = srun("pmi2", "PMI_FD=11 PMI_JOBID=7.0 PMI_RANK=1 PMI_SIZE=4");
    let none = srun("none", "");
    let cray_shasta = srun("cray_shasta", "PALS_APID=7.0 PMI_CONTROL_PORT=2 PMI_SIZE=4 PMI_RANK=1");
    let old_none = SRUN.to_owned();
    let old_pmi2 = format!("{SRUN} PMI_FD=11 PMI_RANK=1 PMI_SIZE=4");
    let in_batch = format!("SLURM_JOB_ID=7 SLURM_NTASKS=4 SLURM_PROCID=0 {OMPI4}");
    let hydra_in_srun = format!("{SRUN} SLURM_MPI_TYPE=none {HYDRA}");
    // Environment, library, what the job should be started with instead; nothing where it is fine.
    let rows: &[(&str, &Library, Option<&str>)] = &[
        (OMPI4, &ompi5, None),
        (OMPI4, &ompi4, None),
        (OMPI4, &mpich, Some("mpiexec of MPICH")),
        (OMPI4, &intel, Some("mpiexec of MPICH")),
        (OMPI4, &pmix_mpich, None),
        (OMPI5, &ompi5, None),
        (OMPI5, &ompi4, Some("mpirun of Open MPI 4")),
        (OMPI5, &mpich, Some("mpiexec of MPICH")),
        (HYDRA, &mpich, None),
        (HYDRA, &intel, None),
        (HYDRA_PORT, &mpich, None),
        (HYDRA, &ompi4, Some("mpirun of Open MPI")),
        (HYDRA, &ompi5, Some("mpirun of Open MPI")),
        (&pmix, &ompi5, None),
        (&pmix_v4, &ompi4, None),
        (&pmix, &mpich, Some("srun --mpi=pmi2")),
        (&pmix, &intel, Some("srun --mpi=pmi2")),
        (&pmix, &pmix_mpich, None),
        (&pmi2, &mpich, None),
        (&pmi2, &intel, None),
        (&pmi2, &ompi4, Some("srun --mpi=pmix")),
        (&pmi2, &ompi5, Some("srun --mpi=pmix")),
        (&old_pmi2, &mpich, None),
        (&none, &mpich, Some("srun --mpi=pmi2")),
        (&none, &ompi5, Some("srun --mpi=pmix")),
        (&none, &ompi4, Some("srun --mpi=pmix")),
        (&old_none, &mpich, Some("srun --mpi=pmi2")),
        (&cray_shasta, &mpich, Some("srun --mpi=pmi2")),
        (&cray_shasta, &ompi5, Some("srun --mpi=pmix")),
        (&cray_shasta, &cray, None),
        (FLUX, &mpich, None),
        (FLUX, &ompi5, Some("flux run -o pmi=pmix")),
        (FLUX, &ompi4, None),
        (FLUX_PMIX, &ompi5, None),
        (PALS, &cray, None),
        (PALS, &mpich, Some("--mpi=host")),
        (PALS, &ompi5, Some("mpiexec --pmi=pmix")),
        (JSRUN, &ompi5, None),
        (JSRUN, &mpich, Some("mpiexec of MPICH")),
        (&in_batch, &ompi5, None),
        (&hydra_in_srun, &mpich, None),
        (&none, &other, None),
    ];
    for (text, library, instead) in rows {
        let offer = Offer::from_environment(&environment(text)).expect(text);
        let found = verdict(&offer, library);
        let name = library.describe();
        assert_eq!(found.is_some(), instead.is_some(), "{text} {name}: {found:?}");
        if let (Some(found), Some(instead)) = (found, instead) {
            assert!(found.instead.contains(instead), "{text} {name}: {found}");
            assert!(found.what.contains(&name) && found.what.contains(&offer.starter.name()), "{found}");
        }
    }
}

#[test]
fn one_rank_needs_nobody() {
    let mpich = library("libmpi.so.12", Family::Mpich, "12", &[]);
    for text in [
        "SLURM_JOB_ID=7 SLURM_STEP_ID=0 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1",
        "SLURM_JOB_ID=7 SLURM_STEP_ID=0 SLURM_PROCID=0",
        "OMPI_COMM_WORLD_SIZE=1 OMPI_MCA_ess=x PMIX_NAMESPACE=1",
    ] {
        let offer = Offer::from_environment(&environment(text)).unwrap();
        assert!(!offer.is_parallel());
        assert_eq!(verdict(&offer, &mpich), None, "{text}");
    }
    // The batch script itself, a login shell, a job of a resource manager without a launcher.
    for text in
        ["", "SLURM_JOB_ID=7 SLURM_NTASKS=4 SLURM_PROCID=0", "PBS_JOBID=1", "LSB_JOBID=1", "PMI_RANK=0"]
    {
        assert_eq!(Offer::from_environment(&environment(text)), None, "{text}");
    }
}

#[test]
fn a_finding_is_a_sentence_with_a_command() {
    let offer = Offer::from_environment(&environment(&srun("pmix", "PMIX_NAMESPACE=x"))).unwrap();
    let mpich = library("libmpich.so.12", Family::Mpich, "12.1.12", &[]);
    assert_eq!(
        verdict(&offer, &mpich).unwrap().to_string(),
        "the 4 ranks will not find each other: srun --mpi=pmix offers PMIx only, and the image has MPICH \
         (libmpich.so.12.1.12): start it with 'srun --mpi=pmi2'"
    );
}

fn loaded(name: &str, needed: &[&str]) -> Loaded {
    let head = [b"\x7fELF\x02\x01\x01".as_slice(), &[0; 57]].concat();
    let mut object = Object::read(&|_, _| Some(head.clone())).unwrap();
    object.needed = needed.iter().map(|name| name.as_bytes().to_vec()).collect();
    Loaded { name: name.into(), path: format!("/usr/lib/{name}").into_bytes(), object, needed_by: None }
}

#[test]
fn programs_are_known_by_what_they_are_linked_to() {
    let mpich = library("libmpi.so.12", Family::Mpich, "12.1", &[]);
    let facts = Facts::new(None, None, vec![mpich.clone()]);
    let closure = |names: &[&str]| Closure {
        loaded: names.iter().map(|name| loaded(name, &["libc.so.6"])).collect(),
        missing: Vec::new(),
    };
    let linked = closure(&["solver", "libpetsc.so", "libmpi.so.12"]);
    assert_eq!(usage(Some(&linked), b"solver", &facts), Usage::Linked(&mpich));
    // Even an interpreter that is linked to it.
    assert_eq!(usage(Some(&linked), b"python3", &facts), Usage::Linked(&mpich));
    let plain = closure(&["x"]);
    for (name, expected) in [
        ("solver", Usage::Foreign),
        ("bash", Usage::Unknown),
        ("python", Usage::Unknown),
        ("python3.11", Usage::Unknown),
        ("perl5.36.0", Usage::Unknown),
        ("pythonic", Usage::Foreign),
        ("env", Usage::Unknown),
        ("", Usage::Foreign),
    ] {
        assert_eq!(usage(Some(&plain), name.as_bytes(), &facts), expected, "{name}");
    }
    assert_eq!(usage(None, b"script", &facts), Usage::Unknown);
    let alone = Closure { loaded: vec![loaded("solver", &[])], missing: Vec::new() };
    assert_eq!(usage(Some(&alone), b"solver", &facts), Usage::Unknown);
}

#[test]
fn an_image_with_two_families_has_no_only_one() {
    let mpich = library("libmpi.so.12", Family::Mpich, "12.1", &[]);
    let ompi = library("libmpi.so.40", Family::OpenMpi, "40.30.4", &[]);
    assert_eq!(only_mpi(&Facts::new(None, None, vec![mpich.clone(), mpich.clone()])), Some(&mpich));
    assert_eq!(only_mpi(&Facts::new(None, None, vec![mpich, ompi])), None);
    assert_eq!(only_mpi(&Facts::default()), None);
}
