//! The command line as a person meets it: help, usage, options, the report of a conversion, progress on a terminal.

#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "a test that cannot go on fails there")]

use std::fs;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::busybox_image::{
    archive, assert_fails, assert_nobody_holds, copy_in, docker_archive, image, names_in,
};
use crate::layer_building::{Member, tar};
use crate::support::{Random, as_user, binary, hpcrun, run, scratch, stdout, text};

/// `docker-archive:` and the archive of the shared image.
fn source() -> String {
    format!("docker-archive:{}", archive().display())
}

#[test]
fn help_and_version_are_data() {
    let verbs = ["convert", "pull", "exec", "run", "shell", "export", "inspect", "doctor"];
    let cases = [&["--help"][..], &["-h"], &["--version"], &["-V"]].map(<[&str]>::to_vec);
    let of_verbs =
        verbs.iter().flat_map(|verb| [vec![*verb, "--help"], vec![verb, "-h"], vec![verb, "--version"]]);
    for words in cases.into_iter().chain(of_verbs) {
        let output = run(&mut hpcrun(&words));
        assert_eq!(output.status.code(), Some(0), "{words:?}");
        assert_eq!(text(&output.stderr), "", "{words:?}");
        let shown = text(&output.stdout);
        assert!(shown.contains("Usage: hpcrun") || shown.starts_with("hpcrun"), "{shown}");
        assert!(shown.lines().all(|line| line.chars().count() <= 110), "{shown}");
    }
    let help = stdout(&mut hpcrun(["--help"]));
    for verb in verbs {
        assert!(help.contains(&format!("\n  {verb} ")), "no {verb} in {help}");
    }
    assert_eq!(stdout(&mut hpcrun(["--version"])), format!("hpcrun {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_wrong_command_line_is_one_line_and_status_125() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["convert"], &["were not provided: <SOURCE> <DEST>", "hint: usage: hpcrun convert"]),
        (&["convert", "a"], &["<DEST>"]),
        (&["exec"], &["<IMAGE>", "hint: usage: hpcrun exec [OPTIONS] IMAGE COMMAND [ARG]..."]),
        (&["inspect", "a", "b"], &["unexpected argument 'b'"]),
        (&["shell", "a", "b"], &["unexpected argument 'b'"]),
        (&["frobnicate"], &["unrecognized subcommand 'frobnicate'"]),
        (
            &["exce", "a", "b"],
            &["unrecognized subcommand 'exce'", "hint: a similar subcommand exists: 'exec'"],
        ),
        (&["exec", "--bnd", "/x", "a", "b"], &["unexpected argument '--bnd'", "'--bind'"]),
        (&["convert", "--jobs", "0", "a", "b"], &["'0' for '--jobs <N>'", "1..=1024"]),
        (&["convert", "--jobs", "many", "a", "b"], &["'many' for '--jobs <N>'"]),
        (
            &["convert", "--block-size", "3", "a", "b"],
            &["'3' for '--block-size <SIZE>'", "power of two from 4K to 1M"],
        ),
        (&["convert", "--block-size", "2M", "a", "b"], &["power of two from 4K to 1M"]),
        (&["convert", "--compression", "rar", "a", "b"], &["'rar'", "zstd, gzip, lz4, xz"]),
        (&["exec", "--share", "all", "a", "b"], &["'all'", "step, job, none"]),
        (&["-q", "-v", "doctor"], &["'--quiet' cannot be used with '--verbose"]),
    ];
    for (words, expected) in cases {
        assert_fails(&run(&mut hpcrun(*words)), 125, expected);
    }
    let nothing = run(&mut hpcrun([""; 0]));
    assert_eq!(nothing.status.code(), Some(125));
    assert!(text(&nothing.stderr).contains("Usage: hpcrun"), "{}", text(&nothing.stderr));
}

#[test]
fn options_of_convert_are_checked_before_any_work() {
    let dir = scratch();
    let dest = dir.path().join("x.sqsh");
    let cases: &[(&[&str], &[&str])] = &[
        (&["--level", "99"], &["--level 99 is out of range: 1 to 22"]),
        (&["--level", "0"], &["--level 0 is out of range: 1 to 22"]),
        (&["--compression", "gzip", "--level", "13"], &["1 to 12"]),
        (&["--compression", "xz", "--level", "10"], &["0 to 9"]),
        (&["--compression", "lz4", "--level", "1"], &["lz4 has no levels"]),
        (&["--platform", "linux"], &["\"linux\"", "os/architecture"]),
    ];
    for (options, expected) in cases {
        let mut convert = hpcrun(["convert"]);
        assert_fails(&run(convert.args(*options).arg(source()).arg(&dest)), 125, expected);
    }
    assert_eq!(names_in(dir.path()), [""; 0]);
}

#[test]
fn convert_says_one_line_and_quiet_none() {
    let dir = scratch();
    let convert = |options: &[&str], name: &str| {
        let output = run(hpcrun(["convert"]).args(options).arg(source()).arg(dir.path().join(name)));
        assert!(output.status.success(), "{options:?}: {}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "");
        text(&output.stderr)
    };
    let line = convert(&[], "a.sqsh");
    assert_eq!(line.lines().count(), 1, "{line:?}");
    let start = format!("{}: ", dir.path().join("a.sqsh").display());
    assert!(line.starts_with(&start) && line.contains(" in 1 layer, ") && line.ends_with(" s\n"), "{line:?}");
    assert_eq!(convert(&["-q"], "b.sqsh"), "");
    assert_eq!(
        convert(&["--compression", "gzip", "--level", "1", "--block-size", "64K", "-j", "1", "-q"], "c.sqsh"),
        ""
    );
    let after = run(hpcrun(["-q", "convert"]).arg(source()).arg(dir.path().join("d.sqsh")));
    assert_eq!((after.status.code(), text(&after.stderr).as_str()), (Some(0), ""));
    let read = |name: &str| fs::read(dir.path().join(name)).expect("read");
    assert!(read("a.sqsh") == read("b.sqsh") && read("a.sqsh") == read("d.sqsh"), "the same bytes");
    let facts = stdout(Command::new("unsquashfs").arg("-s").arg(dir.path().join("c.sqsh")));
    assert!(facts.contains("gzip") && facts.contains("Block size 65536"), "{facts}");
    assert_eq!(names_in(dir.path()), ["a.sqsh", "b.sqsh", "c.sqsh", "d.sqsh"]);
}

#[test]
fn an_existing_destination_is_refused_at_once_and_replaced_by_force() {
    let dir = scratch();
    let dest = dir.path().join("x.sqsh");
    fs::write(&dest, "precious").expect("write");
    // Before the source is looked at.
    let output = run(hpcrun(["convert", "docker-archive:/no/such.tar"]).arg(&dest));
    assert_fails(&output, 125, &["x.sqsh already exists", "hint: use --force to replace it"]);
    assert_eq!(fs::read(&dest).expect("read"), b"precious");
    // A failure keeps what was there, force or not.
    let output = run(hpcrun(["convert", "--force", "docker-archive:/no/such.tar"]).arg(&dest));
    assert_fails(&output, 125, &["/no/such.tar", "No such file"]);
    assert_eq!(fs::read(&dest).expect("read"), b"precious");
    stdout(hpcrun(["convert", "--force"]).arg(source()).arg(&dest));
    assert_eq!(fs::read(&dest).expect("read"), fs::read(image()).expect("read"));
    assert_eq!(names_in(dir.path()), ["x.sqsh"]);
}

#[test]
fn inspect_shows_what_the_file_holds() {
    let shown = stdout(hpcrun(["inspect"]).arg(image()));
    let line = |name: &str| {
        let found = shown.lines().find_map(|line| line.strip_prefix(&format!("{name:<12}")));
        found.unwrap_or_else(|| panic!("no {name} in\n{shown}")).to_owned()
    };
    assert_eq!(line("file"), image().display().to_string());
    assert!(line("manifest").starts_with("sha256:"));
    assert_eq!(line("origin"), source());
    assert_eq!(line("created"), "2024-01-01T00:00:00Z");
    assert_eq!(line("entrypoint"), r#"["/bin/echo","entry point"]"#);
    assert_eq!(line("command"), r#"["a","b c"]"#);
    assert_eq!(line("directory"), "/work");
    assert_eq!(line("environment"), "PATH=/bin");
    assert_eq!(line("labels"), "org.example.purpose=test");
    // Facts stand in one column.
    assert!(
        shown
            .lines()
            .all(|line| line.len() > 12 && line.as_bytes()[11] == b' ' && line.as_bytes()[12] != b' '),
        "{shown}"
    );
}

#[test]
fn inspect_json_is_json() {
    let document: Value =
        serde_json::from_str(&stdout(hpcrun(["inspect", "--json"]).arg(image()))).expect("JSON");
    assert_eq!(document["file"]["path"], json!(image().display().to_string()));
    assert_eq!(document["file"]["bytes"], json!(fs::metadata(image()).expect("metadata").len()));
    assert_eq!(document["file"]["codec"], "zstd");
    assert_eq!(document["file"]["block_size"], 131_072);
    assert_eq!(document["provenance"]["origin"], json!(source()));
    assert_eq!(document["provenance"]["layers"].as_array().map(Vec::len), Some(1));
    assert_eq!(document["config"]["config"]["WorkingDir"], "/work");
    assert_eq!(document["config"]["config"]["Env"][1], "GREETING=hello world");
    assert!(document["manifest"].is_object() || document["manifest"].is_array(), "{}", document["manifest"]);
}

#[test]
fn hostile_names_do_not_steer_the_terminal() {
    let dir = scratch();
    let config = json!({"Env": ["A=\x1b[2J\nfile        /etc/shadow"], "Labels": {"\x1b]0;x\x07": "y"}});
    let image = crate::busybox_image::convert(dir.path(), "odd", &config, &[tar(&[Member::file("a", "b")])]);
    let shown = stdout(hpcrun(["inspect"]).arg(&image));
    assert!(!shown.contains(|c: char| c.is_control() && c != '\n'), "{shown:?}");
    assert!(!shown.contains("\nfile        /etc/shadow"), "{shown:?}");
    assert_fails(&run(&mut hpcrun(["inspect", "/no/\x1b[2Jsuch"])), 125, &["cannot open image"]);
}

/// An image that mksquashfs made of a directory with busybox.
fn by_mksquashfs(dir: &Path) -> std::path::PathBuf {
    let tree = dir.join("tree");
    fs::create_dir_all(tree.join("bin")).expect("mkdir");
    fs::copy("/bin/busybox", tree.join("bin/busybox")).expect("copy");
    std::os::unix::fs::symlink("busybox", tree.join("bin/sh")).expect("link");
    let image = dir.join("plain.sqsh");
    stdout(Command::new("mksquashfs").arg(&tree).arg(&image).args(["-quiet", "-no-progress", "-noappend"]));
    fs::remove_dir_all(&tree).expect("remove");
    image
}

#[test]
fn a_squashfs_of_mksquashfs_is_inspected_and_run() {
    let dir = scratch();
    let image = by_mksquashfs(dir.path());
    let shown = stdout(hpcrun(["inspect"]).arg(&image));
    assert!(shown.contains("origin      unknown: this squashfs has no hpcrun trailer"), "{shown}");
    let document: Value =
        serde_json::from_str(&stdout(hpcrun(["inspect", "--json"]).arg(&image))).expect("JSON");
    assert_eq!(
        (&document["provenance"], &document["config"], &document["manifest"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    assert_eq!(document["file"]["codec"], "gzip");
    assert_eq!(
        stdout(hpcrun(["exec"]).arg(&image).args(["sh", "-c", "echo $PATH"])).trim().split(':').count(),
        6
    );
    let output = run(hpcrun(["run"]).arg(&image));
    assert_fails(&output, 125, &["neither entrypoint nor command"]);
    assert_nobody_holds(&image);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let script =
        r#"set -o pipefail; "$@" | head -c 1 >/dev/null; exec 3>&1; "$@" | true; echo "${PIPESTATUS[0]}""#;
    for words in [vec!["inspect", "--json"], vec!["inspect"], vec!["exec", "--explain"]] {
        let mut command = as_user("bash");
        command.args(["-c", script, "bash"]).arg(binary()).args(&words).arg(image());
        if words[0] == "exec" {
            command.arg("true");
        }
        let output = run(&mut command);
        assert_eq!((text(&output.stdout).as_str(), text(&output.stderr).as_str()), ("0\n", ""), "{words:?}");
    }
    // A full device, by contrast, lost what was asked for.
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("open");
    let output = run(hpcrun(["inspect"]).arg(image()).stdout(full));
    assert_fails(&output, 125, &["cannot write to standard output: No space left on device (ENOSPC)"]);
}

/// A docker-archive of data that xz packs slowly: letters without any pattern.
fn slow_archive(dir: &Path, bytes: usize) -> String {
    let mut random = Random::new(7);
    let data: Vec<u8> =
        std::iter::repeat_with(|| b"abcdefghijklmnop"[random.below(16) as usize]).take(bytes).collect();
    let layers: Vec<Vec<u8>> = data
        .chunks(bytes / 3 + 1)
        .enumerate()
        .map(|(at, data)| tar(&[Member::file(format!("f{at}"), data)]))
        .collect();
    let path = dir.join("slow.tar");
    fs::write(&path, docker_archive(&json!({}), &layers)).expect("write");
    format!("docker-archive:{}", path.display())
}

#[test]
fn progress_is_drawn_on_a_terminal_and_wiped() {
    let dir = scratch();
    let source = slow_archive(dir.path(), 8 << 20);
    let convert = |options: &str, name: &str| {
        let dest = dir.path().join(name).display().to_string();
        let line = format!(
            "{} convert {options} --compression xz --level 9 -j1 {source} {dest}",
            binary().display()
        );
        let mut script = as_user("script");
        script.args(["-q", "-e", "-c", &line, "/dev/null"]).stdin(Stdio::null());
        stdout(&mut script)
    };
    let shown = convert("", "a.sqsh");
    assert!(shown.contains("layer ") && shown.contains(" read, ") && shown.contains("####"), "{shown:?}");
    // What was drawn is gone when the closing line comes: the screen shows that alone.
    let (_, last) = shown.rsplit_once("\x1b[J").expect("wiped");
    assert!(last.contains("a.sqsh: ") && last.lines().count() == 1, "{last:?}");
    let mut drawn = 0;
    for piece in shown.split("\x1b[") {
        match piece.split_once('A').and_then(|(up, _)| up.parse::<usize>().ok()) {
            Some(up) => assert_eq!(up, drawn, "as many lines up as were drawn: {shown:?}"),
            None => drawn = piece.matches('\n').count(),
        }
    }
    assert_eq!(convert("-q", "b.sqsh"), "");
}

#[test]
fn an_interrupted_conversion_leaves_nothing() {
    let dir = scratch();
    let source = slow_archive(dir.path(), 32 << 20);
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut convert = hpcrun(["convert", "--compression", "xz", "--level", "9", "-j1"]);
        convert.arg(&source).arg(dir.path().join("x.sqsh")).process_group(0);
        let mut child = convert.stderr(Stdio::piped()).spawn().expect("spawn");
        std::thread::sleep(Duration::from_millis(700));
        killpg(Pid::from_raw(child.id().cast_signed()), signal).expect("killpg");
        let begun = Instant::now();
        assert_eq!(child.wait().expect("wait").signal(), Some(signal as i32));
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        assert_eq!(names_in(dir.path()), ["slow.tar"]);
    }
}

#[test]
fn an_image_file_is_named_relative_to_the_working_directory() {
    let dir = scratch();
    copy_in(dir.path());
    for name in ["own.sqsh", "./own.sqsh", "../own.sqsh"] {
        fs::create_dir_all(dir.path().join("sub")).expect("mkdir");
        let from = if name.starts_with("..") { dir.path().join("sub") } else { dir.path().to_owned() };
        let output = stdout(hpcrun(["exec", name, "sh", "-c", "echo $HPCRUN_IMAGE"]).current_dir(from));
        assert_eq!(output.trim(), dir.path().join("own.sqsh").display().to_string(), "{name}");
    }
    fs::remove_dir(dir.path().join("sub")).expect("rmdir");
    let back = run(hpcrun(["convert"]).arg(source()).arg("rel.sqsh").current_dir(dir.path()));
    assert!(back.status.success(), "{}", text(&back.stderr));
    assert_eq!(names_in(dir.path()), ["own.sqsh", "rel.sqsh"]);
}
