//! Command lines that behave like the reference's, built on clap.
//!
//! The grammar is a [`clap::Command`]; [`parse`] reads a command line. clap parses differently from
//! the reference's parser: `normalise` rewrites the arguments first, so that clap reads them as the
//! reference does, and `refusal` turns errors of clap into the message, stream and exit code of the
//! reference. The README of the crate has the rules.
//!
//! [`pages`] describes a grammar, for help, manual pages and completions. [`switch`], [`text`] and
//! [`list`] make arguments; [`integer`] and [`duration`] parse Go's syntax.

#![warn(missing_docs)]

mod help;
mod normalise;
mod refusal;
mod values;

use std::ffi::OsString;

use clap::{ArgMatches, Command};

pub use help::{Flag, Page, pages};
pub use refusal::Refusal;
pub use values::{
    IntegerError, duration, integer, known, list, parse_bool, parse_duration, parse_integer,
    parse_unsigned, switch, text, trimmed, unsigned,
};

use normalise::Action;

/// The result of parsing a command line.
#[derive(Debug)]
pub enum Parsed {
    /// Run the matched command.
    Run(ArgMatches),
    /// Print this text (help or the version) on standard output and succeed.
    Show(String),
    /// Print the texts of the refusal and exit with its code.
    Refused(Refusal),
}

/// Parses a command line. The first argument is the program's name.
///
/// A command with [`Command::subcommand_required`] shows its help when nothing follows it, and
/// refuses an unknown word as a missing help topic. Any other command takes words as positional
/// arguments and ignores surplus ones. The version flag is the argument with
/// [`clap::ArgAction::Version`], which the program defines (`-v` here, not clap's `-V`).
///
/// ```
/// let grammar = clap::Command::new("tool")
///     .subcommand(clap::Command::new("build").arg(soci_flags::switch("force").short('f')));
/// let parsed = soci_flags::parse(grammar, ["tool", "build", "-force=false"]);
/// let soci_flags::Parsed::Run(matches) = parsed else { panic!("a good command line") };
/// let (_, build) = matches.subcommand().unwrap();
/// assert_eq!(build.get_one("force"), Some(&false));
/// ```
pub fn parse<I>(grammar: Command, arguments: I) -> Parsed
where
    I: IntoIterator,
    I::Item: Into<OsString>,
{
    // Repeating a flag is not an error: the last one wins.
    let mut grammar = grammar.args_override_self(true);
    if grammar.get_version().is_none() {
        grammar = grammar.version("<unknown> <unknown>");
    }
    grammar.build();
    let arguments = arguments.into_iter().map(Into::into).collect();
    let normal = match normalise::normalise(&grammar, arguments) {
        Ok(normal) => normal,
        Err(problem) => return Parsed::Refused(refusal::of_problem(&grammar, &problem)),
    };
    match normal.action {
        Action::Help(path) => Parsed::Show(refusal::help(&grammar, &path)),
        Action::Version => Parsed::Show(version(&grammar)),
        Action::Run => match grammar.try_get_matches_from_mut(normal.arguments.iter()) {
            Ok(matches) => Parsed::Run(matches),
            Err(error) => Parsed::Refused(refusal::of_clap(&grammar, &normal, &error)),
        },
    }
}

fn version(grammar: &Command) -> String {
    let unset = "<unknown> <unknown>";
    format!(
        "{} version {}\n",
        grammar.get_name(),
        grammar.get_version().unwrap_or(unset)
    )
}
