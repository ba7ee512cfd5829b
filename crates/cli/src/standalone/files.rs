//! Writes converted images to disk.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, bail};
use soci_index::{Converted, Outcome};
use soci_oci::manifest::MAX_DOCUMENT_BYTES;
use soci_oci::{Descriptor, Digest, ImageIndex, json};
use soci_store::durable::{folder_of, sync_name, sync_names};
use soci_store::layout::{INDEX_NAME, LAYOUT_NAME, Layout, read_root_file};
use soci_store::registry::{RegistryStore, graph};
use soci_store::{Checked, Content, ContentStore, Stacked, StoreError, reachable, write_archive};
use tokio::task::JoinSet;

use super::{Input, Job};
use crate::destination::{self, Copier, NewFile, NewFolder};
use crate::source::{Either, REF_NAME, Source};
use crate::transport::Transport;

/// Blobs to copy concurrently.
const AT_ONCE: usize = 4;

/// The destination of an archive.
pub(super) struct Out {
    /// Renames the file when it is complete; `None` for standard output.
    place: Option<NewFile>,
    file: File,
    /// The final path, if it is a file.
    path: Option<PathBuf>,
}

impl Out {
    pub(super) fn at(path: &Path) -> Result<Self> {
        let (place, file) = NewFile::create(path)?;
        Ok(Self {
            place: Some(place),
            file,
            path: Some(path.to_owned()),
        })
    }

    pub(super) fn piped() -> Result<Self> {
        if io::stdout().is_terminal() {
            bail!("an archive on a terminal is of no use; redirect standard output");
        }
        let file = io::stdout().as_fd().try_clone_to_owned();
        Ok(Self {
            place: None,
            file: file.context("write to standard output")?.into(),
            path: None,
        })
    }
}

/// The folder for an archive from standard input: next to the result, where there should be space
/// for the image.
pub(super) fn spool_folder(to: &Transport) -> PathBuf {
    match to {
        Transport::Folder { path, .. }
        | Transport::Archive { path, .. }
        | Transport::Path(path) => folder_of(path),
        Transport::Registry(_) | Transport::DockerArchive { .. } | Transport::Pipe => {
            std::env::temp_dir()
        }
    }
}

pub(super) async fn to_archive(
    job: &Job,
    input: Input,
    out: Out,
    tag: Option<&str>,
) -> Result<Converted> {
    let Out { place, file, path } = out;
    let base = match (&input, &path) {
        // This folder will contain a whole image, not only new blobs.
        (Input::Registry(_), Some(path)) => folder_of(path),
        (_, path) => temporary_base(path.as_deref()),
    };
    let folder = tempfile::Builder::new()
        .prefix("soci-artifacts-")
        .tempdir_in(base)
        .context("failed to create temp directory")?;
    let work = Layout::create(folder.path())
        .context("failed to create temp directory")?
        .unsynced();
    let (root, store): (_, Arc<dyn ContentStore>) = match &input {
        Input::Registry(source) => {
            let root = fetch(job, source, &work).await?;
            (root, Arc::new(work.clone()))
        }
        Input::Files(source) => {
            let store = stacked(&work, source);
            (source.root(store.as_ref()).await?, store)
        }
    };
    let converted = job
        .convert(Arc::clone(&store), Arc::clone(&store), &root)
        .await?;
    let blobs = reachable(store.as_ref(), &converted.image).await?;
    let store = Checked {
        trusted: Arc::new(trusted(&converted, &work, &blobs).await?),
        store,
    };
    let progress = job.teller.progress();
    progress.phase("writing", Some(blobs.values().sum()));
    let index = index_json(&converted.image, tag);
    let out = BufWriter::with_capacity(1 << 20, file);
    let out = write_archive(out, &store, &blobs, &index, progress.counter()).await?;
    let written = out
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error);
    let written = written.context("failed to write output tar")?;
    if let Some(place) = place {
        tokio::task::spawn_blocking(move || place.finish(&written)).await??;
    }
    Ok(converted)
}

