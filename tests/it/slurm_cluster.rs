//! A real Slurm for tests: started once by `scripts/with-slurm`, ended by the kernel with the process of the tests.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::mpi::{Layer, docker_archive, libraries};
use crate::support::{TEST_USER, binary, hpcrun, is_root, run, scratch, stdout, text};

/// Seconds after which a command in a cluster is killed.
const LIMIT_S: &str = "90";

/// A cluster of made-up nodes on this machine.
pub(crate) struct Cluster {
    /// Process 1 of its world, as seen from here.
    world: String,
    /// Its settings, logs and spools.
    pub(crate) directory: PathBuf,
    // When this process ends, however it does, the pipe ends, and with it the shell that holds the cluster.
    _guard: (Child, ChildStdin),
}

impl Cluster {
    /// Three nodes that claim 64 CPUs each and follow processes without cgroups; they have the plugin. The third
    /// one has no /dev/fuse.
    pub(crate) fn plain() -> &'static Cluster {
        static PLAIN: OnceLock<Cluster> = OnceLock::new();
        PLAIN.get_or_init(|| {
            let hpcrun = format!("hpcrun={}", binary().display());
            let cluster = Cluster::start(&["--nodes", "3"], &hpcrun);
            stdout(cluster.root("sh").args(["-c", WITHOUT_FUSE]));
            cluster
        })
    }

    /// A node whose tasks are confined by cgroups, with two GPUs; there the plugin looks for hpcrun where it is not.
    pub(crate) fn confined() -> &'static Cluster {
        static CONFINED: OnceLock<Cluster> = OnceLock::new();
        CONFINED.get_or_init(|| Cluster::start(&["--cgroup"], "hpcrun=/no/such/hpcrun"))
    }

    fn start(options: &[&str], plugin_arguments: &str) -> Cluster {
        assert!(is_root(), "slurmd starts jobs as their users: run these tests as root");
        let scratch = scratch().keep();
        let directory = scratch.join("slurm");
        let stack = scratch.join("plugstack.conf");
        let plugin = scratch.join("spank_hpcrun.so");
        std::fs::copy(plugin_file(), &plugin).expect("copy of the plugin");
        std::fs::write(&stack, format!("optional {} {plugin_arguments}\n", plugin.display()))
            .expect("plugstack");
        let with_slurm = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/with-slurm");
        let mut guard = Command::new("sh")
            .args(["-c", "\"$@\"; rm -rf \"$SCRATCH\"", "sh"])
            .arg(with_slurm)
            .args(options)
            .arg("--plugstack")
            .args([&stack, &directory])
            .args(["sh", "-c", "echo $SLURM_LAB; exec cat >/dev/null"])
            .env("SCRATCH", &scratch)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("scripts/with-slurm");
        let stdin = guard.stdin.take().expect("its input");
        let mut world = String::new();
        BufReader::new(guard.stdout.take().expect("its output")).read_line(&mut world).expect("its output");
        assert!(!world.is_empty(), "Slurm did not start: see above");
        Cluster { world: world.trim().to_owned(), directory, _guard: (guard, stdin) }
    }

    /// A command of root's in the cluster's world, with little in its environment.
    pub(crate) fn root(&self, program: &str) -> Command {
        self.command(&[], program)
    }

    /// A command of the ordinary user's.
    pub(crate) fn user(&self, program: &str) -> Command {
        let as_user =
            ["setpriv", "--reuid", TEST_USER, "--regid", TEST_USER, "--init-groups", "--inh-caps=-all", "--"];
        self.command(&as_user, program)
    }

    fn command(&self, before: &[&str], program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.world, "--mount", "--uts", "--pid", "--"])
            .args(["prlimit", "--core=0", "env", "--chdir=/tmp", "timeout", "--kill-after=5", LIMIT_S])
            .args(before)
            .arg(program)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", format!("/home/{TEST_USER}"))
            .env("USER", TEST_USER)
            .env("LOGNAME", TEST_USER)
            .stdin(Stdio::null());
        command
    }

    /// `srun WORDS...`, the words split at spaces, with more arguments behind.
    pub(crate) fn srun(&self, words: &str, more: &[&str]) -> Output {
        run(self.user("srun").args(words.split_whitespace()).args(more))
    }

    /// Runs a batch script to its end; gives what it wrote.
    pub(crate) fn sbatch(&self, options: &[&str], script: &str) -> String {
        let directory = scratch();
        let (file, output) = (directory.path().join("script"), directory.path().join("output"));
        std::fs::write(&file, script).expect("script");
        let ended = run(self
            .user("sbatch")
            .args(["--wait", "--quiet", "--output"])
            .arg(&output)
            .args(options)
            .arg(&file));
        let written = std::fs::read(&output).map_or_else(|error| error.to_string(), |bytes| text(&bytes));
        assert!(ended.status.success(), "{}: {}\n{written}", ended.status, text(&ended.stderr));
        written
    }

    /// Asserts that no node has come to harm.
    #[track_caller]
    pub(crate) fn assert_well(&self) {
        let states = stdout(self.root("sinfo").args(["--noheader", "--Node", "--format=%T"]));
        let is_well = |state: &str| ["idle", "mixed", "allocated", "completing"].contains(&state);
        assert!(states.lines().all(is_well), "{states}");
    }
}

