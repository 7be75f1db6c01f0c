//! `hpcrun doctor` on this node, on a spoilt one, and of images that do not fit.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::Value;

use crate::bad_input::in_private_mounts;
use crate::busybox_image::image;
use crate::support::{binary, hpcrun, run, scratch, stdout, text};

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", text(&output.stdout)))
}

/// The check of this name in a JSON report.
#[track_caller]
fn check<'r>(report: &'r Value, name: &str) -> &'r Value {
    let checks = report["checks"].as_array().expect("checks");
    checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name} in {report:#}"))
}

/// `hpcrun doctor --json` as an ordinary user, among mounts that `script` changes first.
fn spoilt(script: &str) -> (Option<i32>, Value) {
    let words = [binary().as_os_str(), OsStr::new("doctor"), OsStr::new("--json")];
    let output = in_private_mounts(script, &words);
    (output.status.code(), json(&output))
}

#[test]
fn approves_of_this_node_and_leaves_nothing() {
    let dir = scratch();
    let shown = stdout(hpcrun(["doctor"]).current_dir(dir.path()));
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[0].starts_with(concat!("hpcrun ", env!("CARGO_PKG_VERSION"), " (")), "{shown}");
    assert!(lines[lines.len() - 2].starts_with("ok    launch"), "{shown}");
    assert!(lines[lines.len() - 1].starts_with("images can run here"), "{shown}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn its_json_has_one_form_for_all_nodes() {
    let report: Value = serde_json::from_str(&stdout(&mut hpcrun(["doctor", "--json"]))).expect("JSON");
    assert_eq!((&report["schema"], &report["usable"]), (&Value::from(1), &Value::from(true)));
    for key in ["hpcrun", "node", "kernel"] {
        assert!(report[key].as_str().is_some_and(|text| !text.is_empty()), "{key} in {report:#}");
    }
    for check in report["checks"].as_array().expect("checks") {
        let status = check["status"].as_str().expect("a status");
        assert!(["ok", "warn", "no", "n/a"].contains(&status), "{check}");
        assert!(check["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{check}");
        let remedy = check["remedy"].as_array().expect("a remedy");
        assert_eq!(remedy.is_empty(), !["warn", "no"].contains(&status), "{check}");
    }
}

#[test]
fn every_check_is_documented_and_every_documented_one_is_there() {
    let page = include_str!("../../docs/doctor.md");
    let page = page.split("## The checks").nth(1).expect("a list of the checks");
    let documented: Vec<&str> =
        page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let dir = scratch();
    let policy = dir.path().join("policy.toml");
    let text = "[images]\nrequire_signature = true\n\
                [store]\nsite_dir = \"/srv/hpcrun-none\"\nnode_cache = \"/srv/hpcrun-none\"\n";
    fs::write(&policy, text).unwrap();
    let script = format!(
        "mount -t tmpfs -o mode=755 none /srv; mkdir -p /srv/site; cp {} /srv/site/policy.toml; \
         export HPCRUN_POLICY=/srv/site/policy.toml; export HOME=/home/hpcrun-test",
        policy.display()
    );
    let image = image();
    let words: Vec<&OsStr> = [binary().as_os_str()]
        .into_iter()
        .chain(["doctor", "--json", "--image"].map(OsStr::new))
        .chain([image.as_os_str()])
        .collect();
    let report = json(&in_private_mounts(&script, &words));
    let found: Vec<&str> =
        report["checks"].as_array().unwrap().iter().filter_map(|check| check["name"].as_str()).collect();
    assert_eq!(found, documented, "docs/doctor.md lists the checks in their order");
}

#[test]
fn spoilt_nodes() {
    let null = "mount -t tmpfs -o mode=755 none /dev; mknod -m 666 /dev/null c 1 3";
    for (script, name, status, words) in [
        (null, "/dev/fuse", "no", "there is no /dev/fuse"),
        (null, "/dev/shm", "warn", "mount -t tmpfs"),
        ("mount -t tmpfs -o size=1m,mode=1777 none /dev/shm", "/dev/shm", "warn", "--shm-size"),
        ("mount -t tmpfs -o noexec,mode=1777,size=500m none /dev/shm", "/dev/shm", "ok", "noexec"),
        ("mount --bind /dev/null /dev/fuse", "/dev/fuse", "no", "is not the device of FUSE"),
        ("mount -t tmpfs -o mode=700 none /home", "home directory", "warn", "--no-home"),
        ("mount -t tmpfs -o mode=700 none /home/hpcrun-test", "home directory", "warn", "Permission denied"),
        ("mount -t tmpfs -o mode=755 none /home", "home directory", "warn", "does not exist"),
        ("mount --bind /dev/null /proc/filesystems", "fuse module", "n/a", "cannot read"),
        ("ulimit -n 64", "open files", "warn", "ulimit -n 4096"),
        ("ulimit -v 2000000", "address space", "warn", "ulimit -v unlimited"),
        ("export TMPDIR=/proc", "temporary files", "warn", "TMPDIR"),
        ("export SSL_CERT_FILE=/dev/null", "certificates", "ok", "/dev/null"),
        ("export SLURM_JOB_ID=7 SLURM_STEP_ID=0 SLURM_NTASKS=4", "launcher", "ok", "--mpi=pmix"),
        (
            "mount -t tmpfs -o noexec,mode=1777,size=500m none /mnt; export TMPDIR=/mnt",
            "temporary files",
            "ok",
            "noexec",
        ),
        ("mount -t proc -o hidepid=2 none /proc", "hidepid", "ok", "hidepid="),
        (
            "mount -t tmpfs -o size=4k,mode=777 none /home/hpcrun-test; head -c 4096 /dev/zero >/home/hpcrun-test/x",
            "home file system",
            "warn",
            ", 0 MiB free",
        ),
        (
            "mount -t tmpfs -o ro none /home/hpcrun-test",
            "user's images",
            "warn",
            "is to be made, but /home/hpcrun-test is not writable for you",
        ),
        (
            "mount -t tmpfs -o mode=755 none /srv; echo '[bnds]' >/srv/p; export HPCRUN_POLICY=/srv/p",
            "site policy",
            "no",
            "/srv/p:1:2: ",
        ),
        ("export HPCRUN_POLICY=/nonexistent", "site policy", "no", "which does not exist"),
    ] {
        let (code, report) = spoilt(script);
        let check = check(&report, name);
        assert_eq!(check["status"], status, "{script}: {check:#}");
        assert!(check.to_string().contains(words), "{script}: {words:?} in {check:#}");
        assert_eq!(code, Some(if report["usable"] == true { 0 } else { 1 }), "{script}: {report:#}");
        assert_eq!(report["usable"] == true, status != "no" && script != null, "{script}: {report:#}");
    }
}

#[test]
fn images_that_fit_and_images_that_do_not() {
    let dir = scratch();
    let report = |path: &Path, status: i32| {
        let output = run(hpcrun(["doctor", "--json", "--image"]).arg(path));
        assert_eq!(output.status.code(), Some(status), "{}", text(&output.stdout));
        json(&output)
    };
    let good = report(image(), 0);
    assert_eq!(good["image"], Value::from(image().display().to_string()));
    assert_eq!(check(&good, "image format")["detail"], "squashfs with trailer, zstd");
    for name in ["image file", "image hashes", "image architecture", "image launch"] {
        assert_eq!(check(&good, name)["status"], "ok", "{good:#}");
    }
    assert_eq!(check(&good, "image C library")["status"], "n/a", "busybox is static");

    let missing = report(&dir.path().join("none.sqsh"), 1);
    assert_eq!(check(&missing, "image file")["status"], "no");
    let short = dir.path().join("short.sqsh");
    let bytes = fs::read(image()).unwrap();
    fs::write(&short, &bytes[..bytes.len() / 2]).unwrap();
    assert_eq!(check(&report(&short, 1), "image file")["status"], "no");
    // A byte of the trailer: the middle of what follows the squashfs.
    let squashfs = u64::from_le_bytes(bytes[40..48].try_into().unwrap()) as usize;
    let mut spoilt = bytes.clone();
    spoilt[squashfs.next_multiple_of(4096) + 5] ^= 1;
    let damaged = dir.path().join("damaged.sqsh");
    fs::write(&damaged, spoilt).unwrap();
    assert_eq!(report(&damaged, 1)["usable"], false);
}

/// The C library of this machine in an image of its own: its version as `ldd` tells it.
#[test]
fn the_c_library_of_an_image() {
    let dir = scratch();
    let root = dir.path().join("root/lib64");
    fs::create_dir_all(&root).unwrap();
    let libc = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib/aarch64-linux-gnu/libc.so.6", "/lib64/libc.so.6"];
    let libc = libc.iter().find(|path| Path::new(path).exists()).expect("a C library");
    fs::copy(libc, root.join("libc.so.6")).unwrap();
    let image = dir.path().join("glibc.sqsh");
    let status = run(std::process::Command::new("mksquashfs")
        .arg(dir.path().join("root"))
        .arg(&image)
        .args(["-quiet", "-no-progress"]));
    assert!(status.status.success(), "{}", text(&status.stderr));
    let report = json(&run(hpcrun(["doctor", "--json", "--image"]).arg(&image)));
    let ldd = stdout(std::process::Command::new("ldd").arg("--version"));
    let version = ldd.lines().next().and_then(|line| line.rsplit(' ').next()).expect("a version").to_owned();
    assert_eq!(check(&report, "image C library")["detail"], format!("glibc {version}"), "{report:#}");
    assert_eq!(check(&report, "image kernel")["status"], "ok", "{report:#}");
    assert_eq!(check(&report, "image format")["detail"], "squashfs, gzip");
}

#[test]
fn version_in_short_and_in_full() {
    let short = stdout(&mut hpcrun(["--version"]));
    assert_eq!(short, concat!("hpcrun ", env!("CARGO_PKG_VERSION"), "\n"));
    for words in [["--version", "-v"], ["-v", "--version"], ["-V", "-v"]] {
        let long = stdout(&mut hpcrun(words));
        assert!(long.starts_with(&short), "{long}");
        for line in ["target", "images read", "layers read", "kernel", "site policy", "user's images"] {
            assert!(long.lines().any(|found| found.starts_with(line)), "{line} in {long}");
        }
    }
}
