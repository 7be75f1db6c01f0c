//! Rows of text as columns.

use crate::cli::output;

/// A line each row, the columns as wide as they need to be. Cells come from anywhere, so they are made printable.
pub(crate) fn lines<const N: usize>(rows: &[[String; N]]) -> String {
    let mut lines = vec![String::new(); rows.len()];
    for column in 0..N {
        let cells: Vec<String> =
            rows.iter().filter_map(|row| row.get(column)).map(|cell| output::one_line(cell)).collect();
        let is_last = column.saturating_add(1) == N;
        let width = cells.iter().map(|cell| cell.chars().count()).max().unwrap_or(0);
        for (line, cell) in lines.iter_mut().zip(&cells) {
            line.push_str(&if is_last { cell.clone() } else { format!("{cell:<width$}  ") });
        }
    }
    lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Seconds after 1970 as `2024-10-27 03:33:20Z`.
pub(crate) fn date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01, in years that begin in March: leap days come last.
    let shifted = days.saturating_add(719_468);
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows =
            [["A", "LONG", "C"], ["bbb", "x", ""], ["\x1b", "y", "z"]].map(|row| row.map(str::to_owned));
        assert_eq!(lines(&rows), "A    LONG  C\nbbb  x\n\u{fffd}    y     z\n");
    }

    #[test]
    fn dates() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00Z"),
            (951_782_399, "2000-02-28 23:59:59Z"),
            (951_782_400, "2000-02-29 00:00:00Z"),
            (1_709_164_800, "2024-02-29 00:00:00Z"),
            (1_730_000_000, "2024-10-27 03:33:20Z"),
            (4_107_542_400, "2100-03-01 00:00:00Z"),
        ] {
            assert_eq!(date(seconds), text);
        }
        assert!(!date(u64::MAX).is_empty());
    }
}
