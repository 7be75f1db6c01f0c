//! What a launch adds of the host's own software to the image: libraries, programs, devices, and what makes the image's
//! loader find them. Pure.
//!
//! Who wants something (a GPU's driver, a module of the site) says so in an [`Injection`]; [`Injection::binds`] and
//! [`Injection::additions`] turn it into mounts, grafts and variables. Libraries lie in one directory of their own under
//! their SONAMEs, so that nothing else of the host's comes with them, and the image's `ld.so.cache` is shown with them first:
//! unlike `LD_LIBRARY_PATH` that reaches every program of the job and nobody has to pass it on.

mod loaders;

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use self::loaders::{Loaders, MuslLoader};
use super::binds::{Bind, Binds, Party, Shown};
use super::request::Joining;
use crate::elf::library_cache::Entry;
use crate::mount::graft::Graft;
use crate::mount::plan::{Access, Need, Reason};
use crate::policy::path::normalise;

/// Where the libraries are in the new root.
pub const LIBRARY_DIRECTORY: &str = "/.hpcrun/lib";

/// What is wanted of the host. Nothing, by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Injection {
    /// Libraries of the host, to be found by any program by their names.
    pub libraries: Vec<Library>,
    /// Files and directories of the host at given places. One that the image has a file at covers it.
    pub mounts: Vec<HostMount>,
    /// Symbolic links, in place of what the image has there.
    pub links: Vec<Link>,
    /// Files that are made up, in place of what the image has there.
    pub files: Vec<MadeFile>,
    /// Libraries that are to be found by their names where they are in the new root, whatever put them there.
    pub found: Vec<FoundLibrary>,
    /// Variables, over the image's and under the site's and the user's.
    pub variables: Vec<Variable>,
}

/// One library of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Library {
    /// Its SONAME, a file name.
    pub name: OsString,
    /// Host path, resolved.
    pub source: PathBuf,
    /// Why.
    pub reason: Reason,
}

/// A host path to be seen at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostMount {
    /// Host path, resolved.
    pub source: PathBuf,
    /// Absolute, in normal form.
    pub destination: PathBuf,
    /// Whether the job may write to it.
    pub access: Access,
    /// Whether it is a directory.
    pub is_directory: bool,
    /// Why.
    pub reason: Reason,
}

/// A symbolic link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Where, absolute.
    pub path: PathBuf,
    /// To what.
    pub target: PathBuf,
    /// Why.
    pub reason: Reason,
}

/// A file that is made up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeFile {
    /// Where, absolute.
    pub path: PathBuf,
    /// What it holds.
    pub content: Vec<u8>,
    /// Why.
    pub reason: Reason,
}

/// A library at its place in the new root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundLibrary {
    /// Its SONAME.
    pub name: OsString,
    /// Where it is.
    pub path: PathBuf,
    /// Why.
    pub reason: Reason,
}

/// A variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// Which.
    pub name: OsString,
    /// What to.
    pub value: OsString,
    /// What becomes of the image's.
    pub joining: Joining,
    /// Why.
    pub reason: Reason,
}

/// What follows from an injection, beside its binds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Additions {
    /// For the image server.
    pub grafts: Vec<(PathBuf, Graft)>,
    /// For the job.
    pub variables: Vec<Variable>,
    /// The grafts in words, each with its reason, for `--explain`.
    pub described: Vec<(String, Reason)>,
    /// What could not be done as it should be.
    pub notes: Vec<String>,
}

impl Injection {
    /// Whether nothing is wanted.
    pub fn is_empty(&self) -> bool {
        *self == Injection::default()
    }

    /// Whether the image's loaders have to be told.
    pub fn concerns_loaders(&self) -> bool {
        !(self.libraries.is_empty() && self.found.is_empty())
    }

    /// Adds what somebody else wants; who comes first wins where both want one library, link, file or variable.
    pub fn extend(&mut self, other: Injection) {
        self.libraries.extend(other.libraries);
        self.mounts.extend(other.mounts);
        self.links.extend(other.links);
        self.files.extend(other.files);
        self.found.extend(other.found);
        self.variables.extend(other.variables);
        keep_first(&mut self.libraries, |library| library.name.clone());
        keep_first(&mut self.mounts, |mount| mount.destination.clone());
        keep_first(&mut self.links, |link| link.path.clone());
        keep_first(&mut self.files, |file| file.path.clone());
        keep_first(&mut self.found, |found| found.name.clone());
        // Lists may be added to by several.
        keep_first(&mut self.variables, |variable| {
            (variable.name.clone(), (variable.joining != Joining::Replace).then(|| variable.value.clone()))
        });
    }

    /// Takes the libraries and files of these host paths back, with the links to them and the names that lead there.
    pub fn leave_out(&mut self, sources: &[&Path]) {
        let is_out = |source: &Path| sources.contains(&source);
        let libraries = self.libraries.iter().filter(|library| is_out(&library.source)).map(place);
        let mounts = self.mounts.iter().filter(|mount| is_out(&mount.source));
        let mut gone: Vec<PathBuf> = libraries.chain(mounts.map(|mount| mount.destination.clone())).collect();
        self.libraries.retain(|library| !is_out(&library.source));
        self.mounts.retain(|mount| !is_out(&mount.source));
        // A link may lead to another link.
        loop {
            let before = gone.len();
            self.links.retain(|link| {
                let parent = link.path.parent().unwrap_or(Path::new("/"));
                let dangles = gone.contains(&normalise(parent, &link.target));
                if dangles {
                    gone.push(link.path.clone());
                }
                !dangles
            });
            if gone.len() == before {
                break;
            }
        }
        self.found.retain(|found| !gone.contains(&found.path));
    }

