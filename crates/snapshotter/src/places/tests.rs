//! Compares the places of generated tars with the expected result, byte by byte.

#![allow(
    clippy::cast_possible_truncation,
    reason = "offsets of small test archives"
)]

use proptest::prelude::*;

use super::*;

fn places(entries: &[Planned], archive: u64) -> Places {
    let table = plan(entries.iter().cloned(), archive).expect("a plan");
    Places::new(Arc::new(table)).expect("tables")
}

fn entry(header: Range<u64>, size: u64) -> Planned {
    Planned {
        offset: header.end,
        header,
        size,
    }
}

#[test]
fn an_archive_without_files_is_all_heads() {
    let places = places(&[entry(0..512, 0), entry(512..1024, 0)], 2048);
    assert_eq!(
        (places.data_size(), places.heads_size()),
        (LEAD + TAIL, 2048)
    );
    assert!(places.contents().is_empty());
    let pieces: Vec<_> = places.pieces(100..2048).collect();
    assert_eq!(
        pieces,
        [Piece::Heads {
            tar: 100,
            heads: 100,
            len: 1948
        }]
    );
    assert_eq!(places.headers_in(0..512), 0..1);
    assert_eq!(places.headers_in(511..513), 0..2);
    assert_eq!(places.headers_in(1024..2048), 2..2);
}

#[test]
fn files_begin_at_blocks_and_the_rest_is_packed() {
    let entries = [
        entry(0..512, 5000),
        entry(5632..6144, 0),
        entry(6144..6656, 1),
    ];
    let places = places(&entries, 10240);
    assert_eq!(places.data_size(), LEAD + 3 * BLOCK + TAIL);
    assert_eq!(places.contents(), LEAD..LEAD + 3 * BLOCK);
    assert_eq!(places.heads_size(), 10240 - 5001);
    let files: Vec<_> = places.iter().collect();
    assert_eq!(
        files[0],
        File {
            entry: 0,
            tar: 512,
            size: 5000,
            data: LEAD,
            heads: 512
        }
    );
    assert_eq!(files[1].data, LEAD + 2 * BLOCK);
    assert_eq!(places.data_of(2), Some(LEAD + 2 * BLOCK));
    assert_eq!(places.data_of(1), None);
    let needed: Vec<_> = places.tar_of_data(LEAD + BLOCK..LEAD + 3 * BLOCK).collect();
    assert_eq!(needed, [(0, 512 + 4096..5512), (1, 6656..6657)]);
    // The range contains only padding, so it needs nothing.
    let behind = LEAD + 2 * BLOCK + 1..LEAD + 3 * BLOCK;
    assert_eq!(places.tar_of_data(behind).count(), 0);
}

#[test]
fn entries_that_cannot_be_placed_are_rejected() {
    let overlap = [entry(0..512, 5000), entry(1024..1536, 0)];
    assert!(matches!(
        plan(overlap.into_iter(), 10240),
        Err(PlaceError::Overlap {
            entry: 1,
            free: 5512,
            ..
        })
    ));
    let outside = PlaceError::Outside {
        entry: 0,
        archive: 1000,
    };
    assert_eq!(
        plan([entry(0..512, 600)].into_iter(), 1000),
        Err(outside.clone())
    );
    assert_eq!(
        plan([entry(0..512, u64::MAX)].into_iter(), 1000),
        Err(outside)
    );
    assert_eq!(
        plan([entry(0..512, MAX_DATA + 1)].into_iter(), u64::MAX),
        Err(PlaceError::TooLarge)
    );
    let most = MAX_DATA - LEAD - TAIL;
    let largest = places(&[entry(0..512, most)], u64::MAX);
    assert_eq!(largest.data_size(), MAX_DATA);
    assert_eq!(
        plan([entry(0..512, most + 1)].into_iter(), u64::MAX),
        Err(PlaceError::TooLarge)
    );
}

#[test]
fn truncated_tables_are_rejected() {
    let table = plan([entry(0..512, 5)].into_iter(), 1024).expect("a plan");
    for len in 0..table.len() {
        assert!(
            Places::new(Arc::new(table[..len].to_vec())).is_err(),
            "{len}"
        );
    }
}

