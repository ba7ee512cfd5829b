//! Rewrites the argument list so that clap reads it as the reference's parser would.
//!
//! One pass over the words, command by command. Every flag becomes `--name=value`. Flags that the
//! root shares with all commands move in front of the first subcommand. Positional arguments move
//! behind `--`; surplus ones are dropped.

use std::ffi::{OsStr, OsString};

use clap::{Arg, ArgAction, Command};

/// What to do with a valid list.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Pass it to clap.
    Run,
    /// Show the help of the command with this path of names.
    Help(Vec<String>),
    /// Show the program's version.
    Version,
}

/// A flag as the user wrote it; error messages quote it like the reference does.
#[derive(Debug)]
pub(crate) struct Written {
    /// clap's id of the argument.
    pub(crate) id: String,
    /// The name as typed, without dashes.
    pub(crate) name: String,
    /// The value as typed.
    pub(crate) value: OsString,
}

/// The list for clap, and what the normalizer learned about it.
#[derive(Debug)]
pub(crate) struct Normal {
    pub(crate) action: Action,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) written: Vec<Written>,
    /// The names of the subcommands, outermost first.
    pub(crate) path: Vec<String>,
}

/// Why a list is invalid.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// There is no flag with this name.
    Undefined(String),
    /// The list ends after a flag that needs a value; the flag as typed.
    NeedsArgument(String),
    /// There is no command with this name.
    NoTopic(String),
}

/// A reason and the command it concerns.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) path: Vec<String>,
    pub(crate) reason: Reason,
}

/// Normalizes the list; the first word is the program's name. The grammar must have been built.
pub(crate) fn normalise(grammar: &Command, words: Vec<OsString>) -> Result<Normal, Problem> {
    let mut words = words.into_iter();
    let program = words.next().unwrap_or_else(|| grammar.get_name().into());
    let mut pass = Pass {
        words: words.collect::<Vec<_>>().into_iter(),
        shared: vec![program],
        own: Vec::new(),
        written: Vec::new(),
        path: Vec::new(),
    };
    let action = match pass.command(grammar) {
        Ok(action) => action,
        Err(reason) => {
            return Err(Problem {
                path: pass.path,
                reason,
            });
        }
    };
    let mut arguments = pass.shared;
    arguments.append(&mut pass.own);
    Ok(Normal {
        action,
        arguments,
        written: pass.written,
        path: pass.path,
    })
}

struct Pass {
    words: std::vec::IntoIter<OsString>,
    /// The program's name and the shared flags.
    shared: Vec<OsString>,
    /// Subcommands with their flags and positional arguments.
    own: Vec<OsString>,
    written: Vec<Written>,
    path: Vec<String>,
}

/// What the words of one command contain, apart from flag values.
#[derive(Default)]
struct Seen {
    help: bool,
    version: bool,
    positional: Vec<OsString>,
}

impl Pass {
    /// Reads the words of one command and, recursively, of its subcommand.
    fn command(&mut self, command: &Command) -> Result<Action, Reason> {
        let mut seen = Seen::default();
        match self.flags(command, &mut seen) {
            Err(_) if seen.help => return Ok(Action::Help(self.path.clone())),
            Err(reason) => return Err(reason),
            Ok(Some(_)) if seen.version && !seen.help => return Ok(Action::Version),
            Ok(Some(name)) if seen.help => return self.topic(command, &name),
            Ok(Some(name)) => return self.subcommand(command, &name),
            Ok(None) => {}
        }
        let groups = command.is_subcommand_required_set();
        let first = seen
            .positional
            .first()
            .map(|word| word.to_string_lossy().into_owned());
        match first {
            _ if seen.version && !seen.help => Ok(Action::Version),
            Some(word) if groups => Err(Reason::NoTopic(word)),
            _ if groups || seen.help => Ok(Action::Help(self.path.clone())),
            _ => {
                let rooms = command.get_positionals().map(room);
                let room = rooms.fold(0, usize::saturating_add);
                if !seen.positional.is_empty() && room > 0 {
                    self.own.push("--".into());
                    self.own.extend(seen.positional.into_iter().take(room));
                }
                Ok(Action::Run)
            }
        }
    }

    /// Reads flags and positional arguments up to the name of a subcommand, and returns that name.
    fn flags(&mut self, command: &Command, seen: &mut Seen) -> Result<Option<String>, Reason> {
        while let Some(word) = self.words.next() {
            let bytes = word.as_encoded_bytes();
            match bytes {
                b"--" => {
                    seen.positional.extend(self.words.by_ref());
                    return Ok(None);
                }
                // A number is never a flag; it ends the flags.
                [b'-', second, ..] if *second != b'-' && !starts_with_letter(&bytes[1..]) => {
                    seen.positional.push(word);
                    seen.positional.extend(self.words.by_ref());
                    return Ok(None);
                }
                [b'-', _, ..] => self.flag(command, &word, seen)?,
                _ => match word.to_str() {
                    Some(name) if seen.positional.is_empty() && is_command(command, name) => {
                        return Ok(Some(name.to_owned()));
                    }
                    _ => seen.positional.push(word),
                },
            }
        }
        Ok(None)
    }

