//! All output: results on standard output, warnings on standard error, and the progress of long
//! work on standard error if that is a terminal ([`progress`]).
//!
//! Standard error must stay short: nerdctl reads it only after standard output has ended, so more
//! than a pipe buffer of warnings (64 KiB) would deadlock both programs. The length of a message
//! ([`cut`]) and the number of warnings about layers ([`reporter`]) are therefore limited.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

pub(crate) mod document;
mod progress;
mod push_report;
mod report;
mod reporter;
pub(crate) mod stream;
pub(crate) mod table;

pub(crate) use progress::Progress;
pub(crate) use push_report::PushReport;
pub(crate) use report::{ConvertReport, CreateReport, NotStrict, strict};
pub(crate) use reporter::Reporter;

/// Longest message on standard error and longest line on standard output, in bytes: a quarter of a
/// pipe buffer, and of the longest line that nerdctl reads.
const MAX_MESSAGE: usize = 16 << 10;

/// Version of the objects of `--json`; `docs/json.md` says when it changes.
const SCHEMA_VERSION: u32 = 1;

/// A `--json` object with its version. Documents in the reference's format have none.
#[derive(Debug, Serialize)]
pub(crate) struct Versioned<T> {
    schema_version: u32,
    #[serde(flatten)]
    object: T,
}

impl<T> Versioned<T> {
    pub(crate) fn new(object: T) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            object,
        }
    }
}

/// Prints on standard output. A closed pipe is not an error, because the work is done anyway.
pub(crate) fn print(text: &str) {
    drop(try_print(text));
}

/// Prints on standard output.
pub(crate) fn try_print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Prints a line on standard output.
pub(crate) fn line(text: &str) {
    print(&format!("{}\n", cut(text, MAX_MESSAGE)));
}

/// Prints an object with its version on standard output.
pub(crate) fn json<T: Serialize>(value: &T) -> serde_json::Result<()> {
    print(&object(value)?);
    Ok(())
}

fn object<T: Serialize>(value: &T) -> serde_json::Result<String> {
    Ok(serde_json::to_string_pretty(&Versioned::new(value))? + "\n")
}

/// Shortens a text to about `limit` bytes. It keeps the beginning and the end, where messages have
/// their causes.
pub(crate) fn cut(text: &str, limit: usize) -> Cow<'_, str> {
    if text.len() <= limit {
        return text.into();
    }
    let head = text.floor_char_boundary(limit / 2);
    let tail = text.ceil_char_boundary(text.len() - limit / 2);
    let left_out = tail - head;
    format!(
        "{}... ({left_out} bytes) ...{}",
        &text[..head],
        &text[tail..]
    )
    .into()
}

/// Prints the error that ends the command.
pub(crate) fn refuse(text: &str) {
    complain(&format!("soci: {}\n", cut(text, MAX_MESSAGE)));
}

/// Prints on standard error.
pub(crate) fn complain(text: &str) {
    drop(io::stderr().lock().write_all(text.as_bytes()));
}

/// Starts logging to standard error: all records if `verbose`, otherwise level info and above.
pub(crate) fn start_log(verbose: bool) {
    tracing_subscriber::registry().with(Log { verbose }).init();
}

/// Prints log records in the reference's format.
struct Log {
    /// Whether to print debug records too.
    verbose: bool,
}

impl<S: Subscriber> Layer<S> for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        // The registry's info records are meant for the daemon's log, not for the user of a
        // command.
        let most = match metadata.target().starts_with("soci_registry") {
            _ if self.verbose => Level::DEBUG,
            true => Level::WARN,
            false => Level::INFO,
        };
        *metadata.level() <= most && metadata.target().starts_with("soci")
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            _ => "debug",
        };
        let mut fields = Fields::default();
        event.record(&mut fields);
        let Fields { message, others } = fields;
        let message = cut(&message, MAX_MESSAGE);
        complain(&format!(
            "time=\"{}\" level={level} msg={message:?}{others}\n",
            now()
        ));
    }
}

fn now() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let secs = i64::try_from(now.as_secs()).unwrap_or_default();
    soci_ztoc::Time { secs, nanos: 0 }.to_rfc3339()
}

#[derive(Default)]
struct Fields {
    message: String,
    others: String,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else {
            let text = format!("{value:?}");
            let quoted = if text.contains([' ', '=', '"']) {
                format!("{text:?}")
            } else {
                text
            };
            self.others.push_str(&format!(" {}={quoted}", field.name()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcdefg", 4), "ab... (3 bytes) ...fg");
        assert_eq!(cut("\u{fc}\u{fc}\u{fc}", 2), "... (6 bytes) ...");
    }
}
