//! Help and version.

use super::*;

#[test]
fn help_is_shown_wherever_it_is_asked_for() {
    let root = shown(&["tool"]);
    assert!(
        root.contains("USAGE:\n   tool ") && root.contains("builds"),
        "{root}"
    );
    for line in [
        &["tool", "help"][..],
        &["tool", "h"],
        &["tool", "-h"],
        &["tool", "--help"],
        &["tool", "-help"],
        &["tool", "--debug"],
        &["tool", "--help", "--bogus"],
        &["tool", "--version", "-h"],
    ] {
        assert_eq!(shown(line), root, "{line:?}");
    }
    let build = shown(&["tool", "help", "build"]);
    assert!(build.contains("USAGE:\n   tool build "), "{build}");
    for line in [
        &["tool", "build", "--help"][..],
        &["tool", "build", "-h"],
        &["tool", "build", "a", "b", "-h"],
        &["tool", "build", "help"],
        &["tool", "--help", "build"],
        &["tool", "h", "build"],
        &["tool", "build", "-h", "--bogus"],
    ] {
        assert_eq!(shown(line), build, "{line:?}");
    }
    let index = shown(&["tool", "index"]);
    assert!(
        index.contains("USAGE:\n   tool index ") && index.contains("ls"),
        "{index}"
    );
    assert_eq!(shown(&["tool", "index", "-h"]), index);
    assert!(shown(&["tool", "index", "help", "ls"]).contains("USAGE:\n   tool index list"));
}

#[test]
fn help_has_the_sections_and_columns_of_the_reference() {
    let known = soci_flags::known(&["a", "b"], clap::builder::StringValueParser::new());
    let grammar = Command::new("tool")
        .about("does it")
        .arg(
            text("mode")
                .short('m')
                .env("MODE")
                .value_name("KIND")
                .value_parser(known)
                .default_value("a")
                .global(true)
                .help("How it is done"),
        )
        .subcommand(
            Command::new("one")
                .visible_alias("1")
                .about("does one")
                .long_about("Does one.\n\nOnly one.")
                .after_help("Example:\n  tool one x")
                .arg(Arg::new("what").help("The one"))
                .arg(switch("force").short('f').help("Do it again"))
                .arg(text("a-name-that-is-longer-than-any-column-is").help("Long")),
        );
    let Parsed::Show(shown) = parse(grammar.clone(), ["tool", "help", "1"]) else {
        panic!("help");
    };
    let expected = "NAME:\n   tool one - does one\n\nUSAGE:\n   tool one [options] <what>\n\n\
        DESCRIPTION:\n   Does one.\n\n   Only one.\n\nARGUMENTS:\n   <what>  The one\n\n\
        OPTIONS:\n   --force, -f  Do it again\n   --a-name-that-is-longer-than-any-column-is VALUE\n   \
        \u{20}            Long\n   --help, -h   Print this\n\nGLOBAL OPTIONS:\n   \
        --mode KIND, -m KIND  How it is done (default: a) [$MODE]\n\nEXAMPLE:\n     tool one x\n";
    assert_eq!(shown, expected);
    let pages = soci_flags::pages(&grammar);
    assert_eq!(
        (pages.len(), pages[1].shared[0].words.join(" ")),
        (2, "a b".to_owned())
    );
}

#[test]
fn version_is_one_line() {
    for line in [
        &["tool", "--version"][..],
        &["tool", "-v"],
        &["tool", "-version", "bogus"],
    ] {
        assert_eq!(shown(line), "tool version v1.2.3 abc\n", "{line:?}");
    }
    let unset = Command::new("tool")
        .arg(
            Arg::new("version")
                .long("version")
                .action(ArgAction::Version),
        )
        .disable_version_flag(true);
    let Parsed::Show(text) = parse(unset, ["tool", "--version"]) else {
        panic!("a version")
    };
    assert_eq!(text, "tool version <unknown> <unknown>\n");
}
