use std::{
    io::{Read, Write},
    net::TcpStream,
};

use super::*;
use crate::testing::{On, Wrong, noise};

/// Sends one request over a separate connection, without this crate's client. Returns status, head
/// and body of the response.
fn raw(registry: &TestRegistry, request: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
    let mut stream = TcpStream::connect(registry.address()).expect("the registry listens");
    let length = body.len();
    let head =
        format!("{request}\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    let (first, rest) = head.split_once("\r\n").expect("a request line");
    write!(stream, "{} HTTP/1.1\r\n{rest}", first.trim()).expect("send the head");
    stream.write_all(body).expect("send the body");
    let mut answer = Vec::new();
    // A closed connection ends with an error. Use the bytes received before it.
    drop(stream.read_to_end(&mut answer));
    let split = answer
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .expect("a complete head");
    let head = String::from_utf8_lossy(&answer[..split]).into_owned();
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|s| s.parse().ok())
        .expect("a status");
    (status, head, answer.split_off(split + 4))
}

fn location(head: &str) -> String {
    let line = head
        .lines()
        .find(|line| line.starts_with("location: "))
        .expect("a location");
    line["location: ".len()..].to_owned()
}

#[test]
fn ranges_of_blobs_are_served_and_counted() {
    let registry = TestRegistry::start();
    let bytes = noise(1, 200_000);
    let digest = registry.add_blob("app", bytes.clone());
    let get = format!("GET /v2/app/blobs/{digest}\r\nRange: bytes=70000-199999");
    let (status, head, body) = raw(&registry, &get, b"");
    assert_eq!(status, 206);
    assert!(
        head.contains("content-range: bytes 70000-199999/200000"),
        "{head}"
    );
    assert!(body == bytes[70_000..]);
    assert_eq!(registry.bytes_sent(&digest), 130_000);
    assert_eq!(registry.ranges(&digest)[0], 70_000..200_000);
    assert_eq!(
        raw(&registry, &format!("GET /v2/other/blobs/{digest}"), b"").0,
        404
    );
}

#[test]
fn files_are_served_from_disk() {
    let registry = TestRegistry::start();
    let bytes = noise(2, 100_000);
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(&bytes).expect("write it");
    let digest = Digest::sha256(&bytes);
    registry.add_file("app", &digest, file.path());
    let (status, _, body) = raw(&registry, &format!("GET /v2/app/blobs/{digest}"), b"");
    assert!(status == 200 && body == bytes);
}

#[test]
fn switched_off_it_refuses_and_keeps_its_port() {
    let registry = TestRegistry::start();
    assert_eq!(raw(&registry, "GET /v2/", b"").0, 200);
    let mut idle = TcpStream::connect(registry.address()).expect("the registry listens");
    for _ in 0..3 {
        registry.set_online(false);
        let refused = TcpStream::connect(registry.address()).expect_err("nobody listens");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        registry.set_online(true);
        assert_eq!(raw(&registry, "GET /v2/", b"").0, 200);
    }
    let mut byte = [0];
    assert!(
        matches!(idle.read(&mut byte), Ok(0) | Err(_)),
        "open connections broke"
    );
}

