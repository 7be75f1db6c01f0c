//! The image server on a store that hangs, fails, cuts short, goes stale or is replaced: the job waits or gets `EIO`, is told
//! why in one line, reads no wrong byte, and can always be killed.

use std::fs;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hpcrun::image::digest::Digest;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::json;

use self::store::{Fault, Store};
use crate::busybox_image::{assert_nobody_holds, busybox, convert};
use crate::layer_building::{Member, tar};
use crate::support::{Random, hpcrun, scratch, text};

mod store;

/// Files of noise in the image.
const FILES: usize = 24;
/// Bytes of each: more than a block, so that the server reads ahead.
const FILE_BYTES: usize = 300_000;
/// A dead man's limit for what takes no time at all.
const LIMIT: Duration = Duration::from_secs(20);

/// An image with busybox, noise that no codec makes smaller, and a directory of names.
pub(crate) fn image() -> &'static (PathBuf, Vec<String>) {
    static IMAGE: OnceLock<(tempfile::TempDir, (PathBuf, Vec<String>))> = OnceLock::new();
    let (_, image) = IMAGE.get_or_init(|| {
        let dir = scratch();
        let mut random = Random::new(1);
        let mut members = busybox();
        members.extend([Member::directory("data/"), Member::directory("names/")]);
        let mut sums = Vec::new();
        for number in 0..FILES {
            let noise: Vec<u8> = (0..FILE_BYTES).map(|_| (random.next() >> 32) as u8).collect();
            sums.push(Digest::of(&noise).to_string().replace("sha256:", ""));
            members.push(Member::file(format!("data/{number}"), noise));
        }
        members.extend((0..20).map(|number| Member::file(format!("names/{number}"), "")));
        let config = json!({"Env": ["PATH=/bin"]});
        let image = convert(dir.path(), "faulty", &config, &[tar(&members)]);
        (dir, (image, sums))
    });
    image
}

/// A store with the image.
fn store() -> Store {
    Store::new(fs::read(&image().0).expect("image"))
}

/// A shell in the image that is told what to do line by line, and leads a process group.
pub(crate) struct Job {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    errors: Option<JoinHandle<String>>,
}

impl Job {
    /// Starts the shell, and reads all of busybox so that a command costs no read of its program.
    #[track_caller]
    pub(crate) fn start(image: &Path) -> Job {
        Job::start_with(image, |_| {})
    }

    /// The same, after a change to the command.
    #[track_caller]
    pub(crate) fn start_with(image: &Path, change: impl FnOnce(&mut Command)) -> Job {
        let mut command = hpcrun(["exec"]);
        change(&mut command);
        let mut child = command
            .arg(image)
            .args(["sh", "-c", "while read -r command; do eval \"$command\"; done"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("hpcrun");
        let mut errors = child.stderr.take().expect("piped");
        let mut job = Job {
            commands: child.stdin.take(),
            answers: BufReader::new(child.stdout.take().expect("piped")),
            errors: Some(std::thread::spawn(move || {
                let mut all = Vec::new();
                errors.read_to_end(&mut all).expect("standard error");
                text(&all)
            })),
            child,
        };
        job.tell("cat /bin/busybox >/dev/null; echo there");
        assert_eq!(job.answer(), "there");
        job
    }

    pub(crate) fn tell(&mut self, command: &str) {
        writeln!(self.commands.as_ref().expect("not finished"), "{command}").expect("pipe");
    }

    pub(crate) fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("pipe");
        line.trim_end().to_owned()
    }

    #[track_caller]
    pub(crate) fn ask(&mut self, command: &str) -> String {
        self.tell(command);
        self.answer()
    }

    /// Reads a file and compares it with what it should be.
    #[track_caller]
    pub(crate) fn check_file(&mut self, number: usize) {
        assert_eq!(self.ask(&sum_of(number)), format!("{}  /data/{number}", image().1[number]));
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// The processes of the group, with the state and the place in the kernel of each.
    fn processes(&self) -> Vec<(i32, String)> {
        let stats = fs::read_dir("/proc").expect("/proc").flatten();
        stats
            .filter_map(|entry| {
                let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
                let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
                let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
                (fields[2] == self.pid().to_string() && fields[0] != "Z").then(|| (pid, fields[0].to_owned()))
            })
            .collect()
    }

    /// Kills the whole group and waits until nobody of it is left, which has to be soon.
    #[track_caller]
    pub(crate) fn kill(&mut self) {
        killpg(Pid::from_raw(self.pid()), Signal::SIGKILL).expect("kill");
        wait_for("the group's end", || self.processes().is_empty());
        self.child.wait().expect("wait");
    }

    /// Ends the shell; gives what was written on standard error.
    #[track_caller]
    pub(crate) fn finish(mut self) -> String {
        drop(self.commands.take());
        let status = self.child.wait().expect("wait");
        assert!(status.success(), "{status}");
        self.errors.take().expect("once").join().expect("standard error")
    }
}

/// A test that fails leaves nobody behind.
impl Drop for Job {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(self.pid()), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

fn sum_of(number: usize) -> String {
    format!("busybox sha256sum /data/{number}")
}

#[track_caller]
fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The server of `image`.
#[track_caller]
pub(crate) fn server_of(image: &Path) -> Pid {
    let mut found = None;
    wait_for("a server", || {
        found = helpers_of(image, "hpcrun-server").first().copied();
        found.is_some()
    });
    Pid::from_raw(found.expect("just found"))
}

/// Living processes of this name that hold `image`.
pub(crate) fn helpers_of(image: &Path, name: &str) -> Vec<i32> {
    let holds = |pid: i32| {
        fs::read_dir(format!("/proc/{pid}/fd"))
            .is_ok_and(|fds| fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == image)))
    };
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name)
        })
        .filter(|pid| holds(*pid))
        .collect()
}

