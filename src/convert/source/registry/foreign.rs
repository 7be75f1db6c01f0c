//! Foreign layers: those that a manifest says are not in the registry but at some URL.
//!
//! Whoever wrote the manifest chose the URLs, so nothing is sent there but a request (CVE-2020-15157), they are followed
//! only where this was allowed, and the digest decides whether the right thing came back.

use super::error::RegistryError;
use super::options::RegistryOptions;
use super::servers::Servers;
use super::url::Url;
use crate::image::digest::Digest;

/// More places than this are not tried.
const MOST_URLS: usize = 4;

/// The places that `urls` name. `near`: the registry itself is on this machine, and may lead to it.
pub(super) fn stores(
    urls: &[String],
    digest: &Digest,
    near: bool,
    options: &RegistryOptions,
) -> Result<Servers, RegistryError> {
    let parsed: Vec<Url> = urls.iter().take(MOST_URLS).filter_map(|text| Url::parse(text)).collect();
    let place = parsed.first().map_or_else(|| "a malformed URL".to_owned(), Url::authority);
    let refuse =
        |why| Err(RegistryError::Foreign { what: format!("blob {digest}"), place: place.clone(), why });
    if !options.foreign_layers {
        return refuse("layers from outside are not allowed");
    }
    let usable = |url: &Url| if url.is_this_machine() { near } else { url.https };
    let usable: Vec<Url> = parsed.iter().filter(|url| usable(url)).cloned().collect();
    if usable.is_empty() {
        return refuse("that is not a place on the network with https");
    }
    Servers::of_stores(usable, options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let digest = Digest::of(b"");
        let allowed = RegistryOptions { foreign_layers: true, ..RegistryOptions::default() };
        for (url, near, why) in [
            ("https://store.org/x", false, None),
            ("http://store.org/x", false, Some("https")),
            ("http://store.org/x", true, Some("https")),
            ("http://127.0.0.1/x", false, Some("https")),
            ("http://127.0.0.1/x", true, None),
            ("https://169.254.169.254/latest", false, Some("https")),
            ("file:///etc/passwd", true, Some("https")),
            ("", true, Some("https")),
        ] {
            let result = stores(&[url.to_owned()], &digest, near, &allowed);
            let shown = result.err().map(|error| error.to_string());
            assert_eq!(shown.is_some(), why.is_some(), "{url}: {shown:?}");
            assert!(shown.unwrap_or_default().contains(why.unwrap_or_default()), "{url}");
        }
        let urls =
            ["https://user:secret@store.org/x".to_owned(), "https://store.org/x?sig=secret".to_owned()];
        let error = stores(&urls, &digest, false, &RegistryOptions::default()).unwrap_err().to_string();
        assert!(error.contains("at store.org: layers from outside are not allowed"), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
}
