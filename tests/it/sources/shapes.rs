//! Media types, compressions and shapes of archives, each with what becomes of it; the table is in `docs/sources.md`.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use hpcrun::convert::source::{self, SourceOptions};
use hpcrun::hint::Hint;
use hpcrun::image::platform::Platform;
use hpcrun::image::reference::SourceReference;
use serde_json::{Value, json};

use super::layout::{
    Image, Layer, Layout, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Packing, TarBuilder, descriptor, for_platform,
    index, layer_tar, tar_of,
};
use super::{chain, check, check_refused, docker_entry, tool, write_archive};
use crate::busybox_image::assert_fails;
use crate::support;

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// A layout of a manifest that was changed.
fn layout_of(path: &Path, image: &Image, media_type: &str, change: &dyn Fn(&mut Value)) -> String {
    let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    change(&mut manifest);
    let bytes = manifest.to_string().into_bytes();
    let layout = Layout::new(path, &[descriptor(&bytes, media_type)]).with(image).with_blob(&bytes);
    format!("oci:{}", layout.0.display())
}

#[test]
fn media_types_of_docker_and_oci_and_none() {
    let scratch = support::scratch();
    let image = Image::sample();
    let docker = |manifest: &mut Value| {
        manifest["mediaType"] = json!(DOCKER_MANIFEST);
        manifest["config"]["mediaType"] = json!(DOCKER_CONFIG);
        for layer in manifest["layers"].as_array_mut().unwrap() {
            layer["mediaType"] = json!(DOCKER_LAYER);
        }
    };
    check(&layout_of(&scratch.path().join("docker"), &image, DOCKER_MANIFEST, &docker), &image);
    let unstated = |manifest: &mut Value| {
        manifest.as_object_mut().unwrap().remove("mediaType");
    };
    for (name, media_type) in [("oci", OCI_MANIFEST), ("stated-elsewhere", DOCKER_MANIFEST), ("nowhere", "")]
    {
        check(&layout_of(&scratch.path().join(name), &image, media_type, &unstated), &image);
    }
    let list = json!({"schemaVersion": 2, "mediaType": DOCKER_LIST,
        "manifests": [for_platform(&image.manifest, OCI_MANIFEST, "amd64")]});
    let list = list.to_string().into_bytes();
    let layout = Layout::new(&scratch.path().join("list"), &[descriptor(&list, DOCKER_LIST)]);
    check(&format!("oci:{}", layout.with(&image).with_blob(&list).0.display()), &image);
    // What the manifest says of the compression counts for nothing.
    for (name, layer_type) in [
        ("plain", "application/vnd.oci.image.layer.v1.tar"),
        ("zstd", "application/vnd.oci.image.layer.v1.tar+zstd"),
        ("none", ""),
        ("bytes", "application/octet-stream"),
        ("x-tar", "application/x-tar"),
    ] {
        let other = |manifest: &mut Value| manifest["layers"][0]["mediaType"] = json!(layer_type);
        check(&layout_of(&scratch.path().join(name), &image, OCI_MANIFEST, &other), &image);
    }
}

