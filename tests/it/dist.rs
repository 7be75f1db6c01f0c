//! Packages: their files, their metadata, what installing them does, and that the same inputs give the same bytes.
//! They are packed around the program under test, which need not be static for that.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::support::{is_root, run, stdout, text};

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn root_of_sources() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Packs into `out`.
fn pack(manual: &Path, out: &Path) {
    let mut command = Command::new(root_of_sources().join("scripts/dist/package"));
    command.arg(env!("CARGO_BIN_EXE_hpcrun")).args([manual, out]).arg("--fast");
    let output = run(command.env("SOURCE_DATE_EPOCH", "1700000000"));
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

/// The packages, made once in each run of the tests; and where they are.
pub(crate) fn packages() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        // Below the build's directory: nobody removes what a static owns.
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages");
        let _ = fs::remove_dir_all(&directory);
        let manual = directory.join("manual");
        fs::create_dir_all(&manual).unwrap();
        let generator = Path::new(env!("CARGO_BIN_EXE_hpcrun")).with_file_name("examples").join("manual");
        assert!(Command::new(generator).arg(&manual).status().unwrap().success());
        pack(&manual, &directory.join("dist"));
        directory
    })
}

/// The package whose name ends so.
pub(crate) fn package(end: &str) -> PathBuf {
    let found = fs::read_dir(packages().join("dist")).unwrap().map(|entry| entry.unwrap().path());
    let mut found = found.filter(|path| path.to_string_lossy().ends_with(end));
    found.next().unwrap_or_else(|| panic!("no package {end}"))
}

fn arch(other: &'static str, arm: &'static str) -> &'static str {
    if cfg!(target_arch = "x86_64") { other } else { arm }
}

/// What every package has, by the path below the prefix.
fn expected_files() -> Vec<String> {
    let mut files: Vec<String> = [
        "bin/hpcrun",
        "lib/systemd/system/hpcrun-sync.service",
        "lib/systemd/system/hpcrun-sync.timer",
        "lib/systemd/system/hpcrun-premount@.service",
        "libexec/hpcrun/hpcrun-premount",
        "share/bash-completion/completions/hpcrun",
        "share/fish/vendor_completions.d/hpcrun.fish",
        "share/hpcrun/apparmor/hpcrun",
        "share/man/man1/hpcrun.1.gz",
        "share/doc/hpcrun/README.md",
        "share/doc/hpcrun/docs/doctor.md",
        "share/doc/hpcrun/examples/slurm-gpu.toml",
        "share/doc/hpcrun/examples/slurm-prolog",
        "share/doc/hpcrun/examples/images.toml",
    ]
    .map(str::to_owned)
    .to_vec();
    let verbs = hpcrun::cli::command();
    let verbs = verbs.get_subcommands().filter(|verb| !verb.is_hide_set());
    files.extend(verbs.map(|verb| format!("share/man/man1/hpcrun-{}.1.gz", verb.get_name())));
    files
}

#[test]
fn names_say_version_and_architecture_and_checksums_hold() {
    for name in [
        format!("hpcrun-{VERSION}-{}.tar.gz", arch("x86_64", "aarch64")),
        format!("hpcrun_{VERSION}-1_{}.deb", arch("amd64", "arm64")),
        format!("hpcrun-{VERSION}-1.{}.rpm", arch("x86_64", "aarch64")),
    ] {
        assert!(packages().join("dist").join(&name).exists(), "{name}");
    }
    let checked =
        stdout(Command::new("sha256sum").args(["-c", "SHA256SUMS"]).current_dir(packages().join("dist")));
    assert_eq!(checked.lines().filter(|line| line.ends_with(": OK")).count(), 3, "{checked}");
}

#[test]
fn the_same_inputs_give_the_same_bytes() {
    let again = packages().join("again");
    pack(&packages().join("manual"), &again);
    let sums = |directory: &Path| fs::read_to_string(directory.join("SHA256SUMS")).unwrap();
    assert_eq!(sums(&packages().join("dist")), sums(&again));
}

#[test]
fn the_debian_package() {
    let deb = package(".deb");
    let field =
        |name: &str| stdout(Command::new("dpkg-deb").arg("--field").arg(&deb).arg(name)).trim().to_owned();
    assert_eq!(field("Package"), "hpcrun");
    assert_eq!(field("Version"), format!("{VERSION}-1"));
    assert_eq!(field("Architecture"), arch("amd64", "arm64"));
    let listed = stdout(Command::new("dpkg-deb").arg("--contents").arg(&deb));
    for file in expected_files() {
        let place = if file.starts_with("lib/") { format!("./{file}") } else { format!("./usr/{file}") };
        assert!(listed.lines().any(|line| line.ends_with(&format!(" {place}"))), "{place} in {listed}");
    }
    for line in listed.lines() {
        assert!(line.contains(" root/root ") && line.contains(" 2023-11-14 22:13 "), "{line}");
        assert!(!line.get(..10).unwrap().contains('s'), "setuid: {line}");
    }
    let lintian = run(Command::new("lintian").args(["--allow-root", "--fail-on", "error"]).arg(&deb));
    assert!(lintian.status.success(), "{}", text(&lintian.stdout));
}

