//! Manifests and indexes: which of the two a document is, and what it names.
//!
//! A document is classified by its content. One that could be read both ways is refused, whatever its media type says:
//! two readers that disagree on what was pulled is how a verified image becomes another one (CVE-2021-41190).

use std::collections::HashSet;

use serde::de::{Deserializer as _, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::digest::{Digest, DigestError};
use super::json::{self, WrongType};
use super::platform::Platform;

/// Largest manifest or index that is read, bytes; the limit of registries themselves.
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// Most layers of one image. Docker stops at 127.
pub const MAX_LAYERS: usize = 1024;
/// Deepest nesting of indexes; buildx makes two.
pub const MAX_INDEX_DEPTH: usize = 4;

/// All that a registry is asked for. Without the full list a registry answers with schema 1 or "not found".
pub const ACCEPT: [&str; 4] = [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST];

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// What a media type says a document is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaKind {
    /// A manifest of one image.
    Image,
    /// An index or manifest list.
    Index,
    /// Docker's schema 1, dead since 2016.
    Schema1,
    /// It says nothing: absent, or generic JSON.
    Unstated,
    /// Something that is no image.
    Other,
}

impl MediaKind {
    /// The kind that a media type (its parameters are ignored) names.
    pub fn of(media_type: &str) -> MediaKind {
        let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match essence.as_str() {
            OCI_MANIFEST | DOCKER_MANIFEST => MediaKind::Image,
            OCI_INDEX | DOCKER_LIST => MediaKind::Index,
            "application/vnd.docker.distribution.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v1+prettyjws" => MediaKind::Schema1,
            ""
            | "application/json"
            | "text/plain"
            | "text/json"
            | "application/octet-stream"
            | "binary/octet-stream" => MediaKind::Unstated,
            _ => MediaKind::Other,
        }
    }
}

/// A blob as a manifest or index names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// Media type; empty when absent.
    pub media_type: String,
    /// Digest of the content.
    pub digest: Digest,
    /// Size of the content, bytes.
    pub size: u64,
    /// Annotations, sorted.
    pub annotations: Vec<(String, String)>,
    /// The platform, in an index; none when absent or empty.
    pub platform: Option<Platform>,
    /// `artifactType`; empty when absent.
    pub artifact_type: String,
    /// `urls`: other places that have the content, as foreign layers do.
    pub urls: Vec<String>,
}

impl Descriptor {
    /// What the descriptor says its target is.
    pub fn kind(&self) -> MediaKind {
        MediaKind::of(&self.media_type)
    }

    /// The annotation `name`.
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether this layer is declared to lie elsewhere or not to be passed on (base layers of Windows, mostly).
    pub fn is_foreign(&self) -> bool {
        !self.urls.is_empty() || is_foreign_type(&self.media_type)
    }

    /// Whether this index entry can be an image: no attestation (buildx: platform `unknown/unknown`), no artifact.
    pub fn may_be_image(&self) -> bool {
        let unknown =
            |platform: &Platform| platform.os() == "unknown" || platform.architecture() == "unknown";
        let artifact = !matches!(self.artifact_type.as_str(), "" | OCI_CONFIG | DOCKER_CONFIG);
        self.annotation("vnd.docker.reference.type").is_none()
            && !self.platform.as_ref().is_some_and(unknown)
            && !artifact
            && self.kind() != MediaKind::Other
    }

    fn parse(value: &Value, at: &str) -> Result<Descriptor, ManifestError> {
        let members =
            value.as_object().ok_or_else(|| WrongType { at: at.to_owned(), expected: "an object" })?;
        let prefix = format!("{at}.");
        let digest = json::string(members, "digest", &prefix)?;
        let size = json::member(members, "size")
            .and_then(Value::as_u64)
            .ok_or_else(|| WrongType { at: format!("{prefix}size"), expected: "a size in bytes" })?;
        Ok(Descriptor {
            media_type: json::string(members, "mediaType", &prefix)?,
            digest: Digest::parse(&digest)
                .map_err(|source| ManifestError::Digest { at: at.to_owned(), source })?,
            size,
            annotations: json::string_map(members, "annotations", &prefix)?,
            platform: platform(members, &prefix)?,
            artifact_type: json::string(members, "artifactType", &prefix)?,
            urls: json::strings(members, "urls", &prefix)?,
        })
    }
}

/// Whether a media type is of layers that are not to be passed on.
pub fn is_foreign_type(media_type: &str) -> bool {
    let media_type = media_type.to_ascii_lowercase();
    media_type.contains(".nondistributable.") || media_type.contains(".foreign.")
}

fn platform(members: &Map<String, Value>, prefix: &str) -> Result<Option<Platform>, WrongType> {
    let Some(platform) = json::object(members, "platform", prefix)? else { return Ok(None) };
    let at = format!("{prefix}platform.");
    let part = |key| json::string(platform, key, &at);
    let (os, architecture, variant) = (part("os")?, part("architecture")?, part("variant")?);
    if os.is_empty() || architecture.is_empty() {
        return Ok(None);
    }
    Ok(Some(Platform::new(&os, &architecture, &variant)))
}