#[test]
fn pushes_work_in_every_way_clients_have() {
    let registry = TestRegistry::start();
    let bytes = noise(3, 5000);
    let digest = Digest::sha256(&bytes);
    let (status, head, _) = raw(&registry, "POST /v2/app/blobs/uploads/", b"");
    assert_eq!(status, 202);
    let put = format!("PUT {}&digest={digest}", location(&head));
    assert_eq!(raw(&registry, &put, &bytes).0, 201);
    assert_eq!(registry.blob(&digest).expect("it is there"), bytes);
    let mount = format!("POST /v2/two/blobs/uploads/?mount={digest}&from=app");
    assert_eq!(raw(&registry, &mount, b"").0, 201);
    let (_, head, _) = raw(&registry, "POST /v2/app/blobs/uploads/", b"");
    let patched = raw(&registry, &format!("PATCH {}", location(&head)), b"ab");
    assert_eq!(patched.0, 202);
    let ab = Digest::sha256(b"ab");
    let put = format!("PUT {}&digest={ab}", location(&patched.1));
    assert_eq!(raw(&registry, &put, b"").0, 201);
    let wrong = format!("POST /v2/app/blobs/uploads/?digest={ab}");
    assert_eq!(raw(&registry, &wrong, b"not ab").0, 400);
    let put = "PUT /v2/app/manifests/v1\r\nContent-Type: text/plain";
    assert_eq!(raw(&registry, put, b"{}").0, 201);
    let (media_type, manifest) = registry.manifest("app", "v1").expect("tagged");
    assert_eq!(
        (media_type.as_str(), &manifest[..]),
        ("text/plain", &b"{}"[..])
    );
    let (_, _, tags) = raw(&registry, "GET /v2/app/tags/list", b"");
    assert_eq!(tags, br#"{"name":"app","tags":["v1"]}"#);
}

#[test]
fn the_script_is_followed_line_by_line() {
    let registry = TestRegistry::start();
    let bytes = noise(4, 100_000);
    let digest = registry.add_blob("app", bytes.clone());
    let get = format!("GET /v2/app/blobs/{digest}\r\nRange: bytes=10-99999");
    let on = || On::Blob(digest);
    registry.fault(Fault::once(on(), Wrong::Cut(70_000)).after(1));
    registry.fault(Fault::once(on(), Wrong::Flip(12)));
    registry.fault(Fault::once(on(), Wrong::too_many("7")).after(1));
    let flipped = raw(&registry, &get, b"").2;
    assert!(flipped[2] == !bytes[12] && flipped[3..] == bytes[13..]);
    assert_eq!(raw(&registry, &get, b"").2, bytes[10..70_010]);
    let (status, head, _) = raw(&registry, &get, b"");
    assert!(status == 429 && head.contains("retry-after: 7"), "{head}");
    assert!(raw(&registry, &get, b"").2 == bytes[10..]);
    registry.fault(Fault::always(on(), Wrong::IgnoreRange));
    assert_eq!(raw(&registry, &get, b"").0, 200);
    registry.clear_faults();
    assert_eq!(raw(&registry, &get, b"").0, 206);
}

#[test]
fn uploads_in_parts_say_how_far_they_are_and_can_be_given_up() {
    let registry = TestRegistry::start();
    let (_, head, _) = raw(&registry, "POST /v2/app/blobs/uploads/", b"");
    let at = location(&head);
    let patch = |range: &str, part: &[u8]| {
        let patch = format!("PATCH {at}\r\nContent-Range: {range}");
        raw(&registry, &patch, part).0
    };
    assert_eq!(patch("0-1", b"ab"), 202);
    assert_eq!(patch("1-2", b"bc"), 416, "not where the last part ended");
    assert_eq!(patch("2-2", b"c"), 202);
    let (status, head, _) = raw(&registry, &format!("GET {at}"), b"");
    assert!(status == 204 && head.contains("range: 0-2"), "{head}");
    let digest = Digest::sha256(b"abc");
    let put = format!("PUT {at}&digest={digest}");
    assert_eq!(raw(&registry, &put, b"").0, 201);
    assert_eq!(registry.blob(&digest).as_deref(), Some(&b"abc"[..]));
    let (_, head, _) = raw(&registry, "POST /v2/app/blobs/uploads/", b"");
    let delete = format!("DELETE {}", location(&head));
    assert_eq!(raw(&registry, &delete, b"").0, 204);
    assert_eq!(raw(&registry, &delete, b"").0, 404);
}

#[test]
fn what_a_manifest_consists_of_must_be_there_and_can_be_deleted() {
    let registry = TestRegistry::start();
    let config = Digest::sha256(b"{}");
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"c","digest":"{config}","size":2}},"layers":[]}}"#
    );
    let put =
        "PUT /v2/app/manifests/v1\r\nContent-Type: application/vnd.oci.image.manifest.v1+json";
    assert_eq!(raw(&registry, put, manifest.as_bytes()).0, 400);
    registry.add_blob("app", &b"{}"[..]);
    assert_eq!(raw(&registry, put, manifest.as_bytes()).0, 201);
    assert_eq!(registry.tags("app"), ["v1"]);
    let digest = Digest::sha256(manifest.as_bytes());
    let delete = format!("DELETE /v2/app/manifests/{digest}");
    assert_eq!(raw(&registry, &delete, b"").0, 202);
    assert_eq!(raw(&registry, &delete, b"").0, 404);
    assert!(registry.tags("app").is_empty(), "its tags are gone, too");
    let delete = format!("DELETE /v2/app/blobs/{config}");
    assert_eq!(raw(&registry, &delete, b"").0, 202);
    assert!(!registry.has_blob("app", &config));
    let kept = TestRegistry::with(Setup {
        keeps_all: true,
        ..Setup::default()
    });
    assert_eq!(raw(&kept, &delete, b"").0, 405);
}
