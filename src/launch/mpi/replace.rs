//! Whether libraries of the host can take the place of the image's, and which files that needs. Pure.
//!
//! A library fits where nothing that stays could tell the difference: it defines every symbol and every version that
//! programs and libraries of the image use of the one it replaces, and the image's glibc is new enough for it and for all
//! that comes with it. What the file names say of versions is believed only where the site asks for that.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::elf::closure::is_glibc;
use crate::elf::object::Requirement;
use crate::elf::version;
use crate::hint::Hint;
use crate::image::facts::{Facts, Family, Library, Role};
use crate::policy::rules::modules::ModuleAbi;

/// Names under which one interface is known. Debian calls MPICH's library by an older name.
const ALIASES: [[&str; 2]; 3] = [
    ["libmpi.so.12", "libmpich.so.12"],
    ["libmpifort.so.12", "libmpichfort.so.12"],
    ["libmpicxx.so.12", "libmpichcxx.so.12"],
];

/// Libraries that compilers add, by which of their versions grow: the newer of two serves everybody.
const RUNTIMES: [(&str, &[&str]); 2] =
    [("libstdc++.so.6", &["GLIBCXX_", "CXXABI_"]), ("libgcc_s.so.1", &["GCC_"])];

/// Names of missing symbols that a message has room for.
const SYMBOLS_SHOWN: usize = 3;

/// What the host has to offer under one name: a module of the site.
#[derive(Debug, Clone, Default)]
pub struct Offered {
    /// The module's name.
    pub module: String,
    /// How alike libraries must be.
    pub abi: ModuleAbi,
    /// The libraries of the module, and all that they need.
    pub libraries: Vec<HostLibrary>,
    /// What they need and the host has not, by who needs it.
    pub missing: Vec<(String, String)>,
    /// Directories that the module binds where they are on the host.
    pub prefixes: Vec<PathBuf>,
}

/// A library of the host.
#[derive(Debug, Clone)]
pub struct HostLibrary {
    /// The name under which it is needed.
    pub name: String,
    /// Where it lies, without links.
    pub path: PathBuf,
    /// Whether the module names it; else another of its libraries needs it.
    pub is_named: bool,
    /// Whose MPI it is, if it is one.
    pub family: Option<Family>,
    /// The version that its file's name ends in.
    pub file_version: String,
    /// Versions that it requires of others.
    pub requires: Vec<Requirement>,
    /// Versions that it defines.
    pub versions: Vec<Vec<u8>>,
    /// Symbols that it defines.
    pub defined: BTreeSet<Vec<u8>>,
}

/// What is known of the image.
#[derive(Debug, Clone, Copy)]
pub struct ImageSide<'a> {
    /// Its libraries.
    pub facts: &'a Facts,
    /// The program and what it is linked to; none where that cannot be known before it runs.
    pub loaded: Option<&'a [ImageObject]>,
}

/// A program or a library of the image that will be loaded.
#[derive(Debug, Clone)]
pub struct ImageObject {
    /// The name under which it is needed.
    pub name: String,
    /// Where it lies.
    pub path: String,
    /// Symbols that others have to define for it.
    pub wanted: BTreeSet<Vec<u8>>,
    /// Symbols that it defines.
    pub defined: BTreeSet<Vec<u8>>,
    /// Versions that it requires of others.
    pub requires: Vec<Requirement>,
}

/// Host libraries that take the place of the image's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replacement {
    /// Names under which a loader shall find a file of the host.
    pub libraries: Vec<(String, PathBuf)>,
    /// Files of the host and the image's files that they are put over: programs may have their directory built in.
    pub covers: Vec<(PathBuf, PathBuf)>,
    /// Names to be found where they are on the host, for a directory that is bound as a whole.
    pub found: Vec<(String, PathBuf)>,
    /// What was decided, in words.
    pub notes: Vec<String>,
}

