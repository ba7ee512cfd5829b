//! The program that reads in the containers of the stress test and compares every byte.
//!
//! usage: `soci-test-reader FOLDER OUT TAG [again] [buffered]`
//!
//! `FOLDER` contains the shell at the start of the image's programs (`busybox`) and, while the disk
//! is full, `full`. `OUT` contains the file list (`truth`). The reader writes `slots` and `errors`
//! there and ends when `stop` exists. With `again`, a failed read is repeated for half a minute,
//! because a killed process without a keeper leaves an interruption. With `buffered`, all reads use
//! the page cache. `TAG` identifies the reader in process lists.

#[path = "reader/readahead.rs"]
mod readahead;
#[allow(dead_code, reason = "the test uses the other half")]
mod slots;
#[allow(dead_code, reason = "the test uses the other half")]
mod truth;
#[path = "reader/ways.rs"]
mod ways;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::readahead::Readahead;
use crate::slots::{Slot, now};
use crate::truth::Dice;

/// Granularity of what the reader remembers: a multiple of the page size, small compared to a span.
const BLOCK: u64 = 64 << 10;
/// Served bytes are written to disk immediately. After this time they count as present.
const SETTLED_MS: u64 = 1000;
/// How long a failed read is repeated with `again`.
const GAP: Duration = Duration::from_secs(30);
/// Reads of present bytes that take longer are logged.
const SLOW: Duration = Duration::from_millis(500);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, out, _, rest @ ..] = &arguments[..] else {
        anyhow::bail!("usage: soci-test-reader FOLDER OUT TAG [again] [buffered]");
    };
    let reader = Reader::new(Path::new(folder), Path::new(out), rest)?;
    std::thread::scope(|scope| {
        for (place, way) in ways::ALL.iter().enumerate() {
            let reader = &reader;
            scope.spawn(move || reader.go_on(place as u64, *way));
        }
    });
    Ok(())
}

/// State shared by all threads.
struct Reader {
    files: Vec<truth::File>,
    shell: Vec<u8>,
    folder: PathBuf,
    out: PathBuf,
    slots: File,
    errors: Mutex<File>,
    /// For every block of every file, when it was first read; 0 if never.
    read: Vec<Vec<AtomicU64>>,
    /// For every file who reads it with readahead.
    readahead: Vec<Readahead>,
    again: bool,
    buffered: bool,
}

/// One operation of one thread.
struct Operation<'a> {
    reader: &'a Reader,
    place: u64,
    slot: &'a mut Slot,
}

/// Whether a read counts as one of bytes that are present, where they are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Measured {
    /// It may need other bytes, too.
    No,
    /// It needs these bytes alone.
    Alone,
    /// It waits for a cached page that is part of another, larger read.
    Cached,
}

/// A range of a file.
#[derive(Clone, Copy)]
struct Range {
    file: usize,
    offset: u64,
    length: u64,
}

impl Reader {
    fn new(folder: &Path, out: &Path, words: &[String]) -> Result<Self> {
        let says = |word: &str| words.iter().any(|said| said == word);
        let files = truth::parse(&fs::read_to_string(out.join("truth"))?)?;
        let blocks = |file: &truth::File| {
            let count = file.size.div_ceil(BLOCK);
            (0..count).map(|_| AtomicU64::new(0)).collect()
        };
        Ok(Self {
            read: files.iter().map(blocks).collect(),
            readahead: files.iter().map(|_| Readahead::default()).collect(),
            files,
            shell: fs::read(folder.join("busybox")).context("the shell")?,
            folder: folder.to_path_buf(),
            out: out.to_path_buf(),
            slots: File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .open(out.join("slots"))?,
            errors: Mutex::new(
                File::options()
                    .append(true)
                    .create(true)
                    .open(out.join("errors"))?,
            ),
            again: says("again"),
            buffered: says("buffered"),
        })
    }

    /// One thread: repeats operations of one kind until the test stops it.
    fn go_on(&self, place: u64, way: ways::Way) {
        let mut dice = Dice::new(now() ^ (place << 56));
        let mut slot = Slot::default();
        while !self.out.join("stop").exists() {
            let mut operation = Operation {
                reader: self,
                place,
                slot: &mut slot,
            };
            way(&mut operation, &mut dice);
            std::thread::sleep(Duration::from_millis(dice.throw(2, 15)));
        }
    }

