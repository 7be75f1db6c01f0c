//! Are these the bytes that the manifest names? Size and digest of a blob, diff ID of its tar.

use super::stream::LayerError;
use crate::convert::source::LayerInfo;
use crate::image::digest::{Digest, Hasher};

/// Bytes that stream past are held against what the manifest and the config say of them.
#[derive(Debug)]
pub(super) struct Verifier {
    expected: Vec<(Part, Digest, Hasher)>,
    size: Option<u64>,
    seen: u64,
}

/// What a digest is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The blob as stored: `digest`.
    Blob,
    /// The uncompressed tar: `diff ID`.
    Tar,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Part::Blob => "digest",
            Part::Tar => "diff ID",
        })
    }
}

impl Verifier {
    /// For the blob. A blob that is stored plain is its own tar; where both digests are equal it is hashed once.
    pub(super) fn for_blob(layer: &LayerInfo, is_plain: bool) -> Verifier {
        let mut digests: Vec<(Part, &Digest)> =
            layer.digest.iter().map(|digest| (Part::Blob, digest)).collect();
        if is_plain && layer.digest != layer.diff_id {
            digests.extend(layer.diff_id.iter().map(|digest| (Part::Tar, digest)));
        }
        Verifier::new(&digests, layer.size)
    }

    /// For the tar that came out of a compressed blob.
    pub(super) fn for_tar(layer: &LayerInfo) -> Verifier {
        let digests: Vec<(Part, &Digest)> = layer.diff_id.iter().map(|digest| (Part::Tar, digest)).collect();
        Verifier::new(&digests, None)
    }

    fn new(digests: &[(Part, &Digest)], size: Option<u64>) -> Verifier {
        let with_hasher =
            |(part, digest): &(Part, &Digest)| (*part, (*digest).clone(), Hasher::new(digest.algorithm()));
        Verifier { expected: digests.iter().map(with_hasher).collect(), size, seen: 0 }
    }

    /// Takes the next bytes; fails as soon as there are more than there should be.
    pub(super) fn update(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        self.seen = self.seen.saturating_add(bytes.len() as u64);
        match self.size {
            Some(expected) if self.seen > expected => return Err(LayerError::TooLong { expected }),
            _ => {}
        }
        for (_, _, hasher) in &mut self.expected {
            hasher.update(bytes);
        }
        Ok(())
    }

    /// The verdict at the end of the stream.
    pub(super) fn finish(self) -> Result<(), LayerError> {
        match self.size {
            Some(expected) if self.seen != expected => {
                return Err(LayerError::Size { expected, got: self.seen });
            }
            _ => {}
        }
        for (part, expected, hasher) in self.expected {
            let got = hasher.finish();
            if got != expected {
                return Err(LayerError::Digest { part, expected, got });
            }
        }
        Ok(())
    }
}
