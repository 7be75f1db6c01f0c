//! The job's file system: odd images, binds, working directories, where the image file may lie.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use serde_json::json;

use super::{exec, exec_image, exec_with};
use crate::bad_input::in_private_mounts;
use crate::busybox_image::{assert_fails, assert_nobody_holds, busybox, convert, copy_in, image, names_in};
use crate::layer_building::{Member, tar};
use crate::support::{as_user, binary, hpcrun, is_root, run, scratch, stdout, text};

/// An image of busybox and `extra`, in `dir`.
fn image_with(dir: &Path, name: &str, extra: Vec<Member>) -> std::path::PathBuf {
    convert(dir, name, &json!({"Env": ["PATH=/bin"]}), &[tar(&[busybox(), extra].concat())])
}

#[test]
fn row_14_and_29_files_that_images_lack_or_have_otherwise() {
    let dir = scratch();
    let odd = vec![
        Member::directory("etc"),
        Member::symlink("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"),
        Member::symlink("etc/hosts", "somewhere"),
        Member::directory("etc/somewhere"),
    ];
    let image = image_with(dir.path(), "odd", odd);
    let output =
        run(&mut exec_image(&image, &["sh", "-c", "id -un; cat /etc/resolv.conf; ls -d /etc/somewhere/"]));
    let resolv = fs::read_to_string("/etc/resolv.conf").expect("read");
    let name = stdout(as_user("id").arg("-un"));
    assert_eq!(text(&output.stdout), format!("{name}{resolv}/etc/somewhere/\n"), "{}", text(&output.stderr));
}

/// The directories and files that a launch wants to have, each as a link of each kind: what the image says must lead
/// nowhere but into the image, and the launch works or says which path is wrong.
#[test]
fn row_29_of_the_peers_a_matrix_of_broken_images() {
    let canary = tempfile::Builder::new().prefix("hpcrun-canary-").tempdir_in("/var/tmp").expect("directory");
    fs::set_permissions(canary.path(), fs::Permissions::from_mode(0o777)).expect("chmod");
    let outside = canary.path().display().to_string();
    let kinds = [
        ("absolute", outside.clone()),
        ("up", format!("../../../../../../..{outside}")),
        ("magic", format!("/proc/self/root{outside}")),
        ("dangling", "/no/such/place".to_owned()),
        ("loop", "LOOP".to_owned()),
    ];
    let dir = scratch();
    let program = fs::read("/bin/busybox").expect("busybox-static");
    let mut worked = 0;
    for name in ["proc", "dev", "sys", "etc", "tmp", "home", "etc/passwd", "etc/hosts"] {
        for (kind, target) in &kinds {
            let target = if target == "LOOP" { format!("/{name}") } else { target.clone() };
            let mut members = vec![Member::file("busybox", &program).mode(0o755)];
            members.extend(name.contains('/').then(|| Member::directory("etc")));
            members.push(Member::symlink(name, target));
            let image = convert(dir.path(), "broken", &json!({}), &[tar(&members)]);
            let output = run(exec_image(&image, &["/busybox", "echo", "ok"]).current_dir("/"));
            if output.status.success() {
                worked += 1;
                assert_eq!(text(&output.stdout), "ok\n", "/{name} {kind}");
            } else {
                assert_fails(&output, 125, &[&format!("/{name}")]);
            }
            assert_eq!(names_in(canary.path()), [""; 0], "/{name} {kind}");
            fs::remove_file(&image).expect("remove");
        }
    }
    assert!(worked >= 30, "{worked} of 40 worked");
}

