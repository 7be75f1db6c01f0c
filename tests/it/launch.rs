//! Launches through the binary by an ordinary user: the job is the process that was started, sees the image and the host
//! as documented, and leaves nothing.

#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "a test that cannot go on fails there")]

use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::busybox_image::{
    LARGE_BYTES, assert_fails, assert_nobody_holds, busybox, convert, copy_in, image, names_in,
};
use crate::layer_building::tar;
use crate::support::{TEST_USER, as_user, binary, hpcrun, is_root, run, scratch, stdout, text};

/// `hpcrun exec OPTIONS IMAGE COMMAND`.
fn exec(options: &[&str], command: &[&str]) -> Command {
    let mut exec = hpcrun(["exec"]);
    exec.args(options).arg(image()).args(command);
    exec
}

/// `hpcrun exec IMAGE sh -c SCRIPT`.
fn job(image: &Path, script: &str) -> Command {
    let mut exec = hpcrun(["exec"]);
    exec.arg(image).args(["sh", "-c", script]);
    exec
}

/// Starts a job that prints a line when it is there; gives the line.
#[track_caller]
fn start(command: &mut Command) -> (Child, String) {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("spawn");
    let line = first_line(&mut child);
    (child, line)
}

fn first_line(child: &mut Child) -> String {
    let pipe = child.stdout.as_mut().expect("piped");
    let mut line = Vec::new();
    let mut byte = [0];
    while pipe.read(&mut byte).expect("read") == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    text(&line)
}

#[track_caller]
fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not within ten seconds");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_alive(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn the_job_is_the_process_that_was_started() {
    let (mut child, line) = start(&mut job(image(), "echo $$ $PPID; cat"));
    assert_eq!(line, format!("{} {}", child.id(), std::process::id()));
    drop(child.stdin.take());
    assert!(child.wait().expect("wait").success());
}

#[test]
fn the_job_is_its_user_without_any_privilege() {
    assert_eq!(stdout(&mut exec(&[], &["id", "-u"])), stdout(as_user("id").arg("-u")));
    assert_eq!(stdout(&mut exec(&[], &["id", "-g"])), stdout(as_user("id").arg("-g")));
    assert_eq!(stdout(&mut exec(&[], &["id", "-un"])), stdout(as_user("id").arg("-un")));
    assert_eq!(stdout(&mut exec(&[], &["id", "-gn"])), stdout(as_user("id").arg("-gn")));
    let status = stdout(&mut exec(&[], &["cat", "/proc/self/status"]));
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
        line.map(str::trim).unwrap_or_else(|| panic!("no {name} in {status}"))
    };
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Threads"), "1");
    let outside = stdout(as_user("cat").arg("/proc/self/status"));
    for name in ["Groups", "Uid", "Gid", "Umask", "SigBlk", "SigIgn", "SigCgt", "Cpus_allowed"] {
        let same = outside.lines().find(|line| line.starts_with(&format!("{name}:"))).expect("a line");
        assert_eq!(format!("{name}:\t{}", field(name)).trim_end(), same.trim_end(), "{name}");
    }
}

#[test]
fn descriptors_and_limits_are_the_callers_and_none_is_ours() {
    let script = r#"exec 7</etc/hostname 9>/dev/null; ulimit -n 97; umask 027; exec "$@""#;
    let look = "ls /proc/self/fd; cat <&7; ulimit -n; umask; echo to nine >&9; echo $?";
    let with = |words: &[&OsStr]| {
        let mut command = as_user("sh");
        command.args(["-c", script, "sh"]).args(words);
        stdout(&mut command)
    };
    let word = OsStr::new;
    let within =
        [binary().as_os_str(), word("exec"), image().as_os_str(), word("sh"), word("-c"), word(look)];
    let without = with(&[word("/bin/busybox"), word("sh"), word("-c"), word(look)]);
    assert!(without.contains("\n7\n9\n"), "{without}");
    assert_eq!(with(&within), without);
}

#[test]
fn exit_statuses_are_the_jobs_own() {
    for status in [0, 1, 2, 42, 122, 125, 126, 127, 128, 255] {
        let output = run(&mut job(image(), &format!("exit {status}")));
        assert_eq!(output.status.code(), Some(status));
        assert_eq!(text(&output.stderr), "");
    }
    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGINT, Signal::SIGSEGV, Signal::SIGPIPE] {
        let output = run(&mut job(image(), &format!("kill -{} $$", signal as i32)));
        assert_eq!(output.status.signal(), Some(signal as i32), "{:?}", output.status);
        assert_eq!(text(&output.stderr), "");
    }
}

