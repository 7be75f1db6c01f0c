//! Drivers of GPUs in images, through the binary as an ordinary user: made-up driver trees whose libraries are real ones, CDI
//! specifications, images of glibc, of musl, of neither.
//!
//! The last test wants a real device and says so: `make test-gpu`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use hpcrun::elf::library_cache::{Entry, LibraryCache};
use serde_json::json;

use crate::busybox_image::{busybox, convert};
use crate::layer_building::{Member, tar};
use crate::support::{as_user, hpcrun, is_root, run, scratch, stdout, text};

/// Opens the library of its first argument by name and asks it for its version, as a CUDA program would.
const PROBE: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
int main(int argc, char **argv) {
    void *library = dlopen(argv[1], RTLD_NOW);
    if (!library) { printf("%s\n", dlerror()); return 3; }
    int (*version)(void) = (int (*)(void))dlsym(library, "driver_version");
    printf("driver %d\n", version ? version() : -1);
    return 0;
}
"#;

struct Fixture {
    directory: tempfile::TempDir,
    glibc: PathBuf,
    musl: PathBuf,
    bare: PathBuf,
}

impl Fixture {
    /// A made-up node with a driver.
    fn node(&self) -> PathBuf {
        self.directory.path().join("node")
    }

    /// The tree of the image with glibc.
    fn tree(&self) -> PathBuf {
        self.directory.path().join("tree")
    }
}

fn fixture() -> &'static Fixture {
    static FIXTURE: OnceLock<Fixture> = OnceLock::new();
    FIXTURE.get_or_init(|| {
        let directory = scratch();
        let path = directory.path();
        make_node(&path.join("node"), "999.1");
        let glibc = glibc_image(path);
        let musl =
            [busybox(), vec![Member::directory("lib/"), Member::file("lib/ld-musl-x86_64.so.1", "loader")]];
        let config = json!({"Env": ["PATH=/bin"]});
        let musl = convert(path, "musl", &config, &[tar(&musl.concat())]);
        let bare = convert(path, "bare", &config, &[tar(&busybox())]);
        Fixture { glibc, musl, bare, directory }
    })
}

/// Libraries that NVIDIA's need, all of the C library.
const NEEDED: [&str; 4] = ["libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1"];

/// A library that says `number`, has the functions of the driver that a program calls, and needs what the driver's needs.
fn library(path: &Path, soname: &str, number: u32) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gpu/driver.c");
    let mut gcc = Command::new("gcc");
    gcc.args(["-shared", "-fPIC", "-Wall", "-Werror", &format!("-Wl,-soname,{soname}")]);
    gcc.arg(format!("-DNUMBER={number}")).arg("-o").arg(path).arg(source).arg("-Wl,--no-as-needed");
    stdout(gcc.args(NEEDED.map(|name| format!("-l:{name}"))));
}

/// A made-up tree of a node with a driver of this version.
pub(crate) fn make_node(root: &Path, version: &str) {
    for directory in
        ["dev", "proc/driver/nvidia/gpus/0000:01:00.0", "sys/module/nvidia", "usr/lib64", "usr/bin"]
    {
        fs::create_dir_all(root.join(directory)).expect("directory");
    }
    for directory in ["dev/nvidia-caps", "dev/nvidia-caps-imex-channels"] {
        fs::create_dir(root.join(directory)).expect("directory");
    }
    for node in ["nvidiactl", "nvidia0", "nvidia-uvm", "nvidia-caps-imex-channels/channel0"] {
        fs::write(root.join("dev").join(node), node).expect("node");
    }
    fs::write(root.join("proc/driver/nvidia/gpus/0000:01:00.0/information"), "Device Minor: \t 0\n")
        .expect("file");
    fs::write(root.join("sys/module/nvidia/version"), format!("{version}\n")).expect("file");
    let directory = root.join("usr/lib64");
    for (name, soname) in [
        ("libcuda", "libcuda.so.1".to_owned()),
        ("libnvidia-ml", "libnvidia-ml.so.1".to_owned()),
        ("libnvidia-eglcore", format!("libnvidia-eglcore.so.{version}")),
    ] {
        let file = directory.join(format!("{name}.so.{version}"));
        library(&file, &soname, 999);
        if !directory.join(&soname).exists() {
            symlink(file.file_name().expect("name"), directory.join(&soname)).expect("link");
        }
    }
    let smi = root.join("usr/bin/nvidia-smi");
    fs::write(&smi, "#!/bin/sh\necho smi of the host\n").expect("program");
    fs::set_permissions(&smi, PermissionsExt::from_mode(0o755)).expect("chmod");
}

