//! Writes a converted image as an archive of an OCI layout.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{BufWriter, IntoInnerError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use soci_oci::Digest;
use soci_store::durable::folder_of;
use soci_store::layout::Layout;
use soci_store::{Checked, ContentStore, blocking, reachable, write_archive};

use super::error::{Error, OutputError};
use super::layout::{index_json, stacked};
use super::observer::{ConversionObserver, Phase};
use super::place::NewFile;
use super::stop::{StopOnDrop, Stoppable};
use super::{Input, Job, counter, fetch};
use crate::convert::Converted;

/// The destination of an archive.
pub(super) struct Out {
    /// Renames the file when it is complete; `None` for a stream.
    place: Option<NewFile>,
    file: File,
    /// The final path, if it is a file.
    path: Option<PathBuf>,
}

impl Out {
    pub(super) fn at(path: &Path) -> Result<Self, OutputError> {
        let (place, file) = NewFile::create(path)?;
        Ok(Self {
            place: Some(place),
            file,
            path: Some(path.to_owned()),
        })
    }

    pub(super) fn stream(file: File) -> Self {
        Self {
            place: None,
            file,
            path: None,
        }
    }
}

pub(super) async fn to_archive(
    job: &Job,
    input: Input,
    out: Out,
    name: Option<&str>,
) -> Result<Converted, Error> {
    let Out { place, file, path } = out;
    let base = match (&input, &path) {
        // This folder will contain a whole image, not only new blobs.
        (Input::Registry(_), Some(path)) => folder_of(path),
        (_, path) => temporary_base(path.as_deref()),
    };
    let folder = tempfile::Builder::new()
        .prefix("soci-artifacts-")
        .tempdir_in(base)
        .map_err(|error| OutputError::Temporary(error.into()))?;
    let work = Layout::create(folder.path())
        .map_err(|error| OutputError::Temporary(error.into()))?
        .unsynced();
    let (converted, store): (_, Arc<dyn ContentStore>) = match input {
        Input::Registry(source) => {
            let converted = fetch::convert(job, source, &work).await?;
            (converted, Arc::new(work.clone()))
        }
        Input::Local(source) => {
            let store = stacked(&work, &source);
            let root = source.root(store.as_ref()).await?;
            let convert = job.convert(Arc::clone(&store), Arc::clone(&store), &root);
            (convert.await?, store)
        }
    };
    let blobs = reachable(store.as_ref(), &converted.image).await?;
    let store = Checked {
        trusted: Arc::new(trusted(&converted, &work, &blobs).await?),
        store,
    };
    job.observer
        .phase(Phase::Writing, Some(blobs.values().sum()));
    let index = index_json(&converted.image, name);
    let stop = StopOnDrop::default();
    let out = Stoppable::new(BufWriter::with_capacity(1 << 20, file), &stop);
    let out = write_archive(out, &store, &blobs, &index, counter(&job.observer)).await?;
    let written = out.into_inner().into_inner();
    let written = written.map_err(IntoInnerError::into_error);
    let written = written.map_err(OutputError::WriteArchive)?;
    if let Some(place) = place {
        let flag = stop.flag();
        let finish = move || {
            flag.check().map_err(OutputError::WriteArchive)?;
            place.finish(&written)
        };
        blocking(finish).await?;
    }
    Ok(converted)
}

/// Blobs whose digests were already verified: layers that were indexed, and blobs in the work
/// folder.
async fn trusted(
    converted: &Converted,
    work: &Layout,
    blobs: &BTreeMap<Digest, u64>,
) -> Result<HashSet<Digest>, Error> {
    let mut trusted: HashSet<Digest> = fetch::verified_layers(converted).collect();
    for digest in blobs.keys() {
        if work.size(digest).await?.is_some() {
            trusted.insert(*digest);
        }
    }
    Ok(trusted)
}

/// The folder for new blobs until the archive is written: the system's temporary folder, or the
/// destination's folder if that does not exist.
fn temporary_base(destination: Option<&Path>) -> PathBuf {
    let system = std::env::temp_dir();
    match destination {
        Some(destination) if !system.is_dir() => folder_of(destination),
        _ => system,
    }
}
