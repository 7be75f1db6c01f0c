//! Versions of symbols, as `GLIBC_2.34`: compared by their numbers.

use std::cmp::Ordering;

/// The numbers of a version with this prefix: `2.34` of `GLIBC_2.34`. None for another prefix or what is no number, as in
/// `GLIBC_PRIVATE`.
pub fn numbers(version: &[u8], prefix: &str) -> Option<Vec<u32>> {
    let text = std::str::from_utf8(version.strip_prefix(prefix.as_bytes())?).ok()?;
    text.split('.').map(|part| part.parse().ok()).collect()
}

/// The highest of the versions with this prefix, as text behind it: `2.36`.
pub fn highest<'v>(versions: impl IntoIterator<Item = &'v [u8]>, prefix: &str) -> Option<String> {
    let best = versions.into_iter().filter_map(|version| numbers(version, prefix)).max()?;
    Some(best.iter().map(u32::to_string).collect::<Vec<_>>().join("."))
}

/// A version of glibc, as in `GLIBC_2.34`.
pub type GlibcVersion = (u32, u32);

/// The highest of the versions that are glibc's.
pub fn glibc<'v>(versions: impl IntoIterator<Item = &'v [u8]>) -> Option<GlibcVersion> {
    let parse = |version: &[u8]| match numbers(version, "GLIBC_")?.as_slice() {
        [major, minor, ..] => Some((*major, *minor)),
        _ => None,
    };
    versions.into_iter().filter_map(parse).max()
}

/// Compares two dotted versions number by number; what is missing or no number is 0.
pub fn compare(a: &str, b: &str) -> Ordering {
    let parts = |text: &str| -> Vec<u32> { text.split('.').map(|part| part.parse().unwrap_or(0)).collect() };
    let (mut a, mut b) = (parts(a), parts(b));
    let length = a.len().max(b.len());
    a.resize(length, 0);
    b.resize(length, 0);
    a.cmp(&b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers() {
        for (version, prefix, expected) in [
            ("GLIBC_2.34", "GLIBC_", Some(vec![2, 34])),
            ("GLIBC_2.2.5", "GLIBC_", Some(vec![2, 2, 5])),
            ("GLIBC_PRIVATE", "GLIBC_", None),
            ("GLIBCXX_3.4.30", "GLIBC_", None),
            ("GLIBCXX_3.4.30", "GLIBCXX_", Some(vec![3, 4, 30])),
            ("GLIBC_", "GLIBC_", None),
            ("GLIBC_2.99999999999", "GLIBC_", None),
            ("", "GLIBC_", None),
        ] {
            assert_eq!(numbers(version.as_bytes(), prefix), expected, "{version}");
        }
        let versions: [&[u8]; 4] = [b"GLIBC_2.9", b"GLIBC_2.34", b"GLIBC_PRIVATE", b"GLIBC_2.2.5"];
        assert_eq!(highest(versions, "GLIBC_").as_deref(), Some("2.34"));
        assert_eq!(highest([], "GLIBC_"), None);
        assert_eq!((glibc(versions), glibc([])), (Some((2, 34)), None));
    }

    #[test]
    fn dotted_versions_compare_by_number() {
        use Ordering::{Equal, Greater, Less};
        for (a, b, expected) in [
            ("2.34", "2.9", Greater),
            ("2.9", "2.34", Less),
            ("2.34", "2.34", Equal),
            ("2.34.0", "2.34", Equal),
            ("12.1.8", "12.2", Less),
            ("x", "0", Equal),
            ("", "1", Less),
        ] {
            assert_eq!(compare(a, b), expected, "{a} {b}");
        }
    }
}