#[test]
fn commands_that_cannot_be_executed() {
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&["nosuch"], 127, &["nosuch not found in /bin"]),
        (&["/bin/nosuch"], 127, &["/bin/nosuch not found"]),
        (&["../../bin/nosuch"], 127, &["../../bin/nosuch not found"]),
        (&["/data/text/x"], 127, &["/data/text/x not found"]),
        (&["/data/text"], 126, &["cannot execute /data/text: it is not executable (mode 0644)"]),
        (&["/data"], 126, &["cannot execute /data: it is a directory"]),
        (&["/data/foreign"], 126, &["cannot execute /data/foreign", "and this node is"]),
        (&["/data/lost"], 126, &["cannot execute /data/lost", "/no/such/interpreter"]),
        (&[""], 125, &["the program's name is empty"]),
        (&[], 125, &["no command to execute", "hint: hpcrun exec IMAGE COMMAND"]),
    ];
    for (command, status, expected) in cases {
        assert_fails(&run(&mut exec(&[], command)), *status, expected);
    }
    assert_eq!(stdout(&mut exec(&[], &["/data/script", "x y"])), "script x y\n");
}

#[test]
fn run_combines_entrypoint_and_command_as_docker_does() {
    let dir = scratch();
    let layer = tar(&busybox());
    // Entrypoint, Cmd, arguments, output.
    let images = [
        (
            json!({"Entrypoint": ["/bin/echo", "e f"], "Cmd": ["c", "d"]}),
            vec![("", "e f c d\n"), ("x", "e f x\n")],
        ),
        (json!({"Entrypoint": ["echo"], "Cmd": null, "Env": ["PATH=/bin"]}), vec![("", "\n"), ("x", "x\n")]),
        (json!({"Entrypoint": null, "Cmd": ["/bin/echo", "c"]}), vec![("", "c\n"), ("/bin/pwd", "/tmp\n")]),
        (
            json!({"Entrypoint": ["/bin/sh", "-c", "echo \"$0,$1\""], "Cmd": ["a  b", "*"]}),
            vec![("", "a  b,*\n")],
        ),
        (json!({"Entrypoint": [""], "Cmd": ["/bin/echo", "c"]}), vec![("", "c\n")]),
    ];
    for (number, (config, cases)) in images.iter().enumerate() {
        let image = convert(dir.path(), &format!("i{number}"), config, std::slice::from_ref(&layer));
        for (argument, expected) in cases {
            let arguments = Some(argument).filter(|argument| !argument.is_empty());
            assert_eq!(stdout(hpcrun(["run"]).arg(&image).args(arguments)), *expected, "{config} {argument}");
        }
    }
    let nothing = convert(dir.path(), "nothing", &json!({}), &[layer]);
    let output = run(hpcrun(["run"]).arg(&nothing));
    assert_fails(&output, 125, &["neither entrypoint nor command", "hint: name the program"]);
    assert_eq!(stdout(hpcrun(["run"]).arg(&nothing).args(["echo", "-n"])), "");
}

#[test]
fn run_gives_options_after_the_image_to_the_job() {
    let output = stdout(hpcrun(["run"]).arg(image()).args(["-v", "--bind", "x"]));
    assert_eq!(output, "entry point -v --bind x\n");
    assert_eq!(stdout(&mut exec(&[], &["--", "echo", "-e"])), "\n");
}

#[test]
fn a_shell_reads_its_script_from_standard_input() {
    let mut shell = hpcrun(["shell"]);
    let shell = shell.arg(image()).env("SHELL", "/bin/zsh").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = shell.spawn().expect("spawn");
    child.stdin.take().expect("piped").write_all(b"echo $0 $GREETING\nexit 9\n").expect("write");
    let output = child.wait_with_output().expect("wait");
    assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("/bin/sh hello world\n", Some(9)));
}

