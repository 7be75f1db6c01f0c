//! `[modules.NAME]`: binds, variables, libraries and devices that belong together.

use super::{BindRule, EnvRules};
use crate::policy::file::{Located, Position};
use crate::policy::pattern::Pattern;

/// `[modules.NAME]`
#[derive(Debug, Clone, Default)]
pub struct Module {
    /// Its name: letters, digits, `_`, `-`, `.` and `+`.
    pub name: String,
    /// What it is for, for people.
    pub description: Option<Located<String>>,
    /// When a launch gets it; none means [`ModuleMode::Request`].
    pub mode: Option<Located<ModuleMode>>,
    /// What it is limited to, and what brings it in when [`ModuleMode::Auto`].
    pub matches: ModuleMatch,
    /// What it binds.
    pub binds: Vec<BindRule>,
    /// What it changes of the environment; its `pass` is empty.
    pub env: EnvRules,
    /// Host libraries to inject: absolute paths, the last component perhaps with `*` and `?`.
    pub libraries: Vec<Located<String>>,
    /// Devices of the host, below /dev; the last component perhaps with `*` and `?`.
    pub devices: Vec<Located<String>>,
    /// How alike a library must be to stand in for the image's; none means [`ModuleAbi::Symbols`].
    pub abi: Option<Located<ModuleAbi>>,
    /// Where the module stands.
    pub at: Position,
}

/// What a module is limited to: all that is named must fit. The default fits everything.
#[derive(Debug, Clone, Default)]
pub struct ModuleMatch {
    /// The image.
    pub image: Option<Located<Pattern>>,
    /// A library that programs of the image want: `libmpi.so.12`.
    pub soname: Option<Located<String>>,
    /// The node's name.
    pub host: Option<Located<Pattern>>,
}

impl ModuleMatch {
    /// Whether nothing is named.
    pub fn is_empty(&self) -> bool {
        self.image.is_none() && self.soname.is_none() && self.host.is_none()
    }
}

/// When a launch gets a module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ModuleMode {
    /// When the user names it.
    #[default]
    Request,
    /// Wherever it matches.
    Auto,
    /// Not at all.
    Never,
}

/// The words for [`ModuleMode`].
pub const MODULE_MODE_WORDS: [(&str, ModuleMode); 3] =
    [("request", ModuleMode::Request), ("auto", ModuleMode::Auto), ("never", ModuleMode::Never)];

/// How alike a host library must be to stand in for the image's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ModuleAbi {
    /// It has every symbol that the image's programs use.
    #[default]
    Symbols,
    /// Its soname is the same.
    Major,
    /// Its soname is the same, and it is at least as new.
    Minor,
}

/// The words for [`ModuleAbi`].
pub const MODULE_ABI_WORDS: [(&str, ModuleAbi); 3] =
    [("symbols", ModuleAbi::Symbols), ("major", ModuleAbi::Major), ("minor", ModuleAbi::Minor)];
