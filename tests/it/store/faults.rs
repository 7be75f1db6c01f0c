//! The store on file systems that can do little, and processes that are killed at any call: nothing bad is ever visible,
//! and what is left goes with the next pull or with `gc`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use super::{World, digest, planned, rank, small, stderr};
use crate::busybox_image::names_in;
use crate::faults::shim;
use crate::support::{self, as_user, binary, run};

/// The calls that name, write or sync.
const CALLS: [&str; 9] =
    ["openat", "mkdirat", "linkat", "renameat", "renameat2", "unlinkat", "fsync", "pwrite64", "utimensat"];

/// A command under strace, which makes what NFS and Lustre cannot do fail.
fn on_a_network(world: &World, args: &[&str], options: &[String]) -> Command {
    let mut command = as_user("strace");
    command.args(["-f", "-qq", "-o", "/dev/null"]);
    let faults = [
        "--trace=flock,renameat2",
        "--inject=flock:error=ENOLCK",
        "--inject=renameat2:error=EINVAL",
        "-E",
        "FAULT_NO_TMPFILE=1",
        "-E",
    ];
    command.args(faults).arg(format!("LD_PRELOAD={}", shim().display())).args(options).arg(binary());
    world.prepare(command.args(args));
    command
}

#[test]
fn a_file_system_without_locks_unnamed_files_and_exclusive_renames() {
    let world = World::slow(small("one"), Duration::from_millis(1500));
    let name = world.name();
    let network = |args: &[&str]| run(&mut on_a_network(&world, args, &[]));
    let outputs: Vec<Output> = thread::scope(|scope| {
        let pulls: Vec<_> = (0..6).map(|_| scope.spawn(|| network(&["pull", &name]))).collect();
        pulls.into_iter().map(|pull| pull.join().unwrap()).collect()
    });
    outputs.iter().for_each(|output| assert!(output.status.success(), "{}", stderr(output)));
    assert!(world.layers_fetched() <= 2, "{} downloads", world.layers_fetched());
    assert_eq!(world.images().len(), 1, "{:?}", world.images());
    for args in [&["tag", &name, "mine"][..], &["rm", &name], &["images"], &["rm", "mine"]] {
        let output = network(args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    }
    assert_eq!((world.images().len(), world.trash().len()), (0, 1));
    assert!(network(&["pull", &name]).status.success());
    assert_eq!((world.images().len(), world.trash().len()), (1, 0), "brought back by link(2)");
    // Two ranks agree, too.
    for _ in 0..2 {
        let mut command = on_a_network(&world, &["exec", "--explain", &name, "true"], &[]);
        rank(&mut command, "0");
        assert!(support::stdout(&mut command).contains(&digest(&small("one")).replace(':', "-")));
    }
    assert_eq!(names_in(&world.store().join("steps")).len(), 1);
    assert_eq!(planned(&world, "0", &name), digest(&small("one")).replace(':', "-"));
    // A temporary that nobody can have locked: its maker is gone, and it was not touched for hours.
    let node = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let left = format!(".hpcrun-{}-4194304-0.partial", node.trim());
    let left = world.store().join("images").join(left);
    support::stdout(as_user("touch").arg(&left));
    assert!(network(&["gc", "-q"]).stdout.is_empty(), "young");
    support::stdout(as_user("touch").args(["-d", "2 hours ago"]).arg(&left));
    let collected = network(&["gc", "-q"]);
    assert!(support::text(&collected.stdout).starts_with("leftover  "), "{}", stderr(&collected));
    assert!(!left.exists());
}

/// Options that trace `call`; of what is opened only the store's.
fn tracing(world: &World, call: &str) -> Vec<String> {
    let mut options = Vec::new();
    if call == "openat" {
        for place in ["", "images", "tags", "trash", "steps"] {
            options.extend(["-P".to_owned(), world.store().join(place).display().to_string()]);
        }
    }
    options.push(format!("--trace={call}"));
    options
}

fn traced(world: &World, args: &[&str], options: &[String]) -> Output {
    let mut command = as_user("strace");
    command.args(["-f", "-qq", "-o"]).arg(world.at("home/strace.log")).args(options).arg(binary());
    world.prepare(command.args(args));
    run(&mut command)
}

/// How often each call is made by the thread that makes it most. `reset` comes before each run.
fn count(world: &World, args: &[&str], reset: &dyn Fn()) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for calls in ["openat".to_owned(), CALLS[1..].join(",")] {
        reset();
        let output = traced(world, args, &tracing(world, &calls));
        assert!(output.status.success(), "{}", stderr(&output));
        let mut of_threads: BTreeMap<(String, &str), usize> = BTreeMap::new();
        for line in fs::read_to_string(world.at("home/strace.log")).unwrap().lines() {
            let (thread, call) = line.split_once(' ').unwrap();
            let name = call.trim_start().split('(').next().unwrap_or_default();
            if let Some(call) = CALLS.iter().find(|call| **call == name) {
                *of_threads.entry((thread.to_owned(), call)).or_default() += 1;
            }
        }
        for ((_, call), number) in of_threads {
            let most: &mut usize = counts.entry(call).or_default();
            *most = number.max(*most);
        }
    }
    counts
}

