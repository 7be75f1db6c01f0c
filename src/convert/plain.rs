//! Files that are stored without compression: what the start of every program reads.
//!
//! The C library and its loader are two megabytes, which zstd takes two milliseconds to decompress: a fifth of a whole
//! launch, for each launch on a node. Stored plain they come out of the kernel's page cache. An image grows by 1.2 MB.
//! The small files cost what the fragments cost in which they would lie: 0.2 ms each.

/// What a launch reads to tell who the user is in the image, and the loader to find libraries.
const FILES: [&[u8]; 3] = [b"etc/passwd", b"etc/group", b"etc/ld.so.cache"];

/// Beginnings and ends of the names of C libraries and loaders: glibc's of today and of before 2.34, when files had the
/// version in their names, and musl's.
const NAMES: [(&[u8], &[u8]); 10] = [
    (b"libc.so", b".6"),
    (b"libc-2.", b".so"),
    (b"ld-2.", b".so"),
    (b"ld-linux", b".so.1"),
    (b"ld-linux", b".so.2"),
    (b"ld-linux", b".so.3"),
    (b"ld64.so", b".1"),
    (b"ld64.so", b".2"),
    (b"ld-musl-", b".so.1"),
    (b"libc.musl-", b".so.1"),
];

/// Whether a path in the image is that of a C library or of its loader, in a directory where loaders look, or of
/// another file that each launch reads.
pub(super) fn is_read_by_every_start(path: &[u8]) -> bool {
    let components = || path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    FILES.iter().any(|file| components().eq(file.split(|byte| *byte == b'/'))) || is_c_library(components())
}

fn is_c_library<'a>(mut components: impl DoubleEndedIterator<Item = &'a [u8]>) -> bool {
    let Some(name) = components.next_back() else { return false };
    let is_wanted =
        |(start, end): &(&[u8], &[u8])| name.strip_prefix(*start).is_some_and(|rest| rest.ends_with(end));
    let mut directory = components.skip_while(|part| *part == b"usr");
    NAMES.iter().any(is_wanted)
        && directory.next().is_some_and(|part| part.starts_with(b"lib"))
        && directory.nth(1).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c_libraries_loaders_and_identities_of_all_distributions() {
        for path in [
            "usr/lib/x86_64-linux-gnu/libc.so.6",
            "./usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
            "/lib64/libc-2.17.so",
            "lib/x86_64-linux-gnu/ld-2.31.so",
            "usr/lib64/ld-linux-aarch64.so.1",
            "usr//lib/./ld-linux.so.2",
            "lib64/ld64.so.2",
            "lib/ld-musl-x86_64.so.1",
            "etc/passwd",
            "./etc//group",
            "/etc/ld.so.cache",
        ] {
            assert!(is_read_by_every_start(path.as_bytes()), "{path}");
        }
    }

    #[test]
    fn nothing_else() {
        for path in [
            "",
            "/",
            "libc.so.6",
            "opt/sysroot/lib/libc.so.6",
            "usr/lib/x86_64-linux-gnu/sub/libc.so.6",
            "usr/lib/libc.so",
            "usr/lib/libc.so.60",
            "usr/lib/libc-client.so.2007e",
            "usr/lib/libcap.so.2",
            "usr/lib/ld-linux-x86-64.so.2.debug",
            "usr/share/libc.so.6",
            "usr/bin/ld.so",
            "etc",
            "passwd",
            "etc/passwd-",
            "etc/passwd/x",
            "usr/etc/passwd",
        ] {
            assert!(!is_read_by_every_start(path.as_bytes()), "{path}");
        }
    }
}
