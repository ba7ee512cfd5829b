//! A simple model of the unpacking rules: a map from paths to inode numbers, changed entry by
//! entry. It is slow and does not model ACLs. Random archives must give the same tree with both.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::sample::select;
use soci_erofs::{Attributes, Kind, NodeId, Time};

use soci_snapshotter::tree::{Patch, Rules, Tree};

use crate::archive::{Made, archive, made};

/// An inode: tar type flag, link target, device, block and attributes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Inode {
    flag: u8,
    target: String,
    device: (u32, u32),
    block: Option<u64>,
    mode: u16,
    owner: (u32, u32),
    mtime: (i64, u32),
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Paths start with a slash; `/` itself is the root.
#[derive(Debug, Default)]
struct Model {
    inodes: Vec<Inode>,
    paths: BTreeMap<String, usize>,
    base: bool,
    entries: BTreeSet<String>,
    times: Vec<(String, (i64, u32))>,
}

/// Unpacking fails.
#[derive(Debug)]
struct Fails;

impl Model {
    fn run(made: &[Made], base: bool) -> Result<Self, Fails> {
        let mut model = Self {
            base,
            ..Self::default()
        };
        let root = Inode {
            flag: b'5',
            mode: 0o755,
            ..Inode::default()
        };
        model.put("/".into(), root);
        for (ordinal, entry) in made.iter().enumerate() {
            model.apply(ordinal, entry)?;
        }
        for (name, time) in std::mem::take(&mut model.times) {
            let path = model.root_path(&name)?;
            let &inode = model.paths.get(&path).ok_or(Fails)?;
            model.inodes[inode].mtime = time;
        }
        Ok(model)
    }

    fn put(&mut self, path: String, inode: Inode) -> usize {
        self.inodes.push(inode);
        self.paths.insert(path, self.inodes.len() - 1);
        self.inodes.len() - 1
    }

    fn flag(&self, path: &str) -> Option<u8> {
        self.paths.get(path).map(|&inode| self.inodes[inode].flag)
    }

    /// Removes a path and everything below it.
    fn remove(&mut self, path: &str) {
        let below = format!("{path}/");
        self.paths
            .retain(|other, _| other != path && !other.starts_with(&below));
    }

    fn apply(&mut self, ordinal: usize, entry: &Made) -> Result<(), Fails> {
        let name = clean(std::str::from_utf8(&entry.name).expect("text"));
        let (parent, last) = name
            .rsplit_once('/')
            .map_or(("", name.as_str()), |(parent, last)| {
                (if parent.is_empty() { "/" } else { parent }, last)
            });
        let parent = self.root_path(parent)?;
        let path = clean(&format!("{parent}/{}", clean(&format!("/{last}"))));
        if path == "/" {
            return Ok(());
        }
        let time = time_of(&entry.mtime);
        self.make_parents(&parent, time)?;
        let parent = if parent == "/" { "" } else { &parent };
        if let Some(hidden) = last.strip_prefix(".wh.") {
            return self.whiteout(parent, hidden, entry, time);
        }
        let merges = entry.flag == b'5' && self.flag(&path) == Some(b'5');
        if !merges {
            self.remove(&path);
        }
        let inode = match entry.flag {
            _ if merges => self.paths[&path],
            b'1' => {
                let link = std::str::from_utf8(&entry.link).expect("text");
                let (above, last) = link.rsplit_once('/').unwrap_or(("", link));
                let rooted = if link.starts_with('/') {
                    format!("/{above}")
                } else {
                    above.into()
                };
                let target = clean(&format!("{}/{last}", self.root_path(&rooted)?));
                let inode = *self.paths.get(&target).ok_or(Fails)?;
                if self.inodes[inode].flag == b'5' {
                    return Err(Fails);
                }
                self.paths.insert(path.clone(), inode);
                inode
            }
            flag => {
                let fresh = Inode {
                    flag,
                    target: String::from_utf8(entry.link.clone()).expect("text"),
                    device: if flag == b'3' { entry.device } else { (0, 0) },
                    block: (flag == b'0' && entry.size > 0).then_some(ordinal as u64),
                    owner: (0, self.group_of(parent)),
                    ..Inode::default()
                };
                self.put(path.clone(), fresh)
            }
        };
        self.dress(inode, entry, time);
        if entry.flag == b'5' {
            self.times.push((name.clone(), time));
        }
        self.entries.insert(path);
        Ok(())
    }

