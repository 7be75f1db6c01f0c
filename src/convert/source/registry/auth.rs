//! Authorisation: from a registry's challenges and the user's login to an `Authorization` header.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use super::challenge::{Challenge, pull_scopes};
use super::credentials::{self, Login};
use super::error::{RegistryError, printable};
use super::error_body::ErrorBody;
use super::http::{Answer, Http, Request};
use super::retry::{is_transient, parse_retry_after};
use super::url::Url;

const MAX_TOKEN_BYTES: u64 = 1 << 20;
/// What the protocol says a token lives at least.
const SHORTEST_LIFE: Duration = Duration::from_secs(60);

/// The header for one repository, renewed when the registry asks.
#[derive(Debug)]
pub(super) struct Authoriser {
    /// As named, the key of logins.
    registry: String,
    repository: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Looked up once, when first needed.
    login: Option<Option<Login>>,
    header: Option<Header>,
    /// Counts renewals, so that of several threads refused at once only one renews.
    generation: u64,
}

struct Header {
    text: String,
    expires: Option<Instant>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "State(generation {})", self.generation)
    }
}

/// A header and which renewal it comes from.
#[derive(Clone)]
pub(super) struct Authorization {
    pub(super) text: Option<String>,
    pub(super) generation: u64,
}

impl Authoriser {
    pub(super) fn new(registry: String, repository: String) -> Authoriser {
        Authoriser { registry, repository, state: Mutex::new(State::default()) }
    }

    /// The header to send now; none before the registry has asked, or when its token has run out.
    pub(super) fn current(&self) -> Authorization {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let alive = |header: &&Header| header.expires.is_none_or(|end| Instant::now() < end);
        let text = state.header.as_ref().filter(alive).map(|header| header.text.clone());
        Authorization { text, generation: state.generation }
    }