#[test]
fn row_17_and_38_working_directories_of_every_kind() {
    let dir = scratch();
    let real = dir.path().join("real");
    fs::create_dir(&real).expect("mkdir");
    fs::set_permissions(&real, fs::Permissions::from_mode(0o777)).expect("chmod");
    fs::create_dir(real.join("below")).expect("mkdir");
    symlink("real", dir.path().join("link")).expect("link");
    let started_in = |change: &str| {
        let line = format!("{change}; exec \"$@\"");
        let mut shell = as_user("sh");
        shell.current_dir(dir.path()).args(["-c", &line, "sh"]).arg(binary()).arg("exec").arg(image());
        run(shell.args(["sh", "-c", "readlink /proc/self/cwd; exit 5"]))
    };
    let expect = |change: &str, expected: &str| {
        let output = started_in(change);
        assert_eq!(text(&output.stdout), format!("{expected}\n"), "{change}: {}", text(&output.stderr));
        assert_eq!(output.status.code(), Some(5), "{change}");
        text(&output.stderr)
    };
    let real = real.display().to_string();
    assert_eq!(expect("cd link", &real), "");
    assert_eq!(expect("cd link/below", &format!("{real}/below")), "");
    // Where there is none, the image's own.
    expect("mkdir gone; cd gone; rmdir ../gone", "/work");
    if is_root() {
        let closed = dir.path().join("closed");
        fs::create_dir(&closed).expect("mkdir");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("chmod");
        let mut command = exec(&["sh", "-c", "readlink /proc/self/cwd; exit 5"]);
        let output = run(command.current_dir(&closed));
        assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("/work\n", Some(5)));
    }
}

#[test]
fn row_21_nested_binds_are_all_there() {
    let dir = scratch();
    for name in ["a/sub", "b"] {
        fs::create_dir_all(dir.path().join(name)).expect("mkdir");
    }
    for name in ["a/in-a", "b/in-b", "b/file", "file"] {
        fs::write(dir.path().join(name), format!("{name}\n")).expect("write");
    }
    let spec = |source: &str, destination: &str| format!("{}/{source}:{destination}", dir.path().display());
    // In any order of the options.
    let mut binds = vec![spec("a", "/c"), spec("b", "/c/sub"), spec("file", "/c/sub/file")];
    for _ in 0..3 {
        binds.rotate_left(1);
        let options: Vec<&str> = binds.iter().flat_map(|bind| ["--bind", bind]).collect();
        let shown = stdout(&mut exec_with(&options, &["cat", "/c/in-a", "/c/sub/in-b", "/c/sub/file"]));
        assert_eq!(shown, "a/in-a\nb/in-b\nfile\n", "{binds:?}");
    }
    let shown = stdout(&mut exec_with(&["-b", "/var", "-b", "/var/lib"], &["ls", "-d", "/var/lib/dpkg"]));
    assert_eq!(shown, "/var/lib/dpkg\n");
    assert_eq!(names_in(&dir.path().join("b")), ["file", "in-b"]);
}

#[test]
fn row_20_and_22_destinations_behind_links_stay_in_the_image() {
    let canary = tempfile::Builder::new().prefix("hpcrun-canary-").tempdir_in("/var/tmp").expect("directory");
    fs::set_permissions(canary.path(), fs::Permissions::from_mode(0o777)).expect("chmod");
    let dir = scratch();
    fs::write(dir.path().join("bound"), "").expect("write");
    let outside = canary.path().display().to_string();
    let links = vec![
        Member::directory("real"),
        Member::symlink("one", "real"),
        Member::symlink("two", "/one"),
        Member::symlink("out", &outside),
        Member::symlink("up", format!("../../../..{outside}")),
    ];
    let image = image_with(dir.path(), "links", links);
    let source = dir.path().display().to_string();
    let bound = |destination: &str, look: &str| {
        let mut command = hpcrun(["exec", "--bind", &format!("{source}:{destination}")]);
        stdout(command.arg(&image).args(["sh", "-c", look]).current_dir("/"))
    };
    assert_eq!(bound("/one", "ls /real/bound"), "/real/bound\n");
    assert_eq!(bound("/two", "ls /real/bound"), "/real/bound\n");
    assert_eq!(bound("/two/new/place", "ls /real/new/place/bound"), "/real/new/place/bound\n");
    for link in ["/out", "/up", "/out/new"] {
        let shown = bound(link, &format!("ls {link}/bound; echo > {outside}/x 2>/dev/null; ls -d {outside}"));
        assert_eq!(shown, format!("{link}/bound\n{outside}\n"));
        assert_eq!(names_in(canary.path()), [""; 0], "{link}");
        let _ = fs::remove_file(dir.path().join("x"));
    }
    // The way up ends at the image's root.
    assert_eq!(bound("/../../x/../y", "ls /y/bound"), "/y/bound\n");
    assert_fails(&run(&mut exec_with(&["--bind", "/tmp:y"], &["true"])), 125, &["absolute path"]);
}

