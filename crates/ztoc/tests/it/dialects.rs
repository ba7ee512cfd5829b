//! Tar dialects and their corner cases, as Go's reader handles them.

use soci_ztoc::{
    BuildError, BuildOptions, Builder, Compression, Entry, FileKind, HeaderMismatch, Policy,
    TarEnd, TarError, TarScanner, TarSink, Time, Toc, WarningKind, Ztoc, verify_header,
};

use crate::archive::{Dialect, File, Header, Tar, assert_same, record};

mod compared;
mod global;
mod sparse;

#[derive(Debug, Default)]
struct Sink {
    toc: Toc,
    heads: Vec<u8>,
    data: Vec<u8>,
}

impl TarSink for Sink {
    fn head(&mut self, _: u64, bytes: &[u8]) {
        self.heads.extend(bytes);
    }

    fn entry(&mut self, entry: &Entry<'_>) {
        self.toc.push(entry);
    }

    fn data(&mut self, _: u64, bytes: &[u8]) {
        self.data.extend(bytes);
    }
}

fn scan_as(policy: Policy, tar: &[u8]) -> Result<(Sink, TarEnd), TarError> {
    let mut sink = Sink::default();
    let mut scanner = TarScanner::new(policy);
    scanner.feed(tar, &mut sink)?;
    Ok((sink, scanner.finish()?))
}

fn scan(tar: &[u8]) -> Result<(Sink, TarEnd), TarError> {
    scan_as(Policy::Ztoc, tar)
}

fn names(tar: &[u8]) -> Vec<String> {
    let (sink, _) = scan(tar).unwrap();
    sink.toc
        .entries()
        .map(|e| String::from_utf8_lossy(e.name).into_owned())
        .collect()
}

fn header(magic: &[u8; 8], name: &[u8], flag: u8, size: u64) -> Header {
    Header::new(magic, name, flag, size)
}

const USTAR: &[u8; 8] = b"ustar\x0000";
const GNU: &[u8; 8] = b"ustar  \0";
const V7: &[u8; 8] = &[0; 8];

/// An archive of one header without content.
fn one(mut header: Header) -> Vec<u8> {
    let mut tar = Tar::default();
    tar.raw(&mut header, b"");
    tar.end()
}

#[test]
fn every_dialect_says_what_it_can() {
    let mut file = File::regular("directory/a name \u{fc}ber all", b"content");
    file.uid = 5_000_000;
    file.gid = 4_294_967_295;
    file.uname = b"owner".to_vec();
    file.gname = b"\xff\xfe".to_vec();
    file.mode = 0o6755;
    file.mtime = Time {
        secs: -5,
        nanos: 250_000_000,
    };
    file.dev = (8, 1);
    file.xattrs = vec![
        (b"security.capability".to_vec(), vec![0, 1, 2, 0xff]),
        (b"user.empty".to_vec(), Vec::new()),
    ];
    for dialect in [Dialect::V7, Dialect::Ustar, Dialect::Pax, Dialect::Gnu] {
        let file = file.clone().limited_to(dialect);
        let (sink, end) = scan(&Tar::of(std::slice::from_ref(&file), dialect)).unwrap();
        assert_eq!(end.entries, 1);
        assert_same(&sink.toc.get(0).unwrap(), &file);
        assert_eq!(sink.data, b"content");
    }
}

#[test]
fn type_flags() {
    let kind = |flag, name: &[u8]| {
        let (sink, _) = scan(&one(header(USTAR, name, flag, 0)))?;
        Ok::<_, TarError>(sink.toc.get(0).unwrap().kind)
    };
    assert_eq!(kind(b'0', b"f"), Ok(FileKind::Regular));
    assert_eq!(kind(b'0', b"d/"), Ok(FileKind::Regular));
    assert_eq!(kind(0, b"f"), Ok(FileKind::Regular));
    assert_eq!(kind(0, b"d/"), Ok(FileKind::Directory));
    assert_eq!(kind(b'1', b"f"), Ok(FileKind::Hardlink));
    assert_eq!(kind(b'2', b"f"), Ok(FileKind::Symlink));
    assert_eq!(kind(b'3', b"f"), Ok(FileKind::Char));
    assert_eq!(kind(b'4', b"f"), Ok(FileKind::Block));
    assert_eq!(kind(b'5', b"f"), Ok(FileKind::Directory));
    assert_eq!(kind(b'6', b"f"), Ok(FileKind::Fifo));
    for flag in [b'7', b'S', b'V', b'D', b'9', 0xff] {
        let error = kind(flag, b"name").unwrap_err();
        assert_eq!(
            error,
            TarError::Unsupported {
                flag,
                name: b"name".to_vec()
            }
        );
    }
    let text = kind(b'7', b"name").unwrap_err().to_string();
    assert_eq!(text, "unsupported input tar entry '7' (name)");
}

