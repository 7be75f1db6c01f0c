//! From a reference and `registries.conf` to the endpoints that are asked for it: mirrors, then the location.

use super::certs_d;
use super::endpoints::{Endpoint, Serves, Tls, Transport};
use super::error::RegistryError;
use super::options::{PlainHttp, RegistryOptions};
use super::registries_conf::{Place, RegistryRule};
use super::url::Url;
use crate::image::reference::Reference;

/// All servers to ask for `reference`, in order; never empty. The last is the registry itself, or what the
/// configuration puts in its place.
pub(super) fn endpoints(
    reference: &Reference,
    options: &RegistryOptions,
) -> Result<Vec<Endpoint>, RegistryError> {
    let Some((rule, prefix_length)) = options.registries.rule_for(reference) else {
        return Ok(vec![primary(reference, false, options)?]);
    };
    if rule.blocked {
        return Err(RegistryError::Blocked { reference: reference.to_string(), at: rule.at.clone() });
    }
    let mut list = Vec::new();
    for mirror in &rule.mirrors {
        let there = relocated(reference, prefix_length, &mirror.location, rule)?;
        list.push(endpoint(&there, insecure(mirror.insecure), mirror.serves, options)?);
    }
    let there = match &rule.location {
        Some(location) => relocated(reference, prefix_length, location, rule)?,
        None => reference.clone(),
    };
    list.push(primary(&there, rule.insecure, options)?);
    for endpoint in &list {
        log::debug!("{reference} is asked of {}/{} ({})", endpoint.registry, endpoint.repository, rule.at);
    }
    Ok(list)
}

/// The registry that `reference` names, wherever the configuration would have images of it pulled from: the one whose
/// login is asked for.
pub(super) fn registry_itself(
    reference: &Reference,
    options: &RegistryOptions,
) -> Result<Endpoint, RegistryError> {
    let rule = options.registries.rule_for(reference);
    let stays = |rule: &RegistryRule| rule.location.as_ref().is_none_or(|location| *location == rule.prefix);
    primary(reference, rule.is_some_and(|(rule, _)| rule.insecure && stays(rule)), options)
}

/// The reference with `location` for its first `length` bytes.
fn relocated(
    reference: &Reference,
    length: usize,
    location: &str,
    rule: &RegistryRule,
) -> Result<Reference, RegistryError> {
    let text = reference.to_string();
    let rest = text.get(length..).unwrap_or_default();
    let fail = || RegistryError::Location {
        reference: text.clone(),
        location: location.to_owned(),
        at: rule.at.clone(),
    };
    let there = Reference::parse(&format!("{location}{rest}")).map_err(|_| fail())?;
    // Only a location with a tag of its own could lead to another image.
    if there.identifier() == reference.identifier() { Ok(there) } else { Err(fail()) }
}

/// How an endpoint is spoken to, and whom it must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Security {
    transport: Transport,
    unverified: bool,
}

/// What `insecure` of the file means: any certificate, or no TLS at all.
fn insecure(insecure: bool) -> Security {
    let transport = if insecure { Transport::TlsOrPlain } else { Transport::Tls };
    Security { transport, unverified: insecure }
}

/// The registry itself, of which the command line may speak.
fn primary(
    reference: &Reference,
    is_insecure: bool,
    options: &RegistryOptions,
) -> Result<Endpoint, RegistryError> {
    let plain = match &options.plain_http {
        PlainHttp::Asked => true,
        PlainHttp::Hosts(hosts) => hosts.iter().any(|host| host == reference.registry()),
        PlainHttp::Loopback => false,
    };
    let security = if plain {
        Security { transport: Transport::Plain, unverified: false }
    } else {
        insecure(is_insecure || options.unverified)
    };
    let mut endpoint = endpoint(reference, security, Serves::All, options)?;
    if let Some(directory) = &options.certificate_directory {
        endpoint.tls = Tls { unverified: endpoint.tls.unverified, ..certs_d::named(directory)? };
    }
    Ok(endpoint)
}

fn endpoint(
    reference: &Reference,
    security: Security,
    serves: Serves,
    options: &RegistryOptions,
) -> Result<Endpoint, RegistryError> {
    let (registry, api_host) = (reference.registry(), reference.api_host());
    let url = Url::of_api(api_host, true).ok_or_else(|| RegistryError::BadHost(api_host.to_owned()))?;
    let transport = match security.transport {
        Transport::Tls if url.is_loopback() => Transport::TlsOrPlain,
        transport => transport,
    };
    let mut tls = certs_d::tls_of(&url.authority(), &options.certificate_directories)?;
    tls.unverified = security.unverified;
    Ok(Endpoint {
        registry: registry.to_owned(),
        api_host: api_host.to_owned(),
        repository: reference.repository().to_owned(),
        transport,
        tls,
        serves,
    })
}

