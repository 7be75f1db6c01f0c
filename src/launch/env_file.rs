//! Files of variables in Docker's format: `NAME=VALUE` a line, the value as it stands. Pure.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::request::{EnvOption, RequestError};

/// Parses the content of the file `name`.
///
/// White space before a name, empty lines and lines that begin with `#` are skipped, and so is a carriage return at the
/// end of a line. `NAME` alone means the host's value. Nothing else means anything: quotes, dollar signs, backslashes
/// and spaces are part of the value.
pub fn parse(name: &str, content: &[u8]) -> Result<Vec<EnvOption>, RequestError> {
    let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
    let mut options = Vec::new();
    for (number, line) in (1usize..).zip(content.split(|byte| *byte == b'\n')) {
        let line = line.strip_suffix(b"\r").unwrap_or(line).trim_ascii_start();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let mut option = EnvOption::parse_from(&format!("{name}:{number}:"), OsStr::from_bytes(line))?;
        option.option = format!("--env-file {name}");
        options.push(option);
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_taken_as_they_stand() {
        let content = "\u{feff}# comment\n\nA=1\n  B= two words \nC=\"quoted\" $HOME `x` \\n\nD=\nE\nF=a=b\r\n\t#no\nG=#yes";
        let options = parse("job.env", content.as_bytes()).unwrap();
        let found: Vec<(&str, Option<&str>)> = options
            .iter()
            .map(|option| {
                (option.name.to_str().unwrap(), option.value.as_ref().map(|value| value.to_str().unwrap()))
            })
            .collect();
        let expected = [
            ("A", Some("1")),
            ("B", Some(" two words ")),
            ("C", Some("\"quoted\" $HOME `x` \\n")),
            ("D", Some("")),
            ("E", None),
            ("F", Some("a=b")),
            ("G", Some("#yes")),
        ];
        assert_eq!(found, expected);
        assert!(options.iter().all(|option| option.option == "--env-file job.env"));
    }

    #[test]
    fn mistakes_are_shown_with_their_line() {
        for (content, expected) in [
            ("A=1\n=x\n", "cannot understand job.env:2: \"=x\": the name is empty"),
            ("export A=1", "cannot understand job.env:1: \"export A=1\": the name holds white space"),
            ("A=\0", "cannot understand job.env:1: \"A=\\0\": it contains a NUL byte"),
        ] {
            assert_eq!(parse("job.env", content.as_bytes()).unwrap_err().to_string(), expected);
        }
    }
}
