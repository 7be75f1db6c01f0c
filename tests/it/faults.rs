//! Faults injected at every system call that writes, names or syncs: no bad file is ever visible, nothing is left that the
//! next conversion does not remove, and the user gets one line and the documented status.
//!
//! `strace` makes the Nth call of a kind fail or kills the process there, for every N; a library loaded before libc writes
//! and reads a few bytes at a time and interrupts every second call.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, OnceLock};

use serde_json::json;

use crate::busybox_image::{assert_fails, docker_archive, names_in};
use crate::layer_building::{Member, tar};
use crate::registry::scripted::Scripted;
use crate::sources::layout::{Image, Layout, Packing};
use crate::support::{self, Random, as_user, binary, hpcrun, run, text};

/// The calls that change files or say whether they did; `-P` keeps those on other files out of `openat`.
const CALLS: &str = "write,writev,pwrite64,pwritev,pwritev2,fsync,fdatasync,syncfs,sync_file_range,ftruncate,fallocate,\
                     copy_file_range,sendfile,splice,link,linkat,rename,renameat,renameat2,close";

/// How the output gets its name.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    /// A file without a name is linked.
    Unnamed,
    /// The file system has no files without a name: a named temporary is renamed.
    Named,
    /// An older file is replaced.
    Force,
    /// As `Unnamed`, from a registry, and its layers are kept in a cache.
    Pulled,
}

impl Way {
    const ALL: [Way; 4] = [Way::Unnamed, Way::Named, Way::Force, Way::Pulled];
}

/// A source, the image file that is made of it, and a place to make it in.
struct Bench {
    dir: tempfile::TempDir,
    source: String,
    way: Way,
    expected: Vec<u8>,
    /// Serves the source.
    _registry: Option<Scripted>,
}

/// What stands at the destination before `--force`.
const OLDER: &[u8] = b"an older image";

impl Bench {
    fn new(way: Way) -> Bench {
        let dir = support::scratch();
        let mut random = Random::new(1);
        let noise: Vec<u8> = std::iter::repeat_with(|| random.next() as u8).take(4_500_000).collect();
        let tars = [
            tar(&[Member::directory("d/"), Member::file("d/noise", noise), Member::file("d/text", "text")]),
            tar(&[Member::file("d/.wh.text", ""), Member::symlink("link", "d")]),
        ];
        let mut registry = None;
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let source = match way {
            Way::Pulled => {
                let image = Image::new(architecture, &tars, Packing::Gzip);
                registry.insert(Scripted::of(image, |_, _, reply| reply)).source()
            }
            Way::Unnamed => {
                let path = dir.path().join("image.tar");
                fs::write(&path, docker_archive(&json!({}), &tars)).unwrap();
                format!("docker-archive:{}", path.display())
            }
            Way::Named | Way::Force => {
                let packing = if way == Way::Named { Packing::Gzip } else { Packing::Zstd };
                let path = dir.path().join("layout");
                Layout::of(&path, &Image::new(architecture, &tars, packing));
                format!("oci:{}", path.display())
            }
        };
        let out = dir.path().join("out");
        fs::create_dir(&out).unwrap();
        fs::set_permissions(&out, PermissionsExt::from_mode(0o777)).unwrap();
        let mut bench = Bench { dir, source, way, expected: Vec::new(), _registry: registry };
        support::stdout(&mut bench.convert(hpcrun(["convert"])));
        bench.expected = fs::read(bench.image()).unwrap();
        bench
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    fn image(&self) -> PathBuf {
        self.out().join("app.sqsh")
    }

    /// The arguments of a conversion, behind `... convert`.
    fn convert(&self, mut command: Command) -> Command {
        if self.way == Way::Force {
            command.arg("--force");
        }
        if self.way == Way::Pulled {
            command.arg("--layer-cache").arg(self.cache());
        }
        command.args(["--quiet", "--jobs", "1"]).arg(&self.source).arg(self.image());
        command
    }

    /// The destination as it is before a conversion.
    fn reset(&self) {
        for name in names_in(&self.out()) {
            fs::remove_file(self.out().join(name)).unwrap();
        }
        if self.way == Way::Force {
            fs::write(self.image(), OLDER).unwrap();
        }
        let _ = fs::remove_dir_all(self.cache());
    }

    /// A conversion under strace with these options.
    fn traced(&self, options: &[String]) -> Output {
        let _ = fs::remove_file(self.log());
        let mut command = as_user("strace");
        command.args(["-f", "-qq", "-o"]).arg(self.log()).args(options);
        if self.way == Way::Named {
            command.args(["-E", "FAULT_NO_TMPFILE=1", "-E"]);
            command.arg(format!("LD_PRELOAD={}", shim().display()));
        }
        run(&mut self.convert({
            command.arg(binary()).arg("convert");
            command
        }))
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("strace.log")
    }

    /// How often each of the calls is made by the thread that makes it most.
    fn count(&self) -> BTreeMap<String, usize> {
        let mut counts = self.count_of(&[format!("--trace={CALLS}")]);
        counts.extend(self.count_of(&self.openat()));
        counts
    }

    /// The same of the calls that these options trace.
    fn count_of(&self, options: &[String]) -> BTreeMap<String, usize> {
        self.reset();
        let output = self.traced(options);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let mut of_threads: BTreeMap<(String, String), usize> = BTreeMap::new();
        for line in fs::read_to_string(self.log()).unwrap().lines() {
            let (thread, call) = line.split_once(' ').unwrap();
            // Neither "<... write resumed>" nor the "???" of a thread that ends.
            let is_name = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric());
            let begun = call.trim_start().split_once('(').filter(|(name, _)| is_name(name));
            if let Some((name, _)) = begun {
                *of_threads.entry((thread.to_owned(), name.to_owned())).or_default() += 1;
            }
        }
        let mut counts = BTreeMap::new();
        for ((_, name), count) in of_threads {
            let most: &mut usize = counts.entry(name).or_default();
            *most = (*most).max(count);
        }
        counts
    }

