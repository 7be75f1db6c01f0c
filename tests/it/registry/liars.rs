//! Servers that give something else for a layer. It shows only at the layer's end, when half of the image file may be
//! written: the conversion begins anew and asks the next server.

use hpcrun::image::digest::Digest;

use super::mirrors::before;
use super::scenario::Outcome::{Pulled, Refused};
use super::scenario::{Scenario, World, run};
use super::scripted::{Log, Reply, Request, honest};

#[test]
fn mirrors_that_lie() {
    run(LYING);
}

#[test]
fn everybody_lies() {
    run(NOBODY_LEFT);
}

/// Which layer of the sample a lie is about: that on top is read first.
#[derive(Clone, Copy)]
enum Layer {
    Bottom = 0,
    Top = 1,
}

/// A server of the image that answers so when asked for a layer.
fn liar(
    world: &World,
    layer: Layer,
    lie: impl Fn(&Request, Reply, Vec<u8>) -> Reply + Send + Sync + 'static,
) -> impl Fn(&Request, usize) -> Reply + Send + Sync + 'static {
    let image = world.image.clone();
    let blob = image.layers[layer as usize].blob.clone();
    let digest = Digest::of(&blob);
    move |request, _| {
        let reply = honest(&image, request);
        if request.target.ends_with(digest.as_str()) { lie(request, reply, blob.clone()) } else { reply }
    }
}

/// A lying mirror before an honest registry: gives their logs.
fn lying_mirror(
    world: &mut World,
    layer: Layer,
    lie: impl Fn(&Request, Reply, Vec<u8>) -> Reply + Send + Sync + 'static,
) -> (Log, Log) {
    let script = liar(world, layer, lie);
    let registry = world.registry(|_, _, reply| reply);
    let (address, mirror) = world.stranger(script);
    before(world, &[(address, "")]);
    (mirror, registry)
}

/// Bytes of the right number that are not the layer.
fn flipped(mut blob: Vec<u8>, at: usize) -> Vec<u8> {
    blob[at] ^= 1;
    blob
}

/// The mirror was asked once for each blob, then the registry for both layers: one new beginning.
fn once(world: &mut World, (mirror, registry): (Log, Log)) {
    world.after(move || {
        assert_eq!(mirror.count("/blobs/"), 3, "{:?}", mirror.seen());
        assert_eq!(registry.count("/blobs/"), 2, "{:?}", registry.seen());
    });
}

