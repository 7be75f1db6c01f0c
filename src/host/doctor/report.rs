//! The checks as text for people and as JSON for fleets.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Check, Status};

/// The number of the JSON's form: it changes when a key goes or changes its meaning, not when one is added.
pub const SCHEMA: u32 = 1;

/// What was examined: enough to know, months later, which node a pasted report is of.
#[derive(Debug, Clone, Default)]
pub struct Subject {
    /// Version and target of hpcrun.
    pub hpcrun: String,
    /// The node's name.
    pub node: String,
    /// `Linux 6.1.0`
    pub kernel: String,
    /// The caller's user id.
    pub uid: u32,
    /// The job step, as the launcher calls it.
    pub job: Option<String>,
    /// The image that was looked at too.
    pub image: Option<String>,
}

/// A line on the subject, one line a check with remedies indented below it, and the verdict.
pub fn render_text(subject: &Subject, checks: &[Check]) -> String {
    let mut text =
        format!("hpcrun {} on {}, {}, uid {}", subject.hpcrun, subject.node, subject.kernel, subject.uid);
    for (word, value) in [("job", &subject.job), ("image", &subject.image)] {
        if let Some(value) = value {
            let _ = write!(text, ", {word} {value}");
        }
    }
    text.push('\n');
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    for check in checks {
        let _ = writeln!(text, "{:<4}  {:<width$}  {}", check.status.word(), check.name, check.detail);
        for line in &check.remedy {
            let _ = writeln!(text, "      {:<width$}  -> {line}", "");
        }
    }
    let _ = writeln!(text, "{}", verdict(checks));
    text
}

fn verdict(checks: &[Check]) -> String {
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    let warnings = match count(Status::Warn) {
        0 => String::new(),
        1 => ", 1 warning".to_owned(),
        many => format!(", {many} warnings"),
    };
    match count(Status::No) {
        0 => format!("images can run here{warnings}"),
        1 => format!("images cannot run here: 1 thing to mend{warnings}"),
        many => format!("images cannot run here: {many} things to mend{warnings}"),
    }
}

/// The same as one JSON object. Names of checks and keys are stable; [`SCHEMA`] tells their form.
pub fn render_json(subject: &Subject, checks: &[Check]) -> Value {
    let check = |check: &Check| {
        json!({
            "name": check.name,
            "status": check.status.word(),
            "detail": check.detail,
            "remedy": check.remedy,
        })
    };
    json!({
        "schema": SCHEMA,
        "hpcrun": subject.hpcrun,
        "node": subject.node,
        "kernel": subject.kernel,
        "uid": subject.uid,
        "job": subject.job,
        "image": subject.image,
        "usable": checks.iter().all(|check| check.status != Status::No),
        "checks": checks.iter().map(check).collect::<Value>(),
    })
}
