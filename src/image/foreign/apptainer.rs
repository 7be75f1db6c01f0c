//! Apptainer and Singularity leave `/.singularity.d`: scripts that set the environment, and one that `run` runs. A SIF
//! may hold the config of the OCI image that it was built from as well.

use serde_json::{Map, Value, json};

use super::shell::{Unset, Variables};
use super::{Foreign, ReadFile, image_config, object};

const RUNSCRIPT: &str = "/.singularity.d/runscript";
/// Runs the scripts of the environment, then its arguments.
pub(super) const EXEC_ACTION: &str = "/.singularity.d/actions/exec";
/// Runs the scripts of the environment, then the runscript.
const RUN_ACTION: &str = "/.singularity.d/actions/run";
const LABELS: &str = "/.singularity.d/labels.json";
/// Generated from the variables of a docker image.
const DOCKER_ENVIRONMENT: &str = "/.singularity.d/env/10-docker2singularity.sh";
/// What definition files set: `%environment`, and what `%post` appended. The others are the same in every image.
const ENVIRONMENTS: [&str; 2] =
    ["/.singularity.d/env/90-environment.sh", "/.singularity.d/env/91-environment.sh"];
/// A line of the runscript that stands for entrypoint and command of a docker image.
const FROM_DOCKER: &str = "OCI_ENTRYPOINT=";

/// What a SIF holds beside the tree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Objects {
    /// `oci-config.json`.
    pub oci_config: Option<Vec<u8>>,
    /// `inspect-metadata.json`.
    pub metadata: Option<Vec<u8>>,
    /// The object of type labels, of old SIFs.
    pub labels: Option<Vec<u8>>,
}

/// The scripts in the tree.
struct Scripts {
    run: Option<Vec<u8>>,
    docker: Option<Vec<u8>>,
    environments: [Option<Vec<u8>>; 2],
}

impl Scripts {
    fn read<E>(read: &ReadFile<'_, E>) -> Result<Scripts, E> {
        let [first, second] = ENVIRONMENTS;
        let environments = [read(first)?, read(second)?];
        Ok(Scripts { run: read(RUNSCRIPT)?, docker: read(DOCKER_ENVIRONMENT)?, environments })
    }

    fn has_any(&self) -> bool {
        self.run.is_some() || self.docker.is_some() || self.environments.iter().any(Option::is_some)
    }
}

/// The config of a tree that is not in a SIF; none where it is not Apptainer's.
pub(super) fn config<E>(architecture: &str, read: &ReadFile<'_, E>) -> Result<Option<Foreign>, E> {
    let scripts = Scripts::read(read)?;
    scripts.has_any().then(|| gather(&Objects::default(), architecture, &scripts, read)).transpose()
}

/// The config of a SIF.
pub fn config_of_sif<E>(objects: &Objects, architecture: &str, read: &ReadFile<'_, E>) -> Result<Foreign, E> {
    gather(objects, architecture, &Scripts::read(read)?, read)
}

fn gather<E>(
    objects: &Objects,
    architecture: &str,
    scripts: &Scripts,
    read: &ReadFile<'_, E>,
) -> Result<Foreign, E> {
    let oci = objects.oci_config.as_deref().map(oci_members).unwrap_or_default();
    let mut config = valid(architecture, oci);
    let (env, passed_over) = environment(&config, scripts);
    config.insert("Env".to_owned(), env.into());
    if let Some(script) = &scripts.run {
        // What OCI says is only of use where nobody has written another script, and exact: the generated one has the
        // shell read the arguments a second time.
        let is_generated = String::from_utf8_lossy(script).lines().any(|line| line.starts_with(FROM_DOCKER));
        if !(is_generated && (config.contains_key("Entrypoint") || config.contains_key("Cmd"))) {
            let is_exact = passed_over.is_empty() || read(RUN_ACTION)?.is_none();
            config.insert("Entrypoint".to_owned(), json!([if is_exact { RUNSCRIPT } else { RUN_ACTION }]));
            config.remove("Cmd");
        }
    }
    let mut labels = match config.remove("Labels") {
        Some(Value::Object(labels)) => labels,
        _ => Map::new(),
    };
    labels.extend(labels_of(objects, read(LABELS)?));
    if !labels.is_empty() {
        config.insert("Labels".to_owned(), labels.into());
    }
    Ok(Foreign { maker: "Apptainer", config: image_config(architecture, config), passed_over })
}

