//! The results of verifying whole layers, in a table that outlives the layers.
//!
//! A layer with a zTOC is what its zTOC says, span by span. Whether the zTOC describes the right
//! tar is known only after the whole tar has been hashed. The result is permanent, because the
//! digest of the zTOC determines every byte. The table is therefore kept when a layer is removed,
//! and applies at once when the layer is pulled again.
//!
//! One line per proof: `layer ztoc|- tar diff-ID`, or `layer ztoc false reason`. Unreadable lines
//! are dropped.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use soci_oci::Digest;
use tokio::sync::watch;

use super::LayerKey;
use crate::sync::{Arc, Mutex};

/// Name of the file under the state root.
const NAME: &str = "proofs";
/// Maximum number of lines. The oldest are dropped first. The file has at most about 16 MB.
const MOST: usize = 65_536;
/// Longer reasons are truncated to this many characters.
const LONGEST_REASON: usize = 400;

/// What is known about the whole tar of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The SHA-256 of the tar. Its entries are those that the layer shows.
    Tar(Digest),
    /// The zTOC describes a different tar. Contains the reason.
    False(Arc<str>),
}

/// The proofs of one node.
#[derive(Debug)]
pub struct Proofs {
    path: PathBuf,
    known: Mutex<HashMap<LayerKey, Proof>>,
    /// Counts added proofs.
    added: watch::Sender<u64>,
    /// Proofs that were added and not yet taken with [`Proofs::take_news`].
    news: Mutex<Vec<LayerKey>>,
}

impl Proofs {
    /// Reads the table under the state root. An unreadable table counts as empty, and layers are
    /// then verified again.
    pub(super) fn open(state: &Path) -> Proofs {
        let path = state.join(NAME);
        let lines = match fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => {
                tracing::warn!(path = %path.display(), error = %error, "cannot read the results of earlier verifications; layers are verified again");
                String::new()
            }
        };
        let torn = !lines.is_empty() && !lines.ends_with('\n');
        let lines: Vec<&str> = lines.lines().collect();
        let newest = lines
            .get(lines.len().saturating_sub(MOST)..)
            .unwrap_or_default();
        let known = newest.iter().filter_map(|line| read_line(line)).collect();
        let proofs = Proofs {
            path,
            known: Mutex::new(known),
            added: watch::Sender::new(0),
            news: Mutex::default(),
        };
        if (torn || newest.len() < lines.len())
            && let Err(error) = proofs.rewrite(newest)
        {
            tracing::debug!(error = %error, "cannot rewrite the table of verified layers");
        }
        proofs
    }

    /// What is known about a layer.
    pub fn get(&self, key: &LayerKey) -> Option<Proof> {
        self.known.lock().get(key).cloned()
    }

    /// Records a result, in memory and on disk. Blocks on the disk.
    ///
    /// # Errors
    /// The system's. The result is then known only until the process ends.
    pub fn add(&self, key: LayerKey, proof: &Proof) -> io::Result<()> {
        if self.known.lock().insert(key, proof.clone()).as_ref() == Some(proof) {
            return Ok(());
        }
        self.news.lock().push(key);
        self.added.send_modify(|count| *count += 1);
        let mut file = File::options().create(true).append(true).open(&self.path)?;
        file.write_all(line_of(&key, proof).as_bytes())?;
        file.sync_data()
    }

    /// A receiver that changes with each added proof.
    pub fn added(&self) -> watch::Receiver<u64> {
        self.added.subscribe()
    }

    /// The layers whose proofs were added since the last call.
    pub fn take_news(&self) -> Vec<LayerKey> {
        std::mem::take(&mut *self.news.lock())
    }

    fn rewrite(&self, lines: &[&str]) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        for line in lines {
            writeln!(file, "{line}")?;
        }
        file.as_file().sync_data()?;
        file.persist(&self.path)?;
        Ok(())
    }
}

fn line_of(key: &LayerKey, proof: &Proof) -> String {
    let layer = key.layer;
    let ztoc = key
        .ztoc
        .map_or_else(|| "-".to_owned(), |ztoc| ztoc.to_string());
    match proof {
        Proof::Tar(digest) => format!("{layer} {ztoc} tar {digest}\n"),
        Proof::False(why) => {
            let why: String = why.chars().take(LONGEST_REASON).collect();
            format!("{layer} {ztoc} false {}\n", why.escape_default())
        }
    }
}

fn read_line(line: &str) -> Option<(LayerKey, Proof)> {
    let mut words = line.splitn(4, ' ');
    let (layer, ztoc, kind, rest) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let key = LayerKey {
        layer: layer.parse().ok()?,
        ztoc: match ztoc {
            "-" => None,
            digest => Some(digest.parse().ok()?),
        },
    };
    match kind {
        "tar" => Some((key, Proof::Tar(rest.parse().ok()?))),
        "false" => Some((key, Proof::False(rest.into()))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &[u8], ztoc: Option<&[u8]>) -> LayerKey {
        LayerKey {
            layer: Digest::sha256(name),
            ztoc: ztoc.map(Digest::sha256),
        }
    }

    #[test]
    fn results_survive_a_restart() {
        let root = tempfile::tempdir().expect("a directory");
        let proofs = Proofs::open(root.path());
        let (good, bad, whole) = (
            key(b"1", Some(b"z")),
            key(b"2", Some(b"z")),
            key(b"1", None),
        );
        let tar = Proof::Tar(Digest::sha256(b"tar"));
        let mut added = proofs.added();
        proofs.add(good, &tar).expect("recorded");
        proofs.add(good, &tar).expect("recorded before");
        proofs
            .add(bad, &Proof::False("two\nlines".into()))
            .expect("recorded");
        proofs.add(whole, &tar).expect("recorded");
        assert!(added.has_changed().expect("open"));
        assert_eq!(*added.borrow_and_update(), 3);
        assert_eq!(proofs.take_news(), [good, bad, whole]);
        assert!(proofs.take_news().is_empty());
        // Simulates an interrupted write.
        let path = root.path().join(NAME);
        let mut torn = fs::read(&path).expect("readable");
        torn.extend_from_slice(b"sha256:00");
        fs::write(&path, torn).expect("written");
        let again = Proofs::open(root.path());
        assert_eq!(again.get(&good), Some(tar.clone()));
        assert_eq!(again.get(&whole), Some(tar));
        assert_eq!(again.get(&bad), Some(Proof::False("two\\nlines".into())));
        assert_eq!(again.get(&key(b"3", None)), None);
    }

    #[test]
    fn only_the_newest_lines_are_kept() {
        let root = tempfile::tempdir().expect("a directory");
        let tar = Proof::Tar(Digest::sha256(b"tar"));
        let lines: String = (0..MOST + 10)
            .map(|number| line_of(&key(&number.to_le_bytes(), None), &tar))
            .collect();
        fs::write(root.path().join(NAME), lines).expect("written");
        let proofs = Proofs::open(root.path());
        assert_eq!(proofs.get(&key(&9_usize.to_le_bytes(), None)), None);
        assert_eq!(proofs.get(&key(&10_usize.to_le_bytes(), None)), Some(tar));
        let kept = fs::read_to_string(root.path().join(NAME)).expect("readable");
        assert_eq!(kept.lines().count(), MOST);
    }
}
