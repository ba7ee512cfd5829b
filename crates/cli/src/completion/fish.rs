//! The completion script for fish 3 and later.

use soci_flags::{Flag, Page};

use super::{Values, spellings, steps, valued};

pub(super) fn script(pages: &[Page]) -> String {
    let mut out = String::from(
        "# Completion of soci for fish: soci completion fish > ~/.config/fish/completions/soci.fish\n\
         function __soci_at\n    set -l at soci\n    set -l skip 0\n    for word in (commandline -opc)[2..-1]\n        \
         if test $skip = 1\n            set skip 0\n            continue\n        end\n        \
         switch \"$at $word\"\n",
    );
    for (words, reached) in steps(pages) {
        let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
        let words = words.join(" ");
        out += &format!(
            "            case {words}\n                set at {}\n",
            quoted(&reached)
        );
    }
    let valued: Vec<String> = valued(pages)
        .flat_map(|(page, flag, _)| {
            let at = page.map_or("*".to_owned(), Page::name);
            let words = spellings(flag);
            words
                .into_iter()
                .map(move |word| quoted(&format!("{at} {word}")))
        })
        .collect();
    out += &format!(
        "            case {}\n                set skip 1\n",
        valued.join(" ")
    );
    out += "        end\n    end\n    test \"$at\" = \"$argv[1]\"\nend\ncomplete -c soci -f\n";
    for page in pages {
        let here = format!(
            "complete -c soci -n {}",
            quoted(&format!("__soci_at '{}'", page.name()))
        );
        for (names, about) in &page.commands {
            let names = quoted(&names.join(" "));
            out += &format!("{here} -a {names} -d {}\n", quoted(about));
        }
        if !page.words.is_empty() {
            out += &format!("{here} -a {}\n", quoted(&page.words.join(" ")));
        } else if !page.operands.is_empty() && page.commands.is_empty() {
            out += &format!("{here} -F\n");
        }
        for flag in &page.options {
            out += &format!("{here}{}\n", option(flag));
        }
    }
    for flag in pages.first().map(|page| &page.shared).into_iter().flatten() {
        out += &format!("complete -c soci{}\n", option(flag));
    }
    out + "complete -c soci -s h -l help -d 'Print help'\n"
}

fn option(flag: &Flag) -> String {
    let short = flag.short.map(|short| format!(" -s {short}"));
    let value = match Values::of(flag) {
        None => String::new(),
        Some(Values::Words(words)) => format!(" -x -a {}", quoted(&words.join(" "))),
        Some(Values::Files) => " -r -F".to_owned(),
        Some(Values::Folders) => " -x -a '(__fish_complete_directories)'".to_owned(),
        Some(Values::Free) => " -x".to_owned(),
    };
    let (short, help) = (short.unwrap_or_default(), quoted(&flag.help));
    format!(" -l {}{short}{value} -d {help}", flag.long)
}

/// Quotes text with single quotes, for fish.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}