/// The variables that the image sets, as a list for `Env`, and the lines that were passed over.
fn environment(oci: &Map<String, Value>, scripts: &Scripts) -> (Vec<String>, Vec<String>) {
    let mut variables = Variables::default();
    let mut sources: Vec<(&str, &Option<Vec<u8>>, Unset)> = Vec::new();
    match oci.get("Env") {
        Some(Value::Array(entries)) => {
            entries.iter().filter_map(Value::as_str).for_each(|entry| variables.define(entry));
        }
        _ => sources.push((DOCKER_ENVIRONMENT, &scripts.docker, Unset::Empty)),
    }
    sources.extend(
        ENVIRONMENTS.iter().zip(&scripts.environments).map(|(path, script)| (*path, script, Unset::Unknown)),
    );
    let mut passed_over = Vec::new();
    for (path, script, unset) in sources {
        let lines = variables.apply(script.as_deref().unwrap_or_default(), unset);
        passed_over.extend(lines.into_iter().map(|line| format!("{path}, {line}")));
    }
    (variables.exported(), passed_over)
}

/// The member `config` of an OCI config, which Apptainer stores alone.
fn oci_members(text: &[u8]) -> Map<String, Value> {
    let mut whole = object(text);
    match whole.remove("config") {
        Some(Value::Object(config)) => config,
        _ => whole,
    }
}

/// The members if they make a config, else nothing.
fn valid(architecture: &str, members: Map<String, Value>) -> Map<String, Value> {
    let is_valid = !image_config(architecture, members.clone()).raw.is_empty();
    if is_valid { members } else { Map::new() }
}

