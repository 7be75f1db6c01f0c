//! An image file as the verbs see it: opened once, its squashfs and its trailer checked.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::cli::report::{Failure, chain};
use crate::hint::Hint;
use crate::image::chunks::Header;
use crate::image::config::{ConfigError, ImageConfig};
use crate::image::facts::Facts;
use crate::image::foreign::{self, Foreign};
use crate::image::sif::{self, Sif, SifError};
use crate::image::trailer::{Contents, Provenance, SectionKind, TrailerError};
use crate::launch::plan::FileId;
use crate::mount::node_cache::{Checks, Key, Original};
use crate::mount::voucher::{Hashes, Voucher, When};
use crate::policy::rules::Verify;
use crate::squashfs::reader::{FileLayout, Filesystem, Inode, ReadError, ReaderOptions, Vouch};
use crate::sys::file::Stamp;

/// An opened image file.
#[derive(Debug)]
pub(crate) struct ImageFile {
    /// As given.
    pub(crate) path: PathBuf,
    /// The squashfs.
    pub(crate) filesystem: Filesystem,
    /// The image config; for a file without a trailer what can be found in it, empty if nothing.
    pub(crate) config: ImageConfig,
    /// Length of the file, bytes.
    pub(crate) length: u64,
    /// Which file it is, and whose.
    pub(crate) identity: Identity,
    /// Set when the squashfs lies in a SIF.
    pub(crate) sif: Option<SifSignature>,
    /// Whose files gave the config, where there is no trailer: `Apptainer`.
    pub(crate) maker: Option<&'static str>,
    /// What of a foreign image is not taken over.
    pub(crate) warnings: Vec<String>,
    trailer: Option<Contents>,
    provenance: OnceLock<Option<Provenance>>,
}

/// What the kernel said of the file when it was opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    /// Modification time, nanoseconds since 1970.
    pub(crate) modified_ns: i128,
    /// Numeric owner.
    pub(crate) owner: u32,
}

impl Identity {
    /// What makes two openings the same file.
    pub(crate) fn file_id(&self) -> FileId {
        FileId { device: self.device, inode: self.inode, modified_ns: self.modified_ns }
    }
}

/// Whether a SIF bears a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SifSignature {
    /// None.
    No,
    /// One at least, which nobody has checked.
    NotChecked,
}

/// Why nothing is known of an image's content although its trailer has a section for that.
#[derive(Debug, thiserror::Error)]
#[error("what the image file tells of its content is left unused: {0}")]
pub(crate) struct UnusableFacts(String);

/// Why a file is no image file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageFileError {
    /// It cannot be opened.
    #[error("cannot open image {}", path.display())]
    Open {
        /// As given.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It is a directory, a device or a pipe.
    #[error("cannot use {} as an image: it is {what}, not a regular file", path.display())]
    NotRegular {
        /// As given.
        path: PathBuf,
        /// `a directory`.
        what: &'static str,
    },
    /// Its squashfs is no good.
    #[error("cannot use image {}", path.display())]
    Squashfs {
        /// As given.
        path: PathBuf,
        /// The cause.
        source: ReadError,
    },
    /// It is a SIF that cannot be used.
    #[error("cannot use image {}", path.display())]
    Sif {
        /// As given.
        path: PathBuf,
        /// The cause.
        source: SifError,
    },
    /// Its trailer is no good.
    #[error("cannot use image {}", path.display())]
    Trailer {
        /// As given.
        path: PathBuf,
        /// The cause.
        source: TrailerError,
    },
    /// The image config in its trailer is no good.
    #[error("cannot use the image config in {}", path.display())]
    Config {
        /// As given.
        path: PathBuf,
        /// The cause.
        source: ConfigError,
    },
}

impl Hint for ImageFileError {
    fn hints(&self) -> Vec<String> {
        match self {
            ImageFileError::Open { path, source } if source.kind() == io::ErrorKind::NotFound => {
                let text = path.to_string_lossy();
                if text.contains("://") || text.contains(':') {
                    vec![format!("make an image file first: hpcrun convert {text} FILE.sqsh")]
                } else {
                    vec![format!("is the file system of {text} mounted on this node?")]
                }
            }
            ImageFileError::Squashfs { source, .. } if !matches!(source, ReadError::Superblock { .. }) => {
                source.hints()
            }
            ImageFileError::Sif { source, .. } => source.hints(),
            ImageFileError::NotRegular { .. } | ImageFileError::Squashfs { .. } => {
                vec![
                    "an image file is what 'hpcrun convert' or 'hpcrun pull' wrote, or any squashfs 4.0 or SIF"
                        .to_owned(),
                ]
            }
            _ => Vec::new(),
        }
    }
}

impl ImageFile {
    /// Opens `path` and checks superblock, length and trailer. Costs a few reads, whatever the image's size.
    pub(crate) fn open(path: &Path) -> Result<ImageFile, ImageFileError> {
        ImageFile::open_verified(path, Verify::Never)
    }

