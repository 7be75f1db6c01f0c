//! Finds out for which Slurm the plugin is built: Slurm loads it only if the release is its own.
//!
//! `SLURM_VERSION=23.11.4` says so, else the installed `slurm/slurm_version.h`, in `SLURM_INCLUDE` if that is set.

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-env-changed=SLURM_VERSION");
    println!("cargo::rerun-if-env-changed=SLURM_INCLUDE");
    let number = match std::env::var("SLURM_VERSION") {
        Ok(version) if !version.is_empty() => of_version(&version),
        _ => of_header(),
    };
    let number = number.unwrap_or_else(|| {
        println!("cargo::warning=no Slurm found and no SLURM_VERSION given: no Slurm will load this plugin");
        0
    });
    println!("cargo::rustc-env=SLURM_VERSION_NUMBER={number}");
}

/// `SLURM_VERSION_NUM(major, minor, micro)` of `major.minor.micro`; what follows a hyphen does not count.
fn of_version(version: &str) -> Option<u32> {
    let mut parts = version.split('-').next()?.split('.').map(|part| part.parse::<u8>().ok());
    let number = u32::from_be_bytes([0, parts.next()??, parts.next()??, parts.next().unwrap_or(Some(0))?]);
    parts.next().is_none().then_some(number)
}

fn of_header() -> Option<u32> {
    let include = std::env::var_os("SLURM_INCLUDE").unwrap_or_else(|| "/usr/include".into());
    let header = PathBuf::from(include).join("slurm/slurm_version.h");
    println!("cargo::rerun-if-changed={}", header.display());
    let text = std::fs::read_to_string(header).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("#define SLURM_VERSION_NUMBER"))?;
    u32::from_str_radix(line.trim().strip_prefix("0x")?, 16).ok()
}
