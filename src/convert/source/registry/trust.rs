//! Certificates: whom TLS trusts, host by host.

use std::path::Path;

use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};

use super::certs_d;
use super::endpoints::{ClientCertificate, Tls};
use super::error::RegistryError;
use super::options::RegistryOptions;

/// What the certificate directories say of `authority` (`host[:port]`).
pub(super) fn tls_of(authority: &str, options: &RegistryOptions) -> Result<Tls, RegistryError> {
    certs_d::tls_of(authority, &options.certificate_directories)
}

/// The settings of connections that trust `tls`.
pub(super) fn tls_config(tls: &Tls, options: &RegistryOptions) -> Result<TlsConfig, RegistryError> {
    let client = tls.client.as_ref().map(client_certificate).transpose()?;
    let builder = TlsConfig::builder().client_cert(client);
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

/// What we show to a server that asks who we are.
fn client_certificate(pair: &ClientCertificate) -> Result<ClientCert, RegistryError> {
    let failed =
        |path: &Path, why: String| RegistryError::ClientCertificate { path: path.display().to_string(), why };
    let chain = read_certificates(&pair.certificate)?;
    if chain.is_empty() {
        return Err(failed(&pair.certificate, "it holds no certificate".to_owned()));
    }
    let pem = std::fs::read(&pair.key).map_err(|error| failed(&pair.key, error.to_string()))?;
    let key = PrivateKey::from_pem(&pem)
        .map_err(|_| failed(&pair.key, "it holds no unencrypted private key in PEM".to_owned()))?;
    Ok(ClientCert::new_with_certs(&chain, key))
}