/// An image with this machine's C library, the cache that its ldconfig makes, a `libcuda.so.1` of its own, and the probe.
fn glibc_image(path: &Path) -> PathBuf {
    let tree = path.join("tree");
    fs::create_dir_all(tree.join("etc")).expect("etc");
    fs::write(tree.join("etc/ld.so.conf"), "/opt/own\n/usr/lib\n").expect("ld.so.conf");
    fs::create_dir_all(tree.join("opt/own")).expect("directory");
    library(&tree.join("opt/own/libcuda.so.1"), "libcuda.so.1", 1);
    fs::write(tree.join("probe.c"), PROBE).expect("source");
    let probe = tree.join("probe");
    stdout(Command::new("gcc").arg("-o").arg(&probe).arg(tree.join("probe.c")));
    let ldd = stdout(Command::new("ldd").arg(&probe));
    let found = NEEDED.map(|name| {
        let place = stdout(Command::new("gcc").arg(format!("-print-file-name={name}")));
        fs::canonicalize(place.trim()).expect("a library").display().to_string()
    });
    let needed = ldd.split_whitespace().filter(|word| word.starts_with('/'));
    for needed in needed.chain(found.iter().map(String::as_str)) {
        let to = tree.join(needed.trim_start_matches('/'));
        fs::create_dir_all(to.parent().expect("parent")).expect("directory");
        fs::copy(needed, to).expect("library");
    }
    // ldconfig looks into these.
    fs::create_dir_all(tree.join("usr/lib")).expect("directory");
    stdout(Command::new("ldconfig").arg("-r").arg(&tree));
    let mut members = busybox();
    let mut files: Vec<PathBuf> =
        stdout(Command::new("find").arg(&tree).args(["-type", "f"])).lines().map(PathBuf::from).collect();
    files.sort();
    for file in files {
        let name = file.strip_prefix(&tree).expect("below").display().to_string();
        members.push(Member::file(name, fs::read(&file).expect("file")).mode(0o755));
    }
    convert(path, "glibc", &json!({"Env": ["PATH=/bin"]}), &[tar(&members)])
}

/// `hpcrun exec` on the made-up node.
fn on_node(image: &Path, options: &[&str], command: &[&str]) -> Command {
    let mut exec = hpcrun(["exec", "--driver-root"]);
    exec.arg(fixture().node()).args(options).arg(image).args(command);
    exec
}

#[test]
fn a_program_finds_the_driver_of_the_host_before_the_image_s() {
    let image = &fixture().glibc;
    assert_eq!(stdout(&mut on_node(image, &[], &["/probe", "libcuda.so.1"])), "driver 999\n");
    assert_eq!(stdout(&mut on_node(image, &["--nv"], &["/probe", "libcuda.so"])), "driver 999\n");
    assert_eq!(stdout(&mut on_node(image, &["--gpu=none"], &["/probe", "libcuda.so.1"])), "driver 1\n");
    assert_eq!(stdout(&mut on_node(image, &[], &["/probe", "libnvidia-ml.so.1"])), "driver 999\n");
    assert_eq!(stdout(&mut on_node(image, &[], &["/usr/bin/nvidia-smi"])), "smi of the host\n");
}

#[test]
fn capabilities_choose_what_is_shown() {
    let image = &fixture().glibc;
    let graphics = "libnvidia-eglcore.so.999.1";
    assert_eq!(run(&mut on_node(image, &[], &["/probe", graphics])).status.code(), Some(3));
    assert_eq!(stdout(&mut on_node(image, &["--gpu-caps=all"], &["/probe", graphics])), "driver 999\n");
    let listed = stdout(&mut on_node(image, &["--gpu-caps=utility"], &["ls", "/.hpcrun/lib"]));
    assert_eq!(listed, "libnvidia-ml.so.1\n");
}

