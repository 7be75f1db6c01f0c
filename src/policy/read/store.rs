//! `[store]`

use super::paths::{absolute, read_plain};
use crate::image::reference::Reference;
use crate::policy::file::{Located, Section};
use crate::policy::rules::Store;
use crate::policy::rules::store::ShortName;

pub(super) fn read_store(mut section: Section<'_, '_>) -> Store {
    let user_dir = section.string("user_dir").and_then(|text| {
        let value = absolute(section.document(), &text, "store.user_dir")?;
        Some(Located { value, at: text.at })
    });
    let store = Store {
        user_dir,
        site_dir: read_plain(&mut section, "site_dir"),
        node_cache: read_plain(&mut section, "node_cache"),
        node_cache_size_bytes: section.size_bytes("node_cache_size"),
        node_cache_min_bytes: section.size_bytes("node_cache_min"),
        allow_user: section.boolean("allow_user"),
        allow_pull_in_jobs: section.boolean("allow_pull_in_jobs"),
        short_names: read_short_names(&mut section),
    };
    section.finish();
    store
}

fn read_short_names(section: &mut Section<'_, '_>) -> Vec<ShortName> {
    let document = section.document();
    let mut names = Vec::new();
    for (name, text) in section.string_table("short_names") {
        if !is_short_name(&name.value) {
            let hint = Some("write letters, digits, '.', '_' and '-', without tag and registry".to_owned());
            document.note_at(name.at, format!("{:?} is no short name", name.value), hint);
            continue;
        }
        match Reference::parse(&text) {
            Ok(reference) => names.push(ShortName { name: name.value, reference, at: name.at }),
            Err(error) => document.note_at(name.at, format!("store.short_names: {error}"), None),
        }
    }
    names
}

fn is_short_name(name: &str) -> bool {
    name.len() <= 128
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}
