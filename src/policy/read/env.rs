//! `[env]`, and the variables of modules.

use super::paths::template;
use crate::policy::file::{Document, Located, Section};
use crate::policy::rules::{EnvRules, NamePattern, NameRule, SetRule};

/// A whole section of variables.
pub(super) fn read_env(mut section: Section<'_, '_>) -> EnvRules {
    let rules = EnvRules {
        set: read_values(&mut section, "set"),
        prepend: read_values(&mut section, "prepend"),
        unset: read_names(&mut section, "unset"),
        pass: read_names(&mut section, "pass"),
    };
    note_contradictions(section.document(), &rules);
    section.finish();
    rules
}

/// The variables of a module: nothing of the host passes for its sake.
pub(super) fn read_module_env(mut section: Section<'_, '_>) -> EnvRules {
    let rules = EnvRules {
        set: read_values(&mut section, "set"),
        prepend: read_values(&mut section, "prepend"),
        unset: read_names(&mut section, "unset"),
        pass: Vec::new(),
    };
    note_contradictions(section.document(), &rules);
    section.finish();
    rules
}

fn note_contradictions(document: &Document<'_>, rules: &EnvRules) {
    for rule in rules.set.iter().chain(&rules.prepend) {
        if let Some(unset) = rules.unset.iter().find(|unset| unset.pattern.matches(rule.name.as_bytes())) {
            let what = format!(
                "{} is given a value here and unset at {}",
                rule.name,
                document.place(unset.at, rule.at)
            );
            document.note_at(rule.at, what, None);
        }
    }
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
    let list_name = section.full(key);
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
                format!("{:?} in {list_name} is neither a name nor a beginning like SLURM_*", text.value);
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
