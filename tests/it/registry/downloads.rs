//! Downloads that break off, stall, trickle or are resumed wrongly.

use std::time::Duration;

use super::scenario::Outcome::{Pulled, Refused};
use super::scenario::{Scenario, World, run};
use super::scripted::Reply;

#[test]
fn broken_downloads() {
    run(BROKEN);
}

#[test]
fn resumed_downloads() {
    run(RESUMED);
}

const BROKEN: &[Scenario] = &[
    ("a layer breaks off four times", Pulled, |world| {
        world.large();
        let log = world.layer(|_, before, reply| match before {
            0..=3 => reply.cut([1, 70_000, 500_000, 1_200_000][before]),
            _ => reply,
        });
        world.after(move || {
            let starts: Vec<usize> = log.seen().iter().filter_map(|request| request.range_start()).collect();
            assert_eq!(starts, [1, 70_001, 570_001, 1_770_001]);
        });
    }),
    ("a layer without length breaks off", Pulled, |world| {
        let size = world.large();
        world.layer(move |_, before, reply| {
            let reply = reply.without_length();
            if before == 0 { reply.cut(size / 2) } else { reply }
        });
    }),
    ("the connection is reset in mid-body", Pulled, |world| {
        world.large();
        world.layer(|_, before, reply| if before == 0 { reply.reset(1_000_000) } else { reply });
    }),
    ("the connection is reset again and again", Refused("broke off at byte"), |world| {
        world.large();
        world.layer(|_, _, reply| reply.reset(1));
    }),
    ("silence in mid-body", Pulled, |world| {
        world.large();
        world.options.registry.patience.stall = Duration::from_millis(300);
        world.layer(|_, before, reply| match before {
            0 => reply.stall(100_000, Duration::from_secs(2)),
            _ => reply,
        });
    }),
    ("a trickle for ever", Refused("more than a trickle"), |world| {
        world.options.registry.patience.stall = Duration::from_millis(150);
        world.options.registry.patience.retries = 1;
        world.layer(|_, _, reply| reply.drip(Duration::from_millis(10)));
    }),
    ("no progress at all", Refused("broke off at byte 0 and could not be resumed in 4 tries"), |world| {
        let log = world.layer(|_, _, reply| reply.cut(0));
        world.after(move || assert_eq!(log.count("/blobs/"), 1 + 1 + 4, "config, lower layer, four tries"));
    }),
    ("a blob that is found by redirect breaks off: the registry is asked again", Pulled, |world| {
        world.large();
        let image = world.image.clone();
        let (address, store) = world.stranger(move |request, before| {
            let reply = super::scripted::honest(&image, &request.without_query());
            if before == 0 && request.target.contains("n=0") { reply.cut(1000) } else { reply }
        });
        let log = world.layer(move |request, before, _| {
            Reply::redirect(&format!("http://{address}{}?n={before}", request.target))
        });
        world.after(move || {
            assert_eq!(store.seen().len(), 2);
            assert!(log.seen().iter().any(|request| request.range_start() == Some(1000)));
        });
    }),
    ("the store behind a redirect is down: the registry is asked again", Pulled, |world| {
        let free = std::net::TcpListener::bind("127.0.0.2:0").unwrap().local_addr().unwrap();
        world.layer(move |_, before, reply| match before {
            0 => Reply::redirect(&format!("http://{free}/x")),
            _ => reply,
        });
    }),
];

/// A large layer breaks off after 1000 bytes, and what follows is answered so.
fn resumed(world: &mut World, then: impl Fn(Reply, usize) -> Reply + Send + Sync + 'static) {
    let size = world.large();
    world.layer(move |_, before, reply| if before == 0 { reply.cut(1000) } else { then(reply, size) });
}

/// Resumed wrongly: a lie is not asked for again.
fn lie(world: &mut World, then: impl Fn(Reply, usize) -> Reply + Send + Sync + 'static) {
    let size = world.large();
    let digest = hpcrun::image::digest::Digest::of(&world.image.layers[1].blob);
    let log =
        world.layer(move |_, before, reply| if before == 0 { reply.cut(1000) } else { then(reply, size) });
    world.after(move || assert_eq!(log.count(digest.as_str()), 2));
}

