//! Launchers and MPI libraries in their short form: this machine's own and two that Python wheels bring. `make test-hpc` has
//! the long one.

use std::path::PathBuf;
use std::process::Command;

use crate::support::{binary, is_root, run, text};

#[test]
fn ranks_find_each_other_and_reach_each_others_memory() {
    assert!(is_root(), "the jobs get PID namespaces of their own: run this test as root");
    let top = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut matrix = Command::new("python3");
    matrix.arg(top.join("tests/hpc/matrix")).arg(top.join(".demo/hpc")).arg("--short");
    let output = run(matrix.arg("--hpcrun").arg(binary()));
    let (table, wrong) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}\n{table}\n{wrong}", output.status);
    for cell in [
        "| mpirun of Open MPI 4 (this machine's) | Open MPI 4.1 (this machine's) | 2 ranks |",
        "| mpiexec of MPICH 4 (this machine's) | MPICH 4 (this machine's) | 2 ranks |",
        "| mpirun of Open MPI 5 (wheel) | Open MPI 5.0.11 (wheel) | 2 ranks |",
    ] {
        assert!(table.contains(cell), "no {cell} in\n{table}");
    }
}
