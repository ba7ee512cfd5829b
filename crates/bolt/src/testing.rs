//! Writes bbolt files for tests, independently of the reader: from the documentation of the page
//! format. Requires the feature `testing`; never part of a release.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "numbers of tests are small"
)]

use std::collections::BTreeMap;

/// The value of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// Plain bytes.
    Bytes(Vec<u8>),
    /// A bucket.
    Bucket(Tree),
    /// A bucket with a sequence number.
    Counted(Tree, u64),
}

/// The content of a bucket, by key.
pub type Tree = BTreeMap<Vec<u8>, Item>;

/// The layout of a file.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Size of a page in bytes.
    pub page_size: usize,
    /// Maximum number of elements per page. Small values give deep trees.
    pub fanout: usize,
    /// Buckets of at most this many bytes are stored inline in their parent's page.
    pub inline: usize,
}

/// The layout that bbolt uses on most machines.
pub const PLAIN: Layout = Layout {
    page_size: 4096,
    fanout: 60,
    inline: 1024,
};

struct Writer {
    layout: Layout,
    file: Vec<u8>,
}

/// Creates a file with this content. The older of its two meta pages has no records.
pub fn write(tree: &Tree, layout: Layout) -> Vec<u8> {
    let mut writer = Writer {
        layout,
        file: vec![0; 3 * layout.page_size],
    };
    let empty = writer.page(2, &[]);
    let root = writer.tree(tree);
    let pages = (writer.file.len() / layout.page_size) as u64;
    for (page, root, transaction) in [(0, empty, 6), (1, root, 7)] {
        let meta = meta(page, root, pages, transaction, layout.page_size);
        let at = page as usize * layout.page_size;
        writer.file[at..at + meta.len()].copy_from_slice(&meta);
    }
    writer.file
}

/// The used part of a meta page.
pub fn meta(page: u64, root: u64, pages: u64, transaction: u64, size: usize) -> Vec<u8> {
    let mut bytes = header(page, 4, 0, 0);
    let body = bytes.len();
    bytes.extend(0xED0C_DAED_u32.to_le_bytes());
    bytes.extend(2_u32.to_le_bytes());
    bytes.extend((size as u32).to_le_bytes());
    bytes.extend(0_u32.to_le_bytes());
    for number in [root, 0, 2, pages, transaction] {
        bytes.extend(number.to_le_bytes());
    }
    let sum = bytes[body..].iter().fold(0xcbf2_9ce4_8422_2325, |sum, b| {
        u64::wrapping_mul(sum ^ u64::from(*b), 0x0100_0000_01b3)
    });
    bytes.extend(sum.to_le_bytes());
    bytes
}

fn header(page: u64, flags: u16, count: usize, overflow: usize) -> Vec<u8> {
    let mut bytes = page.to_le_bytes().to_vec();
    bytes.extend(flags.to_le_bytes());
    bytes.extend((count as u16).to_le_bytes());
    bytes.extend((overflow as u32).to_le_bytes());
    bytes
}

/// Elements and the data that they point to, for the space after a page's header.
fn leaf_body(elements: &[(u32, Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let (mut table, mut data) = (Vec::new(), Vec::<u8>::new());
    for (index, (flags, key, value)) in elements.iter().enumerate() {
        let position = 16 * (elements.len() - index) + data.len();
        for word in [
            *flags,
            position as u32,
            key.len() as u32,
            value.len() as u32,
        ] {
            table.extend(word.to_le_bytes());
        }
        data.extend(key);
        data.extend(value);
    }
    table.extend(data);
    table
}

fn branch_body(elements: &[(Vec<u8>, u64)]) -> Vec<u8> {
    let (mut table, mut data) = (Vec::new(), Vec::<u8>::new());
    for (index, (key, page)) in elements.iter().enumerate() {
        let position = 16 * (elements.len() - index) + data.len();
        for word in [position as u32, key.len() as u32] {
            table.extend(word.to_le_bytes());
        }
        table.extend(page.to_le_bytes());
        data.extend(key);
    }
    table.extend(data);
    table
}

impl Writer {
    /// Appends a page of this kind and body (element count first) and returns its number.
    fn page(&mut self, flags: u16, body: &[u8]) -> u64 {
        self.counted_page(flags, 0, body)
    }

    fn counted_page(&mut self, flags: u16, count: usize, body: &[u8]) -> u64 {
        let size = self.layout.page_size;
        let number = (self.file.len() / size) as u64;
        let run = (16 + body.len()).div_ceil(size);
        let start = self.file.len();
        self.file.extend(header(number, flags, count, run - 1));
        self.file.extend(body);
        // Fill the rest of the page with garbage, as left by an earlier use of the page.
        self.file.resize(start + run * size, 0xa5);
        number
    }

    fn elements(&mut self, tree: &Tree) -> Vec<(u32, Vec<u8>, Vec<u8>)> {
        let element = |(key, item): (&Vec<u8>, &Item)| match item {
            Item::Bytes(value) => (0, key.clone(), value.clone()),
            Item::Bucket(tree) => (1, key.clone(), self.bucket(tree, 0)),
            Item::Counted(tree, sequence) => (1, key.clone(), self.bucket(tree, *sequence)),
        };
        tree.iter().map(element).collect()
    }

    fn bucket(&mut self, tree: &Tree, sequence: u64) -> Vec<u8> {
        let flat = tree.values().all(|item| matches!(item, Item::Bytes(_)));
        let mut inline = header(0, 2, tree.len(), 0);
        if flat {
            let elements = self.elements(tree);
            inline.extend(leaf_body(&elements));
        }
        let is_inline = flat && inline.len() <= self.layout.inline;
        let root = if is_inline { 0 } else { self.tree(tree) };
        let mut value = root.to_le_bytes().to_vec();
        value.extend(sequence.to_le_bytes());
        if is_inline {
            value.extend(inline);
        }
        value
    }

    /// Writes a tree and returns its root.
    fn tree(&mut self, tree: &Tree) -> u64 {
        let fanout = self.layout.fanout.max(2);
        let elements = self.elements(tree);
        let mut level: Vec<(Vec<u8>, u64)> = elements
            .chunks(fanout)
            .map(|chunk| {
                let page = self.counted_page(2, chunk.len(), &leaf_body(chunk));
                (chunk[0].1.clone(), page)
            })
            .collect();
        if level.is_empty() {
            return self.page(2, &[]);
        }
        while level.len() > 1 {
            level = level
                .chunks(fanout)
                .map(|chunk| {
                    let page = self.counted_page(1, chunk.len(), &branch_body(chunk));
                    (chunk[0].0.clone(), page)
                })
                .collect();
        }
        level[0].1
    }
}
