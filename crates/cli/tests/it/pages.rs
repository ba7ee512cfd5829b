//! Parses pages under `docs/` for tests that compare them with the program.

use std::fs;
use std::path::Path;

/// The text of a page.
pub(crate) fn page(name: &str) -> String {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    fs::read_to_string(docs.join(name)).unwrap()
}

/// The level 2 sections of a page: heading and text.
pub(crate) fn sections(page: &str) -> Vec<(&str, &str)> {
    let parts = page.split("\n## ").skip(1);
    parts.map(|part| part.split_once('\n').unwrap()).collect()
}

/// The rows of the first table whose header starts with this cell.
pub(crate) fn table(text: &str, first: &str) -> Vec<Vec<String>> {
    let head = format!("| {first} |");
    let lines = text.lines().skip_while(|line| !line.starts_with(&head));
    let rows = lines.skip(2).take_while(|line| line.starts_with('|'));
    let rows: Vec<_> = rows.map(cells).collect();
    assert!(!rows.is_empty(), "no table with the column {first:?}");
    rows
}

fn cells(row: &str) -> Vec<String> {
    let row = row.trim().trim_matches('|');
    row.split('|').map(|cell| cell.trim().to_owned()).collect()
}

/// The fenced blocks in this language.
pub(crate) fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let open = format!("```{language}\n");
    let starts = text.split(&open).skip(1);
    starts.map(|it| it.split("```").next().unwrap()).collect()
}

/// The texts in backticks.
pub(crate) fn quoted(text: &str) -> Vec<String> {
    let parts = text.split('`').skip(1).step_by(2);
    parts.map(str::to_owned).collect()
}
