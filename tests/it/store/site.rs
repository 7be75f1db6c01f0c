//! The site's store: everybody runs from it, its keepers alone change it, and nobody else gets anything into it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use super::{World, digest, image, planned, small, stderr};
use crate::busybox_image::{assert_fails, names_in};
use crate::support::{self, as_user, run, text};

/// A world with a site's store.
fn with_site(image: crate::sources::layout::Image) -> World {
    let world = World::new(image);
    world.policy(&format!("[store]\nsite_dir = '{}'\n", world.at("site").display()));
    world
}

/// Has root pull into the site's store, under a umask that would keep everybody out.
fn pull_for_all(world: &World) {
    let mut command = Command::new("sh");
    command.args(["-c", "umask 077; exec \"$@\"", "sh"]).arg(support::binary()).args(["pull", &world.name()]);
    world.prepare(&mut command);
    support::stdout(&mut command);
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

#[test]
fn what_root_pulls_everybody_runs_and_nobody_changes() {
    let world = with_site(image("one"));
    let name = world.name();
    pull_for_all(&world);
    assert_eq!(world.version(&name), "one");
    assert!(world.ok(&["images"]).trim_end().ends_with("site"));
    assert!(!world.store().exists(), "the user has no store, and needs none");
    for args in [&["rm", "--site", &name][..], &["tag", "--site", &name, "x"]] {
        let output = run(&mut world.hpcrun(args));
        assert_eq!(output.status.code(), Some(125), "{args:?}");
        assert!(stderr(&output).contains("(EACCES)"), "{args:?}: {}", stderr(&output));
    }
    assert_fails(&run(&mut world.hpcrun(&["pull", "--site", "--force", &name])), 125, &["(EACCES)"]);
    // A name of one's own for an image of the site.
    world.ok(&["tag", &name, "mine"]);
    assert_eq!(world.version("mine"), "one");
    assert_eq!(world.images().len(), 0);
    // The user's own image of a name comes first.
    world.serve(image("two"));
    world.ok(&["pull", &name]);
    assert_eq!(world.version(&name), "two");
    world.ok(&["rm", &name]);
    assert_eq!(world.version(&name), "one");
    // Root's --user is root's own.
    let mut own = world.root(&["pull", "--user", &name]);
    assert_fails(&run(&mut own), 125, &["the owner is user"]);
    support::stdout(own.env("HPCRUN_STORE", world.at("of-root")));
    assert_eq!(names_in(&world.at("of-root/images")).len(), 1);
    assert_eq!(names_in(&world.at("site/images")).len(), 1);
    let output = run(&mut world.root(&["gc"]));
    assert!(stderr(&output).contains(&world.at("site").display().to_string()), "{}", stderr(&output));
    support::stdout(&mut world.root(&["rm", &name]));
    support::stdout(&mut world.root(&["gc", "--grace", "0"]));
    let output = run(&mut world.hpcrun(&["exec", "mine", "true"]));
    assert_fails(&output, 125, &["has no such image any more"]);
}

#[test]
fn the_names_of_the_site_are_of_its_own_images() {
    let world = with_site(small("one"));
    let name = world.name();
    pull_for_all(&world);
    world.serve(small("two"));
    let as_root = |args: &[&str]| {
        let mut command = world.root(args);
        run(command.env("HPCRUN_STORE", world.at("of-root")))
    };
    assert!(as_root(&["pull", "--user", &name]).status.success());
    assert!(as_root(&["tag", "--user", &name, "mine"]).status.success());
    let output = as_root(&["tag", "--site", &name, "ours"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(world.ok(&["history", "ours"]).contains(&digest(&small("one"))));
    let output = as_root(&["tag", "--site", "mine", "theirs"]);
    assert_fails(&output, 125, &["the site's store has no mine", "hpcrun pull --site mine"]);
    let said = stderr(&as_root(&["tag", "--site", &digest(&small("two")), "theirs"]));
    assert!(said.contains("the site's store has no sha256:") && !said.contains("pull --site"), "{said}");
}

/// Whoever has no store of images agrees all the same, since the site may move its tags at any time.
#[test]
fn ranks_agree_on_an_image_of_the_site() {
    let world = with_site(small("one"));
    let name = world.name();
    pull_for_all(&world);
    let [one, two] = ["one", "two"].map(|of| digest(&small(of)).replace(':', "-"));
    assert_eq!(planned(&world, "0", &name), one);
    world.serve(small("two"));
    pull_for_all(&world);
    assert_eq!((planned(&world, "0", &name), planned(&world, "1", &name)), (one, two.clone()));
    world.policy(&format!("[store]\nsite_dir = '{}'\nallow_user = false\n", world.at("site").display()));
    assert_eq!((planned(&world, "2", &name), planned(&world, "2", &name)), (two.clone(), two));
    assert_eq!(names_in(&world.store().join("steps")).len(), 3);
}

#[test]
fn a_site_store_that_others_can_write_is_not_used() {
    let world = with_site(small("one"));
    let name = world.name();
    pull_for_all(&world);
    let site = world.at("site");
    let tag = site.join("tags").join(name.replace('/', "+"));
    let image = site.join("images").join(&names_in(&site.join("images"))[0]);
    let refused = |why: &[&str]| {
        let output = run(&mut world.hpcrun(&["inspect", &name]));
        assert_fails(&output, 125, why);
    };
    for (path, good, bad) in [
        (&site, 0o755, 0o775),
        (&site, 0o755, 0o757),
        (&site, 0o755, 0o1777),
        (&site.join("tags"), 0o755, 0o777),
        (&site.join("images"), 0o755, 0o777),
        (&tag, 0o644, 0o666),
        (&image, 0o644, 0o664),
        (&world.dir.path().to_owned(), 0o755, 0o777),
    ] {
        chmod(path, bad);
        // A policy that others could exchange stops everything anyway.
        let is_root_of_all = path == world.dir.path();
        refused(if is_root_of_all { &["others"] } else { &["is not used", "others can write to it"] });
        chmod(path, good);
        world.ok(&["inspect", &name]);
    }
    for path in [&site, &site.join("tags"), &tag, &image] {
        support::stdout(Command::new("chown").arg("12345").arg(path));
        refused(&["the owner is user 12345"]);
        support::stdout(Command::new("chown").arg("0").arg(path));
    }
    world.ok(&["inspect", &name]);
    // A directory above it, through which all of it could be exchanged.
    let above = world.at("above");
    fs::create_dir(&above).unwrap();
    fs::rename(&site, above.join("site")).unwrap();
    world.policy(&format!("[store]\nsite_dir = '{}/site'\n", above.display()));
    world.ok(&["inspect", &name]);
    chmod(&above, 0o777);
    refused(&["a directory above it", "others can write to it"]);
    chmod(&above, 0o1777);
    world.ok(&["inspect", &name]);
}

#[test]
fn a_store_of_keepers_whom_the_policy_names() {
    let world = World::new(small("one"));
    let site = world.at("site");
    support::stdout(Command::new("install").args(["-d", "-m", "755", "-o", "daemon"]).arg(&site));
    let policy = format!("[store]\nsite_dir = '{}'\n", site.display());
    world.policy(&policy);
    let name = world.name();
    let as_keeper = |args: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "daemon", "--regid", "daemon", "--clear-groups", "--"]);
        world.prepare(command.arg(support::binary()).args(args));
        run(&mut command)
    };
    assert_fails(&as_keeper(&["pull", "--site", &name]), 125, &["the owner is user 1"]);
    world.policy(&format!("{policy}[images]\nowners = ['root', 'daemon']\n"));
    let output = as_keeper(&["pull", "--site", &name]);
    assert!(output.status.success(), "{}", stderr(&output));
    world.ok(&["inspect", &name]);
    world.policy(&format!("{policy}[images]\nowners = ['root', 'self']\n"));
    assert_fails(&as_keeper(&["inspect", &name]), 125, &["the owner is user 1"]);
}

