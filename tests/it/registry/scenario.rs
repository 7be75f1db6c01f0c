//! One pull from servers that may misbehave, and what must hold of it whatever they do: the result is the one expected,
//! no secret goes to a wrong host or into a message, and nothing but a whole image appears at the destination.

use std::cell::OnceCell;
use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use hpcrun::convert::source::registry::{Login, Patience};
use hpcrun::convert::source::{self, Source, SourceError, SourceOptions};
use hpcrun::convert::{ConvertOptions, Destination, Progress, convert};
use hpcrun::hint::Hint;
use hpcrun::image::digest::Digest;
use hpcrun::image::platform::Platform;
use hpcrun::image::reference::SourceReference;

use super::scripted::{Log, Reply, Request, Scripted, honest};
use crate::sources::chain;
use crate::sources::layout::{Image, Layout, Packing, layer_tar};
use crate::support;

/// A secret that must turn up nowhere but where it belongs.
pub(crate) const CANARY: &str = "c4n4ry-s3cret";
/// `me:CANARY` as Basic sends it.
pub(crate) const BASIC: &str = "bWU6YzRuNHJ5LXMzY3JldA==";

/// A pull that lasts longer than this hangs, whatever the load.
const HANGS: Duration = Duration::from_secs(60);

/// What a pull must come to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Outcome {
    /// The image, byte for byte.
    Pulled,
    /// An error with these words.
    Refused(&'static str),
}

