//! Logins for registries: where they are kept, and which one is for an image.
//!
//! The search is that of containers-auth.json(5): the files in order, or the helpers that `registries.conf` puts before
//! them; in each file the most specific key first. What has no login passes the question on to the next.

use std::fmt;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::auth_file::{AuthFile, Found, server_names};
use super::credential_helper::CredentialHelper;
use super::error::RegistryError;
use super::options::RegistryOptions;
use super::registries_conf::AUTH_FILES;

/// A login. `Debug` shows that there is one, not what it is.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    /// User name and password (or access token), for Basic.
    Password {
        /// User name.
        user: String,
        /// Password.
        password: String,
    },
    /// A refresh token, exchanged at the token server.
    IdentityToken(String),
    /// A token for the registry itself, `Bearer`.
    RegistryToken(String),
}

impl Login {
    /// A user name and a password; `<token>` as the name marks an identity token. None without a name.
    pub(super) fn new(user: &str, password: &str) -> Option<Login> {
        match user {
            "" => None,
            "<token>" => Some(Login::IdentityToken(password.to_owned())),
            _ => Some(Login::Password { user: user.to_owned(), password: password.to_owned() }),
        }
    }

    /// The `Authorization` header of a password.
    pub(super) fn basic(&self) -> Option<String> {
        match self {
            Login::Password { user, password } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
            }
            Login::IdentityToken(_) | Login::RegistryToken(_) => None,
        }
    }

    /// The `Authorization` header of a token that the registry takes as it is.
    pub(super) fn bearer(&self) -> Option<String> {
        match self {
            // It becomes a header.
            Login::RegistryToken(token) if token.bytes().all(|b| b.is_ascii_graphic()) => {
                Some(format!("Bearer {token}"))
            }
            _ => None,
        }
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Login::Password { .. } => "Password(...)",
            Login::IdentityToken(_) => "IdentityToken(...)",
            Login::RegistryToken(_) => "RegistryToken(...)",
        })
    }
}

