//! Pages, B+ trees and nested buckets.
//!
//! The content is not trusted. A page belongs to exactly one tree, and an element takes at least
//! sixteen bytes of it. Counting both rules out cycles and bounds the work by the size of the file.

use std::collections::HashSet;
use std::ops::Range;

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
/// Size in bytes of a page header, of an element, and of a bucket header in front of its inline
/// page.
const HEADER: usize = 16;
/// Size in bytes of the part of a meta page, after the header, that its checksum covers.
const SUMMED: usize = 56;
/// Maximum depth of a tree. Trees with a million pages are three levels deep.
const MAX_DEPTH: usize = 32;
const PAGE_SIZES: Range<u32> = 9..20;

const BRANCH: u16 = 1;
const LEAF: u16 = 2;
/// Flag of a leaf element whose value is a bucket.
const IS_BUCKET: u32 = 1;

/// Why a file cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BoltError {
    /// The file has no valid meta page.
    #[error("no valid meta page")]
    NoMeta,
    /// A page is invalid.
    #[error("page {page}: {what}")]
    Page {
        /// The number of the page, or of the enclosing page for an inline page.
        page: u64,
        /// Why it is invalid.
        what: &'static str,
    },
}

/// A bucket whose entries were not read yet.
#[derive(Debug, Clone, Copy)]
pub struct Bucket<'a> {
    root: Root<'a>,
    sequence: u64,
}

impl Bucket<'_> {
    /// The last number that was taken from the bucket's sequence.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }
}

/// The root of a bucket's tree.
#[derive(Debug, Clone, Copy)]
enum Root<'a> {
    /// A page of the file.
    Page(u64),
    /// A page inside its parent's page, and the number of the parent's page.
    Inline(&'a [u8], u64),
}

/// The value of a key.
#[derive(Debug, Clone, Copy)]
pub enum Value<'a> {
    /// Plain bytes.
    Bytes(&'a [u8]),
    /// A nested bucket.
    Bucket(Bucket<'a>),
}

/// A file that is traversed once.
#[derive(Debug)]
pub struct Bolt<'a> {
    file: &'a [u8],
    page_size: usize,
    /// Pages from this number on are unused.
    high_water: u64,
    root: u64,
    seen: HashSet<u64>,
    elements_left: usize,
}

struct Meta {
    page_size: usize,
    root: u64,
    high_water: u64,
    transaction: u64,
}

impl<'a> Bolt<'a> {
    /// Finds the meta page of the latest transaction.
    ///
    /// # Errors
    ///
    /// When neither meta page is valid.
    pub fn open(file: &'a [u8]) -> Result<Self, BoltError> {
        let first = meta(file, 0);
        let second = match &first {
            Some(first) => meta(file, first.page_size),
            // The first meta page has the page size. If it is invalid, try all sizes to find the
            // second.
            None => PAGE_SIZES
                .map(|bits| 1 << bits)
                .find_map(|size| meta(file, size).filter(|meta| meta.page_size == size)),
        };
        let newest = first
            .into_iter()
            .chain(second)
            .max_by_key(|meta| meta.transaction);
        let Meta {
            page_size,
            root,
            high_water,
            transaction: _,
        } = newest.ok_or(BoltError::NoMeta)?;
        Ok(Self {
            file,
            page_size,
            high_water,
            root,
            seen: HashSet::new(),
            elements_left: file.len() / HEADER,
        })
    }

