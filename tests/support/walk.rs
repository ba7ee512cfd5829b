//! Compares two trees path by path: the oracle's and ours.
//!
//! It ignores what cannot be equal: sizes, blocks and link counts of directories, access times, and
//! the times of the root and of entries that the oracle dated at unpacking (implied directories,
//! whiteouts). It compares everything else: kind, mode, owner, time in nanoseconds, device number,
//! size, link count, paths that share an inode, link target, extended attributes, whether a path is
//! on the device of the root, and the SHA-256 of the content. Content is read with cold caches, in
//! random order, by eight threads, with and without `O_DIRECT`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use anyhow::{Context, Result};
use rustix::fs::OFlags;
use sha2::{Digest as _, Sha256};

/// The facts about one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, i64),
    pub rdev: u64,
    /// Whether `st_dev` equals that of the root of the tree.
    pub on_root_device: bool,
    pub size: u64,
    pub links: u64,
    /// The first path (in byte order) with the same inode.
    pub same_as: Vec<u8>,
    pub target: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Regular,
    Directory,
    Symlink,
    Char,
    Block,
    Fifo,
    Socket,
    /// Listed by its directory but missing: a whiteout in a directory that only one layer has.
    ListedOnly,
}

/// A tree: relative path to facts. The root is the empty path.
pub type Tree = BTreeMap<Vec<u8>, Facts>;

/// Reads the facts of everything below `root`.
pub fn walk(root: &Path) -> Result<Tree> {
    let mut tree = Tree::new();
    let mut inodes = Inodes {
        device: fs::symlink_metadata(root)?.dev(),
        paths: BTreeMap::new(),
    };
    let mut folders = vec![PathBuf::new()];
    tree.insert(Vec::new(), facts(root, &[], &mut inodes)?);
    while let Some(folder) = folders.pop() {
        let full = root.join(&folder);
        let mut names = Vec::new();
        for entry in fs::read_dir(&full).with_context(|| format!("list {}", full.display()))? {
            names.push(entry?.file_name());
        }
        names.sort();
        for name in names {
            let path = folder.join(&name);
            let found = facts(&root.join(&path), path.as_os_str().as_bytes(), &mut inodes)
                .with_context(|| format!("look at {}", path.display()))?;
            if found.kind == Kind::Directory {
                folders.push(path.clone());
            }
            tree.insert(path.into_os_string().as_bytes().to_vec(), found);
        }
    }
    settle_shared_inodes(&mut tree);
    Ok(tree)
}

/// Replaces the path in `same_as`, which was found first, by the first one in byte order, which is
/// the same for both trees.
fn settle_shared_inodes(tree: &mut Tree) {
    let mut first = BTreeMap::new();
    for (path, facts) in &*tree {
        first
            .entry(facts.same_as.clone())
            .or_insert_with(|| path.clone());
    }
    for facts in tree.values_mut() {
        facts.same_as.clone_from(&first[&facts.same_as]);
    }
}

/// What the walk knows so far.
struct Inodes {
    /// Device of the root.
    device: u64,
    /// The first path found for each inode.
    paths: BTreeMap<(u64, u64), Vec<u8>>,
}

fn facts(full: &Path, path: &[u8], inodes: &mut Inodes) -> Result<Facts> {
    let meta = match fs::symlink_metadata(full) {
        Ok(meta) => meta,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(listed_only(path)),
        Err(error) => return Err(error.into()),
    };
    let kind = kind(&meta.file_type());
    let directory = kind == Kind::Directory;
    let same_as = if directory {
        path.to_vec()
    } else {
        inodes
            .paths
            .entry((meta.dev(), meta.ino()))
            .or_insert_with(|| path.to_vec())
            .clone()
    };
    Ok(Facts {
        kind,
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        rdev: meta.rdev(),
        on_root_device: meta.dev() == inodes.device,
        size: if matches!(kind, Kind::Regular | Kind::Symlink) {
            meta.size()
        } else {
            0
        },
        links: if directory { 0 } else { meta.nlink() },
        same_as,
        target: match kind {
            Kind::Symlink => fs::read_link(full)?.into_os_string().as_bytes().to_vec(),
            _ => Vec::new(),
        },
        xattrs: xattrs(full)?,
    })
}

