//! Joining a running container: one more process in its namespaces, with the environment of one that lives there.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::hint::Hint;
use crate::host::Environment;
use crate::launch::command::search_path;
use crate::launch::enact::{EnactError, require_plain_process};
use crate::launch::env_names::{RANK, TERMINAL, is_one_of};
use crate::launch::isolate;
use crate::launch::job::Job;
use crate::launch::plan::LaunchPlan;
use crate::launch::request::EnvOption;
use crate::sys;
use crate::sys::namespace::{Namespaces, OtherNamespace};
use crate::sys::path::{self, PathFd};
use crate::sys::process::{self, Fork};
use crate::sys::signal::Taken;

/// Whom to join and as what.
#[derive(Debug, Clone)]
pub struct Entry {
    /// A process of the container.
    pub pid: i32,
    /// Inode of the container's mount namespace: the process may have ended, and its number be another's.
    pub mount_namespace: u64,
    /// The job's environment, from [`environment`].
    pub environment: Environment,
    /// What to execute; empty for a shell.
    pub command: Vec<OsString>,
    /// The directory to start in and no other, if one was asked for.
    pub directory: Option<PathBuf>,
    /// The caller's working directory, taken if the container shows the same one under that name.
    pub here: Option<PathBuf>,
    /// The process's working directory.
    pub there: Option<PathBuf>,
}

/// Why the container was not entered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnterError {
    /// The process has gone.
    #[error("process {pid} has ended")]
    Gone {
        /// The process.
        pid: i32,
    },
    /// The job's environment is not to be had.
    #[error("cannot read the environment of process {pid}: it has just ended, or guards itself")]
    Environment {
        /// The process.
        pid: i32,
    },
    /// The kernel does not let the caller in.
    #[error("cannot join the namespaces of process {pid}")]
    Join {
        /// The process.
        pid: i32,
        /// The kernel's refusal.
        source: sys::Error,
    },
    /// A process for another process namespace could not be made or waited for.
    #[error("cannot start a process in the container")]
    Fork(#[source] sys::Error),
    /// The container has no shell.
    #[error("the container has no shell: none of {}", .tried.join(", "))]
    NoShell {
        /// The paths looked at.
        tried: Vec<String>,
    },
    /// What every launch can fail at.
    #[error(transparent)]
    Enact(#[from] EnactError),
}

impl EnterError {
    /// The exit status that says what happened, as of `exec`.
    pub fn exit_status(&self) -> u8 {
        match self {
            EnterError::Enact(error) => error.exit_status(),
            _ => 125,
        }
    }
}

impl Hint for EnterError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            EnterError::Enact(error) => return error.hints(),
            EnterError::Join { source, .. } if source.errno == Errno::EPERM => {
                "a container is entered from where it was launched: the host, not from inside of another container"
            }
            EnterError::Join { source, .. } if source.errno == Errno::EACCES => {
                "a security module of this node guards the process, or it changed its user"
            }
            EnterError::Environment { .. } => {
                "name another process of the container: 'hpcrun ps --json' lists them"
            }
            EnterError::NoShell { .. } => "name a program: hpcrun enter PID COMMAND",
            _ => return Vec::new(),
        };
        vec![hint.to_owned()]
    }
}

/// The environment to enter with: `theirs`, of a process of the container, without what makes that one a rank, with the
/// terminal of `mine` and what `options` say. A bare name means the caller's value.
pub fn environment(theirs: &Environment, mine: &Environment, options: &[EnvOption]) -> Environment {
    let value =
        |name: &OsStr| mine.iter().rev().find(|(other, _)| other == name).map(|(_, value)| value.clone());
    let dropped = |name: &OsStr| {
        is_one_of(name, RANK) || is_one_of(name, TERMINAL) || is_one_of(name, &["_", "OLDPWD"])
    };
    let mut entered: Environment = Vec::new();
    let mut set = |name: &OsStr, value: Option<OsString>| {
        entered.retain(|(other, _)| other != name);
        entered.extend(value.map(|value| (name.to_owned(), value)));
    };
    for (name, value) in theirs.iter().filter(|(name, _)| !name.is_empty() && !dropped(name)) {
        set(name, Some(value.clone()));
    }
    for name in TERMINAL {
        set(OsStr::new(name), value(OsStr::new(name)));
    }
    for option in options {
        set(&option.name, option.value.clone().or_else(|| value(&option.name)));
    }
    entered.sort();
    entered
}

