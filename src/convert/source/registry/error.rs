//! Why a registry did not give what was asked for. No variant holds a credential, a token or the query of a URL.

use std::io;
use std::time::Duration;

use super::registries_conf::Place;
use crate::hint::Hint;

/// Why a registry did not give what was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The registry's name cannot be made into a URL.
    #[error("{0:?} is not a host that can be reached")]
    BadHost(String),
    /// The host name does not resolve.
    #[error("host {host} is unknown")]
    UnknownHost {
        /// Host and port.
        host: String,
    },
    /// No connection, or it broke.
    #[error("cannot reach {host}")]
    Unreachable {
        /// Host and port.
        host: String,
        /// The cause.
        source: io::Error,
    },
    /// The TLS handshake failed.
    #[error("cannot trust {host}: {why}")]
    Certificate {
        /// Host and port.
        host: String,
        /// What the TLS library says.
        why: String,
    },
    /// The server's word was not HTTP, or cannot be made sense of.
    #[error("{host} gave no usable answer: {why}")]
    Protocol {
        /// Host and port.
        host: String,
        /// What is wrong.
        why: String,
    },
    /// No answer in time.
    #[error("{host} did not answer in time ({what})")]
    Timeout {
        /// Host and port.
        host: String,
        /// What was waited for.
        what: &'static str,
    },
    /// Login needed, or the repository does not exist: registries do not tell which.
    #[error("{host} does not let {who} pull {repository}{}", shown(.message))]
    Unauthorised {
        /// Host and port.
        host: String,
        /// Repository.
        repository: String,
        /// `you` or `anonymous users`.
        who: &'static str,
        /// The registry's own words.
        message: String,
    },
    /// A login that was to be kept is not taken.
    #[error("{host} does not take the login{}", shown(.message))]
    LoginRefused {
        /// The registry.
        host: String,
        /// Its own words, or ours of what it wants.
        message: String,
    },
    /// There is no such thing.
    #[error("{host} has no {what}{}", shown(.message))]
    NotFound {
        /// Host and port.
        host: String,
        /// `manifest latest of library/debian`.
        what: String,
        /// The registry's own words.
        message: String,
    },
    /// Too many requests, for longer than we wait.
    #[error("{host} limits its requests and still does after {tries} tries{}", shown(.message))]
    RateLimited {
        /// Host and port.
        host: String,
        /// Requests made.
        tries: u32,
        /// The registry's own words.
        message: String,
        /// `Retry-After`.
        asked: Option<Duration>,
    },
    /// Any other status.
    #[error("{host} answered {status} when asked for {what}{}", shown(.message))]
    Status {
        /// Host and port.
        host: String,
        /// HTTP status.
        status: u16,
        /// What was asked for.
        what: String,
        /// The registry's own words.
        message: String,
        /// `Retry-After`.
        asked: Option<Duration>,
    },
    /// A redirect that is not followed.
    #[error("{host} redirects {why}")]
    Redirect {
        /// Host and port.
        host: String,
        /// Where to, and why not.
        why: String,
    },
    /// An answer beyond its limit.
    #[error("{host} sends more than {limit} bytes as {what}")]
    TooLarge {
        /// Host and port.
        host: String,
        /// What was asked for.
        what: String,
        /// Bytes.
        limit: u64,
    },
    /// The token server cannot be used.
    #[error("cannot get a token from {realm} for {host}: {why}")]
    Token {
        /// The registry.
        host: String,
        /// The token server, without the query.
        realm: String,
        /// What is wrong.
        why: String,
    },
    /// Certificate authorities cannot be loaded.
    #[error("cannot load certificate authorities: {0}")]
    Authorities(String),
    /// A directory of `certs.d` cannot be read.
    #[error("cannot read the certificates in {path}")]
    CertificateDirectory {
        /// The directory.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// A client certificate without its key, or the key alone.
    #[error("{path} is of no use without {missing}")]
    HalfPair {
        /// The file that is there.
        path: String,
        /// The file that is not.
        missing: String,
    },
    /// A client certificate or its key cannot be used.
    #[error("cannot use the client certificate {path}: {why}")]
    ClientCertificate {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// A proxy of the environment cannot be used.
    #[error("cannot use the proxy for {host}: {why}")]
    Proxy {
        /// Host and port.
        host: String,
        /// What is wrong; not the URL, which may hold a password.
        why: &'static str,
    },
    /// `registries.conf` forbids it.
    #[error("pulling {reference} is blocked by {at}")]
    Blocked {
        /// The image.
        reference: String,
        /// The rule.
        at: Place,
    },
    /// A location of `registries.conf` that leads to no image, or to another one.
    #[error("{location:?} cannot stand in for {reference} ({at})")]
    Location {
        /// The image.
        reference: String,
        /// As configured.
        location: String,
        /// The rule.
        at: Place,
    },
    /// A file with logins is no JSON.
    #[error("cannot read logins from {path}: {why}")]
    AuthFile {
        /// The file.
        path: String,
        /// Where and what, never the content.
        why: String,
    },
    /// A manifest or blob is not the one that was asked for.
    #[error("{host} sends something else as {what}: it should be {expected} and is {actual}")]
    WrongDigest {
        /// Host and port.
        host: String,
        /// What was asked for.
        what: String,
        /// Digest.
        expected: String,
        /// Digest.
        actual: String,
    },
    /// A blob's size is not what the manifest says.
    #[error("{what} is {actual} bytes long, not {expected} as the manifest says")]
    WrongSize {
        /// `blob sha256:...`.
        what: String,
        /// Bytes.
        expected: u64,
        /// Bytes; at least.
        actual: u64,
    },
    /// A blob that came whole turned out to be another one.
    #[error("{host} sends something else as {what}: {why}")]
    NotTheBlob {
        /// The server.
        host: String,
        /// `blob sha256:...`.
        what: String,
        /// How that showed.
        why: String,
    },
    /// Several servers were asked, and each is at fault.
    #[error("neither a mirror ({}) nor the registry gives it", .mirrors.join("; "))]
    Everywhere {
        /// What was wrong with each mirror, in one line.
        mirrors: Vec<String>,
        /// What is wrong with the registry.
        source: Box<RegistryError>,
    },
    /// A layer that the registry does not have itself.
    #[error("{what} is not in the registry but, says the manifest, at {place}: {why}")]
    Foreign {
        /// `blob sha256:...`.
        what: String,
        /// Host and port.
        place: String,
        /// Why it is not fetched from there.
        why: &'static str,
    },
    /// A resumed download does not fit.
    #[error("{host} does not resume {what}: {why}")]
    Resume {
        /// Host and port.
        host: String,
        /// `blob sha256:...`.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// A download kept failing.
    #[error("{what} broke off at byte {position} and could not be resumed in {tries} tries")]
    BrokenOff {
        /// `blob sha256:...`.
        what: String,
        /// Bytes received.
        position: u64,
        /// Requests made without progress.
        tries: u32,
        /// The last failure.
        source: Box<RegistryError>,
    },
}

/// A server's message as an appendix.
fn shown(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" ({message})") }
}

