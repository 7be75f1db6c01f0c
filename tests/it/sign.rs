//! Signatures of image files: made by `hpcrun sign`, required by a policy, and what `ssh-keygen` thinks of them.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::busybox_image::{archive, assert_fails, image};
use crate::support::{Random, TEST_USER, as_user, hpcrun, is_root, run, scratch, seed, stdout, text};

/// A site of root's that requires signatures, with its signers; and a directory of the user's.
struct Site {
    dir: tempfile::TempDir,
    own: tempfile::TempDir,
}

impl Site {
    fn new() -> Site {
        assert!(is_root(), "a policy file is root's: these tests want root");
        let dir = tempfile::Builder::new().prefix("hpcrun-site-").tempdir_in("/tmp").unwrap();
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let site = Site { dir, own: scratch() };
        let signers = site.dir.path().join("signers");
        site.write(
            "policy.toml",
            &format!("[images]\nrequire_signature = true\nsigners = \"{}\"\n", signers.display()),
        );
        site.write("signers", "# nobody yet\n");
        site
    }

    /// One with a list of one signer, whose private key is the second value.
    fn with_signer() -> (Site, PathBuf) {
        let site = Site::new();
        let key = site.key("key", &["ed25519"]);
        site.write("signers", &listed(&key, ""));
        (site, key)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    }

    fn hpcrun(&self, args: &[&str]) -> Command {
        let mut command = hpcrun(args);
        command.env("HPCRUN_POLICY", self.dir.path().join("policy.toml"));
        command
    }

    fn exec(&self, image: &Path, command: &[&str]) -> Output {
        run(self.hpcrun(&["exec", "--no-home"]).arg(image).args(command))
    }

    #[track_caller]
    fn runs(&self, image: &Path) {
        let output = self.exec(image, &["cat", "/data/text"]);
        assert_eq!(text(&output.stdout), "no program\n", "{}", text(&output.stderr));
    }

    #[track_caller]
    fn refuses(&self, image: &Path, words: &[&str]) {
        let mut expected = vec!["refused by site policy", "policy.toml:2 [images] require_signature"];
        expected.extend(words);
        assert_fails(&self.exec(image, &["true"]), 122, &expected);
    }

    /// A copy of the image that belongs to the user.
    fn image(&self, name: &str) -> PathBuf {
        let path = self.own.path().join(name);
        fs::copy(image(), &path).unwrap();
        give(&path);
        path
    }

    /// A new key of the user's; gives its private file.
    fn key(&self, name: &str, kind: &[&str]) -> PathBuf {
        let path = self.own.path().join(name);
        stdout(
            as_user("ssh-keygen").args(["-q", "-N", "", "-C", name, "-t"]).args(kind).arg("-f").arg(&path),
        );
        path
    }
}

fn give(path: &Path) {
    let user = nix::unistd::User::from_name(TEST_USER).unwrap().unwrap();
    chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
}

/// The line of a list of signers for this key.
fn listed(key: &Path, options: &str) -> String {
    let public = fs::read_to_string(key.with_extension("pub")).unwrap();
    format!("ops@example.org {options} {public}")
}

fn sign(key: &Path, image: &Path) -> Output {
    run(hpcrun(["sign", "--key"]).arg(key).arg(image))
}

#[track_caller]
fn signed(key: &Path, image: &Path) -> String {
    let output = sign(key, image);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stderr)
}

/// The signatures that lie in a file, as they can be found without knowing its format.
fn armours(image: &Path) -> Vec<String> {
    let bytes = fs::read(image).unwrap();
    let (begin, end) = (b"-----BEGIN SSH SIGNATURE-----", b"-----END SSH SIGNATURE-----\n");
    let find = |part: &[u8], from: usize| {
        bytes[from..].windows(part.len()).position(|at| at == part).map(|at| at + from)
    };
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(start) = find(begin, at) {
        at = find(end, start).unwrap() + end.len();
        found.push(text(&bytes[start..at]));
    }
    found
}