    /// Answers the challenges of a 401 that `refused` got. False: there is nothing (more) to offer.
    pub(super) fn renew(
        &self,
        http: &Http,
        base: &Url,
        challenges: &[Challenge],
        refused: &Authorization,
    ) -> Result<bool, RegistryError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.generation != refused.generation {
            return Ok(true);
        }
        let login = match &state.login {
            Some(login) => login.clone(),
            None => {
                let login = self.look_up(http)?;
                state.login = Some(login.clone());
                login
            }
        };
        let header = self.answer(http, base, challenges, login.as_ref())?;
        let Some(header) = header else { return Ok(false) };
        state.header = Some(header);
        state.generation = state.generation.saturating_add(1);
        Ok(true)
    }

    /// Whether a login was found and used.
    pub(super) fn has_login(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        matches!(state.login, Some(Some(_)))
    }

    fn look_up(&self, http: &Http) -> Result<Option<Login>, RegistryError> {
        credentials::look_up(http.options(), &self.registry, &self.repository)
    }

    /// The header for the first challenge that can be answered. A token can carry an anonymous user or any login; Basic
    /// carries a password only. Negotiate and others are not ours.
    fn answer(
        &self,
        http: &Http,
        base: &Url,
        challenges: &[Challenge],
        login: Option<&Login>,
    ) -> Result<Option<Header>, RegistryError> {
        if let Some(text) = login.and_then(Login::bearer) {
            return Ok(Some(Header { text, expires: None }));
        }
        let mut unusable = None;
        for challenge in challenges.iter().filter(|challenge| challenge.scheme == "bearer") {
            match token_server(challenge, base, login) {
                Ok(realm) => return self.token(http, base, &realm, challenge, login).map(Some),
                Err(error) => unusable = unusable.or(Some(error)),
            }
        }
        let basic = challenges.iter().any(|challenge| challenge.scheme == "basic");
        match (login.and_then(Login::basic), unusable) {
            (Some(text), _) if basic => Ok(Some(Header { text, expires: None })),
            (_, Some(error)) => Err(error),
            (_, None) => Ok(None),
        }
    }

    fn token(
        &self,
        http: &Http,
        base: &Url,
        realm: &Url,
        challenge: &Challenge,
        login: Option<&Login>,
    ) -> Result<Header, RegistryError> {
        if realm.host != base.host {
            log::info!("{} has its tokens given out by {}", base.authority(), realm.authority());
        }
        let fail = |why: String| no_token(base, realm.to_string(), why);
        let malformed = || fail("its address is malformed".to_owned());
        let (url, request) = self.token_request(realm, challenge, login).ok_or_else(malformed)?;
        let mut answer = http.exchange(&url, &request)?;
        // OAuth 2 servers know POST only.
        if let (404 | 405, Some(Login::Password { user, password })) = (answer.status(), login) {
            answer = http.exchange(realm, &self.password_grant(challenge, user, password))?;
        }
        match answer.status() {
            200 => {}
            status @ (400 | 401 | 403) => return Err(self.refused(realm, status, answer, login.is_some())),
            429 => return Err(rate_limited(realm, answer)),
            status if is_transient(status) => return Err(unavailable(realm, status, answer)),
            status => return Err(fail(format!("it answered with status {status}"))),
        }
        let bytes = answer.read_small(MAX_TOKEN_BYTES, "a token")?;
        parse_token(&bytes).ok_or_else(|| fail("its answer holds no token".to_owned()))
    }

    fn refused(&self, realm: &Url, status: u16, answer: Answer, with_login: bool) -> RegistryError {
        let words = ErrorBody::read(answer).message;
        let words = if words.is_empty() { String::new() } else { format!(": {words}") };
        RegistryError::Unauthorised {
            host: self.registry.clone(),
            repository: self.repository.clone(),
            who: if with_login { "you" } else { "anonymous users" },
            message: format!("{realm} gives no token, status {status}{words}"),
        }
    }

    fn token_request(
        &self,
        realm: &Url,
        challenge: &Challenge,
        login: Option<&Login>,
    ) -> Option<(Url, Request)> {
        if let Some(Login::IdentityToken(token)) = login {
            let secret = [("grant_type", "refresh_token"), ("refresh_token", token)];
            return Some((realm.clone(), self.grant(challenge, &secret)));
        }
        let scopes = self.scopes(challenge);
        let mut fields: Vec<(&str, &str)> = scopes.iter().map(|scope| ("scope", scope.as_str())).collect();
        if let Some(service) = challenge.parameter("service").filter(|service| !service.is_empty()) {
            fields.insert(0, ("service", service));
        }
        if let Some(Login::Password { user, .. }) = login {
            fields.push(("account", user));
        }
        let authorization = login.and_then(Login::basic);
        let text = realm.to_request();
        let joint = if text.contains('?') { '&' } else { '?' };
        let url = Url::parse(&format!("{text}{joint}{}", encode_form(&fields)))?;
        Some((url, Request { authorization, small: true, ..Request::default() }))
    }

    fn password_grant(&self, challenge: &Challenge, user: &str, password: &str) -> Request {
        self.grant(challenge, &[("grant_type", "password"), ("username", user), ("password", password)])
    }

    /// A POST as OAuth 2 has it; several scopes are one field there.
    fn grant(&self, challenge: &Challenge, secret: &[(&str, &str)]) -> Request {
        let scope = self.scopes(challenge).join(" ");
        let service = challenge.parameter("service").unwrap_or_default();
        let common = [("service", service), ("scope", &scope), ("client_id", "hpcrun")];
        let stated = common.into_iter().filter(|(_, value)| !value.is_empty());
        let fields: Vec<(&str, &str)> = stated.chain(secret.iter().copied()).collect();
        Request { form: Some(encode_form(&fields)), small: true, ..Request::default() }
    }

    /// What the registry says is needed, which knows its repositories by other names behind some proxies; but never
    /// more than to pull. Nothing where no repository is meant, as when a login is only checked.
    fn scopes(&self, challenge: &Challenge) -> Vec<String> {
        let stated = pull_scopes(challenge.parameter("scope").unwrap_or_default());
        match stated.is_empty() && !self.repository.is_empty() {
            true => vec![format!("repository:{}:pull", self.repository)],
            false => stated,
        }
    }
}

