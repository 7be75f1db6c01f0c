//! Names of devices: `vendor.example/class=device`.

use std::fmt;

/// A device's name, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceName {
    /// `vendor.example/class`
    pub kind: String,
    /// `0`, `0:1`, `GPU-2b6c...`, `all`
    pub device: String,
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.device)
    }
}

/// Takes a name apart; none if it is no name.
pub fn parse(name: &str) -> Option<DeviceName> {
    let (kind, device) = name.split_once('=')?;
    (is_kind(kind) && is_device(device))
        .then(|| DeviceName { kind: kind.to_owned(), device: device.to_owned() })
}

/// Whether it is a `vendor/class`; either begins with a letter and ends with a letter or digit.
pub(super) fn is_kind(kind: &str) -> bool {
    kind.split_once('/').is_some_and(|(vendor, class)| {
        is_made_of(vendor, "_-.", char::is_alphabetic) && is_made_of(class, "_-.", char::is_alphabetic)
    })
}

/// Whether it is the name of a device within a kind.
pub(super) fn is_device(device: &str) -> bool {
    is_made_of(device, "_-.:", char::is_alphanumeric)
}

fn is_made_of(text: &str, more: &str, is_first: fn(char) -> bool) -> bool {
    text.is_ascii()
        && text.starts_with(is_first)
        && text.ends_with(char::is_alphanumeric)
        && text.chars().all(|c| c.is_alphanumeric() || more.contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for name in [
            "nvidia.com/gpu=all",
            "nvidia.com/gpu=0:1",
            "nvidia.com/gpu=GPU-8dfe2b2c-0b57",
            "vendor.example/a.b-c_d=x",
            "v/c=0",
        ] {
            assert_eq!(parse(name).unwrap().to_string(), name);
        }
        for name in [
            "",
            "gpu",
            "nvidia.com/gpu",
            "nvidia.com=0",
            "/gpu=0",
            "nvidia.com/=0",
            "nvidia.com/gpu=",
            "1vendor/gpu=0",
            "vendor/1class=0",
            "nvidia.com/gpu=-0",
            "nvidia.com/gpu=0:",
            "a/b/c=0",
            "v/c=a b",
            "v/c=\u{e4}",
            "v./c=0",
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
    }
}
