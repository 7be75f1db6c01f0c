//! The image store through the binary: names, tags, collecting, many who pull at once, jobs, what others put there.

mod faults;
mod site;
mod sync;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use hpcrun::image::digest::Digest;
use serde_json::Value;

use crate::busybox_image::{assert_fails, busybox, names_in};
use crate::layer_building::{Member, tar};
use crate::registry::scripted::{Reply, Request, Scripted, honest};
use crate::sources::layout::{Image, Packing};
use crate::support::{self, as_user, run, text};

/// An image with a shell whose `/version` says `version`.
fn image(version: &str) -> Image {
    let mut members = busybox();
    members.extend([
        Member::directory("etc/"),
        Member::file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        Member::file("version", version),
    ]);
    let image = Image::new(architecture(), &[tar(&members)], Packing::Gzip);
    let mut config: Value = serde_json::from_slice(&image.config).unwrap();
    config["config"] = serde_json::json!({"Env": ["PATH=/bin"], "Entrypoint": ["/bin/sh"]});
    config["history"] =
        serde_json::json!([{"created": "2024-01-01T00:00:00Z", "created_by": "COPY version"}]);
    Image::with_config(image.layers, config.to_string().into_bytes())
}

/// A small image that runs nothing.
fn small(version: &str) -> Image {
    Image::new(architecture(), &[tar(&[Member::file("version", version)])], Packing::Gzip)
}

fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

fn digest(image: &Image) -> String {
    Digest::of(&image.manifest).to_string()
}

/// A registry whose image can be exchanged, and a user with a home and nothing else.
struct World {
    dir: tempfile::TempDir,
    registry: Scripted,
    image: Arc<Mutex<Image>>,
}

impl World {
    fn new(image: Image) -> World {
        World::slow(image, Duration::ZERO)
    }

    /// The registry takes its time for each layer.
    fn slow(image: Image, pause: Duration) -> World {
        World::scripted(image, move |image, request| {
            let reply = honest(image, request);
            let is_layer = request.target.ends_with(Digest::of(&image.layers[0].blob).as_str());
            if is_layer && request.method == "GET" { reply.stall(0, pause) } else { reply }
        })
    }

