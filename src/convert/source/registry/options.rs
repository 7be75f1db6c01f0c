//! How registries are spoken to: everything that a user, a site or the environment can say of it.

use std::path::PathBuf;

use super::auth_file::AuthFile;
use super::credentials::Login;
use super::proxies::Proxies;
use super::registries_conf::RegistriesConf;
use super::retry::Patience;

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

/// How registries are spoken to.
#[derive(Debug, Clone)]
pub struct RegistryOptions {
    /// Where unencrypted HTTP is allowed.
    pub plain_http: PlainHttp,
    /// Whether the registry named may show any certificate, or speak without TLS (`--tls-verify=false`).
    pub unverified: bool,
    /// What `registries.conf` says: mirrors, other locations, what is blocked, where logins are kept.
    pub registries: RegistriesConf,
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
    /// Directories that hold `HOST[:PORT]/*.{crt,cert,key}`: authorities for one registry besides the others, and what we
    /// show of ourselves.
    pub certificate_directories: Vec<PathBuf>,
    /// A directory with `*.{crt,cert,key}` for the registry named, in place of those (`--cert-dir`).
    pub certificate_directory: Option<PathBuf>,
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
            unverified: false,
            registries: RegistriesConf::default(),
            user_agent: concat!("hpcrun/", env!("CARGO_PKG_VERSION")).to_owned(),
            login: None,
            auth_files: Vec::new(),
            ca_file: None,
            ca_directory: None,
            certificate_directories: vec![
                PathBuf::from("/etc/containers/certs.d"),
                PathBuf::from("/etc/docker/certs.d"),
            ],
            certificate_directory: None,
            proxies: Proxies::default(),
            foreign_layers: false,
            documents: None,
            patience: Patience::default(),
        }
    }
}