/// Why host libraries cannot take the place of the image's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReplaceError {
    /// The image's programs are not of glibc.
    #[error("{library} is linked to glibc, and the image has {has}")]
    OtherLibc {
        /// The host's library.
        library: String,
        /// `musl`.
        has: &'static str,
    },
    /// There is nothing in the image whose place they could take.
    #[error("the image has no {offered}{has}")]
    NothingLikeIt {
        /// Sonames of the host's libraries.
        offered: String,
        /// `; it has Open MPI 4.1 (libmpi.so.40.30.4)`
        has: String,
    },
    /// The libraries have one name and are of different kinds.
    #[error("{library} is {host}, and the image's {path} is {image}")]
    OtherFamily {
        /// The host's library.
        library: String,
        /// Whose it is.
        host: &'static str,
        /// The image's file.
        path: String,
        /// Whose that is.
        image: &'static str,
    },
    /// Open MPI is more than its library.
    #[error("{library} is Open MPI, which works only together with its directory of components")]
    OpenMpi {
        /// The host's library.
        library: String,
    },
    /// Something that it needs is nowhere on this node.
    #[error("{needed_by} needs {library}, which this node does not have")]
    Missing {
        /// The library.
        library: String,
        /// Who needs it.
        needed_by: String,
    },
    /// The image's glibc is too old.
    #[error("{library} needs GLIBC_{needed}, and the image has glibc {has}")]
    Glibc {
        /// The host's library.
        library: String,
        /// The version that it needs.
        needed: String,
        /// The image's.
        has: String,
    },
    /// Somebody uses what it lacks.
    #[error("{user} of the image uses {symbols}, which {library} does not define")]
    Symbols {
        /// Who.
        user: String,
        /// Some of what is missing, and how much more there is.
        symbols: String,
        /// The host's library.
        library: String,
    },
    /// Somebody uses a version that it lacks.
    #[error("{user} of the image needs {version} of {library}, which the host's {path} does not define")]
    Version {
        /// Who.
        user: String,
        /// The version.
        version: String,
        /// The library.
        library: String,
        /// The host's file.
        path: String,
    },
    /// It is older than the image's, and the site wants none that is.
    #[error("{library} has version {has}, and the image's {path} has {wanted}")]
    Older {
        /// The host's library.
        library: String,
        /// Its version.
        has: String,
        /// The image's file.
        path: String,
        /// Its version.
        wanted: String,
    },
}

impl Hint for ReplaceError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            ReplaceError::OpenMpi { .. } => {
                "the module must bind the whole installation of Open MPI at its own path, or the image's own be used"
            }
            ReplaceError::Glibc { .. } => {
                "use the image's own MPI (without --mpi=host), or build the image on a newer system"
            }
            ReplaceError::Missing { .. } => {
                "the module must name it among its libraries: tell the administrator"
            }
            ReplaceError::OtherLibc { .. } => "build the image on a distribution with glibc",
            _ => "use the image's own MPI: leave --mpi=host out",
        };
        vec![hint.to_owned()]
    }
}

/// Decides whether, and how, what is offered takes the place of what the image has.
pub fn decide(offered: &Offered, image: ImageSide<'_>) -> Result<Replacement, ReplaceError> {
    let injected = injected(offered, image.facts);
    let Some(first) = injected.first() else { return Ok(Replacement::default()) };
    if image.facts.glibc().is_none() {
        let has = if image.facts.is_musl() { "musl" } else { "no glibc" };
        return Err(ReplaceError::OtherLibc { library: display(&first.path), has });
    }
    if let Some((library, needed_by)) = offered.missing.first() {
        return Err(ReplaceError::Missing { library: library.clone(), needed_by: needed_by.clone() });
    }
    check_match(offered, image.facts)?;
    check_glibc(&injected, image.facts)?;
    let mut notes = Vec::new();
    match image.loaded {
        Some(loaded) if offered.abi == ModuleAbi::Symbols => check_users(&injected, loaded)?,
        None if offered.abi == ModuleAbi::Symbols => {
            notes.push("what the program will load is not known: its symbols were not compared".to_owned());
        }
        _ => {}
    }
    Ok(replacement(offered, &injected, image.facts, notes))
}

