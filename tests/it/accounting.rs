//! What the site's log says of launches, where it goes, and what `hpcrun report` makes of it.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test that fails, panics"
)]

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::bad_input::in_private_mounts;
use crate::busybox_image::image;
use crate::site_directory::{Site, set_mode};
use crate::support::{TEST_USER, binary, hpcrun, run, stdout, text};

/// A site that logs to files in a directory of everybody's.
struct Log {
    site: Site,
    directory: PathBuf,
}

impl Log {
    fn new(name: &str, rules: &str) -> Log {
        let site = Site::new();
        let directory = site.directory("log", 0o1777);
        let file = directory.join(name);
        site.policy(&format!("[log]\nlaunches = \"file\"\nfile = {file:?}\n{rules}"));
        Log { site, directory }
    }

    fn lines(&self, name: &str) -> Vec<String> {
        let content = fs::read_to_string(self.directory.join(name)).unwrap_or_default();
        content.lines().map(str::to_owned).collect()
    }

    fn records(&self, name: &str) -> Vec<Value> {
        self.lines(name).iter().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    fn launch(&self, image: &Path, variables: &[(&str, &str)]) -> std::process::Output {
        run(self.site.hpcrun(["-v", "exec"]).arg(image).args(["echo", "ran"]).envs(variables.iter().copied()))
    }
}

#[test]
fn a_launch_is_one_line_with_all_that_accounting_needs() {
    let log = Log::new("$USER-$JOB.jsonl", "");
    assert_eq!(text(&log.launch(image(), &[]).stdout), "ran\n");
    let records = log.records(&format!("{TEST_USER}-nojob.jsonl"));
    let record = records.first().expect("a line").clone();
    assert_eq!(records.len(), 1);
    let shown = stdout(hpcrun(["inspect", "--json"]).arg(image()));
    let shown: Value = serde_json::from_str(&shown).unwrap();
    for (field, expected) in [
        ("decision", json!("launched")),
        ("user", json!(TEST_USER)),
        ("uid", json!(stdout(Command::new("id").args(["-u", TEST_USER])).trim().parse::<u32>().unwrap())),
        ("host", json!(stdout(&mut Command::new("hostname")).trim())),
        ("image", json!(image().canonicalize().unwrap())),
        ("digest", shown["provenance"]["manifest_digest"].clone()),
        ("name", shown["provenance"]["origin"].clone()),
        ("share", json!("alone")),
        ("version", json!(env!("CARGO_PKG_VERSION"))),
        ("job", Value::Null),
        ("rule", Value::Null),
    ] {
        assert_eq!(record[field], expected, "{field}: {record}");
    }
    let setup = record["setup_us"].as_u64().unwrap();
    assert!((1..600_000_000).contains(&setup), "{record}");
    let now = stdout(Command::new("date").args(["-u", "+%Y-%m-%dT%H:"]));
    let earlier = stdout(Command::new("date").args(["-u", "-d", "-1 minute", "+%Y-%m-%dT%H:"]));
    let time = record["time"].as_str().unwrap();
    assert!(time.starts_with(now.trim()) || time.starts_with(earlier.trim()), "{time}");
    let owner = fs::metadata(log.directory.join(format!("{TEST_USER}-nojob.jsonl"))).unwrap().uid();
    assert_eq!(json!(owner), record["uid"]);
}

#[test]
fn ranks_that_share_are_one_launch_and_two_steps_are_two() {
    let log = Log::new("$JOB.jsonl", "");
    let rank = |step: &'static str, rank: &'static str| {
        let mut command = log.site.hpcrun(["exec"]);
        command.arg(image()).args(["sh", "-c", "echo ready; read go"]);
        command.envs([("SLURM_JOB_ID", "77"), ("SLURM_STEP_ID", step), ("SLURM_LOCALID", rank)]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("spawn");
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0; 6]).expect("ready");
        child
    };
    let ranks = [rank("0", "0"), rank("0", "1"), rank("0", "2"), rank("1", "0")];
    for mut rank in ranks {
        drop(rank.stdin.take());
        rank.wait().unwrap();
    }
    let records = log.records("77.jsonl");
    let shown: Vec<_> = records
        .iter()
        .map(|record| (&record["launcher"], &record["job"], &record["step"], &record["share"]))
        .collect();
    let expected = ["77.0", "77.1"].map(|step| [json!("slurm"), json!("77"), json!(step), json!("first")]);
    let expected: Vec<_> = expected.iter().map(|[a, b, c, d]| (a, b, c, d)).collect();
    assert_eq!(shown, expected);
}

