//! Copies of image files on the node: made while a job runs, used by later ones, never wrong, never in the way.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test that fails, panics"
)]

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::bad_input::in_private_mounts;
use crate::busybox_image::{LARGE_BYTES, assert_nobody_holds, busybox, holders, image, names_in};
use crate::layer_building::{Member, tar};
use crate::site_directory::{Site, set_mode};
use crate::support::{Random, TEST_USER, binary, run, seed, stdout, text};

/// A user that no other test has.
const STRANGER: &str = "54321";

/// A site with a cache for everybody.
struct Cache {
    site: Site,
    directory: PathBuf,
}

impl Cache {
    fn new() -> Cache {
        let cache = Cache::of("");
        cache.site.directory("local", 0o1777);
        cache
    }

    /// With more rules, and without its directory.
    fn of(rules: &str) -> Cache {
        let site = Site::new();
        let directory = site.path().join("local");
        site.policy(&format!("[store]\nnode_cache = {directory:?}\nnode_cache_min = 1\n{rules}"));
        Cache { site, directory }
    }

    fn own(&self) -> PathBuf {
        self.directory.join(format!("hpcrun-{}", user()))
    }

    /// The keys of the user's whole copies.
    fn keys(&self) -> Vec<String> {
        let names = if self.own().exists() { names_in(&self.own()) } else { Vec::new() };
        names.into_iter().filter(|name| name.len() == 64).collect()
    }

    /// A job that reads `/data/large` when it is told to.
    fn job(&self, image: &Path) -> Job {
        let mut command = self.site.hpcrun(["-v", "exec"]);
        command.arg(image).args(["sh", "-c", "echo ready; read go; cat /data/large; read end"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("spawn");
        let mut ready = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut ready).expect("ready");
        Job(child)
    }

    /// Has a copy made of the image; gives its key.
    fn copied(&self, image: &Path) -> String {
        let before = self.keys();
        let job = self.job(image);
        let key = self.wait_for_copy(&before);
        job.finish();
        key
    }

    /// Removes the user's copies; a server that is about to end may still be at work on one.
    fn forget(&self) {
        wait_for("the end of the user's directory", || {
            let _ = fs::remove_dir_all(self.own());
            !self.own().exists()
        });
    }

    /// Waits until a copy is complete and read.
    #[track_caller]
    fn wait_for_copy(&self, before: &[String]) -> String {
        let mut found = None;
        wait_for("a copy that is read", || {
            found = self.keys().into_iter().find(|key| !before.contains(key));
            found.as_ref().is_some_and(|key| is_read(&self.own().join(key)))
        });
        found.unwrap()
    }

    /// Launches the image; gives what `-v` says of the copy.
    #[track_caller]
    fn launched(&self, image: &Path) -> String {
        let output = run(self.site.hpcrun(["-v", "exec"]).arg(image).args(["cat", "/data/large"]));
        let told = text(&output.stderr);
        assert!(output.status.success(), "{told}");
        assert!(output.stdout == large(), "wrong bytes: {told}");
        about_copies(&told)
    }
}

struct Job(Child);

impl Job {
    /// Lets it read and end; gives what it said.
    #[track_caller]
    fn finish(mut self) -> String {
        let mut stdin = self.0.stdin.take().unwrap();
        stdin.write_all(b"go\n").unwrap();
        let mut read = vec![0; LARGE_BYTES];
        self.0.stdout.as_mut().unwrap().read_exact(&mut read).expect("all of the file");
        assert!(read == large(), "wrong bytes");
        drop(stdin);
        let output = self.0.wait_with_output().expect("wait");
        about_copies(&text(&output.stderr))
    }
}

/// The lines of `-v` about the cache.
fn about_copies(told: &str) -> String {
    let kept = told.lines().filter(|line| line.contains("the image ") && !line.contains(" -> "));
    kept.map(|line| line.trim_start_matches("hpcrun: ")).collect::<Vec<_>>().join("\n")
}

fn user() -> u32 {
    static UID: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    *UID.get_or_init(|| stdout(Command::new("id").args(["-u", TEST_USER])).trim().parse().expect("a uid"))
}

/// Whether some process keeps `copy` from being removed.
fn is_read(copy: &Path) -> bool {
    let output = run(Command::new("flock").args(["-n", "-x"]).arg(copy).arg("true"));
    output.status.code() == Some(1)
}

/// What `/data/large` holds.
fn large() -> Vec<u8> {
    (0..LARGE_BYTES).map(|at| ((at * 7919) >> 8) as u8).collect()
}

#[track_caller]
fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not within half a minute");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Wrong bytes over all that an image's data takes, its size and its times as they were.
fn spoil(file: &Path) {
    let metadata = fs::metadata(file).unwrap();
    let opened = File::options().write(true).open(file).unwrap();
    opened.write_all_at(&vec![0x55; usize::try_from(metadata.len() / 2).unwrap()], 4096).unwrap();
    opened.set_modified(metadata.modified().unwrap()).unwrap();
}

#[test]
fn the_first_job_makes_a_copy_and_reads_it_as_later_ones_do() {
    let cache = Cache::new();
    let image = cache.site.copy("image.sqsh");
    let job = cache.job(&image);
    let key = cache.wait_for_copy(&[]);
    let copy = cache.own().join(&key);
    assert!(fs::read(&copy).unwrap() == fs::read(&image).unwrap());
    let metadata = fs::metadata(&copy).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (0o444, user()));
    assert_eq!(fs::metadata(cache.own()).unwrap().mode() & 0o7777, 0o711);
    assert_eq!(names_in(&cache.own()), [key.clone(), format!("{key}.used")]);
    // What the job has not read yet now comes from the copy.
    let original = fs::read(&image).unwrap();
    spoil(&image);
    assert_eq!(job.finish(), format!("copy the image to {} while the job runs", cache.directory.display()));
    fs::write(&image, original).unwrap();
    let reads = format!("read the image from {}", copy.display());
    assert_eq!(cache.launched(&image), reads);
    // The same content under another name needs no other copy.
    let other = cache.site.copy("other.sqsh");
    assert_eq!(cache.launched(&other), reads);
    let job = cache.job(&image);
    fs::remove_file(&copy).unwrap();
    job.finish();
    assert_nobody_holds(&image);
    assert_nobody_holds(&copy);
}

