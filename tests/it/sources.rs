//! Images on disk: OCI layouts and docker archives, as skopeo and umoci write them and as nobody should.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "what a test cannot get fails it"
)]

mod daemon;
pub(crate) mod layout;
pub(crate) mod pipes;
mod shapes;
pub(crate) mod trees;

use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use hpcrun::convert::source::{self, Source, SourceError, SourceOptions};
use hpcrun::hint::Hint;
use hpcrun::image::digest::Digest;
use hpcrun::image::platform::Platform;
use hpcrun::image::reference::SourceReference;
use serde_json::{Value, json};

use crate::support;
use layout::{
    Image, Layout, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Packing, TarBuilder, descriptor, for_platform, index,
    layer_tar, named, tar_of,
};

/// Opens a source for amd64.
pub(crate) fn open(text: &str) -> Result<Box<dyn Source>, SourceError> {
    open_for(text, "linux/amd64")
}

fn open_for(text: &str, platform: &str) -> Result<Box<dyn Source>, SourceError> {
    let reference = SourceReference::parse(OsStr::new(text), &Path::exists).unwrap();
    let options = SourceOptions { platform: Platform::parse(platform).unwrap(), ..SourceOptions::default() };
    source::open(&reference, &options)
}

/// An error with its causes, as one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", chain(cause)),
        None => error.to_string(),
    }
}

/// All of a layer's blob.
pub(crate) fn read_layer(source: &dyn Source, index: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    source.open_layer(index).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// The layer tars, decompressed by their first bytes and checked against their diff IDs and digests.
pub(crate) fn layer_tars(source: &dyn Source) -> Vec<Vec<u8>> {
    let layers = source.image().layers.iter().enumerate();
    layers
        .map(|(number, layer)| {
            let blob = read_layer(source, number);
            if let Some(digest) = &layer.digest {
                assert_eq!(Digest::of(&blob), *digest);
            }
            assert_eq!(layer.size, Some(blob.len() as u64));
            let mut tar = Vec::new();
            match blob.as_slice() {
                [0x1f, 0x8b, ..] => {
                    flate2::read::MultiGzDecoder::new(blob.as_slice()).read_to_end(&mut tar).unwrap();
                }
                [0x28, 0xb5, ..] => tar = zstd::decode_all(blob.as_slice()).unwrap(),
                _ => tar = blob,
            }
            assert_eq!(Some(Digest::of(&tar)), layer.diff_id, "layer {number}");
            tar
        })
        .collect()
}

/// Opens `text` and holds its layers against those of `image`.
#[track_caller]
fn check(text: &str, image: &Image) -> Box<dyn Source> {
    let source = open(text).unwrap_or_else(|error| panic!("{text}: {}", chain(&error)));
    let expected: Vec<&[u8]> = image.layers.iter().map(|layer| layer.tar.as_slice()).collect();
    assert_eq!(layer_tars(&*source), expected, "{text}");
    assert_eq!(layer_tars(&*source), expected, "{text}, opened again");
    assert_eq!(source.image().config.env, ["PATH=/usr/bin", "MADE_FOR=test"]);
    assert!(source.open_layer(image.layers.len()).is_err());
    source
}

#[track_caller]
fn check_refused(text: &str, part: &str) -> SourceError {
    match open(text) {
        Ok(source) => panic!("{text} opened: {source:?}"),
        Err(error) => {
            let shown = chain(&error);
            assert!(shown.contains(part), "{text}\n  gives {shown}\n  not   {part}");
            error
        }
    }
}

/// What a tool prints; it must succeed.
#[track_caller]
fn tool(program: &str, args: &[&str]) -> String {
    support::stdout(Command::new(program).args(args))
}

#[test]
fn an_oci_layout() {
    let scratch = support::scratch();
    let image = Image::sample();
    let layout = Layout::of(&scratch.path().join("layout"), &image);
    let path = layout.0.display();
    for text in [format!("oci:{path}"), format!("oci:{path}:v1"), format!("oci:{path}:@0")] {
        let source = check(&text, &image);
        assert_eq!(source.image().origin, text);
        assert_eq!(source.image().manifest, image.manifest);
        assert_eq!(source.image().manifest_digest, Digest::of(&image.manifest));
        assert_eq!(source.image().manifest_media_type, OCI_MANIFEST);
        assert_eq!(source.image().config.raw, image.config);
        let raw = tool("skopeo", &["inspect", "--raw", &format!("oci:{path}:v1")]);
        assert_eq!(raw.as_bytes(), source.image().manifest);
    }
    let error = check_refused(&format!("oci:{path}:v2"), "holds no image \"v2\"");
    assert!(error.hints().join("").contains("v1"), "{:?}", error.hints());
    check_refused(&format!("oci:{path}:@7"), "holds no image \"@7\"");
}

#[test]
fn every_format_that_skopeo_writes() {
    let scratch = support::scratch();
    let at = |name: &str| format!("{}/{name}", scratch.path().display());
    for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
        let tars = [layer_tar("one", b"first"), layer_tar("two", &[9; 5000]), layer_tar("three", b"")];
        let image = Image::new("amd64", &tars, packing);
        let name = format!("{packing:?}").to_lowercase();
        let from = format!("oci:{}:v1", Layout::of(Path::new(&at(&name)), &image).0.display());
        for (to, options) in [
            (format!("oci-archive:{}:app", at(&format!("{name}.oci.tar"))), vec![]),
            (format!("docker-archive:{}:app:1", at(&format!("{name}.docker.tar"))), vec![]),
            (format!("oci:{}:z", at(&format!("{name}.zstd"))), vec!["--dest-compress-format", "zstd"]),
            (format!("oci:{}:d", at(&format!("{name}.decompressed"))), vec!["--dest-decompress"]),
        ] {
            // This skopeo gives docker images no zstd layers.
            if packing == Packing::Zstd && to.starts_with("docker-archive") {
                continue;
            }
            let mut args = vec!["copy", "-q"];
            args.extend(options);
            args.extend([from.as_str(), to.as_str()]);
            tool("skopeo", &args);
            check(&to, &image);
        }
    }
    let dir = Path::new(&at("gzip.oci.tar")).to_owned();
    for (program, suffix) in [("gzip", "gz"), ("zstd", "zst"), ("xz", "xz")] {
        for kind in ["oci", "docker"] {
            let path = dir.with_file_name(format!("gzip.{kind}.tar"));
            let packed = format!("{}.{suffix}", path.display());
            let bytes = Command::new(program).args(["-c", "-q"]).arg(&path).output().unwrap();
            assert!(bytes.status.success(), "{program}");
            std::fs::write(&packed, bytes.stdout).unwrap();
            let tars = [layer_tar("one", b"first"), layer_tar("two", &[9; 5000]), layer_tar("three", b"")];
            check(&format!("{kind}-archive:{packed}"), &Image::new("amd64", &tars, Packing::Gzip));
        }
    }
}

