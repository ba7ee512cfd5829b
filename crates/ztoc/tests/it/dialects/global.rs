//! Global PAX headers.

use super::*;

#[test]
fn a_global_header_ends_a_ztoc_but_not_unpacking() {
    let mut tar = Tar::default();
    tar.pax(&[(b"path".to_vec(), b"lost".to_vec())]);
    tar.meta(b'g', b"global", &record(b"comment", b"hello"));
    tar.file(&File::regular("kept", b"x"), Dialect::Ustar);
    let tar = tar.end();
    let error = scan(&tar).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("unsupported input tar entry 'g'")
    );
    let (sink, _) = scan_as(Policy::Unpack, &tar).unwrap();
    assert_eq!(sink.toc.get(0).unwrap().name, b"kept");
    assert_eq!([sink.heads.len(), sink.data.len()], [tar.len() - 1, 1]);
}

#[test]
fn a_global_header_whose_name_unpacking_acts_on_is_refused() {
    let scanned = |before: &[(&[u8], u8, &[u8])], name: &[u8]| {
        let mut tar = Tar::default();
        for (name, kind, link) in before {
            let mut header = header(USTAR, name, *kind, 0);
            header.put(157, link);
            tar.raw(&mut header, b"");
        }
        tar.meta(b'g', name, &record(b"comment", b"hello"));
        scan_as(Policy::Unpack, &tar.end()).map(drop)
    };
    let file = |name: &'static [u8]| (name, b'0', &b""[..]);
    let ignored: [(&[_], &[u8]); 7] = [
        (&[], b"pax_global_header"),
        (&[], b"d/"),
        (&[file(b"d/g"), file(b"gg"), file(b"x/../d/y")], b"g"),
        (&[file(b"d/x")], b"x"),
        (&[file(b"a")], b"./"),
        (&[file(b"a")], b".."),
        (&[file(b"a")], b"/b/../c"),
    ];
    for (before, name) in ignored {
        let name_text = name.escape_ascii();
        assert_eq!(scanned(before, name), Ok(()), "{name_text}: {before:?}");
    }
    let refused: [(&[_], &[u8]); 8] = [
        (&[], b"d/g"),
        (&[], b".wh.g"),
        (&[], b".wh..wh..opq"),
        (&[file(b"g")], b"g"),
        (&[file(b"/x/../g")], b"./g"),
        (&[file(b"g/below")], b"g"),
        (&[file(b".wh.g")], b"g"),
        (&[(b"l", b'2', b"../g/below")], b"g"),
    ];
    for (before, name) in refused {
        let wanted = Err(TarError::Global {
            name: name.to_vec(),
        });
        let name_text = name.escape_ascii();
        assert_eq!(scanned(before, name), wanted, "{name_text}: {before:?}");
    }
    let many: Vec<Vec<u8>> = (0..5000).map(|n| format!("f{n}").into_bytes()).collect();
    let many: Vec<(&[u8], u8, &[u8])> = many
        .iter()
        .map(|name| (&name[..], b'0', &b""[..]))
        .collect();
    assert!(scanned(&many, b"g").is_err());
}
