//! Running containers: what `/proc` says of processes, put together. Pure; [`super::probe::containers`] reads.
//!
//! Nothing keeps a list. A container is the processes of one mount namespace whose root hpcrun made; its keeper, which is
//! outside, says in its command line which user namespace it serves.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Launcher;
use crate::sys::mount::unescape;

/// The name of the process that keeps an image server running.
pub const KEEPER_NAME: &str = "hpcrun-keeper";
/// The name of the image server.
pub const SERVER_NAME: &str = "hpcrun-server";
/// The type that the mount table shows for an image that is served.
pub const FILESYSTEM_TYPE: &str = "fuse.hpcrun";

const TITLE_BEGIN: &[u8] = b"hpcrun[";
const TITLE_MIDDLE: &[u8] = b"]: serves ";

/// One container with all that live in it.
#[derive(Debug, Clone)]
pub struct Container {
    /// Inode of its user namespace.
    pub user_namespace: u64,
    /// Inode of its mount namespace.
    pub mount_namespace: u64,
    /// Whose it is.
    pub uid: u32,
    /// The image file, as the launch named it; a site's mounted tree has none of its own.
    pub image: PathBuf,
    /// Its processes, oldest first; at least one.
    pub processes: Vec<Process>,
    /// For how long the oldest process has been running.
    pub age: Duration,
    /// What launched the oldest process.
    pub launcher: Launcher,
    /// The image server; none for a mounted tree, or where it hides.
    pub server: Option<Server>,
}

/// A process of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id, as seen here.
    pub pid: i32,
    /// Its command line.
    pub command: Vec<OsString>,
}

/// An image server and what it costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Server {
    /// Its process id.
    pub pid: i32,
    /// Memory that it has in use, parts that it shares with others included.
    pub resident_bytes: u64,
    /// The same with its share of what is shared: only root may know.
    pub proportional_bytes: Option<u64>,
}

impl Container {
    /// Whether a process is one of its.
    pub fn holds(&self, pid: i32) -> bool {
        self.processes.iter().any(|process| process.pid == pid)
    }

    /// Whether it belongs to the job or step `id`, named as the launcher does (`1234`, `1234.0`) or with the launcher's
    /// name before it, as [`Launcher`] has it (`slurm 1234`).
    pub fn is_of_job(&self, id: &str) -> bool {
        let is = |scope: &str| scope == id || scope.split_once(' ').is_some_and(|(_, bare)| bare == id);
        [&self.launcher.job, &self.launcher.step].into_iter().flatten().any(|scope| is(scope))
    }
}

/// What is mounted as the root of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// An image that is served, by its file's name.
    Served(PathBuf),
    /// A tree without writing, devices and setuid bits: hpcrun's if the processes say so.
    Restricted,
    /// A writable layer over something that the table does not show.
    Layered,
    /// Anything else, as the host's own root, which a launch has until it is nearly done.
    Other,
}

/// The root of the mount namespace whose `/proc/PID/mountinfo` this is.
pub fn root(mountinfo: &[u8]) -> Root {
    let mut root = Root::Other;
    for line in mountinfo.split(|byte| *byte == b'\n') {
        let Some(mount) = Mount::parse(line).filter(|mount| mount.point == b"/") else { continue };
        if mount.filesystem == FILESYSTEM_TYPE.as_bytes() {
            return Root::Served(PathBuf::from(OsString::from_vec(unescape(mount.source))));
        }
        let has = |flag: &[u8]| mount.options.split(|byte| *byte == b',').any(|option| option == flag);
        root = match mount.filesystem {
            b"overlay" => Root::Layered,
            _ if has(b"ro") && has(b"nosuid") && has(b"nodev") => Root::Restricted,
            _ => Root::Other,
        };
    }
    root
}

/// A line of `mountinfo`, as far as it matters here.
struct Mount<'l> {
    point: &'l [u8],
    options: &'l [u8],
    filesystem: &'l [u8],
    source: &'l [u8],
}

