//! A blob as one seamless stream: what breaks off is resumed where it stopped.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::client::Client;
use super::error::RegistryError;
use super::failure::body_error;
use super::http::Answer;
use super::servers::{Search, Servers};
use crate::image::digest::Digest;

/// Progress that earns the full number of retries again, bytes.
const PROGRESS_BYTES: u64 = 1 << 20;
/// Servers that ignore `Range` make every resume begin at the start; so often and no more.
const MAX_RESTARTS: u32 = 3;
/// Fewer bytes than this in a stall time is no progress but a trickle.
const TRICKLE_BYTES: u64 = 4096;
const DISCARD_BYTES: usize = 64 << 10;

/// Reads one blob; cut off at its size, resumed when the connection breaks, its digest not checked.
pub(super) struct BlobReader {
    servers: Arc<Servers>,
    search: Search,
    /// It is known that the server asked now gave some of it.
    giver_is_noted: bool,
    digest: Digest,
    size: u64,
    position: u64,
    body: Option<Body>,
    /// Requests since the last real progress.
    failures: u32,
    progress_from: u64,
    restarts: u32,
    /// Strong `ETag` of the last answer.
    tag: Option<String>,
}

struct Body {
    input: Box<dyn Read + Send>,
    host: String,
    trickle: Trickle,
}

impl BlobReader {
    /// Asks for the blob; whether it exists is known on return.
    pub(super) fn open(
        servers: Arc<Servers>,
        digest: Digest,
        size: u64,
    ) -> Result<BlobReader, RegistryError> {
        let search = servers.search_blob();
        let mut reader = BlobReader {
            servers,
            search,
            giver_is_noted: false,
            digest,
            size,
            position: 0,
            body: None,
            failures: 0,
            progress_from: 0,
            restarts: 0,
            tag: None,
        };
        reader.connect()?;
        Ok(reader)
    }

    fn client(&self) -> Result<&Client, RegistryError> {
        self.servers.asked(&self.search)
    }

    /// Makes requests until one can be read from.
    fn connect(&mut self) -> Result<(), RegistryError> {
        loop {
            match self.request() {
                Ok(body) => {
                    self.body = Some(body);
                    return Ok(());
                }
                Err(error) => self.failed(error)?,
            }
        }
    }

    /// Notes a failure and pauses, or turns to the next server, or gives up.
    fn failed(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        self.body = None;
        if self.position.saturating_sub(self.progress_from) >= PROGRESS_BYTES {
            self.failures = 0;
        }
        self.progress_from = self.position;
        let client = self.client()?;
        if !error.is_transient() || self.failures >= client.patience().retries {
            return self.turn_to_the_next(error);
        }
        log::info!("{} stopped at byte {}", self.what(), self.position);
        client.wait(self.failures, &error);
        self.failures = self.failures.saturating_add(1);
        Ok(())
    }

    /// Goes on where the last server stopped: whoever sends it, the digest tells whether the whole is right.
    fn turn_to_the_next(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        let error = if error.is_transient() {
            RegistryError::BrokenOff {
                what: self.what(),
                position: self.position,
                tries: self.failures.saturating_add(1),
                source: Box::new(error),
            }
        } else {
            error
        };
        self.servers.go_on(&mut self.search, error)?;
        (self.failures, self.restarts, self.tag, self.giver_is_noted) = (0, 0, None, false);
        Ok(())
    }

