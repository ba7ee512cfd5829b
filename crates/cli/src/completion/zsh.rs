//! The completion script for zsh, used as a file in `$fpath` or sourced.

use soci_flags::{Flag, Page};

use super::{HELP, Values, patterns, quoted, walk};

pub(super) fn script(pages: &[Page]) -> String {
    let (walk, values) = (walk(pages), values(pages));
    let commands = entries(pages, |page| {
        let commands = page.commands.iter();
        let commands = commands.flat_map(|(names, about)| names.iter().map(move |it| (it, about)));
        let words = page.words.iter().map(|word| entry(word, ""));
        commands
            .map(|(name, about)| entry(name, about))
            .chain(words)
            .collect()
    });
    let flags = entries(pages, |page| {
        let flags = page.options.iter().chain(&page.shared).map(option);
        flags.chain([entry(HELP, "Print this")]).collect()
    });
    format!(
        r#"#compdef soci
# Completion of soci for zsh: soci completion zsh > a folder of $fpath/_soci
_soci() {{
    local at=soci word flag i skip=
    local -a entries
    for ((i = 2; i < CURRENT; i++)); do
        word=${{words[i]}}
        if [[ -n $skip ]]; then
            skip=
            continue
        fi
        case "$at $word" in
{walk}        esac
    done
    flag=${{words[CURRENT - 1]}}
    if [[ $PREFIX == --*=* ]]; then
        flag=${{PREFIX%%=*}}
        compset -P '*='
    fi
    case "$at $flag" in
{values}    esac
    if [[ $PREFIX == -* ]]; then
        case $at in
{flags}        esac
        _describe option entries
        return
    fi
    case $at in
{commands}    esac
    if (( $#entries )); then
        _describe command entries
    else
        _files
    fi
}}
if [[ $funcstack[1] == _soci ]]; then _soci "$@"; else compdef _soci soci; fi
"#
    )
}

fn values(pages: &[Page]) -> String {
    let mut out = String::new();
    for (values, patterns) in patterns(pages) {
        let action = match values {
            Values::Words(words) => format!("compadd -- {}", words.join(" ")),
            Values::Files => "_files".to_owned(),
            Values::Folders => "_files -/".to_owned(),
            Values::Free => ":".to_owned(),
        };
        out += &format!("        {patterns}) {action}; return ;;\n");
    }
    out
}

/// `name:text`, with the colons in the name escaped.
fn entry(name: &str, text: &str) -> String {
    quoted(&format!("{}:{text}", name.replace(':', "\\:")))
}

fn option(flag: &Flag) -> String {
    entry(&format!("--{}", flag.long), &flag.help)
}

fn entries(pages: &[Page], of: impl Fn(&Page) -> Vec<String>) -> String {
    let with_entries = pages.iter().map(|page| (page, of(page)));
    with_entries
        .filter(|(_, entries)| !entries.is_empty())
        .map(|(page, entries)| {
            let entries = entries.join(" ");
            format!("            \"{}\") entries=({entries}) ;;\n", page.name())
        })
        .collect()
}
