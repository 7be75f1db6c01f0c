//! Any bytes as a squashfs: open, walk, read, look up, within bounds; two cache sizes must agree.
//!
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run squashfs_read`; start it on small images of `mksquashfs -noI -noD -noF -noX`, so that
//! mutations reach the checks behind the codecs.

#![no_main]

#[path = "../../tests/it/hostile_squashfs/exercise.rs"]
#[expect(dead_code, reason = "only the digest counts here")]
mod exercise;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use hpcrun::squashfs::reader::{Filesystem, ReaderOptions};
use libfuzzer_sys::fuzz_target;

/// The digest of all that can be read; nothing if the image does not open.
fn read(image: &File, options: ReaderOptions) -> Option<u64> {
    let image = image.try_clone().expect("a second descriptor");
    let filesystem = Filesystem::open(image, 0, options).ok()?;
    Some(exercise::exercise(&filesystem).digest)
}

fuzz_target!(|bytes: &[u8]| {
    static FILE: OnceLock<File> = OnceLock::new();
    let image = FILE.get_or_init(|| {
        let path = format!("/dev/shm/hpcrun-fuzz-{}", std::process::id());
        let file = File::options().read(true).write(true).create_new(true).open(&path).expect("a file in memory");
        std::fs::remove_file(path).expect("its name removed");
        file
    });
    image.set_len(0).expect("an empty file");
    image.write_all_at(bytes, 0).expect("room in memory");
    let tiny = ReaderOptions { data_cache_bytes: 0, metadata_cache_bytes: 30_000 };
    assert_eq!(read(image, ReaderOptions::default()), read(image, tiny));
});
