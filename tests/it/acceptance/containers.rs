//! `hpcrun ps` and `hpcrun enter`.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{exec_image, ready, tools, wait_for};
use crate::bad_input::in_private_mounts;
use crate::busybox_image::{assert_fails, assert_nobody_holds, busybox, convert, copy_in};
use crate::layer_building::{Member, tar};
use crate::site_directory::Site;
use crate::support::{as_user, binary, hpcrun, is_root, run, scratch, stdout, text};

/// A job that waits for the end of its input.
fn waiting(image: &Path, variables: &[(&str, &str)]) -> Child {
    let mut command = exec_image(image, &["sh", "-c", "echo ready; cat >/dev/null; exit 4"]);
    ready(command.envs(variables.iter().copied()).stdin(Stdio::piped()))
}

/// Lets the job end.
#[track_caller]
fn finish(mut child: Child) {
    drop(child.stdin.take());
    assert_eq!(child.wait().expect("wait").code(), Some(4));
}

/// The containers of `image` that `command`, an `hpcrun ps --json`, lists.
#[track_caller]
fn listed(command: &mut Command, image: &Path) -> Vec<Value> {
    let document: Value = serde_json::from_str(&stdout(command)).expect("JSON");
    let all = document["containers"].as_array().expect("a list");
    all.iter().filter(|container| container["image"] == json!(image.display().to_string())).cloned().collect()
}

fn enter(target: &str, words: &[&str]) -> Command {
    let mut command = hpcrun(["enter", target]);
    command.args(words);
    command
}

fn mount_namespace(pid: u32) -> String {
    fs::read_link(format!("/proc/{pid}/ns/mnt")).expect("namespace").display().to_string()
}

#[test]
fn ps_lists_what_runs_and_then_nothing() {
    let dir = scratch();
    let own = dir.path().join("with space.sqsh");
    fs::rename(copy_in(dir.path()), &own).expect("rename");
    let mine = || listed(&mut hpcrun(["ps", "--json"]), &own);
    assert_eq!(mine(), [Value::Null; 0]);
    let job = waiting(&own, &[("SLURM_JOB_ID", "9000001"), ("SLURM_STEP_ID", "3")]);
    let containers = mine();
    assert_eq!(containers.len(), 1, "{containers:#?}");
    let container = &containers[0];
    let name = stdout(as_user("id").arg("-un"));
    assert_eq!(container["pid"], json!(job.id()));
    assert_eq!(container["user"], json!(name.trim()));
    assert_eq!((&container["job"], &container["step"]), (&json!("slurm 9000001"), &json!("slurm 9000001.3")));
    assert_eq!(container["launcher"], "slurm");
    assert_eq!(container["command"][0], "sh");
    assert_eq!(format!("mnt:[{}]", container["mount_namespace"]), mount_namespace(job.id()));
    assert!(container["seconds"].as_u64().is_some_and(|seconds| seconds < 600), "{container}");
    let members = container["processes"].as_array().expect("processes");
    assert!(members.contains(&json!(job.id())) && members.len() <= 2, "the shell and its cat: {container}");
    let server = container["server"]["pid"].as_u64().expect("a server");
    assert_eq!(fs::read_to_string(format!("/proc/{server}/comm")).expect("comm"), "hpcrun-server\n");
    let memory = container["server"]["rss_bytes"].as_u64().expect("memory");
    assert!(((1 << 20)..(256 << 20)).contains(&memory), "{memory}");
    assert_eq!(container["server"]["pss_bytes"], Value::Null);
    // For people.
    let shown = stdout(&mut hpcrun(["ps"]));
    let line = shown.lines().find(|line| line.contains("with space.sqsh")).expect("a line");
    assert!(line.starts_with(&job.id().to_string()) && line.contains("slurm 9000001.3"), "{shown}");
    assert!(!shown.contains("USER"), "{shown}");
    if is_root() {
        let by_root = listed(Command::new(binary()).args(["ps", "--json"]), &own);
        assert_eq!(by_root[0]["pid"], json!(job.id()));
        assert!(
            by_root[0]["server"]["pss_bytes"].as_u64().is_some_and(|pss| pss <= memory * 2),
            "{by_root:?}"
        );
        assert!(stdout(Command::new(binary()).arg("ps")).lines().any(|line| line.contains(name.trim())));
        // Other users see nothing of it.
        let mut nobody = Command::new("setpriv");
        nobody.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps=-all", "--"]);
        assert_eq!(listed(nobody.arg(binary()).args(["ps", "--json"]), &own), [Value::Null; 0]);
    }
    finish(job);
    assert_nobody_holds(&own);
    assert_eq!(mine(), [Value::Null; 0]);
}

