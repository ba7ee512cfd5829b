//! What was read first of an image: the notes about its layers, with the names of the files.

use std::collections::HashMap;

use soci_index::starts::{RecordedLayer, Want, WantedFile};

use super::{Arc, Images};
use crate::cpu::Lane;
use crate::layer::{Layer, Notes, OpenError};
use crate::store::LayerKey;

/// Layers of an image whose first reads are further apart were first read in different starts, for
/// example by another image that has the layer too.
const SAME_START: u64 = 120_000;

/// Why the notes about an image cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum StartsError {
    /// A layer cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The entries of a layer cannot be read.
    #[error("the files of a layer")]
    Entries(#[from] std::io::Error),
    /// The pool lost the job.
    #[error(transparent)]
    Lost(#[from] crate::cpu::Lost),
}

impl Images {
    /// What was read first of these layers, lowest first. Layers of which nothing was read are left
    /// out.
    pub(crate) async fn starts(
        &self,
        keys: &[LayerKey],
    ) -> Result<Vec<RecordedLayer>, StartsError> {
        let layers = &self.0.parts.layers;
        let noted = layers.notes(keys).await?;
        let began: Vec<u64> = noted.iter().flatten().map(|it| it.began_ms).collect();
        let delays = delays(&began);
        let mut recorded = Vec::new();
        for (key, notes) in keys.iter().zip(noted) {
            let Some(notes) = notes else { continue };
            let Some(layer) = layers.open_present(key).await? else {
                continue;
            };
            let delay = delays(notes.began_ms);
            let of = Arc::clone(&layer);
            let job = move || wants(&of, &notes, delay);
            let wants = self.0.parts.cpu.run(Lane::Files, job).await??;
            recorded.push(RecordedLayer {
                digest: key.layer,
                wants,
            });
            layers.close_unused(layer);
        }
        Ok(recorded)
    }
}

/// How long after the first read of the image a layer was first read, in milliseconds, as a function
/// of that time. A layer that was read in an earlier start is taken as if this start began with it.
fn delays(began: &[u64]) -> impl Fn(u64) -> u64 + use<> {
    let newest = began.iter().max().copied().unwrap_or_default();
    let is_same = |began: &&u64| began.saturating_add(SAME_START) >= newest;
    let first = began.iter().filter(is_same).min().copied();
    let first = first.unwrap_or_default();
    move |began| began.saturating_sub(first)
}

/// Turns notes into wants, in the same order. Blocks on the disk.
fn wants(layer: &Layer, notes: &Notes, delay: u64) -> std::io::Result<Vec<Want>> {
    let names = names(layer, notes)?;
    let mut wants: Vec<Want> = Vec::new();
    let mut by_span: HashMap<u32, usize> = HashMap::new();
    for note in &notes.notes {
        let Some(tar) = layer.tar_of(note.span) else {
            continue;
        };
        let ms = delay.saturating_add(note.ms.into());
        let at = *by_span.entry(note.span).or_insert_with(|| {
            wants.push(Want {
                ms,
                offset: tar.start,
                bytes: tar.end - tar.start,
                files: Vec::new(),
            });
            wants.len() - 1
        });
        let name = note.file.and_then(|file| names.get(&file));
        if let (Some(want), Some(path)) = (wants.get_mut(at), name) {
            want.files.push(WantedFile {
                ms,
                path: path.clone(),
                at: note.at,
            });
        }
    }
    Ok(wants)
}

/// The names of the files that the notes refer to. Names that are not UTF-8 are left out.
fn names(layer: &Layer, notes: &Notes) -> std::io::Result<HashMap<u32, String>> {
    let files = notes.notes.iter().filter_map(|note| note.file);
    let by_entry: HashMap<usize, u32> = files
        .filter_map(|file| {
            let place = layer.places().file(usize::try_from(file).ok()?)?;
            Some((usize::try_from(place.entry).ok()?, file))
        })
        .collect();
    let entries = layer.entries()?;
    let named = entries.iter().enumerate().filter_map(|(number, entry)| {
        let file = by_entry.get(&number)?;
        Some((*file, std::str::from_utf8(entry.name).ok()?.to_owned()))
    });
    let names = named.collect();
    layer.release_entries();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_of_one_start_keep_their_order_and_older_ones_come_first() {
        let began = [1_000_000, 1_000_700, 5];
        let delays = delays(&began);
        assert_eq!(began.map(delays), [0, 700, 0]);
    }
}
