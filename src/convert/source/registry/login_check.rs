//! Whether a registry takes a login, asked before it is kept: `GET /v2/`, which every registry answers.

use super::auth::Authoriser;
use super::challenge::parse_challenges;
use super::credentials::Login;
use super::error::RegistryError;
use super::http::{Http, Request};
use super::mirrors;
use super::options::RegistryOptions;
use crate::image::reference::Reference;

/// What came of asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoginCheck {
    /// The registry takes the login.
    Taken,
    /// It answers everybody, so that nothing can be said of the login.
    NotAsked,
}

/// Asks the registry that `reference` names whether it takes `login`. No repository is asked for.
pub fn check_login(
    reference: &Reference,
    login: Login,
    options: &RegistryOptions,
) -> Result<LoginCheck, RegistryError> {
    let endpoint = mirrors::registry_itself(reference, options)?;
    let options = RegistryOptions { login: Some(login), ..options.clone() };
    let http = Http::new(&options, &endpoint)?;
    let base = http.api_url(&endpoint.api_host)?;
    let authoriser = Authoriser::new(endpoint.registry.clone(), String::new());
    let mut request = Request { small: true, ..Request::default() };
    let host = || endpoint.registry.clone();
    let refused = |message: String| RegistryError::LoginRefused { host: host(), message };
    let answer = http.exchange(&base, &request)?;
    match answer.status() {
        200 => return Ok(LoginCheck::NotAsked),
        401 => {}
        status => return Err(unexpected(host(), status)),
    }
    let challenges = answer.headers("www-authenticate");
    let challenges = parse_challenges(challenges.iter().map(String::as_str));
    match authoriser.renew(&http, &base, &challenges, &authoriser.current()) {
        Ok(true) => {}
        Ok(false) => return Err(refused("it asks for another kind of login".to_owned())),
        Err(RegistryError::Unauthorised { message, .. }) => return Err(refused(message)),
        Err(error) => return Err(error),
    }
    request.authorization = authoriser.current().text;
    match http.exchange(&base, &request)?.status() {
        200 => Ok(LoginCheck::Taken),
        401 | 403 => Err(refused(String::new())),
        status => Err(unexpected(host(), status)),
    }
}

fn unexpected(host: String, status: u16) -> RegistryError {
    RegistryError::Status { host, status, what: "its API".to_owned(), message: String::new(), asked: None }
}
