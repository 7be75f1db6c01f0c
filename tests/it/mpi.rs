//! An MPI job from an image: `mpirun -n N hpcrun exec IMAGE solver` as an ordinary user.
//!
//! The image holds this machine's own Open MPI and the demo's solver, in one layer. The solver exchanges the edges of its grid
//! and messages of 4 MiB, compares its answer with a serial one, and says how many ranks it saw: ranks that do not find each
//! other are the failure that exit statuses hide.

#![allow(clippy::expect_used, reason = "a test that cannot get what it needs fails there")]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use crate::busybox_image;
use crate::support::{as_user, binary, hpcrun, run, scratch, stdout, text};

/// Cells per side: the largest message of the gathering is some 512 KiB, the ring's is 4 MiB whatever this is.
const CELLS: &str = "256";

/// Ranks in different user namespaces make Open MPI hang, so a job gets this long and is then killed.
const LIMIT_S: &str = "60";

#[test]
fn two_ranks_solve_and_agree_with_the_serial_answer() {
    solve(2);
}

#[test]
fn four_ranks_solve_and_agree_with_the_serial_answer() {
    solve(4);
}

#[test]
fn the_status_of_a_failing_rank_is_the_status_of_the_job() {
    let output = mpirun(2, &[image().into(), "/solver".into(), "1".into()]);
    assert_eq!(output.status.code(), Some(2), "{}", report(&output));
    assert!(text(&output.stderr).contains("usage: solver"), "{}", report(&output));
}

#[test]
fn nothing_of_a_job_outlives_it() {
    // A name of its own: the other tests' jobs must not be taken for this one's.
    let dir = scratch();
    let own = dir.path().join("own.sqsh");
    fs::copy(image(), &own).expect("copy of the image");
    let output = mpirun(2, &[own.clone().into(), "/solver".into(), "64".into()]);
    assert!(output.status.success(), "{}", report(&output));

    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let left = processes_that_hold(&own);
        if left.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "still there: {left:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let files: Vec<_> =
        fs::read_dir(dir.path()).expect("scratch").map(|e| e.expect("entry").path()).collect();
    assert_eq!(files, [own]);
}

/// Hydra gives its ranks no id; who started them tells one mpiexec's from another's, also through a script for each rank.
#[test]
fn hydra_ranks_share_what_they_have_in_memory() {
    let told = |options: &[&str]| -> BTreeSet<String> {
        let script = "n=$(readlink /proc/self/ns/mnt); echo $n; sleep 1";
        let output = run(&mut hydra(
            &[options, &[&busybox_image::image().to_string_lossy(), "sh", "-c", script]].concat(),
        ));
        assert!(output.status.success() && output.stderr.is_empty(), "{}", report(&output));
        let lines: Vec<String> = text(&output.stdout).lines().map(str::to_owned).collect();
        assert_eq!(lines.len(), 4, "{lines:?}");
        lines.into_iter().collect()
    };
    assert_eq!(told(&[]).len(), 1);
    assert_eq!(told(&["--contain"]).len(), 1);
    assert_eq!(told(&["--writable-tmpfs"]).len(), 1);
    assert_eq!(told(&["--contain", "--share=none"]).len(), 4);
}

