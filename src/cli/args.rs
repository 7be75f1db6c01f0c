//! The command line as typed; values are validated here, nothing is done here.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::cli::launch_args::LaunchOptions;

/// Turn a Docker/OCI image into one squashfs file and run HPC jobs from it.
#[derive(Debug, Parser)]
#[command(
    name = "hpcrun",
    version,
    disable_help_subcommand = true,
    propagate_version = true,
    max_term_width = 110
)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: Verb,

    /// Say more: what is done and why (twice: every detail)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,

    /// Say only errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
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
    /// Fetch an image from a registry into one image file
    ///
    /// The same as 'convert docker://REFERENCE DEST', except that a name without registry may be a short name of
    /// registries.conf.
    Pull(Pull),
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
    /// Check every byte of an image file against the hashes in it
    ///
    /// Exit status: 0 if the file is whole, 1 if it is damaged, 125 if that cannot be said, for want of hashes (they are in
    /// what 'hpcrun convert' and 'hpcrun pull' write).
    Verify(Verify),
    /// Check whether this node can run images, and say what to change
    Doctor(Doctor),
}

/// Arguments of `convert`.
#[derive(Debug, Args)]
pub(crate) struct Convert {
    /// Image to read
    pub(crate) source: OsString,
    /// Image file to write
    pub(crate) dest: PathBuf,
    #[command(flatten)]
    pub(crate) options: ConvertOptions,
}

/// Arguments of `pull`.
#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// Image to fetch: [docker://][HOST[:PORT]/]NAME[:TAG][@DIGEST]
    pub(crate) reference: OsString,
    /// Image file to write [default: NAME.sqsh in the current directory]
    pub(crate) dest: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) options: ConvertOptions,
}

/// Options shared by `convert` and `pull`.
#[derive(Debug, Args)]
pub(crate) struct ConvertOptions {
    /// Replace DEST if it exists
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Compression threads [default: the CPUs this process may use]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) jobs: Option<u16>,
    /// Compression of the image file
    #[arg(long, value_enum, default_value_t = Compressor::Zstd)]
    pub(crate) compression: Compressor,
    /// Compression level [default: zstd 3, gzip 6, xz 6; lz4 has none]
    #[arg(long, value_name = "N")]
    pub(crate) level: Option<u32>,
    /// Bytes of a data block, a power of two from 4K to 1M
    #[arg(long, value_name = "SIZE", default_value = "128K", value_parser = parse_block_size)]
    pub(crate) block_size: u32,
    /// Take layers converted before from DIR, and keep new ones there; 'auto' is $XDG_CACHE_HOME/hpcrun/layers
    #[arg(long, value_name = "DIR", env = "HPCRUN_LAYER_CACHE", hide_env = true)]
    pub(crate) layer_cache: Option<PathBuf>,
    /// Use no layer cache, whatever HPCRUN_LAYER_CACHE and the site say
    #[arg(long)]
    pub(crate) no_layer_cache: bool,
    /// Bytes that the layer cache may take [default: 20G]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) layer_cache_size: Option<u64>,
    /// File with paths in the image, one a line, whose data goes first
    #[arg(long, value_name = "FILE")]
    pub(crate) order: Option<PathBuf>,
    /// Platform to choose from an index: OS/ARCH[/VARIANT] [default: this machine's]
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<String>,
    /// Take layers that their manifest declares foreign or not to be distributed
    #[arg(long)]
    pub(crate) allow_foreign: bool,
    /// Owner of everything that is read from dir:DIR: UID[:GID] or root [default: as on disk]
    #[arg(long, value_name = "OWNER", value_parser = parse_owner)]
    pub(crate) owner: Option<(u32, u32)>,
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
}

/// How a registry is spoken to; shared by all verbs that do.
#[derive(Debug, Args)]
pub(crate) struct RegistryArgs {
    /// File with registry credentials, in the format of docker's config.json and podman's auth.json
    #[arg(long, value_name = "FILE", env = "REGISTRY_AUTH_FILE", hide_env = true)]
    pub(crate) authfile: Option<PathBuf>,
    /// Directory with *.crt, *.cert and *.key for this registry [default: certs.d/HOST of /etc/containers and others]
    #[arg(long, value_name = "DIR")]
    pub(crate) cert_dir: Option<PathBuf>,
    /// With =false, take any certificate of this registry, and plain HTTP where it speaks no TLS
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value_t = true,
        default_missing_value = "true",
        hide_default_value = true,
        hide_possible_values = true,
        action = clap::ArgAction::Set
    )]
    pub(crate) tls_verify: bool,
    /// Speak plain HTTP to this registry (loopback registries need no such leave)
    #[arg(long)]
    pub(crate) plain_http: bool,
}

/// Arguments of `login`.
#[derive(Debug, Args)]
pub(crate) struct Login {
    /// Registry, and a namespace of it if the login is for that alone: HOST[:PORT][/NAMESPACE]
    #[arg(default_value = "docker.io")]
    pub(crate) registry: String,
    /// User name [default: asked for]
    #[arg(short, long, value_name = "USER")]
    pub(crate) username: Option<String>,
    /// Read the password, or an access token, from standard input
    #[arg(long, requires = "username")]
    pub(crate) password_stdin: bool,
    #[command(flatten)]
    pub(crate) options: RegistryArgs,
}

