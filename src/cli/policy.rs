//! `hpcrun policy`: the site policy looked at by itself.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Args, Parser as _, Subcommand};

use crate::cli::args::{Cli, Verb};
use crate::cli::report::Failure;
use crate::cli::{launch, output, site};
use crate::policy::file::Problem;
use crate::policy::{POLICY_PATH, PolicyError, show};

/// Exit status of a check that found something.
const STATUS_WRONG: u8 = 1;

/// Arguments of `policy`.
#[derive(Debug, Args)]
pub(crate) struct PolicyArgs {
    #[command(subcommand)]
    action: Action,
}

/// What is done with it.
#[derive(Debug, Subcommand)]
enum Action {
    /// Find all that is wrong with a policy
    ///
    /// FILE is a draft, whoever wrote it, and is read with its drop-ins as the site's would be; without it the site's own is
    /// read, and who could have written it is checked, too. Exit status: 0 if it is valid, 1 if not.
    Check {
        /// Policy to check [default: the site's]
        file: Option<PathBuf>,
    },
    /// Show which rule decides what about a launch, which is not done
    ///
    /// Options of 'hpcrun exec' follow after '--'.
    #[command(override_usage = "hpcrun policy explain IMAGE [-- OPTION...]")]
    Explain {
        /// Image file
        image: OsString,
        /// Options of the launch
        #[arg(last = true, value_name = "OPTION")]
        options: Vec<OsString>,
    },
    /// Print the policy as one file, each value with where it comes from
    Show {
        /// Policy to show, whoever wrote it [default: the site's]
        file: Option<PathBuf>,
        /// With all drop-ins and defaults, as it holds
        #[arg(long)]
        effective: bool,
    },
}

/// Runs `hpcrun policy`.
pub(crate) fn run(args: PolicyArgs) -> Result<u8, Failure> {
    match args.action {
        Action::Check { file } => check(file),
        Action::Explain { image, options } => explain(image, options),
        Action::Show { file, effective } => show_policy(file, effective),
    }
}

fn check(file: Option<PathBuf>) -> Result<u8, Failure> {
    let mut text = String::new();
    let status = match site::parsed(file.as_deref())? {
        Ok(policy) if policy.files().is_empty() => {
            let _ = writeln!(text, "{POLICY_PATH} does not exist: hpcrun's defaults hold");
            0
        }
        Ok(policy) => {
            for file in policy.files() {
                let _ = writeln!(text, "{}: valid", output::one_line(&file.path.display().to_string()));
            }
            0
        }
        Err(error) => {
            for problem in &error.problems {
                text.push_str(&described(&error, problem));
            }
            STATUS_WRONG
        }
    };
    output::data(text.as_bytes())?;
    Ok(status)
}

/// The problem, the line that it is in with the place marked, and what was probably meant.
fn described(error: &PolicyError, problem: &Problem) -> String {
    let file = error.file_of(problem);
    let path = file.map(|file| file.path.display().to_string()).unwrap_or_default();
    let mut text = format!("{}\n", output::one_line(&format!("{path}:{problem}")));
    let line = file.and_then(|file| file.text.lines().nth(problem.at.line.saturating_sub(1)));
    if let Some(line) = line.filter(|line| !line.trim().is_empty()) {
        // Tabs take one place here as they do in the column.
        let line = output::one_line(&line.replace('\t', " "));
        let before = " ".repeat(problem.at.column.saturating_sub(1));
        let _ = writeln!(text, "    {line}\n    {before}^");
    }
    if let Some(hint) = &problem.hint {
        let _ = writeln!(text, "    hint: {}", output::one_line(hint));
    }
    text
}

/// The launch's own explanation: every decision in it names its rule.
fn explain(image: OsString, options: Vec<OsString>) -> Result<u8, Failure> {
    let words = ["hpcrun", "exec", "--explain"].map(OsString::from).into_iter();
    let words = words.chain(options).chain(["--".into(), image, "true".into()]);
    match Cli::try_parse_from(words).map_err(|error| Failure::usage(&error.render().to_string()))?.verb {
        Verb::Exec(exec) => launch::exec(exec),
        _ => Err(Failure::plain("only options of 'hpcrun exec' can be explained")),
    }
}

fn show_policy(file: Option<PathBuf>, effective: bool) -> Result<u8, Failure> {
    let policy = site::parsed(file.as_deref())?.map_err(|error| Failure::new(&error))?;
    if effective {
        return output::data(show::effective(policy.files()).as_bytes());
    }
    let mut text = String::new();
    for file in policy.files() {
        let path = output::one_line(&file.path.display().to_string());
        let _ = writeln!(text, "# {path}\n{}", file.text.trim_end());
    }
    output::data(text.as_bytes())
}
