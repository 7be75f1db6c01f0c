//! The progress display of a conversion: drawn over itself on a terminal, absent elsewhere.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::cli::size;
use crate::convert::{LayerProgress, LayerState, Progress};

/// Between two drawings.
const INTERVAL: Duration = Duration::from_millis(200);
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
            while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                let lines = render(&progress, begun.elapsed());
                draw(drawn, &lines);
                drawn = lines.len();
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
fn render(progress: &Progress, elapsed: Duration) -> Vec<String> {
    let count = progress.layers().len();
    let mut lines: Vec<String> = progress
        .layers()
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, layer)| layer.state() != LayerState::Merged)
        .take(LAYERS_SHOWN)
        .map(|(index, layer)| format!("layer {:>3}/{count} {}", index + 1, layer_line(layer)))
        .collect();
    lines.push(total_line(progress, elapsed));
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
    fn bars() {
        assert_eq!(bar(0, 1), ".".repeat(BAR));
        assert_eq!(bar(1, 2), format!("{}{}", "#".repeat(BAR / 2), ".".repeat(BAR / 2)));
        assert_eq!(bar(9, 3), "#".repeat(BAR));
        assert_eq!(bar(0, 0), ".".repeat(BAR));
    }
}
