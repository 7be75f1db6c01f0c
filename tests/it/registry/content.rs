//! Registries that serve something else than was asked for, or in an odd form.

use hpcrun::image::digest::{Algorithm, Digest};
use serde_json::json;

use super::scenario::Outcome::{Pulled, Refused};
use super::scenario::{Scenario, run};
use super::scripted::{Reply, honest};
use crate::sources::layout::{OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, descriptor, for_platform, index};

#[test]
fn manifests() {
    run(MANIFESTS);
}

#[test]
fn blobs() {
    run(BLOBS);
}

#[test]
fn answers_that_are_no_http() {
    run(FRAMING);
}

const MANIFESTS: &[Scenario] = &[
    ("a good registry", Pulled, |world| {
        let log = world.registry(|_, _, reply| reply);
        world.after(move || {
            let seen = log.seen();
            for request in &seen {
                assert_eq!(request.header("authorization"), None);
                assert_eq!(request.header("accept-encoding"), Some("identity"), "the bytes as they are");
                assert!(request.header("user-agent").unwrap().starts_with("hpcrun/"));
            }
            let accept = seen[0].header("accept").unwrap();
            for part in
                ["image.index.v1", "manifest.list.v2", "image.manifest.v1", "distribution.manifest.v2"]
            {
                assert!(accept.contains(part), "{accept}");
            }
            assert_eq!(
                log.count_of("HEAD", "/manifests/latest"),
                1,
                "what is counted comes after what is not"
            );
            assert_eq!(log.count_of("GET", "/manifests/sha256:"), 1);
            assert_eq!(seen.len(), 5, "{seen:?}");
        });
    }),
    ("an unchanged image costs no manifest request", Pulled, |world| {
        let directory = crate::support::scratch();
        world.options.registry.documents = Some(directory.path().join("kept"));
        let log = world.registry(|_, _, reply| reply);
        super::scenario::open(&world.source, &world.options).unwrap();
        world.after(move || {
            assert_eq!(log.count_of("HEAD", "/manifests/latest"), 2);
            assert_eq!(log.count_of("GET", "/manifests/"), 1);
            drop(directory);
        });
    }),
    ("kept documents that were damaged are fetched anew", Pulled, |world| {
        let directory = crate::support::scratch();
        world.options.registry.documents = Some(directory.path().to_owned());
        world.registry(|_, _, reply| reply);
        super::scenario::open(&world.source, &world.options).unwrap();
        for entry in std::fs::read_dir(directory.path()).unwrap() {
            std::fs::write(entry.unwrap().path(), "{}").unwrap();
        }
        world.after(move || drop(directory));
    }),
    ("HEAD is not known", Pulled, |world| {
        world.registry(|request, _, reply| if request.method == "HEAD" { Reply::new(405) } else { reply });
    }),
    ("HEAD breaks the registry", Pulled, |world| {
        let log = world
            .registry(|request, _, reply| if request.method == "HEAD" { Reply::new(500) } else { reply });
        world.after(move || assert_eq!(log.count_of("HEAD", ""), 1));
    }),
    ("HEAD is not answered", Pulled, |world| {
        world.registry(|request, _, reply| if request.method == "HEAD" { Reply::raw("") } else { reply });
    }),
    ("HEAD is forbidden", Pulled, |world| {
        world.registry(|request, _, reply| if request.method == "HEAD" { Reply::new(403) } else { reply });
    }),
    ("HEAD does not tell the digest", Pulled, |world| {
        world.registry(|request, _, reply| {
            if request.method == "HEAD" { reply.header("Docker-Content-Digest", "") } else { reply }
        });
    }),
    ("HEAD tells a malformed digest", Pulled, |world| {
        world.registry(|request, _, reply| {
            let malformed = "sha256:../../etc/passwd";
            if request.method == "HEAD" { reply.header("Docker-Content-Digest", malformed) } else { reply }
        });
    }),
    ("HEAD tells a digest that is not served", Pulled, |world| {
        world.registry(|request, _, reply| match request.method.as_str() {
            "HEAD" => reply.header("Docker-Content-Digest", Digest::of(b"gone").as_str()),
            _ if request.target.ends_with(Digest::of(b"gone").as_str()) => Reply::new(404),
            _ => reply,
        });
    }),
    ("the stated digest is another", Refused("sends something else as manifest"), |world| {
        world.registry(|request, _, reply| match request.is_manifest() {
            true => reply.header("Docker-Content-Digest", Digest::of(b"").as_str()),
            false => reply,
        });
    }),
    ("the stated digest of a GET is another", Refused("sends something else as manifest latest"), |world| {
        world.registry(|request, _, reply| match (request.is_manifest(), request.method.as_str()) {
            (true, "HEAD") => Reply::new(405),
            (true, _) => reply.header("Docker-Content-Digest", Digest::of(b"").as_str()),
            _ => reply,
        });
    }),
    (
        "a pinned digest is served something else",
        Refused("sends something else as manifest sha256:000"),
        |world| {
            world.registry(|_, _, reply| reply);
            world.source = world.source.replace(":latest", &format!("@sha256:{}", "0".repeat(64)));
        },
    ),
    ("tag and digest: the digest decides", Pulled, |world| {
        let log = world.registry(
            |request, _, reply| {
                if request.target.ends_with("/latest") { Reply::new(404) } else { reply }
            },
        );
        world.source = format!("{}@{}", world.source, Digest::of(&world.image.manifest));
        world.after(move || assert_eq!(log.count("/latest"), 0));
    }),
    ("a pinned SHA-512", Pulled, |world| {
        let digest = Digest::of_with(Algorithm::Sha512, &world.image.manifest);
        world.registry(|_, _, reply| reply.header("Docker-Content-Digest", ""));
        world.source = world.source.replace(":latest", &format!("@{digest}"));
    }),
    ("a wrong pinned SHA-512", Refused("sends something else as manifest sha512:"), |world| {
        world.registry(|_, _, reply| reply);
        world.source = world.source.replace(":latest", &format!("@sha512:{}", "0".repeat(128)));
    }),
    ("an index leads to the manifest", Pulled, |world| {
        let index = index(&[for_platform(&world.image.manifest, OCI_MANIFEST, "amd64")]);
        world.registry(move |request, _, reply| match request.target.ends_with("/latest") {
            true => Reply::ok(index.clone()).header("Content-Type", OCI_INDEX),
            false => reply,
        });
    }),
    ("the tag moves between index and manifest", Refused("sends something else as manifest"), |world| {
        let index = index(&[for_platform(&world.image.manifest, OCI_MANIFEST, "amd64")]);
        world.serve(move |request, _| match request.target.ends_with("/latest") {
            true => Reply::ok(index.clone()).header("Content-Type", OCI_INDEX),
            false => Reply::ok(r#"{"schemaVersion":2}"#),
        });
    }),
    ("a manifest of more than 4 MiB", Refused("more than 4194304 bytes"), |world| {
        world.manifest(vec![b' '; (4 << 20) + 1], OCI_MANIFEST);
    }),
    ("a manifest without end", Refused("more than 4194304 bytes"), |world| {
        world.serve(|_, _| Reply::ok(vec![b' '; 6 << 20]).without_length());
    }),
    ("a manifest that is an index too", Refused("ambiguous"), |world| {
        let both =
            json!({"schemaVersion": 2, "manifests": [], "layers": [], "config": descriptor(b"", OCI_CONFIG)});
        world.manifest(both.to_string(), OCI_MANIFEST);
    }),
    ("a manifest declared as an index", Refused("is declared as"), |world| {
        let manifest = world.image.manifest.clone();
        world.manifest(manifest, OCI_INDEX);
    }),
    ("an index declared as a manifest", Refused("is declared as"), |world| {
        world.manifest(index(&[]), OCI_MANIFEST);
    }),
    ("schema 1", Refused("schema 1"), |world| {
        world.manifest(
            r#"{"schemaVersion":1,"fsLayers":[]}"#,
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
        );
    }),
    ("a captive portal", Refused("not a JSON object"), |world| {
        world.manifest("<html>please log in</html>", "text/html");
    }),
    ("an empty manifest", Refused("not a JSON object"), |world| {
        world.manifest("", OCI_MANIFEST);
    }),
    ("a manifest compressed on the way", Refused("sends a manifest encoded as gzip"), |world| {
        world.registry(
            |request, _, reply| {
                if request.is_manifest() { reply.header("Content-Encoding", "gzip") } else { reply }
            },
        );
    }),
    ("a media type with parameters", Pulled, |world| {
        world.registry(|request, _, reply| match request.is_manifest() {
            true => reply.header("Content-Type", "application/json; charset=utf-8"),
            false => reply,
        });
    }),
    ("a manifest that breaks off is asked for again", Pulled, |world| {
        world.registry(|_, before, reply| if before == 0 { reply.cut(10) } else { reply });
    }),
    ("an endless error page", Refused("has no manifest latest of app"), |world| {
        world.serve(|_, _| Reply::new(404).body(vec![b'x'; 6 << 20]).without_length());
    }),
];

/// A registry whose config is changed so.
fn config(world: &mut super::scenario::World, change: fn(&mut Vec<u8>)) {
    let bytes = world.image.config.clone();
    let digest = Digest::of(&bytes);
    world.registry(move |request, _, reply| {
        if !request.target.ends_with(digest.as_str()) {
            return reply;
        }
        let mut body = bytes.clone();
        change(&mut body);
        Reply::ok(body)
    });
}

const BLOBS: &[Scenario] = &[
    ("a config with another byte", Refused("sends something else as blob"), |world| {
        config(world, |body| body[0] = b' ');
    }),
    ("a config that is longer", Refused("as the manifest says"), |world| {
        config(world, |body| body.push(b' '))
    }),
    ("a config that is shorter", Refused("as the manifest says"), |world| {
        config(world, |body| body.truncate(body.len() - 1));
    }),
    ("an empty config", Refused("as the manifest says"), |world| config(world, Vec::clear)),
    ("a config without end", Refused("as the manifest says"), |world| {
        let digest = Digest::of(&world.image.config);
        world.registry(move |request, _, reply| match request.target.ends_with(digest.as_str()) {
            true => Reply::ok(vec![b' '; 6 << 20]).without_length(),
            false => reply,
        });
    }),
    ("a config that is missing", Refused("has no blob sha256:"), |world| {
        let digest = Digest::of(&world.image.config);
        world.registry(
            move |request, _, reply| {
                if request.target.ends_with(digest.as_str()) { Reply::new(404) } else { reply }
            },
        );
    }),
    ("a layer that is missing", Refused("has no blob sha256:"), |world| {
        world.layer(|_, _, _| Reply::new(404));
    }),
    ("a layer with another byte", Refused("should be sha256:"), |world| {
        let mut blob = world.image.layers[1].blob.clone();
        // The time in the gzip header: nobody but the digest minds.
        blob[4] ^= 1;
        world.layer(move |_, _, _| Reply::ok(blob.clone()));
    }),
    ("another layer of the same size", Refused("should be sha256:"), |world| {
        let size = world.image.layers[1].blob.len();
        world.layer(move |_, _, _| Reply::ok(vec![0; size]));
    }),
    ("a layer that goes on", Refused("as the manifest says"), |world| {
        let longer = [world.image.layers[1].blob.clone(), vec![0; 10]].concat();
        world.layer(move |_, _, _| Reply::ok(longer.clone()).without_length());
    }),
    ("a layer whose stated length is larger", Refused("99999999 bytes long"), |world| {
        world.layer(|_, _, reply| reply.header("Content-Length", "99999999"));
    }),
    ("a layer whose stated length is smaller", Refused("is 10 bytes long"), |world| {
        world.layer(|_, _, reply| reply.header("Content-Length", "10"));
    }),
    ("a layer whose compression is stated once more", Pulled, |world| {
        world.layer(|_, _, reply| reply.header("Content-Encoding", "gzip"));
    }),
];

const FRAMING: &[Scenario] = &[
    ("everything in chunks", Pulled, |world| {
        world.large();
        world.registry(|_, _, reply| reply.chunked(1000));
    }),
    ("a chunk that is none", Refused("broke off at byte 0"), |world| {
        world.layer(|_, _, _| Reply::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"));
    }),
    ("a chunk larger than memory", Refused("broke off at byte"), |world| {
        world.layer(|_, _, _| {
            Reply::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx")
        });
    }),
    ("chunks that end early are resumed", Pulled, |world| {
        world.large();
        world.layer(|_, before, reply| if before == 0 { reply.chunked(1000).cut(70_000) } else { reply });
    }),
    ("another protocol", Refused("gave no usable answer"), |world| {
        world.serve(|_, _| Reply::raw("220 mail ready\r\n"));
    }),
    ("an unknown status", Refused("answered 999"), |world| {
        world.serve(|_, _| Reply::new(999));
    }),
    ("an answer without a word", Refused("cannot reach 127.0.0.1"), |world| {
        world.serve(|_, _| Reply::raw(""));
    }),
    ("a header without end", Refused("127.0.0.1"), |world| {
        world.serve(|_, _| Reply::raw(format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(4 << 20))));
    }),
    ("very many headers", Refused("127.0.0.1"), |world| {
        world.serve(|_, _| Reply::raw(format!("HTTP/1.1 200 OK\r\n{}", "X: y\r\n".repeat(1 << 20))));
    }),
    ("two lengths that contradict each other", Refused("127.0.0.1"), |world| {
        let body = world.image.manifest.clone();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: {}\r\n\r\n", body.len());
        world.serve(move |_, _| Reply::raw([head.as_bytes(), &body].concat()));
    }),
    ("a header that is not text", Pulled, |world| {
        let image = world.image.clone();
        world.serve(move |request, _| {
            honest(&image, request).header("Docker-Content-Digest", "\u{e9}\u{fffd}")
        });
    }),
];
