//! `hpcrun sync`: a store follows a list.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{World, digest, small, stderr};
use crate::busybox_image::names_in;
use crate::registry::scripted::{Reply, honest};
use crate::sources::layout::Layout;
use crate::support::{run, text};

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
    assert_eq!(names_in(&world.store().join("tags")), [""; 0]);
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

#[test]
fn when_an_image_is_fetched() {
    let is_gone = Arc::new(AtomicBool::new(false));
    let gone = Arc::clone(&is_gone);
    let world = World::scripted(small("one"), move |image, request| {
        if gone.load(Ordering::Relaxed) { Reply::new(404).body("{}") } else { honest(image, request) }
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
    let two = digest(&small("two"));
    let (lines, _) = sync(&world, &list("newer"), &[]);
    assert_eq!(lines, [format!("{name}: pulled {two} (before: {one})")]);
    // A source that has gone: the store has the image, which does for one rule and not for the other.
    is_gone.store(true, Ordering::Relaxed);
    let (lines, output) = sync(&world, &list("newer"), &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(lines[0].contains(&format!("unchanged {two} (its source does not answer)")), "{lines:?}");
    assert!(stderr(&output).contains("warning: "), "{}", stderr(&output));
    let (_, output) = sync(&world, &list("always"), &[]);
    assert_eq!(output.status.code(), Some(125));
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
