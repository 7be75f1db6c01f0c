//! Trees that the site has mounted from image files already: which one is of this image, and whether it may be used.
//!
//! A tree is used only if nobody but root can have put it there and the kernel vouches that it is of this very image.
//! Anything else about it is a note, and the image is served as ever.

use std::path::PathBuf;

use super::plan::{ImageFacts, SquashfsFacts};
use crate::host::{Host, TreeFact, TreeShape};
use crate::image::digest::to_hex;
use crate::mount::plan::{Reason, RootSource};
use crate::policy::rules::DIGEST_PLACE;
use crate::policy::{Policy, Rule};

/// How the site has said that a directory holds the tree of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    /// By the image file: the loop device under the tree must hold this file.
    ByFile,
    /// By the digest of the squashfs in the directory's name.
    ByDigest,
}

/// A directory that may hold the tree.
struct Candidate {
    directory: PathBuf,
    named: Named,
    rule: Rule,
}

/// The directories that [`root`] wants to find in [`Host::trees`].
pub fn trees_to_probe(image: &ImageFacts, policy: &Policy) -> Vec<PathBuf> {
    candidates(image, policy).into_iter().map(|candidate| candidate.directory).collect()
}

fn candidates(image: &ImageFacts, policy: &Policy) -> Vec<Candidate> {
    let by_file = policy.premounted(&image.path).map(|(tree, rule)| Candidate {
        directory: tree.directory.clone(),
        named: Named::ByFile,
        rule,
    });
    let by_digest = policy.rules().premounted.directory.as_ref().and_then(|pattern| {
        // Not the manifest's: of one manifest many squashfs can be made, and in archives it need not name its layers.
        let digest = to_hex(&image.squashfs.hash?);
        Some(Candidate {
            directory: PathBuf::from(pattern.value.replace(DIGEST_PLACE, &digest)),
            named: Named::ByDigest,
            rule: policy.rule(pattern.at, "[premounted] directory"),
        })
    });
    by_file.into_iter().chain(by_digest).collect()
}

/// The tree that the site has mounted from `image`, where it has, else the image file itself; notes say why a tree is
/// not used.
pub(super) fn root(
    image: &ImageFacts,
    policy: &Policy,
    host: &Host,
    notes: &mut Vec<String>,
) -> (RootSource, Reason) {
    let candidates = candidates(image, policy);
    if let Some(rule) = policy.requires_signature().filter(|_| !candidates.is_empty()) {
        // The kernel holds nothing that it reads against the hashes that are signed.
        notes.push(format!(
            "premounted trees are not used, as images must be signed ({rule}): the image is served"
        ));
        return (RootSource::Image(image.path.clone()), Reason::Default);
    }
    for Candidate { directory, named, rule } in candidates {
        let reason = Reason::Policy { file: rule.file, line: rule.line };
        let fact = host.trees.get(&directory);
        match (fact.map(|fact| refused(fact, image, named)), named) {
            (Some(None), _) => {
                let (tree, device) =
                    fact.map(|fact| (fact.resolved.clone(), fact.device)).unwrap_or_default();
                return (RootSource::Premounted { tree, device }, reason);
            }
            (Some(Some(why)), _) => notes.push(format!(
                "the tree at {} is not used, as {why} ({reason}): the image is served",
                directory.display()
            )),
            (None, Named::ByFile) => {
                notes.push(format!("no tree at {} ({reason}): the image is served", directory.display()));
            }
            // A site mounts some images and not all.
            (None, Named::ByDigest) => {}
        }
    }
    (RootSource::Image(image.path.clone()), Reason::Default)
}

/// That a tree could have been used and is not, as nothing can be added to it; none where there is no such tree.
pub(super) fn unused(image: &ImageFacts, policy: &Policy, host: &Host) -> Option<String> {
    let (RootSource::Premounted { tree, .. }, reason) = root(image, policy, host, &mut Vec::new()) else {
        return None;
    };
    Some(format!(
        "the tree at {} is not used, as libraries of the host are added to the image ({reason}): the image is served",
        tree.display()
    ))
}

