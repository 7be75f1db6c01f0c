//! Which modules a launch gets, and what they bring.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

use super::{Refusal, Rule, SiteBind, Variables, list, site_bind};
use crate::policy::Policy;
use crate::policy::file::Located;
use crate::policy::pattern::ImageName;
use crate::policy::rules::Module;
use crate::policy::rules::modules::{ModuleAbi, ModuleMode};

/// A launch as far as modules depend on it.
#[derive(Debug, Clone, Copy)]
pub struct ModuleWish<'a> {
    /// What `--module` names.
    pub requested: &'a [OsString],
    /// The image.
    pub image: ImageName<'a>,
    /// The libraries that modules ask for, as far as the image has them.
    pub sonames: &'a [String],
    /// The node's name.
    pub hostname: &'a OsStr,
}

/// A module that a launch gets.
#[derive(Debug, Clone)]
pub struct ChosenModule<'p> {
    /// The module.
    pub module: &'p Module,
    /// Whether the user named it.
    pub is_requested: bool,
    /// Where it stands.
    pub rule: Rule,
}

impl ChosenModule<'_> {
    /// Host libraries to inject, and how alike they must be to the image's.
    pub fn libraries(&self) -> (&[Located<String>], ModuleAbi) {
        let abi = self.module.abi.as_ref().map_or(ModuleAbi::default(), |abi| abi.value);
        (&self.module.libraries, abi)
    }
}

impl Policy {
    /// The modules of a launch, in the order of the policy.
    ///
    /// # Errors
    ///
    /// The user names one that there is not, that nobody may have, or that does not fit this image or node.
    pub fn modules(&self, wish: &ModuleWish<'_>) -> Result<Vec<ChosenModule<'_>>, Refusal> {
        for name in wish.requested {
            let known = self.rules.modules.iter().find(|module| OsStr::new(&module.name) == name);
            let refused = |rule: Rule, why: &str| {
                let what = format!("module {}, {why}", name.display());
                Err(Refusal { what, rule, allowed: self.module_names() })
            };
            match known {
                None => return refused(self.whole("[modules]"), "which this site does not have"),
                Some(module) if mode(module) == ModuleMode::Never => {
                    let at = module.mode.as_ref().map_or(module.at, |mode| mode.at);
                    return refused(self.rule(at, "[modules] mode"), "which is switched off");
                }
                Some(module) => {
                    if let Some((at, why)) = mismatch(module, wish) {
                        return refused(self.rule(at, "[modules] match"), why);
                    }
                }
            }
        }
        let mut chosen = Vec::new();
        for module in &self.rules.modules {
            let is_requested = wish.requested.iter().any(|name| name == OsStr::new(&module.name));
            if is_requested || (mode(module) == ModuleMode::Auto && mismatch(module, wish).is_none()) {
                let rule = self.rule(module.at, "[modules]");
                chosen.push(ChosenModule { module, is_requested, rule });
            }
        }
        Ok(chosen)
    }

    /// Whether a module is for this image on this node.
    pub fn module_fits(&self, module: &Module, wish: &ModuleWish<'_>) -> bool {
        mismatch(module, wish).is_none()
    }

    /// The binds of a module: as those that the site forces.
    pub fn module_binds(
        &self,
        module: &Module,
        variables: &Variables<'_>,
        image: Option<&ImageName<'_>>,
    ) -> Result<(Vec<SiteBind>, Vec<String>), Refusal> {
        let rules = module.binds.iter().map(|rule| (rule, true, "[modules] binds"));
        site_bind::expand_all(self, rules, variables, image)
    }

    /// Every soname that a module is limited to.
    pub fn module_sonames(&self) -> impl Iterator<Item = &str> {
        let modules = self.rules.modules.iter().filter(|module| mode(module) != ModuleMode::Never);
        modules.filter_map(|module| Some(module.matches.soname.as_ref()?.value.as_str()))
    }

    fn module_names(&self) -> String {
        let modules = self.rules.modules.iter().filter(|module| mode(module) != ModuleMode::Never);
        list("modules", modules.map(|module| module.name.clone()))
    }
}

fn mode(module: &Module) -> ModuleMode {
    module.mode.as_ref().map_or(ModuleMode::default(), |mode| mode.value)
}

/// What of a module's limits this launch does not fit.
fn mismatch(module: &Module, wish: &ModuleWish<'_>) -> Option<(crate::policy::file::Position, &'static str)> {
    let matches = &module.matches;
    if let Some(image) = matches.image.as_ref().filter(|image| !image.value.matches_image(&wish.image)) {
        return Some((image.at, "which is for other images"));
    }
    if let Some(host) =
        matches.host.as_ref().filter(|host| !host.value.matches_host(wish.hostname.as_bytes()))
    {
        return Some((host.at, "which is for other nodes"));
    }
    let soname = matches.soname.as_ref().filter(|soname| !wish.sonames.contains(&soname.value));
    soname.map(|soname| (soname.at, "whose library the image does not have"))
}
