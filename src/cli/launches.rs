//! `hpcrun report`: which images run, out of the lines that launches have logged.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Args;
use serde_json::{Value, json};

use crate::cli::output;
use crate::cli::report::{Failure, chain};
use crate::cli::table;
use crate::launch::record::{self, Decision, Record};

/// Longest line that is read, bytes: a longer one is none of ours.
const LINE_MAX: u64 = 64 << 10;

/// Arguments of `report`.
#[derive(Debug, Args)]
pub(crate) struct Report {
    /// Logs to read: files that launches wrote, or what 'journalctl -o json', '-o export' or a syslog file has of them;
    /// a directory stands for the files in it, '-' for standard input [default: -]
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Leave out what happened before: 2026-11-01, 2026-11-01T08:00, or 12h, 30d ago
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<String>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// Launches of one image.
#[derive(Debug, Default)]
struct Usage {
    launched: u64,
    refused: u64,
    failed: u64,
    users: BTreeSet<String>,
    jobs: BTreeSet<(String, String)>,
    nodes: BTreeSet<String>,
    images: BTreeSet<String>,
    name: Option<String>,
    digest: Option<String>,
    first: String,
    last: String,
    setup_us: u64,
    rules: BTreeMap<String, u64>,
}

/// All that was read.
#[derive(Debug, Default)]
struct Summary {
    usages: BTreeMap<String, Usage>,
    /// Lines that looked like records and were none.
    broken: u64,
}

/// Reads the logs and prints the summary.
pub(crate) fn run(args: &Report) -> Result<u8, Failure> {
    let mut summary = Summary::default();
    let since = args.since.as_deref().unwrap_or_default();
    let stdin = [PathBuf::from("-")];
    let named = if args.files.is_empty() { &stdin[..] } else { &args.files[..] };
    for file in named {
        read(file, since, &mut summary).map_err(|error| {
            Failure::plain(format!("cannot read the log {}: {}", file.display(), chain(&error)))
        })?;
    }
    if summary.broken > 0 {
        log::warn!("{} lines could not be understood and are left out", summary.broken);
    }
    let mut usages: Vec<&Usage> = summary.usages.values().collect();
    usages.sort_by(|a, b| b.launched.cmp(&a.launched).then_with(|| b.last.cmp(&a.last)));
    let text = match args.json {
        true => format!(
            "{:#}\n",
            json!({ "images": usages.iter().map(|usage| as_json(usage)).collect::<Vec<_>>() })
        ),
        false => table(&usages),
    };
    output::data(text.as_bytes())
}

fn read(path: &Path, since: &str, summary: &mut Summary) -> std::io::Result<()> {
    if path == Path::new("-") {
        return read_lines(std::io::stdin().lock(), since, summary);
    }
    if path.is_dir() {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(path)? {
            entries.push(entry?.path());
        }
        entries.sort();
        for entry in entries.iter().filter(|entry| entry.is_file()) {
            read_lines(BufReader::new(std::fs::File::open(entry)?), since, summary)?;
        }
        return Ok(());
    }
    read_lines(BufReader::new(std::fs::File::open(path)?), since, summary)
}

fn read_lines(mut from: impl BufRead, since: &str, summary: &mut Summary) -> std::io::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if from.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        match record_of(&line) {
            Some(Ok(record)) if record.time.as_str() >= since => summary.add(record),
            Some(Err(())) => summary.broken = summary.broken.saturating_add(1),
            _ => {}
        }
    }
}

/// The record in a line of a file, of a syslog file or of a journal's export; none if it is about something else.
fn record_of(line: &[u8]) -> Option<Result<Record, ()>> {
    let text = std::str::from_utf8(line).ok()?;
    let start = text.find('{')?;
    let value: Value = match serde_json::from_str(text.get(start..)?.trim_end()) {
        Ok(value) => value,
        // A line that a full disk has cut.
        Err(_) if text.contains("\"decision\":\"") => return Some(Err(())),
        Err(_) => return None,
    };
    let value = match value.get("MESSAGE").and_then(Value::as_str) {
        Some(message) => serde_json::from_str(message.get(message.find('{')?..)?).ok()?,
        None => value,
    };
    value.get("decision")?;
    Some(serde_json::from_value(value).map_err(|_| ()))
}

impl Summary {
    fn add(&mut self, record: Record) {
        // The same content under another path is the same image; but the manifest of a docker-archive names its layers by
        // files, which may be alike in all archives.
        let is_archive = record.name.as_ref().is_some_and(|name| name.starts_with("docker-archive:"));
        let key = record.digest.as_ref().filter(|_| !is_archive).unwrap_or(&record.image);
        let usage = self.usages.entry(key.clone()).or_default();
        let count = match record.decision {
            Decision::Launched => &mut usage.launched,
            Decision::Refused => &mut usage.refused,
            Decision::Failed => &mut usage.failed,
        };
        *count = count.saturating_add(1);
        usage.setup_us = usage.setup_us.saturating_add(record.setup_us.unwrap_or(0));
        if record.decision == Decision::Launched {
            usage.nodes.insert(record.host);
        }
        if usage.last <= record.time {
            usage.last.clone_from(&record.time);
            usage.name = record.name.or_else(|| usage.name.take());
        }
        if usage.first.is_empty() || usage.first > record.time {
            usage.first = record.time;
        }
        usage.users.insert(record.user);
        usage.jobs.extend(record.job.map(|job| (record.launcher.unwrap_or_default(), job)));
        usage.images.insert(record.image);
        usage.digest = usage.digest.take().or(record.digest);
        if let Some(rule) = record.rule {
            let refusals = usage.rules.entry(rule).or_default();
            *refusals = refusals.saturating_add(1);
        }
    }
}

