//! The model of a command that its help, its manual page and its completions are made from.
//!
//! A [`Page`] is built from the grammar. [`Page::text`] renders the help in the sections of the
//! reference. The programs render the other formats themselves, because they know what their values
//! are.

use clap::builder::PossibleValue;
use clap::{Arg, ArgAction, Command, ValueHint};

/// Help text is wrapped at this many columns.
const WIDTH: usize = 110;
/// Wider names get a line of their own.
const MAX_NAMES: usize = 36;

/// One command.
#[derive(Debug, Clone)]
pub struct Page {
    /// Names from the program down: `soci index list`.
    pub path: Vec<String>,
    /// Aliases of the command.
    pub aliases: Vec<String>,
    /// What it does, in one line.
    pub about: String,
    /// The description, in paragraphs; may be empty.
    pub description: String,
    /// The operands after the options in the usage line.
    pub operands: String,
    /// The version; only set for the program.
    pub version: Option<String>,
    /// For each subcommand, its name and aliases, and what it does.
    pub commands: Vec<(Vec<String>, String)>,
    /// The positional arguments and their descriptions.
    pub arguments: Vec<(String, String)>,
    /// Known values of the first positional argument.
    pub words: Vec<String>,
    /// Its own flags.
    pub options: Vec<Flag>,
    /// The flags that all commands share.
    pub shared: Vec<Flag>,
    /// Examples and other text at the end.
    pub examples: String,
}

/// One flag.
#[derive(Debug, Clone)]
pub struct Flag {
    /// Its name.
    pub long: String,
    /// Its letter.
    pub short: Option<char>,
    /// The placeholder of its value; `None` for a switch.
    pub value: Option<String>,
    /// What it does.
    pub help: String,
    /// The default value.
    pub default: Option<String>,
    /// The environment variable that sets the value.
    pub env: Option<String>,
    /// Known values.
    pub words: Vec<String>,
    /// The kind of value.
    pub hint: ValueHint,
}

/// The pages of a program: its own page first, then the pages of its commands in order.
#[must_use]
pub fn pages(grammar: &Command) -> Vec<Page> {
    let mut pages = Vec::new();
    collect(grammar, &[], &shared(grammar), &mut pages);
    pages
}

/// The page of one command, including hidden ones. `above` holds the names of its parents.
pub(crate) fn page(grammar: &Command, above: &[String], command: &Command) -> Page {
    Page::of(command, above, &shared(grammar))
}

fn shared(grammar: &Command) -> Vec<Flag> {
    let shared = grammar.get_arguments().filter(|arg| arg.is_global_set());
    shared.filter_map(Flag::of).collect()
}

fn collect(command: &Command, above: &[String], shared: &[Flag], pages: &mut Vec<Page>) {
    let page = Page::of(command, above, shared);
    let path = page.path.clone();
    pages.push(page);
    for sub in subcommands(command) {
        collect(sub, &path, shared, pages);
    }
}

fn subcommands(command: &Command) -> impl Iterator<Item = &Command> {
    command
        .get_subcommands()
        .filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
}

fn plain(text: Option<&clap::builder::StyledStr>) -> String {
    text.map(ToString::to_string).unwrap_or_default()
}

fn aliases(command: &Command) -> Vec<String> {
    command.get_visible_aliases().map(str::to_owned).collect()
}

impl Page {
    fn of(command: &Command, above: &[String], shared: &[Flag]) -> Self {
        let own = |arg: &&Arg| {
            !arg.is_global_set() && !arg.is_hide_set() && arg.get_id().as_str() != "help"
        };
        let shown = |arg: &&Arg| !arg.is_hide_set();
        let positionals: Vec<&Arg> = command.get_positionals().filter(shown).collect();
        let mut operands: Vec<String> = positionals.iter().map(|arg| operand(arg)).collect();
        if command.is_subcommand_required_set() {
            operands.push("<command>".to_owned());
        }
        let commands = subcommands(command).map(|sub| {
            let names = [vec![sub.get_name().to_owned()], aliases(sub)].concat();
            (names, plain(sub.get_about()))
        });
        let first = positionals.first();
        Self {
            path: [above, &[command.get_name().to_owned()]].concat(),
            aliases: aliases(command),
            about: plain(command.get_about()),
            description: plain(command.get_long_about()),
            operands: operands.join(" "),
            version: command.get_version().map(str::to_owned),
            commands: commands.collect(),
            arguments: positionals
                .iter()
                .map(|arg| (operand(arg), plain(arg.get_help())))
                .collect(),
            words: first.map(|arg| words(arg)).unwrap_or_default(),
            options: command
                .get_arguments()
                .filter(own)
                .filter_map(Flag::of)
                .collect(),
            shared: shared.to_vec(),
            examples: plain(command.get_after_help()),
        }
    }

    /// The full name of the command: `soci index list`.
    #[must_use]
    pub fn name(&self) -> String {
        self.path.join(" ")
    }

