//! What the policy says of an image file: where it lies, whose and what it is, what it holds.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::{HostPath, Refusal, Rule, Variables, find, list, named, paths, registry_matches, registry_name};
use crate::policy::Policy;
use crate::policy::pattern::ImageName;
use crate::policy::rules::images::{Format, Owner, SIGNERS_PATH};

/// What a policy judges of an opened image file, beyond its place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageTraits {
    /// Whose the opened file is.
    pub uid: u32,
    /// The owner's name in the user database, if it was asked for.
    pub owner: Option<OsString>,
    /// What it is; none for what is no file of a user's.
    pub format: Option<Format>,
    /// What it was made from, without the transport: `docker.io/library/debian:12`.
    pub reference: Option<String>,
    /// Digests of its manifest, first, its config and its layers: what the file says of itself.
    pub digests: Vec<String>,
    /// What its signatures are worth, if that was asked for.
    pub signature: Signed,
    /// The libraries that modules ask for, as far as it has them.
    pub sonames: Vec<String>,
}

/// What the signatures of an image file are worth.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Signed {
    /// Nobody has looked.
    #[default]
    Unknown,
    /// One is good: whose it is, and the key.
    By {
        /// As the list of signers calls him.
        signer: String,
        /// `ssh-ed25519 SHA256:...`
        key: String,
    },
    /// None counts. Follows the name of the image: `which is not signed`.
    Not(String),
    /// None could count, as what it is cannot be signed. Follows the name likewise.
    Never(String),
}

impl ImageTraits {
    /// What patterns are held against.
    pub fn name<'a>(&'a self, path: &'a Path) -> ImageName<'a> {
        ImageName {
            path: path.as_os_str().as_bytes(),
            reference: self.reference.as_deref(),
            digest: self.digests.first().map(String::as_str),
        }
    }
}

/// Something that a rule decided. A refusal is none: it is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// What was decided.
    pub what: String,
    /// By which rule.
    pub rule: Rule,
}

impl Policy {
    /// Whether an image file may be run from where it lies.
    pub fn image_file(
        &self,
        path: HostPath<'_>,
        variables: &Variables<'_>,
        resolve: &dyn Fn(&Path) -> std::path::PathBuf,
    ) -> Result<Option<Rule>, Refusal> {
        let Some(directories) = &self.rules.images.directories else {
            return Ok(None);
        };
        match find(&directories.rules, path.resolved, variables, resolve) {
            Some(rule) => Ok(Some(self.rule(rule.at, "[images] directories"))),
            None => Err(Refusal {
                what: format!("image {}, which is outside the image directories", named(path)),
                rule: self.rule(directories.at, "[images] directories"),
                allowed: list("image directories", paths(directories, variables)),
            }),
        }
    }

    /// Whether an image file may be run for what it is. `path` names it in messages; `caller` is who launches.
    pub fn image(&self, path: &Path, traits: &ImageTraits, caller: u32) -> Result<Vec<Decision>, Refusal> {
        let mut decisions = Vec::new();
        decisions.extend(self.image_owner(path, traits, caller)?);
        decisions.extend(self.image_format(path, traits)?);
        for digest in &traits.digests {
            self.digest(digest)?;
        }
        decisions.extend(self.signature(path, traits)?);
        Ok(decisions)
    }

    fn image_owner(
        &self,
        path: &Path,
        traits: &ImageTraits,
        caller: u32,
    ) -> Result<Option<Decision>, Refusal> {
        let Some(owners) = &self.rules.images.owners else {
            return Ok(None);
        };
        let shown = traits.owner.as_deref().map(OsStr::display);
        let shown = shown.map_or_else(|| format!("uid {}", traits.uid), |name| name.to_string());
        let found =
            owners.rules.iter().find(|rule| rule.value.is(traits.uid, traits.owner.as_deref(), caller));
        match found {
            Some(rule) => Ok(Some(Decision {
                what: format!("image belongs to {shown}"),
                rule: self.rule(rule.at, "[images] owners"),
            })),
            None => Err(Refusal {
                what: format!("image {}, which belongs to {shown}", path.display()),
                rule: self.rule(owners.at, "[images] owners"),
                allowed: list("allowed owners", owners.rules.iter().map(|rule| owner_name(&rule.value))),
            }),
        }
    }

