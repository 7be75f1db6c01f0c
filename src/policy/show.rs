//! The whole policy as one TOML text, each value with where it comes from: `hpcrun policy show --effective`.

use std::fmt::Write as _;

use toml::de::{DeTable, DeValue};

use super::PolicyFile;
use super::defaults::DEFAULTS;

/// A value under its key, and the line that it stands on.
struct Leaf<'d> {
    /// `["modules", "mpi", "env", "set", "PATH"]`
    key: Vec<&'d str>,
    value: &'d DeValue<'d>,
    origin: String,
}

/// What `files`, which are valid, say together. Lists that several files add to are written as one.
pub fn effective(files: &[PolicyFile]) -> String {
    let roots: Vec<(&PolicyFile, DeTable<'_>)> =
        files.iter().map(|file| (file, DeTable::parse_recoverable(&file.text).0.into_inner())).collect();
    let mut leaves: Vec<Leaf<'_>> = Vec::new();
    for (file, root) in &roots {
        collect(file, root, &[], &mut leaves);
    }
    let mut text = String::from("# The policy as hpcrun reads it. Values behind a '#' are hpcrun's own.\n");
    for file in files {
        let _ = writeln!(text, "# {}", one_line(&file.path.display().to_string()));
    }
    let mut section = "";
    for (key, default) in DEFAULTS {
        let Some((name, rest)) = key.split_once('.') else {
            continue;
        };
        if name != section {
            let _ = write!(text, "\n[{name}]\n");
            section = name;
        }
        let wanted: Vec<&str> = vec![name, rest];
        let found: Vec<&Leaf<'_>> = leaves.iter().filter(|leaf| leaf.key.starts_with(&wanted)).collect();
        if found.is_empty() {
            let _ = writeln!(text, "# {rest} = {default}");
        }
        write_leaves(&mut text, &found, 1);
    }
    let mut modules: Vec<&str> = Vec::new();
    for root in roots.iter().filter_map(|(_, root)| root.get("modules")?.get_ref().as_table()) {
        // A module may be empty, which leaves no value of it.
        for (name, _) in root.iter() {
            if !modules.contains(&name.get_ref().as_ref()) {
                modules.push(name.get_ref());
            }
        }
    }
    for module in modules {
        let _ = write!(text, "\n[modules.{}]\n", quoted_key(module));
        let of_module: Vec<&Leaf<'_>> =
            leaves.iter().filter(|leaf| leaf.key.starts_with(&["modules", module])).collect();
        write_leaves(&mut text, &of_module, 2);
    }
    text
}

/// Every value below `table` that is no table itself, in the order of the file.
fn collect<'d>(file: &PolicyFile, table: &'d DeTable<'d>, above: &[&'d str], leaves: &mut Vec<Leaf<'d>>) {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    for (key, value) in entries {
        let mut path = above.to_vec();
        path.push(key.get_ref());
        match value.get_ref() {
            DeValue::Table(table) => collect(file, table, &path, leaves),
            other => {
                let origin = origin(file, key.span().start);
                leaves.push(Leaf { key: path, value: other, origin });
            }
        }
    }
}

fn origin(file: &PolicyFile, offset: usize) -> String {
    let before = file.text.get(..offset).unwrap_or(&file.text);
    let line = before.matches('\n').count().saturating_add(1);
    format!("{}:{line}", one_line(&file.path.display().to_string()))
}

