//! Writes tar archives in several dialects, with the entries that a reader must return.

use soci_ztoc::{Entry, FileKind, Time};

/// The format of a file's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// No magic: names up to 100 bytes, no owner names, and no devices.
    V7,
    /// `ustar`; long names are split into prefix and name.
    Ustar,
    /// `ustar` with a PAX header that overrides all possible fields.
    Pax,
    /// GNU: long names in separate blocks, and large numbers in base 256.
    Gnu,
}

/// A file to write, and the expected result of reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: FileKind,
    pub(crate) content: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: i64,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) uname: Vec<u8>,
    pub(crate) gname: Vec<u8>,
    pub(crate) mtime: Time,
    pub(crate) dev: (i64, i64),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl File {
    /// A regular file with mode 0644, owned by root.
    pub(crate) fn regular(name: &str, content: &[u8]) -> Self {
        Self {
            name: name.into(),
            kind: FileKind::Regular,
            content: content.to_vec(),
            link: Vec::new(),
            mode: 0o644,
            uid: 0,
            gid: 0,
            uname: Vec::new(),
            gname: Vec::new(),
            mtime: Time { secs: 0, nanos: 0 },
            dev: (0, 0),
            xattrs: Vec::new(),
        }
    }

    /// Removes the attributes that a dialect cannot express.
    pub(crate) fn limited_to(mut self, dialect: Dialect) -> Self {
        if dialect != Dialect::Pax {
            self.xattrs.clear();
            self.mtime.nanos = 0;
        }
        match dialect {
            Dialect::V7 => {
                self.name.truncate(100);
                self.link.truncate(100);
                self.uname.clear();
                self.gname.clear();
                self.dev = (0, 0);
            }
            Dialect::Ustar => {
                self.name.truncate(100);
                self.link.truncate(100);
            }
            Dialect::Pax | Dialect::Gnu => {}
        }
        if matches!(dialect, Dialect::V7 | Dialect::Ustar) {
            self.uid &= 0o777_7777;
            self.gid &= 0o777_7777;
            self.mtime.secs = self.mtime.secs.rem_euclid(1 << 33);
        }
        self.xattrs.sort();
        self.xattrs.dedup_by(|a, b| a.0 == b.0);
        self
    }
}

/// Compares an entry with the file it was created from.
pub(crate) fn assert_same(entry: &Entry<'_>, file: &File) {
    assert_eq!(entry.name, file.name);
    assert_eq!(entry.kind, file.kind);
    assert_eq!(entry.size, file.content.len() as u64);
    assert_eq!(entry.link, file.link);
    assert_eq!(entry.mode, file.mode);
    assert_eq!((entry.uid, entry.gid), (file.uid, file.gid));
    assert_eq!(
        (entry.uname, entry.gname),
        (&file.uname[..], &file.gname[..])
    );
    assert_eq!(entry.mtime, file.mtime);
    assert_eq!((entry.dev_major, entry.dev_minor), file.dev);
    let xattrs: Vec<_> = entry
        .xattrs()
        .map(|(k, v)| (k.to_vec(), v.to_vec()))
        .collect();
    assert_eq!(xattrs, file.xattrs);
}

/// A tar archive.
#[derive(Debug, Default)]
pub(crate) struct Tar {
    pub(crate) bytes: Vec<u8>,
}

impl Tar {
    /// Creates an archive of files in one dialect, with an end marker.
    pub(crate) fn of(files: &[File], dialect: Dialect) -> Vec<u8> {
        let mut tar = Self::default();
        for file in files {
            tar.file(file, dialect);
        }
        tar.end()
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.bytes.extend([0; 1024]);
        self.bytes
    }

    pub(crate) fn file(&mut self, file: &File, dialect: Dialect) {
        let mut header = Header::of(file, dialect);
        match dialect {
            Dialect::V7 | Dialect::Ustar => {}
            Dialect::Pax => self.pax(&pax_records(file)),
            Dialect::Gnu => {
                if file.name.len() > 100 {
                    self.long(b'L', &file.name);
                }
                if file.link.len() > 100 {
                    self.long(b'K', &file.link);
                }
            }
        }
        self.raw(&mut header, &file.content);
    }

    /// Appends a PAX header with these records.
    pub(crate) fn pax(&mut self, records: &[(Vec<u8>, Vec<u8>)]) {
        let payload: Vec<u8> = records.iter().flat_map(|(k, v)| record(k, v)).collect();
        self.meta(b'x', b"pax", &payload);
    }

    /// Appends a header of type `flag` with a payload.
    pub(crate) fn meta(&mut self, flag: u8, name: &[u8], payload: &[u8]) {
        let mut header = Header::new(b"ustar\x0000", name, flag, payload.len() as u64);
        self.raw(&mut header, payload);
    }

    fn long(&mut self, flag: u8, name: &[u8]) {
        let mut payload = name.to_vec();
        payload.push(0);
        let mut header = Header::new(b"ustar  \0", b"././@LongLink", flag, payload.len() as u64);
        self.raw(&mut header, &payload);
    }

