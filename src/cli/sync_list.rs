//! The list that `hpcrun sync` goes by: TOML, read like the site's policy.

use crate::image::platform::Platform;
use crate::image::reference::SourceReference;
use crate::image::store::Name;
use crate::image::store::tag::KEEP_MAX;
use crate::policy::file::{Document, Located, Position, Problem, Section, Value};

/// When an image is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Update {
    /// When its source has another than the store; a source that does not answer is a failure.
    Always,
    /// When the store has none of its names.
    IfMissing,
    /// When its source has another; one that does not answer is no failure if the store has the image.
    Newer,
    /// Not at all: the store must have it.
    Never,
}

/// The words for [`Update`].
const UPDATE_WORDS: [(&str, Update); 4] = [
    ("always", Update::Always),
    ("if-missing", Update::IfMissing),
    ("newer", Update::Newer),
    ("never", Update::Never),
];

/// One image of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    /// Where it comes from.
    pub(crate) source: SourceReference,
    /// What it is called; never empty.
    pub(crate) names: Vec<Name>,
    /// Its platform; none means the machine's.
    pub(crate) platform: Option<String>,
    /// When it is fetched.
    pub(crate) update: Update,
    /// How many of the last images its names hold.
    pub(crate) keep: usize,
}

/// What is said for all images that say nothing themselves.
struct Defaults {
    platform: Option<String>,
    update: Update,
    keep: usize,
}

/// Reads a list; all that is wrong with it at once.
pub(crate) fn parse(text: &str) -> Result<Vec<Item>, Vec<Problem>> {
    let document = Document::parse(&[(String::new(), text)]);
    let items = read(&document);
    let problems = document.into_problems();
    if problems.is_empty() { Ok(items) } else { Err(problems) }
}

fn read(document: &Document<'_>) -> Vec<Item> {
    let mut root = document.root();
    let defaults = Defaults {
        platform: platform(&mut root),
        update: root.choice("update", &UPDATE_WORDS).map_or(Update::Newer, |update| update.value),
        keep: keep(&mut root).unwrap_or(1),
    };
    let array = root.array("image");
    let items = array.into_iter().flat_map(|array| array.value);
    let items: Vec<(Item, Position)> =
        items.filter_map(|value| read_item(document, value, &defaults)).collect();
    root.finish();
    let mut seen: Vec<(&Name, Position)> = Vec::new();
    for (item, at) in &items {
        for name in &item.names {
            match seen.iter().find(|(other, _)| *other == name) {
                Some((_, before)) => {
                    let what = format!("{name} is an image already, line {}", before.line);
                    document.note_at(*at, what, Some("give each image tags of its own".to_owned()));
                }
                None => seen.push((name, *at)),
            }
        }
    }
    items.into_iter().map(|(item, _)| item).collect()
}

fn read_item<'d, 't>(
    document: &'d Document<'t>,
    value: Value<'d, 't>,
    defaults: &Defaults,
) -> Option<(Item, Position)> {
    let Some(mut table) = Section::inline(document, "image", value) else {
        document.note(value, "an image is a table", Some("write [[image]] above each".to_owned()));
        return None;
    };
    let at = table.at();
    let from = table.string("from");
    let tags = table.strings("tags");
    let (platform, keep) = (platform(&mut table), keep(&mut table));
    let update = table.choice("update", &UPDATE_WORDS);
    if from.is_none() && !table.has("from") {
        document.note_at(at, "an image without 'from'", None);
    }
    table.finish();
    let from = from?;
    let source = match source(&from.value) {
        Ok(source) => source,
        Err(why) => {
            document.note_at(from.at, why, None);
            return None;
        }
    };
    let names = names(document, &source, &from, tags.map(|tags| tags.value))?;
    let item = Item {
        source,
        names,
        platform: platform.or_else(|| defaults.platform.clone()),
        update: update.map_or(defaults.update, |update| update.value),
        keep: keep.unwrap_or(defaults.keep),
    };
    Some((item, at))
}

/// `docker://` may be left out. Other sources are named by absolute paths: who runs the list, and where, must not matter.
fn source(from: &str) -> Result<SourceReference, String> {
    let has_transport =
        ["docker://", "oci:", "oci-archive:"].iter().any(|transport| from.starts_with(transport));
    let text = if has_transport { from.to_owned() } else { format!("docker://{from}") };
    let source = SourceReference::parse(text.as_ref(), &|path| path.exists())
        .map_err(|error| format!("{from:?} is no source: {}", crate::cli::report::chain(&error)))?;
    match &source {
        SourceReference::Registry(_) => Ok(source),
        SourceReference::OciLayout { path, .. } | SourceReference::OciArchive { path, .. }
            if path.is_absolute() =>
        {
            Ok(source)
        }
        SourceReference::OciLayout { .. } | SourceReference::OciArchive { .. } => {
            Err(format!("{from:?} is not an absolute path"))
        }
        _ => Err(format!("{from:?} is neither of a registry nor oci: nor oci-archive:")),
    }
}

