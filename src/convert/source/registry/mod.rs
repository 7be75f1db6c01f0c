//! Images in a registry, over the distribution protocol: blocking, one thread a blob.

mod auth;
mod auth_file;
mod blob;
mod certs_d;
mod challenge;
mod client;
mod credential_helper;
mod credentials;
mod documents;
mod endpoints;
mod error;
mod failure;
mod http;
mod login_check;
mod mirrors;
mod options;
mod proxies;
mod registries_conf;
mod retry;
mod servers;
pub mod short_names;
mod trust;
mod url;

use std::io::Read;
use std::sync::Arc;

pub use auth_file::{AuthFile, helper_key};
pub use credential_helper::{CredentialHelper, HelperError};
pub use credentials::{AuthEnvironment, Login, candidate_paths};
pub use endpoints::{ClientCertificate, Endpoint, Serves, Tls, Transport};
pub use error::RegistryError;
pub use login_check::{LoginCheck, check_login};
pub use options::{PlainHttp, RegistryOptions};
pub use proxies::Proxies;
pub use registries_conf::{Place, RegistriesConf, RegistriesConfError};
pub use retry::Patience;

use super::resolve::{self, Fetched, Outline};
use super::{Source, SourceError, SourceImage, SourceOptions};
use crate::image::manifest::Descriptor;
use crate::image::reference::Reference;
use blob::BlobReader;
use client::Document;
use servers::Servers;

/// An image of a registry.
#[derive(Debug)]
pub(super) struct RegistrySource {
    servers: Arc<Servers>,
    image: SourceImage,
}

impl RegistrySource {
    /// Resolves `reference`: fetches and verifies manifests and config.
    pub(super) fn open(
        reference: &Reference,
        origin: String,
        options: &SourceOptions,
    ) -> Result<RegistrySource, SourceError> {
        let fail = |source| failed(&origin, source);
        let servers = Arc::new(Servers::new(reference, &options.registry).map_err(fail)?);
        let first = fetched(servers.named(reference).map_err(fail)?);
        let mut fetch =
            |entry: &Descriptor| servers.document(&entry.digest).map(|document| document.bytes).map_err(fail);
        let resolved = resolve::resolve(first, &options.platform, &origin, &mut fetch)?;
        let config = resolved.manifest.config.clone();
        resolve::check_config_size(config.size, &origin)?;
        let bytes = servers.small_blob(&config).map_err(fail)?;
        resolve::verify(&config, &bytes, "the image config", &origin)?;
        let image = Outline::of(resolved, origin).finish(&bytes, &options.platform)?;
        Ok(RegistrySource { servers, image })
    }
}

fn failed(origin: &str, source: RegistryError) -> SourceError {
    SourceError::Registry { origin: origin.to_owned(), source: Box::new(source) }
}

fn fetched(document: Document) -> Fetched {
    Fetched { bytes: document.bytes, digest: document.digest, declared: document.media_type }
}

impl Source for RegistrySource {
    fn image(&self) -> &SourceImage {
        &self.image
    }

    fn open_layer(&self, index: usize) -> Result<Box<dyn Read + Send>, SourceError> {
        let origin = || self.image.origin.clone();
        let layer = self.image.layers.get(index);
        let (digest, size) = layer
            .and_then(|layer| Some((layer.digest.clone()?, layer.size?)))
            .ok_or_else(|| SourceError::NoLayer { origin: origin(), index })?;
        let blob = BlobReader::open(Arc::clone(&self.servers), digest, size)
            .map_err(|source| failed(&self.image.origin, source))?;
        Ok(Box::new(blob))
    }
}
