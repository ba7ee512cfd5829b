//! Creates small images.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use soci_index::{BuildContext, BuildOptions, Note, Observer, Stage};
use soci_oci::manifest::{Document, Kind};
use soci_oci::{Annotations, Descriptor, Digest, ImageIndex, Manifest, json, media_type};
use soci_store::layout::Layout;
use soci_store::{Content, ContentStore};

/// A layout in a temporary directory, and the notes reported about its layers.
#[derive(Debug)]
pub(crate) struct Images {
    _folder: tempfile::TempDir,
    pub(crate) store: Arc<dyn ContentStore>,
    pub(crate) layout: Layout,
    told: Arc<Told>,
}

#[derive(Debug, Default)]
struct Told {
    notes: Mutex<Vec<String>>,
}

impl Observer for Told {
    fn planned(&self, _: u64) {}
    fn stage(&self, _: &Descriptor, _: Stage) {}
    fn read(&self, _: &Descriptor, _: u64) {}
    fn note(&self, note: &Note) {
        self.notes.lock().unwrap().push(note.to_string());
    }
}

impl Images {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::create(folder.path()).unwrap();
        let store: Arc<dyn ContentStore> = Arc::new(layout.clone());
        Self {
            _folder: folder,
            store,
            layout,
            told: Arc::default(),
        }
    }

    /// Builds everything from scratch and stores no records.
    pub(crate) fn context(&self) -> BuildContext {
        BuildContext {
            source: Arc::clone(&self.store),
            store: Arc::clone(&self.store),
            known: Vec::new(),
            records: None,
            observer: self.told.clone(),
        }
    }

    pub(crate) fn notes(&self) -> Vec<String> {
        std::mem::take(&mut *self.told.notes.lock().unwrap())
    }

    pub(crate) async fn put(&self, media_type: &str, bytes: impl Into<Bytes>) -> Descriptor {
        let bytes = bytes.into();
        let descriptor = Descriptor::of(media_type, &bytes);
        self.store
            .put(&descriptor, Content::Bytes(bytes))
            .await
            .unwrap();
        descriptor
    }

    /// A plain tar layer with one file.
    pub(crate) async fn layer(&self, name: &str) -> Descriptor {
        self.put(media_type::OCI_LAYER, tar(name, b"content")).await
    }

    pub(crate) async fn manifest(&self, platform: &str, layers: Vec<Descriptor>) -> Descriptor {
        let (os, architecture) = platform.split_once('/').unwrap();
        let diff_ids: Vec<_> = layers.iter().map(|it| it.digest.to_string()).collect();
        let config = serde_json::json!({
            "architecture": architecture,
            "os": os,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = config.to_string();
        let config = self.put(media_type::DOCKER_CONFIG, config).await;
        let manifest = Manifest {
            schema_version: 2,
            media_type: media_type::DOCKER_MANIFEST.to_owned(),
            artifact_type: String::new(),
            config,
            layers: Some(layers),
            subject: None,
            annotations: Annotations::new(),
        };
        self.put(media_type::DOCKER_MANIFEST, json::to_vec(&manifest))
            .await
    }

    /// An image index with `count` manifests, each slightly larger than `bytes`.
    pub(crate) async fn large(&self, count: u8, bytes: usize) -> Descriptor {
        let base = self.manifest("linux/amd64", vec![self.layer("a").await]);
        let mut manifest: Manifest = self.read(&base.await.digest).await;
        let mut members = Vec::new();
        for number in 0..count {
            let text = char::from(b'a' + number).to_string().repeat(bytes);
            manifest.annotations = Annotations::from([("note".to_owned(), text)]);
            let bytes = json::to_vec(&manifest);
            let put = self.put(media_type::DOCKER_MANIFEST, bytes).await;
            members.push(member(&put, &format!("linux/a{number}")));
        }
        let index = json::to_vec(&ImageIndex::new(members));
        self.put(media_type::OCI_INDEX, index).await
    }

    pub(crate) async fn read<T: Kind>(&self, digest: &Digest) -> T {
        let bytes = self.store.read(digest, 1 << 20).await.unwrap();
        Document::parse(bytes, "").unwrap().value
    }
}

/// No minimum layer size.
pub(crate) fn build_options() -> BuildOptions {
    let threads = NonZeroUsize::new(2).unwrap();
    BuildOptions {
        min_layer_size: 0,
        threads,
        ..BuildOptions::default()
    }
}

/// A member of an index, for a platform.
pub(crate) fn member(manifest: &Descriptor, platform: &str) -> Descriptor {
    Descriptor {
        platform: Some(platform.parse().unwrap()),
        ..manifest.clone()
    }
}

/// A tar of one regular file.
pub(crate) fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].fill(b' ');
    let sum: u64 = header.iter().map(|&byte| u64::from(byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut tar = header.to_vec();
    tar.extend(content);
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}
