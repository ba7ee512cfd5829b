//! The kernel mounts what was written and sees the tree that was meant.
//!
//! Needs root and a target folder on ext4, xfs or btrfs. Mounts are detached: they hang on a
//! descriptor and go with it, however the test ends.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};
use soci_erofs::{Attributes, Image, Inode, Kind, NodeId, Time};

use crate::trees::{Content, Taste, Tree, tree};

/// A mounted image; everything goes when it is dropped.
struct Mounted {
    root: PathBuf,
    _mount: OwnedFd,
    _folder: tempfile::TempDir,
}

impl Mounted {
    fn new(image: &Image, fill_device: impl FnOnce(&mut File)) -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("folder");
        let (meta, data) = (folder.path().join("meta"), folder.path().join("data"));
        image
            .write(File::create(&meta).expect("meta"))
            .expect("write");
        fill_device(&mut File::create(&data).expect("data"));

        let filesystem =
            fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC).expect("this kernel has EROFS");
        fsconfig_set_string(filesystem.as_fd(), "source", &meta).expect("source");
        fsconfig_set_string(filesystem.as_fd(), "device", &data).expect("device");
        fsconfig_create(filesystem.as_fd()).expect("a superblock that the kernel accepts");
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
        let mount = fsmount(
            filesystem.as_fd(),
            FsMountFlags::FSMOUNT_CLOEXEC,
            attributes,
        );
        let mount = mount.expect("fsmount");
        let root = PathBuf::from(format!("/proc/self/fd/{}/", mount.as_raw_fd()));
        Self {
            root,
            _mount: mount,
            _folder: folder,
        }
    }

    fn path(&self, path: &[u8]) -> PathBuf {
        let path = path.strip_prefix(b"/").unwrap_or(path);
        self.root.join(std::ffi::OsStr::from_bytes(path))
    }
}

fn xattrs_of(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 1 << 16];
    let len = rustix::fs::llistxattr(path, &mut names[..]).expect("llistxattr");
    let names = names[..len]
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 1 << 16];
            let len = rustix::fs::lgetxattr(path, name, &mut value[..]).expect("lgetxattr");
            value.truncate(len);
            (name.to_vec(), value)
        })
        .collect()
}

/// All paths below a folder, as [`Tree::paths`] writes them.
fn walk(folder: &Path, prefix: &[u8], into: &mut Vec<Vec<u8>>) {
    into.push(prefix.to_vec());
    for entry in fs::read_dir(folder).expect("readdir") {
        let entry = entry.expect("entry");
        let path = [prefix, b"/", entry.file_name().into_vec().as_slice()].concat();
        if entry.file_type().expect("type").is_dir() {
            walk(&entry.path(), &path, into);
        } else {
            into.push(path);
        }
    }
}

