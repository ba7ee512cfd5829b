//! Spans that are decoded while they arrive, against spans that are verified and decoded whole.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use sha2::{Digest, Sha256};
use soci_ztoc::{
    ArrivingError, ArrivingSpan, BuildOptions, Builder, Compression, Decoder, SpanId, VerifiedSpan,
    VerifyError, Ztoc,
};

use crate::archive::{Dialect, File, Tar};
use crate::squeeze::{Fields, Flush, Make, gzip, member};

/// The compressed layers of the fixtures.
fn layers() -> Vec<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/layers");
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|name| name == "gz"))
        .collect();
    files.sort();
    files
        .iter()
        .map(|path| fs::read(path).unwrap())
        .filter(|layer| Compression::sniff(layer) == Compression::Gzip)
        .collect()
}

/// The zTOC of a layer. `None` for the fixtures that are damaged on purpose.
fn ztoc(layer: &[u8], span_size: u64) -> Option<Vec<u8>> {
    let options = BuildOptions {
        span_size,
        ..BuildOptions::default()
    };
    let mut built = Builder::new(options).build(layer, Compression::Gzip).ok()?;
    let mut bytes = Vec::new();
    built.encode(&mut bytes).unwrap();
    Some(bytes)
}

fn compressed<'l>(ztoc: &Ztoc<'_>, layer: &'l [u8], id: SpanId) -> &'l [u8] {
    let range = ztoc.spans().compressed(id);
    &layer[range.start as usize..range.end as usize]
}

fn arriving<'p>(
    ztoc: &Ztoc<'_>,
    id: SpanId,
    pieces: impl IntoIterator<Item = &'p [u8]>,
) -> Result<Vec<u8>, ArrivingError> {
    let mut span = ArrivingSpan::new(id, &ztoc.checkpoint(id), &ztoc.spans()).unwrap();
    for piece in pieces {
        span.push(piece);
    }
    span.finish()
}

/// The results of both decoders for the whole span: grafted, and in pieces.
fn whole(ztoc: &Ztoc<'_>, id: SpanId, bytes: &[u8]) -> [Result<Vec<u8>, ArrivingError>; 2] {
    let (spans, at) = (ztoc.spans(), ztoc.checkpoint(id));
    let span = match VerifiedSpan::verify(id, bytes, &spans) {
        Ok(span) => span,
        Err(error) => return [Err(error.clone().into()), Err(error.into())],
    };
    let mut decoder = Decoder::new();
    let grafted = decoder.decode(&span, &at, &spans).map(<[u8]>::to_vec);
    let mut pieces = Vec::new();
    let streamed =
        decoder.decode_in_pieces(&span, &at, &spans, |piece| pieces.extend_from_slice(piece));
    [
        grafted.map_err(Into::into),
        streamed.map(|()| pieces).map_err(Into::into),
    ]
}

/// Replaces the digest of a span in a zTOC by that of other bytes.
fn forge(ztoc: &mut [u8], old: &[u8], new: &[u8]) {
    let (old, new) = (crate::sha256(old), crate::sha256(new));
    let place = ztoc
        .windows(64)
        .position(|window| window == old.as_bytes())
        .unwrap();
    ztoc[place..place + 64].copy_from_slice(new.as_bytes());
}

/// What is done to the bytes of a span.
#[derive(Debug, Clone)]
enum Damage {
    Nothing,
    /// Changes bytes; the digest in the zTOC is that of the changed bytes if `forged`.
    Change {
        at: prop::sample::Index,
        with: Vec<u8>,
        forged: bool,
    },
    Cut(prop::sample::Index),
    Append(Vec<u8>),
}

fn damage() -> impl Strategy<Value = Damage> {
    let index = any::<prop::sample::Index>;
    let bytes = || prop::collection::vec(any::<u8>(), 1..6);
    prop_oneof![
        3 => Just(Damage::Nothing),
        4 => (index(), bytes(), any::<bool>())
            .prop_map(|(at, with, forged)| Damage::Change { at, with, forged }),
        1 => index().prop_map(Damage::Cut),
        1 => bytes().prop_map(Damage::Append),
    ]
}

fn damaged(bytes: &[u8], damage: &Damage, ztoc: &mut [u8]) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    match damage {
        Damage::Nothing => {}
        Damage::Change { at, with, forged } => {
            let at = at.index(changed.len());
            for (byte, with) in changed[at..].iter_mut().zip(with) {
                *byte ^= with;
            }
            if *forged {
                forge(ztoc, bytes, &changed);
            }
        }
        Damage::Cut(at) => changed.truncate(at.index(changed.len())),
        Damage::Append(more) => changed.extend(more),
    }
    changed
}

