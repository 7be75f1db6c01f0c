//! `hpcrun inspect`: what an image file holds and where it came from.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::cli::args::Inspect;
use crate::cli::image_file::{ImageFile, SifSignature};
use crate::cli::report::{Failure, chain};
use crate::cli::signatures::{self, Judged, Outcome};
use crate::cli::{image_word, inspect_host, mpi, output, profile, site, size};
use crate::image::chunks::Header;
use crate::image::digest::to_hex;
use crate::image::facts::{Facts, Libc, Role};
use crate::image::profile::Profile;
use crate::image::signature::PublicKey;
use crate::image::trailer::{Provenance, SectionKind};
use crate::policy::Policy;
use crate::squashfs::format::Codec;

/// Prints the facts of one image file.
pub(crate) fn run(args: &Inspect) -> Result<u8, Failure> {
    let policy = site::policy()?;
    let image = ImageFile::open(&image_word::locate(&args.image, &policy)?)?;
    if args.host {
        return output::data(inspect_host::report(&image)?.as_bytes());
    }
    let facts = mpi::all_facts(&image)?;
    let provenance = image.provenance()?;
    let root = root(&image)?;
    let signatures = signed(&image, &policy);
    let text = match args.json {
        true => as_json(&image, provenance, root, &facts, &signatures)?,
        false => as_text(&image, provenance, root, &facts, &signatures),
    };
    output::data(text.as_bytes())
}

/// The root of the chunk hashes, as digests are written; none where there are no hashes.
fn root(image: &ImageFile) -> Result<Option<String>, Failure> {
    let place = image.contents().and_then(|contents| contents.place(SectionKind::ChunkHashes));
    let header =
        place.map(|place| Header::read(&place, &|offset, bytes: &mut [u8]| image.read_at(offset, bytes)));
    let header = header.transpose().map_err(|error| Failure::plain(chain(&error)))?;
    Ok(header.map(|header| format!("sha256:{}", to_hex(&header.root))))
}

/// The signatures and what they are worth by the site's list, if it has one. `Err` says why that cannot be told.
fn signed(image: &ImageFile, policy: &Policy) -> Result<Vec<Judged>, String> {
    let Some(contents) = image.contents() else { return Ok(Vec::new()) };
    let read_at = |offset: u64, bytes: &mut [u8]| image.read_at(offset, bytes);
    signatures::judged(contents, &read_at, &signatures::known(policy))
}

fn described(profile: &Profile) -> String {
    format!("{} blocks, {} to read ahead, from", profile.blocks.len(), size::bytes(profile.stored_bytes()))
}

fn codec_name(image: &ImageFile) -> &'static str {
    Codec::from_id(image.filesystem.superblock().codec_id).map_or("unknown", Codec::name)
}

