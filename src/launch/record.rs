//! What the site's log says of a launch: one line each, written by hpcrun and read again by `hpcrun report`.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::image::calendar::civil;

/// Longest text of a field, bytes: a line must fit into one datagram and one write.
const TEXT_MAX: usize = 1024;

/// What became of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// The container was made; the program is executed next.
    Launched,
    /// The site's policy said no.
    Refused,
    /// Something else kept the container from being made.
    Failed,
}

/// With whom the container is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Other ranks join this one.
    First,
    /// With nobody.
    Alone,
}

/// One line of the log. `docs/accounting.md` explains the fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When, as [`time`] writes it.
    pub time: String,
    /// What became of it.
    pub decision: Decision,
    /// Login name.
    pub user: String,
    /// User id.
    pub uid: u32,
    /// The node.
    pub host: String,
    /// What launched it: `slurm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launcher: Option<String>,
    /// The job as the launcher calls it: `1234`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// The step: `1234.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// The image file, without links where it could be opened.
    pub image: String,
    /// What the image file was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Digest of the image's manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Of a container that was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<Role>,
    /// Microseconds from the policy's being read to the program's being executed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub setup_us: Option<u64>,
    /// The rule that refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Why it was refused or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Of hpcrun.
    pub version: String,
}

impl Record {
    /// One line of JSON, without its line feed.
    pub fn as_json(&self) -> String {
        // A struct of strings and numbers has no value that JSON lacks.
        serde_json::to_string(&self.shortened()).unwrap_or_default()
    }

    /// The same for people, `refused time=... user=ada ...`, in the order of the fields.
    pub fn as_text(&self) -> String {
        let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(self.shortened()) else {
            return String::new();
        };
        let text = |value: &serde_json::Value| match value {
            serde_json::Value::String(text) if is_plain(text) => text.clone(),
            other => other.to_string(),
        };
        let mut line = fields.get("decision").map_or_else(String::new, text);
        const ORDER: [&str; 14] = [
            "time", "user", "uid", "host", "launcher", "job", "step", "image", "name", "digest", "share",
            "setup_us", "rule", "reason",
        ];
        for name in ORDER {
            if let Some(value) = fields.get(name) {
                let _ = write!(line, " {name}={}", text(value));
            }
        }
        line
    }

    fn shortened(&self) -> Record {
        let optional = |text: &Option<String>| text.as_deref().map(shortened);
        Record {
            user: shortened(&self.user),
            host: shortened(&self.host),
            job: optional(&self.job),
            step: optional(&self.step),
            image: shortened(&self.image),
            name: optional(&self.name),
            digest: optional(&self.digest),
            rule: optional(&self.rule),
            reason: optional(&self.reason),
            ..self.clone()
        }
    }
}

/// The first [`TEXT_MAX`] bytes, whole characters.
fn shortened(text: &str) -> String {
    let mut end = text.len().min(TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| !c.is_whitespace() && !c.is_control() && c != '"' && c != '=')
}

/// A moment in UTC to the millisecond, `2026-11-22T21:07:31.042Z`: in the order of the alphabet, until the year 10000.
pub fn time(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            time: "2026-11-22T21:07:31.042Z".to_owned(),
            decision: Decision::Refused,
            user: "ada".to_owned(),
            uid: 1000,
            host: "node7".to_owned(),
            launcher: Some("slurm".to_owned()),
            job: Some("12".to_owned()),
            step: Some("12.0".to_owned()),
            image: "/images/a b.sqsh".to_owned(),
            name: None,
            digest: None,
            share: None,
            setup_us: None,
            rule: Some("/etc/hpcrun/policy.toml:3 [images] directories".to_owned()),
            reason: Some("it says \"no\"\n".to_owned()),
            version: "0.1.0".to_owned(),
        }
    }

    #[test]
    fn a_line_is_one_line_and_is_read_again() {
        let line = record().as_json();
        assert!(!line.contains('\n'), "{line}");
        assert_eq!(serde_json::from_str::<Record>(&line).unwrap(), record());
        assert_eq!(
            record().as_text(),
            "refused time=2026-11-22T21:07:31.042Z user=ada uid=1000 host=node7 launcher=slurm job=12 step=12.0 \
             image=\"/images/a b.sqsh\" rule=\"/etc/hpcrun/policy.toml:3 [images] directories\" \
             reason=\"it says \\\"no\\\"\\n\""
        );
    }

    #[test]
    fn a_long_field_is_cut_between_characters() {
        let long = Record { image: "x".repeat(1023) + "\u{e9}\u{e9}", ..record() };
        let read: Record = serde_json::from_str(&long.as_json()).unwrap();
        assert_eq!(read.image, "x".repeat(1023));
    }

    #[test]
    fn times_are_those_of_date() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.500Z"),
            (951_782_399, "2000-02-28T23:59:59.500Z"),
            (951_782_400, "2000-02-29T00:00:00.500Z"),
            (1_709_251_200, "2024-03-01T00:00:00.500Z"),
            (4_102_444_799, "2099-12-31T23:59:59.500Z"),
            (4_107_542_400, "2100-03-01T00:00:00.500Z"),
        ] {
            let at = SystemTime::UNIX_EPOCH + Duration::from_millis(seconds * 1000 + 500);
            assert_eq!(time(at), expected);
        }
    }
}
