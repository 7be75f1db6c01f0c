//! The document into rules: types, ranges, duplicates and contradictions are checked here, each mistake noted in its place.

use super::bind_spec::BindSpec;
use super::file::{Document, Located, Position, Section, Value};
use super::path::has_parent_component;
use super::rules::{
    BindRule, Binds, ConvertLimits, EnvRules, Home, Images, LaunchRules, Listed, NamePattern, NameRule,
    PathRule, Premounted, RegistryRule, Rules, SHARE_WORDS, SetRule, VERIFY_WORDS,
};
use super::template::{TRUSTED_VARIABLES, Template};

/// Destinations that are the host's in every launch.
const RESERVED: [&str; 4] = ["/", "/dev", "/proc", "/sys"];

/// Every key that a policy may have, as `section.key`: the list that the documentation is checked against.
pub fn keys() -> Vec<String> {
    let document = Document::parse("");
    let _ = read_rules(&document);
    document.asked()
}

/// Validates `document`; what is wrong is noted there.
pub fn read_rules(document: &Document<'_>) -> Rules {
    let mut root = document.root();
    let rules = Rules {
        binds: read_binds(root.section("binds")),
        home: read_home(root.section("home")),
        env: read_env(root.section("env")),
        images: read_images(root.section("images")),
        launch: read_launch(root.section("launch")),
        convert: read_convert(root.section("convert")),
        premounted: read_premounted(root.section("premounted")),
    };
    root.finish();
    rules
}

fn read_binds(mut section: Section<'_, '_>) -> Binds {
    let forced = read_bind_list(&mut section, "forced", false);
    let optional = read_bind_list(&mut section, "optional", true);
    let denied = read_paths(&mut section, "denied").map(|listed| listed.rules).unwrap_or_default();
    let allowed = read_paths(&mut section, "allowed");
    note_same_destinations(section.document(), forced.iter().chain(&optional));
    section.finish();
    Binds { forced, optional, denied, allowed }
}

/// Two rules of one destination contradict each other, whatever list they stand in.
fn note_same_destinations<'r>(document: &Document<'_>, rules: impl Iterator<Item = &'r BindRule>) {
    let mut seen: Vec<(&str, Position)> = Vec::new();
    for rule in rules {
        let destination =
            rule.destination.as_ref().unwrap_or(&rule.source).as_written().trim_end_matches('/');
        match seen.iter().find(|(earlier, _)| *earlier == destination) {
            Some((_, at)) => {
                let what = format!("{destination} is a destination already, line {}", at.line);
                document.note_at(rule.at, what, None);
            }
            None => seen.push((destination, rule.at)),
        }
    }
}

fn read_bind_list(section: &mut Section<'_, '_>, key: &'static str, optional: bool) -> Vec<BindRule> {
    let document = section.document();
    let Some(array) = section.array(key) else {
        return Vec::new();
    };
    array.value.iter().filter_map(|value| read_bind(document, key, value, optional)).collect()
}

/// An element of a list of binds: `"SRC[:DST[:ro|rw]]"` or a table.
fn read_bind<'t>(document: &Document<'t>, key: &str, value: &Value<'t>, optional: bool) -> Option<BindRule> {
    let at = document.position(value.span().start);
    let name = format!("a bind in binds.{key}");
    let Some(mut table) = Section::inline(document, &name, value) else {
        let text = document.string(value, &format!("an element of binds.{key}"))?;
        return read_short_bind(document, &text, optional);
    };
    let source = table.string("source");
    if source.is_none() && table.value("source").is_none() {
        document.note_at(at, format!("{name} without its source"), None);
    }
    let destination = table.string("destination");
    let read_only = table.boolean("read_only").is_some_and(|value| value.value);
    let optional = table.boolean("optional").map_or(optional, |value| value.value);
    table.finish();
    let source_template = absolute(document, &source?, &name)?;
    let destination = match destination {
        Some(text) => Some(absolute(document, &text, &name)?),
        None => None,
    };
    checked_bind(document, BindRule { source: source_template, destination, read_only, optional, at })
}

fn read_short_bind(document: &Document<'_>, text: &Located<String>, optional: bool) -> Option<BindRule> {
    let spec = match BindSpec::parse(text.value.as_ref()) {
        Ok(spec) => spec,
        Err(error) => {
            document.note_at(text.at, format!("{:?} is no bind: {error}", text.value), Some(error.hint()));
            return None;
        }
    };
    let part = |part: std::ffi::OsString| {
        let text = Located { value: part.to_string_lossy().into_owned(), at: text.at };
        absolute(document, &text, "a bind")
    };
    let source = part(spec.source)?;
    let destination = match spec.destination {
        Some(destination) => Some(part(destination)?),
        None => None,
    };
    checked_bind(document, BindRule { source, destination, read_only: spec.read_only, optional, at: text.at })
}