    /// The help, ending in a newline.
    #[must_use]
    pub fn text(&self) -> String {
        let about = if self.about.is_empty() {
            self.name()
        } else {
            format!("{} - {}", self.name(), self.about)
        };
        let options = ["[options]", &self.operands];
        let usage = options.map(str::trim).join(" ");
        let mut out = section("NAME", &about);
        out += &section("USAGE", &format!("{} {}", self.name(), usage.trim()));
        out += &section("VERSION", self.version.as_deref().unwrap_or_default());
        out += &section("DESCRIPTION", &self.description);
        let mut commands: Vec<(String, String)> = self
            .commands
            .iter()
            .map(|(names, about)| (names.join(", "), about.clone()))
            .collect();
        if !commands.is_empty() {
            let help = "Print the help of a command".to_owned();
            commands.push(("help, h".to_owned(), help));
        }
        out += &section("COMMANDS", &table(&commands));
        out += &section("ARGUMENTS", &table(&self.arguments));
        let flags = |flags: &[Flag]| table(&flags.iter().map(Flag::row).collect::<Vec<_>>());
        let help = Flag::switch("help", 'h', "Print this");
        let own = [self.options.as_slice(), &[help]].concat();
        out += &section("OPTIONS", &flags(&own));
        out += &section("GLOBAL OPTIONS", &flags(&self.shared));
        match self.examples.split_once('\n') {
            Some((title, rest)) if title.ends_with(':') => {
                out += &section(title.trim_end_matches(':').to_uppercase().as_str(), rest);
            }
            _ => out += &section("MORE", &self.examples),
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
        out
    }
}

impl Flag {
    fn of(arg: &Arg) -> Option<Self> {
        let is_switch = arg
            .get_num_args()
            .is_some_and(|range| range.min_values() == 0)
            || !matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
        let default = arg.get_default_values().first();
        let default = default.map(|value| value.to_string_lossy().into_owned());
        let value = arg.get_value_names().and_then(|names| names.first());
        Some(Self {
            long: arg.get_long()?.to_owned(),
            short: arg.get_short(),
            value: (!is_switch).then(|| value.map_or("VALUE", |name| name.as_str()).to_owned()),
            help: plain(arg.get_help()),
            default: default.filter(|_| !is_switch && !arg.is_hide_default_value_set()),
            env: arg
                .get_env()
                .map(|name| name.to_string_lossy().into_owned()),
            words: if is_switch { Vec::new() } else { words(arg) },
            hint: arg.get_value_hint(),
        })
    }

    fn switch(long: &str, short: char, help: &str) -> Self {
        Self {
            long: long.to_owned(),
            short: Some(short),
            value: None,
            help: help.to_owned(),
            default: None,
            env: None,
            words: Vec::new(),
            hint: ValueHint::Unknown,
        }
    }

    /// The names as typed, each with the placeholder of its value.
    #[must_use]
    pub fn names(&self) -> String {
        let value = self.value.as_ref();
        let value = value.map(|value| format!(" {value}")).unwrap_or_default();
        match self.short {
            Some(short) => format!("--{}{value}, -{short}{value}", self.long),
            None => format!("--{}{value}", self.long),
        }
    }

    /// The description, the default and the environment variable.
    #[must_use]
    pub fn explained(&self) -> String {
        let mut text = self.help.clone();
        if let Some(default) = &self.default {
            text += &format!(" (default: {default})");
        }
        if let Some(env) = &self.env {
            text += &format!(" [${env}]");
        }
        text
    }

    fn row(&self) -> (String, String) {
        (self.names(), self.explained())
    }
}

fn operand(arg: &Arg) -> String {
    let name = arg.get_id().as_str();
    match arg.get_num_args() {
        Some(range) if range.max_values() > 1 => format!("[{name}...]"),
        _ => format!("<{name}>"),
    }
}

fn words(arg: &Arg) -> Vec<String> {
    let known = arg.get_possible_values();
    known
        .iter()
        .map(PossibleValue::get_name)
        .map(str::to_owned)
        .collect()
}

/// A section; empty if the body is empty.
fn section(title: &str, body: &str) -> String {
    if body.is_empty() {
        return String::new();
    }
    let mut out = format!("{title}:\n");
    for line in body.trim_end().lines() {
        if !line.is_empty() {
            out += "   ";
            out += line;
        }
        out.push('\n');
    }
    out.push('\n');
    out
}

/// Two columns; the second one is wrapped.
fn table(rows: &[(String, String)]) -> String {
    let widths = rows.iter().map(|(name, _)| name.len());
    let names = widths
        .filter(|&width| width <= MAX_NAMES)
        .max()
        .unwrap_or(0);
    let mut out = String::new();
    for (name, help) in rows {
        let mut lines = fill(help, WIDTH.saturating_sub(names + 5)).into_iter();
        let first = if name.len() > names {
            None
        } else {
            lines.next()
        };
        out += format!("{name:names$}  {}", first.unwrap_or_default()).trim_end();
        out.push('\n');
        for line in lines {
            out += &format!("{:names$}  {line}\n", "");
        }
    }
    out
}

/// Lines of at most this many columns, broken at spaces.
fn fill(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().filter(|line| {
            line.is_empty() || line.chars().count() + 1 + word.chars().count() <= width
        });
        match line {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) => {
                line.push(' ');
                line.push_str(word);
            }
            None => lines.push(word.to_owned()),
        }
    }
    lines
}
