//! A registry on loopback that does what its script says, right or wrong, and remembers what it was asked.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use hpcrun::image::digest::Digest;

use crate::sources::layout::{Image, OCI_MANIFEST};

/// What the server was asked.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The start of `Range: bytes=N-`.
    pub(crate) fn range_start(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }

    /// The same without what a signed URL adds.
    pub(crate) fn without_query(&self) -> Request {
        Request { target: self.target.split('?').next().unwrap().to_owned(), ..self.clone() }
    }

    pub(crate) fn is_manifest(&self) -> bool {
        self.target.contains("/manifests/")
    }
}

/// What it answers.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Close after so many bytes of the body.
    cut: Option<usize>,
    /// Say nothing for so long after so many bytes of the body.
    stall: Option<(usize, Duration)>,
    /// One byte a pause.
    drip: Option<Duration>,
    framing: Framing,
    /// Break the connection off instead of closing it.
    reset: bool,
    /// Send the body so often.
    times: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// `Content-Length`, unless the reply has its own.
    Length,
    /// The end of the connection.
    Close,
    /// Chunks of so many bytes.
    Chunks(usize),
    /// The bytes are the whole answer, status and headers included.
    Raw,
}

impl Reply {
    pub(crate) fn new(status: u16) -> Reply {
        Reply {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            cut: None,
            stall: None,
            drip: None,
            framing: Framing::Length,
            reset: false,
            times: 1,
        }
    }

    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Reply {
        Reply::new(200).body(body)
    }

    pub(crate) fn redirect(location: &str) -> Reply {
        Reply::new(307).header("Location", location)
    }

    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Reply {
        self.body = body.into();
        self
    }

    /// Sets a header, in place of one of the same name.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Reply {
        self.headers.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
        self.and_header(name, value)
    }

    /// Adds a header.
    pub(crate) fn and_header(mut self, name: &str, value: &str) -> Reply {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn cut(mut self, bytes: usize) -> Reply {
        self.cut = Some(bytes);
        self
    }

    pub(crate) fn stall(mut self, bytes: usize, pause: Duration) -> Reply {
        self.stall = Some((bytes, pause));
        self
    }

    pub(crate) fn drip(mut self, pause: Duration) -> Reply {
        self.drip = Some(pause);
        self
    }

    pub(crate) fn without_length(mut self) -> Reply {
        self.framing = Framing::Close;
        self
    }

    pub(crate) fn chunked(mut self, size: usize) -> Reply {
        self.framing = Framing::Chunks(size);
        self.and_header("Transfer-Encoding", "chunked")
    }

    /// These bytes, whatever they mean.
    pub(crate) fn raw(bytes: impl Into<Vec<u8>>) -> Reply {
        Reply { framing: Framing::Raw, ..Reply::ok(bytes) }
    }

    /// Break the connection off after so many bytes of the body.
    pub(crate) fn reset(mut self, bytes: usize) -> Reply {
        self.reset = true;
        self.cut(bytes)
    }

    /// The body so often, without saying how long it is.
    pub(crate) fn times(mut self, times: usize) -> Reply {
        self.times = times;
        self.without_length()
    }

    /// The body as it goes over the wire.
    fn framed(&self) -> Vec<u8> {
        let Framing::Chunks(size) = self.framing else { return self.body.clone() };
        let mut wire = Vec::new();
        for chunk in self.body.chunks(size) {
            wire.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            wire.extend_from_slice(chunk);
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(b"0\r\n\r\n");
        wire
    }

    fn send(&self, stream: &mut TcpStream, method: &str) -> std::io::Result<()> {
        if self.framing == Framing::Raw {
            return stream.write_all(&self.body);
        }
        let mut head = format!("HTTP/1.1 {} Scripted\r\nConnection: close\r\n", self.status);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if self.framing == Framing::Length && !self.headers.iter().any(|(name, _)| name == "Content-Length") {
            head += &format!("Content-Length: {}\r\n", self.body.len());
        }
        stream.write_all(head.as_bytes())?;
        stream.write_all(b"\r\n")?;
        if method == "HEAD" {
            return Ok(());
        }
        let body = self.framed();
        let body = &body[..self.cut.unwrap_or(body.len())];
        if let Some(pause) = self.drip {
            for byte in body {
                stream.write_all(&[*byte])?;
                thread::sleep(pause);
            }
        } else if let Some((bytes, pause)) = self.stall {
            stream.write_all(&body[..bytes])?;
            thread::sleep(pause);
            stream.write_all(&body[bytes..])?;
        } else {
            for _ in 0..self.times {
                stream.write_all(body)?;
            }
        }
        stream.flush()
    }
}

type Script = dyn Fn(&Request, usize) -> Reply + Send + Sync;

/// What a server has heard so far; remains when the server is gone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log {
    seen: Arc<Mutex<Vec<Request>>>,
    /// Every byte, understood or not.
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl Log {
    /// All requests so far.
    pub(crate) fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    /// How many requests had `part` in their target.
    pub(crate) fn count(&self, part: &str) -> usize {
        self.seen().iter().filter(|request| request.target.contains(part)).count()
    }

    /// How many requests had this method and `part` in their target.
    pub(crate) fn count_of(&self, method: &str, part: &str) -> usize {
        let fits = |request: &&Request| request.method == method && request.target.contains(part);
        self.seen().iter().filter(fits).count()
    }

    /// Whether `bytes` came in over any connection.
    pub(crate) fn heard(&self, bytes: &str) -> bool {
        self.bytes.lock().unwrap().windows(bytes.len()).any(|window| window == bytes.as_bytes())
    }

    /// Notes a request; gives how often the same was asked before.
    fn note(&self, request: &Request) -> usize {
        let mut seen = self.seen.lock().unwrap();
        let same = |other: &&Request| other.target == request.target && other.method == request.method;
        let before = seen.iter().filter(same).count();
        seen.push(request.clone());
        before
    }
}

/// A server that runs until dropped.
pub(crate) struct Scripted {
    pub(crate) address: SocketAddr,
    pub(crate) log: Log,
    stop: Arc<AtomicBool>,
}

impl Scripted {
    /// Starts a server; the script gets each request and how often the same was asked before.
    pub(crate) fn start(script: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Scripted {
        Scripted::start_at("127.0.0.1", script)
    }

    /// Starts a server on another address of this machine.
    pub(crate) fn start_at(
        address: &str,
        script: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static,
    ) -> Scripted {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (log, stop) = (Log::default(), Arc::new(AtomicBool::new(false)));
        let script: Arc<Script> = Arc::new(script);
        let (noted, stopped) = (log.clone(), Arc::clone(&stop));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let (log, script) = (noted.clone(), Arc::clone(&script));
                if let Ok(stream) = stream {
                    thread::spawn(move || serve(stream, &log, &*script));
                }
            }
        });
        Scripted { address, log, stop }
    }

    /// Starts a registry of `image` as repository `app`; `change` may alter each reply.
    pub(crate) fn of(
        image: Image,
        change: impl Fn(&Request, usize, Reply) -> Reply + Send + Sync + 'static,
    ) -> Scripted {
        Scripted::start(move |request, before| change(request, before, honest(&image, request)))
    }

    /// `docker://127.0.0.1:PORT/app:latest`
    pub(crate) fn source(&self) -> String {
        format!("docker://{}/app:latest", self.address)
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the accept.
        let _ = TcpStream::connect(self.address);
    }
}