    fn scripted(image: Image, script: impl Fn(&Image, &Request) -> Reply + Send + Sync + 'static) -> World {
        // Only root can write there, as a site's policy and store need it.
        let dir = tempfile::Builder::new().prefix("hpcrun-test-").tempdir_in("/tmp").unwrap();
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let home = dir.path().join("home");
        support::stdout(
            Command::new("install").args(["-d", "-m", "755", "-o", support::TEST_USER]).arg(&home),
        );
        fs::write(dir.path().join("empty.conf"), "").unwrap();
        fs::write(dir.path().join("policy.toml"), "").unwrap();
        let image = Arc::new(Mutex::new(image));
        let served = Arc::clone(&image);
        let registry = Scripted::start(move |request, _| {
            let image = served.lock().unwrap().clone();
            script(&image, request)
        });
        World { dir, registry, image }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The user's store.
    fn store(&self) -> PathBuf {
        self.at("home/.local/share/hpcrun")
    }

    fn serve(&self, image: Image) {
        *self.image.lock().unwrap() = image;
    }

    fn policy(&self, text: &str) {
        fs::write(self.at("policy.toml"), text).unwrap();
    }

    /// `127.0.0.1:PORT/app:1`
    fn name(&self) -> String {
        format!("{}/app:1", self.registry.address)
    }

    fn layers_fetched(&self) -> usize {
        let blob = Digest::of(&self.image.lock().unwrap().layers[0].blob).to_string();
        self.registry.log.count_of("GET", &blob)
    }

    fn prepare(&self, command: &mut Command) {
        for name in ["XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "HPCRUN_STORE"] {
            command.env_remove(name);
        }
        command
            .env("HOME", self.at("home"))
            .env("CONTAINERS_REGISTRIES_CONF", self.at("empty.conf"))
            .env("HPCRUN_POLICY", self.at("policy.toml"))
            .current_dir(self.at("home"))
            .stdin(Stdio::null());
    }

    fn hpcrun(&self, args: &[&str]) -> Command {
        let mut command = as_user(support::binary());
        self.prepare(command.args(args));
        command
    }

    /// The same as root.
    fn root(&self, args: &[&str]) -> Command {
        assert!(support::is_root(), "only root has a site's store");
        let mut command = Command::new(support::binary());
        self.prepare(command.args(args));
        command
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        support::stdout(&mut self.hpcrun(args))
    }

    #[track_caller]
    fn fails(&self, args: &[&str], status: i32, expected: &[&str]) -> String {
        assert_fails(&run(&mut self.hpcrun(args)), status, expected)
    }

    /// What `/version` says in the image that `word` means.
    #[track_caller]
    fn version(&self, word: &str) -> String {
        self.ok(&["exec", word, "cat", "/version"])
    }

    fn images(&self) -> Vec<String> {
        names_in(&self.store().join("images"))
    }

    fn trash(&self) -> Vec<String> {
        names_in(&self.store().join("trash"))
    }

    /// The user's only image file.
    #[track_caller]
    fn only_image(&self) -> PathBuf {
        let [name] = &self.images()[..] else { panic!("{:?}", self.images()) };
        self.store().join("images").join(name)
    }

    /// Makes all images older than what is about to get its tag.
    fn age_images(&self) {
        for name in self.images() {
            let path = self.store().join("images").join(name);
            support::stdout(Command::new("touch").args(["-d", "1 hour ago"]).arg(path));
        }
    }
}

fn stderr(output: &Output) -> String {
    text(&output.stderr)
}

#[test]
fn every_verb_takes_the_name_of_a_pulled_image() {
    let image = image("one");
    let world = World::new(image.clone());
    let name = world.name();
    let digest = digest(&image);
    let said = run(&mut world.hpcrun(&["pull", &name]));
    assert!(
        said.status.success() && stderr(&said).contains(&format!("{name}: sha256:")),
        "{}",
        stderr(&said)
    );
    assert_eq!(world.images().len(), 1);
    assert!(names_in(&world.at("home")).iter().all(|name| name == ".local"), "nothing in the directory");
    let mode = fs::metadata(world.store()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o700);

    let asked = world.registry.log.seen().len();
    for word in [&name, &format!("docker://{name}"), &digest, &digest[..15]] {
        assert_eq!(world.version(word), "one", "{word}");
    }
    assert_eq!(world.ok(&["run", &name, "-c", "echo ran"]), "ran\n");
    let mut shell = world.hpcrun(&["shell", "--shell", "/bin/true", &name]);
    assert!(run(&mut shell).status.success());
    assert!(world.ok(&["inspect", &name]).contains(&digest));
    world.ok(&["verify", &name]);
    world.ok(&["export", "-o", "out.tar", &name]);
    world.ok(&["trace", &name, "true"]);
    assert!(world.ok(&["inspect", &name]).contains("profile"), "the profile went into the store's file");
    assert_eq!(world.registry.log.seen().len(), asked, "nothing but pull asks the registry");

    let listed = world.ok(&["images"]);
    assert!(
        listed.starts_with("NAME") && listed.contains(&name) && listed.contains(&digest[..19]),
        "{listed}"
    );
    let json: Value = serde_json::from_str(&world.ok(&["images", "--json"])).unwrap();
    assert_eq!(json["images"][0]["digest"], Value::from(digest.as_str()));
    assert_eq!(json["images"][0]["tags"][0], Value::from(name.as_str()));
    assert_eq!(json["images"][0]["store"], "user");
    assert_eq!(json["images"][0]["path"], world.only_image().to_str().unwrap());
    assert!(world.ok(&["history", &name]).contains(&digest));
    assert!(world.ok(&["history", "--layers", &name]).contains("COPY version"));

    let mut job = world.hpcrun(&["exec", &name, "sh", "-c", "echo up; read x"]);
    let mut job = job.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut up = [0; 3];
    std::io::Read::read_exact(job.stdout.as_mut().unwrap(), &mut up).unwrap();
    let shown = world.ok(&["ps"]);
    drop(job.stdin.take());
    job.wait().unwrap();
    assert!(shown.contains(&format!("  {name}  ")), "{shown}");
}

#[test]
fn a_second_pull_fetches_what_changed_only() {
    let world = World::new(small("one"));
    let name = world.name();
    world.ok(&["pull", &name]);
    let said = stderr(&run(&mut world.hpcrun(&["pull", &name])));
    assert!(said.contains("in the store already"), "{said}");
    assert_eq!(world.layers_fetched(), 1);
    let first = world.only_image();
    // Other blocks are another file; the name means that one.
    world.ok(&["pull", "--compression", "lz4", &name]);
    assert_eq!(world.images().len(), 2);
    // A damaged file is replaced where that is asked for.
    fs::write(&first, "damaged").unwrap();
    world.ok(&["pull", "--force", &name]);
    world.ok(&["verify", first.to_str().unwrap()]);

    let old = digest(&small("one"));
    world.serve(small("two"));
    let said = stderr(&run(&mut world.hpcrun(&["pull", &name])));
    assert!(said.contains(&format!("(before: {})", &old[..19])), "{said}");
    let history = world.ok(&["history", &name]);
    let (new, old) = (history.find(&digest(&small("two"))), history.find(&old));
    assert!(new.is_some() && new < old, "newest first: {history}");
    let json: Value = serde_json::from_str(&world.ok(&["history", "--json", &name])).unwrap();
    assert_eq!(json["images"].as_array().unwrap().len(), 4, "{json}");
    // By its digest an image is to be had for good.
    let pinned = format!("{}/app@{}", world.registry.address, digest(&small("two")));
    world.ok(&["pull", &pinned]);
    world.ok(&["inspect", &pinned]);
}

#[test]
fn what_a_word_means() {
    let world = World::new(small("one"));
    let name = world.name();
    world.ok(&["pull", &name]);
    world.ok(&["tag", &name, "app"]);
    assert!(world.ok(&["images"]).contains("localhost/app:latest"));
    let is_stored = |word: &str| world.ok(&["inspect", word]).contains(".local/share/hpcrun");
    assert!(is_stored("app") && is_stored("app:latest") && is_stored("localhost/app"));
    // A directory of that name is no image file.
    fs::create_dir(world.at("home/app")).unwrap();
    assert!(is_stored("app"));
    world.fails(&["inspect", "./app"], 125, &["it is a directory"]);
    fs::remove_dir(world.at("home/app")).unwrap();
    // A file wins, and that is said.
    fs::copy(world.only_image(), world.at("home/app")).unwrap();
    let output = run(&mut world.hpcrun(&["inspect", "app"]));
    assert!(output.status.success() && !text(&output.stdout).contains(".local"), "{}", text(&output.stdout));
    assert!(stderr(&output).contains("app is the file ./app; a store has sha256:"), "{}", stderr(&output));
    let output = run(&mut world.hpcrun(&["inspect", "./app"]));
    assert!(output.status.success() && stderr(&output).is_empty(), "{}", stderr(&output));

    let store = world.store().display().to_string();
    let places =
        format!("looked for localhost/none:latest, docker.io/library/none:latest in {store} (yours)");
    world.fails(
        &["inspect", "none"],
        125,
        &[
            "there is no such file, and no store has it",
            &places,
            "'hpcrun pull none' fetches docker.io/library/none:latest",
        ],
    );
    world.fails(&["exec", "docker://none", "true"], 125, &["no store has it"]);
    // No registry knows a digest alone, nor what was named here.
    for word in ["sha256:00000000", "localhost/none"] {
        let said = world.fails(&["exec", word, "true"], 125, &["no store has it", "'hpcrun images' lists"]);
        assert!(!said.contains("hpcrun pull"), "{said}");
    }
    world.fails(&["exec", "none.sqsh", "true"], 125, &["none.sqsh", "No such file or directory (ENOENT)"]);
    world.fails(&["exec", "none/", "true"], 125, &["(ENOENT)"]);
    for strange in ["a b", "a\n", "\u{e9}", "A", "..", "a:b:c"] {
        world.fails(&["exec", strange, "true"], 125, &["cannot"]);
    }
    world.fails(&["tag", "app", "a b"], 125, &["repository"]);
    world.fails(&["tag", "app", &format!("x@{}", digest(&small("one")))], 125, &["for ever"]);
    world.fails(&["pull", &name, "x.sqsh", "--user"], 125, &["not both"]);
}

#[test]
fn what_nothing_names_goes_after_a_while() {
    let world = World::new(small("one"));
    let name = world.name();
    world.ok(&["pull", &name]);
    world.ok(&["tag", &name, "mine"]);
    let key = world.images();
    world.ok(&["rm", &name]);
    assert_eq!(world.images(), key, "it has another name");
    world.fails(&["rm", &name], 125, &["has no image"]);
    world.fails(&["rm", "x.sqsh"], 125, &["is no name of an image"]);
    let by_digest = digest(&small("one"));
    world.fails(&["rm", &by_digest], 125, &["is held by localhost/mine:latest"]);
    world.ok(&["rm", "mine"]);
    assert_eq!((world.images().len(), world.trash().len()), (0, 1));
    // Fetching it again fetches nothing.
    world.ok(&["pull", &name]);
    assert_eq!((world.images(), world.trash().len(), world.layers_fetched()), (key, 0, 1));

    world.serve(small("two"));
    world.ok(&["pull", &name]);
    assert_eq!(world.ok(&["gc", "-q"]), "", "too young");
    world.age_images();
    let would = world.ok(&["gc", "-q", "--dry-run"]);
    assert!(would.contains(&format!("unused    {by_digest}")), "{would}");
    assert_eq!(world.images().len(), 2, "nothing was done");
    assert_eq!(world.ok(&["gc", "-q"]), would);
    assert_eq!((world.images().len(), world.trash().len()), (1, 1));
    // Its digest still leads nowhere new, and its file is still there for those who have it.
    assert_eq!(world.ok(&["gc", "-q", "--grace", "1h"]), "");
    let output = run(&mut world.hpcrun(&["gc", "--grace", "0"]));
    assert!(text(&output.stdout).starts_with("removed   sha256:") && stderr(&output).starts_with("freed "));
    assert_eq!((world.images().len(), world.trash().len()), (1, 0));
    assert!(world.ok(&["history", &name]).contains("removed"));
    world.ok(&["rm", "--force", &digest(&small("two"))]);
    world.ok(&["gc", "-q", "--grace", "0"]);
    assert_eq!(names_in(&world.store().join("tags")), [""; 0]);
    assert_eq!((world.images().len(), world.trash().len()), (0, 0));
}

#[test]
fn force_takes_the_names_that_mean_an_image_and_no_others() {
    let world = World::new(small("one"));
    let name = world.name();
    let list = world.at("list.toml");
    fs::write(&list, format!("keep = 2\n[[image]]\nfrom = '{name}'\n")).unwrap();
    let list = list.display().to_string();
    world.ok(&["sync", &list]);
    world.ok(&["tag", &name, "first"]);
    world.serve(small("two"));
    world.ok(&["sync", &list]);
    let [one, two] = ["one", "two"].map(|of| digest(&small(of)));
    let holders = format!("is held by localhost/first:latest, {name} (as an earlier image)");
    world.fails(&["rm", &one], 125, &[&holders, "--force"]);
    world.ok(&["rm", "first"]);
    assert_eq!(world.images().len(), 2);
    world.ok(&["rm", "--force", &one]);
    assert_eq!((world.images().len(), world.trash().len()), (1, 1));
    let history = world.ok(&["history", &name]);
    assert!(history.contains(&two) && !history.contains(&one), "{history}");
    world.fails(&["rm", &one], 125, &["has no image sha256:"]);
    world.ok(&["rm", "--force", &two]);
    world.fails(&["history", &name], 125, &["no store has a name"]);
}

#[test]
fn a_running_job_keeps_its_image() {
    let world = World::new(image("one"));
    let name = world.name();
    world.ok(&["pull", &name]);
    let mut job = world.hpcrun(&["exec", &name, "sh", "-c", "echo up; read x; cat /version; ls /bin"]);
    let mut job = job.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut up = [0; 3];
    std::io::Read::read_exact(job.stdout.as_mut().unwrap(), &mut up).unwrap();
    world.ok(&["rm", &name]);
    world.ok(&["gc", "-q", "--grace", "0"]);
    assert_eq!((world.images().len(), world.trash().len()), (0, 0));
    let output = job.wait_with_output().unwrap();
    assert!(output.status.success() && text(&output.stdout).starts_with("one"), "{}", stderr(&output));
}

/// The same command on another node, as far as names tell.
fn on_node(number: u32, command: &Command) -> Command {
    let mut elsewhere = Command::new("unshare");
    elsewhere.args(["--uts", "sh", "-c", "hostname \"$0\" && exec \"$@\"", &format!("node{number}")]);
    elsewhere.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => elsewhere.env(name, value),
            None => elsewhere.env_remove(name),
        };
    }
    elsewhere.current_dir(command.get_current_dir().unwrap());
    elsewhere
}

