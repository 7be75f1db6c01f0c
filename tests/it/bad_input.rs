//! Bad input, each kind through the binary: one clear line that names object and cause, the documented status, nothing
//! written outside the destination and nothing left.

#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "a test that cannot go on fails there")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::json;

use crate::busybox_image::{
    archive, archive_of, assert_fails, assert_nobody_holds, convert, copy_in, docker_archive, image, names_in,
};
use crate::layer_building::{Member, tar};
use crate::support::{TEST_USER, as_user, binary, hpcrun, is_root, run, scratch, stdout, text};

/// `hpcrun convert docker-archive:ARCHIVE DIR/out.sqsh`.
fn convert_file(archive: &Path, dir: &Path) -> Output {
    let source = format!("docker-archive:{}", archive.display());
    run(hpcrun(["convert"]).arg(source).arg(dir.join("out.sqsh")))
}

/// Converts these bytes, which must fail with `expected` and leave nothing.
#[track_caller]
fn assert_refused(archive: &[u8], expected: &[&str]) -> String {
    let dir = scratch();
    let path = dir.path().join("bad.tar");
    fs::write(&path, archive).expect("write");
    let line = assert_fails(&convert_file(&path, dir.path()), 125, expected);
    assert_eq!(names_in(dir.path()), ["bad.tar"]);
    line
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes).expect("gzip");
    encoder.finish().expect("gzip")
}

/// Data without a pattern, so that damage is somewhere inside it.
fn noise(bytes: usize) -> Vec<u8> {
    let mut random = crate::support::Random::new(3);
    std::iter::repeat_with(|| random.next() as u8).take(bytes).collect()
}

fn layer() -> Vec<u8> {
    tar(&[Member::file("data", noise(200_000)), Member::file("last", "x")])
}

#[test]
fn truncated_archives() {
    let whole = docker_archive(&json!({}), &[layer()]);
    for length in [0, 1, 511, 512, 600, 1024, 1500, 2600, whole.len() / 2, whole.len() - 3000] {
        let line = assert_refused(&whole[..length], &["bad.tar"]);
        assert!(!line.contains("cannot write"), "{length}: {line}");
    }
    let packed = gzip(&whole);
    for length in [5, 200, packed.len() / 2, packed.len() - 3000] {
        assert_refused(&packed[..length], &["bad.tar"]);
    }
}

#[test]
fn corrupt_archives() {
    let whole = docker_archive(&json!({}), &[layer()]);
    let damaged = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        bytes
    };
    assert_refused(&damaged(10), &["bad.tar"]);
    // The manifest's text, the config's text, the layer's bytes.
    assert_refused(&damaged(512), &["bad.tar", "manifest"]);
    assert_refused(&damaged(3 * 512), &["bad.tar", "config"]);
    let in_data = whole.len() - 100_000;
    assert_refused(
        &damaged(in_data),
        &["layer 1 of 1 (sha256:", "should be sha256:", "hint: the image was damaged"],
    );
    assert_refused(&noise(5000), &["not a tar archive"]);
    assert_refused(&tar(&[Member::file("readme", "no image")]), &["bad.tar", "manifest.json"]);
    assert_refused(
        b"\x7fELF, and nothing that anybody would call a tar archive",
        &["bad.tar", "not a tar archive"],
    );
}

#[test]
fn broken_layers() {
    let tar_bytes = layer();
    let diff_id = [hpcrun::image::digest::Digest::of(&tar_bytes).to_string()];
    let with = |blob: Vec<u8>| archive_of(&json!({}), &diff_id, &[blob]);
    let packed = gzip(&tar_bytes);
    let mut flipped = packed.clone();
    flipped[packed.len() / 2] ^= 0x10;
    let layer_one: &[&str] = &["layer 1 of 1 (sha256:"];
    for blob in
        [tar_bytes[..100_000].to_vec(), packed[..packed.len() / 2].to_vec(), flipped, Vec::new(), noise(4096)]
    {
        assert_refused(&with(blob), layer_one);
    }
    let other = tar(&[Member::file("other", "")]);
    assert_refused(&with(other), &["layer 1 of 1", "should be sha256:", "and is sha256:"]);
    let two = archive_of(&json!({}), &diff_id, &[tar_bytes.clone(), tar_bytes]);
    assert_refused(&two, &["bad.tar has 2 layers but 1 diff IDs"]);
}

