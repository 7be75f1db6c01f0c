//! Decisions on nodes of all kinds.

use super::*;
use crate::host::gpu::Nvidia;
use crate::image::config::ImageConfig;
use crate::launch::inject::{Loaders, MuslLoader};

fn library(soname: &str, glibc: Option<GlibcVersion>) -> SharedObject {
    SharedObject {
        path: format!("/usr/lib64/{soname}.550").into(),
        file_name: soname.into(),
        soname: soname.into(),
        glibc,
        needed: Vec::new(),
    }
}

/// A node with a driver of version 550.54.14.
fn node() -> Host {
    let version = Some("550.54.14".to_owned());
    let libraries =
        vec![library("libcuda.so.1", Some((2, 17))), library("libnvidia-eglcore.so.550.54.14", None)];
    let nvidia =
        Nvidia { version: version.clone(), library_version: version, libraries, ..Nvidia::default() };
    Host { gpu: GpuFacts { nvidia: Some(nvidia), ..GpuFacts::default() }, ..Host::default() }
}

fn image(env: &[&str]) -> ImageFacts {
    let config = ImageConfig { env: env.iter().map(|s| (*s).to_owned()).collect(), ..ImageConfig::default() };
    ImageFacts { config, ..ImageFacts::default() }
}

fn decide(request: &Request, image: &ImageFacts, host: &Host) -> GpuPlan {
    plan(request, image, &Policy::builtin(), host).unwrap()
}

fn asking(mode: Mode) -> Request {
    Request {
        gpu: GpuRequest { mode: Some((mode, "--gpu x".to_owned())), ..GpuRequest::default() },
        ..Request::default()
    }
}

fn names(plan: &GpuPlan) -> Vec<String> {
    plan.injection.libraries.iter().map(|library| library.name.display().to_string()).collect()
}

#[test]
fn a_node_without_gives_nothing() {
    let plan = decide(&Request::default(), &image(&[]), &Host::default());
    assert_eq!(plan, GpuPlan::default());
    let plan = decide(&asking(Mode::Nvidia), &image(&[]), &Host::default());
    assert!(plan.injection.is_empty() && plan.warnings[0].contains("no NVIDIA driver"), "{plan:?}");
}

#[test]
fn the_parts_that_are_asked_for() {
    assert_eq!(names(&decide(&Request::default(), &image(&[]), &node())), ["libcuda.so.1"]);
    let all = image(&["NVIDIA_DRIVER_CAPABILITIES=all"]);
    assert_eq!(names(&decide(&Request::default(), &all, &node())).len(), 2);
    let mut request = Request::default();
    request.gpu.capabilities = Some("graphics".to_owned());
    assert_eq!(names(&decide(&request, &all, &node())), ["libnvidia-eglcore.so.550.54.14"]);
}

#[test]
fn a_driver_that_was_upgraded_is_told_and_left_out() {
    let mut host = node();
    host.gpu.nvidia.as_mut().unwrap().library_version = Some("560.1".to_owned());
    let plan = decide(&Request::default(), &image(&[]), &host);
    assert!(plan.injection.is_empty() && plan.warnings[0].contains("not restarted"), "{plan:?}");
}

#[test]
fn the_c_library_must_be_new_enough() {
    let with = |glibc| ImageFacts { libraries: ImageLibraries { glibc, compat: None }, ..image(&[]) };
    assert!(decide(&Request::default(), &with(Some((2, 17))), &node()).warnings.is_empty());
    let plan = decide(&Request::default(), &with(Some((2, 12))), &node());
    assert!(names(&plan).is_empty(), "{plan:?}");
    assert_eq!(plan.injection, crate::launch::inject::Injection::default(), "nor a link to what is left out");
    assert_eq!(
        plan.warnings,
        ["libcuda.so.1 of the host needs glibc 2.17 and the image has 2.12; left out: libcuda.so.1"]
    );
    let musl =
        ImageFacts { loaders: Loaders { cache: None, musl: Some(MuslLoader::default()) }, ..image(&[]) };
    let plan = decide(&Request::default(), &musl, &node());
    assert!(plan.warnings.is_empty() && plan.notes[0].contains("musl"), "{plan:?}");
    assert!(decide(&asking(Mode::Nvidia), &musl, &node()).warnings[0].contains("musl"));
}