/// What a node looks like where nobody has loaded the kernel's module: its own mounts have another /dev.
const WITHOUT_FUSE: &str = r#"
exec nsenter --target "$(cat /run/munge/slurmd-node3.pid)" --mount sh -eu -c '
    mkdir /run/munge/dev
    mount -t tmpfs -o mode=755 dev /run/munge/dev
    cd /run/munge/dev
    for name in null zero full random urandom tty; do
        touch $name
        mount --bind /dev/$name $name
    done
    for name in shm pts; do
        mkdir $name
        mount --rbind /dev/$name $name
    done
    ln -s pts/ptmx ptmx
    ln -s /proc/self/fd fd
    mount --move . /dev'
"#;

/// The plugin, built for the Slurm that is installed.
pub(crate) fn plugin_file() -> &'static Path {
    static PLUGIN: OnceLock<PathBuf> = OnceLock::new();
    PLUGIN.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let target =
            Path::new(env!("CARGO_BIN_EXE_hpcrun")).ancestors().nth(2).expect("target/").join("spank");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        stdout(
            Command::new(cargo)
                .args(["build", "--quiet", "--locked", "--package", "hpcrun-spank", "--target-dir"])
                .arg(&target)
                .current_dir(root),
        );
        target.join("debug/libhpcrun_spank.so")
    })
}

/// An image with the demo's solver on this machine's MPICH.
pub(crate) fn mpich_image() -> &'static Path {
    static IMAGE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = IMAGE.get_or_init(|| {
        let dir = scratch();
        let solver = dir.path().join("solver");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/solver.c");
        stdout(Command::new("mpicc.mpich").args(["-O2", "-o"]).arg(&solver).arg(source).arg("-lm"));
        let mut layer = Layer::default();
        layer.file(Path::new("/solver"), &solver);
        let needed = libraries(&[solver]);
        // UCX loads it by name. Without, large messages go over TCP, and MPI_Finalize hangs now and then, bare hosts too.
        let ucx = needed.iter().find(|library| library.ends_with("libuct.so.0")).expect("MPICH with UCX");
        let cma = ucx.with_file_name("ucx/libuct_cma.so.0");
        for library in needed.iter().chain([&cma]) {
            layer.file(library, library);
        }
        for (link, target) in [("lib", "usr/lib"), ("lib64", "usr/lib64"), ("bin", "usr/bin")] {
            layer.link(link, target);
        }
        let (archive, image) = (dir.path().join("mpich.tar"), dir.path().join("mpich.sqsh"));
        std::fs::write(&archive, docker_archive(&layer.finish())).expect("docker-archive");
        let source = format!("docker-archive:{}", archive.display());
        stdout(&mut hpcrun(["convert".into(), source.into(), image.clone().into_os_string()]));
        (dir, image)
    });
    path
}

/// Waits for something that comes about by itself, and soon.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not within a minute");
        std::thread::sleep(Duration::from_millis(50));
    }
}
