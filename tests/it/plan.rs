//! Whole launch plans as text, for nodes written by hand: a laptop, a Slurm node, an old kernel. No kernel is asked.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test that fails, panics"
)]

mod options;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use hpcrun::hint::Hint;
use hpcrun::host::features::Observed;
use hpcrun::host::gpu::GpuFacts;
use hpcrun::host::{Backing, Features, Host, Kernel, Kind, Launcher, PathFact, TreeFact, TreeShape, User};
use hpcrun::image::config::ImageConfig;
use hpcrun::launch::env_names::{DIRECTORIES, HOST_FIRST, LAUNCHER, STRIPPED, UNSHARED_MPI, is_one_of};
use hpcrun::launch::inject::Loaders;
use hpcrun::launch::plan::{FileId, SquashfsFacts};
use hpcrun::launch::request::{BindOption, EnvOption, HomeWish, ScratchOption, Verb, Writable};
use hpcrun::launch::resolve::ResolveError;
use hpcrun::launch::{ImageFacts, LaunchPlan, PlanError, Request, paths_to_probe, plan, resolve};
use hpcrun::mount::graft::Graft;
use hpcrun::mount::plan::Op;
use hpcrun::policy::Policy;
use hpcrun::policy::decide::ChosenModule;
use hpcrun::policy::rules::Share;

/// A node: what it has at which path.
#[derive(Clone)]
struct Node {
    host: Host,
    directories: Vec<&'static str>,
    files: Vec<&'static str>,
    links: Vec<(&'static str, &'static str)>,
}

impl Node {
    /// Answers for the paths that the planner asks about, as the probe would.
    fn host(&self, request: &Request, policy: &Policy) -> Host {
        let mut host = self.host.clone();
        host.launcher = Launcher::from_environment(&host.environment);
        // All of them: which a launch has, its image decides.
        let modules: Vec<ChosenModule<'_>> = policy
            .rules()
            .modules
            .iter()
            .map(|module| ChosenModule {
                module,
                is_requested: false,
                rule: policy.rule(module.at, "[modules]"),
            })
            .collect();
        let asked = paths_to_probe(request, &modules, policy, &host);
        host.paths =
            asked.into_iter().map(|path| (path.clone(), self.fact(&path))).collect::<BTreeMap<_, _>>();
        host
    }

    fn fact(&self, path: &Path) -> PathFact {
        let resolved = self.resolve(path);
        let is = |list: &[&str]| list.iter().any(|entry| resolved == Path::new(entry));
        let kind = match () {
            () if is(&self.directories) => Kind::Directory,
            () if is(&self.files) => Kind::File,
            () if resolved.starts_with("/locked") => Kind::Unreachable("Permission denied".to_owned()),
            () => Kind::Missing,
        };
        let resolved = if kind == Kind::Missing { path.to_owned() } else { resolved };
        PathFact { kind, resolved }
    }

    fn resolve(&self, path: &Path) -> PathBuf {
        let mut path = hpcrun::policy::path::normalise(Path::new("/"), path);
        for (link, target) in &self.links {
            if let Ok(rest) = path.strip_prefix(link) {
                path = if rest.as_os_str().is_empty() { target.into() } else { Path::new(target).join(rest) };
            }
        }
        path
    }

    fn with_env(mut self, pairs: &[(&str, &str)]) -> Node {
        self.host.environment.extend(pairs.iter().map(|(name, value)| (name.into(), value.into())));
        self
    }

    fn in_directory(mut self, cwd: &str) -> Node {
        self.host.cwd = Some(cwd.into());
        self
    }
}

fn laptop() -> Node {
    let kernel = Kernel::parse("6.12.5-arch1");
    let observed = Observed { has_user_namespaces: true, ..Observed::default() };
    let environment = [
        ("HOME", "/home/ada"),
        ("USER", "ada"),
        ("LOGNAME", "ada"),
        ("SHELL", "/usr/bin/zsh"),
        ("TERM", "xterm-256color"),
        ("PATH", "/home/ada/bin:/usr/bin"),
        ("LD_LIBRARY_PATH", "/opt/host/lib"),
        ("LANG", "de_DE.UTF-8"),
        ("PWD", "/home/ada/work"),
        ("XDG_RUNTIME_DIR", "/run/user/1000"),
    ];
    Node {
        host: Host {
            gpu: GpuFacts::default(),
            user: User {
                uid: 1000,
                effective_uid: 1000,
                gid: 1000,
                groups: vec![1000, 27],
                name: "ada".into(),
                group_name: "ada".into(),
                gecos: "Ada".into(),
                home: Some("/home/ada".into()),
                known: true,
            },
            hostname: "laptop".into(),
            cwd: Some("/home/ada/work".into()),
            features: Features::derive(&kernel, &observed),
            kernel,
            isa_level: None,
            cpus: 4,
            launcher: Launcher::default(),
            namespaces: vec![("mnt".to_owned(), 4_026_531_841), ("user".to_owned(), 4_026_531_837)],
            share_directory: Some("/dev/shm/hpcrun-1000".into()),
            environment: environment.map(|(name, value)| (name.into(), value.into())).to_vec(),
            paths: BTreeMap::new(),
            trees: BTreeMap::new(),
            globs: BTreeMap::new(),
            localtime: Some(b"TZif2".to_vec()),
        },
        directories: vec![
            "/",
            "/tmp",
            "/home",
            "/home/ada",
            "/home/ada/work",
            "/data",
            "/data/sets",
            "/usr/lib",
            "/scratch",
            "/etc",
            "/scratch/ada",
            "/opt/site",
            "/opt/site/lib",
            "/var",
            "/var/spool/work",
            "/dev",
            "/proc",
        ],
        files: vec!["/etc/hosts", "/etc/hostname", "/run/systemd/resolve/stub-resolv.conf", "/home/ada/key"],
        links: vec![("/etc/resolv.conf", "/run/systemd/resolve/stub-resolv.conf"), ("/sets", "/data/sets")],
    }
}

/// Rank 3 of 4 of a step on a GPU node whose home and scratch lie on a parallel file system.
fn slurm_node() -> Node {
    let mut node = laptop();
    node.host.hostname = "nid00412".into();
    node.host.user.home = Some("/home/ada".into());
    node.host.cwd = Some("/lustre/scratch/ada/run7".into());
    node.host.cpus = 128;
    node.host.kernel = Kernel::parse("5.14.0-427.el9.x86_64");
    let observed = Observed { has_user_namespaces: true, ..Observed::default() };
    node.host.features = Features::derive(&node.host.kernel, &observed);
    node.host.environment = [
        ("SLURM_JOB_ID", "4711"),
        ("SLURM_STEP_ID", "0"),
        ("SLURM_PROCID", "3"),
        ("SLURM_LOCALID", "3"),
        ("SLURM_NODEID", "0"),
        ("SLURM_STEP_TASKS_PER_NODE", "4(x2)"),
        ("PMIX_NAMESPACE", "slurm.pmix.4711.0"),
        ("PMIX_RANK", "3"),
        ("PMIX_SERVER_TMPDIR", "/var/spool/slurmd/pmix.4711.0"),
        ("CUDA_VISIBLE_DEVICES", "3"),
        ("TMPDIR", "/local/4711"),
        ("OPAL_PREFIX", "/opt/openmpi"),
        ("MODULEPATH", "/opt/modulefiles"),
        ("BASH_FUNC_module%%", "() { eval `lmod bash \"$@\"`; }"),
        ("SCRATCH", "/scratch/ada"),
        ("USER", "ada"),
    ]
    .map(|(name, value)| (name.into(), value.into()))
    .to_vec();
    node.directories = vec![
        "/tmp",
        "/lustre/home/ada",
        "/lustre/scratch",
        "/lustre/scratch/ada",
        "/lustre/scratch/ada/run7",
        "/var/spool/slurmd/pmix.4711.0",
        "/opt/site",
        "/local",
    ];
    node.links = vec![("/home", "/lustre/home"), ("/scratch", "/lustre/scratch")];
    node.files = vec!["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];
    node
}

fn image() -> ImageFacts {
    ImageFacts {
        typed: "astro.sqsh".into(),
        path: "/images/astro.sqsh".into(),
        size_bytes: 1_288_490_188,
        squashfs: SquashfsFacts {
            offset: 0,
            bytes_used: 100_000,
            block_size: 131_072,
            inodes: 7,
            root: 7,
            hash: None,
        },
        origin: None,
        file: FileId { device: 2049, inode: 77, modified_ns: 1_700_000_000_000_000_000 },
        digest: Some("sha256:9f3c".to_owned()),
        compression: "zstd".to_owned(),
        config: ImageConfig {
            env: ["PATH=/opt/astro/bin:/usr/bin:/bin", "LANG=C.UTF-8", "HOME=/root", "ASTRO=1"]
                .map(String::from)
                .to_vec(),
            entrypoint: vec!["/entry.sh".to_owned()],
            cmd: vec!["solve".to_owned(), "--help".to_owned()],
            working_dir: "/opt/astro".to_owned(),
            architecture: "amd64".to_owned(),
            os: "linux".to_owned(),
            ..ImageConfig::default()
        },
        passwd: Some(
            b"root:x:0:0:root:/root:/bin/bash\nubuntu:x:1000:1000::/home/ubuntu:/bin/bash\n".to_vec(),
        ),
        group: Some(b"root:x:0:\n".to_vec()),
        shell: Some("/bin/bash".into()),
        loaders: Loaders::default(),
        ..ImageFacts::default()
    }
}

fn policy(text: &str) -> Policy {
    Policy::parse(Path::new("/etc/hpcrun/policy.toml"), text).unwrap_or_else(|error| panic!("{error}"))
}

fn exec(command: &[&str]) -> Request {
    Request {
        verb: Verb::Exec { command: command.iter().map(OsString::from).collect() },
        ..Request::default()
    }
}

/// `hpcrun exec` of a solver with these `--bind` options.
fn binding(binds: &[&str]) -> Request {
    let binds = binds.iter().map(|bind| BindOption::parse(OsStr::new(bind)).expect("a bind")).collect();
    Request { binds, ..exec(&["solve"]) }
}

fn with_env(env: &[&str]) -> Request {
    let env = env.iter().map(|option| EnvOption::parse(OsStr::new(option)).expect("an option")).collect();
    Request { env, ..exec(&["solve"]) }
}

fn try_plan(node: &Node, request: &Request, policy: &Policy) -> Result<LaunchPlan, PlanError> {
    plan(request, &image(), policy, &node.host(request, policy))
}

#[track_caller]
fn planned(node: &Node, request: &Request, policy: &Policy) -> LaunchPlan {
    try_plan(node, request, policy)
        .unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)))
}

