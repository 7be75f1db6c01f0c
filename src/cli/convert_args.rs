//! The arguments of the verbs that speak to registries or make image files, and the values they take.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::cli::stores::StoreChoice;

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
    /// Image file to write [default: the store, where 'hpcrun exec NAME' finds it]
    pub(crate) dest: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) store: StoreChoice,
    #[command(flatten)]
    pub(crate) options: ConvertOptions,
}

/// Options shared by `convert`, `pull` and `sync`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConvertOptions {
    /// Replace the image file if it exists
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
#[derive(Debug, Clone, Args)]
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
}
