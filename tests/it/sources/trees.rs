//! Root file systems that never were an image: directories, squashfs files, SIFs.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::pipes::squashfs;
use crate::busybox_image::{assert_fails, names_in};
use crate::support::{self, hpcrun, run, scratch, stdout, text};

/// A tree with everything that a file system can hold, made by root; the ordinary user can read all of it.
pub(crate) fn odd_tree(root: &Path) {
    fs::create_dir_all(root.join("etc/deep/er")).unwrap();
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::create_dir_all(root.join("dev")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    fs::hard_link(root.join("bin/busybox"), root.join("bin/sh")).unwrap();
    fs::hard_link(root.join("bin/busybox"), root.join("a-first-name")).unwrap();
    symlink("../etc/passwd", root.join("bin/link")).unwrap();
    symlink("x".repeat(200), root.join("long-link")).unwrap();
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
    fs::write(root.join("etc/.wh.kept"), "no whiteout here").unwrap();
    fs::write(root.join("etc/empty"), "").unwrap();
    fs::write(root.join("n".repeat(255)), "long name").unwrap();
    fs::write(root.join(std::ffi::OsStr::from_bytes(b"caf\xe9 \n")), "bytes").unwrap();
    fs::write(root.join("etc/deep/er/text"), "All work and no play\n".repeat(40_000)).unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.set_len(40_000_000).unwrap();
    sparse.write_all_at(b"in the middle", 20_000_000).unwrap();
    for (args, name) in [
        (&["-m", "640"][..], "pipe"),
        (&["-m", "666"], "dev/null"),
        (&["-m", "660"], "dev/disk"),
        (&["-m", "600"], "dev/overlay-whiteout"),
    ] {
        let kind: &[&str] = match name {
            "pipe" => &["p"],
            "dev/null" => &["c", "1", "3"],
            "dev/disk" => &["b", "259", "300000"],
            _ => &["c", "0", "0"],
        };
        stdout(Command::new("mknod").args(args).arg(root.join(name)).args(kind));
    }
    stdout(Command::new("setfattr").args(["-n", "user.note", "-v", "hello"]).arg(root.join("etc")));
    stdout(Command::new("setcap").arg("cap_net_raw+ep").arg(root.join("bin/busybox")));
    chown(&root.join("etc/empty"), 4_000_000_000, 3_000_000);
    chown(&root.join("bin/link"), 7, 8);
    fs::set_permissions(root.join("bin/busybox"), PermissionsExt::from_mode(0o755)).unwrap();
    fs::set_permissions(root.join("empty"), PermissionsExt::from_mode(0o3775)).unwrap();
    for path in [root.join("etc/passwd"), root.join("empty"), root.join("bin/link")] {
        stdout(Command::new("touch").args(["-h", "-d", "@1234567890"]).arg(path));
    }
}

fn chown(path: &Path, uid: u32, gid: u32) {
    std::os::unix::fs::lchown(path, Some(uid), Some(gid)).unwrap();
}

/// Holds the tree that `unsquashfs`, as root, makes of an image file against a directory.
#[track_caller]
pub(crate) fn assert_same_tree(image: &Path, expected: &Path) {
    let root = image.with_extension("root");
    let _ = fs::remove_dir_all(&root);
    stdout(Command::new("unsquashfs").args(["-quiet", "-no-progress", "-d"]).arg(&root).arg(image));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/compare-trees");
    let output = run(Command::new(script).arg(expected).arg(&root));
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    fs::remove_dir_all(&root).unwrap();
}

#[track_caller]
fn convert(args: &[&str], source: &str, dest: &Path) -> String {
    let output = run(hpcrun(["convert"]).args(args).arg(source).arg(dest));
    assert!(output.status.success(), "{source}: {}", text(&output.stderr));
    text(&output.stderr)
}

fn convert_refused(source: &str, dir: &Path, expected: &[&str]) -> Output {
    let before = names_in(dir);
    let output = run(hpcrun(["convert", source]).arg(dir.join("no.sqsh")));
    assert_fails(&output, 125, expected);
    assert_eq!(names_in(dir), before);
    output
}

#[test]
fn a_directory_with_everything_in_it() {
    let dir = scratch();
    let (tree, image) = (dir.path().join("tree"), dir.path().join("tree.sqsh"));
    odd_tree(&tree);
    let source = format!("dir:{}", tree.display());
    let said = convert(&[], &source, &image);
    assert_same_tree(&image, &tree);
    assert!(!said.contains("warning"), "{said}");
    assert!(fs::metadata(&image).unwrap().len() < 3_000_000, "holes stay holes");

    // The same bytes whatever the number of threads, and however the names lie on the disk.
    let again = dir.path().join("again.sqsh");
    convert(&["-j", "1"], &source, &again);
    assert!(fs::read(&again).unwrap() == fs::read(&image).unwrap());
    let copy = dir.path().join("copy");
    stdout(Command::new("cp").arg("-a").arg(&tree).arg(&copy));
    convert(&["--force"], &format!("dir:{}", copy.display()), &again);
    assert!(squashfs(&again) == squashfs(&image));

    // Through a link to the directory, too, and as a squashfs again.
    symlink(&tree, dir.path().join("alias")).unwrap();
    convert(&["--force"], &format!("dir:{}", dir.path().join("alias").display()), &again);
    assert!(squashfs(&again) == squashfs(&image));
    convert(&["--force"], &format!("squashfs:{}", image.display()), &again);
    assert!(squashfs(&again) == squashfs(&image));

    // By another writer with another codec: the same tree, so the same bytes.
    let other = dir.path().join("other.sqsh");
    stdout(Command::new("mksquashfs").arg(&tree).arg(&other).args([
        "-comp",
        "gzip",
        "-quiet",
        "-no-progress",
    ]));
    convert(&["--force"], &format!("squashfs:{}", other.display()), &again);
    assert!(squashfs(&again) == squashfs(&image));
}

#[test]
fn owners_sockets_and_a_private_root() {
    let dir = scratch();
    let (tree, image) = (dir.path().join("tree"), dir.path().join("tree.sqsh"));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), "x").unwrap();
    chown(&tree.join("file"), 1234, 5678);
    let _socket = UnixListener::bind(tree.join("socket")).unwrap();
    let source = format!("dir:{}", tree.display());
    let owner = |args: &[&str]| {
        let said = convert(&[&["--force"], args].concat(), &source, &image);
        assert!(said.contains("sockets of dir:") && said.contains("left out: 1"), "{said}");
        let listed = stdout(Command::new("unsquashfs").args(["-lln"]).arg(&image));
        assert!(!listed.contains("socket"), "{listed}");
        let line = listed.lines().find(|line| line.ends_with("squashfs-root/file")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(owner(&[]), "1234/5678");
    assert_eq!(owner(&["--owner", "root"]), "0/0");
    assert_eq!(owner(&["--owner", "7:9"]), "7/9");
    let output = run(hpcrun(["convert", "--owner", "root", "tar:/none"]).arg(dir.path().join("x")));
    assert_fails(&output, 125, &["--owner is for dir: only"]);

    // What mktemp -d makes nobody else could enter.
    stdout(Command::new("chown").arg(support::TEST_USER).arg(&tree));
    fs::set_permissions(&tree, PermissionsExt::from_mode(0o700)).unwrap();
    owner(&[]);
    let listed = stdout(Command::new("unsquashfs").args(["-lln"]).arg(&image));
    assert!(listed.contains("drwxr-xr-x") && !listed.contains("drwx------"), "{listed}");
}

#[test]
fn directories_that_cannot_be_read() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("secret"), "x").unwrap();
    fs::set_permissions(tree.join("secret"), PermissionsExt::from_mode(0o600)).unwrap();
    let source = format!("dir:{}", tree.display());
    convert_refused(&source, dir.path(), &["cannot fetch the layer", "cannot read \"secret\"", "EACCES"]);
    fs::remove_file(tree.join("secret")).unwrap();
    fs::create_dir(tree.join("closed")).unwrap();
    fs::set_permissions(tree.join("closed"), PermissionsExt::from_mode(0o700)).unwrap();
    convert_refused(&source, dir.path(), &["cannot read \"closed\"", "EACCES"]);
    fs::remove_dir(tree.join("closed")).unwrap();
    convert_refused("dir:/nonexistent", dir.path(), &["ENOENT"]);
    convert_refused("dir:/etc/passwd", dir.path(), &["ENOTDIR"]);
    let mut deep = tree.clone();
    for _ in 0..257 {
        deep.push("d");
    }
    fs::create_dir_all(&deep).unwrap();
    convert_refused(&source, dir.path(), &["more than"]);
}

