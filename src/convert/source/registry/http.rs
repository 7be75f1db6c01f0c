//! One HTTP exchange at a time: connections, TLS, proxies, redirects. No retries and no logins; those are decided above.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::{Mutex, PoisonError};

use ureq::http::Response;
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body, Proxy};

use super::error::RegistryError;
use super::options::{PlainHttp, RegistryOptions};
use super::url::Url;

const MAX_REDIRECTS: usize = 10;

/// What is asked of a server.
#[derive(Debug, Clone, Default)]
pub(super) struct Request {
    /// `Accept`.
    pub(super) accept: Option<String>,
    /// `Authorization`; sent to the origin asked first and to no other.
    pub(super) authorization: Option<String>,
    /// `Range`.
    pub(super) range: Option<String>,
    /// Body of a POST, form-encoded; without it a GET.
    pub(super) form: Option<String>,
    /// The whole answer must come within the time for small answers.
    pub(super) small: bool,
}

/// What came back, redirects followed.
pub(super) struct Answer {
    response: Response<Body>,
    /// Where it came from in the end.
    pub(super) url: Url,
}

impl Answer {
    /// HTTP status.
    pub(super) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    /// The first header `name`, if it is text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// All headers `name` that are text.
    pub(super) fn headers(&self, name: &str) -> Vec<String> {
        let values = self.response.headers().get_all(name).iter();
        values.filter_map(|value| value.to_str().ok()).map(str::to_owned).collect()
    }

    /// `Content-Length`, bytes.
    pub(super) fn content_length(&self) -> Option<u64> {
        self.header("content-length")?.trim().parse().ok()
    }

    /// Reads the body, at most `limit` bytes.
    pub(super) fn read_small(self, limit: u64, what: &str) -> Result<Vec<u8>, RegistryError> {
        let host = self.url.authority();
        let too_large = || RegistryError::TooLarge { host: host.clone(), what: what.to_owned(), limit };
        if self.content_length().is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        let mut body = self.into_body().take(limit.saturating_add(1));
        body.read_to_end(&mut bytes).map_err(|error| body_error(&host, error))?;
        if bytes.len() as u64 > limit { Err(too_large()) } else { Ok(bytes) }
    }

    /// The body as a stream.
    pub(super) fn into_body(self) -> Box<dyn Read + Send> {
        Box::new(self.response.into_body().into_reader())
    }
}

/// Agents, made when first needed, and the rules of where they may go.
#[derive(Debug)]
pub(super) struct Http {
    options: RegistryOptions,
    /// The registry as named, which `PlainHttp` speaks of.
    registry: String,
    agents: Mutex<HashMap<Route, Agent>>,
}

/// What needs an agent of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Route {
    https: bool,
    proxy: Option<String>,
    /// Hosts have their own certificate authorities.
    host: String,
}

impl Http {
    pub(super) fn new(options: RegistryOptions, registry: String) -> Http {
        Http { options, registry, agents: Mutex::new(HashMap::new()) }
    }

    /// The user's wishes.
    pub(super) fn options(&self) -> &RegistryOptions {
        &self.options
    }

    /// The API of the registry at `api_host`: https, but http where the user asked for it, and on this machine where
    /// nobody answers to TLS.
    pub(super) fn registry_url(&self, api_host: &str) -> Result<Url, RegistryError> {
        let bad_host = || RegistryError::BadHost(api_host.to_owned());
        let plain = Url::parse(&format!("http://{api_host}/v2/")).ok_or_else(bad_host)?;
        if self.plain_was_asked() {
            return Ok(plain);
        }
        let encrypted = Url::parse(&format!("https://{api_host}/v2/")).ok_or_else(bad_host)?;
        if !encrypted.is_loopback() {
            return Ok(encrypted);
        }
        match self.exchange(&encrypted, &Request { small: true, ..Request::default() }) {
            Ok(_) => Ok(encrypted),
            Err(error @ RegistryError::Certificate { .. }) => Err(error),
            Err(_) => Ok(plain),
        }
    }

    fn plain_was_asked(&self) -> bool {
        match &self.options.plain_http {
            PlainHttp::Loopback => false,
            PlainHttp::Asked => true,
            PlainHttp::Hosts(hosts) => hosts.contains(&self.registry),
        }
    }

    /// Whether `url` may be asked without encryption. A registry that was asked for so may lead to a store of its site.
    fn may_be_plain(&self, url: &Url) -> bool {
        url.is_loopback() || self.plain_was_asked()
    }

