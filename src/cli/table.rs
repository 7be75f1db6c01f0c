//! Rows of text as columns.

use crate::cli::output;
use crate::image::calendar::civil;

/// A line each row, the columns as wide as they need to be. Cells come from anywhere, so they are made printable.
pub(crate) fn lines<R: AsRef<[String]>>(rows: &[R]) -> String {
    let mut lines = vec![String::new(); rows.len()];
    let columns = rows.iter().map(|row| row.as_ref().len()).max().unwrap_or(0);
    for column in 0..columns {
        let cells = rows.iter().filter_map(|row| row.as_ref().get(column));
        let cells: Vec<String> = cells.map(|cell| output::one_line(cell)).collect();
        let is_last = column.saturating_add(1) == columns;
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
    let (year, month, day) = civil(days);
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