#[test]
fn twenty_nodes_that_pull_at_once_fetch_one_image() {
    let world = World::slow(small("one"), Duration::from_millis(800));
    let name = world.name();
    let outputs: Vec<Output> = thread::scope(|scope| {
        let pull = |node| run(&mut on_node(node, &world.hpcrun(&["pull", &name])));
        let pulls: Vec<_> = (0..20).map(|node| scope.spawn(move || pull(node))).collect();
        pulls.into_iter().map(|pull| pull.join().unwrap()).collect()
    });
    for output in &outputs {
        assert!(output.status.success(), "{}", stderr(output));
    }
    assert!(world.layers_fetched() <= 2, "{} downloads", world.layers_fetched());
    assert_eq!(world.images().len(), 1, "one file and neither lease nor temporary: {:?}", world.images());
    assert_eq!(names_in(&world.store().join("tags")).len(), 1);
    world.ok(&["verify", &name]);
    assert!(outputs.iter().any(|output| stderr(output).contains("waiting for another hpcrun")));
}

#[test]
fn a_killed_pull_is_taken_over() {
    let world = World::slow(small("one"), Duration::from_millis(1500));
    let name = world.name();
    let mut first = world.hpcrun(&["pull", &name]).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while world.layers_fetched() == 0 {
        assert!(Instant::now() < deadline, "no pull began");
        thread::sleep(Duration::from_millis(10));
    }
    let second = world.hpcrun(&["pull", &name]).stderr(Stdio::piped()).spawn().unwrap();
    thread::sleep(Duration::from_millis(300));
    assert_eq!(world.layers_fetched(), 1, "the second waits");
    // The parent is setpriv, which became hpcrun.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(first.id().cast_signed()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    first.wait().unwrap();
    let output = second.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!((world.layers_fetched(), world.images().len()), (2, 1), "{:?}", world.images());
}

