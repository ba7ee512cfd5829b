//! Transcripts: text files with command lines and their expected results. With `SOCI_RECORD=1`
//! they are rewritten from the actual results; review the changes.
//!
//! A line that begins with `$` is run by bash. Then follow its standard output (two blanks before
//! each line), its standard error (`! `) and its exit code (`= 1`; 0 is omitted). `#` begins a
//! comment, `¶` marks the end of a line with trailing blanks, and `~` output without a final
//! newline. Values that differ between runs are replaced by names: `$T` (the directory of the
//! transcript), `$SOCK`, `$REG`, `<time>`, `<age>`, `<n>`.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use regex::Regex;

/// The environment in which a transcript is run.
#[derive(Debug, Clone)]
pub struct Stage {
    /// Variables of the commands; their values are shown as `$NAME` in output.
    pub variables: Vec<(&'static str, String)>,
    /// Directories that are searched for programs before those of the system.
    pub programs: Vec<PathBuf>,
    /// Additional environment variables, which are not replaced in output.
    pub environment: Vec<(&'static str, String)>,
    pub folder: PathBuf,
}

/// One command and its results, as lines of the file.
struct Step {
    command: String,
    /// The comments and blank lines before it.
    before: String,
    left: String,
}

/// Runs a transcript and compares or records it.
pub fn play(file: &Path, stage: &Stage) -> Result<()> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let (steps, rest) = parse(&text);
    ensure!(!steps.is_empty(), "{} has no commands", file.display());
    let mut played = String::new();
    for step in &steps {
        let left = stage.run(&step.command)?;
        write!(played, "{}$ {}\n{left}", step.before, step.command)?;
        if record() {
            continue;
        }
        ensure!(
            left == step.left,
            "{}: $ {}\n--- expected\n{}--- left\n{left}",
            file.display(),
            step.command,
            step.left
        );
    }
    if record() {
        fs::write(file, played + &rest)?;
    }
    Ok(())
}

fn record() -> bool {
    std::env::var_os("SOCI_RECORD").is_some()
}

fn parse(text: &str) -> (Vec<Step>, String) {
    let mut steps: Vec<Step> = Vec::new();
    let mut before = String::new();
    for line in text.split_inclusive('\n') {
        let of_step = ["  ", "! ", "= ", "~"]
            .iter()
            .any(|it| line.starts_with(it))
            || line == "!\n";
        if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step {
                command: command.trim_end().to_owned(),
                before: std::mem::take(&mut before),
                left: String::new(),
            });
        } else if let (true, Some(step)) = (of_step, steps.last_mut()) {
            step.left.push_str(line);
        } else {
            before.push_str(line);
        }
    }
    (steps, before)
}

impl Stage {
    /// Runs a command and returns the lines that the file should contain after it.
    fn run(&self, command: &str) -> Result<String> {
        let mut path: Vec<String> = self
            .programs
            .iter()
            .map(|folder| folder.display().to_string())
            .collect();
        path.push("/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
        let output = Command::new("bash")
            .args(["-c", &format!("set -o pipefail; {command}")])
            .env_clear()
            .env("PATH", path.join(":"))
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("run {command}"))?;
        let mut left = self.shown("  ", &output.stdout);
        left += &self.shown("! ", &output.stderr);
        match output.status.code() {
            Some(0) => {}
            Some(code) => writeln!(left, "= {code}")?,
            None => left += "= killed\n",
        }
        Ok(left)
    }

    fn shown(&self, mark: &str, output: &[u8]) -> String {
        let mut text = String::from_utf8_lossy(output).into_owned();
        let mut variables: Vec<_> = self.variables.iter().collect();
        variables.sort_by_key(|(_, value)| std::cmp::Reverse(value.len()));
        for (name, value) in variables.iter().filter(|(_, value)| value.len() > 3) {
            text = text.replace(value.as_str(), &format!("${name}"));
        }
        text = steady(text);
        let mut out = String::new();
        for line in text.lines() {
            let ends_blank = line.is_empty() && mark == "  " || line.ends_with(' ');
            let end = if ends_blank { "¶" } else { "" };
            out += format!("{mark}{line}{end}").trim_end();
            out.push('\n');
        }
        if !text.is_empty() && !text.ends_with('\n') {
            out += "~\n";
        }
        out
    }
}

/// Replaces values that differ between runs by names.
fn steady(mut text: String) -> String {
    for (pattern, name) in [
        (
            r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?",
            "<time>",
        ),
        (r"\b(\d+h)?(\d+m)?\d+s ago", "<age> ago"),
        (r#""seconds":\s?[0-9.e-]+"#, r#""seconds":<n>"#),
    ] {
        let pattern = Regex::new(pattern).expect("the pattern is valid");
        text = pattern.replace_all(&text, name).into_owned();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_shown_line_by_line_and_steadily() {
        let stage = Stage {
            variables: vec![("T", "/tmp/xyz".to_owned())],
            programs: Vec::new(),
            environment: Vec::new(),
            folder: PathBuf::from("/"),
        };
        let left = stage
            .run("echo \"$T/a 2026-11-21T04:06:12Z\"; echo; echo 'b  '; printf x; echo 3s ago >&2; exit 3")
            .expect("bash runs");
        assert_eq!(
            left,
            "  $T/a <time>\n  ¶\n  b  ¶\n  x\n~\n! <age> ago\n= 3\n"
        );
        let text = format!("# one\n$ a\n{left}\n# two\n$ b\n");
        let (steps, rest) = parse(&text);
        assert_eq!((steps.len(), rest.as_str()), (2, ""));
        assert_eq!(
            (steps[0].left.as_str(), steps[1].before.as_str()),
            (left.as_str(), "\n# two\n")
        );
    }
}
