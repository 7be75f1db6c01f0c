//! Documents of every kind, and what they are taken for.

#![allow(clippy::cast_possible_truncation, reason = "small numbers of tests")]

use super::*;

fn hex() -> String {
    "0123456789abcdef".repeat(4)
}

/// `{...}` of a descriptor of `media_type`.
fn descriptor(media_type: &str) -> String {
    format!(r#"{{"mediaType":"{media_type}","size":7,"digest":"sha256:{}"}}"#, hex())
}

fn image(config: &str, layers: &[&str], extra: &str) -> String {
    let layers: Vec<String> = layers.iter().map(|layer| descriptor(layer)).collect();
    format!(r#"{{"schemaVersion":2,{extra}"config":{},"layers":[{}]}}"#, descriptor(config), layers.join(","))
}

fn index(extra: &str) -> String {
    format!(r#"{{"schemaVersion":2,{extra}"manifests":[{}]}}"#, descriptor(OCI_MANIFEST))
}

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

#[track_caller]
fn check_refused(text: &str, declared: Option<&str>, part: &str) {
    let error = Document::parse(text.as_bytes(), declared).expect_err(text);
    let shown = match std::error::Error::source(&error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    };
    assert!(shown.contains(part), "{text}\n  gives {shown:?}\n  not    {part:?}");
}

#[track_caller]
fn check_kind(text: &str, declared: Option<&str>, expected: MediaKind) {
    let kind = match Document::parse(text.as_bytes(), declared) {
        Ok(Document::Image(_)) => MediaKind::Image,
        Ok(Document::Index(_)) => MediaKind::Index,
        Err(error) => panic!("{text}: {error:?}"),
    };
    assert_eq!(kind, expected, "{text}");
}

#[test]
fn classifies_by_content() {
    let plain = image(OCI_CONFIG, &[GZIP], "");
    for declared in [
        None,
        Some(""),
        Some(OCI_MANIFEST),
        Some(DOCKER_MANIFEST),
        Some("application/json"),
        Some("text/plain; charset=utf-8"),
        Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8"),
        Some("Application/Vnd.OCI.image.manifest.v1+JSON"),
    ] {
        check_kind(&plain, declared, MediaKind::Image);
    }
    for declared in [None, Some(OCI_INDEX), Some(DOCKER_LIST), Some("application/octet-stream")] {
        check_kind(&index(""), declared, MediaKind::Index);
    }
    check_kind(&image(DOCKER_CONFIG, &[], r#""mediaType":null,"#), None, MediaKind::Image);
    check_kind(&index(&format!(r#""mediaType":"{DOCKER_LIST}","#)), None, MediaKind::Index);
    check_kind(r#"{"manifests":[]}"#, None, MediaKind::Index);
    check_kind(r#"{"schemaVersion":2,"manifests":null}"#, None, MediaKind::Index);
}

#[test]
fn null_is_absent() {
    let text = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":null,"size":2,"digest":"sha256:{}","annotations":null,
        "platform":null,"urls":null}},"layers":null,"annotations":null,"subject":null}}"#,
        hex()
    );
    let Ok(Document::Image(manifest)) = Document::parse(text.as_bytes(), None) else { panic!("{text}") };
    assert!(manifest.layers.is_empty());
    assert_eq!(manifest.config.annotations, []);
    assert_eq!(manifest.media_type, OCI_MANIFEST);
}

#[test]
fn layer_types() {
    for accepted in [
        GZIP,
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/x-tar",
        "application/octet-stream",
        "",
    ] {
        check_kind(&image(OCI_CONFIG, &[GZIP, accepted], ""), None, MediaKind::Image);
    }
    let encrypted = format!("{GZIP}+encrypted");
    check_refused(&image(OCI_CONFIG, &[GZIP, &encrypted], ""), None, "layer 2 is encrypted");
    for refused in [
        "application/vnd.sylabs.image.layer.v1.squashfs",
        "application/vnd.in-toto+json",
        "application/vnd.wasm.content.layer.v1+wasm",
        "text/html",
        "application/vnd.startar",
    ] {
        check_refused(&image(OCI_CONFIG, &[refused], ""), None, "layer 1 is not a tar archive");
    }
}

#[test]
fn ambiguous_documents() {
    let config = descriptor(OCI_CONFIG);
    for (text, part) in [
        (format!(r#"{{"manifests":[],"layers":[],"config":{config}}}"#), "both \"manifests\" and \"layers\""),
        (format!(r#"{{"manifests":[],"config":{config}}}"#), "both \"manifests\" and \"config\""),
        (r#"{"manifests":null,"layers":null}"#.into(), "both \"manifests\" and \"layers\""),
        (r#"{"manifests":[],"fsLayers":[]}"#.into(), "both \"manifests\" and \"fsLayers\""),
        (format!(r#"{{"layers":[],"config":{config},"fsLayers":[]}}"#), "both \"fsLayers\" and \"layers\""),
        (format!(r#"{{"layers":[],"config":{config},"Manifests":[]}}"#), "it spells \"manifests\""),
        (format!(r#"{{"layers":[],"layers":[],"config":{config}}}"#), "\"layers\" 2 times"),
        (format!(r#"{{"layers":[],"LAYERS":[],"config":{config}}}"#), "\"layers\" 2 times"),
        (r#"{"manifests":[],"manifests":[]}"#.into(), "\"manifests\" 2 times"),
        (r#"{"mediaType":"a","manifests":[],"mediatype":"b"}"#.into(), "\"mediaType\" 2 times"),
    ] {
        check_refused(&text, None, part);
    }
    check_refused(&image(OCI_CONFIG, &[], ""), Some(OCI_INDEX), "is declared as");
    check_refused(&index(""), Some(DOCKER_MANIFEST), "is declared as");
    check_refused(&index(&format!(r#""mediaType":"{OCI_MANIFEST}","#)), None, "is declared as");
    let own = format!(r#""mediaType":"{OCI_INDEX}","#);
    check_refused(&image(OCI_CONFIG, &[], &own), Some(OCI_MANIFEST), "is declared as");
}

#[test]
fn refuses_by_name() {
    let config = descriptor(OCI_CONFIG);
    for (text, part) in [
        ("", "not a JSON object"),
        ("[]", "not a JSON object"),
        ("null", "not a JSON object"),
        ("{", "not a JSON object"),
        ("{}", "neither layers nor manifests"),
        (r#"{"schemaVersion":2}"#, "neither layers nor manifests"),
        (r#"{"schemaVersion":1,"name":"x","tag":"y","fsLayers":[],"history":[]}"#, "schema 1"),
        (r#"{"schemaVersion":1}"#, "schema 1"),
        (r#"{"schemaVersion":3,"manifests":[]}"#, "schema version 3"),
        (r#"{"schemaVersion":"2","manifests":[]}"#, "schema version \"2\""),
        (r#"{"layers":[]}"#, "neither layers nor manifests"),
        (r#"{"layers":[],"config":7}"#, "config is not an object"),
        (r#"{"manifests":{}}"#, "manifests is not an array"),
        (r#"{"manifests":[1]}"#, "manifests[0] is not an object"),
        (r#"{"manifests":[{"size":1}]}"#, "malformed digest in manifests[0]"),
        (r#"{"manifests":[{"digest":"sha256:00","size":1}]}"#, "malformed digest in manifests[0]"),
        (r#"{"manifests":[{"digest":"sha256:../../x","size":1}]}"#, "malformed digest in manifests[0]"),
        (r#"{"manifests":[{"digest":"x","size":-1}]}"#, "manifests[0].size is not a size"),
        (r#"{"manifests":[{"digest":"x","size":1e30}]}"#, "manifests[0].size is not a size"),
        (r#"{"manifests":[{"digest":"x","size":1.5}]}"#, "manifests[0].size is not a size"),
        (r#"{"manifests":[{"digest":"x"}]}"#, "manifests[0].size is not a size"),
    ] {
        check_refused(text, None, part);
    }
    let broken = format!(r#"{{"config":{config},"layers":[{config},{{"size":1,"digest":"sha1:00"}}]}}"#);
    check_refused(&broken, None, "malformed digest in layers[1]");
    check_refused(
        r#"{"schemaVersion":1,"fsLayers":[]}"#,
        Some("application/vnd.docker.distribution.manifest.v1+prettyjws"),
        "schema 1",
    );
    check_refused(
        &image(OCI_CONFIG, &[], ""),
        Some("application/vnd.docker.distribution.manifest.v1+json"),
        "schema 1",
    );
    check_refused(&image(OCI_CONFIG, &[], ""), Some("text/html"), "artifact of type \"text/html\"");
    let many = vec![GZIP; MAX_LAYERS + 1];
    check_refused(&image(OCI_CONFIG, &many, ""), None, "1025 layers");
    let huge = " ".repeat(MAX_MANIFEST_BYTES as usize + 1);
    check_refused(&huge, None, "more than the limit");
    let deep = format!(r#"{{"manifests":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    check_refused(&deep, None, "not a JSON object");
}

#[test]
fn artifacts() {
    for (config, extra, part) in [
        ("application/vnd.oci.empty.v1+json", "", "vnd.oci.empty.v1+json"),
        ("application/vnd.oci.empty.v1+json", r#""artifactType":"application/x-sbom","#, "x-sbom"),
        ("application/vnd.cncf.helm.config.v1+json", "", "helm"),
        ("application/vnd.docker.plugin.v1+json", "", "plugin"),
        ("", r#""artifactType":"application/x-thing","#, "x-thing"),
    ] {
        check_refused(&image(config, &[], extra), None, part);
    }
    check_kind(&image("application/octet-stream", &[], ""), None, MediaKind::Image);
    check_kind(&image(OCI_CONFIG, &[], r#""artifactType":"application/x","#), None, MediaKind::Image);
}

/// An independent reader of well-formed documents gives the same digests, sizes and platforms.
#[test]
fn agrees_with_oci_spec() {
    let platform = r#","platform":{"os":"linux","architecture":"arm64"}"#;
    let entry = descriptor(OCI_MANIFEST).replace("\"}", &format!("\"{platform}}}"));
    let text = format!(r#"{{"schemaVersion":2,"manifests":[{entry}]}}"#);
    let theirs: oci_spec::image::ImageIndex = serde_json::from_str(&text).unwrap();
    let Ok(Document::Index(ours)) = Document::parse(text.as_bytes(), None) else { panic!("{text}") };
    let (a, b) = (&theirs.manifests()[0], &ours.manifests[0]);
    assert_eq!(a.digest().to_string(), b.digest.as_str());
    assert_eq!(a.size(), b.size);
    let platform = a.platform().as_ref().unwrap();
    assert_eq!(
        format!("{}/{}", platform.os(), platform.architecture()),
        b.platform.as_ref().unwrap().to_string()
    );

    let text = image(OCI_CONFIG, &[GZIP, GZIP], "");
    let theirs: oci_spec::image::ImageManifest = serde_json::from_str(&text).unwrap();
    let Ok(Document::Image(ours)) = Document::parse(text.as_bytes(), None) else { panic!("{text}") };
    assert_eq!(theirs.layers().len(), ours.layers.len());
    assert_eq!(theirs.config().digest().to_string(), ours.config.digest.as_str());
}
