//! What the site set up: its policy, and the directories that images are kept in.

use std::path::Path;

use super::{Check, Keep, Wanted, mebibytes};
use crate::host::Kind;

/// What became of the site's policy; its reader and its parser are elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyOutcome {
    /// There is none.
    Absent,
    /// It was read and decides.
    Valid,
    /// It stops every launch: the message, and hints.
    Broken(String, Vec<String>),
}

/// The check of the site's policy, which the command line adds once it has tried to read it.
pub fn policy(file: &Path, outcome: &PolicyOutcome) -> Check {
    let name = "site policy";
    let file = file.display();
    match outcome {
        PolicyOutcome::Absent => Check::not_applicable(name, format!("no {file}: hpcrun's defaults apply")),
        PolicyOutcome::Valid => Check::ok(name, file.to_string()),
        PolicyOutcome::Broken(why, hints) => {
            let mut check =
                Check::no(name, why, &["as root: mend the file; every launch is refused until then"]);
            check.remedy.extend(hints.iter().cloned());
            check
        }
    }
}

/// The check of the list of signers of a site that requires signatures: how many keys count now and how many
/// do not, or why it cannot be used with hints.
pub fn signers(file: &Path, found: &Result<(usize, usize), (String, Vec<String>)>) -> Check {
    let name = "signers";
    match found {
        Ok((0, others)) => {
            let why = format!(
                "{} lists no key that may sign images now{}: every launch is refused",
                file.display(),
                if *others == 0 { String::new() } else { format!(" ({others} that may not)") }
            );
            Check::no(name, why, &["as root: list whose keys may sign images there, see docs/signing.md"])
        }
        Ok((keys, others)) => {
            let others = match others {
                0 => String::new(),
                others => format!(", {others} that may not sign images now"),
            };
            Check::ok(name, format!("{keys} in {}{others}; images must be signed", file.display()))
        }
        Err((why, hints)) => {
            let hints: Vec<&str> = hints.iter().map(String::as_str).collect();
            Check::no(name, format!("{why}: every launch is refused"), &hints)
        }
    }
}

/// A directory that images are kept in.
pub fn keep(keep: &Keep) -> Check {
    let path = keep.path.display();
    match (&keep.kind, keep.wanted) {
        (Kind::Missing, Wanted::Own) => match flaw(keep, Wanted::Own) {
            Some((flaw, remedy)) => {
                Check::warn(keep.name, format!("{path} is to be made, but {flaw}"), &[&remedy])
            }
            None => Check::ok(keep.name, format!("{path}, made when first needed")),
        },
        (Kind::Missing, _) => {
            let make = match keep.wanted {
                Wanted::Node => format!("as root: mkdir -m 1777 {path}"),
                _ => format!("as root: mkdir -m 0755 {path}, or mount it on this node"),
            };
            Check::warn(keep.name, format!("{path} does not exist on this node"), &[&make])
        }
        (Kind::Unreachable(why), Wanted::Own) => {
            let remedy = "check its permissions, or name another directory: HPCRUN_STORE=DIR";
            Check::warn(keep.name, format!("{path}: {why}"), &[remedy])
        }
        (Kind::Unreachable(why), _) => {
            Check::warn(keep.name, format!("{path}: {why}"), &[&format!("as root: chmod a+rx {path}")])
        }
        (Kind::File, _) => {
            Check::warn(keep.name, format!("{path} is not a directory"), &[&format!("as root: ls -l {path}")])
        }
        (Kind::Directory, wanted) => match flaw(keep, wanted) {
            Some((flaw, remedy)) => Check::warn(keep.name, flaw, &[&remedy]),
            None => {
                let place = keep.place.as_ref();
                let room = place.map(|place| format!(", {} free", mebibytes(place.free_bytes)));
                Check::ok(keep.name, format!("{path}{}", room.unwrap_or_default()))
            }
        },
    }
}

/// What is wrong with a directory, or with the one that it would be made in, and the remedy.
fn flaw(keep: &Keep, wanted: Wanted) -> Option<(String, String)> {
    let place = keep.place.as_ref();
    let path = place.map_or(&keep.path, |place| &place.path).display();
    let mode = keep.mode.unwrap_or(0);
    if wanted == Wanted::Site && mode & 0o022 != 0 {
        let flaw = format!("{path} can be written by others (mode {mode:04o})");
        return Some((flaw, format!("as root: chmod go-w {path}")));
    }
    if wanted == Wanted::Node && mode & 0o1000 == 0 && mode & 0o002 != 0 {
        let flaw = format!("{path} lets users remove each other's files (mode {mode:04o})");
        return Some((flaw, format!("as root: chmod +t {path}")));
    }
    if wanted == Wanted::Node && place.is_some_and(super::Place::is_shared) {
        let kind = place.map(|place| place.kind.clone()).unwrap_or_default();
        let flaw = format!("{path} is on {kind}, which other nodes share: a cache there saves nothing");
        return Some((flaw, "name a directory on a local disk or tmpfs: [store] node_cache".to_owned()));
    }
    if wanted != Wanted::Site && place.is_some_and(|place| !place.writable) {
        let remedy = match wanted {
            Wanted::Node => format!("as root: chmod 1777 {path}"),
            _ => "name another directory: HPCRUN_STORE=DIR; is the file system mounted read-only?".to_owned(),
        };
        return Some((format!("{path} is not writable for you"), remedy));
    }
    let free = place.map_or(u64::MAX, |place| place.free_bytes);
    if wanted != Wanted::Site && free < keep.room_bytes {
        let flaw =
            format!("{path} has {} free and should have {}", mebibytes(free), mebibytes(keep.room_bytes));
        return Some((flaw, "hpcrun gc; or remove other files there".to_owned()));
    }
    None
}