/// Writes a folder in the reference's way: everything that the source contains, and the new blobs.
pub(super) async fn to_folder(job: &Job, input: Input, path: &Path) -> Result<Converted> {
    let output = NewFolder::create(path)?;
    let work = output.layout.clone();
    let store: Arc<dyn ContentStore> = Arc::new(work.clone());
    let (converted, rest) = match input {
        Input::Registry(source) => {
            let root = fetch(job, &source, &work).await?;
            (job.convert(Arc::clone(&store), store, &root).await?, None)
        }
        Input::Files(source) => {
            let store = stacked(&work, &source);
            let root = source.root(store.as_ref()).await?;
            let converted = job.convert(Arc::clone(&store), store, &root).await?;
            if let Either::Docker(_) = source.layout {
                copy(job, source.store(), &work, &converted).await?;
                (converted, None)
            } else {
                (converted, Some(source))
            }
        }
    };
    let progress = job.teller.progress();
    progress.phase("copying", None);
    let stop = StopOnDrop(Arc::default());
    let copier = Copier {
        stop: Arc::clone(&stop.0),
        count: Box::new(progress.counter()),
    };
    let index = index_json(&converted.image, None);
    let copied = tokio::task::spawn_blocking(move || {
        if let Some(source) = rest {
            output.copy(&source.layout, &copier)?;
        }
        output.layout.write_index(&index)?;
        output.finish()
    });
    copied.await??;
    Ok(converted)
}

/// Adds the image to a layout. Existing content stays, except an image with the same name. Other
/// processes may write to the layout at the same time.
pub(super) async fn to_layout(
    job: &Job,
    input: Input,
    path: &Path,
    tag: Option<&str>,
) -> Result<Converted> {
    let is_layout = path.join(LAYOUT_NAME).is_file();
    let (layout, new) = if is_layout {
        (Layout::create(path)?, None)
    } else {
        let new = NewFolder::create(path)?;
        (new.layout.clone(), Some(new))
    };
    let store: Arc<dyn ContentStore> = Arc::new(layout.clone());
    let converted = match input {
        Input::Registry(source) => {
            let root = fetch(job, &source, &layout).await?;
            job.convert(Arc::clone(&store), store, &root).await?
        }
        Input::Files(source) => {
            let store = stacked(&layout, &source);
            let root = source.root(store.as_ref()).await?;
            let converted = job.convert(Arc::clone(&store), store, &root).await?;
            copy(job, source.store(), &layout, &converted).await?;
            converted
        }
    };
    let (place, member) = (path.to_owned(), named(&converted.image, tag));
    let done = tokio::task::spawn_blocking(move || {
        if let Some(new) = new {
            layout.write_index(&json::to_vec(&ImageIndex::new(vec![member.clone()])))?;
            if new.finish_or_join()? {
                return Ok(());
            }
        }
        enlist(&place, member)
    });
    done.await??;
    Ok(converted)
}

/// Adds an image to the index of an existing layout.
fn enlist(layout: &Path, member: Descriptor) -> Result<()> {
    let _turn = destination::turn(layout)?;
    let failed = || format!("failed to write to {}", layout.display());
    // Blobs must be durable before the index names them.
    sync_names(&layout.join("blobs")).with_context(failed)?;
    let bytes = read_root_file(layout, INDEX_NAME, MAX_DOCUMENT_BYTES)?;
    let index: ImageIndex = json::from_slice(&bytes)
        .with_context(|| format!("{}: unmarshal index.json", layout.display()))?;
    Layout::at(layout).write_index(&json::to_vec(&with(index, member)))?;
    sync_name(&layout.join(INDEX_NAME)).with_context(failed)
}

/// Adds an entry to the index, replacing one with the same name. Without a name, it only replaces
/// an entry for the same image.
fn with(mut index: ImageIndex, member: Descriptor) -> ImageIndex {
    let mut members = index.manifests.take().unwrap_or_default();
    let name = member.annotation(REF_NAME);
    members.retain(|old| {
        old.annotation(REF_NAME) != name || (name.is_none() && old.digest != member.digest)
    });
    members.push(member);
    index.manifests = Some(members);
    index
}

fn named(image: &Descriptor, tag: Option<&str>) -> Descriptor {
    let mut member = image.clone();
    if let Some(tag) = tag {
        member
            .annotations
            .insert(REF_NAME.to_owned(), tag.to_owned());
    }
    member
}

fn index_json(image: &Descriptor, tag: Option<&str>) -> Vec<u8> {
    json::to_vec(&ImageIndex::new(vec![named(image, tag)]))
}

