//! Rank sharing: the ranks of one step on a node live in one user and one mount namespace.
//!
//! With a namespace for each rank MPI libraries cannot reach into each other's memory, and hang, abort or grow slow.
//! A registry file, locked while a rank starts, lists the members of one group. A rank joins any that lives, or else
//! makes the namespaces; in either case it becomes a member. Nobody counts, waits for the others or cleans up after
//! a crash: the namespaces end with their last process, and a list without living members counts as empty.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;

use crate::launch::plan::ShareKey;
use crate::sys::lock::Locked;
use crate::sys::namespace::{NamespaceIds, Namespaces};
use crate::sys::{self, path};

/// Bytes of a registry file that are looked at: some 40,000 members.
const REGISTRY_BYTES: u64 = 1 << 20;
/// Above so many members the dead are dropped from the list.
const MANY_MEMBERS: usize = 1024;
/// Times that a registry is opened anew because somebody removed it at the same moment.
const ATTEMPTS: usize = 64;
/// Registry files of other groups looked at for being abandoned when a group is created.
const SWEPT_FILES: usize = 64;

/// Why ranks cannot share; the rank goes on with namespaces of its own.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShareError {
    /// The registry's directory or file cannot be opened.
    #[error("cannot open the rank registry {}", .path.display())]
    Open {
        /// The directory or file.
        path: PathBuf,
        /// The kernel's refusal.
        source: sys::Error,
    },
    /// The registry's directory or file is not ours alone: what it says cannot be trusted.
    #[error("the rank registry {} is {why}", .path.display())]
    Untrusted {
        /// The directory or file.
        path: PathBuf,
        /// What is wrong with it: `owned by user 0`.
        why: String,
    },
    /// The registry file cannot be read or written.
    #[error("cannot use the rank registry {}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The kernel's refusal.
        source: sys::Error,
    },
    /// The namespaces of a living member cannot be joined.
    #[error("cannot join the namespaces of process {pid}")]
    Join {
        /// The member.
        pid: i32,
        /// The kernel's refusal.
        source: sys::Error,
    },
}

/// One process of a group. A dead one, and another process with its number, are told by the namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Member {
    pid: i32,
    namespaces: NamespaceIds,
}

/// The registry of one group, locked.
#[derive(Debug)]
pub struct Group {
    directory: File,
    path: PathBuf,
    locked: Locked,
    members: Vec<Member>,
    joined: bool,
}

impl Group {
    /// Opens and locks the registry that `key` names, made if it is missing; waits while another rank starts.
    ///
    /// `uid` must own directory and file, with no right for anybody else: the list says which processes to join.
    pub fn open(key: &ShareKey, uid: u32) -> Result<Group, ShareError> {
        let name = OsString::from(&key.name);
        let path = key.directory.join(&name);
        if Path::new(&name).components().count() != 1
            || !matches!(Path::new(&name).components().next(), Some(Component::Normal(_)))
        {
            return Err(ShareError::Untrusted { path, why: "not named by a plain file name".to_owned() });
        }
        for _ in 0..ATTEMPTS {
            let directory = open_directory(&key.directory, uid)?;
            let file = match path::open_file_in(&directory, &name, true) {
                Ok(file) => file,
                // The directory was removed after it was opened.
                Err(error) if error.errno == Errno::ENOENT => continue,
                Err(source) => return Err(ShareError::Open { path, source }),
            };
            check_private(&file, &path, uid)?;
            let locked = Locked::exclusive(file, &path)
                .map_err(|source| ShareError::File { path: path.clone(), source })?;
            if is_removed(locked.file()) {
                continue;
            }
            let members = read_members(locked.file()).map_err(|error| file_error(&path, "read", &error))?;
            return Ok(Group { directory, path, locked, members, joined: false });
        }
        Err(ShareError::Untrusted { path, why: "removed again and again".to_owned() })
    }

