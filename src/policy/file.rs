//! The texts of the policy's files as sections and typed values, each with its file, line and column.
//!
//! Several files read as one: lists and tables of the same name add up in the order of the files, and a value that can
//! be there only once contradicts another, wherever that stands.
//!
//! Reading never stops at the first problem: whatever is wrong is noted and a value that cannot be used counts as
//! absent, so that one look at the file finds everything. A [`Section`] knows the keys that were asked of it, and so
//! which others are mistakes and what was probably meant.

use std::cell::RefCell;
use std::fmt;
use std::ops::RangeInclusive;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A place in a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Which file, counted from 0 in the order of reading.
    pub file: usize,
    /// 1-based.
    pub line: usize,
    /// 1-based, in characters.
    pub column: usize,
}

/// A value and where it stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Where its text begins.
    pub at: Position,
}

/// Something wrong in a file. Prints as `3:5: unknown key "forcd" in [binds]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where.
    pub at: Position,
    /// What, without the place.
    pub what: String,
    /// What was probably meant.
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.at.line, self.at.column, self.what)
    }
}

/// Syntax errors that are told at once; one in a quote may make nonsense of all that follows.
const PROBLEM_LIMIT: usize = 50;

/// The parsed files with what was found wrong so far.
#[derive(Debug)]
pub struct Document<'t> {
    files: Vec<File<'t>>,
    problems: RefCell<Vec<Problem>>,
    asked: RefCell<Vec<String>>,
}

/// One file of a [`Document`].
#[derive(Debug)]
struct File<'t> {
    name: String,
    text: &'t str,
    root: Spanned<DeTable<'t>>,
}

/// One value of the document.
#[derive(Debug, Clone, Copy)]
pub struct Value<'d, 't> {
    file: usize,
    spanned: &'d Spanned<DeValue<'t>>,
}

impl<'d, 't> Value<'d, 't> {
    /// The value itself.
    pub fn get(self) -> &'d DeValue<'t> {
        self.spanned.get_ref()
    }
}

