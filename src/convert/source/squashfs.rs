//! Image files as a source: a SIF, any squashfs, or what hpcrun wrote before, to be written anew.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use super::whole::{bare_config, check_layer, image_of};
use super::{Source, SourceError, SourceImage, SourceOptions};
use crate::convert::export::{Purpose, WalkError, write_tar};
use crate::convert::generate::generate;
use crate::image::config::ImageConfig;
use crate::image::foreign::{self, Foreign};
use crate::image::sif::{self, Sif};
use crate::image::trailer::{Contents, SectionKind, TrailerError};
use crate::squashfs::reader::{Filesystem, ReadError, ReaderOptions};

/// A tree in a squashfs.
#[derive(Debug)]
pub(super) struct SquashfsFile {
    filesystem: Arc<Filesystem>,
    image: SourceImage,
}

impl SquashfsFile {
    /// Opens any squashfs. The config of one that hpcrun wrote is kept.
    pub(super) fn open(
        path: &Path,
        origin: String,
        options: &SourceOptions,
    ) -> Result<SquashfsFile, SourceError> {
        let (file, length) = open_regular(path, &origin, "a squashfs")?;
        let read_at = |offset: u64, bytes: &mut [u8]| file.read_exact_at(bytes, offset);
        let mut start = [0; sif::HEADER_BYTES];
        if read_at(0, &mut start).is_ok() && sif::is_sif(&start) {
            let why = "it is a SIF: write sif:".to_owned();
            return Err(SourceError::NotThis { origin, expected: "a squashfs", why });
        }
        let config = config_in_trailer(length, &read_at)
            .map_err(|source| SourceError::Trailer { origin: origin.clone(), source })?;
        let filesystem = open_at(file, sif::squashfs_offset(&start), &origin)?;
        let config = match config {
            Some(raw) => ImageConfig::parse(&raw)
                .map_err(|source| SourceError::Config { origin: origin.clone(), source })?,
            None => {
                let found = foreign::config_of_tree(options.platform.architecture(), &reader(&filesystem))
                    .map_err(|source| SourceError::Squashfs { origin: origin.clone(), source })?;
                found.map_or_else(|| bare_config(&options.platform), |found| taken_over(found, &origin))
            }
        };
        Ok(SquashfsFile::of(filesystem, config, origin))
    }

    /// Opens the root file system of a SIF.
    pub(super) fn open_sif(path: &Path, origin: String) -> Result<SquashfsFile, SourceError> {
        let (file, length) = open_regular(path, &origin, "a SIF")?;
        let read_at = |offset: u64, bytes: &mut [u8]| file.read_exact_at(bytes, offset);
        let sif = Sif::read(length, &read_at)
            .map_err(|source| SourceError::Sif { origin: origin.clone(), source })?;
        let objects = sif.objects(&read_at);
        let filesystem = open_at(file, sif.offset, &origin)?;
        let found = foreign::config_of_sif(&objects, &sif.architecture, &reader(&filesystem))
            .map_err(|source| SourceError::Squashfs { origin: origin.clone(), source })?;
        if let Some(warning) = sif.warning() {
            log::warn!("{origin}: {warning}");
        }
        let config = taken_over(found, &origin);
        Ok(SquashfsFile::of(filesystem, config, origin))
    }

    fn of(filesystem: Filesystem, config: ImageConfig, origin: String) -> SquashfsFile {
        SquashfsFile { filesystem: Arc::new(filesystem), image: image_of(origin, config, None) }
    }
}

fn open_at(file: File, offset: u64, origin: &str) -> Result<Filesystem, SourceError> {
    Filesystem::open(file, offset, ReaderOptions::default())
        .map_err(|source| SourceError::Squashfs { origin: origin.to_owned(), source })
}

fn reader(filesystem: &Filesystem) -> impl Fn(&str) -> Result<Option<Vec<u8>>, ReadError> + '_ {
    |path| filesystem.small_file(path.as_bytes(), foreign::FILE_MAX)
}

/// The config that another tool left, with a word on what of it is lost.
fn taken_over(found: Foreign, origin: &str) -> ImageConfig {
    found.warnings().iter().for_each(|warning| log::warn!("{origin}: {warning}"));
    found.config
}

/// Opens a regular file; gives its length, bytes.
fn open_regular(path: &Path, origin: &str, expected: &'static str) -> Result<(File, u64), SourceError> {
    let failed = |source| SourceError::Read { path: path.display().to_string(), source };
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        let why = "it is not a regular file".to_owned();
        return Err(SourceError::NotThis { origin: origin.to_owned(), expected, why });
    }
    Ok((file, metadata.len()))
}

/// The config that hpcrun put behind the squashfs; none where there is no trailer.
fn config_in_trailer(
    length: u64,
    read_at: &dyn Fn(u64, &mut [u8]) -> io::Result<()>,
) -> Result<Option<Vec<u8>>, TrailerError> {
    let contents = Contents::read(length, &read_at)?;
    contents.map(|contents| contents.required(SectionKind::Config, &read_at)).transpose()
}

impl Source for SquashfsFile {
    fn image(&self) -> &SourceImage {
        &self.image
    }

    fn open_layer(&self, index: usize) -> Result<Box<dyn Read + Send>, SourceError> {
        check_layer(&self.image, index)?;
        let origin = self.image.origin.clone();
        let filesystem = Arc::clone(&self.filesystem);
        let shown = origin.clone();
        let stream = generate("read-squashfs", move |out| {
            let losses = write_tar(&filesystem, out, Purpose::Convert).map_err(WalkError::into_io)?;
            if losses.sockets > 0 {
                log::warn!("sockets of {shown} left out: {}", losses.sockets);
            }
            if losses.xattrs > 0 {
                log::warn!("empty extended attributes of {shown} left out: {}", losses.xattrs);
            }
            Ok(())
        });
        Ok(Box::new(stream.map_err(|source| SourceError::Read { path: origin, source })?))
    }
}