/// The binds of a plan as `source -> destination ro|rw`, but for those that every laptop has.
fn binds(plan: &LaunchPlan) -> Vec<String> {
    let usual = ["/dev", "/proc", "/sys", "/tmp", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];
    let ops = plan.mount.ops.iter().filter_map(|planned| match &planned.op {
        Op::Bind { destination, .. } if usual.iter().any(|usual| destination == Path::new(usual)) => None,
        Op::Bind { .. } => Some(planned.op.to_string().replace("bind ", "")),
        _ => None,
    });
    ops.collect()
}

#[track_caller]
fn check_binds(node: &Node, request: &Request, text: &str, expected: &[&str]) -> LaunchPlan {
    let plan = planned(node, request, &policy(text));
    assert_eq!(binds(&plan), expected, "notes: {:?}", plan.about.notes);
    plan
}

#[track_caller]
fn check_error(node: &Node, request: &Request, text: &str, expected: &str) -> PlanError {
    match try_plan(node, request, &policy(text)) {
        Ok(plan) => panic!("no error:\n{plan}"),
        Err(error) => {
            let mut message = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                message = format!("{message}: {error}");
                cause = error.source();
            }
            assert_eq!(message, expected);
            error
        }
    }
}

fn value(plan: &LaunchPlan, name: &str) -> Option<String> {
    plan.env.iter().find(|(other, _)| other == name).map(|(_, value)| value.to_string_lossy().into_owned())
}

#[track_caller]
fn check_text(plan: &LaunchPlan, expected: &str) {
    let text = plan.to_string();
    assert!(text == expected, "--- found\n{text}--- expected\n{expected}");
}

const LAPTOP: &str = r#"image         /images/astro.sqsh  sha256:9f3c  (linux/amd64, zstd, 1.2 GiB)
identity      uid 1000, gid 1000
share         with nobody
 1 squashfs   /images/astro.sqsh -> /                                   # default
 2 bind       /dev -> /dev rw                                           # default
 3 bind       /etc/hostname -> /etc/hostname rw optional                # default
 4 bind       /etc/hosts -> /etc/hosts rw optional                      # default
 5 bind       /run/systemd/resolve/stub-resolv.conf -> /etc/resolv.conf rw optional  # default
 6 bind       /home/ada -> /home/ada rw optional                        # default
 7 bind       /proc -> /proc rw                                         # default
 8 bind       /sys -> /sys rw                                           # default
 9 bind       /tmp -> /tmp rw optional                                  # default
10 pivot_root                                                           # default
env           +APPTAINER_CONTAINER +HPCRUN_IMAGE +HPCRUN_VERSION +SINGULARITY_CONTAINER -LD_LIBRARY_PATH  # default
env           -XDG_RUNTIME_DIR                                          # not in the new root
env           +ASTRO +LANG +PATH                                        # image Env
cwd           /home/ada/work, else /opt/astro, else /                   # working directory
exec          python3 -c 'print('\''hi'\'')'                            # command line
"#;
const SLURM: &str = r#"image         /images/astro.sqsh  sha256:9f3c  (linux/amd64, zstd, 1.2 GiB)
identity      uid 1000, gid 1000
share         with the ranks of slurm 4711.0
 1 squashfs   /images/astro.sqsh -> /                                   # default
 2 bind       /dev -> /dev rw                                           # default
 3 bind       /etc/hostname -> /etc/hostname rw optional                # default
 4 bind       /etc/hosts -> /etc/hosts rw optional                      # default
 5 bind       /etc/resolv.conf -> /etc/resolv.conf rw optional          # default
 6 bind       /lustre/home/ada -> /home/ada rw optional                 # default
 7 bind       /local -> /local rw optional                              # /etc/hpcrun/policy.toml:3
 8 bind       /lustre/scratch/ada/run7 -> /lustre/scratch/ada/run7 rw optional  # working directory
 9 bind       /opt/site -> /opt/site ro                                 # /etc/hpcrun/policy.toml:2
10 bind       /proc -> /proc rw                                         # default
11 bind       /lustre/scratch -> /scratch rw optional                   # /etc/hpcrun/policy.toml:3
12 bind       /sys -> /sys rw                                           # default
13 bind       /tmp -> /tmp rw optional                                  # default
14 bind       /var/spool/slurmd/pmix.4711.0 -> /var/spool/slurmd/pmix.4711.0 rw optional  # PMIX_SERVER_TMPDIR
15 pivot_root                                                           # default
env           +APPTAINER_CONTAINER +HPCRUN_IMAGE +HPCRUN_VERSION +SINGULARITY_CONTAINER -BASH_FUNC_module%% -MODULEPATH -OPAL_PREFIX  # default
env           +HOME +LOGNAME                                            # user database
env           +LANG                                                     # image Env
env           +SITE                                                     # /etc/hpcrun/policy.toml:6
env           +PATH                                                     # /etc/hpcrun/policy.toml:8
env           +GRID                                                     # --env
env           -ASTRO                                                    # /etc/hpcrun/policy.toml:7
cwd           /lustre/scratch/ada/run7, else /opt/astro, else /         # working directory
exec          solve --grid 512                                          # command line
note          /burst left out: it does not exist on nid00412 (/etc/hpcrun/policy.toml:3)
note          reads in flight fail if the image server is killed: needs Linux 6.9, this is 5.14.0-427.el9.x86_64
"#;
const OLD: &str = r#"image         /images/astro.sqsh  sha256:9f3c  (linux/amd64, zstd, 1.2 GiB)
identity      uid 1000, gid 1000
share         with nobody, though Hydra may have started other ranks
 1 squashfs   /images/astro.sqsh -> /                                   # default
 2 bind       /dev -> /dev rw                                           # default
 3 bind       /etc/hostname -> /etc/hostname rw optional                # default
 4 bind       /etc/hosts -> /etc/hosts rw optional                      # default
 5 bind       /run/systemd/resolve/stub-resolv.conf -> /etc/resolv.conf rw optional  # default
 6 bind       /home/ada -> /home/ada rw optional                        # default
 7 bind       /proc -> /proc rw                                         # default
 8 bind       /sys -> /sys rw                                           # default
 9 bind       /tmp -> /tmp rw optional                                  # default
