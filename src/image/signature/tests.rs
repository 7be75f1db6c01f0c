//! Signatures and lists of signers, good and bad. Signatures of key files are tested against `ssh-keygen` in
//! `tests/it/sign.rs`; those of tokens are made here.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
use sha2::{Digest as _, Sha256, Sha512};

use super::wire::put_string;
use super::*;

const MESSAGE: &[u8] = b"hpcrun image signature 1\n";
const ED25519: &str = "ssh-ed25519";
const SK_ED25519: &str = "sk-ssh-ed25519@openssh.com";
const SK_ECDSA: &str = "sk-ecdsa-sha2-nistp256@openssh.com";

fn strings(parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    parts.iter().for_each(|part| put_string(&mut out, part));
    out
}

fn pair() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap()
}

/// The public key of [`pair`], as a key file's or as a token's.
fn key_blob(name: &str) -> Vec<u8> {
    let pair = pair();
    match name {
        ED25519 => strings(&[name.as_bytes(), pair.public_key().as_ref()]),
        _ => strings(&[name.as_bytes(), pair.public_key().as_ref(), b"ssh:"]),
    }
}

/// What is varied of a signature.
struct Made<'a> {
    name: &'a str,
    namespace: &'a str,
    hash: &'a str,
    algorithm: &'a str,
    /// Of a token.
    flags: u8,
    /// Behind all that belongs there.
    tail: &'a [u8],
}

const GOOD: Made<'_> =
    Made { name: ED25519, namespace: NAMESPACE, hash: "sha512", algorithm: ED25519, flags: 1, tail: b"" };
const GOOD_SK: Made<'_> = Made { name: SK_ED25519, algorithm: SK_ED25519, ..GOOD };

fn signed_bytes(made: &Made<'_>, message: &[u8]) -> Vec<u8> {
    let digest = match made.hash {
        "sha256" => Sha256::digest(message).to_vec(),
        _ => Sha512::digest(message).to_vec(),
    };
    let fields = strings(&[made.namespace.as_bytes(), b"", made.hash.as_bytes(), &digest]);
    [b"SSHSIG", fields.as_slice()].concat()
}

/// What a token signs in place of the bytes.
fn by_token(signed: &[u8], flags: u8) -> Vec<u8> {
    let (application, bytes) = (Sha256::digest(b"ssh:"), Sha256::digest(signed));
    [application.as_slice(), &[flags], &9u32.to_be_bytes(), bytes.as_slice()].concat()
}

fn blob(made: &Made<'_>, key: &[u8], signature: &[u8]) -> Vec<u8> {
    let fields = strings(&[key, made.namespace.as_bytes(), b"", made.hash.as_bytes(), signature]);
    [b"SSHSIG\0\0\0\x01", fields.as_slice(), made.tail].concat()
}

fn make(made: &Made<'_>) -> Vec<u8> {
    let signed = signed_bytes(made, MESSAGE);
    let is_token = made.name == SK_ED25519;
    let signed = if is_token { by_token(&signed, made.flags) } else { signed };
    let mut signature = strings(&[made.algorithm.as_bytes(), pair().sign(&signed).as_ref()]);
    if is_token {
        signature.push(made.flags);
        signature.extend_from_slice(&9u32.to_be_bytes());
    }
    blob(made, &key_blob(made.name), &signature)
}

fn armoured(blob: &[u8]) -> String {
    format!("-----BEGIN SSH SIGNATURE-----\n{}\n-----END SSH SIGNATURE-----\n", STANDARD.encode(blob))
}

fn check(blob: &[u8]) -> Result<PublicKey, Fault> {
    let [signature] = &Signature::parse_all(armoured(blob).as_bytes())?[..] else { panic!("one signature") };
    signature.check(MESSAGE)
}

#[test]
fn good_signatures() {
    for made in [&GOOD, &Made { hash: "sha256", ..GOOD }, &GOOD_SK, &Made { flags: 5, ..GOOD_SK }] {
        let key = check(&make(made)).unwrap();
        assert_eq!(key.type_name(), made.name);
        assert!(key.fingerprint().starts_with("SHA256:"), "{key}");
    }
}

