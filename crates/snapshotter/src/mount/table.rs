//! The kernel's mount table, read from `/proc/self/mountinfo`.
//!
//! It is the only way to decide what is mounted. File accesses do not tell: an EROFS mount whose
//! device is gone still lists and stats, and a FUSE mount whose server is gone may never answer.
//! The table is parsed as bytes. Fields are separated by spaces; space, tab, newline and backslash
//! in paths are octal escapes.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// ID of the mount, unique while the mount exists.
    pub id: u64,
    /// ID of the mount below it.
    pub parent: u64,
    /// Major and minor device number of the mounted file system.
    pub device: (u32, u32),
    /// The directory of the file system that is mounted.
    pub root: PathBuf,
    /// The mount point, relative to the root directory of the process.
    pub mount_point: PathBuf,
    /// Mount options, separated by commas.
    pub options: String,
    /// File system type, with its subtype after a dot.
    pub fs_type: String,
    /// Source of the mount. For EROFS from a file, the path of the image.
    pub source: PathBuf,
    /// File system options, separated by commas.
    pub fs_options: String,
}

/// All mounts visible to a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountTable {
    entries: Vec<MountEntry>,
}

impl MountTable {
    /// Reads the mounts of this process.
    ///
    /// # Errors
    ///
    /// When `/proc` cannot be read.
    pub fn read() -> std::io::Result<MountTable> {
        // Read the thread's own file, because a thread can have its own mount namespace.
        std::fs::read("/proc/thread-self/mountinfo").map(|bytes| MountTable::parse(&bytes))
    }

    /// Parses the text of a mountinfo file. Invalid lines are skipped.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> MountTable {
        let lines = bytes.split(|&byte| byte == b'\n');
        MountTable {
            entries: lines.filter_map(MountEntry::parse).collect(),
        }
    }

    /// All mounts, in the kernel's order.
    #[must_use]
    pub fn entries(&self) -> &[MountEntry] {
        &self.entries
    }

    /// The topmost mount at `path`.
    ///
    /// The order of the table does not tell, because a mount can be attached beneath an older one.
    /// The topmost mount is the one that is not the parent of another mount at `path`.
    #[must_use]
    pub fn top(&self, path: &Path) -> Option<&MountEntry> {
        let here = || {
            self.entries
                .iter()
                .filter(|entry| entry.mount_point == path)
        };
        here().find(|entry| !here().any(|other| other.parent == entry.id && other.id != entry.id))
    }

    /// Number of mounts stacked at `path`.
    #[must_use]
    pub fn depth(&self, path: &Path) -> usize {
        self.entries
            .iter()
            .filter(|entry| entry.mount_point == path)
            .count()
    }

    /// The mounts at and below `path`, compared by path components, in an order in which they can
    /// be unmounted.
    #[must_use]
    pub fn under(&self, path: &Path) -> Vec<&MountEntry> {
        let mut found: Vec<_> = self
            .entries
            .iter()
            .filter(|entry| entry.mount_point.starts_with(path))
            .collect();
        // Deeper paths come first. The order among mounts at one path does not matter, because an
        // unmount detaches the topmost.
        found.sort_by_key(|entry| std::cmp::Reverse(entry.mount_point.components().count()));
        found
    }
}

impl MountEntry {
    /// `36 35 98:0 /root /at rw,noatime master:1 - ext4 /dev/root rw,errors=continue`
    fn parse(line: &[u8]) -> Option<MountEntry> {
        let mut fields = line.split(|&byte| byte == b' ');
        let id = number(fields.next()?)?;
        let parent = number(fields.next()?)?;
        let device = fields.next()?;
        let colon = device.iter().position(|&byte| byte == b':')?;
        let (major, minor) = (device.get(..colon)?, device.get(colon + 1..)?);
        let root = path(fields.next()?);
        let mount_point = path(fields.next()?);
        let options = text(fields.next()?);
        // Skips any number of optional fields, up to a single dash.
        fields.find(|field| *field == b"-")?;
        Some(MountEntry {
            id,
            parent,
            device: (number(major)?, number(minor)?),
            root,
            mount_point,
            options,
            fs_type: text(fields.next()?),
            source: path(fields.next()?),
            fs_options: text(fields.next()?),
        })
    }
}

fn number<T: std::str::FromStr>(field: &[u8]) -> Option<T> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field)))
}

