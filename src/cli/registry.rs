//! What the command line and the environment say of registries: credentials, certificates, proxies, `registries.conf`.

use std::env::var_os;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::cli::convert_args::RegistryArgs;
use crate::cli::report::{Failure, chain};
use crate::convert::source::registry::{
    AuthEnvironment, AuthFile, PlainHttp, Proxies, RegistriesConf, RegistryOptions, candidate_paths,
};
use crate::image::reference::Reference;

/// How the registry of `reference` is spoken to, and the mirrors that stand before it.
pub(crate) fn options(
    args: &RegistryArgs,
    reference: &Reference,
    registries: RegistriesConf,
) -> Result<RegistryOptions, Failure> {
    if let Some(at) = registries.blocked(reference) {
        let failure = Failure::plain(format!("pulling {reference} is blocked by {at}"));
        return Err(failure.refused_by(&at).hint("this is no rule of hpcrun's own, podman follows it too"));
    }
    let environment = auth_environment(args.authfile.as_deref());
    let auth_files = auth_files(&environment, args.authfile.is_some())?;
    Ok(RegistryOptions { auth_files, ..connection(args, reference, registries) })
}

/// The same without logins.
pub(crate) fn connection(
    args: &RegistryArgs,
    reference: &Reference,
    registries: RegistriesConf,
) -> RegistryOptions {
    if !args.tls_verify {
        log::warn!(
            "--tls-verify=false: whoever is on the way to {} can read and change everything",
            reference.registry()
        );
    }
    let defaults = RegistryOptions::default();
    let mut certificate_directories = defaults.certificate_directories;
    let config = path("XDG_CONFIG_HOME").or_else(|| Some(path("HOME")?.join(".config")));
    certificate_directories.splice(0..0, config.map(|path| path.join("containers/certs.d")));
    RegistryOptions {
        plain_http: if args.plain_http { PlainHttp::Asked } else { PlainHttp::Loopback },
        unverified: !args.tls_verify,
        registries,
        ca_file: path("SSL_CERT_FILE"),
        ca_directory: path("SSL_CERT_DIR"),
        certificate_directories,
        certificate_directory: args.cert_dir.clone(),
        proxies: proxies(),
        ..defaults
    }
}

/// Where logins are kept. `authfile` is the option, which also has `REGISTRY_AUTH_FILE`.
pub(crate) fn auth_environment(authfile: Option<&Path>) -> AuthEnvironment {
    AuthEnvironment {
        registry_auth_file: authfile.map(Path::to_owned),
        // Batch systems pass on the variable of a session that this node does not have.
        xdg_runtime_dir: path("XDG_RUNTIME_DIR").filter(|path| path.is_dir()),
        xdg_config_home: path("XDG_CONFIG_HOME"),
        docker_config: path("DOCKER_CONFIG"),
        home: path("HOME"),
        uid: crate::sys::caller::effective_uid(),
    }
}

/// A path in the environment; empty is unset.
pub(crate) fn path(variable: &str) -> Option<PathBuf> {
    var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The credential files that exist. One that was asked for by name must.
pub(crate) fn auth_files(environment: &AuthEnvironment, must_exist: bool) -> Result<Vec<AuthFile>, Failure> {
    let mut files = Vec::new();
    for path in candidate_paths(environment) {
        match std::fs::read(&path) {
            Ok(contents) => {
                let file = AuthFile { path, contents };
                warn_if_readable_by_others(&file);
                files.push(file);
            }
            Err(error) if must_exist => {
                let message = format!("cannot read credentials {}: {}", path.display(), chain(&error));
                return Err(Failure::plain(message).hint("--authfile and REGISTRY_AUTH_FILE name this file"));
            }
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            Err(error) => log::warn!("cannot read credentials {}: {}", path.display(), chain(&error)),
        }
    }
    Ok(files)
}

/// A file without a secret may be read by everybody, as docker writes it where a helper has the secrets.
fn warn_if_readable_by_others(file: &AuthFile) {
    let path = &file.path;
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.mode() & 0o077 != 0) && file.holds_secrets() {
        log::warn!("credentials in {} can be read by others: chmod 600 it", path.display());
    }
}

/// Proxies by the names that everybody uses, lower case first.
fn proxies() -> Proxies {
    let text = |names: [&str; 2]| {
        names.into_iter().filter_map(|name| std::env::var(name).ok()).find(|value| !value.is_empty())
    };
    // HTTP_PROXY in capitals can be set by a web server's client; this is no web server.
    Proxies::new(
        text(["https_proxy", "HTTPS_PROXY"]),
        text(["http_proxy", "HTTP_PROXY"]),
        text(["all_proxy", "ALL_PROXY"]),
        &text(["no_proxy", "NO_PROXY"]).unwrap_or_default(),
    )
}
