//! Notes which parts of a layer its readers wanted first, and when. Other nodes download these
//! first.
//!
//! Each span has a few notes: the files that were read in it first. Notes are taken while the layer
//! is incomplete, because the kernel reads a complete layer by itself, and for [`NOTED`] after the
//! first read. They are written to a file of the layer, so they end with it.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::spans::now_ms;
use crate::{
    store::LayerNumber,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
};

/// How long after the first read of a layer the next ones are noted.
pub(super) const NOTED: Duration = Duration::from_secs(600);
/// Notes of a span. More files only help if another build has them in other spans.
const PER_SPAN: u8 = 8;
/// Notes of a layer, of 24 bytes each.
const MOST: usize = 2048;
/// Version of the file.
const VERSION: u32 = 1;

/// In the mark of a span, beside the number of notes: a reader waited for it.
const WAITED: u8 = 0x80;
/// The same: a reader read from it.
const READ: u8 = 0x40;

/// The first use of a part of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The span.
    pub span: u32,
    /// The file, by its position in `Places`. `None` for a header.
    pub file: Option<u32>,
    /// Where in the file the read began.
    pub at: u64,
    /// Milliseconds since the first read of the layer.
    pub ms: u32,
}

/// What the readers of a layer, or of several, did with the spans of a recorded start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StartUse {
    /// Recorded spans that were read.
    pub read: u64,
    /// Recorded spans that were not read.
    pub unread: u64,
    /// Recorded spans of a complete layer, whose readers are not seen.
    pub unknown: u64,
    /// Spans that a reader waited for and that are not recorded.
    pub missed: u64,
    /// How long ago the first read was.
    pub since_first_read: Option<Duration>,
}

/// The notes about a layer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notes {
    version: u32,
    /// When the layer was first read, in milliseconds since 1970.
    pub began_ms: u64,
    /// The notes, oldest first.
    pub notes: Vec<Note>,
}

impl Notes {
    /// Parses the file. `None` if another version wrote it.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Notes> {
        let notes: Notes = serde_json::from_slice(bytes).ok()?;
        (notes.version == VERSION && notes.notes.len() <= MOST).then_some(notes)
    }

    /// The content of the file.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

#[derive(Debug, Default)]
struct Noted {
    began: Option<Instant>,
    notes: Notes,
    known: HashSet<(u32, Option<u32>)>,
    /// The file lacks the newest notes.
    is_new: bool,
}

impl Noted {
    fn of(notes: Notes) -> Noted {
        let passed = Duration::from_millis(now_ms().saturating_sub(notes.began_ms));
        let known = notes.notes.iter().map(|note| (note.span, note.file));
        Noted {
            // Without a time of this clock, the notes are as old as the machine.
            began: (notes.began_ms > 0).then(|| {
                let now = Instant::now();
                now.checked_sub(passed).unwrap_or(now)
            }),
            known: known.collect(),
            notes,
            is_new: false,
        }
    }
}

/// The number of notes in a span's mark.
fn notes_in(mark: &AtomicU8) -> u8 {
    mark.load(Ordering::Relaxed) & !(WAITED | READ)
}

/// What the readers of a layer wanted first.
#[derive(Debug)]
pub(super) struct Starts {
    marks: Vec<AtomicU8>,
    /// Notes are still taken.
    is_open: AtomicBool,
    noted: Mutex<Noted>,
}

impl Starts {
    /// The notes of a layer with this many spans: those of an earlier process, and those to come if
    /// `records`.
    pub(super) fn new(spans: usize, earlier: Option<Notes>, records: bool) -> Starts {
        let noted = Noted::of(earlier.unwrap_or_default());
        Starts {
            marks: (0..spans).map(|_| AtomicU8::new(0)).collect(),
            is_open: AtomicBool::new(records && noted.notes.notes.len() < MOST),
            noted: Mutex::new(noted),
        }
    }

    /// A reader waits for a span.
    pub(super) fn waited(&self, span: u32) {
        if let Some(mark) = self.marks.get(span as usize) {
            self.mark(mark, WAITED | READ);
        }
    }

