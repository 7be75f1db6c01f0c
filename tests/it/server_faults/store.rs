//! A store that goes wrong on command: a FUSE file system with one file, which a test hangs, fails, cuts short, makes stale
//! or replaces. Nothing of it is cached, so that every read of the image server arrives here.

use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use hpcrun::sys::fuse::{Device, REQUEST_BYTES, open_device};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::support::scratch;

/// The file's name.
const NAME: &str = "image.sqsh";
/// Node ids: the root, and the first version of the file.
const ROOT: u64 = 1;
const FIRST_VERSION: u64 = 2;
/// `FOPEN_DIRECT_IO`.
const DIRECT_IO: u32 = 1;

/// What reads meet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fault {
    None,
    /// They wait until the fault is another one.
    Hang,
    /// They fail with this errno.
    Fail(i32),
    /// They fail with `ESTALE`, until the file is opened again.
    Stale,
    /// At most this many bytes come at a time.
    Short(usize),
}

/// The mounted store; unmounted on drop.
pub(crate) struct Store {
    dir: tempfile::TempDir,
    shared: Arc<Shared>,
}

struct Shared {
    device: Device,
    state: Mutex<State>,
}

struct State {
    fault: Fault,
    content: Vec<u8>,
    /// Node id of the file; another one after each replacement.
    version: u64,
    /// The last file handle given out, and the last that is stale.
    opened: u64,
    stale: u64,
    /// Reads that hang.
    hanging: Vec<Read>,
    /// Reads that came.
    reads: usize,
}

#[derive(Clone, Copy)]
struct Read {
    unique: u64,
    handle: u64,
    offset: u64,
    size: u32,
}

impl Store {
    pub(crate) fn new(content: Vec<u8>) -> Store {
        let dir = scratch();
        let fuse = open_device().expect("/dev/fuse");
        let data = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
            fuse.as_raw_fd()
        );
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("hpcrun-test-store"), dir.path(), Some("fuse"), flags, Some(data.as_str()))
            .expect("mount");
        let state = State {
            fault: Fault::None,
            content,
            version: FIRST_VERSION,
            opened: 0,
            stale: 0,
            hanging: Vec::new(),
            reads: 0,
        };
        let shared = Arc::new(Shared { device: Device::new(fuse), state: Mutex::new(state) });
        let serving = Arc::clone(&shared);
        std::thread::spawn(move || {
            let mut request = vec![0; REQUEST_BYTES.max(1 << 17)];
            loop {
                match serving.device.read(&mut request) {
                    Ok(length) => serving.answer(&request[..length]),
                    Err(nix::errno::Errno::ENODEV) => return,
                    Err(_) => {}
                }
            }
        });
        Store { dir, shared }
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.dir.path().join(NAME)
    }

    /// From now on this happens; what hangs is answered if that is another fault.
    pub(crate) fn set(&self, fault: Fault) {
        let hanging = {
            let mut state = self.shared.state.lock().unwrap();
            state.fault = fault;
            if fault == Fault::Stale {
                state.stale = state.opened;
            }
            if fault == Fault::Hang { Vec::new() } else { std::mem::take(&mut state.hanging) }
        };
        hanging.into_iter().for_each(|read| self.shared.read(read));
    }

    /// Another file of that name, as after `mv`.
    pub(crate) fn replace(&self, content: Vec<u8>) {
        let mut state = self.shared.state.lock().unwrap();
        state.content = content;
        state.version += 1;
    }

    /// Reads that hang at the moment.
    pub(crate) fn hanging(&self) -> usize {
        self.shared.state.lock().unwrap().hanging.len()
    }

    /// Reads that came so far.
    pub(crate) fn reads(&self) -> usize {
        self.shared.state.lock().unwrap().reads
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.set(Fault::None);
        umount2(self.dir.path(), MntFlags::MNT_DETACH).expect("umount");
    }
}