#[test]
fn standard_streams_pass_through() {
    let bytes: Vec<u8> = (0..1 << 18).map(|at: u32| ((at * 31) >> 3) as u8).collect();
    let mut child = exec(&[], &["cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("spawn");
    let mut stdin = child.stdin.take().expect("piped");
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent));
    let output = child.wait_with_output().expect("wait");
    writer.join().expect("join").expect("write");
    assert!(output.stdout == bytes);
}

#[test]
fn the_environment_is_the_images_over_the_hosts() {
    let value = |options: &[&str], name: &str| {
        let mut command = exec(options, &["env"]);
        command.env("FROM_HOST", "a\nb $x").env("LD_PRELOAD", "/nosuch.so").env("GREETING", "host's");
        let environment = stdout(&mut command);
        let prefix = format!("{name}=");
        environment.lines().find_map(|line| line.strip_prefix(&prefix)).map(str::to_owned)
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(value(&[], "GREETING"), some("hello world"));
    assert_eq!(value(&[], "PATH"), some("/bin"));
    assert_eq!(value(&[], "FROM_HOST"), some("a"));
    assert_eq!(value(&[], "LD_PRELOAD"), None);
    assert_eq!(value(&["--cleanenv"], "FROM_HOST"), None);
    assert_eq!(value(&["--cleanenv"], "GREETING"), some("hello world"));
    assert_eq!(value(&["--cleanenv", "--env", "FROM_HOST"], "FROM_HOST"), some("a"));
    assert_eq!(value(&["--env", "GREETING=bye \"$HOME\""], "GREETING"), some("bye \"$HOME\""));
    assert_eq!(value(&["--env", "GREETING"], "GREETING"), some("host's"));
    assert_eq!(value(&["-e", "A=1", "-e", "A=2"], "A"), some("2"));
    assert_eq!(value(&["-e", "A="], "A"), some(""));
    assert_eq!(value(&[], "HPCRUN_IMAGE"), some(&image().display().to_string()));
    if is_root() {
        assert_eq!(value(&[], "HOME"), some(&format!("/home/{TEST_USER}")));
    }
    assert_fails(&run(&mut exec(&["--env", "=x"], &["env"])), 125, &["--env \"=x\"", "the name is empty"]);
}

#[test]
fn host_directories_are_where_the_user_expects_them() {
    let dir = scratch();
    fs::write(dir.path().join("here"), "").expect("write");
    let mut pwd = exec(&[], &["sh", "-c", "pwd; ls; touch made; cd; pwd; ls -d ."]);
    let home = stdout(as_user("sh").args(["-c", "echo $HOME"]));
    let expected = format!("{}\nhere\n{home}.\n", dir.path().display());
    assert_eq!(stdout(pwd.current_dir(dir.path())), expected);
    assert_eq!(names_in(dir.path()), ["here", "made"]);
    // Neither in /tmp nor in the home.
    let other = tempfile::tempdir_in("/var/tmp").expect("directory");
    fs::set_permissions(other.path(), PermissionsExt::from_mode(0o755)).expect("chmod");
    let path = other.path().display().to_string();
    assert_eq!(stdout(exec(&[], &["pwd"]).current_dir(other.path())), format!("{path}\n"));
    // A working directory of the operating system's is the image's, if that has it.
    assert_eq!(stdout(exec(&[], &["pwd"]).current_dir("/usr/lib")), "/work\n");
    for (option, expected) in [("/data", "/data\n"), ("/proc", "/proc\n"), ("/tmp", "/tmp\n")] {
        assert_eq!(stdout(&mut exec(&["--cwd", option], &["pwd"])), expected);
    }
    assert_fails(
        &run(&mut exec(&["--cwd", "/nosuch"], &["pwd"])),
        125,
        &["working directory /nosuch", "--cwd"],
    );
    assert_fails(&run(&mut exec(&["--cwd", "data"], &["pwd"])), 125, &["cannot start in data", "absolute"]);
}

#[test]
fn files_of_the_host_that_a_network_needs() {
    for file in ["/etc/resolv.conf", "/etc/hosts"] {
        if Path::new(file).exists() {
            let host = fs::read_to_string(file).expect("read");
            assert_eq!(stdout(&mut exec(&[], &["cat", file])), host, "{file}");
        }
    }
    let passwd = stdout(&mut exec(&[], &["cat", "/etc/passwd"]));
    assert!(passwd.starts_with("root:x:0:0:root:/root:/bin/sh\n"), "{passwd}");
    let user = stdout(as_user("id").arg("-un"));
    assert!(
        passwd.lines().nth(1).is_some_and(|line| line.starts_with(&format!("{}:x:", user.trim()))),
        "{passwd}"
    );
    assert!(stdout(&mut exec(&[], &["ls", "/dev"])).contains("shm"));
}

#[test]
fn binds() {
    let dir = scratch();
    let path = |name: &str| dir.path().join(name).display().to_string();
    fs::create_dir(dir.path().join("a")).expect("mkdir");
    fs::set_permissions(dir.path().join("a"), PermissionsExt::from_mode(0o777)).expect("chmod");
    fs::write(dir.path().join("a/file"), "in a\n").expect("write");
    fs::write(dir.path().join("colon:name"), "odd\n").expect("write");
    let a = path("a");
    let cases: &[(Vec<String>, &str, &str)] = &[
        (vec![format!("{a}:/new/deep/path")], "cat /new/deep/path/file", "in a\n"),
        (vec![format!("{a}:/data")], "ls /data", "file\n"),
        (vec![format!("{a}/file:/data/text")], "cat /data/text; cat /work/note", "in a\na note\n"),
        (vec![format!("{a}/file:/etc/new.conf")], "cat /etc/new.conf; ls /etc/passwd", "in a\n/etc/passwd\n"),
        (vec![format!("{a}:/x:ro")], "touch /x/no 2>/dev/null || echo read-only", "read-only\n"),
        (vec![format!("{a}:/x:rw")], "touch /x/yes && ls /x", "file\nyes\n"),
        (vec![format!("{a}:/x"), format!("{a}/file:/x/file:ro")], "cat /x/file", "in a\n"),
        (vec![format!("{a}:/m"), format!("{a}:/n")], "cat /m/file /n/file", "in a\nin a\n"),
    ];
    for (specs, script, expected) in cases {
        let options: Vec<&str> = specs.iter().flat_map(|spec| ["--bind", spec]).collect();
        assert_eq!(stdout(&mut exec(&options, &["sh", "-c", script])), *expected, "{specs:?}");
    }
    assert_eq!(names_in(&dir.path().join("a")), ["file", "yes"]);
    let refused: &[(&str, &[&str])] = &[
        ("/no/such/dir", &["cannot bind /no/such/dir (--bind /no/such/dir)", "does not exist"]),
        ("/tmp:relative", &["--bind \"/tmp:relative\"", "absolute path"]),
        ("/tmp:/x:no", &["--bind \"/tmp:/x:no\"", "SRC[:DST[:ro|rw]]"]),
        ("/tmp:/proc", &["cannot bind onto /proc", "--bind"]),
        ("", &["--bind \"\""]),
    ];
    for (spec, expected) in refused {
        assert_fails(&run(&mut exec(&["--bind", spec], &["true"])), 125, expected);
    }
}

#[test]
fn the_image_is_complete_and_read_only() {
    let listed = stdout(exec(&["--no-home"], &["find", "/", "-xdev"]).current_dir("/"));
    let listed: std::collections::BTreeSet<&str> = listed.lines().collect();
    let packed = stdout(Command::new("unsquashfs").args(["-d", "", "-ls"]).arg(image()));
    for path in packed.lines().filter(|line| line.starts_with('/')) {
        assert!(listed.contains(path), "{path} is missing");
    }
    let output = run(&mut exec(&[], &["touch", "/work/new"]));
    assert!(text(&output.stderr).contains("Read-only file system"), "{}", text(&output.stderr));
    let both = stdout(&mut exec(&[], &["stat", "-c", "%i %h", "/bin/busybox", "/bin/hard"]));
    let lines: Vec<&str> = both.lines().collect();
    assert!(lines[0] == lines[1] && lines[0].ends_with(" 2"), "{both}");
}

#[test]
fn explain_prints_the_plan_and_does_nothing() {
    let dir = scratch();
    let own = copy_in(dir.path());
    let made = dir.path().join("made");
    let mut command = hpcrun(["exec", "--explain", "--bind", "/usr:/host/usr:ro"]);
    let plan = stdout(command.arg(&own).arg("touch").arg(&made));
    for part in ["squashfs", "bind       /usr -> /host/usr ro", "--bind", "pivot_root", "exec          touch"]
    {
        assert!(plan.contains(part), "not {part:?} in\n{plan}");
    }
    assert!(!made.exists());
    assert_nobody_holds(&own);
    // What cannot be planned fails there too, with the same status.
    let output = run(&mut exec(&["--explain", "--bind", "/nosuch"], &["true"]));
    assert_fails(&output, 125, &["cannot bind /nosuch"]);
}

#[test]
fn verbose_tells_each_op_and_quiet_nothing() {
    for options in [["-v"], ["--verbose"]] {
        let output = run(&mut exec(&options, &["echo", "out"]));
        assert_eq!(text(&output.stdout), "out\n");
        let told = text(&output.stderr);
        assert!(told.contains("-> /dev") && told.contains("pivot_root"), "{told}");
        assert!(told.lines().all(|line| line.starts_with("hpcrun: ")), "{told}");
    }
    let before = run(hpcrun(["-v", "exec"]).arg(image()).arg("true"));
    assert!(text(&before.stderr).contains("pivot_root"));
    for options in [&[][..], &["-q"]] {
        let output = run(&mut exec(options, &["echo", "out"]));
        assert_eq!((text(&output.stdout).as_str(), text(&output.stderr).as_str()), ("out\n", ""));
    }
    assert_fails(&run(&mut exec(&["-q"], &["nosuch"])), 127, &["nosuch not found"]);
}

#[test]
fn ranks_of_one_step_share_a_mount_namespace() {
    let dir = scratch();
    let own = copy_in(dir.path());
    let rank = |step: &str, options: &[&str]| {
        let mut command = hpcrun(["exec"]);
        command.args(options).arg(&own).args(["sh", "-c", "readlink /proc/self/ns/mnt; cat"]);
        command.env("SLURM_JOB_ID", std::process::id().to_string()).env("SLURM_STEP_ID", step);
        start(&mut command)
    };
    let mut ranks = [
        rank("1", &[]),
        rank("1", &[]),
        rank("2", &[]),
        rank("1", &["--share=none"]),
        rank("1", &["--bind", "/usr:/u"]),
    ];
    let namespace = |at: usize| ranks[at].1.as_str();
    assert!(namespace(0).starts_with("mnt:["), "{}", namespace(0));
    assert_eq!(namespace(0), namespace(1));
    for other in 2..5 {
        assert_ne!(namespace(0), namespace(other), "rank {other}");
    }
    // The first rank may end first: its namespaces are the others' too.
    let pids: Vec<String> = ranks.iter().map(|(child, _)| child.id().to_string()).collect();
    drop(ranks[0].0.stdin.take());
    assert!(ranks[0].0.wait().expect("wait").success());
    let (mut late, namespace) = rank("1", &[]);
    assert_eq!(namespace, ranks[1].1);
    drop(late.stdin.take());
    assert!(late.wait().expect("wait").success());
    for (rank, _) in &mut ranks[1..] {
        drop(rank.stdin.take());
        assert!(rank.wait().expect("wait").success());
    }
    assert_nobody_holds(&own);
    let uid = stdout(as_user("id").arg("-u"));
    let registry = format!("/dev/shm/hpcrun-{}", uid.trim());
    let names_one_of_us = || {
        let files = fs::read_dir(&registry).into_iter().flatten().flatten();
        files.map(|file| fs::read_to_string(file.path()).unwrap_or_default()).any(|members| {
            members.split(|c: char| !c.is_ascii_digit()).any(|word| pids.iter().any(|pid| pid == word))
        })
    };
    wait_for("the registry is removed", || !names_one_of_us());
}

#[test]
fn nothing_is_left_of_a_job() {
    let dir = scratch();
    let own = copy_in(dir.path());
    for script in ["exit 0", "exit 3", "kill -9 $$", "exec /nosuch"] {
        run(&mut job(&own, script));
        assert_nobody_holds(&own);
    }
    run(hpcrun(["exec"]).arg(&own).arg("nosuch"));
    assert_nobody_holds(&own);
    assert_eq!(names_in(dir.path()), ["own.sqsh"]);
}

#[test]
fn an_image_may_be_removed_or_replaced_while_a_job_runs() {
    let dir = scratch();
    let own = copy_in(dir.path());
    let read_on = "echo there; cat; wc -c < /data/large; cat /work/note";
    let finish = |mut child: Child| -> Output {
        drop(child.stdin.take());
        child.wait_with_output().expect("wait")
    };
    let expected = format!("{LARGE_BYTES}\na note\n");
    let (first, _) = start(&mut job(&own, read_on));
    let other = convert(dir.path(), "other", &json!({"Env": ["PATH=/bin"]}), &[tar(&busybox())]);
    fs::rename(&other, &own).expect("rename");
    assert_eq!(text(&finish(first).stdout), expected);
    let output = run(hpcrun(["exec"]).arg(&own).args(["cat", "/work/note"]));
    assert_eq!(output.status.code(), Some(1), "the new image has no such file");

    let own = copy_in(dir.path());
    let (second, _) = start(&mut job(&own, read_on));
    fs::remove_file(&own).expect("remove");
    assert_eq!(text(&finish(second).stdout), expected);
    assert_nobody_holds(&own);
}

#[test]
fn a_signal_meets_the_job_alone() {
    let dir = scratch();
    let own = copy_in(dir.path());
    let (mut child, background) = start(&mut job(&own, "sleep 100 & echo $!; wait"));
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).expect("kill");
    assert_eq!(child.wait().expect("wait").signal(), Some(Signal::SIGTERM as i32));
    assert!(is_alive(&background), "what the job left running goes on");
    kill(Pid::from_raw(background.parse().expect("a pid")), Signal::SIGKILL).expect("kill");
    assert_nobody_holds(&own);
}

