//! JSON as registries and hand-made images really have it: `null` for anything, keys in another case.
//!
//! Values are taken out by hand rather than by `derive(Deserialize)`: serde's messages quote the offending value, Go's
//! decoder (the one all images were tested with) reads `null` as "absent" everywhere and ignores the case of keys.

use serde_json::{Map, Value};

/// A member of the wrong type: `config.Env[3]` is not a string.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{at} is not {expected}")]
pub struct WrongType {
    /// Which member.
    pub at: String,
    /// What it should be, with its article: `a string`.
    pub expected: &'static str,
}

fn wrong(at: &str, expected: &'static str) -> WrongType {
    WrongType { at: at.to_owned(), expected }
}

/// The member called `key`, exactly or, failing that, in any case; `null` counts as absent.
pub(super) fn member<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    object
        .get(key)
        .or_else(|| object.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value))
        .filter(|value| !value.is_null())
}

/// The string member `key`; empty when absent.
pub(super) fn string(object: &Map<String, Value>, key: &str, at: &str) -> Result<String, WrongType> {
    match member(object, key) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(wrong(&format!("{at}{key}"), "a string")),
    }
}

/// The array member `key`; empty when absent.
pub(super) fn array<'a>(
    object: &'a Map<String, Value>,
    key: &str,
    at: &str,
) -> Result<&'a [Value], WrongType> {
    match member(object, key) {
        None => Ok(&[]),
        Some(Value::Array(items)) => Ok(items),
        Some(_) => Err(wrong(&format!("{at}{key}"), "an array")),
    }
}

/// The object member `key`; none when absent.
pub(super) fn object<'a>(
    parent: &'a Map<String, Value>,
    key: &str,
    at: &str,
) -> Result<Option<&'a Map<String, Value>>, WrongType> {
    match member(parent, key) {
        None => Ok(None),
        Some(Value::Object(members)) => Ok(Some(members)),
        Some(_) => Err(wrong(&format!("{at}{key}"), "an object")),
    }
}

/// The array of strings `key`; a lone string counts as an array of one, as Docker's `strslice` reads it.
pub(super) fn strings(object: &Map<String, Value>, key: &str, at: &str) -> Result<Vec<String>, WrongType> {
    if let Some(Value::String(text)) = member(object, key) {
        return Ok(vec![text.clone()]);
    }
    let items = array(object, key, at)?.iter().enumerate();
    items
        .filter(|(_, item)| !item.is_null())
        .map(|(index, item)| match item {
            Value::String(text) => Ok(text.clone()),
            _ => Err(wrong(&format!("{at}{key}[{index}]"), "a string")),
        })
        .collect()
}

/// The map of strings `key`, sorted; numbers and booleans are taken as their text, `null` as empty.
pub(super) fn string_map(
    parent: &Map<String, Value>,
    key: &str,
    at: &str,
) -> Result<Vec<(String, String)>, WrongType> {
    let Some(members) = object(parent, key, at)? else { return Ok(Vec::new()) };
    let mut pairs = Vec::with_capacity(members.len());
    for (name, value) in members {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            Value::Bool(_) | Value::Number(_) => value.to_string(),
            Value::Array(_) | Value::Object(_) => {
                return Err(wrong(&format!("{at}{key}.{name}"), "a string"));
            }
        };
        pairs.push((name.clone(), text));
    }
    pairs.sort();
    Ok(pairs)
}
