//! Charliecloud leaves `/ch/metadata.json`, the members of an OCI config under other names, and `/ch/environment`.

use serde_json::{Map, Value};

use super::{Foreign, ReadFile, environment_lines, image_config, object};

pub(super) fn config<E>(architecture: &str, read: &ReadFile<'_, E>) -> Result<Option<Foreign>, E> {
    let (metadata, environment) = (read("/ch/metadata.json")?, read("/ch/environment")?);
    if metadata.is_none() && environment.is_none() {
        return Ok(None);
    }
    let mut metadata = object(&metadata.unwrap_or_default());
    let env = match metadata.remove("env") {
        Some(Value::Object(variables)) => {
            let text = |(name, value): (String, Value)| Some(format!("{name}={}", value.as_str()?));
            variables.into_iter().filter_map(text).collect()
        }
        _ => environment_lines(&environment.unwrap_or_default()),
    };
    let mut config = Map::new();
    config.insert("Env".to_owned(), env.into());
    for (theirs, ours) in
        [("entrypoint", "Entrypoint"), ("cmd", "Cmd"), ("cwd", "WorkingDir"), ("labels", "Labels")]
    {
        config.extend(metadata.remove(theirs).map(|value| (ours.to_owned(), value)));
    }
    let stated = metadata.get("arch").and_then(Value::as_str).filter(|name| !name.is_empty());
    let config = image_config(stated.unwrap_or(architecture), config);
    Ok(Some(Foreign { maker: "Charliecloud", config, passed_over: Vec::new() }))
}
