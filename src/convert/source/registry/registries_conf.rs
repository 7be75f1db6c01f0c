//! `registries.conf`, version 2 and the old version 1: from the text of its files to rules that know their lines.
//!
//! The format and the order of files are those of containers-registries.conf(5), so that a site says once where images
//! come from. As there, keys that nobody knows are passed over, and anything else that is wrong stops the pull.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::endpoints::Serves;
use crate::hint::Hint;
use crate::image::reference::{Reference, is_short};

/// In `credential-helpers`, the files with logins.
pub(super) const AUTH_FILES: &str = "containers-auth.json";

/// Where something is said. Prints as `/etc/containers/registries.conf:12`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// 1-based.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.line)
    }
}

/// A file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot use {at}: {why}")]
pub struct RegistriesConfError {
    /// Where.
    pub at: Place,
    /// What is wrong.
    pub why: String,
}

impl Hint for RegistriesConfError {
    fn hints(&self) -> Vec<String> {
        vec![
            "CONTAINERS_REGISTRIES_CONF=FILE reads another file in place of the system's and the user's"
                .into(),
        ]
    }
}

/// All files together; the default says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistriesConf {
    rules: Vec<RegistryRule>,
    search: Vec<String>,
    search_at: Option<Place>,
    aliases: BTreeMap<String, Alias>,
    helpers: Vec<String>,
}

/// One `[[registry]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RegistryRule {
    /// `host[:port][/path]`, or `*.domain`.
    pub(super) prefix: String,
    /// What stands for the prefix; none: the prefix itself.
    pub(super) location: Option<String>,
    pub(super) insecure: bool,
    pub(super) blocked: bool,
    pub(super) mirrors: Vec<Mirror>,
    pub(super) at: Place,
}

/// One `[[registry.mirror]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mirror {
    pub(super) location: String,
    pub(super) insecure: bool,
    pub(super) serves: Serves,
}

/// What a short name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Alias {
    /// `registry/repository`.
    pub(super) name: String,
    pub(super) at: Place,
}

impl RegistriesConf {
    /// Lays a further file over what is known: its registries replace those of the same prefix, its lists the lists, its
    /// aliases those of the same name. Gives the keys that were passed over.
    pub fn add(&mut self, path: &Path, text: &str) -> Result<Vec<String>, RegistriesConfError> {
        let file = File { path, text };
        let raw: RawFile = toml::from_str(text)
            .map_err(|error| file.error(error.span().unwrap_or(0..0), error.message().replace('\n', ", ")))?;
        let rules = file.rules(&raw)?;
        let aliases = raw.aliases.iter().map(|(name, value)| file.alias(name, value));
        let aliases = aliases.collect::<Result<Vec<_>, _>>()?;
        if let Some((search, span)) = raw.search() {
            let parse = |text: &String| file.location(text, span.clone());
            self.search = search.iter().map(parse).collect::<Result<_, _>>()?;
            self.search_at = Some(file.place(span));
        }
        for rule in rules {
            self.rules.retain(|known| known.prefix != rule.prefix);
            self.rules.push(rule);
        }
        for (name, alias) in aliases {
            match alias {
                Some(alias) => self.aliases.insert(name, alias),
                None => self.aliases.remove(&name),
            };
        }
        self.helpers = raw.credential_helpers.unwrap_or_else(|| std::mem::take(&mut self.helpers));
        Ok(unknown_keys(text))
    }

