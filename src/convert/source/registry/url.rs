//! URLs, as far as registries need them: parsed strictly, compared by origin, printed without their query.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An absolute http or https URL without user information or fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) https: bool,
    /// Lower case; an IPv6 address has its brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// Begins with a slash.
    path: String,
    /// With its question mark; may hold a signature that is as good as a password.
    query: String,
}

impl Url {
    /// Parses an absolute URL; none if it is malformed or of another scheme.
    pub(super) fn parse(text: &str) -> Option<Url> {
        let (scheme, rest) = text.split_once("://")?;
        let https = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        if !rest.bytes().all(|b| b.is_ascii_graphic()) {
            return None;
        }
        let rest = rest.split('#').next()?;
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at_checked(end)?;
        let (host, port) = split_authority(authority)?;
        let port = match port {
            None => default_port(https),
            Some(digits) => digits.parse().ok()?,
        };
        let (path, query) = match tail.split_once('?') {
            None => (tail, String::new()),
            Some((path, query)) => (path, format!("?{query}")),
        };
        let path = if path.is_empty() { "/".to_owned() } else { path.to_owned() };
        Some(Url { https, host: host.to_ascii_lowercase(), port, path, query })
    }

    /// The API of the registry at `host[:port]`.
    pub(super) fn of_api(host: &str, https: bool) -> Option<Url> {
        let scheme = if https { "https" } else { "http" };
        let url = Url::parse(&format!("{scheme}://{host}/v2/"))?;
        // Nothing but a host.
        (url.path == "/v2/" && url.query.is_empty()).then_some(url)
    }

    /// The URL that a `Location` leads to from here.
    pub(super) fn join(&self, location: &str) -> Option<Url> {
        if location.contains("://") && !location.starts_with(['/', '?']) {
            return Url::parse(location);
        }
        let scheme = if self.https { "https" } else { "http" };
        let authority = self.authority();
        if let Some(rest) = location.strip_prefix("//") {
            return Url::parse(&format!("{scheme}://{rest}"));
        }
        if location.starts_with('/') {
            return Url::parse(&format!("{scheme}://{authority}{location}"));
        }
        if location.starts_with('?') {
            return Url::parse(&format!("{scheme}://{authority}{}{location}", self.path));
        }
        let directory = self.path.rsplit_once('/').map_or("", |(directory, _)| directory);
        Url::parse(&format!("{scheme}://{authority}{directory}/{location}"))
    }

    /// `host[:port]`, the port only where it is not the scheme's.
    pub(super) fn authority(&self) -> String {
        if self.port == default_port(self.https) {
            self.host.clone()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Whether a request to `other` goes to the same server over the same transport.
    pub(super) fn same_origin(&self, other: &Url) -> bool {
        (self.https, &self.host, self.port) == (other.https, &other.host, other.port)
    }

    /// All of it, for the request.
    pub(super) fn to_request(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{}{}{}", self.authority(), self.path, self.query)
    }

    /// The address, if the host is one.
    pub(super) fn address(&self) -> Option<IpAddr> {
        match self.host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(inner) => inner.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            None => self.host.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        }
    }

    /// Whether the host is this machine.
    pub(super) fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.address().is_some_and(|address| address.is_loopback())
    }

    /// Whether the host is this machine or its link: what answers there (a cloud's metadata, a local service) answers
    /// nobody else.
    pub(super) fn is_this_machine(&self) -> bool {
        match self.address().map(|address| address.to_canonical()) {
            Some(IpAddr::V4(v4)) => v4.is_loopback() || v4.is_link_local() || v4.is_unspecified(),
            Some(IpAddr::V6(v6)) => v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified(),
            None => is_localhost(&self.host),
        }
    }

    /// Whether the host is an address that only means something locally: where a server may not send our secrets.
    pub(super) fn is_private_address(&self) -> bool {
        match self.address() {
            Some(IpAddr::V4(v4)) => {
                v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_unspecified()
            }
            Some(IpAddr::V6(v6)) => {
                v6.is_loopback()
                    || v6.is_unique_local()
                    || v6.is_unicast_link_local()
                    || v6.is_unspecified()
                    || v6.to_ipv4_mapped().is_some()
            }
            None => is_localhost(&self.host),
        }
    }
}

/// For messages: without the query.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

