//! `hpcrun enter`: one more process in a container that runs.

use crate::cli::args::Enter;
use crate::cli::launch::split;
use crate::cli::report::Failure;
use crate::host::containers::Container;
use crate::host::probe;
use crate::launch::enter::{self, EnterError, Entry};
use crate::launch::request::EnvOption;
use crate::sys::caller;

/// Runs `hpcrun enter TARGET [COMMAND...]`.
pub(crate) fn run(args: Enter) -> Result<u8, Failure> {
    let options = args.env.iter().map(|typed| EnvOption::parse(typed)).collect::<Result<Vec<_>, _>>();
    let options = options.map_err(|error| Failure::new(&error))?;
    let (target, command) = split(args.words);
    let target = target.to_string_lossy();
    let (container, pid) = find(&target)?;
    let closed = || failure(&EnterError::Environment { pid });
    let theirs = probe::environment_of(pid).ok_or_else(closed)?;
    let there = probe::working_directory_of(pid);
    // Only now is it certain whose these were: a process number may have got a new owner since the list was made.
    if probe::mount_namespace_of(pid) != Some(container.mount_namespace) {
        return Err(failure(&EnterError::Gone { pid }));
    }
    let mine = std::env::vars_os().collect();
    let entry = Entry {
        // The oldest process of the mount namespace is in the user namespace that this belongs to.
        pid: container.processes.first().map_or(pid, |process| process.pid),
        mount_namespace: container.mount_namespace,
        environment: enter::environment(&theirs, &mine, &options),
        command,
        directory: args.cwd,
        here: caller::working_directory().ok(),
        there,
    };
    let Err(error) = enter::enter(entry);
    Err(failure(&error))
}

fn failure(error: &EnterError) -> Failure {
    Failure::new(error).with_status(error.exit_status())
}

/// The container that `target` names, by a process or by its job, and the process to take the environment of.
fn find(target: &str) -> Result<(Container, i32), Failure> {
    let own = caller::effective_uid();
    let mut containers = probe::containers(Some(own));
    let pid = target.parse::<i32>().ok().filter(|pid| *pid > 0);
    let by_process = pid.and_then(|pid| Some((containers.iter().position(|found| found.holds(pid))?, pid)));
    if let Some((position, pid)) = by_process {
        return Ok((containers.swap_remove(position), pid));
    }
    containers.retain(|container| container.is_of_job(target));
    if let [only] = containers.as_slice() {
        let oldest = only.processes.first().map_or(0, |process| process.pid);
        return containers.pop().map(|only| (only, oldest)).ok_or_else(|| nothing(target, pid, own));
    }
    Err(if containers.is_empty() { nothing(target, pid, own) } else { several(target, &containers) })
}

fn several(target: &str, containers: &[Container]) -> Failure {
    let processes = containers.iter().filter_map(|container| container.processes.first());
    let processes: Vec<String> = processes.map(|process| process.pid.to_string()).collect();
    Failure::plain(format!("job {target} has {} containers on this node", processes.len()))
        .hint(format!("name a process: one of {}", processes.join(", ")))
        .hint("hpcrun ps shows what each runs")
}

/// Why nothing was found.
fn nothing(target: &str, pid: Option<i32>, own: u32) -> Failure {
    let list = "hpcrun ps lists the containers that you can enter";
    let Some(pid) = pid else {
        return Failure::plain(format!("no container of job {target:?} runs on this node")).hint(list);
    };
    match probe::owner_of(pid) {
        None => Failure::plain(format!(
            "there is neither a process nor a job {pid} with a container of yours on this node"
        ))
        .hint(list),
        Some(other) if other != own => {
            let user = user_name(other);
            let failure = Failure::plain(format!(
                "process {pid} belongs to {user}: only its owner can enter its container"
            ));
            if own == 0 {
                failure.hint(format!("runuser -u {user} -- hpcrun enter {pid}"))
            } else {
                failure.hint(list)
            }
        }
        Some(_) => Failure::plain(format!("process {pid} is not in a container of hpcrun")).hint(list),
    }
}

/// A user's name, or the number of one without.
pub(crate) fn user_name(uid: u32) -> String {
    let entry = caller::user_entry(uid).ok().flatten();
    entry.map_or_else(|| uid.to_string(), |entry| entry.name.to_string_lossy().into_owned())
}
