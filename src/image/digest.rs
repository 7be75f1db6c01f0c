//! Content digests, `sha256:<hex>`: parsed, computed, compared.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256, Sha512};

/// A hash function that names content. Others exist in the registry of the image-spec but nobody pushes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// SHA-256, the one in use.
    Sha256,
    /// SHA-512, allowed by the image-spec.
    Sha512,
}

impl Algorithm {
    /// The name before the colon.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// Digits of a digest.
    fn hex_length(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

/// Why a text is no digest. Shows the text cut short, since it may come from anywhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DigestError {
    /// No `algorithm:`.
    #[error("digest {0:?} has no algorithm before a colon")]
    NoAlgorithm(String),
    /// Neither SHA-256 nor SHA-512.
    #[error("digest {0:?} uses an algorithm other than sha256 and sha512")]
    UnknownAlgorithm(String),
    /// Wrong number of digits, upper case, or no hexadecimal digits at all.
    #[error("digest {text:?} needs {expected} lower-case hexadecimal digits")]
    BadHex {
        /// The text.
        text: String,
        /// Digits that the algorithm has.
        expected: usize,
    },
}

/// A validated digest: safe to use as a file name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(String);

impl Digest {
    /// Parses `sha256:<64 hex>` or `sha512:<128 hex>`, lower case only, so that equal digests are equal texts.
    pub fn parse(text: &str) -> Result<Digest, DigestError> {
        let shown = || text.chars().take(160).collect::<String>();
        let (name, hex) = text.split_once(':').ok_or_else(|| DigestError::NoAlgorithm(shown()))?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(DigestError::UnknownAlgorithm(shown())),
        };
        let expected = algorithm.hex_length();
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if hex.len() != expected || !hex.bytes().all(is_hex) {
            return Err(DigestError::BadHex { text: shown(), expected });
        }
        Ok(Digest(text.to_owned()))
    }

    /// The SHA-256 digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest::of_with(Algorithm::Sha256, bytes)
    }

    /// The digest of `bytes` by `algorithm`; use a given digest's own to compare with it.
    pub fn of_with(algorithm: Algorithm, bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// As written: `sha256:<hex>`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The hash function.
    pub fn algorithm(&self) -> Algorithm {
        if self.0.starts_with("sha512:") { Algorithm::Sha512 } else { Algorithm::Sha256 }
    }

    /// The digits after the colon.
    pub fn hex(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, hex)| hex)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Digest, DigestError> {
        Digest::parse(text)
    }
}

/// Computes a digest from bytes as they stream past.
#[derive(Debug, Clone)]
pub struct Hasher(State);

#[derive(Debug, Clone)]
enum State {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    /// A hasher that has seen nothing.
    pub fn new(algorithm: Algorithm) -> Hasher {
        Hasher(match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Sha512::new()),
        })
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
    }

    /// The digest of all bytes taken.
    pub fn finish(self) -> Digest {
        let (algorithm, bytes) = match self.0 {
            State::Sha256(state) => (Algorithm::Sha256, state.finalize().to_vec()),
            State::Sha512(state) => (Algorithm::Sha512, state.finalize().to_vec()),
        };
        Digest(format!("{}:{}", algorithm.name(), to_hex(&bytes)))
    }
}

/// Lower-case hexadecimal digits of `bytes`.
pub fn to_hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn known_answers() {
        assert_eq!(Digest::of(b"").as_str(), EMPTY);
        assert_eq!(
            Digest::of(b"abc").hex(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        let long = Digest::of_with(Algorithm::Sha512, b"abc");
        assert!(long.as_str().starts_with("sha512:ddaf35a193617abacc417349ae204131"), "{long}");
        assert_eq!(long.hex().len(), 128);
        assert_eq!(long.algorithm(), Algorithm::Sha512);
    }

    #[test]
    fn streaming_equals_at_once() {
        let bytes: Vec<u8> = (0..=255).cycle().take(10_000).collect();
        for step in [1, 63, 64, 65, 4096] {
            let mut hasher = Hasher::new(Algorithm::Sha256);
            bytes.chunks(step).for_each(|chunk| hasher.update(chunk));
            assert_eq!(hasher.finish(), Digest::of(&bytes), "step {step}");
        }
    }

    #[test]
    fn accepts_and_shows_as_written() {
        let long = format!("sha512:{}", "0f".repeat(64));
        for text in [EMPTY, &long] {
            let digest: Digest = text.parse().unwrap();
            assert_eq!(digest.to_string(), text);
            assert_eq!(Digest::of_with(digest.algorithm(), b"").algorithm(), digest.algorithm());
        }
    }

    #[test]
    fn refuses() {
        let hex = "a".repeat(64);
        let cases = [
            String::new(),
            ":".into(),
            hex.clone(),
            format!(":{hex}"),
            format!("sha256:{}", &hex[1..]),
            format!("sha256:{hex}a"),
            format!("sha256:{}A", &hex[1..]),
            format!("sha256:{}g", &hex[1..]),
            format!("sha256: {}", &hex[1..]),
            format!("SHA256:{hex}"),
            format!("sha256:{hex}\n"),
            format!("sha256:{hex}\0"),
            format!("sha512:{hex}"),
            format!("sha384:{}", "a".repeat(96)),
            format!("md5:{}", "a".repeat(32)),
            "sha256:../../../../etc/passwd".into(),
            format!("sha256:../{}", &hex[3..]),
            format!("../sha256:{hex}"),
            format!("sha256:sha256:{hex}"),
            format!("sha256:{}\u{e9}", &hex[2..]),
        ];
        for text in cases {
            assert!(Digest::parse(&text).is_err(), "{text:?}");
        }
        let message = Digest::parse(&format!("sha256:{}", "x".repeat(10_000))).unwrap_err().to_string();
        assert!(message.len() < 300, "a hostile text is cut short: {}", message.len());
    }
}