/// What `ssh-keygen -Y verify` says of a signature of `message`.
fn verified_by_openssh(signers: &Path, signature: &Path, message: &str) -> Output {
    let mut child = Command::new("ssh-keygen")
        .args(["-Y", "verify", "-I", "ops@example.org", "-n", "hpcrun-image", "-f"])
        .arg(signers)
        .arg("-s")
        .arg(signature)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(message.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn inspected(site: &Site, image: &Path) -> Value {
    serde_json::from_str(&stdout(site.hpcrun(&["inspect", "--json"]).arg(image))).unwrap()
}

#[test]
fn keys_of_every_type_sign_and_openssh_agrees() {
    let site = Site::new();
    let own = site.image("own.sqsh");
    let kinds: [&[&str]; 5] = [
        &["ed25519"],
        &["ecdsa", "-b", "256"],
        &["ecdsa", "-b", "384"],
        &["rsa", "-b", "2048"],
        &["rsa", "-b", "4096"],
    ];
    let message = stdout(hpcrun(["sign", "--message"]).arg(&own));
    let signers = site.dir.path().join("signers");
    let signature = site.own.path().join("signature");
    for (number, kind) in kinds.iter().enumerate() {
        let key = site.key(&format!("key{number}"), kind);
        signed(&key, &own);
        assert_eq!(armours(&own).len(), number + 1, "others are kept");
        site.write("signers", &listed(&key, "namespaces=\"hpcrun-image\""));
        site.runs(&own);
        // Signing did not change what is signed, and OpenSSH takes what is in the file.
        assert_eq!(stdout(hpcrun(["sign", "--message"]).arg(&own)), message);
        fs::write(&signature, armours(&own).pop().unwrap()).unwrap();
        let verified = verified_by_openssh(&signers, &signature, &message);
        assert!(verified.status.success(), "{kind:?} {}", text(&verified.stderr));
        // The fingerprint is OpenSSH's.
        let shown = &inspected(&site, &own)["signatures"][number];
        let fingerprint = stdout(Command::new("ssh-keygen").arg("-lf").arg(key.with_extension("pub")));
        assert_eq!(fingerprint.split(' ').nth(1), shown["fingerprint"].as_str());
        assert_eq!(shown["signer"], "ops@example.org");
        // The same key again replaces its own.
        signed(&key, &own);
        assert_eq!(armours(&own).len(), number + 1);
    }
    // The first four no longer count.
    let shown = stdout(site.hpcrun(&["inspect"]).arg(&own));
    assert_eq!(shown.matches("does not count: its key is not listed").count(), 4, "{shown}");
    assert_eq!(shown.matches("good, of ops@example.org").count(), 1, "{shown}");
    let plan = stdout(site.hpcrun(&["exec", "--explain"]).arg(&own).arg("true"));
    assert!(plan.contains("image is signed by ops@example.org (ssh-rsa SHA256:"), "{plan}");
    assert!(plan.contains("policy.toml:2"), "{plan}");
    assert!(run(hpcrun(["verify"]).arg(&own)).status.success());
    stdout(Command::new("unsquashfs").arg("-s").arg(&own));
}

#[test]
fn signatures_that_openssh_made_elsewhere_are_added() {
    let site = Site::new();
    let own = site.image("own.sqsh");
    let message = site.own.path().join("message");
    fs::write(&message, stdout(hpcrun(["sign", "--message"]).arg(&own))).unwrap();
    let key = site.key("key", &["rsa"]);
    site.write("signers", &listed(&key, ""));
    let add = |image: &Path| run(hpcrun(["sign", "--add"]).arg(message.with_extension("sig")).arg(image));
    for (options, good) in [
        (&["-n", "hpcrun-image", "-O", "hashalg=sha256"][..], true),
        (&["-n", "hpcrun-image", "-O", "hashalg=sha512"], true),
        (&["-n", "file"], false),
    ] {
        let _ = fs::remove_file(message.with_extension("sig"));
        let made = as_user("ssh-keygen")
            .args(["-q", "-Y", "sign", "-f"])
            .arg(&key)
            .args(options)
            .arg(&message)
            .output();
        let made = made.unwrap();
        fs::rename(site.own.path().join("message.sig"), message.with_extension("sig")).unwrap();
        assert!(made.status.success(), "{}", text(&made.stderr));
        let added = add(&own);
        if good {
            assert!(added.status.success(), "{}", text(&added.stderr));
            site.runs(&own);
        } else {
            assert_fails(&added, 125, &["cannot sign", "was made for \"file\""]);
        }
    }
    assert_eq!(armours(&own).len(), 1);
    // Not of this image.
    let other = site.own.path().join("other.sqsh");
    stdout(
        hpcrun(["convert", "--block-size", "64K"])
            .arg(format!("docker-archive:{}", archive().display()))
            .arg(&other),
    );
    stdout(as_user("ssh-keygen").args(["-q", "-Y", "sign", "-n", "hpcrun-image", "-f"]).arg(&key).arg({
        let again = site.own.path().join("again");
        fs::copy(&message, &again).unwrap();
        again
    }));
    let moved = run(hpcrun(["sign", "--add"]).arg(site.own.path().join("again.sig")).arg(&other));
    assert_fails(&moved, 125, &["it is not of this image"]);
    // What is no signature, and what cannot be both.
    assert_fails(&run(hpcrun(["sign", "--add"]).arg(&message).arg(&own)), 125, &["it has no armour"]);
    assert_fails(&run(hpcrun(["sign", "--add"]).arg(&own).arg(&own).arg(&other)), 125, &["of one image"]);
    assert_fails(&run(hpcrun(["sign"]).arg(&own)), 125, &["--key"]);
}

#[test]
fn each_ground_for_a_refusal() {
    let site = Site::new();
    let own = site.image("own.sqsh");
    let (key, other) = (site.key("key", &["ed25519"]), site.key("other", &["ed25519"]));
    site.refuses(&own, &["which is not signed", "hpcrun sign --key"]);
    signed(&key, &own);
    site.refuses(&own, &["its key is not listed in", "ssh-ed25519 SHA256:"]);
    for (options, words) in [
        ("namespaces=\"git,!hpcrun-image\"", "listed for other namespaces"),
        ("valid-before=\"20200101Z\"", "has expired, as"),
        ("valid-after=\"29990101Z\"", "valid later only"),
    ] {
        site.write("signers", &format!("\n{}", listed(&key, options)));
        site.refuses(&own, &[words, "signers:2"]);
    }
    site.write(
        "signers",
        &listed(&key, "valid-after=\"20200101Z\",valid-before=\"299912312359Z\",namespaces=\"h*\""),
    );
    site.runs(&own);
    // The key is taken out of the list, another comes in.
    site.write("signers", &listed(&other, ""));
    site.refuses(&own, &["not listed"]);
    signed(&other, &own);
    site.runs(&own);
    // What is wrong with a listed key says more than that another is not listed, whichever came last.
    site.write("signers", &listed(&key, "valid-before=\"20200101Z\""));
    site.refuses(&own, &["has expired, as"]);
    let doctor = run(&mut site.hpcrun(&["doctor"]));
    assert!(text(&doctor.stdout).contains("(1 that may not)"), "{}", text(&doctor.stdout));
    // A list that cannot be trusted or understood stops every launch.
    let signers = site.dir.path().join("signers");
    site.write("signers", &format!("{}*.example.org cert-authority ssh-ed25519 AAAA\n", listed(&other, "")));
    assert_fails(&site.exec(&own, &["true"]), 125, &["cannot check signatures", "signers:2: cert-authority"]);
    site.write("signers", &listed(&other, ""));
    fs::set_permissions(&signers, PermissionsExt::from_mode(0o666)).unwrap();
    let refused = site.exec(&own, &["true"]);
    assert_fails(&refused, 125, &["list of signers cannot be trusted", "can be written by others"]);
    // Those who only show say it too.
    let policy = fs::read_to_string(site.dir.path().join("policy.toml")).unwrap();
    site.write("policy.toml", &policy.replace("true", "false"));
    for verb in ["inspect", "verify"] {
        let shown = run(site.hpcrun(&[verb]).arg(&own));
        let words = [text(&shown.stdout), text(&shown.stderr)].concat();
        assert!(shown.status.success() && words.contains("nobody known: list of signers cannot"), "{words}");
    }
    site.write("policy.toml", &policy);
    give(&signers);
    fs::set_permissions(&signers, PermissionsExt::from_mode(0o644)).unwrap();
    assert_fails(&site.exec(&own, &["true"]), 125, &["not to root"]);
    fs::remove_file(&signers).unwrap();
    assert_fails(&site.exec(&own, &["true"]), 125, &["does not exist", "policy.toml:2"]);
    let doctor = run(&mut site.hpcrun(&["doctor"]));
    assert!(text(&doctor.stdout).contains("every launch is refused"), "{}", text(&doctor.stdout));
    site.write("signers", "");
    site.refuses(&own, &["not listed"]);
    assert!(text(&run(&mut site.hpcrun(&["doctor"])).stdout).contains("lists no key"));
    site.write("signers", &listed(&other, ""));
    assert!(text(&run(&mut site.hpcrun(&["doctor"])).stdout).contains("1 in "));
    // A directory on the way that only holds a link is in somebody's hands as well.
    let link = site.own.path().join("link");
    std::os::unix::fs::symlink(site.dir.path(), &link).unwrap();
    let through = |path: &Path| {
        let signers = path.join("signers");
        let policy = format!("[images]\nrequire_signature = true\nsigners = \"{}\"\n", signers.display());
        site.write("policy.toml", &policy);
        site.exec(&own, &["cat", "/data/text"])
    };
    let directory = site.own.path().display().to_string();
    assert_fails(&through(&link), 125, &["list of signers cannot be trusted", &directory]);
    // Root's link in root's directory leads where root wants.
    let link = site.dir.path().join("link");
    std::os::unix::fs::symlink(".", &link).unwrap();
    let output = through(&link);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn only_what_was_checked_is_signed() {
    let site = Site::new();
    let key = site.key("key", &["ed25519"]);
    let own = site.image("own.sqsh");
    signed(&key, &own);
    let signature = site.own.path().join("signature");
    fs::write(&signature, armours(&own).remove(0)).unwrap();
    // The list of chunk hashes and all else behind the squashfs are as they were.
    let damaged = site.image("damaged.sqsh");
    let mut bytes = fs::read(&damaged).unwrap();
    let used = u64::from_le_bytes(bytes[40..48].try_into().unwrap()) as usize;
    bytes[used / 2] ^= 1;
    fs::write(&damaged, &bytes).unwrap();
    let add = || {
        let mut command = hpcrun(["sign", "--add"]);
        command.arg(&signature);
        command
    };
    for mut command in [add(), hpcrun(["sign", "--message"]), {
        let mut command = hpcrun(["sign", "--key"]);
        command.arg(&key);
        command
    }] {
        let output = run(command.arg(&damaged));
        assert_fails(&output, 1, &["damaged.sqsh is damaged: bytes", "convert the image again"]);
        assert_eq!(text(&output.stdout), "");
    }
    assert!(fs::read(&damaged).unwrap() == bytes, "nothing was written");
    // Of a good file they work.
    let good = site.image("good.sqsh");
    assert!(run(add().arg(&good)).status.success());
}

/// A directory with an `ssh-keygen` that runs `before`, once, and then the real one.
fn slow_keygen(site: &Site, before: &str) -> PathBuf {
    let bin = tempfile::Builder::new().prefix("bin").tempdir_in(site.own.path()).unwrap().keep();
    fs::set_permissions(&bin, PermissionsExt::from_mode(0o777)).unwrap();
    let program = bin.join("ssh-keygen");
    let path = std::env::var("PATH").unwrap();
    let text =
        format!("#!/bin/sh\nset -e\nexport PATH='{path}'\n{before} </dev/null\nexec ssh-keygen \"$@\"\n");
    fs::write(&program, text).unwrap();
    fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    bin
}

#[test]
fn what_happens_while_a_passphrase_is_typed_is_not_lost() {
    let site = Site::new();
    let (first, second) = (site.key("first", &["ed25519"]), site.key("second", &["ed25519"]));
    let own = site.image("own.sqsh");
    let program = crate::support::binary().display();
    let slowly = |before: &str| {
        let path = format!("{}:{}", slow_keygen(&site, before).display(), std::env::var("PATH").unwrap());
        run(hpcrun(["sign", "--key"]).arg(&first).arg(&own).env("PATH", path))
    };
    let output = slowly(&format!("'{program}' sign --key '{}' '{}'", second.display(), own.display()));
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(armours(&own).len(), 2, "{}", text(&output.stderr));
    // Another image in its place is not what was to be signed.
    let other = site.own.path().join("other.sqsh");
    let source = format!("docker-archive:{}", archive().display());
    stdout(hpcrun(["convert", "--block-size", "64K"]).arg(source).arg(&other));
    let output = slowly(&format!("cp '{}' '{}'", other.display(), own.display()));
    assert_fails(&output, 125, &["meanwhile it became another image"]);
    assert!(fs::read(&own).unwrap() == fs::read(&other).unwrap());
}

#[test]
fn signatures_that_cannot_be_read_are_in_nobodys_way() {
    let (site, key) = Site::with_signer();
    let own = site.image("own.sqsh");
    signed(&key, &own);
    let mut bytes = fs::read(&own).unwrap();
    let (_, offset, _) = section(&bytes, 6).unwrap();
    bytes[offset] = b'x';
    mend(&mut bytes);
    fs::write(&own, &bytes).unwrap();
    let words = "the section of signatures is malformed";
    site.refuses(&own, &["whose signatures cannot be checked", words]);
    let shown = stdout(hpcrun(["inspect"]).arg(&own));
    assert!(shown.contains(&format!("signatures  cannot be checked: {words}")), "{shown}");
    assert!(inspected(&site, &own)["signatures_fault"].as_str().unwrap().contains(words));
    let output = run(hpcrun(["verify"]).arg(&own));
    assert!(output.status.success() && text(&output.stderr).contains(words), "{}", text(&output.stderr));
    assert_fails(&run(site.hpcrun(&["verify", "-q"]).arg(&own)), 1, &[words, "--fresh"]);
    assert_fails(&sign(&key, &own), 125, &[words, "--fresh"]);
    stdout(hpcrun(["sign", "--fresh", "--key"]).arg(&key).arg(&own));
    site.runs(&own);
    // It takes the place of good ones too.
    signed(&site.key("other", &["ed25519"]), &own);
    assert_eq!(armours(&own).len(), 2);
    stdout(hpcrun(["sign", "--fresh", "--key"]).arg(&key).arg(&own));
    assert_eq!(armours(&own).len(), 1);
}

#[test]
fn every_field_of_the_table_is_signed() {
    let (site, key) = Site::with_signer();
    let own = site.image("own.sqsh");
    let plain = fs::read(&own).unwrap();
    let (entry, ..) = section(&plain, 5).unwrap();
    let forged = |at: usize, good: &[u8]| {
        let mut bytes = good.to_vec();
        bytes[at] ^= 1;
        mend(&mut bytes);
        fs::write(&own, &bytes).unwrap();
    };
    for field in [4, 24] {
        fs::write(&own, &plain).unwrap();
        signed(&key, &own);
        let good = fs::read(&own).unwrap();
        let (signed_entry, ..) = section(&good, 5).unwrap();
        forged(signed_entry + field, &good);
        site.refuses(&own, &["it is not of this image"]);
        // One that was there before is signed, and kept by what is added later.
        forged(entry + field, &plain);
        signed(&key, &own);
        signed(&site.key(&format!("other{field}"), &["ed25519"]), &own);
        site.runs(&own);
    }
    // What this version knows nothing of, or has two of, it does not sign.
    forged(entry, &plain);
    assert_fails(&sign(&key, &own), 125, &["two sections of kind 4"]);
    let mut bytes = plain.clone();
    bytes[entry] = 9;
    mend(&mut bytes);
    fs::write(&own, &bytes).unwrap();
    assert_fails(&sign(&key, &own), 125, &["a section of kind 9, which this hpcrun does not know"]);
}

#[test]
fn ranks_share_only_the_data_images_that_they_judged() {
    let (site, key) = Site::with_signer();
    let (own, data) = (site.image("own.sqsh"), site.image("data.sqsh"));
    signed(&key, &own);
    signed(&key, &data);
    let bind = format!("{}:/data2:image", data.display());
    let rank = |number: &str, script: &str| {
        let mut command = site.hpcrun(&["exec", "--no-home", "--bind", &bind]);
        command.envs([("SLURM_STEP_ID", "6"), ("SLURM_NTASKS", "3"), ("SLURM_LOCALID", number)]);
        command.env("SLURM_JOB_ID", std::process::id().to_string());
        command.arg(&own).args(["sh", "-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    };
    let tell = "readlink /proc/self/ns/mnt";
    let mut first = rank("0", &format!("echo up; read go; {tell}")).spawn().unwrap();
    let mut up = [0; 3];
    std::io::Read::read_exact(first.stdout.as_mut().unwrap(), &mut up).unwrap();
    let second = stdout(&mut rank("1", tell));
    // The same path, another file.
    signed(&key, &data);
    let third = stdout(&mut rank("2", tell));
    first.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let first = text(&first.wait_with_output().unwrap().stdout);
    assert_eq!(first, second, "they share");
    assert_ne!(first, third, "it would be shown what it has not judged");
}

#[test]
fn what_cannot_be_signed_is_refused() {
    let (site, key) = Site::with_signer();
    let bytes = fs::read(image()).unwrap();
    let used = u64::from_le_bytes(bytes[40..48].try_into().unwrap()) as usize;
    let bare = site.own.path().join("bare.sqsh");
    fs::write(&bare, &bytes[..used]).unwrap();
    give(&bare);
    site.refuses(&bare, &["no image file of hpcrun's", "convert it, then", "hpcrun convert squashfs:"]);
    let hint = format!("hpcrun convert squashfs:{}", bare.display());
    assert_fails(&sign(&key, &bare), 125, &["has no hpcrun trailer", &hint]);
    // Converted it can be.
    let converted = site.own.path().join("converted.sqsh");
    stdout(hpcrun(["convert"]).arg(format!("squashfs:{}", bare.display())).arg(&converted));
    signed(&key, &converted);
    site.runs(&converted);
    // As data it is judged as well.
    let bind = format!("{}:/data2:image", bare.display());
    let refused = run(site.hpcrun(&["exec", "--bind", &bind]).arg(&converted).arg("true"));
    assert_fails(&refused, 122, &["bare.sqsh", "policy.toml:2"]);
    // Somebody else's file, and one that is write-protected, as for 'hpcrun trace'.
    let foreign = site.dir.path().join("foreign.sqsh");
    fs::copy(image(), &foreign).unwrap();
    assert_fails(&sign(&key, &foreign), 125, &["belongs to user 0"]);
    let own = site.image("own.sqsh");
    fs::set_permissions(&own, PermissionsExt::from_mode(0o444)).unwrap();
    assert_fails(&sign(&key, &own), 125, &["write-protected"]);
    // ssh-keygen says first why.
    let missing = sign(&site.own.path().join("none"), &converted);
    assert!(text(&missing.stderr).contains("ssh-keygen did not sign with"), "{}", text(&missing.stderr));
    assert_eq!(missing.status.code(), Some(125));
}

/// The section table of an image file: offset of the table and number of sections.
fn table(bytes: &[u8]) -> (usize, usize) {
    let footer = bytes.len() - 128;
    let number =
        |at: usize| u64::from_le_bytes(bytes[footer + at..footer + at + 8].try_into().unwrap()) as usize;
    (number(32), number(40) & 0xffff_ffff)
}

/// The place of the first section of this kind: its entry, its offset and its length.
fn section(bytes: &[u8], kind: u32) -> Option<(usize, usize, usize)> {
    let (table, count) = table(bytes);
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let mut entries = (0..count).map(|entry| table + entry * 64);
    let entry = entries.find(|at| bytes[*at..at + 4] == kind.to_le_bytes())?;
    Some((entry, number(entry + 8), number(entry + 16)))
}

/// Makes the digests of a changed file right again, all but the signature: what an attacker would do.
fn mend(bytes: &mut [u8]) {
    use sha2::{Digest as _, Sha256};
    let (table, count) = table(bytes);
    for entry in (0..count).map(|entry| table + entry * 64) {
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        let (offset, length) = (number(entry + 8), number(entry + 16));
        let digest = Sha256::digest(&bytes[offset..offset + length]);
        bytes[entry + 32..entry + 64].copy_from_slice(&digest);
    }
    let footer = bytes.len() - 128;
    let digest = Sha256::digest(&bytes[table..footer]);
    bytes[footer + 64..footer + 96].copy_from_slice(&digest);
    let digest = Sha256::digest(&bytes[footer..footer + 96]);
    bytes[footer + 96..].copy_from_slice(&digest);
}

#[test]
fn what_was_not_signed_is_never_run() {
    let (site, key) = Site::with_signer();
    let own = site.image("own.sqsh");
    signed(&key, &own);
    let good = fs::read(&own).unwrap();
    let wrong = ["it is not of this image, or damaged"];
    let forged = |bytes: &[u8]| fs::write(&own, bytes).unwrap();
    // A byte of manifest, config, provenance, chunk hashes and facts, with all digests put right.
    for kind in 1..=5 {
        let Some((_, offset, length)) = section(&good, kind) else { continue };
        let mut bytes = good.clone();
        // Of the config a letter of a value, so that it is JSON still.
        let at = match kind {
            2 => good[offset..offset + length].windows(5).position(|at| at == b"hello").unwrap(),
            3 => good[offset..offset + length].windows(6).position(|at| at == b"docker").unwrap(),
            // Readers ignore this one.
            4 => 28,
            5 => good[offset..offset + length].windows(7).position(|at| at == b"version").unwrap(),
            _ => length / 2,
        };
        bytes[offset + at] ^= 1;
        mend(&mut bytes);
        forged(&bytes);
        site.refuses(&own, &wrong);
    }
    // The length of the squashfs, and a section that became another.
    let mut bytes = good.clone();
    let footer = bytes.len() - 128;
    bytes[footer + 48] ^= 8;
    mend(&mut bytes);
    forged(&bytes);
    assert!(!site.exec(&own, &["true"]).status.success());
    for (from, to) in [(5, 9), (4, 9), (5, 7), (6, 9)] {
        let Some((entry, ..)) = section(&good, from) else { continue };
        let mut bytes = good.clone();
        bytes[entry..entry + 4].copy_from_slice(&u32::to_le_bytes(to));
        mend(&mut bytes);
        forged(&bytes);
        let status = site.exec(&own, &["true"]).status.code();
        assert_eq!(status, Some(122), "{from} as {to}");
    }
    // Another squashfs with the trailer of the signed image.
    let random = &mut Random::new(seed());
    let used = u64::from_le_bytes(good[40..48].try_into().unwrap());
    for _ in 0..20 {
        forged(&good);
        let at = random.below(used);
        let file = fs::File::options().write(true).open(&own).unwrap();
        file.write_all_at(&[!good[at as usize]], at).unwrap();
        let output =
            site.exec(&own, &["sh", "-c", "cat /data/large /data/text /work/note /bin/busybox | wc -c"]);
        let whole = site_bytes();
        if output.status.success() {
            // The byte is in a part that nobody reads, or reading ended with an error.
            let count: u64 = text(&output.stdout).trim().parse().unwrap();
            assert!(count == whole || !output.stderr.is_empty(), "byte {at}: {}", text(&output.stderr));
        }
    }
    forged(&good);
    let (_, offset, _) = section(&good, 6).unwrap();
    for at in [40, 100, 200] {
        let mut bytes = good.clone();
        bytes[offset + at] = if bytes[offset + at] == b'A' { b'B' } else { b'A' };
        mend(&mut bytes);
        forged(&bytes);
        let output = site.exec(&own, &["true"]);
        assert_fails(&output, 122, &["policy.toml:2"]);
    }
    // As good as ever.
    forged(&good);
    site.runs(&own);
    // A line that makes squashfs begin elsewhere does so for no image with hashes.
    let mut bytes = good.clone();
    bytes[..19].copy_from_slice(b"#! run-singularity\n");
    forged(&bytes);
    assert!(!site.exec(&own, &["true"]).status.success());
}

/// Bytes of the files that the test above reads.
fn site_bytes() -> u64 {
    let busybox = fs::metadata("/bin/busybox").unwrap().len();
    crate::busybox_image::LARGE_BYTES as u64 + 11 + 7 + busybox
}

#[test]
fn a_signature_stays_with_its_image_only() {
    let (site, key) = Site::with_signer();
    let own = site.image("own.sqsh");
    signed(&key, &own);
    // A profile may be added later, and go again.
    stdout(site.hpcrun(&["trace"]).arg(&own).args(["cat", "/data/text"]));
    site.runs(&own);
    assert_ne!(inspected(&site, &own)["profile"], Value::Null);
    signed(&key, &own);
    site.runs(&own);
    // One made before the signature is no part of it either.
    let traced = site.image("traced.sqsh");
    stdout(hpcrun(["trace"]).arg(&traced).args(["cat", "/data/text"]));
    let message = stdout(hpcrun(["sign", "--message"]).arg(&traced));
    assert_eq!(message, stdout(hpcrun(["sign", "--message"]).arg(&own)));
    signed(&key, &traced);
    stdout(hpcrun(["trace"]).arg(&traced).args(["cat", "/data/large"]));
    site.runs(&traced);
    // The same layers in other blocks are another image.
    let other = site.own.path().join("other.sqsh");
    let source = format!("docker-archive:{}", archive().display());
    stdout(hpcrun(["convert", "--block-size", "64K"]).arg(source).arg(&other));
    let second = site.key("second", &["ed25519"]);
    signed(&second, &other);
    let mut bytes = fs::read(&other).unwrap();
    let (from, to) = (armours(&own).remove(0), armours(&other).remove(0));
    assert_eq!(from.len(), to.len());
    let (_, offset, length) = section(&bytes, 6).unwrap();
    assert_eq!(length, from.len());
    bytes[offset..offset + length].copy_from_slice(from.as_bytes());
    mend(&mut bytes);
    fs::write(&other, &bytes).unwrap();
    site.refuses(&other, &["it is not of this image, or damaged"]);
    // Of two signatures one that is good is enough.
    signed(&key, &other);
    site.runs(&other);
}

#[test]
fn verify_tells_good_signatures_from_others() {
    let site = Site::new();
    let own = site.image("own.sqsh");
    let key = site.key("key", &["ed25519"]);
    let signers = site.dir.path().join("signers");
    let verify = || run(hpcrun(["verify", "-q", "--signers"]).arg(&signers).arg(&own));
    assert!(run(hpcrun(["verify"]).arg(&own)).status.success());
    assert_fails(&verify(), 1, &["is not signed"]);
    signed(&key, &own);
    assert_fails(&verify(), 1, &["no signature that counts", "not listed"]);
    let output = run(hpcrun(["verify"]).arg(&own));
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("of nobody known"), "{}", text(&output.stderr));
    site.write("signers", &listed(&key, ""));
    assert!(verify().status.success());
    let output = run(site.hpcrun(&["verify"]).arg(&own));
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("good, of ops@example.org"), "{}", text(&output.stderr));
    site.write("signers", "ops ssh-ed25519 AAAA\n");
    assert_fails(&verify(), 125, &["signers:1: the key makes no sense"]);
    // Signing waits for nobody who runs from the file.
    site.write("signers", &listed(&key, ""));
    let mut job = site.hpcrun(&["exec", "--no-home"]);
    let mut job = job.arg(&own).args(["sh", "-c", "echo up; read go; cat /data/text"]);
    job = job.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut job = job.spawn().unwrap();
    let mut first = [0; 3];
    std::io::Read::read_exact(job.stdout.as_mut().unwrap(), &mut first).unwrap();
    signed(&site.key("later", &["ed25519"]), &own);
    job.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let output = job.wait_with_output().unwrap();
    assert_eq!(text(&output.stdout), "no program\n", "{}", text(&output.stderr));
}

#[test]
fn ranks_that_join_are_checked_too() {
    let site = Site::new();
    let own = site.image("own.sqsh");
    let key = site.key("key", &["ed25519"]);
    signed(&key, &own);
    let rank = |number: &str, script: &str| {
        let mut command = site.hpcrun(&["exec", "--no-home"]);
        command.envs([("SLURM_STEP_ID", "5"), ("SLURM_NTASKS", "3"), ("SLURM_LOCALID", number)]);
        command.env("SLURM_JOB_ID", std::process::id().to_string());
        command.arg(&own).args(["sh", "-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    };
    let tell = "readlink /proc/self/ns/mnt";
    assert_fails(&run(&mut rank("0", tell)), 122, &["not listed"]);
    site.write("signers", &listed(&key, ""));
    let mut first = rank("0", &format!("echo up; read go; {tell}")).spawn().unwrap();
    let mut up = [0; 3];
    std::io::Read::read_exact(first.stdout.as_mut().unwrap(), &mut up).unwrap();
    let second = stdout(&mut rank("1", tell));
    site.write("signers", "");
    assert_fails(&run(&mut rank("2", tell)), 122, &["not listed"]);
    first.stdin.take().unwrap().write_all(b"go\n").unwrap();
    assert_eq!(text(&first.wait_with_output().unwrap().stdout), second, "they share");
}

#[test]
fn copies_on_the_node_are_held_against_the_signed_hashes() {
    let site = Site::new();
    let own = site.image("own.sqsh");
    let key = site.key("key", &["ed25519"]);
    signed(&key, &own);
    site.write("signers", &listed(&key, ""));
    let cache = scratch();
    fs::set_permissions(cache.path(), PermissionsExt::from_mode(0o1777)).unwrap();
    let policy = fs::read_to_string(site.dir.path().join("policy.toml")).unwrap();
    let store = format!("[store]\nnode_cache = \"{}\"\nnode_cache_min = 1\n", cache.path().display());
    site.write("policy.toml", &format!("{policy}{store}"));
    let large = crate::busybox_image::LARGE_BYTES.to_string();
    // The server makes the copy while the job runs.
    let find = || {
        let user = fs::read_dir(cache.path()).unwrap().next()?.unwrap().path();
        let names = fs::read_dir(user).unwrap().map(|entry| entry.unwrap().path());
        names.into_iter().find(|path| path.extension().is_none())
    };
    let mut copy = None;
    for _ in 0..20 {
        let output = site.exec(&own, &["sh", "-c", "cat /data/large | wc -c; sleep 1"]);
        assert_eq!(text(&output.stdout).trim(), large, "{}", text(&output.stderr));
        copy = find();
        if copy.is_some() {
            break;
        }
    }
    let copy = copy.expect("a copy");
    // A copy of one's own is trusted otherwise. What is wrong in it comes from the image file.
    fs::set_permissions(&copy, PermissionsExt::from_mode(0o644)).unwrap();
    let file = fs::File::options().write(true).open(&copy).unwrap();
    let used = u64::from_le_bytes(fs::read(&own).unwrap()[40..48].try_into().unwrap());
    let whole = site.exec(&own, &["cat", "/data/large"]).stdout;
    file.write_all_at(&vec![0x55; used as usize - 4096], 4096).unwrap();
    let output = site.exec(&own, &["cat", "/data/large"]);
    assert!(output.status.success() && output.stdout == whole, "{}", text(&output.stderr));
}
