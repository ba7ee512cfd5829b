//! Images for tests: plain tars as layers, and an index with zTOCs, in a registry of this process.

use soci_index::{
    INDEX_DIGEST, LAYER_DIGEST, PREFETCH_MEDIA_TYPE, RECORDED_START, SociIndex, Version,
};
use soci_oci::descriptor::Descriptor;
use soci_oci::digest::Digest;
use soci_oci::{json, media_type};
use soci_registry::testing::TestRegistry;
use soci_ztoc::{BuildOptions, Builder, Compression};

use crate::server::{Labels, labels};

/// Name of the repository of all images.
pub(crate) const REPOSITORY: &str = "test/image";
/// Small, so that small layers have several spans.
const SPAN: u64 = 64 << 10;
const TAR_BLOCK: usize = 512;

/// The tar entry of one file.
pub(crate) fn file(name: &str, content: &[u8]) -> Vec<u8> {
    entry(name, b'0', content)
}

/// A tar of these entries.
pub(crate) fn tar(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut tar = entries.concat();
    tar.resize(tar.len() + 2 * TAR_BLOCK, 0);
    tar
}

fn entry(name: &str, kind: u8, content: &[u8]) -> Vec<u8> {
    let mut header = vec![0; TAR_BLOCK];
    let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{:011o}\0", content.len()).as_bytes());
    put(136, b"14000000000\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header.extend_from_slice(content);
    header.resize(header.len().next_multiple_of(TAR_BLOCK), 0);
    header
}

/// Which layers have a zTOC, and how the index is found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Shape<'a> {
    /// Whether the manifest does not name the index.
    pub(crate) unnamed: bool,
    /// Whether the index has version 1 and names the manifest as its subject.
    pub(crate) refers: bool,
    /// A layer without a zTOC.
    pub(crate) without: Option<usize>,
    /// A layer with an invalid zTOC.
    pub(crate) rubbish: Option<usize>,
    /// The prefetch artifact of the lowest layer.
    pub(crate) prefetch: Option<&'static str>,
    /// The artifacts of a recorded start, of the lowest layers.
    pub(crate) recorded: &'a [Vec<u8>],
    /// Span size of the zTOCs; the default is small.
    pub(crate) span: Option<u64>,
}

/// An image in the registry.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) layers: Vec<Digest>,
    pub(crate) manifest: Digest,
    pub(crate) index: Digest,
    pub(crate) ztocs: Vec<Digest>,
    reference: String,
}

impl Image {
    pub(crate) fn publish(registry: &TestRegistry, tars: &[Vec<u8>], shape: Shape<'_>) -> Self {
        let mut blobs = Vec::new();
        for (number, tar) in tars.iter().enumerate() {
            registry.add_blob(REPOSITORY, tar.clone());
            if shape.without == Some(number) {
                continue;
            }
            let mut ztoc = ztoc(tar, shape.span.unwrap_or(SPAN));
            if shape.rubbish == Some(number) {
                ztoc.iter_mut().for_each(|byte| *byte = !*byte);
            }
            let mut named = Descriptor::of(media_type::OCTET_STREAM, &ztoc);
            let layer = Digest::sha256(tar).to_string();
            named.annotations.insert(LAYER_DIGEST.to_owned(), layer);
            registry.add_blob(REPOSITORY, ztoc);
            blobs.push(named);
        }
        let ztocs = blobs.iter().map(|blob| blob.digest).collect();
        if let (Some(artifact), Some(tar)) = (shape.prefetch, tars.first()) {
            let mut named = Descriptor::of(PREFETCH_MEDIA_TYPE, artifact.as_bytes());
            let layer = Digest::sha256(tar).to_string();
            named.annotations.insert(LAYER_DIGEST.to_owned(), layer);
            registry.add_blob(REPOSITORY, artifact.as_bytes().to_vec());
            blobs.push(named);
        }
        for (artifact, tar) in shape.recorded.iter().zip(tars) {
            registry.add_blob(REPOSITORY, artifact.clone());
            blobs.push(recorded(artifact, tar));
        }
        let add_index = |index: SociIndex| {
            let bytes = index.to_bytes();
            let index = registry.add_manifest(REPOSITORY, None, media_type::OCI_MANIFEST, bytes);
            index.digest
        };
        let named = (!shape.unnamed && !shape.refers)
            .then(|| add_index(SociIndex::new(Version::V2, blobs.clone(), None)));
        let layers: Vec<_> = tars
            .iter()
            .map(|tar| Descriptor::of(media_type::OCI_LAYER, tar))
            .collect();
        let annotation = named.map(|index| (INDEX_DIGEST.to_owned(), index.to_string()));
        let manifest = soci_oci::Manifest {
            schema_version: 2,
            media_type: media_type::OCI_MANIFEST.to_owned(),
            artifact_type: String::new(),
            config: config(registry, tars),
            layers: Some(layers.clone()),
            subject: None,
            annotations: annotation.into_iter().collect(),
        };
        let bytes = json::to_vec(&manifest);
        let subject = Descriptor::of(media_type::OCI_MANIFEST, &bytes);
        let manifest = registry
            .add_manifest(REPOSITORY, Some("1"), media_type::OCI_MANIFEST, bytes)
            .digest;
        let index = named.unwrap_or_else(|| {
            let (version, subject) = match shape.refers {
                true => (Version::V1, Some(subject)),
                false => (Version::V2, None),
            };
            add_index(SociIndex::new(version, blobs, subject))
        });
        Self {
            layers: layers.iter().map(|layer| layer.digest).collect(),
            manifest,
            index,
            ztocs,
            reference: format!("{}/{REPOSITORY}:1", registry.host()),
        }
    }

    /// The name under which containerd commits a layer.
    pub(crate) fn target(&self, layer: usize) -> String {
        format!("sha256:chain-{layer}-{}", self.layers[layer].hex())
    }

    /// The labels of containerd's request for a layer.
    pub(crate) fn labels(&self, layer: usize) -> Labels {
        labels(&[
            ("containerd.io/snapshot.ref", &self.target(layer)),
            ("containerd.io/snapshot/cri.image-ref", &self.reference),
            (
                "containerd.io/snapshot/cri.manifest-digest",
                &self.manifest.to_string(),
            ),
            (
                "containerd.io/snapshot/cri.layer-digest",
                &self.layers[layer].to_string(),
            ),
        ])
    }
}

/// The descriptor of an artifact of a recorded start.
fn recorded(artifact: &[u8], tar: &[u8]) -> Descriptor {
    let layer = (LAYER_DIGEST.to_owned(), Digest::sha256(tar).to_string());
    let recorded = (RECORDED_START.to_owned(), "true".to_owned());
    Descriptor {
        annotations: [layer, recorded].into(),
        ..Descriptor::of(PREFETCH_MEDIA_TYPE, artifact)
    }
}

fn ztoc(tar: &[u8], span_size: u64) -> Vec<u8> {
    let options = BuildOptions {
        span_size,
        ..BuildOptions::default()
    };
    let mut built = Builder::new(options)
        .build(tar, Compression::Plain)
        .unwrap();
    let mut bytes = Vec::new();
    built.encode(&mut bytes).unwrap();
    bytes
}

fn config(registry: &TestRegistry, tars: &[Vec<u8>]) -> Descriptor {
    let ids: Vec<_> = tars
        .iter()
        .map(|tar| format!("\"{}\"", Digest::sha256(tar)))
        .collect();
    let ids = ids.join(",");
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":[{ids}]}}}}"#
    );
    registry.add_blob(REPOSITORY, config.clone());
    Descriptor::of(media_type::OCI_CONFIG, config.as_bytes())
}
