//! The registry's API: manifests and blobs of one repository, with login, retries and errors in plain words.

use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::auth::Authoriser;
use super::challenge::parse_challenges;
use super::error::{RegistryError, printable};
use super::http::{Answer, Http, Request};
use super::options::RegistryOptions;
use super::retry::{Patience, is_transient, parse_retry_after};
use super::url::Url;
use crate::image::digest::Digest;
use crate::image::manifest::{ACCEPT, MAX_MANIFEST_BYTES};
use crate::image::reference::Reference;

const MAX_ERROR_BYTES: u64 = 64 << 10;

/// One repository of one registry.
#[derive(Debug)]
pub(super) struct Client {
    http: Http,
    authoriser: Authoriser,
    base: Url,
    repository: String,
}

/// A manifest as it came.
#[derive(Debug)]
pub(super) struct ManifestAnswer {
    pub(super) bytes: Vec<u8>,
    /// `Content-Type`
    pub(super) media_type: Option<String>,
    /// `Docker-Content-Digest`
    pub(super) stated_digest: Option<String>,
}

impl Client {
    pub(super) fn new(reference: &Reference, options: &RegistryOptions) -> Result<Client, RegistryError> {
        let registry = reference.registry().to_owned();
        let http = Http::new(options.clone(), registry.clone());
        let base = http.registry_url(reference.api_host())?;
        let repository = reference.repository().to_owned();
        let authoriser = Authoriser::new(registry, repository.clone());
        Ok(Client { http, authoriser, base, repository })
    }

    pub(super) fn patience(&self) -> &Patience {
        &self.http.options().patience
    }

    /// The manifest or index `identifier` (tag or digest), unverified.
    pub(super) fn manifest(&self, identifier: &str) -> Result<ManifestAnswer, RegistryError> {
        let what = format!("manifest {identifier} of {}", self.repository);
        let request = Request { accept: Some(ACCEPT.join(", ")), small: true, ..Request::default() };
        let path = format!("manifests/{identifier}");
        self.persist(|| {
            let answer = self.get(&path, &what, &request)?;
            let media_type = answer.header("content-type").map(str::to_owned);
            let stated_digest = answer.header("docker-content-digest").map(str::to_owned);
            let bytes = answer.read_small(MAX_MANIFEST_BYTES, &what)?;
            Ok(ManifestAnswer { bytes, media_type, stated_digest })
        })
    }

    /// One try at the blob from byte `start` on; success is 200 or 206.
    pub(super) fn blob(&self, digest: &Digest, start: u64) -> Result<Answer, RegistryError> {
        let what = format!("blob {digest} of {}", self.repository);
        let range = if start > 0 { Some(format!("bytes={start}-")) } else { None };
        let request = Request { range, ..Request::default() };
        self.get(&format!("blobs/{digest}"), &what, &request)
    }

    /// Tries again while that may help.
    fn persist<T>(&self, attempt: impl Fn() -> Result<T, RegistryError>) -> Result<T, RegistryError> {
        let mut tries = 0;
        loop {
            match attempt() {
                Err(error) if error.is_transient() && tries < self.patience().retries => {
                    let pause = self.pause(tries, &error);
                    log::info!("{error}; trying again in {:.1} s", pause.as_secs_f64());
                    std::thread::sleep(pause);
                    tries = tries.saturating_add(1);
                }
                Err(error) => return Err(error.after(tries.saturating_add(1))),
                Ok(value) => return Ok(value),
            }
        }
    }

    /// The pause before retry `number` after `error`.
    pub(super) fn pause(&self, number: u32, error: &RegistryError) -> Duration {
        let asked = match error {
            RegistryError::RateLimited { asked, .. } | RegistryError::Status { asked, .. } => *asked,
            _ => None,
        };
        self.patience().pause(number, asked)
    }

    /// One try, with a second one after a 401 that could be answered.
    fn get(&self, path: &str, what: &str, request: &Request) -> Result<Answer, RegistryError> {
        let refused = || RegistryError::BadHost(self.base.authority());
        let url = self.base.join(&format!("/v2/{}/{path}", self.repository)).ok_or_else(refused)?;
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
            if status == 401 && !renewed && answer.url.same_origin(&self.base) {
                let challenges = answer.headers("www-authenticate");
                let challenges = parse_challenges(challenges.iter().map(String::as_str));
                renewed = self.authoriser.renew(&self.http, &self.base, &challenges, &authorization)?;
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
        let own = answer.url.same_origin(&self.base);
        let (code, message) = match answer.read_small(MAX_ERROR_BYTES, "an error") {
            Ok(bytes) => parse_error_body(&bytes),
            Err(_) => (String::new(), String::new()),
        };
        let unauthorised = matches!(code.as_str(), "UNAUTHORIZED" | "DENIED");
        match status {
            401 | 403 if own => self.unauthorised(message),
            404 if own && unauthorised => self.unauthorised(message),
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
            host: self.base.authority(),
            repository: self.repository.clone(),
            who: if self.authoriser.has_login() { "you" } else { "anonymous users" },
            message,
        }
    }
}

/// Code and message of the first error in `{"errors":[{"code":...,"message":...}]}`.
fn parse_error_body(bytes: &[u8]) -> (String, String) {
    let document: Value = serde_json::from_slice(bytes).unwrap_or(Value::Null);
    let first = document.get("errors").and_then(|errors| errors.get(0)).cloned().unwrap_or(Value::Null);
    let text = |key: &str| first.get(key).and_then(Value::as_str).unwrap_or_default();
    let (code, message) = (text("code"), printable(text("message")));
    match (code, message.as_str()) {
        ("", "") => (String::new(), String::new()),
        (code, "") => (code.to_ascii_uppercase(), printable(code)),
        (code, _) => (code.to_ascii_uppercase(), message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_bodies() {
        let pair = |code: &str, message: &str| (code.to_owned(), message.to_owned());
        for (body, expected) in [
            (
                r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{}}]}"#,
                pair("MANIFEST_UNKNOWN", "manifest unknown"),
            ),
            (r#"{"errors":[{"code":"denied"}]}"#, pair("DENIED", "denied")),
            (r#"{"errors":[{"message":"a\nb\u001b[31m"}]}"#, pair("", "a b [31m")),
            (r#"{"errors":[]}"#, pair("", "")),
            (r#"{"errors":"x"}"#, pair("", "")),
            ("<html>", pair("", "")),
            ("", pair("", "")),
        ] {
            assert_eq!(parse_error_body(body.as_bytes()), expected, "{body}");
        }
        let long = format!(r#"{{"errors":[{{"message":"{}"}}]}}"#, "x".repeat(5000));
        assert!(parse_error_body(long.as_bytes()).1.len() < 400);
    }
}
