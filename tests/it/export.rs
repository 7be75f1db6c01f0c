//! `hpcrun export`: what other tools read of it, and that converting it again gives the same image.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::busybox_image::{assert_fails, assert_nobody_holds, image, names_in};
use crate::layer_building::{Member, tar};
use crate::sources::pipes::squashfs;
use crate::sources::trees::{assert_same_tree, odd_tree};
use crate::support::{self, Random, hpcrun, run, scratch, stdout, text};

/// An image file of [`odd_tree`], without what no layer can hold if `layerable`.
fn odd_image(dir: &Path, layerable: bool) -> std::path::PathBuf {
    let (tree, image) = (dir.join("tree"), dir.join("odd.sqsh"));
    odd_tree(&tree);
    if layerable {
        fs::remove_file(tree.join("etc/.wh.kept")).unwrap();
        fs::remove_file(tree.join("dev/overlay-whiteout")).unwrap();
    }
    stdout(hpcrun(["convert"]).arg(format!("dir:{}", tree.display())).arg(&image));
    image
}

#[test]
fn gnu_tar_and_python_read_the_tar() {
    let dir = scratch();
    let image = odd_image(dir.path(), false);
    let exported = dir.path().join("odd.tar");
    stdout(hpcrun(["export"]).arg(&image).arg("-o").arg(&exported));
    let (unpacked, script) =
        (dir.path().join("gnu"), concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/compare-trees"));
    fs::create_dir(&unpacked).unwrap();
    let mut tar = Command::new("tar");
    tar.args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-p", "-C"]).arg(&unpacked);
    stdout(tar.arg("-xf").arg(&exported));
    stdout(Command::new(script).arg(dir.path().join("tree")).arg(&unpacked));

    let program = r#"
import os, sys, tarfile
root, facts = sys.argv[2], []
for member in tarfile.open(sys.argv[1], errors="surrogateescape"):
    path = os.path.join(root, member.name)
    status = os.lstat(path)
    kind = {0o040000: "5", 0o100000: "0", 0o120000: "2", 0o020000: "3", 0o060000: "4", 0o010000: "6"}[status.st_mode & 0o170000]
    flag = member.type.decode()
    assert flag == kind or flag == "1" and status.st_nlink > 1, (member.name, flag, kind)
    assert (member.uid, member.gid, member.mtime) == (status.st_uid, status.st_gid, int(status.st_mtime)), member.name
    if kind != "2" and flag != "1":
        assert member.mode == status.st_mode & 0o7777, member.name
    if flag == "0":
        assert member.size == status.st_size, member.name
    facts.append(member.name)
assert len(set(facts)) == len(facts)
print(len(facts))
"#;
    let count =
        stdout(Command::new("python3").args(["-c", program]).arg(&exported).arg(dir.path().join("tree")));
    let found = stdout(Command::new("find").arg(dir.path().join("tree")).args(["-printf", "."]));
    assert_eq!(count.trim(), found.len().to_string());
}

#[test]
fn a_tar_converts_to_the_same_squashfs() {
    let dir = scratch();
    let image = odd_image(dir.path(), false);
    let again = dir.path().join("again.sqsh");
    let mut tars = Vec::new();
    for compression in ["none", "gzip", "zstd"] {
        let exported = dir.path().join(format!("odd.tar.{compression}"));
        let options = ["--compression", compression, "-o"];
        stdout(hpcrun(["export"]).arg(&image).args(options).arg(&exported));
        stdout(hpcrun(["convert", "--force"]).arg(format!("tar:{}", exported.display())).arg(&again));
        assert!(squashfs(&again) == squashfs(&image), "{compression}");
        tars.push(fs::read(&exported).unwrap());
        stdout(hpcrun(["export", "--force"]).arg(&image).args(["-j", "1"]).args(options).arg(&exported));
        assert!(fs::read(&exported).unwrap() == tars[tars.len() - 1], "{compression} depends on the threads");
    }
    // To standard output the same, and the same of what it was converted to.
    assert!(run(hpcrun(["export"]).arg(&image)).stdout == tars[0]);
    assert!(run(hpcrun(["export", "--output", "-"]).arg(&again)).stdout == tars[0]);
    assert!(tars[1].len() < tars[0].len() / 2 && tars[2].len() < tars[0].len() / 2);
    let unpacked =
        |program: &str, name: &str| run(Command::new(program).arg("-dc").arg(dir.path().join(name))).stdout;
    assert!(unpacked("gzip", "odd.tar.gzip") == tars[0]);
    assert!(unpacked("zstd", "odd.tar.zstd") == tars[0]);
}

#[test]
fn an_oci_archive_is_an_image_for_others() {
    let dir = scratch();
    let image = odd_image(dir.path(), true);
    let exported = dir.path().join("odd.oci.tar");
    for compression in ["gzip", "zstd", "none"] {
        let options =
            ["--format", "oci", "--force", "--name", "example/odd:1", "--compression", compression, "-o"];
        stdout(hpcrun(["export"]).arg(&image).args(options).arg(&exported));
        let source = format!("oci-archive:{}", exported.display());
        let shown = stdout(Command::new("skopeo").args([
            "inspect",
            "--config",
            "--raw",
            &format!("{source}:example/odd:1"),
        ]));
        let config: Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"].as_array().map(Vec::len), Some(1));
        let layout = dir.path().join("layout");
        let _ = fs::remove_dir_all(&layout);
        stdout(
            Command::new("skopeo").args(["copy", "-q", &source]).arg(format!("oci:{}:odd", layout.display())),
        );
        if compression != "zstd" {
            // This umoci knows no zstd.
            let bundle = dir.path().join("bundle");
            let _ = fs::remove_dir_all(&bundle);
            let of = format!("{}:odd", layout.display());
            stdout(Command::new("umoci").args(["unpack", "--image", &of]).arg(&bundle));
            let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/compare-trees");
            stdout(Command::new(script).arg(dir.path().join("tree")).arg(bundle.join("rootfs")));
        }
        let again = dir.path().join("again.sqsh");
        stdout(hpcrun(["convert", "--force", &source]).arg(&again));
        assert_same_tree(&again, &dir.path().join("tree"));
        let docker = format!("docker-archive:{}:example/odd:1", exported.display());
        let shown = stdout(Command::new("skopeo").args(["inspect", "--raw", &docker]));
        assert!(shown.contains("layers"), "{shown}");
        let through_docker = dir.path().join("docker.sqsh");
        stdout(hpcrun(["convert", "--force", &docker]).arg(&through_docker));
        assert!(squashfs(&through_docker) == squashfs(&again));
    }
}

#[test]
fn an_oci_layout_takes_several_images() {
    let dir = scratch();
    let odd = odd_image(dir.path(), true);
    let layout = dir.path().join("layout");
    let export = |image: &Path, name: &str, more: &[&str]| {
        let mut command = hpcrun(["export", "--format", "oci-dir", "--name", name]);
        stdout(command.args(more).arg(image).arg("-o").arg(&layout));
    };
    let convert = |source: String| {
        let to = dir.path().join("again.sqsh");
        stdout(hpcrun(["convert", "--force", &source]).arg(&to));
        squashfs(&to)
    };
    let through_archive = |image: &Path| {
        let archive = dir.path().join("archive.tar");
        stdout(hpcrun(["export", "--force", "--format", "oci"]).arg(image).arg("-o").arg(&archive));
        convert(format!("oci-archive:{}", archive.display()))
    };
    export(&odd, "example/odd:1", &[]);
    // The only image needs no name; skopeo and umoci read what they would have written.
    let odd_again = through_archive(&odd);
    assert!(convert(format!("oci:{}", layout.display())) == odd_again);
    export(image(), "small:2", &["--compression", "zstd"]);
    for (name, expected) in [("example/odd:1", &odd_again), ("small:2", &through_archive(image()))] {
        let source = format!("oci:{}:{name}", layout.display());
        stdout(Command::new("skopeo").args(["inspect", "--config", &source]));
        assert!(convert(source) == *expected, "{name}");
    }
    let bundle = dir.path().join("bundle");
    let of = format!("{}:example/odd:1", layout.display());
    let copied = format!("oci:{}:odd", dir.path().join("copy").display());
    stdout(Command::new("skopeo").args(["copy", "-q", &format!("oci:{of}"), &copied]));
    let of = copied.trim_start_matches("oci:");
    stdout(Command::new("umoci").args(["unpack", "--image", of]).arg(&bundle));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/compare-trees");
    stdout(Command::new(script).arg(dir.path().join("tree")).arg(bundle.join("rootfs")));

    // The same name is the other image from then on; the same image again changes nothing.
    let index = || fs::read(layout.join("index.json")).unwrap();
    export(image(), "example/odd:1", &[]);
    let listed: Value = serde_json::from_slice(&index()).unwrap();
    assert_eq!(listed["manifests"].as_array().map(Vec::len), Some(2));
    assert!(convert(format!("oci:{}:example/odd:1", layout.display())) != odd_again);
    let (before, blobs) = (index(), names_in(&layout.join("blobs/sha256")));
    export(image(), "example/odd:1", &[]);
    assert_eq!((index(), names_in(&layout.join("blobs/sha256"))), (before, blobs));
    // One that skopeo wrote is added to as well.
    let others = format!("oci:{}:others", dir.path().join("others").display());
    stdout(Command::new("skopeo").args([
        "copy",
        "-q",
        &format!("oci:{}:small:2", layout.display()),
        &others,
    ]));
    support::stdout(Command::new("chmod").args(["-R", "a+rwX"]).arg(dir.path().join("others")));
    let output = dir.path().join("others");
    stdout(hpcrun(["export", "--format", "oci-dir", "--name", "own"]).arg(&odd).arg("-o").arg(&output));
    stdout(Command::new("skopeo").args(["inspect", "--raw", &others]));
    assert!(convert(format!("oci:{}:own", output.display())) == odd_again);
}

#[test]
fn what_an_oci_layout_refuses() {
    let dir = scratch();
    let export = |to: &Path| run(hpcrun(["export", "--format", "oci-dir"]).arg(image()).arg("-o").arg(to));
    let none = run(hpcrun(["export", "--format", "oci-dir"]).arg(image()));
    assert_fails(&none, 125, &["an OCI layout is a directory", "--output DIRECTORY"]);
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("precious"), "x").unwrap();
    assert_fails(&export(&home), 125, &["cannot add an image to", "neither empty nor an OCI layout"]);
    fs::write(home.join("index.json"), "x").unwrap();
    assert_fails(&export(&home), 125, &["its index.json makes no sense"]);
    fs::write(home.join("index.json"), "{}").unwrap();
    assert_fails(&export(&home), 125, &["its index.json lists no manifests"]);
    assert_eq!(names_in(&home), ["index.json", "precious"]);
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    assert_fails(&export(&file), 125, &["index.json", "(ENOTDIR)"]);
    let mut limited = Command::new("prlimit");
    limited.args(["--fsize=200000", "--"]).arg(support::binary());
    limited.args(["export", "--format", "oci-dir", "-o"]).arg(dir.path().join("cut"));
    assert_fails(&run(limited.arg(image())), 125, &["cannot write", "EFBIG"]);
    assert_eq!(names_in(dir.path()), ["file", "home"]);
    // What a killed export left is no obstacle.
    let left = dir.path().join("left");
    fs::create_dir_all(left.join("blobs/sha256")).unwrap();
    fs::write(left.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    support::stdout(Command::new("chmod").args(["-R", "a+rwX"]).arg(&left));
    support::stdout(&mut {
        let mut command = hpcrun(["export", "--format", "oci-dir", "-o"]);
        command.arg(&left).arg(image());
        command
    });
    assert!(left.join("index.json").exists());
}

#[test]
fn converting_an_exported_image_gives_the_same_bytes() {
    let dir = scratch();
    let path = |name: &str| dir.path().join(name);
    let export = |from: &Path, to: &Path| {
        stdout(hpcrun(["export", "--force", "--format", "oci"]).arg(from).arg("-o").arg(to));
    };
    let convert = |from: &Path, to: &Path| {
        stdout(hpcrun(["convert", "--force"]).arg(format!("oci-archive:{}", from.display())).arg(to));
    };
    // An image of several layers whose files are in any order: its tree is kept, and from then on its bytes.
    let mut random = Random::new(support::seed());
    let mut members = vec![Member::directory("d"), Member::directory("b")];
    for number in 0..60 {
        let size = [0, 10, 5000, 140_000, 400_000][random.below(5) as usize];
        let data: Vec<u8> = (0..size).map(|_| (random.next() % 7) as u8).collect();
        let directory = ["", "d/", "b/", "new/"][random.below(4) as usize];
        members.push(Member::file(format!("{directory}{}-{number}", random.below(100)), data));
    }
    let upper =
        [Member::file("d/.wh.none", ""), Member::hard_link("zz", "new-link"), Member::file("new-link", "x")];
    let tars = [tar(&members), tar(&upper)];
    let config = serde_json::json!({"Env": ["A=1"], "Cmd": ["sh"], "WorkingDir": "/d"});
    let first = crate::busybox_image::convert(dir.path(), "first", &config, &tars);
    export(&first, &path("1.tar"));
    convert(&path("1.tar"), &path("second.sqsh"));
    export(&path("second.sqsh"), &path("2.tar"));
    convert(&path("2.tar"), &path("third.sqsh"));
    let root = path("expected");
    stdout(Command::new("unsquashfs").args(["-quiet", "-no-progress", "-d"]).arg(&root).arg(&first));
    assert_same_tree(&path("second.sqsh"), &root);
    assert!(squashfs(&path("second.sqsh")) == squashfs(&path("third.sqsh")));
    let section = |image: &Path, key: &str| {
        let shown = stdout(hpcrun(["inspect", "--json"]).arg(image));
        serde_json::from_str::<Value>(&shown).unwrap()["config"][key].clone()
    };
    assert_eq!(section(&path("third.sqsh"), "config"), section(&first, "config"));
    assert_eq!(section(&path("third.sqsh"), "created"), section(&first, "created"));

    // One layer whose entries come in the order of their names: the same bytes at once.
    let tars = [tar(&[
        Member::directory("a/"),
        Member::file("a/1", "one"),
        Member::file("a/2", vec![7; 300_000]),
        Member::hard_link("b", "a/1"),
        Member::symlink("c", "a"),
        Member::file("d", "last"),
    ])];
    let canonical = crate::busybox_image::convert(dir.path(), "canonical", &config, &tars);
    export(&canonical, &path("1.tar"));
    convert(&path("1.tar"), &path("again.sqsh"));
    assert!(squashfs(&path("again.sqsh")) == squashfs(&canonical));
    // A tar says nothing of the image's creation, which the superblock holds in bytes 8 to 11.
    let mut expected = squashfs(&canonical);
    assert_ne!(expected[8..12], [0; 4]);
    expected[8..12].fill(0);
    stdout(hpcrun(["export", "--force"]).arg(&canonical).arg("-o").arg(path("1.tar")));
    stdout(
        hpcrun(["convert", "--force"])
            .arg(format!("tar:{}", path("1.tar").display()))
            .arg(path("again.sqsh")),
    );
    assert!(squashfs(&path("again.sqsh")) == expected);
}

#[test]
fn what_an_export_refuses() {
    let dir = scratch();
    let dest = dir.path().join("out");
    let export = |args: &[&str]| run(hpcrun(["export"]).arg(image()).args(args));
    let out = dest.display().to_string();
    assert_fails(&export(&["--format", "oci"]), 125, &["cannot be written to a pipe", "--output FILE"]);
    assert_fails(&export(&["--format", "oci", "-o", "-"]), 125, &["cannot be written to a pipe"]);
    assert_fails(&export(&["--level", "3"]), 125, &["nothing is compressed"]);
    assert_fails(&export(&["--compression", "gzip", "--level", "13", "-o", &out]), 125, &["1 to 12"]);
    assert_fails(&export(&["--compression", "zstd", "--level", "0", "-o", &out]), 125, &["1 to 22"]);
    assert_fails(&export(&["--format", "oci", "--name", "a b", "-o", &out]), 125, &["no name of an image"]);
    assert_fails(&run(hpcrun(["export", "/nonexistent", "-o", &out]).arg("-q")), 125, &["ENOENT"]);
    fs::write(&dest, "precious").unwrap();
    assert_fails(&export(&["-o", &out]), 125, &["already exists", "--force"]);
    assert_eq!(fs::read(&dest).unwrap(), b"precious");
    fs::remove_file(&dest).unwrap();
    let command = format!("{} export {}", support::binary().display(), image().display());
    let output = run(Command::new("script").args(["-qec", &command, "/dev/null"]).stdin(Stdio::null()));
    assert!(text(&output.stdout).contains("a tar is not for a terminal"), "{}", text(&output.stdout));

    let odd = odd_image(dir.path(), false);
    let output = run(hpcrun(["export", "--format", "oci", "-o", &out]).arg(&odd));
    assert_fails(
        &output,
        125,
        &["would be a whiteout in a layer", "hint: no layer can hold such a file: use --format tar"],
    );
    fs::write(dir.path().join("text"), "x".repeat(5000)).unwrap();
    let output = run(hpcrun(["export", "-o", &out]).arg(dir.path().join("text")));
    assert_fails(&output, 125, &["no squashfs at byte 0"]);
    // Damaged in the first of its data blocks, which is compressed.
    let mut bytes = fs::read(image()).unwrap();
    // Behind the superblock and the options of zstd.
    bytes[102..1000].fill(0x55);
    fs::write(dir.path().join("bad.sqsh"), bytes).unwrap();
    let output = run(hpcrun(["export", "-o", &out]).arg(dir.path().join("bad.sqsh")));
    assert_fails(&output, 125, &["cannot export the image", "cannot read", "corrupt image"]);
    let mut names = names_in(dir.path());
    names.retain(|name| name != "text" && name != "bad.sqsh" && name != "tree" && name != "odd.sqsh");
    assert_eq!(names, [""; 0]);
}

#[test]
fn full_disks_closed_pipes_and_signals() {
    let dir = scratch();
    let out = dir.path().join("out.tar");
    for format in ["tar", "oci"] {
        let mut limited = Command::new("prlimit");
        limited
            .args(["--fsize=200000", "--"])
            .arg(support::binary())
            .args(["export", "--format", format, "-o"]);
        assert_fails(&run(limited.arg(&out).arg(image())), 125, &["cannot write", "EFBIG"]);
        assert_eq!(names_in(dir.path()), [""; 0]);
    }
    let full = File::options().write(true).open("/dev/full").unwrap();
    assert_fails(&run(hpcrun(["export"]).arg(image()).stdout(full)), 125, &["cannot write", "ENOSPC"]);

    let mut child =
        hpcrun(["export"]).arg(image()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdout.take().unwrap();
    pipe.read_exact(&mut [0; 1000]).unwrap();
    drop(pipe);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(141), ""));

    // Stopped by a signal while it writes: a big image makes sure that it does.
    let big = dir.path().join("big");
    fs::create_dir(&big).unwrap();
    let mut random = Random::new(1);
    let noise: Vec<u8> = (0..40_000_000u32).map(|_| random.next() as u8).collect();
    fs::write(big.join("noise"), noise).unwrap();
    let image = dir.path().join("big.sqsh");
    stdout(hpcrun(["convert"]).arg(format!("dir:{}", big.display())).arg(&image));
    let options = ["--format", "oci", "--compression", "gzip", "--level", "12", "-j", "1", "-o"];
    let mut child =
        Command::new(support::binary()).arg("export").args(options).arg(&out).arg(&image).spawn().unwrap();
    while !Path::new(&format!("/proc/{}/fd/3", child.id())).exists() {
        assert_eq!(child.try_wait().unwrap(), None, "it ended before it began");
        std::thread::yield_now();
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGINT)
        .unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGINT));
    assert_eq!(names_in(dir.path()), ["big", "big.sqsh"]);
    assert_nobody_holds(&image);
}