#[test]
fn row_22_to_24_of_the_peers_sources_and_destinations() {
    let dir = scratch();
    fs::create_dir(dir.path().join("a b, c=d")).expect("mkdir");
    fs::write(dir.path().join("a b, c=d/file"), "found\n").expect("write");
    for source in ["a b, c=d", "./a b, c=d", "../SELF/a b, c=d"] {
        let name = dir.path().file_name().expect("a name").to_string_lossy();
        let bind = format!("{}:/x y", source.replace("SELF", &name).replace(',', "\\,"));
        let shown = stdout(exec_with(&["--bind", &bind], &["cat", "/x y/file"]).current_dir(dir.path()));
        assert_eq!(shown, "found\n", "{bind}");
    }
    let onto =
        |destination: &str| run(&mut exec_with(&["--bind", &format!("/tmp:{destination}")], &["true"]));
    assert_fails(&onto("/etc/passwd/below"), 125, &["/etc/passwd is a regular file, not a directory"]);
    assert_fails(&onto("/data/text"), 125, &["/data/text", "directory"]);
    let line = assert_fails(&onto("/etc/passwd/below"), 125, &[]);
    assert_eq!(line.matches("/etc/passwd/below").count(), 1, "said once: {line}");
}

#[test]
fn row_24_and_25_read_only_binds_are_so_down_to_their_submounts() {
    let dir = scratch();
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("sub")).expect("mkdir");
    let mount = format!("mount -t tmpfs -o mode=777 none {0}/sub; echo in > {0}/sub/file", tree.display());
    let look =
        "cat /x/sub/file; for to in /x/new /x/sub/new; do touch $to 2>&1 | grep -o 'Read-only.*'; done";
    let bind = format!("{}:/x:ro", tree.display());
    let words = ["exec", "--bind", &bind].map(OsStr::new);
    let job = ["sh", "-c", look].map(OsStr::new);
    let all = [&[binary().as_os_str()], &words[..], &[image().as_os_str()], &job].concat();
    let output = in_private_mounts(&mount, &all);
    let expected = "in\nRead-only file system\nRead-only file system\n";
    assert_eq!(text(&output.stdout), expected, "{}", text(&output.stderr));
}

#[test]
fn row_27_of_the_peers_devices_are_the_hosts_and_no_new_ones() {
    let script = "echo x > /dev/null && echo null; head -c 3 /dev/zero | wc -c; touch /dev/shm/hpcrun-$$ && rm /dev/shm/hpcrun-$$ && echo shm; \
        ls -d /dev/pts; /bin/busybox mknod /tmp/hpcrun-$$ c 1 3 2>&1 | grep -o 'Operation not permitted'";
    let shown = stdout(&mut exec(&["sh", "-c", &script.replace("&& rm", "&& /bin/busybox rm")]));
    assert_eq!(shown, "null\n3\nshm\n/dev/pts\nOperation not permitted\n");
}