    fn dress(&mut self, inode: usize, entry: &Made, time: (i64, u32)) {
        let inode = &mut self.inodes[inode];
        let unchanged = |new: u32, old: u32| if new == u32::MAX { old } else { new };
        inode.owner = (
            unchanged(entry.uid, inode.owner.0),
            unchanged(entry.gid, inode.owner.1),
        );
        if inode.flag != b'5' {
            inode.xattrs.remove(&b"security.capability"[..]);
        }
        for (name, value) in &entry.xattrs {
            let user = name.starts_with("user.") && matches!(inode.flag, b'0' | b'5');
            if user || name.starts_with("security.") {
                inode
                    .xattrs
                    .insert(name.clone().into_bytes(), value.clone());
            }
        }
        inode.mode = if inode.flag == b'2' {
            0o777
        } else {
            entry.mode
        };
        inode.mtime = time;
    }

    /// The group of a new entry in a directory.
    fn group_of(&self, dir: &str) -> u32 {
        let dir = if dir.is_empty() { "/" } else { dir };
        let dir = &self.inodes[self.paths[dir]];
        if dir.mode & 0o2000 == 0 {
            0
        } else {
            dir.owner.1
        }
    }

    fn whiteout(
        &mut self,
        parent: &str,
        hidden: &str,
        entry: &Made,
        mtime: (i64, u32),
    ) -> Result<(), Fails> {
        let path = format!("{parent}/{hidden}");
        match (hidden, self.base) {
            (".wh..opq", true) => {
                let below = format!("{parent}/");
                let inside = |path: &&String| path.starts_with(&below) && path.as_str() != "/";
                let all: Vec<_> = self.paths.keys().filter(inside).cloned().collect();
                for path in all {
                    if !self.entries.contains(&path) {
                        self.remove(&path);
                    }
                }
            }
            (".wh..opq", false) => {
                let dir = if parent.is_empty() { "/" } else { parent };
                let inode = self.paths[dir];
                let name = b"trusted.overlay.opaque".to_vec();
                self.inodes[inode].xattrs.insert(name, b"y".to_vec());
            }
            ("" | "." | "..", _) => return Err(Fails),
            (_, true) => self.remove(&path),
            (_, false) if self.paths.contains_key(&path) => return Err(Fails),
            (_, false) => {
                let mut device = Inode {
                    flag: b'3',
                    mtime,
                    ..Inode::default()
                };
                device.owner.1 = self.group_of(parent);
                let unchanged = |new: u32, old: u32| if new == u32::MAX { old } else { new };
                device.owner = (
                    unchanged(entry.uid, 0),
                    unchanged(entry.gid, device.owner.1),
                );
                self.put(path, device);
            }
        }
        Ok(())
    }

    fn make_parents(&mut self, path: &str, mtime: (i64, u32)) -> Result<(), Fails> {
        match self.flag(path) {
            Some(b'5') => return Ok(()),
            Some(_) => return Err(Fails),
            None => {}
        }
        let above = path.rsplit_once('/').map_or("", |(above, _)| above);
        self.make_parents(if above.is_empty() { "/" } else { above }, mtime)?;
        let owner = (0, self.group_of(above));
        let fresh = Inode {
            flag: b'5',
            mode: 0o755,
            owner,
            mtime,
            ..Inode::default()
        };
        self.put(path.into(), fresh);
        Ok(())
    }

    /// Follows links repeatedly until a pass finds none.
    fn root_path(&self, path: &str) -> Result<String, Fails> {
        let mut path = path.to_string();
        let mut walked = 0;
        loop {
            let before = walked;
            path = self.walk_links(&path, &mut walked)?;
            if before == walked {
                return Ok(clean(&format!("/{path}")));
            }
        }
    }

