//! The manual pages and completions are made from the command line's definition, and render without a warning.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Cargo builds the generator beside the program, since it is an example of this package.
fn generator() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_hpcrun")).with_file_name("examples").join("manual")
}

fn generate() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let status = Command::new(generator()).arg(directory.path()).status().unwrap();
    assert!(status.success());
    directory
}

#[test]
fn every_verb_has_a_page_that_renders_without_a_warning() {
    let directory = generate();
    let mut pages = vec!["hpcrun".to_owned()];
    let verbs = hpcrun::cli::command();
    let shown = verbs.get_subcommands().filter(|verb| !verb.is_hide_set());
    pages.extend(shown.map(|verb| format!("hpcrun-{}", verb.get_name())));
    for page in &pages {
        let path = directory.path().join("man1").join(format!("{page}.1"));
        let done =
            Command::new("groff").args(["-man", "-ww", "-Tascii", "-P-cbou"]).arg(&path).output().unwrap();
        let warnings = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success() && warnings.is_empty(), "{page}: {warnings}");
        let text = String::from_utf8_lossy(&done.stdout);
        assert!(text.contains("SYNOPSIS") && text.contains("DESCRIPTION"), "{page}: {text}");
    }
    let found = std::fs::read_dir(directory.path().join("man1")).unwrap().count();
    assert_eq!(found, pages.len());
}

#[test]
fn completions_know_the_verbs() {
    let directory = generate();
    for file in ["hpcrun.bash", "hpcrun.fish", "_hpcrun"] {
        let text = std::fs::read_to_string(directory.path().join("completions").join(file)).unwrap();
        for verb in hpcrun::cli::command().get_subcommands() {
            assert!(text.contains(verb.get_name()), "{file} lacks {}", verb.get_name());
        }
    }
}

#[test]
fn a_directory_that_cannot_be_made_is_an_error() {
    let done = Command::new(generator()).arg("/proc/none").output().unwrap();
    assert!(!done.status.success());
    assert!(String::from_utf8_lossy(&done.stderr).contains("/proc/none"));
}