/// The manifest of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageManifest {
    /// Media type by content; the document's own where it has one.
    pub media_type: String,
    /// The config blob.
    pub config: Descriptor,
    /// The layer blobs, bottom first.
    pub layers: Vec<Descriptor>,
}

/// An index (Docker: manifest list).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// Media type by content; the document's own where it has one.
    pub media_type: String,
    /// Its entries, in order.
    pub manifests: Vec<Descriptor>,
}

/// A classified document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Image(ImageManifest),
    /// Several images to choose from.
    Index(Index),
}

/// Why a document is no image that hpcrun converts.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// More than [`MAX_MANIFEST_BYTES`].
    #[error("the manifest has {0} bytes, more than the limit of {MAX_MANIFEST_BYTES}")]
    TooLarge(u64),
    /// No JSON object.
    #[error("the manifest is not a JSON object")]
    Syntax(#[source] serde_json::Error),
    /// Could be read in two ways.
    #[error("the manifest is ambiguous: {0}")]
    Ambiguous(String),
    /// Docker schema 1.
    #[error("the manifest has the obsolete Docker schema 1")]
    Schema1,
    /// Neither `layers` and `config` nor `manifests`.
    #[error("the manifest names neither layers nor manifests")]
    Empty,
    /// Another version of the format.
    #[error("the manifest has schema version {0}, not 2")]
    SchemaVersion(String),
    /// The content is no container image.
    #[error("this is not a container image but an artifact of type {0:?}")]
    Artifact(String),
    /// A layer is encrypted.
    #[error("layer {index} is encrypted ({media_type})")]
    Encrypted {
        /// Position, 1 = bottom.
        index: usize,
        /// Its media type.
        media_type: String,
    },
    /// A layer is no tar.
    #[error("layer {index} is not a tar archive but {media_type:?}")]
    LayerType {
        /// Position, 1 = bottom.
        index: usize,
        /// Its media type.
        media_type: String,
    },
    /// More than [`MAX_LAYERS`].
    #[error("the manifest names {0} layers, more than the limit of {MAX_LAYERS}")]
    TooManyLayers(usize),
    /// A member has the wrong type.
    #[error("the manifest is malformed")]
    Member(#[from] WrongType),
    /// A digest is malformed.
    #[error("the manifest has a malformed digest in {at}")]
    Digest {
        /// Where.
        at: String,
        /// The cause.
        source: DigestError,
    },
}

impl crate::hint::Hint for ManifestError {
    fn hints(&self) -> Vec<String> {
        let line = match self {
            ManifestError::Schema1 => "push the image again with a current docker, podman or skopeo",
            ManifestError::Encrypted { .. } => "decrypt it first: skopeo copy --decryption-key KEY ...",
            ManifestError::Artifact(_) => "name a container image, or the tag of one",
            _ => return Vec::new(),
        };
        vec![line.to_owned()]
    }
}

impl Document {
    /// Classifies and parses `bytes`. `declared` is the media type that came with them (`Content-Type`, or the
    /// descriptor that led here); a contradiction is an error.
    pub fn parse(bytes: &[u8], declared: Option<&str>) -> Result<Document, ManifestError> {
        if bytes.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooLarge(bytes.len() as u64));
        }
        refuse_ambiguous_keys(bytes)?;
        let members: Map<String, Value> = serde_json::from_slice(bytes).map_err(ManifestError::Syntax)?;
        let kind = kind_by_content(&members)?;
        let own_type = json::string(&members, "mediaType", "")?;
        for stated in [own_type.as_str(), declared.unwrap_or_default()] {
            refuse_contradiction(kind, stated)?;
        }
        match json::member(&members, "schemaVersion") {
            None => {}
            Some(version) if version.as_u64() == Some(2) => {}
            Some(version) => return Err(ManifestError::SchemaVersion(version.to_string())),
        }
        if kind == MediaKind::Index {
            parse_index(&members, own_type)
        } else {
            parse_image(&members, own_type)
        }
    }

    /// Its media type.
    pub fn media_type(&self) -> &str {
        match self {
            Document::Image(manifest) => &manifest.media_type,
            Document::Index(index) => &index.media_type,
        }
    }
}

fn parse_index(members: &Map<String, Value>, own_type: String) -> Result<Document, ManifestError> {
    let manifests = descriptors(members, "manifests")?;
    let media_type = if own_type.is_empty() { OCI_INDEX.to_owned() } else { own_type };
    Ok(Document::Index(Index { media_type, manifests }))
}