    /// Joins the namespaces of a living member; gives its process id and which they are, none if no member lives.
    ///
    /// Afterwards the caller has all capabilities in the user namespace, as who creates one has. After an error it
    /// is where it was, or in the user namespace only, where it can create its own.
    pub fn join(&mut self) -> Result<Option<(i32, NamespaceIds)>, ShareError> {
        let mut refused = None;
        // The youngest first: the oldest are the likeliest to have gone.
        for member in self.members.iter().rev() {
            let Some(namespaces) = living(member) else { continue };
            match namespaces.join() {
                Ok(()) => {
                    self.joined = true;
                    return Ok(Some((member.pid, member.namespaces)));
                }
                Err(source) => {
                    refused = refused.or(Some(ShareError::Join { pid: member.pid, source }));
                }
            }
        }
        refused.map_or(Ok(None), Err)
    }

    /// Whether [`Group::join`] found a member alive.
    pub fn is_joined(&self) -> bool {
        self.joined
    }

    /// Removes the registry files in the same directory whose members are all dead: nobody else would. For the rank
    /// that creates a group, while it still sees the host's `/proc`.
    pub fn sweep(&self) {
        let Ok(entries) = std::fs::read_dir(self.path.parent().unwrap_or(Path::new("/"))) else { return };
        for entry in entries.take(SWEPT_FILES).flatten() {
            let name = entry.file_name();
            if self.path.file_name() != Some(name.as_os_str()) {
                remove_if_abandoned(&self.directory, &name, |file| {
                    Locked::try_exclusive(file).ok().flatten()
                });
            }
        }
    }

    /// Adds this process, which is now in `namespaces`, to the members, and unlocks the registry.
    pub fn register(self, pid: i32, namespaces: NamespaceIds) -> Result<(), ShareError> {
        let member = Member { pid, namespaces };
        let written = if self.joined && self.members.len() <= MANY_MEMBERS {
            append(self.locked.file(), &[member])
        } else {
            // A creator found nobody alive, so that this leaves nobody but itself.
            let mut alive: Vec<Member> = self
                .members
                .iter()
                .filter(|member| self.joined && living(member).is_some())
                .copied()
                .collect();
            alive.push(member);
            replace(self.locked.file(), &alive)
        };
        written.map_err(|error| file_error(&self.path, "write", &error))
    }
}

/// Removes the registry that `key` names if no member is alive, and its directory if that is then empty. For the
/// process that outlives a group. Waits for a rank that starts at the same time, which is not disturbed.
pub fn remove_abandoned(key: &ShareKey) {
    let Ok(directory) = path::open_directory_itself(&key.directory) else { return };
    let path = key.directory.join(&key.name);
    remove_if_abandoned(&directory, OsStr::new(&key.name), |file| Locked::exclusive(file, &path).ok());
    // Fails where another group has its registry, which is as it should be.
    let _ = std::fs::remove_dir(&key.directory);
}

/// A file is removed only while locked; who waited for the lock sees that the file has gone and makes a new one.
fn remove_if_abandoned(directory: &File, name: &OsStr, lock: impl FnOnce(File) -> Option<Locked>) {
    let Ok(file) = path::open_file_in(directory, name, false) else { return };
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return;
    }
    let Some(locked) = lock(file) else { return };
    if is_removed(locked.file()) {
        return;
    }
    let abandoned = read_members(locked.file())
        .is_ok_and(|members| members.iter().all(|member| living(member).is_none()));
    if abandoned {
        // Nothing to do about a failure: the next rank to create a group tries again.
        let _ = path::remove_file_in(directory, name);
    }
}

/// The namespaces of a member, if it is still the process that it was.
fn living(member: &Member) -> Option<Namespaces> {
    let namespaces = Namespaces::of_process(member.pid).ok()?;
    (namespaces.ids() == member.namespaces).then_some(namespaces)
}

