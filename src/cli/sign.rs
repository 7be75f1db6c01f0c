//! `hpcrun sign`: puts a signature of an SSH key into image files.

use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;

use crate::cli::image_file::ImageFile;
use crate::cli::report::{Failure, chain};
use crate::cli::{image_word, output, signatures, site, verify};
use crate::convert::keep;
use crate::image::signature::{self, NAMESPACE, Signature};
use crate::image::trailer::{Contents, Place, SectionKind};

/// The program that knows keys, agents, tokens and passphrases.
const KEYGEN: &str = "ssh-keygen";

/// Arguments of `sign`.
#[derive(Debug, Args)]
pub(crate) struct Sign {
    /// Private key, or a public key whose private half an agent holds
    #[arg(short, long, value_name = "FILE", required_unless_present_any = ["message", "add"])]
    key: Option<PathBuf>,
    /// Add a signature of the message that was made elsewhere, by 'ssh-keygen -Y sign -n hpcrun-image'
    #[arg(long, value_name = "FILE", conflicts_with_all = ["key", "message"])]
    add: Option<PathBuf>,
    /// Print the message to be signed, and change nothing
    #[arg(long, conflicts_with = "key")]
    message: bool,
    /// Put the new signature in the place of all that are there, also of those that cannot be read
    #[arg(long, conflicts_with = "message")]
    fresh: bool,
    /// Image files or names of images
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
}

/// Signs one image after another.
pub(crate) fn run(args: &Sign, quiet: bool) -> Result<u8, Failure> {
    if args.key.is_none() && args.images.len() > 1 {
        return Err(Failure::plain("a message and its signature are of one image")
            .hint("name one image; with --key there may be more"));
    }
    let policy = site::policy()?;
    for image in &args.images {
        let target = Target::open(image_word::locate(image, &policy)?)?;
        if !args.message {
            target.check()?;
        }
        target.verify()?;
        let signature = match (&args.key, &args.add) {
            (Some(key), _) => make(key, &target.message)?,
            (None, Some(file)) => read(file)?,
            (None, None) => return output::data(target.message.as_bytes()),
        };
        let key = target.again()?.add(signature, args.fresh)?;
        if !quiet {
            output::message(&format!("{}: signed with {key}", image.display()));
        }
    }
    Ok(0)
}

/// An image file to be signed.
struct Target {
    path: PathBuf,
    image: ImageFile,
    contents: Contents,
    /// Where the list lies by which the squashfs is checked.
    hashes: Place,
    message: String,
}

impl Target {
    fn open(path: PathBuf) -> Result<Target, Failure> {
        let image = ImageFile::open(&path)?;
        let cannot = |why: &str| {
            Failure::plain(format!("cannot sign {}: {why}", path.display()))
                .hint(format!("convert it: hpcrun convert {} FILE.sqsh", source(&image, &path)))
        };
        let contents = image.contents().cloned().ok_or_else(|| cannot("it has no hpcrun trailer"))?;
        let message = signature::message(&contents).zip(contents.place(SectionKind::ChunkHashes));
        let (message, hashes) = message.ok_or_else(|| cannot(signatures::NO_HASHES))?;
        if let Some(oddity) = signature::oddity(&contents) {
            return Err(Failure::plain(format!("cannot sign {}: it has {oddity}", path.display()))
                .hint("sign it with the hpcrun that wrote it, or convert the image again with this one"));
        }
        Ok(Target { path, image, contents, hashes, message })
    }

    /// Whether the file is what its digests say: a signature is of the digests alone, and says that they are right.
    fn verify(&self) -> Result<(), Failure> {
        let file = self.image.filesystem.file();
        verify::whole(&self.path, file, &self.contents, &self.hashes, None).map(drop)
    }

    /// The same image, opened again: while a passphrase was typed, somebody else may have added to it.
    fn again(self) -> Result<Target, Failure> {
        let now = Target::open(self.path)?;
        if now.message == self.message {
            return Ok(now);
        }
        let path = now.path.display();
        Err(Failure::plain(format!("cannot sign {path}: meanwhile it became another image"))
            .hint("see what it is now, and sign it again"))
    }