fn check(tree: &Tree, mounted: &Mounted) {
    let mut seen = Vec::new();
    walk(&mounted.root, b"", &mut seen);
    seen.sort();
    assert_eq!(seen, tree.paths.keys().cloned().collect::<Vec<_>>());

    for (path, &number) in &tree.paths {
        let thing = &tree.things[number];
        let at = mounted.path(path);
        let stat = if path.is_empty() {
            fs::metadata(&at)
        } else {
            fs::symlink_metadata(&at)
        };
        let stat = stat.expect("lstat");
        let kind = stat.file_type();
        let Attributes {
            mode,
            uid,
            gid,
            mtime,
        } = thing.attributes;
        assert_eq!(stat.mode() & 0o7777, u32::from(mode), "mode of {path:?}");
        assert_eq!((stat.uid(), stat.gid()), (uid, gid), "owner of {path:?}");
        assert_eq!(
            (stat.mtime(), stat.mtime_nsec()),
            (mtime.secs, i64::from(mtime.nanos))
        );
        assert_ne!(stat.ino(), 0);
        if !kind.is_dir() {
            assert_eq!(stat.nlink(), tree.links(number) as u64, "links of {path:?}");
        }
        let of_path = if path.is_empty() {
            at.join(".")
        } else {
            at.clone()
        };
        assert_eq!(xattrs_of(&of_path), thing.xattrs, "xattrs of {path:?}");
        match &thing.content {
            Content::File(bytes) => assert!(fs::read(&at).expect("read") == *bytes),
            Content::Directory => assert!(kind.is_dir()),
            Content::Symlink(target) => {
                assert_eq!(
                    fs::read_link(&at).expect("readlink").as_os_str().as_bytes(),
                    target
                );
            }
            Content::Char(major, minor) => {
                assert!(kind.is_char_device());
                assert_eq!(stat.rdev(), rustix::fs::makedev(*major, *minor));
            }
            Content::Block(major, minor) => {
                assert!(kind.is_block_device());
                assert_eq!(stat.rdev(), rustix::fs::makedev(*major, *minor));
            }
            Content::Fifo => assert!(kind.is_fifo()),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn prop_the_kernel_sees_the_tree_that_was_written(
        tree in tree(Taste { any_bytes: true, max_things: 120 })
    ) {
        let (image, device) = tree.image();
        check(&tree, &Mounted::new(&image, |data| data.write_all(&device).expect("device")));
    }
}

fn plain(mode: u16) -> Attributes {
    Attributes {
        mode,
        uid: 0,
        gid: 0,
        mtime: Time { secs: 1, nanos: 2 },
    }
}

#[test]
fn a_directory_of_many_blocks_is_listed_and_looked_up() {
    let mut image = Image::new(0, plain(0o755)).expect("image");
    let mut names: Vec<_> = (0..20_000)
        .map(|n| format!("name-{:x}", n * 7919 % 20_011))
        .collect();
    names.extend((0..30).map(|n| format!("{}{n}", "long".repeat(60))));
    names.push("!before the dots".into());
    for name in &names {
        let kind = Kind::Regular {
            size: 0,
            data_block: 0,
        };
        let node = image
            .inode(&Inode {
                kind,
                attributes: plain(0o644),
            })
            .expect("node");
        image
            .link(NodeId::ROOT, name.as_bytes(), node)
            .expect("link");
    }
    let mounted = Mounted::new(&image, |_| {});
    let mut seen: Vec<_> = fs::read_dir(&mounted.root)
        .expect("readdir")
        .map(|entry| {
            entry
                .expect("entry")
                .file_name()
                .into_string()
                .expect("ascii")
        })
        .collect();
    for name in &names {
        fs::metadata(mounted.root.join(name)).expect("lookup");
    }
    assert!(!mounted.root.join("name-").exists());
    seen.sort();
    names.sort();
    assert_eq!(seen, names);
}

#[test]
fn files_beyond_four_gib_are_read_at_their_ends() {
    // A sparse device of 20 GiB; the file begins at an odd block.
    let (block, size) = (3u64, (18u64 << 30) + 5);
    let mut image = Image::new((20 << 30) / 4096, plain(0o755)).expect("image");
    let kind = Kind::Regular {
        size,
        data_block: block,
    };
    let node = image
        .inode(&Inode {
            kind,
            attributes: plain(0o644),
        })
        .expect("node");
    image.link(NodeId::ROOT, b"big", node).expect("link");
    let mounted = Mounted::new(&image, |data| {
        data.set_len(20 << 30).expect("sparse");
        data.write_all_at(b"first", block * 4096).expect("write");
        data.write_all_at(b"here!", block * 4096 + (9 << 30))
            .expect("write");
        data.write_all_at(b"last!", block * 4096 + size - 5)
            .expect("write");
    });
    let mut file = File::open(mounted.root.join("big")).expect("open");
    assert_eq!(file.metadata().expect("stat").len(), size);
    for (at, text) in [(0, b"first"), (9 << 30, b"here!"), (size - 5, b"last!")] {
        let mut bytes = [0; 5];
        file.seek(SeekFrom::Start(at)).expect("seek");
        file.read_exact(&mut bytes).expect("read");
        assert_eq!(&bytes, text);
    }
}

#[test]
fn a_device_of_sixteen_tebibytes_mounts() {
    // ext4 holds no file of that size: the device is short, only what it has is read.
    let blocks = soci_erofs::format::MAX_DEVICE_BLOCKS;
    let mut image = Image::new(blocks, plain(0o755)).expect("image");
    for (name, size, data_block) in [
        ("all", blocks * 4096, 0),
        ("tail", 4096 * 10, blocks - 10),
        ("head", 5, 1),
    ] {
        let kind = Kind::Regular { size, data_block };
        let node = image
            .inode(&Inode {
                kind,
                attributes: plain(0o644),
            })
            .expect("node");
        image
            .link(NodeId::ROOT, name.as_bytes(), node)
            .expect("link");
    }
    let mounted = Mounted::new(&image, |data| {
        data.set_len(15 << 40).expect("sparse");
        data.write_all_at(b"hello", 4096).expect("write");
        data.write_all_at(b"far", (9 << 40) + 1).expect("write");
    });
    assert_eq!(fs::read(mounted.root.join("head")).expect("read"), b"hello");
    assert_eq!(
        fs::metadata(mounted.root.join("tail")).expect("stat").len(),
        40_960
    );
    let all = File::open(mounted.root.join("all")).expect("open");
    assert_eq!(all.metadata().expect("stat").len(), blocks * 4096);
    let mut bytes = [0; 4];
    all.read_exact_at(&mut bytes, 9 << 40)
        .expect("a file of two chunks");
    assert_eq!(&bytes, b"\0far");
}

#[test]
fn acls_and_capabilities_are_the_kernels_own() {
    // Version 2: owner rwx, user 1000 r--, group r-x, mask r-x, others ---.
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in [
        (1u16, 7u16, u32::MAX),
        (2, 4, 1000),
        (4, 5, u32::MAX),
        (0x10, 5, u32::MAX),
        (0x20, 0, u32::MAX),
    ] {
        acl.extend_from_slice(&tag.to_le_bytes());
        acl.extend_from_slice(&perm.to_le_bytes());
        acl.extend_from_slice(&id.to_le_bytes());
    }
    let mut capability = 0x0200_0001u32.to_le_bytes().to_vec();
    capability.extend_from_slice(&[0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);

    let mut image = Image::new(1, plain(0o755)).expect("image");
    let kind = Kind::Regular {
        size: 1,
        data_block: 0,
    };
    let file = image
        .inode(&Inode {
            kind,
            attributes: plain(0o750),
        })
        .expect("node");
    image
        .set_xattr(file, b"system.posix_acl_access", &acl)
        .expect("acl");
    image
        .set_xattr(file, b"security.capability", &capability)
        .expect("capability");
    image.link(NodeId::ROOT, b"file", file).expect("link");
    image
        .set_xattr(NodeId::ROOT, b"system.posix_acl_default", &acl)
        .expect("acl");
    image
        .set_xattr(NodeId::ROOT, b"trusted.overlay.opaque", b"y")
        .expect("marker");

    let mounted = Mounted::new(&image, |data| data.set_len(4096).expect("device"));
    let of_file = xattrs_of(&mounted.root.join("file"));
    assert_eq!(of_file[b"system.posix_acl_access".as_slice()], acl);
    assert_eq!(of_file[b"security.capability".as_slice()], capability);
    let of_root = xattrs_of(&mounted.root);
    assert_eq!(of_root[b"system.posix_acl_default".as_slice()], acl);
    assert_eq!(of_root[b"trusted.overlay.opaque".as_slice()], b"y");
}
