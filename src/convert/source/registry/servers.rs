//! The servers of one image: each is asked in turn, and the next one takes over where one fails.

use std::sync::atomic::{AtomicBool, Ordering};

use super::client::{Client, Document};
use super::documents::Documents;
use super::endpoints::{Endpoint, Serves};
use super::error::RegistryError;
use super::mirrors;
use super::options::RegistryOptions;
use super::retry::Patience;
use super::url::Url;
use crate::image::digest::Digest;
use crate::image::manifest::Descriptor;
use crate::image::reference::Reference;

/// All servers that may hold the image, mirrors first, the registry itself last.
#[derive(Debug)]
pub(super) struct Servers {
    servers: Vec<Server>,
    documents: Option<Documents>,
    /// The reference itself names a digest.
    pinned: bool,
}

#[derive(Debug)]
struct Server {
    client: Client,
    serves: Serves,
    /// It failed as a whole and is not asked again.
    down: AtomicBool,
}

/// What a thing is named by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    ByTag,
    ByDigest,
}

impl Servers {
    /// The servers for `reference`; none is asked yet.
    pub(super) fn new(reference: &Reference, options: &RegistryOptions) -> Result<Servers, RegistryError> {
        Servers::of(&mirrors::endpoints(reference, options)?, reference.digest().is_some(), options)
    }

    fn of(endpoints: &[Endpoint], pinned: bool, options: &RegistryOptions) -> Result<Servers, RegistryError> {
        let last = endpoints.len().saturating_sub(1);
        let servers = endpoints.iter().enumerate().map(|(number, endpoint)| {
            let (client, serves) = if number == last {
                (Client::new(endpoint, options)?, Serves::All)
            } else {
                (Client::new(endpoint, &for_mirror(options))?, endpoint.serves)
            };
            Ok(Server { client, serves, down: AtomicBool::new(false) })
        });
        let documents = options.documents.clone().map(Documents::new);
        Ok(Servers { servers: servers.collect::<Result<_, _>>()?, documents, pinned })
    }

    /// Places outside of registries that have one blob.
    pub(super) fn of_stores(urls: Vec<Url>, options: &RegistryOptions) -> Result<Servers, RegistryError> {
        let server = |url| {
            let client = Client::of_store(url, options)?;
            Ok(Server { client, serves: Serves::All, down: AtomicBool::new(false) })
        };
        let servers = urls.into_iter().map(server).collect::<Result<_, _>>()?;
        Ok(Servers { servers, documents: None, pinned: true })
    }

    /// The manifest or index that `reference` names, as the first server that has it gives it; verified.
    pub(super) fn named(&self, reference: &Reference) -> Result<Document, RegistryError> {
        match (reference.digest(), reference.tag()) {
            (Some(digest), _) => self.document(digest),
            (None, tag) => self.tagged(tag.unwrap_or("latest")),
        }
    }

    /// What a tag leads to. Registries count who fetches manifests by `GET`, so a `HEAD` finds the digest, and what is
    /// known by that is not fetched again.
    fn tagged(&self, tag: &str) -> Result<Document, RegistryError> {
        self.ask(Named::ByTag, |client| {
            let Some(digest) = client.digest_of(tag)? else { return client.manifest_by_tag(tag) };
            match self.document(&digest) {
                // The tag has moved on meanwhile, or the registry names what it does not serve.
                Err(RegistryError::NotFound { .. }) => client.manifest_by_tag(tag),
                other => other,
            }
        })
    }

    /// The manifest or index with this digest.
    pub(super) fn document(&self, digest: &Digest) -> Result<Document, RegistryError> {
        if let Some(bytes) = self.known(digest) {
            return Ok(Document { bytes, digest: digest.clone(), media_type: None });
        }
        let document = self.ask(Named::ByDigest, |client| client.manifest_by_digest(digest))?;
        self.keep(digest, &document.bytes);
        Ok(document)
    }

    /// A blob that is small enough to be held in memory; verified.
    pub(super) fn small_blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, RegistryError> {
        if let Some(bytes) = self.known(&descriptor.digest) {
            return Ok(bytes);
        }
        let bytes = self.ask(Named::ByDigest, |client| client.small_blob(descriptor))?;
        self.keep(&descriptor.digest, &bytes);
        Ok(bytes)
    }

    fn known(&self, digest: &Digest) -> Option<Vec<u8>> {
        self.documents.as_ref()?.get(digest)
    }

    fn keep(&self, digest: &Digest, bytes: &[u8]) {
        if let Some(documents) = &self.documents {
            documents.put(digest, bytes);
        }
    }

    fn ask<T>(
        &self,
        named: Named,
        attempt: impl Fn(&Client) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let mut number = self.at_or_after(0, named);
        loop {
            let client = self.client(number)?;
            match attempt(client) {
                Ok(value) => return Ok(value),
                Err(error) => number = self.instead_of(number, named, error)?,
            }
        }
    }

    /// The server to ask first for a blob.
    pub(super) fn first_for_blobs(&self) -> usize {
        self.at_or_after(0, Named::ByDigest)
    }

    /// The server to ask for a blob in place of server `number`, which failed; the error is back if there is none.
    pub(super) fn next_for_blobs(&self, number: usize, error: RegistryError) -> Result<usize, RegistryError> {
        self.instead_of(number, Named::ByDigest, error)
    }

    /// Server `number`.
    pub(super) fn client(&self, number: usize) -> Result<&Client, RegistryError> {
        let server = self.servers.get(number).or_else(|| self.servers.last());
        server.map(|server| &server.client).ok_or_else(|| RegistryError::BadHost(String::new()))
    }

    fn instead_of(&self, number: usize, named: Named, error: RegistryError) -> Result<usize, RegistryError> {
        let next = number.saturating_add(1);
        let (Some(server), true) = (self.servers.get(number), next < self.servers.len()) else {
            return Err(error);
        };
        if error.is_of_the_server() {
            server.down.store(true, Ordering::Relaxed);
        }
        let next = self.at_or_after(next, named);
        log::info!("{}; asking {} instead", error.in_one_line(), self.client(next)?.name());
        Ok(next)
    }

    /// The first server from `number` on that is to be asked. The last one always is.
    fn at_or_after(&self, number: usize, named: Named) -> usize {
        let wanted = |server: &Server| {
            let serves = match server.serves {
                Serves::All => true,
                Serves::DigestsOnly => named == Named::ByDigest,
                Serves::TagsOnly => !self.pinned,
            };
            serves && !server.down.load(Ordering::Relaxed)
        };
        let last = self.servers.len().saturating_sub(1);
        let found = self.servers.iter().enumerate().skip(number).find(|(_, server)| wanted(server));
        found.map_or(last, |(number, _)| number)
    }
}

/// A login given for this run is for the registry that was named. And the next server is a better second chance than a
/// mirror that needs waiting for.
fn for_mirror(options: &RegistryOptions) -> RegistryOptions {
    let patience = Patience { retries: options.patience.retries.min(1), ..options.patience };
    RegistryOptions { login: None, patience, ..options.clone() }
}
