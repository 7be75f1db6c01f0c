//! What the user asked for, parsed and not yet judged.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::gpu::GpuRequest;
use crate::hint::Hint;
use crate::policy::bind_spec::{BindSpec, BindSpecError};
use crate::policy::rules::Share;

/// One launch as asked for on the command line.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// What to run.
    pub verb: Verb,
    /// `--bind` and `--mount`, in order.
    pub binds: Vec<BindOption>,
    /// What the user says of variables, weakest first; the last one of a name counts.
    pub env: Vec<EnvOption>,
    /// `--cwd`.
    pub cwd: Option<PathBuf>,
    /// `--cleanenv`: only the host variables that say who and where the job is.
    pub clean_env: bool,
    /// The home directory.
    pub home: HomeWish,
    /// `--share`; none means as the site says.
    pub share: Option<Share>,
    /// The option that asks for private directories in place of the host's: `--contain`.
    pub contain: Option<&'static str>,
    /// `--no-mount`.
    pub left_out: Vec<LeftOut>,
    /// `--scratch`: directories of the new root that begin empty.
    pub scratch: Vec<ScratchOption>,
    /// `--workdir`: the host directory that keeps what would else be in memory.
    pub workdir: Option<PathBuf>,
    /// Whether the root can be written to.
    pub writable: Writable,
    /// `--fakeroot`: whether the user is uid 0 inside.
    pub root_mapped: bool,
    /// Namespaces beyond those of user and mounts.
    pub isolation: Isolation,
    /// The job's umask; none means the caller's.
    pub umask: Option<u32>,
    /// `--entrypoint`, in place of the image's entrypoint and command; an empty one is none.
    pub entrypoint: Option<OsString>,
    /// `--module`: modules of the site.
    pub modules: Vec<OsString>,
    /// `--shell`: a program of the image.
    pub shell: Option<PathBuf>,
    /// `--gpu` and its kin.
    pub gpu: GpuRequest,
    /// `--mpi`; none means as the site says.
    pub mpi: Option<MpiWish>,
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

/// What `--mpi` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MpiWish {
    /// Warn where the image's MPI does not fit the launcher.
    Check,
    /// Do not start then.
    Strict,
    /// Look at nothing.
    Off,
    /// Use this machine's MPI in place of the image's.
    Host,
}

/// What the user wants of the home directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum HomeWish {
    /// As the site says.
    #[default]
    SiteDefault,
    /// `--no-home`
    LeaveOut,
    /// `--home SRC[:DST]`
    At(BindOption),
}

/// What `--no-mount` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeftOut {
    /// `/tmp`, and `/var/tmp` of `--contain`.
    Tmp,
    /// The working directory.
    Cwd,
    /// `/dev`, `/proc` or `/sys`.
    System(&'static str),
    /// The site's optional binds.
    SiteBinds,
    /// Whatever would be at this path of the new root.
    Path(PathBuf),
}

/// Whether and where the job can write to the root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Writable {
    /// `--overlay`, lowest first.
    pub overlays: Vec<OverlayOption>,
    /// `--writable-tmpfs[=SIZE]`: what is written stays in memory, and of which so many bytes.
    pub tmpfs: Option<Option<u64>>,
}

/// One `--overlay DIR[:ro]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlayOption {
    /// Host directory, as typed.
    pub directory: PathBuf,
    /// Whether it is only read.
    pub read_only: bool,
}

/// Namespaces of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Isolation {
    /// `--pid`: of processes.
    pub processes: Option<Init>,
    /// `--ipc`: of System V IPC and POSIX message queues.
    pub ipc: bool,
}

/// Who is process 1 in a process namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// hpcrun, which passes signals on and reaps orphans.
    Own,
    /// `--no-init`: the job.
    Job,
}

/// One `--scratch DIR`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScratchOption {
    /// Directory of the new root, as typed.
    pub directory: PathBuf,
    /// Whether it came from the environment, and so gives way to an option.
    pub is_ambient: bool,
}

/// One `--bind` or `--mount`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindOption {
    /// The option or variable that it came by: `--bind`.
    pub option: String,
    /// As typed, for messages.
    pub typed: OsString,
    /// Parsed.
    pub spec: BindSpec,
    /// Whether the source is an image file whose tree is to be seen, rather than the file.
    pub is_image: bool,
    /// Whether it came from the environment, and so gives way to an option.
    pub is_ambient: bool,
}

