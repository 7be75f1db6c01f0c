//! This machine's MPI in place of the image's, what is refused and why, and what is said of ranks that will not find each
//! other: with MPICH and Intel MPI as PyPI has them (scripts/mpi-wheels), which is where both of MPI's ABIs can be had.

#![allow(clippy::expect_used, reason = "a test that cannot get what it needs fails there")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use crate::support::{as_user, binary, hpcrun, run, scratch, stdout, text};

/// Ranks that do not find each other may wait for ever.
const LIMIT_S: &str = "60";

const PROGRAM: &str = r#"
#include <mpi.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    char version[MPI_MAX_LIBRARY_VERSION_STRING];
    int length, rank, size, sum = 0, one = 1;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Get_library_version(version, &length);
    MPI_Allreduce(&one, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    version[strcspn(version, "\n")] = 0;
    printf("rank %d of %d, sum %d, %s\n", rank, size, sum, version);
    MPI_Finalize();
    return 0;
}
"#;

/// What the tests have in common: the host's installations, as an ordinary user can reach them.
struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    fn get() -> &'static Site {
        static SITE: OnceLock<Site> = OnceLock::new();
        SITE.get_or_init(|| {
            let dir = scratch();
            // The images are the user's; the policies beside them are root's, as only the sticky bit keeps them.
            fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o1777)).expect("chmod");
            let wheels = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/mpi-wheels");
            for name in ["mpich", "impi"] {
                let from = wheels.join(name);
                assert!(from.is_dir(), "{} is missing: scripts/setup fetches it", from.display());
                stdout(Command::new("cp").arg("-r").arg(&from).arg(dir.path().join(name)));
            }
            fs::write(dir.path().join("program.c"), PROGRAM).expect("source");
            Site { dir }
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A policy whose --mpi=host means these libraries.
    fn policy(&self, name: &str, libraries: &[PathBuf], more: &str) -> PathBuf {
        let list: Vec<String> =
            libraries.iter().map(|path| format!("{:?}", path.display().to_string())).collect();
        let text = format!(
            "[mpi]\nhost_module = \"site-mpi\"\n\n[modules.site-mpi]\nlibraries = [{}]\n{more}",
            list.join(", ")
        );
        let path = self.path(&format!("{name}.toml"));
        fs::write(&path, text).expect("policy");
        path
    }

    /// The library of MPICH's or Intel's wheel.
    fn library(&self, of: &str, soname: &str) -> PathBuf {
        self.path(of).join("lib").join(soname)
    }
}

/// A root tree that becomes an image.
struct Root {
    tree: PathBuf,
}

impl Root {
    fn new(name: &str) -> Root {
        let tree = Site::get().path(name);
        for directory in ["app", "usr/lib/x86_64-linux-gnu", "usr/lib64", "usr/bin", "opt/mpi/lib", "etc"] {
            fs::create_dir_all(tree.join(directory)).expect("directory");
        }
        for (link, target) in [("lib", "usr/lib"), ("lib64", "usr/lib64"), ("bin", "usr/bin")] {
            std::os::unix::fs::symlink(target, tree.join(link)).expect("link");
        }
        Root { tree }
    }

    fn file(&self, from: &Path, to: &str) -> &Root {
        fs::copy(from, self.tree.join(to)).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
        self
    }

    /// Puts a directory of the host, with all that is in it, into a directory of the tree.
    fn directory(&self, from: &Path, to: &str) -> &Root {
        stdout(Command::new("cp").arg("-r").arg(from).arg(self.tree.join(to)));
        self
    }

    /// The loader and what these files need, without what they find in `without`.
    fn libraries_of(&self, files: &[&Path], without: &Path) -> &Root {
        let output = run(Command::new("ldd").args(files).env("LD_LIBRARY_PATH", without));
        for word in text(&output.stdout).split_whitespace() {
            let path = Path::new(word);
            if word.starts_with('/') && !word.ends_with(':') && !path.starts_with(without) && path.is_file() {
                let directory =
                    if word.contains("/ld-linux") { "usr/lib64" } else { "usr/lib/x86_64-linux-gnu" };
                let name = path.file_name().expect("name").to_string_lossy().into_owned();
                self.file(path, &format!("{directory}/{name}"));
            }
        }
        // All of glibc, as every image has it, needed here or not.
        for name in ["libdl.so.2", "libm.so.6", "libpthread.so.0", "librt.so.1"] {
            let path = format!("usr/lib/x86_64-linux-gnu/{name}");
            self.file(&Path::new("/").join(&path), &path);
        }
        self
    }