/// A scenario: its name, what it must come to, and how the servers are set up for it.
pub(crate) type Scenario = (&'static str, Outcome, fn(&mut World));

/// Servers and a client.
pub(crate) struct World {
    pub(crate) image: Image,
    pub(crate) options: SourceOptions,
    /// What is pulled; set by the first registry.
    pub(crate) source: String,
    servers: Vec<Scripted>,
    strangers: Vec<Log>,
    /// What strangers must not hear.
    secrets: Vec<&'static str>,
    checks: Vec<Box<dyn FnOnce()>>,
}

impl World {
    pub(crate) fn new() -> World {
        World {
            image: Image::sample(),
            options: options(),
            source: String::new(),
            servers: Vec::new(),
            strangers: Vec::new(),
            secrets: vec![CANARY, BASIC],
            checks: Vec::new(),
        }
    }

    /// A server by this script as the registry of `app:latest`.
    pub(crate) fn serve(&mut self, script: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Log {
        let server = Scripted::start(script);
        if self.source.is_empty() {
            self.source = server.source();
        }
        let log = server.log.clone();
        self.servers.push(server);
        log
    }

    /// A registry of the image whose replies are changed.
    pub(crate) fn registry(
        &mut self,
        change: impl Fn(&Request, usize, Reply) -> Reply + Send + Sync + 'static,
    ) -> Log {
        let image = self.image.clone();
        self.serve(move |request, before| change(request, before, honest(&image, request)))
    }

    /// A registry of the image whose replies for the upper layer are changed.
    pub(crate) fn layer(
        &mut self,
        change: impl Fn(&Request, usize, Reply) -> Reply + Send + Sync + 'static,
    ) -> Log {
        let digest = Digest::of(&self.image.layers[1].blob);
        self.registry(move |request, before, reply| {
            if request.target.ends_with(digest.as_str()) { change(request, before, reply) } else { reply }
        })
    }

    /// A registry whose `GET` of the manifest is answered so.
    pub(crate) fn manifest(&mut self, body: impl Into<Vec<u8>>, media_type: &'static str) -> Log {
        let reply = Reply::ok(body).header("Content-Type", media_type);
        self.registry(move |request, _, honest| match (request.is_manifest(), request.method.as_str()) {
            (true, "HEAD") => Reply::new(405),
            (true, _) => reply.clone(),
            _ => honest,
        })
    }

    /// A server on another host, which must not see the login.
    pub(crate) fn stranger(
        &mut self,
        script: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static,
    ) -> (SocketAddr, Log) {
        let server = Scripted::start_at("127.0.0.2", script);
        let (address, log) = (server.address, server.log.clone());
        self.strangers.push(log.clone());
        self.servers.push(server);
        (address, log)
    }

    /// The user has a login for the registry.
    pub(crate) fn log_in(&mut self) {
        self.options.registry.login = Some(Login::Password { user: "me".into(), password: CANARY.into() });
    }

    /// A signature that is the canary goes to the store that it is for; it must not go into messages all the same.
    pub(crate) fn trust_strangers_with_the_signature(&mut self) {
        self.secrets = vec![BASIC];
    }

    /// Use an image whose upper layer is worth resuming.
    pub(crate) fn large(&mut self) -> usize {
        self.image = large_image();
        self.image.layers[1].blob.len()
    }

    /// Something else that must hold in the end.
    pub(crate) fn after(&mut self, check: impl FnOnce() + 'static) {
        self.checks.push(Box::new(check));
    }

    fn pull(&self, destination: &Path) -> Result<(), String> {
        let reference = SourceReference::parse(OsStr::new(&self.source), &Path::exists).unwrap();
        let source = source::open(&reference, &self.options).map_err(|error| told(&error))?;
        write(&*source, destination)
    }

    fn check(self, name: &str, outcome: Outcome) {
        let scratch = support::scratch();
        let destination = scratch.path().join("out").join("app.sqsh");
        std::fs::create_dir(scratch.path().join("out")).unwrap();
        let begin = Instant::now();
        let result = self.pull(&destination);
        assert!(begin.elapsed() < HANGS, "{name}: took {:?}", begin.elapsed());
        let visible = std::fs::read_dir(scratch.path().join("out")).unwrap().count();
        match (outcome, result) {
            (Outcome::Pulled, Ok(())) => {
                let expected = whole(&self.image);
                assert!(std::fs::read(&destination).unwrap() == expected, "{name}: another image");
                assert_eq!(visible, 1, "{name}: something is left behind");
            }
            (Outcome::Refused(part), Err(shown)) => {
                assert!(shown.contains(part), "{name}: {shown}\n  not {part}");
                assert!(!shown.contains(CANARY) && !shown.contains(BASIC), "{name}: {shown}");
                assert_eq!(visible, 0, "{name}: something is visible");
            }
            (Outcome::Pulled, Err(shown)) => panic!("{name}: {shown}"),
            (Outcome::Refused(part), Ok(())) => panic!("{name}: pulled, not {part}"),
        }
        for secret in &self.secrets {
            let leaked = self.strangers.iter().any(|log| log.heard(secret));
            assert!(!leaked, "{name}: the login went to a stranger");
        }
        for check in self.checks {
            check();
        }
    }
}

/// Runs scenarios, each in a world of its own.
pub(crate) fn run(scenarios: &[Scenario]) {
    for (name, outcome, set_up) in scenarios {
        let mut world = World::new();
        set_up(&mut world);
        run_in(world, name, *outcome);
    }
}

/// Runs one scenario in a world that was set up for it.
pub(crate) fn run_in(world: World, name: &str, outcome: Outcome) {
    println!("scenario: {name}");
    world.check(name, outcome);
}

/// An error with its causes, its innards and its hints: all that a user might see.
fn told<E: std::error::Error + Hint>(error: &E) -> String {
    format!("{}\n{error:?}\n{}", chain(error), error.hints().join("\n"))
}

fn write(source: &dyn Source, destination: &Path) -> Result<(), String> {
    let progress = Progress::new(source.image());
    let options = ConvertOptions { jobs: 1, ..ConvertOptions::default() };
    convert(source, &Destination::new(destination), &options, &progress, |_| Vec::new())
        .map(|_| ())
        .map_err(|error| told(&error))
}

/// What must come out: the same image from a directory.
fn whole(image: &Image) -> Vec<u8> {
    thread_local! {
        static KNOWN: OnceCell<(Image, Vec<u8>)> = const { OnceCell::new() };
    }
    let make = || {
        let scratch = support::scratch();
        let layout = Layout::of(&scratch.path().join("layout"), image);
        let text = format!("oci:{}:v1", layout.0.display());
        let reference = SourceReference::parse(OsStr::new(&text), &Path::exists).unwrap();
        let source = source::open(&reference, &SourceOptions { allow_foreign: true, ..options() }).unwrap();
        write(&*source, &scratch.path().join("app.sqsh")).unwrap();
        std::fs::read(scratch.path().join("app.sqsh")).unwrap()
    };
    KNOWN.with(|known| {
        let (known, bytes) = known.get_or_init(|| (image.clone(), make()));
        if known.manifest == image.manifest { bytes.clone() } else { make() }
    })
}

/// Options for amd64 that try again soon. A loaded machine must not look like a silent server, so those who want
/// silence noticed say so.
pub(crate) fn options() -> SourceOptions {
    let mut options =
        SourceOptions { platform: Platform::parse("amd64").unwrap(), ..SourceOptions::default() };
    options.registry.patience = Patience {
        connect: Duration::from_secs(5),
        stall: Duration::from_secs(3),
        answer: Duration::from_secs(5),
        retries: 3,
        first_delay: Duration::from_millis(5),
        longest_delay: Duration::from_millis(50),
    };
    options.registry.certificate_directories.clear();
    options
}

/// An image whose second layer is worth resuming.
pub(crate) fn large_image() -> Image {
    let mut random = support::Random::new(7);
    let noise: Vec<u8> = (0..3 << 20).map(|_| random.next() as u8).collect();
    Image::new("amd64", &[layer_tar("small", b"1"), layer_tar("large", &noise)], Packing::Gzip)
}

/// Opens a source.
pub(crate) fn open(text: &str, options: &SourceOptions) -> Result<Box<dyn Source>, SourceError> {
    let reference = SourceReference::parse(OsStr::new(text), &Path::exists).unwrap();
    source::open(&reference, options)
}