#[test]
fn a_token_with_an_ecdsa_key() {
    let random = SystemRandom::new();
    let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let pair = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(algorithm, pair.as_ref(), &random).unwrap();
    let key = strings(&[SK_ECDSA.as_bytes(), b"nistp256", pair.public_key().as_ref(), b"ssh:"]);
    // Numbers of every length, leading zeros and bits included.
    for counter in 0..300 {
        let made = Made { name: SK_ECDSA, algorithm: SK_ECDSA, ..GOOD };
        let signed = by_token(&signed_bytes(&made, MESSAGE), 1);
        let fixed = pair.sign(&random, &signed).unwrap();
        let (r, s) = fixed.as_ref().split_at(32);
        let number = |bytes: &[u8]| {
            let digits: Vec<u8> = bytes.iter().copied().skip_while(|byte| *byte == 0).collect();
            if digits[0] & 0x80 != 0 { [&[0], digits.as_slice()].concat() } else { digits }
        };
        let mut signature = strings(&[SK_ECDSA.as_bytes(), &strings(&[&number(r), &number(s)])]);
        signature.push(1);
        signature.extend_from_slice(&9u32.to_be_bytes());
        check(&blob(&made, &key, &signature)).unwrap_or_else(|fault| panic!("{counter}: {fault}"));
    }
}

#[test]
fn signatures_that_do_not_count() {
    for (made, words) in [
        (Made { namespace: "file", ..GOOD }, "made for \"file\""),
        (Made { namespace: "", ..GOOD }, "made for \"\""),
        (Made { namespace: "hpcrun-image\n", ..GOOD }, "made for \"hpcrun-image\\\\n\""),
        (Made { hash: "sha1", ..GOOD }, "the hash sha1"),
        (Made { hash: "", ..GOOD }, "the hash "),
        (Made { algorithm: "ssh-rsa", ..GOOD }, "of another kind than its key"),
        (Made { algorithm: "", ..GOOD }, "of another kind than its key"),
        (Made { tail: b"x", ..GOOD }, "no signature of SSH"),
        (Made { flags: 0, ..GOOD_SK }, "without a touch"),
        (Made { flags: 4, ..GOOD_SK }, "without a touch"),
    ] {
        let fault = check(&make(&made)).unwrap_err().to_string();
        assert!(fault.contains(words), "{fault}: {words}");
    }
    let signature = Signature::parse_all(armoured(&make(&GOOD)).as_bytes()).unwrap().remove(0);
    assert_eq!(signature.check(b"another message"), Err(Fault::Wrong));
    // A token's key that signed as a key file would.
    let plain = strings(&[SK_ED25519.as_bytes(), pair().sign(&signed_bytes(&GOOD, MESSAGE)).as_ref()]);
    let without_flags = blob(&GOOD_SK, &key_blob(SK_ED25519), &plain);
    assert_eq!(check(&without_flags), Err(Fault::Malformed("it is cut short")));
}

#[test]
fn malformed_armour() {
    let good = armoured(&make(&GOOD));
    let two = format!("\n{good}\r\n\n{good}");
    assert_eq!(Signature::parse_all(two.as_bytes()).unwrap().len(), 2);
    assert_eq!(Signature::parse_all(b" \n").unwrap(), []);
    let many = good.repeat(65);
    for (text, words) in [
        ("x", "no armour"),
        ("-----BEGIN SSH SIGNATURE", "no armour"),
        ("-----BEGIN SSH SIGNATURE-----\nAAAA\n", "does not end"),
        ("-----BEGIN SSH SIGNATURE-----\nA\u{7f}\n-----END SSH SIGNATURE-----\n", "no base64"),
        ("-----BEGIN SSH SIGNATURE-----\nAAAAA\n-----END SSH SIGNATURE-----\n", "no base64"),
        ("-----BEGIN SSH SIGNATURE-----\nAA AA\n-----END SSH SIGNATURE-----\n", "no base64"),
        (&format!("{good}x"), "no armour"),
        (&format!("x{good}"), "no armour"),
        (&many, "too many"),
    ] {
        let fault = Signature::parse_all(text.as_bytes()).unwrap_err().to_string();
        assert!(fault.contains(words), "{text}: {fault}");
    }
    // What was parsed is written as ssh-keygen writes it.
    let signature = Signature::parse_all(good.as_bytes()).unwrap().remove(0);
    let armour = String::from_utf8(signature.armour()).unwrap();
    assert!(armour.lines().all(|line| line.len() <= 70) && armour.ends_with("-----END SSH SIGNATURE-----\n"));
    assert_eq!(Signature::parse_all(armour.as_bytes()).unwrap(), [signature]);
}

