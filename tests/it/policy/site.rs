//! Policies of root's at work: through the binary, as the ordinary user.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::busybox_image::{archive, assert_fails, copy_in, image};
use crate::support::{TEST_USER, as_user, binary, hpcrun, is_root, run, stdout, text};

/// A directory of root's with a policy in it, which `HPCRUN_POLICY` names.
pub(super) struct Site(tempfile::TempDir);

impl Site {
    pub(super) fn new(policy: &str) -> Site {
        assert!(is_root(), "a policy file is root's: these tests want root");
        let dir = tempfile::Builder::new().prefix("hpcrun-site-").tempdir_in("/tmp").unwrap();
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let site = Site(dir);
        site.write("policy.toml", policy);
        site
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file of root's, in a directory of root's.
    pub(super) fn write(&self, name: &str, text: &str) {
        let path = self.path().join(name);
        let parent = path.parent().unwrap();
        fs::create_dir_all(parent).unwrap();
        fs::set_permissions(parent, PermissionsExt::from_mode(0o755)).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    }

    fn hpcrun(&self, args: &[&str]) -> Command {
        let mut command = hpcrun(args);
        command.env("HPCRUN_POLICY", self.path().join("policy.toml"));
        command
    }

    fn exec_image<S: AsRef<OsStr>>(
        &self,
        image: &Path,
        options: impl IntoIterator<Item = S>,
        command: &[&str],
    ) -> Command {
        let mut exec = self.hpcrun(&["exec"]);
        exec.args(options).arg(image).args(command);
        exec
    }

    /// `hpcrun exec OPTIONS IMAGE COMMAND` under this policy.
    pub(super) fn exec<S: AsRef<OsStr>>(
        &self,
        options: impl IntoIterator<Item = S>,
        command: &[&str],
    ) -> Command {
        self.exec_image(image(), options, command)
    }

    /// The launch must be refused by the rule on `line`.
    #[track_caller]
    fn refuses(&self, options: &[&str], line: usize, words: &[&str]) {
        let place = format!("policy.toml:{line} ");
        let mut expected = vec!["refused by site policy", place.as_str()];
        expected.extend(words);
        assert_fails(&run(&mut self.exec(options, &["true"])), 122, &expected);
    }
}

#[test]
fn owners_of_image_files() {
    let site = Site::new("[images]\nowners = [\"root\"]\n");
    let own = copy_in(site.path());
    fs::set_permissions(&own, PermissionsExt::from_mode(0o644)).unwrap();
    chown(&own, Some(0), Some(0)).unwrap();
    stdout(&mut site.exec_image(&own, ["--no-home"], &["true"]));
    let user = nix::unistd::User::from_name(TEST_USER).unwrap().unwrap().uid.as_raw();
    chown(&own, Some(user), None).unwrap();
    let refused = run(&mut site.exec_image(&own, ["--no-home"], &["true"]));
    assert_fails(&refused, 122, &[&format!("uid {user}"), "policy.toml:2", "allowed owners: root"]);
    for (owners, allowed) in [
        (format!("{user}"), true),
        ("\"self\"".to_owned(), true),
        (format!("\"{TEST_USER}\""), true),
        ("\"daemon\"".to_owned(), false),
        (String::new(), false),
    ] {
        site.write("policy.toml", &format!("[images]\nowners = [{owners}]\n"));
        let output = run(&mut site.exec_image(&own, ["--no-home"], &["true"]));
        let status = if allowed { 0 } else { 122 };
        assert_eq!(output.status.code(), Some(status), "{owners}: {}", text(&output.stderr));
    }
    // An image that is only data is judged as well.
    site.write("policy.toml", "[images]\nowners = [\"root\"]\n");
    let roots = site.path().join("roots.sqsh");
    fs::copy(&own, &roots).unwrap();
    let bind = format!("{}:/data2:image", own.display());
    let refused = run(&mut site.exec_image(&roots, ["--bind", &bind], &["true"]));
    assert_fails(&refused, 122, &["own.sqsh", "policy.toml:2"]);
}

#[test]
fn formats_digests_and_signatures() {
    let site = Site::new("[images]\nformats = [\"sif\", \"squashfs\"]\n");
    site.refuses(&[], 2, &["of the format hpcrun", "allowed formats: sif, squashfs"]);
    site.write("policy.toml", "[images]\nformats = [\"hpcrun\"]\n");
    stdout(&mut site.exec([""; 0], &["true"]));
    // Without its trailer it is anybody's squashfs.
    let inspected = stdout(hpcrun(["inspect", "--json"]).arg(image()));
    let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
    let bare = site.path().join("bare.sqsh");
    let bytes = fs::read(image()).unwrap();
    let used = u64::from_le_bytes(bytes[40..48].try_into().unwrap());
    fs::write(&bare, &bytes[..used as usize]).unwrap();
    let refused = run(&mut site.exec_image(&bare, [""; 0], &["true"]));
    assert_fails(&refused, 122, &["of the format squashfs", "policy.toml:2"]);

    let provenance = &inspected["provenance"];
    for digest in [&provenance["manifest_digest"], &provenance["layers"][0]["diff_id"]] {
        let digest = digest.as_str().unwrap();
        site.write("policy.toml", &format!("[images]\n\ndeny_digests = [\"{digest}\"]\n"));
        site.refuses(&[], 3, &[digest]);
    }
    let other = format!("sha256:{}", "0".repeat(64));
    site.write("policy.toml", &format!("[images]\ndeny_digests = [\"{other}\"]\n"));
    stdout(&mut site.exec([""; 0], &["true"]));

    site.write("signers", "");
    let signers = site.path().join("signers");
    site.write("policy.toml", &format!("[images]\nrequire_signature = true\nsigners = {signers:?}\n"));
    site.refuses(&[], 2, &["which is not signed", "hpcrun sign --key"]);
    site.write("policy.toml", "[images]\nrequire_signature = false\n");
    stdout(&mut site.exec([""; 0], &["true"]));
}

/// What the host says of the user, in every key that takes variables, the same as in a bind.
#[test]
fn one_meaning_of_the_variables_in_all_keys() {
    let site = Site::new("");
    let base = site.path().join("base");
    fs::create_dir(&base).unwrap();
    fs::set_permissions(&base, PermissionsExt::from_mode(0o1777)).unwrap();
    let of_user = |what: &str| stdout(Command::new("id").args([what, TEST_USER])).trim().to_owned();
    let hostname = stdout(&mut Command::new("hostname")).trim().to_owned();
    let home = stdout(Command::new("getent").args(["passwd", TEST_USER]));
    let home = home.trim().split(':').nth(5).unwrap();
    let written = "$USER,$UID,$GROUP,${GID},$HOSTNAME,x$HOME";
    let flat = format!("{TEST_USER},{},{},{},{hostname},x", of_user("-u"), of_user("-gn"), of_user("-g"));
    let made = base.join(format!("{flat}{home}"));
    let base = base.display();
    fs::create_dir_all(&made).unwrap();
    site.write(
        "policy.toml",
        &format!(
            "[binds]\nforced = [\"{base}/{written}:/mnt\"]\n[env]\nset = {{ SHOWN = \"{written}\" }}\n\
             [store]\nuser_dir = \"{base}/{written}\"\n[convert]\nlayer_cache = \"{base}/{written}/layers\"\n\
             [log]\nlaunches = \"file\"\nfile = \"{base}/$USER-$UID-$GROUP-$GID-$HOSTNAME\"\n"
        ),
    );
    let made = made.display().to_string();
    // What the user says of himself counts for nothing.
    let lied = |command: &mut Command| {
        for name in ["USER", "UID", "GROUP", "GID", "HOSTNAME", "HOME"] {
            command.env(name, "lie");
        }
        run(command)
    };
    let output =
        lied(&mut site.exec([""; 0], &["sh", "-c", "echo $SHOWN; grep ' /mnt ' /proc/self/mountinfo"]));
    let (said, told) = (text(&output.stdout), text(&output.stderr));
    assert!(said.starts_with(&format!("{flat}{home}\n")) && said.contains(&made), "{said}{told}");
    let log = format!("{base}/{TEST_USER}-{}-{}-{}-{hostname}", of_user("-u"), of_user("-gn"), of_user("-g"));
    assert!(Path::new(&log).is_file(), "{log}");
    let version = lied(&mut site.hpcrun(&["--version", "-v"]));
    assert!(text(&version.stdout).lines().any(|line| line.ends_with(&made)), "{}", text(&version.stdout));
    let missing = lied(&mut site.hpcrun(&["exec", "no-such-name", "true"]));
    assert_fails(&missing, 125, &[&format!("{made} (yours)")]);
    chown(&made, of_user("-u").parse().ok(), None).unwrap();
    let source = format!("docker-archive:{}", archive().display());
    let out = format!("{base}/out.sqsh");
    let output = lied(&mut site.hpcrun(&["convert", &source, &out]));
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(Path::new(&made).join("layers").is_dir(), "{}", text(&output.stderr));
}

#[test]
fn what_users_may_switch_off() {
    let cases: &[(&str, &[&str])] = &[
        ("allow_pid", &["--pid"]),
        ("allow_pid", &["--containall"]),
        ("allow_ipc", &["--ipc"]),
        ("allow_ipc", &["--containall"]),
        ("allow_contain", &["--contain"]),
        ("allow_contain", &["--containall"]),
        ("allow_no_home", &["--no-home"]),
        ("allow_no_home", &["--no-mount", "home"]),
        ("allow_no_home", &["--home", "/tmp"]),
        ("allow_no_binds", &["--no-mount", "bind-paths"]),
        ("allow_no_binds", &["--no-mount", "/usr/share"]),
        ("allow_fakeroot", &["--fakeroot"]),
        ("allow_writable_tmpfs", &["--writable-tmpfs"]),
    ];
    let site = Site::new("");
    for (key, options) in cases {
        let policy = |value| format!("[binds]\noptional = [\"/usr/share\"]\n[launch]\n{key} = {value}\n");
        site.write("policy.toml", &policy("false"));
        site.refuses(options, 4, &[key]);
        // Nothing else is refused by it.
        stdout(&mut site.exec([""; 0], &["true"]));
        site.write("policy.toml", &policy("true"));
        stdout(&mut site.exec(options.iter().chain(&["--explain"]), &["true"]));
    }
}

#[test]
fn binds_for_some_images_and_nodes() {
    let site = Site::new("");
    let host = stdout(Command::new("uname").arg("-n")).trim().to_owned();
    let path = fs::canonicalize(image()).unwrap();
    for (limit, bound) in [
        (format!("when = \"{}\"", path.display()), true),
        (format!("when = \"{}/*\"", path.parent().unwrap().display()), true),
        ("when = \"/nowhere/*\"".to_owned(), false),
        ("when = \"/nowhere/*, *.sqsh\"".to_owned(), false),
        (format!("hosts = \"{host}\""), true),
        ("hosts = \"no-such-node,other?\"".to_owned(), false),
        (format!("hosts = \"{host}\", when = \"/nowhere\""), false),
    ] {
        let list = format!("[{{ source = \"/usr/share\", destination = \"/shared\", {limit} }}]");
        for key in ["forced", "optional"] {
            site.write("policy.toml", &format!("[binds]\n{key} = {list}\n"));
            let shown = run(&mut site.exec([""; 0], &["ls", "-d", "/shared"]));
            assert_eq!(shown.status.success(), bound, "{key} {limit}: {}", text(&shown.stderr));
            let plan = stdout(&mut site.exec(["--explain"], &["true"]));
            assert_eq!(plan.contains("left out: it is for other"), !bound, "{plan}");
        }
    }
}

const MODULES: &str = "[modules.tools]\nbinds = [\"/usr/share:/tools:ro\"]\ndevices = [\"/dev/fus?\"]\n\
    env.set = { TOOLS = \"/tools\" }\nenv.prepend = { PATH = \"/tools/bin\" }\nenv.unset = [\"OLD_*\"]\n\
    [modules.here]\nmode = \"auto\"\nmatch = { host = \"*\" }\nenv.set = { HERE = \"1\" }\n\
    [modules.away]\nmode = \"auto\"\nmatch = { image = \"/nowhere/*\" }\nenv.set = { AWAY = \"1\" }\n\
    [modules.off]\nmode = \"never\"\n\
    [modules.lib]\nmode = \"auto\"\nmatch = { soname = \"libnone.so.9\" }\nenv.set = { LIB = \"1\" }\n";

#[test]
fn modules_on_request_automatic_and_never() {
    let site = Site::new(MODULES);
    let env = stdout(site.exec([""; 0], &["env"]).env("OLD_ONE", "1"));
    assert!(env.contains("HERE=1\n") && env.contains("OLD_ONE=1\n"), "{env}");
    for absent in ["TOOLS=", "AWAY=", "LIB="] {
        assert!(!env.contains(absent), "{absent} {env}");
    }
    let env = stdout(site.exec(["--module", "tools"], &["env"]).env("OLD_ONE", "1"));
    assert!(env.contains("TOOLS=/tools\n") && env.contains("PATH=/tools/bin:"), "{env}");
    assert!(!env.contains("OLD_ONE"), "{env}");
    stdout(&mut site.exec(["--module=tools,here"], &["ls", "-d", "/tools"]));
    // A contained job has its devices and binds, too, and a user's word is stronger than a module's.
    let contained = ["--contain", "--module", "tools", "--env", "TOOLS=mine"];
    let script = "test -c /dev/fuse && test -d /tools && ! test -e /dev/kmsg && echo $TOOLS";
    assert_eq!(stdout(&mut site.exec(contained, &["sh", "-c", script])), "mine\n");
    stdout(&mut site.exec(["--contain"], &["sh", "-c", "! test -e /dev/fuse"]));
    let by_variable = stdout(site.exec([""; 0], &["env"]).env("HPCRUN_MODULE", "tools"));
    assert!(by_variable.contains("TOOLS=/tools\n"), "{by_variable}");
    // What a module binds cannot be covered.
    assert_fails(
        &run(&mut site.exec(["--module", "tools", "--bind", "/etc:/tools"], &["true"])),
        122,
        &["would cover /tools", "policy.toml:2"],
    );
    assert_fails(
        &run(&mut site.exec(["--module", "none"], &["true"])),
        122,
        &["which this site does not have", "policy.toml [modules])", "modules: tools, here, away, lib"],
    );
    site.refuses(&["--module", "off"], 16, &["which is switched off"]);
    site.refuses(&["--module", "away"], 13, &["which is for other images"]);
    site.refuses(&["--module", "lib"], 19, &["whose library the image does not have"]);
    let plan = stdout(&mut site.exec(["--explain", "--module", "tools"], &["true"]));
    let line = |words: &[&str]| plan.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(line(&["policy", "module tools (--module)", "policy.toml:1"]), "{plan}");
    assert!(line(&["policy", "module here (matches)", "policy.toml:7"]), "{plan}");
    assert!(line(&["/usr/share -> /tools ro", "policy.toml:2"]), "{plan}");
}

#[test]
fn modules_match_an_image_by_its_digest() {
    let inspected = stdout(hpcrun(["inspect", "--json"]).arg(image()));
    let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
    let digest = inspected["provenance"]["manifest_digest"].as_str().unwrap();
    let rule = |image: &str| {
        format!(
            "[modules.m]\nmode = \"auto\"\nmatch = {{ image = \"{image}\" }}\nenv.set = {{ MATCHED = \"1\" }}\n"
        )
    };
    for (image, matches) in [(digest, true), (&digest[..20], false), (&format!("{}*", &digest[..20]), true)] {
        let site = Site::new(&rule(image));
        let env = stdout(&mut site.exec([""; 0], &["env"]));
        assert_eq!(env.contains("MATCHED=1\n"), matches, "{image}: {env}");
    }
}

#[test]
fn drop_ins_add_up_in_the_order_of_their_names() {
    let site = Site::new("[binds]\nallowed = [\"/usr\"]\n");
    site.refuses(&["--bind", "/etc:/x"], 2, &[]);
    site.write("policy.d/20-more.toml", "[binds]\nallowed = [\"/etc\"]\nforced = [\"/usr/share:/second\"]\n");
    site.write(
        "policy.d/10-first.toml",
        "[binds]\nforced = [\"/usr/lib:/first\"]\n[launch]\nallow_pid = false\n",
    );
    site.write("policy.d/.hidden.toml", "nonsense\n");
    site.write("policy.d/notes.txt", "nonsense\n");
    let plan = stdout(&mut site.exec(["--explain", "--bind", "/etc:/x"], &["true"]));
    for (bind, place) in
        [("-> /first", "policy.d/10-first.toml:2"), ("-> /second", "policy.d/20-more.toml:3")]
    {
        assert!(plan.lines().any(|line| line.contains(bind) && line.ends_with(place)), "{plan}");
    }
    let refused = run(&mut site.exec(["--pid"], &["true"]));
    assert_fails(&refused, 122, &["policy.d/10-first.toml:4 [launch] allow_pid"]);
    // A value that is set twice decides nothing.
    site.write("policy.d/30-again.toml", "[launch]\nallow_pid = true\n");
    let refused = run(&mut site.exec([""; 0], &["true"]));
    assert_fails(
        &refused,
        125,
        &["policy.d/30-again.toml:2:13: launch.allow_pid is set already, ", "policy.d/10-first.toml:4"],
    );
    fs::remove_file(site.path().join("policy.d/30-again.toml")).unwrap();
    // A drop-in is trusted as the main file is.
    let drop_in = site.path().join("policy.d/10-first.toml");
    fs::set_permissions(&drop_in, PermissionsExt::from_mode(0o666)).unwrap();
    assert_fails(
        &run(&mut site.exec([""; 0], &["true"])),
        125,
        &["10-first.toml", "can be written by others"],
    );
    fs::set_permissions(&drop_in, PermissionsExt::from_mode(0o600)).unwrap();
    assert_fails(
        &run(&mut site.exec([""; 0], &["true"])),
        125,
        &["cannot read site policy", "10-first.toml"],
    );
    fs::set_permissions(&drop_in, PermissionsExt::from_mode(0o644)).unwrap();
    fs::set_permissions(site.path().join("policy.d"), PermissionsExt::from_mode(0o777)).unwrap();
    assert_fails(&run(&mut site.exec([""; 0], &["true"])), 125, &["policy.d", "can be written by others"]);
}

#[test]
fn a_check_tells_everything_that_is_wrong() {
    let site = Site::new("[binds]\nalowed = []\n\n[launch]\n\tshare = \"steps\"\n");
    site.write("policy.d/10.toml", "[home]\nbind = true\nbind = false\n");
    site.write("policy.d/20.toml", "[home]\nread_only = 1\n");
    let file = site.path().join("policy.toml");
    // A draft is anybody's.
    let user = nix::unistd::User::from_name(TEST_USER).unwrap().unwrap().uid.as_raw();
    chown(&file, Some(user), None).unwrap();
    let output = run(hpcrun(["policy", "check"]).arg(&file));
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let t = site.path().display();
    let expected = format!(
        "{t}/policy.toml:2:1: unknown key \"alowed\" in [binds]\n    alowed = []\n    ^\n    hint: did you mean \"allowed\"?\n\
         {t}/policy.toml:5:10: launch.share: \"steps\" is none of step, job, none\n     share = \"steps\"\n             ^\n\
         \x20   hint: did you mean \"step\"?\n\
         {t}/policy.d/10.toml:3:1: duplicate key\n    bind = false\n    ^\n\
         {t}/policy.d/20.toml:2:13: home.read_only wants true or false, not an integer\n    read_only = 1\n                ^\n"
    );
    assert_eq!(text(&output.stdout), expected);
    site.write("policy.toml", "");
    fs::remove_dir_all(site.path().join("policy.d")).unwrap();
    assert_eq!(stdout(hpcrun(["policy", "check"]).arg(&file)), format!("{}: valid\n", file.display()));
    let missing = run(&mut hpcrun(["policy", "check", "/no/such.toml"]));
    assert_fails(&missing, 125, &["cannot read site policy /no/such.toml"]);
}

#[test]
fn the_effective_policy_is_shown_with_its_origins() {
    let site = Site::new("[binds]\nallowed = [\"/usr\"]\n[modules.m]\nenv.set = { A = \"1\" }\n");
    site.write("policy.d/10.toml", "[binds]\nallowed = [\"/etc\"]\n[launch]\nallow_pid = false\n");
    let file = site.path().join("policy.toml");
    let shown = stdout(hpcrun(["policy", "show", "--effective"]).arg(&file));
    let t = site.path().display();
    for line in [
        format!("    \"/usr\",  # {t}/policy.toml:2"),
        format!("    \"/etc\",  # {t}/policy.d/10.toml:2"),
        format!("allow_pid = false  # {t}/policy.d/10.toml:4"),
        format!("env.set.A = \"1\"  # {t}/policy.toml:4"),
        "# allow_ipc = true".to_owned(),
    ] {
        assert!(shown.lines().any(|other| other == line), "{line}\n{shown}");
    }
    let again = site.path().join("shown.toml");
    fs::write(&again, &shown).unwrap();
    stdout(hpcrun(["policy", "check"]).arg(&again));
}

#[test]
fn a_launch_is_explained_by_its_rules() {
    let site =
        Site::new("[images]\ndirectories = [\"/\"]\nformats = [\"hpcrun\"]\n[binds]\nallowed = [\"/usr\"]\n");
    let image = image().display().to_string();
    let plan = stdout(&mut site.hpcrun(&["policy", "explain", &image, "--", "--bind", "/usr:/x"]));
    for (what, line) in [("image lies where it may", 2), ("image format hpcrun", 3)] {
        let place = format!("policy.toml:{line}");
        assert!(plan.lines().any(|text| text.contains(what) && text.ends_with(&place)), "{plan}");
    }
    let refused = run(&mut site.hpcrun(&["policy", "explain", &image, "--", "--bind", "/etc:/x"]));
    assert_fails(&refused, 122, &["bind of /etc", "policy.toml:5"]);
}

/// `script` as root in a mount namespace where /etc/hpcrun/policy.toml is `policy`.
fn with_site_policy(policy: &str, script: &str) -> Command {
    let mut command = Command::new("unshare");
    let prepare = "set -e; mount -t tmpfs none /mnt; mkdir /mnt/u /mnt/w; \
        mount -t overlay none -o lowerdir=/etc,upperdir=/mnt/u,workdir=/mnt/w /etc; \
        mkdir -p -m 755 /etc/hpcrun; printf %s \"$POLICY\" > /etc/hpcrun/policy.toml; \
        chmod 644 /etc/hpcrun/policy.toml; exec setpriv --reuid $NAME --regid $NAME --init-groups -- sh -c \"$SCRIPT\"";
    command.args(["--mount", "sh", "-c", prepare]).env("POLICY", policy).env("SCRIPT", script);
    command.env("NAME", TEST_USER).env("HPCRUN", binary()).env("IMAGE", image()).current_dir("/tmp");
    command
}

#[test]
fn another_policy_holds_only_where_the_sites_own_lets_it() {
    assert!(is_root(), "a policy file is root's: these tests want root");
    let dir = crate::support::scratch();
    let own = dir.path().join("own.toml");
    stdout(as_user("sh").args(["-c", "echo '[env]' > $0; echo 'set = { OWN = \"1\" }' >> $0"]).arg(&own));
    let script = "HPCRUN_POLICY=$OWN $HPCRUN exec $IMAGE env";
    let launch = |policy: &str| run(with_site_policy(policy, script).env("OWN", &own));
    let allowed = launch("[policy]\nallow_user_file = true\n[env]\nset = { SITE = \"1\" }\n");
    assert!(text(&allowed.stdout).contains("OWN=1\n"), "{}", text(&allowed.stderr));
    assert!(!text(&allowed.stdout).contains("SITE=1\n"));
    for policy in
        ["[env]\nset = { SITE = \"1\" }\n", "[policy]\nallow_user_file = false\n[env]\nset.SITE = \"1\"\n"]
    {
        let passed_over = launch(policy);
        let (stdout, stderr) = (text(&passed_over.stdout), text(&passed_over.stderr));
        assert!(stdout.contains("SITE=1\n") && !stdout.contains("OWN=1\n"), "{stdout}{stderr}");
        assert!(stderr.contains("own.toml is passed over"), "{stderr}");
    }
    let broken = run(&mut with_site_policy("[evn]\n", "$HPCRUN exec $IMAGE true"));
    assert_fails(&broken, 125, &["/etc/hpcrun/policy.toml:1:2: unknown section [evn]"]);
    let checked = run(&mut with_site_policy("[evn]\n", "$HPCRUN policy check"));
    assert_eq!(checked.status.code(), Some(1));
    assert!(text(&checked.stdout).starts_with("/etc/hpcrun/policy.toml:1:2: "), "{}", text(&checked.stdout));
}

#[test]
fn where_images_may_not_come_from() {
    let site = Site::new("");
    let dir = crate::support::scratch();
    let dest: PathBuf = dir.path().join("x.sqsh");
    let pull = |reference: &str, conf: Option<&Path>| {
        let mut command = site.hpcrun(&["pull", reference]);
        command.arg(&dest).env("CONTAINERS_REGISTRIES_CONF", conf.unwrap_or(Path::new("/dev/null")));
        run(&mut command)
    };
    let digest = format!("sha256:{}", "a".repeat(64));
    site.write(
        "policy.toml",
        &format!(
            "[images]\nregistries = [\"127.0.0.1:1\"]\ndeny_registries = [\"127.0.0.1:1/bad\"]\ndeny_digests = [\"{digest}\"]\n"
        ),
    );
    assert_fails(
        &pull("docker://127.0.0.2:1/x/y", None),
        122,
        &["127.0.0.2:1", "policy.toml:2 [images] registries"],
    );
    assert_fails(&pull("docker://127.0.0.1:1/bad/y", None), 122, &["policy.toml:3 [images] deny_registries"]);
    let by_digest = format!("docker://127.0.0.1:1/x/y@{digest}");
    assert_fails(&pull(&by_digest, None), 122, &[&digest, "policy.toml:4 [images] deny_digests"]);
    // A user's file leads nowhere that the site's does not allow.
    let conf = site.path().join("registries.conf");
    for detour in [
        "location = \"127.0.0.3:1\"",
        "location = \"127.0.0.1:1\"\n[[registry.mirror]]\nlocation = \"127.0.0.3:1/copy\"",
    ] {
        fs::write(&conf, format!("[[registry]]\nprefix = \"127.0.0.1:1\"\n{detour}\n")).unwrap();
        let refused = pull("docker://127.0.0.1:1/x/y", Some(&conf));
        assert_fails(&refused, 122, &["registry 127.0.0.3:1", "registries.conf:1", "policy.toml:2"]);
    }
}

/// An example, options, a command, the status, and words of the answer.
type Case<'a> = (&'a str, &'a [&'a str], &'a [&'a str], i32, &'a [&'a str]);

