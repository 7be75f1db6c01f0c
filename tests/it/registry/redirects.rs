//! Redirects, foreign layers, and what goes along.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use hpcrun::image::digest::Digest;
use serde_json::Value;

use super::scenario::Outcome::{Pulled, Refused};
use super::scenario::{CANARY, Scenario, World, run};
use super::scripted::{Log, Reply, Request, honest};

#[test]
fn redirects() {
    run(REDIRECTS);
}

#[test]
fn foreign_layers() {
    run(FOREIGN);
}

/// What a registry that wants Basic says to those who do not send it.
fn basic() -> Reply {
    Reply::new(401).header("WWW-Authenticate", "Basic realm=\"x\"")
}

/// A registry for those with a login that redirects what `moved` picks to where it says.
fn moving(world: &mut World, moved: impl Fn(&Request) -> Option<String> + Send + Sync + 'static) -> Log {
    world.log_in();
    world.registry(move |request, _, reply| match moved(request) {
        _ if request.header("authorization").is_none() => basic(),
        Some(location) => Reply::redirect(&location),
        None => reply,
    })
}

/// A store of the image that wants a signature.
fn store(world: &mut World) -> SocketAddr {
    let image = world.image.clone();
    let script = move |request: &Request, _: usize| match request.target.contains("signature=") {
        true => honest(&image, &request.without_query()),
        false => Reply::new(403),
    };
    world.stranger(script).0
}

/// All manifest requests lead to this `Location`.
fn leads_to(world: &mut World, location: &'static str) {
    let log = world.serve(move |_, _| Reply::redirect(location));
    world.after(move || assert!(log.seen().len() <= 22, "{}", log.seen().len()));
}

const REDIRECTS: &[Scenario] = &[
    ("blobs are on another host, which gets no login", Pulled, |world| {
        let address = store(world);
        moving(world, move |request| {
            let blob = request.target.contains("/blobs/");
            blob.then(|| format!("http://{address}{}?signature={CANARY}", request.target))
        });
        // A signature is for the store that it was made for; the runner would take it for the login.
        world.trust_strangers_with_the_signature();
    }),
    ("manifests are on another host too", Pulled, |world| {
        let address = store(world);
        moving(world, move |request| Some(format!("http://{address}{}?signature=1", request.target)));
    }),
    ("a location without scheme", Pulled, |world| {
        let address = store(world);
        moving(world, move |request| Some(format!("//{address}{}?signature=1", request.target)));
    }),
    ("the store asks for a login", Refused("answered 401 when asked for blob"), |world| {
        let (address, _) = world.stranger(|_, _| basic());
        moving(world, move |request| {
            request.target.contains("/blobs/").then(|| format!("http://{address}/x?s={CANARY}"))
        });
        world.trust_strangers_with_the_signature();
    }),
    ("the store asks for a token from itself", Refused("answered 401 when asked for blob"), |world| {
        let home = Arc::new(OnceLock::<SocketAddr>::new());
        let known = Arc::clone(&home);
        let (address, log) = world.stranger(move |_, _| {
            let realm = format!("Bearer realm=\"http://{}/token\"", known.get().unwrap());
            Reply::new(401).header("WWW-Authenticate", &realm)
        });
        home.set(address).unwrap();
        moving(world, move |request| {
            request.target.contains("/blobs/").then(|| format!("http://{address}/x"))
        });
        world.after(move || assert_eq!(log.count("/token"), 0));
    }),
    ("there and back again: the login stays away", Refused("does not let you pull"), |world| {
        let home = Arc::new(OnceLock::<String>::new());
        let known = Arc::clone(&home);
        let (address, _) =
            world.stranger(move |_, _| Reply::redirect(&format!("http://{}/back", known.get().unwrap())));
        world.log_in();
        let log = world.registry(move |request, _, reply| match request.target.as_str() {
            "/back" => Reply::new(403),
            _ if request.header("authorization").is_none() => basic(),
            target if target.contains("/blobs/") => Reply::redirect(&format!("http://{address}/")),
            _ => reply,
        });
        let host = world.source.trim_start_matches("docker://").split('/').next().unwrap().to_owned();
        home.set(host).unwrap();
        world.after(move || {
            let seen = log.seen();
            let mut back = seen.iter().filter(|request| request.target == "/back").peekable();
            assert!(back.peek().is_some());
            assert!(back.all(|request| request.header("authorization").is_none()));
        });
    }),
    ("a relative location", Pulled, |world| {
        world.registry(|request, _, reply| {
            match request.target.contains("/moved/") || request.is_manifest() {
                true => reply,
                false => Reply::redirect(&format!("moved/{}", request.target.rsplit('/').next().unwrap())),
            }
        });
    }),
    ("301, 302, 303 and 308", Pulled, |world| {
        world.registry(|request, _, reply| {
            let step = request.target.matches("/moved").count();
            match [301, 302, 303, 308].get(step) {
                Some(status) if request.target.contains("/blobs/") => {
                    let target = request.target.replace("/blobs", "/blobs/moved");
                    Reply::new(*status).header("Location", &target)
                }
                _ => reply,
            }
        });
    }),
    ("ten times", Pulled, |world| {
        world.registry(|request, _, reply| match request.target.matches("/moved").count() {
            step if step < 10 && request.target.contains("/blobs/") => {
                Reply::redirect(&request.target.replacen("/blobs", "/blobs/moved", 1))
            }
            _ => reply,
        });
    }),
    ("for ever", Refused("redirects more than 10 times"), |world| {
        leads_to(world, "/v2/app/manifests/latest")
    }),
    ("for ever between two hosts", Refused("redirects more than 10 times"), |world| {
        let home = Arc::new(OnceLock::<String>::new());
        let known = Arc::clone(&home);
        let (address, _) = world.stranger(move |request, _| {
            Reply::redirect(&format!("http://{}{}", known.get().unwrap(), request.target))
        });
        world.log_in();
        world.serve(move |request, _| match request.header("authorization") {
            None if request.target.starts_with("/v2/") => basic(),
            _ => Reply::redirect(&format!("http://{address}/x")),
        });
        home.set(world.source.trim_start_matches("docker://").split('/').next().unwrap().to_owned()).unwrap();
    }),
    ("to an unencrypted host", Refused("to the unencrypted http://registry.invalid/v2/"), |world| {
        leads_to(world, "http://registry.invalid/v2/");
    }),
    ("to another protocol", Refused("to a malformed address"), |world| leads_to(world, "ftp://127.0.0.1/")),
    ("to a file", Refused("to a malformed address"), |world| leads_to(world, "file:///etc/passwd")),
    ("to an address with a password", Refused("to a malformed address"), |world| {
        leads_to(world, "http://user:pw@127.0.0.1/");
    }),
    ("to a port in other digits", Refused("to a malformed address"), |world| {
        leads_to(world, "http://127.0.0.1:0x50/")
    }),
    ("to nowhere", Refused("redirects without saying where"), |world| {
        world.serve(|_, _| Reply::new(302));
    }),
    ("a login page in place of a blob", Refused("bytes long, not"), |world| {
        let (address, _) = world.stranger(|_, _| Reply::ok("<html>log in</html>"));
        moving(world, move |request| {
            request.target.contains("/blobs/").then(|| format!("http://{address}/login"))
        });
    }),
];

