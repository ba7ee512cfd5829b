//! Compares a command's table of fields in `docs/json.md` with the command's output.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::pages::{blocks, page, quoted, sections, table};

/// The only version so far.
const VERSION: u64 = 1;

/// A row of the table.
#[derive(Debug, Clone)]
struct Field {
    kinds: Vec<String>,
    is_always_there: bool,
    /// The possible values, if the page lists them.
    choices: Vec<String>,
}

/// The table, and which of its statements have been confirmed by output.
#[derive(Debug, Clone)]
pub(crate) struct Schema {
    command: String,
    fields: BTreeMap<String, Field>,
    seen: BTreeSet<(String, String)>,
    missed: BTreeSet<String>,
}

impl Schema {
    /// Reads the table of a command and checks the example above it.
    pub(crate) fn of(command: &str) -> Self {
        let page = page("json.md");
        let heading = format!("`{command}`");
        let sections = sections(&page);
        let section = sections.iter().find(|(title, _)| *title == heading);
        let (_, text) = section.unwrap_or_else(|| panic!("no section {heading}"));
        let fields = table(text, "field").into_iter().map(|row| {
            let [name, kinds, present, meaning] = <[String; 4]>::try_from(row).unwrap();
            let choices = meaning.split_once("One of ");
            let choices = choices.map(|(_, list)| quoted(&without_remarks(list)));
            let field = Field {
                kinds: kinds.split(" or ").map(str::to_owned).collect(),
                is_always_there: present == "always",
                choices: choices.unwrap_or_default(),
            };
            (name.trim_matches('`').to_owned(), field)
        });
        let schema = Self {
            command: command.to_owned(),
            fields: fields.collect(),
            seen: BTreeSet::new(),
            missed: BTreeSet::new(),
        };
        let examples = blocks(text, "json");
        assert!(!examples.is_empty(), "{command} has no example");
        for example in examples {
            schema
                .clone()
                .check(&serde_json::from_str(example).unwrap());
        }
        schema
    }

    /// Compares an output with the table.
    pub(crate) fn check(&mut self, output: &Value) {
        match output {
            Value::Object(members) => {
                if self.fields.contains_key("schema_version") {
                    assert_eq!(members["schema_version"], VERSION, "{}", self.command);
                }
                self.members("", members);
            }
            other => self.value(".", other),
        }
    }

    fn value(&mut self, path: &str, value: &Value) {
        let command = &self.command;
        let field = self.fields.get(path);
        let field = field.unwrap_or_else(|| panic!("{command}: {path} is not on the page"));
        let kind = field.kinds.iter().find(|kind| is(kind, value)).cloned();
        let kind = kind.unwrap_or_else(|| panic!("{command}: {path} is {value}"));
        if !field.choices.is_empty() {
            let known = field.choices.iter().any(|choice| value == choice);
            assert!(known, "{command}: {path} is {value}");
        }
        self.seen.insert((path.to_owned(), kind.clone()));
        match value {
            Value::Object(members) if kind != "map of strings" => self.members(path, members),
            Value::Array(items) => {
                let items = items.iter().filter_map(Value::as_object);
                items.for_each(|members| self.members(&format!("{path}[]"), members));
            }
            _ => {}
        }
    }

    fn members(&mut self, path: &str, members: &Map<String, Value>) {
        let start = match path {
            "" => String::new(),
            path => format!("{path}."),
        };
        for (name, value) in members {
            self.value(&format!("{start}{name}"), value);
        }
        for (row, field) in &self.fields {
            let Some(name) = row.strip_prefix(&start).filter(|it| !it.contains('.')) else {
                continue;
            };
            if !members.contains_key(name) {
                assert!(!field.is_always_there, "{}: {row} is missing", self.command);
                self.missed.insert(row.clone());
            }
        }
    }

    /// Checks that all outputs together confirmed every field and type, and that each optional
    /// field was absent at least once.
    pub(crate) fn finish(self) {
        for (path, field) in &self.fields {
            for kind in &field.kinds {
                let seen = self.seen.contains(&(path.clone(), kind.clone()));
                assert!(seen, "{}: {path} was never {kind}", self.command);
            }
            let missed = self.missed.contains(path);
            assert_eq!(missed, !field.is_always_there, "{}: {path}", self.command);
        }
    }
}

/// The text without its parentheses.
fn without_remarks(text: &str) -> String {
    let parts = text.split('(');
    parts.filter_map(|part| part.rsplit(')').next()).collect()
}

fn is(kind: &str, value: &Value) -> bool {
    let all = |test: fn(&Value) -> bool| value.as_array().is_some_and(|it| it.iter().all(test));
    match kind {
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "object" => value.is_object(),
        "array of objects" => all(Value::is_object),
        "array of strings" => all(Value::is_string),
        "map of strings" => {
            let members = value.as_object();
            members.is_some_and(|it| it.values().all(Value::is_string))
        }
        other => panic!("unknown type {other:?}"),
    }
}
