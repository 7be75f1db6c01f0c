//! What the site's policy says of where an image comes from, laid over `registries.conf`.

use crate::cli::report::Failure;
use crate::convert::source::SourceImage;
use crate::convert::source::registry::{Place, RegistriesConf};
use crate::image::reference::{Reference, SourceReference};
use crate::policy::rules::RegistryRule;
use crate::policy::{Policy, Refusal};

/// `registries` with the site's mirrors before all others, if the policy lets the image come from where it would.
pub(crate) fn of(
    reference: &SourceReference,
    mut registries: RegistriesConf,
    policy: &Policy,
) -> Result<RegistriesConf, Failure> {
    let SourceReference::Registry(name) = reference else {
        return Ok(registries);
    };
    check(name, &registries, policy).map_err(|refusal| Failure::refused(&refusal))?;
    for rule in &policy.rules().images.mirrors {
        let place = policy.rule(rule.registry.at, "[images] mirrors");
        let locations: Vec<String> = rule.mirrors.iter().map(location).collect();
        let at = Place { path: place.file, line: place.line };
        registries.prefer_mirrors(&location(&rule.registry), &locations, at);
    }
    Ok(registries)
}

/// The registry itself, and what files put in its place: a user's file must not lead around the site's.
fn check(name: &Reference, registries: &RegistriesConf, policy: &Policy) -> Result<(), Refusal> {
    policy.registry(name.registry(), name.repository())?;
    if let Some(digest) = name.digest() {
        policy.digest(digest.as_str())?;
    }
    for (detour, at) in registries.detours(name) {
        let (host, repository) = detour.split_once('/').unwrap_or((&detour, ""));
        policy.registry(host, repository).map_err(|refusal| Refusal {
            what: format!("{} in place of {name} ({at})", refusal.what),
            ..refusal
        })?;
    }
    Ok(())
}

/// Whether the site lets what was found be fetched.
pub(crate) fn check_digests(image: &SourceImage, policy: &Policy) -> Result<(), Failure> {
    if policy.rules().images.deny_digests.is_empty() {
        return Ok(());
    }
    let layers = image.layers.iter().flat_map(|layer| layer.digest.iter().chain(&layer.diff_id));
    for digest in [&image.manifest_digest].into_iter().chain(layers) {
        policy.digest(digest.as_str()).map_err(|refusal| Failure::refused(&refusal))?;
    }
    Ok(())
}

fn location(rule: &RegistryRule) -> String {
    if rule.repository.is_empty() { rule.host.clone() } else { format!("{}/{}", rule.host, rule.repository) }
}
