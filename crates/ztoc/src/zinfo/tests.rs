#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

use super::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn plain_tables_have_the_reference_bytes() {
    let table = PlainTable {
        span_size: 65_536,
        size: 215_040,
    };
    assert_eq!(
        hex(&table.encode()),
        "140000000000000000000a001c0018000c0004000a0000000048030000000000\
         00000100000000000000000002000000"
    );
    assert_eq!(PlainTable::parse(&table.encode()), Ok(table));
    assert_eq!(table.spans(), 4);
    let empty = PlainTable {
        span_size: 65_536,
        size: 0,
    };
    assert_eq!(empty.encode().len(), 32);
    assert_eq!(PlainTable::parse(&empty.encode()), Ok(empty));
    assert_eq!(empty.spans(), 0);
}

#[test]
fn length_decides_the_version() {
    let v2_empty = gzip_header(0, 5);
    assert_eq!(
        GzipTable::parse(&v2_empty).unwrap_err(),
        ZinfoError::NoCheckpoint
    );
    let v1_one = gzip_header(1, 5);
    let table = GzipTable::parse(&v1_one).unwrap();
    assert_eq!((table.len(), table.span_size()), (1, 5));
    let first = Row {
        compressed: 10,
        uncompressed: 0,
        bits: 0,
        window: &[],
    };
    assert_eq!(table.row(0), Some(first));
    assert_eq!(table.row(1), None);
    assert_eq!(GzipTable::parse(&[]).unwrap_err(), ZinfoError::Empty);
    for len in 1..12 {
        assert!(GzipTable::parse(&v1_one[..len]).is_err());
    }
    assert!(GzipTable::parse(&gzip_header(2, 5)).is_err());
    assert!(GzipTable::parse(&gzip_header(-1, 5)).is_err());
}

#[test]
fn version_1_is_version_2_without_the_first_record() {
    let mut v1 = gzip_header(2, 7).to_vec();
    v1.extend(gzip_record_start(100, 900, 3));
    v1.extend(vec![9; WINDOW]);
    let table = GzipTable::parse(&v1).unwrap();
    let second = table.row(1).unwrap();
    assert_eq!(
        (second.compressed, second.uncompressed, second.bits),
        (100, 900, 3)
    );
    assert_eq!(second.window, vec![9; WINDOW]);
    v1[28] = 8;
    let wrong = ZinfoError::Field {
        index: 1,
        field: "bits",
        value: 8,
    };
    assert_eq!(GzipTable::parse(&v1).unwrap_err(), wrong);
}
