//! Public keys of SSH, and whether a signature is of one of them.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use sha2::{Digest as _, Sha256};

use super::Fault;
use super::wire::Fields;

/// Bits that the modulus of an RSA key may have.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// The bit by which a token says that somebody touched it.
const TOUCHED: u8 = 1;

/// A public key.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// As SSH writes it; by this keys are compared.
    blob: Vec<u8>,
    name: &'static str,
    material: Material,
    /// Of a key that a token holds: the application that it was made for.
    application: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Eq)]
enum Material {
    Ed25519(Vec<u8>),
    Ecdsa(Curve, Vec<u8>),
    Rsa { exponent: Vec<u8>, modulus: Vec<u8> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Curve {
    P256,
    P384,
}

impl Curve {
    fn name(self) -> &'static [u8] {
        match self {
            Curve::P256 => b"nistp256",
            Curve::P384 => b"nistp384",
        }
    }

    /// Bytes of a number of its field.
    fn bytes(self) -> usize {
        match self {
            Curve::P256 => 32,
            Curve::P384 => 48,
        }
    }
}

/// What a key of this name is made of.
enum Shape {
    Ed25519,
    Ecdsa(Curve),
    Rsa,
}

/// The types of keys that can be checked, with whether a token holds them.
const TYPES: [(&str, Shape, bool); 6] = [
    ("ssh-ed25519", Shape::Ed25519, false),
    ("sk-ssh-ed25519@openssh.com", Shape::Ed25519, true),
    ("ecdsa-sha2-nistp256", Shape::Ecdsa(Curve::P256), false),
    ("ecdsa-sha2-nistp384", Shape::Ecdsa(Curve::P384), false),
    ("sk-ecdsa-sha2-nistp256@openssh.com", Shape::Ecdsa(Curve::P256), true),
    ("ssh-rsa", Shape::Rsa, false),
];

/// The names of the types that can be checked, for messages.
pub fn type_names() -> String {
    TYPES.map(|(name, ..)| name).join(", ")
}

impl PublicKey {
    /// Reads a key as SSH writes it.
    pub fn parse(blob: &[u8]) -> Result<PublicKey, Fault> {
        let mut fields = Fields(blob);
        let named = fields.string().ok_or(Fault::Malformed("its key is cut short"))?;
        let (name, shape, is_on_token) = TYPES
            .iter()
            .find(|(name, ..)| name.as_bytes() == named)
            .ok_or_else(|| Fault::KeyType(printable(named)))?;
        let rest = material(shape, *is_on_token, fields);
        let (material, application) = rest.ok_or(Fault::Malformed("its key makes no sense"))?;
        if let Material::Rsa { modulus, .. } = &material
            && !RSA_BITS.contains(&bits(modulus))
        {
            return Err(Fault::KeyType(format!("ssh-rsa with {} bits", bits(modulus))));
        }
        Ok(PublicKey { blob: blob.to_owned(), name, material, application })
    }

    /// `ssh-ed25519`
    pub fn type_name(&self) -> &'static str {
        self.name
    }

    /// As `ssh-keygen -l` shows it: `SHA256:...`.
    pub fn fingerprint(&self) -> String {
        format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(&self.blob)))
    }

    /// Whether `signature`, as SSH writes it, is this key's over `signed`.
    pub(super) fn check(&self, signed: &[u8], signature: &[u8]) -> Result<(), Fault> {
        let cut = || Fault::Malformed("it is cut short");
        let mut fields = Fields(signature);
        let algorithm = fields.string().ok_or_else(cut)?;
        let bytes = fields.string().ok_or_else(cut)?;
        let on_token;
        let signed = match &self.application {
            None => signed,
            Some(application) => {
                let (flags, counter) = fields.byte().zip(fields.number()).ok_or_else(cut)?;
                if flags & TOUCHED == 0 {
                    return Err(Fault::Untouched);
                }
                on_token = [
                    Sha256::digest(application).as_slice(),
                    &[flags],
                    &counter.to_be_bytes(),
                    Sha256::digest(signed).as_slice(),
                ]
                .concat();
                &on_token
            }
        };
        fields.end().ok_or(Fault::Malformed("it is longer than it may be"))?;
        if !matches!(self.material, Material::Rsa { .. }) && algorithm != self.name.as_bytes() {
            return Err(Fault::Malformed("it is of another kind than its key"));
        }
        match &self.material {
            Material::Ed25519(key) => {
                let verified = UnparsedPublicKey::new(&signature::ED25519, key).verify(signed, bytes);
                verified.map_err(|_| Fault::Wrong)
            }
            Material::Ecdsa(curve, point) => check_ecdsa(*curve, point, signed, bytes),
            Material::Rsa { exponent, modulus } => check_rsa(exponent, modulus, algorithm, signed, bytes),
        }
    }
}