    /// Sends `request` to `url` and follows redirects.
    pub(super) fn exchange(&self, url: &Url, request: &Request) -> Result<Answer, RegistryError> {
        let mut url = url.clone();
        let origin = url.clone();
        let mut authorization = request.authorization.as_deref();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(&url, request, authorization)?;
            let status = response.status().as_u16();
            if !matches!(status, 301 | 302 | 303 | 307 | 308) {
                return Ok(Answer { response, url });
            }
            // A form holds a secret; it goes nowhere else.
            if request.form.is_some() {
                return Err(redirect(&url, "the exchange of a secret, which is not followed"));
            }
            let location = response.headers().get("location").and_then(|value| value.to_str().ok());
            let next = self.follow(&url, location)?;
            if !next.same_origin(&origin) {
                // Once dropped it stays dropped, even if the way leads back.
                authorization = None;
            }
            url = next;
        }
        Err(redirect(&url, &format!("more than {MAX_REDIRECTS} times")))
    }

    fn follow(&self, from: &Url, location: Option<&str>) -> Result<Url, RegistryError> {
        let location = location.ok_or_else(|| redirect(from, "without saying where"))?;
        let next = from.join(location).ok_or_else(|| redirect(from, "to a malformed address"))?;
        if !next.https && from.https {
            return Err(redirect(from, &format!("from https to the unencrypted {next}")));
        }
        if !next.https && !self.may_be_plain(&next) {
            return Err(redirect(from, &format!("to the unencrypted {next}")));
        }
        Ok(next)
    }

    fn send(
        &self,
        url: &Url,
        request: &Request,
        authorization: Option<&str>,
    ) -> Result<Response<Body>, RegistryError> {
        let agent = self.agent(url)?;
        let host = url.authority();
        let headers = [
            ("accept", request.accept.as_deref()),
            ("authorization", authorization),
            ("range", request.range.as_deref()),
        ];
        let headers = headers.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let limit = request.small.then_some(self.options.patience.answer);
        let result = match &request.form {
            None => headers
                .fold(agent.get(url.to_request()), |builder, (name, value)| builder.header(name, value))
                .config()
                .timeout_global(limit)
                .build()
                .call(),
            Some(form) => headers
                .fold(agent.post(url.to_request()), |builder, (name, value)| builder.header(name, value))
                .header("content-type", "application/x-www-form-urlencoded")
                .config()
                .timeout_global(limit)
                .build()
                .send(form.as_str()),
        };
        result.map_err(|error| transport_error(&host, error))
    }

    fn agent(&self, url: &Url) -> Result<Agent, RegistryError> {
        let proxy = self.options.proxies.proxy_for(url).map(str::to_owned);
        let host = if url.https { url.authority() } else { String::new() };
        let route = Route { https: url.https, proxy, host };
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = agents.get(&route) {
            return Ok(agent.clone());
        }
        let agent = self.new_agent(&route, url)?;
        agents.insert(route, agent.clone());
        Ok(agent)
    }

    fn new_agent(&self, route: &Route, url: &Url) -> Result<Agent, RegistryError> {
        let patience = &self.options.patience;
        let proxy = match &route.proxy {
            None => None,
            Some(text) => {
                let failed = |_| RegistryError::Proxy { host: url.authority() };
                Some(Proxy::new(text).map_err(failed)?)
            }
        };
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            // The default would read the environment.
            .proxy(proxy)
            .user_agent(self.options.user_agent.as_str())
            .timeout_resolve(Some(patience.connect))
            .timeout_connect(Some(patience.connect))
            .timeout_recv_response(Some(patience.stall))
            .timeout_per_read(Some(patience.stall))
            .timeout_per_write(Some(patience.stall));
        if route.https {
            let roots = RootCerts::new_with_certs(&self.authorities(&route.host)?);
            config = config.tls_config(TlsConfig::builder().root_certs(roots).build());
        }
        Ok(config.build().new_agent())
    }

    /// The system's certificate authorities, or those that the user names instead, and the host's own.
    fn authorities(&self, host: &str) -> Result<Vec<Certificate<'static>>, RegistryError> {
        let (file, directory) = (self.options.ca_file.as_deref(), self.options.ca_directory.as_deref());
        let loaded = if file.is_some() || directory.is_some() {
            rustls_native_certs::load_certs_from_paths(file, directory)
        } else {
            rustls_native_certs::load_native_certs()
        };
        let mut list: Vec<Certificate<'static>> =
            loaded.certs.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
        for directory in &self.options.certificate_directories {
            list.extend(own_authorities(&directory.join(host))?);
        }
        match loaded.errors.first() {
            Some(error) if list.is_empty() => Err(RegistryError::Authorities(error.to_string())),
            _ if list.is_empty() => Err(RegistryError::Authorities("this system has none".to_owned())),
            _ => Ok(list),
        }
    }
}

/// `*.crt` of a directory that need not exist.
fn own_authorities(directory: &std::path::Path) -> Result<Vec<Certificate<'static>>, RegistryError> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Ok(Vec::new()) };
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "crt"));
    paths.sort();
    let mut list = Vec::new();
    for path in paths {
        let loaded = rustls_native_certs::load_certs_from_paths(Some(&path), None);
        if let Some(error) = loaded.errors.first() {
            return Err(RegistryError::Authorities(error.to_string()));
        }
        list.extend(loaded.certs.iter().map(|der| Certificate::from_der(der).to_owned()));
    }
    Ok(list)
}

fn redirect(from: &Url, why: &str) -> RegistryError {
    RegistryError::Redirect { host: from.authority(), why: why.to_owned() }
}

/// A transport's failure in our words. ureq's own text may hold the URL, and a URL may hold a signature.
fn transport_error(host: &str, error: ureq::Error) -> RegistryError {
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
        ureq::Error::Protocol(error) => protocol(super::error::printable(&error.to_string())),
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
    let why = super::error::printable(text);
    if text.contains("InvalidContentType") || text.contains("InvalidMessage") {
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