/// Leaves with the first `skip` parts of their keys left out; arrays of one key become one.
fn write_leaves(text: &mut String, leaves: &[&Leaf<'_>], skip: usize) {
    let mut written: Vec<&[&str]> = Vec::new();
    for leaf in leaves {
        if written.contains(&leaf.key.as_slice()) {
            continue;
        }
        written.push(&leaf.key);
        let parts: Vec<String> = leaf.key.iter().skip(skip).map(|part| quoted_key(part)).collect();
        let key = parts.join(".");
        let DeValue::Array(_) = leaf.value else {
            let _ = writeln!(text, "{key} = {}  # {}", Toml(leaf.value), leaf.origin);
            continue;
        };
        let _ = writeln!(text, "{key} = [");
        for same in leaves.iter().filter(|same| same.key == leaf.key) {
            for element in same.value.as_array().into_iter().flat_map(|array| array.iter()) {
                let _ = writeln!(text, "    {},  # {}", Toml(element.get_ref()), same.origin);
            }
        }
        let _ = writeln!(text, "]");
    }
}

/// A value as TOML on one line.
struct Toml<'d>(&'d DeValue<'d>);

impl std::fmt::Display for Toml<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            DeValue::String(text) => f.write_str(&quoted(text)),
            DeValue::Integer(integer) => match integer.radix() {
                2 => write!(f, "0b{}", integer.as_str()),
                8 => write!(f, "0o{}", integer.as_str()),
                16 => write!(f, "0x{}", integer.as_str()),
                _ => f.write_str(integer.as_str()),
            },
            DeValue::Float(float) => f.write_str(float.as_str()),
            DeValue::Boolean(boolean) => write!(f, "{boolean}"),
            DeValue::Datetime(datetime) => write!(f, "{datetime}"),
            DeValue::Array(array) => {
                let elements: Vec<String> =
                    array.iter().map(|element| Toml(element.get_ref()).to_string()).collect();
                write!(f, "[{}]", elements.join(", "))
            }
            DeValue::Table(table) => {
                let pair = |(key, value): (&toml::Spanned<_>, &'_ toml::Spanned<DeValue<'_>>)| {
                    let key: &std::borrow::Cow<'_, str> = key.get_ref();
                    format!("{} = {}", quoted_key(key), Toml(value.get_ref()))
                };
                let pairs: Vec<String> = table.iter().map(pair).collect();
                write!(f, "{{ {} }}", pairs.join(", "))
            }
        }
    }
}

fn quoted_key(key: &str) -> String {
    let is_bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    if is_bare { key.to_owned() } else { quoted(key) }
}

/// A basic string of TOML.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(c);
            }
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// For a comment, which ends with its line.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;

    fn files(texts: &[&str]) -> Vec<PolicyFile> {
        let file = |(index, text): (usize, &&str)| PolicyFile {
            path: format!("/p/{index}.toml").into(),
            text: (*text).to_owned(),
        };
        texts.iter().enumerate().map(file).collect()
    }

    #[track_caller]
    fn check(texts: &[&str], lines: &[&str]) {
        let shown = effective(&files(texts));
        for line in lines {
            assert!(shown.lines().any(|other| other == *line), "{line}\n---\n{shown}");
        }
        // What is shown is a policy again, and shows as itself but for the places.
        let again = [PolicyFile { path: "/p/shown.toml".into(), text: shown.clone() }];
        if let Err(error) = Policy::of_files(again.to_vec()) {
            panic!("{error}\n---\n{shown}");
        }
        let values = |text: &str| -> Vec<String> {
            let without_origin = |line: &str| line.split("  # ").next().unwrap_or_default().to_owned();
            text.lines().filter(|line| !line.starts_with("# /p/")).map(without_origin).collect()
        };
        assert_eq!(values(&effective(&again)), values(&shown));
    }

    #[test]
    fn what_is_shown_is_a_policy() {
        check(&[], &["# bind = true", "[home]", "[log]"]);
        check(
            &[
                "[home]\nbind = false\n[binds]\nallowed = [\n\"/a\",\n\"/b\"]\n[images]\nowners = [0, \"self\"]\n",
            ],
            &["bind = false  # /p/0.toml:2", "    \"/a\",  # /p/0.toml:4", "    0,  # /p/0.toml:8"],
        );
        check(
            &[
                "[binds]\nforced = [{ source = \"/a\", when = \"x\\\"y\" }]\n",
                "env.set.A = \"1\"\n[binds]\nforced = [\"/c\"]\nallowed = []\n",
            ],
            &[
                "    { source = \"/a\", when = \"x\\\"y\" },  # /p/0.toml:2",
                "    \"/c\",  # /p/1.toml:3",
                "set.A = \"1\"  # /p/1.toml:1",
                "allowed = [",
            ],
        );
        check(
            &[
                "[modules.\"a.b\"]\n[modules.c]\nenv.set = { P = \"\\n\" }\nmatch.host = \"*\"\n",
                "[modules.c]\nmode = \"auto\"\nbinds = [\"/x\"]\n[convert]\nmax_jobs = 0x10\n",
            ],
            &[
                "[modules.\"a.b\"]",
                "[modules.c]",
                "env.set.P = \"\\u000A\"  # /p/0.toml:3",
                "mode = \"auto\"  # /p/1.toml:2",
                "max_jobs = 0x10  # /p/1.toml:5",
            ],
        );
    }
}