impl Shared {
    fn answer(&self, request: &[u8]) {
        let word = |at: usize| u64::from_ne_bytes(request[at..at + 8].try_into().unwrap());
        let half = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
        let (opcode, unique, node) = (half(4), word(8), word(16));
        match opcode {
            // FORGET, INTERRUPT, BATCH_FORGET
            2 | 36 | 42 => {}
            15 => self.read(Read { unique, handle: word(40), offset: word(48), size: half(56) }),
            _ => match self.simple(opcode, node, &request[40..]) {
                Ok(reply) => self.reply(unique, 0, &reply),
                Err(errno) => self.reply(unique, errno, &[]),
            },
        }
    }

    fn simple(&self, opcode: u32, node: u64, arguments: &[u8]) -> Result<Vec<u8>, i32> {
        let mut state = self.state.lock().unwrap();
        match opcode {
            // LOOKUP
            1 if arguments == [NAME.as_bytes(), b"\0"].concat() => {
                let mut reply = Vec::new();
                for word in [state.version, 0, 0, 0, 0] {
                    reply.extend(word.to_ne_bytes());
                }
                reply.extend(attributes(&state, state.version));
                Ok(reply)
            }
            1 => Err(libc::ENOENT),
            // GETATTR
            3 if node != ROOT && node != state.version => Err(libc::ESTALE),
            3 => Ok([vec![0; 16], attributes(&state, node)].concat()),
            // OPEN and OPENDIR
            14 | 27 => {
                state.opened += 1;
                let mut reply = state.opened.to_ne_bytes().to_vec();
                reply.extend(DIRECT_IO.to_ne_bytes());
                reply.extend([0; 4]);
                Ok(reply)
            }
            // STATFS
            17 => Ok(vec![0; 80]),
            // RELEASE, FLUSH, READDIR, RELEASEDIR, DESTROY
            18 | 25 | 28 | 29 | 38 => Ok(Vec::new()),
            // INIT
            26 => {
                let mut reply = Vec::new();
                for half in [7u32, 31, 0, 0, 0, 4096, 1] {
                    reply.extend(half.to_ne_bytes());
                }
                reply.resize(64, 0);
                Ok(reply)
            }
            _ => Err(libc::ENOSYS),
        }
    }

    fn read(&self, read: Read) {
        let mut state = self.state.lock().unwrap();
        state.reads += 1;
        let size = match state.fault {
            Fault::Hang => return state.hanging.push(read),
            Fault::Fail(errno) => return self.reply(read.unique, errno, &[]),
            Fault::Stale if read.handle <= state.stale => return self.reply(read.unique, libc::ESTALE, &[]),
            Fault::Short(most) => (read.size as usize).min(most),
            Fault::None | Fault::Stale => read.size as usize,
        };
        let start = (read.offset as usize).min(state.content.len());
        let end = (start + size).min(state.content.len());
        self.reply(read.unique, 0, &state.content[start..end]);
    }

    fn reply(&self, unique: u64, errno: i32, content: &[u8]) {
        let mut header = Vec::new();
        header.extend((16 + content.len() as u32).to_ne_bytes());
        header.extend((-errno).to_ne_bytes());
        header.extend(unique.to_ne_bytes());
        // Who asked may have gone.
        let _ = self.device.write(&[IoSlice::new(&header), IoSlice::new(content)]);
    }
}

/// `struct fuse_attr`: a directory, or the file.
fn attributes(state: &State, node: u64) -> Vec<u8> {
    let (size, mode, links) = match node {
        ROOT => (0, libc::S_IFDIR | 0o755, 2),
        _ => (state.content.len() as u64, libc::S_IFREG | 0o644, 1),
    };
    let mut attributes = Vec::new();
    for word in [node, size, size.div_ceil(512), 1, 1, 1] {
        attributes.extend(word.to_ne_bytes());
    }
    for half in [0, 0, 0, mode, links, 0, 0, 0, 4096, 0] {
        attributes.extend(half.to_ne_bytes());
    }
    attributes
}
