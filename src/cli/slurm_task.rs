//! The command line of a task that Slurm's plugin puts into an image, on a Slurm that cannot add words to a task's.
//!
//! The plugin makes hpcrun the task's program and leaves the words that belong before the task's arguments in the
//! environment, with the process that they are meant for: a task prolog, or a job's own hpcrun, is another.

use std::ffi::OsString;

/// The process that the words are meant for.
const PID: &str = "HPCRUN_TASK_PID";
/// A word each, by its number from 0.
const WORD: &str = "HPCRUN_TASK_";

/// The words of this process's command line.
pub(crate) fn command_line() -> Vec<OsString> {
    complete(std::env::args_os().collect(), std::process::id(), |name| std::env::var_os(name))
}

fn complete(
    mut typed: Vec<OsString>,
    pid: u32,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Vec<OsString> {
    if !typed.is_empty() && variable(PID).is_some_and(|meant| meant.to_str() == Some(&pid.to_string())) {
        let words = (0..).map_while(|at| variable(&format!("{WORD}{at}")));
        typed.splice(1..1, words.collect::<Vec<_>>());
    }
    typed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(environment: &[(&str, &str)], expected: &str) {
        let value = |name: &str| {
            environment.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
        };
        let words = complete(["/usr/bin/hpcrun", "-n", "4"].map(OsString::from).to_vec(), 12, value);
        assert_eq!(words.join("|".as_ref()), expected, "{environment:?}");
    }

    #[test]
    fn words_are_taken_by_the_process_that_they_are_meant_for() {
        let words = [("HPCRUN_TASK_0", "exec"), ("HPCRUN_TASK_1", "a b.sqsh"), ("HPCRUN_TASK_2", "./solver")];
        check(&words, "/usr/bin/hpcrun|-n|4");
        for pid in ["", "1", "120", "x"] {
            check(&[&words[..], &[(PID, pid)]].concat(), "/usr/bin/hpcrun|-n|4");
        }
        check(&[&words[..], &[(PID, "12")]].concat(), "/usr/bin/hpcrun|exec|a b.sqsh|./solver|-n|4");
        check(&[(PID, "12")], "/usr/bin/hpcrun|-n|4");
        check(&[(PID, "12"), words[0], words[2]], "/usr/bin/hpcrun|exec|-n|4");
    }
}
