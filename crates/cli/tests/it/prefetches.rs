//! `soci prefetch`: lists, artifact contents, and errors.

use soci_index::artifacts::{Entry, Kind};
use soci_ztoc::Time;

use crate::seed::{Root, absent, entry, image};

const HEADER: &str = "DIGEST    LAYER DIGEST    SPANS    CREATED    \n";
const DOCUMENT: &str = r#"{"version":"1.0","prefetch_spans":[{"start_span":0,"end_span":3},{"start_span":7,"end_span":7,"priority":2}]}"#;

#[test]
fn nothing_recorded_is_a_header_or_null() {
    let root = Root::new();
    assert_eq!(root.prints(&["prefetch", "list"]), HEADER);
    root.record(Kind::Layer, &absent("ztoc"));
    assert_eq!(root.prints(&["prefetch", "ls", "--json"]), "null\n");
    // A list works without containerd, even if the artifacts would be there.
    root.record(Kind::Prefetch, &absent("artifact"));
    let printed = root.prints(&["prefetch", "ls", "--content-store", "containerd"]);
    assert!(printed.contains("N/A"), "{printed}");
    assert_eq!(
        root.fails(&["prefetch", "ls", "--content-store", "tape"]),
        "unknown content store type: tape; must be one of [soci containerd]"
    );
}

#[test]
fn lists_count_spans_where_the_artifact_can_be_read() {
    let root = Root::new();
    let good = root.prefetch(&image(), DOCUMENT);
    let bad = root.prefetch(&image(), r#"{"version":"2.0"}"#);
    let gone = absent("gone");
    root.artifacts()
        .put(&[Entry {
            created_at: Some(Time {
                secs: 1_763_697_972,
                nanos: 120_000_000,
            }),
            ..entry(Kind::Prefetch, &good)
        }])
        .unwrap();
    root.record(Kind::Prefetch, &bad);
    root.record(Kind::Prefetch, &gone);

    let mut digests = [good.digest, bad.digest, gone.digest];
    digests.sort();
    let printed = root.prints(&["prefetch", "list"]);
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), 4);
    for (line, digest) in lines[1..].iter().zip(digests) {
        let spans = if digest == good.digest { "5  " } else { "N/A" };
        let start = format!("{digest}    {}    {spans}      ", image());
        assert!(line.starts_with(&start), "{line}");
    }

    let printed = root.prints(&["prefetch", "list", "--json"]);
    let object = |digest, spans, created| {
        format!(
            "  {{\n    \"Digest\": \"{digest}\",\n    \"LayerDigest\": \"{}\",\n    \"TotalSpans\": {spans},\n    \"CreatedAt\": \"{created}\"\n  }}",
            image()
        )
    };
    let objects = digests.map(|digest| {
        if digest == good.digest {
            object(digest, 5, "2025-11-21T04:06:12.12Z")
        } else {
            object(digest, -1, "0001-01-01T00:00:00Z")
        }
    });
    assert_eq!(printed, format!("[\n{}\n]\n", objects.join(",\n")));
}

#[test]
fn info_says_what_the_reference_says() {
    let root = Root::new();
    let blob = root.prefetch(&image(), DOCUMENT);
    let entry = Entry {
        created_at: Some(Time {
            secs: 1_763_697_972,
            nanos: 999_000_000,
        }),
        ..entry(Kind::Prefetch, &blob)
    };
    root.artifacts().put(&[entry]).unwrap();
    let digest = blob.digest.to_string();
    let wanted = format!(
        "Digest:        {digest}
Version:       1.0
Span Ranges:   2
Layer Digest:  {}
Size:          {} bytes
Created:       2025-11-21 04:06:12

Prefetch Spans:
  [0] StartSpan: 0, EndSpan: 3 (covers 4 spans)
  [1] StartSpan: 7, EndSpan: 7 (covers 1 spans)
      Priority: 2

Total spans to prefetch: 5
",
        image(),
        blob.size
    );
    assert_eq!(root.prints(&["prefetch", "info", &digest]), wanted);
    let raw = r#"
Raw JSON:
{
  "version": "1.0",
  "prefetch_spans": [
    {
      "start_span": 0,
      "end_span": 3
    },
    {
      "start_span": 7,
      "end_span": 7,
      "priority": 2
    }
  ]
}
"#;
    let printed = root.prints(&["prefetch", "info", "--json", &digest]);
    assert_eq!(printed, wanted + raw);
}

#[test]
fn info_refuses_what_is_no_prefetch_artifact() {
    let root = Root::new();
    let digest = absent("artifact").digest.to_string();
    assert_eq!(
        root.fails(&["prefetch", "info", &digest]),
        "soci_artifacts not found"
    );
    let (index, ztoc) = (absent("index"), absent("ztoc"));
    root.record(Kind::Index, &index);
    root.record(Kind::Layer, &ztoc);
    let documents = [
        (
            r#"{"version":"2.0","prefetch_spans":[]}"#,
            "unsupported prefetch artifact version: 2.0 (expected 1.0)",
        ),
        (
            r#"{"version":"1.0","prefetch_spans":[]}"#,
            "prefetch artifact is empty",
        ),
    ];
    for (document, message) in documents {
        let blob = root.prefetch(&image(), document);
        root.record(Kind::Prefetch, &blob);
        let line = ["prefetch", "info", &blob.digest.to_string()];
        assert_eq!(root.fails(&line), message);
    }
    for (word, message) in [
        ("", "invalid checksum digest format".to_owned()),
        (
            &digest,
            format!("couldn't retrieve artifact for {digest}, not found"),
        ),
        (
            &index.digest.to_string(),
            "the provided digest is not a prefetch artifact (type: soci_index)".to_owned(),
        ),
        (
            &ztoc.digest.to_string(),
            "the provided digest is not a prefetch artifact (type: soci_layer)".to_owned(),
        ),
    ] {
        assert_eq!(root.fails(&["prefetch", "info", word]), message, "{word}");
    }
}