impl<'l> Mount<'l> {
    fn parse(line: &'l [u8]) -> Option<Mount<'l>> {
        let mut words = line.split(|byte| *byte == b' ');
        let point = words.nth(4)?;
        let options = words.next()?;
        words.find(|word| *word == b"-")?;
        Some(Mount { point, options, filesystem: words.next()?, source: words.next()? })
    }
}

/// What a keeper says in its command line: which user namespace it serves with which image file.
pub fn keeper_title(user_namespace: u64, image: &Path) -> Vec<u8> {
    let inode = user_namespace.to_string();
    [TITLE_BEGIN, inode.as_bytes(), TITLE_MIDDLE, image.as_os_str().as_bytes()].concat()
}

/// The user namespace and the image file out of a keeper's command line. A long path may have been cut off.
pub fn parse_keeper_title(command_line: &[u8]) -> Option<(u64, PathBuf)> {
    let title = command_line.split(|byte| *byte == 0).next()?.strip_prefix(TITLE_BEGIN)?;
    let end = title.iter().position(|byte| !byte.is_ascii_digit())?;
    let inode = std::str::from_utf8(title.get(..end)?).ok()?.parse().ok()?;
    let rest = title.get(end..)?.strip_prefix(b"]")?;
    let image = rest.strip_prefix(TITLE_MIDDLE.strip_prefix(b"]")?).unwrap_or_default();
    Some((inode, PathBuf::from(OsStr::from_bytes(image))))
}

/// Parent and start, in ticks since the node's boot, out of `/proc/PID/stat`.
pub fn parse_stat(stat: &[u8]) -> Option<(i32, u64)> {
    // The name, in brackets, may hold anything; what follows its last bracket does not.
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace().skip(2);
    let parent = fields.next()?.parse().ok()?;
    // Field 4 is the parent, field 22 the start.
    Some((parent, fields.nth(17)?.parse().ok()?))
}

/// The words of a `/proc/PID/cmdline`.
pub fn parse_command_line(command_line: &[u8]) -> Vec<OsString> {
    let text = command_line.strip_suffix(b"\0").unwrap_or(command_line);
    if text.is_empty() {
        return Vec::new();
    }
    text.split(|byte| *byte == 0).map(|word| OsStr::from_bytes(word).to_owned()).collect()
}

/// The variables of a `/proc/PID/environ`.
pub fn parse_environment(environ: &[u8]) -> super::Environment {
    let entries = environ.split(|byte| *byte == 0);
    entries
        .filter_map(|entry| {
            let end = entry.iter().position(|byte| *byte == b'=')?;
            let (name, value) = (entry.get(..end)?, entry.get(end.checked_add(1)?..)?);
            Some((OsStr::from_bytes(name).to_owned(), OsStr::from_bytes(value).to_owned()))
        })
        .collect()
}

/// A size given in KiB on a line `NAME:  1234 kB`, in bytes.
pub fn parse_kib(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    rest.split_ascii_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
65 89 0:6 / /dev rw,relatime - devtmpfs devtmpfs rw,size=12334524k\n\
88 89 254:0 /tmp /tmp rw,relatime shared:3 master:1 - ext4 /dev/vda rw\n";

    #[test]
    fn roots() {
        let served =
            "89 43 0:39 / / ro,nosuid,nodev,relatime - fuse.hpcrun /a\\040b\\134/i.sqsh ro,user_id=1\n";
        let path = PathBuf::from("/a b\\/i.sqsh");
        assert_eq!(root(format!("{TABLE}{served}").as_bytes()), Root::Served(path.clone()));
        assert_eq!(root(format!("{served}{TABLE}").as_bytes()), Root::Served(path.clone()));
        let overlay = "90 89 0:40 / / rw,relatime - overlay overlay rw\n";
        assert_eq!(root(format!("{served}{overlay}").as_bytes()), Root::Served(path));
        assert_eq!(root(overlay.as_bytes()), Root::Layered);
        assert_eq!(root(overlay.replace("overlay", "ext4").as_bytes()), Root::Other);
        let tree = "89 43 7:0 / / ro,nosuid,nodev,relatime - squashfs /dev/loop0 ro\n";
        assert_eq!(root(tree.as_bytes()), Root::Restricted);
        assert_eq!(root(tree.replace("nodev,", "").as_bytes()), Root::Other);
        assert_eq!(root(TABLE.as_bytes()), Root::Other);
        // Elsewhere than at the root, an image is a bind like any other.
        assert_eq!(root(served.replace(" / / ", " / /x ").as_bytes()), Root::Other);
        for broken in ["", "1", "1 2 3 / /", "1 2 3 / / ro - fuse.hpcrun", "\0\n\n - \n"] {
            assert_eq!(root(broken.as_bytes()), Root::Other, "{broken:?}");
        }
    }

    #[test]
    fn escapes() {
        for (name, plain) in [("a", "a"), ("\\040", " "), ("\\", "\\"), ("\\04", "\\04"), ("\\999", "\\999")]
        {
            assert_eq!(unescape(name.as_bytes()), plain.as_bytes(), "{name}");
        }
    }

    #[test]
    fn titles() {
        let title = keeper_title(4_026_532_177, Path::new("/a b.sqsh"));
        assert_eq!(title, b"hpcrun[4026532177]: serves /a b.sqsh");
        let parsed = |text: &[u8]| parse_keeper_title(text);
        assert_eq!(parsed(&title), Some((4_026_532_177, "/a b.sqsh".into())));
        assert_eq!(parsed(b"hpcrun[42]: serves /a\0\0rest"), Some((42, "/a".into())));
        assert_eq!(parsed(b"hpcrun[42]: ser"), Some((42, "".into())));
        for other in
            [&b""[..], b"hpcrun\0exec\0a", b"hpcrun[]: serves /a", b"hpcrun[42", b"hpcrun[4 2]: serves /a"]
        {
            assert_eq!(parsed(other), None, "{}", String::from_utf8_lossy(other));
        }
    }

    #[test]
    fn processes() {
        let tail = "S 77 3 3 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 123456 1000 10 18446744073709551615";
        for name in ["sh", "a b", "x) S 1 (y", ") ) 9"] {
            assert_eq!(parse_stat(format!("9 ({name}) {tail}").as_bytes()), Some((77, 123_456)), "{name}");
        }
        for broken in ["", "9", "9 (sh)", "9 (sh) S", "9 (sh) S x 3 3", "9 (sh) S 1 2 3"] {
            assert_eq!(parse_stat(broken.as_bytes()), None, "{broken}");
        }
        assert_eq!(parse_command_line(b"a\0\0b c\0"), ["a", "", "b c"]);
        assert_eq!(parse_command_line(b"title"), ["title"]);
        assert_eq!(parse_command_line(b""), [""; 0]);
        let environment = parse_environment(b"A=1\0B==2\n\0broken\0=x\0C=\0");
        let pairs = [("A", "1"), ("B", "=2\n"), ("", "x"), ("C", "")].map(|(a, b)| (a.into(), b.into()));
        assert_eq!(environment, pairs);
        assert_eq!(parse_kib("Rss: 5 kB\nVmRSS:\t  12 kB\n", "VmRSS"), Some(12 << 10));
        assert_eq!(parse_kib("VmRSSX: 5 kB\n", "VmRSS"), None);
    }

    #[test]
    fn jobs() {
        let container = Container {
            user_namespace: 1,
            mount_namespace: 2,
            uid: 1000,
            image: "/i".into(),
            processes: vec![Process { pid: 7, command: Vec::new() }],
            age: Duration::ZERO,
            launcher: Launcher {
                job: Some("slurm 12".to_owned()),
                step: Some("slurm 12.batch".to_owned()),
                ..Launcher::default()
            },
            server: None,
        };
        for (id, is) in
            [("12", true), ("12.batch", true), ("slurm 12", true), ("1", false), ("12.0", false), ("", false)]
        {
            assert_eq!(container.is_of_job(id), is, "{id}");
        }
        assert!(container.holds(7) && !container.holds(12));
    }
}