    /// Puts mirrors before all others of what `prefix` covers, `host[:port][/repository]` as they are; `at` says so.
    /// What files say of a part of `prefix` gets them, too.
    pub fn prefer_mirrors(&mut self, prefix: &str, locations: &[String], at: Place) {
        let mirrors = |rest: &str| {
            let mirror = |location: &String| Mirror {
                location: format!("{location}{rest}"),
                insecure: false,
                serves: Serves::All,
            };
            locations.iter().map(mirror).collect::<Vec<Mirror>>()
        };
        for rule in &mut self.rules {
            let below =
                rule.prefix.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with('/'));
            if let Some(rest) = below {
                rule.mirrors.splice(0..0, mirrors(rest));
            }
        }
        if self.rules.iter().any(|rule| rule.prefix == prefix) {
            return;
        }
        // A wider rule of a file holds on, but for its mirrors coming second.
        let wider = self.rules.iter().filter_map(|rule| Some((matching_length(prefix, &rule.prefix)?, rule)));
        let wider = wider.max_by_key(|(length, _)| *length).map(|(length, rule)| (length, rule.clone()));
        let mut mirrors = mirrors("");
        let mut rule = RegistryRule {
            prefix: prefix.to_owned(),
            location: None,
            insecure: false,
            blocked: false,
            mirrors: Vec::new(),
            at,
        };
        if let Some((length, wider)) = wider {
            let rest = prefix.get(length..).unwrap_or_default();
            mirrors.extend(
                wider.mirrors.iter().map(|mirror| Mirror {
                    location: format!("{}{rest}", mirror.location),
                    ..mirror.clone()
                }),
            );
            let location = wider.location.as_ref().map(|location| format!("{location}{rest}"));
            rule = RegistryRule { prefix: prefix.to_owned(), location, ..wider };
        }
        rule.mirrors = mirrors;
        self.rules.push(rule);
    }

    /// Every place that `reference` would be asked of in the registry's stead, with the rule that says so.
    pub fn detours(&self, reference: &Reference) -> Vec<(String, Place)> {
        let Some((rule, length)) = self.rule_for(reference) else {
            return Vec::new();
        };
        let text = format!("{}/{}", reference.registry(), reference.repository());
        let rest = text.get(length..).unwrap_or_default();
        let locations = rule.mirrors.iter().map(|mirror| &mirror.location).chain(&rule.location);
        locations.map(|location| (format!("{location}{rest}"), rule.at.clone())).collect()
    }

    /// The rule with the longest prefix that `reference` begins with, and how many bytes of its text that is.
    pub(super) fn rule_for(&self, reference: &Reference) -> Option<(&RegistryRule, usize)> {
        let text = reference.to_string();
        let matching =
            self.rules.iter().filter_map(|rule| Some((rule, matching_length(&text, &rule.prefix)?)));
        // Of a host by name and by wildcard, the name.
        matching.max_by_key(|(rule, length)| (*length, !rule.prefix.starts_with("*.")))
    }

    /// Where pulling `reference` is forbidden, if it is.
    pub fn blocked(&self, reference: &Reference) -> Option<&Place> {
        self.rule_for(reference).filter(|(rule, _)| rule.blocked).map(|(rule, _)| &rule.at)
    }

    /// The registries that a short name may be meant for, and where they are listed.
    pub(super) fn search(&self) -> (&[String], Option<&Place>) {
        (&self.search, self.search_at.as_ref())
    }

    /// What `name` (without tag and digest) stands for.
    pub(super) fn alias(&self, name: &str) -> Option<&Alias> {
        self.aliases.get(name)
    }

    /// The helper that new logins go to before any file, if there is one.
    pub fn login_helper(&self) -> Option<&str> {
        self.credential_helpers().into_iter().next().filter(|keeper| *keeper != AUTH_FILES)
    }

    /// All helpers that may keep logins.
    pub fn helpers(&self) -> impl Iterator<Item = &str> {
        self.helpers.iter().map(String::as_str).filter(|keeper| *keeper != AUTH_FILES)
    }

    /// Where logins are kept, in order: names of helpers and [`AUTH_FILES`].
    pub(super) fn credential_helpers(&self) -> Vec<&str> {
        if self.helpers.is_empty() {
            return vec![AUTH_FILES];
        }
        self.helpers.iter().map(String::as_str).collect()
    }
}

/// How much of the reference `text` the prefix covers; none if it is no prefix of it.
fn matching_length(text: &str, prefix: &str) -> Option<usize> {
    if let Some(domain) = prefix.strip_prefix('*') {
        // A wildcard covers the host, whatever its port.
        let host = text.split('/').next()?;
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        return (name.len() > domain.len() && name.ends_with(domain)).then_some(name.len());
    }
    let rest = text.strip_prefix(prefix)?;
    // A host is not that host at another port.
    let ends: &[char] = if prefix.contains('/') { &['/', ':', '@'] } else { &['/'] };
    (rest.is_empty() || rest.starts_with(ends)).then_some(prefix.len())
}