prop_compose! {
    /// Entries as in a tar, and the size of the archive.
    fn archives()(
        raw in prop::collection::vec((1_u64..3, 0_u64..20_000, any::<bool>()), 0..20),
        tail in 0_u64..2000,
    ) -> (Vec<Planned>, u64) {
        let (mut at, mut entries) = (0, Vec::new());
        for (heads, size, regular) in raw {
            let header = at..at + heads * 512;
            let size = if regular { size } else { 0 };
            at = (header.end + size).next_multiple_of(512);
            entries.push(entry(header, size));
        }
        (entries, at + tail)
    }
}

proptest! {
    #[test]
    fn prop_every_byte_of_the_tar_has_one_place(
        (entries, archive) in archives(), cut in (0_u64..60_000, 0_u64..60_000),
    ) {
        let places = places(&entries, archive);
        let tar: Vec<u32> = (0..archive as u32).collect();
        let contents = places.contents();
        let mut data = vec![None; (contents.end - contents.start) as usize];
        let mut heads = vec![None; places.heads_size() as usize];
        // Any split of the tar into ranges must give the same files.
        let mut ends = [cut.0.min(archive), cut.1.min(archive), archive];
        ends.sort_unstable();
        let mut start = 0;
        for end in ends {
            let mut at = start;
            for piece in places.pieces(start..end) {
                let (file, tar_at, to, len) = match piece {
                    Piece::Data { tar, data: to, len } => (&mut data, tar, to - LEAD, len),
                    Piece::Heads { tar, heads: to, len } => (&mut heads, tar, to, len),
                };
                prop_assert_eq!(tar_at, at);
                for i in 0..len {
                    let slot = &mut file[(to + i) as usize];
                    prop_assert_eq!(slot.replace(tar[(tar_at + i) as usize]), None);
                }
                at += len;
            }
            prop_assert_eq!(at, end);
            start = end;
        }
        // heads is packed and in order.
        prop_assert!(heads.iter().all(Option::is_some));
        prop_assert!(heads.is_sorted());
        // data contains each whole file at its place.
        for file in places.iter() {
            prop_assert_eq!(file.data % BLOCK, 0);
            prop_assert_eq!(places.data_of(file.entry), Some(file.data));
            for i in 0..file.size {
                prop_assert_eq!(data[(file.data - LEAD + i) as usize], Some((file.tar + i) as u32));
            }
            prop_assert_eq!(places.header(file.entry as usize).map(|h| h.end), Some(file.tar));
        }
    }

    #[test]
    fn prop_a_range_of_data_needs_exactly_its_files_bytes(
        (entries, archive) in archives(), start in 0_u64..100_000, len in 1_u64..50_000,
    ) {
        let places = places(&entries, archive);
        let start = LEAD - 20_000 + start;
        let range = start..start + len;
        let mut expected = Vec::new();
        for (index, file) in places.iter().enumerate() {
            let from = range.start.max(file.data);
            let to = range.end.min(file.data + file.size);
            if from < to {
                expected.push((index, from - file.data + file.tar..to - file.data + file.tar));
            }
        }
        prop_assert_eq!(places.tar_of_data(range).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn prop_head_and_tail_need_nothing((entries, archive) in archives(), cut in 0..=LEAD, len in 1..=LEAD) {
        let places = places(&entries, archive);
        let contents = places.contents();
        prop_assert_eq!((contents.start, places.data_size() - contents.end), (LEAD, TAIL));
        let files = places.iter().map(|file| file.size.next_multiple_of(BLOCK)).sum::<u64>();
        prop_assert_eq!(contents.end - contents.start, files);
        let front = cut..(cut + len).min(LEAD);
        let behind = contents.end + cut % TAIL..places.data_size();
        for range in [front, behind] {
            prop_assert_eq!(places.tar_of_data(range).count(), 0);
        }
        // No byte of the tar is placed there.
        for piece in places.pieces(0..archive) {
            if let Piece::Data { data, len, .. } = piece {
                prop_assert!(contents.start <= data && data + len <= contents.end);
            }
        }
    }

    #[test]
    fn prop_headers_of_a_range((entries, archive) in archives(), start in 0_u64..60_000, len in 1_u64..20_000) {
        let places = places(&entries, archive);
        let range = start..start + len;
        let expected: Vec<_> = entries.iter().enumerate()
            .filter(|(_, e)| e.header.start < range.end && range.start < e.header.end)
            .map(|(i, _)| i).collect();
        prop_assert_eq!(places.headers_in(range).collect::<Vec<_>>(), expected);
    }
}