#[test]
fn malformed_signatures_and_keys() {
    let key = |parts: &[&[u8]]| blob(&GOOD, &strings(parts), &strings(&[b"ssh-ed25519", &[0; 64]]));
    let good = make(&GOOD);
    for (blob, words) in [
        (Vec::new(), "no signature of SSH"),
        (b"SSHSIG".to_vec(), "no signature of SSH"),
        (b"SSHSIG\0\0\0\x02".to_vec(), "no signature of SSH"),
        (good[6..].to_vec(), "no signature of SSH"),
        (key(&[]), "its key is cut short"),
        (key(&[b"ssh-ed25519"]), "its key makes no sense"),
        (key(&[b"ssh-ed25519", &[0; 31]]), "its key makes no sense"),
        (key(&[b"ssh-ed25519", &[0; 32], b""]), "its key makes no sense"),
        (key(&[b"sk-ssh-ed25519@openssh.com", &[0; 32]]), "its key makes no sense"),
        (key(&[b"ssh-dss", b"1"]), "type ssh-dss"),
        (key(&[b"ssh-ed25519-cert-v01@openssh.com"]), "type ssh-ed25519-cert-v01@openssh.com"),
        (key(&[b"ecdsa-sha2-nistp521"]), "type ecdsa-sha2-nistp521"),
        (key(&[b"a\nb"]), "type a\\nb"),
        (key(&[b"ecdsa-sha2-nistp256", b"nistp384", &[4; 65]]), "its key makes no sense"),
        (key(&[b"ecdsa-sha2-nistp256", b"nistp256", &[4; 64]]), "its key makes no sense"),
        (key(&[b"ecdsa-sha2-nistp256", b"nistp256", &[2; 65]]), "its key makes no sense"),
        (key(&[b"ssh-rsa", b"\x03", b"\x7f"]), "ssh-rsa with 7 bits"),
        (key(&[b"ssh-rsa", b"\x03", &[0x7f; 255]]), "ssh-rsa with 2039 bits"),
        (key(&[b"ssh-rsa", b"\x03", &[0x7f; 256]]), "ssh-rsa with 2047 bits"),
        (key(&[b"ssh-rsa", b"\x03", &[0x01; 256]]), "ssh-rsa with 2041 bits"),
        (key(&[b"ssh-rsa", b"\x03", &[0x7f; 1025]]), "ssh-rsa with 8199 bits"),
        (key(&[b"ssh-rsa", b"\x03", &[0x80; 256]]), "its key makes no sense"),
        (key(&[b"ssh-rsa", b"", &[0x7f; 257]]), "its key makes no sense"),
        (key(&[b"ssh-rsa", b"\x03", &[0; 256]]), "its key makes no sense"),
        (key(&[b"ssh-rsa", b"\x03", &[0x7f; 257]]), "the hash ssh-ed25519"),
        (key(&[b"ecdsa-sha2-nistp256", b"nistp256", &[4; 65]]), "of another kind"),
    ] {
        let fault = check(&blob).unwrap_err().to_string();
        assert!(fault.contains(words), "{fault}: {words}");
    }
}

#[test]
fn no_changed_byte_and_no_cut_leaves_a_signature_good() {
    for made in [&GOOD, &GOOD_SK] {
        let good = make(made);
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                // Who changes key and signature alike is another signer; a byte is neither.
                assert!(check(&bad).is_err(), "byte {at}, bit {bit}");
            }
            assert!(check(&good[..at]).is_err(), "cut at {at}");
        }
    }
}

#[test]
fn any_bytes_are_read_without_harm() {
    let seed: u64 = std::env::var("HPCRUN_SEED").map_or(1, |seed| seed.parse().unwrap());
    println!("HPCRUN_SEED={seed}");
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = |below: usize| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        usize::try_from(state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % below
    };
    let texts = [
        armoured(&make(&GOOD)).into_bytes(),
        line("namespaces=\"a,b*\",valid-after=\"20200101Z\"").into_bytes(),
    ];
    let blobs = [make(&GOOD), make(&GOOD_SK), key_blob(ED25519)];
    for _ in 0..20_000 {
        let mut text = texts[random(2)].clone();
        let mut blob = blobs[random(3)].clone();
        for bytes in [&mut text, &mut blob] {
            for _ in 0..=random(4) {
                let at = random(bytes.len());
                match random(4) {
                    0 => bytes.truncate(at.max(1)),
                    1 => bytes.insert(at, random(256).try_into().unwrap()),
                    2 => bytes[at] = [0, 255, b'"', b',', b'\n'][random(5)],
                    _ => bytes[at] = random(256).try_into().unwrap(),
                }
            }
        }
        let _ = Signature::parse_all(&text);
        let _ = Signers::parse("signers", &String::from_utf8_lossy(&text));
        if let Ok(key) = check(&blob) {
            assert_eq!(key, PublicKey::parse(&key_blob(key.type_name())).unwrap());
        }
        let _ = PublicKey::parse(&blob);
    }
}

