//! `hpcrun inspect --host`: what of this node's software a launch of an image would get, what not, and why.

use std::fmt::Write as _;

use crate::cli::image_file::ImageFile;
use crate::cli::launch::facts as image_facts;
use crate::cli::report::{Failure, chain};
use crate::cli::{mpi, output, site};
use crate::host::{Host, probe};
use crate::image::facts::{Facts, Role};
use crate::launch::modules;
use crate::launch::mpi::{Offer, only_mpi, replace, verdict};
use crate::launch::plan::ImageFacts;
use crate::policy::Policy;
use crate::policy::rules::Module;
use crate::policy::rules::modules::{MODULE_MODE_WORDS, ModuleMode};

/// The report.
pub(crate) fn report(image: &ImageFile) -> Result<String, Failure> {
    let environment = std::env::vars_os().collect();
    let host = probe::probe_for_launch(environment).map_err(|error| Failure::new(&error))?;
    let policy = site::policy()?;
    let facts = mpi::all_facts(image)?;
    let known = image_facts(image, &host, &policy)?;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<12}{}", output::one_line(value));
    };
    line("node", &node(&host, &facts));
    for library in facts.of_role(Role::Mpi) {
        line("mpi", &format!("{}  {}", library.describe(), library.path));
    }
    line("launcher", &launcher(&host, &facts));
    if policy.rules().modules.is_empty() {
        line("modules", "none: this site's policy describes none");
    }
    for module in &policy.rules().modules {
        line("module", &format!("{}  ({})", module.name, mode(module, &policy)));
        for (name, value) in verdicts(module, &policy, &host, &known, &facts) {
            line(name, &value);
        }
    }
    Ok(text)
}

/// The processor against the image's.
fn node(host: &Host, facts: &Facts) -> String {
    let has =
        host.isa_level.map_or_else(|| std::env::consts::ARCH.to_owned(), |level| format!("x86-64-v{level}"));
    match (facts.isa_level, host.isa_level) {
        (Some(needed), Some(level)) if needed > level => {
            format!("{has}, and the image needs x86-64-v{needed}: it does not run here")
        }
        _ => has,
    }
}

/// The launcher against the image's MPI.
fn launcher(host: &Host, facts: &Facts) -> String {
    let Some(offer) = Offer::from_environment(&host.environment) else {
        return "none: this is not a rank of a job".to_owned();
    };
    let finding = only_mpi(facts).and_then(|library| verdict(&offer, library));
    finding.map_or_else(|| offer.starter.name(), |finding| finding.to_string())
}

fn mode(module: &Module, policy: &Policy) -> String {
    let mode = module.mode.as_ref().map_or(ModuleMode::default(), |mode| mode.value);
    let word = MODULE_MODE_WORDS.iter().find(|(_, known)| *known == mode).map_or("", |(word, _)| *word);
    let is_host = policy.rules().mpi.host_module.as_ref().is_some_and(|name| name.value == module.name);
    match is_host {
        true => format!("{word}; --mpi=host"),
        false if mode == ModuleMode::Request => format!("{word}; --module {}", module.name),
        false => word.to_owned(),
    }
}

/// What would come of a module. Which symbols a program uses is seen when it is launched.
fn verdicts(
    module: &Module,
    policy: &Policy,
    host: &Host,
    known: &ImageFacts,
    facts: &Facts,
) -> Vec<(&'static str, String)> {
    if !policy.module_fits(module, &modules::wish(&[], known, host)) {
        return vec![("  no", "it is limited to other images or nodes".to_owned())];
    }
    let offered = match mpi::offered(module, policy, host, known) {
        Ok(offered) => offered,
        Err(why) => return vec![("  no", why)],
    };
    let replacement = match replace::decide(&offered, replace::ImageSide { facts, loaded: None }) {
        Ok(replacement) => replacement,
        Err(error) => return vec![("  no", chain(&error))],
    };
    let mut lines = Vec::new();
    for (host, image) in &replacement.covers {
        lines.push(("  replace", format!("{} by {}", image.display(), host.display())));
    }
    for (name, path) in replacement.libraries.iter().chain(&replacement.found) {
        lines.push(("  library", format!("{name}  {}", path.display())));
    }
    for library in &offered.libraries {
        let is_given =
            replacement.libraries.iter().chain(&replacement.found).any(|(_, path)| *path == library.path);
        if !is_given {
            lines.push(("  left out", format!("{}: the image's own serves", library.name)));
        }
    }
    lines
}
