//! The proof: a launch of a program from an image that is made here, in memory.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use crate::cli::launch;
use crate::cli::report::STATUS_FAILED;
use crate::host::Host;
use crate::host::doctor::Check;
use crate::host::gpu::Mode;
use crate::launch::gpu::GpuRequest;
use crate::launch::request::{HomeWish, Request, Verb};
use crate::policy::Policy;
use crate::squashfs::compress::Compression;
use crate::squashfs::writer::{Inode, InodeKind, Tree, Writer, WriterOptions};
use crate::sys::process::{self, Ended};

const CHECK: &str = "launch";
/// What a pipe takes without a reader is more.
const MESSAGE_MAX_BYTES: usize = 4096;

/// Launches a program from an image made here, in memory, whatever the site's policy says of images.
pub(super) fn launch(host: Host) -> Check {
    let is_root = host.user.effective_uid == 0;
    let Some(program) = program() else {
        return Check::not_applicable(CHECK, "not tried: no test program for this processor");
    };
    match test_image(&program).and_then(|image| launch_in_child(&image, host)) {
        Ok(()) if is_root => Check::ok(
            CHECK,
            "an image was mounted and a program ran from it; as root: run hpcrun doctor as a user, too",
        ),
        Ok(()) => Check::ok(CHECK, "an image was mounted and a program ran from it"),
        Err(why) => Check::no(CHECK, why, &["mend what is marked 'no', then run 'hpcrun doctor' again"]),
    }
}

/// A squashfs with one program, `/exit0`, in a file without a name.
fn test_image(program: &[u8]) -> Result<File, String> {
    let failed = |error: &dyn std::error::Error| format!("cannot make a test image: {error}");
    let file = crate::sys::file::in_memory(c"hpcrun-doctor").map_err(|error| failed(&error))?;
    let options =
        WriterOptions { compression: Compression::Zstd(1), block_size: 4096, threads: 1, mkfs_time: 0 };
    let mut writer = Writer::create(file, options).map_err(|error| failed(&error))?;
    let mut write = || {
        writer.begin_file(program.len() as u64)?;
        let spare = writer.spare()?;
        let length = spare.len().min(program.len());
        for (to, from) in spare.iter_mut().zip(program) {
            *to = *from;
        }
        writer.advance(length)?;
        writer.end_file()
    };
    let id = write().map_err(|error| failed(&error))?;
    let inode = |kind| Inode { kind, mode: 0o755, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new() };
    let root = InodeKind::Directory(vec![(b"exit0".to_vec(), 1)]);
    let tree = Tree { inodes: vec![inode(root), inode(InodeKind::File(id))], root: 0 };
    let (file, _) = writer.finish(&tree).map_err(|error| failed(&error))?;
    Ok(file)
}

/// Forks, since a launch does not come back; the child tells what went wrong through a pipe.
fn launch_in_child(image: &File, host: Host) -> Result<(), String> {
    let request = Request {
        verb: Verb::Exec { command: vec!["/exit0".into()] },
        cwd: Some(PathBuf::from("/")),
        clean_env: true,
        home: HomeWish::LeaveOut,
        gpu: GpuRequest { mode: Some((Mode::None, "--gpu=none".to_owned())), ..GpuRequest::default() },
        ..Request::default()
    };
    let path = format!("/proc/self/fd/{}", image.as_raw_fd());
    let (mut reader, mut writer) = process::pipe().map_err(|error| error.to_string())?;
    // The pipe is long enough for any message, so that the child does not wait for its parent.
    let ended = process::in_child(|| {
        let failure = launch::with_policy(
            &request,
            Path::new(&path),
            &launch::Reading::default(),
            host,
            &Policy::builtin(),
        );
        let text = failure.map_or_else(|failure| failure.message().to_owned(), |_| String::new());
        let _ = writer.write_all(text.get(..MESSAGE_MAX_BYTES).unwrap_or(&text).as_bytes());
        STATUS_FAILED
    });
    drop(writer);
    let mut why = String::new();
    let _ = reader.read_to_string(&mut why);
    match ended.map_err(|error| error.to_string())? {
        Ended::Exited(0) => Ok(()),
        _ if !why.is_empty() => Err(why),
        ended => Err(format!("the test program ended strangely: {ended:?}")),
    }
}

/// The smallest program that exits with status 0: an ELF file for this processor, which needs no library.
fn program() -> Option<Vec<u8>> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let (machine, code): (u16, &[u8]) = match std::env::consts::ARCH {
        // xor edi, edi; mov eax, 60 (exit); syscall
        "x86_64" => (62, &[0x31, 0xff, 0xb8, 0x3c, 0, 0, 0, 0x0f, 0x05]),
        // mov x0, #0; mov x8, #93 (exit); svc #0
        "aarch64" => (183, &[0, 0, 0x80, 0xd2, 0xa8, 0x0b, 0x80, 0xd2, 0x01, 0, 0, 0xd4]),
        _ => return None,
    };
    let size = HEADERS + code.len() as u64;
    let mut elf = Vec::new();
    // ELF header: 64-bit, little-endian, executable, entry behind the headers, one program header at 64.
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend(2u16.to_le_bytes());
    elf.extend(machine.to_le_bytes());
    elf.extend(1u32.to_le_bytes());
    elf.extend((BASE + HEADERS).to_le_bytes());
    elf.extend(64u64.to_le_bytes());
    elf.extend([0; 8 + 4]);
    for field in [64u16, 56, 1, 64, 0, 0] {
        elf.extend(field.to_le_bytes());
    }
    // Program header: load the whole file, readable and executable.
    elf.extend(1u32.to_le_bytes());
    elf.extend(5u32.to_le_bytes());
    for field in [0, BASE, BASE, size, size, 4096] {
        elf.extend(field.to_le_bytes());
    }
    elf.extend(code);
    Some(elf)
}
