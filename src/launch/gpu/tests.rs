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
    assert!(
        plan.warnings[0].contains("libcuda.so.1 of the host needs glibc 2.17 and the image has 2.12"),
        "{plan:?}"
    );
    let musl =
        ImageFacts { loaders: Loaders { cache: None, musl: Some(MuslLoader::default()) }, ..image(&[]) };
    let plan = decide(&Request::default(), &musl, &node());
    assert!(plan.warnings.is_empty() && plan.notes[0].contains("musl"), "{plan:?}");
    assert!(decide(&asking(Mode::Nvidia), &musl, &node()).warnings[0].contains("musl"));
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
    assert_eq!(plan.injection.found[0].path, PathBuf::from("/usr/local/cuda/compat/libcuda.so.570.1"));
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
    nvidia.lacks_uvm = true;
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
