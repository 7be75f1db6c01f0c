//! The YAML that specification files are written in: one document without anchors, within bounds.
//!
//! An alias can stand for a thousand times what it is, and no program that writes specifications uses one.

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Number, Value};

/// Deepest nesting.
const DEPTH_MAX: usize = 32;
/// Most values.
const VALUES_MAX: usize = 200_000;

/// What is wrong with a text.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum YamlError {
    #[error("it is not UTF-8")]
    NotText,
    #[error("{0}")]
    Syntax(String),
    #[error("line {line}: {what}")]
    Refused { line: usize, what: &'static str },
}

/// A list or table that is being read.
enum Open {
    List(Vec<Value>),
    Table { table: Map<String, Value>, key: Option<String> },
}

/// Reads a text with one document.
pub(super) fn parse(bytes: &[u8]) -> Result<Value, YamlError> {
    let text = std::str::from_utf8(bytes).map_err(|_| YamlError::NotText)?;
    let mut open: Vec<Open> = Vec::new();
    let mut document = None;
    let mut values = 0_usize;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| YamlError::Syntax(error.to_string()))?;
        let refused = |what| YamlError::Refused { line: span.start.line(), what };
        let value = match event {
            Event::Alias(_) => return Err(refused("aliases are not read")),
            Event::SequenceStart(0, _) => {
                open.push(Open::List(Vec::new()));
                None
            }
            Event::MappingStart(0, _) => {
                open.push(Open::Table { table: Map::new(), key: None });
                None
            }
            Event::SequenceStart(..) | Event::MappingStart(..) => {
                return Err(refused("anchors are not read"));
            }
            Event::Scalar(text, style, _, _) => Some(scalar(&text, style, open.last())),
            Event::SequenceEnd | Event::MappingEnd => open.pop().map(Open::close),
            _ => None,
        };
        values = values.saturating_add(1);
        if open.len() > DEPTH_MAX || values > VALUES_MAX {
            return Err(refused("it is too deep or too long"));
        }
        let Some(value) = value else { continue };
        match open.last_mut() {
            Some(open) => open.put(value).map_err(refused)?,
            None if document.is_none() => document = Some(value),
            None => return Err(refused("there is a second document")),
        }
    }
    Ok(document.unwrap_or(Value::Null))
}

/// A scalar by the core schema; what is quoted, or a key, is text.
fn scalar(text: &str, style: ScalarStyle, open: Option<&Open>) -> Value {
    let is_key = matches!(open, Some(Open::Table { key: None, .. }));
    if is_key || !matches!(style, ScalarStyle::Plain) {
        return Value::String(text.to_owned());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => number(text).map_or_else(|| Value::String(text.to_owned()), Value::Number),
    }
}

/// Whole numbers only: no field takes others.
fn number(text: &str) -> Option<Number> {
    let radix =
        |prefix, radix| text.strip_prefix(prefix).and_then(|digits| u64::from_str_radix(digits, radix).ok());
    let plain = || text.parse::<i64>().ok().filter(|_| !text.starts_with('+'));
    radix("0x", 16).or_else(|| radix("0o", 8)).map(Number::from).or_else(|| plain().map(Number::from))
}

impl Open {
    fn close(self) -> Value {
        match self {
            Open::List(list) => Value::Array(list),
            Open::Table { table, .. } => Value::Object(table),
        }
    }

    fn put(&mut self, value: Value) -> Result<(), &'static str> {
        match self {
            Open::List(list) => list.push(value),
            Open::Table { table, key } => match (key.take(), value) {
                (None, Value::String(name)) if table.contains_key(&name) => {
                    return Err("a key is there twice");
                }
                (None, Value::String(name)) => *key = Some(name),
                (None, _) => return Err("a key is no text"),
                (Some(name), value) => drop(table.insert(name, value)),
            },
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn documents() {
        for (text, expected) in [
            ("a: 1\nb: [x, 'y', \"0\"]\n", json!({"a": 1, "b": ["x", "y", "0"]})),
            ("---\na:\n- b: 1\n  c: ~\n- null\n", json!({"a": [{"b": 1, "c": null}, null]})),
            ("a: true\nb: 'true'\n0: x\n", json!({"a": true, "b": "true", "0": "x"})),
            (
                "a: 0o644\nb: 0x1f\nc: -5\nd: 1.5\ne: +1",
                json!({"a": 420, "b": 31, "c": -5, "d": "1.5", "e": "+1"}),
            ),
            ("{\"json\": [1, \"two\"]}", json!({"json": [1, "two"]})),
            ("# only a comment\n", json!(null)),
            ("a: |\n  b\n  c\n", json!({"a": "b\nc\n"})),
        ] {
            assert_eq!(parse(text.as_bytes()), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_refused() {
        let deep = "[".repeat(100);
        for text in [
            "a: &x 1\nb: *x\n",
            "a: &x [1]\n",
            "a: 1\na: 2\n",
            "a: 1\n---\nb: 2\n",
            "? [a]\n: b\n",
            "a: [",
            &deep,
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        assert_eq!(parse(b"a: \xff"), Err(YamlError::NotText));
    }
}