10 pivot_root                                                           # default
env           +APPTAINER_CONTAINER +HPCRUN_IMAGE +HPCRUN_VERSION +SINGULARITY_CONTAINER -LD_LIBRARY_PATH  # default
env           -XDG_RUNTIME_DIR                                          # not in the new root
env           +ASTRO +LANG +PATH                                        # image Env
env           +MPIR_CVAR_CH4_CMA_ENABLE +OMPI_MCA_btl_vader_single_copy_mechanism +UCX_POSIX_USE_PROC_LINK +UCX_TCP_PUT_ENABLE +UCX_TLS  # ranks do not share namespaces
cwd           /opt/astro, else /home/ada/work, else /                   # image WorkingDir
exec          /entry.sh solve --help                                    # image Entrypoint
note          ranks join each namespace by itself: needs Linux 5.8, this is 4.18.0-553.el8_10.x86_64
note          reads in flight fail if the image server is killed: needs Linux 6.9, this is 4.18.0-553.el8_10.x86_64
"#;

#[test]
fn a_laptop() {
    let request = exec(&["python3", "-c", "print('hi')"]);
    check_text(&planned(&laptop(), &request, &Policy::builtin()), LAPTOP);
}

const SLURM_POLICY: &str = "\
[binds]
forced = [\"/opt/site::ro\"]
optional = [\"/scratch\", \"/local\", \"/burst\"]
allowed = [\"/scratch\", \"/lustre\", \"/var/spool/slurmd\"]
[env]
set = { SITE = \"example\" }
unset = [\"ASTRO\"]
prepend = { PATH = \"/opt/site/bin\" }
";

#[test]
fn a_slurm_node() {
    let request = Request {
        env: vec![EnvOption::parse(OsStr::new("GRID=512")).unwrap()],
        ..exec(&["solve", "--grid", "512"])
    };
    check_text(&planned(&slurm_node(), &request, &policy(SLURM_POLICY)), SLURM);
}

fn old_node() -> Node {
    let mut node = laptop().with_env(&[("PMI_FD", "5"), ("PMI_RANK", "0"), ("MPI_LOCALNRANKS", "2")]);
    node.host.kernel = Kernel::parse("4.18.0-553.el8_10.x86_64");
    let observed = Observed { has_user_namespaces: true, ..Observed::default() };
    node.host.features = Features::derive(&node.host.kernel, &observed);
    node.host.share_directory = None;
    node
}

#[test]
fn an_old_kernel() {
    let request = Request { verb: Verb::Run { args: Vec::new() }, ..Request::default() };
    check_text(&planned(&old_node(), &request, &Policy::builtin()), OLD);
}

#[test]
fn nodes_that_cannot_launch_say_why() {
    let mut node = laptop();
    let observed =
        Observed { has_user_namespaces: true, max_user_namespaces: Some(0), ..Observed::default() };
    node.host.features = Features::derive(&node.host.kernel, &observed);
    let error = check_error(
        &node,
        &exec(&["x"]),
        "",
        "this node forbids user namespaces: the sysctl user.max_user_namespaces is 0",
    );
    assert_eq!(error.hints(), ["'hpcrun doctor' says how this node can be mended"]);
    let mut node = laptop();
    node.host.kernel = Kernel::parse("3.10.0-1160.el7");
    let observed = Observed { has_user_namespaces: true, ..Observed::default() };
    node.host.features = Features::derive(&node.host.kernel, &observed);
    check_error(
        &node,
        &exec(&["x"]),
        "",
        "this node cannot mount the image: needs Linux 4.18, this is 3.10.0-1160.el7",
    );
    let mut node = laptop();
    node.host.user.effective_uid = 0;
    check_error(&node, &exec(&["x"]), "", "hpcrun runs setuid (uid 1000, effective 0), which it must not");
}

const HOME: &str = "/home/ada -> /home/ada rw optional";

#[test]
fn user_binds() {
    let node = laptop();
    for (option, expected) in [
        ("/data", "/data -> /data rw"),
        ("/data:/mnt", "/data -> /mnt rw"),
        ("/data:/mnt:ro", "/data -> /mnt ro"),
        ("/data:/mnt:rw", "/data -> /mnt rw"),
        ("/data::ro", "/data -> /data ro"),
        ("/data/", "/data -> /data rw"),
        ("//data//", "/data -> /data rw"),
        ("/data/.", "/data -> /data rw"),
        ("/data/sets/..", "/data -> /data rw"),
        ("/sets", "/data/sets -> /sets rw"),
        ("/data/../sets", "/data/sets -> /sets rw"),
        ("/data:/a//b/./c/../d/", "/data -> /a/b/d rw"),
        ("/data:/../../x", "/data -> /x rw"),
        ("../../../data", "/data -> /data rw"),
        ("/home/ada/key:/key:ro", "/home/ada/key -> /key ro"),
        ("/data:/usr", "/data -> /usr rw"),
        ("/data:/etc/hosts.d", "/data -> /etc/hosts.d rw"),
    ] {
        let plan = planned(&node, &binding(&[option]), &Policy::builtin());
        let found: Vec<String> = binds(&plan).into_iter().filter(|bind| bind != HOME).collect();
        assert_eq!(found, [expected], "{option}");
    }
}

#[test]
fn user_binds_that_cannot_be() {
    for (option, expected) in [
        ("/none", "cannot bind /none (--bind /none): it does not exist on laptop"),
        ("none", "cannot bind /home/ada/work/none (--bind none): it does not exist on laptop"),
        ("/locked/x", "cannot bind /locked/x (--bind /locked/x): Permission denied"),
        ("/data:/", "cannot bind onto / (--bind /data:/): it belongs to every launch"),
        ("/data:/..", "cannot bind onto / (--bind /data:/..): it belongs to every launch"),
        ("/", "cannot bind onto / (--bind /): it belongs to every launch"),
        ("/data:/proc", "cannot bind onto /proc (--bind /data:/proc): it belongs to every launch"),
        (
            "/data:/proc/sys/x",
            "cannot bind onto /proc/sys/x (--bind /data:/proc/sys/x): it belongs to every launch",
        ),
        ("/data:/sys/", "cannot bind onto /sys (--bind /data:/sys/): it belongs to every launch"),
        ("/data:/x/../dev", "cannot bind onto /dev (--bind /data:/x/../dev): it belongs to every launch"),
        (
            "/data:/home/ada/none",
            "cannot bind onto /home/ada/none (--bind /data:/home/ada/none): the host has no /home/ada/none",
        ),
    ] {
        let error = check_error(&laptop(), &binding(&[option]), "", expected);
        assert_eq!(error.hints().len(), 1, "{option}");
    }
    let error = check_error(
        &laptop(),
        &binding(&["/data:/m", "/scratch:/m/"]),
        "",
        "two binds onto /m: --bind /data:/m, and --bind /scratch:/m/",
    );
    assert_eq!(error.hints(), ["give each bind its own destination: --bind SRC:DST"]);
}

#[test]
fn the_same_bind_twice_is_one() {
    check_binds(&laptop(), &binding(&["/data", "/data", "/data:/data:rw"]), "", &["/data -> /data rw", HOME]);
}

#[test]
fn parents_come_before_what_lies_in_them() {
    let request = binding(&["/scratch:/data/sets", "/data", "/opt/site:/a/b/c", "/opt/site:/a"]);
    let mut node = laptop();
    node.directories.push("/opt/site/b/c");
    check_binds(
        &node,
        &request,
        "",
        &[
            "/opt/site -> /a rw",
            "/opt/site -> /a/b/c rw",
            "/data -> /data rw",
            "/scratch -> /data/sets rw",
            HOME,
        ],
    );
}

#[test]
fn the_stronger_party_wins() {
    // The user over a default, and over what the site offers.
    check_binds(&laptop(), &binding(&["/data:/home/ada"]), "", &["/data -> /home/ada rw"]);
    let offered = "[binds]\noptional = [\"/scratch:/s\", \"/data:/d:ro\"]\n";
    check_binds(
        &laptop(),
        &exec(&["x"]),
        offered,
        &["/data -> /d ro optional", HOME, "/scratch -> /s rw optional"],
    );
    check_binds(
        &laptop(),
        &binding(&["/opt/site:/s"]),
        offered,
        &["/data -> /d ro optional", HOME, "/opt/site -> /s rw"],
    );
    // The site over a default.
    check_binds(
        &laptop(),
        &exec(&["x"]),
        "[binds]\noptional = [\"/data:/home/ada\"]\n",
        &["/data -> /home/ada rw optional"],
    );
    // What the site forces over the user.
    let forced = "[binds]\nforced = [\"/opt/site::ro\"]\n";
    for (option, line) in [
        ("/data:/opt/site", "--bind /data:/opt/site would cover /opt/site"),
        ("/opt/site", "--bind /opt/site would cover /opt/site"),
        ("/data:/opt/site/lib", "--bind /data:/opt/site/lib would cover /opt/site"),
        ("/data:/opt//site/x/..", "--bind /data:/opt//site/x/.. would cover /opt/site"),
    ] {
        let expected = format!("refused by site policy: {line} (/etc/hpcrun/policy.toml:2 [binds] forced)");
        let error = check_error(&laptop(), &binding(&[option]), forced, &expected);
        assert!(matches!(error, PlanError::Refused(_)));
    }
    check_binds(
        &laptop(),
        &binding(&["/opt/site::ro", "/data:/opt/site2"]),
        forced,
        &[HOME, "/opt/site -> /opt/site ro", "/data -> /opt/site2 rw"],
    );
}

#[test]
fn a_weaker_bind_does_not_go_into_a_stronger_one() {
    let plan = check_binds(&laptop(), &binding(&["/data:/home"]), "", &["/data -> /home rw"]);
    assert!(
        plan.about.notes[0].starts_with("/home/ada (default) left out: inside a bind (--bind"),
        "{:?}",
        plan.about.notes
    );
    let plan = check_binds(&laptop(), &binding(&["/data:/etc"]), "", &["/data -> /etc rw", HOME]);
    assert!(!plan.to_string().contains("/etc/hosts ->"), "{plan}");
    assert!(
        !plan.grafts.iter().any(|(path, _)| path.parent() == Some(Path::new("/etc"))),
        "{:?}",
        plan.grafts
    );
    // A bind that shows the same thing at the same place is no news.
    check_binds(&laptop(), &binding(&["/home"]), "", &["/home -> /home rw"]);
    check_binds(&laptop(), &exec(&["x"]), "[binds]\nforced = [\"/home\"]\n", &["/home -> /home rw"]);
}

#[test]
fn the_home_directory() {
    let no_home = Request { home: HomeWish::LeaveOut, ..exec(&["x"]) };
    let node = laptop().in_directory("/tmp");
    assert_eq!(check_binds(&node, &no_home, "", &[]).about.notes, ["home directory left out (--no-home)"]);
    let off = "[home]\nbind = false\n";
    let plan = check_binds(&node, &exec(&["x"]), off, &[]);
    assert_eq!(plan.about.notes, ["home directory left out (/etc/hpcrun/policy.toml:2)"]);
    check_binds(&node, &exec(&["x"]), "[home]\nread_only = true\n", &["/home/ada -> /home/ada ro optional"]);
    let mut missing = node.clone();
    missing.host.user.home = Some("/home/bob".into());
    let plan = check_binds(&missing, &exec(&["x"]), "", &[]);
    assert_eq!(plan.about.notes, ["home directory /home/bob left out: it does not exist on laptop"]);
    for home in ["/", "/usr/lib", "/var", "/dev"] {
        let mut node = node.clone();
        node.host.user.home = Some(home.into());
        check_binds(&node, &exec(&["x"]), "", &[]);
    }
    let mut unknown = node.clone();
    unknown.host.user.known = false;
    let allowed = "[binds]\nallowed = [\"/data\"]\n";
    let plan = check_binds(&unknown, &exec(&["x"]), allowed, &[]);
    assert!(plan.about.notes[0].contains("outside the allowed paths"), "{:?}", plan.about.notes);
    check_binds(&node, &exec(&["x"]), allowed, &[HOME]);
}

#[test]
fn the_working_directory() {
    let inside = |cwd: &str, text: &str| {
        let plan = planned(&laptop().in_directory(cwd), &exec(&["x"]), &policy(text));
        let bound: Vec<String> = binds(&plan).into_iter().filter(|bind| bind != HOME).collect();
        (bound, plan.cwd)
    };
    let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
    // Shown already, by the home directory or by /tmp.
    assert_eq!(inside("/home/ada/work", ""), (vec![], paths(&["/home/ada/work", "/opt/astro", "/"])));
    assert_eq!(inside("/tmp", ""), (vec![], paths(&["/tmp", "/opt/astro", "/"])));
    // Shown for its own sake.
    let bound = vec!["/data/sets -> /data/sets rw optional".to_owned()];
    assert_eq!(inside("/data/sets", ""), (bound, paths(&["/data/sets", "/opt/astro", "/"])));
    let bound = vec!["/var/spool/work -> /var/spool/work rw optional".to_owned()];
    assert_eq!(inside("/var/spool/work", ""), (bound, paths(&["/var/spool/work", "/opt/astro", "/"])));
    // The operating system's are the image's.
    for cwd in ["/", "/usr/lib", "/etc", "/var", "/home"] {
        assert_eq!(inside(cwd, ""), (vec![], paths(&["/opt/astro", "/"])), "{cwd}");
    }
    // The site's word holds for it.
    let refused = (vec![], paths(&["/opt/astro", "/"]));
    assert_eq!(inside("/data/sets", "[binds]\ndenied = [\"/data\"]\n"), refused);
    assert_eq!(inside("/data/sets", "[binds]\nallowed = [\"/scratch\"]\n"), refused);
    // A deleted one is no place to start.
    let mut node = laptop();
    node.host.cwd = None;
    assert_eq!(planned(&node, &exec(&["x"]), &Policy::builtin()).cwd, paths(&["/opt/astro", "/"]));
}

#[test]
fn a_bind_hides_the_working_directory() {
    let node = laptop().in_directory("/data/sets");
    let plan = check_binds(&node, &binding(&["/scratch:/data"]), "", &["/scratch -> /data rw", HOME]);
    assert_eq!(plan.cwd, [PathBuf::from("/opt/astro"), PathBuf::from("/")]);
    assert_eq!(value(&plan, "PWD"), None);
    assert_eq!(plan.about.warnings, ["/data/sets is not in the new root: the job starts in /opt/astro"]);
    for (cwd, warnings) in [("/home/ada/work", 0), ("/tmp", 0), ("/", 0), ("/usr/lib", 1)] {
        let plan = planned(&laptop().in_directory(cwd), &exec(&["x"]), &Policy::builtin());
        assert_eq!(plan.about.warnings.len(), warnings, "{cwd}");
    }
}

#[test]
fn the_chosen_working_directory() {
    let cwd = |path: &str| Request { cwd: Some(path.into()), ..exec(&["x"]) };
    for (path, expected) in
        [("/x", "/x"), ("/x/../y//", "/y"), ("/", "/"), ("/proc", "/proc"), ("/tmp", "/tmp")]
    {
        let plan = planned(&laptop(), &cwd(path), &Policy::builtin());
        assert_eq!(plan.cwd, [PathBuf::from(expected)], "{path}");
        assert_eq!(value(&plan, "PWD"), None, "{path}");
    }
    for path in ["/proc/self/fd/7", "/proc/self/fd/7/..", "/proc/1/root", "/proc/self/cwd", "/x/../proc/self"]
    {
        let expected = format!("cannot start in {path}: what lies below /proc may lead out of the new root");
        check_error(&laptop(), &cwd(path), "", &expected);
    }
    check_error(&laptop(), &cwd("x"), "", "cannot start in x: it is not an absolute path");
    check_error(&laptop(), &cwd(""), "", "cannot start in : it is not an absolute path");
}

#[test]
fn hostile_working_directories_of_images_are_passed_over() {
    for n in 0..=255 {
        for tail in ["", "/..", "/../../x"] {
            let mut image = image();
            image.config.working_dir = format!("/proc/self/fd/{n}{tail}");
            let node = laptop().in_directory("/usr/lib");
            let request = exec(&["x"]);
            let policy = Policy::builtin();
            let plan = plan(&request, &image, &policy, &node.host(&request, &policy)).unwrap();
            assert_eq!(plan.cwd, [PathBuf::from("/")], "{n}{tail}");
        }
    }
    for (given, expected) in
        [("", "/"), ("app", "/app"), ("/app/", "/app"), ("../x", "/x"), ("/proc", "/proc")]
    {
        let mut image = image();
        image.config.working_dir = given.to_owned();
        let node = laptop().in_directory("/usr/lib");
        let (request, policy) = (exec(&["x"]), Policy::builtin());
        let plan = plan(&request, &image, &policy, &node.host(&request, &policy)).unwrap();
        assert_eq!(plan.cwd[0], Path::new(expected), "{given}");
    }
}

#[test]
fn the_policy_judges_every_spelling_of_a_bind() {
    let text = "[binds]\nallowed = [\"/scratch\", \"/data/sets\"]\ndenied = [\"/scratch/ada/secret\"]\n";
    let mut node = laptop();
    node.directories.extend(["/scratch2", "/scratch/ada/secret", "/scratch/bob", "/data/sets2"]);
    node.links.extend([("/tmp/escape", "/data"), ("/tmp/in", "/scratch/bob"), ("/scratch/out", "/data")]);
    for (option, allowed) in [
        ("/scratch/bob", true),
        ("/scratch/bob/", true),
        ("//scratch//bob", true),
        ("/scratch/./bob", true),
        ("/scratch/bob/../bob", true),
        ("/data/../scratch/bob", true),
        ("/tmp/in", true),
        ("/tmp/in:/elsewhere", true),
        ("/sets:/s", true),
        ("../../../scratch/bob", true),
        ("/scratch2", false),
        ("/scratch/../scratch2", false),
        ("/scratch/../data", false),
        ("/scratch/out", false),
        ("/tmp/escape:/scratch/x", false),
        ("/data", false),
        ("/data/sets2", false),
        ("/data/sets/..", false),
        ("/", false),
        ("/home/ada", false),
        (".", false),
        ("..", false),
        // What is denied, what is in it, and what holds it.
        ("/scratch/ada/secret", false),
        ("/scratch/ada/secret/", false),
        ("/scratch/ada", false),
        ("/scratch", false),
        ("/scratch/ada/../ada/secret", false),
    ] {
        let option_to_slash = if option == "/" { "/:/host" } else { option };
        let result = try_plan(&node, &binding(&[option_to_slash]), &policy(text));
        match (&result, allowed) {
            (Ok(_), true) | (Err(PlanError::Refused(_)), false) => {}
            _ => panic!("{option}: {:?}", result.map(|plan| plan.to_string())),
        }
    }
}

#[test]
fn site_binds_that_are_missing() {
    let forced = "[binds]\nforced = [\"/none\"]\n";
    check_error(
        &laptop(),
        &exec(&["x"]),
        forced,
        "cannot bind /none, as /etc/hpcrun/policy.toml:2 demands: it does not exist on laptop",
    );
    for text in [
        "[binds]\noptional = [\"/none\"]\n",
        "[binds]\nforced = [{ source = \"/none\", optional = true }]\n",
        "[binds]\noptional = [\"/locked/x\"]\n",
        "[binds]\noptional = [\"$UNSET/x\"]\n",
    ] {
        let plan = check_binds(&laptop(), &exec(&["x"]), text, &[HOME]);
        assert_eq!(plan.about.notes.len(), 1, "{text}");
        assert!(plan.about.notes[0].contains("left out"), "{:?}", plan.about.notes);
    }
}

#[test]
fn a_site_bind_whose_path_the_user_chose_is_judged_as_his() {
    let text = "[binds]\noptional = [\"$CHOSEN\"]\nallowed = [\"/scratch\"]\n";
    let node = |path: &str| laptop().with_env(&[("CHOSEN", path)]);
    let chosen = "/scratch/ada -> /scratch/ada rw optional";
    check_binds(&node("/scratch/ada"), &exec(&["x"]), text, &[HOME, chosen]);
    for path in ["/data", "/scratch/../data", "/sets", "relative", "", "/"] {
        let plan = check_binds(&node(path), &exec(&["x"]), text, &[HOME]);
        assert_eq!(plan.about.notes.len(), 1, "{path}: {:?}", plan.about.notes);
    }
    let forced = "[binds]\nforced = [\"$CHOSEN\"]\nallowed = [\"/scratch\"]\n";
    let error = try_plan(&node("/data"), &exec(&["x"]), &policy(forced)).unwrap_err();
    assert!(matches!(error, PlanError::Refused(_)), "{error}");
}

#[test]
fn images_lie_where_the_site_wants_them() {
    let text = |directory: &str| policy(&format!("[images]\ndirectories = [\"{directory}\"]\n"));
    assert!(try_plan(&laptop(), &exec(&["x"]), &text("/images")).is_ok());
    let error = try_plan(&laptop(), &exec(&["x"]), &text("/image")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "refused by site policy: image astro.sqsh (that is /images/astro.sqsh), which is outside the image \
         directories (/etc/hpcrun/policy.toml:2 [images] directories)"
    );
    assert_eq!(error.hints(), ["image directories: /image"]);
}

/// What the probe finds where the site has mounted the image of these tests.
fn tree(directory: &str) -> TreeFact {
    TreeFact {
        resolved: PathBuf::from(directory),
        device: 0x700,
        device_above: 1,
        untrusted: None,
        is_squashfs: true,
        is_read_only: true,
        is_nosuid: true,
        is_nodev: true,
        shape: TreeShape { block_size: 131_072, blocks: 1, inodes: 7, root: 7 },
        backing: Some(Backing { file: PathBuf::from("/images/astro.sqsh"), offset: 0, hash: None }),
    }
}

#[test]
fn a_premounted_tree_needs_no_server() {
    let text = "[premounted]\ntrees = [{ image = \"/images/astro.sqsh\", directory = \"/run/astro\" }]\n";
    let mut node = laptop();
    let observed = Observed {
        has_user_namespaces: true,
        dev_fuse: hpcrun::host::features::DevFuse::Missing,
        ..Observed::default()
    };
    node.host.features = Features::derive(&node.host.kernel, &observed);
    check_error(&node, &exec(&["x"]), text, "this node cannot mount the image: there is no /dev/fuse");
    node.host.trees.insert(PathBuf::from("/run/astro"), tree("/run/astro"));
    let plan = planned(&node, &exec(&["x"]), &policy(text));
    assert!(plan.to_string().contains("/run/astro -> / ro"), "{plan}");
    assert!(plan.grafts.is_empty());
    check_error(&node, &exec(&["x"]), "", "this node cannot mount the image: there is no /dev/fuse");
    // A node on which it is not mounted serves the image.
    let plan = planned(&laptop(), &exec(&["x"]), &policy(text));
    assert!(plan.to_string().contains("1 squashfs"), "{plan}");
    assert_eq!(plan.about.notes, ["no tree at /run/astro (/etc/hpcrun/policy.toml:2): the image is served"]);
    // Neither does it trust a tree that somebody else can write to.
    let mut loose = laptop();
    let writable = TreeFact { is_read_only: false, ..tree("/run/astro") };
    loose.host.trees.insert(PathBuf::from("/run/astro"), writable);
    let plan = planned(&loose, &exec(&["x"]), &policy(text));
    assert!(plan.to_string().contains("1 squashfs"), "{plan}");
    assert_eq!(
        plan.about.notes,
        [
            "the tree at /run/astro is not used, as it is mounted without ro (/etc/hpcrun/policy.toml:2): the image is \
             served"
        ]
    );
}

#[test]
fn grafts_are_mount_points_and_who_runs() {
    let plan = planned(&laptop(), &binding(&["/home/ada/key:/k"]), &Policy::builtin());
    let kind = |path: &str| {
        plan.grafts.iter().find(|(other, _)| other == Path::new(path)).map(|(_, graft)| match graft {
            Graft::Directory => "directory".to_owned(),
            Graft::File => "file".to_owned(),
            Graft::Content { mode, content } => format!("{mode:o} {}", String::from_utf8_lossy(content)),
            Graft::Symlink(_) => "link".to_owned(),
        })
    };
    for (path, expected) in [
        ("/dev", "directory"),
        ("/home/ada", "directory"),
        ("/etc/hosts", "file"),
        ("/etc/resolv.conf", "file"),
        ("/k", "file"),
        ("/etc/passwd", "644 root:x:0:0:root:/root:/bin/bash\nada:x:1000:1000:Ada:/home/ada:/bin/bash\n"),
        ("/etc/group", "644 root:x:0:\nada:x:1000:\n"),
        ("/etc/localtime", "644 TZif2"),
    ] {
        assert_eq!(kind(path).as_deref(), Some(expected), "{path}");
    }
    // Whoever binds a file of his own over it has his own.
    let mut node = laptop();
    node.files.push("/data/passwd");
    let plan = planned(&node, &binding(&["/data/passwd:/etc/passwd"]), &Policy::builtin());
    let passwd: Vec<&Graft> = plan
        .grafts
        .iter()
        .filter(|(path, _)| path == Path::new("/etc/passwd"))
        .map(|(_, graft)| graft)
        .collect();
    assert_eq!(passwd, [&Graft::File]);
}

#[test]
fn a_hostile_name_stops_the_launch() {
    let mut node = laptop();
    node.host.user.name = "ada:x:0:0::/:/bin/sh\nroot".into();
    let error = try_plan(&node, &exec(&["x"]), &Policy::builtin()).unwrap_err();
    assert_eq!(error.to_string(), "cannot tell the job who it runs as");
}

// The environment.

#[track_caller]
fn check_env(node: &Node, request: &Request, text: &str, expected: &[(&str, Option<&str>)]) {
    let plan = planned(node, request, &policy(text));
    for (name, expected) in expected {
        assert_eq!(value(&plan, name).as_deref(), *expected, "{name}\n{plan}");
    }
    let mut names: Vec<&OsString> = plan.env.iter().map(|(name, _)| name).collect();
    names.dedup();
    assert_eq!(names.len(), plan.env.len(), "a name stands twice");
}

#[test]
fn the_image_is_over_the_host_but_for_who_and_where() {
    let node = laptop().with_env(&[("EDITOR", "vi"), ("ASTRO", "host"), ("TZ", "Europe/Berlin")]);
    check_env(
        &node,
        &exec(&["x"]),
        "",
        &[
            ("HOME", Some("/home/ada")),
            ("USER", Some("ada")),
            ("TERM", Some("xterm-256color")),
            ("TZ", Some("Europe/Berlin")),
            ("EDITOR", Some("vi")),
            ("LANG", Some("C.UTF-8")),
            ("ASTRO", Some("1")),
            ("PATH", Some("/opt/astro/bin:/usr/bin:/bin")),
            ("LD_LIBRARY_PATH", None),
            ("SHELL", Some("/bin/bash")),
            ("PWD", Some("/home/ada/work")),
            ("XDG_RUNTIME_DIR", None),
            ("HPCRUN_IMAGE", Some("/images/astro.sqsh")),
            ("HPCRUN_VERSION", Some(env!("CARGO_PKG_VERSION"))),
        ],
    );
}

#[test]
fn every_stripped_name_is_stripped_and_can_be_asked_for() {
    for name in STRIPPED {
        let name = name.replace('*', "X");
        let node = laptop().with_env(&[(&name, "/host/thing")]);
        let strip = planned(&node, &exec(&["x"]), &Policy::builtin());
        assert_ne!(value(&strip, &name).as_deref(), Some("/host/thing"), "{name}");
        let asked = planned(&node, &with_env(&[&name]), &Policy::builtin());
        assert_eq!(value(&asked, &name).as_deref(), Some("/host/thing"), "{name}");
        if name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            let passed = planned(&node, &exec(&["x"]), &policy(&format!("[env]\npass = [\"{name}\"]\n")));
            let found = value(&passed, &name);
            assert_eq!(found.as_deref(), Some("/host/thing"), "{name}");
        }
    }
}

#[test]
fn host_first_names_keep_the_hosts_value() {
    for name in HOST_FIRST.iter().chain(LAUNCHER) {
        let name = name.replace('*', "X");
        if is_one_of(OsStr::new(&name), DIRECTORIES) || name == "PWD" {
            continue;
        }
        let mut image = image();
        image.config.env.push(format!("{name}=image"));
        for request in [exec(&["x"]), Request { clean_env: true, ..exec(&["x"]) }] {
            let policy = Policy::builtin();
            let mut node = laptop();
            node.host.environment.retain(|(other, _)| *other != *name);
            let with = node.clone().with_env(&[(&name, "host")]).host(&request, &policy);
            let with = plan(&request, &image, &policy, &with).unwrap();
            assert_eq!(value(&with, &name).as_deref(), Some("host"), "{name}");
            let without = plan(&request, &image, &policy, &node.host(&request, &policy)).unwrap();
            let expected = match name.as_str() {
                "HOME" => Some("/home/ada"),
                "USER" | "LOGNAME" => Some("ada"),
                name if is_one_of(OsStr::new(name), LAUNCHER) => None,
                _ => Some("image"),
            };
            assert_eq!(value(&without, &name).as_deref(), expected, "{name}");
        }
    }
}

#[test]
fn a_clean_environment_keeps_the_job_running() {
    let node = slurm_node().with_env(&[("EDITOR", "vi"), ("LC_ALL", "de_DE"), ("SITE_X", "1")]);
    let clean = Request { clean_env: true, ..exec(&["x"]) };
    check_env(
        &node,
        &clean,
        "[env]\npass = [\"SITE_*\"]\n",
        &[
            ("EDITOR", None),
            ("LC_ALL", None),
            ("SCRATCH", None),
            ("SITE_X", Some("1")),
            ("SLURM_JOB_ID", Some("4711")),
            ("PMIX_RANK", Some("3")),
            ("CUDA_VISIBLE_DEVICES", Some("3")),
            ("HOME", Some("/home/ada")),
            ("ASTRO", Some("1")),
            ("PATH", Some("/opt/astro/bin:/usr/bin:/bin")),
            ("OPAL_PREFIX", None),
        ],
    );
}

#[test]
fn env_options() {
    let node = laptop().with_env(&[("EDITOR", "vi"), ("EMPTY", "")]);
    check_env(
        &node,
        &with_env(&["A=1", "A=2", "B=", "EDITOR", "EMPTY", "NONE", "LANG=x y $Z", "HOME=/h", "PATH=/p"]),
        "",
        &[
            ("A", Some("2")),
            ("B", Some("")),
            ("EDITOR", Some("vi")),
            ("EMPTY", Some("")),
            ("NONE", None),
            ("LANG", Some("x y $Z")),
            ("HOME", Some("/h")),
            ("PATH", Some("/p")),
        ],
    );
    // The name alone takes the host's value back from the image, and --cleanenv does not stand in its way.
    check_env(&node, &with_env(&["LANG"]), "", &[("LANG", Some("de_DE.UTF-8"))]);
    let clean = Request { clean_env: true, ..with_env(&["EDITOR", "ASTRO"]) };
    check_env(&node, &clean, "", &[("EDITOR", Some("vi")), ("ASTRO", None)]);
    let plan = planned(&node, &with_env(&["PATH=/p:/q:."]), &Policy::builtin());
    assert_eq!(plan.search, [PathBuf::from("/p"), PathBuf::from("/q")]);
}

#[test]
fn the_sites_environment() {
    let text = "[env]\nset = { SITE = \"$USER on $HOSTNAME\", LANG = \"C\", ASTRO = \"site\" }\n\
                prepend = { PATH = \"/opt/site/bin\", NEW_LIST = \"/x\" }\nunset = [\"EDITOR\", \"SECRET_*\"]\n\
                pass = [\"LD_LIBRARY_PATH\"]\n";
    let node = laptop().with_env(&[("EDITOR", "vi"), ("SECRET_KEY", "1"), ("SECRETLY", "2")]);
    check_env(
        &node,
        &with_env(&["LANG=user"]),
        text,
        &[
            ("SITE", Some("ada on laptop")),
            ("LANG", Some("user")),
            ("ASTRO", Some("site")),
            ("PATH", Some("/opt/site/bin:/opt/astro/bin:/usr/bin:/bin")),
            ("NEW_LIST", Some("/x")),
            ("EDITOR", None),
            ("SECRET_KEY", None),
            ("SECRETLY", Some("2")),
            ("LD_LIBRARY_PATH", Some("/opt/host/lib")),
        ],
    );
    for option in ["EDITOR", "EDITOR=emacs", "SECRET_X=1"] {
        let error = try_plan(&node, &with_env(&[option]), &policy(text)).unwrap_err();
        assert!(matches!(error, PlanError::Refused(_)), "{error}");
        assert!(error.to_string().ends_with("(/etc/hpcrun/policy.toml:4 [env] unset)"), "{error}");
    }
    check_error(
        &laptop(),
        &exec(&["x"]),
        "[env]\nset = { A = \"$NOT_SET\" }\n",
        "cannot make the job's environment: cannot set A as /etc/hpcrun/policy.toml:2 [env] set says: $NOT_SET is not set",
    );
}

#[test]
fn hostile_image_environments() {
    let mut image = image();
    let hostile = [
        "=x",
        "",
        "A\nB=1",
        "\x1b[2J=1",
        "HPCRUN_IMAGE=/x",
        "HPCRUN_POLICY=/x",
        "SLURM_JOB_ID=1",
        "PMI_RANK=0",
        "PMIX_NAMESPACE=x",
        "USER=root",
        "HOME=/root",
        "LOGNAME=root",
        "PWD=/x",
        "N\0=1",
        "V=a\0b",
    ];
    image.config.env = hostile.map(String::from).to_vec();
    let fine = [
        "DUP=1",
        "DUP=2",
        "MULTI=a\nb",
        "QUOTES=\"'`$HOME`",
        "BASH_FUNC_f%%=() { id; }",
        "LD_PRELOAD=/in/image.so",
        "INHERIT",
        "NOT_THERE",
        "EQ=a=b",
        "UML=\u{fc}",
    ];
    image.config.env.extend(fine.map(String::from));
    let (request, policy) = (exec(&["x"]), Policy::builtin());
    let node = laptop().with_env(&[("INHERIT", "from host")]);
    let plan = plan(&request, &image, &policy, &node.host(&request, &policy)).unwrap();
    for (name, expected) in [
        ("", None),
        ("A\nB", None),
        ("\x1b[2J", None),
        ("N\0", None),
        ("V", None),
        ("HPCRUN_POLICY", None),
        ("HPCRUN_IMAGE", Some("/images/astro.sqsh")),
        ("SLURM_JOB_ID", None),
        ("PMI_RANK", None),
        ("PMIX_NAMESPACE", None),
        ("USER", Some("ada")),
        ("HOME", Some("/home/ada")),
        ("PWD", Some("/home/ada/work")),
        ("DUP", Some("2")),
        ("MULTI", Some("a\nb")),
        ("QUOTES", Some("\"'`$HOME`")),
        ("BASH_FUNC_f%%", Some("() { id; }")),
        ("LD_PRELOAD", Some("/in/image.so")),
        ("INHERIT", Some("from host")),
        ("NOT_THERE", None),
        ("EQ", Some("a=b")),
        ("UML", Some("\u{fc}")),
        ("PATH", Some("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")),
    ] {
        assert_eq!(value(&plan, name).as_deref(), expected, "{name:?}");
    }
    // Nothing in an image's config changes what is mounted.
    assert_eq!(plan.mount, planned(&node, &request, &policy).mount);
}

#[test]
fn bytes_stay_bytes() {
    let mut node = laptop();
    node.host
        .environment
        .push((OsStr::from_bytes(b"N\xff").to_owned(), OsStr::from_bytes(b"\xfe=\n").to_owned()));
    let plan = planned(&node, &exec(&["x"]), &Policy::builtin());
    let found = plan.env.iter().find(|(name, _)| name.as_bytes() == b"N\xff").unwrap();
    assert_eq!(found.1.as_bytes(), b"\xfe=\n");
}

#[test]
fn directories_of_the_environment_pass_where_they_are_seen() {
    let tmpdir = |tmpdir: &str, request: &Request| {
        value(&planned(&laptop().with_env(&[("TMPDIR", tmpdir)]), request, &Policy::builtin()), "TMPDIR")
    };
    assert_eq!(tmpdir("/tmp/x", &exec(&["x"])).as_deref(), Some("/tmp/x"));
    assert_eq!(tmpdir("/scratch/ada", &exec(&["x"])), None);
    assert_eq!(tmpdir("/scratch/ada", &binding(&["/scratch"])).as_deref(), Some("/scratch/ada"));
    assert_eq!(tmpdir("relative", &exec(&["x"])), None);
    assert_eq!(tmpdir("/tmp/../scratch", &exec(&["x"])), None);
}

// Sharing.

fn share_name(node: &Node, request: &Request, policy: &Policy) -> Option<String> {
    planned(node, request, policy).share.map(|key| key.name)
}

#[test]
fn ranks_of_one_step_share() {
    let policy = policy(SLURM_POLICY);
    let rank = |n: &str| {
        let mut node = slurm_node();
        for (name, value) in &mut node.host.environment {
            if ["SLURM_PROCID", "SLURM_LOCALID", "PMIX_RANK", "CUDA_VISIBLE_DEVICES"]
                .iter()
                .any(|own| name == own)
            {
                *value = n.into();
            }
        }
        node
    };
    let first = planned(&rank("0"), &exec(&["solve"]), &policy).share.unwrap();
    assert_eq!(first.directory, Path::new("/dev/shm/hpcrun-1000"));
    assert_eq!(first.name.len(), 64);
    assert!(first.name.bytes().all(|byte| byte.is_ascii_hexdigit()));
    for n in ["1", "2", "63"] {
        assert_eq!(share_name(&rank(n), &exec(&["solve"]), &policy).as_ref(), Some(&first.name));
    }
    // Another program, other arguments and another environment make no other root.
    assert_eq!(share_name(&rank("1"), &exec(&["other", "x"]), &policy).as_ref(), Some(&first.name));
    assert_eq!(share_name(&rank("1"), &with_env(&["A=1"]), &policy).as_ref(), Some(&first.name));
}

#[test]
fn what_differs_does_not_share() {
    let text = SLURM_POLICY;
    let node = slurm_node();
    let base = share_name(&node, &exec(&["x"]), &policy(text)).unwrap();
    let mut names = vec![base];
    let mut different = |name: Option<String>| {
        let name = name.expect("a key");
        assert!(!names.contains(&name));
        names.push(name);
    };
    let set = |name: &str, value: &str| {
        let mut node = node.clone();
        node.host.environment.retain(|(other, _)| other != name);
        node.with_env(&[(name, value)])
    };
    different(share_name(&set("SLURM_JOB_ID", "4712"), &exec(&["x"]), &policy(text)));
    different(share_name(&set("SLURM_STEP_ID", "1"), &exec(&["x"]), &policy(text)));
    different(share_name(&node, &Request { share: Some(Share::Job), ..exec(&["x"]) }, &policy(text)));
    different(share_name(&node, &exec(&["x"]), &policy(&format!("{text}# another policy\n"))));
    different(share_name(&node, &binding(&["/lustre/scratch:/s"]), &policy(text)));
    different(share_name(&node, &binding(&["/lustre/scratch:/s:ro"]), &policy(text)));
    different(share_name(&node.clone().in_directory("/tmp"), &exec(&["x"]), &policy(text)));
    let mut other = node.clone();
    other.host.namespaces[0].1 += 1;
    different(share_name(&other, &exec(&["x"]), &policy(text)));
    let mut other = node.clone();
    other.host.user.gecos = "Augusta Ada".into();
    different(share_name(&other, &exec(&["x"]), &policy(text)));
    let mut other = node.clone();
    (other.host.user.uid, other.host.user.effective_uid) = (1001, 1001);
    different(share_name(&other, &exec(&["x"]), &policy(text)));
    let request = exec(&["x"]);
    let host = node.host(&request, &policy(text));
    for change in [
        |image: &mut ImageFacts| image.file.inode += 1,
        |image: &mut ImageFacts| image.file.device += 1,
        |image: &mut ImageFacts| image.file.modified_ns += 1,
        |image: &mut ImageFacts| image.size_bytes += 1,
    ] {
        let mut image = image();
        change(&mut image);
        different(plan(&request, &image, &policy(text), &host).unwrap().share.map(|key| key.name));
    }
}

#[test]
fn who_is_alone_shares_with_nobody() {
    let builtin = Policy::builtin();
    assert_eq!(share_name(&laptop(), &exec(&["x"]), &builtin), None);
    let none = Request { share: Some(Share::None), ..exec(&["x"]) };
    assert_eq!(share_name(&slurm_node(), &none, &builtin), None);
    assert_eq!(share_name(&slurm_node(), &exec(&["x"]), &policy("[launch]\nshare = \"none\"\n")), None);
    let step = Request { share: Some(Share::Step), ..exec(&["x"]) };
    assert!(share_name(&slurm_node(), &step, &policy("[launch]\nshare = \"none\"\n")).is_some());
    let mut node = slurm_node();
    node.host.share_directory = None;
    assert_eq!(share_name(&node, &exec(&["x"]), &builtin), None);
    // Hydra names no job: its ranks share by what else is equal.
    let hydra = laptop().with_env(&[("PMI_FD", "5"), ("PMI_RANK", "0")]);
    assert!(share_name(&hydra, &exec(&["x"]), &builtin).is_some());
    // Not by what they write: another mpirun may be somebody else's work.
    let writable = Writable { overlays: Vec::new(), tmpfs: Some(None) };
    let contained = Request { contain: Some("--contain"), ..exec(&["x"]) };
    let with_scratch = Request {
        scratch: vec![ScratchOption { directory: "/s".into(), is_ambient: false }],
        ..exec(&["x"])
    };
    for request in [Request { writable, ..exec(&["x"]) }, contained, with_scratch] {
        assert_eq!(share_name(&hydra, &request, &builtin), None, "{request:?}");
        assert!(share_name(&slurm_node(), &request, &builtin).is_some(), "{request:?}");
        let asked = Request { share: Some(Share::Step), ..request };
        assert!(share_name(&hydra, &asked, &builtin).is_some(), "{asked:?}");
    }
}

#[test]
fn ranks_that_do_not_share_get_settings_for_mpi() {
    let none = Request { share: Some(Share::None), ..exec(&["x"]) };
    let plan = planned(&slurm_node(), &none, &Policy::builtin());
    for (name, expected) in UNSHARED_MPI.into_iter().flatten().copied() {
        assert_eq!(value(&plan, name).as_deref(), Some(expected));
        let set = slurm_node().with_env(&[(name, "mine")]);
        assert_eq!(value(&planned(&set, &none, &Policy::builtin()), name).as_deref(), Some("mine"));
        assert_eq!(value(&planned(&slurm_node(), &exec(&["x"]), &Policy::builtin()), name), None);
        assert_eq!(value(&planned(&laptop(), &none, &Policy::builtin()), name), None);
        assert_eq!(
            value(&planned(&slurm_node(), &none, &policy("[mpi]\nfallback_env = false\n")), name),
            None
        );
    }
    // UCX warns of settings for a transport that it does not use.
    let own = slurm_node().with_env(&[("UCX_TLS", "sm,self")]);
    assert_eq!(value(&planned(&own, &none, &Policy::builtin()), "UCX_TCP_PUT_ENABLE"), None);
}

#[test]
fn server_threads() {
    let threads = |cpus: usize, text: &str| {
        let mut node = laptop();
        node.host.cpus = cpus;
        planned(&node, &exec(&["x"]), &policy(text)).server_threads
    };
    for (cpus, expected) in [(0, 1), (1, 1), (2, 2), (8, 8), (256, 8)] {
        assert_eq!(threads(cpus, ""), expected);
    }
    assert_eq!(threads(2, "[launch]\nserver_threads = 16\n"), 16);
}

// The cost.

/// Facts, policy and plan stand on the way of every rank: they must cost far less than the launch's milliseconds.
#[test]
fn gathering_and_planning_are_quick() {
    let environment: Vec<(OsString, OsString)> = std::env::vars_os().collect();
    let (request, image) = (binding(&["/tmp:/mnt"]), image());
    let once = || {
        let start = std::time::Instant::now();
        let mut host = hpcrun::host::probe::probe_for_launch(environment.clone()).unwrap();
        let policy = policy("[binds]\noptional = [\"/scratch\", \"/var/tmp\"]\n");
        let paths = paths_to_probe(&request, &[], &policy, &host);
        hpcrun::host::probe::add_paths(&mut host, paths);
        plan(&request, &image, &policy, &host).unwrap();
        start.elapsed()
    };
    let best = (0..50).map(|_| once()).min().unwrap();
    println!("facts, policy and plan: {best:?}");
    assert!(best < std::time::Duration::from_millis(5), "{best:?}");
}

// Resolution against the image's tree.

/// Resolves through the links of an imaginary image.
fn resolved(plan: &mut LaunchPlan, links: &[(&str, &str)]) -> Result<Vec<PathBuf>, ResolveError<Infallible>> {
    let mut asked = Vec::new();
    resolve(plan, |path, _| {
        asked.push(path.to_owned());
        let mut path = path.to_owned();
        for (link, target) in links {
            if let Ok(rest) = path.strip_prefix(link) {
                path = Path::new(target).join(rest).components().collect();
            }
        }
        Ok(path)
    })?;
    Ok(asked)
}

fn destinations(plan: &LaunchPlan) -> Vec<&Path> {
    plan.mount.ops.iter().filter_map(|planned| planned.op.destination()).map(PathBuf::as_path).collect()
}

#[test]
fn destinations_follow_the_images_links() {
    let mut plan = planned(&laptop(), &binding(&["/data:/srv/x"]), &Policy::builtin());
    let links = [("/home", "/var/home"), ("/srv", "/data/srv"), ("/etc/resolv.conf", "/run/resolv.conf")];
    resolved(&mut plan, &links).unwrap();
    let expected = [
        "/data/srv/x",
        "/dev",
        "/etc/hostname",
        "/etc/hosts",
        "/proc",
        "/run/resolv.conf",
        "/sys",
        "/tmp",
        "/var/home/ada",
    ];
    assert_eq!(destinations(&plan), expected.map(Path::new));
    assert!(plan.grafts.contains(&("/var/home/ada".into(), Graft::Directory)));
    assert!(matches!(plan.mount.ops.first().unwrap().op, Op::Root(_)));
    assert!(matches!(plan.mount.ops.last().unwrap().op, Op::PivotRoot));
}

#[test]
fn what_lies_in_a_bind_is_the_hosts_to_resolve() {
    let mut node = laptop();
    node.directories.push("/data/sets/deep");
    let request = binding(&["/data:/d", "/scratch:/d/sets", "/opt/site:/d/sets/x"]);
    let mut plan = planned(&node, &request, &Policy::builtin());
    let asked = resolved(&mut plan, &[("/d", "/mnt/d")]).unwrap();
    assert!(!asked.iter().any(|path| path.starts_with("/d/sets")), "{asked:?}");
    let found: Vec<&Path> = destinations(&plan).into_iter().filter(|path| path.starts_with("/mnt")).collect();
    assert_eq!(found, ["/mnt/d", "/mnt/d/sets", "/mnt/d/sets/x"].map(Path::new));
    let grafts: Vec<&PathBuf> =
        plan.grafts.iter().map(|(path, _)| path).filter(|p| p.starts_with("/mnt")).collect();
    assert_eq!(grafts, [Path::new("/mnt/d")]);
}

#[test]
fn links_that_bring_two_binds_together() {
    let text = "[binds]\noptional = [\"/opt/site:/a\"]\n";
    let mut plan = planned(&laptop(), &binding(&["/data:/b"]), &policy(text));
    resolved(&mut plan, &[("/a", "/c"), ("/b", "/c")]).unwrap();
    let at: Vec<String> = binds(&plan).into_iter().filter(|bind| bind.contains("/c")).collect();
    assert_eq!(at, ["/opt/site -> /c rw optional"]);
}

#[test]
fn links_that_lead_astray() {
    for (target, expected) in [
        ("/", "a link of the image leads /b to /, which nothing can be bound onto"),
        ("/proc/self", "a link of the image leads /b to /proc/self, which belongs to the host"),
        ("/dev/shm", "a link of the image leads /b to /dev/shm, which belongs to the host"),
        (
            "/opt/site/lib",
            "a link of the image leads /b to /opt/site/lib, which lies in /opt/site, which the site forces",
        ),
    ] {
        let text = "[binds]\nforced = [\"/opt/site\"]\n";
        // A parent is resolved before its child; /opt/site sorts after /b and /z alike must be caught.
        for name in ["/b", "/z"] {
            let mut plan = planned(&laptop(), &binding(&[&format!("/data:{name}")]), &policy(text));
            let error = resolved(&mut plan, &[(name, target)]).unwrap_err();
            assert_eq!(error.to_string(), expected.replace("/b", name));
            assert_eq!(error.hints().len(), 1);
        }
    }
}

#[test]
fn defaults_that_are_led_astray_are_left_out() {
    for (link, target) in
        [("/tmp", "/dev/shm"), ("/home", "/proc/self/root"), ("/etc/resolv.conf", "/sys/x"), ("/tmp", "/")]
    {
        let mut plan = planned(&laptop(), &exec(&["x"]), &Policy::builtin());
        let before = destinations(&plan).len();
        resolved(&mut plan, &[(link, target)]).unwrap();
        assert_eq!(destinations(&plan).len(), before - 1, "{link} {target}");
        assert!(destinations(&plan).contains(&Path::new("/dev")));
        assert!(
            plan.about.notes.last().unwrap().contains("a link of the image leads"),
            "{:?}",
            plan.about.notes
        );
    }
    // What was meant to be there stays.
    let mut node = laptop();
    node.directories.push("/dev/shm");
    let mut plan = planned(&node, &binding(&["/data:/dev/shm"]), &Policy::builtin());
    resolved(&mut plan, &[("/tmp", "/dev/shm")]).unwrap();
    assert!(plan.to_string().contains("/data -> /dev/shm rw"), "{plan}");
    // A system directory that is a link is mounted where it leads to: every bind is seen under its name.
    let mut plan = planned(&laptop(), &exec(&["x"]), &Policy::builtin());
    resolved(&mut plan, &[("/sys", "/run/sys")]).unwrap();
    assert!(destinations(&plan).contains(&Path::new("/run/sys")));
    for target in ["/dev", "/", "/proc/x"] {
        let mut plan = planned(&laptop(), &exec(&["x"]), &Policy::builtin());
        resolved(&mut plan, &[("/sys", target)]).unwrap_err();
    }
}

#[test]
fn a_failure_to_add_names_the_place() {
    let mut plan = planned(&laptop(), &exec(&["x"]), &Policy::builtin());
    let error = resolve(&mut plan, |_, _| Err(std::io::Error::other("corrupt"))).unwrap_err();
    assert_eq!(error.to_string(), "cannot add /dev to the image");
}

// The documentation.

#[test]
fn the_environment_reference_names_every_variable() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/environment.md");
    let text = std::fs::read_to_string(file).unwrap();
    let names = STRIPPED.iter().chain(LAUNCHER).chain(HOST_FIRST).chain(DIRECTORIES);
    let unshared = UNSHARED_MPI.into_iter().flatten().map(|(name, _)| *name);
    for name in names.copied().chain(unshared) {
        assert!(text.contains(&format!("`{name}`")), "{name} is not in docs/environment.md");
    }
}
