//! Plain assignments in a shell script, taken over without running anything.
//!
//! Understood: `NAME=VALUE` and `export`, with quotes, backslashes, and `$NAME`, `${NAME}`, `${NAME:-WORD}`,
//! `${NAME:+WORD}` and their forms without the colon. Grammar: POSIX.1 Shell Command Language, sections 2.2 and 2.6.2.
//! Any other line is passed over and reported, and what it may have changed counts as unknown from there on.

/// What an unset variable means to a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unset {
    /// It is unset: the script was generated, and asks after the host's variables by rote.
    Empty,
    /// Only the host could tell, so that the line cannot be taken over.
    Unknown,
}

/// Words after which what follows may run not at all, or many times.
const CONTROL: [&str; 12] =
    ["if", "case", "for", "while", "until", "function", "return", "exit", "exec", "select", "{", "("];
/// Compound commands by their first and last word: on one line they reach no further.
const COMPOUNDS: [(&str, &str); 5] =
    [("if", "fi"), ("case", "esac"), ("for", "done"), ("while", "done"), ("until", "done")];
/// Lines that end so go on in the next.
const GOES_ON: [&str; 6] = ["&&", "||", "|", "\\", "{", "("];
/// Names that hpcrun itself decides when the image says nothing.
const DECIDED: [(&str, Option<&str>); 2] = [
    ("PATH", Some("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")),
    ("LD_LIBRARY_PATH", None),
];
/// Characters of a line that a report shows.
const SHOWN_MAX: usize = 80;

/// Longest value, bytes: the kernel passes no longer string to a program (`MAX_ARG_STRLEN`).
const VALUE_MAX: usize = 128 << 10;
/// Bytes of all values together, and how many variables: far more than an environment holds.
const VALUES_MAX: usize = 1 << 20;
const VARIABLES_MAX: usize = 4096;
/// Expansions within expansions.
const DEPTH_MAX: u32 = 16;
/// Lines passed over before the rest is not looked at.
const PASSED_OVER_MAX: usize = 1000;

/// Shell variables, in the order in which they were first named.
#[derive(Debug, Default)]
pub(super) struct Variables(Vec<Variable>);

#[derive(Debug)]
struct Variable {
    name: String,
    /// Nothing when it is unset.
    value: Option<String>,
    is_exported: bool,
    /// A line that was passed over may have changed it.
    is_unsure: bool,
}

impl Variables {
    /// Takes over `NAME=VALUE`, as an image config has it; `NAME` alone is passed over.
    pub(super) fn define(&mut self, entry: &str) {
        if let Some((name, value)) = entry.split_once('=') {
            let variable = self.entry(name);
            variable.value = Some(value.to_owned());
            variable.is_exported = true;
        }
    }

    /// `NAME=VALUE` of all that a program would inherit.
    pub(super) fn exported(&self) -> Vec<String> {
        let inherited = self.0.iter().filter(|variable| variable.is_exported);
        inherited.filter_map(|v| v.value.as_ref().map(|value| format!("{}={value}", v.name))).collect()
    }

    /// Takes over the assignments of a script; gives the lines that it could not take over: `line 3: TEXT`.
    pub(super) fn apply(&mut self, script: &[u8], unset: Unset) -> Vec<String> {
        let Ok(text) = std::str::from_utf8(script) else { return vec!["all of it: not UTF-8".to_owned()] };
        let mut parser = Parser { text, at: 0, variables: self, unset, touched: Vec::new(), depth: 0 };
        let mut passed_over = Vec::new();
        let (mut number, mut counted) = (1, 0);
        while parser.skip_to_statement() {
            let start = parser.at;
            parser.touched.clear();
            parser.depth = 0;
            let statement = if parser.variables.is_too_much() { None } else { parser.statement() };
            match statement {
                Some(assignments) => {
                    for (name, value, is_exported) in assignments {
                        let variable = parser.variables.entry(&name);
                        variable.is_exported |= is_exported;
                        variable.is_unsure &= value.is_none();
                        variable.value = value.or(variable.value.take());
                    }
                }
                None => {
                    let line = parser.pass_over_line(start);
                    let stops = may_reach_further(line)
                        || passed_over.len() + 1 >= PASSED_OVER_MAX
                        || parser.variables.is_too_much();
                    let shown: String = line.trim_end().chars().take(SHOWN_MAX).collect();
                    number += text.get(counted..start).map_or(0, |between| between.matches('\n').count());
                    counted = start;
                    let rest = if stops { " (and all that follows)" } else { "" };
                    passed_over.push(format!("line {number}{rest}: {shown}"));
                    if stops {
                        break;
                    }
                }
            }
        }
        passed_over
    }

