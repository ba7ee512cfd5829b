//! Any bytes as a checkpoint table, of both kinds.

use soci_ztoc::{GzipTable, PlainTable, WINDOW};

/// Parses `data` as either table and reads all rows.
pub(crate) fn run(data: &[u8]) {
    if let Ok(table) = GzipTable::parse(data) {
        assert!(table.len() * WINDOW <= data.len() + WINDOW);
        for index in 0..table.len() {
            let row = table
                .row(index)
                .expect("every row below the count can be read");
            assert!(row.bits < 8);
            assert!(row.window.is_empty() || row.window.len() == WINDOW);
        }
        assert!(table.row(table.len()).is_none());
    }
    if let Ok(table) = PlainTable::parse(data) {
        assert!(table.span_size > 0);
        assert_eq!(PlainTable::parse(&table.encode()), Ok(table));
    }
}
