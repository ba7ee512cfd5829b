//! Comparison of a header with an entry.

use super::*;

#[test]
fn headers_are_compared_field_by_field() {
    let mut file = File::regular("name", b"12345");
    file.xattrs = vec![(b"user.a".to_vec(), b"1".to_vec())];
    let tar = Tar::of(std::slice::from_ref(&file), Dialect::Pax);
    let (sink, _) = scan(&tar).unwrap();
    let entry = sink.toc.get(0).unwrap();
    let bytes = &tar[..usize::try_from(entry.offset).unwrap()];
    assert_eq!(verify_header(&entry, bytes), Ok(()));
    let wrong = |entry: Entry<'_>| match verify_header(&entry, bytes) {
        Err(HeaderMismatch::Field(field)) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(wrong(Entry { size: 6, ..entry }), "size");
    assert_eq!(
        wrong(Entry {
            name: b"other",
            ..entry
        }),
        "name"
    );
    assert_eq!(
        wrong(Entry {
            link: b"other",
            ..entry
        }),
        "link name"
    );
    assert_eq!(
        wrong(Entry {
            mode: 0o4755,
            ..entry
        }),
        "mode"
    );
    assert_eq!(wrong(Entry { uid: 1, ..entry }), "uid");
    assert_eq!(wrong(Entry { gid: 1, ..entry }), "gid");
    assert_eq!(
        wrong(Entry {
            dev_minor: 1,
            ..entry
        }),
        "device number"
    );
    assert_eq!(
        wrong(Entry {
            kind: FileKind::Fifo,
            ..entry
        }),
        "type"
    );
    assert_eq!(
        wrong(Entry {
            pax: soci_ztoc::Pax::EMPTY,
            ..entry
        }),
        "extended attributes"
    );
    let later = Time { secs: 0, nanos: 1 };
    assert_eq!(
        wrong(Entry {
            mtime: later,
            ..entry
        }),
        "modification time"
    );
    // Neither the records nor the header alone are the complete header.
    assert!(matches!(
        verify_header(&entry, &bytes[..512]),
        Err(HeaderMismatch::Unreadable(None))
    ));
    let alone = &bytes[bytes.len() - 512..];
    assert!(verify_header(&entry, alone).is_err());
    let too_long = &tar[..bytes.len() + 512];
    assert!(matches!(
        verify_header(&entry, too_long),
        Err(HeaderMismatch::Length { .. })
    ));
    assert!(verify_header(&entry, &[7; 512]).is_err());
    assert!(verify_header(&entry, &[]).is_err());
}