fn listed_only(path: &[u8]) -> Facts {
    Facts {
        kind: Kind::ListedOnly,
        mode: 0,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        rdev: 0,
        on_root_device: true,
        size: 0,
        links: 0,
        same_as: path.to_vec(),
        target: Vec::new(),
        xattrs: BTreeMap::new(),
    }
}

fn kind(of: &fs::FileType) -> Kind {
    match of {
        _ if of.is_dir() => Kind::Directory,
        _ if of.is_symlink() => Kind::Symlink,
        _ if of.is_char_device() => Kind::Char,
        _ if of.is_block_device() => Kind::Block,
        _ if of.is_fifo() => Kind::Fifo,
        _ if of.is_socket() => Kind::Socket,
        _ => Kind::Regular,
    }
}

fn xattrs(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0_u8; 64 << 10];
    let length = match rustix::fs::llistxattr(path, &mut names[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP) => return Ok(BTreeMap::new()),
        Err(error) => return Err(error.into()),
    };
    let mut found = BTreeMap::new();
    for name in names[..length]
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
    {
        let mut value = vec![0_u8; 64 << 10];
        let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..])?;
        value.truncate(length);
        found.insert(name.to_vec(), value);
    }
    Ok(found)
}

/// The differences between two mounted trees, one per line; empty if they are equal.
/// `unpacked_after` is a time in seconds before the oracle unpacked: later times are its own, not
/// the image's.
pub fn differences(oracle: &Path, ours: &Path, unpacked_after: i64) -> Result<Vec<String>> {
    let (expected, found) = (walk(oracle)?, walk(ours)?);
    let mut lines = compare(&expected, &found, unpacked_after);
    let files: Vec<&[u8]> = expected
        .iter()
        .filter(|(path, facts)| {
            facts.kind == Kind::Regular
                && found
                    .get(*path)
                    .is_some_and(|other| other.kind == Kind::Regular)
        })
        .map(|(path, _)| path.as_slice())
        .collect();
    lines.extend(compare_contents(oracle, ours, &files)?);
    Ok(lines)
}

/// The differences of the facts only.
pub fn compare(expected: &Tree, found: &Tree, unpacked_after: i64) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, want) in expected {
        let shown = show(path);
        let Some(have) = found.get(path) else {
            lines.push(format!("{shown}: missing, should be {want:?}"));
            continue;
        };
        let mut want = want.clone();
        if path.is_empty() || want.mtime.0 >= unpacked_after {
            want.mtime = have.mtime;
        }
        if want != *have {
            lines.push(difference(&shown, &want, have));
        }
    }
    for (path, have) in found {
        if !expected.contains_key(path) {
            lines.push(format!("{}: should not be there: {have:?}", show(path)));
        }
    }
    lines
}

fn difference(path: &str, want: &Facts, have: &Facts) -> String {
    let mut line = format!("{path}:");
    let mut add = |what: &str, want: &dyn std::fmt::Debug, have: &dyn std::fmt::Debug| {
        let (want, have) = (format!("{want:?}"), format!("{have:?}"));
        if want != have {
            write!(line, " {what} {have} instead of {want};")
                .expect("writing to a String cannot fail");
        }
    };
    add("kind", &want.kind, &have.kind);
    add(
        "mode",
        &format_args!("{:o}", want.mode),
        &format_args!("{:o}", have.mode),
    );
    add("owner", &(want.uid, want.gid), &(have.uid, have.gid));
    add("time", &want.mtime, &have.mtime);
    add("device", &want.rdev, &have.rdev);
    add(
        "on the root's device",
        &want.on_root_device,
        &have.on_root_device,
    );
    add("size", &want.size, &have.size);
    add("links", &want.links, &have.links);
    add("inode of", &show(&want.same_as), &show(&have.same_as));
    add("target", &show(&want.target), &show(&have.target));
    let shown = |xattrs: &BTreeMap<Vec<u8>, Vec<u8>>| {
        xattrs
            .iter()
            .map(|(name, value)| (show(name), show(value)))
            .collect::<Vec<_>>()
    };
    add("xattrs", &shown(&want.xattrs), &shown(&have.xattrs));
    line
}