#[test]
fn what_umoci_writes() {
    let scratch = support::scratch();
    let path = scratch.path().join("u");
    let text = path.display().to_string();
    let tar_path = scratch.path().join("layer.tar");
    tool("umoci", &["init", "--layout", &text]);
    tool("umoci", &["new", "--image", &format!("{text}:tagged")]);
    let mut expected = Vec::new();
    for number in 0..3 {
        let tar = layer_tar(&format!("f{number}"), &[number; 3000]);
        std::fs::write(&tar_path, &tar).unwrap();
        tool(
            "umoci",
            &["raw", "add-layer", "--image", &format!("{text}:tagged"), &tar_path.display().to_string()],
        );
        expected.push(tar);
    }
    let source = open(&format!("oci:{text}:tagged")).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(layer_tars(&*source), expected);
}

/// A docker archive of `image` in the manner of old dockers: `<id>/layer.tar`.
fn docker_entry(image: &Image, names: Value) -> (Value, Vec<(String, Vec<u8>)>) {
    let config = format!("{}.json", Digest::of(&image.config).hex());
    let layers: Vec<String> =
        (0..image.layers.len()).map(|number| format!("{}{number}/layer.tar", &config[..8])).collect();
    let mut files = vec![(config.clone(), image.config.clone())];
    files.extend(layers.iter().cloned().zip(image.layers.iter().map(|layer| layer.blob.clone())));
    (json!({"Config": config, "RepoTags": names, "Layers": layers}), files)
}

/// Writes a docker archive with `manifest.json` of `entries`, last.
fn write_archive(path: &Path, entries: &Value, files: &[(String, Vec<u8>)]) -> String {
    let manifest = entries.to_string();
    let mut list: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (name.as_str(), &**bytes)).collect();
    list.push(("manifest.json", manifest.as_bytes()));
    std::fs::write(path, tar_of(&list)).unwrap();
    format!("docker-archive:{}", path.display())
}