#[test]
fn two_mpiexec_do_not_write_to_one_overlay() {
    let dir = scratch();
    let overlay = dir.path().join("overlay");
    stdout(as_user("mkdir").arg(&overlay));
    let option = format!("--overlay={}", overlay.display());
    let image = busybox_image::image().to_string_lossy();
    let mut first = hydra(&[&option, &image, "sh", "-c", "echo begun; sleep 8"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("mpiexec");
    let mut begun = [0; 24];
    first.stdout.as_mut().expect("a pipe").read_exact(&mut begun).expect("four lines");
    let second = run(&mut hydra(&[&option, &image, "true"]));
    assert!(!second.status.success(), "{}", report(&second));
    assert!(text(&second.stderr).contains("in use by another launch"), "{}", report(&second));
    let first = first.wait_with_output().expect("wait");
    assert!(first.status.success() && first.stderr.is_empty(), "{}", report(&first));
}

/// `mpiexec -n 4 sh -c 'hpcrun exec WORDS...'` of MPICH as the ordinary user, bounded in time.
fn hydra(words: &[&str]) -> Command {
    let mut command = as_user("timeout");
    command.args(["--signal=KILL", LIMIT_S, "mpiexec.hydra", "-n", "4", "sh", "-c", "\"$@\"; exit $?", "sh"]);
    command.arg(binary()).arg("exec").args(words);
    command
}

#[track_caller]
fn solve(ranks: usize) {
    let output = mpirun(ranks, &[image().into(), "/solver".into(), CELLS.into()]);
    assert_eq!(text(&output.stderr), "", "a job that works is silent");
    assert_solved(ranks, &output);
}

/// Asserts that one job of so many ranks wrote this.
#[track_caller]
pub(crate) fn assert_solved(ranks: usize, output: &Output) {
    assert!(output.status.success(), "{}", report(output));
    let lines: Vec<String> = text(&output.stdout).lines().map(str::to_owned).collect();
    let count = |wanted: &str| lines.iter().filter(|line| line.starts_with(wanted)).count();
    assert_eq!(count(&format!("ranks: {ranks}")), 1, "{lines:#?}");
    assert_eq!(count("ranks:"), 1, "singletons: {lines:#?}");
    assert_eq!(count("  rank "), ranks, "{lines:#?}");
    assert_eq!(count("ring of 4 MiB messages: ok"), 1, "{lines:#?}");
    assert_eq!(lines.last().map(String::as_str), Some("checked: ok"), "{lines:#?}");
}

/// `mpirun -n RANKS hpcrun exec ARGS...` as the ordinary user, bounded in time.
fn mpirun(ranks: usize, args: &[OsString]) -> Output {
    // Two that start at once quarrel over Open MPI's session directory in /tmp: the later mkdir is an error to it.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut command = as_user("timeout");
    command.args(["--signal=KILL", LIMIT_S, "mpirun", "--oversubscribe", "-n", &ranks.to_string()]);
    run(command.arg(binary()).arg("exec").args(args))
}

pub(crate) fn report(output: &Output) -> String {
    format!("{}\n{}\n{}", output.status, text(&output.stdout), text(&output.stderr))
}

/// Command lines of the processes that have the file open or name it.
pub(crate) fn processes_that_hold(file: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Ok(command_line) = fs::read(entry.path().join("cmdline")) else { continue };
        let command_line = text(&command_line).replace('\0', " ");
        let mut open = fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
        let holds = open.any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == file));
        if holds || command_line.contains(&*file.to_string_lossy()) {
            found.push(format!("{}: {command_line}", entry.file_name().to_string_lossy()));
        }
    }
    found
}

/// The image, converted once for all tests here.
pub(crate) fn image() -> &'static Path {
    static IMAGE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = IMAGE.get_or_init(|| {
        let dir = scratch();
        let archive = dir.path().join("mpi.tar");
        let image = dir.path().join("mpi.sqsh");
        fs::write(&archive, docker_archive(&layer(dir.path()))).expect("docker-archive");
        let source = format!("docker-archive:{}", archive.display());
        stdout(&mut hpcrun([OsString::from("convert"), source.into(), image.clone().into()]));
        (dir, image)
    });
    path
}

/// A layer with the solver, the loader, and every file and library that this machine's Open MPI uses.
fn layer(dir: &Path) -> Vec<u8> {
    let solver = dir.join("solver");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/solver.c");
    stdout(Command::new("mpicc").args(["-O2", "-o"]).arg(&solver).arg(source).arg("-lm"));

    let mut layer = Layer::default();
    layer.file(Path::new("/solver"), &solver);
    let mut programs = vec![solver];
    for directory in component_directories() {
        for path in files_below(&directory) {
            layer.file(&path, &path);
            if path.to_string_lossy().contains(".so") {
                programs.push(path);
            }
        }
    }
    for library in libraries(&programs) {
        layer.file(&library, &library);
    }
    for (link, target) in [("lib", "usr/lib"), ("lib64", "usr/lib64"), ("bin", "usr/bin")] {
        layer.link(link, target);
    }
    layer.finish()
}