    /// A reader reads from a span. Returns whether [`Starts::note`] wants to know more.
    pub(super) fn read(&self, span: u32) -> bool {
        let Some(mark) = self.marks.get(span as usize) else {
            return false;
        };
        if mark.load(Ordering::Relaxed) & READ == 0 {
            self.mark(mark, READ);
        }
        self.is_open.load(Ordering::Relaxed) && notes_in(mark) < PER_SPAN
    }

    /// Marks a span. The first read of a span, which is rare, may be the first of the layer. Its time
    /// is known even if no notes are taken.
    fn mark(&self, mark: &AtomicU8, bits: u8) {
        if mark.fetch_or(bits, Ordering::Relaxed) & READ == 0 {
            self.noted.lock().began.get_or_insert_with(Instant::now);
        }
    }

    /// Notes the first use of a file in a span.
    pub(super) fn note(&self, span: u32, file: Option<u32>, at: u64) {
        let now = Instant::now();
        let mut noted = self.noted.lock();
        let noted = &mut *noted;
        let began = *noted.began.get_or_insert(now);
        let passed = now.saturating_duration_since(began);
        if passed > NOTED || noted.notes.notes.len() >= MOST {
            self.is_open.store(false, Ordering::Relaxed);
            noted.known = HashSet::new();
            return;
        }
        let mark = self.marks.get(span as usize);
        let is_full = mark.is_none_or(|mark| notes_in(mark) >= PER_SPAN);
        if is_full || !noted.known.insert((span, file)) {
            return;
        }
        if noted.notes.began_ms == 0 {
            noted.notes.version = VERSION;
            // The first read may have no note.
            let passed = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
            noted.notes.began_ms = now_ms().saturating_sub(passed);
        }
        noted.is_new = true;
        noted.notes.notes.push(Note {
            span,
            file,
            at,
            ms: u32::try_from(passed.as_millis()).unwrap_or(u32::MAX),
        });
        if let Some(mark) = mark {
            // Counted under the lock only, so it never exceeds `PER_SPAN`.
            mark.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The number of spans in the layer.
    pub(super) fn span_count(&self) -> u32 {
        u32::try_from(self.marks.len()).unwrap_or(u32::MAX)
    }

    /// What readers did with the spans that `is_recorded` selects. `complete` says that further
    /// reads are not seen.
    pub(super) fn start_use(&self, complete: bool, is_recorded: impl Fn(u32) -> bool) -> StartUse {
        let mut found = StartUse {
            since_first_read: self.since_first_read(),
            ..StartUse::default()
        };
        for (span, mark) in (0..).zip(&self.marks) {
            let mark = mark.load(Ordering::Relaxed);
            match is_recorded(span) {
                true if mark & READ != 0 => found.read += 1,
                true if complete => found.unknown += 1,
                true => found.unread += 1,
                false if mark & WAITED != 0 => found.missed += 1,
                false => {}
            }
        }
        found
    }

    /// How long ago the layer was first read, if it was.
    fn since_first_read(&self) -> Option<Duration> {
        self.noted.lock().began.map(|began| began.elapsed())
    }

    /// The notes so far.
    pub(super) fn notes(&self) -> Notes {
        self.noted.lock().notes.clone()
    }

    /// Notes that the file lacks. The caller writes them.
    pub(super) fn take_new(&self) -> Option<Notes> {
        let mut noted = self.noted.lock();
        let is_new = std::mem::take(&mut noted.is_new);
        is_new.then(|| noted.notes.clone())
    }
}

/// The notes of the layers that were opened. They outlive the open layer, because a complete layer
/// is closed.
#[derive(Debug, Default)]
pub(super) struct AllStarts(Mutex<HashMap<LayerNumber, Arc<Starts>>>);

impl AllStarts {
    /// The notes of a layer, made when needed.
    pub(super) fn of(&self, layer: LayerNumber, new: impl FnOnce() -> Starts) -> Arc<Starts> {
        let mut all = self.0.lock();
        Arc::clone(all.entry(layer).or_insert_with(|| Arc::new(new())))
    }

    pub(super) fn find(&self, layer: LayerNumber) -> Option<Arc<Starts>> {
        self.0.lock().get(&layer).cloned()
    }

    /// Forgets a layer that is removed.
    pub(super) fn forget(&self, layer: LayerNumber) {
        self.0.lock().remove(&layer);
    }

    /// Notes that are not written yet.
    pub(super) fn take_new(&self) -> Vec<(LayerNumber, Notes)> {
        let all = self.0.lock();
        let new = |(number, starts): (&LayerNumber, &Arc<Starts>)| {
            starts.take_new().map(|notes| (*number, notes))
        };
        all.iter().filter_map(new).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(starts: &Starts, span: u32, file: u32) {
        if starts.read(span) {
            starts.note(span, Some(file), 0);
        }
    }

    fn noted(starts: &Starts) -> Vec<(u32, Option<u32>, u32)> {
        let notes = starts.notes().notes.into_iter();
        notes.map(|note| (note.span, note.file, note.ms)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_use_of_each_file_in_a_span_is_noted_in_order() {
        let starts = Starts::new(4, None, true);
        read(&starts, 2, 9);
        tokio::time::advance(Duration::from_millis(30)).await;
        read(&starts, 2, 9);
        read(&starts, 0, 9);
        read(&starts, 4, 9);
        tokio::time::advance(Duration::from_millis(30)).await;
        read(&starts, 2, 1);
        let wanted = [(2, Some(9), 0), (0, Some(9), 30), (2, Some(1), 60)];
        assert_eq!(noted(&starts), wanted);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_read_is_compared_with_what_was_recorded() {
        let starts = Starts::new(6, None, false);
        assert_eq!(starts.since_first_read(), None);
        let passes = Duration::from_secs(5);
        for span in [0, 1, 9] {
            starts.read(span);
            starts.waited(span + 3);
            tokio::time::advance(passes).await;
        }
        let wanted = StartUse {
            read: 2,
            unread: 1,
            missed: 2,
            since_first_read: Some(3 * passes),
            ..StartUse::default()
        };
        let of = |complete| starts.start_use(complete, |span| span < 2 || span == 5);
        assert_eq!(of(false), wanted);
        let (unread, unknown) = (0, 1);
        assert_eq!(
            of(true),
            StartUse {
                unread,
                unknown,
                ..wanted
            }
        );
    }

    #[tokio::test(start_paused = true)]
    async fn notes_have_bounds() {
        let most = u32::try_from(MOST).unwrap();
        let starts = Starts::new(MOST, None, true);
        for file in 0..50 {
            read(&starts, 0, file);
        }
        assert_eq!(noted(&starts).len(), usize::from(PER_SPAN));
        for number in 0..4 * most {
            read(&starts, number % most, number);
        }
        assert_eq!(noted(&starts).len(), MOST);
        let starts = Starts::new(2, None, true);
        read(&starts, 0, 1);
        tokio::time::advance(NOTED + Duration::from_millis(1)).await;
        read(&starts, 1, 1);
        assert_eq!(noted(&starts).len(), 1, "the start is long over");
        let starts = Starts::new(2, None, false);
        read(&starts, 0, 1);
        assert!(noted(&starts).is_empty() && starts.take_new().is_none());
    }

    #[tokio::test]
    async fn another_process_goes_on() {
        let all = AllStarts::default();
        let number = LayerNumber(2);
        let starts = all.of(number, || Starts::new(3, None, true));
        read(&starts, 1, 5);
        let new = all.take_new();
        assert_eq!(new.len(), 1);
        assert!(all.take_new().is_empty());
        let earlier = Notes::parse(&new[0].1.to_bytes()).expect("notes");
        assert_eq!(earlier, starts.notes());
        all.forget(number);
        assert!(all.find(number).is_none());
        let starts = all.of(number, || Starts::new(3, Some(earlier), true));
        read(&starts, 1, 5);
        read(&starts, 2, 6);
        let notes: Vec<_> = starts.notes().notes.iter().map(|note| note.span).collect();
        assert_eq!(notes, [1, 2]);
        assert!(Notes::parse(b"{}").is_none() && Notes::parse(b"[]").is_none());
    }
}
