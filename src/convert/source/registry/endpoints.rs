//! The servers that may hold an image, in the order in which they are asked: mirrors first, the registry itself last.

use std::path::PathBuf;

/// A server that may hold the image, and how it is spoken to. Nothing of one endpoint is ever used for another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `host[:port]` as people name it, `docker.io`, `mirror.site:5000`: with the repository the key of logins.
    pub registry: String,
    /// `host[:port]` that serves the API; differs from `registry` for Docker Hub only.
    pub api_host: String,
    /// The image's repository on this server: `library/debian`, `hub-mirror/library/debian`.
    pub repository: String,
    /// With TLS or without.
    pub transport: Transport,
    /// Whom TLS trusts here. Hosts that this server redirects to have their own, by their names in `certs.d`.
    pub tls: Tls,
    /// Which requests it is asked for.
    pub serves: Serves,
}

/// With TLS or without.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Transport {
    /// TLS and nothing else.
    #[default]
    Tls,
    /// TLS; unencrypted where nobody answers to that. For this machine itself, and where a site says `insecure`.
    TlsOrPlain,
    /// Unencrypted.
    Plain,
}

/// Whom to trust, besides the authorities of the system or of `SSL_CERT_FILE`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Tls {
    /// Any certificate will do (`insecure`).
    pub unverified: bool,
    /// PEM files of further certificate authorities (`certs.d/HOST/*.crt`).
    pub authorities: Vec<PathBuf>,
    /// What we show of ourselves.
    pub client: Option<ClientCertificate>,
}

/// A client certificate (`certs.d/HOST/NAME.cert` and `NAME.key`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientCertificate {
    /// PEM file of the chain.
    pub certificate: PathBuf,
    /// PEM file of the private key.
    pub key: PathBuf,
}

/// Which requests an endpoint is asked for (`pull-from-mirror`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Serves {
    /// All.
    #[default]
    All,
    /// What is named by its digest.
    DigestsOnly,
    /// What is named by a tag, and what the manifests found so name.
    TagsOnly,
}
