//! The file that says whose keys count, in the format of ssh-keygen(1), "ALLOWED SIGNERS".
//!
//! Stricter than OpenSSH: a line that is not understood makes the file useless, where `ssh-keygen` would go on to the
//! next. A site that has mistyped an expiry must hear of it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::key::{PublicKey, type_names};
use super::{Fault, NAMESPACE};
use crate::image::calendar::days_from_civil;

/// Keys that may sign images.
#[derive(Debug, Clone, Default)]
pub struct Signers {
    /// The file, for messages.
    file: String,
    lines: Vec<Line>,
}

/// One key.
#[derive(Debug, Clone)]
struct Line {
    number: usize,
    /// Whose it is, as written.
    principals: String,
    options: Options,
    key: PublicKey,
}

/// What a line says between name and key.
#[derive(Debug, Clone, Default)]
struct Options {
    namespaces: Option<String>,
    /// Seconds after 1970.
    valid_after: Option<i64>,
    valid_before: Option<i64>,
}

/// Why the file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {what}")]
pub struct SignersError {
    /// The file.
    pub file: String,
    /// 1-based.
    pub line: usize,
    /// What is wrong there.
    pub what: String,
}

impl crate::hint::Hint for SignersError {
    fn hints(&self) -> Vec<String> {
        vec![
            "a line is: NAME [namespaces=\"hpcrun-image\"] KEYTYPE KEY [COMMENT], see ssh-keygen(1)"
                .to_owned(),
        ]
    }
}

impl Signers {
    /// Reads `text` of `file`.
    pub fn parse(file: &str, text: &str) -> Result<Signers, SignersError> {
        let mut lines = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim_matches(BLANKS);
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let number = index.saturating_add(1);
            let parsed = parse_line(number, line);
            lines.push(parsed.map_err(|what| SignersError { file: file.to_owned(), line: number, what })?);
        }
        Ok(Signers { file: file.to_owned(), lines })
    }

    /// Number of keys that may sign images `now` (seconds after 1970), and of those that may not, or not now.
    pub fn count(&self, now: i64) -> (usize, usize) {
        let good = self.lines.iter().filter(|line| line.judge(&self.file, now).is_ok()).count();
        (good, self.lines.len().saturating_sub(good))
    }

    /// Who the key belongs to, if it may sign images `now` (seconds after 1970).
    pub fn judge(&self, key: &PublicKey, now: i64) -> Result<&str, Fault> {
        let mut fault = Fault::NotListed(self.file.clone());
        for line in self.lines.iter().filter(|line| line.key == *key) {
            match line.judge(&self.file, now) {
                Ok(()) => return Ok(&line.principals),
                Err(why) => fault = why,
            }
        }
        Err(fault)
    }
}

impl Line {
    /// Whether its key may sign images `now`.
    fn judge(&self, file: &str, now: i64) -> Result<(), Fault> {
        let place = || format!("{file}:{}", self.number);
        let options = &self.options;
        if !options.is_for_images() {
            Err(Fault::OtherNamespaces(place()))
        } else if options.valid_after.is_some_and(|after| now < after) {
            Err(Fault::NotYet(place()))
        } else if options.valid_before.is_some_and(|before| now > before) {
            Err(Fault::Expired(place()))
        } else {
            Ok(())
        }
    }
}

impl Options {
    fn is_for_images(&self) -> bool {
        self.namespaces.as_ref().is_none_or(|patterns| is_listed(patterns, NAMESPACE))
    }
}

const BLANKS: [char; 3] = [' ', '\t', '\r'];

fn parse_line(number: usize, line: &str) -> Result<Line, String> {
    let (principals, rest) = word(line)?;
    let principals = principals.trim_matches('"');
    if principals.is_empty() || principals.split(',').any(|one| one.is_empty() || one.starts_with('!')) {
        return Err(format!("{principals:?} names nobody"));
    }
    if principals.contains('"') || principals.chars().any(char::is_control) {
        return Err("the name has a character that no name has".to_owned());
    }
    let (first, after) = word(rest)?;
    let (options, (key_type, rest)) = match is_key_type(first) {
        true => (Options::default(), (first, after)),
        false => (parse_options(first)?, word(after)?),
    };
    if OPTIONS.iter().any(|option| key_type.to_ascii_lowercase().starts_with(option)) {
        return Err("options are joined by commas, without blanks".to_owned());
    }
    let (digits, _comment) = word(rest)?;
    if key_type.is_empty() || digits.is_empty() {
        return Err("there is no key".to_owned());
    }
    let supported = || format!("{key_type:?} is no type of keys that can be checked: {}", type_names());
    if key_type.contains("-cert-") {
        return Err("certificates are not supported: list the keys themselves".to_owned());
    }
    let blob = STANDARD.decode(digits).map_err(|_| "the key is no base64".to_owned())?;
    let key = PublicKey::parse(&blob).map_err(|fault| match fault {
        Fault::KeyType(_) => supported(),
        _ => "the key makes no sense".to_owned(),
    })?;
    if key.type_name() != key_type {
        return Err(format!("the key is of the type {}, not {key_type}", key.type_name()));
    }
    Ok(Line { number, principals: principals.to_owned(), options, key })
}