fn labels_of(objects: &Objects, in_tree: Option<Vec<u8>>) -> Map<String, Value> {
    let metadata = objects.metadata.as_deref().map(|text| Value::Object(object(text)));
    let in_metadata = metadata.and_then(|document| document.pointer("/data/attributes/labels").cloned());
    let labels = match in_metadata {
        Some(Value::Object(labels)) => labels,
        _ => object(objects.labels.as_deref().or(in_tree.as_deref()).unwrap_or_default()),
    };
    labels.into_iter().filter(|(_, value)| value.is_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::tree;
    use super::*;

    /// As Apptainer 1.4.5 wrote it for an image with an entrypoint.
    const GENERATED: &str = "#!/bin/sh\nOCI_ENTRYPOINT='\"/bin/echo\"'\nOCI_CMD=''\nexec \"$@\"\n";
    const OCI: &[u8] =
        br#"{"Cmd":["c"],"Entrypoint":["/e"],"Env":["PATH=/p","A=$x"],"Labels":{"a":"1"},"WorkingDir":"/w"}"#;

    fn found(objects: &Objects, files: &[(&str, &str)]) -> Foreign {
        let Ok(found) = config_of_sif(objects, "arm64", &tree(files));
        found
    }

    fn with_oci() -> Objects {
        Objects { oci_config: Some(OCI.to_vec()), ..Objects::default() }
    }

    #[test]
    fn the_config_of_the_oci_image_counts() {
        let Foreign { config, passed_over, .. } = found(&with_oci(), &[(RUNSCRIPT, GENERATED)]);
        assert_eq!((config.entrypoint, config.cmd), (vec!["/e".to_owned()], vec!["c".to_owned()]));
        assert_eq!(config.env, ["PATH=/p", "A=$x"]);
        assert_eq!((config.working_dir.as_str(), config.architecture.as_str()), ("/w", "arm64"));
        assert!(passed_over.is_empty());
        // Whole, as other versions may store it; and one that is none.
        let whole = [br#"{"os":"linux","config":"#, OCI, b"}"].concat();
        let whole = Objects { oci_config: Some(whole), ..Objects::default() };
        assert_eq!(found(&whole, &[(RUNSCRIPT, GENERATED)]).config.entrypoint, ["/e"]);
        for broken in ["{", "[]", r#"{"Env":7}"#, r#"{"Entrypoint":{"a":1},"Env":["A=1"]}"#] {
            let broken = Objects { oci_config: Some(broken.into()), ..Objects::default() };
            let config = found(&broken, &[(RUNSCRIPT, GENERATED)]).config;
            assert_eq!((config.entrypoint, config.env.len()), (vec![RUNSCRIPT.to_owned()], 0));
        }
    }

    #[test]
    fn what_a_definition_file_says_counts_more() {
        let files = [
            (RUNSCRIPT, "#!/bin/sh\necho mine\n"),
            (ENVIRONMENTS[0], "export PATH=/opt/bin:$PATH B=2\n"),
            (ENVIRONMENTS[1], "export C=$B"),
            (DOCKER_ENVIRONMENT, "export NOT=looked-at\n"),
        ];
        let Foreign { config, .. } = found(&with_oci(), &files);
        assert_eq!((config.entrypoint, config.cmd.len()), (vec![RUNSCRIPT.to_owned()], 0));
        assert_eq!(config.env, ["PATH=/opt/bin:/p", "A=$x", "B=2", "C=2"]);
    }

    #[test]
    fn scripts_do_where_there_is_no_oci_config() {
        let docker = "#!/bin/sh\nexport PATH=\"/p\"\nexport A=\"${A:-\"a b\"}\"\n";
        let labels = r#"{"a":"1","n":2}"#;
        let files = [(RUNSCRIPT, GENERATED), (DOCKER_ENVIRONMENT, docker), (LABELS, labels)];
        let Foreign { config, passed_over, .. } = found(&Objects::default(), &files);
        assert_eq!(
            (config.entrypoint, config.env),
            (vec![RUNSCRIPT.to_owned()], vec!["PATH=/p".into(), "A=a b".into()])
        );
        assert_eq!(config.labels, [("a".to_owned(), "1".to_owned())]);
        assert!(passed_over.is_empty());
    }

    #[test]
    fn what_is_passed_over_is_named_and_run_by_the_image() {
        let scripts = [
            (RUNSCRIPT, "exec x"),
            (ENVIRONMENTS[0], "export A=1\nexport N=$(nproc)\n"),
            (RUN_ACTION, "#!/bin/sh"),
        ];
        let both = found(&Objects::default(), &scripts);
        assert_eq!(both.passed_over, ["/.singularity.d/env/90-environment.sh, line 2: export N=$(nproc)"]);
        assert_eq!(
            (both.config.entrypoint, both.config.env),
            (vec![RUN_ACTION.to_owned()], vec!["A=1".to_owned()])
        );
        let without = found(&Objects::default(), &scripts[..2]);
        assert_eq!(without.config.entrypoint, [RUNSCRIPT]);
    }

    #[test]
    fn labels_come_from_the_best_there_is() {
        let metadata = br#"{"data":{"attributes":{"labels":{"a":"2","n":2}}},"type":"container"}"#.to_vec();
        let old = Some(br#"{"b":"3"}"#.to_vec());
        let with = |metadata| Objects { metadata, labels: old.clone(), ..with_oci() };
        let pairs = |objects: &Objects| found(objects, &[(LABELS, r#"{"c":"4"}"#)]).config.labels;
        assert_eq!(pairs(&with(Some(metadata))), [("a".into(), "2".into())]);
        assert_eq!(pairs(&with(None)), [("a".into(), "1".into()), ("b".into(), "3".into())]);
        assert_eq!(pairs(&with_oci()), [("a".into(), "1".into()), ("c".into(), "4".into())]);
    }
}