    /// One request for the rest of the blob.
    fn request(&mut self) -> Result<Body, RegistryError> {
        let answer = self.client()?.blob(&self.digest, self.position, self.tag.as_deref())?;
        let host = answer.url.authority();
        let what = self.what();
        let resume = |why: String| RegistryError::Resume { host: host.clone(), what: what.clone(), why };
        let (start, stated) = match answer.status() {
            206 => (self.position, self.checked_range(&answer).map_err(resume)?),
            _ => (0, answer.content_length()),
        };
        // A store that has it under another tag than its twin did is asked without one from then on.
        let changed = self.tag.is_some() && start < self.position;
        self.tag = answer.header("etag").filter(|tag| !changed && is_strong_tag(tag)).map(str::to_owned);
        let rest = self.size.saturating_sub(start);
        if let Some(actual) = stated.filter(|length| *length != rest) {
            let (expected, actual) = (self.size, start.saturating_add(actual));
            return Err(RegistryError::WrongSize { what, expected, actual });
        }
        let skip = self.position.saturating_sub(start);
        if skip > 0 {
            self.restarts = self.restarts.saturating_add(1);
            if self.restarts > MAX_RESTARTS {
                return Err(resume("it ignores ranges, and the connection keeps breaking".to_owned()));
            }
        }
        let trickle = Trickle::new(self.client()?.patience().stall);
        let mut body = Body { input: answer.into_body(), host: host.clone(), trickle };
        body.discard(skip)?;
        Ok(body)
    }

    /// The length that a 206 states, if its range is exactly the one asked for.
    fn checked_range(&self, answer: &Answer) -> Result<Option<u64>, String> {
        let text = answer.header("content-range").ok_or("it sends a part without saying which")?;
        let wrong = || {
            format!("it sends {:?} when asked for byte {} on", super::error::printable(text), self.position)
        };
        let range = parse_content_range(text).ok_or_else(wrong)?;
        let fits = range.first == self.position
            && range.last.checked_add(1) == Some(self.size)
            && range.total.is_none_or(|total| total == self.size);
        if !fits {
            return Err(wrong());
        }
        Ok(answer.content_length())
    }

    fn what(&self) -> String {
        format!("blob {}", self.digest)
    }

    /// At the end the server must be silent too: a longer blob is another blob. Whether the bytes before are right all the
    /// same is for the digest to tell, if another server can be asked should they not be.
    fn check_end(&mut self) -> Result<(), RegistryError> {
        let Some(mut body) = self.body.take() else { return Ok(()) };
        match body.input.read(&mut [0]) {
            Ok(1..) => {
                let (what, expected) = (self.what(), self.size);
                Err(RegistryError::WrongSize { what, expected, actual: self.size.saturating_add(1) })
            }
            // What happens to the connection now does not matter.
            Ok(0) | Err(_) => Ok(()),
        }
    }

    fn advance(&mut self, buffer: &mut [u8]) -> Result<usize, RegistryError> {
        loop {
            let rest = self.size.saturating_sub(self.position);
            if rest == 0 {
                return match self.check_end() {
                    Ok(()) => Ok(0),
                    Err(error) => self.turn_to_the_next(error).map(|()| 0),
                };
            }
            if self.body.is_none() {
                self.connect()?;
            }
            let Some(body) = &mut self.body else { continue };
            let wanted = usize::try_from(rest).unwrap_or(usize::MAX).min(buffer.len());
            let result = body.read(buffer.get_mut(..wanted).unwrap_or_default());
            match result {
                Ok(count) => {
                    self.position = self.position.saturating_add(count as u64);
                    if !self.giver_is_noted {
                        self.servers.note_giver(&self.search, &self.digest);
                        self.giver_is_noted = true;
                    }
                    return Ok(count);
                }
                Err(error) => self.failed(error)?,
            }
        }
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        self.advance(buffer).map_err(io::Error::other)
    }
}

impl Body {
    /// At least one byte, or an error: the end comes from the blob's size, not from the server.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, RegistryError> {
        loop {
            let begin = Instant::now();
            match self.input.read(buffer) {
                Ok(0) => {
                    let source =
                        io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed early");
                    return Err(RegistryError::Unreachable { host: self.host.clone(), source });
                }
                Ok(count) if self.trickle.is_enough(count as u64, begin.elapsed()) => return Ok(count),
                Ok(_) => {
                    let what = "more than a trickle of the body";
                    return Err(RegistryError::Timeout { host: self.host.clone(), what });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(body_error(&self.host, error)),
            }
        }
    }

