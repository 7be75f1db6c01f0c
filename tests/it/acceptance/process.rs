//! The job as a process: how it ends, which signals reach it, what it inherits, who it is.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::json;

use super::{exec, exec_image, ready, tools, wait_for};
use crate::busybox_image::{assert_fails, assert_nobody_holds, busybox, convert, copy_in, image};
use crate::layer_building::{Member, tar};
use crate::support::{TEST_USER, as_user, binary, hpcrun, is_root, run, scratch, stdout, text};

#[test]
fn row_01_and_31_every_exit_status_is_the_jobs() {
    let range = |from: usize| (from..256).step_by(4);
    let check = |from: usize| {
        for status in range(from) {
            let output = run(&mut exec(&["sh", "-c", &format!("exit {status}")]));
            assert_eq!(output.status.code(), i32::try_from(status).ok());
            assert_eq!(text(&output.stderr), "", "{status}");
        }
    };
    std::thread::scope(|scope| {
        for from in 0..4 {
            scope.spawn(move || check(from));
        }
    });
}

#[test]
fn row_02_and_31_a_job_killed_by_a_signal_dies_of_it() {
    for (signal, seen) in
        [(Signal::SIGKILL, 137), (Signal::SIGABRT, 134), (Signal::SIGSEGV, 139), (Signal::SIGTERM, 143)]
    {
        let output = run(&mut exec(&["sh", "-c", &format!("kill -{} $$", signal as i32)]));
        assert_eq!(output.status.signal(), Some(signal as i32));
        // What a script sees that started it.
        let mut shell = as_user("sh");
        shell.args(["-c", "\"$@\"; echo $?", "sh"]).arg(binary()).arg("exec").arg(image());
        let shown =
            stdout(shell.args(["sh", "-c", &format!("kill -{} $$", signal as i32)]).stderr(Stdio::null()));
        assert_eq!(shown, format!("{seen}\n"));
    }
}

#[test]
fn row_07_and_32_signals_reach_the_payload() {
    let signals = [
        (Signal::SIGTERM, "TERM", 7),
        (Signal::SIGUSR1, "USR1", 8),
        (Signal::SIGUSR2, "USR2", 9),
        (Signal::SIGINT, "INT", 10),
        (Signal::SIGHUP, "HUP", 11),
    ];
    for (signal, name, status) in signals {
        let script = format!("trap 'exit {status}' {name}; echo ready; while :; do sleep 0.05; done");
        // A shell leaves alone what it found ignored: the trap shows that nothing was.
        let mut child = ready(exec(&["sh", "-c", &script]).stdin(Stdio::null()));
        kill(Pid::from_raw(child.id().cast_signed()), signal).expect("kill");
        assert_eq!(child.wait().expect("wait").code(), Some(status), "{name}");
    }
}

#[test]
fn row_09_and_32_nothing_is_left_of_a_killed_job() {
    let dir = scratch();
    let own = copy_in(dir.path());
    let mut child = ready(exec_image(&own, &["sh", "-c", "echo ready; exec sleep 100"]).stdin(Stdio::null()));
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL).expect("kill");
    assert_eq!(child.wait().expect("wait").signal(), Some(Signal::SIGKILL as i32));
    assert_nobody_holds(&own);
}

#[test]
fn row_10_and_32_a_job_stops_and_goes_on() {
    let script = "echo ready; i=0; while [ $i -lt 40 ]; do sleep 0.02; i=$((i+1)); done; exit 6";
    // A group of its own in this session: the kernel stops no orphaned group.
    let mut child = ready(exec(&["sh", "-c", script]).process_group(0).stdin(Stdio::null()));
    let pid = Pid::from_raw(child.id().cast_signed());
    let state = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
        stat.rsplit_once(") ").map(|(_, rest)| rest[..1].to_owned()).expect("a state")
    };
    killpg(pid, Signal::SIGTSTP).expect("stop");
    wait_for("the stop", || state() == "T");
    killpg(pid, Signal::SIGCONT).expect("continue");
    wait_for("the continuation", || state() != "T");
    assert_eq!(child.wait().expect("wait").code(), Some(6));
}

