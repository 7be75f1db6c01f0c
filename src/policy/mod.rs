//! The site's policy file: text into rules with line numbers into decisions. Pure.
//!
//! ```text
//! text --file--> values with positions --read--> Rules --decide--> binds, grants, refusals
//! ```
//!
//! hpcrun holds no privilege, so a policy chooses and narrows what hpcrun does for a user; it adds no right and is no
//! wall against a user who brings another tool. Every decision names the rule that made it.

pub mod bind_spec;
pub mod decide;
pub mod file;
pub mod path;
pub mod pattern;
pub mod read;
pub mod rules;
pub mod template;

use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

pub use decide::{Refusal, Rule};
pub use rules::Rules;

use crate::hint::Hint;
use file::{Document, Problem};

/// Where the site's policy lies. Compiled in: whoever may choose the file chooses the policy.
pub const POLICY_PATH: &str = "/etc/hpcrun/policy.toml";

/// A site's policy, validated.
#[derive(Debug, Clone)]
pub struct Policy {
    file: PathBuf,
    rules: Rules,
    text_sha256: [u8; 32],
}

impl Policy {
    /// The policy of a site without a file: hpcrun's defaults, nothing refused.
    pub fn builtin() -> Policy {
        Policy { file: PathBuf::from("built-in policy"), rules: Rules::default(), text_sha256: hash(b"") }
    }

    /// Reads `text`, which came from `file` (kept for messages only).
    ///
    /// # Errors
    ///
    /// All that is wrong with the file at once, each with line and column. A policy with an error decides nothing.
    pub fn parse(file: &Path, text: &str) -> Result<Policy, PolicyError> {
        let document = Document::parse(text);
        let rules = read::read_rules(&document);
        let problems = document.into_problems();
        if problems.is_empty() {
            Ok(Policy { file: file.to_owned(), rules, text_sha256: hash(text.as_bytes()) })
        } else {
            Err(PolicyError { file: file.to_owned(), problems })
        }
    }

    /// The file as named to [`Policy::parse`].
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The validated rules.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// SHA-256 of the file's text: two launches with equal hashes were decided by the same rules.
    pub fn text_sha256(&self) -> &[u8; 32] {
        &self.text_sha256
    }
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// The policy file is wrong; nothing is launched until it is right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", describe(file, problems))]
pub struct PolicyError {
    /// The file.
    pub file: PathBuf,
    /// All that is wrong, in the order of the file; never empty.
    pub problems: Vec<Problem>,
}

/// The first problem in full, then how many more: one line, as every error.
fn describe(file: &Path, problems: &[Problem]) -> String {
    let first = problems.first().map(Problem::to_string).unwrap_or_default();
    let more = match problems.len() {
        0 | 1 => String::new(),
        2 => " (and 1 more problem)".to_owned(),
        n => format!(" (and {} more problems)", n.saturating_sub(1)),
    };
    format!("{}:{first}{more}", file.display())
}

impl Hint for PolicyError {
    fn hints(&self) -> Vec<String> {
        let mut hints: Vec<String> = self.problems.first().and_then(|p| p.hint.clone()).into_iter().collect();
        hints.push("a broken policy stops every launch: tell the administrator of this machine".to_owned());
        hints
    }
}
