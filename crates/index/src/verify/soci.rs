//! Checks a SOCI index and its blobs against the manifest that it belongs to.

use std::collections::HashMap;

use bytes::Bytes;
use soci_oci::manifest::MAX_DOCUMENT_BYTES;
use soci_oci::media_type::{LayerCompression, layer_compression};
use soci_oci::{Descriptor, Digest, Manifest};
use soci_store::StoreError;
use soci_ztoc::{Compression, MAX_ZTOC_SIZE, Ztoc};

use super::{Part, Problem, Walk};
use crate::builder::OPAQUE_MARKER;
use crate::model::{
    CONFIG, DISABLE_XATTRS, LAYER_DIGEST, LAYER_MEDIA_TYPE, PREFETCH_MEDIA_TYPE, SPAN_SIZE,
    SociIndex, Version, ZTOC_MEDIA_TYPE,
};
use crate::prefetch::{self, MAX_ARTIFACT_BYTES};

impl Walk<'_> {
    pub(super) async fn soci_index(
        &mut self,
        from: &Descriptor,
        version: Version,
        image: &Descriptor,
        manifest: &Manifest,
    ) -> Result<(), StoreError> {
        if !self.checked.insert((from.digest, image.digest)) {
            return Ok(());
        }
        self.summary.indexes += 1;
        let bytes = self
            .bytes(Part::SociIndex, from, MAX_DOCUMENT_BYTES)
            .await?;
        let Some(bytes) = bytes else { return Ok(()) };
        let index = match SociIndex::parse(&bytes) {
            Ok(index) => index,
            Err(error) => {
                self.tell(Part::SociIndex, from.digest, Problem::Index(error));
                return Ok(());
            }
        };
        for problem in shape(&index, &bytes, version, image) {
            self.tell(Part::SociIndex, from.digest, problem);
        }
        let config = Descriptor::of(index.version().artifact_type(), CONFIG);
        self.presence(Part::Config, &config).await?;
        // Number of spans of each layer with a zTOC.
        let mut spans = HashMap::new();
        for blob in index.blobs() {
            match blob.media_type.as_str() {
                ZTOC_MEDIA_TYPE => {
                    let Some(layer) = self.layer_of(Part::Ztoc, blob, manifest) else {
                        continue;
                    };
                    if let Some(count) = self.ztoc(blob, layer).await? {
                        spans.insert(layer.digest, count);
                    }
                }
                PREFETCH_MEDIA_TYPE => self.prefetch(blob, manifest, &spans).await?,
                other => {
                    let problem = Problem::MediaType(other.to_owned());
                    self.tell(Part::SociIndex, blob.digest, problem);
                }
            }
        }
        Ok(())
    }

    /// The layer that a blob of an index belongs to.
    fn layer_of<'m>(
        &mut self,
        part: Part,
        blob: &Descriptor,
        manifest: &'m Manifest,
    ) -> Option<&'m Descriptor> {
        let named = blob.annotation(LAYER_DIGEST).unwrap_or_default();
        let mut layers = manifest.layers().iter();
        let layer = layers.find(|layer| layer.digest.to_string() == named);
        if layer.is_none() {
            self.tell(part, blob.digest, Problem::NoLayer(named.to_owned()));
        }
        layer
    }

    /// Checks a zTOC and returns its number of spans.
    async fn ztoc(
        &mut self,
        blob: &Descriptor,
        layer: &Descriptor,
    ) -> Result<Option<usize>, StoreError> {
        self.summary.ztocs += 1;
        let Some(bytes) = self.bytes(Part::Ztoc, blob, MAX_ZTOC_SIZE).await? else {
            return Ok(None);
        };
        let ztoc = match Ztoc::parse(&bytes) {
            Ok(ztoc) => ztoc,
            Err(error) => {
                let problem = Problem::Ztoc(error);
                self.tell_of(Part::Ztoc, blob.digest, Some(layer.digest), problem);
                return Ok(None);
            }
        };
        let problems = fit(&ztoc, blob, layer);
        let spans = ztoc.spans().len();
        // A zTOC for another layer would report every byte as wrong.
        let comparable = ztoc.spans().layer_size() == layer.size;
        for problem in problems {
            self.tell_of(Part::Ztoc, blob.digest, Some(layer.digest), problem);
        }
        if self.options.deep {
            self.queue_layer(layer, comparable.then_some(blob));
        }
        Ok(Some(spans))
    }

    async fn prefetch(
        &mut self,
        blob: &Descriptor,
        manifest: &Manifest,
        spans: &HashMap<Digest, usize>,
    ) -> Result<(), StoreError> {
        self.summary.prefetches += 1;
        let Some(layer) = self.layer_of(Part::Prefetch, blob, manifest) else {
            return Ok(());
        };
        let bytes = self.bytes(Part::Prefetch, blob, MAX_ARTIFACT_BYTES).await?;
        let Some(bytes) = bytes else { return Ok(()) };
        let problem = match spans.get(&layer.digest) {
            Some(&count) => prefetch_problem(&bytes, count),
            None => Some(Problem::PrefetchAlone),
        };
        if let Some(problem) = problem {
            self.tell_of(Part::Prefetch, blob.digest, Some(layer.digest), problem);
        }
        Ok(())
    }
}

