//! One HTTP exchange at a time: connections, TLS, proxies, redirects. No retries and no logins; those are decided above.

use std::collections::HashMap;
use std::io::Read;
use std::sync::{Mutex, PoisonError};

use ureq::http::Response;
use ureq::{Agent, Body, RequestBuilder};

use super::endpoints::{Endpoint, Tls, Transport};
use super::error::{RegistryError, printable};
use super::failure::{body_error, transport_error};
use super::options::RegistryOptions;
use super::proxies;
use super::trust;
use super::url::Url;

const MAX_REDIRECTS: usize = 10;

/// How a server is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Method {
    #[default]
    Get,
    Head,
}

/// What is asked of a server.
#[derive(Debug, Clone, Default)]
pub(super) struct Request {
    pub(super) method: Method,
    /// `Accept`.
    pub(super) accept: Option<String>,
    /// `Authorization`; sent to the origin asked first and to no other.
    pub(super) authorization: Option<String>,
    /// `Range`.
    pub(super) range: Option<String>,
    /// `If-Range`.
    pub(super) if_range: Option<String>,
    /// Form-encoded body, which makes it a POST.
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

    /// Refuses a body that was encoded for the way, which was not asked for and would hide what is hashed.
    pub(super) fn refuse_encoding(&self, what: &str) -> Result<(), RegistryError> {
        let encoding = self.header("content-encoding").unwrap_or("identity").trim();
        if encoding.is_empty() || encoding.eq_ignore_ascii_case("identity") {
            return Ok(());
        }
        let (host, encoding) = (self.url.authority(), printable(encoding));
        Err(RegistryError::Protocol { host, why: format!("it sends {what} encoded as {encoding}") })
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

/// Agents for one endpoint and where it leads to, made when first needed, and the rules of where they may go.
#[derive(Debug)]
pub(super) struct Http {
    options: RegistryOptions,
    /// `host[:port]` of the endpoint, whose TLS settings are for it alone.
    authority: String,
    tls: Tls,
    transport: Transport,
    /// Somebody said that this registry needs no encryption; being on this machine says nothing of other hosts.
    leads_to_plain: bool,
    agents: Mutex<HashMap<Route, Agent>>,
}

/// What needs an agent of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Route {
    https: bool,
    proxy: Option<String>,
    /// Hosts have their own certificate authorities; empty without TLS.
    host: String,
}

impl Http {
    pub(super) fn new(options: &RegistryOptions, endpoint: &Endpoint) -> Result<Http, RegistryError> {
        let url = Url::of_api(&endpoint.api_host, true)
            .ok_or_else(|| RegistryError::BadHost(endpoint.api_host.clone()))?;
        Ok(Http {
            options: options.clone(),
            authority: url.authority(),
            tls: endpoint.tls.clone(),
            transport: endpoint.transport,
            leads_to_plain: match endpoint.transport {
                Transport::Tls => false,
                Transport::TlsOrPlain => !url.is_loopback(),
                Transport::Plain => true,
            },
            agents: Mutex::default(),
        })
    }

    /// The user's wishes.
    pub(super) fn options(&self) -> &RegistryOptions {
        &self.options
    }

    /// The API of the registry at `api_host`. Where both transports may be used this asks which one answers.
    pub(super) fn api_url(&self, api_host: &str) -> Result<Url, RegistryError> {
        let url =
            |https| Url::of_api(api_host, https).ok_or_else(|| RegistryError::BadHost(api_host.to_owned()));
        match self.transport {
            Transport::Plain => url(false),
            Transport::Tls => url(true),
            Transport::TlsOrPlain => {
                let encrypted = url(true)?;
                match self.exchange(&encrypted, &Request { small: true, ..Request::default() }) {
                    Ok(_) => Ok(encrypted),
                    // Nothing of this is healed by doing without encryption.
                    Err(
                        error @ (RegistryError::Certificate { .. }
                        | RegistryError::ClientCertificate { .. }
                        | RegistryError::Authorities(_)
                        | RegistryError::Proxy { .. }),
                    ) => Err(error),
                    Err(_) => url(false),
                }
            }
        }
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
            let next = follow(&url, location, self.leads_to_plain)?;
            if !next.same_origin(&origin) {
                // Once dropped it stays dropped, even if the way leads back.
                authorization = None;
            }
            url = next;
        }
        Err(redirect(&url, &format!("more than {MAX_REDIRECTS} times")))
    }

    fn send(
        &self,
        url: &Url,
        request: &Request,
        authorization: Option<&str>,
    ) -> Result<Response<Body>, RegistryError> {
        let agent = self.agent(url)?;
        let address = url.to_request();
        let result = match (&request.form, request.method) {
            (Some(form), _) => self
                .prepare(agent.post(address), request, authorization)
                .content_type("application/x-www-form-urlencoded")
                .send(form.as_str()),
            (None, Method::Get) => self.prepare(agent.get(address), request, authorization).call(),
            (None, Method::Head) => self.prepare(agent.head(address), request, authorization).call(),
        };
        result.map_err(|error| transport_error(&url.authority(), error))
    }

