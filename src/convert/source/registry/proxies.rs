//! Which proxy leads to a host, by the variables that everybody uses.

use std::fmt;
use std::net::IpAddr;

use ureq::{Proxy, ProxyProtocol};

use super::url::Url;

/// The proxies of the environment (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`, in either case). `Debug` leaves
/// out what they are: their URLs may hold a password.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For https.
    pub https: Option<String>,
    /// For http.
    pub http: Option<String>,
    /// Hosts reached directly: `example.org`, `.example.org`, `host:5000`, `10.0.0.1`, `10.0.0.0/8`, `*`; this machine
    /// always is.
    pub none: Vec<String>,
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxies")
            .field("https", &self.https.is_some())
            .field("http", &self.http.is_some())
            .field("none", &self.none)
            .finish()
    }
}

impl Proxies {
    /// From the values of `https_proxy`, `http_proxy`, `all_proxy` and `no_proxy`.
    pub fn new(https: Option<String>, http: Option<String>, all: Option<String>, none: &str) -> Proxies {
        let set = |text: Option<String>| text.filter(|text| !text.trim().is_empty());
        let all = set(all);
        Proxies {
            https: set(https).or_else(|| all.clone()),
            http: set(http).or(all),
            none: none
                .split([',', ' '])
                .map(str::trim)
                .filter(|host| !host.is_empty())
                .map(str::to_owned)
                .collect(),
        }
    }

    /// The proxy for `url`.
    pub(super) fn proxy_for(&self, url: &Url) -> Option<&str> {
        if url.is_loopback() || self.none.iter().any(|pattern| bypasses(pattern.trim(), url)) {
            return None;
        }
        let proxy = if url.https { &self.https } else { &self.http };
        proxy.as_deref().filter(|text| !text.is_empty())
    }
}

/// A proxy from its URL, `http://[user:password@]host[:port]`, also with `https`, `socks5` (names are resolved here) or
/// `socks5h` (there), or just `host:port`.
pub(super) fn parse(text: &str) -> Result<Proxy, &'static str> {
    let proxy = Proxy::new(text.trim()).map_err(|_| "its URL is malformed")?;
    match proxy.protocol() {
        ProxyProtocol::Http | ProxyProtocol::Https => Ok(proxy),
        ProxyProtocol::Socks5 | ProxyProtocol::Socks5h => Ok(proxy),
        _ => Err("only http, https, socks5 and socks5h proxies are supported"),
    }
}

fn bypasses(pattern: &str, url: &Url) -> bool {
    let pattern = pattern.to_ascii_lowercase();
    if pattern == "*" || pattern == url.authority() || pattern == format!("{}:{}", url.host, url.port) {
        return true;
    }
    if let Some((network, length)) = pattern.split_once('/') {
        return in_network(network, length, url).unwrap_or(false);
    }
    // An address stands for itself: IPv6 is written with brackets and without.
    if let Some(address) = url.address() {
        return pattern.parse() == Ok(address);
    }
    let domain = pattern.trim_start_matches('*').trim_start_matches('.');
    !domain.is_empty()
        && (url.host == domain || url.host.strip_suffix(domain).is_some_and(|head| head.ends_with('.')))
}