#[test]
fn interrupting_the_process_group_ends_job_and_server() {
    let dir = scratch();
    let own = copy_in(dir.path());
    for signal in [Signal::SIGINT, Signal::SIGHUP] {
        let (mut child, background) = start(job(&own, "sleep 100 & echo $!; sleep 100").process_group(0));
        nix::sys::signal::killpg(Pid::from_raw(child.id().cast_signed()), signal).expect("killpg");
        assert_eq!(child.wait().expect("wait").signal(), Some(signal as i32));
        // A shell makes its background jobs ignore an interrupt.
        let _ = kill(Pid::from_raw(background.parse().expect("a pid")), Signal::SIGKILL);
        assert_nobody_holds(&own);
    }
}

#[test]
fn a_job_can_trap_the_signals_that_its_server_ignores() {
    let script = "trap 'wc -c < /data/large; exit 5' INT; echo there; while true; do sleep 0.05; done";
    let (child, _) = start(job(image(), script).process_group(0));
    nix::sys::signal::killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).expect("killpg");
    let output = child.wait_with_output().expect("wait");
    assert_eq!(output.status.code(), Some(5));
    assert_eq!(text(&output.stdout), format!("{LARGE_BYTES}\n"));
}

#[test]
fn a_background_process_reads_the_image_after_the_job_ended() {
    let dir = scratch();
    let own = copy_in(dir.path());
    let out = dir.path().join("out");
    let script =
        format!("(sleep 0.5; wc -c < /data/large > {0}.part; touch {0}) >/dev/null 2>&1 &", out.display());
    let output = run(&mut job(&own, &script));
    assert!(output.status.success());
    assert!(!out.exists(), "the job waited for its background process");
    wait_for("the background process", || out.exists());
    assert_eq!(fs::read_to_string(dir.path().join("out.part")).expect("read"), format!("{LARGE_BYTES}\n"));
    assert_nobody_holds(&own);
}

