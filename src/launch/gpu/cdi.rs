//! What CDI specifications say, as far as it can be done without privilege.

use std::path::{Path, PathBuf};

use super::hooks::{Outcome, outcome};
use super::{Draft, reason};
use crate::host::gpu::Cdi;
use crate::host::{Kind, PathFact};
use crate::launch::inject::{FoundLibrary, HostMount, Link, MadeFile, Variable};
use crate::launch::request::Joining;
use crate::mount::plan::Access;
use crate::policy::path::normalise;

impl Draft<'_> {
    pub(super) fn cdi(&mut self, cdi: &Cdi) {
        let why = reason(&format!("CDI {}", cdi.names.join(", ")));
        for (name, value) in &cdi.edits.env {
            self.plan.injection.variables.push(Variable {
                name: name.into(),
                value: value.into(),
                joining: Joining::Replace,
                reason: why.clone(),
            });
        }
        for (node, fact) in &cdi.nodes {
            self.node(Path::new(&node.path), fact);
        }
        let outcomes: Vec<Outcome> = cdi.edits.hooks.iter().map(outcome).collect();
        let folders: Vec<PathBuf> = outcomes.iter().flat_map(|outcome| outcome.folders.clone()).collect();
        for (mount, fact, library) in &cdi.mounts {
            let destination = normalise(Path::new("/"), Path::new(&mount.container_path));
            let is_directory = match &fact.kind {
                Kind::Directory => true,
                Kind::File => false,
                Kind::Missing | Kind::Unreachable(_) => {
                    self.tell(format!(
                        "{}, which a CDI specification names, is not to be had",
                        mount.host_path
                    ));
                    continue;
                }
            };
            // What is not said to be writable is not; a socket is used through a read-only mount all the same.
            let writable = mount.options.iter().any(|option| option == "rw");
            if let (Some(library), Some(directory)) = (library, destination.parent())
                && folders.iter().any(|folder| folder == directory)
            {
                // As ldconfig does in the directories that it is told of.
                let path = directory.join(&library.soname);
                if path != destination {
                    let target = PathBuf::from(&library.file_name);
                    self.plan.injection.links.push(Link { path: path.clone(), target, reason: why.clone() });
                }
                self.plan.injection.found.push(FoundLibrary {
                    name: library.soname.clone(),
                    path,
                    reason: why.clone(),
                });
            }
            self.plan.injection.mounts.push(HostMount {
                source: fact.resolved.clone(),
                destination,
                access: if writable { Access::ReadWrite } else { Access::ReadOnly },
                is_directory,
                reason: why.clone(),
            });
        }
        for (hook, outcome) in cdi.edits.hooks.iter().zip(outcomes) {
            for (target, path) in outcome.links {
                // A name with `..` is where it leads: links of the image are resolved when it is added.
                self.plan.injection.links.push(Link {
                    path: normalise(Path::new("/"), &path),
                    target,
                    reason: why.clone(),
                });
            }
            if outcome.wants_profile {
                self.plan.injection.files.push(MadeFile {
                    path: PathBuf::from("/etc/nvidia/nvidia-application-profiles-rc.d/10-container.conf"),
                    content: profile(self.facts.nvidia.as_ref().map_or(&[], |nvidia| &nvidia.minors)),
                    reason: why.clone(),
                });
            }
            if !outcome.is_known {
                self.unknown_hook(hook);
            }
        }
        let held: Vec<u32> = cdi.edits.groups.clone();
        let user = &self.host.user;
        for group in held.into_iter().filter(|group| *group != user.gid && !user.groups.contains(group)) {
            self.tell(format!(
                "CDI asks for group {group}, which you are not in: its devices may be closed to you"
            ));
        }
        for field in &cdi.edits.unsupported {
            self.tell(format!("CDI asks for {field}, which takes root"));
        }
    }

    /// `/dev` is the host's: a node is there under its own name, or not at all.
    fn node(&mut self, path: &Path, fact: &PathFact) {
        match &fact.kind {
            // It is there when the job is.
            Kind::Missing if self.made().iter().any(|(made, _)| made == path) => {}
            Kind::Missing | Kind::Unreachable(_) => {
                self.tell(format!(
                    "the device {}, which CDI asks for, is not on this node",
                    fact.resolved.display()
                ));
            }
            _ if self.request.contain.is_none() && fact.resolved == path => {}
            Kind::Directory | Kind::File => self.plan.injection.mounts.push(HostMount {
                source: fact.resolved.clone(),
                destination: normalise(Path::new("/"), path),
                access: Access::ReadWrite,
                is_directory: fact.kind == Kind::Directory,
                reason: reason("CDI device"),
            }),
        }
    }

    /// A program that would change a container which it finds by its process: there is none yet, and when there is one its root
    /// cannot be written to.
    fn unknown_hook(&mut self, hook: &crate::host::cdi::Hook) {
        let call = format!("{} {}", hook.path, hook.args.get(1..).unwrap_or_default().join(" "));
        self.tell(format!(
            "the {} hook '{}' of a CDI specification is not run: hpcrun does not know what it would do, and without \
             root it could do nothing",
            hook.hook_name,
            call.trim_end()
        ));
    }
}

/// Which devices EGL shows, as bits of their numbers.
fn profile(minors: &[u32]) -> Vec<u8> {
    let bits = minors.iter().fold(0_u64, |bits, minor| bits | 1_u64.checked_shl(*minor).unwrap_or(0));
    let profile = serde_json::json!({
        "profiles": [{"name": "_container_", "settings": ["EGLVisibleDGPUDevices", bits]}],
        "rules": [{"pattern": [], "profile": "_container_"}],
    });
    profile.to_string().into_bytes()
}
