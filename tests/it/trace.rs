//! Start-up profiles: recorded by `hpcrun trace`, kept in image files and beside them, and what a launch makes of them.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::busybox_image::{assert_fails, assert_nobody_holds, image, names_in};
use crate::support::{Random, TEST_USER, hpcrun, is_root, run, scratch, seed, stdout, text};

/// A copy of the image that belongs to the ordinary user.
fn own_image(dir: &Path) -> PathBuf {
    let own = dir.join("own.sqsh");
    fs::copy(image(), &own).expect("copy");
    give(&own);
    own
}

fn give(path: &Path) {
    if is_root() {
        stdout(Command::new("chown").arg(format!("{TEST_USER}:{TEST_USER}")).arg(path));
    }
}

fn trace(options: &[&str], image: &Path, command: &[&str]) -> Output {
    run(hpcrun(["trace"]).args(options).arg(image).args(command))
}

#[track_caller]
fn traced(options: &[&str], image: &Path, command: &[&str]) -> String {
    let output = trace(options, image, command);
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
    text(&output.stderr)
}

fn exec(options: &[&str], image: &Path, command: &[&str]) -> Output {
    run(hpcrun(["exec"]).args(options).arg(image).args(command))
}

fn profile(image: &Path) -> Value {
    let inspected = stdout(hpcrun(["inspect", "--json"]).arg(image));
    serde_json::from_str::<Value>(&inspected).expect("JSON")["profile"].clone()
}

fn blocks(image: &Path) -> u64 {
    profile(image)["blocks"].as_u64().expect("a number of blocks")
}

#[test]
fn a_trace_adds_a_profile_to_the_image_file() {
    let dir = scratch();
    let own = own_image(dir.path());
    fs::set_permissions(&own, fs::Permissions::from_mode(0o640)).unwrap();
    let before = fs::read(&own).unwrap();
    assert_eq!(profile(&own), Value::Null);

    let said = traced(&[], &own, &["cat", "/data/text"]);
    assert!(said.contains("own.sqsh: profile of"), "{said}");
    let first = blocks(&own);
    assert!(first > 3, "{first}");
    assert_eq!(profile(&own)["commands"], serde_json::json!(["cat /data/text"]));
    assert!(profile(&own)["bytes"].as_u64().is_some_and(|bytes| bytes > 10_000));
    let shown = stdout(hpcrun(["inspect"]).arg(&own));
    assert!(shown.contains(&format!("{first} blocks")) && shown.contains("cat /data/text"), "{shown}");

    // The file is as it was but for what follows, to us and to others.
    let metadata = fs::metadata(&own).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o640);
    let length = u64::from_le_bytes(before[40..48].try_into().unwrap()) as usize;
    let after = fs::read(&own).unwrap();
    assert!(after[..length] == before[..length] && after.len() > before.len());
    assert!(run(hpcrun(["verify"]).arg(&own)).status.success());
    stdout(Command::new("unsquashfs").arg("-s").arg(&own));
    assert_eq!(text(&exec(&[], &own, &["cat", "/data/text"]).stdout), "no program\n");
    assert_eq!(text(&exec(&["--no-prefetch"], &own, &["env"]).stdout).matches("GREETING=hello").count(), 1);

    // A second command is added to the first, the same once more adds nothing, and all can be forgotten.
    traced(&[], &own, &["cat", "/data/large"]);
    let second = blocks(&own);
    assert!(second > first, "{second}");
    let said = traced(&[], &own, &["cat", "/data/large"]);
    assert!(said.contains("(0 blocks are new)"), "{said}");
    assert_eq!(profile(&own)["commands"].as_array().map(Vec::len), Some(2));
    traced(&["--fresh"], &own, &["cat", "/data/text"]);
    assert_eq!(blocks(&own), first);
    assert_eq!(names_in(dir.path()), ["own.sqsh"]);
    assert_nobody_holds(&own);
}

#[test]
fn a_profile_of_its_own_leaves_the_image_alone() {
    let dir = scratch();
    let own = own_image(dir.path());
    let before = (fs::read(&own).unwrap(), fs::metadata(&own).unwrap().ino());
    let side = dir.path().join("own.sqsh.profile");
    let typed = side.to_str().unwrap();
    traced(&["--output", typed], &own, &["cat", "/data/text"]);
    assert!((fs::read(&own).unwrap(), fs::metadata(&own).unwrap().ino()) == before);
    let size = fs::metadata(&side).unwrap().len();
    traced(&["--output", typed], &own, &["cat", "/data/large"]);
    assert!(fs::metadata(&side).unwrap().len() > size, "it was not added to");
    for options in [&[][..], &["--profile", typed], &["--no-prefetch"]] {
        let output = exec(options, &own, &["cat", "/data/text"]);
        assert_eq!((text(&output.stdout), text(&output.stderr)), ("no program\n".to_owned(), String::new()));
    }

    // What is no profile is not replaced.
    let precious = dir.path().join("results");
    fs::write(&precious, "precious").unwrap();
    let output = trace(&["--output", precious.to_str().unwrap()], &own, &["true"]);
    assert_fails(&output, 125, &["it is no start-up profile, so it is not replaced"]);
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
    // An image that can hold none says where one can be.
    fs::write(&own, &before.0[..before.0.len() - 4096]).unwrap();
    assert_fails(&trace(&[], &own, &["true"]), 125, &["it has no hpcrun trailer", "--output "]);
    traced(&["--fresh", "--output", typed], &own, &["cat", "/data/text"]);
    assert_eq!(exec(&[], &own, &["cat", "/data/text"]).stdout, b"no program\n");
}