/// The variables that decide where logins are kept; `None` where unset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuthEnvironment {
    /// `REGISTRY_AUTH_FILE`, or a file given on the command line.
    pub registry_auth_file: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`
    pub xdg_runtime_dir: Option<PathBuf>,
    /// `XDG_CONFIG_HOME`
    pub xdg_config_home: Option<PathBuf>,
    /// `DOCKER_CONFIG`, a directory.
    pub docker_config: Option<PathBuf>,
    /// `HOME`
    pub home: Option<PathBuf>,
    /// The user's number.
    pub uid: u32,
}

impl AuthEnvironment {
    /// The user's directory for settings of `containers`.
    fn config(&self) -> Option<PathBuf> {
        let config = set(&self.xdg_config_home).or_else(|| set(&self.home).map(|home| home.join(".config")));
        config.map(|path| path.join("containers"))
    }

    /// Whether `path` goes when the user's session ends.
    pub fn is_of_session(&self, path: &std::path::Path) -> bool {
        set(&self.xdg_runtime_dir).is_some_and(|directory| path.starts_with(directory))
    }

    /// Where `login` writes: the file named, else podman's place. That one goes with the session; where there is no
    /// session (`XDG_RUNTIME_DIR`), the file that stays.
    pub fn login_path(&self) -> Option<PathBuf> {
        let session = || set(&self.xdg_runtime_dir).map(|path| path.join("containers"));
        set(&self.registry_auth_file)
            .or_else(|| session().or_else(|| self.config()).map(|path| path.join("auth.json")))
    }
}

fn set(path: &Option<PathBuf>) -> Option<PathBuf> {
    path.clone().filter(|path| !path.as_os_str().is_empty())
}

/// Files that may hold logins, most important first. The caller reads those that exist into [`AuthFile`]s.
pub fn candidate_paths(environment: &AuthEnvironment) -> Vec<PathBuf> {
    if let Some(only) = set(&environment.registry_auth_file) {
        return vec![only];
    }
    let home = set(&environment.home);
    let below_home = |name: &str| home.as_ref().map(|home| home.join(name));
    // Podman's place where there is no session.
    let session = set(&environment.xdg_runtime_dir).map(|path| path.join("containers"));
    let session = session.or_else(|| Some(PathBuf::from(format!("/run/containers/{}", environment.uid))));
    let docker = set(&environment.docker_config).or_else(|| below_home(".docker"));
    [
        session.map(|path| path.join("auth.json")),
        environment.config().map(|path| path.join("auth.json")),
        docker.map(|path| path.join("config.json")),
        below_home(".dockercfg"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The login for `registry` (its name, not its API host) and `repository`; none if nobody has one.
pub(super) fn look_up(
    options: &RegistryOptions,
    registry: &str,
    repository: &str,
) -> Result<Option<Login>, RegistryError> {
    if let Some(login) = &options.login {
        return Ok(Some(login.clone()));
    }
    for keeper in options.registries.credential_helpers() {
        let login = if keeper == AUTH_FILES {
            in_files(&options.auth_files, registry, repository)?
        } else {
            ask(keeper, registry)
        };
        if login.is_some() {
            return Ok(login);
        }
    }
    Ok(None)
}

fn in_files(files: &[AuthFile], registry: &str, repository: &str) -> Result<Option<Login>, RegistryError> {
    for file in files {
        for found in file.search(registry, repository)? {
            let login = match found {
                Found::Login(login) => Some(login),
                Found::Helper(name) => ask(&name, registry),
            };
            if login.is_some() {
                log::info!("login for {registry}: by {}", file.path.display());
                return Ok(login);
            }
        }
    }
    Ok(None)
}

/// Asks a helper. One that fails is worth a warning only: files that name one come from other machines, compute nodes
/// often lack it, and without a login the pull may do.
fn ask(name: &str, registry: &str) -> Option<Login> {
    let asked = CredentialHelper::new(name).and_then(|helper| {
        for server in server_names(registry) {
            if let Some(login) = helper.get(server)? {
                return Ok(Some(login));
            }
        }
        Ok(None)
    });
    asked.unwrap_or_else(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        log::warn!("no login for {registry} from a credential helper: {error}{cause}");
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_tells_nothing() {
        let logins = [
            Login::Password { user: "user".into(), password: "canary".into() },
            Login::IdentityToken("canary".into()),
            Login::RegistryToken("canary".into()),
        ];
        let shown = format!("{logins:?}");
        assert!(!shown.contains("canary") && !shown.contains("user\""), "{shown}");
    }

    #[test]
    fn headers() {
        let login = Login::new("me", "canary").unwrap();
        assert_eq!((login.basic().as_deref(), login.bearer()), (Some("Basic bWU6Y2FuYXJ5"), None));
        let token = Login::RegistryToken("a.b".into());
        assert_eq!((token.basic(), token.bearer().as_deref()), (None, Some("Bearer a.b")));
        assert_eq!(Login::RegistryToken("a\r\nX: y".into()).bearer(), None);
        assert_eq!(Login::new("<token>", "t").unwrap().basic(), None);
    }

    #[test]
    fn what_has_no_login_passes_the_question_on() {
        let file = |text: &str| AuthFile { path: "/auth.json".into(), contents: text.as_bytes().to_vec() };
        let mut options = RegistryOptions {
            auth_files: vec![
                file(r#"{"auths":{"r.org":{}},"credsStore":"surely-not-installed"}"#),
                file(r#"{"credHelpers":{"r.org":"../../bin/sh"},"auths":{"r.org":{"auth":"bWU6cHc="}}}"#),
            ],
            ..RegistryOptions::default()
        };
        let login = Login::new("me", "pw");
        assert_eq!(look_up(&options, "r.org", "a").unwrap(), login);
        assert_eq!(look_up(&options, "other.org", "a").unwrap(), None);
        let text = "credential-helpers = [\"surely-not-installed\"]";
        options.registries.add(std::path::Path::new("/r.conf"), text).unwrap();
        assert_eq!(look_up(&options, "r.org", "a").unwrap(), None);
        let text = "credential-helpers = [\"surely-not-installed\", \"containers-auth.json\"]";
        options.registries.add(std::path::Path::new("/r.conf"), text).unwrap();
        assert_eq!(look_up(&options, "r.org", "a").unwrap(), login);
        options.login = Login::new("given", "x");
        assert_eq!(look_up(&options, "r.org", "a").unwrap(), Login::new("given", "x"));
    }

    fn all() -> AuthEnvironment {
        AuthEnvironment {
            registry_auth_file: None,
            xdg_runtime_dir: Some("/run/user/1".into()),
            xdg_config_home: Some("/xdg".into()),
            docker_config: Some("/docker".into()),
            home: Some("/home/u".into()),
            uid: 7,
        }
    }

    #[test]
    fn where_files_are_looked_for() {
        let paths = |environment: &AuthEnvironment| {
            let list = candidate_paths(environment);
            list.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            paths(&all()),
            "/run/user/1/containers/auth.json /xdg/containers/auth.json /docker/config.json /home/u/.dockercfg"
        );
        let home_only =
            AuthEnvironment { home: Some("/home/u".into()), uid: 7, ..AuthEnvironment::default() };
        assert_eq!(
            paths(&home_only),
            "/run/containers/7/auth.json /home/u/.config/containers/auth.json /home/u/.docker/config.json \
             /home/u/.dockercfg"
        );
        let named = AuthEnvironment { registry_auth_file: Some("/a.json".into()), ..all() };
        assert_eq!(paths(&named), "/a.json");
        let empty = AuthEnvironment { registry_auth_file: Some("".into()), ..home_only.clone() };
        assert_eq!(paths(&empty), paths(&home_only));
        assert_eq!(paths(&AuthEnvironment::default()), "/run/containers/0/auth.json");
    }

    #[test]
    fn where_login_writes() {
        let path = |environment: AuthEnvironment| {
            environment.login_path().map(|path| path.display().to_string()).unwrap_or_default()
        };
        assert_eq!(path(all()), "/run/user/1/containers/auth.json");
        let no_session = AuthEnvironment { xdg_runtime_dir: None, ..all() };
        assert_eq!(path(no_session.clone()), "/xdg/containers/auth.json");
        let home_only = AuthEnvironment { xdg_config_home: None, ..no_session };
        assert_eq!(path(home_only), "/home/u/.config/containers/auth.json");
        let named = AuthEnvironment { registry_auth_file: Some("/a.json".into()), ..all() };
        assert_eq!(path(named), "/a.json");
        assert_eq!(path(AuthEnvironment::default()), "");
    }
}