/// The file as it stands.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawFile {
    unqualified_search_registries: Option<Spanned<Vec<String>>>,
    credential_helpers: Option<Vec<String>>,
    #[serde(default)]
    registry: Vec<Spanned<RawRegistry>>,
    #[serde(default)]
    aliases: BTreeMap<Spanned<String>, String>,
    /// Version 1.
    registries: Option<RawVersion1>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct RawRegistry {
    prefix: String,
    location: String,
    insecure: bool,
    blocked: bool,
    mirror_by_digest_only: bool,
    pull_from_mirror: String,
    mirror: Vec<Spanned<RawMirror>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct RawMirror {
    location: String,
    insecure: bool,
    pull_from_mirror: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawVersion1 {
    search: RawList,
    insecure: RawList,
    block: RawList,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawList {
    registries: Option<Spanned<Vec<String>>>,
}

impl RawList {
    fn names(&self) -> Vec<(&str, Range<usize>)> {
        let list = self.registries.iter();
        list.flat_map(|list| list.get_ref().iter().map(|name| (name.as_str(), list.span()))).collect()
    }
}

impl RawFile {
    fn search(&self) -> Option<(&Vec<String>, Range<usize>)> {
        let old = || self.registries.as_ref().and_then(|old| old.search.registries.as_ref());
        let list = self.unqualified_search_registries.as_ref().or_else(old)?;
        Some((list.get_ref(), list.span()))
    }
}

/// A file while it is turned into rules.
struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

impl File<'_> {
    fn place(&self, span: Range<usize>) -> Place {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        Place { path: self.path.to_owned(), line: before.matches('\n').count().saturating_add(1) }
    }

    fn error(&self, span: Range<usize>, why: impl Into<String>) -> RegistriesConfError {
        RegistriesConfError { at: self.place(span), why: why.into() }
    }

    fn rules(&self, raw: &RawFile) -> Result<Vec<RegistryRule>, RegistriesConfError> {
        let Some(old) = &raw.registries else {
            return raw.registry.iter().map(|registry| self.rule(registry)).collect();
        };
        if !raw.registry.is_empty() || raw.unqualified_search_registries.is_some() {
            return Err(self.error(0..0, "it mixes version 1, [registries.*], with version 2"));
        }
        let mut rules: Vec<RegistryRule> = Vec::new();
        for (blocked, (name, span)) in old
            .insecure
            .names()
            .into_iter()
            .map(|name| (false, name))
            .chain(old.block.names().into_iter().map(|name| (true, name)))
        {
            let prefix = self.location(name, span.clone())?;
            match rules.iter_mut().find(|rule| rule.prefix == prefix) {
                Some(rule) => rule.blocked |= blocked,
                None => rules.push(RegistryRule {
                    prefix,
                    location: None,
                    insecure: !blocked,
                    blocked,
                    mirrors: Vec::new(),
                    at: self.place(span),
                }),
            }
        }
        Ok(rules)
    }

    fn rule(&self, raw: &Spanned<RawRegistry>) -> Result<RegistryRule, RegistriesConfError> {
        let (span, raw) = (raw.span(), raw.get_ref());
        let fail = |why: &str| Err(self.error(span.clone(), why));
        let location = match raw.location.as_str() {
            "" => None,
            text => Some(self.location(text, span.clone())?),
        };
        let prefix = match (raw.prefix.trim().trim_end_matches('/'), &location) {
            ("", None) => return fail("a registry has neither prefix nor location"),
            ("", Some(location)) => location.clone(),
            (prefix, _) if prefix.starts_with("*.") => self.wildcard(prefix, span.clone())?,
            (_, None) => return fail("a registry with a prefix other than *.DOMAIN needs a location"),
            (prefix, Some(_)) => self.location(prefix, span.clone())?,
        };
        if !raw.pull_from_mirror.is_empty() {
            return fail("pull-from-mirror is said of a mirror, not of a registry");
        }
        let mirrors = raw.mirror.iter().map(|mirror| self.mirror(mirror, raw.mirror_by_digest_only));
        let mirrors = mirrors.collect::<Result<_, _>>()?;
        let (insecure, blocked) = (raw.insecure, raw.blocked);
        Ok(RegistryRule { prefix, location, insecure, blocked, mirrors, at: self.place(span) })
    }

    fn mirror(&self, raw: &Spanned<RawMirror>, digests_only: bool) -> Result<Mirror, RegistriesConfError> {
        let (span, raw) = (raw.span(), raw.get_ref());
        if raw.location.is_empty() {
            return Err(self.error(span, "a mirror has no location"));
        }
        let serves = match raw.pull_from_mirror.as_str() {
            "" if digests_only => Serves::DigestsOnly,
            _ if digests_only => {
                let why =
                    "pull-from-mirror cannot be said together with the registry's mirror-by-digest-only";
                return Err(self.error(span, why));
            }
            "" | "all" => Serves::All,
            "digest-only" => Serves::DigestsOnly,
            "tag-only" => Serves::TagsOnly,
            other => {
                let why = format!("pull-from-mirror is all, digest-only or tag-only, not {other:?}");
                return Err(self.error(span, why));
            }
        };
        Ok(Mirror { location: self.location(&raw.location, span)?, insecure: raw.insecure, serves })
    }

    /// `host[:port][/path]`, the only thing that can stand in front of a repository.
    fn location(&self, text: &str, span: Range<usize>) -> Result<String, RegistriesConfError> {
        let location = text.trim().trim_end_matches('/');
        let fail = |why: &str| Err(self.error(span.clone(), format!("{text:?} {why}")));
        if location.contains("://") {
            return fail("is a URL; host[:port][/path] is expected, without a scheme");
        }
        let named = format!("{location}/x");
        // A prefix may go on to a tag or digest.
        if is_short(&named) || Reference::parse(&named).or_else(|_| Reference::parse(location)).is_err() {
            return fail("does not begin with a registry, host[:port][/path]");
        }
        Ok(location.to_owned())
    }

    fn wildcard(&self, prefix: &str, span: Range<usize>) -> Result<String, RegistriesConfError> {
        let domain = prefix.strip_prefix("*.").unwrap_or(prefix);
        let is_label = |label: &str| {
            !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        if domain.split('.').all(is_label) {
            return Ok(prefix.to_owned());
        }
        Err(self.error(span, format!("{prefix:?}: a wildcard stands for the first part of a host, *.DOMAIN")))
    }

    /// A short name and what it stands for; none to forget what earlier files said.
    fn alias(
        &self,
        name: &Spanned<String>,
        value: &str,
    ) -> Result<(String, Option<Alias>), RegistriesConfError> {
        let (span, name) = (name.span(), name.get_ref());
        let fail = |why: &str| Err(self.error(span.clone(), format!("alias {name:?} {why}")));
        let bare = |text: &str| Reference::parse(text).ok().filter(|_| !text.contains('@') && !has_tag(text));
        if !is_short(name) || bare(name).is_none() {
            return fail("is no short name: it has a registry, a tag or a digest");
        }
        if value.is_empty() {
            return Ok((name.clone(), None));
        }
        match bare(value) {
            Some(target) if !is_short(value) => {
                let full = format!("{}/{}", target.registry(), target.repository());
                Ok((name.clone(), Some(Alias { name: full, at: self.place(span) })))
            }
            _ => fail("must stand for registry/repository, without tag or digest"),
        }
    }
}

fn has_tag(text: &str) -> bool {
    text.rsplit('/').next().is_some_and(|last| last.contains(':'))
}

/// Keys that no version of the format has, as `registry.blockd`.
fn unknown_keys(text: &str) -> Vec<String> {
    const TOP: [&str; 7] = [
        "unqualified-search-registries",
        "credential-helpers",
        "short-name-mode",
        "additional-layer-store-auth-helper",
        "registry",
        "aliases",
        "registries",
    ];
    const REGISTRY: [&str; 6] =
        ["prefix", "location", "insecure", "blocked", "mirror", "mirror-by-digest-only"];
    const MIRROR: [&str; 3] = ["location", "insecure", "pull-from-mirror"];
    let mut unknown = Vec::new();
    let mut note = |section: &str, table: &toml::Table, known: &[&str]| {
        let strange = table.keys().filter(|key| !known.contains(&key.as_str()));
        unknown.extend(strange.map(|key| format!("{section}{key}")));
    };
    let tables = |table: &toml::Table, key: &str| -> Vec<toml::Table> {
        let list = table.get(key).and_then(toml::Value::as_array);
        list.into_iter().flatten().filter_map(toml::Value::as_table).cloned().collect()
    };
    let root = text.parse::<toml::Table>().unwrap_or_default();
    note("", &root, &TOP);
    for registry in tables(&root, "registry") {
        note("registry.", &registry, &REGISTRY);
        for mirror in tables(&registry, "mirror") {
            note("registry.mirror.", &mirror, &MIRROR);
        }
    }
    unknown
}

#[cfg(test)]
mod tests;