#[test]
fn long_names_and_pax_names() {
    let mut tar = Tar::default();
    tar.meta(b'L', b"././@LongLink", b"first\0rest");
    tar.meta(b'K', b"././@LongLink", b"target");
    tar.pax(&[
        (b"path".to_vec(), b"pax".to_vec()),
        (b"linkpath".to_vec(), b"pax-link".to_vec()),
    ]);
    tar.raw(&mut header(GNU, b"short", b'2', 0), b"");
    tar.pax(&[
        (b"path".to_vec(), b"one".to_vec()),
        (b"a".to_vec(), b"b".to_vec()),
    ]);
    tar.pax(&[
        (b"linkpath".to_vec(), b"two".to_vec()),
        (b"path".to_vec(), Vec::new()),
    ]);
    tar.raw(&mut header(USTAR, b"short", b'2', 0), b"");
    tar.raw(&mut header(USTAR, b"plain", b'0', 0), b"");
    let (sink, _) = scan(&tar.end()).unwrap();
    let entry = |i| sink.toc.get(i).unwrap();
    assert_eq!(
        (entry(0).name, entry(0).link),
        (&b"first"[..], &b"target"[..])
    );
    assert_eq!(entry(0).pax.get(b"path"), Some(&b"pax"[..]));
    // The second PAX header replaces the first. An empty value keeps the value in the header.
    assert_eq!((entry(1).name, entry(1).link), (&b"short"[..], &b"two"[..]));
    assert_eq!(entry(1).pax.get(b"path"), Some(&b""[..]));
    assert_eq!(entry(1).pax.get(b"a"), None);
    assert!(entry(2).pax.is_empty());
    assert_eq!(
        entry(2).header(),
        sink.toc.get(1).unwrap().offset..entry(2).offset
    );
}

#[test]
fn prefixes_by_dialect() {
    let with_prefix = |magic| {
        let mut header = header(magic, b"name", b'0', 0);
        header.put(345, b"prefix");
        header
    };
    assert_eq!(names(&one(with_prefix(USTAR))), ["prefix/name"]);
    assert_eq!(names(&one(with_prefix(V7))), ["name"]);
    // ASCII where GNU has numbers is a prefix: a bug of old tar writers.
    assert_eq!(names(&one(with_prefix(GNU))), ["prefix/name"]);
    let mut times = header(GNU, b"name", b'0', 0);
    times.octal(345, 12, 1234);
    assert_eq!(names(&one(times)), ["name"]);
    let mut star = with_prefix(USTAR);
    star.octal(476, 12, 1);
    star.octal(488, 12, 1);
    star.put(508, b"tar\0");
    assert_eq!(names(&one(star.clone())), ["prefix/name"]);
    star.put(476, b"x");
    assert!(scan(&one(star)).is_err());
}

#[test]
fn checksums_may_be_signed_and_must_fit() {
    let mut block = header(USTAR, b"\xff\xfe", b'0', 0);
    let unsigned = block.finish();
    let signed: i32 = {
        let mut sum = 0;
        for (i, &b) in unsigned.iter().enumerate() {
            sum += if (148..156).contains(&i) {
                32
            } else {
                i32::from(b as i8)
            };
        }
        sum
    };
    let mut tar = unsigned.to_vec();
    tar[148..156].copy_from_slice(format!("{signed:06o}\0 ").as_bytes());
    assert_eq!(scan(&tar).unwrap().1.entries, 1);
    tar[148..154].copy_from_slice(b"000001");
    assert_eq!(
        scan(&tar).unwrap_err(),
        TarError::InvalidHeader { offset: 0 }
    );
}

#[test]
fn how_an_archive_may_end() {
    let mut tar = Tar::default();
    tar.file(&File::regular("f", b"12345"), Dialect::Ustar);
    let whole = tar.end();
    let size = |bytes: &[u8]| scan(bytes).map(|(_, end)| end.archive_size);
    assert_eq!(size(&whole), Ok(2048));
    assert_eq!(size(&[&whole[..], &[1; 5000]].concat()), Ok(2048));
    assert_eq!(size(&whole[..1536]), Ok(1536), "one zero block");
    assert_eq!(size(&whole[..1024]), Ok(1024), "no end marker");
    assert_eq!(size(&whole[..517]), Ok(517), "inside the padding");
    assert_eq!(size(&[]), Ok(0));
    for len in [516, 512, 300, 1, 1025, 1537] {
        let error = size(&whole[..len]).unwrap_err();
        assert_eq!(
            error,
            TarError::UnexpectedEof { offset: len as u64 },
            "{len}"
        );
    }
    let mut odd = whole[..1536].to_vec();
    odd.extend([1; 512]);
    assert_eq!(size(&odd), Err(TarError::InvalidHeader { offset: 1536 }));
}

