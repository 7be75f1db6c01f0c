//! Trees that the site has mounted, with the kernel's own squashfs: used when they are of the image, told when not.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test that fails, panics"
)]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::busybox_image::busybox;
use crate::layer_building::{Member, tar};
use crate::site_directory::{Site, set_mode};
use crate::support::{TEST_USER, binary, run, stdout, text};

const GOOD: &str = "ro,nosuid,nodev";

/// An image with the mount points of a launch, and `/word`.
fn image(site: &Site, name: &str, word: &str) -> PathBuf {
    let directories = ["proc/", "dev/", "sys/", "tmp/", "etc/"].map(Member::directory);
    let members: Vec<Member> =
        busybox().into_iter().chain(directories).chain([Member::file("word", word)]).collect();
    site.image(name, &json!({}), &[tar(&members)])
}

fn trees(image: &Path, directory: &Path) -> String {
    format!("[premounted]\ntrees = [{{ image = {image:?}, directory = {directory:?} }}]\n")
}

fn digest(image: &Path) -> String {
    let shown = stdout(crate::support::hpcrun(["inspect", "--json"]).arg(image));
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    let digest = shown["file"]["root_hash"].as_str().expect("a digest");
    digest.strip_prefix("sha256:").unwrap_or(digest).to_owned()
}

/// Launches the image; gives its word and what `-v` says of the root.
#[track_caller]
fn launched(site: &Site, image: &Path) -> (String, String) {
    let output = run(site.hpcrun(["-v", "exec"]).arg(image).args(["cat", "/word"]));
    let told = text(&output.stderr);
    assert!(output.status.success(), "{told}");
    let is_root =
        |line: &&str| line.contains(" -> / ") || line.contains("the tree at") || line.contains("no tree");
    let kept: Vec<&str> = told.lines().filter(is_root).collect();
    (text(&output.stdout), kept.join("\n"))
}

#[track_caller]
fn assert_used(site: &Site, image: &Path, word: &str, tree: &Path) {
    let (read, told) = launched(site, image);
    assert_eq!(read, word);
    assert!(told.contains(&format!("bind {} -> / ro", tree.display())), "{told}");
}

/// The launch works all the same, and says why the tree is not used.
#[track_caller]
fn assert_served(site: &Site, image: &Path, word: &str, why: &str) {
    let (read, told) = launched(site, image);
    assert_eq!(read, word);
    assert!(told.contains("squashfs ") && told.contains(" -> /") && told.contains(why), "{why}: {told}");
}

#[test]
fn a_tree_of_this_image_is_used_and_any_other_is_not() {
    let site = Site::new();
    let (own, other) = (image(&site, "own", "own"), image(&site, "other", "another word"));
    let tree = site.mounted(&own, GOOD);
    site.policy(&trees(&own, tree.path()));
    assert_used(&site, &own, "own", tree.path());
    // The tree of the wrong file.
    site.policy(&trees(&other, tree.path()));
    assert_served(&site, &other, "another word", &format!("it is of {}", own.display()));
    // The file was replaced after it was mounted.
    site.policy(&trees(&own, tree.path()));
    let replacement = site.path().join("replacement");
    fs::copy(&other, &replacement).unwrap();
    set_mode(&replacement, 0o644);
    fs::rename(&replacement, &own).unwrap();
    assert_served(&site, &own, "another word", "(deleted)");
    // Unmounted: an empty directory.
    tree.unmount();
    assert_served(&site, &own, "another word", "nothing is mounted there");
    fs::remove_dir(tree.path()).unwrap();
    assert_served(&site, &own, "another word", "no tree at");
}

