//! Ranks of a step that are killed, late, short or strangers to each other: who is not killed runs, and nothing is left.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{Tenant, as_rank, assert_success, minutes, share};
use crate::support::{Random, binary, run, seed, text};

/// Prints the mount namespace and waits.
const TELL: &str = "readlink /proc/self/ns/mnt; cat /work/note; exec sleep";

/// A rank that tells its namespace and then sleeps.
fn rank(tenant: &Tenant, step: usize, seconds: &str, options: &[(&str, &str)]) -> Child {
    let mut command = tenant.exec(&["sh", "-c", &format!("{TELL} {seconds}")]);
    as_rank(&mut command, step).envs(options.iter().copied()).spawn().expect("hpcrun")
}

/// The mount namespace that a rank told.
#[track_caller]
fn namespace(rank: Child) -> String {
    let output = rank.wait_with_output().expect("wait");
    let (out, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && errors.is_empty(), "{}: {out}{errors}", output.status);
    let (namespace, note) = out.split_once('\n').expect("two lines");
    assert_eq!(note, "a note\n");
    namespace.to_owned()
}

// ---------------------------------------------------------------------------------------------------------------------
// Kills at random.

/// Starts `count` ranks of one step and kills a third of them, at any moment from their first on.
#[track_caller]
fn check_chaos(count: usize) {
    let tenant = Tenant::new();
    let mut random = Random::new(seed());
    let mut ranks: Vec<Child> = Vec::with_capacity(count);
    let mut killed = BTreeSet::new();
    for number in 0..count {
        // Now and then the group dies out, and its end meets the next one's beginning.
        if random.below(25) == 0 {
            std::thread::sleep(Duration::from_millis(400));
        }
        ranks.push(rank(&tenant, 1, ["0", "0.05", "0.2"][random.below(3) as usize], &[]));
        std::thread::sleep(Duration::from_micros(random.below(15_000)));
        if random.below(3) == 0 {
            // The newest, which may be making the group, as often as any other.
            let back = if random.below(2) == 0 { 0 } else { random.below(number as u64 + 1) as usize };
            let victim = number - back;
            if ranks[victim].try_wait().expect("wait").is_none() {
                ranks[victim].kill().expect("kill");
                killed.insert(victim);
            }
        }
    }
    let mut groups = BTreeSet::new();
    for (number, rank) in ranks.into_iter().enumerate() {
        if killed.contains(&number) {
            rank.wait_with_output().expect("wait");
        } else {
            groups.insert(namespace(rank));
        }
    }
    tenant.assert_nothing_left();
    println!("{count} ranks, {} killed, {} groups of survivors: nothing left", killed.len(), groups.len());
    assert!(killed.len() * 10 > count && groups.len() * 2 < count);
}

#[test]
fn ranks_killed_at_random_harm_no_other() {
    check_chaos(200);
}

#[test]
#[ignore = "a part of 'make soak'"]
fn soak_ranks_killed_at_random() {
    check_chaos(share(2000.0) as usize);
}

// ---------------------------------------------------------------------------------------------------------------------
// A creator that is killed at each of its system calls.

/// The system calls of a rank that makes a group, from its program's start to its job's, as `(name, which of this name)`.
fn steps(tenant: &Tenant) -> Vec<(String, usize)> {
    let log = tenant.dir.path().join("tmp/steps");
    let strace = ["strace", "-qq", "-o", log.to_str().expect("text")];
    let mut command = tenant.exec_in(&strace, &["cat", "/work/note"]);
    assert_success(as_rank(&mut command, 0).spawn().expect("strace"), "a note\n");
    let calls = fs::read_to_string(&log).expect("strace's file");
    fs::remove_file(log).expect("rm");
    let mut counts = std::collections::BTreeMap::new();
    let mut steps = Vec::new();
    for call in calls.lines().filter_map(|line| Some(line.split_once('(')?.0)) {
        let count = counts.entry(call.to_owned()).and_modify(|count| *count += 1).or_insert(1);
        steps.push((call.to_owned(), *count));
        if call == "execve" && *count == 2 {
            break;
        }
    }
    assert!(steps.len() > 100, "{steps:?}");
    steps
}