    /// Whether these bytes have been present for a while, as far as this reader knows.
    fn is_present(&self, range: Range) -> bool {
        let settled = now().saturating_sub(SETTLED_MS);
        self.blocks(range)
            .all(|block| (1..settled).contains(&block.load(Ordering::Relaxed)))
    }

    /// Remembers the blocks that are completely in the range.
    fn mark(&self, range: Range) {
        // While the disk is full, bytes are served from memory and not stored.
        if self.folder.join("full").exists() {
            return;
        }
        let size = self.files[range.file].size;
        let whole = range.offset.is_multiple_of(BLOCK)
            && (range.length.is_multiple_of(BLOCK) || range.offset + range.length == size);
        if whole {
            for block in self.blocks(range) {
                let _ = block.compare_exchange(0, now(), Ordering::Relaxed, Ordering::Relaxed);
            }
        }
    }

    fn blocks(&self, range: Range) -> impl Iterator<Item = &AtomicU64> {
        let first = usize::try_from(range.offset / BLOCK).expect("an address");
        let end =
            usize::try_from((range.offset + range.length).div_ceil(BLOCK)).expect("an address");
        self.read[range.file][first..end].iter()
    }

    fn say(&self, line: &str) {
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        // The directory is in memory. If it is gone, the test has ended.
        let _ = writeln!(errors, "{} {line}", now());
    }
}

impl Operation<'_> {
    /// Runs a timed operation that needs the bytes of a range. Returns the bytes, or `None` if it failed
    /// permanently.
    fn run<T>(
        &mut self,
        range: Range,
        measured: Measured,
        mut work: impl FnMut() -> io::Result<T>,
    ) -> Option<T> {
        let readahead = &self.reader.readahead[range.file];
        let alone = readahead.nobody();
        let present = measured != Measured::No && self.reader.is_present(range);
        self.slot.began = now();
        self.slot.file = range.file as u64;
        self.slot.offset = range.offset;
        self.write();
        let start = Instant::now();
        let result = loop {
            match work() {
                Err(_) if self.reader.again && start.elapsed() < GAP => {
                    self.slot.again += 1;
                    self.write();
                    std::thread::sleep(Duration::from_millis(20));
                }
                result => break result,
            }
        };
        let took = start.elapsed();
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.slot.began = 0;
        self.slot.reads += 1;
        self.slot.slowest = self.slot.slowest.max(micros);
        let path = &self.reader.files[range.file].path;
        let shared = measured == Measured::Cached && !readahead.nobody_since(alone);
        if present && !shared {
            self.slot.present += 1;
            self.slot.slowest_present = self.slot.slowest_present.max(micros);
            if took > SLOW {
                let offset = range.offset;
                self.reader
                    .say(&format!("slow {path} at {offset}: {took:?}"));
            }
        }
        if let Err(error) = &result {
            self.slot.failed += 1;
            let offset = range.offset;
            self.reader
                .say(&format!("failed {path} at {offset}: {error}"));
        }
        self.write();
        result.ok()
    }

    /// Compares with the expected bytes and remembers the blocks as present.
    fn compare(&mut self, range: Range, found: &[u8]) {
        let file = &self.reader.files[range.file];
        let mut truth = vec![0; found.len()];
        file.fill(&self.reader.shell, range.offset, &mut truth);
        self.slot.bytes += found.len() as u64;
        if found == truth {
            self.reader.mark(range);
        } else {
            let at = found
                .iter()
                .zip(&truth)
                .position(|(a, b)| a != b)
                .unwrap_or(0);
            self.wrong(
                range,
                &format!(
                    "from {} on, {:02x?} for {:02x?}",
                    range.offset + at as u64,
                    &found[at..found.len().min(at + 8)],
                    &truth[at..found.len().min(at + 8)]
                ),
            );
        }
        self.write();
    }

    fn wrong(&mut self, range: Range, what: &str) {
        self.slot.wrong += 1;
        let path = &self.reader.files[range.file].path;
        self.reader.say(&format!("wrong {path}: {what}"));
        self.write();
    }

    fn write(&self) {
        if let Err(error) = self.slot.write(&self.reader.slots, self.place) {
            self.reader.say(&format!("failed slot: {error}"));
        }
    }
}