fn open_directory(directory: &Path, uid: u32) -> Result<File, ShareError> {
    let opened = path::make_directory(directory, 0o700).and_then(|()| path::open_directory_itself(directory));
    let opened = opened.map_err(|source| ShareError::Open { path: directory.to_owned(), source })?;
    check_private(&opened, directory, uid)?;
    Ok(opened)
}

/// Checks the opened file itself, so that it does not matter what its name leads to next.
fn check_private(file: &File, path: &Path, uid: u32) -> Result<(), ShareError> {
    let untrusted = |why| Err(ShareError::Untrusted { path: path.to_owned(), why });
    let metadata = file.metadata().map_err(|error| file_error(path, "fstat", &error))?;
    let mode = metadata.mode() & 0o7777;
    if metadata.uid() != uid {
        return untrusted(format!("owned by user {}", metadata.uid()));
    }
    if mode & 0o077 != 0 {
        return untrusted(format!("open to others (mode {mode:04o})"));
    }
    if !metadata.is_dir() && !metadata.is_file() {
        return untrusted("not a regular file".to_owned());
    }
    Ok(())
}

fn is_removed(file: &File) -> bool {
    file.metadata().map_or(true, |metadata| metadata.nlink() == 0)
}

fn file_error(path: &Path, call: &str, error: &std::io::Error) -> ShareError {
    let source = sys::Error::from_io(format!("{call}({path:?})"), error);
    ShareError::File { path: path.to_owned(), source }
}

fn read_members(mut file: &File) -> std::io::Result<Vec<Member>> {
    let mut text = Vec::new();
    file.rewind()?;
    file.take(REGISTRY_BYTES).read_to_end(&mut text)?;
    Ok(parse_members(&text))
}

/// One member a line: process id, user namespace, mount namespace. What is not of this form, as the rest of a write
/// to a full disk, is nobody.
fn parse_members(text: &[u8]) -> Vec<Member> {
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| parse_member(std::str::from_utf8(line).ok()?))
        .collect()
}

fn parse_member(line: &str) -> Option<Member> {
    let mut fields = line.split(' ');
    let pid = fields.next()?.parse().ok().filter(|pid| *pid > 0)?;
    let user = fields.next()?.parse().ok()?;
    let mount = fields.next()?.parse().ok()?;
    fields.next().is_none().then_some(Member { pid, namespaces: NamespaceIds { user, mount } })
}

/// The line begins with a line feed of its own, in case an earlier one was cut short.
fn format_members(members: &[Member]) -> Vec<u8> {
    let mut text = String::new();
    for Member { pid, namespaces: NamespaceIds { user, mount } } in members {
        text.push_str(&format!("\n{pid} {user} {mount}\n"));
    }
    text.into_bytes()
}

fn append(mut file: &File, members: &[Member]) -> std::io::Result<()> {
    file.seek(std::io::SeekFrom::End(0))?;
    file.write_all(&format_members(members))
}