#[test]
fn the_merged_cache_is_what_ldconfig_understands() {
    let fixture = fixture();
    let merged = run(&mut on_node(&fixture.glibc, &[], &["cat", "/etc/ld.so.cache"])).stdout;
    let file = fixture.directory.path().join("merged.cache");
    fs::write(&file, &merged).expect("file");
    let list = |cache: &Path| {
        let text = stdout(Command::new("ldconfig").arg("-p").arg("-C").arg(cache));
        text.lines().filter(|line| line.contains("=>")).map(|line| line.trim().to_owned()).collect::<Vec<_>>()
    };
    let (before, after) = (list(&fixture.tree().join("etc/ld.so.cache")), list(&file));
    let own: Vec<&String> = after.iter().filter(|line| line.contains("/.hpcrun/lib/")).collect();
    assert_eq!(own.len(), 3, "{after:#?}");
    let others: Vec<&String> = after.iter().filter(|line| !line.contains("/.hpcrun/lib/")).collect();
    assert_eq!(others, before.iter().collect::<Vec<_>>());
    let first = after.iter().find(|line| line.starts_with("libcuda.so.1 ")).expect("libcuda");
    assert!(first.ends_with("=> /.hpcrun/lib/libcuda.so.1"), "{first}");
}

#[test]
fn this_machine_s_cache_goes_round() {
    let bytes = fs::read("/etc/ld.so.cache").expect("/etc/ld.so.cache");
    let mut cache = LibraryCache::parse(&bytes).expect("a cache");
    let directory = scratch();
    let file = directory.path().join("cache");
    let list = |path: &Path| stdout(Command::new("ldconfig").arg("-p").arg("-C").arg(path));
    fs::write(&file, cache.to_bytes().expect("bytes")).expect("file");
    let body = |text: String| text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(body(list(&file)), body(list(Path::new("/etc/ld.so.cache"))));
    // What is put first keeps the order that ldconfig itself would make.
    let names: Vec<Vec<u8>> = cache.entries.iter().map(|entry| entry.name.clone()).collect();
    cache.put_first([Entry::new(b"libzz.so.1".to_vec(), b"/x/libzz.so.1".to_vec())]);
    let sorted: Vec<Vec<u8>> = cache.entries.iter().map(|entry| entry.name.clone()).collect();
    assert_eq!(
        sorted.iter().filter(|name| *name != b"libzz.so.1").collect::<Vec<_>>(),
        names.iter().collect::<Vec<_>>()
    );
}

#[test]
fn images_without_a_cache_have_musl_s_list_or_a_variable() {
    let fixture = fixture();
    let list = stdout(&mut on_node(&fixture.musl, &[], &["cat", "/etc/ld-musl-x86_64.path"]));
    assert!(list.starts_with("/.hpcrun/lib\n/lib:"), "{list}");
    let silent = run(&mut on_node(&fixture.musl, &[], &["true"]));
    assert_eq!(text(&silent.stderr), "", "who does not use a GPU is not told");
    let value = stdout(&mut on_node(&fixture.bare, &[], &["sh", "-c", "echo $LD_LIBRARY_PATH"]));
    assert_eq!(value, "/.hpcrun/lib\n");
    assert_eq!(
        stdout(&mut on_node(&fixture.bare, &["--gpu=none"], &["sh", "-c", "echo $LD_LIBRARY_PATH"])),
        "\n"
    );
}

#[test]
fn explain_says_what_why_and_how_to_be_without() {
    let explained = stdout(&mut on_node(&fixture().glibc, &["--explain"], &["true"]));
    for expected in [
        "-> /.hpcrun/lib/libcuda.so.1 ro",
        "-> /usr/bin/nvidia-smi ro",
        "file /etc/ld.so.cache with 3 libraries of the host first",
        "# NVIDIA driver 999.1; --gpu=none leaves it out",
    ] {
        assert!(explained.contains(expected), "{expected}: {explained}");
    }
    let without = stdout(&mut on_node(&fixture().glibc, &["--gpu=none", "--explain"], &["true"]));
    assert!(!without.contains("hpcrun/lib"), "{without}");
}

#[test]
fn a_contained_job_has_the_devices() {
    let listed = stdout(&mut on_node(&fixture().glibc, &["--contain"], &["ls", "/dev"]));
    for node in ["nvidia0", "nvidiactl", "nvidia-uvm", "nvidia-caps", "nvidia-caps-imex-channels"] {
        assert!(listed.lines().any(|line| line == node), "{node}: {listed}");
    }
    let channel = ["cat", "/dev/nvidia-caps-imex-channels/channel0"];
    let channel = stdout(&mut on_node(&fixture().glibc, &["--contain"], &channel));
    assert_eq!(channel, "nvidia-caps-imex-channels/channel0");
}