    /// Options that trace only what is opened in the destination's directory.
    fn openat(&self) -> Vec<String> {
        vec!["-P".to_owned(), self.out().display().to_string(), "--trace=openat".to_owned()]
    }

    /// The options that trace `call`, and what `inject` does to one of them.
    fn inject(&self, call: &str, inject: &str) -> Vec<String> {
        let mut options = if call == "openat" { self.openat() } else { vec![format!("--trace={call}")] };
        options.push(format!("--inject={call}:{inject}"));
        options
    }

    /// Whatever stands at the destination is good: the new file, or what was there before.
    fn assert_good(&self, context: &str) -> bool {
        let found = fs::read(self.image()).ok();
        let is_new = found.as_ref() == Some(&self.expected);
        let is_old = if self.way == Way::Force { found.as_deref() == Some(OLDER) } else { found.is_none() };
        assert!(is_new || is_old, "{context}: {} bytes are visible", found.map_or(0, |found| found.len()));
        is_new
    }

    /// The next conversion works and leaves its image file and nothing else.
    fn assert_next_cleans(&self, context: &str) {
        if self.way != Way::Force {
            let _ = fs::remove_file(self.image());
        }
        support::stdout(&mut self.convert(hpcrun(["convert"])));
        assert!(self.assert_good(context), "{context}: no new file");
        assert_eq!(names_in(&self.out()), ["app.sqsh"], "{context}");
    }
}

/// The library of faults, compiled once.
pub(crate) fn shim() -> &'static Path {
    static SHIM: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = SHIM.get_or_init(|| {
        let dir = support::scratch();
        let path = dir.path().join("shim.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/faults/shim.c");
        support::stdout(Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&path).arg(source));
        (dir, path)
    });
    path
}

/// A command with the library of faults before it; gives what it did and how many faults there were.
fn with_faults(bench: &Bench, faults: &[(&str, &str)]) -> (Output, u64) {
    let log = bench.dir.path().join("faults");
    fs::write(&log, "").unwrap();
    fs::set_permissions(&log, PermissionsExt::from_mode(0o666)).unwrap();
    let mut command = bench.convert(hpcrun(["convert"]));
    command.env("LD_PRELOAD", shim()).env("FAULT_LOG", &log).envs(faults.iter().copied());
    let output = run(&mut command);
    (output, fs::metadata(&log).map_or(0, |log| log.len()))
}

