//! Writes the manual pages and the shell completions from the definition of the command line.
//!
//! usage: manual DIR: makes `DIR/man1/*.1` and `DIR/completions/*`

#![expect(clippy::print_stderr, reason = "this is a program of its own")]

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

/// What the definition of the command line does not say.
const ABOUT_ALL: &str = include_str!("about.roff");

fn main() -> ExitCode {
    let Some(directory) = std::env::args_os().nth(1) else {
        eprintln!("usage: manual DIR");
        return ExitCode::FAILURE;
    };
    match write_all(Path::new(&directory)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("manual: cannot write to {}: {error}", directory.display());
            ExitCode::FAILURE
        }
    }
}

fn write_all(directory: &Path) -> io::Result<()> {
    let mut command = hpcrun::cli::command();
    command.build();
    write_pages(&command, &directory.join("man1"))?;
    write_completions(&mut command, &directory.join("completions"))
}

/// One page for hpcrun, and one for each verb: `hpcrun-convert.1`.
fn write_pages(command: &Command, directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let mut page = File::create(directory.join("hpcrun.1"))?;
    Man::new(command.clone()).manual("hpcrun").render(&mut page)?;
    page.write_all(ABOUT_ALL.as_bytes())?;
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        let mut page = File::create(directory.join(format!("hpcrun-{}.1", verb.get_name())))?;
        Man::new(verb.clone()).manual("hpcrun").render(&mut page)?;
        page.write_all(b".SH SEE ALSO\n.BR hpcrun (1)\n")?;
    }
    Ok(())
}

fn write_completions(command: &mut Command, directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, command, "hpcrun", directory)?;
    }
    Ok(())
}
