//! References as people type them.

use super::*;
use crate::hint::Hint;

const HEX: &str = "86e0e091d0da6bde2456dbb48306f3956bbeb2eae1b5b9a43045843f69fe4aaa";

#[track_caller]
fn check(text: &str, expected: &str) {
    match Reference::parse(text) {
        Ok(reference) => assert_eq!(reference.to_string(), expected, "{text:?}"),
        Err(error) => panic!("{text:?}: {error}"),
    }
}

#[track_caller]
fn check_refused(text: &str, part: &str) {
    match Reference::parse(text) {
        Ok(reference) => panic!("{text:?} gives {reference}"),
        Err(error) => assert!(error.to_string().contains(part), "{text:?}: {error}"),
    }
}

#[test]
fn normalises_as_docker_does() {
    for (text, expected) in [
        ("debian", "docker.io/library/debian:latest"),
        ("debian:12", "docker.io/library/debian:12"),
        ("library/debian", "docker.io/library/debian:latest"),
        ("user/app", "docker.io/user/app:latest"),
        ("user/app/part:1", "docker.io/user/app/part:1"),
        ("docker.io/debian", "docker.io/library/debian:latest"),
        ("docker.io/library/debian", "docker.io/library/debian:latest"),
        ("docker.io/user/app:x", "docker.io/user/app:x"),
        ("index.docker.io/debian", "docker.io/library/debian:latest"),
        ("index.docker.io/user/app", "docker.io/user/app:latest"),
        ("quay.io/app", "quay.io/app:latest"),
        ("quay.io/user/app:v1.2-3_x", "quay.io/user/app:v1.2-3_x"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("localhost:5000/app:5000", "localhost:5000/app:5000"),
        ("localhost:5000", "docker.io/library/localhost:5000"),
        ("localhost", "docker.io/library/localhost:latest"),
        ("127.0.0.1:5000/a/b/c:t", "127.0.0.1:5000/a/b/c:t"),
        ("[::1]:5000/app", "[::1]:5000/app:latest"),
        ("[::1]/app", "[::1]/app:latest"),
        ("[2001:DB8::1]:443/a/b", "[2001:DB8::1]:443/a/b:latest"),
        ("Registry/app", "Registry/app:latest"),
        ("REGISTRY.example.org/app", "REGISTRY.example.org/app:latest"),
        ("a.b/c", "a.b/c:latest"),
        ("xn--n3h.com/myimage", "xn--n3h.com/myimage:latest"),
        ("a-b.c/d", "a-b.c/d:latest"),
        ("foo_bar/baz", "docker.io/foo_bar/baz:latest"),
        ("foo__bar/b--az", "docker.io/foo__bar/b--az:latest"),
        ("foo/bar.baz-q", "docker.io/foo/bar.baz-q:latest"),
        ("a:b", "docker.io/library/a:b"),
        ("a:_b", "docker.io/library/a:_b"),
        ("a:B", "docker.io/library/a:B"),
        ("0/1:2", "docker.io/0/1:2"),
        ("nvcr.io/nvidia/cuda:12.4.1-devel-ubuntu22.04", "nvcr.io/nvidia/cuda:12.4.1-devel-ubuntu22.04"),
        (
            "registry.example.org:8443/team/project/solver:1.0",
            "registry.example.org:8443/team/project/solver:1.0",
        ),
    ] {
        check(text, expected);
        check(expected, expected);
    }
}

#[test]
fn digests() {
    check(&format!("debian@sha256:{HEX}"), &format!("docker.io/library/debian@sha256:{HEX}"));
    check(&format!("quay.io/a:1@sha256:{HEX}"), &format!("quay.io/a:1@sha256:{HEX}"));
    let both = Reference::parse(&format!("quay.io/a:1@sha256:{HEX}")).unwrap();
    assert_eq!(both.identifier(), format!("sha256:{HEX}"));
    assert_eq!(both.tag(), Some("1"));
    for text in [
        "a@".to_owned(),
        "a@sha256".to_owned(),
        "a@sha256:".to_owned(),
        format!("a@sha256:{}", &HEX[1..]),
        format!("a@sha256:{HEX}0"),
        format!("a@sha256:{}", HEX.to_uppercase()),
        format!("a@md5:{}", &HEX[..32]),
        format!("a@sha256:{HEX}@sha256:{HEX}"),
        format!("a@sha256:{HEX}:tag"),
        "a@sha256:../../../etc/passwd".to_owned(),
    ] {
        check_refused(&text, "malformed digest");
    }
}

#[test]
fn refuses() {
    check_refused("", "empty");
    check_refused(HEX, "image ID");
    check(&format!("{HEX}:x"), &format!("docker.io/library/{HEX}:x"));
    check(&HEX[1..], &format!("docker.io/library/{}:latest", &HEX[1..]));
    for text in ["Debian", "library/Debian", "quay.io/User/app", "docker.io/A", "localhost/A:b"] {
        check_refused(text, "upper-case");
    }
    for text in [
        "a//b",
        "a/",
        "quay.io/",
        "quay.io//a",
        "docker.io/",
        "-a",
        "a-",
        "a_",
        "_a",
        "a___b",
        "a..b",
        "a._b",
        "a/.b",
        "a/b.",
        "a/../b",
        "a b",
        " a",
        "a\n",
        "a\0",
        "caf\u{e9}",
        "a%2fb",
        "a/b?c",
        "a/b#c",
        "/a",
        "/etc/passwd",
        "a\\b",
        "@",
        ":tag",
    ] {
        match Reference::parse(text) {
            Ok(reference) => panic!("{text:?} gives {reference}"),
            Err(ReferenceError::Repository { .. } | ReferenceError::Digest { .. }) => {}
            Err(error) => panic!("{text:?}: {error}"),
        }
    }
    for text in [
        "-a.b/c",
        "a-.b/c",
        "a..b/c",
        ".a/c",
        "a./c",
        "../a",
        "./a",
        "a.b:/c",
        "a.b:x/c",
        "a.b:99999/c",
        "a.b:1:2/c",
        ":5000/a",
        "[::1/a",
        "[].b/a",
        "[]:80/a",
        "[::g]:80/a",
        "[::1]x:80/a",
        "a_b.c/d",
        "user@host.org/a",
        "http://host/a",
        "https://host.org/a",
        "a b.c/d",
    ] {
        match Reference::parse(text) {
            Ok(reference) => panic!("{text:?} gives {reference}"),
            Err(ReferenceError::Registry { .. } | ReferenceError::Digest { .. }) => {}
            Err(error) => panic!("{text:?}: {error}"),
        }
    }
    for text in ["a:", "a:.b", "a:-b", "a:b c", "a:b/c", "a:b:c", "a:b\n", "quay.io/a:\u{e9}"] {
        match Reference::parse(text) {
            Ok(reference) => panic!("{text:?} gives {reference}"),
            Err(ReferenceError::Tag { .. } | ReferenceError::Registry { .. }) => {}
            Err(error) => panic!("{text:?}: {error}"),
        }
    }
    check(&format!("a:{}", "t".repeat(128)), &format!("docker.io/library/a:{}", "t".repeat(128)));
    check_refused(&format!("a:{}", "t".repeat(129)), "malformed tag");
    check_refused(&format!("quay.io/{}", "a".repeat(256)), "longer than 255");
    check_refused(&format!("{}a", "a/".repeat(200)), "longer than 255");
    let message = Reference::parse(&"A".repeat(1 << 20)).unwrap_err().to_string();
    assert!(message.len() < 1000, "a hostile text is cut short: {}", message.len());
}

#[test]
fn parts() {
    let hub = Reference::parse("debian").unwrap();
    assert_eq!(hub.api_host(), "registry-1.docker.io");
    assert_eq!((hub.registry(), hub.repository()), ("docker.io", "library/debian"));
    assert_eq!(hub.identifier(), "latest");
    let own = Reference::parse("[::1]:5000/a/b:c").unwrap();
    assert_eq!((own.api_host(), own.repository(), own.tag()), ("[::1]:5000", "a/b", Some("c")));
    assert_eq!(own.digest(), None);
}

/// Existing paths of the tests: these and nothing else.
fn exists(path: &Path) -> bool {
    ["a.tar", "dir", "/x/with:colon.tar", "with", "with:two", "caf\u{e9}.tar", "lone"]
        .iter()
        .any(|known| path == Path::new(known))
}

fn parse_source(text: &str) -> Result<SourceReference, SourceReferenceError> {
    SourceReference::parse(OsStr::new(text), &exists)
}

#[test]
fn sources() {
    let archive =
        |path: &str, image: Option<ImageChoice>| SourceReference::DockerArchive { path: path.into(), image };
    let name = |text: &str| Some(ImageChoice::Name(text.into()));
    for (text, expected) in [
        ("docker-archive:a.tar", archive("a.tar", None)),
        ("docker-archive:a.tar:", archive("a.tar", None)),
        ("docker-archive:a.tar:app:1", archive("a.tar", name("app:1"))),
        ("docker-archive:a.tar:localhost:5000/app:1", archive("a.tar", name("localhost:5000/app:1"))),
        ("docker-archive:a.tar:@0", archive("a.tar", Some(ImageChoice::Position(0)))),
        ("docker-archive:a.tar:@12", archive("a.tar", Some(ImageChoice::Position(12)))),
        ("docker-archive:a.tar:@x", archive("a.tar", name("@x"))),
        ("docker-archive:a.tar:@-1", archive("a.tar", name("@-1"))),
        ("docker-archive:/x/with:colon.tar", archive("/x/with:colon.tar", None)),
        ("docker-archive:/x/with:colon.tar:app:1", archive("/x/with:colon.tar", name("app:1"))),
        ("docker-archive:missing.tar:app:1", archive("missing.tar", name("app:1"))),
        ("docker-archive:with:two", archive("with", name("two"))),
        ("oci:dir", SourceReference::OciLayout { path: "dir".into(), image: None }),
        ("oci:dir:v1", SourceReference::OciLayout { path: "dir".into(), image: name("v1") }),
        ("oci-archive:a.tar:v1", SourceReference::OciArchive { path: "a.tar".into(), image: name("v1") }),
        ("oci:missing", SourceReference::OciLayout { path: "missing".into(), image: None }),
        ("docker://debian:12", SourceReference::Registry(Reference::parse("debian:12").unwrap())),
        ("docker-archive:-", archive("-", None)),
        ("docker-archive:-:app:1", archive("-", name("app:1"))),
        ("docker-archive:./-", archive("./-", None)),
        (
            "oci-archive:-:@1",
            SourceReference::OciArchive { path: "-".into(), image: Some(ImageChoice::Position(1)) },
        ),
        ("tar:-", SourceReference::Tar("-".into())),
        ("tar:a.tar", SourceReference::Tar("a.tar".into())),
        ("tar:missing:1", SourceReference::Tar("missing:1".into())),
        ("dir:/srv/root:2", SourceReference::Directory("/srv/root:2".into())),
        ("sif:a.sif", SourceReference::Sif("a.sif".into())),
        ("squashfs:a.sqsh", SourceReference::Squashfs("a.sqsh".into())),
        ("docker-daemon:debian:12", SourceReference::DockerDaemon("debian:12".into())),
        ("docker-daemon:sha256:abc", SourceReference::DockerDaemon("sha256:abc".into())),
    ] {
        assert_eq!(parse_source(text).as_ref(), Ok(&expected), "{text}");
    }
    let bytes = OsStr::from_bytes(b"oci:\xff\xfe:v1");
    let Ok(SourceReference::OciLayout { path, image }) = SourceReference::parse(bytes, &exists) else {
        panic!("paths are bytes")
    };
    assert_eq!(path.as_os_str().as_bytes(), b"\xff\xfe");
    assert_eq!(image, name("v1"));
}

#[test]
fn sources_print_as_typed() {
    for text in [
        "docker://docker.io/library/debian:12",
        "docker-archive:a.tar",
        "docker-archive:a.tar:app:1",
        "docker-archive:a.tar:@1",
        "oci-archive:a.tar",
        "oci:dir:v1",
        "docker-archive:-:app:1",
        "docker-daemon:debian:12",
        "tar:-",
        "dir:/srv/root",
        "sif:a.sif",
        "squashfs:a.sqsh",
    ] {
        assert_eq!(parse_source(text).unwrap().to_string(), text);
    }
}

#[track_caller]
fn check_source_refused(text: &str, part: &str, hint: &str) {
    let error = parse_source(text).expect_err(text);
    assert!(error.to_string().contains(part), "{text}: {error}");
    let hints = error.hints().join("\n");
    assert!(hints.contains(hint), "{text}: {hints}");
}

#[test]
fn sources_refused_with_a_way_on() {
    check_source_refused("debian", "does not say where", "docker://debian");
    check_source_refused("debian:12", "does not say where", "docker://debian:12");
    check_source_refused("localhost:5000/app", "does not say where", "docker://localhost:5000/app");
    check_source_refused("lone", "does not say where", "docker-archive:lone");
    check_source_refused("", "does not say where", "oci-archive:");
    check_source_refused("docker:debian", "lacks the slashes", "docker://debian");
    check_source_refused("docker-daemon:", "not followed by the name", "");
    check_source_refused("docker-daemon:a b", "no name of an image", "");
    check_source_refused("docker-daemon:a\r\nHost: x", "no name of an image", "");
    check_source_refused("containers-storage:app", "\"containers-storage\"", "docker-daemon:NAME");
    check_source_refused("library://user/app", "\"library\"", "docker://REFERENCE");
    check_source_refused("xyz://user/app", "\"xyz\"", "docker://REFERENCE");
    check_source_refused("https://quay.io/app", "\"https\"", "docker://REFERENCE");
    for transport in ["tar", "dir", "sif", "squashfs"] {
        check_source_refused(&format!("{transport}:"), "not followed by a path", "");
    }
    check_source_refused("docker-archive:", "not followed by a path", "");
    check_source_refused("oci::v1", "not followed by a path", "");
    check_source_refused("docker://", "image reference", "");
    check_source_refused("docker://Debian", "image reference", "");
    check_source_refused(&format!("docker://{HEX}"), "image reference", "name@digest");
    let bytes = OsStr::from_bytes(b"oci:dir:\xff");
    assert!(matches!(SourceReference::parse(bytes, &exists), Err(SourceReferenceError::NotUtf8(_))));
    let bytes = OsStr::from_bytes(b"docker://\xff");
    assert!(matches!(SourceReference::parse(bytes, &exists), Err(SourceReferenceError::NotUtf8(_))));
}
