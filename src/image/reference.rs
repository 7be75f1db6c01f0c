//! References: the name of an image in a registry, and the transports that a source is named by.
//!
//! The grammar is that of `distribution/reference` (the one behind docker, podman and containerd), written out as code.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::digest::{Digest, DigestError};

const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";
const MAX_REPOSITORY_BYTES: usize = 255;
const MAX_TAG_BYTES: usize = 128;

/// `registry/repository[:tag][@digest]`, normalised: `debian` is `docker.io/library/debian:latest`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// Nothing at all.
    #[error("the reference is empty")]
    Empty,
    /// 64 hexadecimal digits are an image ID, not a name.
    #[error("reference {0:?} is an image ID, not a name")]
    ImageId(String),
    /// The registry is no host name.
    #[error("reference {text:?} has the malformed registry {registry:?}")]
    Registry {
        /// As typed.
        text: String,
        /// The part before the first slash.
        registry: String,
    },
    /// Upper case in the repository.
    #[error("reference {0:?} has upper-case letters in its repository")]
    UpperCase(String),
    /// The repository is malformed.
    #[error("reference {text:?} has the malformed repository {repository:?}")]
    Repository {
        /// As typed.
        text: String,
        /// The part in question.
        repository: String,
    },
    /// The repository is too long.
    #[error("reference {0:?} has a repository longer than {MAX_REPOSITORY_BYTES} bytes")]
    TooLong(String),
    /// The tag is malformed.
    #[error("reference {text:?} has the malformed tag {tag:?}")]
    Tag {
        /// As typed.
        text: String,
        /// The part after the colon.
        tag: String,
    },
    /// The digest is malformed.
    #[error("reference {text:?} has a malformed digest")]
    Digest {
        /// As typed.
        text: String,
        /// The cause.
        source: DigestError,
    },
}

impl Reference {
    /// Parses and normalises a reference as docker does.
    pub fn parse(text: &str) -> Result<Reference, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let shown = || text.chars().take(400).collect::<String>();
        if text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f')) {
            return Err(ReferenceError::ImageId(shown()));
        }
        let (name, digest) = match text.split_once('@') {
            None => (text, None),
            Some((name, digest)) => {
                let digest = Digest::parse(digest)
                    .map_err(|source| ReferenceError::Digest { text: shown(), source })?;
                (name, Some(digest))
            }
        };
        let (registry, rest) = split_registry(name);
        if !is_registry(registry) {
            return Err(ReferenceError::Registry { text: shown(), registry: registry.into() });
        }
        let (path, tag) = match rest.split_once(':') {
            None => (rest, None),
            Some((path, tag)) => (path, Some(tag)),
        };
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(ReferenceError::UpperCase(shown()));
        }
        if !path.split('/').all(is_path_component) {
            return Err(ReferenceError::Repository { text: shown(), repository: path.into() });
        }
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Tag { text: shown(), tag: tag.into() });
        }
        let official = registry == DEFAULT_REGISTRY && !path.contains('/');
        let repository = if official { format!("library/{path}") } else { path.to_owned() };
        if repository.len() > MAX_REPOSITORY_BYTES {
            return Err(ReferenceError::TooLong(shown()));
        }
        let default_tag = if digest.is_none() { Some(DEFAULT_TAG) } else { None };
        let tag = tag.or(default_tag).map(str::to_owned);
        Ok(Reference { registry: registry.to_owned(), repository, tag, digest })
    }

    /// The registry as named, with its port: `docker.io`, `localhost:5000`, `[::1]:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository: `library/debian`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; with a digest it is a label only.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, which decides where there is one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Host and port that serve the registry's API; Docker Hub's differs from its name.
    pub fn api_host(&self) -> &str {
        if self.registry == DEFAULT_REGISTRY { "registry-1.docker.io" } else { &self.registry }
    }

    /// What a manifest is asked for by: the digest, else the tag.
    pub fn identifier(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => DEFAULT_TAG,
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Whether a reference as typed names no registry, so that only a convention says which is meant: `debian:12`,
/// `group/app`, but not `localhost/app`.
pub fn is_short(text: &str) -> bool {
    stated_registry(text).is_none()
}

/// The registry and the rest.
fn split_registry(name: &str) -> (&str, &str) {
    match stated_registry(name) {
        Some(("index.docker.io", rest)) => (DEFAULT_REGISTRY, rest),
        Some(stated) => stated,
        None => (DEFAULT_REGISTRY, name),
    }
}

/// The registry as written, and the rest. The first part is a registry only if it cannot be a repository: it has a dot,
/// a colon or upper case, or is `localhost`.
fn stated_registry(name: &str) -> Option<(&str, &str)> {
    let (first, rest) = name.split_once('/')?;
    let is_registry =
        first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|b| b.is_ascii_uppercase());
    is_registry.then_some((first, rest))
}