    /// Whether a hostile script has made more of them than an environment can hold.
    fn is_too_much(&self) -> bool {
        let bytes =
            || self.0.iter().filter_map(|variable| variable.value.as_ref()).map(String::len).sum::<usize>();
        self.0.len() > VARIABLES_MAX || bytes() > VALUES_MAX
    }

    fn find(&self, name: &str) -> Option<&Variable> {
        self.0.iter().find(|variable| variable.name == name)
    }

    #[expect(clippy::indexing_slicing, reason = "the position of a variable that was found or just added")]
    fn entry(&mut self, name: &str) -> &mut Variable {
        let at = self.0.iter().position(|variable| variable.name == name).unwrap_or(self.0.len());
        if at == self.0.len() {
            let name = name.to_owned();
            self.0.push(Variable { name, value: None, is_exported: false, is_unsure: false });
        }
        &mut self.0[at]
    }
}

/// Whether a line that was not understood may decide about the lines behind it.
fn may_reach_further(line: &str) -> bool {
    let first = line.split([' ', '\t', ';']).next().unwrap_or_default();
    let trimmed = line.trim_end();
    let last = trimmed.rsplit([' ', '\t', ';']).next().unwrap_or_default();
    let quotes = |mark: char| line.matches(mark).count() % 2 == 1;
    CONTROL.contains(&first) && !COMPOUNDS.contains(&(first, last))
        || first.starts_with('(')
        || first.contains("()")
        || line.matches('(').count() != line.matches(')').count()
        || line.contains("<<")
        || GOES_ON.iter().any(|end| trimmed.ends_with(end))
        || quotes('"')
        || quotes('\'')
}

/// A name, its value if one is assigned, and whether it is exported.
type Assignment = (String, Option<String>, bool);

struct Parser<'a> {
    text: &'a str,
    at: usize,
    variables: &'a mut Variables,
    unset: Unset,
    /// Names that the present statement assigns to.
    touched: Vec<String>,
    /// Expansions that the present one is within.
    depth: u32,
}

