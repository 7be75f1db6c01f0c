//! `hpcrun sync`: a store follows a list.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use hpcrun::image::digest::Digest;

use super::{World, digest, small, stderr};
use crate::busybox_image::names_in;
use crate::registry::scripted::{Reply, honest};
use crate::sources::layout::Layout;
use crate::support::{self, as_user, run, text};

/// Runs the list; gives its lines and what it ended with.
fn sync(world: &World, list: &str, args: &[&str]) -> (Vec<String>, Output) {
    let path = world.at("list.toml");
    fs::write(&path, list).unwrap();
    let mut words = vec!["sync", path.to_str().unwrap()];
    words.extend(args);
    let output = run(&mut world.hpcrun(&words));
    (text(&output.stdout).lines().map(str::to_owned).collect(), output)
}

#[test]
fn a_list_is_followed() {
    let world = World::new(small("one"));
    let (name, address) = (world.name(), world.registry.address);
    let list = format!(
        "keep = 2\n[[image]]\nfrom = '{name}'\n[[image]]\nfrom = 'docker://{address}/app:2'\ntags = ['tool:2', 'tool']\n"
    );
    let one = digest(&small("one"));
    let (lines, output) = sync(&world, &list, &["--dry-run"]);
    let would =
        [format!("{name}: would be pulled {one}"), format!("localhost/tool:2: would be pulled {one}")];
    assert_eq!(lines, would, "{}", stderr(&output));
    assert!(!world.store().exists());
    let (lines, output) = sync(&world, &list, &[]);
    assert_eq!(lines, [format!("{name}: pulled {one}"), format!("localhost/tool:2: tagged {one}")]);
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    world.ok(&["inspect", "tool"]);
    let (lines, _) = sync(&world, &list, &[]);
    assert_eq!(lines, [format!("{name}: unchanged {one}"), format!("localhost/tool:2: unchanged {one}")]);
    assert_eq!(world.layers_fetched(), 1);

    // The last two are kept, the one before them goes.
    for version in ["two", "three"] {
        world.serve(small(version));
        let (lines, _) = sync(&world, &list, &[]);
        assert!(
            lines[0].starts_with(&format!("{name}: pulled {} (before: ", digest(&small(version)))),
            "{lines:?}"
        );
    }
    world.age_images();
    let gone = world.ok(&["gc", "-q", "--grace", "0"]);
    assert!(gone.contains(&one) && !gone.contains(&digest(&small("two"))), "{gone}");
    assert_eq!(world.images().len(), 2);
}

#[test]
fn what_fails_keeps_nothing_else_from_being_done() {
    let world = World::scripted(small("one"), |image, request| {
        if request.target.contains("/bad/") { Reply::new(404).body("{}") } else { honest(image, request) }
    });
    let (name, address) = (world.name(), world.registry.address);
    let list = format!(
        "[[image]]\nfrom = '{address}/bad/app:1'\n[[image]]\nfrom = '{name}'\n[[image]]\nfrom = '{address}/app:9'\nupdate = 'never'\n"
    );
    let (lines, output) = sync(&world, &list, &[]);
    assert_eq!(output.status.code(), Some(125));
    assert_eq!(lines.len(), 3);
    assert!(lines[0].starts_with(&format!("{address}/bad/app:1: failed: ")), "{lines:?}");
    assert!(lines[1].contains(": pulled sha256:"), "{lines:?}");
    assert!(lines[2].contains("failed: it is not in the store"), "{lines:?}");
    assert!(stderr(&output).contains("2 of 3 images of"), "{}", stderr(&output));
    for (list, why) in [
        ("[[image]]\nfrom = 'A'\n", "list.toml:2:8: "),
        ("[[image]]\nfrm = 'a'\n", "unknown key"),
        ("nonsense", "list.toml:1:"),
    ] {
        let (lines, output) = sync(&world, list, &[]);
        assert_eq!((lines.len(), output.status.code()), (0, Some(125)), "{list}");
        assert!(stderr(&output).contains(why), "{}", stderr(&output));
    }
}

/// What a registry does.
const HONEST: u8 = 0;
/// It has no time.
const BUSY: u8 = 1;
/// It does not know the image any more.
const GONE: u8 = 2;
/// It sends other bytes than it promised.
const DAMAGED: u8 = 3;

