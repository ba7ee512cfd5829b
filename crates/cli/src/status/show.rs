//! The status as text.

use indicatif::HumanBytes;
use soci_status::{Image, Progress, Reads, Status};

use crate::output::table::{Table, printable};

/// One line for each image.
pub(super) fn all(status: &Status) -> String {
    let mut table = Table::new([
        "IMAGE",
        "NAMESPACE",
        "VERDICT",
        "REASON",
        "COMPLETE",
        "WAITED",
    ]);
    for image in &status.images {
        table.row([
            image.image.clone(),
            image.namespace.clone(),
            image.verdict.clone(),
            image.reason.clone(),
            complete(&image.progress),
            waited(&image.reads),
        ]);
    }
    let mut text = table.to_string();
    if !status.mounts_layers {
        text.push_str("This machine cannot mount layers now; the daemon's log says why.\n");
    }
    text
}

/// Everything about one image.
pub(super) fn one(image: &Image) -> String {
    let Progress {
        spans,
        spans_present,
        bytes,
        bytes_present,
        spans_on_demand,
        spans_background,
        bytes_on_demand,
        bytes_background,
        ..
    } = image.progress;
    let rows = [
        ("image", image.image.clone()),
        ("namespace", image.namespace.clone()),
        ("manifest", image.manifest.clone()),
        ("verdict", image.verdict.clone()),
        ("reason", format!("{}: {}", image.reason, image.why)),
        (
            "complete",
            format!(
                "{}: {} of {}, {spans_present} of {spans} spans",
                complete(&image.progress),
                HumanBytes(bytes_present),
                HumanBytes(bytes)
            ),
        ),
        (
            "downloaded",
            format!(
                "for readers {spans_on_demand} spans, {}; in the background {spans_background} spans, {}",
                HumanBytes(bytes_on_demand),
                HumanBytes(bytes_background)
            ),
        ),
        ("waited", waited(&image.reads)),
    ];
    let mut text = String::new();
    for (name, value) in rows {
        text.push_str(&format!("{name:<12}{}\n", printable(&value)));
    }
    text.push('\n');
    text.push_str(&layers(image));
    text
}

fn layers(image: &Image) -> String {
    let mut table = Table::new([
        "LAYER",
        "VERDICT",
        "REASON",
        "SIZE",
        "COMPLETE",
        "ON DEMAND",
        "BACKGROUND",
        "WAITED",
    ]);
    let mut notes = String::new();
    for layer in &image.layers {
        let progress = &layer.progress;
        table.row([
            layer.digest.clone(),
            layer.verdict.clone(),
            layer.reason.clone(),
            HumanBytes(progress.bytes).to_string(),
            complete(progress),
            progress.spans_on_demand.to_string(),
            progress.spans_background.to_string(),
            waited(&layer.reads),
        ]);
        if layer.verdict != image.verdict || layer.reason != image.reason {
            notes.push_str(&note(&layer.digest, &layer.why));
        }
        if let Some(error) = &layer.last_error {
            notes.push_str(&note(&layer.digest, &format!("last error: {error}")));
        }
    }
    format!("{table}{notes}")
}

fn note(digest: &str, text: &str) -> String {
    let digest = digest.get(..19).unwrap_or(digest);
    format!("{}: {}\n", printable(digest), printable(text))
}

/// In percent, and never 100 before every byte is verified.
fn complete(progress: &Progress) -> String {
    if progress.complete {
        return "100%".to_owned();
    }
    let (present, bytes) = (
        u128::from(progress.bytes_present),
        u128::from(progress.bytes),
    );
    let percent = present * 100 / bytes.max(1);
    format!("{}%", percent.min(99))
}

fn waited(reads: &Reads) -> String {
    match reads.reads_waited {
        0 => "-".to_owned(),
        count => format!(
            "{count} reads, {:.3} s, longest {:.3} s",
            reads.waited_seconds, reads.longest_wait_seconds
        ),
    }
}

#[cfg(test)]
mod tests {
    use soci_status::Layer;

    use super::*;

    fn image() -> Image {
        let progress = Progress {
            spans: 4,
            spans_present: 1,
            bytes: 4 << 20,
            bytes_present: 1 << 20,
            spans_on_demand: 1,
            bytes_on_demand: 1 << 20,
            ..Progress::default()
        };
        let reads = Reads {
            reads_waited: 2,
            waited_seconds: 0.25,
            longest_wait_seconds: 0.02,
        };
        let layer = Layer {
            digest: format!("sha256:{}", "1".repeat(64)),
            verdict: "lazy".to_owned(),
            reason: "index".to_owned(),
            progress,
            reads,
            ..Layer::default()
        };
        let sparse = Layer {
            digest: format!("sha256:{}", "2".repeat(64)),
            verdict: "local".to_owned(),
            reason: "no_ztoc".to_owned(),
            why: "no ztoc for layer".to_owned(),
            last_error: Some("the disk\nis full".to_owned()),
            ..Layer::default()
        };
        Image {
            image: "registry.example/app:1".to_owned(),
            namespace: "k8s.io".to_owned(),
            manifest: "sha256:3".to_owned(),
            verdict: "lazy".to_owned(),
            reason: "index".to_owned(),
            why: "index sha256:4 named by the manifest".to_owned(),
            progress,
            reads,
            layers: vec![layer, sparse],
        }
    }

    /// The words of each line.
    fn words(text: &str) -> Vec<String> {
        let lines = text.lines();
        lines
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    }

    #[test]
    fn images_have_a_line_each() {
        let status = Status {
            mounts_layers: true,
            images: vec![image()],
            ..Status::default()
        };
        assert_eq!(
            words(&all(&status)),
            [
                "IMAGE NAMESPACE VERDICT REASON COMPLETE WAITED",
                "registry.example/app:1 k8s.io lazy index 25% 2 reads, 0.250 s, longest 0.020 s",
            ]
        );
        let unable = all(&Status::default());
        assert!(unable.contains("cannot mount layers"), "{unable}");
    }

    #[test]
    fn one_image_has_its_layers_and_what_is_special_about_them() {
        let text = words(&one(&image()));
        for line in [
            "reason index: index sha256:4 named by the manifest",
            "complete 25%: 1.00 MiB of 4.00 MiB, 1 of 4 spans",
            "downloaded for readers 1 spans, 1.00 MiB; in the background 0 spans, 0 B",
            "sha256:222222222222: no ztoc for layer",
            r"sha256:222222222222: last error: the disk\nis full",
        ] {
            assert!(text.iter().any(|found| found == line), "{line}: {text:#?}");
        }
    }

    #[test]
    fn a_layer_is_at_100_percent_only_when_it_is_complete() {
        let mut progress = Progress {
            bytes: 10,
            bytes_present: 10,
            ..Progress::default()
        };
        assert_eq!(complete(&progress), "99%");
        progress.complete = true;
        assert_eq!(complete(&progress), "100%");
        assert_eq!(complete(&Progress::default()), "0%");
    }
}
