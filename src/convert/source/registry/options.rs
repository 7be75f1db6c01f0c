//! How registries are spoken to: everything that a user, a site or the environment can say of it.

use std::net::IpAddr;
use std::path::PathBuf;

use super::credentials::{AuthFile, Login};
use super::retry::Patience;
use super::url::Url;

/// Where unencrypted HTTP is allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PlainHttp {
    /// To this machine itself only.
    #[default]
    Loopback,
    /// Also to these registries, each `host` or `host:port`.
    Hosts(Vec<String>),
    /// To the registry named, whichever it is (`--plain-http`).
    Asked,
}

/// The proxies of the environment (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`, in either case).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For https.
    pub https: Option<String>,
    /// For http.
    pub http: Option<String>,
    /// Hosts reached directly: `example.org`, `.example.org`, `10.0.0.1`, `10.0.0.0/8`, `*`; this machine always is.
    pub none: Vec<String>,
}

impl Proxies {
    /// The proxy for `url`.
    pub(super) fn proxy_for(&self, url: &Url) -> Option<&str> {
        if url.is_loopback() || self.none.iter().any(|pattern| bypasses(pattern.trim(), url)) {
            return None;
        }
        let proxy = if url.https { &self.https } else { &self.http };
        proxy.as_deref().filter(|text| !text.is_empty())
    }
}

fn bypasses(pattern: &str, url: &Url) -> bool {
    let pattern = pattern.to_ascii_lowercase();
    if pattern == "*" || pattern == url.authority() {
        return true;
    }
    if let Some((network, length)) = pattern.split_once('/') {
        return in_network(network, length, url).unwrap_or(false);
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

/// How registries are spoken to.
#[derive(Debug, Clone)]
pub struct RegistryOptions {
    /// Where unencrypted HTTP is allowed.
    pub plain_http: PlainHttp,
    /// `User-Agent`.
    pub user_agent: String,
    /// A login given for this run; goes before all files.
    pub login: Option<Login>,
    /// Files with logins that exist, most important first; see [`super::candidate_paths`].
    pub auth_files: Vec<AuthFile>,
    /// `SSL_CERT_FILE`: certificate authorities instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// `SSL_CERT_DIR`: certificate authorities instead of the system's.
    pub ca_directory: Option<PathBuf>,
    /// Directories that hold `HOST[:PORT]/*.crt`, authorities for one registry besides the others.
    pub certificate_directories: Vec<PathBuf>,
    /// Proxies of the environment.
    pub proxies: Proxies,
    /// Whether layers that the registry lacks may come from where the manifest's `urls` say ("foreign" layers).
    pub foreign_layers: bool,
    /// Directory in which manifests and configs are kept, so that an unchanged image is not fetched again.
    pub documents: Option<PathBuf>,
    /// Timeouts and retries.
    pub patience: Patience,
}

impl Default for RegistryOptions {
    fn default() -> RegistryOptions {
        RegistryOptions {
            plain_http: PlainHttp::default(),
            user_agent: concat!("hpcrun/", env!("CARGO_PKG_VERSION")).to_owned(),
            login: None,
            auth_files: Vec::new(),
            ca_file: None,
            ca_directory: None,
            certificate_directories: vec![
                PathBuf::from("/etc/containers/certs.d"),
                PathBuf::from("/etc/docker/certs.d"),
            ],
            proxies: Proxies::default(),
            foreign_layers: false,
            documents: None,
            patience: Patience::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies() {
        let proxies = Proxies {
            https: Some("http://proxy:3128".into()),
            http: None,
            none: [
                "internal.org",
                ".example.com",
                "10.0.0.1",
                "host:8443",
                "172.16.0.0/12",
                "fd00::/8",
                "1.1.1.1/99",
            ]
            .map(str::to_owned)
            .to_vec(),
        };
        for (url, expected) in [
            ("https://quay.io/v2/", true),
            ("http://quay.io/v2/", false),
            ("https://localhost:5000/", false),
            ("https://127.0.0.1/", false),
            ("https://[::1]/", false),
            ("https://internal.org/", false),
            ("https://a.internal.org/", false),
            ("https://notinternal.org/", true),
            ("https://a.example.com/", false),
            ("https://10.0.0.1:444/", false),
            ("https://10.0.0.10/", true),
            ("https://172.16.0.1/", false),
            ("https://172.31.255.255/", false),
            ("https://172.32.0.1/", true),
            ("https://[fd12::1]/", false),
            ("https://[fe80::1]/", true),
            ("https://1.1.1.1/", true),
            ("https://host:8443/", false),
            ("https://host:8444/", true),
        ] {
            assert_eq!(proxies.proxy_for(&Url::parse(url).unwrap()).is_some(), expected, "{url}");
        }
        let all = Proxies { none: vec!["*".into()], ..proxies };
        assert_eq!(all.proxy_for(&Url::parse("https://quay.io/").unwrap()), None);
    }
}
