//! The benches still run: every row of ours and of the peers that this machine has, once, on a small image.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;

use crate::busybox_image::{busybox, docker_archive};
use crate::layer_building::{Member, tar};
use crate::support::{binary, is_root, scratch, stdout, text};

/// Where bwrap, which makes nothing in a read-only root, mounts what programs need.
const MOUNT_POINTS: &[&str] = &["dev/", "etc/", "mnt/", "proc/", "sys/", "tmp/"];

/// Runs `benches/NAME --smoke` on a small image; its report.
#[track_caller]
fn smoke(name: &str) -> String {
    smoke_with(name, &[])
}

#[track_caller]
fn smoke_with(name: &str, options: &[&str]) -> String {
    assert!(is_root(), "benches mount their peers: run this test as root");
    let dir = scratch();
    let oci = dir.path().join("oci");
    let archived = dir.path().join("image.tar");
    let mut members = busybox();
    members.extend(MOUNT_POINTS.iter().map(|name| Member::directory(*name)));
    let archive = docker_archive(&json!({"Env": ["PATH=/bin"]}), &[tar(&members)]);
    fs::write(&archived, archive).expect("docker-archive");
    stdout(
        Command::new("skopeo").args(["--insecure-policy", "copy", "--quiet"]).args([
            format!("docker-archive:{}", archived.display()),
            format!("oci:{}:latest", oci.display()),
        ]),
    );
    let top = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let bench = top.join("benches").join(name);
    let mut command = Command::new("python3");
    command
        .arg(bench)
        .arg(dir.path())
        .args(["--smoke", "--peers"])
        .arg(dir.path())
        .args(options)
        .env("HPCRUN", binary());
    command.env("TMPDIR", dir.path());
    let output = command.output().expect("python3");
    let (report, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{name}: {}\n{report}\n{errors}", output.status);
    assert!(!report.contains("failed:") && !report.contains("not run"), "{report}");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    assert!(!mounts.contains(&*dir.path().to_string_lossy()), "{name} left a mount behind:\n{mounts}");
    report
}

/// The rows of a report that have this text, at least one.
#[track_caller]
fn assert_rows(report: &str, names: &[&str]) {
    for name in names {
        assert!(
            report.lines().any(|line| line.starts_with('|') && line.contains(name)),
            "no {name} in\n{report}"
        );
    }
}

#[test]
fn bench_convert_runs() {
    let report = smoke("convert");
    assert_rows(
        &report,
        &[
            "| OCI layout | hpcrun |",
            "| OCI layout | umoci + mksquashfs |",
            "| docker-archive | skopeo + umoci + mksquashfs |",
            "| registry | hpcrun |",
            "| tar2sqfs < flat.tar |",
        ],
    );
}

#[test]
fn bench_read_runs() {
    let report = smoke("read");
    assert_rows(
        &report,
        &["| kernel squashfs |", "| squashfuse_ll |", "| ext4 directory |", "random reads", "run a program"],
    );
}

#[test]
fn bench_read_runs_on_other_formats() {
    let report = smoke_with("read", &["--formats"]);
    assert_rows(
        &report,
        &["gzip-1M: find", "xz-128K: 500 random", "| kernel squashfs |", "| squashfuse_ll |"],
    );
}

#[test]
fn bench_launch_runs() {
    let report = smoke("launch");
    assert_rows(
        &report,
        &["| warm, awake | hpcrun |", "| cold | bwrap", "ranks of one step", "| FUSE requests |"],
    );
}

#[test]
fn bench_ranks_runs() {
    let report = smoke("ranks");
    assert_rows(
        &report,
        &["| 4 at once | hpcrun |", "| one more rank | bwrap", "each further rank of 4: PSS"],
    );
}

#[test]
fn bench_startup_runs() {
    let report = smoke("startup");
    assert_rows(
        &report,
        &["| start, 1 ms | hpcrun, with a profile |", "| start, no latency | hpcrun, without |"],
    );
}
