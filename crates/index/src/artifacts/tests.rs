mod import;
mod rebuild;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use redb::Database;

use super::*;

fn root() -> (tempfile::TempDir, Artifacts) {
    let folder = tempfile::tempdir().unwrap();
    let artifacts = Artifacts::at(folder.path());
    (folder, artifacts)
}

fn entry(name: &str, kind: Kind) -> Entry {
    Entry {
        digest: Digest::sha256(name.as_bytes()),
        size: 35_808,
        location: "somewhere".to_owned(),
        oci_digest: Digest::sha256(b"layer").to_string(),
        image_digest: String::new(),
        platform: "linux/arm64/v8".to_owned(),
        kind,
        media_type: "application/octet-stream".to_owned(),
        artifact_type: String::new(),
        created_at: Some(now()),
        span_size: 4 << 20,
        is_found: false,
    }
}

#[test]
fn what_is_put_comes_back_by_digest_and_in_order() {
    let (_folder, artifacts) = root();
    let mut entries = vec![entry("b", Kind::Layer), entry("a", Kind::Index)];
    entries[0].platform = "\u{fffd}<\0\n".to_owned();
    entries[0].created_at = None;
    entries[0].is_found = true;
    artifacts.put(&entries).unwrap();
    for wanted in &entries {
        assert_eq!(artifacts.get(&wanted.digest).unwrap(), *wanted);
    }
    entries.sort_by_key(|entry| entry.digest);
    assert_eq!(artifacts.all().unwrap(), entries);
}

#[test]
fn a_file_in_use_is_waited_for_until_the_deadline_only() {
    let (_folder, artifacts) = root();
    artifacts.put(&[entry("a", Kind::Index)]).unwrap();
    let holder = fs::File::open(artifacts.path()).unwrap();
    holder.lock().unwrap();
    let started = Instant::now();
    let artifacts = artifacts.until(started + Duration::from_millis(100));
    assert!(matches!(artifacts.all(), Err(ArtifactsError::Busy { .. })));
    let error = artifacts.put(&[entry("b", Kind::Index)]).unwrap_err();
    assert!(matches!(error, ArtifactsError::Busy { .. }));
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "not ten seconds"
    );
}

#[test]
fn a_record_is_overwritten_as_a_whole() {
    let (_folder, artifacts) = root();
    let first = entry("a", Kind::Index);
    let second = Entry {
        kind: Kind::Layer,
        platform: String::new(),
        span_size: 0,
        ..first.clone()
    };
    artifacts.put(&[first]).unwrap();
    artifacts.put(std::slice::from_ref(&second)).unwrap();
    assert_eq!(artifacts.all().unwrap(), [second]);
}