/// What goes into the image: not glibc, which stays whole, and of the compilers' libraries those that are newer.
fn injected<'o>(offered: &'o Offered, facts: &Facts) -> Vec<&'o HostLibrary> {
    let wanted = offered.libraries.iter().filter(|library| !is_glibc(library.name.as_bytes()));
    wanted.filter(|library| !serves(library, offered, facts)).collect()
}

/// Whether the image has this library of the compilers, and it will do for all that comes from the host.
fn serves(library: &HostLibrary, offered: &Offered, facts: &Facts) -> bool {
    let Some((name, prefixes)) = RUNTIMES.iter().find(|(name, _)| *name == library.name) else {
        return false;
    };
    facts.named(name).any(|own| {
        prefixes.iter().all(|prefix| {
            let asked = offered.libraries.iter().flat_map(|library| &library.requires);
            let asked = asked.filter(|one| one.library == name.as_bytes()).map(|one| one.version.as_slice());
            let own = version::highest(own.defines.iter().map(String::as_bytes), prefix);
            match (version::highest(asked, prefix), own) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(asked), Some(own)) => version::compare(&asked, &own).is_le(),
            }
        })
    })
}

/// All names of a library's interface.
fn names(name: &str) -> Vec<&str> {
    let known = ALIASES.iter().find(|aliases| aliases.contains(&name));
    known.map_or_else(|| vec![name], |aliases| aliases.to_vec())
}

/// The image's files whose place a library of the host takes.
fn replaced<'f>(library: &HostLibrary, facts: &'f Facts) -> Vec<&'f Library> {
    names(&library.name).into_iter().flat_map(|name| facts.named(name)).collect()
}

/// The module's own libraries against those that they are to replace.
fn check_match(offered: &Offered, facts: &Facts) -> Result<(), ReplaceError> {
    let named = || offered.libraries.iter().filter(|library| library.is_named);
    let stands_in = |library: &&HostLibrary| Role::of_path(library.name.as_bytes()).is_some();
    let mut fits = false;
    for library in named() {
        let path = display(&library.path);
        if library.family == Some(Family::OpenMpi) && !is_bound(library, offered) {
            return Err(ReplaceError::OpenMpi { library: path });
        }
        for own in replaced(library, facts) {
            fits = true;
            if let (Some(host), Some(image)) = (library.family, own.family)
                && (host == Family::OpenMpi) != (image == Family::OpenMpi)
            {
                let (host, image) = (host.name(), image.name());
                return Err(ReplaceError::OtherFamily { library: path, host, path: own.path.clone(), image });
            }
            if offered.abi == ModuleAbi::Minor
                && version::compare(&library.file_version, &own.file_version).is_lt()
            {
                let (has, wanted) = (library.file_version.clone(), own.file_version.clone());
                return Err(ReplaceError::Older { library: path, has, path: own.path.clone(), wanted });
            }
        }
    }
    if fits || !named().any(|library| stands_in(&library)) {
        return Ok(());
    }
    let offered: Vec<&str> = named().filter(stands_in).map(|library| library.name.as_str()).collect();
    let has: Vec<String> = facts.of_role(Role::Mpi).map(Library::describe).collect();
    let has = if has.is_empty() { String::new() } else { format!("; it has {}", has.join(", ")) };
    Err(ReplaceError::NothingLikeIt { offered: offered.join(" or "), has })
}

fn is_bound(library: &HostLibrary, offered: &Offered) -> bool {
    offered.prefixes.iter().any(|prefix| library.path.starts_with(prefix))
}

