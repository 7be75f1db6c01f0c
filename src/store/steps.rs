//! What a word means to all ranks of a job step, on all nodes: the first to say so is right, decided by `link(2)`.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::{Store, StoreError};
use crate::image::store::step::MAX_BYTES;
use crate::image::store::{STEPS, StepRecord};
use crate::sys::file;
use crate::sys::temporary::Temporary;

/// Permissions of a record, before the umask.
const MODE: u32 = 0o600;
/// A node may believe for a while that a file is missing which another has just made.
const LOOKS: u32 = 40;
const PAUSE: Duration = Duration::from_millis(250);

/// Which step, as records are named by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What tells it from all others.
    pub key: String,
    /// How long its name is its own; none means for ever.
    pub valid: Option<Duration>,
}

impl Store {
    /// What `word` means to `step`, if a rank has said so.
    pub fn agreed(&self, step: &Step, word: &OsStr) -> Result<Option<StepRecord>, StoreError> {
        let Some(directory) = self.directory(STEPS)? else { return Ok(None) };
        let name = StepRecord::file_name(&step.key, word);
        let path = self.path.join(STEPS).join(&name);
        if let (Some(valid), Some(file)) = (step.valid, file::open_regular(directory.as_fd(), &name)) {
            let written = file.metadata().and_then(|metadata| metadata.modified()).ok();
            if written.and_then(|at| at.elapsed().ok()).is_some_and(|age| age > valid) {
                // Another step of this name, long ago.
                file::unlink(directory.as_fd(), &name)
                    .map_err(|source| StoreError::Write { path: path.clone(), source })?;
                return Ok(None);
            }
        }
        let Some(text) = self.read_record(directory.as_fd(), &name, &path, MAX_BYTES)? else {
            return Ok(None);
        };
        StepRecord::parse(&text).map(Some).ok_or(StoreError::Malformed { path })
    }

    /// Says what `word` means to `step`, unless another rank was faster. Gives what all of them go by.
    pub fn agree(&self, step: &Step, word: &OsStr, record: &StepRecord) -> Result<StepRecord, StoreError> {
        let directory = self.made_directory(STEPS)?;
        let name = StepRecord::file_name(&step.key, word);
        let path = self.path.join(STEPS).join(&name);
        let failed = |source| StoreError::Write { path: path.clone(), source };
        let (temporary, file) = Temporary::or_unnamed(directory.as_fd(), MODE).map_err(failed)?;
        file.write_all_at(record.encode().as_bytes(), 0)
            .map_err(|error| failed(crate::sys::Error::from_io("write", &error)))?;
        // Another node must not see the name before the content.
        file::sync(&file).map_err(failed)?;
        match temporary {
            Some(temporary) => temporary.publish(&name),
            None => file::link_unnamed(&file, directory.as_fd(), &name),
        }
        .map_err(failed)?;
        // Also the own one: where an answer is lost and a call repeated, one's own file is in the way.
        for _ in 0..LOOKS {
            if let Some(agreed) = self.agreed(&Step { valid: None, ..step.clone() }, word)? {
                return Ok(agreed);
            }
            std::thread::sleep(PAUSE);
        }
        Err(StoreError::Disagreed { path })
    }
}