/// Where Open MPI and the libraries below it find their plug-ins, help texts and settings.
fn component_directories() -> Vec<PathBuf> {
    let info = stdout(Command::new("ompi_info").args(["--parsable", "--path", "all"]));
    let path = |name: &str| {
        let prefix = format!("path:{name}:");
        PathBuf::from(
            info.lines().find_map(|line| line.strip_prefix(&prefix)).expect("a path in ompi_info's answer"),
        )
    };
    let plugins = path("pkglibdir");
    let mut directories = vec![plugins.clone(), path("pkgdatadir"), path("sysconfdir")];
    // PMIx and UCX have theirs beside the libraries; a machine may lack UCX.
    for parent in plugins.ancestors() {
        for name in ["pmix2", "ucx"] {
            directories.extend([parent.join(name)].into_iter().filter(|directory| directory.is_dir()));
        }
    }
    directories
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let output = stdout(Command::new("find").arg("-L").arg(directory).args(["-type", "f"]));
    output.lines().map(PathBuf::from).collect()
}

/// What the dynamic linker would load for these, itself included.
pub(crate) fn libraries(programs: &[PathBuf]) -> BTreeSet<PathBuf> {
    // A plug-in for a fabric that this machine lacks may miss a library: ldd says so and goes on.
    let output = run(Command::new("ldd").args(programs));
    let output = text(&output.stdout);
    let paths = output.split_whitespace().filter(|word| word.starts_with('/') && !word.ends_with(':'));
    paths.map(PathBuf::from).collect()
}

/// A layer tar whose names are unique and whose directories go through no link.
pub(crate) struct Layer {
    tar: tar::Builder<Vec<u8>>,
    names: BTreeSet<PathBuf>,
}

impl Default for Layer {
    fn default() -> Layer {
        Layer { tar: tar::Builder::new(Vec::new()), names: BTreeSet::new() }
    }
}

impl Layer {
    /// Adds what `from` holds under the name `path`, with /lib and the like resolved.
    pub(crate) fn file(&mut self, path: &Path, from: &Path) {
        let directory = path.parent().expect("a directory");
        let real = match directory {
            path if path == Path::new("/lib64") => PathBuf::from("/usr/lib64"),
            path => path.canonicalize().expect("canonical directory"),
        };
        let name = real.join(path.file_name().expect("a file name"));
        let name = name.strip_prefix("/").expect("absolute").to_owned();
        if !self.names.insert(name.clone()) {
            return;
        }
        let contents = fs::read(from).expect("file for the image");
        let executable = fs::metadata(from).expect("metadata").permissions().mode() & 0o111 != 0;
        let mut header = tar::Header::new_gnu();
        header.set_mode(if executable { 0o755 } else { 0o644 });
        header.set_size(contents.len() as u64);
        self.tar.append_data(&mut header, name, contents.as_slice()).expect("tar");
    }

    pub(crate) fn link(&mut self, name: &str, target: &str) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        self.tar.append_link(&mut header, name, target).expect("tar");
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.tar.into_inner().expect("tar")
    }
}

/// A docker-archive, as `docker save` writes it, of one uncompressed layer.
pub(crate) fn docker_archive(layer: &[u8]) -> Vec<u8> {
    let diff_id: String = Sha256::digest(layer).iter().map(|byte| format!("{byte:02x}")).collect();
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Env": ["PATH=/usr/bin:/bin"], "Cmd": ["/solver"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{diff_id}")] },
    });
    let manifest = serde_json::json!([{
        "Config": "config.json",
        "RepoTags": ["localhost/mpi:latest"],
        "Layers": ["layer.tar"],
    }]);
    let mut archive = tar::Builder::new(Vec::new());
    let members: [(&str, Vec<u8>); 3] = [
        ("layer.tar", layer.to_vec()),
        ("config.json", config.to_string().into_bytes()),
        ("manifest.json", manifest.to_string().into_bytes()),
    ];
    for (name, contents) in members {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(contents.len() as u64);
        archive.append_data(&mut header, name, contents.as_slice()).expect("tar");
    }
    archive.into_inner().expect("tar")
}
