//! `[mpi]`: what is done about the image's MPI and the host's.

use crate::policy::file::Located;

/// `[mpi]`
#[derive(Debug, Clone, Default)]
pub struct Mpi {
    /// What becomes of ranks whose MPI does not fit the launcher; none means [`MpiCheck::Check`].
    pub check: Option<Located<MpiCheck>>,
    /// The module of `[modules]` that `--mpi=host` means.
    pub host_module: Option<Located<String>>,
    /// Whether ranks that cannot share namespaces get settings that let them talk; none means yes.
    pub fallback_env: Option<Located<bool>>,
    /// Whether users may ask for the host's MPI; none means yes.
    pub allow_host: Option<Located<bool>>,
}

/// What becomes of ranks whose MPI does not fit the launcher.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MpiCheck {
    /// A warning.
    #[default]
    Check,
    /// They do not start.
    Strict,
    /// Nothing is looked at.
    Off,
}

/// The words for [`MpiCheck`].
pub const MPI_CHECK_WORDS: [(&str, MpiCheck); 3] =
    [("check", MpiCheck::Check), ("strict", MpiCheck::Strict), ("off", MpiCheck::Off)];