/// Cuts bytes into pieces of these sizes, over and over.
fn pieces<'b>(bytes: &'b [u8], sizes: &[usize]) -> Vec<&'b [u8]> {
    let (mut rest, mut pieces) = (bytes, Vec::new());
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, left) = rest.split_at((*size).min(rest.len()));
        pieces.push(piece);
        rest = left;
    }
    pieces
}

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    let size = prop_oneof![0..4usize, 1..900usize, 1..70_000usize];
    // The last one is not zero, so that every cycle makes progress.
    (prop::collection::vec(size, 0..5), 1..9000usize).prop_map(|(mut sizes, last)| {
        sizes.push(last);
        sizes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn prop_every_split_gives_what_the_whole_span_gives(
        layer in any::<prop::sample::Index>(),
        span_size in prop_oneof![1..5000u64, 5000..100_000u64, Just(4 << 20)],
        span in any::<prop::sample::Index>(),
        sizes in sizes(),
        damage in damage(),
    ) {
        thread_local!(static LAYERS: Vec<Vec<u8>> = layers());
        let layer = LAYERS.with(|layers| layer.get(layers).clone());
        let Some(mut bytes) = ztoc(&layer, span_size) else { return Ok(()) };
        let (id, changed) = {
            let parsed = Ztoc::parse(&bytes).unwrap();
            let id = SpanId(span.index(parsed.spans().len()) as u32);
            let honest = compressed(&parsed, &layer, id).to_vec();
            (id, damaged(&honest, &damage, &mut bytes))
        };
        let ztoc = Ztoc::parse(&bytes).unwrap();
        let [grafted, streamed] = whole(&ztoc, id, &changed);
        let found = arriving(&ztoc, id, pieces(&changed, &sizes));
        prop_assert_eq!(&found, &streamed);
        if found.is_ok() || matches!(damage, Damage::Nothing) {
            prop_assert!(found == grafted);
            prop_assert!(found.is_ok());
        }
    }
}

#[test]
fn every_cut_of_every_span_gives_the_same_bytes() {
    let text: String = (0..2000)
        .map(|line| format!("{} of {line}\n", line * 7919 % 1000))
        .collect();
    let tar = Tar::of(&[File::regular("f", text.as_bytes())], Dialect::Ustar);
    // Blocks end inside bytes, and members inside spans.
    let make = Make::Zlib {
        level: 6,
        flush: Flush::Block,
        every: 900,
    };
    let member = |part: &[u8]| member(part, &make, &Fields::default());
    let layer: Vec<u8> = tar.chunks(tar.len() / 3 + 1).flat_map(member).collect();
    let bytes = crate::ztoc(&layer, Compression::Gzip, 2500);
    let ztoc = Ztoc::parse(&bytes).unwrap();
    assert!(ztoc.spans().len() > 5, "{}", ztoc.spans().len());
    for id in ztoc.spans().ids() {
        let compressed = compressed(&ztoc, &layer, id);
        let [expected, _] = whole(&ztoc, id, compressed);
        assert!(expected.is_ok());
        for at in 0..=compressed.len() {
            let (first, second) = compressed.split_at(at);
            assert!(arriving(&ztoc, id, [first, second]) == expected, "{at}");
        }
        let single = compressed.chunks(1);
        assert!(arriving(&ztoc, id, single) == expected, "byte by byte");
    }
}

#[test]
fn a_wrong_digest_is_reported_before_a_decoder_error() {
    let file = File::regular("f", &b"some text ".repeat(20_000));
    let tar = Tar::of(&[file], Dialect::Ustar);
    let layer = gzip(&tar);
    let bytes = crate::ztoc(&layer, Compression::Gzip, 1 << 20);
    let ztoc = Ztoc::parse(&bytes).unwrap();
    let noise = vec![0xff; compressed(&ztoc, &layer, SpanId(0)).len()];
    let error = arriving(&ztoc, SpanId(0), noise.chunks(100)).unwrap_err();
    let found: [u8; 32] = Sha256::digest(&noise).into();
    let is_digest =
        |error: &VerifyError| matches!(error, VerifyError::Digest { found: f, .. } if **f == found);
    assert!(
        matches!(&error, ArrivingError::Verify(error) if is_digest(error)),
        "{error}"
    );
}

#[test]
fn a_plain_span_is_not_decoded() {
    let tar = Tar::of(&[], Dialect::Ustar);
    let bytes = crate::ztoc(&tar, Compression::Plain, 512);
    let ztoc = Ztoc::parse(&bytes).unwrap();
    let at = ztoc.checkpoint(SpanId(0));
    assert!(ArrivingSpan::new(SpanId(0), &at, &ztoc.spans()).is_none());
}
