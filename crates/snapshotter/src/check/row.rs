//! Rows of a check and how they are printed.

use std::fmt;

use serde::Serialize;
use serde_json::json;

use crate::args::Part;

/// Version of the JSON output, as in the output of `soci`.
const SCHEMA_VERSION: u32 = 1;
/// Width of the column with the names of rows.
const NAME_WIDTH: usize = 22;

/// How good a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, with a drawback.
    Warning,
    /// Layers cannot be loaded lazily.
    Problem,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        })
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The part that found it.
    pub part: Part,
    /// What was looked at.
    pub name: &'static str,
    /// How good it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do. May have several lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Row {
    /// A finding that needs no remedy.
    pub fn ok(part: Part, name: &'static str, found: impl Into<String>) -> Self {
        Self {
            part,
            name,
            level: Level::Ok,
            found: found.into(),
            remedy: None,
        }
    }

    /// A drawback.
    pub fn warning(
        part: Part,
        name: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            level: Level::Warning,
            remedy: Some(remedy.into()),
            ..Self::ok(part, name, found)
        }
    }

    /// A problem.
    pub fn problem(
        part: Part,
        name: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            level: Level::Problem,
            ..Self::warning(part, name, found, remedy)
        }
    }
}

/// The result of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The findings, in the order of [`Part::ALL`].
    pub rows: Vec<Row>,
}

impl Report {
    /// Whether nothing is a problem.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.count(Level::Problem) == 0
    }

    /// One line of JSON.
    #[must_use]
    pub fn json(&self) -> String {
        json!({
            "schema_version": SCHEMA_VERSION,
            "ok": self.is_ok(),
            "rows": self.rows,
        })
        .to_string()
    }

    /// Whether the same things were looked at and are as good. Details such as times may differ.
    #[must_use]
    pub fn agrees(&self, other: &Self) -> bool {
        let of = |report: &Self| -> Vec<(&'static str, Level)> {
            let rows = report.rows.iter();
            rows.map(|row| (row.name, row.level)).collect()
        };
        of(self) == of(other)
    }

    fn count(&self, level: Level) -> usize {
        self.rows.iter().filter(|row| row.level == level).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in &self.rows {
            writeln!(
                f,
                "{:8} {:NAME_WIDTH$} {}",
                row.level,
                row.name,
                one_line(&row.found)
            )?;
            let Some(remedy) = &row.remedy else {
                continue;
            };
            for line in remedy.lines() {
                writeln!(f, "{:9}{:NAME_WIDTH$} {line}", "", "")?;
            }
        }
        writeln!(
            f,
            "{} ok, {} warnings, {} problems",
            self.count(Level::Ok),
            self.count(Level::Warning),
            self.count(Level::Problem)
        )
    }
}

/// Errors of parsers have several lines.
fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            rows: vec![
                Row::ok(Part::Kernel, "kernel version", "6.12.1"),
                Row::warning(Part::Disk, "disk", "1%\n free", "delete something"),
                Row::problem(Part::Mount, "mount", "refused", "one\n  two"),
            ],
        }
    }

    #[test]
    fn rows_are_printed_with_their_remedies() {
        assert_eq!(
            report().to_string(),
            "ok       kernel version         6.12.1\n\
             warning  disk                   1% free\n\
             \x20                               delete something\n\
             problem  mount                  refused\n\
             \x20                               one\n\
             \x20                                 two\n\
             1 ok, 1 warnings, 1 problems\n"
        );
    }

    #[test]
    fn json_has_a_version_and_says_whether_the_node_is_ready() {
        let mut report = report();
        let parsed: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(parsed["schema_version"], 1);
        assert_eq!(parsed["ok"], false);
        assert_eq!(parsed["rows"][2]["level"], "problem");
        assert_eq!(parsed["rows"][2]["part"], "mount");
        assert_eq!(parsed["rows"][2]["remedy"], "one\n  two");
        assert!(parsed["rows"][0].get("remedy").is_none());
        report.rows.pop();
        assert!(report.is_ok(), "a warning is not a problem");
    }

    #[test]
    fn reports_agree_if_only_details_differ() {
        let (mut first, second) = (report(), report());
        first.rows[0].found = "6.13".to_owned();
        assert!(first.agrees(&second));
        first.rows[0].level = Level::Warning;
        assert!(!first.agrees(&second));
    }
}
