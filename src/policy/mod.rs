//! The site's policy: texts into rules with line numbers into decisions. Pure.
//!
//! ```text
//! texts --file--> values with positions --read--> Rules --decide--> binds, grants, refusals
//! ```
//!
//! hpcrun holds no privilege, so a policy chooses and narrows what hpcrun does for a user; it adds no right and is no
//! wall against a user who brings another tool. Every decision names the rule that made it.

pub mod bind_spec;
pub mod decide;
pub mod defaults;
pub mod file;
pub mod path;
pub mod pattern;
pub mod read;
pub mod rules;
pub mod show;
pub mod template;

use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

pub use decide::{Refusal, Rule};
pub use rules::Rules;

use crate::hint::Hint;
use file::{Document, Problem};

/// Where the site's policy lies. Compiled in: whoever may choose the file chooses the policy.
pub const POLICY_PATH: &str = "/etc/hpcrun/policy.toml";

/// A file of the policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyFile {
    /// As it was opened.
    pub path: PathBuf,
    /// What it holds.
    pub text: String,
}

/// A site's policy, validated.
#[derive(Debug, Clone)]
pub struct Policy {
    files: Vec<PolicyFile>,
    rules: Rules,
}

impl Policy {
    /// The policy of a site without a file: hpcrun's defaults, nothing refused.
    pub fn builtin() -> Policy {
        Policy { files: Vec::new(), rules: Rules::default() }
    }

    /// Reads `text`, which came from `file` (kept for messages only).
    ///
    /// # Errors
    ///
    /// As of [`Policy::of_files`].
    pub fn parse(file: &Path, text: &str) -> Result<Policy, PolicyError> {
        Policy::of_files(vec![PolicyFile { path: file.to_owned(), text: text.to_owned() }])
    }

    /// Reads all files of a policy, the main one first, then its drop-ins in their order.
    ///
    /// # Errors
    ///
    /// All that is wrong with the files at once, each with file, line and column. A policy with an error decides nothing.
    pub fn of_files(files: Vec<PolicyFile>) -> Result<Policy, PolicyError> {
        let texts: Vec<(String, &str)> =
            files.iter().map(|file| (file.path.display().to_string(), file.text.as_str())).collect();
        let document = Document::parse(&texts);
        let rules = read::read_rules(&document);
        let problems = document.into_problems();
        if problems.is_empty() { Ok(Policy { files, rules }) } else { Err(PolicyError { files, problems }) }
    }

    /// The files, in the order of reading; none of the built-in policy.
    pub fn files(&self) -> &[PolicyFile] {
        &self.files
    }

    /// The file that a position of a rule is in.
    pub fn file_at(&self, at: file::Position) -> &Path {
        self.files.get(at.file).map_or(Path::new("built-in policy"), |file| &file.path)
    }

    /// The validated rules.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// SHA-256 of the files' texts: two launches with equal hashes were decided by the same rules.
    pub fn text_sha256(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for file in &self.files {
            hash.update(file.text.len().to_le_bytes());
            hash.update(&file.text);
        }
        hash.finalize().into()
    }
}

/// The policy is wrong; nothing is launched until it is right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.describe())]
pub struct PolicyError {
    /// Its files.
    pub files: Vec<PolicyFile>,
    /// All that is wrong, in the order of the files; never empty.
    pub problems: Vec<Problem>,
}

impl PolicyError {
    /// The file that a problem is in.
    pub fn file_of(&self, problem: &Problem) -> Option<&PolicyFile> {
        self.files.get(problem.at.file)
    }

    /// The first problem in full, then how many more: one line, as every error.
    fn describe(&self) -> String {
        let Some(first) = self.problems.first() else {
            return String::new();
        };
        let more = match self.problems.len() {
            0 | 1 => String::new(),
            2 => " (and 1 more problem)".to_owned(),
            n => format!(" (and {} more problems)", n.saturating_sub(1)),
        };
        let file = self.file_of(first).map(|file| file.path.display().to_string()).unwrap_or_default();
        format!("{file}:{first}{more}")
    }
}

impl Hint for PolicyError {
    fn hints(&self) -> Vec<String> {
        let mut hints: Vec<String> = self.problems.first().and_then(|p| p.hint.clone()).into_iter().collect();
        if self.problems.len() > 1 {
            hints.push("'hpcrun policy check' shows all that is wrong".to_owned());
        }
        hints.push("a broken policy stops every launch: tell the administrator of this machine".to_owned());
        hints
    }
}