#[test]
fn row_11_streams_are_the_callers_own() {
    let output = run(&mut exec(&["sh", "-c", "echo to out; echo to err >&2"]));
    assert_eq!((text(&output.stdout).as_str(), text(&output.stderr).as_str()), ("to out\n", "to err\n"));
    let mut grep = exec(&["grep", "hi"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("spawn");
    grep.stdin.take().expect("piped").write_all(b"hi\nho\n").expect("write");
    assert_eq!(text(&grep.wait_with_output().expect("wait").stdout), "hi\n");
    // A large stream, in and out.
    let mut shell = as_user("bash");
    let line = "set -o pipefail; head -c 256M /dev/zero | tr '\\0' x | \"$@\" | sha256sum";
    let through = |words: &[&Path]| stdout(Command::new("bash").args(["-c", line, "bash"]).args(words));
    let direct = through(&[Path::new("cat")]);
    shell.args(["-c", line, "bash"]).arg(binary()).arg("exec").arg(image()).arg("cat");
    assert_eq!(stdout(&mut shell), direct);
}

#[test]
fn row_13_the_user_has_the_hosts_name_whatever_the_image_calls_the_id() {
    let uid = stdout(as_user("id").arg("-u"));
    let dir = scratch();
    let passwd = format!("root:x:0:0::/root:/bin/sh\nother:x:{}:7:Other:/home/other:/bin/sh\n", uid.trim());
    let members = [busybox(), vec![Member::directory("etc"), Member::file("etc/passwd", passwd)]].concat();
    let other = convert(dir.path(), "other", &json!({}), &[tar(&members)]);
    let host = stdout(as_user("id").arg("-un"));
    assert_eq!(stdout(&mut exec_image(&other, &["id", "-un"])), host);
    let line = stdout(&mut exec_image(&other, &["grep", &format!(":{}:", uid.trim()), "/etc/passwd"]));
    let home = stdout(as_user("sh").args(["-c", "echo $HOME"]));
    assert_eq!(line.lines().count(), 1, "{line}");
    assert_eq!(line.split(':').nth(5), Some(home.trim()), "{line}");
    assert_eq!(stdout(&mut exec_image(&other, &["sh", "-c", "echo ~"])), home);
}

#[test]
fn row_15_a_user_without_home_runs() {
    assert!(is_root(), "this test becomes another user: run it as root");
    let mut nobody = Command::new("setpriv");
    nobody.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps=-all", "--"]);
    nobody.arg(binary()).arg("exec").arg(image()).args(["sh", "-c", "id -un; pwd"]);
    for home in ["/", "/nonexistent", ""] {
        let shown = stdout(nobody.env("HOME", home).env("USER", "nobody").current_dir("/"));
        // The host's root is no directory to start in: the image's is.
        assert_eq!(shown, "nobody\n/work\n", "HOME={home}");
    }
}

#[test]
fn row_33_and_37_descriptors_pass_and_none_is_ours() {
    // A file, one with a high number, a socket pair, a directory.
    let program = "import os, socket, sys\n\
        os.closerange(3, 4096)\n\
        a, b = socket.socketpair()\n\
        os.dup2(os.open('/etc/hostname', os.O_RDONLY), 100, inheritable=True)\n\
        os.dup2(a.fileno(), 5, inheritable=True); os.dup2(b.fileno(), 6, inheritable=True)\n\
        os.dup2(os.open('/usr', os.O_RDONLY), 42, inheritable=True)\n\
        os.execv(sys.argv[1], sys.argv[1:])";
    let look = "ls /proc/self/fd | sort -n; cat /proc/self/fd/100; echo hello >&5; head -c 6 <&6; ls /proc/self/fd/42/ | head -1";
    let with = |words: &[&Path]| {
        let mut python = as_user("/usr/bin/python3");
        stdout(python.args(["-c", program]).args(words).args(["sh", "-c", look]))
    };
    let tools = tools();
    let inside = with(&[
        binary(),
        Path::new("exec"),
        Path::new("--bind=/usr:/usr:ro"),
        tools,
        Path::new("/usr/bin/env"),
    ]);
    let outside = with(&[Path::new("/usr/bin/env")]);
    for line in ["5", "6", "42", "100", "hello"] {
        assert!(outside.lines().any(|found| found == line), "no {line} in {outside}");
    }
    assert_eq!(inside, outside);
}

#[test]
fn row_34_and_36_limits_and_attributes_are_the_callers() {
    let script = "ulimit -S -s 4096; ulimit -S -n 99; ulimit -l 32; ulimit -c 0; ulimit -S -t 1000; ulimit -S -f 123456; \
        umask 0027; echo 345 > /proc/self/oom_score_adj; renice -n 3 $$ >/dev/null; exec \"$@\"";
    let look = "cat /proc/self/limits /proc/self/oom_score_adj; umask; /bin/busybox cut -d ' ' -f 19 /proc/self/stat; \
        grep -E '^(Cpus_allowed|Mems_allowed|SigIgn|SigBlk|Umask)' /proc/self/status";
    let with = |words: &[&Path]| {
        let mut bash = as_user("taskset");
        stdout(bash.args(["-c", "0", "bash", "-c", script, "bash"]).args(words).args(["sh", "-c", look]))
    };
    let outside = with(&[Path::new("/bin/busybox")]);
    assert!(outside.contains("\n345\n0027\n3\n"), "{outside}");
    assert_eq!(with(&[binary(), Path::new("exec"), image(), Path::new("/bin/busybox")]), outside);
}

#[test]
fn row_35_of_the_peers_the_job_is_its_user_to_the_kernel() {
    assert!(is_root(), "this test makes files of other groups: run it as root");
    let dir = scratch();
    let shared = dir.path().join("shared");
    fs::write(&shared, "for the group\n").expect("write");
    chown(&shared, Some(0), Some(54_321)).expect("chown");
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o640)).expect("chmod");
    let with_group = |script: &str| {
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid",
            TEST_USER,
            "--regid",
            TEST_USER,
            "--groups",
            "54321",
            "--inh-caps=-all",
            "--",
        ]);
        command.arg(binary()).arg("exec").arg(image()).args(["sh", "-c", script]).current_dir(dir.path());
        run(command.env("HOME", format!("/home/{TEST_USER}")))
    };
    let read = with_group("cat shared; touch made");
    assert_eq!(text(&read.stdout), "for the group\n", "{}", text(&read.stderr));
    let made = fs::metadata(dir.path().join("made")).expect("made");
    let number = |option: &str| stdout(as_user("id").arg(option)).trim().parse::<u32>().expect("a number");
    assert_eq!((made.uid(), made.gid()), (number("-u"), number("-g")));
    assert_eq!(run(&mut exec(&["sh", "-c", &format!("cat {}", shared.display())])).status.code(), Some(1));
    let program = "import os, pwd\n\
        try: os.setgroups([0])\n\
        except PermissionError: print('refused')\n\
        print(pwd.getpwuid(os.getuid()).pw_name)";
    let shown = stdout(&mut tools_exec(&["/usr/bin/python3", "-c", program]));
    assert_eq!(shown, format!("refused\n{}", stdout(as_user("id").arg("-un"))));
}

