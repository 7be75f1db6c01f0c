//! The command line as typed; values are validated here, nothing is done here.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::cli::convert_args::{Convert, Login, Logout, Pull};
use crate::cli::doctor::Doctor;
use crate::cli::gc::Gc;
use crate::cli::history::History;
use crate::cli::images::Images;
use crate::cli::launch_args::LaunchOptions;
use crate::cli::launches::Report;
use crate::cli::rm::Rm;
use crate::cli::sign::Sign;
use crate::cli::sync::Sync;
use crate::cli::tag::Tag;

/// Turn a Docker/OCI image into one squashfs file and run HPC jobs from it.
#[derive(Debug, Parser)]
#[command(
    name = "hpcrun",
    version,
    disable_help_subcommand = true,
    propagate_version = true,
    max_term_width = 110
)]
pub(crate) struct CommandLine<V: Subcommand> {
    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: V,

    /// Say more: what is done and why (twice: every detail)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,

    /// Say only errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
}

/// The whole command line.
pub(crate) type Cli = CommandLine<Verb>;

impl Cli {
    /// Parses what was typed, the program's name first.
    pub(crate) fn parse_line(line: &[OsString]) -> Result<Cli, clap::Error> {
        // To describe every verb costs more than to parse a launch, and a launch without options is parsed already: it costs
        // 0.2 of 5 ms to say so to the parser. What is wrong is told by the one that knows all.
        if let [_, verb, image, _command, ..] = line
            && verb == "exec"
            && !image.as_encoded_bytes().starts_with(b"-")
        {
            let words = line.get(2..).unwrap_or_default().to_vec();
            let verb = Verb::Exec(Exec { options: LaunchOptions::default(), words });
            return Ok(CommandLine { verb, verbose: 0, quiet: false });
        }
        if line.get(1).is_some_and(|word| word == "exec")
            && let Ok(CommandLine { verb: OnlyExec::Exec(exec), verbose, quiet }) =
                CommandLine::try_parse_from(line)
        {
            return Ok(CommandLine { verb: Verb::Exec(exec), verbose, quiet });
        }
        Cli::try_parse_from(line)
    }
}

/// The verb that each rank of a job runs.
#[derive(Debug, Subcommand)]
enum OnlyExec {
    /// See [`Verb::Exec`].
    Exec(Exec),
}

/// The verbs, in the order of use.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Turn an image into one image file
    ///
    /// SOURCE is docker://[HOST[:PORT]/]NAME[:TAG][@DIGEST], docker-archive:FILE[:REF], oci-archive:FILE[:REF],
    /// oci:DIR[:REF], docker-daemon:NAME, tar:FILE or dir:DIR (a root file system), sif:FILE or squashfs:FILE.
    /// FILE may be - for standard input. Nothing is unpacked; DEST appears when it is complete.
    Convert(Convert),
    /// Fetch an image from a registry into the store, or into one image file
    ///
    /// Without DEST the image is kept in your store, or for root in the site's, and 'hpcrun exec REFERENCE' finds it
    /// there. With DEST it is the same as 'convert docker://REFERENCE DEST'. A name without registry may be a short name
    /// of the site or of registries.conf.
    Pull(Pull),
    /// List the images of your store and of the site's
    Images(Images),
    /// Give an image of the store one more name
    Tag(Tag),
    /// Show which images a name meant, and when; or how an image was built
    History(History),
    /// Take names from a store; images that nothing names go with 'hpcrun gc'
    Rm(Rm),
    /// Remove from a store what nothing names, and what interrupted pulls left
    Gc(Gc),
    /// Have a store hold the images of a list
    ///
    /// One line an image on standard output. What fails does not keep the rest from being done. Exit status: 0 if all is
    /// as the list says.
    Sync(Sync),
    /// Copy images into this node's cache, before a job wants them
    ///
    /// For prologs and boot scripts: what root copies everybody's jobs read. The site's policy says where the cache is
    /// ([store] node_cache).
    Cache(crate::cli::cache::Cache),
    /// Log in to a registry
    ///
    /// Asks for the password, has the registry check it, and keeps it where podman does: in --authfile or
    /// REGISTRY_AUTH_FILE, else in $XDG_RUNTIME_DIR/containers/auth.json, else in ~/.config/containers/auth.json, or
    /// in the credential helper that is configured. Logins of podman and docker are found without this.
    Login(Login),
    /// Forget a login
    Logout(Logout),
    /// Run a command in an image
    ///
    /// hpcrun becomes the command: same process, same user, same network; options go before IMAGE, everything after
    /// IMAGE belongs to the command.
    Exec(Exec),
    /// Run the image's own command, as 'docker run' would
    ///
    /// Without ARG the image's entrypoint and command are run; with ARG the entrypoint gets ARG instead of the command.
    Run(Run),
    /// Open a shell in an image
    Shell(Shell),
    /// List your containers that run on this node
    ///
    /// One line a container: the oldest of its processes, how many there are, for how long, the memory of its image
    /// server, its job, its image and what it runs. Root sees everybody's.
    Ps(Ps),
    /// Join a container of yours that runs on this node
    ///
    /// TARGET is a process of the container, or its job as the launcher calls it (1234, 1234.0). Without a command a
    /// shell is opened. The command gets the environment of that process but for what makes it a rank, and starts in
    /// the working directory if the container shows it, else in that of the process.
    Enter(Enter),
    /// Run a command and keep a profile of what its start reads
    ///
    /// The command is run as by 'hpcrun exec'. Recording ends with the command, after --seconds, or at the first Ctrl-C. The
    /// profile goes into the image file, which is replaced by one that holds it; later launches read those parts ahead.
    /// A further trace adds to the profile that is there. Exit status: the command's.
    Trace(Trace),
    /// Write an image file as a tar or as an OCI archive
    ///
    /// What comes out is the tree of the image; 'hpcrun convert tar:FILE' or 'oci-archive:FILE' makes it an image file
    /// again, 'docker load' and 'podman load' take the OCI archive.
    Export(Export),
    /// Show what an image file holds
    Inspect(Inspect),
    /// Check every byte of an image file against the hashes in it, and its signatures
    ///
    /// Exit status: 0 if the file is whole, 1 if it is damaged, or has no good signature where --signers or the site's
    /// policy asks for one, 125 if that cannot be said, for want of hashes (they are in what 'hpcrun convert' and
    /// 'hpcrun pull' write).
    Verify(Verify),
    /// Sign image files with an SSH key
    ///
    /// ssh-keygen makes the signature, with a key file, an agent or a token, as for 'ssh-keygen -Y sign'. It covers every byte of
    /// the image and is kept in the image file, which is replaced by one that holds it. Other signatures stay; one of the
    /// same key is replaced. A site can require signatures: [images] require_signature in its policy.
    Sign(Sign),
    /// Say which images run, out of the lines that launches have logged
    ///
    /// One line an image: how often it was launched and refused, by how many users in how many jobs on how many nodes, and
    /// when last. The site's policy says whether launches are logged, and where ([log]).
    Report(Report),
    /// Check, explain or show the site policy
    Policy(crate::cli::policy::PolicyArgs),
    /// Check whether this node can run images, and say what to change
    ///
    /// One line a check: ok, warn (something to mend that keeps nothing from running), no (something that does), or n/a, with
    /// what was found and, below it, how to mend it. The last check is a launch. Run it as the user who has the trouble.
    /// Exit status: 0 if images can run here, 1 if not, 125 if that cannot be found out.
    Doctor(Doctor),
}

