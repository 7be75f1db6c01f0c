//! Logins for registries, from the files that docker and podman write and from docker's credential helpers.
//!
//! The search is that of containers-auth.json(5): files in order, in each the most specific key first.
//! Files are taken apart by hand: serde's messages quote the value that they stumble on, here a password.

use std::fmt;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde_json::{Map, Value};

use super::error::RegistryError;

/// The key under which docker keeps Docker Hub's login.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_HELPER_BYTES: u64 = 1 << 20;

/// A login. `Debug` shows that there is one, not what it is.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    /// User name and password (or access token), for Basic.
    Password {
        /// User name.
        user: String,
        /// Password.
        password: String,
    },
    /// A refresh token, exchanged at the token server.
    IdentityToken(String),
}

impl Login {
    /// The `Authorization` header of a password.
    pub(super) fn basic(&self) -> Option<String> {
        match self {
            Login::Password { user, password } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
            }
            Login::IdentityToken(_) => None,
        }
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Login::Password { .. } => "Password(...)",
            Login::IdentityToken(_) => "IdentityToken(...)",
        })
    }
}

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

/// The variables that decide where logins are kept; `None` where unset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuthEnvironment {
    /// `REGISTRY_AUTH_FILE`, or a file given on the command line.
    pub registry_auth_file: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`
    pub xdg_runtime_dir: Option<PathBuf>,
    /// `XDG_CONFIG_HOME`
    pub xdg_config_home: Option<PathBuf>,
    /// `DOCKER_CONFIG`, a directory.
    pub docker_config: Option<PathBuf>,
    /// `HOME`
    pub home: Option<PathBuf>,
}

/// Files that may hold logins, most important first. The caller reads those that exist into [`AuthFile`]s.
pub fn candidate_paths(environment: &AuthEnvironment) -> Vec<PathBuf> {
    let set = |path: &Option<PathBuf>| path.clone().filter(|path| !path.as_os_str().is_empty());
    if let Some(only) = set(&environment.registry_auth_file) {
        return vec![only];
    }
    let home = set(&environment.home);
    let below_home = |name: &str| home.as_ref().map(|home| home.join(name));
    let config = set(&environment.xdg_config_home).or_else(|| below_home(".config"));
    let docker = set(&environment.docker_config).or_else(|| below_home(".docker"));
    [
        set(&environment.xdg_runtime_dir).map(|path| path.join("containers/auth.json")),
        config.map(|path| path.join("containers/auth.json")),
        docker.map(|path| path.join("config.json")),
        below_home(".dockercfg"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What the files say of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// A login.
    Login(Login),
    /// Ask `docker-credential-<name>` for `server`.
    Helper {
        /// Helper's name.
        name: String,
        /// What it is asked for.
        server: String,
    },
}

/// Searches the files for what fits `registry` (its name, not its API host) and `repository`.
pub(super) fn search(
    files: &[AuthFile],
    registry: &str,
    repository: &str,
) -> Result<Option<Found>, RegistryError> {
    for file in files {
        let fail = |why: String| RegistryError::AuthFile { path: file.path.display().to_string(), why };
        // Syntax errors tell a line, never content.
        let document: Value =
            serde_json::from_slice(&file.contents).map_err(|error| fail(error.to_string()))?;
        let members = document.as_object().ok_or_else(|| fail("it is not a JSON object".to_owned()))?;
        if let Some(found) = search_file(members, registry, repository) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn search_file(members: &Map<String, Value>, registry: &str, repository: &str) -> Option<Found> {
    let keys = keys_for(registry, repository);
    let helper = |name: &str| Found::Helper { name: name.to_owned(), server: server_for(registry) };
    if let Some(helpers) = members.get("credHelpers").and_then(Value::as_object) {
        let of_key = |key: &String| helpers.iter().find(|(stated, _)| normalised(stated) == *key);
        if let Some(name) = keys.iter().find_map(of_key).and_then(|(_, name)| name.as_str()) {
            return Some(helper(name));
        }
    }
    // The ancient ~/.dockercfg has the entries at its top.
    let auths = match members.get("auths") {
        Some(auths) => auths.as_object(),
        None => Some(members),
    };
    let login = auths.and_then(|auths| {
        keys.iter().find_map(|key| {
            auths
                .iter()
                .filter(|(stated, _)| normalised(stated) == *key)
                .find_map(|(_, entry)| login_of(entry))
        })
    });
    if let Some(login) = login {
        return Some(Found::Login(login));
    }
    let store = members.get("credsStore").and_then(Value::as_str).filter(|name| !name.is_empty());
    store.map(helper)
}

/// Keys that fit, most specific first: `host/a/b`, `host/a`, `host`.
fn keys_for(registry: &str, repository: &str) -> Vec<String> {
    let full = format!("{registry}/{repository}");
    let mut keys = Vec::new();
    let mut rest = full.as_str();
    while let Some((shorter, _)) = rest.rsplit_once('/') {
        keys.push(rest.to_owned());
        rest = shorter;
    }
    keys.push(rest.to_owned());
    keys
}

/// A key as written: without scheme and without the `/v1/` of old dockers; Docker Hub's names are one.
fn normalised(key: &str) -> String {
    let bare = key.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let bare = bare.strip_suffix("/v1").or_else(|| bare.strip_suffix("/v2")).unwrap_or(bare);
    match bare.split_once('/') {
        None if matches!(bare, "index.docker.io" | "registry-1.docker.io") => "docker.io".to_owned(),
        Some(("index.docker.io" | "registry-1.docker.io", rest)) => format!("docker.io/{rest}"),
        _ => bare.to_owned(),
    }
}

fn server_for(registry: &str) -> String {
    if registry == "docker.io" { DOCKER_HUB_KEY.to_owned() } else { registry.to_owned() }
}

/// The login in an entry; none for `{}`, which means "in the credential store", or for one that cannot be read.
fn login_of(entry: &Value) -> Option<Login> {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    if let Some(token) = text("identitytoken") {
        return Some(Login::IdentityToken(token.to_owned()));
    }
    if let Some(encoded) = text("auth") {
        let decoded = STANDARD
            .decode(encoded)
            .or_else(|_| STANDARD_NO_PAD.decode(encoded.trim_end_matches('=')))
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())?;
        let (user, password) = decoded.split_once(':')?;
        // docker pads with NULs.
        return login(user, password.trim_end_matches('\0'));
    }
    login(text("username")?, text("password")?)
}

/// `<token>` as the user's name marks an identity token.
fn login(user: &str, password: &str) -> Option<Login> {
    match user {
        "" => None,
        "<token>" => Some(Login::IdentityToken(password.to_owned())),
        _ => Some(Login::Password { user: user.to_owned(), password: password.to_owned() }),
    }
}

/// Asks `docker-credential-<name> get`. No login: it has none, or does not work (compute nodes often lack helpers, and
/// an anonymous pull may do).
pub(super) fn ask_helper(name: &str, server: &str) -> Option<Login> {
    let is_name = !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if !is_name {
        log::warn!("the credential helper {name:?} has a strange name and is not run");
        return None;
    }
    match run_helper(&format!("docker-credential-{name}"), server, HELPER_TIMEOUT) {
        Ok(output) => parse_helper(&output),
        Err(why) => {
            log::warn!("docker-credential-{name} gave no login for {server}: {why}");
            None
        }
    }
}

fn run_helper(program: &str, server: &str, timeout: Duration) -> Result<Vec<u8>, String> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| error.to_string())?;
    if let Some(mut input) = child.stdin.take() {
        // A helper may answer without reading.
        let _ = input.write_all(server.as_bytes());
    }
    let output = child.stdout.take();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(output) = output {
            let _ = output.take(MAX_HELPER_BYTES).read_to_end(&mut bytes);
        }
        bytes
    });
    let begin = Instant::now();
    let status = loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => break status,
            None if begin.elapsed() > timeout => {
                let _ = child.kill();
                let _ = child.wait();
                return Err("it does not end".to_owned());
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let bytes = reader.join().unwrap_or_default();
    if status.success() {
        return Ok(bytes);
    }
    // "credentials not found in native keychain" is the protocol's "none".
    if String::from_utf8_lossy(&bytes).contains("credentials not found") {
        return Ok(Vec::new());
    }
    Err(format!("it ended with {status}"))
}

fn parse_helper(output: &[u8]) -> Option<Login> {
    let document: Value = serde_json::from_slice(output).ok()?;
    login(document.get("Username")?.as_str()?, document.get("Secret")?.as_str()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(contents: &str) -> AuthFile {
        AuthFile { path: "/home/u/auth.json".into(), contents: contents.as_bytes().to_vec() }
    }

    fn auth(text: &str) -> String {
        format!(r#"{{"auth":"{}"}}"#, STANDARD.encode(text))
    }

    /// `user:password`, `token:...`, `helper:name@server`, or empty.
    #[track_caller]
    fn check(files: &[&str], reference: &str, expected: &str) {
        let files: Vec<AuthFile> = files.iter().map(|text| file(text)).collect();
        let (registry, repository) = reference.split_once('/').unwrap();
        let found = match search(&files, registry, repository).unwrap() {
            None => String::new(),
            Some(Found::Login(Login::Password { user, password })) => format!("{user}:{password}"),
            Some(Found::Login(Login::IdentityToken(token))) => format!("token:{token}"),
            Some(Found::Helper { name, server }) => format!("helper:{name}@{server}"),
        };
        assert_eq!(found, expected, "{reference}");
    }

    #[test]
    fn most_specific_key_first() {
        let text = format!(
            r#"{{"auths":{{"r.org":{},"r.org/team":{},"r.org/team/app":{},"r.org:5000":{}}}}}"#,
            auth("host:1"),
            auth("team:2"),
            auth("app:3"),
            auth("port:4")
        );
        check(&[&text], "r.org/other", "host:1");
        check(&[&text], "r.org/team/x", "team:2");
        check(&[&text], "r.org/team/app", "app:3");
        check(&[&text], "r.org/team/app/part", "app:3");
        check(&[&text], "r.org/teammate/x", "host:1");
        check(&[&text], "r.org:5000/team/app", "port:4");
        check(&[&text], "x.r.org/team", "");
        check(&[&text], "evil-r.org/team", "");
    }

    #[test]
    fn docker_hub_and_old_keys() {
        for key in [
            "https://index.docker.io/v1/",
            "https://index.docker.io/v1",
            "index.docker.io",
            "docker.io",
            "https://docker.io",
            "registry-1.docker.io",
            "https://index.docker.io/v2/",
        ] {
            check(
                &[&format!(r#"{{"auths":{{"{key}":{}}}}}"#, auth("hub:x"))],
                "docker.io/library/a",
                "hub:x",
            );
        }
        check(&[&format!(r#"{{"auths":{{"https://quay.io/v2/":{}}}}}"#, auth("q:x"))], "quay.io/a", "q:x");
        check(&[&format!(r#"{{"quay.io":{}}}"#, auth("cfg:x"))], "quay.io/a", "cfg:x");
    }

    #[test]
    fn kinds_of_entries() {
        let one = |entry: &str| format!(r#"{{"auths":{{"r.org":{entry}}}}}"#);
        check(&[&one(&auth("u:p:with:colons"))], "r.org/a", "u:p:with:colons");
        check(&[&one(&auth("u:p\0\0"))], "r.org/a", "u:p");
        check(&[&one(&auth("<token>:refresh"))], "r.org/a", "token:refresh");
        check(&[&one(r#"{"auth":"dTpw","identitytoken":"id"}"#)], "r.org/a", "token:id");
        check(&[&one(r#"{"username":"u","password":"p"}"#)], "r.org/a", "u:p");
        check(&[&one(r#"{"auth":"","username":"u","password":"p"}"#)], "r.org/a", "u:p");
        check(&[&one(r#"{"auth":"dTpwdw"}"#)], "r.org/a", "u:pw");
        for useless in ["{}", "null", "7", r#"{"auth":"!!!"}"#, r#"{"auth":"bm9jb2xvbg=="}"#, r#"{"auth":7}"#]
        {
            check(&[&one(useless)], "r.org/a", "");
        }
        check(&["{}", &one(&auth("u:p"))], "r.org/a", "u:p");
        check(&[&one(&auth("first:1")), &one(&auth("second:2"))], "r.org/a", "first:1");
    }

    #[test]
    fn helpers() {
        let store = r#"{"auths":{"r.org":{}},"credsStore":"desktop"}"#;
        check(&[store], "r.org/a", "helper:desktop@r.org");
        check(&[store], "docker.io/library/a", "helper:desktop@https://index.docker.io/v1/");
        let both = format!(
            r#"{{"auths":{{"r.org":{}}},"credsStore":"s","credHelpers":{{"gcr.io":"gcloud","r.org/x":"special"}}}}"#,
            auth("u:p")
        );
        check(&[&both], "r.org/a", "u:p");
        check(&[&both], "r.org/x/y", "helper:special@r.org");
        check(&[&both], "gcr.io/p/i", "helper:gcloud@gcr.io");
        check(&[&both], "other.org/p", "helper:s@other.org");
        let parsed = parse_helper(br#"{"ServerURL":"r","Username":"u","Secret":"s"}"#);
        assert_eq!(parsed, Some(Login::Password { user: "u".into(), password: "s".into() }));
        let parsed = parse_helper(br#"{"Username":"<token>","Secret":"s"}"#);
        assert_eq!(parsed, Some(Login::IdentityToken("s".into())));
        assert_eq!(parse_helper(b"credentials not found in native keychain"), None);
        assert_eq!(ask_helper("../../bin/sh", "r.org"), None);
        assert_eq!(ask_helper("surely-not-installed", "r.org"), None);
    }

    #[test]
    fn helpers_are_run() {
        let directory = tempfile::tempdir().unwrap();
        let mut number = 0;
        let mut run = |body: &str| {
            use std::os::unix::fs::PermissionsExt;
            number += 1;
            let path = directory.path().join(format!("helper{number}"));
            let staged = directory.path().join("staged");
            std::fs::write(&staged, format!("#!/bin/sh\n{body}\n")).unwrap();
            std::fs::set_permissions(&staged, PermissionsExt::from_mode(0o755)).unwrap();
            std::fs::rename(&staged, &path).unwrap();
            // Another test's fork may hold the script open for writing for a moment.
            for _ in 0..50 {
                match run_helper(path.to_str().unwrap(), "r.org", Duration::from_millis(500)) {
                    Err(why) if why.contains("busy") => std::thread::sleep(Duration::from_millis(20)),
                    result => return result.map(|bytes| parse_helper(&bytes)),
                }
            }
            panic!("busy")
        };
        let login = |user: &str| Some(Login::Password { user: user.into(), password: "s".into() });
        let echo = r#"test "$1" = get && read -r server; printf '{"Username":"%s","Secret":"s"}' "$server""#;
        assert_eq!(run(echo).unwrap(), login("r.org"));
        assert_eq!(run("printf 'credentials not found in native keychain'; exit 1").unwrap(), None);
        assert!(run("echo canary; exit 3").unwrap_err().contains("3"));
        assert!(run("exec sleep 60").unwrap_err().contains("does not end"));
    }

    #[test]
    fn broken_files_are_named_without_their_content() {
        for text in [r#"{"auths":{"r.org":{"auth":"canary"#, r#"["canary"]"#, "canary", r#""canary""#] {
            let error = search(&[file(text)], "r.org", "a").unwrap_err().to_string();
            assert!(error.contains("/home/u/auth.json"), "{error}");
            assert!(!error.contains("canary"), "{error}");
        }
    }

    #[test]
    fn debug_tells_nothing() {
        let login = Login::Password { user: "user".into(), password: "canary".into() };
        let shown = format!("{login:?} {:?} {:?}", Login::IdentityToken("canary".into()), file("canary"));
        assert!(!shown.contains("canary") && !shown.contains("user\""), "{shown}");
    }

    #[test]
    fn where_files_are_looked_for() {
        let paths = |environment: &AuthEnvironment| {
            let list = candidate_paths(environment);
            list.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ")
        };
        let all = AuthEnvironment {
            registry_auth_file: None,
            xdg_runtime_dir: Some("/run/user/1".into()),
            xdg_config_home: Some("/xdg".into()),
            docker_config: Some("/docker".into()),
            home: Some("/home/u".into()),
        };
        assert_eq!(
            paths(&all),
            "/run/user/1/containers/auth.json /xdg/containers/auth.json /docker/config.json /home/u/.dockercfg"
        );
        let home_only = AuthEnvironment { home: Some("/home/u".into()), ..AuthEnvironment::default() };
        assert_eq!(
            paths(&home_only),
            "/home/u/.config/containers/auth.json /home/u/.docker/config.json /home/u/.dockercfg"
        );
        let named = AuthEnvironment { registry_auth_file: Some("/a.json".into()), ..all.clone() };
        assert_eq!(paths(&named), "/a.json");
        let empty = AuthEnvironment { registry_auth_file: Some("".into()), ..home_only.clone() };
        assert_eq!(paths(&empty), paths(&home_only));
        assert_eq!(paths(&AuthEnvironment::default()), "");
    }
}
