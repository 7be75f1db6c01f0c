//! One fault of the network at each phase of a pull: the image comes whole all the same.

use std::path::Path;
use std::time::Duration;

use hpcrun::image::digest::Digest;

use super::scenario::Outcome::{Pulled, Refused};
use super::scenario::{Outcome, Scenario, World, run, run_in};
use super::scripted::{Reply, Request};

/// What is asked for during a pull: method, and a part of the target.
fn phases(world: &World) -> [(&'static str, &'static str, String); 5] {
    let blob = |bytes: &[u8]| Digest::of(bytes).as_str().to_owned();
    [
        ("the tag", "HEAD", "/manifests/latest".to_owned()),
        ("the manifest", "GET", "/manifests/sha256:".to_owned()),
        ("the config", "GET", blob(&world.image.config)),
        ("the upper layer", "GET", blob(&world.image.layers[1].blob)),
        ("the lower layer", "GET", blob(&world.image.layers[0].blob)),
    ]
}

/// What befalls the first answer of a phase.
type Fault = (&'static str, fn(Reply) -> Reply);

const FAULTS: &[Fault] = &[
    ("reset before the answer", |_| Reply::raw("").reset(0)),
    ("reset in the status", |_| Reply::raw("HTTP/1.1 2")),
    ("reset in the headers", |_| Reply::raw("HTTP/1.1 200 OK\r\nContent-Len")),
    ("reset in the body", |reply| reply.reset(1)),
    ("closed in the body", |reply| reply.cut(2)),
    ("silence in the body", |reply| reply.stall(1, Duration::from_millis(800))),
    ("a slow body", |reply| reply.drip(Duration::from_micros(300))),
    ("a body in chunks that ends without the last", |reply| {
        let reply = reply.chunked(7);
        reply.cut(9)
    }),
    ("bad gateway", |_| Reply::new(502).body("<html>")),
];

#[test]
fn one_fault_at_each_phase() {
    for phase in 0..5 {
        for (fault, change) in FAULTS {
            let mut world = World::new();
            let (name, method, part) = phases(&world).into_iter().nth(phase).unwrap();
            world.options.registry.patience.stall = Duration::from_millis(500);
            let fits = move |request: &Request| request.method == method && request.target.contains(&part);
            world.registry(move |request, before, reply| match before {
                0 if fits(request) => change(reply),
                _ => reply,
            });
            run_in(world, &format!("{fault}, {name}"), Outcome::Pulled);
        }
    }
}

#[test]
fn names_that_do_not_resolve() {
    run(UNKNOWN_HOSTS);
}

const UNKNOWN_HOSTS: &[Scenario] = &[
    ("a registry without an address", Refused("nowhere.invalid"), |world| {
        world.source = "docker://nowhere.invalid:5000/app".to_owned();
    }),
    ("a mirror without an address", Pulled, |world| {
        world.registry(|_, _, reply| reply);
        let registry = world.source.trim_start_matches("docker://").split('/').next().unwrap();
        let text = format!(
            "[[registry]]\nlocation = \"{registry}\"\n[[registry.mirror]]\nlocation = \"nowhere.invalid:5000\"\n"
        );
        world.options.registry.registries.add(Path::new("registries.conf"), &text).unwrap();
    }),
];