/// Arguments of `export`.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Image file, SIF, or name of an image
    pub(crate) image: PathBuf,
    /// What to write
    #[arg(long, value_enum, default_value_t = ExportFormat::Tar)]
    pub(crate) format: ExportFormat,
    /// File to write, or directory of an OCI layout [default: -, standard output]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Replace the file if it exists
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Compression of the tar, or of the layer [default: none for tar, gzip for oci and oci-dir]
    #[arg(long, value_enum)]
    pub(crate) compression: Option<ExportCompression>,
    /// Compression level [default: gzip 6, zstd 3]
    #[arg(long, value_name = "N")]
    pub(crate) level: Option<u32>,
    /// Compression threads [default: the CPUs this process may use]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) jobs: Option<u16>,
    /// Name of the image in an OCI archive or layout [default: as it was pulled, else 'latest']
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
}

/// What `export` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    /// A tar of the root file system
    Tar,
    /// A tar of an OCI layout with one layer and the image's config; docker load takes it too
    Oci,
    /// The same in a directory, beside other images if it has some
    OciDir,
}

/// How `export` compresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportCompression {
    /// Not at all
    None,
    /// Understood by everything
    Gzip,
    /// Faster and smaller
    Zstd,
}

/// Arguments of `exec`.
#[derive(Debug, Args)]
#[command(override_usage = "hpcrun exec [OPTIONS] IMAGE COMMAND [ARG]...")]
pub(crate) struct Exec {
    #[command(flatten)]
    pub(crate) options: LaunchOptions,
    /// Image file or name of an image, then the command with its arguments
    #[arg(required = true, num_args = 1.., trailing_var_arg = true, value_names = ["IMAGE", "COMMAND"])]
    pub(crate) words: Vec<OsString>,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
#[command(override_usage = "hpcrun run [OPTIONS] IMAGE [ARG]...")]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) options: LaunchOptions,
    /// Run this program instead of the image's entrypoint and command
    #[arg(long, value_name = "COMMAND")]
    pub(crate) entrypoint: Option<OsString>,
    /// Image file or name of an image, then arguments that replace the image's command
    #[arg(required = true, num_args = 1.., trailing_var_arg = true, value_names = ["IMAGE", "ARG"])]
    pub(crate) words: Vec<OsString>,
}

/// Arguments of `shell`.
#[derive(Debug, Args)]
pub(crate) struct Shell {
    #[command(flatten)]
    pub(crate) options: LaunchOptions,
    /// Program of the image to open [default: the first it has of $SHELL, /bin/bash, /bin/sh]
    #[arg(long, value_name = "PATH")]
    pub(crate) shell: Option<PathBuf>,
    /// Image file or name of an image
    pub(crate) image: PathBuf,
}

