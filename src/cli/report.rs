//! How a failure reaches the user: one line with the chain of causes, then hints, then the exit status.

use std::error::Error;
use std::fmt::{Display, Write as _};
use std::io::Write as _;

use crate::hint::Hint;
use crate::policy::Refusal;

/// hpcrun failed before the job began.
pub(crate) const STATUS_FAILED: u8 = 125;
/// The site policy says no.
pub(crate) const STATUS_REFUSED: u8 = 122;

/// A failed verb, ready to be printed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Exit status.
    pub(crate) status: u8,
    /// `what we were doing: why: cause`.
    message: String,
    hints: Vec<String>,
    /// The rule of the site's that refused.
    rule: Option<String>,
    /// Whether all that is wrong is that a source does not answer.
    is_silence: bool,
}

impl Failure {
    /// A failure of hpcrun itself, status 125.
    pub(crate) fn new(error: &(impl Error + Hint + 'static)) -> Failure {
        Failure { hints: error.hints(), ..Failure::plain(chain(error)) }
    }

    /// A failure without a typed cause.
    pub(crate) fn plain(message: impl Into<String>) -> Failure {
        Failure {
            status: STATUS_FAILED,
            message: message.into(),
            hints: Vec::new(),
            rule: None,
            is_silence: false,
        }
    }

    /// A wrong command line, from what clap would print of it: `error: ...`, then paragraphs with a tip or the usage.
    pub(crate) fn usage(rendered: &str) -> Failure {
        let mut paragraphs = rendered
            .split("\n\n")
            .flat_map(|text| text.split("\n  tip: "))
            .map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "));
        let message = paragraphs.next().unwrap_or_default();
        let hints = paragraphs.filter(|hint| !hint.is_empty()).map(|hint| {
            let hint = hint.strip_prefix("tip: ").unwrap_or(&hint);
            let mut letters = hint.chars();
            let first = letters.next().map(|letter| letter.to_ascii_lowercase());
            let hint: String = first.into_iter().chain(letters).collect();
            // `[ARG]...` keeps its dots, a sentence does not.
            hint.strip_suffix("'.").map_or_else(|| hint.clone(), |sentence| format!("{sentence}'"))
        });
        let hints = hints.collect();
        let message = message.strip_prefix("error: ").unwrap_or(&message).to_owned();
        Failure { hints, ..Failure::plain(message) }
    }

    /// The same with what was being done before it.
    pub(crate) fn within(self, context: &str) -> Failure {
        Failure { message: format!("{context}: {}", self.message), ..self }
    }

    /// The same with another exit status.
    pub(crate) fn with_status(self, status: u8) -> Failure {
        Failure { status, ..self }
    }

    /// The same with one more hint.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hints.push(hint.into());
        self
    }

    /// The site says no.
    pub(crate) fn refused(refusal: &Refusal) -> Failure {
        Failure::new(refusal).refused_by(&refusal.rule)
    }

    /// The same, refused by this rule.
    pub(crate) fn refused_by(self, rule: &dyn Display) -> Failure {
        Failure { status: STATUS_REFUSED, rule: Some(rule.to_string()), ..self }
    }

    /// The same, and whether all that is wrong is that a source does not answer.
    pub(crate) fn of_silence(self, is_silence: bool) -> Failure {
        Failure { is_silence, ..self }
    }

    /// Whether all that is wrong is that a source does not answer.
    pub(crate) fn is_silence(&self) -> bool {
        self.is_silence
    }

    /// The rule of the site's that refused, if one did.
    pub(crate) fn rule(&self) -> Option<&str> {
        self.rule.as_deref()
    }

    /// What went wrong, without hints.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// What may help, a line each.
    pub(crate) fn hints(&self) -> &[String] {
        &self.hints
    }

    /// Prints `hpcrun: message` and the hints to standard error.
    pub(crate) fn print(&self) {
        let mut text = format!("hpcrun: {}\n", printable(&self.message));
        for hint in &self.hints {
            let _ = writeln!(text, "hint: {}", printable(hint));
        }
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
    }
}

/// This level and its causes, joined by colons.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = describe(error);
    let mut cause = error.source();
    while let Some(error) = cause {
        let level = describe(error);
        if !text.ends_with(&level) {
            let _ = write!(text, ": {level}");
        }
        cause = error.source();
    }
    text
}

/// One level; an I/O error in the words of the kernel's, `No such file or directory (ENOENT)`.
fn describe(error: &(dyn Error + 'static)) -> String {
    match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error) {
        Some(number) => {
            let errno = nix::errno::Errno::from_raw(number);
            format!("{} ({errno:?})", errno.desc())
        }
        None => error.to_string(),
    }
}

/// Control characters of names that came from outside must not reach the terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c })
        .collect::<String>()
        .replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read {path}")]
    struct Read {
        path: &'static str,
        source: std::io::Error,
    }

    impl Hint for Read {
        fn hints(&self) -> Vec<String> {
            vec!["look again".into()]
        }
    }

    #[test]
    fn joins_the_chain_with_the_kernels_words() {
        let error = Read { path: "/x", source: std::io::Error::from_raw_os_error(libc::ENOENT) };
        let failure = Failure::new(&error);
        assert_eq!(failure.message, "cannot read /x: No such file or directory (ENOENT)");
        assert_eq!(failure.hints, ["look again"]);
        assert_eq!(failure.status, STATUS_FAILED);
    }

    #[test]
    fn a_wrong_command_line_is_one_line_and_hints() {
        let failure = Failure::usage(
            "error: unexpected argument '--x' found\n\n  tip: to pass '--x' as a value, use '-- --x'\n\nUsage: hpcrun exec \
             IMAGE\n\nFor more information, try '--help'.\n",
        );
        assert_eq!(failure.message, "unexpected argument '--x' found");
        let hints = [
            "to pass '--x' as a value, use '-- --x'",
            "usage: hpcrun exec IMAGE",
            "for more information, try '--help'",
        ];
        assert_eq!(failure.hints, hints);
        let misspelt = Failure::usage(
            "error: no '--bnd'\n\n  tip: there is '--bind'\n  tip: use '-- --bnd'\n\nUsage: x\n",
        );
        assert_eq!(misspelt.hints, ["there is '--bind'", "use '-- --bnd'", "usage: x"]);
        let missing = Failure::usage("error: these were not provided:\n  <SOURCE>\n  <DEST>\n\n");
        assert_eq!(missing.message, "these were not provided: <SOURCE> <DEST>");
        assert_eq!(missing.hints, [""; 0]);
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\nc"), "a\u{fffd}[2Jb c");
    }
}
