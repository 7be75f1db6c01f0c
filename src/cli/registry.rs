//! What the environment says of registries: credentials, certificate authorities, proxies.

use std::env::var_os;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::cli::args::ConvertOptions;
use crate::cli::report::{Failure, chain};
use crate::convert::source::registry::{
    AuthEnvironment, AuthFile, PlainHttp, Proxies, RegistryOptions, candidate_paths,
};
use crate::image::reference::SourceReference;

/// How the registry of `reference` is spoken to; for other sources nothing is looked up.
pub(crate) fn options(
    options: &ConvertOptions,
    reference: &SourceReference,
) -> Result<RegistryOptions, Failure> {
    let defaults = RegistryOptions::default();
    if !matches!(reference, SourceReference::Registry(_)) {
        return Ok(defaults);
    }
    let path = |name: &str| var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let environment = AuthEnvironment {
        registry_auth_file: options.authfile.clone(),
        xdg_runtime_dir: path("XDG_RUNTIME_DIR"),
        xdg_config_home: path("XDG_CONFIG_HOME"),
        docker_config: path("DOCKER_CONFIG"),
        home: path("HOME"),
    };
    Ok(RegistryOptions {
        plain_http: if options.plain_http { PlainHttp::Asked } else { PlainHttp::Loopback },
        auth_files: auth_files(&environment, options.authfile.is_some())?,
        ca_file: path("SSL_CERT_FILE"),
        ca_directory: path("SSL_CERT_DIR"),
        proxies: proxies(),
        ..defaults
    })
}

/// The credential files that exist. One that was asked for by name must.
fn auth_files(environment: &AuthEnvironment, must_exist: bool) -> Result<Vec<AuthFile>, Failure> {
    let mut files = Vec::new();
    for path in candidate_paths(environment) {
        match std::fs::read(&path) {
            Ok(contents) => {
                warn_if_readable_by_others(&path);
                files.push(AuthFile { path, contents });
            }
            Err(error) if error.kind() == ErrorKind::NotFound && !must_exist => {}
            Err(error) if must_exist => {
                let message = format!("cannot read credentials {}: {}", path.display(), chain(&error));
                return Err(Failure::plain(message).hint("--authfile and REGISTRY_AUTH_FILE name this file"));
            }
            Err(error) => log::warn!("cannot read credentials {}: {}", path.display(), chain(&error)),
        }
    }
    Ok(files)
}

fn warn_if_readable_by_others(path: &Path) {
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.mode() & 0o077 != 0) {
        log::warn!("credentials in {} can be read by others: chmod 600 it", path.display());
    }
}

/// Proxies by the names that everybody uses, lower case first.
fn proxies() -> Proxies {
    let text = |names: &[&str]| {
        names.iter().filter_map(|name| std::env::var(name).ok()).find(|value| !value.is_empty())
    };
    Proxies {
        https: text(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]),
        // HTTP_PROXY in capitals can be set by a web server's client; this is no web server.
        http: text(&["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]),
        none: text(&["no_proxy", "NO_PROXY"])
            .map(|list| list.split(',').map(|host| host.trim().to_owned()).collect())
            .unwrap_or_default(),
    }
}