fn is_registry(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) => {
                if address.is_empty() || !address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') {
                    return false;
                }
                (None, port)
            }
            None => return false,
        },
        None => match text.find(':') {
            Some(at) => text.split_at_checked(at).map_or((Some(text), ""), |(host, port)| (Some(host), port)),
            None => (Some(text), ""),
        },
    };
    let is_label = |label: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    let is_port = match port.strip_prefix(':') {
        None => port.is_empty(),
        Some(digits) => digits.bytes().all(|b| b.is_ascii_digit()) && digits.parse::<u16>().is_ok(),
    };
    is_port && host.is_none_or(|host| host.split('.').all(is_label))
}

/// `[a-z0-9]+((.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(part: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends_are_words = part.bytes().next().is_some_and(is_word) && part.bytes().last().is_some_and(is_word);
    let separators: Vec<&str> = part
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .filter(|s| !s.is_empty())
        .collect();
    let is_separator = |text: &str| matches!(text, "." | "_" | "__") || text.bytes().all(|b| b == b'-');
    ends_are_words && separators.iter().all(|text| is_separator(text))
}

/// `[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}`
fn is_tag(tag: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= MAX_TAG_BYTES
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|b| is_word(b) || matches!(b, b'.' | b'-'))
}

/// Which image of an archive or layout that holds several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageChoice {
    /// By its name, as typed.
    Name(String),
    /// By its position, `@0` is the first.
    Position(usize),
}

impl ImageChoice {
    fn parse(text: &str) -> ImageChoice {
        match text.strip_prefix('@').map(str::parse) {
            Some(Ok(position)) => ImageChoice::Position(position),
            _ => ImageChoice::Name(text.to_owned()),
        }
    }
}

impl fmt::Display for ImageChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ImageChoice::Name(name) => f.write_str(name),
            ImageChoice::Position(position) => write!(f, "@{position}"),
        }
    }
}

/// An image and the transport that leads to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceReference {
    /// `docker://REFERENCE`
    Registry(Reference),
    /// `docker-archive:PATH[:REF]`, what `docker save` writes.
    DockerArchive {
        /// The archive; `-` is standard input.
        path: PathBuf,
        /// Which image; none when there is but one.
        image: Option<ImageChoice>,
    },
    /// `oci-archive:PATH[:REF]`, a tar of an OCI layout.
    OciArchive {
        /// The archive; `-` is standard input.
        path: PathBuf,
        /// Which image; none when there is but one.
        image: Option<ImageChoice>,
    },
    /// `oci:DIR[:REF]`
    OciLayout {
        /// The directory.
        path: PathBuf,
        /// Which image; none when there is but one.
        image: Option<ImageChoice>,
    },
    /// `docker-daemon:NAME`: an image that a docker or podman on this machine has. As typed, never empty.
    DockerDaemon(String),
    /// `tar:PATH`, a tar of a root file system; `-` is standard input.
    Tar(PathBuf),
    /// `dir:PATH`, a directory that is a root file system.
    Directory(PathBuf),
    /// `sif:PATH`, an image file of Apptainer or Singularity.
    Sif(PathBuf),
    /// `squashfs:PATH`, any squashfs.
    Squashfs(PathBuf),
}

