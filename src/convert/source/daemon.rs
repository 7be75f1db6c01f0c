//! `docker-daemon:` an image that docker or podman on this machine has, asked for over their socket.
//!
//! One request, `GET /images/NAME/get`, whose answer is what `docker save` writes. The few lines of HTTP/1.1 that this
//! takes are here: the socket is a local file, so there is no TLS, no proxy, no redirect and no credential.

use std::io::{self, BufRead, BufReader, Read, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::archive::Archive;
use super::docker_archive::DockerArchive;
use super::input::keep;
use super::{SourceError, SourceOptions};
use crate::hint::Hint;

/// Longest head of an answer, bytes.
const HEAD_MAX: u64 = 64 << 10;
/// Longest error message that is read, bytes.
const MESSAGE_MAX: u64 = 64 << 10;
/// How long the daemon may be silent: it gathers a large image before it sends.
const SILENCE_MAX: Duration = Duration::from_secs(600);

/// Why a daemon gave no image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// The socket refused.
    #[error("cannot connect to {}", .socket.display())]
    Connect {
        /// Its path.
        socket: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the daemon broke off")]
    Broken(#[source] io::Error),
    /// An answer that is none.
    #[error("the daemon's answer is not HTTP: {0}")]
    Malformed(&'static str),
    /// The daemon says no.
    #[error("the daemon says {status}: {message}")]
    Status {
        /// The HTTP status.
        status: u16,
        /// Its words.
        message: String,
    },
}

impl Hint for DaemonError {
    fn hints(&self) -> Vec<String> {
        let kind = match self {
            DaemonError::Connect { source, .. } => source.kind(),
            DaemonError::Status { status: 404, .. } => {
                return vec!["'docker images' lists what the daemon has".to_owned()];
            }
            _ => return Vec::new(),
        };
        let line = match kind {
            io::ErrorKind::PermissionDenied => {
                "ask for membership in the group that owns the socket, or use: docker save NAME | hpcrun convert \
                 docker-archive:- DEST"
            }
            _ => {
                "is the daemon running? DOCKER_HOST=unix://PATH names another socket, for example podman's \
                 $XDG_RUNTIME_DIR/podman/podman.sock"
            }
        };
        vec![line.to_owned()]
    }
}

/// Fetches image `name` from the daemon into a file without a name and opens it.
pub(super) fn open(
    name: &str,
    origin: String,
    options: &SourceOptions,
) -> Result<DockerArchive, SourceError> {
    let failed = |source| SourceError::Daemon { origin: origin.clone(), source };
    let body =
        get(&options.docker_socket, &format!("/images/{}/get", encode(&tagged(name)))).map_err(failed)?;
    let kept = keep(body, &origin, options)?;
    let archive =
        Archive::of(kept).map_err(|source| SourceError::Archive { origin: origin.clone(), source })?;
    DockerArchive::open(archive, None, origin, options)
}

/// The name with a tag: a name without one stands for all tags of a repository.
fn tagged(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or_default();
    let is_id = name.len() >= 12 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if is_id || last.contains(':') || last.contains('@') { name.to_owned() } else { format!("{name}:latest") }
}

/// The name in a path: what could end it or start another part is escaped.
fn encode(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b':' | b'@' | b'.' | b'_' | b'-' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// Sends a GET over the socket; gives the body of a good answer.
fn get(socket: &Path, target: &str) -> Result<Body, DaemonError> {
    let refused = |source| DaemonError::Connect { socket: socket.to_owned(), source };
    let mut stream = UnixStream::connect(socket).map_err(refused)?;
    stream.set_read_timeout(Some(SILENCE_MAX)).map_err(refused)?;
    let request =
        format!("GET {target} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\nUser-Agent: hpcrun\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(DaemonError::Broken)?;
    let mut input = BufReader::with_capacity(256 << 10, stream);
    let (status, framing) = read_head(&mut input)?;
    let mut body = Body { input, framing };
    if status == 200 {
        return Ok(body);
    }
    let mut message = Vec::new();
    // The message is a courtesy: as much of it as there is.
    let _ = body.by_ref().take(MESSAGE_MAX).read_to_end(&mut message);
    Err(DaemonError::Status { status, message: message_of(&message) })
}

/// `{"message": "..."}`, or whatever else was sent.
fn message_of(body: &[u8]) -> String {
    let document: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let words = ["message", "cause"].into_iter().find_map(|key| document.get(key)?.as_str());
    words.map_or_else(|| String::from_utf8_lossy(body).trim().to_owned(), str::to_owned)
}

/// How the end of a body is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// So many bytes are left.
    Length(u64),
    /// Chunks, each with its length before it; so many bytes of the present one are left.
    Chunked { left: u64, ended: bool },
    /// The connection ends.
    Close,
}

fn read_head(input: &mut impl BufRead) -> Result<(u16, Framing), DaemonError> {
    let mut head = input.take(HEAD_MAX);
    let mut line = Vec::new();
    let mut next_line = || -> Result<String, DaemonError> {
        line.clear();
        head.read_until(b'\n', &mut line).map_err(DaemonError::Broken)?;
        let text = line.strip_suffix(b"\n").ok_or(DaemonError::Malformed("its head has no end"))?;
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        Ok(String::from_utf8_lossy(text).into_owned())
    };
    let first = next_line()?;
    let mut words = first.split(' ');
    let is_http = words.next().is_some_and(|word| word.starts_with("HTTP/1."));
    let status = words.next().and_then(|word| word.parse().ok()).filter(|_| is_http);
    let status = status.ok_or(DaemonError::Malformed("no status line"))?;
    let mut framing = Framing::Close;
    loop {
        let line = next_line()?;
        if line.is_empty() {
            return Ok((status, framing));
        }
        let (name, value) = line.split_once(':').ok_or(DaemonError::Malformed("a line without a colon"))?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("transfer-encoding") && value.eq_ignore_ascii_case("chunked") {
            framing = Framing::Chunked { left: 0, ended: false };
        } else if name.eq_ignore_ascii_case("content-length") && framing == Framing::Close {
            let length = value.parse().map_err(|_| DaemonError::Malformed("no length of its content"))?;
            framing = Framing::Length(length);
        }
    }
}

/// The body of an answer; ends where the daemon says, and fails if the connection ends before.
#[derive(Debug)]
struct Body<R = BufReader<UnixStream>> {
    input: R,
    framing: Framing,
}

impl<R: BufRead> Body<R> {
    /// Reads the line before a chunk; at the last one, what follows it.
    fn next_chunk(&mut self) -> io::Result<u64> {
        let mut line = self.line()?;
        if line.is_empty() {
            // The end of the chunk before.
            line = self.line()?;
        }
        let digits = line.split(';').next().unwrap_or_default().trim();
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, "a malformed chunk");
        let is_hex = (1..=16).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let length = if is_hex { u64::from_str_radix(digits, 16) } else { return Err(malformed()) };
        length.map_err(|_| malformed())
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.input.by_ref().take(1024).read_until(b'\n', &mut line)?;
        let text = line.strip_suffix(b"\n").ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(String::from_utf8_lossy(text.strip_suffix(b"\r").unwrap_or(text)).into_owned())
    }

    fn read_up_to(&mut self, left: u64, buffer: &mut [u8]) -> io::Result<u64> {
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let room = buffer.get_mut(..wanted).unwrap_or_default();
        match self.input.read(room)? {
            0 if !room.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            count => Ok(count as u64),
        }
    }
}

impl<R: BufRead> Read for Body<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match self.framing {
            Framing::Close => return self.input.read(buffer),
            Framing::Length(0) | Framing::Chunked { ended: true, .. } => 0,
            Framing::Length(left) => {
                let count = self.read_up_to(left, buffer)?;
                self.framing = Framing::Length(left.saturating_sub(count));
                count
            }
            Framing::Chunked { left, .. } => {
                let left = if left == 0 { self.next_chunk()? } else { left };
                let count = if left == 0 { 0 } else { self.read_up_to(left, buffer)? };
                self.framing = Framing::Chunked { left: left.saturating_sub(count), ended: left == 0 };
                count
            }
        };
        Ok(usize::try_from(count).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(bytes: &[u8]) -> Result<(u16, Vec<u8>), String> {
        let mut input = io::BufReader::with_capacity(7, bytes);
        let (status, framing) = read_head(&mut input).map_err(|error| error.to_string())?;
        let mut body = Vec::new();
        Body { input, framing }.read_to_end(&mut body).map_err(|error| error.to_string())?;
        Ok((status, body))
    }

    #[test]
    fn bodies_end_where_they_say() {
        let cases: [&[u8]; 6] = [
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more",
            b"HTTP/1.0 200 OK\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n2;x=y\r\nhe\r\n0003\r\nllo\r\n0\r\nTrailer: x\r\n\r\n",
            b"HTTP/1.1 200 OK\nContent-Length:5\n\nhello",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ];
        for case in cases {
            assert_eq!(answer(case), Ok((200, b"hello".to_vec())), "{}", case.escape_ascii());
        }
    }

    #[test]
    fn cuts_and_nonsense_are_noticed() {
        let cases: [&[u8]; 12] = [
            b"",
            b"HTTP/1.1 200 OK",
            b"HTTP/1.1 200 OK\r\n",
            b"SSH-2.0-x\r\n\r\n",
            b"HTTP/1.1 abc\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        ];
        for case in cases {
            assert!(answer(case).is_err(), "{}", case.escape_ascii());
        }
        let endless = [&b"HTTP/1.1 200 OK\r\nX: "[..], &vec![b'x'; 100_000]].concat();
        assert_eq!(answer(&endless).unwrap_err(), "the daemon's answer is not HTTP: its head has no end");
    }

    #[test]
    fn names_get_a_tag() {
        for (name, expected) in [
            ("debian", "debian:latest"),
            ("debian:12", "debian:12"),
            ("localhost:5000/app", "localhost:5000/app:latest"),
            ("localhost:5000/app:1", "localhost:5000/app:1"),
            ("a/b@sha256:00", "a/b@sha256:00"),
            ("sha256:0123", "sha256:0123"),
            ("0123456789ab", "0123456789ab"),
            ("cafe", "cafe:latest"),
        ] {
            assert_eq!(tagged(name), expected, "{name}");
        }
        assert_eq!(encode("a/b:1@sha256:0?x=#%\u{e9}"), "a/b:1@sha256:0%3Fx%3D%23%25%C3%A9");
    }

    #[test]
    fn the_daemons_words_are_shown() {
        assert_eq!(message_of(br#"{"message":"No such image: x"}"#), "No such image: x");
        assert_eq!(message_of(br#"{"cause":"no"}"#), "no");
        assert_eq!(message_of(b"page not found\n"), "page not found");
    }
}