#[test]
fn docker_archives_of_all_makers() {
    let scratch = support::scratch();
    let path = |name: &str| scratch.path().join(name);
    let image = Image::new("amd64", &[layer_tar("a", b"1"), layer_tar("b", b"2")], Packing::Plain);

    // Old docker; manifest.json last, names null.
    let (entry, files) = docker_entry(&image, Value::Null);
    let source = check(&write_archive(&path("old.tar"), &json!([entry]), &files), &image);
    let manifest: Value = serde_json::from_slice(&source.image().manifest).unwrap();
    assert_eq!(manifest["Layers"], entry["Layers"]);
    assert!(source.image().layers.iter().all(|layer| layer.digest.is_none()));

    // crane: config named by its digest, gzip layers.
    let zipped = Image::new("amd64", &[layer_tar("a", b"1"), layer_tar("b", b"2")], Packing::Gzip);
    let config = Digest::of(&zipped.config).to_string();
    let layers: Vec<String> =
        zipped.layers.iter().map(|layer| format!("{}.tar.gz", Digest::of(&layer.blob).hex())).collect();
    let mut files = vec![(config.clone(), zipped.config.clone())];
    files.extend(layers.iter().cloned().zip(zipped.layers.iter().map(|layer| layer.blob.clone())));
    let entry = json!({"Config": config, "RepoTags": ["r.org/app:1"], "Layers": layers});
    check(&write_archive(&path("crane.tar"), &json!([entry]), &files), &zipped);

    // Docker 25: an OCI layout with manifest.json; the real manifest is found.
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    let layers: Vec<String> = image.layers.iter().map(|layer| blob(&layer.blob)).collect();
    let mut files: Vec<(String, Vec<u8>)> =
        image.blobs().into_iter().map(|bytes| (blob(bytes), bytes.to_vec())).collect();
    let nested = index(&[descriptor(&image.manifest, OCI_MANIFEST)]);
    files.push((blob(&nested), nested.clone()));
    files.push(("index.json".into(), index(&[descriptor(&nested, OCI_INDEX)])));
    files.push(("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
    let entry = json!({"Config": blob(&image.config), "RepoTags": ["app:1"], "Layers": layers});
    let text = write_archive(&path("v25.tar"), &json!([entry]), &files);
    let source = check(&text, &image);
    assert_eq!(source.image().manifest, image.manifest);
    assert_eq!(source.image().layers[0].digest, Some(Digest::of(&image.layers[0].blob)));
    check(&text.replace("docker-archive", "oci-archive"), &image);
    let without: Vec<_> = files.iter().filter(|(_, bytes)| *bytes != image.manifest).cloned().collect();
    let source = check(&write_archive(&path("v25-bare.tar"), &json!([entry]), &without), &image);
    assert!(source.image().layers[0].digest.is_none(), "manifest.json alone is enough");
}

#[test]
fn docker_archives_with_links() {
    let scratch = support::scratch();
    let image = Image::new("amd64", &[layer_tar("a", b"1"), layer_tar("b", b"2")], Packing::Plain);
    let manifest = json!([{"Config": "c.json", "Layers": ["x/layer.tar", "y/layer.tar"]}]).to_string();
    let begin =
        || TarBuilder::default().file("manifest.json", manifest.as_bytes()).file("c.json", &image.config);
    let (first, second) = (&image.layers[0].tar, &image.layers[1].tar);
    let write = |number: usize, builder: TarBuilder| {
        let path = scratch.path().join(format!("{number}.tar"));
        std::fs::write(&path, builder.finish()).unwrap();
        format!("docker-archive:{}", path.display())
    };
    let with = |name: &str, target: &str| {
        begin()
            .file("1.tar", first)
            .file("z/layer.tar", second)
            .symlink("x/layer.tar", "../1.tar")
            .symlink(name, target)
    };
    for (number, builder) in [
        with("y/layer.tar", "../z/layer.tar"),
        with("y/layer.tar", "./../z//layer.tar"),
        // Relative to the root of the archive, as some tools have it.
        with("y/layer.tar", "z/layer.tar"),
        with("y/l2", "../z/layer.tar").symlink("y/layer.tar", "l2"),
        begin().file("x/layer.tar", first).file("s", second).hard_link("y/layer.tar", "s"),
    ]
    .into_iter()
    .enumerate()
    {
        check(&write(number, builder), &image);
    }
    for (number, target, part) in [
        (10, "../../etc/passwd", "leads outside the archive"),
        (11, "/etc/passwd", "leads outside the archive"),
        (12, "../z/nothing", "no member \"y/layer.tar\""),
        (13, "layer.tar", "leads in a circle"),
        (14, "../y/layer.tar", "leads in a circle"),
        (15, "../z", "no member"),
    ] {
        check_refused(&write(number, with("y/layer.tar", target)), part);
    }
    check_refused(
        &write(16, begin().file("x/layer.tar", first).directory("y/layer.tar")),
        "not a regular file",
    );
    check_refused(
        &write(17, begin().file("x/layer.tar", first).hard_link("y/layer.tar", "/etc/passwd")),
        "outside",
    );
}

#[test]
fn docker_archives_of_several_images() {
    let scratch = support::scratch();
    let one = Image::new("amd64", &[layer_tar("a", b"1")], Packing::Plain);
    let two = Image::new("amd64", &[layer_tar("b", b"2")], Packing::Plain);
    let (first, mut files) = docker_entry(&one, json!(["app:1", "localhost:5000/app:x"]));
    let (second, more) = docker_entry(&two, json!(["docker.io/library/app:2"]));
    files.extend(more);
    let text = write_archive(&scratch.path().join("two.tar"), &json!([first, second]), &files);
    check(&format!("{text}:app:1"), &one);
    check(&format!("{text}:docker.io/library/app:1"), &one);
    check(&format!("{text}:localhost:5000/app:x"), &one);
    check(&format!("{text}:@0"), &one);
    check(&format!("{text}:app:2"), &two);
    check(&format!("{text}:@1"), &two);
    let error = check_refused(&text, "holds 3 images and none was named");
    assert!(error.hints().join("").contains("app:1, localhost:5000/app:x, docker.io/library/app:2"));
    check_refused(&format!("{text}:app:3"), "holds no image \"app:3\"");
    check_refused(&format!("{text}:app"), "holds no image \"app\"");
    check_refused(&format!("{text}:@2"), "holds no image \"@2\"");
    let text = write_archive(&scratch.path().join("same.tar"), &json!([first, first]), &files);
    let error = check_refused(&format!("{text}:app:1"), "several images named \"app:1\"");
    assert!(error.hints().join("").contains("@N"));
    check(&format!("{text}:@1"), &one);
}

#[test]
fn broken_docker_archives() {
    let scratch = support::scratch();
    let image = Image::new("amd64", &[layer_tar("a", b"1")], Packing::Plain);
    let (entry, files) = docker_entry(&image, json!(["app:1"]));
    let file = |name: &str| scratch.path().join(name);
    let changed = |key: &str, value: Value| {
        let mut entry = entry.clone();
        entry[key] = value;
        json!([entry])
    };
    for (number, (entries, part)) in [
        (json!(null), "is not an array"),
        (json!({}), "is not an array"),
        (json!([]), "holds no image"),
        (json!([7]), "an entry that is no object"),
        (json!([{}]), "a malformed entry"),
        (changed("Config", json!(7)), "a malformed entry"),
        (changed("Layers", json!("x")), "a malformed entry"),
        (changed("Layers", json!([7])), "a malformed entry"),
        (changed("Config", json!("../../etc/passwd")), "leads outside the archive"),
        (changed("Config", json!("/etc/passwd")), "leads outside the archive"),
        (changed("Config", json!("")), "no member \"\""),
        (changed("Config", json!("absent.json")), "no member \"absent.json\""),
        (changed("Config", json!("manifest.json")), "not a JSON object"),
        (changed("Layers", json!([""])), "no member \"\""),
        (changed("Layers", json!(["../x/layer.tar"])), "leads outside the archive"),
        (changed("Layers", json!(["/etc/passwd"])), "leads outside the archive"),
        (changed("Layers", json!(["absent/layer.tar"])), "no member \"absent/layer.tar\""),
        (changed("Layers", json!([])), "has 0 layers but 1 diff IDs"),
        (changed("Layers", Value::Null), "has 0 layers but 1 diff IDs"),
        (changed("Layers", json!(vec!["x"; 1025])), "1025 layers"),
    ]
    .into_iter()
    .enumerate()
    {
        check_refused(&write_archive(&file(&format!("{number}.tar")), &entries, &files), part);
    }
    let blob_name = format!("blobs/sha256/{}", "0".repeat(64));
    let mut lying = files.clone();
    lying.push((blob_name.clone(), image.config.clone()));
    let text = write_archive(&file("lying.tar"), &changed("Config", json!(blob_name)), &lying);
    check_refused(&text, "the image config of docker-archive");

    let put = |name: &str, bytes: &[u8]| {
        std::fs::write(file(name), bytes).unwrap();
        format!("docker-archive:{}", file(name).display())
    };
    let good = std::fs::read(file("0.tar")).unwrap();
    check_refused(&put("empty", b""), "not a tar archive");
    check_refused(&put("text", &[b'x'; 4000]), "not a tar archive");
    check_refused(&put("cut", &good[..700]), "cut short");
    check_refused(&put("cut.gz", &Packing::Gzip.pack(&good)[..200]), "");
    check_refused(&put("bad.zst", &[0x28, 0xb5, 0x2f, 0xfd, 1, 2, 3, 4]), "");
    check_refused(&put("none.tar", &tar_of(&[("x", b"1")])), "it has no manifest.json");
    check_refused(&put("v1.tar", &tar_of(&[("repositories", b"{}")])), "docker before 1.10");
    check_refused(&put("oci.tar", &tar_of(&[("index.json", b"{}")])), "of an oci-archive");
    check_refused(
        &put("twice.tar", &tar_of(&[("manifest.json", b"[]"), ("./manifest.json", b"[]")])),
        "twice",
    );
    check_refused(&put("json.tar", &tar_of(&[("manifest.json", b"[{")])), "is not valid JSON");
    check_refused(
        &put("big.tar", &tar_of(&[("manifest.json", &vec![b' '; (4 << 20) + 1])])),
        "more than the limit",
    );
    check_refused("docker-archive:/nonexistent/x.tar", "No such file");
    check_refused(&format!("docker-archive:{}", scratch.path().display()), "not a regular file");
    tool("mkfifo", &[&file("fifo").display().to_string()]);
    let error = check_refused(&format!("docker-archive:{}", file("fifo").display()), "not a regular file");
    assert!(error.hints().join("").contains("save the archive to a file"));
}

#[test]
fn platforms_and_nested_indexes() {
    let scratch = support::scratch();
    let amd = Image::new("amd64", &[layer_tar("amd", b"1")], Packing::Gzip);
    let arm = Image::new("arm64", &[layer_tar("arm", b"2")], Packing::Gzip);
    let mut attestation = for_platform(&arm.config, OCI_MANIFEST, "unknown");
    attestation["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let inner = index(&[
        attestation.clone(),
        for_platform(&amd.manifest, OCI_MANIFEST, "amd64"),
        for_platform(&arm.manifest, OCI_MANIFEST, "arm64"),
    ]);
    let outer = index(&[descriptor(&inner, OCI_INDEX)]);
    let layout = Layout::new(
        &scratch.path().join("multi"),
        &[named(&inner, OCI_INDEX, "multi"), named(&outer, OCI_INDEX, "nested")],
    )
    .with(&amd)
    .with(&arm)
    .with_blob(&inner)
    .with_blob(&outer);
    for name in ["multi", "nested"] {
        let text = format!("oci:{}:{name}", layout.0.display());
        check(&text, &amd);
        let source = open_for(&text, "linux/arm64/v8").unwrap();
        assert_eq!(layer_tars(&*source), [arm.layers[0].tar.clone()]);
        assert_eq!(source.image().manifest, arm.manifest);
        let error = open_for(&text, "linux/riscv64").unwrap_err();
        assert!(chain(&error).contains("nothing for linux/riscv64"), "{}", chain(&error));
        assert!(error.hints().join("").contains("linux/amd64, linux/arm64"), "{:?}", error.hints());
    }
    // index.json itself as the list of platforms, nothing named.
    let flat = Layout::new(
        &scratch.path().join("flat"),
        &[
            for_platform(&arm.manifest, OCI_MANIFEST, "arm64"),
            for_platform(&amd.manifest, OCI_MANIFEST, "amd64"),
        ],
    )
    .with(&amd)
    .with(&arm);
    check(&format!("oci:{}", flat.0.display()), &amd);

    let only = index(&[attestation]);
    let layout = Layout::new(&scratch.path().join("only"), &[descriptor(&only, OCI_INDEX)]).with_blob(&only);
    let error = check_refused(&format!("oci:{}", layout.0.display()), "nothing for linux/amd64");
    assert!(error.hints().join("").contains("only attestations"), "{:?}", error.hints());
    // One image of another platform, without an index: taken, with a warning.
    let alone = Layout::of(&scratch.path().join("alone"), &arm);
    check(&format!("oci:{}", alone.0.display()), &arm);
}

#[test]
fn names_in_layouts() {
    let scratch = support::scratch();
    let one = Image::new("amd64", &[layer_tar("a", b"1")], Packing::Gzip);
    let two = Image::new("amd64", &[layer_tar("b", b"2")], Packing::Gzip);
    let mut containerd = descriptor(&two.manifest, OCI_MANIFEST);
    containerd["annotations"] = json!({"io.containerd.image.name": "docker.io/library/app:2"});
    let entries =
        [named(&one.manifest, OCI_MANIFEST, "1.0"), containerd, descriptor(&one.manifest, OCI_MANIFEST)];
    let layout = Layout::new(&scratch.path().join("names"), &entries).with(&one).with(&two);
    let text = format!("oci:{}", layout.0.display());
    check(&format!("{text}:1.0"), &one);
    check(&format!("{text}:docker.io/library/app:2"), &two);
    check(&format!("{text}:app:2"), &two);
    check(&format!("{text}:@2"), &one);
    let error = check_refused(&text, "holds 3 images");
    assert!(error.hints().join("").contains("1.0, docker.io/library/app:2, @2"), "{:?}", error.hints());
    let same = [named(&one.manifest, OCI_MANIFEST, "x"), named(&two.manifest, OCI_MANIFEST, "x")];
    let layout = Layout::new(&scratch.path().join("same"), &same).with(&one).with(&two);
    check_refused(&format!("oci:{}:x", layout.0.display()), "several images named \"x\"");
}

/// A fresh layout of the sample image, and its source text.
fn sample(scratch: &Path, name: &str) -> (Layout, Image, String) {
    let image = Image::sample();
    let layout = Layout::of(&scratch.join(name), &image);
    let text = format!("oci:{}", layout.0.display());
    (layout, image, text)
}

#[test]
fn blobs_that_are_no_files() {
    let scratch = support::scratch();
    let outside = scratch.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let at = scratch.path();
    let link = |target: &Path, path: &Path| std::os::unix::fs::symlink(target, path).unwrap();

    for (name, pick) in [("config", 0), ("manifest", 1)] {
        let (layout, image, text) = sample(at, &format!("link-{name}"));
        let path = layout.path_of(image.blobs()[pick]);
        std::fs::rename(&path, outside.join(name)).unwrap();
        link(&outside.join(name), &path);
        check_refused(&text, "ELOOP");
        std::fs::remove_file(&path).unwrap();
        check_refused(&text, "lacks blob sha256:");
        std::fs::create_dir(&path).unwrap();
        check_refused(&text, "EINVAL");
        std::fs::remove_dir(&path).unwrap();
        tool("mkfifo", &[&path.display().to_string()]);
        check_refused(&text, "EINVAL");
    }
    let (layout, image, text) = sample(at, "link-layer");
    let path = layout.path_of(&image.layers[1].blob);
    std::fs::rename(&path, outside.join("layer")).unwrap();
    link(&outside.join("layer"), &path);
    let error = open(&text).unwrap().open_layer(1).err().expect("a link");
    assert!(chain(&error).contains("ELOOP"), "{}", chain(&error));
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, b"short").unwrap();
    let error = open(&text).unwrap().open_layer(1).err().expect("another size");
    assert!(chain(&error).contains("layer 2 of"), "{}", chain(&error));

    for directory in ["blobs", "blobs/sha256"] {
        let (layout, _, text) = sample(at, &format!("link-{}", directory.replace('/', "-")));
        let moved = outside.join(directory.replace('/', "-"));
        std::fs::rename(layout.0.join(directory), &moved).unwrap();
        link(&moved, &layout.0.join(directory));
        check_refused(&text, "ENOTDIR");
    }
    let (layout, _, text) = sample(at, "link-index");
    std::fs::rename(layout.0.join("index.json"), outside.join("index")).unwrap();
    link(&outside.join("index"), &layout.0.join("index.json"));
    check_refused(&text, "ELOOP");

    // The user's own path may lead through links.
    let (layout, image, _) = sample(at, "real");
    link(&layout.0, &at.join("alias"));
    check(&format!("oci:{}", at.join("alias").display()), &image);
}

