//! Command lines against the reference's parser: every rule of its conventions as a row of a table.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use clap::{Arg, ArgAction, ArgMatches, Command};
use proptest::prelude::*;
use soci_flags::{Parsed, Refusal, duration, integer, list, parse, switch, text};

mod help;

fn grammar() -> Command {
    let shared = |arg: Arg| arg.global(true);
    Command::new("tool")
        .version("v1.2.3 abc")
        .disable_version_flag(true)
        .subcommand_required(true)
        .arg(
            Arg::new("version")
                .long("version")
                .short('v')
                .action(ArgAction::Version),
        )
        .arg(shared(text("address").short('a').default_value("/run/x")))
        .arg(shared(switch("debug")))
        .arg(shared(
            Arg::new("timeout").long("timeout").value_parser(duration()),
        ))
        .subcommand(
            Command::new("build")
                .about("builds")
                .arg(switch("force").short('f'))
                .arg(switch("quiet").short('q'))
                .arg(list("platform").short('p'))
                .arg(
                    text("size")
                        .allow_hyphen_values(true)
                        .value_parser(integer()),
                )
                .arg(
                    Arg::new("file")
                        .long("file")
                        .value_parser(clap::value_parser!(OsString)),
                )
                .arg(Arg::new("source").value_parser(clap::value_parser!(OsString)))
                .arg(Arg::new("target")),
        )
        .subcommand(
            Command::new("index")
                .about("indexes")
                .subcommand_required(true)
                .subcommand(
                    Command::new("list")
                        .visible_alias("ls")
                        .arg(switch("quiet").short('q')),
                ),
        )
}

fn run(line: &[&str]) -> ArgMatches {
    match parse(grammar(), line) {
        Parsed::Run(matches) => matches,
        other => panic!("{line:?}: {other:?}"),
    }
}

fn refused(line: &[&str]) -> Refusal {
    match parse(grammar(), line) {
        Parsed::Refused(refusal) => refusal,
        other => panic!("{line:?}: {other:?}"),
    }
}

fn shown(line: &[&str]) -> String {
    match parse(grammar(), line) {
        Parsed::Show(text) => text,
        other => panic!("{line:?}: {other:?}"),
    }
}

/// `address debug | force quiet [platforms] size | source target` of a `build` line.
fn summary(line: &[&str]) -> String {
    let matches = run(line);
    let (name, build) = matches.subcommand().unwrap();
    assert_eq!(name, "build");
    let string = |name| build.get_one::<String>(name).cloned().unwrap_or_default();
    let platforms: Vec<&str> = build
        .get_many::<String>("platform")
        .unwrap_or_default()
        .map(String::as_str)
        .collect();
    format!(
        "{} {} | {} {} [{}] {} | {} {}",
        matches.get_one::<String>("address").unwrap(),
        matches.get_one::<bool>("debug").unwrap(),
        build.get_one::<bool>("force").unwrap(),
        build.get_one::<bool>("quiet").unwrap(),
        platforms.join(" "),
        build
            .get_one::<i64>("size")
            .map_or_else(String::new, ToString::to_string),
        build
            .get_one::<OsString>("source")
            .map_or("", |source| source.to_str().unwrap()),
        string("target"),
    )
}

#[test]
fn good_lines_mean_what_they_mean_to_the_reference() {
    for (line, expected) in [
        ("build", "/run/x false | false false []  |  "),
        ("build a b", "/run/x false | false false []  | a b"),
        ("build a b c d", "/run/x false | false false []  | a b"),
        ("build -force --quiet", "/run/x false | true true []  |  "),
        ("build -f -q", "/run/x false | true true []  |  "),
        ("build --force=false", "/run/x false | false false []  |  "),
        ("build --force=", "/run/x false | true false []  |  "),
        (
            "build --force true",
            "/run/x false | true false []  | true ",
        ),
        ("build -f=0 -q=T", "/run/x false | false true []  |  "),
        (
            "build --force=false --force",
            "/run/x false | true false []  |  ",
        ),
        (
            "build a --size 5 b",
            "/run/x false | false false [] 5 | a b",
        ),
        ("build --size -1 a", "/run/x false | false false [] -1 | a "),
        (
            "build -size=0x10 a",
            "/run/x false | false false [] 16 | a ",
        ),
        (
            "build -size 1 --size=2",
            "/run/x false | false false [] 2 |  ",
        ),
        ("build --size --force", "!"),
        (
            "build -p a,b --platform c -platform=d",
            "/run/x false | false false [a b c d]  |  ",
        ),
        (
            "build --platform -p a",
            "/run/x false | false false [-p]  | a ",
        ),
        (
            "build -- --force -f",
            "/run/x false | false false []  | --force -f",
        ),
        ("build a -- b -f", "/run/x false | false false []  | a b"),
        ("build - b", "/run/x false | false false []  | - b"),
        (
            "build -5 --force",
            "/run/x false | false false []  | -5 --force",
        ),
        ("--address x build", "x false | false false []  |  "),
        ("-a x build", "x false | false false []  |  "),
        ("build a -a x b --debug", "x true | false false []  | a b"),
        ("-a=1 build -a=2", "2 false | false false []  |  "),
        ("--address= build", " false | false false []  |  "),
        ("build build", "/run/x false | false false []  | build "),
    ] {
        let words: Vec<&str> = std::iter::once("tool").chain(line.split(' ')).collect();
        if expected == "!" {
            refused(&words);
        } else {
            assert_eq!(summary(&words), expected, "{line}");
        }
    }
}

