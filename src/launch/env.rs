//! The job's environment: the image's over the host's, but for what says who, where and with what the job runs.
//! `docs/environment.md` is the table of it for users. Pure, and bytes throughout.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::binds::Binds;
use super::command::DEFAULT_PATH;
use super::env_names::{DIRECTORIES, HOST_FIRST, LAUNCHER, STRIPPED, UNSHARED_MPI, is_one_of};
use super::inject::Variable;
use super::request::{Joining, Request};
use crate::hint::Hint;
use crate::host::Host;
use crate::image::config::ImageConfig;
use crate::mount::plan::Reason;
use crate::policy::decide::{ChosenModule, Variables};
use crate::policy::path::normalise;
use crate::policy::rules::{EnvRules, NameRule, SetRule};
use crate::policy::{Policy, Refusal};

/// The environment cannot be made as asked.
#[derive(Debug, thiserror::Error)]
pub enum EnvError {
    /// A value that the site must set needs a variable without a value.
    #[error("cannot set {name} as {rule} says")]
    SiteValue {
        /// The variable.
        name: String,
        /// The rule's place.
        rule: String,
        /// Which variable is missing.
        source: crate::policy::template::Unset,
    },
    /// The user sets what the site takes away.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl Hint for EnvError {
    fn hints(&self) -> Vec<String> {
        match self {
            EnvError::Refused(refusal) => refusal.hints(),
            EnvError::SiteValue { .. } => vec!["set the variable, or tell the administrator".to_owned()],
        }
    }
}

/// What hpcrun knows about a launch that its environment depends on.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances<'a> {
    /// The image file, as it was resolved.
    pub image: &'a Path,
    /// A shell that the image has.
    pub shell: Option<&'a Path>,
    /// The home directory that the user chose.
    pub home: Option<&'a Path>,
    /// What the new root shows of the host.
    pub binds: &'a Binds,
    /// The working directory, if it is certain to be the host's.
    pub cwd: Option<&'a Path>,
    /// Whether ranks of this step have namespaces of their own.
    pub unshared_ranks: bool,
    /// Variables of the host's software that the new root shows.
    pub injected: &'a [Variable],
    /// The site's modules that the launch gets.
    pub modules: &'a [ChosenModule<'a>],
}

/// One thing done to the environment, for `--explain`: `+NAME` or `-NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Whether the job gets the variable.
    pub is_set: bool,
    /// Which. Values are not shown: they may be secrets.
    pub name: OsString,
    /// Who says so.
    pub reason: Reason,
}

/// The environment with its history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobEnv {
    /// Sorted by name, no name twice.
    pub variables: Vec<(OsString, OsString)>,
    /// In the order of doing; what passes unchanged is not mentioned.
    pub changes: Vec<Change>,
}

/// Makes the job's environment; the steps are the rows of `docs/environment.md`, weakest first.
pub fn job_env(
    request: &Request,
    config: &ImageConfig,
    policy: &Policy,
    host: &Host,
    circumstances: &Circumstances<'_>,
) -> Result<JobEnv, EnvError> {
    let trusted = host.trusted_variables();
    let variables = Variables { trusted: &trusted, environment: &host.environment };
    let mut draft = Draft::default();
    draft.host(request, policy, host, circumstances);
    draft.identity(host);
    if let Some(home) = circumstances.home {
        draft.set(OsStr::new("HOME"), home.as_os_str(), Reason::Flag("--home".to_owned()));
    }
    draft.defaults(circumstances);
    draft.image(config, host);
    draft.injected(circumstances.injected);
    draft.site(policy, circumstances.modules, &variables)?;
    let is_helped = policy.rules().mpi.fallback_env.as_ref().is_none_or(|rule| rule.value);
    if circumstances.unshared_ranks && is_helped {
        draft.unshared_ranks(request);
    }
    draft.user(request, policy, host)?;
    draft.unset(policy);
    draft.inform(circumstances);
    Ok(draft.finish())
}

#[derive(Default)]
struct Draft {
    variables: BTreeMap<OsString, OsString>,
    /// Names whose host value stands against the image.
    held: BTreeSet<OsString>,
    changes: Vec<Change>,
}

impl Draft {
    fn set(&mut self, name: &OsStr, value: &OsStr, reason: Reason) {
        self.variables.insert(name.to_owned(), value.to_owned());
        self.changes.push(Change { is_set: true, name: name.to_owned(), reason });
    }

    fn removed(&mut self, name: &OsStr, reason: Reason) {
        self.changes.push(Change { is_set: false, name: name.to_owned(), reason });
    }

