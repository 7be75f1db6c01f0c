//! Signatures of an image file: what is signed, the signatures themselves, and whose keys count.
//!
//! A signature is over one short text with one digest in it, which stands for every byte of the image: the section
//! table has the SHA-256 of each section, and one of the sections has that of each chunk of the squashfs. There is no
//! way to sign a part, and one namespace, so that a key's signature of anything else is none of an image.
//! `docs/image-format.md` specifies both.

mod key;
mod signers;
mod sshsig;
mod wire;

use sha2::{Digest as _, Sha256};

pub use key::{PublicKey, type_names};
pub use signers::{Signers, SignersError};
pub use sshsig::Signature;

use super::digest::to_hex;
use super::trailer::{Contents, SectionKind};

/// What signatures of images are for, as SSH calls it: `ssh-keygen -Y sign -n hpcrun-image`.
pub const NAMESPACE: &str = "hpcrun-image";

/// Why a signature does not count. Follows a colon.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The bytes are no signature or no key.
    #[error("it cannot be understood: {0}")]
    Malformed(&'static str),
    /// A type of keys that is not known here.
    #[error("its key is of the type {0}, which is not supported")]
    KeyType(String),
    /// A hash that is not known here, or too weak.
    #[error("it uses the hash {0}, which is not accepted")]
    Hash(String),
    /// Made for another purpose.
    #[error("it was made for {0:?}, not for {NAMESPACE:?}")]
    Namespace(String),
    /// The token was not touched.
    #[error("it was made without a touch of the token")]
    Untouched,
    /// It is not of this key over this message.
    #[error("it is not of this image, or damaged")]
    Wrong,
    /// Nobody has listed the key.
    #[error("its key is not listed in {0}")]
    NotListed(String),
    /// The key is listed for other purposes.
    #[error("its key is listed for other namespaces at {0}")]
    OtherNamespaces(String),
    /// The key may not sign yet.
    #[error("its key is valid later only, as {0} says")]
    NotYet(String),
    /// The key may sign no more.
    #[error("its key has expired, as {0} says")]
    Expired(String),
}

/// The text that is signed; none without chunk hashes, as it would say nothing of the squashfs.
pub fn message(contents: &Contents) -> Option<String> {
    contents.place(SectionKind::ChunkHashes)?;
    let mut sections = Sha256::new();
    for entry in contents.entries().iter().filter(|entry| !is_left_out(entry.number)) {
        sections.update(entry.number.to_le_bytes());
        sections.update(entry.flags.to_le_bytes());
        sections.update(entry.place.length.to_le_bytes());
        sections.update(entry.reserved.to_le_bytes());
        sections.update(entry.place.digest);
    }
    Some(format!(
        "hpcrun image signature 1\nsquashfs {}\nsections sha256:{}\n",
        contents.squashfs_length(),
        to_hex(&sections.finalize())
    ))
}

/// Why an image should not be signed although it could be: what is in it means nothing to this version, or two things.
/// Follows `it has`.
pub fn oddity(contents: &Contents) -> Option<String> {
    let numbers: Vec<u32> = contents.entries().iter().map(|entry| entry.number).collect();
    let unknown = numbers.iter().find(|number| !SectionKind::is_known(**number));
    let unknown =
        unknown.map(|number| format!("a section of kind {number}, which this hpcrun does not know"));
    let is_there_before = |at: usize, number: &u32| numbers.iter().take(at).any(|earlier| earlier == number);
    let twice = numbers.iter().enumerate().find(|(at, number)| is_there_before(*at, number));
    unknown.or_else(|| twice.map(|(_, number)| format!("two sections of kind {number}")))
}

/// Signatures sign neither each other nor the profile, which is a hint that may come later.
fn is_left_out(number: u32) -> bool {
    [SectionKind::Signatures, SectionKind::Profile].iter().any(|kind| kind.number() == number)
}

/// The section of these signatures.
pub fn encode(signatures: &[Signature]) -> Vec<u8> {
    signatures.iter().flat_map(Signature::armour).collect()
}

/// The same signatures with `new`, which takes the place of one of the same key.
pub fn with(mut signatures: Vec<Signature>, new: Signature) -> Vec<Signature> {
    let key = new.key();
    signatures.retain(|old| *old != new && (key.is_err() || old.key() != key));
    signatures.push(new);
    signatures
}

#[cfg(test)]
mod tests;