/// Becomes a process of the container: without privilege, with nothing of the caller's but descriptors, limits, affinity,
/// umask and terminal. Returns only if that fails; where the container has processes of its own, in the child that was
/// to become the job. The caller has one thread.
pub fn enter(entry: Entry) -> Result<Infallible, EnterError> {
    require_plain_process()?;
    let pid = entry.pid;
    let join = |source: sys::Error| match source.errno {
        Errno::ENOENT | Errno::ESRCH => EnterError::Gone { pid },
        _ => EnterError::Join { pid, source },
    };
    // Everything by this descriptor: it stays that process's whoever gets its number next.
    let process = PathFd::open_directory(Path::new(&format!("/proc/{pid}"))).map_err(join)?;
    let namespaces = Namespaces::of(&process).map_err(join)?;
    if namespaces.ids().mount != entry.mount_namespace {
        return Err(EnterError::Gone { pid });
    }
    let ipc = OtherNamespace::of_ipc(&process).map_err(join)?;
    let processes = OtherNamespace::of_children(&process).map_err(join)?;
    let here = entry.here.as_deref().and_then(|here| Some((here, path::identity(here)?)));
    namespaces.join().map_err(join)?;
    for namespace in [&ipc, &processes].into_iter().flatten() {
        namespace.join().map_err(join)?;
    }
    let directory = directory(&entry, here)?;
    let job = Job::prepare(&plan(entry, directory)?)?;
    drop((process, namespaces, ipc));
    if processes.is_some() {
        become_child().map_err(EnterError::Fork)?;
    }
    Ok(job.run(None)?)
}

/// Goes on in a child: the caller's process cannot move to another process namespace, only a child is born there.
fn become_child() -> Result<(), sys::Error> {
    let taken = Taken::all()?;
    let (told, tell) = process::pipe()?;
    if let Fork::Parent(child) = process::fork()? {
        drop(tell);
        isolate::supervise(child, told, &taken)
    }
    drop(told);
    process::die_with_parent(&tell)?;
    taken.give_back();
    Ok(())
}

/// Where to start: as for `exec`, the caller's directory where the container shows that, else the process's.
fn directory(entry: &Entry, here: Option<(&Path, path::Identity)>) -> Result<PathBuf, EnactError> {
    if let Some(asked) = &entry.directory {
        let entered = path::change_directory(asked);
        let failed = |source| EnactError::WorkingDirectory { directory: asked.clone(), source };
        return entered.map(|()| asked.clone()).map_err(failed);
    }
    let here = here.filter(|(here, identity)| path::identity(here).as_ref() == Some(identity));
    let choices = here.map(|(here, _)| here).into_iter().chain(entry.there.as_deref());
    let found = choices.into_iter().find(|directory| path::change_directory(directory).is_ok());
    Ok(found.unwrap_or(Path::new("/")).to_owned())
}

/// The one process as a plan without mounts.
fn plan(entry: Entry, directory: PathBuf) -> Result<LaunchPlan, EnterError> {
    let Entry { mut environment, mut command, .. } = entry;
    if command.is_empty() {
        command.push(shell(&environment)?);
    }
    environment.retain(|(name, _)| name != "PWD");
    environment.push(("PWD".into(), directory.clone().into_os_string()));
    let path = environment.iter().find(|(name, _)| name == "PATH").map(|(_, path)| path.as_os_str());
    Ok(LaunchPlan {
        search: search_path(path),
        env: environment,
        cwd: vec![directory],
        program: command.first().cloned().unwrap_or_default(),
        argv: command,
        ..LaunchPlan::default()
    })
}

/// The first shell that is there: the one that the job's environment names, then the usual ones.
fn shell(environment: &Environment) -> Result<OsString, EnterError> {
    let own = environment.iter().find(|(name, _)| name == "SHELL").map(|(_, shell)| shell.clone());
    let tried: Vec<OsString> = own.into_iter().chain(["/bin/bash".into(), "/bin/sh".into()]).collect();
    let found = tried.iter().find(|shell| path::is_executable(Path::new(shell))).cloned();
    found.ok_or_else(|| EnterError::NoShell {
        tried: tried.iter().map(|path| path.display().to_string()).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Environment {
        pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    #[test]
    fn the_environment_is_the_jobs_without_its_rank() {
        let theirs = variables(&[
            ("PATH", "/opt/bin"),
            ("TERM", "dumb"),
            ("COLORTERM", "no"),
            ("PMI_FD", "7"),
            ("PMIX_RANK", "0"),
            ("OMPI_COMM_WORLD_RANK", "0"),
            ("SLURM_JOB_ID", "12"),
            ("_", "/x"),
            ("", "nameless"),
            ("TWICE", "1"),
            ("TWICE", "2"),
        ]);
        let mine = variables(&[("TERM", "xterm"), ("PATH", "/bin"), ("MINE", "m"), ("SECRET", "s")]);
        let options = ["MINE", "NONE", "A=1", "A=2", "PMI_FD=9"]
            .map(|typed| EnvOption::parse(OsStr::new(typed)).unwrap());
        let expected = [
            ("A", "2"),
            ("MINE", "m"),
            ("PATH", "/opt/bin"),
            ("PMI_FD", "9"),
            ("SLURM_JOB_ID", "12"),
            ("TERM", "xterm"),
            ("TWICE", "2"),
        ];
        assert_eq!(environment(&theirs, &mine, &options), variables(&expected));
    }
}
