//! Credential helpers: the programs `docker-credential-NAME` that keep logins in a keyring, by docker's protocol.
//!
//! The verb is the argument, the rest goes through standard input and output, which must not reach a terminal or a log.
//! No shell is involved, and a helper that hangs, for a keyring that nobody can unlock on this node, is ended.

use std::io::{self, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::credentials::Login;
use super::error::printable;
use crate::hint::Hint;

/// A keyring may have to be unlocked by a person.
const PATIENCE: Duration = Duration::from_secs(30);
const MAX_ANSWER_BYTES: u64 = 1 << 20;

/// A helper, not known to exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialHelper {
    program: String,
    patience: Duration,
}

/// Why a helper did not do what it was asked for. Holds no secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HelperError {
    /// It would not be a program of `PATH`.
    #[error("credential helper {0:?} has letters that no helper's name has")]
    Name(String),
    /// It cannot be started.
    #[error("cannot run {program}")]
    Start {
        /// `docker-credential-NAME`
        program: String,
        /// The cause.
        source: io::Error,
    },
    /// It takes too long.
    #[error("{program} did not end within {} s", .patience.as_secs_f32())]
    Hangs {
        /// `docker-credential-NAME`
        program: String,
        /// How long it had.
        patience: Duration,
    },
    /// It says that it failed.
    #[error("{program} failed with {status}{}", if .message.is_empty() { String::new() } else { format!(": {message}") })]
    Failed {
        /// `docker-credential-NAME`
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// Its own words.
        message: String,
    },
    /// Its answer is not what the protocol asks for.
    #[error("{program} did not answer with a login in JSON")]
    Garbage {
        /// `docker-credential-NAME`
        program: String,
    },
}

impl Hint for HelperError {
    fn hints(&self) -> Vec<String> {
        match self {
            HelperError::Start { program, source } if source.kind() == io::ErrorKind::NotFound => {
                vec![format!(
                    "{program} is not in PATH; credHelpers, credsStore (auth file) or credential-helpers (registries.conf) name it"
                )]
            }
            _ => Vec::new(),
        }
    }
}

impl CredentialHelper {
    /// The helper `name`, the program `docker-credential-NAME`.
    pub fn new(name: &str) -> Result<CredentialHelper, HelperError> {
        let is_letter = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if name.is_empty() || !name.bytes().all(is_letter) {
            return Err(HelperError::Name(name.to_owned()));
        }
        Ok(CredentialHelper { program: format!("docker-credential-{name}"), patience: PATIENCE })
    }

    /// Its login for `server`; none if it has none.
    pub fn get(&self, server: &str) -> Result<Option<Login>, HelperError> {
        let (status, answer) = self.run("get", server)?;
        if !status.success() {
            return if is_not_found(&answer) { Ok(None) } else { Err(self.failed(status, &answer)) };
        }
        let garbage = || HelperError::Garbage { program: self.program.clone() };
        let document: Value = serde_json::from_slice(&answer).map_err(|_| garbage())?;
        let text = |key: &str| document.get(key).and_then(Value::as_str).ok_or_else(garbage);
        Ok(Login::new(text("Username")?, text("Secret")?))
    }

    /// Has it keep a login for `server`.
    pub fn store(&self, server: &str, user: &str, password: &str) -> Result<(), HelperError> {
        let login = json!({ "ServerURL": server, "Username": user, "Secret": password });
        let (status, answer) = self.run("store", &login.to_string())?;
        if status.success() { Ok(()) } else { Err(self.failed(status, &answer)) }
    }

    /// Has it forget its login for `server`; false if it knows that it had none.
    pub fn erase(&self, server: &str) -> Result<bool, HelperError> {
        let (status, answer) = self.run("erase", server)?;
        match status.success() {
            true => Ok(true),
            false if is_not_found(&answer) => Ok(false),
            false => Err(self.failed(status, &answer)),
        }
    }

    fn failed(&self, status: ExitStatus, answer: &[u8]) -> HelperError {
        let message = printable(&String::from_utf8_lossy(answer));
        // What looks like a login is not repeated, whatever the status says.
        let message = if message.contains('{') { String::new() } else { message };
        HelperError::Failed { program: self.program.clone(), status, message }
    }

