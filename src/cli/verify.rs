//! `hpcrun verify`: is every byte of an image file what the converter wrote?

use std::fs::{File, Metadata, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use crate::cli::args::Verify;
use crate::cli::image_file::{ImageFile, ImageFileError};
use crate::cli::report::{Failure, chain};
use crate::cli::signatures::{self, Judged, Outcome};
use crate::cli::{image_word, output, site, size};
use crate::image::chunks::{Chunk, ChunkError, Header, Index};
use crate::image::signature::Signers;
use crate::image::trailer::{Contents, Place, ReadAt, SectionKind, TrailerError};
use crate::policy::Policy;
use crate::squashfs::reader::ReadError;

/// The file is damaged.
const STATUS_DAMAGED: u8 = 1;
/// Bytes read at a time; a chunk, and a page of chunks, may be less and more.
const READ_BYTES: u64 = 4 << 20;

/// Checks one image file.
pub(crate) fn run(args: &Verify, quiet: bool) -> Result<u8, Failure> {
    let begun = Instant::now();
    let shown = args.image.display();
    let policy = site::policy()?;
    let image = image_word::locate(&args.image, &policy)?;
    let wanted = Wanted::new(args, &policy)?;
    let (file, contents) = open(&image)?;
    let Some(place) = contents.place(SectionKind::ChunkHashes) else { return Err(no_hashes(&image)) };
    let header = whole(&args.image, &file, &contents, &place, args.jobs)?;
    if !quiet {
        let (chunks, bytes) = (header.count, size::bytes(header.covered));
        let time = size::seconds(begun.elapsed());
        output::message(&format!("{shown}: whole: {bytes} in {chunks} chunks, in {time}"));
    }
    let read_at = |offset: u64, bytes: &mut [u8]| file.read_exact_at(bytes, offset);
    wanted.check(args, &contents, &read_at, quiet)
}

/// Reads all of an opened image file and holds it against its digests; `place` is where its chunk hashes lie. `image`
/// names it in messages. Gives what the list of chunk hashes says of itself.
pub(crate) fn whole(
    image: &Path,
    file: &File,
    contents: &Contents,
    place: &Place,
    jobs: Option<u16>,
) -> Result<Header, Failure> {
    let shown = image.display();
    let damaged = |what: String| {
        let failure = Failure::plain(format!("{shown} is damaged: {what}")).with_status(STATUS_DAMAGED);
        failure.hint("copy or convert the image again")
    };
    let of_list = |error: ChunkError| match &error {
        ChunkError::Read(_) => Failure::plain(format!("cannot verify {shown}: {}", chain(&error))),
        _ => damaged(chain(&error)),
    };
    let read_at = |offset: u64, bytes: &mut [u8]| file.read_exact_at(bytes, offset);
    check_sections(contents, &read_at).map_err(damaged)?;
    let index = Index::load(place, contents.squashfs_length(), &read_at).map_err(of_list)?;
    match Search::new(file, &index).run(threads(jobs)) {
        Some(Found::Bad(chunk)) => {
            Err(damaged(format!("bytes {} to {} are not what was written", chunk.offset, chunk.end())))
        }
        Some(Found::Unreadable(error)) => Err(of_list(error)),
        None => Ok(*index.header()),
    }
}

/// What is asked of the image's signatures.
struct Wanted {
    /// Whose keys count, or why nobody says.
    signers: Result<Signers, String>,
    /// Whether there must be one that counts.
    is_required: bool,
}

impl Wanted {
    fn new(args: &Verify, policy: &Policy) -> Result<Wanted, Failure> {
        Ok(match &args.signers {
            Some(file) => Wanted { signers: Ok(signatures::named(file)?), is_required: true },
            None if policy.requires_signature().is_some() => {
                Wanted { signers: Ok(signatures::of_site(policy)?), is_required: true }
            }
            None => Wanted { signers: signatures::known(policy), is_required: false },
        })
    }

    /// Says what each signature is worth.
    fn check(
        &self,
        args: &Verify,
        contents: &Contents,
        read_at: &ReadAt<'_>,
        quiet: bool,
    ) -> Result<u8, Failure> {
        let shown = args.image.display();
        let failed = |why: &str| Failure::plain(format!("{shown} {why}")).with_status(STATUS_DAMAGED);
        let judged = match signatures::judged(contents, read_at, &self.signers) {
            Ok(judged) => judged,
            Err(why) if self.is_required => {
                return Err(failed(&format!("has signatures that cannot be checked: {why}"))
                    .hint(format!("hpcrun sign --fresh --key KEY {shown} replaces them all")));
            }
            Err(why) => {
                if !quiet {
                    output::message(&format!("{shown}: signatures cannot be checked: {why}"));
                }
                return Ok(0);
            }
        };
        let is_good = judged.iter().any(|judged| matches!(judged.outcome, Outcome::Good(_)));
        if !self.is_required || is_good {
            let lines = judged.iter().filter(|_| !quiet);
            lines.for_each(|judged| output::message(&format!("{shown}: signature of {judged}")));
            return Ok(0);
        }
        if judged.is_empty() {
            return Err(failed("is not signed").hint(format!("hpcrun sign --key KEY {shown}")));
        }
        let judged: Vec<String> = judged.iter().map(Judged::to_string).collect();
        Err(failed(&format!("has no signature that counts: {}", judged.join("; "))))
    }
}

/// Opens the file and reads its trailer. The squashfs is not looked into: the hashes tell better what is wrong with it.
fn open(path: &Path) -> Result<(File, Contents), Failure> {
    // A named pipe would make a blocking open wait for a writer.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok();
    let length = |file: &File| file.metadata().ok().filter(Metadata::is_file).map(|metadata| metadata.len());
    let opened = file.and_then(|file| {
        let length = length(&file)?;
        let read_at = |offset: u64, bytes: &mut [u8]| file.read_exact_at(bytes, offset);
        let contents = Contents::read(length, &read_at).ok()??;
        Some((file, contents))
    });
    match opened {
        Some(opened) => Ok(opened),
        // Whoever opens it to use it says best why not.
        None => Err(ImageFile::open(path).map_or_else(unusable, |_| no_hashes(path))),
    }
}

fn no_hashes(path: &Path) -> Failure {
    Failure::plain(format!("cannot verify {}: it holds no chunk hashes", path.display()))
        .hint("image files that 'hpcrun convert' and 'hpcrun pull' write hold them; others do not")
}

/// What keeps a file from being opened is damage too, where it is in the bytes.
fn unusable(error: ImageFileError) -> Failure {
    let is_damage = match &error {
        ImageFileError::Squashfs { source, .. } => {
            matches!(source, ReadError::Truncated { .. } | ReadError::Corrupt { .. })
        }
        ImageFileError::Trailer { source, .. } => {
            !matches!(source, TrailerError::Read(_) | TrailerError::Version { .. })
        }
        ImageFileError::Config { .. } => true,
        _ => false,
    };
    let failure = Failure::from(error);
    if is_damage { failure.with_status(STATUS_DAMAGED) } else { failure }
}

fn threads(jobs: Option<u16>) -> usize {
    let cpus = || thread::available_parallelism().map_or(1, usize::from);
    jobs.map_or_else(cpus, usize::from)
}

/// Checks everything behind the squashfs but the chunk hashes.
pub(crate) fn check_sections(contents: &Contents, read_at: &ReadAt<'_>) -> Result<(), String> {
    let others = contents.entries().iter();
    for entry in others.filter(|entry| entry.number != SectionKind::ChunkHashes.number()) {
        let section = entry.place.read(SectionKind::ChunkHashes.max_bytes(), read_at);
        section.map_err(|error| format!("section {} of the trailer: {}", entry.number, chain(&error)))?;
    }
    Ok(())
}

/// What is wrong.
enum Found {
    Bad(Chunk),
    Unreadable(ChunkError),
}

/// Threads that take page after page of the list, until one finds something wrong.
struct Search<'a> {
    file: &'a File,
    index: &'a Index,
    /// The page that nobody has taken yet.
    next: AtomicUsize,
    /// The first that is wrong, with its page.
    found: Mutex<Option<(usize, Found)>>,
}

