//! Who wins where binds meet: at one destination, and one inside another. Pure.

use std::path::PathBuf;

use super::binds::{Bind, Binds, Party, Shown, parent};
use super::plan::PlanError;
use crate::host::{Host, Kind};
use crate::mount::plan::{Need, Reason};
use crate::policy::path::is_within;
use crate::policy::{Refusal, Rule};

/// One bind for each destination: the strongest party's.
pub fn settle(wanted: Vec<Bind>, notes: &mut Vec<String>) -> Result<Vec<Bind>, PlanError> {
    let mut settled: Vec<Bind> = Vec::new();
    for bind in wanted {
        match settled.iter_mut().find(|other| other.destination == bind.destination) {
            None => settled.push(bind),
            Some(other) => *other = stronger(other.clone(), bind)?,
        }
    }
    let forced: Vec<Bind> = settled.iter().filter(|bind| bind.party == Party::Forced).cloned().collect();
    for bind in settled.iter().filter(|bind| is_users(bind.party)) {
        if let Some(above) = forced.iter().find(|forced| is_within(&bind.destination, &forced.destination)) {
            return Err(covers(bind, above));
        }
    }
    let all = settled.clone();
    settled.retain(|bind| stays(bind, &all, notes));
    Ok(settled)
}

fn is_users(party: Party) -> bool {
    matches!(party, Party::User | Party::Ambient)
}

/// Of two binds of one destination the one that counts.
fn stronger(a: Bind, b: Bind) -> Result<Bind, PlanError> {
    let (weak, strong) = if a.party <= b.party { (a, b) } else { (b, a) };
    let same = weak.shown == strong.shown && weak.access == strong.access;
    match (weak.party, strong.party) {
        _ if same => Ok(strong),
        (Party::User | Party::Ambient, Party::Forced) => Err(covers(&weak, &strong)),
        (weak_party, strong_party) if weak_party == strong_party && weak_party != Party::Default => {
            Err(PlanError::SameDestination {
                path: strong.destination,
                first: weak.reason,
                second: strong.reason,
            })
        }
        _ => Ok(strong),
    }
}

/// The refusal of a user's bind that would hide what the site forces.
fn covers(bind: &Bind, forced: &Bind) -> PlanError {
    let (file, line) = match &forced.reason {
        Reason::Policy { file, line } => (file.clone(), *line),
        _ => (PathBuf::new(), 0),
    };
    let rule = Rule { file, line, key: "[binds] forced" };
    PlanError::Refused(Refusal {
        what: format!("{} would cover {}", bind.reason, forced.destination.display()),
        rule,
        allowed: "choose another destination".to_owned(),
    })
}

/// A weaker party's bind does not go into a stronger one's: whoever bound the parent decided what is in it.
fn stays(bind: &Bind, all: &[Bind], notes: &mut Vec<String>) -> bool {
    if bind.party >= Party::Ambient {
        return true;
    }
    let Some(above) = parent(all, bind) else {
        return true;
    };
    let rest = bind.destination.strip_prefix(&above.destination).ok();
    let shown = rest.and_then(|rest| above.source().map(|source| source.join(rest)));
    let is_shown = shown.is_some_and(|shown| Some(shown.as_path()) == bind.source());
    if is_shown && above.access == bind.access {
        return false;
    }
    if above.party > bind.party && !is_shown {
        notes.push(format!(
            "{} ({}) left out: inside a bind ({})",
            bind.destination.display(),
            bind.reason,
            above.reason
        ));
        return false;
    }
    true
}

/// Where a bind goes into another bind, the host's tree must have the mount point: nothing is created on the host.
pub fn check_mount_points(binds: &mut Binds, host: &Host) -> Result<(), PlanError> {
    let all = binds.binds.clone();
    let mut missing = Vec::new();
    for bind in &all {
        let Some(above) = parent(&all, bind) else {
            continue;
        };
        let Ok(rest) = bind.destination.strip_prefix(&above.destination) else {
            continue;
        };
        let on_host = match &above.shown {
            Shown::Host { path, .. } => path.join(rest),
            // It is made with its mount points.
            Shown::Memory { .. } => continue,
            // What is in there is found out by the enactment.
            Shown::Image(_) | Shown::Processes => continue,
        };
        // What was not asked about is left to the enactment, which finds out.
        if host.paths.get(&on_host).is_none_or(|fact| fact.kind != Kind::Missing) {
            continue;
        }
        if bind.need() != Need::Optional {
            return Err(PlanError::MountPoint {
                path: bind.destination.clone(),
                on_host,
                reason: bind.reason.clone(),
            });
        }
        missing.push(bind.destination.clone());
        let destination = bind.destination.display();
        binds.notes.push(format!(
            "{destination} ({}) left out: no {} on the host",
            bind.reason,
            on_host.display()
        ));
    }
    binds.binds.retain(|bind| !missing.contains(&bind.destination));
    Ok(())
}