const RESUMED: &[Scenario] = &[
    ("the range of another start", Refused("when asked for byte 1000 on"), |world| {
        lie(world, |reply, size| reply.header("Content-Range", &format!("bytes 0-{}/{size}", size - 1)));
    }),
    ("a range that begins a byte later", Refused("when asked for byte 1000 on"), |world| {
        lie(world, |reply, size| reply.header("Content-Range", &format!("bytes 1001-{}/{size}", size - 1)));
    }),
    ("a range of a larger blob", Refused("when asked for byte"), |world| {
        lie(world, |reply, size| reply.header("Content-Range", &format!("bytes 1000-{size}/{}", size + 1)));
    }),
    ("a range that ends early", Refused("when asked for byte"), |world| {
        lie(world, |reply, size| reply.header("Content-Range", &format!("bytes 1000-2000/{size}")));
    }),
    ("a range without numbers", Refused("when asked for byte"), |world| {
        lie(world, |reply, _| reply.header("Content-Range", "bytes 1000-*/*"));
    }),
    ("a range that is garbage", Refused("when asked for byte"), |world| {
        lie(world, |reply, _| reply.header("Content-Range", "garbage"));
    }),
    ("a part that does not say which", Refused("a part without saying which"), |world| {
        lie(world, |_, _| Reply::new(206).body("x"));
    }),
    ("several parts in one", Refused("a part without saying which"), |world| {
        lie(world, |_, _| {
            Reply::new(206).header("Content-Type", "multipart/byteranges; boundary=b").body("--b")
        });
    }),
    ("416 for a start within the blob", Refused("answered 416"), |world| lie(world, |_, _| Reply::new(416))),
    ("the blob is gone when it is resumed", Refused("has no blob"), |world| {
        lie(world, |_, _| Reply::new(404))
    }),
    ("the right range of other bytes", Refused("should be sha256:"), |world| {
        // Stored blocks in a gzip stream: only the digest tells.
        resumed(world, |reply, size| {
            let mut other = vec![0; size - 1000];
            other[size - 1001] = 1;
            reply.body(other)
        });
    }),
    ("ranges are ignored: begun anew, and what is known passed over", Pulled, |world| {
        world.large();
        let blob = world.image.layers[1].blob.clone();
        world.layer(move |_, before, _| match before {
            0..=2 => Reply::ok(blob.clone()).cut(100_000 * (before + 1)),
            _ => Reply::ok(blob.clone()),
        });
    }),
    ("ranges are ignored and the connection keeps breaking", Refused("it ignores ranges"), |world| {
        world.large();
        world.options.registry.patience.retries = 10;
        let blob = world.image.layers[1].blob.clone();
        world.layer(move |_, before, _| Reply::ok(blob.clone()).cut((1 << 20) + before * 300_000));
    }),
    ("a whole blob sent as a part", Pulled, |world| {
        let size = world.image.layers[1].blob.len();
        let blob = world.image.layers[1].blob.clone();
        world.layer(move |_, _, _| {
            let range = format!("bytes 0-{}/{size}", size - 1);
            Reply::new(206).header("Content-Range", &range).body(blob.clone())
        });
    }),
    ("a part of a blob that was asked for whole", Refused("when asked for byte 0 on"), |world| {
        let blob = world.image.layers[1].blob.clone();
        world.layer(move |_, _, _| {
            Reply::new(206).header("Content-Range", "bytes 5-9/10").body(blob[5..10].to_vec())
        });
    }),
    ("a strong tag is sent back", Pulled, |world| {
        let size = world.large();
        let log = world.layer(move |_, before, reply| {
            let reply = reply.header("ETag", "\"one\"");
            if before == 0 { reply.cut(size / 2) } else { reply }
        });
        world.after(move || {
            let tags: Vec<String> = log
                .seen()
                .iter()
                .filter_map(|request| request.header("if-range").map(str::to_owned))
                .collect();
            assert_eq!(tags, ["\"one\""]);
        });
    }),
    ("a weak tag is not sent back", Pulled, |world| {
        world.large();
        let log = world.layer(|_, before, reply| {
            let reply = reply.header("ETag", "W/\"one\"");
            if before == 0 { reply.cut(1000) } else { reply }
        });
        world.after(move || assert!(log.seen().iter().all(|request| request.header("if-range").is_none())));
    }),
    ("a tag that another store does not know is given up", Pulled, |world| {
        world.large();
        let blob = world.image.layers[1].blob.clone();
        let log = world.layer(move |request, before, reply| {
            let reply = reply.header("ETag", &format!("\"{before}\""));
            match (before, request.header("if-range").is_some()) {
                (0, _) => reply.cut(1000),
                (_, true) => Reply::ok(blob.clone()).header("ETag", "\"x\"").cut(2000),
                (_, false) => reply,
            }
        });
        world.after(move || {
            let tags = log.seen().iter().filter(|request| request.header("if-range").is_some()).count();
            assert_eq!(tags, 1);
        });
    }),
];
