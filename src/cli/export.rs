//! `hpcrun export`: an image file back into a tar, an OCI archive or an OCI layout.

use std::io::{IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;

use crate::cli::args::{Export, ExportCompression, ExportFormat};
use crate::cli::image_file::ImageFile;
use crate::cli::report::Failure;
use crate::cli::{image_word, site};
use crate::convert::export::{self, ExportError, ExportOptions, Losses, Packing};
use crate::convert::{ConvertOptions, Destination};
use crate::image::reference::{Reference, STANDARD_INPUT as STANDARD_OUTPUT};
use crate::sys::signal;

/// What a program that SIGPIPE killed would leave: 128 + 13.
const STATUS_BROKEN_PIPE: u8 = 141;

/// Runs `hpcrun export IMAGE`.
pub(crate) fn run(args: &Export) -> Result<u8, Failure> {
    // Without it the limit would kill us without a word; so a failure to ignore it is worth none.
    let _ = signal::ignore_file_size_signal();
    let options = options(args)?;
    let to_stdout = args.output.as_deref().is_none_or(|path| path == Path::new(STANDARD_OUTPUT));
    if to_stdout {
        check_stdout(args)?;
    }
    let destination = args.output.as_ref().map(|path| Destination { path: path.clone(), force: args.force });
    let to_file = !to_stdout && args.format != ExportFormat::OciDir;
    if let (Some(destination), true) = (&destination, to_file) {
        destination.check().map_err(|error| Failure::new(&error))?;
    }
    let image = ImageFile::open(&image_word::locate(&args.image, &site::policy()?)?)?;
    let name = name(args, &image)?;
    let ImageFile { filesystem, config, .. } = image;
    let filesystem = Arc::new(filesystem);
    let result = match (args.format, destination) {
        (ExportFormat::Tar, Some(destination)) if !to_stdout => export::into_file(&destination, |file| {
            let mut output = file;
            export::export_tar(&filesystem, &options, &mut output)
        }),
        (ExportFormat::Oci, Some(destination)) => export::into_file(&destination, |file| {
            export::export_oci(&filesystem, &config, &name, &options, file)
        }),
        (ExportFormat::OciDir, Some(destination)) => {
            export::export_oci_layout(&filesystem, &config, &name, &options, &destination.path)
        }
        _ => to_standard_output(&filesystem, &options),
    };
    match result {
        Ok(losses) => {
            warn_of_losses(losses);
            Ok(0)
        }
        // Whoever read has enough; nobody wants a message.
        Err(error) if error.is_broken_pipe() => Ok(STATUS_BROKEN_PIPE),
        Err(error) => Err(Failure::new(&error)),
    }
}

fn to_standard_output(
    filesystem: &Arc<crate::squashfs::reader::Filesystem>,
    options: &ExportOptions,
) -> Result<Losses, ExportError> {
    // The descriptor itself: the buffer of std ends lines, of which a tar has none.
    let own = std::io::stdout().as_fd().try_clone_to_owned();
    let mut output = std::fs::File::from(own.map_err(|source| ExportError::Write { source })?);
    let losses = export::export_tar(filesystem, options, &mut output)?;
    output.flush().map_err(|source| ExportError::Write { source })?;
    Ok(losses)
}

fn check_stdout(args: &Export) -> Result<(), Failure> {
    let needs = match args.format {
        ExportFormat::Tar => None,
        ExportFormat::Oci => {
            Some(("an OCI archive cannot be written to a pipe: its first part is known last", "file"))
        }
        ExportFormat::OciDir => Some(("an OCI layout is a directory", "directory")),
    };
    if let Some((why, what)) = needs {
        return Err(Failure::plain(why).hint(format!("name a {what} with --output {}", what.to_uppercase())));
    }
    if std::io::stdout().is_terminal() {
        let failure = Failure::plain("a tar is not for a terminal");
        return Err(failure.hint("name a file with --output FILE, or pipe it into a program"));
    }
    Ok(())
}

fn options(args: &Export) -> Result<ExportOptions, Failure> {
    let within = |default: i32, high: i32| match args.level {
        None => Ok(default),
        Some(level) => i32::try_from(level)
            .ok()
            .filter(|level| (1..=high).contains(level))
            .ok_or_else(|| Failure::plain(format!("--level {level} is out of range: 1 to {high}"))),
    };
    let default = match args.format {
        ExportFormat::Tar => ExportCompression::None,
        ExportFormat::Oci | ExportFormat::OciDir => ExportCompression::Gzip,
    };
    let packing = match args.compression.unwrap_or(default) {
        ExportCompression::None if args.level.is_some() => {
            return Err(Failure::plain("--level: nothing is compressed"));
        }
        ExportCompression::None => Packing::Plain,
        ExportCompression::Gzip => Packing::Gzip(u32::try_from(within(6, 12)?).unwrap_or(6)),
        ExportCompression::Zstd => Packing::Zstd(within(3, 22)?),
    };
    let threads = args.jobs.map_or(ConvertOptions::default().jobs, usize::from);
    Ok(ExportOptions { packing, threads })
}

/// The name inside an OCI archive or layout: as asked for, else what the image was pulled as, else `latest`.
fn name(args: &Export, image: &ImageFile) -> Result<String, Failure> {
    let is_name = |name: &str| {
        let may = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@+".contains(&byte);
        name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric()) && name.bytes().all(may)
    };
    match &args.name {
        Some(name) if is_name(name) => Ok(name.clone()),
        Some(name) => Err(Failure::plain(format!("{name:?} is no name of an image"))),
        None => {
            let provenance = image.provenance()?;
            let pulled = provenance.and_then(|found| found.origin.strip_prefix("docker://"));
            // A digest would be that of another manifest.
            let tagged = pulled.and_then(|text| Reference::parse(text.split('@').next()?).ok());
            Ok(tagged.map_or_else(|| "latest".to_owned(), |reference| reference.to_string()))
        }
    }
}

fn warn_of_losses(losses: Losses) {
    if losses.sockets > 0 {
        log::warn!("sockets left out, which tar does not know: {}", losses.sockets);
    }
    if losses.xattrs > 0 {
        log::warn!("extended attributes left out, which tar cannot hold: {}", losses.xattrs);
    }
}
