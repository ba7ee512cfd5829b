//! What `docs/compatibility.md` says about tests: each test that a table names exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use regex::Regex;
use soci_tests::process::repository;

/// The heading behind which the last cell of a row names tests.
const CONTRACT: &str = "## Contract of the daemon, line by line";

/// The names of all functions below a directory.
fn functions(folder: &Path, found: &mut BTreeSet<String>) {
    let name = Regex::new(r"fn ([a-z0-9_]+)\(").expect("a pattern");
    for entry in fs::read_dir(folder).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            functions(&path, found);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            let text = fs::read_to_string(&path).expect("a source");
            found.extend(name.captures_iter(&text).map(|name| name[1].to_owned()));
        }
    }
}

#[test]
fn the_tests_that_the_contract_names_exist() {
    let page = repository().join("docs/compatibility.md");
    let page = fs::read_to_string(page).expect("the page");
    let (_, contract) = page.split_once(CONTRACT).expect("the heading");
    let mut known = BTreeSet::new();
    for folder in ["crates", "tests"] {
        functions(&repository().join(folder), &mut known);
    }
    let quoted = Regex::new("`([a-z0-9_]+)`").expect("a pattern");
    let rows: Vec<&str> = contract
        .lines()
        .filter(|line| line.starts_with("| "))
        .collect();
    let mut named = 0;
    let mut wrong = Vec::new();
    for row in &rows {
        let cell = row
            .trim_end_matches(" |")
            .rsplit(" | ")
            .next()
            .unwrap_or_default();
        for name in quoted.captures_iter(cell) {
            named += 1;
            if !known.contains(&name[1]) {
                wrong.push(format!("{row}\n  no test is called {}", &name[1]));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(
        rows.len() > 100 && named > 100,
        "the tables are not found: {named}"
    );
}

#[test]
fn the_contract_names_every_key_of_the_reference() {
    let page = repository().join("docs/compatibility.md");
    let page = fs::read_to_string(page).expect("the page");
    let (_, keys) = page.split_once("### Configuration keys").expect("a table");
    let (keys, _) = keys.split_once("\n### ").expect("another table");
    let default = repository().join("crates/snapshotter/src/config/tests/default.toml");
    let default = fs::read_to_string(default).expect("the defaults");
    let names = default.lines().filter_map(|line| line.split_once(" = "));
    let missing: Vec<&str> = names
        .map(|(name, _)| name.trim())
        .filter(|name| !keys.contains(&format!("`{name}`")) && !keys.contains(&format!(" {name}`")))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}