#[test]
fn values_keep_blanks_and_empty_words() {
    assert_eq!(
        summary(&["tool", "build", "--platform", " a , b ", "", " x y "]),
        "/run/x false | false false [a b]  |   x y "
    );
    assert_eq!(
        summary(&["tool", "build", "--address", ""]),
        " false | false false []  |  "
    );
}

#[test]
fn aliases_of_commands_are_known() {
    let matches = run(&["tool", "index", "ls", "-q"]);
    let (_, index) = matches.subcommand().unwrap();
    let (name, list) = index.subcommand().unwrap();
    assert_eq!((name, list.get_one("quiet")), ("list", Some(&true)));
}

#[test]
fn durations_have_a_type() {
    let matches = run(&["tool", "build", "--timeout=1m30s"]);
    assert_eq!(
        matches.get_one("timeout"),
        Some(&std::time::Duration::from_secs(90))
    );
    let matches = run(&["tool", "build", "--timeout", "-5s"]);
    assert_eq!(matches.get_one("timeout"), Some(&std::time::Duration::ZERO));
}

#[test]
fn bad_flags_and_values_show_usage_and_exit_1() {
    for (line, message) in [
        ("--bogus", "flag provided but not defined: -bogus"),
        ("build --bogus=1", "flag provided but not defined: -bogus"),
        ("build -qf", "flag provided but not defined: -qf"),
        ("build -x", "flag provided but not defined: -x"),
        ("build ---x", "flag provided but not defined: --x"),
        ("build --=x", "flag provided but not defined: -"),
        ("build --version", "flag provided but not defined: -version"),
        ("build a b --size", "flag needs an argument: --size"),
        ("build -size", "flag needs an argument: -size"),
        ("--address", "flag needs an argument: --address"),
        (
            "build --size x",
            "invalid value \"x\" for flag -size: strconv.ParseInt: parsing \"x\": invalid syntax",
        ),
        (
            "build --size 9223372036854775808",
            "invalid value \"9223372036854775808\" for flag -size: strconv.ParseInt: parsing \"9223372036854775808\": value out of range",
        ),
        (
            "build --force=yes",
            "invalid value \"yes\" for flag -force: parse error",
        ),
        (
            "build -f=yes",
            "invalid value \"yes\" for flag -f: parse error",
        ),
        (
            "build --timeout 5",
            "invalid value \"5\" for flag -timeout: time: missing unit in duration \"5\"",
        ),
        ("bogus --bogus", "flag provided but not defined: -bogus"),
    ] {
        let words: Vec<&str> = std::iter::once("tool").chain(line.split(' ')).collect();
        let refusal = refused(&words);
        assert_eq!(
            refusal.stderr,
            format!("Incorrect Usage: {message}\n\ntool: {message}\n"),
            "{line}"
        );
        assert_eq!(refusal.code, 1, "{line}");
        let command = if line.starts_with("build") {
            "tool build"
        } else {
            "tool"
        };
        assert!(
            refusal.stdout.contains(&format!("USAGE:\n   {command} ")),
            "{}",
            refusal.stdout
        );
    }
}

#[test]
fn unknown_commands_have_no_help_topic_and_exit_3() {
    for line in [
        &["tool", "bogus"][..],
        &["tool", "bogus", "build"],
        &["tool", "help", "bogus"],
        &["tool", "index", "bogus"],
        &["tool", "index", "help", "bogus"],
        &["tool", "--debug", "bogus", "--address", "x"],
    ] {
        let refusal = refused(line);
        assert_eq!(refusal.stderr, "No help topic for 'bogus'\n", "{line:?}");
        assert_eq!((refusal.stdout.as_str(), refusal.code), ("", 3), "{line:?}");
    }
}

