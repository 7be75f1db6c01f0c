//! The configuration of registries through the binary: logins, helpers, `registries.conf`, certificates, proxies; with
//! Debian's docker-registry as the server and skopeo as the second opinion.

mod server;
pub(crate) mod socks;

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::sources::layout::{Image, Layout};
use crate::support;
use server::{Reply, Server, registry};
use socks::SocksProxy;

/// A secret that must turn up nowhere but where it belongs.
const CANARY: &str = "c4n4ry-s3cret";

/// User "me" with the canary as its password, by `htpasswd -nbB`.
const HTPASSWD: &str = "me:$2y$05$DdX.z5tTn8OlsyamBTJbzOn1isfxOpRT7PfHhVzReG0X6ruYPzpCS\n";

/// `Basic me:CANARY`.
const BASIC: &str = "Basic bWU6YzRuNHJ5LXMzY3JldA==";

const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// A user's home and what else a test needs on disk.
struct World {
    scratch: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        let world = World { scratch: support::scratch() };
        support::stdout(support::as_user("mkdir").arg(world.at("home")));
        std::fs::write(world.at("empty.conf"), "").unwrap();
        world
    }

    fn at(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn path(&self, name: &str) -> String {
        self.at(name).to_str().unwrap().to_owned()
    }

    /// Writes a file that everybody may read, below directories that everybody may use.
    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.at(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A command of the user with nothing of this machine's settings in its environment.
    fn user(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = support::as_user(program);
        for name in [
            "XDG_RUNTIME_DIR",
            "XDG_CONFIG_HOME",
            "XDG_CACHE_HOME",
            "DOCKER_CONFIG",
            "REGISTRY_AUTH_FILE",
            "SSL_CERT_FILE",
            "SSL_CERT_DIR",
            "https_proxy",
            "HTTPS_PROXY",
            "http_proxy",
            "HTTP_PROXY",
            "all_proxy",
            "ALL_PROXY",
            "no_proxy",
            "NO_PROXY",
        ] {
            command.env_remove(name);
        }
        // Not the directories of whoever runs the tests.
        command
            .env("PATH", PATH)
            .env("HOME", self.at("home"))
            .env("CONTAINERS_REGISTRIES_CONF", self.at("empty.conf"));
        command.current_dir(self.scratch.path());
        command
    }

    fn hpcrun(&self, args: &[&str]) -> Command {
        let mut command = self.user(support::binary());
        command.args(args).stdin(Stdio::null());
        command
    }

    /// `hpcrun login` with a password on standard input.
    fn login(&self, args: &[&str], password: &str) -> Output {
        let mut command = self.hpcrun(&["login", "-u", "me", "--password-stdin"]);
        let mut child = command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A login that fails early does not read.
        let _ = child.stdin.take().unwrap().write_all(password.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// Makes a certificate authority and certificates of servers and users: `ca.crt`, `server.*`, `client/*`.
    fn make_certificates(&self) {
        let script = r#"
            mkdir client
            openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=hpcrun-test-ca
            printf 'subjectAltName=IP:127.0.0.1,DNS:registry.test\n' > extensions
            for name in server client/user; do
                openssl req -newkey rsa:2048 -nodes -keyout $name.key -out request.pem -subj /CN=test
                openssl x509 -req -in request.pem -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 \
                    -extfile extensions -out $name.cert
            done
            cp ca.crt client
            chmod 644 *.key client/*
        "#;
        let output =
            Command::new("sh").args(["-ec", script]).current_dir(self.scratch.path()).output().unwrap();
        assert!(output.status.success(), "{}", support::text(&output.stderr));
    }
}

/// Standard error of a command that succeeded, or failed with `status`.
#[track_caller]
fn stderr(output: &Output, status: i32) -> String {
    let text = support::text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert!(!text.contains(CANARY) && !support::text(&output.stdout).contains(CANARY), "{text}");
    text
}

#[track_caller]
fn run(command: &mut Command, status: i32) -> String {
    stderr(&support::run(command), status)
}

#[track_caller]
fn check_contains(text: &str, part: &str) {
    assert!(text.contains(part), "{text}\n  lacks {part}");
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Debian's docker-registry with TLS; killed on drop.
struct Registry {
    child: Child,
    port: u16,
}

impl Registry {
    /// `tls` is appended to the TLS settings, `below` to the file.
    fn start(world: &World, tls: &str, below: &str) -> Registry {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: \
             127.0.0.1:{port}\n  tls:\n    certificate: {}\n    key: {}\n{tls}{below}",
            world.path("data"),
            world.path("server.cert"),
            world.path("server.key")
        );
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(world.write("registry.yml", &text))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry; does 'make test' install it?");
        let registry = Registry { child, port };
        let begin = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begin.elapsed() < Duration::from_secs(20), "docker-registry does not come up");
            thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    fn with_password(world: &World) -> Registry {
        world.make_certificates();
        let file = world.write("htpasswd", HTPASSWD);
        let auth = format!("auth:\n  htpasswd: {{realm: test, path: {}}}\n", file.display());
        Registry::start(world, "", &auth)
    }

    fn name(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Has skopeo push an image as `app:1`.
    fn push(&self, world: &World) {
        let layout = Layout::of(&world.at("layout"), &Image::sample());
        let from = format!("oci:{}:v1", layout.0.display());
        let to = format!("docker://{}/app:1", self.name());
        let creds = format!("me:{CANARY}");
        let args = ["copy", "-q", "--dest-tls-verify=false", "--dest-creds", &creds, &from, &to];
        support::stdout(Command::new("skopeo").args(args));
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// ---- login and logout ------------------------------------------------------------------------------------------

#[test]
fn login_pull_logout() {
    let world = World::new();
    let registry = Registry::with_password(&world);
    registry.push(&world);
    let (name, certs) = (registry.name(), world.path("client"));
    let image = format!("{name}/app:1");
    let file = world.at("home/.config/containers/auth.json");

    let text = stderr(&world.login(&[&name], CANARY), 125);
    check_contains(&text, &format!("cannot trust {name}"));
    let text = stderr(&world.login(&["--cert-dir", &certs, &name], "wrong"), 125);
    check_contains(&text, &format!("{name} does not take the login"));
    check_contains(&text, "hint: ");
    assert!(!file.exists());
    let text =
        run(world.hpcrun(&["pull", "--cert-dir", &certs, &image, "a.sqsh"]).arg("--platform=amd64"), 125);
    check_contains(&text, "does not let anonymous users pull app");

    let text = stderr(&world.login(&["--cert-dir", &certs, &name], &format!("{CANARY}\n")), 0);
    assert_eq!(text, format!("logged in to {name} as me ({})\n", file.display()));
    assert_eq!(mode(&file), 0o600);
    assert_eq!(mode(file.parent().unwrap()), 0o700);
    run(&mut world.hpcrun(&["pull", "-q", "--platform=amd64", "--cert-dir", &certs, &image, "a.sqsh"]), 0);
    assert!(world.at("a.sqsh").exists());

    // What we write is what skopeo reads, and the other way round.
    let path = file.to_str().unwrap();
    let reference = format!("docker://{image}");
    let args = ["inspect", "--raw", "--authfile", path, "--cert-dir", &certs, &reference];
    support::stdout(world.user("skopeo").args(args));
    let theirs = world.path("home/theirs.json");
    let args = ["login", "--cert-dir", &certs, "-u", "me", "-p", CANARY, "--authfile", &theirs, &name];
    support::stdout(world.user("skopeo").args(args));
    let args =
        ["pull", "-q", "--platform=amd64", "--cert-dir", &certs, "--authfile", &theirs, &image, "b.sqsh"];
    run(&mut world.hpcrun(&args), 0);
    run(world.hpcrun(&["logout", &name]).env("REGISTRY_AUTH_FILE", &theirs), 0);
    assert!(!std::fs::read_to_string(&theirs).unwrap().contains(&name));

    let text = run(&mut world.hpcrun(&["logout", &name]), 0);
    check_contains(&text, &format!("logged out of {name} ({path})"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "{\n\t\"auths\": {}\n}\n");
    let text = run(&mut world.hpcrun(&["logout", &name]), 125);
    check_contains(&text, &format!("not logged in to {name}"));
}

#[test]
fn login_keeps_what_else_is_in_the_file() {
    let world = World::new();
    let server = Server::guarded(BASIC, |_| Reply::ok("{}"));
    let name = server.address.to_string();
    let before =
        "{\"z\": [1.50], \"auths\": {\"other.org\": {\"auth\": \"eDp5\"}}, \"currentContext\": \"c\"}";
    world.write("home/real.json", before);
    let (session, link) = (world.at("session"), world.at("home/link.json"));
    std::fs::create_dir(&session).unwrap();
    std::fs::set_permissions(&session, PermissionsExt::from_mode(0o777)).unwrap();
    std::fs::set_permissions(world.at("home/real.json"), PermissionsExt::from_mode(0o666)).unwrap();
    std::os::unix::fs::symlink("real.json", &link).unwrap();

    let link_path = link.to_str().unwrap();
    stderr(&world.login(&["--authfile", link_path, &name], CANARY), 0);
    let after = std::fs::read_to_string(world.at("home/real.json")).unwrap();
    let entry = format!("\"{name}\": {{\"auth\":\"{}\"}}", &BASIC[6..]);
    let expected = format!(
        "{{\n\t\"z\": [1.50],\n\t\"auths\": {{\n\t\t\"other.org\": {{\"auth\": \"eDp5\"}},\n\t\t{entry}\n\t}},\n\t\
         \"currentContext\": \"c\"\n}}\n"
    );
    assert_eq!(after, expected);
    assert!(link.is_symlink());
    assert_eq!(mode(&world.at("home/real.json")), 0o600);

    // With a session podman's place is of the session; a namespace has a login of its own.
    let namespace = format!("https://{name}/team/");
    let mut command = world.hpcrun(&["login", "-u", "me", "--password-stdin", &namespace]);
    let password = std::fs::File::open(world.write("password", &format!("{CANARY}\r\n"))).unwrap();
    let text = run(command.env("XDG_RUNTIME_DIR", &session).stdin(password), 0);
    let of_session = session.join("containers/auth.json");
    check_contains(&text, &format!("({}, until this session ends)", of_session.display()));
    check_contains(&std::fs::read_to_string(&of_session).unwrap(), &format!("\"{name}/team\""));
    let text = run(world.hpcrun(&["logout", "--all"]).env("XDG_RUNTIME_DIR", &session), 0);
    check_contains(&text, "logged out of all registries");
    assert!(!std::fs::read_to_string(&of_session).unwrap().contains("team"));

    // What is broken is left alone.
    let broken = world.write("home/broken.json", "{\n\"auths\": {,\n");
    let text = stderr(&world.login(&["--authfile", broken.to_str().unwrap(), &name], CANARY), 125);
    check_contains(&text, "broken.json");
    check_contains(&text, "line 2");
    assert_eq!(std::fs::read_to_string(&broken).unwrap(), "{\n\"auths\": {,\n");
    let leftovers = std::fs::read_dir(world.at("home")).unwrap().flatten();
    let leftovers: Vec<_> = leftovers.map(|entry| entry.file_name().into_string().unwrap()).collect();
    assert!(leftovers.iter().all(|name| !name.contains("partial")), "{leftovers:?}");
}

#[test]
fn login_with_a_token_server() {
    let world = World::new();
    let address = Arc::new(Mutex::new(String::new()));
    let own = Arc::clone(&address);
    let server = Server::start(move |request| {
        let authorization = request.authorization.as_deref();
        if request.target.starts_with("/token") {
            return match authorization {
                Some(BASIC) => Reply::ok(r#"{"token":"t0ken"}"#),
                _ => Reply::status(401),
            };
        }
        let challenge = format!("Bearer realm=\"http://{}/token\",service=\"r\"", own.lock().unwrap());
        match authorization {
            Some("Bearer t0ken") => Reply::ok("{}"),
            _ => Reply::challenge(&challenge),
        }
    });
    let name = server.address.to_string();
    address.lock().unwrap().clone_from(&name);
    let text = stderr(&world.login(&[&name], "wrong"), 125);
    check_contains(&text, "does not take the login");
    stderr(&world.login(&[&name], CANARY), 0);
    let tokens: Vec<_> = server.seen().into_iter().filter(|seen| seen.target.starts_with("/token")).collect();
    assert!(
        tokens.iter().all(|seen| !seen.target.contains(CANARY) && !seen.target.contains("scope")),
        "{tokens:?}"
    );
    assert!(server.seen().iter().all(|seen| seen.target.starts_with("/token") || seen.target == "/v2/"));

    let open = Server::start(|_| Reply::ok("{}"));
    let text = stderr(&world.login(&[&open.address.to_string()], CANARY), 0);
    check_contains(&text, "could not be checked");
    let strange = Server::start(|_| Reply::challenge("Negotiate"));
    let text = stderr(&world.login(&[&strange.address.to_string()], CANARY), 125);
    check_contains(&text, "another kind of login");
    let none = Server::start(|_| Reply::status(404));
    let text = stderr(&world.login(&[&none.address.to_string()], CANARY), 125);
    check_contains(&text, "answered 404");
}

#[test]
fn nobody_is_asked_without_a_terminal() {
    let world = World::new();
    for args in [vec!["login", "r.test"], vec!["login", "-u", "me", "r.test"]] {
        let text = run(&mut world.hpcrun(&args), 125);
        check_contains(&text, "there is no terminal to ask for the login at");
        check_contains(&text, "--password-stdin");
    }
    for (args, part) in [
        (vec!["login", "--password-stdin", "r.test"], "--username"),
        (vec!["login", "-p", "x", "r.test"], "'-p'"),
        (vec!["login", "nonsense"], "is no registry"),
        (vec!["logout", "--all", "r.test"], "cannot be used with"),
    ] {
        check_contains(&run(&mut world.hpcrun(&args), 125), part);
    }
    check_contains(&stderr(&world.login(&["r.test"], ""), 125), "the password is empty");
}

/// Runs its arguments on a terminal of their own, types what is asked for, and tells what was seen and left.
const TYPIST: &str = r#"
import os, pty, sys, termios, time, select
typed = sys.argv[1].encode().decode("unicode_escape").encode()
parent, child = pty.openpty()
pid = os.fork()
if pid == 0:
    os.setsid()
    os.close(os.open(os.ttyname(child), os.O_RDWR))
    for fd in range(3):
        os.dup2(child, fd)
    os.execvp(sys.argv[2], sys.argv[2:])
seen = b""
deadline = time.time() + 60
def until(words):
    global seen
    while not all(word in seen for word in words):
        if time.time() > deadline: sys.exit("no %r in %r" % (words, seen))
        if select.select([parent], [], [], 0.1)[0]: seen += os.read(parent, 4096)
echo = lambda: bool(termios.tcgetattr(child)[3] & termios.ECHO)
until([b"password"])
while echo():
    if time.time() > deadline: sys.exit("the echo stays on")
    time.sleep(0.01)
os.write(parent, typed)
status = os.waitpid(pid, 0)[1]
while select.select([parent], [], [], 0.2)[0]: seen += os.read(parent, 4096)
print("signal", os.WTERMSIG(status)) if os.WIFSIGNALED(status) else print("status", os.WEXITSTATUS(status))
print("echo", echo())
print(seen.decode())
"#;

#[test]
fn the_password_is_asked_for_unseen() {
    let world = World::new();
    let server = Server::guarded(BASIC, |_| Reply::ok("{}"));
    let name = server.address.to_string();
    let binary = support::binary().to_str().unwrap();
    let typist = |typed: &str| {
        let args = ["-c", TYPIST, typed, binary, "login", "-u", "me", &name];
        support::stdout(world.user("python3").args(args))
    };
    let file = world.at("home/.config/containers/auth.json");
    // Ctrl-C, also after some letters; Ctrl-\; Ctrl-D.
    for (typed, end) in [
        ("\\x03", "signal 2\n"),
        ("abc\\x03", "signal 2\n"),
        ("\\x1c", "signal 3\n"),
        ("\\x04", "status 125\n"),
    ] {
        let seen = typist(typed);
        assert!(seen.starts_with(end), "{typed}: {seen}");
        check_contains(&seen, "echo True");
        assert!(!seen.contains("abc"), "{seen}");
        assert!(!file.exists());
    }
    // Ctrl-Z does nothing, a mistake can be taken back.
    let seen = typist(&format!("x\\x7f\\x1a{CANARY}\\n"));
    assert!(seen.starts_with("status 0\n"), "{seen}");
    check_contains(&seen, "echo True");
    check_contains(&seen, &format!("password of me for {name}: "));
    assert!(!seen.contains(CANARY), "{seen}");
    assert!(file.exists());
}

// ---- helpers and files -----------------------------------------------------------------------------------------

/// Keeps logins in files beside itself.
const HELPER: &str = r#"#!/bin/sh
cd "$(dirname "$0")/store" || exit 1
case $1 in
store) cat >login && echo stored >>calls ;;
get) echo "get $(cat)" >>calls; test -f login && cat login || { echo credentials not found in native keychain; exit 1; } ;;
erase) echo erased >>calls; rm login || { echo credentials not found in native keychain; exit 1; } ;;
esac
"#;

#[test]
fn credential_helpers() {
    let world = World::new();
    let registry = Registry::with_password(&world);
    registry.push(&world);
    let (name, certs) = (registry.name(), world.path("client"));
    let image = format!("{name}/app:1");
    let helper = world.write("bin/docker-credential-files", HELPER);
    std::fs::set_permissions(&helper, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::create_dir(world.at("bin/store")).unwrap();
    std::fs::set_permissions(world.at("bin/store"), PermissionsExt::from_mode(0o777)).unwrap();
    let path = format!("{}:{PATH}", world.path("bin"));
    let config = format!(r#"{{"credHelpers": {{"{name}": "files"}}}}"#);
    world.write("home/.docker/config.json", &config);
    let pull = |dest: &str| {
        let mut command =
            world.hpcrun(&["pull", "-q", "--platform=amd64", "--cert-dir", &certs, &image, dest]);
        command.env("PATH", &path);
        command
    };
    check_contains(&run(&mut pull("a.sqsh"), 125), "does not let anonymous users pull");

    let authfile = world.path("home/.docker/config.json");
    let args =
        ["login", "-u", "me", "--password-stdin", "--cert-dir", &certs, "--authfile", &authfile, &name];
    let password = std::fs::File::open(world.write("password", CANARY)).unwrap();
    let text = run(world.hpcrun(&args).env("PATH", &path).stdin(password), 0);
    check_contains(&text, "kept by docker-credential-files");
    assert_eq!(std::fs::read_to_string(&authfile).unwrap(), config, "no secret beside the helper");
    check_contains(&std::fs::read_to_string(world.at("bin/store/login")).unwrap(), CANARY);
    run(&mut pull("a.sqsh"), 0);
    let calls = std::fs::read_to_string(world.at("bin/store/calls")).unwrap();
    assert_eq!(calls, format!("get {name}\nstored\nget {name}\n"));

    // The whole store, and registries.conf, name helpers too.
    world.write("home/.docker/config.json", r#"{"auths": {}, "credsStore": "files"}"#);
    run(&mut pull("b.sqsh"), 0);
    world.write("home/.docker/config.json", "{}");
    let conf = world.write("helpers.conf", "credential-helpers = ['files']");
    run(pull("c.sqsh").env("CONTAINERS_REGISTRIES_CONF", &conf), 0);
    let mut logout = world.hpcrun(&["logout", &name]);
    let text = run(logout.env("CONTAINERS_REGISTRIES_CONF", &conf).env("PATH", &path), 0);
    check_contains(&text, "docker-credential-files");
    assert!(!world.at("bin/store/login").exists());

    // One that is not on this node is told of; the pull goes on without it.
    world.write("home/.docker/config.json", r#"{"credsStore": "desktop"}"#);
    let mut command = world.hpcrun(&["pull", "--platform=amd64", "--cert-dir", &certs, &image, "d.sqsh"]);
    let text = run(&mut command, 125);
    check_contains(&text, "cannot run docker-credential-desktop: No such file");
    check_contains(&text, "does not let anonymous users pull");
}

#[test]
fn auth_files_that_are_not_as_they_should_be() {
    let world = World::new();
    let image = Image::sample();
    let server = Server::guarded(BASIC, move |request| registry(&image, request));
    let name = server.address.to_string();
    let reference = format!("{name}/app");
    let pull = |dest: &str| world.hpcrun(&["pull", "--platform=amd64", &reference, dest]);
    let good = format!(r#"{{"auths": {{"{name}/other": null, "{name}": {{"auth": "{}"}}}}}}"#, &BASIC[6..]);
    let file = world.write("home/.docker/config.json", &good);
    let text = run(&mut pull("a.sqsh"), 0);
    assert_eq!(text.matches("can be read by others: chmod 600 it").count(), 1, "{text}");

    // podman's file goes before docker's; what is broken stops the search with its place.
    world.write("home/.config/containers/auth.json", "{\n\n\"auths\": {\"x\": canary");
    let text = run(&mut pull("b.sqsh"), 125);
    check_contains(&text, "home/.config/containers/auth.json: expected value at line 3");
    assert!(!text.contains("canary"), "{text}");
    let text = run(pull("b.sqsh").env("REGISTRY_AUTH_FILE", &file), 0);
    check_contains(&text, "b.sqsh");
    let text = run(pull("c.sqsh").env("REGISTRY_AUTH_FILE", world.at("absent")), 125);
    check_contains(&text, "cannot read credentials");
}

// ---- registries.conf -------------------------------------------------------------------------------------------

#[test]
fn mirrors_locations_and_blocks() {
    let world = World::new();
    let image = Image::sample();
    let good = |name: &'static str| {
        let image = image.clone();
        Server::start(move |request| match request.target.as_str() {
            "/v2/" => Reply::ok("{}"),
            target if target.contains(name) => registry(&image, request),
            _ => Reply::status(404),
        })
    };
    let (lacking, mirror, origin) = (good("nothing"), good("/v2/copy/group/app/"), good("/v2/x/app/"));
    let text = format!(
        "[[registry]]\nprefix = 'site.test/group'\nlocation = '{}/x'\ninsecure = true\n[[registry.mirror]]\nlocation = '{}/no'\n\
         insecure = true\n[[registry.mirror]]\nlocation = '{}/copy/group'\ninsecure = true\n\n[[registry]]\nprefix = \
         'site.test/direct'\nlocation = '{}/x'\ninsecure = true\n\n[[registry]]\nlocation = 'bad.test'\nblocked = true\n",
        origin.address, lacking.address, mirror.address, origin.address
    );
    let conf = world.write("registries.conf", &text);
    let pull = |reference: &str, dest: &str| {
        let mut command = world.hpcrun(&["pull", "-q", "--platform=amd64", reference, dest]);
        command.env("CONTAINERS_REGISTRIES_CONF", &conf);
        command
    };
    run(&mut pull("site.test/group/app:latest", "a.sqsh"), 0);
    assert!(lacking.count("/v2/no/app/manifests/") > 0 && mirror.count("/manifests/") > 0);
    assert!(origin.seen().is_empty(), "{:?}", origin.seen());
    run(&mut pull("site.test/direct/app:latest", "b.sqsh"), 0);
    assert!(origin.count("/v2/x/app/manifests/") > 0);
    let inspected = support::stdout(&mut world.hpcrun(&["inspect", "a.sqsh"]));
    check_contains(&inspected, "site.test/group/app:latest");

    // skopeo reads the file in the same way.
    let before = (lacking.seen().len(), mirror.seen().len(), origin.seen().len());
    world.write("home/.config/containers/registries.conf", &text);
    let mut skopeo = world.user("skopeo");
    skopeo.args(["inspect", "--raw", "docker://site.test/group/app:latest"]);
    assert_eq!(support::stdout(&mut skopeo).into_bytes(), image.manifest);
    assert!(
        lacking.seen().len() > before.0 && mirror.seen().len() > before.1 && origin.seen().len() == before.2
    );

    let line = text.lines().position(|line| line.contains("bad.test")).unwrap();
    let text = run(&mut pull("bad.test/app", "c.sqsh"), 122);
    check_contains(&text, &format!("pulling bad.test/app:latest is blocked by {}:{line}", conf.display()));

    let broken = world.write("broken.conf", "\n[[registry]]\nlocation = 'https://x.org'\n");
    let text = run(pull("r.test/a", "d.sqsh").env("CONTAINERS_REGISTRIES_CONF", &broken), 125);
    check_contains(&text, &format!("cannot use {}:2: \"https://x.org\" is a URL", broken.display()));
    let text = run(pull("r.test/a", "d.sqsh").env("CONTAINERS_REGISTRIES_CONF", "/absent.conf"), 125);
    check_contains(&text, "cannot read /absent.conf");
}

#[test]
fn the_users_own_files_and_drop_ins() {
    let world = World::new();
    let server = Server::of(Image::sample());
    let pull = |reference: &str, dest: &str| {
        let mut command = world.hpcrun(&["pull", "-v", "--platform=amd64", reference, dest]);
        command.env_remove("CONTAINERS_REGISTRIES_CONF");
        command
    };
    let base = "home/.config/containers";
    world.write(
        &format!("{base}/registries.conf"),
        "[[registry]]\nlocation = 'site.test'\nblocked = true\nblockd = 1\n",
    );
    check_contains(&run(&mut pull("site.test/app", "a.sqsh"), 122), "registries.conf:1");
    let text = format!("[[registry]]\nprefix = 'site.test'\nlocation = '{}'\n", server.address);
    world.write(&format!("{base}/registries.conf.d/50-site.conf"), &text);
    world.write(&format!("{base}/registries.conf.d/99-off.conf.bak"), "nonsense");
    let text = run(&mut pull("site.test/app", "a.sqsh"), 0);
    check_contains(&text, "unknown and passed over: registry.blockd");
}

#[test]
fn short_names() {
    let world = World::new();
    let server = Server::of(Image::sample());
    let text = format!(
        "unqualified-search-registries = ['a.test', 'b.test']\n[aliases]\n'tool' = '{0}/app'\n[[registry]]\nprefix = \
         'docker.io'\nlocation = '{0}/hub'\n",
        server.address
    );
    let conf = world.write("registries.conf", &text);
    let pull = |verb: &str, reference: &str, dest: &str| {
        let mut command = world.hpcrun(&[verb, "-v", "--platform=amd64", reference, dest]);
        command.env("CONTAINERS_REGISTRIES_CONF", &conf);
        command
    };
    let text = run(&mut pull("pull", "tool:latest", "a.sqsh"), 0);
    check_contains(&text, &format!("tool:latest is {}/app:latest ({}:3)", server.address, conf.display()));
    assert!(server.count("/v2/app/manifests/") > 0);
    let text = run(&mut pull("pull", "other:1", "b.sqsh"), 125);
    check_contains(&text, &format!("\"other:1\" names no registry, and {}:1 lists 2", conf.display()));
    check_contains(&text, "hint: say which is meant: a.test/other:1 or b.test/other:1");
    // With the transport it is Docker Hub everywhere.
    for (verb, dest) in [("convert", "c.sqsh"), ("pull", "d.sqsh")] {
        let before = server.count("/v2/hub/library/tool/");
        run(&mut pull(verb, "docker://tool", dest), 0);
        assert!(server.count("/v2/hub/library/tool/") > before);
    }
}

// ---- certificates ----------------------------------------------------------------------------------------------

#[test]
fn certificates_of_servers_and_users() {
    let world = World::new();
    world.make_certificates();
    let tls = format!("    clientcas: [{}]\n", world.path("ca.crt"));
    let registry = Registry::start(&world, &tls, "");
    let name = registry.name();
    let of_user = world.at("home/.config/containers/certs.d").join(&name);
    let absent = format!("docker://{name}/app:absent");
    let ask = || world.hpcrun(&["pull", "--platform=amd64", &absent, "a.sqsh"]);
    check_contains(&run(&mut ask(), 125), &format!("cannot trust {name}"));

    std::fs::create_dir_all(&of_user).unwrap();
    std::fs::copy(world.at("ca.crt"), of_user.join("ca.crt")).unwrap();
    let without = run(&mut ask(), 125);
    assert!(!without.contains("has no manifest"), "{without}");
    std::fs::copy(world.at("client/user.cert"), of_user.join("user.cert")).unwrap();
    check_contains(&run(&mut ask(), 125), "user.cert is of no use without");
    std::fs::copy(world.at("client/user.key"), of_user.join("user.key")).unwrap();
    // Past TLS there is only no such image.
    check_contains(&run(&mut ask(), 125), "has no manifest absent of app");
    check_contains(
        &run(ask().args(["--cert-dir", &world.path("client")]), 125),
        "has no manifest absent of app",
    );
    let skopeo = world
        .user("skopeo")
        .args(["inspect", "--cert-dir", &world.path("client"), &absent])
        .output()
        .unwrap();
    check_contains(&support::text(&skopeo.stderr), "manifest unknown");
    std::fs::write(of_user.join("user.key"), "nonsense").unwrap();
    check_contains(&run(&mut ask(), 125), "user.key: it holds no unencrypted private key");
    check_contains(
        &run(ask().args(["--cert-dir", "/absent"]), 125),
        "cannot read the certificates in /absent",
    );
}

#[test]
fn unverified_certificates_only_where_asked_for() {
    let world = World::new();
    let registry = Registry::with_password(&world);
    registry.push(&world);
    let name = registry.name();
    let authfile = world.path("home/auth.json");
    let text = stderr(&world.login(&["--tls-verify=false", "--authfile", &authfile, &name], CANARY), 0);
    check_contains(&text, "warning: --tls-verify=false");
    let image = format!("{name}/app:1");
    let args = ["pull", "--platform=amd64", "--authfile", &authfile, &image];
    check_contains(&run(world.hpcrun(&args).arg("a.sqsh"), 125), "cannot trust");
    check_contains(&run(world.hpcrun(&args).args(["a.sqsh", "--tls-verify"]), 125), "cannot trust");
    run(world.hpcrun(&args).args(["--tls-verify=false", "a.sqsh"]), 0);
    let conf = world.write("insecure.conf", &format!("[[registry]]\nlocation = '{name}'\ninsecure = true\n"));
    run(world.hpcrun(&args).arg("b.sqsh").env("CONTAINERS_REGISTRIES_CONF", &conf), 0);
    // Leave for one registry is none for another.
    let conf = world.write("other.conf", "[[registry]]\nlocation = '127.0.0.1:1'\ninsecure = true\n");
    let text = run(world.hpcrun(&args).arg("c.sqsh").env("CONTAINERS_REGISTRIES_CONF", &conf), 125);
    check_contains(&text, "cannot trust");
}

// ---- proxies ---------------------------------------------------------------------------------------------------

/// A proxy that knows `CONNECT` and leads wherever it is asked to one port of this machine.
struct ConnectProxy {
    port: u16,
    seen: Arc<Mutex<Vec<String>>>,
}

impl ConnectProxy {
    fn start(leads_to: u16, authorization: Option<&'static str>) -> ConnectProxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let heads = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let heads = Arc::clone(&heads);
                thread::spawn(move || connect(stream, leads_to, authorization, &heads));
            }
        });
        ConnectProxy { port, seen }
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

fn connect(mut stream: TcpStream, leads_to: u16, authorization: Option<&str>, seen: &Mutex<Vec<String>>) {
    let mut head = String::new();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while !head.ends_with("\r\n\r\n") {
        if !matches!(reader.read_line(&mut head), Ok(1..)) {
            return;
        }
    }
    seen.lock().unwrap().push(head.clone());
    if authorization.is_some_and(|expected| !head.contains(expected)) {
        let _ = stream.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n");
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", leads_to)) else { return };
    let _ = stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n");
    let (mut to, mut from) = (server.try_clone().unwrap(), server);
    let mut back = stream.try_clone().unwrap();
    let forth = thread::spawn(move || {
        let _ = std::io::copy(&mut reader, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let _ = std::io::copy(&mut from, &mut back);
    let _ = back.shutdown(Shutdown::Both);
    let _ = forth.join();
}

#[test]
fn a_proxy_leads_out() {
    let world = World::new();
    let registry = Registry::with_password(&world);
    registry.push(&world);
    let certs = world.path("client");
    let auth = format!(r#"{{"auths": {{"registry.test": {{"auth": "{}"}}}}}}"#, &BASIC[6..]);
    let authfile = world.write("auth.json", &auth);
    let pull = |dest: &str| {
        let args = ["pull", "--platform=amd64", "--cert-dir", &certs, "registry.test/app:1", dest];
        let mut command = world.hpcrun(&args);
        command.env("REGISTRY_AUTH_FILE", &authfile);
        command
    };
    let proxy = ConnectProxy::start(registry.port, Some("Proxy-Authorization: Basic"));
    let url = format!("http://me:{CANARY}@127.0.0.1:{}", proxy.port);
    run(pull("a.sqsh").env("HTTPS_PROXY", &url), 0);
    let seen = proxy.seen();
    assert!(
        !seen.is_empty() && seen.iter().all(|head| head.starts_with("CONNECT registry.test:443 ")),
        "{seen:?}"
    );
    assert!(seen.iter().all(|head| head.contains(BASIC) && !head.contains("/v2/")), "{seen:?}");
    for (number, name) in ["https_proxy", "all_proxy", "ALL_PROXY"].into_iter().enumerate() {
        run(pull(&format!("{number}.sqsh")).env(name, &url).env("NO_PROXY", "other.test, 10.0.0.0/8"), 0);
    }

    // What is not to go through it does not; this machine never does.
    let before = proxy.seen().len();
    for none in ["registry.test", ".test", "*", "x,registry.test:443"] {
        let text = run(pull("n.sqsh").env("HTTPS_PROXY", &url).env("no_proxy", none), 125);
        assert!(
            text.contains("registry.test is unknown") || text.contains("cannot reach registry.test"),
            "{text}"
        );
    }
    let absent = format!("{}/app:absent", registry.name());
    let args = ["pull", "--platform=amd64", "--cert-dir", &certs, &absent, "l.sqsh"];
    run(world.hpcrun(&args).env("HTTPS_PROXY", &url), 125);
    assert_eq!(proxy.seen().len(), before);

    // No secret in what is said of one that refuses or makes no sense.
    let wrong = url.replace("me:", "canary:").replace("http://canary", "http://you");
    let refusing = ConnectProxy::start(registry.port, Some("never"));
    let wrong = wrong.replace(&format!(":{}", proxy.port), &format!(":{}", refusing.port));
    check_contains(&run(pull("r.sqsh").args(["-vv"]).env("HTTPS_PROXY", &wrong), 125), "proxy");
    let socks = format!("socks4://me:{CANARY}@127.0.0.1:1");
    check_contains(&run(pull("s.sqsh").env("HTTPS_PROXY", &socks), 125), "socks5 and socks5h proxies are");
    let nonsense = format!("http://me:{CANARY}@:x y");
    check_contains(&run(pull("t.sqsh").env("HTTPS_PROXY", &nonsense), 125), "its URL is malformed");
}

#[test]
fn a_socks_proxy_leads_out() {
    let world = World::new();
    let registry = Server::of(Image::sample());
    let (open, guarded) = (
        SocksProxy::start(registry.address.port(), None),
        SocksProxy::start(registry.address.port(), Some(("me", CANARY))),
    );
    let pull = |host: &str, dest: &str, variable: &str, proxy: &str| {
        let image = format!("{host}/app:1");
        let mut command = world.hpcrun(&["pull", "--platform=amd64", "--plain-http", &image, dest]);
        command.env(variable, proxy);
        command
    };
    let url = |scheme: &str, proxy: &SocksProxy| format!("{scheme}://127.0.0.1:{}", proxy.port);
    let with_password =
        |scheme: &str, password: &str| format!("{scheme}://me:{password}@127.0.0.1:{}", guarded.port);
    run(&mut pull("registry.invalid:5000", "a.sqsh", "ALL_PROXY", &url("socks5h", &open)), 0);
    run(&mut pull("registry.invalid", "b.sqsh", "http_proxy", &with_password("socks5h", CANARY)), 0);
    let seen = open.seen();
    assert!(!seen.is_empty() && seen.iter().all(|target| target == "registry.invalid:5000"), "{seen:?}");
    assert!(guarded.seen().iter().all(|target| target == "registry.invalid:80"), "{:?}", guarded.seen());
    // An address is one, whoever would resolve names.
    for (number, scheme) in ["socks5", "socks5h"].iter().enumerate() {
        let dest = format!("{number}.sqsh");
        run(&mut pull("192.0.2.7:81", &dest, "all_proxy", &url(scheme, &open)), 0);
        assert_eq!(open.seen().last().unwrap(), "192.0.2.7:81");
    }
}