#[test]
fn what_is_no_image_is_called_by_its_name() {
    let scratch = support::scratch();
    let image = Image::sample();
    let number = std::cell::Cell::new(0);
    let refused = |media_type: &str, change: &dyn Fn(&mut Value), part: &str| {
        number.set(number.get() + 1);
        let path = scratch.path().join(number.get().to_string());
        check_refused(&layout_of(&path, &image, media_type, change), part)
    };
    let empty = |m: &mut Value| m["config"]["mediaType"] = json!("application/vnd.oci.empty.v1+json");
    refused(OCI_MANIFEST, &empty, "not a container image but an artifact of type");
    let typed = |m: &mut Value| {
        m["artifactType"] = json!("application/vnd.example.sbom");
        empty(m);
    };
    refused(OCI_MANIFEST, &typed, "artifact of type \"application/vnd.example.sbom\"");
    refused(
        OCI_MANIFEST,
        &|m| m["mediaType"] = json!("application/vnd.oci.artifact.manifest.v1+json"),
        "artifact",
    );
    let layer =
        |media_type: &'static str| move |m: &mut Value| m["layers"][0]["mediaType"] = json!(media_type);
    refused(OCI_MANIFEST, &layer("application/vnd.sylabs.image.layer.v1.squashfs"), "layer 1 is not a tar");
    refused(OCI_MANIFEST, &layer("application/vnd.oci.image.layer.v1.tar+encrypted"), "layer 1 is encrypted");
    for version_1 in ["manifest.v1+json", "manifest.v1+prettyjws"] {
        let media_type = format!("application/vnd.docker.distribution.{version_1}");
        let error = refused(&media_type, &|m| *m = json!({"schemaVersion": 1, "fsLayers": []}), "schema 1");
        assert!(error.hints().join("").contains("push the image again"), "{:?}", error.hints());
    }
    refused(OCI_MANIFEST, &|m| m["schemaVersion"] = json!(3), "schema version 3");
    refused(OCI_MANIFEST, &|m| m["fsLayers"] = json!([]), "ambiguous");
    refused(OCI_MANIFEST, &|m| m["mediaType"] = json!(OCI_INDEX), "is declared as");
    refused(
        OCI_MANIFEST,
        &|m| drop(m.as_object_mut().unwrap().remove("config")),
        "neither layers nor manifests",
    );
}

#[test]
fn foreign_layers_need_a_word() {
    let scratch = support::scratch();
    let image = Image::sample();
    let number = std::cell::Cell::new(0);
    let foreign = |change: &dyn Fn(&mut Value)| {
        number.set(number.get() + 1);
        layout_of(&scratch.path().join(number.get().to_string()), &image, OCI_MANIFEST, change)
    };
    let mut texts = Vec::new();
    for media_type in [
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ] {
        texts.push(foreign(&|m| m["layers"][1]["mediaType"] = json!(media_type)));
    }
    texts.push(foreign(&|m| m["layers"][1]["urls"] = json!(["https://layers.example/1"])));
    for text in &texts {
        let error = check_refused(text, "layer 2 is not to be distributed");
        assert!(error.hints().join("").contains("--allow-foreign"), "{:?}", error.hints());
        let reference = SourceReference::parse(text.as_ref(), &Path::exists).unwrap();
        let platform = Platform::parse("linux/amd64").unwrap();
        let options = SourceOptions { platform, allow_foreign: true, ..SourceOptions::default() };
        let source = source::open(&reference, &options).unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(source.image().layers.len(), 2);
    }
    check(&foreign(&|m| m["layers"][1]["urls"] = json!([])), &image);

    let dest = scratch.path().join("x.sqsh");
    let convert = |flags: &[&str], text: &str| {
        support::run(support::hpcrun(["convert"]).args(flags).arg(text).arg(&dest))
    };
    assert_fails(
        &convert(&[], &texts[0]),
        125,
        &["has foreign layers", "hint: if you may use them, say so with --allow-foreign"],
    );
    assert!(convert(&["--allow-foreign"], &texts[0]).status.success());

    // docker save of an image with layers that it does not save.
    let (mut entry, files) = docker_entry(&image, json!(["app:1"]));
    entry["LayerSources"] = json!({});
    let text = write_archive(&scratch.path().join("none.tar"), &json!([entry]), &files);
    check(&text, &image);
    // Docker since 25 describes all layers there.
    let ordinary =
        json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "size": 1, "digest": "sha256:00"});
    entry["LayerSources"] = json!({"sha256:00": ordinary});
    let text = write_archive(&scratch.path().join("v25.tar"), &json!([entry]), &files);
    check(&text, &image);
    entry["LayerSources"] = json!({"sha256:00": {"urls": ["https://layers.example/1"]}});
    let text = write_archive(&scratch.path().join("some.tar"), &json!([entry]), &files);
    check_refused(&text, "leaves layers to other places");
}