impl<'a> Search<'a> {
    fn new(file: &'a File, index: &'a Index) -> Search<'a> {
        Search { file, index, next: AtomicUsize::new(0), found: Mutex::new(None) }
    }

    fn run(self, threads: usize) -> Option<Found> {
        thread::scope(|scope| {
            for _ in 1..threads.min(self.index.pages()) {
                // With fewer threads it takes longer.
                let _ = thread::Builder::new().spawn_scoped(scope, || self.check_pages());
            }
            self.check_pages();
        });
        let found = self.found.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.map(|(_, found)| found)
    }

    fn check_pages(&self) {
        let mut buffer = Vec::new();
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.index.pages() {
                return;
            }
            if let Some(found) = self.check_page(number, &mut buffer) {
                let mut first = self.found.lock().unwrap_or_else(PoisonError::into_inner);
                if first.as_ref().is_none_or(|(page, _)| number < *page) {
                    *first = Some((number, found));
                }
                // Earlier pages are with other threads; later ones do not matter.
                self.next.store(self.index.pages(), Ordering::Relaxed);
                return;
            }
        }
    }

    fn check_page(&self, number: usize, buffer: &mut Vec<u8>) -> Option<Found> {
        let read_at = |offset: u64, bytes: &mut [u8]| self.file.read_exact_at(bytes, offset);
        let chunks = match self.index.page(number, &read_at) {
            Ok(chunks) => chunks,
            Err(error) => return Some(Found::Unreadable(error)),
        };
        let mut rest = chunks.as_slice();
        while let Some(first) = rest.first() {
            let fits =
                rest.iter().take_while(|chunk| chunk.end() - first.offset <= READ_BYTES).count().max(1);
            let (now, later) = rest.split_at(fits);
            let end = now.last().map_or(first.end(), Chunk::end);
            buffer.resize(usize::try_from(end - first.offset).unwrap_or(0), 0);
            if let Err(error) = read_at(first.offset, buffer) {
                return Some(Found::Unreadable(ChunkError::Read(error)));
            }
            let mut bytes = buffer.as_slice();
            for chunk in now {
                let length = usize::try_from(chunk.length).unwrap_or(usize::MAX);
                let (own, after) = bytes.split_at_checked(length).unwrap_or((bytes, &[]));
                if !chunk.is(own) {
                    return Some(Found::Bad(*chunk));
                }
                bytes = after;
            }
            rest = later;
        }
        None
    }
}
