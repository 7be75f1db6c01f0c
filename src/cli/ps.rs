//! `hpcrun ps`: the containers that run on this node.

use std::ffi::OsString;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::cli::args::Ps;
use crate::cli::enter::user_name;
use crate::cli::report::Failure;
use crate::cli::stores::Stores;
use crate::cli::{image_word, output, site, size, table};
use crate::host::containers::Container;
use crate::host::probe;
use crate::sys::caller;

/// Prints the containers of the user; for root, those of everybody.
pub(crate) fn run(args: &Ps) -> Result<u8, Failure> {
    let uid = caller::effective_uid();
    let of_everybody = uid == 0;
    let containers = probe::containers(Some(uid).filter(|_| !of_everybody));
    // What cannot be looked up is shown by its path.
    let stores = site::policy().map(|policy| Stores::open(&policy)).unwrap_or_default();
    let text = if args.json {
        let list: Vec<Value> = containers.iter().map(|container| as_json(container, &stores)).collect();
        format!("{:#}\n", json!({ "containers": list }))
    } else {
        table(&containers, of_everybody, &stores)
    };
    output::data(text.as_bytes())
}

fn as_json(container: &Container, stores: &Stores) -> Value {
    let started =
        SystemTime::now().checked_sub(container.age).and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let oldest = container.processes.first();
    json!({
        "image": container.image.to_string_lossy(),
        "image_names": image_word::names_of(&container.image, stores),
        "uid": container.uid,
        "user": user_name(container.uid),
        "pid": oldest.map(|process| process.pid),
        "command": oldest.map(|process| words(&process.command)),
        "processes": container.processes.iter().map(|process| process.pid).collect::<Vec<_>>(),
        "started": started.map(|at| at.as_secs()),
        "seconds": container.age.as_secs(),
        "launcher": container.launcher.kind.name().to_lowercase(),
        "job": container.launcher.job,
        "step": container.launcher.step,
        "server": container.server.map(|server| json!({
            "pid": server.pid,
            "rss_bytes": server.resident_bytes,
            "pss_bytes": server.proportional_bytes,
        })),
        "user_namespace": container.user_namespace,
        "mount_namespace": container.mount_namespace,
    })
}

/// A command line as text.
fn words(command: &[OsString]) -> Vec<String> {
    command.iter().map(|word| word.to_string_lossy().into_owned()).collect()
}

fn table(containers: &[Container], with_user: bool, stores: &Stores) -> String {
    const NAMES: [&str; 8] = ["PID", "USER", "PROCESSES", "TIME", "SERVER", "JOB", "IMAGE", "COMMAND"];
    let rows = containers.iter().map(|container| row(container, stores));
    let shown = |row: [String; 8]| -> Vec<String> {
        let cells = row.into_iter().zip(NAMES);
        cells.filter(|(_, name)| *name != "USER" || with_user).map(|(cell, _)| cell).collect()
    };
    let rows: Vec<Vec<String>> = std::iter::once(NAMES.map(str::to_owned)).chain(rows).map(shown).collect();
    table::lines(&rows)
}

fn row(container: &Container, stores: &Stores) -> [String; 8] {
    let path = || container.image.to_string_lossy().into_owned();
    let image = image_word::names_of(&container.image, stores).into_iter().next().unwrap_or_else(path);
    let oldest = container.processes.first();
    let command = oldest.map(|process| process.command.join(std::ffi::OsStr::new(" "))).unwrap_or_default();
    let memory = container.server.map(|server| server.proportional_bytes.unwrap_or(server.resident_bytes));
    let scope = container.launcher.step.as_ref().or(container.launcher.job.as_ref());
    let cell = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    [
        oldest.map_or_else(String::new, |process| process.pid.to_string()),
        user_name(container.uid),
        container.processes.len().to_string(),
        elapsed(container.age),
        memory.map_or_else(|| "-".to_owned(), size::bytes),
        cell(scope.map_or("", |scope| scope)),
        cell(&image),
        cell(&command.to_string_lossy()),
    ]
}

/// As `ps` has it: `[[DAYS-]HOURS:]MINUTES:SECONDS`.
fn elapsed(age: Duration) -> String {
    let seconds = age.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    let tail = format!("{minutes:02}:{:02}", seconds % 60);
    match (days, hours) {
        (0, 0) => tail,
        (0, hours) => format!("{hours:02}:{tail}"),
        (days, hours) => format!("{days}-{hours:02}:{tail}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_ps() {
        for (seconds, text) in
            [(0, "00:00"), (61, "01:01"), (3600, "01:00:00"), (86_399, "23:59:59"), (90_061, "1-01:01:01")]
        {
            assert_eq!(elapsed(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn without_containers_there_are_the_names() {
        assert_eq!(
            table(&[], false, &Stores::default()),
            "PID  PROCESSES  TIME  SERVER  JOB  IMAGE  COMMAND\n"
        );
        assert!(table(&[], true, &Stores::default()).starts_with("PID  USER  "));
    }
}
