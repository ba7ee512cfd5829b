//! Images in a test registry, and runs of the program on them.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use soci_oci::{Digest, media_type};
use soci_registry::testing::{Seen, TestRegistry, noise};

use crate::soci::{Ran, index, member, put, run, tar};

/// `soci convert --standalone --min-layer-size 0 <flags> <from> <to>`.
pub(crate) fn convert(flags: &[&str], from: &str, to: &str) -> Ran {
    let words = ["convert", "--standalone", "--min-layer-size", "0"];
    run(words.iter().chain(flags).copied().chain([from, to]))
}

/// Like [`convert`], but requires success.
pub(crate) fn converted(flags: &[&str], from: &str, to: &str) -> Ran {
    let ran = convert(flags, from, to);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    ran
}

/// The `docker://` name of an image in a test registry.
pub(crate) fn docker(registry: &TestRegistry, name: &str) -> String {
    format!("docker://{}/{name}", registry.host())
}

/// A layer that does not compress.
pub(crate) fn layer(seed: u64, bytes: usize) -> Vec<u8> {
    tar(&[member(
        &format!("file-{seed}"),
        b'0',
        "",
        &noise(seed, bytes),
    )])
}

/// Creates a layout with an image of these layers. Returns the digest of its manifest.
pub(crate) fn layout(folder: &Path, layers: &[Vec<u8>]) -> String {
    let distinct: std::collections::BTreeSet<&Vec<u8>> = layers.iter().collect();
    for layer in distinct {
        put(folder, layer);
    }
    let described = |layer: &Vec<u8>| {
        json!({
            "mediaType": media_type::OCI_LAYER,
            "digest": Digest::sha256(layer).to_string(),
            "size": layer.len(),
        })
    };
    let described: Vec<Value> = layers.iter().map(described).collect();
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|it| Digest::sha256(it).to_string())
        .collect();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = config.to_string();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": {
            "mediaType": media_type::OCI_CONFIG,
            "digest": put(folder, config.as_bytes()),
            "size": config.len(),
        },
        "layers": described,
    });
    let manifest = manifest.to_string();
    let digest = put(folder, manifest.as_bytes());
    index(
        folder,
        &[json!({
            "mediaType": media_type::OCI_MANIFEST,
            "digest": digest,
            "size": manifest.len(),
        })],
    );
    digest
}

/// Copies the image of a layout to a registry.
pub(crate) fn publish(folder: &Path, manifest: &str, registry: &TestRegistry, repository: &str) {
    for entry in fs::read_dir(folder.join("blobs/sha256")).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        if Digest::sha256(&bytes).to_string() != manifest {
            registry.add_blob(repository, bytes);
        }
    }
    let bytes = fs::read(crate::soci::blob(folder, manifest)).unwrap();
    registry.add_manifest(repository, Some("1"), media_type::OCI_MANIFEST, bytes);
}

/// The digest that a tag points to.
pub(crate) fn tagged(registry: &TestRegistry, repository: &str, tag: &str) -> Option<String> {
    let (_, bytes) = registry.manifest(repository, tag)?;
    Some(Digest::sha256(&bytes).to_string())
}

/// The completed uploads to a repository.
pub(crate) fn uploads(registry: &TestRegistry, repository: &str) -> Vec<Seen> {
    let prefix = format!("/v2/{repository}/blobs/uploads/");
    let is_upload =
        |seen: &Seen| seen.method == "PUT" && seen.path.starts_with(&prefix) && seen.status == 201;
    registry.seen().into_iter().filter(is_upload).collect()
}