#[test]
fn only_what_is_shown_is_judged_and_only_what_does_not_fit_is_left_out() {
    let old = ImageFacts { libraries: ImageLibraries { glibc: Some((2, 17)), compat: None }, ..image(&[]) };
    let mut host = node();
    let libraries = &mut host.gpu.nvidia.as_mut().unwrap().libraries;
    libraries.push(library("libnvidia-encode.so.1", Some((2, 38))));
    libraries.push(library("libnvidia-ml.so.1", None));
    // A job that gets no video does not hear of it.
    let plan = decide(&asking(Mode::Nvidia), &old, &host);
    assert_eq!((names(&plan).len(), plan.warnings.len()), (2, 0), "{plan:?}");
    let libraries = &mut host.gpu.nvidia.as_mut().unwrap().libraries;
    libraries.push(library("libnvidia-nscq.so.2", Some((2, 27))));
    let needing = SharedObject {
        needed: vec!["libnvidia-nscq.so.2".into()],
        ..library("libnvidia-cfg.so.1", Some((2, 3)))
    };
    libraries.insert(
        0,
        SharedObject { needed: vec!["libnvidia-cfg.so.1".into()], ..library("libnvidia-new.so.1", None) },
    );
    libraries.push(needing);
    let plan = decide(&asking(Mode::Nvidia), &old, &host);
    assert_eq!(names(&plan), ["libcuda.so.1", "libnvidia-ml.so.1"]);
    assert_eq!(
        plan.warnings,
        [
            "libnvidia-nscq.so.2 of the host needs glibc 2.27 and the image has 2.17; left out: libnvidia-nscq.so.2, \
          libnvidia-cfg.so.1, libnvidia-new.so.1"
        ]
    );
    let plan = decide(&Request::default(), &old, &host);
    assert_eq!(
        (plan.warnings.len(), plan.notes.len()),
        (0, 1),
        "who does not use a GPU is not told: {plan:?}"
    );
}

#[test]
fn libraries_of_a_specification_are_judged_likewise() {
    let driver =
        SharedObject { file_name: "libcuda.so.550".into(), ..library("libcuda.so.1", Some((2, 34))) };
    let mount = crate::host::cdi::Mount {
        host_path: "/usr/lib64/libcuda.so.550".to_owned(),
        container_path: "/usr/lib64/libcuda.so.550".to_owned(),
        options: Vec::new(),
        kind: None,
    };
    let hook = |args: &[&str]| crate::host::cdi::Hook {
        hook_name: "createContainer".to_owned(),
        path: "/usr/bin/nvidia-cdi-hook".to_owned(),
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: Vec::new(),
        timeout: None,
    };
    let mut cdi = crate::host::gpu::Cdi::default();
    cdi.edits.hooks = vec![
        hook(&["x", "update-ldcache", "--folder", "/usr/lib64"]),
        hook(&["x", "create-symlinks", "--link", "libcuda.so.1::/usr/lib64/libcuda.so"]),
    ];
    let fact = crate::host::PathFact { kind: crate::host::Kind::File, resolved: driver.path.clone() };
    cdi.mounts = vec![(mount, fact, Some(driver))];
    let mut host = node();
    host.gpu.cdi = Some(Ok(cdi));
    let with =
        |glibc| ImageFacts { libraries: ImageLibraries { glibc: Some(glibc), compat: None }, ..image(&[]) };
    let plan = decide(&Request::default(), &with((2, 36)), &host);
    assert_eq!((plan.injection.mounts.len(), plan.injection.links.len()), (1, 2), "{plan:?}");
    let found: Vec<_> = plan.injection.found.iter().map(|found| found.path.clone()).collect();
    assert_eq!(found, ["/usr/lib64/libcuda.so.1", "/usr/lib64/libcuda.so.1"].map(PathBuf::from));
    let plan = decide(&Request::default(), &with((2, 17)), &host);
    assert_eq!(plan.injection, crate::launch::inject::Injection::default());
    assert_eq!(plan.warnings.len(), 1);
}

