//! The control socket `control.sock` in the state directory, for commands of the same user.
//!
//! A request is a word and a newline. The answer consists of lines of JSON ([`Answer`]): any number
//! of layers or reads, then the outcome.

use std::fs::{self, File, Permissions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::reads::{show as show_read, show_head};
use super::scrub::Scrubber;
use crate::layer::{ReadWait, Scrubbed};

/// Name of the socket in the state directory.
const SOCKET: &str = "control.sock";
const SCRUB: &str = "scrub";
const READS: &str = "reads";
/// Limits on the length of a request in bytes, and on the time to send it.
const MOST: u64 = 256;
const PATIENCE: Duration = Duration::from_secs(5);

/// One line of an answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Layer(Scrubbed),
    Read(ReadWait),
    Error(String),
    Done,
}

/// A path of the socket that is short enough for any state directory, and the descriptor it needs.
fn socket(root: &Path) -> io::Result<(File, PathBuf)> {
    let folder = File::open(root)?;
    let path = format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd());
    Ok((folder, path.into()))
}

/// Serves on the control socket of `root`, which this process has locked, until the tasks are
/// dropped.
pub(super) fn serve(root: &Path, scrubber: Scrubber, tasks: &mut JoinSet<()>) -> io::Result<()> {
    let (_folder, path) = socket(root)?;
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    // Protects the socket even if the state directory has been opened to other users.
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    // One request at a time. Others wait in the socket's queue.
    tasks.spawn(async move {
        loop {
            let answered = match listener.accept().await {
                Ok((stream, _)) => answer(stream, &scrubber).await,
                Err(error) => {
                    tokio::time::sleep(PATIENCE).await;
                    Err(error)
                }
            };
            if let Err(error) = answered {
                tracing::debug!(error = %error, "a request on the control socket failed");
            }
        }
    });
    Ok(())
}

/// Answers one request. An error concerns the connection only.
async fn answer(stream: UnixStream, scrubber: &Scrubber) -> io::Result<()> {
    let (from, mut to) = stream.into_split();
    let mut request = String::new();
    let mut from = tokio::io::BufReader::new(from.take(MOST));
    tokio::time::timeout(PATIENCE, from.read_line(&mut request)).await??;
    let end = match request.trim_end() {
        SCRUB => {
            let (tell, mut told) = mpsc::channel(1);
            let line = &mut to;
            // A client that disconnects drops `told`, which ends the scrub.
            let write = async move {
                while let Some(found) = told.recv().await {
                    say(line, &Answer::Layer(found)).await?;
                }
                io::Result::Ok(())
            };
            tokio::join!(scrubber.all(tell), write).1?;
            Answer::Done
        }
        READS => {
            for wait in scrubber.layers.waits() {
                say(&mut to, &Answer::Read(wait)).await?;
            }
            Answer::Done
        }
        other => Answer::Error(format!("unknown request {other:?}")),
    };
    say(&mut to, &end).await
}

async fn say(to: &mut (impl AsyncWriteExt + Unpin), answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    to.write_all(&line).await
}

/// Has the daemon of `root` scrub its store and prints each result as it arrives. Returns true if
/// no damage remains.
///
/// # Errors
///
/// When no daemon runs on `root`, or it ends before the scrub does.
pub fn scrub(root: &Path, json: bool, to: &mut dyn Write) -> anyhow::Result<bool> {
    let mut total = Total::default();
    for answer in ask(root, SCRUB)? {
        match answer? {
            Answer::Layer(found) if json => {
                serde_json::to_writer(&mut *to, &found)?;
                writeln!(to)?;
                total.add(&found);
            }
            Answer::Layer(found) => {
                show(to, &found)?;
                total.add(&found);
            }
            Answer::Read(_) => {}
            Answer::Error(error) => bail!("the daemon rejected the request: {error}"),
            Answer::Done => {
                if !json {
                    total.show(to)?;
                }
                return Ok(total.is_well());
            }
        }
    }
    bail!("the daemon ended before the scrub finished; see its log")
}

/// Prints the most recent reads that waited for bytes in the daemon of `root`, oldest first.
///
/// # Errors
///
/// When no daemon runs on `root`, or it ends before it has answered.
pub fn reads(root: &Path, json: bool, to: &mut dyn Write) -> anyhow::Result<()> {
    if !json {
        show_head(to)?;
    }
    for answer in ask(root, READS)? {
        match answer? {
            Answer::Read(wait) if json => {
                serde_json::to_writer(&mut *to, &wait)?;
                writeln!(to)?;
            }
            Answer::Read(wait) => show_read(to, &wait)?,
            Answer::Layer(_) => {}
            Answer::Error(error) => bail!("the daemon rejected the request: {error}"),
            Answer::Done => return Ok(()),
        }
    }
    bail!("the daemon ended before it answered; see its log")
}

/// Sends a request to the daemon of `root`. Returns its answers as they arrive.
fn ask(root: &Path, what: &str) -> anyhow::Result<impl Iterator<Item = anyhow::Result<Answer>>> {
    let nobody = || {
        let root = root.display();
        format!(
            "no daemon runs on the root directory {root}: start it, or set its root directory with --root"
        )
    };
    let (_folder, path) = socket(root).with_context(nobody)?;
    let mut stream = net::UnixStream::connect(path).with_context(nobody)?;
    writeln!(stream, "{what}")?;
    Ok(BufReader::new(stream).lines().map(|line| {
        let line = line.context("the daemon's answer is incomplete")?;
        serde_json::from_str(&line).context("cannot parse the daemon's answer")
    }))
}