impl<'t> Document<'t> {
    /// Parses the texts of files, each with its name for messages; errors of syntax and duplicate keys become problems.
    pub fn parse(texts: &[(String, &'t str)]) -> Document<'t> {
        let mut document =
            Document { files: Vec::new(), problems: RefCell::default(), asked: RefCell::default() };
        let mut errors = Vec::new();
        for (index, (name, text)) in texts.iter().enumerate() {
            let (root, mistakes) = DeTable::parse_recoverable(text);
            document.files.push(File { name: name.clone(), text, root });
            errors.extend(mistakes.into_iter().take(PROBLEM_LIMIT).map(|mistake| (index, mistake)));
        }
        for (index, error) in errors {
            let message = error.message().replace('\n', ", ");
            let at = document.position(index, error.span().unwrap_or(0..0).start);
            document.note_at(at, message, None);
        }
        document
    }

    /// What was found wrong, in the order of the files.
    pub fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort();
        problems.dedup();
        problems
    }

    /// Every key that was asked for, as `section.key`, in the order of asking.
    pub fn asked(&self) -> Vec<String> {
        self.asked.borrow().clone()
    }

    /// The top level, whose keys are the sections.
    pub fn root(&self) -> Section<'_, 't> {
        Section {
            document: self,
            name: String::new(),
            tables: self.files.iter().map(|file| file.root.get_ref()).enumerate().collect(),
            at: Position { file: 0, line: 1, column: 1 },
            known: Vec::new(),
        }
    }

    /// Notes a problem with a value.
    pub fn note(&self, value: Value<'_, 't>, what: impl Into<String>, hint: Option<String>) {
        self.note_at(self.at(value), what, hint);
    }

    /// Notes a problem at a known position.
    pub fn note_at(&self, at: Position, what: impl Into<String>, hint: Option<String>) {
        self.problems.borrow_mut().push(Problem { at, what: what.into(), hint });
    }

    /// Where a value begins.
    pub fn at(&self, value: Value<'_, 't>) -> Position {
        self.position(value.file, value.spanned.span().start)
    }

    /// Line and column of a byte offset in a file; an offset past the end counts as the end.
    pub fn position(&self, file: usize, offset: usize) -> Position {
        let text = self.files.get(file).map_or("", |file| file.text);
        let before = text.get(..offset).unwrap_or(text);
        let line = before.matches('\n').count().saturating_add(1);
        let last = before.rsplit('\n').next().unwrap_or("");
        Position { file, line, column: last.chars().count().saturating_add(1) }
    }

    /// How a message about something at `seen` names the place `at`: `line 3`, or `FILE:3` where that is another file.
    pub fn place(&self, at: Position, seen: Position) -> String {
        match self.files.get(at.file) {
            Some(file) if at.file != seen.file => format!("{}:{}", file.name, at.line),
            _ => format!("line {}", at.line),
        }
    }

    /// The string that `value` is, or a problem.
    pub fn string(&self, value: Value<'_, 't>, name: &str) -> Option<Located<String>> {
        match value.get() {
            DeValue::String(text) => Some(Located { value: text.to_string(), at: self.at(value) }),
            _ => {
                self.wrong_type(value, name, "a string");
                None
            }
        }
    }

    /// The meaning of a word that is one of `choices`, or a problem with the key `name`.
    pub fn word<T: Copy>(
        &self,
        name: &str,
        word: &Located<String>,
        choices: &[(&str, T)],
    ) -> Option<Located<T>> {
        if let Some((_, choice)) = choices.iter().find(|(text, _)| *text == word.value) {
            return Some(Located { value: *choice, at: word.at });
        }
        let words: Vec<&str> = choices.iter().map(|(text, _)| *text).collect();
        let what = format!("{name}: {:?} is none of {}", word.value, words.join(", "));
        self.note_at(word.at, what, did_you_mean(&word.value, &words));
        None
    }

    /// A section that is not in the file.
    pub fn absent(&self, name: &str) -> Section<'_, 't> {
        Section {
            document: self,
            name: name.to_owned(),
            tables: Vec::new(),
            at: Position::default(),
            known: Vec::new(),
        }
    }

    /// The elements of an array, or a problem with the key `name`.
    fn elements<'d>(&self, value: Value<'d, 't>, name: &str) -> Option<Vec<Value<'d, 't>>> {
        let DeValue::Array(array) = value.get() else {
            self.wrong_type(value, name, "an array");
            return None;
        };
        Some(array.iter().map(|spanned| Value { file: value.file, spanned }).collect())
    }

    /// The section that tables of several files make together.
    fn section_of<'d>(&'d self, name: String, values: Vec<Value<'d, 't>>) -> Section<'d, 't> {
        let at = values.first().map(|first| self.at(*first)).unwrap_or_default();
        let mut tables = Vec::new();
        for value in values {
            match value.get() {
                DeValue::Table(table) => tables.push((value.file, table)),
                _ => self.wrong_type(value, &name, "a table"),
            }
        }
        Section { document: self, name, tables, at, known: Vec::new() }
    }

    fn wrong_type(&self, value: Value<'_, 't>, name: &str, wanted: &str) {
        let found = match value.get() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a float",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        };
        self.note(value, format!("{name} wants {wanted}, not {found}"), None);
    }
}

/// One table of the document, perhaps in several files, or the absence of it.
#[derive(Debug)]
pub struct Section<'d, 't> {
    document: &'d Document<'t>,
    name: String,
    tables: Vec<(usize, &'d DeTable<'t>)>,
    at: Position,
    known: Vec<&'static str>,
}

impl<'d, 't> Section<'d, 't> {
    /// A section out of a table in a list; `name` is for messages.
    pub fn inline(document: &'d Document<'t>, name: &str, value: Value<'d, 't>) -> Option<Section<'d, 't>> {
        let DeValue::Table(table) = value.get() else {
            return None;
        };
        let tables = vec![(value.file, table)];
        Some(Section { document, name: name.to_owned(), tables, at: document.at(value), known: Vec::new() })
    }

    /// Where the section begins.
    pub fn at(&self) -> Position {
        self.at
    }

    /// The document that this is a section of.
    pub fn document(&self) -> &'d Document<'t> {
        self.document
    }

    /// The table under `key`; one that is absent has no keys.
    pub fn section(&mut self, key: &'static str) -> Section<'d, 't> {
        let values = self.values(key);
        self.document.section_of(self.full(key), values)
    }

