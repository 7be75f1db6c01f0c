//! What the HTTP and TLS libraries report, in our words. Their own texts may hold a URL, and a URL may hold a signature.

use std::io;

use super::error::{RegistryError, printable};

/// A failure of the transport.
pub(super) fn transport_error(host: &str, error: ureq::Error) -> RegistryError {
    let host = host.to_owned();
    let protocol = |why: String| RegistryError::Protocol { host: host.clone(), why };
    match error {
        ureq::Error::HostNotFound => RegistryError::UnknownHost { host },
        ureq::Error::Timeout(timeout) => RegistryError::Timeout { host, what: waited_for(timeout) },
        ureq::Error::Rustls(error) => RegistryError::Certificate { host, why: error.to_string() },
        ureq::Error::Tls(why) => RegistryError::Certificate { host, why: why.to_owned() },
        ureq::Error::Pem(_) => RegistryError::Authorities("a certificate is malformed".to_owned()),
        ureq::Error::Io(error) => io_error(host, error),
        ureq::Error::ConnectionFailed => {
            RegistryError::Unreachable { host, source: io::ErrorKind::ConnectionRefused.into() }
        }
        ureq::Error::ConnectProxyFailed(_) => protocol("the proxy refuses the connection".to_owned()),
        ureq::Error::LargeResponseHeader(..) => protocol("its headers are too large".to_owned()),
        ureq::Error::Protocol(error) => protocol(printable(&error.to_string())),
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => protocol("the address cannot be asked".to_owned()),
        _ => protocol("the exchange failed".to_owned()),
    }
}

fn io_error(host: String, error: io::Error) -> RegistryError {
    match error.kind() {
        // rustls hands its own errors through as InvalidData.
        io::ErrorKind::InvalidData => tls_error(host, &error.to_string()),
        io::ErrorKind::TimedOut => RegistryError::Timeout { host, what: "a connection" },
        _ if is_unknown_host(&error.to_string()) => RegistryError::UnknownHost { host },
        _ => RegistryError::Unreachable { host, source: error },
    }
}

/// The resolver's "no such name", which has no kind of its own; its "try again" is not meant.
fn is_unknown_host(text: &str) -> bool {
    text.contains("failed to lookup address") && !text.contains("Temporary failure")
}

/// A peer without TLS answers the handshake with something else, which is no matter of trust.
fn tls_error(host: String, text: &str) -> RegistryError {
    let why = printable(text);
    if text.starts_with("invalid response") || text == "invalid reserved byte" {
        RegistryError::Protocol { host, why: "the proxy on the way does not speak SOCKS 5".to_owned() }
    } else if text.contains("InvalidContentType") || text.contains("InvalidMessage") {
        RegistryError::Protocol { host, why: "it does not speak TLS".to_owned() }
    } else {
        RegistryError::Certificate { host, why }
    }
}

fn waited_for(timeout: ureq::Timeout) -> &'static str {
    match timeout {
        ureq::Timeout::Resolve => "its address",
        ureq::Timeout::Connect => "a connection",
        ureq::Timeout::PerRead | ureq::Timeout::RecvBody => "more of the body",
        ureq::Timeout::RecvResponse => "the status",
        _ => "the whole answer",
    }
}

/// A failure in the middle of a body.
pub(super) fn body_error(host: &str, error: io::Error) -> RegistryError {
    match error.downcast::<ureq::Error>() {
        Ok(error) => match transport_error(host, error) {
            // Broken framing in the middle of a body is a broken connection.
            RegistryError::Protocol { host, why } => {
                RegistryError::Unreachable { host, source: io::Error::other(why) }
            }
            other => other,
        },
        Err(error) => io_error(host.to_owned(), error),
    }
}
