//! Facts about one image, gathered from its file: what `hpcrun doctor --image` compares with the node.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::cli::image_file::ImageFile;
use crate::cli::launch;
use crate::cli::report::Failure;
use crate::convert::facts::{CLibrary, c_library};
use crate::elf::version;
use crate::host::doctor::image::{ImageFacts, Libc, unusable};
use crate::host::doctor::{self, Check};
use crate::host::{Host, probe};
use crate::image::facts::Libc as Known;
use crate::image::platform::Platform;
use crate::launch::request::{Request, Verb};
use crate::policy::Policy;
use crate::squashfs::format::Codec;

/// All checks of the image at `path`; without a valid policy no launch of it can be planned.
pub(super) fn checks(path: &Path, host: Host, policy: Option<&Policy>) -> Vec<Check> {
    match ImageFile::open(path).map_err(Failure::from).and_then(|image| facts(&image, host, policy)) {
        Ok(facts) => doctor::image::checks(&facts),
        Err(failure) => vec![unusable(failure.message(), failure.hints())],
    }
}

fn facts(image: &ImageFile, host: Host, policy: Option<&Policy>) -> Result<ImageFacts, Failure> {
    let c_library = c_library(&image.filesystem);
    let object = c_library.object.as_ref();
    let config = &image.config;
    let named = image.provenance()?.and_then(|provenance| Platform::parse(&provenance.platform).ok());
    let platform = named.unwrap_or_else(|| Platform::new("linux", &config.architecture, ""));
    let named_level = platform.variant().strip_prefix('v').and_then(|level| level.parse().ok());
    let metadata = std::fs::metadata(&image.path).ok();
    let has_trailer = image.contents().is_some();
    let node = Platform::new("linux", std::env::consts::ARCH, "");
    Ok(ImageFacts {
        path: image.path.clone(),
        length: image.length,
        place: probe::place(&image.path),
        owner: metadata.map(|metadata| (metadata.uid(), metadata.mode() & 0o7777)),
        format: match (&image.sif, has_trailer) {
            (Some(_), _) => "SIF",
            (None, true) => "squashfs with trailer",
            (None, false) => "squashfs",
        },
        codec: Codec::from_id(image.filesystem.superblock().codec_id)
            .map_or("unknown", Codec::name)
            .to_owned(),
        trailer: image.contents().map(|contents| {
            crate::cli::verify::check_sections(contents, &|offset, bytes: &mut [u8]| {
                image.read_at(offset, bytes)
            })
        }),
        has_hashes: image.contents().is_some_and(|contents| {
            contents.place(crate::image::trailer::SectionKind::ChunkHashes).is_some()
        }),
        architecture: platform.architecture().to_owned(),
        node_architecture: node.architecture().to_owned(),
        libc: libc(&c_library),
        libc_kernel: object.and_then(|object| object.oldest_kernel).map(|[major, minor, _]| (major, minor)),
        cpu_level: object
            .and_then(|object| object.isa_level)
            .max(named_level)
            .filter(|_| platform.architecture() == "amd64"),
        node_cpu_level: host.isa_level,
        kernel: host.kernel.clone(),
        plan: policy.map(|policy| plan(image, host, policy)),
    })
}

/// The C library as a check tells of it.
fn libc(found: &CLibrary) -> Libc {
    let versions = found.object.iter().flat_map(|object| object.defines.iter().map(Vec::as_slice));
    match (&found.libc, version::glibc(versions)) {
        (Some(Known::Glibc { .. }), Some((major, minor))) => Libc::Glibc(major, minor),
        (Some(Known::Musl), _) => Libc::Musl,
        _ => Libc::None,
    }
}

/// What policy and plan say of the plainest launch.
fn plan(image: &ImageFile, host: Host, policy: &Policy) -> Result<(), String> {
    let request = Request { verb: Verb::Exec { command: vec!["true".into()] }, ..Request::default() };
    launch::plan_only(&request, &image.path, host, policy).map_err(|failure| failure.message().to_owned())
}