#[test]
fn ps_shows_ranks_of_a_step_as_one_container() {
    let dir = scratch();
    let own = copy_in(dir.path());
    let step = [("SLURM_JOB_ID", "9000002"), ("SLURM_STEP_ID", "0")];
    let ranks = [
        waiting(&own, &step),
        waiting(&own, &step),
        waiting(&own, &[("SLURM_JOB_ID", "9000002"), ("SLURM_STEP_ID", "1")]),
    ];
    let containers = listed(&mut hpcrun(["ps", "--json"]), &own);
    assert_eq!(containers.len(), 2, "{containers:#?}");
    assert_eq!(containers[0]["step"], "slurm 9000002.0");
    let members = containers[0]["processes"].as_array().expect("processes");
    assert!(ranks[..2].iter().all(|rank| members.contains(&json!(rank.id()))), "{containers:#?}");
    // Which of the two is meant by the job's number cannot be told, by the step's it can.
    let output = run(&mut enter("9000002", &["true"]));
    let first = ranks[0].id().to_string();
    assert_fails(&output, 125, &["job 9000002 has 2 containers", "hint: name a process", &first]);
    for (target, rank) in [("9000002.0", 0), ("slurm 9000002.1", 2)] {
        let shown = stdout(&mut enter(target, &["readlink", "/proc/self/ns/mnt"]));
        assert_eq!(shown.trim(), mount_namespace(ranks[rank].id()), "{target}");
    }
    ranks.into_iter().for_each(finish);
    assert_nobody_holds(&own);
}

#[test]
fn ps_does_not_take_the_command_of_a_server_for_the_jobs() {
    let dir = scratch();
    let own = copy_in(dir.path());
    let job = waiting(&own, &[]);
    let server = listed(&mut hpcrun(["ps", "--json"]), &own)[0]["server"]["pid"].as_u64().expect("a server");
    let command_line = || text(&fs::read(format!("/proc/{server}/cmdline")).expect("cmdline"));
    wait_for("the title that a server takes when the launch is over", || {
        command_line().split('\0').next().is_some_and(|title| title.contains("]: serves "))
    });
    let title = command_line();
    assert!(title.contains(&own.display().to_string()) && !title.contains("echo ready"), "{title}");
    finish(job);
}

#[test]
fn enter_joins_the_namespaces_without_privilege() {
    let dir = scratch();
    let own = copy_in(dir.path());
    let job =
        waiting(&own, &[("MARK", "the job's"), ("PMI_RANK", "0"), ("PMI_FD", "99"), ("TERM", "job-term")]);
    let pid = job.id().to_string();
    let script = "readlink /proc/self/ns/mnt; cat /work/note; id -u; grep -cE '^Cap[A-Za-z]+:.0000000000000000$' /proc/self/status; \
        grep NoNewPrivs /proc/self/status; echo \"$MARK,$PMI_RANK,$PMI_FD,$TERM,$GREETING,$HPCRUN_IMAGE,$EXTRA\"; touch /x 2>/dev/null || echo read-only";
    let mut command = hpcrun(["enter", "--env", "EXTRA=e x", &pid, "sh", "-c", script]);
    let uid = stdout(as_user("id").arg("-u"));
    let expected = format!(
        "{}\na note\n{uid}5\nNoNewPrivs:\t1\nthe job's,,,my-term,hello world,{},e x\nread-only\n",
        mount_namespace(job.id()),
        own.display()
    );
    assert_eq!(stdout(command.env("TERM", "my-term").env("MARK", "mine")), expected);
    // By any process of the container, a child of the job too.
    let containers = listed(&mut hpcrun(["ps", "--json"]), &own);
    for member in containers[0]["processes"].as_array().expect("processes") {
        assert_eq!(stdout(&mut enter(&member.to_string(), &["cat", "/work/note"])), "a note\n");
    }
    finish(job);
    assert_nobody_holds(&own);
}

