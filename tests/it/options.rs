//! The options of a launch through the binary by an ordinary user: what the job then sees, can write and is.

#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "a test that cannot go on fails there")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::busybox_image::{assert_fails, assert_nobody_holds, busybox, convert, copy_in, image, names_in};
use crate::layer_building::{Member, tar};
use crate::support::{as_user, hpcrun, run, scratch, stdout, text};

/// `hpcrun exec OPTIONS IMAGE sh -c SCRIPT`.
fn job(options: &[&str], script: &str) -> Command {
    let mut exec = hpcrun(["exec"]);
    exec.args(options).arg(image()).args(["sh", "-c", script]);
    exec
}

#[track_caller]
fn check(options: &[&str], script: &str, expected: &str) {
    assert_eq!(stdout(&mut job(options, script)), expected, "{options:?}: {script}");
}

#[track_caller]
fn check_fails(options: &[&str], status: i32, expected: &[&str]) {
    assert_fails(&run(&mut job(options, "true")), status, expected);
}

/// A directory with a file, which the ordinary user can write to.
fn data() -> tempfile::TempDir {
    let dir = scratch();
    fs::create_dir(dir.path().join("a")).expect("mkdir");
    fs::set_permissions(dir.path().join("a"), fs::Permissions::from_mode(0o777)).expect("chmod");
    fs::write(dir.path().join("a/file"), "in a\n").expect("write");
    fs::write(dir.path().join("a,b:c"), "odd\n").expect("write");
    dir
}

#[test]
fn lists_of_binds_and_dockers_fields() {
    let dir = data();
    let path = dir.path().display().to_string();
    check(
        &["-B", &format!("{path}/a:/x:ro,{path}/a/file:/y")],
        "cat /x/file /y; touch /x/no || echo ro",
        "in a\nin a\nro\n",
    );
    check(&["--bind", &format!("{path}/a\\,b\\:c:/y")], "cat /y", "odd\n");
    check(
        &["--mount", &format!("type=bind,src={path}/a,dst=/x,readonly")],
        "touch /x/no || cat /x/file",
        "in a\n",
    );
    check(&["--mount", &format!("type=bind,\"src={path}/a,b:c\",dst=/y")], "cat /y", "odd\n");
    check(&["--mount", "type=tmpfs,dst=/new"], "touch /new/x; ls /new", "x\n");
    check_fails(
        &["--mount", "type=bind,src=/tmp"],
        125,
        &["--mount", "its destination is missing", "hint: "],
    );
    check_fails(&["--bind", &format!("{path}/a:/x,")], 125, &["the source is empty"]);
}

#[test]
fn files_of_variables_are_literal_and_give_way_to_options() {
    let dir = scratch();
    let (first, second) = (dir.path().join("1.env"), dir.path().join("2.env"));
    fs::write(&first, "# comment\nA=first\nB=\"q\" $HOME `id` \\n\nPASSED\nC=1\n").expect("write");
    fs::write(&second, "A=second\nABSENT\n").expect("write");
    let files = ["--env-file", first.to_str().expect("path"), "--env-file", second.to_str().expect("path")];
    let script = "busybox printf '%s|' \"$A\" \"$B\" \"$PASSED\" \"$C\" \"${ABSENT-none}\"";
    let mut command = job(&[&files[..], &["--env", "C=option"]].concat(), script);
    assert_eq!(stdout(command.env("PASSED", "host's")), "second|\"q\" $HOME `id` \\n|host's|option|none|");
    fs::write(&first, "A=1\nexport B=2\n").expect("write");
    check_fails(&files[..2], 125, &["1.env:2:", "the name holds white space"]);
    check_fails(&["--env-file", "/none"], 125, &["cannot read the variables of /none"]);
}

