//! Sparse files.

use super::*;

/// A sparse file in the PAX formats, with records and stored content.
fn sparse(records: &[(&str, &str)], stored: &[u8]) -> Vec<u8> {
    let mut tar = Tar::default();
    let records: Vec<_> = records
        .iter()
        .map(|(k, v)| (k.as_bytes().to_vec(), v.as_bytes().to_vec()))
        .collect();
    tar.pax(&records);
    let mut stored_header = header(USTAR, b"stored-name", b'0', stored.len() as u64);
    stored_header.put(265, b"owner");
    stored_header.put(297, b"group");
    tar.raw(&mut stored_header, stored);
    tar.file(&File::regular("next", b"n"), Dialect::Ustar);
    tar.end()
}

#[test]
fn sparse_files_pass_with_a_warning() {
    let in_records = sparse(
        &[
            ("GNU.sparse.major", "0"),
            ("GNU.sparse.minor", "1"),
            ("GNU.sparse.name", "real"),
            ("GNU.sparse.size", "1000"),
            ("GNU.sparse.numblocks", "1"),
            ("GNU.sparse.map", "0,3"),
        ],
        b"abc",
    );
    let (sink, _) = scan(&in_records).unwrap();
    let first = sink.toc.get(0).unwrap();
    assert_eq!(
        (first.name, first.size, first.is_sparse()),
        (&b"real"[..], 1000, true)
    );
    assert_eq!(sink.data, b"abcn");
    let refused = scan_as(Policy::Unpack, &in_records).unwrap_err();
    assert!(matches!(refused, TarError::Sparse { .. }));

    let mut stored = b"1\n0\n3\n".to_vec();
    stored.resize(512, 0);
    stored.extend(b"abc");
    let in_data = sparse(
        &[
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.realsize", "9"),
        ],
        &stored,
    );
    let (sink, _) = scan(&in_data).unwrap();
    let first = sink.toc.get(0).unwrap();
    // The PAX header and its block, the file header, and the map.
    assert_eq!((first.offset, first.size), (2048, 9));
    // The strings are those of the header, even though the map follows it.
    assert_eq!(
        (first.name, first.uname),
        (&b"stored-name"[..], &b"owner"[..])
    );
    assert_eq!(first.gname, b"group");
    assert_eq!(sink.data, b"abcn");

    let built = crate::build(&in_data, Compression::Plain, 4096);
    assert_eq!(built.warnings()[0].kind, WarningKind::Sparse);
    assert!(
        scan(&sparse(&[("GNU.sparse.map", "0,3")], b"abc")).is_err(),
        "no count"
    );
    let unknown = sparse(
        &[("GNU.sparse.major", "2"), ("GNU.sparse.map", "0,3")],
        b"abc",
    );
    assert!(!scan(&unknown).unwrap().0.toc.get(0).unwrap().is_sparse());
}