    /// Converts it, with a list of its libraries as a distribution has it.
    fn image(&self) -> PathBuf {
        stdout(Command::new("ldconfig").arg("-r").arg(&self.tree));
        let image = self.tree.with_extension("sqsh");
        stdout(hpcrun(["convert", "--force"]).arg(format!("dir:{}", self.tree.display())).arg(&image));
        image
    }
}

/// Compiles the program against MPICH's wheel, whose ABIs are everybody's.
fn compile(name: &str, library: &str, flags: &[&str]) -> PathBuf {
    let site = Site::get();
    let program = site.path(name);
    let mpich = site.path("mpich");
    let mut gcc = Command::new("gcc");
    gcc.arg(site.path("program.c")).arg("-I").arg(mpich.join("include")).arg("-L").arg(mpich.join("lib"));
    gcc.args(["-Wl,--allow-shlib-undefined", &format!("-l{library}")]).args(flags);
    stdout(gcc.arg("-o").arg(&program));
    program
}

/// An image with the program as /app/run and the library of a wheel, in the loader's list or in /opt/mpi/lib alone.
fn image(name: &str, library: &str, of: &str, soname: &str, is_apart: bool) -> PathBuf {
    let site = Site::get();
    let mut flags = vec![];
    if library == "mpi_abi" {
        flags.push("-DMPI_ABI");
    }
    if is_apart {
        flags.extend(["-Wl,--disable-new-dtags", "-Wl,-rpath,/opt/mpi/lib"]);
    }
    let program = compile(&format!("{name}.bin"), library, &flags);
    let own = site.library(of, soname);
    let root = Root::new(name);
    let directory = if is_apart { "opt/mpi/lib" } else { "usr/lib/x86_64-linux-gnu" };
    root.file(&program, "app/run").file(&own, &format!("{directory}/{soname}"));
    let directory_of_own = own.parent().expect("directory");
    root.libraries_of(&[&program, &own], directory_of_own);
    // MPICH's wheel has its fabrics in a directory beside the library, which finds them there.
    let fabrics = directory_of_own.join(of);
    if fabrics.is_dir() {
        root.directory(&fabrics, directory);
    }
    root.image()
}

/// Two ranks under MPICH's own mpiexec.
fn mpiexec(policy: &Path, options: &[&str], image: &Path) -> Output {
    let mut command = as_user("timeout");
    command.args(["--signal=KILL", LIMIT_S]).arg(Site::get().path("mpich/bin/mpiexec")).args(["-n", "2"]);
    command.arg(binary()).arg("exec").args(options).arg(image).arg("/app/run").env("HPCRUN_POLICY", policy);
    run(&mut command)
}

fn report(output: &Output) -> String {
    format!("{}\n{}\n{}", output.status, text(&output.stdout), text(&output.stderr))
}

/// Both ranks saw both, and ran with this library.
#[track_caller]
fn check_ranks(output: &Output, library: &str) {
    assert!(output.status.success(), "{}", report(output));
    let mut lines: Vec<String> = text(&output.stdout).lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines.len(), 2, "{}", report(output));
    for (rank, line) in lines.iter().enumerate() {
        assert!(line.starts_with(&format!("rank {rank} of 2, sum 2, {library}")), "{}", report(output));
    }
}

const MPICH: &str = "MPICH Version";
const INTEL: &str = "Intel(R) MPI Library";

