//! Binds of the site: from rules to paths in one launch.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::{Refusal, Rule, Variables};
use crate::policy::Policy;
use crate::policy::path::normalise;
use crate::policy::pattern::ImageName;
use crate::policy::rules::BindRule;
use crate::policy::template::{Lookup as _, Origin};

/// A bind that the site wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteBind {
    /// Absolute, in normal form, not resolved.
    pub source: PathBuf,
    /// Absolute, in normal form.
    pub destination: PathBuf,
    /// Whether the job may not write.
    pub read_only: bool,
    /// Whether a missing source leaves it out.
    pub optional: bool,
    /// Whether a user's wish gives way to it.
    pub forced: bool,
    /// Who chose the source.
    pub origin: Origin,
    /// The rule.
    pub rule: Rule,
}

impl Policy {
    /// The site's binds, forced ones first, and what was left out for want of a variable. Without an `image`, those of
    /// all images.
    ///
    /// # Errors
    ///
    /// A bind that must be there names a variable without a value, or a variable that makes its path relative.
    pub fn site_binds(
        &self,
        variables: &Variables<'_>,
        image: Option<&ImageName<'_>>,
    ) -> Result<(Vec<SiteBind>, Vec<String>), Refusal> {
        let forced = self.rules.binds.forced.iter().map(|rule| (rule, true, "[binds] forced"));
        let optional = self.rules.binds.optional.iter().map(|rule| (rule, false, "[binds] optional"));
        expand_all(self, forced.chain(optional), variables, image)
    }
}

/// Rules with whether they are forced and the key that they stand under.
pub(super) fn expand_all<'r>(
    policy: &Policy,
    rules: impl Iterator<Item = (&'r BindRule, bool, &'static str)>,
    variables: &Variables<'_>,
    image: Option<&ImageName<'_>>,
) -> Result<(Vec<SiteBind>, Vec<String>), Refusal> {
    let mut binds = Vec::new();
    let mut left_out = Vec::new();
    for (rule, forced, key) in rules {
        let place = policy.rule(rule.at, key);
        if let Some(why) = why_elsewhere(rule, variables, image) {
            left_out.push(format!("{} left out: {why} ({place})", rule.source));
            continue;
        }
        match expand(rule, forced, place.clone(), variables) {
            Ok(bind) => binds.push(bind),
            Err(why) if rule.optional => left_out.push(format!("{} left out: {why} ({place})", rule.source)),
            Err(why) => {
                return Err(Refusal {
                    what: format!("{} must be bound, but {why}", rule.source),
                    rule: place,
                    allowed: "set the variable, or ask your site to make the bind optional".to_owned(),
                });
            }
        }
    }
    Ok((binds, left_out))
}

/// Why a rule is not for this launch.
fn why_elsewhere(
    rule: &BindRule,
    variables: &Variables<'_>,
    image: Option<&ImageName<'_>>,
) -> Option<&'static str> {
    let hostname = variables.lookup("HOSTNAME").map(|(name, _)| name).unwrap_or_default();
    let hostname = OsStr::as_bytes(&hostname);
    if rule.hosts.as_ref().is_some_and(|hosts| !hosts.value.matches_host(hostname)) {
        return Some("it is for other nodes");
    }
    let when = rule.when.as_ref().zip(image);
    when.is_some_and(|(when, image)| !when.value.matches_image(image)).then_some("it is for other images")
}

/// The bind that a rule means in this launch, or why it has none.
fn expand(rule: &BindRule, forced: bool, place: Rule, variables: &Variables<'_>) -> Result<SiteBind, String> {
    let source = rule.source.expand(variables).map_err(|unset| unset.to_string())?;
    let (destination, destination_origin) = match &rule.destination {
        Some(template) => {
            let expanded = template.expand(variables).map_err(|unset| unset.to_string())?;
            (expanded.text, expanded.origin)
        }
        None => (source.text.clone(), source.origin),
    };
    let root = Path::new("/");
    for text in [&source.text, &destination] {
        if !Path::new(text).is_absolute() {
            return Err(format!("{} is not an absolute path", Path::new(text).display()));
        }
    }
    let destination = normalise(root, Path::new(&destination));
    if destination == root {
        return Err("its destination is /".to_owned());
    }
    let chosen_by_user = source.origin == Origin::Environment || destination_origin == Origin::Environment;
    Ok(SiteBind {
        // Not normalised: `..` behind a link means what the host says it means.
        source: PathBuf::from(source.text),
        destination,
        read_only: rule.read_only,
        optional: rule.optional,
        forced,
        origin: if chosen_by_user { Origin::Environment } else { Origin::Site },
        rule: place,
    })
}
