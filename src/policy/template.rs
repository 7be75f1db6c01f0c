//! Text with variables: `/scratch/$USER`.

use std::ffi::{OsStr, OsString};
use std::fmt;

/// Variables that come from the user database and the kernel, and that a user cannot choose.
pub const TRUSTED_VARIABLES: [&str; 6] = ["USER", "HOME", "UID", "GID", "GROUP", "HOSTNAME"];

/// A piece of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Variable(String),
}

/// Text in which `$NAME` and `${NAME}` stand for a value and `$$` for a dollar sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    text: String,
    pieces: Vec<Piece>,
}

/// What a template's variables stand for.
pub trait Lookup {
    /// The value of the variable, and whether the user could have chosen it.
    fn lookup(&self, name: &str) -> Option<(OsString, Origin)>;
}

/// Who chose a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The site: the policy's own text, the user database, the kernel.
    Site,
    /// The user's environment.
    Environment,
}

/// A template with its variables replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expanded {
    /// The bytes.
    pub text: OsString,
    /// [`Origin::Environment`] as soon as one variable came from there.
    pub origin: Origin,
}

/// A variable has no value here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("${0} is not set")]
pub struct Unset(pub String);

impl Template {
    /// Parses `text`.
    ///
    /// # Errors
    ///
    /// What is wrong with a `$`.
    pub fn parse(text: &str) -> Result<Template, String> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            literal.push_str(before);
            if let Some(after) = after.strip_prefix('$') {
                literal.push('$');
                rest = after;
                continue;
            }
            let (name, after) = split_variable(after)?;
            if !literal.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut literal)));
            }
            pieces.push(Piece::Variable(name.to_owned()));
            rest = after;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Text(literal));
        }
        Ok(Template { text: text.to_owned(), pieces })
    }

    /// The variables in it.
    pub fn variables(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Variable(name) => Some(name.as_str()),
            Piece::Text(_) => None,
        })
    }

    /// The text before the first variable.
    pub fn leading_text(&self) -> &str {
        match self.pieces.first() {
            Some(Piece::Text(text)) => text,
            _ => "",
        }
    }

    /// As written in the policy.
    pub fn as_written(&self) -> &str {
        &self.text
    }

    /// Replaces the variables.
    ///
    /// # Errors
    ///
    /// The first variable that has no value.
    pub fn expand(&self, variables: &dyn Lookup) -> Result<Expanded, Unset> {
        let mut expanded = Expanded { text: OsString::new(), origin: Origin::Site };
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => expanded.text.push(OsStr::new(text)),
                Piece::Variable(name) => {
                    let (value, origin) = variables.lookup(name).ok_or_else(|| Unset(name.clone()))?;
                    expanded.text.push(value);
                    if origin == Origin::Environment {
                        expanded.origin = Origin::Environment;
                    }
                }
            }
        }
        Ok(expanded)
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The variable's name after a `$`, and what follows it.
fn split_variable(after: &str) -> Result<(&str, &str), String> {
    if let Some(braced) = after.strip_prefix('{') {
        let (name, after) = braced.split_once('}').ok_or("a '${' without its '}'")?;
        if !is_variable_name(name) {
            return Err(format!("'${{{name}}}' is not a variable"));
        }
        return Ok((name, after));
    }
    let end = after.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(after.len());
    let (name, after) = after.split_at_checked(end).unwrap_or((after, ""));
    if !is_variable_name(name) {
        return Err("a '$' without a variable's name; a dollar sign is written '$$'".to_owned());
    }
    Ok((name, after))
}

fn is_variable_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Values;

    impl Lookup for Values {
        fn lookup(&self, name: &str) -> Option<(OsString, Origin)> {
            match name {
                "USER" => Some(("ada".into(), Origin::Site)),
                "EMPTY" => Some(("".into(), Origin::Site)),
                "SCRATCH" => Some(("/fast/$USER".into(), Origin::Environment)),
                _ => None,
            }
        }
    }

    #[test]
    fn expansion() {
        use Origin::{Environment, Site};
        for (text, expected, origin) in [
            ("", "", Site),
            ("/plain", "/plain", Site),
            ("/home/$USER", "/home/ada", Site),
            ("/home/${USER}", "/home/ada", Site),
            ("$USER", "ada", Site),
            ("${USER}${USER}", "adaada", Site),
            ("$USER-x", "ada-x", Site),
            ("${USER}x", "adax", Site),
            ("$$USER", "$USER", Site),
            ("a$$$USER", "a$ada", Site),
            ("$$", "$", Site),
            ("x$EMPTY/y", "x/y", Site),
            // A value is not expanded again: the user's environment cannot smuggle variables in.
            ("$SCRATCH/x", "/fast/$USER/x", Environment),
            ("$USER$SCRATCH", "ada/fast/$USER", Environment),
        ] {
            let expanded = Template::parse(text).unwrap().expand(&Values).unwrap();
            assert_eq!(expanded, Expanded { text: expected.into(), origin }, "{text}");
        }
    }

    #[test]
    fn unset_variables_are_named() {
        for text in ["$NONE", "/a/${NONE}/b", "$USER$NONE", "$USERX$NONE"] {
            let unset = Template::parse(text).unwrap().expand(&Values).unwrap_err();
            assert!(unset.to_string().ends_with("is not set"), "{text}");
        }
    }

    #[test]
    fn broken_templates() {
        for text in
            ["$", "a$", "$/x", "$1", "${", "${USER", "${}", "${1A}", "${A-b}", "$ {USER}", "$\u{e9}", "x $ y"]
        {
            assert!(Template::parse(text).is_err(), "{text}");
        }
    }
}
