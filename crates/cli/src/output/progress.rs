//! Progress of long work on standard error: bars on a terminal, a line every few seconds if
//! requested, otherwise nothing.
//!
//! There is one bar for the whole work and a few for its parts. Further parts are counted without a
//! bar.

use std::io::{self, IsTerminal as _};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::ProgressKind;

/// Most parts with a bar at the same time; more would not fit on a small terminal.
const MAX_BARS: usize = 8;
/// Interval at which bars are redrawn.
const TICK: Duration = Duration::from_millis(200);
/// Interval of lines without a terminal.
const PLAIN_TICK: Duration = Duration::from_secs(5);

/// Shows the progress of work. Clones share the same display.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    view: View,
    /// Total bytes of the phase, and bytes done.
    total: AtomicU64,
    done: AtomicU64,
    started: Instant,
}

#[derive(Debug)]
enum View {
    Bars {
        all: MultiProgress,
        overall: ProgressBar,
        parts: AtomicUsize,
    },
    Plain(Mutex<Ticker>),
    Nothing,
}

/// The time of the last line, and the name of the phase.
#[derive(Debug)]
struct Ticker {
    phase: &'static str,
    last: Instant,
}

impl Progress {
    /// Shows nothing until a phase begins.
    pub(crate) fn new(kind: ProgressKind) -> Self {
        let view = match kind {
            ProgressKind::Auto if is_a_screen() => View::Bars {
                all: MultiProgress::with_draw_target(ProgressDrawTarget::stderr()),
                overall: ProgressBar::hidden(),
                parts: AtomicUsize::new(0),
            },
            ProgressKind::Plain => View::Plain(Mutex::new(Ticker {
                phase: "",
                last: Instant::now(),
            })),
            ProgressKind::Auto | ProgressKind::None => View::Nothing,
        };
        let mut shared = Shared {
            view,
            total: AtomicU64::new(0),
            done: AtomicU64::new(0),
            started: Instant::now(),
        };
        if let View::Bars { all, overall, .. } = &mut shared.view {
            *overall = all.add(ProgressBar::new(0));
        }
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Begins a phase. Its size in bytes may be unknown.
    pub(crate) fn phase(&self, name: &'static str, bytes: Option<u64>) {
        let total = bytes.unwrap_or_default();
        self.shared.total.store(total, Ordering::Relaxed);
        self.shared.done.store(0, Ordering::Relaxed);
        match &self.shared.view {
            View::Bars { overall, .. } => {
                let template = match bytes {
                    Some(_) => "{msg} [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
                    None => "{msg} {bytes} {bytes_per_sec}",
                };
                style(overall, template);
                overall.reset();
                overall.set_message(name);
                overall.set_length(total);
                overall.enable_steady_tick(TICK);
            }
            View::Plain(ticker) => {
                let mut ticker = ticker.lock().unwrap_or_else(PoisonError::into_inner);
                ticker.phase = name;
            }
            View::Nothing => {}
        }
    }

    /// Adds a part to the phase.
    pub(crate) fn task(&self, name: &str, bytes: u64) -> Task {
        let bar = match &self.shared.view {
            View::Bars { all, parts, .. } => {
                let number = parts.fetch_add(1, Ordering::Relaxed);
                if number < MAX_BARS {
                    let bar = all.add(ProgressBar::new(bytes));
                    style(
                        &bar,
                        "  {prefix} {msg:9} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}",
                    );
                    bar.set_prefix(name.to_owned());
                    Some(bar)
                } else {
                    None
                }
            }
            View::Plain(_) | View::Nothing => None,
        };
        Task {
            progress: self.clone(),
            name: name.to_owned(),
            bytes,
            done: AtomicU64::new(0),
            started: Instant::now(),
            bar,
        }
    }

    /// Adds completed bytes.
    pub(crate) fn advance(&self, bytes: u64) {
        let done = self.shared.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        match &self.shared.view {
            View::Bars { overall, .. } => overall.inc(bytes),
            View::Plain(ticker) => {
                let due = {
                    let mut ticker = ticker.lock().unwrap_or_else(PoisonError::into_inner);
                    let is_due = ticker.last.elapsed() >= PLAIN_TICK;
                    if is_due {
                        ticker.last = Instant::now();
                    }
                    is_due.then_some(ticker.phase)
                };
                if let Some(phase) = due {
                    self.tick(phase, done);
                }
            }
            View::Nothing => {}
        }
    }

    fn tick(&self, phase: &str, done: u64) {
        let total = self.shared.total.load(Ordering::Relaxed);
        let rate = rate(done, self.shared.started.elapsed());
        let of = if total > 0 {
            format!(" of {}", HumanBytes(total))
        } else {
            String::new()
        };
        super::complain(&format!("{phase}: {}{of}, {rate}\n", HumanBytes(done)));
    }

    /// A counter for the current phase.
    pub(crate) fn counter(&self) -> impl Fn(u64) + Clone + Send + Sync + 'static {
        let progress = self.clone();
        move |bytes| progress.advance(bytes)
    }