    /// Reads one flag and its value.
    fn flag(&mut self, command: &Command, word: &OsStr, seen: &mut Seen) -> Result<(), Reason> {
        let (name, value) = split(word);
        let Some(flag) = find(command, &name) else {
            return Err(Reason::Undefined(name));
        };
        let is_switch = !flag.get_action().takes_values() || is_switch(flag);
        let value = match value {
            Some(value) if is_switch && value.is_empty() => "true".into(),
            Some(value) => value,
            None if is_switch => "true".into(),
            None => match self.words.next() {
                Some(value) => value,
                None => return Err(Reason::NeedsArgument(word.to_string_lossy().into_owned())),
            },
        };
        match flag.get_action() {
            ArgAction::Help | ArgAction::HelpLong | ArgAction::HelpShort => {
                seen.help |= value != "false";
            }
            ArgAction::Version => seen.version |= value != "false",
            _ => self.set(flag, name, value),
        }
        Ok(())
    }

    fn set(&mut self, flag: &Arg, name: String, value: OsString) {
        let mut word = OsString::from("--");
        word.push(flag.get_long().unwrap_or_else(|| flag.get_id().as_str()));
        word.push("=");
        word.push(&value);
        if flag.is_global_set() {
            self.shared.push(word);
        } else {
            self.own.push(word);
        }
        self.written.push(Written {
            id: flag.get_id().to_string(),
            name,
            value,
        });
    }

    /// Continues after the name of a subcommand.
    fn subcommand(&mut self, command: &Command, name: &str) -> Result<Action, Reason> {
        if is_help(name) {
            let topic = self
                .words
                .next()
                .map(|word| word.to_string_lossy().into_owned());
            return match topic.filter(|topic| topic != "--") {
                Some(topic) => self.topic(command, &topic),
                None => Ok(Action::Help(self.path.clone())),
            };
        }
        let Some(sub) = command.find_subcommand(name) else {
            return Err(Reason::NoTopic(name.to_owned()));
        };
        self.path.push(sub.get_name().to_owned());
        self.own.push(sub.get_name().into());
        self.command(sub)
    }

    /// The help of a command's subcommand, or of the command itself.
    fn topic(&mut self, command: &Command, name: &str) -> Result<Action, Reason> {
        let mut path = self.path.clone();
        if !is_help(name) {
            let Some(sub) = command.find_subcommand(name) else {
                return Err(Reason::NoTopic(name.to_owned()));
            };
            path.push(sub.get_name().to_owned());
        }
        Ok(Action::Help(path))
    }
}

/// Removes the dashes and splits at the first `=`.
fn split(word: &OsStr) -> (String, Option<OsString>) {
    let text = word.to_string_lossy();
    let dashes = if text.starts_with("--") { 2 } else { 1 };
    let Some(at) = text.find('=') else {
        return (text[dashes..].to_owned(), None);
    };
    let name = text[dashes..at].to_owned();
    let value = match word.to_str() {
        Some(exact) => OsString::from(&exact[at + 1..]),
        None => {
            use std::os::unix::ffi::OsStrExt as _;
            let bytes = word.as_bytes();
            let at = bytes
                .iter()
                .position(|&byte| byte == b'=')
                .unwrap_or(bytes.len() - 1);
            OsStr::from_bytes(&bytes[at + 1..]).to_owned()
        }
    };
    (name, Some(value))
}

fn starts_with_letter(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    text.chars().next().is_some_and(char::is_alphabetic)
}

fn is_help(name: &str) -> bool {
    matches!(name, "help" | "h")
}

/// Every command has a `help` subcommand, as in the reference.
fn is_command(command: &Command, name: &str) -> bool {
    is_help(name) || command.find_subcommand(name).is_some()
}

/// The number of positional arguments that this one takes.
fn room(positional: &Arg) -> usize {
    positional
        .get_num_args()
        .map_or(1, |range| range.max_values())
}

/// A flag whose value is optional is a switch.
fn is_switch(flag: &Arg) -> bool {
    flag.get_num_args()
        .is_some_and(|range| range.min_values() == 0)
}

/// The flag of a command with this name, long or short, without dashes.
fn find<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    let mut characters = name.chars();
    let short = match (characters.next(), characters.next()) {
        (Some(short), None) => Some(short),
        _ => None,
    };
    command
        .get_arguments()
        .filter(|arg| !arg.is_positional())
        .find(|arg| {
            arg.get_long() == Some(name)
                || arg
                    .get_all_aliases()
                    .is_some_and(|aliases| aliases.contains(&name))
                || short.is_some_and(|short| {
                    arg.get_short() == Some(short)
                        || arg
                            .get_all_short_aliases()
                            .is_some_and(|all| all.contains(&short))
                })
        })
}
