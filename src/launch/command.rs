//! What is executed: the request's command, or the image's entrypoint and command as Docker combines them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::plan::ImageFacts;
use super::request::{Request, Verb};
use crate::hint::Hint;
use crate::host::Host;
use crate::image::config::ImageConfig;

/// PATH where the image sets none: what Docker gives, and every distribution has.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// A path with a slash, or a bare name to look up.
    pub program: OsString,
    /// `argv`, the program's name included.
    pub argv: Vec<OsString>,
    /// Who said so: a field of the image config, or none for the request.
    pub image_field: Option<&'static str>,
}

/// There is nothing to execute.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// `run` of an image without entrypoint and command.
    #[error("the image says nothing to run: it has neither entrypoint nor command")]
    NothingToRun,
    /// An empty program name.
    #[error("the program's name is empty")]
    EmptyProgram,
    /// `shell` of an image without one.
    #[error("the image has no shell: none of {}", .tried.join(", "))]
    NoShell {
        /// The paths looked at.
        tried: Vec<String>,
    },
    /// An argument that no program can be given.
    #[error("an argument of the command contains a NUL byte")]
    Nul,
}

impl Hint for CommandError {
    fn hints(&self) -> Vec<String> {
        match self {
            CommandError::NothingToRun => vec!["name the program: hpcrun exec IMAGE PROGRAM".to_owned()],
            CommandError::NoShell { .. } => {
                vec!["run one of its programs instead: hpcrun exec IMAGE PROGRAM".to_owned()]
            }
            CommandError::EmptyProgram | CommandError::Nul => Vec::new(),
        }
    }
}

/// The shells to look for in an image, best first: the user's own, then the usual ones.
pub fn shell_candidates(host: &Host) -> Vec<PathBuf> {
    let own = host.variable("SHELL").map(PathBuf::from).filter(|shell| shell.is_absolute());
    let usual = ["/bin/bash", "/bin/sh"].map(PathBuf::from);
    let mut shells: Vec<PathBuf> = Vec::new();
    for shell in own.into_iter().chain(usual) {
        if !shells.contains(&shell) {
            shells.push(shell);
        }
    }
    shells
}

/// What a request executes: as [`command`] has it, but for its entrypoint or shell.
pub fn of_request(request: &Request, image: &ImageFacts, host: &Host) -> Result<Command, CommandError> {
    let entrypoint = request.entrypoint.as_ref();
    match (&request.verb, entrypoint, &request.shell) {
        // As Docker: the image's command was meant for its own entrypoint.
        (Verb::Run { args }, Some(entrypoint), _) => {
            let program = [entrypoint].into_iter().filter(|program| !program.is_empty());
            let command: Vec<OsString> = program.chain(args).cloned().collect();
            self::command(&Verb::Exec { command }, &image.config, None, host)
        }
        (Verb::Shell, _, Some(shell)) => {
            let verb = Verb::Exec { command: vec![shell.clone().into_os_string()] };
            self::command(&verb, &image.config, None, host)
        }
        (verb, ..) => self::command(verb, &image.config, image.shell.as_deref(), host),
    }
}

/// What to execute. `shell` is the first of [`shell_candidates`] that the image has.
pub fn command(
    verb: &Verb,
    config: &ImageConfig,
    shell: Option<&Path>,
    host: &Host,
) -> Result<Command, CommandError> {
    let (argv, image_field) = match verb {
        Verb::Exec { command } => (command.clone(), None),
        Verb::Run { args } => run(args, config),
        Verb::Shell => (vec![found_shell(shell, host)?], None),
    };
    if argv.iter().any(|argument| argument.as_bytes().contains(&0)) {
        return Err(CommandError::Nul);
    }
    let program = argv.first().cloned().ok_or(CommandError::NothingToRun)?;
    if program.is_empty() {
        return Err(CommandError::EmptyProgram);
    }
    Ok(Command { program, argv, image_field })
}

/// Docker's rule: the entrypoint, then the arguments, which stand in for the image's command.
fn run(args: &[OsString], config: &ImageConfig) -> (Vec<OsString>, Option<&'static str>) {
    let image_args = config.cmd.iter().map(OsString::from);
    let args: Vec<OsString> = if args.is_empty() { image_args.collect() } else { args.to_vec() };
    // `[""]` is how a Dockerfile takes back the entrypoint of the image below.
    let entrypoint: &[String] = match config.entrypoint.as_slice() {
        [only] if only.is_empty() => &[],
        entrypoint => entrypoint,
    };
    let field = match (entrypoint.is_empty(), config.cmd.is_empty()) {
        (false, _) => Some("Entrypoint"),
        (true, false) => Some("Cmd"),
        (true, true) => None,
    };
    (entrypoint.iter().map(OsString::from).chain(args).collect(), field)
}

fn found_shell(shell: Option<&Path>, host: &Host) -> Result<OsString, CommandError> {
    let tried = || shell_candidates(host).iter().map(|path| path.display().to_string()).collect();
    shell.map(OsString::from).ok_or_else(|| CommandError::NoShell { tried: tried() })
}