fn tools_exec(words: &[&str]) -> Command {
    let mut command = hpcrun(["exec", "--bind", "/usr:/usr:ro"]);
    command.arg(tools()).args(words);
    command
}

#[test]
fn row_40_of_the_peers_a_tool_with_rights_refuses_to_work() {
    assert!(is_root(), "this test makes a setuid program: run it as root");
    let dir = tempfile::Builder::new().prefix("hpcrun-setuid-").tempdir_in("/tmp").expect("directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let copy = dir.path().join("hpcrun");
    let victim = dir.path().join("new.sqsh");
    for mode in [0o4755, 0o2755, 0o6755] {
        fs::copy(binary(), &copy).expect("copy");
        fs::set_permissions(&copy, fs::Permissions::from_mode(mode)).expect("chmod");
        for words in [
            vec!["exec".as_ref(), image().as_os_str(), "true".as_ref()],
            vec!["convert".as_ref(), "dir:/etc".as_ref(), victim.as_os_str()],
            vec!["ps".as_ref()],
            vec!["inspect".as_ref(), image().as_os_str()],
        ] {
            let output = run(as_user(&copy).args(&words));
            assert_fails(&output, 125, &["more rights than its caller", "hint: ", "chmod ug-s"]);
        }
        assert!(!victim.exists());
        fs::remove_file(&copy).expect("remove");
    }
}

#[test]
fn row_40_of_the_peers_real_root_gets_a_job_without_privilege() {
    assert!(is_root(), "this test is about root: run it as root");
    let script =
        "id -u; grep -E '^(Cap|NoNewPrivs)' /proc/self/status; touch /x 2>/dev/null || echo read-only";
    let shown = stdout(Command::new(binary()).arg("exec").arg(image()).args(["sh", "-c", script]));
    let sets =
        ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|set| format!("{set}:\t0000000000000000\n"));
    assert_eq!(shown, format!("0\n{}NoNewPrivs:\t1\nread-only\n", sets.concat()));
}