#[test]
fn the_commands_failure_is_not_hidden_by_its_profiles() {
    let dir = scratch();
    let own = own_image(dir.path());
    let side = dir.path().join("side");
    for (command, status) in [("exit 3", 3), ("exit 0", 125)] {
        let _ = fs::remove_file(&side);
        let script = format!("echo results >{}; {command}", side.display());
        let output = trace(&["--output", side.to_str().unwrap()], &own, &["sh", "-c", &script]);
        assert_fails(&output, status, &["it is no start-up profile, so it is not replaced"]);
    }
    for option in ["--explain", "--profile=/x", "--no-prefetch", "--share=step"] {
        let name = option.split('=').next().unwrap();
        assert_fails(&trace(&[option], &own, &["true"]), 125, &[name, "use it with 'hpcrun exec'"]);
    }
}

#[test]
fn a_profile_of_another_image_is_ignored_with_a_word() {
    let dir = scratch();
    let own = own_image(dir.path());
    let side = dir.path().join("own.sqsh.profile");
    traced(&["--output", side.to_str().unwrap()], &own, &["true"]);
    let other = crate::busybox_image::convert(
        dir.path(),
        "other",
        &serde_json::json!({"Env": ["PATH=/bin"]}),
        &[crate::layer_building::tar(&crate::busybox_image::busybox())],
    );
    let stale = dir.path().join("other.sqsh.profile");
    fs::rename(&side, &stale).unwrap();
    let why = "is not used: it was recorded with another image";
    let silent = exec(&[], &other, &["true"]);
    assert!(silent.status.success() && silent.stderr.is_empty(), "{}", text(&silent.stderr));
    let explained = exec(&["-v"], &other, &["true"]);
    assert!(text(&explained.stderr).contains(why), "{}", text(&explained.stderr));
    // Who names one wants to know without asking.
    let named = exec(&["--profile", stale.to_str().unwrap()], &other, &["echo", "on"]);
    assert!(named.stdout == b"on\n" && text(&named.stderr).contains(why), "{}", text(&named.stderr));
    let missing = exec(&["--profile", "/nowhere/profile"], &other, &["true"]);
    assert_fails(&missing, 125, &["cannot read /nowhere/profile"]);
}

#[test]
fn the_status_is_the_commands_and_a_launch_that_fails_leaves_no_profile() {
    let dir = scratch();
    let own = own_image(dir.path());
    let output = trace(&[], &own, &["sh", "-c", "exit 42"]);
    assert_eq!(output.status.code(), Some(42));
    let recorded = blocks(&own);
    let output = trace(&[], &own, &["sh", "-c", "kill -9 $$"]);
    assert_eq!(output.status.code(), Some(137));
    for (command, status) in [("nosuch", 127), ("/data/text", 126)] {
        assert_fails(&trace(&[], &own, &[command]), status, &[command]);
        assert!(!profile(&own)["commands"].to_string().contains(command));
    }
    assert!(blocks(&own) >= recorded);
}

#[test]
fn what_cannot_be_replaced_is_refused_before_the_command_runs() {
    let dir = scratch();
    let own = own_image(dir.path());
    let witness = dir.path().join("ran");
    let touch = format!("{}:/mnt", dir.path().display());
    let script = ["sh", "-c", "touch /mnt/ran"];
    let refuse = |words: &[&str]| {
        let output = trace(&["--bind", &touch], &own, &script);
        assert_fails(&output, 125, &[words, &["own.sqsh.profile"]].concat());
        assert!(!witness.exists());
    };
    fs::set_permissions(&own, fs::Permissions::from_mode(0o444)).unwrap();
    refuse(&["it is write-protected"]);
    fs::set_permissions(&own, fs::Permissions::from_mode(0o644)).unwrap();
    if is_root() {
        stdout(Command::new("chown").arg("root").arg(&own));
        refuse(&["it belongs to user 0"]);
        give(&own);
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        refuse(&["cannot create"]);
    }
}

