//! What a conversion takes of the machine. It holds a few chunks and blocks and the names, never a layer or a file: the
//! bound at a size that tests can afford (`benches/memory` measures the same at 10 GiB and a million files). And it
//! starts threads for the processors that are its own, not for those of the node.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use hpcrun::image::digest::{Algorithm, Digest, Hasher};

use crate::layer_building::{Member, block};
use crate::support;

/// A tar that is never in memory as a whole, only its gzip members are.
struct Layer {
    blob: Vec<u8>,
    diff_id: Hasher,
}

impl Layer {
    fn new() -> Layer {
        Layer { blob: Vec::new(), diff_id: Hasher::new(Algorithm::Sha256) }
    }

    /// Appends `bytes` `times` times.
    fn push(&mut self, bytes: &[u8], times: usize) {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("in memory");
        let member = encoder.finish().expect("in memory");
        for _ in 0..times {
            self.diff_id.update(bytes);
            self.blob.extend_from_slice(&member);
        }
    }
}

/// Writes an OCI layout of one layer.
fn write_layout(directory: &Path, layer: Layer) {
    let blobs = directory.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).expect("scratch");
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).expect("scratch");
        format!("\"digest\":\"{digest}\",\"size\":{}", bytes.len())
    };
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        layer.diff_id.finish()
    );
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json",{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip",{}}}]}}"#,
        put(config.as_bytes()),
        put(&layer.blob)
    );
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json",{}}}]}}"#,
        put(manifest.as_bytes())
    );
    std::fs::write(directory.join("index.json"), index).expect("scratch");
    std::fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("scratch");
}

/// Peak memory of a conversion, MiB.
#[track_caller]
fn peak_mib(layer: Layer) -> u64 {
    let scratch = support::scratch();
    let layout = scratch.path().join("layout");
    write_layout(&layout, layer);
    let measured = scratch.path().join("peak");
    let mut command = support::as_user("/usr/bin/time");
    command.args(["-f", "%M", "-o"]).arg(&measured).arg(support::binary());
    command.args(["-q", "convert", "--jobs", "2", "--platform", "linux/amd64"]);
    command.arg(format!("oci:{}", layout.display())).arg(scratch.path().join("image.sqsh"));
    support::stdout(&mut command);
    let peak = std::fs::read_to_string(measured).expect("measured");
    peak.trim().parse::<u64>().expect("a number of KiB") / 1024
}

#[test]
fn a_large_file_passes_through() {
    let megabyte: Vec<u8> = (0..1u32 << 18).flat_map(|at| (at / 5).to_le_bytes()).collect();
    let mut layer = Layer::new();
    layer.push(&block(&Member::file("large", ""), 700 << 20), 1);
    layer.push(&megabyte, 700);
    layer.push(&[0; 1024], 1);
    let peak = peak_mib(layer);
    assert!(peak <= 100, "{peak} MiB for a file of 700 MiB");
}

#[test]
fn a_hundred_thousand_names_cost_what_they_must() {
    let mut layer = Layer::new();
    for directory in 0..100 {
        let files =
            (0..1000).map(|n| Member::file(format!("d{directory}/some-module-{n}.py"), format!("{n}")));
        layer.push(&files.flat_map(|file| file.bytes()).collect::<Vec<u8>>(), 1);
    }
    layer.push(&[0; 1024], 1);
    let peak = peak_mib(layer);
    assert!(peak <= 110, "{peak} MiB for 100,000 names");
}

/// Threads that compress when `hpcrun convert` runs behind `wrapper`.
#[track_caller]
fn compressing_threads(wrapper: &[&str]) -> usize {
    let scratch = support::scratch();
    let layout = scratch.path().join("layout");
    let mut layer = Layer::new();
    layer.push(&[Member::file("file", "content").bytes(), vec![0; 1024]].concat(), 1);
    write_layout(&layout, layer);
    let calls = scratch.path().join("calls");
    let mut traced = support::as_user("strace");
    traced.args(["-f", "-qq", "-e", "trace=prctl", "-o"]).arg(&calls).arg(support::binary());
    traced.args(["-q", "convert", "--platform", "linux/amd64"]);
    traced.arg(format!("oci:{}", layout.display())).arg(scratch.path().join("image.sqsh"));
    let mut command = match wrapper {
        [] => traced,
        [program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments).arg(traced.get_program()).args(traced.get_args());
            command
        }
    };
    support::stdout(command.current_dir("/tmp"));
    let calls = std::fs::read_to_string(calls).expect("trace");
    calls.lines().filter(|call| call.contains("PR_SET_NAME, \"squashfs-pack\"")).count()
}

#[test]
fn threads_follow_the_affinity() {
    let all = std::thread::available_parallelism().expect("affinity").get();
    assert_eq!(compressing_threads(&[]), all);
    assert_eq!(compressing_threads(&["taskset", "-c", "0"]), 1);
}

/// A cgroup of one processor's time for a while.
struct Quota(PathBuf);

impl Quota {
    fn new() -> Quota {
        let name = format!("hpcrun-test-{}", std::process::id());
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
        let point = |line: &str| line.split(' ').nth(1).map(PathBuf::from);
        let is_v1 = |line: &&str| line.split(' ').nth(3).is_some_and(|o| o.split(',').any(|o| o == "cpu"));
        let v1 = mounts.lines().filter(|line| line.starts_with("cgroup ")).find(is_v1).and_then(point);
        let v2 = mounts.lines().find(|line| line.starts_with("cgroup2 ")).and_then(point);
        let (parent, settings) = match (v1, v2) {
            (Some(v1), _) => (v1, [("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "100000")]),
            (None, Some(v2)) => (v2, [("cgroup.subtree_control", "+cpu"), ("cpu.max", "100000 100000")]),
            (None, None) => panic!("no cgroups are mounted"),
        };
        let quota = Quota(parent.join(name));
        std::fs::create_dir(&quota.0).expect("cgroup");
        for (file, value) in settings {
            let of_parent = file == "cgroup.subtree_control";
            let directory = if of_parent { &parent } else { &quota.0 };
            std::fs::write(directory.join(file), value).expect("setting of a cgroup");
        }
        quota
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        std::fs::remove_dir(&self.0).expect("an empty cgroup");
    }
}

#[test]
fn threads_follow_the_quota_of_the_cgroup() {
    if !support::is_root() {
        // Only root makes cgroups; the suite as an ordinary user has the affinity above.
        return;
    }
    let quota = Quota::new();
    let enter = format!("echo 0 > {}/cgroup.procs; exec \"$@\"", quota.0.display());
    assert_eq!(compressing_threads(&["sh", "-ec", &enter, "sh"]), 1);
}