/// One gzip member for each 700 bytes, as eStargz has one for each file.
fn many_members(tar: &[u8]) -> Vec<u8> {
    tar.chunks(700).flat_map(|piece| Packing::Gzip.pack(piece)).collect()
}

/// Zstandard frames with the skippable frames that zstd:chunked ends with.
fn with_skippable_frames(tar: &[u8]) -> Vec<u8> {
    let mut blob: Vec<u8> = tar.chunks(5000).flat_map(|piece| Packing::Zstd.pack(piece)).collect();
    for content in [&b"table of contents"[..], b""] {
        blob.extend_from_slice(&0x184d_2a50u32.to_le_bytes());
        blob.extend_from_slice(&u32::try_from(content.len()).unwrap().to_le_bytes());
        blob.extend_from_slice(content);
    }
    blob
}

/// Converts through the binary; gives what `unsquashfs` finds in the file `name`.
#[track_caller]
fn content(dir: &Path, text: &str, name: &str) -> Vec<u8> {
    let dest = dir.join("content.sqsh");
    support::stdout(support::hpcrun(["convert", "--force", text]).arg(&dest));
    support::run(Command::new("unsquashfs").arg("-cat").arg(&dest).arg(name)).stdout
}

#[test]
fn compressions_of_layers() {
    let scratch = support::scratch();
    let data: Vec<u8> = (0..40_000u32).flat_map(u32::to_le_bytes).collect();
    let tar = layer_tar("file", &data);
    let blobs = [
        tar.clone(),
        Packing::Gzip.pack(&tar),
        many_members(&tar),
        Packing::Zstd.pack(&tar),
        with_skippable_frames(&tar),
    ];
    let config = Image::new("amd64", std::slice::from_ref(&tar), Packing::Plain).config;
    let image_of = |blob: &[u8]| {
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip".to_owned();
        Image::with_config(vec![Layer { tar: tar.clone(), blob: blob.to_vec(), media_type }], config.clone())
    };
    for (number, blob) in blobs.iter().enumerate() {
        let layout = Layout::of(&scratch.path().join(number.to_string()), &image_of(blob));
        let text = format!("oci:{}", layout.0.display());
        assert!(content(scratch.path(), &text, "file") == data, "blob {number}");
    }
    // By the makers of the format.
    let from = format!("oci:{}:v1", scratch.path().join("0").display());
    let chunked = scratch.path().join("chunked");
    let to = format!("oci:{}:1", chunked.display());
    tool("skopeo", &["copy", "-q", "--dest-compress-format", "zstd:chunked", &from, &to]);
    let manifest = tool("skopeo", &["inspect", "--raw", &to]);
    assert!(manifest.contains("zstd-chunked"), "{manifest}");
    assert!(content(scratch.path(), &to, "file") == data);

    let pipe = |program: &str| {
        let mut child = Command::new(program)
            .arg("-c")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        let bytes = tar[..20_000].to_vec();
        let writer = std::thread::spawn(move || input.write_all(&bytes).unwrap());
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output.stdout
    };
    for (name, blob, expected) in [
        ("garbage", [&Packing::Gzip.pack(&tar)[..], b"garbage"].concat(), "gzip stream is corrupt"),
        ("xz", pipe("xz"), "compressed with xz"),
        ("bzip2", pipe("bzip2"), "compressed with bzip2"),
    ] {
        let layout = Layout::of(&scratch.path().join(name), &image_of(&blob));
        let text = format!("oci:{}", layout.0.display());
        let output = support::run(support::hpcrun(["convert", &text]).arg(scratch.path().join("no.sqsh")));
        assert_fails(&output, 125, &[expected]);
    }
}