fn show(to: &mut dyn Write, found: &Scrubbed) -> io::Result<()> {
    let Scrubbed {
        layer,
        image,
        checked,
        differing,
        refetched,
        problem,
        ..
    } = found;
    writeln!(
        to,
        "{layer} {checked} spans checked, {differing} differing, {refetched} fetched again ({image})"
    )?;
    match problem {
        Some(problem) => writeln!(to, "  {problem}"),
        None => Ok(()),
    }
}

/// Totals of all layers.
#[derive(Debug, Default)]
struct Total {
    layers: usize,
    checked: usize,
    differing: usize,
    refetched: usize,
    problems: usize,
}

impl Total {
    fn add(&mut self, found: &Scrubbed) {
        self.layers += 1;
        self.checked += found.checked;
        self.differing += found.differing;
        self.refetched += found.refetched;
        self.problems += usize::from(found.problem.is_some());
    }

    fn is_well(&self) -> bool {
        self.differing == self.refetched && self.problems == 0
    }

    fn show(&self, to: &mut dyn Write) -> io::Result<()> {
        let Self {
            layers,
            checked,
            differing,
            refetched,
            ..
        } = self;
        writeln!(
            to,
            "{layers} layers: {checked} spans checked, {differing} differing, {refetched} fetched again"
        )?;
        if *differing > 0 {
            writeln!(
                to,
                "Damaged data may still be in the page cache. To drop it: echo 1 > /proc/sys/vm/drop_caches"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A daemon that sends these lines.
    fn daemon(root: &Path, lines: &'static str) -> std::thread::JoinHandle<String> {
        let listener = net::UnixListener::bind(root.join(SOCKET)).unwrap();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            BufReader::new(&stream).read_line(&mut request).unwrap();
            (&stream).write_all(lines.as_bytes()).unwrap();
            request
        })
    }

    #[test]
    fn reads_are_shown_as_they_arrive() {
        let root = tempfile::tempdir().unwrap();
        let line = serde_json::to_string(&Answer::Read(ReadWait::default())).unwrap();
        let lines = Box::leak(format!("{line}\n{line}\n\"done\"\n").into_boxed_str());
        for json in [false, true] {
            let daemon = daemon(root.path(), lines);
            let mut shown = Vec::new();
            reads(root.path(), json, &mut shown).unwrap();
            assert_eq!(daemon.join().unwrap(), "reads\n");
            let shown = String::from_utf8(shown).unwrap();
            assert_eq!(shown.lines().count(), if json { 2 } else { 3 }, "{shown}");
            assert_eq!(shown.starts_with('{'), json);
            fs::remove_file(root.path().join(SOCKET)).unwrap();
        }
        let error = reads(root.path(), false, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("--root"), "{error}");
    }

    fn scrubbed(lines: &'static str, json: bool) -> (anyhow::Result<bool>, String) {
        let root = tempfile::tempdir().unwrap();
        let daemon = daemon(root.path(), lines);
        let mut shown = Vec::new();
        let well = scrub(root.path(), json, &mut shown);
        assert_eq!(daemon.join().unwrap(), "scrub\n");
        (well, String::from_utf8(shown).unwrap())
    }

    const ONE: &str = r#"{"layer":{"layer":"sha256:1","number":2,"image":"app:1","checked":9,"differing":1,"refetched":1,"bytes":5}}
"#;

    #[test]
    fn scrub_results_are_shown_as_text_and_as_json() {
        let lines = Box::leak(format!("{ONE}\"done\"\n").into_boxed_str());
        let (well, shown) = scrubbed(lines, false);
        assert!(well.unwrap());
        let first = "sha256:1 9 spans checked, 1 differing, 1 fetched again (app:1)\n1 layers: ";
        assert!(shown.starts_with(first), "{shown}");
        assert!(shown.contains("drop_caches"), "{shown}");
        let (_, shown) = scrubbed(lines, true);
        let found: Scrubbed = serde_json::from_str(&shown).unwrap();
        assert_eq!((found.differing, found.problem), (1, None));
    }

    #[test]
    fn remaining_damage_is_a_failure() {
        let left = r#"{"layer":{"layer":"sha256:1","number":2,"image":"","checked":1,"differing":1,"refetched":0,"bytes":5,"problem":"pull it again"}}
"done"
"#;
        let (well, shown) = scrubbed(left, false);
        assert!(!well.unwrap());
        assert!(shown.contains("pull it again"), "{shown}");
        let (error, _) = scrubbed("{\"error\":\"no\"}\n", false);
        assert!(
            error
                .unwrap_err()
                .to_string()
                .contains("rejected the request: no")
        );
        let (error, _) = scrubbed(ONE, false);
        assert!(error.unwrap_err().to_string().contains("ended before"));
    }

    #[test]
    fn without_a_daemon_the_error_contains_a_remedy() {
        let root = tempfile::tempdir().unwrap();
        let error = scrub(root.path(), false, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("--root"), "{error}");
    }
}
