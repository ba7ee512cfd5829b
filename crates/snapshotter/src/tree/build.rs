//! Applies the entries of an archive one by one, like unpacking.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use soci_erofs::{Attributes, Image, Kind, NodeId, Time};
use soci_ztoc::{Entry, FileKind};

use super::attributes::{bounded, chmod, chown, create, set_time, set_xattr};
use super::resolve::{Effort, Stop, clean, components, find, root_path};
use super::{Directory, Patch, Refusal, Tree, TreeError};

/// The longest path in a layer, in bytes. The kernel accepts 4095, including the unpacker's own
/// root.
const MAX_PATH: usize = 3840;
/// Maximum number of steps through links and below opaque markers per archive. Takes about one
/// second.
const MAX_STEPS: u64 = 10_000_000;
/// Mode of implied directories and of the root.
const DIRECTORY_MODE: u16 = 0o755;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

pub(super) fn build<'a>(
    entries: impl IntoIterator<Item = Entry<'a>>,
    blocks: u64,
    mut block_of: impl FnMut(usize) -> Option<u64>,
    patch: &Patch,
) -> Result<Tree, TreeError> {
    let entries = entries.into_iter();
    let at = |ordinal, name: &[u8], refusal| TreeError {
        ordinal,
        name: name.to_vec(),
        refusal,
    };
    let root = Attributes {
        mode: DIRECTORY_MODE,
        ..Attributes::default()
    };
    let mut image = Image::new(blocks, root).map_err(|error| at(0, b"", error.into()))?;
    image.reserve(entries.size_hint().0.min(1 << 20));
    let mut builder = Builder {
        image,
        patch,
        trail: Vec::new(),
        times: Vec::new(),
        implied: Vec::new(),
        unpacked: patch.rules.base.then(Unpacked::default),
        has_markers: false,
        effort: Effort(MAX_STEPS),
    };
    for (ordinal, entry) in entries.enumerate() {
        let refused = |refusal| at(ordinal, entry.name, refusal);
        builder
            .apply(ordinal, &entry, || block_of(ordinal))
            .map_err(refused)?;
    }
    builder
        .set_directory_times()
        .map_err(|(ordinal, name, refusal)| at(ordinal, name, refusal))?;
    Ok(Tree {
        image: builder.image,
        implied: builder.implied,
        has_markers: builder.has_markers,
        rules: patch.rules,
    })
}

struct Builder<'a, 'p> {
    image: Image,
    patch: &'p Patch,
    /// The parent of the previous entry, component by component, because neighbors usually share
    /// it. Contains only real directories. Cleared when a directory is removed.
    trail: Vec<(&'a [u8], NodeId)>,
    /// Directory entries. Their times are set again at the end.
    times: Vec<(usize, &'a [u8], Time)>,
    implied: Vec<Vec<u8>>,
    /// In a base layer: the paths that were entries. An opaque marker keeps them.
    unpacked: Option<Unpacked>,
    has_markers: bool,
    effort: Effort,
}

/// Paths, by their hash.
#[derive(Default)]
struct Unpacked {
    paths: HashSet<u64>,
    hasher: RandomState,
}

/// A position in the tree: an existing directory and a name in it.
struct Place<'n> {
    dir: NodeId,
    /// The path of `dir`, without a leading slash.
    path: Vec<u8>,
    name: &'n [u8],
}

impl Place<'_> {
    fn full_path(&self) -> Vec<u8> {
        if self.path.is_empty() {
            self.name.to_vec()
        } else {
            [&self.path, self.name].join(&b'/')
        }
    }
}

