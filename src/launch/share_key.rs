//! Which processes share one set of namespaces: the scope that they have in common, and the key that says they are equal.

use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

use super::plan::{FileId, Guise, ImageFacts, ShareKey};
use super::request::Request;
use crate::host::Host;
use crate::host::launcher::LauncherKind;
use crate::mount::graft::Graft;
use crate::mount::plan::MountPlan;
use crate::policy::Policy;
use crate::policy::rules::Share;

/// What the processes that share namespaces have in common; none when this process is by itself. `written` tells where
/// what the job writes to its root goes.
pub fn share_scope(request: &Request, policy: &Policy, host: &Host, written: Written) -> Option<String> {
    let launcher = &host.launcher;
    let scope = match request.share.unwrap_or_else(|| policy.share()) {
        Share::None => return None,
        Share::Step => &launcher.step,
        Share::Job => &launcher.job,
    };
    if host.share_directory.is_none() || launcher.kind == LauncherKind::None {
        return None;
    }
    // A launcher without ids: what else is hashed keeps apart what differs. Two `mpirun` of equal plans share, which is
    // harmless, and good for ranks that another of their kind spawns, as long as neither sees what the other writes.
    let starter = launcher.starter.clone().filter(|_| written != Written::Elsewhere);
    // Who asks for it by name knows that one `mpirun` runs at a time. A directory has room for one root only.
    let nameless = (written != Written::InMemory || request.share.is_some()).then(|| "none".to_owned());
    scope.clone().or(starter).or(nameless)
}

/// Where what a job writes to its root goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// Nowhere, or to directories of the host, which are the same for all who name them.
    Elsewhere,
    /// To the upper directory of an overlay.
    ToDirectory,
    /// To memory, which is seen in these namespaces only.
    InMemory,
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

impl ShareKey {
    /// The key of those that have opened this very file too. A path says nothing of what is served from it.
    #[must_use]
    pub fn with_file(self, file: &FileId, length: u64) -> ShareKey {
        let mut hash = FieldHash::default();
        hash.field(&self.name);
        hash.field(format!("{file:?} {length}"));
        ShareKey { name: hash.finish(), ..self }
    }
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
        Some(scope) if host.launcher.starter.as_deref() == Some(scope) => {
            format!("with the ranks that {launcher} started ({scope})")
        }
        Some(scope) => format!("with the ranks of {scope}"),
        None if unshared_ranks => format!("with nobody, though {launcher} may have started other ranks"),
        None => "with nobody".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::launcher::Launcher;

    #[test]
    fn scopes_without_a_name() {
        use Written::{Elsewhere, InMemory, ToDirectory};
        let scope = |starter: Option<&str>, asked: Option<Share>, written: Written| {
            let launcher = Launcher {
                kind: LauncherKind::Hydra,
                starter: starter.map(str::to_owned),
                ..Launcher::default()
            };
            let host = Host { launcher, share_directory: Some("/dev/shm/x".into()), ..Host::default() };
            share_scope(&Request { share: asked, ..Request::default() }, &Policy::builtin(), &host, written)
        };
        let (known, step) = (Some("process 7 of 9"), Some(Share::Step));
        for (starter, asked, written, expected) in [
            (None, None, Elsewhere, Some("none")),
            (None, None, ToDirectory, Some("none")),
            (None, None, InMemory, None),
            (None, step, InMemory, Some("none")),
            (known, None, Elsewhere, Some("none")),
            (known, None, ToDirectory, known),
            (known, None, InMemory, known),
            (known, step, InMemory, known),
            (known, Some(Share::Job), InMemory, known),
            (known, Some(Share::None), InMemory, None),
        ] {
            let found = scope(starter, asked, written);
            assert_eq!(found.as_deref(), expected, "{starter:?} {asked:?} {written:?}");
        }
    }
}