/// Decodes the kernel's `\ooo` escapes. A backslash that does not start an octal escape stays.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        match (byte, tail.first_chunk::<3>().and_then(octal)) {
            (b'\\', Some(escaped)) => {
                out.push(escaped);
                rest = tail.get(3..).unwrap_or_default();
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

fn octal(digits: &[u8; 3]) -> Option<u8> {
    let mut value = 0_u16;
    for digit in digits {
        if !(b'0'..=b'7').contains(digit) {
            return None;
        }
        value = value * 8 + u16::from(digit - b'0');
    }
    u8::try_from(value).ok()
}

/// Whether `path` can be compared with the table: absolute, without `.`, `..` or a trailing slash.
#[must_use]
pub fn is_plain(path: &Path) -> bool {
    let again: PathBuf = path.components().collect();
    path.is_absolute()
        && again.as_os_str() == path.as_os_str()
        && !path.components().any(|part| part == Component::ParentDir)
        && !path.as_os_str().as_bytes().contains(&0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TABLE: &[u8] = b"\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
40 27 0:50 / /run/a\\040b ro,relatime shared:7 master:3 - fuse.rawBridge soci ro,user_id=0
41 27 0:51 / /run/s/1/fs ro - erofs /run/meta ro,user_xattr
60 27 0:52 / /run/s/1/fs ro - erofs /run/meta2 ro
nonsense
42 27 0:53 / /run/s10 ro - tmpfs none rw
43 41 0:54 / /run/s/1/fs/deep ro - tmpfs none rw
";

    #[test]
    fn fields_are_found_behind_any_number_of_optional_ones() {
        let table = MountTable::parse(TABLE);
        assert_eq!(table.entries().len(), 6);
        let fuse = table.top(Path::new("/run/a b")).unwrap();
        assert_eq!((fuse.id, fuse.parent, fuse.device), (40, 27, (0, 50)));
        assert_eq!(
            (fuse.fs_type.as_str(), fuse.source.as_path()),
            ("fuse.rawBridge", "soci".as_ref())
        );
        assert_eq!(table.top(Path::new("/")).unwrap().options, "rw,relatime");
    }

    #[test]
    fn the_uppermost_mount_is_the_one_nothing_lies_on() {
        // Mount 60 was attached beneath the older mount 41, so 60 is the parent of 41.
        let text = String::from_utf8_lossy(TABLE).replace("41 27", "41 60");
        let table = MountTable::parse(text.as_bytes());
        let at = Path::new("/run/s/1/fs");
        assert_eq!(table.top(at).unwrap().id, 41);
        assert_eq!(table.depth(at), 2);
        assert_eq!(table.top(Path::new("/run/s/1")), None);
    }

    #[test]
    fn under_keeps_to_whole_components_and_goes_from_the_leaves() {
        let table = MountTable::parse(TABLE);
        let ids: Vec<_> = table
            .under(Path::new("/run/s"))
            .iter()
            .map(|entry| entry.id)
            .collect();
        assert_eq!(ids, [43, 41, 60]);
        assert_eq!(
            table.under(Path::new("/run/s/1/f")),
            Vec::<&MountEntry>::new()
        );
    }

    #[test]
    fn the_table_of_this_process_has_a_root() {
        assert!(MountTable::read().unwrap().top(Path::new("/")).is_some());
    }

    #[test]
    fn only_plain_paths_can_be_compared() {
        for plain in ["/", "/a/b c", "/a/..b"] {
            assert!(is_plain(Path::new(plain)), "{plain}");
        }
        for other in ["", "a", "/a/", "/a//b", "/a/./b", "/a/../b", "/a\0b"] {
            assert!(!is_plain(Path::new(other)), "{other}");
        }
    }

    /// Escapes like the kernel's `mangle`.
    fn escape(bytes: &[u8]) -> Vec<u8> {
        let escape = |&byte: &u8| match byte {
            b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
            other => vec![other],
        };
        bytes.iter().flat_map(escape).collect()
    }

    proptest! {
        #[test]
        fn prop_any_path_survives_the_table(name in prop::collection::vec(1_u8.., 1..40)) {
            let path = [b"/".as_slice(), &name].concat();
            let line = [b"1 2 0:3 / ".as_slice(), &escape(&path), b" ro - erofs ", &escape(&path), b" ro"];
            let table = MountTable::parse(&line.concat());
            prop_assert_eq!(table.entries().len(), 1);
            prop_assert_eq!(table.entries()[0].mount_point.as_os_str().as_bytes(), &path);
            prop_assert_eq!(table.entries()[0].source.as_os_str().as_bytes(), &path);
        }

        #[test]
        fn prop_any_bytes_are_a_table(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = MountTable::parse(&bytes);
        }

        #[test]
        fn prop_bytes_like_a_table_are_one(text in "[0-9:/a\\\\ \n-]{0,200}") {
            let _ = MountTable::parse(text.as_bytes());
        }
    }
}