impl RegistryError {
    /// Whether trying again may help.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            RegistryError::Unreachable { .. } | RegistryError::Timeout { .. } => true,
            RegistryError::Status { status, .. } => super::retry::is_transient(*status),
            RegistryError::RateLimited { .. } => true,
            _ => false,
        }
    }

    /// Whether no server gave an answer to go by, rather than one that says no or is wrong.
    pub(crate) fn is_silence(&self) -> bool {
        match self {
            RegistryError::UnknownHost { .. } => true,
            RegistryError::Everywhere { source, .. } | RegistryError::BrokenOff { source, .. } => {
                source.is_silence()
            }
            other => other.is_transient(),
        }
    }

    /// Whether a `HEAD` may fail so where a `GET` does not. Some registries refuse it, answer it with 5xx or not at all;
    /// and only a `GET` has a body that says what is wrong.
    pub(super) fn may_be_of_head(&self) -> bool {
        matches!(
            self,
            RegistryError::Unauthorised { .. }
                | RegistryError::NotFound { .. }
                | RegistryError::Status { .. }
                | RegistryError::Unreachable { .. }
                | RegistryError::Timeout { .. }
                | RegistryError::Protocol { .. }
        )
    }

    /// Whether the failure is the server's as a whole, not that of one manifest or blob.
    pub(super) fn is_of_the_server(&self) -> bool {
        match self {
            RegistryError::NotFound { .. }
            | RegistryError::WrongDigest { .. }
            | RegistryError::WrongSize { .. }
            | RegistryError::TooLarge { .. }
            | RegistryError::Everywhere { .. }
            | RegistryError::Resume { .. } => false,
            RegistryError::BrokenOff { source, .. } => source.is_of_the_server(),
            RegistryError::Status { status, .. } => super::retry::is_transient(*status),
            _ => true,
        }
    }

    /// Whether there is no such thing, at the registry itself if there are mirrors.
    pub(super) fn is_not_found(&self) -> bool {
        match self {
            RegistryError::NotFound { .. } => true,
            RegistryError::Everywhere { source, .. } => source.is_not_found(),
            _ => false,
        }
    }

    /// The same error of the last server to ask, after those of mirrors.
    pub(super) fn after(self, mirrors: Vec<String>) -> RegistryError {
        match self {
            error if mirrors.is_empty() => error,
            // Asking for a tag asks for a digest too, of the same servers.
            RegistryError::Everywhere { source, .. } => RegistryError::Everywhere { mirrors, source },
            error => RegistryError::Everywhere { mirrors, source: Box::new(error) },
        }
    }

    /// The same error after so many requests.
    pub(super) fn after_tries(self, requests: u32) -> RegistryError {
        match self {
            RegistryError::RateLimited { host, message, asked, .. } => {
                RegistryError::RateLimited { host, tries: requests, message, asked }
            }
            other => other,
        }
    }

    /// With its causes.
    pub(super) fn in_one_line(&self) -> String {
        let mut line = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            line = format!("{line}: {error}");
            cause = error.source();
        }
        line
    }
}