#[test]
fn hostile_names_stay_inside_the_image() {
    let dir = scratch();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).expect("mkdir");
    fs::set_permissions(&outside, PermissionsExt::from_mode(0o777)).expect("chmod");
    let absolute = outside.join("planted").display().to_string();
    let up = format!("../../../../../..{absolute}");
    let cases = [
        vec![Member::file(&up, "x")],
        vec![Member::file(format!("a/../../{up}"), "x")],
        vec![Member::file(&absolute, "x")],
        vec![Member::symlink("link", outside.display().to_string()), Member::file("link/planted", "x")],
        vec![Member::hard_link("link", &absolute), Member::file("link", "x")],
        vec![Member::hard_link("link", "/etc/passwd")],
        vec![Member::file("..", "x")],
        vec![Member::directory("../..")],
        vec![Member::file("", "x")],
        vec![Member::file("a", "x").pax("path", "b/\0c")],
        vec![Member::file("a", "x").pax("path", "x/".repeat(4000))],
        vec![Member::file("a", "x").pax("path", "y".repeat(300))],
    ];
    for (number, members) in cases.iter().enumerate() {
        let archive = dir.path().join("hostile.tar");
        fs::write(&archive, docker_archive(&json!({}), &[tar(members)])).expect("write");
        let output = convert_file(&archive, dir.path());
        if output.status.success() {
            fs::remove_file(dir.path().join("out.sqsh")).expect("the image");
        } else {
            let line = assert_fails(&output, 125, &["layer 1 of 1"]);
            assert!(line.len() < 1000, "{} bytes: {line}", line.len());
        }
        assert_eq!(names_in(dir.path()), ["hostile.tar", "outside"], "case {number}");
        assert_eq!(names_in(&outside), [""; 0], "case {number}");
    }
    let parent = docker_archive(&json!({}), &[tar(&[Member::file("../up", "x")])]);
    assert_refused(&parent, &["layer 1 of 1", "\"../up\"", "hint: "]);
}

/// `inspect` and `exec true` of a damaged image: each works or fails with a line; never anything else.
#[track_caller]
fn assert_survives(image: &Path, what: &str) {
    let inspect = run(hpcrun(["inspect"]).arg(image));
    if !inspect.status.success() {
        assert_fails(&inspect, 125, &["image"]);
    }
    let exec =
        run(as_user("timeout").arg("20").arg(binary()).arg("exec").arg(image).args(["/bin/busybox", "true"]));
    if exec.status.success() {
        return;
    }
    // The program itself may be what is damaged: then it dies as it would anywhere.
    if let Some(status @ (125..=127)) = exec.status.code() {
        assert_fails(&exec, status, &[]);
    }
    assert_ne!(exec.status.code(), Some(124), "{what} hangs");
    assert!(!text(&exec.stderr).contains("panicked"), "{what}: {}", text(&exec.stderr));
}

#[test]
fn truncated_image_files() {
    let dir = scratch();
    let own = copy_in(dir.path());
    let whole = fs::read(&own).expect("read");
    let cases: &[(usize, &[&str])] = &[
        (0, &["own.sqsh", "too few for a squashfs superblock"]),
        (50, &["own.sqsh", "too few for a squashfs superblock"]),
        (95, &["own.sqsh", "too few for a squashfs superblock"]),
        (96, &["own.sqsh", "truncated", "hint: the copy was cut short"]),
        (5000, &["own.sqsh", "truncated"]),
        (whole.len() / 2, &["own.sqsh", "truncated"]),
    ];
    for (length, expected) in cases {
        fs::write(&own, &whole[..*length]).expect("write");
        for verb in ["inspect", "exec", "run", "shell"] {
            let mut command = hpcrun([verb]);
            command.arg(&own).args(Some("true").filter(|_| verb == "exec"));
            assert_fails(&run(&mut command), 125, expected);
        }
    }
    for length in [whole.len() - 1, whole.len() - 4096, whole.len() - 5000] {
        fs::write(&own, &whole[..length]).expect("write");
        assert_survives(&own, &format!("cut to {length}"));
    }
    assert_nobody_holds(&own);
}

