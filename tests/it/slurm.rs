//! Jobs under a real Slurm: every way to start a task, how it ends, and what is left of it.
//!
//! Where it can be, the oracle is the same task without an image on the same cluster.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};

use crate::busybox_image::{LARGE_BYTES, image};
use crate::mpi::{self, assert_solved, processes_that_hold};
use crate::slurm_cluster::{Cluster, mpich_image, wait_until};
use crate::support::{binary, run, scratch, stdout, text};

/// `srun WORDS... hpcrun exec IMAGE sh -c SCRIPT`.
fn in_image(cluster: &Cluster, words: &str, script: &str) -> Output {
    let (program, image) = (binary().to_string_lossy(), image().to_string_lossy());
    cluster.srun(words, &[&program, "exec", &image, "sh", "-c", script])
}

/// The same in the host's shell.
fn on_host(cluster: &Cluster, words: &str, script: &str) -> Output {
    cluster.srun(words, &["sh", "-c", script])
}

#[track_caller]
fn lines(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
    let mut lines: Vec<String> = text(&output.stdout).lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// Messages about the task, without numbers.
fn messages(output: &Output) -> Vec<String> {
    let text = text(&output.stderr);
    let of_task = |line: &&str| !line.contains("queued and waiting") && !line.contains("has been allocated");
    let mut lines: Vec<String> = text
        .lines()
        .filter(of_task)
        .map(|line| line.chars().filter(|c| !c.is_ascii_digit()).collect())
        .collect();
    lines.sort();
    lines
}

#[test]
fn a_task_ends_as_it_would_without_an_image() {
    let cluster = Cluster::plain();
    for script in ["exit 0", "exit 3", "kill -SEGV $$", "kill -KILL $$", "kill -TERM $$"] {
        let (bare, image) = (on_host(cluster, "-n1", script), in_image(cluster, "-n1", script));
        assert_eq!(bare.status.code(), image.status.code(), "{script}: {}", text(&image.stderr));
        assert_eq!(messages(&bare), messages(&image), "{script}");
    }
    let (program, image) = (binary().to_string_lossy(), image().to_string_lossy());
    for (command, status) in [("no-such-program", 127), ("/data/text", 126)] {
        let output = cluster.srun("-n1", &[&program, "exec", &image, command]);
        assert_eq!(output.status.code(), Some(status), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains(command), "{}", text(&output.stderr));
    }
}

#[test]
fn ranks_of_a_step_share_one_server_and_leave_nothing_behind() {
    for (cluster, ranks) in [(Cluster::plain(), 64), (Cluster::confined(), 2)] {
        let dir = scratch();
        let own = dir.path().join("own.sqsh");
        fs::copy(image(), &own).expect("copy of the image");
        let here = dir.path().display();
        let script = format!(
            "readlink /proc/self/ns/mnt /proc/self/ns/user >{here}/new.$SLURM_PROCID; \
             echo $SLURM_JOB_ID >>{here}/new.$SLURM_PROCID; touch {here}/rank.$SLURM_PROCID; \
             while [ ! -e {here}/go ]; do sleep 0.2; done"
        );
        let step = cluster
            .user("srun")
            .args(["-N1", &format!("-n{ranks}"), "--cpu-bind=none"])
            .args([binary().as_os_str(), "exec".as_ref(), own.as_os_str()])
            .args(["sh", "-c", &script])
            .stdout(Stdio::null())
            .spawn()
            .expect("srun");
        let there = |rank: u32| dir.path().join(format!("rank.{rank}")).exists();
        wait_until("all ranks run", || (0..ranks).all(there));
        let seen: BTreeSet<String> = (0..ranks)
            .map(|rank| fs::read_to_string(dir.path().join(format!("new.{rank}"))).expect("a rank's file"))
            .collect();
        assert_eq!(seen.len(), 1, "one container: {seen:#?}");
        // The ranks' command lines do not name the image any more: these are the keeper and the server.
        let holders = processes_that_hold(&own);
        let holders: Vec<_> = holders.iter().filter(|line| !line.contains("srun")).collect();
        assert!((1..=2).contains(&holders.len()), "{holders:#?}");

        fs::write(dir.path().join("go"), "").expect("go");
        let ended = step.wait_with_output().expect("srun");
        assert!(ended.status.success(), "{}", ended.status);
        wait_until("keeper and server end", || processes_that_hold(&own).is_empty());
        // slurmstepd waits for every process of the step.
        let seen = seen.first().expect("one");
        let job = seen.lines().last().expect("the job's id");
        let step_daemon = format!("slurmstepd: [{job}.");
        let squeue = ["--noheader", "--format=%i", "--jobs", job];
        wait_until("the job ends", || {
            text(&run(cluster.root("squeue").args(squeue)).stdout).trim().is_empty()
        });
        wait_until("slurmstepd ends", || {
            !stdout(cluster.root("ps").args(["-e", "-o", "args"])).contains(&step_daemon)
        });
        cluster.assert_well();
    }
}

#[test]
fn a_step_on_two_nodes_has_a_container_on_each() {
    let dir = scratch();
    // A rank that comes when the one before it has ended makes a container of its own.
    let script = format!(
        "cd {}; touch $SLURM_PROCID; until [ -e 0 -a -e 1 -a -e 2 -a -e 3 ]; do sleep 0.05; done; \
         echo $SLURMD_NODENAME $(readlink /proc/self/ns/mnt)",
        dir.path().display()
    );
    let lines =
        lines(&in_image(Cluster::plain(), "--nodelist=node[1-2] -N2 -n4 --ntasks-per-node=2", &script));
    assert_eq!(lines.len(), 4, "{lines:#?}");
    let containers: BTreeSet<&String> = lines.iter().collect();
    let nodes: BTreeSet<&str> = lines.iter().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(nodes, BTreeSet::from(["node1", "node2"]));
    assert_eq!(containers.len(), 2, "{lines:#?}");
}

#[test]
fn mpi_ranks_find_each_other_by_the_slurm_plugin_of_their_library() {
    let cluster = Cluster::plain();
    let program = binary().to_string_lossy();
    for (mpi, image) in [("pmix", mpi::image()), ("pmi2", mpich_image())] {
        let image = image.to_string_lossy();
        // Ranks that wait spin: more of them than CPUs would take long.
        let words = format!("-N1 -n2 --cpu-bind=none --mpi={mpi} {program} exec {image} /solver 64");
        assert_solved(2, &cluster.srun(&words, &[]));
        let words = format!("-N1 -n2 --cpu-bind=none --mpi={mpi} --image={image} /solver 64");
        assert_solved(2, &cluster.srun(&words, &[]));
    }
    // Slurm tells them nothing of each other.
    let words = format!("-N1 -n2 --mpi=none {program} exec {} /solver 64", mpich_image().display());
    let output = text(&cluster.srun(&words, &[]).stdout);
    assert_eq!(output.matches("ranks: 1").count(), 2, "{output}");
}

#[test]
fn a_batch_script_starts_jobs_in_every_way() {
    let program = binary().display();
    let (openmpi, mpich) = (mpi::image().display(), mpich_image().display());
    let script = format!(
        "#!/bin/sh
#SBATCH --nodes=1 --ntasks=2
set -e
# Hydra starts its proxy as one task, to whose CPU both of its ranks would be bound.
export SLURM_CPU_BIND=none
ranks() {{ sed -n 's/^ranks: \\([0-9]*\\).*/'\"$1\"' \\1/p'; }}
{program} exec {openmpi} /solver 64 | ranks plain
srun --mpi=pmix {program} exec {openmpi} /solver 64 | ranks srun-pmix
srun --mpi=pmi2 {program} exec {mpich} /solver 64 | ranks srun-pmi2
mpirun.openmpi --oversubscribe -n 2 {program} exec {openmpi} /solver 64 | ranks mpirun
mpiexec.hydra -n 2 {program} exec {mpich} /solver 64 | ranks hydra
"
    );
    let written = Cluster::plain().sbatch(&["--nodelist=node1"], &script);
    let ranks: Vec<&str> = written.lines().filter(|line| !line.contains(':')).collect();
    assert_eq!(ranks, ["plain 1", "srun-pmix 2", "srun-pmi2 2", "mpirun 2", "hydra 2"], "{written}");
}

#[test]
fn elements_of_an_array_are_jobs_of_their_own() {
    let dir = scratch();
    let script = format!(
        "#!/bin/sh\nexec {} exec {} sh -c 'echo $SLURM_ARRAY_TASK_ID >{}/$SLURM_ARRAY_TASK_ID'\n",
        binary().display(),
        image().display(),
        dir.path().display()
    );
    Cluster::plain().sbatch(&["--array=0-3", "--open-mode=append"], &script);
    for index in 0..4 {
        let written = fs::read_to_string(dir.path().join(index.to_string())).expect("an element's file");
        assert_eq!(written, format!("{index}\n"));
    }
}

#[test]
fn a_terminal_is_a_terminal_inside() {
    let command = format!("srun --pty {} exec {} sh -c 'tty; exit 4'", binary().display(), image().display());
    let output = run(Cluster::plain().user("script").args([
        "--quiet",
        "--return",
        "--command",
        &command,
        "/dev/null",
    ]));
    assert_eq!(output.status.code(), Some(4), "{}", text(&output.stdout));
    assert!(text(&output.stdout).contains("/dev/pts/"), "{}", text(&output.stdout));
}

#[test]
fn without_the_users_environment_the_user_database_and_the_image_fill_in() {
    let cluster = Cluster::plain();
    let (program, image) = (binary().as_os_str(), image().as_os_str());
    let mut srun = cluster.user("srun");
    srun.args(["--export=NONE"]).args([program, "exec".as_ref(), image, "env".as_ref()]).env("MARK", "mine");
    let output = stdout(&mut srun);
    let value = |name: &str| output.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    assert_eq!(value("HOME"), Some("/home/hpcrun-test"), "{output}");
    assert_eq!(value("PATH"), Some("/bin"), "{output}");
    assert_eq!(value("GREETING"), Some("hello world"), "{output}");
    assert_eq!(value("SLURM_PROCID"), Some("0"), "{output}");
    assert_eq!(value("MARK"), None, "{output}");
}

/// Starts a task that waits for signals, sends it what `send` says once it is there, and gives what it wrote.
fn signalled(cluster: &Cluster, script: &str, send: impl FnOnce(&str)) -> Output {
    let dir = scratch();
    let name = dir.path().file_name().expect("a name").to_string_lossy().into_owned();
    let ready = dir.path().join("ready");
    let script = format!("{script}; touch {}; while :; do sleep 0.2; done", ready.display());
    let step = cluster
        .user("srun")
        .args(["-n1", "--quiet", "--job-name", &name])
        .args([binary().as_os_str(), "exec".as_ref(), image().as_os_str()])
        .args(["sh", "-c", &script])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("srun");
    wait_until("the task runs", || ready.exists());
    send(&name);
    step.wait_with_output().expect("srun")
}

#[test]
fn signals_of_slurm_reach_the_task_and_not_its_server() {
    for cluster in [Cluster::plain(), Cluster::confined()] {
        // What the handler reads was not read before: the server has to be there.
        let script = "trap 'wc -c </data/large; exit 5' USR1 TERM";
        for signal in ["--signal=USR1", "--signal=TERM"] {
            let output = signalled(cluster, script, |name| {
                stdout(cluster.user("scancel").args([signal, "--name", name]));
            });
            assert_eq!(text(&output.stdout).trim(), LARGE_BYTES.to_string(), "{}", text(&output.stderr));
            assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
        }
        let output = signalled(cluster, "trap 'echo term; wc -c </data/large; exit' TERM", |name| {
            stdout(cluster.user("scancel").args(["--name", name]));
        });
        let expected = format!("term\n{LARGE_BYTES}\n");
        assert_eq!(text(&output.stdout), expected, "{}", text(&output.stderr));
        // Who does not heed it is killed after KillWait.
        // Of how that ends srun may be told too late for its status.
        let mut job = String::new();
        signalled(cluster, "trap '' TERM", |name| {
            job = name.to_owned();
            stdout(cluster.user("scancel").args(["--name", name]));
        });
        let squeue = ["--noheader", "--format=%i", "--name", job.as_str()];
        wait_until("the job ends", || stdout(cluster.root("squeue").args(squeue)).trim().is_empty());
        cluster.assert_well();
    }
}

#[test]
#[ignore = "Slurm looks at time limits every half a minute"]
fn at_the_time_limit_the_task_is_told_and_then_killed() {
    let cluster = Cluster::plain();
    let output = signalled(cluster, "trap 'echo term' TERM", |name| {
        let jobs = stdout(cluster.root("squeue").args(["--noheader", "--format=%A", "--name", name]));
        let job = format!("JobId={}", jobs.trim());
        stdout(cluster.root("scontrol").args(["update", &job, "EndTime=now+1"]));
    });
    assert!(text(&output.stdout).starts_with("term\n"), "{output:?}");
    assert!(text(&output.stderr).contains("DUE TO TIME LIMIT"), "{output:?}");
    cluster.assert_well();
}

#[test]
fn tasks_keep_their_cpus() {
    let cluster = Cluster::confined();
    let cpus = "grep Cpus_allowed_list /proc/self/status";
    for words in ["-n2 -c1 --exclusive --cpu-bind=cores", "-n1 -c1 --cpu-bind=cores", "-n1 --cpu-bind=none"] {
        let (bare, inside) = (lines(&on_host(cluster, words, cpus)), lines(&in_image(cluster, words, cpus)));
        assert_eq!(bare, inside, "{words}");
        assert!(!bare.is_empty());
    }
}

#[test]
fn each_task_has_the_gpu_that_slurm_gives_it_and_no_other() {
    let cluster = Cluster::confined();
    let gpus = cluster.directory.display();
    let script = format!(
        "for at in 0 1; do head -c 0 {gpus}/gpu$at 2>/dev/null && echo $SLURM_PROCID gpu$at $CUDA_VISIBLE_DEVICES; done; true"
    );
    // Devices count where they lie: a bind does not make one of them another.
    let options = "-n2 -c1 --gpus-per-task=1";
    let bare = lines(&on_host(cluster, options, &script));
    assert_eq!(bare.len(), 2, "the cluster itself gives each task one: {bare:?}");
    assert_eq!(lines(&in_image(cluster, options, &script)), bare);
    let one = "-n1 -c1 --gres=gpu:1";
    assert_eq!(lines(&in_image(cluster, one, &script)), lines(&on_host(cluster, one, &script)));
    assert_eq!(lines(&in_image(cluster, "-n1 -c1", &script)), Vec::<String>::new());
}

#[test]
fn a_node_without_fuse_is_named_as_the_cause() {
    let output = in_image(Cluster::plain(), "--nodelist=node3 -n1", "true");
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{message}");
    assert!(message.contains("/dev/fuse"), "{message}");
    assert!(message.contains("hint:"), "{message}");
    assert!(Path::new("/dev/fuse").exists(), "the machine itself has it");
}
