//! Options of a launch that come by a variable: hpcrun's own names, then those that scripts have from Apptainer and
//! Singularity.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use clap::ValueEnum;

use crate::host::Environment;
use crate::launch::request::{EnvOption, Joining, RequestError};

/// Prefixes of the names of options, the strongest first.
const OPTION_PREFIXES: [&str; 3] = ["HPCRUN_", "APPTAINER_", "SINGULARITY_"];

/// Prefixes of the names of the job's variables, the weakest first.
const VARIABLE_PREFIXES: [&str; 3] = ["SINGULARITYENV_", "APPTAINERENV_", "HPCRUNENV_"];

/// Beginnings of names, behind a prefix, whose values are joined to what is there.
const JOINED: [(&str, &str, Joining); 4] = [
    ("PREPEND_PATH", "PATH", Joining::Prepend),
    ("APPEND_PATH", "PATH", Joining::Append),
    ("PREPEND_LD_LIBRARY_PATH", "LD_LIBRARY_PATH", Joining::Prepend),
    ("APPEND_LD_LIBRARY_PATH", "LD_LIBRARY_PATH", Joining::Append),
];

/// The environment as a source of options.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ambient<'a>(pub(crate) &'a Environment);

impl<'a> Ambient<'a> {
    /// The strongest of the variables that an option may be given by, if one is set to something: its name and value.
    pub(crate) fn value(&self, names: &[&str]) -> Option<(String, &'a OsStr)> {
        OPTION_PREFIXES.iter().find_map(|prefix| {
            names.iter().find_map(|name| {
                let full = format!("{prefix}{name}");
                let value = crate::host::variable(self.0, &full).filter(|value| !value.is_empty())?;
                Some((full, value))
            })
        })
    }

    /// Whether an option without a value is asked for.
    pub(crate) fn flag(&self, names: &[&str]) -> Result<bool, RequestError> {
        let Some((option, value)) = self.value(names) else { return Ok(false) };
        match value.as_bytes().to_ascii_lowercase().as_slice() {
            b"1" | b"true" | b"t" | b"yes" | b"y" | b"on" => Ok(true),
            b"0" | b"false" | b"f" | b"no" | b"n" | b"off" => Ok(false),
            _ => Err(RequestError::Value {
                option,
                typed: value.to_owned(),
                why: "it is neither true nor false".to_owned(),
                usage: "write 1 or 0",
            }),
        }
    }

    /// One of a few words: as typed, else by a variable.
    pub(crate) fn choice<T: ValueEnum>(
        &self,
        typed: Option<T>,
        names: &[&str],
        usage: &'static str,
    ) -> Result<Option<T>, RequestError> {
        match (typed, self.value(names)) {
            (Some(choice), _) => Ok(Some(choice)),
            (None, None) => Ok(None),
            (None, Some((option, value))) => {
                let wrong = |why| RequestError::Value { option, typed: value.to_owned(), why, usage };
                T::from_str(&value.to_string_lossy(), false).map(Some).map_err(wrong)
            }
        }
    }

    /// The job's variables, weakest first.
    pub(crate) fn variables(&self) -> Result<Vec<EnvOption>, RequestError> {
        let mut options = Vec::new();
        for prefix in VARIABLE_PREFIXES {
            for (full, value) in self.0 {
                let Some(name) = full.as_bytes().strip_prefix(prefix.as_bytes()) else { continue };
                let joined = JOINED.iter().find(|(name_of_list, ..)| name_of_list.as_bytes() == name);
                let (name, joining) = match joined {
                    Some((_, name, joining)) => (name.as_bytes(), *joining),
                    None => (name, Joining::Replace),
                };
                let mut typed = name.to_vec();
                typed.push(b'=');
                typed.extend_from_slice(value.as_bytes());
                let typed = OsString::from_vec(typed);
                let option = EnvOption::parse_from(&full.to_string_lossy(), &typed)?;
                options.push(EnvOption { joining, ..option });
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    #[test]
    fn the_strongest_name_counts() {
        let all = [("SINGULARITY_BIND", "/s"), ("APPTAINER_BINDPATH", "/a"), ("HPCRUN_BIND", "/h")];
        for (number, expected) in
            [(3, "HPCRUN_BIND=/h"), (2, "APPTAINER_BINDPATH=/a"), (1, "SINGULARITY_BIND=/s")]
        {
            let environment = environment(&all[..number]);
            let (name, value) = Ambient(&environment).value(&["BIND", "BINDPATH"]).expect("set");
            assert_eq!(format!("{name}={}", value.display()), expected);
        }
        let empty = environment(&[("HPCRUN_BIND", ""), ("APPTAINER_BIND", "/a")]);
        assert_eq!(Ambient(&empty).value(&["BIND"]).expect("set").0, "APPTAINER_BIND");
    }

    #[test]
    fn flags() {
        for (value, expected) in
            [("1", true), ("TRUE", true), ("yes", true), ("0", false), ("off", false), ("", false)]
        {
            let environment = environment(&[("APPTAINER_CONTAIN", value)]);
            assert_eq!(Ambient(&environment).flag(&["CONTAIN"]).expect("a flag"), expected, "{value}");
        }
        let environment = environment(&[("HPCRUN_CONTAIN", "maybe")]);
        assert!(Ambient(&environment).flag(&["CONTAIN"]).is_err());
    }

    #[test]
    fn variables_of_the_job() {
        let environment = environment(&[
            ("HPCRUNENV_A", "h"),
            ("APPTAINERENV_A", "a"),
            ("APPTAINERENV_PREPEND_PATH", "/opt/bin"),
            ("SINGULARITYENV_B", ""),
            ("APPTAINER_C", "no"),
        ]);
        let options = Ambient(&environment).variables().expect("variables");
        let found: Vec<String> = options
            .iter()
            .map(|option| {
                let value = option.value.clone().unwrap_or_default();
                format!(
                    "{}: {}={} {:?}",
                    option.option,
                    option.name.display(),
                    value.display(),
                    option.joining
                )
            })
            .collect();
        let expected = [
            "SINGULARITYENV_B: B= Replace",
            "APPTAINERENV_A: A=a Replace",
            "APPTAINERENV_PREPEND_PATH: PATH=/opt/bin Prepend",
            "HPCRUNENV_A: A=h Replace",
        ];
        assert_eq!(found, expected);
    }
}
