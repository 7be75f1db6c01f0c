//! Why a tar is refused: where, and what is wrong there.

use crate::convert::budget::Exceeded;

/// A tar that cannot be read, with the place.
#[derive(Debug, thiserror::Error)]
#[error("{}", place(.entry.as_deref(), *.offset))]
pub struct TarError {
    /// Name of the entry, where one was read.
    pub entry: Option<Vec<u8>>,
    /// Where the header lies in the uncompressed tar, bytes.
    pub offset: u64,
    /// What is wrong.
    #[source]
    pub problem: Problem,
}

/// What is wrong with a tar.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The stream below failed.
    #[error("cannot read the layer")]
    Read(#[source] std::io::Error),
    /// The stream ended inside a header, an extension or a file.
    #[error("the tar ends early, {missing} bytes before the end of the {what}")]
    Truncated {
        /// `header`, `extension header`, `file`.
        what: &'static str,
        /// Bytes that are missing at least.
        missing: u64,
    },
    /// Neither the signed nor the unsigned sum matches.
    #[error("not a tar header: its checksum does not match")]
    Checksum,
    /// One zero block and then something else.
    #[error("a block of zeros is followed by data")]
    LoneZeroBlock,
    /// A numeric field that is no number.
    #[error("{field} is not a number: \"{}\"", .value.escape_ascii())]
    Number {
        /// The field or PAX key.
        field: &'static str,
        /// Its bytes.
        value: Vec<u8>,
    },
    /// A number that has no meaning here.
    #[error("{field} is out of range: {value}")]
    Range {
        /// The field or PAX key.
        field: &'static str,
        /// Its value.
        value: i64,
    },
    /// A member type that is no file, directory, link, device or pipe.
    #[error("entries of type '{}' are not supported", .0.escape_ascii())]
    Type(u8),
    /// A PAX record that contradicts itself.
    #[error("malformed PAX record {record}: {why}")]
    Pax {
        /// Which, counted from 1.
        record: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// An extension header that belongs to no entry.
    #[error("an extension header is followed by {0}, not by its entry")]
    LooseExtension(&'static str),
    /// A sparse map that contradicts itself or the file.
    #[error("malformed sparse map: {0}")]
    Sparse(&'static str),
    /// More than the [`crate::convert::Budget`] allows.
    #[error(transparent)]
    Budget(#[from] Exceeded),
}

/// Where in a tar something lies, said the same way by every stage.
pub(crate) fn place(entry: Option<&[u8]>, offset: u64) -> String {
    /// Of a longer name, which only a hostile image has, this much of each end says enough.
    const SHOWN: usize = 120;
    match entry {
        Some(entry) if entry.len() > 2 * SHOWN => {
            let (start, end) = (entry.get(..SHOWN), entry.get(entry.len() - SHOWN..));
            let [start, end] = [start, end].map(|part| part.unwrap_or_default().escape_ascii());
            format!("entry \"{start}...{end}\" ({} bytes) at byte {offset}", entry.len())
        }
        Some(entry) => format!("entry \"{}\" at byte {offset}", entry.escape_ascii()),
        None => format!("tar header at byte {offset}"),
    }
}