/// What the user says of one variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvOption {
    /// The option or variable that says so: `--env`.
    pub option: String,
    /// The variable's name.
    pub name: OsString,
    /// Its value; none means the host's.
    pub value: Option<OsString>,
    /// What becomes of the value that is there.
    pub joining: Joining,
}

/// How a value meets the one that is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Joining {
    /// It takes its place.
    #[default]
    Replace,
    /// It goes before it, with a colon between.
    Prepend,
    /// It goes behind it, with a colon between.
    Append,
}

/// An option's value that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// `--bind`
    #[error("cannot understand {option} {typed:?}: {mistake}")]
    Bind {
        /// The option or variable.
        option: String,
        /// As typed.
        typed: OsString,
        /// What is wrong with it. Part of the message, not its cause: it is about the same few characters.
        mistake: BindSpecError,
    },
    /// `--mount`
    #[error("cannot understand --mount {typed:?}: {why}")]
    Mount {
        /// As typed.
        typed: OsString,
        /// What is wrong with it.
        why: String,
    },
    /// `--env`
    #[error("cannot understand {option} {typed:?}: {why}")]
    Env {
        /// The option or variable.
        option: String,
        /// As typed.
        typed: OsString,
        /// What is wrong with it.
        why: &'static str,
    },
    /// An image file where the name of a variable belongs.
    #[error("{typed:?} is not the name of a variable")]
    ImageAsName {
        /// As typed.
        typed: OsString,
    },
    /// A value of another option.
    #[error("cannot understand {option} {typed:?}: {why}")]
    Value {
        /// The option or variable.
        option: String,
        /// As typed.
        typed: OsString,
        /// What is wrong with it.
        why: String,
        /// How to write it.
        usage: &'static str,
    },
}

impl Hint for RequestError {
    fn hints(&self) -> Vec<String> {
        match self {
            RequestError::Bind { mistake, .. } => vec![mistake.hint()],
            RequestError::Mount { .. } => {
                vec![
                    "write type=bind,src=SRC,dst=DST[,ro], and quotes around a field with a comma".to_owned(),
                ]
            }
            RequestError::Env { .. } => vec!["write NAME=VALUE, or NAME to pass the host's value".to_owned()],
            RequestError::ImageAsName { .. } => {
                vec!["-e is --env NAME[=VALUE], as in docker; Apptainer's -e is --cleanenv here".to_owned()]
            }
            RequestError::Value { usage, .. } => vec![(*usage).to_owned()],
        }
    }
}

impl EnvOption {
    /// Parses `NAME[=VALUE]`. The value is taken as it is: no quotes, no variables, any bytes but NUL.
    pub fn parse(typed: &OsStr) -> Result<EnvOption, RequestError> {
        EnvOption::parse_from("--env", typed)
    }

    /// The same for another option or variable.
    pub fn parse_from(option: &str, typed: &OsStr) -> Result<EnvOption, RequestError> {
        let error = |why| RequestError::Env { option: option.to_owned(), typed: typed.to_owned(), why };
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
        if value.is_none() && is_image_name(name) {
            return Err(RequestError::ImageAsName { typed: typed.to_owned() });
        }
        Ok(EnvOption::new(option, OsStr::from_bytes(name), value))
    }

    /// A variable that takes the place of what is there.
    pub fn new(option: &str, name: &OsStr, value: Option<OsString>) -> EnvOption {
        EnvOption { option: option.to_owned(), name: name.to_owned(), value, joining: Joining::Replace }
    }
}

/// Whether what should be the name of a variable can only be an image.
fn is_image_name(name: &[u8]) -> bool {
    name.contains(&b'/')
        || [&b".sqsh"[..], b".sif", b".squashfs", b".img"].iter().any(|end| name.ends_with(end))
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
            let expected = EnvOption::new("--env", OsStr::new(name), value.map(Into::into));
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
    fn an_image_is_no_variable() {
        for typed in ["a.sqsh", "./x", "/images/a.sif"] {
            let error = EnvOption::parse(OsStr::new(typed)).unwrap_err();
            assert!(error.hints().join("").contains("--cleanenv"), "{typed}");
        }
        assert!(EnvOption::parse(OsStr::new("a/b=1")).is_ok());
    }
}
