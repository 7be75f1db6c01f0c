//! The image store as names and texts: which file an image is kept in, what a tag's file says, what a typed word means.
//!
//! ```text
//! STORE/images/sha256-HEX-PARAMETERS.sqsh     an image file, complete and never changed
//! STORE/tags/HOST+REPOSITORY:TAG              which image a name means, and which it meant before
//! STORE/trash/IMAGE.TIME                      an image that nothing names any more, since TIME
//! STORE/steps/HASH                            which image a word means to all ranks of a job step
//! ```
//!
//! [`crate::store`] does what is said here to files; `docs/store.md` is the specification.

pub mod key;
pub mod name;
pub mod step;
pub mod tag;
pub mod word;

pub use key::Key;
pub use name::Name;
pub use step::StepRecord;
pub use tag::{Entry, TagRecord};
pub use word::{Word, classify};

/// The subdirectory of image files.
pub const IMAGES: &str = "images";
/// The subdirectory of tags.
pub const TAGS: &str = "tags";
/// The subdirectory of images that nothing names any more.
pub const TRASH: &str = "trash";
/// The subdirectory of what words mean to job steps.
pub const STEPS: &str = "steps";

/// The lines of a record, `WORD VALUE` each, after its first line, which must be `heading`.
fn fields<'t>(text: &'t str, heading: &str) -> Option<impl Iterator<Item = Option<(&'t str, &'t str)>>> {
    let rest = text.strip_prefix(heading)?.strip_prefix('\n')?;
    // A record that was cut off ends within a line.
    rest.ends_with('\n').then(|| rest.lines().map(|line| line.split_once(' ')))
}