/// Why a text names no source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SourceReferenceError {
    /// No transport.
    #[error("{text:?} does not say where the image is")]
    NoTransport {
        /// As typed.
        text: String,
        /// Whether a file of this name exists.
        exists: bool,
    },
    /// A transport of another tool.
    #[error("{transport:?} is not a transport that hpcrun knows")]
    UnknownTransport {
        /// The part before the colon.
        transport: String,
    },
    /// `docker:` without the slashes.
    #[error("{0:?} lacks the slashes of docker://")]
    NoSlashes(String),
    /// A transport without a path.
    #[error("{transport}: is not followed by a path")]
    NoPath {
        /// The transport.
        transport: &'static str,
    },
    /// A transport without the name of an image.
    #[error("{transport}: is not followed by the name of an image")]
    NoName {
        /// The transport.
        transport: &'static str,
    },
    /// White space or control characters.
    #[error("{0:?} is no name of an image")]
    BadName(String),
    /// The image's name is not text.
    #[error("the image name in {0:?} is not UTF-8")]
    NotUtf8(OsString),
    /// The reference is malformed.
    #[error("cannot read the image reference")]
    Reference(#[source] ReferenceError),
}

/// The path that stands for standard input; a file of this name is `./-`.
pub const STANDARD_INPUT: &str = "-";

/// The transports, for messages.
const TRANSPORTS: &str = "docker://REFERENCE, docker-archive:PATH[:REF], oci-archive:PATH[:REF], oci:DIR[:REF], \
                          docker-daemon:NAME, tar:PATH, dir:PATH, sif:PATH, squashfs:PATH";

impl crate::hint::Hint for SourceReferenceError {
    fn hints(&self) -> Vec<String> {
        let known = format!("an image is named by one of {TRANSPORTS}");
        match self {
            SourceReferenceError::NoTransport { text, exists: true } => vec![
                known,
                format!(
                    "for a file of docker save: docker-archive:{text}; for an OCI layout: oci:{text}; for a root file \
                     system: dir:{text} or tar:{text}"
                ),
            ],
            SourceReferenceError::NoTransport { text, exists: false } => {
                vec![known, format!("for an image in a registry: docker://{text}")]
            }
            SourceReferenceError::UnknownTransport { .. } => vec![known],
            SourceReferenceError::NoSlashes(text) => {
                vec![format!("write docker://{}", text.trim_start_matches("docker:"))]
            }
            SourceReferenceError::Reference(ReferenceError::ImageId(_)) => {
                vec![
                    "an image ID means something to one docker daemon only; use a name or name@digest".into(),
                ]
            }
            _ => Vec::new(),
        }
    }
}

