//! `hpcrun trace`: runs a command, notes what its start reads of the image, and keeps that as the image's profile.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cli::args::Trace;
use crate::cli::image_file::ImageFile;
use crate::cli::launch_args::LaunchOptions;
use crate::cli::report::{Failure, chain};
use crate::cli::{image_word, launch, output, profile, site, size};
use crate::convert::keep;
use crate::image::profile::{Block, Profile, ProfileError};
use crate::image::trailer::SectionKind;
use crate::mount::server::Recorder;
use crate::sys;
use crate::sys::process::{self, Fork};
use crate::sys::signal::{self, Taken};

/// How long to wait for a signal where there is no reason to stop waiting.
const LONG: Duration = Duration::from_secs(3600);

/// Runs the command and stores the profile.
pub(crate) fn run(args: Trace, quiet: bool) -> Result<u8, Failure> {
    let (image, command) = launch::split(args.words);
    refuse_idle(&args.options)?;
    let image = image_word::locate(&image, &site::policy()?)?;
    let shelf = Shelf { image, output: args.output, fresh: args.fresh, quiet };
    shelf.check()?;
    let recorder = Recorder::new().map_err(|error| refused(&error))?;
    let store = || shelf.store(&words(&command), recorder.blocks());
    match Recording::start(&shelf.image, &args.options, command.clone(), recorder)? {
        Start::Running(recording) => recording.follow(Duration::from_secs(args.seconds.into()), store),
        Start::Failed(status) => Ok(status),
    }
}

/// Refuses the options that would do nothing: a recorded launch shares with nobody and reads nothing ahead.
fn refuse_idle(options: &LaunchOptions) -> Result<(), Failure> {
    let why = match options {
        LaunchOptions { explain: true, .. } => "--explain explains launches",
        LaunchOptions { profile: Some(_), .. } => {
            "--profile names what a launch reads ahead, which a trace does not"
        }
        LaunchOptions { no_prefetch: true, .. } => "--no-prefetch says nothing: a trace reads nothing ahead",
        LaunchOptions { share: Some(_), .. } => "--share says nothing: a trace shares with nobody",
        _ => return Ok(()),
    };
    Err(Failure::plain(why).hint("use it with 'hpcrun exec'"))
}

fn refused(error: &sys::Error) -> Failure {
    Failure::plain(format!("cannot trace: {}", chain(error)))
}

/// A command line for people.
fn words(command: &[OsString]) -> String {
    command.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// How the command started.
enum Start {
    Running(Box<Recording>),
    /// Not at all; the child has said why, and this is its exit status.
    Failed(u8),
}

/// The command while it runs.
struct Recording {
    recorder: Recorder,
    child: i32,
    taken: Taken,
}

impl Recording {
    /// Starts the command in a child, and returns when it runs.
    fn start(
        image: &Path,
        options: &LaunchOptions,
        command: Vec<OsString>,
        recorder: Recorder,
    ) -> Result<Start, Failure> {
        let taken = Taken::ends().map_err(|error| refused(&error))?;
        let (mut outcome, mut failed) = process::pipe().map_err(|error| refused(&error))?;
        match process::fork().map_err(|error| refused(&error))? {
            Fork::Child => {
                drop(outcome);
                taken.give_back();
                let Err(failure) = launch::traced(image, options, command, recorder);
                failure.print();
                // A parent that does not hear of it takes the command for one that ended at once.
                let _ = failed.write_all(&[failure.status]);
                process::exit_now(failure.status.into())
            }
            Fork::Parent(child) => {
                drop(failed);
                let mut status = [0];
                // exec closes the pipe.
                match outcome.read(&mut status) {
                    Ok(1) => {
                        process::wait(child).map_err(|error| refused(&error))?;
                        Ok(Start::Failed(status[0]))
                    }
                    _ => Ok(Start::Running(Box::new(Recording { recorder, child, taken }))),
                }
            }
        }
    }

    /// Waits for the command's end. Calls `store` once, as soon as there is nothing more to record; gives the command's
    /// exit status.
    fn follow(self, longest: Duration, store: impl Fn() -> Result<(), Failure>) -> Result<u8, Failure> {
        let deadline = Instant::now() + longest;
        let mut stored = None;
        let mut finish = || {
            self.recorder.stop();
            stored.get_or_insert_with(&store).is_ok()
        };
        let ended = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let patience = if left.is_zero() { LONG } else { left };
            match self.taken.wait_for(patience) {
                Some(caught) if caught.number == libc::SIGCHLD => {
                    if let Some(ended) = process::try_wait(self.child).map_err(|error| refused(&error))? {
                        break ended;
                    }
                }
                Some(caught) => {
                    self.recorder.stop();
                    // From a terminal, the command has it already.
                    if caught.is_sent {
                        signal::send(self.child, caught.number);
                    }
                }
                None if deadline <= Instant::now() => {
                    finish();
                }
                None => {}
            }
        };
        finish();
        self.taken.give_back();
        let status = ended.status();
        match stored {
            // The command's own failure says more than that of its profile.
            Some(Err(failure)) if status != 0 => failure.print(),
            Some(Err(failure)) => return Err(failure),
            Some(Ok(())) | None => {}
        }
        Ok(status)
    }
}

