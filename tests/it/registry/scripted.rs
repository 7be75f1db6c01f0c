//! A registry on loopback that does what its script says, right or wrong, and remembers what it was asked.

use std::io::{BufRead, BufReader, Read, Write};
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
    content_length: bool,
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
            content_length: true,
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
        self.content_length = false;
        self
    }

    fn send(&self, stream: &mut TcpStream) -> std::io::Result<()> {
        let mut head = format!("HTTP/1.1 {} Scripted\r\nConnection: close\r\n", self.status);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if self.content_length && !self.headers.iter().any(|(name, _)| name == "Content-Length") {
            head += &format!("Content-Length: {}\r\n", self.body.len());
        }
        stream.write_all(head.as_bytes())?;
        stream.write_all(b"\r\n")?;
        let body = &self.body[..self.cut.unwrap_or(self.body.len())];
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
            stream.write_all(body)?;
        }
        stream.flush()
    }
}

type Script = dyn Fn(&Request, usize) -> Reply + Send + Sync;

/// A server that runs until dropped.
pub(crate) struct Scripted {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
    stop: Arc<AtomicBool>,
}

impl Scripted {
    /// Starts a server; the script gets each request and how often the same target was asked before.
    pub(crate) fn start(script: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Scripted {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let script: Arc<Script> = Arc::new(script);
        let (requests, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let (requests, script) = (Arc::clone(&requests), Arc::clone(&script));
                if let Ok(stream) = stream {
                    thread::spawn(move || serve(stream, &requests, &*script));
                }
            }
        });
        Scripted { address, seen, stop }
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

    /// All requests so far.
    pub(crate) fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap().clone()
    }

    /// How many requests had `part` in their target.
    pub(crate) fn count(&self, part: &str) -> usize {
        self.seen().iter().filter(|request| request.target.contains(part)).count()
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

fn serve(mut stream: TcpStream, seen: &Mutex<Vec<Request>>, script: &Script) {
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
    let Some(request) = read_request(&stream) else { return };
    let before = {
        let mut seen = seen.lock().unwrap();
        let before = seen.iter().filter(|other| other.target == request.target).count();
        seen.push(request.clone());
        before
    };
    // The client may have had enough.
    let _ = script(&request, before).send(&mut stream);
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let mut body = vec![0; length.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)];
    reader.read_exact(&mut body).ok()?;
    Some(Request { method, target, headers, body: String::from_utf8_lossy(&body).into_owned() })
}