impl Usage {
    /// The image as people know it.
    fn shown(&self) -> String {
        let path = || self.images.first().cloned().unwrap_or_default();
        self.name.clone().unwrap_or_else(path)
    }

    fn mean_setup_us(&self) -> Option<u64> {
        self.setup_us.checked_div(self.launched).filter(|mean| *mean > 0)
    }
}

fn as_json(usage: &Usage) -> Value {
    json!({
        "name": usage.name,
        "digest": usage.digest,
        "images": usage.images,
        "launches": usage.launched,
        "refusals": usage.refused,
        "failures": usage.failed,
        "refused_by": usage.rules,
        "users": usage.users,
        "jobs": usage.jobs.len(),
        "nodes": usage.nodes.len(),
        "first": usage.first,
        "last": usage.last,
        "mean_setup_us": usage.mean_setup_us(),
    })
}

fn table(usages: &[&Usage]) -> String {
    const NAMES: [&str; 8] = ["LAUNCHES", "REFUSED", "FAILED", "USERS", "JOBS", "NODES", "LAST", "IMAGE"];
    let row = |usage: &&Usage| {
        let last = usage.last.get(..16).unwrap_or(&usage.last).replace('T', " ");
        [
            usage.launched.to_string(),
            usage.refused.to_string(),
            usage.failed.to_string(),
            usage.users.len().to_string(),
            usage.jobs.len().to_string(),
            usage.nodes.len().to_string(),
            last,
            usage.shown(),
        ]
    };
    let rows: Vec<[String; 8]> =
        std::iter::once(NAMES.map(str::to_owned)).chain(usages.iter().map(row)).collect();
    table::lines(&rows)
}

/// A moment as records write it, or the beginning of one, from what the user typed.
fn since(text: &str) -> Result<String, String> {
    let units = [('m', 60), ('h', 3600), ('d', 86_400), ('w', 7 * 86_400)];
    for (unit, seconds) in units {
        if let Some(count) = text.strip_suffix(unit).and_then(|count| count.parse::<u64>().ok()) {
            let ago = Duration::from_secs(count.saturating_mul(seconds));
            return Ok(record::time(SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH)));
        }
    }
    const PATTERN: &str = "0000-00-00T00:00:00.000";
    let fits = text.len() >= 4
        && text.len() <= PATTERN.len()
        && text.bytes().zip(PATTERN.bytes()).all(|(typed, pattern)| match pattern {
            b'0' => typed.is_ascii_digit(),
            b'T' => typed == b'T' || typed == b' ',
            other => typed == other,
        });
    match fits {
        true => Ok(text.replace(' ', "T")),
        false => Err("write a time in UTC such as 2026-11-01T08:00, or 12h, 30d for how long ago".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"time":"2026-11-22T21:07:31.042Z","decision":"launched","user":"ada","uid":1000,"host":"n1","image":"/i","version":"0.1.0"}"#;

    #[test]
    fn records_are_found_in_logs_of_all_kinds() {
        let quoted = serde_json::to_string(LINE).unwrap();
        for line in [
            LINE.to_owned(),
            format!("{LINE}\n"),
            format!("Nov 22 21:07:31 n1 hpcrun[77]: {LINE}\n"),
            format!("MESSAGE={LINE}\n"),
            format!("{{\"_PID\":\"77\",\"MESSAGE\":{quoted}}}\n"),
            // A later version may know more.
            LINE.replace("\"uid\"", "\"later\":{\"x\":1},\"uid\""),
        ] {
            assert_eq!(record_of(line.as_bytes()).unwrap().unwrap().user, "ada", "{line}");
        }
    }

    #[test]
    fn other_lines_are_passed_over_and_broken_ones_counted() {
        for line in ["", "\n", "text", "{}", "{\"a\":1}", "x {", "{\"MESSAGE\":\"hello\"}", "_PID=7\n"] {
            assert!(record_of(line.as_bytes()).is_none(), "{line}");
        }
        assert!(record_of(b"\xff{\"decision\":1}").is_none());
        for line in
            [&LINE[..LINE.len() - 3], &LINE.replace("launched", "lunched"), &LINE.replace("1000", "-1")]
        {
            assert!(record_of(line.as_bytes()).unwrap().is_err(), "{line}");
        }
    }

    #[test]
    fn times_to_begin_at() {
        for (text, expected) in [
            ("2026", "2026"),
            ("2026-11-01", "2026-11-01"),
            ("2026-11-01 08:00", "2026-11-01T08:00"),
            ("2026-11-01T08:00:59", "2026-11-01T08:00:59"),
        ] {
            assert_eq!(since(text).unwrap(), expected);
        }
        for text in ["", "1", "yesterday", "2026/11/01", "2026-11-01T08:00:00.0000", "-3d", "3y"] {
            assert!(since(text).is_err(), "{text}");
        }
        let (week, day) = (since("1w").unwrap(), since("24h").unwrap());
        assert!(week < day && day < record::time(SystemTime::now()));
        assert_eq!(since("99999999999999999w").unwrap(), "1970-01-01T00:00:00.000Z");
    }
}