#[test]
fn a_replaced_image_is_never_read_from_an_old_copy() {
    let cache = Cache::new();
    let word = |name: &str, word: &str| {
        let members: Vec<Member> = busybox().into_iter().chain([Member::file("word", word)]).collect();
        cache.site.image(name, &json!({}), &[tar(&members)])
    };
    let (image, second) = (word("image", "first"), word("second", "second"));
    let foreign = |word: &str| {
        let tree = crate::support::scratch();
        fs::create_dir(tree.path().join("bin")).unwrap();
        for name in ["cat", "sh", "busybox", "sleep"] {
            fs::copy("/bin/busybox", tree.path().join("bin").join(name)).unwrap();
        }
        fs::write(tree.path().join("word"), word).unwrap();
        let made = cache.site.path().join("foreign.new");
        stdout(Command::new("mksquashfs").arg(tree.path()).arg(&made).args([
            "-noappend",
            "-quiet",
            "-no-progress",
        ]));
        set_mode(&made, 0o644);
        made
    };
    let bare = cache.site.path().join("foreign.sqsh");
    fs::rename(foreign("first"), &bare).unwrap();
    let read = |image: &Path| {
        let before = cache.keys();
        let mut command = cache.site.hpcrun(["exec"]);
        command.arg(image).args(["sh", "-c", "cat /word; echo; read end"]);
        let mut job = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("spawn");
        let mut line = [0; 7];
        let length = job.stdout.as_mut().unwrap().read(&mut line).unwrap();
        if cache.keys() == before {
            // A new image makes a new copy, one that is known none.
            wait_for("a copy", || cache.keys() != before || is_any_read(&cache, &before));
        }
        drop(job.stdin.take());
        job.wait().unwrap();
        text(&line[..length]).trim().to_owned()
    };
    for (path, next) in [(&image, &second), (&bare, &cache.site.path().join("foreign.new"))] {
        let had = cache.keys().len();
        assert_eq!((read(path), cache.keys().len()), ("first".to_owned(), had + 1));
        assert_eq!((read(path), cache.keys().len()), ("first".to_owned(), had + 1));
        if path == &bare {
            foreign("second");
        }
        let modified = fs::metadata(path).unwrap().modified().unwrap();
        fs::rename(next, path).unwrap();
        File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
        assert_eq!((read(path), cache.keys().len()), ("second".to_owned(), had + 2));
    }
}

fn is_any_read(cache: &Cache, keys: &[String]) -> bool {
    keys.iter().any(|key| is_read(&cache.own().join(key)))
}