impl RegistryOptions {
    /// Where `registries.conf` forbids to pull `reference`, if it does.
    pub fn blocked(&self, reference: &Reference) -> Option<&Place> {
        self.registries.blocked(reference)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::convert::source::registry::RegistriesConf;

    const CONF: &str = r#"
        [[registry]]
        prefix = "example.com/foo"
        location = "internal.example.net/bar"
        [[registry.mirror]]
        location = "mirror-0.site/mirror-for-foo"
        [[registry.mirror]]
        location = "mirror-1.site:5000/mirrors/foo"
        insecure = true
        pull-from-mirror = "digest-only"

        [[registry]]
        location = "docker.io"
        mirror-by-digest-only = true
        [[registry.mirror]]
        location = "cache.site/hub"

        [[registry]]
        prefix = "docker.io/library/debian"
        location = "docker.io/library/debian"
        [[registry.mirror]]
        location = "docker.io/debiancopy"
        pull-from-mirror = "tag-only"

        [[registry]]
        prefix = "*.lab.site"
        insecure = true

        [[registry]]
        prefix = "*.moved.site"
        location = "new.site/old"

        [[registry]]
        prefix = "bad.site"
        location = "bad.site"
        blocked = true

        [[registry]]
        prefix = "one.site/app:1"
        location = "other.site/app:1"

        [[registry]]
        prefix = "two.site/app:1"
        location = "other.site/app:2"

        [[registry]]
        location = "127.0.0.1:5000"
    "#;

    fn options(text: &str) -> RegistryOptions {
        let mut registries = RegistriesConf::default();
        registries.add(Path::new("/etc/containers/registries.conf"), text).unwrap();
        RegistryOptions { registries, certificate_directories: Vec::new(), ..RegistryOptions::default() }
    }

    fn shown(endpoint: &Endpoint) -> String {
        let transport = match (endpoint.transport, endpoint.tls.unverified) {
            (Transport::Tls, false) => "",
            (Transport::Tls, true) => " unverified",
            (Transport::TlsOrPlain, false) => " tls-or-plain",
            (Transport::TlsOrPlain, true) => " insecure",
            (Transport::Plain, _) => " plain",
        };
        let serves = match endpoint.serves {
            Serves::All => "",
            Serves::DigestsOnly => " digests",
            Serves::TagsOnly => " tags",
        };
        format!("{}/{}{transport}{serves}", endpoint.registry, endpoint.repository)
    }

    #[track_caller]
    fn check(options: &RegistryOptions, reference: &str, expected: &[&str]) {
        let reference = Reference::parse(reference).unwrap();
        let list = match endpoints(&reference, options) {
            Ok(list) => list.iter().map(shown).collect(),
            Err(error) => vec![error.to_string()],
        };
        assert_eq!(list, expected, "{reference}");
    }

    #[test]
    fn mirrors_of_the_site_come_first() {
        let mut options = options(CONF);
        let at = || Place { path: "/etc/hpcrun/policy.toml".into(), line: 7 };
        let mut prefer = |prefix: &str, mirrors: &[&str]| {
            let mirrors: Vec<String> = mirrors.iter().map(|mirror| (*mirror).to_owned()).collect();
            options.registries.prefer_mirrors(prefix, &mirrors, at());
        };
        prefer("example.com", &["site.example/com"]);
        prefer("example.com/foo/deep", &["site.example/deep", "second.example:5000"]);
        prefer("plain.site", &["site.example/plain"]);
        prefer("bad.site/x", &["site.example/bad"]);
        check(
            &options,
            "example.com/foo/image:1",
            &[
                "site.example/com/foo/image",
                "mirror-0.site/mirror-for-foo/image",
                "mirror-1.site:5000/mirrors/foo/image insecure digests",
                "internal.example.net/bar/image",
            ],
        );
        check(
            &options,
            "example.com/foo/deep/image:1",
            &[
                "site.example/deep/image",
                "second.example:5000/image",
                "site.example/com/foo/deep/image",
                "mirror-0.site/mirror-for-foo/deep/image",
                "mirror-1.site:5000/mirrors/foo/deep/image insecure digests",
                "internal.example.net/bar/deep/image",
            ],
        );
        check(&options, "example.com/other:1", &["site.example/com/other", "example.com/other"]);
        check(&options, "plain.site/a:1", &["site.example/plain/a", "plain.site/a"]);
        check(&options, "plain.site.org/a:1", &["plain.site.org/a"]);
        // What a file forbids, no mirror gives.
        let blocked = Reference::parse("bad.site/x/y").unwrap();
        assert!(endpoints(&blocked, &options).is_err());
        let detours = options.registries.detours(&Reference::parse("plain.site/a:1").unwrap());
        assert_eq!(detours, [("site.example/plain/a".to_owned(), at())]);
    }

    #[test]
    fn mirrors_then_the_location() {
        let options = options(CONF);
        check(
            &options,
            "example.com/foo/image:1",
            &[
                "mirror-0.site/mirror-for-foo/image",
                "mirror-1.site:5000/mirrors/foo/image insecure digests",
                "internal.example.net/bar/image",
            ],
        );
        let exactly = [
            "mirror-0.site/mirror-for-foo",
            "mirror-1.site:5000/mirrors/foo insecure digests",
            "internal.example.net/bar",
        ];
        check(&options, "example.com/foo:1", &exactly);
        check(&options, "example.com/foobar", &["example.com/foobar"]);
        check(&options, "example.com:5000/foo/image", &["example.com:5000/foo/image"]);
        check(&options, "other.org/x", &["other.org/x"]);
    }

    #[test]
    fn the_hub_and_longer_prefixes() {
        let options = options(CONF);
        check(&options, "alpine", &["cache.site/hub/library/alpine digests", "docker.io/library/alpine"]);
        check(&options, "me/app:1", &["cache.site/hub/me/app digests", "docker.io/me/app"]);
        check(&options, "debian:12", &["docker.io/library/debiancopy tags", "docker.io/library/debian"]);
        let api = endpoints(&Reference::parse("alpine").unwrap(), &options).unwrap();
        assert_eq!(api.last().unwrap().api_host, "registry-1.docker.io");
    }

    #[test]
    fn wildcards() {
        let options = options(CONF);
        check(&options, "a.lab.site/x", &["a.lab.site/x insecure"]);
        check(&options, "a.b.lab.site:8443/x", &["a.b.lab.site:8443/x insecure"]);
        check(&options, "lab.site/x", &["lab.site/x"]);
        check(&options, "evillab.site/x", &["evillab.site/x"]);
        check(&options, "evil.org/a.lab.site/x", &["evil.org/a.lab.site/x"]);
        check(&options, "r.moved.site/team/x:1", &["new.site/old/team/x"]);
    }

    #[test]
    fn tags_in_a_prefix() {
        let options = options(CONF);
        check(&options, "one.site/app:1", &["other.site/app"]);
        check(&options, "one.site/app:2", &["one.site/app"]);
        check(
            &options,
            "two.site/app:1",
            &["\"other.site/app:2\" cannot stand in for two.site/app:1 (/etc/containers/registries.conf:42)"],
        );
    }

    #[test]
    fn blocked_names_file_and_line() {
        let options = options(CONF);
        let expected = "pulling bad.site/a/b:latest is blocked by /etc/containers/registries.conf:33";
        check(&options, "bad.site/a/b", &[expected]);
        let reference = Reference::parse("bad.site/a/b").unwrap();
        assert_eq!(options.blocked(&reference).map(|at| at.line), Some(33));
        assert_eq!(options.blocked(&Reference::parse("good.site/a").unwrap()), None);
    }

    #[test]
    fn the_command_line_speaks_of_the_registry_alone() {
        let plain = RegistryOptions { plain_http: PlainHttp::Asked, ..options(CONF) };
        let unverified = RegistryOptions { unverified: true, ..options(CONF) };
        check(&plain, "alpine", &["cache.site/hub/library/alpine digests", "docker.io/library/alpine plain"]);
        check(
            &unverified,
            "alpine",
            &["cache.site/hub/library/alpine digests", "docker.io/library/alpine insecure"],
        );
        check(&unverified, "r.org/x", &["r.org/x insecure"]);
        let hosts = PlainHttp::Hosts(vec!["r.org:80".into()]);
        let some = RegistryOptions { plain_http: hosts, ..options("") };
        check(&some, "r.org:80/x", &["r.org:80/x plain"]);
        check(&some, "r.org/x", &["r.org/x"]);
        for host in ["127.0.0.1:5000", "localhost:5000", "localhost", "[::1]:5000"] {
            let expected = format!("{host}/x tls-or-plain");
            check(&options(CONF), &format!("{host}/x"), &[&expected]);
        }
    }
}
