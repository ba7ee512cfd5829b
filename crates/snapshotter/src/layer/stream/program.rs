//! Decompresses with a program that the administrator chose: compressed bytes on its standard
//! input, the tar on its standard output, and complaints on its standard error.
//!
//! What a program writes is trusted no more than a download: the diff-ID decides. A program that
//! fails, hangs, or writes something else costs a second download, and is not used again.

use std::{
    os::fd::AsFd,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use bytes::Bytes;
use soci_oci::Digest;
use soci_ztoc::LayerFormat;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    process::{ChildStdin, ChildStdout, Command},
    sync::mpsc::UnboundedReceiver,
    time::{Instant, timeout},
};

use super::{StreamError, rooms::Rooms, stages::Tar};
use crate::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

/// A program that takes nothing, and one that writes nothing after it was given everything, hangs
/// after this time.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of a pipe. The default is too small to keep two processes busy.
const PIPE: usize = 1 << 20;
/// Bytes of a complaint in an error.
const COMPLAINT: u64 = 4 << 10;

/// A program that decompresses (`decompress_streams`).
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    args: Vec<String>,
    patience: Duration,
    /// It failed for a layer that our own decoder can decompress.
    failed: AtomicBool,
}

/// The programs by format.
#[derive(Clone, Debug, Default)]
pub struct Programs {
    /// For gzip.
    pub gzip: Option<Arc<Program>>,
    /// For zstd.
    pub zstd: Option<Arc<Program>>,
}

impl Programs {
    /// The program for a format, unless it has failed before.
    pub(super) fn of(&self, format: LayerFormat) -> Option<Arc<Program>> {
        let program = match format {
            LayerFormat::Plain => None,
            LayerFormat::Gzip => self.gzip.as_ref(),
            LayerFormat::Zstd => self.zstd.as_ref(),
        };
        let program = program.filter(|program| !program.failed.load(Ordering::Relaxed));
        program.cloned()
    }
}

impl Program {
    /// A program and its arguments. No shell is involved.
    #[must_use]
    pub fn new(path: PathBuf, args: Vec<String>) -> Program {
        Program {
            path,
            args,
            patience: PATIENCE,
            failed: AtomicBool::new(false),
        }
    }

    /// Changes how long a program that does nothing is waited for.
    #[cfg(test)]
    pub(in crate::layer) fn be_patient_for(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Whether the program is no longer used.
    #[cfg(test)]
    pub(in crate::layer) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// The program failed for a layer that is fine.
    pub(super) fn give_up(&self, layer: &Digest, error: &StreamError) {
        if !self.failed.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                program = self.path.display().to_string(),
                layer = layer.to_string(),
                error = error as &dyn std::error::Error,
                "a program of decompress_streams did not decompress a layer correctly; the layer was decompressed without it, and it is not used until the daemon restarts"
            );
        }
    }

    /// Decompresses the bytes of `first` and then of `steps`. Dropping the future kills the
    /// program.
    pub(super) async fn decompress(
        &self,
        layer: Digest,
        first: Bytes,
        steps: UnboundedReceiver<Bytes>,
        tar: Tar,
    ) -> Result<(), StreamError> {
        let failed = |reason: String| StreamError::Program {
            layer: Box::new(layer),
            program: self.path.display().to_string(),
            reason,
        };
        let mut child = Command::new(&self.path)
            .args(&self.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
            return Err(failed("it has no pipes".to_owned()));
        };
        let last = Mutex::new(Instant::now());
        let results = async { tokio::join!(take(stdout, tar, &last), complaint(stderr)) };
        let (taken, complaint) = tokio::select! {
            results = results => results,
            reason = self.give(stdin, first, steps, &last) => return Err(failed(reason)),
        };
        taken.map_err(|error| failed(error.to_string()))?;
        match timeout(self.patience, child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(failed(format!("{}: {complaint}", ending(status)))),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed("it closed its output and does not end".to_owned())),
        }
    }

    /// Gives the program its input and watches it. Returns the reason if it hangs.
    async fn give(
        &self,
        stdin: ChildStdin,
        first: Bytes,
        mut steps: UnboundedReceiver<Bytes>,
        last: &Mutex<Instant>,
    ) -> String {
        let mut stdin = widened(stdin);
        let mut next = Some(first);
        while let Some(bytes) = next {
            match timeout(self.patience, stdin.write_all(&bytes)).await {
                Ok(Ok(())) => {}
                // It wants no more, perhaps because it has failed.
                Ok(Err(_)) => break,
                Err(_) => return "it does not read its input".to_owned(),
            }
            drop(bytes);
            next = steps.recv().await;
        }
        drop((stdin, steps));
        *last.lock() = Instant::now();
        loop {
            let until = *last.lock() + self.patience;
            if until <= Instant::now() {
                return "it has all of its input and writes nothing".to_owned();
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

/// Takes the tar that a program writes, until it closes its output.
async fn take(stdout: ChildStdout, tar: Tar, last: &Mutex<Instant>) -> std::io::Result<()> {
    let mut stdout = widened(stdout);
    let mut rooms = Rooms::new();
    loop {
        let (mut room, mut filled) = (rooms.next().await, 0);
        while let Some(rest) = room.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let read = stdout.read(rest).await?;
            *last.lock() = Instant::now();
            if read == 0 {
                tar.push(&rooms.lend(room, filled));
                return Ok(());
            }
            filled += read;
        }
        tar.push(&rooms.lend(room, filled));
    }
}

/// The beginning of what a program complains about. Takes all of it.
async fn complaint(stderr: impl AsyncRead + Unpin) -> String {
    let (mut stderr, mut text) = (stderr, Vec::new());
    let mut start = (&mut stderr).take(COMPLAINT);
    // An error ends the complaint, nothing else.
    drop(start.read_to_end(&mut text).await);
    drop(tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await);
    String::from_utf8_lossy(&text).trim_end().to_owned()
}

fn ending(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// A pipe with room for more bytes, if the system allows it.
fn widened<P: AsFd>(pipe: P) -> P {
    if let Err(error) = rustix::pipe::fcntl_setpipe_size(&pipe, PIPE) {
        tracing::debug!(error = %error, "a pipe keeps its size");
    }
    pipe
}
