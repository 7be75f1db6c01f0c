//! The image's own idea of when it was made, so that equal images give equal files.

use crate::image::calendar::days_from_civil;

/// Seconds since the epoch of an RFC 3339 time such as `2024-02-29T12:00:00.5+01:00`, fractions dropped, clamped to 32
/// bits. Anything else is 0: the time is a decoration of the config and no reason to refuse an image.
pub(super) fn parse_created(text: &str) -> u32 {
    let seconds = parse(text).unwrap_or(0);
    u32::try_from(seconds.max(0)).unwrap_or(u32::MAX)
}

fn parse(text: &str) -> Option<i64> {
    let (date, time) = text.split_once(['T', 't', ' '])?;
    let mut date = date.splitn(3, '-').map(digits);
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let zone_at = time.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = time.split_at_checked(zone_at)?;
    let mut clock = clock.split('.').next()?.splitn(3, ':').map(digits);
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let in_range =
        (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second <= 60;
    in_range.then_some(())?;
    Some(
        days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - zone_seconds(zone)?,
    )
}

fn zone_seconds(zone: &str) -> Option<i64> {
    if zone.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    let seconds = digits(hours)? * 3600 + digits(minutes)? * 60;
    Some(if zone.starts_with('-') { -seconds } else { seconds })
}

/// At most four digits, so that no sum can overflow.
fn digits(text: &str) -> Option<i64> {
    let is_number = (1..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let cases = [
            ("1970-01-01T00:00:00Z", 0),
            ("1970-01-02T00:00:01Z", 86_401),
            ("2001-09-09T01:46:40Z", 1_000_000_000),
            ("2024-02-29T12:00:00Z", 1_709_208_000),
            ("2024-03-01T00:00:00Z", 1_709_251_200),
            ("2000-12-31T23:59:60Z", 978_307_200),
            ("2024-02-29T12:00:00.123456789Z", 1_709_208_000),
            ("2024-02-29T13:00:00+01:00", 1_709_208_000),
            ("2024-02-29T06:30:00-05:30", 1_709_208_000),
            ("2106-02-07T06:28:15Z", u32::MAX),
            ("9999-01-01T00:00:00Z", u32::MAX),
            ("0001-01-01T00:00:00Z", 0),
            ("1960-01-01T00:00:00Z", 0),
            ("", 0),
            ("yesterday", 0),
            ("2024-13-01T00:00:00Z", 0),
            ("2024-01-01T25:00:00Z", 0),
            ("2024-01-01T00:00:00", 0),
            ("2024-01-01", 0),
            ("99999999999999999999-01-01T00:00:00Z", 0),
            ("2024-01-01T00:00:00+99999999999999999:00", 0),
            ("-2024-01-01T00:00:00Z", 0),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_created(text), expected, "{text}");
        }
    }
}