#[test]
fn refusals_and_failures_are_told_with_their_reason() {
    let log = Log::new("log.jsonl", "[images]\ndirectories = [\"/no/where\"]\n");
    let output = log.launch(image(), &[("SLURM_JOB_ID", "5"), ("SLURM_LOCALID", "0")]);
    assert_eq!(output.status.code(), Some(122));
    assert_eq!(
        log.launch(image(), &[("SLURM_JOB_ID", "5"), ("SLURM_LOCALID", "1")]).status.code(),
        Some(122)
    );
    for missing in ["/no/such.sqsh", "no-such-name"] {
        let output = log.launch(Path::new(missing), &[]);
        assert_eq!(output.status.code(), Some(125));
    }
    let records = log.records("log.jsonl");
    assert_eq!(records.len(), 3, "the first rank speaks for all: {records:?}");
    let policy = log.site.path().join("policy.toml");
    assert_eq!(records[0]["decision"], "refused");
    assert_eq!(records[0]["rule"], format!("{}:5 [images] directories", policy.display()));
    assert!(records[0]["reason"].as_str().unwrap().starts_with("refused by site policy: image "));
    assert_eq!(records[0]["image"], json!(image().canonicalize().unwrap()));
    assert_eq!((&records[1]["decision"], &records[1]["image"]), (&json!("failed"), &json!("/no/such.sqsh")));
    assert!(records[1]["reason"].as_str().unwrap().contains("ENOENT"));
    assert_eq!(records[2]["image"], "no-such-name");
    // Looking at a plan is no launch.
    for looked_at in [image(), Path::new("no-such-name")] {
        log.site.hpcrun(["exec", "--explain"]).arg(looked_at).arg("true").output().unwrap();
    }
    assert_eq!(log.records("log.jsonl").len(), 3);
}

/// Whatever refuses a launch, its rule is in the message and, as a field of its own, in the log.
#[test]
fn every_refusal_names_its_rule() {
    let log = Log::new("log.jsonl", "");
    let policy = log.site.path().join("policy.toml");
    let common = fs::read_to_string(&policy).unwrap();
    let file = common.lines().count();
    let data = log.site.copy("data.sqsh");
    let own = log.directory.join("own.sqsh");
    fs::copy(&data, &own).unwrap();
    stdout(Command::new("chown").arg(TEST_USER).arg(&own));
    let (own, none) = (format!("{}:/mnt:image", own.display()), Vec::new());
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let sets: Vec<(&str, &str, Vec<String>)> = vec![
        ("images", "owners = [\"root\"]", words(&["--bind", &own])),
        ("images", "directories = [\"/no/where\"]", none.clone()),
        ("images", "formats = [\"sif\"]", none.clone()),
        ("binds", "allowed = []", words(&["--bind", "/usr"])),
        ("binds", "denied = [\"/usr\"]", words(&["--bind", "/usr"])),
        ("binds", "forced = [\"/usr:/mnt\"]", words(&["--bind", "/etc:/mnt"])),
        ("binds", "forced = [\"/mnt/$NOBODY_HAS_SET\"]", none),
        ("env", "unset = [\"SECRET\"]", words(&["--env", "SECRET=1"])),
        ("gpu", "allow_user = false", words(&["--gpu", "none"])),
        ("mpi", "allow_host = false", words(&["--mpi", "host"])),
        ("launch", "allow_pid = false", words(&["--pid"])),
        ("launch", "max_tmpfs = 4096", words(&["--writable-tmpfs=1G"])),
        ("modules.site", "mode = \"never\"", words(&["--module", "site"])),
    ];
    for (number, (section, rule, options)) in sets.iter().enumerate() {
        fs::write(&policy, format!("{common}[{section}]\n{rule}\n")).unwrap();
        let output = run(log.site.hpcrun(["exec"]).args(options).arg(&data).arg("true"));
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(122), "{rule}: {told}");
        let place = format!("{}:{} ", policy.display(), file + 2);
        let records = log.records("log.jsonl");
        assert_eq!(records.len(), number + 1, "{rule}: {records:?}");
        let record = &records[number];
        assert_eq!(record["decision"], "refused", "{record}");
        let named = record["rule"].as_str().unwrap_or_default();
        assert!(named.starts_with(&place), "{rule}: {record}");
        assert!(told.contains(named), "{named}: {told}");
    }
}