#[test]
fn mpich_s_program_runs_with_intel_mpi_of_the_host() {
    let (site, image) = (Site::get(), image("mpich12", "mpi", "mpich", "libmpi.so.12", false));
    let policy = site.policy("mpich12", &[site.library("impi", "libmpi.so.12")], "");
    check_ranks(&mpiexec(&policy, &[], &image), MPICH);
    check_ranks(&mpiexec(&policy, &["--mpi=host"], &image), INTEL);

    let explained = stdout(
        hpcrun(["exec", "--explain", "--mpi=host"]).arg(&image).arg("/app/run").env("HPCRUN_POLICY", &policy),
    );
    let cover = format!(
        "{} in place of /usr/lib/x86_64-linux-gnu/libmpi.so.12",
        site.library("impi", "libmpi.so.12").display()
    );
    assert!(explained.contains(&cover), "{explained}");
    assert!(explained.contains("mpich12.toml:4"), "each step names the rule: {explained}");
}

#[test]
fn intel_s_library_gives_way_to_mpich_of_the_host() {
    let (site, image) = (Site::get(), image("impi12", "mpi", "impi", "libmpi.so.12", false));
    let policy = site.policy("impi12", &[site.library("mpich", "libmpi.so.12")], "");
    check_ranks(&mpiexec(&policy, &[], &image), INTEL);
    check_ranks(&mpiexec(&policy, &["--mpi=host"], &image), MPICH);
}

#[test]
fn the_standard_abi_is_swapped_both_ways() {
    let site = Site::get();
    for (name, own, other, own_version, other_version) in
        [("mpich-abi", "mpich", "impi", MPICH, INTEL), ("impi-abi", "impi", "mpich", INTEL, MPICH)]
    {
        let image = image(name, "mpi_abi", own, "libmpi_abi.so.1", false);
        let policy = site.policy(name, &[site.library(other, "libmpi_abi.so.1")], "");
        check_ranks(&mpiexec(&policy, &[], &image), own_version);
        check_ranks(&mpiexec(&policy, &["--mpi=host"], &image), other_version);
    }
}

#[test]
fn a_program_with_its_directory_built_in_gets_the_host_s_too() {
    let (site, image) = (Site::get(), image("rpath", "mpi", "mpich", "libmpi.so.12", true));
    let policy = site.policy("rpath", &[site.library("impi", "libmpi.so.12")], "");
    check_ranks(&mpiexec(&policy, &[], &image), MPICH);
    check_ranks(&mpiexec(&policy, &["--module", "site-mpi"], &image), INTEL);
}

#[test]
fn debian_s_program_gets_the_host_s_under_debian_s_name() {
    let site = Site::get();
    let program = site.path("debian.bin");
    stdout(Command::new("mpicc.mpich").arg(site.path("program.c")).arg("-o").arg(&program));
    let root = Root::new("debian");
    root.file(&program, "app/run").libraries_of(&[&program], Path::new("/nonexistent"));
    let image = root.image();
    let policy = site.policy(
        "debian",
        &[site.library("impi", "libmpi.so.12")],
        "mode = \"auto\"\nmatch = { soname = \"libmpich.so.12\" }\n",
    );
    check_ranks(&mpiexec(&policy, &[], &image), INTEL);
    // Without a trailer the module looks where loaders do.
    check_ranks(&mpiexec(&policy, &[], &bare("debian")), INTEL);
    let facts: serde_json::Value =
        serde_json::from_str(&stdout(hpcrun(["inspect", "--json"]).arg(&image))).expect("JSON");
    let libraries = facts["facts"]["libraries"].as_array().expect("libraries").clone();
    let mpi = libraries.iter().find(|library| library["soname"] == "libmpich.so.12").expect("Debian's MPICH");
    assert_eq!((mpi["family"].as_str(), mpi["role"].as_str()), (Some("mpich"), Some("mpi")));
}

/// `hpcrun exec --mpi=host` with these libraries fails with `expected`.
#[track_caller]
fn check_refused(policy: &Path, image: &Path, expected: &str) {
    let output = run(hpcrun(["exec", "--mpi=host"]).arg(image).arg("/app/run").env("HPCRUN_POLICY", policy));
    assert_eq!(output.status.code(), Some(125), "{}", report(&output));
    assert!(text(&output.stderr).contains(expected), "{expected}\n{}", report(&output));
    assert_eq!(text(&output.stdout), "");
}