/// What is in the store is whole: each image passes `verify`, each name leads to one.
fn assert_whole(world: &World, context: &str) {
    for name in world.images().iter().filter(|name| !name.starts_with('.')) {
        let path = world.store().join("images").join(name);
        let output = run(&mut world.hpcrun(&["verify", "-q", path.to_str().unwrap()]));
        assert!(output.status.success(), "{context}: {}", stderr(&output));
    }
    for tag in names_in(&world.store().join("tags")).iter().filter(|name| !name.starts_with('.')) {
        let output = run(&mut world.hpcrun(&["inspect", &tag.replace('+', "/")]));
        assert!(output.status.success(), "{context}: {}", stderr(&output));
    }
}

fn kill_at_every_call(args: &[&str], before: &dyn Fn(&World)) {
    let world = World::new(small("one"));
    let name = world.name();
    let args: Vec<&str> = args.iter().map(|arg| if *arg == "NAME" { name.as_str() } else { arg }).collect();
    let reset = || {
        let _ = fs::remove_dir_all(world.store());
        // strace compares opened paths: they have to be there when it starts.
        for place in ["images", "tags", "trash", "steps"] {
            support::stdout(as_user("mkdir").arg("-p").arg(world.store().join(place)));
        }
        before(&world);
    };
    let counts = count(&world, &args, &reset);
    assert!(counts.values().sum::<usize>() > 5, "{counts:?}");
    for (call, most) in counts {
        // What is written into a file without a name is the same each time.
        let kills = if call == "pwrite64" { most.min(3) } else { most };
        for nth in 1..=kills {
            let context = format!("{args:?}: killed at {call} number {nth} of {most}");
            reset();
            let mut options = tracing(&world, call);
            options.push(format!("--inject={call}:signal=KILL:when={nth}"));
            let output = traced(&world, &args, &options);
            assert_eq!(output.status.signal(), Some(9), "{context}: {}", stderr(&output));
            assert_whole(&world, &context);
            // Whoever comes next succeeds, and cleans up.
            world.ok(&["pull", "-q", &name]);
            world.ok(&["gc", "-q"]);
            let left: Vec<String> = ["images", "tags"]
                .iter()
                .flat_map(|place| names_in(&world.store().join(place)))
                .filter(|name| name.starts_with('.'))
                .collect();
            assert_eq!(left, [""; 0], "{context}");
            assert_eq!(world.images().len(), 1, "{context}: {:?}", world.images());
        }
    }
}

#[test]
fn a_pull_killed_at_every_call() {
    kill_at_every_call(&["pull", "-q", "NAME"], &|_| {});
}