fn as_text(
    image: &ImageFile,
    provenance: Option<&Provenance>,
    root: Option<String>,
    facts: &Facts,
    signatures: &Result<Vec<Judged>, String>,
) -> String {
    let superblock = image.filesystem.superblock();
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "{name:<12}{}", output::one_line(value));
        }
    };
    let kind = format!(
        "{}, squashfs {}, {} blocks, {} inodes",
        size::bytes(image.length),
        codec_name(image),
        size::bytes(u64::from(superblock.block_size)),
        superblock.inode_count
    );
    line("file", &image.path.to_string_lossy());
    line("", &kind);
    match provenance {
        None => {
            let what = match image.sif {
                None => "this squashfs has no hpcrun trailer",
                Some(SifSignature::No) => "this is a SIF",
                Some(SifSignature::NotChecked) => "this is a SIF, signed, which was not checked",
            };
            let maker = image.maker.map(|maker| format!("; what follows is in files of {maker}"));
            line("origin", &format!("unknown: {what}{}", maker.unwrap_or_default()));
        }
        Some(provenance) => {
            line("origin", &provenance.origin);
            line("manifest", &provenance.manifest_digest);
            line("platform", &provenance.platform);
            line("converted", &format!("by hpcrun {}", provenance.hpcrun_version));
            line("hash", &root.unwrap_or_default());
            for (index, layer) in provenance.layers.iter().enumerate() {
                let name = if index == 0 { "layers" } else { "" };
                let length =
                    layer.size.map(|length| format!("  {}", size::bytes(length))).unwrap_or_default();
                line(name, &format!("{}{length}", layer.digest.as_ref().unwrap_or(&layer.diff_id)));
            }
        }
    }
    match signatures {
        Ok(signatures) => {
            for (index, signature) in signatures.iter().enumerate() {
                line(if index == 0 { "signatures" } else { "" }, &signature.to_string());
            }
        }
        Err(why) => line("signatures", &format!("cannot be checked: {why}")),
    }
    if let Some(profile) = profile::own(image) {
        line("profile", &described(&profile));
        profile.commands.iter().for_each(|command| line("", command));
    }
    line("libc", &libc(facts));
    for library in facts.libraries.iter().filter(|library| library.role != Role::Runtime) {
        line(library.role.label(), &format!("{}  {}", library.describe(), library.path));
    }
    let config = &image.config;
    line("created", &config.created);
    line("entrypoint", &words(&config.entrypoint));
    line("command", &words(&config.cmd));
    line("directory", &config.working_dir);
    line("user", &config.user);
    for (index, variable) in config.env.iter().enumerate() {
        line(if index == 0 { "environment" } else { "" }, variable);
    }
    for (index, (name, value)) in config.labels.iter().enumerate() {
        line(if index == 0 { "labels" } else { "" }, &format!("{name}={value}"));
    }
    image.warnings.iter().for_each(|warning| line("note", warning));
    text
}

/// `glibc 2.36, x86-64-v2`
fn libc(facts: &Facts) -> String {
    let level = facts.isa_level.map(|level| format!(", x86-64-v{level}")).unwrap_or_default();
    match &facts.libc {
        Some(Libc::Glibc { version }) => format!("glibc {version}{level}"),
        Some(Libc::Musl) => "musl".to_owned(),
        Some(Libc::Other) | None => String::new(),
    }
}

/// A command line as a JSON list: the only form that shows every word's bounds.
fn words(words: &[String]) -> String {
    if words.is_empty() { String::new() } else { json!(words).to_string() }
}

fn as_json(
    image: &ImageFile,
    provenance: Option<&Provenance>,
    root: Option<String>,
    facts: &Facts,
    signatures: &Result<Vec<Judged>, String>,
) -> Result<String, Failure> {
    let superblock = image.filesystem.superblock();
    let document = json!({
        "file": {
            "path": image.path.to_string_lossy(),
            "bytes": image.length,
            "squashfs_bytes": superblock.bytes_used,
            "codec": codec_name(image),
            "block_size": superblock.block_size,
            "inodes": superblock.inode_count,
            "root_hash": root,
        },
        "profile": profile::own(image).map(|profile| json!({
            "blocks": profile.blocks.len(),
            "bytes": profile.stored_bytes(),
            "commands": profile.commands,
        })),
        "signatures_fault": signatures.as_ref().err(),
        "signatures": signatures.iter().flatten().map(|signature| json!({
            "key_type": signature.key.as_ref().map(PublicKey::type_name),
            "fingerprint": signature.key.as_ref().map(PublicKey::fingerprint),
            "signer": match &signature.outcome { Outcome::Good(signer) => Some(signer), _ => None },
            "fault": match &signature.outcome { Outcome::Bad(fault) => Some(fault.to_string()), _ => None },
        })).collect::<Vec<_>>(),
        "facts": facts,
        "provenance": provenance,
        "manifest": document_or_null(image.manifest()?.as_deref()),
        "config": document_or_null(Some(&image.config.raw)),
    });
    let mut text = serde_json::to_string_pretty(&document)
        .map_err(|error| Failure::plain(format!("cannot write JSON: {error}")))?;
    text.push('\n');
    Ok(text)
}

fn document_or_null(raw: Option<&[u8]>) -> Value {
    raw.and_then(|raw| serde_json::from_slice(raw).ok()).unwrap_or(Value::Null)
}
