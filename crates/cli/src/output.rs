//! Everything that is printed: results on standard output, warnings on standard error, and a bar on
//! standard error while that is a terminal.
//!
//! Standard error stays short: nerdctl reads it only when standard output has ended.

use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use soci_index::{Note, Observer, Stage};
use soci_oci::Descriptor;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

/// Prints on standard output. Nobody listening is no error: the work is done all the same.
pub(crate) fn print(text: &str) {
    let mut out = io::stdout().lock();
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

/// Prints on standard error.
pub(crate) fn complain(text: &str) {
    drop(io::stderr().lock().write_all(text.as_bytes()));
}

/// Sends log records of level info and above to standard error from now on.
pub(crate) fn start_log() {
    tracing_subscriber::registry().with(Log).init();
}

/// Log records as the reference writes them.
struct Log;

impl<S: Subscriber> Layer<S> for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        *metadata.level() <= Level::INFO && metadata.target().starts_with("soci")
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            _ => "info",
        };
        let mut fields = Fields::default();
        event.record(&mut fields);
        let Fields { message, others } = fields;
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

/// Tells about the layers of a conversion.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let target = if io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        Self { bar }
    }

    /// A phase of its own; how many bytes it has may be unknown.
    pub(crate) fn phase(&self, name: &'static str, bytes: Option<u64>) {
        let template = match bytes {
            Some(_) => "{msg} [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            None => "{msg} {bytes} {bytes_per_sec}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style.progress_chars("=> "));
        }
        self.bar.reset();
        self.bar.set_message(name);
        self.bar.set_length(bytes.unwrap_or_default());
    }

    /// A counter for the current phase.
    pub(crate) fn counter(&self) -> impl Fn(u64) + Clone + Send + 'static {
        let bar = self.bar.clone();
        move |bytes| bar.inc(bytes)
    }

    /// Prints while the bar is out of the way.
    pub(crate) fn aside(&self, print: impl FnOnce()) {
        self.bar.suspend(print);
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Observer for Progress {
    fn planned(&self, bytes: u64) {
        self.phase("indexing", Some(bytes));
        if bytes > 0 {
            self.bar.enable_steady_tick(Duration::from_millis(200));
        }
    }

    fn stage(&self, _: &Descriptor, _: Stage) {}

    fn read(&self, _: &Descriptor, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn note(&self, note: &Note) {
        self.bar.suspend(|| {
            if note.is_warning() {
                tracing::warn!("{note}");
            } else {
                print(&format!("{note}\n"));
            }
        });
    }
}