/// `localhost` and what RFC 6761 puts below it. Not every resolver keeps to that, so it is good for refusals only.
fn is_localhost(host: &str) -> bool {
    let host = host.trim_end_matches('.');
    host == "localhost" || host.ends_with(".localhost")
}

fn default_port(https: bool) -> u16 {
    if https { 443 } else { 80 }
}

/// Host and port; none for user information or a malformed host.
fn split_authority(authority: &str) -> Option<(&str, Option<&str>)> {
    let (host, port) = if authority.starts_with('[') {
        let end = authority.find(']')?.checked_add(1)?;
        let (host, rest) = authority.split_at_checked(end)?;
        let inner = host.strip_prefix('[')?.strip_suffix(']')?;
        inner.parse::<Ipv6Addr>().ok()?;
        match rest.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if rest.is_empty() => (host, None),
            None => return None,
        }
    } else {
        let (host, port) = match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        };
        let is_host = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        if host.is_empty() || !host.bytes().all(is_host) {
            return None;
        }
        (host, port)
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match port {
        Some(port) if !digits(port) => None,
        port => Some((host, port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_join(base: &str, location: &str, expected: Option<&str>) {
        let joined = Url::parse(base).unwrap().join(location).map(|url| url.to_request());
        assert_eq!(joined.as_deref(), expected, "{base} + {location}");
    }

    #[test]
    fn parses() {
        for (text, expected) in [
            ("https://Quay.IO", Some("https://quay.io/")),
            ("HTTP://h:80/x", Some("http://h/x")),
            ("https://h:443/x?a=b#frag", Some("https://h/x?a=b")),
            ("https://h:5000?q", Some("https://h:5000/?q")),
            ("http://[::1]:5000/v2/", Some("http://[::1]:5000/v2/")),
            ("http://h:80", Some("http://h/")),
            ("https://user@h/", None),
            ("https://user:pw@h/", None),
            ("https://h\\@evil/", None),
            ("https:///path", None),
            ("https://h:/", None),
            ("https://h:99999/", None),
            ("https://h:x/", None),
            ("https://[::1", None),
            ("https://[zz]/", None),
            ("https://[::1]x/", None),
            ("https://h/a b", None),
            ("https://h/\r\nHost: evil", None),
            ("https://h\u{e9}/", None),
            ("ftp://h/", None),
            ("file:///etc/passwd", None),
            ("h/x", None),
            ("", None),
        ] {
            assert_eq!(Url::parse(text).map(|url| url.to_request()).as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn joins() {
        let base = "https://r.org:5000/v2/a/blobs/x?y=z";
        check_join(base, "https://cdn.org/b?sig=1", Some("https://cdn.org/b?sig=1"));
        check_join(base, "//cdn.org/b", Some("https://cdn.org/b"));
        check_join(base, "/b", Some("https://r.org:5000/b"));
        check_join(base, "b", Some("https://r.org:5000/v2/a/blobs/b"));
        check_join(base, "?q=1", Some("https://r.org:5000/v2/a/blobs/x?q=1"));
        check_join(base, "/b?next=http://x", Some("https://r.org:5000/b?next=http://x"));
        check_join(base, "ftp://x/", None);
        check_join(base, "https://user@x/", None);
    }

    #[test]
    fn origins_and_addresses() {
        let url = |text: &str| Url::parse(text).unwrap();
        assert!(url("https://a/x").same_origin(&url("https://A:443/y")));
        for other in ["http://a/", "https://a:444/", "https://b/", "https://a.b/"] {
            assert!(!url("https://a/").same_origin(&url(other)), "{other}");
        }
        for (text, loopback, private) in [
            ("http://localhost/", true, true),
            ("http://127.8.9.1/", true, true),
            ("http://[::1]/", true, true),
            ("http://10.1.2.3/", false, true),
            ("http://169.254.169.254/", false, true),
            ("http://[fe80::1]/", false, true),
            ("http://[fd00::1]/", false, true),
            ("http://[::ffff:10.0.0.1]/", false, true),
            ("http://0.0.0.0/", false, true),
            ("http://8.8.8.8/", false, false),
            ("http://localhost.evil.org/", false, false),
            ("http://127.0.0.1.evil.org/", false, false),
        ] {
            assert_eq!(
                (url(text).is_loopback(), url(text).is_private_address()),
                (loopback, private),
                "{text}"
            );
        }
        assert_eq!(url("https://h/p?X-Amz-Signature=secret").to_string(), "https://h/p");
    }
}
