//! What a word means to all ranks of a job step, on all nodes: the first to say so is right, decided by `link(2)`.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
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
        self.said(directory.as_fd(), step, word).map(|(_, record)| record)
    }

    /// Says what `word` means to `step`, unless another rank was faster. Gives what all of them go by.
    pub fn agree(&self, step: &Step, word: &OsStr, record: &StepRecord) -> Result<StepRecord, StoreError> {
        let directory = self.made_directory(STEPS)?;
        let directory = directory.as_fd();
        let (name, said) = self.said(directory, step, word)?;
        if let Some(agreed) = said {
            return Ok(agreed);
        }
        let written = self.write_step(directory, &name, record);
        // Also one's own: where an answer is lost and a call repeated, one's own file is in the way. And one who cannot
        // write can read what another wrote.
        if let Some(agreed) = self.read_step(directory, &name)? {
            return Ok(agreed);
        }
        written?;
        for _ in 0..LOOKS {
            std::thread::sleep(PAUSE);
            if let Some(agreed) = self.read_step(directory, &name)? {
                return Ok(agreed);
            }
        }
        Err(StoreError::Disagreed { path: self.path.join(STEPS).join(&name) })
    }

    /// The record's name, and the record if there is one. Where another step had the name of this one long ago, the next
    /// file is this one's: to remove the old one would remove the new one of whoever was faster.
    fn said(
        &self,
        directory: BorrowedFd<'_>,
        step: &Step,
        word: &OsStr,
    ) -> Result<(OsString, Option<StepRecord>), StoreError> {
        let mut turn = 0_u32;
        loop {
            let name = StepRecord::file_name(&step.key, word, turn);
            match self.read_step(directory, &name)? {
                Some(_) if is_over(directory, &name, step.valid) => turn = turn.saturating_add(1),
                record => return Ok((name, record)),
            }
        }
    }

    fn read_step(&self, directory: BorrowedFd<'_>, name: &OsStr) -> Result<Option<StepRecord>, StoreError> {
        let path = self.path.join(STEPS).join(name);
        let Some(text) = self.read_record(directory, name, &path, MAX_BYTES)? else { return Ok(None) };
        StepRecord::parse(&text).map(Some).ok_or(StoreError::Malformed { path })
    }

    fn write_step(
        &self,
        directory: BorrowedFd<'_>,
        name: &OsStr,
        record: &StepRecord,
    ) -> Result<(), StoreError> {
        let failed = |source| StoreError::Write { path: self.path.join(STEPS).join(name), source };
        let (temporary, file) = Temporary::or_unnamed(directory, MODE).map_err(failed)?;
        file.write_all_at(record.encode().as_bytes(), 0)
            .map_err(|error| failed(crate::sys::Error::from_io("write", &error)))?;
        // Another node must not see the name before the content.
        file::sync(&file).map_err(failed)?;
        let is_first = match temporary {
            Some(temporary) => temporary.publish(name),
            None => file::link_unnamed(&file, directory, name),
        };
        is_first.map(drop).map_err(failed)
    }
}

/// Whether a record is too old to be of a step that has its name now.
fn is_over(directory: BorrowedFd<'_>, name: &OsStr, valid: Option<Duration>) -> bool {
    let Some(valid) = valid else { return false };
    let record = file::open_regular(directory, name).and_then(|file| file.metadata().ok());
    let age = record.and_then(|metadata| metadata.modified().ok()?.elapsed().ok());
    age.is_some_and(|age| age > valid)
}