#[test]
fn a_new_signature_takes_the_place_of_one_of_its_key() {
    let read = |made: &Made<'_>| Signature::parse_all(armoured(&make(made)).as_bytes()).unwrap().remove(0);
    let (plain, token) = (read(&GOOD), read(&GOOD_SK));
    let both = with(vec![plain.clone()], token.clone());
    assert_eq!(both, [plain.clone(), token.clone()]);
    let newer = read(&Made { hash: "sha256", ..GOOD });
    assert_eq!(with(both, newer.clone()), [token, newer]);
    // Of a type that nobody knows here it stays.
    let unknown = blob(&GOOD, &strings(&[b"future"]), b"");
    let unknown = Signature::parse_all(armoured(&unknown).as_bytes()).unwrap().remove(0);
    assert_eq!(with(vec![unknown.clone()], plain.clone()), [unknown, plain]);
}

/// A line of a list of signers with [`pair`]'s key.
fn line(options: &str) -> String {
    format!("ops@example.org {options} ssh-ed25519 {} a comment", STANDARD.encode(key_blob(ED25519)))
}

fn judge(text: &str, now: i64) -> Result<String, Fault> {
    let signers = Signers::parse("signers", text).unwrap();
    signers.judge(&PublicKey::parse(&key_blob(ED25519)).unwrap(), now).map(str::to_owned)
}

#[test]
fn who_may_sign_and_when() {
    const DAY: i64 = 86_400;
    // 2020-02-29
    const LEAP: i64 = 18_321 * DAY;
    let at = || "signers:1".to_owned();
    for (options, now, expected) in [
        ("", 0, Ok(())),
        ("namespaces=\"hpcrun-image\"", 0, Ok(())),
        ("namespaces=\"git,hpcrun-*\"", 0, Ok(())),
        ("namespaces=\"*\"", 0, Ok(())),
        ("namespaces=\"hpcrun?image\"", 0, Ok(())),
        ("NameSpaces=\"*-*\"", 0, Ok(())),
        ("namespaces=\"git\"", 0, Err(Fault::OtherNamespaces(at()))),
        ("namespaces=\"hpcrun-imag\"", 0, Err(Fault::OtherNamespaces(at()))),
        ("namespaces=\"Hpcrun-image\"", 0, Err(Fault::OtherNamespaces(at()))),
        ("namespaces=\"*,!hpcrun-image\"", 0, Err(Fault::OtherNamespaces(at()))),
        ("namespaces=\"!git\"", 0, Err(Fault::OtherNamespaces(at()))),
        ("valid-after=\"20200229Z\"", LEAP, Ok(())),
        ("valid-after=\"20200229Z\"", LEAP - 1, Err(Fault::NotYet(at()))),
        ("valid-before=\"20200229Z\"", LEAP, Ok(())),
        ("valid-before=\"20200229Z\"", LEAP + 1, Err(Fault::Expired(at()))),
        ("valid-after=\"202002290130Z\"", LEAP + 5400, Ok(())),
        ("valid-after=\"20200229013001Z\"", LEAP + 5400, Err(Fault::NotYet(at()))),
        ("valid-after=\"20200229Z\",valid-before=\"20200301Z\"", LEAP + DAY, Ok(())),
        ("valid-after=\"20200229Z\",valid-before=\"20200301Z\"", LEAP + DAY + 1, Err(Fault::Expired(at()))),
        ("valid-before=\"20200301Z\",namespaces=\"git\"", LEAP, Err(Fault::OtherNamespaces(at()))),
    ] {
        let expected = expected.map(|()| "ops@example.org".to_owned());
        assert_eq!(judge(&line(options), now), expected, "{options} at {now}");
    }
    // Of several lines with the key one that lets it is enough.
    assert_eq!(
        judge(&format!("{}\n{}\n", line("valid-before=\"20200101Z\""), line("")), LEAP).as_deref(),
        Ok("ops@example.org")
    );
    assert_eq!(judge("# nobody\n\n \t\r\n", 0), Err(Fault::NotListed("signers".to_owned())));
    let key = line("").split_once(' ').unwrap().1.to_owned();
    for (name, shown) in [("\"a b\"", "a b"), ("*@example.org,root", "*@example.org,root"), ("\tops", "ops")]
    {
        assert_eq!(judge(&format!("  {name}\t{key}\r\n"), 0).as_deref(), Ok(shown));
    }
    assert_eq!(
        Signers::parse("s", &format!("{}\n{}", line(""), line("namespaces=\"x\""))).unwrap().count(LEAP),
        (1, 1)
    );
}

