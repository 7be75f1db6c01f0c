//! Facts about one image, gathered from its file: what `hpcrun doctor --image` compares with the node.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::cli::image_file::ImageFile;
use crate::cli::launch;
use crate::cli::report::Failure;
use crate::elf::note::{Demands, glibc_version};
use crate::elf::{self};
use crate::host::doctor::image::{ImageFacts, Libc, unusable};
use crate::host::doctor::{self, Check};
use crate::host::{Host, probe};
use crate::image::platform::Platform;
use crate::launch::request::{Request, Verb};
use crate::policy::Policy;
use crate::squashfs::format::Codec;

/// Larger than any C library.
const LIBC_MAX_BYTES: u64 = 32 << 20;
/// The part of a file that holds its ELF header and program header.
const HEAD_BYTES: usize = 4096;

/// Where images have the C library.
const GLIBC: [&str; 7] = [
    "/lib/x86_64-linux-gnu/libc.so.6",
    "/usr/lib/x86_64-linux-gnu/libc.so.6",
    "/lib/aarch64-linux-gnu/libc.so.6",
    "/usr/lib/aarch64-linux-gnu/libc.so.6",
    "/lib64/libc.so.6",
    "/usr/lib64/libc.so.6",
    "/usr/lib/libc.so.6",
];
const MUSL: [&str; 2] = ["/lib/ld-musl-x86_64.so.1", "/lib/ld-musl-aarch64.so.1"];

/// All checks of the image at `path`; without a valid policy no launch of it can be planned.
pub(super) fn checks(path: &Path, host: Host, policy: Option<&Policy>) -> Vec<Check> {
    match ImageFile::open(path).map_err(Failure::from).and_then(|image| facts(&image, host, policy)) {
        Ok(facts) => doctor::image::checks(&facts),
        Err(failure) => vec![unusable(failure.message(), failure.hints())],
    }
}

fn facts(image: &ImageFile, host: Host, policy: Option<&Policy>) -> Result<ImageFacts, Failure> {
    let (libc, demands) = libc(image)?;
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
        libc,
        libc_kernel: demands.kernel,
        cpu_level: if platform.architecture() == "amd64" { demands.cpu_level.max(named_level) } else { None },
        node_cpu_level: probe::cpu_level(),
        kernel: host.kernel.clone(),
        plan: policy.map(|policy| plan(image, host, policy)),
    })
}

/// The C library of the image and what its notes demand.
fn libc(image: &ImageFile) -> Result<(Libc, Demands), Failure> {
    let read = |path: &str| {
        let bytes = image.filesystem.small_file(path.as_bytes(), LIBC_MAX_BYTES);
        bytes.map_err(|error| Failure::plain(format!("cannot read {path} of the image: {error}")))
    };
    for path in GLIBC {
        if let Some(bytes) = read(path)? {
            let version =
                glibc_version(&bytes).map_or(Libc::None, |(major, minor)| Libc::Glibc(major, minor));
            return Ok((version, demands(&bytes)));
        }
    }
    for path in MUSL {
        if let Some(bytes) = read(path)? {
            return Ok((Libc::Musl, demands(&bytes)));
        }
    }
    Ok((Libc::None, Demands::default()))
}

fn demands(file: &[u8]) -> Demands {
    let head = file.get(..HEAD_BYTES).unwrap_or(file);
    let read = |offset: u64, length: usize| {
        let start = usize::try_from(offset).ok()?;
        file.get(start..start.checked_add(length)?).map(<[u8]>::to_vec)
    };
    elf::Header::parse(head).map_or_else(Demands::default, |elf| elf.demands(head, &read))
}

/// What policy and plan say of the plainest launch.
fn plan(image: &ImageFile, host: Host, policy: &Policy) -> Result<(), String> {
    let request = Request { verb: Verb::Exec { command: vec!["true".into()] }, ..Request::default() };
    launch::plan_only(&request, &image.path, host, policy).map_err(|failure| failure.message().to_owned())
}
