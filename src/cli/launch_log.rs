//! The site's log: one line for each container that a launch makes, or that the policy refuses.
//!
//! Written with the user's own rights, so it counts for accounting and not for evidence. Nothing here may delay or fail a
//! launch: what cannot be written at once is told with `-v` and left.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use crate::cli::report::{Failure, STATUS_REFUSED, chain};
use crate::host::Host;
use crate::host::launcher::LauncherKind;
use crate::launch::plan::ImageFacts;
use crate::launch::record::{self, Decision, Record, Role};
use crate::policy::Policy;
use crate::policy::decide::Variables;
use crate::policy::rules::log::{DEFAULT_FACILITY, LogFormat, LogLaunches};
use crate::sys::notice::SystemLog;
use crate::sys::{caller, file};

/// Who the system's log says it is.
const PROGRAM: &str = "hpcrun";
/// Severities: information, and a notice for what did not work.
const INFO: u8 = 6;
const NOTICE: u8 = 5;
/// What `$JOB` stands for outside of a job.
const NO_JOB: &str = "nojob";

/// The log of one launch.
#[derive(Debug)]
pub(crate) struct LaunchLog {
    begun: Instant,
    /// None where the site wants no log.
    writer: Option<Writer>,
    record: Record,
    /// Whether this process speaks for the others of its step on this node.
    is_first_rank: bool,
    is_told: bool,
}

#[derive(Debug)]
struct Writer {
    place: Place,
    format: LogFormat,
    sink: Option<Sink>,
}

/// Where lines go.
#[derive(Debug)]
enum Place {
    System { facility: u8 },
    File(PathBuf),
}

#[derive(Debug)]
enum Sink {
    System(SystemLog, u8),
    File(File),
}