/// Where the profile goes.
struct Shelf {
    image: PathBuf,
    /// None: into the image file.
    output: Option<PathBuf>,
    fresh: bool,
    quiet: bool,
}

impl Shelf {
    /// Whether it could be stored: for the answer before the command is run.
    fn check(&self) -> Result<(), Failure> {
        let image = ImageFile::open(&self.image)?;
        match &self.output {
            Some(path) => self.kept(path, &image).map(drop),
            None => {
                let side = profile::side_path(&self.image);
                let hint =
                    format!("--output {} keeps it in a file of its own, which launches find", side.display());
                if image.contents().is_none() {
                    let what = "it has no hpcrun trailer";
                    let message = format!("cannot keep a profile in {}: {what}", self.image.display());
                    return Err(Failure::plain(message).hint(hint));
                }
                keep::check(&self.image).map_err(|error| Failure::new(&error).hint(hint))
            }
        }
    }

    /// Adds what was recorded to what is there.
    fn store(&self, command: &str, blocks: impl Iterator<Item = Block>) -> Result<(), Failure> {
        // Opened again: another trace may have added to it meanwhile.
        let image = ImageFile::open(&self.image)?;
        let there = match &self.output {
            _ if self.fresh => None,
            Some(path) => self.kept(path, &image)?,
            None => profile::own(&image),
        };
        let mut kept = there.unwrap_or_else(|| Profile::new(profile::key(&image)));
        let new = kept.add(command, blocks);
        if kept.blocks.is_empty() {
            return Err(Failure::plain("nothing was recorded: no image server read the image"));
        }
        let bytes = kept.encode();
        let stored = match (&self.output, image.contents()) {
            (Some(path), _) => keep::file(path, &bytes),
            (None, Some(contents)) => {
                let read_at = |offset: u64, bytes: &mut [u8]| image.read_at(offset, bytes);
                let trailer = contents.with_section(SectionKind::Profile, &bytes, &read_at);
                let trailer = trailer.map_err(|error| Failure::new(&error))?;
                keep::trailer(&self.image, image.filesystem.file(), contents.squashfs_length(), &trailer)
            }
            (None, None) => return Err(Failure::plain("the image file has lost its trailer")),
        };
        stored.map_err(|error| Failure::new(&error))?;
        if !self.quiet {
            let place = self.output.as_ref().unwrap_or(&self.image).display();
            let (blocks, bytes) = (kept.blocks.len(), size::bytes(kept.stored_bytes()));
            output::message(&format!("{place}: profile of {blocks} blocks, {bytes} ({new} blocks are new)"));
        }
        Ok(())
    }

    /// The profile of this image in a file; none if there is no file, or it is of another image. A file that is no
    /// profile is never replaced.
    fn kept(&self, path: &Path, image: &ImageFile) -> Result<Option<Profile>, Failure> {
        let cannot =
            |why: String| Failure::plain(format!("cannot keep a profile in {}: {why}", path.display()));
        let bytes = match profile::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(cannot(chain(&error))),
        };
        match profile::parse(&bytes, image) {
            Ok(profile) => Ok(Some(profile)),
            Err(ProfileError::OtherImage | ProfileError::Damaged) => Ok(None),
            Err(why) => Err(cannot(format!("{why}, so it is not replaced"))),
        }
    }
}