/// What lies in the place of a tag or an image: nothing of it is followed, waited for or believed.
#[test]
fn what_is_planted_in_a_store() {
    let world = World::new(small("one"));
    let name = world.name();
    world.ok(&["pull", &name]);
    world.ok(&["tag", &name, "good"]);
    let (tags, images) = (world.store().join("tags"), world.store().join("images"));
    let tag = tags.join(name.replace('/', "+"));
    let good = fs::read(&tag).unwrap();
    let secret = world.at("secret");
    fs::write(&secret, &good).unwrap();
    let plant = |how: &dyn Fn()| {
        let _ = fs::remove_file(&tag);
        how();
        let output = run(as_user("timeout").args(["20", "true"]));
        assert!(output.status.success());
        let output = run(&mut world.hpcrun(&["inspect", &name]));
        let listed = run(&mut world.hpcrun(&["images"]));
        assert!(listed.status.success(), "{}", stderr(&listed));
        assert!(stderr(&listed).contains("tags/"), "a warning names the file: {}", stderr(&listed));
        assert!(text(&listed.stdout).contains("localhost/good"), "the others are listed");
        // What cannot be read might name any image, so nothing is collected.
        world.age_images();
        let collected = run(&mut world.hpcrun(&["gc"]));
        assert_eq!(collected.status.code(), Some(125));
        assert_eq!(world.images().len(), 1);
        output
    };
    let is_no_file = ["is no file that can be read"];
    assert_fails(&plant(&|| symlink(&secret, &tag).unwrap()), 125, &is_no_file);
    assert_fails(&plant(&|| symlink("/nowhere", &tag).unwrap()), 125, &is_no_file);
    let fifo = || drop(support::stdout(as_user("mkfifo").arg(&tag)));
    assert_fails(&plant(&fifo), 125, &is_no_file);
    assert_fails(&plant(&|| fs::create_dir(&tag).unwrap()), 125, &is_no_file);
    fs::remove_dir(&tag).unwrap();
    let foreign = || {
        fs::write(&tag, &good).unwrap();
        support::stdout(Command::new("chown").arg("12345").arg(&tag));
    };
    assert_fails(&plant(&foreign), 125, &["the owner is user 12345"]);
    for content in [&b""[..], b"nonsense", &good[..good.len() - 1], &[0xff; 100], &vec![b'x'; 200_000]] {
        assert_fails(&plant(&|| fs::write(&tag, content).unwrap()), 125, &["is damaged"]);
    }
    // A tag under another's name is no tag of that name.
    let other = tags.join("docker.io+library+other:latest");
    fs::write(&other, &good).unwrap();
    fs::write(&tag, &good).unwrap();
    assert_fails(&run(&mut world.hpcrun(&["inspect", "other"])), 125, &["is damaged"]);
    fs::remove_file(&other).unwrap();
    // Pulling again mends it.
    fs::write(&tag, "nonsense").unwrap();
    world.ok(&["pull", &name]);
    world.ok(&["inspect", &name]);

    let image = world.only_image();
    let kept = world.at("home/kept.sqsh");
    fs::rename(&image, &kept).unwrap();
    symlink(&kept, &image).unwrap();
    assert_fails(&run(&mut world.hpcrun(&["inspect", &name])), 125, &is_no_file);
    fs::remove_file(&image).unwrap();
    fs::rename(&kept, &image).unwrap();
    chmod(&image, 0o646);
    assert_fails(&run(&mut world.hpcrun(&["inspect", &name])), 125, &["others can write to it"]);
    chmod(&image, 0o644);
    // Nor is a directory followed elsewhere.
    fs::rename(&images, world.at("home/images")).unwrap();
    symlink(world.at("home/images"), &images).unwrap();
    let output = run(&mut world.hpcrun(&["inspect", &name]));
    assert_eq!(output.status.code(), Some(125), "{}", stderr(&output));
    // Strange names lie about and nobody minds.
    fs::remove_file(&images).unwrap();
    fs::rename(world.at("home/images"), &images).unwrap();
    use std::os::unix::ffi::OsStrExt;
    for strange in [&b"\xff\xfe"[..], b"new\nline", b"sha256-x.sqsh", b"-rf", b" "] {
        fs::write(images.join(std::ffi::OsStr::from_bytes(strange)), "").unwrap();
    }
    let listed = world.ok(&["images"]);
    assert!(listed.contains(&digest(&small("one"))[..19]) && !listed.contains("-rf"), "{listed}");
    world.age_images_of_keys();
    world.ok(&["gc", "-q", "--grace", "0"]);
    assert_eq!(names_in(&images).len(), 6, "strangers stay");
}

impl World {
    /// Ages the image files and leaves what has other names.
    fn age_images_of_keys(&self) {
        for name in self.images().iter().filter(|name| name.starts_with("sha256-") && name.len() > 80) {
            let path = self.store().join("images").join(name);
            support::stdout(Command::new("touch").args(["-d", "1 hour ago"]).arg(path));
        }
    }
}
