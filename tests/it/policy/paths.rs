//! Rules about paths against every way of naming one: through the binary, as the ordinary user, under a policy of root's.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use super::site::Site;
use crate::support::{is_root, text};

/// What becomes of a bind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It is planned.
    Allowed,
    /// Refused by the list of what is allowed, line 2.
    Outside,
    /// Refused by the list of what is denied, line 3.
    Denied,
    /// Nothing is there.
    Missing,
}

use Verdict::{Allowed, Denied, Missing, Outside};

/// Below a directory T: `allowed` and `link-to-allowed` are allowed, `allowed/deny` and `secret` denied.
struct Tree {
    site: Site,
}

const DIRECTORIES: [&[u8]; 20] = [
    b"allowed",
    b"allowed/inner/deep",
    b"allowed/deny/below",
    b"allowed/deny2",
    b"allowed/.deny",
    b"allowed/...",
    b"allowed/with:colon",
    b"allowed/with,comma",
    b"allowed/new\nline",
    b"allowed2/x",
    b"allowe",
    b"Allowed",
    b"allowed\n",
    b"allowed ",
    b" allowed",
    b"allowed\xe2\x80\x8b",
    b"allowed\xff",
    b"al\xd0\xbeowed",
    b"secret/x",
    b"real",
];

const LINKS: [(&str, &str); 12] = [
    ("link-to-allowed", "allowed"),
    ("also-allowed", "real"),
    ("allowed/out", "../secret"),
    ("allowed/out-absolute", "/etc"),
    ("allowed/up", ".."),
    ("allowed/in", "inner"),
    ("allowed/to-deny", "deny/below"),
    ("allowed/chain", "chain2"),
    ("allowed/chain2", "out/x"),
    ("allowed/dangling", "nothing"),
    ("allowed/root", "/proc/self/root"),
    ("outside-to-inner", "allowed/inner"),
];

impl Tree {
    fn new() -> Tree {
        assert!(is_root(), "a policy file is root's: these tests want root");
        let site = Site::new("");
        let root = site.path();
        for name in DIRECTORIES {
            fs::create_dir_all(root.join(OsStr::from_bytes(name))).unwrap();
        }
        for (name, target) in LINKS {
            symlink(target, root.join(name)).unwrap();
        }
        fs::write(root.join("allowed/file"), "").unwrap();
        fs::write(root.join("secret/file"), "").unwrap();
        fs::hard_link(root.join("secret/file"), root.join("allowed/hard")).unwrap();
        for name in ["allowed", "secret"] {
            fs::set_permissions(root.join(name), PermissionsExt::from_mode(0o755)).unwrap();
        }
        let t = root.display();
        site.write(
            "policy.toml",
            &format!(
                "[binds]\nallowed = [\"{t}/allowed\", \"{t}//also-allowed/\"]\n\
                 denied = [\"{t}/allowed/deny\", \"{t}/secret\"]\n"
            ),
        );
        Tree { site }
    }

    /// `T` at the beginning of `source`, or after a prefix such as `/proc/self/root`, is the tree.
    fn bind(&self, source: &[u8]) -> OsString {
        let root = self.site.path().as_os_str().as_bytes().to_vec();
        let text = source.to_vec();
        let mut out = Vec::new();
        let mut rest = text.as_slice();
        while let Some(at) = rest.windows(3).position(|window| window == b"{T}") {
            out.extend_from_slice(&rest[..at]);
            out.extend_from_slice(&root);
            rest = &rest[at + 3..];
        }
        out.extend_from_slice(rest);
        OsString::from_vec(out)
    }

    #[track_caller]
    fn check(&self, name: &str, cwd: &str, source: &[u8], expected: Verdict) {
        let mut bind = self.bind(source);
        bind.push(":/x");
        let mut command = self.site.exec([OsStr::new("--explain"), OsStr::new("--bind"), &bind], &["true"]);
        let output = command.current_dir(PathBuf::from(self.bind(cwd.as_bytes()))).output().unwrap();
        let stderr = text(&output.stderr);
        let found = match output.status.code() {
            Some(0) => {
                assert!(text(&output.stdout).contains(" -> /x "), "{name}: {}", text(&output.stdout));
                Allowed
            }
            Some(122) if stderr.contains("policy.toml:2 ") => Outside,
            Some(122) if stderr.contains("policy.toml:3 ") => Denied,
            Some(125) if stderr.contains("cannot bind") => Missing,
            status => panic!("{name}: {status:?} {stderr}"),
        };
        assert_eq!(found, expected, "{name}: {bind:?} from {cwd}: {stderr}");
    }
}