/// The tags as written, else the name that the registry has for the image.
fn names(
    document: &Document<'_>,
    source: &SourceReference,
    from: &Located<String>,
    tags: Option<Vec<Located<String>>>,
) -> Option<Vec<Name>> {
    let names: Vec<Name> = match (tags, source) {
        (None, SourceReference::Registry(reference)) => vec![Name::of(reference)],
        (None, _) => Vec::new(),
        (Some(tags), _) => {
            let mut names = Vec::new();
            for tag in tags {
                match Name::parse_local(&tag.value) {
                    Ok(name) if name.digest().is_none() => names.push(name),
                    Ok(_) => document.note_at(
                        tag.at,
                        format!("{:?} is the name of one image for ever", tag.value),
                        None,
                    ),
                    Err(error) => {
                        let why = crate::cli::report::chain(&error);
                        document.note_at(tag.at, format!("{:?} is no name: {why}", tag.value), None);
                    }
                }
            }
            names
        }
    };
    if names.is_empty() {
        document.note_at(from.at, format!("{:?} needs tags to be found by", from.value), None);
        return None;
    }
    Some(names)
}

fn platform(section: &mut Section<'_, '_>) -> Option<String> {
    let text = section.string("platform")?;
    match Platform::parse(&text.value) {
        Ok(_) => Some(text.value),
        Err(error) => {
            section.document().note_at(text.at, error.to_string(), None);
            None
        }
    }
}

fn keep(section: &mut Section<'_, '_>) -> Option<usize> {
    let most = u64::try_from(KEEP_MAX).unwrap_or(u64::MAX);
    usize::try_from(section.number("keep", 1..=most)?.value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_and_what_is_said() {
        let items = parse(
            "keep = 2\nupdate = 'always'\nplatform = 'linux/arm64'\n[[image]]\nfrom = 'r.site/app:1'\n[[image]]\n\
             from = 'docker://debian'\ntags = ['debian:stable', 'r.site/x:1']\nplatform = 'linux/amd64'\nkeep = 5\n\
             update = 'if-missing'\n[[image]]\nfrom = 'oci:/mirror:app'\ntags = ['app']\n",
        )
        .unwrap();
        let names: Vec<Vec<&str>> =
            items.iter().map(|item| item.names.iter().map(Name::as_str).collect()).collect();
        let expected: [&[&str]; 3] =
            [&["r.site/app:1"], &["localhost/debian:stable", "r.site/x:1"], &["localhost/app:latest"]];
        assert_eq!(names, expected);
        let said: Vec<_> =
            items.iter().map(|item| (item.platform.as_deref(), item.update, item.keep)).collect();
        assert_eq!(
            said,
            [
                (Some("linux/arm64"), Update::Always, 2),
                (Some("linux/amd64"), Update::IfMissing, 5),
                (Some("linux/arm64"), Update::Always, 2)
            ]
        );
        assert_eq!(parse("").unwrap(), []);
    }

    #[test]
    fn mistakes_are_told_with_their_places() {
        for (text, at, what) in [
            ("imag = 1\n", (1, 1), "unknown section"),
            ("[[image]]\nfrm = 'a'\n", (2, 1), "unknown key"),
            ("[[image]]\ntags = ['a']\n", (1, 1), "without 'from'"),
            ("[[image]]\nfrom = 'A'\n", (2, 8), "is no source"),
            ("[[image]]\nfrom = 'oci:mirror:x'\ntags = ['x']\n", (2, 8), "not an absolute path"),
            ("[[image]]\nfrom = 'oci:/mirror:x'\n", (2, 8), "needs tags"),
            ("[[image]]\nfrom = 'a'\ntags = []\n", (2, 8), "needs tags"),
            ("[[image]]\nfrom = 'a'\ntags = ['b', 'b b']\n", (3, 14), "is no name"),
            ("[[image]]\nfrom = 'a'\nupdate = 'often'\n", (3, 10), "none of always"),
            ("[[image]]\nfrom = 'a'\nkeep = 0\n", (3, 8), "must be 1 to 100"),
            ("[[image]]\nfrom = 'a'\nplatform = 'linux'\n", (3, 12), "linux"),
            (
                "[[image]]\nfrom = 'a'\n[[image]]\nfrom = 'docker.io/library/a:latest'\n",
                (3, 1),
                "already, line 1",
            ),
            ("image = ['a']\n", (1, 10), "is a table"),
        ] {
            let problems = parse(text).unwrap_err();
            let found = problems
                .iter()
                .any(|problem| (problem.at.line, problem.at.column) == at && problem.what.contains(what));
            assert!(found, "{text}: {problems:?}");
        }
    }
}