#[test]
fn a_file_that_changes_meanwhile() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let path = tree.join("log");
    fs::write(&path, vec![b'x'; 30_000_000]).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = File::options().write(true).open(&path).unwrap();
            while !done.load(Ordering::Relaxed) {
                file.write_all_at(b"y", 0).unwrap();
            }
        });
        let source = format!("dir:{}", tree.display());
        convert_refused(&source, dir.path(), &["\"log\" changed while it was read"]);
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn other_file_systems_are_not_part_of_a_directory() {
    let dir = scratch();
    let (tree, image) = (dir.path().join("tree"), dir.path().join("tree.sqsh"));
    fs::create_dir_all(tree.join("mnt")).unwrap();
    fs::write(tree.join("mnt/below"), "x").unwrap();
    let script = r#"mount -t tmpfs -o mode=755 tmpfs "$1/mnt" && touch "$1/mnt/above" && shift && exec "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(&tree).arg(support::binary());
    let output = run(command.args(["convert", &format!("dir:{}", tree.display())]).arg(&image));
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("\"mnt\" is on another file system: it stays empty"), "{said}");
    let listed = stdout(Command::new("unsquashfs").arg("-ls").arg(&image));
    assert!(listed.contains("squashfs-root/mnt") && !listed.contains("above"), "{listed}");
    assert!(!listed.contains("below"), "{listed}");
}

