use std::io::Seek as _;

use proptest::prelude::*;

use super::*;
use crate::archive_writer::{Writer, header, octal, pax_line, write_archive};
use crate::layout::{INDEX_NAME, Layout};

fn tar(members: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (header, data) in members {
        bytes.extend_from_slice(header);
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.extend([0; 1024]);
    bytes
}

fn file_header(name: &str, size: u64) -> Vec<u8> {
    header(name, b'0', 0o644, size).to_vec()
}

fn link_header(name: &str, kind: u8, target: &str) -> Vec<u8> {
    let mut block = header(name, kind, 0o777, 0);
    block[157..157 + target.len()].copy_from_slice(target.as_bytes());
    seal(&mut block);
    block.to_vec()
}

fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum = block.iter().map(|&byte| u64::from(byte)).sum();
    octal(&mut block[148..155], sum);
}

fn opened(bytes: &[u8]) -> Result<Archive, StoreError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    Archive::open(file.path())
}

fn content(archive: &Archive, name: &str) -> Option<String> {
    let bytes = archive.read_member(name, 1000).unwrap()?;
    Some(String::from_utf8(bytes.to_vec()).unwrap())
}

#[test]
fn files_are_found_by_clean_names() {
    let long = format!("{}/{}", "d".repeat(90), "f".repeat(90));
    let mut pax = pax_line("path", &long);
    pax.extend(pax_line("size", "3"));
    let gnu = format!("{long}2\0");
    let archive = opened(&tar(&[
        (&header("blobs/", b'5', 0o755, 0), b""),
        (&file_header("./a", 3), b"one"),
        (&file_header("b//c", 0), b""),
        (&header("PaxHeaders.0/x", b'x', 0, pax.len() as u64), &pax),
        (&file_header("short", 0), b"two"),
        (
            &header("././@LongLink", b'L', 0, gnu.len() as u64),
            gnu.as_bytes(),
        ),
        (&file_header("short", 4), b"four"),
        (&file_header("/rooted", 1), b"r"),
        (&file_header("a", 5), b"later"),
    ]))
    .unwrap();
    assert_eq!(content(&archive, "a").as_deref(), Some("later"));
    assert_eq!(content(&archive, "b/c").as_deref(), Some(""));
    assert_eq!(content(&archive, &long).as_deref(), Some("two"));
    assert_eq!(
        content(&archive, &format!("{long}2")).as_deref(),
        Some("four")
    );
    assert_eq!(content(&archive, "rooted").as_deref(), Some("r"));
    assert_eq!(content(&archive, "blobs"), None);
    assert_eq!(archive.names().count(), 5);
}

#[test]
fn links_stay_inside_the_archive() {
    let archive = opened(&tar(&[
        (&file_header("d/f", 3), b"one"),
        (&link_header("hard", b'1', "d/f"), b""),
        (&link_header("d/soft", b'2', "../hard"), b""),
        (&link_header("absolute", b'2', "/etc/passwd"), b""),
        (&link_header("above", b'2', "../../etc/passwd"), b""),
        (&link_header("d/above", b'1', "../d/f"), b""),
        (&link_header("loop", b'2', "loop"), b""),
        (&file_header("../outside", 1), b"x"),
        (&file_header("d/../../outside", 1), b"x"),
    ]))
    .unwrap();
    assert_eq!(content(&archive, "hard").as_deref(), Some("one"));
    assert_eq!(content(&archive, "d/soft").as_deref(), Some("one"));
    for name in [
        "absolute",
        "above",
        "d/above",
        "loop",
        "outside",
        "../outside",
        "etc/passwd",
    ] {
        assert_eq!(content(&archive, name), None, "{name}");
    }
}

#[test]
fn a_link_in_the_place_of_a_file_hides_it() {
    let archive = opened(&tar(&[
        (&file_header("a", 3), b"one"),
        (&link_header("a", b'2', "/etc/passwd"), b""),
    ]))
    .unwrap();
    assert_eq!(content(&archive, "a"), None);
}

