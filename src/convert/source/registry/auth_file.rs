//! Files with logins, docker's `config.json` and podman's `auth.json`: searched, and changed for `login` and `logout`.
//!
//! They are taken apart by hand: serde's messages quote the value that they stumble on, here a password. A change leaves
//! every byte of what it is not about, also what no version of ours knows.

use std::fmt;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::credentials::Login;
use super::error::RegistryError;

/// The key under which docker keeps Docker Hub's login.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
const DOCKER_HUB: &str = "docker.io";

/// A file with logins, read by the caller. `Debug` shows its path only.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthFile {
    /// For messages.
    pub path: PathBuf,
    /// Its bytes.
    pub contents: Vec<u8>,
}

impl fmt::Debug for AuthFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuthFile({:?})", self.path)
    }
}

/// What a file says of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// A login.
    Login(Login),
    /// Ask `docker-credential-<name>`.
    Helper(String),
}

impl AuthFile {
    /// What may have the login for `registry` and `repository`, most important first.
    pub(super) fn search(&self, registry: &str, repository: &str) -> Result<Vec<Found>, RegistryError> {
        let members = self.members()?;
        let keys = keys_for(registry, repository);
        let mut found = Vec::new();
        if let Some(name) = helper_of(&members, &keys) {
            found.push(Found::Helper(name));
        }
        if let Some(auths) = auths_of(&members) {
            for key in &keys {
                for (stated, entry) in auths.iter().filter(|(stated, _)| normalised(stated) == *key) {
                    let login = login_of(entry).map_err(|why| self.broken(format!("{stated:?}: {why}")))?;
                    found.extend(login.map(Found::Login));
                }
            }
        }
        found.extend(text(members.get("credsStore")).map(|name| Found::Helper(name.to_owned())));
        Ok(found)
    }

    /// Whether it holds a secret itself.
    pub fn holds_secrets(&self) -> bool {
        let secrets = ["auth", "password", "identitytoken", "registrytoken"];
        let members = self.members().unwrap_or_default();
        let entries = auths_of(&members).into_iter().flat_map(Map::values);
        entries.into_iter().any(|entry| secrets.iter().any(|key| text(entry.get(key)).is_some()))
    }

    /// The helper that keeps the login for `registry`, if one does.
    pub fn helper(&self, registry: &str) -> Result<Option<String>, RegistryError> {
        let members = self.members()?;
        let store = || text(members.get("credsStore")).map(str::to_owned);
        Ok(helper_of(&members, &keys_for(registry, "")).or_else(store))
    }