/// What a rank of a Slurm step has.
fn rank(command: &mut Command, step: &str) {
    command.env("SLURM_JOB_ID", "77").env("SLURM_STEP_ID", step).env("SLURM_STEP_NUM_TASKS", "64");
}

/// The image that a rank would run.
fn planned(world: &World, step: &str, name: &str) -> String {
    let mut command = world.hpcrun(&["exec", "--explain", name, "true"]);
    rank(&mut command, step);
    let plan = support::stdout(&mut command);
    let start = plan.find("sha256-").unwrap_or_else(|| panic!("{plan}"));
    plan[start..start + 71].to_owned()
}

#[test]
fn a_tag_means_one_image_to_all_ranks_of_a_step() {
    let world = World::new(small("one"));
    let name = world.name();
    world.ok(&["pull", &name]);
    world.ok(&["tag", &name, "one"]);
    world.serve(small("two"));
    world.ok(&["pull", &name]);
    world.ok(&["tag", &name, "two"]);
    let [one, two] = ["one", "two"].map(|of| digest(&small(of)).replace(':', "-"));
    assert_eq!(planned(&world, "0", &name), two);
    world.ok(&["tag", "one", &name]);
    assert_eq!(planned(&world, "0", &name), two, "the step goes on with what it began with");
    assert_eq!(planned(&world, "1", &name), one, "another step");
    world.ok(&["rm", "two"]);
    assert_eq!(planned(&world, "0", &name), two, "it is in the trash, and still to be had");
    world.ok(&["tag", &digest(&small("one")), "two"]);

    // Ranks start while the tag moves to and fro.
    world.serve(small("two"));
    world.ok(&["pull", &name]);
    world.ok(&["tag", &name, "two"]);
    let stop = std::sync::atomic::AtomicBool::new(false);
    for step in ["2", "3"] {
        let found: Vec<String> = thread::scope(|scope| {
            let mover = scope.spawn(|| {
                let mut moves = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    world.ok(&["tag", if moves % 2 == 0 { "one" } else { "two" }, &name]);
                    moves += 1;
                }
                moves
            });
            let ranks: Vec<_> = (0..24).map(|_| scope.spawn(|| planned(&world, step, &name))).collect();
            let ended: Vec<_> = ranks.into_iter().map(|rank| rank.join()).collect();
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(mover.join().unwrap() > 0);
            ended.into_iter().map(|rank| rank.unwrap()).collect()
        });
        stop.store(false, std::sync::atomic::Ordering::Relaxed);
        assert!(found.iter().all(|image| *image == found[0]), "{found:?}");
    }
}

