//! Log lines in the format of the reference.
//!
//! One JSON object per line on standard error, with keys in alphabetical order, always including
//! `level`, `msg` and `time`. All values are strings, because consumers read a line into a map of
//! strings. Times have nine fractional digits. `<`, `>` and `&` are escaped as in Go. Lines of
//! other crates (HTTP, gRPC) appear only at `trace`.
//!
//! Code that logs never waits: a separate thread writes (`outlet`). Repeated failures of reads of
//! one layer are summarized (`limit`).

mod limit;
mod outlet;

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use self::limit::{Complaint, LeftOut, Limit};
use self::outlet::Outlet;
use crate::sync::{Arc, OnceLock};

/// Modules whose warnings concern a single read or span of a layer.
const OF_READS: [&str; 2] = ["soci_snapshotter::device", "soci_snapshotter::layer"];
/// How long the end of the process waits for standard error to accept the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Queue of the thread that writes lines, once it has started.
static OUTLET: OnceLock<Arc<Outlet>> = OnceLock::new();

/// Minimum level of written lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLevel(LevelFilter);

/// Not the name of a level.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid logrus Level: {0:?}")]
pub struct UnknownLevel(String);

impl FromStr for LogLevel {
    type Err = UnknownLevel;

    fn from_str(word: &str) -> Result<Self, UnknownLevel> {
        let filter = match word.to_ascii_lowercase().as_str() {
            "trace" => LevelFilter::TRACE,
            "debug" => LevelFilter::DEBUG,
            "info" => LevelFilter::INFO,
            "warn" | "warning" => LevelFilter::WARN,
            "error" => LevelFilter::ERROR,
            // Fatal lines are always written; each is the last line.
            "fatal" | "panic" => LevelFilter::OFF,
            _ => return Err(UnknownLevel(word.to_owned())),
        };
        Ok(Self(filter))
    }
}

/// Starts logging. Must be called once, before anything is logged.
pub fn start(level: LogLevel) {
    let limit = Arc::new(Limit::default());
    start_writing(Arc::clone(&limit));
    let level = level.0;
    let subscriber = tracing_subscriber::registry().with(Lines { level, limit });
    // Fails only if a subscriber is already set, which then stays.
    drop(tracing::subscriber::set_global_default(subscriber));
}

/// Writes a fatal line and waits until it is written.
pub fn fatal(message: &str, error: &str) {
    let fields = BTreeMap::from([("error".to_owned(), error.to_owned())]);
    write_line(&line("fatal", message, SystemTime::now(), fields));
    finish();
}

/// Waits for a limited time until all lines are written, before the process ends.
pub fn finish() {
    if let Some(outlet) = OUTLET.get() {
        outlet.flush(LAST_LINES);
    }
}

/// Starts the thread that writes. If that fails, callers write their lines themselves.
fn start_writing(limit: Arc<Limit>) {
    let outlet = Arc::new(Outlet::new());
    let from = Arc::clone(&outlet);
    let write = move || {
        let lost = |count: u64| {
            let fields = BTreeMap::from([("count".to_owned(), count.to_string())]);
            let message = "log lines were lost: standard error is not being read";
            ended(&line("warning", message, SystemTime::now(), fields))
        };
        let between = || {
            let (over, next) = limit.over(Instant::now());
            (over.into_iter().map(left_out).collect(), next)
        };
        from.write_to(&mut std::io::stderr(), lost, between);
    };
    let thread = std::thread::Builder::new().name("soci-log".to_owned());
    if thread.spawn(write).is_ok() {
        drop(OUTLET.set(outlet));
    }
}

/// The line that reports suppressed lines.
fn left_out(of: LeftOut) -> Vec<u8> {
    let mut fields = BTreeMap::from([
        ("count".to_owned(), of.count.to_string()),
        ("of".to_owned(), of.message),
    ]);
    if !of.layer.is_empty() {
        fields.insert("layer".to_owned(), of.layer);
    }
    let message = "similar lines were suppressed in the last minute";
    ended(&line("warning", message, SystemTime::now(), fields))
}

/// Whether an event is a warning that can occur for every read.
fn is_of_a_read(metadata: &tracing::Metadata<'_>) -> bool {
    let target = metadata.target();
    *metadata.level() <= Level::WARN && OF_READS.iter().any(|of| target.starts_with(of))
}

/// The tracing layer that converts events to lines.
struct Lines {
    level: LevelFilter,
    limit: Arc<Limit>,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _context: Context<'_, S>) -> bool {
        let ours = metadata.target().starts_with("soci");
        *metadata.level() <= self.level && (ours || self.level == LevelFilter::TRACE)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }

    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let Fields { message, others } = fields;
        let metadata = event.metadata();
        if is_of_a_read(metadata) {
            let complaint = Complaint {
                kind: metadata.callsite(),
                layer: others.get("layer").cloned().unwrap_or_default(),
            };
            if !self.limit.admits(complaint, &message, Instant::now()) {
                return;
            }
        }
        let level = level(*metadata.level());
        write_line(&line(level, &message, SystemTime::now(), others));
    }
}

