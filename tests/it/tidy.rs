//! The architecture's invariants, read off the source text: who imports whom, where `unsafe`, the environment and
//! printing may occur, which files are pure.

use std::fs;
use std::path::{Path, PathBuf};

/// A module of `src/` with the modules it may import (`hint` and itself are always allowed).
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("cli", &["convert", "mount", "launch", "policy", "host", "image", "squashfs", "store", "elf", "sys"]),
    ("convert", &["image", "squashfs", "elf", "sys"]),
    ("mount", &["squashfs", "host", "image", "sys"]),
    ("launch", &["mount", "policy", "host", "image", "elf", "sys"]),
    ("policy", &["image"]),
    ("host", &["elf", "sys"]),
    ("image", &[]),
    ("store", &["image", "sys"]),
    // The writer's one output file.
    ("squashfs", &["sys"]),
    ("elf", &[]),
    ("sys", &[]),
    // Slurm's plugin, a package of its own.
    ("spank", &[]),
];

/// A source file: path relative to the repository, and its text without test modules and comments.
struct Source {
    path: String,
    text: String,
    code: String,
}

impl Source {
    fn module(&self) -> &str {
        self.path.trim_start_matches("src/").split(['/', '.']).next().unwrap_or_default()
    }

    fn is_pure(&self) -> bool {
        ["policy", "image", "elf"].contains(&self.module())
            || self.path.ends_with("/plan.rs")
            || self.path == "spank/src/options.rs"
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    collect(&root.join("src"), &mut files);
    collect(&root.join("spank/src"), &mut files);
    files
        .into_iter()
        .map(|file| {
            let text = fs::read_to_string(&file).expect("source is UTF-8");
            let is_test = file.file_name().is_some_and(|name| name == "tests.rs");
            let shipped = text.split("#[cfg(test)]").next().filter(|_| !is_test).unwrap_or_default();
            let code = shipped
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
                .fold(String::new(), |code, line| code + line + "\n");
            let path = file.strip_prefix(root).expect("below the root").display().to_string();
            Source { path, text, code }
        })
        .collect()
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("directory") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
}

/// Fails with every line of `breaches`.
#[track_caller]
fn assert_none(rule: &str, breaches: Vec<String>) {
    assert!(breaches.is_empty(), "{rule}:\n{}", breaches.join("\n"));
}

/// The files whose code contains one of `words`, except those that `allowed` lets.
fn containing(words: &[&str], allowed: impl Fn(&Source) -> bool) -> Vec<String> {
    sources()
        .iter()
        .filter(|source| !allowed(source))
        .flat_map(|source| {
            words
                .iter()
                .filter(|word| source.code.contains(*word))
                .map(|word| format!("{}: {word}", source.path))
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Modules named after `crate::` in `code`, one-level groups included: `crate::{image, sys::Error}`.
fn imports(code: &str) -> Vec<String> {
    code.split("crate::")
        .skip(1)
        .flat_map(|rest| {
            let list = match rest.strip_prefix('{') {
                Some(group) => group.split('}').next().unwrap_or_default(),
                None => rest,
            };
            let items = if rest.starts_with('{') { list.split(',').collect() } else { vec![list] };
            items
                .into_iter()
                .map(|item| {
                    item.trim()
                        .chars()
                        .take_while(|c| c.is_ascii_lowercase() || *c == '_')
                        .collect::<String>()
                })
                .collect::<Vec<_>>()
        })
        .filter(|name| !name.is_empty())
        .collect()
}

#[test]
fn modules_import_only_what_the_map_allows() {
    let known: Vec<&str> = MAY_IMPORT.iter().map(|(module, _)| *module).collect();
    let mut breaches = Vec::new();
    for source in sources() {
        let Some((module, allowed)) = MAY_IMPORT.iter().find(|(module, _)| *module == source.module()) else {
            continue;
        };
        for import in imports(&source.code) {
            if known.contains(&import.as_str()) && import != *module && !allowed.contains(&import.as_str()) {
                breaches.push(format!("{}: {module} may not import {import}", source.path));
            }
        }
    }
    assert_none("import direction", breaches);
}

#[test]
fn every_module_is_in_the_map() {
    let unknown = sources()
        .iter()
        .map(|source| source.module().to_owned())
        .filter(|module| !["lib", "main", "hint"].contains(&module.as_str()))
        .filter(|module| !MAY_IMPORT.iter().any(|(known, _)| known == module))
        .collect();
    assert_none("modules missing from the map", unknown);
}

#[test]
fn unsafe_only_below_sys_and_at_slurms_interface() {
    let allowed = |source: &Source| source.module() == "sys" || source.path == "spank/src/abi.rs";
    assert_none("unsafe", containing(&["unsafe ", "unsafe_code"], allowed));
}

#[test]
fn pure_files_touch_nothing() {
    let impure =
        ["std::fs", "std::env", "SystemTime", "Instant::now", "crate::sys", "std::process", "std::net"];
    assert_none("pure files", containing(&impure, |source| !source.is_pure()));
}

#[test]
fn only_cli_reads_the_environment_prints_or_exits() {
    let words = [
        "env::var",
        "env::args",
        "env::current_dir",
        "print!(",
        "println!",
        "process::exit(",
        "io::stdout",
        "io::stderr",
    ];
    assert_none("cli's own", containing(&words, |source| ["cli", "main"].contains(&source.module())));
}

#[test]
fn only_the_probe_reads_proc_and_sys_for_facts() {
    let words =
        ["read(\"/proc", "read(\"/sys", "read_to_string(\"/proc", "read_to_string(\"/sys", "open(\"/proc"];
    let allowed = |source: &Source| source.module() == "sys" || source.path.starts_with("src/host/probe");
    assert_none("facts of the node", containing(&words, allowed));
}

#[test]
fn no_drawers() {
    let drawers = ["util", "utils", "common", "misc", "helper", "helpers"];
    let named = sources()
        .iter()
        .filter(|source| source.path.split(['/', '.']).any(|part| drawers.contains(&part)))
        .map(|source| source.path.clone())
        .collect();
    assert_none("file names that say nothing", named);
}

#[test]
fn every_file_begins_with_its_job() {
    let silent = sources().iter().filter(|s| !s.text.starts_with("//!")).map(|s| s.path.clone()).collect();
    assert_none("files without a module comment", silent);
}

#[test]
fn source_is_ascii() {
    let other = sources().iter().filter(|s| !s.text.is_ascii()).map(|s| s.path.clone()).collect();
    assert_none("files with other characters", other);
}

#[test]
fn every_test_file_is_registered() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    let main = fs::read_to_string(directory.join("main.rs")).expect("main.rs");
    let mut missing = Vec::new();
    for entry in fs::read_dir(&directory).expect("tests/it") {
        let name = entry.expect("entry").file_name().into_string().expect("ASCII name");
        let module = name.trim_end_matches(".rs");
        if module != "main" && !main.contains(&format!("mod {module};")) {
            missing.push(name);
        }
    }
    assert_none("test files that never run", missing);
}
