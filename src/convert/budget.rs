//! How much of anything one image may ask of the machine; every parser of outside bytes takes it.
//!
//! The values and where they come from are in `docs/layers.md`; a site may set its own (`docs/policy.md`).

/// Upper bounds for one conversion. A value that is exceeded is an error that names it, never a truncation.
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
    /// Memory for names and inodes, bytes: what they take while layers are merged or, if that is more, will take while
    /// the tree is written.
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
    /// Bytes of all xattrs of one entry, names and values.
    pub xattr_bytes: usize,
}

impl Default for Budget {
    fn default() -> Budget {
        Budget {
            layers: 1024,
            stream_bytes: 1 << 40,
            expansion: 1000,
            expansion_floor_bytes: 4 << 30,
            file_bytes: 1 << 40,
            entries: 20_000_000,
            tree_bytes: 400 << 20,
            extension_bytes: 1 << 20,
            extensions: 16,
            segments: 1 << 20,
            depth: 256,
            path_bytes: 4096,
            name_bytes: 255,
            target_bytes: 4095,
            xattr_value_bytes: 64 << 10,
            xattr_bytes: 1 << 20,
        }
    }
}

/// One limit of a [`Budget`], by its field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// [`Budget::layers`]
    Layers,
    /// [`Budget::stream_bytes`]
    StreamBytes,
    /// [`Budget::expansion`]
    Expansion,
    /// [`Budget::file_bytes`]
    FileBytes,
    /// [`Budget::entries`]
    Entries,
    /// [`Budget::tree_bytes`]
    TreeBytes,
    /// [`Budget::extension_bytes`]
    ExtensionBytes,
    /// [`Budget::extensions`]
    Extensions,
    /// [`Budget::segments`]
    Segments,
    /// [`Budget::depth`]
    Depth,
    /// [`Budget::path_bytes`]
    PathBytes,
    /// [`Budget::name_bytes`]
    NameBytes,
    /// [`Budget::xattr_value_bytes`]
    XattrValueBytes,
    /// [`Budget::xattr_bytes`]
    XattrBytes,
}

impl Limit {
    /// What is counted, in the plural.
    fn counted(self) -> &'static str {
        match self {
            Limit::Layers => "layers of the image",
            Limit::StreamBytes => "uncompressed bytes of a layer",
            Limit::Expansion => "uncompressed bytes for each compressed byte",
            Limit::FileBytes => "bytes of all files",
            Limit::Entries => "entries",
            Limit::TreeBytes => "bytes of memory for names and inodes",
            Limit::ExtensionBytes => "bytes of an extension header",
            Limit::Extensions => "extension headers of one entry",
            Limit::Segments => "segments of a sparse file",
            Limit::Depth => "components of a path",
            Limit::PathBytes => "bytes of a path",
            Limit::NameBytes => "bytes in a component of a path",
            Limit::XattrValueBytes => "bytes of an xattr value",
            Limit::XattrBytes => "bytes of all xattrs of one entry",
        }
    }
}

/// An image that asks for more than it may. Prints as `entries exceed the limit of 3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{} exceed the limit of {most}", .limit.counted())]
pub struct Exceeded {
    /// Which limit.
    pub limit: Limit,
    /// Its value.
    pub most: u64,
}

impl Budget {
    /// The value of a limit.
    pub fn most(&self, limit: Limit) -> u64 {
        let wide = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        match limit {
            Limit::Layers => wide(self.layers),
            Limit::StreamBytes => self.stream_bytes,
            Limit::Expansion => self.expansion,
            Limit::FileBytes => self.file_bytes,
            Limit::Entries => self.entries,
            Limit::TreeBytes => self.tree_bytes,
            Limit::ExtensionBytes => wide(self.extension_bytes),
            Limit::Extensions => wide(self.extensions),
            Limit::Segments => wide(self.segments),
            Limit::Depth => wide(self.depth),
            Limit::PathBytes => wide(self.path_bytes),
            Limit::NameBytes => wide(self.name_bytes),
            Limit::XattrValueBytes => wide(self.xattr_value_bytes),
            Limit::XattrBytes => wide(self.xattr_bytes),
        }
    }

    /// Sets a limit.
    pub fn set(&mut self, limit: Limit, most: u64) {
        let count = usize::try_from(most).unwrap_or(usize::MAX);
        match limit {
            Limit::Layers => self.layers = count,
            Limit::StreamBytes => self.stream_bytes = most,
            Limit::Expansion => self.expansion = most,
            Limit::FileBytes => self.file_bytes = most,
            Limit::Entries => self.entries = most,
            Limit::TreeBytes => self.tree_bytes = most,
            Limit::ExtensionBytes => self.extension_bytes = count,
            Limit::Extensions => self.extensions = count,
            Limit::Segments => self.segments = count,
            Limit::Depth => self.depth = count,
            Limit::PathBytes => self.path_bytes = count,
            Limit::NameBytes => self.name_bytes = count,
            Limit::XattrValueBytes => self.xattr_value_bytes = count,
            Limit::XattrBytes => self.xattr_bytes = count,
        }
    }

    /// Fails if `count` is more than `limit` allows.
    pub fn check(&self, limit: Limit, count: u64) -> Result<(), Exceeded> {
        if count > self.most(limit) { Err(self.exceeded(limit)) } else { Ok(()) }
    }

    /// The same for a count of things in memory.
    pub fn check_len(&self, limit: Limit, count: usize) -> Result<(), Exceeded> {
        self.check(limit, u64::try_from(count).unwrap_or(u64::MAX))
    }

    /// The error of a limit that is known to be exceeded.
    pub fn exceeded(&self, limit: Limit) -> Exceeded {
        Exceeded { limit, most: self.most(limit) }
    }
}
