//! Paths and patterns of rules.

use std::path::PathBuf;

use crate::policy::file::{Document, Located, Section};
use crate::policy::path::{has_parent_component, normalise};
use crate::policy::pattern::Pattern;
use crate::policy::rules::{Listed, PathRule};
use crate::policy::template::{TRUSTED_VARIABLES, Template};

/// A list of host paths that decides about users, and so has no variable that users choose.
pub(super) fn read_paths(section: &mut Section<'_, '_>, key: &'static str) -> Option<Listed<PathRule>> {
    let document = section.document();
    let list = section.strings(key)?;
    let rules = list.value.iter().filter_map(|text| read_path(document, text, key)).collect();
    Some(Listed { rules, at: list.at })
}

pub(super) fn read_path(document: &Document<'_>, text: &Located<String>, key: &str) -> Option<PathRule> {
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
pub(super) fn absolute(document: &Document<'_>, text: &Located<String>, name: &str) -> Option<Template> {
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

pub(super) fn template(document: &Document<'_>, text: &Located<String>) -> Option<Template> {
    match Template::parse(&text.value) {
        Ok(template) => Some(template),
        Err(error) => {
            document.note_at(text.at, format!("{:?} has {error}", text.value), None);
            None
        }
    }
}

/// An absolute path without variables, in normal form.
pub(super) fn plain(document: &Document<'_>, text: &Located<String>, name: &str) -> Option<PathBuf> {
    let template = absolute(document, text, name)?;
    if template.variables().next().is_some() {
        document.note_at(text.at, format!("{name}: variables mean nothing here"), None);
        return None;
    }
    Some(normalise("/".as_ref(), text.value.replace("$$", "$").as_ref()))
}

/// The plain path under `key`.
pub(super) fn read_plain(section: &mut Section<'_, '_>, key: &'static str) -> Option<Located<PathBuf>> {
    let text = section.string(key)?;
    let value = plain(section.document(), &text, &section.full(key))?;
    Some(Located { value, at: text.at })
}

/// The path with variables under `key`.
pub(super) fn read_template(section: &mut Section<'_, '_>, key: &'static str) -> Option<Located<Template>> {
    let text = section.string(key)?;
    let value = absolute(section.document(), &text, &section.full(key))?;
    Some(Located { value, at: text.at })
}

/// The list of plain paths under `key`.
pub(super) fn read_plain_list(
    section: &mut Section<'_, '_>,
    key: &'static str,
) -> Option<Listed<Located<PathBuf>>> {
    let name = section.full(key);
    let document = section.document();
    let list = section.strings(key)?;
    let path = |text: &Located<String>| Some(Located { value: plain(document, text, &name)?, at: text.at });
    Some(Listed { rules: list.value.iter().filter_map(path).collect(), at: list.at })
}

/// The list of plain paths under `key` whose last component may have wildcards.
pub(super) fn read_globs(section: &mut Section<'_, '_>, key: &'static str) -> Vec<Located<String>> {
    let name = section.full(key);
    let document = section.document();
    let texts = section.strings(key).map(|list| list.value).unwrap_or_default();
    let mut globs = Vec::new();
    for text in texts {
        let Some(path) = plain(document, &text, &name) else {
            continue;
        };
        if path.parent().is_none_or(|parent| parent.as_os_str().as_encoded_bytes().contains(&b'*')) {
            let what = format!("{name}: {:?} has a wildcard before its last component", text.value);
            document.note_at(text.at, what, None);
            continue;
        }
        globs.push(Located { value: path.display().to_string(), at: text.at });
    }
    globs
}

/// The pattern under `key`.
pub(super) fn read_pattern(section: &mut Section<'_, '_>, key: &'static str) -> Option<Located<Pattern>> {
    let text = section.string(key)?;
    match Pattern::parse(&text.value) {
        Ok(value) => Some(Located { value, at: text.at }),
        Err(why) => {
            let hint =
                Some("'*' stands for any characters, '?' for one, commas separate alternatives".to_owned());
            section.document().note_at(text.at, format!("the pattern {:?} {why}", text.value), hint);
            None
        }
    }
}