    fn walk_links(&self, path: &str, walked: &mut usize) -> Result<String, Fails> {
        let Some((dir, last)) = path.rsplit_once('/') else {
            return if path.is_empty() {
                Ok(String::new())
            } else {
                Ok(self.walk(path, walked)?.0)
            };
        };
        match (dir, last) {
            ("", "") => return Ok("/".into()),
            (dir, "") => return self.walk_links(dir, walked),
            _ => {}
        }
        let dir = self.walk_links(if dir.is_empty() { "/" } else { dir }, walked)?;
        let (path, is_link) = self.walk(&clean(&format!("{dir}/{last}")), walked)?;
        Ok(match is_link {
            true if !path.starts_with('/') && !dir.is_empty() => clean(&format!("{dir}/{path}")),
            _ => path,
        })
    }

    fn walk(&self, path: &str, walked: &mut usize) -> Result<(String, bool), Fails> {
        if *walked > 255 {
            return Err(Fails);
        }
        let path = clean(&format!("/{path}"));
        let inode = self.lstat(&path, 0)?.map(|inode| &self.inodes[inode]);
        Ok(match inode {
            Some(inode) if inode.flag == b'2' => {
                *walked += 1;
                (inode.target.clone(), true)
            }
            _ => (path, false),
        })
    }

    /// The inode at a path as the kernel finds it. Fails if the path leads outside the root.
    fn lstat(&self, path: &str, depth: usize) -> Result<Option<usize>, Fails> {
        let mut at = String::new();
        let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
        for (number, part) in parts.iter().enumerate() {
            match *part {
                "." => continue,
                ".." if at.is_empty() => return Err(Fails),
                ".." => {
                    at.truncate(at.rfind('/').unwrap_or(0));
                    continue;
                }
                _ => {}
            }
            let here = format!("{at}/{part}");
            let Some(&inode) = self.paths.get(&here) else {
                return Ok(None);
            };
            let rest = &parts[number + 1..];
            match self.inodes[inode].flag {
                _ if rest.is_empty() => return Ok(Some(inode)),
                b'5' => at = here,
                b'2' if depth > 40 || self.inodes[inode].target.starts_with('/') => {
                    return Err(Fails);
                }
                b'2' => {
                    let target = &self.inodes[inode].target;
                    let path = format!("{at}/{target}/{}", rest.join("/"));
                    return self.lstat(&path, depth + 1);
                }
                _ => return Err(Fails),
            }
        }
        Ok(self
            .paths
            .get(if at.is_empty() { "/" } else { &at })
            .copied())
    }
}

/// Go's `filepath.Clean`.
fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|&last| last != "..") => drop(parts.pop()),
            ".." if rooted => {}
            _ => parts.push(part),
        }
    }
    match (rooted, parts.is_empty()) {
        (true, _) => format!("/{}", parts.join("/")),
        (false, true) => ".".into(),
        (false, false) => parts.join("/"),
    }
}

fn time_of(text: &str) -> (i64, u32) {
    let secs: i64 = text.parse().expect("whole seconds");
    (
        if (0..=9_223_372_036).contains(&secs) {
            secs
        } else {
            0
        },
        0,
    )
}

/// The contents of a tree in terms of the model.
fn seen(tree: &Tree) -> (BTreeMap<String, usize>, BTreeMap<usize, Inode>) {
    let mut todo = vec![("/".to_string(), NodeId::ROOT)];
    let mut paths = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    while let Some((path, node)) = todo.pop() {
        for (name, child) in tree.image().children(node) {
            let name = std::str::from_utf8(name).expect("text");
            todo.push((clean(&format!("{path}/{name}")), child));
        }
        let Attributes {
            mode,
            uid,
            gid,
            mtime: Time { secs, nanos },
        } = tree.image().attributes(node);
        let (flag, target, device, block) = match tree.image().kind(node) {
            Kind::Regular { size: 0, .. } => (b'0', "", (0, 0), None),
            Kind::Regular { data_block, .. } => (b'0', "", (0, 0), Some(data_block)),
            Kind::Directory => (b'5', "", (0, 0), None),
            Kind::Symlink(target) => (
                b'2',
                std::str::from_utf8(target).expect("text"),
                (0, 0),
                None,
            ),
            Kind::Char { major, minor } => (b'3', "", (major, minor), None),
            _ => (b'6', "", (0, 0), None),
        };
        let xattrs = tree
            .image()
            .xattrs(node)
            .map(|(name, value)| (name, value.to_vec()))
            .collect();
        let target = target.to_string();
        let (owner, mtime) = ((uid, gid), (secs, nanos));
        inodes.insert(
            node.index(),
            Inode {
                flag,
                target,
                device,
                block,
                mode,
                owner,
                mtime,
                xattrs,
            },
        );
        paths.insert(path, node.index());
    }
    (paths, inodes)
}