#[test]
fn sixteen_launches_at_once() {
    let dir = scratch();
    let own = copy_in(dir.path());
    let children: Vec<Child> = (0..16)
        .map(|number| {
            let mut command = job(&own, &format!("wc -c < /data/large; exit {number}"));
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("spawn")
        })
        .collect();
    for (number, child) in children.into_iter().enumerate() {
        let output = child.wait_with_output().expect("wait");
        assert_eq!(text(&output.stdout), format!("{LARGE_BYTES}\n"), "{}", text(&output.stderr));
        assert_eq!(output.status.code(), i32::try_from(number).ok());
    }
    assert_nobody_holds(&own);
}

/// A policy file that counts: owned by root, where nobody else may write.
struct Site(tempfile::TempDir);

impl Site {
    fn new(policy: &str) -> Site {
        assert!(is_root(), "a policy file is root's: these tests want root");
        let dir = tempfile::Builder::new().prefix("hpcrun-site-").tempdir_in("/tmp").expect("directory");
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("chmod");
        fs::write(dir.path().join("policy.toml"), policy).expect("write");
        Site(dir)
    }

    fn exec(&self, options: &[&str], command: &[&str]) -> Command {
        let mut exec = exec(options, command);
        exec.env("HPCRUN_POLICY", self.0.path().join("policy.toml"));
        exec
    }
}

