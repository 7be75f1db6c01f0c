//! Kernel features as values: probed once, shown by `hpcrun doctor`, written by hand in tests. Pure.

use std::fmt;

/// Whether this user can use a feature of this kernel, and if not, why.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Feature {
    /// Nothing is known that stands in the way.
    #[default]
    Usable,
    /// The kernel has it and this node forbids it.
    Denied(String),
    /// The kernel lacks it.
    Absent(String),
}

impl Feature {
    /// Whether it can be used.
    pub fn is_usable(&self) -> bool {
        *self == Feature::Usable
    }

    /// Why not.
    pub fn why_not(&self) -> Option<&str> {
        match self {
            Feature::Usable => None,
            Feature::Denied(why) | Feature::Absent(why) => Some(why),
        }
    }
}

/// What a launch builds on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Features {
    /// User namespaces for an ordinary user.
    pub userns: Feature,
    /// Mounting the image server: `/dev/fuse` and FUSE in user namespaces (Linux 4.18).
    pub fuse: Feature,
    /// Joining by process descriptor in one call (Linux 5.8); without it each namespace is joined by itself.
    pub pidfd_setns: Feature,
    /// A new image server asks for what the dead one owed (Linux 6.9); without it, such requests fail.
    pub fuse_resend: Feature,
}

/// The kernel's release.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kernel {
    /// As the kernel says: `6.1.0-28-amd64`.
    pub release: String,
    /// `(6, 1)`
    pub version: (u32, u32),
}

impl Kernel {
    /// Reads a release; a part that is no number counts as 0.
    pub fn parse(release: &str) -> Kernel {
        let release = release.trim();
        let mut numbers =
            release.split(['.', '-', '+', '_', '~']).map(|part| part.parse::<u32>().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        Kernel { release: release.to_owned(), version }
    }

    /// `Usable` from `major.minor` on. Distributions backport, so this is for features that have a fallback.
    fn since(&self, major: u32, minor: u32) -> Feature {
        if self.version >= (major, minor) {
            Feature::Usable
        } else {
            Feature::Absent(format!("needs Linux {major}.{minor}, this is {}", self.release))
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Linux {}", self.release)
    }
}

/// What the probe saw that bears on features.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Whether the caller is the real root, whom the switches for ordinary users do not concern.
    pub privileged: bool,
    /// Whether `/proc/self/ns/user` exists.
    pub has_user_namespaces: bool,
    /// `/proc/sys/user/max_user_namespaces`, none where the file is missing.
    pub max_user_namespaces: Option<u64>,
    /// `/proc/sys/kernel/unprivileged_userns_clone`, on kernels of Debian and kin.
    pub unprivileged_userns_clone: Option<u64>,
    /// The device `/dev/fuse`.
    pub dev_fuse: DevFuse,
}

/// The state of `/dev/fuse`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum DevFuse {
    /// Can be opened for reading and writing.
    #[default]
    Usable,
    /// There is none.
    Missing,
    /// It is there and is something else.
    NotTheDevice,
    /// The kernel's refusal.
    Refused(String),
}

impl Features {
    /// The features that follow from a kernel and what was seen of its switches. What only trying shows (AppArmor, a
    /// seccomp filter) is not decided here.
    pub fn derive(kernel: &Kernel, observed: &Observed) -> Features {
        Features {
            userns: userns(observed),
            fuse: fuse(kernel, &observed.dev_fuse),
            pidfd_setns: kernel.since(5, 8),
            fuse_resend: kernel.since(6, 9),
        }
    }
}

fn userns(observed: &Observed) -> Feature {
    if !observed.has_user_namespaces {
        return Feature::Absent("this kernel was built without user namespaces".to_owned());
    }
    if observed.max_user_namespaces == Some(0) {
        return Feature::Denied("the sysctl user.max_user_namespaces is 0".to_owned());
    }
    if observed.unprivileged_userns_clone == Some(0) && !observed.privileged {
        return Feature::Denied("the sysctl kernel.unprivileged_userns_clone is 0".to_owned());
    }
    Feature::Usable
}

fn fuse(kernel: &Kernel, dev_fuse: &DevFuse) -> Feature {
    match dev_fuse {
        DevFuse::Missing => Feature::Absent("there is no /dev/fuse".to_owned()),
        DevFuse::NotTheDevice => Feature::Absent("/dev/fuse is not the device of FUSE".to_owned()),
        DevFuse::Refused(why) => Feature::Denied(why.clone()),
        DevFuse::Usable => kernel.since(4, 18),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        for (release, version) in [
            ("6.1.0-28-amd64\n", (6, 1)),
            ("4.18.0-553.el8_10.x86_64", (4, 18)),
            ("5.14.21-150500.55.19-default", (5, 14)),
            ("6.18.44+", (6, 18)),
            ("6.9-rc1", (6, 9)),
            ("6", (6, 0)),
            ("", (0, 0)),
            ("next-20240101", (0, 20_240_101)),
            ("99999999999.1", (0, 1)),
        ] {
            assert_eq!(Kernel::parse(release).version, version, "{release}");
        }
    }

    #[test]
    fn features_follow_from_switches() {
        let modern = Kernel::parse("6.9.1");
        let good = Observed { has_user_namespaces: true, ..Observed::default() };
        let userns = |observed: &Observed| Features::derive(&modern, observed).userns;
        assert_eq!(Features::derive(&modern, &good), Features::default());
        assert!(userns(&Observed { max_user_namespaces: Some(1), ..good.clone() }).is_usable());
        let none = userns(&Observed { max_user_namespaces: Some(0), ..good.clone() });
        assert_eq!(none.why_not(), Some("the sysctl user.max_user_namespaces is 0"));
        let clone = Observed { unprivileged_userns_clone: Some(0), ..good.clone() };
        assert!(!userns(&clone).is_usable());
        assert!(userns(&Observed { privileged: true, ..clone }).is_usable());
        assert!(matches!(userns(&Observed::default()), Feature::Absent(_)));
        for (dev_fuse, usable) in [
            (DevFuse::Usable, true),
            (DevFuse::Missing, false),
            (DevFuse::NotTheDevice, false),
            (DevFuse::Refused("no".to_owned()), false),
        ] {
            let fuse = Features::derive(&modern, &Observed { dev_fuse, ..good.clone() }).fuse;
            assert_eq!(fuse.is_usable(), usable);
        }
    }

    #[test]
    fn old_kernels() {
        let good = Observed { has_user_namespaces: true, ..Observed::default() };
        for (release, fuse, pidfd, resend) in [
            ("3.10.0-1160.el7", false, false, false),
            ("4.17.19", false, false, false),
            ("4.18.0-553.el8", true, false, false),
            ("5.7.0", true, false, false),
            ("5.14.0-427.el9", true, true, false),
            ("6.8.0-45-generic", true, true, false),
            ("6.9.0", true, true, true),
            ("10.0.0", true, true, true),
        ] {
            let features = Features::derive(&Kernel::parse(release), &good);
            let found = (
                features.fuse.is_usable(),
                features.pidfd_setns.is_usable(),
                features.fuse_resend.is_usable(),
            );
            assert_eq!(found, (fuse, pidfd, resend), "{release}");
        }
    }
}
