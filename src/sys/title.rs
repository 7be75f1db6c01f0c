//! What `ps` shows as the command line of this process.
#![expect(unsafe_code, reason = "the strings that the kernel shows are at addresses that only it tells")]

use std::io::Read as _;

use super::Error;

/// Where the kernel finds command line and environment of this process: addresses.
struct Area {
    start: u64,
    arguments_end: u64,
    end: u64,
}

/// Replaces the command line that other processes see, as `setproctitle(3)` does; a title too long for its place is cut
/// off. The arguments and the environment that the process was started with are gone afterwards: nobody may ask for them
/// any more, nor have kept a pointer to them.
pub fn set(title: &[u8]) -> Result<(), Error> {
    let mut stat = String::new();
    std::fs::File::open("/proc/self/stat")
        .and_then(|mut file| file.read_to_string(&mut stat))
        .map_err(|error| Error::from_io("read(\"/proc/self/stat\")", &error))?;
    let Some(area) = Area::parse(&stat) else {
        return Err(Error::new(
            "read(\"/proc/self/stat\"): no place of the arguments",
            nix::errno::Errno::EINVAL,
        ));
    };
    let bytes = area.fill(title);
    let place = usize::try_from(area.start).unwrap_or(0);
    // SAFETY: the kernel says that it put the arguments, and right behind them the environment, in these bytes of our
    // stack, and `fill` does not go beyond them. Nobody has a reference to them: the standard library copies what it hands
    // out.
    unsafe {
        let place = std::ptr::with_exposed_provenance_mut(place);
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len());
    }
    Ok(())
}

impl Area {
    /// Out of the fields 48 to 51 of `/proc/self/stat`.
    fn parse(stat: &str) -> Option<Area> {
        let (_, fields) = stat.rsplit_once(") ")?;
        // The first field here is the third.
        let mut fields = fields.split_ascii_whitespace().skip(45).map(|field| field.parse::<u64>().ok());
        let (start, arguments_end) = (fields.next()??, fields.next()??);
        let (environment, end) = (fields.next()??, fields.next()??);
        // The kernel reads on into the environment only where that follows.
        let end = if environment == arguments_end { end } else { arguments_end };
        (start < arguments_end && arguments_end <= end).then_some(Area { start, arguments_end, end })
    }

    /// `title` as it is to be written: the rest of the arguments cleared, and a zero after it. Where it goes beyond the
    /// arguments, their last byte is not zero, which makes the kernel read up to the next zero.
    fn fill(&self, title: &[u8]) -> Vec<u8> {
        let place = |end: u64| usize::try_from(end.saturating_sub(self.start)).unwrap_or(0);
        let room = place(self.end).saturating_sub(1);
        let mut bytes: Vec<u8> = title.iter().copied().take_while(|byte| *byte != 0).take(room).collect();
        let length = bytes.len().saturating_add(1).max(place(self.arguments_end));
        bytes.resize(length, 0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::{Ended, in_child};

    #[test]
    fn places() {
        let stat = |tail: &str| format!("1 (a) b) {}{tail}", "0 ".repeat(45));
        let parsed =
            |tail: &str| Area::parse(&stat(tail)).map(|area| (area.start, area.arguments_end, area.end));
        assert_eq!(parsed("10 20 20 30 0"), Some((10, 20, 30)));
        assert_eq!(parsed("10 20 25 30 0"), Some((10, 20, 20)));
        for broken in ["", "10 20", "0 0 0 0 0", "20 10 10 30 0", "10 20 20 15 0", "x 20 20 30"] {
            assert_eq!(parsed(broken), None, "{broken}");
        }
    }

    #[test]
    fn titles_fill_their_place() {
        let area = Area { start: 0, arguments_end: 4, end: 8 };
        for (title, filled) in [
            ("", "\0\0\0\0"),
            ("ab", "ab\0\0"),
            ("abc", "abc\0"),
            ("abcd", "abcd\0"),
            ("abcdefg", "abcdefg\0"),
            ("abcdefgh", "abcdefg\0"),
            ("a\0b", "a\0\0\0"),
        ] {
            assert_eq!(area.fill(title.as_bytes()), filled.as_bytes(), "{title:?}");
        }
    }

    #[test]
    fn others_see_the_title() {
        for title in ["x", "a title that is longer than any name of a test program, its options and its path"]
        {
            let status = in_child(|| {
                let is_set = set(title.as_bytes()).is_ok();
                let shown = std::fs::read("/proc/self/cmdline").unwrap_or_default();
                u8::from(is_set && shown.split(|byte| *byte == 0).next() == Some(title.as_bytes()))
            });
            assert_eq!(status.unwrap(), Ended::Exited(1), "{title}");
        }
    }
}