#[test]
fn row_29_a_link_from_var_tmp_to_tmp_is_kept() {
    let dir = scratch();
    let image =
        image_with(dir.path(), "linked", vec![Member::directory("var"), Member::symlink("var/tmp", "/tmp")]);
    let script = format!("ls {0}/linked.sqsh /var{0}/linked.sqsh; readlink /var/tmp", dir.path().display());
    let shown = stdout(&mut exec_image(&image, &["sh", "-c", &script]));
    let path = image.display();
    assert_eq!(shown, format!("{path}\n/var{path}\n/tmp\n"));
}

#[test]
fn row_30_of_the_peers_the_image_file_may_be_named_in_any_way() {
    let dir = scratch();
    let own = copy_in(dir.path());
    symlink("own.sqsh", dir.path().join("link.sqsh")).expect("link");
    let deep = dir.path().join("deep");
    fs::create_dir(&deep).expect("mkdir");
    let shown = |name: &str| stdout(hpcrun(["exec", name, "cat", "/work/note"]).current_dir(&deep));
    for name in ["../own.sqsh", "../link.sqsh", "../deep/../deep/../own.sqsh", &own.display().to_string()] {
        assert_eq!(shown(name), "a note\n", "{name}");
    }
    let in_memory = Path::new("/dev/shm").join(dir.path().file_name().expect("a name"));
    fs::copy(&own, &in_memory).expect("copy");
    assert_eq!(shown(&in_memory.display().to_string()), "a note\n");
    fs::remove_file(&in_memory).expect("remove");
    for name in ["/dev/fd/7", "/proc/self/fd/7", "/dev/stdin"] {
        let mut shell = as_user("sh");
        let line = "exec 7<\"$1\" <\"$1\"; exec \"$2\" exec \"$3\" cat /work/note";
        assert_eq!(
            stdout(shell.args(["-c", line, "sh"]).arg(&own).arg(binary()).arg(name)),
            "a note\n",
            "{name}"
        );
    }
    // By a descriptor alone: the file has no name any more.
    let mut shell = as_user("sh");
    let line = "exec 7<\"$1\"; rm -f \"$1\"; exec \"$2\" exec /dev/fd/7 cat /work/note";
    shell.args(["-c", line, "sh"]).arg(copy_in(&deep)).arg(binary());
    assert_eq!(stdout(&mut shell), "a note\n");
    assert_nobody_holds(&own);
}

#[test]
fn row_40_and_41_run_passes_arguments_as_they_are() {
    let dir = scratch();
    let config = |more: serde_json::Value| {
        let mut config =
            json!({"Env": ["PATH=/bin", "DOLLAR=wrong"], "User": "12345:54321", "WorkingDir": "/work"});
        config.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
        config
    };
    let layer = tar(&[busybox(), vec![Member::directory("work")]].concat());
    let show = ["/bin/sh", "-c", "pwd; id -u; for word; do echo \"<$word>\"; done", "sh"];
    let image = convert(
        dir.path(),
        "shown",
        &config(
            json!({"Entrypoint": show, "Cmd": ["$DOLLAR", "c m d", "'quoted'", "\"double\"", "`id`", "\\n"]}),
        ),
        &[layer],
    );
    let uid = stdout(as_user("id").arg("-u"));
    let start = format!("/work\n{uid}");
    let shown = |arguments: &[&str]| stdout(hpcrun(["run"]).arg(&image).args(arguments));
    assert_eq!(shown(&[]), format!("{start}<$DOLLAR>\n<c m d>\n<'quoted'>\n<\"double\">\n<`id`>\n<\\n>\n"));
    assert_eq!(
        shown(&["$DOLLAR", "", "a  b", "it's", "*", "$(id)"]),
        format!("{start}<$DOLLAR>\n<>\n<a  b>\n<it's>\n<*>\n<$(id)>\n")
    );
    // exec starts where the user is; the image's USER is nobody here either.
    let shown = stdout(hpcrun(["exec"]).arg(&image).args(["sh", "-c", "pwd; id -u"]).current_dir(dir.path()));
    assert_eq!(shown, format!("{}\n{uid}", dir.path().display()));
}