    /// The same; what is read of the squashfs is held against its chunk hashes when `verify` says, if it has any.
    pub(crate) fn open_verified(path: &Path, verify: Verify) -> Result<ImageFile, ImageFileError> {
        let path = path.to_owned();
        let open = |source| ImageFileError::Open { path: path.clone(), source };
        // A named pipe would make a blocking open wait for a writer.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).map_err(open)?;
        let metadata = file.metadata().map_err(open)?;
        if !metadata.is_file() {
            let what = if metadata.is_dir() { "a directory" } else { "a device, pipe or socket" };
            return Err(ImageFileError::NotRegular { path, what });
        }
        let length = metadata.len();
        let read_at = |offset: u64, bytes: &mut [u8]| file.read_exact_at(bytes, offset);
        let modified = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        let identity = Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
            modified_ns: modified,
            owner: metadata.uid(),
        };
        let mut start = [0; sif::HEADER_BYTES];
        if read_at(0, &mut start).is_ok() && sif::is_sif(&start) {
            return ImageFile::open_sif(path, file, length, identity);
        }
        let unreadable = |source| ImageFileError::Squashfs { path: path.clone(), source };
        let of_trailer = |source| ImageFileError::Trailer { path: path.clone(), source };
        let trailer = Contents::read(length, &read_at).map_err(of_trailer)?;
        let Some(contents) = &trailer else {
            let offset = sif::squashfs_offset(&start);
            let filesystem = Filesystem::open(file, offset, ReaderOptions::default()).map_err(unreadable)?;
            let found =
                foreign::config_of_tree("", &|path| read_small(&filesystem, path)).map_err(unreadable)?;
            let image = ImageFile::bare(path, filesystem, length, identity);
            return Ok(image.with_foreign(found));
        };
        let raw = contents.required(SectionKind::Config, &read_at).map_err(of_trailer)?;
        let config = ImageConfig::parse(&raw)
            .map_err(|source| ImageFileError::Config { path: path.clone(), source })?;
        let voucher = voucher(contents, verify, Stamp::of(&metadata));
        // Chunk hashes are of the file from its first byte on, and so is the squashfs, whatever that line says.
        let filesystem =
            Filesystem::open_vouched(file, 0, ReaderOptions::default(), voucher).map_err(unreadable)?;
        Ok(ImageFile { config, trailer, ..ImageFile::bare(path, filesystem, length, identity) })
    }

    /// The root file system of a SIF.
    fn open_sif(
        path: PathBuf,
        file: File,
        length: u64,
        identity: Identity,
    ) -> Result<ImageFile, ImageFileError> {
        let of_sif = |source| ImageFileError::Sif { path: path.clone(), source };
        let sif = Sif::read(length, &|offset, bytes| file.read_exact_at(bytes, offset)).map_err(of_sif)?;
        let unreadable = |source| ImageFileError::Squashfs { path: path.clone(), source };
        let filesystem = Filesystem::open(file, sif.offset, ReaderOptions::default()).map_err(unreadable)?;
        let objects = sif.objects(&|offset, bytes| filesystem.file().read_exact_at(bytes, offset));
        let found =
            foreign::config_of_sif(&objects, &sif.architecture, &|path| read_small(&filesystem, path))
                .map_err(unreadable)?;
        let mut image = ImageFile::bare(path, filesystem, length, identity).with_foreign(Some(found));
        image.sif = Some(if sif.is_signed() { SifSignature::NotChecked } else { SifSignature::No });
        image.warnings.extend(sif.warning());
        Ok(image)
    }

    fn bare(path: PathBuf, filesystem: Filesystem, length: u64, identity: Identity) -> ImageFile {
        ImageFile {
            path,
            filesystem,
            config: ImageConfig::default(),
            length,
            identity,
            sif: None,
            maker: None,
            warnings: Vec::new(),
            trailer: None,
            provenance: OnceLock::new(),
        }
    }

    fn with_foreign(self, found: Option<Foreign>) -> ImageFile {
        let Some(found) = found else { return self };
        let (warnings, maker) = (found.warnings(), Some(found.maker));
        ImageFile { config: found.config, maker, warnings, ..self }
    }

    /// The inode at an absolute path of the image, links followed inside it.
    pub(crate) fn resolve(&self, path: &[u8]) -> Result<Option<Inode>, ImageFileError> {
        self.filesystem.resolve(path).map_err(|source| self.unreadable(source))
    }

    /// The first `length` bytes of a file of the image.
    pub(crate) fn read(&self, layout: &FileLayout, length: usize) -> Result<Vec<u8>, ImageFileError> {
        self.filesystem.read_bytes(layout, 0, length).map_err(|source| self.unreadable(source))
    }

    /// The bytes of a regular file of the image; none if there is no such file or it is longer than `longest` bytes.
    pub(crate) fn small_file(&self, path: &[u8], longest: u64) -> Result<Option<Vec<u8>>, ImageFileError> {
        self.filesystem.small_file(path, longest).map_err(|source| self.unreadable(source))
    }

    fn unreadable(&self, source: ReadError) -> ImageFileError {
        ImageFileError::Squashfs { path: self.path.clone(), source }
    }

    /// Where the image came from, read once; none without a trailer.
    pub(crate) fn provenance(&self) -> Result<Option<&Provenance>, ImageFileError> {
        if self.provenance.get().is_none() {
            let found = self.section(|contents, read_at| contents.provenance(read_at))?;
            // Nobody else can have set it to something else.
            let _ = self.provenance.set(found);
        }
        Ok(self.provenance.get().and_then(Option::as_ref))
    }

    /// The manifest, verbatim; none without a trailer.
    pub(crate) fn manifest(&self) -> Result<Option<Vec<u8>>, ImageFileError> {
        self.section(|contents, read_at| contents.required(SectionKind::Manifest, read_at))
    }

    /// The file as [`crate::mount::node_cache`] knows it, to be read as `verify` says.
    pub(crate) fn original(&self, verify: Verify) -> io::Result<Original> {
        let metadata = self.filesystem.file().metadata()?;
        let hashes = self.trailer.as_ref().and_then(hashes);
        let key = match &hashes {
            Some(hashes) => Key::of_content(hashes, self.length),
            None => Key::of_file(&std::fs::canonicalize(&self.path)?, &metadata),
        };
        let checks = match verify {
            Verify::Never => Checks::Never,
            Verify::Changed => Checks::Changed,
            Verify::Always => Checks::Always,
        };
        let is_public = metadata.mode() & 0o004 != 0;
        Ok(Original { key, length: self.length, hashes, stamp: Stamp::of(&metadata), is_public, checks })
    }

    /// The root of the tree of chunk hashes, as the trailer has it; none without them.
    pub(crate) fn root_hash(&self) -> Result<Option<[u8; 32]>, Failure> {
        let Some(hashes) = self.trailer.as_ref().and_then(hashes) else { return Ok(None) };
        let header = Header::read(&hashes.place, &|offset, bytes| self.read_at(offset, bytes));
        header.map(|header| Some(header.root)).map_err(|error| {
            Failure::plain(format!("cannot use image {}: {}", self.path.display(), chain(&error)))
        })
    }

    /// What was found out about its content when it was converted; none if nothing was. Facts that cannot be used are
    /// none: an error is a thing to warn of, for an image runs without.
    pub(crate) fn facts(&self) -> Result<Option<Facts>, UnusableFacts> {
        let section = self.section(|contents, read_at| contents.section(SectionKind::Facts, read_at));
        match section.map_err(|error| UnusableFacts(chain(&error)))?.flatten() {
            Some(section) => Facts::parse(&section).map_err(|error| UnusableFacts(chain(&error))),
            None => Ok(None),
        }
    }

    /// What is behind the squashfs; none without a trailer.
    pub(crate) fn contents(&self) -> Option<&Contents> {
        self.trailer.as_ref()
    }

    /// Reads from the file itself.
    pub(crate) fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.filesystem.file().read_exact_at(bytes, offset)
    }

    fn section<T>(
        &self,
        read: impl Fn(&Contents, &dyn Fn(u64, &mut [u8]) -> io::Result<()>) -> Result<T, TrailerError>,
    ) -> Result<Option<T>, ImageFileError> {
        let file = self.filesystem.file();
        let read_at = |offset: u64, bytes: &mut [u8]| file.read_exact_at(bytes, offset);
        self.trailer
            .as_ref()
            .map(|contents| read(contents, &read_at))
            .transpose()
            .map_err(|source| ImageFileError::Trailer { path: self.path.clone(), source })
    }
}

