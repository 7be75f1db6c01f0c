//! The signatures of an opened image file, held against a list of signers.

use std::fmt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::cli::image_file::ImageFile;
use crate::cli::report::{Failure, chain};
use crate::host::probe;
use crate::image::signature::{self, Fault, PublicKey, Signature, Signers};
use crate::image::trailer::{Contents, ReadAt, SectionKind};
use crate::policy::Policy;
use crate::policy::decide::Signed;

/// One signature of an image.
#[derive(Debug)]
pub(crate) struct Judged {
    /// The key that it says it is of.
    pub(crate) key: Option<PublicKey>,
    pub(crate) outcome: Outcome,
}

/// What a signature is worth.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It counts: whose it is.
    Good(String),
    /// It is right, and this is why no list says whose it is.
    Right(String),
    /// It counts for nothing.
    Bad(Fault),
}

impl fmt::Display for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.key {
            Some(key) => write!(f, "{key}: ")?,
            None => f.write_str("an unknown key: ")?,
        }
        match &self.outcome {
            Outcome::Good(signer) => write!(f, "good, of {signer}"),
            Outcome::Right(why) => write!(f, "right, of nobody known: {why}"),
            Outcome::Bad(fault) => write!(f, "does not count: {fault}"),
        }
    }
}

/// The signatures in an image file, not checked; none without a section for them.
pub(crate) fn kept(contents: &Contents, read_at: &ReadAt<'_>) -> Result<Vec<Signature>, String> {
    let section = contents.section(SectionKind::Signatures, read_at).map_err(|error| chain(&error))?;
    Signature::parse_all(&section.unwrap_or_default())
        .map_err(|fault| format!("the section of signatures is malformed: {fault}"))
}

/// What each signature of an image is worth by a list of signers; without one, by what says why there is none. `Err`
/// says why that cannot be told.
pub(crate) fn judged(
    contents: &Contents,
    read_at: &ReadAt<'_>,
    signers: &Result<Signers, String>,
) -> Result<Vec<Judged>, String> {
    let kept = kept(contents, read_at)?;
    let Some(message) = signature::message(contents) else {
        return if kept.is_empty() { Ok(Vec::new()) } else { Err(NO_HASHES.to_owned()) };
    };
    let now = now()?;
    let judged = kept.iter().map(|signature| {
        let key = signature.key().ok();
        let outcome = match (signature.check(message.as_bytes()), signers) {
            (Err(fault), _) => Outcome::Bad(fault),
            (Ok(_), Err(why)) => Outcome::Right(why.clone()),
            (Ok(key), Ok(signers)) => match signers.judge(&key, now) {
                Ok(signer) => Outcome::Good(signer.to_owned()),
                Err(fault) => Outcome::Bad(fault),
            },
        };
        Judged { key, outcome }
    });
    Ok(judged.collect())
}

/// Seconds after 1970. A clock that was never set would let keys sign that have expired.
pub(crate) fn now() -> Result<i64, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.ok().and_then(|now| i64::try_from(now.as_secs()).ok());
    now.ok_or_else(|| "the clock is before 1970".to_owned())
}

/// Why an image has no text to be signed.
pub(crate) const NO_HASHES: &str =
    "it holds no chunk hashes, so a signature would say nothing of its content";

/// What the signatures of an image are worth by the site's own list. A list that cannot be used is a failure.
pub(crate) fn judge(image: &ImageFile, policy: &Policy) -> Result<Signed, Failure> {
    let signers = Ok(of_site(policy)?);
    let Some(contents) = image.contents() else {
        return Ok(Signed::Never("which is no image file of hpcrun's and so cannot be signed".to_owned()));
    };
    if contents.place(SectionKind::ChunkHashes).is_none() {
        return Ok(Signed::Never(format!("which cannot be signed: {NO_HASHES}")));
    }
    let read_at = |offset: u64, bytes: &mut [u8]| image.read_at(offset, bytes);
    match judged(contents, &read_at, &signers) {
        Err(why) => Ok(Signed::Not(format!("whose signatures cannot be checked: {why}"))),
        Ok(judged) => Ok(verdict(judged)),
    }
}

/// One good signature is enough. Otherwise the last one that does not count says why, best one of a listed key.
fn verdict(judged: Vec<Judged>) -> Signed {
    let mut why = "which is not signed".to_owned();
    let mut is_of_listed = false;
    for Judged { key, outcome } in judged {
        let key = key.map_or_else(|| "unknown key".to_owned(), |key| key.to_string());
        match outcome {
            Outcome::Good(signer) => return Signed::By { signer, key },
            Outcome::Bad(fault) => {
                let is_listed =
                    matches!(fault, Fault::OtherNamespaces(_) | Fault::NotYet(_) | Fault::Expired(_));
                if is_listed || !is_of_listed {
                    why = format!("whose signature ({key}) does not count: {fault}");
                }
                is_of_listed |= is_listed;
            }
            Outcome::Right(_) => {}
        }
    }
    Signed::Not(why)
}

/// The site's list of signers, which nobody but root may have written.
pub(crate) fn of_site(policy: &Policy) -> Result<Signers, Failure> {
    let path = policy.signers();
    let cannot = |failure: Failure| failure.within("cannot check signatures");
    match probe::read_signers(path) {
        Ok(Some(text)) => parse(path, &text).map_err(cannot),
        Ok(None) => {
            let rule = policy.requires_signature().map(|rule| format!(", and {rule} asks for signatures"));
            let what = format!("{} does not exist{}", path.display(), rule.unwrap_or_default());
            Err(cannot(Failure::plain(what))
                .hint("as root: list whose keys may sign images there, see docs/signing.md"))
        }
        Err(error) => Err(cannot(Failure::new(&error))),
    }
}

/// The site's list for verbs that only show. `Err` says why there is none.
pub(crate) fn known(policy: &Policy) -> Result<Signers, String> {
    let path = policy.signers();
    match probe::read_signers(path) {
        Ok(Some(text)) => parse(path, &text).map_err(|failure| failure.message().to_owned()),
        Ok(None) => Err("there is no list of signers".to_owned()),
        Err(error) => Err(chain(&error)),
    }
}

/// A list that somebody named, whoever wrote it.
pub(crate) fn named(path: &Path) -> Result<Signers, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::plain(format!("cannot read {}: {}", path.display(), chain(&error))))?;
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> Result<Signers, Failure> {
    Signers::parse(&path.display().to_string(), text).map_err(|error| Failure::new(&error))
}
