//! MPI across the border of the image: whether its library will understand the launcher, and what becomes of it where a
//! library of the host is to take its place. Pure: the facts come from [`crate::image::facts`] and from whoever has read
//! the files.

pub mod choice;
pub mod offer;
pub mod replace;
pub mod verdict;

pub use offer::{Offer, Starter};
pub use replace::{ReplaceError, Replacement};
pub use verdict::{Finding, verdict};

use crate::elf::closure::Closure;
use crate::image::facts::{Facts, Library, Role};

/// Whether the program of a launch is one of MPI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Usage<'f> {
    /// It is linked to these libraries of the image, of which one is MPI.
    Linked(&'f Library),
    /// It is an interpreter or a script, or links nothing, and may load or start anything.
    Unknown,
    /// It is linked to others than the image's, or needs none.
    Foreign,
}

/// Programs that start others or read a program: what they are linked to says nothing of what will run.
const GO_BETWEENS: [&str; 26] = [
    "ash", "bash", "busybox", "csh", "dash", "env", "ksh", "sh", "tcsh", "zsh", "gdb", "julia", "lua",
    "nice", "node", "numactl", "perl", "python", "Rscript", "ruby", "stdbuf", "strace", "taskset", "time",
    "timeout", "valgrind",
];

/// What the closure of a program says. `closure` is none for what is no ELF program; `name` is the program's file name.
pub fn usage<'f>(closure: Option<&Closure>, name: &[u8], facts: &'f Facts) -> Usage<'f> {
    let Some(closure) = closure else { return Usage::Unknown };
    let mpi = facts.of_role(Role::Mpi);
    let is_loaded =
        |library: &&Library| closure.loaded.iter().any(|loaded| loaded.name == library.soname.as_bytes());
    let loaded: Vec<&Library> = mpi.filter(is_loaded).collect();
    // Of several files with one name, the one that the loader would take.
    let exact = loaded
        .iter()
        .find(|library| closure.loaded.iter().any(|loaded| loaded.path == library.path.as_bytes()));
    match exact.or(loaded.first()) {
        Some(library) => Usage::Linked(library),
        None if is_go_between(name) => Usage::Unknown,
        // A static program may have its MPI in itself.
        None if closure.loaded.iter().all(|loaded| loaded.object.needed.is_empty()) => Usage::Unknown,
        None => Usage::Foreign,
    }
}

fn is_go_between(name: &[u8]) -> bool {
    // python3.11 is python, too.
    let end = name.iter().rposition(|byte| !(byte.is_ascii_digit() || *byte == b'.' || *byte == b'-'));
    let stem = end.and_then(|end| name.get(..=end)).unwrap_or_default();
    GO_BETWEENS.iter().any(|known| known.as_bytes() == stem)
}

/// The one MPI of an image, where all of its files are of one kind; which a program that says nothing may use.
pub fn only_mpi(facts: &Facts) -> Option<&Library> {
    let first = facts.of_role(Role::Mpi).next()?;
    facts.of_role(Role::Mpi).all(|library| library.family == first.family).then_some(first)
}

#[cfg(test)]
mod tests;
