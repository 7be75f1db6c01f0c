//! An image file as an image in an OCI layout, a directory that may hold others: what `skopeo copy ... oci:DIR:NAME` does.
//!
//! Blobs appear complete under their digests, the index last and in one step: whoever reads the directory meanwhile finds
//! what was there before.

use std::fs::{DirBuilder, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::oci::{Documents, LAYOUT, Layer, REF_NAME, blob_name, index};
use super::{ExportError, ExportOptions, Losses};
use crate::convert::ConvertError;
use crate::convert::publish::{Destination, Unpublished};
use crate::image::config::ImageConfig;
use crate::image::digest::Digest;
use crate::image::manifest::MAX_MANIFEST_BYTES;
use crate::squashfs::reader::Filesystem;
use crate::sys::file;

/// Adds the image to the OCI layout `directory`, which is made if it is missing; an image of the same `name` gives it up.
pub fn export_oci_layout(
    filesystem: &Arc<Filesystem>,
    config: &ImageConfig,
    name: &str,
    options: &ExportOptions,
    directory: &Path,
) -> Result<Losses, ExportError> {
    let mut layout = Layout { directory, made: Vec::new() };
    let others = layout.others(name)?;
    for part in ["", "blobs", "blobs/sha256"] {
        layout.make_directory(part)?;
    }
    // Beside the blobs and under no name of theirs until it has a digest.
    let (unpublished, output) = Unpublished::create(&layout.at("blobs/sha256/layer"))?;
    let layer = Layer::write(filesystem, options, &output)?;
    layout.publish(unpublished, &output, &blob_name(&layer.digest))?;
    let documents = Documents::new(config, name, options.packing, &layer);
    for bytes in [&documents.config, &documents.manifest] {
        layout.put(&blob_name(&Digest::of(bytes)), bytes)?;
    }
    layout.put("oci-layout", LAYOUT)?;
    let mut entries = others;
    entries.push(documents.entry);
    layout.replace_index(&index(entries))?;
    layout.made.clear();
    Ok(layer.losses)
}

/// A layout that is added to.
struct Layout<'a> {
    directory: &'a Path,
    /// What was not there before; removed again unless all goes well.
    made: Vec<PathBuf>,
}

impl Layout<'_> {
    fn at(&self, name: &str) -> Destination {
        Destination::new(self.directory.join(name))
    }

    /// The entries of the index but for that of `name`.
    fn others(&self, name: &str) -> Result<Vec<Value>, ExportError> {
        let path = self.directory.join("index.json");
        let not_ours = |why: String| ExportError::Layout { path: self.directory.to_owned(), why };
        let unreadable = |source| ExportError::Index { path: path.clone(), source };
        let file = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return self.check_empty(),
            opened => opened.map_err(unreadable)?,
        };
        let mut bytes = Vec::new();
        file.take(MAX_MANIFEST_BYTES).read_to_end(&mut bytes).map_err(unreadable)?;
        let index: Value = serde_json::from_slice(&bytes)
            .map_err(|error| not_ours(format!("its index.json makes no sense: {error}")))?;
        let entries = index.get("manifests").and_then(Value::as_array);
        let mut entries =
            entries.cloned().ok_or_else(|| not_ours("its index.json lists no manifests".to_owned()))?;
        let name_of = |entry: &Value| entry.get("annotations")?.get(REF_NAME)?.as_str().map(str::to_owned);
        entries.retain(|entry| name_of(entry).as_deref() != Some(name));
        Ok(entries)
    }

    /// A directory without an index is one to begin in only if it holds nothing, or what an export left that was killed.
    fn check_empty(&self) -> Result<Vec<Value>, ExportError> {
        let listed = match file::list(self.directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            listed => listed.map_err(|source| ExportError::Write { source })?,
        };
        let of_layout = |path: &PathBuf| path.ends_with("blobs") || path.ends_with("oci-layout");
        match listed.iter().find(|path| !of_layout(path)) {
            None => Ok(Vec::new()),
            Some(_) => {
                let why = "it is neither empty nor an OCI layout".to_owned();
                Err(ExportError::Layout { path: self.directory.to_owned(), why })
            }
        }
    }

    fn make_directory(&mut self, name: &str) -> Result<(), ExportError> {
        let path = self.directory.join(name);
        match DirBuilder::new().create(&path) {
            Ok(()) => self.made.push(path),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(source) => return Err(ExportError::Write { source }),
        }
        Ok(())
    }

    /// Writes a file, unless it is there: it is named by its content.
    fn put(&mut self, name: &str, bytes: &[u8]) -> Result<(), ExportError> {
        match Unpublished::create(&self.at(name)) {
            Err(ConvertError::Exists { .. }) => Ok(()),
            created => {
                let (unpublished, mut output) = created?;
                output.write_all(bytes).map_err(|source| ExportError::Write { source })?;
                self.publish(unpublished, &output, name)
            }
        }
    }

    fn publish(&mut self, unpublished: Unpublished, output: &File, name: &str) -> Result<(), ExportError> {
        let path = self.directory.join(name);
        match unpublished.named(&path).publish(output) {
            Err(ConvertError::Exists { .. }) => Ok(()),
            published => {
                published?;
                self.made.push(path);
                Ok(())
            }
        }
    }

    fn replace_index(&self, bytes: &[u8]) -> Result<(), ExportError> {
        let destination = Destination { force: true, ..self.at("index.json") };
        let (unpublished, mut output) = Unpublished::create(&destination)?;
        output.write_all(bytes).map_err(|source| ExportError::Write { source })?;
        Ok(unpublished.publish(&output)?)
    }
}

impl Drop for Layout<'_> {
    fn drop(&mut self) {
        // The error that led here matters more than one of these.
        for path in self.made.iter().rev() {
            let _ = std::fs::remove_file(path).or_else(|_| std::fs::remove_dir(path));
        }
    }
}
