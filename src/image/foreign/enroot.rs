//! enroot leaves the image's variables in `/etc/environment`, and in `/etc/rc` a script that enters the working
//! directory and runs entrypoint and command; the labels are comments at its top.

use serde_json::{Map, Value, json};

use super::{Foreign, ReadFile, environment_lines, image_config};

const SCRIPT: &str = "/etc/rc";
/// What tells enroot's script from another `/etc/rc`.
const MARK: &str = "\nif [ -s /etc/rc.local ]; then\n";

pub(super) fn config<E>(architecture: &str, read: &ReadFile<'_, E>) -> Result<Option<Foreign>, E> {
    let Some(script) = read(SCRIPT)? else { return Ok(None) };
    let script = String::from_utf8_lossy(&script);
    if !script.contains(MARK) {
        return Ok(None);
    }
    let labels: Map<String, Value> = script
        .lines()
        .map_while(|line| line.strip_prefix("# "))
        .filter_map(|line| line.split_once(' '))
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect();
    let mut config = Map::new();
    config.insert("Env".to_owned(), environment_lines(&read("/etc/environment")?.unwrap_or_default()).into());
    // So enroot runs it.
    config.insert("Entrypoint".to_owned(), json!(["/bin/sh", SCRIPT]));
    config.insert("Labels".to_owned(), labels.into());
    let config = image_config(architecture, config);
    Ok(Some(Foreign { maker: "enroot", config, passed_over: Vec::new() }))
}