fn show(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

const READERS: usize = 8;

fn compare_contents(oracle: &Path, ours: &Path, files: &[&[u8]]) -> Result<Vec<String>> {
    drop_caches()?;
    let mut order: Vec<&[u8]> = files.to_vec();
    shuffle(&mut order);
    let (next, lines) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(path) = order.get(at) else { return };
                    let relative = Path::new(OsStr::from_bytes(path));
                    let (oracle, ours) = (oracle.join(relative), ours.join(relative));
                    let found = compare_content(&oracle, &ours, at % ORDERS.len());
                    let shown = found.iter().map(|line| format!("{}: {line}", show(path)));
                    lines.lock().expect("no reader panics").extend(shown);
                }
            });
        }
    });
    Ok(lines.into_inner().expect("no reader panics"))
}

/// How a file is read.
#[derive(Debug, Clone, Copy)]
pub enum How {
    Cached,
    /// Opened with `O_DIRECT`.
    Direct,
    /// `O_DIRECT` set after opening.
    DirectLater,
}

/// Each way comes first for some files, because only the first read meets missing bytes.
const ORDERS: [[How; 2]; 4] = [
    [How::Cached, How::Direct],
    [How::Direct, How::Cached],
    [How::Cached, How::DirectLater],
    [How::DirectLater, How::Cached],
];

fn compare_content(oracle: &Path, ours: &Path, order: usize) -> Vec<String> {
    let want = hash(oracle);
    let one = |how| match (&want, read_hash(ours, how)) {
        (Ok(want), Ok(have)) if *want == have => None,
        (Ok(_), Ok(_)) => Some(format!("other content ({how:?})")),
        (Ok(_), Err(error)) => Some(format!("cannot be read ({how:?}): {error}")),
        (Err(error), _) => Some(format!("cannot be read by the oracle: {error}")),
    };
    ORDERS[order].into_iter().filter_map(one).collect()
}

/// SHA-256 of a file's content.
pub fn hash(path: &Path) -> std::io::Result<[u8; 32]> {
    read_hash(path, How::Cached)
}

/// The same, reading in this way.
pub fn read_hash(path: &Path, how: How) -> std::io::Result<[u8; 32]> {
    let mut options = fs::File::options();
    options.read(true);
    if matches!(how, How::Direct) {
        options.custom_flags(OFlags::DIRECT.bits().cast_signed());
    }
    let mut file = options.open(path)?;
    if matches!(how, How::DirectLater) {
        let flags = rustix::fs::fcntl_getfl(&file)?;
        rustix::fs::fcntl_setfl(&file, flags | OFlags::DIRECT)?;
    }
    // Page-aligned, because direct reads need an aligned buffer.
    let mut buffer = memmap2::MmapMut::map_anon(1 << 18)?;
    let mut hasher = Sha256::new();
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().into()),
            length => hasher.update(&buffer[..length]),
        }
    }
}

/// Seconds since 1970.
pub fn now() -> i64 {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Drops the page cache and the dentry and inode caches of the whole machine.
pub fn drop_caches() -> Result<()> {
    fs::write("/proc/sys/vm/drop_caches", "3").context("drop the caches")
}

/// A different order for every call, but the same in every run.
fn shuffle<T>(items: &mut [T]) {
    let mut state = 0x5eed_u64 ^ items.len() as u64;
    for i in (1..items.len()).rev() {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let j = usize::try_from(state >> 33).unwrap_or(0) % (i + 1);
        items.swap(i, j);
    }
}