/// Arguments of `logout`.
#[derive(Debug, Args)]
pub(crate) struct Logout {
    /// Registry, as it was logged in to: HOST[:PORT][/NAMESPACE]
    #[arg(default_value = "docker.io")]
    pub(crate) registry: String,
    /// Forget all logins
    #[arg(short, long, conflicts_with = "registry")]
    pub(crate) all: bool,
    /// File with registry credentials
    #[arg(long, value_name = "FILE", env = "REGISTRY_AUTH_FILE", hide_env = true)]
    pub(crate) authfile: Option<PathBuf>,
}

/// Arguments of `export`.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Image file, or a SIF
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

/// Codecs that the writer offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compressor {
    /// Fast to read and to write, small
    Zstd,
    /// For kernels without zstd
    Gzip,
    /// Fastest to read, larger
    Lz4,
    /// Smallest, slow
    Xz,
}

/// Arguments of `exec`.
#[derive(Debug, Args)]
#[command(override_usage = "hpcrun exec [OPTIONS] IMAGE COMMAND [ARG]...")]
pub(crate) struct Exec {
    #[command(flatten)]
    pub(crate) options: LaunchOptions,
    /// Image file, then the command with its arguments
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
    /// Image file, then arguments that replace the image's command
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
    /// Image file
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
    /// Image file, then the command with its arguments
    #[arg(required = true, num_args = 2.., trailing_var_arg = true, value_names = ["IMAGE", "COMMAND"])]
    pub(crate) words: Vec<OsString>,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Image file
    pub(crate) image: PathBuf,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Reading threads [default: the CPUs this process may use]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) jobs: Option<u16>,
    /// Image file
    pub(crate) image: PathBuf,
}

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// A block size in bytes or with the suffix K or M.
fn parse_block_size(text: &str) -> Result<u32, String> {
    let (digits, unit) = split_unit(text);
    let size = digits.parse::<u32>().ok().and_then(|count| u64::from(count).checked_mul(unit));
    size.and_then(|size| u32::try_from(size).ok())
        .filter(|size| size.is_power_of_two() && (4096..=1 << 20).contains(size))
        .ok_or_else(|| "must be a power of two from 4K to 1M".to_owned())
}

/// A size in bytes or with the suffix K, M, G or T.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, unit) = split_unit(text);
    let size = digits.parse::<u64>().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()));
    size.and_then(|size| size.checked_mul(unit))
        .ok_or_else(|| "must be a number of bytes, or one with K, M, G or T behind it".to_owned())
}

/// What stands before a suffix K, M, G or T, and the bytes that the suffix stands for.
fn split_unit(text: &str) -> (&str, u64) {
    let units = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];
    let last = text.chars().last();
    match units.into_iter().find(|(name, _)| last.is_some_and(|last| name.eq_ignore_ascii_case(&last))) {
        Some((_, shift)) => (text.get(..text.len() - 1).unwrap_or_default(), 1 << shift),
        None => (text, 1),
    }
}

/// `root`, `UID` or `UID:GID`; a group that is not named is the one with the user's number.
fn parse_owner(text: &str) -> Result<(u32, u32), String> {
    let number = |text: &str| match text {
        "root" => Some(0),
        text => text.parse::<u32>().ok().filter(|id| *id != u32::MAX),
    };
    let (uid, gid) = text.split_once(':').unwrap_or((text, text));
    number(uid).zip(number(gid)).ok_or_else(|| "must be root, UID or UID:GID".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn block_sizes() {
        for (text, size) in
            [("4096", Some(4096)), ("4K", Some(4096)), ("128k", Some(131_072)), ("1M", Some(1 << 20))]
        {
            assert_eq!(parse_block_size(text).ok(), size, "{text}");
        }
        for text in ["", "K", "0", "3K", "2M", "-4K", "4096K", "99999999999", "1G", "\u{e9}"] {
            assert!(parse_block_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, size) in
            [("0", Some(0)), ("1024", Some(1024)), ("20G", Some(20 << 30)), ("1t", Some(1 << 40))]
        {
            assert_eq!(parse_size(text).ok(), size, "{text}");
        }
        for text in ["", "G", "-1", "+1", "1.5G", "1GB", "99999999999T", "\u{e9}"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn owners() {
        for (text, owner) in [("root", (0, 0)), ("1000", (1000, 1000)), ("0:7", (0, 7)), ("7:root", (7, 0))] {
            assert_eq!(parse_owner(text), Ok(owner), "{text}");
        }
        for text in ["", ":", "1:", ":1", "-1", "me", "4294967295", "4294967296", "1:2:3"] {
            assert!(parse_owner(text).is_err(), "{text}");
        }
    }

    fn words(line: &[&str]) -> Vec<OsString> {
        match Cli::try_parse_from(line).expect("parses").verb {
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
        ] {
            assert!(Cli::try_parse_from(line).expect("parses").quiet);
        }
        for line in [["hpcrun", "-vv", "inspect", "a"], ["hpcrun", "inspect", "-vv", "a"]] {
            assert_eq!(Cli::try_parse_from(line).expect("parses").verbose, 2);
        }
    }
}
