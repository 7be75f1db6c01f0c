//! The site's limits on conversions: into the budget of one and, when an image exceeds it, back to the rule.

use crate::cli::report::{Failure, chain};
use crate::convert::{Budget, ConvertError, Limit};
use crate::policy::file::Located;
use crate::policy::rules::ConvertLimits;
use crate::policy::{Policy, Refusal};

/// The keys of the policy with the limits that each of them sets.
const KEYS: [(&str, Field, &[Limit]); 8] = [
    ("[convert] max_layers", |limits| &limits.max_layers, &[Limit::Layers]),
    ("[convert] max_size", |limits| &limits.max_size_bytes, &[Limit::StreamBytes, Limit::FileBytes]),
    ("[convert] max_expansion", |limits| &limits.max_expansion, &[Limit::Expansion]),
    ("[convert] max_entries", |limits| &limits.max_entries, &[Limit::Entries]),
    ("[convert] max_memory", |limits| &limits.max_memory_bytes, &[Limit::TreeBytes]),
    ("[convert] max_depth", |limits| &limits.max_depth, &[Limit::Depth]),
    ("[convert] max_xattrs", |limits| &limits.max_xattrs_bytes, &[Limit::XattrBytes]),
    ("[convert] max_sparse_segments", |limits| &limits.max_sparse_segments, &[Limit::Segments]),
];

type Field = fn(&ConvertLimits) -> &Option<Located<u64>>;

/// hpcrun's budget, with the site's limits in place of its own.
pub(crate) fn budget(limits: &ConvertLimits) -> Budget {
    let mut budget = Budget::default();
    for (_, field, set) in KEYS {
        if let Some(most) = field(limits) {
            set.iter().for_each(|limit| budget.set(*limit, most.value));
        }
    }
    budget
}

/// A conversion that failed: a refusal, if a limit was exceeded that the site has set.
pub(crate) fn failure(error: &ConvertError, policy: &Policy) -> Failure {
    let rule = error.exceeded().and_then(|exceeded| {
        let sets = |(_, _, set): &&(_, _, &[Limit])| set.contains(&exceeded.limit);
        let (key, field, _) = KEYS.iter().find(sets)?;
        Some(policy.rule(field(&policy.rules().convert).as_ref()?.at, key))
    });
    let Some(rule) = rule else { return Failure::new(error) };
    let allowed =
        "the site may set a larger limit; smaller layers or fewer files may pass this one".to_owned();
    let refusal = Refusal { what: chain(error), rule, allowed };
    Failure::refused(&refusal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::report::STATUS_REFUSED;
    use std::path::Path;

    fn policy(text: &str) -> Policy {
        Policy::parse(Path::new("policy.toml"), text).expect("valid")
    }

    #[test]
    fn a_key_sets_what_it_names_and_nothing_else() {
        assert_eq!(budget(&ConvertLimits::default()), Budget::default());
        for (text, changed) in [
            ("max_layers = 7", Budget { layers: 7, ..Budget::default() }),
            ("max_size = \"7 KiB\"", Budget { stream_bytes: 7168, file_bytes: 7168, ..Budget::default() }),
            ("max_expansion = 7", Budget { expansion: 7, ..Budget::default() }),
            ("max_entries = 7", Budget { entries: 7, ..Budget::default() }),
            ("max_memory = \"7 MiB\"", Budget { tree_bytes: 7 << 20, ..Budget::default() }),
            ("max_depth = 7", Budget { depth: 7, ..Budget::default() }),
            ("max_xattrs = 7", Budget { xattr_bytes: 7, ..Budget::default() }),
            ("max_sparse_segments = 7", Budget { segments: 7, ..Budget::default() }),
        ] {
            let policy = policy(&format!("[convert]\n{text}\n"));
            assert_eq!(budget(&policy.rules().convert), changed, "{text}");
        }
    }

    #[test]
    fn only_a_limit_of_the_site_is_a_refusal() {
        let policy = policy("[convert]\nmax_entries = 3\nmax_layers = 2\n");
        let error = |limit| ConvertError::Layers(budget(&policy.rules().convert).exceeded(limit));
        let refused = failure(&error(Limit::Layers), &policy);
        assert_eq!(refused.status, STATUS_REFUSED);
        assert_eq!(refused.rule(), Some("policy.toml:3 [convert] max_layers"));
        let text = "refused by site policy: cannot use the image: layers of the image exceed the limit of 2 \
                    (policy.toml:3 [convert] max_layers)";
        assert_eq!(refused.message(), text);
        assert_ne!(failure(&error(Limit::Depth), &policy).status, STATUS_REFUSED);
    }
}
