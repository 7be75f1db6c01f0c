//! A tar of a root file system, from a file or straight from a pipe: `docker export`, debootstrap, `hpcrun export`.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::archive::{Packing, Slice, xz_decoder};
use super::input::{is_readable_twice, standard_input};
use super::whole::{bare_config, check_layer, image_of};
use super::{Source, SourceError, SourceImage, SourceOptions};
use crate::image::reference::STANDARD_INPUT;

/// Bytes that tell the compression.
const START: usize = 6;

/// A tar that is the whole image.
#[derive(Debug)]
pub(super) struct TarFile {
    image: SourceImage,
    input: Input,
}

#[derive(Debug)]
enum Input {
    File {
        file: Arc<File>,
        length: u64,
    },
    /// A pipe: for whoever comes first. One tree needs no second reading.
    Stream(Mutex<Option<File>>),
}

impl TarFile {
    pub(super) fn open(path: &Path, origin: String, options: &SourceOptions) -> Result<TarFile, SourceError> {
        let failed = |source| SourceError::Read { path: path.display().to_string(), source };
        let file = match path == Path::new(STANDARD_INPUT) {
            true => standard_input(&origin, options)?,
            // Waits for the writer of a FIFO, as cat does.
            false => File::open(path).map_err(failed)?,
        };
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_dir() {
            return Err(SourceError::NotThis {
                origin,
                expected: "a tar",
                why: "it is a directory: write dir:".to_owned(),
            });
        }
        let mut size = None;
        let input = if is_readable_twice(&file) {
            let input = Input::File { file: Arc::new(file), length: metadata.len() };
            // The size of what open_layer gives; nobody knows that of an xz stream.
            size = (input.packing().map_err(failed)? != Packing::Xz).then_some(metadata.len());
            input
        } else {
            Input::Stream(Mutex::new(Some(file)))
        };
        Ok(TarFile { image: image_of(origin, bare_config(&options.platform), size), input })
    }
}

impl Input {
    fn packing(&self) -> io::Result<Packing> {
        let Input::File { file, length } = self else { return Ok(Packing::Plain) };
        let mut start = Vec::new();
        Slice::new(file, 0, (*length).min(START as u64)).read_to_end(&mut start)?;
        Ok(Packing::of(&start))
    }
}

impl Source for TarFile {
    fn image(&self) -> &SourceImage {
        &self.image
    }

    fn open_layer(&self, index: usize) -> Result<Box<dyn Read + Send>, SourceError> {
        check_layer(&self.image, index)?;
        let origin = || self.image.origin.clone();
        let mut input: Box<dyn Read + Send> = match &self.input {
            Input::File { file, length } => Box::new(Slice::new(file, 0, *length)),
            Input::Stream(stream) => {
                let stream = stream.lock().unwrap_or_else(PoisonError::into_inner).take();
                Box::new(stream.ok_or_else(|| SourceError::Once { origin: origin() })?)
            }
        };
        let failed = |source| SourceError::Read { path: origin(), source };
        let mut start = Vec::new();
        input.by_ref().take(START as u64).read_to_end(&mut start).map_err(failed)?;
        if start.is_empty() {
            let why = "it is empty".to_owned();
            return Err(SourceError::NotThis { origin: origin(), expected: "a tar", why });
        }
        let packing = Packing::of(&start);
        let whole = Cursor::new(start).chain(input);
        // Layers are never xz, root file systems are.
        match packing {
            Packing::Xz => Ok(Box::new(xz_decoder(BufReader::new(whole)).map_err(failed)?)),
            _ => Ok(Box::new(whole)),
        }
    }
}
