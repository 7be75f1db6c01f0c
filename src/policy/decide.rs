//! Rules applied to one launch: which binds the site wants, and what it says to what the user asked.
//!
//! Every path that is decided about was resolved by the host first, and so were the paths of the rules: a link, `..`
//! or a second spelling changes nothing. Containment is by whole components. What is denied beats what is allowed.

pub mod images;
pub mod modules;
mod options;
mod site_bind;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

pub use images::{Decision, ImageTraits, Signed};
pub use modules::{ChosenModule, ModuleWish};
pub use site_bind::SiteBind;

use super::Policy;
use super::file::{Located, Position};
use super::path::{is_within, normalise};
use super::rules::{Listed, NameRule, PathRule, Premounted, RegistryRule, Share, Verify};
use super::template::{Lookup, Origin};
use crate::hint::Hint;

/// A rule by its place. Prints as `/etc/hpcrun/policy.toml:22 [binds] allowed`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The policy's file.
    pub file: PathBuf,
    /// 1-based; 0 where no line says so but the lack of one.
    pub line: usize,
    /// The key it stands under: `[binds] allowed`.
    pub key: &'static str,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{} {}", self.file.display(), self.key),
            line => write!(f, "{}:{line} {}", self.file.display(), self.key),
        }
    }
}

/// The site says no. Not a fault: it has its own exit status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("refused by site policy: {what} ({rule})")]
pub struct Refusal {
    /// What was refused and on what ground.
    pub what: String,
    /// The rule that said so.
    pub rule: Rule,
    /// What would be allowed, for the hint.
    pub allowed: String,
}

impl Hint for Refusal {
    fn hints(&self) -> Vec<String> {
        vec![self.allowed.clone()]
    }
}

/// The values behind a policy's variables for one launch.
#[derive(Debug, Clone, Copy)]
pub struct Variables<'a> {
    /// Of the user database and the kernel, by the names of [`super::template::TRUSTED_VARIABLES`].
    pub trusted: &'a [(&'static str, OsString)],
    /// The user's environment.
    pub environment: &'a [(OsString, OsString)],
}

impl Lookup for Variables<'_> {
    fn lookup(&self, name: &str) -> Option<(OsString, Origin)> {
        if let Some((_, value)) = self.trusted.iter().find(|(trusted, _)| *trusted == name) {
            return Some((value.clone(), Origin::Site));
        }
        // A trusted name that the host cannot tell is still the user's word when it comes from the environment.
        let (_, value) = self.environment.iter().rev().find(|(other, _)| other == name)?;
        Some((value.clone(), Origin::Environment))
    }
}

/// A host path as the user named it and as the host resolved it.
#[derive(Debug, Clone, Copy)]
pub struct HostPath<'a> {
    /// As named.
    pub typed: &'a OsStr,
    /// Absolute, without links.
    pub resolved: &'a Path,
}

impl Policy {
    /// Whether a user may bind `path`; the rule that allowed it, if one had to.
    ///
    /// `resolve` gives the resolved form of a rule's path.
    pub fn user_bind(
        &self,
        path: HostPath<'_>,
        variables: &Variables<'_>,
        resolve: &dyn Fn(&Path) -> PathBuf,
    ) -> Result<Option<Rule>, Refusal> {
        let binds = &self.rules.binds;
        for rule in &binds.denied {
            let Some(forms) = forms(rule, variables, resolve) else {
                // What is denied cannot be told from what is not: nothing may be bound.
                return Err(Refusal {
                    what: format!("bind of {}, as {} cannot be told on this host", named(path), rule.path),
                    rule: self.rule(rule.at, "[binds] denied"),
                    allowed: "this host's user database must know you before you may bind".to_owned(),
                });
            };
            for denied in forms {
                if is_within(path.resolved, &denied) || is_within(&denied, path.resolved) {
                    return Err(Refusal {
                        what: format!("bind of {}, which shows {}", named(path), denied.display()),
                        rule: self.rule(rule.at, "[binds] denied"),
                        allowed: self.allowed_binds(variables),
                    });
                }
            }
        }
        let Some(allowed) = &binds.allowed else {
            return Ok(None);
        };
        match find(&allowed.rules, path.resolved, variables, resolve) {
            Some(rule) => Ok(Some(self.rule(rule.at, "[binds] allowed"))),
            None => Err(Refusal {
                what: format!("bind of {}, which is outside the allowed paths", named(path)),
                rule: self.rule(allowed.at, "[binds] allowed"),
                allowed: self.allowed_binds(variables),
            }),
        }
    }

