//! `--gpu` and its kin, and the variables that stand in for them.

use std::ffi::OsString;

use crate::cli::launch_args::{CudaCompat, LaunchOptions};
use crate::cli::launch_env::Ambient;
use crate::host::cdi::name;
use crate::host::gpu::Mode;
use crate::launch::gpu::GpuRequest;
use crate::launch::request::RequestError;
use crate::policy::rules::gpu;

/// What the user says of graphics processors.
pub(crate) fn of_options(options: &LaunchOptions, ambient: &Ambient<'_>) -> Result<GpuRequest, RequestError> {
    let by_variable =
        |name: &str| ambient.value(&[name]).map(|(_, value)| value.to_string_lossy().into_owned());
    Ok(GpuRequest {
        mode: mode(options, ambient)?,
        capabilities: options.gpu_caps.clone().or_else(|| by_variable("GPU_CAPS")),
        cuda_compat: cuda_compat(options, ambient)?,
        driver_root: options.driver_root.clone(),
    })
}

fn mode(options: &LaunchOptions, ambient: &Ambient<'_>) -> Result<Option<(Mode, String)>, RequestError> {
    if let Some(typed) = &options.gpu {
        return parse("--gpu", typed).map(Some);
    }
    if options.nv {
        return Ok(Some((Mode::Nvidia, "--nv".to_owned())));
    }
    if options.rocm {
        return Ok(Some((Mode::Amd, "--rocm".to_owned())));
    }
    if let Some((option, value)) = ambient.value(&["GPU"]) {
        return parse(&option, &value.to_owned()).map(Some);
    }
    for (name, mode) in [("NV", Mode::Nvidia), ("ROCM", Mode::Amd)] {
        if ambient.flag(&[name])? {
            let option = ambient.value(&[name]).map(|(option, _)| option);
            return Ok(Some((mode, option.unwrap_or_default())));
        }
    }
    Ok(None)
}

/// A mode, with the words that asked for it.
fn parse(option: &str, typed: &OsString) -> Result<(Mode, String), RequestError> {
    let text = typed.to_string_lossy();
    let mode = match text.as_ref() {
        "auto" => Some(Mode::Auto),
        "none" => Some(Mode::None),
        "nvidia" => Some(Mode::Nvidia),
        "amd" => Some(Mode::Amd),
        "intel" => Some(Mode::Intel),
        text => text.strip_prefix("cdi:").and_then(devices).map(Mode::Cdi),
    };
    let wrong = || RequestError::Value {
        option: option.to_owned(),
        typed: typed.clone(),
        why: "it is no mode and names no CDI device".to_owned(),
        usage: "write auto, none, nvidia, amd, intel or cdi:VENDOR/CLASS=DEVICE[,...]",
    };
    Ok((mode.ok_or_else(wrong)?, format!("{option} {text}")))
}

fn devices(list: &str) -> Option<Vec<String>> {
    list.split(',').map(|device| name::parse(device).map(|name| name.to_string())).collect()
}

fn cuda_compat(
    options: &LaunchOptions,
    ambient: &Ambient<'_>,
) -> Result<Option<gpu::CudaCompat>, RequestError> {
    let choice = ambient.choice(options.cuda_compat, &["CUDA_COMPAT"], "write auto, never or always")?;
    Ok(choice.map(|choice| match choice {
        CudaCompat::Auto => gpu::CudaCompat::Auto,
        CudaCompat::Never => gpu::CudaCompat::Never,
        CudaCompat::Always => gpu::CudaCompat::Always,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        for (typed, expected) in [
            ("auto", Some(Mode::Auto)),
            ("none", Some(Mode::None)),
            ("intel", Some(Mode::Intel)),
            ("cdi:nvidia.com/gpu=0", Some(Mode::Cdi(vec!["nvidia.com/gpu=0".to_owned()]))),
            (
                "cdi:nvidia.com/gpu=0,nvidia.com/gpu=1:2",
                Some(Mode::Cdi(vec!["nvidia.com/gpu=0".to_owned(), "nvidia.com/gpu=1:2".to_owned()])),
            ),
            ("cdi:", None),
            ("cdi:gpu=0", None),
            ("cdi:nvidia.com/gpu=0,", None),
            ("", None),
            ("all", None),
        ] {
            assert_eq!(parse("--gpu", &typed.into()).ok().map(|(mode, _)| mode), expected, "{typed}");
        }
    }
}