#[test]
fn a_driver_upgraded_under_a_running_kernel_is_told() {
    let directory = scratch();
    let node = directory.path().join("node");
    make_node(&node, "999.1");
    fs::write(node.join("sys/module/nvidia/version"), "998.7\n").expect("version");
    let mut exec = hpcrun(["exec", "--driver-root"]);
    let output = run(exec.arg(&node).arg(&fixture().glibc).args(["/probe", "libcuda.so.1"]));
    assert_eq!(text(&output.stdout), "driver 1\n");
    let stderr = text(&output.stderr);
    assert!(
        stderr.contains("998.7") && stderr.contains("999.1") && stderr.contains("not restarted"),
        "{stderr}"
    );
}

#[test]
fn what_is_asked_for_and_missing_is_told() {
    let output = run(hpcrun(["exec", "--gpu=cdi:vendor.example/nosuch=0"]).arg(&fixture().bare).arg("true"));
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("vendor.example/nosuch=0"), "{}", text(&output.stderr));
    let directory = scratch();
    let mut exec = hpcrun(["exec", "--nv", "--driver-root"]);
    let output = run(exec.arg(directory.path()).arg(&fixture().bare).arg("true"));
    assert!(
        output.status.success() && text(&output.stderr).contains("no NVIDIA driver"),
        "{}",
        text(&output.stderr)
    );
    let output = run(hpcrun(["exec", "--gpu=all"]).arg(&fixture().bare).arg("true"));
    assert!(text(&output.stderr).contains("auto, none, nvidia"), "{}", text(&output.stderr));
}

/// A site that keeps its CDI specifications in two directories.
struct Site(tempfile::TempDir);

impl Site {
    fn new(policy: &str) -> Site {
        assert!(is_root(), "a policy file is root's: these tests want root");

        let directory = tempfile::Builder::new().prefix("hpcrun-gpu-").tempdir_in("/tmp").expect("directory");
        fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).expect("chmod");
        let site = Site(directory);
        for name in ["etc", "run"] {
            fs::create_dir(site.path(name)).expect("directory");
        }
        let (etc, late) = (site.path("etc"), site.path("run"));
        let text = format!("[gpu]\ncdi_dirs = [{etc:?}, {late:?}]\n{policy}");
        fs::write(site.path("policy.toml"), text).expect("policy");
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn exec(&self, options: &[&str], command: &[&str]) -> Command {
        let mut exec = on_node(&fixture().glibc, options, command);
        exec.env("HPCRUN_POLICY", self.path("policy.toml"));
        exec
    }
}

/// A specification as NVIDIA's tool writes it, for the made-up driver.
fn specification(site: &Site, number: u32) -> String {
    let file = site.path(&format!("libcuda.so.999.{number}"));
    library(&file, "libcuda.so.1", number);
    let template =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cdi/nvidia.yaml"));
    template.expect("fixture").replace("HOST_LIBRARY", &file.display().to_string())
}

#[test]
fn a_specification_decides_what_is_shown() {
    let site = Site::new("");
    fs::write(site.path("etc/nvidia.yaml"), specification(&site, 7)).expect("specification");
    fs::write(site.path("etc/broken.json"), "{").expect("specification");
    let output = run(&mut site.exec(&[], &["/probe", "libcuda.so.1"]));
    assert_eq!((text(&output.stdout).as_str(), text(&output.stderr).as_str()), ("driver 7\n", ""));
    let shell = "echo $NVIDIA_VISIBLE_DEVICES; readlink /usr/lib64/nvidia/libcuda.so; readlink /usr/lib64/nvidia/libcuda.so.1; cat \
                 /etc/nvidia/nvidia-application-profiles-rc.d/10-container.conf | grep -c EGLVisible";
    let output = run(&mut site.exec(&["--gpu=nvidia"], &["sh", "-c", shell]));
    assert_eq!(text(&output.stdout), "void\nlibcuda.so.1\nlibcuda.so.999.7\n1\n", "{}", text(&output.stderr));
    let stderr = text(&output.stderr);
    for told in
        ["/opt/vendor/hook do-something' of a CDI specification is not run", "group 54321", "/no/such/file"]
    {
        assert!(stderr.contains(told), "{told}: {stderr}");
    }
    let explained = stdout(&mut site.exec(&["--explain"], &["true"]));
    assert!(
        explained.contains("broken.json is not used") && explained.contains("CDI nvidia.com/gpu=all"),
        "{explained}"
    );
}