#[test]
fn broken_archives_are_errors() {
    let good = tar(&[(&file_header("a", 600), &[1; 600])]);
    let mut bad_sum = good.clone();
    bad_sum[0] ^= 1;
    let of_size = |size: [u8; 12]| {
        let mut block = header("a", b'0', 0, 0);
        block[124..136].copy_from_slice(&size);
        seal(&mut block);
        block
    };
    let huge = of_size(*b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff");
    let too_huge = of_size(*b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff");
    let overflow = of_size([0xbf; 12]);
    let big_meta = header("a", b'x', 0, 1 << 30);
    let mut second = vec![0; 512];
    second.extend(header("a", b'0', 0, 0));
    let bad_pax = |text: &'static [u8]| {
        let records = header("p", b'x', 0, text.len() as u64);
        tar(&[(&records, text), (&file_header("a", 0), b"")])
    };
    for (bytes, message) in [
        (
            &b"\x1f\x8b\x08 something compressed, longer than one block"[..],
            "unexpected EOF",
        ),
        (&[0x1f; 2048], "archive/tar: invalid tar header"),
        (&bad_sum, "archive/tar: invalid tar header"),
        (&good[..700], "unexpected EOF"),
        (&good[..100], "unexpected EOF"),
        (&huge, "unexpected EOF"),
        (&too_huge, "archive/tar: invalid tar header"),
        (&overflow, "archive/tar: invalid tar header"),
        (&big_meta, "archive/tar: header field too long"),
        (&second, "archive/tar: invalid tar header"),
        (&bad_pax(b"99 path=x\n"), "archive/tar: invalid tar header"),
        (&bad_pax(b"3 =\n"), "archive/tar: invalid tar header"),
        (&bad_pax(b"10 size=x\n"), "archive/tar: invalid tar header"),
    ] {
        assert_eq!(opened(bytes).unwrap_err().to_string(), message, "{bytes:?}");
    }
}

#[test]
fn sparse_files_are_refused() {
    let mut pax = pax_line("GNU.sparse.major", "1");
    pax.extend(pax_line("GNU.sparse.minor", "0"));
    let records = header("p", b'x', 0, pax.len() as u64);
    for sparse in [
        tar(&[(&header("a", b'S', 0, 0), b"")]),
        tar(&[(&records, &pax), (&file_header("a", 0), b"")]),
    ] {
        let error = opened(&sparse).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a sparse file in the archive of an image"
        );
    }
}

#[test]
fn content_is_skipped_however_large_it_is() {
    const LARGE: u64 = 9 << 30;
    let pax = pax_line("size", &LARGE.to_string());
    let mut bytes = header("p", b'x', 0, pax.len() as u64).to_vec();
    bytes.extend(&pax);
    bytes.resize(1024, 0);
    bytes.extend(header("large", b'0', 0o644, 0));
    let mut file = tempfile::tempfile().unwrap();
    let behind = tar(&[(&file_header("behind", 3), b"one")]);
    file.write_all_at(&bytes, 0).unwrap();
    file.write_all_at(&behind, bytes.len() as u64 + LARGE)
        .unwrap();
    file.rewind().unwrap();
    let cut = file.try_clone().unwrap();
    let archive = Archive::of(file, Path::new("large.tar")).unwrap();
    assert_eq!(archive.member("large").unwrap().size, LARGE);
    assert_eq!(content(&archive, "behind").as_deref(), Some("one"));
    cut.set_len(bytes.len() as u64 + LARGE - 1).unwrap();
    let error = Archive::of(cut, Path::new("large.tar")).unwrap_err();
    assert_eq!(error.to_string(), "unexpected EOF");
}

#[test]
fn names_are_limited_in_total() {
    let mut found = Found {
        names: MAX_NAMES - 8,
        ..Found::default()
    };
    let mut scanner = TarScanner::new(Policy::Find);
    let archive = tar(&[
        (&link_header("1234", b'2', "5678"), b""),
        (&file_header("9", 0), b""),
    ]);
    scanner.feed(&archive[..512], &mut found).unwrap();
    assert!(!found.is_too_large);
    scanner.feed(&archive[512..], &mut found).unwrap();
    assert!(found.is_too_large && found.members.len() == 1);
}

#[test]
fn ends_that_go_accepts_are_accepted() {
    let good = tar(&[(&file_header("a", 3), b"one")]);
    for length in [515, 1024, 1536, 2048] {
        let archive = opened(&good[..length]).unwrap();
        assert_eq!(content(&archive, "a").as_deref(), Some("one"), "{length}");
    }
    assert_eq!(opened(b"").unwrap().names().count(), 0);
}

