//! Decompresses with a program that the administrator chose: compressed bytes on its standard
//! input, the tar on its standard output, and complaints on its standard error.
//!
//! What a program writes is trusted no more than a download: the diff-ID decides. A program that
//! fails, hangs, or writes something else costs a second download. After three such layers in a row
//! it is not used again. One that does not start costs nothing.

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
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::mpsc::UnboundedReceiver,
    time::{Instant, timeout},
};

use super::{StreamError, rooms::Rooms, stages::Tar};
use crate::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

/// A program that neither takes nor writes anything hangs after this time.
const PATIENCE: Duration = Duration::from_secs(60);
/// Failures in a row after which a program is not used. One may be of a mirror's wrong byte, or of a
/// node that is overloaded.
const FAILURES: u32 = 3;
/// Bytes that a program is given at once. It makes progress with each part.
const PART: usize = 64 << 10;
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
    /// How many layers in a row it failed for that our own decoder can decompress.
    failures: AtomicU32,
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
    /// The program for a format, unless it has failed too often.
    pub(super) fn of(&self, format: LayerFormat) -> Option<Arc<Program>> {
        let program = match format {
            LayerFormat::Plain => None,
            LayerFormat::Gzip => self.gzip.as_ref(),
            LayerFormat::Zstd => self.zstd.as_ref(),
        };
        program.filter(|program| program.is_used()).cloned()
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
            failures: AtomicU32::new(0),
        }
    }

    /// Changes how long a program that does nothing is waited for.
    #[cfg(test)]
    pub(in crate::layer) fn be_patient_for(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// How many layers in a row it failed for.
    #[cfg(test)]
    pub(in crate::layer) fn failures(&self) -> u32 {
        self.failures.load(Ordering::Relaxed)
    }

    fn is_used(&self) -> bool {
        self.failures.load(Ordering::Relaxed) < FAILURES
    }

    /// The program failed for a layer that is fine.
    pub(super) fn failed(&self, layer: &Digest, error: &StreamError) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        let then = if failures < FAILURES {
            "it is tried again with the next layer"
        } else {
            "it is not used until the daemon restarts"
        };
        tracing::warn!(
            program = self.path.display().to_string(),
            layer = layer.to_string(),
            failures,
            error = error as &dyn std::error::Error,
            "a program of decompress_streams did not decompress a layer correctly; the layer was decompressed without it, and {then}"
        );
    }

    /// The program decompressed a layer correctly. A program that is no longer used stays so.
    pub(super) fn worked(&self) {
        let reset = |failures| (failures < FAILURES).then_some(0);
        // An error means that there is nothing to reset.
        let _unchanged = self
            .failures
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, reset);
    }

    /// Starts the program. `None` if it does not start, which may be the node's fault: our own
    /// decoder takes the layer.
    pub(super) fn start(&self, layer: &Digest) -> Option<Child> {
        let started = Command::new(&self.path)
            .args(&self.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        if let Err(error) = &started {
            tracing::warn!(
                program = self.path.display().to_string(),
                layer = layer.to_string(),
                error = error as &dyn std::error::Error,
                "cannot start a program of decompress_streams; the layer is decompressed without it"
            );
        }
        started.ok()
    }

    /// Decompresses the first bytes and then those that follow. Dropping the future kills the
    /// program.
    pub(super) async fn decompress(
        &self,
        mut child: Child,
        layer: Digest,
        (first, steps): (Bytes, UnboundedReceiver<Bytes>),
        tar: Tar,
    ) -> Result<(), StreamError> {
        let failed = |reason: String| StreamError::Program {
            layer: Box::new(layer),
            program: self.path.display().to_string(),
            reason,
        };
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = (stdin, stdout, stderr) else {
            return Err(failed("it has no pipes".to_owned()));
        };
        let progress = Progress::new();
        let results = async { tokio::join!(take(stdout, tar, &progress), complaint(stderr)) };
        let (taken, complaint) = tokio::select! {
            results = results => results,
            reason = self.give(stdin, first, steps, &progress) => return Err(failed(reason)),
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
        progress: &Progress,
    ) -> String {
        let mut stdin = widened(stdin);
        let mut next = Some(first);
        'all: while let Some(bytes) = next {
            for part in bytes.chunks(PART) {
                progress.made();
                tokio::select! {
                    biased;
                    written = stdin.write_all(part) => if written.is_err() {
                        // It wants no more, perhaps because it has failed.
                        break 'all;
                    },
                    () = progress.ends(self.patience) => {
                        return "it does not read its input".to_owned();
                    }
                }
            }
            drop(bytes);
            next = steps.recv().await;
        }
        drop((stdin, steps));
        progress.made();
        progress.ends(self.patience).await;
        "it has all of its input and writes nothing".to_owned()
    }
}

/// When a program last took or wrote something.
struct Progress {
    last: Mutex<Instant>,
    /// Whether the program's output waits for us. That is no fault of the program.
    is_ours: AtomicBool,
}

impl Progress {
    fn new() -> Progress {
        Progress {
            last: Mutex::new(Instant::now()),
            is_ours: AtomicBool::new(false),
        }
    }

    fn made(&self) {
        *self.last.lock() = Instant::now();
    }

    /// Waits until the program has made no progress for some time.
    async fn ends(&self, patience: Duration) {
        loop {
            if self.is_ours.load(Ordering::Relaxed) {
                self.made();
            }
            let until = *self.last.lock() + patience;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

/// Takes the tar that a program writes, until it closes its output.
async fn take(stdout: ChildStdout, tar: Tar, progress: &Progress) -> std::io::Result<()> {
    let mut stdout = widened(stdout);
    let mut rooms = Rooms::new();
    loop {
        progress.is_ours.store(true, Ordering::Relaxed);
        let (mut room, mut filled) = (rooms.next().await, 0);
        progress.made();
        progress.is_ours.store(false, Ordering::Relaxed);
        while let Some(rest) = room.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let read = stdout.read(rest).await?;
            progress.made();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_used_until_it_fails_three_times_in_a_row() {
        let layer = Digest::sha256(b"layer");
        let program = Arc::new(Program::new("/bin/false".into(), Vec::new()));
        let programs = Programs {
            gzip: Some(Arc::clone(&program)),
            zstd: None,
        };
        let is_used = || programs.of(LayerFormat::Gzip).is_some();
        let fails = || {
            let error = StreamError::Program {
                layer: Box::new(layer),
                program: "false".to_owned(),
                reason: "exit status 1".to_owned(),
            };
            program.failed(&layer, &error);
        };
        for _ in 0..2 {
            fails();
            fails();
            assert!(is_used());
            program.worked();
        }
        fails();
        fails();
        fails();
        assert!(!is_used());
        // One that was started before.
        program.worked();
        assert!(!is_used());
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_our_own_stages_is_no_fault_of_the_program() {
        let progress = Progress::new();
        let patience = Duration::from_secs(60);
        progress.is_ours.store(true, Ordering::Relaxed);
        let waited = timeout(patience * 10, progress.ends(patience)).await;
        assert!(waited.is_err(), "our own stages are slow");
        progress.made();
        progress.is_ours.store(false, Ordering::Relaxed);
        let waited = timeout(patience * 10, progress.ends(patience)).await;
        assert!(waited.is_ok(), "the program does nothing");
    }
}
