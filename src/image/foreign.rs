//! The image config of a squashfs or SIF that other tools made: gathered from the files that they leave in the tree.
//!
//! No script is run. What only a shell could make out is passed over, and [`Foreign::passed_over`] says so.

mod apptainer;
mod charliecloud;
mod enroot;
mod shell;

pub use self::apptainer::{Objects, config_of_sif};

use serde_json::{Map, Value, json};

use super::config::ImageConfig;

/// Largest file of the tree that is read, bytes.
pub const FILE_MAX: u64 = 1 << 20;

/// Reads a file of at most [`FILE_MAX`] bytes of the image by its absolute path; none where there is no such file.
pub type ReadFile<'a, E> = dyn Fn(&str) -> Result<Option<Vec<u8>>, E> + 'a;

/// A config pieced together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// Who left it: `Apptainer`.
    pub maker: &'static str,
    /// What of it a launch can use.
    pub config: ImageConfig,
    /// Lines of scripts that were passed over: `/PATH, line 7: TEXT`.
    pub passed_over: Vec<String>,
}

impl Foreign {
    /// What a user should know, a line each; of many lines passed over only the first is named.
    pub fn warnings(&self) -> Vec<String> {
        let Some(first) = self.passed_over.first() else { return Vec::new() };
        let more = match self.passed_over.len() {
            1 => String::new(),
            count => format!(", and {} more", count - 1),
        };
        let said = format!(
            "not all that the image's scripts set can be set without running them: {first}{more} \
             (to run them: hpcrun exec IMAGE {} COMMAND)",
            apptainer::EXEC_ACTION
        );
        vec![said]
    }
}

/// The config of a tree that is not in a SIF; none where no known tool has left one. `architecture` is Go's name, empty
/// where nothing states it.
pub fn config_of_tree<E>(architecture: &str, read: &ReadFile<'_, E>) -> Result<Option<Foreign>, E> {
    if let Some(found) = apptainer::config(architecture, read)? {
        return Ok(Some(found));
    }
    if let Some(found) = charliecloud::config(architecture, read)? {
        return Ok(Some(found));
    }
    enroot::config(architecture, read)
}

/// A whole image config around its member `config`; an empty one where a member has a wrong type.
fn image_config(architecture: &str, config: Map<String, Value>) -> ImageConfig {
    let document = json!({
        "architecture": architecture, "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": []},
    });
    ImageConfig::parse(document.to_string().as_bytes()).unwrap_or_default()
}

/// The object that a JSON text holds; empty where it holds none.
fn object(text: &[u8]) -> Map<String, Value> {
    match serde_json::from_slice(text) {
        Ok(Value::Object(members)) => members,
        _ => Map::new(),
    }
}

/// `NAME=VALUE` lines as a list for `Env`; others are left out.
fn environment_lines(text: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(text);
    text.lines().filter(|line| line.contains('=') && !line.starts_with('#')).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// A tree of files, for the tests of each tool.
    pub(super) fn tree<'a>(
        files: &'a [(&'a str, &'a str)],
    ) -> impl Fn(&str) -> Result<Option<Vec<u8>>, Infallible> + 'a {
        |path| Ok(files.iter().find(|(name, _)| *name == path).map(|(_, text)| text.as_bytes().to_vec()))
    }

    fn found(files: &[(&str, &str)]) -> Option<Foreign> {
        let Ok(found) = config_of_tree("amd64", &tree(files));
        found
    }

    #[test]
    fn a_tree_that_nobody_has_marked_has_no_config() {
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[("/etc/environment", "PATH=/x\n"), ("/etc/rc", "#!/bin/sh\n")]), None);
    }

    #[test]
    fn charliecloud_keeps_the_config_in_other_words() {
        let metadata = r#"{"arch": "arm64", "cwd": "/work", "entrypoint": ["/e"], "cmd": ["c", "d"],
            "env": {"A": "1 2", "PATH": "/p"}, "labels": {"l": "v"}, "shell": ["/bin/sh", "-c"], "volumes": []}"#;
        let found = found(&[("/ch/metadata.json", metadata)]).unwrap();
        assert_eq!(
            (found.maker, found.config.env.as_slice()),
            ("Charliecloud", &["A=1 2".into(), "PATH=/p".into()][..])
        );
        assert_eq!(
            (found.config.entrypoint, found.config.cmd),
            (vec!["/e".to_owned()], vec!["c".into(), "d".into()])
        );
        assert_eq!(
            (found.config.working_dir.as_str(), found.config.architecture.as_str()),
            ("/work", "arm64")
        );
        assert_eq!(found.config.labels, [("l".into(), "v".into())]);
    }

    #[test]
    fn charliecloud_alone_has_an_environment_too() {
        let found =
            found(&[("/ch/environment", "A=1\nB=two words\n# c\n\n"), ("/ch/metadata.json", "[")]).unwrap();
        assert_eq!(found.config.env, ["A=1", "B=two words"]);
    }

    #[test]
    fn enroot_keeps_the_environment_and_a_script() {
        let rc = "# org.example.name value of it\n\nmkdir -p \"/w\" 2> /dev/null\ncd \"/w\" && unset OLDPWD || exit 1\n\n\
            if [ -s /etc/rc.local ]; then\n    . /etc/rc.local\nfi\n\nif [ $# -gt 0 ]; then\n    exec '/e' \"$@\"\nfi\n";
        let found = found(&[("/etc/environment", "A=1\nB=$x 'y'\n"), ("/etc/rc", rc)]).unwrap();
        assert_eq!(
            (found.maker, found.config.env.as_slice()),
            ("enroot", &["A=1".into(), "B=$x 'y'".into()][..])
        );
        assert_eq!(found.config.entrypoint, ["/bin/sh", "/etc/rc"]);
        assert_eq!(found.config.labels, [("org.example.name".into(), "value of it".into())]);
    }
}