#[tokio::test]
async fn what_is_written_is_read_back_and_has_a_fixed_form() {
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout::create(folder.path()).unwrap();
    let mut blobs = BTreeMap::new();
    let long: Digest = format!("sha512:{}", sha512(b"three")).parse().unwrap();
    for (bytes, digest) in [
        (&b"one"[..], Digest::sha256(b"one")),
        (&[7; 5000], Digest::sha256(&[7; 5000])),
        (b"three", long),
    ] {
        let descriptor = Descriptor::new("t", digest, bytes.len() as u64);
        layout
            .put(&descriptor, Content::Bytes(Bytes::copy_from_slice(bytes)))
            .await
            .unwrap();
        blobs.insert(digest, descriptor.size);
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut out = write_archive(file.reopen().unwrap(), &layout, &blobs, b"{}", |_| {})
        .await
        .unwrap();
    assert_eq!(out.stream_position().unwrap() % 512, 0);
    let archive = Archive::open(file.path()).unwrap();
    for (digest, size) in &blobs {
        assert_eq!(archive.size(digest).await.unwrap(), Some(*size));
        assert_eq!(
            archive.read(digest, 5000).await.unwrap(),
            layout.read(digest, 5000).await.unwrap()
        );
    }
    assert_eq!(content(&archive, INDEX_NAME).as_deref(), Some("{}"));
    let names: Vec<&str> = archive.names().collect();
    assert!(names.is_sorted() && names.len() == 5, "{names:?}");
    let missing = Digest::sha256(b"missing");
    assert!(archive.open(&missing).await.unwrap_err().is_not_found());
    let put = archive
        .put(&Descriptor::of("t", b"x"), Content::Bytes(Bytes::new()))
        .await;
    assert!(matches!(put, Err(StoreError::ReadOnly(_))));
}

fn sha512(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    let bytes = sha2::Sha512::digest(bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_blob_of_another_size_spoils_no_archive() {
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout::create(folder.path()).unwrap();
    let descriptor = Descriptor::of("t", b"one");
    layout
        .put(&descriptor, Content::Bytes(Bytes::from_static(b"one")))
        .await
        .unwrap();
    let blobs = [(descriptor.digest, 4)].into();
    let written = write_archive(Vec::new(), &layout, &blobs, b"{}", |_| {}).await;
    assert!(matches!(
        written,
        Err(StoreError::Size {
            expected: 4,
            actual: 3,
            ..
        })
    ));
}

#[test]
fn sizes_beyond_eight_gib_need_an_extended_header() {
    let mut writer = Writer { out: Vec::new() };
    writer.extended("blobs/x", 1 << 33).unwrap();
    writer
        .write(&header("blobs/x", b'0', 0o444, 1 << 33))
        .unwrap();
    assert_eq!(writer.out.len(), 1536);
    assert_eq!(&writer.out[..20], b"blobs/PaxHeaders.0/x");
    assert!(writer.out[512..].starts_with(b"19 size=8589934592\n\0"));
    assert_eq!(&writer.out[1024 + 124..1024 + 136], b"00000000000\0");
    assert_eq!(pax_line("path", &"x".repeat(90)).len(), 99);
    assert_eq!(pax_line("path", &"x".repeat(91)).len(), 101);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Arbitrary bytes parse as an archive or fail, and every extent lies within the file.
    #[test]
    fn prop_any_bytes_are_an_archive_or_an_error(
        names in prop::collection::vec("[a-c./]{1,12}", 1..6),
        kinds in prop::collection::vec(prop::sample::select(&b"0127xLKg5S"[..]), 6),
        flips in prop::collection::vec((0_usize..8000, any::<u8>()), 0..4),
        cut in 0_usize..8000,
    ) {
        let mut bytes = Vec::new();
        for (name, kind) in names.iter().zip(kinds) {
            let data = pax_line("path", name);
            let size = if matches!(kind, b'1' | b'2' | b'5') { 0 } else { data.len() as u64 };
            let mut block = header(name, kind, 0o644, size);
            block[157..157 + name.len()].copy_from_slice(name.as_bytes());
            seal(&mut block);
            bytes.extend(block);
            if size > 0 {
                bytes.extend(data);
            }
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        }
        bytes.extend([0; 1024]);
        for (at, value) in flips {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= value;
            }
        }
        bytes.truncate(cut.max(512));
        if let Ok(archive) = opened(&bytes) {
            for name in archive.names().map(str::to_owned).collect::<Vec<_>>() {
                prop_assert!(name.split('/').all(|part| !matches!(part, "" | "." | "..")), "{name}");
                let read = archive.read_member(&name, 1 << 20).unwrap().unwrap();
                prop_assert!(read.len() <= bytes.len());
            }
        }
    }
}
