//! Tables in the reference's format, which scripts cut by columns. Cells are left-aligned. A column
//! is as wide as its longest cell plus four spaces, and at least eight. Lines have trailing spaces.

use std::fmt;

use soci_ztoc::Time;

const PADDING: usize = 4;
const MIN_WIDTH: usize = 8;

/// A header and rows with the same number of cells.
#[derive(Debug)]
pub(crate) struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub(crate) fn new(header: [&str; N]) -> Self {
        Self {
            rows: vec![header.map(str::to_owned)],
        }
    }

    /// Adds a row. Cells may be untrusted, so control characters are escaped.
    pub(crate) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| printable(&cell)));
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut widths = [0; N];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for row in &self.rows {
            for (width, cell) in widths.into_iter().zip(row) {
                write!(
                    f,
                    "{cell:<width$}",
                    width = (width + PADDING).max(MIN_WIDTH)
                )?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// Escapes control characters, which could move a terminal's cursor or end a row.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// The time since `then` in Go's format: `7h23m46s ago`.
pub(crate) fn age(then: Option<Time>, now: Time) -> String {
    let Some(then) = then else {
        return "n/a".to_owned();
    };
    let nanos = |time: Time| i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos);
    let age = nanos(now) - nanos(then);
    // To the nearest second; halves round away from zero.
    let seconds = (age.abs() + 500_000_000) / 1_000_000_000;
    let sign = if age < 0 && seconds > 0 { "-" } else { "" };
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let text = match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    };
    format!("{sign}{text} ago")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_longest_cell_and_four_blanks() {
        let mut table = Table::new(["DIGEST", "A", "LAST"]);
        table.row(["sha256:12".into(), String::new(), "ü".into()]);
        assert_eq!(
            table.to_string(),
            "DIGEST       A       LAST    \nsha256:12            ü       \n"
        );
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let mut table = Table::new(["A"]);
        table.row(["a\tb\n\u{1b}[2J\u{9b}".into()]);
        let table = table.to_string();
        assert!(
            table.ends_with("\na\\tb\\n\\u{1b}[2J\\u{9b}    \n"),
            "{table:?}"
        );
    }

    #[test]
    fn ages_are_durations_of_go() {
        let at = |secs, nanos| Time { secs, nanos };
        let now = at(100_000, 0);
        for (then, text) in [
            (None, "n/a"),
            (Some(now), "0s ago"),
            (Some(at(99_999, 500_000_001)), "0s ago"),
            (Some(at(99_999, 500_000_000)), "1s ago"),
            (Some(at(99_940, 0)), "1m0s ago"),
            (Some(at(100_000 - 26_626, 0)), "7h23m46s ago"),
            (Some(at(0, 0)), "27h46m40s ago"),
            (Some(at(100_005, 0)), "-5s ago"),
            (Some(at(100_000, 1)), "0s ago"),
        ] {
            assert_eq!(age(then, now), text);
        }
    }
}