#[test]
fn reading_what_was_never_written_makes_no_file() {
    let (folder, artifacts) = root();
    assert_eq!(artifacts.all().unwrap(), []);
    artifacts.put(&[]).unwrap();
    artifacts.remove(&[Digest::sha256(b"a")]).unwrap();
    let error = artifacts.get(&Digest::sha256(b"a")).unwrap_err();
    assert_eq!(error.to_string(), "soci_artifacts not found");
    let error = artifacts.index("a").unwrap_err();
    assert_eq!(error.to_string(), "soci_artifacts not found");
    let error = artifacts.indexes_of(&Digest::sha256(b"a")).unwrap_err();
    assert_eq!(error.to_string(), "soci_artifacts not found");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn errors_have_the_references_texts() {
    let (_folder, artifacts) = root();
    let (layer, absent) = (entry("l", Kind::Layer), Digest::sha256(b"absent"));
    artifacts.put(std::slice::from_ref(&layer)).unwrap();
    assert_eq!(
        artifacts.get(&absent).unwrap_err().to_string(),
        format!("couldn't retrieve artifact for {absent}, not found")
    );
    assert_eq!(
        artifacts
            .index(&absent.to_string())
            .unwrap_err()
            .to_string(),
        format!("the index of the digest {absent} doesn't exist")
    );
    assert_eq!(
        artifacts.index("sha256:a").unwrap_err().to_string(),
        "the index of the digest sha256:a doesn't exist"
    );
    assert_eq!(
        artifacts
            .index(&layer.digest.to_string())
            .unwrap_err()
            .to_string(),
        format!(
            "the digest {} does not correspond to an index",
            layer.digest
        )
    );
}

#[test]
fn indexes_are_found_by_their_image() {
    let (_folder, artifacts) = root();
    let image = Digest::sha256(b"image");
    let mut entries = ["a", "b", "c"].map(|name| entry(name, Kind::Index));
    entries[0].image_digest = image.to_string();
    entries[1].image_digest = Digest::sha256(b"other").to_string();
    let mut ztoc = entry("ztoc", Kind::Layer);
    ztoc.image_digest = image.to_string();
    artifacts.put(&entries).unwrap();
    artifacts.put(&[ztoc]).unwrap();
    assert_eq!(artifacts.indexes_of(&image).unwrap(), entries[..1]);
}

#[test]
fn removed_records_are_gone_and_the_file_stays_one_that_was_written() {
    let (_folder, artifacts) = root();
    let index = entry("i", Kind::Index);
    artifacts.put(std::slice::from_ref(&index)).unwrap();
    artifacts.remove(&[index.digest]).unwrap();
    assert_eq!(artifacts.all().unwrap(), []);
    let error = artifacts.get(&index.digest).unwrap_err();
    assert!(matches!(error, ArtifactsError::NotFound(_)), "{error}");
}

#[test]
fn the_file_is_private() {
    let (folder, artifacts) = root();
    artifacts.put(&[entry("a", Kind::Index)]).unwrap();
    let mode = fs::metadata(artifacts.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_file_that_is_no_database_is_not_available() {
    let (_folder, artifacts) = root();
    fs::write(artifacts.path(), "not a database").unwrap();
    let entry = entry("a", Kind::Index);
    for error in [
        artifacts.all().unwrap_err(),
        artifacts.put(&[entry]).unwrap_err(),
    ] {
        assert_eq!(error.to_string(), "artifacts.db is not available");
    }
    assert_eq!(fs::read(artifacts.path()).unwrap(), b"not a database");
}

#[test]
fn a_file_of_a_later_version_is_not_touched() {
    let (_folder, artifacts) = root();
    artifacts.put(&[entry("a", Kind::Index)]).unwrap();
    let database = Database::open(artifacts.path()).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction
        .open_table(redb::TableDefinition::<&str, u64>::new("numbers"))
        .unwrap()
        .insert("schema", 2)
        .unwrap();
    transaction.commit().unwrap();
    drop(database);
    for error in [
        artifacts.all().unwrap_err(),
        artifacts.put(&[entry("b", Kind::Index)]).unwrap_err(),
    ] {
        assert!(matches!(error, ArtifactsError::Unavailable), "{error}");
    }
}

#[test]
fn a_file_in_use_is_waited_for() {
    let (_folder, artifacts) = root();
    artifacts.put(&[entry("a", Kind::Index)]).unwrap();
    let holder = Database::open(artifacts.path()).unwrap();
    let reader = std::thread::spawn({
        let artifacts = artifacts.clone();
        move || artifacts.all().map(|all| all.len())
    });
    std::thread::sleep(Duration::from_millis(200));
    assert!(!reader.is_finished());
    drop(holder);
    assert_eq!(reader.join().unwrap().unwrap(), 1);
}

#[test]
fn a_file_that_its_writer_did_not_close_is_read_and_written() {
    let (_folder, artifacts) = root();
    let first = entry("a", Kind::Index);
    artifacts.put(std::slice::from_ref(&first)).unwrap();
    // A killed writer leaves the file marked as being written.
    let holder = Database::open(artifacts.path()).unwrap();
    let left = artifacts.root.join("left");
    fs::copy(artifacts.path(), &left).unwrap();
    drop(holder);
    for writes_first in [false, true] {
        fs::copy(&left, artifacts.path()).unwrap();
        if writes_first {
            artifacts.put(&[entry("b", Kind::Index)]).unwrap();
        }
        assert_eq!(artifacts.get(&first.digest).unwrap(), first);
    }
}

#[test]
fn writers_at_the_same_time_lose_nothing() {
    let (_folder, artifacts) = root();
    let threads: Vec<_> = (0..8)
        .map(|thread| {
            let artifacts = artifacts.clone();
            std::thread::spawn(move || {
                for round in 0..4 {
                    let entry = entry(&format!("{thread} {round}"), Kind::Layer);
                    artifacts.put(&[entry]).unwrap();
                    artifacts.all().unwrap();
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(artifacts.all().unwrap().len(), 32);
}
