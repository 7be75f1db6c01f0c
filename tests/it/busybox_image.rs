//! A small image with busybox, converted by the program under test: what the tests of the command line share.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use hpcrun::image::digest::Digest;
use serde_json::{Value, json};

use crate::layer_building::{Member, tar};
use crate::support::{hpcrun, scratch, stdout, text};

/// Busybox's names in /bin; `hard` is one more, a hard link.
const APPLETS: &[&str] = &[
    "cat", "echo", "env", "find", "grep", "head", "id", "kill", "ls", "mount", "ps", "pwd", "readlink", "sh",
    "sleep", "stat", "touch", "true", "tty", "wc",
];

/// Bytes of `/data/large`: more than any read-ahead takes at once.
pub(crate) const LARGE_BYTES: usize = 6 << 20;

/// The members of a layer with busybox and its names in /bin.
pub(crate) fn busybox() -> Vec<Member> {
    let program = fs::read("/bin/busybox").expect("/bin/busybox; 'make test' installs busybox-static");
    let mut members = vec![
        Member::directory("bin/"),
        Member::file("bin/busybox", program).mode(0o755),
        Member::hard_link("bin/hard", "bin/busybox"),
    ];
    members.extend(APPLETS.iter().map(|name| Member::symlink(format!("bin/{name}"), "busybox")));
    members
}

/// The layer of [`image`]: busybox, passwd and group, files that cannot be executed, and data.
fn layer() -> Vec<Member> {
    let mut foreign = fs::read("/bin/busybox").expect("/bin/busybox")[..4096].to_vec();
    // e_machine: a Motorola 68000.
    foreign[18..20].copy_from_slice(&4u16.to_le_bytes());
    let large: Vec<u8> = (0..LARGE_BYTES).map(|at| ((at * 7919) >> 8) as u8).collect();
    let mut members = busybox();
    members.extend([
        Member::directory("etc/"),
        Member::file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        Member::file("etc/group", "root:x:0:\n"),
        Member::directory("work/"),
        Member::file("work/note", "a note\n"),
        Member::directory("data/"),
        Member::file("data/large", large),
        Member::file("data/text", "no program\n"),
        Member::file("data/foreign", foreign).mode(0o755),
        Member::file("data/lost", "#!/no/such/interpreter\n").mode(0o755),
        Member::file("data/script", "#!/bin/sh\necho \"script $*\"\n").mode(0o755),
    ]);
    members
}

/// What [`image`]'s config says.
fn config() -> Value {
    json!({
        "Env": ["PATH=/bin", "GREETING=hello world", "HOME=/root"],
        "Entrypoint": ["/bin/echo", "entry point"],
        "Cmd": ["a", "b c"],
        "WorkingDir": "/work",
        "Labels": {"org.example.purpose": "test"},
    })
}

/// The image, as a docker-archive and converted once, at a path that the ordinary user can read.
pub(crate) fn image() -> &'static Path {
    &files().image
}

/// The docker-archive that [`image`] was made from.
pub(crate) fn archive() -> &'static Path {
    &files().archive
}

struct Files {
    image: PathBuf,
    archive: PathBuf,
    _dir: tempfile::TempDir,
}

fn files() -> &'static Files {
    static FILES: OnceLock<Files> = OnceLock::new();
    FILES.get_or_init(|| {
        let dir = scratch();
        let image = convert(dir.path(), "busybox", &config(), &[tar(&layer())]);
        Files { image, archive: dir.path().join("busybox.tar"), _dir: dir }
    })
}

/// A copy of [`image`] of its own in `dir`, so that what holds it can be told from what holds others.
pub(crate) fn copy_in(dir: &Path) -> PathBuf {
    let copy = dir.join("own.sqsh");
    fs::copy(image(), &copy).expect("copy of the image");
    copy
}

/// Makes `NAME.tar` in `dir` of these layer tars and converts it to `NAME.sqsh`.
#[track_caller]
pub(crate) fn convert(dir: &Path, name: &str, config: &Value, tars: &[Vec<u8>]) -> PathBuf {
    let archive = dir.join(format!("{name}.tar"));
    fs::write(&archive, docker_archive(config, tars)).expect("docker-archive");
    let image = dir.join(format!("{name}.sqsh"));
    stdout(hpcrun(["convert"]).arg(format!("docker-archive:{}", archive.display())).arg(&image));
    image
}

/// What `docker save` would write of an image with this `config` and these uncompressed layers.
pub(crate) fn docker_archive(config: &Value, tars: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<String> = tars.iter().map(|tar| Digest::of(tar).to_string()).collect();
    archive_of(config, &diff_ids, tars)
}

/// The same with these diff IDs in the config, right or wrong.
pub(crate) fn archive_of(config: &Value, diff_ids: &[String], blobs: &[Vec<u8>]) -> Vec<u8> {
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "created": "2024-01-01T00:00:00Z",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let names: Vec<String> = (0..blobs.len()).map(|index| format!("layer{index}.tar")).collect();
    let manifest = json!([{"Config": "config.json", "RepoTags": ["localhost/test:1"], "Layers": names}]);
    let mut members = vec![
        Member::file("manifest.json", manifest.to_string()),
        Member::file("config.json", config.to_string()),
    ];
    members.extend(names.iter().zip(blobs).map(|(name, blob)| Member::file(name, blob)));
    tar(&members)
}

/// Waits until nobody holds `image` any more: processes of jobs and servers end a moment after the job.
#[track_caller]
pub(crate) fn assert_nobody_holds(image: &Path) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left = holders(image);
        if left.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "still there: {left:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    assert!(!mounts.contains(&*image.to_string_lossy()), "{mounts}");
}

/// The processes that have `file` open, also by a name it lost, or name it in their command line.
pub(crate) fn holders(file: &Path) -> Vec<String> {
    let name = file.to_string_lossy();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Ok(command_line) = fs::read(entry.path().join("cmdline")) else { continue };
        let command_line = text(&command_line).replace('\0', " ");
        let mut open = fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
        let holds = open.any(|fd| {
            fs::read_link(fd.path()).is_ok_and(|target| target.to_string_lossy().starts_with(&*name))
        });
        if holds || command_line.contains(&*name) {
            found.push(format!("{}: {command_line}", entry.file_name().to_string_lossy()));
        }
    }
    found
}

/// The names in a directory, sorted.
pub(crate) fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .expect("directory")
        .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// What no message may show: a crash, or our types' names.
const INTERNAL: &[&str] =
    &["panicked", "RUST_BACKTRACE", "os error", "Some(", "None)", "Error {", "Err(", "\x1b"];

/// Asserts that `output` is a failure with `status` and one line `hpcrun: ...` that contains `expected`, then only
/// hints, and nothing on standard output. Gives the line.
#[track_caller]
pub(crate) fn assert_fails(output: &std::process::Output, status: i32, expected: &[&str]) -> String {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{}: {stderr}", output.status);
    assert_eq!(text(&output.stdout), "", "{stderr}");
    let (first, rest) = stderr.split_once('\n').unwrap_or_else(|| panic!("no whole line: {stderr:?}"));
    assert!(first.starts_with("hpcrun: "), "{stderr}");
    assert!(rest.lines().all(|line| line.starts_with("hint: ")), "{stderr}");
    for words in expected {
        assert!(stderr.contains(words), "not {words:?} in: {stderr}");
    }
    for word in INTERNAL {
        assert!(!stderr.contains(word), "{word:?} in: {stderr}");
    }
    first.to_owned()
}
