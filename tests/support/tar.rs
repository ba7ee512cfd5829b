//! Tar archives written byte by byte, so that a test can write anything a layer may contain.
//!
//! [`write()`] uses ustar headers, and a PAX record for values that do not fit (long names,
//! negative or fractional times, large owners). An [`Entry`] can also have its own records, padding
//! and type byte.

/// One member of an archive. Created by [`file()`], [`directory`], [`symlink`] and so on, and changed
/// by its methods.
#[derive(Debug, Clone)]
pub struct Entry {
    pub name: Vec<u8>,
    /// The type byte of the header.
    pub kind: u8,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    pub link: Vec<u8>,
    pub data: Vec<u8>,
    pub device: (u32, u32),
    pub records: Vec<(Vec<u8>, Vec<u8>)>,
    /// The byte that pads the last block of the data; zero in ordinary archives.
    pub padding: u8,
}

/// The default time of entries: 2023-11-14T22:13:20Z.
pub const SOME_TIME: i64 = 1_700_000_000;

fn entry(name: impl AsRef<[u8]>, kind: u8, mode: u32) -> Entry {
    Entry {
        name: name.as_ref().to_vec(),
        kind,
        mode,
        uid: 0,
        gid: 0,
        mtime: (SOME_TIME, 0),
        link: Vec::new(),
        data: Vec::new(),
        device: (0, 0),
        records: Vec::new(),
        padding: 0,
    }
}

pub fn file(name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Entry {
    Entry {
        data: data.as_ref().to_vec(),
        ..entry(name, b'0', 0o644)
    }
}

pub fn directory(name: impl AsRef<[u8]>) -> Entry {
    let mut name = name.as_ref().to_vec();
    if name.last() != Some(&b'/') {
        name.push(b'/');
    }
    entry(name, b'5', 0o755)
}

pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
    Entry {
        link: target.as_ref().to_vec(),
        ..entry(name, b'2', 0o777)
    }
}

pub fn hardlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
    Entry {
        link: target.as_ref().to_vec(),
        ..entry(name, b'1', 0o644)
    }
}

pub fn char_device(name: impl AsRef<[u8]>, major: u32, minor: u32) -> Entry {
    Entry {
        device: (major, minor),
        ..entry(name, b'3', 0o600)
    }
}

pub fn block_device(name: impl AsRef<[u8]>, major: u32, minor: u32) -> Entry {
    Entry {
        device: (major, minor),
        ..entry(name, b'4', 0o600)
    }
}

pub fn fifo(name: impl AsRef<[u8]>) -> Entry {
    entry(name, b'6', 0o644)
}

/// The marker that removes `name` of a lower layer.
pub fn whiteout(name: impl AsRef<[u8]>) -> Entry {
    let name = name.as_ref();
    let cut = name
        .iter()
        .rposition(|&b| b == b'/')
        .map_or(0, |slash| slash + 1);
    let marker = [&name[..cut], b".wh.", &name[cut..]].concat();
    Entry {
        mode: 0,
        ..entry(marker, b'0', 0)
    }
}

/// The marker that hides the content of `folder` in lower layers.
pub fn opaque(folder: impl AsRef<[u8]>) -> Entry {
    entry([folder.as_ref(), b"/.wh..wh..opq"].concat(), b'0', 0)
}

impl Entry {
    #[must_use]
    pub fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    #[must_use]
    pub fn owner(self, uid: u64, gid: u64) -> Self {
        Self { uid, gid, ..self }
    }

    #[must_use]
    pub fn mtime(self, seconds: i64, nanoseconds: u32) -> Self {
        Self {
            mtime: (seconds, nanoseconds),
            ..self
        }
    }

    #[must_use]
    pub fn kind(self, kind: u8) -> Self {
        Self { kind, ..self }
    }

    #[must_use]
    pub fn padding(self, padding: u8) -> Self {
        Self { padding, ..self }
    }

