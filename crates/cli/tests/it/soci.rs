//! Runs the program, and creates layouts for it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use soci_oci::Digest;
use soci_ztoc::{Compression, LayerInflate};

/// The result of a run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_soci"));
    command
        .stdin(Stdio::null())
        .env_clear()
        .env("PATH", "/usr/bin:/bin");
    command
}

pub(crate) fn run<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Ran {
    let output = command().args(arguments).output().unwrap();
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// `soci convert --standalone --min-layer-size 0 <flags> <from> <to>`.
pub(crate) fn convert(flags: &[&str], from: &Path, to: &Path) -> Ran {
    let standalone = ["convert", "--standalone", "--min-layer-size", "0"];
    let words = standalone.iter().chain(flags).map(AsRef::as_ref);
    run(words.chain([from.as_os_str(), to.as_os_str()]))
}

/// Like [`convert`], but requires success.
pub(crate) fn converted(flags: &[&str], from: &Path, to: &Path) -> Ran {
    let ran = convert(flags, from, to);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    ran
}

/// Writes a blob to a layout directory and returns its digest.
pub(crate) fn put(layout: &Path, bytes: &[u8]) -> String {
    let digest = Digest::sha256(bytes);
    let folder = layout.join("blobs/sha256");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(digest.hex()), bytes).unwrap();
    digest.to_string()
}

pub(crate) fn blob(layout: &Path, digest: &str) -> PathBuf {
    layout.join("blobs").join(digest.replace(':', "/"))
}

pub(crate) fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Creates an image of one layer, exactly as the vectors were created.
pub(crate) fn one_layer(layout: &Path, layer: &[u8], is_gzip: bool) {
    one_layer_with(layout, layer, is_gzip, &Digest::sha256(layer).to_string());
}

/// Like [`one_layer`], with the digest of the uncompressed layer.
pub(crate) fn one_layer_with(layout: &Path, layer: &[u8], is_gzip: bool, diff_id: &str) {
    let digest = put(layout, layer);
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}}}}"#
    );
    let config_digest = put(layout, config.as_bytes());
    let suffix = if is_gzip { "+gzip" } else { "" };
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config_digest}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar{suffix}","digest":"{digest}","size":{}}}]}}"#,
        config.len(),
        layer.len()
    );
    let manifest_digest = put(layout, manifest.as_bytes());
    let manifest = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": manifest_digest,
        "size": manifest.len(),
    });
    index(layout, &[manifest]);
}

/// Like [`one_layer`], with the digest of the unpacked layer.
pub(crate) fn packed_layer(layout: &Path, layer: &[u8], is_gzip: bool) {
    let mut archive = Vec::new();
    let mut inflate = LayerInflate::new(Compression::sniff(layer)).unwrap();
    let push = inflate.push(layer, |bytes| archive.extend_from_slice(bytes));
    push.unwrap();
    let diff_id = Digest::sha256(&archive).to_string();
    one_layer_with(layout, layer, is_gzip, &diff_id);
}

/// Writes the `index.json` and `oci-layout` files of a layout.
pub(crate) fn index(layout: &Path, manifests: &[Value]) {
    let index = json!({ "schemaVersion": 2, "manifests": manifests });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
}

/// One tar header and its data.
pub(crate) fn member(name: &str, kind: u8, link: &str, data: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    for (at, text) in [(100, "0000644"), (108, "0000000"), (116, "0000000")] {
        header[at..at + 7].copy_from_slice(text.as_bytes());
    }
    header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
    header[136..147].copy_from_slice(b"00000000000");
    header[156] = kind;
    header[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[329..336].copy_from_slice(b"0000000");
    header[337..344].copy_from_slice(b"0000000");
    header[148..156].fill(b' ');
    let sum: u64 = header.iter().map(|&byte| u64::from(byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut bytes = header.to_vec();
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// A tar of these members.
pub(crate) fn tar(members: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = members.concat();
    bytes.extend([0; 1024]);
    bytes
}

/// A tar of a layout directory, as another tool would create it.
pub(crate) fn tar_of(layout: &Path) -> Vec<u8> {
    let mut members = Vec::new();
    for name in ["oci-layout", "index.json"] {
        members.push(member(
            &format!("./{name}"),
            b'0',
            "",
            &fs::read(layout.join(name)).unwrap(),
        ));
    }
    for entry in fs::read_dir(layout.join("blobs/sha256")).unwrap() {
        let entry = entry.unwrap();
        let name = format!("./blobs/sha256/{}", entry.file_name().to_str().unwrap());
        members.push(member(&name, b'0', "", &fs::read(entry.path()).unwrap()));
    }
    tar(&members)
}

/// The sorted names of the entries of a directory.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
