//! Processes one layer: reuses or builds its zTOC, and stores it.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write as _};
use std::time::{Duration, Instant};

use soci_oci::digest::Sha256Writer;
use soci_oci::{Descriptor, Digest, media_type};
use soci_store::{Content, StoreError};
use soci_ztoc::{BuiltZtoc, Compression, Entry, SpanMap, TarError};

use super::error::LayerError;
use super::jobs::Work;
use super::outcome::{Skip, Stage};
use super::plan::Job;
use crate::model::ZTOC_MEDIA_TYPE;
use crate::prefetch::recorded::{Found, RecordSearch};
use crate::prefetch::{self, Hit};
use crate::records;
use crate::reuse::{self, Wanted};

/// Suffix of a whiteout that makes a directory opaque. It represents an extended attribute.
pub(crate) const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";

/// The result of a job.
#[derive(Debug, Clone)]
pub(super) struct Made {
    /// The zTOC, or why there is none.
    pub(super) result: Result<MadeZtoc, Skip>,
    pub(super) warnings: Vec<soci_ztoc::Warning>,
    /// Why existing zTOCs were not reused.
    pub(super) rejected: Vec<String>,
    pub(super) time: Duration,
}

/// A zTOC in the store, and the facts about it for the index.
#[derive(Debug, Clone)]
pub(super) struct MadeZtoc {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) is_reused: bool,
    pub(super) facts: Facts,
}

/// Facts that are collected from a table of contents.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) no_xattrs: bool,
    /// Files to prefetch.
    pub(super) wanted: Vec<Hit>,
    /// What a recorded start wants.
    pub(super) recorded: Vec<Found>,
}

/// Collects facts from the entries of a zTOC, whether built or reused.
struct Questions<'a> {
    search: prefetch::Search<'a>,
    record: Option<RecordSearch<'a>>,
    no_xattrs: bool,
    spans: Spans,
}

/// The spans of a zTOC, as the reference numbers them.
struct Spans {
    map: SpanMap,
    compression: Compression,
    size: u64,
}

impl Spans {
    /// The span that contains an offset of the archive.
    fn at(&self, offset: u64) -> Option<u64> {
        match self.compression {
            Compression::Plain => offset.checked_div(self.size),
            Compression::Gzip => self.map.at(offset).map(|span| u64::from(span.0)),
        }
    }
}

/// Creates the zTOC of a layer.
pub(super) fn index(work: &Work, job: &Job) -> Result<Made, LayerError> {
    let started = Instant::now();
    let observer = &work.context.observer;
    observer.stage(&job.layer, Stage::Begun);
    let mut rejected = Vec::new();
    let (result, warnings) = match take_over(work, job, &mut rejected)? {
        Some(made) => (Ok(made), Vec::new()),
        None => match build(work, job) {
            // Retry once: the store now avoids the source of the wrong bytes.
            Err(LayerError::Build { source, .. })
                if is_about_bytes(&source) && work.context.source.distrust(&job.layer.digest) =>
            {
                let layer = job.layer.digest;
                tracing::warn!(%layer, error = %source, "a mirror or file has wrong bytes; the layer is read from another source");
                build(work, job)?
            }
            Err(error) if is_elsewhere(job, &error) => (Err(Skip::Elsewhere), Vec::new()),
            built => built?,
        },
    };
    observer.stage(&job.layer, Stage::Done);
    Ok(Made {
        result,
        warnings,
        rejected,
        time: started.elapsed(),
    })
}

/// Stores the first existing zTOC that fits. Unsuitable ones are reported.
fn take_over(
    work: &Work,
    job: &Job,
    rejected: &mut Vec<String>,
) -> Result<Option<MadeZtoc>, LayerError> {
    let layer = job.layer.digest;
    let wanted = Wanted {
        layer: &job.layer,
        compression: job.compression,
        span_size: work.options.span_size,
    };
    for known in &work.context.known {
        if work.stopped() {
            return Err(LayerError::Stopped(layer));
        }
        let found = reuse::find(known.as_ref(), &wanted, &work.budget, &work.runtime);
        rejected.extend(found.rejected);
        let Some(fit) = found.fit else { continue };
        work.context.observer.stage(&job.layer, Stage::Storing);
        let ztoc = fit.ztoc();
        let mut questions = Questions::new(work, job, ztoc.spans());
        ztoc.entries().for_each(|entry| questions.see(&entry));
        let facts = questions.finish();
        let ztoc = fit.descriptor.clone();
        let permit = fit.permit;
        put(work, layer, &ztoc, Content::Bytes(fit.bytes.into()))?;
        drop(permit);
        return Ok(Some(MadeZtoc {
            digest: ztoc.digest,
            size: ztoc.size,
            is_reused: true,
            facts,
        }));
    }
    Ok(None)
}

type Built = (Result<MadeZtoc, Skip>, Vec<soci_ztoc::Warning>);