#[test]
fn empty_layers() {
    let scratch = support::scratch();
    let file = layer_tar("file", b"content");
    for (number, packing) in [Packing::Plain, Packing::Gzip, Packing::Zstd].into_iter().enumerate() {
        let tars = [vec![0; 1024], file.clone(), vec![0; 10_240], Vec::new(), vec![0; 1024]];
        let image = Image::new("amd64", &tars, packing);
        let path = scratch.path().join(number.to_string());
        let text = format!("oci:{}", Layout::of(&path, &image).0.display());
        assert_eq!(content(scratch.path(), &text, "file"), b"content", "{packing:?}");
    }
}

#[test]
fn docker_save_before_oci() {
    // As docker up to 24 wrote it: a directory for each layer, and what docker before 1.10 looked for.
    let scratch = support::scratch();
    let image = Image::new("amd64", &[layer_tar("a", b"1"), layer_tar("b", b"2")], Packing::Plain);
    let config = "11.json";
    let mut builder = TarBuilder::default();
    for (id, layer) in ["aa", "bb"].iter().zip(&image.layers) {
        builder = builder
            .directory(&format!("{id}/"))
            .file(&format!("{id}/VERSION"), b"1.0")
            .file(&format!("{id}/json"), format!("{{\"id\":\"{id}\"}}").as_bytes())
            .file(&format!("{id}/layer.tar"), &layer.tar);
    }
    let manifest =
        json!([{"Config": config, "RepoTags": ["app:1"], "Layers": ["aa/layer.tar", "bb/layer.tar"]}]);
    let repositories = json!({"app": {"1": "bb"}});
    let tar = builder
        .file(config, &image.config)
        .file("manifest.json", manifest.to_string().as_bytes())
        .file("repositories", repositories.to_string().as_bytes())
        .finish();
    let path = scratch.path().join("old.tar");
    std::fs::write(&path, &tar).unwrap();
    let text = format!("docker-archive:{}", path.display());
    check(&text, &image);
    check(&format!("{text}:app:1"), &image);
    for (suffix, packing) in [("gz", Packing::Gzip), ("zst", Packing::Zstd)] {
        let packed = scratch.path().join(format!("old.tar.{suffix}"));
        std::fs::write(&packed, packing.pack(&tar)).unwrap();
        check(&format!("docker-archive:{}", packed.display()), &image);
    }
}

#[test]
fn three_indexes_deep_and_no_deeper() {
    let scratch = support::scratch();
    let image = Image::sample();
    let mut document = index(&[for_platform(&image.manifest, OCI_MANIFEST, "amd64")]);
    let mut documents = vec![document.clone()];
    for _ in 0..3 {
        document = index(&[descriptor(&document, OCI_INDEX)]);
        documents.push(document.clone());
    }
    for (depth, document) in documents.iter().enumerate() {
        let path = scratch.path().join(depth.to_string());
        let layout = Layout::new(&path, &[descriptor(document, OCI_INDEX)]).with(&image);
        let layout = documents.iter().fold(layout, |layout, document| layout.with_blob(document));
        let text = format!("oci:{}", layout.0.display());
        if depth < 3 {
            check(&text, &image);
        } else {
            check_refused(&text, "nested more than");
        }
    }
}

#[test]
fn another_architecture_is_a_warning() {
    let scratch = support::scratch();
    let other = if cfg!(target_arch = "aarch64") { "amd64" } else { "arm64" };
    let image = Image::new(other, &[layer_tar("a", b"1")], Packing::Gzip);
    let text = format!("oci:{}", Layout::of(&scratch.path().join("other"), &image).0.display());
    let output = support::run(support::hpcrun(["convert", &text]).arg(scratch.path().join("x.sqsh")));
    let said = support::text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains(&format!("is for linux/{other}, not linux/")), "{said}");
    assert!(!said.contains(OCI_CONFIG));
}

#[test]
fn a_tar_of_something_else() {
    let scratch = support::scratch();
    let path = scratch.path().join("x.tar");
    std::fs::write(&path, tar_of(&[("etc/passwd", b"")])).unwrap();
    check_refused(&format!("docker-archive:{}", path.display()), "it has no manifest.json");
    check_refused(&format!("oci-archive:{}", path.display()), "it has no oci-layout");
}
