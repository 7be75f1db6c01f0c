//! One endpoint's API: manifests and blobs of one repository, with login, retries and errors in plain words.

use std::io::Read as _;
use std::sync::OnceLock;
use std::time::SystemTime;

use super::auth::Authoriser;
use super::challenge::parse_challenges;
use super::endpoints::{Endpoint, Serves, Transport};
use super::error::RegistryError;
use super::error_body::ErrorBody;
use super::failure::body_error;
use super::http::{Answer, Http, Method, Request};
use super::options::RegistryOptions;
use super::retry::{Patience, is_transient, parse_retry_after};
use super::trust;
use super::url::Url;
use crate::image::digest::{Algorithm, Digest};
use crate::image::manifest::{ACCEPT, Descriptor, MAX_MANIFEST_BYTES};

/// One repository of one server.
#[derive(Debug)]
pub(super) struct Client {
    http: Http,
    authoriser: Authoriser,
    /// As people name it.
    registry: String,
    api_host: String,
    repository: String,
    /// The API, known once the server was first asked.
    base: OnceLock<Url>,
    /// Where the one blob is, on a server that is no registry.
    store: Option<Url>,
}

/// A manifest or index whose bytes have the digest.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) bytes: Vec<u8>,
    pub(super) digest: Digest,
    /// `Content-Type`; none where the document was known before.
    pub(super) media_type: Option<String>,
}

impl Client {
    pub(super) fn new(endpoint: &Endpoint, options: &RegistryOptions) -> Result<Client, RegistryError> {
        Ok(Client {
            http: Http::new(options, endpoint)?,
            authoriser: Authoriser::new(endpoint.registry.clone(), endpoint.repository.clone()),
            registry: endpoint.registry.clone(),
            api_host: endpoint.api_host.clone(),
            repository: endpoint.repository.clone(),
            base: OnceLock::new(),
            store: None,
        })
    }

    /// The blob at `url`, which is in no registry: no login is ever sent there.
    pub(super) fn of_store(url: Url, options: &RegistryOptions) -> Result<Client, RegistryError> {
        let endpoint = Endpoint {
            registry: url.authority(),
            api_host: url.authority(),
            repository: String::new(),
            transport: if url.https { Transport::Tls } else { Transport::TlsOrPlain },
            tls: trust::tls_of(&url.authority(), options)?,
            serves: Serves::All,
        };
        Ok(Client { store: Some(url), ..Client::new(&endpoint, options)? })
    }

    /// As people name it: `docker.io`.
    pub(super) fn name(&self) -> &str {
        &self.registry
    }

    pub(super) fn patience(&self) -> &Patience {
        &self.http.options().patience
    }