#[test]
fn a_tree_to_which_a_driver_would_have_to_be_added_is_told() {
    let site = Site::new();
    let own = image(&site, "own", "own");
    let tree = site.mounted(&own, GOOD);
    site.policy(&trees(&own, tree.path()));
    let directory = crate::support::scratch();
    crate::gpu::make_node(directory.path(), "999.1");
    let launched = |gpu: &str| {
        let mut exec = site.hpcrun(["-v", "exec", gpu, "--driver-root"]);
        let output = run(exec.arg(directory.path()).arg(&own).args(["cat", "/word"]));
        assert_eq!(text(&output.stdout), "own");
        text(&output.stderr)
    };
    let told = launched("--gpu=auto");
    assert!(told.contains("is not used, as libraries of the host are added"), "{told}");
    let told = launched("--gpu=none");
    assert!(told.contains(&format!("bind {} -> / ro", tree.path().display())), "{told}");
}

#[test]
fn a_tree_in_a_directory_of_its_digest_is_found() {
    let site = Site::new();
    let (own, other) = (image(&site, "own", "own"), image(&site, "other", "another word"));
    let pattern = site.path().join("{digest}");
    site.policy(&format!("[premounted]\ndirectory = {pattern:?}\n"));
    let (read, told) = launched(&site, &own);
    assert!(read == "own" && !told.contains("tree"), "{told}");
    let tree = site.mounted_at(&own, GOOD, &digest(&own));
    assert_used(&site, &own, "own", tree.path());
    // A user's copy is the same image.
    let copy = crate::support::scratch();
    let copied = copy.path().join("copy.sqsh");
    fs::copy(&own, &copied).unwrap();
    assert_used(&site, &copied, "own", tree.path());
    // An admin's mistake.
    let wrong = site.mounted_at(&own, GOOD, &digest(&other));
    assert_served(&site, &other, "another word", &format!("it is of {}, which is another", own.display()));
    drop(wrong);
}

#[test]
fn a_tree_that_others_could_have_made_or_that_may_be_written_is_not_used() {
    let site = Site::new();
    let own = image(&site, "own", "own");
    for (options, why) in [
        ("ro,nosuid", "mounted without nodev"),
        ("ro,nodev", "mounted without nosuid"),
        ("ro", "mounted without nosuid, nodev"),
    ] {
        let tree = site.mounted(&own, options);
        site.policy(&trees(&own, tree.path()));
        assert_served(&site, &own, "own", why);
    }
    // A directory above it belongs to the user, or anybody may write in it.
    let above = site.directory("above", 0o755);
    let tree = site.mounted_at(&own, GOOD, "above/tree");
    site.policy(&trees(&own, tree.path()));
    assert_used(&site, &own, "own", tree.path());
    stdout(Command::new("chown").arg(TEST_USER).arg(&above));
    assert_served(&site, &own, "own", &format!("{} belongs to uid", above.display()));
    stdout(Command::new("chown").arg("root").arg(&above));
    set_mode(&above, 0o777);
    assert_served(&site, &own, "own", "can be written by others (mode 0777)");
    // No squashfs at all, even with the right words on the door.
    let plain = site.directory("plain", 0o755);
    fs::write(plain.join("word"), "plain").unwrap();
    stdout(Command::new("mount").args(["-t", "tmpfs", "-o", "ro,nosuid,nodev", "none"]).arg(&plain));
    site.policy(&trees(&own, &plain));
    let told = launched(&site, &own);
    stdout(Command::new("umount").arg(&plain));
    assert!(told.0 == "own" && told.1.contains("no squashfs of the kernel's"), "{told:?}");
    // A part of the tree is not the tree.
    let part = site.directory("part", 0o755);
    let inner = tree.path().join("bin");
    stdout(Command::new("mount").arg("--bind").arg(&inner).arg(&part));
    stdout(Command::new("mount").args(["-o", "remount,bind,ro,nosuid,nodev"]).arg(&part));
    set_mode(&above, 0o755);
    site.policy(&trees(&own, &part));
    let told = launched(&site, &own);
    stdout(Command::new("umount").arg(&part));
    assert!(told.0 == "own" && told.1.contains("it is of another image"), "{told:?}");
}