#[test]
fn enter_is_the_command_with_its_status_streams_and_signals() {
    let dir = scratch();
    let own = copy_in(dir.path());
    let job = waiting(&own, &[]);
    let pid = job.id().to_string();
    for status in [0, 1, 42, 125, 255] {
        let output = run(&mut enter(&pid, &["sh", "-c", &format!("exit {status}")]));
        assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(status), ""));
    }
    let killed = run(&mut enter(&pid, &["sh", "-c", "kill -9 $$"]));
    assert_eq!(killed.status.signal(), Some(Signal::SIGKILL as i32));
    assert_fails(&run(&mut enter(&pid, &["nosuch"])), 127, &["nosuch not found in /bin"]);
    assert_fails(&run(&mut enter(&pid, &["/data/text"])), 126, &["/data/text", "not executable"]);
    // The same process, with a shell by default.
    let mut shell = enter(&pid, &[]);
    let mut child = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("spawn");
    let id = child.id();
    std::io::Write::write_all(&mut child.stdin.take().expect("piped"), b"echo $$ $0\nexit 7\n")
        .expect("write");
    let output = child.wait_with_output().expect("wait");
    assert_eq!((text(&output.stdout), output.status.code()), (format!("{id} /bin/sh\n"), Some(7)));
    // Who enters keeps the container alive.
    let mut child =
        ready(enter(&pid, &["sh", "-c", "echo ready; cat; cat /work/note"]).stdin(Stdio::piped()));
    finish(job);
    drop(child.stdin.take());
    assert_eq!(text(&child.wait_with_output().expect("wait").stdout), "a note\n");
    assert_nobody_holds(&own);
}

#[test]
fn enter_starts_where_the_user_is_or_else_where_the_job_is() {
    let dir = scratch();
    let own = copy_in(dir.path());
    let job = waiting(&own, &[]);
    let pid = job.id().to_string();
    let from = |directory: &Path, options: &[&str]| {
        let mut command = hpcrun(["enter"]);
        command.args(options).arg(&pid).args(["sh", "-c", "readlink /proc/self/cwd; echo $PWD"]);
        run(command.current_dir(directory))
    };
    let there = |directory: &str| format!("{directory}\n{directory}\n");
    let here = dir.path().display().to_string();
    assert_eq!(text(&from(dir.path(), &[]).stdout), there(&here));
    // /etc is in both, and not the same directory.
    assert_eq!(text(&from(Path::new("/etc"), &[]).stdout), there("/tmp"));
    assert_eq!(text(&from(dir.path(), &["--cwd", "/data"]).stdout), there("/data"));
    assert_fails(&from(dir.path(), &["--cwd", "/nosuch"]), 125, &["/nosuch", "--cwd"]);
    finish(job);
}