#[test]
fn row_50_sixty_four_launches_at_once() {
    let dir = scratch();
    let own = copy_in(dir.path());
    let start = |number: i32| {
        let mut command = exec_image(&own, &["sh", "-c", &format!("cat /work/note; exit {number}")]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("spawn")
    };
    let children: Vec<_> = (0..64).map(start).collect();
    for (number, child) in children.into_iter().enumerate() {
        let output = child.wait_with_output().expect("wait");
        assert_eq!(output.status.code(), i32::try_from(number).ok(), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "a note\n");
    }
    assert_nobody_holds(&own);
}

#[test]
fn row_50_limits_that_are_reached_are_named_and_nothing_leaks() {
    let dir = scratch();
    let own = copy_in(dir.path());
    // Eight user namespaces for all: some launches get one, the others say what they lack.
    let script = "echo 8 >/proc/sys/user/max_user_namespaces && exec setpriv --ambient-caps=-all --inh-caps=-all \
        bash -c 'for i in $(seq 12); do (\"$@\" || echo failed) & done; wait' bash \"$@\"";
    let mut command = as_user("unshare");
    command.args(["-U", "--map-current-user", "--keep-caps", "bash", "-c", script, "bash"]).arg(binary());
    let output = run(command.arg("exec").arg(&own).args(["sh", "-c", "sleep 1; echo ran"]));
    let (shown, told) = (text(&output.stdout), text(&output.stderr));
    let count = |word: &str| shown.lines().filter(|line| *line == word).count();
    assert_eq!(count("ran") + count("failed"), 12, "{shown}{told}");
    assert!(count("ran") >= 4 && count("failed") >= 4, "{shown}{told}");
    let complaints = told.lines().filter(|line| line.starts_with("hpcrun: cannot create a ")).count();
    assert_eq!(complaints, count("failed"), "{told}");
    assert!(told.contains("max_user_namespaces"), "{told}");
    // No process more may be started: the job's own is there already, the image server's is not.
    let mut few = as_user("bash");
    few.args(["-c", "ulimit -u 1; exec \"$@\"", "bash"]).arg(binary()).arg("exec").arg(&own).arg("true");
    assert_fails(&run(&mut few), 125, &["cannot start the image server", "ulimit -u"]);
    assert_nobody_holds(&own);
}