fn level(level: Level) -> &'static str {
    match level {
        Level::TRACE => "trace",
        Level::DEBUG => "debug",
        Level::INFO => "info",
        Level::WARN => "warning",
        Level::ERROR => "error",
    }
}

/// Fields of an event as text.
#[derive(Default)]
struct Fields {
    message: String,
    others: BTreeMap<String, String>,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.others
                .insert(field.name().to_owned(), value.to_owned());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(next) = cause {
            text.push_str(": ");
            text.push_str(&next.to_string());
            cause = next.source();
        }
        self.record_str(field, &text);
    }
}

/// Formats one line, without the newline.
fn line(
    level: &str,
    message: &str,
    at: SystemTime,
    mut fields: BTreeMap<String, String>,
) -> String {
    fields.insert("level".to_owned(), level.to_owned());
    fields.insert("msg".to_owned(), message.to_owned());
    fields.insert("time".to_owned(), rfc3339(at));
    let mut out = String::with_capacity(256);
    let mut separator = '{';
    for (key, value) in &fields {
        out.push(separator);
        quote(&mut out, key);
        out.push(':');
        quote(&mut out, value);
        separator = ',';
    }
    out.push('}');
    out
}

/// Formats a JSON string like Go's encoder.
fn quote(out: &mut String, text: &str) {
    out.push('"');
    for found in text.chars() {
        match found {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '<' | '>' | '&' | '\0'..='\x1f' | '\u{2028}' | '\u{2029}' => {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\u{:04x}", u32::from(found));
            }
            plain => out.push(plain),
        }
    }
    out.push('"');
}

/// Formats a UTC time with nine fractional digits.
fn rfc3339(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let seconds = since.as_secs();
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let nanos = since.subsec_nanos();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

/// Year, month and day of a number of days since 1970.
fn civil(days: u64) -> (u64, u64, u64) {
    // Years that start in March have their leap day at the end. 719,468 days separate March of year
    // 0 from 1970.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

fn write_line(line: &str) {
    let bytes = ended(line);
    match OUTLET.get() {
        Some(outlet) => outlet.put(bytes),
        // A single write, so that lines of two threads do not mix. A failure cannot be reported.
        None => drop(std::io::stderr().lock().write_all(&bytes)),
    }
}

fn ended(line: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(line.len() + 1);
    bytes.extend_from_slice(line.as_bytes());
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(of: &[(&str, &str)]) -> BTreeMap<String, String> {
        of.iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn a_line_has_sorted_keys_and_escaped_strings() {
        let at = UNIX_EPOCH + Duration::new(1_735_689_599, 5);
        let others = fields(&[("error", "a \"b\"\n<&>"), ("zeta", "1"), ("key", "k")]);
        assert_eq!(
            line("info", "hello", at, others),
            r#"{"error":"a \"b\"\n\u003c\u0026\u003e","key":"k","level":"info","msg":"hello","time":"2024-12-31T23:59:59.000000005Z","zeta":"1"}"#
        );
    }

    #[test]
    fn every_line_is_json() {
        let odd: String = (0..0x300).filter_map(char::from_u32).collect();
        let text = line("info", &odd, UNIX_EPOCH, BTreeMap::new());
        let parsed: BTreeMap<String, String> = serde_json::from_str(&text).unwrap();
        assert_eq!(parsed["msg"], odd);
        assert_eq!(parsed["time"], "1970-01-01T00:00:00.000000000Z");
    }

    #[test]
    fn days_are_converted_to_calendar_dates() {
        for (days, date) in [
            (0, (1970, 1, 1)),
            (58, (1970, 2, 28)),
            (59, (1970, 3, 1)),
            (789, (1972, 2, 29)),
            (11_016, (2000, 2, 29)),
            (20_454, (2026, 1, 1)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
        ] {
            assert_eq!(civil(days), date, "{days}");
        }
    }

    #[test]
    fn events_become_fields_of_strings() {
        struct Capture(std::sync::mpsc::Sender<Fields>);
        impl<S: Subscriber> Layer<S> for Capture {
            fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
                let mut fields = Fields::default();
                event.record(&mut fields);
                self.0.send(fields).unwrap();
            }
        }
        let (sender, receiver) = std::sync::mpsc::channel();
        let subscriber = tracing_subscriber::registry().with(Capture(sender));
        tracing::subscriber::with_default(subscriber, || {
            let error: &dyn std::error::Error = &std::io::Error::other("gone");
            tracing::info!(
                "remote-snapshot-prepared" = "true",
                n = 3,
                error,
                "done {}",
                1
            );
        });
        let found = receiver.recv().unwrap();
        assert_eq!(found.message, "done 1");
        let wanted = fields(&[
            ("remote-snapshot-prepared", "true"),
            ("n", "3"),
            ("error", "gone"),
        ]);
        assert_eq!(found.others, wanted);
    }

    #[test]
    fn levels_have_the_names_of_the_reference() {
        for word in [
            "trace", "debug", "info", "warn", "Warning", "ERROR", "fatal", "panic",
        ] {
            assert!(word.parse::<LogLevel>().is_ok(), "{word}");
        }
        let error = "loud".parse::<LogLevel>().unwrap_err();
        assert_eq!(error.to_string(), "not a valid logrus Level: \"loud\"");
    }
}
