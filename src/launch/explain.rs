//! The plan as text: what `--explain` prints and what the tests compare. One line a decision, each with its reason.

use std::ffi::OsStr;
use std::fmt;
use std::path::PathBuf;

use super::env::Change;
use super::plan::LaunchPlan;
use super::request::Init;
use crate::mount::plan::Reason;

/// What a plan says about itself beyond what it does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct About {
    /// The image in a line.
    pub image: String,
    /// What the image is shown with beyond what is mounted, and why.
    pub added: Vec<(String, Reason)>,
    /// What rules of the site decided beyond what the operations name.
    pub decisions: Vec<(String, Reason)>,
    /// What was done to the environment.
    pub env_changes: Vec<Change>,
    /// Why the first working directory is the first.
    pub cwd_reason: Reason,
    /// Who said what to execute.
    pub exec_reason: Reason,
    /// With whom the namespaces are shared.
    pub share: String,
    /// What the user should be told without asking: the job does not start where he stands.
    pub warnings: Vec<String>,
    /// What was left out, and what this node lacks.
    pub notes: Vec<String>,
    /// Destinations that the site forces.
    pub forced: Vec<PathBuf>,
}

/// Room for `13 pivot_root`.
const LABEL_WIDTH: usize = 13;

/// The width that the text before a reason is padded to; longer text pushes its reason to the right.
const TEXT_WIDTH: usize = 56;

impl fmt::Display for LaunchPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        line(f, "image", &self.about.image, None)?;
        line(f, "identity", &format!("uid {}, gid {}", self.uid, self.gid), None)?;
        guise_lines(f, self)?;
        line(f, "share", &self.about.share, None)?;
        for (what, reason) in &self.about.decisions {
            line(f, "policy", what, Some(reason))?;
        }
        for command in &self.before {
            let call = format!("{} {}", command.program.display(), command.arguments.join(" "));
            line(f, "run first", &call, Some(&command.reason))?;
        }
        for (index, planned) in self.mount.ops.iter().enumerate() {
            let op = planned.op.to_string();
            let (what, places) = op.split_once(' ').unwrap_or((&op, ""));
            let label = format!("{:>2} {what}", index.saturating_add(1));
            line(f, &label, places, Some(&planned.reason))?;
        }
        for (what, reason) in &self.about.added {
            line(f, "add", what, Some(reason))?;
        }
        env_lines(f, &self.about.env_changes)?;
        let cwd: Vec<String> = self.cwd.iter().map(|path| path.display().to_string()).collect();
        line(f, "cwd", &cwd.join(", else "), Some(&self.about.cwd_reason))?;
        line(f, "exec", &words(&self.argv), Some(&self.about.exec_reason))?;
        for warning in &self.about.warnings {
            line(f, "warning", warning, None)?;
        }
        for note in &self.about.notes {
            line(f, "note", note, None)?;
        }
        Ok(())
    }
}

/// What `--fakeroot`, `--pid`, `--ipc` and `--umask` change.
fn guise_lines(f: &mut fmt::Formatter<'_>, plan: &LaunchPlan) -> fmt::Result {
    let guise = &plan.guise;
    let because = |option: &str| Reason::Flag(option.to_owned());
    if guise.is_root {
        line(f, "", "uid 0, gid 0 inside, without any capability", Some(&because("--fakeroot")))?;
    }
    if plan.owns_image() {
        line(f, "", "all of the image belongs to this user", Some(&because("writable root")))?;
    }
    match guise.isolation.processes {
        Some(Init::Own) => line(f, "namespace", "processes, hpcrun is process 1", Some(&because("--pid")))?,
        Some(Init::Job) => {
            line(f, "namespace", "processes, the job is process 1", Some(&because("--no-init")))?
        }
        None => {}
    }
    if guise.isolation.ipc {
        line(f, "namespace", "System V IPC, message queues", Some(&because("--ipc")))?;
    }
    match guise.umask {
        Some(umask) => line(f, "umask", &format!("{umask:04o}"), Some(&because("--umask"))),
        None => Ok(()),
    }
}

/// `label    text    # reason`, safe for a terminal whatever the names in it.
fn line(f: &mut fmt::Formatter<'_>, label: &str, text: &str, reason: Option<&Reason>) -> fmt::Result {
    let text = printable(text);
    match reason {
        Some(reason) => {
            let reason = printable(&reason.to_string());
            writeln!(f, "{label:<LABEL_WIDTH$} {text:<TEXT_WIDTH$}  # {reason}")
        }
        None => writeln!(f, "{label:<LABEL_WIDTH$} {text}"),
    }
}

/// The changes of one reason on one line, in the order in which the reasons came.
fn env_lines(f: &mut fmt::Formatter<'_>, changes: &[Change]) -> fmt::Result {
    let mut groups: Vec<(&Reason, Vec<String>)> = Vec::new();
    for change in changes {
        // Options of one kind belong together, though each names its variable.
        let word = format!("{}{}", if change.is_set { '+' } else { '-' }, change.name.display());
        match groups.iter_mut().find(|(reason, _)| same_group(reason, &change.reason)) {
            Some((_, words)) => words.push(word),
            None => groups.push((&change.reason, vec![word])),
        }
    }
    for (reason, mut words) in groups {
        words.sort();
        let reason = match reason {
            Reason::Flag(flag) if flag.starts_with("--env ") => Reason::Flag("--env".to_owned()),
            reason => reason.clone(),
        };
        line(f, "env", &words.join(" "), Some(&reason))?;
    }
    Ok(())
}

fn same_group(a: &Reason, b: &Reason) -> bool {
    let is_env_option = |reason: &Reason| matches!(reason, Reason::Flag(flag) if flag.starts_with("--env "));
    a == b || (is_env_option(a) && is_env_option(b))
}

/// A command line that a shell would read as the same words.
fn words(argv: &[impl AsRef<OsStr>]) -> String {
    let quoted: Vec<String> = argv.iter().map(|word| quote(&word.as_ref().display().to_string())).collect();
    quoted.join(" ")
}

fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// The text without control characters, which a name could use to write elsewhere on the terminal.
fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            printable.extend(c.escape_default());
        } else {
            printable.push(c);
        }
    }
    printable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_as_a_shell_reads_them() {
        for (word, expected) in [
            ("solver", "solver"),
            ("--grid=512", "--grid=512"),
            ("", "''"),
            ("a b", "'a b'"),
            ("$HOME", "'$HOME'"),
            ("it's", "'it'\\''s'"),
            ("*", "'*'"),
            ("a\\b", "'a\\b'"),
        ] {
            assert_eq!(quote(word), expected, "{word}");
        }
        assert_eq!(words(&["sh", "-c", "echo hi"]), "sh -c 'echo hi'");
    }

    #[test]
    fn control_characters_are_shown() {
        assert_eq!(printable("a\x1b[2Jb\nc\td\u{9b}"), "a\\u{1b}[2Jb\\nc\\td\\u{9b}");
        assert_eq!(printable("m\u{fc}ller"), "m\u{fc}ller");
    }
}
