//! What happens to the text of a file before it becomes a [`Config`]: names of keys, unknown keys,
//! and keys in another table.

use toml::{Table, Value};

use super::SECTIONS;
use super::pull_modes::LIMITS;

/// The table with the limits of the parallel mode.
const PARALLEL: [&str; 2] = ["pull_modes", "parallel_pull_unpack"];
/// A step of a path that stands for any name.
const ANY: &str = "*";

/// The paths of the keys and tables in a file that nobody knows, sorted. Of an unknown table, only its
/// own. Empty if the text is not TOML.
#[must_use]
pub fn unknown_keys(text: &str) -> Vec<String> {
    let mut unknown =
        toml::from_str(text).map_or_else(|_| Vec::new(), |mut table| fold(&mut table));
    unknown.sort();
    unknown
}

/// Changes known keys to their canonical case, where an exact match takes precedence. Returns the
/// paths of unknown keys and tables.
pub(super) fn fold(table: &mut Table) -> Vec<String> {
    let mut unknown = Vec::new();
    walk(table, "", "", &mut unknown);
    unknown
}

/// `section` is the declared path of `table`, and `path` that in the file.
fn walk(table: &mut Table, section: &str, path: &str, unknown: &mut Vec<String>) {
    let known = names(section);
    let any = known.contains(&ANY);
    if !any {
        fold_names(table, &known);
    }
    for (key, value) in table.iter_mut() {
        let path = join(path, key);
        let step = match any {
            true => ANY,
            false => key,
        };
        if !known.contains(&step) {
            unknown.push(path);
            continue;
        }
        let section = join(section, step);
        match value {
            Value::Table(table) => walk(table, &section, &path, unknown),
            Value::Array(array) => {
                for table in array.iter_mut().filter_map(Value::as_table_mut) {
                    walk(table, &section, &path, unknown);
                }
            }
            _ => {}
        }
    }
}

/// The names that may stand in a section: keys and tables.
fn names(path: &str) -> Vec<&'static str> {
    let mut names = Vec::new();
    for section in SECTIONS {
        if section.path == path {
            names.extend(section.keys.iter().map(|key| key.name));
        }
        let below = match path {
            "" => Some(section.path).filter(|path| !path.is_empty()),
            _ => section
                .path
                .strip_prefix(path)
                .and_then(|rest| rest.strip_prefix('.')),
        };
        names.extend(below.and_then(|rest| rest.split('.').next()));
    }
    if path == "blob" {
        names.extend(LIMITS);
    }
    names
}

fn fold_names(table: &mut Table, known: &[&str]) {
    for &key in known {
        if table.contains_key(key) {
            continue;
        }
        let other = table
            .keys()
            .find(|found| found.eq_ignore_ascii_case(key))
            .cloned();
        if let Some(value) = other.and_then(|other| table.remove(&other)) {
            table.insert(key.to_owned(), value);
        }
    }
}

/// Limits of the parallel mode under `[blob]`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    /// Taken as if they stood in the table of the mode.
    pub(super) taken: Vec<String>,
    /// Not taken, because they stand there too.
    pub(super) overridden: Vec<String>,
}

/// Moves limits of the parallel mode from `[blob]` to their table. The names are folded.
pub(super) fn take_limits(table: &mut Table) -> Moved {
    let mut moved = Moved::default();
    let Some(Value::Table(blob)) = table.get_mut("blob") else {
        return moved;
    };
    let found = LIMITS.map(|name| (name, blob.remove(name)));
    for (name, value) in found {
        let Some(value) = value else { continue };
        let mut target = Some(&mut *table);
        for step in PARALLEL {
            let entry = target.map(|table| table.entry(step));
            let empty = || Value::Table(Table::new());
            // Anything but a table is refused later.
            target = entry.and_then(|entry| entry.or_insert_with(empty).as_table_mut());
        }
        match target {
            Some(target) if !target.contains_key(name) => {
                target.insert(name.to_owned(), value);
                moved.taken.push(name.to_owned());
            }
            _ => moved.overridden.push(name.to_owned()),
        }
    }
    moved
}

fn join(path: &str, name: &str) -> String {
    match path {
        "" => name.to_owned(),
        _ => format!("{path}.{name}"),
    }
}