const LYING: &[Scenario] = &[
    ("another byte in the middle", Pulled, |world| {
        world.large();
        let logs = lying_mirror(world, Layer::Top, |_, _, blob| Reply::ok(flipped(blob, 1_000_000)));
        once(world, logs);
    }),
    ("another byte in the head of gzip", Pulled, |world| {
        let logs = lying_mirror(world, Layer::Top, |_, _, blob| Reply::ok(flipped(blob, 4)));
        once(world, logs);
    }),
    ("another last byte, of the layer that is read last", Pulled, |world| {
        let logs = lying_mirror(world, Layer::Bottom, |_, _, blob| {
            let last = blob.len() - 1;
            Reply::ok(flipped(blob, last))
        });
        once(world, logs);
    }),
    ("zeros", Pulled, |world| {
        let logs = lying_mirror(world, Layer::Top, |_, _, blob| Reply::ok(vec![0; blob.len()]));
        once(world, logs);
    }),
    ("a page of the right length", Pulled, |world| {
        let logs = lying_mirror(world, Layer::Top, |_, _, blob| {
            let page = b"<html><body>log in</body></html>".iter().copied().cycle().take(blob.len());
            Reply::ok(page.collect::<Vec<u8>>()).header("Content-Type", "text/html")
        });
        once(world, logs);
    }),
    ("the other layer in its place", Pulled, |world| {
        let other = world.image.layers[0].blob.clone();
        lying_mirror(world, Layer::Top, move |_, _, _| Reply::ok(other.clone()));
    }),
    ("what no layer is compressed with", Pulled, |world| {
        lying_mirror(world, Layer::Top, |_, _, mut blob| {
            blob[..6].copy_from_slice(b"\xfd7zXZ\0");
            Reply::ok(blob)
        });
    }),
    ("a page without a length", Pulled, |world| {
        world.large();
        let (_, registry) = lying_mirror(world, Layer::Top, |request, _, _| {
            let page = "<html><body>log in</body></html>";
            match request.range_start() {
                None => Reply::ok(page).header("Content-Type", "text/html").chunked(10),
                Some(_) => Reply::new(404),
            }
        });
        world.after(move || {
            // First for what the page lacks of the layer, then for all of it.
            let starts: Vec<_> = registry.seen().iter().filter_map(Request::range_start).collect();
            assert_eq!(starts, [32]);
        });
    }),
    ("a layer and more, without a length", Pulled, |world| {
        let (_, registry) = lying_mirror(world, Layer::Top, |_, _, blob| {
            Reply::ok([blob, b"and more".to_vec()].concat()).without_length()
        });
        world.after(move || assert!(registry.seen().is_empty(), "its digest is right"));
    }),
    ("a layer that always ends early", Pulled, |world| {
        world.large();
        lying_mirror(world, Layer::Top, |_, reply, _| reply.without_length().cut(1000));
    }),
    ("redirects without end for a layer", Pulled, |world| {
        lying_mirror(world, Layer::Top, |request, _, _| Reply::redirect(&request.target));
    }),
    ("the first mirror lies, the second is honest", Pulled, |world| {
        let registry = world.registry(|_, _, reply| reply);
        let first = liar(world, Layer::Top, |_, _, blob| Reply::ok(flipped(blob, 4)));
        let second = liar(world, Layer::Top, |_, reply, _| reply);
        let ((first, _), (second, _)) = (world.stranger(first), world.stranger(second));
        before(world, &[(first, ""), (second, "")]);
        world.after(move || assert!(registry.seen().is_empty()));
    }),
    ("two mirrors lie, each about another layer", Pulled, |world| {
        world.registry(|_, _, reply| reply);
        let first = liar(world, Layer::Top, |_, _, blob| Reply::ok(flipped(blob, 4)));
        let second = liar(world, Layer::Bottom, |_, _, blob| Reply::ok(flipped(blob, 4)));
        let ((first, one), (second, other)) = (world.stranger(first), world.stranger(second));
        before(world, &[(first, ""), (second, "")]);
        // The bottom layer is fetched ahead of its turn in both tries.
        world.after(move || assert!(one.count("/blobs/") <= 3 && other.count("/blobs/") <= 2));
    }),
];

const NOBODY_LEFT: &[Scenario] = &[
    ("the registry alone", Refused("the digest should be sha256:"), |world| {
        let script = liar(world, Layer::Top, |_, _, blob| Reply::ok(flipped(blob, 4)));
        let log = world.serve(script);
        world.after(move || assert_eq!(log.count("/blobs/"), 3, "no second try"));
    }),
    ("a mirror and the registry: both are named", Refused("neither a mirror (127.0.0.2:"), |world| {
        let [mirror, registry] = [5, 6].map(|at| {
            let script = liar(world, Layer::Top, move |_, _, blob| Reply::ok(flipped(blob, at)));
            move |request: &Request, before: usize| script(request, before)
        });
        let registry = world.serve(registry);
        let (address, mirror) = world.stranger(mirror);
        before(world, &[(address, "")]);
        world.after(move || {
            assert_eq!(mirror.count("/blobs/"), 3);
            assert_eq!(registry.count("/blobs/"), 2);
        });
    }),
    ("a mirror lies and the registry lacks it", Refused("should be sha256:"), |world| {
        let mirror = liar(world, Layer::Top, |_, _, blob| Reply::ok(flipped(blob, 4)));
        let registry = liar(world, Layer::Top, |_, _, _| Reply::new(404));
        world.serve(registry);
        let (address, _) = world.stranger(mirror);
        before(world, &[(address, "")]);
    }),
    (
        "a mirror is down and the registry lies",
        Refused("answered 500 when asked for manifest latest of app) nor the registry gives it: 127.0.0.1:"),
        |world| {
            let registry = liar(world, Layer::Top, |_, _, blob| Reply::ok(flipped(blob, 4)));
            world.serve(registry);
            let (address, _) = world.stranger(|_, _| Reply::new(500));
            before(world, &[(address, "")]);
        },
    ),
];
