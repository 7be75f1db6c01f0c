//! What pulling needs: packets that get through, certificates, a clock.

use super::{Check, DoctorFacts};

/// The least that IPv6 allows on a link.
const MTU_LEAST: u64 = 1280;
/// 2025-01-01: no certificate that a registry shows today was valid before.
const CLOCK_LEAST: u64 = 1_735_689_600;

pub(super) fn mtu(facts: &DoctorFacts) -> Check {
    let name = "MTU";
    if facts.interfaces.is_empty() {
        return Check::not_applicable(name, "no interface is up");
    }
    let shown: Vec<String> =
        facts.interfaces.iter().map(|(interface, mtu)| format!("{interface} {mtu}")).collect();
    let shown = shown.join(", ");
    match facts.interfaces.iter().find(|(_, mtu)| *mtu < MTU_LEAST) {
        None => Check::ok(name, shown),
        Some((interface, _)) => {
            let command = format!("as root: ip link set dev {interface} mtu 1500");
            Check::warn(name, format!("{shown}: pulls may hang after the first kilobytes"), &[&command])
        }
    }
}

pub(super) fn certificates(facts: &DoctorFacts) -> Check {
    let name = "certificates";
    match &facts.certificates {
        Some(path) => Check::ok(name, path.display().to_string()),
        None => Check::warn(
            name,
            "none found: no registry can be trusted",
            &["as root: install the package ca-certificates; or set SSL_CERT_FILE"],
        ),
    }
}

pub(super) fn clock(facts: &DoctorFacts) -> Check {
    let name = "clock";
    if facts.clock < CLOCK_LEAST {
        return Check::warn(
            name,
            "before 2025: certificates of registries are not valid yet",
            &["as root: chronyc makestep, or timedatectl set-ntp true"],
        );
    }
    Check::ok(name, "plausible")
}
