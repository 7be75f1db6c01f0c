//! Images in a registry, over the distribution protocol: blocking, one thread a blob.

mod auth;
mod blob;
mod challenge;
mod client;
mod credentials;
mod error;
mod http;
mod options;
mod retry;
mod url;

use std::io::Read;
use std::sync::Arc;

pub use credentials::{AuthEnvironment, AuthFile, Login, candidate_paths};
pub use error::RegistryError;
pub use options::{PlainHttp, Proxies, RegistryOptions};
pub use retry::Patience;

use super::resolve::{self, Fetched, Outline};
use super::{Source, SourceError, SourceImage, SourceOptions};
use crate::image::digest::{Algorithm, Digest};
use crate::image::manifest::Descriptor;
use crate::image::reference::Reference;
use blob::BlobReader;
use client::Client;

/// An image of a registry.
#[derive(Debug)]
pub(super) struct RegistrySource {
    client: Arc<Client>,
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
        let client = Arc::new(Client::new(reference, &options.registry).map_err(fail)?);
        let first = fetch_named(&client, reference, &origin)?;
        let mut fetch = |entry: &Descriptor| {
            client.manifest(entry.digest.as_str()).map(|answer| answer.bytes).map_err(fail)
        };
        let resolved = resolve::resolve(first, &options.platform, &origin, &mut fetch)?;
        resolve::refuse_foreign(&resolved.manifest, options, &origin)?;
        let config = resolved.manifest.config.clone();
        resolve::check_config_size(config.size, &origin)?;
        let bytes = read_config(&client, &config, &origin)?;
        resolve::verify(&config, &bytes, "the image config", &origin)?;
        let image = Outline::of(resolved, origin).finish(&bytes, &options.platform)?;
        Ok(RegistrySource { client, image })
    }
}

fn failed(origin: &str, source: RegistryError) -> SourceError {
    SourceError::Registry { origin: origin.to_owned(), source: Box::new(source) }
}

/// The manifest or index that the reference names, checked against the digest that it names or that the registry states.
fn fetch_named(client: &Client, reference: &Reference, origin: &str) -> Result<Fetched, SourceError> {
    let answer = client.manifest(reference.identifier()).map_err(|source| failed(origin, source))?;
    let stated = answer.stated_digest.as_deref().and_then(|text| Digest::parse(text).ok());
    let expected = reference.digest().cloned().or(stated);
    if let Some(expected) = &expected {
        resolve::verify_digest(expected, &answer.bytes, "the manifest", origin)?;
    }
    let digest = expected.unwrap_or_else(|| Digest::of_with(Algorithm::Sha256, &answer.bytes));
    Ok(Fetched { bytes: answer.bytes, digest, declared: answer.media_type })
}

fn read_config(client: &Arc<Client>, config: &Descriptor, origin: &str) -> Result<Vec<u8>, SourceError> {
    let blob = BlobReader::open(Arc::clone(client), config.digest.clone(), config.size)
        .map_err(|source| failed(origin, source))?;
    let mut bytes = Vec::new();
    let mut limited = blob.take(config.size);
    limited
        .read_to_end(&mut bytes)
        .map_err(|source| SourceError::Read { path: format!("the image config of {origin}"), source })?;
    Ok(bytes)
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
        let blob = BlobReader::open(Arc::clone(&self.client), digest, size)
            .map_err(|source| failed(&self.image.origin, source))?;
        Ok(Box::new(blob))
    }
}