    /// Whether there is a value under `key`, of whatever type.
    pub fn has(&mut self, key: &'static str) -> bool {
        !self.values(key).is_empty()
    }

    /// The values under `key`, of whatever type: one for each file that has one.
    fn values(&mut self, key: &'static str) -> Vec<Value<'d, 't>> {
        self.known.push(key);
        self.document.asked.borrow_mut().push(self.full(key));
        let value =
            |(file, table): &(usize, &'d DeTable<'t>)| Some(Value { file: *file, spanned: table.get(key)? });
        self.tables.iter().filter_map(value).collect()
    }

    /// The value under `key`, which two files must not both have.
    fn value(&mut self, key: &'static str) -> Option<Value<'d, 't>> {
        let values = self.values(key);
        let (first, others) = values.split_first()?;
        let set = self.document.at(*first);
        for other in others {
            let at = self.document.at(*other);
            let what = format!("{} is set already, {}", self.full(key), self.document.place(set, at));
            self.document.note_at(at, what, None);
        }
        Some(*first)
    }

    /// A string.
    pub fn string(&mut self, key: &'static str) -> Option<Located<String>> {
        let name = self.full(key);
        let value = self.value(key)?;
        self.document.string(value, &name)
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, key: &'static str) -> Option<Located<bool>> {
        let name = self.full(key);
        let value = self.value(key)?;
        match value.get() {
            DeValue::Boolean(boolean) => Some(self.located(value, *boolean)),
            _ => {
                self.document.wrong_type(value, &name, "true or false");
                None
            }
        }
    }