#[test]
fn when_an_image_is_fetched() {
    let mood = Arc::new(AtomicU8::new(HONEST));
    let is = Arc::clone(&mood);
    let world = World::scripted(small("one"), move |image, request| match is.load(Ordering::Relaxed) {
        BUSY => Reply::new(503).header("Retry-After", "0").body("{}"),
        GONE => Reply::new(404).body("{}"),
        DAMAGED if request.target.ends_with(Digest::of(&image.layers[0].blob).as_str()) => {
            Reply::ok(vec![b'x'; image.layers[0].blob.len()])
        }
        _ => honest(image, request),
    });
    let name = world.name();
    let list = |update: &str| format!("[[image]]\nfrom = '{name}'\nupdate = '{update}'\n");
    sync(&world, &list("if-missing"), &[]);
    let one = digest(&small("one"));
    world.serve(small("two"));
    let asked = world.registry.log.seen().len();
    for update in ["if-missing", "never"] {
        let (lines, _) = sync(&world, &list(update), &[]);
        assert_eq!(lines, [format!("{name}: unchanged {one}")], "{update}");
    }
    assert_eq!(world.registry.log.seen().len(), asked, "the registry is not even asked");
    // A source that does not answer: the store has the image, which does for one rule and not for the other.
    mood.store(BUSY, Ordering::Relaxed);
    let (lines, output) = sync(&world, &list("newer"), &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(lines, [format!("{name}: unchanged {one} (its source does not answer)")]);
    assert!(stderr(&output).contains("warning: "), "{}", stderr(&output));
    let (_, output) = sync(&world, &list("always"), &[]);
    assert_eq!(output.status.code(), Some(125));
    // A name that is new in the list does not wait for the source.
    let (lines, _) = sync(&world, &format!("{}tags = ['{name}', 'more']\n", list("newer")), &[]);
    assert_eq!(lines, [format!("{name}: tagged {one} (its source does not answer)")]);

    // One that answers, and not with the image: that does not mend itself.
    for (fault, why) in [(GONE, "has no manifest"), (DAMAGED, "cannot use layer 1 of 1")] {
        mood.store(fault, Ordering::Relaxed);
        let (lines, output) = sync(&world, &list("newer"), &[]);
        assert_eq!(output.status.code(), Some(125), "{lines:?}");
        assert!(lines[0].contains(": failed: ") && lines[0].contains(why), "{lines:?}");
    }
    // Nor does a full disk.
    mood.store(HONEST, Ordering::Relaxed);
    fs::write(world.at("list.toml"), list("newer")).unwrap();
    let mut limited = as_user("prlimit");
    limited.arg("--fsize=300").arg(support::binary()).arg("sync").arg(world.at("list.toml"));
    world.prepare(&mut limited);
    let output = run(&mut limited);
    assert_eq!(output.status.code(), Some(125), "{}", text(&output.stdout));
    assert!(text(&output.stdout).contains("(EFBIG)"), "{}", text(&output.stdout));
    assert_eq!(world.images().len(), 1, "{:?}", world.images());

    let two = digest(&small("two"));
    let (lines, _) = sync(&world, &list("newer"), &[]);
    assert_eq!(lines, [format!("{name}: pulled {two} (before: {one})")]);
}

#[test]
fn what_is_only_asked_for_makes_no_store() {
    let world = World::new(small("one"));
    let name = world.name();
    let (lines, output) = sync(&world, &format!("[[image]]\nfrom = '{name}'\n"), &["--dry-run"]);
    assert_eq!(lines, [format!("{name}: would be pulled {}", digest(&small("one")))], "{}", stderr(&output));
    assert!(stderr(&run(&mut world.hpcrun(&["gc", "--dry-run"]))).contains("would free 0 bytes"));
    world.ok(&["gc"]);
    world.fails(&["rm", "app"], 125, &["has no image app", "'hpcrun images' lists"]);
    world.fails(&["tag", "app", "other"], 125, &["no store has app"]);
    assert!(world.ok(&["images"]).starts_with("NAME"));
    assert_eq!(names_in(&world.at("home")), [""; 0]);
}

#[test]
fn a_list_that_is_no_list() {
    let world = World::new(small("one"));
    let (lines, output) = sync(&world, &"# too much\n".repeat(400_000), &[]);
    assert_eq!((lines.len(), output.status.code()), (0, Some(125)));
    assert!(stderr(&output).contains("list.toml has more than 4194304 bytes"), "{}", stderr(&output));
    fs::write(world.at("list.toml"), b"\xff").unwrap();
    let path = world.at("list.toml").display().to_string();
    world.fails(&["sync", &path], 125, &["list.toml is not UTF-8"]);
    world.fails(&["sync", "nowhere.toml"], 125, &["cannot read nowhere.toml: ", "(ENOENT)"]);
    world.fails(&["sync", "/"], 125, &["cannot read /: ", "(EISDIR)"]);
    assert!(!world.store().exists());
}

/// An air-gapped site has its images in a layout.
#[test]
fn images_of_a_layout() {
    let world = World::new(small("one"));
    let layout = Layout::of(&world.at("layout"), &small("kept"));
    let list = format!("[[image]]\nfrom = 'oci:{}:v1'\ntags = ['kept:1']\n", layout.0.display());
    let (lines, output) = sync(&world, &list, &[]);
    assert_eq!(
        lines,
        [format!("localhost/kept:1: pulled {}", digest(&small("kept")))],
        "{}",
        stderr(&output)
    );
    world.ok(&["inspect", "kept:1"]);
}

#[test]
fn the_units_that_are_shipped_are_good() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("site-config/systemd");
    let scratch = tempfile::tempdir().unwrap();
    for name in ["hpcrun-sync.service", "hpcrun-sync.timer"] {
        // The program is not installed here.
        let unit = fs::read_to_string(directory.join(name)).unwrap().replace("/usr/bin/hpcrun", "/bin/true");
        fs::write(scratch.path().join(name), unit).unwrap();
    }
    for name in ["hpcrun-sync.service", "hpcrun-sync.timer"] {
        let output =
            run(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(scratch.path().join(name)));
        assert!(output.status.success(), "{name}: {}", stderr(&output));
        assert!(!stderr(&output).contains(name), "{}", stderr(&output));
    }
    let example = fs::read_to_string(directory.join("images.toml")).unwrap();
    let world = World::new(small("one"));
    let mut enabled = String::new();
    for line in example.lines() {
        // The example is all comments, which are an example all the same.
        enabled +=
            line.strip_prefix("# ").filter(|line| line.contains('=') || line.starts_with('[')).unwrap_or("");
        enabled.push('\n');
    }
    assert!(enabled.contains("[[image]]"), "{enabled}");
    let list = enabled.replace("registry.example.org", &world.registry.address.to_string());
    let (lines, output) = sync(&world, &list, &["--dry-run"]);
    assert!(output.status.success() && !lines.is_empty(), "{lines:?} {}", stderr(&output));
    let cron = fs::read_to_string(directory.join("hpcrun-sync.cron")).unwrap();
    assert!(cron.contains("root  /usr/bin/hpcrun sync --site"), "{cron}");
}