/// Lines that hpcrun wrote among those of the job's programs.
fn reports(errors: &str) -> Vec<&str> {
    errors.lines().filter(|line| line.starts_with("hpcrun: ")).collect()
}

// ---------------------------------------------------------------------------------------------------------------------
// Errors.

#[test]
fn errors_that_pass_are_not_noticed() {
    for errno in [libc::EIO, libc::ETIMEDOUT, libc::EHOSTDOWN, libc::EAGAIN] {
        let store = store();
        let mut job = Job::start(&store.image());
        store.set(Fault::Fail(errno));
        job.tell(&sum_of(1));
        job.tell("busybox stat -c %s /names/7 /data/2");
        let before = store.reads();
        // Until a refused read has been tried again.
        wait_for("some tries", || store.reads() > before + 3);
        store.set(Fault::None);
        assert_eq!(job.answer(), format!("{}  /data/1", image().1[1]), "errno {errno}");
        assert_eq!([job.answer(), job.answer()], ["0".to_owned(), FILE_BYTES.to_string()]);
        assert_eq!(job.finish(), "");
        assert_nobody_holds(&store.image());
    }
}

#[test]
fn errors_that_stay_are_told_in_one_line_and_forgotten_afterwards() {
    let store = store();
    let mut job = Job::start(&store.image());
    store.set(Fault::Fail(libc::EIO));
    for number in 1..6 {
        assert_eq!(job.ask(&format!("cat /data/{number} | busybox wc -c; echo over >/dev/null")), "0");
    }
    store.set(Fault::None);
    for number in 1..7 {
        job.check_file(number);
    }
    let errors = job.finish();
    assert_eq!(errors.matches("read error: Input/output error").count(), 5, "{errors}");
    let reports = reports(&errors);
    assert_eq!(reports.len(), 1, "{errors}");
    let parts = [
        &*store.image().to_string_lossy(),
        "cannot read ",
        " bytes at ",
        "Input/output error",
        "the job gets",
    ]
    .map(str::to_owned);
    assert!(parts.iter().all(|part| reports[0].contains(part)), "{errors}");
    assert_nobody_holds(&store.image());
}

/// A job that has closed its standard error, or has something else there, is not written to.
#[test]
fn a_line_goes_to_the_launchers_standard_error_only() {
    let store = store();
    let out = scratch();
    let other = out.path().join("other");
    let mut job = Job::start(&store.image());
    store.set(Fault::Fail(libc::EIO));
    let command = format!("cat /data/1 2>>{}; echo $?", other.display());
    assert_eq!(job.ask(&command), "1");
    assert_eq!(job.ask("cat /data/2 2>&-; echo $?"), "1");
    store.set(Fault::None);
    job.check_file(2);
    assert_eq!(job.finish(), "");
    let other = fs::read_to_string(other).expect("file");
    assert_eq!(other, "cat: read error: Input/output error\n");
}

