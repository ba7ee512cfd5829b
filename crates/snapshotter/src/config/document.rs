//! The page about the configuration, from the declarations of its tables.

use std::fmt::Write as _;

use super::{Config, SECTIONS, Section};

const HEAD: &str = "\
# Configuration

The daemon reads `/etc/soci-snapshotter-grpc/config.toml`, or the file that `--config` or `SOCI_SNAPSHOTTER_CONFIG` names.
Only the default file may be missing. This page is generated from the code; a test compares it.

- Every file of the reference implementation loads. Names of keys are found in any case, and an exact match takes precedence.
- Unknown keys and tables are ignored, and one line of the log names them. A value of a wrong type is an error.
- The daemon reads the file at its start only. `systemctl reload` starts a worker that reads it again.
- `soci-snapshotter-grpc config dump` prints the configuration in effect, and `soci-snapshotter-grpc config default` the
  defaults. Both print keys of soci-rs only where they differ from their default, so that the defaults are the same as
  those of the reference. This includes `enable = false` of the parallel mode, which has a meaning in a file: remove the
  line to let the snapshotter pull images without an index.

```toml
# /etc/soci-snapshotter-grpc/config.toml
mount_timeout_sec = 60

[pull_modes.soci_v1]
enable = true

[[resolver.host.\"docker.io\".mirrors]]
host = \"mirror.example:5000\"
```

The last column says who defines a key: the reference, soci-rs, or the reference without effect here. If a key without
effect is set, one line of the log names it.
";

/// The page.
pub fn document() -> String {
    let mut page = HEAD.to_owned();
    let default = Config::default();
    for section in SECTIONS {
        if section.keys.is_empty() {
            continue;
        }
        // Writing to a string does not fail.
        let _ = match section.path {
            "" => write!(page, "\n## Keys before the first table\n"),
            path if path.ends_with(".mirrors") => {
                write!(page, "\n## `[[{}]]`\n", path.replace('*', "\"…\""))
            }
            path => write!(page, "\n## `[{}]`\n", path.replace('*', "\"…\"")),
        };
        let about = text(section.about);
        if !section.path.is_empty() {
            let _ = write!(page, "\n{about}\n");
        }
        page.push_str("\n| key | type | default | meaning | |\n|--|--|--|--|--|\n");
        rows(&mut page, section, &default);
    }
    page
}

fn rows(page: &mut String, section: &Section, default: &Config) {
    let values = (section.values)(default);
    for (key, value) in section.keys.iter().zip(values) {
        let path = section.path_of(key);
        if SECTIONS
            .iter()
            .any(|other| other.path == path && !section.is_pattern())
        {
            continue;
        }
        let value = match value.as_str() {
            "" if key.is_table() => "none".to_owned(),
            "" => "not set".to_owned(),
            value if key.zero => match value.starts_with('\'') {
                true => format!("`{value}`, also for `''`"),
                false => format!("`{value}`, also for `0`"),
            },
            value => format!("`{value}`"),
        };
        let status = match (key.ours, key.unused) {
            (true, _) => "soci-rs",
            (false, true) => "no effect",
            (false, false) => "reference",
        };
        let meaning = text(key.text);
        let _ = writeln!(
            page,
            "| `{}` | {} | {value} | {meaning} | {status} |",
            key.name, key.kind
        );
    }
}

/// Lines of a doc comment as one paragraph each.
fn text(lines: &[&str]) -> String {
    let mut text = String::new();
    for line in lines {
        match (line.trim(), text.is_empty() || text.ends_with('\n')) {
            ("", _) => text.push_str("\n\n"),
            (line, true) => text.push_str(line),
            (line, false) => {
                text.push(' ');
                text.push_str(line);
            }
        }
    }
    text
}