/// What each worked example is there for, in launches of the ordinary user.
#[test]
fn the_worked_examples_do_what_they_are_for() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("site-config/examples");
    let home = format!("/home/{TEST_USER}");
    let tmp_image = image().display().to_string();
    let cases: &[Case<'_>] = &[
        ("laptop", &[], &["sh", "-c", "! test -e $HOME/.profile && echo ok"], 0, &["ok"]),
        ("laptop", &["--bind", &home], &["true"], 122, &["which shows", ".ssh", "[binds] denied"]),
        ("laptop", &["--env", "LD_PRELOAD=/x"], &["true"], 122, &["[env] unset"]),
        ("slurm-gpu", &[], &["true"], 122, &["[images] directories", "/project"]),
        ("cray-slingshot", &[], &["true"], 122, &["[images] directories", "/lus"]),
        (
            "air-gapped",
            &[],
            &["true"],
            122,
            &[&tmp_image, "[images] directories", "image directories: /images"],
        ),
        ("teaching-cluster", &[], &["sh", "-c", "test -d /course/share && echo $COURSE"], 0, &["hpc-1"]),
        ("teaching-cluster", &["--pid"], &["true"], 122, &["--pid", "[launch] allow_pid"]),
        ("teaching-cluster", &["--no-home"], &["true"], 122, &["--no-home", "[launch] allow_no_home"]),
        ("teaching-cluster", &["--bind", "/etc:/x"], &["true"], 122, &["bind of /etc", "[binds] allowed"]),
        ("teaching-cluster", &["--bind", "/usr/lib:/course"], &["true"], 122, &["[binds] allowed"]),
        ("teaching-cluster", &["--writable-tmpfs=2147483648"], &["true"], 122, &["[launch] max_tmpfs"]),
    ];
    let mut seen: Vec<&str> = Vec::new();
    for (name, options, command, status, words) in cases {
        seen.push(name);
        let site = Site::new(&fs::read_to_string(examples.join(format!("{name}.toml"))).unwrap());
        let output = run(&mut site.exec(*options, command));
        let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(*status), "{name} {options:?}: {said}");
        for word in *words {
            assert!(said.contains(word), "{name} {options:?}: {word}: {said}");
        }
    }
    for entry in fs::read_dir(examples).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().trim_end_matches(".toml").to_owned();
        assert!(seen.contains(&name.as_str()), "{name} is executed by nothing");
    }
}
