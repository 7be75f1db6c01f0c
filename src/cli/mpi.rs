//! MPI and modules of the site in a launch: reads what has to be read of the image and of this node, lets
//! [`crate::launch::mpi`] decide, and says what came of it.

mod look;
mod offered;

use std::fmt;

use crate::cli::image_file::ImageFile;
use crate::cli::report::Failure;
use crate::convert::facts as gathering;
use crate::elf::closure::{Closure, Loaded, Search, closure, is_glibc};
use crate::elf::library_cache;
use crate::host::Host;
use crate::image::facts::Facts;
use crate::launch::inject::{FoundLibrary, HostMount, Injection, Library, Variable};
use crate::launch::mpi::choice;
use crate::launch::mpi::replace::{self, ImageObject, ImageSide, Offered, Replacement};
use crate::launch::mpi::{Offer, Usage, only_mpi, usage, verdict};
use crate::launch::plan::{ImageFacts, LaunchPlan};
use crate::launch::request::{Joining, Request};
use crate::mount::plan::{Access, Reason};
use crate::policy::Policy;
use crate::policy::decide::ChosenModule;
use crate::policy::rules::Module;
use crate::policy::rules::mpi::MpiCheck;
use look::NewRoot;
pub(crate) use offered::offered;

/// What a launch is given beyond its plan, and what is to be said.
#[derive(Debug, Default)]
pub(crate) struct Considered {
    /// Of the host's software.
    pub(crate) injection: Injection,
    /// To the user.
    pub(crate) warnings: Vec<String>,
    /// To whoever asks for explanations.
    pub(crate) notes: Vec<String>,
}

/// Considers the launch that `plan` describes.
pub(crate) fn consider(
    request: &Request,
    policy: &Policy,
    host: &Host,
    image: &ImageFile,
    known: &ImageFacts,
    modules: &[ChosenModule<'_>],
    plan: &LaunchPlan,
) -> Result<Considered, Failure> {
    let check = choice::check(request, policy);
    let is_first_rank = host.launcher.local_rank.is_none_or(|rank| rank == 0);
    let offer =
        Offer::from_environment(&host.environment).filter(Offer::is_parallel).filter(|_| match check {
            MpiCheck::Off => false,
            MpiCheck::Check => is_first_rank,
            MpiCheck::Strict => true,
        });
    let with_libraries = || modules.iter().filter(|chosen| !chosen.module.libraries.is_empty());
    let wants_modules = with_libraries().next().is_some();
    // One rank of a node says it for all.
    let may_lack_processor = is_first_rank && host.isa_level.is_some_and(|level| level < 4);
    let mut considered = Considered::default();
    if offer.is_none() && !wants_modules && !may_lack_processor {
        return Ok(considered);
    }
    let extent = match wants_modules {
        true if with_libraries().any(|chosen| chosen.is_requested) => Extent::Everywhere,
        true => Extent::WhereLoadersLook,
        false => Extent::Nowhere,
    };
    let Some(facts) = facts(image, extent, &mut considered.warnings)? else { return Ok(considered) };
    check_processor(host, &facts)?;
    let root = NewRoot { plan, image };
    let program = if offer.is_some() || wants_modules { Program::find(&root) } else { Program::default() };
    let mut has_host_mpi = false;
    for chosen in with_libraries() {
        let offer = match offered(chosen.module, policy, host, known) {
            Ok(offer) => offer,
            Err(why) if chosen.is_requested => return Err(Failure::plain(why)),
            Err(why) => {
                considered.warnings.push(left_out(chosen.module, &why));
                continue;
            }
        };
        let loaded = program.objects(&root);
        let image = ImageSide { facts: &facts, loaded: loaded.as_deref() };
        has_host_mpi |= give(chosen, policy, &offer, image, &mut considered)?;
    }
    // What the host's library makes of the launcher is the site's business.
    if let Some(offer) = offer.filter(|_| !has_host_mpi) {
        judge(&offer, &program, &facts, check, &mut considered)?;
    }
    Ok(considered)
}

/// How far one looks for the facts of an image that has none in its trailer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// They are not worth it.
    Nowhere,
    /// What a module that no user asked for may cost each rank. Its match looks no further, either.
    WhereLoadersLook,
    /// A walk over the whole image.
    Everywhere,
}

/// The facts of an image, whatever it costs.
pub(crate) fn all_facts(image: &ImageFile) -> Result<Facts, Failure> {
    let mut warnings = Vec::new();
    let facts = facts(image, Extent::Everywhere, &mut warnings)?;
    warnings.iter().for_each(|warning| log::warn!("{warning}"));
    Ok(facts.unwrap_or_default())
}

/// The facts of an image, out of its trailer or else looked for as far as `extent` says.
fn facts(image: &ImageFile, extent: Extent, warnings: &mut Vec<String>) -> Result<Option<Facts>, Failure> {
    let kept = image.facts().unwrap_or_else(|error| {
        warnings.push(error.to_string());
        None
    });
    let gathered = match (kept, extent) {
        (Some(facts), _) => return Ok(Some(facts)),
        (None, Extent::Nowhere) => return Ok(None),
        (None, Extent::WhereLoadersLook) => {
            let cache = image
                .small_file(library_cache::PATH.as_bytes(), library_cache::MAX_BYTES)?
                .unwrap_or_default();
            gathering::of_loaders(&image.filesystem, &cache)
        }
        (None, Extent::Everywhere) => gathering::of_filesystem(&image.filesystem),
    };
    gathered.map(Some).map_err(|error| Failure::new(&error))
}

