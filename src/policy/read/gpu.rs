//! `[gpu]`

use super::paths::read_plain_list;
use crate::policy::file::{Located, Section};
use crate::policy::rules::Gpu;
use crate::policy::rules::gpu::{CUDA_COMPAT_WORDS, GPU_MODE_WORDS, GPU_REQUIRE_WORDS, GpuMode};

pub(super) fn read_gpu(mut section: Section<'_, '_>) -> Gpu {
    let gpu = Gpu {
        mode: read_mode(&mut section),
        cdi_dirs: read_plain_list(&mut section, "cdi_dirs"),
        require: section.choice("require", &GPU_REQUIRE_WORDS),
        cuda_compat: section.choice("cuda_compat", &CUDA_COMPAT_WORDS),
        modprobe: section.boolean("modprobe"),
        allow_user: section.boolean("allow_user"),
    };
    section.finish();
    gpu
}

fn read_mode(section: &mut Section<'_, '_>) -> Option<Located<GpuMode>> {
    let document = section.document();
    let text = section.string("mode")?;
    if let Some(value) = GpuMode::parse(&text.value) {
        return Some(Located { value, at: text.at });
    }
    if text.value.starts_with("cdi:") {
        let hint = Some("write cdi:VENDOR/CLASS=DEVICE".to_owned());
        document.note_at(text.at, format!("gpu.mode: {:?} names no CDI device", text.value), hint);
        return None;
    }
    let words = GPU_MODE_WORDS.map(|(word, _)| (word, ()));
    document.word("gpu.mode", &text, &words);
    None
}