#[test]
fn refusals_name_library_version_and_symbol() {
    let (site, image) = (Site::get(), image("refused", "mpi", "mpich", "libmpi.so.12", false));
    let shared = |name: &str, source: &str, flags: &[&str]| {
        let (file, code) = (site.path(name), site.path(&format!("{name}.c")));
        fs::write(&code, source).expect("source");
        stdout(Command::new("gcc").args(["-shared", "-fPIC"]).arg(&code).args(flags).arg("-o").arg(&file));
        file
    };
    let functions =
        "int MPI_Init, MPI_Comm_rank, MPI_Comm_size, MPI_Get_library_version, MPI_Finalize, MPIR_x;";
    let lacking = shared("lacking.so", functions, &["-Wl,-soname,libmpi.so.12"]);
    let policy = site.policy("lacking", std::slice::from_ref(&lacking), "");
    check_refused(
        &policy,
        &image,
        &format!("/app/run of the image uses MPI_Allreduce, which {} does not define", lacking.display()),
    );
    let orphan = shared("libnowhere.so.3", "int x;", &["-Wl,-soname,libnowhere.so.3"]);
    let needing = shared(
        "needing.so",
        functions,
        &["-Wl,-soname,libmpi.so.12", "-Wl,--no-as-needed", orphan.to_str().expect("text")],
    );
    fs::remove_file(&orphan).expect("removed");
    let policy = site.policy("needing", &[needing], "");
    check_refused(&policy, &image, "needs libnowhere.so.3, which this node does not have");
    let policy = site.policy("gone", &[site.path("no-such-library.so")], "");
    let output =
        run(hpcrun(["exec", "--mpi=host"]).arg(&image).arg("/app/run").env("HPCRUN_POLICY", &policy));
    assert!(text(&output.stderr).contains("no such library"), "{}", report(&output));

    // An image of an older system, as far as its glibc tells.
    let map = site.path("old.map");
    fs::write(&map, "GLIBC_2.2.5 { global: *; };\nGLIBC_2.17 { } GLIBC_2.2.5;\n").expect("map");
    let script = format!("-Wl,--version-script={}", map.display());
    let old = shared("old-libc.so", "int puts;", &["-nostdlib", "-Wl,-soname,libc.so.6", &script]);
    let root = Root::new("old");
    root.file(&site.path("refused.bin"), "app/run").file(&old, "usr/lib/x86_64-linux-gnu/libc.so.6");
    root.file(&site.library("mpich", "libmpi.so.12"), "usr/lib/x86_64-linux-gnu/libmpi.so.12");
    let intel = site.library("impi", "libmpi.so.12");
    let policy = site.policy("old", std::slice::from_ref(&intel), "");
    let expected = format!("{} needs GLIBC_2.25, and the image has glibc 2.17", intel.display());
    check_refused(&policy, &root.image(), &expected);
}

#[test]
fn what_is_only_offered_and_does_not_fit_is_left_out_with_a_warning() {
    let (site, image) = (Site::get(), image("offered", "mpi", "mpich", "libmpi.so.12", false));
    let offered = |name: &str, library: PathBuf| {
        site.policy(name, &[library], "mode = \"auto\"\nmatch = { host = \"*\" }\n")
    };
    let policy = offered("offered", site.library("impi", "libmpi_abi.so.1"));
    let gone = offered("offered-gone", site.path("nowhere.so"));
    for (policy, why) in
        [(&policy, "the image has no libmpi_abi.so.1"), (&gone, "and this node has no such library")]
    {
        let output = mpiexec(policy, &[], &image);
        check_ranks(&output, MPICH);
        let stderr = text(&output.stderr);
        assert_eq!(stderr.matches(why).count(), 1, "once a node: {stderr}");
    }
    // What is off cannot be had, and what is unknown is said.
    let never = site.policy("never", &[site.library("impi", "libmpi.so.12")], "mode = \"never\"\n");
    for (policy, option, expected) in [
        (&never, "--mpi=host", "refused by site policy"),
        (&policy, "--module=other", "module other, which this site does not have"),
    ] {
        let output = run(hpcrun(["exec", option]).arg(&image).arg("/app/run").env("HPCRUN_POLICY", policy));
        assert!(!output.status.success(), "{}", report(&output));
        assert!(text(&output.stderr).contains(expected), "{}", report(&output));
    }
}

