//! A configuration as a file, in the form in which the reference prints it.
//!
//! Keys of our own are printed only if they differ from their default, and keys that are not set are
//! left out.

use super::declare::{Declared, quoted};
use super::{Config, SECTIONS, Section};

/// The defaults, as the reference prints them, byte for byte. The reference's file has a switch of
/// the parallel mode, so that a node with this file behaves like the reference. Without a file, the
/// switch is not set.
pub fn defaults() -> String {
    let mut config = Config::default();
    config.pull_modes.parallel_pull_unpack.enable = Some(false);
    dump(&config)
}

/// The file with this configuration.
pub fn dump(config: &Config) -> String {
    let mut page = Page::default();
    let default = Config::default();
    for section in SECTIONS {
        if section.is_pattern() {
            continue;
        }
        let lines = lines(section, config, &default);
        let is_ours = !section.keys.is_empty() && section.keys.iter().all(|key| key.ours);
        if is_ours && lines.is_empty() {
            continue;
        }
        page.table(section.path, &lines);
        match section.path {
            "resolver" => hosts(&mut page, config),
            "pull_modes.parallel_pull_unpack" => streams(&mut page, config),
            _ => {}
        }
    }
    page.text
}

/// `key = value` of a section, our own keys last.
fn lines(section: &Section, config: &Config, default: &Config) -> Vec<String> {
    let values = (section.values)(config).into_iter();
    let values = values.zip((section.values)(default));
    let mut shown: Vec<_> = section
        .keys
        .iter()
        .zip(values)
        .filter(|(key, (value, default))| {
            !key.is_table() && !value.is_empty() && (!key.ours || value != default)
        })
        .collect();
    shown.sort_by_key(|(key, _)| key.ours);
    let shown = shown
        .iter()
        .map(|(key, (value, _))| format!("{} = {value}", key.name));
    shown.collect()
}

/// `key = value` of a table that is no section.
fn all_lines<T: Declared>(table: &T) -> Vec<String> {
    let values = T::KEYS.iter().zip(table.values());
    let values = values.filter(|(key, _)| !key.is_table());
    values
        .map(|(key, value)| format!("{} = {value}", key.name))
        .collect()
}

fn hosts(page: &mut Page, config: &Config) {
    let hosts = &config.resolver.host;
    if hosts.is_empty() {
        return;
    }
    page.table("resolver.host", &[]);
    for (name, host) in hosts {
        let path = format!("resolver.host.{}", name_of(name));
        if host.mirrors.is_empty() {
            page.table(&path, &["mirrors = []".to_owned()]);
            continue;
        }
        page.table(&path, &[]);
        for mirror in &host.mirrors {
            page.element(&format!("{path}.mirrors"), &all_lines(mirror));
        }
    }
}

fn streams(page: &mut Page, config: &Config) {
    let streams = &config.pull_modes.parallel_pull_unpack.decompress_streams;
    if streams.is_empty() {
        return;
    }
    let path = "pull_modes.parallel_pull_unpack.decompress_streams";
    page.table(path, &[]);
    for (name, stream) in streams {
        page.table(&format!("{path}.{}", name_of(name)), &all_lines(stream));
    }
}

/// A name as a step of a path.
fn name_of(name: &str) -> String {
    let bare = |char: char| char.is_ascii_alphanumeric() || char == '-' || char == '_';
    match !name.is_empty() && name.chars().all(bare) {
        true => name.to_owned(),
        false => quoted(name),
    }
}

/// The text so far.
#[derive(Default)]
struct Page {
    text: String,
    /// The last line is the header of a table without keys. No empty line follows it.
    bare: bool,
}

impl Page {
    fn table(&mut self, path: &str, lines: &[String]) {
        let depth = depth(path);
        if depth > 0 {
            self.header(depth - 1, &format!("[{path}]"));
        }
        self.lines(depth, lines);
    }

    fn element(&mut self, path: &str, lines: &[String]) {
        let depth = depth(path);
        self.header(depth - 1, &format!("[[{path}]]"));
        self.lines(depth, lines);
    }

    fn header(&mut self, depth: usize, text: &str) {
        if !self.bare && !self.text.is_empty() {
            self.text.push('\n');
        }
        self.line(depth, text);
    }

    fn lines(&mut self, depth: usize, lines: &[String]) {
        for line in lines {
            self.line(depth, line);
        }
        self.bare = lines.is_empty();
    }

    fn line(&mut self, depth: usize, text: &str) {
        self.text.push_str(&"  ".repeat(depth));
        self.text.push_str(text);
        self.text.push('\n');
    }
}

/// Number of steps of a path. Quotes hide dots.
fn depth(path: &str) -> usize {
    let mut quote = None;
    let mut escaped = false;
    let mut depth = usize::from(!path.is_empty());
    for char in path.chars() {
        match (quote, char) {
            (Some('"'), '\\') if !escaped => {
                escaped = true;
                continue;
            }
            (Some(open), _) if open == char && !escaped => quote = None,
            (None, '\'' | '"') => quote = Some(char),
            (None, '.') => depth += 1,
            _ => {}
        }
        escaped = false;
    }
    depth
}
