//! `soci completion`: scripts that complete commands, flags and their values.
//!
//! The scripts are static and never run `soci`. Each walks the words typed so far to the command
//! they name, using tables generated from the grammar. The grammar also defines the kind of value
//! of each flag (known words, a file, a folder).

mod bash;
mod fish;
mod zsh;

use anyhow::{Result, bail};
use clap::ValueHint;
use soci_flags::{Flag, Page, pages};

use crate::args::{self, Completion};
use crate::output;

/// Runs the command.
pub(crate) fn run(args: &Completion) -> Result<()> {
    let pages = pages(&args::grammar());
    let script = match args.shell.as_str() {
        "bash" => bash::script(&pages),
        "zsh" => zsh::script(&pages),
        "fish" => fish::script(&pages),
        "" => bail!("please name a shell: bash, zsh or fish"),
        other => bail!("no completion for {other:?}; choose one of bash, zsh or fish"),
    };
    output::print(&script);
    Ok(())
}

/// The possible values of a flag.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Values {
    Words(Vec<String>),
    Files,
    Folders,
    /// Free text without proposals.
    Free,
}

impl Values {
    /// `None` for a switch.
    fn of(flag: &Flag) -> Option<Self> {
        flag.value.as_ref()?;
        Some(match flag.hint {
            _ if !flag.words.is_empty() => Self::Words(flag.words.clone()),
            ValueHint::DirPath => Self::Folders,
            ValueHint::AnyPath | ValueHint::FilePath => Self::Files,
            _ => Self::Free,
        })
    }
}

/// `--long`, and `-s` if the flag has a letter.
fn spellings(flag: &Flag) -> Vec<String> {
    let short = flag.short.map(|short| format!("-{short}"));
    std::iter::once(format!("--{}", flag.long))
        .chain(short)
        .collect()
}

/// Every command has `--help`, but the grammar does not contain it.
const HELP: &str = "--help";

/// For every subcommand, the words that lead to it from its parent, and the command.
fn steps(pages: &[Page]) -> impl Iterator<Item = (Vec<String>, String)> {
    pages.iter().filter_map(|page| {
        let (own, above) = page.path.split_last()?;
        let above = above.join(" ");
        let names = [std::slice::from_ref(own), &page.aliases].concat();
        let words = names.iter().map(|name| format!("{above} {name}"));
        (!above.is_empty()).then(|| (words.collect(), page.name()))
    })
}

/// Every flag with a value, and the command it belongs to (`None` for all commands).
fn valued(pages: &[Page]) -> impl Iterator<Item = (Option<&Page>, &Flag, Values)> {
    let shared = pages.first().map(|page| page.shared.as_slice());
    let shared = shared.unwrap_or_default().iter().map(|flag| (None, flag));
    let own = pages
        .iter()
        .flat_map(|page| page.options.iter().map(move |flag| (Some(page), flag)));
    shared
        .chain(own)
        .filter_map(|(page, flag)| Some((page, flag, Values::of(flag)?)))
}

/// The patterns of a shell's `case "$at $flag"` for each kind of value.
fn patterns(pages: &[Page]) -> Vec<(Values, String)> {
    let mut kinds: Vec<(Values, Vec<String>)> = Vec::new();
    for (page, flag, values) in valued(pages) {
        let patterns = spellings(flag).into_iter().map(|spelling| match page {
            Some(page) => format!("\"{} {spelling}\"", page.name()),
            None => format!("*\" {spelling}\""),
        });
        match kinds.iter_mut().find(|(kind, _)| *kind == values) {
            Some((_, all)) => all.extend(patterns),
            None => kinds.push((values, patterns.collect())),
        }
    }
    let joined = |patterns: Vec<String>| patterns.join(" | ");
    kinds
        .into_iter()
        .map(|(values, patterns)| (values, joined(patterns)))
        .collect()
}

/// The `case` lines that follow the words typed so far. The syntax works in bash and zsh.
fn walk(pages: &[Page]) -> String {
    let mut out = String::new();
    for (words, reached) in steps(pages) {
        let words: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
        out += &format!("            {}) at=\"{reached}\" ;;\n", words.join(" | "));
    }
    let all: Vec<String> = patterns(pages).into_iter().map(|(_, it)| it).collect();
    out += &format!("            {}) skip=1 ;;\n", all.join(" | "));
    out
}

/// Quotes text with single quotes, for bash and zsh.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_what_the_grammar_says_of_them() {
        let pages = pages(&args::grammar());
        let of = |name: &str, long: &str| {
            let mut all = valued(&pages);
            let found = all.find(|(page, flag, _)| {
                page.map_or(String::new(), Page::name) == name && flag.long == long
            });
            found.map(|(_, _, values)| values)
        };
        let words = |words: &[&str]| {
            let words = words.iter().map(|&word| word.to_owned());
            Some(Values::Words(words.collect()))
        };
        assert_eq!(
            of("soci convert", "format"),
            words(&["oci-archive", "oci-dir"])
        );
        assert_eq!(of("", "content-store"), words(&["containerd", "soci"]));
        assert_eq!(
            of("soci push", "existing-index"),
            words(&["warn", "skip", "allow"])
        );
        assert_eq!(of("", "root"), Some(Values::Folders));
        assert_eq!(of("soci ztoc get-file", "output"), Some(Values::Files));
        assert_eq!(of("soci convert", "span-size"), Some(Values::Free));
        assert_eq!(of("soci convert", "standalone"), None);
    }

    #[test]
    fn every_command_is_reached_by_its_names() {
        let pages = pages(&args::grammar());
        let steps: Vec<_> = steps(&pages).collect();
        assert_eq!(steps.len(), pages.len() - 1);
        let list = (
            vec!["soci index list".to_owned(), "soci index ls".to_owned()],
            "soci index list".to_owned(),
        );
        assert!(steps.contains(&list), "{steps:?}");
    }
}
