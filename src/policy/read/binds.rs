//! `[binds]`, and lists of binds elsewhere.

use super::paths::{absolute, read_paths, read_pattern};
use crate::policy::bind_spec::BindSpec;
use crate::policy::file::{Document, Located, Position, Section, Value};
use crate::policy::path::normalise;
use crate::policy::rules::{BindRule, Binds};

/// Destinations that are the host's in every launch.
const RESERVED: [&str; 4] = ["/", "/dev", "/proc", "/sys"];

pub(super) fn read_binds(mut section: Section<'_, '_>) -> Binds {
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
    // Rules of different images or nodes may well differ in what they bind.
    for rule in rules.filter(|rule| rule.when.is_none() && rule.hosts.is_none()) {
        let destination =
            rule.destination.as_ref().unwrap_or(&rule.source).as_written().trim_end_matches('/');
        match seen.iter().find(|(earlier, _)| *earlier == destination) {
            Some((_, at)) => {
                let what =
                    format!("{destination} is a destination already, {}", document.place(*at, rule.at));
                document.note_at(rule.at, what, None);
            }
            None => seen.push((destination, rule.at)),
        }
    }
}

pub(super) fn read_bind_list(
    section: &mut Section<'_, '_>,
    key: &'static str,
    optional: bool,
) -> Vec<BindRule> {
    let document = section.document();
    let name = section.full(key);
    let Some(array) = section.array(key) else {
        return Vec::new();
    };
    array.value.into_iter().filter_map(|value| read_bind(document, &name, value, optional)).collect()
}

/// An element of a list of binds: `"SRC[:DST[:ro|rw]]"` or a table.
fn read_bind<'t>(
    document: &Document<'t>,
    list: &str,
    value: Value<'_, 't>,
    optional: bool,
) -> Option<BindRule> {
    let at = document.at(value);
    let name = format!("a bind in {list}");
    let Some(mut table) = Section::inline(document, &name, value) else {
        let text = document.string(value, &format!("an element of {list}"))?;
        return read_short_bind(document, &text, optional);
    };
    let source = table.string("source");
    if source.is_none() && !table.has("source") {
        document.note_at(at, format!("{name} without its source"), None);
    }
    let destination = table.string("destination");
    let read_only = table.boolean("read_only").is_some_and(|value| value.value);
    let optional = table.boolean("optional").map_or(optional, |value| value.value);
    let when = read_pattern(&mut table, "when");
    let hosts = read_pattern(&mut table, "hosts");
    table.finish();
    let source = absolute(document, &source?, &name)?;
    let destination = match destination {
        Some(text) => Some(absolute(document, &text, &name)?),
        None => None,
    };
    checked_bind(document, BindRule { source, destination, read_only, optional, when, hosts, at })
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
    let read_only = spec.read_only;
    let rule = BindRule { source, destination, read_only, optional, when: None, hosts: None, at: text.at };
    checked_bind(document, rule)
}

/// The rule, unless its destination is one that no bind may take.
fn checked_bind(document: &Document<'_>, rule: BindRule) -> Option<BindRule> {
    let destination = rule.destination.as_ref().unwrap_or(&rule.source).as_written();
    let plain = normalise("/".as_ref(), destination.as_ref());
    if RESERVED.iter().any(|reserved| plain.as_os_str() == *reserved) {
        document.note_at(rule.at, format!("nothing can be bound onto {}", plain.display()), None);
        return None;
    }
    Some(rule)
}