#[test]
fn lines_that_are_not_understood() {
    let key = STANDARD.encode(key_blob(ED25519));
    let token = STANDARD.encode(key_blob(SK_ED25519));
    for (text, words) in [
        ("ops".to_owned(), "neither a key type nor an option"),
        ("ops ssh-ed25519".to_owned(), "there is no key"),
        ("ops ssh-ed25519 A".to_owned(), "no base64"),
        ("ops ssh-ed25519 AAAA".to_owned(), "makes no sense"),
        (format!("ops ssh-ed25519 {token}"), "the key is of the type sk-ssh-ed25519@openssh.com"),
        (format!("ops ssh-rsa {key}"), "the key is of the type ssh-ed25519"),
        (format!("ssh-ed25519 {key}"), "neither a key type nor an option"),
        (format!("ops ssh-ed25519-cert-v01@openssh.com {key}"), "certificates are not supported"),
        (format!("ops cert-authority ssh-ed25519 {key}"), "cert-authority is not supported"),
        (format!("ops CERT-AUTHORITY,namespaces=\"a\" ssh-ed25519 {key}"), "cert-authority is not supported"),
        (format!("ops namespace=\"a\" ssh-ed25519 {key}"), "\"namespace\" is neither"),
        (format!("ops namespaces=a ssh-ed25519 {key}"), "write namespaces="),
        (format!("ops namespaces ssh-ed25519 {key}"), "write namespaces="),
        (format!("ops namespaces=\"\" ssh-ed25519 {key}"), "empty name"),
        (format!("ops namespaces=\"a,,b\" ssh-ed25519 {key}"), "empty name"),
        (format!("ops namespaces=\"!\" ssh-ed25519 {key}"), "empty name"),
        (format!("ops namespaces=\"a\",namespaces=\"b\" ssh-ed25519 {key}"), "there twice"),
        (format!("ops namespaces=\"a\", ssh-ed25519 {key}"), "\"\" is neither"),
        (format!("ops namespaces=\"a\", valid-after=\"20200101Z\" ssh-ed25519 {key}"), "\"\" is neither"),
        (format!("ops namespaces=\"a\" valid-after=\"20200101Z\" ssh-ed25519 {key}"), "joined by commas"),
        (format!("ops namespaces=\"a\"x ssh-ed25519 {key}"), "\"x\" follows"),
        (format!("ops namespaces=\"a ssh-ed25519 {key}"), "quotation mark is not closed"),
        (format!("\"ops ssh-ed25519 {key}"), "quotation mark is not closed"),
        (format!("\"\" ssh-ed25519 {key}"), "names nobody"),
        (format!("a,,b ssh-ed25519 {key}"), "names nobody"),
        (format!("*,!ops ssh-ed25519 {key}"), "names nobody"),
        (format!("a\"b\"c ssh-ed25519 {key}"), "character that no name has"),
        (format!("a\u{7}b ssh-ed25519 {key}"), "character that no name has"),
        (format!("ops valid-after=\"20200229Z\",valid-before=\"20200229Z\" ssh-ed25519 {key}"), "not after"),
    ] {
        let error = Signers::parse("list", &format!("# first\n{text}\n")).unwrap_err();
        assert_eq!((error.file.as_str(), error.line), ("list", 2), "{text}");
        assert!(error.what.contains(words), "{text}: {error}");
    }
    for time in [
        "20200229",
        "2020",
        "20200229T00Z",
        "202002290000000Z",
        "20190229Z",
        "20200001Z",
        "20201301Z",
        "20200100Z",
        "20200132Z",
        "202001012400Z",
        "202001010060Z",
        "20200101000060Z",
        "+2020101Z",
        "19691231Z",
        "",
        "Z",
        "20200229z",
        "2020022901Z",
    ] {
        let error = Signers::parse("list", &line(&format!("valid-before=\"{time}\""))).unwrap_err();
        assert!(error.what.contains("with the Z for UTC"), "{time}: {error}");
    }
}