#[test]
fn words_that_are_no_text_reach_what_takes_bytes() {
    let bytes = OsString::from_vec(b"a\xff=b".to_vec());
    let mut file = OsString::from("--file=");
    file.push(&bytes);
    let line = ["tool".into(), "build".into(), file, bytes.clone()];
    let Parsed::Run(matches) = parse(grammar(), line) else {
        panic!("a good line")
    };
    let (_, build) = matches.subcommand().unwrap();
    assert_eq!(build.get_one("source"), Some(&bytes));
    assert_eq!(build.get_one("file"), Some(&bytes));
    let line = ["tool".into(), "build".into(), "--platform".into(), bytes];
    let Parsed::Refused(refusal) = parse(grammar(), line) else {
        panic!("a bad line")
    };
    assert_eq!(refusal.code, 1);
}

#[test]
fn a_command_that_runs_by_itself_takes_words_it_has_no_room_for() {
    let daemon = || {
        Command::new("daemon")
            .arg(text("root"))
            .subcommand(Command::new("config").subcommand(Command::new("dump")))
    };
    for line in [
        &["daemon"][..],
        &["daemon", "x", "--root", "/r"],
        &["daemon", "x", "config"],
    ] {
        let Parsed::Run(matches) = parse(daemon(), line) else {
            panic!("{line:?}")
        };
        assert!(matches.subcommand().is_none());
    }
    let Parsed::Run(matches) = parse(daemon(), ["daemon", "config", "dump"]) else {
        panic!("a good line")
    };
    assert_eq!(
        matches.subcommand().unwrap().1.subcommand_name(),
        Some("dump")
    );
}

proptest! {
    /// Whatever is typed, there is an answer: run, show, or refuse with something to say.
    #[test]
    fn prop_every_command_line_has_an_answer(
        words in prop::collection::vec(
            prop_oneof![
                Just("build".to_owned()), Just("index".to_owned()), Just("ls".to_owned()),
                Just("--".to_owned()), Just("-".to_owned()), Just("help".to_owned()),
                Just("--size".to_owned()), Just("-p".to_owned()), Just("--force".to_owned()),
                "-{0,3}[a-z=]{0,8}", "\\PC{0,6}",
            ],
            0..8,
        )
    ) {
        let line: Vec<OsString> =
            std::iter::once("tool".into()).chain(words.iter().map(OsString::from)).collect();
        match parse(grammar(), line) {
            Parsed::Run(matches) => prop_assert!(matches.subcommand().is_some()),
            Parsed::Show(text) => prop_assert!(!text.is_empty()),
            Parsed::Refused(refusal) => {
                prop_assert!(matches!(refusal.code, 1 | 3) && !refusal.stderr.is_empty());
            }
        }
    }

    /// Every value arrives as it was typed, wherever it stands and whatever it looks like.
    #[test]
    fn prop_values_arrive_as_typed(value in "\\PC{0,12}", joined: bool) {
        let mut line = vec![OsString::from("tool"), "build".into()];
        if joined {
            line.push(format!("--address={value}").into());
        } else {
            line.extend([OsString::from("-a"), value.clone().into()]);
        }
        let Parsed::Run(matches) = parse(grammar(), line) else { panic!("a good line") };
        prop_assert_eq!(matches.get_one::<String>("address"), Some(&value));
    }

    #[test]
    fn prop_integers_round_trip(value: i64) {
        prop_assert_eq!(soci_flags::parse_integer(&value.to_string()), Ok(value));
        prop_assert_eq!(soci_flags::parse_integer(&format!("0x{:x}", value >> 1 & i64::MAX)), Ok(value >> 1 & i64::MAX));
    }
}

#[test]
fn there_may_be_room_for_any_number_of_words_behind_others() {
    let grammar = Command::new("tool")
        .arg(Arg::new("first"))
        .arg(Arg::new("rest").num_args(0..).hide(true));
    let Parsed::Run(matches) = parse(grammar, ["tool", "a", "b", "c"]) else {
        panic!("a good command line")
    };
    let rest: Vec<_> = matches.get_many::<String>("rest").unwrap().collect();
    assert_eq!(rest, ["b", "c"]);
}