/// Each method gives nothing where the text is not plain.
impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn take(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        Some(next)
    }

    fn skip(&mut self, text: &str) -> bool {
        let is_there = self.rest().starts_with(text);
        if is_there {
            self.at += text.len();
        }
        is_there
    }

    fn skip_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let length = rest.find(|c| !wanted(c)).unwrap_or(rest.len());
        self.at += length;
        rest.get(..length).unwrap_or_default()
    }

    /// Stands in front of the next statement; false at the end.
    fn skip_to_statement(&mut self) -> bool {
        loop {
            self.skip_while(|c| c == ' ' || c == '\t' || c == '\n');
            match self.peek() {
                None => return false,
                Some('#') => drop(self.skip_while(|c| c != '\n')),
                Some(_) => return true,
            }
        }
    }

    /// Gives up on the statement at `start`: it and the rest of its line are passed over.
    fn pass_over_line(&mut self, start: usize) -> &'a str {
        self.at = start;
        let line = self.skip_while(|c| c != '\n');
        let words = line.split([' ', '\t', ';']).filter_map(|word| word.split_once('='));
        let named = words.map(|(name, _)| name.trim_end_matches('+')).filter(|name| is_name(name));
        for name in named.map(str::to_owned).chain(std::mem::take(&mut self.touched)) {
            self.variables.entry(&name).is_unsure = true;
        }
        line
    }

    fn statement(&mut self) -> Option<Vec<Assignment>> {
        let is_exported = self.rest().starts_with("export ") || self.rest().starts_with("export\t");
        if is_exported {
            self.skip("export");
        }
        let mut assignments = Vec::new();
        loop {
            self.skip_while(|c| c == ' ' || c == '\t');
            match self.peek() {
                None | Some('\n') => break,
                Some('#') => drop(self.skip_while(|c| c != '\n')),
                Some(';') => {
                    self.take();
                    if self.peek() == Some(';') {
                        return None;
                    }
                    break;
                }
                Some(_) => assignments.push(self.assignment(is_exported)?),
            }
        }
        (!assignments.is_empty()).then_some(assignments)
    }

    fn assignment(&mut self, is_exported: bool) -> Option<Assignment> {
        let name = self.name()?;
        self.touched.push(name.clone());
        if self.skip("=") {
            return Some((name, Some(self.value()?), is_exported));
        }
        // `export NAME`: a word of its own, and a variable that is known.
        let ends = self.peek().is_none_or(|c| " \t\n;".contains(c));
        let is_known = self.variables.find(&name).is_some_and(|variable| !variable.is_unsure);
        (is_exported && ends && is_known).then_some((name, None, true))
    }

    fn name(&mut self) -> Option<String> {
        let name = self.skip_while(|c| c.is_ascii_alphanumeric() || c == '_');
        is_name(name).then(|| name.to_owned())
    }

    /// The value of an assignment, up to the end of its word.
    fn value(&mut self) -> Option<String> {
        let mut value = String::new();
        let mut before = ':';
        while let Some(c) = self.peek().filter(|c| !" \t\n;".contains(*c)) {
            match c {
                '`' | '(' | ')' | '&' | '|' | '<' | '>' | '\0' => return None,
                // A home directory, which only the host knows.
                '~' if before == ':' => return None,
                '\'' => self.single_quoted(&mut value)?,
                '"' => self.double_quoted(&mut value)?,
                '$' => self.expansion(&mut value, false)?,
                '\\' => {
                    self.take();
                    value.extend(self.take().filter(|c| *c != '\n'));
                }
                _ => value.extend(self.take()),
            }
            before = c;
        }
        Some(value)
    }

    fn single_quoted(&mut self, value: &mut String) -> Option<()> {
        self.take();
        value.push_str(self.skip_while(|c| c != '\'' && c != '\0'));
        self.skip("'").then_some(())
    }

    fn double_quoted(&mut self, value: &mut String) -> Option<()> {
        self.take();
        loop {
            match self.peek()? {
                '"' => {
                    self.take();
                    return Some(());
                }
                '`' | '\0' => return None,
                '$' => self.expansion(value, true)?,
                '\\' => self.backslash_in_quotes(value, "$`\"\\")?,
                _ => value.extend(self.take()),
            }
        }
    }

    /// Inside double quotes a backslash is itself, unless it protects one of `special`.
    fn backslash_in_quotes(&mut self, value: &mut String, special: &str) -> Option<()> {
        self.take();
        match self.take()? {
            '\n' => {}
            c if special.contains(c) => value.push(c),
            c => value.extend(['\\', c]),
        }
        Some(())
    }

    fn expansion(&mut self, value: &mut String, is_quoted: bool) -> Option<()> {
        if self.depth >= DEPTH_MAX {
            return None;
        }
        self.depth += 1;
        self.expand(value, is_quoted)?;
        self.depth -= 1;
        (value.len() <= VALUE_MAX).then_some(())
    }

    fn expand(&mut self, value: &mut String, is_quoted: bool) -> Option<()> {
        self.take();
        match self.peek() {
            Some('{') => {
                self.take();
                let name = self.name()?;
                let is_for_empty = self.skip(":");
                let operator = self.take()?;
                if operator == '}' && !is_for_empty {
                    value.push_str(&self.look_up(&name)?.unwrap_or_default());
                    return Some(());
                }
                let found = self.look_up(&name)?.filter(|text| !(is_for_empty && text.is_empty()));
                let word = self.word_in_braces(is_quoted)?;
                match (operator, found) {
                    ('-', Some(found)) => value.push_str(&found),
                    ('-', None) | ('+', Some(_)) => value.push_str(&word),
                    ('+', None) => {}
                    _ => return None,
                }
            }
            Some(c) if c.is_ascii_alphabetic() || c == '_' => {
                let name = self.name()?;
                value.push_str(&self.look_up(&name)?.unwrap_or_default());
            }
            Some(c) if c.is_ascii_digit() || "(@*#?$!-'\"".contains(c) => return None,
            _ => value.push('$'),
        }
        Some(())
    }

    /// The word of `${NAME:-WORD}`, closing brace included.
    fn word_in_braces(&mut self, is_quoted: bool) -> Option<String> {
        let mut word = String::new();
        loop {
            match self.peek()? {
                '}' => {
                    self.take();
                    return Some(word);
                }
                '`' | '\0' => return None,
                '"' => self.double_quoted(&mut word)?,
                '\'' if !is_quoted => self.single_quoted(&mut word)?,
                '$' => self.expansion(&mut word, is_quoted)?,
                '\\' => self.backslash_in_quotes(&mut word, "$`\"\\}")?,
                _ => word.extend(self.take()),
            }
        }
    }

    /// A variable's value, or that it is unset; nothing where that cannot be known.
    fn look_up(&self, name: &str) -> Option<Option<String>> {
        // Shells differ in whether a statement sees its own assignments.
        let (_, before) = self.touched.split_last()?;
        if before.iter().any(|touched| touched == name) {
            return None;
        }
        match (self.variables.find(name), self.unset) {
            (Some(variable), _) if variable.is_unsure => None,
            (Some(variable), _) => Some(variable.value.clone()),
            (None, Unset::Empty) => Some(None),
            (None, Unset::Unknown) => DECIDED
                .iter()
                .find(|(decided, _)| *decided == name)
                .map(|(_, value)| value.map(str::to_owned)),
        }
    }
}

