//! Registries: Debian's docker-registry in its ways of access, and scripted ones that misbehave.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "what a test cannot get fails it"
)]

pub(crate) mod scripted;

use std::ffi::OsStr;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hpcrun::convert::source::registry::{AuthFile, Login, Patience, PlainHttp};
use hpcrun::convert::source::{self, Source, SourceError, SourceOptions};
use hpcrun::hint::Hint;
use hpcrun::image::digest::Digest;
use hpcrun::image::platform::Platform;
use hpcrun::image::reference::SourceReference;
use serde_json::json;

use crate::sources::layout::{
    Image, Layout, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Packing, descriptor, for_platform, index, layer_tar,
};
use crate::sources::{chain, layer_tars};
use crate::support;
use scripted::{Reply, Request, Scripted, honest};

/// A secret that must turn up nowhere but where it belongs.
const CANARY: &str = "c4n4ry-s3cret";

/// User "me" with the canary as its password, by `htpasswd -nbB`; the registry takes bcrypt only.
const HTPASSWD: &str = "me:$2y$05$DdX.z5tTn8OlsyamBTJbzOn1isfxOpRT7PfHhVzReG0X6ruYPzpCS\n";

/// Impatient options for amd64.
fn options() -> SourceOptions {
    let mut options =
        SourceOptions { platform: Platform::parse("amd64").unwrap(), ..SourceOptions::default() };
    options.registry.patience = Patience {
        connect: Duration::from_secs(5),
        stall: Duration::from_millis(400),
        answer: Duration::from_secs(5),
        retries: 3,
        first_delay: Duration::from_millis(5),
        longest_delay: Duration::from_millis(50),
    };
    options.registry.certificate_directories.clear();
    options
}

fn with_login(mut options: SourceOptions) -> SourceOptions {
    options.registry.login = Some(Login::Password { user: "me".into(), password: CANARY.into() });
    options
}

fn open(text: &str, options: &SourceOptions) -> Result<Box<dyn Source>, SourceError> {
    let reference = SourceReference::parse(OsStr::new(text), &Path::exists).unwrap();
    source::open(&reference, options)
}

/// Pulls all of `text` and holds it against `image`.
#[track_caller]
fn check(text: &str, options: &SourceOptions, image: &Image) -> Box<dyn Source> {
    let source = open(text, options).unwrap_or_else(|error| panic!("{text}: {}", chain(&error)));
    let expected: Vec<&[u8]> = image.layers.iter().map(|layer| layer.tar.as_slice()).collect();
    assert_eq!(layer_tars(&*source), expected, "{text}");
    source
}

/// The error of opening `text`, which has `part`, names the source and tells no secret.
#[track_caller]
fn check_refused(text: &str, options: &SourceOptions, part: &str) -> SourceError {
    match open(text, options) {
        Ok(source) => panic!("{text} opened: {:?}", source.image().origin),
        Err(error) => {
            check_error(&error, text, part);
            error
        }
    }
}

#[track_caller]
fn check_error(error: &SourceError, text: &str, part: &str) {
    let shown = chain(error);
    assert!(shown.contains(part), "{text}\n  gives {shown}\n  not   {part}");
    assert!(shown.contains(text), "{shown} names {text}");
    let everything = format!("{shown} {error:?} {:?}", error.hints());
    assert!(!everything.contains(CANARY), "{everything}");
}

/// The error of reading a layer to its end.
#[track_caller]
fn check_layer_refused(source: &dyn Source, index: usize, part: &str) {
    let result = match source.open_layer(index) {
        Ok(mut layer) => layer.read_to_end(&mut Vec::new()).map_err(|error| chain(&error)),
        Err(error) => Err(chain(&error)),
    };
    let shown = result.expect_err(part);
    assert!(shown.contains(part), "{shown}\n  not {part}");
    assert!(!shown.contains(CANARY), "{shown}");
}

/// An image whose second layer is worth resuming.
fn large_image() -> Image {
    let mut random = support::Random::new(7);
    let noise: Vec<u8> = (0..3 << 20).map(|_| random.next() as u8).collect();
    Image::new("amd64", &[layer_tar("small", b"1"), layer_tar("large", &noise)], Packing::Gzip)
}

fn is_layer(request: &Request, image: &Image, index: usize) -> bool {
    request.target.ends_with(Digest::of(&image.layers[index].blob).as_str())
}

// ---- a real registry -------------------------------------------------------------------------------------------

