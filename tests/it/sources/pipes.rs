//! Sources that come through standard input.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::layout::Packing;
use crate::busybox_image::{archive, assert_fails, image, names_in};
use crate::support::{self, hpcrun, scratch, text};

/// Runs `hpcrun convert SOURCE DEST` with these bytes coming through a pipe.
fn convert_piped(source: &str, dest: &Path, bytes: &[u8]) -> Output {
    let mut child = hpcrun(["convert", source])
        .arg(dest)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    // It may have enough before the end.
    let writer = std::thread::spawn(move || drop(input.write_all(&bytes)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// The squashfs in an image file; what follows it says where it came from.
pub(crate) fn squashfs(path: &Path) -> Vec<u8> {
    let mut bytes = fs::read(path).unwrap();
    let used = u64::from_le_bytes(bytes[40..48].try_into().unwrap());
    bytes.truncate(used as usize);
    bytes
}

#[track_caller]
fn assert_same_squashfs(path: &Path, expected: &Path) {
    assert!(squashfs(path) == squashfs(expected), "{} differs", path.display());
}

#[test]
fn docker_save_into_a_pipe() {
    let dir = scratch();
    let dest = dir.path().join("app.sqsh");
    let bytes = fs::read(archive()).unwrap();
    for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
        let output = convert_piped("docker-archive:-", &dest, &packing.pack(&bytes));
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_same_squashfs(&dest, image());
        assert_eq!(names_in(dir.path()), ["app.sqsh"]);
        fs::remove_file(&dest).unwrap();
    }
    // A file is used as it is.
    let output = support::run(
        hpcrun(["convert", "docker-archive:-"]).arg(&dest).stdin(File::open(archive()).unwrap()),
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_same_squashfs(&dest, image());
    let shown = support::stdout(hpcrun(["inspect"]).arg(&dest));
    assert!(shown.contains("docker-archive:-"), "{shown}");
}

#[test]
fn an_oci_archive_through_a_pipe() {
    let dir = scratch();
    let oci = dir.path().join("oci.tar");
    let from = format!("docker-archive:{}", archive().display());
    support::stdout(Command::new("skopeo").args([
        "copy",
        "-q",
        &from,
        &format!("oci-archive:{}:app", oci.display()),
    ]));
    let bytes = fs::read(&oci).unwrap();
    for source in ["oci-archive:-", "oci-archive:-:app", "oci-archive:-:@0"] {
        let dest = dir.path().join("app.sqsh");
        let output = convert_piped(source, &dest, &bytes);
        assert!(output.status.success(), "{source}: {}", text(&output.stderr));
        assert_same_squashfs(&dest, image());
        fs::remove_file(&dest).unwrap();
    }
    let output = convert_piped("oci-archive:-:other", &dir.path().join("x"), &bytes);
    assert_fails(&output, 125, &["holds no image \"other\"", "app"]);
}

#[test]
fn a_failure_in_a_pipe_leaves_nothing() {
    let dir = scratch();
    let dest = dir.path().join("app.sqsh");
    let bytes = fs::read(archive()).unwrap();
    for (source, bytes, expected) in [
        ("docker-archive:-", &b""[..], "not a tar archive"),
        ("docker-archive:-", &bytes[..bytes.len() / 2], ""),
        ("docker-archive:-", &[b'x'; 100_000], "not a tar archive"),
        ("oci-archive:-", &bytes, "has no oci-layout"),
        ("tar:-", b"", "it is empty"),
        ("tar:-", &[b'x'; 100_000], "cannot read the root file system"),
        ("tar:-", &bytes[..bytes.len() / 2], "cannot read the root file system"),
    ] {
        assert_fails(&convert_piped(source, &dest, bytes), 125, &[expected]);
        assert_eq!(names_in(dir.path()), [""; 0], "{source}");
    }
    // No room for what has to be kept.
    let mut limited = Command::new("prlimit");
    limited
        .args(["--fsize=100000", "--"])
        .arg(support::binary())
        .args(["convert", "docker-archive:-"])
        .arg(&dest);
    let mut child = limited.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || drop(input.write_all(&bytes)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert_fails(&output, 125, &["cannot keep docker-archive:- in a file without a name", "EFBIG", "hint: "]);
    assert_eq!(names_in(dir.path()), [""; 0]);

    let mut closed = hpcrun(["convert", "docker-archive:-"]);
    assert_fails(&support::run(closed.arg(&dest).stdin(Stdio::null())), 125, &["not a tar archive"]);
    let on_terminal = format!("{} convert docker-archive:- {}", support::binary().display(), dest.display());
    let output =
        support::run(Command::new("script").args(["-qec", &on_terminal, "/dev/null"]).stdin(Stdio::null()));
    let said = text(&output.stdout);
    assert!(said.contains("standard input is a terminal"), "{said}");
}

#[test]
fn a_root_file_system_streams_through_a_pipe() {
    let dir = scratch();
    let tar = support::run(hpcrun(["export"]).arg(image())).stdout;
    let dest = dir.path().join("app.sqsh");
    for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
        let output = convert_piped("tar:-", &dest, &packing.pack(&tar));
        assert!(output.status.success(), "{}", text(&output.stderr));
        let from_pipe = squashfs(&dest);
        let file = dir.path().join("root.tar");
        fs::write(&file, packing.pack(&tar)).unwrap();
        support::stdout(hpcrun(["convert", "--force"]).arg(format!("tar:{}", file.display())).arg(&dest));
        assert!(squashfs(&dest) == from_pipe, "{packing:?}");
        fs::remove_file(&dest).unwrap();
    }
    // Through a FIFO with a name, as a shell makes for <(...); and xz, as some distributions publish theirs.
    let fifo = dir.path().join("fifo");
    support::stdout(Command::new("mkfifo").args(["-m", "666"]).arg(&fifo));
    let (path, bytes) = (fifo.clone(), tar.clone());
    let writer = std::thread::spawn(move || {
        let mut pipe = File::options().write(true).custom_flags(0).open(path).unwrap();
        pipe.write_all(&bytes).unwrap();
    });
    support::stdout(hpcrun(["convert"]).arg(format!("tar:{}", fifo.display())).arg(&dest));
    writer.join().unwrap();
    let expected = squashfs(&dest);
    let plain = dir.path().join("root.tar");
    fs::write(&plain, &tar).unwrap();
    support::stdout(Command::new("xz").args(["-0", "-k"]).arg(&plain));
    let packed = dir.path().join("root.tar.xz");
    support::stdout(hpcrun(["convert", "--force"]).arg(format!("tar:{}", packed.display())).arg(&dest));
    assert!(squashfs(&dest) == expected);
    support::stdout(hpcrun(["convert", "--force", "tar:-"]).arg(&dest).stdin(File::open(&packed).unwrap()));
    assert!(squashfs(&dest) == expected);
    let output = support::run(
        hpcrun(["convert"]).arg(format!("tar:{}", dir.path().display())).arg(dir.path().join("x")),
    );
    assert_fails(&output, 125, &["it is a directory: write dir:"]);
}
