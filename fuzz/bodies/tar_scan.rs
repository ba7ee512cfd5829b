//! Any bytes as a tar, pushed in pieces of changing size.

use soci_ztoc::{Entry, Policy, TarEnd, TarError, TarScanner, TarSink, Toc, verify_header};

/// Keeps what was reported, and that it was reported in order.
#[derive(Default)]
struct Seen {
    toc: Toc,
    next: u64,
    data: u64,
}

impl Seen {
    fn piece(&mut self, offset: u64, bytes: &[u8]) {
        assert_eq!(offset, self.next, "bytes are reported once and in order");
        assert!(!bytes.is_empty());
        self.next += bytes.len() as u64;
    }
}

impl TarSink for Seen {
    fn head(&mut self, offset: u64, bytes: &[u8]) {
        self.piece(offset, bytes);
    }

    fn entry(&mut self, entry: &Entry<'_>) {
        assert_eq!(
            entry.offset, self.next,
            "an entry is reported in front of its content"
        );
        self.toc.push(entry);
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) {
        self.piece(offset, bytes);
        self.data += bytes.len() as u64;
    }
}

/// Scans `data` under both policies, whole and in pieces.
pub(crate) fn run(data: &[u8]) {
    for policy in [Policy::Ztoc, Policy::Unpack] {
        let (whole, end) = scan(data, policy, data.len().max(1));
        let step = data.first().map_or(1, |&first| usize::from(first) + 1);
        let (pieces, same_end) = scan(data, policy, step);
        assert_eq!(end, same_end);
        assert_eq!(whole.toc.len(), pieces.toc.len());
        assert_eq!((whole.next, whole.data), (pieces.next, pieces.data));
        for (a, b) in whole.toc.entries().zip(pieces.toc.entries()) {
            assert_eq!((a.name, a.offset, a.size), (b.name, b.offset, b.size));
        }
        if let Ok(end) = end {
            assert_eq!(end.archive_size, whole.next);
            check_headers(&whole.toc, data);
        }
    }
}

/// Where no size leads astray, every header verifies against the entry it was read from.
fn check_headers(toc: &Toc, data: &[u8]) {
    let is_plain = |entry: &Entry<'_>| {
        !entry.is_sparse() && (entry.size == 0 || entry.content().end > entry.offset)
    };
    if !toc.entries().all(|entry| is_plain(&entry)) {
        return;
    }
    for entry in toc.entries() {
        let header = usize::try_from(entry.header_start)
            .ok()
            .zip(usize::try_from(entry.offset).ok());
        let bytes = header
            .and_then(|(start, end)| data.get(start..end))
            .expect("headers were read");
        // Under the policy for unpacking a global header may lie in front, which a zTOC cannot have.
        if bytes.get(156) != Some(&b'g')
            && !bytes.chunks(512).any(|block| block.get(156) == Some(&b'g'))
        {
            verify_header(&entry, bytes).expect("a header agrees with itself");
        }
    }
}

fn scan(data: &[u8], policy: Policy, step: usize) -> (Seen, Result<TarEnd, TarError>) {
    let mut seen = Seen::default();
    let mut scanner = TarScanner::new(policy);
    for piece in data.chunks(step) {
        if let Err(error) = scanner.feed(piece, &mut seen) {
            return (seen, Err(error));
        }
    }
    (seen, scanner.finish())
}
