//! What the user asked for, parsed and not yet judged.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use crate::hint::Hint;
use crate::policy::bind_spec::{BindSpec, BindSpecError};
use crate::policy::rules::Share;

/// One launch as asked for on the command line.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// What to run.
    pub verb: Verb,
    /// `--bind`, in order.
    pub binds: Vec<BindOption>,
    /// `--env`, in order; the last one of a name counts.
    pub env: Vec<EnvOption>,
    /// `--cwd`.
    pub cwd: Option<PathBuf>,
    /// `--cleanenv`: only the host variables that say who and where the job is.
    pub clean_env: bool,
    /// The home directory.
    pub home: HomeWish,
    /// `--share`; none means as the site says.
    pub share: Option<Share>,
}

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verb {
    /// `hpcrun exec IMAGE COMMAND...`: this command, whatever the image's entrypoint.
    Exec {
        /// Program and arguments.
        command: Vec<OsString>,
    },
    /// `hpcrun run IMAGE [ARG...]`: what the image was made to run.
    Run {
        /// Arguments, which take the place of the image's own.
        args: Vec<OsString>,
    },
    /// `hpcrun shell IMAGE`.
    Shell,
}

impl Default for Verb {
    fn default() -> Verb {
        Verb::Run { args: Vec::new() }
    }
}

/// What the user wants of the home directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum HomeWish {
    /// As the site says.
    #[default]
    SiteDefault,
    /// `--no-home`
    LeaveOut,
}

/// One `--bind`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindOption {
    /// As typed, for messages.
    pub typed: OsString,
    /// Parsed.
    pub spec: BindSpec,
}

/// One `--env`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvOption {
    /// The variable's name.
    pub name: OsString,
    /// Its value; none means the host's.
    pub value: Option<OsString>,
}

/// An option's value that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// `--bind`
    #[error("cannot understand --bind {typed:?}: {mistake}")]
    Bind {
        /// As typed.
        typed: OsString,
        /// What is wrong with it. Part of the message, not its cause: it is about the same few characters.
        mistake: BindSpecError,
    },
    /// `--env`
    #[error("cannot understand --env {typed:?}: {why}")]
    Env {
        /// As typed.
        typed: OsString,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl Hint for RequestError {
    fn hints(&self) -> Vec<String> {
        match self {
            RequestError::Bind { mistake, .. } => vec![mistake.hint()],
            RequestError::Env { .. } => vec!["write NAME=VALUE, or NAME to pass the host's value".to_owned()],
        }
    }
}

impl BindOption {
    /// Parses `SRC[:DST[:ro|rw]]`; the escapes are those of [`BindSpec::parse`].
    pub fn parse(typed: &OsStr) -> Result<BindOption, RequestError> {
        let error = |mistake| RequestError::Bind { typed: typed.to_owned(), mistake };
        let spec = BindSpec::parse(typed).map_err(error)?;
        // The policy's form knows variables; here a dollar sign is a dollar sign.
        if spec.destination.as_ref().is_some_and(|path| !path.as_bytes().starts_with(b"/")) {
            return Err(error(BindSpecError::RelativeDestination));
        }
        Ok(BindOption { typed: typed.to_owned(), spec })
    }
}

impl EnvOption {
    /// Parses `NAME[=VALUE]`. The value is taken as it is: no quotes, no variables, any bytes but NUL.
    pub fn parse(typed: &OsStr) -> Result<EnvOption, RequestError> {
        let error = |why| RequestError::Env { typed: typed.to_owned(), why };
        let bytes = typed.as_bytes();
        if bytes.contains(&0) {
            return Err(error("it contains a NUL byte"));
        }
        let mut parts = bytes.splitn(2, |byte| *byte == b'=');
        let name = parts.next().unwrap_or_default();
        if name.is_empty() {
            return Err(error("the name is empty"));
        }
        if name.iter().any(|byte| byte.is_ascii_whitespace() || byte.is_ascii_control()) {
            return Err(error("the name holds white space"));
        }
        let value = parts.next().map(|value| OsString::from_vec(value.to_vec()));
        Ok(EnvOption { name: OsString::from_vec(name.to_vec()), value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn env_options() {
        for (typed, name, value) in [
            ("A=1", "A", Some("1")),
            ("A=", "A", Some("")),
            ("A", "A", None),
            ("A==", "A", Some("=")),
            ("A=b=c", "A", Some("b=c")),
            ("A=a b $HOME `x` \"q\"", "A", Some("a b $HOME `x` \"q\"")),
            ("A=x\ny", "A", Some("x\ny")),
            ("BASH_FUNC_f%%=() { :; }", "BASH_FUNC_f%%", Some("() { :; }")),
            ("a.b-c=1", "a.b-c", Some("1")),
            ("1=1", "1", Some("1")),
        ] {
            let expected = EnvOption { name: name.into(), value: value.map(Into::into) };
            assert_eq!(EnvOption::parse(OsStr::new(typed)), Ok(expected), "{typed:?}");
        }
        let raw = EnvOption::parse(OsStr::from_bytes(b"A=\xff\xfe")).unwrap();
        assert_eq!(raw.value.unwrap().as_bytes(), b"\xff\xfe");
    }

    #[test]
    fn env_mistakes() {
        for typed in ["", "=", "=x", "A B=1", "A\n=1", "A\t", "A=\0", "\0", " A=1", "\x1b=1"] {
            let error = EnvOption::parse(OsStr::new(typed)).unwrap_err();
            assert!(error.to_string().starts_with("cannot understand --env"), "{typed:?}");
            assert_eq!(error.hints().len(), 1);
        }
    }

    #[test]
    fn bind_options_keep_what_was_typed() {
        let bind = BindOption::parse(OsStr::new("/a:/b:ro")).unwrap();
        assert_eq!(bind.typed, "/a:/b:ro");
        assert!(bind.spec.read_only);
        let error = BindOption::parse(OsStr::new("/a:$HOME")).unwrap_err();
        let expected = "cannot understand --bind \"/a:$HOME\": the destination must be an absolute path";
        assert_eq!(error.to_string(), expected);
        let error = BindOption::parse(OsStr::new("/a:ro")).unwrap_err();
        assert_eq!(error.hints(), ["write SRC::ro to bind a path onto itself"]);
    }
}
