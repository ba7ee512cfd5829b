//! Command lines as users of the reference know them, on clap.
//!
//! The grammar is a [`clap::Command`]: flags, defaults, help, completions. clap reads a command line
//! otherwise than the reference's parser does, so two things stand around it:
//!
//! * in front, `normalise`: the argument list becomes one that clap reads the same way. Flags take
//!   one dash or two, may stand anywhere (also between positional arguments, and the root's before
//!   or after a subcommand), take their value from the next argument even if that begins with a
//!   dash, and switches take one only behind `=`. What is asked for by `help` is found here too.
//! * behind, `refusal`: every kind of error that clap has becomes the message, the streams and the
//!   exit code of the reference.
//!
//! What a grammar says about itself is read off it as [`pages`]: the help that is shown, and what programs
//! make manual pages and completions of.
//!
//! [`switch`], [`text`] and [`list`] make arguments that behave as the reference's of that type, and
//! [`integer`] and [`duration`] parse Go's spelling of such values. Both programs use this package.
//!
//! ```
//! let grammar = clap::Command::new("tool")
//!     .subcommand(clap::Command::new("build").arg(soci_flags::switch("force").short('f')));
//! let parsed = soci_flags::parse(grammar, ["tool", "build", "-force=false"]);
//! let soci_flags::Parsed::Run(matches) = parsed else { panic!("a good command line") };
//! let (_, build) = matches.subcommand().unwrap();
//! assert_eq!(build.get_one("force"), Some(&false));
//! ```

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

use normalise::Wish;

/// What a command line asks for.
#[derive(Debug)]
pub enum Parsed {
    /// Run the command that was matched.
    Run(ArgMatches),
    /// Print this on standard output and succeed: help or the version.
    Show(String),
    /// Print what the refusal says and exit with its code.
    Refused(Refusal),
}

/// Reads a command line, the program's name first.
///
/// A command with [`Command::subcommand_required`] shows its help when nothing follows it, and
/// refuses an unknown word as a missing help topic. Any other command takes words as positional
/// arguments; those it has no room for are ignored. The version is the argument with
/// [`clap::ArgAction::Version`], which the program defines (`-v` here, not clap's `-V`).
pub fn parse<I>(grammar: Command, arguments: I) -> Parsed
where
    I: IntoIterator,
    I::Item: Into<OsString>,
{
    // A repeated flag is no error: the last one counts.
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
    match normal.wish {
        Wish::Help(path) => Parsed::Show(refusal::help(&grammar, &path)),
        Wish::Version => Parsed::Show(version(&grammar)),
        Wish::Run => match grammar.try_get_matches_from_mut(normal.arguments.iter()) {
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