#[test]
fn short_reads_are_completed() {
    let store = store();
    let mut job = Job::start(&store.image());
    for (number, most) in [1, 511, 4096, 65_537].into_iter().enumerate() {
        store.set(Fault::Short(most.max(97)));
        job.check_file(number);
    }
    assert_eq!(job.finish(), "");
}

#[test]
fn a_stale_file_is_opened_again_if_it_is_the_same() {
    let store = store();
    let mut job = Job::start(&store.image());
    for number in 0..6 {
        store.set(Fault::Stale);
        job.check_file(number);
    }
    // A server born later has the old file.
    let server = server_of(&store.image());
    store.set(Fault::Stale);
    kill(server, Signal::SIGKILL).expect("kill");
    job.check_file(7);
    assert_eq!(job.finish(), "");
    assert_nobody_holds(&store.image());
}

#[test]
fn no_byte_of_another_file_is_served() {
    let store = store();
    let mut job = Job::start(&store.image());
    job.check_file(1);
    let mut other = fs::read(&image().0).expect("image");
    other.iter_mut().for_each(|byte| *byte = !*byte);
    store.replace(other);
    store.set(Fault::Stale);
    assert_eq!(job.ask("cat /data/2 | busybox wc -c"), "0");
    job.check_file(1);
    let errors = job.finish();
    assert!(errors.contains("Input/output error"), "{errors}");
    assert_eq!(reports(&errors).len(), 1, "{errors}");
    assert!(reports(&errors)[0].contains("Stale file handle"), "{errors}");
}

/// The image is cut short in place, as by `cp` over it: what is gone is an error and no zeros.
#[test]
fn a_truncated_image_is_an_error_and_one_line() {
    let dir = scratch();
    let path = dir.path().join("image.sqsh");
    fs::copy(&image().0, &path).expect("copy");
    let mut job = Job::start(&path);
    job.check_file(0);
    let file = fs::File::options().write(true).open(&path).expect("image");
    file.set_len(1_000_000).expect("truncate");
    assert_eq!(job.ask(&format!("cat /data/{} | busybox wc -c", FILES - 1)), "0");
    job.check_file(0);
    let errors = job.finish();
    assert_eq!(reports(&errors).len(), 1, "{errors}");
    assert!(reports(&errors)[0].contains("the image file has changed"), "{errors}");
}

#[test]
fn a_replaced_or_removed_image_goes_on_from_the_open_file() {
    let dir = scratch();
    let (path, next) = (dir.path().join("image.sqsh"), dir.path().join("next"));
    fs::copy(&image().0, &path).expect("copy");
    let mut job = Job::start(&path);
    fs::write(&next, vec![0xff; 10_000_000]).expect("another file");
    fs::rename(&next, &path).expect("mv");
    (0..5).for_each(|number| job.check_file(number));
    fs::remove_file(&path).expect("rm");
    (5..10).for_each(|number| job.check_file(number));
    assert_eq!(job.finish(), "");
    assert_nobody_holds(&path);
}

// ---------------------------------------------------------------------------------------------------------------------
// Hanging.

/// Readers of more files than there are threads to serve them.
fn hang_readers(store: &Store, job: &mut Job) {
    // The directories' blocks are in the server's cache, the listing of `names` is in nobody's.
    assert_eq!(
        job.ask("busybox ls -l /data | busybox wc -l; busybox stat /names/19 >/dev/null"),
        (FILES + 1).to_string()
    );
    store.set(Fault::Hang);
    job.tell("for n in 1 2 3 4 5 6 7 8 9; do cat /data/$n >/dev/null & done");
    wait_for("readers that hang", || store.hanging() >= 4);
}

#[test]
fn a_hanging_store_stops_only_who_needs_it() {
    let store = store();
    let mut job = Job::start(&store.image());
    hang_readers(&store, &mut job);
    for number in 0..20 {
        let command =
            format!("busybox stat -c %n%s /names/{number}; [ -e /names/none{number} ] || echo none");
        assert_eq!(job.ask(&command), format!("/names/{number}0"));
        assert_eq!(job.answer(), "none");
    }
    store.set(Fault::None);
    (1..10).for_each(|number| job.check_file(number));
    assert_eq!(job.finish(), "");
    assert_nobody_holds(&store.image());
}