/// Downloads an image from a registry into a layout and verifies everything.
async fn fetch(job: &Job, source: &RegistryStore, to: &Layout) -> Result<Descriptor> {
    let root = source.root().await?;
    let all = graph(source, &root).await?;
    let bytes = all.blobs.values().map(|blob| blob.size).sum();
    job.teller.progress().phase("fetching", Some(bytes));
    for node in all.documents {
        to.put(&node.descriptor, Content::Bytes(node.bytes)).await?;
    }
    let from: Arc<dyn ContentStore> = Arc::new(source.clone());
    receive(job, &from, to, all.blobs.into_values()).await?;
    Ok(root)
}

/// Copies the missing blobs of an image and verifies them.
async fn copy(
    job: &Job,
    source: Arc<dyn ContentStore>,
    to: &Layout,
    converted: &Converted,
) -> Result<()> {
    let both = Stacked {
        upper: Arc::new(to.clone()),
        lower: Arc::clone(&source),
    };
    let blobs = reachable(&both, &converted.image).await?;
    let progress = job.teller.progress();
    progress.phase("copying", Some(blobs.values().sum()));
    let mut missing = Vec::new();
    for (digest, size) in blobs {
        if to.size(&digest).await? != Some(size) {
            missing.push(Descriptor::new("", digest, size));
        }
    }
    receive(job, &source, to, missing.into_iter()).await
}

/// Copies a few blobs concurrently.
async fn receive(
    job: &Job,
    from: &Arc<dyn ContentStore>,
    to: &Layout,
    mut blobs: impl Iterator<Item = Descriptor>,
) -> Result<()> {
    let mut copies = JoinSet::new();
    loop {
        while copies.len() < AT_ONCE
            && let Some(blob) = blobs.next()
        {
            let count = job.teller.progress().counter();
            copies.spawn(copy_one(Arc::clone(from), to.clone(), blob, count));
        }
        match copies.join_next().await {
            Some(copied) => copied??,
            None => return Ok(()),
        }
    }
}

async fn copy_one(
    from: Arc<dyn ContentStore>,
    to: Layout,
    blob: Descriptor,
    count: impl Fn(u64) + Clone + Send + 'static,
) -> Result<()> {
    match copy_from(&from, to.clone(), blob.clone(), count.clone()).await {
        Err(error) if is_about_bytes(&error) && from.distrust(&blob.digest) => {
            copy_from(&from, to, blob, count).await
        }
        done => done,
    }
}

/// Whether incorrect bytes can be the cause.
fn is_about_bytes(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref(),
        Some(StoreError::Digest(_) | StoreError::Size { .. })
    )
}

async fn copy_from(
    from: &Arc<dyn ContentStore>,
    to: Layout,
    blob: Descriptor,
    count: impl Fn(u64) + Send + 'static,
) -> Result<()> {
    let stop = StopOnDrop(Arc::default());
    let reader = Stoppable {
        inner: from.open(&blob.digest).await?.reader,
        stop: Arc::clone(&stop.0),
    };
    let received = tokio::task::spawn_blocking(move || to.receive(&blob, reader, &count));
    received.await??;
    Ok(())
}

/// Blobs whose digests were already verified: layers that were indexed, and blobs in the work
/// folder.
async fn trusted(
    converted: &Converted,
    work: &Layout,
    blobs: &BTreeMap<Digest, u64>,
) -> Result<HashSet<Digest>> {
    let layers = converted.platforms.iter().flat_map(|it| &it.parts.layers);
    let built = layers.filter(|layer| matches!(layer.outcome, Outcome::Built(_)));
    let mut trusted: HashSet<Digest> = built.map(|layer| layer.layer.digest).collect();
    for digest in blobs.keys() {
        if work.size(digest).await?.is_some() {
            trusted.insert(*digest);
        }
    }
    Ok(trusted)
}

fn stacked(work: &Layout, source: &Source) -> Arc<dyn ContentStore> {
    Arc::new(Stacked {
        upper: Arc::new(work.clone()),
        lower: source.store(),
    })
}

/// Stops the work on another thread when the waiting task is dropped.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Stoppable<R> {
    inner: R,
    stop: Arc<AtomicBool>,
}

impl<R: io::Read> io::Read for Stoppable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("given up"));
        }
        self.inner.read(buffer)
    }
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
