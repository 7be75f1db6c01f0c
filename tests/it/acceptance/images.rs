//! Image files as users handle them: who may read what was written, what they are called, what is said without a launch.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::Value;

use crate::busybox_image::{archive, assert_fails, copy_in, image, names_in};
use crate::support::{as_user, binary, hpcrun, run, scratch, stdout};

#[test]
fn row_46_image_files_follow_the_umask_and_replace_nothing() {
    let dir = scratch();
    let source = format!("docker-archive:{}", archive().display());
    // Writable for its owner alone, whatever the umask: many run from it.
    for (umask, mode) in [("022", 0o644), ("027", 0o640), ("077", 0o600), ("002", 0o644), ("000", 0o644)] {
        let dest = dir.path().join(format!("{umask}.sqsh"));
        let mut shell = as_user("sh");
        let line = format!("umask {umask}; exec \"$@\"");
        stdout(shell.args(["-c", &line, "sh"]).arg(binary()).args(["-q", "convert", &source]).arg(&dest));
        assert_eq!(fs::metadata(&dest).expect("metadata").permissions().mode() & 0o7777, mode, "{umask}");
    }
    let dest = dir.path().join("022.sqsh");
    let before = fs::metadata(&dest).expect("metadata").modified().expect("a time");
    assert_fails(&run(hpcrun(["convert", &source]).arg(&dest)), 125, &["already exists", "--force"]);
    assert_eq!(fs::metadata(&dest).expect("metadata").modified().expect("a time"), before);
}

#[test]
fn row_45_conversions_to_one_name_at_once_give_one_whole_file() {
    let dir = scratch();
    let source = format!("docker-archive:{}", archive().display());
    let dest = dir.path().join("one.sqsh");
    let start = || {
        let mut command = hpcrun(["-q", "convert", "--force", "-j1", &source]);
        command.arg(&dest).spawn().expect("spawn")
    };
    let mut children: Vec<_> = (0..8).map(|_| start()).collect();
    // One of them does not come to its end.
    children[3].kill().expect("kill");
    let statuses: Vec<_> = children.iter_mut().map(|child| child.wait().expect("wait")).collect();
    assert!(statuses.iter().filter(|status| status.success()).count() >= 7, "{statuses:?}");
    assert_eq!(fs::read(&dest).expect("read"), fs::read(image()).expect("read"));
    // What the killed one left is removed by the next.
    stdout(hpcrun(["-q", "convert", "--force", &source]).arg(&dest));
    assert_eq!(names_in(dir.path()), ["one.sqsh"]);
}

/// Nothing of the image is executed: there is no new process and no namespace.
#[test]
fn row_42_inspecting_runs_nothing() {
    let dir = scratch();
    let own = copy_in(dir.path());
    let record = dir.path().join("calls");
    let mut traced = as_user("strace");
    traced.env_remove("LD_LIBRARY_PATH").args(["-f", "-o"]).arg(&record);
    traced.args(["-e", "trace=execve,clone,clone3,fork,vfork,unshare,mount,setns"]);
    let shown = stdout(traced.arg(binary()).args(["inspect", "--json"]).arg(&own));
    let calls = fs::read_to_string(&record).expect("record");
    let calls: Vec<&str> = calls.lines().filter(|line| !line.contains("exited with")).collect();
    assert_eq!(calls.len(), 1, "hpcrun itself and nothing else: {calls:#?}");
    let document: Value = serde_json::from_str(&shown).expect("JSON");
    let config = &document["config"]["config"];
    assert_eq!(config["Labels"]["org.example.purpose"], "test");
    assert_eq!(config["Entrypoint"][0], "/bin/echo");
    assert!(config["Env"].as_array().is_some_and(|env| env.len() == 3), "{config}");
    assert_eq!(document["config"]["created"], "2024-01-01T00:00:00Z");
    let digest = document["provenance"]["manifest_digest"].as_str().expect("a digest");
    assert!(digest.starts_with("sha256:") && digest.len() == 71, "{digest}");
}