#[test]
fn a_tree_of_the_site_without_fuse_is_told_as_the_site_wants_it() {
    use crate::host::{Backing, Feature, TreeFact, TreeShape};
    let mut host = node();
    host.features.fuse = Feature::Absent("there is no /dev/fuse".to_owned());
    let image = ImageFacts { path: "/images/app.sqsh".into(), ..image(&[]) };
    let plan = decide(&Request::default(), &image, &host);
    assert!(!plan.injection.is_empty(), "without such a tree the launch fails for its own reason: {plan:?}");
    let tree = TreeFact {
        shape: TreeShape { block_size: 0, blocks: 0, inodes: 0, root: 0 },
        backing: Some(Backing { file: image.path.clone(), offset: 0, hash: None }),
        ..crate::launch::premounted::tests::fact()
    };
    let image = ImageFacts {
        squashfs: crate::launch::plan::SquashfsFacts {
            block_size: 131_072,
            bytes_used: 131_072,
            ..image.squashfs
        },
        ..image
    };
    let shape = TreeShape { block_size: 131_072, blocks: 1, ..tree.shape };
    host.trees.insert("/run/app".into(), TreeFact { shape, ..tree });
    let trees = "[premounted]\ntrees = [{ image = \"/images/app.sqsh\", directory = \"/run/app\" }]\n";
    let decide = |require: &str| {
        let text = format!("{trees}[gpu]\nrequire = {require:?}\n");
        super::plan(&Request::default(), &image, &Policy::parse(Path::new("/p"), &text).unwrap(), &host)
    };
    let plan = decide("warn").unwrap();
    assert!(plan.injection.is_empty(), "{plan:?}");
    assert_eq!(plan.warnings, ["the host's GPU libraries are left out: there is no /dev/fuse"]);
    assert!(matches!(decide("fail"), Err(PlanError::Gpu { why }) if why.contains("/dev/fuse")));
}

#[test]
fn compatibility_libraries_come_first() {
    let compat = Compat {
        version: "570.1".to_owned(),
        note: None,
        libraries: vec![("libcuda.so.1".into(), "/usr/local/cuda/compat/libcuda.so.570.1".into())],
    };
    let new = ImageFacts {
        libraries: ImageLibraries { glibc: None, compat: Some(compat) },
        ..image(&["NVIDIA_REQUIRE_CUDA=cuda>=12.8"])
    };
    let plan = decide(&Request::default(), &new, &node());
    assert!(names(&plan).is_empty() && plan.warnings.is_empty(), "{plan:?}");
    let found: Vec<(String, PathBuf)> = plan
        .injection
        .found
        .iter()
        .map(|found| (found.name.display().to_string(), found.path.clone()))
        .collect();
    let place = PathBuf::from("/usr/local/cuda/compat/libcuda.so.570.1");
    assert_eq!(found, [("libcuda.so.1".to_owned(), place.clone()), ("libcuda.so".to_owned(), place)]);
    assert!(plan.injection.links.is_empty(), "{plan:?}");
    let mut request = Request::default();
    request.gpu.cuda_compat = Some(CudaCompat::Never);
    let plan = decide(&request, &new, &node());
    assert_eq!(names(&plan), ["libcuda.so.1"]);
    assert!(plan.warnings[0].contains("cuda>=12.8"), "{plan:?}");
}

#[test]
fn a_missing_node_is_asked_for_outside() {
    let mut host = node();
    let nvidia = host.gpu.nvidia.as_mut().unwrap();
    nvidia.lacks_uvm = Some("/dev/nvidia-uvm".into());
    nvidia.modprobe = Some("/usr/bin/nvidia-modprobe".into());
    let plan = decide(&Request::default(), &image(&[]), &host);
    assert_eq!(plan.before.unwrap().arguments, ["-u", "-c=0"]);
    host.gpu.nvidia.as_mut().unwrap().modprobe = None;
    let plan = decide(&asking(Mode::Nvidia), &image(&[]), &host);
    assert!(plan.before.is_none() && plan.warnings[0].contains("nvidia-uvm"), "{plan:?}");
}

#[test]
fn no_variable_of_the_batch_system_is_touched() {
    let plan = decide(&Request::default(), &image(&["NVIDIA_VISIBLE_DEVICES=all"]), &node());
    assert!(plan.injection.variables.is_empty());
}