fn check_glibc(injected: &[&HostLibrary], facts: &Facts) -> Result<(), ReplaceError> {
    let has = facts.glibc().unwrap_or_default();
    for library in injected {
        let strong = library.requires.iter().filter(|requirement| !requirement.is_weak);
        let needed = version::highest(strong.map(|one| one.version.as_slice()), "GLIBC_");
        if let Some(needed) = needed.filter(|needed| version::compare(needed, has).is_gt()) {
            let library = display(&library.path);
            return Err(ReplaceError::Glibc { library, needed, has: has.to_owned() });
        }
    }
    Ok(())
}

/// What stays of the image against what it will be given.
fn check_users(injected: &[&HostLibrary], loaded: &[ImageObject]) -> Result<(), ReplaceError> {
    let mut by_name: BTreeMap<&str, &HostLibrary> = BTreeMap::new();
    for library in injected {
        for name in names(&library.name) {
            by_name.entry(name).or_insert(library);
        }
    }
    let mut defined_by_all: BTreeSet<&[u8]> = BTreeSet::new();
    injected.iter().for_each(|library| defined_by_all.extend(library.defined.iter().map(Vec::as_slice)));
    let (gone, staying): (Vec<&ImageObject>, Vec<&ImageObject>) =
        loaded.iter().partition(|object| by_name.contains_key(object.name.as_str()));
    for object in &staying {
        for old in &gone {
            let Some(new) = by_name.get(old.name.as_str()) else { continue };
            let lacking: Vec<&[u8]> = object
                .wanted
                .intersection(&old.defined)
                .map(Vec::as_slice)
                .filter(|symbol| !defined_by_all.contains(symbol))
                // Another library of the image may have it, too.
                .filter(|symbol| !staying.iter().any(|other| other.defined.contains(*symbol)))
                .collect();
            if !lacking.is_empty() {
                let (user, library) = (object.path.clone(), display(&new.path));
                return Err(ReplaceError::Symbols { user, symbols: listed(&lacking), library });
            }
        }
        for requirement in object.requires.iter().filter(|requirement| !requirement.is_weak) {
            let name = String::from_utf8_lossy(&requirement.library);
            let Some(new) = by_name.get(name.as_ref()) else { continue };
            // A loader takes a library without any versions as it is.
            if !new.versions.is_empty() && !new.versions.contains(&requirement.version) {
                return Err(ReplaceError::Version {
                    user: object.path.clone(),
                    version: requirement.version.escape_ascii().to_string(),
                    library: name.into_owned(),
                    path: display(&new.path),
                });
            }
        }
    }
    Ok(())
}

/// Some names, and how many more.
fn listed(symbols: &[&[u8]]) -> String {
    let shown: Vec<String> =
        symbols.iter().take(SYMBOLS_SHOWN).map(|symbol| symbol.escape_ascii().to_string()).collect();
    match symbols.len().saturating_sub(shown.len()) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn replacement(
    offered: &Offered,
    injected: &[&HostLibrary],
    facts: &Facts,
    notes: Vec<String>,
) -> Replacement {
    let mut replacement = Replacement { notes, ..Replacement::default() };
    for library in injected {
        if library.family == Some(Family::OpenMpi) || (is_bound(library, offered) && has_open_mpi(offered)) {
            // The whole installation is there: what it loads lies beside it.
            replacement.found.push((library.name.clone(), library.path.clone()));
            continue;
        }
        for name in names(&library.name) {
            if name == library.name || facts.named(name).next().is_some() {
                replacement.libraries.push((name.to_owned(), library.path.clone()));
            }
        }
        for own in replaced(library, facts) {
            let cover = (library.path.clone(), PathBuf::from(&own.path));
            replacement.notes.push(format!("{} in place of {}", display(&library.path), own.path));
            replacement.covers.push(cover);
        }
    }
    replacement.libraries.sort();
    replacement.libraries.dedup_by(|a, b| a.0 == b.0);
    replacement
}

fn has_open_mpi(offered: &Offered) -> bool {
    offered.libraries.iter().any(|library| library.family == Some(Family::OpenMpi))
}

fn display(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests;
