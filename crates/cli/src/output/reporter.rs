//! Reports on layers while indexes are built: lines on standard output, warnings, progress.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::HumanBytes;
use serde::Serialize;
use soci_index::standalone::{ConversionObserver, Phase};
use soci_index::{Note, Observer, Outcome, Stage};
use soci_oci::{Descriptor, Digest};

use super::progress::{Progress, Task, rate};

/// Most warnings about layers, and most bytes per warning. Together they stay well below a pipe
/// buffer (64 KiB); otherwise nerdctl and this process would wait for each other.
const MAX_WARNINGS: usize = 40;
const MAX_WARNING: usize = 800;

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Reporter {
    progress: Progress,
    /// Whether to print lines; false if one object is printed at the end.
    prints_lines: bool,
    /// Whether standard output carries the image itself.
    is_beside: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tasks: HashMap<Digest, Arc<Task>>,
    warnings: usize,
    /// Layers whose outcome has been reported.
    seen: HashSet<Digest>,
    indexed: u64,
    reused: u64,
    skipped: u64,
    bytes: u64,
    left_out: Vec<String>,
}

impl Reporter {
    pub(crate) fn new(progress: Progress, json: bool) -> Self {
        Self {
            progress,
            prints_lines: !json,
            is_beside: false,
            state: Mutex::default(),
        }
    }

    /// Prints on standard error instead, if standard output carries the image itself.
    pub(crate) fn beside(self, is_beside: bool) -> Self {
        Self { is_beside, ..self }
    }

    /// Prints a line about the result, unless an object is printed at the end.
    pub(crate) fn line(&self, text: &str) {
        if !self.prints_lines {
            return;
        }
        self.progress.aside(|| {
            if self.is_beside {
                super::complain(&format!("{text}\n"));
            } else {
                super::line(text);
            }
        });
    }

    /// Prints the final object.
    pub(crate) fn object<T: Serialize>(&self, value: &T) -> serde_json::Result<()> {
        if self.is_beside {
            super::complain(&super::object(value)?);
            return Ok(());
        }
        super::json(value)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Layers that are large enough for a zTOC but have none, with the reasons, as reported so far.
    pub(crate) fn left_out(&self) -> Vec<String> {
        self.state().left_out.clone()
    }

    /// Total size of the layers that were indexed or whose zTOC was reused.
    pub(crate) fn bytes(&self) -> u64 {
        self.state().bytes
    }

    /// The progress display.
    pub(crate) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The duration of the work so far.
    pub(crate) fn elapsed(&self) -> Duration {
        self.progress.elapsed()
    }

    fn task(&self, layer: &Descriptor) -> Option<Arc<Task>> {
        self.state().tasks.get(&layer.digest).cloned()
    }

    /// Ends the progress display with a summary of all layers.
    pub(crate) fn finish(&self) {
        let (text, more) = {
            let state = self.state();
            let time = self.progress.elapsed();
            let text = format!(
                "{} layers indexed, {} taken over, {} without a ztoc; {} in {:.1} s ({})",
                state.indexed,
                state.reused,
                state.skipped,
                HumanBytes(state.bytes),
                time.as_secs_f64(),
                rate(state.bytes, time)
            );
            (text, state.warnings.saturating_sub(MAX_WARNINGS))
        };
        if more > 0 {
            tracing::warn!("{more} more warnings are not shown");
        }
        self.progress.summary(&text);
    }

    fn count(&self, note: &Note) {
        let Note::Layer(outcome) = note else { return };
        let mut state = self.state();
        if !state.seen.insert(outcome.layer.digest) {
            return;
        }
        match &outcome.outcome {
            Outcome::Built(_) => state.indexed += 1,
            Outcome::Reused(_) => state.reused += 1,
            Outcome::Skipped(skip) => {
                state.skipped += 1;
                if outcome.is_left_out() {
                    let text = format!("layer {} {skip}", outcome.layer.digest);
                    state.left_out.push(super::cut(&text, MAX_WARNING).into());
                }
            }
            Outcome::Ignored => {}
        }
        if outcome.ztoc().is_some() {
            state.bytes = state.bytes.saturating_add(outcome.layer.size);
        }
    }
}

impl Observer for Reporter {
    fn planned(&self, bytes: u64) {
        self.progress.phase("indexing", Some(bytes));
    }

    fn stage(&self, layer: &Descriptor, stage: Stage) {
        match stage {
            Stage::Begun => {
                let name: String = layer.digest.hex().chars().take(12).collect();
                let task = Arc::new(self.progress.task(&name, layer.size));
                task.stage("indexing");
                self.state().tasks.insert(layer.digest, task);
            }
            Stage::Storing => {
                if let Some(task) = self.task(layer) {
                    task.stage("storing");
                }
            }
            Stage::Done => {
                let task = self.state().tasks.remove(&layer.digest);
                if let Some(task) = task {
                    task.done();
                }
            }
        }
    }

    fn read(&self, layer: &Descriptor, bytes: u64) {
        if let Some(task) = self.task(layer) {
            task.advance(bytes);
        }
    }

    fn note(&self, note: &Note) {
        self.count(note);
        let text = note.to_string();
        if !note.is_warning() {
            return self.line(&text);
        }
        let number = {
            let mut state = self.state();
            state.warnings += 1;
            state.warnings
        };
        if number <= MAX_WARNINGS {
            let text = super::cut(&text, MAX_WARNING);
            self.progress.aside(|| tracing::warn!("{text}"));
        }
    }
}

impl ConversionObserver for Reporter {
    fn phase(&self, phase: Phase, bytes: Option<u64>) {
        self.progress.phase(phase.name(), bytes);
    }

    fn moved(&self, bytes: u64) {
        self.progress.advance(bytes);
    }
}