#[test]
fn a_copy_of_another_user_is_checked_and_a_wrong_one_given_up() {
    let cache = Cache::new();
    let image = cache.site.copy("image.sqsh");
    let key = cache.copied(&image);
    let strangers = cache.directory.join(format!("hpcrun-{STRANGER}"));
    let give_away = || {
        stdout(Command::new("chown").args(["-R", STRANGER]).arg(&strangers));
    };
    fs::rename(cache.own(), &strangers).unwrap();
    give_away();
    let copy = strangers.join(&key);
    let checked = format!("read the image from {}, checking all of it", copy.display());
    assert_eq!(cache.launched(&image), checked);
    // Altered before and while it is read.
    spoil(&copy);
    assert_eq!(cache.launched(&image), checked);
    fs::copy(&image, &copy).unwrap();
    let job = cache.job(&image);
    spoil(&copy);
    assert_eq!(job.finish(), checked);
    fs::copy(&image, &copy).unwrap();
    let job = cache.job(&image);
    File::options().write(true).open(&copy).unwrap().set_len(5000).unwrap();
    assert_eq!(job.finish(), checked);
    // Another length, or no file at all: as if there were none.
    let copying = format!("copy the image to {} while the job runs", cache.directory.display());
    assert_eq!(cache.launched(&image), copying);
    cache.forget();
    fs::remove_file(&copy).unwrap();
    symlink(&image, &copy).unwrap();
    assert_eq!(cache.launched(&image), copying);
    cache.forget();
    // Root's copies are the site's word.
    let of_root = cache.directory.join("hpcrun-0");
    fs::create_dir(&of_root).unwrap();
    fs::copy(&image, of_root.join(&key)).unwrap();
    assert_eq!(cache.launched(&image), format!("read the image from {}", of_root.join(&key).display()));
}

/// A prolog's line: the site's copy is there before the job, in a directory that users cannot write to.
#[test]
fn what_root_copies_everybody_reads() {
    let cache = Cache::of("");
    cache.site.directory("local", 0o755);
    let image = cache.site.copy("image.sqsh");
    let as_root = |words: &[&Path]| {
        let mut command = Command::new(binary());
        run(command.arg("cache").args(words).env("HPCRUN_POLICY", cache.site.path().join("policy.toml")))
    };
    let said = |words: &[&Path], status: i32| {
        let output = as_root(words);
        assert_eq!(output.status.code(), Some(status), "{}", text(&output.stderr));
        text(&output.stderr)
    };
    assert!(cache.launched(&image).starts_with("no copy of the image on this node: "));
    let (shown, directory) = (image.display(), cache.directory.display());
    assert_eq!(said(&[&image], 0), format!("{shown}: copied to {directory}\n"));
    assert_eq!(said(&[&image], 0), format!("{shown}: in {directory} already\n"));
    let of_root = cache.directory.join("hpcrun-0");
    let key = names_in(&of_root).into_iter().find(|name| name.len() == 64).unwrap();
    assert!(fs::read(of_root.join(&key)).unwrap() == fs::read(&image).unwrap());
    assert_eq!(cache.launched(&image), format!("read the image from {}", of_root.join(&key).display()));
    // One that cannot be copied does not keep the others from it.
    let nowhere = cache.site.path().join("nowhere.sqsh");
    let told = said(&[&nowhere, &image], 125);
    assert!(told.contains("(ENOENT)") && told.ends_with(" already\n"), "{told}");
    // A damaged image makes no copy.
    let damaged = cache.site.copy("damaged.sqsh");
    fs::remove_dir_all(&of_root).unwrap();
    let byte = File::options().read(true).write(true).open(&damaged).unwrap();
    let middle = byte.metadata().unwrap().len() / 2;
    let mut bytes = [0; 64];
    byte.read_exact_at(&mut bytes, middle).unwrap();
    byte.write_all_at(&bytes.map(|byte| !byte), middle).unwrap();
    let told = said(&[&damaged], 125);
    assert!(told.contains("the image file has changed"), "{told}");
    assert_eq!(names_in(&of_root), [""; 0]);
    cache.site.policy("");
    assert!(said(&[&image], 125).contains("this site has no cache on its nodes"));
}

