//! The progress display of a conversion: drawn over itself on a terminal, absent elsewhere.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::cli::size;
use crate::convert::{Bottleneck, LayerProgress, LayerState, Progress};

/// Between two looks at what the conversion is held up by.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Looks between two drawings.
const LOOKS: u32 = 10;
/// Layer lines shown at most: those under way and the next ones.
const LAYERS_SHOWN: usize = 8;
/// Width of the bar, characters.
const BAR: usize = 24;

/// A display under way; it is wiped when dropped.
#[derive(Debug)]
pub(crate) struct Display {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Display {
    /// Starts drawing on standard error, if that is a terminal and `quiet` is not asked for.
    pub(crate) fn start(progress: &Arc<Progress>, quiet: bool) -> Display {
        if quiet || !std::io::stderr().is_terminal() {
            return Display { stop: None, thread: None };
        }
        let (stop, stopped) = mpsc::channel();
        let progress = Arc::clone(progress);
        let thread = std::thread::Builder::new().name("progress".to_owned()).spawn(move || {
            let begun = Instant::now();
            let mut drawn = 0;
            let mut looks = Looks::default();
            while stopped.recv_timeout(LOOK_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                looks.count(progress.bottleneck());
                if looks.since_drawn == LOOKS {
                    let lines = render(&progress, begun.elapsed(), looks.most_frequent());
                    draw(drawn, &lines);
                    drawn = lines.len();
                    looks.fade();
                }
            }
            draw(drawn, &[]);
        });
        Display { stop: Some(stop), thread: thread.ok() }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the conversion was held up by lately.
#[derive(Debug, Default)]
struct Looks {
    since_drawn: u32,
    /// How often; what was seen longer ago counts less.
    seen: Vec<(Bottleneck, f32)>,
}

impl Looks {
    fn count(&mut self, bottleneck: Bottleneck) {
        self.since_drawn += 1;
        match self.seen.iter_mut().find(|(seen, _)| *seen == bottleneck) {
            Some((_, weight)) => *weight += 1.0,
            None => self.seen.push((bottleneck, 1.0)),
        }
    }

    fn most_frequent(&self) -> Option<Bottleneck> {
        let most = self.seen.iter().max_by(|(_, a), (_, b)| a.total_cmp(b));
        most.map(|(bottleneck, _)| *bottleneck)
    }

    fn fade(&mut self) {
        self.since_drawn = 0;
        for (_, weight) in &mut self.seen {
            *weight *= 0.7;
        }
    }
}

fn phrase(bottleneck: Bottleneck) -> &'static str {
    match bottleneck {
        Bottleneck::Source => "waiting for the source",
        Bottleneck::Decompression => "waiting for decompression",
        Bottleneck::Merge => "merging",
        Bottleneck::Compression => "waiting for compression",
        Bottleneck::Disk => "waiting for the disk",
        Bottleneck::End => "writing metadata, syncing",
    }
}

/// Replaces the last `above` lines of the terminal.
fn draw(above: usize, lines: &[String]) {
    let mut text = String::new();
    if above > 0 {
        text.push_str(&format!("\x1b[{above}A\r\x1b[J"));
    }
    for line in lines {
        text.push_str(line);
        text.push('\n');
    }
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// The display as lines without a line end.
fn render(progress: &Progress, elapsed: Duration, bottleneck: Option<Bottleneck>) -> Vec<String> {
    let count = progress.layers().len();
    let mut lines: Vec<String> = progress
        .layers()
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, layer)| layer.state() != LayerState::Merged)
        .take(LAYERS_SHOWN)
        .map(|(index, layer)| {
            let merging =
                if index == progress.current() && progress.entries() > 0 { ", merging" } else { "" };
            format!("layer {:>3}/{count} {}{merging}", index + 1, layer_line(layer))
        })
        .collect();
    lines.push(total_line(progress, elapsed));
    lines.extend(bottleneck.map(|bottleneck| phrase(bottleneck).to_owned()));
    lines
}

fn layer_line(layer: &LayerProgress) -> String {
    let fetched = layer.fetched();
    match (layer.state(), layer.total()) {
        (LayerState::Waiting, total) => {
            format!("{:BAR$}  {:>9}  waiting", bar(0, 1), total.map(size::bytes).unwrap_or_default())
        }
        (LayerState::Fetching, Some(total)) => {
            format!("{:BAR$}  {:>9} of {}", bar(fetched, total), size::bytes(fetched), size::bytes(total))
        }
        (LayerState::Fetching, None) => format!("{:BAR$}  {:>9}", "", size::bytes(fetched)),
        (LayerState::Fetched | LayerState::Merged, _) => {
            format!("{:BAR$}  {:>9}  fetched", bar(1, 1), size::bytes(fetched))
        }
    }
}

/// `#####.......`
fn bar(done: u64, total: u64) -> String {
    let cells = (u128::from(done.min(total)) * BAR as u128).checked_div(u128::from(total)).unwrap_or(0);
    let cells = usize::try_from(cells).unwrap_or(BAR).min(BAR);
    format!("{}{}", "#".repeat(cells), ".".repeat(BAR - cells))
}

fn total_line(progress: &Progress, elapsed: Duration) -> String {
    let (read, written) = (progress.bytes_in(), progress.bytes_out());
    let ratio =
        if written == 0 { String::new() } else { format!(", ratio {:.2}", read as f64 / written as f64) };
    let left = time_left(progress, elapsed).map(|left| format!("  {} left", size::seconds(left)));
    format!(
        "{} read, {} written{ratio}, {} entries, {}{}",
        size::bytes(read),
        size::bytes(written),
        progress.entries(),
        size::seconds(elapsed),
        left.unwrap_or_default()
    )
}

/// From the share of the blobs' bytes that has been read, where all sizes are known.
fn time_left(progress: &Progress, elapsed: Duration) -> Option<Duration> {
    let total: u64 = progress.layers().iter().map(LayerProgress::total).sum::<Option<u64>>()?;
    let fetched: u64 = progress.layers().iter().map(LayerProgress::fetched).sum();
    if elapsed < Duration::from_secs(1) || fetched == 0 || fetched >= total {
        return None;
    }
    Some(elapsed.mul_f64((total - fetched) as f64 / fetched as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_what_was_seen_most_often_lately() {
        let mut looks = Looks::default();
        assert_eq!(looks.most_frequent(), None);
        let mut see = |bottleneck, times| {
            (0..times).for_each(|_| looks.count(bottleneck));
            looks.most_frequent()
        };
        assert_eq!(see(Bottleneck::Merge, 2), Some(Bottleneck::Merge));
        assert_eq!(see(Bottleneck::Compression, 8), Some(Bottleneck::Compression));
        (0..10).for_each(|_| looks.fade());
        looks.count(Bottleneck::Disk);
        assert_eq!(looks.most_frequent(), Some(Bottleneck::Disk));
    }

    #[test]
    fn bars() {
        assert_eq!(bar(0, 1), ".".repeat(BAR));
        assert_eq!(bar(1, 2), format!("{}{}", "#".repeat(BAR / 2), ".".repeat(BAR / 2)));
        assert_eq!(bar(9, 3), "#".repeat(BAR));
        assert_eq!(bar(0, 0), ".".repeat(BAR));
    }
}
