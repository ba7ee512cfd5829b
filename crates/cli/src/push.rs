//! `soci push`: pushes the newest version 1 index of an image to the registry in the image's name.

use std::sync::Arc;

use anyhow::{Result, bail};
use soci_index::Artifacts;
use soci_index::artifacts::{ArtifactsError, Entry};
use soci_index::push::{Note, PushObserver, PushOptions, push, select};
use soci_oci::reference::ImageRef;
use soci_registry::Trace;
use soci_store::{ContentStore, Stacked};

use crate::args::{Global, Push};
use crate::output::{self, Progress, PushReport};
use crate::state::State;
use crate::{access, convert};

/// Concurrent uploads if the value of the flag is zero or out of range.
const UPLOADS: usize = 3;

/// Runs the command.
pub(crate) async fn run(global: &Global, args: &Push) -> Result<()> {
    if args.reference.is_empty() {
        bail!("please provide an image reference to push");
    }
    let existing = args.existing_index()?;
    let state = State::new(global);
    let containerd = state.containerd().await?;
    let target = containerd.image(&args.reference).await?.target;
    let image = ImageRef::from_containerd(&args.reference)?;
    let platforms = convert::platforms(&args.platforms)?;
    let reporter = Arc::new(Reporter {
        how: How::of(args),
        progress: Progress::new(global.progress),
    });
    let traced = global.debug || args.trace;
    let trace = traced.then(|| reporter.trace());
    let registry = access::registry(&args.registry, &[&image], trace)?;
    let images: Arc<dyn ContentStore> = Arc::new(containerd.clone());
    let store: Arc<dyn ContentStore> = Arc::new(Stacked {
        upper: state.content().await?,
        lower: Arc::clone(&images),
    });
    let options = PushOptions {
        existing,
        uploads: uploads(args, reporter.how),
    };
    let observer: Arc<dyn PushObserver> = reporter.clone();
    let all = async {
        let records = records(state.artifacts()).await?;
        let selected = select(&images, &records, &target, &platforms, &observer).await?;
        let mut report = PushReport::new(&args.reference);
        reporter.progress.phase("pushing", None);
        for index in &selected {
            let pushed = push(&registry, &image, &store, index, options, &observer).await?;
            report.add(index, &pushed);
        }
        Ok(report)
    };
    let report = access::uploading(global, Some(&registry), all).await;
    reporter.progress.finish();
    let report = report?.took(reporter.progress.elapsed());
    if reporter.how == How::Json {
        output::json(&report)?;
    } else {
        reporter.progress.summary(&report.to_string());
    }
    Ok(())
}

/// Reads the records on a blocking thread, because it may wait for another process.
async fn records(artifacts: Artifacts) -> Result<Vec<Entry>> {
    let read = tokio::task::spawn_blocking(move || artifacts.all()).await?;
    match read {
        // Nothing was ever recorded, so no platform has an index.
        Err(ArtifactsError::NeverWritten) => Ok(Vec::new()),
        read => Ok(read?),
    }
}

fn uploads(args: &Push, how: How) -> usize {
    let asked = args.max_concurrent_uploads;
    match isize::try_from(asked).map(isize::unsigned_abs) {
        Ok(0) => UPLOADS,
        Ok(asked) => asked,
        Err(_) => {
            // The reference prints this text without a newline.
            let warning = format!(
                "warning: overflow for setting --max-concurrent-uploads={asked}; defaulting to {UPLOADS}"
            );
            match how {
                How::Lines => output::print(&warning),
                How::Json => output::complain(&format!("{warning}\n")),
                How::Quiet => {}
            }
            UPLOADS
        }
    }
}

/// What to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// A line for every event.
    Lines,
    /// Only digests of indexes, and warnings.
    Quiet,
    /// One object at the end, and warnings on standard error.
    Json,
}

impl How {
    fn of(args: &Push) -> Self {
        match (args.json, args.quiet) {
            (true, _) => Self::Json,
            (false, true) => Self::Quiet,
            (false, false) => Self::Lines,
        }
    }

    /// The line for a note, if it is printed.
    fn line(self, note: &Note) -> Option<String> {
        let is_warning = matches!(note, Note::VersionTwo | Note::PushingAnyway(_));
        match (self, note) {
            (Self::Quiet, Note::Index(digest)) => Some(digest.to_string()),
            (Self::Lines, _) => Some(note.to_string()),
            (Self::Quiet | Self::Json, _) => is_warning.then(|| note.to_string()),
        }
    }
}

/// Prints notes as they arrive.
struct Reporter {
    how: How,
    progress: Progress,
}

impl Reporter {
    fn say(&self, text: &str) {
        self.progress.aside(|| match self.how {
            How::Lines | How::Quiet => output::line(text),
            How::Json => output::complain(&format!("{text}\n")),
        });
    }

    fn trace(self: &Arc<Self>) -> Trace {
        let reporter = Arc::clone(self);
        Trace::new(move |traffic| reporter.say(&traffic.to_string()))
    }
}

impl PushObserver for Reporter {
    fn note(&self, note: &Note) {
        if let Some(line) = self.how.line(note) {
            self.say(&line);
        }
    }

    fn sent(&self, bytes: u64) {
        self.progress.advance(bytes);
    }
}

#[cfg(test)]
mod tests {
    use soci_index::push::Found;
    use soci_oci::Digest;

    use super::*;

    #[test]
    fn quiet_leaves_digests_of_indexes_and_warnings() {
        let digest = Digest::sha256(b"index");
        let found = Found(vec![digest]);
        let notes = [
            Note::Checking,
            Note::NotPushing(found.clone(), digest),
            Note::PushingAnyway(found),
            Note::Index(digest),
            Note::Skipped(digest),
            Note::Pushing(digest),
            Note::Pushed(digest),
            Note::VersionTwo,
        ];
        let lines =
            |how: How| -> Vec<String> { notes.iter().filter_map(|note| how.line(note)).collect() };
        assert_eq!(lines(How::Lines).len(), notes.len());
        let quiet = lines(How::Quiet);
        assert!(quiet[0].starts_with("[WARN] soci index found"), "{quiet:?}");
        assert_eq!(quiet[1], digest.to_string());
        assert!(quiet[2].starts_with("[WARN] Skippping"), "{quiet:?}");
        assert_eq!(lines(How::Json), [quiet[0].clone(), quiet[2].clone()]);
    }
}