/// Whether the URL's host is an address of `network/length`; none if either is no such thing.
fn in_network(network: &str, length: &str, url: &Url) -> Option<bool> {
    let length: u32 = length.parse().ok()?;
    let significant = |bits: u128, width: u32| bits.checked_shr(width.checked_sub(length)?).or(Some(0));
    match (network.parse().ok()?, url.address()?) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            Some(significant(a.to_bits().into(), 32)? == significant(b.to_bits().into(), 32)?)
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            Some(significant(a.to_bits(), 128)? == significant(b.to_bits(), 128)?)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(none: &str, url: &str, through_proxy: bool) {
        let proxies = Proxies::new(Some("http://proxy:3128".into()), None, None, none);
        let url = Url::parse(url).unwrap();
        assert_eq!(proxies.proxy_for(&url).is_some(), through_proxy, "{none:?} {url}");
    }

    #[test]
    fn hosts_without_a_proxy() {
        check("", "https://r.org/v2/", true);
        check("", "http://r.org/v2/", false);
        check("", "https://localhost:5000/", false);
        check("", "https://127.0.0.1/", false);
        check("", "https://[::1]/", false);
        check("*", "https://r.org/", false);
        check("other.org", "https://r.org/", true);
    }

    #[test]
    fn domains() {
        for none in ["site.org", ".site.org", "*.site.org", "x, site.org", "x site.org", "SITE.ORG"] {
            check(none, "https://site.org/", false);
            check(none, "https://a.site.org/", false);
            check(none, "https://a.b.site.org:8443/", false);
            check(none, "https://notsite.org/", true);
            check(none, "https://site.org.evil.org/", true);
        }
    }

    #[test]
    fn ports() {
        check("r.org:8443", "https://r.org:8443/", false);
        check("r.org:8443", "https://r.org:8444/", true);
        check("r.org:443", "https://r.org/", false);
        check("[fd00::1]:5000", "https://[fd00::1]:5000/", false);
    }

    #[test]
    fn addresses_and_networks() {
        check("10.0.0.1", "https://10.0.0.1:444/", false);
        check("10.0.0.1", "https://10.0.0.10/", true);
        check("0.0.1", "https://10.0.0.1/", true);
        check("fd00::1", "https://[fd00::1]/", false);
        check("[fd00::1]", "https://[fd00::1]/", false);
        check("172.16.0.0/12", "https://172.16.0.1/", false);
        check("172.16.0.0/12", "https://172.31.255.255/", false);
        check("172.16.0.0/12", "https://172.32.0.1/", true);
        check("172.16.0.0/12", "https://r.org/", true);
        check("0.0.0.0/0", "https://8.8.8.8/", false);
        check("fd00::/8", "https://[fd12::1]/", false);
        check("fd00::/8", "https://[fe80::1]/", true);
        check("1.1.1.1/99", "https://1.1.1.1/", true);
        check("r.org/8", "https://r.org/", true);
    }

    #[test]
    fn the_variable_for_all_is_the_last_resort() {
        let text = |text: &str| Some(text.to_owned());
        let proxies = Proxies::new(text("http://s"), text(""), text("http://a"), "");
        assert_eq!((proxies.https, proxies.http), (text("http://s"), text("http://a")));
        assert_eq!(Proxies::new(None, None, text(" "), ", ,"), Proxies::default());
    }

    #[test]
    fn urls() {
        for (text, expected) in [
            ("http://proxy:3128", Ok(("proxy", 3128))),
            ("http://me:p%40ss@proxy:3128/", Ok(("proxy", 3128))),
            ("https://proxy", Ok(("proxy", 443))),
            ("proxy:3128", Ok(("proxy", 3128))),
            (" http://proxy ", Ok(("proxy", 80))),
            ("http://", Err("its URL is malformed")),
            ("ftp://proxy", Err("its URL is malformed")),
            ("socks5h://proxy", Ok(("proxy", 1080))),
            ("socks5://me:secret@[fd00::1]:9", Ok(("[fd00::1]", 9))),
            ("socks4://proxy", Err("only http, https, socks5 and socks5h proxies are supported")),
            ("socks4a://proxy", Err("only http, https, socks5 and socks5h proxies are supported")),
        ] {
            let proxy = parse(text);
            let found = proxy.as_ref().map(|proxy| (proxy.host(), proxy.port())).map_err(|why| *why);
            assert_eq!(found, expected, "{text}");
        }
        assert_eq!(parse("http://me:p%40ss@proxy").unwrap().password(), Some("p@ss"));
    }

    #[test]
    fn debug_tells_no_password() {
        let proxies = Proxies::new(Some("http://me:canary@proxy:3128".into()), None, None, "a.org");
        let shown = format!("{proxies:?}");
        assert!(!shown.contains("canary") && shown.contains("a.org"), "{shown}");
    }
}
