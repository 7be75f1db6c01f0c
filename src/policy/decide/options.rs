//! Options that a site may keep from its users.

use super::Refusal;
use crate::policy::Policy;
use crate::policy::file::Located;

impl Policy {
    /// Whether `--overlay` may be used.
    pub fn overlay(&self) -> Result<(), Refusal> {
        let allowed = self.rules.launch.allow_overlay.as_ref();
        self.option("--overlay", allowed, "[launch] allow_overlay")
    }

    /// Whether `--writable-tmpfs` may be used.
    pub fn writable_tmpfs(&self) -> Result<(), Refusal> {
        let allowed = self.rules.launch.allow_writable_tmpfs.as_ref();
        self.option("--writable-tmpfs", allowed, "[launch] allow_writable_tmpfs")
    }

    /// Whether `--fakeroot` may be used.
    pub fn fakeroot(&self) -> Result<(), Refusal> {
        let allowed = self.rules.launch.allow_fakeroot.as_ref();
        self.option("--fakeroot", allowed, "[launch] allow_fakeroot")
    }

    /// Whether `--pid` may be used; `option` is what asks for it.
    pub fn process_namespace(&self, option: &str) -> Result<(), Refusal> {
        self.option(option, self.rules.launch.allow_pid.as_ref(), "[launch] allow_pid")
    }

    /// Whether `--ipc` may be used; `option` is what asks for it.
    pub fn ipc_namespace(&self, option: &str) -> Result<(), Refusal> {
        self.option(option, self.rules.launch.allow_ipc.as_ref(), "[launch] allow_ipc")
    }

    /// Whether the host's directories may be left out by `option`, `--contain` or `--containall`.
    pub fn contain(&self, option: &str) -> Result<(), Refusal> {
        self.option(option, self.rules.launch.allow_contain.as_ref(), "[launch] allow_contain")
    }

    /// Whether the home directory may be left out, or another taken, by `option`.
    pub fn no_home(&self, option: &str) -> Result<(), Refusal> {
        self.option(option, self.rules.launch.allow_no_home.as_ref(), "[launch] allow_no_home")
    }

    /// Whether the site's optional binds may be left out by `option`.
    pub fn no_site_binds(&self, option: &str) -> Result<(), Refusal> {
        self.option(option, self.rules.launch.allow_no_binds.as_ref(), "[launch] allow_no_binds")
    }

    fn option(&self, what: &str, allowed: Option<&Located<bool>>, key: &'static str) -> Result<(), Refusal> {
        match self.switch(allowed, true, key) {
            (false, Some(rule)) => {
                let allowed = "leave the option out".to_owned();
                Err(Refusal { what: what.to_owned(), rule, allowed })
            }
            _ => Ok(()),
        }
    }
}