#[test]
fn variables_stand_in_for_options() {
    let dir = data();
    let path = dir.path().display().to_string();
    let with = |variables: &[(&str, &str)], options: &[&str], script: &str| {
        let mut command = job(options, script);
        command.envs(variables.iter().copied());
        stdout(&mut command)
    };
    let a = format!("{path}/a:/x");
    for name in ["HPCRUN_BIND", "APPTAINER_BIND", "APPTAINER_BINDPATH", "SINGULARITY_BIND"] {
        assert_eq!(with(&[(name, &a)], &[], "cat /x/file"), "in a\n", "{name}");
    }
    // An option adds to a variable, and wins over it.
    let both = with(&[("APPTAINER_BIND", &a)], &["--bind", &format!("{path}/a:/y")], "cat /x/file /y/file");
    assert_eq!(both, "in a\nin a\n");
    let over = with(&[("APPTAINER_BIND", &a)], &["--bind", "/tmp:/x"], "ls -d /x/file || echo other");
    assert_eq!(over, "other\n");
    let strongest = [("APPTAINER_BIND", "/none"), ("HPCRUN_BIND", a.as_str()), ("SINGULARITY_BIND", "/none")];
    assert_eq!(with(&strongest, &[], "cat /x/file"), "in a\n");
    let variables = [("SINGULARITYENV_A", "s"), ("APPTAINERENV_A", "a"), ("APPTAINERENV_B", "b c")];
    assert_eq!(with(&variables, &[], "echo $A $B; env | grep -c TAINERENV || true"), "a b c\n0\n");
    assert_eq!(with(&variables, &["--env", "A=o"], "echo $A"), "o\n");
    assert_eq!(with(&[("APPTAINERENV_APPEND_PATH", "/more")], &[], "echo $PATH"), "/bin:/more\n");
    assert_eq!(with(&[("APPTAINER_CONTAIN", "1")], &[], "busybox ls -A /tmp"), "");
    assert_eq!(with(&[("SINGULARITY_CONTAIN", "no")], &[], "cd /tmp && pwd"), "/tmp\n");
    assert_eq!(with(&[("HPCRUN_CWD", "/data")], &[], "pwd"), "/data\n");
    assert_eq!(with(&[("HPCRUN_CWD", "/data")], &["--pwd", "/etc"], "pwd"), "/etc\n");
    assert_eq!(with(&[("APPTAINER_WRITABLE_TMPFS", "true")], &[], "touch /new; ls /new"), "/new\n");
    assert_eq!(with(&[("HPCRUN_WRITABLE_TMPFS", "4M")], &[], "touch /new; ls /new"), "/new\n");
    for name in ["HPCRUN_HOME", "HPCRUN_SCRATCH", "HPCRUN_BIND"] {
        let value = if name == "HPCRUN_SCRATCH" { "/x" } else { "/tmp:/x" };
        assert_eq!(with(&[(name, value)], &["--bind", &a], "cat /x/file"), "in a\n", "{name}");
    }
    let workdir = [("HPCRUN_WORKDIR", format!("{path}/a"))];
    let workdir = workdir.each_ref().map(|(name, value)| (*name, value.as_str()));
    assert_eq!(with(&workdir, &["--mount", "type=tmpfs,dst=/s"], "echo kept >/s/f"), "");
    assert_eq!(fs::read_to_string(dir.path().join("a/scratch/s/f")).expect("kept"), "kept\n");
    assert_eq!(with(&[("HPCRUN_UMASK", "0077")], &[], "umask"), "0077\n");
    let image = image().display().to_string();
    let told = with(
        &[("APPTAINER_NAME", "x")],
        &[],
        "echo $APPTAINER_CONTAINER $SINGULARITY_CONTAINER $APPTAINER_NAME",
    );
    assert_eq!(told, format!("{image} {image}\n"));
    let mut wrong = job(&[], "true");
    assert_fails(
        &run(wrong.env("HPCRUN_CONTAIN", "maybe")),
        125,
        &["HPCRUN_CONTAIN \"maybe\"", "hint: write 1 or 0"],
    );
}

