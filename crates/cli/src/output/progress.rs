//! What long work is at, on standard error: bars on a terminal, a line now and then where that is asked for,
//! else nothing.
//!
//! There is one bar for all the work and a few for its parts; parts beyond those are counted without a bar
//! of their own.

use std::io::{self, IsTerminal as _};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::ProgressKind;

/// Most parts that have a bar at the same time: more would push the rest off a small terminal.
const MAX_BARS: usize = 8;
/// How often bars are drawn.
const TICK: Duration = Duration::from_millis(200);
/// How often a line is printed without a terminal.
const PLAIN_TICK: Duration = Duration::from_secs(5);

/// Shows how far work is. Clones show the same.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    view: View,
    /// Bytes of the phase, and those of them that are done.
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

/// When the last line was printed, and what the work is called.
#[derive(Debug)]
struct Ticker {
    phase: &'static str,
    last: Instant,
}

impl Progress {
    /// Nothing is shown yet.
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

    /// A phase of its own; how many bytes it has may be unknown.
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

    /// A part of the phase.
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

    /// This many bytes more are done.
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

    /// Prints while the bars are out of the way.
    pub(crate) fn aside(&self, print: impl FnOnce()) {
        match &self.shared.view {
            View::Bars { all, .. } => all.suspend(print),
            View::Plain(_) | View::Nothing => print(),
        }
    }

    /// Takes the bars away, and prints a line about the whole where anything is shown at all.
    pub(crate) fn summary(&self, text: &str) {
        self.finish();
        if !matches!(self.shared.view, View::Nothing) {
            super::complain(&format!("{text}\n"));
        }
    }

    /// Takes the bars away.
    pub(crate) fn finish(&self) {
        if let View::Bars { all, overall, .. } = &self.shared.view {
            overall.finish_and_clear();
            // A terminal that is gone needs no clearing.
            drop(all.clear());
        }
    }

    /// How long it has been there.
    pub(crate) fn elapsed(&self) -> Duration {
        self.shared.started.elapsed()
    }
}

/// A part of the work. Dropped, it is no longer shown.
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
    /// What is done with it now.
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

    /// This many bytes more of it are done.
    pub(crate) fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
        self.progress.advance(bytes);
    }

    /// All of it is done, also what was not counted.
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

/// Bytes in a time, for people.
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
