//! Fits a plan to the image's tree: destinations without symbolic links, and only the grafts that are needed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::plan::LaunchPlan;
use crate::hint::Hint;
use crate::mount::graft::Graft;
use crate::mount::plan::{Op, PlannedOp, Reason};
use crate::policy::path::is_within;

/// A plan that does not fit the image.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError<E: std::error::Error + 'static> {
    /// The image cannot be given what the plan adds.
    #[error("cannot add {} to the image", path.display())]
    Graft {
        /// As planned.
        path: PathBuf,
        /// The cause.
        source: E,
    },
    /// A link of the image leads a bind to where it may not be.
    #[error("a link of the image leads {} to {}, which {}", path.display(), resolved.display(), why)]
    Astray {
        /// As planned.
        path: PathBuf,
        /// Where it led.
        resolved: PathBuf,
        /// What is wrong with that place.
        why: String,
    },
}

impl<E: std::error::Error + 'static> Hint for ResolveError<E> {
    fn hints(&self) -> Vec<String> {
        match self {
            ResolveError::Graft { .. } => Vec::new(),
            ResolveError::Astray { path, .. } => {
                vec![format!("bind to another place than {}", path.display())]
            }
        }
    }
}

/// Resolves every destination of `plan` through `add`, which adds a graft to the image's tree and gives the path
/// without links (as [`crate::mount::graft::Grafts::add`] does), parents first.
///
/// A destination inside another bind is not the image's to resolve: it follows its parent, its mount point must exist
/// on the host, and its graft is dropped. Where links bring two binds to one place, the site's wins over the user's
/// and the user's over a default.
///
/// # Errors
///
/// What `add` says, and a link that leads a bind onto the root, into `/dev`, `/proc` or `/sys`, or a user's into what the
/// site forces. An optional bind so led, or refused by `add`, is left out instead, with a note.
pub fn resolve<E: std::error::Error + 'static>(
    plan: &mut LaunchPlan,
    mut add: impl FnMut(&Path, &Graft) -> Result<PathBuf, E>,
) -> Result<(), ResolveError<E>> {
    let mut grafts: BTreeMap<PathBuf, Graft> = std::mem::take(&mut plan.grafts).into_iter().collect();
    let mut kept = Vec::new();
    // Parents come first in the plan, so a child finds its parent here.
    let mut places: Vec<Place> = Vec::new();
    let mut left_out: Vec<PathBuf> = Vec::new();
    for planned in &mut plan.mount.ops {
        // Without a private directory the image's own is seen, not the host's.
        let is_optional = planned.op.is_optional() || matches!(planned.op, Op::Tmpfs { .. });
        let Some(destination) = planned.op.destination_mut() else {
            continue;
        };
        let asked = destination.clone();
        let graft = grafts.remove(&asked);
        let resolved = match (followed(&places, &asked), graft) {
            (Some(followed), _) => followed,
            (None, None) => asked.clone(),
            (None, Some(graft)) => match add(&asked, &graft) {
                Ok(resolved) => {
                    kept.push((resolved.clone(), graft));
                    resolved
                }
                // An image whose /etc/hosts leads to a directory does without the host's.
                Err(source) if is_optional => {
                    left_out.push(asked.clone());
                    plan.about.notes.push(format!("{} left out: {source}", asked.display()));
                    continue;
                }
                Err(source) => return Err(ResolveError::Graft { path: asked, source }),
            },
        };
        destination.clone_from(&resolved);
        let is_users = matches!(planned.reason, Reason::Flag(_));
        let is_forced = plan.about.forced.contains(&asked);
        places.push(Place { asked, resolved, is_users, is_forced, is_optional });
    }
    plan.mount
        .ops
        .retain(|planned| self::place(planned).is_none_or(|at| !left_out.iter().any(|out| out == at)));
    let mut verdicts = Vec::new();
    for place in &places {
        verdicts.push(match astray(place, &places) {
            None => true,
            Some(why) => {
                let (path, resolved) = (place.asked.clone(), place.resolved.clone());
                let astray = ResolveError::Astray { path, resolved, why };
                if !place.is_optional {
                    return Err(astray);
                }
                // An image whose /tmp is a link to /dev/shm has what it wants without a bind.
                plan.about.notes.push(format!("{} left out: {astray}", place.asked.display()));
                false
            }
        });
    }
    let mut verdicts = verdicts.into_iter();
    plan.mount.ops.retain(|planned| self::place(planned).is_none() || verdicts.next().unwrap_or(true));
    for (path, graft) in grafts {
        if followed(&places, &path).is_some() {
            continue;
        }
        let resolved = add(&path, &graft).map_err(|source| ResolveError::Graft { path, source })?;
        kept.push((resolved, graft));
    }
    plan.grafts = kept;
    order(&mut plan.mount.ops);
    Ok(())
}

/// A bind's destination before and after.
struct Place {
    asked: PathBuf,
    resolved: PathBuf,
    is_users: bool,
    is_forced: bool,
    is_optional: bool,
}

/// Where `path` is when it lies inside a bind: at the same place below where that bind went.
fn followed(places: &[Place], path: &Path) -> Option<PathBuf> {
    let above = places.iter().filter(|place| is_within(path, &place.asked));
    let above = above.max_by_key(|place| place.asked.components().count())?;
    let rest = path.strip_prefix(&above.asked).ok()?;
    Some(if rest.as_os_str().is_empty() { above.resolved.clone() } else { above.resolved.join(rest) })
}

/// What is wrong with where a bind was led: what the plan ensured for the place as asked must hold where it is now.
fn astray(place: &Place, all: &[Place]) -> Option<String> {
    let Place { asked, resolved, .. } = place;
    if asked != resolved {
        if resolved == Path::new("/") {
            return Some("nothing can be bound onto".to_owned());
        }
        let is_led_into = |system: &Path| is_within(resolved, system) && !is_within(asked, system);
        if ["/dev", "/proc", "/sys"].map(Path::new).into_iter().any(is_led_into) {
            return Some("belongs to the host".to_owned());
        }
    }
    let forced = all.iter().find(|other| other.is_forced && is_within(resolved, &other.resolved))?;
    place.is_users.then(|| format!("lies in {}, which the site forces", forced.resolved.display()))
}

/// Sorts the binds by where they are now, and keeps one for each place.
fn order(ops: &mut Vec<PlannedOp>) {
    let is_bind = |planned: &PlannedOp| place(planned).is_some();
    let (mut binds, others): (Vec<PlannedOp>, Vec<PlannedOp>) =
        std::mem::take(ops).into_iter().partition(is_bind);
    binds.sort_by(|a, b| place(a).cmp(&place(b)).then(strength(&b.reason).cmp(&strength(&a.reason))));
    binds.dedup_by(|later, earlier| place(later) == place(earlier));
    // The root comes before the binds, and whatever ends the plan after them.
    let (before, after): (Vec<PlannedOp>, Vec<PlannedOp>) =
        others.into_iter().partition(|planned| matches!(planned.op, Op::Root(_) | Op::Overlay { .. }));
    ops.extend(before.into_iter().chain(binds).chain(after));
}

fn place(planned: &PlannedOp) -> Option<&Path> {
    planned.op.destination().map(PathBuf::as_path)
}

fn strength(reason: &Reason) -> u8 {
    match reason {
        Reason::Default | Reason::Host(_) | Reason::Image(_) => 0,
        Reason::Flag(_) => 1,
        Reason::Policy { .. } => 2,
    }
}
