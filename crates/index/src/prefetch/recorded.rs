//! Finds what a record of a start wants in the layers of another build of the image.
//!
//! A layer that is the same has the same bytes at the same offsets. The files of any other recorded
//! layer are searched by name in all layers, and the uppermost layer that contains a file counts.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use soci_oci::Digest;

use super::SpanRange;
use crate::starts::{StartRecord, Want};

/// Consecutive spans that were first used within this time are one range, in milliseconds. A node
/// downloads a range at once.
const AT_ONCE: u64 = 100;

/// A part of a record: a file of a want, or the whole want.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct At {
    layer: usize,
    want: usize,
    file: Option<usize>,
}

/// A part of a record that was found in a layer, and the spans that contain it.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    at: At,
    range: SpanRange,
}

/// Looks the wants of a record up in one table of contents.
#[derive(Debug)]
pub(crate) struct RecordSearch<'a> {
    record: &'a StartRecord,
    /// The recorded layer that is this layer.
    own: Option<usize>,
    /// The files of the other recorded layers.
    files: HashMap<&'a [u8], Vec<(At, u64)>>,
    found: HashMap<At, SpanRange>,
}

impl<'a> RecordSearch<'a> {
    pub(crate) fn new(record: &'a StartRecord, layer: &Digest) -> Self {
        let own = record.layers.iter().position(|it| it.digest == *layer);
        let mut files: HashMap<&[u8], Vec<(At, u64)>> = HashMap::new();
        for (layer, recorded) in record.layers.iter().enumerate() {
            if own == Some(layer) {
                continue;
            }
            for (want, wanted) in recorded.wants.iter().enumerate() {
                for (file, wanted) in wanted.files.iter().enumerate() {
                    let file = Some(file);
                    let at = At { layer, want, file };
                    let name = plain(wanted.path.as_bytes());
                    files.entry(name).or_default().push((at, wanted.at));
                }
            }
        }
        Self {
            record,
            own,
            files,
            found: HashMap::new(),
        }
    }

    /// Processes the next entry of the archive: its name, and where its content is. `span_at` returns
    /// the span that contains an offset of the archive.
    pub(crate) fn see(
        &mut self,
        name: &[u8],
        content: Range<u64>,
        span_at: impl Fn(u64) -> Option<u64>,
    ) {
        if content.is_empty() {
            return;
        }
        for &(part, at) in self.files.get(plain(name)).into_iter().flatten() {
            let offset = content.start.saturating_add(at).min(content.end - 1);
            if let Some(span) = span_at(offset) {
                // The last entry with a name is the one that is seen.
                self.found.insert(part, range(span, span, 0));
            }
        }
    }

    /// Returns what was found.
    pub(crate) fn finish(mut self, span_at: impl Fn(u64) -> Option<u64>) -> Vec<Found> {
        let own = self
            .own
            .and_then(|own| Some((own, self.record.layers.get(own)?)));
        let wants = own.into_iter().flat_map(|(layer, recorded)| {
            let wants = recorded.wants.iter().enumerate();
            wants.map(move |(want, wanted)| (layer, want, wanted))
        });
        for (layer, want, wanted) in wants {
            let last = wanted.offset.saturating_add(wanted.bytes.saturating_sub(1));
            if let Some((start, end)) = span_at(wanted.offset).zip(span_at(last)) {
                let file = None;
                let part = At { layer, want, file };
                self.found.insert(part, range(start, end, 0));
            }
        }
        let found = self.found.into_iter();
        found.map(|(at, range)| Found { at, range }).collect()
    }
}

/// The name of a file without the `./` that some programs begin names with.
fn plain(name: &[u8]) -> &[u8] {
    name.strip_prefix(b"./").unwrap_or(name)
}

fn range(start: u64, end: u64, first_use_ms: u64) -> SpanRange {
    SpanRange {
        start,
        end,
        priority: 0,
        first_use_ms: Some(first_use_ms),
    }
}

/// What a record wants of the layers of a manifest.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    /// The ranges of each layer, in the order of their first use.
    pub(crate) ranges: HashMap<Digest, Vec<SpanRange>>,
    /// Recorded files of changed layers.
    pub(crate) files: usize,
    /// How many of them no layer contains.
    pub(crate) lost: usize,
}

/// Selects what a record wants of these layers of a manifest, lowest first. `found` has what was
/// found in each layer with a zTOC, also lowest first.
pub(crate) fn select(
    record: &StartRecord,
    layers: &[Digest],
    found: &[(Digest, Vec<Found>)],
) -> Wanted {
    let mut wanted = Wanted::default();
    // The layers above overwrite those below.
    let mut by_part: HashMap<At, (Digest, SpanRange)> = HashMap::new();
    for (layer, found) in found {
        for found in found {
            by_part.insert(found.at, (*layer, found.range));
        }
    }
    let mut uses: HashMap<Digest, Vec<SpanRange>> = HashMap::new();
    let mut add = |part: At, ms: u64| {
        let found = by_part.get(&part);
        if let Some((layer, found)) = found {
            let found = range(found.start, found.end, ms);
            uses.entry(*layer).or_default().push(found);
        }
        found.is_some()
    };
    for (layer, recorded) in record.layers.iter().enumerate() {
        let is_same = layers.contains(&recorded.digest);
        for (want, Want { ms, files, .. }) in recorded.wants.iter().enumerate() {
            if is_same {
                let file = None;
                add(At { layer, want, file }, *ms);
                continue;
            }
            for (file, wanted_file) in files.iter().enumerate() {
                let file = Some(file);
                wanted.files += 1;
                let is_found = add(At { layer, want, file }, wanted_file.ms);
                wanted.lost += usize::from(!is_found);
            }
        }
    }
    let uses = uses.into_iter();
    wanted.ranges = uses.map(|(layer, uses)| (layer, in_order(uses))).collect();
    wanted
}