impl SourceReference {
    /// Parses `TRANSPORT:...`. A path may itself hold colons: it ends at the first colon before which something
    /// `exists`, else at the first colon.
    pub fn parse(
        text: &OsStr,
        exists: &dyn Fn(&Path) -> bool,
    ) -> Result<SourceReference, SourceReferenceError> {
        let bytes = text.as_bytes();
        if let Some(rest) = bytes.strip_prefix(b"docker://") {
            let rest =
                std::str::from_utf8(rest).map_err(|_| SourceReferenceError::NotUtf8(text.to_owned()))?;
            return Reference::parse(rest)
                .map(SourceReference::Registry)
                .map_err(SourceReferenceError::Reference);
        }
        if let Some(rest) = bytes.strip_prefix(b"docker-archive:") {
            let (path, image) = split_path("docker-archive", rest, exists)?;
            return Ok(SourceReference::DockerArchive { path, image });
        }
        if let Some(rest) = bytes.strip_prefix(b"oci-archive:") {
            let (path, image) = split_path("oci-archive", rest, exists)?;
            return Ok(SourceReference::OciArchive { path, image });
        }
        if let Some(rest) = bytes.strip_prefix(b"oci:") {
            let (path, image) = split_path("oci", rest, exists)?;
            return Ok(SourceReference::OciLayout { path, image });
        }
        if let Some(rest) = bytes.strip_prefix(b"docker-daemon:") {
            return daemon_name(rest).map(SourceReference::DockerDaemon);
        }
        let whole: [(&'static str, OfPath); 4] = [
            ("tar", SourceReference::Tar),
            ("dir", SourceReference::Directory),
            ("sif", SourceReference::Sif),
            ("squashfs", SourceReference::Squashfs),
        ];
        for (transport, make) in whole {
            let Some(rest) = bytes.strip_prefix(transport.as_bytes()) else { continue };
            match rest.strip_prefix(b":") {
                Some(b"") => return Err(SourceReferenceError::NoPath { transport }),
                // `dir:` itself may be a file of the working directory, but then so is `./dir:`.
                Some(path) => return Ok(make(PathBuf::from(OsString::from_vec(path.to_vec())))),
                None => {}
            }
        }
        Err(without_transport(text, exists))
    }
}

/// The name of an image as a daemon knows it. The daemon judges it; only what no name holds is refused here.
fn daemon_name(bytes: &[u8]) -> Result<String, SourceReferenceError> {
    let not_text = || SourceReferenceError::NotUtf8(OsString::from_vec(bytes.to_vec()));
    match std::str::from_utf8(bytes).map_err(|_| not_text())? {
        "" => Err(SourceReferenceError::NoName { transport: "docker-daemon" }),
        name if name.chars().any(|c| c.is_control() || c.is_whitespace()) => {
            Err(SourceReferenceError::BadName(name.to_owned()))
        }
        name => Ok(name.to_owned()),
    }
}

fn without_transport(text: &OsStr, exists: &dyn Fn(&Path) -> bool) -> SourceReferenceError {
    let shown = text.to_string_lossy().into_owned();
    if exists(Path::new(text)) {
        return SourceReferenceError::NoTransport { text: shown, exists: true };
    }
    if shown.starts_with("docker:") {
        return SourceReferenceError::NoSlashes(shown);
    }
    // "localhost:5000/app" and "debian:12" have no transport, "containers-storage:x" and "http://x" have a strange one.
    const ELSEWHERE: [&str; 11] = [
        "atomic",
        "containers-storage",
        "dockerd",
        "file",
        "http",
        "https",
        "library",
        "oci-sif",
        "oras",
        "ostree",
        "shub",
    ];
    match shown.split_once(':') {
        Some((transport, rest)) if ELSEWHERE.contains(&transport) || rest.starts_with("//") => {
            SourceReferenceError::UnknownTransport { transport: transport.to_owned() }
        }
        _ => SourceReferenceError::NoTransport { text: shown, exists: false },
    }
}

/// Makes the reference of a transport that is followed by a path and nothing else.
type OfPath = fn(PathBuf) -> SourceReference;
type PathAndImage = (PathBuf, Option<ImageChoice>);

fn split_path(
    transport: &'static str,
    rest: &[u8],
    exists: &dyn Fn(&Path) -> bool,
) -> Result<PathAndImage, SourceReferenceError> {
    let path_of = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_vec()));
    let splits = || {
        let colons = rest.iter().enumerate().filter(|(_, byte)| **byte == b':').map(|(at, _)| at);
        colons.chain([rest.len()]).filter_map(|at| rest.split_at_checked(at))
    };
    let is_input = |path: &[u8]| path == STANDARD_INPUT.as_bytes();
    let found = splits().find(|(path, _)| is_input(path) || !path.is_empty() && exists(&path_of(path)));
    let (path, tail) = found.or_else(|| splits().next()).unwrap_or((rest, b""));
    if path.is_empty() {
        return Err(SourceReferenceError::NoPath { transport });
    }
    let name = std::str::from_utf8(tail.strip_prefix(b":").unwrap_or(tail))
        .map_err(|_| SourceReferenceError::NotUtf8(OsString::from_vec(rest.to_vec())))?;
    let image = if name.is_empty() { None } else { Some(ImageChoice::parse(name)) };
    Ok((path_of(path), image))
}

impl fmt::Display for SourceReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (transport, path, image) = match self {
            SourceReference::Registry(reference) => return write!(f, "docker://{reference}"),
            SourceReference::DockerArchive { path, image } => ("docker-archive", path, image),
            SourceReference::OciArchive { path, image } => ("oci-archive", path, image),
            SourceReference::OciLayout { path, image } => ("oci", path, image),
            SourceReference::DockerDaemon(name) => return write!(f, "docker-daemon:{name}"),
            SourceReference::Tar(path) => ("tar", path, &None),
            SourceReference::Directory(path) => ("dir", path, &None),
            SourceReference::Sif(path) => ("sif", path, &None),
            SourceReference::Squashfs(path) => ("squashfs", path, &None),
        };
        write!(f, "{transport}:{}", path.display())?;
        match image {
            Some(image) => write!(f, ":{image}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