#[test]
fn leaked_paths_of_the_host_do_not_reach_the_image_s_program() {
    let (site, image) = (Site::get(), image("leaked", "mpi", "mpich", "libmpi.so.12", false));
    let elsewhere = site.path("impi/lib");
    let mut command = hpcrun(["exec"]);
    command.arg("--bind").arg(site.dir.path()).arg(&image).arg("/app/run");
    for name in ["LD_LIBRARY_PATH", "LD_PRELOAD", "OPAL_PREFIX", "PMIX_PREFIX", "PRTE_PREFIX", "I_MPI_ROOT"] {
        let value = if name == "LD_PRELOAD" { elsewhere.join("libmpi.so.12") } else { elsewhere.clone() };
        // The loader of hpcrun itself heeds those two as well.
        command.env(name, value);
    }
    let output = run(&mut command);
    assert!(text(&output.stdout).contains(&format!("rank 0 of 1, sum 1, {MPICH}")), "{}", report(&output));
}

#[test]
fn ranks_that_will_run_alone_are_told_once_a_node() {
    let image = image("alone", "mpi", "mpich", "libmpi.so.12", false);
    let srun = |rank: &str, options: &[&str], command: &[&str]| {
        let mut exec = hpcrun(["exec"]);
        exec.args(options).arg(&image).args(command);
        for (name, value) in [
            ("SLURM_JOB_ID", "7"),
            ("SLURM_STEP_ID", "0"),
            ("SLURM_PROCID", rank),
            ("SLURM_LOCALID", rank),
            ("SLURM_STEP_NUM_TASKS", "2"),
            ("SLURM_MPI_TYPE", "none"),
        ] {
            exec.env(name, value);
        }
        run(&mut exec)
    };
    let warned = srun("0", &[], &["/app/run"]);
    assert!(warned.status.success() && text(&warned.stdout).contains("rank 0 of 1"), "{}", report(&warned));
    let expected = "each of the 2 ranks will run alone: srun --mpi=none offers no PMI, and the image has MPICH \
                    (libmpi.so.12): start it with 'srun --mpi=pmi2'";
    assert!(text(&warned.stderr).contains(expected), "{}", report(&warned));
    for (rank, options) in [("1", &[][..]), ("0", &["--mpi=off"])] {
        assert_eq!(text(&srun(rank, options, &["/app/run"]).stderr), "", "{rank} {options:?}");
    }
    for rank in ["0", "1"] {
        let strict = srun(rank, &["--mpi=strict"], &["/app/run"]);
        assert_eq!(
            (strict.status.code(), text(&strict.stdout)),
            (Some(125), String::new()),
            "{}",
            report(&strict)
        );
        assert!(
            text(&strict.stderr).contains("hint: start it with 'srun --mpi=pmi2'"),
            "{}",
            report(&strict)
        );
    }
    // A program that is none of MPI needs nobody.
    let loader = ["/lib64/ld-linux-x86-64.so.2", "--version"];
    assert_eq!(text(&srun("0", &["--mpi=strict"], &loader).stderr), "");

    // The same for real: Open MPI's mpirun speaks PMIx, and this MPICH does not.
    let mut mpirun = as_user("timeout");
    mpirun.args(["--signal=KILL", LIMIT_S, "mpirun.openmpi", "--oversubscribe", "-n", "2"]);
    let output = run(mpirun.arg(binary()).arg("exec").arg(&image).arg("/app/run"));
    assert_eq!(
        text(&output.stderr).matches("start it with mpiexec of MPICH").count(),
        1,
        "{}",
        report(&output)
    );
}

/// A squashfs of the tree of this name, without a trailer.
fn bare(name: &str) -> PathBuf {
    let (tree, file) = (Site::get().path(name), Site::get().path(&format!("{name}.squashfs")));
    let options = ["-quiet", "-noappend", "-no-progress"];
    stdout(Command::new("mksquashfs").arg(tree).arg(&file).args(options));
    fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).expect("chmod");
    file
}

