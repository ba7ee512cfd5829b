use proptest::prelude::*;

use super::*;

fn range(start: u64, end: u64) -> SpanRange {
    SpanRange {
        start,
        end,
        priority: 0,
        first_use_ms: None,
    }
}

#[test]
fn an_artifact_has_the_documented_bytes() {
    let bytes = encode(&[range(0, 3)]);
    assert_eq!(
        String::from_utf8(bytes.clone()).unwrap(),
        r#"{"version":"1.0","prefetch_spans":[{"start_span":0,"end_span":3}]}"#
    );
    assert_eq!(parse(&bytes).unwrap(), [range(0, 3)]);
    let urgent = SpanRange {
        priority: 7,
        ..range(1, 1)
    };
    let bytes = encode(&[urgent]);
    assert!(bytes.ends_with(br#"{"start_span":1,"end_span":1,"priority":7}]}"#));
    assert_eq!(parse(&bytes).unwrap(), [urgent]);
}

#[test]
fn spans_are_counted_whatever_the_range() {
    for (range, count) in [
        (range(3, 3), 1),
        (range(1, 3), 3),
        (range(2, 1), 0),
        (range(0, u64::MAX), u64::MAX),
    ] {
        assert_eq!(range.count(), count);
    }
}

#[test]
fn bytes_that_are_no_artifact_are_refused() {
    for (text, message) in [
        (
            r#"{"version":"2.0","prefetch_spans":[]}"#,
            "unsupported prefetch artifact version: 2.0 (expected 1.0)",
        ),
        (
            r#"{"version":"1.0","prefetch_spans":[]}"#,
            "prefetch artifact is empty",
        ),
        (
            r#"{"version":"1.0","prefetch_spans":null}"#,
            "prefetch artifact is empty",
        ),
        (r#"{"version":"1.0"}"#, "prefetch artifact is empty"),
        (
            r#"{"version":"1.0","prefetch_spans":[{"start_span":2,"end_span":1}]}"#,
            "prefetch artifact has a range of spans from 2 to 1",
        ),
        (
            r#"{"version":"1.0","prefetch_spans":[{"start_span":-1,"end_span":1}]}"#,
            "prefetch artifact cannot be read",
        ),
        ("[]", "prefetch artifact cannot be read"),
        ("", "prefetch artifact cannot be read"),
    ] {
        assert_eq!(
            parse(text.as_bytes()).unwrap_err().to_string(),
            message,
            "{text}"
        );
    }
}

#[test]
fn paths_are_cleaned_and_cannot_leave_the_root() {
    for (path, cleaned) in [
        ("/etc/passwd", "etc/passwd"),
        ("etc/./passwd/", "etc/passwd"),
        ("../../etc//passwd", "etc/passwd"),
        ("a/../../b", "b"),
        ("/", ""),
    ] {
        assert_eq!(clean(path), cleaned, "{path}");
    }
}

#[test]
fn the_list_is_that_of_the_flags_and_then_that_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("list.json");
    let listed = ["/b ".to_owned(), "  ".to_owned()];
    fs::write(&file, r#"["/a", "", " c/ ", null]"#).unwrap();
    assert_eq!(*paths(&listed, Some(&file)).unwrap(), ["b", "a", "c"]);
    assert_eq!(*paths(&listed, None).unwrap(), ["b"]);
    fs::write(&file, "null").unwrap();
    assert!(paths(&[], Some(&file)).unwrap().is_empty());
    fs::write(&file, "{}").unwrap();
    let error = paths(&[], Some(&file)).unwrap_err().to_string();
    let start = "failed to parse prefetch files: failed to load prefetch files from JSON: ";
    assert!(
        error.starts_with(&format!("{start}failed to parse JSON: ")),
        "{error}"
    );
    let none = folder.path().join("none");
    let error = paths(&[], Some(&none)).unwrap_err().to_string();
    let rest = format!(
        "failed to read JSON file: open {}: no such file or directory",
        none.display()
    );
    assert_eq!(error, format!("{start}{rest}"));
}

#[test]
fn the_uppermost_layer_has_the_file_and_each_layer_one_artifact() {
    let names = [
        "a".to_owned(),
        "b".to_owned(),
        "c".to_owned(),
        "d".to_owned(),
    ];
    let (low, high) = (Digest::sha256(b"low"), Digest::sha256(b"high"));
    let layers = [
        (low, vec![(0, range(0, 1)), (2, range(9, 9))]),
        (high, vec![(1, range(2, 3)), (0, range(4, 4))]),
    ];
    let (artifacts, not_found) = assign(&names, &layers, HashMap::new());
    assert_eq!(not_found, ["d"]);
    let of: Vec<_> = artifacts
        .iter()
        .map(|it| (it.layer, it.ranges.clone()))
        .collect();
    assert_eq!(of, [(low, vec![range(9, 9)]), (high, vec![range(2, 4)])]);
    for artifact in &artifacts {
        let descriptor = &artifact.descriptor;
        assert_eq!(descriptor.digest, Digest::sha256(&artifact.bytes));
        assert_eq!(descriptor.media_type, PREFETCH_MEDIA_TYPE);
        let layer = artifact.layer.to_string();
        assert_eq!(
            descriptor.annotations,
            [(LAYER_DIGEST.to_owned(), layer)].into()
        );
    }
}

#[test]
fn recorded_ranges_come_first_and_named_files_add_the_rest() {
    let used = |start, end, ms| SpanRange {
        first_use_ms: Some(ms),
        ..range(start, end)
    };
    let names = ["a".to_owned()];
    let (one, two) = (Digest::sha256(b"one"), Digest::sha256(b"two"));
    let layers = [(one, vec![(0, range(4, 8))]), (two, Vec::new())];
    let recorded = [(one, vec![used(6, 6, 0), used(1, 2, 9)])];
    let (artifacts, _) = assign(&names, &layers, recorded.into());
    let [artifact] = artifacts.as_slice() else {
        panic!("one artifact: {artifacts:?}");
    };
    let wanted = [used(6, 6, 0), used(1, 2, 9), range(4, 5), range(7, 8)];
    assert_eq!(artifact.ranges, wanted);
    let text = r#"{"start_span":1,"end_span":2,"first_use_ms":9}"#;
    assert!(String::from_utf8_lossy(&artifact.bytes).contains(text));
    assert_eq!(parse(&artifact.bytes).unwrap(), wanted);
    let marked = artifact.descriptor.annotation(RECORDED_START);
    assert_eq!(marked, Some("true"));
}

proptest! {
    #[test]
    fn prop_merged_ranges_hold_the_same_spans_and_do_not_touch(
        ranges in prop::collection::vec((0_u64..40, 0_u64..6), 0..12)
    ) {
        let ranges: Vec<SpanRange> = ranges
            .into_iter()
            .map(|(start, more)| range(start, start + more))
            .collect();
        let merged = merged(ranges.clone());
        let held = |all: &[SpanRange], span| all.iter().any(|it| (it.start..=it.end).contains(&span));
        for span in 0..60 {
            prop_assert_eq!(held(&ranges, span), held(&merged, span));
        }
        for pair in merged.windows(2) {
            prop_assert!(pair[0].end + 1 < pair[1].start);
        }
    }

    #[test]
    fn prop_any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(ranges) = parse(&bytes) {
            prop_assert_eq!(parse(&encode(&ranges)).unwrap(), ranges);
        }
    }
}
