//! Signatures in the format of `ssh-keygen -Y sign` (OpenSSH's `PROTOCOL.sshsig`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256, Sha512};

use super::key::{PublicKey, printable};
use super::wire::{Fields, put_string};
use super::{Fault, NAMESPACE};

const BEGIN: &[u8] = b"-----BEGIN SSH SIGNATURE-----";
const END: &[u8] = b"-----END SSH SIGNATURE-----";
const MAGIC: &[u8; 6] = b"SSHSIG";
const VERSION: u32 = 1;
/// Characters of a line of the armour, as `ssh-keygen` writes it.
const LINE: usize = 70;
/// Most signatures of one image.
const MOST: usize = 64;

/// One signature, not checked yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// The bytes inside of the armour.
    blob: Vec<u8>,
}

/// The parts of a signature.
struct Parts<'a> {
    key: &'a [u8],
    namespace: &'a [u8],
    reserved: &'a [u8],
    hash: &'a [u8],
    signature: &'a [u8],
}

impl Signature {
    /// Reads signatures in their armour, one after another, as the section has them.
    pub fn parse_all(text: &[u8]) -> Result<Vec<Signature>, Fault> {
        let mut signatures = Vec::new();
        let mut rest = text.trim_ascii();
        while !rest.is_empty() {
            let body = rest.strip_prefix(BEGIN).ok_or(Fault::Malformed("it has no armour"))?;
            let end = body.windows(END.len()).position(|at| at == END);
            let (body, after) = end
                .and_then(|end| body.split_at_checked(end))
                .ok_or(Fault::Malformed("its armour does not end"))?;
            let digits: Vec<u8> = body.iter().copied().filter(|byte| !b"\r\n".contains(byte)).collect();
            let blob = STANDARD.decode(digits).map_err(|_| Fault::Malformed("its armour is no base64"))?;
            if signatures.len() == MOST {
                return Err(Fault::Malformed("there are too many"));
            }
            signatures.push(Signature { blob });
            rest = after.strip_prefix(END).unwrap_or_default().trim_ascii();
        }
        Ok(signatures)
    }

    /// Its armour, as `ssh-keygen` writes it.
    pub fn armour(&self) -> Vec<u8> {
        let mut text = BEGIN.to_vec();
        for line in STANDARD.encode(&self.blob).as_bytes().chunks(LINE) {
            text.push(b'\n');
            text.extend_from_slice(line);
        }
        text.push(b'\n');
        text.extend_from_slice(END);
        text.push(b'\n');
        text
    }

    fn parts(&self) -> Result<Parts<'_>, Fault> {
        self.fields().ok_or(Fault::Malformed("it is no signature of SSH"))
    }

    fn fields(&self) -> Option<Parts<'_>> {
        let mut fields = Fields(self.blob.strip_prefix(MAGIC)?);
        fields.number().filter(|version| *version == VERSION)?;
        let parts = Parts {
            key: fields.string()?,
            namespace: fields.string()?,
            reserved: fields.string()?,
            hash: fields.string()?,
            signature: fields.string()?,
        };
        fields.end()?;
        Some(parts)
    }

    /// The key that it says it is of.
    pub fn key(&self) -> Result<PublicKey, Fault> {
        PublicKey::parse(self.parts()?.key)
    }

    /// Whether it is of that key, over `message`, and for images. Who the key belongs to is another question.
    pub fn check(&self, message: &[u8]) -> Result<PublicKey, Fault> {
        let parts = self.parts()?;
        let key = PublicKey::parse(parts.key)?;
        if parts.namespace != NAMESPACE.as_bytes() {
            return Err(Fault::Namespace(printable(parts.namespace)));
        }
        let digest = match parts.hash {
            b"sha512" => Sha512::digest(message).to_vec(),
            b"sha256" => Sha256::digest(message).to_vec(),
            other => return Err(Fault::Hash(printable(other))),
        };
        let mut signed = MAGIC.to_vec();
        for field in [parts.namespace, parts.reserved, parts.hash, &digest] {
            put_string(&mut signed, field);
        }
        key.check(&signed, parts.signature)?;
        Ok(key)
    }
}