#[test]
fn what_others_could_have_put_there_is_not_used() {
    let cache = Cache::new();
    let image = cache.site.copy("image.sqsh");
    let own = cache.own();
    let none = "no copy of the image on this node: ";
    fs::create_dir(&own).unwrap();
    stdout(Command::new("chown").arg(STRANGER).arg(&own));
    let told = cache.launched(&image);
    assert_eq!(told, format!("{none}cannot trust {}: it belongs to user {STRANGER}", own.display()));
    stdout(Command::new("chown").arg(TEST_USER).arg(&own));
    set_mode(&own, 0o777);
    let told = cache.launched(&image);
    assert_eq!(
        told,
        format!("{none}cannot trust {}: it can be written by others (mode 0777)", own.display())
    );
    fs::remove_dir(&own).unwrap();
    let elsewhere = cache.site.directory("elsewhere", 0o777);
    symlink(&elsewhere, &own).unwrap();
    let told = cache.launched(&image);
    assert!(told.starts_with(&format!("{none}cannot use {}", own.display())), "{told}");
    fs::remove_file(&own).unwrap();
    set_mode(&cache.directory, 0o777);
    let told = cache.launched(&image);
    assert!(told.ends_with("can be written by others and is not sticky (mode 0777)"), "{told}");
    set_mode(&cache.directory, 0o755);
    stdout(Command::new("chown").arg(STRANGER).arg(&cache.directory));
    let told = cache.launched(&image);
    assert!(told.ends_with(&format!("belongs to user {STRANGER}")), "{told}");
    assert!(names_in(&elsewhere).is_empty());
}

#[test]
fn a_node_without_room_runs_from_the_image_itself() {
    let cache = Cache::of("");
    let image = cache.site.copy("image.sqsh");
    let told = cache.launched(&image);
    assert!(told.contains("cannot use") && told.contains("(ENOENT)"), "{told}");
    fs::create_dir(&cache.directory).unwrap();
    for (options, expected) in [
        ("size=512k,mode=1777", "has no room for"),
        ("ro,mode=1777", "(EROFS)"),
        ("size=64m,mode=755", "(EACCES)"),
    ] {
        let policy = cache.site.path().join("policy.toml");
        let mount = format!(
            "mount -t tmpfs -o {options} none {}; export HPCRUN_POLICY={}",
            cache.directory.display(),
            policy.display()
        );
        let words = ["-v", "exec"].map(std::ffi::OsStr::new);
        let rest = [image.as_os_str(), "cat".as_ref(), "/data/large".as_ref()];
        let output = in_private_mounts(&mount, &[&[binary().as_os_str()], &words[..], &rest[..]].concat());
        let told = text(&output.stderr);
        assert!(output.status.success() && output.stdout == large(), "{told}");
        assert!(about_copies(&told).contains(expected), "{expected}: {told}");
    }
}

#[test]
fn the_least_recently_used_copy_makes_room() {
    let length = fs::metadata(image()).unwrap().len();
    let cache = Cache::of(&format!("node_cache_size = {}\n", length * 5 / 2));
    fs::create_dir(&cache.directory).unwrap();
    set_mode(&cache.directory, 0o1777);
    // Three images that differ a little.
    let images: Vec<PathBuf> = ["a", "b", "c"]
        .map(|name| {
            let members: Vec<Member> = busybox()
                .into_iter()
                .chain([
                    Member::directory("data"),
                    Member::file("data/large", large()),
                    Member::file("name", name),
                ])
                .collect();
            cache.site.image(name, &json!({}), &[tar(&members)])
        })
        .to_vec();
    let [a, b] = [cache.copied(&images[0]), cache.copied(&images[1])];
    assert!(cache.launched(&images[0]).ends_with(&a));
    let c = cache.copied(&images[2]);
    let mut expected = [a.clone(), c.clone()];
    expected.sort();
    assert_eq!(cache.keys(), expected, "{b} had to go");
    // What is read stays, and the others run from the image itself.
    let (one, two) = (cache.job(&images[0]), cache.job(&images[2]));
    let third = cache.job(&images[1]);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(cache.keys(), expected);
    for job in [one, two, third] {
        job.finish();
    }
    // Too large or too small ones are no matter for the cache.
    for rules in [format!("node_cache_size = {}\n", length / 2), "node_cache_size = \"1 TiB\"\n".to_owned()] {
        let min = if rules.contains("TiB") { "\"1 GiB\"" } else { "1" };
        cache
            .site
            .policy(&format!("[store]\nnode_cache = {:?}\nnode_cache_min = {min}\n{rules}", cache.directory));
        assert_eq!(cache.launched(&images[1]), "");
    }
}