/// Whether this node's processor runs the image's C library; its loader would say so, too, in fewer words.
fn check_processor(host: &Host, facts: &Facts) -> Result<(), Failure> {
    match (facts.isa_level, host.isa_level) {
        (Some(needed), Some(has)) if needed > has => {
            let text = format!(
                "the image is built for x86-64-v{needed}, and this node's processor is x86-64-v{has}"
            );
            Err(Failure::plain(text)
                .hint("use an image built for older processors, or ask the batch system for newer nodes"))
        }
        _ => Ok(()),
    }
}

/// The program of a launch with what it will load.
#[derive(Debug, Default)]
struct Program {
    name: Vec<u8>,
    closure: Option<Closure>,
}

impl Program {
    fn find(root: &NewRoot<'_>) -> Program {
        let Some((path, object)) = root.program() else { return Program::default() };
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default().to_vec();
        let Some(object) = object else { return Program { name, closure: None } };
        let (first, cache) = (root.library_path(), root.library_cache());
        let search = Search { first: &first, cache: &cache, last: &[] };
        let found = closure([(path, object)], search, &is_glibc, &mut |path| root.object(path));
        Program { name, closure: Some(found) }
    }

    /// The program and its libraries with their symbols; none where they say nothing of what will run.
    fn objects(&self, root: &NewRoot<'_>) -> Option<Vec<ImageObject>> {
        let no_facts = Facts::default();
        let closure = self.closure.as_ref()?;
        if usage(Some(closure), &self.name, &no_facts) == Usage::Unknown {
            return None;
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let object = |loaded: &Loaded| {
            let symbols = root.symbols(&loaded.path, &loaded.object).unwrap_or_default();
            ImageObject {
                name: text(&loaded.name),
                path: text(&loaded.path),
                wanted: symbols.wanted().map(<[u8]>::to_vec).collect(),
                defined: symbols.defined().map(<[u8]>::to_vec).collect(),
                requires: loaded.object.requires.clone(),
            }
        };
        Some(closure.loaded.iter().map(object).collect())
    }
}

/// Gives the launch a module; whether that has an MPI library.
fn give(
    chosen: &ChosenModule<'_>,
    policy: &Policy,
    offer: &Offered,
    image: ImageSide<'_>,
    considered: &mut Considered,
) -> Result<bool, Failure> {
    let module = chosen.module;
    let replacement = match replace::decide(offer, image) {
        Ok(replacement) => replacement,
        Err(error) if chosen.is_requested => {
            let context = format!("cannot use this machine's libraries (module {})", module.name);
            return Err(Failure::new(&error).within(&context));
        }
        Err(error) => {
            considered.warnings.push(left_out(module, &error));
            return Ok(false);
        }
    };
    let has_mpi = offer.libraries.iter().any(|library| library.family.is_some());
    let reason = offered::reason(module, policy);
    considered.notes.extend(replacement.notes.iter().map(|note| format!("{note} ({reason})")));
    let mut injection = Injection::default();
    add(&mut injection, replacement, &reason);
    offered::add_plugins(&mut injection, &reason);
    considered.injection.extend(injection);
    Ok(has_mpi)
}

/// What is said of an automatic module whose libraries do not fit.
fn left_out(module: &Module, why: &dyn fmt::Display) -> String {
    format!("the image's own libraries are used (module {}): {why}", module.name)
}

/// The host's libraries as things to mount.
pub(crate) fn add(injection: &mut Injection, replacement: Replacement, reason: &Reason) {
    for (name, source) in replacement.libraries {
        injection.libraries.push(Library { name: name.into(), source, reason: reason.clone() });
    }
    for (source, destination) in replacement.covers {
        injection.mounts.push(HostMount {
            source,
            destination,
            access: Access::ReadOnly,
            is_directory: false,
            reason: reason.clone(),
        });
    }
    for (name, path) in replacement.found {
        let (name, reason) = (name.into(), reason.clone());
        injection.found.push(FoundLibrary { name, path, reason });
    }
}

/// Says whether the ranks will find each other.
fn judge(
    offer: &Offer,
    program: &Program,
    facts: &Facts,
    check: MpiCheck,
    considered: &mut Considered,
) -> Result<(), Failure> {
    match usage(program.closure.as_ref(), &program.name, facts) {
        Usage::Linked(library) => {
            let Some(finding) = verdict(offer, library) else { return Ok(()) };
            if check == MpiCheck::Strict {
                return Err(Failure::plain(finding.what).hint(finding.instead));
            }
            considered.warnings.push(finding.to_string());
        }
        Usage::Unknown => {
            let finding = only_mpi(facts).and_then(|library| verdict(offer, library));
            considered
                .notes
                .extend(finding.map(|finding| format!("if the program is one of MPI, {finding}")));
        }
        Usage::Foreign => {}
    }
    Ok(())
}

/// A variable of a module.
fn variable(name: &str, value: std::ffi::OsString, joining: Joining, reason: &Reason) -> Variable {
    Variable { name: name.into(), value, joining, reason: reason.clone() }
}
