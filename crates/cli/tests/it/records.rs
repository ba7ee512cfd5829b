//! The records as a whole: unusable files, files of the reference, and `soci rebuild-db`.

use std::fs::{self, File};

use soci_index::SPAN_SIZE;
use soci_index::artifacts::Kind;

use crate::seed::{Root, absent, image};
use crate::soci::{member, tar};

#[test]
fn a_damaged_database_is_named_in_the_log() {
    let root = Root::new();
    let path = root.artifacts().path();
    fs::write(&path, "no database").unwrap();
    for words in [["index", "ls"], ["ztoc", "ls"], ["prefetch", "ls"]] {
        let ran = root.soci(&words);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{ran:?}");
        let (log, error) = ran.stderr.split_once('\n').unwrap();
        assert_eq!(error, "soci: artifacts.db is not available\n");
        let what = format!("level=error msg=\"can't open {}: ", path.display());
        assert!(log.starts_with("time=\"") && log.contains(&what), "{log}");
    }
}

#[test]
fn records_of_the_reference_that_cannot_be_read_are_left_out_by_rebuilding() {
    let root = Root::new();
    let path = root.path().join("artifacts.db");
    fs::write(&path, "no database").unwrap();
    let ran = root.soci(&["index", "ls"]);
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.stderr
            .ends_with("\nsoci: artifacts.db is not available\n"),
        "{ran:?}"
    );
    assert!(
        ran.stderr.contains("`soci rebuild-db` begins without it"),
        "{ran:?}"
    );

    let ran = root.soci(&["rebuild-db"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ""), "{ran:?}");
    assert_eq!(root.prints(&["index", "ls", "-q"]), "");
    assert_eq!(fs::read(&path).unwrap(), b"no database");
}

#[test]
fn a_database_in_use_is_named_after_ten_seconds() {
    let root = Root::new();
    root.record(Kind::Index, &absent("index"));
    let path = root.artifacts().path();
    let holder = File::open(&path).unwrap();
    holder.lock().unwrap();
    let said = root.fails(&["index", "ls", "--timeout", "0"]);
    let shown = path.display();
    let wanted = format!("{shown} is in use by another process (waited 10 s)");
    assert_eq!(said, wanted);
    let said = root.fails(&["index", "ls", "--timeout", "1s"]);
    let wanted = format!("{shown} is in use by another process (waited 1 s)");
    assert_eq!(said, wanted);
}

#[test]
fn rebuilding_forgets_what_is_gone() {
    let root = Root::new();
    assert_eq!(root.prints(&["rebuild-db"]), "");
    let ztoc = root.ztoc(&tar(&[member("a", b'0', "", b"b")]), 4 << 20);
    let index = root.index(&absent("manifest"), vec![ztoc.clone()]);
    root.record(Kind::Index, &index);
    root.record(Kind::Layer, &absent("gone"));
    root.record(Kind::Index, &absent("gone too"));
    assert_eq!(root.prints(&["rebuild-db"]), "");
    assert_eq!(
        root.prints(&["index", "ls", "-q"]),
        format!("{}\n", index.digest)
    );
    // Content that the index lists and that is present now has a record.
    assert_eq!(
        root.prints(&["ztoc", "ls", "-q"]),
        format!("{}\n", ztoc.digest)
    );
}

#[test]
fn a_prefetch_artifact_is_recorded_as_one() {
    let root = Root::new();
    let document = r#"{"version":"1.0","prefetch_spans":[{"start_span":0,"end_span":3}]}"#;
    let artifact = root.prefetch(&image(), document);
    let index = root.index(&absent("manifest"), vec![artifact.clone()]);
    root.record(Kind::Index, &index);
    // The state that the reference's rebuild-db leaves.
    root.record(Kind::Layer, &artifact);
    assert_eq!(root.prints(&["rebuild-db"]), "");
    assert_eq!(root.prints(&["ztoc", "ls", "-q"]), "");
    let listed = root.prints(&["prefetch", "ls"]);
    assert!(listed.contains(&artifact.digest.to_string()), "{listed}");
}

#[test]
fn a_new_index_needs_its_image() {
    let root = Root::new();
    root.index(&absent("manifest"), Vec::new());
    assert_eq!(
        root.fails(&["rebuild-db"]),
        "failed to add new artifacts to db: context deadline exceeded while waiting for connections to become ready: context deadline exceeded"
    );
}

#[test]
fn a_ztoc_whose_span_size_is_no_number_is_left_out_with_a_warning() {
    let root = Root::new();
    let mut ztoc = root.ztoc(&tar(&[]), 4 << 20);
    ztoc.annotations
        .insert(SPAN_SIZE.to_owned(), "4MiB".to_owned());
    let index = root.index(&absent("manifest"), vec![ztoc.clone()]);
    root.record(Kind::Index, &index);
    let ran = root.soci(&["rebuild-db"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let warning = format!("zTOC {} is not recorded", ztoc.digest);
    assert!(ran.stderr.contains(&warning), "{ran:?}");
    assert_eq!(root.prints(&["ztoc", "ls", "-q"]), "");
}

#[test]
fn an_unknown_content_store_is_refused() {
    let root = Root::new();
    assert_eq!(
        root.fails(&["rebuild-db", "--content-store", "tape"]),
        "unknown content store type: tape; must be one of [soci containerd]"
    );
}