#[test]
fn facts_that_cannot_be_used_are_none() {
    let (site, image) = (Site::get(), image("unfit", "mpi", "mpich", "libmpi.so.12", true));
    let mut bytes = fs::read(&image).expect("image");
    let word = b"\"isa_level\"";
    let word = if bytes.windows(word.len()).any(|found| found == word) { &word[..] } else { b"\"soname\"" };
    let at = bytes.windows(word.len()).rposition(|found| found == word).expect("facts");
    bytes[at] = b'?';
    let damaged = site.path("damaged.sqsh");
    fs::write(&damaged, bytes).expect("image");
    fs::set_permissions(&damaged, PermissionsExt::from_mode(0o644)).expect("chmod");
    let policy = site.policy("unfit", &[site.library("impi", "libmpi.so.12")], "");
    let launched = run(hpcrun(["exec", "--mpi=host", "--explain"])
        .arg(&damaged)
        .arg("/app/run")
        .env("HPCRUN_POLICY", &policy));
    let plan = text(&launched.stdout);
    assert!(launched.status.success(), "{}", text(&launched.stderr));
    assert!(plan.contains("module site-mpi (--mpi=host)"), "{plan}");
    assert!(plan.contains("what the image file tells of its content is left unused"), "{plan}");
    assert!(plan.contains("/opt/mpi/lib/libmpi.so.12"), "{plan}");
    let told = run(hpcrun(["inspect"]).arg(&damaged));
    assert!(told.status.success() && text(&told.stdout).contains("MPICH (libmpi.so.12)"));
    assert!(text(&told.stderr).contains("is left unused"), "{}", text(&told.stderr));
}

#[test]
fn facts_are_the_same_from_the_trailer_and_by_a_walk() {
    let (site, image) = (Site::get(), image("facts", "mpi", "mpich", "libmpi.so.12", true));
    let facts = |image: &Path| -> serde_json::Value {
        let json = stdout(hpcrun(["inspect", "--json"]).arg(image));
        serde_json::from_str::<serde_json::Value>(&json).expect("JSON")["facts"].clone()
    };
    let found = facts(&image);
    assert_eq!(found, facts(&bare("facts")));
    assert_eq!(found["libc"]["kind"], "glibc");
    let libraries = found["libraries"].as_array().expect("libraries");
    let mpi = libraries.iter().find(|library| library["path"] == "/opt/mpi/lib/libmpi.so.12").expect("MPICH");
    assert_eq!((mpi["family"].as_str(), mpi["soname"].as_str()), (Some("mpich"), Some("libmpi.so.12")));
    assert!(
        libraries.iter().any(|library| library["role"] == "libfabric" || library["role"] == "ucx"),
        "{libraries:#?}"
    );

    let again = site.path("again.sqsh");
    let source = format!("dir:{}", site.path("facts").display());
    stdout(hpcrun(["convert", "--jobs", "1"]).arg(source).arg(&again));
    assert!(
        fs::read(&image).expect("image") == fs::read(&again).expect("image"),
        "bytes depend on the threads"
    );

    let text = stdout(hpcrun(["inspect"]).arg(&image));
    assert!(text.contains("MPICH (libmpi.so.12)  /opt/mpi/lib/libmpi.so.12"), "{text}");
    let policy = site.policy("facts", &[site.library("impi", "libmpi.so.12")], "");
    let host = stdout(hpcrun(["inspect", "--host"]).arg(&image).env("HPCRUN_POLICY", &policy));
    let intel = site.library("impi", "libmpi.so.12");
    assert!(host.contains(&format!("/opt/mpi/lib/libmpi.so.12 by {}", intel.display())), "{host}");
    let policy = site.policy("facts-abi", &[site.library("impi", "libmpi_abi.so.1")], "");
    let host = stdout(hpcrun(["inspect", "--host"]).arg(&image).env("HPCRUN_POLICY", &policy));
    assert!(
        host.contains("no        the image has no libmpi_abi.so.1; it has MPICH (libmpi.so.12)"),
        "{host}"
    );
}