    /// Runs it to its end with `input`; gives what it wrote.
    fn run(&self, verb: &str, input: &str) -> Result<(ExitStatus, Vec<u8>), HelperError> {
        let deadline = Instant::now().checked_add(self.patience);
        let left = || deadline.map_or(Duration::ZERO, |end| end.saturating_duration_since(Instant::now()));
        let failed = |source| HelperError::Start { program: self.program.clone(), source };
        let mut child = Command::new(&self.program)
            .arg(verb)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let answer = converse(&mut child, input);
        let hangs = |mut child: Child| {
            let _ = child.kill();
            let _ = child.wait();
            HelperError::Hangs { program: self.program.clone(), patience: self.patience }
        };
        // It ends its output first; a process that it left behind may hold it open for ever.
        let Ok(answer) = answer.recv_timeout(left()) else { return Err(hangs(child)) };
        loop {
            match child.try_wait().map_err(failed)? {
                Some(status) => return Ok((status, answer)),
                None if left().is_zero() => return Err(hangs(child)),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

/// Writes `input` and reads the output in threads of their own, so that neither side can hold us up.
fn converse(child: &mut Child, input: &str) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let input = input.as_bytes().to_vec();
    std::thread::spawn(move || {
        // A helper may answer without reading.
        let _ = stdin.map(|mut stdin| stdin.write_all(&input));
    });
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stdout.map(|stdout| stdout.take(MAX_ANSWER_BYTES).read_to_end(&mut bytes));
        let _ = sender.send(bytes);
    });
    receiver
}

/// The protocol's words for "none".
fn is_not_found(answer: &[u8]) -> bool {
    String::from_utf8_lossy(answer).contains("credentials not found")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// Runs `act` with the helper that `script` is; tries again while another test's fork holds the script open.
    fn with_script<T>(
        script: &str,
        act: impl Fn(&CredentialHelper) -> Result<T, HelperError>,
    ) -> Result<T, String> {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("docker-credential-test");
        let directory = scratch.path().display();
        std::fs::write(&path, format!("#!/bin/sh\ncd {directory}\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let program = path.to_str().unwrap().to_owned();
        let helper = CredentialHelper { program, patience: Duration::from_secs(10) };
        for _ in 0..100 {
            match act(&helper) {
                Err(HelperError::Start { source, .. })
                    if source.kind() == io::ErrorKind::ExecutableFileBusy =>
                {
                    std::thread::sleep(Duration::from_millis(20));
                }
                result => return result.map_err(|error| error.to_string()),
            }
        }
        panic!("busy")
    }

    fn get(script: &str) -> Result<Option<Login>, String> {
        with_script(script, |helper| helper.get("r.org"))
    }

    #[test]
    fn names() {
        for name in ["", "a b", "../x", "a/b", "a;b", "$(x)", "a\nb", "\u{e9}"] {
            assert!(matches!(CredentialHelper::new(name), Err(HelperError::Name(_))), "{name:?}");
        }
        for name in ["secretservice", "ecr-login", "a_b.c"] {
            assert_eq!(CredentialHelper::new(name).unwrap().program, format!("docker-credential-{name}"));
        }
    }

    #[test]
    fn logins() {
        let login = |user: &str| Some(Login::Password { user: user.into(), password: "s".into() });
        let echo = r#"test "$1" = get && read -r server; printf '{"Username":"%s","Secret":"s"}' "$server""#;
        assert_eq!(get(echo).unwrap(), login("r.org"));
        let without_reading = r#"printf '{"ServerURL":"x","Username":"me","Secret":"s"}'"#;
        assert_eq!(get(without_reading).unwrap(), login("me"));
        let token = r#"printf '{"Username":"<token>","Secret":"t"}'"#;
        assert_eq!(get(token).unwrap(), Some(Login::IdentityToken("t".into())));
        assert_eq!(get(r#"printf '{"Username":"","Secret":""}'"#).unwrap(), None);
        assert_eq!(get("echo credentials not found in native keychain; exit 1").unwrap(), None);
    }

    #[test]
    fn failures() {
        let error = get("echo no keyring here; exit 3").unwrap_err();
        assert!(error.contains("exit status: 3: no keyring here"), "{error}");
        let error = get(r#"echo '{"Secret":"canary"}'; exit 3"#).unwrap_err();
        assert!(!error.contains("canary"), "{error}");
        for garbage in ["true", "echo canary", "echo '[1]'", r#"echo '{"Username":null,"Secret":7}'"#] {
            let error = get(garbage).unwrap_err();
            assert!(error.contains("did not answer with a login") && !error.contains("canary"), "{error}");
        }
        let absent = CredentialHelper::new("surely-absent").unwrap().get("r.org").unwrap_err();
        assert!(absent.to_string().contains("cannot run docker-credential-surely-absent"));
        assert!(absent.hints().join("").contains("not in PATH"));
    }

    #[test]
    fn a_helper_that_hangs_is_ended() {
        for script in ["exec sleep 60", "sleep 60 & exit 0", "exec >&-; exec sleep 60"] {
            let error = with_script(script, |helper| {
                CredentialHelper { patience: Duration::from_millis(300), ..helper.clone() }.get("r.org")
            });
            assert!(error.as_ref().is_err_and(|error| error.contains("did not end")), "{script}: {error:?}");
        }
    }

    #[test]
    fn a_flood_is_cut() {
        let error = get("exec cat /dev/zero").unwrap_err();
        assert!(error.contains("docker-credential-test"), "{error}");
    }

    #[test]
    fn storing_and_erasing() {
        let stored = with_script(r#"test "$1" = store && cat > kept"#, |helper| {
            helper.store("r.org", "me", "a\"b\nc")?;
            let kept = std::path::Path::new(&helper.program).with_file_name("kept");
            Ok(std::fs::read_to_string(kept).unwrap())
        });
        let stored: Value = serde_json::from_str(&stored.unwrap()).unwrap();
        assert_eq!(stored, json!({ "ServerURL": "r.org", "Username": "me", "Secret": "a\"b\nc" }));
        let erase = |script: &str| with_script(script, |helper| helper.erase("r.org"));
        assert_eq!(erase(r#"test "$1" = erase && grep -qx r.org"#), Ok(true));
        assert_eq!(erase("echo credentials not found in native keychain; exit 1"), Ok(false));
        assert!(erase("exit 1").is_err());
    }
}
