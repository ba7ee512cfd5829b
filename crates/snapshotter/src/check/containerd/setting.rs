//! Single settings: how they are printed and put into a table.

use toml::{Table, Value};

/// A setting that is missing.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Setting {
    /// A key with its value.
    Key {
        table: Vec<&'static str>,
        key: &'static str,
        value: Value,
    },
    /// An element of an array of tables.
    Element {
        array: Vec<&'static str>,
        element: Table,
    },
}

impl Setting {
    pub(super) fn key(table: &[&'static str], key: &'static str, value: impl Into<Value>) -> Self {
        Self::Key {
            table: table.to_vec(),
            key,
            value: value.into(),
        }
    }

    fn header(&self) -> String {
        match self {
            Self::Key { table, .. } => format!("[{}]", dotted(table)),
            Self::Element { array, .. } => format!("[[{}]]", dotted(array)),
        }
    }

    fn lines(&self) -> Vec<String> {
        match self {
            Self::Key { key, value, .. } => vec![format!("  {key} = {value}")],
            Self::Element { element, .. } => element
                .iter()
                .map(|(key, value)| format!("  {key} = {value}"))
                .collect(),
        }
    }

    /// Puts it into a configuration.
    pub(super) fn apply(&self, config: &mut Table) {
        match self {
            Self::Key { table, key, value } => {
                inside(config, table).insert((*key).to_owned(), value.clone());
            }
            Self::Element { array, element } => {
                let Some((name, table)) = array.split_last() else {
                    return;
                };
                let entry = inside(config, table)
                    .entry(*name)
                    .or_insert_with(|| Value::Array(Vec::new()));
                if let Value::Array(elements) = entry {
                    elements.push(Value::Table(element.clone()));
                }
            }
        }
    }

    /// The section of the configuration that it belongs to: a plugin or a proxy plugin.
    pub(super) fn section(&self) -> (&'static str, &'static str) {
        let path = match self {
            Self::Key { table, .. } => table,
            Self::Element { array, .. } => array,
        };
        match path[..] {
            [first, second, ..] => (first, second),
            _ => ("", ""),
        }
    }
}

/// The table at a path, created if it does not exist.
fn inside<'a>(config: &'a mut Table, path: &[&str]) -> &'a mut Table {
    let mut table = config;
    for name in path {
        let value = table
            .entry(*name)
            .or_insert_with(|| Value::Table(Table::new()));
        if !value.is_table() {
            *value = Value::Table(Table::new());
        }
        let Value::Table(next) = value else {
            unreachable!("it was made a table above");
        };
        table = next;
    }
    table
}

/// The lines of a configuration file, grouped by table.
pub(super) fn text(settings: &[Setting]) -> String {
    let mut lines = Vec::new();
    let mut last = String::new();
    for setting in settings {
        let header = setting.header();
        if header != last || header.starts_with("[[") {
            lines.push(header.clone());
            last = header;
        }
        lines.extend(setting.lines());
    }
    lines.join("\n")
}

/// A path as in the header of a table.
fn dotted(path: &[&str]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let parts = path.iter().map(|part| match part.chars().all(plain) {
        true => (*part).to_owned(),
        false => format!("\"{part}\""),
    });
    parts.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Vec<Setting> {
        let element = Table::from_iter([("snapshotter".to_owned(), Value::from("soci"))]);
        vec![
            Setting::key(&["proxy_plugins", "soci"], "type", "snapshot"),
            Setting::key(&["proxy_plugins", "soci"], "address", "/a \"b\""),
            Setting::Element {
                array: vec!["plugins", "io.x.v1", "list"],
                element,
            },
        ]
    }

    #[test]
    fn the_printed_lines_are_what_is_applied() {
        let mut applied = Table::new();
        for setting in settings() {
            setting.apply(&mut applied);
        }
        let text = text(&settings());
        assert_eq!(text.parse::<Table>().unwrap(), applied, "{text}");
        assert!(text.starts_with("[proxy_plugins.soci]\n  type = \"snapshot\"\n  address ="));
        assert!(text.contains("[[plugins.\"io.x.v1\".list]]"), "{text}");
    }

    #[test]
    fn an_element_is_added_to_those_that_exist() {
        let mut config: Table = "[[plugins.'io.x.v1'.list]]\nsnapshotter = 'overlayfs'\n"
            .parse()
            .unwrap();
        settings()[2].apply(&mut config);
        let list = config["plugins"]["io.x.v1"]["list"].as_array().unwrap();
        assert_eq!(list.len(), 2);
    }
}
