//! Short names: what `hpcrun pull app` means where no registry is said.
//!
//! An alias of `registries.conf` decides; then the one registry of `unqualified-search-registries`; without either it is
//! Docker Hub, as with docker. Registries are never searched: who registers the name in the first of several would
//! decide what runs. Where several are listed the user is told how to say which.

use super::registries_conf::{Place, RegistriesConf};
use crate::hint::Hint;
use crate::image::reference::{Reference, ReferenceError, is_short};

/// Why a name stands for no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShortNameError {
    /// It is no reference at all.
    #[error("cannot read the image reference")]
    Reference(#[source] ReferenceError),
    /// Several registries may be meant.
    #[error("{name:?} names no registry, and {at} lists {}", .candidates.len())]
    Ambiguous {
        /// As typed.
        name: String,
        /// Where the registries are listed.
        at: Place,
        /// What it may stand for.
        candidates: Vec<String>,
    },
}

impl Hint for ShortNameError {
    fn hints(&self) -> Vec<String> {
        match self {
            ShortNameError::Reference(_) => Vec::new(),
            ShortNameError::Ambiguous { candidates, .. } => {
                vec![format!("say which is meant: {}", candidates.join(" or "))]
            }
        }
    }
}

/// The image that `typed` means, and where that is said if `registries.conf` says it.
pub fn resolve<'c>(
    typed: &str,
    conf: &'c RegistriesConf,
) -> Result<(Reference, Option<&'c Place>), ShortNameError> {
    let parse = |text: &str| Reference::parse(text).map_err(ShortNameError::Reference);
    let plain = parse(typed)?;
    if !is_short(typed) {
        return Ok((plain, None));
    }
    let (name, rest) = split_name(typed);
    if let Some(alias) = conf.alias(name) {
        return Ok((parse(&format!("{}{rest}", alias.name))?, Some(&alias.at)));
    }
    match conf.search() {
        ([], _) | (_, None) => Ok((plain, None)),
        ([only], Some(at)) => Ok((parse(&format!("{only}/{typed}"))?, Some(at))),
        (several, Some(at)) => Err(ShortNameError::Ambiguous {
            name: typed.to_owned(),
            at: at.clone(),
            candidates: several.iter().map(|registry| format!("{registry}/{typed}")).collect(),
        }),
    }
}

/// The name, and the tag and digest with their separators.
fn split_name(typed: &str) -> (&str, &str) {
    let before_digest = typed.find('@').unwrap_or(typed.len());
    let tag = typed.get(..before_digest).and_then(|name| name.rfind(':'));
    typed.split_at_checked(tag.unwrap_or(before_digest)).unwrap_or((typed, ""))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[track_caller]
    fn check(conf: &str, typed: &str, expected: &str) {
        let mut read = RegistriesConf::default();
        read.add(Path::new("r.conf"), conf).unwrap();
        let shown = match resolve(typed, &read) {
            Ok((reference, None)) => reference.to_string(),
            Ok((reference, Some(at))) => format!("{reference} {at}"),
            Err(error) => format!("{error}; {}", error.hints().join("")),
        };
        assert_eq!(shown, expected, "{typed}");
    }

    const HEX: &str = "1111111111111111111111111111111111111111111111111111111111111111";

    #[test]
    fn docker_hub_unless_configured() {
        check("", "debian", "docker.io/library/debian:latest");
        check("", "group/app:1", "docker.io/group/app:1");
        check("", "quay.io/a/b", "quay.io/a/b:latest");
        check("", "localhost/a", "localhost/a:latest");
        check("", "Debian", "cannot read the image reference; ");
        check("unqualified-search-registries = []", "debian", "docker.io/library/debian:latest");
    }

    #[test]
    fn aliases() {
        let conf =
            "[aliases]\n\"debian\" = \"docker.io/library/debian\"\n\"team/app\" = \"r.site:5000/x/app\"\n";
        check(conf, "debian:12", "docker.io/library/debian:12 r.conf:2");
        check(conf, "team/app", "r.site:5000/x/app:latest r.conf:3");
        check(conf, "team/app:1", "r.site:5000/x/app:1 r.conf:3");
        let pinned = format!("r.site:5000/x/app:1@sha256:{HEX} r.conf:3");
        check(conf, &format!("team/app:1@sha256:{HEX}"), &pinned);
        let digest = format!("r.site:5000/x/app@sha256:{HEX} r.conf:3");
        check(conf, &format!("team/app@sha256:{HEX}"), &digest);
        check(conf, "team/app2", "docker.io/team/app2:latest");
        check(conf, "docker.io/team/app", "docker.io/team/app:latest");
    }

    #[test]
    fn one_registry_or_a_question() {
        let one = "\nunqualified-search-registries = [\"r.site/group\"]";
        check(one, "app:1", "r.site/group/app:1 r.conf:2");
        check(one, "other.org/app", "other.org/app:latest");
        let hub = "unqualified-search-registries = [\"docker.io\"]";
        check(hub, "app", "docker.io/library/app:latest r.conf:1");
        let several =
            "unqualified-search-registries = [\"a.org\", \"docker.io\"]\n[aliases]\n\"x\" = \"b.org/x\"";
        check(
            several,
            "app:1",
            "\"app:1\" names no registry, and r.conf:1 lists 2; say which is meant: a.org/app:1 or docker.io/app:1",
        );
        check(several, "x:2", "b.org/x:2 r.conf:3");
    }
}
