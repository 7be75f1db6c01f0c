//! The servers of one image: each is asked in turn, and the next one takes over where one fails or lies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, OnceLock, PoisonError};

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
    /// Which servers gave bytes of which blob.
    givers: Mutex<BTreeMap<Digest, BTreeSet<usize>>>,
}

#[derive(Debug)]
struct Server {
    client: Client,
    serves: Serves,
    /// Why it is not asked again: it failed as a whole, or it gave something else for a blob.
    fault: OnceLock<String>,
}

/// What a thing is named by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    ByTag,
    ByDigest,
}

/// The search for one thing: who is asked for it now.
#[derive(Debug)]
pub(super) struct Search {
    named: Named,
    number: usize,
    /// Why the servers before were passed over.
    faults: Vec<String>,
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
            Ok(Server { client, serves, fault: OnceLock::new() })
        });
        let documents = options.documents.clone().map(Documents::new);
        Ok(Servers {
            servers: servers.collect::<Result<_, _>>()?,
            documents,
            pinned,
            givers: Mutex::default(),
        })
    }

    /// Places outside of registries that have one blob.
    pub(super) fn of_stores(urls: Vec<Url>, options: &RegistryOptions) -> Result<Servers, RegistryError> {
        let server = |url| {
            let client = Client::of_store(url, options)?;
            Ok(Server { client, serves: Serves::All, fault: OnceLock::new() })
        };
        let servers = urls.into_iter().map(server).collect::<Result<_, _>>()?;
        Ok(Servers { servers, documents: None, pinned: true, givers: Mutex::default() })
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
                Err(error) if error.is_not_found() => client.manifest_by_tag(tag),
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
        let mut search = self.search(named);
        loop {
            match attempt(self.asked(&search)?) {
                Ok(value) => return Ok(value),
                Err(error) => self.go_on(&mut search, error)?,
            }
        }
    }

    /// Begins to look for a blob.
    pub(super) fn search_blob(&self) -> Search {
        self.search(Named::ByDigest)
    }

    fn search(&self, named: Named) -> Search {
        let mut search = Search { named, number: 0, faults: Vec::new() };
        self.pass_over(&mut search);
        search
    }

    /// The server that is asked now.
    pub(super) fn asked(&self, search: &Search) -> Result<&Client, RegistryError> {
        let server = self.servers.get(search.number).or_else(|| self.servers.last());
        server.map(|server| &server.client).ok_or_else(|| RegistryError::BadHost(String::new()))
    }

    /// Turns to the next server, since the one asked now failed. If there is none, the error names the fault of each.
    pub(super) fn go_on(&self, search: &mut Search, error: RegistryError) -> Result<(), RegistryError> {
        let Some(server) = self.servers.get(search.number).filter(|_| !self.is_last(search.number)) else {
            return Err(error.after(std::mem::take(&mut search.faults)));
        };
        let fault = server.at_fault(&error.in_one_line());
        if error.is_of_the_server() {
            server.pass_over_from_now_on(&fault);
        }
        search.faults.push(fault.clone());
        search.number = search.number.saturating_add(1);
        self.pass_over(search);
        log::info!("{fault}; asking {} instead", self.asked(search)?.name());
        Ok(())
    }

    /// Moves on to the first server that is to be asked. The last one always is.
    fn pass_over(&self, search: &mut Search) {
        while let Some(server) = self.servers.get(search.number).filter(|_| !self.is_last(search.number)) {
            let serves = match server.serves {
                Serves::All => true,
                Serves::DigestsOnly => search.named == Named::ByDigest,
                Serves::TagsOnly => !self.pinned,
            };
            match server.fault.get() {
                None if serves => return,
                Some(fault) if serves => search.faults.push(fault.clone()),
                _ => {}
            }
            search.number = search.number.saturating_add(1);
        }
    }

    fn is_last(&self, number: usize) -> bool {
        number.saturating_add(1) >= self.servers.len()
    }

    /// Remembers that the server asked now gave bytes of a blob.
    pub(super) fn note_giver(&self, search: &Search, blob: &Digest) {
        let mut givers = self.givers.lock().unwrap_or_else(PoisonError::into_inner);
        givers.entry(blob.clone()).or_default().insert(search.number);
    }

    /// What came as `blob` was something else. Of the servers that had a part in it the first is not asked again in this
    /// run, so there are never more new beginnings than servers. Whether there is another to ask; the error is that of
    /// all, if there were several.
    pub(super) fn distrust(&self, blob: &Digest, why: &str) -> Result<bool, RegistryError> {
        let mut givers = self.givers.lock().unwrap_or_else(PoisonError::into_inner);
        let first = givers.get(blob).and_then(BTreeSet::first).copied();
        let Some((number, server)) = first.and_then(|number| Some((number, self.servers.get(number)?)))
        else {
            return Ok(false);
        };
        let (host, what) = (server.client.name().to_owned(), format!("blob {blob}"));
        let error = RegistryError::NotTheBlob { host, what, why: why.to_owned() };
        if !self.is_last(number) {
            let fault = server.at_fault(&error.in_one_line());
            log::warn!("{fault}; beginning anew without it");
            server.pass_over_from_now_on(&fault);
            givers.clear();
            return Ok(true);
        }
        let faults = self.search_blob().faults;
        if faults.is_empty() { Ok(false) } else { Err(error.after(faults)) }
    }
}

impl Server {
    /// `why`, with the name of the server.
    fn at_fault(&self, why: &str) -> String {
        let name = self.client.name();
        if why.contains(name) { why.to_owned() } else { format!("{name}: {why}") }
    }

    fn pass_over_from_now_on(&self, fault: &str) {
        // The first fault is as good a reason as any.
        let _ = self.fault.set(fault.to_owned());
    }
}

/// A login given for this run is for the registry that was named. And the next server is a better second chance than a
/// mirror that needs waiting for.
fn for_mirror(options: &RegistryOptions) -> RegistryOptions {
    let patience = Patience { retries: options.patience.retries.min(1), ..options.patience };
    RegistryOptions { login: None, patience, ..options.clone() }
}