/// Every call of every kind fails once with every error.
fn every_call_fails(way: Way) {
    let bench = Bench::new(way);
    let counts = bench.count();
    assert!(counts["pwrite64"] >= 3 && counts["fsync"] == 2 && counts["openat"] >= 1, "{counts:?}");
    for (call, count) in &counts {
        let errors: &[&str] = match call.as_str() {
            "close" => &["EIO"],
            _ => &["ENOSPC", "EIO", "EDQUOT", "EINTR"],
        };
        for (error, nth) in errors.iter().flat_map(|error| (1..=*count).map(move |nth| (*error, nth))) {
            let context = format!("{way:?}: {call} number {nth}: {error}");
            bench.reset();
            let output = bench.traced(&bench.inject(call, &format!("error={error}:when={nth}")));
            // Before the first line of ours ran; and std itself panics where rustls lists the system's certificates.
            let of_others = ["error while loading shared libraries", "unexpected error during closedir"];
            if call == "close" && of_others.iter().any(|part| text(&output.stderr).contains(part)) {
                continue;
            }
            if output.status.success() {
                // Nobody asks what came of closing, and leftovers of others may stay unseen.
                // A registry is asked again, and nothing depends on the cache.
                let may_pass =
                    error == "EINTR" || ["close", "openat"].contains(&call.as_str()) || way == Way::Pulled;
                assert!(may_pass, "{context} passes");
                assert!(bench.assert_good(&context), "{context}: no file");
            } else {
                let line = assert_fails(&output, 125, &[&format!("({error})"), "app.sqsh"]);
                assert_ne!(error, "EINTR", "{line}");
                bench.assert_good(&context);
            }
            let left: Vec<String> =
                names_in(&bench.out()).into_iter().filter(|name| name != "app.sqsh").collect();
            assert_eq!(left, [""; 0], "{context}");
        }
    }
}

#[test]
fn every_call_fails_where_a_file_is_linked() {
    every_call_fails(Way::Unnamed);
}

#[test]
fn every_call_fails_where_a_temporary_is_renamed() {
    every_call_fails(Way::Named);
}

#[test]
fn every_call_fails_where_a_file_is_replaced() {
    every_call_fails(Way::Force);
}

#[test]
fn every_call_fails_during_a_pull() {
    every_call_fails(Way::Pulled);
}

/// The calls that a registry is spoken to with; a fault of any of them is made good by asking again, after a second.
#[test]
fn every_call_on_a_socket_fails_once() {
    let bench = Bench::new(Way::Pulled);
    bench.reset();
    let calls = ["socket", "connect", "sendto", "recvfrom", "setsockopt"];
    let counts = bench.count_of(&[format!("--trace={}", calls.join(","))]);
    let faults: Vec<(&str, &str, usize)> = counts
        .iter()
        .flat_map(|(call, count)| {
            let error = match call.as_str() {
                "socket" => "EMFILE",
                "connect" => "ETIMEDOUT",
                _ => "ECONNRESET",
            };
            // Of the many that read a layer some will do.
            (1..=*count).filter(|nth| *nth <= 4 || nth % 16 == 0).map(move |nth| (call.as_str(), error, nth))
        })
        .collect();
    assert!(faults.len() > 12, "{faults:?}");
    let next = Mutex::new(faults.into_iter());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let bench = Bench::new(Way::Pulled);
                loop {
                    let Some((call, error, nth)) = next.lock().unwrap().next() else { return };
                    let context = format!("{call} number {nth}: {error}");
                    bench.reset();
                    let output = bench.traced(&bench.inject(call, &format!("error={error}:when={nth}")));
                    assert!(output.status.success(), "{context}: {}", text(&output.stderr));
                    assert!(bench.assert_good(&context), "{context}: no file");
                    assert_eq!(names_in(&bench.out()), ["app.sqsh"], "{context}");
                }
            });
        }
    });
}

/// SIGKILL cannot be handled: what it leaves must be of no harm, and gone after the next conversion.
#[test]
fn killed_at_every_call() {
    let mut left_something = false;
    for way in Way::ALL {
        let bench = Bench::new(way);
        for (call, count) in bench.count() {
            // Every close would be the same test many times over.
            let kills = if call == "close" { count.min(3) } else { count };
            for nth in 1..=kills {
                let context = format!("{way:?}: killed at {call} number {nth}");
                bench.reset();
                let output = bench.traced(&bench.inject(&call, &format!("signal=KILL:when={nth}")));
                assert_eq!(output.status.signal(), Some(9), "{context}: {}", text(&output.stderr));
                bench.assert_good(&context);
                left_something |= names_in(&bench.out()).iter().any(|name| name.ends_with(".partial"));
                bench.assert_next_cleans(&context);
            }
        }
    }
    assert!(left_something, "no leftover was ever made, so none was removed");
}