/// The rule, unless its destination is one that no bind may take.
fn checked_bind(document: &Document<'_>, rule: BindRule) -> Option<BindRule> {
    let destination = rule.destination.as_ref().unwrap_or(&rule.source).as_written();
    let plain = super::path::normalise("/".as_ref(), destination.as_ref());
    if RESERVED.iter().any(|reserved| plain.as_os_str() == *reserved) {
        document.note_at(rule.at, format!("nothing can be bound onto {}", plain.display()), None);
        return None;
    }
    Some(rule)
}

/// A list of host paths that decides about users, and so has no variable that users choose.
fn read_paths(section: &mut Section<'_, '_>, key: &'static str) -> Option<Listed<PathRule>> {
    let document = section.document();
    let list = section.strings(key)?;
    let rules = list.value.iter().filter_map(|text| read_path(document, text, key)).collect();
    Some(Listed { rules, at: list.at })
}

fn read_path(document: &Document<'_>, text: &Located<String>, key: &str) -> Option<PathRule> {
    let path = absolute(document, text, key)?;
    if let Some(name) = path.variables().find(|name| !TRUSTED_VARIABLES.contains(name)) {
        let what = format!("${name} comes from the user's environment and cannot decide in {key}");
        let hint = format!("variables allowed here: ${}", TRUSTED_VARIABLES.join(", $"));
        document.note_at(text.at, what, Some(hint));
        return None;
    }
    Some(PathRule { path, at: text.at })
}

/// An absolute path with variables. `..` is no part of a rule: what it means depends on links.
fn absolute(document: &Document<'_>, text: &Located<String>, name: &str) -> Option<Template> {
    let template = template(document, text)?;
    let starts = template.leading_text().starts_with('/')
        || (template.leading_text().is_empty() && template.variables().next().is_some());
    if !starts {
        document.note_at(text.at, format!("{name}: {:?} is not an absolute path", text.value), None);
        return None;
    }
    if has_parent_component(text.value.as_ref()) {
        document.note_at(text.at, format!("{name}: {:?} has a component '..'", text.value), None);
        return None;
    }
    if text.value.contains('\0') {
        document.note_at(text.at, format!("{name}: {:?} contains a NUL", text.value), None);
        return None;
    }
    Some(template)
}

fn template(document: &Document<'_>, text: &Located<String>) -> Option<Template> {
    match Template::parse(&text.value) {
        Ok(template) => Some(template),
        Err(error) => {
            document.note_at(text.at, format!("{:?} has {error}", text.value), None);
            None
        }
    }
}

fn read_home(mut section: Section<'_, '_>) -> Home {
    let home = Home { bind: section.boolean("bind"), read_only: section.boolean("read_only") };
    section.finish();
    home
}

fn read_env(mut section: Section<'_, '_>) -> EnvRules {
    let rules = EnvRules {
        set: read_values(&mut section, "set"),
        prepend: read_values(&mut section, "prepend"),
        unset: read_names(&mut section, "unset"),
        pass: read_names(&mut section, "pass"),
    };
    let document = section.document();
    for rule in rules.set.iter().chain(&rules.prepend) {
        if let Some(unset) = rules.unset.iter().find(|unset| unset.pattern.matches(rule.name.as_bytes())) {
            let what = format!("{} is given a value here and unset at line {}", rule.name, unset.at.line);
            document.note_at(rule.at, what, None);
        }
    }
    section.finish();
    rules
}

fn read_values(section: &mut Section<'_, '_>, key: &'static str) -> Vec<SetRule> {
    let document = section.document();
    let pairs = section.string_table(key);
    let mut rules = Vec::new();
    for (name, value) in pairs {
        if !is_name(&name.value) {
            document.note_at(name.at, format!("{:?} cannot be the name of a variable", name.value), None);
        } else if value.contains('\0') {
            document.note_at(name.at, format!("the value of {} contains a NUL", name.value), None);
        } else if let Some(value) = template(document, &Located { value, at: name.at }) {
            rules.push(SetRule { name: name.value, value, at: name.at });
        }
    }
    rules
}