#[test]
fn the_later_directory_wins_and_a_conflict_is_no_specification() {
    let site = Site::new("");
    fs::write(site.path("etc/nvidia.yaml"), specification(&site, 5)).expect("specification");
    fs::write(site.path("run/nvidia.yaml"), specification(&site, 6)).expect("specification");
    let by_name = ["--gpu=cdi:nvidia.com/gpu=0"];
    assert_eq!(stdout(&mut site.exec(&by_name, &["/probe", "libcuda.so.1"])), "driver 6\n");
    fs::write(site.path("run/other.yaml"), specification(&site, 8)).expect("specification");
    let output = run(&mut site.exec(&by_name, &["true"]));
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("2 files of the same directory"), "{}", text(&output.stderr));
    // Nobody named it: the driver is looked for without.
    assert_eq!(stdout(&mut site.exec(&[], &["/probe", "libcuda.so.1"])), "driver 999\n");
}

#[test]
fn the_site_decides() {
    let site = Site::new("mode = \"none\"\nallow_user = false\n");
    assert_eq!(stdout(&mut site.exec(&[], &["/probe", "libcuda.so.1"])), "driver 1\n");
    let output = run(&mut site.exec(&["--nv"], &["true"]));
    assert_eq!(output.status.code(), Some(122), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("policy.toml:4"), "{}", text(&output.stderr));
    let strict = Site::new("require = \"fail\"\n");
    let output = run(strict.exec(&["--gpu=amd"], &["true"]).arg("x"));
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("no AMD GPU"), "{}", text(&output.stderr));
}

#[test]
fn a_specification_of_a_driver_that_was_upgraded_is_not_used() {
    let site = Site::new("");
    let old = site.path("libcuda.so.998.7").display().to_string();
    let stale = specification(&site, 7).replace(&site.path("libcuda.so.999.7").display().to_string(), &old);
    fs::write(site.path("etc/nvidia.yaml"), stale).expect("specification");
    assert_eq!(stdout(&mut site.exec(&[], &["/probe", "libcuda.so.1"])), "driver 999\n");
    let explained = stdout(&mut site.exec(&["--explain"], &["true"]));
    assert!(explained.contains("nvidia.yaml is not used") && explained.contains(&old), "{explained}");
    // Who names it gets it as it is, and is told.
    let output = run(&mut site.exec(&["--gpu=cdi:nvidia.com/gpu=all"], &["true"]));
    assert!(text(&output.stderr).contains(&old), "{}", text(&output.stderr));
}

#[test]
fn each_mode_gives_what_it_names() {
    let site = Site::new("");
    fs::write(site.path("etc/nvidia.yaml"), specification(&site, 7)).expect("specification");
    for (options, expected) in [
        (&["--gpu=auto"][..], "driver 7\n"),
        (&["--gpu=none"], "driver 1\n"),
        (&["--gpu=nvidia"], "driver 7\n"),
        (&["--nv"], "driver 7\n"),
        (&["--gpu=amd"], "driver 1\n"),
        (&["--rocm"], "driver 1\n"),
        (&["--gpu=intel"], "driver 1\n"),
        (&["--gpu=cdi:nvidia.com/gpu=0"], "driver 7\n"),
    ] {
        assert_eq!(stdout(&mut site.exec(options, &["/probe", "libcuda.so.1"])), expected, "{options:?}");
    }
    // What the image needs of the driver is looked at however the device was named.
    let needing = needing_image("cuda>=99.0");
    let mut exec = on_node(&needing, &["--gpu=cdi:nvidia.com/gpu=0"], &["true"]);
    let output = run(exec.env("HPCRUN_POLICY", site.path("policy.toml")));
    assert!(text(&output.stderr).contains("the image needs cuda>=99.0"), "{}", text(&output.stderr));
}

/// An image that wants a driver.
fn needing_image(requirement: &str) -> PathBuf {
    let config = json!({"Env": ["PATH=/bin", format!("NVIDIA_REQUIRE_CUDA={requirement}")]});
    convert(fixture().directory.path(), "needing", &config, &[tar(&busybox())])
}

