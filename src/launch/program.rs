//! Why the kernel would not execute a file, found out by looking at it. Runs inside the new root, after the fact.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::statvfs::FsFlags;

use crate::elf::Object;

/// Bytes of a program that are looked at.
const HEAD_BYTES: u64 = 64 << 10;

/// What is wrong with the program at `path`, which `execve(2)` refused with `errno`; none if there is no such file.
pub(super) fn diagnose(path: &Path, errno: Errno) -> Option<String> {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return Some("it lies in a directory that is closed to you".to_owned());
        }
        Err(_) => return None,
    };
    if metadata.is_dir() {
        return Some("it is a directory".to_owned());
    }
    if !metadata.is_file() {
        return Some("it is not a regular file".to_owned());
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o111 == 0 {
        return Some(format!("it is not executable (mode {mode:04o})"));
    }
    let mount = nix::sys::statvfs::statvfs(path).ok();
    if mount.is_some_and(|mount| mount.flags().contains(FsFlags::ST_NOEXEC)) {
        return Some("its file system is mounted noexec".to_owned());
    }
    let reason = match head(path) {
        Some(head) => inside(&head, errno),
        None if errno == Errno::EACCES => format!("you may not execute it (mode {mode:04o})"),
        None => errno.desc().to_lowercase(),
    };
    Some(reason)
}

/// The beginning of a regular file. It may have been exchanged since, so that opening must not block.
fn head(path: &Path) -> Option<Vec<u8>> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut head = Vec::new();
    file.take(HEAD_BYTES).read_to_end(&mut head).ok()?;
    Some(head)
}

/// What in the file itself explains `errno`.
fn inside(head: &[u8], errno: Errno) -> String {
    if head.is_empty() {
        return "it is empty".to_owned();
    }
    if let Some(interpreter) = script_interpreter(head) {
        return interpreter_reason("the interpreter of its '#!' line", interpreter, errno);
    }
    let read = |offset: u64, length: usize| {
        let rest = head.get(usize::try_from(offset).ok()?..)?;
        Some(rest.get(..length).unwrap_or(rest).to_vec())
    };
    let Some(object) = Object::read_names(&read) else {
        return "it is neither a program nor a script with a '#!' line".to_owned();
    };
    let elf = object.header;
    if elf.architecture() != Some(std::env::consts::ARCH) {
        let machine = elf.architecture().map_or_else(|| format!("machine {}", elf.machine), str::to_owned);
        return format!("it is a program for {machine}, and this node is {}", std::env::consts::ARCH);
    }
    match &object.interpreter {
        Some(interpreter) => interpreter_reason("its dynamic loader", interpreter, errno),
        None => errno.desc().to_lowercase(),
    }
}

fn interpreter_reason(what: &str, path: &[u8], errno: Errno) -> String {
    let path = Path::new(OsStr::from_bytes(path));
    let shown = path.display();
    match errno {
        Errno::ENOENT | Errno::ENOTDIR => format!("{what}, {shown}, does not exist"),
        Errno::EACCES => match std::fs::metadata(path) {
            Ok(metadata) if metadata.mode() & 0o111 == 0 => format!("{what}, {shown}, is not executable"),
            _ => format!("you may not execute it or {what}, {shown}"),
        },
        _ => format!("{what}, {shown}: {}", errno.desc().to_lowercase()),
    }
}

/// The interpreter named by a script's first line.
pub(super) fn script_interpreter(head: &[u8]) -> Option<&[u8]> {
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    line.split(|byte| matches!(byte, b' ' | b'\t')).find(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(head: &[u8], errno: Errno, expected: &str) {
        assert_eq!(inside(head, errno), expected);
    }

    /// A header of `machine` with one program header, `PT_INTERP` of `interpreter`.
    fn elf64(machine: u16, interpreter: &[u8]) -> Vec<u8> {
        let mut head = vec![0u8; 64 + 56];
        head[..6].copy_from_slice(b"\x7fELF\x02\x01");
        head[18..20].copy_from_slice(&machine.to_le_bytes());
        head[32..40].copy_from_slice(&64u64.to_le_bytes());
        head[54..56].copy_from_slice(&56u16.to_le_bytes());
        head[56..58].copy_from_slice(&1u16.to_le_bytes());
        head[64..68].copy_from_slice(&3u32.to_le_bytes());
        head[72..80].copy_from_slice(&120u64.to_le_bytes());
        head[96..104].copy_from_slice(&(interpreter.len() as u64 + 1).to_le_bytes());
        head.extend_from_slice(interpreter);
        head.push(0);
        head
    }

    fn own_machine() -> u16 {
        let own = std::fs::read("/proc/self/exe").unwrap();
        Object::read_names(&|_, length| own.get(..length).map(<[u8]>::to_vec)).unwrap().header.machine
    }

    #[test]
    fn names_what_is_wrong() {
        check(b"", Errno::ENOEXEC, "it is empty");
        check(b"echo hi\n", Errno::ENOEXEC, "it is neither a program nor a script with a '#!' line");
        check(b"#!/no/such\n", Errno::ENOENT, "the interpreter of its '#!' line, /no/such, does not exist");
        check(
            b"#! \t /usr/bin/env python3\n",
            Errno::ENOENT,
            "the interpreter of its '#!' line, /usr/bin/env, does not exist",
        );
        check(
            b"#!/etc/passwd\n",
            Errno::EACCES,
            "the interpreter of its '#!' line, /etc/passwd, is not executable",
        );
        check(
            &elf64(own_machine(), b"/lib/ld-musl-x.so.1"),
            Errno::ENOENT,
            "its dynamic loader, /lib/ld-musl-x.so.1, does not exist",
        );
        check(b"\x7fELF", Errno::ENOEXEC, "it is neither a program nor a script with a '#!' line");
    }

    #[test]
    fn names_foreign_architectures() {
        let own = std::env::consts::ARCH;
        for (machine, name) in [(21, "powerpc64"), (22, "s390x"), (243, "riscv64"), (0xbeef, "machine 48879")]
        {
            check(
                &elf64(machine, b""),
                Errno::ENOEXEC,
                &format!("it is a program for {name}, and this node is {own}"),
            );
        }
    }

    #[test]
    fn reads_its_own_header() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        let object = Object::read_names(&|offset, length| {
            let start = usize::try_from(offset).ok()?;
            own.get(start..start.checked_add(length)?).map(<[u8]>::to_vec)
        });
        let object = object.unwrap();
        assert_eq!(object.header.architecture(), Some(std::env::consts::ARCH));
        if cfg!(target_env = "gnu") {
            let interpreter = object.interpreter.unwrap();
            assert!(Path::new(OsStr::from_bytes(&interpreter)).exists());
        }
    }

    #[test]
    fn survives_any_truncation_and_any_byte() {
        let whole = elf64(own_machine(), b"/lib/ld.so");
        for length in 0..whole.len() {
            inside(&whole[..length], Errno::ENOENT);
        }
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut changed = whole.clone();
                changed[at] = value;
                inside(&changed, Errno::ENOENT);
            }
        }
    }

    #[test]
    fn looks_at_the_file_first() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert_eq!(diagnose(&directory.path().join("none"), Errno::ENOENT), None);
        assert_eq!(diagnose(directory.path(), Errno::EACCES).unwrap(), "it is a directory");
        assert_eq!(diagnose(&file, Errno::EACCES).unwrap(), "it is not executable (mode 0644)");
        assert_eq!(diagnose(Path::new("/dev/null"), Errno::EACCES).unwrap(), "it is not a regular file");
    }
}
