//! The image config: what the image says about its environment and its command.

use serde_json::{Map, Value};

use super::digest::{Digest, DigestError};
use super::json::{self, WrongType};
use super::platform::Platform;

/// Largest config that is read, bytes. Real ones are below 100 KiB.
pub const MAX_CONFIG_BYTES: u64 = 8 << 20;

/// The parts of an OCI image config that a launch needs, with the raw bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// The document as received.
    pub raw: Vec<u8>,
    /// `config.Env`, `NAME=VALUE` or `NAME` (inherit), in order; of equal names only the last.
    pub env: Vec<String>,
    /// `config.Entrypoint`; empty when absent.
    pub entrypoint: Vec<String>,
    /// `config.Cmd`; empty when absent.
    pub cmd: Vec<String>,
    /// `config.WorkingDir`; empty when absent.
    pub working_dir: String,
    /// `config.User`, shown by `inspect` and ignored at launch.
    pub user: String,
    /// `config.Labels`, sorted.
    pub labels: Vec<(String, String)>,
    /// `architecture`, Go's name: `amd64`.
    pub architecture: String,
    /// `os`.
    pub os: String,
    /// `created`, RFC 3339, empty when absent.
    pub created: String,
    /// `rootfs.diff_ids`, bottom first.
    pub diff_ids: Vec<String>,
}

