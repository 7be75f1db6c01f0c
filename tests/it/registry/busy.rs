//! Registries that are busy, limit their users, or say no.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use super::scenario::Outcome::{Pulled, Refused};
use super::scenario::{Scenario, World, run};
use super::scripted::Reply;
use crate::registry_config::socks::SocksProxy;

#[test]
fn busy_registries() {
    run(BUSY);
}

#[test]
fn refusals_in_plain_words() {
    run(REFUSALS);
}

#[test]
fn hosts_that_do_not_answer() {
    run(SILENT);
}

/// Every request is answered so twice, then honestly.
fn twice(world: &mut World, reply: fn() -> Reply) {
    world.registry(move |_, before, honest| if before < 2 { reply() } else { honest });
}

/// Every request is answered so: so many are made and no more.
fn always(world: &mut World, requests: usize, reply: fn() -> Reply) {
    let log = world
        .serve(move |_, _| reply().body(r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#));
    world.after(move || assert_eq!(log.seen().len(), requests, "{:?}", log.seen()));
}

const BUSY: &[Scenario] = &[
    ("408 twice", Pulled, |world| twice(world, || Reply::new(408))),
    ("429 twice", Pulled, |world| twice(world, || Reply::new(429))),
    ("429 with Retry-After in seconds", Pulled, |world| {
        twice(world, || Reply::new(429).header("Retry-After", "0"));
    }),
    ("429 with Retry-After as a date gone by", Pulled, |world| {
        twice(world, || Reply::new(429).header("Retry-After", "Sun, 06 Nov 1994 08:49:37 GMT"));
    }),
    ("429 with Retry-After in the far future", Pulled, |world| {
        twice(world, || Reply::new(429).header("Retry-After", "Sun, 06 Nov 2094 08:49:37 GMT"));
    }),
    ("429 with Retry-After of ten years", Pulled, |world| {
        twice(world, || Reply::new(429).header("Retry-After", "315360000"));
    }),
    ("429 with Retry-After that is garbage", Pulled, |world| {
        twice(world, || Reply::new(429).header("Retry-After", "-soon"));
    }),
    ("Retry-After is obeyed", Pulled, |world| {
        world.options.registry.patience.longest_delay = Duration::from_millis(300);
        let begin = Instant::now();
        world.registry(|_, before, reply| match before {
            0 => Reply::new(429).header("Retry-After", "60"),
            _ => reply,
        });
        // HEAD of the tag, GET of the manifest, config: each waits; the layers do so at the same time.
        world.after(move || assert!(begin.elapsed() >= Duration::from_millis(900), "{:?}", begin.elapsed()));
    }),
    ("500 twice", Pulled, |world| twice(world, || Reply::new(500))),
    ("502 twice", Pulled, |world| twice(world, || Reply::new(502))),
    ("503 twice", Pulled, |world| twice(world, || Reply::new(503).header("Retry-After", "0"))),
    ("504 twice", Pulled, |world| twice(world, || Reply::new(504))),
    ("429 for ever", Refused("still does after 4 tries (slow down)"), |world| {
        always(world, 1 + 4, || Reply::new(429));
    }),
    ("503 for ever", Refused("answered 503 when asked for manifest latest of app (slow down)"), |world| {
        always(world, 1 + 4, || Reply::new(503));
    }),
    ("500 for ever for a layer", Refused("could not be resumed in 4 tries"), |world| {
        world.layer(|_, _, _| Reply::new(500));
    }),
    ("400 is not asked for again", Refused("answered 400"), |world| always(world, 2, || Reply::new(400))),
    ("405 is not asked for again", Refused("answered 405"), |world| always(world, 2, || Reply::new(405))),
    ("410 is not asked for again", Refused("answered 410"), |world| always(world, 2, || Reply::new(410))),
    ("501 is not asked for again", Refused("answered 501"), |world| always(world, 2, || Reply::new(501))),
    ("busy when a layer is resumed", Pulled, |world| {
        world.large();
        world.layer(|_, before, reply| match before {
            0 => reply.cut(10),
            1 => Reply::new(503),
            2 => Reply::new(429),
            _ => reply,
        });
    }),
];

/// The registry answers everything so.
fn says(world: &mut World, status: u16, body: &'static str) {
    world.serve(move |_, _| Reply::new(status).body(body));
}

const REFUSALS: &[Scenario] = &[
    ("no such tag", Refused("has no manifest latest of app (manifest unknown)"), |world| {
        says(
            world,
            404,
            r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":null}]}"#,
        );
    }),
    ("no such repository", Refused("(repository name not known)"), |world| {
        says(world, 404, r#"{"errors":[{"code":"NAME_UNKNOWN","message":"repository name not known"}]}"#);
    }),
    ("the spelling is hinted at", Refused("check the spelling of repository and tag"), |world| {
        says(world, 404, "<html>");
    }),
    (
        "not found, but meaning no",
        Refused("does not let anonymous users pull app (requested access"),
        |world| {
            says(world, 404, r#"{"errors":[{"code":"DENIED","message":"requested access is denied"}]}"#);
        },
    ),
    ("not found, but meaning who", Refused("log in first: hpcrun login 127.0.0.1"), |world| {
        says(world, 404, r#"{"errors":[{"code":"unauthorized","message":"auth"}]}"#);
    }),
    ("forbidden", Refused("does not let anonymous users pull app (no)"), |world| {
        says(world, 403, r#"{"errors":[{"code":"DENIED","message":"no"}]}"#);
    }),
    ("unauthorised without a challenge", Refused("does not let anonymous users pull app (who?)"), |world| {
        says(world, 401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"who?"}]}"#);
    }),
    ("escape sequences in a message", Refused("(I [2Jam a teapot)"), |world| {
        says(world, 418, r#"{"errors":[{"code":"TEAPOT","message":"I\u001b[2Jam\na teapot"}]}"#);
    }),
    ("a limit is hinted at", Refused("hpcrun login 127.0.0.1"), |world| {
        world.options.registry.patience.retries = 0;
        says(world, 429, r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"pull rate limit"}]}"#);
    }),
];

const SILENT: &[Scenario] = &[
    ("nobody listens", Refused("pull on a login node"), |world| {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        world.source = format!("docker://{free}/app:latest");
    }),
    ("no such host", Refused("registry.invalid is unknown"), |world| {
        world.source = "docker://registry.invalid/app:latest".into();
    }),
    ("accepts and says nothing", Refused("did not answer in time"), |world| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        world.source = format!("docker://{}/app:latest", listener.local_addr().unwrap());
        world.options.registry.patience.retries = 0;
        world.options.registry.patience.stall = Duration::from_millis(200);
        world.options.registry.patience.connect = Duration::from_millis(200);
        world.after(move || drop(listener));
    }),
    ("a manifest that trickles for ever", Refused("did not answer in time"), |world| {
        world.options.registry.patience.answer = Duration::from_millis(300);
        world.options.registry.patience.retries = 0;
        world.registry(
            |request, _, reply| {
                if request.is_manifest() { reply.drip(Duration::from_millis(20)) } else { reply }
            },
        );
    }),
    ("a proxy that is broken is not named with its password", Refused("registry.invalid"), |world| {
        world.options.registry.proxies.https =
            Some(format!("http://me:{}@127.0.0.1:1", super::scenario::CANARY));
        world.options.registry.patience.retries = 0;
        world.source = "docker://registry.invalid/app:latest".into();
    }),
    ("a SOCKS proxy that refuses is not named with the password", Refused("registry.invalid"), |world| {
        let log = world.registry(|_, _, reply| reply);
        let port = world.source.split([':', '/']).nth(4).unwrap().parse().unwrap();
        let proxy = SocksProxy::start(port, Some(("me", "another")));
        world.options.registry.proxies.https =
            Some(format!("socks5h://me:{}@127.0.0.1:{}", super::scenario::CANARY, proxy.port));
        world.options.registry.patience.retries = 0;
        world.source = "docker://registry.invalid/app:latest".into();
        world.after(move || assert!(log.seen().is_empty() && proxy.seen().is_empty()));
    }),
    ("what is no SOCKS proxy is called so", Refused("does not speak SOCKS 5"), |world| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _ = stream.read(&mut [0; 16]);
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            }
        });
        world.options.registry.proxies.https = Some(format!("socks5h://127.0.0.1:{port}"));
        world.source = "docker://registry.invalid/app:latest".into();
    }),
    ("with socks5 names are resolved here", Refused("registry.invalid"), |world| {
        let proxy = SocksProxy::start(1, None);
        world.options.registry.proxies.https = Some(format!("socks5://127.0.0.1:{}", proxy.port));
        world.options.registry.patience.retries = 0;
        world.source = "docker://registry.invalid/app:latest".into();
        world.after(move || assert!(proxy.seen().is_empty()));
    }),
    ("IPv6 with a port", Pulled, |world| {
        let image = world.image.clone();
        let server = super::scripted::Scripted::start_at("::1", move |request, _| {
            super::scripted::honest(&image, request)
        });
        world.source = format!("docker://[::1]:{}/app:latest", server.address.port());
        world.after(move || {
            assert!(
                server.log.seen().iter().all(|request| request.header("host").unwrap().starts_with("[::1]:"))
            );
        });
    }),
];
