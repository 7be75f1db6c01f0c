//! Numbers as tar writes them: octal, base-256, decimal in PAX records. Read as Go's `archive/tar` reads them, because
//! that is what every container runtime sees.

use super::error::Problem;

/// A field of a header: base-256 when the first bit is set, else octal between blanks and NULs; empty is 0.
pub(super) fn parse_field(field: &'static str, bytes: &[u8]) -> Result<i64, Problem> {
    let number = match bytes.first() {
        Some(first) if first & 0x80 != 0 => parse_base256(bytes),
        _ => parse_octal(bytes),
    };
    number.ok_or_else(|| Problem::Number { field, value: bytes.to_vec() })
}

/// Octal digits between blanks and NULs; empty is 0.
pub(super) fn parse_octal(bytes: &[u8]) -> Option<i64> {
    let is_padding = |byte: &u8| matches!(byte, b' ' | 0);
    let start = bytes.iter().position(|byte| !is_padding(byte)).unwrap_or(bytes.len());
    let end = bytes.iter().rposition(|byte| !is_padding(byte)).map_or(start, |last| last + 1);
    let digits = until_nul(bytes.get(start..end)?);
    let mut value: u64 = 0;
    for digit in digits {
        if !(b'0'..=b'7').contains(digit) {
            return None;
        }
        value = value.checked_mul(8)?.checked_add(u64::from(digit - b'0'))?;
    }
    // Go parses 64 unsigned bits and then takes them as signed.
    Some(value.cast_signed())
}

/// Two's complement, big-endian, the first bit being a mark and not part of the number.
fn parse_base256(bytes: &[u8]) -> Option<i64> {
    let negative = bytes.first()? & 0x40 != 0;
    let mut value: u64 = 0;
    for (index, byte) in bytes.iter().enumerate() {
        let byte = if negative { !byte } else { *byte };
        let byte = if index == 0 { byte & 0x7f } else { byte };
        if value >> 56 != 0 {
            return None;
        }
        value = value << 8 | u64::from(byte);
    }
    let value = i64::try_from(value).ok()?;
    Some(if negative { !value } else { value })
}

/// A decimal number with an optional sign.
pub(super) fn parse_decimal(field: &'static str, bytes: &[u8]) -> Result<i64, Problem> {
    decimal(bytes).ok_or_else(|| Problem::Number { field, value: bytes.to_vec() })
}

/// A PAX time, `[-]seconds[.fraction]`, rounded down to seconds.
pub(super) fn parse_time(field: &'static str, bytes: &[u8]) -> Result<i64, Problem> {
    let malformed = || Problem::Number { field, value: bytes.to_vec() };
    let (whole, fraction) = match bytes.iter().position(|byte| *byte == b'.') {
        Some(dot) => (bytes.get(..dot).unwrap_or_default(), bytes.get(dot + 1..).unwrap_or_default()),
        None => (bytes, &[][..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(malformed());
    }
    let seconds = decimal(whole).ok_or_else(malformed)?;
    let below = whole.first() == Some(&b'-') && fraction.iter().any(|digit| *digit != b'0');
    Ok(if below { seconds.saturating_sub(1) } else { seconds })
}

/// The bytes before the first NUL.
pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn decimal(bytes: &[u8]) -> Option<i64> {
    // `i64::from_str` takes exactly what Go's `strconv.ParseInt` takes in base 10: a sign and digits.
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_octal_or_base256() {
        let cases: &[(&[u8], Option<i64>)] = &[
            (b"", Some(0)),
            (b"        ", Some(0)),
            (b"\0\0\0\0", Some(0)),
            (b"0000644\0", Some(0o644)),
            (b"0000644 ", Some(0o644)),
            (b" 644 \0", Some(0o644)),
            (b"\x00644\0", Some(0o644)),
            (b"64\x004", Some(0o64)),
            (b"00000000017", Some(15)),
            (b"77777777777", Some(0o77777777777)),
            (b"8", None),
            (b"-1", None),
            (b"0x10", None),
            (b"6 4", None),
            (b"1777777777777777777777", Some(-1)),
            (b"7777777777777777777777", None),
            (b"\x80\0\0\0\0\0\0\x01", Some(1)),
            (b"\x80\0\0\0\0\0\0\0\0\0\0\x01", Some(1)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\x80\0\0\x01\0\0\0\0\0\0\0\0", None),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfb", Some(-5)),
            (b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", Some(i64::MIN)),
            (b"\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff", None),
            (b"\x87\x76\xa2\x22\xeb\x8a\x72\x61", Some(537795476381659745)),
            (b"\xf7\x76\xa2\x22\xeb\x8a\x72\x61", Some(-615126028225187231)),
        ];
        for (bytes, expected) in cases {
            assert_eq!(parse_field("size", bytes).ok(), *expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn pax_numbers_are_decimal() {
        let cases: &[(&[u8], Option<i64>)] = &[
            (b"0", Some(0)),
            (b"+7", Some(7)),
            (b"-7", Some(-7)),
            (b"007", Some(7)),
            (b"9223372036854775807", Some(i64::MAX)),
            (b"9223372036854775808", None),
            (b"", None),
            (b"-", None),
            (b" 7", None),
            (b"7 ", None),
            (b"1e3", None),
            (b"1_000", None),
            (b"7\0", None),
        ];
        for (bytes, expected) in cases {
            assert_eq!(parse_decimal("uid", bytes).ok(), *expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn times_round_down() {
        let cases: &[(&[u8], Option<i64>)] = &[
            (b"1000000000", Some(1_000_000_000)),
            (b"1000000000.123456789", Some(1_000_000_000)),
            (b"1.999999999999999", Some(1)),
            (b"1.", Some(1)),
            (b"-2.5", Some(-3)),
            (b"-2.0", Some(-2)),
            (b"-0.5", Some(-1)),
            (b"-1", Some(-1)),
            (b".5", None),
            (b"1.5.5", None),
            (b"1.-5", None),
            (b"1.5x", None),
            (b"", None),
            (b"1e9", None),
        ];
        for (bytes, expected) in cases {
            assert_eq!(parse_time("mtime", bytes).ok(), *expected, "{}", bytes.escape_ascii());
        }
    }
}
