//! `hpcrun history`: which images a name meant; or with `--layers`, how an image was built.

use std::ffi::OsString;
use std::path::Path;

use clap::Args;
use serde_json::{Value, json};

use crate::cli::image_file::ImageFile;
use crate::cli::report::Failure;
use crate::cli::stores::Stores;
use crate::cli::{image_word, output, site, size, table};
use crate::image::store::{TagRecord, Word, classify};
use crate::policy::Policy;

/// Arguments of `history`.
#[derive(Debug, Args)]
pub(crate) struct History {
    /// Name of an image; with --layers also an image file or a digest
    pub(crate) image: OsString,
    /// Show the steps by which the image was built, newest first
    #[arg(long)]
    pub(crate) layers: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Prints one of the two.
pub(crate) fn run(args: &History) -> Result<u8, Failure> {
    let policy = site::policy()?;
    let text = if args.layers { of_image(args, &policy)? } else { of_name(args, &policy)? };
    output::data(text.as_bytes())
}

fn of_name(args: &History, policy: &Policy) -> Result<String, Failure> {
    let stores = Stores::open(policy);
    let names = match classify(&args.image) {
        Word::Either(text) => image_word::names(&text, policy),
        Word::Name(text) => crate::image::store::Name::parse(&text).into_iter().collect(),
        _ => Vec::new(),
    };
    for store in &stores.open {
        for name in &names {
            if let Some(tag) = store.tag(name).map_err(|error| Failure::new(&error))? {
                let is_there = |key: &_| store.find(key).is_ok_and(|found| found.is_some());
                return Ok(if args.json { tag_json(&tag, &is_there) } else { tag_text(&tag, &is_there) });
            }
        }
    }
    let failure = Failure::plain(format!("no store has a name {}", args.image.display()));
    Err(failure.hint("'hpcrun images' lists the names").hint("--layers shows how an image was built"))
}

type IsThere<'a> = &'a dyn Fn(&crate::image::store::Key) -> bool;

fn tag_text(tag: &TagRecord, is_there: IsThere<'_>) -> String {
    let mut rows = vec![["SINCE", "DIGEST", ""].map(str::to_owned)];
    for entry in tag.entries() {
        let note = if is_there(&entry.key) { "" } else { "removed" };
        rows.push([table::date(entry.at_seconds), entry.key.digest().to_string(), note.to_owned()]);
    }
    table::lines(&rows)
}

fn tag_json(tag: &TagRecord, is_there: IsThere<'_>) -> String {
    let entries: Vec<Value> = tag
        .entries()
        .iter()
        .map(|entry| {
            json!({
                "digest": entry.key.digest().as_str(),
                "since": entry.at_seconds,
                "present": is_there(&entry.key),
            })
        })
        .collect();
    format!("{:#}\n", json!({ "name": tag.name.as_str(), "keep": tag.keep, "images": entries }))
}

/// The `history` of the image's config, which the layers of its manifest belong to in order.
fn of_image(args: &History, policy: &Policy) -> Result<String, Failure> {
    let path = image_word::locate(Path::new(&args.image), policy)?;
    let image = ImageFile::open(&path)?;
    let config: Value = serde_json::from_slice(&image.config.raw).unwrap_or_default();
    let steps = config.get("history").and_then(Value::as_array).cloned().unwrap_or_default();
    let sizes = image.provenance()?.map(|provenance| provenance.layers.as_slice()).unwrap_or_default();
    let mut sizes = sizes.iter().map(|layer| layer.size);
    let mut described = Vec::new();
    for step in steps {
        let is_empty = step.get("empty_layer").and_then(Value::as_bool).unwrap_or(false);
        let bytes = if is_empty { None } else { sizes.next().flatten() };
        let text = |name: &str| step.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        described.push((text("created"), bytes, text("created_by")));
    }
    described.reverse();
    if args.json {
        let steps: Vec<Value> = described
            .iter()
            .map(|(created, bytes, by)| json!({ "created": created, "layer_bytes": bytes, "created_by": by }))
            .collect();
        return Ok(format!("{:#}\n", json!({ "history": steps })));
    }
    let mut rows = vec![["CREATED", "LAYER", "CREATED BY"].map(str::to_owned)];
    for (created, bytes, by) in described {
        rows.push([created, bytes.map_or_else(|| "-".to_owned(), size::bytes), by]);
    }
    Ok(table::lines(&rows))
}