impl<'a> Builder<'a, '_> {
    fn apply(
        &mut self,
        ordinal: usize,
        entry: &Entry<'a>,
        block: impl FnOnce() -> Option<u64>,
    ) -> Result<(), Refusal> {
        let is_device = matches!(entry.kind, FileKind::Char | FileKind::Block);
        if is_device && self.patch.rules.user_namespace {
            return Ok(());
        }
        let mtime = bounded(entry.mtime);
        let Some(place) = self.place(entry.name, mtime)? else {
            return Ok(());
        };
        if let Some(hidden) = place.name.strip_prefix(WHITEOUT) {
            return self.mark(&place, hidden, entry);
        }

        let existing = self.image.child(place.dir, place.name);
        let merge =
            existing.filter(|&node| entry.kind == FileKind::Directory && self.image.is_dir(node));
        if existing.is_some() && merge.is_none() {
            self.remove(place.dir, place.name);
        }
        let node = match merge {
            Some(node) => node,
            None => self.make(entry, &place, block)?,
        };
        chown(&mut self.image, node, entry.uid, entry.gid)?;
        for (name, value) in entry.xattrs() {
            set_xattr(&mut self.image, node, name, value, self.patch.rules)?;
        }
        chmod(&mut self.image, node, mode_of(entry))?;
        set_time(&mut self.image, node, mtime)?;
        if entry.kind == FileKind::Directory {
            self.times.push((ordinal, entry.name, mtime));
        }
        if let Some(unpacked) = &mut self.unpacked {
            let hash = unpacked.hasher.hash_one(place.full_path().as_slice());
            unpacked.paths.insert(hash);
        }
        Ok(())
    }

    /// Creates the node of an entry. For a hard link, returns the existing node.
    fn make(
        &mut self,
        entry: &Entry<'a>,
        place: &Place<'_>,
        block: impl FnOnce() -> Option<u64>,
    ) -> Result<NodeId, Refusal> {
        // Truncated like in mknod: 12 bits for the major and 20 bits for the minor number.
        let number = |field: i64, mask: u32| u32::try_from(field & i64::from(mask)).unwrap_or(0);
        let (major, minor) = (
            number(entry.dev_major, 0xfff),
            number(entry.dev_minor, 0xf_ffff),
        );
        let kind = match entry.kind {
            FileKind::Regular if entry.is_sparse() => return Err(Refusal::Sparse),
            FileKind::Regular if entry.size == 0 => Kind::Regular {
                size: 0,
                data_block: 0,
            },
            FileKind::Regular => {
                let data_block = block().ok_or(Refusal::NoData)?;
                Kind::Regular {
                    size: entry.size,
                    data_block,
                }
            }
            FileKind::Directory => Kind::Directory,
            FileKind::Symlink => Kind::Symlink(entry.link),
            FileKind::Char => Kind::Char { major, minor },
            FileKind::Block => Kind::Block { major, minor },
            FileKind::Fifo => Kind::Fifo,
            FileKind::Hardlink => {
                let target = self.hardlink_target(entry.link)?;
                self.image.link(place.dir, place.name, target)?;
                return Ok(target);
            }
        };
        create(&mut self.image, place.dir, place.name, kind, mode_of(entry))
    }

    fn hardlink_target(&mut self, link: &[u8]) -> Result<NodeId, Refusal> {
        let missing = || Refusal::HardlinkTarget(link.to_vec());
        let slash = link
            .iter()
            .rposition(|&byte| byte == b'/')
            .map_or(0, |at| at + 1);
        let (parent, name) = link.split_at(slash);
        let parent = root_path(&self.image, parent, &mut self.effort)?;
        let path = clean(&[&parent, name].join(&b'/'));
        let node = find(&self.image, &path, &mut self.effort)?.ok_or_else(missing)?;
        if self.image.is_dir(node) {
            return Err(Refusal::HardlinkToDirectory(link.to_vec()));
        }
        Ok(node)
    }

    /// Executes a whiteout or an opaque marker, or creates the device or attribute for it.
    fn mark(&mut self, place: &Place<'_>, hidden: &[u8], entry: &Entry<'_>) -> Result<(), Refusal> {
        self.has_markers = true;
        if place.name == OPAQUE {
            if self.unpacked.is_some() {
                return self.empty(place);
            }
            return Ok(self
                .image
                .set_xattr(place.dir, self.patch.rules.opaque_xattr(), b"y")?);
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Refusal::WhiteoutName);
        }
        if self.unpacked.is_some() {
            self.remove(place.dir, hidden);
            return Ok(());
        }
        if self.image.child(place.dir, hidden).is_some() {
            return Err(Refusal::WhiteoutOfOwn);
        }
        let device = Kind::Char { major: 0, minor: 0 };
        let node = create(&mut self.image, place.dir, hidden, device, 0)?;
        chown(&mut self.image, node, entry.uid, entry.gid)?;
        set_time(&mut self.image, node, bounded(entry.mtime))
    }

    fn remove(&mut self, dir: NodeId, name: &[u8]) {
        if self
            .image
            .unlink(dir, name)
            .is_some_and(|node| self.image.is_dir(node))
        {
            self.trail.clear();
        }
    }

    /// Removes everything from a directory that was not an entry of this archive. A subdirectory
    /// that was not an entry is removed with all its content.
    fn empty(&mut self, place: &Place<'_>) -> Result<(), Refusal> {
        let Some(unpacked) = &self.unpacked else {
            return Ok(());
        };
        let mut todo = vec![(place.dir, place.path.clone())];
        let mut gone = Vec::new();
        while let Some((dir, mut path)) = todo.pop() {
            let len = path.len();
            for (name, node) in self.image.children(dir) {
                self.effort.step(1).map_err(refusal)?;
                path.truncate(len);
                push_part(&mut path, name);
                if !unpacked
                    .paths
                    .contains(&unpacked.hasher.hash_one(path.as_slice()))
                {
                    gone.push((dir, name.to_vec()));
                } else if self.image.is_dir(node) {
                    todo.push((node, path.clone()));
                }
            }
        }
        for (dir, name) in gone {
            self.remove(dir, &name);
        }
        Ok(())
    }

    /// The position of an entry. Follows links in its parent and creates missing parents. `None`
    /// for the root.
    fn place<'n>(&mut self, name: &'a [u8], mtime: Time) -> Result<Option<Place<'n>>, Refusal>
    where
        'a: 'n,
    {
        let Some((parts, last)) = split(name) else {
            return Ok(None);
        };
        let len: usize = parts.iter().map(|part| part.len() + 1).sum::<usize>() + last.len();
        if len > MAX_PATH {
            return Err(Refusal::PathTooLong(len));
        }
        let common = self
            .trail
            .iter()
            .zip(&parts)
            .take_while(|((a, _), b)| a == *b)
            .count();
        self.trail.truncate(common);
        let mut dir = self.trail.last().map_or(NodeId::ROOT, |(_, node)| *node);
        let mut missing = parts.len();
        for (depth, &part) in parts.iter().enumerate().skip(common) {
            match self.image.child(dir, part) {
                Some(node) if self.image.is_dir(node) => {
                    self.trail.push((part, node));
                    dir = node;
                }
                Some(node) if matches!(self.image.kind(node), Kind::Symlink(_)) => {
                    let name = clean(name);
                    let parent = &name[..name.len() - last.len()];
                    let resolved = root_path(&self.image, parent, &mut self.effort)?;
                    return self.place_below(&resolved, last, mtime).map(Some);
                }
                Some(_) => return Err(Refusal::ParentNotADirectory),
                None => {
                    missing = depth;
                    break;
                }
            }
        }
        let mut path = parts[..missing].join(&b'/');
        for &part in &parts[missing..] {
            dir = self.imply(dir, &mut path, part, mtime)?;
            self.trail.push((part, dir));
        }
        Ok(Some(Place {
            dir,
            path,
            name: last,
        }))
    }

    /// Like [`Builder::place`], for a parent without links.
    fn place_below<'n>(
        &mut self,
        parent: &[u8],
        name: &'n [u8],
        mtime: Time,
    ) -> Result<Place<'n>, Refusal> {
        let mut dir = NodeId::ROOT;
        let mut path = Vec::new();
        for part in components(parent) {
            dir = match self.image.child(dir, part) {
                Some(node) if self.image.is_dir(node) => {
                    push_part(&mut path, part);
                    node
                }
                Some(_) => return Err(Refusal::ParentNotADirectory),
                None => self.imply(dir, &mut path, part, mtime)?,
            };
        }
        Ok(Place { dir, path, name })
    }

    /// Creates a directory that has no entry, with attributes from the lower layers.
    fn imply(
        &mut self,
        dir: NodeId,
        path: &mut Vec<u8>,
        name: &[u8],
        mtime: Time,
    ) -> Result<NodeId, Refusal> {
        let image = &mut self.image;
        let node = create(image, dir, name, Kind::Directory, DIRECTORY_MODE)?;
        chmod(image, node, DIRECTORY_MODE)?;
        set_time(image, node, mtime)?;
        push_part(path, name);
        if let Some(Directory { attributes, xattrs }) = self.patch.implied.get(path.as_slice()) {
            chown(image, node, attributes.uid, attributes.gid)?;
            chmod(image, node, attributes.mode)?;
            set_time(image, node, attributes.mtime)?;
            for (name, value) in xattrs {
                set_xattr(image, node, name, value, self.patch.rules)?;
            }
        }
        self.implied.push(path.clone());
        Ok(node)
    }

    /// Sets the time of each directory entry again, by path and through links.
    fn set_directory_times(&mut self) -> Result<(), (usize, &'a [u8], Refusal)> {
        for (ordinal, name, mtime) in std::mem::take(&mut self.times) {
            let node = self
                .end_of(name)
                .and_then(|node| node.ok_or(Refusal::Vanished));
            let set = node.and_then(|node| set_time(&mut self.image, node, mtime));
            set.map_err(|refusal| (ordinal, name, refusal))?;
        }
        Ok(())
    }

    /// The node at an entry's path, with all links followed.
    fn end_of(&mut self, name: &[u8]) -> Result<Option<NodeId>, Refusal> {
        let Some((parts, last)) = split(name) else {
            return Ok(Some(NodeId::ROOT));
        };
        let mut parts = parts.into_iter().chain([last]);
        let straight = parts.try_fold(NodeId::ROOT, |dir, part| self.image.child(dir, part));
        if let Some(node) = straight.filter(|&node| self.image.is_dir(node)) {
            return Ok(Some(node));
        }
        let path = root_path(&self.image, &clean(name), &mut self.effort)?;
        Ok(find(&self.image, &path, &mut self.effort)?)
    }
}

/// The components of an entry's name after lexical cleaning below the root, and separately the last
/// one. `None` for the root itself.
fn split(name: &[u8]) -> Option<(Vec<&[u8]>, &[u8])> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in components(name) {
        match part {
            b"." => {}
            b".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    let last = parts.pop()?;
    Some((parts, last))
}

fn push_part(path: &mut Vec<u8>, part: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(part);
}

fn mode_of(entry: &Entry<'_>) -> u16 {
    u16::try_from(entry.mode & 0o7777).unwrap_or(0)
}

fn refusal(stop: Stop<std::convert::Infallible>) -> Refusal {
    match stop {
        Stop::NotADirectory => Refusal::ParentNotADirectory,
        Stop::TooManyLinks => Refusal::TooManyLinks,
        Stop::Outside => Refusal::LinkOutside,
        Stop::TooMuchWork => Refusal::TooMuchWork,
        Stop::Tree(never) => match never {},
    }
}

impl From<Stop<std::convert::Infallible>> for Refusal {
    fn from(stop: Stop<std::convert::Infallible>) -> Self {
        refusal(stop)
    }
}
