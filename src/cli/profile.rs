//! Start-up profiles: which one a launch uses, and where one is kept.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::cli::image_file::ImageFile;
use crate::cli::report::{Failure, chain};
use crate::image::profile::{Key, MAX_BYTES, Profile, ProfileError};
use crate::image::trailer::SectionKind;
use crate::mount::server::Startup;

/// What the user wants of profiles.
#[derive(Debug, Default)]
pub(crate) enum Choice {
    /// None.
    Nothing,
    /// The image file's own, else the one beside it.
    #[default]
    Found,
    /// This one.
    File(PathBuf),
}

/// What the image server reads ahead.
pub(crate) fn startup(image: &ImageFile, choice: &Choice) -> Result<Startup, Failure> {
    let found = match choice {
        Choice::Nothing => return Ok(Startup::Nothing),
        Choice::File(path) => {
            let failed = |error: io::Error| {
                Failure::plain(format!("cannot read {}: {}", path.display(), chain(&error)))
            };
            let bytes = read(path).map_err(failed)?;
            let parsed = parse(&bytes, image);
            if let Err(why) = &parsed {
                log::warn!("{} is not used: {why}", path.display());
            }
            parsed.ok()
        }
        Choice::Found => match image.contents().and_then(|contents| contents.place(SectionKind::Profile)) {
            // The server reads it when it has the time.
            Some(place) => return Ok(Startup::Section(place)),
            None => beside(image),
        },
    };
    Ok(found.map_or(Startup::Nothing, |profile| Startup::Blocks(profile.blocks.into())))
}

/// Where launches look for the profile of an image file that holds none: `IMAGE.profile`.
pub(crate) fn side_path(image: &Path) -> PathBuf {
    let mut path = image.as_os_str().to_owned();
    path.push(".profile");
    path.into()
}

/// The profile beside the image file. One that cannot be used is worth no more than a word.
fn beside(image: &ImageFile) -> Option<Profile> {
    let path = side_path(&image.path);
    let bytes = match read(&path) {
        Ok(bytes) => bytes,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                log::info!("{} is not used: {}", path.display(), chain(&error));
            }
            return None;
        }
    };
    parse(&bytes, image).inspect_err(|why| log::info!("{} is not used: {why}", path.display())).ok()
}

/// Which image a profile must be of.
pub(crate) fn key(image: &ImageFile) -> Key {
    Key::of(&image.filesystem.superblock().to_bytes())
}

/// A profile of this image.
pub(crate) fn parse(bytes: &[u8], image: &ImageFile) -> Result<Profile, ProfileError> {
    Profile::parse(bytes, key(image), image.filesystem.superblock().bytes_used)
}

/// The image file's own profile; none if it holds none that can be used.
pub(crate) fn own(image: &ImageFile) -> Option<Profile> {
    let place = image.contents()?.place(SectionKind::Profile)?;
    let bytes = place.read(MAX_BYTES, &|offset, bytes: &mut [u8]| image.read_at(offset, bytes)).ok()?;
    parse(&bytes, image).ok()
}

/// The bytes of a regular file that is no larger than a profile can be.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    // A named pipe would make a blocking open wait for a writer.
    let file: File = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let mut bytes = Vec::new();
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > MAX_BYTES {
        true => Err(io::Error::other("it is larger than any profile")),
        false => Ok(bytes),
    }
}
