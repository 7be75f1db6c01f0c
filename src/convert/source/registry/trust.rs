//! Certificates: whom TLS trusts, host by host.

use std::path::Path;

use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::endpoints::Tls;
use super::error::RegistryError;
use super::options::RegistryOptions;

/// What the certificate directories say of `authority` (`host[:port]`).
pub(super) fn tls_of(authority: &str, options: &RegistryOptions) -> Result<Tls, RegistryError> {
    let mut tls = Tls::default();
    for directory in &options.certificate_directories {
        let Ok(entries) = std::fs::read_dir(directory.join(authority)) else { continue };
        let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "crt"));
        paths.sort();
        tls.authorities.extend(paths);
    }
    Ok(tls)
}

/// The settings of connections that trust `tls`.
pub(super) fn tls_config(tls: &Tls, options: &RegistryOptions) -> Result<TlsConfig, RegistryError> {
    let builder = TlsConfig::builder();
    if tls.unverified {
        return Ok(builder.disable_verification(true).build());
    }
    let roots = RootCerts::new_with_certs(&authorities(tls, options)?);
    Ok(builder.root_certs(roots).build())
}

/// The system's certificate authorities, or those that the user names instead, and the host's own.
fn authorities(tls: &Tls, options: &RegistryOptions) -> Result<Vec<Certificate<'static>>, RegistryError> {
    let (file, directory) = (options.ca_file.as_deref(), options.ca_directory.as_deref());
    let loaded = if file.is_some() || directory.is_some() {
        rustls_native_certs::load_certs_from_paths(file, directory)
    } else {
        rustls_native_certs::load_native_certs()
    };
    let mut list: Vec<Certificate<'static>> =
        loaded.certs.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
    for path in &tls.authorities {
        list.extend(read_certificates(path)?);
    }
    match loaded.errors.first() {
        Some(error) if list.is_empty() => Err(RegistryError::Authorities(error.to_string())),
        _ if list.is_empty() => Err(RegistryError::Authorities("this system has none".to_owned())),
        _ => Ok(list),
    }
}

fn read_certificates(path: &Path) -> Result<Vec<Certificate<'static>>, RegistryError> {
    let loaded = rustls_native_certs::load_certs_from_paths(Some(path), None);
    match loaded.errors.first() {
        Some(error) => Err(RegistryError::Authorities(error.to_string())),
        None => Ok(loaded.certs.iter().map(|der| Certificate::from_der(der).to_owned()).collect()),
    }
}
