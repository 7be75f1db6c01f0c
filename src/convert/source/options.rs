//! What the user and the environment say of a source, all of it gathered by the caller.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use super::directory::Ownership;
use super::registry::RegistryOptions;
use crate::image::platform::Platform;

/// How a source is to be opened.
#[derive(Debug, Clone)]
pub struct SourceOptions {
    /// The platform to take from an index.
    pub platform: Platform,
    /// How registries are spoken to.
    pub registry: RegistryOptions,
    /// Whether layers are taken that their manifest declares foreign or not to be distributed.
    pub allow_foreign: bool,
    /// Standard input, if it may be read.
    pub input: Option<Arc<File>>,
    /// A directory for a file without a name that keeps what can be read only once.
    pub scratch: PathBuf,
    /// The socket of docker or podman.
    pub docker_socket: PathBuf,
    /// Who owns what is read from a directory.
    pub ownership: Ownership,
}

impl Default for SourceOptions {
    fn default() -> SourceOptions {
        SourceOptions {
            platform: Platform::host(),
            registry: RegistryOptions::default(),
            allow_foreign: false,
            input: None,
            scratch: PathBuf::from("."),
            docker_socket: PathBuf::from("/var/run/docker.sock"),
            ownership: Ownership::Kept,
        }
    }
}
