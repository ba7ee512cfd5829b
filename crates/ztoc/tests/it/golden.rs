//! Golden vectors of the format specification (appendix A), built from their descriptions.

use soci_ztoc::{Compression, FileKind, GzipTable, SpanId, Time, Ztoc};

use crate::archive::{Dialect, File, Tar};
use crate::squeeze::{Fields, Make, member};
use crate::{build, sha256, ztoc};

fn hello() -> Vec<u8> {
    let tar = Tar::of(
        &[File::regular("hello.txt", b"hello world\n")],
        Dialect::Ustar,
    );
    with_zero_padding(tar)
}

/// The vectors pad with zeros. The test writer deliberately pads with other bytes.
fn with_zero_padding(mut tar: Vec<u8>) -> Vec<u8> {
    let mut at = 0;
    while at + 512 <= tar.len() && tar[at..at + 512].iter().any(|&b| b != 0) {
        let size = std::str::from_utf8(&tar[at + 124..at + 135]).unwrap();
        let size = usize::from_str_radix(size, 8).unwrap();
        let end = at + 512 + size;
        at = end.next_multiple_of(512);
        tar[end..at].fill(0);
    }
    tar
}

fn stored(tar: &[u8]) -> Vec<u8> {
    member(tar, &Make::Stored, &Fields::default())
}

fn checkpoints(bytes: &[u8]) -> Vec<(u64, u64, u8)> {
    let parsed = Ztoc::parse(bytes).unwrap();
    let table = GzipTable::parse(parsed.checkpoint_table()).unwrap();
    let row = |i| {
        table
            .row(i)
            .map(|row| (row.compressed, row.uncompressed, row.bits))
    };
    (0..table.len()).filter_map(row).collect()
}

fn span_digests(bytes: &[u8]) -> Vec<String> {
    let spans = Ztoc::parse(bytes).unwrap().spans();
    let hex = |id| {
        spans
            .digest(id)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect()
    };
    spans.ids().map(hex).collect()
}

#[test]
fn a2_one_small_file() {
    let tar = hello();
    assert_eq!(
        sha256(&tar),
        "14b9e3ce79a7ed19aea622afea090892b63f13dd3fe8478e8325a6f2afa155ac"
    );
    let gz = stored(&tar);
    assert_eq!(
        sha256(&gz),
        "2562b8e1901461f31523267bc0a4269ccc575e4d0ee7d8ab5a7c2d1ef3f4a2b0"
    );
    let bytes = ztoc(&gz, Compression::Gzip, 4_194_304);
    assert_eq!(bytes.len(), 33_200);
    assert_eq!(
        sha256(&bytes),
        "728f97ef3a6edeea755b7413980012f66eae112977b96887d51a04bb472901c0"
    );
    assert_eq!(checkpoints(&bytes), [(10, 0, 0)]);
    assert_eq!(
        span_digests(&bytes),
        ["4c6a41fd9db699cfb9270a9fbfdb564f880e00d763537c508938f62f51b5dbae"]
    );
    let parsed = Ztoc::parse(&bytes).unwrap();
    let file = parsed.entry(0).unwrap();
    assert_eq!(
        (file.offset, file.size, file.kind),
        (512, 12, FileKind::Regular)
    );
    assert_eq!(file.mtime, Time { secs: 0, nanos: 0 });
    assert_eq!(
        (parsed.version(), parsed.tool()),
        (&b"0.9"[..], &b"AWS SOCI CLI v0.2"[..])
    );

    let bytes = ztoc(&tar, Compression::Plain, 4_194_304);
    assert_eq!(bytes.len(), 456);
    assert_eq!(
        sha256(&bytes),
        "c4e375d4802d684ec723c56f7f792a583f93f593c704432b176b9ac7c7b0d8af"
    );
}

fn vector_b() -> Vec<u8> {
    let mut tar = Tar::default();
    let mut dir = File::regular("d/", b"");
    (dir.kind, dir.mode) = (FileKind::Directory, 0o755);
    tar.file(&dir, Dialect::Ustar);
    let content: Vec<u8> = (0..300_000u32).map(|i| (7 * i + i / 256) as u8).collect();
    // The prefix field is empty in the vectors, so the writer must not split names: use its GNU
    // names with the other magic.
    let plain = |tar: &mut Tar, file: &File| {
        let mut header = crate::archive::Header::new(
            b"ustar\x0000",
            &file.name,
            if file.kind == FileKind::Symlink {
                b'2'
            } else {
                b'0'
            },
            file.content.len() as u64,
        );
        header.number(100, 8, file.mode);
        header.number(136, 12, file.mtime.secs);
        header.put(157, &file.link);
        tar.raw(&mut header, &file.content);
    };
    plain(&mut tar, &File::regular("d/big.bin", &content));
    let mut link = File::regular("d/ln", b"");
    (link.kind, link.mode, link.link) = (FileKind::Symlink, 0o777, b"big.bin".to_vec());
    plain(&mut tar, &link);
    tar.pax(&[
        (b"SCHILY.xattr.user.k".to_vec(), b"v".to_vec()),
        (b"mtime".to_vec(), b"1.5".to_vec()),
    ]);
    let mut last = File::regular("d/x", b"X");
    last.mtime.secs = 1;
    plain(&mut tar, &last);
    with_zero_padding(tar.end())
}