#[test]
fn unmounting_does_not_disturb_a_job_that_runs() {
    let site = Site::new();
    let own = image(&site, "own", "own");
    let tree = site.mounted(&own, GOOD);
    site.policy(&trees(&own, tree.path()));
    let mut command = site.hpcrun(["exec"]);
    command.arg(&own).args(["sh", "-c", "echo ready; read go; cat /word; cat /bin/busybox | wc -c"]);
    let mut job = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("spawn");
    let mut ready = [0; 6];
    std::io::Read::read_exact(job.stdout.as_mut().unwrap(), &mut ready).unwrap();
    tree.unmount();
    assert_served(&site, &own, "own", "nothing is mounted there");
    job.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let output = job.wait_with_output().unwrap();
    let length = fs::metadata("/bin/busybox").unwrap().len();
    assert_eq!(text(&output.stdout), format!("own{length}\n"));
}

#[test]
fn root_uses_them_too() {
    let site = Site::new();
    let own = image(&site, "own", "own");
    let tree = site.mounted(&own, GOOD);
    let policy = site.policy(&trees(&own, tree.path()));
    let mut command = Command::new(binary());
    command.args(["-v", "exec"]).arg(&own).args(["sh", "-c", "cat /word; id -u"]);
    let output = run(command.env("HPCRUN_POLICY", policy).current_dir("/tmp"));
    assert_eq!(text(&output.stdout), "own0\n", "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("-> / ro"), "{}", text(&output.stderr));
}

#[test]
fn the_shipped_script_mounts_and_unmounts_what_the_policy_finds() {
    let site = Site::new();
    let own = image(&site, "own", "own");
    let base = site.directory("trees", 0o755);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("site-config/premounted/hpcrun-premount");
    let premount = |verb: &str, image: &Path| {
        let mut command = Command::new("sh");
        command.arg(&script).arg(verb).arg(image);
        run(command.env("HPCRUN_PREMOUNT_DIR", &base).env("HPCRUN", binary()))
    };
    site.policy(&format!("[premounted]\ndirectory = {:?}\n", base.join("{digest}")));
    for _ in 0..2 {
        let output = premount("mount", &own);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    let tree = base.join(digest(&own));
    assert_used(&site, &own, "own", &tree);
    let output = premount("unmount", &own);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(!tree.exists());
    let (read, told) = launched(&site, &own);
    assert!(read == "own" && !told.contains("tree"), "{told}");
    // What a user could change is not for the kernel to read as root.
    for (spoil, mend) in [("chown 1 \"$1\"", "chown 0 \"$1\""), ("chmod go+w \"$1\"", "chmod go-w \"$1\"")] {
        let sh = |script: &str| stdout(Command::new("sh").args(["-c", script, "sh"]).arg(&own));
        sh(spoil);
        let output = premount("mount", &own);
        assert!(!output.status.success() && !tree.exists(), "{spoil}");
        sh(mend);
    }
    // Slurm's prolog mounts what its list names, and lets the job start whatever comes of it.
    let list = site.path().join("list");
    fs::write(&list, format!("# images\n\n/no/such/image\n{}\n", own.display())).unwrap();
    for (name, is_mounted) in [("slurm-prolog", true), ("slurm-prolog", true), ("slurm-epilog", false)] {
        let mut command = Command::new("sh");
        command.arg(script.with_file_name(name)).env("HPCRUN_PREMOUNT_LIST", &list);
        command.env("HPCRUN_PREMOUNT", &script).env("HPCRUN_PREMOUNT_DIR", &base).env("HPCRUN", binary());
        let output = run(&mut command);
        assert!(output.status.success() && text(&output.stderr).contains("/no/such/image"), "{name}");
        assert_eq!(tree.exists(), is_mounted, "{name}");
    }
    let damaged = site.path().join("damaged.sqsh");
    let mut bytes = fs::read(&own).unwrap();
    bytes[5000] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    let output = premount("mount", &damaged);
    assert!(!output.status.success() && text(&output.stderr).contains("damaged"), "{}", text(&output.stderr));
}