/// Whether a word is where the key begins. Options have names of their own.
fn is_key_type(word: &str) -> bool {
    ["ssh-", "sk-", "ecdsa-"].iter().any(|start| word.starts_with(start))
}

/// The first word, in which quoted blanks are part of it, and what follows it.
fn word(text: &str) -> Result<(&str, &str), String> {
    let text = text.trim_start_matches(BLANKS);
    let mut is_quoted = false;
    let end = text.find(|c: char| {
        is_quoted ^= c == '"';
        BLANKS.contains(&c) && !is_quoted
    });
    match end {
        Some(end) => Ok(text.split_at(end)),
        None if is_quoted => Err("a quotation mark is not closed".to_owned()),
        None => Ok((text, "")),
    }
}

const OPTIONS: [&str; 3] = ["namespaces", "valid-after", "valid-before"];

/// `namespaces="hpcrun-image,git",valid-before="20270101Z"`
fn parse_options(text: &str) -> Result<Options, String> {
    let mut options = Options::default();
    let mut rest = text;
    loop {
        let end = rest.find(['=', ',']).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        let name = name.to_ascii_lowercase();
        if name == "cert-authority" {
            return Err("cert-authority is not supported: list the keys themselves".to_owned());
        }
        if !OPTIONS.contains(&name.as_str()) {
            return Err(format!("{name:?} is neither a key type nor an option that is known"));
        }
        let quoted = after.strip_prefix("=\"").and_then(|value| value.split_once('"'));
        let (value, after) = quoted.ok_or_else(|| format!("write {name}=\"...\""))?;
        let is_new = match name.as_str() {
            "namespaces" => options.namespaces.replace(namespaces(value)?).is_none(),
            "valid-after" => options.valid_after.replace(time(value)?).is_none(),
            _ => options.valid_before.replace(time(value)?).is_none(),
        };
        if !is_new {
            return Err(format!("{name} is there twice"));
        }
        match after.strip_prefix(',') {
            Some(more) => rest = more,
            None if after.is_empty() => break,
            None => return Err(format!("{after:?} follows {name}=\"...\"")),
        }
    }
    match (options.valid_after, options.valid_before) {
        (Some(after), Some(before)) if after >= before => {
            Err("valid-before is not after valid-after".to_owned())
        }
        _ => Ok(options),
    }
}

fn namespaces(patterns: &str) -> Result<String, String> {
    let is_good = patterns.split(',').all(|one| !one.trim_start_matches('!').is_empty());
    if is_good { Ok(patterns.to_owned()) } else { Err("namespaces has an empty name".to_owned()) }
}

/// Seconds after 1970 of `YYYYMMDDZ`, `YYYYMMDDHHMMZ` or `YYYYMMDDHHMMSSZ`.
///
/// Without the Z it would be in the time zone of whoever launches, which he chooses.
fn time(text: &str) -> Result<i64, String> {
    let fail = || format!("{text:?} is no time: write YYYYMMDDZ or YYYYMMDDHHMM[SS]Z, with the Z for UTC");
    let digits = text.strip_suffix('Z').ok_or_else(fail)?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) || ![8, 12, 14].contains(&digits.len()) {
        return Err(fail());
    }
    let part = |from: usize, to: usize| -> i64 {
        digits.get(from..to).and_then(|part| part.parse().ok()).unwrap_or(0)
    };
    let (year, month, day) = (part(0, 4), part(4, 6), part(6, 8));
    let (hour, minute, second) = (part(8, 10), part(10, 12), part(12, 14));
    let next_month = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
    let is_date = year >= 1970
        && (1..=12).contains(&month)
        && day >= 1
        && days_from_civil(year, month, day) < days_from_civil(next_month.0, next_month.1, 1);
    if !is_date || hour > 23 || minute > 59 || second > 59 {
        return Err(fail());
    }
    Ok(days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second)
}

/// Whether one of the patterns fits, and none that begins with `!`.
fn is_listed(patterns: &str, name: &str) -> bool {
    let mut is_found = false;
    for pattern in patterns.split(',') {
        match pattern.strip_prefix('!') {
            Some(denied) if fits(denied.as_bytes(), name.as_bytes()) => return false,
            Some(_) => {}
            None => is_found |= fits(pattern.as_bytes(), name.as_bytes()),
        }
    }
    is_found
}

/// Whether the pattern fits the whole name: `*` stands for any characters, `?` for one. Goes back to the last `*` only,
/// so that the time is at most the product of the lengths.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let (mut pattern, mut name) = (pattern, name);
    let mut again: Option<(&[u8], &[u8])> = None;
    loop {
        match (pattern, name) {
            ([b'*', rest @ ..], _) => {
                again = Some((rest, name));
                pattern = rest;
            }
            ([wanted, more @ ..], [found, rest @ ..]) if wanted == found || *wanted == b'?' => {
                (pattern, name) = (more, rest);
            }
            ([], []) => return true,
            _ => match again {
                Some((after, [_, shorter @ ..])) => {
                    again = Some((after, shorter));
                    (pattern, name) = (after, shorter);
                }
                _ => return false,
            },
        }
    }
}