    #[must_use]
    pub fn record(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.records
            .push((key.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }

    #[must_use]
    pub fn xattr(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.record(format!("SCHILY.xattr.{name}"), value)
    }

    fn write_to(&self, out: &mut Vec<u8>) {
        let mut records = Vec::new();
        let mut add = |key: &[u8], value: &[u8]| records.push((key.to_vec(), value.to_vec()));
        if self.name.len() > 100 || !self.name.is_ascii() {
            add(b"path", &self.name);
        }
        if self.link.len() > 100 || !self.link.is_ascii() {
            add(b"linkpath", &self.link);
        }
        if self.uid >= 1 << 21 {
            add(b"uid", self.uid.to_string().as_bytes());
        }
        if self.gid >= 1 << 21 {
            add(b"gid", self.gid.to_string().as_bytes());
        }
        if self.mtime.0 < 0 || self.mtime.1 != 0 || self.mtime.0 >= 1 << 33 {
            add(b"mtime", pax_time(self.mtime).as_bytes());
        }
        records.extend(self.records.iter().cloned());
        if !records.is_empty() {
            let mut data = Vec::new();
            for (key, value) in &records {
                pax_record(&mut data, key, value);
            }
            let pax = Entry {
                data,
                ..entry(b"PaxHeaders/x", b'x', 0o644)
            };
            pax.write_header(out);
            pax.write_data(out);
        }
        self.write_header(out);
        self.write_data(out);
    }

    fn write_header(&self, out: &mut Vec<u8>) {
        let mut header = [0_u8; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, format!("{:07o}\0", self.mode).as_bytes());
        put(
            108,
            format!("{:07o}\0", if self.uid < 1 << 21 { self.uid } else { 0 }).as_bytes(),
        );
        put(
            116,
            format!("{:07o}\0", if self.gid < 1 << 21 { self.gid } else { 0 }).as_bytes(),
        );
        put(124, format!("{:011o}\0", self.data.len()).as_bytes());
        let seconds = if (0..1 << 33).contains(&self.mtime.0) {
            self.mtime.0
        } else {
            0
        };
        put(136, format!("{seconds:011o}\0").as_bytes());
        put(156, &[self.kind]);
        put(157, &self.link[..self.link.len().min(100)]);
        put(257, b"ustar\x0000");
        put(329, format!("{:07o}\0", self.device.0).as_bytes());
        put(337, format!("{:07o}\0", self.device.1).as_bytes());
        put(148, b"        ");
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend_from_slice(&header);
    }

    fn write_data(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.data);
        out.resize(out.len().next_multiple_of(512), self.padding);
    }
}

/// An archive of these entries with its two closing blocks.
pub fn write(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        entry.write_to(&mut out);
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// A time in PAX format: a decimal fraction that is subtracted for negative times.
fn pax_time((seconds, nanoseconds): (i64, u32)) -> String {
    if nanoseconds == 0 {
        return seconds.to_string();
    }
    let (sign, whole, fraction) = if seconds < 0 {
        (
            "-",
            (seconds + 1).unsigned_abs(),
            1_000_000_000 - nanoseconds,
        )
    } else {
        ("", seconds.unsigned_abs(), nanoseconds)
    };
    format!("{sign}{whole}.{fraction:09}")
        .trim_end_matches('0')
        .to_owned()
}

/// `LENGTH KEY=VALUE\n`, where the length includes itself.
fn pax_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let body = key.len() + value.len() + 3;
    let mut length = body + 1;
    while body + length.to_string().len() != length {
        length = body + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.extend_from_slice(&[b" ", key, b"=", value, b"\n"].concat());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gnu_tar_reads_back_what_was_written() {
        let long = format!("d/{}", "n".repeat(150));
        let bytes = write(&[
            directory("d"),
            file(&long, b"content")
                .owner(3_000_000, 7)
                .mtime(1, 500_000_000),
            symlink("d/link", "target"),
            hardlink("d/hard", &long),
            whiteout("d/gone"),
        ]);
        let folder = tempfile::tempdir().expect("a temporary directory is created");
        let path = folder.path().join("a.tar");
        std::fs::write(&path, bytes).expect("write the archive");
        let listed = std::process::Command::new("tar")
            .args(["--numeric-owner", "--full-time", "--utc", "-tvf"])
            .arg(&path)
            .output()
            .expect("run tar");
        let text = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(
            listed.status.success(),
            "{text}{}",
            String::from_utf8_lossy(&listed.stderr)
        );
        assert!(text.contains("3000000/7"), "{text}");
        assert!(text.contains("00:00:01.5"), "{text}");
        assert!(text.contains("d/.wh.gone"), "{text}");
        assert!(text.contains("d/link -> target"), "{text}");
    }
}