#[test]
fn ranks_that_cannot_agree_do_not_start() {
    let world = World::new(small("one"));
    let name = world.name();
    world.ok(&["pull", &name]);
    let explained = |word: &str, step: &str| {
        let mut command = world.hpcrun(&["exec", "--explain", word, "true"]);
        rank(&mut command, step);
        run(&mut command)
    };
    assert!(explained(&name, "0").status.success());
    let steps = world.store().join("steps");
    fs::set_permissions(&steps, PermissionsExt::from_mode(0o500)).unwrap();
    let one = digest(&small("one"));
    let told =
        ["the ranks of this job step cannot agree on one image for", "(EACCES)", "HPCRUN_STORE=DIR", &one];
    assert_fails(&explained(&name, "1"), 125, &told);
    // One that cannot write can read, and a digest needs no agreement.
    for (word, step) in [(&name, "0"), (&one, "1"), (&format!("{}/app@{one}", world.registry.address), "1")] {
        let output = explained(word, step);
        assert!(output.status.success(), "{word}: {}", stderr(&output));
    }
    // A single task has nobody to agree with.
    let mut command = world.hpcrun(&["exec", "--explain", &name, "true"]);
    assert!(run(command.env("SLURM_JOB_ID", "77")).status.success());
}

/// Names of steps outside of batch systems come again one day.
#[test]
fn a_step_that_is_called_as_one_before() {
    let world = World::new(small("one"));
    let name = world.name();
    world.ok(&["pull", &name]);
    let planned = || {
        let mut command = world.hpcrun(&["exec", "--explain", &name, "true"]);
        command.env("PMIX_NAMESPACE", "prterun-node-7@1").env("PMIX_RANK", "0");
        support::stdout(&mut command)
    };
    let [one, two] = ["one", "two"].map(|of| digest(&small(of)).replace(':', "-"));
    assert!(planned().contains(&one));
    world.serve(small("two"));
    world.ok(&["pull", &name]);
    assert!(planned().contains(&one));
    let steps = world.store().join("steps");
    let record = steps.join(&names_in(&steps)[0]);
    support::stdout(Command::new("touch").args(["-d", "2 hours ago"]).arg(&record));
    assert!(planned().contains(&two) && planned().contains(&two));
    assert_eq!(names_in(&steps).len(), 2);
}