    /// The host's variables that may pass.
    fn host(&mut self, request: &Request, policy: &Policy, host: &Host, circumstances: &Circumstances<'_>) {
        for (name, value) in &host.environment {
            let passed = policy.passes(name.as_bytes());
            let refused =
                if passed.is_some() { None } else { why_stripped(name, value, request, circumstances) };
            match refused {
                // PATH is always the image's and always there: no news.
                Some(_) if name == "PATH" => {}
                Some(reason) => self.removed(name, reason),
                None => {
                    self.variables.insert(name.clone(), value.clone());
                    let first = is_one_of(name, HOST_FIRST) || is_one_of(name, LAUNCHER);
                    if first || passed.is_some() {
                        self.held.insert(name.clone());
                    }
                }
            }
        }
    }

    /// Who the user is, where the environment does not say; `srun --export=NONE` leaves even HOME out.
    fn identity(&mut self, host: &Host) {
        let home = host.user.home.as_ref().map(|home| home.clone().into_os_string());
        let name = Some(host.user.name.clone());
        for (variable, value) in [("HOME", home), ("USER", name.clone()), ("LOGNAME", name)] {
            let variable = OsStr::new(variable);
            self.held.insert(variable.to_owned());
            let Some(value) = value.filter(|value| !value.is_empty()) else {
                continue;
            };
            if self.variables.get(variable).is_none_or(|value| value.is_empty()) {
                self.set(variable, &value, Reason::Host("user database".to_owned()));
            }
        }
    }

    fn defaults(&mut self, circumstances: &Circumstances<'_>) {
        self.variables.entry("PATH".into()).or_insert_with(|| DEFAULT_PATH.into());
        if let Some(shell) = circumstances.shell {
            self.variables.entry("SHELL".into()).or_insert_with(|| shell.into());
        }
        match circumstances.cwd {
            // Shells keep a PWD that leads to where they are, links and all.
            Some(cwd) => {
                self.variables.entry("PWD".into()).or_insert_with(|| cwd.into());
            }
            None => {
                self.variables.remove(OsStr::new("PWD"));
            }
        }
        // Wherever the job starts, an image's PWD is wrong.
        self.held.insert("PWD".into());
    }

    /// The image's variables. Nothing among them is an option to hpcrun.
    fn image(&mut self, config: &ImageConfig, host: &Host) {
        for entry in &config.env {
            let (name, value) = match entry.split_once('=') {
                Some((name, value)) => (name, Some(OsStr::new(value))),
                None => (entry.as_str(), host.variable(entry)),
            };
            let Some(value) = value else {
                continue;
            };
            let name = OsStr::new(name);
            let broken = name.is_empty()
                || name.as_bytes().iter().any(u8::is_ascii_control)
                || value.as_bytes().contains(&0);
            let not_its_own =
                is_one_of(name, LAUNCHER) || is_one_of(name, &["APPTAINER_*", "HPCRUN_*", "SINGULARITY_*"]);
            if broken || not_its_own || self.held.contains(name) {
                continue;
            }
            self.set(name, value, Reason::Image("Env"));
        }
    }

    /// What belongs to the host's software. What the launcher said of the same stands: it chose the devices.
    fn injected(&mut self, variables: &[Variable]) {
        for Variable { name, value, joining, reason } in variables {
            if !self.held.contains(name) {
                let old = self.variables.get(name).map(OsString::as_os_str);
                let value = joined(value.clone(), old, *joining);
                self.set(name, &value, reason.clone());
            }
        }
    }

