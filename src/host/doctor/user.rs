//! The caller and the home directory.

use super::{Check, DoctorFacts, Place};
use crate::host::Kind;

/// What a session needs for its own small files.
const ROOM_WANTED_BYTES: u64 = 16 << 20;

pub(super) fn user(facts: &DoctorFacts) -> Check {
    let user = &facts.user;
    if user.known {
        let groups = match user.groups {
            0 => String::new(),
            count => format!("; {count} supplementary groups, all of which stay"),
        };
        return Check::ok("user", format!("uid {} is in the user database{groups}", user.uid));
    }
    Check::warn(
        "user",
        format!("uid {} is not in the user database: name and home come from the environment", user.uid),
        &["check 'getent passwd' for your id, nsswitch.conf and sssd on this node"],
    )
}

pub(super) fn home(facts: &DoctorFacts) -> Check {
    let name = "home directory";
    let Some(home) = &facts.user.home else {
        return Check::warn(name, "unknown", &["set HOME, or use --no-home"]);
    };
    let path = home.display();
    match facts.user.home_fact.as_ref().map(|fact| &fact.kind) {
        Some(Kind::Directory) => Check::ok(name, path.to_string()),
        Some(Kind::File) => Check::warn(name, format!("{path} is not a directory"), &["use --no-home"]),
        Some(Kind::Unreachable(why)) => {
            let detail = format!("{path}: {why}");
            let place = facts.user.home_place.as_ref();
            match place {
                Some(place) if place.kind == "afs" => {
                    Check::warn(name, detail, &["get a token first: kinit && aklog; or use --no-home"])
                }
                Some(place) if uses_kerberos(place) => Check::warn(
                    name,
                    detail,
                    &["get a ticket first: kinit; in jobs the site must forward it (auks); or use --no-home"],
                ),
                Some(place) if place.is_shared() && facts.user.uid == 0 => Check::warn(
                    name,
                    format!("{detail}: the server maps root to nobody (root_squash)"),
                    &["run hpcrun as the user, not as root; or use --no-home"],
                ),
                _ => Check::warn(name, detail, &["check its permissions, or use --no-home"]),
            }
        }
        Some(Kind::Missing) | None => Check::warn(
            name,
            format!("{path} does not exist on this node"),
            &["mount it here, or use --no-home; launches leave it out"],
        ),
    }
}

/// Where the home lies, and what that kind of file system does to those who come without ticket, as root, or for locks.
pub(super) fn home_file_system(facts: &DoctorFacts) -> Check {
    let name = "home file system";
    let Some(place) = &facts.user.home_place else {
        return Check::not_applicable(name, "unknown");
    };
    let kind = if place.kind.is_empty() { "unknown" } else { place.kind.as_str() };
    let mut notes = Vec::new();
    match kind {
        "afs" => notes.push("the session's token counts in images too"),
        _ if uses_kerberos(place) => notes.push("with Kerberos: needs a ticket on this node (klist)"),
        _ if place.is_shared() && facts.user.uid == 0 => {
            notes.push("root may be nobody there (root_squash): use a user's account for images in it");
        }
        _ => {}
    }
    if lacks_locks(place) {
        notes.push("its locks hold on one node only, or not at all; hpcrun relies on none");
    }
    if place.noexec {
        notes.push("noexec: programs in it cannot be run, inside or outside; images in it can");
    }
    if !place.writable {
        notes.push("not writable for you");
    }
    let notes: String = notes.iter().map(|note| format!("; {note}")).collect();
    let detail = format!("{kind}, {} free{notes}", super::mebibytes(place.free_bytes));
    if place.size_bytes > 0 && place.free_bytes < ROOM_WANTED_BYTES {
        return Check::warn(
            name,
            detail,
            &["remove files there; 'hpcrun gc' finds images that nothing names"],
        );
    }
    Check::ok(name, detail)
}

fn uses_kerberos(place: &Place) -> bool {
    place.option("sec").is_some_and(|sec| sec.starts_with("krb5"))
}

/// NFS without the lock service, and Lustre without its option `flock`.
fn lacks_locks(place: &Place) -> bool {
    match place.kind.as_str() {
        "nfs" | "nfs4" => {
            place.has_option("nolock")
                || place.option("local_lock").is_some_and(|which| matches!(which, "all" | "flock"))
        }
        "lustre" => !place.has_option("flock"),
        _ => false,
    }
}