/// What follows the name of the type.
fn material(shape: &Shape, is_on_token: bool, mut fields: Fields<'_>) -> Option<(Material, Option<Vec<u8>>)> {
    let material = match shape {
        Shape::Ed25519 => {
            let key = fields.string().filter(|key| key.len() == 32)?;
            Material::Ed25519(key.to_owned())
        }
        Shape::Ecdsa(curve) => {
            fields.string().filter(|named| *named == curve.name())?;
            // An uncompressed point: 4 and two numbers.
            let length = curve.bytes() * 2 + 1;
            let point = fields.string().filter(|point| point.len() == length && point.first() == Some(&4))?;
            Material::Ecdsa(*curve, point.to_owned())
        }
        Shape::Rsa => {
            let (exponent, modulus) = (fields.positive()?, fields.positive()?);
            Material::Rsa { exponent: exponent.to_owned(), modulus: modulus.to_owned() }
        }
    };
    let application = match is_on_token {
        true => Some(fields.string()?.to_owned()),
        false => None,
    };
    fields.end()?;
    Some((material, application))
}

/// A signature is two numbers, which `ring` wants side by side in their full length.
fn check_ecdsa(curve: Curve, point: &[u8], signed: &[u8], bytes: &[u8]) -> Result<(), Fault> {
    let mut fields = Fields(bytes);
    let numbers = fields.positive().zip(fields.positive());
    let (r, s) = numbers.ok_or(Fault::Malformed("its numbers make no sense"))?;
    fields.end().ok_or(Fault::Malformed("it is longer than it may be"))?;
    let (r, s) = padded(r, curve.bytes()).zip(padded(s, curve.bytes())).ok_or(Fault::Wrong)?;
    let algorithm = match curve {
        Curve::P256 => &signature::ECDSA_P256_SHA256_FIXED,
        Curve::P384 => &signature::ECDSA_P384_SHA384_FIXED,
    };
    let verified = UnparsedPublicKey::new(algorithm, point).verify(signed, &[r, s].concat());
    verified.map_err(|_| Fault::Wrong)
}

/// SHA-1, which `ssh-rsa` once stood for, is not accepted.
fn check_rsa(
    exponent: &[u8],
    modulus: &[u8],
    algorithm: &[u8],
    signed: &[u8],
    bytes: &[u8],
) -> Result<(), Fault> {
    let parameters = match algorithm {
        b"rsa-sha2-512" => &signature::RSA_PKCS1_2048_8192_SHA512,
        b"rsa-sha2-256" => &signature::RSA_PKCS1_2048_8192_SHA256,
        _ => return Err(Fault::Hash(printable(algorithm))),
    };
    // Some signers leave leading zeros out.
    let bytes = padded(bytes, modulus.len()).ok_or(Fault::Wrong)?;
    let key = RsaPublicKeyComponents { n: modulus, e: exponent };
    key.verify(parameters, signed, &bytes).map_err(|_| Fault::Wrong)
}

/// Bits of a number without those zeros that it begins with.
fn bits(number: &[u8]) -> usize {
    let zeros = number.first().map_or(0, |first| first.leading_zeros());
    number.len().saturating_mul(8).saturating_sub(usize::try_from(zeros).unwrap_or(0))
}

/// A number with zeros in front, `length` bytes; none if it is longer.
fn padded(number: &[u8], length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length.checked_sub(number.len())?];
    bytes.extend_from_slice(number);
    Some(bytes)
}

/// A name out of a file, for a message.
pub(super) fn printable(name: &[u8]) -> String {
    name.iter().take(64).flat_map(|byte| std::ascii::escape_default(*byte)).map(char::from).collect()
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.fingerprint())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}