    /// Appends a header, with its checksum, and content padded with nonzero bytes.
    pub(crate) fn raw(&mut self, header: &mut Header, content: &[u8]) {
        self.bytes.extend(header.finish());
        self.bytes.extend(content);
        let padding = content.len().next_multiple_of(512) - content.len();
        self.bytes.extend(std::iter::repeat_n(0xa5, padding));
    }
}

fn pax_records(file: &File) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut records: Vec<(Vec<u8>, Vec<u8>)> = vec![
        (b"uid".to_vec(), file.uid.to_string().into()),
        (b"gid".to_vec(), file.gid.to_string().into()),
        (b"size".to_vec(), file.content.len().to_string().into()),
    ];
    for (key, value) in [
        (&b"path"[..], &file.name),
        (b"linkpath", &file.link),
        (b"uname", &file.uname),
        (b"gname", &file.gname),
    ] {
        records.push((key.to_vec(), value.clone()));
    }
    let Time { secs, nanos } = file.mtime;
    let mtime = if secs < 0 && nanos > 0 {
        let (whole, rest) = (secs + 1, 1_000_000_000 - nanos);
        format!("-{}.{rest:09}", whole.unsigned_abs())
    } else {
        format!("{secs}.{nanos:09}")
    };
    records.push((b"mtime".to_vec(), mtime.into()));
    for (key, value) in &file.xattrs {
        records.push(([b"SCHILY.xattr.", &key[..]].concat(), value.clone()));
    }
    records
}

/// One PAX record, prefixed with its length.
pub(crate) fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let mut len = body + 1;
    while len.to_string().len() + body != len {
        len += 1;
    }
    [len.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// A header block under construction.
#[derive(Debug, Clone)]
pub(crate) struct Header(pub(crate) [u8; 512]);

impl Header {
    pub(crate) fn new(magic: &[u8; 8], name: &[u8], flag: u8, size: u64) -> Self {
        let mut header = Self([0; 512]);
        header.put(0, &name[..name.len().min(100)]);
        header.octal(100, 8, 0o644);
        header.octal(108, 8, 0);
        header.octal(116, 8, 0);
        header.octal(124, 12, size);
        header.octal(136, 12, 0);
        header.0[156] = flag;
        header.put(257, magic);
        if magic[0] != 0 {
            header.octal(329, 8, 0);
            header.octal(337, 8, 0);
        }
        header
    }

    fn of(file: &File, dialect: Dialect) -> Self {
        let magic = match dialect {
            Dialect::V7 => &[0; 8],
            Dialect::Ustar | Dialect::Pax => b"ustar\x0000",
            Dialect::Gnu => b"ustar  \0",
        };
        let flag = match file.kind {
            FileKind::Regular if dialect == Dialect::V7 && !file.name.ends_with(b"/") => 0,
            FileKind::Regular => b'0',
            FileKind::Hardlink => b'1',
            FileKind::Symlink => b'2',
            FileKind::Char => b'3',
            FileKind::Block => b'4',
            FileKind::Directory => b'5',
            FileKind::Fifo => b'6',
        };
        let mut header = Self::new(magic, b"", flag, file.content.len() as u64);
        let slash = file.name.iter().position(|&b| b == b'/');
        match slash {
            Some(at) if dialect == Dialect::Ustar && at > 0 && at + 1 < file.name.len() => {
                header.put(345, &file.name[..at]);
                header.put(0, &file.name[at + 1..]);
            }
            _ => header.put(0, &file.name[..file.name.len().min(100)]),
        }
        header.put(157, &file.link[..file.link.len().min(100)]);
        header.number(100, 8, file.mode);
        header.number(108, 8, file.uid.into());
        header.number(116, 8, file.gid.into());
        header.number(136, 12, file.mtime.secs);
        if dialect != Dialect::V7 {
            header.put(265, &file.uname);
            header.put(297, &file.gname);
            header.number(329, 8, file.dev.0);
            header.number(337, 8, file.dev.1);
        }
        header
    }

    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn octal(&mut self, at: usize, len: usize, value: u64) {
        let digits = format!("{value:0width$o}\0", width = len - 1);
        self.put(at, digits.as_bytes());
    }

    /// Writes a number in octal if it fits, else in base 256.
    pub(crate) fn number(&mut self, at: usize, len: usize, value: i64) {
        match u64::try_from(value) {
            Ok(value) if value >> (3 * (len - 1)) == 0 => self.octal(at, len, value),
            _ => {
                let sign = if value < 0 { 0xff } else { 0 };
                let bytes = value.to_be_bytes();
                for i in 0..len {
                    let from_end = len - 1 - i;
                    self.0[at + i] = if from_end < 8 {
                        bytes[7 - from_end]
                    } else {
                        sign
                    };
                }
                self.0[at] |= 0x80;
            }
        }
    }

    /// Returns the block with its checksum.
    pub(crate) fn finish(&mut self) -> [u8; 512] {
        self.0[148..156].fill(b' ');
        let sum: u32 = self.0.iter().map(|&b| u32::from(b)).sum();
        self.put(148, format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}
