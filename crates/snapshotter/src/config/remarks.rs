//! What the daemon says about a file that is valid: one log line per kind of remark.

use tracing::{info, warn};

use super::read::Moved;
use super::{Config, SECTIONS};

/// Limits on what a line names.
const MOST_NAMES: usize = 30;
const LONGEST_NAME: usize = 80;

/// Remarks about a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Remarks {
    /// Keys and tables that nobody knows.
    pub(super) unknown: Vec<String>,
    /// Keys that are set and have no effect.
    pub(super) unused: Vec<String>,
    /// Keys that stand in another table than their own.
    pub(super) moved: Moved,
    /// Algorithms without support.
    pub(super) algorithms: Vec<String>,
}

impl Remarks {
    /// Adds the remarks about the values.
    pub(super) fn add_values(&mut self, config: &Config) {
        self.unused = unused(config);
        let algorithms = config.pull_modes.parallel_pull_unpack.unsupported();
        self.algorithms = algorithms.map(str::to_owned).collect();
    }

    pub(super) fn log(&self) {
        if !self.unknown.is_empty() {
            warn!(
                keys = list(&self.unknown),
                "ignoring unknown keys of the configuration file: check their spelling and table"
            );
        }
        let Moved { taken, overridden } = &self.moved;
        if !taken.is_empty() || !overridden.is_empty() {
            info!(
                keys = list(taken),
                ignored = list(overridden),
                "found limits of the parallel mode under [blob], using them as if they were under [pull_modes.parallel_pull_unpack], where a key takes precedence"
            );
        }
        if !self.unused.is_empty() {
            warn!(
                keys = list(&self.unused),
                "these keys of the configuration have no effect"
            );
        }
        if !self.algorithms.is_empty() {
            warn!(
                algorithms = list(&self.algorithms),
                "Unsupported compression algorithm: ignoring the program for it"
            );
        }
    }
}

/// Keys without effect whose values are not their defaults.
fn unused(config: &Config) -> Vec<String> {
    let default = Config::default();
    let mut found = Vec::new();
    for section in SECTIONS {
        let values = (section.values)(config).into_iter();
        let values = values.zip((section.values)(&default));
        for (key, (value, default)) in section.keys.iter().zip(values) {
            if key.unused && value != default {
                found.push(section.path_of(key));
            }
        }
    }
    found
}

/// The names in one line of limited length.
fn list(names: &[String]) -> String {
    let shown = names.iter().take(MOST_NAMES).map(|name| {
        let mut short: String = name.chars().take(LONGEST_NAME).collect();
        if short.len() < name.len() {
            short.push('…');
        }
        short
    });
    let mut text = shown.collect::<Vec<_>>().join(", ");
    if let Some(more @ 1..) = names.len().checked_sub(MOST_NAMES) {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_names_has_a_limited_length() {
        let many: Vec<String> = (0..10_000)
            .map(|n| format!("{n}-{}", "x".repeat(900)))
            .collect();
        let text = list(&many);
        assert!(text.len() < 3_000, "{}", text.len());
        assert!(
            text.starts_with("0-xxx") && text.ends_with(" and 9970 more"),
            "{text}"
        );
        assert_eq!(list(&many[..1]).chars().count(), LONGEST_NAME + 1);
        assert_eq!(list(&["a".to_owned(), "b.c".to_owned()]), "a, b.c");
    }
}