#[test]
fn a3_several_spans_and_pax_records() {
    let tar = vector_b();
    assert_eq!(tar.len(), 304_640);
    assert_eq!(
        sha256(&tar),
        "ed5ace0fd6282ca3ea7248d22baba480c136b5397ffc37afefd428e19f41b563"
    );
    let gz = stored(&tar);
    assert_eq!(gz.len(), 304_683);
    assert_eq!(
        sha256(&gz),
        "e4d557ca18e5a62ce520da23e4c844ecb561f5bc1db88aeb046e8d0d43da456b"
    );
    let bytes = ztoc(&gz, Compression::Gzip, 100_000);
    assert_eq!(bytes.len(), 99_504);
    assert_eq!(
        sha256(&bytes),
        "9b9a63aa9321f155ec9ad65446bd1440c6d2f54ae5bb0780e2c7acfcb57a7517"
    );
    assert_eq!(
        checkpoints(&bytes),
        [(10, 0, 0), (131_090, 131_070, 0), (262_170, 262_140, 0)]
    );
    assert_eq!(
        span_digests(&bytes),
        [
            "8f27c6c8a7e092df3c8a964d7bbbd99cd731c27e74ff3ae608c3847c523ea49a",
            "64d76e8f81fd3f9c19febb9c2ef2e37b98895097163afa2f47db4f4afe99062f",
            "8c8d94a81a13cc48dacc7a0c5e520a63b6a018eb3ff8ba2796f63c26003cb67a"
        ]
    );
    let parsed = Ztoc::parse(&bytes).unwrap();
    let extents: Vec<_> = parsed.entries().map(|e| (e.offset, e.size)).collect();
    assert_eq!(
        extents,
        [(512, 0), (1024, 300_000), (301_568, 0), (303_104, 1)]
    );
    let last = parsed.entry(3).unwrap();
    assert_eq!(last.header(), 301_568..303_104);
    assert_eq!(
        last.mtime,
        Time {
            secs: 1,
            nanos: 500_000_000
        }
    );
    assert_eq!(last.pax.iter().count(), 2);
    assert_eq!(
        last.xattrs().collect::<Vec<_>>(),
        [(&b"user.k"[..], &b"v"[..])]
    );
    assert_eq!(parsed.spans().archive_size(), 304_640);

    let bytes = ztoc(&tar, Compression::Plain, 100_000);
    assert_eq!(bytes.len(), 1272);
    assert_eq!(
        sha256(&bytes),
        "8d3c66692dac83b1e65fe4bf36e43b4188441cd6ce0052d72df1e7e0ba2a3e59"
    );
    assert_eq!(Ztoc::parse(&bytes).unwrap().spans().len(), 4);
}

#[test]
fn a4_checkpoints_inside_bytes() {
    let gz = base64(
        "H4sIAAAAAAAA/8pIzcnJ1yupKGGgHTAAAjMTEzANBOi0gYGhCYINEjc0NAAqVzBgoAMoLS5JLAJaTw1PIntuiACAAMoAxb9CeX5R\
         TgoXwygYcQAggEbByAYAATYKRjYAAPJemSwACAAA",
    );
    assert_eq!(gz.len(), 105);
    assert_eq!(
        sha256(&gz),
        "1891fc8e73e3bcb20e4b47c000d60d5a43aceb5c0737b8628f425e72bb5e351c"
    );
    let bytes = ztoc(&gz, Compression::Gzip, 0);
    assert_eq!(
        checkpoints(&bytes),
        [(10, 0, 0), (66, 512, 2), (84, 1024, 4), (90, 1536, 1)]
    );
    assert_eq!(bytes.len(), 131_800);
    assert_eq!(
        sha256(&bytes),
        "52f55f587df68b775169d0aa566fd0f336e22d965e5fdca48d462ec1b9b487d0"
    );
    let digests: Vec<_> = span_digests(&bytes)
        .iter()
        .map(|d| d[..8].to_owned())
        .collect();
    assert_eq!(digests, ["94ba75a8", "7a71372f", "39b671a3", "b25260bf"]);
    let bytes = ztoc(&gz, Compression::Gzip, 600);
    assert_eq!(checkpoints(&bytes), [(10, 0, 0), (84, 1024, 4)]);
    assert_eq!(bytes.len(), 66_064);
    assert_eq!(
        sha256(&bytes),
        "533319a2afd786232be1dad9fd23e41b8ab2731aeeb366ae70e8ee1fb3b78e08"
    );
}

#[test]
fn a6_members() {
    let tar = hello();
    let empty_first = [stored(b""), stored(&tar)].concat();
    let bytes = ztoc(&empty_first, Compression::Gzip, 4_194_304);
    // Two candidates without output, one after each header.
    let second = stored(b"").len() as u64 + 10;
    assert_eq!(checkpoints(&bytes), [(10, 0, 0), (second, 0, 0)]);
    let parsed = Ztoc::parse(&bytes).unwrap();
    assert_eq!(parsed.spans().covering(0..10), 1..2);

    let (first, second) = tar.split_at(1024);
    let halves = [stored(first), stored(second)].concat();
    let bytes = ztoc(&halves, Compression::Gzip, 1000);
    assert_eq!(
        checkpoints(&bytes),
        [(10, 0, 0), (stored(first).len() as u64 + 10, 1024, 0)]
    );
    let spans = build(&halves, Compression::Gzip, 1000).spans();
    assert_eq!(spans.uncompressed(SpanId(0)), 0..1024);
}

fn base64(text: &str) -> Vec<u8> {
    let value = |c| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let mut out = Vec::new();
    for group in text.trim_end_matches('=').as_bytes().chunks(4) {
        let bits = group
            .iter()
            .fold(0u32, |bits, &c| bits << 6 | u32::from(value(c)));
        let bits = bits << (6 * (4 - group.len()));
        out.extend(&bits.to_be_bytes()[1..group.len()]);
    }
    out
}
