//! Registries: Debian's docker-registry in its ways of access, and scripted ones that misbehave.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "what a test cannot get fails it"
)]

mod auth;
mod busy;
mod content;
mod downloads;
mod liars;
mod mirrors;
mod phases;
mod redirects;
mod scenario;
pub(crate) mod scripted;

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use hpcrun::convert::source::registry::{AuthFile, Login, PlainHttp};
use hpcrun::convert::source::{Source, SourceError, SourceOptions};
use hpcrun::hint::Hint;
use hpcrun::image::digest::Digest;
use hpcrun::image::platform::Platform;
use serde_json::{Value, json};

use crate::sources::layout::{
    Image, Layout, OCI_INDEX, OCI_MANIFEST, Packing, descriptor, for_platform, index, layer_tar,
};
use crate::sources::{chain, layer_tars};
use crate::support;
use scenario::{BASIC, CANARY, large_image, open, options};
use scripted::{Reply, Request, Scripted, honest};

/// User "me" with the canary as its password, by `htpasswd -nbB`; the registry takes bcrypt only.
const HTPASSWD: &str = "me:$2y$05$DdX.z5tTn8OlsyamBTJbzOn1isfxOpRT7PfHhVzReG0X6ruYPzpCS\n";

fn with_login(mut options: SourceOptions) -> SourceOptions {
    options.registry.login = Some(Login::Password { user: "me".into(), password: CANARY.into() });
    options
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

// ---- a real registry -------------------------------------------------------------------------------------------

/// Debian's docker-registry; killed on drop.
pub(crate) struct Real {
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
    pub(crate) fn start(directory: &Path, extra: &str) -> Real {
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

    pub(crate) fn name(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

fn skopeo(args: &[&str]) -> String {
    support::stdout(Command::new("skopeo").args(args))
}

/// Pushes an image of one layer, by way of a layout in `directory`, which is made.
pub(crate) fn push(directory: &Path, to: &str, layer: &[u8]) {
    let layout = Layout::of(directory, &Image::new("amd64", &[layer.to_vec()], Packing::Gzip));
    let from = format!("oci:{}:v1", layout.0.display());
    skopeo(&["copy", "-q", "--dest-tls-verify=false", &from, to]);
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
pub(crate) fn make_certificates(directory: &Path) {
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
    assert!(error.hints().join("").contains("hpcrun login"));
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

/// A token as docker-registry checks it: RS256, with the certificate inside, signed by the key of `ca.pem`.
fn sign_token(directory: &Path, user: &str, access: &[Value]) -> String {
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let certificate = std::fs::read_to_string(directory.join("ca.pem")).unwrap();
    let certificate: String = certificate.lines().filter(|line| !line.starts_with('-')).collect();
    let header = json!({"typ": "JWT", "alg": "RS256", "x5c": [certificate]});
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let claims = json!({
        "iss": "hpcrun-test", "sub": user, "aud": "test", "jti": "1", "access": access,
        "exp": now + 300, "nbf": now - 60, "iat": now - 60,
    });
    let text = format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()));
    let mut signer = Command::new("openssl")
        .args(["dgst", "-sha256", "-sign", "ca.key"])
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    signer.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    format!("{text}.{}", encode(&signer.wait_with_output().unwrap().stdout))
}

/// A token server: "me" may do all, nobody may pull from `public/`.
fn token_server(directory: &Path) -> Scripted {
    let directory = directory.to_owned();
    let basic = format!("Basic {BASIC}");
    Scripted::start(move |request, _| {
        let user = match request.header("authorization") {
            None => "",
            Some(sent) if sent == basic => "me",
            Some(_) => return Reply::new(401).body(r#"{"details":"incorrect username or password"}"#),
        };
        let query = request.target.replace("%3A", ":").replace("%2F", "/").replace("%2C", ",");
        let scopes = query.split(['?', '&']).filter_map(|field| field.strip_prefix("scope=repository:"));
        let access: Vec<Value> = scopes
            .filter_map(|scope| scope.rsplit_once(':'))
            .filter_map(|(name, actions)| {
                let actions: Vec<&str> = match user {
                    "me" => actions.split(',').collect(),
                    _ if name.starts_with("public/") => vec!["pull"],
                    _ => return None,
                };
                Some(json!({"type": "repository", "name": name, "actions": actions}))
            })
            .collect();
        let token = sign_token(&directory, user, &access);
        Reply::ok(json!({"token": token, "expires_in": 300}).to_string())
    })
}

#[test]
fn a_registry_with_tokens() {
    let scratch = support::scratch();
    make_certificates(scratch.path());
    let tokens = token_server(scratch.path());
    let real = Real::start(
        scratch.path(),
        &format!(
            "auth: {{token: {{realm: \"http://{}/token\", service: test, issuer: hpcrun-test, rootcertbundle: {}}}}}\n",
            tokens.address,
            scratch.path().join("ca.pem").display()
        ),
    );
    let image = large_image();
    let layout = Layout::of(&scratch.path().join("layout"), &image);
    let from = format!("oci:{}:v1", layout.0.display());
    let source = |name: &str| format!("docker://{}/{name}:1", real.name());
    let creds = format!("me:{CANARY}");
    for name in ["public/app", "private/app"] {
        skopeo(&["copy", "-q", "--dest-tls-verify=false", "--dest-creds", &creds, &from, &source(name)]);
    }
    let before = tokens.log.seen().len();
    check(&source("public/app"), &options(), &image);
    let asked = tokens.log.seen();
    assert_eq!(asked.len(), before + 1, "one token for the whole pull");
    assert_eq!(asked[before].target, "/token?service=test&scope=repository%3Apublic%2Fapp%3Apull");

    let nobody = "does not let anonymous users pull private/app";
    let error = check_refused(&source("private/app"), &options(), nobody);
    assert!(error.hints().join("").contains("log in first"), "{:?}", error.hints());
    check(&source("private/app"), &with_login(options()), &image);
    let mut wrong = options();
    wrong.registry.login = Some(Login::Password { user: "me".into(), password: "wrong".into() });
    check_refused(&source("private/app"), &wrong, "status 401: incorrect username or password");
    let absent = source("public/absent");
    check_refused(&absent, &options(), "has no manifest 1 of public/absent");
}

/// Whatever a registry sends, it costs little memory, and `-vv` does not tell what it should not.
#[test]
fn endless_answers_in_bounded_memory_and_without_a_secret() {
    let image = Image::sample();
    let (config, layer) = (Digest::of(&image.config), Digest::of(&image.layers[1].blob));
    let endless = || Reply::ok(vec![b'x'; 1 << 20]).times(600);
    let wants_token = |request: &Request| {
        let realm = format!("Bearer realm=\"http://{}/token\"", request.header("host").unwrap());
        Reply::new(401).header("WWW-Authenticate", &realm)
    };
    for (part, reason) in [
        ("/manifests/", "more than 4194304 bytes"),
        ("/token", "more than 1048576 bytes"),
        (config.as_str(), "as the manifest says"),
        (layer.as_str(), "as the manifest says"),
    ] {
        let (copy, part) = (image.clone(), part.to_owned());
        let server = Scripted::start(move |request, _| match request.header("authorization") {
            _ if request.target.contains(&part) => endless(),
            None if part == "/token" => wants_token(request),
            None => Reply::new(401).header("WWW-Authenticate", "Basic realm=\"x\""),
            Some(_) => honest(&copy, request),
        });
        let scratch = support::scratch();
        let logins = scratch.path().join("auth.json");
        let login = format!(r#"{{"auths":{{"{}":{{"auth":"{BASIC}"}}}}}}"#, server.address);
        std::fs::write(&logins, login).unwrap();
        let out = scratch.path().join("out");
        std::fs::create_dir(&out).unwrap();
        std::fs::set_permissions(&out, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let mut command = support::as_user("prlimit");
        command.arg("--data=402653184").arg("--").arg(support::binary()).args(["-vv", "pull", "--authfile"]);
        command.arg(&logins).arg(server.source()).arg(out.join("app.sqsh"));
        let output = support::run(&mut command);
        let shown = support::text(&output.stderr);
        assert!(shown.contains(reason), "{shown}");
        assert_eq!(output.status.code(), Some(125), "{shown}");
        assert!(!shown.contains(CANARY) && !shown.contains(BASIC), "{shown}");
        assert_eq!(std::fs::read_dir(&out).unwrap().count(), 0);
    }
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
    // This server does not know HEAD and lets it wait.
    trusting.registry.patience.stall = Duration::from_millis(400);
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
    assert!(target.log.seen().is_empty());
}

// ---- plain HTTP ------------------------------------------------------------------------------------------------

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
    assert!(server.log.seen().is_empty(), "nothing goes out unencrypted");
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