#[test]
fn a_contained_job_has_directories_of_its_own() {
    let marker = tempfile::NamedTempFile::new_in("/tmp").expect("a file in /tmp");
    let name = marker.path().display().to_string();
    for option in ["--contain", "-c", "--containall", "-C"] {
        let script = format!(
            "ls {name} 2>/dev/null; busybox ls -A /tmp /var/tmp ~ /dev/shm; pwd; touch /tmp/x /var/tmp/y ~/z /dev/shm/s && echo x >/dev/null && echo written"
        );
        let home = stdout(as_user("sh").args(["-c", "echo $HOME"]));
        let home = home.trim();
        let expected = format!("/dev/shm:\n\n{home}:\n\n/tmp:\n\n/var/tmp:\n{home}\nwritten\n");
        check(&[option], &script, &expected);
    }
    check(
        &["--contain"],
        "busybox ls /dev",
        "fd\nfull\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n",
    );
    check(&["--contain"], "busybox head -c 3 /dev/zero | wc -c", "3\n");
    // A device can be given back, and a bind can go into a private directory.
    let dir = data();
    let bind = format!("{}/a:/tmp/deep/er", dir.path().display());
    check(&["--contain", "--bind", &bind], "cat /tmp/deep/er/file", "in a\n");
    let output = stdout(job(&["--contain"], "echo ${FOREIGN-none}").env("FOREIGN", "f"));
    assert_eq!(output, "f\n");
    assert_eq!(stdout(job(&["--containall"], "echo ${FOREIGN-none}").env("FOREIGN", "f")), "none\n");
    check(&["--containall"], "ps | grep -c '[h]pcrun-init'; cat /proc/sysvipc/shm | wc -l", "1\n1\n");
}

#[test]
fn private_directories_are_kept_below_a_host_directory() {
    let dir = data();
    let workdir = dir.path().join("a").display().to_string();
    let script = "echo t >/tmp/f; echo v >/var/tmp/f; echo h >~/f; echo s >/s/deep/f";
    for _ in 0..2 {
        check(&["-c", "-W", &workdir, "-S", "/s/deep"], script, "");
    }
    for (file, content) in
        [("tmp/f", "t\n"), ("var_tmp/f", "v\n"), ("home/f", "h\n"), ("scratch/s/deep/f", "s\n")]
    {
        assert_eq!(fs::read_to_string(dir.path().join("a").join(file)).expect("kept"), content, "{file}");
    }
    check(&["--scratch", "/s"], "touch /s/x && ls /s", "x\n");
    check(&["--scratch", "/s,/t"], "touch /s/x /t/y && ls /s /t", "/s:\nx\n\n/t:\ny\n");
    check_fails(&["--workdir", &workdir], 125, &["nothing is kept in --workdir", "--cwd"]);
    check_fails(&["-c", "--workdir", "/none"], 125, &["cannot bind /none (--workdir /none)"]);
}