fn no_token(base: &Url, realm: String, why: String) -> RegistryError {
    RegistryError::Token { host: base.authority(), realm, why }
}

/// Where a challenge sends us for a token, if we go there.
fn token_server(challenge: &Challenge, base: &Url, login: Option<&Login>) -> Result<Url, RegistryError> {
    let text = challenge.parameter("realm").unwrap_or_default();
    let realm = Url::parse(text)
        .ok_or_else(|| no_token(base, printable(text), "its address is malformed".to_owned()))?;
    match check_realm(&realm, base, login.is_some()) {
        Ok(()) => Ok(realm),
        Err(why) => Err(no_token(base, realm.to_string(), why.to_owned())),
    }
}

fn rate_limited(realm: &Url, answer: Answer) -> RegistryError {
    let asked = retry_after(&answer);
    let message = ErrorBody::read(answer).message;
    RegistryError::RateLimited { host: realm.authority(), tries: 1, message, asked }
}

fn unavailable(realm: &Url, status: u16, answer: Answer) -> RegistryError {
    let asked = retry_after(&answer);
    let (host, what) = (realm.authority(), "a token".to_owned());
    RegistryError::Status { host, status, what, message: ErrorBody::read(answer).message, asked }
}

fn retry_after(answer: &Answer) -> Option<Duration> {
    parse_retry_after(answer.header("retry-after")?, SystemTime::now())
}

/// A registry says where the token server is; it must not be able to send the user's password just anywhere.
fn check_realm(realm: &Url, registry: &Url, with_login: bool) -> Result<(), &'static str> {
    if !realm.https && registry.https {
        return Err("it is unencrypted, the registry is not");
    }
    if !realm.https && with_login && !realm.is_loopback() && realm.host != registry.host {
        return Err("it is another host and unencrypted, and a login would be sent");
    }
    if realm.is_private_address() && realm.host != registry.host && !registry.is_loopback() {
        return Err("it is a private address other than the registry's");
    }
    Ok(())
}

fn parse_token(bytes: &[u8]) -> Option<Header> {
    let document: Value = serde_json::from_slice(bytes).ok()?;
    let text = |key: &str| document.get(key).and_then(Value::as_str).filter(|token| !token.is_empty());
    let token = text("token").or_else(|| text("access_token"))?;
    // It becomes a header.
    if !token.bytes().all(|b| b.is_ascii_graphic()) {
        return None;
    }
    let stated =
        document.get("expires_in").and_then(Value::as_u64).map_or(SHORTEST_LIFE, Duration::from_secs);
    let expires = Instant::now().checked_add(stated.max(SHORTEST_LIFE));
    Some(Header { text: format!("Bearer {token}"), expires })
}

