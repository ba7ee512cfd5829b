//! The completion script for bash 4 and later. It does not need `bash-completion`.

use soci_flags::Page;

use super::{HELP, Values, patterns, spellings, walk};

/// bash splits `--flag=value` into three words: the flag, `=` and the value.
pub(super) fn script(pages: &[Page]) -> String {
    let (walk, values, words) = (walk(pages), values(pages), words(pages));
    format!(
        r#"# Completion of soci for bash: source <(soci completion bash)
_soci() {{
    local at=soci word i skip= commands= flags= flag cur=${{COMP_WORDS[COMP_CWORD]}}
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${{COMP_WORDS[i]}}
        if [[ $skip ]]; then
            [[ $word == = ]] || skip=
            continue
        fi
        case "$at $word" in
{walk}        esac
    done
    flag=${{COMP_WORDS[COMP_CWORD - 1]}}
    [[ $flag != = ]] || flag=${{COMP_WORDS[COMP_CWORD - 2]}}
    [[ $cur != = ]] || cur=
    case "$at $flag" in
{values}    esac
    case $at in
{words}    esac
    if [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$flags" -- "$cur")
    elif [[ $commands ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$commands" -- "$cur")
    else
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    fi
}}
complete -F _soci soci
"#
    )
}

fn values(pages: &[Page]) -> String {
    let mut out = String::new();
    for (values, patterns) in patterns(pages) {
        let propose = |how: &str| format!("mapfile -t COMPREPLY < <(compgen {how} -- \"$cur\")");
        let action = match values {
            Values::Words(words) => propose(&format!("-W \"{}\"", words.join(" "))),
            Values::Files => format!("compopt -o filenames 2>/dev/null; {}", propose("-f")),
            Values::Folders => format!("compopt -o filenames 2>/dev/null; {}", propose("-d")),
            Values::Free => ":".to_owned(),
        };
        out += &format!(
            "        {patterns})\n            {action}\n            return\n            ;;\n"
        );
    }
    out
}

fn words(pages: &[Page]) -> String {
    let mut out = String::new();
    for page in pages {
        let commands = page.commands.iter().flat_map(|(names, _)| names).cloned();
        let commands: Vec<String> = commands.chain(page.words.clone()).collect();
        let flags = page.options.iter().chain(&page.shared).flat_map(spellings);
        let flags: Vec<String> = flags.chain([HELP.to_owned()]).collect();
        out += &format!(
            "        \"{}\")\n            commands=\"{}\"\n            flags=\"{}\"\n            ;;\n",
            page.name(),
            commands.join(" "),
            flags.join(" ")
        );
    }
    out
}