fn replace(file: &File, members: &[Member]) -> std::io::Result<()> {
    file.set_len(0)?;
    append(file, members)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(pid: i32, user: u64, mount: u64) -> Member {
        Member { pid, namespaces: NamespaceIds { user, mount } }
    }

    #[track_caller]
    fn check_parse(text: &str, expected: &[Member]) {
        assert_eq!(parse_members(text.as_bytes()), expected, "{text:?}");
    }

    #[test]
    fn parses_members_and_nothing_else() {
        check_parse("", &[]);
        check_parse("\n1 2 3\n", &[member(1, 2, 3)]);
        check_parse("\n1 2 3\n\n4 5 6\n", &[member(1, 2, 3), member(4, 5, 6)]);
        check_parse("1 2 3", &[member(1, 2, 3)]);
        check_parse("\n1 2\n4 5 6\n", &[member(4, 5, 6)]);
        check_parse("1 2 3 4\n", &[]);
        check_parse("0 2 3\n-1 2 3\n", &[]);
        check_parse("99999999999 2 3\n", &[]);
        check_parse("1  2 3\n", &[]);
        check_parse("1 2 -3\n", &[]);
        check_parse("\0\0\0\n1 2 3\n", &[member(1, 2, 3)]);
        check_parse("x y z\n", &[]);
    }

    #[test]
    fn what_is_written_is_read() {
        let members = [member(1, 2, 3), member(i32::MAX, u64::MAX, 0)];
        assert_eq!(parse_members(&format_members(&members)), members);
    }

    #[test]
    fn a_line_cut_short_harms_no_other() {
        let mut text = format_members(&[member(1, 2, 3)]);
        text.truncate(text.len() - 3);
        text.extend(format_members(&[member(4, 5, 6)]));
        assert_eq!(parse_members(&text), [member(4, 5, 6)]);
    }

    #[test]
    fn a_name_must_be_a_plain_file_name() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["", ".", "..", "/", "a/b", "../a", "/etc/passwd"] {
            let key = ShareKey { directory: directory.path().join("registry"), name: name.to_owned() };
            let error = Group::open(&key, nix::unistd::getuid().as_raw()).unwrap_err();
            assert!(matches!(error, ShareError::Untrusted { .. }), "{name:?}: {error}");
        }
    }

    #[test]
    fn registries_of_the_dead_are_removed_and_no_others() {
        let parent = tempfile::tempdir().unwrap();
        let uid = nix::unistd::getuid().as_raw();
        let key = |name: &str| ShareKey { directory: parent.path().join("registry"), name: name.to_owned() };
        let own = Namespaces::of_process(std::process::id().try_into().unwrap()).unwrap().ids();
        let pid = std::process::id().try_into().unwrap();
        let gone = NamespaceIds { user: 1, mount: 1 };
        Group::open(&key("alive"), uid).unwrap().register(pid, own).unwrap();
        Group::open(&key("dead"), uid).unwrap().register(pid, gone).unwrap();
        let locked = Group::open(&key("locked"), uid).unwrap();
        Group::open(&key("new"), uid).unwrap().sweep();
        let mut left: Vec<_> = std::fs::read_dir(parent.path().join("registry"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["alive", "locked", "new"]);
        drop(locked);
        for name in ["locked", "new"] {
            remove_abandoned(&key(name));
        }
        remove_abandoned(&key("alive"));
        assert!(parent.path().join("registry/alive").exists());
        Group::open(&key("alive"), uid).unwrap().register(pid, gone).unwrap();
        remove_abandoned(&key("alive"));
        assert!(!parent.path().join("registry").exists());
    }

    #[test]
    fn who_waits_for_a_registry_that_is_removed_makes_a_new_one() {
        let parent = tempfile::tempdir().unwrap();
        let uid = nix::unistd::getuid().as_raw();
        let key = ShareKey { directory: parent.path().join("registry"), name: "group".to_owned() };
        let first = Group::open(&key, uid).unwrap();
        let waiting = std::thread::spawn({
            let key = key.clone();
            move || Group::open(&key, uid).map(|group| group.path.exists())
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        path::remove_file_in(&first.directory, OsStr::new("group")).unwrap();
        drop(first);
        assert!(waiting.join().unwrap().unwrap());
    }

    #[test]
    fn many_members_are_cut_down_to_the_living() {
        let parent = tempfile::tempdir().unwrap();
        let uid = nix::unistd::getuid().as_raw();
        let key = ShareKey { directory: parent.path().join("registry"), name: "group".to_owned() };
        let own = Namespaces::of_process(std::process::id().try_into().unwrap()).unwrap().ids();
        let pid = std::process::id().try_into().unwrap();
        let mut group = Group::open(&key, uid).unwrap();
        let mut members = vec![member(1, 1, 1); MANY_MEMBERS];
        members.push(Member { pid, namespaces: own });
        replace(group.locked.file(), &members).unwrap();
        group.members = members;
        group.joined = true;
        group.register(pid, own).unwrap();
        let left = Group::open(&key, uid).unwrap().members;
        assert_eq!(left, [Member { pid, namespaces: own }; 2]);
    }
}
