//! Hooks of CDI specifications that are done without running them: NVIDIA's.
//!
//! Source: `cmd/nvidia-cdi-hook` of the container toolkit. Older specifications call `nvidia-ctk hook NAME`.

use std::path::{Path, PathBuf};

use crate::host::cdi::Hook;

/// What a hook comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Whether hpcrun knows it.
    pub(super) is_known: bool,
    /// Directories whose libraries are to be found first.
    pub(super) folders: Vec<PathBuf>,
    /// Links: target and place.
    pub(super) links: Vec<(PathBuf, PathBuf)>,
    /// Whether programs that draw are to be told which devices there are.
    pub(super) wants_profile: bool,
}

/// Hooks that ask for nothing here: the image's compatibility libraries are looked at in every launch, who is not root
/// changes no node, and modes do not matter to the owner of a process.
const NOTHING_TO_DO: [&str; 3] = ["enable-cuda-compat", "disable-device-node-modification", "chmod"];

/// What `hook` comes to.
pub(super) fn outcome(hook: &Hook) -> Outcome {
    let program = Path::new(&hook.path).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let mut words = hook.args.iter().map(String::as_str).skip(1).filter(|word| !word.is_empty());
    let command = match (program, words.next()) {
        ("nvidia-ctk" | "nvidia-container-toolkit", Some("hook")) => words.next(),
        ("nvidia-cdi-hook", command) => command,
        _ => None,
    };
    let words: Vec<&str> = words.collect();
    let known = Outcome { is_known: true, ..Outcome::default() };
    match command {
        // The other one makes the links and leaves the list alone: a library has both here.
        Some("update-ldcache" | "create-soname-symlinks") => {
            Outcome { folders: values(&words, "folder").into_iter().map(PathBuf::from).collect(), ..known }
        }
        Some("create-symlinks") => {
            let links = values(&words, "link").into_iter().filter_map(|link| link.split_once("::"));
            let links = links.filter(|(target, path)| !target.is_empty() && path.starts_with('/'));
            Outcome { links: links.map(|(target, path)| (target.into(), path.into())).collect(), ..known }
        }
        Some("update-application-profile") => Outcome { wants_profile: true, ..known },
        Some(command) if NOTHING_TO_DO.contains(&command) => known,
        _ => Outcome::default(),
    }
}

/// The values of an option that may be repeated: `--link X`, `--link=X`.
fn values<'a>(words: &[&'a str], option: &str) -> Vec<&'a str> {
    let mut values = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let Some(name) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else { continue };
        match name.split_once('=') {
            Some((name, value)) if name == option => values.push(value),
            None if name == option => values.extend(words.next().copied()),
            _ => {}
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(path: &str, args: &[&str]) -> Hook {
        Hook {
            hook_name: "createContainer".to_owned(),
            path: path.to_owned(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env: Vec::new(),
            timeout: None,
        }
    }

    #[test]
    fn every_known_hook_in_both_spellings() {
        let cases: [(&[&str], Outcome); 9] = [
            (
                &[
                    "update-ldcache",
                    "--folder",
                    "/usr/lib64",
                    "--folder=/opt/lib",
                    "--ldconfig-path",
                    "/sbin/ldconfig",
                ],
                Outcome { folders: vec!["/usr/lib64".into(), "/opt/lib".into()], ..Outcome::default() },
            ),
            (
                &[
                    "create-symlinks",
                    "--link",
                    "libcuda.so.1::/usr/lib64/libcuda.so",
                    "--link",
                    "bad",
                    "--link=a::b",
                ],
                Outcome {
                    links: vec![("libcuda.so.1".into(), "/usr/lib64/libcuda.so".into())],
                    ..Outcome::default()
                },
            ),
            (&["create-symlinks"], Outcome::default()),
            (
                &["create-soname-symlinks", "--folder", "/usr/lib64"],
                Outcome { folders: vec!["/usr/lib64".into()], ..Outcome::default() },
            ),
            (&["enable-cuda-compat", "--host-driver-version=550.1"], Outcome::default()),
            (&["disable-device-node-modification"], Outcome::default()),
            (&["update-application-profile"], Outcome { wants_profile: true, ..Outcome::default() }),
            (&["chmod", "--mode", "755", "--path", "/dev/dri"], Outcome::default()),
            (&["update-ldcache", "--folder"], Outcome::default()),
        ];
        for (args, expected) in cases {
            let expected = Outcome { is_known: true, ..expected };
            let new = [&["nvidia-cdi-hook"], args].concat();
            assert_eq!(outcome(&hook("/usr/bin/nvidia-cdi-hook", &new)), expected, "{args:?}");
            let old = [&["nvidia-ctk", "hook"], args].concat();
            assert_eq!(outcome(&hook("/usr/local/nvidia/toolkit/nvidia-ctk", &old)), expected, "{args:?}");
        }
    }

    #[test]
    fn others_are_not_known() {
        for (path, args) in [
            ("/usr/bin/nvidia-cdi-hook", &["nvidia-cdi-hook", "new-thing"][..]),
            ("/usr/bin/nvidia-cdi-hook", &["nvidia-cdi-hook"]),
            ("/usr/bin/nvidia-cdi-hook", &[]),
            ("/usr/bin/nvidia-ctk", &["nvidia-ctk", "update-ldcache"]),
            ("/usr/bin/vendor-hook", &["vendor-hook", "update-ldcache", "--folder", "/x"]),
        ] {
            assert_eq!(outcome(&hook(path, args)), Outcome::default(), "{path} {args:?}");
        }
    }
}
