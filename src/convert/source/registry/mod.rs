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
mod error_body;
mod failure;
mod foreign;
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

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

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
use crate::image::digest::Digest;
use crate::image::manifest::{Descriptor, is_foreign_type};
use crate::image::reference::Reference;
use blob::BlobReader;
use client::Document;
use servers::Servers;
use url::Url;

/// An image of a registry.
#[derive(Debug)]
pub(super) struct RegistrySource {
    servers: Arc<Servers>,
    image: SourceImage,
    /// For each layer the places that it may be at instead.
    urls: Vec<Vec<String>>,
    /// Those of layers that are fetched from there.
    stores: Mutex<BTreeMap<usize, Arc<Servers>>>,
    /// The registry is on this machine.
    near: bool,
    options: RegistryOptions,
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
        // A layer that only has `urls` is in today's registries all the same; `open_blob` decides.
        let is_foreign = |layer: &Descriptor| is_foreign_type(&layer.media_type);
        resolve::refuse_foreign(&resolved.manifest, is_foreign, options, &origin)?;
        let config = resolved.manifest.config.clone();
        resolve::check_config_size(config.size, &origin)?;
        let bytes = servers.small_blob(&config).map_err(fail)?;
        resolve::verify(&config, &bytes, "the image config", &origin)?;
        let urls = resolved.manifest.layers.iter().map(|layer| layer.urls.clone()).collect();
        let image = Outline::of(resolved, origin).finish(&bytes, &options.platform)?;
        let near = Url::of_api(reference.api_host(), true).is_some_and(|url| url.is_this_machine());
        Ok(RegistrySource {
            servers,
            image,
            urls,
            stores: Mutex::default(),
            near,
            options: options.registry.clone(),
        })
    }

    /// The blob of layer `index`, from the registry if it has it.
    fn open_blob(&self, index: usize, digest: &Digest, size: u64) -> Result<BlobReader, RegistryError> {
        if let Some(stores) = self.stores_of(index) {
            return BlobReader::open(stores, digest.clone(), size);
        }
        let absent = match BlobReader::open(Arc::clone(&self.servers), digest.clone(), size) {
            Err(error) if error.is_not_found() => error,
            other => return other,
        };
        let urls = self.urls.get(index).filter(|urls| !urls.is_empty()).ok_or(absent)?;
        let stores = Arc::new(foreign::stores(urls, digest, self.near, &self.options)?);
        log::info!("blob {digest} is not in the registry; fetching it from where the manifest says");
        self.stores.lock().unwrap_or_else(PoisonError::into_inner).insert(index, Arc::clone(&stores));
        BlobReader::open(stores, digest.clone(), size)
    }

    fn stores_of(&self, index: usize) -> Option<Arc<Servers>> {
        self.stores.lock().unwrap_or_else(PoisonError::into_inner).get(&index).cloned()
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
        let blob =
            self.open_blob(index, &digest, size).map_err(|source| failed(&self.image.origin, source))?;
        Ok(Box::new(blob))
    }

    fn distrust_layer(&self, index: usize, why: &str) -> Result<bool, SourceError> {
        let digest = self.image.layers.get(index).and_then(|layer| layer.digest.as_ref());
        let Some(digest) = digest else { return Ok(false) };
        let servers = self.stores_of(index).unwrap_or_else(|| Arc::clone(&self.servers));
        servers.distrust(digest, why).map_err(|error| failed(&self.image.origin, error))
    }
}