    /// What the server says is the digest of a tag. None: it does not say, and has to be asked for the manifest itself,
    /// as some registries do not know `HEAD`, or refuse it, or forget the digest; and only a `GET` has an error's text.
    pub(super) fn digest_of(&self, tag: &str) -> Result<Option<Digest>, RegistryError> {
        let what = format!("manifest {tag} of {}", self.repository);
        let request = Request { method: Method::Head, ..manifest_request() };
        let path = format!("manifests/{tag}");
        match self.ask(&path, &what, &request) {
            Ok(answer) => Ok(stated_digest(&answer)),
            Err(error @ RegistryError::RateLimited { .. }) => {
                self.wait(0, &error);
                Ok(None)
            }
            Err(error) if error.may_be_of_head() => {
                log::debug!("no digest of {tag} by HEAD: {}", error.in_one_line());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The manifest or index `tag`; checked against what the server says its digest is.
    pub(super) fn manifest_by_tag(&self, tag: &str) -> Result<Document, RegistryError> {
        self.manifest(tag, None)
    }

    /// The manifest or index with this digest.
    pub(super) fn manifest_by_digest(&self, digest: &Digest) -> Result<Document, RegistryError> {
        self.manifest(digest.as_str(), Some(digest))
    }

    fn manifest(&self, identifier: &str, wanted: Option<&Digest>) -> Result<Document, RegistryError> {
        let what = format!("manifest {identifier} of {}", self.repository);
        let path = format!("manifests/{identifier}");
        let request = manifest_request();
        self.persist(|| {
            let answer = self.ask(&path, &what, &request)?;
            answer.refuse_encoding("a manifest")?;
            let host = answer.url.authority();
            let media_type = answer.header("content-type").map(str::to_owned);
            let stated = stated_digest(&answer);
            let bytes = answer.read_small(MAX_MANIFEST_BYTES, &what)?;
            let digest = match wanted.or(stated.as_ref()) {
                Some(expected) => verified(expected, &bytes, &what, &host)?,
                None => Digest::of_with(Algorithm::Sha256, &bytes),
            };
            Ok(Document { bytes, digest, media_type })
        })
    }

    /// All of a blob that is small enough to be held in memory.
    pub(super) fn small_blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, RegistryError> {
        let what = format!("blob {}", descriptor.digest);
        let request = Request { small: true, ..Request::default() };
        self.persist(|| {
            let answer = self.ask(&format!("blobs/{}", descriptor.digest), &what, &request)?;
            let host = answer.url.authority();
            let wrong_size = |actual| {
                Err(RegistryError::WrongSize { what: what.clone(), expected: descriptor.size, actual })
            };
            if let Some(stated) = answer.content_length().filter(|stated| *stated != descriptor.size) {
                return wrong_size(stated);
            }
            let mut bytes = Vec::new();
            let mut body = answer.into_body().take(descriptor.size.saturating_add(1));
            body.read_to_end(&mut bytes).map_err(|error| body_error(&host, error))?;
            if bytes.len() as u64 != descriptor.size {
                return wrong_size(bytes.len() as u64);
            }
            verified(&descriptor.digest, &bytes, &what, &host).map(|_| bytes)
        })
    }

    /// One try at the blob from byte `start` on, if it is still the one with the tag `unchanged`; success is 200 or 206.
    pub(super) fn blob(
        &self,
        digest: &Digest,
        start: u64,
        unchanged: Option<&str>,
    ) -> Result<Answer, RegistryError> {
        let what = format!("blob {digest} of {}", self.repository);
        let range = (start > 0).then(|| format!("bytes={start}-"));
        let if_range = range.as_ref().and(unchanged).map(str::to_owned);
        let request = Request { range, if_range, ..Request::default() };
        self.ask(&format!("blobs/{digest}"), &what, &request)
    }

    /// Tries again while that may help.
    fn persist<T>(&self, attempt: impl Fn() -> Result<T, RegistryError>) -> Result<T, RegistryError> {
        let mut tries = 0;
        loop {
            match attempt() {
                Err(error) if error.is_transient() && tries < self.patience().retries => {
                    self.wait(tries, &error);
                    tries = tries.saturating_add(1);
                }
                Err(error) => return Err(error.after_tries(tries.saturating_add(1))),
                Ok(value) => return Ok(value),
            }
        }
    }

    /// Pauses before retry `number` (0 = first) after `error`.
    pub(super) fn wait(&self, number: u32, error: &RegistryError) {
        let pause = self.patience().pause_after(number, error);
        log::info!("{}; trying again in {:.1} s", error.in_one_line(), pause.as_secs_f64());
        std::thread::sleep(pause);
    }

    /// The API, found out when first needed.
    fn base(&self) -> Result<&Url, RegistryError> {
        if let Some(base) = self.base.get() {
            return Ok(base);
        }
        let found = self.http.api_url(&self.api_host)?;
        Ok(self.base.get_or_init(|| found))
    }

    /// One try, with a second one after a 401 that could be answered. Success is 200 or 206.
    fn ask(&self, path: &str, what: &str, request: &Request) -> Result<Answer, RegistryError> {
        if let Some(url) = &self.store {
            let answer = self.http.exchange(url, request)?;
            let good = matches!(answer.status(), 200 | 206);
            return if good { Ok(answer) } else { Err(self.refusal(answer, what)) };
        }
        let base = self.base()?;
        let refused = || RegistryError::BadHost(base.authority());
        let url = base.join(&format!("/v2/{}/{path}", self.repository)).ok_or_else(refused)?;
        let mut request = request.clone();
        let mut renewed = false;
        loop {
            let authorization = self.authoriser.current();
            request.authorization.clone_from(&authorization.text);
            let answer = self.http.exchange(&url, &request)?;
            let status = answer.status();
            if status == 200 || status == 206 {
                return Ok(answer);
            }
            // Only the registry itself may ask for a login, not where it redirects to.
            if status == 401 && !renewed && answer.url.same_origin(base) {
                let challenges = answer.headers("www-authenticate");
                let challenges = parse_challenges(challenges.iter().map(String::as_str));
                renewed = self.authoriser.renew(&self.http, base, &challenges, &authorization)?;
                if renewed {
                    continue;
                }
            }
            return Err(self.refusal(answer, what));
        }
    }

    fn refusal(&self, answer: Answer, what: &str) -> RegistryError {
        let (status, what) = (answer.status(), what.to_owned());
        let asked = answer.header("retry-after").and_then(|text| parse_retry_after(text, SystemTime::now()));
        let host = answer.url.authority();
        let own = self.base.get().is_some_and(|base| answer.url.same_origin(base));
        let ErrorBody { message, refuses_access } = ErrorBody::read(answer);
        match status {
            401 | 403 if own => self.unauthorised(message),
            404 if own && refuses_access => self.unauthorised(message),
            404 if own => RegistryError::NotFound { host, what, message },
            429 => RegistryError::RateLimited { host, tries: 1, message, asked },
            _ => {
                let asked = asked.filter(|_| is_transient(status));
                RegistryError::Status { host, status, what, message, asked }
            }
        }
    }

    fn unauthorised(&self, message: String) -> RegistryError {
        RegistryError::Unauthorised {
            host: self.registry.clone(),
            repository: self.repository.clone(),
            who: if self.authoriser.has_login() { "you" } else { "anonymous users" },
            message,
        }
    }
}

fn manifest_request() -> Request {
    Request { accept: Some(ACCEPT.join(", ")), small: true, ..Request::default() }
}

/// `Docker-Content-Digest`, if it is one.
fn stated_digest(answer: &Answer) -> Option<Digest> {
    Digest::parse(answer.header("docker-content-digest")?.trim()).ok()
}

/// `expected`, if that is what the bytes have.
fn verified(expected: &Digest, bytes: &[u8], what: &str, host: &str) -> Result<Digest, RegistryError> {
    let actual = Digest::of_with(expected.algorithm(), bytes);
    if actual == *expected {
        return Ok(actual);
    }
    Err(RegistryError::WrongDigest {
        host: host.to_owned(),
        what: what.to_owned(),
        expected: expected.to_string(),
        actual: actual.to_string(),
    })
}