/// Why the tree is not to be trusted, or not of this image.
fn refused(fact: &TreeFact, image: &ImageFacts, named: Named) -> Option<String> {
    let why = |text: &str| Some(text.to_owned());
    if let Some(untrusted) = &fact.untrusted {
        return Some(untrusted.clone());
    }
    if fact.device == fact.device_above {
        return why("nothing is mounted there");
    }
    if !fact.is_squashfs {
        return why("it is no squashfs of the kernel's");
    }
    let lacking = [(fact.is_read_only, "ro"), (fact.is_nosuid, "nosuid"), (fact.is_nodev, "nodev")]
        .into_iter()
        .filter(|(has, _)| !has)
        .map(|(_, name)| name)
        .collect::<Vec<_>>();
    if !lacking.is_empty() {
        return Some(format!("it is mounted without {}", lacking.join(", ")));
    }
    let other = match named {
        Named::ByFile => other_file(fact, image),
        Named::ByDigest => other_content(fact, image),
    };
    if other.is_some() {
        return other;
    }
    (fact.shape != image.squashfs.shape()).then(|| "it is of another image".to_owned())
}

/// What the loop device holds, unless it is the image file.
fn other_file(fact: &TreeFact, image: &ImageFacts) -> Option<String> {
    match &fact.backing {
        None => Some("the kernel does not say of which file it is (no loop device)".to_owned()),
        // Of a file that was replaced or removed the kernel says ` (deleted)`.
        Some(backing) if backing.file != image.path => Some(format!("it is of {}", backing.file.display())),
        Some(backing) if backing.offset != image.squashfs.offset => {
            Some(format!("it is of another part of {}", backing.file.display()))
        }
        Some(_) => None,
    }
}

/// What the loop device holds, if that can be looked at still and is not what the directory's name says.
fn other_content(fact: &TreeFact, image: &ImageFacts) -> Option<String> {
    let backing = fact.backing.as_ref()?;
    let is_other = backing.hash.is_some() && backing.hash != image.squashfs.hash;
    is_other.then(|| format!("it is of {}, which is another image", backing.file.display()))
}