/// A SIF as Apptainer lays it out: data objects with type, name, content and, for partitions, types and architecture.
pub(crate) struct SifBuilder(Vec<(i32, &'static str, Vec<u8>, Vec<u8>)>);

impl SifBuilder {
    pub(crate) fn new() -> SifBuilder {
        SifBuilder(Vec::new())
    }

    pub(crate) fn object(mut self, data_type: i32, name: &'static str, bytes: &[u8]) -> SifBuilder {
        self.0.push((data_type, name, Vec::new(), bytes.to_vec()));
        self
    }

    pub(crate) fn partition(mut self, fs_type: i32, part_type: i32, bytes: &[u8]) -> SifBuilder {
        let architecture = if cfg!(target_arch = "aarch64") { b"04\0" } else { b"02\0" };
        let extra = [&fs_type.to_le_bytes()[..], &part_type.to_le_bytes(), architecture].concat();
        self.0.push((0x4004, "rootfs", extra, bytes.to_vec()));
        self
    }

    pub(crate) fn write(&self, path: &Path) {
        let mut header = b"#!/usr/bin/env run-singularity\n\0SIF_MAGIC\x0001\x0002\0".to_vec();
        header.extend([7; 16]);
        let (total, table_end) = (48, 128 + 48 * 585);
        let mut table = Vec::new();
        let mut data = Vec::new();
        for (index, (data_type, name, extra, bytes)) in self.0.iter().enumerate() {
            // Apptainer aligns to 4096; nothing depends on it, so ours are odd.
            data.resize(data.len() + 13, 0);
            let mut entry = data_type.to_le_bytes().to_vec();
            entry.push(1);
            entry.extend((index as u32 + 1).to_le_bytes());
            entry.extend([0; 8]);
            entry.extend((table_end as i64 + data.len() as i64).to_le_bytes());
            entry.extend((bytes.len() as i64).to_le_bytes());
            entry.resize(73, 0);
            entry.extend(name.as_bytes());
            entry.resize(201, 0);
            entry.extend(extra);
            entry.resize(585, 0);
            table.extend(entry);
            data.extend(bytes);
        }
        table.resize(48 * 585, 0);
        let used = self.0.len() as i64;
        for number in [1, 2, total - used, total, 128, 48 * 585, table_end as i64, data.len() as i64] {
            header.extend(number.to_le_bytes());
        }
        assert_eq!(header.len(), 128);
        fs::write(path, [header, table, data].concat()).unwrap();
    }
}

/// A tree as Apptainer makes it, packed by mksquashfs.
fn apptainer_squashfs(dir: &Path) -> PathBuf {
    let tree = dir.join("sif-tree");
    fs::create_dir_all(tree.join("bin")).unwrap();
    fs::create_dir_all(tree.join(".singularity.d/env")).unwrap();
    fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
    symlink("busybox", tree.join("bin/sh")).unwrap();
    symlink("busybox", tree.join("bin/echo")).unwrap();
    let script = tree.join(".singularity.d/runscript");
    fs::write(&script, "#!/bin/sh\necho run \"$@\"\n").unwrap();
    fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    let image = dir.join("sif-tree.sqsh");
    let options = ["-comp", "gzip", "-all-root", "-quiet", "-no-progress"];
    stdout(Command::new("mksquashfs").arg(&tree).arg(&image).args(options));
    image
}

#[test]
fn a_sif_runs_and_converts() {
    let dir = scratch();
    let rootfs = fs::read(apptainer_squashfs(dir.path())).unwrap();
    let sif = dir.path().join("app.sif");
    let labels =
        json!({"data": {"attributes": {"labels": {"org.example.made": "here"}}}, "type": "container"});
    SifBuilder::new()
        .object(0x4001, "", b"Bootstrap: docker\nFrom: busybox\n")
        .object(0x4006, "inspect-metadata.json", labels.to_string().as_bytes())
        .partition(1, 2, &rootfs)
        .write(&sif);
    assert_eq!(stdout(hpcrun(["exec"]).arg(&sif).args(["echo", "hello"])), "hello\n");
    assert_eq!(stdout(hpcrun(["run"]).arg(&sif).args(["a", "b c"])), "run a b c\n");
    let shown = stdout(hpcrun(["inspect"]).arg(&sif));
    for part in ["this is a SIF", "squashfs gzip", "org.example.made=here", "/.singularity.d/runscript"] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
    let image = dir.path().join("app.sqsh");
    convert(&[], &format!("sif:{}", sif.display()), &image);
    assert_same_tree(&image, &dir.path().join("sif-tree"));
    assert_eq!(stdout(hpcrun(["run"]).arg(&image).arg("x")), "run x\n");
    let shown: Value = serde_json::from_str(&stdout(hpcrun(["inspect", "--json"]).arg(&image))).unwrap();
    assert_eq!(shown["provenance"]["origin"], json!(format!("sif:{}", sif.display())));
    assert_eq!(shown["config"]["config"]["Labels"]["org.example.made"], "here");
    assert_eq!(shown["file"]["codec"], "zstd");
    let exported = run(hpcrun(["export"]).arg(&sif)).stdout;
    assert!(exported == run(hpcrun(["export"]).arg(&image)).stdout);
}

#[test]
fn sifs_that_are_of_no_use() {
    let dir = scratch();
    let sif = dir.path().join("bad.sif");
    let source = format!("sif:{}", sif.display());
    let check = |builder: SifBuilder, expected: &[&str]| {
        builder.write(&sif);
        convert_refused(&source, dir.path(), expected);
        assert_fails(&run(hpcrun(["exec"]).arg(&sif).arg("true")), 125, expected);
        assert_fails(&run(hpcrun(["inspect"]).arg(&sif)), 125, expected);
    };
    let new = SifBuilder::new;
    check(
        new().partition(2, 2, b"x"),
        &["is ext3, not squashfs", "hint: unpack it first: apptainer build --sandbox"],
    );
    check(new().partition(5, 2, b"x"), &["is an encrypted squashfs", "hint: decrypt it first"]);
    check(new().partition(1, 4, b"x"), &["no primary system partition"]);
    check(new().object(0x400a, "", b"{}"), &["OCI-SIF"]);
    check(new().partition(1, 2, b"not a squashfs"), &["no squashfs at byte"]);
    new().partition(1, 2, b"x").write(&sif);
    let whole = fs::read(&sif).unwrap();
    fs::write(&sif, &whole[..whole.len() - 1]).unwrap();
    convert_refused(&source, dir.path(), &["behind the end of the file"]);
    convert_refused(&format!("squashfs:{}", sif.display()), dir.path(), &["it is a SIF: write sif:"]);
    convert_refused("sif:/bin/busybox", dir.path(), &["it is not a SIF"]);
    convert_refused("squashfs:/bin/busybox", dir.path(), &["no squashfs at byte 0"]);
    convert_refused(&format!("sif:{}", dir.path().display()), dir.path(), &["not a regular file"]);
    convert_refused("squashfs:/nonexistent", dir.path(), &["ENOENT"]);
}

#[test]
fn an_image_file_is_written_anew_with_its_config() {
    let dir = scratch();
    let (image, again) = (crate::busybox_image::copy_in(dir.path()), dir.path().join("again.sqsh"));
    let source = format!("squashfs:{}", image.display());
    convert(&["--compression", "gzip", "--block-size", "16K"], &source, &again);
    let config = |path: &Path| {
        let shown = stdout(hpcrun(["inspect", "--json"]).arg(path));
        serde_json::from_str::<Value>(&shown).unwrap()["config"].clone()
    };
    assert_eq!(config(&again), config(&image));
    let root = dir.path().join("expected");
    stdout(Command::new("unsquashfs").args(["-quiet", "-no-progress", "-d"]).arg(&root).arg(&image));
    assert_same_tree(&again, &root);
    // Damaged in the first of its data blocks, which is compressed.
    let mut bytes = fs::read(&image).unwrap();
    // Behind the superblock and the options of zstd.
    bytes[102..1000].fill(0x55);
    fs::write(dir.path().join("bad.sqsh"), &bytes).unwrap();
    let source = format!("squashfs:{}", dir.path().join("bad.sqsh").display());
    convert_refused(&source, dir.path(), &["corrupt image"]);
}
