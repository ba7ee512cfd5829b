//! Work without containerd: images on disk.

use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use soci_index::{ConvertOptions, Converted, Means, convert};
use soci_oci::store::layout::Layout;
use soci_oci::store::{ContentStore, Stacked, reachable, write_archive};
use soci_oci::{ImageIndex, json};

use crate::args::{Convert, Format, Global};
use crate::convert::conclude;
use crate::destination::{Copier, NewFile, NewFolder};
use crate::output::{Progress, Teller};
use crate::source::Source;

/// `soci convert --standalone`: the image is on disk, and so is the copy.
pub(crate) async fn convert_image(
    global: &Global,
    args: &Convert,
    options: &ConvertOptions,
) -> Result<()> {
    let teller = Arc::new(Teller::new(Progress::new(global.progress), args.json));
    let work = async {
        let source = Source::open(&args.image)?;
        match args.format {
            Format::Archive => to_archive(&source, &args.destination, options, &teller).await,
            Format::Folder => to_folder(source, &args.destination, options, &teller).await,
        }
    };
    let result = crate::unless_interrupted(work).await;
    conclude(args, result, &teller)
}

async fn to_archive(
    source: &Source,
    destination: &Path,
    options: &ConvertOptions,
    teller: &Arc<Teller>,
) -> Result<Converted> {
    let (output, file) = NewFile::create(destination)?;
    let folder = tempfile::Builder::new()
        .prefix("soci-artifacts-")
        .tempdir_in(temporary_base(destination))
        .context("failed to create temp directory")?;
    let work = Layout::create(folder.path())
        .context("failed to create temp directory")?
        .unsynced();
    let store = stacked(work, source);
    let (converted, index) = convert_root(source, &store, options, teller).await?;
    let blobs = reachable(store.as_ref(), &converted.image).await?;
    let progress = teller.progress();
    progress.phase("writing", Some(blobs.values().sum()));
    let out = BufWriter::with_capacity(1 << 20, file);
    let out = write_archive(out, store.as_ref(), &blobs, &index, progress.counter()).await?;
    let written = out
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error);
    drop(written.context("failed to write output tar")?);
    output.finish()?;
    Ok(converted)
}

async fn to_folder(
    source: Source,
    destination: &Path,
    options: &ConvertOptions,
    teller: &Arc<Teller>,
) -> Result<Converted> {
    let output = NewFolder::create(destination)?;
    let store = stacked(output.layout.clone(), &source);
    let (converted, index) = convert_root(&source, &store, options, teller).await?;
    let progress = teller.progress();
    progress.phase("copying", None);
    let stop = StopOnDrop(Arc::default());
    let copier = Copier {
        stop: Arc::clone(&stop.0),
        count: Box::new(progress.counter()),
    };
    let copied = tokio::task::spawn_blocking(move || {
        output.copy(&source.layout, &copier)?;
        output.layout.write_index(&index)?;
        output.finish()
    });
    copied.await??;
    Ok(converted)
}

/// Ends work on another thread when whoever waits for it goes away.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn stacked(work: Layout, source: &Source) -> Arc<dyn ContentStore> {
    Arc::new(Stacked {
        upper: Arc::new(work),
        lower: source.store(),
    })
}

/// Converts the image of a source; also gives the `index.json` of the result.
async fn convert_root(
    source: &Source,
    store: &Arc<dyn ContentStore>,
    options: &ConvertOptions,
    teller: &Arc<Teller>,
) -> Result<(Converted, Vec<u8>)> {
    let root = source.root(store.as_ref()).await?;
    let means = Means {
        source: Arc::clone(store),
        store: Arc::clone(store),
        known: Vec::new(),
        records: None,
        observer: teller.clone(),
    };
    let converted = convert(&means, &root, options).await?;
    let index = json::to_vec(&ImageIndex::new(vec![converted.image.clone()]));
    Ok((converted, index))
}

/// Where new blobs wait for the archive: the system's folder, or that of the destination.
fn temporary_base(destination: &Path) -> PathBuf {
    let system = std::env::temp_dir();
    if system.is_dir() {
        return system;
    }
    match destination.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