#[test]
fn damaged_image_files() {
    let dir = scratch();
    let own = copy_in(dir.path());
    let whole = fs::read(&own).expect("read");
    let used = u64::from_le_bytes(whole[40..48].try_into().expect("eight")) as usize;
    // The superblock, each byte; the tables, which stand at the end; the trailer.
    let tables = (used - 3000..used).step_by(211);
    let trailer = (used.next_multiple_of(4096)..whole.len()).step_by(401);
    let file = fs::File::options().write(true).open(&own).expect("open");
    for at in (0..96).chain(tables).chain(trailer) {
        // In place: whole images written a hundred times would make a slow disk the subject of this test.
        file.write_all_at(&[whole[at] ^ 0xff], at as u64).expect("write");
        assert_survives(&own, &format!("byte {at} flipped"));
        file.write_all_at(&whole[at..=at], at as u64).expect("write");
    }
    drop(file);
    let mut wrong = whole.clone();
    wrong[0] = b'x';
    fs::write(&own, &wrong).expect("write");
    assert_fails(&run(hpcrun(["exec"]).arg(&own).arg("true")), 125, &["own.sqsh", "not a squashfs file"]);
    wrong = whole;
    wrong[28] = 9;
    fs::write(&own, &wrong).expect("write");
    assert_fails(&run(hpcrun(["exec"]).arg(&own).arg("true")), 125, &["own.sqsh", "version 9"]);
    assert_nobody_holds(&own);
    assert_eq!(names_in(dir.path()), ["own.sqsh"]);
}

#[test]
fn what_is_no_image_file() {
    let dir = scratch();
    let fifo = dir.path().join("fifo");
    stdout(Command::new("mkfifo").arg(&fifo));
    let path = |name: &str| dir.path().join(name).display().to_string();
    let cases: &[(String, &[&str])] = &[
        (path("nosuch.sqsh"), &["cannot open image", "nosuch.sqsh", "No such file or directory (ENOENT)"]),
        (path("fifo/x.sqsh"), &["cannot open image", "Not a directory (ENOTDIR)"]),
        (
            "docker://debian".to_owned(),
            &["cannot open image docker://debian: no store has it", "hint: 'hpcrun pull docker://debian'"],
        ),
        ("/".to_owned(), &["cannot use / as an image: it is a directory"]),
        ("/dev/null".to_owned(), &["cannot use /dev/null as an image: it is a device"]),
        (path("fifo"), &["fifo as an image", "pipe"]),
        (
            archive().display().to_string(),
            &["busybox.tar", "not a squashfs file", "hint: an image file is what 'hpcrun convert'"],
        ),
    ];
    for (name, expected) in cases {
        for verb in ["inspect", "exec"] {
            let mut command = hpcrun([verb]);
            command.arg(name).args(Some("true").filter(|_| verb == "exec"));
            assert_fails(&run(&mut command), 125, expected);
        }
    }
}

#[test]
fn sources_that_are_not_there() {
    let dir = scratch();
    let dest = dir.path().join("out.sqsh");
    let cases: &[(&str, &[&str])] = &[
        ("docker-archive:/no/such.tar", &["/no/such.tar", "No such file or directory (ENOENT)"]),
        ("docker-archive:/etc", &["/etc", "not a regular file"]),
        ("docker-archive:/dev/zero", &["/dev/zero", "not a regular file"]),
        ("oci-archive:/no/such.tar", &["/no/such.tar", "No such file or directory (ENOENT)"]),
        ("oci:/no/such", &["/no/such", "No such file or directory (ENOENT)"]),
        ("oci:/etc", &["/etc", "OCI layout"]),
        ("app.tar", &["\"app.tar\" does not say where the image is", "hint: "]),
        ("tarball:/x", &["tarball", "hint: "]),
        ("docker-archive:", &["docker-archive:"]),
        ("docker://UPPER/case", &["UPPER/case"]),
    ];
    for (source, expected) in cases {
        assert_fails(&run(hpcrun(["convert", source]).arg(&dest)), 125, expected);
    }
    let source = format!("docker-archive:{}", archive().display());
    let wrong_tag = run(hpcrun(["convert", &format!("{source}:localhost/other:2")]).arg(&dest));
    assert_fails(&wrong_tag, 125, &["localhost/other:2", "localhost/test:1"]);
    assert_eq!(names_in(dir.path()), [""; 0]);
    for (dest, expected) in [
        ("/no/such/out.sqsh", &["cannot create /no/such/out.sqsh", "No such file or directory (ENOENT)"][..]),
        ("/out.sqsh", &["cannot create /out.sqsh", "Permission denied (EACCES)"]),
        ("/tmp", &["/tmp is no place for a file"]),
        ("/dev/null", &["/dev/null already exists"]),
        ("out/", &["out/ is no place for a file"]),
    ] {
        assert_fails(&run(&mut hpcrun(["convert", &source, dest])), 125, expected);
    }
}

