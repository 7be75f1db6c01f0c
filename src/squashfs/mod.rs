//! The squashfs 4.0 on-disk format: layout, lazy reader, parallel writer. Knows nothing of OCI or namespaces.
//!
//! Format source: Linux `Documentation/filesystems/squashfs.rst` and `fs/squashfs/squashfs_fs.h`.

pub mod compress;
pub mod decompress;
pub mod format;
mod lzo;
pub mod reader;
pub mod writer;
