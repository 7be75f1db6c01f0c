//! How long to wait, how often to try again, and what is worth trying again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::error::RegistryError;

/// Timeouts and retries. All times are upper bounds of one wait, none of a whole download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// For a connection with its TLS handshake.
    pub connect: Duration,
    /// Without a byte from the server, or with a mere trickle.
    pub stall: Duration,
    /// For a whole manifest or token answer.
    pub answer: Duration,
    /// Tries again after the first, without progress in between.
    pub retries: u32,
    /// Before the first retry; doubles each time.
    pub first_delay: Duration,
    /// Longest pause, also of a server's `Retry-After`.
    pub longest_delay: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            connect: Duration::from_secs(20),
            stall: Duration::from_secs(60),
            answer: Duration::from_secs(120),
            retries: 5,
            first_delay: Duration::from_secs(1),
            longest_delay: Duration::from_secs(60),
        }
    }
}

impl Patience {
    /// The pause before retry `number` (0 = first) after `error`.
    pub(super) fn pause_after(&self, number: u32, error: &RegistryError) -> Duration {
        let asked = match error {
            RegistryError::RateLimited { asked, .. } | RegistryError::Status { asked, .. } => *asked,
            _ => None,
        };
        self.pause(number, asked)
    }

    /// The pause before retry `number`: what the server asked for, else doubling with a little jitter so
    /// that many nodes do not come back at once.
    fn pause(&self, number: u32, asked: Option<Duration>) -> Duration {
        let doubled = self.first_delay.saturating_mul(1u32.checked_shl(number.min(16)).unwrap_or(u32::MAX));
        let jitter = doubled.mul_f64(jitter());
        asked.unwrap_or(doubled.saturating_add(jitter)).min(self.longest_delay)
    }
}

/// 0 to 0.25, from the clock's fine digits.
fn jitter() -> f64 {
    let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.subsec_nanos());
    f64::from(nanoseconds % 1000) / 4000.0
}

/// Whether a status can change by itself.
pub(super) fn is_transient(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

/// `Retry-After`: seconds, or a date held against `now`.
pub(super) fn parse_retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let seconds = parse_http_date(text)?;
    let then = UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
    Some(then.duration_since(now).unwrap_or(Duration::ZERO))
}

/// Seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT`, the one form that servers may send.
fn parse_http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (_, rest) = text.split_once(", ")?;
    let words: Vec<&str> = rest.split(' ').collect();
    let [day, month, year, time, "GMT"] = words.as_slice() else { return None };
    let month = u64::try_from(MONTHS.iter().position(|name| name == month)?).ok()?.checked_add(1)?;
    let (day, year): (u64, u64) = (day.parse().ok()?, year.parse().ok()?);
    let clock: Vec<u64> = time.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let [hours, minutes, seconds] = clock.as_slice() else { return None };
    if !(1970..=9999).contains(&year)
        || !(1..=31).contains(&day)
        || *hours > 23
        || *minutes > 59
        || *seconds > 60
    {
        return None;
    }
    Some(days_since_1970(year, month, day) * 86_400 + hours * 3600 + minutes * 60 + seconds)
}

/// Days from 1970-01-01 in the Gregorian calendar; `year` from 1970, `month` from 1. Counts years from March, so that
/// the leap day is the last of the year.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days_of_months = (153 * month + 2) / 5;
    365 * year + year / 4 - year / 100 + year / 400 + days_of_months + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (text, expected) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Thu, 29 Feb 2024 23:59:59 GMT", Some(1_709_251_199)),
            ("Fri, 01 Mar 2024 00:00:00 GMT", Some(1_709_251_200)),
            ("Fri, 31 Dec 1999 23:59:59 GMT", Some(946_684_799)),
            ("Sun, 06 Nov 1994 08:49:37 UTC", None),
            ("Sunday, 06-Nov-94 08:49:37 GMT", None),
            ("Sun, 06 Xxx 1994 08:49:37 GMT", None),
            ("Sun, 99 Nov 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 25:49:37 GMT", None),
            ("Sun, 06 Nov 99999999999 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 08:49 GMT", None),
            ("", None),
        ] {
            assert_eq!(parse_http_date(text), expected, "{text}");
        }
    }

    #[test]
    fn retry_after() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777);
        let seconds = |text: &str| parse_retry_after(text, now).map(|wait| wait.as_secs());
        assert_eq!(seconds("0"), Some(0));
        assert_eq!(seconds(" 120 "), Some(120));
        assert_eq!(seconds("99999999999999999999999"), Some(u64::MAX));
        assert_eq!(seconds("Sun, 06 Nov 1994 08:50:37 GMT"), Some(60));
        assert_eq!(seconds("Sun, 06 Nov 1994 08:40:37 GMT"), Some(0));
        assert_eq!(seconds("-1"), None);
        assert_eq!(seconds("soon"), None);
        assert_eq!(seconds(""), None);
    }

    #[test]
    fn pauses_grow_and_are_bounded() {
        let patience = Patience::default();
        for number in 0..6 {
            let pause = patience.pause(number, None).as_secs_f64();
            let base = f64::from(1 << number);
            assert!((base..=base * 1.25).contains(&pause), "{number}: {pause}");
        }
        assert_eq!(patience.pause(40, None), patience.longest_delay);
        assert_eq!(patience.pause(0, Some(Duration::from_secs(315_360_000))), patience.longest_delay);
        assert_eq!(patience.pause(3, Some(Duration::from_secs(2))), Duration::from_secs(2));
    }

    #[test]
    fn transient() {
        let transient: Vec<u16> = (100..600).filter(|status| is_transient(*status)).collect();
        assert_eq!(transient, [408, 429, 500, 502, 503, 504]);
    }
}
