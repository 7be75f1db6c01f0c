//! Plans with the options that take away from, add to and open up the usual new root.

use super::*;
use hpcrun::launch::request::{Init, Isolation, Joining, LeftOut, OverlayOption};

fn contained() -> Request {
    Request { contain: Some("--contain"), ..exec(&["solve"]) }
}

/// A laptop with the devices of one.
fn with_devices() -> Node {
    let mut node = laptop();
    node.files.extend(["/dev/null", "/dev/zero", "/dev/tty"]);
    node.directories.extend(["/dev/pts", "/work"]);
    node
}

fn option(typed: &str) -> BindOption {
    BindOption::parse(OsStr::new(typed)).expect("a bind")
}

const CONTAINED: &str = r#"image         /images/astro.sqsh  sha256:9f3c  (linux/amd64, zstd, 1.2 GiB)
identity      uid 1000, gid 1000
share         with nobody
 1 squashfs   /images/astro.sqsh -> /                                   # default
 2 tmpfs      -> /dev mode 0755                                         # --contain
 3 bind       /dev/null -> /dev/null rw optional                        # --contain
 4 bind       /dev/pts -> /dev/pts rw optional                          # --contain
 5 tmpfs      -> /dev/shm mode 1777                                     # --contain
 6 bind       /dev/tty -> /dev/tty rw optional                          # --contain
 7 bind       /dev/zero -> /dev/zero rw optional                        # --contain
 8 bind       /etc/hostname -> /etc/hostname rw optional                # default
 9 bind       /etc/hosts -> /etc/hosts rw optional                      # default
10 bind       /run/systemd/resolve/stub-resolv.conf -> /etc/resolv.conf rw optional  # default
11 tmpfs      -> /home/ada mode 0700                                    # --contain
12 proc       -> /proc                                                  # --pid
13 bind       /sys -> /sys rw                                           # default
14 tmpfs      -> /tmp mode 1777                                         # --contain
15 bind       /data -> /tmp/deep/data ro                                # --bind /data:/tmp/deep/data:ro
16 tmpfs      -> /var/tmp mode 1777                                     # --contain
17 pivot_root                                                           # default
"#;

#[test]
fn a_contained_job_sees_nothing_of_the_hosts_directories() {
    let isolation = Isolation { processes: Some(Init::Own), ipc: false };
    let request = Request { isolation, binds: vec![option("/data:/tmp/deep/data:ro")], ..contained() };
    let plan = planned(&with_devices(), &request, &policy(""));
    let text = plan.to_string();
    assert_eq!(
        text.lines().find(|line| line.starts_with("namespace")).map(|l| l.contains("--pid")),
        Some(true)
    );
    let ops: Vec<&str> = text.lines().filter(|line| !line.starts_with("namespace")).take(20).collect();
    check_lines(&ops, CONTAINED);
    assert!(text.contains("cwd           /home/ada, else /opt/astro, else /"), "{text}");
    assert_eq!(plan.share, None);
    let tmp = plan.mount.ops.iter().find_map(|planned| match &planned.op {
        Op::Tmpfs { destination, entries, .. } if destination == Path::new("/tmp") => Some(entries),
        _ => None,
    });
    let entries: Vec<&Path> = tmp.expect("a private /tmp").iter().map(|(path, _)| path.as_path()).collect();
    assert_eq!(entries, [Path::new("deep/data")]);
    assert_eq!(value(&plan, "TMPDIR"), None);
}

#[track_caller]
fn check_lines(found: &[&str], expected: &str) {
    let found = format!("{}\n", found.join("\n"));
    assert!(found == expected, "--- found\n{found}--- expected\n{expected}");
}

#[test]
fn what_the_site_offers_is_left_out_of_a_contained_job_and_what_it_forces_is_not() {
    let text = "[binds]\nforced = [\"/opt/site::ro\"]\noptional = [\"/scratch\"]\n";
    let plan = planned(&laptop(), &contained(), &policy(text));
    let binds = binds(&plan);
    assert!(binds.contains(&"/opt/site -> /opt/site ro".to_owned()), "{binds:?}");
    assert!(!binds.iter().any(|bind| bind.contains("/scratch")), "{binds:?}");
    assert!(plan.about.notes.contains(&"/scratch left out (--contain)".to_owned()), "{:?}", plan.about.notes);
}