    /// A whole number in `range`.
    pub fn number(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Option<Located<u64>> {
        let value = self.value(key)?;
        self.number_of(key, value, &range)
    }

    fn number_of(
        &self,
        key: &str,
        value: Value<'d, 't>,
        range: &RangeInclusive<u64>,
    ) -> Option<Located<u64>> {
        let name = self.full(key);
        let DeValue::Integer(integer) = value.get() else {
            self.document.wrong_type(value, &name, "a whole number");
            return None;
        };
        let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok();
        match number.filter(|number| range.contains(number)) {
            Some(number) => Some(self.located(value, number)),
            None => {
                let what = format!("{name} must be {} to {}", range.start(), range.end());
                self.document.note(value, what, None);
                None
            }
        }
    }

    /// A size in bytes, written as a whole number or as `"64 GiB"`; at least 1.
    pub fn size_bytes(&mut self, key: &'static str) -> Option<Located<u64>> {
        let value = self.value(key)?;
        let DeValue::String(text) = value.get() else {
            return self.number_of(key, value, &(1..=u64::MAX));
        };
        let size = parse_size(text);
        if size.is_none() {
            let hint = Some("write a size as \"512 MiB\", \"64 GiB\", \"2 TiB\" or in bytes".to_owned());
            self.document.note(value, format!("{}: {text:?} is not a size", self.full(key)), hint);
        }
        Some(self.located(value, size?))
    }

    /// One of the words in `choices`.
    pub fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&str, T)]) -> Option<Located<T>> {
        let name = self.full(key);
        let word = self.string(key)?;
        self.document.word(&name, &word, choices)
    }

    /// The elements of an array, of whatever type, with the position of the first file's array.
    pub fn array(&mut self, key: &'static str) -> Option<Located<Vec<Value<'d, 't>>>> {
        let name = self.full(key);
        let mut found: Option<Located<Vec<Value<'d, 't>>>> = None;
        for value in self.values(key) {
            let Some(elements) = self.document.elements(value, &name) else {
                continue;
            };
            match &mut found {
                Some(found) => found.value.extend(elements),
                None => found = Some(self.located(value, elements)),
            }
        }
        found
    }

    /// An array of strings, in which none may stand twice.
    pub fn strings(&mut self, key: &'static str) -> Option<Located<Vec<Located<String>>>> {
        let name = self.full(key);
        let array = self.array(key)?;
        let mut strings: Vec<Located<String>> = Vec::new();
        for value in array.value {
            let Some(string) = self.document.string(value, &format!("an element of {name}")) else {
                continue;
            };
            match strings.iter().find(|earlier| earlier.value == string.value) {
                Some(earlier) => {
                    let place = self.document.place(earlier.at, string.at);
                    let what = format!("{:?} stands in {name} already, {place}", string.value);
                    self.document.note_at(string.at, what, None);
                }
                None => strings.push(string),
            }
        }
        Some(Located { value: strings, at: array.at })
    }

    /// The entries of a table whose names are the site's choice, in the order of the files; positions are those of the
    /// names. Two files may have one name.
    fn entries(&mut self, key: &'static str) -> Vec<(Located<String>, Value<'d, 't>)> {
        let name = self.full(key);
        let mut entries = Vec::new();
        for value in self.values(key) {
            let DeValue::Table(table) = value.get() else {
                self.document.wrong_type(value, &name, "a table");
                continue;
            };
            for (key, spanned) in table.iter() {
                let at = self.document.position(value.file, key.span().start);
                let name = Located { value: key.get_ref().to_string(), at };
                entries.push((name, Value { file: value.file, spanned }));
            }
        }
        entries.sort_by_key(|(name, _)| name.at);
        entries
    }

    /// A table of strings, `NAME = "value"`, in which no name may stand twice.
    pub fn string_table(&mut self, key: &'static str) -> Vec<(Located<String>, String)> {
        let name = self.full(key);
        let mut pairs: Vec<(Located<String>, String)> = Vec::new();
        for (key, value) in self.entries(key) {
            let name = format!("{name}.{}", key.value);
            let Some(text) = self.document.string(value, &name) else {
                continue;
            };
            match pairs.iter().find(|(earlier, _)| earlier.value == key.value) {
                Some((earlier, _)) => {
                    let place = self.document.place(earlier.at, key.at);
                    self.document.note_at(key.at, format!("{name} is set already, {place}"), None);
                }
                None => pairs.push((key, text.value)),
            }
        }
        pairs
    }

    /// A table of lists of strings, `NAME = ["value"]`; lists of one name add up.
    pub fn lists_table(&mut self, key: &'static str) -> Vec<(Located<String>, Vec<Located<String>>)> {
        let name = self.full(key);
        let mut pairs: Vec<(Located<String>, Vec<Located<String>>)> = Vec::new();
        for (key, value) in self.entries(key) {
            let name = format!("{name}.{}", key.value);
            let Some(elements) = self.document.elements(value, &name) else {
                continue;
            };
            let element = format!("an element of {name}");
            let strings = elements.into_iter().filter_map(|value| self.document.string(value, &element));
            match pairs.iter_mut().find(|(earlier, _)| earlier.value == key.value) {
                Some((_, list)) => list.extend(strings),
                None => pairs.push((key, strings.collect())),
            }
        }
        pairs
    }

    /// A table of sections whose names are the site's choice: `[modules.NAME]`. Sections of one name add up.
    pub fn named_sections(&mut self, key: &'static str) -> Vec<(Located<String>, Section<'d, 't>)> {
        let name = self.full(key);
        let mut groups: Vec<(Located<String>, Vec<Value<'d, 't>>)> = Vec::new();
        for (key, value) in self.entries(key) {
            match groups.iter_mut().find(|(earlier, _)| earlier.value == key.value) {
                Some((_, values)) => values.push(value),
                None => groups.push((key, vec![value])),
            }
        }
        let section = |(key, values): (Located<String>, Vec<Value<'d, 't>>)| {
            let section = self.document.section_of(format!("{name}.{}", key.value), values);
            (key, section)
        };
        groups.into_iter().map(section).collect()
    }

    /// Notes every key that was never asked for.
    pub fn finish(self) {
        for (file, table) in &self.tables {
            for (key, _) in table.iter() {
                let word: &str = key.get_ref();
                if self.known.contains(&word) {
                    continue;
                }
                let what = if self.name.is_empty() {
                    format!("unknown section [{word}]")
                } else {
                    format!("unknown key {word:?} in {}", bracketed(&self.name))
                };
                let hint = did_you_mean(word, &self.known).or_else(|| Some(valid_keys(&self.known)));
                let at = self.document.position(*file, key.span().start);
                self.document.note_at(at, what, hint);
            }
        }
    }

    fn located<T>(&self, value: Value<'_, 't>, inner: T) -> Located<T> {
        Located { value: inner, at: self.document.at(value) }
    }

    /// `section.key`, as messages name a key.
    pub fn full(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }
}

