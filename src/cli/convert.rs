//! `hpcrun convert`: from what was typed to one call of the pipeline, and a closing line.

use std::ffi::OsStr;
use std::fs::File;
use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use crate::cli::convert_args::{Compressor, Convert, ConvertOptions};
use crate::cli::progress::Display;
use crate::cli::report::Failure;
use crate::cli::{layer_cache, limits, registries_conf, registry, site, site_registries, size};
use crate::convert::source::registry::{RegistriesConf, RegistryOptions};
use crate::convert::source::{self, Ownership, Source, SourceImage, SourceOptions};
use crate::convert::{
    self, ConvertError, Described, Destination, Extras, LayerCache, Order, Progress, Summary,
};
use crate::host::step::ParallelStep;
use crate::image::digest::Digest;
use crate::image::platform::Platform;
use crate::image::reference::SourceReference;
use crate::image::trailer::{Conversion, LayerProvenance, Provenance, SectionKind, Trailer};
use crate::policy::rules::ConvertLimits;
use crate::policy::{Policy, Refusal};
use crate::squashfs::compress::Compression;
use crate::squashfs::writer;
use crate::sys::signal;

/// Runs `hpcrun convert SOURCE DEST`.
pub(crate) fn convert(args: &Convert, quiet: bool) -> Result<u8, Failure> {
    let reference = parse_source(&args.source)?;
    let registries = match reference {
        SourceReference::Registry(_) => registries_conf::read()?,
        _ => RegistriesConf::default(),
    };
    into_file(&reference, registries, &args.dest, &args.options, quiet)
}

/// `docker://NAME` means what it means everywhere, as do archives and layouts.
pub(crate) fn parse_source(typed: &OsStr) -> Result<SourceReference, Failure> {
    SourceReference::parse(typed, &|path| path.exists()).map_err(|error| Failure::new(&error))
}

/// Converts into one file and says so.
pub(crate) fn into_file(
    reference: &SourceReference,
    registries: RegistriesConf,
    dest: &Path,
    options: &ConvertOptions,
    quiet: bool,
) -> Result<u8, Failure> {
    let begun = Instant::now();
    let policy = site::policy()?;
    let destination = Destination { path: dest.to_owned(), force: options.force };
    destination.check().map_err(|error| Failure::new(&error))?;
    let scratch = dest.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    let opened = Opened::open(reference, registries, scratch, options, &policy)?;
    let summary = opened.write(&destination, quiet).map_err(|error| limits::failure(&error, &policy))?;
    if !quiet {
        let line = closing_line(&dest.display().to_string(), opened.image(), &summary, begun);
        crate::cli::output::message(&line);
    }
    Ok(0)
}

/// A source whose image is resolved, and what it is to be converted by.
pub(crate) struct Opened {
    source: Box<dyn Source>,
    chosen: convert::ConvertOptions,
    order: Option<Order>,
    order_file: Option<PathBuf>,
    cache: Option<LayerCache>,
}

impl Opened {
    /// Resolves `reference` within the site's rules. No layer is fetched yet.
    pub(crate) fn open(
        reference: &SourceReference,
        registries: RegistriesConf,
        scratch: &Path,
        options: &ConvertOptions,
        policy: &Policy,
    ) -> Result<Opened, Failure> {
        // Without it the limit would kill us without a word; so a failure to ignore it is worth none.
        let _ = signal::ignore_file_size_signal();
        if let SourceReference::Registry(_) = reference {
            refuse_in_step(policy)?;
        }
        let registries = site_registries::of(reference, registries, policy)?;
        let chosen = pipeline_options(options, &policy.rules().convert)?;
        let order = layer_cache::order(options)?;
        let cache = layer_cache::open(options, policy);
        let source_options = source_options(options, reference, registries, scratch, policy, cache.as_ref())?;
        let source = source::open(reference, &source_options)
            .map_err(|error| Failure::new(&error).of_silence(error.is_silence()))?;
        site_registries::check_digests(source.image(), policy)?;
        Ok(Opened { source, chosen, order, order_file: options.order.clone(), cache })
    }

    /// The resolved image.
    pub(crate) fn image(&self) -> &SourceImage {
        self.source.image()
    }

    /// All that decides what the image file of a manifest looks like, in words.
    pub(crate) fn parameters(&self) -> Result<String, Failure> {
        let order = match &self.order_file {
            Some(path) => {
                let text = std::fs::read(path)
                    .map_err(|error| Failure::plain(format!("cannot read {}: {error}", path.display())))?;
                Digest::of(&text).to_string()
            }
            None => "as it comes".to_owned(),
        };
        let convert::ConvertOptions { compression, block_size, .. } = self.chosen;
        Ok(format!("{compression:?}, blocks of {block_size}, order {order}"))
    }

