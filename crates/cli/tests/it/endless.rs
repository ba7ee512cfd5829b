//! Documents and images without an end.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use serde_json::json;
use soci_oci::{Digest, media_type};
use soci_registry::testing::TestRegistry;

use crate::site::{convert, converted, docker, layer, layout, publish, tagged};
use crate::soci::{blob, index, member, names, put, read_json, tar};

/// A registry that answers every manifest request with the start of an endless body.
fn endless() -> (String, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let serve = |mut stream: TcpStream| {
        let mut request = [0; 4096];
        let read = stream.read(&mut request).unwrap_or(0);
        if request[..read].starts_with(b"HEAD") {
            drop(
                stream.write_all(
                    b"HTTP/1.1 405 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
                ),
            );
            return;
        }
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/vnd.oci.image.manifest.v1+json\r\n\
                    transfer-encoding: chunked\r\n\r\n";
        let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
        let mut sent = stream.write_all(head.as_bytes());
        while sent.is_ok() {
            sent = stream.write_all(chunk.as_bytes());
        }
    };
    // The thread ends with the test process; nothing waits for it.
    let thread = std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            serve(stream);
        }
    });
    (host, thread)
}

#[test]
fn a_manifest_without_an_end_is_refused() {
    let (host, _server) = endless();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.tar");
    let ran = convert(
        &[],
        &format!("docker://{host}/app:1"),
        out.to_str().unwrap(),
    );
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("more than 4194304 bytes"), "{ran:?}");
    assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
    assert!(names(folder.path()).is_empty());
}

#[test]
fn a_manifest_of_a_gigabyte_is_refused_by_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    let digest = Digest::sha256(b"huge").to_string();
    layout(&path("in"), &[layer(1, 3000)]);
    let file = fs::File::create(blob(&path("in"), &digest)).unwrap();
    file.set_len(1 << 30).unwrap();
    let entry = json!({
        "mediaType": media_type::OCI_MANIFEST, "digest": digest, "size": 1_u64 << 30,
    });
    index(&path("in"), &[entry]);
    for to in [text("out.tar"), format!("oci:{}", text("out"))] {
        let started = std::time::Instant::now();
        let ran = convert(&[], &text("in"), &to);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.stderr.contains("1073741824 bytes"), "{ran:?}");
        assert!(started.elapsed().as_secs() < 5, "it was not even read");
        assert_eq!(names(folder.path()), ["in"]);
    }
}

#[test]
fn ten_thousand_layers_are_an_image() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    let tiny = layer(2, 10);
    let big = layer(1, 200_000);
    let mut layers = vec![tiny; 9_999];
    layers.push(big);
    let manifest = layout(&path("in"), &layers);
    let registry = TestRegistry::start();
    publish(&path("in"), &manifest, &registry, "in");
    let flags = ["--min-layer-size", "100000"];
    converted(&flags, &text("in"), &format!("oci:{}", text("out")));
    converted(
        &flags,
        &docker(&registry, "in:1"),
        &docker(&registry, "out:1"),
    );
    let listed = read_json(&path("out").join("index.json"));
    let digest = listed["manifests"][0]["digest"].as_str().map(str::to_owned);
    assert_eq!(tagged(&registry, "out", "1"), digest);
}

#[test]
fn an_archive_that_climbs_out_of_itself_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    layout(&path("in"), &[layer(1, 3000)]);
    let mut members = vec![
        member("../../evil", b'0', "", b"x"),
        member("/absolute", b'0', "", b"x"),
        member("oci-layout", b'0', "", br#"{"imageLayoutVersion":"1.0.0"}"#),
        member("index.json", b'2', "../in/index.json", b""),
    ];
    put(&path("in"), b"");
    for entry in fs::read_dir(path("in/blobs/sha256")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let link = format!("../../../in/blobs/sha256/{name}");
        members.push(member(&format!("blobs/sha256/{name}"), b'2', &link, b""));
    }
    fs::write(path("x.tar"), tar(&members)).unwrap();
    for (number, from) in ["", "oci-archive:"].into_iter().enumerate() {
        let from = format!("{from}{}", path("x.tar").display());
        let out = path(&format!("out-{number}"));
        let ran = convert(&["--format", "oci-dir"], &from, out.to_str().unwrap());
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.stderr.contains("index.json"), "{ran:?}");
        assert_eq!(names(folder.path()), ["in", "x.tar"]);
    }
}
