//! The types of the document.

use serde::{Deserialize, Serialize};

/// What the daemon says about all images.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the document.
    pub schema_version: u32,
    /// Version of the daemon.
    pub daemon: String,
    /// Whether this machine can mount layers now.
    pub mounts_layers: bool,
    /// The images with at least one snapshot, and those that were refused recently, by name.
    pub images: Vec<Image>,
}

/// One image.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// The reference from containerd.
    pub image: String,
    /// Namespace in containerd.
    pub namespace: String,
    /// Digest of its manifest.
    pub manifest: String,
    /// The verdict: that of its worst layer.
    pub verdict: String,
    /// Why, in one word.
    pub reason: String,
    /// Why, for people.
    pub why: String,
    /// The progress of all layers that the daemon provides.
    #[serde(flatten)]
    pub progress: Progress,
    /// The reads of all layers.
    #[serde(flatten)]
    pub reads: Reads,
    /// The layers that containerd requested, in the order of their snapshots.
    pub layers: Vec<Layer>,
}

/// One layer of an image. Images that share a layer share its progress and reads.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// Digest of the layer.
    pub digest: String,
    /// The verdict.
    pub verdict: String,
    /// Why, in one word.
    pub reason: String,
    /// Why, for people.
    pub why: String,
    /// Its progress. All 0 if containerd unpacks it.
    #[serde(flatten)]
    pub progress: Progress,
    /// Its reads.
    #[serde(flatten)]
    pub reads: Reads,
    /// The most recent error, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// How complete a layer is, and what was downloaded for it since the daemon started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Whether every byte is on disk and verified.
    pub complete: bool,
    /// Spans. 0 if the layer was downloaded whole.
    pub spans: u64,
    /// Spans on disk.
    pub spans_present: u64,
    /// Compressed bytes.
    pub bytes: u64,
    /// Compressed bytes on disk; for an incomplete layer, an estimate from the spans.
    pub bytes_present: u64,
    /// Spans downloaded for readers.
    pub spans_on_demand: u64,
    /// Spans downloaded in the background.
    pub spans_background: u64,
    /// Compressed bytes downloaded for readers.
    pub bytes_on_demand: u64,
    /// Compressed bytes downloaded in the background or in one pass.
    pub bytes_background: u64,
}

/// Reads of containers that waited for a download, since the daemon started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reads {
    /// Number of reads.
    pub reads_waited: u64,
    /// How long they waited, in seconds.
    pub waited_seconds: f64,
    /// The longest wait, in seconds.
    pub longest_wait_seconds: f64,
}

impl Progress {
    /// Adds the progress of another layer. The sum is complete if both are.
    pub fn add(&mut self, other: &Self) {
        self.complete &= other.complete;
        for (sum, count) in [
            (&mut self.spans, other.spans),
            (&mut self.spans_present, other.spans_present),
            (&mut self.bytes, other.bytes),
            (&mut self.bytes_present, other.bytes_present),
            (&mut self.spans_on_demand, other.spans_on_demand),
            (&mut self.spans_background, other.spans_background),
            (&mut self.bytes_on_demand, other.bytes_on_demand),
            (&mut self.bytes_background, other.bytes_background),
        ] {
            *sum = sum.saturating_add(count);
        }
    }
}

impl Reads {
    /// Adds the reads of another layer.
    pub fn add(&mut self, other: &Self) {
        self.reads_waited = self.reads_waited.saturating_add(other.reads_waited);
        self.waited_seconds += other.waited_seconds;
        self.longest_wait_seconds = self.longest_wait_seconds.max(other.longest_wait_seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_add_counts_and_keep_the_longest_wait() {
        let progress = Progress {
            complete: true,
            spans: 2,
            bytes_on_demand: 5,
            ..Progress::default()
        };
        let mut sum = progress;
        sum.add(&Progress {
            complete: false,
            spans: 3,
            ..Progress::default()
        });
        assert_eq!(
            (sum.complete, sum.spans, sum.bytes_on_demand),
            (false, 5, 5)
        );
        let mut reads = Reads {
            reads_waited: 1,
            waited_seconds: 2.0,
            longest_wait_seconds: 2.0,
        };
        reads.add(&Reads {
            reads_waited: 2,
            waited_seconds: 1.5,
            longest_wait_seconds: 1.0,
        });
        let wanted = Reads {
            reads_waited: 3,
            waited_seconds: 3.5,
            longest_wait_seconds: 2.0,
        };
        assert_eq!(reads, wanted);
    }
}