#[test]
fn the_site_refuses_with_a_status_of_its_own() {
    let site = Site::new("[binds]\nallowed = [\"/usr\"]\n\n[env]\nunset = [\"SECRET_*\"]\n");
    let refused = run(&mut site.exec(&["--bind", "/etc:/x"], &["true"]));
    assert_fails(&refused, 122, &["/etc", "policy.toml:2", "/usr"]);
    let refused = run(&mut site.exec(&["--env", "SECRET_KEY=1"], &["true"]));
    assert_fails(&refused, 122, &["SECRET_KEY", "policy.toml:5"]);
    assert_eq!(stdout(&mut site.exec(&["--bind", "/usr:/x"], &["ls", "-d", "/x"])), "/x\n");
    let secret = stdout(site.exec(&[], &["env"]).env("SECRET_KEY", "1"));
    assert!(!secret.contains("SECRET_KEY"));

    let site = Site::new("[images]\ndirectories = [\"/images\"]\n");
    assert_fails(
        &run(&mut site.exec(&[], &["true"])),
        122,
        ["own", "/images", "policy.toml:2"][1..].as_ref(),
    );
}

#[test]
fn a_policy_with_a_mistake_stops_the_launch() {
    let site = Site::new("[binds]\nalowed = [\"/usr\"]\n");
    assert_fails(&run(&mut site.exec(&[], &["true"])), 125, &["policy.toml:2:1", "alowed"]);
    let site = Site::new("[binds\n");
    assert_fails(&run(&mut site.exec(&[], &["true"])), 125, &["policy.toml:1"]);
    let output = run(exec(&[], &["true"]).env("HPCRUN_POLICY", "/no/such/policy.toml"));
    assert_fails(&output, 125, &["HPCRUN_POLICY names /no/such/policy.toml, which does not exist"]);
}