/// What another process has locked is at work, what another user made is another's, and a stranger's file is no leftover.
#[test]
fn only_abandoned_leftovers_are_removed() {
    let bench = Bench::new(Way::Unnamed);
    bench.reset();
    let node = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let own = |number: u32| format!(".hpcrun-{}-1-{number}.partial", node.trim());
    let make = |name: &str, user: bool| {
        let path = bench.out().join(name);
        if user {
            support::stdout(as_user("touch").arg(&path));
        } else {
            fs::write(&path, "").unwrap();
        }
        path
    };
    make(&own(1), true);
    let locked = make(&own(2), true);
    let _lock = {
        let file = fs::File::open(&locked).unwrap();
        file.lock().unwrap();
        file
    };
    make(".hpcrun-elsewhere-1-1.partial", true);
    let old = make(".hpcrun-elsewhere-1-2.partial", true);
    support::stdout(as_user("touch").args(["-d", "2 days ago"]).arg(&old));
    make(".hpcrun-notes", true);
    support::stdout(as_user("mkdir").arg(bench.out().join(own(4))));
    support::stdout(
        as_user("ln").arg("-s").arg(bench.out().join(".hpcrun-notes")).arg(bench.out().join(own(5))),
    );
    let mut expected = vec![
        ".hpcrun-elsewhere-1-1.partial".to_owned(),
        ".hpcrun-notes".to_owned(),
        own(2),
        own(4),
        own(5),
        "app.sqsh".to_owned(),
    ];
    if support::is_root() {
        make(&own(3), false);
        expected.push(own(3));
    }
    expected.sort();
    support::stdout(&mut bench.convert(hpcrun(["convert"])));
    assert_eq!(names_in(&bench.out()), expected);
}

#[test]
fn short_and_interrupted_calls_change_nothing() {
    for way in Way::ALL {
        let bench = Bench::new(way);
        for bytes in ["1000", "65537"] {
            bench.reset();
            let mut faults = vec![("FAULT_SHORT", bytes)];
            faults.extend((way == Way::Named).then_some(("FAULT_NO_TMPFILE", "1")));
            let (output, count) = with_faults(&bench, &faults);
            assert!(output.status.success(), "{way:?}, {bytes}: {}", text(&output.stderr));
            assert!(count > 50, "{way:?}, {bytes}: {count} faults are too few");
            assert!(bench.assert_good("short calls"), "{way:?}, {bytes}");
            assert_eq!(names_in(&bench.out()), ["app.sqsh"]);
        }
    }
}

#[test]
fn a_disk_that_fills_up_anywhere() {
    for way in Way::ALL {
        let bench = Bench::new(way);
        let size = bench.expected.len();
        for space in [0, 1, 95, 4096, size / 2, size - 5000, size - 1] {
            bench.reset();
            let mut faults = vec![("FAULT_SPACE", space.to_string())];
            faults.extend((way == Way::Named).then_some(("FAULT_NO_TMPFILE", "1".to_owned())));
            let faults: Vec<(&str, &str)> =
                faults.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let (output, _) = with_faults(&bench, &faults);
            assert_fails(&output, 125, &["app.sqsh", "No space left on device (ENOSPC)"]);
            assert!(!bench.assert_good("a full disk"), "{way:?}: it fits into {space} of {size} bytes");
            let expected: &[&str] = if way == Way::Force { &["app.sqsh"] } else { &[] };
            assert_eq!(names_in(&bench.out()), expected, "{way:?}, {space}");
        }
    }
}

/// Without `/proc` a file without a name could never get one.
#[test]
fn a_machine_without_proc() {
    assert!(support::is_root(), "unmounting /proc in a namespace of one's own needs root");
    for way in [Way::Unnamed, Way::Force] {
        let bench = Bench::new(way);
        bench.reset();
        let mut command = Command::new("unshare");
        let script = "mount -t tmpfs none /proc && exec \"$@\"";
        command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh", "setpriv"]);
        command.args(["--reuid", support::TEST_USER, "--regid", support::TEST_USER, "--init-groups"]);
        command.args(["--inh-caps=-all", "--"]).arg(binary()).arg("convert");
        support::stdout(&mut bench.convert(command));
        assert!(bench.assert_good("without /proc"), "{way:?}");
        assert_eq!(names_in(&bench.out()), ["app.sqsh"]);
    }
}

/// A limit on file sizes is told like a full disk; the signal that comes with it must not kill.
#[test]
fn a_limit_on_file_sizes() {
    let bench = Bench::new(Way::Unnamed);
    bench.reset();
    let mut command = as_user("prlimit");
    command.arg("--fsize=100000").arg(binary()).arg("convert");
    let output = run(&mut bench.convert(command));
    assert_fails(&output, 125, &["app.sqsh", "(EFBIG)"]);
    assert_eq!(names_in(&bench.out()), [""; 0]);
}
