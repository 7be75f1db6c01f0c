//! Mirrors: asked in order, passed over when they fail, and never told what is another's.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use hpcrun::convert::source::registry::AuthFile;
use hpcrun::image::digest::Digest;

use super::scenario::Outcome::{Pulled, Refused};
use super::scenario::{BASIC, Scenario, World, run};
use super::scripted::{Log, Reply, Request, honest};

#[test]
fn mirrors() {
    run(MIRRORS);
}

/// Puts these mirrors before the registry; each may have lines of its own.
pub(super) fn before(world: &mut World, mirrors: &[(SocketAddr, &str)]) {
    let registry = world.source.trim_start_matches("docker://").split('/').next().unwrap();
    let mut text = format!("[[registry]]\nlocation = \"{registry}\"\n");
    for (address, more) in mirrors {
        text += &format!("[[registry.mirror]]\nlocation = \"{address}\"\n{more}\n");
    }
    world.options.registry.registries.add(Path::new("registries.conf"), &text).unwrap();
}

/// A mirror by this script before an honest registry, whose log is given.
fn mirror(
    world: &mut World,
    script: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static,
) -> (Log, Log) {
    let registry = world.registry(|_, _, reply| reply);
    let (address, log) = world.stranger(script);
    before(world, &[(address, "")]);
    (log, registry)
}

/// A mirror that answers everything so: it is asked once and then left alone.
fn broken(world: &mut World, reply: fn() -> Reply) {
    let (log, registry) = mirror(world, move |_, _| reply());
    world.after(move || {
        assert!(log.seen().len() <= 4, "{:?}", log.seen());
        assert_eq!(registry.count("/blobs/"), 3);
    });
}

/// A good mirror.
fn copy(world: &World) -> impl Fn(&Request, usize) -> Reply + Send + Sync + 'static {
    let image = world.image.clone();
    move |request, _| honest(&image, request)
}