/// Installed, changed, installed again, removed, purged: by dpkg, in a root of its own.
#[test]
fn an_upgrade_keeps_the_policy_and_a_purge_leaves_nothing() {
    assert!(is_root(), "this test installs a package below a directory: run it as root");
    for has_apparmor_4 in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for made in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "etc/apparmor.d/abi"] {
            fs::create_dir_all(root.join(made)).unwrap();
        }
        fs::write(root.join("var/lib/dpkg/status"), "").unwrap();
        if has_apparmor_4 {
            fs::write(root.join("etc/apparmor.d/abi/4.0"), "").unwrap();
        }
        let dpkg = |words: &[&str]| {
            let mut command = Command::new("dpkg");
            command
                .arg("--root")
                .arg(root)
                .args(["--force-depends", "--force-script-chrootless"])
                .args(words);
            let output = run(&mut command);
            assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
        };
        let deb = package(".deb").display().to_string();
        let (policy, profile) = (root.join("etc/hpcrun/policy.toml"), root.join("etc/apparmor.d/hpcrun"));
        dpkg(&["--install", &deb]);
        assert!(root.join("usr/bin/hpcrun").exists() && policy.exists());
        assert_eq!(profile.exists(), has_apparmor_4, "version 3 of AppArmor would refuse it at every boot");
        fs::write(&policy, "[home]\nbind = false\n").unwrap();
        dpkg(&["--install", &deb]);
        assert_eq!(fs::read_to_string(&policy).unwrap(), "[home]\nbind = false\n");
        dpkg(&["--remove", "hpcrun"]);
        assert!(!root.join("usr/bin/hpcrun").exists() && policy.exists() && !profile.exists());
        dpkg(&["--purge", "hpcrun"]);
        assert!(!root.join("etc/hpcrun").exists());
    }
}

#[test]
fn the_rpm() {
    // rpm makes the directory of its database even to ask a file.
    let database = tempfile::tempdir().unwrap();
    let rpm = |words: &[&str]| {
        let mut command = Command::new("rpm");
        stdout(command.arg("--dbpath").arg(database.path()).arg("-qp").args(words).arg(package(".rpm")))
    };
    let asked = rpm(&["--queryformat", "%{NAME} %{VERSION} %{ARCH} %{BUILDTIME} %{BUILDHOST}"]);
    assert_eq!(asked, format!("hpcrun {VERSION} {} 1700000000 localhost", arch("x86_64", "aarch64")));
    let listed = rpm(&["--list"]);
    for file in expected_files() {
        assert!(listed.lines().any(|line| line == format!("/usr/{file}")), "{file} in {listed}");
    }
    assert_eq!(rpm(&["--configfiles"]), "/etc/hpcrun/policy.toml\n");
    assert!(
        rpm(&["--requires"])
            .lines()
            .all(|line| line.starts_with("rpmlib(") || line == "/bin/sh" || line.starts_with("config("))
    );
    let dump = rpm(&["--dump"]);
    assert!(dump.lines().all(|line| line.contains(" root root ")), "{dump}");
}

/// The parser of this machine, as far as it knows the profile's language: `userns` came with AppArmor 4.
#[test]
fn the_apparmor_profile_parses() {
    let directory = tempfile::tempdir().unwrap();
    let profile = directory.path().join("hpcrun");
    let shipped = fs::read_to_string(root_of_sources().join("site-config/apparmor/hpcrun")).unwrap();
    assert!(shipped.contains("abi <abi/4.0>,") && shipped.contains("\n  userns,\n"), "{shipped}");
    let mut wanted = shipped.replace("@PREFIX@", "/usr");
    if !Path::new("/etc/apparmor.d/abi/4.0").exists() {
        wanted = wanted.replace("abi <abi/4.0>,", "abi <abi/3.0>,").replace("  userns,\n", "");
    }
    fs::write(&profile, wanted).unwrap();
    let parsed = run(Command::new("apparmor_parser").args(["-Q", "-K"]).arg(&profile));
    assert!(parsed.status.success(), "{}", text(&parsed.stderr));
}

#[test]
fn the_units_are_well_formed_and_name_the_installed_program() {
    for (end, prefix) in [(".deb", "/usr"), (".tar.gz", "/usr/local")] {
        let directory = tempfile::tempdir().unwrap();
        let mut command = match end {
            ".deb" => Command::new("dpkg-deb"),
            _ => Command::new("tar"),
        };
        match end {
            ".deb" => command.arg("--extract").arg(package(end)).arg(directory.path()),
            _ => command
                .arg("-xzf")
                .arg(package(end))
                .args(["--strip-components=1", "-C"])
                .arg(directory.path()),
        };
        assert!(run(&mut command).status.success());
        let service =
            fs::read_to_string(directory.path().join("lib/systemd/system/hpcrun-sync.service")).unwrap();
        let line = format!("ExecStart={prefix}/bin/hpcrun sync --site /etc/hpcrun/images.toml");
        assert!(service.lines().any(|found| found == line), "{service}");
        let premount = directory.path().join("lib/systemd/system/hpcrun-premount@.service");
        let premount = fs::read_to_string(premount).unwrap();
        let line = format!("ExecStart={prefix}/libexec/hpcrun/hpcrun-premount mount %f");
        assert!(premount.lines().any(|found| found == line), "{premount}");
        for unit in ["hpcrun-sync.service", "hpcrun-sync.timer"] {
            let text = fs::read_to_string(directory.path().join("lib/systemd/system").join(unit)).unwrap();
            let wrong = text.lines().find(|line| {
                !(line.is_empty()
                    || line.starts_with(['#', '['])
                    || line.split_once('=').is_some_and(|(key, _)| !key.is_empty()))
            });
            assert_eq!((wrong, text.contains('@')), (None, false), "{unit}");
        }
    }
}
