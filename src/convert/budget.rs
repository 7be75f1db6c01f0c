//! How much of anything one image may ask of the machine; every parser of outside bytes takes it.
//!
//! The values and where they come from are in `docs/layers.md`.

/// Upper bounds for one conversion. A value that is reached is an error that names it, never a truncation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Layers of one image.
    pub layers: usize,
    /// Uncompressed tar bytes of one layer.
    pub stream_bytes: u64,
    /// Uncompressed bytes for each compressed byte of a layer, looked at beyond [`Budget::expansion_floor_bytes`].
    pub expansion: u64,
    /// Uncompressed bytes of a layer below which any expansion is fine.
    pub expansion_floor_bytes: u64,
    /// Sizes of all regular files together, bytes, holes included: 1 KiB of tar can claim 8 EiB.
    pub file_bytes: u64,
    /// Tar entries of all layers together.
    pub entries: u64,
    /// Memory for names and inodes while the layers are merged, bytes (an estimate, about 120 a name).
    pub tree_bytes: u64,
    /// One PAX header or GNU long name, bytes.
    pub extension_bytes: usize,
    /// Extension headers in a row before one entry.
    pub extensions: usize,
    /// Segments of one sparse file.
    pub segments: usize,
    /// Components of a path.
    pub depth: usize,
    /// Bytes of a path.
    pub path_bytes: usize,
    /// Bytes of one component of a path.
    pub name_bytes: usize,
    /// Bytes of a symbolic link's target.
    pub target_bytes: usize,
    /// Bytes of one xattr value.
    pub xattr_value_bytes: usize,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget {
            layers: 1024,
            stream_bytes: 1 << 40,
            expansion: 1000,
            expansion_floor_bytes: 16 << 30,
            file_bytes: 1 << 40,
            entries: 20_000_000,
            tree_bytes: 384 << 20,
            extension_bytes: 1 << 20,
            extensions: 16,
            segments: 1 << 20,
            depth: 256,
            path_bytes: 4096,
            name_bytes: 255,
            target_bytes: 4095,
            xattr_value_bytes: 64 << 10,
        }
    }
}
