//! `soci ztoc get-file`: reads one file of a layer through the spans that contain it.
//!
//! Only the spans of the file are downloaded, one after the other. Each is verified against its
//! digest, and its content is written before the next span is read.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use soci_oci::Digest;
use soci_store::durable::{folder_of, sync_name};
use soci_store::{ContentStore, StoreError, errno};
use soci_ztoc::{Decoder, Ztoc, read_archive};
use tempfile::NamedTempFile;
use tokio::runtime::Handle;

use crate::args::{Global, ZtocGetFile};
use crate::output::stream::Stream;
use crate::state::State;

/// Runs the command.
pub(crate) async fn get_file(global: &Global, args: &ZtocGetFile) -> Result<()> {
    let state = State::new(global);
    if !args.is_complete {
        bail!("please provide both a ztoc digest and a filename to extract");
    }
    let digest: Digest = args.digest.parse()?;
    let content = state.content().await?;
    let ztoc = super::read(content.as_ref(), &digest).await?;
    let layer = state.artifacts().get(&digest)?.oci_digest.parse()?;
    let layers: Arc<dyn ContentStore> = Arc::new(state.containerd().await?.clone());
    let (name, output) = (args.file.clone(), args.output.clone());
    let stop = Stop::default();
    let job = Job {
        ztoc,
        name,
        layer: Layer {
            store: layers,
            digest: layer,
            runtime: Handle::current(),
            stopped: stop.flag(),
        },
    };
    let work = async {
        let done = tokio::task::spawn_blocking(move || job.run(output.as_deref())).await;
        done.context("reading the file broke off")?
    };
    crate::signals::unless_interrupted(work).await
}

/// Stops the worker thread when the waiting task is dropped.
#[derive(Default)]
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The source of the compressed bytes.
struct Layer {
    store: Arc<dyn ContentStore>,
    digest: Digest,
    runtime: Handle,
    stopped: Arc<AtomicBool>,
}

/// Why bytes of the layer could not be read.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The bytes are no longer needed.
    #[error("nobody takes the file")]
    Stopped,
}

impl Layer {
    fn fetch(&self, range: Range<u64>) -> Result<Bytes, FetchError> {
        if self.stopped.load(Ordering::Relaxed) {
            return Err(FetchError::Stopped);
        }
        Ok(self
            .runtime
            .block_on(self.store.read_range(&self.digest, range))?)
    }
}

struct Job {
    ztoc: Bytes,
    name: PathBuf,
    layer: Layer,
}

impl Job {
    fn run(&self, output: Option<&Path>) -> Result<()> {
        let ztoc = super::parse(&self.ztoc)?;
        let range = find(&ztoc, self.name.as_os_str().as_bytes())?;
        match output {
            Some(path) => self.to_file(&ztoc, range, path),
            None => self.to_stdout(&ztoc, range),
        }
    }

    fn to_stdout(&self, ztoc: &Ztoc<'_>, range: Range<u64>) -> Result<()> {
        let mut out = Stream::new();
        self.copy(ztoc, range, |bytes| {
            out.write(bytes)?;
            Ok(out.is_open())
        })?;
        out.write(b"\n")?;
        out.finish()
    }

    fn to_file(&self, ztoc: &Ztoc<'_>, range: Range<u64>, path: &Path) -> Result<()> {
        let failed = |action: &'static str| {
            let shown = path.display().to_string();
            move |error: io::Error| anyhow!("{action} {shown}: {}", errno(&error))
        };
        let mut output = Output::at(path).map_err(failed("open"))?;
        self.copy(ztoc, range, |bytes| {
            output.file().write_all(bytes).map_err(failed("write"))?;
            Ok(true)
        })?;
        output.finish().map_err(failed("write"))
    }

    /// Passes the bytes of a range of the archive to `take` until it returns false.
    fn copy(
        &self,
        ztoc: &Ztoc<'_>,
        range: Range<u64>,
        mut take: impl FnMut(&[u8]) -> Result<bool>,
    ) -> Result<()> {
        let mut taken = Ok(true);
        let goes_on = AtomicBool::new(true);
        let fetch = |range| {
            if goes_on.load(Ordering::Relaxed) {
                self.layer.fetch(range)
            } else {
                Err(FetchError::Stopped)
            }
        };
        let read = read_archive(ztoc, range, &mut Decoder::new(), fetch, |bytes| {
            if matches!(taken, Ok(true)) {
                taken = take(bytes);
            }
            goes_on.store(matches!(taken, Ok(true)), Ordering::Relaxed);
        });
        // If `take` stopped the reading, the read error is a consequence and ignored.
        if taken? {
            read?;
        }
        Ok(())
    }
}

/// Finds the range of a file's content in the archive. Links are resolved by exact name only, as in
/// the reference.
fn find(ztoc: &Ztoc<'_>, name: &[u8]) -> Result<Range<u64>> {
    let mut name = name;
    let mut seen = HashSet::new();
    loop {
        let shown = String::from_utf8_lossy(name);
        let entry = ztoc.entries().find(|entry| entry.name == name);
        let entry = entry.ok_or_else(|| anyhow!("file {shown} does not exist in metadata"))?;
        if entry.link.is_empty() {
            return Ok(entry.content());
        }
        if !seen.insert(name) {
            bail!("file {shown} does not exist in metadata: its links lead in a circle");
        }
        name = entry.link;
    }
}

/// The output file. A regular file appears when it is complete; devices and pipes are written
/// directly.
enum Output {
    Draft(NamedTempFile, PathBuf),
    Special(File),
}

impl Output {
    fn at(path: &Path) -> io::Result<Self> {
        // Follow a symlink to a regular file, so that its target is replaced.
        let path = match fs::metadata(path) {
            Ok(metadata) if metadata.is_file() => fs::canonicalize(path)?,
            Ok(metadata) if metadata.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            Ok(_) => return Ok(Self::Special(OpenOptions::new().write(true).open(path)?)),
            Err(_) => path.to_owned(),
        };
        let draft = tempfile::Builder::new()
            .prefix(".soci-")
            .permissions(Permissions::from_mode(0o644))
            .tempfile_in(folder_of(&path))?;
        Ok(Self::Draft(draft, path))
    }

    fn file(&mut self) -> &mut File {
        match self {
            Self::Draft(draft, _) => draft.as_file_mut(),
            Self::Special(file) => file,
        }
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Self::Special(_) => Ok(()),
            Self::Draft(draft, path) => {
                draft.as_file().sync_all()?;
                draft.persist(&path).map_err(|error| error.error)?;
                sync_name(&path)
            }
        }
    }
}

#[cfg(test)]
mod tests;
