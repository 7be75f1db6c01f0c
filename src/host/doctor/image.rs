//! `hpcrun doctor --image`: what of one image fits this node, and what does not.

use std::path::PathBuf;

use super::{Check, Place, mebibytes};
use crate::host::Kernel;

/// What is known of an image file, and of the node as far as images are compared with it.
#[derive(Debug, Clone, Default)]
pub struct ImageFacts {
    /// The file.
    pub path: PathBuf,
    /// Its length, bytes.
    pub length: u64,
    /// The file system that it lies on.
    pub place: Option<Place>,
    /// Owner and permission bits.
    pub owner: Option<(u32, u32)>,
    /// `squashfs with trailer`, `squashfs`, `SIF`.
    pub format: &'static str,
    /// The compression of its blocks: `zstd`.
    pub codec: String,
    /// The sections of its trailer: none without one, else whether they are whole.
    pub trailer: Option<Result<(), String>>,
    /// Whether it holds hashes of all its chunks.
    pub has_hashes: bool,
    /// The image's architecture in Go's names; empty if it does not say.
    pub architecture: String,
    /// The node's.
    pub node_architecture: String,
    /// The image's C library.
    pub libc: Libc,
    /// The oldest kernel that its C library starts on.
    pub libc_kernel: Option<(u32, u32)>,
    /// The x86-64 level (2, 3, 4) that its C library needs, or that its platform names.
    pub cpu_level: Option<u8>,
    /// The node's x86-64 level; none on other processors.
    pub node_cpu_level: Option<u8>,
    /// The node's kernel.
    pub kernel: Kernel,
    /// What the site's policy and the plan of a launch say.
    pub plan: Option<Result<(), String>>,
}

/// An image's C library.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Libc {
    /// None was found: static programs only.
    #[default]
    None,
    /// glibc, and the newest version of symbols that it defines.
    Glibc(u32, u32),
    /// musl.
    Musl,
}

/// The check that fails where an image cannot be opened at all.
pub fn unusable(why: impl Into<String>, hints: &[String]) -> Check {
    let remedy: Vec<&str> = hints.iter().map(String::as_str).collect();
    let otherwise = ["check the path, and whether its file system is mounted on this node"];
    Check::no("image file", why, if remedy.is_empty() { &otherwise } else { &remedy })
}

/// Everything that the facts tell of one image.
pub fn checks(facts: &ImageFacts) -> Vec<Check> {
    vec![
        file(facts),
        format(facts),
        hashes(facts),
        architecture(facts),
        libc(facts),
        cpu_level(facts),
        kernel(facts),
        plan(facts),
    ]
}

fn file(facts: &ImageFacts) -> Check {
    let name = "image file";
    let on = facts.place.as_ref().filter(|place| !place.kind.is_empty());
    let on = on.map(|place| format!(" on {}", place.kind)).unwrap_or_default();
    let detail = format!("{}, {}{on}", facts.path.display(), mebibytes(facts.length));
    match facts.owner {
        Some((_, mode)) if mode & 0o022 != 0 => Check::warn(
            name,
            format!("{detail}; others may change it under a running job (mode {mode:04o})"),
            &[&format!("chmod go-w {}", facts.path.display())],
        ),
        _ => Check::ok(name, detail),
    }
}

fn format(facts: &ImageFacts) -> Check {
    let name = "image format";
    let detail = format!("{}, {}", facts.format, facts.codec);
    match &facts.trailer {
        Some(Err(why)) => {
            Check::no(name, format!("{detail}; damaged: {why}"), &["copy or convert the image again"])
        }
        _ => Check::ok(name, detail),
    }
}

fn hashes(facts: &ImageFacts) -> Check {
    let name = "image hashes";
    if facts.has_hashes {
        let command = format!("there; 'hpcrun verify {}' reads every byte", facts.path.display());
        return Check::ok(name, command);
    }
    Check::not_applicable(name, "none: only what 'hpcrun convert' and 'hpcrun pull' wrote has them")
}

fn architecture(facts: &ImageFacts) -> Check {
    let name = "image architecture";
    if facts.architecture.is_empty() {
        return Check::not_applicable(name, "the image does not say");
    }
    if facts.architecture == facts.node_architecture {
        return Check::ok(name, facts.architecture.as_str());
    }
    let pull = format!("hpcrun pull --platform linux/{} REFERENCE", facts.node_architecture);
    Check::no(name, format!("{}, and this node is {}", facts.architecture, facts.node_architecture), &[&pull])
}

fn libc(facts: &ImageFacts) -> Check {
    let name = "image C library";
    match facts.libc {
        Libc::None => Check::not_applicable(name, "none: static programs only"),
        Libc::Glibc(major, minor) => Check::ok(name, format!("glibc {major}.{minor}")),
        Libc::Musl => Check::ok(name, "musl: libraries of the host (GPU, MPI) cannot be loaded in it"),
    }
}