    /// Returns the root bucket, which contains the other buckets.
    #[must_use]
    pub fn root(&self) -> Bucket<'a> {
        Bucket {
            root: Root::Page(self.root),
            sequence: 0,
        }
    }

    /// Returns the keys and values of a bucket, by key. Each bucket can be read only once.
    ///
    /// # Errors
    ///
    /// When a page of the bucket is damaged.
    pub fn entries(&mut self, bucket: Bucket<'a>) -> Result<Vec<(&'a [u8], Value<'a>)>, BoltError> {
        let mut found = Vec::new();
        match bucket.root {
            Root::Inline(bytes, page) => {
                let page = Page::new(bytes, page)?;
                if page.kind != LEAF {
                    return Err(page.wrong("an inline page that is no leaf"));
                }
                self.leaf(&page, &mut found)?;
            }
            Root::Page(root) => {
                let mut queue = vec![(root, 0)];
                while let Some((number, depth)) = queue.pop() {
                    let page = self.page(number)?;
                    match page.kind {
                        LEAF => self.leaf(&page, &mut found)?,
                        BRANCH if depth < MAX_DEPTH => {
                            let children = self.branch(&page)?;
                            queue.extend(children.into_iter().rev().map(|page| (page, depth + 1)));
                        }
                        BRANCH => return Err(page.wrong("the tree is too deep")),
                        _ => return Err(page.wrong("neither branch nor leaf")),
                    }
                }
            }
        }
        Ok(found)
    }

    fn page(&mut self, number: u64) -> Result<Page<'a>, BoltError> {
        let wrong = |what| BoltError::Page { page: number, what };
        if number >= self.high_water {
            return Err(wrong("beyond the pages in use"));
        }
        if !self.seen.insert(number) {
            return Err(wrong("in the trees twice"));
        }
        let start = usize::try_from(number)
            .ok()
            .and_then(|number| number.checked_mul(self.page_size));
        let rest = start
            .and_then(|start| self.file.get(start..))
            .ok_or(wrong("beyond the end of the file"))?;
        let overflow = u32_at(rest, 12).ok_or(wrong("beyond the end of the file"))?;
        let length = usize::try_from(overflow)
            .ok()
            .and_then(|overflow| (overflow + 1).checked_mul(self.page_size));
        let bytes = length
            .and_then(|length| rest.get(..length))
            .ok_or(wrong("beyond the end of the file"))?;
        let page = Page::new(bytes, number)?;
        if page.id != number {
            return Err(wrong("another page's content"));
        }
        Ok(page)
    }

    fn leaf(
        &mut self,
        page: &Page<'a>,
        found: &mut Vec<(&'a [u8], Value<'a>)>,
    ) -> Result<(), BoltError> {
        for at in self.elements(page)? {
            let [flags, position, key, value] = page.words(at)?;
            let start = at.saturating_add(position);
            let middle = start.saturating_add(key);
            let end = middle.saturating_add(value);
            let (Some(key), Some(value)) =
                (page.bytes.get(start..middle), page.bytes.get(middle..end))
            else {
                return Err(page.wrong("an element beyond its end"));
            };
            let is_bucket = flags & IS_BUCKET as usize != 0;
            let value = if is_bucket {
                Value::Bucket(page.bucket(value)?)
            } else {
                Value::Bytes(value)
            };
            found.push((key, value));
        }
        Ok(())
    }

    fn branch(&mut self, page: &Page<'a>) -> Result<Vec<u64>, BoltError> {
        let elements = self.elements(page)?;
        let child = |at| u64_at(page.bytes, at + 8).ok_or(page.wrong("an element beyond its end"));
        elements.map(child).collect()
    }

    /// The location of a page's elements.
    fn elements(
        &mut self,
        page: &Page<'a>,
    ) -> Result<impl Iterator<Item = usize> + use<'a>, BoltError> {
        let Some(left) = self.elements_left.checked_sub(page.count) else {
            return Err(page.wrong("more elements than the file has room for"));
        };
        self.elements_left = left;
        Ok((0..page.count).map(|index| HEADER * (index + 1)))
    }
}

struct Page<'a> {
    bytes: &'a [u8],
    /// Page number for messages. For an inline page, the number of the enclosing page.
    number: u64,
    id: u64,
    kind: u16,
    count: usize,
}

impl<'a> Page<'a> {
    fn new(bytes: &'a [u8], number: u64) -> Result<Self, BoltError> {
        let header = || {
            let kind = u32_at(bytes, 8)?;
            let [low_kind, high_kind, low_count, high_count] = kind.to_le_bytes();
            Some(Self {
                bytes,
                number,
                id: u64_at(bytes, 0)?,
                kind: u16::from_le_bytes([low_kind, high_kind]),
                count: usize::from(u16::from_le_bytes([low_count, high_count])),
            })
        };
        header().ok_or(BoltError::Page {
            page: number,
            what: "too short for a page",
        })
    }

    fn wrong(&self, what: &'static str) -> BoltError {
        BoltError::Page {
            page: self.number,
            what,
        }
    }

    /// Reads the four words of a leaf element.
    fn words(&self, at: usize) -> Result<[usize; 4], BoltError> {
        let word = |index: usize| {
            let word = u32_at(self.bytes, at + 4 * index)?;
            usize::try_from(word).ok()
        };
        let words = || Some([word(0)?, word(1)?, word(2)?, word(3)?]);
        words().ok_or(self.wrong("an element beyond its end"))
    }

    fn bucket(&self, value: &'a [u8]) -> Result<Bucket<'a>, BoltError> {
        let header = (u64_at(value, 0), u64_at(value, 8), value.get(HEADER..));
        let (Some(root), Some(sequence), Some(inline)) = header else {
            return Err(self.wrong("a bucket that is too short"));
        };
        let root = match root {
            0 => Root::Inline(inline, self.number),
            page => Root::Page(page),
        };
        Ok(Bucket { root, sequence })
    }
}

/// Parses the meta page at this offset. Returns `None` if it is invalid.
fn meta(file: &[u8], offset: usize) -> Option<Meta> {
    let meta = file.get(offset..)?.get(HEADER..)?;
    let summed = meta.get(..SUMMED)?;
    let page_size = u32_at(meta, 8)?;
    let valid = u32_at(meta, 0)? == MAGIC
        && u32_at(meta, 4)? == VERSION
        && u64_at(meta, SUMMED)? == fnv1a(summed)
        && page_size.is_power_of_two()
        && PAGE_SIZES.contains(&page_size.trailing_zeros());
    valid.then_some(())?;
    Some(Meta {
        page_size: usize::try_from(page_size).ok()?,
        root: u64_at(meta, 16)?,
        high_water: u64_at(meta, 40)?,
        transaction: u64_at(meta, 48)?,
    })
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Numbers have the byte order of the machine that wrote the file: little-endian on all supported
/// ones.
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*word))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let word = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_le_bytes(*word))
}

#[cfg(test)]
mod tests;
