//! A small HTTP server on loopback: answers by its script and remembers what it was asked.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use hpcrun::image::digest::Digest;

use crate::sources::layout::{Image, OCI_MANIFEST};

/// What the server was asked.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    method: String,
    /// Path and query.
    pub(crate) target: String,
    /// `Authorization`.
    pub(crate) authorization: Option<String>,
}

/// What it answers.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Reply {
    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Reply {
        Reply { status: 200, headers: Vec::new(), body: body.into() }
    }

    pub(crate) fn status(status: u16) -> Reply {
        Reply { status, ..Reply::ok("") }
    }

    /// 401 with a challenge.
    pub(crate) fn challenge(text: &str) -> Reply {
        Reply { headers: vec![("WWW-Authenticate", text.to_owned())], ..Reply::status(401) }
    }

    fn send(&self, request: &Request, stream: &mut TcpStream) -> std::io::Result<()> {
        let mut head = format!("HTTP/1.1 {} Scripted\r\nConnection: close\r\n", self.status);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("Content-Length: {}\r\n\r\n", self.body.len());
        stream.write_all(head.as_bytes())?;
        stream.write_all(if request.method == "HEAD" { b"" } else { &self.body })?;
        stream.flush()
    }
}

/// What a registry of `image` answers, under whatever repository.
pub(crate) fn registry(image: &Image, request: &Request) -> Reply {
    let target = request.target.as_str();
    if target.contains("/manifests/") {
        let digest = Digest::of(&image.manifest).to_string();
        let headers = vec![("Content-Type", OCI_MANIFEST.to_owned()), ("Docker-Content-Digest", digest)];
        return Reply { headers, ..Reply::ok(image.manifest.clone()) };
    }
    let found = image.blobs().into_iter().find(|blob| target.ends_with(Digest::of(blob).as_str()));
    found.map_or(Reply::status(404), Reply::ok)
}

type Script = dyn Fn(&Request) -> Reply + Send + Sync;

/// A server that runs as long as the tests do.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub(crate) fn start(script: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (script, requests): (Arc<Script>, _) = (Arc::new(script), Arc::clone(&seen));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (script, requests) = (Arc::clone(&script), Arc::clone(&requests));
                thread::spawn(move || serve(stream, &*script, &requests));
            }
        });
        Server { address, seen }
    }

    /// A registry that answers everybody.
    pub(crate) fn of(image: Image) -> Server {
        Server::start(move |request| registry(&image, request))
    }

    /// One that wants `authorization`, by Basic.
    pub(crate) fn guarded(
        authorization: &'static str,
        answer: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Server {
        Server::start(move |request| match request.authorization.as_deref() {
            Some(given) if given == authorization => answer(request),
            _ => Reply::challenge("Basic realm=\"x\""),
        })
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

fn serve(mut stream: TcpStream, script: &Script, seen: &Mutex<Vec<Request>>) {
    let mut first = [0];
    if !matches!(stream.peek(&mut first), Ok(1)) {
        return;
    }
    if first[0] == 0x16 {
        // A TLS hello, answered as Go's servers do.
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream
            .write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.");
        return;
    }
    let Some(request) = read_request(&stream) else { return };
    seen.lock().unwrap().push(request.clone());
    // The client may have had enough.
    let _ = script(&request).send(&request, &mut stream);
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut authorization = None;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        if name.eq_ignore_ascii_case("authorization") {
            authorization = Some(value.trim().to_owned());
        }
    }
    Some(Request { method, target, authorization })
}
