//! Which processes share one set of namespaces: the scope that they have in common, and the key that says they are equal.

use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

use super::plan::{Guise, ImageFacts, ShareKey};
use super::request::Request;
use crate::host::Host;
use crate::host::launcher::LauncherKind;
use crate::mount::graft::Graft;
use crate::mount::plan::MountPlan;
use crate::policy::Policy;
use crate::policy::rules::Share;

/// What the processes that share namespaces have in common; none when this process is by itself. `is_private` tells
/// whether the new root keeps in memory what the job writes.
pub fn share_scope(request: &Request, policy: &Policy, host: &Host, is_private: bool) -> Option<String> {
    let launcher = &host.launcher;
    let scope = match request.share.unwrap_or_else(|| policy.share()) {
        Share::None => return None,
        Share::Step => &launcher.step,
        Share::Job => &launcher.job,
    };
    let has_directory = host.share_directory.is_some();
    let has_siblings = launcher.kind != LauncherKind::None;
    // A launcher without ids: what else is hashed keeps apart what differs. Two `mpirun` of equal plans share, which is
    // harmless only where neither sees what the other writes; who asks for it by name knows that one runs at a time.
    let nameless = (!is_private || request.share.is_some()).then(|| "none".to_owned());
    if has_directory && has_siblings { scope.clone().or(nameless) } else { None }
}

/// The name under which ranks of equal launches find each other.
pub fn share_key(
    scope: &str,
    image: &ImageFacts,
    policy: &Policy,
    host: &Host,
    mount: &MountPlan,
    grafts: &[(PathBuf, Graft)],
    guise: &Guise,
) -> Option<ShareKey> {
    let mut hash = FieldHash::default();
    hash.field(env!("CARGO_PKG_VERSION"));
    hash.field(format!("{} {}", host.user.uid, host.user.gid));
    hash.field(format!("{:?} {}", image.file, image.size_bytes));
    hash.field(policy.text_sha256());
    hash.field(scope);
    // The umask is each process's own.
    hash.field(format!("{} {:?}", guise.is_root, guise.isolation));
    for (name, inode) in &host.namespaces {
        hash.field(format!("{name} {inode}"));
    }
    hash.field(format!("{} ops, {} grafts", mount.ops.len(), grafts.len()));
    for planned in &mount.ops {
        // Debug text, unlike the text for people, tells any two paths apart.
        hash.field(format!("{:?}", planned.op));
    }
    for (path, graft) in grafts {
        match graft {
            // Caches of libraries are long, and longer still as debug text.
            Graft::Content { mode, content } => {
                hash.field(format!("{path:?} {mode}"));
                hash.field(content);
            }
            graft => hash.field(format!("{path:?} {graft:?}")),
        }
    }
    Some(ShareKey { directory: host.share_directory.clone()?, name: hash.finish() })
}

/// A hash over fields, each with its length, so that no two lists of fields hash alike.
#[derive(Default)]
struct FieldHash(Sha256);

impl FieldHash {
    fn field(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        self.0.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_le_bytes());
        self.0.update(bytes);
    }

    fn finish(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// With whom the namespaces are shared, for `--explain`.
pub fn describe_share(scope: Option<&str>, host: &Host, unshared_ranks: bool) -> String {
    let launcher = host.launcher.kind.name();
    match scope {
        Some("none") => format!("with this user's other ranks under {launcher}"),
        Some(scope) => format!("with the ranks of {scope}"),
        None if unshared_ranks => format!("with nobody, though {launcher} may have started other ranks"),
        None => "with nobody".to_owned(),
    }
}
