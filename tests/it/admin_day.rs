//! A day of an administrator: install, doctor, a policy with an error and its fix, three images for everybody, jobs of
//! two users, a refusal, and cleaning up. Everything happens on this machine, in a mount namespace of its own.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::busybox_image::image;
use crate::dist::package;
use crate::layer_building::{Member, tar};
use crate::registry::{Real, make_certificates, push};
use crate::support::{TEST_USER, is_root, run, scratch, stdout, text};

const SECOND_USER: &str = "hpcrun-test2";

/// A copy of this machine, whose `/etc`, `/usr/local` and `/srv` are its own. Gone on drop.
struct Node {
    holder: Child,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// How a step ended.
struct Done {
    status: i32,
    out: String,
    err: String,
}

impl Done {
    #[track_caller]
    fn expect(self, status: i32, words: &[&str]) -> Done {
        let all = format!("{}{}", self.out, self.err);
        assert_eq!(self.status, status, "{all}");
        for word in words {
            assert!(all.contains(word), "no {word:?} in {all}");
        }
        self
    }
}

impl Node {
    fn new(scratch: &Path) -> Node {
        assert!(is_root(), "an administrator is root: run this test as root");
        let etc = scratch.join("etc");
        let script = format!(
            "cp -a /etc {etc}; mount --bind {etc} /etc; mount -t tmpfs -o mode=755 none /usr/local; \
             mount -t tmpfs -o mode=755 none /srv; rm -rf /etc/hpcrun; echo ready; exec sleep 600",
            etc = etc.display()
        );
        let mut command = Command::new("unshare");
        command.args(["-m", "--propagation", "private", "sh", "-ec", &script]);
        let mut holder = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("unshare");
        let mut line = String::new();
        let out = holder.stdout.take().expect("a pipe");
        BufReader::new(out).read_line(&mut line).expect("a line");
        let node = Node { holder };
        assert_eq!(line, "ready\n");
        node
    }

    fn step(&self, user: Option<&str>, line: &str) -> Done {
        let mut command = Command::new("nsenter");
        command.args(["-m", "-t", &self.holder.id().to_string(), "--"]);
        if let Some(user) = user {
            command.args([
                "setpriv",
                "--reuid",
                user,
                "--regid",
                user,
                "--init-groups",
                "--inh-caps=-all",
                "--",
            ]);
        }
        command.args(["sh", "-c", line]).env_clear().stdin(Stdio::null()).current_dir("/tmp");
        command.env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
        command.env("HOME", user.map_or_else(|| "/root".to_owned(), |user| format!("/home/{user}")));
        let output: Output = run(&mut command);
        println!(
            "{} {line}\n{}{}",
            if user.is_some() { "$" } else { "#" },
            text(&output.stdout),
            text(&output.stderr)
        );
        let status = output.status.code().expect("an exit status");
        Done { status, out: text(&output.stdout), err: text(&output.stderr) }
    }

    /// A line of root's.
    fn root(&self, line: &str) -> Done {
        self.step(None, line)
    }

    /// A line of an ordinary user's.
    fn user(&self, user: &str, line: &str) -> Done {
        self.step(Some(user), line)
    }

