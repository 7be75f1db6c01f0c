//! Becoming the job: no privilege left, its working directory, its program.

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::launch::enact::EnactError;
use crate::launch::plan::LaunchPlan;
use crate::launch::program;
use crate::mount::server::Launching;
use crate::sys::privilege::{self, Privileges};
use crate::sys::{self, exec, path};

/// The job in the form that the kernel takes it, made before there is any namespace to fail in.
#[derive(Debug)]
pub(super) struct Job {
    program: OsString,
    /// What to try to execute, in order.
    candidates: Vec<CString>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    directories: Vec<PathBuf>,
}

impl Job {
    /// Takes the job out of the plan.
    pub(super) fn prepare(plan: &LaunchPlan) -> Result<Job, EnactError> {
        let mut environment = Vec::with_capacity(plan.env.len());
        for (name, value) in &plan.env {
            let mut entry = name.as_bytes().to_vec();
            entry.push(b'=');
            entry.extend_from_slice(value.as_bytes());
            environment.push(c_string(entry, || format!("environment variable {}", name.display()))?);
        }
        let mut arguments = Vec::with_capacity(plan.argv.len());
        for (index, argument) in plan.argv.iter().enumerate() {
            arguments.push(c_string(argument.as_bytes().to_vec(), || format!("argument {index}"))?);
        }
        Ok(Job {
            program: plan.program.clone(),
            candidates: candidates(&plan.program, &plan.search)?,
            arguments,
            environment,
            directories: plan.cwd.clone(),
        })
    }

    /// Drops all privilege, enters the working directory and executes the program. Whatever the process was started
    /// with stays: descriptors, limits, affinity, umask, signal mask and dispositions.
    pub(super) fn run(self, launching: Option<Launching>) -> Result<Infallible, EnactError> {
        drop_privileges()?;
        enter_directory(&self.directories)?;
        exec::restore_sigpipe().map_err(|source| EnactError::Signals { source })?;
        if let Some(launching) = launching {
            launching.end_storing().map_err(EnactError::server)?;
            // From here on the job is where the scheduler wants it.
            drop(launching);
        }
        self.execute()
    }

    /// Executes the first candidate that is there, as `execvp(3)` does: one that may not be executed is passed over
    /// as long as there are others, and told about in the end.
    fn execute(self) -> Result<Infallible, EnactError> {
        let mut forbidden = None;
        for candidate in &self.candidates {
            let found = as_path(candidate);
            // A look costs less than an attempt, and this one has just been looked up.
            if self.is_searched() && is_missing(found) {
                continue;
            }
            let Err(source) = exec::execve(candidate, &self.arguments, &self.environment);
            match source.errno {
                Errno::ENOENT | Errno::ENOTDIR if program::diagnose(found, source.errno).is_none() => {}
                Errno::EACCES => forbidden = forbidden.or(Some((found.to_owned(), source))),
                _ => return Err(not_executable(found.to_owned(), source)),
            }
        }
        match forbidden {
            // A directory of the search path that is closed to us is not where the program is known to be.
            Some((found, source)) => match std::fs::symlink_metadata(&found) {
                Err(_) if self.is_searched() => Err(self.not_found()),
                _ => Err(not_executable(found, source)),
            },
            None => Err(self.not_found()),
        }
    }

    /// Whether the program was looked for in directories.
    fn is_searched(&self) -> bool {
        !self.program.as_bytes().contains(&b'/')
    }

    fn not_found(self) -> EnactError {
        let searched = self.is_searched().then(|| {
            let directories = self.candidates.iter().filter_map(|path| {
                Path::new(OsStr::from_bytes(path.as_bytes()))
                    .parent()
                    .map(|parent| parent.display().to_string())
            });
            directories.collect::<Vec<_>>().join(":")
        });
        EnactError::NotFound { program: self.program, searched }
    }
}

fn is_missing(path: &Path) -> bool {
    path.metadata().is_err_and(|error| matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)))
}

fn as_path(candidate: &CString) -> &Path {
    Path::new(OsStr::from_bytes(candidate.as_bytes()))
}

fn candidates(program: &OsStr, search: &[PathBuf]) -> Result<Vec<CString>, EnactError> {
    let name = || "the program's name".to_owned();
    paths(program, search).into_iter().map(|path| c_string(path.into_os_string().into_vec(), name)).collect()
}

/// Where a program may be: a path as it is, a bare name in each directory of `search`. An empty name is nowhere.
pub(super) fn paths(program: &OsStr, search: &[PathBuf]) -> Vec<PathBuf> {
    if program.is_empty() {
        return Vec::new();
    }
    if program.as_bytes().contains(&b'/') {
        return vec![PathBuf::from(program)];
    }
    search.iter().map(|directory| directory.join(program)).collect()
}

fn c_string(bytes: Vec<u8>, what: impl FnOnce() -> String) -> Result<CString, EnactError> {
    CString::new(bytes).map_err(|_| EnactError::NulByte { what: what() })
}

fn not_executable(program: PathBuf, source: sys::Error) -> EnactError {
    let reason = match source.errno {
        Errno::E2BIG => Some("arguments and environment are too long together".to_owned()),
        Errno::ETXTBSY => Some("it is being written".to_owned()),
        Errno::ELOOP => Some("its links lead in a circle".to_owned()),
        errno => program::diagnose(&program, errno),
    };
    let reason = reason.unwrap_or_else(|| source.errno.desc().to_lowercase());
    EnactError::NotExecutable { program, reason, source }
}

/// Asked for is not enough: what the kernel says is left decides (CVE-2025-65105 is the kind to avoid).
fn drop_privileges() -> Result<(), EnactError> {
    let failed = |source| EnactError::Privileges { source };
    privilege::drop_all().map_err(failed)?;
    match privilege::held().map_err(failed)? {
        Privileges::NONE => Ok(()),
        held => Err(EnactError::PrivilegesLeft { held }),
    }
}

/// Enters the first directory that is there; with none to choose from, the root it is.
fn enter_directory(directories: &[PathBuf]) -> Result<(), EnactError> {
    let mut refused = None;
    for directory in directories {
        match path::change_directory(directory) {
            Ok(()) => return Ok(()),
            Err(source) => refused = refused.or(Some((directory.clone(), source))),
        }
    }
    match refused {
        Some((directory, source)) => Err(EnactError::WorkingDirectory { directory, source }),
        None => Ok(()),
    }
}
