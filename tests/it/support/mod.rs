//! What tests share: a scratch directory, the program under test run as an ordinary user, oracles run as root.

#![allow(dead_code, reason = "each test module uses its own part")]

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The ordinary user that hpcrun runs as when the tests run as root; `make test` creates it.
pub const TEST_USER: &str = "hpcrun-test";

/// Whether the tests run as root (then the program under test does not).
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A scratch directory that [`TEST_USER`] can reach and write to; removed on drop.
pub fn scratch() -> tempfile::TempDir {
    let dir =
        tempfile::Builder::new().prefix("hpcrun-test-").tempdir_in("/tmp").expect("a directory in /tmp");
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).expect("chmod");
    dir
}

/// The binary under test, at a path that an ordinary user can reach.
pub fn binary() -> &'static Path {
    static COPY: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = COPY.get_or_init(|| {
        let dir =
            tempfile::Builder::new().prefix("hpcrun-bin-").tempdir_in("/tmp").expect("a directory in /tmp");
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("chmod");
        let path = dir.path().join("hpcrun");
        std::fs::copy(env!("CARGO_BIN_EXE_hpcrun"), &path).expect("copy of the binary");
        (dir, path)
    });
    path
}

/// A command run as the ordinary user: as [`TEST_USER`] when the tests run as root, else as the caller.
pub fn as_user(program: impl AsRef<OsStr>) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", TEST_USER, "--regid", TEST_USER, "--init-groups", "--inh-caps=-all", "--"])
        .arg(program)
        .env("HOME", format!("/home/{TEST_USER}"))
        .env("USER", TEST_USER)
        .env("LOGNAME", TEST_USER)
        .current_dir("/tmp");
    command
}

/// `hpcrun ARGS...` as the ordinary user.
pub fn hpcrun<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = as_user(binary());
    command.args(args);
    command
}

/// Runs a command that must succeed; gives its standard output.
#[track_caller]
pub fn stdout(command: &mut Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, text(&output.stderr));
    text(&output.stdout)
}

/// Runs a command to its end.
#[track_caller]
pub fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; does 'make test' install it?"))
}

/// Output bytes for messages and comparisons.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The seed of randomised tests: `HPCRUN_SEED`, else always the same. Printed, so that a failure can be repeated.
pub fn seed() -> u64 {
    let seed = std::env::var("HPCRUN_SEED").map_or(1, |seed| seed.parse().expect("HPCRUN_SEED is a number"));
    println!("HPCRUN_SEED={seed}");
    seed
}

/// A small, fast, seeded generator (xorshift64*), so that a failure can be repeated from its printed seed.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator; equal seeds give equal sequences.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
