//! The environments of launchers (`tests/fixtures/launchers`): what hpcrun takes them for, whom a task shares its
//! container with, and that all of it reaches the task.

use std::fs;
use std::path::Path;

use hpcrun::launch::env_names::{STRIPPED, is_one_of};

use crate::busybox_image::image;
use crate::support::{hpcrun, stdout};

/// File, launcher, step, job, rank and size on the node.
type Case = (&'static str, &'static str, &'static str, &'static str, Option<u32>, Option<u32>);

const CASES: &[Case] = &[
    ("slurm-pmix", "Slurm", "slurm 1.0", "slurm 1", Some(1), Some(2)),
    ("slurm-pmi2", "Slurm", "slurm 2.0", "slurm 2", Some(1), Some(2)),
    ("slurm-batch", "Slurm", "slurm 3.batch", "slurm 3", Some(0), None),
    ("cray-shasta", "Slurm", "slurm 77.2", "slurm 77", Some(0), Some(4)),
    ("openmpi", "PMIx", "pmix 9099", "pmix 9099", Some(1), Some(2)),
    ("prterun", "PMIx", "pmix prterun-node1-11845", "pmix prterun-node1-11845", Some(1), Some(2)),
    // Hydra has no name for a step.
    ("hydra", "Hydra", "", "", Some(1), Some(2)),
    ("hydra-port", "Hydra", "", "", Some(1), Some(2)),
    ("flux", "Flux", "flux f2Ur9wkZy", "flux f2Ur9wkZy", Some(3), Some(4)),
    ("pals", "PALS", "pals 3f6b9b0e-44a7-4a0f-8c67-7f1f0dd1d5aa", "pbs 1234.pbs01", Some(1), Some(8)),
    ("pbs", "PBS", "pbs 4711[3].pbs01", "pbs 4711[3].pbs01", None, None),
    ("lsf", "LSF", "lsf 9001.5", "lsf 9001.5", None, None),
    ("jsrun", "PMIx", "pmix 9002.1", "lsf 9002.0", Some(2), Some(6)),
];

fn environment(name: &str) -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/launchers/{name}.env"));
    let text = fs::read_to_string(path).expect("a recorded environment");
    let split = |line: &str| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    text.lines().map(|line| split(line).expect("NAME=VALUE")).collect()
}

#[test]
fn every_environment_is_a_case() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/launchers");
    let files = fs::read_dir(directory).expect("fixtures").map(|entry| entry.expect("entry").file_name());
    let names = files.filter_map(|name| name.to_str()?.strip_suffix(".env").map(str::to_owned));
    for name in names {
        assert!(CASES.iter().any(|case| case.0 == name), "{name}");
    }
}

#[test]
fn launchers_are_told_by_their_environment() {
    for (name, kind, step, job, rank, size) in CASES {
        let environment: Vec<_> =
            environment(name).into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        let found = hpcrun::host::Launcher::from_environment(&environment);
        let found = (
            found.kind.name(),
            found.step.clone().unwrap_or_default(),
            found.job.clone().unwrap_or_default(),
            found.local_rank,
            found.local_size,
        );
        assert_eq!(found, (*kind, (*step).to_owned(), (*job).to_owned(), *rank, *size), "{name}");
    }
}

#[test]
fn a_task_shares_with_its_step_and_gets_what_its_launcher_said() {
    for (name, kind, step, ..) in CASES {
        let environment = environment(name);
        let mut explain =
            hpcrun(["exec".as_ref(), "--explain".as_ref(), image().as_os_str(), "true".as_ref()]);
        // The directories of a machine that is not this one: HOME is not the user's here.
        explain.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").envs(environment.clone());
        let plan = stdout(&mut explain);
        let shared = match *step {
            "" => format!("with this user's other ranks under {kind}"),
            step => format!("with the ranks of {step}"),
        };
        assert!(plan.contains(&shared), "{name}: {plan}");

        let mut job = hpcrun(["exec".as_ref(), image().as_os_str(), "env".as_ref()]);
        job.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").envs(environment.clone());
        let inside = stdout(&mut job);
        let of_host = ["HOME", "PATH", "PWD", "TMPDIR", "HOSTNAME"];
        for (variable, value) in environment.iter().filter(|(name, _)| !of_host.contains(&name.as_str())) {
            let line = format!("{variable}={value}");
            // What leads to the launcher's own installation would load its library into the image's program.
            let is_kept = !is_one_of(variable.as_ref(), STRIPPED);
            assert_eq!(inside.lines().any(|found| found == line), is_kept, "{name}: {line} in\n{inside}");
        }
    }
}