/// Problems of the index itself.
fn shape(index: &SociIndex, bytes: &Bytes, version: Version, image: &Descriptor) -> Vec<Problem> {
    let mut problems = Vec::new();
    if index.to_bytes() != *bytes {
        problems.push(Problem::Form);
    }
    if index.version() != version {
        problems.push(Problem::Version(index.version().artifact_type()));
    }
    if *index.config() != Descriptor::of(index.version().artifact_type(), CONFIG) {
        problems.push(Problem::IndexConfig);
    }
    if version == Version::V1 {
        let subject = Descriptor::new(image.media_type.as_str(), image.digest, image.size);
        if index.subject() != Some(&subject) {
            let shown = index.subject().map_or_else(
                || "not stated".to_owned(),
                |it| format!("{} {} of {} bytes", it.media_type, it.digest, it.size),
            );
            problems.push(Problem::Subject(shown));
        }
    }
    problems
}

/// Mismatches between a zTOC, its layer and its descriptor in the index.
fn fit(ztoc: &Ztoc<'_>, blob: &Descriptor, layer: &Descriptor) -> Vec<Problem> {
    let mut problems = Vec::new();
    let size = ztoc.spans().layer_size();
    if size != layer.size {
        problems.push(Problem::LayerSize(size, layer.size));
    }
    let compression = match layer_compression(&layer.media_type) {
        Ok(LayerCompression::Gzip) => Some(Compression::Gzip),
        Ok(LayerCompression::Uncompressed | LayerCompression::Unknown) => Some(Compression::Plain),
        _ => None,
    };
    if compression != Some(ztoc.compression()) {
        problems.push(Problem::Compression);
    }
    if let Err(error) = ztoc.check_servable() {
        problems.push(Problem::Ztoc(error));
    }
    let stated = blob.annotation(LAYER_MEDIA_TYPE).unwrap_or_default();
    if stated != layer.media_type {
        let own = layer.media_type.clone();
        problems.push(Problem::LayerType(stated.to_owned(), own));
    }
    let stated = blob.annotation(SPAN_SIZE).unwrap_or_default();
    if stated != ztoc.span_size().to_string() {
        problems.push(Problem::SpanSize(stated.to_owned(), ztoc.span_size()));
    }
    if blob.annotation(DISABLE_XATTRS) == Some("true") {
        let mut entries = ztoc.entries();
        let with = |entry: &soci_ztoc::Entry<'_>| {
            entry.xattrs().next().is_some() || entry.name.ends_with(OPAQUE_MARKER)
        };
        if let Some(entry) = entries.find(with) {
            let name = String::from_utf8_lossy(entry.name).into_owned();
            problems.push(Problem::Xattrs(name));
        }
    }
    problems
}

/// As in the reference, a range may end one past the last span.
fn prefetch_problem(bytes: &Bytes, spans: usize) -> Option<Problem> {
    let ranges = match prefetch::parse(bytes) {
        Ok(ranges) => ranges,
        Err(error) => return Some(Problem::Prefetch(error)),
    };
    let mut ranges = ranges.iter();
    let wrong = ranges.find(|range| range.end > spans as u64);
    wrong.map(|range| Problem::Spans(range.start, range.end, spans))
}