    /// The registries and namespaces that it has entries for, and what its helpers keep.
    pub fn registries(&self) -> Result<Vec<String>, RegistryError> {
        let members = self.members()?;
        let helpers = members.get("credHelpers").and_then(Value::as_object);
        let keys = auths_of(&members).into_iter().chain(helpers).flat_map(Map::keys);
        let mut names: Vec<String> = keys.map(|key| normalised(key)).collect();
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Its bytes with a login for `key`, `registry[/namespace]`, in place of an earlier one.
    pub fn with_login(&self, key: &str, user: &str, password: &str) -> Result<Vec<u8>, RegistryError> {
        let entry = json!({ "auth": STANDARD.encode(format!("{user}:{password}")) }).to_string();
        self.changed(|auths| {
            let is_it = |(stated, _): &(String, String)| normalised(stated) == key;
            let at = auths.iter().position(is_it);
            // Docker finds its own registry under the name that it gave it.
            let is_dockers = self.path.file_name().is_some_and(|name| name == "config.json");
            let own = if key == DOCKER_HUB && is_dockers { DOCKER_HUB_KEY } else { key };
            let stated = at.and_then(|at| auths.get(at)).map_or(own, |(stated, _)| stated).to_owned();
            auths.retain(|entry| !is_it(entry));
            auths.insert(at.unwrap_or(auths.len()), (stated, entry));
        })
    }

    /// Its bytes without the login for `key`; none if there is no such login.
    pub fn without_login(&self, key: &str) -> Result<Option<Vec<u8>>, RegistryError> {
        let mut had = false;
        let bytes = self.changed(|auths| {
            let before = auths.len();
            auths.retain(|(stated, _)| normalised(stated) != key);
            had = auths.len() < before;
        })?;
        Ok(had.then_some(bytes))
    }

    /// Its bytes without any login.
    pub fn without_logins(&self) -> Result<Vec<u8>, RegistryError> {
        self.changed(Vec::clear)
    }

    fn broken(&self, why: impl Into<String>) -> RegistryError {
        RegistryError::AuthFile { path: self.path.display().to_string(), why: why.into() }
    }

    /// An empty file says nothing.
    fn text(&self) -> &[u8] {
        if self.contents.trim_ascii().is_empty() { b"{}" } else { &self.contents }
    }

    fn members(&self) -> Result<Map<String, Value>, RegistryError> {
        // Syntax errors tell a line, never content.
        let document: Value =
            serde_json::from_slice(self.text()).map_err(|error| self.broken(error.to_string()))?;
        match document {
            Value::Object(members) => Ok(members),
            _ => Err(self.broken("it is not a JSON object")),
        }
    }

    fn changed(&self, change: impl FnOnce(&mut Vec<(String, String)>)) -> Result<Vec<u8>, RegistryError> {
        // The ancient format has nothing but entries.
        let is_ancient = !self.members()?.keys().any(|key| KNOWN.contains(&key.as_str()))
            && self.path.file_name().is_some_and(|name| name == ".dockercfg");
        let parse = |bytes: &[u8], what: &str| {
            let raw: Raw = serde_json::from_slice(bytes).map_err(|error| match error.classify() {
                Category::Data => self.broken(format!("{what} is not a JSON object")),
                _ => self.broken(error.to_string()),
            })?;
            Ok::<_, RegistryError>(raw.0)
        };
        let mut members = parse(self.text(), "it")?;
        if is_ancient {
            change(&mut members);
            return Ok(rendered(&members, "\t").into_bytes());
        }
        let at = members.iter().position(|(key, _)| key == "auths").unwrap_or_else(|| {
            members.push(("auths".to_owned(), "{}".to_owned()));
            members.len().saturating_sub(1)
        });
        let (_, value) = members.get_mut(at).ok_or_else(|| self.broken("it has no auths"))?;
        let mut auths = if value == "null" { Vec::new() } else { parse(value.as_bytes(), "auths")? };
        change(&mut auths);
        *value = rendered(&auths, "\t\t").trim_end().to_owned();
        Ok(rendered(&members, "\t").into_bytes())
    }
}

/// Members of today's formats.
const KNOWN: [&str; 3] = ["auths", "credsStore", "credHelpers"];

/// The members of an object in their order, values as they are written.
struct Raw(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Raw, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
                let mut members = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    members.push((key, value.get().to_owned()));
                }
                Ok(Raw(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// An object as docker and podman write it, a member a line, indented by tabs.
fn rendered(members: &[(String, String)], indent: &str) -> String {
    let outer = indent.strip_suffix('\t').unwrap_or_default();
    if members.is_empty() {
        return "{}\n".to_owned();
    }
    let lines: Vec<String> = members
        .iter()
        .map(|(key, value)| format!("{indent}{}: {value}", Value::from(key.as_str())))
        .collect();
    format!("{{\n{}\n{outer}}}\n", lines.join(",\n"))
}

fn text(value: Option<&Value>) -> Option<&str> {
    value.and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// The entries; the ancient `~/.dockercfg` has them at its top.
fn auths_of(members: &Map<String, Value>) -> Option<&Map<String, Value>> {
    match members.get("auths") {
        Some(auths) => auths.as_object(),
        None => Some(members),
    }
}

/// `credHelpers` for the most specific of the keys.
fn helper_of(members: &Map<String, Value>, keys: &[String]) -> Option<String> {
    let helpers = members.get("credHelpers").and_then(Value::as_object)?;
    let of_key = |key: &String| helpers.iter().find(|(stated, _)| normalised(stated) == *key);
    keys.iter().find_map(of_key).and_then(|(_, name)| text(Some(name))).map(str::to_owned)
}

/// Keys that fit, most specific first: `host/a/b`, `host/a`, `host`.
fn keys_for(registry: &str, repository: &str) -> Vec<String> {
    let full = format!("{registry}/{repository}");
    let mut rest = full.trim_end_matches('/');
    let mut keys = vec![rest.to_owned()];
    while let Some((shorter, _)) = rest.rsplit_once('/') {
        keys.push(shorter.to_owned());
        rest = shorter;
    }
    keys
}

/// A key as written: `host[:port][/namespace]`, or docker's old URL, of which only the host counts; Docker Hub's names
/// are one.
pub(super) fn normalised(key: &str) -> String {
    let bare = match key.split_once("://") {
        Some((_, rest)) => rest.split('/').next().unwrap_or(rest),
        None => key.trim_end_matches('/'),
    };
    let (host, path) = match bare.split_once('/') {
        None => (bare, None),
        Some((host, path)) => (host, Some(path)),
    };
    let is_hub = matches!(host, "index.docker.io" | "registry-1.docker.io");
    match (if is_hub { DOCKER_HUB } else { host }, path) {
        (host, None) => host.to_owned(),
        // Docker without the scheme.
        (host, Some("v1" | "v2")) if is_hub => host.to_owned(),
        (host, Some(path)) => format!("{host}/{path}"),
    }
}

/// What a helper is asked for; for Docker Hub it depends on who stored the login.
pub(super) fn server_names(registry: &str) -> Vec<&str> {
    if registry == DOCKER_HUB { vec![DOCKER_HUB_KEY, DOCKER_HUB] } else { vec![registry] }
}

/// What a helper is to keep a login for `registry` under, where docker and podman both find it.
pub fn helper_key(registry: &str) -> &str {
    if registry == DOCKER_HUB { DOCKER_HUB_KEY } else { registry }
}

/// The login in an entry; none for one without, which means "in the credential store".
fn login_of(entry: &Value) -> Result<Option<Login>, &'static str> {
    let text = |key: &str| text(entry.get(key));
    if let Some(token) = text("identitytoken") {
        return Ok(Some(Login::IdentityToken(token.to_owned())));
    }
    if let Some(token) = text("registrytoken") {
        return Ok(Some(Login::RegistryToken(token.to_owned())));
    }
    let Some(encoded) = text("auth") else {
        let login = text("username").zip(text("password"));
        return Ok(login.and_then(|(user, password)| Login::new(user, password)));
    };
    let pair = STANDARD
        .decode(encoded)
        .or_else(|_| STANDARD_NO_PAD.decode(encoded.trim_end_matches('=')))
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok());
    let pair = pair.as_deref().and_then(|pair| pair.split_once(':'));
    let (user, password) = pair.ok_or("auth is not USER:PASSWORD in base64")?;
    // Docker pads with NULs.
    Ok(Login::new(user, password.trim_end_matches('\0')))
}

#[cfg(test)]
mod tests;