#[test]
fn enter_refuses_with_the_reason() {
    let none: u32 = 4_194_305;
    let missing = run(&mut enter(&none.to_string(), &["true"]));
    assert_fails(&missing, 125, &["neither a process nor a job 4194305", "hint: hpcrun ps"]);
    assert_fails(&run(&mut enter("no-such-job", &["true"])), 125, &["no container of job \"no-such-job\""]);
    assert_fails(&run(&mut enter("1", &["true"])), 125, &["process 1 belongs to root", "only its owner"]);
    let mut sleeper = as_user("sleep").arg("100").spawn().expect("spawn");
    wait_for("the change of user", || {
        fs::read_to_string(format!("/proc/{}/comm", sleeper.id())).is_ok_and(|name| name == "sleep\n")
    });
    let plain = run(&mut enter(&sleeper.id().to_string(), &["true"]));
    assert_fails(&plain, 125, &["is not in a container of hpcrun", "hint: hpcrun ps"]);
    sleeper.kill().expect("kill");
    sleeper.wait().expect("wait");
    assert_fails(&run(&mut hpcrun(["enter"])), 125, &["<TARGET>", "hint: usage: hpcrun enter"]);
    if is_root() {
        let dir = scratch();
        let own = copy_in(dir.path());
        let job = waiting(&own, &[]);
        let by_root = run(Command::new(binary()).args(["enter", &job.id().to_string(), "true"]));
        assert_fails(&by_root, 125, &["belongs to", "hint: runuser -u "]);
        // From inside of another container the host's user namespace is out of reach.
        let mut nested = hpcrun(["exec", "--bind", "/usr:/usr:ro"]);
        nested.arg(tools()).arg(binary()).args(["enter", &job.id().to_string(), "true"]);
        assert_fails(&run(&mut nested), 125, &["process", "hint: "]);
        finish(job);
    }
}

/// A process that guards itself, as `ssh-agent` does, is listed; what it holds it does not show.
#[test]
fn processes_that_guard_themselves_are_found_and_not_read() {
    let program = "import ctypes, time\n\
        ctypes.CDLL(None).prctl(4, 0)\n\
        print('ready', flush=True)\n\
        time.sleep(100)";
    let mut command = hpcrun(["exec", "--bind", "/usr:/usr:ro"]);
    command.arg(tools()).args(["/usr/bin/python3", "-c", program]).stdin(Stdio::null());
    let mut guarded = ready(&mut command);
    let pid = guarded.id();
    let containers = listed(&mut hpcrun(["ps", "--json"]), tools());
    assert!(containers.iter().any(|container| container["pid"] == json!(pid)), "{containers:#?}");
    let output = run(&mut enter(&pid.to_string(), &["true"]));
    assert_fails(
        &output,
        125,
        &["cannot read the environment of process", "guards itself", "hint: name another"],
    );
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).expect("kill");
    guarded.wait().expect("wait");
}

#[test]
fn enter_reaches_processes_in_a_process_namespace_of_their_own() {
    let dir = scratch();
    let own = copy_in(dir.path());
    let script = "exec /bin/busybox unshare -rUmpf --mount-proc sh -c 'echo ready; cat >/dev/null; exit 4'";
    let job = ready(exec_image(&own, &["sh", "-c", script]).stdin(Stdio::piped()));
    let containers = listed(&mut hpcrun(["ps", "--json"]), &own);
    let inner =
        containers.iter().find(|container| container["pid"] == json!(job.id())).expect("the container");
    let inner = inner["processes"].as_array().and_then(|all| all.last()).expect("a process").to_string();
    let shown = stdout(&mut enter(&inner, &["sh", "-c", "cat /proc/1/comm; cat /work/note"]));
    assert_eq!(shown, "sh\na note\n");
    assert_eq!(run(&mut enter(&inner, &["sh", "-c", "exit 9"])).status.code(), Some(9));
    assert_eq!(run(&mut enter(&inner, &["sh", "-c", "kill -9 $$"])).status.signal(), Some(9));
    assert_fails(&run(&mut enter(&inner, &["nosuch"])), 127, &["nosuch not found"]);
    finish(job);
    assert_nobody_holds(&own);
}

/// The process that waits for the one inside has nothing of the container's or the caller's, and passes signals on.
#[test]
fn enter_supervises_without_privilege() {
    let dir = scratch();
    let own = copy_in(dir.path());
    let mut command = hpcrun(["exec", "--pid"]);
    command.arg(&own).args(["sh", "-c", "echo ready; cat >/dev/null; exit 4"]);
    let job = ready(command.stdin(Stdio::piped()));
    let target = listed(&mut hpcrun(["ps", "--json"]), &own)[0]["pid"].to_string();
    let script = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done";
    let mut entered = ready(&mut enter(&target, &["sh", "-c", script]));
    let status = || fs::read_to_string(format!("/proc/{}/status", entered.id())).expect("status");
    let is_plain = |line: &&str| line.starts_with("Cap") && line.ends_with("\t0000000000000000");
    wait_for("no capabilities", || status().lines().filter(is_plain).count() == 5);
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", entered.id())).expect("descriptors").count();
    wait_for("the standard streams and a pipe", || descriptors() == 4);
    kill(Pid::from_raw(entered.id().cast_signed()), Signal::SIGTERM).expect("kill");
    assert_eq!(entered.wait().expect("wait").code(), Some(9));
    finish(job);
    assert_nobody_holds(&own);
}