/// Debian's docker-registry; killed on drop.
struct Real {
    child: Child,
    port: u16,
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Real {
    /// Starts one that keeps its data in `directory`; `extra` is appended to the `http:` section or below.
    fn start(directory: &Path, extra: &str) -> Real {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = directory.join("registry.yml");
        let data = directory.join("data");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: 127.0.0.1:{port}\n{extra}",
            data.display()
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry; does 'make test' install it?");
        let real = Real { child, port };
        let begin = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begin.elapsed() < Duration::from_secs(20), "docker-registry does not come up");
            std::thread::sleep(Duration::from_millis(20));
        }
        real
    }

    fn name(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

fn skopeo(args: &[&str]) -> String {
    support::stdout(Command::new("skopeo").args(args))
}

#[test]
fn a_plain_registry_pushed_by_skopeo() {
    let scratch = support::scratch();
    let real = Real::start(scratch.path(), "");
    let image = large_image();
    let layout = Layout::of(&scratch.path().join("layout"), &image);
    let from = format!("oci:{}:v1", layout.0.display());
    let base = format!("docker://{}/team/app", real.name());
    skopeo(&["copy", "-q", "--dest-tls-verify=false", &from, &format!("{base}:oci")]);
    skopeo(&["copy", "-q", "--dest-tls-verify=false", "--format", "v2s2", &from, &format!("{base}:docker")]);
    for tag in ["oci", "docker"] {
        let text = format!("{base}:{tag}");
        let source = check(&text, &options(), &image);
        assert_eq!(source.image().origin, text);
        let raw = skopeo(&["inspect", "--raw", "--tls-verify=false", &text]);
        assert_eq!(raw.as_bytes(), source.image().manifest);
        let digest = &source.image().manifest_digest;
        check(&format!("{base}@{digest}"), &options(), &image);
        check(&format!("{base}:nonsense@{digest}"), &options(), &image);
    }
    let error = check_refused(&format!("{base}:absent"), &options(), "has no manifest absent of team/app");
    assert!(error.hints().join("").contains("spelling"));
    let zeros = format!("{base}@sha256:{}", "0".repeat(64));
    check_refused(&zeros, &options(), "has no manifest sha256:000");
    check_refused(&format!("docker://{}/other:x", real.name()), &options(), "has no manifest x of other");

    // Several platforms, all pushed; an index of an index.
    let arm = Image::new("arm64", &[layer_tar("arm", b"2")], Packing::Gzip);
    let inner = index(&[
        for_platform(&image.manifest, OCI_MANIFEST, "amd64"),
        for_platform(&arm.manifest, OCI_MANIFEST, "arm64"),
    ]);
    let multi = Layout::new(&scratch.path().join("multi"), &[descriptor(&inner, OCI_INDEX)])
        .with(&image)
        .with(&arm)
        .with_blob(&inner);
    let from = format!("oci:{}", multi.0.display());
    let to = format!("{base}:multi");
    skopeo(&["copy", "-q", "--all", "--dest-tls-verify=false", &from, &to]);
    check(&to, &options(), &image);
    let for_arm = SourceOptions { platform: Platform::parse("linux/arm64").unwrap(), ..options() };
    check(&to, &for_arm, &arm);
    let other = SourceOptions { platform: Platform::parse("s390x").unwrap(), ..options() };
    let error = check_refused(&to, &other, "nothing for linux/s390x");
    assert!(error.hints().join("").contains("linux/amd64, linux/arm64"));
}

/// A certificate authority and a certificate of 127.0.0.1.
fn make_certificates(directory: &Path) {
    let script = r#"
        openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=hpcrun-test-ca
        openssl req -newkey rsa:2048 -nodes -keyout key.pem -out request.pem -subj /CN=127.0.0.1
        printf 'subjectAltName=IP:127.0.0.1\n' > extensions
        openssl x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out cert.pem
    "#;
    let output = Command::new("sh").args(["-ec", script]).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{}", support::text(&output.stderr));
}

#[test]
fn a_registry_with_tls_and_a_password() {
    let scratch = support::scratch();
    let at = |name: &str| scratch.path().join(name);
    make_certificates(scratch.path());
    std::fs::write(at("htpasswd"), HTPASSWD).unwrap();
    let real = Real::start(
        scratch.path(),
        &format!(
            "  tls: {{certificate: {}, key: {}}}\nauth: {{htpasswd: {{realm: test, path: {}}}}}\n",
            at("cert.pem").display(),
            at("key.pem").display(),
            at("htpasswd").display()
        ),
    );
    let image = large_image();
    let layout = Layout::of(&at("layout"), &image);
    let from = format!("oci:{}:v1", layout.0.display());
    let text = format!("docker://{}/app:1", real.name());
    let creds = format!("me:{CANARY}");
    skopeo(&["copy", "-q", "--dest-tls-verify=false", "--dest-creds", &creds, &from, &text]);

    let error =
        check_refused(&text, &with_login(options()), &format!("cannot trust 127.0.0.1:{}", real.port));
    assert!(error.hints().join("").contains("SSL_CERT_FILE"), "{:?}", error.hints());

    let mut trusting = options();
    trusting.registry.ca_file = Some(at("ca.pem"));
    let error = check_refused(&text, &trusting, "does not let anonymous users pull app");
    assert!(error.hints().join("").contains("podman login"));
    check(&text, &with_login(trusting.clone()), &image);
    let mut wrong = trusting.clone();
    wrong.registry.login = Some(Login::Password { user: "me".into(), password: "wrong".into() });
    check_refused(&text, &wrong, "does not let you pull app");

    // The file that skopeo itself writes.
    let file = at("auth.json");
    let server = real.name();
    let args = [
        "login",
        "--tls-verify=false",
        "-u",
        "me",
        "-p",
        CANARY,
        "--authfile",
        file.to_str().unwrap(),
        &server,
    ];
    skopeo(&args);
    let mut by_file = trusting.clone();
    by_file.registry.auth_files =
        vec![AuthFile { path: file.clone(), contents: std::fs::read(&file).unwrap() }];
    check(&text, &by_file, &image);

    // A site's authority for this registry alone.
    let own = at("certs.d").join(real.name());
    std::fs::create_dir_all(&own).unwrap();
    std::fs::copy(at("ca.pem"), own.join("ca.crt")).unwrap();
    let mut by_directory = with_login(options());
    by_directory.registry.certificate_directories = vec![at("certs.d")];
    check(&text, &by_directory, &image);

    // A certificate for another name.
    let error = check_refused(
        &text.replace("127.0.0.1", "localhost"),
        &with_login(trusting),
        "cannot trust localhost",
    );
    assert!(matches!(error, SourceError::Registry { .. }));
}

/// `openssl s_server -HTTP` sends files as whole answers: enough to lead from https to http.
#[test]
fn https_never_leads_to_http() {
    let scratch = support::scratch();
    make_certificates(scratch.path());
    let target = Scripted::start(|_, _| Reply::ok("not to be asked"));
    let answer =
        |location: &str| format!("HTTP/1.1 307 Away\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
    let manifests = scratch.path().join("v2/app/manifests");
    std::fs::create_dir_all(&manifests).unwrap();
    std::fs::write(manifests.join("latest"), answer(&format!("http://{}/x", target.address))).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut server = Command::new("openssl")
        .args(["s_server", "-quiet", "-HTTP", "-cert", "cert.pem", "-key", "key.pem", "-accept"])
        .arg(format!("127.0.0.1:{port}"))
        .current_dir(scratch.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(begin.elapsed() < Duration::from_secs(10), "openssl does not come up");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut trusting = with_login(options());
    trusting.registry.ca_file = Some(scratch.path().join("ca.pem"));
    let result = std::panic::catch_unwind(|| {
        check_refused(
            &format!("docker://127.0.0.1:{port}/app:latest"),
            &trusting,
            "from https to the unencrypted",
        );
    });
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(result.is_ok());
    assert!(target.seen().is_empty());
}

// ---- scripted registries ---------------------------------------------------------------------------------------

#[test]
fn a_good_registry() {
    let image = Image::sample();
    let server = Scripted::of(image.clone(), |_, _, reply| reply);
    let source = check(&server.source(), &options(), &image);
    assert_eq!(source.image().manifest_digest, Digest::of(&image.manifest));
    let seen = server.seen();
    let accept = seen[0].header("accept").unwrap();
    for media_type in ["image.index.v1", "manifest.list.v2", "image.manifest.v1", "distribution.manifest.v2"]
    {
        assert!(accept.contains(media_type), "{accept}");
    }
    assert!(seen.iter().all(|request| request.header("authorization").is_none()));
    assert!(seen[0].header("user-agent").unwrap().starts_with("hpcrun/"));
    assert!(seen.iter().all(|request| request.header("accept-encoding").is_none()), "the bytes as they are");
    assert_eq!(server.count("/manifests/"), 1);
}

#[test]
fn wrong_digests_and_sizes() {
    let image = Image::sample();
    let text = |server: &Scripted| server.source();

    let server = Scripted::of(image.clone(), |request, _, reply| {
        if request.is_manifest() {
            reply.header("Docker-Content-Digest", Digest::of(b"").as_str())
        } else {
            reply
        }
    });
    check_refused(&text(&server), &options(), "the manifest of docker://");

    let zeros = format!("@sha256:{}", "0".repeat(64));
    let server = Scripted::of(image.clone(), |_, _, reply| reply);
    let named = text(&server).replace(":latest", &zeros);
    check_refused(&named, &options(), "the manifest of docker://");

    let config = Digest::of(&image.config);
    for (number, change) in [
        (|body: &mut Vec<u8>| body[0] = b' ') as fn(&mut Vec<u8>),
        |body| body.push(b' '),
        |body| body.truncate(body.len() - 1),
        |body| body.clear(),
    ]
    .into_iter()
    .enumerate()
    {
        let (config, bytes) = (config.clone(), image.config.clone());
        let server = Scripted::of(image.clone(), move |request, _, reply| {
            if !request.target.ends_with(config.as_str()) {
                return reply;
            }
            let mut body = bytes.clone();
            change(&mut body);
            Reply::ok(body)
        });
        let part = if number == 0 { "the image config of docker://" } else { "as the manifest says" };
        check_refused(&text(&server), &options(), part);
    }
    // A longer blob that does not state its length.
    let (copy, longer) = (image.clone(), [image.layers[1].blob.clone(), vec![0; 10]].concat());
    let server = Scripted::of(image.clone(), move |request, _, reply| {
        if is_layer(request, &copy, 1) { Reply::ok(longer.clone()).without_length() } else { reply }
    });
    let source = open(&text(&server), &options()).unwrap();
    check_layer_refused(&*source, 1, "as the manifest says");
    // One that lies about its length and then sends the truth.
    let copy = image.clone();
    let server = Scripted::of(image.clone(), move |request, _, reply| {
        if is_layer(request, &copy, 1) { reply.header("Content-Length", "99999999") } else { reply }
    });
    check_layer_refused(&*open(&text(&server), &options()).unwrap(), 1, "99999999 bytes long");
}

#[test]
fn broken_downloads_are_resumed() {
    let image = large_image();
    let size = image.layers[1].blob.len();
    // Breaks off four times, after a different length each time.
    let copy = image.clone();
    let server = Scripted::of(image.clone(), move |request, before, reply| match before {
        0..=3 if is_layer(request, &copy, 1) => reply.cut([1, 70_000, 500_000, 1_200_000][before]),
        _ => reply,
    });
    check(&server.source(), &options(), &image);
    let digest = Digest::of(&image.layers[1].blob);
    let requests: Vec<Request> =
        server.seen().into_iter().filter(|request| request.target.ends_with(digest.as_str())).collect();
    let starts: Vec<Option<usize>> = requests.iter().map(Request::range_start).collect();
    assert_eq!(starts, [None, Some(1), Some(70_001), Some(570_001), Some(1_770_001)]);

    // Without lengths, so that only the manifest tells that something is missing.
    let copy = image.clone();
    let server = Scripted::of(image.clone(), move |request, before, reply| {
        let reply = if is_layer(request, &copy, 1) { reply.without_length() } else { reply };
        if is_layer(request, &copy, 1) && before == 0 { reply.cut(size / 2) } else { reply }
    });
    check(&server.source(), &options(), &image);

    // Silence in the middle.
    let copy = image.clone();
    let server = Scripted::of(image.clone(), move |request, before, reply| {
        let first = is_layer(request, &copy, 1) && before == 0;
        if first { reply.stall(100_000, Duration::from_secs(3)) } else { reply }
    });
    let begin = Instant::now();
    check(&server.source(), &options(), &image);
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());

    // A trickle for ever.
    let copy = image.clone();
    let server = Scripted::of(image.clone(), move |request, _, reply| {
        if is_layer(request, &copy, 1) { reply.drip(Duration::from_millis(20)) } else { reply }
    });
    let source = open(&server.source(), &options()).unwrap();
    check_layer_refused(&*source, 1, "broke off at byte");

    // No progress at all.
    let copy = image.clone();
    let server = Scripted::of(
        image.clone(),
        move |request, _, reply| {
            if is_layer(request, &copy, 1) { reply.cut(0) } else { reply }
        },
    );
    let source = open(&server.source(), &options()).unwrap();
    check_layer_refused(&*source, 1, "broke off at byte 0 and could not be resumed in 4 tries");
    assert_eq!(server.count(digest.as_str()), 4);
}

#[test]
fn ranges_are_checked() {
    let image = large_image();
    let size = image.layers[1].blob.len();
    let digest = Digest::of(&image.layers[1].blob);
    let cut_then = |then: fn(Reply, usize) -> Reply| {
        let copy = image.clone();
        Scripted::of(image.clone(), move |request, before, reply| match before {
            _ if !is_layer(request, &copy, 1) => reply,
            0 => reply.cut(1000),
            _ => then(reply, size),
        })
    };
    for (then, part) in [
        (
            (|reply, size| reply.header("Content-Range", &format!("bytes 0-{}/{size}", size - 1)))
                as fn(Reply, usize) -> Reply,
            "when asked for byte 1000 on",
        ),
        (
            |reply, size| reply.header("Content-Range", &format!("bytes 1001-{}/{size}", size - 1)),
            "when asked for byte",
        ),
        (
            |reply, size| reply.header("Content-Range", &format!("bytes 1000-{}/{}", size, size + 1)),
            "when asked for byte",
        ),
        (
            |reply, size| reply.header("Content-Range", &format!("bytes 1000-2000/{size}")),
            "when asked for byte",
        ),
        (|reply, _| reply.header("Content-Range", "bytes 1000-*/*"), "when asked for byte"),
        (|reply, _| reply.header("Content-Range", "garbage"), "when asked for byte"),
        (|_, _| Reply::new(206).body("x"), "a part without saying which"),
        (|_, _| Reply::new(416), "answered 416"),
        (|_, _| Reply::new(404), "has no blob"),
    ] {
        let server = cut_then(then);
        let source = open(&server.source(), &options()).unwrap();
        check_layer_refused(&*source, 1, part);
        assert_eq!(server.count(digest.as_str()), 2, "{part}: a lie is not asked for again");
    }

    // Ranges ignored: begun anew and what is known passed over, three times and no more.
    let copy = image.clone();
    let server = Scripted::of(image.clone(), move |request, before, reply| match before {
        _ if !is_layer(request, &copy, 1) => reply,
        0..=2 => Reply::ok(copy.layers[1].blob.clone()).cut(100_000 * (before + 1)),
        _ => Reply::ok(copy.layers[1].blob.clone()),
    });
    check(&server.source(), &options(), &image);
    let copy = image.clone();
    let server = Scripted::of(image.clone(), move |request, before, reply| {
        let cut = (1 << 20) + before * 300_000;
        if is_layer(request, &copy, 1) { Reply::ok(copy.layers[1].blob.clone()).cut(cut) } else { reply }
    });
    let mut patient = options();
    patient.registry.patience.retries = 10;
    let source = open(&server.source(), &patient).unwrap();
    check_layer_refused(&*source, 1, "it ignores ranges");
}

#[test]
fn redirects() {
    let image = Image::sample();
    // The store of the blobs is another host as far as logins go: another port.
    let copy = image.clone();
    let store = Scripted::start(move |request, _| {
        assert!(request.target.contains("signature"), "{}", request.target);
        honest(
            &copy,
            &Request { target: request.target.split('?').next().unwrap().to_owned(), ..request.clone() },
        )
    });
    let address = store.address;
    let registry = Scripted::of(image.clone(), move |request, _, reply| {
        if request.header("authorization").is_none() {
            return Reply::new(401).header("WWW-Authenticate", "Basic realm=\"x\"");
        }
        match request.target.contains("/blobs/") {
            true => Reply::redirect(&format!("http://{address}/store{}?signature={CANARY}", request.target)),
            false => reply,
        }
    });
    check(&registry.source(), &with_login(options()), &image);
    assert!(!store.seen().is_empty());
    for request in store.seen() {
        assert_eq!(request.header("authorization"), None, "a login went to another host");
    }
    // A resumed download goes to the registry again: the signature may have run out.
    assert_eq!(registry.count("/blobs/"), store.count("/store/"));

    // A store that asks for a login gets none.
    let store = Scripted::start(|_, _| Reply::new(401).header("WWW-Authenticate", "Basic realm=\"phish\""));
    let address = store.address;
    let registry = Scripted::of(image.clone(), move |request, _, reply| {
        if request.target.contains("/blobs/") {
            Reply::redirect(&format!("http://{address}/x?s={CANARY}"))
        } else {
            reply
        }
    });
    check_refused(&registry.source(), &with_login(options()), "answered 401 when asked for blob");
    assert!(store.seen().iter().all(|request| request.header("authorization").is_none()));

    // There and back again: the login stays away.
    let home = std::sync::Arc::new(std::sync::OnceLock::<std::net::SocketAddr>::new());
    let known = std::sync::Arc::clone(&home);
    let away = Scripted::start(move |_, _| {
        let home = known.get().unwrap();
        Reply::redirect(&format!("http://{home}/back"))
    });
    let address = away.address;
    let registry = Scripted::of(image.clone(), move |request, _, reply| match request.target.as_str() {
        "/back" => Reply::new(403),
        _ if request.header("authorization").is_none() => {
            Reply::new(401).header("WWW-Authenticate", "Basic realm=\"x\"")
        }
        target if target.contains("/blobs/") => Reply::redirect(&format!("http://{address}/")),
        _ => reply,
    });
    home.set(registry.address).unwrap();
    check_refused(&registry.source(), &with_login(options()), "does not let you pull");
    let back: Vec<Request> =
        registry.seen().into_iter().filter(|request| request.target == "/back").collect();
    assert!(!back.is_empty() && back.iter().all(|request| request.header("authorization").is_none()));

    // Relative locations.
    let copy = image.clone();
    let registry = Scripted::start(move |request, _| match request.target.as_str() {
        target if target.starts_with("/v2/app/blobs/moved/") || request.is_manifest() => {
            honest(&copy, request)
        }
        target => Reply::redirect(&format!("moved/{}", target.rsplit('/').next().unwrap())),
    });
    check(&registry.source(), &options(), &image);

    for (location, part) in [
        ("/v2/app/manifests/latest", "redirects more than 10 times"),
        ("http://registry.invalid/v2/", "to the unencrypted http://registry.invalid/v2/"),
        ("ftp://127.0.0.1/", "to a malformed address"),
        ("http://user:pw@127.0.0.1/", "to a malformed address"),
        ("http://127.0.0.1:0x50/", "to a malformed address"),
    ] {
        let server = Scripted::start(move |_, _| Reply::redirect(location));
        check_refused(&server.source(), &options(), part);
        assert!(server.seen().len() <= 11, "{location}");
    }
    let server = Scripted::start(|_, _| Reply::new(302));
    check_refused(&server.source(), &options(), "redirects without saying where");
}

#[test]
fn busy_registries() {
    let image = Image::sample();
    for status in [408, 429, 500, 502, 503, 504] {
        let server = Scripted::of(image.clone(), move |_, before, reply| {
            if before < 2 { Reply::new(status).header("Retry-After", "0") } else { reply }
        });
        check(&server.source(), &options(), &image);
        let server = Scripted::start(move |_, _| {
            Reply::new(status).body(r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#)
        });
        let part = if status == 429 {
            "still does after 4 tries (slow down)"
        } else {
            "when asked for manifest latest of app (slow down)"
        };
        check_refused(&server.source(), &options(), part);
        assert_eq!(server.seen().len(), 4, "{status}");
    }
    // Retry-After is obeyed, and bounded.
    let server = Scripted::of(image.clone(), |_, before, reply| {
        if before == 0 { Reply::new(429).header("Retry-After", "315360000") } else { reply }
    });
    let begin = Instant::now();
    check(&server.source(), &options(), &image);
    let taken = begin.elapsed();
    assert!(taken > Duration::from_millis(150) && taken < Duration::from_secs(5), "{taken:?}");
    // What does not get better is not asked for again.
    for status in [400, 403, 404, 405, 410, 501] {
        let server = Scripted::start(move |_, _| Reply::new(status));
        assert!(open(&server.source(), &options()).is_err());
        assert_eq!(server.seen().len(), 1, "{status}");
    }
    // A layer whose server is busy when it is resumed.
    let (image, copy) = (large_image(), large_image());
    let server = Scripted::of(image.clone(), move |request, before, reply| match before {
        _ if !is_layer(request, &copy, 1) => reply,
        0 => reply.cut(10),
        1 | 2 => Reply::new(503),
        _ => reply,
    });
    check(&server.source(), &options(), &image);
}

#[test]
fn manifests_that_are_none() {
    let image = Image::sample();
    let manifest = |body: Vec<u8>, media_type: &'static str| {
        Scripted::of(image.clone(), move |request, _, reply| {
            if request.is_manifest() {
                Reply::ok(body.clone()).header("Content-Type", media_type)
            } else {
                reply
            }
        })
    };
    let both =
        json!({"schemaVersion": 2, "manifests": [], "layers": [], "config": descriptor(b"", OCI_CONFIG)});
    for (body, media_type, part) in [
        (vec![b' '; (4 << 20) + 1], OCI_MANIFEST, "more than 4194304 bytes"),
        (both.to_string().into_bytes(), OCI_MANIFEST, "ambiguous"),
        (image.manifest.clone(), OCI_INDEX, "is declared as"),
        (index(&[]), OCI_MANIFEST, "is declared as"),
        (
            br#"{"schemaVersion":1,"fsLayers":[]}"#.to_vec(),
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            "schema 1",
        ),
        (b"<html>login</html>".to_vec(), "text/html", "not a JSON object"),
        (b"".to_vec(), OCI_MANIFEST, "not a JSON object"),
    ] {
        check_refused(&manifest(body, media_type).source(), &options(), part);
    }
    check(&manifest(image.manifest.clone(), "application/json; charset=utf-8").source(), &options(), &image);
    // Without a stated length, and without an end.
    let server = Scripted::start(|_, _| Reply::ok(vec![b' '; 6 << 20]).without_length());
    check_refused(&server.source(), &options(), "more than 4194304 bytes");
    // A cut manifest is asked for again.
    let server =
        Scripted::of(image.clone(), |_, before, reply| if before == 0 { reply.cut(10) } else { reply });
    check(&server.source(), &options(), &image);
    // An error page without end does no harm.
    let server = Scripted::start(|_, _| Reply::new(404).body(vec![b'x'; 6 << 20]).without_length());
    check_refused(&server.source(), &options(), "has no manifest latest of app");
    // A tag that moves between index and manifest is held to the index.
    let moved = index(&[for_platform(&image.manifest, OCI_MANIFEST, "amd64")]);
    let server = Scripted::start(move |request, _| match request.target.ends_with("latest") {
        true => Reply::ok(moved.clone()).header("Content-Type", OCI_INDEX),
        false => Reply::ok(r#"{"schemaVersion":2}"#),
    });
    check_refused(&server.source(), &options(), "the manifest of docker://");
}

/// A registry of `image` that wants `token`, which its own `/token` gives out.
fn with_tokens(image: Image, challenge: fn(&str) -> Reply, token: fn(&Request) -> Reply) -> Scripted {
    Scripted::start(move |request, _| {
        if request.target.starts_with("/token") {
            return token(request);
        }
        match request.header("authorization") {
            Some("Bearer t0ken") => honest(&image, request),
            _ => challenge(request.header("host").unwrap()),
        }
    })
}

fn bearer(host: &str) -> Reply {
    Reply::new(401).header(
        "WWW-Authenticate",
        &format!("Bearer realm=\"http://{host}/token\",service=\"the registry\",scope=\"x\""),
    )
}

fn good_token(_: &Request) -> Reply {
    Reply::ok(r#"{"token":"t0ken","expires_in":300}"#)
}

#[test]
fn tokens() {
    let image = Image::sample();
    let server = with_tokens(image.clone(), bearer, good_token);
    check(&server.source(), &options(), &image);
    let seen = server.seen();
    let asked: Vec<&Request> = seen.iter().filter(|request| request.target.starts_with("/token")).collect();
    assert_eq!(asked.len(), 1, "one token for the whole pull");
    assert_eq!(asked[0].target, "/token?service=the%20registry&scope=repository%3Aapp%3Apull");
    assert_eq!(asked[0].header("authorization"), None);

    // With a password, and several challenges in all arrangements.
    let basic = "Basic realm=\"other\"";
    for challenge in [
        bearer,
        (|host| bearer(host).and_header("WWW-Authenticate", "Negotiate")) as fn(&str) -> Reply,
        |host: &str| {
            Reply::new(401)
                .header("WWW-Authenticate", "Negotiate")
                .and_header("WWW-Authenticate", &format!("bEARER service=s, realm=\"http://{host}/token\""))
        },
        |host: &str| {
            Reply::new(401).header(
                "WWW-Authenticate",
                &format!("Basic realm=\"b\", Bearer realm=\"http://{host}/token\",service=\"s\""),
            )
        },
        |host: &str| bearer(host).and_header("WWW-Authenticate", "Basic realm=\"b\""),
        |host: &str| {
            Reply::new(401)
                .header("WWW-Authenticate", "Basic realm=\"b\"")
                .and_header("WWW-Authenticate", &format!("Bearer realm=\"http://{host}/token\""))
        },
    ] {
        let server = with_tokens(image.clone(), challenge, |request| {
            match request.header("authorization") == Some("Basic bWU6YzRuNHJ5LXMzY3JldA==") {
                true => Reply::ok(r#"{"access_token":"t0ken"}"#),
                false => Reply::new(401),
            }
        });
        check(&server.source(), &with_login(options()), &image);
        for request in server.seen().iter().filter(|request| !request.target.starts_with("/token")) {
            let sent = request.header("authorization").unwrap_or_default();
            assert!(!sent.starts_with(basic) && !sent.starts_with("Basic"), "a token does: {sent}");
        }
    }

    // An identity token is exchanged in a POST.
    let server = with_tokens(image.clone(), bearer, |request| {
        let right = request.method == "POST"
            && request.body.contains("grant_type=refresh_token")
            && request.body.contains(&format!("refresh_token={CANARY}"))
            && request.body.contains("scope=repository%3Aapp%3Apull")
            && request.header("authorization").is_none();
        if right { Reply::ok(r#"{"access_token":"t0ken"}"#) } else { Reply::new(400) }
    });
    let mut by_identity = options();
    by_identity.registry.login = Some(Login::IdentityToken(CANARY.into()));
    check(&server.source(), &by_identity, &image);
    let server = with_tokens(image.clone(), bearer, |_| Reply::redirect("/token/elsewhere"));
    check_refused(&server.source(), &by_identity, "which is not followed");

    // Token servers that do not work.
    for (token, part) in [
        ((|_| Reply::new(401)) as fn(&Request) -> Reply, "does not let you pull app"),
        (|_| Reply::new(403), "does not let you pull app"),
        (|_| Reply::new(404), "it answered with status 404"),
        (|_| Reply::ok("{}"), "its answer holds no token"),
        (|_| Reply::ok("garbage"), "its answer holds no token"),
        (|_| Reply::ok(r#"{"token":"a\r\nX-Injected: b"}"#), "its answer holds no token"),
        (|_| Reply::ok(vec![b' '; (1 << 20) + 1]), "more than 1048576 bytes as a token"),
        (|_| Reply::new(503), "answered 503 when asked for a token"),
        (|_| Reply::ok(r#"{"token":"not-the-one"}"#), "does not let you pull app"),
    ] {
        let server = with_tokens(image.clone(), bearer, token);
        check_refused(&server.source(), &with_login(options()), part);
    }
    for (challenge, part) in [
        ((|_| Reply::new(401)) as fn(&str) -> Reply, "does not let"),
        (|_| Reply::new(401).header("WWW-Authenticate", "Negotiate"), "does not let"),
        (|_| Reply::new(401).header("WWW-Authenticate", "Bearer"), "its address is malformed"),
        (
            |_| Reply::new(401).header("WWW-Authenticate", "Bearer realm=\"file:///etc/passwd\""),
            "is malformed",
        ),
        (
            |_| Reply::new(401).header("WWW-Authenticate", "Bearer realm=\"http://auth.invalid/token\""),
            "a login would be sent",
        ),
    ] {
        let server = with_tokens(image.clone(), challenge, good_token);
        check_refused(&server.source(), &with_login(options()), part);
        assert_eq!(server.count("/token"), 0);
    }
}

#[test]
fn a_token_that_runs_out_is_renewed_once() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let image = large_image();
    let copy = image.clone();
    // Each token is good for two requests; the large layer breaks off, so that one is needed in its middle.
    let (issued, used) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let server = Scripted::start(move |request, before| {
        if request.target.starts_with("/token") {
            used.store(0, Ordering::SeqCst);
            let number = issued.fetch_add(1, Ordering::SeqCst) + 1;
            return Reply::ok(format!(r#"{{"token":"t{number}"}}"#));
        }
        let current = format!("Bearer t{}", issued.load(Ordering::SeqCst));
        let sent = request.header("authorization");
        if sent != Some(current.as_str()) || used.fetch_add(1, Ordering::SeqCst) >= 2 {
            return bearer(request.header("host").unwrap());
        }
        let reply = honest(&copy, request);
        if is_layer(request, &copy, 1) && before < 4 && reply_is_long(request) {
            reply.cut(700_000)
        } else {
            reply
        }
    });
    check(&server.source(), &options(), &image);
    assert!(server.count("/token") >= 3, "{}", server.count("/token"));
}

/// Whether more than 700000 bytes are left from where the request begins.
fn reply_is_long(request: &Request) -> bool {
    request.range_start().unwrap_or(0) < 2 << 20
}

#[test]
fn refusals_in_plain_words() {
    let body = |code: &str, message: &str| {
        format!(r#"{{"errors":[{{"code":"{code}","message":"{message}","detail":null}}]}}"#)
    };
    for (status, text, part) in [
        (
            404,
            body("MANIFEST_UNKNOWN", "manifest unknown"),
            "has no manifest latest of app (manifest unknown)",
        ),
        (404, body("NAME_UNKNOWN", "repository name not known"), "(repository name not known)"),
        (
            404,
            body("DENIED", "requested access is denied"),
            "does not let anonymous users pull app (requested access",
        ),
        (404, body("unauthorized", "auth"), "does not let anonymous users pull app"),
        (403, body("DENIED", "no"), "does not let anonymous users pull app (no)"),
        (401, body("UNAUTHORIZED", "who?"), "does not let anonymous users pull app (who?)"),
        (404, "<html>".to_owned(), "has no manifest latest of app"),
        (
            418,
            body("TEAPOT", "I\\u001b[2Jam"),
            "answered 418 when asked for manifest latest of app (I [2Jam)",
        ),
    ] {
        let server = Scripted::start(move |_, _| Reply::new(status).body(text.clone()));
        check_refused(&server.source(), &options(), part);
    }
}

#[test]
fn hosts_that_do_not_answer() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = format!("docker://{free}/app:latest");
    let error = check_refused(&text, &options(), &format!("cannot reach {free}: "));
    assert!(error.hints().join("").contains("login node"), "{:?}", error.hints());

    check_refused("docker://registry.invalid/app:latest", &options(), "registry.invalid is unknown");

    // Speaks, but not HTTP.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        use std::io::Write as _;
        for stream in listener.incoming().take(12) {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"220 mail ready\r\n");
        }
    });
    check_refused(&format!("docker://{address}/app:latest"), &options(), &address.to_string());

    // Accepts and says nothing.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut impatient = options();
    impatient.registry.patience.retries = 1;
    impatient.registry.patience.connect = Duration::from_millis(400);
    let begin = Instant::now();
    check_refused(&format!("docker://{address}/app:latest"), &impatient, "did not answer in time");
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
    drop(listener);

    // A broken proxy is named without its password; loopback needs none.
    let mut proxied = options();
    proxied.registry.proxies.https = Some(format!("http://me:{CANARY}@127.0.0.1:1"));
    proxied.registry.patience.retries = 0;
    check_refused("docker://registry.invalid/app:latest", &proxied, "registry.invalid");
}

#[test]
fn plain_http_only_where_asked() {
    let image = Image::sample();
    let server = Scripted::of(image.clone(), |_, _, reply| reply);
    // Linux connects 0.0.0.0 to this machine, but the name is no loopback address: it stands for a far host.
    let host = format!("0.0.0.0:{}", server.address.port());
    let text = format!("docker://{host}/app:latest");
    let error =
        check_refused(&text, &options(), &format!("{host} gave no usable answer: it does not speak TLS"));
    assert!(error.hints().join("").contains("--plain-http"), "{:?}", error.hints());
    let with = |plain_http: PlainHttp| {
        let mut options = options();
        options.registry.plain_http = plain_http;
        options
    };
    check_refused(&text, &with(PlainHttp::Hosts(vec!["other:5000".into()])), "does not speak TLS");
    assert!(server.seen().is_empty(), "nothing goes out unencrypted");
    check(&text, &with(PlainHttp::Hosts(vec![host.clone()])), &image);
    check(&text, &with(PlainHttp::Asked), &image);

    // Nor does a registry on this machine lead to an unencrypted store elsewhere, unless asked.
    let registry =
        Scripted::of(image.clone(), move |request, _, reply| match request.target.contains("/blobs/") {
            true => Reply::redirect(&format!("http://{host}{}", request.target)),
            false => reply,
        });
    let error = check_refused(&registry.source(), &options(), "to the unencrypted http://0.0.0.0:");
    assert!(error.hints().join("").contains("--plain-http"), "{:?}", error.hints());
    check(&registry.source(), &with(PlainHttp::Asked), &image);
}

#[test]
fn broken_login_files_are_named() {
    let server = Scripted::start(|_, _| Reply::new(401).header("WWW-Authenticate", "Basic realm=\"x\""));
    let mut broken = options();
    broken.registry.auth_files =
        vec![AuthFile { path: "/home/u/auth.json".into(), contents: format!("{{\"{CANARY}\"").into_bytes() }];
    check_refused(&server.source(), &broken, "cannot read logins from /home/u/auth.json");
}
