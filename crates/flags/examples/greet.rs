//! A program with one command. Try `hello`, `hello -name=world`, `hello --help` and `hello -x`.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for the terminal"
)]

use std::process::ExitCode;

use clap::Command;
use soci_flags::{Parsed, parse, text};

fn main() -> ExitCode {
    let name = text("name").default_value("you").help("Whom to greet");
    let hello = Command::new("hello").about("Greet somebody").arg(name);
    let grammar = Command::new("greet").subcommand(hello);
    match parse(grammar, std::env::args_os()) {
        Parsed::Run(matches) => {
            if let Some((_, hello)) = matches.subcommand() {
                let name: Option<&String> = hello.get_one("name");
                println!("hello, {}", name.map_or("", String::as_str));
            }
            ExitCode::SUCCESS
        }
        Parsed::Show(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Parsed::Refused(refusal) => {
            print!("{}", refusal.stdout);
            eprint!("{}", refusal.stderr);
            ExitCode::from(refusal.code)
        }
    }
}