/// Kills the rank that makes a group at every `stride`-th system call, while another one waits for it.
#[track_caller]
fn check_killed_creators(stride: usize) {
    let tenant = Tenant::new();
    let steps = steps(&tenant);
    let first = seed() as usize % stride;
    let chosen: Vec<_> = steps.iter().enumerate().skip(first).step_by(stride).collect();
    let mut killed = 0;
    for some in chosen.chunks(8) {
        let pairs: Vec<(Child, Child)> = some
            .iter()
            .map(|(number, (call, count))| {
                let (trace, inject) =
                    (format!("trace={call}"), format!("inject={call}:signal=KILL:when={count}"));
                let strace = ["strace", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
                let mut creator = tenant.exec_in(&strace, &["cat", "/work/note"]);
                let creator = as_rank(&mut creator, *number).spawn().expect("strace");
                (creator, rank(&tenant, *number, "0", &[]))
            })
            .collect();
        for (mut creator, other) in pairs {
            killed += usize::from(!creator.wait().expect("wait").success());
            namespace(other);
        }
    }
    // One that was killed with the registry made and no keeper yet leaves an empty file, to the next that makes a group.
    namespace(rank(&tenant, steps.len(), "0", &[]));
    tenant.assert_nothing_left();
    println!("{killed} creators killed, at {} steps of {}: nothing left", chosen.len(), steps.len());
    assert!(killed * 2 > chosen.len(), "{killed}");
}

#[test]
fn a_creator_killed_at_any_step_harms_no_other() {
    check_killed_creators(16);
}

#[test]
#[ignore = "a part of 'make soak'"]
fn soak_killed_creators() {
    // At every fourth call in ten minutes, at every one in forty.
    check_killed_creators((40.0 / minutes()).ceil().max(1.0) as usize);
}

// ---------------------------------------------------------------------------------------------------------------------
// Late, short, and of other jobs.

#[test]
fn late_and_short_ranks_and_other_jobs() {
    let tenant = Tenant::new();
    // Step 1 has a member when the late one comes, step 2 has none any more, nor has step 3 for most of the time.
    let first = rank(&tenant, 1, "5", &[]);
    let gone = rank(&tenant, 2, "0", &[]);
    let early = rank(&tenant, 3, "0", &[]);
    let others: Vec<Child> = (0..8).map(|_| rank(&tenant, 3, "2", &[])).collect();
    let bind = format!("{}:/mnt", tenant.dir.path().join("home").display());
    let bound: Vec<Child> = (0..3).map(|_| rank(&tenant, 1, "5", &[("HPCRUN_BIND", &bind)])).collect();
    let job = [("SLURM_JOB_ID", "2")];
    let other_job: Vec<Child> = (0..3).map(|_| rank(&tenant, 1, "5", &job)).collect();
    namespace(early);
    namespace(gone);
    std::thread::sleep(Duration::from_secs(3));
    let (late, late_alone) = (rank(&tenant, 1, "0", &[]), rank(&tenant, 2, "0", &[]));
    let groups: Vec<BTreeSet<String>> = [vec![first, late], bound, other_job, vec![late_alone]]
        .into_iter()
        .map(|ranks| ranks.into_iter().map(namespace).collect())
        .collect();
    assert!(groups.iter().all(|group| group.len() == 1), "{groups:?}");
    assert_eq!(groups.iter().flatten().collect::<BTreeSet<_>>().len(), groups.len(), "{groups:?}");
    others.into_iter().for_each(|rank| drop(namespace(rank)));
    tenant.assert_nothing_left();
}

// ---------------------------------------------------------------------------------------------------------------------
// Nodes that hide processes, and kernels that lack system calls.

/// Starts three ranks at once after `wrapper`, on a node whose `/proc` is mounted with `options`.
#[track_caller]
fn check_three_ranks(options: &str, wrapper: &str) {
    let tenant = Tenant::new();
    let image = tenant.image();
    let script = format!(
        "for n in 1 2 3; do {wrapper} {} exec {} sh -c '{TELL} 1' & done; wait
        while [ -e /dev/shm/hpcrun-$(id -u) ]; do sleep 0.05; done",
        binary().display(),
        image.display()
    );
    let user = tenant.command(&["sh", "-c", &script]);
    let mut node = Command::new("unshare");
    node.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-ec"])
        .arg(format!("mount -t proc -o {options} proc /proc; exec \"$@\""))
        .arg("sh")
        .arg(user.get_program())
        .args(user.get_args())
        .env("XDG_RUNTIME_DIR", tenant.dir.path().join("run"))
        .env("HOME", tenant.dir.path().join("home"))
        .stdin(Stdio::null());
    let output = run(as_rank(&mut node, 1));
    let out = text(&output.stdout);
    let told: BTreeSet<&str> = out.lines().filter(|line| line.starts_with("mnt:")).collect();
    assert_eq!(
        (told.len(), out.matches("a note").count(), text(&output.stderr).as_str()),
        (1, 3, ""),
        "{out}"
    );
    tenant.assert_nothing_left();
}

#[test]
fn ranks_share_where_processes_are_hidden() {
    check_three_ranks("hidepid=2", "");
    check_three_ranks("hidepid=1", "");
}

/// Before Linux 5.3 there is no `pidfd_open`, before 5.9 no `close_range`; `statx` came with 4.11.
#[test]
fn ranks_share_without_younger_system_calls() {
    let calls = "pidfd_open,pidfd_getfd,pidfd_send_signal,clone3,openat2,close_range";
    let strace = format!("strace -qq -o /dev/null -e trace={calls} -e inject={calls}:error=ENOSYS");
    check_three_ranks("hidepid=0", &strace);
}
