//! The document into rules: types, ranges, duplicates and contradictions are checked here, each mistake noted in its place.

mod binds;
mod env;
mod gpu;
mod images;
mod log;
mod modules;
mod mpi;
mod paths;
mod store;

use super::file::{Document, Located, Section, Value};
use super::rules::{
    ConvertLimits, DIGEST_PLACE, Home, LaunchRules, PolicyRules, Premounted, Premounts, Rules, SHARE_WORDS,
};

/// Every key that a policy may have, as `section.key`: the list that the documentation is checked against. `NAME` stands
/// for the names that a site gives.
pub fn keys() -> Vec<String> {
    let document = Document::parse(&[]);
    let _ = read_rules(&document);
    // Its names are the site's choice.
    let _ = modules::read_module(document.absent("modules.NAME"), Located::default());
    let asked = document.asked();
    let is_section = |key: &str| {
        asked.iter().any(|other| other.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
    };
    asked.iter().filter(|key| !is_section(key)).cloned().collect()
}

/// Validates `document`; what is wrong is noted there.
pub fn read_rules(document: &Document<'_>) -> Rules {
    let mut root = document.root();
    let rules = Rules {
        binds: binds::read_binds(root.section("binds")),
        home: read_home(root.section("home")),
        env: env::read_env(root.section("env")),
        images: images::read_images(root.section("images")),
        store: store::read_store(root.section("store")),
        gpu: gpu::read_gpu(root.section("gpu")),
        mpi: mpi::read_mpi(root.section("mpi")),
        modules: modules::read_modules(&mut root),
        launch: read_launch(root.section("launch")),
        convert: read_convert(root.section("convert")),
        premounted: read_premounted(root.section("premounted")),
        log: log::read_log(root.section("log")),
        policy: read_policy(root.section("policy")),
    };
    mpi::note_unknown_module(document, &rules);
    root.finish();
    rules
}

fn read_home(mut section: Section<'_, '_>) -> Home {
    let home = Home { bind: section.boolean("bind"), read_only: section.boolean("read_only") };
    let read_only = home.read_only.as_ref().filter(|read_only| read_only.value);
    note_idle(section.document(), read_only, "home.read_only", home.bind.as_ref(), "home.bind");
    section.finish();
    home
}

fn read_launch(mut section: Section<'_, '_>) -> LaunchRules {
    let rules = LaunchRules {
        share: section.choice("share", &SHARE_WORDS),
        server_threads: section.number("server_threads", 1..=16),
        allow_overlay: section.boolean("allow_overlay"),
        allow_writable_tmpfs: section.boolean("allow_writable_tmpfs"),
        allow_fakeroot: section.boolean("allow_fakeroot"),
        allow_pid: section.boolean("allow_pid"),
        allow_ipc: section.boolean("allow_ipc"),
        allow_contain: section.boolean("allow_contain"),
        allow_no_home: section.boolean("allow_no_home"),
        allow_no_binds: section.boolean("allow_no_binds"),
        max_tmpfs_bytes: section.size_bytes("max_tmpfs"),
    };
    section.finish();
    rules
}

fn read_convert(mut section: Section<'_, '_>) -> ConvertLimits {
    let limits = ConvertLimits {
        max_layers: section.number("max_layers", 1..=1024),
        max_size_bytes: section.size_bytes("max_size"),
        max_expansion: section.number("max_expansion", 1..=1_000_000_000),
        max_entries: section.number("max_entries", 1..=u64::from(u32::MAX)),
        max_memory_bytes: section.size_bytes("max_memory"),
        max_depth: section.number("max_depth", 1..=2048),
        max_xattrs_bytes: section.size_bytes("max_xattrs"),
        max_sparse_segments: section.number("max_sparse_segments", 1..=u64::from(u32::MAX)),
        max_jobs: section.number("max_jobs", 1..=1024),
        layer_cache: paths::read_template(&mut section, "layer_cache"),
        layer_cache_size: section.size_bytes("layer_cache_size"),
        allow_layer_cache: section.boolean("allow_layer_cache"),
        allow_foreign_layers: section.boolean("allow_foreign_layers"),
    };
    let allowed = limits.allow_layer_cache.as_ref();
    note_idle(
        section.document(),
        limits.layer_cache.as_ref(),
        "convert.layer_cache",
        allowed,
        "convert.allow_layer_cache",
    );
    section.finish();
    limits
}

/// What another value switches off was meant to do something: one of the two is a mistake.
fn note_idle<T>(
    document: &Document<'_>,
    idle: Option<&Located<T>>,
    name: &str,
    switch: Option<&Located<bool>>,
    switch_name: &str,
) {
    if let (Some(idle), Some(switch)) = (idle, switch.filter(|switch| !switch.value)) {
        let place = document.place(switch.at, idle.at);
        document.note_at(
            idle.at,
            format!("{name} means nothing while {switch_name} is false, {place}"),
            None,
        );
    }
}

fn read_policy(mut section: Section<'_, '_>) -> PolicyRules {
    let rules = PolicyRules { allow_user_file: section.boolean("allow_user_file") };
    section.finish();
    rules
}

fn read_premounted(mut section: Section<'_, '_>) -> Premounts {
    let document = section.document();
    let trees = section.array("trees");
    let directory = section.string("directory").filter(|text| is_digest_directory(document, text));
    section.finish();
    let mut rules: Vec<Premounted> = Vec::new();
    for value in trees.into_iter().flat_map(|array| array.value) {
        let Some(rule) = read_tree(document, value) else {
            continue;
        };
        match rules.iter().find(|earlier| earlier.image == rule.image) {
            Some(earlier) => {
                let what = format!(
                    "{} has a tree already, {}",
                    rule.image.display(),
                    document.place(earlier.at, rule.at)
                );
                document.note_at(rule.at, what, None);
            }
            None => rules.push(rule),
        }
    }
    Premounts { trees: rules, directory }
}

/// An absolute path with the place of a digest in it, in normal form but for that.
fn is_digest_directory(document: &Document<'_>, text: &Located<String>) -> bool {
    let name = "premounted.directory";
    if paths::plain(document, text, name).is_none() {
        return false;
    }
    if text.value.matches(DIGEST_PLACE).count() != 1 {
        let hint = Some("write it as \"/run/hpcrun/{digest}\"".to_owned());
        document.note_at(text.at, format!("{name}: {:?} needs one {DIGEST_PLACE}", text.value), hint);
        return false;
    }
    true
}

fn read_tree<'t>(document: &Document<'t>, value: Value<'_, 't>) -> Option<Premounted> {
    let name = "a tree in premounted.trees";
    let at = document.at(value);
    let Some(mut table) = Section::inline(document, name, value) else {
        document.note_at(at, format!("{name} wants a table {{ image, directory }}"), None);
        return None;
    };
    let (image, directory) = (table.string("image"), table.string("directory"));
    for key in ["image", "directory"] {
        if !table.has(key) {
            document.note_at(at, format!("{name} without its {key}"), None);
        }
    }
    table.finish();
    let plain = |text: Located<String>| paths::plain(document, &text, name);
    Some(Premounted { image: plain(image?)?, directory: plain(directory?)?, at })
}