#[test]
fn a_removal_killed_at_every_call() {
    kill_at_every_call(&["rm", "-q", "NAME"], &|world| {
        world.ok(&["pull", "-q", &world.name()]);
    });
}

#[test]
fn a_collection_killed_at_every_call() {
    kill_at_every_call(&["gc", "-q", "--grace", "0"], &|world| {
        let (mine, name) = (world.image.lock().unwrap().clone(), world.name());
        world.serve(small("old"));
        world.ok(&["pull", "-q", &name]);
        world.serve(mine);
        world.ok(&["pull", "-q", &name]);
        world.age_images();
    });
}

/// A name must not come before its image, whatever fails.
#[test]
fn a_full_disk_leaves_the_store_as_it_was() {
    let world = World::new(small("one"));
    let name = world.name();
    world.ok(&["pull", &name]);
    let before = (world.images(), world.ok(&["history", &name]));
    world.serve(small("two"));
    for call in ["pwrite64", "fsync", "renameat"] {
        let mut options = tracing(&world, call);
        options.push(format!("--inject={call}:error=ENOSPC"));
        let output = traced(&world, &["pull", "-q", &name], &options);
        assert_eq!(output.status.code(), Some(125), "{call}");
        assert!(stderr(&output).contains("(ENOSPC)"), "{call}: {}", stderr(&output));
        assert_eq!(world.ok(&["history", &name]), before.1, "{call}");
        assert!(world.images().iter().all(|name| !name.starts_with('.')), "{:?}", world.images());
        assert_whole(&world, call);
    }
}

/// An image that is collected after a pull found it and before the name was there.
#[test]
fn a_pull_fetches_again_what_is_collected_under_it() {
    let world = World::new(small("one"));
    let name = world.name();
    world.ok(&["pull", "-q", &name]);
    world.ok(&["rm", "-q", &name]);
    let log = world.at("home/strace.log");
    let mut command = as_user("strace");
    // The first that is synced is the tag.
    command.args(["-f", "-qq", "--trace=fsync", "--inject=fsync:signal=STOP:when=1", "-o"]).arg(&log);
    world.prepare(command.arg(binary()).args(["pull", "-q", &name]));
    let mut pull = command.spawn().unwrap();
    let stopped = || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let line = text.lines().find(|line| line.contains("stopped by SIGSTOP"))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    let pid = loop {
        match stopped() {
            Some(pid) => break nix::unistd::Pid::from_raw(pid),
            None => assert!(Instant::now() < deadline, "it does not stop"),
        }
        thread::sleep(Duration::from_millis(20));
    };
    fs::remove_file(world.only_image()).unwrap();
    let ended = loop {
        // Each of its threads may have been stopped.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT);
        match pull.try_wait().unwrap() {
            Some(ended) => break ended,
            None => assert!(Instant::now() < deadline, "it does not end"),
        }
        thread::sleep(Duration::from_millis(20));
    };
    assert!(ended.success());
    assert_eq!(world.layers_fetched(), 2);
    assert_whole(&world, "fetched again");
    assert_eq!(world.images().len(), 1);
}

/// On NFS a file that another node replaces at this moment may go stale between two calls.
#[test]
fn a_tag_that_goes_stale_is_read_again() {
    let world = World::new(small("one"));
    let name = world.name();
    world.ok(&["pull", "-q", &name]);
    let tag = world.store().join("tags").join(name.replace('/', "+"));
    let shown = tag.display().to_string();
    let inject = |when: &str| {
        let inject = format!("--inject=read:error=ESTALE:when={when}");
        traced(
            &world,
            &["inspect", &name],
            &["-P".to_owned(), shown.clone(), "--trace=read".to_owned(), inject],
        )
    };
    assert!(inject("1").status.success());
    let output = inject("1+");
    assert_eq!(output.status.code(), Some(125));
    assert!(stderr(&output).contains("(ESTALE)"), "{}", stderr(&output));
}