fn name() -> impl Strategy<Value = String> {
    let part = || select(&["a", "b", "c", "d", "l", "m", "f", ".."][..]);
    let parts = prop::collection::vec(part(), 1..4).prop_map(|parts| parts.join("/"));
    let front = select(&["", "", "", "./", "/", "../", "x/../"][..]);
    (front, parts).prop_map(|(front, parts)| format!("{front}{parts}"))
}

fn entry() -> impl Strategy<Value = Made> {
    let xattr = select(
        &[
            "user.a",
            "user.b",
            "security.x",
            "trusted.t",
            "security.capability",
        ][..],
    );
    let value = prop::collection::vec(any::<u8>(), 0..3);
    let xattrs = prop::collection::btree_map(xattr, value, 0..3);
    let id = || select(&[0, 0, 7, 1000, u32::MAX][..]);
    let mtime = select(&["5", "0", "1600000000", "-3", "9223372037"][..]);
    let mode = select(&[0o755, 0o644, 0o2775, 0o4711, 0o1777, 0][..]);
    let flag = select(&b"00555522216w"[..]);
    (
        flag,
        name(),
        name(),
        mode,
        id(),
        id(),
        mtime,
        xattrs,
        0..3u64,
    )
        .prop_map(
            |(flag, name, target, mode, uid, gid, mtime, xattrs, size)| {
                let name = match (flag, name.rsplit_once('/'), size) {
                    (b'w', _, 0) => format!("{name}/.wh..wh..opq"),
                    (b'w', Some((dir, last)), _) => format!("{dir}/.wh.{last}"),
                    (b'w', None, _) => format!(".wh.{name}"),
                    _ => name,
                };
                let mut entry = made(if flag == b'w' { b'0' } else { flag }, name);
                entry = entry.mode(mode).owner(uid, gid).mtime(mtime);
                if matches!(flag, b'1' | b'2') {
                    entry.link = target.into_bytes();
                }
                entry.size = if flag == b'0' { size } else { 0 };
                for (name, mut value) in xattrs {
                    if name == "security.capability" {
                        value = [0x0200_0001u32, 9, 0, 0, 0].map(u32::to_le_bytes).concat();
                    }
                    entry = entry.xattr(name, value);
                }
                entry
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn prop_a_tree_equals_that_of_the_model(
        entries in prop::collection::vec(entry(), 1..12),
        base in any::<bool>(),
    ) {
        // About half of the archives fail at some entry. The tree up to that entry is compared
        // anyway.
        let rules = Rules { base, user_namespace: false };
        let build = |entries: &[Made]| {
            let toc = archive(entries);
            Tree::build(toc.entries(), 100, |at| Some(at as u64), &Patch::plain(rules))
        };
        let mut entries = entries.as_slice();
        let (tree, model) = loop {
            match (build(entries), Model::run(entries, base)) {
                (Ok(tree), Ok(model)) => break (tree, model),
                (Err(_), Err(Fails)) => entries = &entries[..entries.len() - 1],
                (Err(error), Ok(_)) => prop_assert!(false, "only the tree fails: {error:?}"),
                (Ok(_), Err(Fails)) => prop_assert!(false, "only the model fails"),
            }
        };
        let (paths, inodes) = seen(&tree);
        prop_assert!(paths.keys().eq(model.paths.keys()), "{paths:?} {:?}", model.paths);
        let mut pairs = BTreeMap::new();
        for (path, node) in &paths {
            let number = model.paths[path];
            prop_assert_eq!(*pairs.entry(*node).or_insert(number), number, "links of {}", path);
            let mut wanted = model.inodes[number].clone();
            if !matches!(wanted.flag, b'2') {
                wanted.target.clear();
            }
            prop_assert_eq!(&inodes[node], &wanted, "{}", path);
        }
    }
}