/// These figures are of no machine: a launch that costs more has to say why.
///
/// The launcher alone is traced: a tracer that stops the server too waits for itself when it reads a job's memory.
#[test]
fn a_launch_is_few_system_calls() {
    let directory = scratch();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).expect("chmod");
    let record = directory.path().join("calls");
    let mut traced = as_user("strace");
    // Cargo's path of libraries costs the loader more calls than the rest of the launch.
    traced.env_remove("LD_LIBRARY_PATH").arg("-o").arg(&record);
    traced.arg(binary()).arg("exec").arg(image()).arg("/bin/true");
    stdout(&mut traced);
    let record = text(&fs::read(&record).expect("strace's record"));
    let is_job = |line: &&str| line.starts_with("execve(\"/bin/true\"");
    // The standard library of a debug build looks at each descriptor that it closes.
    let is_call = |line: &&str| line.contains('(') && !line.starts_with("fcntl(");
    let calls: Vec<&str> = record.lines().take_while(|line| !is_job(line)).filter(is_call).collect();
    assert!(record.lines().any(|line| is_job(&line)), "{record}");
    assert!((100..450).contains(&calls.len()), "{} system calls:\n{}", calls.len(), calls.join("\n"));
    let of_privilege = calls.iter().filter(|call| call.starts_with("prctl(")).count();
    assert!(of_privilege < 140, "{of_privilege} calls of prctl");
}

#[test]
fn a_job_has_the_affinity_that_it_was_started_with() {
    let list = |command: &mut Command| stdout(command);
    let host = list(as_user("grep").args(["Cpus_allowed_list", "/proc/self/status"]));
    assert_eq!(list(&mut exec(&[], &["grep", "Cpus_allowed_list", "/proc/self/status"])), host);
    let mut bound = as_user("taskset");
    bound.args(["-c", "0"]).arg(binary()).arg("exec").arg(image());
    let bound = list(bound.args(["grep", "Cpus_allowed_list", "/proc/self/status"]));
    assert_eq!(bound, "Cpus_allowed_list:\t0\n");
}