/// Sorts ranges by their first use, leaves out spans that come earlier, and joins consecutive ones.
fn in_order(mut uses: Vec<SpanRange>) -> Vec<SpanRange> {
    uses.sort_by_key(|range| range.first_use_ms);
    let mut seen = HashSet::new();
    let mut ordered: Vec<SpanRange> = Vec::new();
    for SpanRange {
        start,
        end,
        first_use_ms,
        ..
    } in uses
    {
        let ms = first_use_ms.unwrap_or_default();
        for span in (start..=end).filter(|span| seen.insert(*span)) {
            match ordered.last_mut() {
                Some(last)
                    if last.end.checked_add(1) == Some(span)
                        && last
                            .first_use_ms
                            .is_some_and(|first| ms <= first.saturating_add(AT_ONCE)) =>
                {
                    last.end = span;
                }
                _ => ordered.push(range(span, span, ms)),
            }
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::starts::{RecordedLayer, WantedFile};

    const SPAN: u64 = 1000;

    fn digest(name: &str) -> Digest {
        Digest::sha256(name.as_bytes())
    }

    fn want(ms: u64, span: u64, files: &[(&str, u64)]) -> Want {
        let file = |(path, at): &(&str, u64)| WantedFile {
            ms: ms + 1,
            path: (*path).to_owned(),
            at: *at,
        };
        Want {
            ms,
            offset: span * SPAN,
            bytes: SPAN,
            files: files.iter().map(file).collect(),
        }
    }

    /// A layer whose files begin at these offsets and have two and a half spans.
    fn layer(record: &StartRecord, name: &str, files: &[(&str, u64)]) -> (Digest, Vec<Found>) {
        let span_at = |offset: u64| Some(offset / SPAN);
        let mut search = RecordSearch::new(record, &digest(name));
        for (name, offset) in files {
            let content = *offset..*offset + SPAN * 5 / 2;
            search.see(name.as_bytes(), content, span_at);
        }
        (digest(name), search.finish(span_at))
    }

    fn record(layers: Vec<(&str, Vec<Want>)>) -> StartRecord {
        let layer = |(name, wants)| RecordedLayer {
            digest: digest(name),
            wants,
        };
        StartRecord {
            layers: layers.into_iter().map(layer).collect(),
            ..StartRecord::default()
        }
    }

    fn ranges(wanted: &Wanted, name: &str) -> Vec<(u64, u64, u64)> {
        let ranges = wanted.ranges.get(&digest(name)).into_iter().flatten();
        let plain = |range: &SpanRange| (range.start, range.end, range.first_use_ms.unwrap_or(0));
        ranges.map(plain).collect()
    }

    #[test]
    fn the_spans_of_a_layer_that_is_the_same_are_kept_in_the_order_of_use() {
        let wants = vec![
            want(0, 7, &[("a", 0)]),
            want(20, 8, &[]),
            want(30, 2, &[]),
            want(400, 9, &[]),
            want(410, 7, &[]),
        ];
        let record = record(vec![("base", wants)]);
        let found = [layer(&record, "base", &[("a", 0)])];
        let wanted = select(&record, &[digest("base")], &found);
        assert_eq!(
            ranges(&wanted, "base"),
            [(7, 8, 0), (2, 2, 30), (9, 9, 400)]
        );
        assert_eq!((wanted.files, wanted.lost), (0, 0));
    }

    #[test]
    fn the_files_of_a_changed_layer_are_found_by_name_in_the_uppermost_layer() {
        let files = [("app/main", 1500), ("app/gone", 0)];
        let old = vec![want(5, 3, &files), want(9, 4, &[("lib", 0)])];
        let record = record(vec![("base", vec![want(0, 1, &[])]), ("app-1", old)]);
        let found = [
            layer(&record, "base", &[("lib", 20_000), ("app/main", 40_000)]),
            layer(&record, "app-2", &[("./app/main", 10_200)]),
        ];
        let layers = [digest("base"), digest("app-2")];
        let wanted = select(&record, &layers, &found);
        assert_eq!(ranges(&wanted, "base"), [(1, 1, 0), (20, 20, 10)]);
        assert_eq!(ranges(&wanted, "app-2"), [(11, 11, 6)]);
        assert_eq!((wanted.files, wanted.lost), (3, 1));
    }

    #[test]
    fn any_time_is_accepted() {
        let wants = vec![want(u64::MAX, 7, &[]), want(u64::MAX, 8, &[])];
        let record = record(vec![("base", wants)]);
        let found = [layer(&record, "base", &[])];
        let wanted = select(&record, &[digest("base")], &found);
        assert_eq!(ranges(&wanted, "base"), [(7, 8, u64::MAX)]);
    }

    #[test]
    fn a_file_that_became_shorter_is_still_found() {
        let record = record(vec![("old", vec![want(0, 0, &[("big", 1 << 40)])])]);
        let found = [layer(&record, "new", &[("big", 5000)])];
        let wanted = select(&record, &[digest("new")], &found);
        assert_eq!(ranges(&wanted, "new"), [(7, 7, 1)]);
    }

    #[test]
    fn a_layer_that_is_the_same_and_has_no_ztoc_wants_nothing_elsewhere() {
        let record = record(vec![("small", vec![want(0, 0, &[("a", 0)])])]);
        let found = [layer(&record, "top", &[("a", 0)])];
        let wanted = select(&record, &[digest("small"), digest("top")], &found);
        assert!(wanted.ranges.is_empty() && wanted.files == 0);
    }
}