#[test]
fn homes_and_what_is_left_out() {
    let dir = data();
    let a = dir.path().join("a").display().to_string();
    check(
        &["--home", &a],
        "echo $HOME; cd; pwd; grep -c \":$HOME:\" /etc/passwd; ls",
        &format!("{a}\n{a}\n1\nfile\n"),
    );
    check(&["-H", &format!("{a}:/home/other")], "cd; pwd; touch made", "/home/other\n");
    assert_eq!(names_in(&dir.path().join("a")), ["file", "made"]);
    let home = stdout(as_user("sh").args(["-c", "echo $HOME"]));
    let home = home.trim();
    for options in
        [&["--no-home"][..], &["--no-mount", "home"], &["--no-mount", "cwd,home"], &["--no-mount", home]]
    {
        check(options, &format!("ls -d {home} 2>/dev/null || echo none"), "none\n");
    }
    for more in [&[][..], &["--contain"]] {
        for (name, path) in [("proc", "/proc/self"), ("sys", "/sys/kernel"), ("dev", "/dev/null")] {
            let options = [&["--no-mount", name][..], more].concat();
            check(&options, &format!("ls -d {path} 2>/dev/null || echo none"), "none\n");
        }
        // The image has one of its own, and the working directory is there.
        let options = [&["--no-mount", "tmp,cwd"][..], more].concat();
        check(&options, "busybox grep -c ' /tmp ' /proc/self/mountinfo || true", "0\n");
    }
    let mut elsewhere = job(&["--no-mount", "cwd"], "ls file 2>/dev/null || echo none");
    let other = tempfile::tempdir_in("/var/tmp").expect("directory");
    fs::set_permissions(other.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    fs::write(other.path().join("file"), "").expect("write");
    assert_eq!(stdout(elsewhere.current_dir(other.path())), "none\n");
    check_fails(&["--no-mount", "nosuch"], 125, &["--no-mount \"nosuch\"", "hint: names are home"]);
    check_fails(&["--home", "/tmp,/var"], 125, &["there is one home directory"]);
}

/// What writing to the root must be able to do: in directories of uid 0, with files of the image.
const WRITES: &str = "set -e
touch /new /bin/new; busybox mkdir /etc/dir /etc/dir/sub; echo changed >>/work/note; cat /work/note
busybox rm /data/text; busybox rm -r /data; busybox mkdir /data; busybox ls -A /data
busybox mv /etc/group /etc/group2; busybox mv /etc/dir /dir2; busybox chmod 600 /etc/passwd
busybox ln /etc/passwd /etc/linked; busybox ln -s passwd /etc/soft; grep -c root: /etc/soft
busybox cp /bin/busybox /bin/busybox2; busybox2 echo copied; id -u >/dev/null; ls -d /dir2/sub";

const WRITTEN: &str = "a note\nchanged\n1\ncopied\n/dir2/sub\n";

#[test]
fn a_root_in_memory_takes_any_write_and_forgets_it() {
    for option in ["--writable-tmpfs", "--writable-tmpfs=32M"] {
        check(&[option], WRITES, WRITTEN);
    }
    check(&[], "cat /work/note; ls /data/text", "a note\n/data/text\n");
    check(
        &["--writable-tmpfs"],
        "stat -c '%u %g %a' /etc /work/note /bin/busybox | busybox sort -u; stat -c %u /proc/self/",
        &{
            let ids = stdout(as_user("sh").args(["-c", "echo $(id -u) $(id -g)"]));
            let ids = ids.trim();
            let uid = ids.split(' ').next().expect("a number");
            format!("{ids} 644\n{ids} 755\n{uid}\n")
        },
    );
    let output = run(&mut job(&["--writable-tmpfs=1M"], "busybox dd if=/dev/zero of=/big bs=64k count=32"));
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("No space left"), "{}", text(&output.stderr));
    let options = mount_options(&["--writable-tmpfs"], "/");
    assert!(options.starts_with("rw,nosuid,nodev"), "{options}");
    assert!(mount_options(&[], "/").starts_with("ro,nosuid,nodev"));
    // Binds go over it as over the image.
    let dir = data();
    let bind = format!("{}/a:/data/sub/deep", dir.path().display());
    check(&["--writable-tmpfs", "--bind", &bind], "cat /data/sub/deep/file; touch /data/sub/x", "in a\n");
}

/// Of the mount at `path` of a job.
fn mount_options(options: &[&str], path: &str) -> String {
    let table = stdout(&mut job(options, "cat /proc/self/mountinfo"));
    let line = table.lines().rfind(|line| line.split(' ').nth(4) == Some(path));
    line.unwrap_or_else(|| panic!("no {path} in {table}")).split(' ').nth(5).expect("options").to_owned()
}

#[test]
fn an_overlay_directory_keeps_what_was_written() {
    let dir = scratch();
    let own = stdout(as_user("mktemp").args(["-d", "-p"]).arg(dir.path()));
    let own = own.trim();
    check(&["--overlay", own], WRITES, WRITTEN);
    let kept = "cat /work/note; busybox ls -A /data; ls -d /dir2/sub /etc/group 2>/dev/null; touch /x 2>/dev/null || echo ro";
    check(&["--overlay", own], &format!("{kept}; busybox rm /x"), "a note\nchanged\n/dir2/sub\n");
    check(&["--overlay", &format!("{own}:ro")], kept, "a note\nchanged\n/dir2/sub\nro\n");
    assert!(mount_options(&["--overlay", &format!("{own}:ro")], "/").starts_with("ro,nosuid,nodev"));
    assert_eq!(names_in(Path::new(own)), ["upper", "work"]);
    // Several layers, the last on top, and memory over all.
    let second = stdout(as_user("mktemp").args(["-d", "-p"]).arg(dir.path()));
    let second = second.trim();
    check(&["--overlay", second], "echo second >/work/note; echo s >/s", "");
    let both = [format!("{own}:ro"), format!("{second}:ro")];
    let script = "cat /work/note /s; ls -d /dir2; touch /x && echo rw";
    check(
        &["--overlay", &both[0], "--overlay", &both[1], "--writable-tmpfs"],
        script,
        "second\ns\n/dir2\nrw\n",
    );
    check(
        &["--overlay", &both[1], "--overlay", &both[0], "--overlay", &mktemp(dir.path())],
        script,
        "a note\nchanged\ns\n/dir2\nrw\n",
    );
    check_fails(&["--overlay", "/none"], 125, &["cannot lay /none over the image", "does not exist"]);
    let empty = mktemp(dir.path());
    check_fails(
        &["--overlay", &format!("{empty}:ro")],
        125,
        &["cannot open the source of `overlay", "upper"],
    );
}