    /// Every path whose resolved form [`Policy::user_bind`] and [`Policy::image_file`] will ask for.
    pub fn rule_paths(&self, variables: &Variables<'_>) -> Vec<PathBuf> {
        let allowed = self.rules.binds.allowed.iter().flat_map(|listed| &listed.rules);
        let directories = self.rules.images.directories.iter().flat_map(|listed| &listed.rules);
        let rules = self.rules.binds.denied.iter().chain(allowed).chain(directories);
        rules.filter_map(|rule| path_of(rule, variables)).collect()
    }

    /// Whether the home directory is bound, whether read-only, and the rule if there is one.
    pub fn home(&self) -> (bool, bool, Option<Rule>) {
        let home = &self.rules.home;
        let bind = home.bind.as_ref().is_none_or(|bind| bind.value);
        let read_only = home.read_only.as_ref().is_some_and(|read_only| read_only.value);
        let at = match (&home.bind, &home.read_only) {
            (Some(bind), _) => Some((bind.at, "[home] bind")),
            (None, Some(read_only)) => Some((read_only.at, "[home] read_only")),
            (None, None) => None,
        };
        (bind, read_only, at.map(|(at, key)| self.rule(at, key)))
    }

    /// Bytes that a private file system in memory gets: as many as `asked`, or as many as the site allows; none for
    /// the kernel's limit. Asking for more than the site allows is refused.
    pub fn tmpfs_size(&self, asked: Option<u64>) -> Result<Option<u64>, Refusal> {
        let Some(most) = &self.rules.launch.max_tmpfs_bytes else {
            return Ok(asked);
        };
        match asked.filter(|asked| *asked > most.value) {
            None => Ok(asked.or(Some(most.value))),
            Some(asked) => Err(Refusal {
                what: format!("a file system in memory of {asked} bytes"),
                rule: self.rule(most.at, "[launch] max_tmpfs"),
                allowed: format!("at most {} bytes", most.value),
            }),
        }
    }

    /// Whether layers may be kept in the user's cache, and the rule if there is one.
    pub fn allow_layer_cache(&self) -> (bool, Option<Rule>) {
        self.switch(self.rules.convert.allow_layer_cache.as_ref(), true, "[convert] allow_layer_cache")
    }

    /// Whether layers may be fetched from where a manifest says, and the rule if there is one.
    pub fn allow_foreign_layers(&self) -> (bool, Option<Rule>) {
        let allowed = self.rules.convert.allow_foreign_layers.as_ref();
        self.switch(allowed, false, "[convert] allow_foreign_layers")
    }

    fn switch(
        &self,
        chosen: Option<&Located<bool>>,
        default: bool,
        key: &'static str,
    ) -> (bool, Option<Rule>) {
        chosen.map_or((default, None), |chosen| (chosen.value, Some(self.rule(chosen.at, key))))
    }

    /// The rule that takes a variable away from every job, if there is one.
    pub fn unsets(&self, name: &[u8]) -> Option<Rule> {
        first_match(&self.rules.env.unset, name).map(|rule| self.rule(rule.at, "[env] unset"))
    }

    /// The rule that lets the host's value of a variable through, if there is one.
    pub fn passes(&self, name: &[u8]) -> Option<Rule> {
        first_match(&self.rules.env.pass, name).map(|rule| self.rule(rule.at, "[env] pass"))
    }

    /// Whether `HPCRUN_POLICY` may name another policy.
    pub fn allows_user_file(&self) -> bool {
        self.rules.policy.allow_user_file.as_ref().is_some_and(|allowed| allowed.value)
    }

    /// Which processes share namespaces, unless the user says otherwise.
    pub fn share(&self) -> Share {
        self.rules.launch.share.as_ref().map_or(Share::default(), |share| share.value)
    }

    /// When what a launch reads is held against the chunk hashes, unless the user wants more: always where signatures are
    /// required, since a signature stands for these hashes.
    pub fn verify(&self) -> Verify {
        if self.requires_signature().is_some() {
            return Verify::Always;
        }
        self.rules.images.verify.as_ref().map_or(Verify::default(), |verify| verify.value)
    }