#[test]
fn a_full_disk_costs_the_line_and_not_the_launch() {
    let log = Log::new("log.jsonl", "");
    let policy = log.site.path().join("policy.toml");
    // Of one page, less a few bytes.
    let script = format!(
        "mount -t tmpfs -o size=4k,mode=1777 none {0}; head -c 4090 /dev/zero >{0}/log.jsonl; chmod 666 {0}/log.jsonl; \
         export HPCRUN_POLICY={1}",
        log.directory.display(),
        policy.display()
    );
    let words = [binary().as_os_str(), "-v".as_ref(), "exec".as_ref(), image().as_os_str()];
    let output = in_private_mounts(&script, &[&words[..], &["echo".as_ref(), "ran".as_ref()]].concat());
    let told = text(&output.stderr);
    assert_eq!(text(&output.stdout), "ran\n", "{told}");
    assert!(told.contains("this launch is not logged: No space left on device (ENOSPC)"), "{told}");
}

#[test]
fn text_is_for_people() {
    let log = Log::new("log", "format = \"text\"\n");
    log.launch(image(), &[]);
    let lines = log.lines("log");
    assert!(
        lines[0].starts_with("launched time=20") && lines[0].contains(&format!(" user={TEST_USER} uid=")),
        "{lines:?}"
    );
    assert!(lines[0].contains(" share=alone setup_us="), "{lines:?}");
}

/// What is in the way at the log's place keeps nothing from running, and gets nothing written.
#[test]
fn a_log_that_cannot_be_written_is_left() {
    let log = Log::new("log.jsonl", "");
    let path = log.directory.join("log.jsonl");
    let precious = log.site.path().join("precious");
    fs::write(&precious, "").unwrap();
    stdout(Command::new("chown").arg(TEST_USER).arg(&precious));
    let not_logged = |why: &str| {
        let output = log.launch(image(), &[]);
        let told = text(&output.stderr);
        assert_eq!(text(&output.stdout), "ran\n", "{told}");
        assert!(told.contains("this launch is not logged: ") && told.contains(why), "{why}: {told}");
    };
    symlink(&precious, &path).unwrap();
    not_logged("(ELOOP)");
    fs::remove_file(&path).unwrap();
    fs::hard_link(&precious, &path).unwrap();
    not_logged("it has other names");
    fs::remove_file(&path).unwrap();
    File::create(&path).unwrap();
    set_mode(&path, 0o666);
    stdout(Command::new("chown").arg("54321").arg(&path));
    // The kernel may refuse first (fs.protected_regular).
    let output = log.launch(image(), &[]);
    assert!(output.status.success() && text(&output.stderr).contains("this launch is not logged"));
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    fs::remove_file(&path).unwrap();
    stdout(Command::new("mkfifo").args(["-m", "666"]).arg(&path));
    not_logged("log.jsonl");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    not_logged("(EISDIR)");
    fs::remove_dir(&path).unwrap();
    set_mode(&log.directory, 0o755);
    not_logged("(EACCES)");
    assert_eq!(fs::metadata(&precious).unwrap().len(), 0);
    // A limit of file sizes would have the kernel kill the job.
    set_mode(&log.directory, 0o1777);
    let mut limited = Command::new("prlimit");
    limited
        .arg("--fsize=1000000")
        .arg("--")
        .arg(binary())
        .args(["-v", "exec"])
        .arg(image())
        .args(["echo", "ran"]);
    let output = run(limited.env("HPCRUN_POLICY", log.site.path().join("policy.toml")).current_dir("/tmp"));
    assert_eq!(text(&output.stdout), "ran\n");
    assert!(text(&output.stderr).contains("the limit of a file's size is set"), "{}", text(&output.stderr));
    // One that the site has made for everybody is fine.
    File::create(&path).unwrap();
    set_mode(&path, 0o666);
    set_mode(&log.directory, 0o755);
    log.launch(image(), &[]);
    assert_eq!(log.records("log.jsonl").len(), 1);
}