/// A directory of the ordinary user's.
fn mktemp(parent: &Path) -> String {
    stdout(as_user("mktemp").args(["-d", "-p"]).arg(parent)).trim().to_owned()
}

/// Starts a job that prints a line when it is there; gives the line.
#[track_caller]
fn start(command: &mut Command) -> (Child, String) {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("spawn");
    let mut line = String::new();
    BufReader::with_capacity(1, child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("read");
    (child, line.trim().to_owned())
}

#[test]
fn one_launch_at_a_time_writes_to_an_overlay() {
    let dir = scratch();
    let own = mktemp(dir.path());
    let (mut first, line) = start(&mut job(&["--overlay", &own], "echo there; cat"));
    assert_eq!(line, "there");
    check_fails(
        &["--overlay", &own],
        125,
        &[&format!("the overlay {own} is in use by another launch"), ":ro"],
    );
    drop(first.stdin.take());
    assert!(first.wait().expect("wait").success());
    wait_for("the lock to go", || run(&mut job(&["--overlay", &own], "true")).status.success());
    // What outlives the job's first process still writes.
    let (mut first, _) =
        start(&mut job(&["--overlay", &own], "{ sleep 30 & echo $!; } 2>/dev/null; exec true"));
    assert!(first.wait().expect("wait").success());
    check_fails(&["--overlay", &own], 125, &["in use by another launch"]);
    stdout(as_user("pkill").args(["-f", "^sleep 30$"]));
    wait_for("the lock to go", || run(&mut job(&["--overlay", &own], "true")).status.success());
}

#[track_caller]
fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !is_so() {
        assert!(std::time::Instant::now() < deadline, "{what}: not within ten seconds");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn links_in_an_overlay_lead_nowhere_outside() {
    let dir = scratch();
    let canary = dir.path().join("canary");
    fs::create_dir(&canary).expect("mkdir");
    fs::set_permissions(&canary, fs::Permissions::from_mode(0o777)).expect("chmod");
    let own = mktemp(dir.path());
    let linked = canary.display().to_string();
    stdout(as_user("ln").args(["-s", &linked]).arg(Path::new(&own).join("upper")));
    check_fails(&["--overlay", &own], 125, &["cannot open the source of `overlay"]);
    assert!(names_in(&canary).is_empty());
    // A mount point that the overlay turned into a link is not followed.
    let own = mktemp(dir.path());
    check(
        &["--overlay", &own],
        &format!("busybox rmdir /data 2>/dev/null; busybox rm -r /data; busybox ln -s {linked} /data"),
        "",
    );
    check_fails(&["--overlay", &own, "--bind", "/tmp:/data"], 125, &["/data", "symbolic link"]);
    assert!(names_in(&canary).is_empty());
}

#[test]
fn set_id_bits_of_an_image_never_reach_an_overlay() {
    let dir = scratch();
    let mut members = busybox();
    members.push(Member::file("bin/raised", fs::read("/bin/busybox").expect("busybox")).mode(0o6755));
    let image = convert(dir.path(), "raised", &json!({"Env": ["PATH=/bin"]}), &[tar(&members)]);
    let own = mktemp(dir.path());
    let mut exec = hpcrun(["exec", "--overlay", &own]);
    exec.arg(&image).args(["sh", "-c", "stat -c %a /bin/raised; touch /bin/raised"]);
    assert_eq!(stdout(&mut exec), "755\n");
    let mode = fs::metadata(Path::new(&own).join("upper/bin/raised")).expect("copied up").mode();
    assert_eq!(mode & 0o7777, 0o755);
}

#[test]
fn user_zero_inside_is_the_user_outside() {
    let dir = scratch();
    let own = mktemp(dir.path());
    let bind = format!("{own}:/out");
    let script = "id -u; id -g; id -un; touch /out/made; stat -c %u /out/made; cat /proc/self/setgroups; busybox chown 0:0 /out/made && echo chowned; busybox chown 1:1 /out/made 2>/dev/null || echo refused";
    check(&["--fakeroot", "--bind", &bind], script, "0\n0\nroot\n0\ndeny\nchowned\nrefused\n");
    let made = fs::metadata(Path::new(&own).join("made")).expect("made");
    let uid: u32 = stdout(as_user("id").arg("-u")).trim().parse().expect("a number");
    assert_eq!(made.uid(), uid);
    let status = stdout(&mut job(&["-f"], "grep -E '^(Cap|NoNewPrivs)' /proc/self/status"));
    let values: Vec<&str> = status.lines().filter_map(|line| line.split('\t').nth(1)).collect();
    assert_eq!(
        values,
        [
            "0000000000000000",
            "0000000000000000",
            "0000000000000000",
            "0000000000000000",
            "0000000000000000",
            "1"
        ]
    );
    check(&["--fakeroot", "--writable-tmpfs"], WRITES, WRITTEN);
}

#[test]
fn processes_of_its_own() {
    check(&["--pid"], "echo $$; ps | busybox awk 'NR > 1 {print $1}' | head -n 2", "2\n1\n2\n");
    check(&["--pid", "--no-init"], "echo $$", "1\n");
    for status in [0, 1, 42, 125, 126, 127, 255] {
        for options in [&["--pid"][..], &["-p", "--no-init"]] {
            let output = run(&mut job(options, &format!("exit {status}")));
            assert_eq!((output.status.code(), text(&output.stderr)), (Some(status), String::new()));
        }
    }
    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGSEGV] {
        let output = run(&mut job(&["--pid"], &format!("kill -{} $$", signal as i32)));
        assert_eq!(output.status.signal(), Some(signal as i32), "{:?}", output.status);
    }
    assert_fails(
        &run(hpcrun(["exec", "--pid"]).arg(image()).arg("nosuch")),
        127,
        &["nosuch not found in /bin"],
    );
    // Orphans are reaped: a thousand of them leave no zombie.
    let orphans =
        "i=0; while [ $i -lt 100 ]; do ( ( true & ) & ); i=$((i+1)); done; sleep 1; ps -o stat | grep -c Z";
    let output = run(&mut job(&["--pid"], orphans));
    assert_eq!(text(&output.stdout), "0\n");
}

#[test]
fn signals_reach_a_job_with_processes_of_its_own() {
    for (signal, name) in [(Signal::SIGTERM, "TERM"), (Signal::SIGUSR1, "USR1"), (Signal::SIGHUP, "HUP")] {
        let script = format!("trap 'echo got; exit 9' {name}; echo ready; while :; do sleep 0.05; done");
        let (mut child, line) = start(&mut job(&["--pid"], &script));
        assert_eq!(line, "ready");
        kill(Pid::from_raw(child.id().cast_signed()), signal).expect("kill");
        assert_eq!(child.wait().expect("wait").code(), Some(9), "{name}");
    }
}

#[test]
fn nothing_outlives_the_end_of_a_process_namespace() {
    let dir = scratch();
    let own = copy_in(dir.path());
    let start_in = |script: &str| {
        let mut exec = hpcrun(["exec", "--pid"]);
        exec.arg(&own).args(["sh", "-c", script]);
        start(&mut exec)
    };
    // The job ends and leaves a child behind; hpcrun is killed while the job runs.
    let (mut child, _) = start_in("sleep 1000 & echo there");
    assert!(child.wait().expect("wait").success());
    assert_nobody_holds(&own);
    let (mut child, _) = start_in("echo there; exec sleep 1000");
    child.kill().expect("kill");
    child.wait().expect("wait");
    assert_nobody_holds(&own);
}

#[test]
fn data_images_are_seen_as_directories() {
    let dir = scratch();
    let members = [Member::directory("deep/"), Member::file("deep/file", "data\n")];
    let data = convert(dir.path(), "data", &json!({}), &[tar(&members)]);
    let spec = format!("{}:/sets/one:image", data.display());
    let again = format!("type=image,src={},dst=/sets/two", data.display());
    let script = "cat /sets/one/deep/file /sets/two/deep/file; touch /sets/one/x 2>/dev/null || echo ro; cat /work/note";
    check(&["--bind", &spec, "--mount", &again], script, "data\ndata\nro\na note\n");
    assert!(mount_options(&["--bind", &spec], "/sets/one").starts_with("ro,nosuid,nodev"));
    assert_nobody_holds(&data);
    // The server of a data image outlives its death as the root's does.
    let (mut child, _) =
        start(&mut job(&["--bind", &spec], "echo there; read line; cat /sets/one/deep/file"));
    for server in servers(&data) {
        kill(Pid::from_raw(server), Signal::SIGKILL).expect("kill");
    }
    drop(child.stdin.take());
    let mut rest = String::new();
    std::io::Read::read_to_string(child.stdout.as_mut().expect("piped"), &mut rest).expect("read");
    assert!(child.wait().expect("wait").success());
    assert_eq!(rest, "data\n");
    assert_nobody_holds(&data);
    let no_image = format!("{}/data.tar:/d:image", dir.path().display());
    check_fails(&["--bind", &no_image], 125, &["cannot use image", "data.tar"]);
    check_fails(&["--bind", "/tmp:/d:image"], 125, &["it is a directory, not an image file"]);
}

/// Image servers that have `file` open.
fn servers(file: &Path) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let is_server =
            fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name.trim() == "hpcrun-server");
        let mut open = fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
        if is_server && open.any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == file)) {
            found.extend(entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
        }
    }
    assert!(!found.is_empty(), "nobody serves {}", file.display());
    found
}

