//! What the user typed and what the user sees: arguments, verbs, progress, report, exit status.
//!
//! Only this module reads argv and the environment, prints, or exits.

mod args;
mod cache;
mod convert;
mod convert_args;
mod doctor;
mod enter;
mod export;
mod gc;
mod gpu_request;
mod history;
mod image_file;
mod image_traits;
mod image_word;
mod images;
mod inspect;
mod inspect_host;
mod launch;
mod launch_args;
mod launch_env;
mod launch_log;
mod launch_request;
mod launches;
mod layer_cache;
mod limits;
mod loaders;
mod logger;
mod login;
mod mpi;
mod node_cache;
mod output;
mod policy;
mod profile;
mod progress;
mod ps;
mod pull;
mod registries_conf;
mod registry;
mod report;
mod rm;
mod sign;
mod signatures;
mod site;
mod site_registries;
mod size;
mod slurm_task;
mod stores;
mod sync;
mod sync_list;
mod table;
mod tag;
mod trace;
mod unoffered;
mod verify;
mod version;

use std::process::ExitCode;

use clap::CommandFactory as _;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use args::{Cli, Verb};
use report::Failure;

use crate::launch::enact::EnactError;
use crate::sys::privilege;

/// Parses the command line, runs the verb and turns its outcome into the exit status.
pub fn main() -> ExitCode {
    crate::sys::names::use_builtin_services();
    let cli = match Cli::parse_line(&slurm_task::command_line()) {
        Ok(cli) => cli,
        Err(error) => return ExitCode::from(explain_usage(&error)),
    };
    logger::start(cli.verbose, cli.quiet);
    match require_no_elevation().and_then(|()| run(cli)) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.status)
        }
    }
}

/// The definition of the command line, from which `make man` makes the manual pages and the completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// A setuid hpcrun would read and write for its caller what only its owner may.
fn require_no_elevation() -> Result<(), Failure> {
    if privilege::is_elevated() { Err(Failure::new(&EnactError::Elevated)) } else { Ok(()) }
}

fn run(cli: Cli) -> Result<u8, Failure> {
    match cli.verb {
        Verb::Convert(args) => convert::convert(&args, cli.quiet),
        Verb::Pull(args) => pull::pull(&args, cli.quiet),
        Verb::Images(args) => images::run(&args),
        Verb::Tag(args) => tag::run(&args),
        Verb::History(args) => history::run(&args),
        Verb::Rm(args) => rm::run(&args, cli.quiet),
        Verb::Gc(args) => gc::run(&args, cli.quiet),
        Verb::Sync(args) => sync::run(&args),
        Verb::Cache(args) => cache::run(&args, cli.quiet),
        Verb::Export(args) => export::run(&args),
        Verb::Login(args) => login::login(&args, cli.quiet),
        Verb::Logout(args) => login::logout(&args, cli.quiet),
        Verb::Inspect(args) => inspect::run(&args),
        Verb::Verify(args) => verify::run(&args, cli.quiet),
        Verb::Sign(args) => sign::run(&args, cli.quiet),
        Verb::Exec(args) => launch::exec(args),
        Verb::Run(args) => launch::run(args),
        Verb::Shell(args) => launch::shell(&args),
        Verb::Ps(args) => ps::run(&args),
        Verb::Enter(args) => enter::run(args),
        Verb::Trace(args) => trace::run(args, cli.quiet),
        Verb::Report(args) => launches::run(&args),
        Verb::Policy(args) => policy::run(args),
        Verb::Doctor(args) => doctor::run(&args),
    }
}

/// Help and version are data; a wrong command line is a failure before the job.
fn explain_usage(error: &clap::Error) -> u8 {
    match error.kind() {
        ErrorKind::DisplayVersion if version::is_long_wanted(std::env::args_os()) => {
            let _ = output::data(version::long().as_bytes());
            0
        }
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            0
        }
        // Without any word, the whole help is the answer.
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            report::STATUS_FAILED
        }
        _ => {
            let failure =
                unoffered_option(error).unwrap_or_else(|| Failure::usage(&error.render().to_string()));
            failure.print();
            failure.status
        }
    }
}

/// The failure for an option of another tool that a launch has on purpose not.
fn unoffered_option(error: &clap::Error) -> Option<Failure> {
    let usage = error.render().to_string();
    let is_launch =
        ["exec", "run", "shell"].iter().any(|verb| usage.contains(&format!("Usage: hpcrun {verb}")));
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(option)) if is_launch && error.kind() == ErrorKind::UnknownArgument => {
            unoffered::failure(option)
        }
        _ => None,
    }
}