    fn prepare<B>(
        &self,
        builder: RequestBuilder<B>,
        request: &Request,
        authorization: Option<&str>,
    ) -> RequestBuilder<B> {
        let headers = [
            ("accept", request.accept.as_deref()),
            // Without it a proxy on the way may compress, and digests are of the bytes as stored.
            ("accept-encoding", Some("identity")),
            ("authorization", authorization),
            ("range", request.range.as_deref()),
            ("if-range", request.if_range.as_deref()),
        ];
        let headers = headers.into_iter().filter_map(|(name, value)| Some((name, value?)));
        headers
            .fold(builder, |builder, (name, value)| builder.header(name, value))
            .config()
            .timeout_global(request.small.then_some(self.options.patience.answer))
            .build()
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
                let failed = |why| RegistryError::Proxy { host: url.authority(), why };
                Some(proxies::parse(text).map_err(failed)?)
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
            let tls = if route.host == self.authority {
                self.tls.clone()
            } else {
                trust::tls_of(&route.host, &self.options)?
            };
            config = config.tls_config(trust::tls_config(&tls, &self.options)?);
        }
        Ok(config.build().new_agent())
    }
}

/// Where a redirect leads, if we go there. `to_plain`: stores without encryption will do.
fn follow(from: &Url, location: Option<&str>, to_plain: bool) -> Result<Url, RegistryError> {
    let location = location.ok_or_else(|| redirect(from, "without saying where"))?;
    let next = from.join(location).ok_or_else(|| redirect(from, "to a malformed address"))?;
    // Services that only this machine reaches are nobody's stores; a registry far away must not make us ask them.
    if next.is_this_machine() && !from.is_this_machine() {
        return Err(redirect(from, &format!("to this machine itself, {}", next.authority())));
    }
    if !next.https && from.https {
        return Err(redirect(from, &format!("from https to the unencrypted {next}")));
    }
    if !next.https && !next.is_loopback() && !to_plain {
        return Err(redirect(from, &format!("to the unencrypted {next}")));
    }
    Ok(next)
}

fn redirect(from: &Url, why: &str) -> RegistryError {
    RegistryError::Redirect { host: from.authority(), why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_that_are_followed() {
        for (from, location, to_plain, expected) in [
            ("https://r.org/v2/x", "https://cdn.org/x?sig=s3cret", false, Ok("https://cdn.org/x?sig=s3cret")),
            ("https://r.org/v2/x", "/y", false, Ok("https://r.org/y")),
            ("https://r.org/v2/x", "https://10.1.2.3/y", false, Ok("https://10.1.2.3/y")),
            ("https://r.org/v2/x", "http://cdn.org/x?s3cret", true, Err("from https to the unencrypted")),
            ("https://r.org/v2/x", "https://localhost/y", false, Err("to this machine itself")),
            ("https://r.org/v2/x", "https://a.localhost./y", false, Err("to this machine itself")),
            (
                "https://r.org/v2/x",
                "https://127.8.0.1:8443/y",
                false,
                Err("to this machine itself, 127.8.0.1:8443"),
            ),
            ("https://r.org/v2/x", "https://[::1]/y", false, Err("to this machine itself")),
            ("https://r.org/v2/x", "https://[::ffff:127.0.0.1]/y", false, Err("to this machine itself")),
            ("https://r.org/v2/x", "https://169.254.169.254/latest", false, Err("to this machine itself")),
            ("https://r.org/v2/x", "https://[fe80::1]/y", false, Err("to this machine itself")),
            ("https://r.org/v2/x", "https://0.0.0.0/y", false, Err("to this machine itself")),
            ("http://r.org/v2/x", "http://127.0.0.1/y", true, Err("to this machine itself")),
            ("http://r.org/v2/x", "http://store.org/y", true, Ok("http://store.org/y")),
            ("http://127.0.0.1:5000/v2/x", "http://127.0.0.1:9000/y", false, Ok("http://127.0.0.1:9000/y")),
            (
                "http://127.0.0.1:5000/v2/x",
                "http://store.org/y",
                false,
                Err("to the unencrypted http://store.org/y"),
            ),
        ] {
            let result = follow(&Url::parse(from).unwrap(), Some(location), to_plain);
            let shown = result.map(|url| url.to_request()).map_err(|error| error.to_string());
            match (&shown, expected) {
                (Ok(url), Ok(expected)) => assert_eq!(url, expected, "{from} {location}"),
                (Err(error), Err(part)) => {
                    assert!(error.contains(part) && !error.contains("s3cret"), "{from} {location}: {error}");
                }
                _ => panic!("{from} {location}: {shown:?}"),
            }
        }
        assert!(follow(&Url::parse("https://r.org/").unwrap(), None, false).is_err());
    }
}