/// Arguments of `ps`.
#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `enter`.
#[derive(Debug, Args)]
#[command(override_usage = "hpcrun enter [OPTIONS] TARGET [COMMAND [ARG]...]")]
pub(crate) struct Enter {
    /// Set a variable, or pass the caller's: NAME[=VALUE]; may be repeated
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<OsString>,
    /// Start in this directory of the container
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<PathBuf>,
    /// Process id or job id, then the command with its arguments [default: a shell]
    #[arg(required = true, num_args = 1.., trailing_var_arg = true, value_names = ["TARGET", "COMMAND"])]
    pub(crate) words: Vec<OsString>,
}

/// Arguments of `trace`.
#[derive(Debug, Args)]
#[command(override_usage = "hpcrun trace [OPTIONS] IMAGE COMMAND [ARG]...")]
pub(crate) struct Trace {
    #[command(flatten)]
    pub(crate) options: LaunchOptions,
    /// Keep the profile in FILE and leave the image file as it is; IMAGE.profile is found by launches of IMAGE
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Seconds to record at most
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) seconds: u32,
    /// Forget what was recorded before
    #[arg(long)]
    pub(crate) fresh: bool,
    /// Image file or name of an image, then the command with its arguments
    #[arg(required = true, num_args = 2.., trailing_var_arg = true, value_names = ["IMAGE", "COMMAND"])]
    pub(crate) words: Vec<OsString>,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Say what of this node a launch would get: the site's modules and its MPI, and why not
    #[arg(long, conflicts_with = "json")]
    pub(crate) host: bool,
    /// Image file or name of an image
    pub(crate) image: PathBuf,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Reading threads [default: the CPUs this process may use]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) jobs: Option<u16>,
    /// Ask for a good signature of a key in FILE, which is as for 'ssh-keygen -Y verify -f FILE'
    #[arg(long, value_name = "FILE")]
    pub(crate) signers: Option<PathBuf>,
    /// Image file or name of an image
    pub(crate) image: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    fn parse(line: &[&str]) -> Cli {
        Cli::parse_line(&line.iter().map(OsString::from).collect::<Vec<_>>()).expect("parses")
    }

    fn words(line: &[&str]) -> Vec<OsString> {
        match parse(line).verb {
            Verb::Exec(exec) => exec.words,
            Verb::Run(run) => run.words,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn everything_after_the_image_belongs_to_the_command() {
        assert_eq!(
            words(&["hpcrun", "exec", "-v", "a.sqsh", "ls", "-v", "--bind", "x"]),
            ["a.sqsh", "ls", "-v", "--bind", "x"]
        );
        assert_eq!(words(&["hpcrun", "run", "a.sqsh", "--explain"]), ["a.sqsh", "--explain"]);
        assert_eq!(words(&["hpcrun", "exec", "--", "a.sqsh", "-x"]), ["a.sqsh", "-x"]);
    }

    #[test]
    fn verbosity_before_or_after_the_verb() {
        for line in [
            ["hpcrun", "-q", "inspect", "a"],
            ["hpcrun", "inspect", "-q", "a"],
            ["hpcrun", "inspect", "a", "-q"],
            ["hpcrun", "-q", "exec", "a"],
            ["hpcrun", "exec", "-q", "a"],
        ] {
            assert!(parse(&line).quiet);
        }
        for line in [["hpcrun", "-vv", "inspect", "a"], ["hpcrun", "inspect", "-vv", "a"]] {
            assert_eq!(parse(&line).verbose, 2);
        }
    }

    #[test]
    fn what_is_taken_without_a_parser_is_what_the_parser_makes_of_it() {
        for line in [
            &["hpcrun", "exec", "a.sqsh", "true"][..],
            &["hpcrun", "exec", "a.sqsh", "ls", "-v", "--bind", "x", "--", "--help"],
            &["hpcrun", "exec", "", ""],
            &["hpcrun", "exec", "a.sqsh", "--", "ls", "-h"],
            &["hpcrun", "exec", "a.sqsh"],
        ] {
            let typed: Vec<OsString> = line.iter().map(OsString::from).collect();
            let [taken, parsed] = [Cli::parse_line(&typed), Cli::try_parse_from(&typed)];
            assert_eq!(
                format!("{:?}", taken.expect("taken")),
                format!("{:?}", parsed.expect("parsed")),
                "{line:?}"
            );
        }
    }

    /// A usage message says the same whichever parser came first.
    #[test]
    fn mistakes_are_told_by_the_parser_of_all_verbs() {
        for line in
            [&["hpcrun", "exec"][..], &["hpcrun", "exec", "--bnd", "/x", "a"], &["hpcrun", "exec", "-h"]]
        {
            let typed: Vec<OsString> = line.iter().map(OsString::from).collect();
            let [told, expected] = [Cli::parse_line(&typed), Cli::try_parse_from(&typed)];
            assert_eq!(told.expect_err("mistake").to_string(), expected.expect_err("mistake").to_string());
        }
    }
}