#[test]
fn pax_numbers_must_parse() {
    let with = |key: &str, value: &str| {
        let mut tar = Tar::default();
        tar.pax(&[(key.into(), value.into())]);
        tar.raw(&mut header(USTAR, b"f", b'0', 0), b"");
        scan(&tar.end()).map(|(sink, _)| {
            let entry = sink.toc.get(0).unwrap();
            (entry.uid, entry.mtime)
        })
    };
    assert_eq!(with("uid", "4294967296").unwrap().0, 0);
    assert_eq!(with("uid", "-1").unwrap().0, u32::MAX);
    assert_eq!(
        with("mtime", "-1.5").unwrap().1,
        Time {
            secs: -2,
            nanos: 500_000_000
        }
    );
    for (key, value) in [
        ("uid", "x"),
        ("gid", "1.5"),
        ("size", "-1"),
        ("mtime", "now"),
        ("atime", ""),
        ("ctime", "1.x"),
    ] {
        let is_refused = with(key, value).is_err();
        assert_eq!(is_refused, !value.is_empty(), "{key}={value}");
    }
}

#[test]
fn meta_payloads_end_at_one_mebibyte() {
    let long = |len: usize| {
        let mut tar = Tar::default();
        tar.meta(b'L', b"././@LongLink", &vec![b'n'; len]);
        tar.raw(&mut header(GNU, b"f", b'0', 0), b"");
        scan(&tar.end()).map(|(sink, _)| sink.toc.get(0).unwrap().name.len())
    };
    assert_eq!(long(1 << 20), Ok(1 << 20));
    assert_eq!(
        long((1 << 20) + 1),
        Err(TarError::FieldTooLong { offset: 0 })
    );
}

#[test]
fn a_negative_size_matters_where_content_follows() {
    let with = |flag| {
        let mut header = header(GNU, b"f", flag, 0);
        header.number(124, 12, -1);
        scan(&one(header)).map(|(sink, _)| sink.toc.get(0).unwrap().size)
    };
    assert_eq!(with(b'5'), Ok(u64::MAX));
    assert_eq!(with(b'0'), Err(TarError::InvalidHeader { offset: 0 }));
}

#[test]
fn sizes_without_content_keep_the_references_bytes_and_warn() {
    let mut tar = Tar::default();
    tar.raw(&mut header(USTAR, b"link", b'1', 100), b"");
    tar.file(&File::regular("next", b"n"), Dialect::Ustar);
    let tar = tar.end();
    let mut built = crate::build(&tar, Compression::Plain, 4096);
    assert_eq!(built.warnings().len(), 1);
    assert_eq!(
        built.warnings()[0].kind,
        WarningKind::SizeWithoutContent { size: 100 }
    );
    let mut sizes = Vec::new();
    built.each_entry(|entry| sizes.push(entry.size)).unwrap();
    assert_eq!((sizes, built.entry_count()), (vec![100, 1], 2));
    let bytes = crate::ztoc(&tar, Compression::Plain, 4096);
    let parsed = Ztoc::parse(&bytes).unwrap();
    assert!(parsed.check_servable().is_err());
    // The header range of the next file is wrong, as in the reference.
    let next = parsed.entry(1).unwrap();
    assert_eq!(next.header(), 1024..1024);
    assert!(verify_header(&next, &tar[1024..1024]).is_err());

    // A size that includes the next header makes a zTOC that cannot be parsed.
    let mut tar = Tar::default();
    tar.raw(&mut header(USTAR, b"link", b'1', 5000), b"");
    tar.file(&File::regular("next", b"n"), Dialect::Ustar);
    let bytes = crate::ztoc(&tar.end(), Compression::Plain, 4096);
    assert!(
        Ztoc::parse(&bytes)
            .unwrap_err()
            .to_string()
            .starts_with("invalid toc entry 1 (next)")
    );
}

#[test]
fn span_sizes_out_of_range_are_errors() {
    let build = |span_size, compression| {
        let options = BuildOptions {
            span_size,
            ..BuildOptions::default()
        };
        Builder::new(options)
            .build(&[][..], compression)
            .unwrap_err()
    };
    assert!(matches!(
        build(0, Compression::Plain),
        BuildError::SpanSize(0)
    ));
    assert!(matches!(
        build(1 << 63, Compression::Gzip),
        BuildError::SpanSize(_)
    ));
}

#[test]
fn an_empty_plain_layer_has_no_spans() {
    let bytes = crate::ztoc(&[], Compression::Plain, 4096);
    let parsed = Ztoc::parse(&bytes).unwrap();
    assert_eq!((parsed.spans().len(), parsed.entry_count()), (0, 0));
    assert_eq!(parsed.spans().covering(0..10), 0..0);
}