/// As `--allow-foreign` does.
fn allow(world: &mut World) {
    world.options.allow_foreign = true;
    world.options.registry.foreign_layers = true;
}

/// Gives the upper layer a place outside of the registry, which does not have it.
fn foreign(world: &mut World, place: &str) -> Log {
    elsewhere(world, place, "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip")
}

fn elsewhere(world: &mut World, place: &str, media_type: &str) -> Log {
    let mut manifest: Value = serde_json::from_slice(&world.image.manifest).unwrap();
    manifest["layers"][1]["urls"] = serde_json::json!([place]);
    manifest["layers"][1]["mediaType"] = media_type.into();
    world.image.manifest = manifest.to_string().into_bytes();
    let absent = Digest::of(&world.image.layers[1].blob);
    world.log_in();
    world.registry(move |request, _, reply| match request.header("authorization") {
        None => basic(),
        Some(_) if request.target.ends_with(absent.as_str()) => Reply::new(404),
        Some(_) => reply,
    })
}

const FOREIGN: &[Scenario] = &[
    ("foreign layers are not fetched unasked", Refused("is not to be distributed"), |world| {
        let (address, log) = world.stranger(|_, _| Reply::new(200));
        foreign(world, &format!("http://{address}/layer"));
        world.after(move || assert!(log.seen().is_empty()));
    }),
    (
        "a layer with a place outside is not fetched from there unasked",
        Refused("layers from outside are not allowed"),
        |world| {
            let (address, log) = world.stranger(|_, _| Reply::new(200));
            let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
            elsewhere(world, &format!("http://{address}/layer"), media_type);
            world.after(move || assert!(log.seen().is_empty()));
        },
    ),
    ("foreign layers are fetched without a login", Pulled, |world| {
        allow(world);
        let blob = world.image.layers[1].blob.clone();
        let (address, _) = world.stranger(move |_, _| Reply::ok(blob.clone()));
        foreign(world, &format!("http://{address}/layer"));
    }),
    (
        "a foreign store that asks for a login gets none",
        Refused("answered 401 when asked for blob"),
        |world| {
            allow(world);
            let (address, _) = world.stranger(|_, _| basic());
            foreign(world, &format!("http://{address}/layer"));
        },
    ),
    ("a foreign store that sends something else", Refused("should be sha256:"), |world| {
        allow(world);
        let mut blob = world.image.layers[1].blob.clone();
        blob[4] ^= 1;
        let (address, _) = world.stranger(move |_, _| Reply::ok(blob.clone()));
        foreign(world, &format!("http://{address}/layer"));
    }),
    ("a foreign layer at a file", Refused("not a place on the network"), |world| {
        allow(world);
        foreign(world, "file:///etc/shadow");
    }),
];