#[test]
fn lying_layouts() {
    let scratch = support::scratch();
    let at = scratch.path();
    let broken = |name: &str, change: &dyn Fn(&Layout, &Image)| {
        let (layout, image, text) = sample(at, name);
        change(&layout, &image);
        text
    };
    let overwrite = |path: &Path, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = std::fs::read(path).unwrap();
        change(&mut bytes);
        std::fs::write(path, bytes).unwrap();
    };
    let text = broken("flip", &|layout, image| {
        overwrite(&layout.path_of(&image.manifest), &|bytes| bytes[0] = b' ');
    });
    check_refused(&text, "the manifest of oci:");
    let text = broken("longer", &|layout, image| {
        overwrite(&layout.path_of(&image.manifest), &|bytes| bytes.push(b'\n'));
    });
    check_refused(&text, "bytes, not");
    let text = broken("config", &|layout, image| {
        overwrite(&layout.path_of(&image.config), &|bytes| bytes[1] = b' ');
    });
    check_refused(&text, "the image config of oci:");

    let write_index = |name: &str, document: &Value| {
        broken(name, &|layout, _| {
            std::fs::write(layout.0.join("index.json"), document.to_string()).unwrap();
        })
    };
    let entry =
        |digest: &str| json!({"manifests": [{"mediaType": OCI_MANIFEST, "digest": digest, "size": 2}]});
    check_refused(&write_index("traversal", &entry("sha256:../../../../etc/passwd")), "malformed digest");
    check_refused(
        &write_index("traversal2", &entry(&format!("../x:{}", "0".repeat(64)))),
        "malformed digest",
    );
    check_refused(&write_index("ambiguous", &json!({"manifests": [], "layers": []})), "ambiguous");
    check_refused(
        &write_index("manifest", &json!({"config": descriptor(b"", OCI_CONFIG), "layers": []})),
        "is a manifest",
    );
    check_refused(&write_index("none", &json!({"manifests": []})), "holds no image");
    check_refused(&write_index("null", &json!({"manifests": null})), "holds no image");
    check_refused(
        &write_index(
            "huge",
            &json!({"manifests":
        [{"mediaType": OCI_MANIFEST, "digest": Digest::of(b"").as_str(), "size": 5_000_000}]}),
        ),
        "more than the limit",
    );

    let without = |name: &str, file: &str| {
        broken(name, &|layout, _| std::fs::remove_file(layout.0.join(file)).unwrap())
    };
    check_refused(&without("no-index", "index.json"), "has no index.json");
    check_refused(&without("no-layout", "oci-layout"), "has no oci-layout");
    let version = |name: &str, text: &str| {
        broken(name, &|layout, _| std::fs::write(layout.0.join("oci-layout"), text).unwrap())
    };
    check_refused(&version("v2", r#"{"imageLayoutVersion":"2.0.0"}"#), "layout version \"2.0.0\"");
    check_refused(&version("v", "x"), "names no version");
    check_refused("oci:/nonexistent/layout", "ENOENT");
    check_refused("oci:/etc/passwd", "ENOTDIR");
}

#[test]
fn documents_that_are_no_image() {
    let scratch = support::scratch();
    let at = |name: &str| scratch.path().join(name);
    let with_manifest = |name: &str, manifest: &Value, media_type: &str| {
        let bytes = manifest.to_string().into_bytes();
        let image = Image::sample();
        let layout = Layout::new(&at(name), &[descriptor(&bytes, media_type)]).with(&image).with_blob(&bytes);
        format!("oci:{}", layout.0.display())
    };
    let image = Image::sample();
    let good: Value = serde_json::from_slice(&image.manifest).unwrap();
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut manifest = good.clone();
        change(&mut manifest);
        manifest
    };
    for (name, manifest, part) in [
        ("ambiguous", changed(&|m| m["manifests"] = json!([])), "ambiguous"),
        ("schema1", json!({"schemaVersion": 1, "fsLayers": []}), "schema 1"),
        (
            "helm",
            changed(&|m| m["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json")),
            "helm",
        ),
        (
            "encrypted",
            changed(&|m| {
                m["layers"][1]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+gzip+encrypted");
            }),
            "layer 2 is encrypted",
        ),
        (
            "sif",
            changed(&|m| m["layers"][0]["mediaType"] = json!("application/vnd.sylabs.sif.layer.v1.sif")),
            "not a tar",
        ),
        ("bigconfig", changed(&|m| m["config"]["size"] = json!(1u64 << 40)), "more than the limit"),
        (
            "fewer",
            changed(&|m| {
                m["layers"].as_array_mut().unwrap().pop();
            }),
            "1 layers but 2 diff IDs",
        ),
        (
            "digest",
            changed(&|m| m["layers"][0]["digest"] = json!("sha256:..")),
            "malformed digest in layers[0]",
        ),
        ("size", changed(&|m| m["config"]["size"] = json!(1)), "bytes, not 1"),
    ] {
        check_refused(&with_manifest(name, &manifest, OCI_MANIFEST), part);
    }
    check_refused(&with_manifest("declared", &good, OCI_INDEX), "is declared as");

    // Indexes in indexes, one more than allowed; the same one again and again is impossible by its digest.
    let mut document = index(&[for_platform(&image.manifest, OCI_MANIFEST, "amd64")]);
    let mut layout = Layout::new(&at("deep"), &[]).with(&image);
    for _ in 0..4 {
        layout = layout.with_blob(&document);
        document = index(&[descriptor(&document, OCI_INDEX)]);
    }
    layout = layout.with_blob(&document);
    std::fs::write(layout.0.join("index.json"), index(&[descriptor(&document, OCI_INDEX)])).unwrap();
    check_refused(&format!("oci:{}", layout.0.display()), "nested more than");

    let empties: Vec<Vec<u8>> = (0..70)
        .map(|number| {
            json!({"manifests": [], "annotations": {"n": number.to_string()}}).to_string().into_bytes()
        })
        .collect();
    let wide: Vec<Value> = empties.iter().map(|bytes| descriptor(bytes, OCI_INDEX)).collect();
    let outer = index(&wide);
    let layout = Layout::new(&at("wide"), &[descriptor(&outer, OCI_INDEX)]).with_blob(&outer);
    let layout = empties.iter().fold(layout, |layout, bytes| layout.with_blob(bytes));
    check_refused(&format!("oci:{}", layout.0.display()), "more than 64 documents");
}