impl Hint for RegistryError {
    fn hints(&self) -> Vec<String> {
        let line = match self {
            RegistryError::Unauthorised { host, who, .. } if *who == "you" => {
                format!("check the name and your rights; to log in anew: hpcrun login {host}")
            }
            RegistryError::Unauthorised { host, .. } => {
                format!("check the name; if the image is private, log in first: hpcrun login {host}")
            }
            RegistryError::NotFound { .. } => "check the spelling of repository and tag".to_owned(),
            RegistryError::LoginRefused { .. } => {
                "check user and password; registries with two-factor login want an access token as password"
                    .to_owned()
            }
            RegistryError::Certificate { host, .. } => format!(
                "name the site's certificate authority in SSL_CERT_FILE or in /etc/containers/certs.d/{host}/ca.crt"
            ),
            RegistryError::Protocol { host, why } if why.contains("TLS") => {
                format!("if {host} is meant to speak no TLS, use --plain-http")
            }
            RegistryError::Unreachable { .. }
            | RegistryError::UnknownHost { .. }
            | RegistryError::Timeout { .. } => {
                "compute nodes often have no way out: pull on a login node, or set HTTPS_PROXY".to_owned()
            }
            RegistryError::RateLimited { host, .. } => {
                format!("log in (hpcrun login {host}), try again later, or use a mirror")
            }
            RegistryError::Redirect { why, .. } if why.contains("unencrypted") => {
                "if that is meant, use --plain-http".to_owned()
            }
            RegistryError::Foreign { .. } => {
                "push the image again with its layers, as docker and skopeo do today".to_owned()
            }
            RegistryError::BrokenOff { source, .. } | RegistryError::Everywhere { source, .. } => {
                return source.hints();
            }
            RegistryError::NotTheBlob { .. } => {
                "the image was damaged where it is kept or on its way: push it again".to_owned()
            }
            _ => return Vec::new(),
        };
        vec![line]
    }
}

/// Text of a server, fit for a terminal: printable, one line, cut short.
pub(super) fn printable(text: &str) -> String {
    const LONGEST: usize = 300;
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let mut line: String = text.trim().chars().take(LONGEST).map(clean).collect();
    if text.trim().chars().count() > LONGEST {
        line.push_str("...");
    }
    line
}
