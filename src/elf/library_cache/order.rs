//! The order of names in the cache, by which the loader searches it: numbers by their value, all else by bytes.
//!
//! Source: glibc `elf/dl-cache.c`, `_dl_cache_libcmp`.

use std::cmp::Ordering;

/// One step of a comparison.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Piece {
    /// A byte that is no digit, as C's signed `char`; 0 at the end of the name.
    Byte(i8),
    /// Digits, by their value. More than all bytes.
    Number(u64),
}

/// How two names stand to each other; the cache is sorted from the greatest to the least.
pub(super) fn by_name(a: &[u8], b: &[u8]) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let (first, second) = (piece(&mut a), piece(&mut b));
        match first.cmp(&second) {
            Ordering::Equal if first == Piece::Byte(0) => return Ordering::Equal,
            Ordering::Equal => {}
            unequal => return unequal,
        }
    }
}

/// Takes the first piece off `name`.
fn piece(name: &mut &[u8]) -> Piece {
    let digits = name.iter().take_while(|byte| byte.is_ascii_digit());
    let (count, value) = digits.fold((0_usize, 0_u64), |(count, value), digit| {
        (count.saturating_add(1), value.saturating_mul(10).saturating_add(u64::from(digit - b'0')))
    });
    if count > 0 {
        *name = name.get(count..).unwrap_or_default();
        return Piece::Number(value);
    }
    match name.split_first() {
        Some((first, rest)) => {
            *name = rest;
            Piece::Byte(first.cast_signed())
        }
        None => Piece::Byte(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_as_the_loader_has_them() {
        // From the greatest to the least, as `ldconfig -p` prints.
        let sorted = [
            "lib1x.so",
            "libzstd.so.1",
            "libz.so.1",
            "libx.so.10",
            "libx.so.9",
            "libx.so.2",
            "libx.so",
            "libcuda.so.535.10",
            "libcuda.so.535.9",
            "libcuda.so.1",
            "libc.so.6",
            "lib-x.so",
            "",
        ];
        for (at, name) in sorted.iter().enumerate() {
            for (other_at, other) in sorted.iter().enumerate() {
                assert_eq!(by_name(name.as_bytes(), other.as_bytes()), other_at.cmp(&at), "{name} {other}");
            }
        }
        assert_eq!(by_name(b"a01", b"a1"), Ordering::Equal);
        assert_eq!(by_name(b"a\xff", b"a"), Ordering::Less, "bytes are signed");
        let long = [b'9'; 300];
        assert_eq!(by_name(&long, &long), Ordering::Equal);
    }
}