/// The script in docs/image-format.md, which knows nothing of our code, reads what our code writes.
#[test]
fn the_documented_recipe_reads_a_trailer() {
    use hpcrun::image::trailer::{Conversion, LayerProvenance, Provenance, Trailer};
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/image-format.md")).unwrap();
    let script = page.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a script");
    let scratch = support::scratch();
    let script_path = scratch.path().join("section.sh");
    std::fs::write(&script_path, script).unwrap();
    let image = Image::sample();
    let trailer = Trailer {
        manifest: image.manifest.clone(),
        config: image.config.clone(),
        provenance: Provenance {
            origin: "oci:layout".into(),
            manifest_digest: Digest::of(&image.manifest).to_string(),
            manifest_media_type: OCI_MANIFEST.into(),
            platform: "linux/amd64".into(),
            layers: vec![LayerProvenance {
                digest: None,
                diff_id: Digest::of(b"").to_string(),
                size: Some(7),
            }],
            conversion: Conversion { codec: "zstd".into(), level: None, block_size: 1 << 17 },
            hpcrun_version: "1.2.3".into(),
        },
        others: Vec::new(),
    };
    let file = scratch.path().join("image");
    let squashfs = vec![b'q'; 70_001];
    std::fs::write(&file, [squashfs.clone(), trailer.encode(squashfs.len() as u64)].concat()).unwrap();
    let section =
        |kind: &str, path: &Path| support::run(Command::new("sh").arg(&script_path).arg(path).arg(kind));
    assert_eq!(section("1", &file).stdout, image.manifest);
    assert_eq!(section("2", &file).stdout, image.config);
    let provenance: Value = serde_json::from_slice(&section("3", &file).stdout).unwrap();
    let expected = json!({
        "origin": "oci:layout", "manifest_digest": Digest::of(&image.manifest).as_str(),
        "manifest_media_type": OCI_MANIFEST, "platform": "linux/amd64",
        "layers": [{"diff_id": Digest::of(b"").as_str(), "size": 7}],
        "conversion": {"codec": "zstd", "block_size": 131_072}, "hpcrun_version": "1.2.3",
    });
    assert_eq!(provenance, expected);
    assert_eq!(section("9", &file).status.code(), Some(1));
    std::fs::write(&file, &squashfs).unwrap();
    assert_eq!(section("1", &file).status.code(), Some(1));
}