/// Why bytes are no image config.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// More than [`MAX_CONFIG_BYTES`].
    #[error("the image config has {0} bytes, more than the limit of {MAX_CONFIG_BYTES}")]
    TooLarge(u64),
    /// No JSON.
    #[error("the image config is not valid JSON")]
    Syntax(#[source] serde_json::Error),
    /// JSON, but no object.
    #[error("the image config is not a JSON object")]
    NotAnObject,
    /// A member has the wrong type.
    #[error("the image config is malformed")]
    Member(#[source] WrongType),
    /// A string that can reach no process.
    #[error("the image config has a NUL byte in {0}")]
    Nul(&'static str),
    /// `rootfs.type` is not `layers`.
    #[error("the image config has a root file system of type {0:?}, not \"layers\"")]
    RootfsType(String),
    /// A diff ID is no digest.
    #[error("the image config has a malformed diff ID")]
    DiffId(#[source] DigestError),
}

impl From<WrongType> for ConfigError {
    fn from(error: WrongType) -> ConfigError {
        ConfigError::Member(error)
    }
}

impl ImageConfig {
    /// Parses a config as leniently as Docker does: `null` is absent, unknown members are ignored, a lone string stands
    /// for an array of one. Diff IDs are validated; whether their number fits the layers is for the source to check.
    pub fn parse(raw: &[u8]) -> Result<ImageConfig, ConfigError> {
        if raw.len() as u64 > MAX_CONFIG_BYTES {
            return Err(ConfigError::TooLarge(raw.len() as u64));
        }
        let document: Value = parse_text(raw).map_err(ConfigError::Syntax)?;
        let top = document.as_object().ok_or(ConfigError::NotAnObject)?;
        let nothing = Map::new();
        let config = json::object(top, "config", "")?.unwrap_or(&nothing);
        let at = "config.";
        let parsed = ImageConfig {
            raw: raw.to_vec(),
            env: last_of_each_name(json::strings(config, "Env", at)?),
            entrypoint: json::strings(config, "Entrypoint", at)?,
            cmd: json::strings(config, "Cmd", at)?,
            working_dir: json::string(config, "WorkingDir", at)?,
            user: json::string(config, "User", at)?,
            labels: json::string_map(config, "Labels", at)?,
            architecture: json::string(top, "architecture", "")?,
            os: json::string(top, "os", "")?,
            created: json::string(top, "created", "")?,
            diff_ids: diff_ids(top)?,
        };
        parsed.refuse_nul()?;
        Ok(parsed)
    }

    /// The platform that the config states; none when it names no architecture.
    pub fn platform(&self) -> Option<Platform> {
        if self.architecture.is_empty() {
            return None;
        }
        let os = if self.os.is_empty() { "linux" } else { &self.os };
        let document = parse_text(&self.raw).unwrap_or(Value::Null);
        let variant = document.get("variant").and_then(Value::as_str).unwrap_or("");
        Some(Platform::new(os, &self.architecture, variant))
    }

    fn refuse_nul(&self) -> Result<(), ConfigError> {
        let lists =
            [("config.Env", &self.env), ("config.Entrypoint", &self.entrypoint), ("config.Cmd", &self.cmd)];
        if let Some((name, _)) = lists.iter().find(|(_, list)| list.iter().any(|text| text.contains('\0'))) {
            return Err(ConfigError::Nul(name));
        }
        if self.working_dir.contains('\0') {
            return Err(ConfigError::Nul("config.WorkingDir"));
        }
        Ok(())
    }
}

/// JSON text; bytes that are not UTF-8 become U+FFFD inside strings, as Go's decoder does.
fn parse_text(raw: &[u8]) -> Result<Value, serde_json::Error> {
    match std::str::from_utf8(raw) {
        Ok(text) => serde_json::from_str(text),
        Err(_) => serde_json::from_str(&String::from_utf8_lossy(raw)),
    }
}

/// Drops entries whose name comes again later, and entries without a name.
fn last_of_each_name(entries: Vec<String>) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    let mut kept: Vec<String> = entries
        .into_iter()
        .rev()
        .filter(|entry| {
            let name = entry.split('=').next().unwrap_or_default();
            !name.is_empty() && seen.insert(name.to_owned())
        })
        .collect();
    kept.reverse();
    kept
}

fn diff_ids(top: &Map<String, Value>) -> Result<Vec<String>, ConfigError> {
    let Some(rootfs) = json::object(top, "rootfs", "")? else { return Ok(Vec::new()) };
    let kind = json::string(rootfs, "type", "rootfs.")?;
    if !kind.is_empty() && kind != "layers" {
        return Err(ConfigError::RootfsType(kind));
    }
    let ids = json::strings(rootfs, "diff_ids", "rootfs.")?;
    ids.iter().try_for_each(|id| Digest::parse(id).map(drop)).map_err(ConfigError::DiffId)?;
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> ImageConfig {
        ImageConfig::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error:?}"))
    }

    #[track_caller]
    fn check_env(json: &str, expected: &[&str]) {
        assert_eq!(parse(&format!(r#"{{"config":{{"Env":{json}}}}}"#)).env, expected, "{json}");
    }

    #[test]
    fn a_docker_config() {
        let id = format!("sha256:{}", "ab".repeat(32));
        let text = format!(
            r#"{{"architecture":"arm64","variant":"v8","os":"linux","created":"2024-01-02T03:04:05Z",
            "config":{{"User":"app","Env":["PATH=/bin","A=1"],"Entrypoint":["/e","-x"],"Cmd":["run"],
            "WorkingDir":"/w","Labels":{{"b":"2","a":"1"}},"ArgsEscaped":true,"OnBuild":null,"Volumes":null}},
            "history":[{{"empty_layer":true}}],"rootfs":{{"type":"layers","diff_ids":["{id}"]}}}}"#
        );
        let config = parse(&text);
        assert_eq!(config.raw, text.as_bytes());
        assert_eq!(config.env, ["PATH=/bin", "A=1"]);
        assert_eq!(config.entrypoint, ["/e", "-x"]);
        assert_eq!(config.cmd, ["run"]);
        assert_eq!((config.working_dir.as_str(), config.user.as_str()), ("/w", "app"));
        assert_eq!(config.labels, [("a".into(), "1".into()), ("b".into(), "2".into())]);
        assert_eq!((config.architecture.as_str(), config.os.as_str()), ("arm64", "linux"));
        assert_eq!(config.created, "2024-01-02T03:04:05Z");
        assert_eq!(config.diff_ids, [id]);
        assert_eq!(config.platform().unwrap().to_string(), "linux/arm64");
    }

    #[test]
    fn lenient_where_docker_is() {
        for text in [
            "{}",
            r#"{"config":null}"#,
            r#"{"config":{}}"#,
            r#"{"rootfs":null}"#,
            r#"{"rootfs":{"type":"layers","diff_ids":null}}"#,
            r#"{"rootfs":{"type":null}}"#,
            r#"{"config":{"Env":null,"Cmd":null,"Entrypoint":null,"Labels":null,"WorkingDir":null,"User":null}}"#,
            r#"{"architecture":null,"os":null,"created":null,"unknown":[1,{"x":2}]}"#,
        ] {
            let config = parse(text);
            let bare = ImageConfig { raw: text.into(), ..ImageConfig::default() };
            assert_eq!(config, bare, "{text}");
            assert_eq!(config.platform(), None);
        }
        assert_eq!(parse(r#"{"config":{"Entrypoint":"/bin/sh"}}"#).entrypoint, ["/bin/sh"]);
        assert_eq!(parse(r#"{"config":{"Cmd":"a b"}}"#).cmd, ["a b"]);
        assert_eq!(parse(r#"{"Config":{"env":["A=1"]}}"#).env, ["A=1"]);
        assert_eq!(parse(r#"{"config":{"Labels":{"n":1,"t":true,"z":null}}}"#).labels.len(), 3);
        let latin1 = ImageConfig::parse(b"{\"config\":{\"User\":\"caf\xe9\"}}").unwrap();
        assert_eq!(latin1.user, "caf\u{fffd}");
        assert!(latin1.raw.contains(&0xe9), "the raw bytes stay");
    }

    #[test]
    fn environment() {
        check_env(r#"["A=1","B=2"]"#, &["A=1", "B=2"]);
        check_env(r#"["A=1","B=2","A=3"]"#, &["B=2", "A=3"]);
        check_env(r#"["A","A=1","A"]"#, &["A"]);
        check_env(r#"["A=","=x","","B==y"]"#, &["A=", "B==y"]);
        check_env(r#"["A=1",null]"#, &["A=1"]);
        check_env(r#""A=1""#, &["A=1"]);
        check_env(r#"["A=\n\ud83d\ude00"]"#, &["A=\n\u{1f600}"]);
    }

    #[test]
    fn refuses() {
        let deep = format!("{}1{}", "[".repeat(1000), "]".repeat(1000));
        for (text, part) in [
            ("", "not valid JSON"),
            ("{", "not valid JSON"),
            ("[]", "not a JSON object"),
            ("\"x\"", "not a JSON object"),
            (deep.as_str(), "not valid JSON"),
            (r#"{"config":[]}"#, "malformed"),
            (r#"{"config":{"Env":{}}}"#, "malformed"),
            (r#"{"config":{"Env":["A=1",2]}}"#, "malformed"),
            (r#"{"config":{"Cmd":7}}"#, "malformed"),
            (r#"{"config":{"WorkingDir":[]}}"#, "malformed"),
            (r#"{"config":{"Labels":{"a":[]}}}"#, "malformed"),
            (r#"{"config":{"Env":["A=\u0000"]}}"#, "NUL byte in config.Env"),
            (r#"{"config":{"Cmd":["a\u0000b"]}}"#, "NUL byte in config.Cmd"),
            (r#"{"config":{"WorkingDir":"/\u0000"}}"#, "NUL byte in config.WorkingDir"),
            (r#"{"rootfs":{"type":"overlay"}}"#, "type \"overlay\""),
            (r#"{"rootfs":{"diff_ids":["sha256:../x"]}}"#, "malformed diff ID"),
            (r#"{"rootfs":{"diff_ids":[1]}}"#, "malformed"),
        ] {
            let error = ImageConfig::parse(text.as_bytes()).expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        let huge = vec![b' '; usize::try_from(MAX_CONFIG_BYTES).unwrap() + 1];
        assert!(matches!(ImageConfig::parse(&huge), Err(ConfigError::TooLarge(_))));
    }

    #[test]
    fn the_member_is_named() {
        let error = ImageConfig::parse(br#"{"config":{"Env":["A=1",2]}}"#).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(cause, "config.Env[1] is not a string");
    }
}