#[test]
fn nodes_of_other_vendors_have_their_devices_and_no_libraries() {
    let directory = scratch();
    for (name, told) in
        [("amd", "AMD GPU: ROCm is the image's"), ("intel", "Intel GPU: Level Zero is the image's")]
    {
        let node = directory.path().join(name);
        for made in ["dev/dri", "sys/class/drm/renderD128/device"] {
            fs::create_dir_all(node.join(made)).expect("directory");
        }
        fs::write(node.join("dev/dri/renderD128"), "render").expect("node");
        fs::write(node.join("sys/class/drm/renderD128/device/vendor"), "0x8086\n").expect("vendor");
        if name == "amd" {
            fs::write(node.join("dev/kfd"), "kfd").expect("node");
        }
        let exec = |options: &[&str], command: &[&str]| {
            let mut exec = hpcrun(["exec", "--driver-root"]);
            exec.arg(&node).args(options).arg(&fixture().glibc).args(command);
            exec
        };
        let explained = stdout(&mut exec(&["--explain"], &["true"]));
        assert!(explained.contains(told) && !explained.contains("ld.so.cache"), "{name}: {explained}");
        let render = stdout(&mut exec(&["--contain"], &["cat", "/dev/dri/renderD128"]));
        assert_eq!(render, "render", "{name}");
        let option = format!("--gpu={name}");
        assert_eq!(text(&run(&mut exec(&[&option], &["true"])).stderr), "", "{name}");
    }
}

#[test]
fn variables_of_the_batch_system_pass_as_they_are() {
    let given = [
        ("CUDA_VISIBLE_DEVICES", "1"),
        ("ROCR_VISIBLE_DEVICES", "2"),
        ("HIP_VISIBLE_DEVICES", "3"),
        ("ZE_AFFINITY_MASK", "4"),
        ("GPU_DEVICE_ORDINAL", "5"),
    ];
    let mut exec = on_node(&fixture().glibc, &[], &["env"]);
    let env = stdout(exec.envs(given));
    for (name, value) in given {
        assert!(env.lines().any(|line| line == format!("{name}={value}")), "{name}: {env}");
    }
}

/// A node whose unified memory has no device yet, and a helper that makes it and notes that it was called.
fn node_without_uvm(directory: &Path) -> PathBuf {
    let node = directory.join("node");
    make_node(&node, "999.1");
    fs::remove_file(node.join("dev/nvidia-uvm")).expect("node");
    // The made-up helper has not the privilege of the real one.
    fs::set_permissions(node.join("dev"), PermissionsExt::from_mode(0o777)).expect("chmod");
    let helper = node.join("usr/bin/nvidia-modprobe");
    let (log, dev) = (directory.join("log"), node.join("dev"));
    let script = format!(
        "#!/bin/sh\necho \"$@\" >>{}\nsleep 0.2\necho uvm >{}/nvidia-uvm\n",
        log.display(),
        dev.display()
    );
    fs::write(&helper, script).expect("helper");
    fs::set_permissions(&helper, PermissionsExt::from_mode(0o755)).expect("chmod");
    node
}

#[test]
fn a_missing_node_is_made_once_for_all_ranks() {
    let directory = scratch();
    let node = node_without_uvm(directory.path());
    let rank = |number: usize, mode: &str| {
        let mut exec = hpcrun(["exec", "--contain", mode, "--driver-root"]);
        exec.arg(&node).arg(&fixture().glibc).args(["cat", "/dev/nvidia-uvm"]);
        exec.env("SLURM_JOB_ID", format!("gpu-test-{}", std::process::id())).env("SLURM_STEP_ID", "0");
        exec.env("SLURM_LOCALID", number.to_string()).env("SLURM_PROCID", number.to_string());
        exec.env("SLURM_STEP_TASKS_PER_NODE", "4").env("SLURM_NTASKS", "4");
        exec.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        exec.spawn().expect("a rank")
    };
    let log = directory.path().join("log");
    run(&mut {
        let mut explain = hpcrun(["exec", "--explain", "--driver-root"]);
        explain.arg(&node).arg(&fixture().glibc).arg("true");
        explain
    });
    assert!(!log.exists(), "nothing is run to explain");
    let ranks: Vec<_> = (0..4).map(|number| rank(number, "--gpu=auto")).collect();
    for rank in ranks {
        let output = rank.wait_with_output().expect("a rank");
        assert_eq!(text(&output.stdout), "uvm\n", "{}", text(&output.stderr));
    }
    assert_eq!(fs::read_to_string(&log).expect("the helper was run"), "-u -c=0\n");
    rank(0, "--gpu=nvidia").wait_with_output().expect("a rank");
    assert_eq!(fs::read_to_string(&log).expect("log"), "-u -c=0\n", "not again");
}

