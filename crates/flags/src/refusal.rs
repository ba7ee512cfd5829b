//! The message, streams and exit code for an invalid command line.

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::help::page;
use crate::normalise::{Normal, Problem, Reason};

/// Everything a program prints before it rejects its command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Text for standard output: the help of the command, or nothing.
    pub stdout: String,
    /// Text for standard error.
    pub stderr: String,
    /// The exit code.
    pub code: u8,
}

/// The help of the command with this path of names; the names may be aliases.
pub(crate) fn help(grammar: &Command, path: &[String]) -> String {
    let mut command = grammar;
    let mut above = Vec::new();
    for name in path {
        let Some(sub) = command.find_subcommand(name) else {
            break;
        };
        above.push(command.get_name().to_owned());
        command = sub;
    }
    page(grammar, &above, command).text()
}

pub(crate) fn of_problem(grammar: &Command, problem: &Problem) -> Refusal {
    let Problem { path, reason } = problem;
    match reason {
        Reason::Undefined(name) => usage(
            grammar,
            path,
            &format!("flag provided but not defined: -{name}"),
        ),
        Reason::NeedsArgument(word) => {
            usage(grammar, path, &format!("flag needs an argument: {word}"))
        }
        Reason::NoTopic(name) => no_topic(name),
    }
}

/// The refusal for a clap error. The normalizer rules out most kinds; the others get the closest
/// message of the reference.
pub(crate) fn of_clap(grammar: &Command, normal: &Normal, error: &clap::Error) -> Refusal {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(", "),
        _ => String::new(),
    };
    let flag = context(ContextKind::InvalidArg);
    let name = flag
        .trim_start_matches('-')
        .split([' ', '=', '['])
        .next()
        .unwrap_or_default();
    let value = context(ContextKind::InvalidValue);
    let message = match error.kind() {
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => {
            let (name, value) = as_written(grammar, normal, name, &value);
            let cause = std::error::Error::source(error)
                .map_or_else(|| "parse error".to_owned(), ToString::to_string);
            format!("invalid value {value:?} for flag -{name}: {cause}")
        }
        ErrorKind::InvalidUtf8 => "invalid value: not valid UTF-8".to_owned(),
        ErrorKind::UnknownArgument => format!("flag provided but not defined: -{name}"),
        ErrorKind::NoEquals | ErrorKind::WrongNumberOfValues | ErrorKind::TooFewValues => {
            format!("flag needs an argument: --{name}")
        }
        ErrorKind::TooManyValues => format!("too many values for flag -{name}"),
        ErrorKind::MissingRequiredArgument => format!("Required flag {name:?} not set"),
        ErrorKind::ArgumentConflict => {
            let other = context(ContextKind::PriorArg);
            let other = other
                .trim_start_matches('-')
                .split(' ')
                .next()
                .unwrap_or_default();
            format!("option {name} cannot be set along with option {other}")
        }
        ErrorKind::InvalidSubcommand => return no_topic(&context(ContextKind::InvalidSubcommand)),
        ErrorKind::MissingSubcommand
        | ErrorKind::DisplayHelp
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        | ErrorKind::DisplayVersion => {
            let stdout = error.render().to_string();
            return Refusal {
                stdout,
                stderr: String::new(),
                code: 0,
            };
        }
        // Io, Format and kinds that a later clap may add.
        _ => error.render().to_string().trim().replace('\n', " "),
    };
    usage(grammar, &normal.path, &message)
}

/// Maps clap's name of a flag and its value (one element, for a list) to the name and value as the
/// user typed them.
fn as_written(grammar: &Command, normal: &Normal, name: &str, value: &str) -> (String, String) {
    let mut command = Some(grammar);
    for sub in &normal.path {
        command = command.and_then(|command| command.find_subcommand(sub));
    }
    let id = command
        .and_then(|command| {
            command
                .get_arguments()
                .find(|arg| arg.get_long() == Some(name))
        })
        .map(|arg| arg.get_id().as_str());
    let written = normal.written.iter().find(|written| {
        let typed = written.value.to_string_lossy();
        Some(written.id.as_str()) == id && typed.split(',').chain([&*typed]).any(|it| it == value)
    });
    match written {
        Some(written) => (
            written.name.clone(),
            written.value.to_string_lossy().into_owned(),
        ),
        None => (name.to_owned(), value.to_owned()),
    }
}

fn usage(grammar: &Command, path: &[String], message: &str) -> Refusal {
    Refusal {
        stdout: help(grammar, path),
        stderr: format!(
            "Incorrect Usage: {message}\n\n{}: {message}\n",
            grammar.get_name()
        ),
        code: 1,
    }
}

fn no_topic(name: &str) -> Refusal {
    Refusal {
        stdout: String::new(),
        stderr: format!("No help topic for '{name}'\n"),
        code: 3,
    }
}