impl SquashfsFacts {
    /// What `statfs(2)` and `stat(2)` say of it once it is mounted: with the digest, or the file, equal numbers make sure.
    fn shape(&self) -> TreeShape {
        let blocks = self.bytes_used.saturating_sub(1).checked_div(u64::from(self.block_size)).unwrap_or(0);
        TreeShape {
            block_size: u64::from(self.block_size),
            blocks: blocks.saturating_add(1),
            inodes: u64::from(self.inodes),
            root: u64::from(self.root),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use super::*;
    use crate::host::Backing;

    const IMAGE: &str = "/images/app.sqsh";

    fn image() -> ImageFacts {
        ImageFacts {
            path: PathBuf::from(IMAGE),
            squashfs: SquashfsFacts {
                offset: 0,
                bytes_used: 131_073,
                block_size: 131_072,
                inodes: 7,
                root: 1,
                hash: Some([0xab; 32]),
            },
            ..ImageFacts::default()
        }
    }

    /// A tree that root has mounted, and that can be used.
    pub(in crate::launch) fn fact() -> TreeFact {
        TreeFact {
            resolved: PathBuf::from("/run/app"),
            device: 0x700,
            device_above: 1,
            untrusted: None,
            is_squashfs: true,
            is_read_only: true,
            is_nosuid: true,
            is_nodev: true,
            shape: TreeShape { block_size: 131_072, blocks: 2, inodes: 7, root: 1 },
            backing: Some(Backing { file: PathBuf::from(IMAGE), offset: 0, hash: None }),
        }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut TreeFact), by_file: Option<&str>, by_digest: Option<&str>) {
        let mut fact = fact();
        change(&mut fact);
        assert_eq!(refused(&fact, &image(), Named::ByFile).as_deref(), by_file);
        assert_eq!(refused(&fact, &image(), Named::ByDigest).as_deref(), by_digest);
    }

    #[test]
    fn a_tree_must_be_the_sites_and_of_this_image() {
        let both = |change: fn(&mut TreeFact), why| check(change, Some(why), Some(why));
        check(|_| {}, None, None);
        both(|fact| fact.untrusted = Some("it is yours".to_owned()), "it is yours");
        both(|fact| fact.device_above = fact.device, "nothing is mounted there");
        both(|fact| fact.is_squashfs = false, "it is no squashfs of the kernel's");
        both(|fact| fact.is_read_only = false, "it is mounted without ro");
        both(|fact| (fact.is_nosuid, fact.is_nodev) = (false, false), "it is mounted without nosuid, nodev");
        for change in [
            (|fact| fact.shape.inodes = 8) as fn(&mut TreeFact),
            |fact| fact.shape.blocks = 3,
            |fact| fact.shape.block_size = 65_536,
            |fact| fact.shape.root = 2,
        ] {
            both(change, "it is of another image");
        }
        let file = |file: &str, offset| Some(Backing { file: PathBuf::from(file), offset, hash: None });
        let content = |hash| Some(Backing { file: PathBuf::from(IMAGE), offset: 0, hash: Some([hash; 32]) });
        check(|fact| fact.backing = content(0xab), None, None);
        check(
            |fact| fact.backing = content(0xac),
            None,
            Some("it is of /images/app.sqsh, which is another image"),
        );
        check(
            |fact| fact.backing = None,
            Some("the kernel does not say of which file it is (no loop device)"),
            None,
        );
        check(|fact| fact.backing = file("/images/b.sqsh", 0), Some("it is of /images/b.sqsh"), None);
        check(
            |fact| fact.backing = file("/images/app.sqsh (deleted)", 0),
            Some("it is of /images/app.sqsh (deleted)"),
            None,
        );
        check(
            |fact| fact.backing = file(IMAGE, 4096),
            Some("it is of another part of /images/app.sqsh"),
            None,
        );
    }

    #[test]
    fn no_tree_is_used_where_images_must_be_signed() {
        let trees = "[premounted]\ntrees = [{ image = \"/images/app.sqsh\", directory = \"/run/app\" }]\n";
        let mut host = Host::default();
        host.trees.insert(PathBuf::from("/run/app"), fact());
        for (rule, is_used) in [("", true), ("[images]\nrequire_signature = true\n", false)] {
            let policy = Policy::parse(Path::new("/p"), &format!("{trees}{rule}")).unwrap();
            let mut notes = Vec::new();
            let (source, _) = root(&image(), &policy, &host, &mut notes);
            assert_eq!(matches!(source, RootSource::Premounted { .. }), is_used, "{source:?}");
            assert_eq!(notes.iter().any(|note| note.contains("/p:4 [images] require_signature")), !is_used);
        }
    }

    #[test]
    fn a_tree_is_looked_for_by_digest_where_there_is_one() {
        let policy = |text: &str| Policy::parse(Path::new("/p"), text).unwrap();
        let by_digest = policy("[premounted]\ndirectory = \"/run/hpcrun/{digest}\"\n");
        let hex = "ab".repeat(32);
        assert_eq!(trees_to_probe(&image(), &by_digest), [PathBuf::from(format!("/run/hpcrun/{hex}"))]);
        let without = SquashfsFacts { hash: None, ..image().squashfs };
        assert!(trees_to_probe(&ImageFacts { squashfs: without, ..image() }, &by_digest).is_empty());
        let both = policy(
            "[premounted]\ndirectory = \"/run/{digest}\"\ntrees = [{ image = \"/images/app.sqsh\", directory = \"/d\" }]\n",
        );
        assert_eq!(trees_to_probe(&image(), &both).len(), 2);
        assert!(trees_to_probe(&image(), &Policy::builtin()).is_empty());
    }
}