    fn discard(&mut self, mut count: u64) -> Result<(), RegistryError> {
        let mut buffer = vec![0; DISCARD_BYTES];
        while count > 0 {
            let wanted = usize::try_from(count).unwrap_or(usize::MAX).min(buffer.len());
            let read = self.read(buffer.get_mut(..wanted).unwrap_or_default())?;
            count = count.saturating_sub(read as u64);
        }
        Ok(())
    }
}

/// Notices a server that sends a byte now and then. Counts only the time spent waiting for it, not the consumer's.
struct Trickle {
    stall: Duration,
    waited: Duration,
    received: u64,
}

impl Trickle {
    fn new(stall: Duration) -> Trickle {
        Trickle { stall, waited: Duration::ZERO, received: 0 }
    }

    fn is_enough(&mut self, count: u64, waited: Duration) -> bool {
        self.received = self.received.saturating_add(count);
        self.waited = self.waited.saturating_add(waited);
        if self.received >= TRICKLE_BYTES {
            self.received = 0;
            self.waited = Duration::ZERO;
        }
        self.waited <= self.stall
    }
}

/// `"..."`, not `W/"..."`, which says nothing of bytes (RFC 9110, section 13.1.5).
fn is_strong_tag(tag: &str) -> bool {
    tag.len() >= 2 && tag.starts_with('"') && tag.ends_with('"') && tag.bytes().all(|b| b.is_ascii_graphic())
}

struct ContentRange {
    first: u64,
    last: u64,
    total: Option<u64>,
}

/// `bytes FIRST-LAST/TOTAL`, the total may be `*`.
fn parse_content_range(text: &str) -> Option<ContentRange> {
    let number = |digits: &str| {
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        if plain { digits.parse::<u64>().ok() } else { None }
    };
    let (unit, rest) = text.trim().split_once(' ')?;
    let (range, total) = rest.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    let total = if total == "*" { None } else { Some(number(total)?) };
    let sensible =
        unit.eq_ignore_ascii_case("bytes") && first <= last && total.is_none_or(|total| last < total);
    if sensible { Some(ContentRange { first, last, total }) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        for (text, expected) in [
            ("bytes 0-9/10", Some((0, 9, Some(10)))),
            ("Bytes 5-9/10", Some((5, 9, Some(10)))),
            ("bytes 5-9/*", Some((5, 9, None))),
            (" bytes 5-9/10 ", Some((5, 9, Some(10)))),
            ("bytes 18446744073709551614-18446744073709551614/*", Some((u64::MAX - 1, u64::MAX - 1, None))),
            ("bytes */10", None),
            ("bytes 9-5/10", None),
            ("bytes 5-10/10", None),
            ("bytes 5-/10", None),
            ("bytes -5/10", None),
            ("bytes 5-9", None),
            ("bytes=5-9/10", None),
            ("items 5-9/10", None),
            ("bytes +5-9/10", None),
            ("bytes 5-9/99999999999999999999999", None),
            ("", None),
        ] {
            let found = parse_content_range(text).map(|range| (range.first, range.last, range.total));
            assert_eq!(found, expected, "{text:?}");
        }
    }

    #[test]
    fn a_trickle_is_noticed_and_a_slow_consumer_is_not() {
        let second = Duration::from_secs(1);
        let mut slow = Trickle::new(60 * second);
        let reads = (0..).take_while(|_| slow.is_enough(10, second)).count();
        assert_eq!(reads, 60);
        let mut steady = Trickle::new(60 * second);
        assert!((0..1000).all(|_| steady.is_enough(200, second)));
        let mut bursts = Trickle::new(60 * second);
        assert!((0..1000).all(|_| bursts.is_enough(1 << 16, 59 * second)));
    }
}