#[test]
fn files_closed_to_the_user() {
    let dir = scratch();
    let own = copy_in(dir.path());
    let closed = dir.path().join("closed.tar");
    fs::copy(archive(), &closed).expect("copy");
    for path in [&own, &closed] {
        fs::set_permissions(path, PermissionsExt::from_mode(0o000)).expect("chmod");
    }
    for verb in ["inspect", "run"] {
        let output = run(hpcrun([verb]).arg(&own));
        assert_fails(&output, 125, &["cannot open image", "own.sqsh", "Permission denied (EACCES)"]);
    }
    assert_fails(&convert_file(&closed, dir.path()), 125, &["closed.tar", "Permission denied (EACCES)"]);
    let secret = dir.path().join("secret");
    fs::create_dir_all(secret.join("inner")).expect("mkdir");
    fs::set_permissions(&secret, PermissionsExt::from_mode(0o000)).expect("chmod");
    let inner = secret.join("inner").display().to_string();
    let output = run(hpcrun(["exec", "--bind", &format!("{inner}:/x")]).arg(image()).arg("true"));
    assert_fails(&output, 125, &["cannot bind", &inner]);
    fs::set_permissions(&secret, PermissionsExt::from_mode(0o755)).expect("chmod");
    assert_eq!(names_in(dir.path()), ["closed.tar", "own.sqsh", "secret"]);
}

/// A script run as root in a mount namespace of its own, which ends in a program run as the ordinary user.
pub(crate) fn in_private_mounts(script: &str, words: &[&OsStr]) -> Output {
    assert!(is_root(), "this test changes mounts in a namespace of its own: run it as root");
    let drop = format!(
        "exec setpriv --reuid {TEST_USER} --regid {TEST_USER} --init-groups --inh-caps=-all -- \"$@\""
    );
    let script = format!("set -e; {script}; {drop}");
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "private", "bash", "-c", &script, "bash"]).args(words);
    run(command.env("HOME", format!("/home/{TEST_USER}")).current_dir("/tmp"))
}

#[test]
fn a_full_disk() {
    let dir = scratch();
    let disk = dir.path().join("disk");
    fs::create_dir(&disk).expect("mkdir");
    // What the disk holds afterwards goes to standard output, where a failure has nothing.
    let mount = format!("mount -t tmpfs -o size=300k,mode=777 none {}", disk.display());
    let source = format!("docker-archive:{}", archive().display());
    let line = format!("\"$@\"; status=$?; ls -A {}; exit $status", disk.display());
    let words = ["sh", "-c", &line, "sh"].map(OsStr::new);
    let out = disk.join("out.sqsh");
    let hpcrun_words = [binary().as_os_str(), OsStr::new("convert"), OsStr::new(&source), out.as_os_str()];
    let output = in_private_mounts(&mount, &[&words[..], &hpcrun_words].concat());
    assert_fails(&output, 125, &["cannot write", "out.sqsh", "No space left on device (ENOSPC)"]);
}

#[test]
fn a_limit_of_file_sizes() {
    let dir = scratch();
    let source = format!("docker-archive:{}", archive().display());
    let mut command = as_user("bash");
    command.args(["-c", "ulimit -f 300; exec \"$@\"", "bash"]).arg(binary()).args(["convert", &source]);
    let output = run(command.arg(dir.path().join("out.sqsh")));
    assert_fails(&output, 125, &["cannot write", "out.sqsh", "File too large (EFBIG)"]);
    assert_eq!(names_in(dir.path()), [""; 0]);
}

#[test]
fn no_user_namespaces() {
    let script = "echo 0 >/proc/sys/user/max_user_namespaces && exec setpriv --ambient-caps=-all --inh-caps=-all \"$@\"";
    let within = |words: &[&str]| {
        let mut command = as_user("unshare");
        command.args(["-U", "--map-current-user", "--keep-caps", "sh", "-c", script, "sh"]).arg(binary());
        command.args(words);
        command
    };
    let image = image().display().to_string();
    let output = run(&mut within(&["exec", &image, "true"]));
    assert_fails(&output, 125, &["user namespaces", "max_user_namespaces", "hint: "]);
    let doctor = run(&mut within(&["doctor"]));
    assert_eq!(doctor.status.code(), Some(1));
    assert!(text(&doctor.stdout).contains("no    user namespaces"), "{}", text(&doctor.stdout));
    // The image itself can be looked at.
    assert!(stdout(&mut within(&["inspect", &image])).starts_with("file "));
}