    /// Fetches and converts the image.
    pub(crate) fn write(&self, destination: &Destination, quiet: bool) -> Result<Summary, ConvertError> {
        let source = &*self.source;
        let progress = Arc::new(Progress::new(source.image()));
        let display = Display::start(&progress, quiet);
        let trailer = |squashfs: &writer::Summary, described: Described| {
            trailer(source.image(), &self.chosen, described).encode(squashfs.bytes_used)
        };
        let extras = Extras { cache: self.cache.as_ref(), order: self.order.as_ref() };
        let converted =
            convert::convert_described(extras, source, destination, &self.chosen, &progress, trailer);
        drop(display);
        let summary = converted?;
        warn_of_losses(&summary);
        if let (Some(path), unknown @ 1..) = (&self.order_file, summary.unknown_paths) {
            log::warn!("{unknown} of the paths in {} are no regular file of the image", path.display());
        }
        Ok(summary)
    }
}

/// A thousand ranks that pull are an attack on the registry, and on the site's name there.
fn refuse_in_step(policy: &Policy) -> Result<(), Failure> {
    let allowed = policy.rules().store.allow_pull_in_jobs.as_ref();
    let environment: Vec<_> = std::env::vars_os().collect();
    let Some(step) = ParallelStep::from_environment(&environment) else { return Ok(()) };
    if allowed.is_some_and(|allowed| allowed.value) {
        return Ok(());
    }
    let ranks = step.ranks.map_or_else(|| "several".to_owned(), |ranks| ranks.to_string());
    let key = "[store] allow_pull_in_jobs";
    let refusal = Refusal {
        what: format!("pulling in each of {ranks} ranks of a job step"),
        rule: allowed.map_or_else(|| policy.whole(key), |allowed| policy.rule(allowed.at, key)),
        allowed: "pull once, before the step: on a login node or in the batch script, without srun or mpirun"
            .to_owned(),
    };
    Err(Failure::refused(&refusal)
        .hint("then start the ranks with the image's name: srun hpcrun exec NAME COMMAND"))
}

/// Whether foreign layers are taken: the site's word, or else the user's.
fn allow_foreign(options: &ConvertOptions, policy: &Policy) -> Result<bool, Failure> {
    match policy.allow_foreign_layers() {
        (false, Some(rule)) if options.allow_foreign => {
            let what = "foreign layers (--allow-foreign)".to_owned();
            let refusal = Refusal { what, rule, allowed: "layers that the registry itself has".to_owned() };
            Err(Failure::refused(&refusal))
        }
        (allowed, _) => Ok(allowed || options.allow_foreign),
    }
}

/// What was asked for, within the site's limits.
fn pipeline_options(
    options: &ConvertOptions,
    site: &ConvertLimits,
) -> Result<convert::ConvertOptions, Failure> {
    let defaults = convert::ConvertOptions::default();
    let jobs = options.jobs.map_or(defaults.jobs, usize::from);
    let max_jobs = site.max_jobs.as_ref().and_then(|most| usize::try_from(most.value).ok());
    Ok(convert::ConvertOptions {
        jobs: jobs.min(max_jobs.unwrap_or(jobs)).max(1),
        compression: compression(options.compression, options.level)?,
        block_size: options.block_size,
        budget: limits::budget(site),
        ..defaults
    })
}

/// Codec and level, held against the codec's range.
fn compression(codec: Compressor, level: Option<u32>) -> Result<Compression, Failure> {
    let within = |default: u32, low: u32, high: u32| match level.unwrap_or(default) {
        level if (low..=high).contains(&level) => Ok(level),
        level => Err(Failure::plain(format!("--level {level} is out of range: {low} to {high}"))),
    };
    Ok(match codec {
        Compressor::Zstd => Compression::Zstd(i32::try_from(within(3, 1, 22)?).unwrap_or(3)),
        Compressor::Gzip => Compression::Gzip(within(6, 1, 12)?),
        Compressor::Xz => Compression::Xz(within(6, 0, 9)?),
        Compressor::Lz4 if level.is_some() => return Err(Failure::plain("--level: lz4 has no levels")),
        Compressor::Lz4 => Compression::Lz4,
    })
}

fn source_options(
    options: &ConvertOptions,
    reference: &SourceReference,
    registries: RegistriesConf,
    scratch: &Path,
    policy: &Policy,
    cache: Option<&LayerCache>,
) -> Result<SourceOptions, Failure> {
    let platform = match &options.platform {
        Some(text) => Platform::parse(text).map_err(|error| Failure::plain(error.to_string()))?,
        None => Platform::host(),
    };
    if options.owner.is_some() && !matches!(reference, SourceReference::Directory(_)) {
        return Err(Failure::plain("--owner is for dir: only; other sources say who owns what"));
    }
    let allow_foreign = allow_foreign(options, policy)?;
    let registry = match reference {
        SourceReference::Registry(name) => RegistryOptions {
            foreign_layers: allow_foreign,
            documents: cache.map(|cache| cache.path().join("documents")),
            ..registry::options(&options.registry, name, registries)?
        },
        _ => RegistryOptions::default(),
    };
    Ok(SourceOptions {
        platform,
        registry,
        allow_foreign,
        input: standard_input(),
        scratch: scratch.to_owned(),
        docker_socket: docker_socket(reference)?,
        ownership: options.owner.map_or(Ownership::Kept, |(uid, gid)| Ownership::Of { uid, gid }),
    })
}