/// The root of the tree of chunk hashes of the image file at `path`; none if that cannot be told.
pub(crate) fn root_hash_of(path: &Path) -> Option<[u8; 32]> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
    let length = file.metadata().ok().filter(std::fs::Metadata::is_file)?.len();
    let read_at = |offset: u64, bytes: &mut [u8]| file.read_exact_at(bytes, offset);
    let hashes = hashes(&Contents::read(length, &read_at).ok()??)?;
    Header::read(&hashes.place, &read_at).ok().map(|header| header.root)
}

fn read_small(filesystem: &Filesystem, path: &str) -> Result<Option<Vec<u8>>, ReadError> {
    filesystem.small_file(path.as_bytes(), foreign::FILE_MAX)
}

/// Who looks at what is read of a file with this trailer and, when it was opened, this stamp.
fn voucher(trailer: &Contents, verify: Verify, stamp: Stamp) -> Option<Arc<dyn Vouch>> {
    let when = match verify {
        Verify::Never => return None,
        Verify::Changed => When::ChangedSince(stamp),
        Verify::Always => When::Always,
    };
    Some(Arc::new(Voucher::new(hashes(trailer)?, when)))
}

fn hashes(trailer: &Contents) -> Option<Hashes> {
    let place = trailer.place(SectionKind::ChunkHashes)?;
    Some(Hashes { place, squashfs_length: trailer.squashfs_length() })
}

impl From<ImageFileError> for Failure {
    fn from(error: ImageFileError) -> Failure {
        Failure::new(&error)
    }
}