/// `a=b&c=d`, percent-encoded.
fn encode_form(fields: &[(&str, &str)]) -> String {
    use std::fmt::Write as _;
    let encode = |text: &str| {
        text.bytes().fold(String::new(), |mut out, byte| {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                out.push(char::from(byte));
            } else {
                // Writing to a String cannot fail.
                let _ = write!(out, "%{byte:02X}");
            }
            out
        })
    };
    fields.iter().map(|(key, value)| format!("{key}={}", encode(value))).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::super::challenge::parse_challenges;
    use super::*;

    #[test]
    fn realms() {
        for (registry, realm, with_login, allowed) in [
            ("https://r.org/", "https://r.org/token", true, true),
            ("https://r.org/", "https://auth.other.org/token", true, true),
            ("https://r.org/", "http://r.org/token", false, false),
            ("https://r.org/", "https://127.0.0.1/token", true, false),
            ("https://r.org/", "https://localhost/token", true, false),
            ("https://r.org/", "https://169.254.169.254/latest", false, false),
            ("https://r.org/", "https://10.0.0.1/token", true, false),
            ("https://10.0.0.1/", "https://10.0.0.1:444/token", true, true),
            ("https://10.0.0.1/", "https://10.0.0.2/token", true, false),
            ("http://127.0.0.1:5000/", "http://127.0.0.1:5001/token", true, true),
            ("http://127.0.0.1:5000/", "http://other.org/token", true, false),
            ("http://127.0.0.1:5000/", "http://other.org/token", false, true),
            ("http://r.org/", "http://r.org:81/token", true, true),
            ("http://r.org/", "https://auth.org/token", true, true),
        ] {
            let (registry, realm) = (Url::parse(registry).unwrap(), Url::parse(realm).unwrap());
            let result = check_realm(&realm, &registry, with_login);
            assert_eq!(result.is_ok(), allowed, "{realm} for {registry}: {result:?}");
        }
    }

    #[test]
    fn tokens() {
        let text = |json: &str| parse_token(json.as_bytes()).map(|header| header.text);
        assert_eq!(text(r#"{"token":"a.b-c"}"#).as_deref(), Some("Bearer a.b-c"));
        assert_eq!(text(r#"{"access_token":"x"}"#).as_deref(), Some("Bearer x"));
        assert_eq!(text(r#"{"token":"","access_token":"x"}"#).as_deref(), Some("Bearer x"));
        assert_eq!(text(r#"{"token":"t","access_token":"x"}"#).as_deref(), Some("Bearer t"));
        for bad in ["", "{}", "[]", r#"{"token":7}"#, r#"{"token":"a\r\nX: y"}"#, r#"{"token":"a b"}"#] {
            assert_eq!(text(bad), None, "{bad}");
        }
        for (json, least) in
            [(r#"{"token":"t","expires_in":1}"#, 55), (r#"{"token":"t","expires_in":300}"#, 290)]
        {
            let expires = parse_token(json.as_bytes()).unwrap().expires.unwrap();
            assert!(expires > Instant::now() + Duration::from_secs(least), "{json}");
        }
        assert!(parse_token(br#"{"token":"t","expires_in":18446744073709551615}"#).is_some());
    }

    #[test]
    fn requests() {
        let authoriser = Authoriser::new("r.org".into(), "a/b".into());
        let challenge = |text: &str| parse_challenges([text]).remove(0);
        let plain = challenge(r#"Bearer realm="x",service="the registry""#);
        let realm = Url::parse("https://auth.org/token?x=1").unwrap();
        let (url, request) = authoriser.token_request(&realm, &plain, None).unwrap();
        assert_eq!(
            url.to_request(),
            "https://auth.org/token?x=1&service=the%20registry&scope=repository%3Aa%2Fb%3Apull"
        );
        assert!(request.authorization.is_none() && request.form.is_none());
        let login = Login::Password { user: "me".into(), password: "canary".into() };
        let bare = challenge("Bearer realm=x");
        let (url, request) = authoriser.token_request(&realm, &bare, Some(&login)).unwrap();
        assert_eq!(url.to_request(), "https://auth.org/token?x=1&scope=repository%3Aa%2Fb%3Apull&account=me");
        assert_eq!(request.authorization.as_deref(), Some("Basic bWU6Y2FuYXJ5"));
        let stated = challenge(r#"Bearer realm="x",scope="repository:hub/a/b:pull,push repository:c:pull""#);
        let (url, _) = authoriser.token_request(&realm, &stated, None).unwrap();
        assert_eq!(
            url.to_request(),
            "https://auth.org/token?x=1&scope=repository%3Ahub%2Fa%2Fb%3Apull&scope=repository%3Ac%3Apull"
        );
        let login = Login::IdentityToken("ref&resh".into());
        let (url, request) = authoriser.token_request(&realm, &plain, Some(&login)).unwrap();
        assert_eq!(url, realm);
        assert!(request.authorization.is_none());
        assert_eq!(
            request.form.as_deref(),
            Some(
                "service=the%20registry&scope=repository%3Aa%2Fb%3Apull&client_id=hpcrun&grant_type=refresh_token&refresh_token=ref%26resh"
            )
        );
        let request = authoriser.password_grant(&stated, "me", "p w");
        assert_eq!(
            request.form.as_deref(),
            Some(
                "scope=repository%3Ahub%2Fa%2Fb%3Apull%20repository%3Ac%3Apull&client_id=hpcrun&grant_type=password&username=me&password=p%20w"
            )
        );
    }
}
