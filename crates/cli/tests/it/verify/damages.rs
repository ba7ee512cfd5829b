//! Kinds of damage.

use std::fs;

use super::{Damage, flip};
use crate::soci::blob;

/// The kind of damage, the change to the image, and the expected messages.
pub(super) const DAMAGES: &[(&str, Damage, &[&str])] = &[
    (
        "a document's bytes",
        |it| it.damage(&it.manifest, |b| b.push(b' ')),
        &["manifest ", "its bytes have the digest"],
    ),
    (
        "an image index that is none",
        |it| it.change(&it.index, |b| *b = b"[]".to_vec()),
        &["image index ", "is not what its media type says"],
    ),
    (
        "a missing manifest",
        |it| fs::remove_file(blob(&it.layout, &it.manifest)).unwrap(),
        &["manifest ", "not found"],
    ),
    (
        "a missing layer",
        |it| fs::remove_file(blob(&it.layout, &it.layer)).unwrap(),
        &["layer ", "not found"],
    ),
    (
        "a layer cut short",
        |it| it.damage(&it.layer, |b| b.truncate(100)),
        &["layer ", "has 100 bytes, its descriptor says"],
    ),
    (
        "a missing index",
        |it| fs::remove_file(blob(&it.layout, &it.soci)).unwrap(),
        &["SOCI index ", "not found"],
    ),
    (
        "a missing zTOC",
        |it| fs::remove_file(blob(&it.layout, &it.ztoc)).unwrap(),
        &["zTOC ", "not found"],
    ),
    (
        "a manifest without its annotation",
        |it| {
            it.edit(
                &it.manifest,
                "com.amazon.soci.index-digest",
                "com.amazon.soci.other",
            )
        },
        &["manifest ", "does not name the SOCI index"],
    ),
    (
        "an annotation that is no digest",
        |it| {
            it.edit(
                &it.manifest,
                "index-digest\":\"sha256:",
                "index-digest\":\"sha25x:",
            )
        },
        &["manifest ", "is no digest"],
    ),
    (
        "the binding from the index",
        |it| {
            it.edit(
                &it.index,
                "image-manifest-digest\":\"sha256:",
                "image-manifest-digest\":\"sha512:",
            )
        },
        &[
            "manifest ",
            "is not listed in the image index for it",
            "which the image index does not have",
        ],
    ),
    (
        "a descriptor that names another index",
        |it| {
            it.edit(
                &it.index,
                "com.amazon.soci.index-digest\":\"sha256:",
                "com.amazon.soci.index-digest\":\"sha256:0",
            )
        },
        &[
            "the image index says that its SOCI index is",
            "which does not name it",
        ],
    ),
    (
        "another platform",
        |it| {
            it.edit(
                &it.index,
                "\"architecture\":\"amd64\",\"os\":\"linux\"},\"artifactType\"",
                "\"architecture\":\"arm64\",\"os\":\"linux\"},\"artifactType\"",
            )
        },
        &[
            "SOCI index ",
            "is listed for platform linux/arm64, its manifest for linux/amd64",
        ],
    ),
    (
        "a lost artifact type",
        |it| {
            let lost = ",\"artifactType\":\"application/vnd.amazon.soci.index.v2+json\"";
            it.edit(&it.index, lost, "");
        },
        &["SOCI index ", "is listed with the artifact type \"\""],
    ),
    (
        "an index that is a plain manifest",
        |it| {
            it.edit(
                &it.soci,
                "application/vnd.amazon.soci.index.v2+json",
                "application/vnd.oci.image.config.v1+json",
            )
        },
        &["SOCI index ", "is no SOCI index: unknown index version"],
    ),
    (
        "an index of version 1",
        |it| it.edit(&it.soci, "soci.index.v2+json", "soci.index.v1+json"),
        &["SOCI index ", "is of the other version"],
    ),
    (
        "an index with blanks",
        |it| it.edit(&it.soci, "{\"schemaVersion\"", "{ \"schemaVersion\""),
        &["SOCI index ", "is not in canonical form"],
    ),
    (
        "another config",
        |it| it.edit(&it.soci, "8a\",\"size\":2}", "8a\",\"size\":3}"),
        &["SOCI index ", "its config should be"],
    ),
    (
        "a zTOC for an unknown layer",
        |it| {
            it.edit(
                &it.soci,
                "image-layer-digest\":\"sha256:",
                "image-layer-digest\":\"sha256:0",
            )
        },
        &["zTOC ", "which the image does not have"],
    ),
    (
        "another type of layer",
        |it| it.edit(&it.soci, "v1.tar+gzip", "v1.tar"),
        &["zTOC ", "says its layer is"],
    ),
    (
        "another span size",
        |it| it.edit(&it.soci, "\"20000\"", "\"20001\""),
        &[
            "zTOC ",
            "says its span size is \"20001\", the zTOC says 20000",
        ],
    ),
    (
        "a blob of another type",
        |it| it.edit(&it.soci, "application/octet-stream", "text/html"),
        &["SOCI index ", "has the media type \"text/html\""],
    ),
    (
        "a zTOC's bytes",
        |it| it.damage(&it.ztoc, |b| flip(b, 2000)),
        &["zTOC ", "its bytes have the digest"],
    ),
    (
        "a zTOC cut short",
        |it| it.change(&it.ztoc, |b| b.truncate(1000)),
        &["zTOC ", "cannot be used"],
    ),
];