    /// The tree that the site mounted from the image file, if it did. `image` is resolved.
    pub fn premounted(&self, image: &Path) -> Option<(&Premounted, Rule)> {
        let tree = self.rules.premounted.trees.iter().find(|tree| tree.image == image)?;
        Some((tree, self.rule(tree.at, "[premounted] trees")))
    }

    /// The rule that a key or section is which the policy does not have.
    pub fn whole(&self, key: &'static str) -> Rule {
        self.rule(Position { file: 0, line: 0, column: 0 }, key)
    }

    /// The rule at a place of this policy.
    pub fn rule(&self, at: Position, key: &'static str) -> Rule {
        Rule { file: self.file_at(at).to_owned(), line: at.line, key }
    }

    /// What a user may bind, for a hint.
    fn allowed_binds(&self, variables: &Variables<'_>) -> String {
        match &self.rules.binds.allowed {
            Some(allowed) => list("allowed paths", paths(allowed, variables)),
            None => {
                let denied = self.rules.binds.denied.iter().map(|rule| shown(rule, variables));
                format!("{}; all else may be bound", list("denied paths", denied))
            }
        }
    }
}

/// The path of a rule in this launch; none when a variable of it has no trusted value here.
fn path_of(rule: &PathRule, variables: &Variables<'_>) -> Option<PathBuf> {
    let expanded = rule.path.expand(variables).ok()?;
    let path = Path::new(&expanded.text);
    (expanded.origin == Origin::Site && path.is_absolute()).then(|| normalise(Path::new("/"), path))
}

/// A rule's path as written and as resolved: both count, so that a rule holds before and behind a link.
fn forms(
    rule: &PathRule,
    variables: &Variables<'_>,
    resolve: &dyn Fn(&Path) -> PathBuf,
) -> Option<Vec<PathBuf>> {
    let path = path_of(rule, variables)?;
    let resolved = resolve(&path);
    Some(if resolved == path { vec![path] } else { vec![path, resolved] })
}

/// The first rule that `path` lies within. A rule grants what its path resolves to, not other things of its name.
fn find<'r>(
    rules: &'r [PathRule],
    path: &Path,
    variables: &Variables<'_>,
    resolve: &dyn Fn(&Path) -> PathBuf,
) -> Option<&'r PathRule> {
    rules
        .iter()
        .find(|rule| path_of(rule, variables).is_some_and(|prefix| is_within(path, &resolve(&prefix))))
}

fn first_match<'r>(rules: &'r [NameRule], name: &[u8]) -> Option<&'r NameRule> {
    rules.iter().find(|rule| rule.pattern.matches(name))
}

fn registry_matches(rule: &RegistryRule, host: &str, repository: &str) -> bool {
    let host_matches = match rule.host.strip_prefix('*') {
        // The dot stays in the suffix: `*.example.org` is neither `example.org` nor `badexample.org`.
        Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
        None => host == rule.host,
    };
    let below = |rest: &str| rest.is_empty() || rest.starts_with('/');
    host_matches
        && (rule.repository.is_empty() || repository.strip_prefix(&rule.repository).is_some_and(below))
}

fn registry_name(rule: &RegistryRule) -> String {
    if rule.repository.is_empty() { rule.host.clone() } else { format!("{}/{}", rule.host, rule.repository) }
}

fn paths<'r>(
    listed: &'r Listed<PathRule>,
    variables: &'r Variables<'_>,
) -> impl Iterator<Item = String> + 'r {
    listed.rules.iter().map(|rule| shown(rule, variables))
}

fn shown(rule: &PathRule, variables: &Variables<'_>) -> String {
    path_of(rule, variables).map_or_else(|| rule.path.to_string(), |path| path.display().to_string())
}

fn list(what: &str, items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.collect();
    format!("{what}: {}", if items.is_empty() { "none".to_owned() } else { items.join(", ") })
}

/// The path as typed, with what it resolved to where that differs.
fn named(path: HostPath<'_>) -> String {
    let typed = Path::new(path.typed);
    if typed == path.resolved {
        typed.display().to_string()
    } else {
        format!("{} (that is {})", typed.display(), path.resolved.display())
    }
}