/// Runs a kernel from an image; gives what the program says.
fn kernel_in_image(mut exec: Command, image: &Path, program: &Path) -> String {
    exec.arg(format!("--bind={}:/gpu-probe", program.display())).arg("--gpu=nvidia");
    let answer = stdout(exec.arg(image).arg("/gpu-probe"));
    assert!(answer.ends_with("kernel: ok\n"), "{answer}");
    answer
}

/// `scripts/gpu-probe.c`, built.
fn kernel_program(directory: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/gpu-probe.c");
    let program = directory.join("gpu-probe");
    stdout(
        Command::new("gcc").args(["-Wall", "-Wextra", "-Werror", "-o"]).arg(&program).arg(source).arg("-ldl"),
    );
    fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("chmod");
    program
}

/// The libraries in the loader's list whose files are of the driver's version, by their SONAMEs.
fn driver_in_list(list: &str, version: &str) -> Vec<String> {
    let mut names = Vec::new();
    for line in list.lines() {
        let Some((_, place)) = line.trim().split_once(" (libc6,x86-64) => ") else { continue };
        let resolved = fs::canonicalize(place).unwrap_or_default();
        if !resolved.to_string_lossy().ends_with(&format!(".so.{version}")) {
            continue;
        }
        let dynamic = stdout(Command::new("readelf").arg("-d").arg(&resolved));
        let soname = dynamic.lines().find_map(|line| line.split_once("soname: [")?.1.strip_suffix(']'));
        names.extend(soname.map(str::to_owned));
    }
    assert!(names.iter().any(|name| name == "libcuda.so.1"), "libcuda.so.1 of {version}: {list}");
    names
}

/// Every step of the next test, on the made-up node.
#[test]
fn a_kernel_runs_from_an_image_with_the_driver_of_the_node() {
    let directory = scratch();
    let program = kernel_program(directory.path());
    let exec = |image: &Path| {
        let mut exec = hpcrun(["exec", "--driver-root"]);
        exec.arg(fixture().node());
        kernel_in_image(exec, image, &program)
    };
    assert_eq!(exec(&fixture().glibc), "CUDA 999, 1 devices, the first: made up\nkernel: ok\n");
    let library = fixture().node().join("usr/lib64/libcuda.so.1");
    let list = format!("1 libs found\n\tlibcuda.so.1 (libc6,x86-64) => {}\n", library.display());
    assert_eq!(driver_in_list(&list, "999.1"), ["libcuda.so.1"]);
}

/// Wants a node with a device of NVIDIA's: `make test-gpu`. What hpcrun shows is held against what the driver itself lists, and a
/// kernel is run from an image, once by what hpcrun finds by itself and once by the node's CDI specifications, if it has any.
#[test]
#[ignore = "needs a GPU: make test-gpu"]
fn a_real_device_runs_a_kernel_from_an_image() {
    assert!(Path::new("/dev/nvidiactl").exists(), "this machine has no NVIDIA device: nothing was tested");
    let directory = scratch();
    let program = kernel_program(directory.path());
    let image = glibc_image(directory.path());
    let outside = stdout(&mut as_user(&program));
    let no_specifications = Site::new("");
    for policy in [Some(no_specifications.path("policy.toml")), None] {
        let exec = || {
            let mut exec = hpcrun(["exec"]);
            exec.envs(policy.iter().map(|policy| ("HPCRUN_POLICY", policy)));
            exec
        };
        println!("{}", stdout(exec().arg("--explain").arg(&image).arg("true")));
        assert_eq!(kernel_in_image(exec(), &image, &program), outside, "inside as outside");
        let smi = stdout(exec().arg("--gpu=nvidia").arg(&image).args(["nvidia-smi", "-L"]));
        assert_eq!(smi, stdout(as_user("nvidia-smi").arg("-L")));
    }
    let version = stdout(as_user("nvidia-smi").args(["--query-gpu=driver_version", "--format=csv,noheader"]));
    let version = version.lines().next().expect("a version").trim();
    let mut exec = hpcrun(["exec", "--gpu-caps=all"]);
    exec.env("HPCRUN_POLICY", no_specifications.path("policy.toml"));
    let listed = stdout(exec.arg(&image).args(["ls", "/.hpcrun/lib"]));
    for name in driver_in_list(&stdout(Command::new("ldconfig").arg("-p")), version) {
        assert!(listed.lines().any(|line| line == name), "{name}: {listed}");
    }
}
