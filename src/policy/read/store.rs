//! `[store]`

use super::paths::{read_plain, read_template};
use crate::image::reference::Reference;
use crate::policy::file::Section;
use crate::policy::rules::Store;
use crate::policy::rules::store::ShortName;

pub(super) fn read_store(mut section: Section<'_, '_>) -> Store {
    let store = Store {
        user_dir: read_template(&mut section, "user_dir"),
        site_dir: read_plain(&mut section, "site_dir"),
        node_cache: read_plain(&mut section, "node_cache"),
        node_cache_size_bytes: section.size_bytes("node_cache_size"),
        node_cache_min_bytes: section.size_bytes("node_cache_min"),
        allow_user: section.boolean("allow_user"),
        allow_pull_in_jobs: section.boolean("allow_pull_in_jobs"),
        short_names: read_short_names(&mut section),
    };
    let document = section.document();
    if let (Some(least), Some(size)) = (&store.node_cache_min_bytes, &store.node_cache_size_bytes)
        && least.value > size.value
    {
        let what = format!(
            "store.node_cache_min is more than the cache holds, {}",
            document.place(size.at, least.at)
        );
        document.note_at(least.at, what, None);
    }
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