#[test]
fn umasks_entrypoints_and_shells() {
    let with_umask = |options: &[&str]| {
        let mut command = as_user("sh");
        command.args(["-c", "umask 0027; exec \"$@\"", "sh"]).arg(crate::support::binary()).arg("exec");
        stdout(command.args(options).arg(image()).args(["sh", "-c", "umask"]))
    };
    assert_eq!(with_umask(&[]), "0027\n");
    assert_eq!(with_umask(&["--no-umask"]), "0022\n");
    assert_eq!(with_umask(&["--umask", "0077"]), "0077\n");
    check_fails(&["--umask", "999"], 125, &["--umask", "octal"]);
    let entry = |entrypoint: &str, args: &[&str]| {
        stdout(hpcrun(["run", "--entrypoint", entrypoint]).arg(image()).args(args))
    };
    assert_eq!(entry("/bin/echo", &["x y", "$z"]), "x y $z\n");
    assert_eq!(entry("", &["/bin/echo", "x"]), "x\n");
    let mut shell = hpcrun(["shell", "--shell", "/data/script"]);
    assert_eq!(stdout(shell.arg(image())), "script \n");
}

#[test]
fn options_of_other_tools_get_an_answer() {
    for (option, why) in [
        ("--writable", "an image file never changes"),
        ("-w", "an image file never changes"),
        ("--user=1000", "you are yourself inside"),
        ("--net", "the network of its node"),
        ("--security", "never has a capability"),
        ("--memory", "keeps the limits"),
        ("--sharens", "share their namespaces"),
        ("--compat", "several options"),
        ("-t", "the terminal"),
    ] {
        for verb in ["exec", "run", "shell"] {
            let output = run(hpcrun([verb, option]).arg(image()));
            let line = assert_fails(&output, 125, &[why, "hint: "]);
            let name = option.split('=').next().expect("a name");
            assert!(line.starts_with(&format!("hpcrun: there is no {name}: ")), "{line}");
        }
    }
    check_fails(&["--nosuch"], 125, &["unexpected argument '--nosuch'"]);
    let output = run(hpcrun(["exec", "-e"]).arg(image()).arg("true"));
    assert_fails(&output, 125, &["is not the name of a variable", "Apptainer's -e is --cleanenv here"]);
    assert_fails(&run(hpcrun(["inspect", "--net"]).arg(image())), 125, &["unexpected argument '--net'"]);
}
