//! The options that the plugin adds to `srun`, `sbatch` and `salloc`, and the command line of hpcrun that they make.

/// Bytes as Slurm passes them: no NUL within.
pub(crate) type Bytes = Vec<u8>;

/// What an option becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// The image file; `none` for no image.
    Image,
    /// The batch script itself runs in the image.
    Script,
    /// An option of hpcrun without a value.
    Flag(&'static str),
    /// An option of hpcrun with this value.
    Value(&'static str),
    /// An option of hpcrun for each element of a list.
    List(&'static str),
    /// Any options of hpcrun.
    Words,
}

/// An option of `srun`.
#[derive(Debug)]
pub(crate) struct Opt {
    /// Its name without the hyphens; `SLURM_` and the name in capitals is its variable.
    pub(crate) name: &'static str,
    /// What its value is called; none where it takes none.
    pub(crate) argument: Option<&'static str>,
    /// Its line in `srun --help`.
    pub(crate) usage: &'static str,
    meaning: Meaning,
}

const fn valued(name: &'static str, argument: &'static str, meaning: Meaning, usage: &'static str) -> Opt {
    Opt { name, argument: Some(argument), usage, meaning }
}

const fn flag(name: &'static str, meaning: Meaning, usage: &'static str) -> Opt {
    Opt { name, argument: None, usage, meaning }
}

/// All of them; the place in this table is the value by which Slurm names an option to the plugin.
pub(crate) const OPTIONS: &[Opt] = &[
    valued("image", "FILE", Meaning::Image, "run the tasks in this image file of hpcrun; none for no image"),
    valued("image-bind", "SPEC", Meaning::Value("--bind"), "host paths to see there: SRC[:DST[:ro]][,...]"),
    valued("image-env", "LIST", Meaning::List("--env"), "variables to set there: NAME[=VALUE][,...]"),
    valued("image-cwd", "DIR", Meaning::Value("--cwd"), "directory of the image to start in"),
    valued("image-home", "SPEC", Meaning::Value("--home"), "another home directory: SRC[:DST]"),
    flag("image-no-home", Meaning::Flag("--no-home"), "leave the home directory out"),
    valued("image-gpu", "MODE", Meaning::Value("--gpu"), "GPU drivers to put into the image"),
    valued("image-mpi", "MODE", Meaning::Value("--mpi"), "what to check or replace of the image's MPI"),
    valued("image-share", "SCOPE", Meaning::Value("--share"), "who shares one container on a node"),
    valued("image-options", "WORDS", Meaning::Words, "more options of 'hpcrun exec', split at spaces"),
    flag("image-script", Meaning::Script, "sbatch: run the batch script itself in the image, too"),
];

impl Opt {
    /// The variable that stands for the option where it is not given.
    pub(crate) fn variable(&self) -> String {
        format!("SLURM_{}", self.name.to_uppercase().replace('-', "_"))
    }

    /// Whether `value` can be one of it; if not, why.
    pub(crate) fn check(&self, value: &[u8]) -> Result<(), String> {
        let wrong = |why: &str| Err(format!("--{}: {why}", self.name));
        match self.meaning {
            Meaning::Script | Meaning::Flag(_) => Ok(()),
            _ if value.is_empty() => wrong("wants a value"),
            Meaning::Image if value.starts_with(b"-") => {
                wrong("not an image file's name; ./ before it makes it one")
            }
            _ => Ok(()),
        }
    }

    /// The option's value as a variable gives it: none where a flag is turned off.
    fn accept_variable(&self, value: Bytes) -> Option<Bytes> {
        let is_off =
            ["", "0", "no", "off", "false"].iter().any(|word| value.eq_ignore_ascii_case(word.as_bytes()));
        match self.meaning {
            Meaning::Script | Meaning::Flag(_) if is_off => None,
            _ if value.is_empty() => None,
            _ => Some(value),
        }
    }
}

/// What is wanted of a task's image.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// The words between `hpcrun` and the task's own command.
    pub(crate) words: Vec<Bytes>,
    /// Whether a batch script runs in the image.
    pub(crate) takes_script: bool,
}

/// The choice that the given values of [`OPTIONS`] make, and where one is missing its variable; none for no image.
pub(crate) fn choose(
    given: &[Option<Bytes>],
    variable: impl Fn(&str) -> Option<Bytes>,
) -> Result<Option<Choice>, String> {
    let mut words = vec![b"exec".to_vec()];
    let (mut image, mut takes_script) = (None, false);
    for (at, option) in OPTIONS.iter().enumerate() {
        let of_variable = || variable(&option.variable()).and_then(|value| option.accept_variable(value));
        let Some(value) = given.get(at).cloned().flatten().or_else(of_variable) else { continue };
        option.check(&value)?;
        match option.meaning {
            Meaning::Image => image = Some(value),
            Meaning::Script => takes_script = true,
            Meaning::Flag(name) => words.push(name.into()),
            Meaning::Value(name) => words.push(assign(name, &value)),
            Meaning::List(name) => {
                words.extend(split(&value, |byte| byte == b',').iter().map(|value| assign(name, value)));
            }
            Meaning::Words => words.extend(split(&value, |byte| byte.is_ascii_whitespace())),
        }
    }
    Ok(image.filter(|image| image != b"none").map(|image| {
        words.push(image);
        Choice { words, takes_script }
    }))
}

fn assign(name: &str, value: &[u8]) -> Bytes {
    [name.as_bytes(), b"=", value].concat()
}

/// The elements between separators, empty ones left out; a backslash takes the next byte as it is.
fn split(value: &[u8], is_separator: impl Fn(u8) -> bool) -> Vec<Bytes> {
    let mut elements = vec![Bytes::new()];
    let mut bytes = value.iter().copied();
    while let Some(byte) = bytes.next() {
        let taken = match byte {
            b'\\' => bytes.next(),
            _ if is_separator(byte) => {
                elements.push(Bytes::new());
                None
            }
            _ => Some(byte),
        };
        if let Some(element) = elements.last_mut() {
            element.extend(taken);
        }
    }
    elements.retain(|element| !element.is_empty());
    elements
}

/// Whether this command is the file of `srun --multi-prog`, as that Slurm shows it to plugins: the file's name and its
/// text, where a line begins with ranks.
pub(crate) fn is_multi_prog(command: &[Bytes]) -> bool {
    let [_, text] = command else { return false };
    let mut lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    let names_ranks = |line: &[u8]| matches!(line.first(), Some(b'0'..=b'9' | b'*' | b'#'));
    text.contains(&b'\n') && lines.all(names_ranks)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that goes wrong should panic")]

    use super::*;

    fn chosen(given: &[(&str, &str)], variables: &[(&str, &str)]) -> Result<Option<(String, bool)>, String> {
        let value = |name: &str, from: &[(&str, &str)]| {
            from.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_bytes().to_vec())
        };
        let given: Vec<_> = OPTIONS.iter().map(|option| value(option.name, given)).collect();
        let choice = choose(&given, |name| value(name, variables))?;
        Ok(choice.map(|choice| (String::from_utf8(choice.words.join(&b'|')).unwrap(), choice.takes_script)))
    }

    #[track_caller]
    fn check(given: &[(&str, &str)], variables: &[(&str, &str)], expected: Option<&str>) {
        let found = chosen(given, variables).unwrap().map(|(words, _)| words);
        assert_eq!(found.as_deref(), expected, "{given:?} {variables:?}");
    }

    #[test]
    fn command_lines() {
        check(&[], &[], None);
        check(&[("image", "app.sqsh")], &[], Some("exec|app.sqsh"));
        check(&[("image", "none"), ("image-bind", "/a")], &[], None);
        check(&[("image-bind", "/a")], &[], None);
        check(&[("image", "i"), ("image-bind", "/a:/b:ro,/c")], &[], Some("exec|--bind=/a:/b:ro,/c|i"));
        check(
            &[("image", "i"), ("image-env", "A=1,B,C=x y")],
            &[],
            Some("exec|--env=A=1|--env=B|--env=C=x y|i"),
        );
        check(&[("image", "i"), ("image-env", r"A=1\,2,B=\\")], &[], Some(r"exec|--env=A=1,2|--env=B=\|i"));
        check(&[("image", "i"), ("image-no-home", "")], &[], Some("exec|--no-home|i"));
        check(
            &[("image", "i"), ("image-cwd", "/w"), ("image-gpu", "none")],
            &[],
            Some("exec|--cwd=/w|--gpu=none|i"),
        );
        check(
            &[("image", "i"), ("image-options", r" --contain  --overlay=/a\ b ")],
            &[],
            Some("exec|--contain|--overlay=/a b|i"),
        );
    }

    #[test]
    fn variables_stand_for_options() {
        check(&[], &[("SLURM_IMAGE", "i")], Some("exec|i"));
        check(&[], &[("SLURM_IMAGE", "")], None);
        check(&[("image", "j")], &[("SLURM_IMAGE", "i")], Some("exec|j"));
        check(&[("image", "none")], &[("SLURM_IMAGE", "i")], None);
        for off in ["", "0", "no", "OFF", "false"] {
            check(&[("image", "i")], &[("SLURM_IMAGE_NO_HOME", off)], Some("exec|i"));
        }
        check(&[("image", "i")], &[("SLURM_IMAGE_NO_HOME", "1")], Some("exec|--no-home|i"));
        check(&[("image", "i")], &[("SLURM_IMAGE_BIND", "/a")], Some("exec|--bind=/a|i"));
    }

    #[test]
    fn the_batch_script_is_asked_for() {
        assert!(!chosen(&[("image", "i")], &[]).unwrap().unwrap().1);
        assert!(chosen(&[("image", "i"), ("image-script", "")], &[]).unwrap().unwrap().1);
    }

    #[test]
    fn values_that_cannot_be() {
        for (given, variables) in [
            (vec![("image", "")], vec![]),
            (vec![("image", "-x")], vec![]),
            (vec![("image", "i"), ("image-bind", "")], vec![]),
            (vec![], vec![("SLURM_IMAGE", "--help")]),
        ] {
            assert!(chosen(&given, &variables).is_err(), "{given:?} {variables:?}");
        }
    }

    #[test]
    fn names_fit_and_differ() {
        for (at, option) in OPTIONS.iter().enumerate() {
            // SPANK_OPTION_MAXLEN
            assert!(option.name.len() < 75, "{}", option.name);
            assert!(OPTIONS[..at].iter().all(|other| other.name != option.name), "{}", option.name);
        }
        assert_eq!(OPTIONS[5].variable(), "SLURM_IMAGE_NO_HOME");
    }

    #[test]
    fn multi_prog_is_recognised() {
        let is = |words: &[&str]| {
            is_multi_prog(&words.iter().map(|word| word.as_bytes().to_vec()).collect::<Vec<_>>())
        };
        assert!(is(&["/home/u/multi.conf", "0 echo zero\n1 echo one\n"]));
        assert!(is(&["m", "# both\n0-1 ./a\n* ./b\n"]));
        for words in [
            &["echo"][..],
            &["echo", "0"],
            &["sh", "a\nb\n"],
            &["sh", "-c", "0\n1\n"],
            &["awk", "{ print }\n"],
        ] {
            assert!(!is(words), "{words:?}");
        }
    }
}
