//! `soci man`: writes the manual pages, for packagers. The help does not list it.

use std::fs;

use anyhow::{Context as _, Result, bail};
use soci_flags::{Flag, Page, pages};

use crate::args::{self, Man};

const EXIT_STATUS: &str = "\
.SH EXIT STATUS
.TP
.B 0
Success.
.TP
.B 1
Failure; standard error gives the reason. For \\fBsoci verify\\fR also: the image has problems.
.TP
.B 3
Unknown command.
.TP
.B 4
With \\fB\\-\\-strict\\fR: a layer of at least \\fB\\-\\-min\\-layer\\-size\\fR has no zTOC.
.TP
.B 128+n
Terminated by signal n.
";

/// Runs the command: writes one page per command into a folder.
pub(crate) fn run(args: &Man) -> Result<()> {
    if args.folder.as_os_str().is_empty() {
        bail!("please name a folder for the pages");
    }
    let shown = || format!("write manual pages to {}", args.folder.display());
    fs::create_dir_all(&args.folder).with_context(shown)?;
    let pages = pages(&args::grammar());
    for page in &pages {
        let file = args.folder.join(format!("{}.1", page.path.join("-")));
        fs::write(file, roff(page, &pages)).with_context(shown)?;
    }
    Ok(())
}

fn roff(page: &Page, all: &[Page]) -> String {
    let name = page.path.join("-");
    let version = args::VERSION;
    let mut out = format!(
        ".TH {} 1 \"\" \"soci {version}\" \"User Commands\"\n.SH NAME\n{} \\- {}\n.SH SYNOPSIS\n.B {}\n[options] {}\n",
        name.to_uppercase(),
        escaped(&name),
        escaped(&page.about),
        escaped(&page.name()),
        escaped(&page.operands),
    );
    if !page.description.is_empty() {
        // Indented text is a table.
        let paragraph = |text: &str| match text.starts_with(' ') {
            true => format!(".nf\n{}\n.fi", lines(text)),
            false => lines(text),
        };
        let paragraphs = page.description.split("\n\n").map(paragraph);
        let paragraphs = paragraphs.collect::<Vec<_>>().join("\n.PP\n");
        out += &format!(".SH DESCRIPTION\n{paragraphs}\n");
    }
    let commands = page.commands.iter();
    let commands = commands.map(|(names, about)| (names.join(", "), about.clone()));
    out += &list("COMMANDS", commands);
    out += &list("ARGUMENTS", page.arguments.iter().cloned());
    let rows = |flags: &[Flag]| -> Vec<(String, String)> {
        let rows = flags.iter().map(|flag| (flag.names(), flag.explained()));
        rows.collect()
    };
    out += &list("OPTIONS", rows(&page.options));
    out += &list("GLOBAL OPTIONS", rows(&page.shared));
    if !page.examples.is_empty() {
        let examples = page.examples.lines().skip(1).collect::<Vec<_>>().join("\n");
        out += &format!(".SH EXAMPLES\n.nf\n{}\n.fi\n", lines(&examples));
    }
    out + EXIT_STATUS + &see_also(page, all)
}

/// The pages of the parent and of the subcommands.
fn see_also(page: &Page, all: &[Page]) -> String {
    let below = |path: &[String]| path.split_last().map(|(_, above)| above.to_vec());
    let related = all.iter().filter(|other| {
        below(&other.path).as_ref() == Some(&page.path)
            || below(&page.path).as_ref() == Some(&other.path)
    });
    let names: Vec<String> = related
        .map(|other| format!("\\fB{}\\fR(1)", escaped(&other.path.join("-"))))
        .collect();
    format!(".SH SEE ALSO\n{}\n", names.join(", "))
}

fn list(title: &str, rows: impl IntoIterator<Item = (String, String)>) -> String {
    let mut out = String::new();
    for (name, text) in rows {
        out += &format!(".TP\n.B {}\n{}\n", escaped(&name), lines(&text));
    }
    if out.is_empty() {
        return out;
    }
    format!(".SH {title}\n{out}")
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

/// Escapes text so that no line is read as a roff request.
fn lines(text: &str) -> String {
    let line = |line: &str| {
        let guard = if line.starts_with(['.', '\'']) {
            "\\&"
        } else {
            ""
        };
        format!("{guard}{}", escaped(line))
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}
