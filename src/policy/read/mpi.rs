//! `[mpi]`

use crate::policy::file::{Document, Section};
use crate::policy::rules::mpi::MPI_CHECK_WORDS;
use crate::policy::rules::{Mpi, Rules};

pub(super) fn read_mpi(mut section: Section<'_, '_>) -> Mpi {
    let mpi = Mpi {
        check: section.choice("check", &MPI_CHECK_WORDS),
        host_module: section.string("host_module"),
        fallback_env: section.boolean("fallback_env"),
        allow_host: section.boolean("allow_host"),
    };
    section.finish();
    mpi
}

/// What `--mpi=host` means must be a module of this policy.
pub(super) fn note_unknown_module(document: &Document<'_>, rules: &Rules) {
    let Some(wanted) = &rules.mpi.host_module else {
        return;
    };
    if !rules.modules.iter().any(|module| module.name == wanted.value) {
        let names: Vec<&str> = rules.modules.iter().map(|module| module.name.as_str()).collect();
        let hint =
            if names.is_empty() { "define it".to_owned() } else { format!("modules: {}", names.join(", ")) };
        document.note_at(
            wanted.at,
            format!("mpi.host_module: there is no [modules.{}]", wanted.value),
            Some(hint),
        );
    }
}