/// What a good registry answers.
pub(crate) fn honest(image: &Image, request: &Request) -> Reply {
    let target = request.target.as_str();
    if request.is_manifest() {
        return Reply::ok(image.manifest.clone())
            .header("Content-Type", OCI_MANIFEST)
            .header("Docker-Content-Digest", Digest::of(&image.manifest).as_str());
    }
    let found = image.blobs().into_iter().find(|blob| target.ends_with(Digest::of(blob).as_str()));
    match (found, request.range_start()) {
        (None, _) => Reply::new(404).body(r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown"}]}"#),
        (Some(blob), None) => Reply::ok(blob),
        (Some(blob), Some(start)) => {
            let range = format!("bytes {start}-{}/{}", blob.len() - 1, blob.len());
            Reply::new(206).header("Content-Range", &range).body(&blob[start..])
        }
    }
}

fn serve(mut stream: TcpStream, log: &Log, script: &Script) {
    let mut first = [0];
    if !matches!(stream.peek(&mut first), Ok(1)) {
        return;
    }
    if first[0] == 0x16 {
        // A TLS hello: answered as Go's servers do, which speak no TLS either.
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n400 Bad Request");
        return;
    }
    let Some((request, length)) = read_request(&stream, log) else { return };
    let before = log.note(&request);
    let reply = script(&request, before);
    if !reply.reset {
        let _ = stream.read_exact(&mut vec![0; length]);
    }
    // The client may have had enough. What was not read makes the kernel reset the connection when it is closed.
    let _ = reply.send(&mut stream, &request.method);
}

/// The request at the head of the connection, which is left there, and its length.
fn read_request(stream: &TcpStream, log: &Log) -> Option<(Request, usize)> {
    let mut bytes = vec![0; 64 << 10];
    for _ in 0..1000 {
        let count = stream.peek(&mut bytes).ok().filter(|count| *count > 0)?;
        if let Some((request, length)) = parse_request(&bytes[..count]) {
            log.bytes.lock().unwrap().extend_from_slice(&bytes[..length]);
            return Some((request, length));
        }
        // The rest is on its way, and peeking would see the same at once.
        thread::sleep(Duration::from_millis(1));
    }
    None
}

fn parse_request(bytes: &[u8]) -> Option<(Request, usize)> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = head.lines();
    let mut words = lines.next()?.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let stated = headers.iter().find(|(name, _)| name == "content-length");
    let length = end + stated.and_then(|(_, value)| value.parse::<usize>().ok()).unwrap_or(0);
    let body = String::from_utf8_lossy(bytes.get(end..length)?).into_owned();
    Some((Request { method, target, headers, body }, length))
}