#[test]
fn a_step_of_many_ranks_pulls_nothing() {
    let world = World::new(small("one"));
    let name = world.name();
    let pull = |args: &[&str]| {
        let mut command = world.hpcrun(&["pull", &name]);
        rank(command.args(args), "0");
        run(&mut command)
    };
    let advice = [
        "refused by site policy: pulling in each of 64 ranks of a job step (",
        "/policy.toml [store] allow_pull_in_jobs)",
        "hint: pull once, before the step",
        "srun hpcrun exec",
    ];
    assert_fails(&pull(&[]), 122, &advice);
    assert_fails(&pull(&["x.sqsh"]), 122, &advice);
    assert_eq!(world.registry.log.seen().len(), 0);
    world.policy("[store]\nallow_pull_in_jobs = true\n");
    assert!(pull(&[]).status.success());
    world.policy("[store]\nallow_pull_in_jobs = false\n");
    assert_fails(&pull(&[]), 122, &["policy.toml:2 [store] allow_pull_in_jobs"]);
    let mut batch = world.hpcrun(&["pull", &name]);
    batch.env("SLURM_JOB_ID", "77").env("SLURM_NTASKS", "64").env("SLURM_PROCID", "0");
    assert!(run(&mut batch).status.success(), "a batch script may");
}

