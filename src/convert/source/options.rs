//! What the user and the environment say of a source, all of it gathered by the caller.

use super::registry::RegistryOptions;
use crate::image::platform::Platform;

/// How a source is to be opened.
#[derive(Debug, Clone)]
pub struct SourceOptions {
    /// The platform to take from an index.
    pub platform: Platform,
    /// How registries are spoken to.
    pub registry: RegistryOptions,
}

impl Default for SourceOptions {
    fn default() -> SourceOptions {
        SourceOptions { platform: Platform::host(), registry: RegistryOptions::default() }
    }
}