/// `[binds]` for a section, as it is for an element that has a description for a name.
fn bracketed(name: &str) -> String {
    if name.contains(' ') { name.to_owned() } else { format!("[{name}]") }
}

fn valid_keys(known: &[&str]) -> String {
    format!("valid here: {}", known.join(", "))
}

/// Bytes of `"64 GiB"`, `"10 GB"`, `"4096"`; none when it is no size, zero or too large.
fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at_checked(digits_end)?;
    let factor: u64 = match unit.trim_start() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor).filter(|size| *size > 0)
}

/// `did you mean "forced"?`, when one of `known` is near enough to `word`.
fn did_you_mean(word: &str, known: &[&str]) -> Option<String> {
    let word = word.to_ascii_lowercase();
    let limit = (word.chars().count() / 3).clamp(1, 3);
    known
        .iter()
        .map(|known| (distance(&word, known), known))
        .filter(|(distance, known)| *distance <= limit || is_plural(&word, known))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| format!("did you mean {known:?}?"))
}

fn is_plural(word: &str, known: &str) -> bool {
    word.len() > 2 && (known.starts_with(word) || word.starts_with(known))
}

/// Edits between two words: insertion, deletion, substitution and a swap of neighbours count one each.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i.saturating_add(1)];
        for (j, y) in b.iter().enumerate() {
            let at = |row: &[usize], j: usize| row.get(j).copied().unwrap_or(usize::MAX / 2);
            let substitution = at(&above, j).saturating_add(usize::from(x != y));
            let deletion = at(&above, j.saturating_add(1)).saturating_add(1);
            let insertion = at(&row, j).saturating_add(1);
            let mut best = substitution.min(deletion).min(insertion);
            let swapped =
                i > 0 && j > 0 && a.get(i.wrapping_sub(1)) == Some(y) && b.get(j.wrapping_sub(1)) == Some(x);
            if swapped {
                best = best.min(at(&before, j.wrapping_sub(1)).saturating_add(1));
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, expected) in [
            ("", "", 0),
            ("a", "", 1),
            ("", "abc", 3),
            ("forced", "forced", 0),
            ("forcd", "forced", 1),
            ("froced", "forced", 1),
            ("kitten", "sitting", 3),
            ("deny", "denied", 3),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected, "{b} {a}");
        }
    }

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("1", Some(1)),
            ("4096", Some(4096)),
            ("1 KiB", Some(1024)),
            ("1KiB", Some(1024)),
            ("512 MiB", Some(512 << 20)),
            ("64 GiB", Some(64 << 30)),
            ("2 TiB", Some(2 << 40)),
            ("10 GB", Some(10_000_000_000)),
            ("5 kB", Some(5000)),
            ("7 B", Some(7)),
            ("0", None),
            ("0 GiB", None),
            ("", None),
            ("GiB", None),
            ("-1", None),
            ("1.5 GiB", None),
            ("1 gib", None),
            ("1 GiB extra", None),
            ("99999999999 TiB", None),
            ("18446744073709551616", None),
        ] {
            assert_eq!(parse_size(text), expected, "{text:?}");
        }
    }

    #[test]
    fn positions_count_lines_and_characters() {
        let text = [(String::new(), "a = 1\n# \u{e9}\u{e9}\nb = 2\n")];
        let document = Document::parse(&text);
        for (offset, line, column) in [(0, 1, 1), (4, 1, 5), (6, 2, 1), (10, 2, 4), (13, 3, 1), (999, 4, 1)] {
            assert_eq!(document.position(0, offset), Position { file: 0, line, column }, "{offset}");
        }
    }

    #[test]
    fn suggestions() {
        let known = ["forced", "optional", "denied", "allowed"];
        for (word, expected) in [
            ("forcd", Some("did you mean \"forced\"?")),
            ("Forced", Some("did you mean \"forced\"?")),
            ("allow", Some("did you mean \"allowed\"?")),
            ("optionals", Some("did you mean \"optional\"?")),
            ("denide", Some("did you mean \"denied\"?")),
            ("zebra", None),
            ("", None),
        ] {
            assert_eq!(did_you_mean(word, &known).as_deref(), expected, "{word}");
        }
    }
}