/// The directories of a PATH. Empty and relative ones mean the working directory, in which nobody expects to find a
/// program of the image: they are left out.
pub fn search_path(path: Option<&OsStr>) -> Vec<PathBuf> {
    let path = path.filter(|path| !path.is_empty()).unwrap_or(OsStr::new(DEFAULT_PATH));
    let parts = path.as_bytes().split(|byte| *byte == b':').map(|part| Path::new(OsStr::from_bytes(part)));
    let mut directories: Vec<PathBuf> = Vec::new();
    for part in parts.filter(|part| part.is_absolute()) {
        if !directories.iter().any(|directory| directory == part) {
            directories.push(part.to_owned());
        }
    }
    directories
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn words(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn run_is_dockers() {
        // Entrypoint, command, arguments; argv.
        let cases: &[[&[&str]; 4]] = &[
            [&["ep"], &["cmd"], &[], &["ep", "cmd"]],
            [&["ep"], &["cmd"], &["a", "b"], &["ep", "a", "b"]],
            [&["ep", "-x"], &[], &["a"], &["ep", "-x", "a"]],
            [&["ep"], &[], &[], &["ep"]],
            [&[], &["cmd", "-y"], &[], &["cmd", "-y"]],
            [&[], &["cmd"], &["a"], &["a"]],
            [&[], &[], &["a", "b"], &["a", "b"]],
            [&["/bin/sh", "-c", "echo $0"], &["x y"], &[], &["/bin/sh", "-c", "echo $0", "x y"]],
            [&["ep"], &["cmd"], &[""], &["ep", ""]],
            [&[""], &["cmd"], &[], &["cmd"]],
            [&[""], &[], &["a"], &["a"]],
            [&["ep"], &["cmd"], &["--", "-h"], &["ep", "--", "-h"]],
        ];
        for [entrypoint, cmd, args, argv] in cases {
            let config =
                ImageConfig { entrypoint: strings(entrypoint), cmd: strings(cmd), ..ImageConfig::default() };
            let verb = Verb::Run { args: words(args) };
            let found = command(&verb, &config, None, &Host::default()).unwrap();
            assert_eq!(found.argv, words(argv));
            assert_eq!(Some(&found.program), found.argv.first());
        }
    }

    #[test]
    fn exec_ignores_the_entrypoint() {
        let config =
            ImageConfig { entrypoint: strings(&["ep"]), cmd: strings(&["cmd"]), ..ImageConfig::default() };
        let verb = Verb::Exec { command: words(&["./solver", "--grid", "512"]) };
        let found = command(&verb, &config, None, &Host::default()).unwrap();
        assert_eq!(found.program, "./solver");
        assert_eq!(found.argv, words(&["./solver", "--grid", "512"]));
        assert_eq!(found.image_field, None);
    }

    #[test]
    fn nothing_to_execute() {
        let (none, host) = (ImageConfig::default(), Host::default());
        let error = |verb: Verb| command(&verb, &none, None, &host).unwrap_err();
        assert_eq!(error(Verb::Run { args: Vec::new() }), CommandError::NothingToRun);
        assert_eq!(error(Verb::Run { args: words(&[""]) }), CommandError::EmptyProgram);
        assert_eq!(error(Verb::Exec { command: Vec::new() }), CommandError::NothingToRun);
        assert_eq!(error(Verb::Exec { command: words(&["", "x"]) }), CommandError::EmptyProgram);
        assert_eq!(error(Verb::Exec { command: words(&["x", "a\0b"]) }), CommandError::Nul);
        assert_eq!(error(Verb::Shell).to_string(), "the image has no shell: none of /bin/bash, /bin/sh");
    }

    #[test]
    fn shells() {
        let with = |shell: &str| {
            let environment = vec![("SHELL".into(), shell.into())];
            shell_candidates(&Host { environment, ..Host::default() })
        };
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(with("/bin/zsh"), paths(&["/bin/zsh", "/bin/bash", "/bin/sh"]));
        assert_eq!(with("/bin/bash"), paths(&["/bin/bash", "/bin/sh"]));
        assert_eq!(with("zsh"), paths(&["/bin/bash", "/bin/sh"]));
        assert_eq!(with(""), paths(&["/bin/bash", "/bin/sh"]));
        let found =
            command(&Verb::Shell, &ImageConfig::default(), Some(Path::new("/bin/sh")), &Host::default());
        assert_eq!(found.unwrap().argv, words(&["/bin/sh"]));
    }

    #[test]
    fn search_paths() {
        for (path, expected) in [
            (Some("/a:/b"), "/a:/b"),
            (Some("/a::/b:"), "/a:/b"),
            (Some(".:/a:bin:../x"), "/a"),
            (Some("/a:/a:/b:/a"), "/a:/b"),
            (Some(":"), ""),
            (Some(""), DEFAULT_PATH),
            (None, DEFAULT_PATH),
        ] {
            let found = search_path(path.map(OsStr::new));
            let expected: Vec<PathBuf> =
                expected.split(':').filter(|p| !p.is_empty()).map(PathBuf::from).collect();
            assert_eq!(found, expected, "{path:?}");
        }
    }
}