fn is_name(text: &str) -> bool {
    let mut characters = text.chars();
    characters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && characters.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is exported after a script, and how many lines were passed over.
    fn after(script: &str, unset: Unset) -> (Vec<String>, usize) {
        let mut variables = Variables::default();
        variables.define("PATH=/image/bin");
        variables.define("A=a");
        let passed_over = variables.apply(script.as_bytes(), unset).len();
        let mut exported = variables.exported();
        exported.retain(|entry| entry != "A=a" && entry != "PATH=/image/bin");
        (exported, passed_over)
    }

    #[test]
    fn plain_assignments_are_taken_over() {
        for (script, expected) in [
            ("export X=1", &["X=1"][..]),
            ("  \texport  X=1   Y=2 # both\n", &["X=1", "Y=2"]),
            ("X=1", &[]),
            ("X=1\nexport X", &["X=1"]),
            ("X=1; export X; Y=2;\n", &["X=1"]),
            ("export X=1\nX=2", &["X=2"]),
            ("#!/bin/sh\n# a comment\n\nexport X=", &["X="]),
            ("export X='a $A `b` \"c\"'", &["X=a $A `b` \"c\""]),
            ("export X=\"a  b\"'  c'd", &["X=a  b  cd"]),
            (r#"export X="\$A \`b\` \"c\" \\ \n""#, &[r#"X=$A `b` "c" \ \n"#]),
            (r"export X=a\ b\\c", &[r"X=a b\c"]),
            ("export X=a\\\nb", &["X=ab"]),
            ("export X=\"two\nlines\"", &["X=two\nlines"]),
            ("export X=$A-${A}", &["X=a-a"]),
            ("PATH=/x:$PATH", &["PATH=/x:/image/bin"]),
            ("export X=1 PATH=/x:$PATH", &["PATH=/x:/image/bin", "X=1"]),
            ("export X=\"${A:-b}${A-b}${A:+c}${A+c}\"", &["X=aacc"]),
            ("export LD_LIBRARY_PATH=/l:$LD_LIBRARY_PATH", &["LD_LIBRARY_PATH=/l:"]),
            ("export LD_LIBRARY_PATH=/l${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}", &["LD_LIBRARY_PATH=/l"]),
            ("export X=50% Y=a#b Z={1,2} W=*", &["X=50%", "Y=a#b", "Z={1,2}", "W=*"]),
            ("export X=$ Y=\"$ $%\"", &["X=$", "Y=$ $%"]),
            ("E=; export X=${E:-empty} Y=${E-unset}", &["X=empty", "Y="]),
        ] {
            assert_eq!(
                after(script, Unset::Unknown),
                (expected.iter().map(|x| (*x).to_owned()).collect(), 0),
                "{script}"
            );
        }
    }

    /// What Apptainer 1.4.5 made of docker images, where shells agree about it.
    #[test]
    fn generated_scripts_are_taken_over() {
        for (line, expected) in [
            (r#"export PLAIN="${PLAIN:-"value"}""#, "PLAIN=value"),
            (r#"export SPACES="${SPACES:-"a b  c"}""#, "SPACES=a b  c"),
            (r#"export EMPTY="${EMPTY:-""}""#, "EMPTY="),
            (r#"export BRACE="${BRACE:-"}x{"}""#, "BRACE=}x{"),
            (r#"export EQ="${EQ:-"a=b=c"}""#, "EQ=a=b=c"),
            (r#"export QUOTES="${QUOTES:-"say \"hi\" it's"}""#, r#"QUOTES=say "hi" it's"#),
            ("export UNI=\"${UNI:-\"\u{fc}\u{20ac}\"}\"", "UNI=\u{fc}\u{20ac}"),
            (r#"export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-"/opt/lib"}""#, "LD_LIBRARY_PATH=/opt/lib"),
            ("export INHERITED=\"${INHERITED:-}\"", "INHERITED="),
        ] {
            assert_eq!(after(line, Unset::Empty), (vec![expected.to_owned()], 0), "{line}");
        }
    }

    #[test]
    fn what_only_a_shell_or_the_host_knows_is_passed_over() {
        for line in [
            "export X=$(date)",
            "export X=`date`",
            "export X=\"$(date)\"",
            "export X=$HOME/x",
            "export X=${HOME:-/}",
            "export X=~/x",
            "export X=a:~/x",
            "export X=$((1 + 2))",
            "export X=$1",
            "export X=\"$@\"",
            "export X=${A%a}",
            "export X=${#A}",
            "export X=${A:=b}",
            "export X=1 && true",
            "[ -n \"$Y\" ] && export X=1",
            "X=1 command",
            "export X=$'a'",
            "source /opt/env.sh",
            ". /opt/env.sh",
            "export -f x",
            "export X=1 &",
            "export Y",
            "X+=1",
            "unset X",
            "export X=\"open",
            "export X='open",
            "export X=${A",
            "A=b X=$A",
            "export X=a\0b",
        ] {
            let (exported, passed_over) = after(line, Unset::Unknown);
            assert!(exported.is_empty() && passed_over == 1, "{line}: {exported:?}");
        }
    }

    #[test]
    fn a_line_of_its_own_is_passed_over_alone() {
        for line in [
            "N=$(nproc)",
            "source /opt/env.sh",
            "ulimit -s unlimited",
            "export N=$(a | b)",
            "true; true",
            "if [ -n \"$Y\" ]; then export Y=1; fi",
        ] {
            let (exported, passed_over) = after(&format!("{line}\nexport X=1"), Unset::Unknown);
            assert_eq!((exported, passed_over), (vec!["X=1".to_owned()], 1), "{line}");
        }
    }

    #[test]
    fn a_line_passed_over_spoils_what_it_names() {
        let script =
            "export N=$(nproc)\nexport M=$N\nexport A=$(x)\nexport B=$A\nexport C=c\nN=1\nexport D=$N";
        let (exported, passed_over) = after(script, Unset::Unknown);
        assert_eq!((exported, passed_over), (vec!["C=c".to_owned(), "D=1".to_owned()], 4));
    }

    #[test]
    fn nothing_is_taken_from_behind_a_condition() {
        for script in [
            "if true; then\n  export X=1\nfi",
            "while true; do\nexport X=1\ndone",
            "f() {\nexport X=1\n}",
            "{\nexport X=1\n}",
            "false &&\nexport X=1",
            "cat <<END\nexport X=1\nEND",
            "return\nexport X=1",
            "case x in\ny) export X=1;;\nesac",
            "echo \"\nexport X=1\n\"",
            "echo \\\nexport X=1",
            "Y=$(cat\nexport X=1\n)",
            "(\nexport X=1\n)",
        ] {
            let (exported, passed_over) = after(script, Unset::Unknown);
            assert!(exported.is_empty() && passed_over == 1, "{script}: {exported:?}");
        }
        let mut variables = Variables::default();
        let said = variables.apply(b"\nexport X=1\nif true; then\nexport Y=1\nfi", Unset::Unknown);
        assert_eq!(said, ["line 3 (and all that follows): if true; then"]);
        assert_eq!(variables.apply(b"\xff", Unset::Unknown), ["all of it: not UTF-8"]);
    }

    #[test]
    fn hostile_scripts_end_soon_and_small() {
        let doubling = format!("export A=xx\n{}", "A=$A$A\n".repeat(60));
        let nested = format!("export B={}", "${C:-".repeat(200_000));
        let many = "export D=$(x)\n".repeat(70_000);
        let names = (0..70_000).fold(String::new(), |text, n| text + &format!("V{n}=1\n"));
        for script in [doubling, nested, many, names] {
            let (exported, passed_over) = after(&script, Unset::Unknown);
            assert!(exported.iter().map(String::len).sum::<usize>() <= 2 * VALUE_MAX, "{}", &script[..40]);
            assert!((1..=PASSED_OVER_MAX).contains(&passed_over), "{passed_over}: {}", &script[..40]);
        }
    }

    /// Noise made of what matters to the parser: it ends, and takes over no variable with a NUL.
    #[test]
    fn noise_is_survived() {
        let pieces = [
            "export ", "X", "=", "$", "{", "}", ":-", "\"", "'", "\\", "\n", ";", "`", "(", " ", "\u{20ac}",
            "#", "\0",
        ];
        let mut state = 1_u64;
        for _ in 0..20_000 {
            let mut script = String::new();
            for _ in 0..12 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                script += pieces[usize::try_from(state >> 33).unwrap() % pieces.len()];
            }
            let (exported, _) = after(&script, Unset::Unknown);
            assert!(exported.iter().all(|entry| !entry.contains('\0') && entry.contains('=')), "{script:?}");
        }
    }
}