    fn image_format(&self, path: &Path, traits: &ImageTraits) -> Result<Option<Decision>, Refusal> {
        let (Some(formats), Some(format)) = (&self.rules.images.formats, traits.format) else {
            return Ok(None);
        };
        match formats.rules.iter().find(|rule| rule.value == format) {
            Some(rule) => Ok(Some(Decision {
                what: format!("image format {}", format.word()),
                rule: self.rule(rule.at, "[images] formats"),
            })),
            None => Err(Refusal {
                what: format!("image {}, which is of the format {}", path.display(), format.word()),
                rule: self.rule(formats.at, "[images] formats"),
                allowed: list(
                    "allowed formats",
                    formats.rules.iter().map(|rule| rule.value.word().to_owned()),
                ),
            }),
        }
    }

    /// Whether what has this digest may be run or fetched.
    pub fn digest(&self, digest: &str) -> Result<(), Refusal> {
        let denied = self.rules.images.deny_digests.iter().find(|rule| rule.value.as_str() == digest);
        denied.map_or(Ok(()), |rule| {
            Err(Refusal {
                what: format!("image with {digest}"),
                rule: self.rule(rule.at, "[images] deny_digests"),
                allowed: "take another version of the image; your site has a reason against this one"
                    .to_owned(),
            })
        })
    }

    fn signature(&self, path: &Path, traits: &ImageTraits) -> Result<Option<Decision>, Refusal> {
        let Some(rule) = self.requires_signature() else { return Ok(None) };
        let why = match &traits.signature {
            Signed::By { signer, key } => {
                return Ok(Some(Decision { what: format!("image is signed by {signer} ({key})"), rule }));
            }
            Signed::Not(why) | Signed::Never(why) => why,
            Signed::Unknown => "whose signatures nobody has checked",
        };
        Err(Refusal {
            what: format!("image {}, {why}", path.display()),
            rule,
            allowed: self.way_to_sign(path, traits),
        })
    }

    fn way_to_sign(&self, path: &Path, traits: &ImageTraits) -> String {
        let (signers, path) = (self.signers().display(), path.display());
        let transport = if traits.format == Some(Format::Sif) { "sif" } else { "squashfs" };
        match traits.signature {
            Signed::Never(_) => format!(
                "convert it, then one of the signers in {signers} can sign: hpcrun convert {transport}:{path} FILE.sqsh"
            ),
            _ => format!("one of the signers in {signers} can sign it: hpcrun sign --key KEY {path}"),
        }
    }

    /// The rule by which an image must have a good signature, if there is one.
    pub fn requires_signature(&self) -> Option<Rule> {
        let required = self.rules.images.require_signature.as_ref().filter(|required| required.value)?;
        Some(self.rule(required.at, "[images] require_signature"))
    }

    /// The file that lists whose keys may sign images.
    pub fn signers(&self) -> &Path {
        let named = self.rules.images.signers.as_ref();
        named.map_or(Path::new(SIGNERS_PATH), |signers| signers.value.as_path())
    }

    /// Whether an image may come from `repository` of the registry `host` (with its port, if not the usual one).
    pub fn registry(&self, host: &str, repository: &str) -> Result<Option<Rule>, Refusal> {
        let images = &self.rules.images;
        let what = || format!("registry {host}, repository {repository}");
        if let Some(denied) =
            images.deny_registries.iter().find(|rule| registry_matches(rule, host, repository))
        {
            let denied_names = list("denied registries", images.deny_registries.iter().map(registry_name));
            return Err(Refusal {
                what: what(),
                rule: self.rule(denied.at, "[images] deny_registries"),
                allowed: denied_names,
            });
        }
        let Some(registries) = &images.registries else {
            return Ok(None);
        };
        match registries.rules.iter().find(|rule| registry_matches(rule, host, repository)) {
            Some(rule) => Ok(Some(self.rule(rule.at, "[images] registries"))),
            None => Err(Refusal {
                what: what(),
                rule: self.rule(registries.at, "[images] registries"),
                allowed: list("allowed registries", registries.rules.iter().map(registry_name)),
            }),
        }
    }

    /// Whether the name of an image file's owner matters.
    pub fn asks_for_owner_names(&self) -> bool {
        let owners = self.rules.images.owners.iter().flat_map(|listed| &listed.rules);
        owners.map(|rule| &rule.value).any(|owner| matches!(owner, Owner::Name(_)))
    }
}

fn owner_name(owner: &Owner) -> String {
    match owner {
        Owner::Root => "root".to_owned(),
        Owner::Myself => "you".to_owned(),
        Owner::Uid(uid) => format!("uid {uid}"),
        Owner::Name(name) => name.clone(),
    }
}