#[test]
fn a_full_disk_leaves_the_image_as_it_was() {
    assert!(is_root(), "mounts a small file system: run this test as root");
    let dir = scratch();
    let disk = dir.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let size = fs::metadata(image()).unwrap().len();
    stdout(
        Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("mode=777,size={}", size * 3 / 2), "tmpfs"])
            .arg(&disk),
    );
    let own = own_image(&disk);
    let before = fs::read(&own).unwrap();
    let output = trace(&[], &own, &["true"]);
    let (after, names) = (fs::read(&own).unwrap(), names_in(&disk));
    let side = disk.join("own.sqsh.profile");
    let beside = trace(&["--output", side.to_str().unwrap()], &own, &["true"]);
    assert_nobody_holds(&own);
    stdout(Command::new("umount").arg(&disk));
    assert_fails(&output, 125, &["No space left on device"]);
    assert!(before == after && names == ["own.sqsh"], "{names:?}");
    assert!(beside.status.success(), "{}", text(&beside.stderr));
}

#[test]
fn recording_ends_by_itself_or_by_a_signal() {
    let dir = scratch();
    let own = own_image(dir.path());
    // The file is read after the recording is over; the job goes on to its end.
    let script = "sleep 3; cat /data/large >/dev/null; exit 5";
    let begun = Instant::now();
    let output = trace(&["--seconds", "1"], &own, &["sh", "-c", script]);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    assert!(begun.elapsed() >= Duration::from_secs(3));
    let few = blocks(&own);
    traced(&[], &own, &["cat", "/data/large"]);
    assert!(blocks(&own) > few + 20);

    let mut command = hpcrun(["trace", "--fresh"]);
    let child = command.arg(&own).args(["sleep", "30"]).spawn().expect("spawn");
    std::thread::sleep(Duration::from_millis(1500));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(profile(&own)["commands"], serde_json::json!(["sleep 30"]));
    assert_nobody_holds(&own);
}

/// Bytes of a file in the page cache.
fn cached(file: &Path) -> u64 {
    let shown =
        stdout(Command::new("fincore").args(["--bytes", "--noheadings", "--output", "RES"]).arg(file));
    shown.trim().parse().expect("a number")
}

/// Has the kernel forget the file's pages.
fn forget(file: &Path) {
    let file = fs::File::open(file).unwrap();
    file.sync_all().unwrap();
    let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
    nix::fcntl::posix_fadvise(&file, 0, 0, advice).unwrap();
    assert!(file.as_raw_fd() >= 0);
}

#[test]
fn a_launch_reads_its_profile_ahead() {
    let dir = scratch();
    // Large files that nothing but their own reading touches.
    let mut random = Random::new(5);
    let content: Vec<u8> = (0..8 << 20).map(|_| (random.next() >> 40) as u8).collect();
    let mut members = crate::busybox_image::busybox();
    members.push(crate::layer_building::Member::file("large", content));
    let tars = [crate::layer_building::tar(&members)];
    let own =
        crate::busybox_image::convert(dir.path(), "own", &serde_json::json!({"Env": ["PATH=/bin"]}), &tars);
    let side = dir.path().join("own.sqsh.profile");
    traced(&["--output", side.to_str().unwrap()], &own, &["cat", "/large"]);
    let most = 7 << 20;
    let after = |options: &[&str]| {
        assert_nobody_holds(&own);
        forget(&own);
        assert!(cached(&own) < most, "{} bytes stay in the page cache of this machine", cached(&own));
        assert!(exec(options, &own, &["sleep", "1"]).status.success());
        cached(&own)
    };
    let without = after(&["--no-prefetch"]);
    assert!(without < most, "{without}");
    // Whoever drops the caches of the whole machine meanwhile is let pass.
    let is_read_ahead = || (0..5).any(|_| after(&[]) > most);
    assert!(is_read_ahead());
    // The same profile out of the image file.
    fs::remove_file(&side).unwrap();
    give(&own);
    traced(&[], &own, &["cat", "/large"]);
    assert!(is_read_ahead());
}

#[test]
fn whatever_a_profile_says_the_job_is_the_same() {
    let dir = scratch();
    let own = own_image(dir.path());
    let side = dir.path().join("own.sqsh.profile");
    traced(&["--output", side.to_str().unwrap()], &own, &["cat", "/data/large"]);
    let good = fs::read(&side).unwrap();
    let expected = stdout(hpcrun(["exec", "--no-prefetch"]).arg(&own).args(["find", "/data", "-type", "f"]));
    let mut random = Random::new(seed());
    for _ in 0..15 {
        let mut bad = good.clone();
        let list = 96 + u32::from_le_bytes(bad[24..28].try_into().unwrap()) as usize;
        for _ in 0..200 {
            let at = list + random.below((bad.len() - list) as u64) as usize;
            bad[at] = random.next() as u8;
        }
        use sha2::Digest as _;
        let digest = sha2::Sha256::digest(&bad[96..]);
        bad[64..96].copy_from_slice(&digest);
        fs::write(&side, bad).unwrap();
        assert_eq!(stdout(hpcrun(["exec"]).arg(&own).args(["find", "/data", "-type", "f"])), expected);
        let sum = stdout(hpcrun(["exec"]).arg(&own).args(["wc", "-c", "/data/large"]));
        assert!(sum.starts_with(&crate::busybox_image::LARGE_BYTES.to_string()), "{sum}");
    }
    assert_nobody_holds(&own);
}
