//! `hpcrun gc`: removes from a store what is of no use.

use std::time::Duration;

use clap::Args;

use crate::cli::report::Failure;
use crate::cli::stores::{self, StoreChoice};
use crate::cli::{output, site, size};
use crate::store::{CollectOptions, Collected};

/// Arguments of `gc`.
#[derive(Debug, Args)]
pub(crate) struct Gc {
    #[command(flatten)]
    pub(crate) store: StoreChoice,
    /// Say what would be done, and do nothing
    #[arg(short = 'n', long)]
    pub(crate) dry_run: bool,
    /// How long an image that nothing names stays readable for jobs that run from it: N, with s, m, h or d behind it
    #[arg(long, value_name = "TIME", default_value = "1d", value_parser = parse_time)]
    pub(crate) grace: Duration,
}

/// Collects, and says what of.
pub(crate) fn run(args: &Gc, quiet: bool) -> Result<u8, Failure> {
    let place = stores::chosen(args.store, &site::policy()?)?;
    let store = place.open()?;
    let mut freed: u64 = 0;
    let mut text = String::new();
    let mut done = |collected: Collected| {
        let line = match &collected {
            Collected::TakenAway(key, bytes) => {
                format!("unused    {} {}", key.digest(), size::bytes(*bytes))
            }
            Collected::Removed(key, bytes) => {
                freed = freed.saturating_add(*bytes);
                format!("removed   {} {}", key.digest(), size::bytes(*bytes))
            }
            Collected::Leftover(path, bytes) => {
                freed = freed.saturating_add(*bytes);
                format!("leftover  {} {}", path.display(), size::bytes(*bytes))
            }
        };
        text.push_str(&output::one_line(&line));
        text.push('\n');
    };
    let options = CollectOptions { grace: args.grace, dry_run: args.dry_run };
    let collected = store.map_or(Ok(()), |store| store.collect(options, &mut done));
    output::data(text.as_bytes())?;
    if !quiet {
        let verb = if args.dry_run { "would free" } else { "freed" };
        output::message(&format!("{verb} {} in {}", size::bytes(freed), place.path.display()));
    }
    collected.map(|()| 0).map_err(|error| Failure::new(&error))
}

/// `0`, `90s`, `15m`, `12h`, `14d`.
fn parse_time(text: &str) -> Result<Duration, String> {
    let wrong = || "must be a number with s, m, h or d behind it".to_owned();
    let units = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];
    let last = text.chars().last().ok_or_else(wrong)?;
    let (digits, unit) = match units.into_iter().find(|(name, _)| *name == last) {
        Some((name, unit)) => (text.strip_suffix(name).unwrap_or_default(), unit),
        None if text == "0" => (text, 1),
        None => return Err(wrong()),
    };
    let count = digits.parse::<u64>().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()));
    count.and_then(|count| count.checked_mul(unit)).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, seconds) in
            [("0", 0), ("0d", 0), ("90s", 90), ("15m", 900), ("12h", 43_200), ("14d", 1_209_600)]
        {
            assert_eq!(parse_time(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "d", "1", "-1d", "+1d", "1w", "1.5d", "1 d", "99999999999999999999d", "\u{e9}"] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }
}
