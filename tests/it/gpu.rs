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
use crate::support::{hpcrun, is_root, run, scratch, stdout, text};

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

/// A library that says `number`.
fn library(path: &Path, soname: &str, number: u32) {
    let source = path.with_extension("c");
    fs::write(&source, format!("int driver_version(void) {{ return {number}; }}\n")).expect("source");
    stdout(
        Command::new("gcc")
            .args(["-shared", "-fPIC", &format!("-Wl,-soname,{soname}"), "-o"])
            .arg(path)
            .arg(&source),
    );
    fs::remove_file(source).expect("source");
}

fn make_node(root: &Path, version: &str) {
    for directory in
        ["dev", "proc/driver/nvidia/gpus/0000:01:00.0", "sys/module/nvidia", "usr/lib64", "usr/bin"]
    {
        fs::create_dir_all(root.join(directory)).expect("directory");
    }
    for node in ["nvidiactl", "nvidia0", "nvidia-uvm"] {
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
    for needed in ldd.split_whitespace().filter(|word| word.starts_with('/')) {
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
    for node in ["nvidia0", "nvidiactl", "nvidia-uvm"] {
        assert!(listed.lines().any(|line| line == node), "{node}: {listed}");
    }
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
    for told in ["/opt/vendor/hook", "group 54321", "/no/such/file"] {
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

/// Wants a node with a device of NVIDIA's: `make test-gpu`. What hpcrun shows is held against what the driver itself lists, and a
/// kernel is run from an image.
#[test]
#[ignore = "needs a GPU: make test-gpu"]
fn a_real_device_runs_a_kernel_from_an_image() {
    assert!(Path::new("/dev/nvidiactl").exists(), "this machine has no NVIDIA device: nothing was tested");
    let directory = scratch();
    let path = directory.path();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/gpu-probe.c");
    let image = glibc_image(path);
    let probe = path.join("gpu-probe");
    stdout(Command::new("gcc").arg("-o").arg(&probe).arg(script).arg("-ldl"));
    fs::set_permissions(&probe, PermissionsExt::from_mode(0o755)).expect("chmod");
    let bind = format!("--bind={}:/gpu-probe", probe.display());
    let answer = stdout(hpcrun(["exec", &bind, "--gpu=nvidia"]).arg(&image).arg("/gpu-probe"));
    assert_eq!(answer, stdout(&mut Command::new(&probe)), "inside as outside");
    assert!(answer.ends_with("kernel: ok\n"), "{answer}");
    let smi = stdout(hpcrun(["exec", "--gpu=nvidia"]).arg(&image).args(["/usr/bin/nvidia-smi", "-L"]));
    assert_eq!(smi, stdout(Command::new("nvidia-smi").arg("-L")));
    let version = fs::read_to_string("/sys/module/nvidia/version").expect("version");
    let listed = stdout(hpcrun(["exec", "--gpu-caps=all"]).arg(&image).args(["ls", "/.hpcrun/lib"]));
    for library in stdout(Command::new("ldconfig").arg("-p")).lines() {
        let Some((name, place)) = library.trim().split_once(" (libc6,x86-64) => ") else { continue };
        let resolved = fs::canonicalize(place).unwrap_or_default();
        if resolved.to_string_lossy().ends_with(&format!(".so.{}", version.trim())) && name != "libcuda.so" {
            assert!(listed.lines().any(|line| line == name), "{name}: {listed}");
        }
    }
}
