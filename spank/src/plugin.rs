//! What the plugin does when Slurm calls it.
//!
//! Whatever goes wrong for a task ends that task, in its own process, and is never an error of the plugin: by such Slurm
//! would drain a node, or, for an optional plugin, run the task on the host.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::abi::{Context, Spank, Step};
use crate::options::{self, Bytes, Choice, OPTIONS};

/// Where hpcrun is if plugstack.conf does not say it.
const HPCRUN: &str = "/usr/bin/hpcrun";

/// Status of a task that could not be started, hpcrun's own for that.
const STATUS_FAILED: i32 = 125;

/// Registers the options, where there are command lines or tasks.
pub(crate) fn init(spank: &Spank) {
    if matches!(spank.context(), Context::Srun | Context::Allocator | Context::Task) {
        for option in OPTIONS {
            if let Err(status) = spank.register(option) {
                spank.error(&format!(
                    "hpcrun: cannot add the option --{}: Slurm's error {status}",
                    option.name
                ));
            }
        }
    }
}

/// Lets Slurm execute hpcrun with the task's command, if the task is to run in an image. `arguments` are those of
/// plugstack.conf.
pub(crate) fn task_init(spank: &Spank, arguments: &[Bytes]) {
    if let Err(why) = enter(spank, arguments) {
        spank.error(&format!("hpcrun: {why}"));
        spank.end_task(STATUS_FAILED);
    }
}

fn enter(spank: &Spank, arguments: &[Bytes]) -> Result<(), String> {
    let Some(mut choice) = options::choose(&spank.given(), |name| spank.variable(name))? else {
        return Ok(());
    };
    let mut command = spank.command().ok_or("Slurm does not tell the task's command")?;
    match spank.step() {
        Step::Tasks => {}
        Step::Batch if choice.takes_script => show_script(&mut choice, &command),
        Step::Batch | Step::Other => return Ok(()),
    }
    let hpcrun = hpcrun(arguments)?;
    let mut before = vec![hpcrun.clone()];
    before.append(&mut choice.words);
    if spank.prepend(&before)? {
        return Ok(());
    }
    if options::is_multi_prog(&command) {
        return Err("--image and --multi-prog go together from Slurm 23.11 on; \
                    until then write 'hpcrun exec IMAGE' into the file's lines"
            .to_owned());
    }
    if command.is_empty() {
        return Err("no command to run in the image".to_owned());
    }
    // Slurm executes the first word with the others, and lets it be exchanged, but not a word be added; those go
    // through the environment. Executing hpcrun here and now would skip the task prolog and the user's limits.
    let own = command.swap_remove(0);
    for (at, word) in before.iter().skip(1).chain([&own]).enumerate() {
        spank.set_variable(&format!("HPCRUN_TASK_{at}"), word)?;
    }
    spank.set_variable("HPCRUN_TASK_PID", std::process::id().to_string().as_bytes())?;
    spank.replace_program(&hpcrun)
}

/// Slurm's copy of the batch script lies in a directory that images do not have.
fn show_script(choice: &mut Choice, command: &[Bytes]) {
    let script = command.first().map(Vec::as_slice).unwrap_or_default();
    let directory = script.rsplitn(2, |byte| *byte == b'/').nth(1).unwrap_or_default();
    let quoted = directory.iter().flat_map(|byte| match byte {
        b':' | b',' | b'\\' => vec![b'\\', *byte],
        _ => vec![*byte],
    });
    let mut bind = b"--bind=".to_vec();
    bind.extend(quoted);
    bind.extend(b"::ro");
    choice.words.insert(1, bind);
}

/// The program that plugstack.conf names by `hpcrun=FILE`, if it can be executed.
fn hpcrun(arguments: &[Bytes]) -> Result<Bytes, String> {
    let mut path = HPCRUN.as_bytes();
    for argument in arguments {
        path = argument.strip_prefix(b"hpcrun=").ok_or_else(|| {
            format!(
                "plugstack.conf: '{}' is no argument of the plugin; hpcrun=FILE is",
                argument.escape_ascii()
            )
        })?;
    }
    let name = String::from_utf8(path.to_vec())
        .map_err(|_| "plugstack.conf: hpcrun=FILE is not UTF-8".to_owned())?;
    let metadata =
        std::fs::metadata(&name).map_err(|error| format!("cannot run {name} on this node: {error}"))?;
    if !Path::new(&name).is_absolute() || !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 {
        return Err(format!("cannot run {name} on this node: not an absolute path of an executable file"));
    }
    Ok(path.to_vec())
}
