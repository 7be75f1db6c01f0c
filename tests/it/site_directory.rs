//! A directory of root's, in which only root can have put a policy, images and mounts.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::busybox_image::{convert, image};
use crate::support::{hpcrun, is_root, run, scratch, stdout, text};

/// The directory; gone when dropped.
pub(crate) struct Site(tempfile::TempDir);

impl Site {
    pub(crate) fn new() -> Site {
        assert!(is_root(), "a site's policy is root's: run this as root");
        let directory =
            tempfile::Builder::new().prefix("hpcrun-site-").tempdir_in("/tmp").expect("a directory in /tmp");
        set_mode(directory.path(), 0o755);
        Site(directory)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// A directory in it, with these permission bits.
    pub(crate) fn directory(&self, name: &str, mode: u32) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir(&path).expect("mkdir");
        set_mode(&path, mode);
        path
    }

    /// Writes the policy.
    pub(crate) fn policy(&self, content: &str) -> PathBuf {
        let path = self.path().join("policy.toml");
        fs::write(&path, content).expect("policy");
        set_mode(&path, 0o644);
        path
    }

    /// A copy of the image that all tests share.
    pub(crate) fn copy(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::copy(image(), &path).expect("copy of the image");
        set_mode(&path, 0o644);
        path
    }

    /// An image of these layers.
    pub(crate) fn image(&self, name: &str, config: &Value, tars: &[Vec<u8>]) -> PathBuf {
        let made = scratch();
        let image = convert(made.path(), name, config, tars);
        let path = self.path().join(format!("{name}.sqsh"));
        fs::copy(image, &path).expect("copy of the image");
        set_mode(&path, 0o644);
        path
    }

    /// `hpcrun ARGS...` as the ordinary user, under the policy.
    pub(crate) fn hpcrun<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = hpcrun(args);
        command.env("HPCRUN_POLICY", self.path().join("policy.toml")).current_dir("/tmp");
        command
    }

    /// The tree of `image`, mounted by the kernel from a loop device with these options.
    pub(crate) fn mounted(&self, image: &Path, options: &str) -> Mounted {
        let number = fs::read_dir(self.path()).expect("directory").count();
        self.mounted_at(image, options, &format!("tree{number}"))
    }

    /// The same, in a directory of this name.
    pub(crate) fn mounted_at(&self, image: &Path, options: &str, name: &str) -> Mounted {
        let tree = self.directory(name, 0o755);
        let options = format!("loop,{options}");
        stdout(Command::new("mount").args(["-t", "squashfs", "-o", &options]).arg(image).arg(&tree));
        Mounted(tree)
    }
}

/// A mounted tree; unmounted when dropped.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    #[track_caller]
    pub(crate) fn unmount(&self) {
        let output = run(Command::new("umount").arg(&self.0));
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Fails where the test itself has unmounted it; a lazy one never waits.
        let _ = Command::new("umount").args(["-q", "-l"]).arg(&self.0).output();
    }
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("chmod");
}
