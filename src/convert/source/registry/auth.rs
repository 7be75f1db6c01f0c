//! Authorisation: from a registry's challenges and the user's login to an `Authorization` header.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::challenge::Challenge;
use super::credentials::{self, Login};
use super::error::{RegistryError, printable};
use super::http::{Http, Request};
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
        // A token can carry an anonymous user or any login; Basic carries a password only. Negotiate and others are not ours.
        let bearer = challenges.iter().find(|challenge| challenge.scheme == "bearer");
        let basic = challenges.iter().any(|challenge| challenge.scheme == "basic");
        let ready = login.as_ref().and_then(Login::bearer);
        let header = match (bearer, login.as_ref().and_then(Login::basic)) {
            _ if ready.is_some() => ready.map(|text| Header { text, expires: None }),
            (Some(challenge), _) => Some(self.token(http, base, challenge, login.as_ref())?),
            (None, Some(text)) if basic => Some(Header { text, expires: None }),
            _ => None,
        };
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

    fn token(
        &self,
        http: &Http,
        base: &Url,
        challenge: &Challenge,
        login: Option<&Login>,
    ) -> Result<Header, RegistryError> {
        let fail = |realm: String, why: String| RegistryError::Token { host: base.authority(), realm, why };
        let realm = challenge.parameter("realm").unwrap_or_default();
        let malformed = || fail(printable(realm), "its address is malformed".to_owned());
        let realm = Url::parse(realm).ok_or_else(malformed)?;
        check_realm(&realm, base, login.is_some()).map_err(|why| fail(realm.to_string(), why.to_owned()))?;
        let service = challenge.parameter("service").unwrap_or_default();
        let (url, request) = self.token_request(&realm, service, login).ok_or_else(malformed)?;
        let answer = http.exchange(&url, &request)?;
        let status = answer.status();
        if status == 401 || status == 403 {
            return Err(RegistryError::Unauthorised {
                host: base.authority(),
                repository: self.repository.clone(),
                who: if login.is_some() { "you" } else { "anonymous users" },
                message: format!("{realm} refuses the login with status {status}"),
            });
        }
        if super::retry::is_transient(status) {
            return Err(RegistryError::Status {
                host: realm.authority(),
                status,
                what: "a token".to_owned(),
                message: String::new(),
                asked: None,
            });
        }
        if status != 200 {
            return Err(fail(realm.to_string(), format!("it answered with status {status}")));
        }
        let bytes = answer.read_small(MAX_TOKEN_BYTES, "a token")?;
        parse_token(&bytes).ok_or_else(|| fail(realm.to_string(), "its answer holds no token".to_owned()))
    }

    fn token_request(&self, realm: &Url, service: &str, login: Option<&Login>) -> Option<(Url, Request)> {
        let scope = format!("repository:{}:pull", self.repository);
        let mut request = Request { small: true, ..Request::default() };
        if let Some(Login::IdentityToken(token)) = login {
            let fields = [
                ("grant_type", "refresh_token"),
                ("service", service),
                ("scope", &scope),
                ("client_id", "hpcrun"),
                ("refresh_token", token),
            ];
            request.form = Some(encode_form(&fields));
            return Some((realm.clone(), request));
        }
        let mut fields = vec![("scope", scope.as_str())];
        if !service.is_empty() {
            fields.insert(0, ("service", service));
        }
        if let Some(Login::Password { user, .. }) = login {
            fields.push(("account", user));
        }
        request.authorization = login.and_then(Login::basic);
        let text = realm.to_request();
        let joint = if text.contains('?') { '&' } else { '?' };
        Some((Url::parse(&format!("{text}{joint}{}", encode_form(&fields)))?, request))
    }
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
        let realm = Url::parse("https://auth.org/token?x=1").unwrap();
        let (url, request) = authoriser.token_request(&realm, "the registry", None).unwrap();
        assert_eq!(
            url.to_request(),
            "https://auth.org/token?x=1&service=the%20registry&scope=repository%3Aa%2Fb%3Apull"
        );
        assert!(request.authorization.is_none() && request.form.is_none());
        let login = Login::Password { user: "me".into(), password: "canary".into() };
        let (url, request) = authoriser.token_request(&realm, "", Some(&login)).unwrap();
        assert!(url.to_request().ends_with("&account=me") && !url.to_request().contains("canary"));
        assert_eq!(request.authorization.as_deref(), Some("Basic bWU6Y2FuYXJ5"));
        let login = Login::IdentityToken("ref&resh".into());
        let (url, request) = authoriser.token_request(&realm, "s", Some(&login)).unwrap();
        assert_eq!(url, realm);
        assert!(request.authorization.is_none());
        assert_eq!(
            request.form.as_deref(),
            Some(
                "grant_type=refresh_token&service=s&scope=repository%3Aa%2Fb%3Apull&client_id=hpcrun&refresh_token=ref%26resh"
            )
        );
    }
}