    /// Whether it could be replaced: for the answer before anybody is asked for a passphrase.
    fn check(&self) -> Result<(), Failure> {
        keep::check(&self.path).map_err(|error| Failure::new(&error))
    }

    /// Puts the signature in; gives the key that it is of.
    fn add(&self, signature: Signature, is_fresh: bool) -> Result<String, Failure> {
        let cannot = |why: String| Failure::plain(format!("cannot sign {}: {why}", self.path.display()));
        let with_fresh =
            |why: String| cannot(why).hint("--fresh puts this signature in the place of all others");
        let key = signature.check(self.message.as_bytes()).map_err(|fault| {
            cannot(format!("the signature does not count: {fault}"))
                .hint("sign what 'hpcrun sign --message' prints of this image, with -n hpcrun-image")
        })?;
        let read_at = |offset: u64, bytes: &mut [u8]| self.image.read_at(offset, bytes);
        let kept = match is_fresh {
            true => Vec::new(),
            false => signatures::kept(&self.contents, &read_at).map_err(with_fresh)?,
        };
        let section = signature::encode(&signature::with(kept, signature));
        // More than readers take must not be written.
        Signature::parse_all(&section).map_err(|fault| with_fresh(fault.to_string()))?;
        let trailer = self.contents.with_section(SectionKind::Signatures, &section, &read_at);
        let trailer = trailer.map_err(|error| Failure::new(&error))?;
        let file = self.image.filesystem.file();
        keep::trailer(&self.path, file, self.contents.squashfs_length(), &trailer)
            .map_err(|error| Failure::new(&error))?;
        Ok(key.to_string())
    }
}

/// What the file would be converted from.
fn source(image: &ImageFile, path: &Path) -> String {
    let transport = if image.sif.is_some() { "sif" } else { "squashfs" };
    format!("{transport}:{}", path.display())
}

/// Has `ssh-keygen` sign the message; it asks for a passphrase or a touch itself.
fn make(key: &Path, message: &str) -> Result<Signature, Failure> {
    let mut child = Command::new(KEYGEN)
        .args(["-q", "-Y", "sign", "-n", NAMESPACE, "-f"])
        .arg(key)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| {
            let failure = Failure::plain(format!("cannot run {KEYGEN}: {}", chain(&error)));
            match error.kind() {
                ErrorKind::NotFound => failure.hint(
                    "install OpenSSH's client, or sign where it is: 'hpcrun sign --message' and '--add'",
                ),
                _ => failure,
            }
        })?;
    // One that ends without reading says itself why.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(message.as_bytes()));
    let output = child
        .wait_with_output()
        .map_err(|error| Failure::plain(format!("cannot wait for {KEYGEN}: {}", chain(&error))))?;
    if !output.status.success() {
        return Err(Failure::plain(format!(
            "{KEYGEN} did not sign with {} ({})",
            key.display(),
            output.status
        ))
        .hint("it says why above; of a public key, an agent must hold the private half: ssh-add -l"));
    }
    only(&output.stdout).map_err(|why| {
        Failure::plain(format!("{KEYGEN} wrote no signature: {why}"))
            .hint(format!("see which {KEYGEN} is the first in PATH"))
    })
}

fn read(path: &Path) -> Result<Signature, Failure> {
    let cannot = |why: String| Failure::plain(format!("cannot use {}: {why}", path.display()));
    let text = std::fs::read(path).map_err(|error| cannot(chain(&error)))?;
    only(&text).map_err(|why| {
        cannot(why).hint("name the file FILE.sig that 'ssh-keygen -Y sign -n hpcrun-image FILE' writes")
    })
}

fn only(text: &[u8]) -> Result<Signature, String> {
    let mut all = Signature::parse_all(text).map_err(|fault| fault.to_string())?;
    match (all.pop(), all.is_empty()) {
        (Some(signature), true) => Ok(signature),
        (None, _) => Err("it holds no signature".to_owned()),
        (Some(_), false) => Err("it holds several signatures".to_owned()),
    }
}
