//! `[modules.NAME]`

use super::binds::read_bind_list;
use super::env::read_module_env;
use super::paths::{read_globs, read_pattern};
use crate::policy::file::{Located, Section};
use crate::policy::rules::Module;
use crate::policy::rules::modules::{MODULE_ABI_WORDS, MODULE_MODE_WORDS, ModuleMatch, ModuleMode};

pub(super) fn read_modules(root: &mut Section<'_, '_>) -> Vec<Module> {
    let mut modules = Vec::new();
    for (name, section) in root.named_sections("modules") {
        if !is_module_name(&name.value) {
            let what = format!("{:?} cannot be the name of a module", name.value);
            let hint = Some("write letters, digits, '.', '_', '+' and '-'".to_owned());
            section.document().note_at(name.at, what, hint);
        }
        modules.push(read_module(section, name));
    }
    modules
}

pub(super) fn read_module(mut section: Section<'_, '_>, name: Located<String>) -> Module {
    let module = Module {
        description: section.string("description"),
        mode: section.choice("mode", &MODULE_MODE_WORDS),
        matches: read_match(section.section("match")),
        binds: read_bind_list(&mut section, "binds", false),
        env: read_module_env(section.section("env")),
        libraries: read_globs(&mut section, "libraries"),
        devices: read_globs(&mut section, "devices"),
        abi: section.choice("abi", &MODULE_ABI_WORDS),
        name: name.value,
        at: name.at,
    };
    note_contradictions(section.document(), &module);
    section.finish();
    module
}

fn read_match(mut section: Section<'_, '_>) -> ModuleMatch {
    let matches = ModuleMatch {
        image: read_pattern(&mut section, "image"),
        soname: section.string("soname"),
        host: read_pattern(&mut section, "host"),
    };
    if let Some(soname) = &matches.soname
        && (soname.value.is_empty() || soname.value.contains(['/', '\0', '\n']))
    {
        let what = format!("{:?} is no soname", soname.value);
        section.document().note_at(soname.at, what, Some("write it as libmpi.so.12".to_owned()));
    }
    section.finish();
    matches
}

fn note_contradictions(document: &crate::policy::file::Document<'_>, module: &Module) {
    for device in &module.devices {
        if !device.value.starts_with("/dev/") {
            document.note_at(device.at, format!("{} is not below /dev", device.value), None);
        }
    }
    if let Some(mode) = module.mode.as_ref().filter(|mode| mode.value == ModuleMode::Auto)
        && module.matches.is_empty()
    {
        let hint = Some("match = { host = \"*\" } is every launch".to_owned());
        let what = format!("the module {} is automatic and says not for what", module.name);
        document.note_at(mode.at, what, hint);
    }
}

fn is_module_name(name: &str) -> bool {
    name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._+-".contains(c))
}