#[test]
fn private_directories_can_be_kept_on_the_host() {
    let request = Request { workdir: Some("/work".into()), scratch: vec![scratch("/x/y")], ..contained() };
    let text = planned(&with_devices(), &request, &policy("")).to_string();
    for line in [
        "bind       /work/tmp -> /tmp rw made if missing",
        "bind       /work/var_tmp -> /var/tmp rw made if missing",
        "bind       /work/home -> /home/ada rw made if missing",
        "bind       /work/scratch/x/y -> /x/y rw made if missing",
        "tmpfs      -> /dev/shm mode 1777",
    ] {
        assert!(text.contains(line), "no {line} in\n{text}");
    }
    let idle = Request { workdir: Some("/work".into()), ..exec(&["x"]) };
    let error = check_error(&laptop(), &idle, "", "nothing is kept in --workdir /work");
    assert!(error.hints().join("").contains("--cwd"));
    let denied = "[binds]\ndenied = [\"/work\"]\n";
    assert!(matches!(try_plan(&with_devices(), &request, &policy(denied)), Err(PlanError::Refused(_))));
    let gone = Request { workdir: Some("/none".into()), ..contained() };
    check_error(&laptop(), &gone, "", "cannot bind /none (--workdir /none): it does not exist on laptop");
    let relative = Request { scratch: vec![scratch("x")], ..exec(&["x"]) };
    check_error(&laptop(), &relative, "", "cannot make the scratch directory x: it is not an absolute path");
}

#[test]
fn what_is_there_by_default_can_be_left_out() {
    let left_out = |left_out: LeftOut| {
        let request = Request { left_out: vec![left_out], ..exec(&["x"]) };
        planned(
            &laptop().in_directory("/data/sets"),
            &request,
            &policy("[binds]\noptional = [\"/scratch\"]\n"),
        )
        .mount
        .ops
        .iter()
        .filter_map(|planned| planned.op.destination().map(|path| path.display().to_string()))
        .collect::<Vec<_>>()
    };
    for (what, gone) in [
        (LeftOut::Tmp, "/tmp"),
        (LeftOut::Cwd, "/data/sets"),
        (LeftOut::System("/proc"), "/proc"),
        (LeftOut::System("/sys"), "/sys"),
        (LeftOut::System("/dev"), "/dev"),
        (LeftOut::SiteBinds, "/scratch"),
        (LeftOut::Path("/etc/hosts".into()), "/etc/hosts"),
        (LeftOut::Path("/home/ada".into()), "/home/ada"),
    ] {
        let found = left_out(what.clone());
        assert!(!found.contains(&gone.to_owned()), "{what:?}: {found:?}");
        assert_eq!(found.len(), 9, "{what:?}: {found:?}");
    }
    let request = Request { left_out: vec![LeftOut::Path("/opt/site".into())], ..exec(&["x"]) };
    check_binds(
        &laptop().in_directory("/"),
        &request,
        "[binds]\nforced = [\"/opt/site\"]\n[home]\nbind = false\n",
        &["/opt/site -> /opt/site rw"],
    );
}

#[test]
fn another_home_directory() {
    let request = Request { home: HomeWish::At(option("/data:/root")), ..exec(&["x"]) };
    let plan = check_binds(&laptop().in_directory("/"), &request, "", &["/data -> /root rw"]);
    assert_eq!(value(&plan, "HOME").as_deref(), Some("/root"));
    let (_, passwd) = plan.grafts.iter().find(|(path, _)| path == Path::new("/etc/passwd")).expect("passwd");
    let Graft::Content { content, .. } = passwd else { panic!("{passwd:?}") };
    assert!(String::from_utf8_lossy(content).contains("ada:x:1000:1000:Ada:/root:"));
    let relative = Request { home: HomeWish::At(option("work")), ..exec(&["x"]) };
    let plan = planned(&laptop().in_directory("/home/ada"), &relative, &policy(""));
    assert_eq!(value(&plan, "HOME").as_deref(), Some("/home/ada/work"));
    let refused = try_plan(&laptop(), &request, &policy("[binds]\nallowed = [\"/scratch\"]\n"));
    assert!(matches!(refused, Err(PlanError::Refused(_))));
    let contained = Request { home: HomeWish::At(option("/data:/root")), ..contained() };
    let text = planned(&laptop(), &contained, &policy("")).to_string();
    assert!(text.contains("/data -> /root rw") && !text.contains("/home/ada"), "{text}");
}

fn overlays(specs: &[(&str, bool)], tmpfs: Option<Option<u64>>) -> Request {
    let overlay =
        |(path, read_only): &(&str, bool)| OverlayOption { directory: path.into(), read_only: *read_only };
    let writable = Writable { overlays: specs.iter().map(overlay).collect(), tmpfs };
    Request { writable, ..exec(&["x"]) }
}

#[track_caller]
fn check_overlay(request: &Request, text: &str, expected: &str) {
    let plan = planned(&laptop(), request, &policy(text));
    assert_eq!(plan.mount.ops[1].op.to_string(), expected);
    assert!(plan.owns_image());
}