fn read_names(section: &mut Section<'_, '_>, key: &'static str) -> Vec<NameRule> {
    let document = section.document();
    let Some(list) = section.strings(key) else {
        return Vec::new();
    };
    let mut rules = Vec::new();
    for text in list.value {
        let pattern = match text.value.strip_suffix('*') {
            Some(prefix) => NamePattern::Prefix(prefix.to_owned()),
            None => NamePattern::Exact(text.value.clone()),
        };
        let (NamePattern::Exact(name) | NamePattern::Prefix(name)) = &pattern;
        if is_name(name) {
            rules.push(NameRule { pattern, at: text.at });
        } else {
            let what =
                format!("{:?} in env.{key} is neither a name nor a beginning like SLURM_*", text.value);
            document.note_at(text.at, what, None);
        }
    }
    rules
}

/// A name that a policy may use for an environment variable: the portable ones.
fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn read_images(mut section: Section<'_, '_>) -> Images {
    let directories = read_paths(&mut section, "directories");
    let document = section.document();
    let registries = section.strings("registries").map(|list| Listed {
        rules: list.value.iter().filter_map(|text| read_registry(document, text)).collect(),
        at: list.at,
    });
    let verify = section.choice("verify", &VERIFY_WORDS);
    section.finish();
    Images { directories, registries, verify }
}

fn read_registry(document: &Document<'_>, text: &Located<String>) -> Option<RegistryRule> {
    let (host, repository) = text.value.split_once('/').unwrap_or((&text.value, ""));
    let plain = host.strip_prefix("*.").unwrap_or(host);
    let (name, port) = plain.rsplit_once(':').unwrap_or((plain, "1"));
    let host_ok = !name.is_empty()
        && name.split('.').all(|label| {
            !label.is_empty()
                && label.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        })
        && port.parse::<u16>().is_ok_and(|port| port > 0);
    let repository = repository.trim_end_matches('/');
    let repository_ok = repository.is_empty()
        || repository.split('/').all(|part| {
            !part.is_empty()
                && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c))
        });
    if !(host_ok && repository_ok) {
        let what = format!("{:?} is no registry", text.value);
        let hint = "write HOST[:PORT][/REPOSITORY], in lower case; '*.' may begin the host".to_owned();
        document.note_at(text.at, what, Some(hint));
        return None;
    }
    Some(RegistryRule { host: host.to_owned(), repository: repository.to_owned(), at: text.at })
}

fn read_launch(mut section: Section<'_, '_>) -> LaunchRules {
    let rules = LaunchRules {
        share: section.choice("share", &SHARE_WORDS),
        server_threads: section.number("server_threads", 1..=16),
        allow_overlay: section.boolean("allow_overlay"),
        allow_writable_tmpfs: section.boolean("allow_writable_tmpfs"),
        allow_fakeroot: section.boolean("allow_fakeroot"),
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
        layer_cache: section
            .string("layer_cache")
            .and_then(|text| absolute(section.document(), &text, "convert.layer_cache")),
        layer_cache_size: section.size_bytes("layer_cache_size"),
        allow_layer_cache: section.boolean("allow_layer_cache"),
        allow_foreign_layers: section.boolean("allow_foreign_layers"),
    };
    section.finish();
    limits
}

fn read_premounted(mut section: Section<'_, '_>) -> Vec<Premounted> {
    let document = section.document();
    let trees = section.array("trees");
    section.finish();
    let mut rules: Vec<Premounted> = Vec::new();
    for value in trees.iter().flat_map(|array| array.value.iter()) {
        let Some(rule) = read_tree(document, value) else {
            continue;
        };
        match rules.iter().find(|earlier| earlier.image == rule.image) {
            Some(earlier) => {
                let what = format!("{} has a tree already, line {}", rule.image.display(), earlier.at.line);
                document.note_at(rule.at, what, None);
            }
            None => rules.push(rule),
        }
    }
    rules
}

fn read_tree<'t>(document: &Document<'t>, value: &Value<'t>) -> Option<Premounted> {
    let name = "a tree in premounted.trees";
    let at = document.position(value.span().start);
    let Some(mut table) = Section::inline(document, name, value) else {
        document.note_at(at, format!("{name} wants a table {{ image, directory }}"), None);
        return None;
    };
    let (image, directory) = (table.string("image"), table.string("directory"));
    for key in ["image", "directory"] {
        if table.value(key).is_none() {
            document.note_at(at, format!("{name} without its {key}"), None);
        }
    }
    table.finish();
    let plain = |text: Located<String>| {
        let template = absolute(document, &text, name)?;
        if template.variables().next().is_some() {
            document.note_at(text.at, format!("{name}: variables mean nothing here"), None);
            return None;
        }
        Some(super::path::normalise("/".as_ref(), text.value.replace("$$", "$").as_ref()))
    };
    Some(Premounted { image: plain(image?)?, directory: plain(directory?)?, at })
}
