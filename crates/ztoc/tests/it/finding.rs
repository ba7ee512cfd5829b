//! Finds the files of an archive without reading their content.

use soci_ztoc::{Entry, FileKind, Policy, TarError, TarScanner, TarSink};

use crate::archive::{Dialect, File, Header, Tar, record};

const USTAR: &[u8; 8] = b"ustar\x0000";

/// Name, kind, offset and size of each entry.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found(Vec<(Vec<u8>, FileKind, u64, u64)>);

impl TarSink for Found {
    fn entry(&mut self, entry: &Entry<'_>) {
        let found = (entry.name.to_vec(), entry.kind, entry.offset, entry.size);
        self.0.push(found);
    }
}

fn read(tar: &[u8]) -> Result<Found, TarError> {
    let mut found = Found::default();
    let mut scanner = TarScanner::new(Policy::Find);
    scanner.feed(tar, &mut found)?;
    scanner.finish()?;
    Ok(found)
}

/// Reads portions of this size, but skips content.
fn sought(tar: &[u8], portion: usize) -> Result<(Found, usize), TarError> {
    let (mut found, mut fed) = (Found::default(), 0);
    let mut scanner = TarScanner::new(Policy::Find);
    while !scanner.has_ended() {
        scanner.skip_content();
        let at = scanner.position() as usize;
        let rest = tar.get(at..).unwrap_or_default();
        let portion = &rest[..rest.len().min(portion)];
        if portion.is_empty() {
            break;
        }
        fed += portion.len();
        scanner.feed(portion, &mut found)?;
    }
    scanner.finish()?;
    Ok((found, fed))
}

fn one(flag: u8) -> Vec<u8> {
    let mut tar = Tar::default();
    tar.raw(&mut Header::new(USTAR, b"name", flag, 3), b"abc");
    tar.file(&File::regular("next", b"x"), Dialect::Ustar);
    tar.end()
}

#[test]
fn skipping_content_finds_the_same_entries() {
    let long = "long/".repeat(60);
    let sizes = [0, 1, 511, 512, 513, 100_000];
    for dialect in [Dialect::Ustar, Dialect::Pax, Dialect::Gnu] {
        let file = |(number, &size): (usize, &usize)| {
            let long = if dialect == Dialect::Ustar { "" } else { &long };
            File::regular(&format!("{long}{number}"), &vec![1; size])
        };
        let files: Vec<File> = sizes.iter().enumerate().map(file).collect();
        let tar = Tar::of(&files, dialect);
        let whole = read(&tar).unwrap();
        assert_eq!(whole.0.len(), sizes.len());
        for portion in [1, 500, 512, 4096] {
            let (found, fed) = sought(&tar, portion).unwrap();
            assert_eq!(found, whole, "{dialect:?}, {portion}");
            assert!(portion > 512 || fed < 20_000, "{fed}");
        }
    }
}

#[test]
fn content_that_is_left_is_known() {
    let mut tar = Tar::default();
    tar.file(&File::regular("a", &[1; 700]), Dialect::Ustar);
    let tar = tar.end();
    let mut scanner = TarScanner::new(Policy::Find);
    let mut found = Found::default();
    assert_eq!(scanner.content_left(), 0);
    for (end, left) in [(512, 700), (1000, 212), (1212, 0)] {
        let start = scanner.position() as usize;
        scanner.feed(&tar[start..end], &mut found).unwrap();
        assert_eq!(scanner.content_left(), left);
    }
    scanner.skip_content();
    assert_eq!(scanner.position(), 1212, "there is no content to skip");
}

#[test]
fn other_types_of_entries_are_skipped_with_their_content() {
    let names = |flag| {
        let found = read(&one(flag)).unwrap().0;
        found.into_iter().map(|it| it.0).collect::<Vec<_>>()
    };
    assert_eq!(names(b'7'), [b"name", b"next"]);
    for flag in *b"VDM9\xff" {
        assert_eq!(names(flag), [b"next"], "{flag}");
    }
    let mut tar = Tar::default();
    tar.meta(b'g', b"d/.wh.global", &record(b"path", b"global"));
    tar.file(&File::regular("next", b"x"), Dialect::Ustar);
    assert_eq!(read(&tar.end()).unwrap().0[0].0, b"next");
}

#[test]
fn content_of_skipped_entries_is_not_that_of_the_entry_before() {
    #[derive(Default)]
    struct Bytes {
        heads: Vec<u8>,
        data: Vec<u8>,
    }
    impl TarSink for Bytes {
        fn head(&mut self, _: u64, bytes: &[u8]) {
            self.heads.extend(bytes);
        }
        fn entry(&mut self, _: &Entry<'_>) {}
        fn data(&mut self, _: u64, bytes: &[u8]) {
            self.data.extend(bytes);
        }
    }
    let mut tar = Tar::default();
    tar.file(&File::regular("first", b"first"), Dialect::Ustar);
    tar.raw(&mut Header::new(USTAR, b"skipped", b'V', 3), b"abc");
    tar.file(&File::regular("next", b"next"), Dialect::Ustar);
    let tar = tar.end();
    let (mut bytes, mut scanner) = (Bytes::default(), TarScanner::new(Policy::Find));
    scanner.feed(&tar, &mut bytes).unwrap();
    assert_eq!(bytes.data, b"firstnext");
    assert_eq!(bytes.heads.len() + bytes.data.len(), tar.len());
}

#[test]
fn sparse_files_are_refused() {
    let old = read(&one(b'S')).unwrap_err();
    let mut tar = Tar::default();
    let records = [("major", "1"), ("minor", "0"), ("realsize", "9")];
    let records = records.map(|(key, value)| {
        let key = format!("GNU.sparse.{key}");
        (key.into_bytes(), value.into())
    });
    tar.pax(&records);
    tar.raw(&mut Header::new(USTAR, b"name", b'0', 512), &[0; 512]);
    let new = read(&tar.end()).unwrap_err();
    for error in [old, new] {
        assert_eq!(
            error,
            TarError::Sparse {
                name: b"name".to_vec()
            }
        );
    }
}