/// Standard input, unless a person sits at it.
fn standard_input() -> Option<Arc<File>> {
    let input = std::io::stdin();
    let own = input.as_fd().try_clone_to_owned().ok().filter(|_| !input.is_terminal());
    own.map(|own| Arc::new(File::from(own)))
}

/// The socket that docker and podman would be spoken to through.
fn docker_socket(reference: &SourceReference) -> Result<PathBuf, Failure> {
    const DEFAULT: &str = "/var/run/docker.sock";
    let host = std::env::var_os("DOCKER_HOST").filter(|host| !host.is_empty());
    let (Some(host), SourceReference::DockerDaemon(_)) = (host, reference) else {
        return Ok(PathBuf::from(DEFAULT));
    };
    match host.as_bytes().strip_prefix(b"unix://") {
        Some(path) if path.starts_with(b"/") => Ok(PathBuf::from(OsStr::from_bytes(path))),
        _ => {
            let message = format!("DOCKER_HOST is {host:?}: docker-daemon: speaks to a unix:///PATH only");
            Err(Failure::plain(message).hint("docker save NAME | hpcrun convert docker-archive:- DEST"))
        }
    }
}

/// What the trailer says of the image and of how it was converted.
fn trailer(image: &SourceImage, options: &convert::ConvertOptions, described: Described) -> Trailer {
    let layers = image
        .layers
        .iter()
        .filter_map(|layer| {
            let digest = layer.digest.as_ref().map(ToString::to_string);
            Some(LayerProvenance { digest, diff_id: layer.diff_id.as_ref()?.to_string(), size: layer.size })
        })
        .collect();
    let (codec, level) = match options.compression {
        Compression::Zstd(level) => ("zstd", Some(level)),
        Compression::Gzip(level) => ("gzip", i32::try_from(level).ok()),
        Compression::Xz(level) => ("xz", i32::try_from(level).ok()),
        Compression::Lz4 => ("lz4", None),
    };
    let manifest_digest = (!image.manifest.is_empty()).then(|| image.manifest_digest.to_string());
    Trailer {
        manifest: image.manifest.clone(),
        config: image.config.raw.clone(),
        provenance: Provenance {
            origin: image.origin.clone(),
            manifest_digest: manifest_digest.unwrap_or_default(),
            manifest_media_type: image.manifest_media_type.clone(),
            platform: image.config.platform().map(|platform| platform.to_string()).unwrap_or_default(),
            layers,
            conversion: Conversion { codec: codec.to_owned(), level, block_size: options.block_size },
            hpcrun_version: env!("CARGO_PKG_VERSION").to_owned(),
        },
        others: chunk_hashes(described.hashes)
            .into_iter()
            .chain([(SectionKind::Facts, described.facts)])
            .collect(),
    }
}

/// The section, unless readers would refuse it.
fn chunk_hashes(section: Vec<u8>) -> Option<(SectionKind, Vec<u8>)> {
    let kind = SectionKind::ChunkHashes;
    let fits = section.len() as u64 <= kind.max_bytes();
    if !fits {
        log::warn!("the image has too many blocks for chunk hashes: 'hpcrun verify' will not work");
    }
    fits.then_some((kind, section))
}

fn warn_of_losses(summary: &Summary) {
    let notes = summary.notes;
    if notes.dropped_acls > 0 {
        log::warn!("{} access control lists were left out: squashfs cannot hold them", notes.dropped_acls);
    }
    if notes.dropped_xattrs > 0 {
        log::info!(
            "{} extended attributes of the machine that made the image were left out",
            notes.dropped_xattrs
        );
    }
}

/// `app.sqsh: 1.2 GiB from ...`
pub(crate) fn closing_line(dest: &str, image: &SourceImage, summary: &Summary, begun: Instant) -> String {
    let layers = image.layers.len();
    let cached = match summary.cached_layers {
        0 => String::new(),
        cached => format!(" ({cached} cached)"),
    };
    format!(
        "{dest}: {} from {} in {layers} layer{}{cached}, {} inodes, in {}",
        size::bytes(summary.file_size),
        size::bytes(summary.squashfs.data_bytes_in),
        if layers == 1 { "" } else { "s" },
        summary.squashfs.inodes,
        size::seconds(begun.elapsed())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_held_against_the_codecs_range() {
        let levels = |codec, level| compression(codec, level).ok();
        assert_eq!(levels(Compressor::Zstd, None), Some(Compression::Zstd(3)));
        assert_eq!(levels(Compressor::Zstd, Some(22)), Some(Compression::Zstd(22)));
        assert_eq!(levels(Compressor::Zstd, Some(23)), None);
        assert_eq!(levels(Compressor::Zstd, Some(0)), None);
        assert_eq!(levels(Compressor::Gzip, Some(12)), Some(Compression::Gzip(12)));
        assert_eq!(levels(Compressor::Xz, Some(0)), Some(Compression::Xz(0)));
        assert_eq!(levels(Compressor::Xz, Some(10)), None);
        assert_eq!(levels(Compressor::Lz4, None), Some(Compression::Lz4));
        assert_eq!(levels(Compressor::Lz4, Some(1)), None);
    }
}
