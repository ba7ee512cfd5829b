//! Archives for unit and integration tests of the tree: entries in short form, written as a tar
//! with PAX records and scanned like a layer.

use soci_ztoc::{Entry, Policy, TarScanner, TarSink, Toc};

/// An entry to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Made {
    pub(crate) name: Vec<u8>,
    pub(crate) flag: u8,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// As in a PAX record.
    pub(crate) mtime: String,
    pub(crate) device: (u32, u32),
    pub(crate) size: u64,
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
}

pub(crate) fn made(flag: u8, name: impl AsRef<[u8]>) -> Made {
    Made {
        name: name.as_ref().to_vec(),
        flag,
        link: Vec::new(),
        mode: if flag == b'5' { 0o755 } else { 0o644 },
        uid: 0,
        gid: 0,
        mtime: "1000".into(),
        device: (0, 0),
        size: 0,
        xattrs: Vec::new(),
    }
}

/// A regular file of `size` bytes.
pub(crate) fn file(name: impl AsRef<[u8]>, size: u64) -> Made {
    Made {
        size,
        ..made(b'0', name)
    }
}

pub(crate) fn dir(name: impl AsRef<[u8]>) -> Made {
    made(b'5', name)
}

pub(crate) fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Made {
    Made {
        link: target.as_ref().to_vec(),
        ..made(b'2', name)
    }
}

pub(crate) fn hardlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Made {
    Made {
        link: target.as_ref().to_vec(),
        ..made(b'1', name)
    }
}

impl Made {
    pub(crate) fn mode(self, mode: u16) -> Self {
        Self { mode, ..self }
    }

    pub(crate) fn owner(self, uid: u32, gid: u32) -> Self {
        Self { uid, gid, ..self }
    }

    pub(crate) fn mtime(self, mtime: &str) -> Self {
        Self {
            mtime: mtime.into(),
            ..self
        }
    }

    pub(crate) fn xattr(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.xattrs.push((name.into(), value.as_ref().to_vec()));
        self
    }

    fn write(&self, tar: &mut Vec<u8>) {
        let mut pax = Vec::new();
        record(&mut pax, "path", &self.name);
        if !self.link.is_empty() {
            record(&mut pax, "linkpath", &self.link);
        }
        record(&mut pax, "uid", self.uid.to_string().as_bytes());
        record(&mut pax, "gid", self.gid.to_string().as_bytes());
        record(&mut pax, "mtime", self.mtime.as_bytes());
        for (name, value) in &self.xattrs {
            record(&mut pax, &format!("SCHILY.xattr.{name}"), value);
        }
        header(tar, b'x', 0, pax.len() as u64, (0, 0));
        tar.extend_from_slice(&pax);
        tar.resize(tar.len().next_multiple_of(512), 0);
        header(tar, self.flag, self.mode, self.size, self.device);
        let size = usize::try_from(self.size).expect("small");
        tar.resize((tar.len() + size).next_multiple_of(512), 0);
    }
}

fn record(pax: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len += 1;
    }
    pax.extend_from_slice(format!("{len} {key}=").as_bytes());
    pax.extend_from_slice(value);
    pax.push(b'\n');
}

fn header(tar: &mut Vec<u8>, flag: u8, mode: u16, size: u64, device: (u32, u32)) {
    let mut block = [0u8; 512];
    let mut put =
        |at: usize, text: &str| block[at..][..text.len()].copy_from_slice(text.as_bytes());
    put(0, "entry");
    put(100, &format!("{mode:07o}"));
    put(124, &format!("{size:011o}"));
    put(136, "00000000000");
    put(156, &char::from(flag).to_string());
    put(257, "ustar\x0000");
    put(329, &format!("{:07o}", device.0));
    put(337, &format!("{:07o}", device.1));
    put(148, "        ");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar.extend_from_slice(&block);
}

/// The table of contents of an archive with these entries.
pub(crate) fn archive(entries: &[Made]) -> Toc {
    struct Sink(Toc);
    impl TarSink for Sink {
        fn entry(&mut self, entry: &Entry<'_>) {
            self.0.push(entry);
        }
    }
    let mut tar = Vec::new();
    for entry in entries {
        entry.write(&mut tar);
    }
    tar.resize(tar.len() + 1024, 0);
    let mut sink = Sink(Toc::new());
    let mut scanner = TarScanner::new(Policy::Ztoc);
    scanner.feed(&tar, &mut sink).expect("the archive is valid");
    scanner.finish().expect("the archive is complete");
    sink.0
}