#[test]
fn the_store_is_where_it_is_said_to_be() {
    let world = World::new(small("one"));
    let name = world.name();
    let elsewhere = world.at("home/elsewhere");
    let mut pull = world.hpcrun(&["pull", &name]);
    support::stdout(pull.env("HPCRUN_STORE", &elsewhere));
    assert_eq!(names_in(&elsewhere.join("images")).len(), 1);
    let mut relative = world.hpcrun(&["pull", &name]);
    assert_fails(&run(relative.env("HPCRUN_STORE", "x")), 125, &["not an absolute path"]);
    world.policy(&format!("[store]\nuser_dir = '{}/$USER'\n", world.at("home/site").display()));
    world.ok(&["pull", &name]);
    assert_eq!(names_in(&world.at("home/site").join(support::TEST_USER).join("images")).len(), 1);
    world.policy("[store]\nallow_user = false\n");
    world.fails(&["pull", &name], 122, &["a store of your own", "policy.toml:2"]);
    world.ok(&["pull", &name, "x.sqsh"]);
}

#[test]
fn short_names_of_the_site() {
    let world = World::new(small("one"));
    world.policy(&format!("[store.short_names]\nchem = '{}'\n", world.name()));
    let said = stderr(&run(&mut world.hpcrun(&["-v", "pull", "chem"])));
    assert!(said.contains(&format!("chem is {}", world.name())), "{said}");
    world.only_image();
    world.ok(&["inspect", "chem"]);
    world.ok(&["inspect", "chem:1"]);
    world.fails(&["inspect", "chem:2"], 125, &["/app:2"]);
    world.ok(&["rm", "chem"]);
}