#[test]
fn no_fuse_device() {
    let null = "mount -t tmpfs -o mode=755 none /dev; mknod -m 666 /dev/null c 1 3";
    let closed = format!("{null}; mknod -m 600 /dev/fuse c 10 229");
    let exec = [binary().as_os_str(), OsStr::new("exec"), image().as_os_str(), OsStr::new("true")];
    assert_fails(&in_private_mounts(null, &exec), 125, &["/dev/fuse", "hint: "]);
    assert_fails(&in_private_mounts(&closed, &exec), 125, &["/dev/fuse", "hint: "]);
    let doctor = in_private_mounts(null, &[binary().as_os_str(), OsStr::new("doctor")]);
    assert_eq!(doctor.status.code(), Some(1));
    assert!(text(&doctor.stdout).contains("no    /dev/fuse"), "{}", text(&doctor.stdout));
}

/// An image of busybox at `/busybox` and `extra`, in `dir`.
fn bare(dir: &Path, extra: Vec<Member>) -> PathBuf {
    let program = fs::read("/bin/busybox").expect("busybox-static");
    let members = [vec![Member::file("busybox", program).mode(0o755)], extra].concat();
    convert(dir, "bare", &json!({}), &[tar(&members)])
}

#[test]
fn an_image_with_nothing_but_a_program() {
    let dir = scratch();
    let image = bare(dir.path(), Vec::new());
    let exec = |words: &[&str]| stdout(hpcrun(["exec"]).arg(&image).args(words));
    assert_eq!(exec(&["/busybox", "echo", "ok"]), "ok\n");
    assert_eq!(exec(&["/busybox", "id", "-un"]), stdout(as_user("id").arg("-un")));
    assert_eq!(exec(&["/busybox", "cat", "/proc/self/comm"]), "busybox\n");
    assert_eq!(exec(&["/busybox", "pwd"]), "/tmp\n");
    assert!(exec(&["/busybox", "ls", "/dev"]).contains("null"));
    assert_fails(&run(hpcrun(["shell"]).arg(&image)), 125, &["the image has no shell", "/bin/sh", "hint: "]);
    assert_fails(&run(hpcrun(["exec"]).arg(&image).arg("sh")), 127, &["sh not found in /usr/local/sbin:"]);
    assert_nobody_holds(&image);
}

#[test]
fn images_whose_directories_are_something_else() {
    let dir = scratch();
    for name in ["proc", "etc", "dev", "tmp", "etc/passwd"] {
        let odd = vec![Member::file(name, "a file")];
        let odd = if name == "etc/passwd" { vec![Member::directory(name)] } else { odd };
        let image = bare(dir.path(), odd);
        let output = run(hpcrun(["exec"]).arg(&image).args(["/busybox", "echo", "ok"]));
        if output.status.success() {
            assert_eq!(text(&output.stdout), "ok\n", "/{name}");
        } else {
            assert_fails(&output, 125, &[&format!("/{name}")]);
        }
        fs::remove_file(&image).expect("remove");
    }
    // Links that lead out of the image lead to places inside it.
    let links =
        ["etc", "tmp", "home"].map(|name| Member::symlink(name, format!("../../../outside/{name}"))).to_vec();
    let image = bare(
        dir.path(),
        [links, ["", "etc", "tmp", "home"].map(|name| Member::directory(format!("outside/{name}"))).to_vec()]
            .concat(),
    );
    let output = run(hpcrun(["exec"]).arg(&image).args(["/busybox", "ls", "/outside"]));
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(!Path::new("/outside").exists());
    // All to one place: the host's /tmp covers the mount points of the files of /etc, which are then left out.
    fs::remove_file(&image).expect("remove");
    let links = ["etc", "tmp", "home"].map(|name| Member::symlink(name, "../../../outside")).to_vec();
    let image = bare(dir.path(), [links, vec![Member::directory("outside")]].concat());
    let output = run(hpcrun(["exec"]).arg(&image).args(["/busybox", "echo", "ok"]));
    assert!(output.status.success(), "{}", text(&output.stderr));
}