    /// The site's values, then those of its modules in their order.
    fn site(
        &mut self,
        policy: &Policy,
        modules: &[ChosenModule<'_>],
        variables: &Variables<'_>,
    ) -> Result<(), EnvError> {
        self.site_values(policy, &policy.rules().env, ["[env] set", "[env] prepend"], variables)?;
        for chosen in modules {
            let env = &chosen.module.env;
            self.module_unset(policy, &env.unset);
            self.site_values(policy, env, ["[modules] env.set", "[modules] env.prepend"], variables)?;
        }
        Ok(())
    }

    fn site_values(
        &mut self,
        policy: &Policy,
        rules: &EnvRules,
        [set, prepend]: [&'static str; 2],
        variables: &Variables<'_>,
    ) -> Result<(), EnvError> {
        let expand = |rule: &SetRule, key: &'static str| {
            let place = policy.rule(rule.at, key);
            match rule.value.expand(variables) {
                Ok(expanded) => Ok((expanded.text, Reason::Policy { file: place.file, line: place.line })),
                Err(source) => {
                    Err(EnvError::SiteValue { name: rule.name.clone(), rule: place.to_string(), source })
                }
            }
        };
        for rule in &rules.set {
            let (value, reason) = expand(rule, set)?;
            self.set(OsStr::new(&rule.name), &value, reason);
        }
        for rule in &rules.prepend {
            let (mut value, reason) = expand(rule, prepend)?;
            let name = OsStr::new(&rule.name);
            if let Some(old) = self.variables.get(name).filter(|old| !old.is_empty()) {
                value.push(":");
                value.push(old);
            }
            self.set(name, &value, reason);
        }
        Ok(())
    }

    /// What a module takes away may be set again by later modules and by the user.
    fn module_unset(&mut self, policy: &Policy, rules: &[NameRule]) {
        for rule in rules {
            let place = policy.rule(rule.at, "[modules] env.unset");
            let names: Vec<OsString> =
                self.variables.keys().filter(|name| rule.pattern.matches(name.as_bytes())).cloned().collect();
            for name in names {
                self.variables.remove(&name);
                self.removed(&name, Reason::Policy { file: place.file.clone(), line: place.line });
            }
        }
    }

    /// Settings for ranks that do not share a user namespace; whoever set them already knows better.
    fn unshared_ranks(&mut self, request: &Request) {
        for group in UNSHARED_MPI {
            for (name, value) in group {
                let name = OsStr::new(name);
                let asked = request.env.iter().any(|option| option.name == name);
                if asked || self.variables.contains_key(name) {
                    break;
                }
                self.set(name, OsStr::new(value), Reason::Host("ranks do not share namespaces".to_owned()));
            }
        }
    }

    fn user(&mut self, request: &Request, policy: &Policy, host: &Host) -> Result<(), EnvError> {
        for option in &request.env {
            let what = format!("{} {}", option.option, option.name.display());
            if let Some(rule) = policy.unsets(option.name.as_bytes()) {
                let allowed = "leave the variable out; no job of this site sees it".to_owned();
                return Err(Refusal { what, rule, allowed }.into());
            }
            let value = option.value.clone().or_else(|| {
                // The name alone means the host's value, stripped or not.
                let found = host.environment.iter().rev().find(|(name, _)| *name == option.name);
                found.map(|(_, value)| value.clone())
            });
            // A file's variables are many, and a variable's name says which it sets.
            let reason = Reason::Flag(if option.option == "--env" { what } else { option.option.clone() });
            match value {
                Some(value) => {
                    let old = self.variables.get(&option.name);
                    let value = joined(value, old.map(OsString::as_os_str), option.joining);
                    self.set(&option.name, &value, reason);
                }
                // Asking for a value that the host does not have means that the job has none either.
                None => {
                    self.variables.remove(&option.name);
                    self.removed(&option.name, reason);
                }
            }
        }
        Ok(())
    }

    fn unset(&mut self, policy: &Policy) {
        let names: Vec<OsString> = self.variables.keys().cloned().collect();
        for name in names {
            if let Some(rule) = policy.unsets(name.as_bytes()) {
                self.variables.remove(&name);
                self.removed(&name, Reason::Policy { file: rule.file, line: rule.line });
            }
        }
    }

    /// What a program may want to know about the launch.
    fn inform(&mut self, circumstances: &Circumstances<'_>) {
        self.set(OsStr::new("HPCRUN_IMAGE"), circumstances.image.as_os_str(), Reason::Default);
        self.set(OsStr::new("HPCRUN_VERSION"), OsStr::new(env!("CARGO_PKG_VERSION")), Reason::Default);
        // By which scripts tell that they are in a container.
        for name in ["APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"] {
            self.set(OsStr::new(name), circumstances.image.as_os_str(), Reason::Default);
        }
    }

    /// The last word on each variable; what came and went is not told.
    fn finish(self) -> JobEnv {
        let mut changes: Vec<Change> = Vec::new();
        for change in self.changes {
            changes.retain(|earlier| earlier.name != change.name);
            if change.is_set == self.variables.contains_key(&change.name) {
                changes.push(change);
            }
        }
        JobEnv { variables: self.variables.into_iter().collect(), changes }
    }
}

/// A value with the old one before or behind it, as a list of directories is.
fn joined(value: OsString, old: Option<&OsStr>, joining: Joining) -> OsString {
    let Some(old) = old.filter(|old| !old.is_empty() && joining != Joining::Replace) else {
        return value;
    };
    let (first, last) = match joining {
        Joining::Append => (old, value.as_os_str()),
        Joining::Prepend | Joining::Replace => (value.as_os_str(), old),
    };
    let mut joined = first.to_owned();
    joined.push(":");
    joined.push(last);
    joined
}

/// Why a host variable does not pass.
fn why_stripped(
    name: &OsStr,
    value: &OsStr,
    request: &Request,
    circumstances: &Circumstances<'_>,
) -> Option<Reason> {
    // A name that execve takes and nobody can have set on purpose.
    if name.is_empty() || is_one_of(name, STRIPPED) {
        return Some(Reason::Default);
    }
    let first = is_one_of(name, HOST_FIRST) || is_one_of(name, LAUNCHER);
    if request.clean_env && !first {
        return Some(Reason::Flag("--cleanenv".to_owned()));
    }
    if is_one_of(name, DIRECTORIES) && !is_shown(circumstances.binds, Path::new(value)) {
        return Some(Reason::Host("not in the new root".to_owned()));
    }
    None
}

fn is_shown(binds: &Binds, directory: &Path) -> bool {
    directory.is_absolute() && binds.shown_at(&normalise(Path::new("/"), directory)).is_some()
}