const MIRRORS: &[Scenario] = &[
    ("a good mirror: the registry is not asked", Pulled, |world| {
        let script = copy(world);
        let (_, registry) = mirror(world, script);
        world.after(move || assert!(registry.seen().is_empty(), "{:?}", registry.seen()));
    }),
    ("a mirror that has nothing", Pulled, |world| {
        let (_, registry) = mirror(world, |_, _| Reply::new(404));
        world.after(move || assert_eq!(registry.count("/blobs/"), 3));
    }),
    ("a mirror that is broken", Pulled, |world| broken(world, || Reply::new(500))),
    ("a mirror that is busy", Pulled, |world| {
        broken(world, || Reply::new(429).header("Retry-After", "3600"))
    }),
    ("a mirror that wants a login gets none of another's", Pulled, |world| {
        world.log_in();
        broken(world, || Reply::new(401).header("WWW-Authenticate", "Basic realm=\"mirror\""));
    }),
    ("a mirror that wants a token for a login gets none of another's", Pulled, |world| {
        world.log_in();
        broken(world, || {
            Reply::new(401).header("WWW-Authenticate", "Bearer realm=\"https://127.0.0.2:1/token\"")
        });
    }),
    ("the registry's login goes to the registry", Pulled, |world| {
        let image = world.image.clone();
        let registry = world.serve(move |request, _| match request.header("authorization") {
            Some(sent) if sent == format!("Basic {BASIC}") => honest(&image, request),
            _ => Reply::new(401).header("WWW-Authenticate", "Basic realm=\"registry\""),
        });
        let host = world.source.trim_start_matches("docker://").split('/').next().unwrap().to_owned();
        let contents = format!(r#"{{"auths":{{"{host}":{{"auth":"{BASIC}"}}}}}}"#).into_bytes();
        world.options.registry.auth_files = vec![AuthFile { path: "/home/u/auth.json".into(), contents }];
        let (address, _) =
            world.stranger(|_, _| Reply::new(401).header("WWW-Authenticate", "Basic realm=\"m\""));
        before(world, &[(address, "")]);
        world.after(move || assert!(registry.heard(BASIC)));
    }),
    ("a mirror that nobody runs", Pulled, |world| {
        let free = std::net::TcpListener::bind("127.0.0.2:0").unwrap().local_addr().unwrap();
        world.registry(|_, _, reply| reply);
        before(world, &[(free, "")]);
    }),
    ("a mirror that says nothing", Pulled, |world| {
        world.options.registry.patience.connect = Duration::from_millis(300);
        world.options.registry.patience.stall = Duration::from_millis(300);
        let listener = std::net::TcpListener::bind("127.0.0.2:0").unwrap();
        world.registry(|_, _, reply| reply);
        before(world, &[(listener.local_addr().unwrap(), "")]);
        world.after(move || drop(listener));
    }),
    ("a mirror that speaks another protocol", Pulled, |world| {
        broken(world, || Reply::raw("220 mail ready\r\n"))
    }),
    ("a mirror that redirects for ever", Pulled, |world| {
        mirror(world, |request, _| Reply::redirect(&request.target));
    }),
    ("a mirror with another manifest under its digest", Pulled, |world| {
        let image = world.image.clone();
        mirror(world, move |request, _| match (request.is_manifest(), request.method.as_str()) {
            (true, "GET") => Reply::ok(r#"{"schemaVersion":2}"#),
            _ => honest(&image, request),
        });
    }),
    ("a mirror with a damaged config", Pulled, |world| {
        let image = world.image.clone();
        let config = Digest::of(&image.config);
        mirror(world, move |request, _| match request.target.ends_with(config.as_str()) {
            true => Reply::ok(vec![b' '; image.config.len()]),
            false => honest(&image, request),
        });
    }),
    ("a mirror that lacks a layer", Pulled, |world| {
        let image = world.image.clone();
        let layer = Digest::of(&image.layers[1].blob);
        let absent = layer.clone();
        let (_, registry) =
            mirror(world, move |request, _| match request.target.ends_with(absent.as_str()) {
                true => Reply::new(404),
                false => honest(&image, request),
            });
        world.after(move || {
            assert_eq!(registry.seen().len(), 1, "{:?}", registry.seen());
            assert_eq!(registry.count(layer.as_str()), 1);
        });
    }),
    ("a mirror that breaks off in the middle of a layer: the registry goes on from there", Pulled, |world| {
        world.large();
        let image = world.image.clone();
        let layer = Digest::of(&image.layers[1].blob);
        let broken = layer.clone();
        let (_, registry) = mirror(world, move |request, _| {
            let reply = honest(&image, request);
            if request.target.ends_with(broken.as_str()) { reply.cut(50_000) } else { reply }
        });
        world.after(move || {
            let seen = registry.seen();
            let layer = seen.iter().filter(|request| request.target.ends_with(layer.as_str()));
            let starts: Vec<_> = layer.map(Request::range_start).collect();
            assert_eq!(starts, [Some(100_000)], "the second try of the mirror gave as much again");
        });
    }),
    ("a mirror that gives a layer of another size", Pulled, |world| {
        let image = world.image.clone();
        let layer = Digest::of(&image.layers[1].blob);
        mirror(world, move |request, _| match request.target.ends_with(layer.as_str()) {
            true => Reply::ok("short"),
            false => honest(&image, request),
        });
    }),
    ("a mirror for digests is not asked for tags", Pulled, |world| {
        let registry = world.registry(|_, _, reply| reply);
        let script = copy(world);
        let (address, log) = world.stranger(script);
        before(world, &[(address, "pull-from-mirror = \"digest-only\"")]);
        world.after(move || {
            assert_eq!(log.count("/latest"), 0);
            assert_eq!(log.count("/blobs/"), 3);
            assert_eq!(registry.seen().len(), 1, "the tag alone: {:?}", registry.seen());
        });
    }),
    ("a mirror for tags is not asked for a pinned digest", Pulled, |world| {
        world.registry(|_, _, reply| reply);
        let script = copy(world);
        let (address, log) = world.stranger(script);
        before(world, &[(address, "pull-from-mirror = \"tag-only\"")]);
        world.source = world.source.replace(":latest", &format!("@{}", Digest::of(&world.image.manifest)));
        world.after(move || assert!(log.seen().is_empty()));
    }),
    ("two mirrors: the second is asked where the first fails", Pulled, |world| {
        let registry = world.registry(|_, _, reply| reply);
        let (first, _) = world.stranger(|_, _| Reply::new(404));
        let script = copy(world);
        let (second, log) = world.stranger(script);
        before(world, &[(first, ""), (second, "")]);
        world.after(move || {
            assert!(registry.seen().is_empty());
            assert_eq!(log.count("/blobs/"), 3);
        });
    }),
    (
        "all fail: the registry's own word counts, and the mirror's is told",
        Refused("answered 500 when asked for manifest latest of app) nor the registry gives it: 127.0.0.1:"),
        |world| {
            world.serve(|_, _| {
                Reply::new(404)
                    .body(r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#)
            });
            let (address, _) = world.stranger(|_, _| Reply::new(500));
            before(world, &[(address, "")]);
        },
    ),
];