#[test]
fn a_root_that_can_be_written_to() {
    check_overlay(&overlays(&[("/data", false)], None), "", "overlay /data rw -> /");
    check_overlay(&overlays(&[("/data", true)], None), "", "overlay /data ro, no writes -> /");
    let several = overlays(&[("/data", true), ("/scratch", true), ("/sets", false)], None);
    check_overlay(&several, "", "overlay /data ro, /scratch ro, /data/sets rw -> /");
    check_overlay(&overlays(&[], Some(None)), "", "overlay memory rw -> /");
    check_overlay(
        &overlays(&[("/data", true)], Some(Some(4096))),
        "",
        "overlay /data ro, memory rw size 4096 -> /",
    );
    let capped = "[launch]\nmax_tmpfs = \"1 MiB\"\n";
    check_overlay(&overlays(&[], Some(None)), capped, "overlay memory rw size 1048576 -> /");
    check_overlay(&overlays(&[], Some(Some(4096))), capped, "overlay memory rw size 4096 -> /");
    assert!(!planned(&laptop(), &exec(&["x"]), &policy("")).owns_image());
}

#[test]
fn overlays_that_cannot_be() {
    for (request, text, expected) in [
        (
            overlays(&[("/none", false)], None),
            "",
            "cannot lay /none over the image: it does not exist on laptop",
        ),
        (
            overlays(&[("/home/ada/key", true)], None),
            "",
            "cannot lay /home/ada/key over the image: it is not a directory",
        ),
        (
            overlays(&[("/data", false), ("/scratch", false)], None),
            "",
            "cannot lay /scratch over the image: something else is written to already",
        ),
        (
            overlays(&[("/data", false)], Some(None)),
            "",
            "cannot lay /data over the image: something else is written to already",
        ),
        (
            overlays(&[("/data", true), ("/data", false)], None),
            "",
            "cannot lay /data over the image: it is laid over the image twice",
        ),
        (
            overlays(&[("/data", true)], None),
            "[launch]\nallow_overlay = false\n",
            "refused by site policy: --overlay (/etc/hpcrun/policy.toml:2 [launch] allow_overlay)",
        ),
        (
            overlays(&[], Some(None)),
            "[launch]\nallow_writable_tmpfs = false\n",
            "refused by site policy: --writable-tmpfs (/etc/hpcrun/policy.toml:2 [launch] allow_writable_tmpfs)",
        ),
        (
            overlays(&[], Some(Some(4097))),
            "[launch]\nmax_tmpfs = 4096\n",
            "refused by site policy: a file system in memory of 4097 bytes (/etc/hpcrun/policy.toml:2 [launch] max_tmpfs)",
        ),
        (
            overlays(&[("/data", false)], None),
            "[binds]\nallowed = [\"/scratch\"]\n",
            "refused by site policy: bind of /data, which is outside the allowed paths (/etc/hpcrun/policy.toml:2 [binds] \
             allowed)",
        ),
    ] {
        check_error(&laptop(), &request, text, expected);
    }
}

#[test]
fn a_premounted_tree_is_not_written_through() {
    let text = "[premounted]\ntrees = [{ image = \"/images/astro.sqsh\", directory = \"/data\" }]\n";
    let mut node = laptop();
    node.host.trees.insert(PathBuf::from("/data"), tree("/data"));
    let op = |request: &Request| planned(&node, request, &policy(text)).mount.ops[0].op.to_string();
    assert_eq!(op(&exec(&["x"])), "bind /data -> / ro");
    assert_eq!(op(&overlays(&[], Some(None))), "squashfs /images/astro.sqsh -> /");
}

#[test]
fn user_zero_inside() {
    let request = Request { root_mapped: true, ..exec(&["x"]) };
    let plan = planned(&laptop(), &request, &policy(""));
    assert_eq!((plan.ids_inside(), plan.uid), ((0, 0), 1000));
    let (_, passwd) = plan.grafts.iter().find(|(path, _)| path == Path::new("/etc/passwd")).expect("passwd");
    let Graft::Content { content, .. } = passwd else { panic!("{passwd:?}") };
    let lines = String::from_utf8_lossy(content).into_owned();
    assert!(lines.contains("root:x:0:0:Ada:/home/ada:/bin/bash\n") && !lines.contains(":/root:"), "{lines}");
    let refused = "refused by site policy: --fakeroot (/etc/hpcrun/policy.toml:2 [launch] allow_fakeroot)";
    check_error(&laptop(), &request, "[launch]\nallow_fakeroot = false\n", refused);
    let rank = planned(&slurm_node(), &request, &policy(""));
    assert!(rank.about.warnings.join("").contains("--fakeroot"), "{:?}", rank.about.warnings);
    let other = planned(&slurm_node(), &exec(&["x"]), &policy(""));
    assert_ne!(rank.share.expect("shared").name, other.share.expect("shared").name);
}

