//! Graphics processors: devices and drivers as this user finds them.

use super::{Check, DoctorFacts, listed, refused};

pub(super) fn nvidia(facts: &DoctorFacts) -> Check {
    let name = "NVIDIA driver";
    let gpu = &facts.gpu;
    let Some(module) = gpu.nvidia_module.as_deref() else {
        return match (&gpu.nvidia_library, gpu.nvidia_devices.is_empty()) {
            (Some(library), false) => Check::warn(
                name,
                format!("libraries of {library} and no kernel module"),
                &["as root: modprobe nvidia; 'dmesg | grep NVRM' tells why it fails"],
            ),
            _ => Check::not_applicable(name, "none"),
        };
    };
    match gpu.nvidia_library.as_deref() {
        None => Check::warn(
            name,
            format!("kernel module {module} and no libcuda.so: CUDA programs find no GPU"),
            &["install the driver's libraries of the same version"],
        ),
        Some(library) if library != module => Check::warn(
            name,
            format!("kernel module {module}, libraries {library}: CUDA refuses such a pair"),
            &["as root: reboot, or rmmod and modprobe the nvidia modules: the update is only half done"],
        ),
        Some(_) => nvidia_devices(name, facts, module),
    }
}

fn nvidia_devices(name: &'static str, facts: &DoctorFacts, module: &str) -> Check {
    let devices = &facts.gpu.nvidia_devices;
    let has = |wanted: &str| devices.iter().any(|(device, _)| device == wanted);
    let missing: Vec<String> = ["nvidiactl", "nvidia-uvm"]
        .iter()
        .filter(|name| !has(name))
        .map(|name| format!("/dev/{name}"))
        .collect();
    if !missing.is_empty() {
        return Check::warn(
            name,
            format!("{module}, without {}", listed(&missing)),
            &["as root: nvidia-modprobe -c0 -u; at boot: nvidia-persistenced.service"],
        );
    }
    let refused = refused(devices);
    if refused.iter().any(|device| !is_card(device)) {
        return Check::warn(
            name,
            format!("{module}; not open to you: {}", listed(&refused)),
            &["as root: chmod 0666 the devices; NVreg_DeviceFileMode=0666"],
        );
    }
    // Cards that a job was not given are refused by its control group, as they should be.
    let cards = devices.iter().filter(|(device, usable)| is_card(device) && *usable).count();
    Check::ok(name, format!("{module}, {cards} cards open to you"))
}

/// `nvidia0`
fn is_card(device: &str) -> bool {
    device.strip_prefix("nvidia").is_some_and(|number| number.parse::<u32>().is_ok())
}

pub(super) fn amd(facts: &DoctorFacts) -> Check {
    let name = "AMD driver";
    match facts.gpu.kfd {
        None => Check::not_applicable(name, "no /dev/kfd"),
        Some(true) => Check::ok(name, "/dev/kfd can be opened"),
        Some(false) => Check::warn(
            name,
            "/dev/kfd is not open to you",
            &["as root: usermod -aG render USER, or a udev rule: KERNEL==\"kfd\", MODE=\"0666\""],
        ),
    }
}

pub(super) fn render_nodes(facts: &DoctorFacts) -> Check {
    let name = "render nodes";
    let nodes = &facts.gpu.render_nodes;
    if nodes.is_empty() {
        return Check::not_applicable(name, "no /dev/dri");
    }
    let refused = refused(nodes);
    if refused.len() < nodes.len() {
        return Check::ok(name, format!("{} of {} open to you", nodes.len() - refused.len(), nodes.len()));
    }
    Check::warn(
        name,
        format!("{} is not open to you", listed(&refused)),
        &["as root: usermod -aG render USER; groups stay in images though 'id' calls them nogroup"],
    )
}