fn build(work: &Work, job: &Job) -> Result<Built, LayerError> {
    let layer = job.layer.digest;
    let blob = work
        .runtime
        .block_on(work.context.source.open(&layer))
        .map_err(store_error(layer))?;
    let reader = Watched {
        inner: blob.verified(&job.layer).map_err(store_error(layer))?,
        layer: &job.layer,
        work,
    };
    let options = soci_ztoc::BuildOptions {
        span_size: work.options.span_size,
        threads: work.share(job),
        ahead: work.ahead(job),
        ..soci_ztoc::BuildOptions::default()
    };
    let built = soci_ztoc::Builder::new(options).build(reader, job.compression);
    if work.stopped() {
        return Err(LayerError::Stopped(layer));
    }
    let mut built = match built {
        Ok(built) => built,
        Err(soci_ztoc::BuildError::Tar(error @ TarError::Unsupported { .. })) => {
            return Ok((Err(Skip::Entry(error)), Vec::new()));
        }
        Err(source) => return Err(LayerError::Build { layer, source }),
    };
    work.context.observer.stage(&job.layer, Stage::Storing);
    let (file, digest, size) = write(&mut built, layer)?;
    let ztoc = Descriptor::new(ZTOC_MEDIA_TYPE, digest, size);
    put(work, layer, &ztoc, Content::File(file))?;
    record(work, layer, &ztoc)?;
    let mut questions = Questions::new(work, job, built.spans());
    built
        .each_entry(|entry| questions.see(entry))
        .map_err(|source| LayerError::Temporary { layer, source })?;
    let made = MadeZtoc {
        digest,
        size,
        is_reused: false,
        facts: questions.finish(),
    };
    Ok((Ok(made), built.warnings().to_vec()))
}

/// Whether the layer is non-distributable and the error means that the store does not have it.
fn is_elsewhere(job: &Job, error: &LayerError) -> bool {
    let is_missing = match error {
        LayerError::Store { source, .. } => source.is_not_found(),
        LayerError::Build {
            source: soci_ztoc::BuildError::Read(error),
            ..
        } => error.kind() == io::ErrorKind::NotFound,
        _ => false,
    };
    is_missing && media_type::is_nondistributable(&job.layer.media_type)
}

/// Whether wrong bytes may be the cause, detected by the digest or earlier.
fn is_about_bytes(error: &soci_ztoc::BuildError) -> bool {
    match error {
        soci_ztoc::BuildError::Read(error) => error.kind() == io::ErrorKind::InvalidData,
        soci_ztoc::BuildError::Gzip(_) | soci_ztoc::BuildError::Tar(_) => true,
        _ => false,
    }
}

fn store_error(layer: Digest) -> impl Fn(StoreError) -> LayerError {
    move |source| LayerError::Store {
        layer,
        source: Box::new(source),
    }
}

fn put(work: &Work, layer: Digest, ztoc: &Descriptor, content: Content) -> Result<(), LayerError> {
    let put = work.context.store.put(ztoc, content);
    work.runtime
        .block_on(put)
        .map(drop)
        .map_err(store_error(layer))
}

/// Records the zTOC immediately, so that it is not lost if another layer fails.
fn record(work: &Work, layer: Digest, ztoc: &Descriptor) -> Result<(), LayerError> {
    let entry = records::ztoc(&layer, ztoc, work.options.span_size);
    let Some(records) = &work.context.records else {
        return Ok(());
    };
    records.put(&[entry]).map_err(|source| LayerError::Records {
        layer,
        source: Box::new(source),
    })
}

fn write(built: &mut BuiltZtoc, layer: Digest) -> Result<(File, Digest, u64), LayerError> {
    let temporary = |source| LayerError::Temporary { layer, source };
    let file = tempfile::tempfile().map_err(temporary)?;
    let mut out = Sha256Writer::new(BufWriter::with_capacity(256 << 10, file));
    built
        .encode(&mut out)
        .map_err(|source| LayerError::Encode { layer, source })?;
    out.flush().map_err(temporary)?;
    let (out, digest, size) = out.finish();
    let file = out
        .into_inner()
        .map_err(|error| temporary(error.into_error()))?;
    Ok((file, digest, size))
}

impl<'a> Questions<'a> {
    fn new(work: &'a Work, job: &Job, spans: SpanMap) -> Self {
        let record = work.options.record.as_deref();
        Self {
            search: prefetch::Search::new(&work.options.prefetch),
            record: record.map(|record| RecordSearch::new(record, &job.layer.digest)),
            no_xattrs: true,
            spans: Spans {
                map: spans,
                compression: job.compression,
                size: work.options.span_size,
            },
        }
    }

    fn see(&mut self, entry: &Entry<'_>) {
        self.no_xattrs &= entry.xattrs().next().is_none() && !entry.name.ends_with(OPAQUE_MARKER);
        let spans = &self.spans;
        self.search.see(entry, |offset| spans.at(offset));
        if let Some(record) = &mut self.record {
            record.see(entry.name, entry.content(), |offset| spans.at(offset));
        }
    }

    fn finish(self) -> Facts {
        let (record, spans) = (self.record, self.spans);
        let recorded = record.map(|record| record.finish(|offset| spans.at(offset)));
        Facts {
            no_xattrs: self.no_xattrs,
            wanted: self.search.finish(),
            recorded: recorded.unwrap_or_default(),
        }
    }
}

/// Reports the bytes that are read, and fails when the build is stopped.
struct Watched<'a, R> {
    inner: R,
    layer: &'a Descriptor,
    work: &'a Work,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.work.stopped() {
            return Err(io::Error::other("given up"));
        }
        let read = self.inner.read(buffer)?;
        self.work.context.observer.read(self.layer, read as u64);
        Ok(read)
    }
}