#[test]
fn the_system_log_gets_a_datagram_and_is_never_waited_for() {
    let site = Site::new();
    let policy = site.policy("[log]\nlaunches = \"syslog\"\nfacility = \"local3\"\n");
    let socket = site.path().join("socket");
    let launched = |link: &str| {
        let script = format!(
            "mount -t tmpfs -o mode=755 none /dev; mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/fuse c 10 229; {link}; \
             export HPCRUN_POLICY={}",
            policy.display()
        );
        let words = [binary().as_os_str(), "-v".as_ref(), "exec".as_ref(), image().as_os_str()];
        let output = in_private_mounts(&script, &[&words[..], &["echo".as_ref(), "ran".as_ref()]].concat());
        assert_eq!(text(&output.stdout), "ran\n", "{}", text(&output.stderr));
        text(&output.stderr)
    };
    // Nobody listens, as in most containers.
    let told = launched("true");
    assert!(told.contains("this launch is not logged: connect(\"/dev/log\")"), "{told}");
    let receiver = UnixDatagram::bind(&socket).unwrap();
    set_mode(&socket, 0o666);
    let link = format!("ln -s {} /dev/log", socket.display());
    let told = launched(&link);
    assert!(!told.contains("not logged"), "{told}");
    let mut datagram = [0; 8192];
    let length = receiver.recv(&mut datagram).unwrap();
    let message = text(&datagram[..length]);
    // local3.info.
    let (head, record) = message.split_once(": ").unwrap();
    assert!(head.starts_with("<158>hpcrun[") && head.ends_with(']'), "{message}");
    let record: Value = serde_json::from_str(record).unwrap();
    assert_eq!((&record["decision"], &record["user"]), (&json!("launched"), &json!(TEST_USER)));
    // One that hangs: its queue is full.
    let sender = UnixDatagram::unbound().unwrap();
    sender.set_nonblocking(true).unwrap();
    while sender.send_to(b"x", &socket).is_ok() {}
    let told = launched(&link);
    assert!(told.contains("this launch is not logged: send(system log)"), "{told}");
}

#[test]
fn a_report_of_launches_by_users_jobs_and_nodes() {
    let log = Log::new("$JOB.jsonl", "[images]\ndirectories = [\"/tmp\"]\n");
    let own = log.site.copy("own.sqsh");
    for job in ["1", "1", "2"] {
        log.launch(&own, &[("SLURM_JOB_ID", job), ("HPCRUN_SHARE", "none")]);
    }
    log.launch(Path::new("/etc/hostname"), &[]);
    let report = |words: &[&str]| {
        let text = stdout(hpcrun(["report", "--json"]).args(words));
        serde_json::from_str::<Value>(&text).expect("JSON")["images"].clone()
    };
    let directory = log.directory.to_str().unwrap();
    let images = report(&[directory]);
    assert_eq!(images.as_array().unwrap().len(), 2, "{images}");
    let first = &images[0];
    assert_eq!(
        (&first["launches"], &first["jobs"], &first["nodes"]),
        (&json!(3), &json!(2), &json!(1)),
        "{first}"
    );
    assert_eq!((&first["users"], &first["images"]), (&json!([TEST_USER]), &json!([own])), "{first}");
    assert_eq!((&images[1]["launches"], &images[1]["failures"]), (&json!(0), &json!(1)), "{images}");
    let table = stdout(hpcrun(["report"]).arg(directory));
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["LAUNCHES", "REFUSED", "FAILED", "USERS", "JOBS", "NODES", "LAST", "IMAGE"]);
    assert_eq!(lines[1][..6], ["3", "0", "0", "1", "2", "1"]);
    // By time.
    assert_eq!(report(&[directory, "--since", "1h"]).as_array().unwrap().len(), 2);
    assert_eq!(report(&[directory, "--since", "2100-01-01"]), json!([]));
    // From a journal, on standard input, with lines of others among them and one cut short.
    let line = log.lines("1.jsonl").remove(0);
    let journal = format!(
        "{}\nnoise\n{}\nNov 22 01:02:03 node9 hpcrun[3]: {}\n{}",
        json!({"_HOSTNAME": "n", "MESSAGE": line}),
        json!({"MESSAGE": "something else {"}),
        line.replace("\"launched\"", "\"refused\"")
            .replace("\"version\"", "\"rule\":\"/p:1 [x] y\",\"version\""),
        &line[..line.len() / 2],
    );
    let mut command = hpcrun(["report", "--json"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(journal.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let images: Value = serde_json::from_slice::<Value>(&output.stdout).unwrap()["images"].clone();
    assert_eq!((&images[0]["launches"], &images[0]["refusals"]), (&json!(1), &json!(1)), "{images}");
    assert_eq!(images[0]["refused_by"], json!({"/p:1 [x] y": 1}));
    assert!(text(&output.stderr).contains("warning: 1 lines"), "{}", text(&output.stderr));
    let missing = run(&mut hpcrun(["report", "/no/such/log"]));
    crate::busybox_image::assert_fails(&missing, 125, &["cannot read the log /no/such/log", "ENOENT"]);
}