    /// The mounts, as weak as hpcrun's own defaults: what the user or the site binds stays.
    pub fn binds(&self) -> Vec<Bind> {
        let libraries = self.libraries.iter().map(|library| {
            let Library { source, reason, .. } = library;
            // Without it there would be an empty file, and the loader would stop at that.
            bind(source, place(library), Access::ReadOnly, Need::Required, false, reason)
        });
        let mounts = self.mounts.iter().map(|mount| {
            let HostMount { source, destination, access, is_directory, reason } = mount;
            bind(source, destination.clone(), *access, Need::Optional, *is_directory, reason)
        });
        libraries.chain(mounts).collect()
    }

    /// What else has to be added to an image with these loaders, once it is known which `binds` there are.
    pub fn additions(&self, loaders: &Loaders, binds: &Binds) -> Additions {
        let mut additions = Additions { variables: self.variables.clone(), ..Additions::default() };
        for link in &self.links {
            let target = link.target.as_os_str().as_bytes().to_vec();
            additions.graft(&link.path, Graft::Symlink(target), binds, || {
                (format!("link {} -> {}", link.path.display(), link.target.display()), link.reason.clone())
            });
        }
        for file in &self.files {
            additions.graft(&file.path, content(&file.content), binds, || {
                (format!("file {}", file.path.display()), file.reason.clone())
            });
        }
        let entries = self.entries(binds);
        if let Some((_, reason)) = entries.first() {
            let libraries: Vec<Entry> = entries.iter().map(|(entry, _)| entry.clone()).collect();
            additions.tell(loaders, libraries, reason, binds);
        }
        additions
    }

    /// What the loaders are to know: libraries that the user or the site has not taken away.
    fn entries(&self, binds: &Binds) -> Vec<(Entry, Reason)> {
        let is_there = |path: &Path| binds.binds.iter().any(|bind| bind.destination == path);
        let entry = |name: &OsString, path: &Path| {
            Entry::new(name.as_bytes().to_vec(), path.as_os_str().as_bytes().to_vec())
        };
        let own = self.libraries.iter().filter(|library| is_there(&place(library)));
        let own = own.map(|library| (entry(&library.name, &place(library)), library.reason.clone()));
        let found = self.found.iter().map(|found| (entry(&found.name, &found.path), found.reason.clone()));
        own.chain(found).collect()
    }
}

impl Additions {
    fn graft(
        &mut self,
        path: &Path,
        graft: Graft,
        binds: &Binds,
        describe: impl FnOnce() -> (String, Reason),
    ) {
        // What lies in a bind is the host's: nothing is created there.
        if binds.covers(path) {
            let (what, reason) = describe();
            self.notes.push(format!("{what} ({reason}) left out: it is inside a bind"));
            return;
        }
        self.grafts.push((path.to_owned(), graft));
        self.described.push(describe());
    }

    /// Makes the loaders find `libraries`.
    fn tell(&mut self, loaders: &Loaders, libraries: Vec<Entry>, reason: &Reason, binds: &Binds) {
        let directories = directories_of(&libraries);
        let count = libraries.len();
        let told = loaders.with(libraries, &directories);
        for (path, bytes) in told.files {
            self.graft(&path, content(&bytes), binds, || {
                (format!("file {} with {count} libraries of the host first", path.display()), reason.clone())
            });
        }
        self.notes.extend(told.notes);
        if told.by_variable {
            let name = OsString::from("LD_LIBRARY_PATH");
            let mut value = OsString::new();
            for directory in &directories {
                if !value.is_empty() {
                    value.push(":");
                }
                value.push(directory);
            }
            self.variables.push(Variable { name, value, joining: Joining::Prepend, reason: reason.clone() });
        }
    }
}

/// The directories of the libraries, each once.
fn directories_of(libraries: &[Entry]) -> Vec<PathBuf> {
    let mut directories: Vec<PathBuf> = Vec::new();
    for library in libraries {
        let path = Path::new(std::ffi::OsStr::from_bytes(&library.path));
        if let Some(parent) = path.parent()
            && !directories.iter().any(|known| known == parent)
        {
            directories.push(parent.to_owned());
        }
    }
    directories
}

fn place(library: &Library) -> PathBuf {
    Path::new(LIBRARY_DIRECTORY).join(&library.name)
}

fn bind(
    source: &Path,
    destination: PathBuf,
    access: Access,
    need: Need,
    is_directory: bool,
    reason: &Reason,
) -> Bind {
    let shown = Shown::Host { path: source.to_owned(), need, is_directory };
    Bind { shown, destination, access, party: Party::Default, reason: reason.clone() }
}

fn content(bytes: &[u8]) -> Graft {
    Graft::Content { mode: 0o644, content: Arc::from(bytes) }
}

fn keep_first<T, K: std::hash::Hash + Eq>(list: &mut Vec<T>, key: impl Fn(&T) -> K) {
    let mut known = HashSet::new();
    list.retain(|item| known.insert(key(item)));
}

#[cfg(test)]
mod tests;
