//! The job's environment, byte for byte.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::process::Command;

use serde_json::json;

use super::{exec_image, exec_with};
use crate::busybox_image::{busybox, convert};
use crate::layer_building::tar;
use crate::support::{hpcrun, run, scratch, text};

/// The environment of a job, as its kernel has it.
fn environment(command: &mut Command) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let output = run(command);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
    let entries = output.stdout.split(|byte| *byte == 0).filter(|entry| !entry.is_empty());
    let pairs = entries.map(|entry| {
        let at = entry.iter().position(|byte| *byte == b'=').expect("a =");
        (entry[..at].to_vec(), entry[at + 1..].to_vec())
    });
    pairs.collect()
}

#[test]
fn row_36_values_are_bytes() {
    let long = "0123456789".repeat(10_240);
    let values: Vec<Vec<u8>> = [
        "a\nb",
        "a\tb",
        "=",
        "a=b=c",
        "'",
        "\"",
        "\\",
        "\\\\n",
        "$HOME",
        "`id`",
        "$(id)",
        "\\u000A",
        "gr\u{fc}n",
        "",
        ",",
        "a,",
        " ",
        " a ",
        "*",
        "~",
        "#",
        "!",
        "%s",
        "\r\n",
        "\u{1b}[2J",
        &long,
    ]
    .iter()
    .map(|value| value.as_bytes().to_vec())
    .chain([vec![0xff, 0xfe, 0x80], vec![b'a', 0xc3]])
    .collect();
    let mut command = exec_with(&[], &["/bin/busybox", "env", "-0"]);
    for (number, value) in values.iter().enumerate() {
        command.env(format!("HOST_{number}"), OsStr::from_bytes(value));
    }
    let found = environment(&mut command);
    for (number, value) in values.iter().enumerate() {
        assert_eq!(found.get(format!("HOST_{number}").as_bytes()), Some(value), "{number}");
    }
    // The same by option.
    let mut command = hpcrun(["exec"]);
    for (number, value) in values.iter().enumerate() {
        let pair = [format!("OPTION_{number}=").as_bytes(), value].concat();
        command.arg("--env").arg(OsString::from_vec(pair));
    }
    let found = environment(command.arg(crate::busybox_image::image()).args(["/bin/busybox", "env", "-0"]));
    for (number, value) in values.iter().enumerate() {
        assert_eq!(found.get(format!("OPTION_{number}").as_bytes()), Some(value), "{number}");
    }
}

#[test]
fn row_36_values_of_the_image_are_text_as_written() {
    let dir = scratch();
    let image = convert(
        dir.path(),
        "values",
        &json!({"Env": ["PATH=/bin", "A=$HOME `id` $(id)", "B=a\nb\t\"'\\", "C=", "D=x=y", "E=gr\u{fc}n"]}),
        &[tar(&busybox())],
    );
    let found = environment(&mut exec_image(&image, &["/bin/busybox", "env", "-0"]));
    for (name, value) in
        [("A", "$HOME `id` $(id)"), ("B", "a\nb\t\"'\\"), ("C", ""), ("D", "x=y"), ("E", "gr\u{fc}n")]
    {
        assert_eq!(found.get(name.as_bytes()).map(|value| text(value)).as_deref(), Some(value), "{name}");
    }
}

#[test]
fn row_37_odd_names_pass_without_noise() {
    let mut command = exec_with(&["--env", "BASH_FUNC_asked%%"], &["/bin/busybox", "env", "-0"]);
    command.env("with.dots", "1").env("with-dash", "2").env("1digit", "3").env("sp ace", "4");
    command.env("BASH_FUNC_module%%", "() { echo host; }").env("BASH_FUNC_asked%%", "() { echo asked; }");
    let found = environment(&mut command);
    for (name, value) in [("with.dots", "1"), ("with-dash", "2"), ("1digit", "3"), ("sp ace", "4")] {
        assert_eq!(found.get(name.as_bytes()).map(|value| text(value)).as_deref(), Some(value), "{name}");
    }
    // Functions of the host's shell call programs of the host: only those asked for.
    assert_eq!(found.get(&b"BASH_FUNC_module%%"[..]), None);
    assert_eq!(
        found.get(&b"BASH_FUNC_asked%%"[..]).map(|value| text(value)).as_deref(),
        Some("() { echo asked; }")
    );
}

#[test]
fn row_38_and_39_search_paths_are_the_images() {
    let dir = scratch();
    let made = |name: &str, env: serde_json::Value| {
        convert(dir.path(), name, &json!({"Env": env}), &[tar(&busybox())])
    };
    let own = made("own", json!(["PATH=/opt/app/bin:/bin", "LD_LIBRARY_PATH=/opt/app/lib"]));
    let none = made("none", json!([]));
    let host =
        [("PATH", "/host/bin:/usr/bin:/bin"), ("LD_LIBRARY_PATH", "/host/lib"), ("LD_PRELOAD", "libc.so.6")];
    let variable = |image: &std::path::Path, options: &[&str], name: &str| {
        let mut command = hpcrun(["exec"]);
        command.args(options).arg(image).args(["/bin/busybox", "env", "-0"]);
        command.envs(host.into_iter().filter(|(name, _)| *name != "PATH"));
        // The runner of the test needs the host's PATH to find setpriv.
        let command = command.env("PATH", format!("/host/bin:{}", std::env::var("PATH").unwrap_or_default()));
        environment(command).get(name.as_bytes()).map(|value| text(value))
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(variable(&own, &[], "PATH"), some("/opt/app/bin:/bin"));
    assert_eq!(
        variable(&none, &[], "PATH"),
        some("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    );
    assert_eq!(variable(&own, &["--env", "PATH=/x:/bin"], "PATH"), some("/x:/bin"));
    assert_eq!(variable(&own, &[], "LD_LIBRARY_PATH"), some("/opt/app/lib"));
    assert_eq!(variable(&none, &[], "LD_LIBRARY_PATH"), None);
    assert_eq!(variable(&none, &[], "LD_PRELOAD"), None);
    assert_eq!(variable(&none, &["--env", "LD_LIBRARY_PATH"], "LD_LIBRARY_PATH"), some("/host/lib"));
}