#[test]
fn enter_joins_the_ipc_namespace() {
    let dir = scratch();
    let own = copy_in(dir.path());
    for options in [&["--ipc"][..], &["--ipc", "--pid"]] {
        let mut command = hpcrun(["exec"]);
        command.args(options).arg(&own).args(["sh", "-c", "echo ready; cat >/dev/null; exit 4"]);
        let job = ready(command.stdin(Stdio::piped()));
        let target = listed(&mut hpcrun(["ps", "--json"]), &own)[0]["pid"].to_string();
        let ipc = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/ipc")).expect("namespace");
        assert_ne!(ipc(&target), ipc("self"));
        let entered = stdout(&mut enter(&target, &["readlink", "/proc/self/ns/ipc"]));
        assert_eq!(entered, format!("{}\n", ipc(&target).display()), "{options:?}");
        finish(job);
    }
    assert_nobody_holds(&own);
}

#[test]
fn images_without_a_shell_are_entered_with_a_program() {
    let dir = scratch();
    let program = fs::read("/bin/busybox").expect("busybox-static");
    let bare: PathBuf =
        convert(dir.path(), "bare", &json!({}), &[tar(&[Member::file("busybox", program).mode(0o755)])]);
    let mut command = exec_image(&bare, &["/busybox", "sh", "-c", "echo ready; exec /busybox cat"]);
    let mut job = ready(command.stdin(Stdio::piped()));
    let pid = job.id().to_string();
    assert_fails(
        &run(&mut enter(&pid, &[])),
        125,
        &["the container has no shell", "/bin/sh", "hint: name a program"],
    );
    assert_eq!(stdout(&mut enter(&pid, &["/busybox", "echo", "ok"])), "ok\n");
    drop(job.stdin.take());
    assert!(job.wait().expect("wait").success());
}

#[test]
fn a_tree_that_the_site_mounted_is_a_container_too() {
    assert!(is_root(), "a site's policy is root's: run this as root");
    let site = Site::new();
    let directories = ["proc/", "dev/", "sys/", "tmp/", "etc/"].map(Member::directory);
    let members: Vec<Member> = busybox().into_iter().chain(directories).collect();
    let own = site.image("own", &json!({}), &[tar(&members)]);
    let tree = site.mounted(&own, "ro,nosuid,nodev");
    let policy = site
        .policy(&format!("[premounted]\ntrees = [{{ image = {own:?}, directory = {:?} }}]\n", tree.path()));
    let mut command = exec_image(&own, &["sh", "-c", "echo ready; cat >/dev/null; exit 4"]);
    let job = ready(command.env("HPCRUN_POLICY", &policy).current_dir("/tmp").stdin(Stdio::piped()));
    let containers = listed(&mut hpcrun(["ps", "--json"]), &own);
    assert_eq!(containers.len(), 1, "{containers:?}");
    assert_eq!((&containers[0]["pid"], &containers[0]["server"]), (&json!(job.id()), &Value::Null));
    assert_eq!(stdout(&mut enter(&job.id().to_string(), &["echo", "in"])), "in\n");
    finish(job);
    // Such a launch needs no FUSE.
    let no_fuse = format!(
        "mount -t tmpfs -o mode=755 none /dev; mknod -m 666 /dev/null c 1 3; export HPCRUN_POLICY={}",
        policy.display()
    );
    let words = [binary().as_os_str(), "exec".as_ref(), own.as_os_str(), "echo".as_ref(), "without".as_ref()];
    let output = in_private_mounts(&no_fuse, &words);
    assert_eq!(text(&output.stdout), "without\n", "{}", text(&output.stderr));
}