#[test]
fn a_job_that_waits_for_a_hanging_store_can_be_killed() {
    let store = store();
    let mut job = Job::start(&store.image());
    hang_readers(&store, &mut job);
    // Requests of every kind, each by a process of its own: a page fault, a program, a name, a second reader of one page.
    job.tell("for n in 1 2 12; do busybox sha256sum /data/$n & done; (exec 9</data/13; busybox dd if=/data/14 of=/dev/null) & busybox cat /data/15 /data/16");
    std::thread::sleep(Duration::from_secs(1));
    assert!(job.processes().len() >= 10, "{:?}", job.processes());
    job.kill();
    store.set(Fault::None);
    assert_nobody_holds(&store.image());
}

/// One of two readers of the same file is killed; the other one gets what it asked for.
#[test]
fn killing_one_reader_costs_the_other_nothing() {
    let store = store();
    let mut job = Job::start(&store.image());
    store.set(Fault::Hang);
    job.tell("cat /data/3 >/dev/null & first=$!");
    wait_for("a reader that hangs", || store.hanging() >= 1);
    job.tell("(busybox sha256sum /data/3) & kill -KILL $first; wait $first; echo killed $?");
    assert_eq!(job.answer(), "killed 137");
    store.set(Fault::None);
    assert_eq!(job.answer(), format!("{}  /data/3", image().1[3]));
    // The shell of the job says what it did to its child.
    assert!(reports(&job.finish()).is_empty());
}

#[test]
fn a_server_killed_while_the_store_hangs_comes_back_with_it() {
    let store = store();
    let mut job = Job::start(&store.image());
    hang_readers(&store, &mut job);
    kill(server_of(&store.image()), Signal::SIGKILL).expect("kill");
    job.tell("wait");
    std::thread::sleep(Duration::from_millis(300));
    store.set(Fault::None);
    (1..12).for_each(|number| job.check_file(number));
    assert_eq!(job.finish(), "");
    assert_nobody_holds(&store.image());
}

/// The launcher itself waits for the store.
#[test]
fn a_launch_from_a_hanging_store_can_be_killed() {
    let store = store();
    for reads in 0..12 {
        store.set(Fault::None);
        let mut command = hpcrun(["exec"]);
        command.arg(store.image()).args(["cat", "/data/3"]).stdout(Stdio::null()).stderr(Stdio::null());
        let before = store.reads();
        let mut child = command.spawn().expect("hpcrun");
        while store.reads() < before + reads && child.try_wait().expect("wait").is_none() {
            std::hint::spin_loop();
        }
        store.set(Fault::Hang);
        std::thread::sleep(Duration::from_millis(50));
        child.kill().expect("kill");
        // An hpcrun that reads the image itself waits for its store as any program does.
        store.set(Fault::None);
        child.wait().expect("wait");
        assert_nobody_holds(&store.image());
    }
}

/// How many directories a process has open without the right to read them.
fn held_directories(process: Pid) -> usize {
    const O_PATH: u32 = 0o10_000_000;
    let all = fs::read_dir(format!("/proc/{process}/fdinfo")).expect("its descriptors").flatten();
    let flags = all.filter_map(|one| {
        let info = fs::read_to_string(one.path()).ok()?;
        u32::from_str_radix(info.lines().find_map(|line| line.strip_prefix("flags:"))?.trim(), 8).ok()
    });
    flags.filter(|flags| flags & O_PATH != 0).count()
}

#[test]
fn the_server_holds_the_mount_until_the_first_process_ends() {
    let dir = scratch();
    let own = dir.path().join("own.sqsh");
    fs::copy(&image().0, &own).expect("copy");
    let mut job = Job::start(&own);
    let server = server_of(&own);
    wait_for("its hold", || held_directories(server) == 1);
    // One that is left behind has its root still, but not for our sake.
    let read = sum_of(3);
    job.tell(&format!("(while kill -0 $$ 2>/dev/null; do sleep 0.05; done; {read}; sleep 100) &"));
    drop(job.commands.take());
    assert!(job.child.wait().expect("wait").success());
    assert_eq!(job.answer(), format!("{}  /data/3", image().1[3]));
    wait_for("the end of its hold", || held_directories(server) == 0);
    assert_eq!(server_of(&own), server);
    killpg(Pid::from_raw(job.pid()), Signal::SIGKILL).expect("kill");
    assert_nobody_holds(&own);
}