    /// Prints while the bars are hidden.
    pub(crate) fn aside(&self, print: impl FnOnce()) {
        match &self.shared.view {
            View::Bars { all, .. } => all.suspend(print),
            View::Plain(_) | View::Nothing => print(),
        }
    }

    /// Removes the bars, and prints a summary line unless progress is off.
    pub(crate) fn summary(&self, text: &str) {
        self.finish();
        if !matches!(self.shared.view, View::Nothing) {
            super::complain(&format!("{text}\n"));
        }
    }

    /// Removes the bars.
    pub(crate) fn finish(&self) {
        if let View::Bars { all, overall, .. } = &self.shared.view {
            overall.finish_and_clear();
            // A closed terminal does not need clearing.
            drop(all.clear());
        }
    }

    /// The time since its creation.
    pub(crate) fn elapsed(&self) -> Duration {
        self.shared.started.elapsed()
    }
}

/// A part of the work. It disappears when it is dropped.
#[derive(Debug)]
pub(crate) struct Task {
    progress: Progress,
    name: String,
    bytes: u64,
    done: AtomicU64,
    started: Instant,
    bar: Option<ProgressBar>,
}

impl Task {
    /// Sets the current stage of the part.
    pub(crate) fn stage(&self, name: &'static str) {
        match &self.progress.shared.view {
            View::Bars { .. } => {
                if let Some(bar) = &self.bar {
                    bar.set_message(name);
                }
            }
            View::Plain(_) => {
                let (part, bytes) = (&self.name, HumanBytes(self.bytes));
                super::complain(&format!("{part}: {name}, {bytes}\n"));
            }
            View::Nothing => {}
        }
    }

    /// Adds completed bytes of the part.
    pub(crate) fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
        self.progress.advance(bytes);
    }

    /// Marks the part as complete, including bytes that were not counted.
    pub(crate) fn done(&self) {
        let left = self.bytes.saturating_sub(self.done.load(Ordering::Relaxed));
        self.progress.advance(left);
        if let View::Plain(_) = &self.progress.shared.view {
            let seconds = self.started.elapsed().as_secs_f64();
            super::complain(&format!("{}: done in {seconds:.1} s\n", self.name));
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let View::Bars { all, parts, .. } = &self.progress.shared.view else {
            return;
        };
        parts.fetch_sub(1, Ordering::Relaxed);
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
            all.remove(&bar);
        }
    }
}

fn style(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
}

/// A data rate in readable form.
pub(crate) fn rate(bytes: u64, time: Duration) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a figure to look at"
    )]
    let bytes = (bytes as f64 / time.as_secs_f64().max(0.001)) as u64;
    format!("{}/s", HumanBytes(bytes))
}

/// Whether bars can be drawn on standard error.
fn is_a_screen() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}