#[test]
fn a_rank_with_processes_of_its_own_shares_with_nobody() {
    for isolation in [
        Isolation { processes: Some(Init::Own), ipc: false },
        Isolation { processes: Some(Init::Job), ipc: false },
        Isolation { processes: None, ipc: true },
    ] {
        let plan = planned(&slurm_node(), &Request { isolation, ..exec(&["x"]) }, &policy(""));
        assert_eq!(plan.share, None);
        assert_eq!(value(&plan, "UCX_POSIX_USE_PROC_LINK").as_deref(), Some("n"));
    }
}

fn scratch(directory: &str) -> ScratchOption {
    ScratchOption { directory: directory.into(), is_ambient: false }
}

#[test]
fn binds_of_a_variable_give_way_to_options() {
    let ambient =
        |typed: &str| BindOption { option: "HPCRUN_BIND".to_owned(), is_ambient: true, ..option(typed) };
    let node = laptop().in_directory("/");
    let request = Request {
        binds: vec![ambient("/data:/x"), ambient("/data:/y"), option("/scratch:/x")],
        ..exec(&["x"])
    };
    check_binds(&node, &request, "[home]\nbind = false\n", &["/scratch -> /x rw", "/data -> /y rw"]);
    let request = Request { binds: vec![ambient("/data:/opt/site")], ..exec(&["x"]) };
    let refused = try_plan(&node, &request, &policy("[binds]\nforced = [\"/opt/site\"]\n"));
    assert!(matches!(refused, Err(PlanError::Refused(_))));
    let request = Request { binds: vec![ambient("/none")], ..exec(&["x"]) };
    check_error(&node, &request, "", "cannot bind /none (HPCRUN_BIND /none): it does not exist on laptop");
}

#[test]
fn data_images() {
    let mut node = laptop().in_directory("/");
    node.files.push("/data/d.sqsh");
    let request = Request { binds: vec![option("/data/d.sqsh:/d:image")], ..exec(&["x"]) };
    let plan = planned(&node, &request, &policy(""));
    assert!(plan.to_string().contains("squashfs   /data/d.sqsh -> /d"), "{plan}");
    let outside = "[images]\ndirectories = [\"/images\"]\n";
    assert!(matches!(try_plan(&node, &request, &policy(outside)), Err(PlanError::Refused(_))));
    let denied = "[binds]\ndenied = [\"/data\"]\n";
    assert!(matches!(try_plan(&node, &request, &policy(denied)), Err(PlanError::Refused(_))));
    let directory = Request { binds: vec![option("/data:/d:image")], ..exec(&["x"]) };
    let expected = "cannot bind /data (--bind /data:/d:image): it is a directory, not an image file";
    check_error(&node, &directory, "", expected);
}

#[test]
fn lists_of_directories_are_joined() {
    let joined = |name: &str, value: &str, joining| EnvOption {
        joining,
        ..EnvOption::new("APPTAINERENV", OsStr::new(name), Some(value.into()))
    };
    let env = vec![
        joined("PATH", "/first", Joining::Prepend),
        joined("PATH", "/last", Joining::Append),
        joined("NEW", "/only", Joining::Append),
    ];
    let plan = planned(&laptop(), &Request { env, ..exec(&["x"]) }, &policy(""));
    assert_eq!(value(&plan, "PATH").as_deref(), Some("/first:/opt/astro/bin:/usr/bin:/bin:/last"));
    assert_eq!(value(&plan, "NEW").as_deref(), Some("/only"));
}

#[test]
fn another_entrypoint_or_shell() {
    let argv = |request: &Request| planned(&laptop(), request, &policy("")).argv;
    let run = |entrypoint: &str, args: &[&str]| Request {
        verb: Verb::Run { args: args.iter().map(OsString::from).collect() },
        entrypoint: Some(entrypoint.into()),
        ..Request::default()
    };
    assert_eq!(argv(&run("/bin/ls", &[])), ["/bin/ls"]);
    assert_eq!(argv(&run("ls", &["-l", "a b"])), ["ls", "-l", "a b"]);
    assert_eq!(argv(&run("", &["echo", "x"])), ["echo", "x"]);
    assert!(try_plan(&laptop(), &run("", &[]), &policy("")).is_err());
    let shell = Request { verb: Verb::Shell, shell: Some("/bin/zsh".into()), ..Request::default() };
    let plan = planned(&laptop(), &shell, &policy(""));
    assert_eq!(plan.argv, ["/bin/zsh"]);
    assert!(plan.to_string().contains("# --shell"), "{plan}");
}