fn parse_image(members: &Map<String, Value>, own_type: String) -> Result<Document, ManifestError> {
    let config = json::member(members, "config").ok_or(ManifestError::Empty)?;
    let config = Descriptor::parse(config, "config")?;
    refuse_artifact(&config, &json::string(members, "artifactType", "")?)?;
    let layers = descriptors(members, "layers")?;
    if layers.len() > MAX_LAYERS {
        return Err(ManifestError::TooManyLayers(layers.len()));
    }
    for (position, layer) in layers.iter().enumerate() {
        check_layer_type(position.saturating_add(1), &layer.media_type)?;
    }
    let media_type = if own_type.is_empty() { OCI_MANIFEST.to_owned() } else { own_type };
    Ok(Document::Image(ImageManifest { media_type, config, layers }))
}

fn descriptors(members: &Map<String, Value>, key: &str) -> Result<Vec<Descriptor>, ManifestError> {
    let items = json::array(members, key, "")?.iter().enumerate();
    items.map(|(index, item)| Descriptor::parse(item, &format!("{key}[{index}]"))).collect()
}

/// Members that decide what a document is; each must be there once and in this spelling, or another reader (Go's
/// ignores case and takes the last) sees something else.
const DECISIVE: [&str; 6] = ["schemaVersion", "mediaType", "config", "layers", "manifests", "fsLayers"];

fn refuse_ambiguous_keys(bytes: &[u8]) -> Result<(), ManifestError> {
    struct Keys;
    impl<'de> Visitor<'de> for Keys {
        type Value = Vec<String>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a JSON object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<String>, A::Error> {
            let mut keys = Vec::new();
            while let Some((key, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
                keys.push(key);
            }
            Ok(keys)
        }
    }
    let keys =
        serde_json::Deserializer::from_slice(bytes).deserialize_map(Keys).map_err(ManifestError::Syntax)?;
    let mut seen = HashSet::new();
    for key in &keys {
        let Some(decisive) = DECISIVE.iter().find(|name| name.eq_ignore_ascii_case(key)) else { continue };
        if key != decisive || !seen.insert(key) {
            let found = keys.iter().filter(|other| other.eq_ignore_ascii_case(key)).count();
            return Err(ManifestError::Ambiguous(if found > 1 {
                format!("it has {decisive:?} {found} times")
            } else {
                format!("it spells {decisive:?} as {key:?}")
            }));
        }
    }
    Ok(())
}

fn kind_by_content(members: &Map<String, Value>) -> Result<MediaKind, ManifestError> {
    // Presence counts, even of null: other readers may take the same member for something.
    let has = |key: &str| members.contains_key(key);
    if has("manifests") {
        for other in ["layers", "config", "fsLayers"] {
            if has(other) {
                return Err(ManifestError::Ambiguous(format!("it has both \"manifests\" and {other:?}")));
            }
        }
        return Ok(MediaKind::Index);
    }
    let version_1 = members.get("schemaVersion").and_then(Value::as_u64) == Some(1);
    match (has("fsLayers"), has("layers") || has("config")) {
        (true, true) => Err(ManifestError::Ambiguous("it has both \"fsLayers\" and \"layers\"".to_owned())),
        (true, false) => Err(ManifestError::Schema1),
        (false, _) if version_1 => Err(ManifestError::Schema1),
        (false, true) => Ok(MediaKind::Image),
        (false, false) => Err(ManifestError::Empty),
    }
}

fn refuse_contradiction(kind: MediaKind, stated: &str) -> Result<(), ManifestError> {
    match MediaKind::of(stated) {
        MediaKind::Unstated => Ok(()),
        stated if stated == kind => Ok(()),
        MediaKind::Schema1 => Err(ManifestError::Schema1),
        MediaKind::Other => Err(ManifestError::Artifact(stated.to_owned())),
        MediaKind::Image | MediaKind::Index => {
            let content = if kind == MediaKind::Index { "an index" } else { "an image manifest" };
            Err(ManifestError::Ambiguous(format!("it is {content} but is declared as {stated:?}")))
        }
    }
}

fn refuse_artifact(config: &Descriptor, artifact_type: &str) -> Result<(), ManifestError> {
    match config.media_type.as_str() {
        OCI_CONFIG | DOCKER_CONFIG => Ok(()),
        // Docker before 1.10.2 pushed configs so; some hand-made manifests have nothing.
        "" | "application/octet-stream" if artifact_type.is_empty() => Ok(()),
        other => {
            let name = if artifact_type.is_empty() { other } else { artifact_type };
            Err(ManifestError::Artifact(name.to_owned()))
        }
    }
}

fn check_layer_type(index: usize, media_type: &str) -> Result<(), ManifestError> {
    let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence.ends_with("+encrypted") {
        return Err(ManifestError::Encrypted { index, media_type: media_type.to_owned() });
    }
    // "...layer.v1.tar+gzip", "...rootfs.diff.tar.gzip", "...rootfs.foreign.diff.tar.gzip", "application/x-tar"
    let is_tar = essence.is_empty()
        || essence == "application/octet-stream"
        || essence.split(['.', '+', '-', '/']).any(|word| word == "tar");
    if is_tar { Ok(()) } else { Err(ManifestError::LayerType { index, media_type: media_type.to_owned() }) }
}

#[cfg(test)]
mod tests;