    /// A file of root's.
    fn write(&self, path: &str, content: &str) {
        let source = tempfile::NamedTempFile::new().expect("a file");
        fs::write(source.path(), content).expect("write");
        self.root(&format!("install -D -m 0644 {} {path}", source.path().display())).expect(0, &[]);
    }
}

/// The lines that docs/packaging.md gives for an installation, for this package.
fn three_lines() -> Vec<String> {
    let page = include_str!("../../docs/packaging.md");
    let block =
        page.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a block of sh");
    let tarball = package(".tar.gz");
    let name = tarball.file_name().expect("a name").to_string_lossy().into_owned();
    let architecture = if cfg!(target_arch = "x86_64") { "x86_64" } else { "aarch64" };
    let generic = "hpcrun-VERSION-ARCH.tar.gz";
    assert_eq!(name, generic.replace("VERSION", env!("CARGO_PKG_VERSION")).replace("ARCH", architecture));
    block.lines().map(|line| line.replace(generic, &tarball.display().to_string())).collect()
}

/// Busybox, and a solver that says `word` and who runs it.
fn layer(word: &str) -> Vec<u8> {
    let program = fs::read("/bin/busybox").expect("busybox-static");
    tar(&[
        Member::directory("bin/"),
        Member::file("bin/busybox", program).mode(0o755),
        Member::symlink("bin/sh", "busybox"),
        Member::symlink("bin/id", "busybox"),
        Member::file("usr/bin/solver", format!("#!/bin/sh\necho {word} $(id -u)\n")).mode(0o755),
    ])
}

#[test]
fn a_day_of_an_administrator() {
    let scratch = scratch();
    let at = |name: &str| scratch.path().join(name);
    make_certificates(scratch.path());
    let tls =
        format!("  tls: {{certificate: {}, key: {}}}\n", at("cert.pem").display(), at("key.pem").display());
    let registry = Real::start(scratch.path(), &tls);
    for (name, word) in
        [("site/solver:1", "solving"), ("site/mesh:1", "meshing"), ("site/plot:1", "plotting")]
    {
        push(&at(word), &format!("docker://{}/{name}", registry.name()), &layer(word));
    }
    let node = Node::new(scratch.path());
    let users = [TEST_USER, SECOND_USER];

    installs(&node);
    mends_a_policy(&node, users);
    syncs(&node, &registry.name(), &at("ca.pem"));
    users_work(&node, users);
    cleans_up(&node, users);
}

fn installs(node: &Node) {
    for line in three_lines() {
        node.root(&line).expect(0, &[]);
    }
    node.root("hpcrun --version -v").expect(0, &["site policy     /etc/hpcrun/policy.toml", "kernel"]);
    node.root("zcat /usr/local/share/man/man1/hpcrun-doctor.1.gz").expect(0, &["doctor"]);
    for user in [TEST_USER, SECOND_USER] {
        let done = node.user(user, "hpcrun doctor --json").expect(0, &[]);
        let report: Value = serde_json::from_str(&done.out).expect("JSON");
        assert_eq!(report["usable"], true, "{report:#}");
    }
}

/// One wrong key stops every launch, and says where; mended, it holds.
fn mends_a_policy(node: &Node, users: [&str; 2]) {
    let right = r#"[store]
site_dir = "/srv/images"
node_cache = "/srv/cache"
node_cache_size = "256 MiB"

[images]
directories = ["/srv/images"]

[binds]
denied = ["/srv/secret"]
"#;
    node.root("mkdir -m 0711 /srv/secret; mkdir -m 1777 /srv/cache").expect(0, &[]);
    node.write("/etc/hpcrun/policy.toml", &right.replace("denied", "deneid"));
    node.root("hpcrun policy check").expect(1, &["policy.toml", "10:1", "deneid", "denied"]);
    node.root("hpcrun doctor").expect(1, &["no    site policy", "deneid"]);
    for user in users {
        node.user(user, "hpcrun exec /srv/images/any.sqsh true").expect(125, &["deneid", "denied"]);
    }
    node.write("/etc/hpcrun/policy.toml", right);
    node.root("hpcrun policy check").expect(0, &[]);
    node.root("hpcrun doctor")
        .expect(0, &["ok    site policy", "site's images", "mkdir -m 0755 /srv/images"]);
}

fn syncs(node: &Node, registry: &str, authority: &Path) {
    let list: String = ["solver", "mesh", "plot"]
        .map(|name| format!("[[image]]\nfrom = \"{registry}/site/{name}:1\"\ntags = [\"{name}:1\"]\n"))
        .concat();
    node.write("/etc/hpcrun/images.toml", &list);
    node.root("hpcrun sync /etc/hpcrun/images.toml").expect(125, &["cannot trust 127.0.0.1"]);
    node.root(&format!(
        "install -D -m 0644 {} /etc/containers/certs.d/{registry}/ca.crt",
        authority.display()
    ))
    .expect(0, &[]);
    // The line of the unit that the package brings.
    let unit = "sed -n 's/^ExecStart=//p' /usr/local/lib/systemd/system/hpcrun-sync.service";
    node.root(&format!("$({unit})")).expect(0, &["solver:1", "mesh:1", "plot:1"]);
    // Nothing has changed, so nothing is fetched.
    node.root("hpcrun sync /etc/hpcrun/images.toml").expect(0, &["solver:1"]);
}

fn users_work(node: &Node, users: [&str; 2]) {
    for user in users {
        let listed = node.user(user, "hpcrun images").expect(0, &["solver:1", "mesh:1", "plot:1"]);
        assert_eq!(listed.out.lines().count(), 4, "{}", listed.out);
        let uid = stdout(Command::new("id").args(["-u", user]));
        for (name, word) in [("solver:1", "solving"), ("mesh:1", "meshing")] {
            let done = node.user(user, &format!("hpcrun exec {name} solver")).expect(0, &[]);
            assert_eq!(done.out, format!("{word} {uid}"));
        }
        // The site says no: with rule and line.
        node.user(user, "hpcrun exec --bind /srv/secret solver:1 solver")
            .expect(122, &["policy.toml:10", "/srv/secret"]);
        let own = format!("hpcrun exec {} true", image().display());
        node.user(user, &own).expect(122, &["policy.toml:7", "/srv/images"]);
    }
}

fn cleans_up(node: &Node, users: [&str; 2]) {
    node.root("hpcrun rm --site plot:1").expect(0, &[]);
    node.root("hpcrun gc --site --grace 0s").expect(0, &[]);
    node.root("hpcrun gc --site --grace 0s").expect(0, &[]);
    for user in users {
        let listed = node.user(user, "hpcrun images").expect(0, &["solver:1", "mesh:1"]);
        assert!(!listed.out.contains("plot:1"), "{}", listed.out);
        node.user(user, "hpcrun exec plot:1 solver").expect(125, &["plot:1"]);
        node.user(user, "hpcrun exec solver:1 solver").expect(0, &["solving"]);
    }
    node.root("hpcrun doctor").expect(0, &["ok    site's images", "ok    node's cache"]);
}