impl LaunchLog {
    /// The log of a launch of `image`, as typed, that begins now.
    pub(crate) fn begin(policy: &Policy, host: &Host, image: &Path) -> LaunchLog {
        let launcher = &host.launcher;
        // The scope's first word is the launcher's name.
        let id = |scope: &Option<String>| {
            scope.as_ref().map(|scope| scope.split_once(' ').map_or(&**scope, |(_, id)| id).to_owned())
        };
        let kind = Some(launcher.kind).filter(|kind| *kind != LauncherKind::None);
        let record = Record {
            time: String::new(),
            decision: Decision::Failed,
            user: host.user.name.to_string_lossy().into_owned(),
            uid: host.user.uid,
            host: host.hostname.to_string_lossy().into_owned(),
            launcher: kind.map(|kind| kind.name().to_lowercase()),
            job: id(&launcher.job),
            step: id(&launcher.step),
            image: image.to_string_lossy().into_owned(),
            name: None,
            digest: None,
            share: None,
            setup_us: None,
            rule: None,
            reason: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let writer = place(policy, host, record.job.as_deref()).map(|place| {
            let format =
                policy.rules().log.format.as_ref().map_or_else(LogFormat::default, |format| format.value);
            Writer { place, format, sink: None }
        });
        let is_first_rank = launcher.local_rank.is_none_or(|rank| rank == 0);
        LaunchLog { begun: Instant::now(), writer, record, is_first_rank, is_told: false }
    }

    /// The image could be opened.
    pub(crate) fn found(&mut self, image: &ImageFacts) {
        if self.writer.is_some() {
            self.record.image = image.path.to_string_lossy().into_owned();
            self.record.name.clone_from(&image.origin);
            self.record.digest.clone_from(&image.digest);
        }
    }

    /// Opens the log: a container is about to be made, from whose inside it cannot be seen.
    pub(crate) fn open(&mut self) {
        if let Some(writer) = &mut self.writer {
            writer.open(self.record.uid);
        }
    }

    /// The container is made.
    pub(crate) fn launched(&mut self, role: Role) {
        self.record.decision = Decision::Launched;
        self.record.share = Some(role);
        self.record.setup_us = u64::try_from(self.begun.elapsed().as_micros()).ok();
        self.write(INFO);
    }

    /// There is none. Where many ranks are refused, the first speaks for all.
    pub(crate) fn failed(&mut self, failure: &Failure) {
        if self.is_told || !self.is_first_rank {
            return;
        }
        let is_refused = failure.status == STATUS_REFUSED;
        self.record.decision = if is_refused { Decision::Refused } else { Decision::Failed };
        self.record.reason = Some(failure.message().to_owned());
        self.record.rule = failure.rule().map(str::to_owned);
        self.open();
        self.write(NOTICE);
    }

    fn write(&mut self, severity: u8) {
        let Some(writer) = &mut self.writer else { return };
        self.is_told = true;
        self.record.time = record::time(SystemTime::now());
        let line = match writer.format {
            LogFormat::Json => self.record.as_json(),
            LogFormat::Text => self.record.as_text(),
        };
        writer.write(severity, &line);
    }
}

/// Where this launch is logged, if the site wants it.
fn place(policy: &Policy, host: &Host, job: Option<&str>) -> Option<Place> {
    let rules = &policy.rules().log;
    match rules.launches.as_ref()?.value {
        LogLaunches::None => None,
        LogLaunches::Syslog => {
            let facility = rules.facility.as_ref().map_or(DEFAULT_FACILITY, |facility| facility.value);
            Some(Place::System { facility })
        }
        LogLaunches::File => {
            let mut trusted = host.trusted_variables();
            // An id of the environment's must not lead out of the directory.
            let job = job.unwrap_or(NO_JOB).replace('/', "_");
            trusted.push(("JOB", job.into()));
            let variables = Variables { trusted: &trusted, environment: &host.environment };
            let expanded = rules.file.as_ref()?.value.expand(&variables);
            let expanded = expanded.inspect_err(|unset| log::info!("this launch is not logged: {unset}"));
            Some(Place::File(PathBuf::from(expanded.ok()?.text)))
        }
    }
}

impl Writer {
    fn open(&mut self, uid: u32) {
        if self.sink.is_some() {
            return;
        }
        self.sink = match &self.place {
            Place::System { facility } => match SystemLog::connect() {
                Ok(log) => Some(Sink::System(log, *facility)),
                Err(error) => not_logged(&chain(&error)),
            },
            Place::File(path) => match open_file(path, uid) {
                Ok(file) => Some(Sink::File(file)),
                Err(why) => not_logged(&format!("{}: {why}", path.display())),
            },
        };
    }

    fn write(&mut self, severity: u8, line: &str) {
        let written = match &mut self.sink {
            None => return,
            Some(Sink::System(log, facility)) => {
                log.send(*facility, severity, PROGRAM, line).map_err(|error| chain(&error))
            }
            // One write: lines of several nodes do not mix where O_APPEND means what it says.
            Some(Sink::File(file)) => {
                file.write_all(format!("{line}\n").as_bytes()).map_err(|error| chain(&error))
            }
        };
        if let Err(why) = written {
            not_logged::<()>(&why);
        }
    }
}

fn not_logged<T>(why: &str) -> Option<T> {
    log::info!("this launch is not logged: {why}");
    None
}

/// Opens a log file for lines at its end. One that somebody else has put there, or a hard link to a file of the user's
/// that is no log, gets none.
fn open_file(path: &Path, uid: u32) -> Result<File, String> {
    if !caller::may_grow_files() {
        // The kernel kills who writes beyond the limit.
        return Err("the limit of a file's size is set (ulimit -f)".to_owned());
    }
    let file = file::open_log(path).map_err(|error| error.to_string())?;
    let metadata = file.metadata().map_err(|error| chain(&error))?;
    match () {
        () if !metadata.is_file() => Err("it is no regular file".to_owned()),
        () if metadata.uid() != uid && metadata.uid() != 0 => {
            Err(format!("it belongs to user {}", metadata.uid()))
        }
        () if metadata.nlink() != 1 => Err("it has other names".to_owned()),
        () => Ok(file),
    }
}
