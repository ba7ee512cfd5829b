//! Creates a state directory with records and artifacts, and runs the program on it.

use std::path::Path;

use bytes::Bytes;
use soci_index::artifacts::{Entry, Kind};
use soci_index::{
    ARTIFACT_TYPE_V1, Artifacts, LAYER_DIGEST, PREFETCH_MEDIA_TYPE, SPAN_SIZE, SociIndex, Version,
    ZTOC_MEDIA_TYPE,
};
use soci_oci::{Descriptor, Digest, media_type};
use soci_store::local::LocalStore;
use soci_store::{Content, ContentStore as _};
use soci_ztoc::{BuildOptions, Builder, Compression};

use crate::soci::{Ran, run};

/// A directory for `--root`, with its own content store for artifacts.
pub(crate) struct Root {
    folder: tempfile::TempDir,
}

impl Root {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn artifacts(&self) -> Artifacts {
        Artifacts::at(self.path())
    }

    /// Runs the program on this directory and its content store.
    pub(crate) fn soci(&self, words: &[&str]) -> Ran {
        let root = self.path().to_str().unwrap();
        let nowhere = self.path().join("containerd.sock");
        let flags = [
            "--root",
            root,
            "--content-store",
            "soci",
            "--address",
            nowhere.to_str().unwrap(),
            "--timeout",
            "1s",
        ];
        run(flags.iter().chain(words))
    }

    /// Like [`Root::soci`], but requires success and empty standard error.
    pub(crate) fn prints(&self, words: &[&str]) -> String {
        let ran = self.soci(words);
        let quiet = (ran.code, ran.stderr.as_str());
        assert_eq!(quiet, (Some(0), ""), "{words:?}: {ran:?}");
        ran.stdout
    }

    /// Like [`Root::soci`], but requires failure. Returns the message after `soci: `.
    pub(crate) fn fails(&self, words: &[&str]) -> String {
        let ran = self.soci(words);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{ran:?}");
        let said = ran.stderr.strip_prefix("soci: ");
        let said = said.and_then(|said| said.strip_suffix('\n'));
        said.unwrap_or_else(|| panic!("{ran:?}")).to_owned()
    }

    pub(crate) fn put(&self, media_type: &str, bytes: &[u8]) -> Descriptor {
        let descriptor = Descriptor::of(media_type, bytes);
        let content = Content::Bytes(Bytes::copy_from_slice(bytes));
        let store = LocalStore::at(self.path());
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(store.put(&descriptor, content)).unwrap();
        descriptor
    }

    /// Adds the zTOC of an archive, as part of an index.
    pub(crate) fn ztoc(&self, archive: &[u8], span_size: u64) -> Descriptor {
        let options = BuildOptions {
            span_size,
            ..BuildOptions::default()
        };
        let mut built = Builder::new(options)
            .build(archive, Compression::Plain)
            .unwrap();
        let mut bytes = Vec::new();
        built.encode(&mut bytes).unwrap();
        let layer = Digest::sha256(archive).to_string();
        Descriptor {
            annotations: [
                (LAYER_DIGEST.to_owned(), layer),
                (SPAN_SIZE.to_owned(), span_size.to_string()),
            ]
            .into(),
            ..self.put(ZTOC_MEDIA_TYPE, &bytes)
        }
    }

    /// Adds a prefetch artifact of a layer, as part of an index.
    pub(crate) fn prefetch(&self, layer: &Digest, document: &str) -> Descriptor {
        Descriptor {
            annotations: [(LAYER_DIGEST.to_owned(), layer.to_string())].into(),
            ..self.put(PREFETCH_MEDIA_TYPE, document.as_bytes())
        }
    }

    /// Adds a version 1 index of a manifest.
    pub(crate) fn index(&self, manifest: &Descriptor, parts: Vec<Descriptor>) -> Descriptor {
        let index = SociIndex::new(Version::V1, parts, Some(manifest.clone()));
        self.put(media_type::OCI_MANIFEST, &index.to_bytes())
    }

    pub(crate) fn record(&self, kind: Kind, blob: &Descriptor) -> Entry {
        let entry = entry(kind, blob);
        self.artifacts().put(std::slice::from_ref(&entry)).unwrap();
        entry
    }
}

/// The record of a blob.
pub(crate) fn entry(kind: Kind, blob: &Descriptor) -> Entry {
    let layer = blob.annotations.get(LAYER_DIGEST);
    let of = layer.cloned().unwrap_or_else(|| image().to_string());
    let is_index = kind == Kind::Index;
    let only_index = |text: &str| if is_index { text } else { "" }.to_owned();
    Entry {
        digest: blob.digest,
        size: blob.size,
        location: of.clone(),
        oci_digest: of,
        image_digest: only_index(&image().to_string()),
        platform: only_index("linux/amd64"),
        kind,
        media_type: blob.media_type.clone(),
        artifact_type: only_index(ARTIFACT_TYPE_V1),
        created_at: None,
        span_size: 0,
        is_found: false,
    }
}

/// The image of all artifacts in these tests.
pub(crate) fn image() -> Digest {
    Digest::sha256(b"image")
}

/// A blob that does not exist.
pub(crate) fn absent(name: &str) -> Descriptor {
    Descriptor::of(media_type::OCI_MANIFEST, name.as_bytes())
}