#[test]
fn a_copy_that_was_broken_off_is_gone_on_with_after_a_check() {
    let cache = Cache::new();
    let image = cache.site.copy("image.sqsh");
    let key = cache.copied(&image);
    let whole = fs::read(&image).unwrap();
    let copy = cache.own().join(&key);
    let partial = cache.own().join(format!("{key}.partial"));
    let mut spoilt = whole[..whole.len() / 2].to_vec();
    spoilt[100_000] ^= 1;
    for begun in [&whole[..whole.len() / 3], &spoilt, b"", &[&whole[..], b"more"].concat()] {
        fs::remove_file(&copy).unwrap();
        fs::write(&partial, begun).unwrap();
        stdout(Command::new("chown").arg(TEST_USER).arg(&partial));
        assert_eq!(cache.copied(&image), key);
        assert!(fs::read(&copy).unwrap() == whole, "{} bytes begun", begun.len());
        assert!(!partial.exists());
    }
}

#[test]
fn an_image_that_is_not_what_its_hashes_say_gets_no_copy() {
    let cache = Cache::new();
    let mut random = Random::new(seed());
    let noise: Vec<u8> =
        std::iter::repeat_with(|| random.next().to_le_bytes()).take(100_000).flatten().collect();
    let members: Vec<Member> = busybox().into_iter().chain([Member::file("noise", noise.clone())]).collect();
    let image = cache.site.image("image", &json!({}), &[tar(&members)]);
    // What does not compress lies in the image as it is.
    let bytes = fs::read(&image).unwrap();
    let found = bytes.windows(64).position(|window| window == &noise[..64]).expect("the noise");
    let file = File::options().write(true).open(&image).unwrap();
    file.write_all_at(&[0x55; 64], found as u64 + 1000).unwrap();
    let job = cache.job(&image);
    let partial = || names_in(&cache.own()).iter().any(|name| name.ends_with(".partial"));
    std::thread::sleep(Duration::from_millis(300));
    wait_for("the end of the attempt", || !partial());
    drop(job.0.stdin);
    assert!(cache.keys().is_empty());
}

#[test]
fn a_private_image_has_a_private_copy() {
    let cache = Cache::new();
    let image = cache.site.copy("image.sqsh");
    stdout(Command::new("chown").arg(TEST_USER).arg(&image));
    set_mode(&image, 0o640);
    let key = cache.copied(&image);
    assert_eq!(fs::metadata(cache.own().join(key)).unwrap().mode() & 0o7777, 0o400);
}

#[test]
fn ranks_make_one_copy_and_a_killed_server_goes_on_reading_it() {
    let cache = Cache::new();
    let image = cache.site.copy("image.sqsh");
    let script = "echo ready; read go; cat /data/large >/dev/null; cat /data/text";
    let mut ranks: Vec<Child> = (0..3)
        .map(|rank| {
            let mut command = cache.site.hpcrun(["-v", "exec"]);
            command.arg(&image).args(["sh", "-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
            command.envs([("SLURM_JOB_ID", "991"), ("SLURM_STEP_ID", "7"), ("SLURM_NTASKS", "3")]);
            command.env("SLURM_LOCALID", rank.to_string()).stderr(Stdio::piped());
            let mut child = command.spawn().expect("spawn");
            child.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).expect("ready");
            child
        })
        .collect();
    let key = cache.wait_for_copy(&[]);
    assert_eq!(cache.keys(), std::slice::from_ref(&key));
    // The server is the one that has the copy open; its successor finds the copy again.
    let copy = cache.own().join(&key);
    let readers = || {
        let pid = |holder: &String| holder.split(':').next().unwrap_or_default().to_owned();
        holders(&copy).iter().map(pid).collect::<Vec<_>>()
    };
    let before = readers();
    assert!(!before.is_empty());
    for pid in &before {
        stdout(Command::new("kill").args(["-9", pid]));
    }
    wait_for("another server that reads the copy", || {
        let now = readers();
        !now.is_empty() && now != before
    });
    let mut told = Vec::new();
    for rank in &mut ranks {
        rank.stdin.take().unwrap().write_all(b"go\n").unwrap();
    }
    for rank in ranks {
        let output = rank.wait_with_output().unwrap();
        assert!(output.status.success() && text(&output.stdout).contains("no program"));
        told.push(about_copies(&text(&output.stderr)));
    }
    told.retain(|told| !told.is_empty());
    assert_eq!(told.len(), 1, "one container: {told:?}");
}