#[test]
fn every_way_of_naming_a_path() {
    let tree = Tree::new();
    let cases: &[(&str, &str, &[u8], Verdict)] = &[
        // Components.
        ("below", "/", b"{T}/allowed/inner", Allowed),
        ("far below", "/", b"{T}/allowed/inner/deep", Allowed),
        ("a file below", "/", b"{T}/allowed/file", Allowed),
        ("the same beginning", "/", b"{T}/allowed2", Outside),
        ("below the same beginning", "/", b"{T}/allowed2/x", Outside),
        ("a shorter name", "/", b"{T}/allowe", Outside),
        ("another case", "/", b"{T}/Allowed", Outside),
        ("a newline behind", "/", b"{T}/allowed\n", Outside),
        ("a blank behind", "/", b"{T}/allowed ", Outside),
        ("a blank before", "/", b"{T}/ allowed", Outside),
        ("a blank of no width", "/", b"{T}/allowed\xe2\x80\x8b", Outside),
        ("a byte that is no UTF-8", "/", b"{T}/allowed\xff", Outside),
        ("a letter of another alphabet", "/", b"{T}/al\xd0\xbeowed", Outside),
        ("three dots are a name", "/", b"{T}/allowed/...", Allowed),
        ("a newline below", "/", b"{T}/allowed/new\nline", Allowed),
        ("an escaped colon", "/", b"{T}/allowed/with\\:colon", Allowed),
        ("an escaped comma", "/", b"{T}/allowed/with\\,comma", Allowed),
        // Spellings.
        ("a trailing slash", "/", b"{T}/allowed/inner/", Allowed),
        ("a trailing slash outside", "/", b"{T}/allowed2/", Outside),
        ("double slashes", "/", b"{T}//allowed///inner", Allowed),
        ("double slashes at the beginning", "/", b"/{T}/allowed/inner", Allowed),
        ("double slashes outside", "/", b"//etc", Outside),
        ("dots", "/", b"{T}/./allowed/./inner/.", Allowed),
        ("dots outside", "/", b"/./etc/.", Outside),
        ("out and in again", "/", b"{T}/secret/../allowed/inner", Allowed),
        ("in and out again", "/", b"{T}/allowed/../allowed2", Outside),
        ("in and out to what is denied", "/", b"{T}/allowed/../secret", Denied),
        ("out of the root", "/", b"/../../etc", Outside),
        ("through what is not there", "/", b"{T}/allowed/none/../inner", Missing),
        ("through a file", "/", b"{T}/allowed/file/../inner", Missing),
        ("two dots behind a link", "/", b"{T}/outside-to-inner/..", Denied),
        ("two dots behind a link, inside", "/", b"{T}/outside-to-inner/../inner", Allowed),
        // What is denied.
        ("denied", "/", b"{T}/secret", Denied),
        ("below what is denied", "/", b"{T}/secret/x", Denied),
        ("a file in what is denied", "/", b"{T}/secret/file", Denied),
        ("denied within what is allowed", "/", b"{T}/allowed/deny", Denied),
        ("below that", "/", b"{T}/allowed/deny/below", Denied),
        ("the name goes on", "/", b"{T}/allowed/deny2", Allowed),
        ("a dot before the name", "/", b"{T}/allowed/.deny", Allowed),
        ("what holds something denied", "/", b"{T}/allowed", Denied),
        ("what holds all", "/", b"{T}", Denied),
        ("what holds that", "/", b"/tmp", Denied),
        ("the root", "/", b"/", Denied),
        ("the root with slashes", "/", b"///", Denied),
        ("the root by dots", "/", b"/tmp/..", Denied),
        // Links.
        ("a link from inside to what is denied", "/", b"{T}/allowed/out", Denied),
        ("below such a link", "/", b"{T}/allowed/out/x", Denied),
        ("a link out by an absolute path", "/", b"{T}/allowed/out-absolute", Outside),
        ("below it", "/", b"{T}/allowed/out-absolute/passwd", Outside),
        ("a link upwards", "/", b"{T}/allowed/up", Denied),
        ("in again by it", "/", b"{T}/allowed/up/allowed/inner", Allowed),
        ("a link that stays inside", "/", b"{T}/allowed/in", Allowed),
        ("a link within, to what is denied", "/", b"{T}/allowed/to-deny", Denied),
        ("a chain of links", "/", b"{T}/allowed/chain", Denied),
        ("a link to nothing", "/", b"{T}/allowed/dangling", Missing),
        ("a link to the root of a process", "/", b"{T}/allowed/root", Denied),
        ("a link from outside to inside", "/", b"{T}/outside-to-inner", Allowed),
        ("another name of what is allowed", "/", b"{T}/link-to-allowed/inner", Allowed),
        ("a rule that is a link", "/", b"{T}/also-allowed", Allowed),
        ("what such a rule leads to", "/", b"{T}/real", Allowed),
        // A hard link is the file itself under a name that is allowed: where it lies is all that can be told.
        ("a hard link", "/", b"{T}/allowed/hard", Allowed),
        // The kernel's own links.
        ("the root of this process", "/", b"/proc/self/root{T}/allowed/inner", Allowed),
        ("what is denied, by it", "/", b"/proc/self/root{T}/secret", Denied),
        ("what is outside, by it", "/", b"/proc/self/root/etc", Outside),
        ("the root of this thread", "/", b"/proc/thread-self/root{T}/secret/x", Denied),
        ("by it twice", "/", b"/proc/self/root/proc/self/root/etc", Outside),
        ("the working directory", "{T}/allowed/inner", b"/proc/self/cwd", Allowed),
        ("the working directory, outside", "{T}/allowed2", b"/proc/self/cwd", Outside),
        ("up from the working directory", "{T}/allowed/inner", b"/proc/self/cwd/../../secret", Denied),
        ("a task's working directory", "{T}/secret", b"/proc/thread-self/cwd/x", Denied),
        // Relative paths.
        ("where one stands", "{T}/allowed/inner", b".", Allowed),
        ("where one stands, outside", "{T}/allowed2", b".", Outside),
        ("where one stands, denied", "{T}/secret", b".", Denied),
        ("below where one stands", "{T}/allowed", b"inner", Allowed),
        ("up and down", "{T}/allowed/inner", b"../../secret", Denied),
        ("up to the root", "{T}/allowed", b"../../../../../..", Denied),
        ("a tilde is a name", "{T}/allowed", b"~", Missing),
        ("a variable is a name", "{T}/allowed", b"$HOME", Missing),
        ("a wildcard is a name", "/", b"{T}/allowed/inn*", Missing),
    ];
    assert!(cases.len() >= 60, "{}", cases.len());
    for (name, cwd, source, expected) in cases {
        tree.check(name, cwd, source, *expected);
    }
}

/// What a bind shows is what was judged, though a link changes its mind as fast as it can.
#[test]
fn a_link_that_is_switched_shows_nothing_that_is_denied() {
    let tree = Tree::new();
    let root = tree.site.path();
    fs::write(root.join("allowed/inner/name"), "inner\n").unwrap();
    fs::write(root.join("secret/name"), "secret\n").unwrap();
    let (link, other) = (root.join("allowed/switch"), root.join("allowed/switch.new"));
    symlink("inner", &link).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for target in ["../secret", "inner"].iter().cycle() {
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
                symlink(target, &other).unwrap();
                fs::rename(&other, &link).unwrap();
            }
        });
        for _ in 0..30 {
            let bind = format!("{}:/x", link.display());
            let output = tree.site.exec(["--bind", &bind], &["cat", "/x/name"]).output().unwrap();
            let stdout = text(&output.stdout);
            assert!(matches!(stdout.as_str(), "" | "inner\n"), "{stdout}");
            assert!(matches!(output.status.code(), Some(0 | 122 | 125)), "{}", text(&output.stderr));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