fn cpu_level(facts: &ImageFacts) -> Check {
    let name = "image CPU level";
    match (facts.cpu_level, facts.node_cpu_level) {
        (Some(needed), Some(has)) if needed > has => Check::no(
            name,
            format!("x86-64-v{needed}, and this node's processor is x86-64-v{has}"),
            &["use an image built for older processors, or run it on newer nodes"],
        ),
        (Some(needed), _) => Check::ok(name, format!("x86-64-v{needed}")),
        (None, Some(has)) => Check::ok(name, format!("no demand (this node: x86-64-v{has})")),
        (None, None) => Check::not_applicable(name, "no levels on this processor"),
    }
}

fn kernel(facts: &ImageFacts) -> Check {
    let name = "image kernel";
    match facts.libc_kernel {
        Some((major, minor)) if facts.kernel.version < (major, minor) => Check::no(
            name,
            format!("its C library needs Linux {major}.{minor}, this is {}", facts.kernel.release),
            &["run it on nodes with a newer kernel"],
        ),
        Some((major, minor)) => Check::ok(name, format!("Linux {major}.{minor} or newer")),
        None => Check::not_applicable(name, "no demand"),
    }
}

fn plan(facts: &ImageFacts) -> Check {
    let name = "image launch";
    match &facts.plan {
        None => Check::not_applicable(name, "not planned"),
        Some(Ok(())) => Check::ok(name, "the site policy allows it, and a launch can be planned"),
        Some(Err(why)) => {
            Check::no(name, why, &[&format!("hpcrun exec --explain {} true", facts.path.display())])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn good() -> ImageFacts {
        ImageFacts {
            path: "/images/app.sqsh".into(),
            length: 1 << 30,
            owner: Some((0, 0o644)),
            format: "squashfs with trailer",
            codec: "zstd".to_owned(),
            trailer: Some(Ok(())),
            has_hashes: true,
            architecture: "amd64".to_owned(),
            node_architecture: "amd64".to_owned(),
            libc: Libc::Glibc(2, 36),
            libc_kernel: Some((3, 2)),
            cpu_level: Some(2),
            node_cpu_level: Some(3),
            kernel: Kernel::parse("6.1.0"),
            plan: Some(Ok(())),
            ..ImageFacts::default()
        }
    }

    #[test]
    fn an_image_that_fits() {
        for check in checks(&good()) {
            assert_eq!((check.status, check.remedy.len()), (Status::Ok, 0), "{check:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_named_with_a_remedy() {
        use Status::{No, NotApplicable, Ok as Fine, Warn};
        let with = |change: &dyn Fn(&mut ImageFacts)| {
            let mut facts = good();
            change(&mut facts);
            facts
        };
        type Case<'a> = (ImageFacts, &'a str, Status, &'a str);
        let cases: [Case<'_>; 15] = [
            (with(&|f| f.owner = Some((0, 0o664))), "image file", Warn, "chmod go-w /images/app.sqsh"),
            (with(&|f| f.trailer = Some(Err("section 3".into()))), "image format", No, "damaged: section 3"),
            (with(&|f| f.trailer = None), "image format", Fine, "zstd"),
            (with(&|f| f.has_hashes = false), "image hashes", NotApplicable, "none"),
            (with(&|f| f.architecture = "arm64".into()), "image architecture", No, "--platform linux/amd64"),
            (with(&|f| f.architecture = String::new()), "image architecture", NotApplicable, "not say"),
            (with(&|f| f.libc = Libc::Musl), "image C library", Fine, "musl"),
            (with(&|f| f.libc = Libc::None), "image C library", NotApplicable, "static"),
            (with(&|f| f.cpu_level = Some(4)), "image CPU level", No, "x86-64-v4, and this node's"),
            (with(&|f| f.cpu_level = None), "image CPU level", Fine, "no demand"),
            (
                with(&|f| (f.cpu_level, f.node_cpu_level) = (None, None)),
                "image CPU level",
                NotApplicable,
                "no levels",
            ),
            (with(&|f| f.libc_kernel = Some((6, 5))), "image kernel", No, "needs Linux 6.5"),
            (with(&|f| f.libc_kernel = None), "image kernel", NotApplicable, "no demand"),
            (with(&|f| f.plan = Some(Err("refused".into()))), "image launch", No, "--explain"),
            (with(&|f| f.plan = None), "image launch", NotApplicable, "not planned"),
        ];
        for (facts, name, status, words) in cases {
            let checks = checks(&facts);
            let check = checks.iter().find(|check| check.name == name).expect("a check of that name");
            let text = format!("{} {}", check.detail, check.remedy.join(" "));
            assert_eq!(check.status, status, "{check:?}");
            assert!(text.contains(words), "{words:?} in {text:?}");
            assert_eq!(check.remedy.is_empty(), !matches!(status, No | Warn), "{check:?}");
        }
        let missing = unusable("cannot open image", &[]);
        assert_eq!((missing.status, missing.remedy.len()), (No, 1));
        assert_eq!(unusable("x", &["do this".to_owned()]).remedy, ["do this"]);
    }
}
